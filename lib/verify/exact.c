/* SPDX-License-Identifier: Apache-2.0 */
/* All slots of a rank against the source: which expert belongs where, and who is looked at. The
 * work is numbered like this, sides fastest, so that a thread that goes on reads on in the same
 * layer:
 *
 *   index = (layer of the selected ones * slots of all sets + slot) * MP_SIDES + side
 *
 * What an expert's tensors have to be is made anew from the source, tile by tile, by the conversion
 * that repack uses, and compared with what the target's own inverse gives of the slot (side.c).
 * Nothing of the code that wrote the slot has a part in it. A tensor that is missing or of another
 * shape is a fault of structure already; the rest of its side is compared without it.
 *
 * Sides run on all threads, each in scratch of its own, as large as the largest side of any layer:
 * routed experts of a layer are stored alike, so one of them stands for all. The rank's files, the
 * source and the shape are only read, and optional tensors are settled before the threads begin. */
#include "verify/exact.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "checkpoint/tensor.h"
#include "place/slots.h"
#include "verify/sample.h"

/* ------------------------------------------------------------------------
 * Which experts
 */

uint32_t mp_exact_id(const mp_check *check, const mp_slot_set *set, size_t layer, uint32_t rank,
                     uint32_t slot)
{
    mp_slot described;

    /* Sets beyond the first hold shared experts, which are numbered behind the routed ones and are
     * the same on every rank. */
    if (set != &check->shape.sets[MP_SET_SLOTS])
        return check->shape.slots.num_logical + slot;
    mp_slots_describe(&check->shape.slots, mp_placement_row(&check->placement, (uint32_t)layer),
                      rank * set->slots + slot, &described);
    return described.checkpoint_id;
}

bool mp_exact_looks_at(const mp_exact *exact, const mp_check *check, size_t layer, uint32_t id)
{
    uint32_t experts = check->shape.slots.num_logical;

    /* Shared experts are always looked at: there are too few of them to leave any out. */
    return !exact->sample || id >= experts || exact->sample[layer * experts + id];
}

/* ------------------------------------------------------------------------
 * Preparing
 */

/* Raises the scratch to what a side of an expert takes. */
static int measure_side(mp_exact *exact, mp_check *check, const mp_slot_set *set, size_t layer,
                        uint32_t id, mp_side side, mp_error *err)
{
    mp_slot_side s;

    int rc = mp_slot_side_init(&s, exact, check, set, layer, id, side, err);
    if (rc != 0)
        return rc;
    uint64_t bytes = mp_slot_side_lay_out(&s, NULL);
    if (bytes > exact->scratch_bytes)
        exact->scratch_bytes = bytes;
    return 0;
}

/* Routed experts of a layer are alike, and so are shared ones. */
static int measure_scratch(mp_exact *exact, mp_check *check, mp_error *err)
{
    uint32_t experts = check->shape.slots.num_logical;
    int rc = 0;

    for (size_t layer = 0; layer < check->manifest.num_layers; layer++) {
        for (int side = 0; side < MP_SIDES && rc == 0; side++) {
            const mp_slot_set *sets = check->shape.sets;

            /* The last set is that of shared experts, or the slots again where these are fused. */
            rc = measure_side(exact, check, &sets[MP_SET_SLOTS], layer, 0, (mp_side)side, err);
            if (rc == 0 && check->manifest.shared != MP_SHARED_NONE)
                rc = measure_side(exact, check, &sets[check->shape.num_sets - 1], layer, experts,
                                  (mp_side)side, err);
        }
    }
    return rc;
}

int mp_exact_open(mp_exact *exact, mp_check *check, bool *usable, mp_error *err)
{
    int rc = mp_source_open(&exact->source, check, usable, err);
    if (rc != 0 || !*usable)
        return rc;
    rc = mp_sample_draw(check->options, check->manifest.num_layers, check->shape.slots.num_logical,
                        &exact->sample, err);
    return rc ? rc : measure_scratch(exact, check, err);
}

void mp_exact_release(mp_exact *exact)
{
    free(exact->sample);
    mp_source_release(&exact->source);
}

