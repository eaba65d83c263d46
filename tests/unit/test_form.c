/* SPDX-License-Identifier: Apache-2.0 */
/* Forms: what the catalog reads of experts that a style describes is what the style said, and
 * forms of fixtures are what their files hold. */
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/families.h"
#include "checkpoint/form.h"

#include "model_files.h"

/* I and H; neither is a power of two, nor do blocks of 128 divide them. */
#define WIDTH  160
#define HIDDEN 224

static mp_form form, read_back;

static void make_forms(void)
{
    make_model_scratch();
    form = read_back = (mp_form){0};
}

static void release_forms(void)
{
    mp_form_release(&form);
    mp_form_release(&read_back);
    remove_model_scratch();
}

TestSuite(form, .init = make_forms, .fini = release_forms);

static const mp_naming *naming_of(const char *family)
{
    return mp_family_find(family)->naming;
}

static void open_fixture(const char *name)
{
    char path[256];

    snprintf(path, sizeof path, "testdata/fixtures/%s", name);
    cr_assert_eq(mp_catalog_open(&catalog, path, NULL, &err), 0, "%s", err.message);
}

static void expect_tensor(size_t index, const char *matrix, const char *role, const char *name,
                          mp_dtype dtype, const char *shape)
{
    const mp_form_tensor *t = &form.tensors[index];
    char text[MP_SHAPE_TEXT];

    cr_assert_lt(index, form.num_tensors);
    cr_assert_str_eq(t->name, name);
    cr_assert_str_eq(mp_projection_name(t->matrix), matrix, "%s", name);
    cr_assert_str_eq(mp_role_name(t->role), role, "%s", name);
    cr_assert_eq(t->dtype, dtype, "%s", name);
    cr_assert_str_eq(mp_shape_text(t->shape, t->rank, text), shape, "%s", name);
}

static void expect_equal(const mp_form *a, const mp_form *b)
{
    cr_assert_eq(a->scheme, b->scheme);
    cr_assert_eq(a->fusion, b->fusion);
    cr_assert_eq(a->global_divides, b->global_divides);
    cr_assert_eq(a->block_rows, b->block_rows);
    cr_assert_eq(a->block_cols, b->block_cols);
    cr_assert_eq(a->num_tensors, b->num_tensors);
    for (size_t i = 0; i < a->num_tensors; i++) {
        const mp_form_tensor *x = &a->tensors[i], *y = &b->tensors[i];

        cr_assert_str_eq(x->name, y->name);
        cr_assert_eq(x->matrix, y->matrix, "%s", x->name);
        cr_assert_eq(x->role, y->role, "%s", x->name);
        cr_assert(x->dtype == y->dtype && x->rank == y->rank, "%s", x->name);
        cr_assert_eq(memcmp(x->shape, y->shape, x->rank * sizeof *x->shape), 0, "%s", x->name);
    }
}

/* ------------------------------------------------------------------------
 * Of a checkpoint
 */

Test(form, of_experts_with_tensors_of_their_own)
{
    open_fixture("v4-fp4");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[1], false, &form, &err), 0, "%s",
                 err.message);
    cr_assert_str_eq(mp_scheme_name(form.scheme), "mxfp4");
    cr_assert_str_eq(mp_fusion_name(form.fusion), "none");
    cr_assert(form.block_rows == 1 && form.block_cols == 32 && !form.global_divides);
    cr_assert_eq(form.num_tensors, 6);
    expect_tensor(0, "gate", "weight", "ffn.experts.{}.w1.weight", MP_I8, "[256, 192]");
    expect_tensor(1, "gate", "scale", "ffn.experts.{}.w1.scale", MP_F8_E8M0, "[256, 12]");
    expect_tensor(2, "up", "weight", "ffn.experts.{}.w3.weight", MP_I8, "[256, 192]");
    expect_tensor(3, "up", "scale", "ffn.experts.{}.w3.scale", MP_F8_E8M0, "[256, 12]");
    expect_tensor(4, "down", "weight", "ffn.experts.{}.w2.weight", MP_I8, "[384, 128]");
    expect_tensor(5, "down", "scale", "ffn.experts.{}.w2.scale", MP_F8_E8M0, "[384, 8]");
}

