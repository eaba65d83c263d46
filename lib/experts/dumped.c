/* SPDX-License-Identifier: Apache-2.0 */
/* The experts of a snapshot: layers by the names of tensors, their form by types and shapes, and
 * which experts a rank has by counting.
 *
 * A snapshot is an engine's memory and says little: no names of experts, and often not even whether
 * w13 is transposed. Everything is inferred from sizes, and only if a single reading fits. Anything
 * ambiguous is reported as unknown, since a wrong guess would compare one expert with another.
 *
 *     rank = (stage * groups + group) * parts + part
 *     group    the ranks that have the same slots, each a part of I
 *     home     which slots those are; groups beyond the last home start over with the first
 *
 * Slots hold the physical experts in order, home by home, possibly followed by the shared expert.
 * Tensors found here are views into the snapshot, and only headers have been read. One thread. */
#include "experts/dumped.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/conventions.h"
#include "checkpoint/names.h"
#include "checkpoint/storage.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------
 * Layers
 */

/* Length of "model.layers.3.mlp.experts." in front of "w13_weight" or "w2_weight"; 0: another. */
static size_t head_of(const char *name)
{
    static const char *const sides[] = {".w13_", ".w2_"};
    const char *end = strrchr(name, '.');

    for (size_t i = 0; end && end > name && i < sizeof sides / sizeof sides[0]; i++) {
        size_t n = strlen(sides[i]);

        if (strncmp(end, sides[i], n) == 0 &&
            (strcmp(end + n, mp_suffixes[MP_SUFFIX_WEIGHT].text + 1) == 0 ||
             strcmp(end + n, mp_suffixes[MP_SUFFIX_WEIGHT_PACKED].text + 1) == 0))
            return (size_t)(end - name) + 1;
    }
    return 0;
}

/* What the head says of its layer, by the rule for the names of checkpoints. */
static int parse_head(mp_dumped_layer *layer, mp_error *err)
{
    char *name = mp_format("%s0.gate_proj.weight", layer->head);
    size_t length = strlen(layer->head) - 1;
    mp_expert_name parts;

    if (!name)
        return mp_fail_memory(err);
    mp_expert_name_parse(name, &parts);
    free(name);
    layer->known = parts.kind == MP_NAME_ROUTED;
    if (layer->known) {
        length = parts.prefix_length;
        layer->number = parts.layer;
        layer->mtp = parts.mtp;
    }
    layer->prefix = mp_format("%.*s", (int)length, layer->head);
    return layer->prefix ? 0 : mp_fail_memory(err);
}

static int add_layer(mp_dumped_layer **layers, size_t *count, const char *name, size_t length,
                     mp_error *err)
{
    for (size_t i = 0; i < *count; i++)
        if (strncmp((*layers)[i].head, name, length) == 0 && (*layers)[i].head[length] == '\0')
            return 0;
    mp_dumped_layer *moved = realloc(*layers, (*count + 1) * sizeof *moved);
    if (!moved)
        return mp_fail_memory(err);
    *layers = moved;
    moved[*count] = (mp_dumped_layer){.head = mp_format("%.*s", (int)length, name)};
    if (!moved[*count].head)
        return mp_fail_memory(err);
    return parse_head(&moved[(*count)++], err);
}

int mp_dumped_layers(const mp_snapshot *s, mp_dumped_layer **layers, size_t *count, mp_error *err)
{
    *layers = NULL;
    *count = 0;
    for (size_t r = 0; r < s->num_ranks; r++) {
        const mp_checkpoint *view = &s->ranks[r].tensors;

        for (size_t i = 0; i < view->num_tensors; i++) {
            const char *name = view->tensors[i].name;
            size_t length = head_of(name);

            if (length > 0 && add_layer(layers, count, name, length, err) != 0)
                return err->code;
        }
    }
    return 0;
}

void mp_dumped_layers_free(mp_dumped_layer *layers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(layers[i].head);
        free(layers[i].prefix);
    }
    free(layers);
}

static bool has_layer(const mp_checkpoint *view, const mp_dumped_layer *layer)
{
    size_t n = strlen(layer->head);

    for (size_t i = 0; i < view->num_tensors; i++)
        if (strncmp(view->tensors[i].name, layer->head, n) == 0)
            return true;
    return false;
}

