/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of every level that work on whole rows or on many blocks: integers, F16,
 * scales and amax of blocks, and the search for magnitudes that reach a limit. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "numeric/kernels.h"

static const char *const levels[] = {"scalar", "avx2", "avx512", "neon"};

#define EACH_LEVEL(k)                                                              \
    for (size_t level_ = 0; level_ < sizeof(levels) / sizeof(levels[0]); level_++) \
        for (const mp_kernels *k = mp_kernels_for(levels[level_]); k; k = NULL)

static uint32_t to_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

Test(kernels_rows, f16_all_codes)
{
    static uint16_t codes[65536];
    static float values[65536];

    for (uint32_t i = 0; i < 65536; i++)
        codes[i] = (uint16_t)i;
    EACH_LEVEL(k)
    {
        k->f16_decode(codes, values, 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            int exponent = i >> 10 & 31;
            float fraction = (float)(i & 1023) / 1024;
            float magnitude =
                exponent ? ldexpf(1 + fraction, exponent - 15) : ldexpf(fraction, -14);
            uint32_t sign = (i & 0x8000) << 16;

            if (exponent == 31)
                cr_assert_eq(to_bits(values[i]),
                             sign | 0x7f800000 | (i & 1023 ? 0x400000 | (i & 1023) << 13 : 0),
                             "%s: %#x", k->level, i);
            else
                cr_assert_eq(to_bits(values[i]), sign | to_bits(magnitude), "%s: %#x", k->level, i);
        }
    }
}

Test(kernels_rows, integers_all_codes)
{
    uint8_t codes[256];
    float values[512];

    for (uint32_t i = 0; i < 256; i++)
        codes[i] = (uint8_t)(i * 5 + 1);
    EACH_LEVEL(k)
    {
        k->int8_decode((const int8_t *)codes, values, 256);
        for (uint32_t i = 0; i < 256; i++)
            cr_assert_eq(values[i], (float)(codes[i] < 128 ? codes[i] : codes[i] - 256));
        k->int4_decode(codes, values, 512);
        for (uint32_t i = 0; i < 512; i++)
            cr_assert_eq(values[i], (float)((codes[i / 2] >> i % 2 * 4 & 15) - 8), "%s: %u",
                         k->level, i);
    }
}

/* Multiples of an eighth of a step, so that ties come by, and far beyond the ends. */
Test(kernels_rows, int8_rounds_quotients)
{
    enum { N = 2 * 8 * 140 + 7 };
    static const float scales[] = {1, 0.3f, 0x1p-149f, 0x1.8p-140f, 3e30f};
    static float in[N];
    int8_t out[N];

    for (size_t s = 0; s < sizeof(scales) / sizeof(scales[0]); s++) {
        for (int i = 0; i < N; i++)
            in[i] = (float)(i - 8 * 140) * 0.125f * scales[s];
        in[0] = FLT_MAX;
        in[N - 1] = -FLT_MAX;
        EACH_LEVEL(k)
        {
            k->int8_encode(in, scales[s], out, N);
            for (int i = 0; i < N; i++) {
                double quotient = in[i] / scales[s];

                cr_assert_eq(out[i], fmin(fmax(rint(quotient), -127), 127), "%s: %a", k->level,
                             quotient);
            }
        }
    }
}

/* Those of vectors of every level and those beside them; kernels take many blocks together. */
Test(kernels_rows, blocks_of_any_width)
{
    static const size_t widths[] = {1, 2, 3, 5, 8, 12, 16, 17, 24, 32, 39, 48, 64, 100, 128, 1142};
    enum { N = 1141 };
    static float in[N];
    static float factors[N];
    static float out[N + 1];
    static uint32_t amax[N + 1];

    for (int i = 0; i < N; i++) {
        in[i] = sinf((float)i * 7) * ldexpf(1, i * 11 % 19);
        factors[i] = 1 + (float)(i * 29 % N) / 64;
    }
    EACH_LEVEL(k)
    {
        for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
            size_t width = widths[w];

            for (size_t n = 0; n <= N; n += 3 + n / 16) {
                size_t blocks = (n + width - 1) / width;

                out[n] = 99;
                amax[blocks] = 99;
                k->scale_blocks(in, factors, width, out, n);
                k->amax_blocks(in, width, amax, n);
                for (size_t i = 0; i < n; i++)
                    cr_assert_eq(out[i], in[i] * factors[i / width], "%s: %zu of %zu in %zu",
                                 k->level, i, n, width);
                for (size_t b = 0; b < blocks; b++) {
                    float largest = 0;

                    for (size_t i = b * width; i < n && i < (b + 1) * width; i++)
                        largest = fmaxf(largest, fabsf(in[i]));
                    cr_assert_eq(amax[b], to_bits(largest), "%s: block %zu", k->level, b);
                }
                cr_assert(out[n] == 99 && amax[blocks] == 99);
            }
        }
        memcpy(out, in, sizeof(in));
        k->scale_blocks(out, factors, 16, out, N); /* in place */
        k->divide(out, 3, out, N);
        for (int i = 0; i < N; i++) {
            float product = in[i] * factors[i / 16];

            cr_assert_eq(out[i], product / 3);
        }
    }
}

