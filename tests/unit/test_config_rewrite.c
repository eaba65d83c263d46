/* SPDX-License-Identifier: Apache-2.0 */
/* config.json after requantizing: what changes, and that nothing else does. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "base/json_edit.h"
#include "checkpoint/config_rewrite.h"

static mp_error err;

/* ------------------------------------------------------------------------
 * Members of a text
 */

static void expect_set(const char *before, mp_json_path path, const char *key, const char *value,
                       const char *after)
{
    char *text = strdup(before);
    json_t *json = json_loads(value, JSON_DECODE_ANY, NULL);

    cr_assert_eq(mp_json_set(&text, path, key, json, &err), 0);
    cr_assert_str_eq(text, after);
    json_decref(json);
    free(text);
}

static void expect_removed(const char *before, mp_json_path path, const char *key,
                           const char *after)
{
    char *text = strdup(before);

    cr_assert_eq(mp_json_remove(&text, path, key, &err), 0);
    cr_assert_str_eq(text, after);
    free(text);
}

Test(json_edit, replaces_and_leaves_the_rest)
{
    static const char *const inner[] = {"b", NULL};

    expect_set("{\"a\":1e-06,\"b\":{\"c\":[1,{\"c\":0}],\"d\":9007199254740993.0}}", NULL, "a", "2",
               "{\"a\":2,\"b\":{\"c\":[1,{\"c\":0}],\"d\":9007199254740993.0}}");
    expect_set("{\"a\":1e-06,\"b\":{\"c\":[1,{\"c\":0}],\"d\":1}}", inner, "c", "null",
               "{\"a\":1e-06,\"b\":{\"c\":null,\"d\":1}}");
    expect_set("{\"a\\\"}\": \"\\\\\", \"a\" : true }\n", NULL, "a", "false",
               "{\"a\\\"}\": \"\\\\\", \"a\" : false }\n");
    expect_set("{\"ab\": 1, \"b\": \"}\"}", NULL, "b", "[]", "{\"ab\": 1, \"b\": []}");
}

Test(json_edit, appends_as_its_neighbours_stand)
{
    expect_set("{}", NULL, "a", "1", "{\"a\": 1}");
    expect_set("{\"a\": 1}", NULL, "b", "{\"c\": 2}", "{\"a\": 1,\"b\": {\"c\": 2}}");
    expect_set("{\n    \"a\": 1\n}\n", NULL, "b", "{\"c\": 2}",
               "{\n    \"a\": 1,\n    \"b\": {\n      \"c\": 2\n    }\n}\n");
}

/* A parser sees the same key, so that it has to be found here too. */
Test(json_edit, finds_keys_that_are_spelled_with_escapes)
{
    expect_set("{\"a\\u005Fb\": 1}", NULL, "a_b", "2", "{\"a\\u005Fb\": 2}");
    expect_set("{\"\\u0061\": {\"\\u0062c\": 1}}", (const char *const[]){"a", NULL}, "bc", "2",
               "{\"\\u0061\": {\"\\u0062c\": 2}}");
    expect_removed("{\"x\": 0, \"a\\/b\": 1}", NULL, "a/b", "{\"x\": 0}");
    expect_set("{\"a\\u0162\": 1, \"\\\"a\": 1, \"a\\u005f\": 1}", NULL, "ab", "2",
               "{\"a\\u0162\": 1, \"\\\"a\": 1, \"a\\u005f\": 1, \"ab\": 2}");
}

Test(json_edit, removes)
{
    static const char *const inner[] = {"b", NULL};

    expect_removed("{\"a\": 1, \"b\": 2, \"c\": 3}", NULL, "a", "{\"b\": 2, \"c\": 3}");
    expect_removed("{\"a\": 1, \"b\": 2, \"c\": 3}", NULL, "b", "{\"a\": 1, \"c\": 3}");
    expect_removed("{\"a\": 1, \"b\": 2}", NULL, "b", "{\"a\": 1}");
    expect_removed("{\n  \"a\": 1,\n  \"b\": 2\n}", NULL, "b", "{\n  \"a\": 1\n}");
    expect_removed("{\"b\": {\"a\": {}}}", inner, "a", "{\"b\": {}}");
    expect_removed("{\"b\": {\"a\": {}}}", NULL, "a", "{\"b\": {\"a\": {}}}");
}

/* ------------------------------------------------------------------------
 * config.json
 */

static const char *const experts[] = {"model.layers.1.mlp.experts", "model.layers.2.mlp.experts"};
static const char *const plain[] = {"lm_head", "model.layers.0.mlp.experts"};
static mp_problems warnings;

static mp_config_change change_of(mp_style style, mp_scheme scheme, bool keeps)
{
    mp_problems_release(&warnings);
    return (mp_config_change){
        .to = mp_convention_find(style, scheme),
        .keeps = keeps,
        .experts = experts,
        .num_experts = 2,
        .plain = plain,
        .num_plain = 2,
    };
}

