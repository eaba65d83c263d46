/* SPDX-License-Identifier: Apache-2.0 */
/* The quantizers: how each scheme chooses its scales, and codes under them. */
#include <float.h>

#include "numeric/encode.h"
#include "numeric/kernels.h"

#define INT8_MAX_CODE 127.0f

static float load_f32(const uint8_t *bytes)
{
    float value;

    memcpy(&value, bytes, sizeof(value));
    return value;
}

/* out = in * (1/scale), scale > 0. The reciprocal of a small subnormal is beyond
 * float32; there, out = in / scale. */
static void divide_by_scale(const float *in, float scale, float *out, uint64_t n)
{
    float inverse = 1.0f / scale;

    if (inverse <= FLT_MAX) {
        mp_kernels_best()->scale(in, inverse, out, n);
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        out[i] = in[i] / scale;
}

static uint64_t width_at(uint64_t cols, uint64_t col, uint64_t width)
{
    return cols - col < width ? cols - col : width;
}

void mp_fp8_block_amax(const float *row, uint64_t cols, uint32_t *amax_bits)
{
    const mp_kernels *kernels = mp_kernels_best();

    for (uint64_t col = 0; col < cols; col += MP_FP8_BLOCK) {
        uint64_t width = width_at(cols, col, MP_FP8_BLOCK);
        uint32_t amax = mp_amax_but_nan(kernels, row + col, width);
        uint32_t *largest = &amax_bits[col / MP_FP8_BLOCK];

        *largest = amax > *largest ? amax : *largest;
    }
}

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

/* Columns that share a scale, piece by piece through the stack. */
static void fp8_encode_block(const float *in, uint64_t n, float scale, uint8_t *codes)
{
    const mp_kernels *kernels = mp_kernels_best();
    float values[MP_FP8_BLOCK];

    if (scale == 0) {
        memset(codes, 0, n);
        return;
    }
    for (uint64_t i = 0; i < n; i += MP_FP8_BLOCK) {
        uint64_t width = width_at(n, i, MP_FP8_BLOCK);

        divide_by_scale(in + i, scale, values, width);
        kernels->e4m3_encode(values, codes + i, width);
    }
}

void mp_fp8_encode(const float *row, uint64_t cols, uint64_t width, const uint8_t *scales,
                   uint8_t *codes)
{
    for (uint64_t col = 0; col < cols; col += width)
        fp8_encode_block(row + col, width_at(cols, col, width),
                         load_f32(scales + col / width * sizeof(float)), codes + col);
}

static void encode_fp8_group(const float *row, uint64_t cols, const mp_quant_options *options,
                             uint8_t *codes, uint8_t *scales)
{
    for (uint64_t col = 0; col < cols; col += MP_FP8_BLOCK) {
        uint64_t width = width_at(cols, col, MP_FP8_BLOCK);
        uint32_t amax_bits = 0;

        mp_fp8_block_amax(row + col, width, &amax_bits);
        mp_fp8_scales(&amax_bits, 1, options, scales + col / MP_FP8_BLOCK * sizeof(float));
    }
    mp_fp8_encode(row, cols, MP_FP8_BLOCK, scales, codes);
}

static void encode_fp8_channel(const float *row, uint64_t cols, const mp_quant_options *options,
                               uint8_t *codes, uint8_t *scales)
{
    uint32_t amax_bits = mp_amax_but_nan(mp_kernels_best(), row, cols);
    float scale = fp8_scale(amax_bits, options->amax_floor, false);

    memcpy(scales, &scale, sizeof(scale));
    fp8_encode_block(row, cols, scale, codes);
}

/* A live block never gets the scale 0: code 1 is 2^-9. */
static uint8_t nvfp4_scale(float amax, float global_scale)
{
    float scale = amax / MP_E2M1_MAX / global_scale;
    uint8_t code;

    mp_kernels_scalar.e4m3_encode(&scale, &code, 1);
    return code == 0 && amax > 0 ? 1 : code;
}

void mp_nvfp4_encode_block(const float *in, float global_scale, uint8_t *codes, uint8_t *scale)
{
    const mp_kernels *kernels = mp_kernels_best();
    float amax = mp_f32_from_bits(kernels->amax_bits(in, MP_NVFP4_BLOCK));
    float values[MP_NVFP4_BLOCK];
    float both_scales;

    *scale = amax > 0 ? nvfp4_scale(amax, global_scale) : 0;
    mp_kernels_scalar.e4m3_decode(scale, &both_scales, 1);
    both_scales *= global_scale;
    if (both_scales == 0) {
        memset(codes, 0, MP_NVFP4_BLOCK / 2);
        return;
    }
    divide_by_scale(in, both_scales, values, MP_NVFP4_BLOCK);
    kernels->e2m1_encode(values, codes, MP_NVFP4_BLOCK, MP_ROUND_OCP);
}

static void encode_nvfp4(const float *row, uint64_t cols, const mp_quant_options *options,
                         uint8_t *codes, uint8_t *scales)
{
    for (uint64_t i = 0; i < cols / MP_NVFP4_BLOCK; i++)
        mp_nvfp4_encode_block(row + i * MP_NVFP4_BLOCK, options->global_scale,
                              codes + i * (MP_NVFP4_BLOCK / 2), scales + i);
}

/* To nearest, ties to even, for |x| < 2^22: the sum has no room for a fraction. */
static float round_to_even(float x)
{
    const float large = 0x1.8p23f;

    return (x + large) - large;
}

static int8_t int8_code(float x)
{
    float rounded = round_to_even(x);

    if (rounded > INT8_MAX_CODE)
        return 127;
    return (int8_t)(rounded < -INT8_MAX_CODE ? -127 : rounded);
}

static void encode_int8_channel(const float *row, uint64_t cols, uint8_t *codes, uint8_t *scales)
{
    float amax = mp_f32_from_bits(mp_kernels_best()->amax_bits(row, cols));
    float scale = amax / INT8_MAX_CODE;

    memcpy(scales, &scale, sizeof(scale));
    for (uint64_t i = 0; i < cols; i++)
        codes[i] = (uint8_t)(scale == 0 ? 0 : int8_code(row[i] / scale));
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
    case MP_SCHEME_FP8_CHANNEL:
        encode_fp8_channel(row, cols, options, codes, scales);
        break;
    case MP_SCHEME_NVFP4:
        encode_nvfp4(row, cols, options, codes, scales);
        break;
    default: /* int8_channel: no other row target exists */
        encode_int8_channel(row, cols, codes, scales);
        break;
    }
}