/* ------------------------------------------------------------------------
 * Optional tensors
 */

/* How many experts of a set have what an optional tensor holds, of how many. */
static int count_vectors(const mp_exact *exact, const mp_check *check, const mp_slot_set *set,
                         size_t layer, const mp_slot_tensor *tensor, uint32_t *have, uint32_t *all,
                         mp_error *err)
{
    uint32_t experts = check->shape.slots.num_logical;
    bool routed = set == &check->shape.sets[MP_SET_SLOTS];
    uint32_t first = routed ? 0 : experts;
    uint32_t end = routed ? experts + check->shape.slots.shared : experts + set->slots;

    *have = 0;
    *all = end - first;
    for (uint32_t id = first; id < end; id++) {
        mp_side_source from;
        mp_expert view;

        /* Such a vector belongs to the source's codes: a side that is requantized has none. */
        int rc = mp_source_side(&exact->source, set, layer, id, tensor->side, &view, &from, err);
        if (rc != 0)
            return rc;
        *have += mp_passes_through(from.storage, set->target) &&
                 mp_has_vector(from.storage, &view, tensor);
    }
    return 0;
}

/* A fault of an optional tensor of a rank. */
static int report_optional(mp_check *check, const mp_rank *rank, size_t layer, unsigned t,
                           const char *detail, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, rank->packed->rank);
    char *name = mp_packed_tensor_name(check, layer, t);

    if (!name)
        return mp_fail_memory(err);
    spot.layer = (int64_t)layer;
    spot.tensor = name;
    mp_fault_add(&check->faults, &spot, "%s", detail);
    free(name);
    return 0;
}

/* An optional tensor is there where the source has what it holds. */
static int check_optional(const mp_exact *exact, mp_check *check, const mp_rank *rank, size_t layer,
                          unsigned t, mp_error *err)
{
    bool wanted = rank->held[layer * check->shape.num_tensors + t].wanted;
    const mp_slot_tensor *tensor = mp_check_tensor(check, t);
    uint32_t have, all;

    int rc = count_vectors(exact, check, mp_check_set(check, t), layer, tensor, &have, &all, err);
    if (rc != 0)
        return rc;
    /* A target takes the tensor of a layer whole or not at all: one expert without it leaves no
     * value to put into its slot. */
    if (wanted && have != all)
        return report_optional(check, rank, layer, t,
                               have ? "there, but some experts of the source have no such tensor"
                                    : "there, but the source has no such tensors",
                               err);
    /* repack may have been told to drop it, which the manifest says. */
    if (!wanted && have == all &&
        !(check->manifest.dropped & MP_ROLE_BIT(mp_role_source(tensor->role))))
        return report_optional(check, rank, layer, t, "missing, but the source has such tensors",
                               err);
    return 0;
}

static int check_optionals(const mp_exact *exact, mp_check *check, const mp_rank *rank,
                           size_t layer, mp_error *err)
{
    int rc = 0;

    for (unsigned t = 0; t < check->shape.num_tensors && rc == 0; t++)
        if (mp_check_tensor(check, t)->optional)
            rc = check_optional(exact, check, rank, layer, t, err);
    return rc;
}

/* ------------------------------------------------------------------------
 * All slots
 */

typedef struct exact_job {
    const mp_exact *exact;
    mp_check *check;
    const mp_rank *rank;
    size_t *layers;       /* those that are selected */
    uint32_t layer_slots; /* of all sets */
} exact_job;

/* The tensor of a layer where it can be read as the target wants it, or null. */
static const mp_held *usable_tensor(const exact_job *job, size_t layer, const mp_slot_set *set,
                                    const mp_slot_tensor *tensor)
{
    if (!tensor)
        return NULL;
    const mp_held *held = &job->rank->held[layer * job->check->shape.num_tensors + set->first +
                                           (size_t)(tensor - set->tensors)];
    return held->fits ? held : NULL;
}

