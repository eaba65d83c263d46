/* SPDX-License-Identifier: Apache-2.0 */
/* What the checkpoints of each family hold: a table row each, and the walk over layers
 * that they share. A new family is a row here, its config.json in synth_config.c, and a
 * form in synth_forms.c where it stores tensors in a new way. */
#include "pack/synth.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* Room for the names of a layer, its MoE block, an expert, and a matrix or other item:
 * each is the one before and a part out of a table. */
#define LAYER_NAME  64
#define BLOCK_NAME  96
#define EXPERT_NAME 160
#define ITEM_NAME   256

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const mp_synth_family families[] = {
    {
        .name = "deepseek_v4",
        .formats = {{MP_SCHEME_MXFP4, &mp_synth_mxfp4, &mp_synth_fp8_scale_e8m0},
                    {MP_SCHEME_FP8_BLOCK, &mp_synth_fp8_scale_f32, &mp_synth_fp8_scale_f32}},
        .norms = {"attn_norm.weight", "ffn_norm.weight"},
        .router_bias = "gate.bias",
        .token_table = "gate.tid2eid",
        .mtp = true,
        .config = mp_synth_config_v4,
    },
    {
        .name = "deepseek_v3",
        .formats = {{MP_SCHEME_FP8_BLOCK, &mp_synth_fp8_scale_inv_f32, &mp_synth_fp8_scale_inv_f32},
                    {MP_SCHEME_BF16, &mp_synth_bf16, &mp_synth_bf16}},
        .norms = {"input_layernorm.weight", "post_attention_layernorm.weight"},
        .router_bias = "gate.e_score_correction_bias",
        .dense = true,
        .mtp = true,
        .config = mp_synth_config_v3,
    },
    {
        .name = "qwen3_moe",
        .formats = {{MP_SCHEME_BF16, &mp_synth_bf16, &mp_synth_bf16},
                    {MP_SCHEME_FP8_BLOCK, &mp_synth_fp8_scale_inv_bf16,
                     &mp_synth_fp8_scale_inv_bf16}},
        .norms = {"input_layernorm.weight", "post_attention_layernorm.weight"},
        .dense = true,
        .config = mp_synth_config_qwen3,
    },
};

const mp_synth_family *mp_synth_family_find(const char *name)
{
    for (size_t i = 0; i < COUNT(families); i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    return NULL;
}

const char *mp_synth_family_name(size_t index)
{
    return index < COUNT(families) ? families[index].name : NULL;
}

bool mp_synth_scheme(const char *family, size_t index, mp_scheme *scheme)
{
    const mp_synth_family *row = mp_synth_family_find(family);

    if (!row || index >= MP_SYNTH_FORMATS || !row->formats[index].routed)
        return false;
    *scheme = row->formats[index].scheme;
    return true;
}

/* Adds the item "prefix.name". */
static int add(mp_synth_plan *plan, const mp_synth_form *form, const char *prefix, const char *name,
               uint64_t rows, uint64_t cols, mp_error *err)
{
    char text[ITEM_NAME];

    snprintf(text, sizeof text, "%s.%s", prefix, name);
    return mp_synth_plan_add(plan, form, text, rows, cols, err);
}

/* The three matrices of an expert or a dense MLP. */
static int add_mlp(mp_synth_plan *plan, const mp_synth_form *form, const char *prefix,
                   uint64_t width, mp_error *err)
{
    const char *const *names = plan->model->naming->projection;
    uint64_t hidden = plan->options->hidden_size;
    int rc;

    rc = add(plan, form, prefix, names[MP_GATE], width, hidden, err);
    if (rc == 0)
        rc = add(plan, form, prefix, names[MP_UP], width, hidden, err);
    if (rc == 0)
        rc = add(plan, form, prefix, names[MP_DOWN], hidden, width, err);
    return rc;
}

static int add_norms(mp_synth_plan *plan, const char *prefix, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < COUNT(plan->family->norms) && rc == 0; i++)
        rc = add(plan, &mp_synth_norm, prefix, plan->family->norms[i], 1,
                 plan->options->hidden_size, err);
    return rc;
}

/* The router: its weight, and what it selects by. */
static int add_router(mp_synth_plan *plan, const char *block, bool hash, mp_error *err)
{
    const mp_synth_options *options = plan->options;
    const mp_synth_family *family = plan->family;
    int rc = add(plan, &mp_synth_router, block, plan->model->router, options->num_experts,
                 options->hidden_size, err);

    if (rc == 0 && hash)
        rc = add(plan, &mp_synth_token_table, block, family->token_table, options->vocab_size,
                 options->top_k, err);
    else if (rc == 0 && family->router_bias)
        rc = add(plan, &mp_synth_bias, block, family->router_bias, 1, options->num_experts, err);
    return rc;
}

static int add_experts(mp_synth_plan *plan, const char *block, mp_error *err)
{
    const mp_synth_options *options = plan->options;
    const mp_naming *naming = plan->model->naming;
    char prefix[EXPERT_NAME];

    for (uint32_t e = 0; e < options->num_experts; e++) {
        snprintf(prefix, sizeof prefix, "%s.%s.%u", block, naming->experts, e);
        if (add_mlp(plan, plan->format->routed, prefix, options->intermediate_size, err) != 0)
            return err->code;
    }
    if (options->num_shared_experts == 0)
        return 0;
    snprintf(prefix, sizeof prefix, "%s.%s", block, naming->shared);
    return add_mlp(plan, plan->format->shared, prefix,
                   options->num_shared_experts * options->intermediate_size, err);
}

/* A layer's items. layer: its number among decoder layers; MTP blocks come behind them. */
static int add_layer(mp_synth_plan *plan, const char *prefix, uint32_t layer, mp_error *err)
{
    const mp_synth_options *options = plan->options;
    char block[BLOCK_NAME];
    int rc = add_norms(plan, prefix, err);

    snprintf(block, sizeof block, "%s.%s", prefix, plan->model->naming->block);
    if (rc == 0 && layer < options->num_dense)
        return add_mlp(plan, plan->format->shared, block, options->dense_intermediate_size, err);
    if (rc == 0)
        rc = add_router(plan, block, layer < options->num_hash_layers, err);
    if (rc == 0)
        rc = add_experts(plan, block, err);
    return rc;
}

int mp_synth_family_items(mp_synth_plan *plan, mp_error *err)
{
    const mp_family *model = plan->model;
    uint32_t layers = plan->options->num_layers;
    uint32_t all = layers + plan->options->num_mtp;
    char prefix[LAYER_NAME];
    int rc = 0;

    for (uint32_t i = 0; i < all && rc == 0; i++) {
        if (i >= layers && model->mtp_prefix)
            snprintf(prefix, sizeof prefix, "%s%u", model->mtp_prefix, i - layers);
        else
            snprintf(prefix, sizeof prefix, "%s%u", model->layer_prefix, i);
        rc = add_layer(plan, prefix, i, err);
    }
    return rc;
}
