/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding of every scheme, scale type and block size, from the formula of each
 * written out element by element; and what decoding refuses. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "numeric/forms.h"

static uint32_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 8;
}

static double e2m1_value(unsigned code)
{
    static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

    return code & 8 ? -values[code & 7] : values[code & 7];
}

static double e4m3_value(unsigned code)
{
    int exponent = code >> 3 & 15;
    double fraction = (code & 7) / 8.0;
    double magnitude = exponent ? ldexp(1 + fraction, exponent - 7) : ldexp(fraction, -6);

    return code & 0x80 ? -magnitude : magnitude;
}

static double f16_value(unsigned code)
{
    int exponent = code >> 10 & 31;
    double fraction = (code & 1023) / 1024.0;
    double magnitude = exponent ? ldexp(1 + fraction, exponent - 15) : ldexp(fraction, -14);

    return code & 0x8000 ? -magnitude : magnitude;
}

static float bf16_value(uint16_t code)
{
    uint32_t bits = (uint32_t)code << 16;
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

static unsigned u16_at(const uint8_t *bytes, size_t i)
{
    return bytes[2 * i] | (unsigned)bytes[2 * i + 1] << 8;
}

/* The unscaled value of element i of one row of codes. */
static double code_at(mp_scheme scheme, const uint8_t *row, size_t i)
{
    float value;

    switch (scheme) {
    case MP_SCHEME_BF16:
        return bf16_value((uint16_t)u16_at(row, i));
    case MP_SCHEME_F16:
        return f16_value(u16_at(row, i));
    case MP_SCHEME_F32:
        memcpy(&value, row + 4 * i, sizeof(value));
        return value;
    case MP_SCHEME_MXFP4:
    case MP_SCHEME_NVFP4:
        return e2m1_value(row[i / 2] >> i % 2 * 4 & 15);
    case MP_SCHEME_INT8_CHANNEL:
        return row[i] < 128 ? row[i] : row[i] - 256;
    case MP_SCHEME_INT4_GROUP: {
        uint32_t word = u16_at(row, i / 8 * 2) | (uint32_t)u16_at(row, i / 8 * 2 + 1) << 16;

        return (int)(word >> i % 8 * 4 & 15) - 8;
    }
    default:
        return e4m3_value(row[i]);
    }
}

static double scale_value(mp_dtype dtype, const uint8_t *scales, size_t i)
{
    float value;

    switch (dtype) {
    case MP_F32:
        memcpy(&value, scales + 4 * i, sizeof(value));
        return value;
    case MP_BF16:
        return bf16_value((uint16_t)u16_at(scales, i));
    case MP_F16:
        return f16_value(u16_at(scales, i));
    case MP_F8_E4M3:
        return e4m3_value(scales[i]);
    default:
        return ldexp(1, scales[i] - 127);
    }
}

/* Random bytes in which no code is NaN or infinite. */
static uint8_t *random_codes(mp_scheme scheme, size_t bytes)
{
    uint8_t *codes = malloc(bytes + 1);

    cr_assert(codes);
    for (size_t i = 0; i < bytes; i++) {
        codes[i] = (uint8_t)next_random();
        bool upper = scheme == MP_SCHEME_F32 ? i % 4 == 3 : i % 2 == 1;
        bool is_float =
            scheme == MP_SCHEME_F32 || scheme == MP_SCHEME_F16 || scheme == MP_SCHEME_BF16;
        if (is_float && upper)
            codes[i] &= 0xbb;
        else if (!is_float && (codes[i] & 0x7f) == 0x7f && scheme != MP_SCHEME_INT8_CHANNEL)
            codes[i] -= 1;
    }
    return codes;
}

/* Scales that all differ from their neighbours in a row and in a column. */
static uint8_t *random_scales(mp_dtype dtype, size_t count)
{
    uint8_t *scales = malloc(4 * count + 1);

    cr_assert(scales);
    for (size_t i = 0; i < count; i++) {
        float x = ldexpf(1 + (float)(next_random() % 1000) / 1000, (int)(i * 7 % 23) - 11);
        uint32_t bits;

        memcpy(&bits, &x, sizeof(bits));
        if (dtype == MP_F32)
            memcpy(scales + 4 * i, &x, sizeof(x));
        else if (dtype == MP_BF16)
            memcpy(scales + 2 * i, (const uint8_t *)&bits + 2, 2);
        else if (dtype == MP_F16)
            memcpy(scales + 2 * i, &(uint16_t){(uint16_t)(i * 977 % 0x7c00)}, 2);
        else if (dtype == MP_F8_E4M3)
            scales[i] = (uint8_t)(i * 37 % 0x7f);
        else
            scales[i] = (uint8_t)(i * 91 % 255);
    }
    return scales;
}

/* Decodes a [150, cols] matrix in bands of 67 rows, which no block size divides.
 * A scheme without scales has block_rows 0. */
static void check_decode(mp_scheme scheme, mp_dtype scale_dtype, uint32_t block_rows,
                         uint32_t block_cols, size_t cols)
{
    enum { ROWS = 150, BAND = 67 };
    bool by_row = scheme == MP_SCHEME_FP8_CHANNEL || scheme == MP_SCHEME_INT8_CHANNEL;
    bool whole = scheme == MP_SCHEME_FP8_TENSOR || block_rows == 0;
    size_t br = by_row ? 1 : whole ? ROWS : block_rows;
    size_t bc = by_row || whole ? cols : block_cols;
    size_t scale_cols = (cols + bc - 1) / bc;
    size_t row_bytes = (size_t)mp_scheme_row_bytes(scheme, cols);
    size_t scale_bytes = mp_dtype_bits(scale_dtype) / 8;
    uint8_t *codes = random_codes(scheme, ROWS * row_bytes);
    uint8_t *scales = random_scales(scale_dtype, (ROWS + br - 1) / br * scale_cols);
    float *out = malloc(ROWS * cols * sizeof(*out));
    const float global = 0.0173f;
    mp_error err;

    for (size_t row0 = 0; row0 < ROWS; row0 += BAND) {
        const mp_rows in = {
            .scheme = scheme,
            .scale_dtype = scale_dtype,
            .block_rows = block_rows,
            .block_cols = block_cols,
            .row0 = row0,
            .rows = ROWS - row0 < BAND ? ROWS - row0 : BAND,
            .cols = cols,
            .weight = codes + row0 * row_bytes,
            .scale = scales + row0 / br * scale_cols * scale_bytes,
            .global_scale = global,
        };

        cr_assert_eq(mp_decode_rows(&in, out + row0 * cols, &err), 0, "%s", err.message);
    }
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t c = 0; c < cols; c++) {
            double w = code_at(scheme, codes + r * row_bytes, c);

            if (block_rows)
                w *= scale_value(scale_dtype, scales, r / br * scale_cols + c / bc);
            if (scheme == MP_SCHEME_NVFP4)
                w *= global;
            cr_assert_eq(out[r * cols + c], (float)w, "%s, %s scales: [%zu, %zu] is %g, not %g",
                         mp_scheme_name(scheme), mp_dtype_name(scale_dtype), r, c,
                         (double)out[r * cols + c], w);
        }
    }
    free(codes);
    free(scales);
    free(out);
}

