/* SPDX-License-Identifier: Apache-2.0 */
/* Decoded rows of two matrices side by side, a few at a time: memory is two tiles, whatever the
 * matrices' size. Either may be stored in any scheme, be a slice of a fused tensor, a part that a
 * rank has, or rows of gate and up that take turns; what is compared is what they decode to, as
 * float32.
 *
 * Likeness is asked for in two ways. `same` is bit by bit, and says that one is a copy of the
 * other. `relative` is the RMS of the difference over that of the second: as the second is the
 * source, it is the error that storing it otherwise made, and mp_scheme_bound says what a scheme
 * may have.
 *
 * Each call has its own readers and is one thread; many calls run at once. */
#include "verify/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/matrix.h"
#include "checkpoint/storage.h"
#include "experts/stored.h"
#include "numeric/kernels.h"
#include "numeric/rows.h"
#include "numeric/scales.h"

#define TILE_ROWS 32u

double mp_scheme_bound(mp_scheme scheme)
{
    switch (scheme) {
    case MP_SCHEME_BF16:
    case MP_SCHEME_F16:
    case MP_SCHEME_F32:
        return 0.005;
    case MP_SCHEME_NVFP4:
        return 0.15;
    case MP_SCHEME_MXFP4:
    case MP_SCHEME_INT4_GROUP:
        return 0.20;
    default: /* 8 bits */
        return 0.05;
    }
}

bool mp_weights_alike(const mp_weights *a, const mp_weights *b)
{
    const mp_storage *x = &a->storage, *y = &b->storage;

    return (a->raw && b->raw) || (x->scheme == y->scheme && x->block_rows == y->block_rows &&
                                  x->block_cols == y->block_cols && x->has_scale == y->has_scale);
}

int mp_weights_of(const mp_catalog *catalog, const mp_moe_layer *layer, uint32_t id,
                  mp_projection projection, mp_weights *out, mp_error *err)
{
    bool shared = id >= layer->num_experts;
    mp_storage ignored;

    *out = (mp_weights){
        .catalog = catalog,
        .storage = shared ? layer->shared_storage : layer->storage,
        .matrix = shared ? layer->shared.matrix[projection] : layer->experts[id].matrix[projection],
        .part = projection == MP_UP,
    };
    mp_catalog_shape(catalog, projection, &out->rows, &out->cols);
    /* Several shared experts are one matrix here, wider than the catalog's shape. */
    if (shared && !mp_storage_recognize(&out->matrix, MP_FUSION_NONE, &catalog->config, &ignored,
                                        &out->rows, &out->cols))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: no known storage form",
                       out->matrix.weight->name);
    if (shared && layer->shared_joined && projection != MP_DOWN) /* gate and up in one tensor */
        out->rows /= 2;
    return mp_matrix_check_offset(catalog, &out->matrix, err);
}

bool mp_weights_cut(mp_weights *w, uint64_t row0, uint64_t rows, uint64_t col0, uint64_t cols)
{
    const mp_storage *s = &w->storage;
    uint64_t end_row, end_col;

    if (!mp_add_u64(row0, rows, &end_row) || !mp_add_u64(col0, cols, &end_col) ||
        end_row > w->rows || end_col > w->cols)
        return false;
    /* Scales of a block that is cut through would belong to both parts. 8 columns are whole bytes
     * in every type. */
    if ((s->block_rows != UINT32_MAX && row0 % s->block_rows != 0) ||
        (s->block_cols != UINT32_MAX && col0 % s->block_cols != 0) || col0 % 8 != 0)
        return false;
    /* Rows of a paired matrix are every second one of the tensor. */
    w->matrix.first += w->matrix.paired ? 2 * row0 : row0;
    if (cols != w->cols)
        w->matrix = mp_matrix_columns(&w->matrix, w->cols, col0);
    w->rows = rows;
    w->cols = cols;
    return true;
}

/* ------------------------------------------------------------------------
 * Reading
 */

typedef struct reader {
    const mp_weights *w;
    mp_stored_matrix stored;
    void *scratch; /* of stored */
    float *out;    /* [TILE_ROWS, cols] */
} reader;

static mp_stored_matrix stored_of(const mp_weights *w)
{
    return (mp_stored_matrix){.catalog = w->catalog,
                              .storage = &w->storage,
                              .matrix = &w->matrix,
                              .rows = w->rows,
                              .cols = w->cols,
                              .tile_rows = TILE_ROWS,
                              .tile_cols = w->cols};
}

static void close_reader(reader *r)
{
    free(r->scratch);
    free(r->out);
}

static int open_reader(reader *r, const mp_weights *w, mp_error *err)
{
    *r = (reader){.w = w, .stored = stored_of(w)};
    r->scratch = aligned_alloc(64, mp_round_up(mp_stored_scratch(&r->stored), 64));
    r->out = mp_alloc(TILE_ROWS * sizeof(float), w->cols);
    if (!r->scratch || !r->out)
        return mp_fail_memory(err);
    mp_stored_init(&r->stored, r->scratch);
    /* Loaders put gate's second scale first, in whichever order the rows are. */
    mp_matrix matrix = w->matrix;
    matrix.first = w->part;
    return mp_matrix_global(w->catalog, &matrix, &r->stored.global, err);
}

