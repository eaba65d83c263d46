/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/encode.h - one row of float32 into codes and scales. Elements are
 * finite, or NaN where the scheme has a NaN. Nothing needs to be aligned. */
#ifndef MP_NUMERIC_ENCODE_H
#define MP_NUMERIC_ENCODE_H

#include "numeric/kernels.h"

/* Any target but fp8_block, whose scales depend on other rows as well, and those with one
 * scale a row. */
void mp_encode_row(mp_scheme to, const mp_quant_options *options, const float *row, uint64_t cols,
                   uint8_t *codes, uint8_t *scales);

/* fp8_channel, int8_channel: the scale of a row of this amax, and codes under a scale. */
float mp_channel_scale(mp_scheme to, uint32_t amax_bits, const mp_quant_options *options);
void mp_channel_encode(mp_scheme to, const float *row, uint64_t cols, float scale, uint8_t *codes);

/* amax_bits[i] = the larger of itself and the amax of columns 128*i .. 128*i+127. */
void mp_fp8_block_amax(const float *row, uint64_t cols, uint32_t *amax_bits);

/* The same of a row of BF16; false where it is not finite. */
bool mp_fp8_block_amax_bf16(const uint16_t *row, uint64_t cols, uint32_t *amax_bits);

/* Scales of n blocks, as float32. */
void mp_fp8_scales(const uint32_t *amax_bits, uint64_t n, const mp_quant_options *options,
                   uint8_t *scales);

/* A row under given float32 scales of 128 columns each. */
void mp_fp8_encode(const float *row, uint64_t cols, const uint8_t *scales, uint8_t *codes);

#endif
