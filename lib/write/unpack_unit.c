/* SPDX-License-Identifier: Apache-2.0 */
/* One unit of unpacking: a side of an expert, from its slot to where the form has it.
 *
 * A routed expert is in one slot. A shared one may be in several, each with a piece of its width,
 * and comes out as one matrix: gate and up of the slots below each other, down side by side. What a
 * matrix has only once, such as scales of whole rows of down, has to be the same in all slots,
 * which is checked and not assumed.
 *
 *   slot tile -> canonical rows -> mp_stored_write: into a tensor, a fused slice, turned over ...
 *
 * The layout's own inverse undoes the packing; nothing here knows a layout. Scales are converted to
 * the type that the form has; one that this type cannot hold is an error, not rounded.
 *
 * Scratch of a thread, settled by mp_unpack_scratch for the largest unit:
 *
 *   slot | first | vector | scale of part 0 | scale of part 1 | stage (two of matrix_bytes) */
#include "pack/pack.h"
#include "write/unpack.h"

#include "base/error.h"
#include "base/ordered.h"
#include "base/words.h"
#include "experts/packed.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"
#include "write/plan.h"

#include <string.h>

/* What a unit's functions share. */
typedef struct work_unit {
    const mp_unpack_plan *plan;
    mp_unpack_unit unit;
    mp_outputs *outputs;
    mp_packed_side slot; /* the unit's side, of one of its slots */
    uint8_t *first;      /* what the first slot has, where all have to have the same */
    uint8_t *vector;     /* a tensor of a slot that is neither weight nor scale */
    uint8_t *scale[2];   /* of each part, in the type that is written */
    uint8_t *stage;      /* room for a tile of both parts */
} work_unit;

/* ------------------------------------------------------------------------
 * Scratch
 */

/* A side of a slot of a form. Where columns are written in pieces, tiles are so large that a
 * piece is worth a call. */
static mp_packed_side side_of(const mp_unpack_plan *plan, const mp_unpack_layer *layer,
                              const mp_unpack_form *f, mp_place place, mp_side side)
{
    bool cols = f->set->target->tiling(&f->set->dims, side).kind == MP_TILES_COLS;

    return (mp_packed_side){
        .pack = &plan->pack,
        .layer = layer->number,
        .set = f->set,
        .place = place,
        .side = side,
        .tile_bytes = cols || mp_fusion_is_transposed(f->form->fusion) ? MP_UNIT_COLS_BYTES
                                                                       : MP_UNIT_ROWS_BYTES,
    };
}

/* Bytes of a part's scales: canonical ones, and as floats, which no type is wider than. */
static uint64_t scale_bytes(const mp_slot_set *set, mp_side side)
{
    return mp_target_scale_rows(set->target, &set->dims, side) *
           mp_target_scale_row_bytes(set->target, &set->dims, side);
}

static uint64_t scale_floats(const mp_slot_set *set, mp_side side)
{
    const mp_scheme_form *form = mp_scheme_form_of(set->target->scheme);

    return scale_bytes(set, side) * 8 / mp_dtype_bits(form->scale_dtype) * sizeof(float);
}

/* Makes room for a side of a form. */
static void measure(mp_unpack_plan *plan, const mp_unpack_layer *layer, const mp_unpack_form *f,
                    mp_side side)
{
    struct mp_unpack_source *source = plan->source;
    const mp_packed_side slot = side_of(plan, layer, f, (mp_place){0}, side);
    mp_tile tile = mp_tile_at(f->set->target, &f->set->dims, side, slot.tile_bytes, 0);
    uint64_t matrix = tile.rows * mp_scheme_row_bytes(f->set->target->scheme, tile.cols);

    for (unsigned t = 0; t < f->set->num_tensors; t++)
        if (f->set->tensors[t].side == side && f->set->tensors[t].role != MP_ROLE_WEIGHT)
            source->vector_bytes = mp_max_u64(source->vector_bytes, f->set->tensors[t].slot_bytes);
    source->vector_bytes = mp_max_u64(source->vector_bytes, scale_bytes(f->set, side));
    source->slot_bytes = mp_max_u64(source->slot_bytes, mp_packed_scratch(&slot));
    source->matrix_bytes =
        mp_max_u64(source->matrix_bytes, mp_max_u64(matrix, scale_floats(f->set, side)));
}

