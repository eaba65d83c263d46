/* SPDX-License-Identifier: Apache-2.0 */
/* verify against a source: whether it is the one, and sources that were requantized. */
#include "verify_pack.h"

#include "verify/faults.h"

static char source[512];

/* A synthetic checkpoint of another family than the fixture. */
static const mp_synth_options qwen3 = {
    .family = "qwen3_moe",
    .scheme = MP_SCHEME_BF16,
    .hidden_size = 384,
    .intermediate_size = 128,
    .dense_intermediate_size = 256,
    .num_experts = 5,
    .top_k = 2,
    .num_layers = 2,
    .vocab_size = 48,
    .seed = 7,
};

static const mp_synth_options deepseek_v3 = {
    .family = "deepseek_v3",
    .scheme = MP_SCHEME_FP8_BLOCK,
    .hidden_size = 256,
    .intermediate_size = 384,
    .dense_intermediate_size = 512,
    .num_experts = 4,
    .num_shared_experts = 1,
    .top_k = 2,
    .num_layers = 2,
    .num_dense = 1,
    .num_mtp = 1,
    .vocab_size = 48,
    .routed_scaling_factor = 2.5,
    .seed = 11,
};

static void make_source(const mp_synth_options *options)
{
    snprintf(source, sizeof source, "%s/source-%d", scratch, (int)options->seed);
    succeed(mp_synth(options, source, NULL, &err));
}

static const mp_repack_options requantized = {
    .ep = 3, .redundant = 1, .quantize = true, .quantize_to = MP_SCHEME_MXFP4};

static void verify_against(const char *path)
{
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = path},
                        2));
}

TestSuite(verify_source, .init = make_scratch, .fini = remove_pack);

/* ------------------------------------------------------------------------
 * Another source
 */

static void expect_other_source(const char *path, const char *why)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT, .source = path};
    char message[1200];

    cr_assert_eq(verify_with(options, 1), MP_ERR_INPUT, "%s", err.message);
    snprintf(message, sizeof message, "\"%s\" is not the checkpoint that was packed: %s", path,
             why);
    cr_expect_eq(strncmp(err.message, message, strlen(message)), 0, "%s", err.message);
}

Test(verify_source, refuses_another_checkpoint)
{
    mp_synth_options other = qwen3;

    make_source(&qwen3);
    pack_source(source, requantized);
    expect_other_source(SOURCE, "shard model-00001-of-00002.safetensors, the manifest names "
                                "model-00001-of-00001.safetensors");
    other.seed++;
    other.num_layers++;
    make_source(&other);
    expect_other_source(source, "model-00001-of-00001.safetensors: ");
    cr_expect_not_null(strstr(err.message, " bytes, the manifest says "), "%s", err.message);
}

Test(verify_source, refuses_another_header_of_the_same_size)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    char *last = &m.shards[0].header_xxh3[31];
    *last = *last == '0' ? '1' : '0';
    save_manifest(&m);
    expect_other_source(source, "model-00001-of-00001.safetensors: header xxh3 ");
}

Test(verify_source, refuses_other_shards)
{
    mp_synth_options other = qwen3;

    other.seed++;
    other.max_shard_size = 1000000;
    make_source(&other);
    pack_source(source, requantized);
    mp_manifest m;
    load_manifest(&m);
    cr_assert_gt(m.num_shards, 1);
    free(m.shards[--m.num_shards].name);
    size_t left = m.num_shards;
    save_manifest(&m);
    char why[64];
    snprintf(why, sizeof why, "%zu shards, the manifest names %zu", left + 1, left);
    expect_other_source(source, why);
}

Test(verify_source, fails_where_there_is_no_source)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options),
                                 .level = MP_VERIFY_EXACT,
                                 .source = "no/such/checkpoint"};

    make_source(&qwen3);
    pack_source(source, requantized);
    cr_expect_eq(verify_with(options, 1), MP_ERR_IO, "%s", err.message);
}

