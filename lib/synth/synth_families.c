/* SPDX-License-Identifier: Apache-2.0 */
/* What the checkpoints of each family hold: a table row each, and the walk over layers that they
 * share. A new family is a row here, its formats in synth_formats.c, and a form in synth_forms.c
 * where it stores tensors in a new way.
 *
 *   layer   norms, then a dense MLP, or: router, routed experts, shared expert, latent projections
 *   names   "PREFIX.LAYER" . block . experts . id . projection . suffix of the form
 *
 * Attention, embeddings and the head are left out: nothing here reads them, and they would be most
 * of what there is to write. Layers are in order, MTP blocks behind them, under a prefix of their
 * own where the family has one. One thread. */
#include "synth/synth_formats.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/families.h"

/* Room for the names of a layer, its MoE block, an expert, and a matrix or other item:
 * each is the one before and a part out of a table. */
#define LAYER_NAME  64
#define BLOCK_NAME  96
#define EXPERT_NAME 160
#define ITEM_NAME   256

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* clang-format off */
#define NORMS {"input_layernorm.weight", "post_attention_layernorm.weight"}
#define V3_BIAS .router_bias = "gate.e_score_correction_bias", .bias = &mp_synth_bias_f32
#define V3_KEYS .width = "moe_intermediate_size", .experts = "n_routed_experts", \
    .top_k = "num_experts_per_tok", .shared = "n_shared_experts", \
    .dense = "first_k_dense_replace", .dense_width = "intermediate_size", \
    .scaling = "routed_scaling_factor"
#define V3_ROUTING "\"moe_layer_freq\": 1, \"scoring_func\": \"sigmoid\", " \
    "\"topk_method\": \"noaux_tc\", " \
    "\"norm_topk_prob\": true"
#define ONE_GROUP "\"n_group\": 1, \"topk_group\": 1, "
#define QWEN_KEYS .width = "moe_intermediate_size", .experts = "num_experts", \
    .top_k = "num_experts_per_tok", \
    .dense_list = "mlp_only_layers", .dense_width = "intermediate_size"
#define QWEN_ROUTING "{\"norm_topk_prob\": true, \"decoder_sparse_step\": 1, " \
    "\"router_aux_loss_coef\": 0.001, " \
    "\"output_router_logits\": false}"
#define LOCAL_KEYS .width = "intermediate_size", .experts = "num_local_experts", \
    .top_k = "num_experts_per_tok"

