/* SPDX-License-Identifier: Apache-2.0 */
/* config.json: where each fact stands, by which names, and what is no fact. */
#include <criterion/criterion.h>

#include <math.h>
#include <unistd.h>

#include <moepack/model.h>

#include "store_files.h"

#include "checkpoint/config.h"

static mp_config config;

static void init(void)
{
    make_scratch();
    config = (mp_config){0};
}

static void finish(void)
{
    mp_config_release(&config);
    remove_scratch();
}

TestSuite(config, .init = init, .fini = finish);

static int load(const char *text)
{
    put_text("config.json", text);
    mp_config_release(&config);
    err = (mp_error){0};
    return mp_config_load(&config, dir, &err);
}

static void expect_loads(const char *text)
{
    cr_assert_eq(load(text), 0, "%s", err.message);
    cr_assert(config.present);
}

/* message: behind the directory, where it begins with one. */
static void expect_fails(const char *text, const char *message)
{
    char in_message[sizeof dir + 256];

    cr_assert_eq(load(text), MP_ERR_INPUT, "%s", text);
    cr_assert_eq(err.code, MP_ERR_INPUT);
    snprintf(in_message, sizeof in_message, "%s/%s", dir, message);
    if (err.message[0] == '/')
        cr_assert_str_eq(err.message, in_message);
    else
        cr_assert_str_eq(err.message, message);
}

static void expect_unsupported(const char *text, const char *message)
{
    cr_assert_eq(load(text), MP_ERR_UNSUPPORTED, "%s", text);
    cr_assert_str_eq(err.message, message);
}

/* Whether layers 0, 1, 2 ... are MoE layers, a 1 for each that is. */
static void expect_moe_layers(const char *want)
{
    char have[32] = {0};

    for (size_t i = 0; want[i]; i++)
        have[i] = mp_config_is_moe_layer(&config, i) ? '1' : '0';
    cr_assert_str_eq(have, want, "%s, expected %s", have, want);
}

Test(config, no_file_says_nothing)
{
    cr_assert_eq(mp_config_load(&config, dir, &err), 0, "%s", err.message);
    cr_assert_not(config.present);
    cr_assert_str_empty(config.model_type);
    cr_assert_str_empty(config.quant_method);
    cr_assert_eq(config.hidden_size, MP_CONFIG_ABSENT);
    cr_assert_eq(config.moe_intermediate_size, MP_CONFIG_ABSENT);
    cr_assert_eq(config.num_experts, MP_CONFIG_ABSENT);
    cr_assert_eq(config.num_shared_experts, MP_CONFIG_ABSENT);
    cr_assert_eq(config.experts_per_token, MP_CONFIG_ABSENT);
    cr_assert_eq(config.num_hidden_layers, MP_CONFIG_ABSENT);
    cr_assert_eq(config.first_k_dense_replace, MP_CONFIG_ABSENT);
    cr_assert_eq(config.moe_layer_freq, MP_CONFIG_ABSENT);
    cr_assert_eq(config.decoder_sparse_step, MP_CONFIG_ABSENT);
    cr_assert_eq(config.vocab_size, MP_CONFIG_ABSENT);
    cr_assert_eq(config.block_rows, MP_CONFIG_ABSENT);
    cr_assert_eq(config.block_cols, MP_CONFIG_ABSENT);
    cr_assert_null(config.dense_layers);
    expect_moe_layers("1111");
}

Test(config, an_empty_object_says_nothing)
{
    expect_loads("{}");
    cr_assert_eq(config.hidden_size, MP_CONFIG_ABSENT);
    cr_assert_eq(config.block_cols, MP_CONFIG_ABSENT);
    expect_moe_layers("1111");
}

