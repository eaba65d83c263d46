/* SPDX-License-Identifier: Apache-2.0 */
/* Two matrices, bit by bit where they are stored alike, and value by value.
 *
 * Bits are compared as they count: codes as bytes, scales by value, as the same scale may be stored
 * as BF16 here and as float32 there, and all NaN scales are one. Values are decoded to float64,
 * tile by tile, and summed up:
 *
 *   max_abs = max |a - b|    rel_l2 = sqrt(sum (a - b)^2 / sum b^2)    sqnr_db = -20 log10 rel_l2
 *
 * Sums go to eight lanes in turn, then lane by lane and row by row to the total, always in the same
 * order; so a figure is the same for any number of threads and with or without SIMD. Elements that
 * are the same NaN or infinity on both sides are equal and count nothing; others that are not
 * finite make the figures NaN.
 *
 * Each call has its own readers and buffers of a row, and is one thread. */
#include "diff/diff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "numeric/forms.h"
#include "numeric/kernels.h"
#include "numeric/rows.h"
#include "numeric/scales.h"

#define RUN 64 /* scales at a time */

/* ------------------------------------------------------------------------
 * Both sides
 */

/* What is done with rows of both sides. */
typedef int look_at(void *user, const diff_rows *a, const diff_rows *b, mp_error *err);

static int read_both(diff_reader *a, diff_reader *b, diff_cut cut, look_at *look, void *user,
                     const bool *enough, mp_error *err)
{
    uint64_t rows = mp_ceil_div(cut.elements, cut.cols);

    /* Both sides are read at the same rows, so a slot and a checkpoint need not be cut alike. */
    for (uint64_t row0 = 0; row0 < rows && !*enough; row0 += DIFF_TILE_ROWS) {
        uint64_t count = rows - row0 < DIFF_TILE_ROWS ? rows - row0 : DIFF_TILE_ROWS;
        diff_rows of_a, of_b;

        if (mp_diff_read(a, row0, count, &of_a, err) != 0 ||
            mp_diff_read(b, row0, count, &of_b, err) != 0 || look(user, &of_a, &of_b, err) != 0)
            return err->code;
    }
    return 0;
}

/* Looks at all rows of two matrices, or at enough of them. */
static int each_tile(const diff_matrix *a, const diff_matrix *b, diff_cut cut, look_at *look,
                     void *user, const bool *enough, mp_error *err)
{
    diff_reader of_a = {0}, of_b = {0};
    int rc = mp_diff_reader_open(&of_a, a, cut, err);

    if (rc == 0)
        rc = mp_diff_reader_open(&of_b, b, cut, err);
    if (rc == 0)
        rc = read_both(&of_a, &of_b, cut, look, user, enough, err);
    mp_diff_reader_close(&of_a);
    mp_diff_reader_close(&of_b);
    return rc;
}

/* ------------------------------------------------------------------------
 * Bits
 */

/* Scheme and block of scales, of a checkpoint or a slot. */
static mp_rows form_of(const diff_matrix *m)
{
    if (!m->slot.pack)
        return (mp_rows){.scheme = m->storage.scheme,
                         .block_rows = m->storage.block_rows,
                         .block_cols = m->storage.block_cols,
                         .global_divides = m->global_divides};
    const mp_scheme_form *form = mp_scheme_form_of(m->slot.set->target->scheme);

    return (mp_rows){.scheme = m->slot.set->target->scheme,
                     .block_rows = form->block_rows,
                     .block_cols = form->block_cols,
                     .global_divides = m->global_divides};
}

bool mp_diff_stored_alike(const diff_matrix *a, const diff_matrix *b)
{
    if (a->plain || b->plain)
        return a->plain && b->plain && a->plain->dtype == b->plain->dtype;
    const mp_rows of_a = form_of(a), of_b = form_of(b);
    mp_scale_block block_a = mp_rows_block(&of_a), block_b = mp_rows_block(&of_b);

    return of_a.scheme == of_b.scheme && block_a.rows == block_b.rows &&
           block_a.cols == block_b.cols && of_a.global_divides == of_b.global_divides;
}

