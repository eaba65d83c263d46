/* SPDX-License-Identifier: Apache-2.0 */
/*
 * numeric/kernels.h - the kernels, and the facts about formats that they share.
 *
 * Kernels work on runs of elements. A table of them exists for every instruction set; the scalar
 * table is the definition and every other one gives the same bits. What works on rows of a matrix
 * with its scales is built on them.
 */
#ifndef MP_NUMERIC_KERNELS_H
#define MP_NUMERIC_KERNELS_H

#include <string.h>

#include <moepack/numeric.h>

/* ------------------------------------------------------------------------
 * Kernels
 */

/* Kernel functions for one instruction set. No pointer may be null, none needs
 * to be aligned, and n = 0 is allowed. Input and output do not overlap, but
 * `scale`, `scale_blocks` and `divide` may work in place.
 *
 * NaN: bf16_encode makes it quiet and keeps its sign and upper bits; e4m3_encode
 * makes it 0x7f or 0xff by its sign; e2m1_encode takes it for a large number.
 * Decoders give a quiet NaN for the NaN codes of F16, E4M3 (with its sign) and UE8M0.
 * Which NaN a product gives is up to the processor.
 *
 * "codes" of E2M1 are packed: element 2j in the low nibble of byte j. n is
 * then even. */
/* What is added up about a loss; lanes of sums are added in the end as those of error_sums. */
typedef struct mp_loss {
    double error[8];
    double signal[8];
    uint64_t saturated;
    uint64_t flushed;
} mp_loss;

