/* SPDX-License-Identifier: Apache-2.0 */
/* The forms of synthetic tensors: by which convention they are stored, a row of
 * checkpoint/conventions.c, and how a tile of rows is filled. A form is one line of the table at
 * the end.
 *
 * Weights are made up as floats (synth_values.h) and encoded by the library's own kernels, so that
 * a synthetic checkpoint has zeros of both signs, ragged blocks and scales as quantizers write
 * them. An expert of a family has the same floats in every form, fused, transposed or by itself: a
 * value follows from the name that its matrix has alone. So two synthetic checkpoints can be
 * compared by `diff`.
 *
 * A tile is made by one thread in its own scratch, without looking at others. */
#include "synth/parts.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "numeric/encode.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"

/* Largest activation that input scales are made for, over the largest NVFP4 product. */
#define INPUT_SCALE (12.0f / (6 * 448))

static uint64_t row_bytes(const mp_synth_tile *tile, unsigned part)
{
    return mp_synth_part_row_bytes(tile->item, part);
}

/* Columns col .. col+n-1 of row `row` of the tile's matrix; col is a multiple of 4. */
static void values_of(const mp_synth_tile *tile, uint64_t row, uint64_t col, uint64_t n, float *out)
{
    const mp_synth_item *item = tile->item;
    uint64_t half = item->rows / 2;
    mp_fusion fusion = mp_synth_item_fusion(item);
    unsigned source = 0;

    /* Gate and up in one tensor: which of them the row is, and which row of it. */
    if (fusion != MP_FUSION_NONE && item->sources[1]) {
        bool paired = fusion == MP_FUSION_ROWS_PAIRED || fusion == MP_FUSION_COLS_PAIRED;

        source = paired ? row % 2 : row >= half;
        row = paired ? row / 2 : row % half;
    }
    mp_synth_row(&tile->values[source], row, col, n, out);
}

/* ------------------------------------------------------------------------
 * Weights
 */

/* A row whose scale is its own. */
static void encode_channel(mp_scheme scheme, const mp_quant_options *options, const float *row,
                           uint64_t cols, uint8_t *codes, uint8_t *scales)
{
    float scale = mp_channel_scale(scheme, mp_kernels_best()->amax_bits(row, cols), options);

    memcpy(scales, &scale, sizeof scale);
    mp_channel_encode(scheme, row, cols, scale, codes);
}

/* Rows of a scheme whose scales need no other row. */
static void encode_rows(const mp_synth_tile *tile, const mp_quant_options *options)
{
    mp_scheme scheme = tile->item->form->scheme;
    bool channel = scheme == MP_SCHEME_FP8_CHANNEL || scheme == MP_SCHEME_INT8_CHANNEL;
    uint64_t cols = tile->item->cols;
    uint8_t *codes = tile->out[0], *scales = tile->out[1];

    for (uint64_t r = 0; r < tile->rows; r++) {
        values_of(tile, tile->row0 + r, 0, cols, tile->work);
        if (channel)
            encode_channel(scheme, options, tile->work, cols, codes, scales);
        else
            mp_encode_row(scheme, options, tile->work, cols, codes, scales);
        codes += row_bytes(tile, 0);
        scales += row_bytes(tile, 1);
    }
}

/* Rounded as the hardware does, so that there are zeros of both signs. */
static void fill_rows(const mp_synth_tile *tile)
{
    static const mp_quant_options options = {.rounding = MP_ROUND_OCP};

    encode_rows(tile, &options);
}

static void fill_f32(const mp_synth_tile *tile)
{
    float *out = tile->out[0];

    for (uint64_t r = 0; r < tile->rows; r++, out += tile->item->cols)
        values_of(tile, tile->row0 + r, 0, tile->item->cols, out);
}

