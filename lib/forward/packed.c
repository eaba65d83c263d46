/* SPDX-License-Identifier: Apache-2.0 */
/* Slots of a packed directory as an expert source, each from the files of its own rank. */

#include "experts/packed.h"
#include "base/error.h"
#include "forward/reference.h"
#include "pack/pack.h"

/* Rows that are read at once. */
#define TILE_ROWS 512

/* A side of the slot that an id stands for. */
static mp_packed_side side_of(const mp_packed_experts *e, uint32_t id, mp_side side)
{
    const mp_shape *shape = &e->pack->shape;
    uint32_t total = shape->slots.total, per_rank = shape->slots.per_rank;
    bool apart = id >= total;
    uint32_t number = apart ? id - total : id, slots = apart ? e->apart : per_rank;

    return (mp_packed_side){
        .pack = e->pack,
        .layer = e->layer,
        .set = &shape->sets[apart ? MP_SET_SHARED : MP_SET_SLOTS],
        .place = {number / slots, number % slots},
        .side = side,
        .tile_rows = e->source.tile_rows,
    };
}

static int read_side(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                     void *scratch, mp_rows part[2], mp_error *err)
{
    mp_packed_side s = side_of(user, id, side);

    err = MP_NEVER_NULL(err);
    mp_packed_side_init(&s, scratch);
    return mp_packed_begin(&s, err) != 0 ? err->code : mp_packed_rows(&s, row0, rows, part, err);
}

/* As many rows, and as much scratch, as any side of any set takes. */
static void settle_tiles(mp_packed_experts *e)
{
    const mp_shape *shape = &e->pack->shape;
    uint32_t ids[] = {0, shape->slots.total};

    for (unsigned s = 0; s < shape->num_sets; s++) {
        for (int side = 0; side < MP_SIDES; side++) {
            uint64_t rows = mp_packed_tile_rows(&shape->sets[s], (mp_side)side, TILE_ROWS);

            if (rows > e->source.tile_rows)
                e->source.tile_rows = rows;
        }
    }
    for (unsigned s = 0; s < shape->num_sets; s++) {
        for (int side = 0; side < MP_SIDES; side++) {
            const mp_packed_side one = side_of(e, ids[s], (mp_side)side);
            uint64_t bytes = mp_packed_scratch(&one);

            if (bytes > e->source.scratch_bytes)
                e->source.scratch_bytes = bytes;
        }
    }
}

int mp_packed_experts_init(mp_packed_experts *experts, const mp_pack *pack, size_t layer,
                           mp_error *err)
{
    const mp_shape *shape = &pack->shape;
    const mp_slot_set *shared = &shape->sets[MP_SET_SHARED];
    uint32_t apart = shape->num_sets > 1 ? shared->slots : 0;

    if (apart && shared->dims.intermediate_size != shape->sets[MP_SET_SLOTS].dims.intermediate_size)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: %u shared experts in one tensor are not computed", MP_MANIFEST_NAME,
                       (unsigned)pack->manifest.num_shared_experts);
    *experts = (mp_packed_experts){
        .source = {.hidden_size = shape->sets[MP_SET_SLOTS].dims.hidden_size,
                   .intermediate_size = shape->sets[MP_SET_SLOTS].dims.intermediate_size,
                   .count = shape->slots.total + apart * shape->slots.ep,
                   .user = experts,
                   .read = read_side},
        .pack = pack,
        .layer = layer,
        .row = mp_placement_row(&pack->placement, (uint32_t)layer),
        .apart = apart,
    };
    settle_tiles(experts);
    return 0;
}
