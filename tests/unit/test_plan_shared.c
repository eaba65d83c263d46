/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a repack with shared experts, and of tensors that not every source has. */
#include <criterion/criterion.h>

#include "model_files.h"
#include "write/plan.h"

#define HIDDEN 384
#define INTER  128

static mp_repack_plan plan;
static mp_repack_options options;

static void init(void)
{
    make_model_scratch();
    options = (mp_repack_options){.target = mp_target_find("megamoe-w4a8"), .ep = 2};
}

static void finish(void)
{
    mp_repack_plan_release(&plan);
    remove_model_scratch();
}

TestSuite(plan_shared, .init = init, .fini = finish);

static int make_plan(void)
{
    mp_repack_plan_release(&plan);
    err = (mp_error){0};
    return mp_repack_plan_init(&plan, &catalog, &options, &err);
}

static void expect_plan(void)
{
    cr_assert_eq(make_plan(), 0, "%s", err.message);
}

static void expect_no_plan(mp_code code, const char *message)
{
    cr_assert_eq(make_plan(), code, "%s", err.message);
    cr_assert_str_eq(err.message, message);
}

/* The shared expert of DeepSeek V4: FP8, with a power of two for 128x128. */
static void add_fp8_shared(const char *prefix, uint64_t width)
{
    static const char *const names[] = {"w1", "w3", "w2"};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? HIDDEN : width, cols = p == MP_DOWN ? width : HIDDEN;

        add_tensor(MP_F8_E4M3, rows, cols, "%s.ffn.shared_experts.%s.weight", prefix, names[p]);
        add_tensor(MP_F8_E8M0, (rows + 127) / 128, (cols + 127) / 128,
                   "%s.ffn.shared_experts.%s.scale", prefix, names[p]);
    }
}

static void add_bf16_shared(uint64_t width)
{
    add_tensor(MP_BF16, width, HIDDEN, "model.layers.0.mlp.shared_experts.gate_proj.weight");
    add_tensor(MP_BF16, width, HIDDEN, "model.layers.0.mlp.shared_experts.up_proj.weight");
    add_tensor(MP_BF16, HIDDEN, width, "model.layers.0.mlp.shared_experts.down_proj.weight");
}

static void make_v4(void)
{
    add_fp4_layer("layers.0", 4, HIDDEN, INTER);
    add_fp8_shared("layers.0", INTER);
    expect_model();
}

/* Four BF16 experts, and shared ones of that many times their width. */
static void make_bf16(unsigned shared)
{
    for (unsigned e = 0; e < 4; e++)
        add_bf16_expert("model.layers.0", e, HIDDEN, INTER);
    add_bf16_shared((uint64_t)shared * INTER);
    expect_model();
    options.target = mp_target_find("deepep-bf16");
}

/* An output tensor of that name on a rank, with its shape. */
static void expect_output(uint32_t rank, const char *name, mp_dtype dtype, uint32_t dims,
                          const uint64_t *shape)
{
    for (unsigned s = 0; s < plan.shape.num_sets; s++) {
        const mp_slot_set *set = &plan.shape.sets[s];

        for (unsigned t = 0; t < set->num_tensors; t++) {
            const mp_out_tensor *out = mp_plan_output(&plan, 0, rank, set, &set->tensors[t]);

            if (!out || strcmp(out->name, name) != 0)
                continue;
            cr_assert_eq(out->dtype, dtype, "%s", name);
            cr_assert_eq(out->dims, dims, "%s", name);
            cr_assert_arr_eq(out->shape, shape, dims * sizeof *shape, "%s", name);
            return;
        }
    }
    cr_assert_fail("no %s", name);
}

#define EXPECT(rank, name, dtype, ...)                                                     \
    expect_output(rank, name, dtype, sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t), \
                  (uint64_t[]){__VA_ARGS__})

/* Copies of an expert's first unit: one on every rank, in that slot. */
static void expect_everywhere(uint32_t expert, uint32_t slot)
{
    mp_unit unit = mp_plan_unit(&plan, (uint64_t)expert * MP_SIDES);
    uint32_t count;
    const mp_place *copies = mp_places_of(&unit.layer->places, unit.id, &count);

    cr_assert(unit.is_shared);
    cr_assert_eq(unit.id, expert);
    cr_assert_eq(count, plan.options.ep);
    for (uint32_t r = 0; r < count; r++) {
        cr_assert_eq(copies[r].rank, r);
        cr_assert_eq(copies[r].slot, slot);
    }
}

