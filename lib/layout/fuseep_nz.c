/* SPDX-License-Identifier: Apache-2.0 */
/* fuseep-1 and fuseep-2 with weights in FRACTAL_NZ form: the columns of the plain tensor, cut into
 * panels.
 *
 *     panel 0: row 0, columns 0-31; row 1, columns 0-31; ...    panel 1: row 0, columns 32-63; ...
 *
 * Panels are easier than the plain form: 32 rows of the source make a panel, which is contiguous.
 * So tiles are rows here wherever gate and up fill whole panels. Mode 1 regroups columns in chunks
 * of 64, two panels each. Its w2 is not transposed, and is cut into panels by columns.
 *
 * Names, types and scales are those of the plain form in fuseep.c; only the weights differ. Bytes
 * of a panel outside the matrix are written as zeros, so a pack has the same bytes every time. Pure
 * functions, any number of threads. */
#include "layout/fuseep.h"
#include "layout/interleave.h"
#include "layout/nz.h"

#include "base/error.h"

#define CHUNK 64 /* columns of gate, then of up, in mode 1: two panels each */

/* The NZ form of [rows, cols]. */
static void nz_shape(uint64_t rows, uint64_t cols, uint64_t shape[4])
{
    shape[0] = mp_ceil_div(cols, MP_NZ_COLS);
    shape[1] = mp_ceil_div(rows, MP_NZ_ROWS);
    shape[2] = MP_NZ_ROWS;
    shape[3] = MP_NZ_COLS;
}

/* ------------------------------------------------------------------------
 * Mode 1: chunks of w13 turned over, w2 as it is
 */

static unsigned describe_1(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t w13[4], w2[4];

    nz_shape(dims->hidden_size, 2 * dims->intermediate_size, w13);
    nz_shape(dims->hidden_size, dims->intermediate_size, w2);
    return mp_fuseep_describe(dims, 1, 4, w13, w2, tensors);
}

static mp_tiling tiling_1(const mp_dims *dims, mp_side side)
{
    (void)dims;
    if (side == MP_L1)
        return (mp_tiling){.kind = MP_TILES_PAIRED, .group = CHUNK, .pad = 1};
    return (mp_tiling){.kind = MP_TILES_COLS, .group = MP_COLS_GROUP, .pad = MP_NZ_COLS};
}

static void pack_chunks(const mp_tile *tile, const uint8_t *const in[2], uint8_t *out)
{
    for (uint64_t column = 0; column < 2 * tile->rows; column += CHUNK) {
        mp_part_row from = mp_interleave_source(&mp_interleave_64, column);

        mp_nz_pack_lines(in[from.part] + from.row * tile->cols, CHUNK, tile->cols, column, out);
    }
    mp_nz_pad(tile->cols, 2 * tile->rows, out);
}

static void unpack_chunks(const mp_tile *tile, const uint8_t *in, uint8_t *const out[2])
{
    for (unsigned p = 0; p < 2; p++)
        for (uint64_t row = 0; row < tile->rows; row += CHUNK)
            mp_nz_unpack_lines(in, mp_interleave_place(&mp_interleave_64, p, row), CHUNK,
                               tile->cols, out[p] + row * tile->cols);
}

static void pack_weight_1(const mp_dims *dims, mp_side side, const mp_tile *tile,
                          const uint8_t *const in[2], uint8_t *out)
{
    (void)dims;
    if (side == MP_L1) {
        pack_chunks(tile, in, out);
    } else {
        mp_nz_pack_matrix(in[0], tile->rows, tile->cols, out);
        mp_nz_pad(tile->rows, tile->cols, out);
    }
}

static void unpack_weight_1(const mp_dims *dims, mp_side side, const mp_tile *tile,
                            const uint8_t *in, uint8_t *const out[2])
{
    (void)dims;
    if (side == MP_L1)
        unpack_chunks(tile, in, out);
    else
        mp_nz_unpack_matrix(in, tile->rows, tile->cols, out[0]);
}

/* ------------------------------------------------------------------------
 * Mode 2: both turned over
 */

static unsigned describe_2(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t w13[4], w2[4];

    nz_shape(dims->hidden_size, 2 * dims->intermediate_size, w13);
    nz_shape(dims->intermediate_size, dims->hidden_size, w2);
    return mp_fuseep_describe(dims, 2, 4, w13, w2, tensors);
}

/* Where gate does not fill its panels, up begins within one, and there is one tile. */
static mp_tiling tiling_2(const mp_dims *dims, mp_side side)
{
    uint64_t i = dims->intermediate_size;

    if (side == MP_L1 && i % MP_NZ_COLS != 0)
        return (mp_tiling){.kind = MP_TILES_PAIRED, .group = i, .pad = MP_NZ_COLS};
    return (mp_tiling){.kind = MP_TILES_ROWS, .group = MP_NZ_COLS, .pad = MP_NZ_COLS};
}

static void pack_weight_2(const mp_dims *dims, mp_side side, const mp_tile *tile,
                          const uint8_t *const in[2], uint8_t *out)
{
    (void)dims;
    (void)side;
    for (unsigned p = 0; p < tile->parts; p++)
        mp_nz_pack_lines(in[p], tile->rows, tile->cols, p * tile->rows, out);
    mp_nz_pad(tile->cols, tile->parts * tile->rows, out);
}

static void unpack_weight_2(const mp_dims *dims, mp_side side, const mp_tile *tile,
                            const uint8_t *in, uint8_t *const out[2])
{
    (void)dims;
    (void)side;
    for (unsigned p = 0; p < tile->parts; p++)
        mp_nz_unpack_lines(in, p * tile->rows, tile->rows, tile->cols, out[p]);
}

const mp_target mp_target_fuseep_1_nz = {
    .name = "fuseep-1",
    .version = 1,
    .engine = MP_FUSEEP_1_ENGINE,
    .scheme = MP_SCHEME_INT8_CHANNEL,
    .rounding = MP_ROUND_OCP,
    .constraints = MP_FUSEEP_1_CONSTRAINTS,
    .separate = &mp_target_fuseep_1_nz,
    .describe = describe_1,
    .check = mp_fuseep_1_check,
    .tiling = tiling_1,
    .pack_weight = pack_weight_1,
    .unpack_weight = unpack_weight_1,
    .pack_scale = mp_fuseep_1_pack_scale,
    .unpack_scale = mp_fuseep_1_unpack_scale,
};

const mp_target mp_target_fuseep_2_nz = {
    .name = "fuseep-2",
    .version = 1,
    .engine = MP_FUSEEP_2_ENGINE,
    .scheme = MP_SCHEME_INT8_CHANNEL,
    .rounding = MP_ROUND_OCP,
    .constraints = MP_FUSEEP_2_CONSTRAINTS,
    .separate = &mp_target_fuseep_2_nz,
    .describe = describe_2,
    .check = mp_fuseep_2_check,
    .tiling = tiling_2,
    .pack_weight = pack_weight_2,
    .unpack_weight = unpack_weight_2,
    .pack_scale = mp_fuseep_2_pack_scale,
    .unpack_scale = mp_fuseep_2_unpack_scale,
};