Test(form, of_the_shared_expert)
{
    open_fixture("v4-fp4");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], true, &form, &err), 0, "%s",
                 err.message);
    cr_assert_str_eq(mp_scheme_name(form.scheme), "fp8_block");
    cr_assert(form.block_rows == 128 && form.block_cols == 128);
    cr_assert_eq(form.num_tensors, 6);
    expect_tensor(0, "gate", "weight", "ffn.shared_experts.w1.weight", MP_F8_E4M3, "[256, 384]");
    expect_tensor(5, "down", "scale", "ffn.shared_experts.w2.scale", MP_F8_E8M0, "[3, 2]");
}

Test(form, of_no_shared_expert_is_refused)
{
    open_fixture("qwen3-bf16");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], true, &form, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "model.layers.0: no shared expert");
}

Test(form, of_fused_experts)
{
    open_fixture("gptoss-mxfp4");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], false, &form, &err), 0, "%s",
                 err.message);
    cr_assert_str_eq(mp_fusion_name(form.fusion), "rows_paired");
    cr_assert_eq(form.num_tensors, 4, "biases are no part of it");
    expect_tensor(0, "gate_up", "weight", "mlp.experts.gate_up_proj_blocks", MP_U8,
                  "[3, 128, 3, 16]");
    expect_tensor(1, "gate_up", "scale", "mlp.experts.gate_up_proj_scales", MP_U8, "[3, 128, 3]");
    expect_tensor(2, "down", "weight", "mlp.experts.down_proj_blocks", MP_U8, "[3, 96, 2, 16]");
    expect_tensor(3, "down", "scale", "mlp.experts.down_proj_scales", MP_U8, "[3, 96, 2]");
}

Test(form, lists_the_roles_in_order)
{
    open_fixture("ct-nvfp4");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], false, &form, &err), 0);
    cr_assert(form.global_divides);
    cr_assert_eq(form.num_tensors, 12);
    expect_tensor(8, "down", "weight", "mlp.experts.{}.down_proj.weight_packed", MP_U8, "[96, 32]");
    expect_tensor(9, "down", "scale", "mlp.experts.{}.down_proj.weight_scale", MP_F8_E4M3,
                  "[96, 4]");
    expect_tensor(10, "down", "global_scale", "mlp.experts.{}.down_proj.weight_global_scale",
                  MP_F32, "[1]");
    expect_tensor(11, "down", "input_scale", "mlp.experts.{}.down_proj.input_global_scale", MP_F32,
                  "[1]");
}

Test(form, lists_offsets_and_shapes)
{
    open_fixture("modelslim-w8a8");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], false, &form, &err), 0);
    cr_assert(form.block_rows == 1 && form.block_cols == UINT32_MAX);
    expect_tensor(2, "gate", "offset", "mlp.experts.{}.gate_proj.weight_offset", MP_F32, "[64, 1]");
    mp_form_release(&form);
    mp_catalog_release(&catalog);
    open_fixture("kimi-k25-int4");
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], false, &form, &err), 0);
    cr_assert_eq(form.block_cols, 32);
    expect_tensor(2, "gate", "shape", "mlp.experts.{}.gate_proj.weight_shape", MP_I32, "[2]");
}

/* ------------------------------------------------------------------------
 * Of a style
 */

/* Writes two experts of the form, or the shared one beside BF16 experts. */
static void add_form(const char *prefix)
{
    for (uint32_t e = 0; e < 2; e++) {
        for (size_t i = 0; i < form.num_tensors; i++) {
            const mp_form_tensor *t = &form.tensors[i];
            char *name = mp_form_tensor_name(t, prefix, e);

            if (e == 0 || strstr(t->name, "{}")) {
                add_tensor(t->dtype, t->shape[0], t->shape[1], "%s", name);
                model.specs[model.count - 1].rank = t->rank;
            }
            free(name);
        }
    }
}

