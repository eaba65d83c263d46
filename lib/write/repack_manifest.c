/* SPDX-License-Identifier: Apache-2.0 */
/* What a packed directory holds beside tensors: placement, config, indexes, the manifest. Written
 * once all tensors are on the disk, in this order, the manifest last: a directory with a manifest
 * is a pack, and the manifest has the digests of all that was written before it.
 *
 * What the plan decides comes from mp_repack_describe, by which terms are compared too. Here is
 * added what the run has found out: digests of tensors, sizes of compressed files, errors of what
 * was requantized, and whether anything was lost; and the forms, by which unpack turns the pack
 * back.
 *
 * An update runs some units anew and keeps the rest. Errors are sums over all experts of a layer,
 * so either all of its units were run, or the sums are those that the pack had (kept).
 *
 * One thread, after the run. */
#include "write/repack.h"

#include "base/error.h"
#include "checkpoint/form.h"
#include "numeric/quantize.h"
#include "pack/manifest.h"
#include "run/compress.h"
#include "run/sidecar.h"
#include "write/plan.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* What describing a run needs. */
typedef struct description {
    const mp_repack_plan *plan;
    const mp_progress_state *state;
    const char *partial;
    mp_manifest *m;
    const mp_manifest *before; /* of an update; null else */
    const bool *anew;          /* [units] that were run; null: all */
} description;

static int write_placement(const description *d, mp_error *err)
{
    char *text;
    int rc = mp_repack_placement(d->plan, &text, err);

    if (rc == 0) {
        rc = mp_put_text(d->partial, MP_PLACEMENT_NAME, text, strlen(text), d->m->placement_xxh3,
                         err);
        free(text);
    }
    return rc;
}

static int copy_config(const description *d, mp_error *err)
{
    const mp_catalog *catalog = d->plan->catalog;

    if (!catalog->config.present)
        return 0;
    return mp_put_copy(catalog->checkpoint.dir, d->partial, MP_CONFIG_NAME, d->m->config_xxh3, err);
}

/* ------------------------------------------------------------------------
 * Ranks
 */

static int stored_bytes(const description *d, const mp_out_file *file, uint64_t *bytes,
                        mp_error *err)
{
    char *path = mp_out_compressed_path(file, d->partial);
    struct stat st = {0};
    int rc = path ? 0 : mp_fail_memory(err);

    if (rc == 0 && stat(path, &st) != 0)
        rc = mp_fail_errno(err, errno, "cannot access \"%s\"", path);
    /* st is zeroed: 0 after an error. */
    *bytes = (uint64_t)st.st_size;
    free(path);
    return rc;
}

/* Fills in the digests and, of a compressed file, its size. */
static int settle_file(const description *d, const mp_out_file *file, mp_packed_file *packed,
                       mp_error *err)
{
    if (d->plan->work.zstd != MP_ZSTD_NONE && stored_bytes(d, file, &packed->size, err) != 0)
        return err->code;
    for (uint32_t t = 0; t < file->num_tensors; t++)
        /* Both are mp_hex_digest; files and outputs are in the same order, rank by rank. */
        strcpy(packed->tensors[t].xxh3, d->state->digest[file->first_tensor + t]);
    return 0;
}

