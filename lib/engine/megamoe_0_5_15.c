/* SPDX-License-Identifier: Apache-2.0 */
/* MegaMoE of sglang-0.5.15: which layout its kernels want, with which activations, and when they
 * are used. Rules 3, 5 and 6 of moepack-plan(1).
 *
 * This version goes by environment variables, and two programs read them: SGLang's own switches,
 * and DeepGEMM's, which SGLang sets unless they are set already. So the two can disagree, and then
 * tokens are sent in one format and read in another; that is warned of, since the engine itself
 * does not. What SGLang sets for DeepGEMM is written to `forward`.
 *
 * Whether the kernel is used at all depends on the tokens of a pass against the buffer's cap. No
 * layout means no kernel, but not an error: the engine takes its ordinary path. */
#include "engine/rules.h"

#include "base/error.h"

/* Layouts that there are kernels for. */
static const struct {
    mp_platform platform;
    mp_scheme scheme;
    const char *target;
    const char *acts;
} layouts[] = {
    {MP_PLATFORM_CUDA_SM100, MP_SCHEME_MXFP4, "megamoe-w4a8", "fp8"},
    {MP_PLATFORM_CUDA_SM100, MP_SCHEME_NVFP4, "megamoe-nvfp4", "fp4"},
    {MP_PLATFORM_CUDA_SM100, MP_SCHEME_BF16, "megamoe-bf16", "bf16"},
    {MP_PLATFORM_CUDA_SM90, MP_SCHEME_FP8_BLOCK, "megamoe-sm90-fp8", "fp8"},
};

/* Hands a variable on: as it is where it is set, else as "1". */
static int forward(mp_resolution *r, const mp_env_flag *flag, mp_error *err)
{
    return mp_env_set(&r->backend->forward, flag->name, !flag->set || flag->value ? "1" : "0", err);
}

/* 3. Decode and prefill share the weights unless somebody says otherwise. */
int mp_rule_fix_memory(mp_resolution *r, mp_error *err)
{
    const mp_env_flag *flag = &r->env.fix_memory;
    mp_backend *b = r->backend;

    b->fix_mega_moe_memory = flag->value;
    if (!b->megamoe)
        return 0;
    /* On by default with megamoe, and an explicit false stays one. */
    b->fix_mega_moe_memory = flag->value || !flag->set;
    b->second_scales = b->fix_mega_moe_memory;
    mp_decide(r, "fix_mega_moe_memory", b->fix_mega_moe_memory ? "true" : "false",
              flag->set ? flag->name : r->backend_by,
              !flag->set ? "megamoe sets it: decode and prefill share the weights, scales twice"
              : b->fix_mega_moe_memory ? "set explicitly: decode and prefill share the weights"
                                       : "set explicitly: the ordinary path keeps its own weights");
    if (!b->fix_mega_moe_memory)
        mp_problem(&b->warnings,
                   "%s is false: the ordinary path keeps its own L1 weights and scales, which "
                   "are not in the estimate",
                   flag->name);
    return forward(r, flag, err);
}

/* ------------------------------------------------------------------------
 * 6. Layout and activations
 */

/* The engine's switch sets DeepGEMM's variable, unless that is set already; gives the value
 * that DeepGEMM reads, and the name of what decided. */
static int set_default(mp_resolution *r, const mp_env_flag *flag, const mp_env_flag *dg,
                       bool *value, const char **decided_by, mp_error *err)
{
    *value = dg->set ? dg->value : flag->value;
    *decided_by = dg->set ? dg->name : flag->set ? flag->name : "default";
    if (!flag->value && !dg->set)
        return 0;
    return forward(r, dg, err);
}

/* The pre-dispatch goes by the engine's switch, the kernel by DeepGEMM's variable. */
static void check_pre_dispatch(mp_resolution *r, bool fp4)
{
    const mp_engine_env *env = &r->env;

    if (env->use_fp4_acts.value != fp4)
        mp_problem(&r->backend->warnings,
                   "%s is %s and wins, %s is not: tokens are sent as %s and read as %s",
                   env->dg_fp4_acts.name, fp4 ? "true" : "false", env->use_fp4_acts.name,
                   fp4 ? "E4M3" : "E2M1", fp4 ? "E2M1" : "E4M3");
}

/* Weights that are mxfp4 take either activations. */
static int choose_acts(mp_resolution *r, mp_error *err)
{
    const mp_engine_env *env = &r->env;
    mp_backend *b = r->backend;
    const char *acts_by, *kind_by;
    bool fp4, mxf4;
    int rc = set_default(r, &env->use_fp4_acts, &env->dg_fp4_acts, &fp4, &acts_by, err);

    if (rc == 0)
        rc = set_default(r, &env->use_mxf4_kind, &env->dg_mxf4_kind, &mxf4, &kind_by, err);
    if (rc != 0)
        return rc;
    b->fp4_acts = fp4;
    b->acts = fp4 ? "fp4" : "fp8";
    b->target = fp4 ? "megamoe-w4a4-g8" : "megamoe-w4a8";
    mp_decide(r, "acts", b->acts, acts_by,
              fp4 ? "DeepGEMM's pre-dispatch packs E2M1 in groups of 32" : "E4M3 in groups of 32");
    mp_decide(r, "mma", fp4 && mxf4 ? "mxf4" : "mxf8f6f4", kind_by,
              fp4 && mxf4 ? "FP4 by FP4, K = 64" : "operands are padded to 8 bits, K = 32");
    if (mxf4 && !fp4)
        mp_problem(&b->warnings, "%s has no effect without FP4 activations (%s)", kind_by,
                   env->use_fp4_acts.name);
    check_pre_dispatch(r, fp4);
    return 0;
}

