/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for x86-64 with AVX2 and FMA. Ends of runs that do not fill the vectors
 * of one step go to the scalar kernels. */
#include "numeric/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))

#define LANES  8 /* float32 in a vector */
#define PACKED (MP_MX_BLOCK / 2)

AVX2 static inline __m256i set1(uint32_t bits)
{
    return _mm256_set1_epi32((int)bits);
}

AVX2 static inline __m256i load_bits(const void *in)
{
    return _mm256_loadu_si256(in);
}

AVX2 static inline __m256i magnitude_of(__m256i bits)
{
    return _mm256_and_si256(bits, set1(MP_F32_ABS));
}

AVX2 static inline __m256i sign_of(__m256i bits)
{
    return _mm256_andnot_si256(set1(MP_F32_ABS), bits);
}

/* Eight bytes, one a lane. */
AVX2 static inline __m256i load_bytes(const uint8_t *in)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)in));
}

/* 32 lanes of values 0..255 as bytes, in order. */
AVX2 static inline __m256i pack_bytes(__m256i v0, __m256i v1, __m256i v2, __m256i v3)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i low = _mm256_packus_epi32(v0, v1);
    __m256i high = _mm256_packus_epi32(v2, v3);

    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
}

AVX2 static void bf16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256i codes = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(in + i)));

        _mm256_storeu_si256((void *)(out + i), _mm256_slli_epi32(codes, 16));
    }
    mp_kernels_scalar.bf16_decode(in + i, out + i, n - i);
}

AVX2 static inline __m256i bf16_codes(__m256i bits)
{
    __m256i upper = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(upper, set1(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, set1(0x7fff)));
    __m256i nan = _mm256_cmpgt_epi32(magnitude_of(bits), set1(MP_F32_INF));

    return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_or_si256(upper, set1(0x40)), nan);
}

AVX2 static void bf16_encode(const float *in, uint16_t *out, size_t n)
{
    size_t i = 0;

    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        __m256i low = bf16_codes(load_bits(in + i));
        __m256i high = bf16_codes(load_bits(in + i + LANES));
        __m256i codes = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);

        _mm256_storeu_si256((void *)(out + i), codes);
    }
    mp_kernels_scalar.bf16_encode(in + i, out + i, n - i);
}

AVX2 static void f16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256i codes = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(in + i)));
        __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, set1(0x8000)), 16);
        __m256i magnitude = _mm256_and_si256(codes, set1(0x7fff));
        __m256i wide = _mm256_slli_epi32(magnitude, 13);
        __m256i bits = _mm256_add_epi32(wide, set1((127 - 15) << 23));
        __m256 steps = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0x1p-24f));
        __m256i normal = _mm256_cmpgt_epi32(magnitude, set1(0x3ff));
        __m256i infinite = _mm256_cmpgt_epi32(magnitude, set1(0x7bff));
        __m256i nan = _mm256_cmpgt_epi32(magnitude, set1(0x7c00));

        bits = _mm256_blendv_epi8(_mm256_castps_si256(steps), bits, normal);
        bits = _mm256_or_si256(bits, _mm256_and_si256(infinite, set1(MP_F32_INF)));
        bits = _mm256_or_si256(bits, _mm256_and_si256(nan, set1(MP_F32_NAN)));
        _mm256_storeu_si256((void *)(out + i), _mm256_or_si256(bits, sign));
    }
    mp_kernels_scalar.f16_decode(in + i, out + i, n - i);
}

AVX2 static void e4m3_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256i codes = load_bytes(in + i);
        __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, set1(0x80)), 24);
        __m256i magnitude = _mm256_and_si256(codes, set1(0x7f));
        __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), set1((127 - 7) << 23));
        __m256 steps = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0x1p-9f));
        __m256i normal = _mm256_cmpgt_epi32(magnitude, set1(7));
        __m256i nan = _mm256_cmpeq_epi32(magnitude, set1(0x7f));

        bits = _mm256_blendv_epi8(_mm256_castps_si256(steps), bits, normal);
        bits = _mm256_blendv_epi8(bits, set1(MP_F32_NAN), nan);
        _mm256_storeu_si256((void *)(out + i), _mm256_or_si256(bits, sign));
    }
    mp_kernels_scalar.e4m3_decode(in + i, out + i, n - i);
}