static const mp_synth_family families[] = {
    {"deepseek_v4", mp_synth_deepseek_v4_formats, {"attn_norm.weight", "ffn_norm.weight"},
     &mp_synth_table_bf16,
     .router_bias = "gate.bias", .bias = &mp_synth_bias_f32, .token_table = "gate.tid2eid",
     .by_tools = true, .mtp = true,
     .keys = {"DeepseekV4ForCausalLM", .width = "moe_intermediate_size",
              .experts = "n_routed_experts", .top_k = "num_experts_per_tok",
              .shared = "n_shared_experts", .hash = "num_hash_layers",
              .mtp = "num_nextn_predict_layers", .scaling = "routed_scaling_factor",
              .constants = "{\"scoring_func\": \"sqrtsoftplus\", \"topk_method\": \"noaux_tc\", "
                           "\"norm_topk_prob\": true, \"swiglu_limit\": 10.0}"}},
    {"deepseek_v3", mp_synth_fp8_formats, NORMS, &mp_synth_table_bf16, V3_BIAS,
     .by_tools = true, .dense = true, .mtp = true,
     .keys = {"DeepseekV3ForCausalLM", V3_KEYS, .mtp = "num_nextn_predict_layers", .groups = true,
              .constants = "{" V3_ROUTING "}"}},
    {"deepseek_v2", mp_synth_bf16_formats, NORMS, &mp_synth_table_bf16, .by_tools = true,
     .dense = true,
     .keys = {"DeepseekV2ForCausalLM", V3_KEYS,
              .constants = "{" ONE_GROUP "\"moe_layer_freq\": 1, \"scoring_func\": \"softmax\", "
                           "\"topk_method\": \"greedy\", \"norm_topk_prob\": false}"}},
    {"kimi_k2", mp_synth_kimi_k2_formats, NORMS, &mp_synth_table_bf16, V3_BIAS,
     .by_tools = true, .dense = true,
     .keys = {"KimiK25ForConditionalGeneration", "kimi_k25", "deepseek_v3", V3_KEYS,
              .text_quantization = true,
              .constants = "{" ONE_GROUP V3_ROUTING "}"}},
    {"glm_moe", mp_synth_bf16_fp8_formats, NORMS, &mp_synth_table_bf16, V3_BIAS,
     .by_tools = true, .dense = true, .mtp = true,
     .keys = {"Glm4MoeForCausalLM", V3_KEYS, .mtp = "num_nextn_predict_layers",
              .constants = "{" ONE_GROUP "\"norm_topk_prob\": true}"}},
    {"qwen3_moe", mp_synth_qwen3_formats, NORMS, &mp_synth_table_bf16, .by_tools = true,
     .dense = true,
     .keys = {"Qwen3MoeForCausalLM", QWEN_KEYS, .constants = QWEN_ROUTING}},
    {"qwen3_vl_moe", mp_synth_transposed_formats, NORMS, &mp_synth_table_bf16, .by_tools = true,
     .dense = true,
     .keys = {"Qwen3VLMoeForConditionalGeneration", .text = "qwen3_vl_moe_text", QWEN_KEYS,
              .constants = QWEN_ROUTING}},
    {"qwen3_next", mp_synth_bf16_fp8_formats, NORMS, &mp_synth_table_bf16,
     .shared = "shared_expert", .shared_gate = "shared_expert_gate.weight",
     .by_tools = true, .dense = true, .mtp = true,
     .keys = {"Qwen3NextForCausalLM", QWEN_KEYS, .shared_width = "shared_expert_intermediate_size",
              .constants = QWEN_ROUTING}},
    {"qwen3_5_moe", mp_synth_qwen3_5_formats, NORMS, &mp_synth_table_bf16,
     .shared = "shared_expert", .shared_gate = "shared_expert_gate.weight", .by_tools = true,
     .mtp = true,
     .keys = {"Qwen3_5MoeForConditionalGeneration", .text = "qwen3_5_moe_text",
              .width = "moe_intermediate_size", .experts = "num_experts",
              .top_k = "num_experts_per_tok",
              .shared_width = "shared_expert_intermediate_size", .constants = QWEN_ROUTING}},
    {"mixtral", mp_synth_bf16_formats, NORMS, &mp_synth_table_bf16, .by_tools = true,
     .keys = {"MixtralForCausalLM", LOCAL_KEYS, .constants = "{\"output_router_logits\": false}"}},
    {"gpt_oss", mp_synth_gpt_oss_formats, NORMS, &mp_synth_table_bf16,
     .router_bias = "router.bias", .bias = &mp_synth_bias_bf16, .biased = true,
     .keys = {"GptOssForCausalLM", LOCAL_KEYS, .constants = "{\"swiglu_limit\": 7.0}"}},
    {"minimax_m2", mp_synth_minimax_m2_formats, NORMS, &mp_synth_table_f32,
     .router_bias = "e_score_correction_bias", .bias = &mp_synth_bias_f32, .by_tools = true,
     .keys = {"MiniMaxM2ForCausalLM", LOCAL_KEYS,
              .constants = "{\"scoring_func\": \"sigmoid\", \"use_routing_bias\": true, "
                           "\"shared_intermediate_size\": 0}"}},
    {"minimax_m3", mp_synth_minimax_m3_formats, NORMS, &mp_synth_table_f32,
     .router_bias = "e_score_correction_bias", .bias = &mp_synth_bias_f32, .by_tools = true,
     .keys = {"MiniMaxM3SparseForConditionalGeneration", "minimax_m3_vl", "minimax_m3", LOCAL_KEYS,
              .shared = "n_shared_experts", .shared_width = "shared_intermediate_size",
              .moe_flags = "moe_layer_freq", .scaling = "routed_scaling_factor",
              .constants = "{\"scoring_func\": \"sigmoid\", \"use_routing_bias\": true, "
                           "\"hidden_act\": \"swigluoai\", "
                           "\"swiglu_alpha\": 1.702, \"swiglu_limit\": 7.0}"}},
    {"kimi_k3", mp_synth_kimi_k3_formats, NORMS, &mp_synth_table_bf16, V3_BIAS, .by_tools = true,
     .keys = {"KimiK3ForConditionalGeneration", .text = "kimi_linear",
              .width = "moe_intermediate_size", .experts = "num_experts",
              .top_k = "num_experts_per_token", .shared = "num_shared_experts",
              .scaling = "routed_scaling_factor", .latent = "routed_expert_hidden_size",
              .text_quantization = true,
              .constants = "{\"moe_renormalize\": true, "
                           "\"moe_router_activation_func\": \"sigmoid\", "
                           "\"num_expert_group\": 1, \"topk_group\": 1, "
                           "\"first_k_dense_replace\": 0, "
                           "\"moe_layer_freq\": 1}"}},
    {"llama4", mp_synth_transposed_formats, NORMS, &mp_synth_table_bf16, .by_tools = true,
     .keys = {"Llama4ForConditionalGeneration", .text = "llama4_text", LOCAL_KEYS,
              .constants = "{\"interleave_moe_layer_step\": 1}"}},
};
/* clang-format on */

