/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/numeric.h - number formats, quantization schemes, and the kernels
 * that encode and decode them.
 *
 * Two levels:
 *   1. Kernels work on runs of elements. A table of them exists for every
 *      instruction set; the scalar table is the definition and every other
 *      one gives the same bits.
 *   2. Schemes work on rows of a matrix [N, K] with its scales, and are built
 *      on kernels.
 *
 * All arithmetic is IEEE float32 with round to nearest even and no fused
 * multiply-add, unless a comment says otherwise.
 */
#ifndef MOEPACK_NUMERIC_H
#define MOEPACK_NUMERIC_H

#include <moepack/base.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* How to quantize. A zeroed value is the default of MegaMoE targets. */
typedef struct mp_quant_options {
    mp_rounding rounding;     /* mxfp4; nvfp4 always rounds as MP_ROUND_OCP */
    mp_scale_rule scale_rule; /* mxfp4, mxfp8 */
    float amax_floor;     /* mxfp4, mxfp8, fp8_*: a block's amax counts as at least this; >= 0 */
    bool ue8m0;           /* fp8_block, fp8_group: round the scale up to a power of two */
    bool allow_nonfinite; /* let NaN and Inf through instead of refusing; see mp_requantize */
    float global_scale;   /* nvfp4: its second scale, a multiplier; see mp_nvfp4_global */
    /* fp8_channel, int8_channel: [rows of the call], the scale of each row, so that a matrix
     * can be encoded in panels of columns; see mp_rows_channel_scales. Null: each row's own. */
    const float *row_scales;
} mp_quant_options;

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

    /* What scaled codes lost. decoded[i] * scales[i / width] * global, rounded after each
     * product, is compared with original[i]: sums as those of error_sums, but into the lanes
     * of `loss`, element i into lane i % 8; loss->saturated += number of elements with
     * |original| > limits[i / width], all >= 0; loss->flushed += number of nonzero originals
     * that became zero. */
    void (*loss)(const float *original, const float *decoded, const float *scales, float global,
                 const float *limits, size_t width, size_t n, mp_loss *loss);
} mp_kernels;

/* The kernels of the best level that this processor and its operating system
 * support, or of the one that the environment variable MOEPACK_CPU names
 * (scalar, avx2, avx512, neon; empty is as unset). Chosen once per process; never
 * null. An unknown or unsupported name falls back to scalar. Thread-safe. */
const mp_kernels *mp_kernels_best(void);

/* MP_ERR_USAGE where MOEPACK_CPU is the name of no level at all: a slip of the pen. */
int mp_kernels_check(mp_error *err);

/* The kernels of one level, or null if this processor or build lacks it. */
const mp_kernels *mp_kernels_for(const char *level);

/* ------------------------------------------------------------------------
 * Schemes
 */

/* Rows row0 .. row0+rows-1 of a stored matrix of `cols` columns.
 * weight: rows of mp_scheme_row_bytes() each, contiguous. Neither it nor scale
 *   needs to be aligned.
 * scale: the scale rows that cover these rows, contiguous; the first is scale row
 *   row0 / block_rows. Null for a scheme without scales.
 * scale_dtype and block_rows x block_cols of one scale, ragged edges allowed:
 *   mxfp4, mxfp8      F8_E8M0, U8 (the same byte)           1x32
 *   nvfp4             F8_E4M3                               1x16
 *   fp8_block         F32, BF16, F16, F8_E8M0, U8           any
 *   fp8_group         F32, BF16, F16, F8_E8M0, U8           1 x any
 *   int4_group        F32, BF16, F16                        1 x any
 *   fp8_channel, int8_channel: F32, BF16, F16; a scale a row, block_* are not read
 *   fp8_tensor: F32, BF16, F16; one scale, block_* are not read
 * global_scale: nvfp4's second scale; not read otherwise.
 * global_divides: that scale divides instead of multiplying (compressed-tensors). */
typedef struct mp_rows {
    mp_scheme scheme;
    mp_dtype scale_dtype;
    uint32_t block_rows;
    uint32_t block_cols;
    uint64_t row0;
    uint64_t rows;
    uint64_t cols;
    const void *weight;
    const void *scale;
    float global_scale;
    bool global_divides;
} mp_rows;

/* Bytes of one row of weights of a scheme, cols columns; cols fills whole
 * bytes (a multiple of 2 for 4-bit schemes). int4_group has whole words of 4. */
