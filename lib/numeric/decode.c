/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a stored matrix: which scale belongs to which block of a scheme, and rows of codes and
 * scales as float32.
 *
 *     tensor   |---- block 0 ----|---- block 1 ----|---- block 2 ----|
 *     slice              row0 ........................... row0 + rows - 1
 *
 * A matrix is often a slice of a tensor: the rows of one expert, or one rank's part. Blocks are
 * those of the whole tensor, so the first block of a slice may be short, and its scales begin with
 * the block that row0 falls in. Everywhere else row numbers are those of the slice.
 *
 * mp_rows_check validates the description of a matrix against the table of schemes, and everything
 * else relies on that. Kernels decode a row, codes first and then scales in place. Only the
 * caller's row is written, so threads may read one matrix at the same time. */
#include <inttypes.h>
#include <math.h>

#include "base/error.h"
#include "base/words.h"
#include "numeric/forms.h"
#include "numeric/kernels.h"
#include "numeric/rows.h"
#include "numeric/scales.h"

#define F_SCALES    (1u << MP_F32 | 1u << MP_BF16 | 1u << MP_F16)
#define E8M0_SCALES (1u << MP_F8_E8M0 | 1u << MP_U8)
#define E4M3_SCALES (1u << MP_F8_E4M3)

_Static_assert(MP_DTYPE_COUNT <= 32, "dtypes fit a set of 32 bits");

/* What shares one scale. */
enum extent { NO_SCALE, BLOCK, ROW, TENSOR };

/* The scales of each scheme; a block size of 0 is free. */
static const struct {
    enum extent extent;
    uint32_t dtypes;
    uint32_t block_rows;
    uint32_t block_cols;
} schemes[MP_SCHEME_COUNT] = {
    [MP_SCHEME_MXFP4] = {BLOCK, E8M0_SCALES, 1, 32},
    [MP_SCHEME_MXFP8] = {BLOCK, E8M0_SCALES, 1, 32},
    [MP_SCHEME_FP8_BLOCK] = {BLOCK, F_SCALES | E8M0_SCALES, 0, 0},
    [MP_SCHEME_FP8_GROUP] = {BLOCK, F_SCALES | E8M0_SCALES, 1, 0},
    [MP_SCHEME_FP8_CHANNEL] = {ROW, F_SCALES, 0, 0},
    [MP_SCHEME_FP8_TENSOR] = {TENSOR, F_SCALES, 0, 0},
    [MP_SCHEME_NVFP4] = {BLOCK, E4M3_SCALES, 1, 16},
    [MP_SCHEME_INT8_CHANNEL] = {ROW, F_SCALES, 0, 0},
    [MP_SCHEME_INT4_GROUP] = {BLOCK, F_SCALES, 1, 0},
};

uint64_t mp_scheme_row_bytes(mp_scheme scheme, uint64_t cols)
{
    unsigned bits = mp_scheme_bits(scheme);

    /* Eight codes per 32-bit word, and every row starts with a new word. */
    if (scheme == MP_SCHEME_INT4_GROUP)
        return mp_ceil_div(cols, 8) * 4;
    return bits < 8 ? mp_ceil_div(cols, 8 / bits) : cols * (bits / 8);
}

bool mp_scheme_has_scales(mp_scheme scheme)
{
    return schemes[scheme].extent != NO_SCALE;
}

mp_rows mp_scheme_rows(mp_scheme scheme, uint64_t row0, uint64_t rows, uint64_t cols)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);

    return (mp_rows){
        .scheme = scheme,
        .scale_dtype = form->scale_dtype,
        .block_rows = form->block_rows,
        .block_cols = form->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = cols,
    };
}