AVX2 static inline __m256i e4m3_codes(__m256i bits)
{
    __m256i sign = _mm256_srli_epi32(sign_of(bits), 24);
    __m256i magnitude = magnitude_of(bits);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), set1(1));
    __m256i sum = _mm256_add_epi32(magnitude, _mm256_add_epi32(odd, set1(0x7ffff)));
    __m256i codes = _mm256_sub_epi32(_mm256_srli_epi32(sum, 20), set1((127 - 7) << 3));
    __m256 steps = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f));
    __m256i rounded = _mm256_sub_epi32(_mm256_castps_si256(steps), set1(0x46800000));
    __m256i subnormal = _mm256_cmpgt_epi32(set1(0x3c800000), magnitude); /* below 2^-6 */
    __m256i nan = _mm256_cmpgt_epi32(magnitude, set1(MP_F32_INF));

    codes = _mm256_min_epu32(_mm256_blendv_epi8(codes, rounded, subnormal), set1(0x7e));
    return _mm256_or_si256(_mm256_blendv_epi8(codes, set1(0x7f), nan), sign);
}

AVX2 static void e4m3_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        __m256i v0 = e4m3_codes(load_bits(in + i));
        __m256i v1 = e4m3_codes(load_bits(in + i + LANES));
        __m256i v2 = e4m3_codes(load_bits(in + i + 2 * LANES));
        __m256i v3 = e4m3_codes(load_bits(in + i + 3 * LANES));

        _mm256_storeu_si256((void *)(out + i), pack_bytes(v0, v1, v2, v3));
    }
    mp_kernels_scalar.e4m3_encode(in + i, out + i, n - i);
}

/* Values of eight codes, one a byte. */
AVX2 static inline __m256 e2m1_values(__m128i codes)
{
    const __m256 values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    __m256i wide = _mm256_cvtepu8_epi32(codes);
    __m256i sign = _mm256_slli_epi32(_mm256_and_si256(wide, set1(8)), 28);
    __m256 magnitude = _mm256_permutevar8x32_ps(values, wide); /* looks at three bits */

    return _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign));
}

/* out[0..31] = value of code * factor */
AVX2 static inline void e2m1_decode32(const uint8_t *codes, __m256 factor, float *out)
{
    __m128i bytes = _mm_loadu_si128((const void *)codes);
    __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    __m128i first = _mm_unpacklo_epi8(low, high);
    __m128i second = _mm_unpackhi_epi8(low, high);

    _mm256_storeu_ps(out, _mm256_mul_ps(e2m1_values(first), factor));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(e2m1_values(_mm_srli_si128(first, 8)), factor));
    _mm256_storeu_ps(out + 16, _mm256_mul_ps(e2m1_values(second), factor));
    _mm256_storeu_ps(out + 24, _mm256_mul_ps(e2m1_values(_mm_srli_si128(second, 8)), factor));
}

AVX2 static void e2m1_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 32 <= n; i += 32)
        e2m1_decode32(codes + i / 2, _mm256_set1_ps(1.0f), out + i);
    mp_kernels_scalar.e2m1_decode(codes + i / 2, out + i, n - i);
}

/* The quarter of a binade in which magnitudes lie, from 0.25 on, the smallest midpoint
 * between values; 0 is all below. All midpoints are 1.00, 1.01, 1.10 or 1.11 (binary) times
 * a power of two, so that the quarter decides the code. A magnitude at the very beginning
 * of one, where ties are, counts for the one before; to even, ties go up from 1.10 and 1.11. */
AVX2 static inline __m256i e2m1_quarters(__m256i bits, mp_rounding rounding)
{
    const __m256i start = set1(0x3e800000 - 0x1fffff); /* 0.25, less a quarter but for one bit */
    __m256i magnitude = magnitude_of(bits);

    if (rounding == MP_ROUND_OCP)
        magnitude = _mm256_add_epi32(magnitude,
                                     _mm256_and_si256(_mm256_srli_epi32(magnitude, 22), set1(1)));
    return _mm256_srli_epi32(_mm256_sub_epi32(_mm256_max_epu32(magnitude, start), start), 21);
}

