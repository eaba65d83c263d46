/* SPDX-License-Identifier: Apache-2.0 */
/* deepep-bf16: gate rows, then up rows, as they are. */
#include "layout/targets.h"

static unsigned describe(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    tensors[0] = mp_slot_tensor_of("w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_BF16, 2,
                                   (const uint64_t[]){2 * i, h});
    tensors[1] =
        mp_slot_tensor_of("w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_BF16, 2, (const uint64_t[]){h, i});
    return 2;
}

static int check(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"deepep-bf16", 1, 1, 0}, dims, warnings, err);
}

static mp_tiling tiling(const mp_dims *dims, mp_side side)
{
    (void)dims;
    (void)side;
    return (mp_tiling){.kind = MP_TILES_ROWS, .group = 1, .pad = 1, .unchanged = true};
}

const mp_target mp_target_deepep_bf16 = {
    .name = "deepep-bf16",
    .version = 1,
    .engine = "DeepEP low latency, unquantized, with DeepGEMM BF16",
    .scheme = MP_SCHEME_BF16,
    .rounding = MP_ROUND_OCP,
    .constraints = "none",
    .separate = &mp_target_deepep_bf16,
    .describe = describe,
    .check = check,
    .tiling = tiling,
    .pack_weight = mp_weight_unchanged,
    .unpack_weight = mp_weight_restored,
};
