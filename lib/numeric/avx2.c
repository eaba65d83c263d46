/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for x86-64 with AVX2 and FMA: what wide.h needs, and the kernels that are
 * better written for these instructions alone.
 *
 * Narrowing works within 128-bit halves of vectors: four vectors of lanes become one of bytes,
 * whose 32-bit groups a single permutation puts in order. */
#include "numeric/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET  __attribute__((target("avx2,fma")))
#define LANES   8
#define NARROW  4
#define KERNELS mp_kernels_avx2
#define LEVEL   "avx2"

#include "numeric/lanes.h"

/* ------------------------------------------------------------------------
 * Lanes
 */

typedef bits mask; /* all ones where set */

INLINE mask above(bits a, bits b)
{
    return (mask)_mm256_cmpgt_epi32((__m256i)a, (__m256i)b);
}

INLINE mask above_where(mask where, bits a, bits b)
{
    return where & above(a, b);
}

INLINE mask equal(bits a, bits b)
{
    return (mask)_mm256_cmpeq_epi32((__m256i)a, (__m256i)b);
}

INLINE mask is_zero(floats v)
{
    return (mask)_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_EQ_OQ);
}

INLINE bits choose(mask where, bits yes, bits no)
{
    return (bits)_mm256_blendv_epi8((__m256i)no, (__m256i)yes, (__m256i)where);
}

INLINE bits count(bits counts, mask where)
{
    return counts - where;
}

INLINE bits smaller(bits a, bits b)
{
    return (bits)_mm256_min_epi32((__m256i)a, (__m256i)b);
}

INLINE bits larger(bits a, bits b)
{
    return (bits)_mm256_max_epi32((__m256i)a, (__m256i)b);
}

INLINE floats smaller_f(floats a, floats b)
{
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
}

INLINE floats larger_f(floats a, floats b)
{
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
}

INLINE bits larger_halves(bits a, bits b)
{
    return (bits)_mm256_max_epu16((__m256i)a, (__m256i)b);
}

INLINE floats to_floats(bits v)
{
    return (floats)_mm256_cvtepi32_ps((__m256i)v);
}

INLINE bits to_ints(floats v)
{
    return (bits)_mm256_cvtps_epi32((__m256)v);
}

INLINE floats fma_f(floats a, floats b, floats c)
{
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

INLINE doubles fma_d(doubles a, doubles b, doubles c)
{
    return (doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}

INLINE uint32_t largest_lane(bits v)
{
    __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, 1));

    return (uint32_t)_mm_cvtsi128_si32(one);
}

INLINE uint32_t sum_of_lanes(bits v)
{
    __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    __m128i one = _mm_add_epi32(two, _mm_shuffle_epi32(two, 1));

    return (uint32_t)_mm_cvtsi128_si32(one);
}

/* Vectors move together while the halves of each are folded onto each other. */
INLINE bits largest_lanes(const bits v[LANES])
{
    __m256i pairs[4];
    __m256i fours[2];

    UNROLL
    for (int i = 0; i < 4; i++) {
        __m256i even = (__m256i)v[2 * i];
        __m256i odd = (__m256i)v[2 * i + 1];

        pairs[i] =
            _mm256_max_epi32(_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
    }
    UNROLL
    for (int i = 0; i < 2; i++)
        fours[i] = _mm256_max_epi32(_mm256_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                    _mm256_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
    return (bits)_mm256_max_epi32(_mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                                  _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
}

/* ------------------------------------------------------------------------
 * Loads and stores
 */

INLINE bits load_u8(const uint8_t *in)
{
    return (bits)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)in));
}

INLINE bits load_i8(const int8_t *in)
{
    return (bits)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)in));
}

INLINE bits load_u16(const uint16_t *in)
{
    return (bits)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)in));
}

INLINE floats load_f16(const uint16_t *in)
{
    bits codes = load_u16(in);
    bits magnitude = codes & 0x7fff;
    bits normal = (magnitude << 13) + ((127u - 15u) << 23);
    bits subnormal = (bits)(to_floats(magnitude) * 0x1p-24f);
    bits value = choose(above(magnitude, splat(0x3ff)), normal, subnormal);

    value |= above(magnitude, splat(0x7bff)) & MP_F32_INF;
    value |= above(magnitude, splat(0x7c00)) & MP_F32_NAN;
    return (floats)(value | (codes & 0x8000) << 16);
}

INLINE doubles load_doubles(const float *in)
{
    return (doubles)_mm256_cvtps_pd(_mm_loadu_ps(in));
}

INLINE void to_doubles(floats v, doubles out[2])
{
    out[0] = (doubles)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
    out[1] = (doubles)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
}

