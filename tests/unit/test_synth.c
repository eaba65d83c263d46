/* SPDX-License-Identifier: Apache-2.0 */
/* The form of synthetic checkpoints: their tensors, config.json and index. */
#include "synth_scratch.h"

#include "base/json.h"
#include "checkpoint/families.h"
#include "synth/parts.h"

TestSuite(synth, .init = make_scratch, .fini = remove_scratch);

/* ------------------------------------------------------------------------
 * Tensors
 */

/* What a checkpoint has to hold; a name with "%u" stands for all experts. */
typedef struct wanted {
    const char *name;
    mp_dtype dtype;
    uint64_t shape[2]; /* a second number of 0: a vector */
} wanted;

static void expect_tensor(const mp_checkpoint *ckpt, const char *name, const wanted *w)
{
    const mp_tensor *tensor = mp_checkpoint_find(ckpt, name);
    uint32_t rank = w->shape[1] == 0 ? 1 : 2;
    char found[MP_SHAPE_TEXT], want[MP_SHAPE_TEXT];
    cr_assert_not_null(tensor, "no tensor %s", name);
    cr_assert_eq(tensor->dtype, w->dtype, "%s is %s", name, mp_dtype_name(tensor->dtype));
    cr_assert_str_eq(mp_shape_text(tensor->shape, tensor->rank, found),
                     mp_shape_text(w->shape, rank, want), "%s is %s, not %s", name, found, want);
}

static void expect_tensors(const mp_checkpoint *ckpt, const wanted *list, size_t count,
                           uint32_t num_experts)
{
    size_t all = 0;
    for (size_t i = 0; i < count; i++) {
        const char *number = strstr(list[i].name, "%u");
        for (uint32_t e = 0; e < (number ? num_experts : 1); e++, all++) {
            char name[128];
            if (number)
                snprintf(name, sizeof(name), "%.*s%u%s", (int)(number - list[i].name), list[i].name,
                         e, number + 2);
            else
                snprintf(name, sizeof(name), "%s", list[i].name);
            expect_tensor(ckpt, name, &list[i]);
        }
    }
    cr_assert_eq(ckpt->num_tensors, all);
}

#define EXPECT_TENSORS(ckpt, list, experts) \
    expect_tensors(ckpt, list, sizeof(list) / sizeof((list)[0]), experts)

#define V4_NORMS(prefix)                             \
    {prefix ".attn_norm.weight", MP_BF16, {288, 0}}, \
    {                                                \
        prefix ".ffn_norm.weight", MP_BF16,          \
        {                                            \
            288, 0                                   \
        }                                            \
    }
#define V4_ROUTER(prefix)                   \
    {                                       \
        prefix ".ffn.gate.weight", MP_BF16, \
        {                                   \
            7, 288                          \
        }                                   \
    }
#define V4_MXFP4(prefix)                                           \
    {prefix ".ffn.experts.%u.w1.weight", MP_I8, {160, 144}},       \
        {prefix ".ffn.experts.%u.w1.scale", MP_F8_E8M0, {160, 9}}, \
        {prefix ".ffn.experts.%u.w2.weight", MP_I8, {288, 80}},    \
        {prefix ".ffn.experts.%u.w2.scale", MP_F8_E8M0, {288, 5}}, \
        {prefix ".ffn.experts.%u.w3.weight", MP_I8, {160, 144}},   \
    {                                                              \
        prefix ".ffn.experts.%u.w3.scale", MP_F8_E8M0,             \
        {                                                          \
            160, 9                                                 \
        }                                                          \
    }
#define V4_SHARED(prefix, scale)                                          \
    {prefix ".ffn.shared_experts.w1.weight", MP_F8_E4M3, {320, 288}},     \
        {prefix ".ffn.shared_experts.w1.scale", scale, {3, 3}},           \
        {prefix ".ffn.shared_experts.w2.weight", MP_F8_E4M3, {288, 320}}, \
        {prefix ".ffn.shared_experts.w2.scale", scale, {3, 3}},           \
        {prefix ".ffn.shared_experts.w3.weight", MP_F8_E4M3, {320, 288}}, \
    {                                                                     \
        prefix ".ffn.shared_experts.w3.scale", scale,                     \
        {                                                                 \
            3, 3                                                          \
        }                                                                 \
    }
