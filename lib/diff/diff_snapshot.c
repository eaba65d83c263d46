/* SPDX-License-Identifier: Apache-2.0 */
/* A side that an engine has dumped. Whose experts its slots are follows from the sizes of the model
 * (experts/dumped.h): those of the other side, or where that is a snapshot too, from the router's
 * weight, which every rank has. From these come, layer by layer, the places of each expert:
 *
 *   first [E + 2]   copies of expert e are places[first[e]] up to places[first[e + 1]]; E is shared
 *   places          rank and slot of the copy's first part; its other parts are on the ranks behind
 *
 * In which order rows of gate and up are is not said either: it is the one in which the first
 * experts are nearest to those of the other side. Nearest is enough, as what differs is what the
 * user asks for. Of two snapshots only pairs of orders can be told, so the second is taken not to
 * be swapped.
 *
 * Made by one thread before pairs are compared, only read after that. The order is a member of the
 * side because it is the same for all layers; voting tries values in it. */
#include "diff/diff_snapshot.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/config.h"
#include "checkpoint/matrix.h"
#include "experts/dumped_rows.h"

/* Experts that are asked for the order of their rows, and how many rows of each: a whole turn of
 * any order is in them. */
#define VOTERS     9u
#define VOTED_ROWS 64u

/* A layer, once it is known what is where. */
typedef struct dumped_layer {
    mp_dumped_model model;
    mp_dumped_side *sides; /* [ranks][MP_SIDES]; null: the other side has no such layer */
    bool shared;           /* there are slots of the shared expert */
    uint32_t *first;       /* [num_experts + 2]: copies of an id are places[first[id]] on */
    mp_place *places;      /* the rank of the first part; the others follow */
} dumped_layer;

struct diff_snapshot {
    mp_snapshot s;
    mp_config config;
    mp_dumped_layer *layers;
    size_t num_layers;
    dumped_layer *each; /* [num_layers] */
    mp_catalog *views;  /* [s.num_ranks]: of each only the checkpoint, borrowed */
    mp_placement placement;
    mp_half_order order;
};

/* ------------------------------------------------------------------------
 * Opening
 */

static int check_findings(const mp_snapshot *s, mp_error *err)
{
    const mp_finding *f = s->findings;

    if (s->total_findings == 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s%s%s; moepack verify says %s", f->tensor ? f->tensor : "",
                   f->tensor ? ": " : "", f->text ? f->text : "?",
                   s->total_findings > 1 ? "what else is wrong" : "more");
}

int mp_diff_snapshot_open(diff_side *side, mp_snapshot_kind kind, const mp_context *context,
                          mp_error *err)
{
    struct diff_snapshot *d = mp_alloc_zeroed(1, sizeof *d);

    side->snapshot = d;
    if (!d)
        return mp_fail_memory(err);
    if (mp_snapshot_open(&d->s, kind, side->path, NULL, context, err) != 0 ||
        check_findings(&d->s, err) != 0 || mp_config_load(&d->config, side->path, err) != 0 ||
        mp_dumped_layers(&d->s, &d->layers, &d->num_layers, err) != 0)
        return err->code;
    d->each = mp_alloc_zeroed(d->num_layers, sizeof *d->each);
    d->views = mp_alloc_zeroed(d->s.num_ranks, sizeof *d->views);
    if (!d->each || !d->views)
        return mp_fail_memory(err);
    for (size_t r = 0; r < d->s.num_ranks; r++)
        d->views[r].checkpoint = d->s.ranks[r].tensors;
    /* All ranks' tensors are read through the same shards. */
    side->catalog.checkpoint = d->s.ranks[0].tensors;
    for (size_t i = 0; i < d->num_layers; i++)
        if (!d->layers[i].known)
            return mp_fail(err, MP_ERR_UNSUPPORTED, "\"%s\" is not a layer", d->layers[i].prefix);
    return 0;
}

