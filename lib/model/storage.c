/* SPDX-License-Identifier: Apache-2.0 */
/* Storage forms of a weight matrix: recognized by types and shapes, then checked. */
#include "model/storage.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>

/* One form: which types of weight and scale make it, and what a scale covers. */
typedef struct form {
    mp_scheme scheme;
    mp_dtype weight;
    mp_dtype scale;       /* MP_DTYPE_COUNT: the form has none */
    uint32_t block_cols;  /* 0: as config.json's weight_block_size says */
    unsigned packing;     /* logical elements a stored one holds */
} form;

#define NO_SCALE      MP_DTYPE_COUNT
#define DEFAULT_BLOCK 128

/* Tried in this order; F8_E4M3 with exponent scales is mxfp8 only if the scale's shape
 * has a row for each row of the weight. */
static const form forms[] = {
    {MP_SCHEME_BF16, MP_BF16, NO_SCALE, 1, 1},
    {MP_SCHEME_F16, MP_F16, NO_SCALE, 1, 1},
    {MP_SCHEME_F32, MP_F32, NO_SCALE, 1, 1},
    {MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, 32, 2},
    {MP_SCHEME_MXFP4, MP_I8, MP_U8, 32, 2},
    {MP_SCHEME_MXFP4, MP_U8, MP_F8_E8M0, 32, 2},
    {MP_SCHEME_MXFP4, MP_U8, MP_U8, 32, 2},
    {MP_SCHEME_MXFP4, MP_F4, MP_F8_E8M0, 32, 1},
    {MP_SCHEME_MXFP4, MP_F4, MP_U8, 32, 1},
    {MP_SCHEME_MXFP8, MP_F8_E4M3, MP_F8_E8M0, 32, 1},
    {MP_SCHEME_MXFP8, MP_F8_E4M3, MP_U8, 32, 1},
    {MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, 0, 1},
    {MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_BF16, 0, 1},
    {MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F8_E8M0, 0, 1},
    {MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_U8, 0, 1},
};

/* config.json's block, or 128x128 where it says nothing. */
static uint32_t block_of(uint64_t config_value)
{
    return config_value == MP_CONFIG_ABSENT ? DEFAULT_BLOCK : (uint32_t)config_value;
}

static bool form_fits(const form *f, const mp_matrix *matrix)
{
    const mp_tensor *weight = matrix->weight, *scale = matrix->scale;

    if (weight->dtype != f->weight || weight->rank != 2)
        return false;
    if (f->scale == NO_SCALE || !scale)
        return f->scale == NO_SCALE && !scale;
    if (scale->dtype != f->scale)
        return false;
    if (f->scheme != MP_SCHEME_MXFP8)
        return true;
    return scale->rank == 2 && scale->shape[0] == weight->shape[0] &&
           scale->shape[1] == mp_ceil_div(weight->shape[1], f->block_cols);
}

bool mp_storage_recognize(const mp_matrix *matrix, const mp_config *config, mp_storage *storage,
                          uint64_t *cols)
{
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        const form *f = &forms[i];

        if (!form_fits(f, matrix))
            continue;
        *storage = (mp_storage){
            .scheme = f->scheme,
            .weight_dtype = f->weight,
            .scale_dtype = f->scale == NO_SCALE ? f->weight : f->scale,
            .has_scale = f->scale != NO_SCALE,
            .block_rows = f->block_cols ? 1 : block_of(config->block_rows),
            .block_cols = f->block_cols ? f->block_cols : block_of(config->block_cols),
        };
        return mp_mul_u64(matrix->weight->shape[1], f->packing, cols);
    }
    return false;
}

char *mp_storage_text(const mp_storage *storage, char text[MP_STORAGE_TEXT])
{
    if (storage->has_scale)
        snprintf(text, MP_STORAGE_TEXT, "%s with %s scales", mp_scheme_name(storage->scheme),
                 mp_dtype_name(storage->scale_dtype));
    else
        snprintf(text, MP_STORAGE_TEXT, "%s", mp_scheme_name(storage->scheme));
    return text;
}

uint64_t mp_storage_row_bytes(const mp_storage *storage, uint64_t cols)
{
    return cols * mp_scheme_bits(storage->scheme) / 8;
}

uint64_t mp_storage_scale_row_bytes(const mp_storage *storage, uint64_t cols)
{
    if (!storage->has_scale)
        return 0;
    return mp_ceil_div(cols, storage->block_cols) * mp_dtype_bits(storage->scale_dtype) / 8;
}

static bool shape_is(const mp_tensor *tensor, uint64_t rows, uint64_t cols)
{
    return tensor->rank == 2 && tensor->shape[0] == rows && tensor->shape[1] == cols;
}

static void check_tensor(const mp_tensor *tensor, mp_dtype dtype, uint64_t rows, uint64_t cols,
                         const char *why, mp_problems *problems)
{
    char text[MP_SHAPE_TEXT];

    if (tensor->dtype != dtype)
        mp_problem(problems, "%s: %s, expected %s as in the rest of the layer", tensor->name,
                   mp_dtype_name(tensor->dtype), mp_dtype_name(dtype));
    else if (!shape_is(tensor, rows, cols))
        mp_problem(problems, "%s: shape %s, expected [%llu, %llu] %s", tensor->name,
                   mp_shape_text(tensor->shape, tensor->rank, text), (unsigned long long)rows,
                   (unsigned long long)cols, why);
}

void mp_storage_check(const mp_storage *storage, const mp_matrix *matrix, uint64_t rows,
                      uint64_t cols, mp_problems *problems)
{
    unsigned packed = mp_dtype_bits(storage->weight_dtype) / mp_scheme_bits(storage->scheme);
    char why[128];

    if (matrix->weight) {
        snprintf(why, sizeof why, "for %llu rows and K = %llu", (unsigned long long)rows,
                 (unsigned long long)cols);
        check_tensor(matrix->weight, storage->weight_dtype, rows, cols / packed, why, problems);
    }
    if (matrix->scale && !storage->has_scale) {
        mp_problem(problems, "%s: a scale, but the layer's experts are %s", matrix->scale->name,
                   mp_scheme_name(storage->scheme));
    } else if (matrix->scale) {
        if (storage->block_rows == 1)
            snprintf(why, sizeof why, "for K = %llu in blocks of %u", (unsigned long long)cols,
                     storage->block_cols);
        else
            snprintf(why, sizeof why, "for [%llu, %llu] in blocks of %ux%u",
                     (unsigned long long)rows, (unsigned long long)cols, storage->block_rows,
                     storage->block_cols);
        check_tensor(matrix->scale, storage->scale_dtype, mp_ceil_div(rows, storage->block_rows),
                     mp_ceil_div(cols, storage->block_cols), why, problems);
    }
}
