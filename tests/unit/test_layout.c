/* SPDX-License-Identifier: Apache-2.0 */
/* Targets against their rules written down once more, one byte at a time; there and back;
 * and what unpacking says of damage. */
#include <criterion/criterion.h>

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/transpose.h"
#include "base/words.h"
#include "layout/sides.h"
#include "layout/targets.h"

#include "layout_slot.h"

/* ------------------------------------------------------------------------
 * Weights, by rule
 */

/* A line: a row of gate, up or down. */
typedef struct line {
    unsigned part;
    uint64_t row;
} line;

typedef line line_order(const mp_dims *dims, uint64_t i);

static line plain(const mp_dims *dims, uint64_t i)
{
    uint64_t half = dims->intermediate_size;

    return i < half ? (line){0, i} : (line){1, i - half};
}

/* 8 gate rows, 8 up rows. */
static line eights(const mp_dims *dims, uint64_t i)
{
    (void)dims;
    return i % 16 < 8 ? (line){0, i / 16 * 8 + i % 16} : (line){1, i / 16 * 8 + i % 16 - 8};
}

/* Of 16 gate and 16 up rows: even gate, even up, odd gate, odd up. */
static line even_odd(const mp_dims *dims, uint64_t i)
{
    uint64_t first = i / 32 * 16, k = i % 8;

    (void)dims;
    switch (i % 32 / 8) {
    case 0:
        return (line){0, first + 2 * k};
    case 1:
        return (line){1, first + 2 * k};
    case 2:
        return (line){0, first + 2 * k + 1};
    default:
        return (line){1, first + 2 * k + 1};
    }
}

/* 64 columns of gate, 64 of up. */
static line chunks(const mp_dims *dims, uint64_t i)
{
    (void)dims;
    return i / 64 % 2 == 0 ? (line){0, i / 128 * 64 + i % 64} : (line){1, i / 128 * 64 + i % 64};
}

/* How lines of K elements become a tensor. */
typedef enum form {
    LINES,     /* [lines, K] */
    TURNED,    /* [K, lines] */
    NZ_TURNED, /* NZ form of [K, lines] */
    NZ_LINES   /* NZ form of [lines, K] */
} form;

typedef struct rule {
    const char *target;
    bool other;        /* its form in FRACTAL_NZ, or with folded alphas */
    line_order *order; /* of L1 */
    form forms[MP_SIDES];
    mp_dims sizes[5];
} rule;

static const rule rules[] = {
    {"megamoe-w4a8", false, eights, {LINES, LINES}, {{128, 128}, {384, 128}, {128, 640}}},
    {"megamoe-w4a4", false, even_odd, {LINES, LINES}, {{128, 128}, {384, 128}, {128, 640}}},
    {"megamoe-w4a4-g8", false, eights, {LINES, LINES}, {{128, 128}, {384, 128}, {128, 640}}},
    {"megamoe-nvfp4", false, eights, {LINES, LINES}, {{128, 128}, {384, 128}, {128, 640}}},
    {"megamoe-nvfp4", true, eights, {LINES, LINES}, {{128, 128}, {384, 128}, {128, 640}}},
    {"megamoe-bf16", false, eights, {LINES, LINES}, {{40, 48}, {1, 8}, {3, 88}, {77, 16}}},
    {"megamoe-sm90-fp8", false, eights, {LINES, LINES}, {{128, 128}, {384, 128}, {128, 640}}},
    {"deepep-bf16", false, plain, {LINES, LINES}, {{1, 1}, {3, 5}, {40, 17}}},
    {"fuseep-1",
     false,
     chunks,
     {TURNED, LINES},
     {{160, 192}, {1, 64}, {33, 128}, {300, 320}, {15, 448}}},
    {"fuseep-1",
     true,
     chunks,
     {NZ_TURNED, NZ_LINES},
     {{160, 192}, {1, 64}, {33, 128}, {300, 320}, {15, 448}}},
    {"fuseep-2",
     false,
     plain,
     {TURNED, TURNED},
     {{160, 192}, {1, 1}, {33, 17}, {300, 96}, {77, 333}}},
    {"fuseep-2",
     true,
     plain,
     {NZ_TURNED, NZ_TURNED},
     {{160, 192}, {1, 1}, {33, 17}, {300, 96}, {77, 333}}},
};