Test(config, facts_of_the_root)
{
    expect_loads("{\"model_type\": \"deepseek_v3\", \"hidden_size\": 7168,"
                 "\"moe_intermediate_size\": 2048, \"n_routed_experts\": 256,"
                 "\"n_shared_experts\": 1, \"num_experts_per_tok\": 8,"
                 "\"num_hidden_layers\": 61, \"first_k_dense_replace\": 3,"
                 "\"moe_layer_freq\": 1, \"decoder_sparse_step\": 2, \"vocab_size\": 129280,"
                 "\"quantization_config\": {\"quant_method\": \"fp8\","
                 "\"weight_block_size\": [128, 64]}}");
    cr_assert_str_eq(config.model_type, "deepseek_v3");
    cr_assert_str_eq(config.quant_method, "fp8");
    cr_assert_eq(config.hidden_size, 7168);
    cr_assert_eq(config.moe_intermediate_size, 2048);
    cr_assert_eq(config.num_experts, 256);
    cr_assert_eq(config.num_shared_experts, 1);
    cr_assert_eq(config.experts_per_token, 8);
    cr_assert_eq(config.num_hidden_layers, 61);
    cr_assert_eq(config.first_k_dense_replace, 3);
    cr_assert_eq(config.moe_layer_freq, 1);
    cr_assert_eq(config.decoder_sparse_step, 2);
    cr_assert_eq(config.vocab_size, 129280);
    cr_assert_eq(config.block_rows, 128);
    cr_assert_eq(config.block_cols, 64);
}

/* Hunyuan states a number of shared experts also where it has none. */
Test(config, shared_experts_that_are_switched_off)
{
    expect_loads("{\"num_shared_expert\": 1, \"use_mixed_mlp_moe\": false}");
    cr_assert_eq(config.num_shared_experts, 0);
    expect_loads("{\"num_shared_expert\": 1, \"use_mixed_mlp_moe\": true}");
    cr_assert_eq(config.num_shared_experts, 1);
    expect_loads("{\"text_config\": {\"num_shared_expert\": 2, \"use_mixed_mlp_moe\": false}}");
    cr_assert_eq(config.num_shared_experts, 0);
}

Test(config, zero_is_a_number)
{
    expect_loads("{\"n_shared_experts\": 0, \"first_k_dense_replace\": 0}");
    cr_assert_eq(config.num_shared_experts, 0);
    cr_assert_eq(config.first_k_dense_replace, 0);
}

Test(config, nested_configs)
{
    static const char *const keys[] = {"text_config", "language_config", "llm_config"};
    char text[512];

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        snprintf(text, sizeof text,
                 "{\"model_type\": \"outer\", \"hidden_size\": 10, \"%s\": {\"hidden_size\": 20,"
                 "\"model_type\": \"inner\", \"num_experts\": 7, \"moe_layer_freq\": [0, 1],"
                 "\"quantization_config\": {\"weight_block_size\": [1, 32]}}}",
                 keys[i]);
        expect_loads(text);
        cr_assert_eq(config.hidden_size, 10, "the root is asked first");
        cr_assert_str_eq(config.model_type, "outer");
        cr_assert_eq(config.num_experts, 7);
        cr_assert_eq(config.block_rows, 1);
        cr_assert_eq(config.block_cols, 32);
        expect_moe_layers("011");
    }
    expect_loads("{\"vision_config\": {\"hidden_size\": 20}}");
    cr_assert_eq(config.hidden_size, MP_CONFIG_ABSENT);
    expect_loads("{\"text_config\": 7, \"llm_config\": {\"hidden_size\": 20}}");
    cr_assert_eq(config.hidden_size, 20);
}

