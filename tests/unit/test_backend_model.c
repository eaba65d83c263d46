/* SPDX-License-Identifier: Apache-2.0 */
/* What is planned for: sizes and format from tensors, and from config.json alone. */
#include "store_files.h"

#include <time.h>

#include <moepack/pack.h>

#include "base/json.h"
#include "engine/backend.h"
#include "failing_memory.h"
#include "synth/parts.h"
#include "synth/synth.h"

static mp_backend_model model;

TestSuite(backend_model, .init = make_scratch, .fini = remove_scratch);

#define SIZES                                                                 \
    "\"hidden_size\":4096,\"moe_intermediate_size\":1408,\"num_experts\":60," \
    "\"num_experts_per_tok\":4,\"num_hidden_layers\":3"

static int open_config(const char *text)
{
    put_text("config.json", text);
    err = (mp_error){0};
    return mp_backend_model_open(&model, dir, NULL, &err);
}

static void expect_scheme(const char *what, const char *scheme, const char *from)
{
    const char *found = model.has_scheme ? mp_scheme_name(model.scheme) : "unknown";

    cr_assert_str_eq(found, scheme, "%s: %s, expected %s", what, found, scheme);
    cr_assert_str_eq(model.scheme_from, from, "%s", what);
}

/* ------------------------------------------------------------------------
 * config.json alone
 */

Test(backend_model, sizes_of_a_config)
{
    cr_assert_eq(open_config("{" SIZES ",\"n_shared_experts\":2,\"first_k_dense_replace\":1,"
                             "\"num_nextn_predict_layers\":2,\"torch_dtype\":\"float16\"}"),
                 0, "%s", err.message);
    cr_assert_str_eq(model.source, "config.json");
    cr_assert_eq(model.hidden_size, 4096);
    cr_assert_eq(model.moe_intermediate_size, 1408);
    cr_assert_eq(model.num_experts, 60);
    cr_assert_eq(model.num_shared_experts, 2);
    cr_assert_eq(model.experts_per_token, 4);
    cr_assert_eq(model.num_layers, 2, "MTP blocks that have no tensors do not count");
    cr_assert_eq(model.num_mtp_blocks, 2);
    cr_assert(model.float16);
    cr_assert_not(model.quant_config);
    cr_assert_eq(open_config("{" SIZES ",\"routed_expert_hidden_size\":3584}"), 0, "%s",
                 err.message);
    cr_assert_eq(model.hidden_size, 3584, "experts may have a narrower H than the model");
    cr_assert_eq(model.num_layers, 3);
    /* The file itself is as good as its directory. */
    cr_assert_eq(mp_backend_model_open(&model, in_dir("config.json"), NULL, &err), 0, "%s",
                 err.message);
    cr_assert_eq(model.num_layers, 3);
}

