/* SPDX-License-Identifier: Apache-2.0 */
/* One expert, canonical and as a target packs it. */
#include "layout_slot.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/words.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"

#define RECORDS_MAX 32

const mp_target *const *layout_records(size_t *count)
{
    static const mp_target *records[RECORDS_MAX];
    const mp_target *const *targets = mp_targets(count);
    size_t n = 0, plain = *count;

    cr_assert_leq(3 * plain, RECORDS_MAX);
    for (size_t t = 0; t < plain; t++) {
        records[n++] = targets[t];
        if (targets[t]->nz)
            records[n++] = targets[t]->nz;
        if (targets[t]->fp4xfp4)
            records[n++] = targets[t]->fp4xfp4;
        if (targets[t]->separate != targets[t])
            records[n++] = targets[t]->separate;
    }
    *count = n;
    return records;
}

const char *layout_label(const mp_target *target)
{
    static char label[64];
    const mp_target *plain = mp_target_find(target->name);

    snprintf(label, sizeof label, "%s%s", target->name,
             plain && plain->nz == target        ? " nz"
             : plain && plain->fp4xfp4 == target ? " fp4xfp4"
                                                 : "");
    return label;
}

uint64_t layout_random(void)
{
    static uint64_t state = 20261122;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 8;
}

static void *allocate(size_t bytes)
{
    uint8_t *data = malloc(bytes);

    cr_assert(bytes == 0 || data);
    if (bytes > 0)
        memset(data, 0xa5, bytes);
    return data;
}

mp_slot_tensor layout_tensor(const mp_target *target, mp_dims dims, mp_side side, mp_role role)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned count = target->describe(&dims, tensors);

    for (unsigned t = 0; t < count; t++)
        if (tensors[t].side == side && tensors[t].role == role)
            return tensors[t];
    cr_assert_fail("%s has no such tensor", layout_label(target));
    return tensors[0];
}

/* Powers of two as float32 where the target wants such scales, else random bytes that begin
 * with the number of their row and are no NaN. */
static void fill_scales(const layout_slot *slot, uint8_t *scale, size_t rows, size_t row_bytes)
{
    for (size_t i = 0; i < rows * row_bytes; i++)
        scale[i] = (uint8_t)layout_random();
    for (size_t r = 0; r < rows; r++) {
        scale[r * row_bytes] = (uint8_t)r;
        if (row_bytes > 1)
            scale[r * row_bytes + 1] = (uint8_t)(r >> 8);
    }
    for (size_t i = 0; slot->target->ue8m0 && i < rows * row_bytes / 4; i++) {
        uint32_t bits = (1 + (uint32_t)i * 37 % 254) << 23;

        memcpy(scale + 4 * i, &bits, sizeof(bits));
    }
}

static void make_side(layout_slot *slot, mp_side side)
{
    const mp_target *target = slot->target;
    layout_side *s = &slot->sides[side];
    unsigned parts = mp_side_parts(side);
    size_t rows = parts * mp_target_scale_rows(target, &slot->dims, side);
    size_t row_bytes = mp_target_scale_row_bytes(target, &slot->dims, side);

    s->weight_bytes = mp_side_rows(&slot->dims, side) *
                      mp_scheme_row_bytes(target->scheme, mp_side_cols(&slot->dims, side));
    for (unsigned p = 0; p < parts; p++) {
        s->weight[p] = allocate(s->weight_bytes);
        for (size_t i = 0; i < s->weight_bytes; i++)
            s->weight[p][i] = (uint8_t)layout_random();
    }
    s->packed_bytes = layout_tensor(target, slot->dims, side, MP_ROLE_WEIGHT).slot_bytes;
    s->packed = allocate(s->packed_bytes);
    s->scale_bytes = rows * row_bytes;
    if (target->pack_scale)
        s->packed_scale_bytes = layout_tensor(target, slot->dims, side, MP_ROLE_SCALE).slot_bytes;
    s->scale = allocate(s->scale_bytes);
    s->packed_scale = allocate(s->packed_scale_bytes);
    fill_scales(slot, s->scale, rows, row_bytes);
}

layout_slot layout_slot_make(const mp_target *target, mp_dims dims)
{
    layout_slot slot = {.target = target, .dims = dims};

    make_side(&slot, MP_L1);
    make_side(&slot, MP_L2);
    return slot;
}

