/* SPDX-License-Identifier: Apache-2.0 */
/* write/plan.h - what the parts of lib/pack know of a plan beyond the public value. */
#ifndef MP_WRITE_PLAN_H
#define MP_WRITE_PLAN_H

#include <moepack/pack.h>

#include "experts/canonical.h"
#include "pack/shape.h"

/* Wanted size of a tile: of rows, in cache, and worth a system call; of columns, or of rows that
 * are columns of a transposed tensor, wide enough that the piece of every row is worth one. */
#define MP_UNIT_ROWS_BYTES       (256u << 10)
#define MP_UNIT_COLS_BYTES       (4u << 20)
#define MP_UNIT_TRANSPOSED_BYTES (32u << 20)

/* A unit of work: one side of one expert of one layer, for all of its copies. */
typedef struct mp_unit {
    const mp_plan_layer *layer;
    uint32_t layer_index;
    uint32_t id; /* as the shape counts */
    bool is_shared;
    const mp_expert *matrices;
    const mp_slot_set *set; /* whose tensors it fills */
    mp_side side;
} mp_unit;

/* The unit of that index, index < plan->work.num_units. */
mp_unit mp_plan_unit(const mp_plan *plan, uint64_t index);

/* Where the unit's matrices come from. */
mp_side_source mp_unit_source(const mp_plan *plan, const mp_unit *unit);

/* True where the unit cannot requantize, whatever it reads. */
bool mp_unit_is_lossless(const mp_plan *plan, const mp_unit *unit);

/* Bytes that a unit writes. */
uint64_t mp_unit_bytes_written(const mp_plan *plan, const mp_unit *unit);

/* The output for a tensor of a layer on a rank; null where it is not written. */
const mp_out_tensor *mp_plan_output(const mp_plan *plan, uint32_t layer, uint32_t rank,
                                    const mp_slot_set *set, const mp_slot_tensor *tensor);

/* Whether weights of a target are codes of 4 bits. */
bool mp_holds_codes(const mp_target *target);

/* Fills plan->work's outputs and files once everything else is settled. */
int mp_plan_files(mp_plan *plan, mp_error *err);

#endif