static int check_block(const mp_rows *in, mp_error *err)
{
    uint32_t rows = schemes[in->scheme].block_rows;
    uint32_t cols = schemes[in->scheme].block_cols;

    if (in->block_rows == 0 || in->block_cols == 0 || (rows && in->block_rows != rows) ||
        (cols && in->block_cols != cols))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s weights with a scale for %" PRIu32 "x%" PRIu32 " elements",
                       mp_scheme_name(in->scheme), in->block_rows, in->block_cols);
    return 0;
}

int mp_rows_check(const mp_rows *in, mp_error *err)
{
    if ((unsigned)in->scheme >= MP_SCHEME_COUNT)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "unknown scheme %d", (int)in->scheme);
    if (mp_scheme_bits(in->scheme) == 4 && in->cols % 2 != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s weights with %" PRIu64 " columns, an odd number",
                       mp_scheme_name(in->scheme), in->cols);
    if (!mp_scheme_has_scales(in->scheme))
        return 0;
    if ((unsigned)in->scale_dtype >= MP_DTYPE_COUNT ||
        !(schemes[in->scheme].dtypes >> in->scale_dtype & 1))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s weights with scales of type %s",
                       mp_scheme_name(in->scheme),
                       (unsigned)in->scale_dtype < MP_DTYPE_COUNT ? mp_dtype_name(in->scale_dtype)
                                                                  : "unknown");
    if (!in->scale)
        return mp_fail(err, MP_ERR_USAGE, "%s weights without scales", mp_scheme_name(in->scheme));
    return schemes[in->scheme].extent == BLOCK ? check_block(in, err) : 0;
}

mp_scale_block mp_rows_block(const mp_rows *in)
{
    switch (schemes[in->scheme].extent) {
    case BLOCK:
        return (mp_scale_block){in->block_rows, in->block_cols};
    case ROW:
        return (mp_scale_block){1, UINT64_MAX};
    case NO_SCALE:
    case TENSOR:
        break;
    }
    return (mp_scale_block){UINT64_MAX, UINT64_MAX};
}

float mp_rows_scale_at(const mp_rows *in, uint64_t i)
{
    return mp_scale_value(in->scale_dtype, in->scale, i);
}

uint64_t mp_rows_first_scale(const mp_rows *in, uint64_t row)
{
    mp_scale_block block = mp_rows_block(in);
    /* Not row / block.rows, since the slice may start in the middle of a block. UINT64_MAX, one
     * scale for all rows, gives 0. */
    uint64_t scale_row = (in->row0 + row) / block.rows - in->row0 / block.rows;

    return scale_row * mp_ceil_div(in->cols, block.cols);
}

uint64_t mp_rows_scale_count(const mp_rows *in)
{
    mp_scale_block block = mp_rows_block(in);

    if (in->rows == 0)
        return 0;
    return mp_rows_first_scale(in, in->rows - 1) + mp_ceil_div(in->cols, block.cols);
}

static const uint8_t *codes_of(const mp_rows *in, uint64_t row)
{
    return (const uint8_t *)in->weight + row * mp_scheme_row_bytes(in->scheme, in->cols);
}

void mp_decode_codes(const mp_rows *in, uint64_t row, float *out)
{
    const mp_kernels *kernels = mp_kernels_best();
    const uint8_t *codes = codes_of(in, row);

    switch (in->scheme) {
    case MP_SCHEME_BF16:
        kernels->bf16_decode((const uint16_t *)(const void *)codes, out, in->cols);
        break;
    case MP_SCHEME_F16:
        kernels->f16_decode((const uint16_t *)(const void *)codes, out, in->cols);
        break;
    case MP_SCHEME_F32:
        memcpy(out, codes, in->cols * sizeof(*out));
        break;
    case MP_SCHEME_MXFP4:
    case MP_SCHEME_NVFP4:
        kernels->e2m1_decode(codes, out, in->cols);
        break;
    case MP_SCHEME_INT8_CHANNEL:
        kernels->int8_decode((const int8_t *)codes, out, in->cols);
        break;
    case MP_SCHEME_INT4_GROUP:
        kernels->int4_decode(codes, out, in->cols);
        break;
    default: /* the E4M3 schemes */
        kernels->e4m3_decode(codes, out, in->cols);
        break;
    }
}

