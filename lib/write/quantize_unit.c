/* SPDX-License-Identifier: Apache-2.0 */
/* Units of requantizing: a matrix read, requantized and written in tiles of rows, and bytes that
 * are copied.
 *
 *   tile:  read stored rows -> convert (numeric) -> write codes, write scales
 *   end:   second scale, activation's scale, bias
 *
 * Tiles are whole blocks of scales high, so that no scale needs rows of two. The second scale of
 * nvfp4 has to be known before the first code: it is taken from gate and up both, in a pass of its
 * own, so each of the two units reads the other's matrix too and both come to the same number.
 *
 * What is written goes to places of its own, so units need not know of each other; scratch is a
 * thread's. */
#include "write/quantize.h"

#include "base/arena.h"
#include "base/error.h"
#include "base/words.h"
#include "checkpoint/form.h"
#include "checkpoint/matrix.h"
#include "checkpoint/tensor.h"
#include "experts/stored.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"

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
    mp_stored_matrix from;
    mp_scheme scheme; /* that is written */
    mp_outputs *outputs;
    mp_quant_stats *stats;
    mp_second_scale global; /* of nvfp4: of what is written */
    bool powers;            /* float32 scales are written as F8_E8M0 */
    uint8_t *codes, *scales, *exponents;
} job;

static uint64_t scale_row_bytes(mp_scheme scheme, uint64_t cols)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);

    return form->has_scale
               ? mp_ceil_div(cols, form->block_cols) * mp_dtype_bits(form->scale_dtype) / 8
               : 0;
}

static uint64_t lay_out(job *j, uint8_t *base)
{
    mp_stored_matrix *from = &j->from;
    uint64_t scale_row = scale_row_bytes(j->scheme, from->cols);
    uint64_t row = mp_scheme_row_bytes(j->scheme, from->cols);
    uint64_t group = tile_group(j->scheme), used = 0, tiles;
    uint64_t bytes = mp_fusion_is_transposed(from->storage->fusion) ? TRANSPOSED_BYTES : TILE_BYTES;
    void *stored;

    /* At least one group of rows, however long these are. */
    tiles = bytes / mp_max_u64(mp_storage_row_bytes(from->storage, from->cols), row) / group;
    from->tile_rows = mp_max_u64(tiles, 1) * group;
    if (from->tile_rows > from->rows)
        from->tile_rows = from->rows;
    stored = mp_scratch_take(base, &used, mp_stored_scratch(from));
    if (base)
        mp_stored_init(from, stored);
    tiles = mp_ceil_div(from->tile_rows, group);
    j->codes = mp_scratch_take(base, &used, from->tile_rows * row);
    j->scales = mp_scratch_take(base, &used, tiles * scale_row);
    /* A byte for each float32. */
    j->exponents = mp_scratch_take(base, &used, j->powers ? tiles * scale_row / 4 : 0);
    return used;
}

static const mp_matrix *matrix_of(const job *j)
{
    return j->from.matrix;
}

static job job_of(const mp_quantize_plan *plan, const mp_quantize_unit *unit)
{
    const mp_form_tensor *scale = mp_form_find(unit->form, unit->projection, MP_ROLE_SCALE);
    const mp_catalog *catalog = plan->catalog;
    uint64_t hidden = catalog->hidden_size, width = catalog->moe_intermediate_size;
    uint64_t cols;

    if (unit->shared)
        width *= catalog->num_shared_experts;
    cols = unit->projection == MP_DOWN ? width : hidden;
    return (job){
        .plan = plan,
        .unit = unit,
        .from = {.catalog = catalog,
                 .storage = unit->storage,
                 .matrix = &unit->expert->matrix[unit->projection],
                 .rows = unit->projection == MP_DOWN ? hidden : width,
                 .cols = cols,
                 .tile_cols = cols},
        .scheme = plan->options.scheme,
        .global = {.value = 1},
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

        bytes = mp_max_u64(bytes, lay_out(&j, NULL));
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
        bytes = mp_max_u64(bytes, expert_scratch(plan, layer, 0));
        bytes =
            mp_max_u64(bytes, expert_scratch(plan, layer, layer->expert_units - MP_PROJECTIONS));
    }
    return bytes;
}

/* Gate and up of an expert share the second scale: both are looked at for either. It stays as it
 * is stored where the form stores it in the same way. */