/* Codes of quarters, one a byte, without the sign. */
AVX2 static inline __m256i e2m1_magnitudes(__m256i quarters)
{
    const __m256i first =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5));
    __m256i low = _mm256_min_epu8(quarters, _mm256_set1_epi8(15));
    __m256i high = _mm256_subs_epu8(quarters, _mm256_set1_epi8(15));

    /* Behind the table, two quarters of 6 and then of 7: 5 and so many more. */
    high = _mm256_min_epu8(_mm256_avg_epu8(high, _mm256_setzero_si256()), _mm256_set1_epi8(2));
    return _mm256_add_epi8(_mm256_shuffle_epi8(first, low), high);
}

/* 32 lanes as bytes with the same sign. */
AVX2 static inline __m256i pack_signs(__m256i v0, __m256i v1, __m256i v2, __m256i v3)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i low = _mm256_packs_epi32(v0, v1);
    __m256i high = _mm256_packs_epi32(v2, v3);

    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
}

/* 32 codes, one a byte, as 16 bytes of two. */
AVX2 static inline void store_nibbles(__m256i codes, uint8_t *out)
{
    const __m256i weights = _mm256_set1_epi16(16 << 8 | 1);
    __m256i pairs = _mm256_maddubs_epi16(codes, weights); /* even + 16 * odd */
    __m128i low = _mm256_castsi256_si128(pairs);
    __m128i high = _mm256_extracti128_si256(pairs, 1);

    _mm_storeu_si128((void *)out, _mm_packus_epi16(low, high));
}

/* Encodes 32 elements times a factor into 16 bytes. */
AVX2 static inline void e2m1_encode32(const float *in, __m256 factor, uint8_t *codes,
                                      mp_rounding rounding)
{
    __m256i v0 = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(in), factor));
    __m256i v1 = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(in + 8), factor));
    __m256i v2 = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(in + 16), factor));
    __m256i v3 = _mm256_castps_si256(_mm256_mul_ps(_mm256_loadu_ps(in + 24), factor));
    __m256i quarters = pack_bytes(e2m1_quarters(v0, rounding), e2m1_quarters(v1, rounding),
                                  e2m1_quarters(v2, rounding), e2m1_quarters(v3, rounding));
    __m256i code = e2m1_magnitudes(quarters);
    __m256i sign = _mm256_and_si256(pack_signs(v0, v1, v2, v3), _mm256_set1_epi8(-128));

    /* The sign bit, shifted within pairs of bytes: nothing else is in it. */
    sign = _mm256_srli_epi16(sign, 4);
    if (rounding == MP_ROUND_DEEPGEMM)
        sign = _mm256_and_si256(sign, _mm256_cmpgt_epi8(code, _mm256_setzero_si256()));
    store_nibbles(_mm256_or_si256(code, sign), codes);
}

AVX2 static void e2m1_encode(const float *in, uint8_t *codes, size_t n, mp_rounding rounding)
{
    size_t i = 0;

    for (; i + 32 <= n; i += 32)
        e2m1_encode32(in + i, _mm256_set1_ps(1.0f), codes + i / 2, rounding);
    mp_kernels_scalar.e2m1_encode(in + i, codes + i / 2, n - i, rounding);
}

AVX2 static void ue8m0_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256i codes = load_bytes(in + i);
        __m256i smallest = _mm256_cmpeq_epi32(codes, _mm256_setzero_si256());
        __m256i nan = _mm256_cmpeq_epi32(codes, set1(255));
        __m256i bits = _mm256_slli_epi32(codes, 23);

        bits = _mm256_blendv_epi8(bits, set1(0x00400000), smallest);
        bits = _mm256_blendv_epi8(bits, set1(MP_F32_NAN), nan);
        _mm256_storeu_si256((void *)(out + i), bits);
    }
    mp_kernels_scalar.ue8m0_decode(in + i, out + i, n - i);
}

AVX2 static inline __m256i ue8m0_codes(const float *in)
{
    /* A mantissa that is not zero carries into the exponent. */
    __m256i sum = _mm256_add_epi32(magnitude_of(load_bits(in)), set1(MP_F32_MANTISSA));
    __m256i e = _mm256_srli_epi32(sum, 23);

    return _mm256_min_epi32(_mm256_max_epi32(e, set1(1)), set1(254));
}

