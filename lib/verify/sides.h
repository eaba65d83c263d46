/* SPDX-License-Identifier: Apache-2.0 */
/* verify/sides.h - whether a side of an expert is the one that should be there and, where it is
 * not, what it is instead, in the words of whoever wrote it: gate and up are swapped, expert 17 is
 * expert 18, not interleaved, scales are all zero. */
#ifndef MP_VERIFY_SIDES_H
#define MP_VERIFY_SIDES_H

#include "experts/dumped.h"
#include "verify/faults.h"
#include "verify/weights.h"

/* What a rank has of a matrix of the source. */
typedef struct mp_cut {
    uint64_t row0, rows; /* of gate and up; of down they are columns */
    bool whole;          /* all; the rest is not read */
} mp_cut;

/* A side of an expert under check. */
typedef struct mp_side_check {
    mp_faults *faults;
    mp_spot spot;        /* level, rank, layer and slot of its faults */
    mp_weights have[2];  /* gate and up, or down; in the order PLAIN */
    bool together;       /* gate and up are one tensor: other orders are looked for */
    mp_half_order order; /* that it should have */
    const mp_catalog *source;
    const mp_moe_layer *layer; /* of the source */
    uint32_t id;               /* that should be there; num_experts: the shared expert */
    mp_side side;
    mp_cut cut;
    bool exact;       /* what is stored alike has to be the same bit by bit */
    double tolerance; /* relative RMS error otherwise; 0: the bound of the scheme */
} mp_side_check;

/* Makes a fault of what does not hold. *holds: nothing was. MP_ERR_IO, MP_ERR_UNSUPPORTED. */
int mp_side_judge(const mp_side_check *s, bool *holds, mp_error *err);

/* The order in which the side's rows are those of its expert, or MP_ORDERS. */
int mp_side_find_order(const mp_side_check *s, mp_half_order *order, mp_error *err);

#endif
