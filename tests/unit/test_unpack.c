/* SPDX-License-Identifier: Apache-2.0 */
/* Unpacking: the tensors of a source come back from every target that takes them as they are. */
#include "unpack_files.h"

#include "write/unpack.h"

TestSuite(unpack, .init = init, .fini = finish);

static const part bf16[] = {{".weight", MP_BF16, 1, 1, false}, {0}};
static const part ct_fp4[] = {
    {".weight_packed", MP_U8, 1, 2, false}, {".weight_scale", MP_U8, 1, 32, false}, {0}};
static const part fp8_e8m0[] = {
    {".weight", MP_F8_E4M3, 1, 1, false}, {".scale", MP_F8_E8M0, 128, 128, false}, {0}};
static const part fp8[] = {
    {".weight", MP_F8_E4M3, 1, 1, false}, {".weight_scale_inv", MP_F32, 128, 128, false}, {0}};
static const part fp8_bf16[] = {
    {".weight", MP_F8_E4M3, 1, 1, false}, {".weight_scale_inv", MP_BF16, 128, 128, false}, {0}};
static const part int8[] = {
    {".weight", MP_I8, 1, 1, false}, {".weight_scale", MP_F32, 1, 0, false}, {0}};
static const part int8_bf16[] = {
    {".weight", MP_I8, 1, 1, false}, {".weight_scale", MP_BF16, 1, 0, false}, {0}};
static const part int8_offset[] = {{".weight", MP_I8, 1, 1, false},
                                   {".weight_scale", MP_F32, 1, 0, false},
                                   {".weight_offset", MP_F32, 1, 0, false},
                                   {0}};
static const part modelopt[] = {{".weight", MP_U8, 1, 2, false},
                                {".weight_scale", MP_F8_E4M3, 1, 16, false},
                                {".weight_scale_2", MP_F32, 0, 0, true},
                                {0}};
static const part ct_nvfp4[] = {{".weight_packed", MP_U8, 1, 2, false},
                                {".weight_scale", MP_F8_E4M3, 1, 16, false},
                                {".weight_global_scale", MP_F32, 0, 0, false},
                                {0}};

/* Scales of activations, the same for gate and up, as the targets want it. */
static void add_input_scales(const char *prefix)
{
    for (unsigned l = 0; l < 2; l++) {
        for (unsigned e = 0; e < EXPERTS; e++) {
            for (int p = 0; p < MP_PROJECTIONS; p++) {
                add_tensor(MP_F32, 1, 0, "%s.%u.mlp.experts.%u.%s.input_scale", prefix, l, e,
                           proj[p]);
                reshape(0, NULL);
            }
        }
    }
}

/* Stacked experts; transposed: [E, H, 2I] and [E, I, H]. */
static void add_fused(uint64_t h, uint64_t i, bool transposed)
{
    for (unsigned l = 0; l < 2; l++) {
        char name[256];

        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.gate_up_proj", l);
        add_stack(MP_BF16, EXPERTS, transposed ? h : 2 * i, transposed ? 2 * i : h, name);
        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.down_proj", l);
        add_stack(MP_BF16, EXPERTS, transposed ? i : h, transposed ? h : i, name);
    }
}

/* GPT-OSS: gate and up rows in turn, in blocks of 16 bytes. */
static void add_gpt_oss(uint64_t h, uint64_t i)
{
    const struct {
        const char *name;
        uint64_t rows, cols;
    } stacks[] = {{"gate_up_proj", 2 * i, h}, {"down_proj", h, i}};

    for (int s = 0; s < 2; s++) {
        uint64_t rows = stacks[s].rows, blocks = stacks[s].cols / 32;

        add_tensor(MP_U8, 1, 1, "model.layers.0.mlp.experts.%s_blocks", stacks[s].name);
        reshape(4, (const uint64_t[]){EXPERTS, rows, blocks, 16});
        add_tensor(MP_U8, 1, 1, "model.layers.0.mlp.experts.%s_scales", stacks[s].name);
        reshape(3, (const uint64_t[]){EXPERTS, rows, blocks});
        add_tensor(MP_BF16, EXPERTS, rows, "model.layers.0.mlp.experts.%s_bias", stacks[s].name);
    }
}