/* The same headers, other weights: only comparing the bytes can tell. */
Test(verify_source, finds_other_weights_under_the_same_headers)
{
    mp_synth_options other = qwen3;

    make_source(&qwen3);
    pack_source(source, requantized);
    other.seed++;
    make_source(&other);
    verify_against(source);
    cr_expect_geq(report.total_faults, 2 * 6 * 2);
    for (size_t i = 0; i < report.num_faults; i++) {
        cr_expect_eq(report.faults[i].level, MP_VERIFY_EXACT);
        cr_expect_null(strstr(report.faults[i].detail, "holds expert"));
    }
}

/* ------------------------------------------------------------------------
 * A manifest that contradicts its source
 */

static void expect_contradictions(uint64_t count, const char *const details[])
{
    verify_against(source);
    expect_count(count);
    for (uint64_t i = 0; i < count; i++)
        expect(i, MP_VERIFY_EXACT, -1, NULL, -1, NULL, -1, details[i]);
}

Test(verify_source, finds_a_model_that_the_source_is_not)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    m.model_layers = 3;
    m.num_shared_experts = 1;
    m.family[0] = 'Q';
    save_manifest(&m);
    expect_contradictions(3, (const char *const[]){
                                 "moepack.json: family \"Qwen3_moe\", the source has \"qwen3_moe\"",
                                 "moepack.json: layers 3, the source has 2",
                                 "moepack.json: num_shared_experts 1, the source has 0",
                             });
}

Test(verify_source, finds_a_quantization_that_did_not_happen)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    m.lossless = true;
    m.source_scheme = MP_SCHEME_F16;
    save_manifest(&m);
    expect_contradictions(2,
                          (const char *const[]){
                              "moepack.json: repack \"lossless\", the source has \"requantized\"",
                              "moepack.json: source quantization \"f16\", the source has \"bf16\"",
                          });
}

Test(verify_source, finds_a_layer_that_the_source_has_not)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    free(m.layers[1]);
    m.layers[1] = strdup("model.layers.9");
    save_manifest(&m);
    verify_against(source);
    /* Of three ranks each: four tensors missing, four not wanted. */
    expect_count(1 + 3 * 8);
    expect(0, MP_VERIFY_EXACT, -1, "model.layers.9", -1, NULL, -1, "the source has no such layer");
}

/* Changes the manifest, expects one fault about the first layer and as many as `faults`, and
 * changes it back. */
#define EXPECT_LIE(change, faults, layer, detail)                    \
    do {                                                             \
        uint64_t length_;                                            \
        char *truth_ = get_text(at(MP_MANIFEST_NAME), &length_);     \
        mp_manifest m;                                               \
                                                                     \
        load_manifest(&m);                                           \
        change;                                                      \
        save_manifest(&m);                                           \
        verify_against(source);                                      \
        expect_count(faults);                                        \
        expect(0, MP_VERIFY_EXACT, -1, layer, -1, NULL, -1, detail); \
        put_text(at(MP_MANIFEST_NAME), truth_);                      \
        free(truth_);                                                \
    } while (0)

static char *changed(char **text, const char *to)
{
    free(*text);
    return *text = strdup(to);
}

#define FORM "moepack.json: form of the experts: "

