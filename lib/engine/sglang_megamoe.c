/* SPDX-License-Identifier: Apache-2.0 */
/* sglang-2026-09: MegaMoE's layout, its sizes, the forward pass, memory and shared experts. Rules
 * R8, R9 and R11 to R13 of moepack-plan(1).
 *
 * A layout follows from the platform, the scheme of the experts and a flag; it is one with a kernel
 * (`mma`), which has sizes that it takes. Unlike in 0.5.15 there is no variable for any of this,
 * and those that were are named as having no effect. Layouts that belong to FlashInfer or AMD have
 * no target here, nor has a scheme that no builder takes; the rules that follow say what the engine
 * does without one. */
#include "engine/rules.h"

#include <inttypes.h>

#include "base/error.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------
 * R8. Layout
 */

/* Sources: layers/moe/mega_moe.py, build_mega_moe_experts_weights and _mega_moe_mma_type (which
 * asks for NVFP4 first); layers/moe/mega_moe_sm90.py, build_sm90_mega_moe_experts_weights. */
static const struct {
    mp_platform platform;
    mp_scheme scheme;
    bool w4a4; /* only with --w4a4; such a row stands before the one without */
    const char *mma;
    const char *acts;
    const char *target;
} layouts[] = {
    {MP_PLATFORM_CUDA_SM100, MP_SCHEME_NVFP4, false, "nvfp4xnvfp4", "fp4", "megamoe-nvfp4"},
    {MP_PLATFORM_CUDA_SM100, MP_SCHEME_MXFP4, true, "mxf4xmxf4", "fp4", "megamoe-w4a4"},
    {MP_PLATFORM_CUDA_SM100, MP_SCHEME_MXFP4, false, "fp8xfp4", "fp8", "megamoe-w4a8"},
    {MP_PLATFORM_CUDA_SM90, MP_SCHEME_FP8_BLOCK, false, "fp8", "fp8", "megamoe-sm90-fp8"},
};

static void no_layout(mp_resolution *r, const char *decided_by, const char *why, const char *what)
{
    r->unbuilt_by = decided_by;
    mp_decide(r, "target", "none", decided_by, why, what, mp_platform_name(r->backend->platform));
}

/* FlashInfer and AMD have layouts of their own. */
static bool has_own_layout(mp_resolution *r)
{
    const mp_env_flag *flydsl = &r->env.flydsl;

    if (r->flashinfer_runner) {
        no_layout(r, "--runner", "%s has a layout of its own on %s", "flashinfer_megamoe");
        return true;
    }
    if (r->backend->platform != MP_PLATFORM_HIP)
        return false;
    if (!flydsl->value)
        mp_warn(r, "%s is not true: MegaMoE runs on ROCm by it", flydsl->name);
    no_layout(r, "--platform", "%s has a layout of its own on %s", "FlyDSL");
    return true;
}

/* Formats that are built of which it is not known whether they are computed well. */
static void warn_of_format(mp_resolution *r)
{
    const mp_backend_model *model = r->model;

    if (model->weight_only)
        mp_warn(r, "W4A16_NVFP4 was made for 16-bit activations, MegaMoE quantizes them to FP4");
    if (model->scheme == MP_SCHEME_NVFP4 && mp_text_is(model->quant_method, "compressed-tensors"))
        mp_warn(r, "nvfp4 of compressed-tensors: whether MegaMoE builds it is not known");
}

int mp_sglang_layout(mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;
    mp_backend *b = r->backend;
    size_t i = 0;

    (void)err;
    if (!b->megamoe || has_own_layout(r))
        return 0;
    if (!mp_activation_fits(r)) {
        no_layout(r, model->activation_from, "MegaMoE does not compute activation %s on %s",
                  model->activation);
        return 0;
    }
    while (i < COUNT(layouts) &&
           (layouts[i].platform != b->platform || !mp_has_scheme(model, layouts[i].scheme) ||
            (layouts[i].w4a4 && !r->flags->w4a4)))
        i++;
    if (i == COUNT(layouts)) {
        no_layout(r, model->scheme_from, "no builder takes experts that are %s on %s",
                  mp_backend_model_scheme(model));
        mp_warn(r,
                "experts are %s: MegaMoE takes mxfp4 and nvfp4 on cuda-sm100, fp8_block on "
                "cuda-sm90; see --quantize",
                mp_backend_model_scheme(model));
        return 0;
    }
    r->mma = layouts[i].mma;
    b->acts = layouts[i].acts;
    b->target = layouts[i].target;
    mp_decide(r, "acts", b->acts, layouts[i].w4a4 ? "--w4a4" : model->scheme_from,
              "of a token, quantized by the kernel before it is sent");
    mp_decide(r, "mma", r->mma, layouts[i].w4a4 ? "--w4a4" : model->scheme_from,
              "activations by weights");
    mp_decide(r, "target", b->target, model->scheme_from, "%s experts, %s activations, %s",
              mp_scheme_name(model->scheme), b->acts, mp_platform_name(b->platform));
    warn_of_format(r);
    return mp_need_topk(model, err);
}