uint64_t mp_scheme_row_bytes(mp_scheme scheme, uint64_t cols);

/* How mp_requantize writes a scheme. Where `canonical` is false it does not (f16, f32,
 * fp8_tensor, int4_group), and the other members are 0. Without scales block_* are 1. */
typedef struct mp_scheme_form {
    bool canonical;
    bool has_nan; /* codes can say NaN */
    bool has_scale;
    bool has_global; /* nvfp4: a float32 for the whole matrix besides */
    mp_dtype scale_dtype;
    uint32_t block_rows; /* of one scale; UINT32_MAX columns: one a row */
    uint32_t block_cols;
    uint32_t cols_of; /* the number of columns is a multiple of it */
} mp_scheme_form;

/* A static record; null if there is no such scheme. */
const mp_scheme_form *mp_scheme_form_of(mp_scheme scheme);

/* Scale values from one type to another: F32, BF16, F16, F8_E4M3, F8_E8M0 and U8, which is
 * F8_E8M0. in, out: `count` of them, not overlapping, no need of alignment. False if a
 * value cannot be said exactly in `to`, or for another type; `out` is not to be used then.
 * A NaN stays a NaN. */
bool mp_scales_convert(mp_dtype from, const void *in, uint64_t count, mp_dtype to, void *out);

/* Decodes to float32 [rows, cols] (checkpoint formulas w = code * scale, the
 * product rounded once to float32; for nvfp4 code * scale, which is exact, times
 * or divided by the global scale). A NaN code or weight decodes to NaN.
 * MP_ERR_INPUT where a scale is NaN (the message names row and column of the
 * matrix, not of the tile: row0 counts), MP_ERR_UNSUPPORTED for a combination
 * of scheme, scale type and block size that does not exist. */
int mp_decode_rows(const mp_rows *in, float *out, mp_error *err);

/* Refuses rows that pass through undecoded where mp_requantize would refuse them: a weight
 * that is NaN or infinite once it is scaled, a scale that is NaN. Same codes and messages.
 * Runs at the speed of memory unless it finds something. */
int mp_rows_check_finite(const mp_rows *in, mp_error *err);

/* Error of a requantization, added up in float64 in a fixed order: row by row,
 * within a row as the kernel error_sums does, or, where a row of BF16 without NaN and
 * Inf becomes mxfp4, as mxfp4_loss_bf16 does. A NaN (in bf16 also an Inf) that was let
 * through counts nowhere. */
typedef struct mp_quant_stats {
    double error_sq;  /* sum of (decoded - original)^2 */
    double signal_sq; /* sum of original^2 */
    uint64_t elements;
    /* |original| > scale * (largest code + half the step below it): 7 for E2M1,
     * 464 for E4M3, 127.5 for INT8, the end of the range for BF16. */
    uint64_t saturated;
    uint64_t flushed; /* nonzero original that decodes to zero */
    /* To nvfp4 from mxfp4 or nvfp4: blocks (of the source) whose codes could not pass through.
     * To fp8_block from mxfp4 or mxfp8: tiles of 128 x 128 that could not stay exact. */
    uint64_t requantized_blocks;
} mp_quant_stats;

void mp_quant_stats_add(mp_quant_stats *into, const mp_quant_stats *more);

/* True where a conversion keeps every weight but those of the blocks that stats count: mxfp4 to
 * nvfp4, mxfp4 and mxfp8 to fp8_block. */
bool mp_requantize_counts(mp_scheme from, mp_scheme to);