Test(schemes, row_bytes)
{
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_BF16, 7), 14);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_F16, 7), 14);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_F32, 7), 28);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_MXFP4, 96), 48);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_NVFP4, 48), 24);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_MXFP8, 96), 96);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_FP8_TENSOR, 33), 33);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_INT8_CHANNEL, 33), 33);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_INT4_GROUP, 64), 32);
    cr_assert_eq(mp_scheme_row_bytes(MP_SCHEME_INT4_GROUP, 66), 36);
}

Test(schemes, decode_floats)
{
    check_decode(MP_SCHEME_BF16, MP_F32, 0, 1, 77);
    check_decode(MP_SCHEME_F16, MP_F32, 0, 1, 77);
    check_decode(MP_SCHEME_F32, MP_F32, 0, 1, 77);
}

Test(schemes, decode_mx)
{
    check_decode(MP_SCHEME_MXFP4, MP_F8_E8M0, 1, 32, 352);
    check_decode(MP_SCHEME_MXFP4, MP_U8, 1, 32, 352);
    check_decode(MP_SCHEME_MXFP4, MP_F8_E8M0, 1, 32, 70); /* a ragged last block */
    check_decode(MP_SCHEME_MXFP8, MP_F8_E8M0, 1, 32, 352);
    check_decode(MP_SCHEME_MXFP8, MP_U8, 1, 32, 77);
}

Test(schemes, decode_fp8_block)
{
    const mp_dtype types[] = {MP_F32, MP_BF16, MP_F16, MP_F8_E8M0, MP_U8};

    for (size_t i = 0; i < 5; i++) {
        check_decode(MP_SCHEME_FP8_BLOCK, types[i], 128, 128, 300);
        check_decode(MP_SCHEME_FP8_BLOCK, types[i], 32, 32, 300);
        check_decode(MP_SCHEME_FP8_GROUP, types[i], 1, 128, 300);
    }
    check_decode(MP_SCHEME_FP8_BLOCK, MP_F32, 48, 112, 300);
}

Test(schemes, decode_one_scale_a_row_or_tensor)
{
    const mp_dtype types[] = {MP_F32, MP_BF16, MP_F16};

    for (size_t i = 0; i < 3; i++) {
        check_decode(MP_SCHEME_FP8_CHANNEL, types[i], 1, 1, 77);
        check_decode(MP_SCHEME_FP8_TENSOR, types[i], 1, 1, 77);
        check_decode(MP_SCHEME_INT8_CHANNEL, types[i], 1, 1, 77);
    }
}

