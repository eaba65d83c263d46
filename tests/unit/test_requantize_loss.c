/* SPDX-License-Identifier: Apache-2.0 */
/* Requantization: what it measures, NaN and Inf, and what it refuses. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "golden.h"
#include "requantize_call.h"

#define GOLDEN "testdata/golden/numerics.safetensors"

static const mp_quant_options defaults = {.rounding = MP_ROUND_DEEPGEMM};

/* --- statistics --- */

Test(requantize_loss, stats_of_mxfp4)
{
    golden_file *golden = golden_open(GOLDEN);
    const float *w = golden_tensor(golden, "w", NULL);
    mp_rows in = float_rows(w, 96, 352);
    mp_quant_stats stats = {0};
    struct result out = requantize(&in, MP_SCHEME_MXFP4, &defaults, &stats);
    float *again = decode(&out.rows);
    double error_sq = 0;
    double signal_sq = 0;
    uint64_t flushed = 0;

    for (size_t i = 0; i < 96 * 352; i++) {
        error_sq += ((double)again[i] - w[i]) * ((double)again[i] - w[i]);
        signal_sq += (double)w[i] * w[i];
        flushed += w[i] != 0 && again[i] == 0;
    }
    cr_assert_float_eq(stats.error_sq, error_sq, 1e-12 * error_sq);
    cr_assert_float_eq(stats.signal_sq, signal_sq, 1e-12 * signal_sq);
    cr_assert_eq(stats.elements, 96 * 352);
    cr_assert_eq(stats.flushed, flushed);
    cr_assert_gt(flushed, 0);
    cr_assert_eq(stats.saturated, 0);
    free(again);
    result_free(&out);
    golden_close(golden);
}

/* Under MSE one outlier saturates for the sake of many: 7.5 is beyond 6 + 1, 7 is not. */
Test(requantize_loss, stats_of_saturated)
{
    const mp_quant_options mse = {.scale_rule = MP_SCALE_MSE};
    float w[64];
    mp_rows in = float_rows(w, 1, 64);
    mp_quant_stats stats = {0};

    for (int i = 0; i < 64; i++)
        w[i] = i % 2 ? 0.5f : -1.5f;
    w[3] = 7.5f;
    w[33] = 7.0f;
    w[34] = 0.125f;
    struct result out = requantize(&in, MP_SCHEME_MXFP4, &mse, &stats);
    cr_assert(out.scales[0] == 127 && out.scales[1] == 127);
    cr_assert_eq(stats.saturated, 1);
    cr_assert_eq(stats.flushed, 1);
    cr_assert_eq(stats.error_sq, 1.5 * 1.5 + 1 + 0.125 * 0.125);
    result_free(&out);
}

/* A global scale from another matrix is too small for this one. */
Test(requantize_loss, stats_of_nvfp4)
{
    float w[16] = {7.5f * 896, -6 * 896, 7 * 896, 1};
    mp_rows in = float_rows(w, 1, 16);
    const mp_quant_options options = {.global_scale = 2};
    mp_quant_stats stats = {0};
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);

    cr_assert_eq(stats.saturated, 1);
    cr_assert_eq(stats.flushed, 1);
    result_free(&out);
}

Test(requantize_loss, stats_of_bf16)
{
    float w[4] = {0x1.ff8p127f, 0x1p-149f, 1.00390625f, 0x1.fe8p127f};
    mp_rows in = float_rows(w, 1, 4);
    mp_quant_stats stats = {0};
    struct result out = requantize(&in, MP_SCHEME_BF16, &defaults, &stats);

    cr_assert(stats.saturated == 1 && stats.flushed == 1 && stats.elements == 4);
    cr_assert_eq(stats.error_sq, (double)INFINITY);
    result_free(&out);
}

Test(requantize_loss, stats_add_up)
{
    mp_quant_stats a = {1.5, 2.5, 3, 4, 5, 6};
    const mp_quant_stats b = {10, 20, 30, 40, 50, 60};

    mp_quant_stats_add(&a, &b);
    cr_assert(a.error_sq == 11.5 && a.signal_sq == 22.5 && a.elements == 33);
    cr_assert(a.saturated == 44 && a.flushed == 55 && a.requantized_blocks == 66);
}

/* --- NaN and Inf --- */

static void assert_refused(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                           mp_quant_stats *stats, int code, const char *message)
{
    struct result out;
    mp_error err = {0};

    cr_assert_eq(try_requantize(in, to, options, &out, stats, &err), code);
    cr_assert_eq(err.code, code);
    cr_assert_str_eq(err.message, message);
    result_free(&out);
}

