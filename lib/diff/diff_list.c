/* SPDX-License-Identifier: Apache-2.0 */
/* What belongs together on two sides. Where both have experts these are paired by meaning, that is,
 * by layer, number and matrix, whatever their tensors are called; all other tensors by name. So a
 * fused checkpoint can be compared with one tensor an expert, or a pack with the model it was made
 * from.
 *
 *   model.layers.3.mlp.7.gate     a matrix of expert 7: layers by number, experts by id
 *   model.layers.3.mlp.shared.up  of the shared expert; of several in a pack "shared.0", ...
 *   model.norm.weight             a tensor, by name: "weight_packed" goes with "weight"
 *   rank 3 lm_head.weight         of two snapshots: rank by rank, by name
 *
 * Scales are not listed where they are read with the weight beside them. What only one side has is
 * a difference too, unless it says nothing there: input scales, which quantizers add, and shared
 * experts that a pack leaves out. Both lists are sorted by key and merged. One thread. */
#include "diff/diff.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/select.h"
#include "base/words.h"
#include "checkpoint/conventions.h"
#include "checkpoint/matrix.h"
#include "checkpoint/names.h"
#include "checkpoint/storage.h"
#include "diff/diff_snapshot.h"

static bool ends_in(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);

    return n >= m && strcmp(name + n - m, suffix) == 0;
}

/* ------------------------------------------------------------------------
 * The list
 */

/* Room for one more of `count` things of a size; keeps the pointer without memory. */
static bool grow(void *things, size_t *room, size_t count, size_t size)
{
    void **at = things, *moved;
    size_t more = *room ? 2 * *room : 64;

    if (count < *room)
        return true;
    moved = realloc(*at, more * size);
    if (!moved)
        return false;
    *at = moved;
    *room = more;
    return true;
}

/* Takes the name, which is malloc'ed, or null without memory. */
static int add_pair(diff_list *list, char *name, const diff_ref *a, const diff_ref *b,
                    mp_error *err)
{
    mp_diff_report *report = list->report;
    size_t room = list->room;

    /* pairs and refs have the same number of places; each keeps its own room. */
    if (!name || !grow(&report->pairs, &room, report->num_pairs, sizeof *report->pairs) ||
        !grow(&list->refs, &list->room, report->num_pairs, sizeof *list->refs)) {
        free(name);
        return mp_fail_memory(err);
    }
    list->refs[report->num_pairs][0] = *a;
    list->refs[report->num_pairs][1] = *b;
    report->pairs[report->num_pairs++] = (mp_diff_pair){.name = name};
    return 0;
}

static int add_only(diff_list *list, unsigned which, char *name, mp_error *err)
{
    mp_diff_report *report = list->report;

    if (!name || !grow(&report->only_in[which], &list->room_only[which], report->num_only[which],
                       sizeof *report->only_in[which])) {
        free(name);
        return mp_fail_memory(err);
    }
    report->only_in[which][report->num_only[which]++] = name;
    return 0;
}

void mp_diff_list_release(diff_list *list)
{
    free(list->refs);
    list->refs = NULL;
}

/* ------------------------------------------------------------------------
 * Experts
 */

/* The layers of both sides, and which are asked for. */
typedef struct layers {
    diff_layer *of[2];
    size_t count[2];
    bool *selected[2];
    const char **prefixes; /* of both, one behind the other */
    bool *flags;           /* the same; what selected[] points into */
} layers;

static void release_layers(layers *l)
{
    free(l->of[0]);
    free(l->of[1]);
    free(l->prefixes);
    free(l->flags);
}

static bool same_layer(const diff_layer *a, const diff_layer *b)
{
    return a->mtp == b->mtp && a->number == b->number;
}

/* Index of the layer of the other side that goes with one, or its count. */
static size_t other_layer(const layers *l, unsigned which, size_t index)
{
    unsigned other = 1 - which;
    size_t i = 0;

    while (i < l->count[other] && !same_layer(&l->of[which][index], &l->of[other][i]))
        i++;
    return i;
}