AVX2 static void ue8m0_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        __m256i codes =
            pack_bytes(ue8m0_codes(in + i), ue8m0_codes(in + i + LANES),
                       ue8m0_codes(in + i + 2 * LANES), ue8m0_codes(in + i + 3 * LANES));

        _mm256_storeu_si256((void *)(out + i), codes);
    }
    mp_kernels_scalar.ue8m0_encode(in + i, out + i, n - i);
}

AVX2 static void int8_decode(const int8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(in + i)));

        _mm256_storeu_ps(out + i, _mm256_cvtepi32_ps(codes));
    }
    mp_kernels_scalar.int8_decode(in + i, out + i, n - i);
}

/* Eight codes, one a lane. */
AVX2 static inline __m256i int8_codes(const float *in, __m256 factor)
{
    __m256 x = _mm256_div_ps(_mm256_loadu_ps(in), factor);

    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(127)), _mm256_set1_ps(-127));
    return _mm256_and_si256(_mm256_cvtps_epi32(x), set1(255));
}

AVX2 static void int8_encode(const float *in, float factor, int8_t *out, size_t n)
{
    __m256 divisor = _mm256_set1_ps(factor);
    size_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        __m256i codes = pack_bytes(int8_codes(in + i, divisor), int8_codes(in + i + LANES, divisor),
                                   int8_codes(in + i + 2 * LANES, divisor),
                                   int8_codes(in + i + 3 * LANES, divisor));

        _mm256_storeu_si256((void *)(out + i), codes);
    }
    mp_kernels_scalar.int8_encode(in + i, factor, out + i, n - i);
}

/* Values of the first eight codes, one a byte. */
AVX2 static inline __m256 int4_values(__m128i codes)
{
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(codes), set1(8)));
}

AVX2 static void int4_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        __m128i bytes = _mm_loadl_epi64((const void *)(codes + i / 2));
        __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
        __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
        __m128i both = _mm_unpacklo_epi8(low, high);

        _mm256_storeu_ps(out + i, int4_values(both));
        _mm256_storeu_ps(out + i + LANES, int4_values(_mm_srli_si128(both, 8)));
    }
    mp_kernels_scalar.int4_decode(codes + i / 2, out + i, n - i);
}

AVX2 static void scale(const float *in, float factor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(in + i), _mm256_set1_ps(factor)));
    mp_kernels_scalar.scale(in + i, factor, out + i, n - i);
}

AVX2 static void scale_blocks(const float *in, const float *factors, size_t width, float *out,
                              size_t n)
{
    for (size_t i = 0; i < n; factors++) {
        size_t end = n - i < width ? n : i + width;
        float factor;

        memcpy(&factor, factors, sizeof(factor));
        for (; i + LANES <= end; i += LANES)
            _mm256_storeu_ps(out + i,
                             _mm256_mul_ps(_mm256_loadu_ps(in + i), _mm256_set1_ps(factor)));
        if (i < end)
            mp_kernels_scalar.scale(in + i, factor, out + i, end - i);
        i = end;
    }
}

AVX2 static void divide(const float *in, float divisor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(out + i, _mm256_div_ps(_mm256_loadu_ps(in + i), _mm256_set1_ps(divisor)));
    mp_kernels_scalar.divide(in + i, divisor, out + i, n - i);
}

AVX2 static inline uint32_t largest_lane(__m256i v)
{
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_max_epu32(four, _mm_unpackhi_epi64(four, four));
    __m128i one = _mm_max_epu32(two, _mm_shuffle_epi32(two, 1));

    return (uint32_t)_mm_cvtsi128_si32(one);
}

AVX2 static uint32_t amax_bits(const float *in, size_t n)
{
    __m256i amax = _mm256_setzero_si256();
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        amax = _mm256_max_epu32(amax, magnitude_of(load_bits(in + i)));

    uint32_t vectors = largest_lane(amax);
    uint32_t rest = mp_kernels_scalar.amax_bits(in + i, n - i);
    return vectors > rest ? vectors : rest;
}

