/* SPDX-License-Identifier: Apache-2.0 */
/* sglang-2026-09: which runner multiplies, and what runners refuse. Rules R5, R6 and R16 of
 * moepack-plan(1).
 *
 * A runner that is not asked for may be chosen by the model; one that is asked for may be
 * overridden where it cannot multiply the format, and is refused where it cannot do something else.
 * Limits are looked at with ep_size as it was given: the engine checks them before a backend sets
 * it. */
#include "engine/engines.h"

#include <inttypes.h>

#include "base/error.h"

static void set_runner(mp_resolution *r, mp_runner runner, const char *decided_by, const char *why)
{
    r->backend->runner = runner;
    r->runner_by = decided_by;
    r->runner_why = why;
}

static bool is_cuda(mp_platform p)
{
    return p == MP_PLATFORM_CUDA_SM90 || p == MP_PLATFORM_CUDA_SM100 || p == MP_PLATFORM_CUDA_SM120;
}

/* MXFP8 runs on some only. Source: arg_groups/overrides.py,
 * _moe_runner_backend_quant_constraints. */
static void constrain_mxfp8(mp_resolution *r)
{
    const uint64_t takes = MP_BIT(MP_RUNNER_CUTLASS) | MP_BIT(MP_RUNNER_DEEP_GEMM) |
                           MP_BIT(MP_RUNNER_FLASHINFER_MEGAMOE) |
                           MP_BIT(MP_RUNNER_FLASHINFER_TRTLLM) |
                           MP_BIT(MP_RUNNER_FLASHINFER_TRTLLM_ROUTED);
    mp_runner asked = r->backend->runner;

    if (takes & MP_BIT(asked))
        return;
    if (asked != MP_RUNNER_AUTO)
        mp_warn(r, "--runner %s is overridden: MXFP8 does not run on it", mp_runner_name(asked));
    set_runner(r, MP_RUNNER_FLASHINFER_TRTLLM, "quantization_config",
               "MXFP8 runs on it, on its routed form, deep_gemm, cutlass and flashinfer_megamoe");
}

/* R5. Sources: arg_groups/model_overrides/deepseek_v4.py, arg_groups/overrides.py. */
int mp_sglang_runner_by_model(mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;
    const mp_backend *b = r->backend;
    bool is_auto = b->runner == MP_RUNNER_AUTO;

    (void)err;
    if (is_auto && mp_is_v4_nvfp4(model))
        set_runner(r, MP_RUNNER_FLASHINFER_TRTLLM_ROUTED, "moe_quant_algo",
                   "V4 with NVFP4 experts");
    else if (is_auto && mp_is_v4(model) && mp_has_scheme(model, MP_SCHEME_MXFP4) &&
             b->backend == MP_A2A_NONE && is_cuda(b->platform) && !r->env.fp4_dequant.value)
        set_runner(r, MP_RUNNER_FLASHINFER_MXFP4, model->scheme_from,
                   "FP4 experts without all-to-all");
    else if (mp_text_is(model->quantization, "mxfp8") && b->platform != MP_PLATFORM_NPU)
        constrain_mxfp8(r);
    else if (is_auto && mp_text_is(model->quantization, "modelopt_fp4") &&
             b->platform == MP_PLATFORM_CUDA_SM120)
        set_runner(r, MP_RUNNER_FLASHINFER_CUTLASS, "--platform", "TRT-LLM's kernels are SM100's");
    return 0;
}

/* R6. Which quantizations a runner takes, and of how many ranks.
 * Source: arg_groups/moe_hook.py, handle_moe_kernel_config. */