#define V4_FP8(prefix)                                                \
    {prefix ".ffn.experts.%u.w1.weight", MP_F8_E4M3, {160, 288}},     \
        {prefix ".ffn.experts.%u.w1.scale", MP_F32, {2, 3}},          \
        {prefix ".ffn.experts.%u.w2.weight", MP_F8_E4M3, {288, 160}}, \
        {prefix ".ffn.experts.%u.w2.scale", MP_F32, {3, 2}},          \
        {prefix ".ffn.experts.%u.w3.weight", MP_F8_E4M3, {160, 288}}, \
    {                                                                 \
        prefix ".ffn.experts.%u.w3.scale", MP_F32,                    \
        {                                                             \
            2, 3                                                      \
        }                                                             \
    }

Test(synth, v4_has_the_tensors_of_its_released_form)
{
    static const wanted list[] = {
        V4_NORMS("layers.0"),
        V4_ROUTER("layers.0"),
        {"layers.0.ffn.gate.tid2eid", MP_I64, {101, 3}},
        V4_MXFP4("layers.0"),
        V4_SHARED("layers.0", MP_F8_E8M0),
        V4_NORMS("layers.1"),
        V4_ROUTER("layers.1"),
        {"layers.1.ffn.gate.bias", MP_F32, {7, 0}},
        V4_MXFP4("layers.1"),
        V4_SHARED("layers.1", MP_F8_E8M0),
        V4_NORMS("mtp.0"),
        V4_ROUTER("mtp.0"),
        {"mtp.0.ffn.gate.bias", MP_F32, {7, 0}},
        V4_MXFP4("mtp.0"),
        V4_SHARED("mtp.0", MP_F8_E8M0),
    };
    mp_synth_options options = small_v4();
    EXPECT_TENSORS(make_and_open(&options, "v4"), list, 7);
    cr_assert_str_eq(catalog.family, "deepseek_v4");
    cr_assert_eq(catalog.num_layers, 3);
    cr_assert(catalog.layers[2].mtp);
    cr_assert_eq(catalog.num_shared_experts, 2);
    cr_assert_eq(catalog.layers[0].storage.scheme, MP_SCHEME_MXFP4);
    cr_assert_eq(catalog.layers[0].shared_storage.scheme, MP_SCHEME_FP8_BLOCK);
}

Test(synth, v4_base_has_fp8_experts_with_float_scales)
{
    static const wanted list[] = {
        V4_NORMS("layers.0"),
        V4_ROUTER("layers.0"),
        {"layers.0.ffn.gate.bias", MP_F32, {7, 0}},
        V4_FP8("layers.0"),
        V4_SHARED("layers.0", MP_F32),
    };
    mp_synth_options options = small_v4();
    options.scheme = MP_SCHEME_FP8_BLOCK;
    options.num_layers = 1;
    options.num_hash_layers = 0;
    options.num_mtp = 0;
    EXPECT_TENSORS(make_and_open(&options, "v4"), list, 7);
    cr_assert_eq(catalog.layers[0].storage.scheme, MP_SCHEME_FP8_BLOCK);
    cr_assert_eq(catalog.layers[0].storage.scale_dtype, MP_F32);
}

#define HF_NORMS(prefix)                                    \
    {prefix ".input_layernorm.weight", MP_BF16, {200, 0}},  \
    {                                                       \
        prefix ".post_attention_layernorm.weight", MP_BF16, \
        {                                                   \
            200, 0                                          \
        }                                                   \
    }
/* An MLP of the width with its scale rows; a scale of MP_DTYPE_COUNT counts for none. */
#define HF_FP8(prefix, scale, width, blocks)                        \
    {prefix ".gate_proj.weight", MP_F8_E4M3, {width, 200}},         \
        {prefix ".gate_proj.weight_scale_inv", scale, {blocks, 2}}, \
        {prefix ".up_proj.weight", MP_F8_E4M3, {width, 200}},       \
        {prefix ".up_proj.weight_scale_inv", scale, {blocks, 2}},   \
        {prefix ".down_proj.weight", MP_F8_E4M3, {200, width}},     \
    {                                                               \
        prefix ".down_proj.weight_scale_inv", scale,                \
        {                                                           \
            2, blocks                                               \
        }                                                           \
    }
#define HF_BF16(prefix, width)                             \
    {prefix ".gate_proj.weight", MP_BF16, {width, 200}},   \
        {prefix ".up_proj.weight", MP_BF16, {width, 200}}, \
    {                                                      \
        prefix ".down_proj.weight", MP_BF16,               \
        {                                                  \
            200, width                                     \
        }                                                  \
    }