static int read_layers(const diff_list *list, layers *l, mp_error *err)
{
    size_t total = 0;

    for (unsigned s = 0; s < 2; s++) {
        l->count[s] = mp_diff_num_layers(list->side[s]);
        l->of[s] = mp_alloc(l->count[s], sizeof *l->of[s]);
        if (!l->of[s])
            return mp_fail_memory(err);
        total += l->count[s];
        for (size_t i = 0; i < l->count[s]; i++)
            if (mp_diff_layer_at(list->side[s], i, &l->of[s][i], err) != 0)
                return err->code;
    }
    l->prefixes = mp_alloc(total, sizeof *l->prefixes);
    l->flags = mp_alloc_zeroed(total, sizeof *l->flags);
    return l->prefixes && l->flags ? 0 : mp_fail_memory(err);
}

/* A layer is selected by its name on either side. */
static int select_both(layers *l, const char *names, mp_error *err)
{
    size_t total = 0;

    for (unsigned s = 0; s < 2; s++) {
        l->selected[s] = l->flags + total;
        for (size_t i = 0; i < l->count[s]; i++)
            l->prefixes[total++] = l->of[s][i].prefix;
    }
    if (mp_select_layers(names, l->prefixes, total, l->flags, err) != 0)
        return err->code;
    for (size_t i = 0; i < l->count[0]; i++) {
        size_t j = other_layer(l, 0, i);

        if (j < l->count[1])
            /* Both, so that the layer is not on one side only. */
            l->selected[0][i] = l->selected[1][j] = l->selected[0][i] || l->selected[1][j];
    }
    return 0;
}

/* The first matrix that an expert of a side has. */
static mp_projection first_matrix(const diff_side *side, const diff_ref *ref)
{
    return side->kind == DIFF_MODEL && side->catalog.layers[ref->layer].ungated ? MP_UP : MP_GATE;
}

/* Adds gate, up and down of an expert that both sides have; where only one has a gate, that is on
 * its side only. expert: "7", "shared". */
static int add_matrices(diff_list *list, const char *prefix, const char *expert, const diff_ref *a,
                        const diff_ref *b, mp_error *err)
{
    mp_projection one = first_matrix(list->side[0], a), other = first_matrix(list->side[1], b);

    if (one != other &&
        add_only(list, one > other, mp_format("%s.%s.gate", prefix, expert), err) != 0)
        return err->code;
    for (int p = (int)(one > other ? one : other); p < MP_PROJECTIONS; p++) {
        diff_ref of[2] = {*a, *b};

        of[0].projection = of[1].projection = (mp_projection)p;
        if (add_pair(list,
                     mp_format("%s.%s.%s", prefix, expert, mp_projection_name((mp_projection)p)),
                     &of[0], &of[1], err) != 0)
            return err->code;
    }
    return 0;
}

/* Whether a side has an expert at all: a pack may be of some ranks only. */
static bool has_expert(const diff_side *side, const diff_layer *layer, const diff_ref *ref)
{
    uint32_t count;

    if (ref->id >= layer->num_experts)
        return false;
    if (side->kind == DIFF_SNAPSHOT)
        mp_diff_snapshot_copies(side, ref->layer, ref->id, &count);
    else if (side->kind == DIFF_PACK)
        mp_pack_copies(&side->pack, ref->layer, ref->id, &count);
    else
        return true;
    return count > 0;
}

/* Adds an expert, on either side or on both. */
static int add_expert(diff_list *list, const diff_layer *const of[2], const char *expert,
                      const diff_ref refs[2], const bool has[2], mp_error *err)
{
    if (has[0] && has[1])
        return add_matrices(list, of[0]->prefix, expert, &refs[0], &refs[1], err);
    for (unsigned s = 0; s < 2; s++)
        if (has[s] && add_only(list, s, mp_format("%s.%s", of[s]->prefix, expert), err) != 0)
            return err->code;
    return 0;
}

