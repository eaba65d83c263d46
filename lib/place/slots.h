/* SPDX-License-Identifier: Apache-2.0 */
/* place/slots.h - arithmetic of slots. */
#ifndef MP_PLACE_SLOTS_H
#define MP_PLACE_SLOTS_H

#include <moepack/place.h>

/* Routed slots of a rank, P / ep. */
uint32_t mp_slots_routed_per_rank(const mp_slots *s);

/* Slots of this rank, the shared ones at the end of the last rank counted. */
uint32_t mp_slots_on_rank(const mp_slots *s, uint32_t rank);

/* The rank that holds a slot < s->total. */
uint32_t mp_slots_rank(const mp_slots *s, uint32_t slot);

/* The slot of a physical expert; physical < num_physical. */
uint32_t mp_slots_of_physical(const mp_slots *s, uint32_t physical);

/* True when the checkpoint id is one of the shared experts. */
bool mp_slots_is_shared(const mp_slots *s, uint32_t checkpoint_id);

/* Slots that a checkpoint id goes to, ascending.
 * row: the layer's num_physical logical ids.
 * slots: room for num_physical numbers.
 * Returns how many; 0 for an id that is not below num_logical + shared. */
uint32_t mp_slots_of_checkpoint_id(const mp_slots *s, const int32_t *row, uint32_t checkpoint_id,
                                   uint32_t *slots);

/* Describes one slot; slot < s->total. Looks at the row up to that slot. */
void mp_slots_describe(const mp_slots *s, const int32_t *row, uint32_t slot, mp_slot *out);

/* Slot of fused shared expert s < shared on a rank; with shared_once its only one. */
uint32_t mp_slots_of_shared(const mp_slots *s, uint32_t rank, uint32_t shared);

#endif
