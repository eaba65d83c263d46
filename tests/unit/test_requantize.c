/* SPDX-License-Identifier: Apache-2.0 */
/* Requantization: golden data of every scheme, the ends of float32, and what
 * passes through exactly. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include <moepack/numeric.h>

#include "golden.h"
#include "requantize_call.h"

#include "base/words.h"
#include "numeric/forms.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"

#define GOLDEN "testdata/golden/numerics.safetensors"

static const mp_quant_options defaults = {.rounding = MP_ROUND_DEEPGEMM};

/* --- golden data --- */

struct golden_case {
    const char *matrix;
    const char *codes;
    const char *scales;
    mp_scheme to;
    mp_quant_options options;
};

static const struct golden_case golden_cases[] = {
    {"w", "mxfp4_deepgemm", "mxfp4_deepgemm_scale", MP_SCHEME_MXFP4, {.rounding = 0}},
    {"w", "mxfp4_ocp", "mxfp4_ocp_scale", MP_SCHEME_MXFP4, {.rounding = MP_ROUND_OCP}},
    {"w", "mxfp4_floor1e-4", "mxfp4_floor1e-4_scale", MP_SCHEME_MXFP4, {.amax_floor = 1e-4f}},
    {"w", "mxfp8", "mxfp8_scale", MP_SCHEME_MXFP8, {.rounding = 0}},
    {"w2", "fp8_block", "fp8_block_scale", MP_SCHEME_FP8_BLOCK, {.rounding = 0}},
    {"w2", "fp8_block_ue8m0", "fp8_block_ue8m0_scale", MP_SCHEME_FP8_BLOCK, {.ue8m0 = true}},
    {"w", "nvfp4", "nvfp4_scale", MP_SCHEME_NVFP4, {.rounding = 0}},
    {"w", "int8", "int8_scale", MP_SCHEME_INT8_CHANNEL, {.rounding = 0}},
};

#define GOLDEN_CASES (sizeof(golden_cases) / sizeof(golden_cases[0]))

Test(requantize, golden)
{
    golden_file *golden = golden_open(GOLDEN);

    for (size_t i = 0; i < GOLDEN_CASES; i++) {
        const struct golden_case *c = &golden_cases[i];
        mp_rows in = float_rows(golden_tensor(golden, c->matrix, NULL),
                                golden_dim(golden, c->matrix, 0), golden_dim(golden, c->matrix, 1));
        mp_quant_options options = c->options;
        mp_quant_stats stats = {0};
        size_t code_bytes;
        size_t scales;

        if (c->to == MP_SCHEME_NVFP4) {
            options.global_scale = mp_nvfp4_global(matrix_amax(&in));
            cr_assert_arr_eq(&options.global_scale, golden_tensor(golden, "nvfp4_global", NULL), 4);
        }
        struct result out = requantize(&in, c->to, &options, &stats);
        const void *codes = golden_tensor(golden, c->codes, &code_bytes);
        const void *expected = golden_tensor(golden, c->scales, &scales);
        cr_assert_eq(code_bytes, in.rows * mp_scheme_row_bytes(c->to, in.cols));
        cr_assert_eq(scales, scale_bytes(c->to, in.rows, in.cols));
        cr_assert_arr_eq(out.codes, codes, code_bytes, "%s", c->codes);
        cr_assert_arr_eq(out.scales, expected, scales, "%s", c->scales);
        cr_assert_eq(stats.elements, in.rows * in.cols);
        if (c->to != MP_SCHEME_NVFP4) /* whose block scales may round down */
            cr_assert_eq(stats.saturated, 0);
        result_free(&out);
    }
    golden_close(golden);
}

/* The second band of rows begins at row 128, as a tile of a large tensor would. */
Test(requantize, fp8_block_in_bands)
{
    golden_file *golden = golden_open(GOLDEN);
    const float *w = golden_tensor(golden, "w2", NULL);
    const uint8_t *codes = golden_tensor(golden, "fp8_block", NULL);
    const uint8_t *scales = golden_tensor(golden, "fp8_block_scale", NULL);
    mp_rows in = float_rows(w + 128 * 352, 72, 352);

    in.row0 = 128;
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &defaults, NULL);
    cr_assert_arr_eq(out.codes, codes + 128 * 352, 72 * 352);
    cr_assert_arr_eq(out.scales, scales + 3 * 4, 3 * 4);
    result_free(&out);
    golden_close(golden);
}

