/* SPDX-License-Identifier: Apache-2.0 */
/* Requantization under scales that are given: of rows, for panels of columns, and of the
 * whole matrix, for nvfp4. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "requantize_call.h"

#include "numeric/kernels.h"
#include "numeric/quantize.h"

static const mp_quant_options defaults = {.rounding = MP_ROUND_DEEPGEMM};

/* --- scales of rows --- */

static int try_scales(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                      float *scales, mp_error *err)
{
    void *work = malloc((size_t)mp_requantize_scratch(in->cols));

    cr_assert(work);
    int rc = mp_rows_channel_scales(in, to, options, work, scales, err);
    free(work);
    return rc;
}

static void channel_scales(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                           float *scales)
{
    mp_error err;

    cr_assert_eq(try_scales(in, to, options, scales, &err), 0, "%s", err.message);
}

/* Rows whose amax lies in ever another column, and one of zeros. */
static void fill(float *w, size_t rows, size_t cols)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++)
            w[r * cols + c] = r == 4 ? 0 : sinf((float)(r * 31 + c * 7)) * ldexpf(1, (int)r - 9);
        if (r != 4)
            w[r * cols + r * 53 % cols] = -ldexpf(1.7f, (int)r - 8);
    }
}

/* A window of columns as a matrix of its own. */
static float *window(const float *w, size_t rows, size_t cols, size_t first, size_t width)
{
    float *out = malloc(rows * width * sizeof(*out));

    cr_assert(out);
    for (size_t r = 0; r < rows; r++)
        memcpy(out + r * width, w + r * cols + first, width * sizeof(*out));
    return out;
}

static void check_panels(mp_scheme to, const mp_quant_options *options)
{
    enum { ROWS = 11, COLS = 331 };
    static float w[ROWS * COLS];
    float scales[ROWS];
    mp_rows whole = float_rows(w, ROWS, COLS);

    fill(w, ROWS, COLS);
    struct result expected = requantize(&whole, to, options, NULL);
    channel_scales(&whole, to, options, scales);
    cr_assert_arr_eq(scales, expected.scales, sizeof(scales));
    for (size_t panel = 1; panel < COLS; panel = panel * 3 + 5) {
        for (size_t first = 0; first < COLS; first += panel) {
            size_t width = COLS - first < panel ? COLS - first : panel;
            float *part = window(w, ROWS, COLS, first, width);
            mp_rows in = float_rows(part, ROWS, width);
            mp_quant_options given = *options;
            mp_quant_stats stats = {0};

            given.row_scales = scales;
            struct result out = requantize(&in, to, &given, &stats);
            for (size_t r = 0; r < ROWS; r++)
                cr_assert_arr_eq(out.codes + r * width, expected.codes + r * COLS + first, width);
            cr_assert_arr_eq(out.scales, scales, sizeof(scales));
            cr_assert(stats.elements == ROWS * width && stats.saturated == 0);
            result_free(&out);
            free(part);
        }
    }
    result_free(&expected);
}

Test(requantize_given, panels_of_columns)
{
    const mp_quant_options floored = {.amax_floor = 0.25f};

    check_panels(MP_SCHEME_INT8_CHANNEL, &defaults);
    check_panels(MP_SCHEME_FP8_CHANNEL, &defaults);
    check_panels(MP_SCHEME_FP8_CHANNEL, &floored);
}

/* Where the scales have been written before, they need not be written again. */
Test(requantize_given, scales_may_stay_where_they_are)
{
    const float w[2 * 3] = {127, -1, 0.5f, 10, 20, 30};
    const float scales[2] = {1, 0.5f};
    const mp_quant_options options = {.row_scales = scales};
    mp_rows in = float_rows(w, 2, 3);
    const int8_t expected[6] = {127, -1, 0, 20, 40, 60};
    mp_quant_stats stats = {0};
    uint8_t codes[6];
    float work[8];
    mp_error err;

    cr_assert_eq(
        mp_requantize(&in, MP_SCHEME_INT8_CHANNEL, &options, codes, NULL, work, &stats, &err), 0);
    cr_assert_arr_eq(codes, expected, 6);
    cr_assert_eq(stats.error_sq, 0.25);
}

/* A scale that is too small saturates, which is counted. */
Test(requantize_given, too_small_a_scale)
{
    const float w[4] = {127.5f, 128, -3e38f, 0};
    const float scales[1] = {1};
    const mp_quant_options options = {.row_scales = scales};
    const int8_t expected[4] = {127, 127, -127, 0};
    mp_rows in = float_rows(w, 1, 4);
    mp_quant_stats stats = {0};
    struct result out = requantize(&in, MP_SCHEME_INT8_CHANNEL, &options, &stats);

    cr_assert_arr_eq(out.codes, expected, 4);
    cr_assert_eq(stats.saturated, 2);
    result_free(&out);
}

