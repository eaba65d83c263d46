/* SPDX-License-Identifier: Apache-2.0 */
/* megamoe-w4a8: against golden bytes, against the rules written down once more, one byte at
 * a time, and there and back. */
#include <criterion/criterion.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/layout.h>

#include "golden.h"

#define BLOCK 32 /* columns of a scale */

static const mp_target *target;
static mp_error err;

static void init(void)
{
    target = mp_target_find("megamoe-w4a8");
    cr_assert_not_null(target);
}

TestSuite(layout, .init = init);

/* ------------------------------------------------------------------------
 * A slot, whole
 */

/* Canonical bytes of one expert, and what the target makes of them. */
typedef struct slot {
    mp_dims dims;
    uint8_t *weight[MP_SIDES], *scale[MP_SIDES];
    uint8_t *packed[MP_SIDES], *packed_scale[MP_SIDES];
} slot;

static size_t row_bytes(const mp_dims *dims, mp_side side)
{
    return mp_side_cols(dims, side) / 2;
}

static size_t weight_bytes(const mp_dims *dims, mp_side side)
{
    return mp_side_rows(dims, side) * row_bytes(dims, side);
}

static size_t scale_row_bytes(const mp_dims *dims, mp_side side)
{
    return mp_side_cols(dims, side) / BLOCK;
}

static size_t scale_bytes(const mp_dims *dims, mp_side side)
{
    return mp_side_rows(dims, side) * scale_row_bytes(dims, side);
}