/* A number as it comes out, and the names that config.json files give it. */
Test(config, synonyms)
{
    static const struct {
        const uint64_t *number;
        const char *names[5];
    } rows[] = {
        {&config.num_experts,
         {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"}},
        {&config.num_shared_experts,
         {"n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"}},
        {&config.experts_per_token,
         {"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k"}},
    };
    char text[128];

    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        for (unsigned n = 0; rows[r].names[n]; n++) {
            snprintf(text, sizeof text, "{\"%s\": %u}", rows[r].names[n], 100 + n);
            expect_loads(text);
            cr_assert_eq(*rows[r].number, 100 + n, "%s", rows[r].names[n]);
            snprintf(text, sizeof text, "{\"%s\": -1}", rows[r].names[n]);
            cr_assert_eq(load(text), MP_ERR_INPUT, "%s", rows[r].names[n]);
        }
    }
    expect_loads("{\"num_experts\": 5, \"n_routed_experts\": 6}");
    cr_assert_eq(config.num_experts, 6, "the first name of the list counts");
}

Test(config, facts_of_routers_and_experts)
{
    expect_loads("{\"scoring_func\": \"sigmoid\", \"topk_method\": \"noaux_tc\","
                 "\"hidden_act\": \"silu\", \"n_group\": 8, \"topk_group\": 4,"
                 "\"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5,"
                 "\"swiglu_limit\": 10, \"swiglu_alpha\": 1.702, \"swiglu_beta\": 1.0}");
    cr_assert_str_eq(config.scoring_func, "sigmoid");
    cr_assert_str_eq(config.topk_method, "noaux_tc");
    cr_assert_str_eq(config.hidden_act, "silu");
    cr_assert(config.n_group == 8 && config.topk_group == 4);
    cr_assert_eq(config.norm_topk_prob, 1);
    cr_assert_eq(config.routed_scaling_factor, 2.5);
    cr_assert(config.swiglu_limit == 10 && config.swiglu_alpha == 1.702 && config.swiglu_beta == 1);

    expect_loads("{\"text_config\": {\"moe_router_activation_func\": \"sigmoid\","
                 "\"num_expert_group\": 2, \"moe_renormalize\": false,"
                 "\"routed_scaling_factor\": null}}");
    cr_assert_str_eq(config.scoring_func, "sigmoid");
    cr_assert_eq(config.n_group, 2);
    cr_assert_eq(config.norm_topk_prob, 0);
    cr_assert(isnan(config.routed_scaling_factor));

    expect_loads("{}");
    cr_assert_str_eq(config.scoring_func, "");
    cr_assert_eq(config.n_group, MP_CONFIG_ABSENT);
    cr_assert_eq(config.norm_topk_prob, -1);
    cr_assert(isnan(config.swiglu_limit) && isnan(config.swiglu_alpha));
}

Test(config, facts_of_routers_of_another_type)
{
    expect_fails("{\"routed_scaling_factor\": \"2.5\"}",
                 "config.json: \"routed_scaling_factor\" is not a number of 0 or more");
    expect_fails("{\"swiglu_limit\": -1}",
                 "config.json: \"swiglu_limit\" is not a number of 0 or more");
    expect_fails("{\"norm_topk_prob\": 1}",
                 "config.json: \"norm_topk_prob\" is neither true nor false");
    expect_fails("{\"scoring_func\": 3}",
                 "config.json: \"scoring_func\" is not a string of up to 31 bytes");
}

Test(config, null_is_as_absent)
{
    expect_loads("{\"model_type\": null, \"hidden_size\": null, \"n_routed_experts\": null,"
                 "\"num_experts\": 7, \"moe_layer_freq\": null, \"mlp_only_layers\": null,"
                 "\"decoder_sparse_step\": null, \"quantization_config\": null}");
    cr_assert_str_empty(config.model_type);
    cr_assert_eq(config.hidden_size, MP_CONFIG_ABSENT);
    cr_assert_eq(config.num_experts, 7, "another name");
    cr_assert_eq(config.moe_layer_freq, MP_CONFIG_ABSENT);
    cr_assert_eq(config.block_rows, MP_CONFIG_ABSENT);
    expect_moe_layers("111");

    expect_loads("{\"hidden_size\": null, \"text_config\": {\"hidden_size\": 20}}");
    cr_assert_eq(config.hidden_size, 20, "another place");
    expect_loads(
        "{\"quantization_config\": {\"quant_method\": null, \"weight_block_size\": null}}");
    cr_assert_str_empty(config.quant_method);
    cr_assert_eq(config.block_rows, MP_CONFIG_ABSENT);
    expect_loads("{\"text_config\": null}");
}

/* A number for each layer, as Hunyuan has it, or for text and for images. */
Test(config, lists_of_one_number)
{
    expect_loads("{\"moe_intermediate_size\": [1408, 1408, 1408], \"moe_topk\": [2, 2]}");
    cr_assert_eq(config.moe_intermediate_size, 1408);
    cr_assert_eq(config.experts_per_token, 2);
    expect_unsupported("{\"moe_topk\": [2, 2, 3]}",
                       "config.json: \"moe_topk\" differs by layer, 2 and 3: not supported");
    expect_unsupported("{\"moe_intermediate_size\": [1536, 512]}",
                       "config.json: experts for text and for images, of width 1536 and 512: not "
                       "supported");
}

/* The rules are those of the outermost model_type that has any. */
Test(config, one_of_several_model_types)
{
    static const struct {
        const char *json, *type;
    } cases[] = {
        {"{\"model_type\": \"mistral3\", \"text_config\": {\"model_type\": \"mistral4\"}}",
         "mistral4"},
        {"{\"model_type\": \"kimi_k3\", \"text_config\": {\"model_type\": \"kimi_linear\"}}",
         "kimi_k3"},
        {"{\"model_type\": \"DeepseekOCR\", \"language_config\": {\"model_type\": "
         "\"deepseek_v2\"}}",
         "DeepseekOCR"},
        {"{\"model_type\": \"foo\", \"text_config\": {\"model_type\": \"bar\"}}", "foo"},
        {"{\"text_config\": {\"model_type\": \"bar\"}}", "bar"},
        {"{\"text_config\": {}, \"llm_config\": {\"model_type\": \"qwen2_moe\"}}", "qwen2_moe"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect_loads(cases[i].json);
        cr_assert_str_eq(config.model_type, cases[i].type);
    }
}

Test(config, numbers_of_another_type)
{
    expect_fails("{\"hidden_size\": \"96\"}",
                 "config.json: \"hidden_size\" is \"96\", expected an integer of 0 or more");
    expect_fails("{\"hidden_size\": 96.0}",
                 "config.json: \"hidden_size\" is 96.0, expected an integer of 0 or more");
    expect_fails("{\"num_hidden_layers\": -1}",
                 "config.json: \"num_hidden_layers\" is -1, expected an integer of 0 or more");
    expect_fails("{\"num_local_experts\": true}",
                 "config.json: \"num_local_experts\" is true, expected an integer of 0 or more");
    expect_fails("{\"moe_intermediate_size\": [[1408]]}",
                 "config.json: \"moe_intermediate_size\" is [1408], expected an integer of 0 or "
                 "more");
    expect_fails("{\"text_config\": {\"vocab_size\": {}}}",
                 "config.json: \"vocab_size\" is {}, expected an integer of 0 or more");
    expect_fails("{\"moe_layer_freq\": \"1\"}",
                 "config.json: \"moe_layer_freq\" is \"1\", expected an integer of 0 or more");
    expect_fails("{\"decoder_sparse_step\": -2}",
                 "config.json: \"decoder_sparse_step\" is -2, expected an integer of 0 or more");
    expect_fails("{\"moe_k\": \"a text that is much longer than what fits into a message\"}",
                 "config.json: \"moe_k\" is something long, expected an integer of 0 or more");
}

Test(config, texts_of_another_type)
{
    expect_fails("{\"model_type\": 3}",
                 "config.json: \"model_type\" is not a string of up to 63 bytes");
    expect_fails("{\"quantization_config\": {\"quant_method\": []}}",
                 "config.json: \"quant_method\" is not a string of up to 63 bytes");
    expect_loads("{\"model_type\": \"123456789 123456789 123456789 123456789 123456789 "
                 "123456789 123\"}");
    cr_assert_eq(strlen(config.model_type), 63);
    expect_fails("{\"model_type\": \"123456789 123456789 123456789 123456789 123456789 "
                 "123456789 1234\"}",
                 "config.json: \"model_type\" is not a string of up to 63 bytes");
}

Test(config, block_sizes)
{
    static const char *const bad[] = {
        "[128]",           "[128, 128, 128]", "[]",
        "[0, 128]",        "[128, -1]",       "128",
        "[128, 1.5]",      "[\"1\", 128]",    "[128, true]",
        "{\"a\": 1}",      "\"128\"",         "[4294967296, 1]",
        "[1, 4294967296]",
    };
    char text[128];

    expect_loads("{\"quantization_config\": {\"weight_block_size\": [4294967295, 1]}}");
    cr_assert_eq(config.block_rows, 4294967295);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        snprintf(text, sizeof text, "{\"quantization_config\": {\"weight_block_size\": %s}}",
                 bad[i]);
        expect_fails(text, "config.json: \"weight_block_size\" is not two positive integers");
    }
}

/* Other methods say blocks elsewhere. */
Test(config, block_sizes_of_other_methods)
{
#define GROUP(weights)                                                                            \
    "{\"quantization_config\": {\"quant_algo\": \"FP8_PB_WO\", \"config_groups\": {\"group_0\": " \
    "{\"weights\": " weights "}}}}"
    expect_loads(GROUP("{\"num_bits\": 8, \"block_structure\": [64, 96]}"));
    cr_assert(config.block_rows == 64 && config.block_cols == 96 && config.weight_bits == 8);
    expect_loads(GROUP("{\"num_bits\": 8, \"group_size\": 96}"));
    cr_assert(config.block_rows == 96 && config.block_cols == 96 && config.group_size == 96);
    expect_fails(GROUP("{\"block_structure\": [64]}"),
                 "config.json: \"block_structure\" is not two positive integers");
#undef GROUP
    expect_loads("{\"quantization_config\": {\"config_groups\": {\"a\": {\"weights\": "
                 "{\"num_bits\": 4, \"group_size\": 32}}}}}");
    cr_assert(config.block_rows == MP_CONFIG_ABSENT && config.group_size == 32);
    put_text("hf_quant_config.json",
             "{\"quantization\": {\"quant_algo\": \"FP8_PB_REAL\", \"group_size\": 64}}");
    expect_loads("{}");
    cr_assert_eq(config.block_rows, 64);
}

Test(config, what_is_no_object)
{
    expect_fails("[]", "config.json: not a JSON object");
    expect_fails("7", "config.json: not a JSON object");
    expect_fails("null", "config.json: not a JSON object");
    expect_fails("{\"a\": }", "config.json: line 1, column 7: unexpected token near '}'");
    expect_fails("", "config.json: line 1, column 0: unexpected token near end of file");
    expect_fails("{\"hidden_size\": 1, \"hidden_size\": 1}",
                 "config.json: line 1, column 32: duplicate object key near '\"hidden_size\"'");
}

Test(config, a_huge_file_is_not_read)
{
    put_text("config.json", "{}");
    cr_assert_eq(truncate(in_dir("config.json"), (16 << 20) + 1), 0);
    cr_assert_eq(mp_config_load(&config, dir, &err), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "config.json\" is larger than 16777216 bytes"), "%s",
                       err.message);
}

