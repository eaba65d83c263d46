/* SPDX-License-Identifier: Apache-2.0 */
/* layout/fuseep.h - what the plain and the FRACTAL_NZ form of the FuseEP targets share. */
#ifndef MP_LAYOUT_FUSEEP_H
#define MP_LAYOUT_FUSEEP_H

#include "layout/targets.h"

/* Tensors of a mode (1 or 2) whose weights have this rank and these shapes. */
unsigned mp_fuseep_describe(const mp_dims *dims, int mode, uint32_t rank, const uint64_t *w13_shape,
                            const uint64_t *w2_shape, mp_slot_tensor tensors[MP_TARGET_TENSORS]);

int mp_fuseep_1_check(const mp_dims *dims, mp_problems *warnings, mp_error *err);
int mp_fuseep_2_check(const mp_dims *dims, mp_problems *warnings, mp_error *err);

/* Mode 1: float32; those of L1 in chunks of 64, as the weights. */
void mp_fuseep_1_pack_scale(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                            uint8_t *out);
void mp_fuseep_1_unpack_scale(const mp_dims *dims, mp_side side, const uint8_t *in,
                              uint8_t *canonical);

/* Mode 2: the bits of float32 as int32, sign-extended to int64. What is not sign-extended
 * unpacks to a NaN. */
void mp_fuseep_2_pack_scale(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                            uint8_t *out);
void mp_fuseep_2_unpack_scale(const mp_dims *dims, mp_side side, const uint8_t *in,
                              uint8_t *canonical);

#define MP_FUSEEP_1_ENGINE "Ascend fused_deep_moe, fuse mode 1"
#define MP_FUSEEP_2_ENGINE "Ascend dispatch_ffn_combine, fuse mode 2"

#define MP_FUSEEP_1_CONSTRAINTS \
    "the kernel takes INT8 only; expert intermediate size a multiple of 64"
#define MP_FUSEEP_2_CONSTRAINTS "the kernel takes INT8 only"

#endif