Test(requantize, bf16_golden)
{
    golden_file *golden = golden_open(GOLDEN);
    mp_rows in = float_rows(golden_tensor(golden, "x", NULL), 64, 64);
    struct result out = requantize(&in, MP_SCHEME_BF16, &defaults, NULL);

    cr_assert_arr_eq(out.codes, golden_tensor(golden, "bf16", NULL), 4096 * 2);
    result_free(&out);
    golden_close(golden);
}

/* With and without statistics a BF16 source takes different paths. */
Test(requantize, bf16_source_is_float_source)
{
    golden_file *golden = golden_open(GOLDEN);
    mp_rows in = float_rows(golden_tensor(golden, "w", NULL), 96, 352);
    struct result halves = requantize(&in, MP_SCHEME_BF16, &defaults, NULL);
    float *wide = decode(&halves.rows);
    mp_rows same = float_rows(wide, 96, 352);

    for (int rule = MP_SCALE_CEIL; rule <= MP_SCALE_MSE; rule++) {
        const mp_quant_options options = {.scale_rule = (mp_scale_rule)rule};
        mp_quant_stats stats = {0};
        struct result a = requantize(&halves.rows, MP_SCHEME_MXFP4, &options, NULL);
        struct result b = requantize(&halves.rows, MP_SCHEME_MXFP4, &options, &stats);
        struct result c = requantize(&same, MP_SCHEME_MXFP4, &options, NULL);

        cr_assert_arr_eq(a.codes, b.codes, 96 * 176);
        cr_assert_arr_eq(a.codes, c.codes, 96 * 176);
        cr_assert_arr_eq(a.scales, b.scales, 96 * 11);
        cr_assert_arr_eq(a.scales, c.scales, 96 * 11);
        result_free(&a);
        result_free(&b);
        result_free(&c);
    }
    free(wide);
    result_free(&halves);
    golden_close(golden);
}

/* --- schemes without golden data, from their formulas --- */

static void check_fp8_run(const struct result *out, const float *w, size_t at, size_t n,
                          size_t scale_index, bool ue8m0)
{
    float amax = 0;
    float scale;

    for (size_t i = at; i < at + n; i++)
        amax = fmaxf(amax, fabsf(w[i]));
    memcpy(&scale, out->scales + 4 * scale_index, sizeof(scale));
    if (ue8m0) {
        cr_assert_eq(scale, exp2f(ceilf(log2f(amax / 448))));
    } else {
        cr_assert_eq(scale, amax / 448);
    }
    for (size_t i = at; i < at + n; i++) {
        float scaled = w[i] * (1 / scale);
        uint8_t code;

        mp_kernels_for("scalar")->e4m3_encode(&scaled, &code, 1);
        cr_assert_eq(out->codes[i], code, "element %zu", i);
    }
}

Test(requantize, fp8_group_and_channel)
{
    enum { ROWS = 5, COLS = 300 };
    static float w[ROWS * COLS];
    mp_rows in = float_rows(w, ROWS, COLS);

    for (size_t i = 0; i < ROWS * COLS; i++)
        w[i] = sinf((float)i) * ldexpf(1, (int)(i / 90) - 8);
    for (int ue8m0 = 0; ue8m0 < 2; ue8m0++) {
        const mp_quant_options options = {.ue8m0 = ue8m0 != 0};
        struct result group = requantize(&in, MP_SCHEME_FP8_GROUP, &options, NULL);
        struct result channel = requantize(&in, MP_SCHEME_FP8_CHANNEL, &options, NULL);

        for (size_t r = 0; r < ROWS; r++) {
            check_fp8_run(&group, w, r * COLS, 128, r * 3, ue8m0);
            check_fp8_run(&group, w, r * COLS + 128, 128, r * 3 + 1, ue8m0);
            check_fp8_run(&group, w, r * COLS + 256, 44, r * 3 + 2, ue8m0);
            check_fp8_run(&channel, w, r * COLS, COLS, r, false);
        }
        result_free(&group);
        result_free(&channel);
    }
}