#define RULES (sizeof rules / sizeof rules[0])

static const mp_target *target_of(const rule *r)
{
    const mp_target *target = mp_target_find(r->target);

    cr_assert_not_null(target, "%s", r->target);
    return !r->other ? target : target->nz ? target->nz : target->fp4xfp4;
}

static uint64_t round_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b * b;
}

/* Where byte `at` of a tensor comes from: line *i, byte *k of it; false for padding. */
static bool source_of(form f, uint64_t lines, uint64_t k_bytes, uint64_t at, uint64_t *i,
                      uint64_t *k)
{
    uint64_t rows = f == NZ_TURNED ? k_bytes : lines, cols = f == NZ_TURNED ? lines : k_bytes;
    uint64_t panel = round_up(rows, 16) * 32;
    uint64_t row = at % panel / 32, col = at / panel * 32 + at % 32;

    switch (f) {
    case LINES:
        *i = at / k_bytes;
        *k = at % k_bytes;
        return true;
    case TURNED:
        *i = at % lines;
        *k = at / lines;
        return true;
    case NZ_TURNED:
        *i = col;
        *k = row;
        return row < rows && col < cols;
    default:
        *i = row;
        *k = col;
        return row < rows && col < cols;
    }
}

static uint8_t expected_byte(const rule *r, const layout_slot *slot, mp_side side, uint64_t at)
{
    const layout_side *s = &slot->sides[side];
    uint64_t rows = mp_side_rows(&slot->dims, side), k_bytes = s->weight_bytes / rows, i, k;

    if (!source_of(r->forms[side], mp_side_parts(side) * rows, k_bytes, at, &i, &k))
        return 0;

    line from = side == MP_L1 ? r->order(&slot->dims, i) : (line){0, i};
    return s->weight[from.part][from.row * k_bytes + k];
}

static void expect_rule(const rule *r, mp_dims dims, uint64_t tile_bytes)
{
    layout_slot slot = layout_slot_make(target_of(r), dims);

    for (int side = 0; side < MP_SIDES; side++) {
        const layout_side *s = &slot.sides[side];

        layout_slot_pack(&slot, side, tile_bytes);
        for (uint64_t at = 0; at < s->packed_bytes; at++) {
            uint8_t want = expected_byte(r, &slot, side, at);

            if (s->packed[at] != want)
                cr_assert_fail("%s, %" PRIu64 "x%" PRIu64 ", side %d, byte %" PRIu64
                               ": %02x, expected %02x",
                               layout_label(slot.target), dims.hidden_size, dims.intermediate_size,
                               side, at, s->packed[at], want);
        }
    }
    layout_slot_free(&slot);
}

Test(layout, weights_by_rule)
{
    static const uint64_t tile_sizes[] = {1, 3000, 9999, UINT64_MAX};

    for (size_t i = 0; i < RULES; i++)
        for (size_t d = 0; d < 5 && rules[i].sizes[d].hidden_size > 0; d++)
            for (size_t t = 0; t < sizeof tile_sizes / sizeof tile_sizes[0]; t++)
                expect_rule(&rules[i], rules[i].sizes[d], tile_sizes[t]);
}

/* Every target has a rule above. */
Test(layout, rules_are_complete)
{
    size_t count;
    const mp_target *const *records = layout_records(&count);

    for (size_t t = 0; t < count; t++) {
        bool found = records[t] == &mp_target_megamoe_shared_fp8; /* below */

        for (size_t i = 0; i < RULES; i++)
            found = found || target_of(&rules[i]) == records[t];
        cr_assert(found, "%s has no rule", layout_label(records[t]));
    }
}

/* ------------------------------------------------------------------------
 * Scales, by rule
 */

