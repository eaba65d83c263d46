/* SPDX-License-Identifier: Apache-2.0 */
/* The two products of an expert: its weights decoded block by block, multiplied with the rows of
 * its choices, and what becomes of the sums.
 *
 *   for each expert that is chosen, tile of its rows        a task, on any thread
 *       read the tile                                       of both parts, in the source's form
 *       for each block of 16 rows: 8 of gate and 8 of up, or 16 of down
 *           decode them to float32 or float64               once
 *           for each strip of 48 choices                    stays in a cache
 *               multiply, then finish: gate, bias, weight, rounding
 *
 * Tasks write columns (rows of the weights) of rows (choices) that no other task has. Columns
 * beyond the matrix are zero on both sides. The recipe says in which numbers is multiplied; sums of
 * codes are scaled afterwards, by the row's scale and the choice's. */
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/parallel.h"
#include "forward/pass.h"
#include "numeric/forms.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"

/* Rows of weights that are decoded at a time: of gate and up together, or of down. They and
 * the rows of a strip of choices stay in a core's cache. */
#define BLOCK_ROWS 16
#define STRIP      48

/* One side of all experts. */
typedef struct side_job {
    pass *p;
    mp_side side;
    unsigned parts;
    uint64_t rows;      /* of a part */
    uint64_t cols;      /* of the weights */
    uint64_t fill_cols; /* with zeros behind them */
    uint64_t tiles;     /* of an expert */
    uint64_t tile_rows;
    uint64_t done; /* tiles of all experts, for progress */
} side_job;

/* What a thread works with. */
typedef struct desk {
    void *source;            /* scratch of reads */
    void *block;             /* [BLOCK_ROWS, fill_cols] of decoded weights */
    void *sums;              /* [STRIP, BLOCK_ROWS] */
    float *row;              /* [fill_cols] */
    float *bias;             /* [parts, rows] */
    float scale[BLOCK_ROWS]; /* of the block's rows, where they are codes */
    mp_rows part[2];
    const mp_activation *activation; /* of the expert at hand */
} desk;

static uint64_t bias_bytes(const side_job *job)
{
    return job->p->experts->bias ? job->parts * job->rows * sizeof(float) : 0;
}

static uint64_t lay_out(const side_job *job, uint8_t *base, desk *d)
{
    uint64_t used = 0, number = job->p->number;

    d->source = mp_scratch_take(base, &used, job->p->experts->scratch_bytes);
    d->block = mp_scratch_take(base, &used, BLOCK_ROWS * job->fill_cols * number);
    d->sums = mp_scratch_take(base, &used, (uint64_t)STRIP * BLOCK_ROWS * number);
    d->row = mp_scratch_take(base, &used, job->fill_cols * sizeof *d->row);
    d->bias = mp_scratch_take(base, &used, bias_bytes(job));
    return used;
}

/* ------------------------------------------------------------------------
 * Decoding
 */

/* Rows of the matrix that a scale covers. */
static uint64_t scale_height(const mp_rows *rows)
{
    switch (rows->scheme) {
    case MP_SCHEME_FP8_CHANNEL:
    case MP_SCHEME_INT8_CHANNEL:
        return 1;
    case MP_SCHEME_FP8_TENSOR:
        return UINT64_MAX;
    default:
        return rows->block_rows;
    }
}

static uint64_t scale_row_bytes(const mp_rows *rows)
{
    bool whole = rows->scheme == MP_SCHEME_FP8_CHANNEL || rows->scheme == MP_SCHEME_INT8_CHANNEL ||
                 rows->scheme == MP_SCHEME_FP8_TENSOR;
    uint64_t count = whole ? 1 : mp_ceil_div(rows->cols, rows->block_cols);

    return count * mp_dtype_bits(rows->scale_dtype) / 8;
}

