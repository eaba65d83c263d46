/* SPDX-License-Identifier: Apache-2.0 */
/* Stored matrices as rows of a scheme.
 *
 * What is read goes to scratch the size of the largest rectangle. When the whole matrix has to be
 * looked at, it is read in strips of whole rows that fit the same scratch, so memory does not grow
 * with the matrix. Each rectangle reads the scales that cover it again: they are small, and a block
 * may begin above the rectangle's first row.
 *
 * The rule for nvfp4's second scale is here and nowhere else (mp_stored_second_scale): what repack
 * writes, quantize writes and verify expects has to be the same number, bit for bit.
 *
 * The catalog has checked that tensors have the types and shapes of their storage. A matrix and its
 * scratch belong to one thread; any number of threads can read one catalog. */
#include "experts/stored.h"

#include <math.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "checkpoint/matrix.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"

/* Bytes of a bias that are read at once where every other number is wanted. */
#define PIECE_BYTES 4096

/* ------------------------------------------------------------------------
 * Scratch
 */

/* Whole rows that take no more room than a rectangle; at least one. */
static uint64_t strip_rows(const mp_stored_matrix *m)
{
    uint64_t rectangle = m->tile_rows * mp_storage_row_bytes(m->storage, m->tile_cols);
    uint64_t rows = rectangle / mp_max_u64(mp_storage_row_bytes(m->storage, m->cols), 1);

    return rows == 0 ? 1 : rows < m->rows ? rows : m->rows;
}

/* Scale rows that cover so many rows, wherever these begin: one more than if they began with a
 * block. */
static uint64_t scale_bytes(const mp_storage *storage, uint64_t rows, uint64_t cols)
{
    return (mp_ceil_div(rows, storage->block_rows) + 1) * mp_storage_scale_row_bytes(storage, cols);
}

static uint64_t lay_out(mp_stored_matrix *m, void *base)
{
    const mp_storage *s = m->storage;
    uint64_t strip = strip_rows(m), used = 0;

    m->codes = mp_scratch_take(base, &used,
                               mp_max_u64(m->tile_rows * mp_storage_row_bytes(s, m->tile_cols),
                                          strip * mp_storage_row_bytes(s, m->cols)));
    m->scale = mp_scratch_take(
        base, &used,
        mp_max_u64(scale_bytes(s, m->tile_rows, m->tile_cols), scale_bytes(s, strip, m->cols)));
    m->work = mp_scratch_take(base, &used, mp_requantize_scratch(m->cols));
    return used;
}

uint64_t mp_stored_scratch(const mp_stored_matrix *m)
{
    mp_stored_matrix measured = *m;

    return lay_out(&measured, NULL);
}

void mp_stored_init(mp_stored_matrix *m, void *scratch)
{
    lay_out(m, scratch);
    m->global = 1;
}

/* ------------------------------------------------------------------------
 * Reading
 */

int mp_stored_begin(mp_stored_matrix *m, mp_error *err)
{
    return mp_matrix_global(m->catalog, m->matrix, &m->global, err);
}

/* A matrix that is columns of a larger one has its words. */
int mp_stored_check(const mp_stored_matrix *m, mp_error *err)
{
    const mp_matrix *matrix = m->matrix;

    if (mp_matrix_check_offset(m->catalog, matrix, err) != 0)
        return err->code;
    return mp_matrix_check_shape(m->catalog, matrix, matrix->weight->shape[0],
                                 matrix->stored_cols ? matrix->stored_cols : m->cols, err);
}

int mp_stored_read(const mp_stored_matrix *m, mp_rectangle at, void *codes, void *scale,
                   mp_error *err)
{
    mp_matrix view = *m->matrix;

    /* Columns are read as a matrix of their own, with a stride between rows. */
    if (at.cols != m->cols)
        view = mp_matrix_columns(m->matrix, m->cols, at.col0);
    return mp_matrix_read_rows(m->catalog, m->storage, &view, at.cols, at.row0, at.rows, codes,
                               scale, err);
}

int mp_stored_rows(const mp_stored_matrix *m, mp_rectangle at, mp_rows *out, mp_error *err)
{
    const mp_storage *s = m->storage;

    *out = (mp_rows){
        .scheme = s->scheme,
        .scale_dtype = s->scale_dtype,
        .block_rows = s->block_rows,
        .block_cols = s->block_cols,
        .row0 = at.row0,
        .rows = at.rows,
        .cols = at.cols,
        .weight = m->codes,
        .scale = s->has_scale ? m->scale : NULL,
        .global_scale = m->global,
        .global_divides = s->global_divides,
    };
    return mp_stored_read(m, at, m->codes, m->scale, err);
}