/* ------------------------------------------------------------------------
 * Which layers have experts
 */

Test(config, dense_layers_at_the_start)
{
    expect_loads("{\"first_k_dense_replace\": 3}");
    expect_moe_layers("0001111");
    expect_loads("{\"first_k_dense_replace\": 2, \"moe_layer_freq\": 2}");
    expect_moe_layers("0010101");
}

Test(config, a_frequency)
{
    expect_loads("{\"moe_layer_freq\": 1}");
    expect_moe_layers("1111111");
    expect_loads("{\"moe_layer_freq\": 3}");
    expect_moe_layers("1001001");
    expect_loads("{\"moe_layer_freq\": 0}");
    expect_moe_layers("1111111");
    cr_assert_eq(config.moe_layer_freq, 0);
}

Test(config, a_step)
{
    expect_loads("{\"decoder_sparse_step\": 1}");
    expect_moe_layers("1111111");
    expect_loads("{\"decoder_sparse_step\": 3}");
    expect_moe_layers("0010010");
    expect_loads("{\"decoder_sparse_step\": 0}");
    expect_moe_layers("1111111");
}

/* Lists of all layers, and the numbers of other families. */
Test(config, other_words_for_dense_layers)
{
    expect_loads("{\"mlp_layer_types\": [\"dense\", \"sparse\", \"hash_moe\"], "
                 "\"first_k_dense_replace\": 2}");
    expect_moe_layers("011");
    cr_assert(mp_config_says_layer(&config, 2) && !mp_config_says_layer(&config, 3));
    expect_loads("{\"is_moe_layer\": [false, true]}");
    expect_moe_layers("01");
    expect_loads("{\"layers_block_type\": [\"mamba\", \"moe\", \"attention\"]}");
    expect_moe_layers("010");
    cr_assert_eq(config.num_hidden_layers, 3);
    expect_loads("{\"layers_block_type\": [\"mamba\", \"attention\"]}");
    cr_assert(!config.says_layers, "it is about attention");
    expect_loads("{\"hybrid_override_pattern\": \"ME*-E\", \"num_hidden_layers\": 9}");
    expect_moe_layers("01001");
    cr_assert_eq(config.num_hidden_layers, 5);
    expect_loads("{\"moe_layers\": [1, 3], \"num_hidden_layers\": 4, "
                 "\"interleave_moe_layer_step\": 1}");
    expect_moe_layers("0101");
    expect_loads("{\"moe_layers_enum\": \"1,2\", \"num_hidden_layers\": 4}");
    expect_moe_layers("0110");
    expect_loads("{\"num_dense_layers\": 2}");
    expect_moe_layers("0011");
    expect_loads("{\"moe_layer_start_index\": 1, \"moe_layer_end_index\": 3, "
                 "\"moe_layer_interval\": 1}");
    expect_moe_layers("01110");
    expect_loads("{\"moe_layer_start_index\": [2, 1], \"moe_layer_end_index\": -1, "
                 "\"moe_layer_interval\": 2}");
    expect_moe_layers("010101");
    expect_loads("{\"expert_layer_period\": 3, \"expert_layer_offset\": 2}");
    expect_moe_layers("001001");
    expect_loads("{\"moe_layer_frequency\": 2}");
    expect_moe_layers("0101");
    expect_loads("{\"num_layers\": 3, \"num_hidden_layers\": 6, \"zero_expert_num\": 2}");
    cr_assert_eq(config.num_hidden_layers, 3, "LongCat counts its layers twice");
    expect_fails("{\"mlp_layer_types\": [1]}",
                 "config.json: \"mlp_layer_types\": entry 0 is not a string");
    expect_fails("{\"is_moe_layer\": [1]}",
                 "config.json: \"is_moe_layer\": entry 0 is neither true nor false");
    expect_fails("{\"moe_layers\": [4], \"num_hidden_layers\": 4}",
                 "config.json: \"moe_layers\": entry 0 is not a layer below 4");
}

