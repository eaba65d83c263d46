/* SPDX-License-Identifier: Apache-2.0 */
/* One unit of unpacking: a side of an expert out of its slot, tile by tile, into the tensors
 * that a checkpoint has for it. */
#include "write/unpack.h"

#include "base/error.h"
#include "write/plan.h"

#include <string.h>

/* What a unit's functions share. */
typedef struct work_unit {
    const mp_unpack_plan *plan;
    const struct mp_unpack_source *source;
    mp_unpack_unit unit;
    mp_outputs *outputs;
    uint8_t *packed, *first; /* bytes of a slot, and of the first slot */
    uint8_t *matrix[2];      /* a tile of each part, or scales */
    uint8_t *stage;          /* room for both */
} work_unit;

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* ------------------------------------------------------------------------
 * Tiles
 */

/* Where columns are written in pieces, tiles are so large that a piece is worth a call. */
static uint64_t tile_bytes(const mp_unpack_form *f, mp_side side)
{
    bool cols = f->part->target->tiling(&f->part->dims, side).kind == MP_TILES_COLS;

    return cols || mp_fusion_is_transposed(f->form->fusion) ? MP_UNIT_COLS_BYTES
                                                            : MP_UNIT_ROWS_BYTES;
}

/* Tiles that stand for the same rows of gate and of up: one with both parts, or one a part. */
static unsigned tiles_together(const mp_unpack_form *f, mp_side side)
{
    bool apart = f->part->target->tiling(&f->part->dims, side).kind == MP_TILES_ROWS;

    return apart ? mp_side_parts(side) : 1;
}

static mp_tile tile_at(const mp_unpack_form *f, mp_side side, uint64_t index)
{
    return mp_tile_at(f->part->target, &f->part->dims, side, tile_bytes(f, side), index);
}

/* Floats that scales of a part are in any type, at most. */
static uint64_t scale_bytes(const mp_plan_part *part, mp_side side)
{
    const mp_scheme_form *form = mp_scheme_form_of(part->target->scheme);
    uint64_t bytes = mp_target_scale_rows(part->target, &part->dims, side) *
                     mp_target_scale_row_bytes(part->target, &part->dims, side);

    return bytes * 8 / mp_dtype_bits(form->scale_dtype) * sizeof(float);
}

/* Makes room for a side of a form. */
static void measure(struct mp_unpack_source *source, const mp_unpack_form *f, mp_side side)
{
    const mp_plan_part *part = f->part;
    mp_tile tile = tile_at(f, side, 0);
    uint64_t matrix = tile.rows * mp_scheme_row_bytes(part->target->scheme, tile.cols);

    for (unsigned t = 0; t < part->num_tensors; t++)
        if (part->tensors[t].side == side && part->tensors[t].role != MP_ROLE_WEIGHT)
            source->read_bytes = larger(source->read_bytes, part->tensors[t].slot_bytes);
    source->read_bytes = larger(source->read_bytes, tile.bytes);
    source->matrix_bytes = larger(source->matrix_bytes, larger(matrix, scale_bytes(part, side)));
}

uint64_t mp_unpack_scratch(struct mp_unpack_source *source)
{
    source->read_bytes = source->matrix_bytes = 0;
    for (size_t l = 0; l < source->num_layers; l++) {
        const mp_unpack_layer *layer = &source->layers[l];

        for (unsigned side = 0; side < MP_SIDES; side++) {
            measure(source, &layer->routed, (mp_side)side);
            if (layer->shared.form)
                measure(source, &layer->shared, (mp_side)side);
        }
    }
    source->read_bytes = mp_round_up(source->read_bytes, 64);
    source->matrix_bytes = mp_round_up(source->matrix_bytes, 64);
    return 2 * source->read_bytes + 4 * source->matrix_bytes;
}