void mp_diff_snapshot_release(diff_side *side)
{
    struct diff_snapshot *d = side->snapshot;

    for (size_t i = 0; d->each && i < d->num_layers; i++) {
        free(d->each[i].sides);
        free(d->each[i].first);
        free(d->each[i].places);
    }
    free(d->each);
    free(d->views);
    mp_dumped_layers_free(d->layers, d->num_layers);
    mp_placement_release(&d->placement);
    mp_config_release(&d->config);
    mp_snapshot_release(&d->s);
    free(d);
    side->snapshot = NULL;
    side->catalog.checkpoint = (mp_checkpoint){0};
}

size_t mp_diff_snapshot_num_layers(const diff_side *side)
{
    return side->snapshot->num_layers;
}

diff_layer mp_diff_snapshot_layer(const diff_side *side, size_t index)
{
    const mp_dumped_layer *l = &side->snapshot->layers[index];

    return (diff_layer){l->prefix, l->number, l->mtp,
                        side->snapshot->each[index].model.num_experts};
}

bool mp_diff_snapshot_shared(const diff_side *side, size_t layer)
{
    return side->snapshot->each[layer].shared;
}

const mp_checkpoint *mp_diff_snapshot_rank(const diff_side *side, size_t rank)
{
    return rank < side->snapshot->s.num_ranks ? &side->snapshot->s.ranks[rank].tensors : NULL;
}

bool mp_diff_snapshot_of_experts(const diff_side *side, const char *name)
{
    for (size_t i = 0; i < side->snapshot->num_layers; i++) {
        size_t n = strlen(side->snapshot->layers[i].head);

        if (strncmp(name, side->snapshot->layers[i].head, n) == 0 &&
            (strncmp(name + n, "w13_", 4) == 0 || strncmp(name + n, "w2_", 3) == 0))
            return true;
    }
    return false;
}

/* ------------------------------------------------------------------------
 * The model
 */

/* Experts of a layer by the router's weight [E, H] beside them; 0: it is not there. */
static uint32_t count_experts(const struct diff_snapshot *d, const mp_dumped_layer *layer)
{
    static const char experts[] = "experts.";
    size_t n = strlen(layer->head) - (sizeof experts - 1);
    char *name = mp_format("%.*sgate.weight", (int)n, layer->head);
    const mp_tensor *router = NULL;

    for (size_t r = 0; name && !router && r < d->s.num_ranks; r++)
        router = mp_checkpoint_find(&d->s.ranks[r].tensors, name);
    free(name);
    return router && router->rank == 2 && router->shape[0] <= INT32_MAX ? (uint32_t)router->shape[0]
                                                                        : 0;
}

/* The weight of a side of a layer on any rank; or null. */
static int find_weight(const struct diff_snapshot *d, const mp_dumped_layer *layer, mp_side side,
                       const mp_tensor **weight, mp_error *err)
{
    *weight = NULL;
    for (size_t r = 0; r < d->s.num_ranks && !*weight; r++) {
        mp_dumped_side at = {.rank = r, .side = side};

        if (mp_dumped_find(&d->s, layer, &at, err) != 0)
            return err->code;
        *weight = at.matrix.weight;
    }
    return 0;
}

/* The sizes of a layer by itself: all ranks that do not have other experts have parts of I. */
static int model_alone(const struct diff_snapshot *d, const mp_dumped_layer *layer,
                       mp_dumped_model *m, mp_error *err)
{
    const mp_tensor *w13, *w2;
    uint64_t ranks = d->s.num_ranks / d->s.stages, homes = 0, slots, physical;

    if (find_weight(d, layer, MP_L1, &w13, err) != 0 || find_weight(d, layer, MP_L2, &w2, err) != 0)
        return err->code;
    m->num_experts = count_experts(d, layer);
    m->has_shared = true;
    if (!w13 || !w2 || w13->rank != 3 || w2->rank != 3 || m->num_experts == 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: which experts are where is not known without the router's weight: "
                       "compare with the checkpoint",
                       layer->prefix);
    slots = w13->shape[0];
    physical = m->placement                   ? m->placement->num_physical
               : d->s.redundant != UINT64_MAX ? m->num_experts + d->s.redundant
                                              : m->num_experts;
    /* All slots are of routed experts, or all but the shared expert's. `homes` ranks have different
     * experts; the ranks / homes that have the same ones share their intermediate size. */
    for (uint64_t routed = slots; routed + 1 >= slots && routed > 0 && homes == 0; routed--)
        if (physical % routed == 0 && ranks % (physical / routed) == 0)
            homes = physical / routed;
    homes = homes ? homes : ranks;
    /* Turned over, w13 is [slots, H, 2 I] and w2 [slots, I, H]. */
    bool over = w13->shape[1] == w2->shape[2] && w13->shape[2] == 2 * w2->shape[1];
    m->hidden_size = over ? w2->shape[2] : w2->shape[1];
    m->intermediate_size = w13->shape[over ? 2 : 1] / 2 * (ranks / homes);
    return 0;
}

