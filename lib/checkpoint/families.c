/* SPDX-License-Identifier: Apache-2.0 */
/* Which families there are, and how each names its tensors. */
#include "checkpoint/families.h"

#include <string.h>

/* clang-format off */
#define W123 {"w1", "w3", "w2"}
#define PROJ {"gate_proj", "up_proj", "down_proj"}

static const mp_naming ffn_w123 = {"ffn", "experts", "shared_experts", W123, W123};
static const mp_naming mlp_proj = {"mlp", "experts", "shared_experts", PROJ, PROJ};
static const mp_naming sparse_w123 = {"block_sparse_moe", "experts", "shared_experts", W123, PROJ};
static const mp_naming forward_proj = {"feed_forward", "experts", "shared_expert", PROJ, PROJ};
static const mp_naming mixer_proj = {"mixer", "experts", "shared_experts", PROJ, PROJ};
static const mp_naming moe_proj = {"moe", "experts", "shared_experts", PROJ, PROJ};
static const mp_naming bare_w123 = {"", "experts", "shared_experts", W123, W123};

static const mp_naming *const namings[] = {&ffn_w123, &mlp_proj, &sparse_w123, &forward_proj,
                                           &mixer_proj, &moe_proj, &bare_w123};

const char *const mp_names_proj[MP_PROJECTIONS] = PROJ;
const char *const mp_names_w123[MP_PROJECTIONS] = W123;
const char *const mp_names_linear[MP_PROJECTIONS] = {"linear_gate", "up_proj", "down_proj"};

/* Of families with one naming, the first is taken where config.json does not decide; among
 * them, the first with or without shared experts, as the checkpoint has them. */
static const mp_family families[] = {
    {"deepseek_v4", {"deepseek_v4", "deepseek_v41"}, "layers.", "mtp.", &ffn_w123, "gate.weight", true, false},
    {"deepseek_v3", {"deepseek_v3", "deepseek_v32"}, "model.layers.", NULL, &mlp_proj, "gate.weight", true, false},
    {"deepseek_v2", {"deepseek_v2"}, "model.layers.", NULL, &mlp_proj, "gate.weight", true, false},
    {"kimi_k2", {"kimi_k2", "kimi_k25"}, "language_model.model.layers.", NULL, &mlp_proj, "gate.weight", true, false},
    {"glm_moe", {"glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "glm4v_moe"}, "model.layers.", NULL, &mlp_proj, "gate.weight", true, false},
    {"qwen3_moe", {"qwen3_moe"}, "model.layers.", NULL, &mlp_proj, "gate.weight", false, false},
    {"qwen3_vl_moe", {"qwen3_vl_moe", "qwen3_vl_moe_text"}, "model.language_model.layers.", NULL, &mlp_proj, "gate.weight", false, false},
    {"gpt_oss", {"gpt_oss"}, "model.layers.", NULL, &mlp_proj, "router.weight", false, false},
    {"qwen3_next", {"qwen3_next"}, "model.layers.", "mtp.layers.", &mlp_proj, "gate.weight", true, true},
    {"qwen3_5_moe", {"qwen3_5_moe", "qwen3_5_moe_text"}, "model.language_model.layers.", "mtp.layers.", &mlp_proj, "gate.weight", true, true},
    {"mixtral", {"mixtral", "phimoe"}, "model.layers.", NULL, &sparse_w123, "gate.weight", false, false},
    {"minimax_m2", {"minimax_m2", "minimax"}, "model.layers.", NULL, &sparse_w123, "gate.weight", false, false},
    {"minimax_m3", {"minimax_m3", "minimax_m3_vl"}, "language_model.model.layers.", NULL, &sparse_w123, "gate.weight", true, false},
    {"kimi_k3", {"kimi_k3", "kimi_linear"}, "language_model.model.layers.", NULL, &sparse_w123, "gate.weight", true, false},
    {"llama4", {"llama4", "llama4_text"}, "language_model.model.layers.", NULL, &forward_proj, "router.weight", true, false},
};
/* clang-format on */

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

const mp_family *mp_family_of_type(const char *model_type)
{
    for (size_t i = 0; i < COUNT(families); i++)
        for (const char *const *type = families[i].model_types; *type; type++)
            if (strcmp(*type, model_type) == 0)
                return &families[i];
    return NULL;
}

static bool same_projections(const mp_naming *a, const mp_naming *b)
{
    return strcmp(a->projection[MP_GATE], b->projection[MP_GATE]) == 0;
}

bool mp_naming_same(const mp_naming *a, const mp_naming *b)
{
    return strcmp(a->block, b->block) == 0 && same_projections(a, b);
}

/* The first family that `alike` finds alike: with or without shared experts, else any. */
static const mp_family *first_alike(bool (*alike)(const mp_naming *a, const mp_naming *b),
                                    const mp_naming *naming, bool has_shared)
{
    for (size_t i = 0; i < COUNT(families); i++)
        if (alike(families[i].naming, naming) && families[i].shared == has_shared)
            return &families[i];
    for (size_t i = 0; i < COUNT(families); i++)
        if (alike(families[i].naming, naming))
            return &families[i];
    return NULL;
}

const mp_family *mp_family_of_naming(const mp_naming *naming, bool has_shared)
{
    const mp_family *family = first_alike(mp_naming_same, naming, has_shared);

    return family ? family : first_alike(same_projections, naming, has_shared);
}