const mp_synth_family *mp_synth_family_find(const char *name)
{
    for (size_t i = 0; i < COUNT(families); i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    return NULL;
}

uint64_t mp_synth_latents(const mp_synth_family *family)
{
    return family->keys.latent ? 2 : 1;
}

const char *mp_synth_family_name(size_t index)
{
    return index < COUNT(families) ? families[index].name : NULL;
}

/* Whether a list has a format of that scheme and style. */
static bool has(const mp_synth_format *list, const mp_synth_format *wanted)
{
    for (; list->routed; list++)
        if (list->scheme == wanted->scheme && list->style == wanted->style)
            return true;
    return false;
}

const mp_synth_format *mp_synth_family_format(const mp_synth_family *family, size_t index)
{
    const mp_synth_format *format = family->formats;

    for (; format->routed; format++)
        if (index-- == 0)
            return format;
    /* Formats of tools follow the family's own, without those that it has in a style of that
     * name. */
    for (format = mp_synth_tool_formats; family->by_tools && format->routed; format++)
        if (!has(family->formats, format) && index-- == 0)
            return format;
    return NULL;
}

bool mp_synth_scheme(const char *family, size_t index, mp_scheme *scheme, mp_synth_style *style)
{
    const mp_synth_family *row = mp_synth_family_find(family);
    const mp_synth_format *format = row ? mp_synth_family_format(row, index) : NULL;

    if (!format)
        return false;
    *scheme = format->scheme;
    if (style)
        *style = format->style;
    return true;
}

const char *mp_synth_style_name(mp_synth_style style)
{
    static const char *const names[MP_STYLE_COUNT] = {"usual", "vendor", "compressed-tensors",
                                                      "modelopt", "modelslim"};

    return names[style];
}

/* Adds the item "prefix.name". */
static int add(mp_synth_plan *plan, const mp_synth_form *form, const char *prefix, const char *name,
               uint64_t rows, uint64_t cols, mp_error *err)
{
    char text[ITEM_NAME];

    snprintf(text, sizeof text, "%s.%s", prefix, name);
    return mp_synth_plan_add(
        plan, &(mp_synth_item){.form = form, .name = text, .slices = 1, .rows = rows, .cols = cols},
        err);
}

/* Gate or up, whose global scale has to do for both. */
static int add_sharing(mp_synth_plan *plan, const mp_synth_form *form, const char *prefix,
                       const char *name, const char *other, uint64_t rows, uint64_t cols,
                       mp_error *err)
{
    /* Names of tables and numbers of at most 10 digits: they fit. */
    char text[ITEM_NAME], own[ITEM_NAME], partner[ITEM_NAME];

    snprintf(text, sizeof text, "%s.%s", prefix, name);
    snprintf(own, sizeof own, "%s.%s.weight", prefix, name);
    snprintf(partner, sizeof partner, "%s.%s.weight", prefix, other);
    return mp_synth_plan_add(plan,
                             &(mp_synth_item){.form = form,
                                              .name = text,
                                              .sources = {own, partner},
                                              .slices = 1,
                                              .rows = rows,
                                              .cols = cols},
                             err);
}

/* The hidden size of what is not a routed expert. */
static uint64_t model_size(const mp_synth_plan *plan)
{
    return mp_synth_latents(plan->family) * plan->options->hidden_size;
}

/* The three matrices of an expert or a dense MLP. */
static int add_mlp(mp_synth_plan *plan, const mp_synth_form *form, const char *prefix,
                   const char *const names[MP_PROJECTIONS], uint64_t hidden, uint64_t width,
                   mp_error *err)
{
    const char *gate = names[MP_GATE], *up = names[MP_UP];
    int rc;

    if (form->shares) {
        rc = add_sharing(plan, form, prefix, gate, up, width, hidden, err);
        if (rc == 0)
            rc = add_sharing(plan, form, prefix, up, gate, width, hidden, err);
    } else {
        rc = add(plan, form, prefix, gate, width, hidden, err);
        if (rc == 0)
            rc = add(plan, form, prefix, up, width, hidden, err);
    }
    if (rc == 0)
        rc = add(plan, form, prefix, names[MP_DOWN], hidden, width, err);
    return rc;
}

static int add_norms(mp_synth_plan *plan, const char *prefix, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < COUNT(plan->family->norms) && rc == 0; i++)
        rc = add(plan, &mp_synth_norm, prefix, plan->family->norms[i], 1, model_size(plan), err);
    return rc;
}