Test(backend_model, formats_of_a_config)
{
#define QUANT  "\"quantization_config\":"
#define GROUP  "\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"group_0\":{\"weights\":"
#define METHOD "\"quant_method\":"
    static const struct {
        const char *text, *scheme, *from;
    } cases[] = {
        {"", "bf16", "torch_dtype"},
        {"\"torch_dtype\":\"bfloat16\"", "bf16", "torch_dtype"},
        {"\"dtype\":\"float16\"", "f16", "dtype"},
        {"\"torch_dtype\":\"float32\"", "f32", "torch_dtype"},
        {"\"expert_dtype\":\"fp4\"," QUANT "{" METHOD "\"fp8\"}", "mxfp4", "expert_dtype"},
        {"\"expert_dtype\":\"bf16\"", "bf16", "expert_dtype"},
        {"\"expert_dtype\":\"fp8\"," QUANT "{" METHOD "\"fp8\",\"weight_block_size\":[128,128]}",
         "fp8_block", "quantization_config"},
        {QUANT "{" METHOD "\"fp8\",\"expert_dtype\":\"fp4\"}", "mxfp4", "expert_dtype"},
        /* DeepSeek V4 as it was first released. */
        {"\"model_type\":\"deepseek_v4\"," QUANT "{" METHOD "\"fp8\",\"scale_fmt\":\"ue8m0\"}",
         "mxfp4", "expert_dtype"},
        {"\"model_type\":\"deepseek_v3\"," QUANT "{" METHOD "\"fp8\",\"scale_fmt\":\"ue8m0\","
         "\"weight_block_size\":[128,128]}",
         "fp8_block", "quantization_config"},
        {QUANT "{" METHOD "\"fp8\"}", "fp8_tensor", "quantization_config"},
        {QUANT "{" METHOD "\"fp8\",\"weight_block_size\":[32,32]}", "fp8_block",
         "quantization_config"},
        {QUANT "{" METHOD "\"fp8\",\"weight_block_size\":[1,128]}", "fp8_group",
         "quantization_config"},
        {QUANT "{" METHOD "\"fp8\",\"weight_block_size\":[1,32]}", "mxfp8", "quantization_config"},
        {QUANT "{" METHOD "\"mxfp8\"}", "mxfp8", "quantization_config"},
        {QUANT "{" METHOD "\"mxfp4\"}", "mxfp4", "quantization_config"},
        {QUANT "{" METHOD "\"modelopt\",\"quant_algo\":\"NVFP4\"}", "nvfp4", "quant_algo"},
        {QUANT "{" METHOD "\"modelopt\",\"quant_algo\":\"FP8\"}", "fp8_tensor", "quant_algo"},
        {QUANT "{" METHOD "\"modelopt_fp4\",\"quant_algo\":\"W4A8\"}", "unknown", "quant_algo"},
        {QUANT "{" METHOD "\"awq\"}", "unknown", "quantization_config"},
        {QUANT "{}", "unknown", "quantization_config"},
        {QUANT "{" GROUP "{\"type\":\"int\",\"num_bits\":8,\"strategy\":\"channel\"}}}}",
         "int8_channel", "config_groups"},
        {QUANT "{" GROUP "{\"type\":\"int\",\"num_bits\":4,\"strategy\":\"group\","
               "\"group_size\":32}}}}",
         "int4_group", "config_groups"},
        {QUANT "{" GROUP "{\"type\":\"int\",\"num_bits\":4,\"strategy\":\"group\","
               "\"group_size\":128}}}}",
         "unknown", "config_groups"},
        {QUANT "{" GROUP "{\"type\":\"float\",\"num_bits\":4,\"strategy\":\"tensor_group\","
               "\"group_size\":16}}}}",
         "nvfp4", "config_groups"},
        {QUANT "{" GROUP "{\"type\":\"float\",\"num_bits\":8,\"strategy\":\"channel\","
               "\"group_size\":null}}}}",
         "fp8_channel", "config_groups"},
        {QUANT "{" GROUP "{\"type\":\"float\",\"num_bits\":8,\"strategy\":\"channel\"}},"
               "\"group_1\":{}}}",
         "unknown", "config_groups"},
        {"\"text_config\":{\"dtype\":\"float16\"," QUANT "{" METHOD "\"mxfp4\"}}", "mxfp4",
         "quantization_config"},
        {QUANT "null", "bf16", "torch_dtype"},
    };
    char text[1024];

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(text, sizeof text, "{" SIZES "%s%s}", cases[i].text[0] ? "," : "", cases[i].text);
        cr_assert_eq(open_config(text), 0, "%s: %s", text, err.message);
        expect_scheme(cases[i].text, cases[i].scheme, cases[i].from);
        cr_assert_eq(model.quant_config, strstr(cases[i].text, QUANT "{") != NULL, "%s", text);
    }
}

Test(backend_model, requantizing_replaces_the_format)
{
    cr_assert_eq(open_config("{" SIZES "," QUANT "{" METHOD "\"fp8\"}}"), 0);
    cr_assert_str_eq(model.quant_method, "fp8");
    mp_backend_model_quantize(&model, MP_SCHEME_BF16);
    expect_scheme("bf16", "bf16", "--quantize");
    cr_assert_not(model.quant_config);
    cr_assert_str_empty(model.quant_method);
    mp_backend_model_quantize(&model, MP_SCHEME_NVFP4);
    expect_scheme("nvfp4", "nvfp4", "--quantize");
    cr_assert(model.quant_config);
}