static uint64_t random_number(void)
{
    static uint64_t state = 20261122;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Random bytes; rows of scales begin with their number, so that no two are alike. */
static void fill(slot *s, mp_side side)
{
    size_t blocks = scale_row_bytes(&s->dims, side);

    for (size_t i = 0; i < weight_bytes(&s->dims, side); i++)
        s->weight[side][i] = (uint8_t)(random_number() >> 32);
    for (size_t i = 0; i < scale_bytes(&s->dims, side); i++)
        s->scale[side][i] = (uint8_t)(random_number() >> 32);
    for (size_t r = 0; r < mp_side_rows(&s->dims, side); r++) {
        s->scale[side][r * blocks] = (uint8_t)r;
        s->scale[side][r * blocks + 1] = (uint8_t)(r >> 8);
    }
}

static slot make_slot(uint64_t hidden, uint64_t intermediate)
{
    slot s = {.dims = {hidden, intermediate}};

    for (int side = 0; side < MP_SIDES; side++) {
        size_t weights = weight_bytes(&s.dims, side), scales = scale_bytes(&s.dims, side);

        s.weight[side] = malloc(weights);
        s.scale[side] = malloc(scales);
        s.packed[side] = calloc(weights, 1);
        s.packed_scale[side] = calloc(scales, 1);
        fill(&s, side);
    }
    return s;
}

static void free_slot(slot *s)
{
    for (int side = 0; side < MP_SIDES; side++) {
        free(s->weight[side]);
        free(s->scale[side]);
        free(s->packed[side]);
        free(s->packed_scale[side]);
    }
}

/* Packs weights in tiles of at most so many rows, and scales whole. */
static void pack_side(slot *s, mp_side side, uint64_t tile)
{
    uint64_t rows = mp_side_rows(&s->dims, side);
    size_t bytes = row_bytes(&s->dims, side);
    const uint8_t *gate = s->weight[side], *up = gate + rows / 2 * bytes;

    for (uint64_t row = 0; row < rows; row += tile) {
        uint64_t n = tile < rows - row ? tile : rows - row;

        if (side == MP_L1)
            target->pack_weight(&s->dims, side, row, n, gate + row / 2 * bytes,
                                up + row / 2 * bytes, s->packed[side] + row * bytes);
        else
            target->pack_weight(&s->dims, side, row, n, gate + row * bytes, NULL,
                                s->packed[side] + row * bytes);
    }
    target->pack_scale(&s->dims, side, s->scale[side], s->packed_scale[side]);
}

static void unpack_side(const slot *s, mp_side side, uint64_t tile, uint8_t *weight, uint8_t *scale)
{
    uint64_t rows = mp_side_rows(&s->dims, side);
    size_t bytes = row_bytes(&s->dims, side);
    uint8_t *up = weight + rows / 2 * bytes;

    for (uint64_t row = 0; row < rows; row += tile) {
        uint64_t n = tile < rows - row ? tile : rows - row;

        if (side == MP_L1)
            target->unpack_weight(&s->dims, side, row, n, s->packed[side] + row * bytes,
                                  weight + row / 2 * bytes, up + row / 2 * bytes);
        else
            target->unpack_weight(&s->dims, side, row, n, s->packed[side] + row * bytes,
                                  weight + row * bytes, NULL);
    }
    target->unpack_scale(&s->dims, side, s->packed_scale[side], scale);
}

/* ------------------------------------------------------------------------
 * Golden bytes
 */

static const uint8_t *golden_slot(const golden_file *file, const char *name, uint32_t g, size_t n)
{
    size_t bytes;
    const uint8_t *data = golden_tensor(file, name, &bytes);

    cr_assert_eq(bytes, 3 * n, "%s: %zu bytes", name, bytes);
    return data + g * n;
}

static void expect_bytes(const char *what, const uint8_t *have, const uint8_t *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(have[i], want[i], "%s: byte %zu: %02x, expected %02x", what, i, have[i],
                     want[i]);
}

/* The golden file's expert g, packed in tiles of these numbers of rows. */
static void expect_golden(const golden_file *file, uint32_t g, uint64_t tile1, uint64_t tile2)
{
    slot s = make_slot(640, 384);
    size_t w1 = weight_bytes(&s.dims, MP_L1), w2 = weight_bytes(&s.dims, MP_L2);
    size_t s1 = scale_bytes(&s.dims, MP_L1), s2 = scale_bytes(&s.dims, MP_L2);

    memcpy(s.weight[MP_L1], golden_slot(file, "w13", g, w1), w1);
    memcpy(s.scale[MP_L1], golden_slot(file, "s13", g, s1), s1);
    memcpy(s.weight[MP_L2], golden_slot(file, "w2", g, w2), w2);
    memcpy(s.scale[MP_L2], golden_slot(file, "s2", g, s2), s2);
    pack_side(&s, MP_L1, tile1);
    pack_side(&s, MP_L2, tile2);
    expect_bytes("l1_weight", s.packed[MP_L1], golden_slot(file, "megamoe-w4a8.l1_weight", g, w1),
                 w1);
    expect_bytes("l1_weight_sf", s.packed_scale[MP_L1],
                 golden_slot(file, "megamoe-w4a8.l1_weight_sf", g, s1), s1);
    expect_bytes("l2_weight", s.packed[MP_L2], s.weight[MP_L2], w2);
    expect_bytes("l2_weight_sf", s.packed_scale[MP_L2],
                 golden_slot(file, "megamoe-w4a8.l2_weight_sf", g, s2), s2);
    free_slot(&s);
}

Test(layout, golden)
{
    golden_file *file = golden_open("testdata/golden/megamoe.safetensors");

    for (uint32_t g = 0; g < 3; g++) {
        expect_golden(file, g, 768, 640);
        expect_golden(file, g, 16, 1);
        expect_golden(file, g, 48, 17);
        expect_golden(file, g, 240, 639);
        expect_golden(file, g, 752, 128);
    }
    golden_close(file);
}

Test(layout, golden_backwards)
{
    golden_file *file = golden_open("testdata/golden/megamoe.safetensors");
    slot s = make_slot(640, 384);
    size_t w1 = weight_bytes(&s.dims, MP_L1), s1 = scale_bytes(&s.dims, MP_L1);
    size_t s2 = scale_bytes(&s.dims, MP_L2);
    uint8_t *weight = malloc(w1), *scale = malloc(s1);

    for (uint32_t g = 0; g < 3; g++) {
        memcpy(s.packed[MP_L1], golden_slot(file, "megamoe-w4a8.l1_weight", g, w1), w1);
        memcpy(s.packed_scale[MP_L1], golden_slot(file, "megamoe-w4a8.l1_weight_sf", g, s1), s1);
        memcpy(s.packed_scale[MP_L2], golden_slot(file, "megamoe-w4a8.l2_weight_sf", g, s2), s2);
        unpack_side(&s, MP_L1, 16 + 32 * g, weight, scale);
        expect_bytes("w13", weight, golden_slot(file, "w13", g, w1), w1);
        expect_bytes("s13", scale, golden_slot(file, "s13", g, s1), s1);
        target->unpack_scale(&s.dims, MP_L2, s.packed_scale[MP_L2], scale);
        expect_bytes("s2", scale, golden_slot(file, "s2", g, s2), s2);
    }
    free(weight);
    free(scale);
    free_slot(&s);
    golden_close(file);
}

/* ------------------------------------------------------------------------
 * The rules once more, a byte at a time
 */

/* L1: 8 rows of gate, 8 of up, and so on. */
static uint64_t source_row(const mp_dims *dims, mp_side side, uint64_t row)
{
    uint64_t run = row / 16, i = row % 16;

    if (side == MP_L2)
        return row;
    return i < 8 ? 8 * run + i : dims->intermediate_size + 8 * run + (i - 8);
}

/* Scale byte `byte` of the word at [word][position]: four along K to a word, words first,
 * and position 4c + q of each 128 has the scales of row 32q + c. */
static uint8_t packed_scale_byte(const slot *s, mp_side side, uint64_t word, uint64_t position,
                                 uint64_t byte)
{
    uint64_t in_run = position % 128, c = in_run / 4, q = in_run % 4;
    uint64_t row = source_row(&s->dims, side, position - in_run + 32 * q + c);

    return s->scale[side][row * scale_row_bytes(&s->dims, side) + 4 * word + byte];
}

static void expect_rules(slot *s, mp_side side)
{
    uint64_t rows = mp_side_rows(&s->dims, side), words = scale_row_bytes(&s->dims, side) / 4;
    size_t bytes = row_bytes(&s->dims, side);

    for (int i = 0; i < 20000; i++) {
        uint64_t row = random_number() % rows, byte = random_number() % bytes;
        uint64_t source = source_row(&s->dims, side, row);

        cr_assert_eq(s->packed[side][row * bytes + byte], s->weight[side][source * bytes + byte],
                     "side %d, row %" PRIu64 ", byte %" PRIu64, side, row, byte);
    }
    for (int i = 0; i < 20000; i++) {
        uint64_t position = random_number() % rows, word = random_number() % words;
        uint64_t byte = random_number() % 4;

        cr_assert_eq(s->packed_scale[side][4 * (word * rows + position) + byte],
                     packed_scale_byte(s, side, word, position, byte),
                     "side %d, word %" PRIu64 ", position %" PRIu64 ", byte %" PRIu64, side, word,
                     position, byte);
    }
}

/* Sizes that the kernel takes; no two are each other's transposed. */
static const mp_dims sizes[] = {
    {128, 128}, {384, 128}, {128, 640}, {896, 384}, {640, 1152}, {1408, 256},
};

#define SIZES (sizeof sizes / sizeof sizes[0])

Test(layout, rules)
{
    for (size_t i = 0; i < SIZES; i++) {
        slot s = make_slot(sizes[i].hidden_size, sizes[i].intermediate_size);

        for (int side = 0; side < MP_SIDES; side++) {
            pack_side(&s, side, side == MP_L1 ? 176 : 77);
            expect_rules(&s, side);
        }
        free_slot(&s);
    }
}

/* ------------------------------------------------------------------------
 * There and back
 */

Test(layout, unpack_undoes_pack)
{
    for (size_t i = 0; i < SIZES; i++) {
        slot s = make_slot(sizes[i].hidden_size, sizes[i].intermediate_size);

        for (int side = 0; side < MP_SIDES; side++) {
            size_t weights = weight_bytes(&s.dims, side), scales = scale_bytes(&s.dims, side);
            uint8_t *weight = malloc(weights), *scale = malloc(scales);

            pack_side(&s, side, 16 * (i + 1));
            unpack_side(&s, side, 16 * (SIZES - i), weight, scale);
            expect_bytes("weight", weight, s.weight[side], weights);
            expect_bytes("scale", scale, s.scale[side], scales);
            free(weight);
            free(scale);
        }
        free_slot(&s);
    }
}

/* Every packed byte has a place, so random ones come back too. */
Test(layout, pack_undoes_unpack)
{
    for (size_t i = 0; i < SIZES; i++) {
        slot packed = make_slot(sizes[i].hidden_size, sizes[i].intermediate_size);
        slot s = make_slot(sizes[i].hidden_size, sizes[i].intermediate_size);

        for (int side = 0; side < MP_SIDES; side++) {
            size_t weights = weight_bytes(&s.dims, side), scales = scale_bytes(&s.dims, side);

            memcpy(packed.packed[side], packed.weight[side], weights);
            memcpy(packed.packed_scale[side], packed.scale[side], scales);
            unpack_side(&packed, side, 48, s.weight[side], s.scale[side]);
            pack_side(&s, side, 80);
            expect_bytes("weight", s.packed[side], packed.packed[side], weights);
            expect_bytes("scale", s.packed_scale[side], packed.packed_scale[side], scales);
        }
        free_slot(&packed);
        free_slot(&s);
    }
}

/* ------------------------------------------------------------------------
 * What the target says of itself
 */

Test(layout, tensors)
{
    const mp_dims dims = {640, 384};
    const struct {
        const char *name;
        mp_side side;
        mp_role role;
        mp_dtype dtype;
        uint64_t shape[2], bytes;
    } want[] = {
        {"l1_weight", MP_L1, MP_ROLE_WEIGHT, MP_I8, {768, 320}, 768 * 320},
        {"l1_weight_sf", MP_L1, MP_ROLE_SCALE, MP_I32, {5, 768}, 5 * 768 * 4},
        {"l2_weight", MP_L2, MP_ROLE_WEIGHT, MP_I8, {640, 192}, 640 * 192},
        {"l2_weight_sf", MP_L2, MP_ROLE_SCALE, MP_I32, {3, 640}, 3 * 640 * 4},
    };
    mp_slot_tensor tensors[MP_TARGET_TENSORS];

    cr_assert_eq(target->describe(&dims, tensors), 4);
    for (int t = 0; t < 4; t++) {
        cr_assert_str_eq(tensors[t].name, want[t].name);
        cr_assert_eq(tensors[t].side, want[t].side);
        cr_assert_eq(tensors[t].role, want[t].role);
        cr_assert_eq(tensors[t].dtype, want[t].dtype);
        cr_assert_eq(tensors[t].rank, 2);
        cr_assert_eq(tensors[t].shape[0], want[t].shape[0]);
        cr_assert_eq(tensors[t].shape[1], want[t].shape[1]);
        cr_assert_eq(tensors[t].slot_bytes, want[t].bytes);
    }
    cr_assert_eq(mp_side_rows(&dims, MP_L1), 768);
    cr_assert_eq(mp_side_cols(&dims, MP_L1), 640);
    cr_assert_eq(mp_side_rows(&dims, MP_L2), 640);
    cr_assert_eq(mp_side_cols(&dims, MP_L2), 384);
    cr_assert_eq(mp_target_scale_row_bytes(target, 640), 20);
}

static void expect_refused(uint64_t hidden, uint64_t intermediate, const char *message)
{
    const mp_dims dims = {hidden, intermediate};
    mp_problems warnings = {0};

    cr_assert_eq(target->check(&dims, &warnings, &err), MP_ERR_UNSUPPORTED);
    cr_assert_eq(err.code, MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, message);
    mp_problems_release(&warnings);
}

Test(layout, refuses_sizes_that_the_kernel_does_not_take)
{
    expect_refused(0, 512, "megamoe-w4a8: hidden size is 0, the kernel takes multiples of 128");
    expect_refused(4096 + 64, 512,
                   "megamoe-w4a8: hidden size is 4160, the kernel takes multiples of 128");
    expect_refused(512, 127,
                   "megamoe-w4a8: expert intermediate size is 127, the kernel takes multiples of "
                   "128");
    expect_refused(512, 0,
                   "megamoe-w4a8: expert intermediate size is 0, the kernel takes multiples of "
                   "128");
}

Test(layout, warns_of_sizes_that_the_engine_does_not_take)
{
    const mp_dims both = {7168, 2048}, hidden = {640, 1024}, inter = {1024, 384}, none = {128, 256};
    mp_problems warnings = {0};

    cr_assert_eq(target->check(&both, &warnings, &err), 0);
    cr_assert_eq(warnings.count, 0);
    cr_assert_eq(target->check(&hidden, &warnings, &err), 0);
    cr_assert_eq(warnings.count, 1);
    cr_assert_str_eq(warnings.text[0],
                     "megamoe-w4a8: hidden size is 640, SGLang takes multiples of 512 only");
    cr_assert_eq(target->check(&inter, &warnings, &err), 0);
    cr_assert_eq(warnings.count, 2);
    cr_assert_str_eq(
        warnings.text[1],
        "megamoe-w4a8: expert intermediate size is 384, SGLang takes multiples of 512 only");
    cr_assert_eq(target->check(&none, &warnings, &err), 0);
    cr_assert_eq(warnings.count, 4);
    mp_problems_release(&warnings);
}

Test(layout, table_of_targets)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    cr_assert_geq(count, 1);
    for (size_t i = 0; i < count; i++) {
        cr_assert_eq(mp_target_find(targets[i]->name), targets[i]);
        cr_assert_geq(targets[i]->version, 1);
    }
    cr_assert_null(mp_target_find("megamoe"));
    cr_assert_null(mp_target_find(""));
    cr_assert_eq(target->scheme, MP_SCHEME_MXFP4);
    cr_assert_eq(target->rounding, MP_ROUND_DEEPGEMM);
    cr_assert_eq(target->l1_row_group, 16);
    cr_assert(target->l2_weight_unchanged);
}