Test(unpack, deepseek_v4)
{
    add_layers("layers", fp4, fp8_e8m0, 384, 256, 1);
    make_source("deepseek_v4");
    expect_back("megamoe-w4a8", SEPARATE, NULL);
}

Test(unpack, deepseek_v4_without_shared_experts)
{
    add_layers("layers", fp4, fp8_e8m0, 256, 128, 2);
    make_source(NULL);
    expect_back("megamoe-w4a4", NOTHING_ELSE, "shared");
    cr_assert_eq(unpacking.warnings.count, 1);
    cr_assert_str_eq(unpacking.warnings.text[0],
                     "the pack has no shared experts: routed ones are unpacked");
}

Test(unpack, shared_experts_of_fp4_in_slots)
{
    add_layers("layers", fp4, fp4, 256, 384, 2);
    make_source(NULL);
    expect_back("megamoe-w4a4-g8", FUSED, NULL);
}

Test(unpack, compressed_tensors_fp4)
{
    add_layers("model.layers", ct_fp4, NULL, 384, 128, 0);
    make_source("qwen3_moe");
    expect_back("megamoe-w4a8", NOTHING_ELSE, NULL);
}

Test(unpack, deepseek_v3)
{
    add_layers("model.layers", fp8, fp8, 384, 256, 2);
    make_source("deepseek_v3");
    expect_back("megamoe-sm90-fp8", FUSED, NULL);
}

Test(unpack, deepseek_v3_with_a_shared_expert_apart)
{
    add_layers("model.layers", fp8, fp8, 256, 384, 2);
    make_source("deepseek_v3");
    expect_back("megamoe-sm90-fp8", SEPARATE, NULL);
}

Test(unpack, fp8_with_bfloat16_scales)
{
    add_layers("model.layers", fp8_bf16, NULL, 384, 256, 0);
    make_source("qwen3_moe");
    expect_back("megamoe-sm90-fp8", NOTHING_ELSE, NULL);
}

Test(unpack, int8)
{
    add_layers("model.layers", int8, int8, 160, 192, 2);
    make_source(NULL);
    expect_back("fuseep-1", FUSED, NULL);
}

Test(unpack, int8_in_mode_2)
{
    add_layers("model.layers", int8_offset, int8_offset, 160, 96, 3);
    make_source(NULL);
    expect_back("fuseep-2", FUSED, NULL);
}

/* Sizes that are no multiple of anything, and scales that would lie at odd places. */
Test(unpack, int8_of_odd_sizes)
{
    add_layers("model.layers", int8_bf16, int8_bf16, 35, 33, 8);
    make_source(NULL);
    /* Eight slots a rank, which keep the pack's own 64-bit scales where they belong. */
    expect_back("fuseep-2",
                (mp_repack_options){.shared = MP_SHARED_SEPARATE, .ep = 2, .redundant = 11}, NULL);
}

Test(unpack, int8_in_fractal_form)
{
    add_layers("model.layers", int8_offset, int8_offset, 45, 67, 2);
    make_source(NULL);
    expect_back("fuseep-2", (mp_repack_options){.shared = MP_SHARED_FUSED, .nz = true}, NULL);
}

Test(unpack, nvfp4_of_modelopt)
{
    add_layers("model.layers", modelopt, NULL, 256, 384, 0);
    make_source("qwen3_moe");
    expect_back("megamoe-nvfp4", NOTHING_ELSE, NULL);
}

Test(unpack, nvfp4_of_compressed_tensors)
{
    add_layers("model.layers", ct_nvfp4, NULL, 384, 256, 0);
    make_source("qwen3_moe");
    expect_back("megamoe-nvfp4", NOTHING_ELSE, NULL);
}

