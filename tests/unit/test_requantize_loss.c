/* SPDX-License-Identifier: Apache-2.0 */
/* Requantization: what it measures, by which kernel, NaN and Inf, and what it refuses. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "golden.h"
#include "requantize_call.h"

#include "numeric/kernels.h"
#include "numeric/quantize.h"

#define GOLDEN "testdata/golden/numerics.safetensors"

static const mp_quant_options defaults = {.rounding = MP_ROUND_DEEPGEMM};

/* --- the kernel mxfp4_loss_bf16 --- */

static const char *const levels[] = {"scalar", "avx2", "avx512", "neon"};

#define EACH_LEVEL(k)                                                              \
    for (size_t level_ = 0; level_ < sizeof(levels) / sizeof(levels[0]); level_++) \
        for (const mp_kernels *k = mp_kernels_for(levels[level_]); k; k = NULL)

static float bf16_value(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;

    memcpy(&value, &wide, sizeof(value));
    return value;
}

static float code_value(const uint8_t *codes, size_t i)
{
    static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    unsigned code = codes[i / 2] >> i % 2 * 4 & 15;

    return code & 8 ? -values[code & 7] : values[code & 7];
}

/* What the kernel gives. */
struct loss {
    double sums[2];
    uint64_t counts[2];
};

/* Element by element in float64. */
static struct loss exact_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                              size_t n)
{
    struct loss loss = {0};

    for (size_t i = 0; i < n; i++) {
        double x = bf16_value(in[i]);
        double scale = ldexp(1, scales[i / 32] - 127);
        double code = code_value(codes, i);

        loss.sums[0] += (code * scale - x) * (code * scale - x);
        loss.sums[1] += x * x;
        loss.counts[0] += fabs(x) > 7 * scale;
        loss.counts[1] += x != 0 && code == 0;
    }
    return loss;
}

/* One group of the header's definition: lanes of 32, then of eight. */
static void add_group(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                      size_t blocks, double lanes[2][8])
{
    float sums[2][32] = {{0}};
    int largest = 0;

    for (size_t b = 0; b < blocks; b++)
        largest = scales[b] > largest ? scales[b] : largest;
    for (size_t i = 0; i < blocks * 32; i++) {
        int below = scales[i / 32] - largest;
        float x = bf16_value(in[i]) * ldexpf(1, 127 - largest);
        float v = code_value(codes, i) * (below < -126 ? 0 : ldexpf(1, below));

        sums[0][i % 32] = fmaf(v - x, v - x, sums[0][i % 32]);
        sums[1][i % 32] = fmaf(x, x, sums[1][i % 32]);
    }
    for (int s = 0; s < 2; s++) {
        for (int j = 0; j < 8; j++) {
            float first = sums[s][2 * j] + sums[s][2 * j + 1];
            float second = sums[s][2 * j + 16] + sums[s][2 * j + 17];

            lanes[s][j] += (double)(first + second) * ldexp(1, 2 * (largest - 127));
        }
    }
}

static struct loss defined_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                size_t n)
{
    struct loss loss = exact_loss(in, codes, scales, n);
    double lanes[2][8] = {{0}};

    for (size_t b = 0; b < n / 32; b += 16)
        add_group(in + 32 * b, codes + 16 * b, scales + b, n / 32 - b < 16 ? n / 32 - b : 16,
                  lanes);
    for (int s = 0; s < 2; s++) {
        const double *l = lanes[s];

        loss.sums[s] = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    }
    return loss;
}

static struct loss loss_of(const mp_kernels *k, const uint16_t *in, const uint8_t *codes,
                           const uint8_t *scales, size_t n)
{
    struct loss loss = {0};

    k->mxfp4_loss_bf16(in, codes, scales, n, loss.sums, loss.counts);
    return loss;
}

static bool same_loss(const struct loss *a, const struct loss *b)
{
    return a->sums[0] == b->sums[0] && a->sums[1] == b->sums[1] && a->counts[0] == b->counts[0] &&
           a->counts[1] == b->counts[1];
}

static uint32_t random_state = 2;

static uint32_t next_random(void)
{
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 8;
}

/* BF16 of about normal distribution whose rows of 32 differ in size, with some zeros. */
static void fill_weights(uint16_t *out, size_t n, int exponents)
{
    for (size_t i = 0; i < n; i++) {
        int exponent = (int)(i / 32 * 7 % (size_t)exponents) - exponents / 2;
        float sum = 0;
        float x;
        uint32_t bits;

        for (int k = 0; k < 4; k++)
            sum += (float)(next_random() % 4096) / 4096 - 0.5f;
        x = ldexpf(sum, exponent);
        memcpy(&bits, &x, sizeof(bits));
        out[i] = (uint16_t)(next_random() % 64 ? bits >> 16 : bits >> 31 << 15);
    }
}

