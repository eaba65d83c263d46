/* SPDX-License-Identifier: Apache-2.0 */
/* What targets say of themselves: names, tensors, sizes that they take, and their tiles. */
#include <criterion/criterion.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/words.h"
#include "layout/sides.h"
#include "layout/targets.h"
#include "layout/tile.h"
#include "numeric/forms.h"

#include "layout_slot.h"

static mp_error err;

/* ------------------------------------------------------------------------
 * The table
 */

Test(layout_targets, table)
{
    static const char *const names[] = {
        "megamoe-w4a8",     "megamoe-w4a4", "megamoe-w4a4-g8", "megamoe-nvfp4", "megamoe-bf16",
        "megamoe-sm90-fp8", "fuseep-1",     "fuseep-2",        "deepep-bf16",
    };
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    cr_assert_eq(count, sizeof names / sizeof names[0]);
    for (size_t i = 0; i < count; i++) {
        cr_assert_str_eq(targets[i]->name, names[i]);
        cr_assert_eq(mp_target_find(names[i]), targets[i]);
        cr_assert_eq(targets[i]->version, 1);
        cr_assert_eq(targets[i]->ue8m0, false);
        cr_assert_eq(targets[i]->single, false);
    }
    cr_assert_null(mp_target_find("megamoe"));
    cr_assert_null(mp_target_find("megamoe-shared-fp8"));
    cr_assert_null(mp_target_find(""));
}

Test(layout_targets, schemes)
{
    static const mp_scheme schemes[] = {
        MP_SCHEME_MXFP4,        MP_SCHEME_MXFP4,        MP_SCHEME_MXFP4,
        MP_SCHEME_NVFP4,        MP_SCHEME_BF16,         MP_SCHEME_FP8_BLOCK,
        MP_SCHEME_INT8_CHANNEL, MP_SCHEME_INT8_CHANNEL, MP_SCHEME_BF16,
    };
    size_t count;
    const mp_target *const *records = mp_targets(&count);

    for (size_t i = 0; i < count; i++)
        cr_assert_eq(records[i]->scheme, schemes[i], "%s", records[i]->name);
    cr_assert_eq(records[0]->rounding, MP_ROUND_DEEPGEMM);
    records = layout_records(&count);
    for (size_t i = 0; i < count; i++) {
        bool scales = mp_scheme_form_of(records[i]->scheme)->has_scale;

        cr_assert_eq(records[i]->pack_scale != NULL, scales, "%s", records[i]->name);
        cr_assert_eq(records[i]->unpack_scale != NULL, scales, "%s", records[i]->name);
    }
}

Test(layout_targets, forms_of_a_target)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    for (size_t i = 0; i < count; i++) {
        const mp_target *t = targets[i], *nz = t->nz;
        bool fuseep = strncmp(t->name, "fuseep-", 7) == 0;
        bool fp4 = t->scheme == MP_SCHEME_MXFP4 || t->scheme == MP_SCHEME_NVFP4;

        cr_assert_eq(t->separate, fp4 ? &mp_target_megamoe_shared_fp8 : t, "%s", t->name);
        cr_assert_eq(nz != NULL, fuseep, "%s", t->name);
        if (nz) {
            cr_assert_str_eq(nz->name, t->name);
            cr_assert_eq(nz->version, t->version);
            cr_assert_str_eq(nz->engine, t->engine);
            cr_assert_str_eq(nz->constraints, t->constraints);
            cr_assert_eq(nz->scheme, t->scheme);
            cr_assert_eq(nz->separate, nz);
            cr_assert_null(nz->nz);
        }
    }
    cr_assert_eq(mp_target_megamoe_shared_fp8.scheme, MP_SCHEME_FP8_BLOCK);
    cr_assert(mp_target_megamoe_shared_fp8.ue8m0);
    cr_assert(mp_target_megamoe_shared_fp8.single);
    cr_assert_eq(mp_target_megamoe_shared_fp8.separate, &mp_target_megamoe_shared_fp8);
}

/* ------------------------------------------------------------------------
 * Tensors
 */

typedef struct wanted_tensor {
    const char *name;
    mp_side side;
    mp_role role;
    mp_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    bool optional, flat;
} wanted_tensor;

