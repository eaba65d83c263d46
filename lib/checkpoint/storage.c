/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a weight matrix is stored: recognized by types and shapes, then checked.
 *
 * The candidates are the rows of the table of conventions, in its order. The first with the types
 * of a matrix and the shape of its scale is taken; where no shape fits, the first with its types
 * that is not told by shape, so that the message says what a scale should be like. Types are taken
 * wider than tools write them, and suffixes decide only where types and shapes cannot. Nothing here
 * reads a tensor's data.
 *
 * Recognizing looks at one matrix and settles what the layer is; checking holds every other matrix
 * of the layer against that. The two share scale_fits(), so what was recognized by its scale's
 * shape passes its own check. Blocks out of config.json are positive and below 2^32 (config.c), so
 * nothing divides by 0. A tensor's bytes agree with its shape and type (safetensors.c), which is
 * what elements() counts from. Nothing is kept between calls; any thread may call. */
#include "checkpoint/storage.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/conventions.h"
#include "checkpoint/matrix.h"

#include <stdio.h>
#include <string.h>

#define WHOLE      UINT32_MAX
#define SCALE_RANK 8 /* more dimensions than any exporter gives a scale */

static bool is_float(mp_dtype dtype)
{
    return dtype == MP_F32 || dtype == MP_BF16 || dtype == MP_F16;
}

static bool is_exponent(mp_dtype dtype)
{
    return dtype == MP_F8_E8M0 || dtype == MP_U8;
}

/* config.json's block, or the convention's where it says nothing. */
static uint32_t block_of(uint64_t config_value, uint32_t usual)
{
    return config_value == MP_CONFIG_ABSENT ? usual : (uint32_t)config_value;
}

static bool is_fused(mp_fusion fusion)
{
    return fusion != MP_FUSION_NONE;
}

/* Rows and stored columns of the matrix, or of all that a fused tensor holds a slice. */
static bool stored_shape(const mp_tensor *weight, mp_fusion fusion, uint64_t *rows, uint64_t *cols)
{
    const uint64_t *shape = weight->shape;

    if (!is_fused(fusion)) {
        *rows = weight->rank == 2 ? shape[0] : 0;
        *cols = weight->rank == 2 ? shape[1] : 0;
        return weight->rank == 2;
    }
    *rows = shape[mp_fusion_is_transposed(fusion) ? 2 : 1];
    *cols = shape[mp_fusion_is_transposed(fusion) ? 1 : 2];
    /* [E, N, K/32, 16]: rows of blocks of packed bytes */
    return weight->rank == 3 || (weight->rank == 4 && mp_mul_u64(*cols, shape[3], cols));
}

/* Bytes of INT4: of two columns they have the scales of FP8, by their name; of two rows or one
 * code, one scale for each row or group, or both. */
static bool bytes_of_int4(const mp_convention *c, const mp_matrix *matrix, const mp_config *config)
{
    const mp_tensor *scale = matrix->scale, *group = matrix->group_scale;

    if (matrix->weight->dtype != MP_I8 || matrix->global || matrix->shape || !scale ||
        !is_float(scale->dtype) || (group && !is_float(group->dtype)))
        return false;
    if (c->int4 == MP_INT4_COLUMNS || mp_suffix_ends(scale->name, MP_SUFFIX_WEIGHT_SCALE_INV))
        return c->int4 == MP_INT4_COLUMNS && !group &&
               mp_suffix_ends(scale->name, MP_SUFFIX_WEIGHT_SCALE_INV);
    if (c->int4 == MP_INT4_ROWS)
        return (group != NULL) == (c->block_cols != WHOLE);
    return group || (mp_suffix_ends(scale->name, MP_SUFFIX_WEIGHT_SCALE) &&
                     (config->weight_bits == 4 || config->weight_bits == MP_CONFIG_ABSENT));
}

/* Whether scales of a type are those of a convention: of any float, where it has floats, and so on.
 * Blocks of FP8 have either, which makes them powers of two. */