static void lay_buffers(work_unit *w, uint8_t *scratch)
{
    const struct mp_unpack_source *source = w->source;

    w->packed = scratch;
    w->first = w->packed + source->read_bytes;
    w->matrix[0] = w->first + source->read_bytes;
    w->matrix[1] = w->matrix[0] + source->matrix_bytes;
    w->stage = w->matrix[1] + source->matrix_bytes;
}

/* ------------------------------------------------------------------------
 * In
 */

static const mp_slot_tensor *tensor_of(const work_unit *w, mp_role role)
{
    return mp_part_tensor(w->unit.form->part, w->unit.side, role);
}

static const mp_tensor *packed_tensor(const work_unit *w, const mp_slot_tensor *tensor)
{
    const mp_plan_part *part = w->unit.form->part;

    return mp_unpack_packed(w->source, w->unit.layer->number, w->unit.from.rank,
                            part->first + (unsigned)(tensor - part->tensors));
}

/* Bytes of a tensor in slot `slot` of those that the unit's expert has. */
static int read_slot(const work_unit *w, const mp_slot_tensor *tensor, uint32_t slot,
                     uint64_t offset, uint64_t n, uint8_t *out, mp_error *err)
{
    const mp_unpack_rank *rank = &w->source->ranks[w->unit.from.rank];
    uint64_t at = (uint64_t)(w->unit.from.slot + slot) * tensor->slot_bytes + offset;

    if (mp_tensor_read(&rank->tensors, packed_tensor(w, tensor), at, n, out, err) != 0)
        return mp_error_prefix(err, "rank %u", rank->number);
    return 0;
}

