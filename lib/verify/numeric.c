/* SPDX-License-Identifier: Apache-2.0 */
/* The numeric level: not whether bytes are right, but whether a kernel that reads them computes
 * what the model says. Each layer is computed up to four times on the same tokens, and each
 * comparison catches what the others cannot:
 *
 *   slots, kernel  against  source as packed, kernel   the same bits, or a slot is wrong
 *   slots, kernel  against  slots, exact               the kernel's own error, within its bound
 *   slots, exact   against  source, exact              the error of requantizing, only reported
 *
 * The two sides share mp_forward and nothing else: slots are read through the target's layout and
 * the packed config.json, the source through its catalog. Weights of both are requantized alike
 * where they are at all, so the first comparison has no tolerance.
 *
 * Layers are done one after the other, with all threads inside mp_forward; the rest of this file is
 * one thread. Memory is two results and the forward's own. A slot whose weights give a NaN would
 * spoil a whole forward, so after one that failed slots are computed alone, to name them. */
#include "verify/numeric.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "checkpoint/config.h"
#include "checkpoint/matrix.h"
#include "pack/manifest.h"
#include "pack/pack.h"

/* ------------------------------------------------------------------------
 * Kernels
 */

/* Bounds are many times the error that random weights give, to leave room for data full of
 * outliers. They need not be tight: an order of rows that is wrong gives an error of about 1. */
static const mp_numeric_kernel kernels[] = {
    {"megamoe-w4a8", MP_EMULATE_W4A8, 0.15},    {"megamoe-w4a4", MP_EMULATE_W4A4, 0.45},
    {"megamoe-w4a4-g8", MP_EMULATE_W4A4, 0.45}, {"megamoe-nvfp4", MP_EMULATE_NVFP4, 0.35},
    {"megamoe-bf16", MP_EMULATE_BF16, 0.01},    {"megamoe-sm90-fp8", MP_EMULATE_SM90_FP8, 0.10},
    {"fuseep-1", MP_EMULATE_FUSEEP, 0.15},      {"fuseep-2", MP_EMULATE_FUSEEP, 0.15},
    {"deepep-bf16", MP_EMULATE_BF16, 0.01},
};

const mp_numeric_kernel *mp_numeric_kernel_of(const char *target)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (strcmp(kernels[i].target, target) == 0)
            return &kernels[i];
    return NULL;
}

/* ------------------------------------------------------------------------
 * Opening a layer
 */

/* What shared experts are packed as. */
static const mp_target *shared_target(const mp_check *check)
{
    return check->shape.sets[check->shape.num_sets - 1].target;
}

static bool packs_shared(const mp_check *check)
{
    return check->manifest.shared != MP_SHARED_NONE;
}

static bool is_requantized(const mp_check *check, const mp_moe_layer *source)
{
    /* shared_storage is only looked at where shared experts are packed. */
    return !mp_passes_through(&source->storage, check->shape.sets[MP_SET_SLOTS].target) ||
           (packs_shared(check) &&
            (!mp_passes_through(&source->shared_storage, shared_target(check)) ||
             !mp_manifest_passes(&check->manifest, true)));
}

static int read_model(const mp_config *config, uint64_t layer, mp_numeric_model *model,
                      mp_error *err)
{
    double factor = config->routed_scaling_factor;

    /* NaN: config.json has none. */
    model->factor = factor > 0 && isfinite(factor) ? factor : 1;
    return mp_model_activation(config, layer, &model->activation, NULL, &model->weigh_input, err);
}

int mp_numeric_supports(const mp_check *check, const mp_exact *exact, mp_error *err)
{
    const mp_catalog *catalog = &exact->source.catalog;
    mp_numeric_model model;

    if (!mp_numeric_kernel_of(check->manifest.target))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "level numeric: no kernel of target %s is emulated",
                       check->manifest.target);
    if (shared_target(check)->single && check->manifest.num_shared_experts != 1)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "level numeric: %" PRIu64 " shared experts in one tensor are not computed; "
                       "check at level exact",
                       check->manifest.num_shared_experts);
    if (read_model(&catalog->config, UINT64_MAX, &model, err) != 0)
        return mp_error_prefix(err, "level numeric");
    return 0;
}

/* The packed side goes by its own config.json, which is what the engine reads. */
static int read_models(mp_numeric_layer *layer, mp_error *err)
{
    const mp_catalog *catalog = &layer->exact->source.catalog;
    mp_config config;

    int rc = read_model(&catalog->config, layer->source->number, &layer->source_model, err);
    if (rc != 0)
        return rc;
    rc = mp_config_load(&config, layer->check->dir, err);
    if (rc == 0)
        rc = read_model(&config, layer->source->number, &layer->packed_model, err);
    mp_config_release(&config);
    return rc == 0 ? 0 : mp_error_prefix(err, "packed");
}