/* Stored rows are columns of the matrix, and the other way round. */
static void fill_transposed(const mp_synth_tile *tile)
{
    uint64_t width = tile->item->rows;
    /* Behind the floats of a column, in the same scratch. */
    uint16_t *column = (uint16_t *)(void *)(tile->work + tile->rows);

    for (uint64_t c = 0; c < width; c++) {
        uint16_t *out = (uint16_t *)tile->out[0] + c;

        values_of(tile, c, tile->row0, tile->rows, tile->work);
        mp_kernels_best()->bf16_encode(tile->work, column, tile->rows);
        for (uint64_t r = 0; r < tile->rows; r++)
            out[r * width] = column[r];
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
    uint64_t cols = tile->item->cols;

    for (uint64_t col = 0; col < cols; col += MP_FP8_BLOCK) {
        uint64_t width = cols - col < MP_FP8_BLOCK ? cols - col : MP_FP8_BLOCK;
        uint8_t *out = (uint8_t *)tile->out[0] + col;
        float *row = tile->work;
        uint32_t amax_bits = 0;

        for (uint64_t r = 0; r < tile->rows; r++, row += width) {
            values_of(tile, tile->row0 + r, col, width, row);
            mp_fp8_block_amax(row, width, &amax_bits);
        }
        float scale = store_scale(mp_synth_item_part(tile->item, 1).dtype, amax_bits, tile->out[1],
                                  col / MP_FP8_BLOCK);

        row = tile->work;
        for (uint64_t r = 0; r < tile->rows; r++, row += width, out += cols)
            mp_fp8_encode(row, width, (const uint8_t *)&scale, out);
    }
}

/* Eight columns a word, the first in its lowest bits; a scale a group, which the largest
 * value of it fills to 7.5. */
static void encode_int4_group(const float *in, uint32_t group, uint8_t *codes, uint16_t *stored)
{
    const mp_kernels *kernels = mp_kernels_best();
    uint32_t amax_bits = kernels->amax_bits(in, group);
    float scale;

    memcpy(&scale, &amax_bits, sizeof scale);
    scale /= 7.5f;
    kernels->bf16_encode(&scale, stored, 1);
    kernels->bf16_decode(stored, &scale, 1);
    for (unsigned i = 0; i < group; i += 2) {
        uint32_t pair[2];

        for (unsigned j = 0; j < 2; j++)
            pair[j] = (uint32_t)(fminf(fmaxf(rintf(in[i + j] / scale), -8), 7) + 8);
        codes[i / 2] = (uint8_t)(pair[0] | pair[1] << 4);
    }
}

static void fill_int4(const mp_synth_tile *tile)
{
    uint64_t cols = tile->item->cols;
    uint32_t group = tile->item->convention->block_cols;
    uint8_t *codes = tile->out[0];
    uint16_t *scales = tile->out[1];
    int32_t *shape = tile->out[2];

    for (uint64_t r = 0; r < tile->rows; r++) {
        values_of(tile, tile->row0 + r, 0, cols, tile->work);
        for (uint64_t col = 0; col < cols; col += group, codes += group / 2)
            encode_int4_group(tile->work + col, group, codes, scales++);
    }
    shape[0] = (int32_t)tile->item->rows;
    shape[1] = (int32_t)cols;
}

/* The global scale that the tile's matrix has, with that which shares it. */
static float global_scale(const mp_synth_tile *tile)
{
    uint64_t cols = tile->item->cols;
    uint32_t largest = 0;
    float amax;

    for (unsigned i = 0; i < 2 && tile->item->sources[i]; i++)
        for (uint64_t r = 0; r < tile->item->rows; r++) {
            mp_synth_row(&tile->values[i], r, 0, cols, tile->work);
            uint32_t bits = mp_kernels_best()->amax_bits(tile->work, cols);

            largest = bits > largest ? bits : largest;
        }
    memcpy(&amax, &largest, sizeof amax);
    return mp_nvfp4_global(amax);
}

/* ModelOpt's: both further scales multiply. */
static void fill_nvfp4(const mp_synth_tile *tile)
{
    const mp_quant_options options = {.global_scale = global_scale(tile)};

    *(float *)tile->out[2] = options.global_scale;
    *(float *)tile->out[3] = INPUT_SCALE;
    encode_rows(tile, &options);
}

/* compressed-tensors': both divide. */
static void fill_nvfp4_divided(const mp_synth_tile *tile)
{
    /* Encode by what readers will get back from the stored reciprocal. */
    float divisor = 1 / global_scale(tile);
    const mp_quant_options options = {.global_scale = 1 / divisor};

    *(float *)tile->out[2] = divisor;
    *(float *)tile->out[3] = 1 / INPUT_SCALE;
    encode_rows(tile, &options);
}

/* ------------------------------------------------------------------------
 * Other tensors
 */

/* Uniform in [0.75, 1.25), exact before it is rounded to BF16. */
static void fill_norm(const mp_synth_tile *tile)
{
    uint64_t key = tile->values[0].key, cols = tile->item->cols;

    for (uint64_t k = 0; k < cols; k++)
        tile->work[k] = 0.75f + (float)(mp_synth_bits(key, 0, k) & 0xffff) * 0x1p-17f;
    mp_kernels_best()->bf16_encode(tile->work, tile->out[0], cols);
}

/* Draws `count` distinct experts for one token: with Floyd's method every draw is
 * kept, as itself or as the largest number allowed by then. */
static void choose_experts(const mp_synth_tile *tile, uint64_t token, uint64_t count,
                           int64_t *chosen)
{
    /* count is at most num_experts: mp_synth_check. */
    uint64_t below = tile->num_experts - count + 1;

    for (uint64_t k = 0; k < count; k++, below++) {
        int64_t draw = (int64_t)(mp_synth_bits(tile->values[0].key, token, k) % below);

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
    uint64_t count = tile->item->cols;
    int64_t *out = tile->out[0];

    for (uint64_t r = 0; r < tile->rows; r++, out += count)
        choose_experts(tile, tile->row0 + r, count, out);
}

/* ------------------------------------------------------------------------
 * The table
 */

/* clang-format off */
#define FORM(as, to, filler, ...) {.style = as, .scheme = to, .fill = filler, __VA_ARGS__}
#define TENSOR(type, ranks, filler) \
    {.scheme = MP_SCHEME_BF16, .dtype = type, .rank = ranks, .fill = filler}

const mp_synth_form mp_synth_bf16 = FORM(MP_AS_DEEPSEEK_V3, MP_SCHEME_BF16, fill_rows);
const mp_synth_form mp_synth_mxfp4 = FORM(MP_AS_DEEPSEEK_V4, MP_SCHEME_MXFP4, fill_rows);
const mp_synth_form mp_synth_mxfp4_u8 = FORM(MP_AS_MODELSLIM, MP_SCHEME_MXFP4, fill_rows);
const mp_synth_form mp_synth_mxfp4_packed =
    FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_MXFP4, fill_rows);
const mp_synth_form mp_synth_mxfp8 = FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_MXFP8, fill_rows);
const mp_synth_form mp_synth_mxfp8_modelslim = FORM(MP_AS_MODELSLIM, MP_SCHEME_MXFP8, fill_rows);
const mp_synth_form mp_synth_mxfp8_inv = FORM(MP_AS_MINIMAX, MP_SCHEME_MXFP8, fill_rows);
const mp_synth_form mp_synth_fp8_scale_e8m0 =
    FORM(MP_AS_DEEPSEEK_V4, MP_SCHEME_FP8_BLOCK, fill_fp8_block, .powers = true);