/* Makes the input scale of every up that of its gate. */
static void equal_input_scales(void)
{
    int fd = open(in_dir("model.safetensors"), O_RDWR);

    for (unsigned l = 0; l < 2; l++) {
        for (unsigned e = 0; e < EXPERTS; e++) {
            const mp_expert *expert = &catalog.layers[l].experts[e];
            uint8_t *gate = bytes_of(&catalog.checkpoint, expert->matrix[MP_GATE].input_scale);

            cr_assert_eq(mp_pwrite_all(fd, gate, 4, expert->matrix[MP_UP].input_scale->offset,
                                       "model", &err),
                         0);
            free(gate);
        }
    }
    close(fd);
}

Test(unpack, scales_of_activations)
{
    add_layers("model.layers", modelopt, NULL, 256, 128, 0);
    add_input_scales("model.layers");
    make_source("qwen3_moe");
    equal_input_scales();
    expect_back("megamoe-nvfp4", NOTHING_ELSE, NULL);
}

Test(unpack, what_was_dropped_is_not_there)
{
    add_layers("model.layers", modelopt, NULL, 256, 128, 0);
    add_input_scales("model.layers");
    make_source("qwen3_moe");
    expect_back("megamoe-nvfp4", (mp_repack_options){.drop = "bias,input_scale"}, "input_scale");
    cr_assert_eq(unpacking.warnings.count, 1);
    cr_assert_str_eq(unpacking.warnings.text[0],
                     "bias,input_scale of experts was dropped when the pack was made");
}

Test(unpack, bfloat16)
{
    add_layers("model.layers", bf16, bf16, 192, 160, 2);
    make_source(NULL);
    expect_back("deepep-bf16", FUSED, NULL);
}

Test(unpack, bfloat16_interleaved)
{
    add_layers("model.layers", bf16, bf16, 192, 160, 2);
    make_source(NULL);
    expect_back("megamoe-bf16", SEPARATE, NULL);
}

Test(unpack, fused_rows)
{
    add_fused(192, 160, false);
    make_source("qwen3_5_moe");
    expect_back("megamoe-bf16", NOTHING_ELSE, NULL);
    cr_assert_eq(unpacking.pack.manifest.forms[0].fusion, MP_FUSION_ROWS);
}

Test(unpack, fused_columns)
{
    add_fused(160, 192, true);
    make_source("qwen3_vl_moe");
    expect_back("deepep-bf16", NOTHING_ELSE, NULL);
    cr_assert_eq(unpacking.pack.manifest.forms[0].fusion, MP_FUSION_COLS);
}

/* Tiles are smaller than a matrix. */
Test(unpack, wide_fused_columns)
{
    add_fused(4160, 144, true);
    make_source("gpt_oss");
    expect_back("deepep-bf16", (mp_repack_options){.ep = 1}, NULL);
    cr_assert_eq(unpacking.pack.manifest.forms[0].fusion, MP_FUSION_COLS_PAIRED);
}

Test(unpack, gpt_oss)
{
    add_gpt_oss(384, 256);
    make_source("gpt_oss");
    expect_back("megamoe-w4a8", (mp_repack_options){.drop = "bias"}, "bias");
    cr_assert_eq(unpacking.pack.manifest.forms[0].fusion, MP_FUSION_ROWS_PAIRED);
}

/* ------------------------------------------------------------------------
 * Requantized
 */

static void expect_same_packs(const char *a, const char *b, uint32_t ranks)
{
    for (uint32_t r = 0; r < ranks; r++) {
        char name[128];
        mp_checkpoint x, y;

        snprintf(name, sizeof name, "%s/rank-%03u", a, r);
        cr_assert_eq(mp_checkpoint_open(&x, in_dir(name), NULL, &err), 0, "%s", err.message);
        snprintf(name, sizeof name, "%s/rank-%03u", b, r);
        cr_assert_eq(mp_checkpoint_open(&y, in_dir(name), NULL, &err), 0, "%s", err.message);
        cr_assert_eq(x.num_tensors, y.num_tensors);
        for (size_t i = 0; i < x.num_tensors; i++) {
            cr_assert_str_eq(x.tensors[i].name, y.tensors[i].name);
            expect_same_tensor(&x, &x.tensors[i], &y, &y.tensors[i]);
        }
        mp_checkpoint_release(&x);
        mp_checkpoint_release(&y);
    }
}

