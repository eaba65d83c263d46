/* SPDX-License-Identifier: Apache-2.0 */
/* A side of a slot against its expert: weights in tiles, everything else whole. "Have" is what the
 * file holds, undone by the target's own inverse; "want" is the expert in the target's scheme, made
 * from the source as repack makes it. Both are canonical, so that a row of one is a row of the
 * other:
 *
 *   packed tile --unpack_weight--> have   [parts][rows][row bytes]
 *   source rows --mp_canonical---> want   the same, part by part
 *
 * Rows are compared, not the packed bytes, since a difference has to be told as an expert's row and
 * column, and whether most rows differ says what kind of fault it is. But an inverse drops what
 * belongs to no element; so padding is counted, and scales, which some layouts repeat or widen, are
 * packed again and held against the file's very bytes.
 *
 * Scratch is one buffer a thread, cut up by mp_slot_side_lay_out. Nothing is reported before all is
 * compared: finding out what to say reads other tiles into the same buffers. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"
#include "verify/exact.h"
#include "verify/locate.h"

/* ------------------------------------------------------------------------
 * Setting up
 */

int mp_slot_side_init(mp_slot_side *s, const mp_exact *exact, mp_check *check,
                      const mp_slot_set *set, size_t layer, uint32_t id, mp_side side,
                      mp_error *err)
{
    *s = (mp_slot_side){
        .exact = exact,
        .check = check,
        .set = set,
        .layer = layer,
        .id = id,
        .side = side,
    };
    for (int role = 0; role < MP_ROLES; role++)
        s->tensor[role] = mp_set_tensor(set, side, (mp_role)role);
    return mp_source_side(&exact->source, set, layer, id, side, &s->view, &s->from, err);
}

/* Takes n bytes off the scratch; with a null base it only measures. */
static void *carve(uint8_t *base, uint64_t *used, uint64_t n)
{
    /* Kernels want pieces aligned to 64 bytes, as the base is. */
    void *piece = base ? base + *used : NULL;

    *used += mp_round_up(n, 64);
    return piece;
}

static mp_tile tile_at(const mp_slot_side *s, uint64_t index)
{
    return mp_tile_at(s->set->target, &s->set->dims, s->side, s->from.tile_bytes, index);
}

/* Bytes of a row of a tile's rectangles, and of all rectangles. */
static uint64_t tile_row_bytes(const mp_slot_side *s, const mp_tile *tile)
{
    return mp_scheme_row_bytes(s->set->target->scheme, tile->cols);
}

static uint64_t rectangle_bytes(const mp_slot_side *s, const mp_tile *tile)
{
    return tile->parts * tile->rows * tile_row_bytes(s, tile);
}

static uint64_t all_rows(const mp_slot_side *s)
{
    return mp_side_parts(s->side) * mp_side_rows(&s->set->dims, s->side);
}

/* Canonical scales of all parts: rows and bytes of a row. */
static uint64_t scale_rows(const mp_slot_side *s)
{
    return mp_side_parts(s->side) * mp_target_scale_rows(s->set->target, &s->set->dims, s->side);
}

static uint64_t scale_row_bytes(const mp_slot_side *s)
{
    return mp_target_scale_row_bytes(s->set->target, &s->set->dims, s->side);
}

uint64_t mp_slot_side_lay_out(mp_slot_side *s, void *scratch)
{
    const mp_slot_tensor *scale = s->tensor[MP_ROLE_SCALE];
    mp_tile first = tile_at(s, 0); /* as large as any */
    uint64_t used = 0, vector = 0;

    for (int role = MP_ROLE_SCALE + 1; role < MP_ROLES; role++)
        if (s->tensor[role] && s->tensor[role]->slot_bytes > vector)
            vector = s->tensor[role]->slot_bytes;
    s->packed = carve(scratch, &used, first.bytes);
    s->have = carve(scratch, &used, rectangle_bytes(s, &first));
    s->packed_scale = carve(scratch, &used, scale ? scale->slot_bytes : 0);
    s->repacked_scale = carve(scratch, &used, scale ? scale->slot_bytes : 0);
    s->have_scale = carve(scratch, &used, scale_rows(s) * scale_row_bytes(s));
    s->have_vector = carve(scratch, &used, vector);
    s->want_vector = carve(scratch, &used, vector);
    /* A flag for each row, since a layout that cuts columns meets a row in several tiles. */
    s->row_differs = carve(scratch, &used, all_rows(s) * sizeof *s->row_differs);
    if (scratch)
        mp_canonical_init(&s->want, &s->from, (uint8_t *)scratch + used);
    return used + mp_canonical_scratch(&s->from);
}

