/* SPDX-License-Identifier: Apache-2.0 */
/* The engines: which backends, runners, platforms and flags each has, and its rules in the order in
 * which it applies them. What a rule says is in the file of its engine; a table of values is beside
 * the rule that reads it.
 *
 * An engine is data: a record below and a list of functions. Rules read what earlier ones have
 * written into the resolution, so their order is the engine's own order of hooks, and part of the
 * answer: a runner chosen by the model is refused by the limits behind it, not by those before. The
 * same rule may stand in several lists.
 *
 * Plain tables; no state. */
#include "engine/engines.h"

#include <string.h>

#include "base/error.h"

#define B(name) MP_BIT(MP_A2A_##name)
#define P(name) MP_BIT(MP_PLATFORM_##name)

#define SGLANG_BACKENDS                                                                         \
    (B(NONE) | B(DEEPEP) | B(MOONCAKE) | B(NIXL) | B(MORI) | B(ASCEND_FUSEEP) | B(FLASHINFER) | \
     B(MEGAMOE))
#define OLD_PLATFORMS (P(CUDA_SM100) | P(CUDA_SM90) | P(HIP) | P(NPU))
#define ALL_PLATFORMS (OLD_PLATFORMS | P(CUDA_SM120))

static const char *const sglang_0_5_15_flags[] = {"--runner",    "--deepep-mode", "--tokens",
                                                  "--dp-tokens", "--capture",     NULL};
/* Every flag that is not for every engine is among these. */
static const char *const sglang_flags[] = {"--runner",
                                           "--deepep-mode",
                                           "--tokens",
                                           "--dp-tokens",
                                           "--capture",
                                           "--dp",
                                           "--attn-cp",
                                           "--prefill-cp",
                                           "--pp",
                                           "--dynamic-chunking",
                                           "--role",
                                           "--graph-bs",
                                           "--overlap",
                                           "--draft-tokens",
                                           "--chunked-prefill",
                                           "--w4a4",
                                           "--waterfill",
                                           "--eplb",
                                           "--fuseep-mode",
                                           "--deepep-dtype",
                                           "--flashinfer-max-tokens",
                                           NULL};
static const char *const vllm_flags[] = {"--eplb", NULL};
static const char *const trtllm_flags[] = {"--dp", "--eplb", NULL};

/* Numbers are those of the rules in moepack-plan(1). The layout (6) comes before the forward pass
 * (5), which asks whether weights are built. */
static mp_rule *const sglang_0_5_15_rules[] = {
    mp_rule_a2a,            /* 1 */
    mp_rule_ep_size,        /* 2 */
    mp_rule_dispatcher,     /* 4 */
    mp_rule_fix_memory,     /* 3 */
    mp_rule_megamoe_layout, /* 6 */
    mp_rule_use_mega_moe,   /* 5 */
    mp_rule_deepep_bf16,    /* 7 */
    mp_rule_fuseep,         /* 8 */
    mp_rule_deepep_npu,     /* 8 */
    mp_rule_target,
    mp_rule_waterfill, /* 9 */
    NULL,
};

static mp_rule *const sglang_rules[] = {
    mp_sglang_aliases,
    mp_sglang_start_of_megamoe,
    mp_sglang_runner_by_model,
    mp_sglang_runner_limits,
    mp_sglang_waterfill_backend,
    mp_sglang_backend_limits,
    mp_sglang_name_backend,
    mp_rule_ep_size,
    mp_rule_dispatcher,
    mp_sglang_layout,
    mp_sglang_shapes,
    mp_sglang_token_budget,
    mp_sglang_use_mega_moe,
    mp_sglang_memory,
    mp_sglang_shared_experts,
    mp_rule_deepep_bf16,
    mp_sglang_dispatch_dtype,
    mp_rule_fuseep,
    mp_rule_deepep_npu,
    mp_sglang_gate_and_up,
    mp_sglang_flashinfer_megamoe,
    mp_rule_target,
    mp_rule_waterfill,
    mp_sglang_without_effect,
    mp_rule_loader,
    NULL,
};

static mp_rule *const vllm_rules[] = {
    mp_vllm_backend,
    mp_rule_ep_of_ranks,
    mp_vllm_mega_moe,
    mp_vllm_redundancy,
    mp_rule_target,
    mp_rule_loader,
    NULL,
};