/* Drops what was read from the page cache, and counts it as done. */
static void finish_side(const mp_slot_side *s)
{
    for (int role = 0; role < MP_ROLES; role++) {
        const mp_held *held = s->held[role];

        if (!held)
            continue;
        uint64_t slot_bytes = s->tensor[role]->slot_bytes;
        /* Every byte is read once, here: leave the page cache to others. */
        mp_tensor_forget(held->file, held->tensor, s->slot * slot_bytes, slot_bytes);
        mp_check_advance(s->check, slot_bytes);
    }
    for (unsigned part = 0; part < mp_side_parts(s->side); part++)
        mp_matrix_forget(s->from.catalog, &s->from.matrix[part]);
}

/* One side of a slot of a layer; index counts sides, then slots of all sets, then layers. */
static int check_side(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const exact_job *job = user;
    mp_check *check = job->check;
    uint32_t slot = (uint32_t)(index / MP_SIDES % job->layer_slots);
    size_t layer = job->layers[index / MP_SIDES / job->layer_slots];
    const mp_slot_set *set = check->shape.sets;
    bool any = false;
    mp_slot_side s;

    /* layer_slots is the sum over all sets, so this ends within them. */
    for (; slot >= set->slots; set++)
        slot -= set->slots;
    uint32_t id = mp_exact_id(check, set, layer, job->rank->packed->rank, slot);
    if (!mp_exact_looks_at(job->exact, check, layer, id))
        return 0;
    int rc =
        mp_slot_side_init(&s, job->exact, check, set, layer, id, (mp_side)(index % MP_SIDES), err);
    if (rc != 0)
        return rc;
    s.rank = job->rank;
    s.slot = slot;
    for (int role = 0; role < MP_ROLES; role++) {
        s.held[role] = usable_tensor(job, layer, set, s.tensor[role]);
        any |= s.held[role] != NULL;
    }
    if (!any)
        return 0;
    mp_slot_side_lay_out(&s, scratch);
    rc = mp_slot_side_compare(&s, err);
    if (rc == 0)
        finish_side(&s);
    return rc;
}

/* True if all tensors that a set has to have in a layer are there. */
static bool is_whole(const exact_job *job, size_t layer, const mp_slot_set *set)
{
    const mp_held *held = &job->rank->held[layer * job->check->shape.num_tensors + set->first];

    for (unsigned t = 0; t < set->num_tensors; t++)
        if ((held[t].wanted || !set->tensors[t].optional) && !held[t].fits)
            return false;
    return true;
}

/* Slots of a layer that can be checked and are looked at. */
static uint32_t slots_checked(const exact_job *job, size_t layer)
{
    const mp_check *check = job->check;
    uint32_t rank = job->rank->packed->rank, count = 0;

    for (unsigned i = 0; i < check->shape.num_sets; i++) {
        const mp_slot_set *set = &check->shape.sets[i];

        if (!is_whole(job, layer, set))
            continue;
        for (uint32_t slot = 0; slot < set->slots; slot++)
            count += mp_exact_looks_at(job->exact, check, layer,
                                       mp_exact_id(check, set, layer, rank, slot));
    }
    return count;
}

int mp_check_exact(const mp_exact *exact, mp_check *check, const mp_rank *rank, mp_error *err)
{
    exact_job job = {exact, check, rank, mp_alloc(check->num_layers, sizeof *job.layers), 0};
    size_t count = 0;
    int rc = 0;

    if (!job.layers)
        return mp_fail_memory(err);
    for (unsigned i = 0; i < check->shape.num_sets; i++)
        job.layer_slots += check->shape.sets[i].slots;
    mp_faults_add_part(&check->faults, rank->packed->rank, MP_VERIFY_EXACT);
    for (size_t i = 0; i < check->manifest.num_layers && rc == 0; i++) {
        if (!check->layers[i])
            continue;
        job.layers[count++] = i;
        check->report->slots += slots_checked(&job, i);
        rc = check_optionals(exact, check, rank, i, err);
    }
    if (rc == 0)
        rc = mp_parallel(check->context, (uint64_t)count * job.layer_slots * MP_SIDES,
                         exact->scratch_bytes, check_side, &job, err);
    free(job.layers);
    return rc;
}
