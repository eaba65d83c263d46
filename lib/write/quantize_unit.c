/* SPDX-License-Identifier: Apache-2.0 */
/* Units of requantizing: a matrix read, requantized and written in tiles of rows, and bytes
 * that are copied. */
#include "write/quantize.h"

#include "base/error.h"
#include "checkpoint/form.h"
#include "experts/stored.h"

#include <math.h>
#include <string.h>

/* Wanted size of a tile of stored or written rows. Of transposed tensors, a tile is read
 * column by column, which takes long ones to be worth a system call each. */
#define TILE_BYTES       (512u << 10)
#define TRANSPOSED_BYTES (8u << 20)
#define COPY_BUFFER      (1u << 20)
#define PIECE_BYTES      8192

/* Rows of a tile: a multiple of this, where one scale covers so many. */
static uint64_t tile_group(mp_scheme scheme)
{
    return mp_scheme_form_of(scheme)->block_rows;
}

/* A matrix on its way, and where everything lies in the thread's scratch. */
typedef struct job {
    const mp_quantize_plan *plan;
    const mp_quantize_unit *unit;
    const mp_storage *storage;
    mp_scheme scheme; /* that is written */
    uint64_t rows, cols;
    uint64_t tile_rows;
    mp_outputs *outputs;
    mp_quant_stats *stats;
    float multiplier; /* of nvfp4: the second scale of what is written */
    float stored;     /* the same as it is stored */
    bool powers;      /* float32 scales are written as F8_E8M0 */
    uint8_t *raw, *raw_scale, *codes, *scales, *exponents, *work;
} job;

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t scale_row_bytes(mp_scheme scheme, uint64_t cols)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);

    return form->has_scale
               ? mp_ceil_div(cols, form->block_cols) * mp_dtype_bits(form->scale_dtype) / 8
               : 0;
}

/* Takes n bytes, 64-byte aligned, from the scratch; with a null base only counts. */
static uint8_t *take(uint8_t *base, uint64_t *used, uint64_t n)
{
    uint8_t *p = base ? base + *used : NULL;

    *used += mp_round_up(n, 64);
    return p;
}

static uint64_t lay_out(job *j, uint8_t *base)
{
    uint64_t raw_row = mp_storage_row_bytes(j->storage, j->cols);
    uint64_t scale_row = scale_row_bytes(j->scheme, j->cols);
    uint64_t row = mp_scheme_row_bytes(j->scheme, j->cols);
    uint64_t group = tile_group(j->scheme), used = 0, tiles, scale_rows;
    uint64_t bytes = mp_fusion_is_transposed(j->storage->fusion) ? TRANSPOSED_BYTES : TILE_BYTES;

    tiles = bytes / larger(raw_row, row) / group;
    j->tile_rows = larger(tiles, 1) * group;
    if (j->tile_rows > j->rows)
        j->tile_rows = j->rows;
    scale_rows = mp_ceil_div(j->tile_rows, j->storage->block_rows) + 1;
    j->raw = take(base, &used, j->tile_rows * raw_row);
    j->raw_scale = take(base, &used, scale_rows * mp_storage_scale_row_bytes(j->storage, j->cols));
    j->codes = take(base, &used, j->tile_rows * row);
    j->scales = take(base, &used, mp_ceil_div(j->tile_rows, group) * scale_row);
    j->exponents =
        take(base, &used, j->powers ? mp_ceil_div(j->tile_rows, group) * scale_row / 4 : 0);
    j->work = take(base, &used, mp_requantize_scratch(j->cols));
    return used;
}

static job job_of(const mp_quantize_plan *plan, const mp_quantize_unit *unit)
{
    const mp_form_tensor *scale = mp_form_find(unit->form, unit->projection, MP_ROLE_SCALE);
    const mp_catalog *catalog = plan->catalog;
    uint64_t hidden = catalog->hidden_size, width = catalog->moe_intermediate_size;

    if (unit->shared)
        width *= catalog->num_shared_experts;
    return (job){
        .plan = plan,
        .unit = unit,
        .storage = unit->storage,
        .scheme = plan->options.scheme,
        .rows = unit->projection == MP_DOWN ? hidden : width,
        .cols = unit->projection == MP_DOWN ? width : hidden,
        .multiplier = 1,
        .stored = 1,
        .powers = scale && scale->dtype == MP_F8_E8M0 &&
                  mp_scheme_form_of(plan->options.scheme)->scale_dtype == MP_F32,
    };
}