Test(backend_model, configs_that_say_too_little_or_nonsense)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{}", "config.json: no hidden size"},
        {"{\"hidden_size\":8}", "config.json: no expert intermediate size"},
        {"{\"hidden_size\":8,\"intermediate_size\":8}", "config.json: no number of experts"},
        {"{\"hidden_size\":8,\"intermediate_size\":8,\"num_experts\":2}",
         "config.json: no number of MoE layers"},
        {"{\"hidden_size\":0,\"intermediate_size\":8,\"num_experts\":2,\"num_hidden_layers\":1}",
         "config.json: hidden size is 0, expected 1 to 16777216"},
        {"{\"hidden_size\":8,\"intermediate_size\":16777217,\"num_experts\":2,"
         "\"num_hidden_layers\":1}",
         "config.json: expert intermediate size is 16777217, expected 1 to 16777216"},
        {"{\"hidden_size\":8,\"intermediate_size\":8,\"num_experts\":2,"
         "\"num_hidden_layers\":9223372036854775807}",
         "config.json: number of MoE layers is 9223372036854775807, expected 1 to 65536"},
        {"{\"hidden_size\":8,\"intermediate_size\":8,\"num_experts\":2,\"num_hidden_layers\":2,"
         "\"first_k_dense_replace\":2}",
         "config.json: number of MoE layers is 0, expected 1 to 65536"},
        {"{\"hidden_size\":8,\"intermediate_size\":8,\"num_experts\":2,\"num_hidden_layers\":2,"
         "\"num_experts_per_tok\":3}",
         "config.json: 2 experts, 3 of them a token, 0 shared"},
        {"{\"hidden_size\":16777216,\"intermediate_size\":16777216,\"num_experts\":2,"
         "\"num_hidden_layers\":2,\"n_shared_experts\":65536}",
         "config.json: 65536 shared experts of size 16777216 are wider than 16777216"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(open_config(cases[i].text), MP_ERR_INPUT, "%s", cases[i].text);
        cr_assert_str_eq(err.message, cases[i].message);
    }
}

Test(backend_model, paths_that_hold_no_model)
{
    char message[640];

    cr_assert_eq(mp_backend_model_open(&model, in_dir("none"), NULL, &err), MP_ERR_IO);
    snprintf(message, sizeof message, "cannot open \"%s\": No such file or directory",
             in_dir("none"));
    cr_assert_str_eq(err.message, message);
    cr_assert_eq(mp_backend_model_open(&model, dir, NULL, &err), MP_ERR_IO);
    snprintf(message, sizeof message, "cannot open \"%s/config.json\": No such file or directory",
             dir);
    cr_assert_str_eq(err.message, message);
    put_text("other.json", "{}");
    cr_assert_eq(mp_backend_model_open(&model, in_dir("other.json"), NULL, &err), MP_ERR_USAGE);
    put_text("model.safetensors", "");
    cr_assert_eq(mp_backend_model_open(&model, dir, NULL, &err), MP_ERR_INPUT);
}

/* ------------------------------------------------------------------------
 * Tensors
 */

