/* SPDX-License-Identifier: Apache-2.0 */
/* Storage forms: recognized by types and shapes of weight and scale, then checked. */
#include <criterion/criterion.h>

#include <string.h>

#include "checkpoint/matrix.h"
#include "checkpoint/storage.h"

/* A storage without fusion or second scales. */
#define STORED(form, weight_type, scale_type, scaled, rows, columns)            \
    {                                                                           \
        .scheme = form, .weight_dtype = weight_type, .scale_dtype = scale_type, \
        .has_scale = scaled, .block_rows = rows, .block_cols = columns          \
    }

/* A matrix's two tensors. */
static uint64_t weight_shape[3], scale_shape[3];
static mp_tensor weight = {.name = "w1.weight", .shape = weight_shape};
static mp_tensor scale = {.name = "w1.scale", .shape = scale_shape};
static mp_matrix matrix;
static mp_config config;
static mp_storage storage;
static mp_fusion fusion;
static mp_problems problems;
static uint64_t rows_found, cols;

static void init(void)
{
    config = (mp_config){.block_rows = MP_CONFIG_ABSENT, .block_cols = MP_CONFIG_ABSENT};
    matrix = (mp_matrix){.weight = &weight};
}

static void finish(void)
{
    mp_problems_release(&problems);
}

TestSuite(storage, .init = init, .fini = finish);

static void set_weight(mp_dtype dtype, uint64_t rows, uint64_t columns)
{
    weight.dtype = dtype;
    weight.rank = 2;
    weight_shape[0] = rows;
    weight_shape[1] = columns;
}

static void set_scale(mp_dtype dtype, uint64_t rows, uint64_t columns)
{
    matrix.scale = &scale;
    scale.dtype = dtype;
    scale.rank = 2;
    scale_shape[0] = rows;
    scale_shape[1] = columns;
}

static bool recognize(void)
{
    return mp_storage_recognize(&matrix, fusion, &config, &storage, &rows_found, &cols);
}

/* block: rows and columns of a scale. */
static void expect_form(mp_scheme scheme, uint32_t block_rows, uint32_t block_cols, uint64_t k)
{
    cr_assert(recognize(), "%s [%llu, %llu] is no known form", mp_dtype_name(weight.dtype),
              (unsigned long long)weight_shape[0], (unsigned long long)weight_shape[1]);
    cr_assert_eq(storage.scheme, scheme, "%s", mp_scheme_name(storage.scheme));
    cr_assert_eq(storage.weight_dtype, weight.dtype);
    cr_assert_eq(storage.has_scale, matrix.scale != NULL);
    if (matrix.scale) {
        cr_assert_eq(storage.scale_dtype, scale.dtype);
        cr_assert_eq(storage.block_rows, block_rows);
        cr_assert_eq(storage.block_cols, block_cols);
    }
    cr_assert_eq(cols, k);
}

Test(storage, plain_floats)
{
    set_weight(MP_BF16, 24, 56);
    expect_form(MP_SCHEME_BF16, 1, 1, 56);
    set_weight(MP_F16, 24, 56);
    expect_form(MP_SCHEME_F16, 1, 1, 56);
    set_weight(MP_F32, 24, 56);
    expect_form(MP_SCHEME_F32, 1, 1, 56);
}

/* Two values a byte, however the bytes are called; with F4 the shape is logical. */
Test(storage, mxfp4)
{
    static const mp_dtype scales[] = {MP_F8_E8M0, MP_U8};

    for (int s = 0; s < 2; s++) {
        set_scale(scales[s], 24, 3);
        set_weight(MP_I8, 24, 48);
        expect_form(MP_SCHEME_MXFP4, 1, 32, 96);
        set_weight(MP_U8, 24, 48);
        expect_form(MP_SCHEME_MXFP4, 1, 32, 96);
        set_weight(MP_F4, 24, 96);
        expect_form(MP_SCHEME_MXFP4, 1, 32, 96);
    }
}

/* V4-Flash's packed w1 is [2048, 2048]. */
Test(storage, a_square_weight_is_no_hint)
{
    set_weight(MP_I8, 2048, 2048);
    set_scale(MP_F8_E8M0, 2048, 128);
    expect_form(MP_SCHEME_MXFP4, 1, 32, 4096);
}