/* Reads what one matrix has once into w->packed: all slots of a shared expert have to agree. */
static int read_common(const work_unit *w, const mp_slot_tensor *tensor, mp_error *err)
{
    uint64_t n = tensor->slot_bytes;

    if (read_slot(w, tensor, 0, 0, n, w->packed, err) != 0)
        return err->code;
    for (uint32_t s = 1; s < w->unit.form->slots; s++) {
        if (read_slot(w, tensor, s, 0, n, w->first, err) != 0)
            return err->code;
        if (memcmp(w->packed, w->first, n) != 0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: slots 0 and %u of the shared expert differ: they are no "
                           "longer one matrix",
                           packed_tensor(w, tensor)->name, s);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Out
 */

static const mp_out_tensor *output_of(const work_unit *w, const mp_form_tensor *tensor)
{
    const mp_unpack_form *f = w->unit.form;
    uint64_t number = f->first_output + (uint64_t)(tensor - f->form->tensors);

    if (f->form->fusion == MP_FUSION_NONE)
        number += (uint64_t)w->unit.expert * f->form->num_tensors;
    return &w->plan->work.outputs[w->source->order[number]];
}

/* The tensors of a role for the unit's side, as a matrix of `rows` rows of row_bytes. */
static mp_stored stored_as(const work_unit *w, mp_role role, uint64_t rows, uint64_t row_bytes)
{
    const mp_unpack_form *f = w->unit.form;
    mp_stored to = {
        .fusion = f->form->fusion,
        .parts = mp_side_parts(w->unit.side),
        .slice = w->unit.expert,
        .rows = rows,
        .row_bytes = row_bytes,
    };

    for (unsigned p = 0; p < to.parts; p++)
        to.out[p] = output_of(w, mp_form_find(f->form, mp_unpack_matrix(f, w->unit.side, p), role));
    to.width = mp_dtype_bits(to.out[0]->dtype) / 8;
    return to;
}

/* ------------------------------------------------------------------------
 * Weights
 */

/* Reads a tile, or one a part, into w->matrix; returns the last of them in *tile. */
static int read_tiles(const work_unit *w, uint32_t slot, uint64_t index, uint64_t count,
                      mp_tile *tile, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    const mp_slot_tensor *tensor = tensor_of(w, MP_ROLE_WEIGHT);
    unsigned together = tiles_together(f, w->unit.side);

    for (unsigned i = 0; i < together; i++) {
        *tile = tile_at(f, w->unit.side, index + i * count);
        if (read_slot(w, tensor, slot, tile->offset, tile->bytes, w->packed, err) != 0)
            return err->code;
        f->part->target->unpack_weight(
            &f->part->dims, w->unit.side, tile, w->packed,
            (uint8_t *const[2]){w->matrix[tile->part], w->matrix[1 - tile->part]});
    }
    return 0;
}

/* Gate and up of the slots of a shared expert stand below each other, down side by side. */
static int write_weights(const work_unit *w, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    const mp_dims *dims = &f->part->dims;
    const mp_target *target = f->part->target;
    mp_side side = w->unit.side;
    uint64_t rows = mp_side_rows(dims, side), bytes = tile_bytes(f, side);
    uint64_t row_bytes = mp_scheme_row_bytes(target->scheme, mp_side_cols(dims, side));
    uint64_t count = mp_tile_count(target, dims, side, bytes) / tiles_together(f, side);
    bool below = side == MP_L1;
    const mp_stored to = stored_as(w, MP_ROLE_WEIGHT, below ? f->slots * rows : rows,
                                   below ? row_bytes : f->slots * row_bytes);
    mp_tile tile = {0};

    for (uint32_t s = 0; s < f->slots; s++) {
        for (uint64_t i = 0; i < count; i++) {
            uint64_t at;

            if (read_tiles(w, s, i, count, &tile, err) != 0)
                return err->code;
            at = mp_scheme_row_bytes(target->scheme, tile.col0) + (below ? 0 : s * row_bytes);
            if (mp_stored_write(&to, w->outputs, tile.row0 + (below ? s * rows : 0), tile.rows, at,
                                mp_scheme_row_bytes(target->scheme, tile.cols), w->matrix, w->stage,
                                err) != 0)
                return err->code;
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Scales
 */

/* Scales are rows of their own, also of a matrix that is stored transposed. */
static mp_fusion fusion_of_scales(mp_fusion fusion)
{
    if (fusion == MP_FUSION_COLS)
        return MP_FUSION_ROWS;
    return fusion == MP_FUSION_COLS_PAIRED ? MP_FUSION_ROWS_PAIRED : fusion;
}

/* The scales in w->packed, in the type of a checkpoint, into w->matrix. */
static int convert_scales(const work_unit *w, const mp_out_tensor *out, mp_error *err)
{
    const mp_plan_part *part = w->unit.form->part;
    mp_dtype canonical = mp_scheme_form_of(part->target->scheme)->scale_dtype;
    uint64_t bytes = mp_target_scale_rows(part->target, &part->dims, w->unit.side) *
                     mp_target_scale_row_bytes(part->target, &part->dims, w->unit.side);

    part->target->unpack_scale(&part->dims, w->unit.side, w->packed, w->stage);
    for (unsigned p = 0; p < mp_side_parts(w->unit.side); p++)
        if (!mp_scales_convert(canonical, w->stage + p * bytes,
                               bytes * 8 / mp_dtype_bits(canonical), out->dtype, w->matrix[p]))
            return mp_fail(err, MP_ERR_INPUT, "%s: a scale in slot %u that %s cannot hold",
                           packed_tensor(w, tensor_of(w, MP_ROLE_SCALE))->name, w->unit.from.slot,
                           mp_dtype_name(out->dtype));
    return 0;
}

static int write_scales(const work_unit *w, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    const mp_plan_part *part = f->part;
    const mp_slot_tensor *tensor = tensor_of(w, MP_ROLE_SCALE);
    mp_side side = w->unit.side;
    const mp_scheme_form *scheme = mp_scheme_form_of(part->target->scheme);
    uint64_t rows = mp_target_scale_rows(part->target, &part->dims, side), row_bytes;
    bool below = side == MP_L1, common = !below && scheme->block_cols == UINT32_MAX;
    uint32_t slots = common ? 1 : f->slots;
    mp_stored to;

    if (!tensor)
        return 0;
    to = stored_as(w, MP_ROLE_SCALE, below ? slots * rows : rows, 0);
    to.fusion = fusion_of_scales(to.fusion);
    row_bytes = mp_target_scale_row_bytes(part->target, &part->dims, side) * 8 /
                mp_dtype_bits(scheme->scale_dtype) * to.width;
    to.row_bytes = below ? row_bytes : slots * row_bytes;
    for (uint32_t s = 0; s < slots; s++) {
        int rc = common ? read_common(w, tensor, err)
                        : read_slot(w, tensor, s, 0, tensor->slot_bytes, w->packed, err);

        if (rc != 0 || convert_scales(w, to.out[0], err) != 0 ||
            mp_stored_write(&to, w->outputs, below ? s * rows : 0, rows, below ? 0 : s * row_bytes,
                            row_bytes, w->matrix, w->stage, err) != 0)
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Vectors
 */

/* One float of a matrix, which a part has at `p`; gate and up in one tensor have it in common. */
static int write_number(const work_unit *w, const mp_form_tensor *tensor, const float *numbers,
                        unsigned p, mp_error *err)
{
    bool fused = w->unit.form->form->fusion != MP_FUSION_NONE;
    uint64_t at = fused ? w->unit.expert * sizeof *numbers : 0;

    if (fused && mp_side_parts(w->unit.side) == 2 && tensor->role == MP_ROLE_GLOBAL_SCALE &&
        numbers[0] != numbers[1])
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: expert %u has %.9g for gate and %.9g for up, where %s is one for both",
                       w->unit.layer->prefix, w->unit.expert, (double)numbers[0],
                       (double)numbers[1], tensor->name);
    return mp_outputs_write(w->outputs, output_of(w, tensor), at, &numbers[p], sizeof *numbers,
                            err);
}

/* Zero points, one a row. */
static int write_offset(const work_unit *w, const mp_form_tensor *tensor,
                        const mp_slot_tensor *packed, unsigned p, mp_error *err)
{
    uint64_t bytes = packed->slot_bytes / mp_side_parts(w->unit.side);
    uint32_t slots = w->unit.side == MP_L1 ? w->unit.form->slots : 1;

    for (uint32_t s = 0; s < slots; s++) {
        if (slots > 1 && read_slot(w, packed, s, 0, packed->slot_bytes, w->packed, err) != 0)
            return err->code;
        if (mp_outputs_write(w->outputs, output_of(w, tensor), s * bytes, w->packed + p * bytes,
                             bytes, err) != 0)
            return err->code;
    }
    return 0;
}

/* [N, K] of a packed weight. */
static int write_shape(const work_unit *w, const mp_form_tensor *tensor, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    bool below = w->unit.side == MP_L1;
    int64_t wide[2] = {
        (int64_t)(mp_side_rows(&f->part->dims, w->unit.side) * (below ? f->slots : 1)),
        (int64_t)(mp_side_cols(&f->part->dims, w->unit.side) * (below ? 1 : f->slots)),
    };
    int32_t narrow[2] = {(int32_t)wide[0], (int32_t)wide[1]};
    bool is_wide = tensor->dtype == MP_I64;

    return mp_outputs_write(w->outputs, output_of(w, tensor), 0,
                            is_wide ? (const void *)wide : narrow,
                            is_wide ? sizeof wide : sizeof narrow, err);
}

/* A tensor of a form that is neither weight nor scale. */
static int write_other(const work_unit *w, const mp_form_tensor *tensor, unsigned p, mp_error *err)
{
    mp_role role = mp_unpack_role(w->unit.form->form, tensor->role);
    const mp_slot_tensor *packed;

    if (role == MP_ROLE_SHAPE)
        return write_shape(w, tensor, err);
    packed = tensor_of(w, role);
    /* Zero points of L1 are those of its rows, which slots do not share. */
    if (role == MP_ROLE_OFFSET && w->unit.side == MP_L1) {
        if (read_slot(w, packed, 0, 0, packed->slot_bytes, w->packed, err) != 0)
            return err->code;
    } else if (read_common(w, packed, err) != 0) {
        return err->code;
    }
    if (role == MP_ROLE_OFFSET)
        return write_offset(w, tensor, packed, p, err);
    return write_number(w, tensor, (const float *)(const void *)w->packed,
                        role == MP_ROLE_INPUT_SCALE ? 0 : p, err);
}

static int write_others(const work_unit *w, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    unsigned parts = f->form->fusion == MP_FUSION_NONE ? mp_side_parts(w->unit.side) : 1;

    for (unsigned p = 0; p < parts; p++) {
        mp_projection matrix = mp_unpack_matrix(f, w->unit.side, p);

        for (size_t t = 0; t < f->form->num_tensors; t++) {
            const mp_form_tensor *tensor = &f->form->tensors[t];

            if (tensor->matrix != matrix || tensor->role <= MP_ROLE_SCALE)
                continue;
            if (write_other(w, tensor, p, err) != 0)
                return err->code;
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The unit
 */

mp_unpack_unit mp_unpack_unit_at(const mp_unpack_plan *plan, uint64_t index)
{
    const struct mp_unpack_source *source = plan->source;
    const mp_unpack_layer *layer = source->layers;
    const mp_unpack_layer *last = layer + source->num_layers - 1;
    mp_unpack_unit unit;
    uint64_t expert;

    while (layer < last && layer[1].first_unit <= index)
        layer++;
    expert = (index - layer->first_unit) / MP_SIDES;
    unit = (mp_unpack_unit){.layer = layer, .side = (mp_side)(index % MP_SIDES)};
    if (expert < plan->manifest.num_experts) {
        unit.form = &layer->routed;
        unit.expert = (uint32_t)expert;
        unit.from = layer->where[expert];
    } else {
        unit.form = &layer->shared;
        unit.from = layer->where_shared;
    }
    return unit;
}

uint64_t mp_unpack_unit_bytes(const void *user, uint64_t index)
{
    const mp_unpack_plan *plan = user;
    mp_unpack_unit unit = mp_unpack_unit_at(plan, index);
    const mp_unpack_form *f = unit.form;
    const work_unit w = {.plan = plan, .source = plan->source, .unit = unit};
    bool fused = f->form->fusion != MP_FUSION_NONE;
    uint64_t bytes = 0;

    for (size_t t = 0; t < f->form->num_tensors; t++) {
        if ((f->form->tensors[t].matrix == MP_DOWN) == (unit.side == MP_L2))
            bytes += output_of(&w, &f->form->tensors[t])->bytes;
    }
    return fused ? bytes / plan->manifest.num_experts : bytes;
}

static void forget_slots(const work_unit *w)
{
    const mp_plan_part *part = w->unit.form->part;

    for (unsigned t = 0; t < part->num_tensors; t++) {
        const mp_tensor *tensor = packed_tensor(w, &part->tensors[t]);
        uint64_t bytes = part->tensors[t].slot_bytes;

        if (tensor && part->tensors[t].side == w->unit.side)
            mp_tensor_forget(&w->source->ranks[w->unit.from.rank].tensors, tensor,
                             w->unit.from.slot * bytes, w->unit.form->slots * bytes);
    }
}

int mp_unpack_unit_run(const void *user, uint64_t index, mp_outputs *outputs, void *scratch,
                       mp_quant_stats *stats, mp_error *err)
{
    const mp_unpack_plan *plan = user;
    work_unit w = {
        .plan = plan,
        .source = plan->source,
        .unit = mp_unpack_unit_at(plan, index),
        .outputs = outputs,
    };

    (void)stats;
    lay_buffers(&w, scratch);
    if (write_weights(&w, err) != 0 || write_scales(&w, err) != 0 || write_others(&w, err) != 0)
        return err->code;
    forget_slots(&w);
    return 0;
}
