/* SPDX-License-Identifier: Apache-2.0 */
/* The experts of a snapshot against the checkpoint that the engine had loaded. A snapshot has no
 * manifest: tensors w13 and w2 of a rank's layer are all there is, and which experts their slots
 * hold, which part of them, and how rows of gate and up lie has to be worked out.
 *
 * Which experts a rank has follows from sizes and the placement (experts/dumped.h). The order of
 * w13's rows is the one that most of its first experts have, for it is the same for all: so a
 * single slot that was written otherwise is a fault and not a new rule. MegaMoE's rows take turns,
 * always. Copies of an expert that are stored as the source is are the source's bits; others, which
 * the engine quantized itself, may be off it by their scheme's bound, but not off each other: they
 * are held against the first of them.
 *
 *   index = first[side] + slot, sides in the order of ranks, layers, w13 and w2
 *
 * Slots run on all threads. All lists are made before and only read then; the order is settled by
 * reading a few slots in one thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/matrix.h"
#include "experts/dumped.h"
#include "verify/exceptions.h"
#include "verify/sample.h"
#include "verify/sides.h"
#include "verify/snapshot.h"

/* Slots that are asked for the order of their rows. */
#define VOTERS 9u

/* What is looked at of a layer of the snapshot. */
typedef struct checked_layer {
    const mp_moe_layer *source; /* null: nothing */
    mp_dumped_model model;
} checked_layer;

typedef struct experts {
    const mp_snapshot *s;
    const mp_verify_options *options;
    const mp_context *context;
    mp_faults *faults;
    const mp_dumped_layer *dumped; /* [num_layers] */
    size_t num_layers;
    checked_layer *layers; /* [num_layers] */
    mp_catalog source;
    mp_exceptions exceptions; /* of the source */
    mp_placement placement;
    uint32_t most_experts; /* of a layer of the source */
    bool *sample;          /* [source.num_layers][most_experts], or null: all */
    mp_catalog *views;     /* [s->num_ranks]: of each only the checkpoint, borrowed */
    mp_dumped_side *sides;
    uint64_t *first; /* [num_sides]: the number of its first slot */
    size_t num_sides;
    uint64_t slots;
    mp_half_order order;
} experts;

/* ------------------------------------------------------------------------
 * Layers
 */

static const mp_moe_layer *find_source(const experts *x, const mp_dumped_layer *dumped)
{
    for (size_t i = 0; i < x->source.num_layers && dumped->known; i++)
        if (x->source.layers[i].number == dumped->number && x->source.layers[i].mtp == dumped->mtp)
            return &x->source.layers[i];
    return NULL;
}

/* Layers of the source that no rank has. MTP layers are models of their own for engines. */
static void find_missing(const experts *x)
{
    for (size_t i = 0; i < x->source.num_layers; i++) {
        const mp_moe_layer *source = &x->source.layers[i];
        const mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);
        bool there = source->mtp;

        for (size_t k = 0; k < x->num_layers && !there; k++)
            there = find_source(x, &x->dumped[k]) == source;
        if (!there)
            mp_fault_add(x->faults, &spot, "%s: no rank has experts of this layer", source->prefix);
    }
}

/* *reason: why a layer cannot be compared, or null. */
static void take_layer(const experts *x, checked_layer *l, const mp_dumped_layer *dumped,
                       const char **reason)
{
    const mp_moe_layer *source = find_source(x, dumped);
    const mp_placement *placement = x->placement.map ? &x->placement : NULL;
    uint32_t row =
        source && placement
            ? mp_dumped_placement_row(placement, &x->source.config, source->number,
                                      (size_t)(source - x->source.layers), x->source.num_layers)
            : 0;

    *reason = !source             ? "the source has no such layer"
              : row == UINT32_MAX ? "the placement has no row for this layer"
              : placement && placement->num_logical != source->num_experts
                  ? "the placement is for a different number of experts"
                  : NULL;
    if (*reason)
        return;
    l->source = source;
    l->model = (mp_dumped_model){
        .config = &x->source.config,
        .hidden_size = x->source.hidden_size,
        .intermediate_size = x->source.moe_intermediate_size,
        .num_experts = source->num_experts,
        .has_shared = source->has_shared && x->source.num_shared_experts == 1,
        .stored = &source->storage,
        .placement = placement,
        .row = row,
    };
}

