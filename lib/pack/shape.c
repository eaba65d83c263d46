/* SPDX-License-Identifier: Apache-2.0 */
/* What a pack has: which tensors a layer has on a rank, and where each expert is.
 *
 * Writers of a pack make its shape from options, readers from the manifest, and both do so by
 * mp_shape_init. Every number is bounded here, so sizes computed from a shape fit 64 bits.
 *
 *     ids      0 .. N-1 routed, from N on the shared ones, as checkpoints count them
 *     sets     tensors that share slots: "experts" and, if shared experts stay separate,
 *              "shared_experts", each with its own target, dims and slots
 *     tensors  numbered through all sets: the columns of a layer's table
 *
 * A shape is a plain value; its only pointers are to static target records. Places are the one list
 * built from it, [id] -> copies in the order of ranks and slots, filled by counting. Once made,
 * both are only read, by any number of threads. */
#include "pack/shape.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "place/slots.h"

/* More than any model has. */
#define SIZE_MOST  (1u << 20)
#define RANKS_MOST 65536u

static int check_terms(const mp_shape_terms *t, mp_error *err)
{
    if (t->dims.hidden_size > SIZE_MOST || t->dims.intermediate_size > SIZE_MOST)
        return mp_fail(err, MP_ERR_INPUT, "sizes %" PRIu64 " and %" PRIu64 " are over %u",
                       t->dims.hidden_size, t->dims.intermediate_size, SIZE_MOST);
    if (t->num_experts > SIZE_MOST || t->num_physical > SIZE_MOST)
        return mp_fail(err, MP_ERR_INPUT, "%" PRIu64 " experts, %" PRIu64 " physical, are over %u",
                       t->num_experts, t->num_physical, SIZE_MOST);
    if (t->ep_size > RANKS_MOST)
        return mp_fail(err, MP_ERR_INPUT, "ep_size %" PRIu64 " is over %u", t->ep_size, RANKS_MOST);
    if (t->shared == MP_SHARED_NONE)
        return 0;
    if (t->num_shared == 0)
        return mp_fail(err, MP_ERR_INPUT, "shared experts are %s, but the model has none",
                       mp_shared_mode_name(t->shared));
    /* Together they may become one expert, whose width is bounded like any other. */
    if (t->num_shared > SIZE_MOST / (t->dims.intermediate_size + 1))
        return mp_fail(err, MP_ERR_INPUT,
                       "%" PRIu64 " shared experts of size %" PRIu64 " are wider than %u",
                       t->num_shared, t->dims.intermediate_size, SIZE_MOST);
    return 0;
}

static int add_set(mp_shape *shape, const mp_target *target, const char *block, mp_dims dims,
                   uint32_t slots, mp_problems *warnings, mp_error *err)
{
    mp_slot_set *set = &shape->sets[shape->num_sets];
    mp_problems unheard = {0};
    int rc = target->check(&dims, warnings ? warnings : &unheard, err);

    mp_problems_release(&unheard);
    if (rc != 0)
        return rc;
    *set = (mp_slot_set){
        .target = target,
        .dims = dims,
        .block = block,
        .slots = slots,
        .first = shape->num_tensors,
    };
    set->num_tensors = target->describe(&dims, set->tensors);
    shape->num_tensors += set->num_tensors;
    shape->num_sets++;
    return 0;
}

int mp_shape_init(mp_shape *shape, const mp_shape_terms *terms, mp_problems *warnings,
                  mp_error *err)
{
    const mp_target *apart = terms->target->separate;
    uint32_t shared = terms->shared == MP_SHARED_NONE ? 0 : (uint32_t)terms->num_shared;
    mp_dims dims = terms->dims;

    err = MP_NEVER_NULL(err);
    *shape = (mp_shape){.shared = terms->shared};
    if (check_terms(terms, err) != 0 ||
        mp_slots_init(&shape->slots, (uint32_t)terms->num_experts, (uint32_t)terms->num_physical,
                      (uint32_t)terms->ep_size, terms->shared == MP_SHARED_FUSED ? shared : 0,
                      false, err) != 0 ||
        add_set(shape, terms->target, "experts", dims, shape->slots.per_rank, warnings, err) != 0)
        return err->code;
    if (terms->shared == MP_SHARED_SEPARATE) {
        if (apart->single) { /* all of them as one expert that is as wide */
            dims.intermediate_size *= shared;
            shared = 1;
        }
        if (add_set(shape, apart, "shared_experts", dims, shared, warnings, err) != 0)
            return err->code;
    }
    shape->num_ids = shape->slots.num_logical + shared;
    return 0;
}

/* ------------------------------------------------------------------------
 * Of a manifest
 */

int mp_manifest_target(const mp_manifest *m, const mp_target **target, mp_error *err)
{
    *target = mp_target_find(m->target);
    if (*target && m->nz)
        *target = (*target)->nz;
    if (*target && m->alphas == MP_ALPHAS_FP4XFP4)
        *target = (*target)->fp4xfp4;
    if (*target && (*target)->version == m->target_version)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: this version does not know target %s/%" PRIu64 "%s", MP_MANIFEST_NAME,
                   m->target, m->target_version,
                   m->nz                            ? " in FRACTAL_NZ form"
                   : m->alphas == MP_ALPHAS_FP4XFP4 ? " with alphas of fp4xfp4"
                                                    : "");
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A layer that is named twice would have tensors of the same name. */
static int check_layers(const mp_manifest *m, mp_error *err)
{
    char **sorted = mp_alloc(m->num_layers, sizeof *sorted);
    int rc = 0;

    if (!sorted)
        return mp_fail_memory(err);
    memcpy(sorted, m->layers, m->num_layers * sizeof *sorted);
    qsort(sorted, m->num_layers, sizeof *sorted, compare_names);
    for (size_t i = 1; i < m->num_layers && rc == 0; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0)
            rc = mp_fail(err, MP_ERR_INPUT, "layer %s is listed twice", sorted[i]);
    free(sorted);
    return rc;
}

