/* SPDX-License-Identifier: Apache-2.0 */
/* Targets against golden bytes, whole and in tiles, there and back. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "golden.h"
#include "layout_slot.h"

#include "base/words.h"

#define MEGAMOE "testdata/golden/megamoe.safetensors"
#define FUSEEP  "testdata/golden/fuseep.safetensors"

/* A side of a target: golden tensors of canonical weights and scales and of the packed
 * ones; null where the file has none. */
typedef struct golden_case {
    const char *file, *target;
    bool nz;
    mp_side side;
    mp_dims dims;
    uint32_t slots;
    const char *weight, *packed, *scale, *packed_scale;
} golden_case;

/* megamoe-w4a4-g8 has the bytes of megamoe-w4a8, and nvfp4 weights move as mxfp4 ones do. */
static const golden_case cases[] = {
    {MEGAMOE,
     "megamoe-w4a8",
     false,
     MP_L1,
     {640, 384},
     3,
     "w13",
     "megamoe-w4a8.l1_weight",
     "s13",
     "megamoe-w4a8.l1_weight_sf"},
    {MEGAMOE,
     "megamoe-w4a8",
     false,
     MP_L2,
     {640, 384},
     3,
     "w2",
     "w2",
     "s2",
     "megamoe-w4a8.l2_weight_sf"},
    {MEGAMOE,
     "megamoe-w4a4",
     false,
     MP_L1,
     {640, 384},
     3,
     "w13",
     "megamoe-w4a4.l1_weight",
     "s13",
     "megamoe-w4a4.l1_weight_sf"},
    {MEGAMOE,
     "megamoe-w4a4",
     false,
     MP_L2,
     {640, 384},
     3,
     "w2",
     "w2",
     "s2",
     "megamoe-w4a4.l2_weight_sf"},
    {MEGAMOE,
     "megamoe-w4a4-g8",
     false,
     MP_L1,
     {640, 384},
     3,
     "w13",
     "megamoe-w4a8.l1_weight",
     "s13",
     "megamoe-w4a8.l1_weight_sf"},
    {MEGAMOE,
     "megamoe-w4a4-g8",
     false,
     MP_L2,
     {640, 384},
     3,
     "w2",
     "w2",
     "s2",
     "megamoe-w4a8.l2_weight_sf"},
    {MEGAMOE,
     "megamoe-nvfp4",
     false,
     MP_L1,
     {640, 384},
     3,
     "w13",
     "megamoe-w4a8.l1_weight",
     "n13",
     "megamoe-nvfp4.l1_weight_sf"},
    {MEGAMOE,
     "megamoe-nvfp4",
     false,
     MP_L2,
     {640, 384},
     3,
     "w2",
     "w2",
     "n2",
     "megamoe-nvfp4.l2_weight_sf"},
    {MEGAMOE,
     "megamoe-bf16",
     false,
     MP_L1,
     {40, 48},
     1,
     "b13",
     "megamoe-bf16.l1_weight",
     NULL,
     NULL},
    {MEGAMOE,
     "megamoe-sm90-fp8",
     false,
     MP_L1,
     {128, 128},
     1,
     "f13",
     "megamoe-sm90-fp8.l1_weight",
     NULL,
     NULL},
    {MEGAMOE, "deepep-bf16", false, MP_L1, {40, 48}, 1, "b13", "b13", NULL, NULL},
    {FUSEEP,
     "fuseep-1",
     false,
     MP_L1,
     {160, 192},
     2,
     "w13",
     "fuseep-1.w13_weight",
     "s13",
     "fuseep-1.w13_weight_scale"},
    {FUSEEP,
     "fuseep-1",
     false,
     MP_L2,
     {160, 192},
     2,
     "w2",
     "fuseep-1.w2_weight",
     "s2",
     "fuseep-1.w2_weight_scale"},
    {FUSEEP,
     "fuseep-1",
     true,
     MP_L1,
     {160, 192},
     2,
     "w13",
     "fuseep-1.w13_weight_nz",
     "s13",
     "fuseep-1.w13_weight_scale"},
    {FUSEEP,
     "fuseep-1",
     true,
     MP_L2,
     {160, 192},
     2,
     "w2",
     "fuseep-1.w2_weight_nz",
     "s2",
     "fuseep-1.w2_weight_scale"},
    {FUSEEP,
     "fuseep-2",
     false,
     MP_L1,
     {160, 192},
     2,
     "w13",
     "fuseep-2.w13_weight",
     "s13",
     "fuseep-2.w13_weight_scale"},
    {FUSEEP,
     "fuseep-2",
     false,
     MP_L2,
     {160, 192},
     2,
     "w2",
     "fuseep-2.w2_weight",
     "s2",
     "fuseep-2.w2_weight_scale"},
    {FUSEEP,
     "fuseep-2",
     true,
     MP_L1,
     {160, 192},
     2,
     "w13",
     "fuseep-2.w13_weight_nz",
     "s13",
     "fuseep-2.w13_weight_scale"},
    {FUSEEP,
     "fuseep-2",
     true,
     MP_L2,
     {160, 192},
     2,
     "w2",
     "fuseep-2.w2_weight_nz",
     "s2",
     "fuseep-2.w2_weight_scale"},
};

#define CASES (sizeof cases / sizeof cases[0])