/* Without a router that can be computed, experts are chosen in turn. */
static int open_router(mp_numeric_layer *layer, mp_error *err)
{
    const mp_catalog *catalog = &layer->exact->source.catalog;
    int rc = MP_ERR_UNSUPPORTED;

    if (catalog->config.experts_per_token != MP_CONFIG_ABSENT)
        rc = mp_layer_router_open(&layer->router, catalog, layer->source, err);
    if (rc == 0)
        layer->routes = layer->router.gate != NULL;
    if (rc == MP_ERR_UNSUPPORTED) {
        layer->router = (mp_layer_router){
            .router.num_experts = layer->source->num_experts,
            .num_experts = layer->source->num_experts,
            .part = 1,
            .shared = layer->source->has_shared ? catalog->num_shared_experts : 0,
        };
        rc = 0;
    }
    /* The factor comes behind the kernel. Kernels do not know it: an engine multiplies what they
     * give, and so does multiply_routed. */
    layer->router.router.scale = 1;
    return rc;
}

static int open_layer(mp_numeric_layer *layer, mp_error *err)
{
    mp_check *check = layer->check;
    int rc = read_models(layer, err);

    if (rc == 0)
        rc = open_router(layer, err);
    if (rc == 0)
        rc = mp_packed_experts_init(&layer->slots, layer->pack, layer->index, err);
    layer->shared = packs_shared(check) ? layer->router.shared : 0;
    return rc;
}

/* What was read does not stay in the page cache. */
static void forget_packed(const mp_numeric_layer *layer)
{
    const mp_pack *pack = layer->pack;

    for (uint32_t rank = 0; rank < pack->shape.slots.ep; rank++)
        for (unsigned s = 0; s < pack->shape.num_sets; s++)
            for (int side = 0; side < MP_SIDES; side++)
                mp_pack_forget(pack, layer->index, (mp_place){rank, 0}, pack->shape.sets[s].slots,
                               &pack->shape.sets[s], (mp_side)side);
}

static void forget_source(const mp_numeric_layer *layer)
{
    const mp_catalog *catalog = &layer->exact->source.catalog;
    const mp_moe_layer *source = layer->source;

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        for (uint32_t e = 0; e < source->num_experts; e++)
            mp_matrix_forget(catalog, &source->experts[e].matrix[p]);
        if (source->has_shared)
            mp_matrix_forget(catalog, &source->shared.matrix[p]);
    }
}

static void close_layer(mp_numeric_layer *layer)
{
    forget_packed(layer);
    forget_source(layer);
    mp_layer_router_release(&layer->router);
}

/* ------------------------------------------------------------------------
 * Progress
 */

/* Forwards of a layer: the kernel's and the exact one of the slots, the kernel's of the
 * source, and the exact one of its weights where these became others. */
static unsigned forwards_of(const mp_check *check, const mp_moe_layer *source)
{
    return is_requantized(check, source) ? 4 : 3;
}

/* Bytes of a layer on the selected ranks. */
static uint64_t layer_bytes(const mp_check *check)
{
    uint64_t bytes = 0, ranks = 0;

    for (uint32_t rank = 0; rank < check->shape.slots.ep; rank++)
        ranks += check->ranks[rank];
    for (unsigned t = 0; t < check->shape.num_tensors; t++)
        if (!mp_check_tensor(check, t)->optional)
            bytes += mp_check_tensor_bytes(check, t);
    return ranks * bytes;
}

uint64_t mp_numeric_progress(const mp_check *check, const mp_exact *exact)
{
    uint64_t forwards = 0;

    for (size_t i = 0; i < check->manifest.num_layers; i++)
        if (check->layers[i])
            forwards += forwards_of(check, exact->source.layers[i]);
    return forwards * layer_bytes(check);
}

/* ------------------------------------------------------------------------
 * Computing
 */

/* A layer's tokens, and room for two results. */
typedef struct desk {
    mp_numeric_layer *layer;
    mp_numeric_batch batch;
    double *y[2];      /* [tokens, H] */
    unsigned forwards; /* that are left */
} desk;

/* What is computed. */
typedef enum weights {
    OF_SLOTS,
    OF_SOURCE_PACKED, /* requantized as the slots are, where they are */
    OF_SOURCE
} weights;

