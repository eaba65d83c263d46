/* SPDX-License-Identifier: Apache-2.0 */
/* engine/rules.h - the rules by which the engine resolves, one function each, and how they
 * write down what they conclude. */
#ifndef MP_ENGINE_RULES_H
#define MP_ENGINE_RULES_H

#include "engine/backend.h"
#include "engine/environment.h"

/* What the rules have in common. */
typedef struct mp_resolution {
    mp_backend *backend; /* that is being resolved */
    const mp_backend_flags *flags;
    const mp_backend_model *model;
    const mp_env *variables; /* all of them, as they are set */
    mp_engine_env env;
    const char *backend_by; /* what decided on the backend */
    const char *backend_why;
    const char *runner_by;
    const char *runner_why;
    const char *mode_by;       /* what decided on FuseEP's mode */
    bool flashinfer_runner;    /* MegaMoE's backend with runner flashinfer_megamoe */
    bool needs_budget;         /* the model has no ordinary path for MoE layers */
    const char *unbuilt_by;    /* what decided that there is no layout */
    const char *mma;           /* of the layout; null without one */
    const char *fusion_off_by; /* what turns the fusion of shared experts off; null: nothing */
    bool out_of_memory;        /* a decision is lost */
} mp_resolution;

/* A rule. MP_ERR_INPUT, MP_ERR_UNSUPPORTED: it ends there. */
typedef int mp_rule(mp_resolution *r, mp_error *err);

/* Writes down a decision; `why` is a format. */
void mp_decide(mp_resolution *r, const char *what, const char *value, const char *decided_by,
               const char *why, ...) __attribute__((format(printf, 5, 6)));
void mp_decide_number(mp_resolution *r, const char *what, uint64_t value, const char *decided_by,
                      const char *why, ...) __attribute__((format(printf, 5, 6)));

/* Writes down why the engine would not start, and what would not do what was asked for. */
#define mp_refuse(r, ...) mp_problem(&(r)->backend->refusals, __VA_ARGS__)
#define mp_warn(r, ...)   mp_problem(&(r)->backend->warnings, __VA_ARGS__)

/* The most tokens that a rank has in the forward pass, and the flag that says so; false where
 * none does. */
bool mp_max_tokens(const mp_backend_flags *flags, uint64_t *tokens, const char **flag);

/* MP_ERR_INPUT where nothing gives the number of experts a token. */
int mp_need_topk(const mp_backend_model *model, mp_error *err);

bool mp_text_is(const char *text, const char *word);

/* Whether a text is one of a list that null ends. */
bool mp_text_among(const char *text, const char *const *list);

/* Whether MegaMoE's kernels compute the model's activation, and FuseEP's: gated ones. A warning
 * where it has parameters of which it is not known whether they are handed on. */
bool mp_activation_fits(mp_resolution *r);

/* resolve.c: for several engines */
mp_rule mp_rule_a2a, mp_rule_ep_size, mp_rule_ep_of_ranks, mp_rule_dispatcher, mp_rule_target,
    mp_rule_waterfill, mp_rule_loader;

/* megamoe_0_5_15.c */
mp_rule mp_rule_fix_memory, mp_rule_megamoe_layout, mp_rule_use_mega_moe;

/* deepep.c */
mp_rule mp_rule_deepep_bf16, mp_rule_deepep_npu, mp_sglang_dispatch_dtype;

/* fuseep.c */
mp_rule mp_rule_fuseep;

/* sglang_backend.c */
mp_rule mp_sglang_aliases, mp_sglang_start_of_megamoe, mp_sglang_waterfill_backend,
    mp_sglang_backend_limits, mp_sglang_name_backend, mp_sglang_flashinfer_megamoe;

/* sglang_runner.c */
mp_rule mp_sglang_runner_by_model, mp_sglang_runner_limits, mp_sglang_gate_and_up;

/* sglang_megamoe.c */
mp_rule mp_sglang_layout, mp_sglang_shapes, mp_sglang_use_mega_moe, mp_sglang_memory,
    mp_sglang_shared_experts, mp_sglang_without_effect;

/* sglang_budget.c */
mp_rule mp_sglang_token_budget;

/* vllm.c, trtllm.c */
mp_rule mp_vllm_backend, mp_vllm_mega_moe, mp_vllm_redundancy;
mp_rule mp_trtllm_backend, mp_trtllm_mega_moe;

/* Facts of a model that several rules of SGLang ask for. */
bool mp_is_v4(const mp_backend_model *model);
bool mp_is_v4_nvfp4(const mp_backend_model *model); /* NVIDIA's: nvfp4 experts beside FP8 */
bool mp_has_scheme(const mp_backend_model *model, mp_scheme scheme);
const char *mp_quantization(const mp_backend_model *model); /* "none" where there is none */

#endif
