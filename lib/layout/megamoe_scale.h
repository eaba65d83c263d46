/* SPDX-License-Identifier: Apache-2.0 */
/* layout/megamoe_scale.h - the order of block scales that SM100's UTCCP copies.
 *
 * Canonical scale bytes [MN, K/block], one byte a block, are packed four along K to a
 * little-endian word, stored K-word-major, rows contiguous: words [K/block/4, MN]. Inside
 * each run of 128 rows, position 4c + q holds row 32q + c (q in 0..3, c in 0..31).
 *
 * Source: DeepGEMM, transform_weights_for_mega_moe; layout rules in moepack-layouts(7). */
#ifndef MP_LAYOUT_MEGAMOE_SCALE_H
#define MP_LAYOUT_MEGAMOE_SCALE_H

#include <stdint.h>

/* The matrix row whose scales stand at row position `position`. */
typedef uint64_t mp_scale_row(uint64_t position, uint64_t rows);

/* Fills out[words][rows] from canonical[rows][bytes_per_row]; words is
 * bytes_per_row / 4 rounded up, bytes past the end of a row are zero. rows is a multiple
 * of 128. interleave: canonical row that goes to weight row r; null for none. */
void mp_utccp_pack(const uint8_t *canonical, uint64_t rows, uint64_t bytes_per_row,
                   mp_scale_row *interleave, uint8_t *out);

/* The inverse. position_of: weight row that canonical row r went to; null for none. */
void mp_utccp_unpack(const uint8_t *in, uint64_t rows, uint64_t bytes_per_row,
                     mp_scale_row *position_of, uint8_t *canonical);

#endif
