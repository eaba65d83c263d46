/* SPDX-License-Identifier: Apache-2.0 */
/* Slot arithmetic: where physical and fused shared experts lie in the ranks' weight tensors.
 *
 *     rank 0           rank 1           ...       r = P / ep routed slots, then S shared ones
 *     p0 p1 .. s0 s1   pr .. s0 s1                slot of physical p: p + (p / r) * S
 *     p0 p1 ..         pr ..      ... s0 s1       where shared experts exist once, behind all
 *
 * Two counts must not be mixed up: an id in a checkpoint is shared from N on, the number of logical
 * experts, while slots are counted by P, which includes redundant copies. Sizes have been checked
 * by mp_slots_init: P divides among the ranks, and all ids fit 32 bits. Pure integer arithmetic. */
#include <moepack/place.h>

#include <stdlib.h>

#include "base/error.h"
#include "place/slots.h"

int mp_slots_init(mp_slots *s, uint32_t num_logical, uint32_t num_physical, uint32_t ep,
                  uint32_t shared, bool shared_once, mp_error *err)
{
    *s = (mp_slots){0};
    if (num_logical == 0)
        return mp_fail(err, MP_ERR_INPUT, "slots: no logical experts");
    if (num_physical < num_logical)
        return mp_fail(err, MP_ERR_INPUT, "slots: %u physical experts for %u logical ones",
                       num_physical, num_logical);
    if (ep == 0)
        return mp_fail(err, MP_ERR_INPUT, "slots: no ranks");
    if (num_physical % ep != 0)
        return mp_fail(err, MP_ERR_INPUT,
                       "slots: %u physical experts do not divide evenly among %u ranks",
                       num_physical, ep);
    uint64_t total = num_physical + (uint64_t)shared * (shared_once ? 1 : ep);
    if (total > INT32_MAX || (uint64_t)num_logical + shared > INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "slots: %llu slots do not fit 32-bit ids",
                       (unsigned long long)total);
    *s = (mp_slots){num_logical,    num_physical, ep,
                    shared,         shared_once,  num_physical / ep + (shared_once ? 0 : shared),
                    (uint32_t)total};
    return 0;
}

uint32_t mp_slots_routed_per_rank(const mp_slots *s)
{
    return s->num_physical / s->ep;
}

uint32_t mp_slots_on_rank(const mp_slots *s, uint32_t rank)
{
    bool tail = s->shared_once && rank == s->ep - 1;
    return s->per_rank + (tail ? s->shared : 0);
}

uint32_t mp_slots_rank(const mp_slots *s, uint32_t slot)
{
    uint32_t rank = slot / s->per_rank;
    /* Slots of shared experts that are there once lie behind the last rank's routed ones. */
    return rank < s->ep ? rank : s->ep - 1;
}

uint32_t mp_slots_of_physical(const mp_slots *s, uint32_t physical)
{
    if (s->shared_once)
        return physical;
    return physical + physical / mp_slots_routed_per_rank(s) * s->shared;
}

bool mp_slots_is_shared(const mp_slots *s, uint32_t checkpoint_id)
{
    return checkpoint_id >= s->num_logical && checkpoint_id - s->num_logical < s->shared;
}

uint32_t mp_slots_of_shared(const mp_slots *s, uint32_t rank, uint32_t shared)
{
    if (s->shared_once)
        return s->num_physical + shared;
    return rank * s->per_rank + mp_slots_routed_per_rank(s) + shared;
}

uint32_t mp_slots_of_checkpoint_id(const mp_slots *s, const int32_t *row, uint32_t checkpoint_id,
                                   uint32_t *slots)
{
    uint32_t count = 0;
    if (mp_slots_is_shared(s, checkpoint_id)) {
        uint32_t copies = s->shared_once ? 1 : s->ep;
        for (uint32_t rank = 0; rank < copies; rank++)
            slots[count++] = mp_slots_of_shared(s, rank, checkpoint_id - s->num_logical);
    } else if (checkpoint_id < s->num_logical) {
        for (uint32_t p = 0; p < s->num_physical; p++)
            if ((uint32_t)row[p] == checkpoint_id)
                slots[count++] = mp_slots_of_physical(s, p);
    }
    return count;
}

/* Everything about a slot but its replica number. physical: set to the physical expert of a
 * routed slot. */
static void locate(const mp_slots *s, const int32_t *row, uint32_t slot, mp_slot *out,
                   uint32_t *physical)
{
    uint32_t routed = mp_slots_routed_per_rank(s);
    uint32_t rank = mp_slots_rank(s, slot);
    uint32_t local = slot - rank * s->per_rank;
    *out = (mp_slot){.slot = slot, .rank = rank, .local = local};
    if (local < routed) {
        *physical = rank * routed + local;
        out->kind = MP_SLOT_ROUTED;
        out->checkpoint_id = (uint32_t)row[*physical];
    } else {
        out->kind = MP_SLOT_SHARED;
        out->checkpoint_id = s->num_logical + local - routed;
        out->replica = s->shared_once ? 0 : rank;
    }
}

void mp_slots_describe(const mp_slots *s, const int32_t *row, uint32_t slot, mp_slot *out)
{
    uint32_t physical = 0;
    locate(s, row, slot, out, &physical);
    if (out->kind != MP_SLOT_ROUTED)
        return;
    for (uint32_t p = 0; p < physical; p++)
        out->replica += (uint32_t)row[p] == out->checkpoint_id;
}

int mp_slots_table(const mp_slots *s, const int32_t *row, mp_slot *table, mp_error *err)
{
    uint32_t *copies = mp_alloc_zeroed(s->num_logical, sizeof(*copies));
    if (!copies)
        return mp_fail_memory(err);
    uint32_t total = s->total;
    for (uint32_t slot = 0; slot < total; slot++) {
        uint32_t physical;
        locate(s, row, slot, &table[slot], &physical);
        if (table[slot].kind == MP_SLOT_ROUTED)
            table[slot].replica = copies[table[slot].checkpoint_id]++;
    }
    free(copies);
    return 0;
}