Test(schemes, decode_nvfp4)
{
    check_decode(MP_SCHEME_NVFP4, MP_F8_E4M3, 1, 16, 176);
    check_decode(MP_SCHEME_NVFP4, MP_F8_E4M3, 1, 16, 38);
}

Test(schemes, decode_int4_group)
{
    check_decode(MP_SCHEME_INT4_GROUP, MP_BF16, 1, 32, 352);
    check_decode(MP_SCHEME_INT4_GROUP, MP_F16, 1, 128, 300);
    check_decode(MP_SCHEME_INT4_GROUP, MP_F32, 1, 64, 74); /* half a word and a block left over */
}

/* Codes and scales need no alignment. */
Test(schemes, decode_unaligned)
{
    uint8_t bytes[64];
    const uint16_t weight[3] = {0x3f80, 0xc000, 0x0001};
    const float scale[2] = {0.25f, -3};
    float out[3];
    mp_error err;
    mp_rows in = {.scheme = MP_SCHEME_BF16, .rows = 1, .cols = 3, .weight = bytes + 1};

    memcpy(bytes + 1, weight, sizeof(weight));
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0);
    cr_assert(out[0] == 1 && out[1] == -2 && out[2] == 0x1p-133f);

    in = (mp_rows){.scheme = MP_SCHEME_INT8_CHANNEL, .scale_dtype = MP_F32, .rows = 2, .cols = 1};
    in.weight = bytes;
    in.scale = bytes + 3;
    bytes[0] = 5;
    bytes[1] = 0x80;
    memcpy(bytes + 3, scale, sizeof(scale));
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0);
    cr_assert(out[0] == 1.25f && out[1] == 384);
}

Test(schemes, decode_lets_nan_weights_pass)
{
    const uint16_t bf16[3] = {0x7fc1, 0xff80, 0x3f80};
    const uint16_t f16[4] = {0x7e00, 0xfc00, 0x7bff, 0x8001};
    const uint8_t fp8[2] = {0x7f, 0xff};
    const float scale = 2;
    float out[4];
    mp_error err;
    mp_rows in = {.scheme = MP_SCHEME_BF16, .rows = 1, .cols = 3, .weight = bf16};

    cr_assert_eq(mp_decode_rows(&in, out, &err), 0);
    cr_assert(isnan(out[0]) && out[1] == -INFINITY && out[2] == 1);
    in = (mp_rows){.scheme = MP_SCHEME_F16, .rows = 1, .cols = 4, .weight = f16};
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0);
    cr_assert(isnan(out[0]) && out[1] == -INFINITY && out[2] == 65504 && out[3] == -0x1p-24f);
    in = (mp_rows){.scheme = MP_SCHEME_FP8_TENSOR, .rows = 2, .cols = 1, .weight = fp8};
    in.scale = &scale;
    in.scale_dtype = MP_F32;
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0);
    cr_assert(isnan(out[0]) && isnan(out[1]));
}

Test(schemes, decode_nothing)
{
    const float scale = 1;
    float out = 7;
    mp_error err;
    mp_rows in = {
        .scheme = MP_SCHEME_FP8_CHANNEL, .scale_dtype = MP_F32, .weight = &scale, .scale = &scale};

    cr_assert_eq(mp_decode_rows(&in, &out, &err), 0);
    in.rows = 3;
    cr_assert_eq(mp_decode_rows(&in, &out, &err), 0);
    in.scheme = MP_SCHEME_FP8_BLOCK;
    in.block_rows = in.block_cols = 128;
    cr_assert_eq(mp_decode_rows(&in, &out, &err), 0);
    cr_assert_eq(out, 7);
}

static void assert_refused(const mp_rows *in, int code, const char *message)
{
    static float out[4096];
    mp_error err;

    cr_assert_eq(mp_decode_rows(in, out, &err), code);
    cr_assert_eq(err.code, code);
    cr_assert_str_eq(err.message, message);
}

