/* SPDX-License-Identifier: Apache-2.0 */
/* layout/megamoe.h - what the targets of DeepGEMM's MegaMoE kernels share. */
#ifndef MP_LAYOUT_MEGAMOE_H
#define MP_LAYOUT_MEGAMOE_H

#include "layout/targets.h"

/* L1 rows interleaved in eights, L2 unchanged, in any scheme. */
void mp_megamoe_pack_8(const mp_dims *dims, mp_side side, const mp_tile *tile,
                       const uint8_t *const in[2], uint8_t *out);
void mp_megamoe_unpack_8(const mp_dims *dims, mp_side side, const mp_tile *tile, const uint8_t *in,
                         uint8_t *const out[2]);

/* Tiles of these: `group` rows of gate and of up, or of L2 `l2_group`. */
mp_tiling mp_megamoe_tiling(mp_side side, uint64_t group, uint64_t l2_group);

#endif