/* E4M3 with exponents is mxfp8 only where every row has its scales. */
Test(storage, mxfp8_or_fp8_block)
{
    set_weight(MP_F8_E4M3, 160, 224);
    set_scale(MP_F8_E8M0, 160, 7);
    expect_form(MP_SCHEME_MXFP8, 1, 32, 224);
    set_scale(MP_U8, 160, 7);
    expect_form(MP_SCHEME_MXFP8, 1, 32, 224);

    set_scale(MP_F8_E8M0, 2, 2);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224);
    set_scale(MP_U8, 2, 2);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224);
    set_scale(MP_F8_E8M0, 160, 2);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224); /* and no check would pass it */

    set_weight(MP_F8_E4M3, 160, 32); /* as wide as mxfp8's, but not as high */
    set_scale(MP_F8_E8M0, 2, 1);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 32);

    set_weight(MP_F8_E4M3, 1, 32); /* both would fit */
    set_scale(MP_F8_E8M0, 1, 1);
    expect_form(MP_SCHEME_MXFP8, 1, 32, 32);
    set_scale(MP_F32, 1, 1);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 32);
}

Test(storage, fp8_block)
{
    set_weight(MP_F8_E4M3, 160, 224);
    set_scale(MP_F32, 2, 2);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224);
    set_scale(MP_BF16, 2, 2);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224);

    config.block_rows = 32;
    config.block_cols = 64;
    set_scale(MP_F8_E8M0, 5, 4);
    expect_form(MP_SCHEME_FP8_BLOCK, 32, 64, 224);
}

/* One scale a row, or for all; a dimension of 1 may be missing. */
Test(storage, scales_of_rows_and_matrices)
{
    set_weight(MP_F8_E4M3, 160, 224);
    set_scale(MP_F32, 160, 1);
    expect_form(MP_SCHEME_FP8_CHANNEL, 1, UINT32_MAX, 224);
    scale.rank = 1;
    expect_form(MP_SCHEME_FP8_CHANNEL, 1, UINT32_MAX, 224);
    set_scale(MP_BF16, 1, 1);
    expect_form(MP_SCHEME_FP8_TENSOR, UINT32_MAX, UINT32_MAX, 224);
    scale.rank = 0;
    expect_form(MP_SCHEME_FP8_TENSOR, UINT32_MAX, UINT32_MAX, 224);
    set_weight(MP_I8, 160, 224);
    set_scale(MP_F16, 160, 1);
    expect_form(MP_SCHEME_INT8_CHANNEL, 1, UINT32_MAX, 224);
}

Test(storage, nvfp4_has_a_second_scale)
{
    static const mp_tensor global = {.name = "w1.weight_scale_2", .dtype = MP_F32, .bytes = 4};

    matrix.global = &global;
    set_weight(MP_U8, 24, 48);
    set_scale(MP_F8_E4M3, 24, 6);
    expect_form(MP_SCHEME_NVFP4, 1, 16, 96);
    cr_assert(storage.has_global);
    set_scale(MP_U8, 24, 3);
    cr_assert_not(recognize());
}

/* The group size is what the scale's columns say. */
Test(storage, int4_comes_with_its_shape)
{
    static const mp_tensor shape = {.name = "w1.weight_shape", .dtype = MP_I32, .bytes = 8};

    matrix.shape = &shape;
    set_weight(MP_I32, 24, 48);
    set_scale(MP_BF16, 24, 12);
    expect_form(MP_SCHEME_INT4_GROUP, 1, 32, 384);
    set_scale(MP_BF16, 24, 3);
    expect_form(MP_SCHEME_INT4_GROUP, 1, 128, 384);
}

/* Without it config.json has to say that numbers have four bits. */
Test(storage, int4_without_its_shape)
{
    set_weight(MP_I32, 24, 48);
    set_scale(MP_BF16, 24, 12);
    config.weight_bits = 4;
    expect_form(MP_SCHEME_INT4_GROUP, 1, 32, 384);
    config.weight_bits = 8;
    cr_assert_not(recognize());
}

