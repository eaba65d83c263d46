/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizers: how each scheme chooses its scales, and codes under them.
 *
 * Rows go through the kernels in runs that stay in the first-level cache, whole blocks in each,
 * so that a run knows nothing of its neighbours. What is written depends on the row and on the
 * options only; there is no state, and any number of threads may encode. */
#include <math.h>

#include "numeric/encode.h"
#include "numeric/kernels.h"

#define INT8_MAX_CODE 127.0f

#define RUN 1024 /* elements at a time through the stack */

_Static_assert(RUN % MP_FP8_BLOCK == 0, "whole blocks in a run");

static uint64_t width_at(uint64_t cols, uint64_t col, uint64_t width)
{
    return cols - col < width ? cols - col : width;
}

/* E4M3 of in * (1/scale) for blocks of `width` elements in a run, or of in / scale where that
 * reciprocal is beyond float32, since the scale is a small subnormal; 0 under a scale of 0. */
static void encode_e4m3(const float *in, const float *scales, uint64_t width, uint8_t *codes,
                        uint64_t n)
{
    const mp_kernels *kernels = mp_kernels_best();
    float inverses[RUN / MP_FP8_BLOCK];
    float values[RUN];
    uint64_t blocks = (n + width - 1) / width;

    /* The scheme multiplies by the rounded reciprocal; dividing would give other codes. */
    for (uint64_t i = 0; i < blocks; i++)
        inverses[i] = 1.0f / scales[i];
    /* Blocks with an infinite reciprocal get meaningless codes here, which are replaced below. */
    kernels->e4m3_encode_blocks(in, inverses, width, codes, n);
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t at = i * width;
        uint64_t block = width_at(n, at, width);

        if (isfinite(inverses[i]))
            continue;
        if (scales[i] == 0) {
            memset(codes + at, 0, block);
        } else {
            kernels->divide(in + at, scales[i], values, block);
            kernels->e4m3_encode(values, codes + at, block);
        }
    }
}

/* Adds to what is there, since the rows of a tile come one at a time. */
void mp_fp8_block_amax(const float *row, uint64_t cols, uint32_t *amax_bits)
{
    uint32_t amax[RUN / MP_FP8_BLOCK];

    for (uint64_t col = 0; col < cols; col += RUN) {
        uint64_t n = width_at(cols, col, RUN);

        mp_amax_blocks_but_nan(mp_kernels_best(), row + col, MP_FP8_BLOCK, amax, n);
        for (uint64_t i = 0; i * MP_FP8_BLOCK < n; i++, amax_bits++)
            *amax_bits = amax[i] > *amax_bits ? amax[i] : *amax_bits;
    }
}

bool mp_fp8_block_amax_bf16(const uint16_t *row, uint64_t cols, uint32_t *amax_bits)
{
    uint32_t amax[RUN / MP_FP8_BLOCK];
    uint32_t largest = 0;

    for (uint64_t col = 0; col < cols; col += RUN) {
        uint64_t n = width_at(cols, col, RUN);

        mp_kernels_best()->amax_blocks_bf16(row + col, MP_FP8_BLOCK, amax, n);
        for (uint64_t i = 0; i * MP_FP8_BLOCK < n; i++, amax_bits++) {
            *amax_bits = amax[i] > *amax_bits ? amax[i] : *amax_bits;
            largest = *amax_bits > largest ? *amax_bits : largest;
        }
    }
    return largest < MP_F32_INF;
}

/* Zero only for a block of zeros without a floor. A power of two is rounded up, so that it does not
 * saturate anything. */
static float fp8_scale(uint32_t amax_bits, float floor, bool ue8m0)
{
    float amax = mp_f32_from_bits(amax_bits);
    float scale = (amax > floor ? amax : floor) / MP_E4M3_MAX;

    return ue8m0 ? mp_ue8m0_value(mp_ue8m0_ceil(scale)) : scale;
}

