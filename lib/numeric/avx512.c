/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for x86-64 with AVX-512 F, BW, DQ and VL. Ends of runs that do
 * not fill a vector go to the scalar kernels. */
#include "numeric/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

#define LANES  16 /* float32 in a vector */
#define PACKED (MP_MX_BLOCK / 2)

_Static_assert(MP_MX_GROUP == LANES && MP_LOSS_GROUP == LANES, "a lane for each block of a group");

AVX512 static inline __m512i set1(uint32_t bits)
{
    return _mm512_set1_epi32((int)bits);
}

AVX512 static inline __m512i magnitude_of(__m512i bits)
{
    return _mm512_and_si512(bits, set1(MP_F32_ABS));
}

AVX512 static inline __m512i sign_of(__m512i bits)
{
    return _mm512_andnot_si512(set1(MP_F32_ABS), bits);
}

AVX512 static void bf16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(in + i)));

        _mm512_storeu_si512(out + i, _mm512_slli_epi32(codes, 16));
    }
    mp_kernels_scalar.bf16_decode(in + i, out + i, n - i);
}

AVX512 static void bf16_encode(const float *in, uint16_t *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i bits = _mm512_loadu_si512(in + i);
        __m512i upper = _mm512_srli_epi32(bits, 16);
        __m512i odd = _mm512_and_si512(upper, set1(1));
        __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, set1(0x7fff)));
        __m512i codes = _mm512_srli_epi32(sum, 16);
        __mmask16 nan = _mm512_cmpgt_epu32_mask(magnitude_of(bits), set1(MP_F32_INF));

        codes = _mm512_mask_or_epi32(codes, nan, upper, set1(0x40));
        _mm256_storeu_si256((void *)(out + i), _mm512_cvtepi32_epi16(codes));
    }
    mp_kernels_scalar.bf16_encode(in + i, out + i, n - i);
}

AVX512 static void f16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(in + i))));
    mp_kernels_scalar.f16_decode(in + i, out + i, n - i);
}

AVX512 static void e4m3_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(in + i)));
        __m512i sign = _mm512_slli_epi32(_mm512_and_si512(codes, set1(0x80)), 24);
        __m512i magnitude = _mm512_and_si512(codes, set1(0x7f));
        __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 20), set1((127 - 7) << 23));
        __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(0x1p-9f));
        __mmask16 subnormal = _mm512_cmplt_epu32_mask(magnitude, set1(8));
        __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, set1(0x7f));

        bits = _mm512_mask_mov_epi32(bits, subnormal, _mm512_castps_si512(steps));
        bits = _mm512_mask_mov_epi32(bits, nan, set1(MP_F32_NAN));
        _mm512_storeu_si512(out + i, _mm512_or_si512(bits, sign));
    }
    mp_kernels_scalar.e4m3_decode(in + i, out + i, n - i);
}

AVX512 static void e4m3_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i bits = _mm512_loadu_si512(in + i);
        __m512i sign = _mm512_srli_epi32(sign_of(bits), 24);
        __m512i magnitude = magnitude_of(bits);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), set1(1));
        __m512i sum = _mm512_add_epi32(magnitude, _mm512_add_epi32(odd, set1(0x7ffff)));
        __m512i codes = _mm512_sub_epi32(_mm512_srli_epi32(sum, 20), set1((127 - 7) << 3));
        __m512 steps = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f));
        __m512i rounded = _mm512_sub_epi32(_mm512_castps_si512(steps), set1(0x46800000));
        __mmask16 subnormal = _mm512_cmplt_epu32_mask(magnitude, set1(0x3c800000)); /* 2^-6 */
        __mmask16 nan = _mm512_cmpgt_epu32_mask(magnitude, set1(MP_F32_INF));

        codes = _mm512_mask_mov_epi32(codes, subnormal, rounded);
        codes = _mm512_min_epu32(codes, set1(0x7e));
        codes = _mm512_mask_mov_epi32(codes, nan, set1(0x7f));
        codes = _mm512_or_si512(codes, sign);
        _mm_storeu_si128((void *)(out + i), _mm512_cvtepi32_epi8(codes));
    }
    mp_kernels_scalar.e4m3_encode(in + i, out + i, n - i);
}