/* W4AFP8: two numbers a byte, told from INT8 by the name of its scales and their shape. */
Test(storage, int4_in_bytes)
{
    scale.name = "w1.weight_scale_inv";
    set_weight(MP_I8, 24, 192);
    set_scale(MP_BF16, 24, 3);
    expect_form(MP_SCHEME_INT4_GROUP, 1, 128, 384);
    cr_assert_eq(storage.int4, MP_INT4_COLUMNS);
    set_weight(MP_I8, 24, 64);
    set_scale(MP_F32, 24, 1);
    expect_form(MP_SCHEME_INT4_GROUP, 1, 128, 128);
    scale.name = "w1.weight_scale";
    expect_form(MP_SCHEME_INT8_CHANNEL, 1, UINT32_MAX, 64);
    cr_assert_eq(storage.int4, MP_INT4_WORDS);
    scale.name = "w1.scale";
}

/* Bytes of ModelSlim and compressed-tensors: two rows or one code each. */
Test(storage, int4_of_a_scale_a_row_and_a_group)
{
    uint64_t shape[2] = {48, 3};
    mp_tensor group = {
        .name = "w1.weight_scale_second", .dtype = MP_F32, .rank = 2, .shape = shape};

    scale.name = "w1.weight_scale";
    set_weight(MP_I8, 24, 96);
    set_scale(MP_F32, 48, 1);
    expect_form(MP_SCHEME_INT4_GROUP, 1, UINT32_MAX, 96);
    cr_expect_eq(storage.int4, MP_INT4_ROWS);
    cr_expect_eq(rows_found, 48);
    matrix.group_scale = &group;
    expect_form(MP_SCHEME_INT4_GROUP, 1, 32, 96);
    cr_expect_eq(storage.int4, MP_INT4_ROWS);
    cr_expect(storage.two_scales);
    cr_expect_eq(rows_found, 48);
    shape[0] = 24;
    cr_expect_not(recognize(), "the scale of the rows says 48, that of groups 24");
    set_scale(MP_F32, 24, 1);
    expect_form(MP_SCHEME_INT4_GROUP, 1, 32, 96);
    cr_expect_eq(storage.int4, MP_INT4_BYTES);
    cr_expect_eq(rows_found, 24);
    matrix.group_scale = NULL;
    expect_form(MP_SCHEME_INT8_CHANNEL, 1, UINT32_MAX, 96);
    set_scale(MP_F32, 24, 3);
    config.weight_bits = 4;
    expect_form(MP_SCHEME_INT4_GROUP, 1, 32, 96);
    cr_expect_eq(storage.int4, MP_INT4_BYTES);
    scale.name = "w1.scale";
}

/* transformers squeezes the scales of single experts, ModelOpt inserts dimensions. */
Test(storage, dimensions_of_one_do_not_matter)
{
    config.block_rows = config.block_cols = 128;
    set_weight(MP_F8_E4M3, 96, 224);
    set_scale(MP_F32, 2, 0);
    scale.rank = 1;
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224);
    set_weight(MP_F8_E4M3, 224, 96);
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 96);
    set_weight(MP_F8_E4M3, 96, 64);
    scale.rank = 0;
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 64);
    set_weight(MP_F8_E4M3, 96, 224);
    scale.rank = 3; /* [1, 2, 1] */
    scale_shape[0] = scale_shape[2] = 1;
    scale_shape[1] = 2;
    expect_form(MP_SCHEME_FP8_BLOCK, 128, 128, 224);
    mp_storage_check(&storage, &matrix, 1, 96, 224, &problems);
    cr_assert_eq(problems.count, 0);
    set_weight(MP_F8_E4M3, 300, 224); /* 6 numbers, but not in this shape */
    set_scale(MP_F32, 2, 3);
    cr_assert(recognize());
    mp_storage_check(&storage, &matrix, 1, 300, 224, &problems);
    cr_assert_eq(problems.count, 1);
}