/* Rows of the scheme itself keep their scales, which need not be amax / 127. */
Test(requantize_given, scales_of_rows_that_pass_through)
{
    uint8_t codes[3 * 5];
    const uint16_t bf16[3] = {0x3f80, 0x3e01, 0x4123};
    const float own[3] = {1, 0x1.02p-3f, 0x1.46p3f};
    float scales[3];
    mp_rows in = {.scheme = MP_SCHEME_INT8_CHANNEL,
                  .scale_dtype = MP_BF16,
                  .rows = 3,
                  .cols = 5,
                  .weight = codes,
                  .scale = bf16};

    for (size_t i = 0; i < sizeof(codes); i++)
        codes[i] = (uint8_t)(i * 7 + 3);
    channel_scales(&in, MP_SCHEME_INT8_CHANNEL, &defaults, scales);
    cr_assert_arr_eq(scales, own, sizeof(own));
    mp_quant_options options = {.row_scales = scales};
    struct result out = requantize(&in, MP_SCHEME_INT8_CHANNEL, &options, NULL);
    cr_assert_arr_eq(out.codes, codes, sizeof(codes));
    result_free(&out);
    scales[1] *= 2; /* another scale is another matrix of codes */
    out = requantize(&in, MP_SCHEME_INT8_CHANNEL, &options, NULL);
    cr_assert_arr_eq(out.codes, codes, 5);
    for (size_t i = 5; i < 10; i++)
        cr_assert_eq((int8_t)out.codes[i], lrint(codes[i] / 2.0));
    result_free(&out);
}

Test(requantize_given, refuses_scales)
{
    static float w[2 * 32] = {1};
    const float bad[] = {NAN, INFINITY, -1};
    mp_rows in = float_rows(w, 2, 32);
    float scales[2] = {1, 1};
    const mp_quant_options options = {.row_scales = scales};
    struct result out;
    mp_error err;

    in.row0 = 70;
    for (size_t i = 0; i < 3; i++) {
        scales[1] = bad[i];
        cr_assert_eq(try_requantize(&in, MP_SCHEME_FP8_CHANNEL, &options, &out, NULL, &err),
                     MP_ERR_USAGE);
        result_free(&out);
    }
    cr_assert_str_eq(err.message, "scale -1 of row 71, expected a finite number from 0 up");
    cr_assert_eq(try_requantize(&in, MP_SCHEME_MXFP8, &options, &out, NULL, &err), 0);
    result_free(&out); /* which does not read them */
    cr_assert_eq(try_scales(&in, MP_SCHEME_FP8_GROUP, &defaults, scales, &err), MP_ERR_USAGE);
    cr_assert_str_eq(err.message, "fp8_group has no scale for each row");
    w[40] = NAN;
    cr_assert_eq(try_scales(&in, MP_SCHEME_FP8_CHANNEL, &defaults, scales, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "weight [71, 8] is NaN");
}

/* --- the global scale of nvfp4 --- */

static mp_rows nvfp4_rows(const uint8_t *codes, const uint8_t *scales, size_t rows, size_t blocks,
                          float global_scale)
{
    return (mp_rows){.scheme = MP_SCHEME_NVFP4,
                     .scale_dtype = MP_F8_E4M3,
                     .block_rows = 1,
                     .block_cols = 16,
                     .rows = rows,
                     .cols = blocks * 16,
                     .weight = codes,
                     .scale = scales,
                     .global_scale = global_scale};
}

static float e4m3(uint8_t code)
{
    float value;

    mp_kernels_for("scalar")->e4m3_decode(&code, &value, 1);
    return value;
}

/* Every block scale under ratios of global scales. */
Test(requantize_given, nvfp4_under_another_global_scale)
{
    enum { SCALES = 127 };
    static const float ratios[] = {1, 0.5f, 0.25f, 2, 0.875f, 1.5f, 1 / 3.0f, 0x1p-6f, 0x1p-17f};
    uint8_t codes[SCALES * 8];
    uint8_t scales[SCALES];

    for (size_t i = 0; i < SCALES; i++)
        scales[i] = (uint8_t)i;
    for (size_t i = 0; i < sizeof(codes); i++)
        codes[i] = (uint8_t)(i * 59 + 5);
    for (size_t k = 0; k < sizeof(ratios) / sizeof(ratios[0]); k++) {
        const mp_quant_options options = {.global_scale = 0.037f};
        mp_rows in = nvfp4_rows(codes, scales, 1, SCALES, 0.037f * ratios[k]);
        mp_quant_stats stats = {0};
        struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);
        float *before = decode(&in);
        float *after = decode(&out.rows);
        uint64_t changed = 0;

        for (size_t b = 0; b < SCALES; b++) {
            double wanted = (double)e4m3(scales[b]) * in.global_scale;
            bool exact = false;

            for (unsigned code = 0; code < 0x7f && !exact; code++)
                exact = (double)e4m3((uint8_t)code) * options.global_scale == wanted;
            changed += !exact;
            if (!exact)
                continue;
            cr_assert_arr_eq(out.codes + 8 * b, codes + 8 * b, 8, "ratio %zu, block %zu", k, b);
            cr_assert_arr_eq(after + 16 * b, before + 16 * b, 16 * sizeof(*after));
        }
        cr_assert_eq(stats.requantized_blocks, changed);
        cr_assert_eq(changed == 0, k == 0, "ratio %zu: %llu", k, (unsigned long long)changed);
        if (ratios[k] >= 0.25f && ratios[k] <= 1) /* none saturates, few are tiny */
            cr_assert_lt(stats.error_sq, 0.02 * stats.signal_sq);
        free(before);
        free(after);
        result_free(&out);
    }
}