/* Values of all codes. */
AVX512 static inline __m512 e2m1_table(void)
{
    return _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f,
                          -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
}

AVX512 static inline __m512 e2m1_values(__m512i codes)
{
    return _mm512_permutexvar_ps(codes, e2m1_table());
}

/* 16 packed bytes as 32 codes, one a byte, in order. */
AVX512 static inline __m256i unpack_codes(const uint8_t *codes)
{
    __m128i bytes = _mm_loadu_si128((const void *)codes);
    __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));

    return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
}

/* out[0..31] = value of code * factor */
AVX512 static inline void e2m1_decode32(const uint8_t *codes, __m512 factor, float *out)
{
    __m256i nibbles = unpack_codes(codes);
    __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(nibbles));
    __m512i second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(nibbles, 1));

    _mm512_storeu_ps(out, _mm512_mul_ps(e2m1_values(first), factor));
    _mm512_storeu_ps(out + LANES, _mm512_mul_ps(e2m1_values(second), factor));
}

AVX512 static void e2m1_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 32 <= n; i += 32)
        e2m1_decode32(codes + i / 2, _mm512_set1_ps(1.0f), out + i);
    mp_kernels_scalar.e2m1_decode(codes + i / 2, out + i, n - i);
}

/* The code of each quarter of a binade from 0.25 on, the smallest midpoint, the first
 * entry being that of all below; with the sign bit set where the code can have a sign. */
static const uint16_t quarter_codes[2][32] = {
    [MP_ROUND_DEEPGEMM] = {0,  9,  9,  9,  9,  9,  9,  10, 10, 10, 11, 11, 12, 12, 13, 13,
                           14, 14, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15},
    [MP_ROUND_OCP] = {8,  9,  9,  9,  9,  9,  9,  10, 10, 10, 11, 11, 12, 12, 13, 13,
                      14, 14, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15},
};

/* Encodes 16 elements into 8 bytes. All midpoints between values are 1.00, 1.01, 1.10 or
 * 1.11 (binary) times a power of two, so that the quarter of a binade decides the code. A
 * magnitude at the very beginning of a quarter, where ties are, counts for the one before;
 * to even, ties go up from 1.10 and 1.11. */
AVX512 static inline void e2m1_encode16(__m512 in, uint8_t *codes, mp_rounding rounding)
{
    const __m512i start = set1(0x3e800000 - 0x1fffff); /* 0.25, less a quarter but for one bit */
    __m512i table = _mm512_loadu_si512(quarter_codes[rounding]);
    __m512i bits = _mm512_castps_si512(in);
    __m512i magnitude = magnitude_of(bits);

    if (rounding == MP_ROUND_OCP)
        magnitude = _mm512_add_epi32(magnitude,
                                     _mm512_and_si512(_mm512_srli_epi32(magnitude, 22), set1(1)));

    __m512i above = _mm512_sub_epi32(_mm512_max_epu32(magnitude, start), start);
    __m512i quarter = _mm512_min_epu32(_mm512_srli_epi32(above, 21), set1(31));
    __m512i code = _mm512_permutexvar_epi16(quarter, table);
    __m512i sign = _mm512_or_si512(_mm512_srai_epi32(bits, 31), set1(7));

    code = _mm512_and_si512(_mm512_and_si512(code, sign), set1(15));
    /* Element 2j+1 lies in the upper half of 64-bit lane j. */
    code = _mm512_or_si512(code, _mm512_srli_epi64(code, 28));
    _mm_storel_epi64((void *)codes, _mm512_cvtepi64_epi8(code));
}