/* Puts the routed tokens' results behind the kernel, as the model does. */
static void multiply_routed(const desk *d, double factor, double *y)
{
    uint64_t hidden_size = d->layer->slots.source.hidden_size;

    /* Tokens of one slot stay as they are: their choice weighs 1, without a router. */
    for (uint64_t i = d->batch.alone * hidden_size; i < d->batch.tokens * hidden_size; i++)
        y[i] *= factor;
}

static mp_forward_options options_of(const mp_numeric_model *model, mp_emulation emulation)
{
    return (mp_forward_options){
        .emulation = emulation, .activation = model->activation, .weigh_input = model->weigh_input};
}

/* `tokens` of them from `first` on. */
static int forward_some(const desk *d, mp_emulation emulation, uint64_t first, uint64_t tokens,
                        double *y, mp_error *err)
{
    const mp_numeric_batch *b = &d->batch;
    const mp_numeric_layer *layer = d->layer;
    const mp_forward_options how = options_of(&layer->packed_model, emulation);
    const mp_batch batch = {tokens, b->columns, b->x + first * layer->slots.source.hidden_size,
                            b->slots + first * b->columns, b->slot_weights + first * b->columns};

    const mp_context quiet = mp_quiet(layer->check->context);

    return mp_forward(&layer->slots.source, &how, &batch, &quiet, y, err);
}

static int forward_slots(const desk *d, mp_emulation emulation, double *y, mp_error *err)
{
    int rc = forward_some(d, emulation, 0, d->batch.tokens, y, err);

    if (rc == 0)
        multiply_routed(d, d->layer->packed_model.factor, y);
    return rc;
}

/* Biases, which no target has, are left out. */
static int forward_source(const desk *d, weights of, mp_emulation emulation, double *y,
                          mp_error *err)
{
    const mp_numeric_layer *layer = d->layer;
    const mp_numeric_model *model = &layer->source_model;
    const mp_source *source = &layer->exact->source;
    const mp_check *check = layer->check;
    mp_catalog_experts_options options = {MP_SCHEME_COUNT, MP_SCHEME_COUNT, source->quant};
    const mp_forward_options how = {
        .emulation = emulation, .activation = model->activation, .weigh_input = model->weigh_input};
    const mp_batch batch = {d->batch.tokens, d->batch.columns, d->batch.x, d->batch.experts,
                            d->batch.weights};
    mp_catalog_experts experts;

    options.quant.ue8m0 = shared_target(check)->ue8m0;
    if (of == OF_SOURCE_PACKED) {
        options.scheme = check->shape.sets[MP_SET_SLOTS].target->scheme;
        options.shared_scheme = shared_target(check)->scheme;
    }
    int rc = mp_catalog_experts_open(&experts, &source->catalog, layer->source, &options,
                                     check->context, err);
    if (rc != 0)
        return rc;
    experts.source.bias = NULL;
    const mp_context quiet = mp_quiet(check->context);
    rc = mp_forward(&experts.source, &how, &batch, &quiet, y, err);
    if (rc == 0)
        multiply_routed(d, model->factor, y);
    mp_catalog_experts_release(&experts);
    return rc;
}

/* What a forward says of numbers that are not finite: in results, or in weights. */
static bool is_nonfinite(int rc)
{
    return rc == MP_ERR_CHECK || rc == MP_ERR_INPUT;
}

/* Computes every slot by itself, and makes faults of those whose result is not finite. */
static int report_slots(desk *d, mp_emulation emulation, bool *any, mp_error *err)
{
    const mp_numeric_batch *b = &d->batch;

    *any = false;
    for (uint64_t t = 0; t < b->alone; t++) {
        uint32_t slot = (uint32_t)b->slots[t * b->columns];
        uint32_t expert = (uint32_t)b->experts[t * b->columns];
        mp_error why = {0};
        int rc = forward_some(d, emulation, t, 1, d->y[0], &why);

        if (rc != 0 && !is_nonfinite(rc))
            return mp_fail(err, (mp_code)rc, "%s", why.message);
        if (rc != 0)
            mp_numeric_report_slot(d->layer, slot, expert, mp_emulation_name(emulation), &why);
        *any |= rc != 0;
    }
    return 0;
}

static int report_nonfinite(desk *d, weights of, mp_emulation emulation, const mp_error *why,
                            mp_error *err)
{
    const mp_spot spot = mp_numeric_spot(d->layer);
    bool any = false;
    int rc = of == OF_SLOTS ? report_slots(d, emulation, &any, err) : 0;

    if (rc == 0 && !any)
        mp_fault_add(&d->layer->check->faults, &spot, "%s of the %s experts: %s",
                     mp_emulation_name(emulation), of == OF_SLOTS ? "packed" : "source's",
                     why->message);
    return rc;
}

