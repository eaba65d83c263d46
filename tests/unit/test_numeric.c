/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of every level against golden codes, against every code of a format,
 * and against a search for the nearest value that knows nothing of bit tricks. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "golden.h"

#include "numeric/kernels.h"

#define GOLDEN "testdata/golden/numerics.safetensors"
#define CHUNK  4096 /* elements that a sweep encodes at a time */

static const char *const levels[] = {"scalar", "avx2", "avx512", "neon"};

#define EACH_LEVEL(k)                                                              \
    for (size_t level_ = 0; level_ < sizeof(levels) / sizeof(levels[0]); level_++) \
        for (const mp_kernels *k = mp_kernels_for(levels[level_]); k; k = NULL)

static const mp_quant_options ceil_deepgemm = {.rounding = MP_ROUND_DEEPGEMM};
static const mp_quant_options ceil_ocp = {.rounding = MP_ROUND_OCP};

static float from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

static uint32_t to_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static const float e2m1_values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

static float e2m1_value(unsigned code)
{
    return code & 8 ? -e2m1_values[code & 7] : e2m1_values[code & 7];
}

/* From the definition of the format, for codes that are not NaN. */
static float e4m3_value(unsigned code)
{
    int exponent = code >> 3 & 15;
    float fraction = (float)(code & 7) / 8;
    float magnitude = exponent ? ldexpf(1 + fraction, exponent - 7) : ldexpf(fraction, -6);

    return code & 0x80 ? -magnitude : magnitude;
}

Test(kernels, levels)
{
    cr_assert_str_eq(mp_kernels_for("scalar")->level, "scalar");
    cr_assert_null(mp_kernels_for("avx9"));
    cr_assert_null(mp_kernels_for(""));
    EACH_LEVEL(k)
    {
        cr_assert_str_eq(k->level, levels[level_]);
    }
    cr_assert_eq(mp_kernels_best(), mp_kernels_best());
}

/* Every test is a process of its own, so that each can choose once. */
Test(kernels, level_by_name)
{
    setenv("MOEPACK_CPU", "scalar", 1);
    cr_assert_str_eq(mp_kernels_best()->level, "scalar");
}

Test(kernels, unknown_level_is_scalar)
{
    setenv("MOEPACK_CPU", "sse9", 1);
    cr_assert_str_eq(mp_kernels_best()->level, "scalar");
}

Test(kernels, empty_level_is_the_fastest)
{
    const mp_kernels *fastest = mp_kernels_for("scalar");

    EACH_LEVEL(k)
    {
        fastest = k; /* named from slow to fast; no processor has both avx512 and neon */
    }
    setenv("MOEPACK_CPU", "", 1);
    cr_assert_eq(mp_kernels_best(), fastest);
}

Test(kernels, bf16_all_codes)
{
    static uint16_t codes[65536];
    static float values[65536];
    static uint16_t again[65536];

    for (uint32_t i = 0; i < 65536; i++)
        codes[i] = (uint16_t)i;
    EACH_LEVEL(k)
    {
        k->bf16_decode(codes, values, 65536);
        k->bf16_encode(values, again, 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            bool nan = (i & 0x7fff) > 0x7f80;

            cr_assert_eq(to_bits(values[i]), i << 16, "%s: %#x", k->level, i);
            cr_assert_eq(again[i], nan ? i | 0x40 : i, "%s: %#x", k->level, i);
        }
    }
}

