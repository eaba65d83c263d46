/* SPDX-License-Identifier: Apache-2.0 */
/* The targets of DeepGEMM's MegaMoE kernels: gate and up rows of L1 are interleaved, L2 stays as it
 * is, and block scales for SM100 follow the rows of the weights, in UTCCP order.
 *
 *     rows of L1   g8         gate 0-7, up 0-7, gate 8-15, up 8-15, ...
 *                  even/odd   gate 0 2 .. 14, up 0 2 .. 14, gate 1 3 .. 15, up 1 3 .. 15, ...
 *
 * The kernels combine silu(gate) and up right after L1, while both are in registers; hence these
 * orders. Only whole rows of weights are moved, so a tile with the same rows of gate and up becomes
 * one extent. L2 passes through, with the bytes of the source.
 *
 * A target is a record of functions, and records share what they have in common. They are separate
 * even if kernels differ only in name or version: a pack has to say which one it is for, and each
 * may change on its own. megamoe-nvfp4 has two records of one name that differ in their alphas; the
 * manifest says which. Pure functions, any number of threads. */
#include "layout/megamoe.h"
#include "base/words.h"
#include "layout/interleave.h"
#include "layout/sides.h"
#include "layout/utccp.h"

#include <string.h>

#define MXFP4_BLOCK 32 /* columns of a scale */
#define NVFP4_BLOCK 16
#define FP8_BLOCK   128

/* ------------------------------------------------------------------------
 * Weights
 */

static void pack_weight(const mp_interleave *order, mp_side side, const mp_tile *tile,
                        const uint8_t *const in[2], uint8_t *out)
{
    if (side == MP_L1)
        mp_interleave_rows(order, in, tile->rows, tile->bytes / (2 * tile->rows), out);
    else
        memcpy(out, in[0], tile->bytes);
}

static void unpack_weight(const mp_interleave *order, mp_side side, const mp_tile *tile,
                          const uint8_t *in, uint8_t *const out[2])
{
    if (side == MP_L1)
        mp_separate_rows(order, in, tile->rows, tile->bytes / (2 * tile->rows), out);
    else
        memcpy(out[0], in, tile->bytes);
}

void mp_megamoe_pack_8(const mp_dims *dims, mp_side side, const mp_tile *tile,
                       const uint8_t *const in[2], uint8_t *out)
{
    (void)dims;
    pack_weight(&mp_interleave_8, side, tile, in, out);
}

void mp_megamoe_unpack_8(const mp_dims *dims, mp_side side, const mp_tile *tile, const uint8_t *in,
                         uint8_t *const out[2])
{
    (void)dims;
    unpack_weight(&mp_interleave_8, side, tile, in, out);
}

static void pack_even_odd(const mp_dims *dims, mp_side side, const mp_tile *tile,
                          const uint8_t *const in[2], uint8_t *out)
{
    (void)dims;
    pack_weight(&mp_interleave_even_odd, side, tile, in, out);
}

static void unpack_even_odd(const mp_dims *dims, mp_side side, const mp_tile *tile,
                            const uint8_t *in, uint8_t *const out[2])
{
    (void)dims;
    unpack_weight(&mp_interleave_even_odd, side, tile, in, out);
}

/* L1 tiles are whole groups, which are what the interleaving permutes. */
mp_tiling mp_megamoe_tiling(mp_side side, uint64_t group, uint64_t l2_group)
{
    if (side == MP_L1)
        return (mp_tiling){.kind = MP_TILES_PAIRED, .group = group, .pad = 1};
    return (mp_tiling){.kind = MP_TILES_ROWS, .group = l2_group, .pad = 1, .unchanged = true};
}

static mp_tiling tiling_8(const mp_dims *dims, mp_side side)
{
    (void)dims;
    return mp_megamoe_tiling(side, mp_interleave_group(&mp_interleave_8), 1);
}

static mp_tiling tiling_even_odd(const mp_dims *dims, mp_side side)
{
    (void)dims;
    return mp_megamoe_tiling(side, mp_interleave_group(&mp_interleave_even_odd), 1);
}

/* Blocks of 128 rows share a scale, so no tile may end inside one: both halves would have to
 * agree. */
static mp_tiling tiling_block(const mp_dims *dims, mp_side side)
{
    (void)dims;
    return mp_megamoe_tiling(side, FP8_BLOCK, FP8_BLOCK);
}