uint64_t mp_unpack_scratch(mp_unpack_plan *plan)
{
    struct mp_unpack_source *source = plan->source;

    for (size_t l = 0; l < source->num_layers; l++) {
        const mp_unpack_layer *layer = &source->layers[l];

        for (unsigned side = 0; side < MP_SIDES; side++) {
            measure(plan, layer, &layer->routed, (mp_side)side);
            if (layer->shared.form)
                measure(plan, layer, &layer->shared, (mp_side)side);
        }
    }
    source->slot_bytes = mp_round_up(source->slot_bytes, 64);
    source->vector_bytes = mp_round_up(source->vector_bytes, 64);
    source->matrix_bytes = mp_round_up(source->matrix_bytes, 64);
    return source->slot_bytes + 2 * source->vector_bytes + 4 * source->matrix_bytes;
}

static void lay_buffers(work_unit *w, uint8_t *scratch)
{
    const struct mp_unpack_source *source = w->plan->source;

    w->slot = side_of(w->plan, w->unit.layer, w->unit.form, w->unit.from, w->unit.side);
    mp_packed_side_init(&w->slot, scratch);
    w->first = scratch + source->slot_bytes;
    w->vector = w->first + source->vector_bytes;
    w->scale[0] = w->vector + source->vector_bytes;
    w->scale[1] = w->scale[0] + source->matrix_bytes;
    /* Room for both parts of a tile: mp_stored_write puts them together there. */
    w->stage = w->scale[1] + source->matrix_bytes;
}

/* ------------------------------------------------------------------------
 * Out
 */

static const mp_out_tensor *output_of(const work_unit *w, const mp_form_tensor *tensor)
{
    const mp_unpack_form *f = w->unit.form;
    uint64_t number = f->first_output + (uint64_t)(tensor - f->form->tensors);

    if (f->form->fusion == MP_FUSION_NONE)
        /* Of tensors that are not fused each expert has a set of its own. */
        number += (uint64_t)w->unit.expert * f->form->num_tensors;
    return &w->plan->work.outputs[w->plan->source->order[number]];
}

/* The tensors of a role for the unit's side, as a matrix of `rows` rows of row_bytes. */
static mp_stored stored_as(const work_unit *w, mp_role role, uint64_t rows, uint64_t row_bytes)
{
    const mp_unpack_form *f = w->unit.form;
    mp_stored to = {
        .fusion = f->form->fusion,
        .parts = mp_side_parts(w->unit.side),
        .slice = f->form->fusion == MP_FUSION_NONE ? 0 : w->unit.expert,
        .rows = rows,
        .row_bytes = row_bytes,
    };

    for (unsigned p = 0; p < to.parts; p++)
        to.out[p] = output_of(w, mp_form_find(f->form, mp_unpack_matrix(f, w->unit.side, p), role));
    to.width = mp_dtype_bits(to.out[0]->dtype) / 8;
    return to;
}

/* Gate and up of the slots of a shared expert stand below each other, down side by side. */
static bool stands_below(const work_unit *w)
{
    return w->unit.side == MP_L1;
}

static int write_weights(work_unit *w, uint32_t slot, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    mp_scheme scheme = f->set->target->scheme;
    uint64_t rows = mp_side_rows(&f->set->dims, w->unit.side);
    uint64_t row_bytes = mp_scheme_row_bytes(scheme, mp_side_cols(&f->set->dims, w->unit.side));
    uint64_t count = mp_packed_tiles(&w->slot);
    bool below = stands_below(w);
    const mp_stored to = stored_as(w, MP_ROLE_WEIGHT, below ? f->slots * rows : rows,
                                   below ? row_bytes : f->slots * row_bytes);

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile;

        if (mp_packed_tile(&w->slot, i, &tile, err) != 0)
            return err->code;
        uint64_t at = mp_scheme_row_bytes(scheme, tile.col0) + (below ? 0 : slot * row_bytes);
        if (mp_stored_write(&to, w->outputs, tile.row0 + (below ? slot * rows : 0), tile.rows, at,
                            mp_scheme_row_bytes(scheme, tile.cols), w->slot.part, w->stage,
                            err) != 0)
            return err->code;
    }
    return 0;
}

/* Scales are rows of their own, also of a matrix that is stored transposed. */
static mp_fusion fusion_of_scales(mp_fusion fusion)
{
    if (fusion == MP_FUSION_COLS)
        return MP_FUSION_ROWS;
    return fusion == MP_FUSION_COLS_PAIRED ? MP_FUSION_ROWS_PAIRED : fusion;
}

/* The name of the packed tensor of a role, for messages. */
static const char *packed_name(const work_unit *w, mp_role role)
{
    const mp_packed_side *s = &w->slot;

    return mp_pack_tensor(s->pack, s->layer, s->place.rank, s->set,
                          mp_set_tensor(s->set, s->side, role))
        ->name;
}

