/* SPDX-License-Identifier: Apache-2.0 */
/* One unit: read rows, requantize where asked, lay out, write every copy.
 *
 * Rows go through in tiles, so that memory does not grow with the expert; only the
 * scales of one side, 1/16 of its weights or less, are held whole. */
#include "pack/unit.h"

#include "base/error.h"

#include <string.h>

/* Wanted size of a tile of source rows: in cache, and worth a system call. */
#define TILE_BYTES (256u << 10)

/* Where everything lies in a thread's scratch, for one side of a layer. */
typedef struct buffers {
    uint64_t tile_rows; /* of the target's tensor */
    uint8_t *raw;       /* source rows of one projection */
    uint8_t *raw_scale; /* and the scale rows that cover them */
    uint8_t *gate, *up; /* canonical rows */
    uint8_t *packed;    /* a tile of the target's tensor */
    uint8_t *scale;     /* canonical scales of the side, whole */
    uint8_t *packed_scale;
    uint8_t *work; /* of mp_requantize */
    uint64_t total;
} buffers;

/* What a unit's functions share. */
typedef struct job {
    const mp_plan *plan;
    const mp_unit *unit;
    const mp_storage *storage;
    const mp_expert *expert;
    mp_outputs *outputs;
    mp_quant_stats *stats;
    buffers at;
    uint64_t rows, cols; /* canonical, of the side */
    uint64_t row_bytes;  /* in the target's scheme */
    uint64_t scale_row_bytes;
} job;

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Takes n bytes, 64-byte aligned, from the scratch; with a null base only counts. */
static uint8_t *take(buffers *at, uint8_t *base, uint64_t n)
{
    uint8_t *p = base ? base + at->total : NULL;

    at->total += mp_round_up(n, 64);
    return p;
}

static buffers lay_buffers(const mp_plan *plan, const mp_plan_layer *layer, mp_side side,
                           uint8_t *base)
{
    const mp_target *target = plan->options.target;
    const mp_storage *storage = &layer->source->storage;
    uint64_t cols = mp_side_cols(&plan->dims, side), rows = mp_side_rows(&plan->dims, side);
    uint64_t group = side == MP_L1 ? target->l1_row_group : 1;
    uint64_t raw_row = mp_storage_row_bytes(storage, cols);
    uint64_t row = mp_scheme_row_bytes(target->scheme, cols);
    uint64_t tile = TILE_BYTES / max_u64(raw_row, row) / group * group;
    uint64_t scale_rows;
    buffers at = {0};

    at.tile_rows = tile < group ? group : tile;
    if (at.tile_rows > rows)
        at.tile_rows = rows;
    scale_rows = mp_ceil_div(at.tile_rows, storage->block_rows) + 1;
    at.raw = take(&at, base, at.tile_rows * raw_row);
    at.raw_scale = take(&at, base, scale_rows * mp_storage_scale_row_bytes(storage, cols));
    at.gate = take(&at, base, at.tile_rows * row);
    at.up = take(&at, base, at.tile_rows * row);
    at.packed = take(&at, base, at.tile_rows * row);
    at.scale = take(&at, base, rows * mp_target_scale_row_bytes(target, cols));
    at.packed_scale =
        take(&at, base, rows * mp_round_up(mp_target_scale_row_bytes(target, cols), 4));
    at.work = take(&at, base, layer->lossless ? 0 : mp_requantize_scratch(cols));
    return at;
}

uint64_t mp_unit_scratch(const mp_plan *plan)
{
    uint64_t bytes = 0;

    for (size_t l = 0; l < plan->num_layers; l++)
        for (int side = 0; side < MP_SIDES; side++)
            bytes = max_u64(bytes, lay_buffers(plan, &plan->layers[l], (mp_side)side, NULL).total);
    return bytes;
}

/* ------------------------------------------------------------------------
 * In
 */

/* A scale that passes through is not decoded, but it must not be NaN. */
static int check_exponents(const job *j, const mp_matrix *matrix, uint64_t row0, uint64_t rows,
                           const uint8_t *scales, mp_error *err)
{
    uint64_t n = rows * j->scale_row_bytes;
    const uint8_t *nan = memchr(scales, 0xff, n);

    if (!nan || j->plan->options.quant.allow_nonfinite)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: row %llu, column %llu: exponent 255 is NaN",
                   matrix->scale->name,
                   (unsigned long long)(row0 + (uint64_t)(nan - scales) / j->scale_row_bytes),
                   (unsigned long long)((uint64_t)(nan - scales) % j->scale_row_bytes));
}

static int requantize(const job *j, const mp_matrix *matrix, uint64_t row0, uint64_t rows,
                      uint8_t *codes, uint8_t *scales, mp_error *err)
{
    const mp_storage *storage = j->storage;
    mp_rows in = {
        .scheme = storage->scheme,
        .scale_dtype = storage->scale_dtype,
        .block_rows = storage->block_rows,
        .block_cols = storage->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = j->cols,
        .global_divides = storage->global_divides,
        .weight = j->at.raw,
        .scale = storage->has_scale ? j->at.raw_scale : NULL,
    };

    if (mp_matrix_global(j->plan->catalog, matrix, &in.global_scale, err) != 0 ||
        mp_matrix_check_offset(j->plan->catalog, matrix, err) != 0 ||
        mp_matrix_read_rows(j->plan->catalog, storage, matrix, j->cols, row0, rows, j->at.raw,
                            j->at.raw_scale, err) != 0)
        return err->code;
    if (mp_requantize(&in, j->plan->options.target->scheme, &j->plan->options.quant, codes, scales,
                      j->at.work, j->stats, err) != 0)
        return mp_error_prefix(err, "%s", matrix->weight->name);
    return 0;
}