/* Of the three matrices of an expert, from unit `first` of a layer on. */
static uint64_t expert_scratch(const mp_quantize_plan *plan, const mp_quantize_layer *layer,
                               uint64_t first)
{
    uint64_t bytes = 0;

    for (uint64_t u = first; u < first + MP_PROJECTIONS; u++) {
        mp_quantize_unit unit = mp_quantize_unit_of(plan, layer, u);
        job j = job_of(plan, &unit);

        bytes = larger(bytes, lay_out(&j, NULL));
    }
    return bytes;
}

/* Experts of a layer are alike, so the first and the last, which may be shared, stand for all. */
uint64_t mp_quantize_scratch(const mp_quantize_plan *plan)
{
    uint64_t bytes = COPY_BUFFER;

    for (size_t i = 0; i < plan->num_layers; i++) {
        const mp_quantize_layer *layer = &plan->layers[i];

        if (layer->expert_units == 0)
            continue;
        bytes = larger(bytes, expert_scratch(plan, layer, 0));
        bytes = larger(bytes, expert_scratch(plan, layer, layer->expert_units - MP_PROJECTIONS));
    }
    return bytes;
}

/* ------------------------------------------------------------------------
 * Reading
 */

/* The second scale of a matrix as a multiplier, and as it is stored. */
static int read_global(const job *j, const mp_matrix *matrix, float *multiplier, float *stored,
                       mp_error *err)
{
    int rc = mp_matrix_global(j->plan->catalog, matrix, stored, err);

    *multiplier = j->storage->global_divides ? 1 / *stored : *stored;
    return rc;
}

/* Rows of a matrix; its second scale is a multiplier. */
static int read_rows(const job *j, const mp_matrix *matrix, uint64_t row0, uint64_t rows,
                     mp_rows *in, mp_error *err)
{
    const mp_storage *s = j->storage;
    float stored;

    *in = mp_stored_rows(s, row0, rows, j->cols, j->raw, j->raw_scale);
    in->global_divides = false; /* read_global gives a multiplier */
    if (read_global(j, matrix, &in->global_scale, &stored, err) != 0)
        return err->code;
    return mp_matrix_read_rows(j->plan->catalog, s, matrix, j->cols, row0, rows, j->raw,
                               j->raw_scale, err);
}

/* ------------------------------------------------------------------------
 * The second scale of nvfp4
 */

static uint64_t tile_at(const job *j, uint64_t row0)
{
    return j->rows - row0 < j->tile_rows ? j->rows - row0 : j->tile_rows;
}

static int find_amax(const job *j, const mp_matrix *matrix, float *amax, mp_error *err)
{
    for (uint64_t row = 0; row < j->rows; row += j->tile_rows) {
        mp_rows in;
        float one;

        if (read_rows(j, matrix, row, tile_at(j, row), &in, err) != 0)
            return err->code;
        if (mp_rows_amax(&in, j->plan->options.quant.allow_nonfinite, j->work, &one, err) != 0)
            return mp_error_prefix(err, "%s", matrix->weight->name);
        *amax = fmaxf(*amax, one);
    }
    return 0;
}

/* The largest exponent byte that is not NaN; what is, is refused where it is requantized. */
static int find_exponent(const job *j, const mp_matrix *matrix, uint8_t *largest, mp_error *err)
{
    for (uint64_t row = 0; row < j->rows; row += j->tile_rows) {
        uint64_t rows = tile_at(j, row);
        uint64_t count = rows * mp_storage_scale_row_bytes(j->storage, j->cols);

        if (mp_matrix_read_rows(j->plan->catalog, j->storage, matrix, j->cols, row, rows, NULL,
                                j->raw_scale, err) != 0)
            return err->code;
        for (uint64_t i = 0; i < count; i++)
            if (j->raw_scale[i] > *largest && j->raw_scale[i] != UINT8_MAX)
                *largest = j->raw_scale[i];
    }
    return 0;
}

/* The larger second scale of matrices that are nvfp4 already. It stays as it is stored where
 * the form stores it in the same way. */
