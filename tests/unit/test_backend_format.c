/* SPDX-License-Identifier: Apache-2.0 */
/* Formats of experts by lists of modules: patterns, layers that differ, groups. */
#include "store_files.h"

#include "base/pattern.h"
#include "engine/backend.h"

static mp_backend_model model;

TestSuite(backend_format, .init = make_scratch, .fini = remove_scratch);

/* ------------------------------------------------------------------------
 * Patterns
 */

static mp_match match(const char *text, const char *name)
{
    mp_pattern pattern;
    mp_match result;

    mp_pattern_init(&pattern, text);
    result = mp_pattern_match(&pattern, name);
    mp_pattern_release(&pattern);
    return result;
}

Test(backend_format, patterns_mean_modules)
{
    static const char name[] = "model.layers.12.mlp.experts.0.gate_proj";
    static const struct {
        const char *pattern;
        mp_match result;
    } cases[] = {
        {"model.layers.12.mlp.experts.0.gate_proj", MP_MATCH_YES},
        {"model.layers.12.mlp.experts", MP_MATCH_YES},
        {"model.layers.12.mlp.exp", MP_MATCH_NO},
        {"model.layers.1", MP_MATCH_NO},
        {"", MP_MATCH_NO},
        {"*", MP_MATCH_YES},
        {"*.mlp.experts.*", MP_MATCH_YES},
        {"*.mlp.experts", MP_MATCH_NO},
        {"model.layers.1?.mlp*", MP_MATCH_YES},
        {"model.layers.?.mlp*", MP_MATCH_NO},
        {"modelxlayers*", MP_MATCH_NO},
        {"model.layers.[12]*", MP_MATCH_UNKNOWN},
        {"re:.*mlp\\.experts\\..*", MP_MATCH_YES},
        {"re:model\\.layers\\.\\d+\\.mlp", MP_MATCH_YES},
        {"re:mlp", MP_MATCH_NO}, /* re.match begins at the beginning */
        {"re:.*experts$", MP_MATCH_NO},
        {"re:.*gate_proj$", MP_MATCH_YES},
        {"re:a|model.*", MP_MATCH_YES},
        {"re:(?:model|language_model)\\..*?experts", MP_MATCH_YES},
        {"re:model.layers.[0-9]+.mlp", MP_MATCH_YES},
        {"re:model[.]layers[^x]*", MP_MATCH_YES},
        {"re:^(?!.*mtp).*", MP_MATCH_UNKNOWN},
        {"re:.*(a)\\1", MP_MATCH_UNKNOWN},
        {"re:x{1,99}", MP_MATCH_UNKNOWN},
        {"re:[\\w]+", MP_MATCH_UNKNOWN},
        {"re:[", MP_MATCH_UNKNOWN},
        {"re:(", MP_MATCH_UNKNOWN},
        {"re:\\", MP_MATCH_UNKNOWN},
        {"re:((((((((((((((((((m))))))))))))))))))", MP_MATCH_UNKNOWN},
        /* Each plus doubles what regcomp makes of what is before it. */
        {"re:((m)+)+odel", MP_MATCH_YES},
        {"re:(((((m)+)+)+)+)+odel", MP_MATCH_UNKNOWN},
        {"re:(((((m)+?)+?)+?)+?)+?odel", MP_MATCH_UNKNOWN},
        {"re:m++odel", MP_MATCH_UNKNOWN},
        {"re:m*+odel", MP_MATCH_UNKNOWN},
        {"re:m+??odel", MP_MATCH_UNKNOWN},
        {"re:\\w++", MP_MATCH_UNKNOWN},
        {"re:m??m+?odel", MP_MATCH_YES},
    };
    char longest[4096] = "re:";

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_assert_eq(match(cases[i].pattern, name), cases[i].result, "%s", cases[i].pattern);
    for (size_t i = 3; i < 510; i++)
        longest[i] = '\\', longest[++i] = 'd';
    cr_assert_eq(match(longest, name), MP_MATCH_NO);
    strcat(longest, "\\d");
    cr_assert_eq(match(longest, name), MP_MATCH_UNKNOWN, "longer than 512 bytes");
}

/* ------------------------------------------------------------------------
 * Configs
 */

/* Opens a config.json of 6 layers, of which the last 4 have experts, with these members. */
static void open_config(const char *members)
{
    char *text = NULL;

    cr_assert_geq(asprintf(&text,
                           "{\"model_type\":\"deepseek_v3\",\"hidden_size\":4096,"
                           "\"moe_intermediate_size\":1408,\"n_routed_experts\":60,"
                           "\"num_hidden_layers\":6,\"first_k_dense_replace\":2,%s}",
                           members),
                  0);
    put_text("config.json", text);
    free(text);
    cr_assert_eq(mp_backend_model_open(&model, dir, NULL, &err), 0, "%s", err.message);
}

