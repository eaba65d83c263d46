/* SPDX-License-Identifier: Apache-2.0 */
/* Experts of a layer of a checkpoint as an expert source: rows as they are stored, or
 * requantized to what a target takes. */
#include <moepack/reference.h>

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "experts/stored.h"

/* Blocks of scales are 128 rows high at most, and requantizing wants whole ones. */
#define TILE_ROWS 128

/* A matrix, and what it is to become. */
typedef struct matrix_job {
    const mp_catalog_experts *experts;
    uint32_t id;
    mp_projection projection;
    const mp_matrix *matrix;
    const mp_storage *storage;
    mp_scheme to; /* MP_SCHEME_COUNT: as it is */
    uint64_t rows, cols;
} matrix_job;

/* Scratch of the rows of one part. */
typedef struct buffers {
    uint8_t *raw, *raw_scale;
    uint8_t *codes, *scales;
    void *work;
} buffers;

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* ------------------------------------------------------------------------
 * Sizes
 */

/* A row is at most as wide as a float32 each, with a float32 scale for each 16. */
static uint64_t raw_bytes(const mp_catalog_experts *e, uint64_t cols)
{
    const mp_moe_layer *layer = e->layer;
    uint64_t row = mp_storage_row_bytes(&layer->storage, cols);

    if (layer->has_shared)
        row = larger(row, mp_storage_row_bytes(&layer->shared_storage, cols));
    return mp_round_up(TILE_ROWS * row, 64);
}

/* Scale rows that cover a tile, which may begin and end inside of one. */
static uint64_t raw_scale_bytes(const mp_catalog_experts *e, uint64_t cols)
{
    const mp_moe_layer *layer = e->layer;
    uint64_t row = mp_storage_scale_row_bytes(&layer->storage, cols);

    if (layer->has_shared)
        row = larger(row, mp_storage_scale_row_bytes(&layer->shared_storage, cols));
    return mp_round_up((TILE_ROWS + 1) * row, 64);
}

static uint64_t codes_bytes(uint64_t cols)
{
    return mp_round_up(TILE_ROWS * cols * 2, 64);
}

static uint64_t scales_bytes(uint64_t cols)
{
    return mp_round_up(TILE_ROWS * (mp_ceil_div(cols, 16) + sizeof(float)), 64);
}

static buffers split(const mp_catalog_experts *e, uint64_t cols, uint8_t *at)
{
    buffers b = {.raw = at};

    b.raw_scale = b.raw + raw_bytes(e, cols);
    b.codes = b.raw_scale + raw_scale_bytes(e, cols);
    b.scales = b.codes + codes_bytes(cols);
    b.work = b.scales + scales_bytes(cols);
    return b;
}

static uint64_t part_bytes(const mp_catalog_experts *e, uint64_t cols)
{
    return raw_bytes(e, cols) + raw_scale_bytes(e, cols) + codes_bytes(cols) + scales_bytes(cols) +
           mp_round_up(mp_requantize_scratch(cols), 64);
}

static int find_matrix(const mp_catalog_experts *e, uint32_t id, mp_projection projection,
                       mp_expert *view, matrix_job *job, mp_error *err)
{
    bool shared = id >= e->layer->num_experts;
    mp_scheme to = shared ? e->options.shared_scheme : e->options.scheme;

    *job = (matrix_job){.experts = e, .id = id, .projection = projection, .to = MP_SCHEME_COUNT};
    if (mp_layer_expert(e->catalog, e->layer, id, view, &job->storage, err) != 0)
        return err->code;
    job->matrix = &view->matrix[projection];
    /* Where scales are to be powers of two, only reading them tells whether they are. */
    if (to != MP_SCHEME_COUNT &&
        (!mp_stored_as(job->storage, to) || (to == MP_SCHEME_FP8_BLOCK && e->options.quant.ue8m0)))
        job->to = to;
    mp_catalog_shape(e->catalog, projection, &job->rows, &job->cols);
    return 0;
}

static int read_stored(const matrix_job *job, uint64_t row0, uint64_t rows, const buffers *b,
                       mp_rows *out, mp_error *err)
{
    const mp_storage *storage = job->storage;

    *out = mp_stored_rows(storage, row0, rows, job->cols, b->raw, b->raw_scale);
    if (mp_matrix_global(job->experts->catalog, job->matrix, &out->global_scale, err) != 0)
        return err->code;
    return mp_matrix_read_rows(job->experts->catalog, storage, job->matrix, job->cols, row0, rows,
                               b->raw, b->raw_scale, err);
}