/* One forward. *finite: false where there are faults instead of a result. */
static int compute(desk *d, weights of, mp_emulation emulation, double *y, bool *finite,
                   mp_error *err)
{
    mp_error why = {0};
    int rc = of == OF_SLOTS ? forward_slots(d, emulation, y, &why)
                            : forward_source(d, of, emulation, y, &why);

    *finite = rc == 0;
    if (rc == 0) {
        mp_check_advance(d->layer->check, layer_bytes(d->layer->check));
        /* Faults end a layer early; run_layer adds what is left to the progress. */
        d->forwards--;
        return 0;
    }
    if (is_nonfinite(rc))
        return report_nonfinite(d, of, emulation, &why, err);
    return mp_fail(err, (mp_code)rc, "%s: %s", d->layer->source->prefix, why.message);
}

/* ------------------------------------------------------------------------
 * Holding results against each other
 */

/* Bit-identity of the kernel on either side's weights. y[0] keeps the slots' result. */
static int check_identity(desk *d, mp_verify_numeric *figures, bool *finite, mp_error *err)
{
    mp_emulation emulation = d->layer->kernel->emulation;
    uint64_t n = d->batch.tokens * d->layer->slots.source.hidden_size;
    const mp_numeric_results results = {d->y[0], d->y[1]};

    int rc = compute(d, OF_SLOTS, emulation, d->y[0], finite, err);
    if (rc != 0 || !*finite)
        return rc;
    /* y[1] is overwritten by the exact result in check_bound: the figures are taken before. */
    rc = compute(d, OF_SOURCE_PACKED, emulation, d->y[1], finite, err);
    if (rc != 0 || !*finite)
        return rc;
    figures->bit_identical = mp_compare(d->y[0], d->y[1], n).identical;
    return figures->bit_identical
               ? 0
               : mp_numeric_report_differences(d->layer, &d->batch, &results, err);
}

/* The kernel's error, in y[0]; then y[1] is exact. */
static int check_bound(desk *d, mp_verify_numeric *figures, bool *finite, mp_error *err)
{
    uint64_t n = d->batch.tokens * d->layer->slots.source.hidden_size;
    const mp_spot spot = mp_numeric_spot(d->layer);

    int rc = compute(d, OF_SLOTS, MP_EMULATE_EXACT, d->y[1], finite, err);
    if (rc != 0 || !*finite)
        return rc;
    const mp_deviation off = mp_compare(d->y[0], d->y[1], n);
    figures->rel_l2 = off.rel_l2;
    figures->cosine_diff = off.cosine_diff;
    figures->max_abs = off.max_abs;
    /* A NaN is over every bound. */
    if (!(off.rel_l2 <= figures->tolerance))
        mp_fault_add(&d->layer->check->faults, &spot,
                     "%s is %.4g off the exact result (relative L2), more than %g",
                     figures->emulation, off.rel_l2, figures->tolerance);
    return 0;
}

/* The weights' own error, of what is in y[1]. */
static int measure_weights(desk *d, mp_verify_numeric *figures, bool *finite, mp_error *err)
{
    uint64_t n = d->batch.tokens * d->layer->slots.source.hidden_size;

    int rc = compute(d, OF_SOURCE, MP_EMULATE_EXACT, d->y[0], finite, err);
    if (rc == 0 && *finite)
        figures->weights_rel_l2 = mp_compare(d->y[1], d->y[0], n).rel_l2;
    return rc;
}

static int check_results(desk *d, mp_verify_numeric *figures, mp_error *err)
{
    bool finite;
    int rc = check_identity(d, figures, &finite, err);

    if (rc == 0 && finite)
        rc = check_bound(d, figures, &finite, err);
    if (rc == 0 && finite && figures->requantized)
        rc = measure_weights(d, figures, &finite, err);
    return rc;
}

/* ------------------------------------------------------------------------
 * Layers
 */

static int run_layer(mp_numeric_layer *layer, mp_verify_numeric *figures, mp_error *err)
{
    desk d = {.layer = layer, .forwards = forwards_of(layer->check, layer->source)};
    int rc = mp_numeric_batch_make(&d.batch, layer, err);

    figures->tokens = d.batch.tokens;
    for (int i = 0; i < 2 && rc == 0; i++) {
        d.y[i] = mp_alloc_zeroed(d.batch.tokens * layer->slots.source.hidden_size, sizeof *d.y[i]);
        if (!d.y[i])
            rc = mp_fail_memory(err);
    }
    if (rc == 0)
        rc = check_results(&d, figures, err);
    free(d.y[0]);
    free(d.y[1]);
    mp_numeric_batch_release(&d.batch);
    mp_check_advance(layer->check, d.forwards * layer_bytes(layer->check));
    return rc;
}

