/* SPDX-License-Identifier: Apache-2.0 */
/* Slots back to rows: tiles are read in the order of the packed tensor, unpacked by the target,
 * and, if rows are asked for, put in their places among them.
 *
 * A target's tiles follow from its layout: rows of gate and up together, rows of one part, or
 * columns with all rows. Callers that compute want the same rows of gate and up. Tiles of rows are
 * made as tall as the request, so each is read once and lands where it belongs. Tiles of columns
 * yield all rows at once, however few are wanted, which mp_packed_tile_rows says beforehand.
 *
 * Scales and second scales are read once per slot, in begin, since targets shuffle them across the
 * whole side. Opening the pack has made sure that extents lie inside their tensors. A side belongs
 * to one thread, and one function both measures its scratch and assigns it. */
#include "experts/packed.h"

#include <string.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/words.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "numeric/rows.h"

/* Bytes of a tile of columns where rows are asked for. */
#define COLS_BYTES (UINT64_C(1) << 20)

static mp_tile_kind kind_of(const mp_slot_set *set, mp_side side)
{
    return set->target->tiling(&set->dims, side).kind;
}

static uint64_t row_bytes(const mp_packed_side *s, uint64_t cols)
{
    return mp_scheme_row_bytes(s->set->target->scheme, cols);
}

static uint64_t scale_rows(const mp_packed_side *s)
{
    return mp_target_scale_rows(s->set->target, &s->set->dims, s->side);
}

static uint64_t scale_row_bytes(const mp_packed_side *s)
{
    return mp_target_scale_row_bytes(s->set->target, &s->set->dims, s->side);
}

uint64_t mp_packed_tile_rows(const mp_slot_set *set, mp_side side, uint64_t rows)
{
    mp_tiling tiling = set->target->tiling(&set->dims, side);
    uint64_t all = mp_side_rows(&set->dims, side);

    if (tiling.kind == MP_TILES_COLS)
        return all;
    rows = mp_round_up(rows, tiling.group);
    return rows < all ? rows : all;
}

/* Tiles of rows are as high as what is read at once. */
static uint64_t tile_bytes(const mp_packed_side *s)
{
    mp_tile_kind kind = kind_of(s->set, s->side);
    uint64_t parts = kind == MP_TILES_PAIRED ? mp_side_parts(s->side) : 1;

    if (s->tile_rows == 0)
        return s->tile_bytes;
    if (kind == MP_TILES_COLS)
        return COLS_BYTES;
    return s->tile_rows * parts * row_bytes(s, mp_side_cols(&s->set->dims, s->side));
}

static mp_tile tile_at(const mp_packed_side *s, uint64_t index)
{
    return mp_tile_at(s->set->target, &s->set->dims, s->side, tile_bytes(s), index);
}

static uint64_t count_tiles(const mp_packed_side *s)
{
    return mp_tile_count(s->set->target, &s->set->dims, s->side, tile_bytes(s));
}

/* Tiles that stand for the same rows of gate and of up: one with both, or one of each. */
static unsigned tiles_together(const mp_packed_side *s)
{
    return kind_of(s->set, s->side) == MP_TILES_ROWS ? mp_side_parts(s->side) : 1;
}

/* ------------------------------------------------------------------------
 * Scratch
 */

static uint64_t lay_out(mp_packed_side *s, uint8_t *base)
{
    const mp_slot_tensor *scale = mp_set_tensor(s->set, s->side, MP_ROLE_SCALE);
    uint64_t all = row_bytes(s, mp_side_cols(&s->set->dims, s->side)), used = 0;
    mp_tile first = tile_at(s, 0); /* as large as any */
    uint64_t rectangle = first.rows * row_bytes(s, first.cols);
    uint64_t packed = first.bytes;

    /* Scales go through the same buffer, before the first tile. */
    if (scale && scale->slot_bytes > packed)
        packed = scale->slot_bytes;
    for (unsigned p = 0; p < mp_side_parts(s->side); p++)
        s->part[p] = mp_scratch_take(base, &used, s->tile_rows ? s->tile_rows * all : rectangle);
    s->packed = mp_scratch_take(base, &used, packed);
    s->rectangle = mp_scratch_take(base, &used, s->tile_rows ? first.parts * rectangle : 0);
    s->scale =
        mp_scratch_take(base, &used, mp_side_parts(s->side) * scale_rows(s) * scale_row_bytes(s));
    return used;
}

uint64_t mp_packed_scratch(const mp_packed_side *s)
{
    mp_packed_side measured = *s;

    return lay_out(&measured, NULL);
}

void mp_packed_side_init(mp_packed_side *s, void *scratch)
{
    lay_out(s, scratch);
    s->global[0] = s->global[1] = 1;
    s->global_divides = false;
}

/* ------------------------------------------------------------------------
 * Reading
 */

static int read_slot(const mp_packed_side *s, const mp_slot_tensor *tensor, uint64_t offset,
                     uint64_t n, void *out, mp_error *err)
{
    return mp_pack_read(s->pack, s->layer, s->place, s->set, tensor, offset, n, out, err);
}

