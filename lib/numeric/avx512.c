/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for x86-64 with AVX-512 F, BW, DQ and VL: what wide.h needs, and the kernels
 * that are better written for these instructions alone.
 *
 * Comparisons give a bit a lane, a single instruction narrows a vector, and a table of 16
 * float32 or 32 16-bit entries fits one register: codes of four bits are looked up, both ways. */
#include "numeric/kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define LANES   16
#define NARROW  1
#define KERNELS mp_kernels_avx512
#define LEVEL   "avx512"

#include "numeric/lanes.h"

_Static_assert(MP_MX_GROUP == LANES && MP_LOSS_GROUP == LANES, "a lane for each block of a group");

/* ------------------------------------------------------------------------
 * Lanes
 */

typedef __mmask16 mask;

INLINE mask above(bits a, bits b)
{
    return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b);
}

INLINE mask above_where(mask where, bits a, bits b)
{
    return _mm512_mask_cmpgt_epi32_mask(where, (__m512i)a, (__m512i)b);
}

INLINE mask equal(bits a, bits b)
{
    return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
}

INLINE mask is_zero(floats v)
{
    return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_EQ_OQ);
}

INLINE bits choose(mask where, bits yes, bits no)
{
    return (bits)_mm512_mask_mov_epi32((__m512i)no, where, (__m512i)yes);
}

INLINE bits count(bits counts, mask where)
{
    return (bits)_mm512_mask_add_epi32((__m512i)counts, where, (__m512i)counts, (__m512i)splat(1));
}

INLINE bits smaller(bits a, bits b)
{
    return (bits)_mm512_min_epi32((__m512i)a, (__m512i)b);
}

INLINE bits larger(bits a, bits b)
{
    return (bits)_mm512_max_epi32((__m512i)a, (__m512i)b);
}

INLINE floats smaller_f(floats a, floats b)
{
    return (floats)_mm512_min_ps((__m512)a, (__m512)b);
}

INLINE floats larger_f(floats a, floats b)
{
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
}

INLINE bits larger_halves(bits a, bits b)
{
    return (bits)_mm512_max_epu16((__m512i)a, (__m512i)b);
}

INLINE floats to_floats(bits v)
{
    return (floats)_mm512_cvtepi32_ps((__m512i)v);
}

INLINE bits to_ints(floats v)
{
    return (bits)_mm512_cvtps_epi32((__m512)v);
}

INLINE floats fma_f(floats a, floats b, floats c)
{
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

INLINE doubles fma_d(doubles a, doubles b, doubles c)
{
    return (doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}

INLINE uint32_t largest_lane(bits v)
{
    return (uint32_t)_mm512_reduce_max_epi32((__m512i)v);
}

INLINE uint32_t sum_of_lanes(bits v)
{
    return (uint32_t)_mm512_reduce_add_epi32((__m512i)v);
}

/* The larger of lanes of quarters that are the first or third of a and b, and the next. */
INLINE __m512i fold_quarters(__m512i a, __m512i b)
{
    return _mm512_max_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* Vectors move together while the halves of each are folded onto each other. */
INLINE bits largest_lanes(const bits v[LANES])
{
    __m512i pairs[8];
    __m512i fours[4];

    UNROLL
    for (int i = 0; i < 8; i++) {
        __m512i even = (__m512i)v[2 * i];
        __m512i odd = (__m512i)v[2 * i + 1];

        pairs[i] =
            _mm512_max_epi32(_mm512_unpacklo_epi32(even, odd), _mm512_unpackhi_epi32(even, odd));
    }
    UNROLL
    for (int i = 0; i < 4; i++)
        fours[i] = _mm512_max_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                    _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
    return (bits)fold_quarters(fold_quarters(fours[0], fours[1]),
                               fold_quarters(fours[2], fours[3]));
}

/* ------------------------------------------------------------------------
 * Loads and stores
 */

INLINE bits load_u8(const uint8_t *in)
{
    return (bits)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)in));
}

INLINE bits load_i8(const int8_t *in)
{
    return (bits)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)in));
}

