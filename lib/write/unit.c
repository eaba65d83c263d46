/* SPDX-License-Identifier: Apache-2.0 */
/* One unit: a side of an expert, tile by tile, laid out and written to every copy. Reading and
 * converting is experts/canonical.h's, laying out the target's; here they meet, with as little
 * memory as each tile needs.
 *
 *   source rows -> canonical tile -> pack_weight, piece by piece -> pwrite to each copy
 *
 * Copies get the same bytes, so they are laid out once. A tile is as large as reading wants it, a
 * piece as small as a cache wants it: layouts of whole groups of rows can be packed by pieces, as a
 * piece of rows is a piece of the slot. Scales come with the tiles and are whole behind the last.
 *
 * Scratch is a thread's: the packed piece first, the canonical form behind it. Nothing is shared
 * but the outputs, to places that no other unit writes. */
#include "write/unit.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"
#include "write/plan.h"

/* What a unit's functions share. */
typedef struct work_unit {
    const mp_repack_plan *plan;
    const mp_unit *unit;
    mp_outputs *outputs;
    mp_side_source from;
    mp_canonical canonical;
    uint8_t *packed; /* a tile, or another tensor's bytes of the slot */
} work_unit;

/* Rows of a tile that are packed at once. A tile may be larger than a cache, because of how it is
 * read; laying it out piece by piece keeps what is written in one. */
static uint64_t piece_rows(const mp_side_source *from, const mp_tile *tile)
{
    mp_tiling tiling = from->target->tiling(&from->dims, from->side);
    uint64_t rows = MP_UNIT_ROWS_BYTES / (tile->bytes / tile->rows) / tiling.group * tiling.group;

    /* With columns or padding a piece of rows is not one run of the slot's bytes. */
    if (tiling.kind == MP_TILES_COLS || tiling.pad > 1 || rows > tile->rows)
        return tile->rows;
    return rows ? rows : tiling.group;
}

/* Bytes of the largest piece that is packed at once. */
static uint64_t packed_bytes(const mp_side_source *from, const mp_slot_set *set)
{
    mp_tile tile = mp_tile_at(from->target, &from->dims, from->side, from->tile_bytes, 0);
    bool unchanged = from->target->tiling(&from->dims, from->side).unchanged;
    uint64_t bytes = unchanged ? 0 : tile.bytes / tile.rows * piece_rows(from, &tile);

    for (unsigned t = 0; t < set->num_tensors; t++)
        if (set->tensors[t].side == from->side && set->tensors[t].role != MP_ROLE_WEIGHT)
            bytes = mp_max_u64(bytes, set->tensors[t].slot_bytes);
    return mp_round_up(bytes, 64);
}

uint64_t mp_plan_scratch(const mp_repack_plan *plan)
{
    uint64_t most = 0;

    for (size_t l = 0; l < plan->num_layers; l++) {
        const mp_plan_layer *layer = &plan->layers[l];
        uint32_t routed = layer->source->num_experts;

        /* Routed experts are alike, and so are shared ones. */
        for (uint32_t e = 0; e < plan->shape.num_ids; e += e == 0 && routed > 1 ? routed : 1) {
            for (uint32_t side = 0; side < MP_SIDES; side++) {
                mp_unit unit = mp_plan_unit(plan, layer->first_unit + e * MP_SIDES + side);
                mp_side_source from = mp_unit_source(plan, &unit);

                most =
                    mp_max_u64(most, packed_bytes(&from, unit.set) + mp_canonical_scratch(&from));
            }
        }
    }
    return most;
}

/* Writes bytes at the same place of every copy's slot. */
static int write_copies(const work_unit *w, const mp_slot_tensor *tensor, uint64_t offset,
                        const void *data, uint64_t n, mp_error *err)
{
    const mp_slot_set *set = w->unit->set;
    uint32_t count;
    const mp_place *copies = mp_places_of(&w->unit->layer->places, w->unit->id, &count);

    for (uint32_t c = 0; c < count; c++) {
        const mp_out_tensor *out =
            mp_plan_output(w->plan, w->unit->layer_index, copies[c].rank, set, tensor);

        if (mp_outputs_write(w->outputs, out, copies[c].slot * tensor->slot_bytes + offset, data, n,
                             err) != 0)
            return err->code;
    }
    return 0;
}