typedef struct mp_kernels {
    const char *level; /* "scalar", "avx2", "avx512" or "neon" */

    void (*bf16_decode)(const uint16_t *in, float *out, size_t n);
    void (*bf16_encode)(const float *in, uint16_t *out, size_t n);
    void (*f16_decode)(const uint16_t *in, float *out, size_t n);
    void (*e4m3_decode)(const uint8_t *in, float *out, size_t n);
    void (*e4m3_encode)(const float *in, uint8_t *out, size_t n);
    /* E4M3 of in[i] * factors[i / width]; width > 0 */
    void (*e4m3_encode_blocks)(const float *in, const float *factors, size_t width, uint8_t *out,
                               size_t n);
    void (*e2m1_decode)(const uint8_t *codes, float *out, size_t n);
    void (*e2m1_encode)(const float *in, uint8_t *codes, size_t n, mp_rounding rounding);
    void (*ue8m0_decode)(const uint8_t *in, float *out, size_t n);
    /* Smallest power of two >= |in|, clamped to exponent bytes 1..254. */
    void (*ue8m0_encode)(const float *in, uint8_t *out, size_t n);

    void (*int8_decode)(const int8_t *in, float *out, size_t n);
    /* in[i] / scale to nearest, ties to even, within -127..127; finite, scale > 0. */
    void (*int8_encode)(const float *in, float scale, int8_t *out, size_t n);
    /* Packed as E2M1 is, n even; code c is c - 8. */
    void (*int4_decode)(const uint8_t *codes, float *out, size_t n);

    /* out[i] = in[i] * scale, in[i] * scales[i / width], in[i] / divisor; width > 0 */
    void (*scale)(const float *in, float scale, float *out, size_t n);
    void (*scale_blocks)(const float *in, const float *scales, size_t width, float *out, size_t n);
    void (*divide)(const float *in, float divisor, float *out, size_t n);

    /* Largest |x| as the bits of a non-negative float32, 0 if n is 0. A NaN or
     * an Inf anywhere gives a value >= 0x7f800000. */
    uint32_t (*amax_bits)(const float *in, size_t n);
    /* The same of every block of `width` elements, the last of which may be shorter. */
    void (*amax_blocks)(const float *in, size_t width, uint32_t *amax, size_t n);

    /* amax_blocks of BF16. */
    void (*amax_blocks_bf16)(const uint16_t *in, size_t width, uint32_t *amax, size_t n);

    /* Whether any of n elements of 8, 16 or 32 bits has a magnitude of at least `limit`: of
     * signed elements without the top bit, of others with it, and limit has it too. */
    bool (*reaches)(const void *in, size_t n, unsigned bits, bool is_signed, uint32_t limit);

    /* mxfp4, blocks of 32 elements along K; n is a multiple of 32.
     * codes: n/2 bytes; scales: n/32 exponent bytes. The encoder wants finite input. */
    void (*mxfp4_decode)(const uint8_t *codes, const uint8_t *scales, float *out, size_t n);
    void (*mxfp4_encode)(const float *in, uint8_t *codes, uint8_t *scales, size_t n,
                         const mp_quant_options *options);

    /* The same from BF16 input, without the detour through memory. Returns the
     * number of leading elements before the first block of 32 that holds a NaN or
     * an Inf, n if all are finite; blocks from there on are not written. */
    size_t (*mxfp4_encode_bf16)(const uint16_t *in, uint8_t *codes, uint8_t *scales, size_t n,
                                const mp_quant_options *options);

    /* What finite BF16 lost to such codes, scales 1..254: sums and counts as those of
     * the two functions below, with a limit of 7 * 2^(e-127) for a block with exponent
     * byte e. Sums are added up differently, and come within 2^-19 of the exact ones:
     *
     * Blocks form groups of 16, of which the last may have fewer. In a group whose
     * largest exponent byte is E, x = in * 2^(127-E) and v = value of code * 2^(e-E),
     * this factor being 0 below 2^-126. Element i of each block adds (v-x)^2 to lane i
     * of 32 and x^2 to lane i of 32 others, in float32 with a fused multiply-add. Then
     * (2j + 2j+1) + (2j+16 + 2j+17) of these lanes, times 2^(2(E-127)) in float64, is
     * added to lane j of 8 of a sum, whose lanes are added in the end as below.
     *
     * Elements and differences below 2^-63 * 2^(E-127) may thus count as 0 in sums. */
    void (*mxfp4_loss_bf16)(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                            size_t n, double sums[2], uint64_t counts[2]);

    /* nvfp4, blocks of 16 elements along K; n is a multiple of 16, global > 0 unless all
     * elements are 0. codes: n/2 bytes; scales: n/16 bytes of E4M3. The scale of a block is
     * amax / 6 / global, but never 0 where amax is not; elements are multiplied by the
     * reciprocal of scale * global, or divided by it where that is beyond float32, and are 0
     * under a product of 0. Ties go to even. The first wants finite input, the second is to
     * it as mxfp4_encode_bf16 is to mxfp4_encode, block by block of 16. */
    void (*nvfp4_encode)(const float *in, float global, uint8_t *codes, uint8_t *scales, size_t n);
    size_t (*nvfp4_encode_bf16)(const uint16_t *in, float global, uint8_t *codes, uint8_t *scales,
                                size_t n);

    /* sums[0] += sum of (a-b)^2, sums[1] += sum of b^2, in float64: element i
     * goes to lane i % 8 of either sum, lanes are added as
     * ((0+4)+(2+6)) + ((1+5)+(3+7)), then to sums[]. */
    void (*error_sums)(const float *a, const float *b, size_t n, double sums[2]);

    /* What scaled codes lost. Originals are BF16 or F32, codes F4, F8_E4M3 without NaN, I8, BF16 or
     * F32; they become float32 on the way and are never written as such. codes[i] * scales[i /
     * width] * global (of F4 and F32 only), rounded after each product, is compared with
     * original[i]: sums as those of error_sums, but into the lanes of `loss`, element i into lane
     * i % 8; loss->saturated += number of elements with |original| > limits[i / width], all >= 0;
     * loss->flushed += number of nonzero originals that became zero. */
    void (*loss)(mp_dtype from, const void *original, mp_dtype to, const void *codes,
                 const float *scales, float global, const float *limits, size_t width, size_t n,
                 mp_loss *loss);
} mp_kernels;

/* The kernels of the best level that this processor and its operating system
 * support, or of the one that the environment variable MOEPACK_CPU names
 * (scalar, avx2, avx512, neon; empty is as unset). Chosen once per process; never
 * null. An unknown or unsupported name falls back to scalar. Thread-safe. */
const mp_kernels *mp_kernels_best(void);

/* The kernels of one level, or null if this processor or build lacks it. */
const mp_kernels *mp_kernels_for(const char *level);

/* ------------------------------------------------------------------------
 * Facts about formats
 */