int mp_stored_convert(const mp_stored_matrix *m, mp_rectangle at, mp_scheme to,
                      const mp_quant_options *options, void *codes, void *scales,
                      mp_quant_stats *stats, mp_error *err)
{
    mp_rows in;

    if (mp_stored_rows(m, at, &in, err) != 0)
        return err->code;
    if (mp_requantize(&in, to, options, codes, scales, m->work, stats, err) != 0)
        return mp_error_prefix(err, "%s", m->matrix->weight->name);
    return 0;
}

int mp_stored_bias(const mp_stored_matrix *m, uint64_t row0, uint64_t rows, void *out,
                   mp_error *err)
{
    const mp_matrix *matrix = m->matrix;
    const mp_tensor *bias = matrix->bias;
    uint64_t width = mp_dtype_bits(bias->dtype) / 8, step = matrix->paired ? 2 : 1;
    uint64_t slices = matrix->weight->rank > 2 ? matrix->weight->shape[0] : 1;
    uint64_t first = matrix->slice * (bias->bytes / width / slices) + matrix->first;
    uint64_t most = PIECE_BYTES / (step * width);
    uint8_t piece[PIECE_BYTES], *to = out;

    for (uint64_t done = 0; done < rows; done += most) {
        uint64_t count = rows - done < most ? rows - done : most;

        if (mp_tensor_read(&m->catalog->checkpoint, bias, (first + (row0 + done) * step) * width,
                           ((count - 1) * step + 1) * width, piece, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < count; i++)
            memcpy(to + (done + i) * width, piece + i * step * width, width);
    }
    return 0;
}

int mp_stored_each(const mp_stored_matrix *m, mp_stored_look *look, void *user, mp_error *err)
{
    uint64_t step = strip_rows(m);

    for (uint64_t row0 = 0; row0 < m->rows; row0 += step) {
        uint64_t rows = m->rows - row0 < step ? m->rows - row0 : step;
        mp_rows in;

        if (mp_stored_rows(m, (mp_rectangle){row0, rows, 0, m->cols}, &in, err) != 0)
            return err->code;
        if (look(m, &in, user, err) != 0)
            return mp_error_prefix(err, "%s", m->matrix->weight->name);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Second scales
 */

float mp_second_scale_multiplier(mp_second_scale scale)
{
    return scale.divides ? 1 / scale.value : scale.value;
}

/* The largest exponent byte that is not NaN; what is, is refused where it is requantized. */
static int find_exponent(const mp_stored_matrix *m, uint8_t *largest, mp_error *err)
{
    uint64_t step = strip_rows(m);

    for (uint64_t row0 = 0; row0 < m->rows; row0 += step) {
        uint64_t rows = m->rows - row0 < step ? m->rows - row0 : step;
        uint64_t count = rows * mp_storage_scale_row_bytes(m->storage, m->cols);

        if (mp_stored_read(m, (mp_rectangle){row0, rows, 0, m->cols}, NULL, m->scale, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < count; i++)
            if (m->scale[i] > *largest && m->scale[i] != UINT8_MAX)
                *largest = m->scale[i];
    }
    return 0;
}

typedef struct magnitude {
    bool allow_nonfinite;
    float amax;
} magnitude;

static int find_amax(const mp_stored_matrix *m, const mp_rows *rows, void *user, mp_error *err)
{
    magnitude *found = user;
    float amax;

    if (mp_rows_amax(rows, found->allow_nonfinite, m->work, &amax, err) != 0)
        return err->code;
    found->amax = fmaxf(found->amax, amax);
    return 0;
}

int mp_stored_second_scale(const mp_stored_matrix *m, unsigned count, bool allow_nonfinite,
                           mp_second_scale *out, mp_error *err)
{
    mp_scheme scheme = m->storage->scheme;
    magnitude found = {.allow_nonfinite = allow_nonfinite};
    uint8_t largest = 0;
    int rc = 0;

    *out = (mp_second_scale){0};
    for (unsigned i = 0; i < count && rc == 0; i++) {
        mp_second_scale own = {m[i].global, m[i].storage->global_divides};

        if (scheme == MP_SCHEME_MXFP4)
            rc = find_exponent(&m[i], &largest, err);
        else if (scheme != MP_SCHEME_NVFP4)
            rc = mp_stored_each(&m[i], find_amax, &found, err);
        /* The larger multiplier: block scales of the other part then shrink, and none saturates. */
        else if (i == 0 || mp_second_scale_multiplier(own) > mp_second_scale_multiplier(*out))
            *out = own;
    }
    if (scheme != MP_SCHEME_NVFP4)
        out->value = scheme == MP_SCHEME_MXFP4 ? mp_nvfp4_global_exact(largest)
                                               : mp_nvfp4_global(found.amax);
    return rc;
}

bool mp_stored_as(const mp_storage *storage, mp_scheme scheme)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);

    return storage->scheme == scheme &&
           (!form->has_scale ||
            (storage->block_rows == form->block_rows && storage->block_cols == form->block_cols));
}