/* A floating format gains from a finer scale only where small elements would be
 * lost: 449 saturates to 448 either way, but 2^-9 is a tie under 2^1. */
Test(requantize, mxfp8_by_squared_error)
{
    const mp_quant_options mse = {.scale_rule = MP_SCALE_MSE};
    float w[64];
    mp_rows in = float_rows(w, 1, 64);

    for (int i = 0; i < 64; i++)
        w[i] = 0x1p-9f;
    w[3] = 449;
    w[40] = 500;
    struct result out = requantize(&in, MP_SCHEME_MXFP8, &defaults, NULL);
    cr_assert(out.scales[0] == 128 && out.scales[1] == 128);
    cr_assert(out.codes[3] == 0x76 && out.codes[4] == 0);
    result_free(&out);
    out = requantize(&in, MP_SCHEME_MXFP8, &mse, NULL);
    cr_assert(out.scales[0] == 127 && out.scales[1] == 128);
    cr_assert(out.codes[3] == 0x7e && out.codes[4] == 1);
    result_free(&out);
}

/* --- zeros, the smallest and the largest --- */

Test(requantize, zeros)
{
    static const float zeros[2 * 128] = {0, -0.0f, -0.0f};
    static const uint8_t nothing[256];
    const mp_quant_options rounded = {.rounding = MP_ROUND_OCP, .ue8m0 = true};
    const mp_scheme schemes[] = {MP_SCHEME_FP8_BLOCK, MP_SCHEME_FP8_GROUP, MP_SCHEME_FP8_CHANNEL,
                                 MP_SCHEME_NVFP4, MP_SCHEME_INT8_CHANNEL};
    mp_rows in = float_rows(zeros, 2, 128);
    struct result out;
    float scale;

    cr_assert_eq(matrix_amax(&in), 0);
    cr_assert_eq(mp_nvfp4_global(0), 1);
    for (size_t i = 0; i < 5; i++) {
        out = requantize(&in, schemes[i], &defaults, NULL);
        cr_assert_arr_eq(out.codes, nothing, 2 * mp_scheme_row_bytes(schemes[i], 128));
        cr_assert_arr_eq(out.scales, nothing, scale_bytes(schemes[i], 2, 128));
        result_free(&out);
    }
    /* A power of two is never 0, and so keeps the sign of zeros. */
    out = requantize(&in, MP_SCHEME_FP8_BLOCK, &rounded, NULL);
    memcpy(&scale, out.scales, sizeof(scale));
    cr_assert(scale == 0x1p-126f && out.codes[0] == 0 && out.codes[1] == 0x80);
    result_free(&out);
    out = requantize(&in, MP_SCHEME_MXFP4, &rounded, NULL);
    cr_assert(out.scales[0] == 1 && out.codes[0] == 0x80 && out.codes[1] == 0x08);
    result_free(&out);
    out = requantize(&in, MP_SCHEME_MXFP8, &rounded, NULL);
    cr_assert(out.scales[0] == 1 && out.codes[0] == 0 && out.codes[1] == 0x80);
    result_free(&out);
}

/* 1/scale is beyond float32 for the smallest scales; zeros beside must stay zeros. */
Test(requantize, subnormal_blocks)
{
    float w[32] = {0x1p-130f, 0, -0x1p-131f, 0x1p-149f};
    const mp_scheme schemes[] = {MP_SCHEME_FP8_BLOCK, MP_SCHEME_FP8_GROUP, MP_SCHEME_FP8_CHANNEL,
                                 MP_SCHEME_INT8_CHANNEL, MP_SCHEME_MXFP8};
    mp_rows in = float_rows(w, 1, 32);

    for (size_t i = 0; i < 5; i++) {
        struct result out = requantize(&in, schemes[i], &defaults, NULL);
        float *again = decode(&out.rows);

        for (size_t j = 0; j < 32; j++)
            cr_assert_float_eq(again[j], w[j], 0x1p-132f, "%s", mp_scheme_name(schemes[i]));
        cr_assert_eq(again[1], 0);
        free(again);
        result_free(&out);
    }
}