/* The router: its weight, and what it selects by. */
static int add_router(mp_synth_plan *plan, const char *block, bool hash, mp_error *err)
{
    const mp_synth_options *options = plan->options;
    const mp_synth_family *family = plan->family;
    int rc = add(plan, family->router, block, plan->model->router, options->num_experts,
                 model_size(plan), err);

    if (rc == 0 && hash)
        rc = add(plan, &mp_synth_token_table, block, family->token_table, options->vocab_size,
                 options->top_k, err);
    else if (rc == 0 && family->router_bias)
        rc = add(plan, family->bias, block, family->router_bias, 1, options->num_experts, err);
    return rc;
}

/* What leads to the routed experts' hidden size and back. */
static int add_latent(mp_synth_plan *plan, const char *block, mp_error *err)
{
    uint64_t latent = plan->options->hidden_size, model = model_size(plan);
    int rc;

    if (!plan->family->keys.latent)
        return 0;
    rc = add(plan, &mp_synth_bf16, block, "routed_expert_down_proj", latent, model, err);
    if (rc == 0)
        rc = add(plan, &mp_synth_norm, block, "routed_expert_norm.weight", 1, latent, err);
    if (rc == 0)
        rc = add(plan, &mp_synth_bf16, block, "routed_expert_up_proj", model, latent, err);
    return rc;
}

/* A stack of all experts' gate and up, or down, and its bias. */
static int add_stack(mp_synth_plan *plan, const mp_synth_form *form, const char *stack, bool down,
                     mp_error *err)
{
    const char *const *names = plan->model->naming->projection;
    const char *name = down ? names[MP_DOWN] : "gate_up_proj";
    uint64_t hidden = plan->options->hidden_size, width = plan->options->intermediate_size;
    uint32_t experts = plan->options->num_experts;
    char text[ITEM_NAME], bias[64];
    mp_synth_item item = {
        .form = form,
        .name = text,
        .sources = {down ? names[MP_DOWN] : names[MP_GATE], down ? NULL : names[MP_UP]},
        .stack = stack,
        .slices = experts,
        .rows = down ? hidden : 2 * width,
        .cols = down ? width : hidden,
    };

    snprintf(text, sizeof text, "%s.%s", stack, name);
    if (mp_synth_plan_add(plan, &item, err) != 0 || !plan->family->biased)
        return err->code;
    snprintf(bias, sizeof bias, "%s_bias", name);
    return add(plan, &mp_synth_table_bf16, stack, bias, experts, item.rows, err);
}