mp_spot mp_slot_side_spot(const mp_slot_side *s, mp_role role)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, s->rank->packed->rank);

    spot.layer = (int64_t)s->layer;
    spot.slot = s->set->target->single ? -1 : (int64_t)s->slot;
    spot.tensor = s->held[role]->tensor->name;
    return spot;
}

/* ------------------------------------------------------------------------
 * Reading
 */

/* Bytes of a tensor of the slot. */
static int read_slot(const mp_slot_side *s, mp_role role, uint64_t offset, uint64_t n, void *out,
                     mp_error *err)
{
    const mp_held *held = s->held[role];
    uint64_t slot_begin = s->slot * s->tensor[role]->slot_bytes;

    if (mp_tensor_read(held->file, held->tensor, slot_begin + offset, n, out, err) != 0)
        return mp_error_prefix(err, "rank %u", s->rank->packed->rank);
    return 0;
}

int mp_slot_side_read(mp_slot_side *s, const mp_tile *tile, mp_error *err)
{
    uint8_t *const out[2] = {s->have, s->have + tile->rows * tile_row_bytes(s, tile)};

    int rc = read_slot(s, MP_ROLE_WEIGHT, tile->offset, tile->bytes, s->packed, err);
    if (rc == 0)
        s->set->target->unpack_weight(&s->set->dims, s->side, tile, s->packed, out);
    return rc;
}

/* ------------------------------------------------------------------------
 * Weights
 */

/* Counts bytes that differ, and marks their rows. */
static bool compare_rows(const mp_slot_side *s, const mp_tile *tile, mp_difference *d)
{
    uint64_t row_bytes = tile_row_bytes(s, tile), rows = mp_side_rows(&s->set->dims, s->side);
    const uint8_t *have = s->have;
    bool any = false;

    for (unsigned p = 0; p < tile->parts; p++) {
        const uint8_t *want = s->want.weight[p];

        for (uint64_t r = 0; r < tile->rows; r++, have += row_bytes, want += row_bytes) {
            if (memcmp(have, want, row_bytes) == 0)
                continue;
            any = true;
            s->row_differs[(tile->part + p) * rows + tile->row0 + r] = true;
            for (uint64_t i = 0; i < row_bytes; i++)
                d->bytes += have[i] != want[i];
        }
    }
    return any;
}

static uint64_t count_nonzero(const uint8_t *bytes, uint64_t n)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < n; i++)
        count += bytes[i] != 0;
    return count;
}

/* Bytes of the tile that unpacking dropped though they are not zero. Layouts with padding move
 * whole bytes and change none, so what unpacking kept has as many that are not zero as the tile has
 * outside of its padding. */
static uint64_t padding_lost(const mp_slot_side *s, const mp_tile *tile)
{
    uint64_t bytes = rectangle_bytes(s, tile);

    return tile->bytes == bytes
               ? 0
               : count_nonzero(s->packed, tile->bytes) - count_nonzero(s->have, bytes);
}

typedef struct weight_pack {
    const mp_slot_side *s;
    const mp_tile *tile;
} weight_pack;

static void pack_weight(const void *user, const uint8_t *canonical, uint8_t *packed)
{
    const weight_pack *w = user;
    const mp_slot_side *s = w->s;
    uint64_t part_bytes = w->tile->rows * tile_row_bytes(s, w->tile);
    const uint8_t *const in[2] = {canonical, canonical + part_bytes};

    s->set->target->pack_weight(&s->set->dims, s->side, w->tile, in, packed);
}

/* The value of an element of `width` bytes, little-endian. */
static uint64_t element_value(const uint8_t *element, unsigned width)
{
    uint64_t value = 0;

    for (unsigned i = width; i-- > 0;)
        value = value << 8 | element[i];
    return value;
}

/* Fills in the first difference but for its row: `begin` is where the piece begins in the
 * tensor. Returns the canonical byte of the element, or MP_LOCATE_NONE for padding. */
