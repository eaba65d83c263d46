/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of checkpoints: their routers, and their experts against the decoded weights that
 * come with the fixtures. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"
#include "model_files.h"

#include "forward/reference.h"

static void finish(void)
{
    remove_model_scratch();
}

TestSuite(forward_layer, .init = make_model_scratch, .fini = finish);

/* ------------------------------------------------------------------------
 * Experts
 */

#define TOKENS 5
#define K      2

static double row_times(const float *w, const double *x, uint64_t n)
{
    double sum = 0;

    for (uint64_t i = 0; i < n; i++)
        sum += (double)w[i] * x[i];
    return sum;
}

static const float *truth_of(const golden_file *truth, const char *layer, int32_t expert,
                             const char *matrix)
{
    char name[128];

    snprintf(name, sizeof name, "%s.%d.%s", layer, expert, matrix);
    return golden_tensor(truth, name, NULL);
}

/* Adds what an expert gives for x, times weight; biased: as GPT-OSS computes. */
static void add_expert(const golden_file *truth, const char *layer, int32_t expert, bool biased,
                       const float *x32, double weight, double *y)
{
    uint64_t h = catalog.hidden_size, i = catalog.moe_intermediate_size;
    const float *w1 = truth_of(truth, layer, expert, "w1"), *w2, *w3;
    const float *b1 = biased ? truth_of(truth, layer, expert, "b1") : NULL;
    const float *b3 = biased ? truth_of(truth, layer, expert, "b3") : NULL;
    const float *b2 = biased ? truth_of(truth, layer, expert, "b2") : NULL;
    double *inner = malloc(i * sizeof *inner), *x = malloc(h * sizeof *x);

    w3 = truth_of(truth, layer, expert, "w3");
    w2 = truth_of(truth, layer, expert, "w2");
    for (uint64_t c = 0; c < h; c++)
        x[c] = (double)x32[c];
    for (uint64_t r = 0; r < i; r++) {
        double g = row_times(w1 + r * h, x, h) + (b1 ? (double)b1[r] : 0);
        double u = row_times(w3 + r * h, x, h) + (b3 ? (double)b3[r] : 0);

        if (biased)
            inner[r] =
                fmin(g, 7) / (1 + exp(-(double)1.702f * fmin(g, 7))) * (fmin(fmax(u, -7), 7) + 1);
        else
            inner[r] = g / (1 + exp(-g)) * u;
    }
    for (uint64_t r = 0; r < h; r++)
        y[r] += weight * (row_times(w2 + r * i, inner, i) + (b2 ? (double)b2[r] : 0));
    free(inner);
    free(x);
}

static void check_fixture(const char *name, bool biased)
{
    const int32_t ids[TOKENS * K] = {0, 1, 2, 0, 1, 2, 2, 1, -1, 0};
    const float weights[TOKENS * K] = {.5f, .25f, 1, -.75f, .125f, 2, .3f, .6f, 5, .9f};
    const mp_catalog_experts_options stored = {MP_SCHEME_COUNT, MP_SCHEME_COUNT, {0}};
    mp_forward_options how = {0};
    mp_catalog_experts experts;
    char path[256];

    snprintf(path, sizeof path, "testdata/fixtures/%s", name);
    mp_catalog_release(&catalog);
    cr_assert_eq(mp_catalog_open(&catalog, path, NULL, &err), 0, "%s: %s", name, err.message);
    snprintf(path, sizeof path, "testdata/fixtures/%s/truth.st", name);
    golden_file *truth = golden_open(path);
    const mp_moe_layer *layer = &catalog.layers[0];
    uint64_t n = TOKENS * catalog.hidden_size;
    float *x = malloc(n * sizeof *x);
    double *want = calloc(n, sizeof *want), *got = malloc(n * sizeof *got);
    const mp_batch batch = {TOKENS, K, x, ids, weights};

    mp_random_tokens(3, TOKENS, catalog.hidden_size, x);
    for (int t = 0; t < TOKENS; t++)
        for (int j = t * K; j < (t + 1) * K; j++)
            if (ids[j] >= 0)
                add_expert(truth, layer->prefix, ids[j], biased, x + t * catalog.hidden_size,
                           (double)weights[j], want + t * catalog.hidden_size);
    if (biased)
        cr_assert_eq(mp_model_activation(&catalog.config, layer->number, &how.activation, NULL,
                                         &how.weigh_input, &err),
                     0);
    cr_assert_eq(mp_catalog_experts_open(&experts, &catalog, layer, &stored, NULL, &err), 0, "%s",
                 err.message);
    cr_assert_eq(mp_forward(&experts.source, &how, &batch, NULL, got, &err), 0, "%s", err.message);
    /* The two scales of nvfp4 may be multiplied in either order. */
    double bound = layer->storage.scheme == MP_SCHEME_NVFP4 ? 1e-7 : 1e-13;
    mp_deviation d = mp_compare(got, want, n);
    cr_assert_leq(d.rel_l2, bound, "%s: relative L2 %g", name, d.rel_l2);
    mp_catalog_experts_release(&experts);
    golden_close(truth);
    free(x);
    free(want);
    free(got);
}