/* The sizes of a layer as the other side has them. *found: it has the layer. */
static int model_of_other(const diff_side *other, const mp_dumped_layer *layer, mp_dumped_model *m,
                          bool *found, mp_error *err)
{
    size_t count = mp_diff_num_layers(other), i = 0;
    diff_layer l;

    for (*found = false; i < count; i++) {
        if (mp_diff_layer_at(other, i, &l, err) != 0)
            return err->code;
        if (l.mtp == layer->mtp && l.number == layer->number)
            break;
    }
    *found = i < count;
    if (!*found || other->kind == DIFF_SNAPSHOT)
        return 0;
    m->num_experts = l.num_experts;
    if (other->kind == DIFF_PACK) {
        const mp_dims *dims = &other->pack.shape.sets[MP_SET_SLOTS].dims;

        m->hidden_size = dims->hidden_size;
        m->intermediate_size = dims->intermediate_size;
        m->has_shared = other->pack.manifest.num_shared_experts == 1;
        return 0;
    }
    m->hidden_size = other->catalog.hidden_size;
    m->intermediate_size = other->catalog.moe_intermediate_size;
    m->stored = &other->catalog.layers[i].storage;
    m->has_shared = other->catalog.layers[i].has_shared && other->catalog.num_shared_experts == 1;
    return 0;
}

/* ------------------------------------------------------------------------
 * Places
 */

static int make_side(const struct diff_snapshot *d, size_t index, mp_dumped_side *side,
                     mp_error *err)
{
    const mp_dumped_layer *layer = &d->layers[index];
    mp_dumped_side other = {.rank = side->rank, .side = (mp_side)(1 - side->side)};
    char reason[MP_DUMPED_REASON], text[MP_SHAPE_TEXT];
    const mp_tensor *weight;

    if (mp_dumped_find(&d->s, layer, side, err) != 0 ||
        mp_dumped_find(&d->s, layer, &other, err) != 0)
        return err->code;
    weight = side->matrix.weight;
    if (!weight)
        return mp_fail(err, MP_ERR_INPUT, "rank %zu: %s%s_weight is missing", side->rank,
                       layer->head, side->side == MP_L1 ? "w13" : "w2");
    if (!mp_dumped_recognize(&d->each[index].model, other.matrix.weight, side))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: %s %s and its scales are in no form that can be compared", weight->name,
                       mp_dtype_name(weight->dtype),
                       mp_shape_text(weight->shape, weight->rank, text));
    if (!mp_dumped_place(&d->s, &d->each[index].model, side, reason))
        return mp_fail(err, MP_ERR_INPUT, "%s: %s", weight->name, reason);
    return mp_matrix_check_offset(&d->views[side->rank], &side->matrix, err);
}

/* Counts, and where there is room for them lists, the copies of each id, by their first parts. */
static void list_places(const struct diff_snapshot *d, dumped_layer *each, uint32_t *fill)
{
    for (size_t r = 0; r < d->s.num_ranks; r++) {
        const mp_dumped_side *side = &each->sides[r * MP_SIDES];

        for (uint32_t slot = 0; side->matrix.weight && side->part == 0 && slot < side->slots;
             slot++) {
            uint32_t id = mp_dumped_id(side, slot);

            if (each->places)
                each->places[each->first[id] + fill[id]] = (mp_place){(uint32_t)r, slot};
            fill[id]++;
        }
    }
}