/* What was requantized comes back as that, and packs as it is to the same bytes. */
static void expect_packs_again(const char *target, mp_scheme scheme, mp_repack_options options)
{
    options.quantize = true;
    options.quantize_to = scheme;
    options.quant.rounding = MP_ROUND_DEEPGEMM;
    pack(target, options);
    unpack((mp_unpack_options){0});
    open_result();
    cr_assert_eq(result.layers[0].storage.scheme, scheme);
    options.quantize = options.requantize_shared = false;
    options.target = mp_target_find(target);
    pack_as(&result, "again", options);
    expect_same_packs("packed", "again", 3);
}

static char *config_text(void)
{
    char *text;

    cr_assert_eq(mp_read_text(in_dir("unpacked/config.json"), 1 << 20, &text, NULL, &err), 0, "%s",
                 err.message);
    return text;
}

Test(unpack, requantized_to_fp4)
{
    char *config;

    add_layers("model.layers", bf16, NULL, 256, 384, 0);
    make_source("qwen3_moe");
    expect_packs_again("megamoe-w4a8", MP_SCHEME_MXFP4, NOTHING_ELSE);
    cr_assert_not_null(mp_checkpoint_find(&result.checkpoint,
                                          "model.layers.1.mlp.experts.4.up_proj.weight_packed"));
    config = config_text();
    cr_assert_not_null(strstr(config, "\"model_type\": \"qwen3_moe\""), "%s", config);
    cr_assert_not_null(strstr(config, "mxfp4-pack-quantized"), "%s", config);
    free(config);
}

Test(unpack, requantized_to_nvfp4)
{
    add_layers("model.layers", bf16, NULL, 256, 384, 0);
    make_source("qwen3_moe");
    expect_packs_again("megamoe-nvfp4", MP_SCHEME_NVFP4, NOTHING_ELSE);
    cr_assert_not_null(mp_checkpoint_find(&result.checkpoint,
                                          "model.layers.0.mlp.experts.0.up_proj.weight_scale_2"));
    cr_assert(mp_path_exists(in_dir("unpacked/hf_quant_config.json")));
}

/* Shared experts are FP8 where they stay apart. */
Test(unpack, requantized_shared_experts)
{
    mp_repack_options options = SEPARATE;

    options.requantize_shared = true;
    add_layers("model.layers", bf16, bf16, 384, 256, 1);
    make_source("deepseek_v3");
    expect_packs_again("megamoe-w4a8", MP_SCHEME_MXFP4, options);
    cr_assert_not(unpacking.pack.manifest.shared_lossless);
    cr_assert_eq(result.layers[0].shared_storage.scheme, MP_SCHEME_FP8_BLOCK);
}

/* Requantized slot by slot, down projections got scales of their own, a row and slot. */
Test(unpack, slots_that_are_no_longer_one_matrix)
{
    mp_repack_options options = FUSED;

    options.requantize_shared = options.quantize = true;
    options.quantize_to = MP_SCHEME_INT8_CHANNEL;
    add_layers("model.layers", bf16, bf16, 128, 64, 2);
    make_source(NULL);
    pack("fuseep-2", options);
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), 0, "%s", err.message);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_FRESH, NULL, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message,
                     "model.layers.0.experts.w2_weight_scale: slots 0 and 1 of the shared expert "
                     "differ: they are no longer one matrix");
    cr_assert_not(mp_path_exists(in_dir("unpacked.partial")), "it would fail again");
}