Test(config, a_list_of_flags)
{
    expect_loads("{\"moe_layer_freq\": [0, 0, 1, 0, 1]}");
    cr_assert_eq(config.moe_layer_freq, MP_CONFIG_ABSENT);
    cr_assert_eq(config.num_dense_layers, 5);
    expect_moe_layers("0010111"); /* it does not speak of layers 5 and 6 */
    expect_loads("{\"moe_layer_freq\": []}");
    expect_moe_layers("111");
    expect_fails("{\"moe_layer_freq\": [0, 1, 2]}",
                 "config.json: \"moe_layer_freq\": entry 2 is neither 0 nor 1");
    expect_fails("{\"moe_layer_freq\": [-1]}",
                 "config.json: \"moe_layer_freq\": entry 0 is neither 0 nor 1");
    expect_fails("{\"moe_layer_freq\": [1, true]}",
                 "config.json: \"moe_layer_freq\": entry 1 is neither 0 nor 1");
}

Test(config, a_list_of_dense_layers)
{
    expect_loads("{\"num_hidden_layers\": 6, \"mlp_only_layers\": [5, 1, 1]}");
    expect_moe_layers("1011101");
    expect_loads(
        "{\"num_hidden_layers\": 6, \"mlp_only_layers\": [4], \"decoder_sparse_step\": 2}");
    expect_moe_layers("0101010");
    expect_loads("{\"num_hidden_layers\": 6, \"mlp_only_layers\": [3], \"moe_layer_freq\": 3}");
    expect_moe_layers("1000001");
    expect_loads("{\"mlp_only_layers\": []}");
    expect_moe_layers("111");
    cr_assert_null(config.dense_layers);
}

Test(config, a_list_of_dense_layers_that_is_none)
{
    expect_fails("{\"num_hidden_layers\": 6, \"mlp_only_layers\": [0, 6]}",
                 "config.json: \"mlp_only_layers\": entry 1 is not a layer below 6");
    expect_fails("{\"num_hidden_layers\": 6, \"mlp_only_layers\": [-1]}",
                 "config.json: \"mlp_only_layers\": entry 0 is not a layer below 6");
    expect_fails("{\"num_hidden_layers\": 6, \"mlp_only_layers\": [\"1\"]}",
                 "config.json: \"mlp_only_layers\": entry 0 is not a layer below 6");
    expect_fails("{\"mlp_only_layers\": [0]}",
                 "config.json: \"mlp_only_layers\" needs a sound \"num_hidden_layers\"");
    expect_fails("{\"num_hidden_layers\": 9000000000000000000, \"mlp_only_layers\": [0]}",
                 "config.json: \"mlp_only_layers\" needs a sound \"num_hidden_layers\"");
    expect_fails("{\"num_hidden_layers\": 6, \"mlp_only_layers\": 3}",
                 "config.json: \"mlp_only_layers\" is not a list");
}