extern const mp_kernels mp_kernels_scalar;
#if defined(__x86_64__)
extern const mp_kernels mp_kernels_avx2;   /* and FMA */
extern const mp_kernels mp_kernels_avx512; /* F, BW, DQ, VL */
#elif defined(__aarch64__)
extern const mp_kernels mp_kernels_neon;
#endif

#define MP_MX_BLOCK    32  /* elements along K that share an exponent */
#define MP_NVFP4_BLOCK 16  /* elements along K that share a scale */
#define MP_FP8_BLOCK   128 /* columns, and for fp8_block rows, of one scale */

#define MP_E2M1_MAX 6.0f
#define MP_E4M3_MAX 448.0f

/* float32 and BF16 bit patterns */
#define MP_F32_ABS      0x7fffffffu
#define MP_F32_INF      0x7f800000u
#define MP_F32_NAN      0x7fc00000u
#define MP_F32_MANTISSA 0x007fffffu
#define MP_BF16_ABS     0x7fffu
#define MP_BF16_INF     0x7f80u

/* The magnitude code of E2M1 is the number of these float32 bit patterns that
 * |x| is above. They are the midpoints .25 .75 1.25 1.75 2.5 3.5 5; where a tie
 * goes up (OCP, to the even codes 2, 4, 6) the pattern just below the midpoint
 * stands for it. The upper halves serve BF16 in the same way. A NaN is above
 * them all. Indexed by mp_rounding. */
#define MP_E2M1_STEPS 7
extern const uint32_t mp_e2m1_steps[2][MP_E2M1_STEPS];

static inline uint32_t mp_f32_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float mp_f32_from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* 2^(e-127); byte 0 is the subnormal 2^-127, byte 255 a NaN. */
static inline float mp_ue8m0_value(uint8_t e)
{
    if (e == 0)
        return mp_f32_from_bits(0x00400000u);
    return e == 255 ? mp_f32_from_bits(MP_F32_NAN) : mp_f32_from_bits((uint32_t)e << 23);
}

/* The exponent byte of the smallest power of two >= |x|, clamped to 1..254. */
static inline uint8_t mp_ue8m0_ceil(float x)
{
    uint32_t bits = mp_f32_bits(x) & MP_F32_ABS;
    uint32_t e = (bits >> 23) + ((bits & MP_F32_MANTISSA) != 0);

    if (e < 1)
        return 1;
    return (uint8_t)(e > 254 ? 254 : e);
}

/* The exponent byte of a block with this amax (as amax_bits gives it), so that
 * nothing in it goes beyond `largest`. */
static inline uint8_t mp_mx_exponent(uint32_t amax_bits, float floor, float largest)
{
    float amax = mp_f32_from_bits(amax_bits);

    return mp_ue8m0_ceil((amax > floor ? amax : floor) / largest);
}

/* 2^(127-e), what elements are multiplied by; e is 1..254. */
static inline float mp_mx_multiplier(uint8_t e)
{
    return mp_ue8m0_value((uint8_t)(254 - e));
}

/* What `reaches` tests words with: a copy in every lane. A magnitude that reaches the limit
 * carries into the top bit of its lane, which it has not itself, and never further. */
typedef struct mp_lane_test {
    uint64_t top;    /* bits of lanes */
    uint64_t lack;   /* what the limit lacks of the top bit */
    uint64_t either; /* top, where that bit is a sign and does not count */
} mp_lane_test;

static inline uint64_t mp_every_lane(uint32_t lane, unsigned bits)
{
    uint64_t both = lane | (uint64_t)lane << 32;

    if (bits < 32)
        both |= both << 16;
    return bits < 16 ? both | both << 8 : both;
}

static inline mp_lane_test mp_lane_test_of(unsigned bits, bool is_signed, uint32_t limit)
{
    uint32_t top = 1u << (bits - 1);
    uint32_t lack = top - (limit & (top - 1));

    return (mp_lane_test){
        .top = mp_every_lane(top, bits),
        .lack = mp_every_lane(lack, bits),
        .either = is_signed ? mp_every_lane(top, bits) : 0,
    };
}

/* The top bits of the lanes that reach the limit. */
static inline uint64_t mp_lanes_that_reach(uint64_t word, const mp_lane_test *test)
{
    return ((word & ~test->top) + test->lack) & (word | test->either) & test->top;
}

/* Blocks that the wide kernels take in three passes (amax, exponents, codes):
 * one block's passes wait for each other, those of a group overlap. */