Test(requantize_loss, refuses_nonfinite_bf16)
{
    enum { ROWS = 19, COLS = 352 };
    static uint16_t w[ROWS * COLS];
    mp_rows in = {.scheme = MP_SCHEME_BF16, .row0 = 4096, .rows = ROWS, .cols = COLS, .weight = w};
    mp_quant_stats stats = {0};

    w[12 * COLS + 345] = 0x7fc0;
    w[12 * COLS + 347] = 0x7f80;
    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_INPUT,
                   "weight [4108, 345] is NaN");
    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, &stats, MP_ERR_INPUT,
                   "weight [4108, 345] is NaN");
    assert_refused(&in, MP_SCHEME_FP8_BLOCK, &defaults, NULL, MP_ERR_INPUT,
                   "weight [4108, 345] is NaN");
    assert_refused(&in, MP_SCHEME_BF16, &defaults, NULL, MP_ERR_INPUT, "weight [4108, 345] is NaN");
    w[12 * COLS + 345] = 0xff80;
    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_INPUT,
                   "weight [4108, 345] is infinite");
    assert_refused(&in, MP_SCHEME_INT8_CHANNEL, &defaults, NULL, MP_ERR_INPUT,
                   "weight [4108, 345] is infinite");
}

Test(requantize_loss, refuses_nan_codes_and_scales)
{
    static uint8_t codes[3 * 256];
    float scales[6] = {1, 1, 1, 1, 1, 1};
    mp_rows in = {.scheme = MP_SCHEME_FP8_GROUP,
                  .scale_dtype = MP_F32,
                  .block_rows = 1,
                  .block_cols = 128,
                  .row0 = 7,
                  .rows = 3,
                  .cols = 256,
                  .weight = codes,
                  .scale = scales};

    codes[2 * 256 + 200] = 0xff;
    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_INPUT, "weight [9, 200] is NaN");
    assert_refused(&in, MP_SCHEME_FP8_GROUP, &defaults, NULL, MP_ERR_INPUT,
                   "weight [9, 200] is NaN");
    codes[2 * 256 + 200] = 1;
    scales[5] = INFINITY;
    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_INPUT, "weight [9, 128] is NaN");
    scales[3] = NAN;
    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_INPUT,
                   "scale of weight [8, 128] is NaN");
}

Test(requantize_loss, allow_nonfinite)
{
    static float w[256];
    const mp_quant_options allow = {.allow_nonfinite = true};
    mp_rows in = float_rows(w, 1, 256);
    mp_quant_stats stats = {0};

    w[0] = 448;
    w[5] = NAN;
    w[6] = 0x1p-9f;
    w[130] = -INFINITY;
    assert_refused(&in, MP_SCHEME_MXFP4, &allow, NULL, MP_ERR_INPUT,
                   "weight [0, 5] is NaN, which the target cannot hold");
    assert_refused(&in, MP_SCHEME_INT8_CHANNEL, &allow, NULL, MP_ERR_INPUT,
                   "weight [0, 5] is NaN, which the target cannot hold");

    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &allow, &stats);
    cr_assert(out.codes[0] == 0x7e && out.codes[5] == 0x7f && out.codes[6] == 1);
    cr_assert(out.codes[130] == 0xfe && out.codes[131] == 0);
    cr_assert(stats.elements == 255 && stats.saturated == 0);
    result_free(&out);

    out = requantize(&in, MP_SCHEME_MXFP8, &allow, NULL);
    cr_assert(out.scales[0] == 127 && out.codes[5] == 0x7f && out.codes[6] == 1);
    result_free(&out);

    memset(&stats, 0, sizeof(stats));
    out = requantize(&in, MP_SCHEME_BF16, &allow, &stats);
    cr_assert(out.codes[2 * 5] == 0xc0 && out.codes[2 * 5 + 1] == 0x7f);
    cr_assert(out.codes[2 * 130] == 0x80 && out.codes[2 * 130 + 1] == 0xff);
    cr_assert(stats.elements == 254 && stats.error_sq == 0);
    result_free(&out);

    w[5] = 1;
    out = requantize(&in, MP_SCHEME_MXFP4, &allow, NULL);
    /* The largest float32 lies just below 4 * 2^126, column 130 in a low nibble. */
    cr_assert(out.scales[4] == 253 && (out.codes[65] & 15) == 14);
    result_free(&out);
}