const mp_synth_form mp_synth_fp8_scale_f32 =
    FORM(MP_AS_DEEPSEEK_V4, MP_SCHEME_FP8_BLOCK, fill_fp8_block);
const mp_synth_form mp_synth_fp8_scale_inv_f32 =
    FORM(MP_AS_DEEPSEEK_V3, MP_SCHEME_FP8_BLOCK, fill_fp8_block);
const mp_synth_form mp_synth_fp8_scale_inv_bf16 =
    FORM(MP_AS_QWEN3, MP_SCHEME_FP8_BLOCK, fill_fp8_block);
const mp_synth_form mp_synth_fp8_minimax =
    FORM(MP_AS_MINIMAX, MP_SCHEME_FP8_BLOCK, fill_fp8_block);
const mp_synth_form mp_synth_fp8_weight_scale =
    FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_FP8_BLOCK, fill_fp8_block);
const mp_synth_form mp_synth_fp8_channel =
    FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_FP8_CHANNEL, fill_rows);
const mp_synth_form mp_synth_int8_channel =
    FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_INT8_CHANNEL, fill_rows);
const mp_synth_form mp_synth_int8_offset =
    FORM(MP_AS_MODELSLIM, MP_SCHEME_INT8_CHANNEL, fill_rows);
const mp_synth_form mp_synth_int4 =
    FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_INT4_GROUP, fill_int4);