static void check_round_trip(const char *style, mp_scheme scheme, const char *family)
{
    const mp_family *f = mp_family_find(family);
    char prefix[64];

    snprintf(prefix, sizeof prefix, "%s3", f->layer_prefix);
    cr_assert_eq(mp_style_form(style, scheme, f->naming, false, HIDDEN, WIDTH, &form, &err), 0,
                 "%s %s: %s", style, mp_scheme_name(scheme), err.message);
    add_form(prefix);
    expect_model();
    cr_assert_eq(mp_catalog_check(&catalog, &err), 0, "%s %s: %s", style, mp_scheme_name(scheme),
                 err.message);
    cr_assert_eq(catalog.layers[0].storage.scheme, scheme);
    cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], false, &read_back, &err), 0, "%s",
                 err.message);
    expect_equal(&form, &read_back);
    mp_form_release(&form);
    mp_form_release(&read_back);
    clear_model();
}

Test(form, the_catalog_reads_what_a_style_describes)
{
    static const struct {
        const char *style;
        mp_scheme schemes[6];
        size_t count;
    } have[] = {
        {"deepseek-v4", {MP_SCHEME_MXFP4, MP_SCHEME_FP8_BLOCK, MP_SCHEME_BF16}, 3},
        {"deepseek-v3", {MP_SCHEME_FP8_BLOCK, MP_SCHEME_BF16}, 2},
        {"compressed-tensors",
         {MP_SCHEME_MXFP4, MP_SCHEME_NVFP4, MP_SCHEME_INT8_CHANNEL, MP_SCHEME_FP8_BLOCK,
          MP_SCHEME_BF16},
         5},
        {"modelopt", {MP_SCHEME_NVFP4, MP_SCHEME_BF16}, 2},
    };
    static const char *const families[] = {"deepseek_v4", "deepseek_v3", "mixtral", "llama4"};
    size_t count, written = 0, listed = 0;
    const mp_convention *rows = mp_conventions(&count);

    for (size_t i = 0; i < count; i++)
        written += rows[i].written;
    for (size_t s = 0; s < 4; s++)
        listed += have[s].count;
    cr_assert_eq(written, listed);
    for (size_t s = 0; s < 4; s++)
        for (size_t i = 0; i < have[s].count; i++)
            for (size_t f = 0; f < 4; f++)
                check_round_trip(have[s].style, have[s].schemes[i], families[f]);
}

Test(form, the_catalog_reads_a_shared_expert_in_a_style)
{
    static const mp_scheme schemes[] = {MP_SCHEME_MXFP4, MP_SCHEME_NVFP4, MP_SCHEME_INT8_CHANNEL,
                                        MP_SCHEME_FP8_BLOCK, MP_SCHEME_BF16};
    const mp_naming *naming = naming_of("deepseek_v3");

    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
        cr_assert_eq(mp_style_form(NULL, schemes[i], naming, true, HIDDEN, 2 * WIDTH, &form, &err),
                     0);
        add_bf16_expert("model.layers.1", 0, HIDDEN, WIDTH);
        add_form("model.layers.1");
        expect_model();
        cr_assert_eq(mp_catalog_check(&catalog, &err), 0, "%s", err.message);
        cr_assert_eq(catalog.num_shared_experts, 2);
        cr_assert_eq(mp_form_of_layer(&catalog, &catalog.layers[0], true, &read_back, &err), 0);
        expect_equal(&form, &read_back);
        mp_form_release(&form);
        mp_form_release(&read_back);
        clear_model();
    }
}