Test(verify_source, finds_forms_that_the_source_has_not)
{
    const char *layer = "model.layers.1";

    make_source(&deepseek_v3);
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-sm90-fp8"),
                                            .ep = 2,
                                            .shared = MP_SHARED_FUSED});
    verify_against(source);
    expect_count(0);
    /* Two layers have the same form. */
    EXPECT_LIE(m.forms[0].scheme = MP_SCHEME_FP8_GROUP, 2, layer,
               FORM "scheme \"fp8_group\", the source has \"fp8_block\"");
    EXPECT_LIE(m.forms[0].fusion = MP_FUSION_COLS, 2, layer,
               FORM "fusion \"cols\", the source has \"none\"");
    EXPECT_LIE(m.forms[0].global_divides = true, 2, layer,
               FORM "the second scale divides, in the source it multiplies");
    EXPECT_LIE(m.forms[0].block_cols = 64, 2, layer,
               FORM "blocks of 128x64, the source has 128x128");
    EXPECT_LIE(changed(&m.forms[0].tensors[2].name, "mlp.experts.{}.up.weight"), 2, layer,
               FORM "weight of expert 0 is called mlp.experts.{}.up.weight, in the source "
                    "model.layers.1.mlp.experts.0.up_proj.weight");
    EXPECT_LIE(changed(&m.forms[0].tensors[0].name, "mlp.experts.0.gate_proj.weight"), 2, layer,
               FORM "weight of expert 1 is called mlp.experts.0.gate_proj.weight, in the source");
    EXPECT_LIE(m.forms[0].tensors[5].dtype = MP_BF16, 2, layer,
               FORM "model.layers.1.mlp.experts.0.down_proj.weight_scale_inv is BF16 [2, 3], in "
                    "the source F32 [2, 3]");
    EXPECT_LIE(m.forms[0].tensors[4].shape[1] = 3, 2, layer,
               FORM "model.layers.1.mlp.experts.0.down_proj.weight is F8_E4M3 [256, 3], in the "
                    "source F8_E4M3 [256, 384]");
    EXPECT_LIE(m.forms[0].tensors[3].role = MP_ROLE_OFFSET, 2, layer,
               FORM "no scale of up, the source has model.layers.1.mlp.experts.0.up_proj."
                    "weight_scale_inv");
    EXPECT_LIE(m.forms[0].tensors[1].matrix = MP_GATE_UP, 2, layer, FORM "no scale of gate");
    EXPECT_LIE(m.layer_form[1] = m.shared_form[1], 1, "model.layers.2",
               FORM "weight of expert 0 is called mlp.shared_experts.gate_proj.weight");
    EXPECT_LIE(m.shared_form[0] = m.layer_form[0], 1, layer,
               "moepack.json: form of the shared expert: weight of expert 0 is called");
}

/* What was requantized comes back in the usual style of its new scheme. */
Test(verify_source, finds_forms_that_no_style_has)
{
    const char *layer = "model.layers.0";

    make_source(&qwen3);
    pack_source(source, requantized);
    EXPECT_LIE(m.forms[0].scheme = MP_SCHEME_BF16, 2, layer,
               FORM "scheme \"bf16\", fusion \"none\", expected \"mxfp4\" and \"none\"");
    EXPECT_LIE(m.forms[0].block_cols = 64, 2, layer, "tensors in blocks of 1x64, expected ");
    EXPECT_LIE(m.forms[0].tensors[0].shape[0] = 1, 2, layer, FORM "mlp.experts.{}.gate_proj.");
    EXPECT_LIE(m.forms[0].tensors[0].role = MP_ROLE_SHAPE, 2, layer, FORM "no weight of gate");
}

/* A conversion that loses nothing: so says the manifest, and has rows of errors all the same. */
Test(verify_source, finds_lies_about_what_was_lost)
{
    mp_synth_options mxfp4 = deepseek_v3;

    mxfp4.scheme = MP_SCHEME_MXFP4;
    mxfp4.seed = 12;
    make_source(&mxfp4);
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-sm90-fp8"),
                                            .ep = 2,
                                            .quantize = true,
                                            .quantize_to = MP_SCHEME_FP8_BLOCK});
    verify_against(source);
    expect_count(0);
    EXPECT_LIE(m.lossless = false, 1, NULL,
               "moepack.json: repack \"requantized\", the source has \"lossless\"");
    EXPECT_LIE(m.errors[2].requantized_blocks = 1, 1, NULL,
               "moepack.json: repack \"lossless\", the source has \"requantized\"");
    EXPECT_LIE(for (size_t i = 0; i < m.num_errors; i++) m.errors[i].matrix = "shared w2", 1, NULL,
               "moepack.json: errors \"none\", the source has \"some\"");
}

Test(verify_source, finds_shared_experts_that_were_not_requantized)
{
    make_source(&deepseek_v3);
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-sm90-fp8"),
                                            .ep = 2,
                                            .shared = MP_SHARED_SEPARATE});
    verify_against(source);
    expect_count(0);
    EXPECT_LIE(
        m.shared_lossless = false, 1, NULL,
        "moepack.json: repack of shared experts \"requantized\", the source has \"lossless\"");
}