/* Canonical rows of one projection. scales: where its row 0 goes. */
static int read_rows(const job *j, mp_projection projection, uint64_t row0, uint64_t rows,
                     uint8_t *codes, uint8_t *scales, mp_error *err)
{
    const mp_matrix *matrix = &j->expert->matrix[projection];

    scales += row0 * j->scale_row_bytes;
    if (!j->unit->layer->lossless)
        return requantize(j, matrix, row0, rows, codes, scales, err);
    if (mp_matrix_read_rows(j->plan->catalog, j->storage, matrix, j->cols, row0, rows, codes,
                            scales, err) != 0)
        return err->code;
    return check_exponents(j, matrix, row0, rows, scales, err);
}

/* ------------------------------------------------------------------------
 * Out
 */

/* Writes bytes at the same place of every copy's slot. */
static int write_copies(const job *j, mp_role role, uint64_t offset, const void *data, uint64_t n,
                        mp_error *err)
{
    unsigned tensor = mp_plan_tensor(j->plan, j->unit->side, role);
    uint32_t count;
    const mp_copy *copies = mp_unit_copies(j->unit, &count);

    for (uint32_t c = 0; c < count; c++) {
        const mp_out_tensor *out =
            mp_plan_output(j->plan, j->unit->layer_index, copies[c].rank, tensor);
        uint64_t at = copies[c].slot * out->slot->slot_bytes + offset;

        if (mp_outputs_write(j->outputs, out, at, data, n, err) != 0)
            return err->code;
    }
    return 0;
}

static int pack_l1_tile(const job *j, uint64_t row0, uint64_t rows, mp_error *err)
{
    const mp_target *target = j->plan->options.target;
    uint8_t *up_scale = j->at.scale + j->rows / 2 * j->scale_row_bytes;

    if (read_rows(j, MP_GATE, row0 / 2, rows / 2, j->at.gate, j->at.scale, err) != 0 ||
        read_rows(j, MP_UP, row0 / 2, rows / 2, j->at.up, up_scale, err) != 0)
        return err->code;
    target->pack_weight(&j->plan->dims, MP_L1, row0, rows, j->at.gate, j->at.up, j->at.packed);
    return write_copies(j, MP_ROLE_WEIGHT, row0 * j->row_bytes, j->at.packed, rows * j->row_bytes,
                        err);
}

static int pack_l2_tile(const job *j, uint64_t row0, uint64_t rows, mp_error *err)
{
    const mp_target *target = j->plan->options.target;
    const uint8_t *packed = j->at.gate;

    if (read_rows(j, MP_DOWN, row0, rows, j->at.gate, j->at.scale, err) != 0)
        return err->code;
    if (!target->l2_weight_unchanged) {
        target->pack_weight(&j->plan->dims, MP_L2, row0, rows, j->at.gate, NULL, j->at.packed);
        packed = j->at.packed;
    }
    return write_copies(j, MP_ROLE_WEIGHT, row0 * j->row_bytes, packed, rows * j->row_bytes, err);
}

static int pack_scales(const job *j, mp_error *err)
{
    unsigned tensor = mp_plan_tensor(j->plan, j->unit->side, MP_ROLE_SCALE);

    if (tensor == j->plan->num_tensors)
        return 0;
    j->plan->options.target->pack_scale(&j->plan->dims, j->unit->side, j->at.scale,
                                        j->at.packed_scale);
    return write_copies(j, MP_ROLE_SCALE, 0, j->at.packed_scale,
                        j->plan->tensors[tensor].slot_bytes, err);
}

static void forget_sources(const job *j)
{
    const mp_catalog *catalog = j->plan->catalog;

    if (j->unit->side == MP_L2) {
        mp_matrix_forget(catalog, &j->expert->matrix[MP_DOWN]);
    } else {
        mp_matrix_forget(catalog, &j->expert->matrix[MP_GATE]);
        mp_matrix_forget(catalog, &j->expert->matrix[MP_UP]);
    }
}

int mp_unit_run(const mp_plan *plan, const mp_unit *unit, mp_outputs *outputs, void *scratch,
                mp_quant_stats *stats, mp_error *err)
{
    const mp_moe_layer *source = unit->layer->source;
    job j = {
        .plan = plan,
        .unit = unit,
        .storage = &source->storage,
        .expert = &source->experts[unit->expert],
        .outputs = outputs,
        .stats = stats,
        .at = lay_buffers(plan, unit->layer, unit->side, scratch),
        .rows = mp_side_rows(&plan->dims, unit->side),
        .cols = mp_side_cols(&plan->dims, unit->side),
    };

    j.row_bytes = mp_scheme_row_bytes(plan->options.target->scheme, j.cols);
    j.scale_row_bytes = mp_target_scale_row_bytes(plan->options.target, j.cols);
    for (uint64_t row = 0; row < j.rows; row += j.at.tile_rows) {
        uint64_t rows = j.rows - row < j.at.tile_rows ? j.rows - row : j.at.tile_rows;
        int rc = unit->side == MP_L1 ? pack_l1_tile(&j, row, rows, err)
                                     : pack_l2_tile(&j, row, rows, err);

        if (rc != 0)
            return rc;
    }
    if (pack_scales(&j, err) != 0)
        return err->code;
    forget_sources(&j);
    return 0;
}