/* What one matrix has once: all slots of a shared expert have to agree. */
static int check_common(const work_unit *w, uint32_t slot, mp_role role, const void *have,
                        uint64_t n, mp_error *err)
{
    /* The first slot says what all others have to hold. */
    if (slot == 0)
        memcpy(w->first, have, n);
    if (memcmp(w->first, have, n) == 0)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: slots 0 and %u of the shared expert differ: they are no longer one matrix",
                   packed_name(w, role), slot);
}

/* The slot's scales in the type of a checkpoint. */
static int convert_scales(const work_unit *w, mp_dtype dtype, mp_error *err)
{
    mp_dtype canonical = mp_scheme_form_of(w->slot.set->target->scheme)->scale_dtype;
    uint64_t bytes = scale_bytes(w->slot.set, w->unit.side);

    for (unsigned p = 0; p < mp_side_parts(w->unit.side); p++)
        if (!mp_scales_convert(canonical, w->slot.scale + p * bytes,
                               bytes * 8 / mp_dtype_bits(canonical), dtype, w->scale[p]))
            return mp_fail(err, MP_ERR_INPUT, "%s: a scale in slot %u that %s cannot hold",
                           packed_name(w, MP_ROLE_SCALE), w->slot.place.slot, mp_dtype_name(dtype));
    return 0;
}

static int write_scales(work_unit *w, uint32_t slot, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    const mp_scheme_form *scheme = mp_scheme_form_of(f->set->target->scheme);
    uint64_t rows = mp_target_scale_rows(f->set->target, &f->set->dims, w->unit.side), row_bytes;
    bool below = stands_below(w), common = !below && scheme->block_cols == UINT32_MAX;
    uint32_t slots = common ? 1 : f->slots;
    mp_stored to;

    if (!scheme->has_scale)
        return 0;
    if (common && check_common(w, slot, MP_ROLE_SCALE, w->slot.scale,
                               scale_bytes(f->set, w->unit.side), err) != 0)
        return err->code;
    if (common && slot > 0)
        return 0;
    to = stored_as(w, MP_ROLE_SCALE, below ? slots * rows : rows, 0);
    to.fusion = fusion_of_scales(to.fusion);
    row_bytes = mp_target_scale_row_bytes(f->set->target, &f->set->dims, w->unit.side) * 8 /
                mp_dtype_bits(scheme->scale_dtype) * to.width;
    to.row_bytes = below ? row_bytes : slots * row_bytes;
    if (convert_scales(w, to.out[0]->dtype, err) != 0)
        return err->code;
    return mp_stored_write(&to, w->outputs, below ? slot * rows : 0, rows,
                           below ? 0 : slot * row_bytes, row_bytes, w->scale, w->stage, err);
}

/* ------------------------------------------------------------------------
 * Vectors
 */

/* One float of a matrix, which a part has at `p`; gate and up in one tensor have it in common. */
static int write_number(const work_unit *w, const mp_form_tensor *tensor, const float *numbers,
                        unsigned p, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    uint64_t at = f->form->fusion != MP_FUSION_NONE ? w->unit.expert * sizeof *numbers : 0;

    if (mp_unpack_numbers(f, tensor, 1) == 2) {
        const float both[2] = {numbers[0], numbers[tensor->role == MP_ROLE_INPUT_SCALE ? 0 : 1]};

        return mp_outputs_write(w->outputs, output_of(w, tensor), 2 * at, both, sizeof both, err);
    }
    if (tensor->matrix == MP_GATE_UP && tensor->role == MP_ROLE_GLOBAL_SCALE &&
        numbers[0] != numbers[1])
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: expert %u has %.9g for gate and %.9g for up, where %s is one for both",
                       w->unit.layer->prefix, w->unit.expert, (double)numbers[0],
                       (double)numbers[1], tensor->name);
    return mp_outputs_write(w->outputs, output_of(w, tensor), at, &numbers[p], sizeof *numbers,
                            err);
}

/* [N, K] of a packed weight. */
static int write_shape(const work_unit *w, const mp_form_tensor *tensor, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    bool below = w->unit.side == MP_L1;
    int64_t wide[2] = {
        (int64_t)(mp_side_rows(&f->set->dims, w->unit.side) * (below ? f->slots : 1)),
        (int64_t)(mp_side_cols(&f->set->dims, w->unit.side) * (below ? 1 : f->slots)),
    };
    int32_t narrow[2] = {(int32_t)wide[0], (int32_t)wide[1]};
    bool is_wide = tensor->dtype == MP_I64;

    return mp_outputs_write(w->outputs, output_of(w, tensor), 0,
                            is_wide ? (const void *)wide : narrow,
                            is_wide ? sizeof wide : sizeof narrow, err);
}

/* A tensor of a form that is neither weight nor scale, out of each slot. Zero points of L1 are
 * those of its rows, which slots do not share; all else is one for the whole matrix. */