/* Scales and limits that differ from block to block, and sums that were begun before. */
Test(kernels_rows, loss_in_blocks_of_any_width)
{
    enum { N = 141 };
    float original[N];
    float decoded[N];
    float scales[N];
    float limits[N];

    for (int i = 0; i < N; i++) {
        original[i] = (float)(i * 29 % N - 70) * 0.3f;
        decoded[i] = i % 5 ? (float)(i * 31 % N - 70) : 0;
        scales[i] = 0.25f + (float)(i * 11 % 17) / 19;
        limits[i] = (float)(i * 31 % 67) * 0.3f;
    }
    EACH_LEVEL(k)
    {
        for (size_t width = 1; width <= N + 1; width += 1 + width / 9) {
            for (size_t n = 0; n <= N; n += 3) {
                mp_loss expected = {{1, 2, 3, 4, 5, 6, 7, 8}, {.5, .25}, 7, 9};
                mp_loss loss = expected;

                for (size_t i = 0; i < n; i++) {
                    float value = decoded[i] * scales[i / width];
                    double difference;

                    value *= 0.7f;
                    difference = (double)value - original[i];
                    expected.error[i % 8] += difference * difference;
                    expected.signal[i % 8] += (double)original[i] * original[i];
                    expected.saturated += fabsf(original[i]) > limits[i / width];
                    expected.flushed += original[i] != 0 && value == 0;
                }
                k->loss(MP_F32, original, MP_F32, decoded, scales, 0.7f, limits, width, n, &loss);
                cr_assert_eq(memcmp(&loss, &expected, sizeof(loss)), 0, "%s: %zu in %zu", k->level,
                             n, width);
            }
        }
    }
}

/* Codes of every type at odd addresses, which the scalar kernels turn into values. */
Test(kernels_rows, loss_of_codes_is_that_of_their_values)
{
    enum { N = 346 };
    static const mp_dtype types[] = {MP_F4, MP_F8_E4M3, MP_I8, MP_BF16, MP_F32};
    static const size_t widths[] = {16, 22, 32, 128, 144, N};
    const mp_kernels *scalar = mp_kernels_for("scalar");
    static uint8_t codes[4 * N + 1];
    static float values[N], original[N], scales[N], limits[N];
    static uint16_t halves[N];

    for (int i = 0; i < N; i++) {
        halves[i] = (uint16_t)(i % 7 ? 0x3d00 + i * 89 % 0x300 : 0) | (i % 3 ? 0x8000 : 0);
        scales[i] = i % 5 ? 0.1f + (float)(i * 11 % 17) / 19 : 1e-44f;
        limits[i] = (float)(i * 31 % 67) * 0.01f;
    }
    scalar->bf16_decode(halves, original, N);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        mp_dtype type = types[t];

        for (int i = 0; i < 4 * N; i++) /* no NaN as E4M3, and neither as BF16 nor F32 */
            codes[1 + i] = (uint8_t)(type < MP_BF16 ? (i * 37 % 256) & ~(i % 2) : 0x3b + i * 5 % 4);
        if (type == MP_F4)
            scalar->e2m1_decode(codes + 1, values, N);
        else if (type == MP_F8_E4M3)
            scalar->e4m3_decode(codes + 1, values, N);
        else if (type == MP_I8)
            scalar->int8_decode((const int8_t *)codes + 1, values, N);
        else if (type == MP_BF16)
            scalar->bf16_decode((const uint16_t *)(const void *)(codes + 1), values, N);
        else
            memcpy(values, codes + 1, sizeof values);
        EACH_LEVEL(k)
        {
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
                for (size_t n = 0; n <= N; n += n < 40 ? 2 : 34) {
                    float global = type == MP_F4 || type == MP_F32 ? 0.7f : 1;
                    mp_loss expected = {{1, 2, 3, 4, 5, 6, 7, 8}, {.5, .25}, 7, 9};
                    mp_loss loss[2] = {expected, expected};

                    scalar->loss(MP_F32, original, MP_F32, values, scales, global, limits,
                                 widths[w], n, &expected);
                    k->loss(MP_F32, original, type, codes + 1, scales, global, limits, widths[w], n,
                            &loss[0]);
                    k->loss(MP_BF16, halves, type, codes + 1, scales, global, limits, widths[w], n,
                            &loss[1]);
                    for (int i = 0; i < 2; i++)
                        cr_assert_eq(memcmp(&loss[i], &expected, sizeof expected), 0,
                                     "%s: %s, %zu in %zu", k->level, mp_dtype_name(type), n,
                                     widths[w]);
                }
            }
        }
    }
}