Test(requantize, int8_rounds_to_even)
{
    float w[3][8] = {
        {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 126.5f},
        /* A subnormal scale is coarse: 180/127 steps become 1, and 60/127 none. */
        {180 * 0x1p-149f, -180 * 0x1p-149f, 100 * 0x1p-149f},
        {60 * 0x1p-149f},
    };
    const int8_t expected[3][8] = {{127, 0, 2, 2, 0, -2, -126, 126}, {127, -127, 100}, {0}};
    const float scales[3] = {1, 0x1p-149f, 0};
    mp_rows in = float_rows(w[0], 3, 8);
    struct result out = requantize(&in, MP_SCHEME_INT8_CHANNEL, &defaults, NULL);

    cr_assert_arr_eq(out.codes, expected, sizeof(expected));
    cr_assert_arr_eq(out.scales, scales, sizeof(scales));
    result_free(&out);
}

/* Close to the end of float32. (At its very end 127 * (amax / 127) may be Inf.) */
Test(requantize, largest_values)
{
    float w[32] = {0x1.8p127f, -0x1.8p127f, 0x1p127f, 1, 0};
    const mp_scheme schemes[] = {MP_SCHEME_FP8_BLOCK,    MP_SCHEME_FP8_GROUP, MP_SCHEME_FP8_CHANNEL,
                                 MP_SCHEME_INT8_CHANNEL, MP_SCHEME_MXFP8,     MP_SCHEME_MXFP4,
                                 MP_SCHEME_NVFP4};
    mp_rows in = float_rows(w, 1, 32);
    const mp_quant_options options = {.global_scale = mp_nvfp4_global(0x1.8p127f)};

    for (size_t i = 0; i < 7; i++) {
        struct result out = requantize(&in, schemes[i], &options, NULL);
        float *again = decode(&out.rows);

        for (size_t j = 0; j < 32; j++)
            cr_assert_float_eq(again[j] * 0x1p-100f, w[j] * 0x1p-100f, 0x1p-3f * 0x1p28f, "%s",
                               mp_scheme_name(schemes[i]));
        free(again);
        result_free(&out);
    }
}

Test(requantize, nvfp4_never_flushes_a_live_block)
{
    float w[48] = {100};
    mp_rows in = float_rows(w, 1, 48);

    w[16] = 1e-20f;
    w[17] = -0.0f;
    mp_quant_options options = {.global_scale = mp_nvfp4_global(100)};
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, NULL);
    cr_assert(out.scales[0] == 0x7e && out.scales[1] == 1 && out.scales[2] == 0);
    cr_assert(out.codes[0] == 7 && out.codes[8] == 0x80 && out.codes[16] == 0);
    result_free(&out);
}

/* --- what passes through --- */

/* Any bytes without NaN for codes; scales of distinct values. */
static void fill_source(mp_scheme scheme, uint8_t *codes, size_t code_bytes, uint8_t *scales,
                        size_t bytes)
{
    for (size_t i = 0; i < code_bytes; i++) {
        codes[i] = (uint8_t)(i * 151 + i / 256 * 7);
        if (mp_scheme_bits(scheme) == 8 && (codes[i] & 0x7f) == 0x7f)
            codes[i] ^= 1;
        if (scheme == MP_SCHEME_BF16 && i % 2 == 1)
            codes[i] &= 0xbf;
    }
    for (size_t i = 0; i < bytes; i++) {
        bool top = mp_scheme_bits(scheme) == 8 && scheme != MP_SCHEME_MXFP8 && i % 4 == 3;

        scales[i] = (uint8_t)(top ? 0x38 + i / 4 * 5 % 13 : i * 29 % 126);
    }
}