static bool scale_type_fits(const mp_convention *c, mp_dtype dtype)
{
    const mp_convention_part *scale = mp_convention_part_of(c, MP_ROLE_SCALE);

    return dtype == scale->dtype || (is_float(dtype) && is_float(scale->dtype)) ||
           (is_exponent(dtype) && (is_exponent(scale->dtype) || is_exponent(c->power_dtype)));
}

static bool types_fit(const mp_convention *c, const mp_matrix *matrix, const mp_config *config)
{
    const mp_tensor *scale = matrix->scale;
    bool int4 = c->scheme == MP_SCHEME_INT4_GROUP;
    bool has_scale = mp_convention_part_of(c, MP_ROLE_SCALE) != NULL;
    bool has_global = mp_convention_part_of(c, MP_ROLE_GLOBAL_SCALE) != NULL;

    if (c->parts[0].covers == MP_EXTENT_NONE)
        return false;
    if (int4 && c->parts[0].dtype == MP_I8)
        return bytes_of_int4(c, matrix, config);
    if (matrix->group_scale)
        return false;

    /* Words of INT4 come with the shape that they were packed from, or config.json has to say how
     * many bits a number has. */
    if (matrix->weight->dtype != c->parts[0].dtype || (matrix->global != NULL) != has_global ||
        (matrix->shape && !int4) || (int4 && !matrix->shape && config->weight_bits != 4))
        return false;
    if (!has_scale || !scale)
        return !has_scale && !scale;
    return scale_type_fits(c, scale->dtype);
}

/* Whether a convention is taken only where the scale has its shape: others have its types, and one
 * of those is meant where no shape fits, as the message says then. */
static bool is_by_shape(const mp_convention *c)
{
    mp_dtype weight = c->parts[0].dtype;

    return (weight == MP_F8_E4M3 && c->scheme != MP_SCHEME_FP8_BLOCK) ||
           (weight == MP_I8 && c->scheme == MP_SCHEME_INT4_GROUP);
}

static mp_storage storage_of(const mp_convention *c, const mp_matrix *matrix, mp_fusion fusion,
                             const mp_config *config, uint64_t cols)
{
    const mp_tensor *scale = matrix->group_scale ? matrix->group_scale : matrix->scale;
    mp_storage s = {
        .scheme = c->scheme,
        .fusion = fusion,
        .weight_dtype = c->parts[0].dtype,
        .scale_dtype = matrix->group_scale ? MP_F32
                       : scale             ? scale->dtype
                                           : c->parts[0].dtype,
        .has_scale = scale != NULL,
        .has_global = matrix->global != NULL,
        .global_divides = matrix->global_divides,
        .int4 = c->int4,
        .two_scales = matrix->group_scale != NULL,
        .block_rows = c->block_rows,
        .block_cols = c->block_cols,
    };

    if (c->scheme == MP_SCHEME_FP8_BLOCK) {
        s.block_rows = block_of(config->block_rows, c->block_rows);
        s.block_cols = block_of(config->block_cols, c->block_cols);
    } else if (c->scheme == MP_SCHEME_INT4_GROUP && c->int4 != MP_INT4_COLUMNS &&
               c->block_cols != WHOLE) {
        /* The columns that a scale column stands for; where these are no whole number, those of
         * compressed-tensors, which may leave the last group ragged. */
        uint64_t groups = scale->rank > 0 ? scale->shape[scale->rank - 1] : 0;

        s.block_cols = groups && cols % groups == 0 && cols / groups < WHOLE
                           ? (uint32_t)(cols / groups)
                           : mp_convention_find(MP_AS_COMPRESSED_TENSORS, c->scheme)->block_cols;
    }
    return s;
}

static uint64_t elements(const mp_tensor *tensor)
{
    return tensor->bytes * 8 / mp_dtype_bits(tensor->dtype);
}

/* Dimensions other than 1, in order; returns how many. Exporters put dimensions of 1 in and leave
 * them out, which moves no number. */
