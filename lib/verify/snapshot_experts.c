/* SPDX-License-Identifier: Apache-2.0 */
/* The experts of a snapshot against the checkpoint that the engine had loaded. An engine has w13
 * [E, 2I, H] and w2 [E, H, I] of a layer, for the experts of its rank and its part of I. Which
 * experts and which part follows from the sizes, as engines count: parts of I run fastest, then
 * experts. The order of w13's rows is the one that most of its experts have, for it is the same
 * for all; MegaMoE's takes turns. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "checkpoint/names.h"
#include "checkpoint/storage.h"
#include "verify/sides.h"
#include "verify/snapshot.h"

/* Slots that are asked for the order of their rows. */
#define VOTERS 9u

/* A layer of the snapshot. */
typedef struct layer {
    char *head; /* "model.layers.3.mlp.experts." */
    const mp_moe_layer *source;
    bool selected;
} layer;

/* A tensor w13 or w2 of a layer on a rank. */
typedef struct group {
    size_t rank, layer;
    mp_side side;
    mp_storage storage;
    mp_matrix matrix;    /* of slot 0; gate, where it is w13 */
    uint64_t rows, cols; /* of one matrix */
    uint32_t slots;
    bool raw;
    uint32_t first_id; /* of slot 0 */
    mp_cut cut;
    uint64_t first; /* number of its first slot */
} group;

typedef struct experts {
    const mp_snapshot *s;
    const mp_verify_options *options;
    const mp_context *context;
    mp_faults *faults;
    mp_catalog source;
    mp_catalog *views; /* [s->num_ranks]: of each only the checkpoint, borrowed */
    layer *layers;
    char **prefixes; /* the same number */
    size_t num_layers;
    group *groups;
    size_t num_groups;
    uint64_t slots;
    mp_row_order order;
} experts;

/* ------------------------------------------------------------------------
 * Layers
 */

/* Length of "model.layers.3.mlp.experts." in front of "w13_weight" or "w2_weight"; 0: another. */
static size_t head_of(const char *name)
{
    static const char *const ends[] = {".w13_weight", ".w2_weight", ".w13_weight_packed",
                                       ".w2_weight_packed"};
    size_t length = strlen(name);

    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        size_t n = strlen(ends[i]);

        if (length > n && strcmp(name + length - n, ends[i]) == 0)
            return length - n + 1;
    }
    return 0;
}

/* Which layer of the source has the number that a head has. */
static int find_source(const experts *x, const char *head, const mp_moe_layer **found,
                       size_t *prefix_length, mp_error *err)
{
    char *name = mp_format("%s0.gate_proj.weight", head);
    mp_expert_name parts;

    *found = NULL;
    if (!name)
        return mp_fail_memory(err);
    mp_expert_name_parse(name, &parts);
    free(name);
    *prefix_length = strlen(head) - 1;
    if (parts.kind != MP_NAME_ROUTED)
        return 0;
    *prefix_length = parts.prefix_length;
    for (size_t i = 0; i < x->source.num_layers && !*found; i++)
        if (x->source.layers[i].number == parts.layer && x->source.layers[i].mtp == parts.mtp)
            *found = &x->source.layers[i];
    return 0;
}

static int add_layer(experts *x, const char *name, size_t length, mp_error *err)
{
    size_t prefix = 0;
    char *head;

    for (size_t i = 0; i < x->num_layers; i++)
        if (strncmp(x->layers[i].head, name, length) == 0 && x->layers[i].head[length] == '\0')
            return 0;
    layer *layers = realloc(x->layers, (x->num_layers + 1) * sizeof *layers);
    if (layers)
        x->layers = layers;
    char **prefixes = realloc(x->prefixes, (x->num_layers + 1) * sizeof *prefixes);
    if (prefixes)
        x->prefixes = prefixes;
    head = mp_format("%.*s", (int)length, name);
    if (!layers || !prefixes || !head) {
        free(head);
        return mp_fail_memory(err);
    }
    layer *l = &x->layers[x->num_layers];
    *l = (layer){.head = head};
    x->prefixes[x->num_layers++] = NULL;
    if (find_source(x, head, &l->source, &prefix, err) != 0)
        return err->code;
    x->prefixes[x->num_layers - 1] = mp_format("%.*s", (int)prefix, head);
    return x->prefixes[x->num_layers - 1] ? 0 : mp_fail_memory(err);
}