Test(synth, v3_has_a_dense_layer_first_and_its_mtp_block_last)
{
    static const wanted list[] = {
        HF_NORMS("model.layers.0"),
        HF_FP8("model.layers.0.mlp", MP_F32, 333, 3),
        HF_NORMS("model.layers.1"),
        {"model.layers.1.mlp.gate.weight", MP_BF16, {6, 200}},
        {"model.layers.1.mlp.gate.e_score_correction_bias", MP_F32, {6, 0}},
        HF_FP8("model.layers.1.mlp.experts.%u", MP_F32, 150, 2),
        HF_FP8("model.layers.1.mlp.shared_experts", MP_F32, 150, 2),
        HF_NORMS("model.layers.2"),
        {"model.layers.2.mlp.gate.weight", MP_BF16, {6, 200}},
        {"model.layers.2.mlp.gate.e_score_correction_bias", MP_F32, {6, 0}},
        HF_FP8("model.layers.2.mlp.experts.%u", MP_F32, 150, 2),
        HF_FP8("model.layers.2.mlp.shared_experts", MP_F32, 150, 2),
    };
    mp_synth_options options = small_v3();
    EXPECT_TENSORS(make_and_open(&options, "v3"), list, 6);
    cr_assert_str_eq(catalog.family, "deepseek_v3");
    cr_assert_eq(catalog.num_layers, 2);
    cr_assert_eq(catalog.layers[1].number, 2);
}

Test(synth, v3_can_be_bf16)
{
    static const wanted list[] = {
        HF_NORMS("model.layers.0"),
        HF_BF16("model.layers.0.mlp", 333),
        HF_NORMS("model.layers.1"),
        {"model.layers.1.mlp.gate.weight", MP_BF16, {6, 200}},
        {"model.layers.1.mlp.gate.e_score_correction_bias", MP_F32, {6, 0}},
        HF_BF16("model.layers.1.mlp.experts.%u", 150),
    };
    mp_synth_options options = small_v3();
    options.scheme = MP_SCHEME_BF16;
    options.num_mtp = 0;
    options.num_shared_experts = 0;
    EXPECT_TENSORS(make_and_open(&options, "v3"), list, 6);
}

Test(synth, qwen3_has_neither_shared_experts_nor_a_bias)
{
    static const wanted bf16[] = {
        HF_NORMS("model.layers.0"),
        HF_BF16("model.layers.0.mlp", 90),
        HF_NORMS("model.layers.1"),
        {"model.layers.1.mlp.gate.weight", MP_BF16, {5, 200}},
        HF_BF16("model.layers.1.mlp.experts.%u", 150),
    };
    static const wanted fp8[] = {
        HF_NORMS("model.layers.0"),
        {"model.layers.0.mlp.gate.weight", MP_BF16, {5, 200}},
        HF_FP8("model.layers.0.mlp.experts.%u", MP_BF16, 150, 2),
        HF_NORMS("model.layers.1"),
        {"model.layers.1.mlp.gate.weight", MP_BF16, {5, 200}},
        HF_FP8("model.layers.1.mlp.experts.%u", MP_BF16, 150, 2),
    };
    mp_synth_options options = small_qwen3();
    options.scheme = MP_SCHEME_FP8_BLOCK;
    EXPECT_TENSORS(make_and_open(&options, "fp8"), fp8, 5);
    cr_assert_eq(catalog.layers[0].storage.scale_dtype, MP_BF16);
    options.scheme = MP_SCHEME_BF16;
    options.num_dense = 1;
    options.dense_intermediate_size = 90;
    EXPECT_TENSORS(make_and_open(&options, "bf16"), bf16, 5);
    cr_assert_str_eq(catalog.family, "qwen3_moe");
    cr_assert_eq(catalog.num_layers, 1);
}

static bool is_of_moe(const char *name)
{
    return strstr(name, ".ffn.") || strstr(name, ".attn_norm.");
}