static void expect_format(const char *format, const char *from)
{
    cr_assert_str_eq(mp_backend_model_scheme(&model), format);
    cr_assert_str_eq(model.scheme_from, from);
}

#define UNKNOWN "of a format that is not recognized: "
#define ALGO    "\"quantization_config\":{\"quant_method\":\"modelopt\",\"quant_algo\":"
#define CT      "\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
#define FP8     "\"weights\":{\"type\":\"float\",\"num_bits\":8,\"strategy\":\"channel\"}"
#define FP4 \
    "\"weights\":{\"type\":\"float\",\"num_bits\":4,\"strategy\":\"group\",\"group_size\":32}"

Test(backend_format, an_algorithm_has_exceptions)
{
    open_config(ALGO "\"NVFP4\"}");
    expect_format("nvfp4", "quant_algo");
    cr_assert_str_eq(model.quantization, "modelopt_fp4");
    open_config(ALGO "\"W4A16_NVFP4\"}");
    expect_format("nvfp4", "quant_algo");
    cr_assert(model.weight_only);
    open_config(ALGO "\"NVFP4_AWQ\"}");
    expect_format(UNKNOWN "NVFP4_AWQ", "quant_algo");
    open_config(ALGO "\"NVFP4\",\"ignore\":[\"lm_head\",\"*.shared_experts*\",\"mtp*\"]}");
    expect_format("nvfp4", "quant_algo");
    open_config(ALGO "\"NVFP4\",\"ignore\":[\"model.layers.*.mlp*\"]}");
    expect_format("bf16", "ignore");
    /* Dense layers do not matter, a layer with experts does. */
    open_config(ALGO "\"NVFP4\",\"ignore\":[\"model.layers.1.mlp*\"]}");
    expect_format("nvfp4", "quant_algo");
    open_config(ALGO "\"NVFP4\",\"ignore\":[\"model.layers.5.mlp.experts*\"]}");
    expect_format(UNKNOWN "layer 2 is NVFP4, layer 5 bf16", "quant_algo");
    open_config(ALGO "\"NVFP4\",\"exclude_modules\":[\"re:(?!x)\"]}");
    expect_format(UNKNOWN "pattern re:(?!x)", "quant_algo");
}

Test(backend_format, an_algorithm_of_experts_goes_first)
{
    open_config("\"expert_dtype\":\"fp4\",\"quantization_config\":{\"quant_method\":\"fp8\","
                "\"weight_block_size\":[128,128],\"quant_algo\":\"MIXED_PRECISION\","
                "\"moe_quant_algo\":\"NVFP4\",\"ignore\":[\"*\"]}");
    expect_format("nvfp4", "moe_quant_algo");
    cr_assert_str_eq(model.quantization, "fp8");
    cr_assert(model.shared_fp8_blocks);
}

Test(backend_format, listed_layers)
{
#define LISTED(l, algo) "\"model.layers." #l ".mlp.experts\":{\"quant_algo\":\"" algo "\"}"
#define MIXED           ALGO "\"MIXED_PRECISION\",\"quantized_layers\":{"
    open_config(MIXED LISTED(2, "NVFP4") "," LISTED(3, "NVFP4") "," LISTED(4, "NVFP4") "," LISTED(
        5, "NVFP4") ",\"model.layers.5.mlp.shared_experts.up_proj\":{\"quant_algo\":\"FP8\"},"
                    "\"mtp.layers.3.mlp.experts\":{\"quant_algo\":\"FP8\"},"
                    "\"model.layers.6.mlp.experts\":{\"quant_algo\":\"FP8\"}}}");
    expect_format("nvfp4", "quantized_layers");
    open_config(MIXED LISTED(2, "NVFP4") "," LISTED(3, "NVFP4") "}}");
    expect_format(UNKNOWN "layer 2 is NVFP4, layer 4 bf16", "quantized_layers");
    open_config(MIXED "\"model.layers.2.mlp.experts.0.up_proj\":{\"quant_algo\":\"NVFP4\"},"
                      "\"model.layers.2.mlp.experts.0.down_proj\":{\"quant_algo\":\"FP8\"}}}");
    expect_format(UNKNOWN "layer 2 is NVFP4 and FP8, layer 3 bf16", "quantized_layers");
    open_config(ALGO "\"MIXED_PRECISION\"}");
    expect_format(UNKNOWN "MIXED_PRECISION", "quantized_layers");
}

