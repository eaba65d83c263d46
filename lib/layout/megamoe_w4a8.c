/* SPDX-License-Identifier: Apache-2.0 */
/* megamoe-w4a8: mxfp4 weights for DeepGEMM's fp8_fp4_mega_moe on SM100.
 *
 * L1 rows are interleaved in eights: 8 gate rows, 8 up rows, and so on; their scales the
 * same, then packed in UTCCP order. L2 weights stay, L2 scales are packed. */
#include "layout/megamoe_scale.h"
#include "layout/targets.h"

#include "base/error.h"

#include <string.h>

#define RUN   8  /* rows of gate, then of up */
#define BLOCK 32 /* columns of a scale */

static unsigned describe(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS])
{
    uint64_t h = dims->hidden_size, i = dims->intermediate_size;

    tensors[0] = (mp_slot_tensor){"l1_weight", MP_L1,          MP_ROLE_WEIGHT, MP_I8,
                                  2,           {2 * i, h / 2}, 2 * i * (h / 2)};
    tensors[1] = (mp_slot_tensor){
        "l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, 2, {h / 128, 2 * i}, h / 128 * 2 * i * 4};
    tensors[2] =
        (mp_slot_tensor){"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 2, {h, i / 2}, h * (i / 2)};
    tensors[3] = (mp_slot_tensor){"l2_weight_sf", MP_L2,          MP_ROLE_SCALE, MP_I32, 2,
                                  {i / 128, h},   i / 128 * h * 4};
    return 4;
}

static int check_size(const char *what, uint64_t size, mp_problems *warnings, mp_error *err)
{
    if (size == 0 || size % 128 != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "megamoe-w4a8: %s is %llu, the kernel takes multiples of 128", what,
                       (unsigned long long)size);
    if (size % 512 != 0)
        mp_problem(warnings, "megamoe-w4a8: %s is %llu, SGLang takes multiples of 512 only", what,
                   (unsigned long long)size);
    return 0;
}

static int check(const mp_dims *dims, mp_problems *warnings, mp_error *err)
{
    int rc = check_size("hidden size", dims->hidden_size, warnings, err);

    return rc ? rc : check_size("expert intermediate size", dims->intermediate_size, warnings, err);
}

static uint64_t row_bytes(const mp_dims *dims, mp_side side)
{
    return mp_side_cols(dims, side) / 2;
}

static void pack_weight(const mp_dims *dims, mp_side side, uint64_t row0, uint64_t rows,
                        const uint8_t *gate, const uint8_t *up, uint8_t *out)
{
    uint64_t bytes = row_bytes(dims, side), run = RUN * bytes;

    (void)row0;
    if (side == MP_L2) {
        memcpy(out, gate, rows * bytes);
        return;
    }
    for (uint64_t r = 0; r < rows / (2 * RUN); r++) {
        memcpy(out + 2 * r * run, gate + r * run, run);
        memcpy(out + (2 * r + 1) * run, up + r * run, run);
    }
}

static void unpack_weight(const mp_dims *dims, mp_side side, uint64_t row0, uint64_t rows,
                          const uint8_t *in, uint8_t *gate, uint8_t *up)
{
    uint64_t bytes = row_bytes(dims, side);

    (void)row0;
    if (side == MP_L2) {
        memcpy(gate, in, rows * bytes);
        return;
    }
    for (uint64_t g = 0; g < rows / 2; g++) {
        uint64_t at = g / RUN * 2 * RUN + g % RUN;

        memcpy(gate + g * bytes, in + at * bytes, bytes);
        memcpy(up + g * bytes, in + (at + RUN) * bytes, bytes);
    }
}

/* Canonical row (gate rows, then up rows) of interleaved row r. */
static uint64_t row_from(uint64_t r, uint64_t rows)
{
    uint64_t run = r / (2 * RUN), i = r % (2 * RUN);

    return i < RUN ? run * RUN + i : rows / 2 + run * RUN + (i - RUN);
}

/* Interleaved row of canonical row r. */
static uint64_t row_to(uint64_t r, uint64_t rows)
{
    bool is_up = r >= rows / 2;
    uint64_t g = is_up ? r - rows / 2 : r;

    return g / RUN * 2 * RUN + g % RUN + (is_up ? RUN : 0);
}

static void pack_scale(const mp_dims *dims, mp_side side, const uint8_t *canonical, uint8_t *out)
{
    mp_utccp_pack(canonical, mp_side_rows(dims, side), mp_side_cols(dims, side) / BLOCK,
                  side == MP_L1 ? row_from : NULL, out);
}

static void unpack_scale(const mp_dims *dims, mp_side side, const uint8_t *in, uint8_t *canonical)
{
    mp_utccp_unpack(in, mp_side_rows(dims, side), mp_side_cols(dims, side) / BLOCK,
                    side == MP_L1 ? row_to : NULL, canonical);
}

const mp_target mp_target_megamoe_w4a8 = {
    .name = "megamoe-w4a8",
    .version = 1,
    .engine = "DeepGEMM fp8_fp4_mega_moe, SM100, mma fp8xfp4",
    .scheme = MP_SCHEME_MXFP4,
    .rounding = MP_ROUND_DEEPGEMM,
    .constraints = "hidden and expert intermediate size multiples of 128 (SGLang: of 512)",
    .describe = describe,
    .check = check,
    .l1_row_group = 2 * RUN,
    .l2_weight_unchanged = true,
    .pack_weight = pack_weight,
    .unpack_weight = unpack_weight,
    .pack_scale = pack_scale,
    .unpack_scale = unpack_scale,
};