/* Sizes as in testdata/fixtures/v4-fp4, which other code has written. */
Test(synth, v4_agrees_with_a_checkpoint_of_other_origin)
{
    mp_synth_options options = small_v4();
    mp_checkpoint other = {0};
    size_t common = 0;
    options.hidden_size = 384;
    options.intermediate_size = 256;
    options.num_experts = 5;
    options.num_shared_experts = 1;
    options.num_layers = 1;
    options.num_hash_layers = 0;
    const mp_checkpoint *ckpt = make_and_open(&options, "v4");
    cr_assert_eq(mp_checkpoint_open(&other, "testdata/fixtures/v4-fp4", NULL, &err), 0, "%s",
                 err.message);
    for (size_t i = 0; i < other.num_tensors; i++) {
        const mp_tensor *t = &other.tensors[i];
        if (!is_of_moe(t->name))
            continue;
        wanted w = {t->name, t->dtype, {t->shape[0], t->rank > 1 ? t->shape[1] : 0}};
        expect_tensor(ckpt, t->name, &w);
        common++;
    }
    /* Two ffn_norm.weight are all that it lacks. */
    cr_assert_eq(ckpt->num_tensors, common + 2);
    mp_checkpoint_release(&other);
}

/* ------------------------------------------------------------------------
 * Presets
 */

/* Bytes of the experts of a model as its presets has them, in its usual format. */
static uint64_t mxfp4_expert_bytes(const mp_synth_options *o)
{
    return 3 *
           (o->hidden_size * o->intermediate_size / 2 + o->hidden_size * o->intermediate_size / 32);
}

static uint64_t fp8_expert_bytes(uint64_t h, uint64_t i, uint64_t scale_bytes)
{
    return 3 * (h * i + h / 128 * (i / 128) * scale_bytes);
}

static uint64_t preset_bytes(const char *name)
{
    mp_synth_plan plan;
    cr_assert_eq(mp_synth_plan_init(&plan, &mp_preset_find(name)->options, &err), 0, "%s",
                 err.message);
    uint64_t bytes = plan.bytes;
    mp_synth_plan_release(&plan);
    return bytes;
}

Test(synth, presets_are_as_large_as_the_released_models)
{
    const mp_synth_options *o = &mp_preset_find("deepseek-v4-flash")->options;
    uint64_t layer = 256 * mxfp4_expert_bytes(o) + fp8_expert_bytes(4096, 2048, 1) +
                     256 * 4096 * 2 + 2 * 4096 * 2;
    cr_assert_eq(preset_bytes("deepseek-v4-flash"),
                 44 * layer + 3 * 129280ull * 6 * 8 + 41 * 256 * 4);

    o = &mp_preset_find("deepseek-v4-pro")->options;
    layer = 384 * mxfp4_expert_bytes(o) + fp8_expert_bytes(7168, 3072, 1) + 384 * 7168 * 2 +
            2 * 7168 * 2;
    cr_assert_eq(preset_bytes("deepseek-v4-pro"),
                 62 * layer + 3 * 129280ull * 6 * 8 + 59 * 384 * 4);

    layer = 257 * fp8_expert_bytes(7168, 2048, 4) + 256 * 7168 * 2 + 256 * 4 + 2 * 7168 * 2;
    cr_assert_eq(preset_bytes("deepseek-v3"),
                 59 * layer + 3 * (fp8_expert_bytes(7168, 18432, 4) + 2 * 7168 * 2));

    layer = 128 * 3 * 2048ull * 768 * 2 + 128 * 2048 * 2 + 2 * 2048 * 2;
    cr_assert_eq(preset_bytes("qwen3-30b-a3b"), 48 * layer);

    layer = 385 * fp8_expert_bytes(7168, 2048, 4) + 384 * 7168 * 2 + 384 * 4 + 2 * 7168 * 2;
    cr_assert_eq(preset_bytes("kimi-k2"),
                 60 * layer + fp8_expert_bytes(7168, 18432, 4) + 2 * 7168 * 2);

    /* Codes, scales and biases of experts; the router with its bias; norms. */
    layer = 128 * (3 * 2880ull * 2880 * 17 / 32 + 3 * 2880 * 2) + 128 * 2881 * 2 + 2 * 2880 * 2;
    cr_assert_eq(preset_bytes("gpt-oss-120b"), 36 * layer);
}

Test(synth, every_preset_is_of_a_family_and_found_by_its_name)
{
    size_t count;
    const mp_preset *presets = mp_presets(&count);
    cr_assert_eq(count, 6);
    for (size_t i = 0; i < count; i++) {
        mp_scheme usual;
        cr_assert_eq(mp_preset_find(presets[i].name), &presets[i]);
        cr_assert(mp_synth_scheme(presets[i].options.family, 0, &usual, NULL));
        cr_assert_eq(presets[i].options.scheme, usual);
    }
    cr_assert_null(mp_preset_find("deepseek-v4"));
}