Test(plan_shared, fused_into_the_last_slot_of_every_rank)
{
    make_v4();
    options.shared = MP_SHARED_FUSED;
    options.requantize_shared = true;
    expect_plan();
    cr_assert_eq(plan.work.num_units, (4 + 1) * 2);
    cr_assert(plan.layers[0].lossless);
    cr_assert_not(plan.layers[0].shared_lossless);
    cr_assert_not(plan.work.lossless);
    expect_everywhere(4, 2);
    EXPECT(1, "layers.0.experts.l1_weight", MP_I8, 3, 2 * INTER, HIDDEN / 2);
}

Test(plan_shared, another_format_loses_precision)
{
    make_v4();
    options.shared = MP_SHARED_FUSED;
    expect_no_plan(
        MP_ERR_UNSUPPORTED,
        "layers.0: the shared expert is fp8_block, and megamoe-w4a8 takes mxfp4, which "
        "loses precision: allow that with --requantize-shared, or leave it to the engine "
        "with --shared none");
}

Test(plan_shared, the_same_format_does_not)
{
    make_bf16(1);
    options.shared = MP_SHARED_FUSED;
    expect_plan();
    cr_assert(plan.work.lossless);
    EXPECT(0, "model.layers.0.experts.w13_weight", MP_BF16, 3, 2 * INTER, HIDDEN);
}

Test(plan_shared, two_are_cut_apart)
{
    const mp_matrix *up, *down;

    make_bf16(2);
    options.shared = MP_SHARED_FUSED;
    expect_plan();
    cr_assert_eq(catalog.num_shared_experts, 2);
    expect_everywhere(4, 2);
    expect_everywhere(5, 3);
    up = &plan.layers[0].shared[1].matrix[MP_UP];
    down = &plan.layers[0].shared[1].matrix[MP_DOWN];
    cr_assert_eq(up->first, INTER);
    cr_assert_eq(up->stored_cols, 0);
    cr_assert_eq(down->first, 0);
    cr_assert_eq(down->first_col, INTER);
    cr_assert_eq(down->stored_cols, 2 * INTER);
}

Test(plan_shared, apart_in_fp8)
{
    make_v4();
    options.shared = MP_SHARED_SEPARATE;
    expect_plan();
    cr_assert(plan.work.lossless);
    cr_assert_eq(plan.shape.num_tensors, 8);
    expect_everywhere(4, 0);
    EXPECT(1, "layers.0.experts.l1_weight", MP_I8, 2, 2 * INTER, HIDDEN / 2);
    for (uint32_t rank = 0; rank < 2; rank++) {
        EXPECT(rank, "layers.0.shared_experts.shared_l1_weight", MP_F8_E4M3, 2 * INTER, HIDDEN);
        EXPECT(rank, "layers.0.shared_experts.shared_l1_weight_sf", MP_I32, HIDDEN / 128,
               2 * INTER);
        EXPECT(rank, "layers.0.shared_experts.shared_l2_weight", MP_F8_E4M3, HIDDEN, INTER);
        EXPECT(rank, "layers.0.shared_experts.shared_l2_weight_sf", MP_I32, INTER / 128, HIDDEN);
    }
}

Test(plan_shared, apart_with_a_slot_each)
{
    make_bf16(2);
    options.shared = MP_SHARED_SEPARATE;
    expect_plan();
    expect_everywhere(5, 1);
    EXPECT(1, "model.layers.0.experts.w2_weight", MP_BF16, 2, HIDDEN, INTER);
    EXPECT(1, "model.layers.0.shared_experts.w13_weight", MP_BF16, 2, 2 * INTER, HIDDEN);
    EXPECT(0, "model.layers.0.shared_experts.w2_weight", MP_BF16, 2, HIDDEN, INTER);
}

Test(plan_shared, scales_that_are_no_powers_of_two_may_requantize)
{
    make_v4();
    options.shared = MP_SHARED_SEPARATE;
    options.requantize_shared = true;
    expect_plan();
    cr_assert_not(plan.work.lossless, "it is known when they are read");
}

Test(plan_shared, on_some_ranks)
{
    mp_unit unit;
    uint32_t count;

    make_bf16(1);
    options.shared = MP_SHARED_FUSED;
    options.ranks = "1";
    expect_plan();
    unit = mp_plan_unit(&plan, 8);
    cr_assert_eq(mp_places_of(&unit.layer->places, unit.id, &count)->rank, 1);
    cr_assert_eq(count, 1);
}