Test(requantize, same_scheme_passes_through)
{
    const mp_scheme schemes[] = {MP_SCHEME_BF16,      MP_SCHEME_MXFP4,       MP_SCHEME_MXFP8,
                                 MP_SCHEME_FP8_BLOCK, MP_SCHEME_FP8_GROUP,   MP_SCHEME_FP8_CHANNEL,
                                 MP_SCHEME_NVFP4,     MP_SCHEME_INT8_CHANNEL};
    enum { ROWS = 139, COLS = 160 };
    static uint8_t codes[ROWS * COLS * 2];
    static uint8_t scales[ROWS * COLS];
    const mp_quant_options options = {.global_scale = 0.37f, .amax_floor = 1e-4f};

    for (size_t i = 0; i < 8; i++) {
        mp_rows shape = {.rows = ROWS, .cols = COLS};
        mp_rows in = output_rows(schemes[i], &shape, &options);
        mp_quant_stats stats = {0};
        size_t code_bytes = (size_t)(ROWS * mp_scheme_row_bytes(schemes[i], COLS));
        size_t bytes = scale_bytes(schemes[i], ROWS, COLS);

        fill_source(schemes[i], codes, code_bytes, scales, bytes);
        in.weight = codes;
        in.scale = scales;
        struct result out = requantize(&in, schemes[i], &options, &stats);
        cr_assert_arr_eq(out.codes, codes, code_bytes, "%s", mp_scheme_name(schemes[i]));
        cr_assert_arr_eq(out.scales, scales, bytes, "%s", mp_scheme_name(schemes[i]));
        cr_assert(stats.error_sq == 0 && stats.signal_sq > 0 && stats.elements == ROWS * COLS);
        cr_assert(stats.saturated == 0 && stats.flushed == 0);
        result_free(&out);
    }
}

/* The same scheme with other blocks or another global scale is another matrix of codes. */
Test(requantize, same_scheme_with_other_scales)
{
    static uint8_t codes[130 * 130];
    static float scales[25];
    const mp_quant_options options = {.global_scale = 0.75f};
    mp_rows in = {.scheme = MP_SCHEME_FP8_BLOCK,
                  .scale_dtype = MP_F32,
                  .block_rows = 32,
                  .block_cols = 32,
                  .rows = 130,
                  .cols = 130,
                  .weight = codes,
                  .scale = scales};
    mp_quant_stats stats = {0};

    fill_source(MP_SCHEME_FP8_BLOCK, codes, sizeof(codes), NULL, 0);
    for (int i = 0; i < 25; i++)
        scales[i] = 1 + (float)i / 7;
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &options, &stats);
    cr_assert(stats.error_sq > 0 && stats.error_sq < stats.signal_sq * 0.002);
    result_free(&out);

    in = (mp_rows){.scheme = MP_SCHEME_NVFP4,
                   .scale_dtype = MP_F8_E4M3,
                   .block_rows = 1,
                   .block_cols = 16,
                   .rows = 2,
                   .cols = 32,
                   .weight = codes,
                   .scale = codes,
                   .global_scale = 1};
    memset(codes, 0x38, sizeof(codes)); /* scale 1; the nibbles are -0 and 1.5 */
    out = requantize(&in, MP_SCHEME_NVFP4, &options, NULL);
    cr_assert_arr_eq(out.codes, "\x78\x78\x78\x78", 4); /* about 6 * 0.34375 * 0.75 */
    cr_assert_eq(out.scales[0], 0x2b);
    result_free(&out);
}

