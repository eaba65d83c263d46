/* SPDX-License-Identifier: Apache-2.0 */
/* MX to fp8_block: tiles that stay what they are, and those that cannot. */
#include "numeric/kernels.h"
#include "requantize_call.h"

#include <math.h>

#include "numeric/quantize.h"

#define ROWS   200 /* of tiles of 128 and of 72 */
#define BLOCKS 11  /* of tiles of 4, 4 and 3 */
#define COLS   (BLOCKS * 32)
#define TILES  3
#define BANDS  2

static struct {
    uint8_t codes[ROWS * COLS];
    uint8_t exponents[ROWS * BLOCKS];
} source;

static const mp_quant_options plain;

static uint32_t draw(uint32_t below)
{
    static uint32_t state = 2463534242u;

    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

/* All codes, and exponents from `least` on, up to `spread` apart. */
static mp_rows make_source(mp_scheme scheme, unsigned least, unsigned spread)
{
    bool fp4 = scheme == MP_SCHEME_MXFP4;

    for (size_t i = 0; i < sizeof source.codes; i++) {
        source.codes[i] = (uint8_t)draw(256);
        if (!fp4 && (source.codes[i] & 0x7f) == 0x7f)
            source.codes[i] ^= 1; /* no NaN */
    }
    for (size_t i = 0; i < sizeof source.exponents; i++)
        source.exponents[i] = (uint8_t)(least + draw(spread + 1));
    return (mp_rows){.scheme = scheme,
                     .scale_dtype = MP_F8_E8M0,
                     .block_rows = 1,
                     .block_cols = 32,
                     .rows = ROWS,
                     .cols = COLS,
                     .weight = source.codes,
                     .scale = source.exponents};
}

static uint8_t *exponent_at(size_t row, size_t block)
{
    return &source.exponents[row * BLOCKS + block];
}

/* The largest exponent of a tile. */
static int largest_of(size_t band, size_t tile)
{
    int largest = 0;

    for (size_t row = band * 128; row < ROWS && row < (band + 1) * 128; row++)
        for (size_t b = tile * 4; b < BLOCKS && b < (tile + 1) * 4; b++)
            largest = *exponent_at(row, b) > largest ? *exponent_at(row, b) : largest;
    return largest;
}

/* The code of a number that E4M3 holds: sign, exponent and mantissa as its definition has them. */
static uint8_t e4m3_of(double x)
{
    uint8_t sign = signbit(x) ? 0x80 : 0;
    int exponent;
    double fraction = frexp(fabs(x), &exponent); /* 0.5 .. 1 */

    if (x == 0)
        return sign;
    if (exponent < -5)
        return sign | (uint8_t)ldexp(fabs(x), 9);
    return sign | (uint8_t)((exponent + 6) << 3 | (int)((fraction - 0.5) * 16));
}

static double e2m1_value(size_t row, size_t col)
{
    static const double magnitudes[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    uint8_t byte = source.codes[(row * COLS + col) / 2];
    uint8_t code = col % 2 ? byte >> 4 : byte & 15;

    return code & 8 ? -magnitudes[code & 7] : magnitudes[code];
}

static double e4m3_value(size_t row, size_t col)
{
    uint8_t code = source.codes[row * COLS + col];
    int exponent = code >> 3 & 15, mantissa = code & 7;
    double x = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);

    return code & 0x80 ? -x : x;
}

/* Every scale and code by the formulas. */
static void expect_formulas(const mp_rows *in, int headroom)
{
    struct result out;
    mp_quant_stats stats = {0};
    const float *scales;

    out = requantize(in, MP_SCHEME_FP8_BLOCK, &plain, &stats);
    scales = (const float *)(const void *)out.scales;
    for (size_t row = 0; row < ROWS; row++)
        for (size_t col = 0; col < COLS; col++) {
            int largest = largest_of(row / 128, col / 128);
            int below = *exponent_at(row, col / 32) - largest;
            double x = in->scheme == MP_SCHEME_MXFP4 ? e2m1_value(row, col) : e4m3_value(row, col);

            cr_assert_eq(scales[row / 128 * TILES + col / 128],
                         ldexpf(1, largest - 127 - headroom));
            cr_assert_eq(out.codes[row * COLS + col], e4m3_of(ldexp(x, below + headroom)),
                         "row %zu, column %zu: %g, %d below", row, col, x, below);
        }
    cr_assert_eq(stats.requantized_blocks, 0);
    cr_assert_eq(stats.error_sq, 0);
    cr_assert_eq(stats.saturated + stats.flushed, 0);
    cr_assert_eq(stats.elements, ROWS * COLS);
    cr_assert_gt(stats.signal_sq, 0);
    result_free(&out);
}

Test(requantize_exact, mxfp4_keeps_every_value)
{
    mp_rows in = make_source(MP_SCHEME_MXFP4, 100, 14);

    expect_formulas(&in, 6);
    in = make_source(MP_SCHEME_MXFP4, 1, 6); /* every tile has a 7 */
    expect_formulas(&in, 6);
    in = make_source(MP_SCHEME_MXFP4, 238, 14);
    expect_formulas(&in, 6);
}

/* Where non-finite numbers may be, every element is looked at, and no map taken. */
Test(requantize_exact, a_map_of_codes_gives_what_looking_at_every_element_gives)
{
    static const mp_quant_options looks = {.allow_nonfinite = true};
    static const uint64_t widths[] = {COLS, COLS - 26, 96, 34,
                                      2};                      /* with parts of blocks, of tiles */
    static const unsigned leasts[] = {0, 1, 6, 100, 235, 237}; /* up to 252: finite */

    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (size_t l = 0; l < sizeof leasts / sizeof *leasts; l++)
            for (unsigned spread = 0; spread <= 15; spread += 3) {
                mp_rows in = make_source(MP_SCHEME_MXFP4, leasts[l], spread);
                mp_quant_stats mapped = {0}, looked = {0};
                struct result a, b;

                in.cols = widths[w];
                a = requantize(&in, MP_SCHEME_FP8_BLOCK, &plain, &mapped);
                b = requantize(&in, MP_SCHEME_FP8_BLOCK, &looks, &looked);
                cr_assert_arr_eq(a.codes, b.codes, ROWS * widths[w]);
                cr_assert_arr_eq(a.scales, b.scales,
                                 scale_bytes(MP_SCHEME_FP8_BLOCK, ROWS, widths[w]));
                cr_assert_eq(memcmp(&mapped, &looked, sizeof mapped), 0);
                result_free(&a);
                result_free(&b);
            }
}

/* What the codes themselves add up to is what their values do, as the kernel adds them: `apart`
 * are the exponents of neighbouring tiles, too many for float64 to be exact if large. */
static void expect_signal(unsigned apart, size_t cols)
{
    const mp_kernels *scalar = mp_kernels_for("scalar");
    mp_rows in = make_source(MP_SCHEME_MXFP4, 60, 14);
    mp_quant_stats stats = {0};
    size_t blocks = (cols + 31) / 32;
    double expected = 0;

    for (size_t i = 0; i < sizeof source.exponents; i++)
        source.exponents[i] += (uint8_t)(i % blocks / 4 * apart);
    in.cols = cols;

    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &plain, &stats);
    float *values = decode(&in);

    for (size_t row = 0; row < ROWS; row++) {
        double sums[2] = {0};

        scalar->error_sums(values + row * cols, values + row * cols, cols, sums);
        expected += sums[1];
    }
    cr_assert(expected > 0 && stats.requantized_blocks == 0);
    cr_assert_eq(stats.signal_sq, expected, "%u apart, %zu columns", apart, cols);
    cr_assert(stats.error_sq == 0 && stats.elements == ROWS * cols && stats.flushed == 0);
    free(values);
    result_free(&out);
}