static void decide_target(mp_resolution *r)
{
    const mp_backend *b = r->backend;

    mp_decide(r, "target", b->target, r->model->scheme_from, "%s experts, %s activations, %s%s",
              mp_scheme_name(r->model->scheme), b->acts, mp_platform_name(b->platform),
              b->fp4_acts ? ", sgl-deep-gemm 0.1.x (DeepGEMM proper: megamoe-w4a4)" : "");
}

int mp_rule_megamoe_layout(mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;
    mp_backend *b = r->backend;
    int rc = 0;

    if (!b->megamoe)
        return 0;
    for (size_t i = 0; model->has_scheme && i < sizeof layouts / sizeof layouts[0]; i++) {
        if (layouts[i].platform == b->platform && layouts[i].scheme == model->scheme) {
            b->target = layouts[i].target;
            b->acts = layouts[i].acts;
        }
    }
    if (b->target && !mp_activation_fits(r)) {
        b->target = b->acts = NULL;
        r->unbuilt_by = model->activation_from;
        mp_decide(r, "target", "none", model->activation_from,
                  "MegaMoE does not compute activation %s", model->activation);
        return 0;
    }
    if (!b->target) {
        r->unbuilt_by = model->scheme_from;
        mp_decide(r, "target", "none", model->scheme_from,
                  "MegaMoE has no kernel for experts that are %s on %s",
                  mp_backend_model_scheme(model), mp_platform_name(b->platform));
        mp_problem(&b->warnings,
                   "experts are %s: MegaMoE takes mxfp4, nvfp4 and bf16 on cuda-sm100, fp8_block "
                   "on cuda-sm90; see --quantize",
                   mp_backend_model_scheme(model));
        return 0;
    }
    b->fp8_combine = r->env.dg_fp8_combine.value;
    b->buffer_known = model->scheme == MP_SCHEME_MXFP4;
    if (model->scheme == MP_SCHEME_MXFP4)
        rc = choose_acts(r, err);
    if (rc == 0)
        decide_target(r);
    return rc ? rc : mp_need_topk(model, err);
}

/* ------------------------------------------------------------------------
 * 5. The forward pass
 */

/* A forward pass of so many tokens, where the weights are built and no graph is captured. */
static void decide_by_tokens(mp_resolution *r, uint64_t tokens, const char *flag)
{
    unsigned long long most = tokens, cap = r->backend->token_cap;

    r->backend->use_mega_moe = most <= cap;
    if (most <= cap)
        mp_decide(r, "use_mega_moe", "true", flag, "%llu tokens a rank at most, the cap is %llu",
                  most, cap);
    else
        mp_decide(r, "use_mega_moe", "false", flag,
                  "%llu tokens a rank, the cap is %llu: the ordinary path", most, cap);
}

static void decide_for_capture(mp_resolution *r, uint64_t tokens)
{
    mp_backend *b = r->backend;

    b->use_mega_moe = true;
    mp_decide(r, "use_mega_moe", "true", "--capture",
              "graphs are captured with it, however many tokens");
    if (tokens > b->token_cap)
        mp_problem(
            &b->warnings, "capture with %llu tokens a rank fails: the buffer holds %llu (%s)",
            (unsigned long long)tokens, (unsigned long long)b->token_cap, r->env.mega_tokens.name);
}

int mp_rule_use_mega_moe(mp_resolution *r, mp_error *err)
{
    const mp_env_number *cap = &r->env.mega_tokens;
    const char *cap_by = cap->set ? cap->name : "default";
    mp_backend *b = r->backend;
    const char *flag;
    uint64_t tokens;
    bool known = mp_max_tokens(r->flags, &tokens, &flag);

    (void)err;
    if (!b->megamoe)
        return 0;
    b->token_cap = (uint64_t)cap->value;
    mp_decide_number(r, "token_cap", b->token_cap, cap_by, "the buffer's tokens a rank%s%s",
                     cap->set ? "" : ", ", cap->set ? "" : cap->name);
    if (!b->target) {
        mp_decide(r, "use_mega_moe", "false", r->unbuilt_by,
                  "its weights are not built: no kernel takes them");
    } else if (r->flags->capture) {
        decide_for_capture(r, tokens);
    } else if (known) {
        decide_by_tokens(r, tokens, flag);
    } else {
        b->use_mega_moe = true;
        mp_decide(r, "use_mega_moe", "true", cap_by, "up to %llu tokens a rank",
                  (unsigned long long)b->token_cap);
    }
    return 0;
}
