/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/numeric.h - quantization schemes: how rows of a matrix [N, K] and their scales are
 * stored, and what they stand for.
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
    float amax_floor; /* mxfp4, mxfp8, fp8_*: a block's amax counts as at least this; >= 0 */
    bool ue8m0;       /* fp8_block, fp8_group: round the scale up to a power of two */
    /* Let NaN and Inf through instead of refusing: a NaN becomes the scheme's own, and is still
     * refused where that has none, an Inf the largest number. */
    bool allow_nonfinite;
    float global_scale;      /* private, and set by the library: nvfp4's second scale */
    const float *row_scales; /* private too: of each row, where columns are encoded in panels */
} mp_quant_options;

/* ------------------------------------------------------------------------
 * Schemes
 */

/* Rows row0 .. row0+rows-1 of a stored matrix of `cols` columns.
 * weight: rows of whole bytes, two codes a byte for 4-bit schemes (int4_group: of whole 4-byte
 *   words), contiguous. Neither it nor scale needs to be aligned.
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

/* Decodes to float32 [rows, cols] (checkpoint formulas w = code * scale, the
 * product rounded once to float32; for nvfp4 code * scale, which is exact, times
 * or divided by the global scale). A NaN code or weight decodes to NaN.
 * MP_ERR_INPUT where a scale is NaN (the message names row and column of the
 * matrix, not of the tile: row0 counts), MP_ERR_UNSUPPORTED for a combination
 * of scheme, scale type and block size that does not exist. */
int mp_decode_rows(const mp_rows *in, float *out, mp_error *err);

/* ------------------------------------------------------------------------
 * The processor
 */

/* Conversions run by the best instructions that the processor has, or by those that the environment
 * variable MOEPACK_CPU names: scalar, avx2, avx512, neon; empty is as unset. All give the same
 * bits. MP_ERR_USAGE where that is the name of none: a slip of the pen. */
int mp_kernels_check(mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
