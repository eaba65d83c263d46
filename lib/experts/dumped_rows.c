/* SPDX-License-Identifier: Apache-2.0 */
/* A matrix of a snapshot's expert, put back together. Tensor parallelism cuts I: the parts of gate
 * and up are consecutive rows, the parts of down are adjacent columns.
 *
 *     gate, up [I, H]   part 0: rows 0 .. I/p - 1;  part 1: the next;  ...
 *     down [H, I]       part 0: columns 0 .. I/p - 1, in every row;  ...
 *
 * Rows are read part by part and assembled in the reader's memory as if the expert had never been
 * cut, along with their scales. For that, cuts have to be at the edges of blocks, and all parts
 * have to be stored alike and agree on what they share; opening checks this. If an engine
 * interleaves gate and up, rows are read one at a time. Memory is what `most` rows take. A reader
 * belongs to one thread. */
#include "experts/dumped_rows.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/matrix.h"

#define WHOLE UINT32_MAX

static const mp_dumped_side *part_of(const mp_dumped_matrix *m, uint64_t p)
{
    return &m->parts[p * MP_SIDES];
}

static bool is_down(const mp_dumped_matrix *m)
{
    return m->projection == MP_DOWN;
}

uint64_t mp_dumped_rows(const mp_dumped_matrix *m)
{
    return m->parts->rows * (is_down(m) ? 1 : m->parts->parts);
}

uint64_t mp_dumped_cols(const mp_dumped_matrix *m)
{
    return m->parts->cols * (is_down(m) ? m->parts->parts : 1);
}

/* The matrix of a part, which begins where gate or up does in this order. */
static mp_matrix matrix_of(const mp_dumped_matrix *m, uint64_t p)
{
    const mp_dumped_side *d = part_of(m, p);
    bool behind = m->projection == (m->order == MP_ORDER_SWAPPED ? MP_GATE : MP_UP);
    mp_matrix matrix = d->matrix;

    matrix.slice = m->slot;
    matrix.first = behind && !mp_half_order_turns(m->order) ? d->rows : 0;
    return matrix;
}

/* ------------------------------------------------------------------------
 * Opening
 */

static bool stored_alike(const mp_storage *a, const mp_storage *b)
{
    return a->scheme == b->scheme && a->fusion == b->fusion && a->weight_dtype == b->weight_dtype &&
           a->scale_dtype == b->scale_dtype && a->block_rows == b->block_rows &&
           a->block_cols == b->block_cols && a->global_divides == b->global_divides;
}

static int check_parts(const mp_dumped_matrix *m, mp_error *err)
{
    const mp_dumped_side *first = m->parts;
    const mp_storage *s = &first->storage;
    const char *name = first->matrix.weight->name;

    for (uint64_t p = 0; p < first->parts; p++) {
        const mp_dumped_side *d = part_of(m, p);

        if (d->raw)
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: its scales are not in this snapshot",
                           name);
        if (!stored_alike(s, &d->storage) || d->rows != first->rows || d->cols != first->cols)
            return mp_fail(err, MP_ERR_INPUT, "%s: ranks %zu and %zu do not store it alike", name,
                           first->rank, d->rank);
    }
    if (first->parts == 1 || !s->has_scale)
        return 0;
    if (is_down(m) ? s->block_cols != WHOLE && first->cols % s->block_cols != 0
                   : s->block_rows == WHOLE || first->rows % s->block_rows != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: %llu parts are not cut at the edges of its scales", name,
                       (unsigned long long)first->parts);
    return 0;
}

/* The second scale, which all parts have to agree on. Gate's is the first of two. */
static int read_global(const mp_dumped_matrix *m, float *global, mp_error *err)
{
    *global = 1;
    for (uint64_t p = 0; p < m->parts->parts; p++) {
        mp_matrix matrix = matrix_of(m, p);
        float other;

        /* mp_matrix_global picks the entry of a scale by where the matrix begins: 0 is gate's, 1 is
         * up's. */
        matrix.first = m->projection == MP_UP;
        if (mp_matrix_global(&m->views[p], &matrix, &other, err) != 0)
            return err->code;
        if (p > 0 && other != *global)
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: ranks have different second scales for it",
                           matrix.weight->name);
        *global = other;
    }
    return 0;
}

int mp_dumped_open(mp_dumped_reader *r, const mp_dumped_matrix *m, uint64_t most, mp_error *err)
{
    const mp_storage *s = &m->parts->storage;
    uint64_t cols = mp_dumped_cols(m), scale_rows = mp_ceil_div(most, s->block_rows) + 1;

    *r = (mp_dumped_reader){.m = *m};
    if (check_parts(m, err) != 0)
        return err->code;
    r->codes = mp_alloc(most, mp_storage_row_bytes(s, cols));
    r->scale = mp_alloc(scale_rows, mp_storage_scale_row_bytes(s, cols));
    r->piece = mp_alloc(most + scale_rows, mp_storage_row_bytes(s, m->parts->cols) +
                                               mp_storage_scale_row_bytes(s, m->parts->cols));
    if (!r->codes || !r->scale || !r->piece)
        return mp_fail_memory(err);
    return read_global(m, &r->global, err);
}

void mp_dumped_close(mp_dumped_reader *r)
{
    free(r->codes);
    free(r->scale);
    free(r->piece);
    *r = (mp_dumped_reader){0};
}