static int make_places(const struct diff_snapshot *d, dumped_layer *each, mp_error *err)
{
    uint32_t ids = each->model.num_experts + 1, total = 0;
    uint32_t *fill = mp_alloc_zeroed(ids, sizeof *fill);

    each->first = mp_alloc(ids + 1, sizeof *each->first);
    if (!fill || !each->first) {
        free(fill);
        return mp_fail_memory(err);
    }
    list_places(d, each, fill);
    for (uint32_t id = 0; id < ids; id++) {
        each->first[id] = total;
        total += fill[id];
    }
    each->first[ids] = total;
    /* The id behind the routed ones. */
    each->shared = fill[ids - 1] > 0;
    memset(fill, 0, ids * sizeof *fill);
    each->places = mp_alloc(total, sizeof *each->places);
    if (each->places)
        list_places(d, each, fill);
    free(fill);
    return each->places ? 0 : mp_fail_memory(err);
}

static int prepare_layer(struct diff_snapshot *d, size_t index, const diff_side *other,
                         mp_error *err)
{
    const mp_dumped_layer *layer = &d->layers[index];
    dumped_layer *each = &d->each[index];
    mp_dumped_model *m = &each->model;
    bool found;

    bool alone = d->config.present || other->kind != DIFF_MODEL;
    *m = (mp_dumped_model){.config = alone ? &d->config : &other->catalog.config,
                           .placement = d->placement.map ? &d->placement : NULL};
    if (model_of_other(other, layer, m, &found, err) != 0)
        return err->code;
    if (!found)
        return 0;
    if (other->kind == DIFF_SNAPSHOT && model_alone(d, layer, m, err) != 0)
        return err->code;
    if (m->placement) {
        m->row =
            mp_dumped_placement_row(m->placement, m->config, layer->number, index, d->num_layers);
        if (m->row == UINT32_MAX || m->placement->num_logical != m->num_experts)
            return mp_fail(err, MP_ERR_INPUT, "%s: the placement %s", layer->prefix,
                           m->row == UINT32_MAX ? "has no row for this layer"
                                                : "is for a different number of experts");
    }
    each->sides = mp_alloc_zeroed(d->s.num_ranks, MP_SIDES * sizeof *each->sides);
    if (!each->sides)
        return mp_fail_memory(err);
    for (size_t r = 0; r < d->s.num_ranks; r++)
        for (int side = 0; side < MP_SIDES && !mp_dumped_elsewhere(&d->s, layer, r); side++) {
            mp_dumped_side *at = &each->sides[r * MP_SIDES + (size_t)side];

            *at = (mp_dumped_side){.rank = r, .layer = index, .side = (mp_side)side};
            if (make_side(d, index, at, err) != 0)
                return err->code;
        }
    return make_places(d, each, err);
}

/* The number of experts that a placement is to be of. */
static uint32_t experts_of(const struct diff_snapshot *d, const diff_side *other)
{
    if (other->kind == DIFF_PACK)
        return other->pack.shape.slots.num_logical;
    if (other->kind == DIFF_MODEL)
        return other->catalog.layers[0].num_experts;
    return d->num_layers > 0 ? count_experts(d, &d->layers[0]) : 0;
}

int mp_diff_snapshot_prepare(diff_side *side, const diff_side *other, const char *placement,
                             mp_error *err)
{
    struct diff_snapshot *d = side->snapshot;

    if (mp_dumped_placement(&d->s, placement, experts_of(d, other), &d->placement, err) != 0)
        return err->code;
    for (size_t i = 0; i < d->num_layers; i++)
        if (prepare_layer(d, i, other, err) != 0)
            return mp_error_prefix(err, "%s", side->path);
    return 0;
}

/* ------------------------------------------------------------------------
 * Matrices
 */

const mp_place *mp_diff_snapshot_copies(const diff_side *side, size_t layer, uint32_t id,
                                        uint32_t *count)
{
    const dumped_layer *each = &side->snapshot->each[layer];

    *count = each->first[id + 1] - each->first[id];
    return each->places + each->first[id];
}