Test(backend_format, groups_by_name_before_class)
{
    open_config(CT "\"config_groups\":{\"a\":{\"targets\":[\"Linear\"]," FP8 "}}}");
    expect_format("fp8_channel", "config_groups");
    open_config(CT "\"config_groups\":{\"a\":{\"targets\":[\"Linear\"]," FP8 "},"
                   "\"b\":{\"targets\":[\"re:.*experts.*\"]," FP4 "}}}");
    expect_format("mxfp4", "config_groups");
    /* Of two groups that mean the experts, the first. */
    open_config(CT "\"config_groups\":{\"a\":{\"targets\":[\"re:.*mlp.*\"]," FP8 "},"
                   "\"b\":{\"targets\":[\"re:.*experts.*\"]," FP4 "}}}");
    expect_format("fp8_channel", "config_groups");
    open_config(CT "\"config_groups\":{\"a\":{\"targets\":[\"re:.*self_attn.*\"]," FP8 "}}}");
    expect_format("bf16", "config_groups");
    open_config(CT "\"ignore\":[\"re:.*mlp.experts.*\"],\"config_groups\":{\"a\":{\"targets\":"
                   "[\"Linear\"]," FP8 "}}}");
    expect_format("bf16", "ignore");
    open_config(CT "\"config_groups\":{\"a\":{\"targets\":[\"re:(?=x)\"]," FP8 "}}}");
    expect_format(UNKNOWN "target re:(?=x)", "config_groups");
    open_config(CT "\"config_groups\":{\"a\":{" FP8 "},\"b\":{" FP4 "}}}");
    expect_format(UNKNOWN "no targets", "config_groups");
}

Test(backend_format, more_groups_than_any_model_has)
{
    char text[2048] = CT "\"config_groups\":{";
    size_t n = strlen(text);

    for (int i = 0; i < 17; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"g%d\":{\"targets\":[\"Linear\"]}",
                              i ? "," : "", i);
    snprintf(text + n, sizeof text - n, "}}");
    open_config(text);
    expect_format(UNKNOWN "17 groups", "config_groups");
}

Test(backend_format, more_algorithms_than_any_model_has)
{
    char text[4096] = ALGO "\"MIXED_PRECISION\",\"quantized_layers\":{";
    size_t n = strlen(text);

    for (int i = 0; i < 40; i++)
        n += (size_t)snprintf(
            text + n, sizeof text - n,
            "%s\"model.layers.%d.mlp.experts.%d.up_proj\":{\"quant_algo\":\"A%d\"}", i ? "," : "",
            2 + i % 4, i, i);
    snprintf(text + n, sizeof text - n, "}}");
    open_config(text);
    cr_assert_not(model.has_scheme);
}

/* ------------------------------------------------------------------------
 * Beside config.json
 */

Test(backend_format, hf_quant_config_is_read_where_config_is_silent)
{
    put_text("hf_quant_config.json", "{\"quantization\":{\"quant_algo\":\"FP8\"}}");
    open_config("\"dtype\":\"bfloat16\"");
    expect_format("fp8_tensor", "hf_quant_config.json");
    cr_assert_str_eq(model.quantization, "modelopt_fp8");
    cr_assert(model.quant_config);
    open_config("\"quantization_config\":{\"quant_method\":\"mxfp4\"}");
    expect_format("mxfp4", "quantization_config");
    open_config("\"compression_config\":{\"quant_method\":\"compressed-tensors\","
                "\"config_groups\":{\"a\":{\"targets\":[\"Linear\"]," FP8 "}}}");
    expect_format("fp8_channel", "config_groups");
    put_text("hf_quant_config.json", "[");
    cr_assert_eq(mp_backend_model_open(&model, dir, NULL, &err), MP_ERR_INPUT);
}

Test(backend_format, activations_by_family_and_key)
{
    static const struct {
        const char *members, *activation, *from;
    } cases[] = {
        {"\"x\":1", "silu", "model_type"},
        {"\"hidden_act\":\"gelu\"", "gelu", "hidden_act"},
        {"\"hidden_act\":\"silu\",\"mlp_hidden_act\":\"relu2\"", "relu2", "mlp_hidden_act"},
        {"\"hidden_activation\":\"gelu_pytorch_tanh\"", "gelu_pytorch_tanh", "hidden_activation"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        open_config(cases[i].members);
        cr_assert_str_eq(model.activation, cases[i].activation);
        cr_assert_str_eq(model.activation_from, cases[i].from);
        cr_assert_str_eq(model.architecture, "DeepseekV3ForCausalLM");
    }
}