static int add_routed(diff_list *list, const diff_layer *const of[2], const size_t index[2],
                      mp_error *err)
{
    uint32_t most =
        of[0]->num_experts > of[1]->num_experts ? of[0]->num_experts : of[1]->num_experts;

    for (uint32_t id = 0; id < most; id++) {
        const diff_ref refs[2] = {{.layer = index[0], .id = id}, {.layer = index[1], .id = id}};
        char expert[16];
        bool has[2];

        snprintf(expert, sizeof expert, "%u", id);
        for (unsigned s = 0; s < 2; s++)
            has[s] = has_expert(list->side[s], of[s], &refs[s]);
        if (add_expert(list, of, expert, refs, has, err) != 0)
            return err->code;
    }
    return 0;
}

/* Whether a pack has several shared experts, each by itself. */
static bool has_parts(const diff_side *side)
{
    return side->kind == DIFF_PACK && mp_diff_packed_shared(side) > 1;
}

/* Whether a pack has several shared experts as one tensor. */
static bool has_wide(const diff_side *side)
{
    return side->kind == DIFF_PACK && mp_diff_packed_shared(side) == 1 &&
           side->pack.manifest.num_shared_experts > 1;
}

/* Shared experts of a layer, in parts or as one. */
static uint32_t count_shared(const diff_side *side, size_t layer, bool parts)
{
    if (side->kind == DIFF_PACK)
        return mp_diff_packed_shared(side);
    if (side->kind == DIFF_SNAPSHOT)
        return mp_diff_snapshot_shared(side, layer);
    if (!side->catalog.layers[layer].has_shared)
        return 0;
    return parts ? side->catalog.num_shared_experts : 1;
}

/* A pack or a snapshot without shared experts says nothing about those of another kind. */
static bool leaves_shared(const diff_side *a, size_t layer, const diff_side *b)
{
    /* Two packs do: one of them without is a difference. */
    return a->kind >= DIFF_PACK && a->kind != b->kind && count_shared(a, layer, true) == 0;
}

static int add_shared(diff_list *list, const diff_layer *const of[2], const size_t index[2],
                      mp_error *err)
{
    const diff_side *a = list->side[0], *b = list->side[1];
    bool parts = has_parts(a) || has_parts(b);
    uint32_t count[2], most;

    if (leaves_shared(a, index[0], b) || leaves_shared(b, index[1], a))
        return 0;
    if (parts && (has_wide(a) || has_wide(b)))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "shared experts are one tensor in one pack and separate in the other: "
                       "compare each with the checkpoint");
    for (unsigned s = 0; s < 2; s++)
        count[s] = count_shared(list->side[s], index[s], parts);
    most = count[0] > count[1] ? count[0] : count[1];
    for (uint32_t id = 0; id < most; id++) {
        uint32_t which = parts ? id : DIFF_WHOLE;
        const diff_ref refs[2] = {{.layer = index[0], .shared = true, .id = which},
                                  {.layer = index[1], .shared = true, .id = which}};
        const bool has[2] = {id < count[0], id < count[1]};
        char expert[24] = "shared";

        if (parts)
            snprintf(expert, sizeof expert, "shared.%u", id);
        if (add_expert(list, of, expert, refs, has, err) != 0)
            return err->code;
    }
    return 0;
}