static int take_layers(experts *x, const bool *selected, mp_error *err)
{
    x->layers = mp_alloc_zeroed(x->num_layers, sizeof *x->layers);
    if (!x->layers)
        return mp_fail_memory(err);
    if (x->num_layers == 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "no tensor is named as w13_weight or w2_weight of experts");
    for (size_t i = 0; i < x->num_layers; i++) {
        const mp_spot spot = {MP_VERIFY_EXACT, -1, (int64_t)i, -1, NULL, -1};
        const char *reason = NULL;

        if (selected[i])
            take_layer(x, &x->layers[i], &x->dumped[i], &reason);
        if (reason)
            mp_fault_add(x->faults, &spot, "%s", reason);
    }
    /* Another pipeline stage than those selected may have the layer; without stages each rank has
     * all. */
    if (!x->options->layers && (!x->options->ranks || x->s->stages == 1))
        find_missing(x);
    return 0;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* The weight of the other side of a layer on the same rank; or null. */
static int find_other(const experts *x, const mp_dumped_side *d, const mp_tensor **other,
                      mp_error *err)
{
    /* Recognizing how a side is stored looks at the weight of the other one too. */
    mp_dumped_side o = {.rank = d->rank, .layer = d->layer, .side = (mp_side)(1 - d->side)};
    int rc = mp_dumped_find(x->s, &x->dumped[d->layer], &o, err);

    *other = o.matrix.weight;
    return rc;
}

static int add_side(experts *x, size_t rank, size_t index, mp_side side, mp_error *err)
{
    mp_spot spot = {MP_VERIFY_EXACT, (int64_t)rank, (int64_t)index, -1, NULL, -1};
    mp_dumped_side d = {.rank = rank, .layer = index, .side = side};
    const mp_dumped_model *model = &x->layers[index].model;
    char reason[MP_DUMPED_REASON], text[MP_SHAPE_TEXT];
    const mp_tensor *weight, *other;
    const char *entry;

    if (mp_dumped_find(x->s, &x->dumped[index], &d, err) != 0 ||
        find_other(x, &d, &other, err) != 0)
        return err->code;
    weight = d.matrix.weight;
    if (!weight) {
        mp_fault_add(x->faults, &spot, "%s_weight is missing", side == MP_L1 ? "w13" : "w2");
        return 0;
    }
    spot.tensor = weight->name;
    if (!mp_dumped_recognize(model, other, &d)) {
        mp_fault_add(x->faults, &spot, "%s %s and its scales are in no form that can be compared",
                     mp_dtype_name(weight->dtype),
                     mp_shape_text(weight->shape, weight->rank, text));
        return 0;
    }
    if (d.storage.has_scale && !model->stored->has_scale) {
        if (mp_exceptions_find(&x->exceptions, weight->name, &entry, err) != 0)
            return err->code;
        if (entry) {
            mp_fault_add(
                x->faults, &spot,
                "should not be quantized by \"%s\" in the source's list of exceptions, but is %s",
                entry, mp_scheme_name(d.storage.scheme));
            return 0;
        }
    }
    if (!mp_dumped_place(x->s, model, &d, reason)) {
        mp_fault_add(x->faults, &spot, "%s", reason);
        return 0;
    }
    if (mp_matrix_check_offset(&x->views[rank], &d.matrix, err) != 0)
        return err->code;
    if (d.raw)
        mp_fault_add(x->faults, &spot, "%s",
                     x->s->megamoe ? "the kernel's scales are not in this snapshot"
                                   : "its scales are missing");
    /* Slots of sides that were left out get no number. */
    x->first[x->num_sides] = x->slots;
    x->slots += d.slots;
    x->sides[x->num_sides++] = d;
    return 0;
}

static int find_sides(experts *x, mp_error *err)
{
    uint64_t most = x->s->num_ranks * x->num_layers;

    x->sides = mp_alloc(most, MP_SIDES * sizeof *x->sides);
    x->first = mp_alloc(most, MP_SIDES * sizeof *x->first);
    if (!x->sides || !x->first)
        return mp_fail_memory(err);
    for (size_t r = 0; r < x->s->num_ranks; r++)
        for (size_t i = 0; i < x->num_layers; i++) {
            if (!x->layers[i].source || x->s->ranks[r].tensors.num_tensors == 0 ||
                mp_dumped_elsewhere(x->s, &x->dumped[i], r))
                continue;
            for (int side = 0; side < MP_SIDES; side++)
                if (add_side(x, r, i, (mp_side)side, err) != 0)
                    return err->code;
        }
    return 0;
}

/* ------------------------------------------------------------------------
 * Slots
 */

static mp_weights weights_of(const experts *x, const mp_dumped_side *d, uint32_t slot, unsigned p)
{
    mp_weights w = {.catalog = &x->views[d->rank],
                    .storage = d->storage,
                    .matrix = d->matrix,
                    .rows = d->rows,
                    .cols = d->cols,
                    .part = p,
                    .raw = d->raw};

    w.matrix.slice = slot;
    w.matrix.first = p * d->rows;
    return w;
}

static mp_side_check check_of(const experts *x, const mp_dumped_side *d, uint32_t slot)
{
    uint64_t width = d->side == MP_L1 ? d->rows : d->cols;
    mp_side_check c = {
        .faults = x->faults,
        .spot = {MP_VERIFY_EXACT, (int64_t)d->rank, (int64_t)d->layer, slot, NULL, -1},
        .together = true,
        .order = d->side == MP_L1 ? x->order : MP_ORDER_PLAIN,
        .source = &x->source,
        .layer = x->layers[d->layer].source,
        .id = mp_dumped_id(d, slot),
        .side = d->side,
        .cut = {.row0 = d->part * width, .rows = width, .whole = d->parts == 1},
        .exact = true,
        .tolerance = x->options->tolerance};

    for (unsigned p = 0; p < mp_side_parts(d->side); p++)
        c.have[p] = weights_of(x, d, slot, p);
    return c;
}

/* The order that most of the first slots' rows have. */
static int find_order(experts *x, mp_error *err)
{
    unsigned votes[MP_ORDERS] = {0}, cast = 0;

    /* The first side that has an opinion decides: ask further only where none of its slots fits any
     * order. */
    for (size_t i = 0; i < x->num_sides && cast == 0; i++) {
        const mp_dumped_side *d = &x->sides[i];

        for (uint32_t slot = 0; d->side == MP_L1 && slot < d->slots && slot < VOTERS; slot++) {
            const mp_side_check c = check_of(x, d, slot);
            mp_half_order order;

            if (mp_side_find_order(&c, &order, err) != 0)
                return err->code;
            if (order != MP_ORDERS) {
                votes[order]++;
                cast++;
            }
        }
    }
    for (int order = 1; order < MP_ORDERS; order++)
        if (votes[order] > votes[x->order])
            x->order = (mp_half_order)order;
    /* Nobody voted for turns, so nothing here is right; the order only decides how that is told. */
    if (x->s->megamoe && x->order < MP_ORDER_8)
        x->order = votes[MP_ORDER_16] > votes[MP_ORDER_8] ? MP_ORDER_16 : MP_ORDER_8;
    return 0;
}

/* The first slot that has the same part of an expert as another one; that itself, if none has. */
static const mp_dumped_side *first_copy(const experts *x, const mp_dumped_side *d, uint32_t *slot)
{
    uint32_t id = mp_dumped_id(d, *slot);

    /* Sides before d in the list, then slots before this one: so exactly one copy is the first. */
    for (const mp_dumped_side *o = x->sides; o < d; o++)
        for (uint32_t s = 0; o->layer == d->layer && o->side == d->side && o->part == d->part &&
                             o->parts == d->parts && s < o->slots;
             s++)
            if (mp_dumped_id(o, s) == id) {
                *slot = s;
                return o;
            }
    for (uint32_t s = 0; s < *slot; s++)
        if (mp_dumped_id(d, s) == id)
            *slot = s;
    return d;
}

/* Copies of an expert hold the same, whatever they may be off the source. */
static int check_copy(const experts *x, const mp_dumped_side *d, uint32_t slot,
                      const mp_side_check *c, mp_error *err)
{
    uint32_t other = slot;
    const mp_dumped_side *first = first_copy(x, d, &other);

    if (first == d && other == slot)
        return 0;
    for (unsigned p = 0; p < mp_side_parts(d->side); p++) {
        const mp_weights have = weights_of(x, d, slot, p), want = weights_of(x, first, other, p);
        mp_likeness likeness;
        mp_spot spot = c->spot;

        spot.tensor = d->matrix.weight->name;
        if (have.rows != want.rows || have.cols != want.cols)
            continue;
        if (mp_weights_compare(&have, &want, UINT64_MAX, &likeness, err) != 0)
            return err->code;
        if (!likeness.same) {
            mp_fault_add(x->faults, &spot,
                         "expert %u is not as slot %u of rank %zu has it: row %" PRIu64
                         " column %" PRIu64 " of %s",
                         c->id, other, first->rank, likeness.row, likeness.col,
                         mp_projection_name(mp_side_first(d->side) + p));
            return 0;
        }
    }
    return 0;
}

static bool is_sampled(const experts *x, const mp_dumped_side *d, uint32_t slot)
{
    size_t layer = (size_t)(x->layers[d->layer].source - x->source.layers);
    uint32_t id = mp_dumped_id(d, slot);

    return !x->sample || id >= d->num_experts || x->sample[layer * x->most_experts + id];
}

static int check_slot(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const experts *x = user;
    size_t i = x->num_sides - 1;
    bool holds;

    (void)scratch;
    while (x->first[i] > index)
        i--;
    const mp_dumped_side *d = &x->sides[i];
    uint32_t slot = (uint32_t)(index - x->first[i]);
    if (!is_sampled(x, d, slot))
        return 0;
    const mp_side_check c = check_of(x, d, slot);
    if (mp_side_judge(&c, &holds, err) != 0)
        return err->code;
    return holds && d->copied ? check_copy(x, d, slot, &c, err) : 0;
}

static int draw_sample(experts *x, mp_error *err)
{
    for (size_t i = 0; i < x->source.num_layers; i++)
        if (x->source.layers[i].num_experts > x->most_experts)
            x->most_experts = x->source.layers[i].num_experts;
    return mp_sample_draw(x->options, x->source.num_layers, x->most_experts, &x->sample, err);
}

static int check_all(experts *x, const bool *selected, mp_error *err)
{
    const mp_verify_options *o = x->options;
    int rc = mp_catalog_open(&x->source, o->source, x->context, err);

    if (rc == 0)
        rc = mp_catalog_check(&x->source, err);
    if (rc == 0)
        rc = mp_exceptions_load(&x->exceptions, x->source.checkpoint.dir, err);
    if (rc != 0)
        return mp_error_prefix(err, "%s", o->source);
    x->views = mp_alloc_zeroed(x->s->num_ranks, sizeof *x->views);
    if (!x->views)
        return mp_fail_memory(err);
    for (size_t r = 0; r < x->s->num_ranks; r++)
        /* A view borrows the snapshot's tensors, and is never released as a catalog. */
        x->views[r].checkpoint = x->s->ranks[r].tensors;
    if (mp_dumped_placement(x->s, o->placement, x->source.layers[0].num_experts, &x->placement,
                            err) != 0 ||
        draw_sample(x, err) != 0 || take_layers(x, selected, err) != 0 || find_sides(x, err) != 0 ||
        find_order(x, err) != 0)
        return err->code;
    return x->slots == 0 ? 0 : mp_parallel(x->context, x->slots, 0, check_slot, x, err);
}

int mp_snapshot_experts(const mp_snapshot *s, const mp_verify_options *options, mp_faults *faults,
                        const mp_dumped_layer *layers, size_t count, const bool *selected,
                        uint64_t *slots, const mp_context *context, mp_error *err)
{
    experts x = {.s = s,
                 .options = options,
                 .context = context,
                 .faults = faults,
                 .dumped = layers,
                 .num_layers = count};
    int rc = check_all(&x, selected, err);

    for (size_t i = 0; i < x.num_sides; i++)
        for (uint32_t slot = 0; x.sides[i].side == MP_L1 && slot < x.sides[i].slots; slot++)
            *slots += is_sampled(&x, &x.sides[i], slot);
    mp_placement_release(&x.placement);
    mp_catalog_release(&x.source);
    mp_exceptions_release(&x.exceptions);
    free(x.layers);
    free(x.sample);
    free(x.views);
    free(x.sides);
    free(x.first);
    return rc;
}