AVX512 static void e2m1_encode(const float *in, uint8_t *codes, size_t n, mp_rounding rounding)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        e2m1_encode16(_mm512_loadu_ps(in + i), codes + i / 2, rounding);
    mp_kernels_scalar.e2m1_encode(in + i, codes + i / 2, n - i, rounding);
}

AVX512 static void ue8m0_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(in + i)));
        __m512i bits = _mm512_slli_epi32(codes, 23);

        bits = _mm512_mask_mov_epi32(bits, _mm512_testn_epi32_mask(codes, codes), set1(0x00400000));
        bits = _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(codes, set1(255)),
                                     set1(MP_F32_NAN));
        _mm512_storeu_si512(out + i, bits);
    }
    mp_kernels_scalar.ue8m0_decode(in + i, out + i, n - i);
}

/* The exponent bytes of the smallest powers of two that are not below magnitudes. */
AVX512 static inline __m512i ue8m0_ceil(__m512i magnitude)
{
    /* A mantissa that is not zero carries into the exponent. */
    __m512i sum = _mm512_add_epi32(magnitude, set1(MP_F32_MANTISSA));

    return _mm512_min_epu32(_mm512_max_epu32(_mm512_srli_epi32(sum, 23), set1(1)), set1(254));
}

AVX512 static void ue8m0_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i magnitude = magnitude_of(_mm512_loadu_si512(in + i));

        _mm_storeu_si128((void *)(out + i), _mm512_cvtepi32_epi8(ue8m0_ceil(magnitude)));
    }
    mp_kernels_scalar.ue8m0_encode(in + i, out + i, n - i);
}

AVX512 static void int8_decode(const int8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(in + i)));

        _mm512_storeu_ps(out + i, _mm512_cvtepi32_ps(codes));
    }
    mp_kernels_scalar.int8_decode(in + i, out + i, n - i);
}

AVX512 static void int8_encode(const float *in, float factor, int8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m512 x = _mm512_div_ps(_mm512_loadu_ps(in + i), _mm512_set1_ps(factor));

        x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(127)), _mm512_set1_ps(-127));
        _mm_storeu_si128((void *)(out + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
    }
    mp_kernels_scalar.int8_encode(in + i, factor, out + i, n - i);
}

AVX512 static void int4_decode(const uint8_t *codes, float *out, size_t n)
{
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    size_t i = 0;

    for (; i + 32 <= n; i += 32) {
        __m256i nibbles = unpack_codes(codes + i / 2);
        __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(nibbles));
        __m512i second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(nibbles, 1));

        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(first, values));
        _mm512_storeu_ps(out + i + LANES, _mm512_permutexvar_ps(second, values));
    }
    mp_kernels_scalar.int4_decode(codes + i / 2, out + i, n - i);
}

AVX512 static void scale(const float *in, float factor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_loadu_ps(in + i), _mm512_set1_ps(factor)));
    mp_kernels_scalar.scale(in + i, factor, out + i, n - i);
}

AVX512 static void scale_blocks(const float *in, const float *factors, size_t width, float *out,
                                size_t n)
{
    for (size_t i = 0; i < n; factors++) {
        size_t end = n - i < width ? n : i + width;
        float factor;

        memcpy(&factor, factors, sizeof(factor));
        for (; i + LANES <= end; i += LANES)
            _mm512_storeu_ps(out + i,
                             _mm512_mul_ps(_mm512_loadu_ps(in + i), _mm512_set1_ps(factor)));
        if (i < end)
            mp_kernels_scalar.scale(in + i, factor, out + i, end - i);
        i = end;
    }
}

AVX512 static void divide(const float *in, float divisor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        _mm512_storeu_ps(out + i, _mm512_div_ps(_mm512_loadu_ps(in + i), _mm512_set1_ps(divisor)));
    mp_kernels_scalar.divide(in + i, divisor, out + i, n - i);
}