/* Quantizes rows of a matrix from the scheme they are in to another one.
 *
 *   to            codes                   scales                                      cols
 *   bf16          BF16 [rows, cols]       none                                        any
 *   mxfp4         E2M1 [rows, cols/2]     F8_E8M0 [rows, cols/32]                     of 32
 *   mxfp8         E4M3 [rows, cols]       F8_E8M0 [rows, cols/32]                     of 32
 *   fp8_block     E4M3 [rows, cols]       F32 [ceil(rows/128), ceil(cols/128)]        any
 *   fp8_group     E4M3 [rows, cols]       F32 [rows, ceil(cols/128)]                  any
 *   fp8_channel   E4M3 [rows, cols]       F32 [rows]                                  any
 *   nvfp4         E2M1 [rows, cols/2]     F8_E4M3 [rows, cols/16]                     of 16
 *   int8_channel  INT8 [rows, cols]       F32 [rows]                                  any
 *
 * Formulas: moepack-format(5), "SCHEMES"; where 1/scale is beyond float32,
 * elements are divided by the scale instead. For fp8_block, row0 is a multiple of
 * 128, and so is rows unless these are the last ones of the matrix. Codes and
 * scales are written without need of alignment; scales may be null for bf16.
 *
 * What the source says exactly is kept:
 *   - Rows of the same scheme, block size and scale value pass through; only the
 *     type of the scales may change. (ue8m0 rounds scales that are no powers of two.)
 *   - mxfp4 to mxfp8 loses nothing, and mxfp4 to fp8_group with ue8m0 loses nothing where
 *     exponents within a block are at most 14 apart.
 *   - mxfp4 and mxfp8 to fp8_block keep every value of a tile where they can: with kmax the
 *     largest exponent byte of its blocks, under a scale of 2^(kmax-133) or 2^(kmax-127). For
 *     mxfp4 every block that is not all zeros has to have at least kmax-14, and kmax to be 7 or
 *     more; for mxfp8 no code may lose bits below the subnormals. Other tiles are encoded from
 *     their values, those of mxfp8 as with ue8m0, and stats count them. amax_floor matters for
 *     those only.
 *   - mxfp4 to nvfp4 passes a block's codes through where 2^(k-127) / global_scale
 *     is an E4M3 value (mp_nvfp4_global_exact), or where all of them are zeros;
 *     stats count the other blocks.
 *   - nvfp4 to nvfp4 under another global scale does the same where a block's scale times
 *     the ratio of the global scales is an E4M3 value. Where the source's global scale
 *     divides, its reciprocal in float32 is taken for this, which may move a weight by
 *     2^-24 of itself.
 *
 * fp8_channel and int8_channel with options->row_scales: codes are those of the same rows
 * and columns in a call of whole rows; `scales` gets these values once more and may be null.
 *
 * work: scratch of mp_requantize_scratch(cols) bytes, aligned as malloc aligns.
 * stats: added to, row after row, so that it does not matter how a matrix is split into
 *   calls; may be null, which measures nothing and is faster.
 *
 * MP_ERR_INPUT on a NaN or Inf in weight or scale, naming row and column of the
 * matrix. With allow_nonfinite a NaN becomes the target's NaN and is still
 * refused where the target has none (mxfp4, nvfp4, int8_channel); an Inf counts
 * as the largest float32 of its sign, but stays an Inf in bf16. NaN does not
 * count for amax.
 * MP_ERR_UNSUPPORTED for a pair of schemes that cannot be converted, or for cols
 * that the target cannot divide; MP_ERR_USAGE for options out of range. */
int mp_requantize(const mp_rows *in, mp_scheme to, const mp_quant_options *options, void *codes,
                  void *scales, void *work, mp_quant_stats *stats, mp_error *err);

/* Bytes of scratch that requantizing rows of `cols` columns needs; UINT64_MAX
 * if that is not a number of bytes. */
uint64_t mp_requantize_scratch(uint64_t cols);

/* The scales that mp_requantize gives whole rows in fp8_channel or int8_channel, for
 * options->row_scales of calls that see panels of columns of these rows. options->row_scales
 * itself is not read. scales: [rows]. work, and what is refused: as for mp_requantize. */
int mp_rows_channel_scales(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                           void *work, float *scales, mp_error *err);

/* Largest |w| of rows, for mp_nvfp4_global: a matrix may be passed in parts, the
 * largest of their results taken. work: as for mp_requantize.
 * MP_ERR_INPUT on a NaN or Inf, unless allow_nonfinite: then as in mp_requantize. */
int mp_rows_amax(const mp_rows *in, bool allow_nonfinite, void *work, float *amax, mp_error *err);

/* The global scale of an nvfp4 matrix: amax / (6 * 448). Gate and up of one
 * expert share one, that of the larger amax. Above 0: 1 for a matrix of zeros, since engines and
 * readers refuse 0, and divisors of it would be infinite. */
float mp_nvfp4_global(float amax);

/* The global scale under which mxfp4 blocks pass through to nvfp4:
 * 2^(largest - 127 - 8), where `largest` is the largest exponent byte of the
 * matrix, or of gate and up together. Blocks with exponents of up to 17 less are
 * exact. */
float mp_nvfp4_global_exact(uint8_t largest);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