/* BF16 and E8M0 scales become float32 ones, which hold them exactly. */
Test(requantize, scale_types_widen)
{
    static uint8_t codes[130 * 130];
    const uint16_t bf16[4] = {0x3f80, 0x3e01, 0x4123, 0x3c45};
    const uint8_t e8m0[4] = {0, 120, 127, 140};
    const float from_bf16[4] = {1, 0x1.02p-3f, 0x1.46p3f, 0x1.8ap-7f};
    const float from_e8m0[4] = {0x1p-127f, 0x1p-7f, 1, 0x1p13f};
    mp_rows in = {.scheme = MP_SCHEME_FP8_BLOCK,
                  .scale_dtype = MP_BF16,
                  .block_rows = 128,
                  .block_cols = 128,
                  .rows = 130,
                  .cols = 130,
                  .weight = codes,
                  .scale = bf16};

    fill_source(MP_SCHEME_FP8_BLOCK, codes, sizeof(codes), NULL, 0);
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &defaults, NULL);
    cr_assert_arr_eq(out.codes, codes, sizeof(codes));
    cr_assert_arr_eq(out.scales, from_bf16, sizeof(from_bf16));
    result_free(&out);
    in.scale_dtype = MP_F8_E8M0;
    in.scale = e8m0;
    out = requantize(&in, MP_SCHEME_FP8_BLOCK, &defaults, NULL);
    cr_assert_arr_eq(out.codes, codes, sizeof(codes));
    cr_assert_arr_eq(out.scales, from_e8m0, sizeof(from_e8m0));
    result_free(&out);
}

/* ue8m0 leaves powers of two alone and rounds other scales up. */
Test(requantize, ue8m0_of_block_scales)
{
    static uint8_t codes[4 * 200];
    const mp_quant_options options = {.ue8m0 = true};
    const float powers[2] = {0x1p-9f, 0x1p3f};
    const float others[2] = {0x1p-9f, 0x1.8p3f};
    float scales[2];
    mp_rows in = {.scheme = MP_SCHEME_FP8_BLOCK,
                  .scale_dtype = MP_F32,
                  .block_rows = 128,
                  .block_cols = 128,
                  .rows = 4,
                  .cols = 200,
                  .weight = codes,
                  .scale = powers};

    memset(codes, 0x42, sizeof(codes)); /* 2.5: far from 448, so that scales would shrink */
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &options, NULL);
    cr_assert_arr_eq(out.codes, codes, sizeof(codes));
    cr_assert_arr_eq(out.scales, powers, sizeof(powers));
    result_free(&out);
    memset(codes, 0x7e, sizeof(codes)); /* 448 */
    in.scale = others;
    out = requantize(&in, MP_SCHEME_FP8_BLOCK, &options, NULL);
    memcpy(scales, out.scales, sizeof(scales));
    cr_assert(scales[0] == 0x1p-9f && scales[1] == 0x1p4f);
    cr_assert(out.codes[0] == 0x7e && out.codes[128] == 0x7a); /* 448 * 0.75 = 336 */
    result_free(&out);
}

Test(requantize, mxfp4_to_fp8_is_exact)
{
    enum { ROWS = 131, BLOCKS = 9 };
    static uint8_t codes[ROWS * BLOCKS * 16];
    static uint8_t exponents[ROWS * BLOCKS];
    const mp_quant_options power_of_two = {.ue8m0 = true};
    const mp_scheme schemes[] = {MP_SCHEME_MXFP8, MP_SCHEME_FP8_BLOCK, MP_SCHEME_FP8_GROUP};

    for (size_t base = 0; base < 240; base += 60) {
        for (size_t i = 0; i < ROWS * BLOCKS; i++)
            exponents[i] = (uint8_t)(base + i * 11 % 15);
        mp_rows in = mxfp4_rows(codes, exponents, ROWS, BLOCKS);
        for (size_t i = 0; i < 3; i++) {
            mp_quant_stats stats = {0};
            struct result out = requantize(&in, schemes[i], &power_of_two, &stats);

            cr_assert_eq(stats.error_sq, 0, "%s from %zu", mp_scheme_name(schemes[i]), base);
            cr_assert_gt(stats.signal_sq, 0);
            result_free(&out);
        }
    }
    /* One binade further, the smallest code of the lowest block is a tie and lost. */
    exponents[1] = 100;
    exponents[0] = 85;
    for (size_t i = 2; i < ROWS * BLOCKS; i++)
        exponents[i] = 100;
    mp_rows in = mxfp4_rows(codes, exponents, ROWS, BLOCKS);
    mp_quant_stats stats = {0};
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &power_of_two, &stats);
    cr_assert(stats.error_sq > 0 && stats.flushed > 0);
    result_free(&out);
}