static int locate(const mp_locate *l, uint64_t begin, mp_difference *d, uint64_t *at, mp_error *err)
{
    mp_location found;

    int rc = mp_locate_first(l, &found, err);
    if (rc != 0)
        return rc;
    d->found = true;
    d->offset = found.offset == MP_LOCATE_NONE ? MP_NOWHERE : begin + found.offset;
    *at = found.at;
    if (found.offset == MP_LOCATE_NONE) /* a layout that packs what differs alike */
        for (*at = 0; *at < l->bytes - l->width && l->have[*at] == l->want[*at];)
            ++*at;
    d->padding = *at == MP_LOCATE_NONE;
    d->bits = d->padding ? 8 : l->width * 8;
    if (d->padding) {
        d->have = found.have;
        d->want = found.want;
        return 0;
    }
    *at -= *at % l->width;
    d->have = element_value(l->have + *at, l->width);
    d->want = element_value(l->want + *at, l->width);
    return 0;
}

/* The part of the first difference that is the place of an element of a tile. */
static void place_in_tile(const mp_slot_side *s, const mp_tile *tile, uint64_t at, mp_difference *d)
{
    uint64_t row_bytes = tile_row_bytes(s, tile), part_bytes = tile->rows * row_bytes;

    d->part = tile->part + (unsigned)(at / part_bytes);
    d->row = tile->row0 + at % part_bytes / row_bytes;
    d->byte = mp_scheme_row_bytes(s->set->target->scheme, tile->col0) + at % row_bytes;
}

/* Finds the first byte that is wrong in a tile of which one is. */
static int locate_in_tile(const mp_slot_side *s, const mp_tile *tile, mp_difference *d,
                          mp_error *err)
{
    uint64_t bytes = rectangle_bytes(s, tile), part_bytes = bytes / tile->parts, at;
    unsigned bits = mp_scheme_bits(s->set->target->scheme);
    const weight_pack user = {s, tile};
    uint8_t *want = mp_alloc(bytes, 1);

    if (!want)
        return mp_fail_memory(err);
    for (unsigned p = 0; p < tile->parts; p++)
        memcpy(want + p * part_bytes, s->want.weight[p], part_bytes);
    const mp_locate l = {
        .pack = pack_weight,
        .user = &user,
        .packed = s->packed,
        .packed_bytes = tile->bytes,
        .have = s->have,
        .want = want,
        .bytes = bytes,
        .width = bits < 8 ? 1 : bits / 8,
    };
    int rc = locate(&l, tile->offset, d, &at, err);
    if (rc == 0 && !d->padding)
        place_in_tile(s, tile, at, d);
    free(want);
    return rc;
}

static int compare_tile(mp_slot_side *s, const mp_tile *tile, mp_difference *d, mp_error *err)
{
    int rc = mp_slot_side_read(s, tile, err);
    if (rc != 0)
        return rc;
    bool differs = compare_rows(s, tile, d);
    uint64_t lost = padding_lost(s, tile);

    d->bytes += lost;
    /* Tiles pass in the order of the packed tensor, so the first one that differs has its first
     * byte. */
    return (differs || lost) && !d->found ? locate_in_tile(s, tile, d, err) : 0;
}

/* Also fills in want.scale, where its values come with the tiles. */
static int compare_weights(mp_slot_side *s, mp_difference *d, mp_error *err)
{
    uint64_t count = mp_tile_count(s->set->target, &s->set->dims, s->side, s->from.tile_bytes);
    int rc = 0;

    memset(s->row_differs, 0, all_rows(s) * sizeof *s->row_differs);
    for (uint64_t i = 0; i < count && rc == 0; i++) {
        mp_tile tile = tile_at(s, i);

        /* Made even where there are no weights to compare with: requantized scales come out of
         * it. */
        rc = mp_canonical_tile(&s->want, &tile, NULL, err);
        if (rc == 0 && s->held[MP_ROLE_WEIGHT])
            rc = compare_tile(s, &tile, d, err);
    }
    d->of_rows = all_rows(s);
    for (uint64_t r = 0; r < d->of_rows; r++)
        d->rows += s->row_differs[r];
    return rc;
}

/* ------------------------------------------------------------------------
 * Scales and vectors
 */

static void pack_scale(const void *user, const uint8_t *canonical, uint8_t *packed)
{
    const mp_slot_side *s = user;

    s->set->target->pack_scale(&s->set->dims, s->side, canonical, packed);
}