INLINE bits in_order(__m256i packed)
{
    return (bits)_mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE bits pack_bytes(const bits v[NARROW])
{
    __m256i low = _mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]);
    __m256i high = _mm256_packus_epi32((__m256i)v[2], (__m256i)v[3]);

    return in_order(_mm256_packus_epi16(low, high));
}

INLINE void store_u8(uint8_t *out, const bits v[NARROW])
{
    store(out, pack_bytes(v));
}

INLINE void store_u16(uint16_t *out, const bits v[NARROW])
{
    UNROLL
    for (int i = 0; i < NARROW; i += 2) {
        __m256i both = _mm256_packus_epi32((__m256i)v[i], (__m256i)v[i + 1]);

        store(out + i * LANES, (bits)_mm256_permute4x64_epi64(both, 0xd8));
    }
}

INLINE void unpack_nibbles(const uint8_t *codes, bits out[4])
{
    __m128i bytes = _mm_loadu_si128((const void *)codes);
    __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    __m128i first = _mm_unpacklo_epi8(low, high);
    __m128i second = _mm_unpackhi_epi8(low, high);

    out[0] = (bits)_mm256_cvtepu8_epi32(first);
    out[1] = (bits)_mm256_cvtepu8_epi32(_mm_srli_si128(first, 8));
    out[2] = (bits)_mm256_cvtepu8_epi32(second);
    out[3] = (bits)_mm256_cvtepu8_epi32(_mm_srli_si128(second, 8));
}

/* ------------------------------------------------------------------------
 * E2M1
 */

/* Four bytes go to all lanes, and a lane's own nibble to its lowest bits. */
INLINE void e2m1_decode16(const uint8_t *codes, floats out[2])
{
    const __m256 values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i at = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);

    UNROLL
    for (int i = 0; i < 2; i++) {
        uint32_t bytes;

        memcpy(&bytes, codes + 4 * i, sizeof(bytes));
        bits nibbles = (bits)_mm256_srlv_epi32(_mm256_set1_epi32((int)bytes), at);
        /* Looks at three bits of each lane. */
        bits value = (bits)_mm256_permutevar8x32_ps(values, (__m256i)nibbles);

        out[i] = (floats)(value | (nibbles & 8) << 28);
    }
}

/* The quarter of a binade in which magnitudes lie, from 0.25 on, the smallest midpoint
 * between values; 0 is all below. All midpoints are 1.00, 1.01, 1.10 or 1.11 (binary) times
 * a power of two, so that the quarter decides the code. A magnitude at the very beginning
 * of one, where ties are, counts for the one before; to even, ties go up from 1.10 and 1.11. */
INLINE bits e2m1_quarters(bits in, mp_rounding rounding)
{
    const uint32_t start = 0x3e800000 - 0x1fffff; /* 0.25, less a quarter but for one bit */
    bits magnitude = magnitude_of(in);

    if (rounding == MP_ROUND_OCP)
        magnitude += magnitude >> 22 & 1;
    /* Unsigned: the sum may go beyond the largest NaN. */
    return (bits)_mm256_sub_epi32(_mm256_max_epu32((__m256i)magnitude, (__m256i)splat(start)),
                                  (__m256i)splat(start)) >>
           21;
}

/* Codes of quarters, one a byte, without the sign. */
INLINE __m256i e2m1_magnitudes(__m256i quarters)
{
    const __m256i first =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5));
    __m256i low = _mm256_min_epu8(quarters, _mm256_set1_epi8(15));
    __m256i high = _mm256_subs_epu8(quarters, _mm256_set1_epi8(15));

    /* Behind the table, two quarters of 6 and then of 7: 5 and so many more. */
    high = _mm256_min_epu8(_mm256_avg_epu8(high, _mm256_setzero_si256()), _mm256_set1_epi8(2));
    return _mm256_add_epi8(_mm256_shuffle_epi8(first, low), high);
}

/* 32 codes, one a byte, as 16 bytes of two. */
INLINE void store_nibbles(__m256i codes, uint8_t *out)
{
    const __m256i weights = _mm256_set1_epi16(16 << 8 | 1);
    __m256i pairs = _mm256_maddubs_epi16(codes, weights); /* even + 16 * odd */
    __m128i low = _mm256_castsi256_si128(pairs);
    __m128i high = _mm256_extracti128_si256(pairs, 1);

    _mm_storeu_si128((void *)out, _mm_packus_epi16(low, high));
}