static int add_routed(mp_synth_plan *plan, const mp_synth_form *form, const char *block,
                      mp_error *err)
{
    const mp_synth_options *options = plan->options;
    const mp_naming *naming = plan->model->naming;
    char prefix[EXPERT_NAME];

    if (mp_synth_convention(form)->fusion != MP_FUSION_NONE) {
        snprintf(prefix, sizeof prefix, "%s.%s", block, naming->experts);
        int rc = add_stack(plan, form, prefix, false, err);
        return rc == 0 ? add_stack(plan, form, prefix, true, err) : rc;
    }
    for (uint32_t e = 0; e < options->num_experts; e++) {
        snprintf(prefix, sizeof prefix, "%s.%s.%u", block, naming->experts, e);
        if (add_mlp(plan, form, prefix, naming->projection, options->hidden_size,
                    options->intermediate_size, err) != 0)
            return err->code;
    }
    return 0;
}

static int add_shared(mp_synth_plan *plan, const char *block, mp_error *err)
{
    const mp_synth_options *options = plan->options;
    const mp_naming *naming = plan->model->naming;
    const mp_synth_family *family = plan->family;
    char prefix[EXPERT_NAME];

    if (options->num_shared_experts == 0)
        return 0;
    snprintf(prefix, sizeof prefix, "%s.%s", block,
             family->shared ? family->shared : naming->shared);
    int rc =
        add_mlp(plan, plan->format->shared, prefix, naming->shared_projection, model_size(plan),
                options->num_shared_experts * options->intermediate_size, err);
    if (rc == 0 && family->shared_gate)
        rc = add(plan, &mp_synth_table_bf16, block, family->shared_gate, 1, model_size(plan), err);
    return rc;
}

/* A layer's items. layer: its number among decoder layers; MTP blocks come behind them. */
static int add_layer(mp_synth_plan *plan, const char *prefix, uint32_t layer, mp_error *err)
{
    const mp_synth_options *options = plan->options;
    const mp_synth_format *format = plan->format;
    bool mtp = layer >= options->num_layers;
    char block[BLOCK_NAME];
    int rc = add_norms(plan, prefix, err);

    snprintf(block, sizeof block, "%s.%s", prefix, plan->model->naming->block);
    /* A dense layer has no experts; its matrices are named like an expert's, without a number. */
    if (rc == 0 && layer < options->num_dense)
        return add_mlp(plan, format->shared, block, plan->model->naming->projection,
                       model_size(plan), options->dense_intermediate_size, err);
    if (rc == 0)
        rc = add_router(plan, block, layer < options->num_hash_layers, err);
    if (rc == 0)
        rc = add_routed(plan, mtp && format->mtp ? format->mtp : format->routed, block, err);
    if (rc == 0)
        rc = add_shared(plan, block, err);
    if (rc == 0)
        rc = add_latent(plan, block, err);
    return rc;
}

int mp_synth_family_items(mp_synth_plan *plan, mp_error *err)
{
    const mp_family *model = plan->model;
    const char *layer_prefix = plan->format->prefix ? plan->format->prefix : model->layer_prefix;
    uint32_t layers = plan->options->num_layers;
    uint32_t all = layers + plan->options->num_mtp;
    char prefix[LAYER_NAME];
    int rc = 0;

    for (uint32_t i = 0; i < all && rc == 0; i++) {
        if (i >= layers && model->mtp_prefix)
            snprintf(prefix, sizeof prefix, "%s%u", model->mtp_prefix, i - layers);
        else
            snprintf(prefix, sizeof prefix, "%s%u", layer_prefix, i);
        rc = add_layer(plan, prefix, i, err);
    }
    return rc;
}