/* Canonical row whose scales stand at a position: that of the interleaved row. */
static uint64_t scale_row(const rule *r, const mp_dims *dims, mp_side side, uint64_t position)
{
    uint64_t in_run = position % 128, c = in_run / 4, q = in_run % 4;
    uint64_t row = position - in_run + 32 * q + c;

    if (side == MP_L2)
        return row;

    line from = r->order(dims, row);
    return from.part * dims->intermediate_size + from.row;
}

static void expect_utccp(const rule *r, mp_dims dims)
{
    layout_slot slot = layout_slot_make(target_of(r), dims);

    for (int side = 0; side < MP_SIDES; side++) {
        const layout_side *s = &slot.sides[side];
        uint64_t rows = mp_side_parts(side) * mp_side_rows(&dims, side);
        uint64_t row_bytes = s->scale_bytes / rows;

        layout_slot_pack(&slot, side, UINT64_MAX);
        cr_assert_eq(s->packed_scale_bytes, s->scale_bytes);
        for (uint64_t at = 0; at < s->packed_scale_bytes; at++) {
            uint64_t word = at / 4 / rows, position = at / 4 % rows;
            uint64_t row = scale_row(r, &dims, side, position);

            cr_assert_eq(s->packed_scale[at], s->scale[row * row_bytes + 4 * word + at % 4],
                         "%s, side %d, byte %" PRIu64, r->target, side, at);
        }
    }
    layout_slot_free(&slot);
}

Test(layout, utccp_scales_by_rule)
{
    for (size_t i = 0; i < 4; i++) /* w4a8, w4a4, w4a4-g8, nvfp4 */
        for (size_t d = 0; d < 3; d++)
            expect_utccp(&rules[i], rules[i].sizes[d]);
}

Test(layout, block_scales_stay)
{
    layout_slot slot = layout_slot_make(mp_target_find("megamoe-sm90-fp8"), (mp_dims){640, 384});

    for (int side = 0; side < MP_SIDES; side++) {
        const layout_side *s = &slot.sides[side];

        layout_slot_pack(&slot, side, UINT64_MAX);
        cr_assert_eq(s->scale_bytes, (side == MP_L1 ? 2 * 3 * 5 : 5 * 3) * 4);
        cr_assert_eq(s->packed_scale_bytes, s->scale_bytes);
        layout_expect_bytes("scales", s->packed_scale, s->scale, s->scale_bytes);
    }
    layout_slot_free(&slot);
}

/* Bits of float32, and what fuse mode 2 makes of them. */
Test(layout, scales_as_int64)
{
    static const uint32_t bits[] = {0, 0x3f800000, 0x80000001, 0xbf800000, 0x7f7fffff, 0xffffffff};
    static const int64_t wide[] = {0, 1065353216, -2147483647, -1082130432, 2139095039, -1};
    const mp_target *target = mp_target_find("fuseep-2");
    const mp_dims dims = {.hidden_size = 6, .intermediate_size = 1};
    uint8_t in[sizeof bits], out[sizeof wide], back[sizeof bits];

    memcpy(in, bits, sizeof in);
    target->pack_scale(&dims, MP_L2, in, out);
    layout_expect_bytes("scales", out, (const uint8_t *)wide, sizeof wide);
    target->unpack_scale(&dims, MP_L2, out, back);
    layout_expect_bytes("scales", back, in, sizeof in);
}

/* ------------------------------------------------------------------------
 * Shared experts in FP8
 */

