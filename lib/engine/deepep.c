/* SPDX-License-Identifier: Apache-2.0 */
/* DeepEP: the path of unquantized BF16 weights, what its dispatcher gives out, and what differs on
 * an NPU. */
#include "engine/rules.h"

#include "base/error.h"

/* A condition of the BF16 low latency path. */
typedef struct condition {
    bool holds;
    const char *decided_by;
    const char *what;
} condition;

static void set_dtype(mp_resolution *r, const char *dtype, const char *decided_by, const char *why)
{
    r->backend->dispatcher_output_dtype = dtype;
    mp_decide(r, "dispatcher_output_dtype", dtype, decided_by, "%s", why);
}

/* 7. BF16 weights as they are: all conditions, or the first that fails. */
int mp_rule_deepep_bf16(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    const mp_backend_model *model = r->model;
    mp_backend *b = r->backend;
    const condition conditions[] = {
        {!model->quant_config, model->scheme_from, "no quantization config"},
        {model->has_scheme && model->scheme == MP_SCHEME_BF16, model->scheme_from, "BF16 weights"},
        {b->runner == MP_RUNNER_DEEP_GEMM, "--runner", "runner deep_gemm"},
        {b->backend == MP_A2A_DEEPEP, r->backend_by, "backend deepep"},
        {b->deepep_mode != MP_DEEPEP_NORMAL, "--deepep-mode",
         "low latency enabled (auto or low_latency)"},
        {flags->platform != MP_PLATFORM_NPU, "--platform", "a platform that is not npu"},
        {flags->platform != MP_PLATFORM_HIP, "--platform", "a platform that is not hip"},
    };

    for (size_t i = 0; i < sizeof conditions / sizeof conditions[0]; i++) {
        if (!conditions[i].holds) {
            mp_decide(r, "bf16_low_latency", "false", conditions[i].decided_by,
                      "the first condition that fails: %s", conditions[i].what);
            return 0;
        }
    }
    if (!r->env.jit_deepgemm.value)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: it is false, and unquantized DeepEP low latency runs on DeepGEMM's "
                       "JIT only",
                       r->env.jit_deepgemm.name);
    b->target = "deepep-bf16";
    b->acts = "bf16";
    mp_decide(r, "bf16_low_latency", "true", "--runner",
              "unquantized BF16 experts, deepep, deep_gemm: the generic fused path");
    if (flags->deepep_dtype == MP_DISPATCH_AUTO && !r->env.bf16_dispatch.value)
        set_dtype(r, "bf16", "--runner", "nothing is quantized on the way");
    mp_decide(r, "target", b->target, model->scheme_from, "BF16 experts, not interleaved");
    return 0;
}

/* 8. The NPU's grouped product gets the number of tokens of each expert. */
int mp_rule_deepep_npu(mp_resolution *r, mp_error *err)
{
    static const char *const from[MP_DEEPEP_COUNT] = {
        [MP_DEEPEP_AUTO] = "receive counts in normal mode, the group list in low latency mode",
        [MP_DEEPEP_NORMAL] = "receive counts",
        [MP_DEEPEP_LOW_LATENCY] = "group list",
    };

    (void)err;
    if (r->backend->backend != MP_A2A_DEEPEP || r->flags->platform != MP_PLATFORM_NPU)
        return 0;
    if (r->flags->engine == MP_ENGINE_SGLANG_0_5_15)
        set_dtype(r, "bf16", "--platform", "deepep on npu gives bf16");
    mp_decide_number(r, "group_list_type", 1, "--platform", "counts, not sums");
    mp_decide(r, "group_list", from[r->backend->deepep_mode], "--deepep-mode",
              "where the counts of each expert come from");
    mp_decide(r, "weight_offsets", "squeezed", "--platform",
              "a trailing dimension of 1 is dropped");
    return 0;
}

/* R14. What the dispatcher hands to the experts, the first that holds. A method of quantization may
 * say it itself, which is not predicted for those that are not plain or FP8 in blocks.
 * Source: layers/moe, get_deepep_output_dtype. */
int mp_sglang_dispatch_dtype(mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;
    const mp_env_flag *bf16 = &r->env.bf16_dispatch;
    const mp_backend *b = r->backend;
    bool plain = model->scheme == MP_SCHEME_BF16 || model->scheme == MP_SCHEME_F16 ||
                 model->scheme == MP_SCHEME_F32;
    bool own = !model->has_scheme || (!plain && model->scheme != MP_SCHEME_FP8_BLOCK);

    (void)err;
    if (bf16->value && b->backend == MP_A2A_DEEPEP)
        mp_warn(r, "%s is deprecated: see --deepep-dtype", bf16->name);
    if (b->backend != MP_A2A_DEEPEP || b->dispatcher_output_dtype)
        return 0;
    if (r->flags->deepep_dtype != MP_DISPATCH_AUTO)
        set_dtype(r, mp_dispatch_dtype_name(r->flags->deepep_dtype), "--deepep-dtype", "asked for");
    else if (bf16->value)
        set_dtype(r, "bf16", bf16->name, "it is true");
    else if (own)
        mp_decide(r, "dispatcher_output_dtype", "not predicted", model->scheme_from,
                  "experts that are %s may have their own", mp_backend_model_scheme(model));
    else if (b->runner == MP_RUNNER_FLASHINFER_CUTEDSL || b->runner == MP_RUNNER_CUTLASS)
        set_dtype(r, "bf16", r->runner_by, "as the runner needs it");
    else if (b->platform == MP_PLATFORM_NPU)
        set_dtype(r, "bf16", "--platform", "deepep on npu gives bf16");
    else
        set_dtype(r, "fp8", "default", "what all others get");
    return 0;
}
