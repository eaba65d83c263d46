/* SPDX-License-Identifier: Apache-2.0 */
/* The table of what model_types compute. */
#include "checkpoint/rules.h"

#include <string.h>

#define TINY 1e-20

/* clang-format off */
#define SOFTMAX .score = "softmax"
#define SIGMOID .score = "sigmoid", .bias = true, .groups = MP_GROUPS_OF_TWO
#define ALL .all_layers = true

static const mp_model_rule rules[] = {
    /* sigmoid, a bias of the choice, groups */
    {{"deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"}, SIGMOID, .epsilon = TINY, .scale = 1, .scale_assumed = true, .config_score = true},
    {{"glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe"}, SIGMOID, .epsilon = TINY, .scale = 1, .scale_assumed = true, .config_score = true},
    {{"solar_open", "mimo_v2_flash"}, SIGMOID, .epsilon = TINY, .scale = 1, .config_score = true},
    {{"dots1"}, SIGMOID, .renormalize = MP_RENORM_FALSE, .epsilon = TINY, .scale = 1, .config_score = true},
    {{"exaone_moe"}, SIGMOID, .epsilon = TINY, .scale = 1, .scale_assumed = true, .config_score = true},
    {{"bailing_moe_v2", "bailing_moe_linear", "bailing_hybrid", "sarvam_moe", "llada2_moe"}, SIGMOID, .epsilon = TINY, .scale = 1, .config_score = true, .widths = true},
    {{"hy_v3"}, SIGMOID, .epsilon = TINY, .scale = 2.826},
    {{"hy_v4"}, SIGMOID, .epsilon = TINY, .scale = 2.827, .act = MP_ACT_LIMITED, .limit = 10, .shared_unlimited = true},
    {{"glm5_next", "glm5_next_vl", "glm5_next_vl_text"}, SIGMOID, .epsilon = TINY, .scale = 1, .act = MP_ACT_LIMITED, .limit = 10},
    {{"afmoe"}, SIGMOID, .epsilon = TINY, .scale = 1, .config_score = true},
    {{"kimi_linear"}, SIGMOID, .epsilon = TINY, .scale = 1, .scale_assumed = true, .config_score = true},
    {{"kimi_k3"}, SIGMOID, .epsilon = TINY, .scale = 1, .scale_assumed = true, .config_score = true, .act = MP_ACT_SITU},
    {{"minimax_m2"}, SIGMOID, .renormalize = MP_RENORM_ALWAYS, ALL},
    {{"minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"}, SIGMOID, .renormalize = MP_RENORM_ALWAYS, .scale = 2, .act = MP_ACT_OAI, .widths = true},
    {{"laguna"}, SIGMOID, .renormalize = MP_RENORM_ALWAYS, .scale = 1, .config_score = true},
    {{"lfm2_moe"}, SIGMOID, .epsilon = 1e-6, .scale = 1},
    {{"Klear", "klear"}, SIGMOID, .mixed = true},
    {{"nemotron_h"}, SIGMOID, .epsilon = TINY, .scale = 1, .act = MP_ACT_RELU2},
    {{"step3p5", "step3p7"}, SIGMOID, .epsilon = TINY, .scale = 1, .config_score = true, .act = MP_ACT_LATE, .beside = true, .score_by_bias = true},
    {{"deepseek_v4", "deepseek_v41"}, .score = "sqrtsoftplus", .bias = true, .epsilon = TINY, .scale = 1, .config_score = true, .act = MP_ACT_LIMITED, .limit = 10, ALL},

    /* softmax */
    {{"qwen2_moe", "qwen3_moe"}, SOFTMAX, .renormalize = MP_RENORM_FALSE},
    {{"qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker"}, SOFTMAX},
    {{"qwen3_omni_moe_talker", "qwen3_omni_moe_talker_text"}, SOFTMAX, .renormalize = MP_RENORM_FALSE},
    {{"qwen3_next", "qwen3_vl_moe", "qwen3_vl_moe_text"}, SOFTMAX},
    {{"qwen3_5_moe", "qwen3_5_moe_text"}, SOFTMAX, ALL},
    {{"olmoe", "flex_olmo"}, SOFTMAX, .renormalize = MP_RENORM_FALSE, ALL},
    {{"deepseek_v2", "deepseek_vl_v2", "DeepseekOCR", "deepseek_ocr", "deepseek_ocr2"}, SOFTMAX, .renormalize = MP_RENORM_FALSE, .groups = MP_GROUPS_OF_V2, .epsilon = TINY, .scale = 1, .config_score = true, .bias = true},
    {{"mistral4"}, SOFTMAX, .groups = MP_GROUPS_OF_TWO, .epsilon = TINY, .scale = 1},
    {{"mistral_large_3"}, SOFTMAX, .groups = MP_GROUPS_OF_TWO, .renormalize = MP_RENORM_ALWAYS, .epsilon = TINY, .scale = 1},
    {{"bailing_moe"}, SOFTMAX, .epsilon = TINY, .config_score = true, .bias = true, .widths = true},
    {{"ernie4_5_moe"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, .bias = true, .norm_min = true},
    {{"hunyuan_v1_moe"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, ALL},
    {{"jamba"}, SOFTMAX, .renormalize = MP_RENORM_NEVER},
    {{"arctic"}, SOFTMAX, .renormalize = MP_RENORM_SEVERAL, .beside = true},
    {{"step3", "step3_text"}, SOFTMAX, .beside = true},
    {{"mixtral"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, ALL},
    {{"minimax", "minimax_text_01", "minimax_m1"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, ALL},
    {{"longcat_flash"}, SOFTMAX, .renormalize = MP_RENORM_FALSE, .epsilon = TINY, .scale = 6, .bias = true, ALL},

    /* softmax over the chosen logits, which is the same, renormalized */
    {{"gpt_oss"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, .by_logits = true, .logit_bias = true, .act = MP_ACT_OAI, ALL},
    {{"granitemoe", "granitemoeshared", "granitemoehybrid", "granitemoe_swa"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, .by_logits = true, .beside = true, ALL},
    {{"jetmoe"}, SOFTMAX, .renormalize = MP_RENORM_ALWAYS, .by_logits = true, .block_bias = true, ALL},
    {{"cohere2_moe"}, SOFTMAX, .by_logits = true, .config_score = true},

    /* others */
    {{"phimoe", "grinmoe"}, .score = "sparsemixer", .renormalize = MP_RENORM_NEVER, ALL},
    {{"llama4", "llama4_text"}, .score = "sigmoid", .renormalize = MP_RENORM_NEVER, .by_logits = true, .weigh_input = true},
    {{"gemma4", "gemma4_text"}, SOFTMAX, .act = MP_ACT_GELU, .beside = true, .refused = "router and experts of gemma4 have different inputs"},
};
/* clang-format on */

const char *mp_config_foreign_act(const mp_config *config, uint64_t layer)
{
    static const char *const silu[] = {"", "silu", "swish"};
    static const char *const names[] = {
        [MP_ACT_OAI] = "swigluoai", [MP_ACT_LATE] = "SwiGLU, clamped after SiLU",
        [MP_ACT_RELU2] = "relu2",   [MP_ACT_SITU] = "situ",
        [MP_ACT_GELU] = "gelu",
    };
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);
    mp_act_rule act = rule ? rule->act : MP_ACT_SILU;

    if (act == MP_ACT_LATE &&
        (layer >= config->num_swiglu_limits || config->swiglu_limits[layer] <= 0))
        act = MP_ACT_SILU;
    if (act != MP_ACT_SILU && act != MP_ACT_LIMITED)
        return names[act];
    for (size_t i = 0; i < sizeof silu / sizeof silu[0]; i++)
        if (strcmp(silu[i], config->hidden_act) == 0)
            return NULL;
    return config->hidden_act;
}

bool mp_is_ungated(const mp_config *config)
{
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);

    return rule && rule->act == MP_ACT_RELU2;
}

const mp_model_rule *mp_model_rule_of(const char *model_type)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        for (const char *const *type = rules[i].model_types; *type; type++)
            if (strcmp(*type, model_type) == 0)
                return &rules[i];
    return NULL;
}