INLINE void e2m1_encode32(const floats v[4], uint8_t *codes, mp_rounding rounding)
{
    bits quarters[4];

    UNROLL
    for (int i = 0; i < 4; i++)
        quarters[i] = e2m1_quarters((bits)v[i], rounding);
    __m256i code = e2m1_magnitudes((__m256i)pack_bytes(quarters));
    /* Saturation keeps signs. */
    __m256i low = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]);
    __m256i high = _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]);
    __m256i sign = (__m256i)in_order(_mm256_packs_epi16(low, high));

    /* The sign bit, shifted within pairs of bytes: nothing else is in it. */
    sign = _mm256_srli_epi16(_mm256_and_si256(sign, _mm256_set1_epi8(-128)), 4);
    if (rounding == MP_ROUND_DEEPGEMM)
        sign = _mm256_and_si256(sign, _mm256_cmpgt_epi8(code, _mm256_setzero_si256()));
    store_nibbles(_mm256_or_si256(code, sign), codes);
}

/* ------------------------------------------------------------------------
 * BF16 to mxfp4
 */

INLINE __m256i load_256(const void *in)
{
    return _mm256_loadu_si256(in);
}

/* Largest of 32 BF16 magnitudes. */
INLINE uint32_t amax_bf16(__m256i low, __m256i high)
{
    const __m256i all = _mm256_set1_epi16(MP_BF16_ABS);
    __m256i half = _mm256_max_epu16(_mm256_and_si256(low, all), _mm256_and_si256(high, all));
    __m128i quarter =
        _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    /* The instruction finds the smallest, so look for the smallest complement. */
    __m128i smallest = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));

    return 0xffff & ~(uint32_t)_mm_cvtsi128_si32(smallest);
}

/* 16 BF16 times a power of two, as BF16: exact but for subnormal products,
 * which are cut off and far below the smallest step of E2M1. */
INLINE __m256i scale_bf16(__m256i v, __m256 multiplier)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, v));
    __m256 high = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, v));

    low = _mm256_mul_ps(low, multiplier);
    high = _mm256_mul_ps(high, multiplier);
    return _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                               _mm256_srli_epi32(_mm256_castps_si256(high), 16));
}

/* Codes of 16 BF16. */
INLINE __m256i e2m1_codes_bf16(__m256i v, mp_rounding rounding)
{
    __m256i magnitude = _mm256_and_si256(v, _mm256_set1_epi16(MP_BF16_ABS));
    __m256i sign = _mm256_and_si256(_mm256_srli_epi16(v, 12), _mm256_set1_epi16(8));
    __m256i code = _mm256_setzero_si256();

    for (int i = 0; i < MP_E2M1_STEPS; i++) {
        __m256i step = _mm256_set1_epi16((short)(mp_e2m1_steps[rounding][i] >> 16));

        code = _mm256_sub_epi16(code, _mm256_cmpgt_epi16(magnitude, step));
    }
    if (rounding == MP_ROUND_DEEPGEMM)
        sign = _mm256_and_si256(sign, _mm256_cmpgt_epi16(code, _mm256_setzero_si256()));
    return _mm256_or_si256(code, sign);
}

/* Up to MP_MX_GROUP blocks; returns how many precede one that is not finite. */
INLINE size_t encode_group_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales, size_t blocks,
                                const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP];
    float multipliers[MP_MX_GROUP];
    size_t finite = 0;

    for (; finite < blocks; finite++) {
        const uint16_t *block = in + finite * MP_MX_BLOCK;
        uint32_t largest = amax_bf16(load_256(block), load_256(block + 16));

        if (largest >= MP_BF16_INF)
            break;
        amax[finite] = largest << 16;
    }
    mp_mx_exponents(amax, finite, options->amax_floor, MP_E2M1_MAX, scales, multipliers);
    for (size_t i = 0; i < finite; i++) {
        __m256 multiplier = _mm256_set1_ps(multipliers[i]);
        __m256i low = scale_bf16(load_256(in + i * MP_MX_BLOCK), multiplier);
        __m256i high = scale_bf16(load_256(in + i * MP_MX_BLOCK + 16), multiplier);

        low = e2m1_codes_bf16(low, options->rounding);
        high = e2m1_codes_bf16(high, options->rounding);
        /* The pack works within 128-bit halves; this puts the quarters in order. */
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
        store_nibbles(bytes, codes + i * (MP_MX_BLOCK / 2));
    }
    return finite;
}

TARGET static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales,
                                       size_t n, const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;

    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&mp_kernels_avx2, in, codes, scales, n, options);
    for (size_t i = 0; i < blocks; i += MP_MX_GROUP) {
        size_t group = blocks - i < MP_MX_GROUP ? blocks - i : MP_MX_GROUP;
        size_t finite = encode_group_bf16(in + i * MP_MX_BLOCK, codes + i * (MP_MX_BLOCK / 2),
                                          scales + i, group, options);

        if (finite < group)
            return (i + finite) * MP_MX_BLOCK;
    }
    return n;
}

#define OWN_ENCODE_BF16
#include "numeric/wide.h"

#endif