static int keep_global(job *j, const mp_matrix *first, unsigned count, mp_error *err)
{
    j->multiplier = 0;
    for (unsigned m = 0; m < count; m++) {
        float multiplier, stored;

        if (read_global(j, &first[m], &multiplier, &stored, err) != 0)
            return err->code;
        if (multiplier > j->multiplier) {
            j->multiplier = multiplier;
            j->stored = stored;
        }
    }
    if (j->unit->form->global_divides != j->storage->global_divides)
        j->stored = j->unit->form->global_divides ? 1 / j->multiplier : j->multiplier;
    return 0;
}

/* Gate and up of an expert share the second scale. */
static int choose_global(job *j, mp_error *err)
{
    bool down = j->unit->projection == MP_DOWN, exact = j->storage->scheme == MP_SCHEME_MXFP4;
    const mp_matrix *first = &j->unit->expert->matrix[down ? MP_DOWN : MP_GATE];
    unsigned count = down ? 1 : 2;
    uint8_t largest = 0;
    float amax = 0;

    if (j->storage->scheme == MP_SCHEME_NVFP4)
        return keep_global(j, first, count, err);
    for (unsigned m = 0; m < count; m++)
        if ((exact ? find_exponent(j, &first[m], &largest, err)
                   : find_amax(j, &first[m], &amax, err)) != 0)
            return err->code;
    j->multiplier = exact ? mp_nvfp4_global_exact(largest) : mp_nvfp4_global(amax);
    if (j->multiplier == 0)
        j->multiplier = 1; /* of zeros; readers want it positive */
    j->stored = j->unit->form->global_divides ? 1 / j->multiplier : j->multiplier;
    return 0;
}

/* ------------------------------------------------------------------------
 * Writing
 */

static int write_to(const job *j, mp_written what, uint64_t offset, const void *data, uint64_t n,
                    mp_error *err)
{
    uint32_t output = j->unit->outputs[what];

    if (output == UINT32_MAX)
        return 0;
    return mp_outputs_write(j->outputs, &j->plan->work.outputs[output], offset, data, n, err);
}

static const mp_matrix *matrix_of(const job *j)
{
    return &j->unit->expert->matrix[j->unit->projection];
}

/* Scales of `rows` rows of blocks from `row` on. */
static int write_scales(const job *j, uint64_t row, uint64_t rows, mp_error *err)
{
    uint64_t row_bytes = scale_row_bytes(j->scheme, j->cols);
    const void *scales = j->scales;

    if (j->powers) {
        row_bytes /= sizeof(float);
        scales = j->exponents;
        if (!mp_scales_convert(MP_F32, j->scales, rows * row_bytes, MP_F8_E8M0, j->exponents))
            return mp_fail(err, MP_ERR_INPUT, "%s: a scale that is no power of two",
                           matrix_of(j)->weight->name);
    }
    return write_to(j, MP_WRITTEN_SCALE, row * row_bytes, scales, rows * row_bytes, err);
}

static int requantize_tile(const job *j, const mp_quant_options *options, uint64_t row0,
                           uint64_t rows, mp_error *err)
{
    uint64_t row_bytes = mp_scheme_row_bytes(j->scheme, j->cols), group = tile_group(j->scheme);
    bool has_scale = mp_scheme_form_of(j->scheme)->has_scale;
    mp_rows in;

    if (read_rows(j, matrix_of(j), row0, rows, &in, err) != 0)
        return err->code;
    if (mp_requantize(&in, j->scheme, options, j->codes, has_scale ? j->scales : NULL, j->work,
                      j->unit->lossless ? NULL : j->stats, err) != 0)
        return mp_error_prefix(err, "%s", matrix_of(j)->weight->name);
    if (write_to(j, MP_WRITTEN_WEIGHT, row0 * row_bytes, j->codes, rows * row_bytes, err) != 0)
        return err->code;
    return has_scale ? write_scales(j, row0 / group, mp_ceil_div(rows, group), err) : 0;
}

/* Conventions of activation scales are each other's reciprocals, as those of second scales. */
static int write_input_scale(const job *j, mp_error *err)
{
    const mp_matrix *matrix = matrix_of(j);
    float scale;

    if (j->unit->outputs[MP_WRITTEN_INPUT_SCALE] == UINT32_MAX)
        return 0;
    if (mp_matrix_scalar(j->plan->catalog, matrix, matrix->input_scale, &scale, err) != 0)
        return err->code;
    if (j->unit->form->global_divides != j->storage->global_divides)
        scale = 1 / scale;
    return write_to(j, MP_WRITTEN_INPUT_SCALE, 0, &scale, sizeof scale, err);
}