/* Row `index` of some rows, as rows of their own. */
static mp_rows one_row(const mp_rows *rows, uint64_t index)
{
    mp_rows one = *rows;

    one.row0 += index;
    one.rows = 1;
    one.weight =
        (const uint8_t *)rows->weight + index * mp_scheme_row_bytes(rows->scheme, rows->cols);
    if (rows->scale) {
        uint64_t height = scale_height(rows);
        /* Rows may begin inside of a block: count blocks from the matrix's edge. UINT64_MAX is one
         * for all. */
        uint64_t down = one.row0 / height - rows->row0 / height;

        one.scale = (const uint8_t *)rows->scale + down * scale_row_bytes(rows);
    }
    return one;
}

/* Decodes a row to place `at` of the block. */
static int decode_row(const side_job *job, desk *d, const mp_rows *rows, uint64_t index,
                      unsigned at, mp_error *err)
{
    const mp_rows one = one_row(rows, index);
    const mp_recipe *recipe = job->p->recipe;
    /* One of the two is used, by recipe->wide. */
    float *narrow = (float *)d->block + at * job->fill_cols;
    double *wide = (double *)d->block + at * job->fill_cols;
    const int8_t *codes = one.weight;

    if (recipe->codes) {
        for (uint64_t k = 0; k < job->cols; k++)
            wide[k] = codes[k];
        if (!mp_scales_convert(one.scale_dtype, one.scale, 1, MP_F32, &d->scale[at]))
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s scales", mp_dtype_name(one.scale_dtype));
        return 0;
    }
    int rc = mp_decode_rows(&one, recipe->wide ? d->row : narrow, err);
    for (uint64_t k = 0; rc == 0 && recipe->wide && k < job->cols; k++)
        wide[k] = (double)d->row[k];
    return rc;
}

/* Rows first .. first+count-1 of every part: gate in the first half of the block, up in the
 * second. Places that are left over hold whatever was there; nobody looks at their sums. */