static int add_layers(diff_list *list, const layers *l, mp_error *err)
{
    for (size_t i = 0; i < l->count[0]; i++) {
        size_t j = other_layer(l, 0, i);
        const diff_layer *of[2] = {&l->of[0][i], &l->of[1][j]};
        int rc = 0;

        if (!l->selected[0][i])
            continue;
        if (j == l->count[1])
            rc = add_only(list, 0, mp_format("%s", l->of[0][i].prefix), err);
        else if (add_routed(list, of, (const size_t[]){i, j}, err) != 0 ||
                 add_shared(list, of, (const size_t[]){i, j}, err) != 0)
            rc = err->code;
        if (rc != 0)
            return rc;
    }
    for (size_t j = 0; j < l->count[1]; j++)
        if (l->selected[1][j] && other_layer(l, 1, j) == l->count[0] &&
            add_only(list, 1, mp_format("%s", l->of[1][j].prefix), err) != 0)
            return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * Weights beside their scales
 */

/* The tensor "BASE" + suffix, or null. */
static const mp_tensor *beside(const mp_checkpoint *ckpt, const char *weight, size_t base,
                               const char *suffix)
{
    char *name = mp_format("%.*s%s", (int)base, weight, suffix);
    const mp_tensor *found = name ? mp_checkpoint_find(ckpt, name) : NULL;

    free(name);
    return found;
}

/* The first tensor of that role that there is; *divides as its suffix says. */
static const mp_tensor *first_beside(const mp_checkpoint *ckpt, const char *weight, size_t base,
                                     mp_role role, bool *divides)
{
    const mp_tensor *found = NULL;

    for (unsigned i = 0; i < MP_SUFFIXES_OF_ONE && !found; i++) {
        if (mp_suffixes[i].role != role)
            continue;
        found = beside(ckpt, weight, base, mp_suffixes[i].text);
        *divides = found && mp_suffixes[i].divides;
    }
    return found;
}

bool mp_diff_weight_beside(const diff_side *side, const mp_tensor *tensor, mp_matrix *matrix,
                           mp_storage *storage, uint64_t *rows, uint64_t *cols)
{
    static const mp_role roles[] = {MP_ROLE_SCALE, MP_ROLE_SHAPE, MP_ROLE_GLOBAL_SCALE};
    const mp_checkpoint *ckpt = &side->catalog.checkpoint;
    mp_problems problems = {0};
    size_t base = mp_weight_module(tensor->name);

    if (base == 0)
        return false;
    *matrix = (mp_matrix){.weight = tensor};
    /* compressed-tensors divides by its second scale, ModelOpt multiplies: the suffix says it. */
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        *mp_matrix_place(matrix, roles[i]) =
            first_beside(ckpt, tensor->name, base, roles[i], &matrix->global_divides);
    if (!matrix->scale ||
        !mp_storage_recognize(matrix, MP_FUSION_NONE, &side->catalog.config, storage, rows, cols))
        return false;
    mp_storage_check(storage, matrix, 1, *rows, *cols, &problems);
    /* Scales of another shape belong to something else: take the weight for plain numbers. */
    bool fits = problems.count == 0;
    mp_problems_release(&problems);
    return fits;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

typedef struct entry {
    char *key; /* the name, or what it is called on either side */
    const mp_tensor *tensor;
    bool optional; /* no difference where only one side has it */
} entry;

typedef struct entries {
    entry *items;
    size_t count;
} entries;

static void release_entries(entries *e)
{
    for (size_t i = 0; i < e->count; i++)
        free(e->items[i].key);
    free(e->items);
}

static bool is_input_scale(const char *name)
{
    for (unsigned i = 0; i < MP_SUFFIXES; i++)
        if (mp_suffixes[i].role == MP_ROLE_INPUT_SCALE && ends_in(name, mp_suffixes[i].text))
            return true;
    return false;
}

/* Whether a tensor is compared with the experts. */
static bool belongs_to_expert(const char *name)
{
    mp_expert_name parts;

    mp_expert_name_parse(name, &parts);
    if (parts.kind != MP_NAME_ROUTED && parts.kind != MP_NAME_FUSED && parts.kind != MP_NAME_SHARED)
        return false;
    return parts.role != MP_ROLE_BIAS && parts.role != MP_ROLE_INPUT_SCALE;
}

/* Marks what stands beside a weight. */
static void mark_beside(const diff_side *side, const mp_tensor *tensor, bool *taken)
{
    const mp_checkpoint *ckpt = &side->catalog.checkpoint;
    mp_storage storage;
    mp_matrix matrix;
    uint64_t rows, cols;

    if (!mp_diff_weight_beside(side, tensor, &matrix, &storage, &rows, &cols))
        return;
    const mp_tensor *const tensors[] = {matrix.scale, matrix.global, matrix.shape};
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        if (tensors[i])
            taken[tensors[i] - ckpt->tensors] = true;
}

static bool in_selected_layer(const layers *l, unsigned which, const char *name)
{
    for (size_t i = 0; i < l->count[which]; i++) {
        size_t n = strlen(l->of[which][i].prefix);

        if (l->selected[which][i] && strncmp(name, l->of[which][i].prefix, n) == 0 &&
            name[n] == '.')
            return true;
    }
    return false;
}

/* "X.weight_packed" goes with "X.weight". */
static char *key_of(const mp_checkpoint *ckpt, const char *name)
{
    const char *plain = mp_suffixes[MP_SUFFIX_WEIGHT].text;
    size_t base = mp_weight_module(name);

    if (!ends_in(name, mp_suffixes[MP_SUFFIX_WEIGHT_PACKED].text) ||
        beside(ckpt, name, base, plain))
        return mp_format("%s", name);
    return mp_format("%.*s%s", (int)base, name, plain);
}

static int compare_entries(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->key, ((const entry *)b)->key);
}

static int fill_entries(const diff_list *list, unsigned which, const layers *l, bool some,
                        bool *taken, entries *out, mp_error *err)
{
    const diff_side *side = list->side[which];
    const mp_checkpoint *ckpt = &side->catalog.checkpoint;

    for (size_t i = 0; i < ckpt->num_tensors && !list->plain; i++) {
        /* Biases and input scales of experts are compared as tensors. */
        if (list->experts && belongs_to_expert(ckpt->tensors[i].name))
            taken[i] = true;
        else
            mark_beside(side, &ckpt->tensors[i], taken);
    }
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *tensor = &ckpt->tensors[i];
        entry *e = &out->items[out->count];

        if (taken[i] || (some && !in_selected_layer(l, which, tensor->name)))
            continue;
        *e = (entry){.tensor = tensor, .optional = !list->plain && is_input_scale(tensor->name)};
        /* A file by itself is compared as it says, by its own names. */
        e->key = list->plain ? mp_format("%s", tensor->name) : key_of(ckpt, tensor->name);
        if (!e->key)
            return mp_fail_memory(err);
        out->count++;
    }
    /* Tensors are sorted by name already, keys need not be. */
    qsort(out->items, out->count, sizeof *out->items, compare_entries);
    return 0;
}