static unsigned squeeze(const uint64_t *shape, unsigned rank, uint64_t *out)
{
    unsigned n = 0;

    for (unsigned d = 0; d < rank; d++)
        if (shape[d] != 1)
            out[n++] = shape[d];
    return n;
}

/* Whether the scale is [rows / block, cols / block], of each slice, but for dimensions of 1. */
static bool scale_fits(const mp_storage *s, const mp_tensor *scale, uint64_t slices, uint64_t rows,
                       uint64_t cols)
{
    uint64_t scale_rows = mp_ceil_div(rows, s->block_rows);
    uint64_t scale_cols = mp_ceil_div(cols, s->block_cols);
    bool transposed = mp_fusion_is_transposed(s->fusion);
    const uint64_t want[3] = {slices, transposed ? scale_cols : scale_rows,
                              transposed ? scale_rows : scale_cols};
    uint64_t expected[3], have[SCALE_RANK];
    unsigned n;

    if (transposed && s->block_rows != 1 && s->block_rows != WHOLE)
        return false; /* nobody has blocks of transposed weights */
    if (s->block_rows == WHOLE && elements(scale) == 1)
        return true;                                          /* one for all slices */
    if (transposed && s->block_rows == 1 && scale->rank != 2) /* [E, rows] says what it is */
        return scale->rank == 3 && memcmp(scale->shape, want, sizeof want) == 0;
    if (scale->rank > SCALE_RANK)
        return false;
    n = squeeze(want, 3, expected);
    return squeeze(scale->shape, scale->rank, have) == n &&
           memcmp(have, expected, n * sizeof *have) == 0;
}

/* A single number, of a fused tensor one a slice, is a scale of all of it, unless config.json has
 * blocks: then it is of the only one. */
static bool is_one_scale(const mp_tensor *scale, mp_fusion fusion, uint64_t slices,
                         const mp_config *config)
{
    if (config->block_rows != MP_CONFIG_ABSENT)
        return false;
    return is_fused(fusion) ? elements(scale) == slices || elements(scale) == 1
                            : scale->rank < 2 && elements(scale) == 1;
}

/* Whether the scales of a matrix, or of as many as there are slices, are of that storage. */
static bool scales_fit(const mp_storage *s, const mp_matrix *matrix, uint64_t slices, uint64_t rows,
                       uint64_t cols)
{
    mp_storage of_rows = *s;

    if (!s->two_scales)
        return scale_fits(s, matrix->scale, slices, rows, cols);
    of_rows.block_cols = WHOLE;
    return scale_fits(&of_rows, matrix->scale, slices, rows, cols) &&
           scale_fits(s, matrix->group_scale, slices, rows, cols);
}

bool mp_storage_recognize(const mp_matrix *matrix, mp_fusion fusion, const mp_config *config,
                          mp_storage *storage, uint64_t *rows, uint64_t *cols)
{
    uint64_t stored_rows, stored_cols, slices = is_fused(fusion) ? matrix->weight->shape[0] : 1;
    size_t count;
    const mp_convention *rows_of = mp_conventions(&count);
    bool found = false;

    if (!stored_shape(matrix->weight, fusion, &stored_rows, &stored_cols))
        return false;
    for (const mp_convention *c = rows_of; c < rows_of + count; c++) {
        mp_element element;
        mp_storage candidate;
        uint64_t height, width;
        bool fits;

        if (!types_fit(c, matrix, config))
            continue;
        element = mp_convention_element(c, &c->parts[0]);
        if (!mp_mul_u64(stored_cols, element.cols, &width) ||
            !mp_mul_u64(stored_rows, element.rows, &height) ||
            (c->scheme == MP_SCHEME_FP8_BLOCK && matrix->scale &&
             is_one_scale(matrix->scale, fusion, slices, config)))
            continue;
        candidate = storage_of(c, matrix, fusion, config, width);
        fits = !candidate.has_scale || scales_fit(&candidate, matrix, slices, height, width);
        if (fits || (!found && !is_by_shape(c))) {
            *storage = candidate;
            *rows = height;
            *cols = width;
            found = true;
        }
        if (fits)
            return true;
    }
    return found;
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
    if (storage->scheme == MP_SCHEME_INT4_GROUP)
        return mp_ceil_div(cols, 8) * 4;
    return cols * mp_scheme_bits(storage->scheme) / 8;
}