void mp_fp8_scales(const uint32_t *amax_bits, uint64_t n, const mp_quant_options *options,
                   uint8_t *scales)
{
    for (uint64_t i = 0; i < n; i++) {
        float scale = fp8_scale(amax_bits[i], options->amax_floor, options->ue8m0);

        memcpy(scales + i * sizeof(scale), &scale, sizeof(scale));
    }
}

void mp_fp8_encode(const float *row, uint64_t cols, const uint8_t *scales, uint8_t *codes)
{
    float run_scales[RUN / MP_FP8_BLOCK];

    for (uint64_t col = 0; col < cols; col += RUN) {
        uint64_t n = width_at(cols, col, RUN);
        uint64_t blocks = (n + MP_FP8_BLOCK - 1) / MP_FP8_BLOCK;

        memcpy(run_scales, scales + col / MP_FP8_BLOCK * sizeof(float), blocks * sizeof(float));
        encode_e4m3(row + col, run_scales, MP_FP8_BLOCK, codes + col, n);
    }
}

static void encode_fp8_group(const float *row, uint64_t cols, const mp_quant_options *options,
                             uint8_t *codes, uint8_t *scales)
{
    for (uint64_t col = 0; col < cols; col += RUN) {
        uint64_t n = width_at(cols, col, RUN);
        uint32_t amax[RUN / MP_FP8_BLOCK] = {0};
        uint8_t *run_scales = scales + col / MP_FP8_BLOCK * sizeof(float);

        mp_fp8_block_amax(row + col, n, amax);
        mp_fp8_scales(amax, (n + MP_FP8_BLOCK - 1) / MP_FP8_BLOCK, options, run_scales);
        mp_fp8_encode(row + col, n, run_scales, codes + col);
    }
}

/* A whole row under one scale. Each run computes the reciprocal again, with the same result. */
static void encode_fp8_channel(const float *row, uint64_t cols, float scale, uint8_t *codes)
{
    for (uint64_t col = 0; col < cols; col += RUN)
        encode_e4m3(row + col, &scale, RUN, codes + col, width_at(cols, col, RUN));
}

static void encode_int8(const float *row, uint64_t cols, float scale, uint8_t *codes)
{
    /* A row of zeros, where 0 / 0 would be NaN. */
    if (scale == 0)
        memset(codes, 0, cols);
    else
        mp_kernels_best()->int8_encode(row, scale, (int8_t *)codes, cols);
}

/* int8 takes no floor: the scheme has none. */
float mp_channel_scale(mp_scheme to, uint32_t amax_bits, const mp_quant_options *options)
{
    if (to == MP_SCHEME_FP8_CHANNEL)
        return fp8_scale(amax_bits, options->amax_floor, false);
    return mp_f32_from_bits(amax_bits) / INT8_MAX_CODE;
}

void mp_channel_encode(mp_scheme to, const float *row, uint64_t cols, float scale, uint8_t *codes)
{
    if (to == MP_SCHEME_FP8_CHANNEL)
        encode_fp8_channel(row, cols, scale, codes);
    else
        encode_int8(row, cols, scale, codes);
}

void mp_encode_row(mp_scheme to, const mp_quant_options *options, const float *row, uint64_t cols,
                   uint8_t *codes, uint8_t *scales)
{
    const mp_kernels *kernels = mp_kernels_best();

    switch (to) {
    case MP_SCHEME_BF16:
        kernels->bf16_encode(row, (uint16_t *)(void *)codes, cols);
        break;
    case MP_SCHEME_MXFP4:
        kernels->mxfp4_encode(row, codes, scales, cols, options);
        break;
    case MP_SCHEME_MXFP8:
        mp_mxfp8_encode(kernels, row, codes, scales, cols, options);
        break;
    case MP_SCHEME_FP8_GROUP:
        encode_fp8_group(row, cols, options, codes, scales);
        break;
    default: /* nvfp4: no other target of this kind exists */
        kernels->nvfp4_encode(row, options->global_scale, codes, scales, cols);
        break;
    }
}