Test(requantize_exact, signal_of_a_map_of_codes)
{
    for (unsigned apart = 0; apart <= 50; apart += apart < 4 ? 1 : 23) {
        expect_signal(apart, COLS);
        expect_signal(apart, COLS - 6); /* a ragged block */
        expect_signal(apart, 2);
    }
}

Test(requantize_exact, blocks_of_zeros_may_be_anywhere_but_count_for_the_scale)
{
    mp_rows in = make_source(MP_SCHEME_MXFP4, 100, 9);

    memset(&source.codes[(17 * BLOCKS + 2) * 16], 0x80, 16); /* zeros, some of them negative */
    *exponent_at(17, 2) = 114;
    memset(&source.codes[(18 * BLOCKS + 3) * 16], 0x08, 16);
    *exponent_at(18, 3) = 3;
    expect_formulas(&in, 6);
}

Test(requantize_exact, mxfp8_keeps_what_stays_above_the_subnormals)
{
    mp_rows in = make_source(MP_SCHEME_MXFP8, 120, 5);

    /* Multiples of 2^-9 under the smallest exponent, shifted by 5 at most. */
    for (size_t i = 0; i < sizeof source.codes; i++)
        if ((source.codes[i] & 0x78) < 6 << 3)
            source.codes[i] |= 6 << 3;
    expect_formulas(&in, 0);
}

/* The tile [1, 2] is requantized like its values in float32, those of mxfp8 under a power of two;
 * the others stay exact. */
