/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/quantize.h - from one scheme to another: rows, their scales, and what is lost. */
#ifndef MP_NUMERIC_QUANTIZE_H
#define MP_NUMERIC_QUANTIZE_H

#include <moepack/numeric.h>

/* Scale values from one type to another: F32, BF16, F16, F8_E4M3, F8_E8M0 and U8, which is
 * F8_E8M0. in, out: `count` of them, not overlapping, no need of alignment. False if a
 * value cannot be said exactly in `to`, or for another type; `out` is not to be used then.
 * A NaN stays a NaN. */
bool mp_scales_convert(mp_dtype from, const void *in, uint64_t count, mp_dtype to, void *out);

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
 * nvfp4 takes options->global_scale, a multiplier, for the second scale: mp_nvfp4_global.
 * fp8_channel and int8_channel with options->row_scales, [rows of the call]: codes are those of the
 * same rows and columns in a call of whole rows; `scales` gets these values once more and may be
 * null.
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

#endif
