/* SPDX-License-Identifier: Apache-2.0 */
/* Experts of a layer of a checkpoint as an expert source: rows as they are stored, or requantized
 * to what a target takes. Requantized rows are the very bytes that repack writes for them: it is
 * the same conversion, of whole blocks of scales, with the same second scale. So a forward of a
 * checkpoint and one of its pack can be compared bit by bit.
 *
 * A read converts 128 rows and keeps nothing, so no expert is ever whole in memory. What cannot be
 * told from these rows is found when the source is opened: the second scale of nvfp4 takes all of a
 * side, gate and up together, and is looked for by all threads. After that the struct does not
 * change, and reads may come from any thread, each with scratch of its own; in it, gate has the
 * first half and up the second.
 *
 *   scratch: [gate, or down: stored | codes | scales][up: the same] */

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/parallel.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "experts/stored.h"
#include "forward/reference.h"
#include "numeric/quantize.h"
#include "numeric/rows.h"

/* Blocks of scales are 128 rows high at most, and requantizing wants whole ones. */
#define TILE_ROWS 128

/* A matrix, and what it is to become. */
typedef struct matrix_job {
    mp_expert view; /* that stored.matrix is of */
    mp_stored_matrix stored;
    mp_scheme to; /* MP_SCHEME_COUNT: as it is */
    uint8_t *codes, *scales;
} matrix_job;

static int find_matrix(const mp_catalog_experts *e, uint32_t id, mp_projection projection,
                       matrix_job *job, mp_error *err)
{
    /* Shared experts are stored in a way of their own, and may become another scheme than routed
     * ones. */
    bool shared = id >= e->layer->num_experts;
    mp_scheme to = shared ? e->options.shared_scheme : e->options.scheme;
    const mp_storage *storage;

    if (mp_layer_expert(e->catalog, e->layer, id, &job->view, &storage, err) != 0)
        return err->code;
    job->stored = (mp_stored_matrix){.catalog = e->catalog,
                                     .storage = storage,
                                     .matrix = &job->view.matrix[projection],
                                     .tile_rows = TILE_ROWS};
    mp_catalog_shape(e->catalog, projection, &job->stored.rows, &job->stored.cols);
    job->stored.tile_cols = job->stored.cols;
    job->to = MP_SCHEME_COUNT;
    /* Where scales are to be powers of two, only reading them tells whether they are. */
    if (to != MP_SCHEME_COUNT &&
        (!mp_stored_as(storage, to) || (to == MP_SCHEME_FP8_BLOCK && e->options.quant.ue8m0)))
        job->to = to;
    return 0;
}

/* ------------------------------------------------------------------------
 * Scratch
 */

/* Codes have 2 bytes at most (BF16). Scales are at most one for each 16 columns, where they are
 * bytes, or a float32 for a row; a float32 for each 16 and one more is room for all. */
static uint64_t lay_out(matrix_job *job, uint8_t *base)
{
    uint64_t cols = job->stored.cols, used = 0;
    void *stored = mp_scratch_take(base, &used, mp_stored_scratch(&job->stored));

    job->codes = mp_scratch_take(base, &used, TILE_ROWS * cols * sizeof(uint16_t));
    job->scales =
        mp_scratch_take(base, &used, TILE_ROWS * (mp_ceil_div(cols, 16) + 1) * sizeof(float));
    if (base)
        mp_stored_init(&job->stored, stored);
    return used;
}