static bool same_numbers(const float *a, const float *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (mp_f32_bits(a[i]) != mp_f32_bits(b[i]) && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

/* Scales of either type. */
static bool same_scales(const mp_rows *a, const mp_rows *b)
{
    uint64_t count = mp_rows_scale_count(a);

    for (uint64_t i = 0; i < count; i += RUN) {
        uint64_t n = count - i < RUN ? count - i : RUN;
        float of_a[RUN], of_b[RUN];

        mp_scale_values(a->scale_dtype, a->scale, i, n, of_a);
        mp_scale_values(b->scale_dtype, b->scale, i, n, of_b);
        if (!same_numbers(of_a, of_b, n))
            return false;
    }
    return true;
}

static bool same_rows(const diff_rows *a, const diff_rows *b)
{
    const mp_rows *x = &a->rows, *y = &b->rows;

    if (a->plain)
        return memcmp(a->bytes, b->bytes, mp_ceil_div(a->count * mp_dtype_bits(a->dtype), 8)) == 0;
    if (memcmp(x->weight, y->weight, x->rows * mp_scheme_row_bytes(x->scheme, x->cols)) != 0)
        return false;
    /* Alike, so both multiply or both divide. */
    if (x->scheme == MP_SCHEME_NVFP4 && !same_numbers(&x->global_scale, &y->global_scale, 1))
        return false;
    return !mp_scheme_has_scales(x->scheme) || same_scales(x, y);
}

static int compare_bits(void *user, const diff_rows *a, const diff_rows *b, mp_error *err)
{
    bool *differ = user;
    int rc = 0;

    if (!a->plain)
        rc = mp_rows_check(&a->rows, err);
    if (rc == 0 && !b->plain)
        rc = mp_rows_check(&b->rows, err);
    if (rc == 0)
        *differ = !same_rows(a, b);
    return rc;
}

int mp_diff_stored_equal(const diff_matrix *a, const diff_matrix *b, diff_cut cut, bool *equal,
                         mp_error *err)
{
    bool differ = false;
    int rc = each_tile(a, b, cut, compare_bits, &differ, &differ, err);

    *equal = !differ;
    return rc;
}

/* ------------------------------------------------------------------------
 * Values
 */

typedef struct values_job {
    diff_cut cut;
    float *narrow;     /* [cols] */
    double *values[2]; /* [cols] */
    double error_sq, signal_sq;
    double max_abs;
    bool differ;
    bool undefined; /* a NaN, or infinities that differ */
} values_job;

/* Values of a row of a tile, n of them. */
static int decode_row(const values_job *job, const diff_rows *tile, uint64_t row, uint64_t n,
                      double *out, mp_error *err)
{
    if (tile->plain) {
        mp_diff_plain_values(tile->dtype, tile->bytes, row * job->cut.cols, n, out);
        return 0;
    }
    if (mp_decode_row(&tile->rows, row, job->narrow, true, err) != 0)
        return err->code;
    for (uint64_t i = 0; i < n; i++)
        out[i] = (double)job->narrow[i];
    return 0;
}

/* Sums that are added to in turn: a sum waits for the one before it, several do not. */
#define LANES 8

typedef struct lanes {
    double error_sq[LANES], signal_sq[LANES], max_abs[LANES];
    bool differ, undefined;
} lanes;

static inline void add_value(lanes *l, unsigned lane, double a, double b)
{
    double error = fabs(a - b);

    l->signal_sq[lane] += b * b;
    l->error_sq[lane] += error * error;
    l->max_abs[lane] = error > l->max_abs[lane] ? error : l->max_abs[lane];
}

/* The same of values that may be NaN or infinite. */
static void add_any(lanes *l, unsigned lane, double a, double b)
{
    bool same = a == b || (isnan(a) && isnan(b)), finite = isfinite(a - b);
    double signal = isfinite(b) ? b : 0;

    l->differ |= !same;
    l->undefined |= !same && !finite;
    add_value(l, lane, finite ? a : signal, signal);
}

/* Whether all of LANES differences are finite, and so the values too: 0 times a number is 0, and
 * times a NaN or an infinity a NaN. Without a branch for each, the loop is vectorized. */
static bool all_finite(const double *a, const double *b)
{
    double sum = 0;

    for (unsigned lane = 0; lane < LANES; lane++)
        sum += (a[lane] - b[lane]) * 0;
    return sum == 0;
}

/* Which element goes to which lane is fixed, and so is the order in which lanes are added, so that
 * sums do not depend on threads or processor. */
static void add_values(values_job *job, uint64_t n)
{
    const double *a = job->values[0], *b = job->values[1];
    lanes l = {0};

    for (uint64_t i = 0; i < n; i += LANES) {
        uint64_t count = n - i < LANES ? n - i : LANES;

        if (count == LANES && all_finite(a + i, b + i))
            for (unsigned lane = 0; lane < LANES; lane++)
                add_value(&l, lane, a[i + lane], b[i + lane]);
        else
            for (unsigned lane = 0; lane < count; lane++)
                add_any(&l, lane, a[i + lane], b[i + lane]);
    }
    for (unsigned lane = 0; lane < LANES; lane++) {
        job->signal_sq += l.signal_sq[lane];
        job->error_sq += l.error_sq[lane];
        job->max_abs = fmax(job->max_abs, l.max_abs[lane]);
    }
    /* The fast path does not look at single elements: a difference shows in the maximum. */
    job->differ |= l.differ || job->max_abs > 0;
    job->undefined |= l.undefined;
}

static int compare_values(void *user, const diff_rows *a, const diff_rows *b, mp_error *err)
{
    values_job *job = user;
    uint64_t elements = a->plain ? a->count : a->rows.rows * a->rows.cols;

    if ((!a->plain && mp_rows_check(&a->rows, err) != 0) ||
        (!b->plain && mp_rows_check(&b->rows, err) != 0))
        return err->code;
    for (uint64_t row = 0; row * job->cut.cols < elements; row++) {
        uint64_t left = elements - row * job->cut.cols;
        uint64_t n = left < job->cut.cols ? left : job->cut.cols;

        if (decode_row(job, a, row, n, job->values[0], err) != 0 ||
            decode_row(job, b, row, n, job->values[1], err) != 0)
            return err->code;
        add_values(job, n);
    }
    return 0;
}

static void take_measures(const values_job *job, mp_diff_pair *pair)
{
    pair->equal = !job->differ;
    pair->max_abs = job->max_abs;
    /* Infinite where b is all zero. */
    pair->rel_l2 = job->error_sq == 0 ? 0 : sqrt(job->error_sq / job->signal_sq);
    pair->sqnr_db = -20 * log10(pair->rel_l2);
    if (job->undefined)
        pair->max_abs = pair->rel_l2 = pair->sqnr_db = NAN;
}

int mp_diff_measure(const diff_matrix *a, const diff_matrix *b, diff_cut cut, mp_diff_pair *pair,
                    mp_error *err)
{
    values_job job = {.cut = cut};
    bool enough = false;
    int rc;

    job.narrow = mp_alloc(cut.cols, sizeof *job.narrow);
    job.values[0] = mp_alloc(cut.cols, sizeof *job.values[0]);
    job.values[1] = mp_alloc(cut.cols, sizeof *job.values[1]);
    if (job.narrow && job.values[0] && job.values[1])
        rc = each_tile(a, b, cut, compare_values, &job, &enough, err);
    else
        rc = mp_fail_memory(err);
    free(job.narrow);
    free(job.values[0]);
    free(job.values[1]);
    if (rc == 0)
        take_measures(&job, pair);
    return rc;
}