int mp_packed_begin(mp_packed_side *s, mp_error *err)
{
    const mp_slot_tensor *scale = mp_set_tensor(s->set, s->side, MP_ROLE_SCALE);
    const mp_slot_tensor *global = mp_set_tensor(s->set, s->side, MP_ROLE_GLOBAL_SCALE);

    if (scale) {
        if (read_slot(s, scale, 0, scale->slot_bytes, s->packed, err) != 0)
            return err->code;
        s->set->target->unpack_scale(&s->set->dims, s->side, s->packed, s->scale);
    }
    /* As the source had it where that is kept: there is no other way back to the same bits. */
    s->global_divides = mp_pack_tensor(s->pack, s->layer, s->place.rank, s->set, global) != NULL;
    if (!s->global_divides)
        global = mp_set_tensor(s->set, s->side, MP_ROLE_ALPHA);
    return global ? read_slot(s, global, 0, mp_side_parts(s->side) * sizeof s->global[0], s->global,
                              err)
                  : 0;
}

/* Reads a tile and unpacks it: out[p] gets part tile->part + p. */
static int read_tile(mp_packed_side *s, const mp_tile *tile, uint8_t *const out[2], mp_error *err)
{
    const mp_slot_tensor *weight = mp_set_tensor(s->set, s->side, MP_ROLE_WEIGHT);

    if (read_slot(s, weight, tile->offset, tile->bytes, s->packed, err) != 0)
        return err->code;
    s->set->target->unpack_weight(&s->set->dims, s->side, tile, s->packed, out);
    return 0;
}

uint64_t mp_packed_tiles(const mp_packed_side *s)
{
    return count_tiles(s) / tiles_together(s);
}

int mp_packed_tile(mp_packed_side *s, uint64_t index, mp_tile *tile, mp_error *err)
{
    unsigned together = tiles_together(s);
    uint64_t step = count_tiles(s) / together;

    for (unsigned i = 0; i < together; i++) {
        *tile = tile_at(s, index + i * step);
        uint8_t *const out[2] = {s->part[tile->part], s->part[1 - tile->part]};

        if (read_tile(s, tile, out, err) != 0)
            return err->code;
    }
    return 0;
}

/* Puts the rectangles of a tile where they belong among rows row0 .. of their parts. */
static int place_tile(mp_packed_side *s, const mp_tile *tile, uint64_t row0, mp_error *err)
{
    uint64_t all = row_bytes(s, mp_side_cols(&s->set->dims, s->side));
    uint64_t bytes = row_bytes(s, tile->cols), column = row_bytes(s, tile->col0);
    uint8_t *to[2] = {NULL, NULL}, *out[2] = {s->rectangle, s->rectangle + tile->rows * bytes};

    for (unsigned i = 0; i < tile->parts; i++) {
        to[i] = s->part[tile->part + i] + (tile->row0 - row0) * all + column;
        /* A tile of whole rows is unpacked directly into place. */
        if (bytes == all)
            out[i] = to[i];
    }
    if (read_tile(s, tile, out, err) != 0)
        return err->code;
    for (unsigned i = 0; bytes != all && i < tile->parts; i++)
        for (uint64_t r = 0; r < tile->rows; r++)
            memcpy(to[i] + r * all, out[i] + r * bytes, bytes);
    return 0;
}

/* Looks at every tile rather than computing which ones overlap: there are few, and three kinds. */
int mp_packed_rows(mp_packed_side *s, uint64_t row0, uint64_t rows, mp_rows out[2], mp_error *err)
{
    const mp_scheme_form *form = mp_scheme_form_of(s->set->target->scheme);
    uint64_t count = count_tiles(s), per_part = scale_rows(s);

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = tile_at(s, i);
        bool skip = tile.parts == 1 && (s->unread >> tile.part & 1);

        if (!skip && tile.row0 >= row0 && tile.row0 < row0 + rows &&
            place_tile(s, &tile, row0, err) != 0)
            return err->code;
    }
    for (unsigned p = 0; p < mp_side_parts(s->side); p++) {
        uint64_t scale_row = p * per_part + (form->has_scale ? row0 / form->block_rows : 0);

        out[p] = mp_scheme_rows(s->set->target->scheme, row0, rows,
                                mp_side_cols(&s->set->dims, s->side));
        out[p].weight = s->part[p];
        out[p].scale = s->scale + scale_row * scale_row_bytes(s);
        out[p].global_scale = s->global[p];
        out[p].global_divides = s->global_divides;
    }
    return 0;
}

int mp_packed_vector(const mp_packed_side *s, mp_role role, void *out, mp_error *err)
{
    const mp_slot_tensor *tensor = mp_set_tensor(s->set, s->side, role);

    if (!tensor)
        return mp_fail(err, MP_ERR_INPUT, "%s has no %s", s->set->target->name, mp_role_name(role));
    return read_slot(s, tensor, 0, tensor->slot_bytes, out, err);
}