/* The text after a change, parsed; with integers of any size left alone, it is still JSON. */
static char *changed(const char *before, const mp_config_change *change)
{
    char *text;

    cr_assert_eq(mp_config_requantized(before, change, &text, &warnings, &err), 0, "%s",
                 err.message);
    return text;
}

static void expect_config(const char *before, const mp_config_change *change, const char *after)
{
    char *text = changed(before, change);

    cr_assert_str_eq(text, after);
    free(text);
}

/* Members of quantization_config, as a parsed value that the caller drops. */
static json_t *quantization_of(const char *before, const mp_config_change *change)
{
    char *text = changed(before, change);
    json_t *root = json_loads(text, 0, NULL);
    json_t *config = json_incref(json_object_get(root, "quantization_config"));

    cr_assert_not_null(config, "%s", text);
    json_decref(root);
    free(text);
    return config;
}

static void expect_json(const json_t *value, const char *text)
{
    json_t *want = json_loads(text, JSON_DECODE_ANY, NULL);
    char *have = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

    cr_assert(json_equal(value, want), "%s, expected %s", have, text);
    json_decref(want);
    free(have);
}

#define FP8                                                                    \
    "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", " \
    "\"weight_block_size\": [128, 128]"

Test(config_rewrite, v4_says_it_in_expert_dtype)
{
    mp_config_change change = change_of(MP_AS_DEEPSEEK_V4, MP_SCHEME_FP8_BLOCK, true);

    expect_config(
        "{\"model_type\": \"deepseek_v4\", \"eps\": 1e-06, \"expert_dtype\": \"fp4\", " FP8 "}}",
        &change,
        "{\"model_type\": \"deepseek_v4\", \"eps\": 1e-06, \"expert_dtype\": \"fp8\", " FP8 "}}");
    /* Absent, it would be taken for fp4. */
    expect_config("{\"model_type\": \"deepseek_v4\", " FP8 "}}", &change,
                  "{\"model_type\": \"deepseek_v4\", " FP8 "}, \"expert_dtype\": \"fp8\"}");
    cr_assert_eq(warnings.count, 0);
}

Test(config_rewrite, v41_says_it_inside)
{
    mp_config_change change = change_of(MP_AS_DEEPSEEK_V4, MP_SCHEME_MXFP4, true);

    expect_config("{\"text_config\": {\"a\": 1, " FP8 ", \"expert_dtype\": \"fp8\"}}}", &change,
                  "{\"text_config\": {\"a\": 1, " FP8 ", \"expert_dtype\": \"fp4\"}}}");
    expect_config("{\"text_config\": {\"a\": 1}, " FP8 "}}", &change,
                  "{\"text_config\": {\"a\": 1}, " FP8 ", \"expert_dtype\": \"fp4\"}}");
}

Test(config_rewrite, floats_become_exceptions_of_what_stays)
{
    mp_config_change change = change_of(MP_AS_DEEPSEEK_V3, MP_SCHEME_BF16, true);
    char *text = changed("{" FP8 "}}", &change);

    cr_assert_str_eq(text, "{" FP8 ", \"modules_to_not_convert\": [\"model.layers.1.mlp.experts\", "
                           "\"model.layers.2.mlp.experts\"]}}");
    /* And back: they are exceptions no longer. */
    change.to = mp_convention_find(MP_AS_DEEPSEEK_V3, MP_SCHEME_FP8_BLOCK);
    expect_config(text, &change, "{" FP8 ", \"modules_to_not_convert\": []}}");
    free(text);
}

Test(config_rewrite, floats_alone_leave_no_quantization)
{
    mp_config_change change = change_of(MP_AS_DEEPSEEK_V3, MP_SCHEME_BF16, false);

    expect_config("{\"a\": 12345678901234567890.5, " FP8 "}, \"b\": 2}", &change,
                  "{\"a\": 12345678901234567890.5, \"b\": 2}");
    expect_config("{\"text_config\": {" FP8 "}}, " FP8 "}}", &change, "{\"text_config\": {}}");
}

Test(config_rewrite, modelopt)
{
    mp_config_change change = change_of(MP_AS_MODELOPT, MP_SCHEME_NVFP4, false);
    json_t *config = quantization_of("{\"a\": 1}", &change);
    char *text;

    expect_json(json_object_get(config, "quant_method"), "\"modelopt\"");
    expect_json(json_object_get(config, "quant_algo"), "\"NVFP4\"");
    expect_json(json_object_get(config, "ignore"),
                "[\"lm_head\", \"model.layers.0.mlp.experts*\"]");
    json_decref(config);
    cr_assert_eq(mp_hf_quant_config(&change, &text, &err), 0);
    cr_assert_not_null(strstr(text, "\"quant_algo\": \"NVFP4\""));
    cr_assert_not_null(strstr(text, "\"model.layers.0.mlp.experts*\""));
    free(text);

    change.keeps = true;
    expect_config("{" FP8 "}}", &change, "{" FP8 ", \"moe_quant_algo\": \"NVFP4\"}}");
    cr_assert_eq(mp_hf_quant_config(&change, &text, &err), 0);
    cr_assert_null(text);
    /* Requantized again, that would be wrong. */
    change = change_of(MP_AS_DEEPSEEK_V3, MP_SCHEME_FP8_BLOCK, true);
    expect_config("{" FP8 ", \"moe_quant_algo\": \"NVFP4\"}}", &change, "{" FP8 "}}");
}