Test(forward_layer, computes_what_the_decoded_weights_say)
{
    static const char *const fixtures[] = {
        "ct-fp8-block",       "ct-fp8-tensor",    "ct-int8",        "ct-mxfp4",
        "ct-nvfp4",           "f4-mxfp4",         "glm-bf16",       "glm-fp8-channel",
        "kimi-k2-fp8",        "kimi-k25-int4",    "kimi-k3-mxfp4",  "llama4-bf16-fused-b",
        "minimax-m2-fp8",     "minimax-m3-mxfp8", "mixtral-bf16",   "mixtral-f16",
        "mixtral-f32",        "modelopt-nvfp4",   "modelslim-w8a8", "modelslim-w4a8-mxfp",
        "mistral-small4-fp8", "quark-mxfp4",      "qwen3next-fp8",  "qwen3-fp8-bf16scale",
        "qwen35-fused-a",     "qwen3vl-fused-b",  "v2-bf16",        "v4-base-fp8",
        "v4-modelopt-nvfp4",  "v41-fp4",
    };

    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++)
        check_fixture(fixtures[i], false);
}

Test(forward_layer, computes_gpt_oss_with_biases_in_either_form)
{
    check_fixture("gptoss-mxfp4", true);
    check_fixture("gptoss-bf16-fused-c", true);
}

/* ------------------------------------------------------------------------
 * Routers
 */

#define H 64

/* A model of BF16 experts and the router's tensors that a test has added. */
static void open_with(const char *config)
{
    for (unsigned e = 0; e < 4; e++)
        add_bf16_expert("model.layers.0", e, H, 32);
    put_text("config.json", config);
    expect_model();
}

static void expect_refusal(int code, const char *text)
{
    mp_layer_router router;
    float x[H] = {0}, weights[8];
    int32_t ids[8];
    int rc = mp_layer_router_open(&router, &catalog, &catalog.layers[0], &err);

    /* What only concerns choices is refused when there are some to make. */
    if (rc == 0)
        rc = mp_layer_route(&router, x, NULL, 1, NULL, ids, weights, &err);
    cr_assert_eq(rc, code, "%s", err.message);
    cr_assert_str_eq(err.message, text);
    mp_layer_router_release(&router);
}

#define QWEN "{\"model_type\": \"qwen3_moe\", \"num_experts_per_tok\": 2"