/* Fills in what is known of files now, and writes the index of each rank. */
static int settle_ranks(const description *d, mp_error *err)
{
    const mp_work *work = &d->plan->work;
    size_t first = 0;

    for (size_t r = 0; r < d->m->num_ranks; r++) {
        mp_packed_rank *rank = &d->m->ranks[r];
        char dir[MP_RANK_NAME_MAX], index[MP_RANK_NAME_MAX + sizeof MP_INDEX_NAME];

        for (size_t f = 0; f < rank->num_files; f++)
            if (settle_file(d, &work->files[first + f], &rank->files[f], err) != 0)
                return err->code;
        snprintf(index, sizeof index, "%s/%s", mp_rank_name(rank->rank, dir), MP_INDEX_NAME);
        if (mp_put_index(work, first, rank->num_files, d->partial, index, rank->index_xxh3, err) !=
            0)
            return err->code;
        first += rank->num_files;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Forms
 */

static bool same_tensor(const mp_form_tensor *a, const mp_form_tensor *b)
{
    return strcmp(a->name, b->name) == 0 && a->matrix == b->matrix && a->role == b->role &&
           a->dtype == b->dtype && a->rank == b->rank &&
           memcmp(a->shape, b->shape, a->rank * sizeof a->shape[0]) == 0;
}

static bool same_form(const mp_form *a, const mp_form *b)
{
    bool same = a->scheme == b->scheme && a->fusion == b->fusion &&
                a->global_divides == b->global_divides && a->block_rows == b->block_rows &&
                a->block_cols == b->block_cols && a->num_tensors == b->num_tensors;

    for (size_t i = 0; same && i < a->num_tensors; i++)
        same = same_tensor(&a->tensors[i], &b->tensors[i]);
    return same;
}

/* Number of an equal form among those of the manifest, where it is added if it is new. */
static uint32_t add_form(mp_manifest *m, mp_form *form)
{
    for (size_t i = 0; i < m->num_forms; i++) {
        if (same_form(&m->forms[i], form)) {
            mp_form_release(form);
            return (uint32_t)i;
        }
    }
    /* There is room for one of each kind and layer. */
    m->forms[m->num_forms] = *form;
    return (uint32_t)m->num_forms++;
}

/* Takes out of a form what was left behind. */
static void drop_tensors(mp_form *form, mp_role_set drop)
{
    size_t kept = 0;

    for (size_t i = 0; i < form->num_tensors; i++) {
        const mp_form_tensor *tensor = &form->tensors[i];

        if (drop & MP_ROLE_BIT(tensor->role))
            free(tensor->name);
        else
            form->tensors[kept++] = *tensor;
    }
    form->num_tensors = kept;
}

/* How experts of a layer come out when they are unpacked: as the source has them where they
 * went through as they were, else in the usual style of the scheme they were brought to. */
static int form_of(const mp_repack_plan *plan, const mp_plan_layer *layer, bool shared,
                   mp_form *form, mp_error *err)
{
    const mp_moe_layer *source = layer->source;
    uint32_t id = shared ? source->num_experts : 0;
    const mp_target *target = mp_shape_set(&plan->shape, id)->target;
    uint64_t width = plan->catalog->moe_intermediate_size;
    mp_naming naming = *source->naming;

    if (shared ? layer->shared_lossless : layer->lossless) {
        if (mp_form_of_layer(plan->catalog, source, shared, form, err) != 0)
            return err->code;
        drop_tensors(form, plan->drop);
        return 0;
    }
    if (shared) {
        naming.shared = source->shared_name;
        width *= plan->catalog->num_shared_experts;
    }
    return mp_style_form(NULL, target->scheme, &naming, shared, plan->catalog->hidden_size, width,
                         form, err);
}

static int describe_forms(const mp_repack_plan *plan, mp_manifest *m, mp_error *err)
{
    bool shared = plan->options.shared != MP_SHARED_NONE;
    mp_form form;

    m->forms = mp_alloc_zeroed(plan->num_layers, 2 * sizeof *m->forms);
    m->layer_form = mp_alloc(plan->num_layers, sizeof *m->layer_form);
    if (shared)
        m->shared_form = mp_alloc(plan->num_layers, sizeof *m->shared_form);
    if (!m->forms || !m->layer_form || (shared && !m->shared_form))
        return mp_fail_memory(err);
    for (size_t i = 0; i < plan->num_layers; i++) {
        if (form_of(plan, &plan->layers[i], false, &form, err) != 0)
            return err->code;
        m->layer_form[i] = add_form(m, &form);
        if (!shared)
            continue;
        if (form_of(plan, &plan->layers[i], true, &form, err) != 0)
            return err->code;
        m->shared_form[i] = add_form(m, &form);
    }
    return 0;
}

int mp_repack_check_forms(const mp_repack_plan *plan, mp_error *err)
{
    mp_manifest m = {0};
    int rc = describe_forms(plan, &m, err);

    mp_manifest_release(&m);
    return rc;
}

/* ------------------------------------------------------------------------
 * Quantization
 */

/* The row of errors that a pack had before; null where it had none. */
static const mp_layer_error *error_before(const description *d, const mp_plan_layer *layer,
                                          const char *matrix)
{
    for (size_t i = 0; i < d->before->num_errors; i++)
        if (strcmp(d->before->errors[i].layer, layer->source->prefix) == 0 &&
            strcmp(d->before->errors[i].matrix, matrix) == 0)
            return &d->before->errors[i];
    return NULL;
}

/* Whether the units of experts first .. end-1 of a layer were left as a pack had them before. */
static bool kept(const description *d, const mp_plan_layer *layer, uint32_t first, uint32_t end)
{
    bool any = !d->anew;

    for (uint64_t u = (uint64_t)first * MP_SIDES; !any && u < (uint64_t)end * MP_SIDES; u++)
        any = d->anew[layer->first_unit + u];
    return !any;
}

static void count_elements(const description *d, const mp_plan_layer *layer, uint32_t first,
                           uint32_t end, uint64_t *elements, uint64_t *blocks)
{
    static const char *const matrices[2][MP_SIDES] = {{"w13", "w2"}, {"shared w13", "shared w2"}};
    bool shared = first >= layer->source->num_experts;

    *elements = *blocks = 0;
    if (!d->state->stats)
        return;
    if (kept(d, layer, first, end)) {
        for (int side = 0; side < MP_SIDES; side++) {
            const mp_layer_error *e = error_before(d, layer, matrices[shared][side]);

            *elements += e ? e->elements : 0;
            *blocks += e ? e->requantized_blocks : 0;
        }
        return;
    }
    for (uint64_t unit = (uint64_t)first * MP_SIDES; unit < (uint64_t)end * MP_SIDES; unit++) {
        *elements += d->state->stats[layer->first_unit + unit].elements;
        *blocks += d->state->stats[layer->first_unit + unit].requantized_blocks;
    }
}

/* Whether units of experts first .. end-1 of a layer requantized anything: where the target wants
 * powers of two, that was seen only when scales were read. */
static bool requantized(const description *d, const mp_plan_layer *layer, uint32_t first,
                        uint32_t end)
{
    uint64_t elements, blocks;

    count_elements(d, layer, first, end, &elements, &blocks);
    return elements > 0;
}

/* Takes over a row of errors. */
static int add_error_before(const description *d, const mp_plan_layer *layer, const char *matrix,
                            mp_error *err)
{
    const mp_layer_error *before = error_before(d, layer, matrix);

    if (!before)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s: the pack has no row of errors", MP_MANIFEST_NAME,
                       layer->source->prefix);
    mp_layer_error *e = &d->m->errors[d->m->num_errors++];
    *e = *before;
    e->matrix = matrix;
    e->layer = strdup(layer->source->prefix);
    return e->layer ? 0 : mp_fail_memory(err);
}

/* Adds the error of one side of experts first .. end-1 of a layer: its units' sums in the order
 * of the experts. */
static int add_error(const description *d, const mp_plan_layer *layer, uint32_t first, uint32_t end,
                     mp_side side, const char *matrix, mp_error *err)
{
    if (kept(d, layer, first, end))
        return add_error_before(d, layer, matrix, err);
    mp_layer_error *e = &d->m->errors[d->m->num_errors++];
    mp_quant_stats sum = {0};

    /* In the order of experts, whichever thread ran them: sums of floating point keep their
     * bits. */
    for (uint32_t expert = first; expert < end; expert++)
        mp_quant_stats_add(&sum, &d->state->stats[layer->first_unit + expert * MP_SIDES + side]);
    *e = (mp_layer_error){
        .layer = strdup(layer->source->prefix),
        .matrix = matrix,
        .relative_rms = sum.signal_sq > 0 ? sqrt(sum.error_sq / sum.signal_sq) : 0,
        .sqnr_db = 10 * log10(sum.signal_sq / sum.error_sq),
        .saturated = sum.saturated,
        .flushed = sum.flushed,
        .elements = sum.elements,
        .requantized_blocks = sum.requantized_blocks,
    };
    return e->layer ? 0 : mp_fail_memory(err);
}

static int describe_errors(const description *d, mp_error *err)
{
    const mp_repack_plan *plan = d->plan;
    mp_manifest *m = d->m;

    if (!d->state->stats)
        return 0;
    m->errors = mp_alloc_zeroed(plan->num_layers, 2 * MP_SIDES * sizeof *m->errors);
    if (!m->errors)
        return mp_fail_memory(err);
    for (size_t i = 0; i < plan->num_layers; i++) {
        const mp_plan_layer *layer = &plan->layers[i];
        uint32_t routed = layer->source->num_experts, all = plan->shape.num_ids;

        if (!layer->lossless && (add_error(d, layer, 0, routed, MP_L1, "w13", err) != 0 ||
                                 add_error(d, layer, 0, routed, MP_L2, "w2", err) != 0))
            return err->code;
        if (requantized(d, layer, routed, all) &&
            (add_error(d, layer, routed, all, MP_L1, "shared w13", err) != 0 ||
             add_error(d, layer, routed, all, MP_L2, "shared w2", err) != 0))
            return err->code;
    }
    return 0;
}

/* Whether the routed or the shared experts of a layer came through without loss. */
static bool is_lossless(const description *d, const mp_plan_layer *layer, bool shared)
{
    const mp_shape *shape = &d->plan->shape;
    const mp_target *target =
        shape->sets[shared && shape->shared == MP_SHARED_SEPARATE ? MP_SET_SHARED : MP_SET_SLOTS]
            .target;
    const mp_moe_layer *source = layer->source;
    uint32_t first = shared ? source->num_experts : 0;
    uint32_t end = shared ? d->plan->shape.num_ids : source->num_experts;
    uint64_t elements, blocks;

    count_elements(d, layer, first, end, &elements, &blocks);
    /* Nothing was requantized. */
    if (elements == 0)
        return true;
    return blocks == 0 &&
           mp_requantize_counts(shared ? source->shared_storage.scheme : source->storage.scheme,
                                target->scheme);
}

static void describe_quantization(const description *d)
{
    const mp_repack_plan *plan = d->plan;
    mp_manifest *m = d->m;
    mp_scheme source = plan->layers[0].source->storage.scheme;
    bool mixed = false;

    m->lossless = m->shared_lossless = true;
    for (size_t i = 0; i < plan->num_layers; i++) {
        const mp_plan_layer *layer = &plan->layers[i];

        m->lossless &= layer->lossless || is_lossless(d, layer, false);
        m->shared_lossless &= is_lossless(d, layer, true);
        mixed |= layer->source->storage.scheme != source;
    }
    m->source_scheme = mixed ? MP_SCHEME_COUNT : source;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static int describe_run(const description *d, mp_error *err)
{
    const mp_repack_plan *plan = d->plan;
    const mp_repack_options *options = &plan->options;
    const mp_catalog *catalog = plan->catalog;
    mp_manifest *m = d->m;

    if (mp_repack_describe(plan, m, err) != 0)
        return err->code;
    m->family = strdup(catalog->family);
    if (catalog->config.model_type[0] && !(m->model_type = strdup(catalog->config.model_type)))
        return mp_fail_memory(err);
    m->hidden_size = catalog->hidden_size;
    m->moe_intermediate_size = catalog->moe_intermediate_size;
    m->num_experts = plan->shape.slots.num_logical;
    m->num_shared_experts = catalog->num_shared_experts;
    m->model_layers = catalog->num_layers;
    m->command = options->command ? strdup(options->command) : NULL;
    if (!m->family || (options->command && !m->command))
        return mp_fail_memory(err);
    if (describe_errors(d, err) != 0 || describe_forms(plan, m, err) != 0)
        return err->code;
    describe_quantization(d);
    return 0;
}

int mp_repack_finish_update(const mp_repack_plan *plan, const mp_progress_state *state,
                            const mp_manifest *before, const bool *anew, const char *partial,
                            mp_error *err)
{
    mp_manifest m = {0};
    const description d = {plan, state, partial, &m, before, anew};
    char *text = NULL;
    int rc = describe_run(&d, err);

    if (rc == 0)
        rc = write_placement(&d, err);
    if (rc == 0)
        rc = copy_config(&d, err);
    if (rc == 0)
        rc = settle_ranks(&d, err);
    if (rc == 0)
        rc = mp_manifest_text(&m, &text, err);
    if (rc == 0)
        rc = mp_put_text(partial, MP_MANIFEST_NAME, text, strlen(text), NULL, err);
    free(text);
    mp_manifest_release(&m);
    return rc;
}

int mp_repack_finish(const void *plan, const mp_progress_state *state, const char *partial,
                     mp_error *err)
{
    return mp_repack_finish_update(plan, state, NULL, NULL, partial, err);
}