static void expect_one_requantized(const mp_rows *in)
{
    mp_quant_stats stats = {0}, again = {0};
    float *values = decode(in);
    mp_rows floats = float_rows(values, ROWS, COLS);
    const mp_quant_options options = {.ue8m0 = in->scheme == MP_SCHEME_MXFP8};
    struct result out, want;

    out = requantize(in, MP_SCHEME_FP8_BLOCK, &plain, &stats);
    want = requantize(&floats, MP_SCHEME_FP8_BLOCK, &options, &again);
    float *got = decode(&out.rows), *other = decode(&want.rows);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t col = 0; col < COLS; col++) {
            size_t i = row * COLS + col;

            cr_assert_eq(got[i], row >= 128 && col >= 256 ? other[i] : values[i],
                         "row %zu, column %zu: %g", row, col, (double)values[i]);
        }
    cr_assert_eq(memcmp(out.scales + 20, want.scales + 20, 4), 0);
    cr_assert_eq(stats.requantized_blocks, 1);
    cr_assert_gt(stats.error_sq, 0);
    cr_assert_eq(again.requantized_blocks, 0);
    result_free(&out);
    result_free(&want);
    free(values);
    free(got);
    free(other);
}

Test(requantize_exact, mxfp4_of_exponents_too_far_apart)
{
    mp_rows in = make_source(MP_SCHEME_MXFP4, 107, 7);

    *exponent_at(ROWS - 1, 9) = 115;
    *exponent_at(130, 8) = 115 - 15;
    expect_one_requantized(&in);
}

Test(requantize_exact, mxfp4_of_exponents_too_small)
{
    mp_rows in = make_source(MP_SCHEME_MXFP4, 1, 5);
    mp_quant_stats stats = {0};

    for (size_t tile = 0; tile < TILES; tile++)
        for (size_t band = 0; band < BANDS; band++)
            *exponent_at(band * 150, tile * 4) = 7;
    *exponent_at(150, 8) = 6;
    struct result out = requantize(&in, MP_SCHEME_FP8_BLOCK, &plain, &stats);
    cr_assert_eq(stats.requantized_blocks, 1);
    result_free(&out);
}

Test(requantize_exact, mxfp8_that_falls_between_the_subnormals)
{
    mp_rows in = make_source(MP_SCHEME_MXFP8, 120, 0);

    *exponent_at(160, 10) = 119;
    source.codes[160 * COLS + 10 * 32 + 5] = 0x09; /* 9 * 2^-9, of which half is none */
    expect_one_requantized(&in);
    in = make_source(MP_SCHEME_MXFP8, 120, 0);
    *exponent_at(160, 10) = 20; /* 2^-100 of the others: below every code */
    expect_one_requantized(&in);
}

Test(requantize_exact, in_two_steps_as_in_one)
{
    mp_rows in = make_source(MP_SCHEME_MXFP4, 110, 8);
    struct result eight = requantize(&in, MP_SCHEME_MXFP8, &plain, NULL);
    struct result two, one = requantize(&in, MP_SCHEME_FP8_BLOCK, &plain, NULL);
    mp_quant_stats stats = {0};
    float *a, *b;

    two = requantize(&eight.rows, MP_SCHEME_FP8_BLOCK, &plain, &stats);
    a = decode(&one.rows);
    b = decode(&two.rows);
    cr_assert_eq(memcmp(a, b, sizeof(float) * ROWS * COLS), 0);
    cr_assert_eq(stats.requantized_blocks, 0);
    free(a);
    free(b);
    result_free(&eight);
    result_free(&two);
    result_free(&one);
}

/* What was let through is no 4-bit number any more. */
Test(requantize_exact, infinite_weights_are_refused_or_requantized)
{
    const mp_quant_options allow = {.allow_nonfinite = true};
    mp_rows in = make_source(MP_SCHEME_MXFP4, 240, 2);
    mp_quant_stats stats = {0};
    struct result out;
    mp_error err;

    *exponent_at(140, 9) = 254;
    source.codes[(140 * COLS + 9 * 32) / 2] = 0x07;
    cr_assert_eq(try_requantize(&in, MP_SCHEME_FP8_BLOCK, &plain, &out, NULL, &err), MP_ERR_INPUT);
    result_free(&out);
    out = requantize(&in, MP_SCHEME_FP8_BLOCK, &allow, &stats);
    cr_assert_eq(stats.requantized_blocks, 1);
    result_free(&out);
    in = make_source(MP_SCHEME_MXFP4, 120, 2);
    *exponent_at(3, 1) = 255;
    stats = (mp_quant_stats){0};
    out = requantize(&in, MP_SCHEME_FP8_BLOCK, &allow, &stats);
    cr_assert_eq(stats.requantized_blocks, 1);
    cr_assert_eq(out.codes[3 * COLS + 40] & 0x7f, 0x7f);
    result_free(&out);
}
