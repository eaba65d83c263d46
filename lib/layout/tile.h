/* SPDX-License-Identifier: Apache-2.0 */
/* layout/tile.h - sides of experts, cut into pieces that fit a thread's memory. */
#ifndef MP_LAYOUT_TILE_H
#define MP_LAYOUT_TILE_H

#include <moepack/layout.h>

/* Cuts a side into tiles whose rectangles hold about `bytes` bytes, at least one group:
 * how many there are, and number `index` of them, in the order of their extents. */
uint64_t mp_tile_count(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t bytes);
mp_tile mp_tile_at(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t bytes,
                   uint64_t index);

#endif