AVX512 static uint32_t amax_bits(const float *in, size_t n)
{
    __m512i amax = _mm512_setzero_si512();
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        amax = _mm512_max_epu32(amax, magnitude_of(_mm512_loadu_si512(in + i)));

    uint32_t vectors = _mm512_reduce_max_epu32(amax);
    uint32_t rest = mp_kernels_scalar.amax_bits(in + i, n - i);
    return vectors > rest ? vectors : rest;
}

AVX512 static void amax_blocks(const float *in, size_t width, uint32_t *amax, size_t n)
{
    for (size_t i = 0; i < n; amax++) {
        size_t end = n - i < width ? n : i + width;
        __m512i vectors = _mm512_setzero_si512();
        uint32_t rest = 0;

        for (; i + LANES <= end; i += LANES)
            vectors = _mm512_max_epu32(vectors, magnitude_of(_mm512_loadu_si512(in + i)));
        if (i < end)
            rest = mp_kernels_scalar.amax_bits(in + i, end - i);
        uint32_t largest = _mm512_reduce_max_epu32(vectors);
        largest = largest > rest ? largest : rest;
        memcpy(amax, &largest, sizeof(largest));
        i = end;
    }
}

AVX512 static bool reaches(const void *in, size_t n, unsigned bits, bool is_signed, uint32_t limit)
{
    const mp_lane_test test = mp_lane_test_of(bits, is_signed, limit);
    const uint8_t *bytes = in;
    size_t size = n * (bits / 8);
    __m512i top = _mm512_set1_epi64((long long)test.top);
    __m512i lack = _mm512_set1_epi64((long long)test.lack);
    __m512i either = _mm512_set1_epi64((long long)test.either);
    __m512i found = _mm512_setzero_si512();
    size_t i = 0;

    for (; i + 64 <= size; i += 64) {
        __m512i words = _mm512_loadu_si512(bytes + i);
        __m512i sums = _mm512_add_epi64(_mm512_andnot_si512(top, words), lack);

        found = _mm512_or_si512(found, _mm512_and_si512(sums, _mm512_or_si512(words, either)));
    }
    return _mm512_test_epi64_mask(found, top) ||
           mp_kernels_scalar.reaches(bytes + i, (size - i) / (bits / 8), bits, is_signed, limit);
}

AVX512 static void mxfp4_decode(const uint8_t *codes, const uint8_t *scales, float *out, size_t n)
{
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        e2m1_decode32(codes + block * PACKED, _mm512_set1_ps(mp_ue8m0_value(scales[block])),
                      out + block * MP_MX_BLOCK);
}

/* The first `blocks` lanes, one for each block of a group. */
AVX512 static inline __mmask16 lanes_of(size_t blocks)
{
    return (__mmask16)((1u << blocks) - 1);
}

/* The exponents of a group of blocks from their amax, a lane each. */
AVX512 static inline __m512i exponents_of(__m512i amax_bits, float floor)
{
    __m512 amax = _mm512_max_ps(_mm512_castsi512_ps(amax_bits), _mm512_set1_ps(floor));

    return ue8m0_ceil(_mm512_castps_si512(_mm512_div_ps(amax, _mm512_set1_ps(MP_E2M1_MAX))));
}

/* 2^(127-e) for lanes of 1..254; of 254 it is the subnormal 2^-127. */
AVX512 static inline __m512i multipliers_of(__m512i e)
{
    return _mm512_max_epu32(_mm512_slli_epi32(_mm512_sub_epi32(set1(254), e), 23), set1(0x400000));
}

/* Largest of 32 magnitudes, as bits. */
AVX512 static inline uint32_t amax32(const float *in)
{
    __m512i first = magnitude_of(_mm512_loadu_si512(in));
    __m512i second = magnitude_of(_mm512_loadu_si512(in + LANES));

    return _mm512_reduce_max_epu32(_mm512_max_epu32(first, second));
}