static int decode_block(const side_job *job, desk *d, uint64_t first, uint64_t count, mp_error *err)
{
    unsigned step = BLOCK_ROWS / job->parts;

    for (unsigned part = 0; part < job->parts; part++)
        for (uint64_t r = 0; r < count; r++)
            if (decode_row(job, d, &d->part[part], first + r, (unsigned)(part * step + r), err) !=
                0)
                return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * Multiplying
 */

/* Rows that choice number `choice` multiplies with. */
static const uint8_t *operand(const side_job *job, uint64_t choice)
{
    const pass *p = job->p;

    if (job->side == MP_L1)
        return (const uint8_t *)p->input + mp_input_row(p, choice) * p->input_cols * p->number;
    return (const uint8_t *)p->inner + choice * p->inner_cols * p->number;
}

static void multiply(const side_job *job, desk *d, uint64_t first, uint64_t count)
{
    const pass *p = job->p;

    if (p->recipe->wide) {
        const double *x[STRIP];

        for (uint64_t i = 0; i < count; i++)
            x[i] = (const double *)(const void *)operand(job, first + i);
        p->products->f64(x, count, d->block, BLOCK_ROWS, job->fill_cols, d->sums);
    } else {
        const float *x[STRIP];

        for (uint64_t i = 0; i < count; i++)
            x[i] = (const float *)(const void *)operand(job, first + i);
        p->products->f32(x, count, d->block, BLOCK_ROWS, job->fill_cols, d->sums);
    }
}

/* What scales sums of codes of a choice. */
static float scale_of(const side_job *job, uint64_t choice)
{
    const pass *p = job->p;

    return job->side == MP_L1 ? p->input_scale[mp_input_row(p, choice)] : p->inner_scale[choice];
}

/* Sums of a choice with rows at .. at+count-1 of the block, scaled where they are of codes. */
static void sums_f32(const side_job *job, const desk *d, uint64_t i, uint64_t choice, unsigned at,
                     unsigned count, float *out)
{
    const float *narrow = (const float *)d->sums + i * BLOCK_ROWS + at;
    const double *wide = (const double *)d->sums + i * BLOCK_ROWS + at;

    for (unsigned r = 0; r < count; r++)
        out[r] = job->p->recipe->codes ? (float)wide[r] * scale_of(job, choice) * d->scale[at + r]
                                       : narrow[r];
}

/* ------------------------------------------------------------------------
 * What becomes of the sums
 */

static float bias_of(const side_job *job, const desk *d, unsigned part, uint64_t row)
{
    return job->p->experts->bias ? d->bias[part * job->rows + row] : 0;
}

static const mp_activation *activation_of(const mp_forward_options *options, uint32_t id)
{
    return options->first_shared && id >= options->first_shared ? &options->shared_activation
                                                                : &options->activation;
}

static void exact_l1(const side_job *job, const desk *d, uint64_t i, uint64_t choice, uint64_t row,
                     unsigned count)
{
    const double *sums = (const double *)d->sums + i * BLOCK_ROWS;
    double *inner = (double *)job->p->inner + choice * job->p->inner_cols + row;
    double up[BLOCK_ROWS];

    for (unsigned r = 0; r < count; r++) {
        inner[r] = sums[r] + (double)bias_of(job, d, 0, row + r);
        up[r] = sums[BLOCK_ROWS / 2 + r] + (double)bias_of(job, d, 1, row + r);
    }
    mp_activate_f64(d->activation, inner, up, count);
}

/* Inner values of a choice for `count` rows from `row` on. */
static void finish_l1(const side_job *job, const desk *d, uint64_t i, uint64_t choice, uint64_t row,
                      unsigned count)
{
    const pass *p = job->p;
    float weight = mp_weighs_inside(p) ? mp_weight_of(p, choice) : 1;
    uint64_t to = choice * p->inner_cols + row;
    float gate[BLOCK_ROWS], up[BLOCK_ROWS];

    if (mp_is_exact(p)) {
        exact_l1(job, d, i, choice, row, count);
        return;
    }
    sums_f32(job, d, i, choice, 0, count, gate);
    sums_f32(job, d, i, choice, BLOCK_ROWS / 2, count, up);
    for (unsigned r = 0; r < count; r++) {
        gate[r] += bias_of(job, d, 0, row + r);
        up[r] += bias_of(job, d, 1, row + r);
    }
    mp_activate_f32(p->recipe, d->activation, gate, up, count);
    for (unsigned r = 0; r < count; r++) {
        if (p->recipe->wide)
            ((double *)p->inner)[to + r] = (double)(gate[r] * weight);
        else
            ((float *)p->inner)[to + r] = gate[r] * weight;
    }
}

/* Results of a choice. A bias weighs as much as what it is added to. */
static void finish_l2(const side_job *job, const desk *d, uint64_t i, uint64_t choice, uint64_t row,
                      unsigned count)
{
    const pass *p = job->p;
    const double *sums = (const double *)d->sums + i * BLOCK_ROWS;
    float weight = mp_weighs_inside(p) ? mp_weight_of(p, choice) : 1;
    uint64_t to = choice * job->rows + row;
    float values[BLOCK_ROWS];

    if (mp_is_exact(p)) {
        for (unsigned r = 0; r < count; r++)
            ((double *)p->result)[to + r] = sums[r] + (double)bias_of(job, d, 0, row + r);
        return;
    }
    sums_f32(job, d, i, choice, 0, count, values);
    for (unsigned r = 0; r < count; r++)
        values[r] += weight * bias_of(job, d, 0, row + r);
    mp_kernels_best()->bf16_encode(values, (uint16_t *)p->result + to, count);
}

/* One block of rows with all choices of a group. */
static void multiply_block(const side_job *job, desk *d, const group *g, uint64_t row,
                           unsigned count)
{
    for (uint64_t done = 0; done < g->count; done += STRIP) {
        uint64_t first = g->first + done;
        uint64_t strip = g->count - done < STRIP ? g->count - done : STRIP;

        multiply(job, d, first, strip);
        for (uint64_t i = 0; i < strip; i++) {
            if (job->side == MP_L1)
                finish_l1(job, d, i, first + i, row, count);
            else
                finish_l2(job, d, i, first + i, row, count);
        }
    }
}

/* ------------------------------------------------------------------------
 * Tiles
 */

static int check_scheme(const side_job *job, const desk *d, mp_error *err)
{
    if (!job->p->recipe->codes || d->part[0].scheme == job->p->recipe->weights)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED, "weights are %s, %s takes %s",
                   mp_scheme_name(d->part[0].scheme), job->p->recipe->name,
                   mp_scheme_name(job->p->recipe->weights));
}