/* Gate and up of one expert take the larger global scale: half of it moves all blocks but
 * those whose scales are too small to be halved. */
Test(requantize_given, nvfp4_reconciles_two_matrices)
{
    uint8_t codes[4 * 8];
    const uint8_t scales[4] = {0x38, 0x07, 0x03, 0x41}; /* 1, 7 * 2^-9, 3 * 2^-9, 2.25 */
    const uint8_t halved[4] = {0x30, 0, 0, 0x39};
    const mp_quant_options options = {.global_scale = 0.75f};
    mp_quant_stats stats = {0};

    for (size_t i = 0; i < sizeof(codes); i++)
        codes[i] = (uint8_t)(0x77 - i % 3);
    memset(codes + 16, 0x88, 8); /* only -0, under any scale */
    mp_rows in = nvfp4_rows(codes, scales, 1, 4, 0.375f);
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);
    cr_assert_eq(stats.requantized_blocks, 1);
    for (size_t b = 0; b < 4; b++) {
        if (b == 1) /* 3.5 steps of 2^-9: its largest element is 6 * 3.5 * 0.75 of these */
            continue;
        cr_assert_arr_eq(out.codes + 8 * b, codes + 8 * b, 8);
        cr_assert_eq(out.scales[b], halved[b]);
    }
    cr_assert_eq(out.scales[1], 4);
    result_free(&out);
}

/* The reciprocal of a global scale that divides, rounded, moves no code. */
Test(requantize_given, nvfp4_global_that_divides)
{
    enum { BLOCKS = 127 };
    uint8_t codes[BLOCKS * 8];
    uint8_t scales[BLOCKS];
    const float divisor = 2911.0f;
    const mp_quant_options options = {.global_scale = 1 / divisor};
    mp_rows in = nvfp4_rows(codes, scales, 1, BLOCKS, divisor);
    mp_quant_stats stats = {0};

    for (size_t i = 0; i < BLOCKS; i++)
        scales[i] = (uint8_t)i;
    for (size_t i = 0; i < sizeof(codes); i++)
        codes[i] = (uint8_t)(i * 59 + 5);
    in.global_divides = true;
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);
    cr_assert_arr_eq(out.codes, codes, sizeof(codes));
    cr_assert_arr_eq(out.scales, scales, sizeof(scales));
    cr_assert_eq(stats.requantized_blocks, 0);
    cr_assert_leq(stats.error_sq, stats.signal_sq * 0x1p-46);
    result_free(&out);
}

/* Half a block of mxfp4 is a block of nvfp4. */
Test(requantize_given, mxfp4_of_ragged_blocks_to_nvfp4)
{
    uint8_t codes[2 * 24];
    const uint8_t exponents[2 * 2] = {120, 118, 119, 121};
    mp_rows in = mxfp4_rows(codes, exponents, 1, 1);
    const mp_quant_options options = {.global_scale = mp_nvfp4_global_exact(121)};
    mp_quant_stats stats = {0};

    for (size_t i = 0; i < sizeof(codes); i++)
        codes[i] = (uint8_t)(i * 77 + 7);
    in.rows = 2;
    in.cols = 48;
    struct result out = requantize(&in, MP_SCHEME_NVFP4, &options, &stats);
    float *before = decode(&in);
    float *after = decode(&out.rows);
    cr_assert_arr_eq(out.codes, codes, sizeof(codes));
    cr_assert_arr_eq(after, before, 2 * 48 * sizeof(*after));
    cr_assert_eq(stats.requantized_blocks, 0);
    free(before);
    free(after);
    result_free(&out);
}