AVX2 static void amax_blocks(const float *in, size_t width, uint32_t *amax, size_t n)
{
    for (size_t i = 0; i < n; amax++) {
        size_t end = n - i < width ? n : i + width;
        __m256i vectors = _mm256_setzero_si256();
        uint32_t rest = 0;

        for (; i + LANES <= end; i += LANES)
            vectors = _mm256_max_epu32(vectors, magnitude_of(load_bits(in + i)));
        if (i < end)
            rest = mp_kernels_scalar.amax_bits(in + i, end - i);
        uint32_t largest = largest_lane(vectors);
        largest = largest > rest ? largest : rest;
        memcpy(amax, &largest, sizeof(largest));
        i = end;
    }
}

AVX2 static bool reaches(const void *in, size_t n, unsigned bits, bool is_signed, uint32_t limit)
{
    const mp_lane_test test = mp_lane_test_of(bits, is_signed, limit);
    const uint8_t *bytes = in;
    size_t size = n * (bits / 8);
    __m256i top = _mm256_set1_epi64x((long long)test.top);
    __m256i lack = _mm256_set1_epi64x((long long)test.lack);
    __m256i either = _mm256_set1_epi64x((long long)test.either);
    __m256i found = _mm256_setzero_si256();
    size_t i = 0;

    for (; i + 32 <= size; i += 32) {
        __m256i words = load_bits(bytes + i);
        __m256i sums = _mm256_add_epi64(_mm256_andnot_si256(top, words), lack);

        found = _mm256_or_si256(found, _mm256_and_si256(sums, _mm256_or_si256(words, either)));
    }
    return !_mm256_testz_si256(found, top) ||
           mp_kernels_scalar.reaches(bytes + i, (size - i) / (bits / 8), bits, is_signed, limit);
}

AVX2 static void mxfp4_decode(const uint8_t *codes, const uint8_t *scales, float *out, size_t n)
{
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        e2m1_decode32(codes + block * PACKED, _mm256_set1_ps(mp_ue8m0_value(scales[block])),
                      out + block * MP_MX_BLOCK);
}

/* Largest of 32 magnitudes, as bits. */
AVX2 static inline uint32_t amax32(const float *in)
{
    __m256i amax = _mm256_setzero_si256();

    for (int i = 0; i < MP_MX_BLOCK; i += LANES)
        amax = _mm256_max_epu32(amax, magnitude_of(load_bits(in + i)));
    return largest_lane(amax);
}

/* Up to MP_MX_GROUP blocks. */
AVX2 static inline void encode_group(const float *in, uint8_t *codes, uint8_t *scales,
                                     size_t blocks, const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP];
    float multipliers[MP_MX_GROUP];

    for (size_t i = 0; i < blocks; i++)
        amax[i] = amax32(in + i * MP_MX_BLOCK);
    mp_mx_exponents(amax, blocks, options->amax_floor, MP_E2M1_MAX, scales, multipliers);
    for (size_t i = 0; i < blocks; i++)
        e2m1_encode32(in + i * MP_MX_BLOCK, _mm256_set1_ps(multipliers[i]), codes + i * PACKED,
                      options->rounding);
}

AVX2 static void mxfp4_encode(const float *in, uint8_t *codes, uint8_t *scales, size_t n,
                              const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;

    if (options->scale_rule == MP_SCALE_MSE) {
        mp_mxfp4_encode_mse(&mp_kernels_avx2, in, codes, scales, n, options);
        return;
    }
    for (size_t i = 0; i < blocks; i += MP_MX_GROUP)
        encode_group(in + i * MP_MX_BLOCK, codes + i * PACKED, scales + i,
                     blocks - i < MP_MX_GROUP ? blocks - i : MP_MX_GROUP, options);
}

/* Largest of 32 BF16 magnitudes. */
AVX2 static inline uint32_t amax_bf16(__m256i low, __m256i high)
{
    const __m256i mask = _mm256_set1_epi16(MP_BF16_ABS);
    __m256i half = _mm256_max_epu16(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
    __m128i quarter =
        _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    /* The instruction finds the smallest, so look for the smallest complement. */
    __m128i smallest = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));

    return 0xffff & ~(uint32_t)_mm_cvtsi128_si32(smallest);
}

