/* SPDX-License-Identifier: Apache-2.0 */
/* The forms of synthetic tensors: their names' ends, types and scales, and how a tile of
 * rows is filled. */
#include "pack/synth.h"

#include "base/error.h"
#include "numeric/encode.h"

uint64_t mp_synth_row_bytes(const mp_synth_form *form, uint64_t cols)
{
    return cols / form->packing * (mp_dtype_bits(form->dtype) / 8);
}

uint64_t mp_synth_scale_row_bytes(const mp_synth_form *form, uint64_t cols)
{
    if (!form->scale_suffix)
        return 0;
    return mp_ceil_div(cols, form->block_cols) * (mp_dtype_bits(form->scale_dtype) / 8);
}

uint64_t mp_synth_work(const mp_synth_form *form, uint64_t cols)
{
    return form->block_rows > 1 ? MP_FP8_BLOCK * MP_FP8_BLOCK : cols;
}

static void fill_bf16(const mp_synth_tile *tile)
{
    const mp_kernels *kernels = mp_kernels_best();
    uint16_t *out = tile->out;

    for (uint64_t r = 0; r < tile->rows; r++, out += tile->cols) {
        mp_synth_row(&tile->values, tile->row0 + r, 0, tile->cols, tile->work);
        kernels->bf16_encode(tile->work, out, tile->cols);
    }
}

/* Rounded as the hardware does, so that there are zeros of both signs. */
static void fill_mxfp4(const mp_synth_tile *tile)
{
    static const mp_quant_options options = {.rounding = MP_ROUND_OCP};
    const mp_kernels *kernels = mp_kernels_best();
    uint8_t *codes = tile->out;
    uint8_t *scales = tile->scales;

    for (uint64_t r = 0; r < tile->rows; r++) {
        mp_synth_row(&tile->values, tile->row0 + r, 0, tile->cols, tile->work);
        kernels->mxfp4_encode(tile->work, codes, scales, tile->cols, &options);
        codes += tile->cols / 2;
        scales += tile->cols / 32;
    }
}

/* Stores a block's scale as element `index`, and returns it as it was stored. */
static float store_scale(mp_dtype dtype, uint32_t amax_bits, void *scales, uint64_t index)
{
    const mp_quant_options options = {.ue8m0 = dtype == MP_F8_E8M0};
    const mp_kernels *kernels = mp_kernels_best();
    float scale;

    mp_fp8_scales(&amax_bits, 1, &options, (uint8_t *)&scale);
    if (dtype == MP_F32) {
        ((float *)scales)[index] = scale;
    } else if (dtype == MP_BF16) {
        kernels->bf16_encode(&scale, (uint16_t *)scales + index, 1);
        kernels->bf16_decode((uint16_t *)scales + index, &scale, 1);
    } else {
        kernels->ue8m0_encode(&scale, (uint8_t *)scales + index, 1);
    }
    return scale;
}

/* Blocks of 128x128, the last ones ragged. Codes belong to the scale as it is stored, so
 * that a BF16 scale costs them no precision. */
static void fill_fp8_block(const mp_synth_tile *tile)
{
    for (uint64_t col = 0; col < tile->cols; col += MP_FP8_BLOCK) {
        uint64_t left = tile->cols - col;
        uint64_t width = left < MP_FP8_BLOCK ? left : MP_FP8_BLOCK;
        uint8_t *out = (uint8_t *)tile->out + col;
        float *row = tile->work;
        uint32_t amax_bits = 0;

        for (uint64_t r = 0; r < tile->rows; r++, row += width) {
            mp_synth_row(&tile->values, tile->row0 + r, col, width, row);
            mp_fp8_block_amax(row, width, &amax_bits);
        }
        float scale =
            store_scale(tile->form->scale_dtype, amax_bits, tile->scales, col / MP_FP8_BLOCK);

        row = tile->work;
        for (uint64_t r = 0; r < tile->rows; r++, row += width, out += tile->cols)
            mp_fp8_encode(row, width, MP_FP8_BLOCK, (const uint8_t *)&scale, out);
    }
}

static void fill_bias(const mp_synth_tile *tile)
{
    mp_synth_row(&tile->values, 0, 0, tile->cols, tile->out);
}

/* Uniform in [0.75, 1.25), exact before it is rounded to BF16. */
static void fill_norm(const mp_synth_tile *tile)
{
    for (uint64_t k = 0; k < tile->cols; k++)
        tile->work[k] = 0.75f + (float)(mp_synth_bits(tile->values.key, 0, k) & 0xffff) * 0x1p-17f;
    mp_kernels_best()->bf16_encode(tile->work, tile->out, tile->cols);
}

/* Draws tile->cols distinct experts for one token: with Floyd's method every draw is
 * kept, as itself or as the largest number allowed by then. */
static void choose_experts(const mp_synth_tile *tile, uint64_t token, int64_t *chosen)
{
    uint64_t below = tile->num_experts - tile->cols + 1;

    for (uint64_t k = 0; k < tile->cols; k++, below++) {
        int64_t draw = (int64_t)(mp_synth_bits(tile->values.key, token, k) % below);

        for (uint64_t i = 0; i < k; i++)
            if (chosen[i] == draw) {
                draw = (int64_t)(below - 1);
                break;
            }
        chosen[k] = draw;
    }
}

static void fill_token_table(const mp_synth_tile *tile)
{
    int64_t *out = tile->out;

    for (uint64_t r = 0; r < tile->rows; r++, out += tile->cols)
        choose_experts(tile, tile->row0 + r, out);
}

#define PLAIN(end, type, ranks, filler)                                             \
    {                                                                               \
        .suffix = end, .dtype = type, .packing = 1, .rank = ranks, .block_rows = 1, \
        .block_cols = 1, .fill = filler                                             \
    }

#define FP8(scale_end, scale_type)                                                        \
    {                                                                                     \
        .suffix = ".weight", .dtype = MP_F8_E4M3, .packing = 1, .rank = 2,                \
        .scale_suffix = scale_end, .scale_dtype = scale_type, .block_rows = MP_FP8_BLOCK, \
        .block_cols = MP_FP8_BLOCK, .fill = fill_fp8_block                                \
    }

const mp_synth_form mp_synth_bf16 = PLAIN(".weight", MP_BF16, 2, fill_bf16);
const mp_synth_form mp_synth_mxfp4 = {
    .suffix = ".weight",
    .dtype = MP_I8,
    .packing = 2,
    .rank = 2,
    .scale_suffix = ".scale",
    .scale_dtype = MP_F8_E8M0,
    .block_rows = 1,
    .block_cols = 32,
    .fill = fill_mxfp4,
};
const mp_synth_form mp_synth_fp8_scale_e8m0 = FP8(".scale", MP_F8_E8M0);
const mp_synth_form mp_synth_fp8_scale_f32 = FP8(".scale", MP_F32);
const mp_synth_form mp_synth_fp8_scale_inv_f32 = FP8(".weight_scale_inv", MP_F32);
const mp_synth_form mp_synth_fp8_scale_inv_bf16 = FP8(".weight_scale_inv", MP_BF16);
const mp_synth_form mp_synth_router = PLAIN("", MP_BF16, 2, fill_bf16);
const mp_synth_form mp_synth_bias = PLAIN("", MP_F32, 1, fill_bias);
const mp_synth_form mp_synth_norm = PLAIN("", MP_BF16, 1, fill_norm);
const mp_synth_form mp_synth_token_table = PLAIN("", MP_I64, 2, fill_token_table);