Test(synth, families_and_schemes_end)
{
    static const struct {
        mp_scheme scheme;
        mp_synth_style style;
    } of_v4[] = {
        {MP_SCHEME_MXFP4, MP_STYLE_VENDOR},
        {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR},
        {MP_SCHEME_NVFP4, MP_STYLE_MODELOPT},
        {MP_SCHEME_FP8_CHANNEL, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_INT8_CHANNEL, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_FP8_BLOCK, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_MXFP8, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_MXFP4, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_INT4_GROUP, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_NVFP4, MP_STYLE_COMPRESSED_TENSORS},
        {MP_SCHEME_INT8_CHANNEL, MP_STYLE_MODELSLIM},
        {MP_SCHEME_MXFP8, MP_STYLE_MODELSLIM},
        {MP_SCHEME_MXFP4, MP_STYLE_MODELSLIM},
    };
    mp_scheme scheme;
    mp_synth_style style;
    size_t families = 0, all, count = sizeof(of_v4) / sizeof(of_v4[0]);
    mp_families(&all);
    for (; mp_synth_family_name(families); families++)
        cr_assert_not_null(mp_family_find(mp_synth_family_name(families)));
    cr_assert_eq(families, all);
    for (size_t i = 0; i < count; i++) {
        cr_assert(mp_synth_scheme("deepseek_v4", i, &scheme, &style));
        cr_assert(scheme == of_v4[i].scheme && style == of_v4[i].style, "%zu: %s, %s", i,
                  mp_scheme_name(scheme), mp_synth_style_name(style));
    }
    cr_assert_not(mp_synth_scheme("deepseek_v4", count, &scheme, NULL));
    cr_assert(mp_synth_scheme("gpt_oss", 1, &scheme, NULL));
    cr_assert_not(mp_synth_scheme("gpt_oss", 2, &scheme, NULL));
    cr_assert_not(mp_synth_scheme("deepseek_v3", 1000, &scheme, NULL));
    cr_assert_not(mp_synth_scheme("llama", 0, &scheme, NULL));
}

/* ------------------------------------------------------------------------
 * config.json and index
 */

static json_t *load(const char *name)
{
    json_t *json = NULL;
    cr_assert_eq(mp_json_load(in_dir(name), 1 << 20, &json, &err), 0, "%s", err.message);
    return json;
}

static void expect_json(const char *name, const char *text)
{
    json_t *found = load(name);
    json_t *want = json_loads(text, 0, NULL);
    cr_assert_not_null(want);
    char *dump = json_dumps(found, JSON_INDENT(1));
    cr_assert(json_equal(found, want), "%s", dump);
    free(dump);
    json_decref(found);
    json_decref(want);
}

Test(synth, config_of_v4)
{
    mp_synth_options options = small_v4();
    make(&options, "v4");
    expect_json("v4/config.json",
                "{\"architectures\": [\"DeepseekV4ForCausalLM\"], \"model_type\": \"deepseek_v4\","
                "\"hidden_size\": 288, \"moe_intermediate_size\": 160, \"num_experts_per_tok\": 3,"
                "\"num_hidden_layers\": 2, \"vocab_size\": 101, \"hidden_act\": \"silu\","
                "\"torch_dtype\": \"bfloat16\", \"n_routed_experts\": 7, \"n_shared_experts\": 2,"
                "\"num_hash_layers\": 1, \"num_nextn_predict_layers\": 1,"
                "\"scoring_func\": \"sqrtsoftplus\", \"topk_method\": \"noaux_tc\","
                "\"norm_topk_prob\": true, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 10.0,"
                "\"expert_dtype\": \"fp4\", \"quantization_config\": {\"quant_method\": \"fp8\","
                "\"fmt\": \"e4m3\", \"scale_fmt\": \"ue8m0\", \"activation_scheme\": \"dynamic\","
                "\"weight_block_size\": [128, 128]}}");
    options.scheme = MP_SCHEME_FP8_BLOCK;
    make(&options, "base");
    json_t *config = load("base/config.json");
    cr_assert_str_eq(json_string_value(json_object_get(config, "expert_dtype")), "fp8");
    cr_assert_null(json_object_get(json_object_get(config, "quantization_config"), "scale_fmt"));
    json_decref(config);
}