Test(plan_shared, there_are_none)
{
    add_fp4_layer("layers.0", 4, HIDDEN, INTER);
    expect_model();
    options.shared = MP_SHARED_FUSED;
    expect_no_plan(MP_ERR_USAGE, "the model has no shared experts: --shared none");
}

Test(plan_shared, a_layer_without)
{
    add_fp4_layer("layers.1", 4, HIDDEN, INTER);
    add_fp4_layer("layers.0", 4, HIDDEN, INTER);
    add_fp8_shared("layers.0", INTER);
    expect_model();
    options.shared = MP_SHARED_SEPARATE;
    expect_no_plan(MP_ERR_UNSUPPORTED,
                   "layers.1: no shared expert, other layers have one: leave it out with --layers, "
                   "or --shared none");
}

Test(plan_shared, only_ascend_has_nz)
{
    make_v4();
    options.nz = true;
    expect_no_plan(MP_ERR_USAGE, "megamoe-w4a8 has no FRACTAL_NZ form");
}

Test(plan_shared, only_nvfp4_has_alphas)
{
    make_v4();
    options.alphas = MP_ALPHAS_FP4XFP4;
    expect_no_plan(MP_ERR_USAGE, "megamoe-w4a8 has no alphas: --alphas is for megamoe-nvfp4");
}

/* ------------------------------------------------------------------------
 * Tensors that not every source has
 */

static void add_int8_expert(unsigned e, bool offset)
{
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? HIDDEN : INTER, cols = p == MP_DOWN ? INTER : HIDDEN;

        add_tensor(MP_I8, rows, cols, "model.layers.0.mlp.experts.%u.%s.weight", e, names[p]);
        add_tensor(MP_F32, rows, 1, "model.layers.0.mlp.experts.%u.%s.weight_scale", e, names[p]);
        if (offset)
            add_tensor(MP_F32, rows, 1, "model.layers.0.mlp.experts.%u.%s.weight_offset", e,
                       names[p]);
    }
}

Test(plan_shared, offsets_are_carried_where_there_are_any)
{
    for (unsigned e = 0; e < 4; e++)
        add_int8_expert(e, true);
    expect_model();
    options.target = mp_target_find("fuseep-1");
    expect_plan();
    EXPECT(0, "model.layers.0.experts.w13_weight_offset", MP_F32, 2, 2 * INTER);
    EXPECT(0, "model.layers.0.experts.w2_weight_offset", MP_F32, 2, HIDDEN);
    options.drop = "offset";
    expect_plan();
    cr_assert_eq(plan.work.num_outputs, 2 * 4);
}

Test(plan_shared, offsets_of_all_experts_or_none)
{
    for (unsigned e = 0; e < 4; e++)
        add_int8_expert(e, e < 3);
    expect_model();
    options.target = mp_target_find("fuseep-2");
    expect_no_plan(MP_ERR_UNSUPPORTED,
                   "model.layers.0: 3 of 4 experts have what w13_weight_offset holds: drop it, or "
                   "leave the layer out with --layers");
}

Test(plan_shared, scales_of_all_slots_in_one)
{
    for (unsigned e = 0; e < 4; e++)
        add_int8_expert(e, false);
    expect_model();
    options.target = mp_target_find("fuseep-2");
    expect_plan();
    EXPECT(1, "model.layers.0.experts.w13_weight_scale", MP_I64, 2 * 2 * INTER);
    EXPECT(1, "model.layers.0.experts.w2_weight_scale", MP_I64, 2 * HIDDEN);
}

Test(plan_shared, fractal_nz)
{
    for (unsigned e = 0; e < 4; e++)
        add_int8_expert(e, false);
    expect_model();
    options.target = mp_target_find("fuseep-1");
    options.nz = true;
    expect_plan();
    EXPECT(1, "model.layers.0.experts.w13_weight", MP_I8, 2, 2 * INTER / 32, HIDDEN / 16, 16, 32);
    EXPECT(1, "model.layers.0.experts.w2_weight", MP_I8, 2, INTER / 32, HIDDEN / 16, 16, 32);
}

Test(plan_shared, the_kernel_takes_int8_only)
{
    make_v4();
    options.target = mp_target_find("fuseep-1");
    expect_no_plan(MP_ERR_UNSUPPORTED,
                   "fuseep-1 takes int8_channel, and the experts of layers.0 are mxfp4 (the kernel "
                   "takes INT8 only): requantize them with --quantize int8_channel");
}