INLINE bits load_u16(const uint16_t *in)
{
    return (bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)in));
}

INLINE floats load_f16(const uint16_t *in)
{
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)in));
}

INLINE doubles load_doubles(const float *in)
{
    return (doubles)_mm512_cvtps_pd(_mm256_loadu_ps(in));
}

INLINE void to_doubles(floats v, doubles out[2])
{
    out[0] = (doubles)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    out[1] = (doubles)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
}

INLINE void store_u8(uint8_t *out, const bits v[NARROW])
{
    _mm_storeu_si128((void *)out, _mm512_cvtepi32_epi8((__m512i)v[0]));
}

INLINE void store_u16(uint16_t *out, const bits v[NARROW])
{
    _mm256_storeu_si256((void *)out, _mm512_cvtepi32_epi16((__m512i)v[0]));
}

INLINE void unpack_nibbles(const uint8_t *codes, bits out[2])
{
    __m128i bytes = _mm_loadu_si128((const void *)codes);
    __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));

    out[0] = (bits)_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, high));
    out[1] = (bits)_mm512_cvtepu8_epi32(_mm_unpackhi_epi8(low, high));
}

/* ------------------------------------------------------------------------
 * E4M3
 */

/* As in wide.h, but what rounds a magnitude, and what of the sum is not the code, are looked up by
 * the exponent: from 121 to 135 the lowest four bits tell all apart. */
INLINE bits e4m3_codes(bits in)
{
    const bits exponents = (bits)_mm512_setr_epi32(128, 129, 130, 131, 132, 133, 134, 135, 0, 121,
                                                   122, 123, 124, 125, 126, 127);
    const bits large = (exponents + 20) << 23;
    const bits rest = large - ((exponents - 121) << 3);
    bits magnitude = magnitude_of(in);
    bits finite = smaller(magnitude, splat(0x43e00000)); /* 448 */
    __m512i e = (__m512i)(larger(finite, splat(121u << 23)) >> 23);
    floats sum = (floats)finite + (floats)_mm512_permutexvar_epi32(e, (__m512i)large);
    bits code = (bits)sum - (bits)_mm512_permutexvar_epi32(e, (__m512i)rest);

    code = choose(above(magnitude, splat(MP_F32_INF)), splat(0x7f), code);
    return code | (in >> 24 & 0x80);
}

/* ------------------------------------------------------------------------
 * E2M1
 */

INLINE __m512i set1(uint32_t lane)
{
    return _mm512_set1_epi32((int)lane);
}

/* Values of all codes. */
INLINE __m512 e2m1_table(void)
{
    return _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f,
                          -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
}

/* Half of the bytes go to all lanes of each half, and a lane's own nibble to its lowest bits,
 * which are all that the permutation looks at. */
