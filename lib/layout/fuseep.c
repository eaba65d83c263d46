/* SPDX-License-Identifier: Apache-2.0 */
/* fuseep-1 and fuseep-2: int8 weights for the fused kernels of Ascend, which multiply by transposed
 * matrices.
 *
 *     columns of w13 [H, 2I]   mode 1: gate 0-63, up 0-63, gate 64-127, up 64-127, ...
 *                              mode 2: all of gate, all of up
 *     w2                       mode 1: [H, I], as it is;   mode 2: [I, H]
 *
 * A row of the source becomes a column, so a tile of rows would touch every line of the packed
 * tensor. Tiles are therefore columns, in groups of at least a cache line, and are transposed in
 * blocks (mp_transpose). Each row has one scale, which becomes that of a column and moves with it.
 * Mode 2 wants the bits of each float32 widened to 64, which is how the kernel receives them.
 *
 * All functions are pure: buffers in, buffers out, on any number of threads. */
#include "layout/fuseep.h"
#include "base/transpose.h"
#include "base/words.h"
#include "layout/interleave.h"
#include "layout/sides.h"

#include <string.h>

#define CHUNK 64 /* columns of gate, then of up, in mode 1 */

/* ------------------------------------------------------------------------
 * Weights
 */

/* Mode 2: all rows of a part become columns next to each other. */
static void pack_weight_2(const mp_dims *dims, mp_side side, const mp_tile *tile,
                          const uint8_t *const in[2], uint8_t *out)
{
    (void)dims;
    (void)side;
    for (unsigned p = 0; p < tile->parts; p++)
        mp_transpose(in[p], tile->cols, tile->rows, tile->cols, 1, out + p * tile->rows,
                     tile->parts * tile->rows);
}

static void unpack_weight_2(const mp_dims *dims, mp_side side, const mp_tile *tile,
                            const uint8_t *in, uint8_t *const out[2])
{
    (void)dims;
    (void)side;
    for (unsigned p = 0; p < tile->parts; p++)
        mp_transpose(in + p * tile->rows, tile->parts * tile->rows, tile->cols, tile->rows, 1,
                     out[p], tile->cols);
}

/* Mode 1: 64 rows of a part become columns next to each other. */
static void pack_weight_1(const mp_dims *dims, mp_side side, const mp_tile *tile,
                          const uint8_t *const in[2], uint8_t *out)
{
    uint64_t line = 2 * dims->intermediate_size;

    if (side == MP_L2) {
        memcpy(out, in[0], tile->bytes);
        return;
    }
    for (uint64_t column = 0; column < line; column += CHUNK) {
        mp_part_row from = mp_interleave_source(&mp_interleave_64, column);

        mp_transpose(in[from.part] + from.row * tile->cols, tile->cols, CHUNK, tile->cols, 1,
                     out + column, line);
    }
}

static void unpack_weight_1(const mp_dims *dims, mp_side side, const mp_tile *tile,
                            const uint8_t *in, uint8_t *const out[2])
{
    uint64_t line = 2 * dims->intermediate_size;

    if (side == MP_L2) {
        memcpy(out[0], in, tile->bytes);
        return;
    }
    for (unsigned p = 0; p < 2; p++)
        for (uint64_t row = 0; row < tile->rows; row += CHUNK)
            mp_transpose(in + mp_interleave_place(&mp_interleave_64, p, row), line, tile->cols,
                         CHUNK, 1, out[p] + row * tile->cols, tile->cols);
}

static mp_tiling tiling_1(const mp_dims *dims, mp_side side)
{
    (void)dims;
    if (side == MP_L1)
        return (mp_tiling){.kind = MP_TILES_COLS, .group = MP_COLS_GROUP, .pad = 1};
    return (mp_tiling){.kind = MP_TILES_ROWS, .group = 1, .pad = 1, .unchanged = true};
}

static mp_tiling tiling_2(const mp_dims *dims, mp_side side)
{
    (void)dims;
    (void)side;
    return (mp_tiling){.kind = MP_TILES_COLS, .group = MP_COLS_GROUP, .pad = 1};
}

/* ------------------------------------------------------------------------
 * Scales
 */

void mp_fuseep_1_pack_scale(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                            uint8_t *out)
{
    uint64_t rows = mp_side_rows(dims, side);
    const uint8_t *const in[2] = {canonical, canonical + rows * sizeof(float)};

    if (side == MP_L1)
        mp_interleave_rows(&mp_interleave_64, in, rows, sizeof(float), out);
    else
        memcpy(out, canonical, rows * sizeof(float));
}

void mp_fuseep_1_unpack_scale(const mp_dims *dims, mp_side side, const uint8_t *in,
                              uint8_t *canonical)
{
    uint64_t rows = mp_side_rows(dims, side);
    uint8_t *const out[2] = {canonical, canonical + rows * sizeof(float)};

    if (side == MP_L1)
        mp_separate_rows(&mp_interleave_64, in, rows, sizeof(float), out);
    else
        memcpy(canonical, in, rows * sizeof(float));
}