/* Float32 scales that are no powers of two are rounded up for a kernel that wants those. */
Test(verify_source, finds_shared_experts_that_were_requantized)
{
    make_source(&deepseek_v3);
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-w4a8"),
                                            .ep = 2,
                                            .shared = MP_SHARED_SEPARATE,
                                            .requantize_shared = true,
                                            .quantize = true,
                                            .quantize_to = MP_SCHEME_MXFP4});
    EXPECT_LIE(
        m.shared_lossless = true, 1, NULL,
        "moepack.json: repack of shared experts \"lossless\", the source has \"requantized\"");
    mp_manifest m;
    load_manifest(&m);
    m.shared_lossless = false;
    save_manifest(&m);
    verify_against(source);
    expect_count(0);
    flip(1, "model.layers.2.shared_experts.shared_l2_weight", 200 * 384 + 17, 0x20);
    flip(1, "model.layers.2.shared_experts.shared_l2_weight_sf", 256 * 4 + 3, 0x01);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 1, "model.layers.2", -1,
           "model.layers.2.shared_experts.shared_l2_weight", 200 * 384 + 17,
           " where model.layers.2.mlp.shared_experts.down_proj.weight row 200 column 17 quantizes "
           "to 0x");
    expect(1, MP_VERIFY_EXACT, 1, "model.layers.2", -1,
           "model.layers.2.shared_experts.shared_l2_weight_sf", 256,
           " where model.layers.2.mlp.shared_experts.down_proj.weight rows 0-127 columns 128-255 "
           "get the scale 0x");
}

Test(verify_source, finds_weights_that_are_not_in_the_form_that_is_said)
{
    mp_synth_options int8 = deepseek_v3;
    mp_verify_options options = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE};
    mp_manifest m;

    int8.scheme = MP_SCHEME_INT8_CHANNEL;
    make_source(&int8);
    pack_source(source,
                (mp_repack_options){.target = mp_target_find("fuseep-2"), .ep = 2, .nz = true});
    verify_against(source);
    expect_count(0);
    load_manifest(&m);
    m.nz = false;
    save_manifest(&m);
    succeed(verify_with(options, 1));
    expect_count(2 * 2 * 2);
    expect(0, MP_VERIFY_STRUCTURE, 0, "model.layers.1", -1, "model.layers.1.experts.w13_weight", -1,
           "I8 [2, 24, 16, 16, 32], expected I8 [2, 256, 768]");
}

/* ------------------------------------------------------------------------
 * A sample
 */

static void verify_sample(uint32_t sample, uint64_t seed)
{
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = source,
                                            .sample = sample,
                                            .seed = seed},
                        2));
}

/* Every expert damaged: the faults say which ones were looked at. */
Test(verify_source, looks_at_a_sample)
{
    mp_synth_options many = qwen3;
    uint32_t seen[2][16] = {{0}};

    many.num_experts = 16;
    make_source(&many);
    pack_source(source,
                (mp_repack_options){
                    .ep = 1, .redundant = 1, .quantize = true, .quantize_to = MP_SCHEME_MXFP4});
    for (unsigned layer = 0; layer < 2; layer++)
        for (unsigned slot = 0; slot < 17; slot++)
            flip(0, layer ? "model.layers.1.experts.l2_weight" : "model.layers.0.experts.l2_weight",
                 slot * 384 * 64 + 5, 1);
    seal();
    for (uint64_t seed = 0; seed < 100; seed++) {
        verify_sample(3, seed);
        /* The copy of expert 0 is looked at with it. */
        bool copies[2] = {false};
        for (size_t i = 0; i < report.num_faults; i++) {
            unsigned layer = strcmp(report.faults[i].layer, "model.layers.1") == 0;

            copies[layer] |= report.faults[i].slot == 16;
            seen[layer][report.faults[i].slot % 16] += report.faults[i].slot < 16;
        }
        expect_count(6u + copies[0] + copies[1]);
        cr_assert_eq(report.slots, report.total_faults);
    }
    for (unsigned e = 0; e < 16; e++) /* 100 * 3/16 is 19 */
        for (unsigned layer = 0; layer < 2; layer++)
            cr_expect(seen[layer][e] > 4 && seen[layer][e] < 40, "expert %u: %u times", e,
                      seen[layer][e]);
    verify_sample(16, 0);
    expect_count(2 * 17);
    verify_sample(0, 9);
    expect_count(2 * 17);
}