/* Scales, codes and lengths as encoding a scaled row and scanning floats give them. */
Test(kernels_rows, blocks_of_e4m3_and_bf16)
{
    enum { N = 341 };
    static float in[N];
    static float factors[N];
    static float scaled[N];
    static uint16_t halves[N];
    static uint8_t codes[N + 1];
    static uint8_t expected[N];
    static uint32_t amax[N + 1];
    static uint32_t expected_amax[N];
    const mp_kernels *scalar = mp_kernels_for("scalar");

    for (int i = 0; i < N; i++) {
        in[i] = sinf((float)i * 7) * ldexpf(1, i * 11 % 19);
        factors[i] = 1 + (float)(i * 29 % N) / 64;
    }
    scalar->bf16_encode(in, halves, N);
    EACH_LEVEL(k)
    {
        for (size_t width = 1; width <= N + 1; width += 1 + width / 5) {
            for (size_t n = 0; n <= N; n += 3 + n / 9) {
                size_t blocks = (n + width - 1) / width;

                scalar->scale_blocks(in, factors, width, scaled, n);
                scalar->e4m3_encode(scaled, expected, n);
                codes[n] = 99;
                k->e4m3_encode_blocks(in, factors, width, codes, n);
                cr_assert(memcmp(codes, expected, n) == 0 && codes[n] == 99, "%s: %zu in %zu",
                          k->level, n, width);
                scalar->bf16_decode(halves, scaled, n);
                scalar->amax_blocks(scaled, width, expected_amax, n);
                amax[blocks] = 99;
                k->amax_blocks_bf16(halves, width, amax, n);
                cr_assert(memcmp(amax, expected_amax, 4 * blocks) == 0 && amax[blocks] == 99);
            }
        }
    }
}

/* The product of both scales: normal, subnormal without a reciprocal, 0 for a live block; and
 * blocks of zeros of either sign. What a code says is at most half a step off. */
Test(kernels_rows, nvfp4_blocks)
{
    enum { BLOCKS = 75, N = 16 * BLOCKS };
    static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    static const float globals[] = {0x1.3p-10f, 0x1p-140f, 0x1p-149f, 3e30f};
    static float in[N];
    static uint8_t codes[N / 2 + 1];
    static uint8_t scales[BLOCKS + 1];
    static float scale[BLOCKS];

    for (size_t g = 0; g < sizeof(globals) / sizeof(globals[0]); g++) {
        for (int i = 0; i < N; i++) {
            in[i] = sinf((float)i * 7) * ldexpf(1, i / 16 % 7) * globals[g] * 3;
            if (i / 16 % 13 == 5)
                in[i] = i % 2 ? -0.0f : 0.0f;
        }
        EACH_LEVEL(k)
        {
            for (size_t n = N; n > 0; n -= n > 560 ? 48 : 16) {
                codes[n / 2] = scales[n / 16] = 99;
                k->nvfp4_encode(in, globals[g], codes, scales, n);
                cr_assert(codes[n / 2] == 99 && scales[n / 16] == 99);
                k->e4m3_decode(scales, scale, n / 16);
                for (size_t i = 0; i < n; i++) {
                    unsigned code = codes[i / 2] >> i % 2 * 4 & 15;
                    double both = (double)(float)(scale[i / 16] * globals[g]);
                    double value = values[code & 7] * both * (code & 8 ? -1 : 1);

                    if (i / 16 % 13 == 5)
                        cr_assert(code == 0 && scales[i / 16] == 0);
                    else if (fabs(in[i]) <= 6 * both)
                        cr_assert_leq(fabs(value - (double)in[i]), 1.0001 * both, "%s: %a, %zu",
                                      k->level, (double)globals[g], i);
                    else
                        cr_assert_eq(code & 7, both > 0 ? 7 : 0);
                }
            }
        }
    }
}