/* 16 BF16 times a power of two, as BF16: exact but for subnormal products,
 * which are cut off and far below the smallest step of E2M1. */
AVX2 static inline __m256i scale_bf16(__m256i v, __m256 multiplier)
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
AVX2 static inline __m256i e2m1_codes_bf16(__m256i v, mp_rounding rounding)
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
AVX2 static inline size_t encode_group_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales,
                                            size_t blocks, const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP];
    float multipliers[MP_MX_GROUP];
    size_t finite = 0;

    for (; finite < blocks; finite++) {
        const uint16_t *block = in + finite * MP_MX_BLOCK;
        uint32_t largest = amax_bf16(load_bits(block), load_bits(block + 16));

        if (largest >= MP_BF16_INF)
            break;
        amax[finite] = largest << 16;
    }
    mp_mx_exponents(amax, finite, options->amax_floor, MP_E2M1_MAX, scales, multipliers);
    for (size_t i = 0; i < finite; i++) {
        __m256 multiplier = _mm256_set1_ps(multipliers[i]);
        __m256i low = scale_bf16(load_bits(in + i * MP_MX_BLOCK), multiplier);
        __m256i high = scale_bf16(load_bits(in + i * MP_MX_BLOCK + 16), multiplier);

        low = e2m1_codes_bf16(low, options->rounding);
        high = e2m1_codes_bf16(high, options->rounding);
        /* The pack works within 128-bit halves; this puts the quarters in order. */
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
        store_nibbles(bytes, codes + i * PACKED);
    }
    return finite;
}

AVX2 static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales, size_t n,
                                     const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;

    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&mp_kernels_avx2, in, codes, scales, n, options);
    for (size_t i = 0; i < blocks; i += MP_MX_GROUP) {
        size_t group = blocks - i < MP_MX_GROUP ? blocks - i : MP_MX_GROUP;
        size_t finite =
            encode_group_bf16(in + i * MP_MX_BLOCK, codes + i * PACKED, scales + i, group, options);

        if (finite < group)
            return (i + finite) * MP_MX_BLOCK;
    }
    return n;
}

AVX2 static inline uint32_t sum_lanes(__m256i v)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    __m128i one = _mm_add_epi32(two, _mm_shuffle_epi32(two, 1));

    return (uint32_t)_mm_cvtsi128_si32(one);
}

/* sums += v^2, lane by lane */
AVX2 static inline void add_squared(float sums[LANES], __m256 v)
{
    _mm256_storeu_ps(sums, _mm256_fmadd_ps(v, v, _mm256_loadu_ps(sums)));
}

AVX2 static void add_group_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                size_t blocks, mp_loss *loss)
{
    const __m256i zero = _mm256_setzero_si256();
    uint8_t largest = mp_loss_exponent(scales, blocks);
    __m256 multiplier = _mm256_set1_ps(mp_mx_multiplier(largest));
    float error[MP_MX_BLOCK] = {0};
    float signal[MP_MX_BLOCK] = {0};
    __m256i saturated = zero;
    __m256i flushed = zero;

    for (size_t i = 0; i < blocks; i++, in += MP_MX_BLOCK) {
        __m256 ratio = _mm256_set1_ps(mp_loss_ratio(scales[i], largest));
        __m256i limit = set1(mp_loss_limit(scales[i]) << 16);
        float values[MP_MX_BLOCK];

        e2m1_decode32(codes + i * PACKED, _mm256_set1_ps(1.0f), values);
        for (int at = 0; at < MP_MX_BLOCK; at += LANES) {
            __m128i half = _mm_loadu_si128((const void *)(in + at));
            __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
            __m256i magnitude = magnitude_of(bits);
            __m256 x = _mm256_mul_ps(_mm256_castsi256_ps(bits), multiplier);
            __m256 value = _mm256_loadu_ps(values + at);
            __m256i no_code =
                _mm256_castps_si256(_mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_EQ_OQ));
            __m256i lost = _mm256_andnot_si256(_mm256_cmpeq_epi32(magnitude, zero), no_code);

            add_squared(error + at, _mm256_sub_ps(_mm256_mul_ps(value, ratio), x));
            add_squared(signal + at, x);
            saturated = _mm256_sub_epi32(saturated, _mm256_cmpgt_epi32(magnitude, limit));
            flushed = _mm256_sub_epi32(flushed, lost);
        }
    }
    loss->saturated += sum_lanes(saturated);
    loss->flushed += sum_lanes(flushed);
    mp_loss_add_group(loss, error, signal, largest);
}