bool mp_dumped_elsewhere(const mp_snapshot *s, const mp_dumped_layer *layer, size_t rank)
{
    size_t size = s->num_ranks / s->stages, first = rank / size * size;

    for (size_t r = first; r < first + size; r++)
        if (has_layer(&s->ranks[r].tensors, layer))
            return false;
    return s->stages > 1;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* The tensor "HEAD" "WHICH" with the first suffix that there is; null where there is none. */
static int find_tensor(const mp_checkpoint *view, const char *head, const char *which,
                       const mp_suffix *suffixes, size_t count, const mp_tensor **found,
                       mp_error *err)
{
    *found = NULL;
    for (size_t i = 0; i < count && !*found; i++) {
        char *name = mp_format("%s%s_%s", head, which, mp_suffixes[suffixes[i]].text + 1);

        if (!name)
            return mp_fail_memory(err);
        *found = mp_checkpoint_find(view, name);
        free(name);
    }
    return 0;
}

int mp_dumped_find(const mp_snapshot *s, const mp_dumped_layer *layer, mp_dumped_side *d,
                   mp_error *err)
{
    static const mp_suffix weights[] = {MP_SUFFIX_WEIGHT, MP_SUFFIX_WEIGHT_PACKED};
    static const mp_suffix scales[] = {MP_SUFFIX_WEIGHT_SCALE_INV, MP_SUFFIX_WEIGHT_SCALE,
                                       MP_SUFFIX_SCALE};
    static const mp_suffix globals[] = {MP_SUFFIX_WEIGHT_SCALE_2};
    static const mp_suffix divisors[] = {MP_SUFFIX_WEIGHT_GLOBAL_SCALE};
    static const mp_suffix offsets[] = {MP_SUFFIX_WEIGHT_OFFSET};
    const mp_checkpoint *view = &s->ranks[d->rank].tensors;
    const char *which = d->side == MP_L1 ? "w13" : "w2";
    mp_matrix *m = &d->matrix;

    *m = (mp_matrix){0};
    if (find_tensor(view, layer->head, which, weights, COUNT(weights), &m->weight, err) != 0 ||
        find_tensor(view, layer->head, which, scales, COUNT(scales), &m->scale, err) != 0 ||
        find_tensor(view, layer->head, which, offsets, COUNT(offsets), &m->offset, err) != 0 ||
        find_tensor(view, layer->head, which, globals, COUNT(globals), &m->global, err) != 0)
        return err->code;
    if (m->global)
        return 0;
    if (find_tensor(view, layer->head, which, divisors, COUNT(divisors), &m->global, err) != 0)
        return err->code;
    m->global_divides = m->global != NULL;
    return 0;
}

/* ------------------------------------------------------------------------
 * Forms
 */

/* Whether w13 and w2 are turned over: then w2 is [E, I, H] instead of [E, H, I]; and where these
 * are the same, w13 is [E, H, 2I] instead of [E, 2I, H]. */
static bool is_transposed(uint64_t hidden, const mp_tensor *w13, const mp_tensor *w2)
{
    if (w2 && w2->rank == 3 && (w2->shape[1] == hidden) != (w2->shape[2] == hidden))
        return w2->shape[2] == hidden;
    return w13 && w13->rank == 3 && w13->shape[1] == hidden && w13->shape[2] != hidden;
}

bool mp_dumped_recognize(const mp_dumped_model *model, const mp_tensor *other, mp_dumped_side *d)
{
    const mp_tensor *weight = d->matrix.weight;
    const mp_storage *stored = model->stored;
    uint64_t width = d->side == MP_L1 ? model->hidden_size : model->intermediate_size;
    mp_problems problems = {0};
    mp_fusion fusion;
    bool known;

    if (weight->rank != 3 || weight->shape[0] == 0 || weight->shape[0] > UINT32_MAX ||
        weight->bytes == 0)
        return false;
    d->slots = (uint32_t)weight->shape[0];
    bool over = is_transposed(model->hidden_size, d->side == MP_L1 ? weight : other,
                              d->side == MP_L1 ? other : weight);
    fusion = over ? MP_FUSION_COLS : MP_FUSION_ROWS;
    /* A kernel's scales may be elsewhere; what is left are codes. */
    d->raw = stored && stored->has_scale && !d->matrix.scale && fusion == MP_FUSION_ROWS &&
             mp_dtype_bits(weight->dtype) <= 8;
    if (d->raw) {
        d->storage = *stored;
        d->storage.fusion = fusion;
        d->storage.has_scale = false;
        d->matrix.global = NULL;
        d->rows = weight->shape[1];
        d->cols = weight->shape[2] * mp_dtype_bits(weight->dtype) / mp_scheme_bits(stored->scheme);
        known = d->cols > 0 && d->cols <= width;
    } else {
        known = mp_storage_recognize(&d->matrix, fusion, model->config, &d->storage, &d->rows,
                                     &d->cols);
        if (known)
            mp_storage_check(&d->storage, &d->matrix, d->slots, d->rows, d->cols, &problems);
        known = known && problems.count == 0;
        mp_problems_release(&problems);
    }
    if (d->side == MP_L1 && d->rows % 2 != 0)
        return false;
    d->rows /= d->side == MP_L1 ? 2 : 1;
    return known;
}

/* ------------------------------------------------------------------------
 * Places
 */

/* Whether `routed` slots on each of `groups` ranks hold `physical` experts, each home once or, on
 * further ranks, again. */
static bool holds(uint64_t routed, uint64_t groups, uint64_t physical, uint64_t *homes)
{
    if (routed == 0 || physical % routed != 0)
        return false;
    *homes = physical / routed;
    return groups % *homes == 0;
}

/* The experts that are on all ranks, copies counted. */
static bool count_homes(const mp_snapshot *s, const mp_dumped_model *model, uint64_t routed,
                        uint64_t groups, uint64_t *homes)
{
    uint64_t experts = model->num_experts;

    if (model->placement)
        return holds(routed, groups, model->placement->num_physical, homes);
    if (s->redundant != UINT64_MAX)
        return holds(routed, groups, experts + s->redundant, homes);
    return holds(routed, groups, experts, homes);
}

bool mp_dumped_place(const mp_snapshot *s, const mp_dumped_model *model, mp_dumped_side *d,
                     char reason[MP_DUMPED_REASON])
{
    uint64_t size = model->intermediate_size, hidden = model->hidden_size;
    uint64_t width = d->side == MP_L1 ? d->rows : d->cols; /* of I, on this rank */
    uint64_t other = d->side == MP_L1 ? d->cols : d->rows;
    uint64_t ranks = s->num_ranks / s->stages;

    if (other != hidden || width == 0 || size % width != 0) {
        snprintf(reason, MP_DUMPED_REASON,
                 "%" PRIu64 " of %" PRIu64 ", the source's experts have %" PRIu64 " of %" PRIu64,
                 d->rows, d->cols, d->side == MP_L1 ? size : hidden,
                 d->side == MP_L1 ? hidden : size);
        return false;
    }
    uint64_t groups = ranks / (size / width), group = d->rank % ranks / (size / width);
    bool known = ranks % (size / width) == 0;

    d->parts = size / width;
    d->part = d->rank % ranks % d->parts;
    d->num_experts = model->num_experts;
    d->map = model->placement ? mp_placement_row(model->placement, model->row) : NULL;
    d->routed = d->slots;
    /* Try first as if all slots were routed, then as if one belonged to the shared expert. */
    if (known && !count_homes(s, model, d->routed, groups, &d->homes)) {
        d->routed = d->slots - model->has_shared;
        known = count_homes(s, model, d->routed, groups, &d->homes);
        /* All the more slots are copies. */
        if (!known && !model->placement && s->redundant == UINT64_MAX &&
            groups * d->slots > d->num_experts) {
            known = true;
            d->routed = d->slots;
            d->homes = groups;
        }
    }
    if (!known) {
        uint64_t physical = model->placement             ? model->placement->num_physical
                            : s->redundant != UINT64_MAX ? s->redundant + d->num_experts
                                                         : d->num_experts;

        snprintf(reason, MP_DUMPED_REASON,
                 "%u experts on each of %" PRIu64 " ranks, %s %" PRIu64 ": which they are is not "
                 "known",
                 d->slots, ranks,
                 model->placement             ? "the placement has"
                 : s->redundant != UINT64_MAX ? "with redundant ones there are"
                                              : "the source has",
                 physical);
        return false;
    }
    d->home = group % d->homes;
    d->copied = groups > d->homes || d->homes * d->routed > d->num_experts;
    return true;
}

uint32_t mp_dumped_id(const mp_dumped_side *d, uint32_t slot)
{
    uint64_t physical = d->home * d->routed + slot;

    if (slot >= d->routed)
        return d->num_experts;
    return d->map ? (uint32_t)d->map[physical] : (uint32_t)(physical % d->num_experts);
}

/* ------------------------------------------------------------------------
 * Orders of rows
 */

static const struct {
    const char *text;
    const mp_interleave *turns;
} orders[MP_ORDERS] = {
    [MP_ORDER_PLAIN] = {"gate rows, then up rows", NULL},
    [MP_ORDER_SWAPPED] = {"up rows, then gate rows", NULL},
    [MP_ORDER_8] = {"8 gate rows and 8 up rows in turn", &mp_interleave_8},
    [MP_ORDER_16] = {"even and odd rows of groups of 16 in turn", &mp_interleave_even_odd},
};

const char *mp_half_order_text(mp_half_order order)
{
    return orders[order].text;
}

const mp_interleave *mp_half_order_turns(mp_half_order order)
{
    return orders[order].turns;
}

bool mp_half_order_fits(mp_half_order order, const mp_storage *storage, uint64_t rows)
{
    const mp_interleave *turns = orders[order].turns;

    return !turns || (storage->block_rows == 1 && !mp_fusion_is_transposed(storage->fusion) &&
                      rows % mp_interleave_group(turns) == 0);
}