/* Blocks of one size and of sizes far apart, codes of either rule and of none. */
Test(requantize_loss, kernel_adds_as_defined)
{
    enum { N = 32 * 53 };
    static const int ranges[] = {1, 5, 40, 230};
    static uint16_t in[N];
    static uint8_t codes[N / 2];
    static uint8_t scales[N / 32];

    for (int pass = 0; pass < 12; pass++) {
        const mp_quant_options options = {.scale_rule = (mp_scale_rule)(pass % 2)};

        fill_weights(in, N, ranges[pass % 4]);
        mp_kernels_best()->mxfp4_encode_bf16(in, codes, scales, N, &options);
        for (size_t i = 0; i < N / 2 && pass >= 8; i++)
            codes[i] = (uint8_t)next_random();
        for (size_t n = 0; n <= N; n += 32) {
            struct loss expected = defined_loss(in, codes, scales, n);
            struct loss exact = exact_loss(in, codes, scales, n);

            cr_assert_float_eq(expected.sums[0], exact.sums[0], 0x1p-19 * exact.sums[0]);
            cr_assert_float_eq(expected.sums[1], exact.sums[1], 0x1p-19 * exact.sums[1]);
            EACH_LEVEL(k)
            {
                struct loss loss = loss_of(k, in, codes, scales, n);

                cr_assert(same_loss(&loss, &expected), "%s: pass %d, n = %zu", k->level, pass, n);
            }
        }
    }
}

Test(requantize_loss, kernel_adds_to_what_is_there)
{
    const uint16_t in[32] = {0x3f80, 0x4100, 0x3e00}; /* 1, 8, 0.125 */
    const uint8_t codes[16] = {0x72};                 /* 1, 6, 0 */
    const uint8_t scale = 127;

    EACH_LEVEL(k)
    {
        double sums[2] = {10, 20};
        uint64_t counts[2] = {30, 40};

        k->mxfp4_loss_bf16(in, codes, &scale, 0, sums, counts);
        cr_assert(sums[0] == 10 && sums[1] == 20 && counts[0] == 30 && counts[1] == 40);
        k->mxfp4_loss_bf16(in, codes, &scale, 32, sums, counts);
        cr_assert(sums[0] == 10 + 4 + 0.125 * 0.125 && sums[1] == 20 + 65 + 0.125 * 0.125);
        cr_assert(counts[0] == 31 && counts[1] == 41, "%s", k->level);
    }
}

/* Every finite value under every exponent; all codes come by. */
Test(requantize_loss, kernel_counts_all_values_and_exponents)
{
    enum { N = 2 * 0x7f80 };
    static uint16_t in[N];
    static uint8_t codes[N / 2];
    static uint8_t scales[N / 32];

    for (size_t i = 0; i < N; i++)
        in[i] = (uint16_t)(i / 2 | i % 2 << 15);
    for (int e = 1; e <= 254; e++) {
        struct loss expected = {0};
        double limit = ldexp(7, e - 127);

        for (size_t i = 0; i < N / 2; i++)
            codes[i] = (uint8_t)(next_random() >> 3);
        memset(scales, e, sizeof(scales));
        for (size_t i = 0; i < N; i++) {
            expected.counts[0] += fabs((double)bf16_value(in[i])) > limit;
            expected.counts[1] += i > 1 && code_value(codes, i) == 0;
        }
        EACH_LEVEL(k)
        {
            struct loss loss = loss_of(k, in, codes, scales, N);

            if (k == mp_kernels_for("scalar"))
                memcpy(expected.sums, loss.sums, sizeof(loss.sums));
            cr_assert(same_loss(&loss, &expected), "%s: exponent %d", k->level, e);
        }
    }
}

/* --- statistics --- */

/* What mp_requantize measures of BF16 rows, row after row by the scalar kernels. */
static mp_quant_stats scalar_stats(const uint16_t *w, size_t rows, size_t cols,
                                   const mp_quant_options *options)
{
    const mp_kernels *k = mp_kernels_for("scalar");
    uint8_t *codes = malloc(cols / 2);
    uint8_t *scales = malloc(cols / 32);
    mp_quant_stats stats = {.elements = rows * cols};

    for (size_t row = 0; row < rows; row++, w += cols) {
        cr_assert_eq(k->mxfp4_encode_bf16(w, codes, scales, cols, options), cols);
        struct loss loss = loss_of(k, w, codes, scales, cols);

        stats.error_sq += loss.sums[0];
        stats.signal_sq += loss.sums[1];
        stats.saturated += loss.counts[0];
        stats.flushed += loss.counts[1];
    }
    free(codes);
    free(scales);
    return stats;
}