static int requantize(const matrix_job *job, const buffers *b, mp_rows *rows, mp_error *err)
{
    const mp_catalog_experts *e = job->experts;
    const mp_scheme_form *form = mp_scheme_form_of(job->to);
    mp_quant_options quant = e->options.quant;
    const mp_rows in = *rows;

    quant.global_scale = e->global ? e->global[job->id * MP_PROJECTIONS + job->projection] : 1;
    *rows = (mp_rows){
        .scheme = job->to,
        .scale_dtype = form->scale_dtype,
        .block_rows = form->block_rows,
        .block_cols = form->block_cols,
        .row0 = in.row0,
        .rows = in.rows,
        .cols = in.cols,
        .weight = b->codes,
        .scale = b->scales,
        .global_scale = quant.global_scale,
    };
    return mp_requantize(&in, job->to, &quant, b->codes, b->scales, b->work, NULL, err);
}

static int read_part(const mp_catalog_experts *e, uint32_t id, mp_projection projection,
                     uint64_t row0, uint64_t rows, uint8_t *scratch, mp_rows *out, mp_error *err)
{
    mp_expert view;
    matrix_job job;
    int rc = find_matrix(e, id, projection, &view, &job, err);

    if (rc != 0)
        return rc;
    const buffers b = split(e, job.cols, scratch);
    rc = read_stored(&job, row0, rows, &b, out, err);
    if (rc != 0 || job.to == MP_SCHEME_COUNT)
        return rc;
    rc = requantize(&job, &b, out, err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", job.matrix->weight->name);
}

static int read_side(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                     void *scratch, mp_rows part[2], mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_catalog_experts *e = user;
    uint8_t *second = (uint8_t *)scratch + part_bytes(e, e->catalog->hidden_size);

    if (side == MP_L2)
        return read_part(e, id, MP_DOWN, row0, rows, scratch, &part[0], err);
    int rc = read_part(e, id, MP_GATE, row0, rows, scratch, &part[0], err);
    return rc == 0 ? read_part(e, id, MP_UP, row0, rows, second, &part[1], err) : rc;
}

/* ------------------------------------------------------------------------
 * Biases
 */

/* Bytes that are read at once. */
#define PIECE 4096

/* Numbers first, first + step, ... of a tensor of floats. */
static int read_numbers(const mp_catalog *catalog, const mp_tensor *tensor, uint64_t first,
                        uint64_t step, uint64_t count, float *out, mp_error *err)
{
    uint64_t width = mp_dtype_bits(tensor->dtype) / 8, most = PIECE / (step * width);
    uint8_t piece[PIECE];

    for (uint64_t done = 0; done < count; done += most) {
        uint64_t n = count - done < most ? count - done : most;
        uint64_t bytes = ((n - 1) * step + 1) * width;

        if (mp_tensor_read(&catalog->checkpoint, tensor, (first + done * step) * width, bytes,
                           piece, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < n; i++)
            if (!mp_scales_convert(tensor->dtype, piece + i * step * width, 1, MP_F32,
                                   &out[done + i]))
                return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s, expected F32, BF16 or F16",
                               tensor->name, mp_dtype_name(tensor->dtype));
    }
    return 0;
}

/* One number a row; of fused tensors those of all experts, gate and up as in the weights. */
static int read_bias(const void *user, uint32_t id, mp_projection projection, float *out,
                     mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_catalog_experts *e = user;
    mp_expert view;
    matrix_job job;
    int rc = find_matrix(e, id, projection, &view, &job, err);
    const mp_tensor *bias = rc == 0 ? job.matrix->bias : NULL;
    uint64_t first;

    if (rc != 0)
        return rc;
    memset(out, 0, job.rows * sizeof *out);
    if (!bias || bias->rank == 0)
        return 0;
    first =
        (bias->rank > 1 ? job.matrix->slice * bias->shape[bias->rank - 1] : 0) + job.matrix->first;
    return read_numbers(e->catalog, bias, first, job.matrix->paired ? 2 : 1, job.rows, out, err);
}

static bool has_bias(const mp_moe_layer *layer)
{
    for (int p = 0; p < MP_PROJECTIONS; p++)
        if (layer->experts[0].matrix[p].bias || (layer->has_shared && layer->shared.matrix[p].bias))
            return true;
    return false;
}

/* ------------------------------------------------------------------------
 * Second scales
 */

/* What a matrix says of the second scale that it is to have: its largest exponent, where
 * mxfp4 may pass through, else its amax. */
typedef struct extent {
    uint8_t exponent;
    float amax;
} extent;

static int measure_tile(const matrix_job *job, uint64_t row0, uint64_t rows, const buffers *b,
                        extent *found, mp_error *err)
{
    uint64_t scales = rows * mp_storage_scale_row_bytes(job->storage, job->cols);
    mp_rows stored;
    float amax;
    int rc = read_stored(job, row0, rows, b, &stored, err);

    if (rc != 0)
        return rc;
    if (job->storage->scheme == MP_SCHEME_MXFP4) {
        for (uint64_t i = 0; i < scales; i++)
            if (b->raw_scale[i] > found->exponent && b->raw_scale[i] != UINT8_MAX)
                found->exponent = b->raw_scale[i];
        return 0;
    }
    rc = mp_rows_amax(&stored, job->experts->options.quant.allow_nonfinite, b->work, &amax, err);
    if (rc == 0 && amax > found->amax)
        found->amax = amax;
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", job->matrix->weight->name);
}

static int measure(const matrix_job *job, uint8_t *scratch, extent *found, mp_error *err)
{
    const buffers b = split(job->experts, job->cols, scratch);

    for (uint64_t row0 = 0; row0 < job->rows; row0 += TILE_ROWS) {
        uint64_t rows = job->rows - row0 < TILE_ROWS ? job->rows - row0 : TILE_ROWS;

        if (measure_tile(job, row0, rows, &b, found, err) != 0)
            return err->code;
    }
    return 0;
}

/* Gate and up of an expert share a second scale. */
static int choose_globals(void *user, uint64_t id, void *scratch, mp_error *err)
{
    mp_catalog_experts *e = user;
    extent found[MP_SIDES] = {0};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        mp_expert view;
        matrix_job job;

        if (find_matrix(e, (uint32_t)id, (mp_projection)p, &view, &job, err) != 0)
            return err->code;
        if (job.to == MP_SCHEME_NVFP4 &&
            measure(&job, scratch, &found[p == MP_DOWN ? MP_L2 : MP_L1], err) != 0)
            return err->code;
    }
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        const extent *of = &found[p == MP_DOWN ? MP_L2 : MP_L1];

        e->global[id * MP_PROJECTIONS + p] =
            of->exponent ? mp_nvfp4_global_exact(of->exponent) : mp_nvfp4_global(of->amax);
    }
    return 0;
}

