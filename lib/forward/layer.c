/* SPDX-License-Identifier: Apache-2.0 */
/* A layer of a checkpoint or of a pack, from what it is opened from to what it gives.
 *
 *   open    layer and router, experts or slots, what experts compute
 *   choose  by the router, in the numbers of the checkpoint
 *   place   zero experts are taken out of the choices, shared experts put behind them; for a pack,
 *           choices of experts become choices of slots
 *   compute
 *
 * Both kinds of input end in an expert source, so that all from computing on is the same. A pack
 * has no router and not all of config.json's tensors: what is missing is asked for (a source) and
 * never guessed. */
#include <moepack/forward.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "checkpoint/complete.h"
#include "checkpoint/config.h"
#include "checkpoint/families.h"
#include "forward/reference.h"
#include "pack/pack.h"

struct mp_layer {
    mp_layer_options options;
    mp_layer_info info;
    mp_catalog catalog;         /* of the checkpoint, or of a pack's source */
    const mp_moe_layer *stored; /* in it; null: a pack without a source */
    mp_layer_router router;
    mp_catalog_experts experts;
    mp_shared_expert alone; /* a shared expert that no slots can hold */
    mp_pack pack;
    mp_packed_experts slots;
    mp_config config; /* of a pack */
    mp_forward_options how;
};

static const mp_expert_source *source_of(const mp_layer *layer)
{
    return layer->info.packed ? &layer->slots.source : &layer->experts.source;
}

/* ------------------------------------------------------------------------
 * Opening
 */

/* The layer of a checkpoint, with its router. */
static int open_stored(mp_layer *layer, const char *path, const char *name,
                       const mp_context *context, mp_error *err)
{
    int rc = mp_catalog_open(&layer->catalog, path, context, err);

    if (rc == 0)
        rc = mp_catalog_choose(&layer->catalog, name, err);
    if (rc == 0)
        rc = mp_catalog_check(&layer->catalog, err);
    if (rc == 0)
        rc = mp_find_layer(&layer->catalog, name, &layer->stored, err);
    if (rc == 0)
        rc = mp_layer_router_open(&layer->router, &layer->catalog, layer->stored, err);
    return rc;
}

/* No kernel clamps behind SiLU, or does what GPT-OSS does. */
static int find_activation(mp_layer *layer, const mp_config *config, uint64_t number, mp_error *err)
{
    mp_forward_options *how = &layer->how;
    int rc = mp_model_activation(config, number, &how->activation, &how->shared_activation,
                                 &how->weigh_input, err);

    if (rc == 0 && how->emulation != MP_EMULATE_EXACT && how->activation.late &&
        how->activation.limit > 0)
        rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                     "layer %" PRIu64 ": swiglu_limits[%" PRIu64
                     "] clamps after SiLU, which no kernel does; --emulate exact computes it",
                     number, number);
    return rc;
}

/* A shared expert of another width than some routed ones together. */
static int open_alone(mp_layer *layer, const mp_context *context, mp_error *err)
{
    if (layer->how.emulation != MP_EMULATE_EXACT)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: the shared expert, %" PRIu64
                       " wide, is not a multiple of a routed one: no kernel computes it; give "
                       "--no-shared, or --emulate exact",
                       layer->stored->prefix, layer->stored->shared_width);
    return mp_shared_expert_open(&layer->alone, &layer->catalog, layer->stored, context, err);
}

/* Weights become what the emulated kernel takes; those of shared experts only where the caller
 * says so, or the kernel takes nothing else. */
static int open_experts(mp_layer *layer, const char *path, const char *name,
                        const mp_context *context, mp_error *err)
{
    const mp_scheme scheme = mp_emulation_scheme(layer->options.emulation);
    bool shared = layer->options.requantize_shared || scheme == MP_SCHEME_INT8_CHANNEL;
    const mp_catalog_experts_options options = {
        .scheme = scheme,
        .shared_scheme = shared ? scheme : MP_SCHEME_COUNT,
    };
    int rc = open_stored(layer, path, name, context, err);

    if (rc == 0)
        rc = find_activation(layer, &layer->catalog.config, layer->stored->number, err);
    if (rc == 0)
        rc = mp_catalog_experts_open(&layer->experts, &layer->catalog, layer->stored, &options,
                                     context, err);
    if (rc != 0)
        return rc;
    /* Ids from here on take the activation of shared experts. */
    layer->how.first_shared = layer->stored->num_experts;
    layer->info.name = layer->stored->prefix;
    if (layer->stored->has_shared && layer->router.shared == 0 && !layer->options.no_shared)
        rc = open_alone(layer, context, err);
    return rc;
}