/* Scales repeated for each row and each 32 columns, in the order that mxfp4 exponents have. */
static void expect_repeated(mp_dims dims)
{
    const mp_target *mxfp4 = mp_target_find("megamoe-w4a8");
    layout_slot shared = layout_slot_make(mxfp4->separate, dims);
    layout_slot slot = layout_slot_make(mxfp4, dims);

    for (int side = 0; side < MP_SIDES; side++) {
        const layout_side *have = &shared.sides[side], *want = &slot.sides[side];
        uint64_t blocks = mp_side_cols(&dims, side) / 128, row_bytes = 4 * blocks;

        for (uint64_t at = 0; at < want->scale_bytes; at++) {
            uint64_t row = at / row_bytes, group = at % row_bytes;
            uint32_t bits;

            memcpy(&bits, have->scale + 4 * (row / 128 * blocks + group / 4), sizeof bits);
            want->scale[at] = (uint8_t)(bits >> 23);
        }
        layout_slot_pack(&slot, side, UINT64_MAX);
        layout_slot_pack(&shared, side, 30000);
        cr_assert_eq(have->packed_scale_bytes, want->packed_scale_bytes);
        layout_expect_bytes("scales", have->packed_scale, want->packed_scale,
                            want->packed_scale_bytes);
    }
    layout_slot_free(&shared);
    layout_slot_free(&slot);
}

Test(layout, shared_scales_are_repeated)
{
    expect_repeated((mp_dims){128, 128});
    expect_repeated((mp_dims){640, 384});
    expect_repeated((mp_dims){384, 896});
}

Test(layout, shared_weights_are_those_of_sm90)
{
    const mp_dims dims = {384, 640};
    layout_slot shared = layout_slot_make(&mp_target_megamoe_shared_fp8, dims);
    layout_slot plain_slot = layout_slot_make(mp_target_find("megamoe-sm90-fp8"), dims);

    for (int side = 0; side < MP_SIDES; side++) {
        const layout_side *have = &shared.sides[side], *want = &plain_slot.sides[side];

        for (unsigned p = 0; p < mp_side_parts(side); p++)
            memcpy(have->weight[p], want->weight[p], want->weight_bytes);
        layout_slot_pack(&shared, side, 100000);
        layout_slot_pack(&plain_slot, side, UINT64_MAX);
        layout_expect_bytes("weights", have->packed, want->packed, want->packed_bytes);
    }
    layout_slot_free(&shared);
    layout_slot_free(&plain_slot);
}

/* ------------------------------------------------------------------------
 * There and back
 */

static void expect_back(const mp_target *target, mp_dims dims, uint64_t there, uint64_t back)
{
    layout_slot slot = layout_slot_make(target, dims), copy = layout_slot_make(target, dims);

    for (int side = 0; side < MP_SIDES; side++) {
        layout_side *s = &slot.sides[side], *c = &copy.sides[side];

        layout_slot_pack(&slot, side, there);
        memcpy(c->packed, s->packed, s->packed_bytes);
        if (s->packed_scale_bytes > 0)
            memcpy(c->packed_scale, s->packed_scale, s->packed_scale_bytes);
        layout_slot_unpack(&copy, side, back);
        for (unsigned p = 0; p < mp_side_parts(side); p++)
            layout_expect_bytes(layout_label(target), c->weight[p], s->weight[p], s->weight_bytes);
        layout_expect_bytes(layout_label(target), c->scale, s->scale, s->scale_bytes);
    }
    layout_slot_free(&slot);
    layout_slot_free(&copy);
}

Test(layout, unpack_undoes_pack)
{
    static const mp_dims sizes[] = {{128, 128}, {384, 128}, {128, 640}, {896, 384}, {640, 768},
                                    {40, 48},   {161, 192}, {33, 17},   {1, 8},     {1, 1}};
    size_t count;
    const mp_target *const *records = layout_records(&count);

    for (size_t t = 0; t < count; t++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            mp_problems warnings = {0};

            if (records[t]->check(&sizes[i], &warnings, NULL) == 0)
                expect_back(records[t], sizes[i], 10000 * (i + 1), 7000 * (10 - i));
            mp_problems_release(&warnings);
        }
    }
}

/* ------------------------------------------------------------------------
 * Damage that only unpacking can see
 */

static float float_at(const uint8_t *bytes, size_t i)
{
    float value;

    memcpy(&value, bytes + i * sizeof(value), sizeof(value));
    return value;
}