/* The tensors of a side that are no expert's, in order of names. some: of the selected layers
 * only. */
static int list_entries(const diff_list *list, unsigned which, const layers *l, bool some,
                        entries *out, mp_error *err)
{
    size_t count = list->side[which]->catalog.checkpoint.num_tensors;
    bool *taken = mp_alloc_zeroed(count, sizeof *taken);

    out->items = mp_alloc(count, sizeof *out->items);
    int rc = taken && out->items ? fill_entries(list, which, l, some, taken, out, err)
                                 : mp_fail_memory(err);
    free(taken);
    return rc;
}

static int match_entries(diff_list *list, const entries of[2], mp_error *err)
{
    size_t at[2] = {0, 0};
    int rc = 0;

    while (rc == 0 && (at[0] < of[0].count || at[1] < of[1].count)) {
        const entry *a = at[0] < of[0].count ? &of[0].items[at[0]] : NULL;
        const entry *b = at[1] < of[1].count ? &of[1].items[at[1]] : NULL;
        int order = !a ? 1 : !b ? -1 : strcmp(a->key, b->key);
        const entry *one = order < 0 ? a : b;

        if (order == 0)
            rc = add_pair(list, mp_format("%s", a->key), &(diff_ref){.tensor = a->tensor},
                          &(diff_ref){.tensor = b->tensor}, err);
        else if (!one->optional)
            rc = add_only(list, order > 0, mp_format("%s", one->tensor->name), err);
        at[0] += order <= 0;
        at[1] += order >= 0;
    }
    return rc;
}