static void keep_progress(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;

    last[0] = done;
    last[1] = total;
}

/* Shared experts are always looked at, and progress ends at its end. */
Test(verify_source, samples_routed_experts_only)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT, .source = source, .sample = 1};
    uint64_t last[2] = {0};
    mp_context context = {.threads = 2, .progress = keep_progress, .progress_user = last};

    make_source(&deepseek_v3);
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-sm90-fp8"),
                                            .ep = 2,
                                            .shared = MP_SHARED_FUSED});
    succeed(mp_verify(out, &options, &context, &report, &err));
    expect_count(0);
    cr_expect_eq(report.slots, 2 * (1 + 2));
    cr_expect_gt(last[0], report.bytes);
    cr_expect_eq(last[0], last[1]);
    flip(1, "model.layers.2.experts.l1_weight", 2 * 768 * 256 + 9, 1);
    seal();
    verify_sample(1, 3);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 1, "model.layers.2", 2, "model.layers.2.experts.l1_weight", 9,
           "model.layers.2.mlp.shared_experts.gate_proj.weight row 0 column 9 says");
}

/* ------------------------------------------------------------------------
 * Requantized
 */

Test(verify_source, accepts_every_way_of_requantizing)
{
    mp_repack_options options = requantized;

    make_source(&qwen3);
    for (int i = 0; i < 4; i++) {
        options.quant.rounding = i & 1 ? MP_ROUND_OCP : MP_ROUND_DEEPGEMM;
        options.quant.scale_rule = i & 2 ? MP_SCALE_MSE : MP_SCALE_CEIL;
        options.quant.amax_floor = i == 3 ? 1e-4f : 0;
        pack_source(source, options);
        verify_against(source);
        expect_count(0);
        cr_expect_eq(report.slots, 2 * 6);
        succeed(mp_remove_tree(out, &err));
    }
}

Test(verify_source, accepts_blocks_of_scales_as_a_source)
{
    mp_repack_options options = requantized;

    options.ep = 5;
    make_source(&deepseek_v3);
    pack_source(source, options);
    verify_against(source);
    expect_count(0);
    cr_expect_eq(report.slots, 2 * 5);
}

/* Bytes that another rule would have made are faults. */
Test(verify_source, holds_the_pack_to_the_rules_of_its_manifest)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    cr_assert_eq(m.scale_rule, MP_SCALE_CEIL);
    m.scale_rule = MP_SCALE_MSE;
    save_manifest(&m);
    verify_against(source);
    cr_expect_gt(report.total_faults, 0);

    load_manifest(&m);
    m.scale_rule = MP_SCALE_CEIL;
    m.amax_floor = 1000;
    save_manifest(&m);
    verify_against(source);
    cr_expect_eq(report.total_faults, 2 * 6 * 4);
}

Test(verify_source, names_what_a_requantized_element_should_be)
{
    const char *weight = "model.layers.1.experts.l2_weight";
    const char *scale = "model.layers.1.experts.l2_weight_sf";
    const uint64_t row_bytes = 128 / 2;

    make_source(&qwen3);
    pack_source(source, requantized);
    /* Slot 1 of rank 2 is physical expert 5, the copy of expert 0. Row 37, column 23. */
    flip(2, weight, (384 + 37) * row_bytes + 11, 0x20);
    /* Row position 9 of the third run of 128: q = 1, c = 2, row 256 + 34; block 3. */
    flip(2, scale, 384 * 4 + (256 + 9) * 4 + 3, 0x03);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 2, "model.layers.1", 1, weight,
           (37 * (int64_t)row_bytes + 11) * 2 + 1,
           "where model.layers.1.mlp.experts.0.down_proj.weight row 37 column 23 quantizes to 0x");
    expect(1, MP_VERIFY_EXACT, 2, "model.layers.1", 1, scale, 256 + 9,
           "where model.layers.1.mlp.experts.0.down_proj.weight row 290 columns 96-127 get the "
           "scale 0x");
}