INLINE void e2m1_decode16(const uint8_t *codes, floats out[1])
{
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i at = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    __m512i bytes = _mm512_castsi128_si512(_mm_loadl_epi64((const void *)codes));
    __m512i nibbles = _mm512_srlv_epi32(_mm512_permutexvar_epi32(half, bytes), at);

    out[0] = (floats)_mm512_permutexvar_ps(nibbles, e2m1_table());
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
INLINE void e2m1_encode16(floats in, uint8_t *codes, mp_rounding rounding)
{
    const __m512i start = set1(0x3e800000 - 0x1fffff); /* 0.25, less a quarter but for one bit */
    __m512i table = _mm512_loadu_si512(quarter_codes[rounding]);
    __m512i magnitude = (__m512i)magnitude_of((bits)in);

    if (rounding == MP_ROUND_OCP)
        magnitude = _mm512_add_epi32(magnitude,
                                     _mm512_and_si512(_mm512_srli_epi32(magnitude, 22), set1(1)));

    __m512i above = _mm512_sub_epi32(_mm512_max_epu32(magnitude, start), start);
    __m512i quarter = _mm512_min_epu32(_mm512_srli_epi32(above, 21), set1(31));
    __m512i code = _mm512_permutexvar_epi16(quarter, table);
    __m512i sign = _mm512_or_si512(_mm512_srai_epi32((__m512i)in, 31), set1(7));

    code = _mm512_and_si512(_mm512_and_si512(code, sign), set1(15));
    /* Element 2j+1 lies in the upper half of 64-bit lane j. */
    code = _mm512_or_si512(code, _mm512_srli_epi64(code, 28));
    _mm_storel_epi64((void *)codes, _mm512_cvtepi64_epi8(code));
}

INLINE void e2m1_encode32(const floats v[2], uint8_t *codes, mp_rounding rounding)
{
    e2m1_encode16(v[0], codes, rounding);
    e2m1_encode16(v[1], codes + LANES / 2, rounding);
}

/* ------------------------------------------------------------------------
 * BF16 to mxfp4, and what that loses
 */

/* The first `blocks` lanes, one for each block of a group. */
INLINE __mmask16 lanes_of(size_t blocks)
{
    return (__mmask16)((1u << blocks) - 1);
}

/* The exponent bytes of the smallest powers of two that are not below magnitudes. */
INLINE __m512i ue8m0_ceil(__m512i magnitude)
{
    /* A mantissa that is not zero carries into the exponent. */
    __m512i sum = _mm512_add_epi32(magnitude, set1(MP_F32_MANTISSA));

    return _mm512_min_epu32(_mm512_max_epu32(_mm512_srli_epi32(sum, 23), set1(1)), set1(254));
}

/* The exponents of a group of blocks from their amax, a lane each. */
INLINE __m512i exponents_of(__m512i amax_bits, float floor)
{
    __m512 amax = _mm512_max_ps(_mm512_castsi512_ps(amax_bits), _mm512_set1_ps(floor));

    return ue8m0_ceil(_mm512_castps_si512(_mm512_div_ps(amax, _mm512_set1_ps(MP_E2M1_MAX))));
}

/* 2^(127-e) for lanes of 1..254; of 254 it is the subnormal 2^-127. */
INLINE __m512i multipliers_of(__m512i e)
{
    return _mm512_max_epu32(_mm512_slli_epi32(_mm512_sub_epi32(set1(254), e), 23), set1(0x400000));
}

INLINE __m512i load_magnitudes_bf16(const uint16_t *in)
{
    return _mm512_and_si512(_mm512_loadu_si512(in), _mm512_set1_epi16(MP_BF16_ABS));
}

/* The amax of each block of a whole group of BF16, a lane each. Blocks move together
 * into one vector while the halves of each are folded onto each other. */
INLINE __m512i amax_bf16(const uint16_t *in)
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
INLINE __m512i scale_bf16(__m512i block, __m512 multiplier)
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
INLINE void e2m1_encode_bf16(__m512i in, __m512i start, uint8_t *codes, mp_rounding rounding)
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
INLINE void encode_unscaled(const uint16_t *in, uint8_t *codes, __m512i e, size_t blocks,
                            mp_rounding rounding)
{
    uint32_t starts[MP_MX_GROUP];
    __m512i lowest =
        _mm512_add_epi32(_mm512_slli_epi32(e, 7), set1(SMALLEST_MIDPOINT - (127 << 7) - 31));

    _mm512_storeu_si512(starts, _mm512_or_si512(lowest, _mm512_slli_epi32(lowest, 16)));
    for (size_t i = 0; i < blocks; i++)
        e2m1_encode_bf16(_mm512_loadu_si512(in + i * MP_MX_BLOCK), set1(starts[i]),
                         codes + i * (MP_MX_BLOCK / 2), rounding);
}

/* The same for any e. Where it is small, elements or midpoints may be subnormal, and
 * their bits do not scale by an addition. */
INLINE void encode_scaled(const uint16_t *in, uint8_t *codes, __m512i e, size_t blocks,
                          mp_rounding rounding)
{
    const __m512i start = _mm512_set1_epi16(SMALLEST_MIDPOINT - 31);
    float multipliers[MP_MX_GROUP];

    _mm512_storeu_si512(multipliers, multipliers_of(e));
    for (size_t i = 0; i < blocks; i++)
        e2m1_encode_bf16(
            scale_bf16(_mm512_loadu_si512(in + i * MP_MX_BLOCK), _mm512_set1_ps(multipliers[i])),
            start, codes + i * (MP_MX_BLOCK / 2), rounding);
}

/* A group of which the first `blocks` count; returns how many of these precede one
 * that is not finite. */
INLINE size_t encode_group_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales, size_t blocks,
                                const mp_quant_options *options)
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