Test(forward_layer, reads_rules_of_config_json)
{
    mp_layer_router r;

    add_tensor(MP_BF16, 4, H, "model.layers.0.mlp.gate.weight");
    add_tensor(MP_F32, 4, 0, "model.layers.0.mlp.gate.e_score_correction_bias");
    open_with("{\"model_type\": \"deepseek_v3\", \"num_experts_per_tok\": 3, \"n_group\": 2,"
              "\"topk_group\": 1, \"routed_scaling_factor\": 2.5, \"norm_topk_prob\": false}");
    cr_assert_eq(mp_layer_router_open(&r, &catalog, &catalog.layers[0], &err), 0, "%s",
                 err.message);
    cr_assert_eq(r.router.scoring, MP_SCORE_SIGMOID);
    cr_assert_eq(r.router.k, 3);
    cr_assert_eq(r.router.num_experts, 4);
    cr_assert(r.router.n_group == 2 && r.router.topk_group == 1);
    cr_assert(!r.router.renormalize);
    cr_assert_eq(r.router.scale, 2.5f);
    cr_assert(r.router.bias && !r.logit_bias && !r.by_token && !r.shared_gate);
    mp_layer_router_release(&r);
}

Test(forward_layer, does_without_a_router_until_it_is_asked)
{
    mp_layer_router r;
    float x[H] = {0}, weights[2];
    int32_t ids[2];

    open_with(QWEN "}");
    cr_assert_eq(mp_layer_router_open(&r, &catalog, &catalog.layers[0], &err), 0, "%s",
                 err.message);
    cr_assert_eq(mp_layer_route(&r, x, NULL, 1, NULL, ids, weights, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "the layer has no router: neither gate.weight nor router.weight");
    mp_layer_router_release(&r);
}

Test(forward_layer, refuses_a_router_of_another_shape)
{
    add_tensor(MP_BF16, 5, H, "model.layers.0.mlp.gate.weight");
    open_with(QWEN "}");
    expect_refusal(MP_ERR_INPUT, "model.layers.0.mlp.gate.weight: shape [5, 64], expected [4, 64]");
}

Test(forward_layer, refuses_experts_that_are_not_fed_with_x)
{
    add_tensor(MP_BF16, 4, 2 * H, "model.layers.0.mlp.gate.weight");
    open_with(QWEN "}");
    expect_refusal(MP_ERR_UNSUPPORTED, "model.layers.0.mlp.gate.weight: takes 128 columns, the "
                                       "experts 64: what is between them is not computed");
}

Test(forward_layer, refuses_a_router_in_another_type)
{
    add_tensor(MP_I32, 4, H, "model.layers.0.mlp.gate.weight");
    open_with(QWEN "}");
    expect_refusal(MP_ERR_UNSUPPORTED,
                   "model.layers.0.mlp.gate.weight: I32, expected F32, BF16 or F16");
}

Test(forward_layer, refuses_rules_that_it_does_not_know)
{
    open_with("{\"model_type\": \"deepseek_v3\", \"num_experts_per_tok\": 2, "
              "\"scoring_func\": \"noisy\"}");
    expect_refusal(MP_ERR_UNSUPPORTED,
                   "config.json: scoring_func \"noisy\" is not softmax, sigmoid or sqrtsoftplus");
}

Test(forward_layer, refuses_more_choices_than_experts)
{
    open_with("{\"model_type\": \"qwen3_moe\", \"num_experts_per_tok\": 5}");
    expect_refusal(MP_ERR_INPUT, "config.json: 5 of 4 experts a token");
}

Test(forward_layer, refuses_activations_that_it_does_not_know)
{
    mp_activation activation;
    bool weigh_input;

    open_with(QWEN ", \"hidden_act\": \"gelu\"}");
    cr_assert_eq(mp_model_activation(&catalog.config, 0, &activation, NULL, &weigh_input, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message,
                     "config.json: hidden_act \"gelu\" is not silu, swigluoai or situ");
}

Test(forward_layer, wants_the_number_of_situ)
{
    mp_activation activation;
    bool weigh_input;

    open_with(QWEN ", \"hidden_act\": \"situ\"}");
    cr_assert_eq(mp_model_activation(&catalog.config, 0, &activation, NULL, &weigh_input, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message,
                     "config.json: hidden_act \"situ\" needs an activation_situ_beta above 0");
}

Test(forward_layer, reads_the_numbers_of_situ)
{
    mp_activation activation;
    bool weigh_input;

    open_with(QWEN ", \"hidden_act\": \"situ\", \"activation_situ_beta\": 4, "
                   "\"activation_situ_linear_beta\": 25}");
    cr_assert_eq(mp_model_activation(&catalog.config, 0, &activation, NULL, &weigh_input, &err), 0);
    cr_assert_eq(activation.situ, 4);
    cr_assert_eq(activation.situ_linear, 25);
}

Test(forward_layer, reads_situ_without_its_second_number)
{
    mp_activation activation;
    bool weigh_input;

    open_with(QWEN ", \"hidden_act\": \"situ\", \"activation_situ_beta\": 3}");
    cr_assert_eq(mp_model_activation(&catalog.config, 0, &activation, NULL, &weigh_input, &err), 0);
    cr_assert_eq(activation.situ, 3);
    cr_assert_eq(activation.situ_linear, 0);
}

Test(forward_layer, knows_what_families_do)
{
    static double limits[] = {0, 5};
    mp_config config = {.swiglu_limit = NAN,
                        .swiglu_alpha = NAN,
                        .swiglu_beta = NAN,
                        .swiglu_limits = limits,
                        .num_swiglu_limits = 2};
    mp_activation a, shared;
    bool weigh_input;

#define ACTIVATION_OF(type, layer)    \
    (strcpy(config.model_type, type), \
     mp_model_activation(&config, layer, &a, &shared, &weigh_input, &err))
    cr_assert_eq(ACTIVATION_OF("deepseek_v4", 0), 0);
    cr_assert(a.limit == 10 && a.alpha == 0 && a.beta == 0 && !weigh_input && shared.limit == 10);
    cr_assert_eq(ACTIVATION_OF("hy_v4", 0), 0);
    cr_assert(a.limit == 10 && shared.limit == 0, "20 in a shared expert is not clamped");
    cr_assert_eq(ACTIVATION_OF("gpt_oss", 0), 0);
    cr_assert(a.limit == 7 && a.alpha == 1.702f && a.beta == 1 && !weigh_input);
    cr_assert_eq(ACTIVATION_OF("llama4", 0), 0);
    cr_assert(a.limit == 0 && weigh_input);
    cr_assert_eq(ACTIVATION_OF("step3p5", 1), 0);
    cr_assert(a.late && a.limit == 5);
    cr_assert_eq(ACTIVATION_OF("step3p5", 2), 0);
    cr_assert(a.limit == 0, "past the end");
    config.swiglu_limit = 4;
    cr_assert_eq(ACTIVATION_OF("deepseek_v4", 0), 0);
    cr_assert(a.limit == 4);
    cr_assert_eq(ACTIVATION_OF("qwen3_moe", 0), 0);
    cr_assert(a.limit == 0, "a key that its code does not read");
    cr_assert_eq(ACTIVATION_OF("foo", 0), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message,
                     "config.json: what swiglu_limit does in model_type \"foo\" is not known");
    cr_assert_eq(ACTIVATION_OF("nemotron_h", 0), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, "activation relu2 of model_type \"nemotron_h\" is not computed");
#undef ACTIVATION_OF
}

/* Choices by token id, of zeros in the file: all to expert 0. */
Test(forward_layer, routes_by_token_id)
{
    const int64_t token_ids[2] = {3, 9};
    float x[2 * H] = {0}, weights[4];
    int32_t ids[4] = {7, 7, 7, 7};
    mp_layer_router r;

    for (unsigned e = 0; e < 4; e++)
        add_fp4_expert("layers.0", e, H, 32);
    add_tensor(MP_BF16, 4, H, "layers.0.ffn.gate.weight");
    add_tensor(MP_I64, 9, 2, "layers.0.ffn.gate.tid2eid");
    put_text("config.json", "{\"model_type\": \"deepseek_v4\", \"num_experts_per_tok\": 2}");
    expect_model();
    cr_assert_eq(mp_layer_router_open(&r, &catalog, &catalog.layers[0], &err), 0, "%s",
                 err.message);
    cr_assert_eq(r.vocab, 9);
    cr_assert_eq(mp_layer_route(&r, x, token_ids, 1, NULL, ids, weights, &err), 0, "%s",
                 err.message);
    cr_assert(ids[0] == 0 && ids[1] == 0 && weights[0] == 0.5f && weights[1] == 0.5f);
    cr_assert_eq(mp_layer_route(&r, x, token_ids, 2, NULL, ids, weights, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "tokens 0 to 1: id 9, the vocabulary has 9");
    cr_assert_eq(mp_layer_route(&r, x, NULL, 1, NULL, ids, weights, &err), MP_ERR_USAGE);
    cr_assert_str_eq(err.message, "this layer routes by token id, and there are none");
    mp_layer_router_release(&r);
}

Test(forward_layer, appends_shared_experts)
{
    const float x[2] = {0, 3}, weights[2] = {.25f, .5f};
    const int32_t ids[2] = {1, 2};
    float gate[1] = {1}, all_weights[6];
    int32_t all[6];
    mp_layer_router r = {.num_experts = 4, .hidden_size = 1, .shared = 2, .part = 1};

    mp_layer_add_shared(&r, x, 2, 1, 2, ids, weights, all, all_weights);
    cr_assert_arr_eq(all, ((const int32_t[]){1, 4, 5, 2, 4, 5}), sizeof all);
    cr_assert_arr_eq(all_weights, ((const float[]){.25f, 1, 1, .5f, 1, 1}), sizeof all_weights);
    r.shared_gate = gate;
    mp_layer_add_shared(&r, x, 2, 1, 2, ids, weights, all, all_weights);
    cr_assert_eq(all_weights[1], .5f);
    cr_assert_float_eq(all_weights[4], 1 / (1 + expf(-3)), 1e-6);
}

/* As Cohere averages them, and Klear mixes them. */
Test(forward_layer, weighs_routed_against_shared_experts)
{
    const float x[2] = {0, 3}, weights[2] = {.25f, .5f};
    const int32_t ids[2] = {1, 2};
    float mix[2] = {2, 1}, all_weights[4], shared[2];
    int32_t all[4];
    mp_layer_router r = {.num_experts = 4, .hidden_size = 1, .shared = 1, .part = .5f};

    mp_layer_add_shared(&r, x, 2, 1, 1, ids, weights, all, all_weights);
    cr_assert_arr_eq(all_weights, ((const float[]){.125f, .5f, .25f, .5f}), sizeof all_weights);
    r.part = 1;
    r.mix = mix;
    r.mix_bias[1] = 1;
    mp_layer_add_shared(&r, x, 2, 1, 1, ids, weights, all, all_weights);
    cr_assert_float_eq(all_weights[0], .25 / (1 + exp(1)), 1e-6);
    cr_assert_float_eq(all_weights[1], exp(1) / (1 + exp(1)), 1e-6);
    cr_assert_float_eq(all_weights[2], .5 / (1 + exp(-2)), 1e-6, "6 against 4");
    mp_layer_weigh_shared(&r, x, 2, shared);
    cr_assert_float_eq(shared[1], 1 / (1 + exp(2)), 1e-6);
}

Test(forward_layer, zero_experts_give_back_x)
{
    const float weights[6] = {.5f, .25f, 1, 2, .125f, 4};
    int32_t ids[6] = {0, 4, 3, 5, -1, 4};
    float identity[2];
    mp_layer_router r = {.num_experts = 4, .router.num_experts = 6};

    cr_assert(mp_layer_take_zero(&r, 2, 3, ids, weights, identity));
    cr_assert_arr_eq(ids, ((const int32_t[]){0, -1, 3, -1, -1, -1}), sizeof ids);
    cr_assert(identity[0] == .25f && identity[1] == 6);
}