/* Up to MP_MX_GROUP blocks. */
AVX512 static inline void encode_group(const float *in, uint8_t *codes, uint8_t *scales,
                                       size_t blocks, const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP] = {0};
    float multipliers[MP_MX_GROUP];

    for (size_t i = 0; i < blocks; i++)
        amax[i] = amax32(in + i * MP_MX_BLOCK);

    __m512i e = exponents_of(_mm512_loadu_si512(amax), options->amax_floor);

    _mm512_mask_cvtepi32_storeu_epi8(scales, lanes_of(blocks), e);
    _mm512_storeu_si512(multipliers, multipliers_of(e));
    for (size_t i = 0; i < blocks; i++) {
        __m512 first = _mm512_loadu_ps(in + i * MP_MX_BLOCK);
        __m512 second = _mm512_loadu_ps(in + i * MP_MX_BLOCK + LANES);
        __m512 multiplier = _mm512_set1_ps(multipliers[i]);

        e2m1_encode16(_mm512_mul_ps(first, multiplier), codes + i * PACKED, options->rounding);
        e2m1_encode16(_mm512_mul_ps(second, multiplier), codes + i * PACKED + PACKED / 2,
                      options->rounding);
    }
}

AVX512 static void mxfp4_encode(const float *in, uint8_t *codes, uint8_t *scales, size_t n,
                                const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;

    if (options->scale_rule == MP_SCALE_MSE) {
        mp_mxfp4_encode_mse(&mp_kernels_avx512, in, codes, scales, n, options);
        return;
    }
    for (size_t i = 0; i < blocks; i += MP_MX_GROUP)
        encode_group(in + i * MP_MX_BLOCK, codes + i * PACKED, scales + i,
                     blocks - i < MP_MX_GROUP ? blocks - i : MP_MX_GROUP, options);
}

AVX512 static inline __m512i load_magnitudes_bf16(const uint16_t *in)
{
    return _mm512_and_si512(_mm512_loadu_si512(in), _mm512_set1_epi16(MP_BF16_ABS));
}

/* The amax of each block of a whole group of BF16, a lane each. Blocks move together
 * into one vector while the halves of each are folded onto each other. */
AVX512 static inline __m512i amax_bf16(const uint16_t *in)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i v[MP_MX_GROUP / 2];

    for (int i = 0; i < 8; i++) {
        __m512i even = load_magnitudes_bf16(in + 2 * i * MP_MX_BLOCK);
        __m512i odd = load_magnitudes_bf16(in + (2 * i + 1) * MP_MX_BLOCK);

        v[i] = _mm512_max_epu16(_mm512_shuffle_i64x2(even, odd, 0x44),
                                _mm512_shuffle_i64x2(even, odd, 0xee));
    }
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_max_epu16(_mm512_shuffle_i64x2(v[2 * i], v[2 * i + 1], 0x88),
                                _mm512_shuffle_i64x2(v[2 * i], v[2 * i + 1], 0xdd));
    for (int i = 0; i < 2; i++)
        v[i] = _mm512_max_epu16(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));

    __m512 low = _mm512_castsi512_ps(v[0]);
    __m512 high = _mm512_castsi512_ps(v[1]);
    __m512i pairs = _mm512_max_epu16(_mm512_castps_si512(_mm512_shuffle_ps(low, high, 0x88)),
                                     _mm512_castps_si512(_mm512_shuffle_ps(low, high, 0xdd)));
    __m512i amax = _mm512_max_epu16(pairs, _mm512_srli_epi32(pairs, 16));
    return _mm512_permutexvar_epi32(order, _mm512_and_si512(amax, set1(0xffff)));
}

/* 32 BF16 times a power of two, as BF16: exact but for subnormal products,
 * which are cut off and far below the smallest step of E2M1. */
AVX512 static inline __m512i scale_bf16(__m512i block, __m512 multiplier)
{
    const __m512i zero = _mm512_setzero_si512();
    __m512 low = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, block));
    __m512 high = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, block));

    low = _mm512_mul_ps(low, multiplier);
    high = _mm512_mul_ps(high, multiplier);
    return _mm512_packus_epi32(_mm512_srli_epi32(_mm512_castps_si512(low), 16),
                               _mm512_srli_epi32(_mm512_castps_si512(high), 16));
}