/* ModelOpt has one number for all fused experts, or one for each; somebody [E, 1, rows]. */
Test(storage, scales_of_fused_fp8)
{
    set_weight(MP_F8_E4M3, 5, 64);
    weight.rank = 3;
    weight_shape[2] = 40;
    fusion = MP_FUSION_ROWS;
    set_scale(MP_F32, 5, 1);
    scale.bytes = 20;
    expect_form(MP_SCHEME_FP8_TENSOR, UINT32_MAX, UINT32_MAX, 40);
    scale.rank = 0;
    scale.bytes = 4;
    expect_form(MP_SCHEME_FP8_TENSOR, UINT32_MAX, UINT32_MAX, 40);
    scale.rank = 3;
    scale_shape[0] = 5;
    scale_shape[1] = 1;
    scale_shape[2] = 64;
    scale.bytes = 5 * 64 * 4;
    expect_form(MP_SCHEME_FP8_CHANNEL, 1, UINT32_MAX, 40);
}

/* [E, 2I, H] and, transposed, [E, H, 2I]. */
Test(storage, fused_experts)
{
    set_weight(MP_BF16, 5, 64);
    weight.rank = 3;
    weight_shape[2] = 40;
    fusion = MP_FUSION_ROWS;
    expect_form(MP_SCHEME_BF16, 1, 1, 40);
    cr_assert_eq(rows_found, 64);
    fusion = MP_FUSION_COLS_PAIRED;
    expect_form(MP_SCHEME_BF16, 1, 1, 64);
    cr_assert_eq(rows_found, 40);
}

Test(storage, what_is_no_known_form)
{
    set_weight(MP_F8_E4M3, 160, 224); /* without a scale */
    cr_assert_not(recognize());
    set_weight(MP_I8, 24, 48);
    cr_assert_not(recognize());
    set_weight(MP_F8_E4M3, 160, 224);
    set_scale(MP_F8_E4M3, 160, 14);
    cr_assert_not(recognize());
    set_weight(MP_U8, 24, 48); /* nvfp4 without its second scale */
    set_scale(MP_F8_E4M3, 24, 6);
    cr_assert_not(recognize());
    set_weight(MP_BF16, 24, 48); /* with a scale that means nothing */
    set_scale(MP_F32, 24, 48);
    cr_assert_not(recognize());
    set_weight(MP_I32, 24, 48); /* int4 without the shape that it was packed from */
    cr_assert_not(recognize());
    set_weight(MP_F8_E5M2, 24, 48);
    cr_assert_not(recognize());

    matrix.scale = NULL;
    set_weight(MP_BF16, 24, 48);
    weight.rank = 3;
    cr_assert_not(recognize());
    weight.rank = 1;
    cr_assert_not(recognize());
}

/* A file may say so, as long as there are no rows. */
Test(storage, more_columns_than_a_number_holds)
{
    set_weight(MP_I8, 0, UINT64_MAX / 2 + 1);
    set_scale(MP_F8_E8M0, 0, 1);
    cr_assert_not(recognize());
}

Test(storage, bytes_of_rows)
{
    static const struct {
        mp_storage storage;
        uint64_t row, scale_row; /* of 224 columns */
    } rows[] = {
        {STORED(MP_SCHEME_BF16, MP_BF16, MP_BF16, false, 1, 1), 448, 0},
        {STORED(MP_SCHEME_F32, MP_F32, MP_F32, false, 1, 1), 896, 0},
        {STORED(MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, true, 1, 32), 112, 7},
        {STORED(MP_SCHEME_MXFP4, MP_F4, MP_U8, true, 1, 32), 112, 7},
        {STORED(MP_SCHEME_MXFP8, MP_F8_E4M3, MP_U8, true, 1, 32), 224, 7},
        {STORED(MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, true, 128, 128), 224, 8},
        {STORED(MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_BF16, true, 32, 48), 224, 10},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cr_assert_eq(mp_storage_row_bytes(&rows[i].storage, 224), rows[i].row, "row %zu", i);
        cr_assert_eq(mp_storage_scale_row_bytes(&rows[i].storage, 224), rows[i].scale_row,
                     "row %zu", i);
    }
}