/* ------------------------------------------------------------------------
 * Reading
 */

static int read_part(const mp_dumped_reader *r, uint64_t p, uint64_t row0, uint64_t rows,
                     void *codes, void *scale, mp_error *err)
{
    const mp_dumped_side *d = part_of(&r->m, p);
    mp_matrix matrix = matrix_of(&r->m, p);

    return mp_matrix_read_rows(&r->m.views[p], &d->storage, &matrix, d->cols, row0, rows, codes,
                               scale, err);
}

/* Rows that take turns, one after another; each has its own scales. */
static int read_turns(const mp_dumped_reader *r, uint64_t p, uint64_t row0, uint64_t rows,
                      uint8_t *codes, uint8_t *scale, mp_error *err)
{
    const mp_dumped_side *d = part_of(&r->m, p);
    const mp_interleave *turns = mp_half_order_turns(r->m.order);
    uint64_t row_bytes = mp_storage_row_bytes(&d->storage, d->cols);
    uint64_t scale_bytes = mp_storage_scale_row_bytes(&d->storage, d->cols);

    for (uint64_t i = 0; i < rows; i++)
        if (read_part(r, p, mp_interleave_place(turns, r->m.projection == MP_UP, row0 + i), 1,
                      codes + i * row_bytes, scale + i * scale_bytes, err) != 0)
            return err->code;
    return 0;
}

/* Rows of gate or up: those of a part, then those of the next. */
static int read_rows(const mp_dumped_reader *r, uint64_t row0, uint64_t rows, mp_error *err)
{
    const mp_dumped_side *d = r->m.parts;
    uint64_t row_bytes = mp_storage_row_bytes(&d->storage, d->cols);
    uint64_t scale_bytes = mp_storage_scale_row_bytes(&d->storage, d->cols);
    uint64_t block = d->storage.block_rows, first_scale = row0 / block;

    for (uint64_t row = row0; row < row0 + rows;) {
        uint64_t p = row / d->rows, local = row % d->rows, left = row0 + rows - row;
        uint64_t n = d->rows - local < left ? d->rows - local : left;
        uint8_t *codes = r->codes + (row - row0) * row_bytes;
        uint8_t *scale = r->scale + (row / block - first_scale) * scale_bytes;
        int rc = mp_half_order_turns(r->m.order) ? read_turns(r, p, local, n, codes, scale, err)
                                                 : read_part(r, p, local, n, codes, scale, err);

        if (rc != 0)
            return rc;
        row += n;
    }
    return 0;
}

/* Puts rows of a part beside those of the parts before it. */
static void put_beside(const uint8_t *piece, uint64_t bytes, uint64_t p, uint64_t rows,
                       uint64_t stride, uint8_t *out)
{
    for (uint64_t i = 0; i < rows; i++)
        memcpy(out + i * stride + p * bytes, piece + i * bytes, bytes);
}

static int read_beside(const mp_dumped_reader *r, uint64_t row0, uint64_t rows, mp_error *err)
{
    const mp_dumped_side *d = r->m.parts;
    const mp_storage *s = &d->storage;
    uint64_t bytes = mp_storage_row_bytes(s, d->cols);
    uint64_t scale_bytes = mp_storage_scale_row_bytes(s, d->cols);
    uint64_t scale_rows = (row0 + rows - 1) / s->block_rows - row0 / s->block_rows + 1;
    uint8_t *scales = r->piece + rows * bytes;

    for (uint64_t p = 0; p < d->parts; p++) {
        if (read_part(r, p, row0, rows, r->piece, scales, err) != 0)
            return err->code;
        put_beside(r->piece, bytes, p, rows, mp_storage_row_bytes(s, d->cols * d->parts), r->codes);
        if (!s->has_scale)
            continue;
        if (s->block_cols != WHOLE)
            put_beside(scales, scale_bytes, p, scale_rows, scale_bytes * d->parts, r->scale);
        else if (p == 0)
            memcpy(r->scale, scales, scale_rows * scale_bytes);
        /* A scale covers a whole row, so every part has a copy of it, and they have to be equal. */
        else if (memcmp(r->scale, scales, scale_rows * scale_bytes) != 0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: ranks have different scales for the same rows",
                           d->matrix.weight->name);
    }
    return 0;
}

int mp_dumped_read(mp_dumped_reader *r, uint64_t row0, uint64_t rows, mp_rows *out, mp_error *err)
{
    const mp_storage *s = &r->m.parts->storage;

    *out = (mp_rows){
        .scheme = s->scheme,
        .scale_dtype = s->scale_dtype,
        .block_rows = s->block_rows,
        .block_cols = s->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = mp_dumped_cols(&r->m),
        .weight = r->codes,
        .scale = s->has_scale ? r->scale : NULL,
        .global_scale = r->global,
        .global_divides = s->global_divides,
    };
    return is_down(&r->m) ? read_beside(r, row0, rows, err) : read_rows(r, row0, rows, err);
}

void mp_dumped_forget(const mp_dumped_matrix *m)
{
    for (uint64_t p = 0; p < m->parts->parts; p++) {
        mp_matrix matrix = matrix_of(m, p);

        mp_matrix_forget(&m->views[p], &matrix);
    }
}
