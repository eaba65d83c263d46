/* SPDX-License-Identifier: Apache-2.0 */
/* Shared experts that MegaMoE kernels for FP4 fuse as they are, in FP8: E4M3 interleaved in
 * eights, and scales of 128x128 blocks said once for each row and 32 columns. */
#include "layout/interleave.h"
#include "layout/megamoe.h"
#include "layout/utccp.h"

#include "base/words.h"
#include "layout/sides.h"
#include "numeric/kernels.h"

#include <string.h>

#define BLOCK        128 /* rows and columns of a scale; four groups of 32 columns are a word */
#define WORD         4
#define NAN_EXPONENT 255

static unsigned describe(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    tensors[0] = mp_slot_tensor_of("shared_l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_F8_E4M3, 2,
                                   (const uint64_t[]){2 * i, h});
    tensors[1] = mp_slot_tensor_of("shared_l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, 2,
                                   (const uint64_t[]){h / BLOCK, 2 * i});
    tensors[2] = mp_slot_tensor_of("shared_l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_F8_E4M3, 2,
                                   (const uint64_t[]){h, i});
    tensors[3] = mp_slot_tensor_of("shared_l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_I32, 2,
                                   (const uint64_t[]){i / BLOCK, h});
    return 4;
}

static int check(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-shared-fp8", BLOCK, BLOCK, 0}, dims,
                              warnings, err);
}

static mp_tiling tiling(const mp_dims *dims, mp_side side)
{
    (void)dims;
    return mp_megamoe_tiling(side, BLOCK, BLOCK);
}

static const mp_interleave *order_of(mp_side side)
{
    return side == MP_L1 ? &mp_interleave_8 : NULL;
}

/* The exponent byte of a power of two. */
static uint8_t exponent_of(const uint8_t *scale)
{
    float value;

    memcpy(&value, scale, sizeof(value));
    return (uint8_t)(mp_f32_bits(value) >> 23);
}

static void pack_scale(const mp_dims *dims, mp_side side, const uint8_t *canonical, uint8_t *out)
{
    uint64_t rows = mp_side_parts(side) * mp_side_rows(dims, side);
    uint64_t words = mp_side_cols(dims, side) / BLOCK;

    for (uint64_t p = 0; p < rows; p++) {
        uint64_t block_row = mp_utccp_source(order_of(side), rows, p) / BLOCK;

        for (uint64_t w = 0; w < words; w++)
            memset(out + (w * rows + p) * WORD,
                   exponent_of(canonical + (block_row * words + w) * sizeof(float)), WORD);
    }
}

/* The exponent that all rows and columns of a block say; that of NaN where they differ. */
static uint8_t agreed_exponent(const uint8_t *word, const mp_interleave *order, uint64_t rows,
                               uint64_t block_row)
{
    uint64_t first = block_row * BLOCK;
    uint8_t exponent = word[mp_utccp_place(order, rows, first) * WORD];

    for (uint64_t row = first; row < first + BLOCK; row++) {
        const uint8_t *said = word + mp_utccp_place(order, rows, row) * WORD;

        for (unsigned k = 0; k < WORD; k++)
            if (said[k] != exponent)
                return NAN_EXPONENT;
    }
    return exponent;
}

static void unpack_scale(const mp_dims *dims, mp_side side, const uint8_t *in, uint8_t *canonical)
{
    uint64_t rows = mp_side_parts(side) * mp_side_rows(dims, side);
    uint64_t words = mp_side_cols(dims, side) / BLOCK;

    for (uint64_t b = 0; b < rows / BLOCK; b++) {
        for (uint64_t w = 0; w < words; w++) {
            float value =
                mp_ue8m0_value(agreed_exponent(in + w * rows * WORD, order_of(side), rows, b));

            memcpy(canonical + (b * words + w) * sizeof(value), &value, sizeof(value));
        }
    }
}

const mp_target mp_target_megamoe_shared_fp8 = {
    .name = "megamoe-shared-fp8",
    .version = 1,
    .engine = "DeepGEMM fp8_fp4_mega_moe, SM100, fused shared experts",
    .scheme = MP_SCHEME_FP8_BLOCK,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = "hidden and shared intermediate size multiples of 128",
    .ue8m0 = true,
    .single = true,
    .separate = &mp_target_megamoe_shared_fp8,
    .describe = describe,
    .check = check,
    .tiling = tiling,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
    .pack_scale = pack_scale,
    .unpack_scale = unpack_scale,
};