/* Rows that follow one another in the tensor. */
static int read_run(const reader *r, uint64_t row0, uint64_t rows, float *out, mp_error *err)
{
    const mp_weights *w = r->w;
    const mp_rectangle at = {row0, rows, 0, w->cols};
    uint64_t row_bytes = mp_storage_row_bytes(&w->storage, w->cols);
    mp_rows in;

    /* Rows of bytes, shorter than the columns where these are packed: fill up with zeros. */
    if (w->raw) {
        if (mp_stored_read(&r->stored, at, r->stored.codes, NULL, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < rows; i++)
            for (uint64_t k = 0; k < w->cols; k++)
                out[i * w->cols + k] = k < row_bytes ? r->stored.codes[i * row_bytes + k] : 0;
        return 0;
    }
    if (mp_stored_rows(&r->stored, at, &in, err) != 0 || mp_rows_check(&in, err) != 0)
        return err->code;
    for (uint64_t i = 0; i < rows; i++)
        if (mp_decode_row(&in, i, out + i * w->cols, true, err) != 0)
            return err->code;
    return 0;
}

static int read_tile(const reader *r, uint64_t row0, uint64_t rows, mp_error *err)
{
    const mp_weights *w = r->w;

    if (!w->order)
        return read_run(r, row0, rows, r->out, err);
    /* Row by row, since rows of one part do not follow each other. */
    for (uint64_t row = row0; row < row0 + rows; row++)
        if (read_run(r, mp_interleave_place(w->order, w->part, row), 1,
                     r->out + (row - row0) * w->cols, err) != 0)
            return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * Comparing
 */

static bool all_zero(const float *values, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (values[i] != 0)
            return false;
    return true;
}

static void look_at_row(const float *have, const float *want, uint64_t row, uint64_t cols,
                        mp_likeness *out)
{
    if (memcmp(have, want, cols * sizeof *have) == 0)
        return;
    out->rows++;
    if (!out->same)
        return;
    out->same = false;
    out->row = row;
    /* One differs, so this ends. */
    while (mp_f32_bits(have[out->col]) == mp_f32_bits(want[out->col]))
        out->col++;
}

static int compare_tiles(const reader *have, const reader *want, uint64_t rows, mp_likeness *out,
                         double sums[2], mp_error *err)
{
    const mp_kernels *kernels = mp_kernels_best();
    uint64_t cols = want->w->cols;

    for (uint64_t row0 = 0; row0 < rows; row0 += TILE_ROWS) {
        uint64_t count = rows - row0 < TILE_ROWS ? rows - row0 : TILE_ROWS;

        if (read_tile(have, row0, count, err) != 0 || read_tile(want, row0, count, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < count; i++)
            look_at_row(have->out + i * cols, want->out + i * cols, row0 + i, cols, out);
        out->zero = out->zero && all_zero(have->out, count * cols);
        /* The bits of a NaN or an infinity are the greatest of all. */
        if (kernels->amax_bits(have->out, count * cols) >= 0x7f800000u)
            out->finite = false;
        for (uint64_t i = 0; i < count; i++)
            kernels->error_sums(have->out + i * cols, want->out + i * cols, cols, sums);
    }
    return 0;
}

int mp_weights_compare(const mp_weights *have, const mp_weights *want, uint64_t rows,
                       mp_likeness *out, mp_error *err)
{
    reader of_have = {0}, of_want = {0};
    double sums[2] = {0, 0};
    int rc = open_reader(&of_have, have, err);

    *out = (mp_likeness){.same = true, .zero = true, .finite = true};
    if (rc == 0)
        rc = open_reader(&of_want, want, err);
    if (rc == 0)
        rc = compare_tiles(&of_have, &of_want, rows < have->rows ? rows : have->rows, out, sums,
                           err);
    close_reader(&of_have);
    close_reader(&of_want);
    /* Where the second is all zero this is infinite, which no bound allows. */
    out->relative = sums[0] == 0 ? 0 : sqrt(sums[0] / sums[1]);
    if (!out->finite)
        out->relative = NAN;
    return rc;
}

int mp_weights_scales(const mp_weights *w, mp_scales_look *look, mp_error *err)
{
    const mp_storage *s = &w->storage;
    const mp_stored_matrix stored = stored_of(w);
    uint64_t row_bytes = mp_storage_scale_row_bytes(s, w->cols);
    uint64_t step = s->block_rows == UINT32_MAX ? w->rows : s->block_rows;
    unsigned width = mp_dtype_bits(s->scale_dtype) / 8;
    uint8_t *row = mp_alloc(1, row_bytes + 1);
    float first = 0;
    uint64_t seen = 0;
    bool constant = true;
    int rc = row ? 0 : mp_fail_memory(err);

    *look = MP_SCALES_VARY;
    for (uint64_t at = 0; rc == 0 && s->has_scale && constant && at < w->rows; at += step) {
        rc = mp_stored_read(&stored, (mp_rectangle){at, 1, 0, w->cols}, NULL, row, err);
        for (uint64_t i = 0; rc == 0 && i < row_bytes / width; i++) {
            float value;

            mp_scale_values(s->scale_dtype, row, i, 1, &value);
            if (seen++ == 0)
                first = value;
            constant = constant && value == first;
        }
    }
    free(row);
    /* A byte of 0 is the least power of two, not nothing, and yet what zeroing leaves. */
    bool exponents = s->scale_dtype == MP_F8_E8M0 || s->scale_dtype == MP_U8;
    if (rc == 0 && constant && seen > 1)
        *look = first == 0 || (exponents && first < 1e-37f) ? MP_SCALES_ZERO : MP_SCALES_CONSTANT;
    else if (rc == 0 && constant && seen == 1 && first == 0)
        *look = MP_SCALES_ZERO;
    return rc;
}
