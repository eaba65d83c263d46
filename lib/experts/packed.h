/* SPDX-License-Identifier: Apache-2.0 */
/*
 * experts/packed.h - a side of an expert out of a slot of a pack.
 *
 * What the target laid out comes back as the canonical form (layout.h): rows in the order of the
 * source, in the target's scheme. Either tile by tile, as the target cuts them, or in runs of
 * whole rows, which are put together from tiles:
 *
 *     mp_packed_side s = {.pack = &pack, .layer = l, .set = set, .place = place, .side = side};
 *     s.tile_rows = mp_packed_tile_rows(set, side, 512);
 *     mp_packed_side_init(&s, scratch);
 *     if (mp_packed_begin(&s, err) == 0)
 *         mp_packed_rows(&s, row0, rows, part, err);
 *
 * Verify does not read slots this way: what checks a pack uses the layouts' own inverses.
 */
#ifndef MP_EXPERTS_PACKED_H
#define MP_EXPERTS_PACKED_H

#include <moepack/artifact.h>

#include "pack/pack.h"

typedef struct mp_packed_side {
    /* What is read: set by the caller. place may be changed before each begin. */
    const mp_pack *pack;
    size_t layer; /* of the manifest */
    const mp_slot_set *set;
    mp_place place;
    mp_side side;
    uint64_t tile_bytes; /* as for mp_tile_at; where tile_rows is 0 */
    uint64_t tile_rows;  /* most rows that mp_packed_rows is asked for; 0: only tiles are read */
    unsigned unread;     /* bit p: mp_packed_rows may leave out part p where it has tiles of its
                            own */

    /* After begin. */
    float global[2];     /* nvfp4: second scale of each part */
    bool global_divides; /* as the source had it; else it multiplies */
    uint8_t *scale;      /* canonical scales of the side, part after part */
    uint8_t *part[2];    /* of each part: the rectangle of the last tile, or the last rows */

    uint8_t *packed, *rectangle; /* private */
} mp_packed_side;

/* How many rows to read at once: about `rows`, or all of them where tiles are columns. */
uint64_t mp_packed_tile_rows(const mp_slot_set *set, mp_side side, uint64_t rows);

/* Bytes of scratch, and laying the side out in it. It is 64-byte aligned. */
uint64_t mp_packed_scratch(const mp_packed_side *s);
void mp_packed_side_init(mp_packed_side *s, void *scratch);

/* Reads what is known of the whole side: scales and second scales. */
int mp_packed_begin(mp_packed_side *s, mp_error *err);

/* Tiles of the side: those that hold the same rows of gate and of up count as one. */
uint64_t mp_packed_tiles(const mp_packed_side *s);

/* Reads a tile: rows and columns as *tile says, of all parts, go to part[]. */
int mp_packed_tile(mp_packed_side *s, uint64_t index, mp_tile *tile, mp_error *err);

/* Reads rows row0 .. row0+rows-1 of every part; row0 is a multiple of tile_rows, rows is tile_rows
 * or all that is left. out: filled, what it points to is good until the next read. */
int mp_packed_rows(mp_packed_side *s, uint64_t row0, uint64_t rows, mp_rows out[2], mp_error *err);

/* Reads the slot's whole tensor of a role. MP_ERR_INPUT where the pack has none. */
int mp_packed_vector(const mp_packed_side *s, mp_role role, void *out, mp_error *err);

#endif
