/* SPDX-License-Identifier: Apache-2.0 */
/* Any sizes, tiles and bytes: what a target takes comes back from pack and unpack. The first
 * bytes are H and I in units of 64, and rows of a tile; the others are weights and scales. */
#include <moepack/layout.h>

#include "fuzz.h"

/* A buffer of n bytes that repeats the input, each time with another byte added. */
static uint8_t *fill(const uint8_t *data, size_t size, size_t n)
{
    uint8_t *bytes = malloc(n + 1);

    require(bytes != NULL, "memory");
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)((size ? data[i % size] : 0) + i / (size + 1));
    return bytes;
}

typedef struct side_case {
    const mp_target *target;
    mp_dims dims;
    mp_side side;
    uint64_t rows, row_bytes, tile;
} side_case;

static uint64_t tile_at(const side_case *c, uint64_t row)
{
    return c->tile < c->rows - row ? c->tile : c->rows - row;
}

static void pack(const side_case *c, const uint8_t *weight, uint8_t *out)
{
    const uint8_t *up = weight + c->rows / 2 * c->row_bytes;

    for (uint64_t row = 0; row < c->rows; row += c->tile) {
        uint64_t half = row / 2 * c->row_bytes;

        if (c->side == MP_L1)
            c->target->pack_weight(&c->dims, MP_L1, row, tile_at(c, row), weight + half, up + half,
                                   out + row * c->row_bytes);
        else
            c->target->pack_weight(&c->dims, MP_L2, row, tile_at(c, row),
                                   weight + row * c->row_bytes, NULL, out + row * c->row_bytes);
    }
}

static void unpack(const side_case *c, const uint8_t *in, uint8_t *weight)
{
    uint8_t *up = weight + c->rows / 2 * c->row_bytes;

    for (uint64_t row = 0; row < c->rows; row += c->tile) {
        uint64_t half = row / 2 * c->row_bytes;

        if (c->side == MP_L1)
            c->target->unpack_weight(&c->dims, MP_L1, row, tile_at(c, row), in + row * c->row_bytes,
                                     weight + half, up + half);
        else
            c->target->unpack_weight(&c->dims, MP_L2, row, tile_at(c, row), in + row * c->row_bytes,
                                     weight + row * c->row_bytes, NULL);
    }
}

static void check_weight(const side_case *c, const uint8_t *data, size_t size)
{
    uint64_t n = c->rows * c->row_bytes;
    uint8_t *bytes = fill(data, size, n), *there = malloc(n), *back = malloc(n);

    pack(c, bytes, there);
    unpack(c, there, back);
    require(memcmp(bytes, back, n) == 0, "unpack of pack");
    unpack(c, bytes, there);
    pack(c, there, back);
    require(memcmp(bytes, back, n) == 0, "pack of unpack");
    free(bytes);
    free(there);
    free(back);
}

static void check_scale(const side_case *c, const mp_slot_tensor *tensor, const uint8_t *data,
                        size_t size)
{
    uint64_t n = c->rows * mp_target_scale_row_bytes(c->target, mp_side_cols(&c->dims, c->side));
    uint8_t *bytes = fill(data, size, n), *there = malloc(tensor->slot_bytes + 1);
    uint8_t *back = malloc(n + 1);

    c->target->pack_scale(&c->dims, c->side, bytes, there);
    c->target->unpack_scale(&c->dims, c->side, there, back);
    require(memcmp(bytes, back, n) == 0, "unpack of pack of scales");
    free(bytes);
    free(there);
    free(back);
}

static void check_target(const mp_target *target, mp_dims dims, unsigned tile, const uint8_t *data,
                         size_t size)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    mp_problems warnings = {0};
    mp_error err = {0};

    if (target->check(&dims, &warnings, &err) == 0) {
        unsigned count = target->describe(&dims, tensors);

        for (unsigned t = 0; t < count; t++) {
            mp_side side = tensors[t].side;
            uint64_t group = side == MP_L1 ? target->l1_row_group : 1;
            side_case c = {target, dims, side, mp_side_rows(&dims, side), 0, group * (1 + tile)};

            c.row_bytes = mp_scheme_row_bytes(target->scheme, mp_side_cols(&dims, side));
            if (tensors[t].role == MP_ROLE_WEIGHT)
                check_weight(&c, data, size);
            else
                check_scale(&c, &tensors[t], data, size);
        }
    } else {
        require_message(&err);
    }
    mp_problems_release(&warnings);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    if (size < 3)
        return 0;
    for (size_t t = 0; t < count; t++)
        check_target(targets[t], (mp_dims){data[0] % 11 * 64, data[1] % 11 * 64}, data[2], data + 3,
                     size - 3);
    return 0;
}
