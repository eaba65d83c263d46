/* SPDX-License-Identifier: Apache-2.0 */
/* pack/plan.h - what the parts of lib/pack know of a plan beyond the public value. */
#ifndef MP_PACK_PLAN_H
#define MP_PACK_PLAN_H

#include <moepack/pack.h>

/* A unit of work: one side of one expert of one layer. */
typedef struct mp_unit {
    const mp_plan_layer *layer;
    uint32_t layer_index;
    uint32_t expert;
    mp_side side;
} mp_unit;

/* The unit of that index, index < plan->num_units. */
mp_unit mp_plan_unit(const mp_plan *plan, uint64_t index);

/* Copies that the unit's expert has on the ranks that are written. */
const mp_copy *mp_unit_copies(const mp_unit *unit, uint32_t *count);

/* The output tensor `tensor` (index into plan->tensors) of a layer on a rank. */
const mp_out_tensor *mp_plan_output(const mp_plan *plan, uint32_t layer, uint32_t rank,
                                    unsigned tensor);

/* Index into plan->tensors of a side's weight or scale tensor, or num_tensors. */
unsigned mp_plan_tensor(const mp_plan *plan, mp_side side, mp_role role);

/* Bytes that a unit reads and writes. */
uint64_t mp_unit_bytes_read(const mp_plan *plan, const mp_unit *unit);
uint64_t mp_unit_bytes_written(const mp_plan *plan, const mp_unit *unit);

/* Fills plan->outputs and plan->files once everything else is settled. */
int mp_plan_files(mp_plan *plan, mp_error *err);

#endif