/* Not by the kernel that encodes BF16 and stops before an Inf. */
Test(requantize_loss, allow_nonfinite_bf16)
{
    const mp_quant_options allow = {.allow_nonfinite = true};
    uint16_t w[64] = {[3] = 0x3f80, [33] = 0xff80, [60] = 0x3f80};
    mp_rows in = {.scheme = MP_SCHEME_BF16, .rows = 1, .cols = 64, .weight = w};
    struct result out = requantize(&in, MP_SCHEME_MXFP4, &allow, NULL);

    cr_assert(out.scales[0] == 125 && out.codes[1] == 0x60);
    cr_assert(out.scales[1] == 253 && out.codes[16] == 0xe0 && out.codes[30] == 0);
    result_free(&out);
}

/* Bytes that pass through do so with whatever is in them, if that is allowed. */
Test(requantize_loss, nonfinite_passes_through)
{
    uint8_t codes[16] = {0x12, 0x34};
    const uint8_t nan_scale = 255;
    const mp_quant_options allow = {.allow_nonfinite = true};
    mp_rows in = mxfp4_rows(codes, &nan_scale, 1, 1);
    mp_quant_stats stats = {0};

    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_INPUT,
                   "scale of weight [0, 0] is NaN");
    struct result out = requantize(&in, MP_SCHEME_MXFP4, &allow, &stats);
    cr_assert_arr_eq(out.codes, codes, 16);
    cr_assert(out.scales[0] == 255 && stats.elements == 0 && stats.error_sq == 0);
    result_free(&out);
}

/* --- what cannot be asked for --- */

Test(requantize_loss, refuses_targets)
{
    static const float w[100];
    mp_rows in = float_rows(w, 1, 100);

    assert_refused(&in, MP_SCHEME_MXFP4, &defaults, NULL, MP_ERR_UNSUPPORTED,
                   "mxfp4 needs columns in multiples of 32, not 100");
    assert_refused(&in, MP_SCHEME_NVFP4, &defaults, NULL, MP_ERR_UNSUPPORTED,
                   "nvfp4 needs columns in multiples of 16, not 100");
    assert_refused(&in, MP_SCHEME_INT4_GROUP, &defaults, NULL, MP_ERR_UNSUPPORTED,
                   "cannot requantize f32 to int4_group");
    assert_refused(&in, MP_SCHEME_F32, &defaults, NULL, MP_ERR_UNSUPPORTED,
                   "cannot requantize f32 to f32");
    in.row0 = 100;
    assert_refused(&in, MP_SCHEME_FP8_BLOCK, &defaults, NULL, MP_ERR_USAGE,
                   "fp8_block from row 100, no multiple of 128");
}

Test(requantize_loss, refuses_options)
{
    static const float w[32] = {1};
    mp_rows in = float_rows(w, 1, 32);
    mp_quant_options options = {.amax_floor = -1};

    assert_refused(&in, MP_SCHEME_MXFP4, &options, NULL, MP_ERR_USAGE,
                   "amax floor -1, expected a finite number from 0 up");
    options.amax_floor = INFINITY;
    assert_refused(&in, MP_SCHEME_MXFP4, &options, NULL, MP_ERR_USAGE,
                   "amax floor inf, expected a finite number from 0 up");
    options = (mp_quant_options){.rounding = (mp_rounding)2};
    assert_refused(&in, MP_SCHEME_MXFP4, &options, NULL, MP_ERR_USAGE, "unknown rounding 2");
    options = (mp_quant_options){.scale_rule = (mp_scale_rule)3};
    assert_refused(&in, MP_SCHEME_MXFP4, &options, NULL, MP_ERR_USAGE, "unknown scale rule 3");
    options = (mp_quant_options){.global_scale = NAN};
    assert_refused(&in, MP_SCHEME_NVFP4, &options, NULL, MP_ERR_USAGE,
                   "global scale nan, expected a finite number from 0 up");
    options = (mp_quant_options){.global_scale = 0};
    assert_refused(&in, MP_SCHEME_NVFP4, &options, NULL, MP_ERR_USAGE,
                   "weights of row 0 under a global scale of 0");
}

Test(requantize_loss, nothing_to_do)
{
    mp_rows in = float_rows(NULL, 0, 352);
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &defaults, NULL);

    result_free(&out);
}

Test(requantize_loss, scratch_is_bounded)
{
    cr_assert_eq(mp_requantize_scratch(352), (352 * 2 + 3) * 4);
    cr_assert_eq(mp_requantize_scratch(UINT64_MAX), UINT64_MAX);
    cr_assert_eq(mp_requantize_scratch(UINT64_MAX / 8), UINT64_MAX);
}