void mp_fuseep_2_pack_scale(const mp_dims *dims, mp_side side, const uint8_t *canonical,
                            uint8_t *out)
{
    uint64_t count = mp_side_parts(side) * mp_side_rows(dims, side);

    for (uint64_t i = 0; i < count; i++) {
        int32_t bits;
        int64_t wide;

        memcpy(&bits, canonical + i * sizeof(bits), sizeof(bits));
        /* Sign-extends, which is why `bits` is signed. */
        wide = bits;
        memcpy(out + i * sizeof(wide), &wide, sizeof(wide));
    }
}

void mp_fuseep_2_unpack_scale(const mp_dims *dims, mp_side side, const uint8_t *in,
                              uint8_t *canonical)
{
    static const uint32_t nan_bits = 0x7fc00000;
    uint64_t count = mp_side_parts(side) * mp_side_rows(dims, side);

    for (uint64_t i = 0; i < count; i++) {
        int64_t wide;

        memcpy(&wide, in + i * sizeof(wide), sizeof(wide));

        /* Anything that was not widened from a float32 becomes a NaN, which compares equal to no
         * scale. */
        uint32_t bits = wide >= INT32_MIN && wide <= INT32_MAX ? (uint32_t)wide : nan_bits;
        memcpy(canonical + i * sizeof(bits), &bits, sizeof(bits));
    }
}

/* ------------------------------------------------------------------------
 * Tensors and sizes
 */

static mp_slot_tensor floats(const char *name, mp_side side, mp_role role, uint64_t count)
{
    return mp_slot_tensor_of(name, side, role, MP_F32, 1, &count);
}

unsigned mp_fuseep_describe(const mp_dims *dims, int mode, uint32_t rank, const uint64_t *w13_shape,
                            const uint64_t *w2_shape, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t columns = 2 * dims->intermediate_size;
    mp_dtype scale = mode == 1 ? MP_F32 : MP_I64;

    tensors[0] = mp_slot_tensor_of("w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, rank, w13_shape);
    tensors[1] = mp_slot_tensor_of("w13_weight_scale", MP_L1, MP_ROLE_SCALE, scale, 1, &columns);
    tensors[2] = mp_slot_tensor_of("w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, rank, w2_shape);
    tensors[3] =
        mp_slot_tensor_of("w2_weight_scale", MP_L2, MP_ROLE_SCALE, scale, 1, &dims->hidden_size);
    tensors[1].flat = tensors[3].flat = mode == 2;
    tensors[4] = floats("w13_weight_offset", MP_L1, MP_ROLE_OFFSET, columns);
    tensors[5] = floats("w2_weight_offset", MP_L2, MP_ROLE_OFFSET, dims->hidden_size);
    tensors[4].optional = tensors[5].optional = true;
    return 6;
}

static unsigned describe_1(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    return mp_fuseep_describe(dims, 1, 2, (const uint64_t[]){h, 2 * i}, (const uint64_t[]){h, i},
                              tensors);
}

static unsigned describe_2(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    return mp_fuseep_describe(dims, 2, 2, (const uint64_t[]){h, 2 * i}, (const uint64_t[]){i, h},
                              tensors);
}

int mp_fuseep_1_check(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"fuseep-1", 1, CHUNK, 0}, dims, warnings, err);
}

int mp_fuseep_2_check(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    return mp_size_rule_check(&(mp_size_rule){"fuseep-2", 1, 1, 0}, dims, warnings, err);
}

const mp_target mp_target_fuseep_1 = {
    .name = "fuseep-1",
    .version = 1,
    .engine = MP_FUSEEP_1_ENGINE,
    .scheme = MP_SCHEME_INT8_CHANNEL,
    .rounding = MP_ROUND_OCP,
    .constraints = MP_FUSEEP_1_CONSTRAINTS,
    .separate = &mp_target_fuseep_1,
    .nz = &mp_target_fuseep_1_nz,
    .describe = describe_1,
    .check = mp_fuseep_1_check,
    .tiling = tiling_1,
    .pack_weight = pack_weight_1,
    .unpack_weight = unpack_weight_1,
    .pack_scale = mp_fuseep_1_pack_scale,
    .unpack_scale = mp_fuseep_1_unpack_scale,
};

const mp_target mp_target_fuseep_2 = {
    .name = "fuseep-2",
    .version = 1,
    .engine = MP_FUSEEP_2_ENGINE,
    .scheme = MP_SCHEME_INT8_CHANNEL,
    .rounding = MP_ROUND_OCP,
    .constraints = MP_FUSEEP_2_CONSTRAINTS,
    .separate = &mp_target_fuseep_2,
    .nz = &mp_target_fuseep_2_nz,
    .describe = describe_2,
    .check = mp_fuseep_2_check,
    .tiling = tiling_2,
    .pack_weight = pack_weight_2,
    .unpack_weight = unpack_weight_2,
    .pack_scale = mp_fuseep_2_pack_scale,
    .unpack_scale = mp_fuseep_2_unpack_scale,
};