/* What a manifest says beside its shape. */
static int check_manifest(const mp_manifest *m, const mp_target *target, mp_error *err)
{
    if (m->num_layers == 0 || m->num_layers > m->model_layers)
        return mp_fail(err, MP_ERR_INPUT, "%zu layer%s, the model has %" PRIu64 " MoE layer%s",
                       m->num_layers, mp_plural(m->num_layers), m->model_layers,
                       mp_plural(m->model_layers));
    if (m->num_ranks == 0)
        return mp_fail(err, MP_ERR_INPUT, "no rank");
    if (m->target_scheme != target->scheme)
        return mp_fail(err, MP_ERR_INPUT, "quantized to %s, but %s takes %s",
                       mp_scheme_name(m->target_scheme), m->target, mp_scheme_name(target->scheme));
    if (m->shared != MP_SHARED_NONE && m->num_shared_experts > 0 && !m->shared_form)
        return mp_fail(err, MP_ERR_INPUT, "shared experts are %s, but shared_forms is missing",
                       mp_shared_mode_name(m->shared));
    return check_layers(m, err);
}

int mp_manifest_shape(const mp_manifest *m, mp_shape *shape, mp_error *err)
{
    mp_shape_terms terms = {
        .dims = {m->hidden_size, m->moe_intermediate_size},
        .num_experts = m->num_experts,
        .num_physical = m->num_physical,
        .ep_size = m->ep_size,
        .shared = m->shared,
        .num_shared = m->num_shared_experts,
    };

    err = MP_NEVER_NULL(err);
    if (mp_manifest_target(m, &terms.target, err) != 0)
        return err->code;
    if (mp_shape_init(shape, &terms, NULL, err) != 0 || check_manifest(m, terms.target, err) != 0)
        return mp_error_prefix(err, "%s", MP_MANIFEST_NAME);
    return 0;
}

/* ------------------------------------------------------------------------
 * Sets
 */

const mp_slot_set *mp_shape_set(const mp_shape *shape, uint32_t id)
{
    bool apart = shape->shared == MP_SHARED_SEPARATE && id >= shape->slots.num_logical;

    return &shape->sets[apart ? MP_SET_SHARED : MP_SET_SLOTS];
}

const mp_slot_tensor *mp_set_tensor(const mp_slot_set *set, mp_side side, mp_role role)
{
    for (unsigned t = 0; t < set->num_tensors; t++)
        if (set->tensors[t].side == side && set->tensors[t].role == role)
            return &set->tensors[t];
    return NULL;
}

unsigned mp_set_number(const mp_slot_set *set, const mp_slot_tensor *tensor)
{
    return set->first + (unsigned)(tensor - set->tensors);
}

/* ------------------------------------------------------------------------
 * Places
 */

/* Calls count or fill: every place of a layer with its id, in order of ranks and slots. */
static void each_place(const mp_shape *shape, const int32_t *row, const bool *ranks, uint32_t *next,
                       mp_place *places)
{
    const mp_slots *s = &shape->slots;
    uint32_t routed = mp_slots_routed_per_rank(s);
    uint32_t base = shape->shared == MP_SHARED_FUSED ? routed : 0; /* of the shared ones */

    for (uint32_t rank = 0; rank < s->ep; rank++) {
        if (ranks && !ranks[rank])
            continue;
        for (uint32_t slot = 0; slot < routed; slot++) {
            uint32_t at = next[row[rank * routed + slot]]++;

            if (places)
                places[at] = (mp_place){rank, slot};
        }
        for (uint32_t id = s->num_logical; id < shape->num_ids; id++) {
            uint32_t at = next[id]++;

            if (places)
                places[at] = (mp_place){rank, base + id - s->num_logical};
        }
    }
}

int mp_places_init(mp_places *p, const mp_shape *shape, const int32_t *row, const bool *ranks,
                   mp_error *err)
{
    uint32_t ids = shape->num_ids, *next = mp_alloc_zeroed((uint64_t)ids + 1, sizeof *next);

    *p = (mp_places){.num_ids = ids, .first = mp_alloc((uint64_t)ids + 1, sizeof *p->first)};
    if (!next || !p->first) {
        free(next);
        return mp_fail_memory(err);
    }
    /* Walk twice: first to count copies, then to store them where the counts say. */
    each_place(shape, row, ranks, next, NULL);
    p->first[0] = 0;
    for (uint32_t id = 0; id < ids; id++)
        p->first[id + 1] = p->first[id] + next[id];
    p->places = mp_alloc(p->first[ids], sizeof *p->places);
    if (p->places) {
        memcpy(next, p->first, ids * sizeof *next);
        each_place(shape, row, ranks, next, p->places);
    }
    free(next);
    return p->places ? 0 : mp_fail_memory(err);
}

void mp_places_release(mp_places *p)
{
    free(p->first);
    free(p->places);
    *p = (mp_places){0};
}

const mp_place *mp_places_of(const mp_places *p, uint32_t id, uint32_t *count)
{
    *count = p->first[id + 1] - p->first[id];
    return p->places + p->first[id];
}