AVX2 static void mxfp4_loss_bf16(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                 size_t n, double sums[2], uint64_t counts[2])
{
    mp_mxfp4_loss(add_group_loss, in, codes, scales, n, sums, counts);
}

AVX2 static void error_sums(const float *a, const float *b, size_t n, double sums[2])
{
    __m256d error[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    __m256d signal[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    double error_lanes[8];
    double signal_lanes[8];
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        for (int half = 0; half < 2; half++) {
            __m256d original = _mm256_cvtps_pd(_mm_loadu_ps(b + i + 4 * half));
            __m256d decoded = _mm256_cvtps_pd(_mm_loadu_ps(a + i + 4 * half));
            __m256d difference = _mm256_sub_pd(decoded, original);

            error[half] = _mm256_add_pd(error[half], _mm256_mul_pd(difference, difference));
            signal[half] = _mm256_add_pd(signal[half], _mm256_mul_pd(original, original));
        }
    }
    for (int half = 0; half < 2; half++) {
        _mm256_storeu_pd(error_lanes + 4 * half, error[half]);
        _mm256_storeu_pd(signal_lanes + 4 * half, signal[half]);
    }
    mp_add_squares(a + i, b + i, n - i, error_lanes, signal_lanes);
    sums[0] += mp_sum_lanes(error_lanes);
    sums[1] += mp_sum_lanes(signal_lanes);
}

AVX2 static void count_lost(const float *original, const float *decoded, size_t n,
                            const float *limits, size_t width, uint64_t counts[2])
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i saturated = zero;
    __m256i flushed = zero;

    for (size_t i = 0; i < n; limits++) {
        size_t end = n - i < width ? n : i + width;
        uint32_t limit;

        memcpy(&limit, limits, sizeof(limit));
        for (; i + LANES <= end; i += LANES) {
            __m256i before = magnitude_of(load_bits(original + i));
            __m256i after = magnitude_of(load_bits(decoded + i));
            __m256i above = _mm256_cmpgt_epi32(before, set1(limit));
            __m256i lost = _mm256_andnot_si256(_mm256_cmpeq_epi32(before, zero),
                                               _mm256_cmpeq_epi32(after, zero));

            saturated = _mm256_sub_epi32(saturated, above);
            flushed = _mm256_sub_epi32(flushed, lost);
        }
        if (i < end)
            mp_kernels_scalar.count_lost(original + i, decoded + i, end - i, limits, width, counts);
        i = end;
    }
    counts[0] += sum_lanes(saturated);
    counts[1] += sum_lanes(flushed);
}

const mp_kernels mp_kernels_avx2 = {
    .level = "avx2",
    .bf16_decode = bf16_decode,
    .bf16_encode = bf16_encode,
    .f16_decode = f16_decode,
    .e4m3_decode = e4m3_decode,
    .e4m3_encode = e4m3_encode,
    .e2m1_decode = e2m1_decode,
    .e2m1_encode = e2m1_encode,
    .ue8m0_decode = ue8m0_decode,
    .ue8m0_encode = ue8m0_encode,
    .int8_decode = int8_decode,
    .int8_encode = int8_encode,
    .int4_decode = int4_decode,
    .scale = scale,
    .scale_blocks = scale_blocks,
    .divide = divide,
    .amax_bits = amax_bits,
    .amax_blocks = amax_blocks,
    .reaches = reaches,
    .mxfp4_decode = mxfp4_decode,
    .mxfp4_encode = mxfp4_encode,
    .mxfp4_encode_bf16 = mxfp4_encode_bf16,
    .mxfp4_loss_bf16 = mxfp4_loss_bf16,
    .error_sums = error_sums,
    .count_lost = count_lost,
};

#endif