TARGET static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales,
                                       size_t n, const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;
    size_t i = 0;

    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&mp_kernels_avx512, in, codes, scales, n, options);
    for (; i + MP_MX_GROUP <= blocks; i += MP_MX_GROUP) {
        size_t finite = encode_group_bf16(in + i * MP_MX_BLOCK, codes + i * (MP_MX_BLOCK / 2),
                                          scales + i, MP_MX_GROUP, options);

        if (finite < MP_MX_GROUP)
            return (i + finite) * MP_MX_BLOCK;
    }
    if (i < blocks) {
        uint16_t rest[MP_MX_GROUP * MP_MX_BLOCK] = {0};

        memcpy(rest, in + i * MP_MX_BLOCK, (blocks - i) * MP_MX_BLOCK * sizeof(*in));
        i +=
            encode_group_bf16(rest, codes + i * (MP_MX_BLOCK / 2), scales + i, blocks - i, options);
    }
    return i * MP_MX_BLOCK;
}

/* What the blocks of a group differ in, a lane each. */
typedef struct loss_blocks {
    float ratios[MP_LOSS_GROUP];    /* as mp_loss_ratio */
    uint32_t limits[MP_LOSS_GROUP]; /* as mp_loss_limit, in either half */
} loss_blocks;

/* Returns the largest exponent. */
INLINE uint8_t load_loss_blocks(const uint8_t *scales, size_t blocks, loss_blocks *out)
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

INLINE void add_squared(loss_lanes *lanes, __m512 even, __m512 odd)
{
    lanes->even = _mm512_fmadd_ps(even, even, lanes->even);
    lanes->odd = _mm512_fmadd_ps(odd, odd, lanes->odd);
}

/* As mp_loss_add_group. */
INLINE void add_lanes(const loss_lanes *lanes, double weight, double sums[8])
{
    __m512 pairs = _mm512_add_ps(lanes->even, lanes->odd);
    __m256 four = _mm256_add_ps(_mm512_castps512_ps256(pairs), _mm512_extractf32x8_ps(pairs, 1));
    __m512d weighted = _mm512_mul_pd(_mm512_cvtps_pd(four), _mm512_set1_pd(weight));

    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), weighted));
}

INLINE unsigned count_lanes(__mmask32 lanes)
{
    return (unsigned)__builtin_popcount(_cvtmask32_u32(lanes));
}

TARGET static void add_group_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
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
        __m512i original = _mm512_loadu_si512(in + i * MP_MX_BLOCK);
        __m128i packed = _mm_loadu_si128((const void *)(codes + i * (MP_MX_BLOCK / 2)));
        __m512i code = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(packed), spread);
        __m512 values = _mm512_mul_ps(e2m1_table(), _mm512_set1_ps(block.ratios[i]));
        __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(original, 16));
        __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(original, set1(0xffff0000)));

        even = _mm512_mul_ps(even, multiplier);
        odd = _mm512_mul_ps(odd, multiplier);
        add_squared(&signal, even, odd);
        even = _mm512_sub_ps(_mm512_permutexvar_ps(code, values), even);
        odd = _mm512_sub_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), values), odd);
        add_squared(&error, even, odd);

        __m512i magnitude = _mm512_and_si512(original, _mm512_set1_epi16(MP_BF16_ABS));
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

#define OWN_E4M3_CODES
#define OWN_ENCODE_BF16
#define OWN_GROUP_LOSS
#include "numeric/wide.h"

#endif
