/* SPDX-License-Identifier: Apache-2.0 */
/* Cutting a side into tiles: which rows or columns each has, and the extent it becomes.
 *
 *     kind      a tile is                            its extent
 *     PAIRED    the same rows of gate and of up      lines of both, interleaved
 *     ROWS      rows of one part                     lines of that part
 *     COLS      columns, with all rows               lines that were columns
 *
 * In the packed tensor a tile is always contiguous, and tiles follow each other in the order of
 * their numbers. So units can write them in any order without overlap. Tiles hold about the wanted
 * number of bytes and begin at multiples of the target's group, within which rows or columns trade
 * places. The last may be shorter. Pure arithmetic on sizes that the target has checked. */
#include <moepack/layout.h>

#include "base/error.h"
#include "base/words.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"

/* What tiles of a side are cut from. */
typedef struct cut {
    mp_tiling tiling;
    uint64_t rows, cols;
    unsigned parts;
    uint64_t step;     /* rows of a part, or columns, of a tile that is not the last */
    uint64_t length;   /* of what is cut: rows of a part, or columns */
    uint64_t per_part; /* tiles of one part; of all where a tile has all parts */
    uint64_t line_bytes;
} cut;

static uint64_t weight_bytes(const mp_target *target, const mp_dims *dims, mp_side side)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned count = target->describe(dims, tensors);

    for (unsigned t = 0; t < count; t++)
        if (tensors[t].side == side && tensors[t].role == MP_ROLE_WEIGHT)
            return tensors[t].slot_bytes;
    return 0;
}

static cut cut_of(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t bytes)
{
    cut c = {
        .tiling = target->tiling(dims, side),
        .rows = mp_side_rows(dims, side),
        .cols = mp_side_cols(dims, side),
        .parts = mp_side_parts(side),
    };
    bool cols = c.tiling.kind == MP_TILES_COLS;
    uint64_t lines = cols ? c.cols : c.parts * c.rows;
    uint64_t across = cols ? c.parts * c.rows : c.cols; /* elements of a row or column */
    uint64_t one = mp_scheme_row_bytes(target->scheme, across);

    if (c.tiling.kind == MP_TILES_PAIRED)
        one *= c.parts;
    c.length = cols ? c.cols : c.rows;
    c.step = bytes / (one ? one : 1) / c.tiling.group * c.tiling.group;
    if (c.step < c.tiling.group)
        c.step = c.tiling.group;
    c.per_part = mp_ceil_div(c.length, c.step);
    c.line_bytes = weight_bytes(target, dims, side) / mp_round_up(lines, c.tiling.pad);
    return c;
}

uint64_t mp_tile_count(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t bytes)
{
    cut c = cut_of(target, dims, side, bytes);

    return c.tiling.kind == MP_TILES_ROWS ? c.per_part * c.parts : c.per_part;
}

mp_tile mp_tile_at(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t bytes,
                   uint64_t index)
{
    cut c = cut_of(target, dims, side, bytes);
    uint64_t start = index % c.per_part * c.step;
    uint64_t left = c.length - start, count = left < c.step ? left : c.step;
    mp_tile tile = {.parts = c.parts, .rows = c.rows, .cols = c.cols};
    uint64_t first_line = start, lines = count;

    if (c.tiling.kind == MP_TILES_COLS) {
        tile.col0 = start;
        tile.cols = count;
    } else {
        tile.row0 = start;
        tile.rows = count;
    }
    if (c.tiling.kind == MP_TILES_ROWS) {
        tile.part = (unsigned)(index / c.per_part);
        tile.parts = 1;
        first_line += tile.part * c.rows;
    } else if (c.tiling.kind == MP_TILES_PAIRED) {
        first_line *= c.parts;
        lines *= c.parts;
    }
    tile.offset = first_line * c.line_bytes;
    tile.bytes = mp_round_up(lines, c.tiling.pad) * c.line_bytes;
    return tile;
}