/* A NaN or an infinity in any place. */
Test(kernels_rows, nvfp4_of_finite_bf16_only)
{
    enum { N = 16 * 75 };
    static uint16_t in[N];
    static float floats[N];
    static uint8_t codes[N / 2];
    static uint8_t scales[N / 16];
    static uint8_t expected_codes[N / 2];
    static uint8_t expected_scales[N / 16];

    for (int i = 0; i < N; i++)
        in[i] = (uint16_t)(i * 40503 >> 3 & 0x83ff) + 0x3c00;
    EACH_LEVEL(k)
    {
        k->bf16_decode(in, floats, N);
        k->nvfp4_encode(floats, 0.01f, expected_codes, expected_scales, N);
        cr_assert_eq(k->nvfp4_encode_bf16(in, 0.01f, codes, scales, N), N);
        cr_assert_arr_eq(codes, expected_codes, sizeof(codes));
        cr_assert_arr_eq(scales, expected_scales, sizeof(scales));
        for (size_t i = 0; i < N; i += 7) {
            uint16_t before = in[i];

            in[i] = i % 2 ? 0xff80 : 0x7fc1;
            memset(codes, 0, sizeof(codes));
            memset(scales, 0, sizeof(scales));
            cr_assert_eq(k->nvfp4_encode_bf16(in, 0.01f, codes, scales, N), i - i % 16, "%s: %zu",
                         k->level, i);
            cr_assert_arr_eq(codes, expected_codes, (i - i % 16) / 2);
            cr_assert_arr_eq(scales, expected_scales, i / 16);
            in[i] = before;
        }
    }
}

/* Each byte against each limit. */
Test(kernels_rows, bytes_that_reach_a_limit)
{
    EACH_LEVEL(k)
    {
        for (uint32_t value = 0; value < 256; value++) {
            const uint8_t in = (uint8_t)value;

            for (uint32_t limit = 0; limit < 128; limit++) {
                cr_assert_eq(k->reaches(&in, 1, 8, true, limit), (value & 127) >= limit,
                             "%s: %#x, limit %#x", k->level, value, limit);
                cr_assert_eq(k->reaches(&in, 1, 8, false, 128 | limit), value >= (128 | limit));
            }
        }
    }
}

/* One element that reaches the limit, among those that just do not. */
static void check_reaches(const mp_kernels *k, unsigned bits, bool is_signed, uint32_t limit)
{
    enum { N = 300 };
    uint8_t in[4 * N + 1];
    size_t width = bits / 8;
    uint32_t sign = is_signed ? 1u << (bits - 1) : 0;
    uint32_t below = (limit - 1) | sign;
    uint32_t largest = bits == 32 ? UINT32_MAX : (1u << bits) - 1;

    for (size_t i = 0; i < N; i++)
        memcpy(in + 1 + i * width, &below, width); /* unaligned */
    for (size_t n = 0; n < N; n += 1 + n / 8)
        cr_assert(!k->reaches(in + 1, n, bits, is_signed, limit), "%s: %u", k->level, bits);
    for (size_t i = 0; i < N; i++) {
        const uint32_t reaching = i % 3 == 0 ? limit : i % 3 == 1 ? limit | sign : largest;

        memcpy(in + 1 + i * width, &reaching, width);
        cr_assert(k->reaches(in + 1, i + 1, bits, is_signed, limit), "%s: %zu", k->level, i);
        cr_assert(k->reaches(in + 1, N, bits, is_signed, limit), "%s: %zu", k->level, i);
        cr_assert(!k->reaches(in + 1, i, bits, is_signed, limit), "%s: %zu", k->level, i);
        memcpy(in + 1 + i * width, &below, width);
    }
}

Test(kernels_rows, limits_reached_in_any_place)
{
    EACH_LEVEL(k)
    {
        check_reaches(k, 8, true, 0x7f);
        check_reaches(k, 8, false, 0xff);
        check_reaches(k, 8, false, 0xf7);
        check_reaches(k, 16, true, 0x7f80);
        check_reaches(k, 16, true, 0x7c00);
        check_reaches(k, 16, false, 0x8123);
        check_reaches(k, 32, true, 0x7f800000);
        check_reaches(k, 32, true, 0x7b124925);
        check_reaches(k, 32, false, 0x80000001);
    }
}