const mp_synth_form mp_synth_nvfp4 =
    FORM(MP_AS_MODELOPT, MP_SCHEME_NVFP4, fill_nvfp4, .shares = true);
const mp_synth_form mp_synth_nvfp4_packed =
    FORM(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_NVFP4, fill_nvfp4_divided);
const mp_synth_form mp_synth_bf16_rows = FORM(MP_AS_TRANSFORMERS, MP_SCHEME_BF16, fill_rows);
const mp_synth_form mp_synth_bf16_cols = FORM(MP_AS_LLAMA4, MP_SCHEME_BF16, fill_transposed);
const mp_synth_form mp_synth_bf16_cols_paired =
    FORM(MP_AS_GPT_OSS, MP_SCHEME_BF16, fill_transposed);
const mp_synth_form mp_synth_mxfp4_rows_paired = FORM(MP_AS_GPT_OSS, MP_SCHEME_MXFP4, fill_rows);
const mp_synth_form mp_synth_table_bf16 = TENSOR(MP_BF16, 2, fill_rows);
const mp_synth_form mp_synth_table_f32 = TENSOR(MP_F32, 2, fill_f32);
const mp_synth_form mp_synth_bias_bf16 = TENSOR(MP_BF16, 1, fill_rows);
const mp_synth_form mp_synth_bias_f32 = TENSOR(MP_F32, 1, fill_f32);
const mp_synth_form mp_synth_norm = TENSOR(MP_BF16, 1, fill_norm);
const mp_synth_form mp_synth_token_table = TENSOR(MP_I64, 2, fill_token_table);
/* clang-format on */

const mp_convention *mp_synth_convention(const mp_synth_form *form)
{
    return form->dtype == MP_BOOL ? mp_convention_find(form->style, form->scheme) : NULL;
}

mp_synth_part mp_synth_form_part(const mp_synth_form *form, const mp_convention *convention,
                                 unsigned part)
{
    const mp_convention_part *p = convention ? &convention->parts[part] : NULL;
    mp_element element;

    if (!p)
        return part == 0 ? (mp_synth_part){"", form->dtype, form->rank, 1, 1, 0}
                         : (mp_synth_part){0};
    if (p->covers == MP_EXTENT_NONE)
        return (mp_synth_part){0};
    element = mp_convention_element(convention, p);
    return (mp_synth_part){
        .suffix = mp_suffixes[p->suffix].text,
        .dtype = form->powers && p->covers == MP_EXTENT_BLOCKS ? convention->power_dtype : p->dtype,
        .rank = mp_extent_rank(p->covers),
        .block_rows = element.rows,
        .block_cols = element.cols,
        .numbers = p->covers == MP_EXTENT_SHAPE ? 2 : 0,
    };
}
