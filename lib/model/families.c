/* SPDX-License-Identifier: Apache-2.0 */
/* Which families there are, and how each names its tensors. */
#include "model/families.h"

#include <string.h>

static const mp_naming ffn_w123 = {
    "ffn", "experts", "shared_experts", {"w1", "w3", "w2"},
};
static const mp_naming mlp_proj = {
    "mlp", "experts", "shared_experts", {"gate_proj", "up_proj", "down_proj"},
};

static const mp_naming *const namings[] = {&ffn_w123, &mlp_proj};

static const mp_family families[] = {
    {
        .name = "deepseek_v4",
        .model_types = {"deepseek_v4"},
        .layer_prefix = "layers.",
        .mtp_prefix = "mtp.",
        .naming = &ffn_w123,
        .router = "gate.weight",
        .shared = true,
    },
    {
        .name = "deepseek_v3",
        .model_types = {"deepseek_v3", "deepseek_v32"},
        .layer_prefix = "model.layers.",
        .mtp_prefix = NULL,
        .naming = &mlp_proj,
        .router = "gate.weight",
        .shared = true,
    },
    {
        .name = "qwen3_moe",
        .model_types = {"qwen3_moe"},
        .layer_prefix = "model.layers.",
        .mtp_prefix = NULL,
        .naming = &mlp_proj,
        .router = "gate.weight",
        .shared = false,
    },
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

const mp_family *mp_families(size_t *count)
{
    *count = COUNT(families);
    return families;
}

const mp_family *mp_family_find(const char *name)
{
    for (size_t i = 0; i < COUNT(families); i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    return NULL;
}

const mp_naming *mp_naming_of_block(const char *block, size_t length)
{
    for (size_t i = 0; i < COUNT(namings); i++)
        if (strlen(namings[i]->block) == length && memcmp(namings[i]->block, block, length) == 0)
            return namings[i];
    return NULL;
}

const mp_family *mp_family_of_model_type(const char *model_type)
{
    for (size_t i = 0; i < COUNT(families); i++)
        for (const char *const *type = families[i].model_types; *type; type++)
            if (strcmp(*type, model_type) == 0)
                return &families[i];
    return NULL;
}

const mp_family *mp_family_of_naming(const mp_naming *naming, bool has_shared)
{
    for (size_t i = 0; i < COUNT(families); i++)
        if (families[i].naming == naming && families[i].shared == has_shared)
            return &families[i];
    for (size_t i = 0; i < COUNT(families); i++)
        if (families[i].naming == naming)
            return &families[i];
    return NULL;
}