static void expect_tensors(const mp_target *target, mp_dims dims, const wanted_tensor *want,
                           unsigned count)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];

    cr_assert_eq(target->describe(&dims, tensors), count, "%s", layout_label(target));
    for (unsigned t = 0; t < count; t++) {
        uint64_t bytes = mp_dtype_bits(want[t].dtype) / 8;

        cr_assert_str_eq(tensors[t].name, want[t].name);
        cr_assert_eq(tensors[t].side, want[t].side, "%s", want[t].name);
        cr_assert_eq(tensors[t].role, want[t].role, "%s", want[t].name);
        cr_assert_eq(tensors[t].dtype, want[t].dtype, "%s", want[t].name);
        cr_assert_eq(tensors[t].optional, want[t].optional, "%s", want[t].name);
        cr_assert_eq(tensors[t].flat, want[t].flat, "%s", want[t].name);
        cr_assert_eq(tensors[t].rank, want[t].rank, "%s", want[t].name);
        for (uint32_t d = 0; d < want[t].rank; d++) {
            cr_assert_eq(tensors[t].shape[d], want[t].shape[d], "%s", want[t].name);
            bytes *= want[t].shape[d];
        }
        cr_assert_eq(tensors[t].slot_bytes, bytes, "%s", want[t].name);
    }
}

#define EXPECT_TENSORS(target, h, i, ...)                                            \
    do {                                                                             \
        static const wanted_tensor want[] = {__VA_ARGS__};                           \
        expect_tensors(target, (mp_dims){h, i}, want, sizeof want / sizeof want[0]); \
    } while (0)