static int read_tile(const side_job *job, desk *d, uint32_t id, uint64_t row0, uint64_t rows,
                     mp_error *err)
{
    const mp_expert_source *experts = job->p->experts;
    int rc = experts->read(experts->user, id, job->side, row0, rows, d->source, d->part, err);

    for (unsigned part = 0; rc == 0 && experts->bias && part < job->parts; part++)
        rc = experts->bias(experts->user, id, job->side == MP_L2 ? MP_DOWN : (mp_projection)part,
                           d->bias + part * job->rows, err);
    return rc == 0 ? check_scheme(job, d, err) : rc;
}

/* A tile is done; progress is told in tokens, of a pass half for each side. */
static void tell(side_job *job)
{
    const pass *p = job->p;
    const mp_context *context = p->context;
    uint64_t all = p->num_groups * job->tiles;

    if (!context || !context->progress)
        return;
#pragma omp critical(mp_forward_progress)
    {
        job->done++;
        double part = (double)job->done / (double)all / 2 + (job->side == MP_L2 ? 0.5 : 0);
        context->progress(context->progress_user,
                          p->first_token + (uint64_t)((double)p->tokens * part), p->batch->tokens);
    }
}

static int work_tile(void *user, uint64_t index, void *scratch, mp_error *err)
{
    side_job *job = user;
    const group *g = &job->p->groups[index / job->tiles];
    uint64_t row0 = index % job->tiles * job->tile_rows, step = BLOCK_ROWS / job->parts;
    uint64_t rows = job->rows - row0 < job->tile_rows ? job->rows - row0 : job->tile_rows;
    desk d;

    /* Pointers into this thread's scratch; what they point to is from its last tile. */
    lay_out(job, scratch, &d);
    d.activation = activation_of(job->p->options, g->id);
    /* The fill behind each row has to be zero, and is not written by decoding. */
    memset(d.block, 0, BLOCK_ROWS * job->fill_cols * job->p->number);
    int rc = read_tile(job, &d, g->id, row0, rows, err);
    for (uint64_t r = 0; rc == 0 && r < rows; r += step) {
        uint64_t count = rows - r < step ? rows - r : step;

        rc = decode_block(job, &d, r, count, err);
        if (rc == 0)
            multiply_block(job, &d, g, row0 + r, (unsigned)count);
    }
    if (rc == 0)
        tell(job);
    return rc == 0 ? 0 : mp_error_prefix(err, "expert %u", g->id);
}

int mp_pass_side(pass *p, mp_side side, mp_error *err)
{
    const mp_expert_source *experts = p->experts;
    side_job job = {
        .p = p,
        .side = side,
        .parts = side == MP_L1 ? 2 : 1,
        .rows = side == MP_L1 ? experts->intermediate_size : experts->hidden_size,
        .cols = side == MP_L1 ? experts->hidden_size : experts->intermediate_size,
        .fill_cols = side == MP_L1 ? p->input_cols : p->inner_cols,
    };
    desk d;

    /* A source's tiles begin at multiples of tile_rows, as its scales do. */
    job.tile_rows = experts->tile_rows < job.rows ? experts->tile_rows : job.rows;
    job.tiles = mp_ceil_div(job.rows, job.tile_rows);
    return mp_parallel(p->context, p->num_groups * job.tiles, lay_out(&job, NULL, &d), work_tile,
                       &job, err);
}