static int find_globals(mp_catalog_experts *e, const mp_context *context, mp_error *err)
{
    bool routed =
        e->options.scheme == MP_SCHEME_NVFP4 && !mp_stored_as(&e->layer->storage, MP_SCHEME_NVFP4);
    bool shared = e->options.shared_scheme == MP_SCHEME_NVFP4 && e->layer->has_shared &&
                  !mp_stored_as(&e->layer->shared_storage, MP_SCHEME_NVFP4);

    if (!routed && !shared)
        return 0;
    e->global = mp_alloc((uint64_t)e->source.count * MP_PROJECTIONS, sizeof *e->global);
    if (!e->global)
        return mp_fail_memory(err);
    return mp_parallel(context, e->source.count, e->source.scratch_bytes, choose_globals, e, err);
}

/* ------------------------------------------------------------------------
 * Opening
 */

static int check_offsets(const mp_catalog_experts *e, mp_error *err)
{
    for (uint32_t id = 0; id < e->source.count; id++) {
        const mp_storage *storage;
        mp_expert view;

        if (mp_layer_expert(e->catalog, e->layer, id, &view, &storage, err) != 0)
            return err->code;
        for (int p = 0; p < MP_PROJECTIONS; p++)
            if (mp_matrix_check_offset(e->catalog, &view.matrix[p], err) != 0)
                return err->code;
    }
    return 0;
}

int mp_catalog_experts_open(mp_catalog_experts *experts, const mp_catalog *catalog,
                            const mp_moe_layer *layer, const mp_catalog_experts_options *options,
                            const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *experts = (mp_catalog_experts){
        .source = {.hidden_size = catalog->hidden_size,
                   .intermediate_size = catalog->moe_intermediate_size,
                   .count =
                       layer->num_experts + (layer->has_shared ? catalog->num_shared_experts : 0),
                   .tile_rows = TILE_ROWS,
                   .user = experts,
                   .read = read_side,
                   .bias = has_bias(layer) ? read_bias : NULL},
        .catalog = catalog,
        .layer = layer,
        .options = *options,
    };
    experts->source.scratch_bytes = larger(2 * part_bytes(experts, catalog->hidden_size),
                                           part_bytes(experts, catalog->moe_intermediate_size));
    int rc = check_offsets(experts, err);
    if (rc == 0)
        rc = find_globals(experts, context, err);
    if (rc != 0)
        mp_catalog_experts_release(experts);
    return rc;
}

void mp_catalog_experts_release(mp_catalog_experts *experts)
{
    free(experts->global);
    *experts = (mp_catalog_experts){0};
}