uint64_t mp_storage_scale_row_bytes(const mp_storage *storage, uint64_t cols)
{
    if (!storage->has_scale)
        return 0;
    return mp_ceil_div(cols, storage->block_cols) * mp_dtype_bits(storage->scale_dtype) / 8;
}

bool mp_offsets_are_zero(mp_dtype dtype, const void *offsets, uint64_t bytes)
{
    const uint8_t *byte = offsets;
    unsigned width = mp_dtype_bits(dtype) / 8;

    for (uint64_t i = 0; i < bytes; i++) {
        uint8_t sign = is_float(dtype) && i % width == width - 1 ? 0x80 : 0; /* in the last byte */

        if (byte[i] & ~sign)
            return false;
    }
    return true;
}

/* ------------------------------------------------------------------------
 * Checks
 */

static void check_dtype(const mp_tensor *tensor, mp_dtype dtype, mp_problems *problems)
{
    mp_problem(problems, "%s: %s, expected %s as in the rest of the layer", tensor->name,
               mp_dtype_name(tensor->dtype), mp_dtype_name(dtype));
}

static void check_weight(const mp_storage *storage, const mp_tensor *weight, uint64_t rows,
                         uint64_t cols, mp_problems *problems)
{
    unsigned packing = mp_dtype_bits(storage->weight_dtype) / mp_scheme_bits(storage->scheme);
    bool codes = storage->int4 == MP_INT4_ROWS || storage->int4 == MP_INT4_BYTES;
    uint64_t want_rows = storage->int4 == MP_INT4_ROWS ? mp_ceil_div(rows, 2) : rows;
    uint64_t have_rows, have_cols, want_cols = codes ? cols : mp_ceil_div(cols, packing);
    char text[MP_SHAPE_TEXT];

    if (weight->dtype != storage->weight_dtype)
        check_dtype(weight, storage->weight_dtype, problems);
    else if (!stored_shape(weight, storage->fusion, &have_rows, &have_cols) ||
             have_rows != want_rows || have_cols != want_cols)
        mp_problem(problems, "%s: shape %s, expected [%llu, %llu] for %llu rows and K = %llu",
                   weight->name, mp_shape_text(weight->shape, weight->rank, text),
                   (unsigned long long)want_rows, (unsigned long long)want_cols,
                   (unsigned long long)rows, (unsigned long long)cols);
}

static void check_scale(const mp_storage *storage, const mp_tensor *scale, uint64_t slices,
                        uint64_t rows, uint64_t cols, mp_problems *problems)
{
    char text[MP_SHAPE_TEXT], why[96], experts[24] = "";

    if (!storage->has_scale) {
        mp_problem(problems, "%s: a scale, but the layer's experts are %s", scale->name,
                   mp_scheme_name(storage->scheme));
        return;
    }
    if (scale->dtype != storage->scale_dtype) {
        check_dtype(scale, storage->scale_dtype, problems);
        return;
    }
    if (scale_fits(storage, scale, slices, rows, cols))
        return;
    if (storage->block_cols == WHOLE)
        snprintf(why, sizeof why, "for a scale %s",
                 storage->block_rows == WHOLE ? "a matrix" : "a row");
    else if (storage->block_rows == 1)
        snprintf(why, sizeof why, "for K = %llu in blocks of %u", (unsigned long long)cols,
                 storage->block_cols);
    else
        snprintf(why, sizeof why, "for [%llu, %llu] in blocks of %ux%u", (unsigned long long)rows,
                 (unsigned long long)cols, storage->block_rows, storage->block_cols);
    if (is_fused(storage->fusion))
        snprintf(experts, sizeof experts, "%llu, ", (unsigned long long)slices);
    mp_problem(problems, "%s: shape %s, expected [%s%llu, %llu] %s", scale->name,
               mp_shape_text(scale->shape, scale->rank, text), experts,
               (unsigned long long)mp_ceil_div(rows, storage->block_rows),
               (unsigned long long)mp_ceil_div(cols, storage->block_cols), why);
}