/* ------------------------------------------------------------------------
 * R9. Sizes
 */

/* Sources: mega_moe.py, check_mega_moe_shapes: 16 groups of 32, or of 16; mega_moe_sm90.py, and
 * DeepGEMM's csrc/apis/sm90_mega.hpp: I / 64 is at most 64. */
static const struct {
    const char *mma;
    uint64_t multiple;    /* of H and of I */
    uint64_t most;        /* of I; 0: any */
    uint64_t hidden_seen; /* multiples below which a GPU has refused kernels; 0: none */
    uint64_t intermediate_seen;
} sizes[] = {
    {"fp8xfp4", 512, 0, 0, 0},
    {"mxf4xmxf4", 512, 0, 0, 0},
    {"nvfp4xnvfp4", 256, 0, 0, 0},
    {"fp8", 128, 4096, 512, 256},
};

static void check_multiple(mp_resolution *r, uint64_t size, uint64_t of)
{
    if (size % of == 0)
        return;
    r->backend->sizes_refused = true;
    mp_refuse(r, "%" PRIu64 " is not a multiple of %" PRIu64 " (%s)", size, of, r->mma);
}

int mp_sglang_shapes(mp_resolution *r, mp_error *err)
{
    uint64_t h = r->model->hidden_size, i = r->model->moe_intermediate_size;
    mp_backend *b = r->backend;
    size_t s = 0;

    (void)err;
    if (!r->mma)
        return 0;
    /* Each mma of layouts has a line in sizes. */
    while (!mp_text_is(sizes[s].mma, r->mma))
        s++;
    check_multiple(r, h, sizes[s].multiple);
    check_multiple(r, i, sizes[s].multiple);
    if (sizes[s].most && i > sizes[s].most) {
        b->sizes_refused = true;
        mp_refuse(r, "expert intermediate size %" PRIu64 " is more than %" PRIu64 " (%s)", i,
                  sizes[s].most, r->mma);
    }
    mp_decide(r, "shapes", b->sizes_refused ? "refused" : "ok", r->model->source,
              "%" PRIu64 " and %" PRIu64 ", the kernel takes multiples of %" PRIu64, h, i,
              sizes[s].multiple);
    if (!b->sizes_refused && sizes[s].hidden_seen &&
        (h % sizes[s].hidden_seen != 0 || i % sizes[s].intermediate_seen != 0))
        mp_warn(r,
                "hidden size %" PRIu64 ", expert intermediate size %" PRIu64
                ": a GPU has refused 640 and 384, multiples of %" PRIu64 " and %" PRIu64
                " are safe",
                h, i, sizes[s].hidden_seen, sizes[s].intermediate_seen);
    return 0;
}

/* ------------------------------------------------------------------------
 * R11. A forward pass. Source: mega_moe.py, should_use_mega_moe, is_mega_moe_experts_ready,
 * run_mega_routed_experts
 */

static void decide_use(mp_resolution *r, bool use, const char *decided_by, const char *why)
{
    r->backend->use_mega_moe = use;
    mp_decide(r, "use_mega_moe", use ? "true" : "false", decided_by, "%s", why);
}

/* Tokens of the pass that counts. With context parallel prefill, models with sparse attention go
 * by this rank's. */
static bool find_tokens(const mp_resolution *r, uint64_t *tokens, const char **flag)
{
    static const char *const sparse[] = {"deepseek_v32", "glm_moe_dsa", NULL};
    const mp_backend_flags *flags = r->flags;

    if (!flags->prefill_cp || !mp_text_among(r->model->model_type, sparse))
        return mp_max_tokens(flags, tokens, flag);
    *tokens = flags->tokens;
    *flag = "--tokens";
    return flags->tokens_given;
}

static void decide_by_tokens(mp_resolution *r, uint64_t tokens, const char *flag)
{
    mp_backend *b = r->backend;
    bool use = tokens <= b->token_cap;

    b->use_mega_moe = use;
    mp_decide(r, "use_mega_moe", use ? "true" : "false", flag,
              "%" PRIu64 " tokens a rank, the cap is %" PRIu64 "%s", tokens, b->token_cap,
              use ? "" : ": the ordinary path");
    if (!use && r->needs_budget)
        mp_warn(r,
                "%s: %" PRIu64 " tokens are more than %" PRIu64
                ", and this model has no ordinary path",
                flag, tokens, b->token_cap);
}