Test(backend_model, tensors_and_config_agree)
{
    static const struct {
        const char *name, *by_tensors, *by_config;
    } cases[] = {
        {"ct-int8", "int8_channel", "int8_channel"},
        {"ct-nvfp4", "nvfp4", "nvfp4"},
        {"gptoss-mxfp4", "mxfp4", "mxfp4"},
        {"kimi-k25-int4", "int4_group", "int4_group"},
        {"minimax-m3-mxfp8", "mxfp8", "mxfp8"},
        {"mixtral-bf16", "bf16", "bf16"},
        {"modelopt-nvfp4", "nvfp4", "nvfp4"},
        {"modelslim-w8a8", "int8_channel", "bf16"}, /* only its tensors tell */
        {"qwen3-fp8-bf16scale", "fp8_block", "fp8_block"},
        {"qwen35-fused-a", "bf16", "bf16"},
        {"v3-fp8", "fp8_block", "fp8_block"},
        {"v4-base-fp8", "fp8_block", "fp8_block"},
        {"v4-fp4", "mxfp4", "mxfp4"},
    };
    char path[128];

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mp_backend_model alone;

        snprintf(path, sizeof path, "testdata/fixtures/%s/config.json", cases[i].name);
        cr_assert_eq(mp_backend_model_open(&alone, path, NULL, &err), 0, "%s", err.message);
        snprintf(path, sizeof path, "testdata/fixtures/%s", cases[i].name);
        cr_assert_eq(mp_backend_model_open(&model, path, NULL, &err), 0, "%s", err.message);
        expect_scheme(cases[i].name, cases[i].by_tensors, "tensors");
        cr_assert_str_eq(model.source, "checkpoint");
        cr_assert_eq(model.quant_config, strcmp(cases[i].by_tensors, "bf16") != 0);
        cr_assert_eq(model.hidden_size, alone.hidden_size, "%s", path);
        cr_assert_eq(model.moe_intermediate_size, alone.moe_intermediate_size);
        cr_assert_eq(model.num_experts, alone.num_experts);
        cr_assert_eq(model.num_shared_experts, alone.num_shared_experts);
        cr_assert_eq(model.experts_per_token, alone.experts_per_token);
        /* Tensors of MTP blocks count, promises of config.json do not. */
        cr_assert_geq(model.num_layers, alone.num_layers, "%s", path);
        cr_assert_leq(model.num_layers, alone.num_layers + alone.num_mtp_blocks, "%s", path);
        model = alone;
        cr_assert_str_eq(mp_scheme_name(model.scheme), cases[i].by_config, "%s", path);
    }
}

/* ------------------------------------------------------------------------
 * Presets
 */

static void put_preset(const mp_preset *preset)
{
    mp_synth_plan plan = {0};
    json_t *config;
    char *text;

    cr_assert_eq(mp_synth_plan_init(&plan, &preset->options, &err), 0, "%s", err.message);
    config = mp_synth_config(&plan);
    text = mp_json_text(config);
    put_text("config.json", text);
    free(text);
    json_decref(config);
    mp_synth_plan_release(&plan);
}

static void plan_preset(const mp_preset *preset)
{
    const mp_backend_flags flags = {.backend = MP_A2A_MEGAMOE, .backend_given = true, .tp = 8};
    const mp_env env = {0};
    mp_backend backend = {0};
    mp_backend_memory memory;

    cr_assert_eq(mp_backend_model_open(&model, dir, NULL, &err), 0, "%s: %s", preset->name,
                 err.message);
    cr_assert_eq(mp_backend_resolve(&backend, &flags, &env, &model, &err), 0, "%s: %s",
                 preset->name, err.message);
    cr_assert_eq(mp_backend_estimate(&memory, &backend, &model, 1, &err), 0, "%s", err.message);
    mp_backend_release(&backend);
}

Test(backend_model, presets_are_planned_from_their_config)
{
    size_t count;
    const mp_preset *presets = mp_presets(&count);

    for (size_t i = 0; i < count; i++) {
        const mp_synth_options *o = &presets[i].options;

        put_preset(&presets[i]);
        clock_t start = clock();
        if (strcmp(o->family, "gpt_oss") == 0) /* its sizes are not the kernel's */
            cr_assert_eq(mp_backend_model_open(&model, dir, NULL, &err), 0, "%s", err.message);
        else
            plan_preset(&presets[i]);
        cr_assert_lt((double)(clock() - start) / CLOCKS_PER_SEC, 0.05, "%s", presets[i].name);
        expect_scheme(presets[i].name, mp_scheme_name(o->scheme), model.scheme_from);
        cr_assert_eq(model.hidden_size, o->hidden_size);
        cr_assert_eq(model.moe_intermediate_size, o->intermediate_size);
        cr_assert_eq(model.num_experts, o->num_experts);
        cr_assert_eq(model.num_shared_experts, o->num_shared_experts);
        cr_assert_eq(model.experts_per_token, o->top_k);
        cr_assert_eq(model.num_layers, o->num_layers - o->num_dense, "%s", presets[i].name);
        cr_assert_eq(model.num_mtp_blocks, o->num_mtp, "%s", presets[i].name);
    }
}

static int open_scratch(mp_error *e)
{
    return mp_backend_model_open(&model, dir, NULL, e);
}

Test(backend_model, opening_survives_any_failed_allocation)
{
    put_text("config.json", "{" SIZES "}");
    cr_assert_gt(memory_exhaust(open_scratch), 3);
}