Test(form, tensors_of_a_style)
{
    cr_assert_eq(mp_style_form("compressed-tensors", MP_SCHEME_INT8_CHANNEL, naming_of("mixtral"),
                               false, HIDDEN, WIDTH, &form, &err),
                 0);
    cr_assert_eq(form.num_tensors, 6);
    expect_tensor(2, "up", "weight", "block_sparse_moe.experts.{}.w3.weight", MP_I8, "[160, 224]");
    expect_tensor(3, "up", "scale", "block_sparse_moe.experts.{}.w3.weight_scale", MP_F32,
                  "[160, 1]");
    mp_form_release(&form);
    cr_assert_eq(mp_style_form("modelopt", MP_SCHEME_NVFP4, naming_of("llama4"), true, HIDDEN,
                               WIDTH, &form, &err),
                 0);
    cr_assert_eq(form.num_tensors, 9);
    expect_tensor(8, "down", "global_scale", "feed_forward.shared_expert.down_proj.weight_scale_2",
                  MP_F32, "[]");
    cr_assert_eq(mp_form_find(&form, MP_DOWN, MP_ROLE_GLOBAL_SCALE), &form.tensors[8]);
    cr_assert_null(mp_form_find(&form, MP_DOWN, MP_ROLE_OFFSET));
}

Test(form, defaults)
{
    static const struct {
        mp_scheme scheme;
        const char *family, *style;
    } want[] = {
        {MP_SCHEME_MXFP4, "deepseek_v4", "deepseek-v4"},
        {MP_SCHEME_MXFP4, "deepseek_v3", "compressed-tensors"},
        {MP_SCHEME_INT8_CHANNEL, "deepseek_v4", "compressed-tensors"},
        {MP_SCHEME_INT8_CHANNEL, "qwen3_moe", "compressed-tensors"},
        {MP_SCHEME_FP8_BLOCK, "deepseek_v4", "deepseek-v4"},
        {MP_SCHEME_FP8_BLOCK, "mixtral", "deepseek-v3"},
        {MP_SCHEME_NVFP4, "deepseek_v4", "modelopt"},
        {MP_SCHEME_NVFP4, "qwen3_moe", "modelopt"},
        {MP_SCHEME_BF16, "deepseek_v4", "deepseek-v4"},
        {MP_SCHEME_BF16, "qwen3_moe", "deepseek-v3"},
    };

    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        cr_assert_str_eq(
            mp_style_name(mp_convention_usual(want[i].scheme, naming_of(want[i].family))->style),
            want[i].style, "%zu", i);
    cr_assert_null(mp_convention_usual(MP_SCHEME_INT4_GROUP, naming_of("kimi_k2")));
}

Test(form, combinations_that_there_are_not)
{
    const mp_naming *naming = naming_of("qwen3_moe");

    cr_assert_eq(mp_style_form("deepseek-v3", MP_SCHEME_MXFP4, naming, false, 64, 64, &form, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message,
                     "style \"deepseek-v3\" has no mxfp4; deepseek-v4 and compressed-tensors "
                     "have it");
    cr_assert_eq(mp_style_form("awq", MP_SCHEME_BF16, naming, false, 64, 64, &form, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, "style \"awq\" has no bf16; deepseek-v4, deepseek-v3, modelopt "
                                  "and compressed-tensors have it");
    cr_assert_eq(mp_style_form(NULL, MP_SCHEME_INT4_GROUP, naming, false, 64, 64, &form, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, "experts cannot be written in int4_group");
    cr_assert_eq(mp_style_form(NULL, MP_SCHEME_MXFP4, naming, false, 64, 48, &form, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, "down of 48 columns cannot be mxfp4: its blocks are 32 wide");
    cr_assert_eq(form.num_tensors, 0);
    cr_assert_null(form.tensors);
}

Test(form, names_of_fusions)
{
    for (int f = MP_FUSION_NONE; f <= MP_FUSION_COLS_PAIRED; f++) {
        mp_fusion parsed;

        cr_assert(mp_fusion_parse(mp_fusion_name((mp_fusion)f), &parsed));
        cr_assert_eq(parsed, (mp_fusion)f);
    }
    cr_assert_not(mp_fusion_parse("halves", &(mp_fusion){0}));
}