/* A scale of each row, and one of each group of it. */
static void check_two_scales(const mp_storage *storage, const mp_matrix *matrix, uint64_t slices,
                             uint64_t rows, uint64_t cols, mp_problems *problems)
{
    mp_storage each = *storage;

    if (matrix->group_scale) {
        each.scale_dtype = matrix->group_scale->dtype;
        check_scale(&each, matrix->group_scale, slices, rows, cols, problems);
    }
    if (matrix->scale) {
        each.scale_dtype = matrix->scale->dtype;
        each.block_cols = WHOLE;
        check_scale(&each, matrix->scale, slices, rows, cols, problems);
    }
}

/* One number a matrix; of fused ones one for all, one for each, or one for gate and one for up of
 * each. */
static void check_scalar(const mp_tensor *tensor, mp_fusion fusion, uint64_t slices,
                         mp_problems *problems)
{
    char text[MP_SHAPE_TEXT];
    uint64_t count;

    if (!tensor)
        return;
    count = elements(tensor);
    if (count != 1 && count != slices && !(is_fused(fusion) && count == 2 * slices))
        mp_problem(problems, "%s: shape %s, expected %llu numbers, one per matrix", tensor->name,
                   mp_shape_text(tensor->shape, tensor->rank, text), (unsigned long long)slices);
}

static void check_elements(const mp_tensor *tensor, uint64_t count, const char *what,
                           mp_problems *problems)
{
    char text[MP_SHAPE_TEXT];

    if (tensor && elements(tensor) != count)
        mp_problem(problems, "%s: shape %s, expected %llu numbers, %s", tensor->name,
                   mp_shape_text(tensor->shape, tensor->rank, text), (unsigned long long)count,
                   what);
}

void mp_storage_check(const mp_storage *storage, const mp_matrix *matrix, uint64_t slices,
                      uint64_t rows, uint64_t cols, mp_problems *problems)
{
    if (matrix->weight)
        check_weight(storage, matrix->weight, rows, cols, problems);
    if (storage->two_scales)
        check_two_scales(storage, matrix, slices, rows, cols, problems);
    else if (matrix->scale)
        check_scale(storage, matrix->scale, slices, rows, cols, problems);
    if (matrix->group_scale && !storage->two_scales)
        mp_problem(problems, "%s: a scale of groups, but the layer's experts are %s",
                   matrix->group_scale->name, mp_scheme_name(storage->scheme));
    if (matrix->global && !storage->has_global)
        mp_problem(problems, "%s: a second scale, but the layer's experts are %s",
                   matrix->global->name, mp_scheme_name(storage->scheme));
    else if (matrix->global && matrix->global_divides != storage->global_divides)
        mp_problem(problems, "%s: a second scale that %s, but the layer's others %s",
                   matrix->global->name, matrix->global_divides ? "divides" : "multiplies",
                   storage->global_divides ? "divide" : "multiply");
    if (matrix->global && matrix->global->dtype != MP_F32)
        check_dtype(matrix->global, MP_F32, problems);
    check_scalar(matrix->global, storage->fusion, slices, problems);
    check_scalar(matrix->input_scale, storage->fusion, slices, problems);
    check_elements(matrix->shape, 2, "rows and columns", problems);
    check_elements(matrix->offset, slices * rows, "one a row", problems);
    check_elements(matrix->bias, slices * rows, "one a row", problems);
    if (storage->two_scales)
        check_elements(matrix->group_offset, slices * rows * mp_ceil_div(cols, storage->block_cols),
                       "one a group", problems);
}