/* The bits of BF16 0.25, the smallest midpoint between values of E2M1. */
#define SMALLEST_MIDPOINT (125 << 7)

/* Encodes 32 BF16 into 16 bytes. start: the bits of the smallest midpoint under the scale
 * of the block, less 31. */
AVX512 static inline void e2m1_encode_bf16(__m512i in, __m512i start, uint8_t *codes,
                                           mp_rounding rounding)
{
    __m512i magnitude = _mm512_and_si512(in, _mm512_set1_epi16(MP_BF16_ABS));
    __m512i sign = _mm512_srai_epi16(in, 15);

    if (rounding == MP_ROUND_OCP) /* ties go up from 1.10 and 1.11 */
        magnitude = _mm512_add_epi16(
            magnitude, _mm512_and_si512(_mm512_srli_epi16(magnitude, 6), _mm512_set1_epi16(1)));

    __m512i quarter = _mm512_srli_epi16(_mm512_subs_epu16(magnitude, start), 5);
    __m512i code = _mm512_permutexvar_epi16(quarter, _mm512_loadu_si512(quarter_codes[rounding]));

    code = _mm512_and_si512(code, _mm512_or_si512(sign, _mm512_set1_epi16(7)));
    code = _mm512_madd_epi16(code, set1(16 << 16 | 1)); /* even + 16 * odd */
    _mm_storeu_si128((void *)codes, _mm512_cvtepi32_epi8(code));
}

/* Not the elements are scaled, but what they are compared with: e is above 2. */
AVX512 static inline void encode_unscaled(const uint16_t *in, uint8_t *codes, __m512i e,
                                          size_t blocks, mp_rounding rounding)
{
    uint32_t starts[MP_MX_GROUP];
    __m512i bits =
        _mm512_add_epi32(_mm512_slli_epi32(e, 7), set1(SMALLEST_MIDPOINT - (127 << 7) - 31));

    _mm512_storeu_si512(starts, _mm512_or_si512(bits, _mm512_slli_epi32(bits, 16)));
    for (size_t i = 0; i < blocks; i++)
        e2m1_encode_bf16(_mm512_loadu_si512(in + i * MP_MX_BLOCK), set1(starts[i]),
                         codes + i * PACKED, rounding);
}

/* The same for any e. Where it is small, elements or midpoints may be subnormal, and
 * their bits do not scale by an addition. */
AVX512 static inline void encode_scaled(const uint16_t *in, uint8_t *codes, __m512i e,
                                        size_t blocks, mp_rounding rounding)
{
    const __m512i start = _mm512_set1_epi16(SMALLEST_MIDPOINT - 31);
    float multipliers[MP_MX_GROUP];

    _mm512_storeu_si512(multipliers, multipliers_of(e));
    for (size_t i = 0; i < blocks; i++)
        e2m1_encode_bf16(
            scale_bf16(_mm512_loadu_si512(in + i * MP_MX_BLOCK), _mm512_set1_ps(multipliers[i])),
            start, codes + i * PACKED, rounding);
}

/* A group of which the first `blocks` count; returns how many of these precede one
 * that is not finite. */
AVX512 static inline size_t encode_group_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales,
                                              size_t blocks, const mp_quant_options *options)
{
    __m512i amax = amax_bf16(in);
    uint32_t bad = _mm512_cmpge_epu32_mask(amax, set1(MP_BF16_INF));
    size_t finite = bad ? (size_t)__builtin_ctz(bad) : blocks;
    __mmask16 lanes = lanes_of(finite);
    __m512i e = exponents_of(_mm512_slli_epi32(amax, 16), options->amax_floor);

    _mm512_mask_cvtepi32_storeu_epi8(scales, lanes, e);
    if (_mm512_mask_cmple_epu32_mask(lanes, e, set1(2)))
        encode_scaled(in, codes, e, finite, options->rounding);
    else
        encode_unscaled(in, codes, e, finite, options->rounding);
    return finite;
}