Test(requantize, mxfp4_to_nvfp4)
{
    enum { BLOCKS = 20 };
    static uint8_t codes[2 * BLOCKS * 16];
    uint8_t exponents[2 * BLOCKS];
    mp_quant_stats stats = {0};

    for (size_t i = 0; i < BLOCKS; i++)
        exponents[i] = (uint8_t)(130 - i % 18); /* up to 17 below */
    for (size_t i = BLOCKS; i < 2 * BLOCKS; i++)
        exponents[i] = 113;
    exponents[BLOCKS + 3] = 112; /* 18 and 19 below */
    exponents[BLOCKS + 5] = 111;
    exponents[BLOCKS + 7] = 60; /* but nothing in it */
    mp_rows in = mxfp4_rows(codes, exponents, 2, BLOCKS);
    memset(codes + (BLOCKS + 7) * 16, 0x80, 16);
    cr_assert_eq(mp_nvfp4_global_exact(130), 0x1p-5f);
    mp_quant_options options = {.global_scale = mp_nvfp4_global_exact(130)};
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);

    cr_assert_eq(stats.requantized_blocks, 2);
    for (size_t i = 0; i < 2 * BLOCKS; i++) {
        if (i == BLOCKS + 3 || i == BLOCKS + 5)
            continue;
        cr_assert_arr_eq(out.codes + i * 16, codes + i * 16, 16, "block %zu", i);
        cr_assert_eq(out.scales[2 * i], out.scales[2 * i + 1]);
    }
    /* 18 below, scale 2^-10 is wanted: codes under 2^-9, half as large. */
    cr_assert_eq(out.scales[2 * (BLOCKS + 3)], 1);
    float *before = decode(&in);
    float *after = decode(&out.rows);
    for (size_t i = 0; i < 2 * BLOCKS * 32; i++) {
        bool exact = i / 32 != BLOCKS + 3 && i / 32 != BLOCKS + 5;

        cr_assert_float_eq(after[i], before[i], exact ? 0 : 0x1p-16f, "element %zu", i);
    }
    free(before);
    free(after);
    result_free(&out);
}

/* Under a global scale that is no power of two nothing passes, but all is close. */
Test(requantize, mxfp4_to_nvfp4_of_another_global_scale)
{
    uint8_t codes[3 * 16];
    const uint8_t exponents[3] = {120, 121, 119};
    mp_rows in = mxfp4_rows(codes, exponents, 1, 3);
    const mp_quant_options options = {.global_scale = mp_nvfp4_global(matrix_amax(&in))};
    mp_quant_stats stats = {0};
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);

    cr_assert_eq(stats.requantized_blocks, 3);
    cr_assert_lt(stats.error_sq, stats.signal_sq * 0.01);
    result_free(&out);
}

Test(requantize, nvfp4_global_scales)
{
    cr_assert_eq(mp_nvfp4_global(6 * 448), 1);
    cr_assert_eq(mp_nvfp4_global(127.5f), 127.5f / 2688);
    cr_assert_gt(mp_nvfp4_global(0x1p-149f), 0);
    cr_assert_eq(mp_nvfp4_global_exact(0), 0x1p-135f);
    cr_assert_eq(mp_nvfp4_global_exact(254), 0x1p119f);
}

Test(requantize, amax_of_rows)
{
    float w[6] = {1, -5, 2, 3, 4, 0};
    mp_rows in = float_rows(w, 2, 3);
    float work[8];
    float amax;
    mp_error err;

    cr_assert_eq(matrix_amax(&in), 5);
    w[4] = -INFINITY;
    cr_assert_eq(mp_rows_amax(&in, false, work, &amax, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "weight [1, 1] is infinite");
    cr_assert_eq(mp_rows_amax(&in, true, work, &amax, &err), 0);
    cr_assert_eq(amax, FLT_MAX);
}