#define MP_MX_GROUP 16

/* The second pass, block by block: exponents and multipliers. */
static inline void mp_mx_exponents(const uint32_t *amax_bits, size_t blocks, float floor,
                                   float largest, uint8_t *exponents, float *multipliers)
{
    for (size_t i = 0; i < blocks; i++) {
        exponents[i] = mp_mx_exponent(amax_bits[i], floor, largest);
        multipliers[i] = mp_mx_multiplier(exponents[i]);
    }
}

/* Blocks that share a multiplier in mxfp4_loss_bf16. */
#define MP_LOSS_GROUP 16

/* The largest exponent of a group, whose multiplier the group takes. */
static inline uint8_t mp_loss_exponent(const uint8_t *scales, size_t blocks)
{
    uint8_t largest = 0;

    for (size_t i = 0; i < blocks; i++)
        largest = scales[i] > largest ? scales[i] : largest;
    return largest;
}

/* 2^(e-largest), what a code's value is multiplied by; 0 where that is below 2^-126. */
static inline float mp_loss_ratio(uint8_t e, uint8_t largest)
{
    int ratio = 127 + e - largest;

    return ratio > 0 ? mp_ue8m0_value((uint8_t)ratio) : 0;
}

/* The bits of BF16 7 * 2^(e-127), or of its largest finite value: what lies above is saturated. */
static inline uint32_t mp_loss_limit(uint8_t e)
{
    uint32_t limit = (e + 2u) << 7 | 0x60;

    return limit < MP_BF16_INF ? limit : MP_BF16_INF - 1;
}

/* 2^(2(largest-127)), what the squares of a group are multiplied by. */
static inline double mp_loss_weight(uint8_t largest)
{
    uint64_t bits = (uint64_t)(1023 + 2 * (largest - 127)) << 52;
    double weight;

    memcpy(&weight, &bits, sizeof(weight));
    return weight;
}

/* Takes the squares of a group into the sums. */
void mp_loss_add_group(mp_loss *loss, const float error[MP_MX_BLOCK],
                       const float signal[MP_MX_BLOCK], uint8_t largest);

/* mxfp4_loss_bf16 out of a function for one group of up to MP_LOSS_GROUP blocks. */
typedef void mp_loss_group(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                           size_t blocks, mp_loss *loss);
void mp_mxfp4_loss(mp_loss_group *add_group, const uint16_t *in, const uint8_t *codes,
                   const uint8_t *scales, size_t n, double sums[2], uint64_t counts[2]);

/* Adds (a-b)^2 and b^2 to lane i % 8 of either sum: the end of a run whose
 * beginning was a multiple of eight long. */
void mp_add_squares(const float *a, const float *b, size_t n, double error[8], double signal[8]);

/* Adds the eight lanes of error_sums in their fixed order. */
static inline double mp_sum_lanes(const double lane[8])
{
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* Element i of what mp_kernels.loss reads. */
static inline const void *mp_loss_at(mp_dtype dtype, const void *elements, size_t i)
{
    return (const uint8_t *)elements + i * mp_dtype_bits(dtype) / 8;
}

/* mxfp4_encode and mxfp4_encode_bf16 under MP_SCALE_MSE, for every table. */
void mp_mxfp4_encode_mse(const mp_kernels *kernels, const float *in, uint8_t *codes,
                         uint8_t *scales, size_t n, const mp_quant_options *options);
size_t mp_mxfp4_encode_bf16_mse(const mp_kernels *kernels, const uint16_t *in, uint8_t *codes,
                                uint8_t *scales, size_t n, const mp_quant_options *options);

/* mxfp8 under either rule: n codes, n/32 exponent bytes. A NaN becomes the NaN
 * of E4M3 and does not count for the exponent. */
void mp_mxfp8_encode(const mp_kernels *kernels, const float *in, uint8_t *codes, uint8_t *scales,
                     size_t n, const mp_quant_options *options);

/* amax_bits of the elements that are not NaN. */
uint32_t mp_amax_but_nan(const mp_kernels *kernels, const float *in, size_t n);

/* amax_blocks of the elements that are not NaN. */
void mp_amax_blocks_but_nan(const mp_kernels *kernels, const float *in, size_t width,
                            uint32_t *amax, size_t n);

#endif