static void assert_same_stats(const mp_quant_stats *a, const mp_quant_stats *b)
{
    cr_assert_eq(a->error_sq, b->error_sq);
    cr_assert_eq(a->signal_sq, b->signal_sq);
    cr_assert_eq(a->elements, b->elements);
    cr_assert_eq(a->saturated, b->saturated);
    cr_assert_eq(a->flushed, b->flushed);
}

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

    /* The same from BF16, which holds these values. */
    uint16_t bf16[64];
    mp_rows same = {.scheme = MP_SCHEME_BF16, .rows = 1, .cols = 64, .weight = bf16};
    mp_quant_stats again = {0};

    mp_kernels_best()->bf16_encode(w, bf16, 64);
    out = requantize(&same, MP_SCHEME_MXFP4, &mse, &again);
    assert_same_stats(&again, &stats);
    result_free(&out);
}

/* The same figures at every level and for tiles of any height, close to those in float64. */
static void check_bf16_to_mxfp4(const char *level)
{
    enum { ROWS = 23, COLS = 1120 }; /* two groups of 16 blocks, and three blocks */
    static uint16_t w[ROWS * COLS];

    setenv("MOEPACK_CPU", level, 1);
    fill_weights(w, ROWS * COLS, 12);
    for (int rule = MP_SCALE_CEIL; rule <= MP_SCALE_MSE; rule++) {
        const mp_quant_options options = {.scale_rule = (mp_scale_rule)rule};
        mp_quant_stats expected = scalar_stats(w, ROWS, COLS, &options);

        for (size_t height = 1; height <= ROWS; height += 5) {
            mp_quant_stats stats = {0};
            struct loss exact = {0};

            for (size_t row = 0; row < ROWS; row += height) {
                mp_rows in = {.scheme = MP_SCHEME_BF16,
                              .row0 = row,
                              .rows = ROWS - row < height ? ROWS - row : height,
                              .cols = COLS,
                              .weight = w + row * COLS};
                struct result out = requantize(&in, MP_SCHEME_MXFP4, &options, &stats);
                struct loss tile =
                    exact_loss(in.weight, out.codes, out.scales, (size_t)in.rows * COLS);

                exact.sums[0] += tile.sums[0];
                exact.sums[1] += tile.sums[1];
                result_free(&out);
            }
            assert_same_stats(&stats, &expected);
            cr_assert_float_eq(stats.error_sq, exact.sums[0], 1e-7 * exact.sums[0]);
            cr_assert_float_eq(stats.signal_sq, exact.sums[1], 1e-7 * exact.sums[1]);
        }
        cr_assert_gt(expected.flushed, ROWS * COLS / 50);
        cr_assert_eq(expected.saturated > 0, rule == MP_SCALE_MSE);
    }
}

Test(requantize_loss, stats_of_bf16_to_mxfp4)
{
    check_bf16_to_mxfp4("");
}

Test(requantize_loss, stats_of_bf16_to_mxfp4_scalar)
{
    check_bf16_to_mxfp4("scalar");
}

Test(requantize_loss, stats_of_bf16_to_mxfp4_avx2)
{
    check_bf16_to_mxfp4("avx2");
}

/* A row with an Inf goes another way, in which it counts as the largest float32. */
Test(requantize_loss, stats_of_bf16_rows_with_and_without_inf)
{
    enum { COLS = 96 };
    const mp_quant_options allow = {.allow_nonfinite = true};
    uint16_t w[3 * COLS];
    mp_rows in = {.scheme = MP_SCHEME_BF16, .rows = 3, .cols = COLS, .weight = w};
    mp_quant_stats stats = {0};

    fill_weights(w, 3 * COLS, 3);
    w[COLS + 40] = 0xff80;
    mp_quant_stats first = scalar_stats(w, 1, COLS, &allow);
    mp_quant_stats last = scalar_stats(w + 2 * COLS, 1, COLS, &allow);
    struct result out = requantize(&in, MP_SCHEME_MXFP4, &allow, &stats);
    cr_assert_eq(stats.elements, 3 * COLS);
    cr_assert_geq(stats.flushed, first.flushed + last.flushed + 30); /* that Inf's neighbours */
    cr_assert(out.scales[4] == 253 && (out.codes[(COLS + 40) / 2] & 15) == 14);
    cr_assert_float_eq(stats.signal_sq, (double)FLT_MAX * FLT_MAX, 1e-7 * FLT_MAX * FLT_MAX);
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
                   "fp8_block from row 100, not a multiple of 128");
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
    cr_assert_eq(mp_requantize_scratch(352), (352 * 2 + 3) * 4 + 3);
    cr_assert_eq(mp_requantize_scratch(UINT64_MAX), UINT64_MAX);
    cr_assert_eq(mp_requantize_scratch(UINT64_MAX / 8), UINT64_MAX);
}
