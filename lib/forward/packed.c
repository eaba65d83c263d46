/* SPDX-License-Identifier: Apache-2.0 */
/* Slots of a packed directory as an expert source: unpacked tile by tile, each from the files
 * of its own rank. */
#include <moepack/reference.h>

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "forward/packed.h"

/* Rows that are read at once, and bytes of a tile of columns. */
#define TILE_ROWS  512
#define TILE_BYTES (UINT64_C(1) << 20)

/* ------------------------------------------------------------------------
 * Where an id is
 */

/* A slot of a set on a rank. */
typedef struct place {
    const packed_set *set;
    const packed_rank *rank;
    uint32_t number; /* of the rank */
    uint64_t slot;   /* of the rank */
} place;

static place find_place(const mp_packed_experts *e, uint32_t id)
{
    const packed_ranks *ranks = e->ranks;
    uint32_t total = mp_slots_total(&e->slots);
    uint32_t rank = id < total ? mp_slots_rank(&e->slots, id) : (id - total) / e->apart;
    place p = {.set = &ranks->sets[id >= total], .rank = &ranks->ranks[rank], .number = rank};

    p.slot = id < total ? id - rank * mp_slots_per_rank(&e->slots) : (id - total) % e->apart;
    return p;
}

/* Number of the tensor of a side and a role in its set; -1 where there is none. */
static int tensor_number(const packed_set *set, mp_side side, mp_role role)
{
    for (unsigned t = 0; t < set->num_tensors; t++)
        if (set->tensors[t].side == side && set->tensors[t].role == role)
            return (int)t;
    return -1;
}

static const mp_tensor *held_tensor(const place *p, int number)
{
    return number < 0 ? NULL : p->rank->held[p->set->first + (unsigned)number];
}

/* Bytes of a tensor of the slot. */
static int read_slot(const place *p, int number, uint64_t offset, uint64_t n, void *out,
                     mp_error *err)
{
    uint64_t begin = p->slot * p->set->tensors[number].slot_bytes;

    if (mp_tensor_read(&p->rank->checkpoint, held_tensor(p, number), begin + offset, n, out, err) !=
        0)
        return mp_error_prefix(err, "rank %u", p->number);
    return 0;
}

/* ------------------------------------------------------------------------
 * Scratch
 */

typedef struct buffers {
    uint8_t *part[2];   /* [tile_rows, cols] of each */
    uint8_t *packed;    /* a tile */
    uint8_t *rectangle; /* the same unpacked, where it has not all columns */
    uint8_t *packed_scale;
    uint8_t *scale; /* of the side, part after part */
} buffers;

/* Takes n bytes, 64-byte aligned, from the scratch; with a null base only counts. */
static void *take(uint8_t *base, uint64_t *used, uint64_t n)
{
    void *piece = base ? base + *used : NULL;

    *used += mp_round_up(n, 64);
    return piece;
}

static bool in_columns(const packed_set *set, mp_side side)
{
    return set->target->tiling(&set->dims, side).kind == MP_TILES_COLS;
}

/* Tiles of rows are as high as what is read at once. */
static uint64_t tile_bytes(const mp_packed_experts *e, const packed_set *set, mp_side side)
{
    mp_tile_kind kind = set->target->tiling(&set->dims, side).kind;
    uint64_t row = mp_scheme_row_bytes(set->target->scheme, mp_side_cols(&set->dims, side));

    if (kind == MP_TILES_COLS)
        return TILE_BYTES;
    return e->source.tile_rows * row * (kind == MP_TILES_PAIRED ? mp_side_parts(side) : 1);
}

static uint64_t scale_bytes(const packed_set *set, mp_side side)
{
    return mp_side_parts(side) * mp_target_scale_rows(set->target, &set->dims, side) *
           mp_target_scale_row_bytes(set->target, &set->dims, side);
}

static uint64_t lay_out(const mp_packed_experts *e, const packed_set *set, mp_side side,
                        uint8_t *base, buffers *b)
{
    const mp_target *target = set->target;
    mp_tile first = mp_tile_at(target, &set->dims, side, tile_bytes(e, set, side), 0);
    uint64_t row = mp_scheme_row_bytes(target->scheme, mp_side_cols(&set->dims, side));
    uint64_t rectangle = first.parts * first.rows * mp_scheme_row_bytes(target->scheme, first.cols);
    int scale = tensor_number(set, side, MP_ROLE_SCALE);
    uint64_t used = 0;

    for (unsigned p = 0; p < mp_side_parts(side); p++)
        b->part[p] = take(base, &used, e->source.tile_rows * row);
    b->packed = take(base, &used, first.bytes);
    b->rectangle = take(base, &used, in_columns(set, side) ? rectangle : 0);
    b->packed_scale = take(base, &used, scale < 0 ? 0 : set->tensors[scale].slot_bytes);
    b->scale = take(base, &used, scale_bytes(set, side));
    return used;
}

uint64_t mp_packed_scratch(const mp_packed_experts *e)
{
    const packed_ranks *ranks = e->ranks;
    uint64_t most = 0;

    for (unsigned s = 0; s < ranks->num_sets; s++) {
        for (int side = 0; side < MP_SIDES; side++) {
            buffers b;
            uint64_t bytes = lay_out(e, &ranks->sets[s], (mp_side)side, NULL, &b);

            most = bytes > most ? bytes : most;
        }
    }
    return most;
}