static int add_tensors(diff_list *list, const layers *l, bool some, mp_error *err)
{
    entries of[2] = {{0}, {0}};
    int rc = list_entries(list, 0, l, some, &of[0], err);

    if (rc == 0)
        rc = list_entries(list, 1, l, some, &of[1], err);
    if (rc == 0)
        rc = match_entries(list, of, err);
    release_entries(&of[0]);
    release_entries(&of[1]);
    return rc;
}

/* ------------------------------------------------------------------------
 * Snapshots
 */

/* What two snapshots have besides experts, rank by rank: "rank 3 lm_head.weight". */
static int add_rank(diff_list *list, const layers *l, bool some, size_t rank, mp_error *err)
{
    const mp_checkpoint *const of[2] = {mp_diff_snapshot_rank(list->side[0], rank),
                                        mp_diff_snapshot_rank(list->side[1], rank)};
    size_t at[2] = {0, 0};
    int rc = 0;

    while (rc == 0 && (at[0] < of[0]->num_tensors || at[1] < of[1]->num_tensors)) {
        const mp_tensor *a = at[0] < of[0]->num_tensors ? &of[0]->tensors[at[0]] : NULL;
        const mp_tensor *b = at[1] < of[1]->num_tensors ? &of[1]->tensors[at[1]] : NULL;
        int order = !a ? 1 : !b ? -1 : strcmp(a->name, b->name);
        unsigned which = order > 0;
        const char *name = which ? b->name : a->name;

        at[0] += order <= 0;
        at[1] += order >= 0;
        if (mp_diff_snapshot_of_experts(list->side[which], name) ||
            (some && !in_selected_layer(l, which, name)))
            continue;
        char *text = mp_format("rank %zu %s", rank, name);
        rc = order == 0
                 ? add_pair(list, text, &(diff_ref){.tensor = a}, &(diff_ref){.tensor = b}, err)
                 : add_only(list, which, text, err);
    }
    return rc;
}

static int add_ranks(diff_list *list, const layers *l, bool some, mp_error *err)
{
    size_t ranks = 0;

    while (mp_diff_snapshot_rank(list->side[0], ranks) &&
           mp_diff_snapshot_rank(list->side[1], ranks))
        ranks++;
    /* Another number of ranks has other parts of tensors on each: nothing to compare by rank. */
    if (mp_diff_snapshot_rank(list->side[0], ranks) || mp_diff_snapshot_rank(list->side[1], ranks))
        return 0;
    for (size_t r = 0; r < ranks; r++)
        if (add_rank(list, l, some, r, err) != 0)
            return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

int mp_diff_list_make(diff_list *list, const mp_diff_options *options, mp_error *err)
{
    bool packed = list->side[0]->kind >= DIFF_PACK || list->side[1]->kind >= DIFF_PACK;
    bool dumped = list->side[0]->snapshot && list->side[1]->snapshot;
    layers l = {0};
    int rc = 0;

    list->experts = list->side[0]->kind != DIFF_TENSORS && list->side[1]->kind != DIFF_TENSORS;
    list->plain = !list->side[0]->whole || !list->side[1]->whole;
    if (!list->experts && options->layers)
        return mp_fail(err, MP_ERR_USAGE, "list \"%s\": without experts there are no layers",
                       options->layers);
    if (list->experts) {
        rc = read_layers(list, &l, err);
        if (rc == 0)
            rc = select_both(&l, options->layers, err);
        if (rc == 0)
            rc = add_layers(list, &l, err);
    }
    if (rc == 0 && !packed)
        rc = add_tensors(list, &l, options->layers != NULL, err);
    else if (rc == 0 && dumped)
        rc = add_ranks(list, &l, options->layers != NULL, err);
    release_layers(&l);
    return rc;
}