static int fail_scale(const mp_rows *in, uint64_t row, uint64_t col, mp_error *err)
{
    return mp_fail(err, MP_ERR_INPUT, "scale of weight [%" PRIu64 ", %" PRIu64 "] is NaN",
                   in->row0 + row, col);
}

#define RUN 64 /* scales at a time */

/* Multiplies codes in place by the scales of their blocks. */
static int scale_codes(const mp_rows *in, uint64_t row, float *out, bool allow_nan, mp_error *err)
{
    mp_scale_block block = mp_rows_block(in);
    uint64_t width = block.cols < in->cols ? block.cols : in->cols;
    uint64_t first = mp_rows_first_scale(in, row);

    for (uint64_t col = 0; col < in->cols; col += RUN * width, first += RUN) {
        uint64_t left = in->cols - col;
        uint64_t blocks = mp_ceil_div(left, width) < RUN ? mp_ceil_div(left, width) : RUN;
        float scales[RUN];

        mp_scale_values(in->scale_dtype, in->scale, first, blocks, scales);
        for (uint64_t i = 0; i < blocks && !allow_nan; i++)
            if (isnan(scales[i]))
                return fail_scale(in, row, col + i * width, err);
        mp_kernels_best()->scale_blocks(out + col, scales, width, out + col,
                                        left < RUN * width ? left : RUN * width);
    }
    return 0;
}

static int scale_globally(const mp_rows *in, float *out, bool allow_nan, mp_error *err)
{
    const mp_kernels *kernels = mp_kernels_best();

    if (isnan(in->global_scale) && !allow_nan)
        return mp_fail(err, MP_ERR_INPUT, "global scale is NaN");
    /* Divide, as compressed-tensors does: multiplying by a rounded reciprocal gives other bits. */
    if (in->global_divides)
        kernels->divide(out, in->global_scale, out, in->cols);
    else
        kernels->scale(out, in->global_scale, out, in->cols);
    return 0;
}

static int scale_row(const mp_rows *in, uint64_t row, float *out, bool allow_nan, mp_error *err)
{
    int rc = scale_codes(in, row, out, allow_nan, err);

    if (rc == 0 && in->scheme == MP_SCHEME_NVFP4)
        rc = scale_globally(in, out, allow_nan, err);
    return rc;
}

/* A row of whole mxfp4 blocks in one go. A block is 1 x 32, so that row0 does not matter. */
static int decode_mxfp4(const mp_rows *in, uint64_t row, float *out, bool allow_nan, mp_error *err)
{
    uint64_t blocks = in->cols / MP_MX_BLOCK;
    const uint8_t *scales = (const uint8_t *)in->scale + row * blocks;
    const uint8_t *nan = allow_nan ? NULL : memchr(scales, 255, blocks);

    if (nan)
        return fail_scale(in, row, (uint64_t)(nan - scales) * MP_MX_BLOCK, err);
    mp_kernels_best()->mxfp4_decode(codes_of(in, row), scales, out, in->cols);
    return 0;
}

int mp_decode_row(const mp_rows *in, uint64_t row, float *out, bool allow_nan, mp_error *err)
{
    if (in->scheme == MP_SCHEME_MXFP4 && in->cols % MP_MX_BLOCK == 0)
        return decode_mxfp4(in, row, out, allow_nan, err);
    mp_decode_codes(in, row, out);
    return mp_scheme_has_scales(in->scheme) ? scale_row(in, row, out, allow_nan, err) : 0;
}

int mp_decode_rows(const mp_rows *in, float *out, mp_error *err)
{
    int rc = mp_rows_check(in, err);

    for (uint64_t row = 0; rc == 0 && row < in->rows; row++)
        rc = mp_decode_row(in, row, out + row * in->cols, false, err);
    return rc;
}