static const uint64_t tile_sizes[] = {1, 5000, 20000, 77777, UINT64_MAX};

#define TILE_SIZES (sizeof tile_sizes / sizeof tile_sizes[0])

static const mp_target *target_of(const golden_case *c)
{
    const mp_target *target = mp_target_find(c->target);

    cr_assert_not_null(target, "%s", c->target);
    return c->nz ? target->nz : target;
}

/* Slot g of a golden tensor, which has to consist of slots of n bytes. */
static const uint8_t *golden_slot(const golden_file *file, const golden_case *c, const char *name,
                                  uint32_t g, size_t n)
{
    size_t bytes;
    const uint8_t *data = golden_tensor(file, name, &bytes);

    cr_assert_eq(bytes, c->slots * n, "%s of %s: %zu bytes", name, c->target, bytes);
    return data + g * n;
}

static void take(const golden_file *file, const golden_case *c, uint32_t g, layout_side *s)
{
    unsigned parts = mp_side_parts(c->side);
    const uint8_t *weight = golden_slot(file, c, c->weight, g, parts * s->weight_bytes);

    for (unsigned p = 0; p < parts; p++)
        memcpy(s->weight[p], weight + p * s->weight_bytes, s->weight_bytes);
    if (c->scale)
        memcpy(s->scale, golden_slot(file, c, c->scale, g, s->scale_bytes), s->scale_bytes);
}

static void expect_packed(const golden_file *file, const golden_case *c, uint32_t g,
                          uint64_t tile_bytes)
{
    layout_slot slot = layout_slot_make(target_of(c), c->dims);
    layout_side *s = &slot.sides[c->side];

    take(file, c, g, s);
    layout_slot_pack(&slot, c->side, tile_bytes);
    layout_expect_bytes(c->packed, s->packed, golden_slot(file, c, c->packed, g, s->packed_bytes),
                        s->packed_bytes);
    if (c->scale)
        layout_expect_bytes(c->packed_scale, s->packed_scale,
                            golden_slot(file, c, c->packed_scale, g, s->packed_scale_bytes),
                            s->packed_scale_bytes);
    layout_slot_free(&slot);
}

static void expect_unpacked(const golden_file *file, const golden_case *c, uint32_t g,
                            uint64_t tile_bytes)
{
    layout_slot have = layout_slot_make(target_of(c), c->dims);
    layout_slot want = layout_slot_make(target_of(c), c->dims);
    layout_side *h = &have.sides[c->side], *w = &want.sides[c->side];

    memcpy(h->packed, golden_slot(file, c, c->packed, g, h->packed_bytes), h->packed_bytes);
    if (c->scale)
        memcpy(h->packed_scale, golden_slot(file, c, c->packed_scale, g, h->packed_scale_bytes),
               h->packed_scale_bytes);
    layout_slot_unpack(&have, c->side, tile_bytes);
    take(file, c, g, w);
    for (unsigned p = 0; p < mp_side_parts(c->side); p++)
        layout_expect_bytes(c->weight, h->weight[p], w->weight[p], w->weight_bytes);
    if (c->scale)
        layout_expect_bytes(c->scale, h->scale, w->scale, w->scale_bytes);
    layout_slot_free(&have);
    layout_slot_free(&want);
}

static void every_case(void (*expect)(const golden_file *, const golden_case *, uint32_t, uint64_t))
{
    golden_file *files[2] = {golden_open(MEGAMOE), golden_open(FUSEEP)};

    for (size_t i = 0; i < CASES; i++)
        for (uint32_t g = 0; g < cases[i].slots; g++)
            for (size_t t = 0; t < TILE_SIZES; t++)
                expect(files[strcmp(cases[i].file, FUSEEP) == 0], &cases[i], g, tile_sizes[t]);
    golden_close(files[0]);
    golden_close(files[1]);
}

Test(layout_golden, pack)
{
    every_case(expect_packed);
}

Test(layout_golden, unpack)
{
    every_case(expect_unpacked);
}

/* The shape of a slot of a golden tensor, [1:] of it, or all of it where slots are flat. */
static void expect_shape(const golden_file *file, const golden_case *c, const char *name,
                         mp_role role)
{
    mp_slot_tensor tensor = layout_tensor(target_of(c), c->dims, c->side, role);

    if (tensor.flat) {
        cr_assert_eq(tensor.rank, 1);
        cr_assert_eq(c->slots * tensor.shape[0], golden_dim(file, name, 0));
        return;
    }
    cr_assert_eq(golden_dim(file, name, 0), c->slots, "%s", name);
    for (uint32_t d = 0; d < tensor.rank; d++)
        cr_assert_eq(tensor.shape[d], golden_dim(file, name, d + 1), "dimension %u of %s", d, name);
}

Test(layout_golden, shapes)
{
    golden_file *files[2] = {golden_open(MEGAMOE), golden_open(FUSEEP)};

    for (size_t i = 0; i < CASES; i++) {
        const golden_case *c = &cases[i];
        const golden_file *file = files[strcmp(c->file, FUSEEP) == 0];

        expect_shape(file, c, c->packed, MP_ROLE_WEIGHT);
        if (c->packed_scale)
            expect_shape(file, c, c->packed_scale, MP_ROLE_SCALE);
    }
    golden_close(files[0]);
    golden_close(files[1]);
}