AVX512 static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales,
                                       size_t n, const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;
    size_t i = 0;

    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&mp_kernels_avx512, in, codes, scales, n, options);
    for (; i + MP_MX_GROUP <= blocks; i += MP_MX_GROUP) {
        size_t finite = encode_group_bf16(in + i * MP_MX_BLOCK, codes + i * PACKED, scales + i,
                                          MP_MX_GROUP, options);

        if (finite < MP_MX_GROUP)
            return (i + finite) * MP_MX_BLOCK;
    }
    if (i < blocks) {
        uint16_t rest[MP_MX_GROUP * MP_MX_BLOCK] = {0};

        memcpy(rest, in + i * MP_MX_BLOCK, (blocks - i) * MP_MX_BLOCK * sizeof(*in));
        i += encode_group_bf16(rest, codes + i * PACKED, scales + i, blocks - i, options);
    }
    return i * MP_MX_BLOCK;
}

AVX512 static void error_sums(const float *a, const float *b, size_t n, double sums[2])
{
    __m512d error = _mm512_setzero_pd();
    __m512d signal = _mm512_setzero_pd();
    double error_lanes[8];
    double signal_lanes[8];
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        __m512d original = _mm512_cvtps_pd(_mm256_loadu_ps(b + i));
        __m512d difference = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + i)), original);

        error = _mm512_add_pd(error, _mm512_mul_pd(difference, difference));
        signal = _mm512_add_pd(signal, _mm512_mul_pd(original, original));
    }
    _mm512_storeu_pd(error_lanes, error);
    _mm512_storeu_pd(signal_lanes, signal);
    mp_add_squares(a + i, b + i, n - i, error_lanes, signal_lanes);
    sums[0] += mp_sum_lanes(error_lanes);
    sums[1] += mp_sum_lanes(signal_lanes);
}

AVX512 static void count_lost(const float *original, const float *decoded, size_t n,
                              const float *limits, size_t width, uint64_t counts[2])
{
    __m512i saturated = _mm512_setzero_si512();
    __m512i flushed = _mm512_setzero_si512();

    for (size_t i = 0; i < n; limits++) {
        size_t end = n - i < width ? n : i + width;
        uint32_t limit;

        memcpy(&limit, limits, sizeof(limit));
        for (; i + LANES <= end; i += LANES) {
            __m512i before = magnitude_of(_mm512_loadu_si512(original + i));
            __m512i after = magnitude_of(_mm512_loadu_si512(decoded + i));
            __mmask16 above = _mm512_cmpgt_epu32_mask(before, set1(limit));
            __mmask16 zero =
                _mm512_mask_testn_epi32_mask(_mm512_test_epi32_mask(before, before), after, after);

            saturated = _mm512_mask_add_epi32(saturated, above, saturated, set1(1));
            flushed = _mm512_mask_add_epi32(flushed, zero, flushed, set1(1));
        }
        if (i < end)
            mp_kernels_scalar.count_lost(original + i, decoded + i, end - i, limits, width, counts);
        i = end;
    }
    counts[0] += (uint32_t)_mm512_reduce_add_epi32(saturated);
    counts[1] += (uint32_t)_mm512_reduce_add_epi32(flushed);
}

/* What the blocks of a group differ in, a lane each. */
typedef struct loss_blocks {
    float ratios[MP_LOSS_GROUP];    /* as mp_loss_ratio */
    uint32_t limits[MP_LOSS_GROUP]; /* as mp_loss_limit, in either half */
} loss_blocks;