/* Gate and up in turns, of all experts in one tensor: row and column are the matrix's own. */
Test(verify_source, names_the_expert_and_matrix_of_a_fused_tensor)
{
    mp_synth_options fused = qwen3;
    const char *name = "model.layers.1.experts.w13_weight";

    fused.family = "gpt_oss";
    make_source(&fused);
    pack_source(source, (mp_repack_options){
                            .target = mp_target_find("deepep-bf16"), .ep = 5, .drop = "bias"});
    verify_against(source);
    expect_count(0);
    flip(3, name, 2 * ((128 + 44) * 384 + 17), 0x20);
    seal();
    verify_against(source);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 3, "model.layers.1", 0, name, (128 + 44) * 384 + 17,
           " where model.layers.1.mlp.experts.gate_up_proj expert 3 up row 44 column 17 says 0x");
}

Test(verify_source, names_the_row_whose_scale_is_another)
{
    const char *name = "model.layers.0.experts.w2_weight_scale";

    make_source(&qwen3);
    pack_source(source, (mp_repack_options){.target = mp_target_find("fuseep-2"),
                                            .ep = 5,
                                            .quantize = true,
                                            .quantize_to = MP_SCHEME_INT8_CHANNEL});
    flip(2, name, 8 * 217 + 2, 1);
    seal();
    verify_against(source);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 2, "model.layers.0", 0, name, 217,
           " where model.layers.0.mlp.experts.2.down_proj.weight row 217 gets the scale 0x");
}

/* Slots of more than a tile: 272 and 240 rows of L1, and eight tiles of L2. */
Test(verify_source, counts_rows_across_tiles)
{
    mp_synth_options wide = qwen3;
    const char *l1 = "model.layers.0.experts.l1_weight";
    const char *l2 = "model.layers.0.experts.l2_weight";

    wide.hidden_size = 1920;
    wide.intermediate_size = 256;
    wide.num_experts = 2;
    wide.num_layers = 1;
    make_source(&wide);
    pack_source(source,
                (mp_repack_options){.ep = 1, .quantize = true, .quantize_to = MP_SCHEME_MXFP4});
    flip(0, l1, 512 * 960 + 300 * 960 + 5, 0x80);
    flip(0, l1, 512 * 960 + 511 * 960 + 959, 0x80);
    flip(0, l2, 1900 * 128 + 7, 0x08);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.0", 0, l2, (1900 * 128 + 7) * 2,
           "experts.0.down_proj.weight row 1900 column 14 quantizes to 0x");
    /* Row 300 is run 18, row 12 of it: up row 148. */
    expect(1, MP_VERIFY_EXACT, 0, "model.layers.0", 1, l1, (300 * 960 + 5) * 2 + 1,
           "experts.1.up_proj.weight row 148 column 11 quantizes to 0x");
    expect(1, MP_VERIFY_EXACT, 0, "model.layers.0", 1, l1, (300 * 960 + 5) * 2 + 1,
           "; 2 bytes in 2 rows differ");
}

