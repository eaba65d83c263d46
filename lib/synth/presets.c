/* SPDX-License-Identifier: Apache-2.0 */
/* Shapes of released models, from their config.json. */
#include "synth/synth.h"

#include <string.h>

static const mp_preset presets[] = {
    {
        "deepseek-v4-flash",
        {
            .family = "deepseek_v4",
            .scheme = MP_SCHEME_MXFP4,
            .hidden_size = 4096,
            .intermediate_size = 2048,
            .num_experts = 256,
            .num_shared_experts = 1,
            .top_k = 6,
            .num_layers = 43,
            .num_hash_layers = 3,
            .num_mtp = 1,
            .vocab_size = 129280,
            .routed_scaling_factor = 1.5,
        },
    },
    {
        "deepseek-v4-pro",
        {
            .family = "deepseek_v4",
            .scheme = MP_SCHEME_MXFP4,
            .hidden_size = 7168,
            .intermediate_size = 3072,
            .num_experts = 384,
            .num_shared_experts = 1,
            .top_k = 6,
            .num_layers = 61,
            .num_hash_layers = 3,
            .num_mtp = 1,
            .vocab_size = 129280,
            .routed_scaling_factor = 2.5,
        },
    },
    {
        "deepseek-v3",
        {
            .family = "deepseek_v3",
            .scheme = MP_SCHEME_FP8_BLOCK,
            .hidden_size = 7168,
            .intermediate_size = 2048,
            .dense_intermediate_size = 18432,
            .num_experts = 256,
            .num_shared_experts = 1,
            .top_k = 8,
            .num_layers = 61,
            .num_dense = 3,
            .num_mtp = 1,
            .vocab_size = 129280,
            .routed_scaling_factor = 2.5,
        },
    },
    {
        "qwen3-30b-a3b",
        {
            .family = "qwen3_moe",
            .scheme = MP_SCHEME_BF16,
            .hidden_size = 2048,
            .intermediate_size = 768,
            .dense_intermediate_size = 6144,
            .num_experts = 128,
            .top_k = 8,
            .num_layers = 48,
            .vocab_size = 151936,
        },
    },
    {
        "kimi-k2",
        {
            .family = "kimi_k2",
            .scheme = MP_SCHEME_FP8_BLOCK,
            .hidden_size = 7168,
            .intermediate_size = 2048,
            .dense_intermediate_size = 18432,
            .num_experts = 384,
            .num_shared_experts = 1,
            .top_k = 8,
            .num_layers = 61,
            .num_dense = 1,
            .vocab_size = 163840,
            .routed_scaling_factor = 2.827,
        },
    },
    {
        "gpt-oss-120b",
        {
            .family = "gpt_oss",
            .scheme = MP_SCHEME_MXFP4,
            .hidden_size = 2880,
            .intermediate_size = 2880,
            .num_experts = 128,
            .top_k = 4,
            .num_layers = 36,
            .vocab_size = 201088,
        },
    },
};

#define COUNT (sizeof(presets) / sizeof(presets[0]))

const mp_preset *mp_presets(size_t *count)
{
    *count = COUNT;
    return presets;
}

const mp_preset *mp_preset_find(const char *name)
{
    for (size_t i = 0; i < COUNT; i++)
        if (strcmp(presets[i].name, name) == 0)
            return &presets[i];
    return NULL;
}
