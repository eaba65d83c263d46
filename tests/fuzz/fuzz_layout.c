/* SPDX-License-Identifier: Apache-2.0 */
/* Any sizes, tiles and bytes: what a target takes comes back from pack and unpack, and any
 * packed bytes can be unpacked. The first bytes are H and I, and the size of tiles; the
 * others are weights and scales. */
#include <moepack/layout.h>

#include "fuzz.h"

#include "base/words.h"
#include "layout/sides.h"
#include "layout/tile.h"
#include "numeric/forms.h"

#define HEADER 4

/* A buffer of n bytes that repeats the input, each time with another byte behind it. */
static uint8_t *fill(const uint8_t *data, size_t size, size_t n)
{
    uint8_t *bytes = malloc(n + 1);

    require(bytes != NULL, "memory");
    for (size_t i = 0; i < n; i += size + 1) {
        size_t count = n - i < size ? n - i : size;

        memcpy(bytes + i, data, count);
        bytes[i + count] = (uint8_t)(i / (size + 1));
    }
    return bytes;
}

typedef struct side_case {
    const mp_target *target;
    mp_dims dims;
    mp_side side;
    uint64_t tile_bytes;
    const uint8_t *data;
    size_t size;
} side_case;

static void check_tile(const side_case *c, const mp_tile *tile)
{
    uint64_t n = tile->rows * mp_scheme_row_bytes(c->target->scheme, tile->cols);
    uint8_t *in[2] = {fill(c->data, c->size, n), fill(c->data, c->size / 2, n)};
    uint8_t *back[2] = {malloc(n), malloc(n)}, *packed = malloc(tile->bytes);
    const uint8_t *const from[2] = {in[0], in[1]};

    c->target->pack_weight(&c->dims, c->side, tile, from, packed);
    c->target->unpack_weight(&c->dims, c->side, tile, packed, back);
    for (unsigned p = 0; p < tile->parts; p++)
        require(memcmp(in[p], back[p], n) == 0, "unpack of pack");
    for (unsigned p = 0; p < 2; p++) {
        free(in[p]);
        free(back[p]);
    }
    free(packed);
}

static void check_weight(const side_case *c, const mp_slot_tensor *tensor)
{
    uint64_t count = mp_tile_count(c->target, &c->dims, c->side, c->tile_bytes), offset = 0;

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = mp_tile_at(c->target, &c->dims, c->side, c->tile_bytes, i);

        require(tile.offset == offset, "tiles next to each other");
        offset += tile.bytes;
        check_tile(c, &tile);
    }
    require(offset == tensor->slot_bytes, "tiles fill the tensor");
}

/* Scales that have to be powers of two become some. */
static void round_scales(uint8_t *scales, uint64_t n)
{
    for (uint64_t i = 0; i + 4 <= n; i += 4) {
        uint32_t bits = (uint32_t)(1 + scales[i] % 254) << 23;

        memcpy(scales + i, &bits, sizeof(bits));
    }
}

static void check_scale(const side_case *c, const mp_slot_tensor *tensor)
{
    uint64_t n = mp_side_parts(c->side) * mp_target_scale_rows(c->target, &c->dims, c->side) *
                 mp_target_scale_row_bytes(c->target, &c->dims, c->side);
    uint8_t *bytes = fill(c->data, c->size, n), *back = malloc(n);
    uint8_t *packed = malloc(tensor->slot_bytes);
    uint8_t *any = fill(c->data, c->size, tensor->slot_bytes);

    if (c->target->ue8m0)
        round_scales(bytes, n);
    c->target->pack_scale(&c->dims, c->side, bytes, packed);
    c->target->unpack_scale(&c->dims, c->side, packed, back);
    require(memcmp(bytes, back, n) == 0, "unpack of pack of scales");
    c->target->unpack_scale(&c->dims, c->side, any, back);
    free(bytes);
    free(back);
    free(packed);
    free(any);
}

static void check_target(const mp_target *target, mp_dims dims, uint64_t tile_bytes,
                         const uint8_t *data, size_t size)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    mp_problems warnings = {0};
    mp_error err = {0};

    if (target->check(&dims, &warnings, &err) == 0) {
        unsigned count = target->describe(&dims, tensors);

        for (unsigned t = 0; t < count; t++) {
            side_case c = {target, dims, tensors[t].side, tile_bytes, data, size};

            if (tensors[t].role == MP_ROLE_WEIGHT)
                check_weight(&c, &tensors[t]);
            else if (tensors[t].role == MP_ROLE_SCALE)
                check_scale(&c, &tensors[t]);
        }
    } else {
        require_message(&err);
    }
    mp_problems_release(&warnings);
}

/* Sizes of kernels that take multiples, and any others: up to 384, or 127. */
static uint64_t size_of(uint8_t byte)
{
    return byte < 128 ? byte : (uint64_t)(byte - 128) % 7 * 64;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    if (size < HEADER)
        return 0;

    mp_dims dims = {size_of(data[0]), size_of(data[1])};
    uint64_t tile_bytes = ((uint64_t)data[2] << 8 | data[3]) * 16;

    for (size_t t = 0; t < count; t++) {
        const mp_target *forms[] = {targets[t], targets[t]->nz, targets[t]->separate};

        for (size_t f = 0; f < 3; f++)
            if (forms[f] && (f == 0 || forms[f] != targets[t]))
                check_target(forms[f], dims, tile_bytes, data + HEADER, size - HEADER);
    }
    return 0;
}