/* Damages a byte of packed scales: one scale becomes NaN, and no other one. */
static void expect_one_nan(layout_slot *slot, mp_side side, size_t at)
{
    layout_side *s = &slot->sides[side];
    size_t nans = 0;

    s->packed_scale[at] ^= 1;
    layout_slot_unpack(slot, side, UINT64_MAX);
    for (size_t i = 0; i < s->scale_bytes / sizeof(float); i++)
        nans += (size_t)isnan(float_at(s->scale, i));
    cr_assert_eq(nans, 1, "%s, byte %zu: %zu NaN", layout_label(slot->target), at, nans);
    s->packed_scale[at] ^= 1;
}

Test(layout, repeats_that_differ_are_a_nan)
{
    layout_slot slot = layout_slot_make(&mp_target_megamoe_shared_fp8, (mp_dims){384, 256});

    for (int side = 0; side < MP_SIDES; side++) {
        layout_slot_pack(&slot, side, UINT64_MAX);
        for (size_t at = 0; at < slot.sides[side].packed_scale_bytes; at += 97)
            expect_one_nan(&slot, side, at);
    }
    layout_slot_free(&slot);
}

Test(layout, int64_that_are_no_float32_are_a_nan)
{
    layout_slot slot = layout_slot_make(mp_target_find("fuseep-2"), (mp_dims){33, 17});

    for (int side = 0; side < MP_SIDES; side++) {
        layout_side *s = &slot.sides[side];

        for (size_t i = 0; i < s->scale_bytes / sizeof(float); i++) {
            float value = (float)(1 + i) * (i % 2 ? -0.125f : 0.25f);

            memcpy(s->scale + i * sizeof(value), &value, sizeof(value));
        }
        layout_slot_pack(&slot, side, UINT64_MAX);
        for (size_t at = 4; at < s->packed_scale_bytes; at += at % 8 < 7 ? 1 : 5)
            expect_one_nan(&slot, side, at);
    }
    layout_slot_free(&slot);
}

/* ------------------------------------------------------------------------
 * Turning over
 */

/* rows x cols, with room between the rows that nothing touches. */
static void expect_transposed(uint64_t rows, uint64_t cols, unsigned width, uint64_t in_gap,
                              uint64_t out_gap)
{
    uint64_t in_stride = cols * width + in_gap, out_stride = rows * width + out_gap;
    size_t in_bytes = (rows - 1) * in_stride + cols * width;
    size_t out_bytes = (cols - 1) * out_stride + rows * width;
    uint8_t *in = malloc(in_bytes), *out = malloc(out_bytes);

    for (size_t i = 0; i < in_bytes; i++)
        in[i] = (uint8_t)layout_random();
    memset(out, 0xa5, out_bytes);
    mp_transpose(in, in_stride, rows, cols, width, out, out_stride);
    for (uint64_t i = 0; i < out_bytes; i++) {
        uint64_t c = i / out_stride, r = i % out_stride / width, byte = i % out_stride % width;
        uint8_t want = r < rows ? in[r * in_stride + c * width + byte] : 0xa5;

        if (out[i] != want)
            cr_assert_fail("%" PRIu64 "x%" PRIu64 " of %u: byte %" PRIu64 " is %02x, not %02x",
                           rows, cols, width, i, out[i], want);
    }
    free(in);
    free(out);
}

Test(layout, transpose)
{
    static const uint64_t sizes[] = {1, 2, 15, 16, 17, 31, 63, 64, 65, 80, 255, 256, 257, 530};
    const size_t count = sizeof sizes / sizeof sizes[0];

    for (size_t r = 0; r < count; r++) {
        for (size_t c = 0; c < count; c++) {
            expect_transposed(sizes[r], sizes[c], 1, 0, 0);
            expect_transposed(sizes[r], sizes[c], 1, 3 + r, 5 + c);
            expect_transposed(sizes[r], sizes[c], 2, 0, 0);
            expect_transposed(sizes[r], sizes[c], 2, 5 + c, 3 + r);
            expect_transposed(sizes[r], sizes[c], 4, 7, 1);
        }
    }
}