static mp_rule *const trtllm_rules[] = {
    mp_trtllm_backend, mp_rule_ep_of_ranks, mp_trtllm_mega_moe,
    mp_rule_target,    mp_rule_loader,      NULL,
};

static const mp_engine_table tables[MP_ENGINE_COUNT] = {
    [MP_ENGINE_SGLANG_0_5_15] =
        {
            .backends = SGLANG_BACKENDS | B(CUSTOMIZED),
            .runners = MP_BIT(MP_RUNNER_AUTO) | MP_BIT(MP_RUNNER_TRITON) |
                       MP_BIT(MP_RUNNER_DEEP_GEMM) | MP_BIT(MP_RUNNER_FLASHINFER_TRTLLM) |
                       MP_BIT(MP_RUNNER_CUTLASS),
            .platforms = OLD_PLATFORMS,
            .megamoe = MP_A2A_MEGAMOE,
            .flags = sglang_0_5_15_flags,
            .rules = sglang_0_5_15_rules,
        },
    [MP_ENGINE_SGLANG_2026_09] =
        {
            .backends =
                SGLANG_BACKENDS | B(DEEPEP_V2) | B(PPLX) | B(ASCEND_TP) | B(FLASHINFER_MEGAMOE),
            .runners = MP_BIT(MP_RUNNER_COUNT) - 1,
            .platforms = ALL_PLATFORMS,
            .megamoe = MP_A2A_MEGAMOE,
            .flags = sglang_flags,
            .rules = sglang_rules,
            .placement = "sglang",
            .loader = "sglang.srt.plugins",
        },
    [MP_ENGINE_VLLM_2026_09] =
        {
            .backends = B(MEGAMOE) | B(AUTO) | B(DEEP_GEMM_MEGA_MOE) | B(FLASHINFER_EP_DEEP_GEMM) |
                        B(FLASHINFER_EP_CUTEDSL),
            .platforms = ALL_PLATFORMS,
            .backend = MP_A2A_AUTO,
            .megamoe = MP_A2A_DEEP_GEMM_MEGA_MOE,
            .flags = vllm_flags,
            .rules = vllm_rules,
            .loader = "vllm.general_plugins",
        },
    [MP_ENGINE_TRTLLM_2026_09] =
        {
            .backends = B(MEGAMOE) | B(AUTO) | B(MEGAMOE_DEEPGEMM),
            .platforms = ALL_PLATFORMS,
            .backend = MP_A2A_AUTO,
            .megamoe = MP_A2A_MEGAMOE_DEEPGEMM,
            .flags = trtllm_flags,
            .rules = trtllm_rules,
            .placement = "trtllm",
            .loader = "checkpoint loader",
        },
};

const mp_engine_table *mp_engine_table_of(mp_engine engine)
{
    return &tables[engine];
}

static bool is_in(const char *const *list, const char *flag)
{
    while (*list && strcmp(*list, flag) != 0)
        list++;
    return *list != NULL;
}

bool mp_engine_takes(mp_engine engine, const char *flag)
{
    /* A flag that no list of the newest SGLang has is for every engine. */
    return !is_in(sglang_flags, flag) || is_in(tables[engine].flags, flag);
}

int mp_backend_check_flags(const mp_backend_flags *flags, mp_error *err)
{
    const mp_engine_table *t = &tables[flags->engine];
    const char *engine = mp_engine_name(flags->engine);

    if (flags->backend_given && !(t->backends & MP_BIT(flags->backend)))
        return mp_fail(err, MP_ERR_USAGE, "there are no rules for --backend %s of %s",
                       mp_a2a_name(flags->backend), engine);
    if (flags->runner != MP_RUNNER_AUTO && !(t->runners & MP_BIT(flags->runner)))
        return mp_fail(err, MP_ERR_USAGE, "there are no rules for --runner %s of %s",
                       mp_runner_name(flags->runner), engine);
    if (!(t->platforms & MP_BIT(flags->platform)))
        return mp_fail(err, MP_ERR_USAGE, "there are no rules for --platform %s of %s",
                       mp_platform_name(flags->platform), engine);
    return 0;
}