/* ------------------------------------------------------------------------
 * Scales
 */

static void pack_scale(const mp_interleave *order, uint64_t block, const mp_dims *dims,
                       mp_side side, const uint8_t *canonical, uint8_t *out)
{
    uint64_t rows = mp_side_parts(side) * mp_side_rows(dims, side);

    mp_utccp_pack(side == MP_L1 ? order : NULL, canonical, rows, mp_side_cols(dims, side) / block,
                  out);
}

static void unpack_scale(const mp_interleave *order, uint64_t block, const mp_dims *dims,
                         mp_side side, const uint8_t *in, uint8_t *canonical)
{
    uint64_t rows = mp_side_parts(side) * mp_side_rows(dims, side);

    mp_utccp_unpack(side == MP_L1 ? order : NULL, in, rows, mp_side_cols(dims, side) / block,
                    canonical);
}

static void pack_scale_mxfp4_8(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                               uint8_t *out)
{
    pack_scale(&mp_interleave_8, MXFP4_BLOCK, dims, side, canonical, out);
}

static void unpack_scale_mxfp4_8(const mp_dims *dims, mp_side side, const uint8_t *in,
                                 uint8_t *canonical)
{
    unpack_scale(&mp_interleave_8, MXFP4_BLOCK, dims, side, in, canonical);
}

static void pack_scale_mxfp4_even_odd(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                                      uint8_t *out)
{
    pack_scale(&mp_interleave_even_odd, MXFP4_BLOCK, dims, side, canonical, out);
}

static void unpack_scale_mxfp4_even_odd(const mp_dims *dims, mp_side side, const uint8_t *in,
                                        uint8_t *canonical)
{
    unpack_scale(&mp_interleave_even_odd, MXFP4_BLOCK, dims, side, in, canonical);
}

static void pack_scale_nvfp4(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                             uint8_t *out)
{
    pack_scale(&mp_interleave_8, NVFP4_BLOCK, dims, side, canonical, out);
}

static void unpack_scale_nvfp4(const mp_dims *dims, mp_side side, const uint8_t *in,
                               uint8_t *canonical)
{
    unpack_scale(&mp_interleave_8, NVFP4_BLOCK, dims, side, in, canonical);
}

/* SM90 reads float32 scales of gate blocks, then of up blocks, as they are. */
static uint64_t block_scale_bytes(const mp_dims *dims, mp_side side)
{
    return mp_side_parts(side) * (mp_side_rows(dims, side) / FP8_BLOCK) *
           (mp_side_cols(dims, side) / FP8_BLOCK) * sizeof(float);
}

static void pack_scale_block(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                             uint8_t *out)
{
    memcpy(out, canonical, block_scale_bytes(dims, side));
}

static void unpack_scale_block(const mp_dims *dims, mp_side side, const uint8_t *in,
                               uint8_t *canonical)
{
    memcpy(canonical, in, block_scale_bytes(dims, side));
}

/* ------------------------------------------------------------------------
 * Tensors
 */

static mp_slot_tensor weight(mp_side side, mp_dtype dtype, uint64_t rows, uint64_t cols)
{
    return mp_slot_tensor_of(side == MP_L1 ? "l1_weight" : "l2_weight", side, MP_ROLE_WEIGHT, dtype,
                             2, (const uint64_t[]){rows, cols});
}

static mp_slot_tensor scale(mp_side side, mp_dtype dtype, uint64_t rows, uint64_t cols)
{
    return mp_slot_tensor_of(side == MP_L1 ? "l1_weight_sf" : "l2_weight_sf", side, MP_ROLE_SCALE,
                             dtype, 2, (const uint64_t[]){rows, cols});
}

/* A float32 for each of `count` parts; of a side where count is 0. */
static mp_slot_tensor floats(const char *name, mp_side side, mp_role role, uint64_t count)
{
    return mp_slot_tensor_of(name, side, role, MP_F32, count > 0, &count);
}

/* Weights of 4 bits, and a word for the scales of four blocks. */
static unsigned describe_fp4(const mp_dims *dims, uint64_t block, mp_slot_tensor *tensors)
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    tensors[0] = weight(MP_L1, MP_I8, 2 * i, h / 2);
    tensors[1] = scale(MP_L1, MP_I32, h / (4 * block), 2 * i);
    tensors[2] = weight(MP_L2, MP_I8, h, i / 2);
    tensors[3] = scale(MP_L2, MP_I32, i / (4 * block), h);
    return 4;
}