void mp_diff_snapshot_take(diff_matrix *m, const diff_ref *ref, mp_place place)
{
    const struct diff_snapshot *d = m->side->snapshot;
    mp_side side = ref->projection == MP_DOWN ? MP_L2 : MP_L1;

    m->dumped = (mp_dumped_matrix){
        .parts = &d->each[ref->layer].sides[place.rank * MP_SIDES + (size_t)side],
        .views = &d->views[place.rank],
        .slot = place.slot,
        .projection = ref->projection,
        .order = side == MP_L1 ? d->order : MP_ORDER_PLAIN,
    };
    m->storage = m->dumped.parts->storage;
    m->global_divides = m->storage.global_divides;
    m->rows = mp_dumped_rows(&m->dumped);
    m->cols = mp_dumped_cols(&m->dumped);
}

/* ------------------------------------------------------------------------
 * The order of rows
 */

/* How far gate and up of a pair of experts are apart, by their first rows. */
static int measure(const diff_list *list, size_t pair, double *apart, mp_error *err)
{
    *apart = 0;
    for (size_t i = pair; i < pair + 2; i++) {
        diff_matrix m[2];
        const mp_place *copies;
        uint32_t count;
        mp_diff_pair found = {0};

        for (unsigned s = 0; s < 2; s++)
            if (mp_diff_resolve(list->side[s], &list->refs[i][s], false, &m[s], &copies, &count,
                                err) != 0)
                return err->code;
        /* Another size is told when the pair is compared. */
        if (m[0].rows != m[1].rows || m[0].cols != m[1].cols)
            continue;
        uint64_t rows = m[0].rows < VOTED_ROWS ? m[0].rows : VOTED_ROWS;
        if (mp_diff_measure(&m[0], &m[1], (diff_cut){rows * m[0].cols, m[0].cols}, &found, err) !=
            0)
            return err->code;
        *apart += isnan(found.rel_l2) ? INFINITY : found.rel_l2;
    }
    return 0;
}

/* Whether a side may have an order; of two snapshots, the second one's halves are as it has them.
 */
static bool may_have(const diff_list *list, unsigned s, const diff_ref *ref, mp_half_order order)
{
    const struct diff_snapshot *d = list->side[s]->snapshot;
    const mp_dumped_side *side;

    if (!d)
        return order == MP_ORDER_PLAIN;
    side = d->each[ref->layer].sides;
    while (!side->matrix.weight)
        side++;
    /* MegaMoE's rows always take turns. */
    if (d->s.megamoe && !mp_half_order_turns(order))
        return false;
    if (s == 1 && list->side[0]->snapshot && order == MP_ORDER_SWAPPED)
        return false;
    return mp_half_order_fits(order, &side->storage, side->rows);
}

static void set_orders(const diff_list *list, unsigned both)
{
    for (unsigned s = 0; s < 2; s++)
        if (list->side[s]->snapshot)
            list->side[s]->snapshot->order =
                (mp_half_order)(s == 0 ? both % MP_ORDERS : both / MP_ORDERS);
}

int mp_diff_snapshot_orders(const diff_list *list, mp_error *err)
{
    unsigned votes[MP_ORDERS * MP_ORDERS] = {0}, cast = 0, best = 0;

    if (!list->side[0]->snapshot && !list->side[1]->snapshot)
        return 0;
    for (size_t i = 0; i < list->report->num_pairs && cast < VOTERS; i++) {
        const diff_ref *refs = list->refs[i];
        double least = INFINITY;
        unsigned vote = 0;

        if (refs[0].tensor || refs[0].shared || refs[0].projection != MP_GATE)
            continue;
        /* An exact fit ends the search. */
        for (unsigned both = 0; both < MP_ORDERS * MP_ORDERS && least > 0; both++) {
            double apart;

            if (!may_have(list, 0, &refs[0], (mp_half_order)(both % MP_ORDERS)) ||
                !may_have(list, 1, &refs[1], (mp_half_order)(both / MP_ORDERS)))
                continue;
            set_orders(list, both);
            if (measure(list, i, &apart, err) != 0)
                return err->code;
            if (apart < least) {
                least = apart;
                vote = both;
            }
        }
        cast++;
        votes[vote]++;
    }
    for (unsigned both = 1; both < MP_ORDERS * MP_ORDERS; both++)
        if (votes[both] > votes[best])
            best = both;
    set_orders(list, best);
    return 0;
}