static int choose_global(job *j, mp_error *err)
{
    const mp_matrix *matrix = j->unit->expert->matrix;
    bool down = j->unit->projection == MP_DOWN;
    mp_projection first = down ? MP_DOWN : matrix[MP_GATE].weight ? MP_GATE : MP_UP;
    unsigned count = down || first == MP_UP ? 1 : 2;
    /* Both in this unit's scratch: they are looked through in turn. */
    mp_stored_matrix all[2] = {j->from, j->from};

    for (unsigned i = 0; i < count; i++) {
        all[i].matrix = &matrix[first + i];
        if (mp_stored_begin(&all[i], err) != 0)
            return err->code;
    }
    return mp_stored_second_scale(all, count, j->plan->options.quant.allow_nonfinite, &j->global,
                                  err);
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

/* Scales of `rows` rows of blocks from `row` on. */
static int write_scales(const job *j, uint64_t row, uint64_t rows, mp_error *err)
{
    uint64_t row_bytes = scale_row_bytes(j->scheme, j->from.cols);
    const void *scales = j->scales;

    if (j->powers) {
        row_bytes /= sizeof(float);
        scales = j->exponents;
        if (!mp_scales_convert(MP_F32, j->scales, rows * row_bytes, MP_F8_E8M0, j->exponents))
            return mp_fail(err, MP_ERR_INPUT, "%s: a scale that is not a power of two",
                           matrix_of(j)->weight->name);
    }
    return write_to(j, MP_WRITTEN_SCALE, row * row_bytes, scales, rows * row_bytes, err);
}

static int requantize_tile(const job *j, const mp_quant_options *options, uint64_t row0,
                           uint64_t rows, mp_error *err)
{
    uint64_t row_bytes = mp_scheme_row_bytes(j->scheme, j->from.cols);
    uint64_t group = tile_group(j->scheme);
    bool has_scale = mp_scheme_form_of(j->scheme)->has_scale;

    if (mp_stored_convert(&j->from, (mp_rectangle){row0, rows, 0, j->from.cols}, j->scheme, options,
                          j->codes, has_scale ? j->scales : NULL,
                          j->unit->lossless ? NULL : j->stats, err) != 0)
        return err->code;
    if (write_to(j, MP_WRITTEN_WEIGHT, row0 * row_bytes, j->codes, rows * row_bytes, err) != 0)
        return err->code;
    return has_scale ? write_scales(j, row0 / group, mp_ceil_div(rows, group), err) : 0;
}

/* As the form stores it. */
static int write_global(const job *j, mp_error *err)
{
    float value = j->global.value;

    if (j->unit->form->global_divides != j->global.divides)
        value = 1 / value;
    return write_to(j, MP_WRITTEN_GLOBAL, 0, &value, sizeof value, err);
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
    if (j->unit->form->global_divides != j->from.storage->global_divides)
        scale = 1 / scale;
    return write_to(j, MP_WRITTEN_INPUT_SCALE, 0, &scale, sizeof scale, err);
}

/* One number a row, from where the rows come from. */
static int write_bias(const job *j, mp_error *err)
{
    const mp_tensor *bias = matrix_of(j)->bias;
    uint64_t all = j->from.rows, width, most;
    uint8_t piece[PIECE_BYTES];

    if (j->unit->outputs[MP_WRITTEN_BIAS] == UINT32_MAX)
        return 0;
    width = mp_dtype_bits(bias->dtype) / 8;
    most = PIECE_BYTES / width;
    for (uint64_t row = 0; row < all; row += most) {
        uint64_t rows = all - row < most ? all - row : most;

        if (mp_stored_bias(&j->from, row, rows, piece, err) != 0 ||
            write_to(j, MP_WRITTEN_BIAS, row * width, piece, rows * width, err) != 0)
            return err->code;
    }
    return 0;
}

int mp_quantize_matrix(const mp_quantize_plan *plan, const mp_quantize_unit *unit,
                       mp_outputs *outputs, void *scratch, mp_quant_stats *stats, mp_error *err)
{
    mp_quant_options options = plan->options.quant;
    job j = job_of(plan, unit);

    if (!matrix_of(&j)->weight) /* an expert without a gate */
        return 0;
    j.outputs = outputs;
    j.stats = stats;
    lay_out(&j, scratch);
    if (mp_stored_check(&j.from, err) != 0 || mp_stored_begin(&j.from, err) != 0)
        return err->code;
    if (j.scheme == MP_SCHEME_NVFP4 && choose_global(&j, err) != 0)
        return err->code;
    options.global_scale = mp_second_scale_multiplier(j.global);
    options.row_scales = NULL;
    /* Only powers of two can be written in a byte; write_scales refuses others all the same. */
    options.ue8m0 |= j.powers;
    for (uint64_t row = 0, step = j.from.tile_rows; row < j.from.rows; row += step) {
        uint64_t rows = j.from.rows - row < step ? j.from.rows - row : step;

        if (requantize_tile(&j, &options, row, rows, err) != 0)
            return err->code;
    }
    if (write_global(&j, err) != 0 || write_input_scale(&j, err) != 0 || write_bias(&j, err) != 0)
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