/* A tile of columns has all rows, so that all are read. */
uint64_t mp_packed_tile_rows(const mp_packed_experts *e)
{
    const packed_ranks *ranks = e->ranks;
    const mp_dims *dims = &ranks->sets[0].dims;
    bool columns = false;

    for (unsigned s = 0; s < ranks->num_sets; s++)
        columns |= in_columns(&ranks->sets[s], MP_L1) || in_columns(&ranks->sets[s], MP_L2);
    if (!columns)
        return TILE_ROWS;
    return dims->hidden_size > dims->intermediate_size ? dims->hidden_size
                                                       : dims->intermediate_size;
}

/* ------------------------------------------------------------------------
 * Reading
 */

/* Puts the rectangles of a tile where they belong among rows row0 .. of their parts. */
static void unpack_tile(const place *p, mp_side side, const mp_tile *tile, uint64_t row0,
                        const buffers *b)
{
    const mp_target *target = p->set->target;
    uint64_t all = mp_scheme_row_bytes(target->scheme, mp_side_cols(&p->set->dims, side));
    uint64_t bytes = mp_scheme_row_bytes(target->scheme, tile->cols);
    uint64_t column = mp_scheme_row_bytes(target->scheme, tile->col0);
    uint8_t *to[2] = {NULL, NULL}, *out[2] = {b->rectangle, b->rectangle + tile->rows * bytes};

    for (unsigned i = 0; i < tile->parts; i++) {
        to[i] = b->part[tile->part + i] + (tile->row0 - row0) * all + column;
        if (bytes == all)
            out[i] = to[i];
    }
    target->unpack_weight(&p->set->dims, side, tile, b->packed, out);
    for (unsigned i = 0; bytes != all && i < tile->parts; i++)
        for (uint64_t r = 0; r < tile->rows; r++)
            memcpy(to[i] + r * all, out[i] + r * bytes, bytes);
}

static int read_weights(const mp_packed_experts *e, const place *p, mp_side side, uint64_t row0,
                        uint64_t rows, const buffers *b, mp_error *err)
{
    const packed_set *set = p->set;
    uint64_t bytes = tile_bytes(e, set, side);
    uint64_t count = mp_tile_count(set->target, &set->dims, side, bytes);
    int weight = tensor_number(set, side, MP_ROLE_WEIGHT);

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = mp_tile_at(set->target, &set->dims, side, bytes, i);

        if (tile.row0 < row0 || tile.row0 >= row0 + rows)
            continue;
        if (read_slot(p, weight, tile.offset, tile.bytes, b->packed, err) != 0)
            return err->code;
        unpack_tile(p, side, &tile, row0, b);
    }
    return 0;
}

static int read_scales(const place *p, mp_side side, const buffers *b, mp_error *err)
{
    int scale = tensor_number(p->set, side, MP_ROLE_SCALE);

    if (scale < 0)
        return 0;
    if (read_slot(p, scale, 0, p->set->tensors[scale].slot_bytes, b->packed_scale, err) != 0)
        return err->code;
    p->set->target->unpack_scale(&p->set->dims, side, b->packed_scale, b->scale);
    return 0;
}

/* Second scales of the parts, as the source had them where that is kept. */
static int read_globals(const place *p, mp_side side, float global[2], bool *divides, mp_error *err)
{
    int stored = tensor_number(p->set, side, MP_ROLE_GLOBAL_SCALE);
    int alpha = tensor_number(p->set, side, MP_ROLE_ALPHA);

    *divides = held_tensor(p, stored) != NULL;
    global[0] = global[1] = 1;
    if (*divides)
        return read_slot(p, stored, 0, mp_side_parts(side) * sizeof *global, global, err);
    return alpha < 0 ? 0
                     : read_slot(p, alpha, 0, mp_side_parts(side) * sizeof *global, global, err);
}

static int read_side(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                     void *scratch, mp_rows part[2], mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_packed_experts *e = user;
    const place p = find_place(e, id);
    const mp_target *target = p.set->target;
    const mp_scheme_form *form = mp_scheme_form_of(target->scheme);
    float global[2];
    bool divides;
    buffers b;

    if (!held_tensor(&p, tensor_number(p.set, side, MP_ROLE_WEIGHT)))
        return mp_fail(err, MP_ERR_USAGE, "slot %u is on rank %u, which is not open", id, p.number);
    lay_out(e, p.set, side, scratch, &b);
    int rc = read_weights(e, &p, side, row0, rows, &b, err);
    if (rc == 0)
        rc = read_scales(&p, side, &b, err);
    if (rc == 0)
        rc = read_globals(&p, side, global, &divides, err);
    for (unsigned i = 0; rc == 0 && i < mp_side_parts(side); i++) {
        uint64_t scale_row = i * mp_target_scale_rows(target, &p.set->dims, side) +
                             (form->has_scale ? row0 / form->block_rows : 0);

        part[i] = (mp_rows){
            .scheme = target->scheme,
            .scale_dtype = form->scale_dtype,
            .block_rows = form->block_rows,
            .block_cols = form->block_cols,
            .row0 = row0,
            .rows = rows,
            .cols = mp_side_cols(&p.set->dims, side),
            .weight = b.part[i],
            .scale = b.scale + scale_row * mp_target_scale_row_bytes(target, &p.set->dims, side),
            .global_scale = global[i],
            .global_divides = divides,
        };
    }
    return rc;
}

mp_expert_source mp_packed_source(const mp_packed_experts *e)
{
    const packed_ranks *ranks = e->ranks;
    mp_expert_source source = {
        .hidden_size = ranks->sets[0].dims.hidden_size,
        .intermediate_size = ranks->sets[0].dims.intermediate_size,
        .count = mp_slots_total(&e->slots) + e->apart * e->slots.ep,
        .user = e,
        .read = read_side,
    };

    return source;
}