Test(kernels, e4m3_all_codes)
{
    golden_file *golden = golden_open(GOLDEN);
    const float *expected = golden_tensor(golden, "e4m3_decoded", NULL);
    uint8_t codes[256];
    uint8_t again[256];
    float values[256];

    for (unsigned i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    EACH_LEVEL(k)
    {
        k->e4m3_decode(codes, values, 256);
        k->e4m3_encode(values, again, 256);
        cr_assert_arr_eq(again, codes, 256);
        for (unsigned i = 0; i < 256; i++) {
            if ((i & 0x7f) == 0x7f) {
                cr_assert_eq(to_bits(values[i]), (i & 0x80) << 24 | 0x7fc00000);
                continue;
            }
            cr_assert_eq(to_bits(values[i]), to_bits(expected[i]), "%s: %#x", k->level, i);
            cr_assert_eq(to_bits(values[i]), to_bits(e4m3_value(i)), "%s: %#x", k->level, i);
        }
    }
    golden_close(golden);
}

Test(kernels, ue8m0_all_codes)
{
    uint8_t codes[256];
    uint8_t again[256];
    float values[256];

    for (unsigned i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    EACH_LEVEL(k)
    {
        k->ue8m0_decode(codes, values, 256);
        k->ue8m0_encode(values, again, 256);
        for (int i = 0; i < 255; i++) {
            cr_assert_eq(values[i], ldexpf(1, i - 127), "%s: %d", k->level, i);
            cr_assert_eq(again[i], i < 1 ? 1 : i, "%s: %d", k->level, i);
        }
        cr_assert_eq(to_bits(values[255]), 0x7fc00000);
    }
}

Test(kernels, e2m1_all_bytes)
{
    uint8_t codes[256];
    uint8_t again[256];
    float values[512];

    for (unsigned i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    EACH_LEVEL(k)
    {
        k->e2m1_decode(codes, values, 512);
        for (unsigned i = 0; i < 256; i++) {
            cr_assert_eq(to_bits(values[2 * i]), to_bits(e2m1_value(i & 15)));
            cr_assert_eq(to_bits(values[2 * i + 1]), to_bits(e2m1_value(i >> 4)));
        }
        k->e2m1_encode(values, again, 512, MP_ROUND_OCP);
        cr_assert_arr_eq(again, codes, 256);
        k->e2m1_encode(values, again, 512, MP_ROUND_DEEPGEMM);
        for (unsigned i = 0; i < 256; i++) {
            unsigned low = (i & 15) == 8 ? 0 : i & 15;
            unsigned high = i >> 4 == 8 ? 0 : i >> 4;

            cr_assert_eq(again[i], high << 4 | low, "%s: %#x", k->level, i);
        }
    }
}

/* Packed codes against golden ones, one a byte. */
static void assert_codes(const uint8_t *packed, const uint8_t *expected, size_t n,
                         const char *level)
{
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(packed[i / 2] >> i % 2 * 4 & 15, expected[i], "%s: element %zu", level, i);
}

Test(kernels, golden_codes)
{
    golden_file *golden = golden_open(GOLDEN);
    size_t bytes;
    const float *x = golden_tensor(golden, "x", &bytes);
    size_t n = bytes / sizeof(*x);
    uint16_t *halves = malloc(n * sizeof(*halves));
    uint8_t *codes = malloc(n);
    float *magnitudes = malloc(n * sizeof(*magnitudes));

    for (size_t i = 0; i < n; i++)
        magnitudes[i] = fabsf(x[i]);
    EACH_LEVEL(k)
    {
        k->bf16_encode(x, halves, n);
        cr_assert_arr_eq(halves, golden_tensor(golden, "bf16", NULL), n * sizeof(*halves));
        k->e4m3_encode(x, codes, n);
        cr_assert_arr_eq(codes, golden_tensor(golden, "e4m3", NULL), n);
        k->ue8m0_encode(magnitudes, codes, n);
        cr_assert_arr_eq(codes, golden_tensor(golden, "ue8m0_ceil_of_abs", NULL), n);
        k->e2m1_encode(x, codes, n, MP_ROUND_DEEPGEMM);
        assert_codes(codes, golden_tensor(golden, "e2m1_deepgemm", NULL), n, k->level);
        k->e2m1_encode(x, codes, n, MP_ROUND_OCP);
        assert_codes(codes, golden_tensor(golden, "e2m1_ocp", NULL), n, k->level);
    }
    free(halves);
    free(codes);
    free(magnitudes);
    golden_close(golden);
}

/* Magnitudes: the patterns around the midpoint of each pair of neighbours in a table
 * of values, and every 1021st bit pattern of float32. */
struct sweep {
    uint32_t *bits;
    size_t count;
};

static struct sweep make_sweep(const float *values, size_t count)
{
    struct sweep sweep = {malloc((0x7f800000 / 1021 + 1 + 5 * count) * sizeof(uint32_t)), 0};

    cr_assert(sweep.bits);
    for (size_t i = 0; i + 1 < count; i++) {
        uint32_t middle = to_bits((values[i] + values[i + 1]) / 2);

        for (int d = -2; d <= 2; d++)
            sweep.bits[sweep.count++] = middle + (uint32_t)d;
    }
    for (uint32_t bits = 0; bits < 0x7f800000; bits += 1021)
        sweep.bits[sweep.count++] = bits;
    return sweep;
}

/* Index of the value nearest to x. *at is where the search begins, and becomes the
 * largest index whose value is not above x. */
static unsigned nearest(const float *values, unsigned count, float x, unsigned *at,
                        bool ties_to_even)
{
    while (values[*at] > x)
        (*at)--;
    while (*at + 1 < count && values[*at + 1] <= x)
        (*at)++;
    if (*at + 1 == count)
        return *at;
    double below = (double)x - values[*at];
    double above = (double)values[*at + 1] - x;
    if (below == above)
        return ties_to_even ? *at + (*at & 1) : *at;
    return below < above ? *at : *at + 1;
}

Test(kernels, e4m3_is_nearest)
{
    float values[0x7f];

    for (unsigned i = 0; i < 0x7f; i++)
        values[i] = e4m3_value(i);
    struct sweep sweep = make_sweep(values, 0x7f);
    EACH_LEVEL(k)
    {
        static float in[CHUNK];
        static uint8_t out[CHUNK];
        unsigned at = 0;

        for (size_t first = 0; first < sweep.count; first += CHUNK) {
            size_t n = sweep.count - first < CHUNK ? sweep.count - first : CHUNK;

            for (size_t i = 0; i < n; i++)
                in[i] = from_bits(sweep.bits[first + i] | (uint32_t)(i & 1) << 31);
            k->e4m3_encode(in, out, n);
            for (size_t i = 0; i < n; i++) {
                unsigned code = nearest(values, 0x7f, fabsf(in[i]), &at, true);

                if (out[i] != (code | (i & 1) << 7))
                    cr_assert_fail("%s: %a is %#x", k->level, (double)in[i], out[i]);
            }
        }
    }
    free(sweep.bits);
}

static void check_e2m1(const mp_kernels *k, const struct sweep *sweep, mp_rounding rounding)
{
    static float in[CHUNK];
    static uint8_t out[CHUNK / 2];
    bool ocp = rounding == MP_ROUND_OCP;
    unsigned at = 0;

    for (size_t first = 0; first + CHUNK <= sweep->count; first += CHUNK) {
        for (size_t i = 0; i < CHUNK; i++)
            in[i] = from_bits(sweep->bits[first + i] | (uint32_t)(i & 1) << 31);
        k->e2m1_encode(in, out, CHUNK, rounding);
        for (size_t i = 0; i < CHUNK; i++) {
            unsigned code = nearest(e2m1_values, 8, fabsf(in[i]), &at, ocp);

            if (i & 1 && (code || ocp))
                code |= 8;
            if ((out[i / 2] >> i % 2 * 4 & 15) != code)
                cr_assert_fail("%s: %a is not %u", k->level, (double)in[i], code);
        }
    }
}

Test(kernels, e2m1_is_nearest)
{
    struct sweep sweep = make_sweep(e2m1_values, 8);

    EACH_LEVEL(k)
    {
        check_e2m1(k, &sweep, MP_ROUND_DEEPGEMM);
        check_e2m1(k, &sweep, MP_ROUND_OCP);
    }
    free(sweep.bits);
}

/* BF16 patterns are upper halves of float32, so the neighbours of a value are its
 * own upper half and the next one; both differences are exact in float64. */
static uint16_t nearest_bf16(uint32_t bits)
{
    uint32_t lower = bits & 0xffff0000;
    double x = from_bits(bits & 0x7fffffff);
    double below = x - from_bits(lower & 0x7fffffff);
    double next =
        (lower & 0x7fffffff) == 0x7f7f0000 ? 0x1p128 : from_bits((lower & 0x7fffffff) + 0x10000);
    bool up = below > next - x || (below == next - x && lower & 0x10000);

    return (uint16_t)((lower >> 16) + up);
}

Test(kernels, bf16_is_nearest)
{
    EACH_LEVEL(k)
    {
        static float in[CHUNK];
        static uint16_t out[CHUNK];

        /* The stride is odd, so all low halves occur, ties among them. */
        for (uint64_t first = 0; first < 0xff800000; first += CHUNK * 0x301) {
            for (size_t i = 0; i < CHUNK; i++) {
                uint32_t bits = (uint32_t)(first + i * 0x301);
                bool finite = (bits & 0x7fffffff) < 0x7f800000;

                in[i] = from_bits(finite ? bits : bits & 0x80007fff);
            }
            k->bf16_encode(in, out, CHUNK);
            for (size_t i = 0; i < CHUNK; i++) {
                if (out[i] != nearest_bf16(to_bits(in[i])))
                    cr_assert_fail("%s: %a is %#x", k->level, (double)in[i], out[i]);
            }
        }
    }
}

Test(kernels, values_that_are_not_finite)
{
    const uint32_t bits[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xff800001, 0x7fffffff, 0};
    const uint16_t bf16[] = {0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x7fff, 0};
    const uint8_t e4m3[] = {0x7e, 0xfe, 0x7f, 0xff, 0x7f, 0};
    const uint8_t e2m1[] = {0xf7, 0xf7, 0x07};
    float in[6 * 11];
    uint16_t halves[6 * 11];
    uint8_t codes[6 * 11];

    /* Often enough to fill every vector. */
    for (size_t i = 0; i < 6 * 11; i++)
        in[i] = from_bits(bits[i % 6]);
    EACH_LEVEL(k)
    {
        k->bf16_encode(in, halves, 6 * 11);
        for (size_t i = 0; i < 6 * 11; i++)
            cr_assert_eq(halves[i], bf16[i % 6], "%s: element %zu", k->level, i);
        k->e4m3_encode(in, codes, 6 * 11);
        for (size_t i = 0; i < 6 * 11; i++)
            cr_assert_eq(codes[i], e4m3[i % 6], "%s: element %zu", k->level, i);
        k->e2m1_encode(in, codes, 6 * 11, MP_ROUND_OCP);
        for (size_t i = 0; i < 3 * 11; i++)
            cr_assert_eq(codes[i], e2m1[i % 3], "%s: byte %zu", k->level, i);
        cr_assert_geq(k->amax_bits(in, 6 * 11), 0x7f800000);
    }
}

Test(kernels, amax_and_scale)
{
    float in[77];
    float out[77];

    for (int i = 0; i < 77; i++)
        in[i] = (float)((i * 31) % 77 - 40) * 0x1p-130f; /* -40..36, subnormal */
    EACH_LEVEL(k)
    {
        cr_assert_eq(k->amax_bits(in, 0), 0);
        cr_assert_eq(k->amax_bits(in, 77), to_bits(40 * 0x1p-130f));
        k->scale(in, 3 * 0x1p100f, out, 77);
        for (int i = 0; i < 77; i++)
            cr_assert_eq(out[i], (float)((i * 31) % 77 - 40) * (3 * 0x1p-30f));
        k->scale(out, 0.5f, out, 77); /* in place */
        cr_assert_eq(out[76], (float)((76 * 31) % 77 - 40) * (3 * 0x1p-31f));
    }
}

/* Lanes and their order as the header says, which float64 rounding tells apart. */
static void sums_in_lane_order(const float *a, const float *b, size_t n, double sums[2])
{
    double error[8] = {0};
    double signal[8] = {0};

    for (size_t i = 0; i < n; i++) {
        error[i % 8] += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        signal[i % 8] += (double)b[i] * b[i];
    }
    sums[0] += ((error[0] + error[4]) + (error[2] + error[6])) +
               ((error[1] + error[5]) + (error[3] + error[7]));
    sums[1] += ((signal[0] + signal[4]) + (signal[2] + signal[6])) +
               ((signal[1] + signal[5]) + (signal[3] + signal[7]));
}

Test(kernels, error_sums_in_lane_order)
{
    enum { N = 107 };
    float a[N];
    float b[N];

    for (int i = 0; i < N; i++) {
        b[i] = sinf((float)i) * ldexpf(1, i % 23);
        a[i] = b[i] + cosf((float)i);
    }
    EACH_LEVEL(k)
    {
        for (size_t n = 0; n <= N; n++) {
            double expected[2] = {1, 2};
            double sums[2] = {1, 2};

            sums_in_lane_order(a, b, n, expected);
            k->error_sums(a, b, n, sums);
            cr_assert(sums[0] == expected[0] && sums[1] == expected[1], "%s: n = %zu", k->level, n);
        }
    }
}

/* Codes under a scale of 0.5 and a global one of 2, beyond a limit of 4, flushed by thirds. */
Test(kernels, loss_of_scaled_codes)
{
    enum { N = 107 };
    float original[N];
    float decoded[N];
    const float scales[7] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};
    const float limits[7] = {4, 4, 4, 4, 4, 4, 4};

    for (int i = 0; i < N; i++) {
        original[i] = (float)(i % 13 - 6); /* -6..6 */
        decoded[i] = i % 3 ? original[i] + 0.25f : -0.0f;
    }
    EACH_LEVEL(k)
    {
        uint64_t above = 0;
        uint64_t flushed = 0;

        for (size_t n = 0; n <= N; n++) {
            mp_loss loss = {.saturated = 7, .flushed = 9};
            double sums[2] = {0};

            sums_in_lane_order(decoded, original, n, sums);
            k->loss(MP_F32, original, MP_F32, decoded, scales, 2, limits, n % 2 ? SIZE_MAX : 16, n,
                    &loss);
            cr_assert(loss.saturated == 7 + above && loss.flushed == 9 + flushed, "%s: n = %zu",
                      k->level, n);
            for (int i = 1; i < 8; i++)
                loss.error[0] += loss.error[i]; /* exact */
            cr_assert_eq(loss.error[0], sums[0], "%s: n = %zu", k->level, n);
            if (n < N) {
                above += fabsf(original[n]) > 4;
                flushed += original[n] != 0 && decoded[n] == 0;
            }
        }
    }
}

static void check_mxfp4(const mp_kernels *k, const golden_file *golden, const char *name,
                        const mp_quant_options *options)
{
    size_t bytes;
    const float *w = golden_tensor(golden, "w", &bytes);
    size_t n = bytes / sizeof(*w);
    char scale_name[64];
    uint8_t *codes = malloc(n / 2);
    uint8_t *scales = malloc(n / 32);
    float *decoded = malloc(n * sizeof(*decoded));

    snprintf(scale_name, sizeof(scale_name), "%s_scale", name);
    k->mxfp4_encode(w, codes, scales, n, options);
    cr_assert_arr_eq(scales, golden_tensor(golden, scale_name, NULL), n / 32);
    cr_assert_arr_eq(codes, golden_tensor(golden, name, NULL), n / 2);
    k->mxfp4_decode(codes, scales, decoded, n);
    for (size_t i = 0; i < n; i++) {
        float code = e2m1_value(codes[i / 2] >> i % 2 * 4 & 15);

        cr_assert_eq(decoded[i], code * ldexpf(1, scales[i / 32] - 127));
    }
    free(codes);
    free(scales);
    free(decoded);
}

Test(kernels, mxfp4_golden)
{
    golden_file *golden = golden_open(GOLDEN);
    const mp_quant_options floored = {.rounding = MP_ROUND_DEEPGEMM, .amax_floor = 1e-4f};

    EACH_LEVEL(k)
    {
        check_mxfp4(k, golden, "mxfp4_deepgemm", &ceil_deepgemm);
        check_mxfp4(k, golden, "mxfp4_ocp", &ceil_ocp);
        check_mxfp4(k, golden, "mxfp4_floor1e-4", &floored);
    }
    golden_close(golden);
}

/* Blocks of every exponent, with elements up to 15 binades below. */
static void fill_bf16(uint16_t *out, size_t n)
{
    uint32_t state = 12345;

    for (size_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        uint32_t top = (uint32_t)(i / 32 % 255);
        uint32_t below = state >> 28;
        uint32_t exponent = top > below ? top - below : 0;

        out[i] = (uint16_t)((state >> 8 & 0x807f) | exponent << 7);
    }
}

Test(kernels, mxfp4_from_bf16_is_mxfp4_from_float)
{
    enum { N = 32 * 255 * 2 };
    static uint16_t in[N];
    static float wide[N];
    static uint8_t codes[2][N / 2];
    static uint8_t scales[2][N / 32];

    fill_bf16(in, N);
    EACH_LEVEL(k)
    {
        k->bf16_decode(in, wide, N);
        for (int rounding = MP_ROUND_DEEPGEMM; rounding <= MP_ROUND_OCP; rounding++) {
            for (int rule = MP_SCALE_CEIL; rule <= MP_SCALE_MSE; rule++) {
                const mp_quant_options options = {.rounding = (mp_rounding)rounding,
                                                  .scale_rule = (mp_scale_rule)rule};

                k->mxfp4_encode(wide, codes[0], scales[0], N, &options);
                cr_assert_eq(k->mxfp4_encode_bf16(in, codes[1], scales[1], N, &options), N);
                cr_assert_arr_eq(scales[1], scales[0], N / 32);
                cr_assert_arr_eq(codes[1], codes[0], N / 2);
            }
        }
    }
}

/* All values down to 2^-8 of the largest, and zeros, under every exponent. */
Test(kernels, mxfp4_from_bf16_all_values_and_exponents)
{
    enum { BINADES = 8, VALUES = BINADES << 7, BLOCKS = 2 * VALUES / 30 + 1, N = BLOCKS * 32 };
    static uint16_t in[N];
    static float wide[N];
    static uint8_t codes[2][N / 2];
    static uint8_t scales[2][N / 32];
    const mp_kernels *scalar = mp_kernels_for("scalar");

    for (uint32_t top = 1; top <= 0x7f7f; top += 0x40) {
        for (uint32_t i = 0, value = 0; i < N; i++) {
            uint32_t below = value / 2 < top ? top - value / 2 : 0;

            if (i % 32 == 5 || i % 32 == 26) { /* each block has the same amax */
                in[i] = (uint16_t)top;
                continue;
            }
            in[i] = (uint16_t)(below | value++ % 2 << 15);
        }
        scalar->bf16_decode(in, wide, N);
        for (int rounding = MP_ROUND_DEEPGEMM; rounding <= MP_ROUND_OCP; rounding++) {
            const mp_quant_options options = {.rounding = (mp_rounding)rounding};

            scalar->mxfp4_encode(wide, codes[0], scales[0], N, &options);
            EACH_LEVEL(k)
            {
                cr_assert_eq(k->mxfp4_encode_bf16(in, codes[1], scales[1], N, &options), N);
                cr_assert_arr_eq(scales[1], scales[0], N / 32, "%s: amax %#x", k->level, top);
                cr_assert_arr_eq(codes[1], codes[0], N / 2, "%s: amax %#x", k->level, top);
            }
        }
    }
}

Test(kernels, mxfp4_from_bf16_stops_before_nonfinite)
{
    enum { N = 32 * 41 };
    static const uint16_t bad[] = {0x7f80, 0xff80, 0x7f81, 0xffff};
    static uint16_t in[N];
    static uint8_t codes[N / 2];
    static uint8_t scales[N / 32];

    EACH_LEVEL(k)
    {
        for (int rule = MP_SCALE_CEIL; rule <= MP_SCALE_MSE; rule++) {
            const mp_quant_options options = {.scale_rule = (mp_scale_rule)rule};

            for (size_t at = 0; at < N; at += 17) {
                size_t block = at / 32;

                fill_bf16(in, N);
                in[at] = bad[at % 4];
                memset(codes, 0xaa, sizeof(codes));
                memset(scales, 0xaa, sizeof(scales));
                cr_assert_eq(k->mxfp4_encode_bf16(in, codes, scales, N, &options), block * 32);
                for (size_t i = block; i < N / 32; i++)
                    cr_assert_eq(scales[i], 0xaa, "%s: scale %zu", k->level, i);
                for (size_t i = block * 16; i < N / 2; i++)
                    cr_assert_eq(codes[i], 0xaa, "%s: byte %zu", k->level, i);
            }
        }
    }
}

/* Squared error of a block whose elements take the nearest value under 2^exponent. */
static double error_under(const float *in, int exponent)
{
    double sum = 0;

    for (int i = 0; i < 32; i++) {
        unsigned at = 0;
        float x = ldexpf(fabsf(in[i]), -exponent);
        double value = ldexp(e2m1_values[nearest(e2m1_values, 8, x, &at, false)], exponent);

        sum += (fabs((double)in[i]) - value) * (fabs((double)in[i]) - value);
    }
    return sum;
}

Test(kernels, mse_takes_the_better_exponent)
{
    golden_file *golden = golden_open(GOLDEN);
    const mp_quant_options options = {.scale_rule = MP_SCALE_MSE};
    size_t bytes;
    const float *w = golden_tensor(golden, "w", &bytes);
    const uint8_t *ceil_scales = golden_tensor(golden, "mxfp4_deepgemm_scale", NULL);
    size_t n = bytes / sizeof(*w);
    uint8_t *codes = malloc(n / 2);
    uint8_t *scales = malloc(n / 32);
    float decoded[32];

    EACH_LEVEL(k)
    {
        size_t finer = 0;

        k->mxfp4_encode(w, codes, scales, n, &options);
        for (size_t b = 0; b < n / 32; b++) {
            const float *block = w + b * 32;
            double coarse = error_under(block, ceil_scales[b] - 127);
            double fine = ceil_scales[b] > 1 ? error_under(block, ceil_scales[b] - 128) : INFINITY;
            double sums[2] = {0};

            finer += fine < coarse;
            cr_assert_eq(scales[b], fine < coarse ? ceil_scales[b] - 1 : ceil_scales[b],
                         "%s: block %zu", k->level, b);
            k->mxfp4_decode(codes + b * 16, scales + b, decoded, 32);
            k->error_sums(decoded, block, 32, sums);
            cr_assert_float_eq(sums[0], fmin(fine, coarse), 1e-12 * sums[1]);
        }
        cr_assert_gt(finer, n / 32 / 10);
        cr_assert_lt(finer, n / 32);
    }
    free(codes);
    free(scales);
    golden_close(golden);
}

/* Exponent byte 0 would hold this block exactly, but it is not written. */
Test(kernels, mse_stays_above_exponent_0)
{
    const mp_quant_options options = {.scale_rule = MP_SCALE_MSE};
    float in[32] = {6 * 0x1p-127f, 0x1p-128f};
    uint8_t codes[16];
    uint8_t scale;

    EACH_LEVEL(k)
    {
        k->mxfp4_encode(in, codes, &scale, 32, &options);
        cr_assert(scale == 1 && codes[0] == 0x05, "%s", k->level);
    }
}