/* A pack whose structure does not hold may not open; that is known by then. */
static int report_unopened(mp_check *check, mp_spot spot, int rc, const mp_error *why,
                           const char *what, mp_error *err)
{
    bool holds = true;

    for (size_t i = 0; i < check->faults.num_parts; i++)
        holds &= check->faults.parts[i].level != MP_VERIFY_STRUCTURE ||
                 check->faults.parts[i].faults == 0;
    /* An I/O error in a pack that is whole is an error of the run, not a fault of the pack. */
    if (rc != MP_ERR_INPUT && (rc != MP_ERR_IO || holds))
        return mp_fail(err, (mp_code)rc, "%s: %s", what, why->message);
    mp_fault_add(&check->faults, &spot, "not computed: %s", why->message);
    return 0;
}

/* Figures of a layer that is not computed yet. */
static int name_layer(const mp_check *check, const mp_exact *exact, size_t index,
                      mp_verify_numeric *figures, mp_error *err)
{
    const mp_numeric_kernel *kernel = mp_numeric_kernel_of(check->manifest.target);

    *figures = (mp_verify_numeric){
        .layer = strdup(check->manifest.layers[index]),
        .emulation = mp_emulation_name(kernel->emulation),
        .tolerance = check->options->tolerance > 0 ? check->options->tolerance : kernel->bound,
        .rel_l2 = NAN,
        .cosine_diff = NAN,
        .max_abs = NAN,
        .requantized = is_requantized(check, exact->source.layers[index]),
        .weights_rel_l2 = NAN,
    };
    return figures->layer ? 0 : mp_fail_memory(err);
}

static int check_layer(mp_check *check, const mp_exact *exact, const mp_pack *pack, size_t index,
                       mp_verify_numeric *figures, mp_error *err)
{
    mp_numeric_layer layer = {.check = check,
                              .exact = exact,
                              .pack = pack,
                              .index = index,
                              .source = exact->source.layers[index],
                              .requantized = figures->requantized,
                              .kernel = mp_numeric_kernel_of(check->manifest.target)};
    mp_error why = {0};
    int rc = open_layer(&layer, &why);

    if (rc == 0)
        rc = run_layer(&layer, figures, err);
    else
        rc = report_unopened(check, mp_numeric_spot(&layer), rc, &why, layer.source->prefix, err);
    close_layer(&layer);
    return rc;
}

/* The selected layers, one after the other, of a pack that is opened once for all of them. */
static int check_layers(const mp_exact *exact, mp_check *check, const mp_pack *pack, mp_error *err)
{
    mp_verify_numeric *figures = check->report->numeric;
    int rc = 0;

    for (size_t i = 0; i < check->manifest.num_layers && rc == 0; i++) {
        if (mp_cancelled(check->context))
            return mp_fail(err, MP_ERR_CANCELLED, "cancelled");
        if (check->layers[i])
            rc = check_layer(check, exact, pack, i, figures++, err);
    }
    return rc;
}

int mp_check_numeric(const mp_exact *exact, mp_check *check, mp_error *err)
{
    const mp_pack_options how = {.ranks = check->options->ranks};
    mp_verify_report *report = check->report;
    mp_error why = {0};
    mp_pack pack;
    int rc = 0;

    report->numeric = mp_alloc_zeroed(check->num_layers, sizeof *report->numeric);
    if (!report->numeric)
        return mp_fail_memory(err);
    mp_faults_add_part(&check->faults, -1, MP_VERIFY_NUMERIC);
    for (size_t i = 0; i < check->manifest.num_ranks; i++)
        if (check->ranks[check->manifest.ranks[i].rank])
            mp_faults_add_part(&check->faults, check->manifest.ranks[i].rank, MP_VERIFY_NUMERIC);
    for (size_t i = 0; i < check->manifest.num_layers && rc == 0; i++)
        if (check->layers[i])
            rc = name_layer(check, exact, i, &report->numeric[report->num_numeric++], err);
    if (rc != 0)
        return rc;
    rc = mp_pack_load(&pack, check->dir, &how, check->context, &why);
    mp_begin_phase(check->context, "computing");
    if (rc == 0)
        rc = check_layers(exact, check, &pack, err);
    else
        rc = report_unopened(check, mp_spot_of_rank(MP_VERIFY_NUMERIC, -1), rc, &why, check->dir,
                             err);
    mp_pack_unload(&pack);
    return rc;
}