/* Returns the largest exponent. */
AVX512 static inline uint8_t load_loss_blocks(const uint8_t *scales, size_t blocks,
                                              loss_blocks *out)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes_of(blocks), scales));
    uint32_t largest = _mm512_reduce_max_epu32(e);
    __m512i ratio = _mm512_add_epi32(e, set1(127 - largest));
    __m512i limit = _mm512_add_epi32(_mm512_slli_epi32(e, 7), set1(2 << 7 | 0x60));

    ratio = _mm512_max_epi32(ratio, _mm512_setzero_si512());
    _mm512_storeu_si512(out->ratios, _mm512_slli_epi32(ratio, 23));
    limit = _mm512_min_epu32(limit, set1(MP_BF16_INF - 1));
    _mm512_storeu_si512(out->limits, _mm512_or_si512(limit, _mm512_slli_epi32(limit, 16)));
    return (uint8_t)largest;
}

/* The 32 lanes of one of a group's sums. */
typedef struct loss_lanes {
    __m512 even;
    __m512 odd;
} loss_lanes;

AVX512 static inline void add_squared(loss_lanes *lanes, __m512 even, __m512 odd)
{
    lanes->even = _mm512_fmadd_ps(even, even, lanes->even);
    lanes->odd = _mm512_fmadd_ps(odd, odd, lanes->odd);
}

/* As mp_loss_add_group. */
AVX512 static inline void add_lanes(const loss_lanes *lanes, double weight, double sums[8])
{
    __m512 pairs = _mm512_add_ps(lanes->even, lanes->odd);
    __m256 four = _mm256_add_ps(_mm512_castps512_ps256(pairs), _mm512_extractf32x8_ps(pairs, 1));
    __m512d weighted = _mm512_mul_pd(_mm512_cvtps_pd(four), _mm512_set1_pd(weight));

    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), weighted));
}

AVX512 static inline unsigned count_lanes(__mmask32 lanes)
{
    return (unsigned)__builtin_popcount(_cvtmask32_u32(lanes));
}

AVX512 static void add_group_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                  size_t blocks, mp_loss *loss)
{
    /* Byte j of a block's codes goes to all of lane j. */
    const __m512i spread = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), set1(0x01010101));
    loss_blocks block;
    uint8_t largest = load_loss_blocks(scales, blocks, &block);
    __m512 multiplier = _mm512_set1_ps(mp_mx_multiplier(largest));
    loss_lanes error = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    loss_lanes signal = error;
    unsigned saturated = 0;
    unsigned flushed = 0;

    for (size_t i = 0; i < blocks; i++) {
        __m512i bits = _mm512_loadu_si512(in + i * MP_MX_BLOCK);
        __m128i packed = _mm_loadu_si128((const void *)(codes + i * PACKED));
        __m512i code = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(packed), spread);
        __m512 values = _mm512_mul_ps(e2m1_table(), _mm512_set1_ps(block.ratios[i]));
        __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
        __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(bits, set1(0xffff0000)));

        even = _mm512_mul_ps(even, multiplier);
        odd = _mm512_mul_ps(odd, multiplier);
        add_squared(&signal, even, odd);
        even = _mm512_sub_ps(_mm512_permutexvar_ps(code, values), even);
        odd = _mm512_sub_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), values), odd);
        add_squared(&error, even, odd);

        __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(MP_BF16_ABS));
        __mmask32 above = _mm512_cmpgt_epu16_mask(magnitude, set1(block.limits[i]));
        __mmask32 nonzero = _mm512_test_epi16_mask(magnitude, magnitude);
        __mmask32 zero = _mm512_mask_testn_epi16_mask(nonzero, code, set1(0x70 << 16 | 7));
        saturated += count_lanes(above);
        flushed += count_lanes(zero);
    }
    double weight = mp_loss_weight(largest);

    loss->saturated += saturated;
    loss->flushed += flushed;
    add_lanes(&error, weight, loss->error);
    add_lanes(&signal, weight, loss->signal);
}

AVX512 static void mxfp4_loss_bf16(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                   size_t n, double sums[2], uint64_t counts[2])
{
    mp_mxfp4_loss(add_group_loss, in, codes, scales, n, sums, counts);
}

const mp_kernels mp_kernels_avx512 = {
    .level = "avx512",
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