Test(schemes, decode_refuses_nan_scales)
{
    static uint8_t codes[20 * 96];
    uint8_t bytes[20 * 3];
    float floats[3 * 3];
    mp_rows in = {
        .scheme = MP_SCHEME_MXFP4,
        .scale_dtype = MP_F8_E8M0,
        .block_rows = 1,
        .block_cols = 32,
        .row0 = 1000,
        .rows = 20,
        .cols = 96,
        .weight = codes,
        .scale = bytes,
    };

    memset(bytes, 0, sizeof(bytes));
    bytes[17 * 3 + 2] = 255;
    assert_refused(&in, MP_ERR_INPUT, "scale of weight [1017, 64] is NaN");
    in.scheme = MP_SCHEME_MXFP8;
    assert_refused(&in, MP_ERR_INPUT, "scale of weight [1017, 64] is NaN");
    in.scheme = MP_SCHEME_MXFP4;
    in.cols = 70; /* three blocks, the last one ragged */
    assert_refused(&in, MP_ERR_INPUT, "scale of weight [1017, 64] is NaN");

    /* Rows 1000..1019 in blocks of 8: scale row 1 of these begins with row 1000. */
    for (size_t i = 0; i < 9; i++)
        floats[i] = 1;
    floats[2 * 3 + 1] = NAN;
    in.cols = 96;
    in.scheme = MP_SCHEME_FP8_BLOCK;
    in.scale_dtype = MP_F32;
    in.block_rows = 8;
    in.scale = floats;
    assert_refused(&in, MP_ERR_INPUT, "scale of weight [1016, 32] is NaN");

    memset(bytes, 0x38, sizeof(bytes));
    in.scheme = MP_SCHEME_NVFP4;
    in.scale_dtype = MP_F8_E4M3;
    in.scale = bytes;
    in.block_rows = 1;
    in.block_cols = 16;
    in.rows = 1;
    bytes[5] = 0xff;
    assert_refused(&in, MP_ERR_INPUT, "scale of weight [1000, 80] is NaN");
    bytes[5] = 0x38;
    in.global_scale = NAN;
    assert_refused(&in, MP_ERR_INPUT, "global scale is NaN");
}

/* 0 is 2^-127 and no zero, 134 is 128 and no NaN; 255 is. */
Test(schemes, decodes_exponents_at_the_edges)
{
    static const struct {
        mp_scheme scheme;
        uint32_t block_rows, block_cols;
        uint8_t one; /* a byte of ones */
    } forms[] = {{MP_SCHEME_MXFP4, 1, 32, 0x22},
                 {MP_SCHEME_MXFP8, 1, 32, 0x38},
                 {MP_SCHEME_FP8_BLOCK, 2, 16, 0x38}};
    static const mp_dtype types[] = {MP_F8_E8M0, MP_U8};
    static const float edges[] = {0x1p-127f, 128, NAN};
    static const uint8_t scales[] = {0, 134, 255};
    uint8_t weight[64];
    float out[64];

    for (size_t f = 0; f < sizeof forms / sizeof forms[0]; f++)
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            mp_rows in = {
                .scheme = forms[f].scheme,
                .scale_dtype = types[t],
                .block_rows = forms[f].block_rows,
                .block_cols = forms[f].block_cols,
                .rows = 1,
                .cols = 2 * forms[f].block_cols,
                .weight = weight,
                .scale = scales,
            };

            memset(weight, forms[f].one, sizeof weight);
            cr_assert_eq(mp_decode_rows(&in, out, NULL), 0);
            for (uint32_t i = 0; i < in.cols; i++)
                cr_assert_eq(out[i], edges[i / in.block_cols], "%zu, %zu, %u", f, t, i);
            in.scale = scales + 1;
            assert_refused(&in, MP_ERR_INPUT,
                           in.block_cols == 32 ? "scale of weight [0, 32] is NaN"
                                               : "scale of weight [0, 16] is NaN");
        }
}

Test(schemes, decode_refuses_combinations)
{
    static const uint8_t bytes[256];
    mp_rows in = {
        .scheme = MP_SCHEME_MXFP4,
        .scale_dtype = MP_F32,
        .block_rows = 1,
        .block_cols = 32,
        .rows = 1,
        .cols = 32,
        .weight = bytes,
        .scale = bytes,
    };

    assert_refused(&in, MP_ERR_UNSUPPORTED, "mxfp4 weights with scales of type F32");
    in.scale_dtype = MP_F8_E8M0;
    in.block_cols = 16;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "mxfp4 weights with a scale for 1x16 elements");
    in.block_cols = 32;
    in.block_rows = 2;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "mxfp4 weights with a scale for 2x32 elements");
    in.block_rows = 1;
    in.cols = 31;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "mxfp4 weights with 31 columns, an odd number");
    in.cols = 32;
    in.scale = NULL;
    assert_refused(&in, MP_ERR_USAGE, "mxfp4 weights without scales");
    in.scale = bytes;
    in.scheme = MP_SCHEME_FP8_BLOCK;
    in.block_rows = 0;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "fp8_block weights with a scale for 0x32 elements");
    in.scheme = MP_SCHEME_INT8_CHANNEL;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "int8_channel weights with scales of type F8_E8M0");
    in.scheme = MP_SCHEME_NVFP4;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "nvfp4 weights with scales of type F8_E8M0");
    in.scheme = MP_SCHEME_COUNT;
    assert_refused(&in, MP_ERR_UNSUPPORTED, "unknown scheme 12");
}