static unsigned describe_mxfp4(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    return describe_fp4(dims, MXFP4_BLOCK, tensors);
}

/* Adds what both conventions of alphas end with. Tensors from `needed` on are optional. */
static unsigned end_nvfp4(mp_slot_tensor *tensors, unsigned needed, unsigned count)
{
    tensors[count++] = floats("l2_input_scale", MP_L2, MP_ROLE_INPUT_SCALE, 0);
    tensors[count++] = floats("l1_global_scale", MP_L1, MP_ROLE_GLOBAL_SCALE, 2);
    tensors[count++] = floats("l2_global_scale", MP_L2, MP_ROLE_GLOBAL_SCALE, 0);
    tensors[count++] = floats("l2_act_scale", MP_L2, MP_ROLE_ACT_SCALE, 0);
    for (unsigned t = needed; t < count; t++)
        tensors[t].optional = true;
    return count;
}

/* Only alphas have to be there: a source may have no input scales, and second scales that multiply
 * need no copy. */
static unsigned describe_nvfp4(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    unsigned count = describe_fp4(dims, NVFP4_BLOCK, tensors), needed = count + 2;

    tensors[count++] = floats("l1_alpha", MP_L1, MP_ROLE_ALPHA, 2);
    tensors[count++] = floats("l2_alpha", MP_L2, MP_ROLE_ALPHA, 0);
    tensors[count++] = floats("l1_input_scale", MP_L1, MP_ROLE_INPUT_SCALE, 0);
    return end_nvfp4(tensors, needed, count);
}

/* DeepGEMM's own alphas: one for L1, with the input scale folded in. It is a rounded product, so
 * the factors stay beside it. */
static unsigned describe_folded(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    unsigned count = describe_fp4(dims, NVFP4_BLOCK, tensors), needed = count + 4;

    tensors[count++] = floats("l1_alpha", MP_L1, MP_ROLE_FOLDED_ALPHA, 0);
    tensors[count++] = floats("l2_alpha", MP_L2, MP_ROLE_ALPHA, 0);
    tensors[count++] = floats("l1_second_scale", MP_L1, MP_ROLE_ALPHA, 2);
    tensors[count++] = floats("l1_input_scale", MP_L1, MP_ROLE_INPUT_SCALE, 0);
    return end_nvfp4(tensors, needed, count);
}

static unsigned describe_bf16(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    tensors[0] = weight(MP_L1, MP_BF16, 2 * i, h);
    tensors[1] = weight(MP_L2, MP_BF16, h, i);
    return 2;
}

static unsigned describe_fp8(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    tensors[0] = weight(MP_L1, MP_F8_E4M3, 2 * i, h);
    tensors[1] = scale(MP_L1, MP_F32, 2 * i / FP8_BLOCK, h / FP8_BLOCK);
    tensors[2] = weight(MP_L2, MP_F8_E4M3, h, i);
    tensors[3] = scale(MP_L2, MP_F32, h / FP8_BLOCK, i / FP8_BLOCK);
    return 4;
}

/* ------------------------------------------------------------------------
 * Sizes
 */

static int check_w4a8(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-w4a8", 128, 128, 512}, dims, warnings, err);
}

static int check_w4a4(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-w4a4", 128, 128, 512}, dims, warnings, err);
}

static int check_w4a4_g8(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-w4a4-g8", 128, 128, 512}, dims, warnings,
                              err);
}

static int check_nvfp4(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-nvfp4", 128, 128, 256}, dims, warnings, err);
}

static int check_bf16(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-bf16", 1, 8, 0}, dims, warnings, err);
}

static int check_sm90_fp8(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"megamoe-sm90-fp8", 128, 128, 0}, dims, warnings,
                              err);
}

#define FP4_CONSTRAINTS(n) \
    "hidden and expert intermediate size multiples of 128 (SGLang: of " #n ")"

/* ------------------------------------------------------------------------
 * The records
 */

const mp_target mp_target_megamoe_w4a8 = {
    .name = "megamoe-w4a8",
    .version = 1,
    .engine = "DeepGEMM fp8_fp4_mega_moe, SM100, mma fp8xfp4",
    .scheme = MP_SCHEME_MXFP4,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = FP4_CONSTRAINTS(512),
    .separate = &mp_target_megamoe_shared_fp8,
    .describe = describe_mxfp4,
    .check = check_w4a8,
    .tiling = tiling_8,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
    .pack_scale = pack_scale_mxfp4_8,
    .unpack_scale = unpack_scale_mxfp4_8,
};