Test(config_rewrite, compressed_tensors)
{
    mp_config_change change = change_of(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_INT8_CHANNEL, false);
    json_t *config = quantization_of("{" FP8 "}}", &change);

    expect_json(json_object_get(config, "format"), "\"int-quantized\"");
    expect_json(json_object_get(config, "ignore"),
                "[\"lm_head\", \"re:^model\\\\.layers\\\\.0\\\\.mlp\\\\.experts\\\\..*\"]");
    expect_json(
        json_object_get(json_object_get(json_object_get(config, "config_groups"), "group_0"),
                        "weights"),
        "{\"num_bits\": 8, \"type\": \"int\", \"strategy\": \"channel\", \"symmetric\": "
        "true, \"dynamic\": false}");
    json_decref(config);
    cr_assert_eq(warnings.count, 0);
}

Test(config_rewrite, compressed_tensors_beside_its_own)
{
    static const char before[] =
        "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
        "\"float-quantized\", \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"]}}}}";
    mp_config_change change = change_of(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_MXFP4, true);
    json_t *config = quantization_of(before, &change), *groups;
    char *twice = changed(before, &change), *again;

    groups = json_object_get(config, "config_groups");
    expect_json(json_object_get(config, "format"), "\"mixed-precision\"");
    expect_json(json_object_get(json_object_get(groups, "group_0"), "format"),
                "\"float-quantized\"");
    expect_json(json_object_get(json_object_get(groups, "group_1"), "format"),
                "\"mxfp4-pack-quantized\"");
    expect_json(json_object_get(json_object_get(groups, "group_1"), "targets"),
                "[\"re:^model\\\\.layers\\\\.1\\\\.mlp\\\\.experts\\\\..*\", "
                "\"re:^model\\\\.layers\\\\.2\\\\.mlp\\\\.experts\\\\..*\"]");
    json_decref(config);
    again = changed(twice, &change);
    cr_assert_null(strstr(again, "group_2"), "the old group of experts went");
    free(twice);
    free(again);
}

Test(config_rewrite, groups_that_are_no_object_are_refused)
{
    static const char before[] = "{\"quantization_config\": {\"quant_method\": "
                                 "\"compressed-tensors\", \"config_groups\": [1]}}";
    mp_config_change change = change_of(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_MXFP4, true);
    char *text;

    cr_assert_eq(mp_config_requantized(before, &change, &text, &warnings, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "config.json: config_groups is not an object");
}

Test(config_rewrite, warns_of_what_it_cannot_say)
{
    mp_config_change change = change_of(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_MXFP4, true);

    expect_config("{" FP8 "}}", &change, "{" FP8 "}}");
    cr_assert_eq(warnings.count, 1);
    cr_assert_str_eq(warnings.text[0],
                     "config.json: quantization_config stays \"fp8\" for the other tensors, and "
                     "cannot say that experts are mxfp4 in the style of compressed-tensors");
    mp_problems_release(&warnings);
}

Test(config_rewrite, refuses_two_block_sizes)
{
    mp_config_change change = change_of(MP_AS_DEEPSEEK_V4, MP_SCHEME_FP8_BLOCK, true);
    char *text;

    cr_assert_eq(mp_config_requantized("{\"quantization_config\": {\"quant_method\": \"fp8\", "
                                       "\"weight_block_size\": [32, 32]}}",
                                       &change, &text, NULL, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message,
                     "config.json: weight_block_size is [32, 32] for tensors that stay; "
                     "fp8_block experts have 128x128");
    cr_assert_null(text);
    cr_assert_eq(mp_config_requantized("[]", &change, &text, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "config.json: not a JSON object");
    cr_assert_eq(mp_config_requantized("{", &change, &text, NULL, &err), MP_ERR_INPUT);
}

Test(config_rewrite, reads_scale_fmt)
{
    cr_assert(mp_config_says_ue8m0("{\"quantization_config\": {\"scale_fmt\": \"ue8m0\"}}"));
    cr_assert(mp_config_says_ue8m0(
        "{\"text_config\": {\"quantization_config\": {\"scale_fmt\": \"ue8m0\"}}}"));
    cr_assert_not(mp_config_says_ue8m0("{\"quantization_config\": {\"scale_fmt\": null}}"));
    cr_assert_not(mp_config_says_ue8m0("{}"));
    cr_assert_not(mp_config_says_ue8m0("nothing"));
}