Test(synth, config_of_v3)
{
    mp_synth_options options = small_v3();
    make(&options, "v3");
    expect_json("v3/config.json",
                "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"model_type\": \"deepseek_v3\","
                "\"hidden_size\": 200, \"moe_intermediate_size\": 150, \"num_experts_per_tok\": 2,"
                "\"num_hidden_layers\": 2, \"vocab_size\": 101, \"hidden_act\": \"silu\","
                "\"torch_dtype\": \"bfloat16\", \"n_routed_experts\": 6, \"n_shared_experts\": 1,"
                "\"first_k_dense_replace\": 1, \"moe_layer_freq\": 1, \"intermediate_size\": 333,"
                "\"n_group\": 2, \"topk_group\": 1, \"scoring_func\": \"sigmoid\","
                "\"topk_method\": \"noaux_tc\", \"norm_topk_prob\": true,"
                "\"routed_scaling_factor\": 2.5, \"num_nextn_predict_layers\": 1,"
                "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\","
                "\"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]}}");
}

/* Groups of one size that leave the router enough experts in those that it keeps. */
Test(synth, config_of_v3_has_groups_that_the_experts_fill)
{
    static const struct {
        uint32_t experts, top_k, groups, kept;
    } cases[] = {{256, 8, 8, 4}, {16, 8, 8, 4}, {16, 9, 1, 1}, {12, 6, 4, 2},
                 {10, 5, 2, 1},  {8, 2, 4, 2},  {7, 2, 1, 1},  {2, 1, 1, 1}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        mp_synth_options options = small_v3();
        mp_synth_plan plan;
        options.num_experts = cases[i].experts;
        options.top_k = cases[i].top_k;
        cr_assert_eq(mp_synth_plan_init(&plan, &options, &err), 0, "%s", err.message);
        json_t *config = mp_synth_config(&plan);
        cr_assert_eq(json_integer_value(json_object_get(config, "n_group")), cases[i].groups);
        cr_assert_eq(json_integer_value(json_object_get(config, "topk_group")), cases[i].kept);
        json_decref(config);
        mp_synth_plan_release(&plan);
    }
}

Test(synth, config_of_qwen3)
{
    mp_synth_options options = small_qwen3();
    options.num_dense = 1;
    options.dense_intermediate_size = 90;
    make(&options, "qwen3");
    expect_json("qwen3/config.json",
                "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\","
                "\"hidden_size\": 200, \"moe_intermediate_size\": 150, \"num_experts_per_tok\": 2,"
                "\"num_hidden_layers\": 2, \"vocab_size\": 101, \"hidden_act\": \"silu\","
                "\"torch_dtype\": \"bfloat16\", \"num_experts\": 5, \"intermediate_size\": 90,"
                "\"norm_topk_prob\": true, \"decoder_sparse_step\": 1, \"mlp_only_layers\": [0],"
                "\"router_aux_loss_coef\": 0.001, \"output_router_logits\": false}");
}

Test(synth, index_names_the_shard_of_every_tensor)
{
    mp_synth_options options = small_v4();
    uint64_t total = 0;
    options.max_shard_size = 100000; /* the largest item takes 92169 bytes */
    const mp_checkpoint *ckpt = make_and_open(&options, "v4");
    json_t *index = load("v4/model.safetensors.index.json");
    const json_t *map = json_object_get(index, "weight_map");
    uint64_t *filled = calloc(ckpt->num_shards, sizeof(*filled));
    cr_assert_gt(ckpt->num_shards, 5);
    cr_assert_eq(json_object_size(map), ckpt->num_tensors);
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];
        cr_assert_str_eq(json_string_value(json_object_get(map, t->name)),
                         ckpt->shards[t->shard].name);
        filled[t->shard] += t->bytes;
        total += t->bytes;
    }
    cr_assert_eq((uint64_t)json_integer_value(
                     json_object_get(json_object_get(index, "metadata"), "total_size")),
                 total);
    for (size_t s = 0; s < ckpt->num_shards; s++) {
        char name[64];
        snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", s + 1, ckpt->num_shards);
        cr_assert(mp_path_exists(in_dir("v4")) && filled[s] > 0 && filled[s] <= 100000);
        cr_assert_str_eq(ckpt->shards[s].name, name);
        cr_assert_eq(ckpt->shards[s].header_bytes % 8, 0);
    }
    free(filled);
    json_decref(index);
}