static int write_other(work_unit *w, const mp_form_tensor *tensor, unsigned p, mp_error *err)
{
    mp_role role = mp_unpack_role(w->unit.form->form, tensor->role);
    const mp_slot_tensor *packed = mp_set_tensor(w->slot.set, w->unit.side, role);
    bool own_rows = role == MP_ROLE_OFFSET && w->unit.side == MP_L1;
    uint64_t bytes;

    if (role == MP_ROLE_SHAPE)
        return write_shape(w, tensor, err);
    bytes = packed->slot_bytes / mp_side_parts(w->unit.side);
    for (uint32_t slot = 0; slot < w->unit.form->slots; slot++) {
        w->slot.place.slot = w->unit.from.slot + slot;
        if (mp_packed_vector(&w->slot, role, w->vector, err) != 0 ||
            (!own_rows && check_common(w, slot, role, w->vector, packed->slot_bytes, err) != 0))
            return err->code;
        if (role == MP_ROLE_OFFSET && (own_rows || slot == 0) &&
            mp_outputs_write(w->outputs, output_of(w, tensor), slot * bytes, w->vector + p * bytes,
                             bytes, err) != 0)
            return err->code;
    }
    if (role == MP_ROLE_OFFSET)
        return 0;
    return write_number(w, tensor, (const float *)(const void *)w->vector,
                        role == MP_ROLE_INPUT_SCALE ? 0 : p, err);
}

static int write_others(work_unit *w, mp_error *err)
{
    const mp_unpack_form *f = w->unit.form;
    unsigned parts = mp_unpack_is_joined(f->form) ? 1 : mp_side_parts(w->unit.side);

    for (unsigned p = 0; p < parts; p++) {
        mp_projection matrix = mp_unpack_matrix(f, w->unit.side, p);

        for (size_t t = 0; t < f->form->num_tensors; t++) {
            const mp_form_tensor *tensor = &f->form->tensors[t];

            if (tensor->matrix == matrix && tensor->role > MP_ROLE_SCALE &&
                write_other(w, tensor, p, err) != 0)
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
    const mp_unpack_layer *layer = &source->layers[mp_last_begun(
        &source->layers[0].first_unit, sizeof *source->layers, source->num_layers, index)];
    uint32_t experts = plan->pack.shape.slots.num_logical, id;
    bool shared;

    id = (uint32_t)((index - layer->first_unit) / MP_SIDES);
    shared = id >= experts;
    return (mp_unpack_unit){
        .layer = layer,
        .form = shared ? &layer->shared : &layer->routed,
        .expert = shared ? 0 : id,
        .side = (mp_side)(index % MP_SIDES),
        .from = *mp_unpack_place(plan, layer, id),
    };
}

uint64_t mp_unpack_unit_bytes(const void *user, uint64_t index)
{
    const mp_unpack_plan *plan = user;
    mp_unpack_unit unit = mp_unpack_unit_at(plan, index);
    const mp_form *form = unit.form->form;
    const work_unit w = {.plan = plan, .unit = unit};
    uint64_t bytes = 0;

    for (size_t t = 0; t < form->num_tensors; t++)
        if ((form->tensors[t].matrix == MP_DOWN) == (unit.side == MP_L2))
            bytes += output_of(&w, &form->tensors[t])->bytes;
    return form->fusion == MP_FUSION_NONE || unit.form == &unit.layer->shared
               ? bytes
               : bytes / plan->pack.shape.slots.num_logical;
}

void mp_unpack_unit_ahead(const void *user, uint64_t index)
{
    const mp_unpack_plan *plan = user;
    const mp_unpack_unit unit = mp_unpack_unit_at(plan, index);

    mp_pack_ahead(&plan->pack, unit.layer->number, unit.from, unit.form->slots, unit.form->set,
                  unit.side);
}

int mp_unpack_unit_run(const void *user, uint64_t index, mp_outputs *outputs, void *scratch,
                       mp_quant_stats *stats, mp_error *err)
{
    const mp_unpack_plan *plan = user;
    work_unit w = {.plan = plan, .unit = mp_unpack_unit_at(plan, index), .outputs = outputs};

    (void)stats;
    lay_buffers(&w, scratch);
    for (uint32_t slot = 0; slot < w.unit.form->slots; slot++) {
        w.slot.place.slot = w.unit.from.slot + slot;
        if (mp_packed_begin(&w.slot, err) != 0 || write_weights(&w, slot, err) != 0 ||
            write_scales(&w, slot, err) != 0)
            return err->code;
    }
    if (write_others(&w, err) != 0)
        return err->code;
    mp_pack_forget(&plan->pack, w.slot.layer, w.unit.from, w.unit.form->slots, w.slot.set,
                   w.unit.side);
    return 0;
}