/* Layers of the source that no rank has. MTP layers are models of their own for engines. */
static void find_missing(const experts *x)
{
    for (size_t i = 0; i < x->source.num_layers; i++) {
        const mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);
        bool there = x->source.layers[i].mtp;

        for (size_t k = 0; k < x->num_layers && !there; k++)
            there = x->layers[k].source == &x->source.layers[i];
        if (!there)
            mp_fault_add(x->faults, &spot, "%s: no rank has experts of this layer",
                         x->source.layers[i].prefix);
    }
}

static int find_layers(experts *x, mp_error *err)
{
    for (size_t r = 0; r < x->s->num_ranks; r++) {
        const mp_checkpoint *view = &x->s->ranks[r].tensors;

        for (size_t i = 0; i < view->num_tensors; i++) {
            size_t length = head_of(view->tensors[i].name);

            if (length > 0 && add_layer(x, view->tensors[i].name, length, err) != 0)
                return err->code;
        }
    }
    if (x->num_layers == 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "no tensor is named as w13_weight or w2_weight of experts");
    bool *selected = mp_alloc_zeroed(x->num_layers, sizeof *selected);
    if (!selected)
        return mp_fail_memory(err);
    int rc = mp_select_layers(x->options->layers, (const char *const *)x->prefixes, x->num_layers,
                              selected, err);
    for (size_t i = 0; i < x->num_layers; i++) {
        const mp_spot spot = {MP_VERIFY_EXACT, -1, (int64_t)i, -1, NULL, -1};

        x->layers[i].selected = selected[i] && x->layers[i].source;
        if (rc == 0 && !x->layers[i].source)
            mp_fault_add(x->faults, &spot, "the source has no such layer");
    }
    free(selected);
    if (rc == 0 && !x->options->layers)
        find_missing(x);
    return rc;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

static int find_tensor(const mp_checkpoint *view, const char *head, const char *which,
                       const char *const *suffixes, const mp_tensor **found, mp_error *err)
{
    *found = NULL;
    for (; *suffixes && !*found; suffixes++) {
        char *name = mp_format("%s%s%s", head, which, *suffixes);

        if (!name)
            return mp_fail_memory(err);
        *found = mp_checkpoint_find(view, name);
        free(name);
    }
    return 0;
}

static int find_matrix(const mp_checkpoint *view, const char *head, const char *which,
                       mp_matrix *matrix, mp_error *err)
{
    static const char *const weights[] = {"_weight", "_weight_packed", NULL};
    static const char *const scales[] = {"_weight_scale_inv", "_weight_scale", "_scale", NULL};
    static const char *const globals[] = {"_weight_scale_2", NULL};

    *matrix = (mp_matrix){0};
    if (find_tensor(view, head, which, weights, &matrix->weight, err) != 0 ||
        find_tensor(view, head, which, scales, &matrix->scale, err) != 0)
        return err->code;
    return find_tensor(view, head, which, globals, &matrix->global, err);
}

/* How a tensor of all experts stores them. *known: false where that cannot be told. */
static void recognize(const experts *x, const layer *l, group *g, bool *known)
{
    const mp_storage *stored = &l->source->storage;
    const mp_tensor *weight = g->matrix.weight;
    mp_problems problems = {0};
    uint64_t width = g->side == MP_L1 ? x->source.hidden_size : x->source.moe_intermediate_size;

    /* A kernel's scales may be elsewhere; what is left are codes. */
    g->raw = stored->has_scale && !g->matrix.scale && weight->rank == 3 &&
             mp_dtype_bits(weight->dtype) <= 8;
    if (g->raw) {
        g->storage = *stored;
        g->storage.fusion = MP_FUSION_ROWS;
        g->storage.has_scale = false;
        g->matrix.global = NULL;
        g->rows = weight->shape[1];
        g->cols = weight->shape[2] * mp_dtype_bits(weight->dtype) / mp_scheme_bits(stored->scheme);
        *known = g->cols > 0 && g->cols <= width;
        return;
    }
    *known = mp_storage_recognize(&g->matrix, MP_FUSION_ROWS, &x->source.config, &g->storage,
                                  &g->rows, &g->cols);
    if (*known)
        mp_storage_check(&g->storage, &g->matrix, weight->shape[0], g->rows, g->cols, &problems);
    *known = *known && problems.count == 0;
    mp_problems_release(&problems);
}

/* Which experts and which part of them a rank has, by the sizes of its tensor. *reason: why that
 * cannot be. */
static bool place(const experts *x, const layer *l, group *g, char reason[160])
{
    uint64_t size = x->source.moe_intermediate_size, hidden = x->source.hidden_size;
    uint64_t width = g->side == MP_L1 ? g->rows : g->cols; /* of I, on this rank */
    uint64_t other = g->side == MP_L1 ? g->cols : g->rows;
    uint32_t num = l->source->num_experts, extra = g->slots > num ? g->slots - num : 0;
    uint64_t world = x->s->num_ranks;

    if (other != hidden || width == 0 || size % width != 0) {
        snprintf(reason, 160,
                 "%" PRIu64 " of %" PRIu64 ", the source's experts have %" PRIu64 " of %" PRIu64,
                 g->rows, g->cols, g->side == MP_L1 ? size : hidden,
                 g->side == MP_L1 ? hidden : size);
        return false;
    }
    uint64_t parts = size / width, homes = extra > 0 ? 1 : num / g->slots;
    if ((extra == 0 && num % g->slots != 0) || world % (parts * homes) != 0 ||
        (extra > 0 &&
         !(extra == 1 && l->source->has_shared && x->source.num_shared_experts == 1))) {
        snprintf(reason, 160,
                 "%u experts on each of %" PRIu64 " ranks, the source has %u: which "
                 "they are is not known",
                 g->slots, world, num);
        return false;
    }
    g->first_id = (uint32_t)(g->rank / parts % homes) * (extra > 0 ? 0 : g->slots);
    g->cut = (mp_cut){.row0 = g->rank % parts * width, .rows = width, .whole = parts == 1};
    return true;
}

static int add_group(experts *x, size_t rank, size_t index, mp_side side, mp_error *err)
{
    const layer *l = &x->layers[index];
    const mp_checkpoint *view = &x->s->ranks[rank].tensors;
    const char *which = side == MP_L1 ? "w13" : "w2";
    mp_spot spot = {MP_VERIFY_EXACT, (int64_t)rank, (int64_t)index, -1, NULL, -1};
    group g = {.rank = rank, .layer = index, .side = side};
    char reason[160];
    bool known = false;

    if (find_matrix(view, l->head, which, &g.matrix, err) != 0)
        return err->code;
    if (!g.matrix.weight) {
        mp_fault_add(x->faults, &spot, "%s_weight is missing", which);
        return 0;
    }
    spot.tensor = g.matrix.weight->name;
    if (g.matrix.weight->rank == 3 && g.matrix.weight->shape[0] > 0 &&
        g.matrix.weight->shape[0] <= UINT32_MAX && g.matrix.weight->bytes > 0)
        recognize(x, l, &g, &known);
    if (!known || (side == MP_L1 && g.rows % 2 != 0)) {
        char text[MP_SHAPE_TEXT];

        mp_fault_add(x->faults, &spot, "%s %s and its scales are in no form that can be compared",
                     mp_dtype_name(g.matrix.weight->dtype),
                     mp_shape_text(g.matrix.weight->shape, g.matrix.weight->rank, text));
        return 0;
    }
    g.slots = (uint32_t)g.matrix.weight->shape[0];
    g.rows /= side == MP_L1 ? 2 : 1;
    if (!place(x, l, &g, reason)) {
        mp_fault_add(x->faults, &spot, "%s", reason);
        return 0;
    }
    if (g.raw)
        mp_fault_add(x->faults, &spot, "%s",
                     x->s->megamoe ? "the kernel's scales are not in this snapshot"
                                   : "its scales are missing");
    g.first = x->slots;
    x->slots += g.slots;
    x->groups[x->num_groups++] = g;
    return 0;
}

static int find_groups(experts *x, mp_error *err)
{
    x->groups = mp_alloc(x->s->num_ranks * MP_SIDES, x->num_layers * sizeof *x->groups);
    if (!x->groups)
        return mp_fail_memory(err);
    for (size_t r = 0; r < x->s->num_ranks; r++)
        for (size_t i = 0; i < x->num_layers; i++)
            for (int side = 0; side < MP_SIDES && x->layers[i].selected; side++)
                if (x->s->ranks[r].tensors.num_tensors > 0 &&
                    add_group(x, r, i, (mp_side)side, err) != 0)
                    return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * Slots
 */

static mp_side_check check_of(const experts *x, const group *g, uint32_t slot)
{
    mp_side_check c = {
        .faults = x->faults,
        .spot = {MP_VERIFY_EXACT, (int64_t)g->rank, (int64_t)g->layer, slot, NULL, -1},
        .together = true,
        .order = g->side == MP_L1 ? x->order : MP_ORDER_PLAIN,
        .source = &x->source,
        .layer = x->layers[g->layer].source,
        .id = g->first_id + slot,
        .side = g->side,
        .cut = g->cut,
        .exact = true,
        .tolerance = x->options->tolerance};

    for (unsigned p = 0; p < mp_side_parts(g->side); p++) {
        c.have[p] = (mp_weights){.catalog = &x->views[g->rank],
                                 .storage = g->storage,
                                 .matrix = g->matrix,
                                 .rows = g->rows,
                                 .cols = g->cols,
                                 .raw = g->raw};
        c.have[p].matrix.slice = slot;
        c.have[p].matrix.first = p * g->rows;
    }
    return c;
}

/* The order that most of the first slots' rows have. */
static int find_order(experts *x, mp_error *err)
{
    unsigned votes[MP_ORDERS] = {0}, cast = 0;

    for (size_t i = 0; i < x->num_groups && cast == 0; i++) {
        const group *g = &x->groups[i];

        for (uint32_t slot = 0; g->side == MP_L1 && slot < g->slots && slot < VOTERS; slot++) {
            const mp_side_check c = check_of(x, g, slot);
            mp_row_order order;

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
            x->order = (mp_row_order)order;
    if (x->s->megamoe && x->order < MP_ORDER_8)
        x->order = votes[MP_ORDER_16] > votes[MP_ORDER_8] ? MP_ORDER_16 : MP_ORDER_8;
    return 0;
}

static int check_slot(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const experts *x = user;
    size_t i = x->num_groups - 1;

    (void)scratch;
    while (x->groups[i].first > index)
        i--;
    const mp_side_check c = check_of(x, &x->groups[i], (uint32_t)(index - x->groups[i].first));

    return mp_side_judge(&c, err);
}

static int check_all(experts *x, mp_error *err)
{
    const mp_verify_options *o = x->options;
    int rc = mp_catalog_open(&x->source, o->source, x->context, err);

    if (rc == 0)
        rc = mp_catalog_check(&x->source, err);
    if (rc != 0)
        return mp_error_prefix(err, "%s", o->source);
    x->views = mp_alloc_zeroed(x->s->num_ranks, sizeof *x->views);
    if (!x->views)
        return mp_fail_memory(err);
    for (size_t r = 0; r < x->s->num_ranks; r++)
        x->views[r].checkpoint = x->s->ranks[r].tensors;
    if (find_layers(x, err) != 0 || find_groups(x, err) != 0 || find_order(x, err) != 0)
        return err->code;
    return x->slots == 0 ? 0 : mp_parallel(x->context, x->slots, 0, check_slot, x, err);
}

int mp_snapshot_experts(const mp_snapshot *s, const mp_verify_options *options, mp_faults *faults,
                        char ***layers, size_t *count, uint64_t *slots, const mp_context *context,
                        mp_error *err)
{
    experts x = {.s = s, .options = options, .context = context, .faults = faults};
    int rc = check_all(&x, err);

    for (size_t i = 0; i < x.num_groups; i++)
        *slots += x.groups[i].side == MP_L1 ? x.groups[i].slots : 0;
    for (size_t i = 0; i < x.num_layers; i++)
        free(x.layers[i].head);
    free(x.layers);
    free(x.views);
    free(x.groups);
    *layers = x.prefixes;
    *count = x.num_layers;
    mp_catalog_release(&x.source);
    return rc;
}