Test(layout_targets, tensors_of_mxfp4)
{
    static const char *const names[] = {"megamoe-w4a8", "megamoe-w4a4", "megamoe-w4a4-g8"};

    for (int t = 0; t < 3; t++)
        EXPECT_TENSORS(mp_target_find(names[t]), 640, 384,
                       {"l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 2, {768, 320}, false, false},
                       {"l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, 2, {5, 768}, false, false},
                       {"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 2, {640, 192}, false, false},
                       {"l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_I32, 2, {3, 640}, false, false});
}

Test(layout_targets, tensors_of_nvfp4)
{
    EXPECT_TENSORS(mp_target_find("megamoe-nvfp4"), 640, 384,
                   {"l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 2, {768, 320}, false, false},
                   {"l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, 2, {10, 768}, false, false},
                   {"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 2, {640, 192}, false, false},
                   {"l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_I32, 2, {6, 640}, false, false},
                   {"l1_alpha", MP_L1, MP_ROLE_ALPHA, MP_F32, 1, {2}, false, false},
                   {"l2_alpha", MP_L2, MP_ROLE_ALPHA, MP_F32, 0, {0}, false, false},
                   {"l1_input_scale", MP_L1, MP_ROLE_INPUT_SCALE, MP_F32, 0, {0}, true, false},
                   {"l2_input_scale", MP_L2, MP_ROLE_INPUT_SCALE, MP_F32, 0, {0}, true, false},
                   {"l1_global_scale", MP_L1, MP_ROLE_GLOBAL_SCALE, MP_F32, 1, {2}, true, false},
                   {"l2_global_scale", MP_L2, MP_ROLE_GLOBAL_SCALE, MP_F32, 0, {0}, true, false},
                   {"l2_act_scale", MP_L2, MP_ROLE_ACT_SCALE, MP_F32, 0, {0}, true, false});
}

Test(layout_targets, tensors_of_nvfp4_with_folded_alphas)
{
    const mp_target *target = mp_target_find("megamoe-nvfp4")->fp4xfp4;

    EXPECT_TENSORS(target, 640, 384,
                   {"l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 2, {768, 320}, false, false},
                   {"l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, 2, {10, 768}, false, false},
                   {"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 2, {640, 192}, false, false},
                   {"l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_I32, 2, {6, 640}, false, false},
                   {"l1_alpha", MP_L1, MP_ROLE_FOLDED_ALPHA, MP_F32, 0, {0}, false, false},
                   {"l2_alpha", MP_L2, MP_ROLE_ALPHA, MP_F32, 0, {0}, false, false},
                   {"l1_second_scale", MP_L1, MP_ROLE_ALPHA, MP_F32, 1, {2}, false, false},
                   {"l1_input_scale", MP_L1, MP_ROLE_INPUT_SCALE, MP_F32, 0, {0}, false, false},
                   {"l2_input_scale", MP_L2, MP_ROLE_INPUT_SCALE, MP_F32, 0, {0}, true, false},
                   {"l1_global_scale", MP_L1, MP_ROLE_GLOBAL_SCALE, MP_F32, 1, {2}, true, false},
                   {"l2_global_scale", MP_L2, MP_ROLE_GLOBAL_SCALE, MP_F32, 0, {0}, true, false},
                   {"l2_act_scale", MP_L2, MP_ROLE_ACT_SCALE, MP_F32, 0, {0}, true, false});
    cr_expect_str_eq(target->name, "megamoe-nvfp4");
    cr_expect_null(target->fp4xfp4);
    cr_expect_null(mp_target_find("megamoe-w4a8")->fp4xfp4);
}

Test(layout_targets, tensors_of_bf16)
{
    EXPECT_TENSORS(mp_target_find("megamoe-bf16"), 40, 48,
                   {"l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_BF16, 2, {96, 40}, false, false},
                   {"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_BF16, 2, {40, 48}, false, false});
    EXPECT_TENSORS(mp_target_find("deepep-bf16"), 40, 47,
                   {"w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_BF16, 2, {94, 40}, false, false},
                   {"w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_BF16, 2, {40, 47}, false, false});
}

Test(layout_targets, tensors_of_fp8)
{
    EXPECT_TENSORS(mp_target_find("megamoe-sm90-fp8"), 640, 384,
                   {"l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_F8_E4M3, 2, {768, 640}, false, false},
                   {"l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_F32, 2, {6, 5}, false, false},
                   {"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_F8_E4M3, 2, {640, 384}, false, false},
                   {"l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_F32, 2, {5, 3}, false, false});
    EXPECT_TENSORS(
        &mp_target_megamoe_shared_fp8, 640, 384,
        {"shared_l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_F8_E4M3, 2, {768, 640}, false, false},
        {"shared_l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, 2, {5, 768}, false, false},
        {"shared_l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_F8_E4M3, 2, {640, 384}, false, false},
        {"shared_l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_I32, 2, {3, 640}, false, false});
}

Test(layout_targets, tensors_of_fuseep)
{
    EXPECT_TENSORS(mp_target_find("fuseep-1"), 100, 192,
                   {"w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 2, {100, 384}, false, false},
                   {"w13_weight_scale", MP_L1, MP_ROLE_SCALE, MP_F32, 1, {384}, false, false},
                   {"w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 2, {100, 192}, false, false},
                   {"w2_weight_scale", MP_L2, MP_ROLE_SCALE, MP_F32, 1, {100}, false, false},
                   {"w13_weight_offset", MP_L1, MP_ROLE_OFFSET, MP_F32, 1, {384}, true, false},
                   {"w2_weight_offset", MP_L2, MP_ROLE_OFFSET, MP_F32, 1, {100}, true, false});
    EXPECT_TENSORS(mp_target_find("fuseep-2"), 100, 190,
                   {"w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 2, {100, 380}, false, false},
                   {"w13_weight_scale", MP_L1, MP_ROLE_SCALE, MP_I64, 1, {380}, false, true},
                   {"w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 2, {190, 100}, false, false},
                   {"w2_weight_scale", MP_L2, MP_ROLE_SCALE, MP_I64, 1, {100}, false, true},
                   {"w13_weight_offset", MP_L1, MP_ROLE_OFFSET, MP_F32, 1, {380}, true, false},
                   {"w2_weight_offset", MP_L2, MP_ROLE_OFFSET, MP_F32, 1, {100}, true, false});
}

Test(layout_targets, tensors_of_fuseep_in_nz)
{
    EXPECT_TENSORS(mp_target_find("fuseep-1")->nz, 100, 192,
                   {"w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 4, {12, 7, 16, 32}, false, false},
                   {"w13_weight_scale", MP_L1, MP_ROLE_SCALE, MP_F32, 1, {384}, false, false},
                   {"w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 4, {6, 7, 16, 32}, false, false},
                   {"w2_weight_scale", MP_L2, MP_ROLE_SCALE, MP_F32, 1, {100}, false, false},
                   {"w13_weight_offset", MP_L1, MP_ROLE_OFFSET, MP_F32, 1, {384}, true, false},
                   {"w2_weight_offset", MP_L2, MP_ROLE_OFFSET, MP_F32, 1, {100}, true, false});
    EXPECT_TENSORS(mp_target_find("fuseep-2")->nz, 100, 190,
                   {"w13_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, 4, {12, 7, 16, 32}, false, false},
                   {"w13_weight_scale", MP_L1, MP_ROLE_SCALE, MP_I64, 1, {380}, false, true},
                   {"w2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, 4, {4, 12, 16, 32}, false, false},
                   {"w2_weight_scale", MP_L2, MP_ROLE_SCALE, MP_I64, 1, {100}, false, true},
                   {"w13_weight_offset", MP_L1, MP_ROLE_OFFSET, MP_F32, 1, {380}, true, false},
                   {"w2_weight_offset", MP_L2, MP_ROLE_OFFSET, MP_F32, 1, {100}, true, false});
}

Test(layout_targets, canonical_sizes)
{
    const mp_dims dims = {640, 384};
    static const struct {
        const char *target;
        uint64_t rows[MP_SIDES], row_bytes[MP_SIDES];
    } want[] = {
        {"megamoe-w4a8", {384, 640}, {20, 12}}, {"megamoe-nvfp4", {384, 640}, {40, 24}},
        {"megamoe-sm90-fp8", {3, 5}, {20, 12}}, {"megamoe-bf16", {0, 0}, {0, 0}},
        {"fuseep-1", {384, 640}, {4, 4}},
    };

    cr_assert_eq(mp_side_parts(MP_L1), 2);
    cr_assert_eq(mp_side_parts(MP_L2), 1);
    cr_assert_eq(mp_side_rows(&dims, MP_L1), 384);
    cr_assert_eq(mp_side_cols(&dims, MP_L1), 640);
    cr_assert_eq(mp_side_rows(&dims, MP_L2), 640);
    cr_assert_eq(mp_side_cols(&dims, MP_L2), 384);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        for (int side = 0; side < MP_SIDES; side++) {
            const mp_target *target = mp_target_find(want[i].target);

            cr_assert_eq(mp_target_scale_rows(target, &dims, side), want[i].rows[side], "%s",
                         target->name);
            cr_assert_eq(mp_target_scale_row_bytes(target, &dims, side), want[i].row_bytes[side],
                         "%s", target->name);
        }
    }
}

/* ------------------------------------------------------------------------
 * Sizes that they take
 */

static void expect_refused(const mp_target *target, uint64_t hidden, uint64_t intermediate,
                           const char *message)
{
    const mp_dims dims = {hidden, intermediate};
    mp_problems warnings = {0};

    cr_assert_eq(target->check(&dims, &warnings, &err), MP_ERR_UNSUPPORTED, "%s", message);
    cr_assert_eq(err.code, MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, message);
    mp_problems_release(&warnings);
}

/* Taken, with these warnings; null for less than two. */
static void expect_taken(const mp_target *target, uint64_t hidden, uint64_t intermediate,
                         const char *first, const char *second)
{
    const mp_dims dims = {hidden, intermediate};
    const char *const want[2] = {first, second};
    mp_problems warnings = {0};

    cr_assert_eq(target->check(&dims, &warnings, &err), 0, "%s", err.message);
    cr_assert_eq(warnings.count, (first != NULL) + (second != NULL), "%s", target->name);
    for (uint64_t i = 0; i < warnings.count; i++)
        cr_assert_str_eq(warnings.text[i], want[i]);
    mp_problems_release(&warnings);
}

Test(layout_targets, sizes_of_fp4)
{
    const mp_target *w4a8 = mp_target_find("megamoe-w4a8"), *w4a4 = mp_target_find("megamoe-w4a4");
    const mp_target *g8 = mp_target_find("megamoe-w4a4-g8");
    const mp_target *nvfp4 = mp_target_find("megamoe-nvfp4");

    expect_refused(w4a8, 0, 512,
                   "megamoe-w4a8: hidden size is 0, the kernel takes multiples of 128");
    expect_refused(w4a8, 4160, 512,
                   "megamoe-w4a8: hidden size is 4160, the kernel takes multiples of 128");
    expect_refused(
        w4a8, 512, 127,
        "megamoe-w4a8: expert intermediate size is 127, the kernel takes multiples of 128");
    expect_refused(
        w4a8, 512, 0,
        "megamoe-w4a8: expert intermediate size is 0, the kernel takes multiples of 128");
    expect_refused(
        w4a4, 512, 144,
        "megamoe-w4a4: expert intermediate size is 144, the kernel takes multiples of 128");
    expect_refused(g8, 64, 512,
                   "megamoe-w4a4-g8: hidden size is 64, the kernel takes multiples of 128");
    expect_refused(nvfp4, 64, 512,
                   "megamoe-nvfp4: hidden size is 64, the kernel takes multiples of 128");
    expect_taken(w4a8, 7168, 2048, NULL, NULL);
    expect_taken(w4a8, 640, 1024,
                 "megamoe-w4a8: hidden size is 640, SGLang takes multiples of 512 only", NULL);
    expect_taken(
        w4a4, 128, 384, "megamoe-w4a4: hidden size is 128, SGLang takes multiples of 512 only",
        "megamoe-w4a4: expert intermediate size is 384, SGLang takes multiples of 512 only");
    expect_taken(
        g8, 1024, 256,
        "megamoe-w4a4-g8: expert intermediate size is 256, SGLang takes multiples of 512 only",
        NULL);
    expect_taken(nvfp4, 768, 256, NULL, NULL);
    expect_taken(
        nvfp4, 768, 384,
        "megamoe-nvfp4: expert intermediate size is 384, SGLang takes multiples of 256 only", NULL);
}

Test(layout_targets, sizes_of_the_others)
{
    const mp_target *bf16 = mp_target_find("megamoe-bf16");
    const mp_target *sm90 = mp_target_find("megamoe-sm90-fp8");
    const mp_target *fuseep1 = mp_target_find("fuseep-1"), *fuseep2 = mp_target_find("fuseep-2");
    const mp_target *deepep = mp_target_find("deepep-bf16");

    expect_refused(bf16, 0, 8, "megamoe-bf16: hidden size is 0, the kernel takes 1 or more");
    expect_refused(bf16, 7, 12,
                   "megamoe-bf16: expert intermediate size is 12, the kernel takes multiples of 8");
    expect_taken(bf16, 7, 8, NULL, NULL);
    expect_refused(sm90, 64, 128,
                   "megamoe-sm90-fp8: hidden size is 64, the kernel takes multiples of 128");
    expect_taken(sm90, 128, 384, NULL, NULL);
    expect_refused(fuseep1, 7, 96,
                   "fuseep-1: expert intermediate size is 96, the kernel takes multiples of 64");
    expect_refused(fuseep1->nz, 7, 96,
                   "fuseep-1: expert intermediate size is 96, the kernel takes multiples of 64");
    expect_taken(fuseep1, 7, 192, NULL, NULL);
    expect_refused(fuseep2, 0, 1, "fuseep-2: hidden size is 0, the kernel takes 1 or more");
    expect_refused(fuseep2, 1, 0,
                   "fuseep-2: expert intermediate size is 0, the kernel takes 1 or more");
    expect_taken(fuseep2->nz, 1, 1, NULL, NULL);
    expect_refused(deepep, 1, 0,
                   "deepep-bf16: expert intermediate size is 0, the kernel takes 1 or more");
    expect_taken(deepep, 1, 1, NULL, NULL);
    expect_refused(&mp_target_megamoe_shared_fp8, 128, 192,
                   "megamoe-shared-fp8: expert intermediate size is 192, the kernel takes "
                   "multiples of 128");
    expect_taken(&mp_target_megamoe_shared_fp8, 128, 384, NULL, NULL);
}

/* ------------------------------------------------------------------------
 * Tiles
 */

typedef struct tile_case {
    const mp_target *target;
    mp_dims dims;
    mp_side side;
    uint64_t bytes; /* asked for */
} tile_case;

/* Counts the canonical elements that a tile covers. */
static void cover(const tile_case *c, const mp_tile *tile, uint8_t *covered)
{
    uint64_t rows = mp_side_rows(&c->dims, c->side), cols = mp_side_cols(&c->dims, c->side);

    cr_assert_leq(tile->part + tile->parts, mp_side_parts(c->side));
    cr_assert_leq(tile->row0 + tile->rows, rows);
    cr_assert_leq(tile->col0 + tile->cols, cols);
    for (unsigned p = tile->part; p < tile->part + tile->parts; p++)
        for (uint64_t r = tile->row0; r < tile->row0 + tile->rows; r++)
            for (uint64_t k = tile->col0; k < tile->col0 + tile->cols; k++)
                covered[(p * rows + r) * cols + k]++;
}

/* A tile begins at its group, and is no larger than asked for unless it is one group. */
static void expect_group(const tile_case *c, const mp_tile *tile)
{
    mp_tiling tiling = c->target->tiling(&c->dims, c->side);
    bool cols = tiling.kind == MP_TILES_COLS;
    uint64_t bytes = tile->parts * tile->rows * mp_scheme_row_bytes(c->target->scheme, tile->cols);

    cr_assert_eq((cols ? tile->col0 : tile->row0) % tiling.group, 0);
    cr_assert(bytes <= c->bytes || (cols ? tile->cols : tile->rows) <= tiling.group, "%s: %" PRIu64,
              layout_label(c->target), bytes);
    cr_assert_eq(tile->parts, tiling.kind == MP_TILES_ROWS ? 1 : mp_side_parts(c->side));
}

static void expect_tiles(const tile_case *c)
{
    uint64_t count = mp_tile_count(c->target, &c->dims, c->side, c->bytes), offset = 0;
    uint64_t elements = c->dims.hidden_size * c->dims.intermediate_size * mp_side_parts(c->side);
    uint8_t *covered = calloc(elements, 1);

    for (uint64_t i = 0; i < count; i++) {
        mp_tile tile = mp_tile_at(c->target, &c->dims, c->side, c->bytes, i);

        cr_assert_eq(tile.offset, offset);
        offset += tile.bytes;
        expect_group(c, &tile);
        cover(c, &tile, covered);
    }
    cr_assert_eq(offset, layout_tensor(c->target, c->dims, c->side, MP_ROLE_WEIGHT).slot_bytes,
                 "%s, side %d", layout_label(c->target), c->side);
    for (uint64_t e = 0; e < elements; e++)
        if (covered[e] != 1)
            cr_assert_fail("%s, side %d: element %" PRIu64 " %u times", layout_label(c->target),
                           c->side, e, covered[e]);
    free(covered);
}

/* Random sizes that the target takes, small ones more often. */
static mp_dims random_dims(const mp_target *target)
{
    static const uint64_t units[] = {128, 64, 8, 1};

    for (;;) {
        uint64_t unit = units[layout_random() % 4], limit = unit == 1 ? 150 : 640 / unit;
        mp_dims dims = {unit * (1 + layout_random() % limit), unit * (1 + layout_random() % limit)};
        mp_problems warnings = {0};
        int rc = target->check(&dims, &warnings, NULL);

        mp_problems_release(&warnings);
        if (rc == 0)
            return dims;
    }
}

Test(layout_targets, tiles_cover_everything_once)
{
    size_t count;
    const mp_target *const *records = layout_records(&count);

    for (size_t t = 0; t < count; t++) {
        for (int i = 0; i < 30; i++) {
            tile_case c = {.target = records[t], .dims = random_dims(records[t])};

            c.bytes = layout_random() % (i % 2 ? 5000 : 200000);
            for (int side = 0; side < MP_SIDES; side++) {
                c.side = side;
                expect_tiles(&c);
            }
        }
    }
}

Test(layout_targets, a_tile_of_any_size)
{
    const mp_dims dims = {384, 256};
    size_t count;
    const mp_target *const *records = layout_records(&count);

    for (size_t t = 0; t < count; t++) {
        for (int side = 0; side < MP_SIDES; side++) {
            mp_tiling tiling = records[t]->tiling(&dims, side);
            uint64_t parts = tiling.kind == MP_TILES_ROWS ? mp_side_parts(side) : 1;

            cr_assert_eq(mp_tile_count(records[t], &dims, side, UINT64_MAX), parts);
            expect_tiles(&(tile_case){records[t], dims, side, 0});
            expect_tiles(&(tile_case){records[t], dims, side, UINT64_MAX});
        }
    }
}

/* Gate does not fill the panels of NZ: one tile holds the one in which up begins. */
Test(layout_targets, tiles_of_nz)
{
    const mp_target *nz = mp_target_find("fuseep-2")->nz;
    const mp_dims even = {100, 96}, odd = {100, 90};
    mp_tile tile = mp_tile_at(nz, &even, MP_L1, 40 * 100, 4);

    cr_assert_eq(mp_tile_count(nz, &even, MP_L1, 40 * 100), 6);
    cr_assert_eq(tile.part, 1);
    cr_assert_eq(tile.parts, 1);
    cr_assert_eq(tile.row0, 32);
    cr_assert_eq(tile.rows, 32);
    cr_assert_eq(tile.offset, 4 * 112 * 32);
    cr_assert_eq(tile.bytes, 112 * 32);
    cr_assert_eq(mp_tile_count(nz, &odd, MP_L1, 1), 1);
    tile = mp_tile_at(nz, &odd, MP_L1, 1, 0);
    cr_assert_eq(tile.parts, 2);
    cr_assert_eq(tile.rows, 90);
    cr_assert_eq(tile.bytes, 192 * 112);
}