const mp_target mp_target_megamoe_w4a4 = {
    .name = "megamoe-w4a4",
    .version = 1,
    .engine = "DeepGEMM fp8_fp4_mega_moe, SM100, mma mxf4xmxf4",
    .scheme = MP_SCHEME_MXFP4,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = FP4_CONSTRAINTS(512),
    .separate = &mp_target_megamoe_shared_fp8,
    .describe = describe_mxfp4,
    .check = check_w4a4,
    .tiling = tiling_even_odd,
    .pack_weight = pack_even_odd,
    .unpack_weight = unpack_even_odd,
    .pack_scale = pack_scale_mxfp4_even_odd,
    .unpack_scale = unpack_scale_mxfp4_even_odd,
};

const mp_target mp_target_megamoe_w4a4_g8 = {
    .name = "megamoe-w4a4-g8",
    .version = 1,
    .engine = "sgl-deep-gemm 0.1.x fp8_fp4_mega_moe, DG_USE_FP4_ACTS, DG_USE_MXF4_KIND",
    .scheme = MP_SCHEME_MXFP4,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = FP4_CONSTRAINTS(512),
    .separate = &mp_target_megamoe_shared_fp8,
    .describe = describe_mxfp4,
    .check = check_w4a4_g8,
    .tiling = tiling_8,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
    .pack_scale = pack_scale_mxfp4_8,
    .unpack_scale = unpack_scale_mxfp4_8,
};

const mp_target mp_target_megamoe_nvfp4 = {
    .name = "megamoe-nvfp4",
    .version = 1,
    .engine = "DeepGEMM fp8_fp4_mega_moe, SM100, mma nvfp4xnvfp4, recipe (1,1,16)",
    .scheme = MP_SCHEME_NVFP4,
    .rounding = MP_ROUND_OCP,
    .constraints = FP4_CONSTRAINTS(256),
    .separate = &mp_target_megamoe_shared_fp8,
    .fp4xfp4 = &mp_target_megamoe_nvfp4_folded,
    .describe = describe_nvfp4,
    .check = check_nvfp4,
    .tiling = tiling_8,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
    .pack_scale = pack_scale_nvfp4,
    .unpack_scale = unpack_scale_nvfp4,
};

const mp_target mp_target_megamoe_nvfp4_folded = {
    .name = "megamoe-nvfp4",
    .version = 1,
    .engine = "DeepGEMM fp8_fp4_mega_moe, SM100, mma nvfp4xnvfp4, recipe (1,1,16)",
    .scheme = MP_SCHEME_NVFP4,
    .rounding = MP_ROUND_OCP,
    .constraints = FP4_CONSTRAINTS(256),
    .separate = &mp_target_megamoe_shared_fp8,
    .describe = describe_folded,
    .check = check_nvfp4,
    .tiling = tiling_8,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
    .pack_scale = pack_scale_nvfp4,
    .unpack_scale = unpack_scale_nvfp4,
};

const mp_target mp_target_megamoe_bf16 = {
    .name = "megamoe-bf16",
    .version = 1,
    .engine = "DeepGEMM bf16_mega_moe",
    .scheme = MP_SCHEME_BF16,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = "expert intermediate size a multiple of 8",
    .separate = &mp_target_megamoe_bf16,
    .describe = describe_bf16,
    .check = check_bf16,
    .tiling = tiling_8,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
};

const mp_target mp_target_megamoe_sm90_fp8 = {
    .name = "megamoe-sm90-fp8",
    .version = 1,
    .engine = "DeepGEMM fp8_mega_moe, SM90, recipe (128,128,128)",
    .scheme = MP_SCHEME_FP8_BLOCK,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = "hidden and expert intermediate size multiples of 128",
    .separate = &mp_target_megamoe_sm90_fp8,
    .describe = describe_fp8,
    .check = check_sm90_fp8,
    .tiling = tiling_block,
    .pack_weight = mp_megamoe_pack_8,
    .unpack_weight = mp_megamoe_unpack_8,
    .pack_scale = pack_scale_block,
    .unpack_scale = unpack_scale_block,
};
