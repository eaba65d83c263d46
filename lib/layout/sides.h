/* SPDX-License-Identifier: Apache-2.0 */
/* layout/sides.h - sizes of a side in its canonical form. */
#ifndef MP_LAYOUT_SIDES_H
#define MP_LAYOUT_SIDES_H

#include <moepack/layout.h>

/* Canonical sizes of a side: rows of each part (I or H) and columns (H or I). */
uint64_t mp_side_rows(const mp_dims *dims, mp_side side);
uint64_t mp_side_cols(const mp_dims *dims, mp_side side);

/* Canonical scales of one part of a side: rows, and bytes of a row; 0 without scales. */
uint64_t mp_target_scale_rows(const mp_target *target, const mp_dims *dims, mp_side side);
uint64_t mp_target_scale_row_bytes(const mp_target *target, const mp_dims *dims, mp_side side);

#endif