/* Counts scales and rows that differ. */
static void count_scales(const mp_slot_side *s, mp_difference *d)
{
    uint64_t row_bytes = scale_row_bytes(s);

    d->of_rows = scale_rows(s);
    for (uint64_t r = 0; r < d->of_rows; r++) {
        const uint8_t *have = s->have_scale + r * row_bytes, *want = s->want.scale + r * row_bytes;

        d->rows += memcmp(have, want, row_bytes) != 0;
        for (uint64_t i = 0; i < row_bytes; i++)
            d->bytes += have[i] != want[i];
    }
}

/* Finds the first byte that is wrong in a scale tensor of which one is. */
static int locate_scale(const mp_slot_side *s, mp_difference *d, mp_error *err)
{
    uint64_t row_bytes = scale_row_bytes(s), part_rows = d->of_rows / mp_side_parts(s->side), at;
    const mp_locate l = {
        .pack = pack_scale,
        .user = s,
        .packed = s->packed_scale,
        .packed_bytes = s->tensor[MP_ROLE_SCALE]->slot_bytes,
        .have = s->have_scale,
        .want = s->want.scale,
        .bytes = d->of_rows * row_bytes,
        .width = mp_dtype_bits(mp_scheme_form_of(s->set->target->scheme)->scale_dtype) / 8,
    };

    int rc = locate(&l, 0, d, &at, err);
    if (rc != 0 || d->padding)
        return rc;
    d->part = (unsigned)(at / row_bytes / part_rows);
    d->row = at / row_bytes % part_rows;
    d->byte = at % row_bytes;
    if (s->set->target->ue8m0 && d->offset != MP_NOWHERE) {
        /* What is stored are exponents, each of them more than once. */
        d->have = s->packed_scale[d->offset];
        d->want = s->repacked_scale[d->offset];
        d->bits = 8;
    }
    return 0;
}

/* Scales are held against their bytes too: unpacking drops what only repeats a scale, or
 * widens it. */
static int compare_scales(mp_slot_side *s, mp_difference *d, mp_error *err)
{
    uint64_t slot_bytes = s->tensor[MP_ROLE_SCALE]->slot_bytes;

    int rc = read_slot(s, MP_ROLE_SCALE, 0, slot_bytes, s->packed_scale, err);
    if (rc != 0)
        return rc;
    s->set->target->unpack_scale(&s->set->dims, s->side, s->packed_scale, s->have_scale);
    pack_scale(s, s->want.scale, s->repacked_scale);
    count_scales(s, d);
    /* Only where canonical scales agree: else they would be counted twice. */
    if (d->bytes == 0)
        for (uint64_t i = 0; i < slot_bytes; i++)
            d->bytes += s->packed_scale[i] != s->repacked_scale[i];
    return d->bytes > 0 ? locate_scale(s, d, err) : 0;
}

static int compare_vector(mp_slot_side *s, mp_role role, mp_error *err)
{
    const mp_slot_tensor *tensor = s->tensor[role];

    if (tensor->optional && !mp_has_vector(s->from.storage, &s->view, tensor))
        return 0; /* mp_check_exact has said so */
    int rc = mp_canonical_vector(&s->want, tensor, s->want_vector, err);
    if (rc == 0)
        rc = read_slot(s, role, 0, tensor->slot_bytes, s->have_vector, err);
    if (rc == 0 && memcmp(s->have_vector, s->want_vector, tensor->slot_bytes) != 0)
        mp_report_vector(s, role);
    return rc;
}

/* Reports when all is compared: finding out what to say overwrites tiles. */
int mp_slot_side_compare(mp_slot_side *s, mp_error *err)
{
    mp_difference weight = {0}, scale = {0};

    int rc = mp_canonical_begin(&s->want, err);
    if (rc == 0)
        rc = compare_weights(s, &weight, err);
    if (rc == 0 && s->held[MP_ROLE_SCALE])
        rc = compare_scales(s, &scale, err);
    /* Vectors come first: they are reported from their own buffers, which nothing overwrites. */
    for (int role = MP_ROLE_SCALE + 1; role < MP_ROLES && rc == 0; role++)
        if (s->held[role])
            rc = compare_vector(s, (mp_role)role, err);
    if (rc == 0 && weight.bytes > 0)
        rc = mp_report_difference(s, MP_ROLE_WEIGHT, &weight, err);
    if (rc == 0 && scale.bytes > 0)
        rc = mp_report_difference(s, MP_ROLE_SCALE, &scale, err);
    return rc;
}