static const struct {
    const char *quantizations[9]; /* "" is none */
    uint64_t backends;            /* 0: any */
    mp_runner runner;
    bool v4_nvfp4;   /* and NVIDIA's V4 */
    bool one_or_tp;  /* ep_size */
    bool fusion_off; /* shared experts are not fused */
} limits[] = {
    {.runner = MP_RUNNER_FLASHINFER_CUTLASS,
     .quantizations = {"modelopt_fp4", "modelopt_fp8", "modelopt_mixed", ""},
     .one_or_tp = true},
    {.runner = MP_RUNNER_FLASHINFER_CUTEDSL,
     .quantizations = {"modelopt_fp4", "modelopt_mixed", "nvfp4_online"},
     .v4_nvfp4 = true,
     .one_or_tp = true,
     .fusion_off = true,
     .backends = MP_BIT(MP_A2A_NONE) | MP_BIT(MP_A2A_DEEPEP) | MP_BIT(MP_A2A_FLASHINFER)},
    {.runner = MP_RUNNER_FLASHINFER_TRTLLM,
     .quantizations = {"modelopt_fp4", "nvfp4_online", "fp8", "mxfp8", "modelopt_fp8",
                       "modelopt_mixed", "compressed-tensors", ""},
     .fusion_off = true},
    {.runner = MP_RUNNER_EXPERIMENTAL_SGL_TRTLLM,
     .quantizations = {"modelopt_fp4", "nvfp4_online", "fp8", "mxfp8", "modelopt_fp8",
                       "modelopt_mixed", "compressed-tensors", ""},
     .fusion_off = true},
    {.runner = MP_RUNNER_FLASHINFER_TRTLLM_ROUTED,
     .quantizations = {"fp8", "mxfp8", "modelopt_fp4", "modelopt_mixed", "nvfp4_online", ""},
     .fusion_off = true},
};

static void check_limits(mp_resolution *r, size_t i, uint64_t ep)
{
    const mp_backend_model *model = r->model;
    mp_backend *b = r->backend;
    const char *name = mp_runner_name(b->runner);

    if (!mp_text_among(model->quantization, limits[i].quantizations) &&
        !(limits[i].v4_nvfp4 && mp_is_v4_nvfp4(model)))
        mp_refuse(r, "runner %s does not take quantization %s", name, mp_quantization(model));
    if (limits[i].one_or_tp && ep != 1 && ep != r->flags->tp)
        mp_refuse(r, "runner %s: ep_size is %" PRIu64 ", it takes 1 or tp_size, %" PRIu64, name, ep,
                  r->flags->tp);
    if (limits[i].backends && !(limits[i].backends & MP_BIT(b->backend)))
        mp_refuse(r, "runner %s does not work with backend %s", name, mp_a2a_name(b->backend));
    if (limits[i].fusion_off)
        r->fusion_off_by = r->runner_by;
}

/* DeepEP with flashinfer_cutedsl has one mode. */
static void check_cutedsl_mode(mp_resolution *r)
{
    mp_backend *b = r->backend;

    if (b->backend != MP_A2A_DEEPEP)
        return;
    if (b->deepep_mode == MP_DEEPEP_NORMAL)
        mp_refuse(r, "--deepep-mode normal: runner flashinfer_cutedsl has low_latency only");
    if (b->deepep_mode == MP_DEEPEP_AUTO) {
        b->deepep_mode = MP_DEEPEP_LOW_LATENCY;
        mp_decide(r, "deepep_mode", "low_latency", r->runner_by,
                  "runner flashinfer_cutedsl has no other");
    }
}

int mp_sglang_runner_limits(mp_resolution *r, mp_error *err)
{
    static const char *const fp8[] = {"fp8", "mxfp8", NULL};
    uint64_t ep = r->flags->ep ? r->flags->ep : 1; /* as given, before a backend sets it */
    mp_runner runner = r->backend->runner;

    (void)err;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
        if (limits[i].runner == runner)
            check_limits(r, i, ep);
    if (runner == MP_RUNNER_FLASHINFER_CUTEDSL)
        check_cutedsl_mode(r);
    if (runner == MP_RUNNER_CUTLASS && mp_text_among(r->model->quantization, fp8) && ep != 1)
        mp_refuse(r, "runner cutlass: with %s it takes ep_size 1, not %" PRIu64,
                  r->model->quantization, ep);
    return 0;
}

/* R16. The loader of some runners puts up before gate, MegaMoE reads gate before up. */
int mp_sglang_gate_and_up(mp_resolution *r, mp_error *err)
{
    mp_runner runner = r->backend->runner;

    (void)err;
    if (r->backend->megamoe && mp_has_scheme(r->model, MP_SCHEME_NVFP4) &&
        (runner == MP_RUNNER_FLASHINFER_TRTLLM || runner == MP_RUNNER_FLASHINFER_TRTLLM_ROUTED ||
         runner == MP_RUNNER_EXPERIMENTAL_SGL_TRTLLM))
        mp_warn(r,
                "runner %s: the loader keeps up before gate, MegaMoE reads gate before up: "
                "results are wrong until #39388",
                mp_runner_name(runner));
    return 0;
}
