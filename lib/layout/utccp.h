/* SPDX-License-Identifier: Apache-2.0 */
/* layout/utccp.h - the order of block scales that SM100's UTCCP copies.
 *
 * Scale bytes [MN, K/block], one byte a block, are packed four along K to a little-endian
 * word and stored word-major, rows contiguous: words [K/block/4, MN]. Inside each run of
 * 128 rows, position 4c + q holds row 32q + c (q in 0..3, c in 0..31). MN is a multiple of
 * 128 and K/block of 4, which the kernels' demands on sizes make sure of.
 *
 * For L1 these rows are those of gate and up in the order of the weights; canonical scales
 * are all gate rows, then all up rows.
 *
 * Source: DeepGEMM, transform_weights_for_mega_moe; layout rules in moepack-layouts(7). */
#ifndef MP_LAYOUT_UTCCP_H
#define MP_LAYOUT_UTCCP_H

#include "layout/interleave.h"

/* The canonical row, of `rows`, whose scales stand at row position `position`.
 * order: of gate and up; null for a side of one part. */
uint64_t mp_utccp_source(const mp_interleave *order, uint64_t rows, uint64_t position);

/* The row position that the scales of canonical row `row` go to. */
uint64_t mp_utccp_place(const mp_interleave *order, uint64_t rows, uint64_t row);

/* Fills out[row_bytes / 4][rows] with words from canonical[rows][row_bytes]. */
void mp_utccp_pack(const mp_interleave *order, const uint8_t *canonical, uint64_t rows,
                   uint64_t row_bytes, uint8_t *out);

/* The inverse. */
void mp_utccp_unpack(const mp_interleave *order, const uint8_t *in, uint64_t rows,
                     uint64_t row_bytes, uint8_t *canonical);

#endif
