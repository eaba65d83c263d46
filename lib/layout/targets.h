/* SPDX-License-Identifier: Apache-2.0 */
/* layout/targets.h - the targets, and what their records are made of. */
#ifndef MP_LAYOUT_TARGETS_H
#define MP_LAYOUT_TARGETS_H

#include <moepack/layout.h>

/* Columns that tiles of columns are made of: no source has a scale of more, or a part of it. */
#define MP_COLS_GROUP 128

extern const mp_target mp_target_megamoe_w4a8;
extern const mp_target mp_target_megamoe_w4a4;
extern const mp_target mp_target_megamoe_w4a4_g8;
extern const mp_target mp_target_megamoe_nvfp4;
extern const mp_target mp_target_megamoe_bf16;
extern const mp_target mp_target_megamoe_sm90_fp8;
extern const mp_target mp_target_fuseep_1;
extern const mp_target mp_target_fuseep_2;
extern const mp_target mp_target_deepep_bf16;

/* Forms of a target that are in no table. */
extern const mp_target mp_target_megamoe_shared_fp8;
extern const mp_target mp_target_megamoe_nvfp4_folded;
extern const mp_target mp_target_fuseep_1_nz;
extern const mp_target mp_target_fuseep_2_nz;

/* A tensor with slot_bytes filled in; shape: [rank]. */
mp_slot_tensor mp_slot_tensor_of(const char *name, mp_side side, mp_role role, mp_dtype dtype,
                                 uint32_t rank, const uint64_t *shape);

/* What a kernel and an engine that calls it demand of H and I. */
typedef struct mp_size_rule {
    const char *target;
    uint64_t hidden_of, intermediate_of; /* multiples that the kernel takes */
    uint64_t sglang_of;                  /* multiples of both that SGLang takes; 0: any */
} mp_size_rule;

/* For mp_target.check. */
int mp_size_rule_check(const mp_size_rule *rule, const mp_dims *dims, mp_problems *warnings,
                       mp_error *err);

/* For mp_target.pack_weight and its inverse, where packed bytes are those of the rectangle. */
void mp_weight_unchanged(const mp_dims *dims, mp_side side, const mp_tile *tile,
                         const uint8_t *const in[2], uint8_t *out);
void mp_weight_restored(const mp_dims *dims, mp_side side, const mp_tile *tile, const uint8_t *in,
                        uint8_t *const out[2]);

#endif