/* Without its checkpoint: shared experts weigh 1, unless the family has a gate for them. */
static int add_packed_shared(mp_layer *layer, mp_error *err)
{
    const mp_manifest *m = &layer->pack.manifest;
    const mp_family *family = mp_family_find(m->family);
    const mp_family *known = mp_family_of_type(layer->config.model_type);

    if (!family || family->shared_gate || !known || known->shared_gate)
        return mp_fail(err, MP_ERR_USAGE,
                       "the weight of shared experts is in the checkpoint: give --source, or "
                       "--no-shared");
    layer->router.router.num_experts = layer->router.num_experts = (uint32_t)m->num_experts;
    layer->router.part = 1;
    layer->router.shared = (uint32_t)m->num_shared_experts;
    return 0;
}

/* Whether the model has shared experts, as far as anything at hand says. */
static bool has_shared(const mp_layer *layer)
{
    const uint64_t said = layer->config.num_shared_experts;

    return layer->router.shared > 0 || layer->pack.manifest.num_shared_experts > 0 ||
           (said != MP_CONFIG_ABSENT && said > 0);
}

/* The number that ends "model.layers.3"; none of "mtp.0". */
static uint64_t number_of(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && !strstr(name, "mtp") ? strtoull(dot + 1, NULL, 10) : UINT64_MAX;
}

static int open_slots(mp_layer *layer, const char *path, const char *name,
                      const mp_context *context, mp_error *err)
{
    const mp_layer_options *o = &layer->options;
    const mp_manifest *m = &layer->pack.manifest;
    size_t index = 0;
    int rc = mp_pack_load(&layer->pack, path, NULL, context, err);

    if (rc == 0)
        rc = mp_pack_layer(&layer->pack, name, &index, err);
    if (rc == 0)
        rc = mp_packed_experts_init(&layer->slots, &layer->pack, index, err);
    if (rc == 0)
        rc = mp_config_load(&layer->config, path, err);
    if (rc != 0)
        return rc;
    layer->info.name = m->layers[index];
    rc = find_activation(layer, &layer->config, number_of(layer->info.name), err);
    if (rc == 0)
        rc = mp_model_check_block(&layer->config, !o->source, err);
    if (rc == 0 && o->source)
        rc = open_stored(layer, o->source, layer->info.name, context, err);
    if (rc != 0)
        return rc;
    if (m->shared != MP_SHARED_NONE && !o->source && !o->no_shared)
        return add_packed_shared(layer, err);
    if (m->shared == MP_SHARED_NONE && has_shared(layer) && !o->no_shared)
        return mp_fail(err, MP_ERR_USAGE,
                       "the shared experts are not packed: leave them out with --no-shared");
    return 0;
}

static int open_layer(mp_layer *layer, const char *path, const char *name,
                      const mp_layer_options *options, const mp_context *context, mp_error *err)
{
    mp_layer_info *info = &layer->info;
    int rc =
        mp_options_take("mp_layer_options", &layer->options, sizeof layer->options, options, err);

    if (rc != 0)
        return rc;
    layer->how.emulation = layer->options.emulation;
    info->packed = mp_is_packed(path);
    rc = info->packed ? open_slots(layer, path, name, context, err)
                      : open_experts(layer, path, name, context, err);
    if (rc == 0 && layer->how.activation.situ > 0 && layer->how.emulation != MP_EMULATE_EXACT)
        rc = mp_fail(err, MP_ERR_UNSUPPORTED, "no kernel computes SiTU: leave out --emulate %s",
                     mp_emulation_name(layer->how.emulation));
    if (rc != 0)
        return rc;
    layer->how.bias = layer->router.block_bias;
    info->scale_taken = layer->router.scale_taken;
    info->hidden_size = source_of(layer)->hidden_size;
    info->vocab = layer->router.vocab;
    info->k = layer->router.router.k;
    info->shared = layer->options.no_shared ? 0 : layer->router.shared;
    info->count = source_of(layer)->count;
    return 0;
}

int mp_layer_open(mp_layer **layer, const char *path, const char *name,
                  const mp_layer_options *options, const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *layer = mp_alloc_zeroed(1, sizeof **layer);
    if (!*layer)
        return mp_fail_memory(err);
    int rc = open_layer(*layer, path, name, options, context, err);
    if (rc != 0) {
        mp_layer_release(*layer);
        *layer = NULL;
    }
    return rc;
}

void mp_layer_release(mp_layer *layer)
{
    if (!layer)
        return;
    mp_catalog_experts_release(&layer->experts);
    mp_pack_unload(&layer->pack);
    mp_shared_expert_release(&layer->alone);
    mp_layer_router_release(&layer->router);
    mp_catalog_release(&layer->catalog);
    mp_config_release(&layer->config);
    free(layer);
}

const mp_layer_info *mp_layer_get(const mp_layer *layer)
{
    return &layer->info;
}

/* ------------------------------------------------------------------------
 * Tokens and choices
 */

void mp_layer_random(const mp_layer *layer, uint64_t seed, uint64_t tokens, float *x,
                     int64_t *token_ids)
{
    mp_random_tokens(seed, tokens, layer->info.hidden_size, x);
    if (token_ids)
        mp_random_token_ids(seed, tokens, layer->info.vocab, token_ids);
}

