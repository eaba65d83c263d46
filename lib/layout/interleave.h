/* SPDX-License-Identifier: Apache-2.0 */
/* layout/interleave.h - the orders in which kernels want gate and up rows.
 *
 * Runs of gate rows and of up rows take turns, so that what the activation combines is
 * near. The rows of a run are `step` rows apart in their part: step runs of either part
 * make a group, which holds run * step neighbouring rows of either.
 *
 * Source: the weight transforms of DeepGEMM (MegaMoE) and of the Ascend kernels' tests;
 * moepack-layouts(7). */
#ifndef MP_LAYOUT_INTERLEAVE_H
#define MP_LAYOUT_INTERLEAVE_H

#include <stdint.h>

typedef struct mp_interleave {
    uint64_t run, step;
} mp_interleave;

extern const mp_interleave mp_interleave_8;        /* 8 gate rows, 8 up rows, ... */
extern const mp_interleave mp_interleave_even_odd; /* of 16 rows: 8 even ones, 8 odd ones */
extern const mp_interleave mp_interleave_64;       /* 64 gate rows, 64 up rows, ... */

/* Rows that a group has of either part. */
static inline uint64_t mp_interleave_group(const mp_interleave *order)
{
    return order->run * order->step;
}

/* A row of gate (part 0) or of up (part 1). */
typedef struct mp_part_row {
    unsigned part;
    uint64_t row;
} mp_part_row;

/* What stands in interleaved row r. */
mp_part_row mp_interleave_source(const mp_interleave *order, uint64_t r);

/* The interleaved row that a row of a part goes to. */
uint64_t mp_interleave_place(const mp_interleave *order, unsigned part, uint64_t row);

/* out: [2 * rows, row_bytes] from rows of gate and up, in[0] and in[1]: [rows, row_bytes];
 * rows is a multiple of the group. */
void mp_interleave_rows(const mp_interleave *order, const uint8_t *const in[2], uint64_t rows,
                        uint64_t row_bytes, uint8_t *out);

/* The inverse. */
void mp_separate_rows(const mp_interleave *order, const uint8_t *in, uint64_t rows,
                      uint64_t row_bytes, uint8_t *const out[2]);

#endif