/* Checks the tile that the canonical form holds, lays it out and writes it, piece by piece. */
static int write_tile(work_unit *w, const mp_slot_tensor *tensor, const mp_tile *tile,
                      mp_error *err)
{
    const mp_side_source *from = &w->from;
    const mp_target *target = from->target;
    uint64_t row_bytes = mp_scheme_row_bytes(target->scheme, tile->cols);
    uint64_t rows = piece_rows(from, tile), packed_row = tile->bytes / tile->rows;
    /* Where the layout is the canonical form, nothing has to move. */
    bool unchanged = target->tiling(&from->dims, from->side).unchanged;

    for (uint64_t done = 0; done < tile->rows; done += rows) {
        const uint8_t *const in[2] = {w->canonical.weight[0] + done * row_bytes,
                                      w->canonical.weight[1] + done * row_bytes};
        mp_tile piece = *tile;

        if (rows < tile->rows) {
            piece.row0 += done;
            piece.rows = tile->rows - done < rows ? tile->rows - done : rows;
            piece.offset += done * packed_row;
            piece.bytes = piece.rows * packed_row;
        }
        if (mp_canonical_check(&w->canonical, tile, done, piece.rows, err) != 0)
            return err->code;
        if (!unchanged)
            target->pack_weight(&from->dims, from->side, &piece, in, w->packed);
        if (write_copies(w, tensor, piece.offset, unchanged ? in[0] : w->packed, piece.bytes,
                         err) != 0)
            return err->code;
    }
    return 0;
}

static int write_weight(work_unit *w, const mp_slot_tensor *tensor, mp_quant_stats *stats,
                        mp_error *err)
{
    const mp_side_source *from = &w->from;
    uint64_t count = mp_tile_count(from->target, &from->dims, from->side, from->tile_bytes);

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = mp_tile_at(from->target, &from->dims, from->side, from->tile_bytes, i);

        if (mp_canonical_read(&w->canonical, &tile, stats, err) != 0 ||
            write_tile(w, tensor, &tile, err) != 0)
            return err->code;
    }
    return 0;
}

static int write_scale(work_unit *w, const mp_slot_tensor *tensor, mp_error *err)
{
    w->from.target->pack_scale(&w->from.dims, w->from.side, w->canonical.scale, w->packed);
    return write_copies(w, tensor, 0, w->packed, tensor->slot_bytes, err);
}

static int write_vector(work_unit *w, const mp_slot_tensor *tensor, mp_error *err)
{
    void *numbers = w->packed;
    uint32_t count;
    const mp_place *copies = mp_places_of(&w->unit->layer->places, w->unit->id, &count);

    if (count == 0 ||
        !mp_plan_output(w->plan, w->unit->layer_index, copies->rank, w->unit->set, tensor))
        return 0; /* the layer does not have it */
    if (mp_canonical_vector(&w->canonical, tensor, numbers, err) != 0)
        return err->code;
    return write_copies(w, tensor, 0, w->packed, tensor->slot_bytes, err);
}

/* Tensors of a side come in the order of roles: scales are whole after the weight's tiles. */
static int write_tensors(work_unit *w, mp_quant_stats *stats, mp_error *err)
{
    const mp_slot_set *set = w->unit->set;
    int rc = 0;

    for (unsigned t = 0; t < set->num_tensors && rc == 0; t++) {
        const mp_slot_tensor *tensor = &set->tensors[t];

        if (tensor->side != w->unit->side)
            continue;
        if (tensor->role == MP_ROLE_WEIGHT)
            rc = write_weight(w, tensor, stats, err);
        else if (tensor->role == MP_ROLE_SCALE)
            rc = write_scale(w, tensor, err);
        else
            rc = write_vector(w, tensor, err);
    }
    return rc;
}

int mp_unit_run(const mp_repack_plan *plan, const mp_unit *unit, mp_outputs *outputs, void *scratch,
                mp_quant_stats *stats, mp_error *err)
{
    work_unit w = {
        .plan = plan,
        .unit = unit,
        .outputs = outputs,
        .from = mp_unit_source(plan, unit),
        .packed = scratch,
    };

    mp_canonical_init(&w.canonical, &w.from, w.packed + packed_bytes(&w.from, unit->set));
    if (mp_canonical_begin(&w.canonical, err) != 0 || write_tensors(&w, stats, err) != 0)
        return err->code;
    for (unsigned part = 0; part < mp_side_parts(unit->side); part++)
        mp_matrix_forget(plan->catalog, &w.from.matrix[part]);
    return 0;
}