/* The same of tiles of columns: a row goes through both, and is one row all the same. */
Test(verify_source, counts_rows_across_tiles_of_columns)
{
    mp_synth_options wide = qwen3;
    const char *name = "model.layers.0.experts.w13_weight";
    const uint64_t line = 2 * 1088;

    wide.scheme = MP_SCHEME_INT8_CHANNEL;
    wide.hidden_size = 2048;
    wide.intermediate_size = 1088;
    wide.num_experts = 2;
    wide.num_layers = 1;
    make_source(&wide);
    pack_source(source, (mp_repack_options){.target = mp_target_find("fuseep-1"), .ep = 1});
    /* Column 70 of a chunk is row 6 of up. */
    flip(0, name, 2000 * line + 70, 0x10);
    flip(0, name, 5 * line + 70, 0x10);
    seal();
    verify_against(source);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.0", 0, name, 5 * (int64_t)line + 70,
           "experts.0.up_proj.weight row 6 column 5 says 0x");
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.0", 0, name, 5 * (int64_t)line + 70,
           "; 2 bytes in 1 row differ");
    flip(0, name, 5 * line + 70, 0x10);
    seal();
    verify_against(source);
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.0", 0, name, 2000 * (int64_t)line + 70,
           "experts.0.up_proj.weight row 6 column 2000 says 0x");
}

Test(verify_source, names_the_expert_of_a_requantized_slot)
{
    const uint64_t bytes = 2 * 128 * 384 / 2;
    char *one = malloc(bytes), *other = malloc(bytes);
    const char *name = "model.layers.0.experts.l1_weight";

    make_source(&qwen3);
    pack_source(source, requantized);
    peek(1, name, 0, one, bytes);
    peek(1, name, bytes, other, bytes);
    poke(1, name, 0, other, bytes);
    poke(1, name, bytes, one, bytes);
    free(one);
    free(other);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 1, "model.layers.0", 0, name, report.faults[0].element,
           "holds expert 3 where expert 2 belongs; holds 0x");
    expect(1, MP_VERIFY_EXACT, 1, "model.layers.0", 1, name, report.faults[1].element,
           "holds expert 2 where expert 3 belongs; holds 0x");
}

/* ------------------------------------------------------------------------
 * Faults
 */

Test(faults, details_are_one_printable_line)
{
    static const struct {
        const char *text, *printable;
    } cases[] = {
        {"plain", "plain"},
        {"a\nb\tc\x7f"
         "d\x1b[0m",
         "a?b?c?d?[0m"},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
        {"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\xff\xfe", "??"},
        {"\x80", "?"},
        {"\xc3", "?"}, /* cut short */
        {"\xe2\x82", "??"},
        {"\xc0\x80", "??"}, /* too long a form */
        {"\xe0\x80\x80", "???"},
        {"\xf0\x8f\xbf\xbf", "????"},
        {"\xed\xa0\x80", "???"},      /* a surrogate */
        {"\xf4\x90\x80\x80", "????"}, /* beyond Unicode */
        {"\xf8\x88\x80\x80\x80", "?????"},
        {"\xc2\x85", "??"},      /* a control character */
        {"\xef\xbf\xbf", "???"}, /* no character, and none for XML */
    };
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mp_faults faults = {0};

        mp_fault_add(&faults, &spot, "%s", cases[i].text);
        cr_assert_eq(faults.num_kept, 1);
        cr_expect_str_eq(faults.kept[0].detail, cases[i].printable, "case %zu", i);
        mp_faults_release(&faults);
    }
}

/* A fault that is not wanted would not have been kept; one that is kept was wanted. */
Test(faults, wants_exactly_what_it_keeps)
{
    mp_faults faults = {0};
    uint32_t state = 1;

    for (int i = 0; i < 2000; i++) {
        mp_spot spot =
            mp_spot_of_rank(MP_VERIFY_EXACT, (state = state * 1664525 + 1013904223) >> 30);

        spot.layer = (state = state * 1664525 + 1013904223) >> 29;
        spot.slot = (state = state * 1664525 + 1013904223) >> 28;
        spot.element = (state = state * 1664525 + 1013904223) >> 16;
        bool wanted = mp_faults_wants(&faults, &spot);
        bool kept = false;

        mp_fault_add(&faults, &spot, "%d", i);
        for (size_t k = 0; k < faults.num_kept; k++)
            kept |= atoi(faults.kept[k].detail) == i;
        cr_assert_eq(kept, wanted, "fault %d", i);
    }
    cr_expect_eq(faults.total, 2000);
    cr_expect_eq(faults.num_kept, MP_FAULTS_KEPT);
    mp_faults_release(&faults);
}