Test(storage, texts)
{
    char text[MP_STORAGE_TEXT];

    storage = (mp_storage)STORED(MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, true, 128, 128);
    cr_assert_str_eq(mp_storage_text(&storage, text), "fp8_block with F32 scales");
    storage = (mp_storage)STORED(MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, true, 1, 32);
    cr_assert_str_eq(mp_storage_text(&storage, text), "mxfp4 with F8_E8M0 scales");
    storage = (mp_storage)STORED(MP_SCHEME_BF16, MP_BF16, MP_BF16, false, 1, 1);
    cr_assert_str_eq(mp_storage_text(&storage, text), "bf16");
}

/* ------------------------------------------------------------------------
 * Checks against the rest of the layer
 */

static void check(uint64_t rows, uint64_t k)
{
    mp_problems_release(&problems);
    mp_storage_check(&storage, &matrix, 1, rows, k, &problems);
}

static void expect_problem(uint64_t rows, uint64_t k, const char *text)
{
    check(rows, k);
    cr_assert_eq(problems.count, 1, "%llu problems", (unsigned long long)problems.count);
    cr_assert_str_eq(problems.text[0], text);
}

Test(storage, a_matrix_that_fits)
{
    storage = (mp_storage)STORED(MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, true, 1, 32);
    set_weight(MP_I8, 24, 48);
    set_scale(MP_F8_E8M0, 24, 3);
    check(24, 96);
    cr_assert_eq(problems.count, 0);

    storage = (mp_storage)STORED(MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, true, 128, 128);
    set_weight(MP_F8_E4M3, 129, 255);
    set_scale(MP_F32, 2, 2);
    check(129, 255);
    cr_assert_eq(problems.count, 0);

    matrix = (mp_matrix){0}; /* what is missing, others report */
    check(129, 255);
    cr_assert_eq(problems.count, 0);
}

Test(storage, a_weight_that_does_not_fit)
{
    storage = (mp_storage)STORED(MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, true, 1, 32);
    set_weight(MP_I8, 24, 47);
    expect_problem(24, 96, "w1.weight: shape [24, 47], expected [24, 48] for 24 rows and K = 96");
    set_weight(MP_I8, 48, 24);
    expect_problem(24, 96, "w1.weight: shape [48, 24], expected [24, 48] for 24 rows and K = 96");
    set_weight(MP_U8, 24, 48);
    expect_problem(24, 96, "w1.weight: U8, expected I8 as in the rest of the layer");
    set_weight(MP_I8, 24, 48);
    weight.rank = 1;
    expect_problem(24, 96, "w1.weight: shape [24], expected [24, 48] for 24 rows and K = 96");

    storage.weight_dtype = MP_F4; /* whose shape is logical */
    set_weight(MP_F4, 24, 48);
    expect_problem(24, 96, "w1.weight: shape [24, 48], expected [24, 96] for 24 rows and K = 96");
}

Test(storage, a_scale_that_does_not_fit)
{
    storage = (mp_storage)STORED(MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, true, 1, 32);
    set_weight(MP_I8, 2048, 2048);
    set_scale(MP_F8_E8M0, 2048, 127);
    expect_problem(
        2048, 4096,
        "w1.scale: shape [2048, 127], expected [2048, 128] for K = 4096 in blocks of 32");
    set_scale(MP_U8, 2048, 128);
    expect_problem(2048, 4096, "w1.scale: U8, expected F8_E8M0 as in the rest of the layer");

    storage = (mp_storage)STORED(MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, true, 128, 64);
    set_weight(MP_F8_E4M3, 160, 200);
    set_scale(MP_F32, 2, 2);
    expect_problem(160, 200,
                   "w1.scale: shape [2, 2], expected [2, 4] for [160, 200] in blocks of 128x64");

    storage = (mp_storage)STORED(MP_SCHEME_BF16, MP_BF16, MP_BF16, false, 1, 1);
    set_weight(MP_BF16, 160, 200);
    expect_problem(160, 200, "w1.scale: a scale, but the layer's experts are bf16");
}

Test(storage, both_do_not_fit)
{
    storage = (mp_storage)STORED(MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, true, 1, 32);
    set_weight(MP_I8, 24, 47);
    set_scale(MP_F8_E8M0, 23, 3);
    check(24, 96);
    cr_assert_eq(problems.count, 2);
    cr_assert_str_eq(problems.text[1],
                     "w1.scale: shape [23, 3], expected [24, 3] for K = 96 in blocks of 32");
}