int mp_sglang_use_mega_moe(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;
    const char *flag;
    uint64_t tokens = 0;
    bool known = find_tokens(r, &tokens, &flag);

    (void)err;
    b->use_known = true;
    if (!b->megamoe)
        return 0;
    if (r->flashinfer_runner) {
        decide_use(r, true, "--runner", "there is no other path");
    } else if (!b->target) {
        decide_use(r, false, r->unbuilt_by, "weights are not built");
    } else if (r->flags->capture) {
        decide_use(r, true, "--capture", "graphs are captured with it, however many tokens");
        if (known && tokens > b->token_cap)
            mp_refuse(r, "--capture: %" PRIu64 " tokens a rank, the buffer holds %" PRIu64 " (%s)",
                      tokens, b->token_cap, r->env.mega_tokens.name);
    } else if (known) {
        decide_by_tokens(r, tokens, flag);
    } else {
        b->use_mega_moe = true;
        mp_decide(r, "use_mega_moe", "true",
                  r->env.mega_tokens.set ? r->env.mega_tokens.name : "default",
                  "up to %" PRIu64 " tokens a rank", b->token_cap);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * R12, R13. Memory and shared experts
 */

/* Source: mega_moe.py, build_mega_moe_experts_weights: one copy of the weights, whatever is asked
 * for; on SM90 the parameters' own storage. */
int mp_sglang_memory(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    b->has_fix_memory = b->megamoe;
    b->buffers_unknown = b->megamoe;
    if (!b->megamoe)
        return 0;
    b->fix_mega_moe_memory = true;
    b->second_scales = mp_has_scheme(r->model, MP_SCHEME_MXFP4);
    mp_decide(r, "fix_mega_moe_memory", "true", "default",
              "decode and prefill share the weights, always");
    return 0;
}

/* Shared experts inside the kernel, where nothing stands against it.
 * Source: mega_moe.py, should_fuse_mega_moe_shared_experts. */
int mp_sglang_shared_experts(mp_resolution *r, mp_error *err)
{
    const mp_env_flag *fuse = &r->env.fuse_shared;
    const mp_backend_model *model = r->model;
    const mp_backend *b = r->backend;
    const struct {
        bool holds;
        const char *decided_by, *what;
    } conditions[] = {
        {b->target && mp_text_is(b->target, "megamoe-w4a8"),
         b->acts ? model->scheme_from : r->unbuilt_by, "layout megamoe-w4a8"},
        {b->shared != MP_SHARED_FUSED, "--shared", "not fused as further slots"},
        {fuse->value, fuse->name, "the variable is true"},
        {model->shared_fp8_blocks, "quantization_config",
         "shared experts in FP8 blocks of 128x128"},
    };

    (void)err;
    if (!b->megamoe || model->num_shared_experts == 0)
        return 0;
    for (size_t i = 0; i < COUNT(conditions); i++) {
        /* The first that fails is the one that the engine would name. */
        if (conditions[i].holds)
            continue;
        mp_decide(r, "shared_experts", "ordinary", conditions[i].decided_by,
                  "the first condition that fails: %s", conditions[i].what);
        return 0;
    }
    mp_decide(r, "shared_experts", "in_kernel", fuse->set ? fuse->name : "default",
              "pack with --shared separate; %" PRIu64
              " bytes a layer and shared expert more, not in the estimate",
              2 * model->moe_intermediate_size * model->hidden_size);
    return 0;
}

/* ------------------------------------------------------------------------
 * What has no effect
 */

int mp_sglang_without_effect(mp_resolution *r, mp_error *err)
{
    static const char *const variables[] = {
        "SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE",
        "SGLANG_OPT_FIX_MEGA_MOE_MEMORY",
        "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS",
        "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND",
        "DG_USE_FP4_ACTS",
        "DG_USE_MXF4_KIND",
    };
    const mp_backend_flags *f = r->flags;
    mp_a2a a2a = r->backend->backend;
    const struct {
        bool idle;
        const char *flag, *needs;
    } flags[] = {
        {f->w4a4 && (!r->mma || !mp_text_is(r->mma, "mxf4xmxf4")), "--w4a4",
         "megamoe with mxfp4 experts on cuda-sm100"},
        {f->fuseep_mode > 0 && a2a != MP_A2A_ASCEND_FUSEEP, "--fuseep-mode", "ascend_fuseep"},
        {f->deepep_dtype != MP_DISPATCH_AUTO && a2a != MP_A2A_DEEPEP, "--deepep-dtype", "deepep"},
        {f->flashinfer_tokens_given && !r->flashinfer_runner, "--flashinfer-max-tokens",
         "megamoe with runner flashinfer_megamoe"},
    };

    (void)err;
    for (size_t i = 0; i < COUNT(variables); i++)
        if (mp_env_get(r->variables, variables[i]))
            mp_warn(r, "%s has no effect in this version", variables[i]);
    for (size_t i = 0; i < COUNT(flags); i++)
        if (flags[i].idle)
            mp_warn(r, "%s has no effect: it is for %s", flags[i].flag, flags[i].needs);
    return 0;
}