int mp_layer_choose(const mp_layer *layer, const float *x, const int64_t *token_ids,
                    uint64_t tokens, const mp_context *context, int32_t *ids, float *weights,
                    mp_error *err)
{
    if (!layer->stored)
        return mp_fail(err, MP_ERR_USAGE,
                       "a pack has no router: give --source, or topk_ids and topk_weights in "
                       "--input");
    return mp_layer_route(&layer->router, x, token_ids, tokens, context, ids, weights, err);
}

/* What is computed: choices of experts or slots, the shared ones behind them. */
typedef struct placed {
    uint32_t columns; /* of a token */
    int32_t *routed;  /* [tokens, k]: choices without those of zero experts */
    int32_t *all;     /* [tokens, columns]: with shared experts */
    int32_t *ids;     /* the same, as what is computed numbers them */
    float *before;    /* [tokens, columns]: weights, before a pack's dispatch moves them */
    float *weights;
    float *identity; /* [tokens]: what x itself weighs; or null */
} placed;

static void release_placed(placed *p)
{
    free(p->routed);
    free(p->all);
    free(p->ids);
    free(p->before);
    free(p->weights);
    free(p->identity);
}

static int reserve(const mp_layer *layer, const mp_batch *batch, placed *p, mp_error *err)
{
    bool zero = layer->router.router.num_experts > layer->router.num_experts;
    uint64_t routed, all;

    p->columns = batch->k + layer->info.shared;
    if (!mp_mul_u64(batch->tokens, batch->k, &routed) ||
        !mp_mul_u64(batch->tokens, p->columns, &all))
        return mp_fail_memory(err);
    p->routed = mp_alloc(routed, sizeof *p->routed);
    p->all = mp_alloc(all, sizeof *p->all);
    p->ids = mp_alloc(all, sizeof *p->ids);
    p->before = mp_alloc(all, sizeof *p->before);
    p->weights = mp_alloc(all, sizeof *p->weights);
    p->identity = zero ? mp_alloc_zeroed(batch->tokens, sizeof *p->identity) : NULL;
    if (!p->routed || !p->all || !p->ids || !p->before || !p->weights || (zero && !p->identity))
        return mp_fail_memory(err);
    memcpy(p->routed, batch->ids, routed * sizeof *p->routed);
    return 0;
}

/* Zero experts are no choice of any expert; x is added by itself. */
static int place(const mp_layer *layer, const mp_batch *batch, placed *p, mp_error *err)
{
    const mp_packed_dispatch how = {layer->options.dispatch, layer->options.waterfill};
    uint32_t shared = layer->info.shared;
    uint64_t count = batch->tokens * p->columns;

    if (p->identity)
        mp_layer_take_zero(&layer->router, batch->tokens, batch->k, p->routed, batch->weights,
                           p->identity);
    if (layer->stored || shared > 0) {
        mp_layer_add_shared(&layer->router, batch->x, batch->tokens, batch->k, shared, p->routed,
                            batch->weights, p->all, p->before);
    } else {
        /* Without shared experts the columns are the same. */
        memcpy(p->all, p->routed, count * sizeof *p->all);
        memcpy(p->before, batch->weights, count * sizeof *p->before);
    }
    if (layer->info.packed)
        return mp_packed_route(&layer->slots, &how, p->all, p->before, batch->tokens, batch->k,
                               shared, p->ids, p->weights, err);
    memcpy(p->ids, p->all, count * sizeof *p->ids);
    memcpy(p->weights, p->before, count * sizeof *p->weights);
    return 0;
}

/* ------------------------------------------------------------------------
 * Computing
 */

/* Experts or slots that were chosen. */
static int count_used(const mp_layer *layer, const mp_batch *batch, uint32_t *used, mp_error *err)
{
    bool *seen = mp_alloc_zeroed(layer->info.count, sizeof *seen);

    if (!seen)
        return mp_fail_memory(err);
    *used = 0;
    for (uint64_t i = 0; i < batch->tokens * batch->k; i++)
        if (batch->ids[i] >= 0 && !seen[batch->ids[i]]) {
            seen[batch->ids[i]] = true;
            ++*used;
        }
    free(seen);
    return 0;
}

int mp_layer_forward(const mp_layer *layer, const mp_batch *batch, const mp_context *context,
                     double *y, uint32_t *used, mp_error *err)
{
    mp_forward_options how = layer->how;
    placed p = {0};

    err = MP_NEVER_NULL(err);
    int rc = reserve(layer, batch, &p, err);
    if (rc == 0)
        rc = place(layer, batch, &p, err);
    const mp_batch all = {batch->tokens, p.columns, batch->x, p.ids, p.weights};
    how.identity = p.identity;
    if (rc == 0)
        rc = mp_forward(source_of(layer), &how, &all, context, y, err);
    if (rc == 0 && layer->alone.experts.catalog)
        rc = mp_shared_expert_add(&layer->alone, &layer->router, &how, &all, context, y, err);
    if (rc == 0 && used)
        rc = count_used(layer, &all, used, err);
    release_placed(&p);
    return rc;
}