void layout_slot_free(layout_slot *slot)
{
    for (int side = 0; side < MP_SIDES; side++) {
        layout_side *s = &slot->sides[side];

        free(s->weight[0]);
        free(s->weight[1]);
        free(s->scale);
        free(s->packed);
        free(s->packed_scale);
    }
}

/* Where row r of a tile's rectangle lies in a part, and how long it is. */
static size_t rectangle_row(const layout_slot *slot, mp_side side, const mp_tile *tile, uint64_t r,
                            size_t *bytes)
{
    mp_scheme scheme = slot->target->scheme;

    *bytes = mp_scheme_row_bytes(scheme, tile->cols);
    return (tile->row0 + r) * mp_scheme_row_bytes(scheme, mp_side_cols(&slot->dims, side)) +
           mp_scheme_row_bytes(scheme, tile->col0);
}

/* The rectangles of a tile, copied out of the parts or, with `back`, into them. */
static void copy_rectangles(const layout_slot *slot, mp_side side, const mp_tile *tile,
                            uint8_t *rectangles[2], bool back)
{
    for (unsigned p = 0; p < tile->parts; p++) {
        for (uint64_t r = 0; r < tile->rows; r++) {
            size_t bytes, at = rectangle_row(slot, side, tile, r, &bytes);
            uint8_t *whole = slot->sides[side].weight[tile->part + p] + at;
            uint8_t *piece = rectangles[p] + r * bytes;

            if (back)
                memcpy(whole, piece, bytes);
            else
                memcpy(piece, whole, bytes);
        }
    }
}

static void pack_tile(layout_slot *slot, mp_side side, const mp_tile *tile, bool back)
{
    size_t bytes = tile->rows * mp_scheme_row_bytes(slot->target->scheme, tile->cols);
    uint8_t *rectangles[2] = {allocate(bytes), tile->parts == 2 ? allocate(bytes) : NULL};
    const uint8_t *const in[2] = {rectangles[0], rectangles[1]};
    uint8_t *extent = slot->sides[side].packed + tile->offset, *packed = allocate(tile->bytes);

    cr_assert_leq(tile->offset + tile->bytes, slot->sides[side].packed_bytes);
    if (back) {
        memcpy(packed, extent, tile->bytes);
        slot->target->unpack_weight(&slot->dims, side, tile, packed, rectangles);
    }
    copy_rectangles(slot, side, tile, rectangles, back);
    if (!back) {
        slot->target->pack_weight(&slot->dims, side, tile, in, packed);
        memcpy(extent, packed, tile->bytes);
        if (slot->target->tiling(&slot->dims, side).unchanged)
            layout_expect_bytes("an unchanged tile", packed, in[0], tile->bytes);
    }
    free(packed);
    free(rectangles[0]);
    free(rectangles[1]);
}

static void every_tile(layout_slot *slot, mp_side side, uint64_t tile_bytes, bool back)
{
    uint64_t count = mp_tile_count(slot->target, &slot->dims, side, tile_bytes);

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = mp_tile_at(slot->target, &slot->dims, side, tile_bytes, i);

        pack_tile(slot, side, &tile, back);
    }
}

void layout_slot_pack(layout_slot *slot, mp_side side, uint64_t tile_bytes)
{
    layout_side *s = &slot->sides[side];

    memset(s->packed, 0xa5, s->packed_bytes);
    every_tile(slot, side, tile_bytes, false);
    if (slot->target->pack_scale)
        slot->target->pack_scale(&slot->dims, side, s->scale, s->packed_scale);
}

void layout_slot_unpack(layout_slot *slot, mp_side side, uint64_t tile_bytes)
{
    layout_side *s = &slot->sides[side];

    every_tile(slot, side, tile_bytes, true);
    if (slot->target->unpack_scale)
        slot->target->unpack_scale(&slot->dims, side, s->packed_scale, s->scale);
}

void layout_expect_bytes(const char *what, const uint8_t *have, const uint8_t *want, size_t n)
{
    size_t i = 0;

    while (i < n && have[i] == want[i])
        i++;
    cr_assert_eq(i, n, "%s: byte %zu: %02x, expected %02x", what, i, have[i], want[i]);
}