/* One number a row, from where the rows come from. */
static int write_bias(const job *j, mp_error *err)
{
    const mp_matrix *matrix = matrix_of(j);
    const mp_tensor *bias = matrix->bias;
    uint64_t step = matrix->paired ? 2 : 1, width, slices, first, most;
    uint8_t piece[PIECE_BYTES];

    if (j->unit->outputs[MP_WRITTEN_BIAS] == UINT32_MAX)
        return 0;
    width = mp_dtype_bits(bias->dtype) / 8;
    slices = matrix->weight->rank > 2 ? matrix->weight->shape[0] : 1;
    first = matrix->slice * (bias->bytes / width / slices) + matrix->first;
    most = PIECE_BYTES / (step * width);
    for (uint64_t row = 0; row < j->rows; row += most) {
        uint64_t rows = j->rows - row < most ? j->rows - row : most;

        if (mp_tensor_read(&j->plan->catalog->checkpoint, bias, (first + row * step) * width,
                           ((rows - 1) * step + 1) * width, piece, err) != 0)
            return err->code;
        for (uint64_t r = 1; r < rows; r++)
            memmove(piece + r * width, piece + r * step * width, width);
        if (write_to(j, MP_WRITTEN_BIAS, row * width, piece, rows * width, err) != 0)
            return err->code;
    }
    return 0;
}

int mp_quantize_matrix(const mp_quantize_plan *plan, const mp_quantize_unit *unit,
                       mp_outputs *outputs, void *scratch, mp_quant_stats *stats, mp_error *err)
{
    mp_quant_options options = plan->options.quant;
    job j = job_of(plan, unit);

    j.outputs = outputs;
    j.stats = stats;
    lay_out(&j, scratch);
    if (mp_matrix_check_offset(plan->catalog, matrix_of(&j), err) != 0 ||
        mp_matrix_check_shape(plan->catalog, matrix_of(&j), j.rows, j.cols, err) != 0)
        return err->code;
    if (j.scheme == MP_SCHEME_NVFP4 && choose_global(&j, err) != 0)
        return err->code;
    options.global_scale = j.multiplier;
    options.row_scales = NULL;
    options.ue8m0 |= j.powers;
    for (uint64_t row = 0; row < j.rows; row += j.tile_rows)
        if (requantize_tile(&j, &options, row, tile_at(&j, row), err) != 0)
            return err->code;
    if (write_to(&j, MP_WRITTEN_GLOBAL, 0, &j.stored, sizeof j.stored, err) != 0 ||
        write_input_scale(&j, err) != 0 || write_bias(&j, err) != 0)
        return err->code;
    mp_matrix_forget(plan->catalog, matrix_of(&j));
    return 0;
}

/* ------------------------------------------------------------------------
 * Copies
 */

static int copy_piece(const mp_quantize_plan *plan, const mp_quantize_piece *piece,
                      mp_outputs *outputs, void *buffer, mp_error *err)
{
    const mp_checkpoint *ckpt = &plan->catalog->checkpoint;
    const mp_out_tensor *out = &plan->work.outputs[piece->output];
    uint64_t end = piece->offset + piece->bytes, n;

    for (uint64_t at = piece->offset; at < end; at += n) {
        n = end - at < COPY_BUFFER ? end - at : COPY_BUFFER;
        if (mp_tensor_read(ckpt, piece->from, at, n, buffer, err) != 0 ||
            mp_outputs_write(outputs, out, at, buffer, n, err) != 0)
            return err->code;
    }
    mp_tensor_forget(ckpt, piece->from, piece->offset, piece->bytes);
    return 0;
}

int mp_quantize_copy(const mp_quantize_plan *plan, size_t first, size_t last, mp_outputs *outputs,
                     void *scratch, mp_error *err)
{
    for (size_t i = first; i < last; i++)
        if (copy_piece(plan, &plan->pieces[i], outputs, scratch, err) != 0)
            return err->code;
    return 0;
}