/* Bytes for a matrix of any expert: routed ones are alike, and so are shared ones. */
static int part_bytes(const mp_catalog_experts *e, mp_projection projection, uint64_t *bytes,
                      mp_error *err)
{
    matrix_job job;

    if (find_matrix(e, 0, projection, &job, err) != 0)
        return err->code;
    *bytes = lay_out(&job, NULL);
    if (e->source.count > e->layer->num_experts) {
        if (find_matrix(e, e->layer->num_experts, projection, &job, err) != 0)
            return err->code;
        *bytes = mp_max_u64(*bytes, lay_out(&job, NULL));
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Reading
 */

static int requantize(const mp_catalog_experts *e, const matrix_job *job, uint32_t id,
                      mp_projection projection, mp_rectangle at, mp_rows *out, mp_error *err)
{
    mp_quant_options quant = e->options.quant;

    quant.global_scale = e->global ? e->global[id * MP_PROJECTIONS + projection] : 1;
    *out = mp_scheme_rows(job->to, at.row0, at.rows, at.cols);
    out->weight = job->codes;
    out->scale = job->scales;
    out->global_scale = quant.global_scale;
    return mp_stored_convert(&job->stored, at, job->to, &quant, job->codes, job->scales, NULL, err);
}

static int read_part(const mp_catalog_experts *e, uint32_t id, mp_projection projection,
                     uint64_t row0, uint64_t rows, uint8_t *scratch, mp_rows *out, mp_error *err)
{
    matrix_job job;

    if (find_matrix(e, id, projection, &job, err) != 0)
        return err->code;
    lay_out(&job, scratch);
    if (mp_stored_begin(&job.stored, err) != 0)
        return err->code;

    const mp_rectangle at = {row0, rows, 0, job.stored.cols};
    return job.to == MP_SCHEME_COUNT ? mp_stored_rows(&job.stored, at, out, err)
                                     : requantize(e, &job, id, projection, at, out, err);
}

static int read_side(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                     void *scratch, mp_rows part[2], mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_catalog_experts *e = user;
    uint8_t *second = (uint8_t *)scratch + e->source.scratch_bytes / 2;

    if (side == MP_L2)
        return read_part(e, id, MP_DOWN, row0, rows, scratch, &part[0], err);
    int rc = read_part(e, id, MP_GATE, row0, rows, scratch, &part[0], err);
    return rc == 0 ? read_part(e, id, MP_UP, row0, rows, second, &part[1], err) : rc;
}

/* ------------------------------------------------------------------------
 * Biases
 */

/* Numbers that are read at once. */
#define PIECE 1024

/* One number a row; of fused tensors those of all experts, gate and up as in the weights. */
static int read_bias(const void *user, uint32_t id, mp_projection projection, float *out,
                     mp_error *err)
{
    err = MP_NEVER_NULL(err);
    matrix_job job;
    uint8_t piece[PIECE * sizeof(float)];

    if (find_matrix(user, id, projection, &job, err) != 0)
        return err->code;
    const mp_tensor *bias = job.stored.matrix->bias;
    uint64_t all = job.stored.rows;

    memset(out, 0, all * sizeof *out);
    /* An expert without one has zeros, as another of the layer may have one. */
    if (!bias || bias->rank == 0)
        return 0;
    if (bias->dtype != MP_F32 && bias->dtype != MP_BF16 && bias->dtype != MP_F16)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s, expected F32, BF16 or F16", bias->name,
                       mp_dtype_name(bias->dtype));
    for (uint64_t row = 0; row < all; row += PIECE) {
        uint64_t rows = all - row < PIECE ? all - row : PIECE;

        if (mp_stored_bias(&job.stored, row, rows, piece, err) != 0)
            return err->code;
        mp_scales_convert(bias->dtype, piece, rows, MP_F32, out + row);
    }
    return 0;
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

/* Gate and up of an expert share one. */
static int choose_global(const mp_catalog_experts *e, uint32_t id, mp_side side, void *scratch,
                         mp_error *err)
{
    mp_projection first = mp_side_first(side);
    unsigned parts = mp_side_parts(side);
    matrix_job job[2] = {0};
    mp_stored_matrix stored[2];
    mp_second_scale scale;

    for (unsigned part = 0; part < parts; part++) {
        if (find_matrix(e, id, first + part, &job[part], err) != 0)
            return err->code;
        /* Stored as nvfp4, it keeps the scale that it has. Both parts are stored alike. */
        if (job[part].to != MP_SCHEME_NVFP4)
            return 0;
        /* Both in the same scratch: they are looked through in turn, and beginning leaves nothing
         * there. */
        lay_out(&job[part], scratch);
        if (mp_stored_begin(&job[part].stored, err) != 0)
            return err->code;
        stored[part] = job[part].stored;
    }
    if (mp_stored_second_scale(stored, parts, e->options.quant.allow_nonfinite, &scale, err) != 0)
        return err->code;
    for (unsigned part = 0; part < parts; part++)
        e->global[id * MP_PROJECTIONS + first + part] = mp_second_scale_multiplier(scale);
    return 0;
}

static int choose_globals(void *user, uint64_t id, void *scratch, mp_error *err)
{
    for (mp_side side = MP_L1; side <= MP_L2; side++)
        if (choose_global(user, (uint32_t)id, side, scratch, err) != 0)
            return err->code;
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

static int check_matrices(const mp_catalog_experts *e, mp_error *err)
{
    for (uint32_t id = 0; id < e->source.count; id++)
        for (mp_projection p = MP_GATE; p < MP_PROJECTIONS; p++) {
            matrix_job job;

            if (find_matrix(e, id, p, &job, err) != 0 || mp_stored_check(&job.stored, err) != 0)
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
    uint64_t gate = 0, down = 0;
    int rc = part_bytes(experts, MP_GATE, &gate, err);
    if (rc == 0)
        rc = part_bytes(experts, MP_DOWN, &down, err);
    /* Halved by read_side: each half stays aligned to 64. */
    experts->source.scratch_bytes = mp_round_up(mp_max_u64(2 * gate, down), 128);
    if (rc == 0)
        rc = check_matrices(experts, err);
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
