/* SPDX-License-Identifier: Apache-2.0 */
/* DeepEP: the path of unquantized BF16 weights, and what differs on an NPU. */
#include "engine/rules.h"

#include "base/error.h"

/* A condition of the BF16 low latency path. */
typedef struct condition {
    bool holds;
    const char *decided_by;
    const char *what;
} condition;

/* 7. BF16 weights as they are: all conditions, or the first that fails. */
int mp_rule_deepep_bf16(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    const mp_backend_model *model = r->model;
    mp_backend *b = r->backend;
    const condition conditions[] = {
        {!model->quant_config, model->scheme_from, "no quantization config"},
        {model->has_scheme && model->scheme == MP_SCHEME_BF16, model->scheme_from, "BF16 weights"},
        {flags->runner == MP_RUNNER_DEEP_GEMM, "--runner", "runner deep_gemm"},
        {b->backend == MP_A2A_DEEPEP, r->backend_by, "backend deepep"},
        {flags->deepep_mode != MP_DEEPEP_NORMAL, "--deepep-mode",
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
    b->dispatcher_output_dtype = "bf16";
    mp_decide(r, "bf16_low_latency", "true", "--runner",
              "unquantized BF16 experts, deepep, deep_gemm: the generic fused path");
    mp_decide(r, "dispatcher_output_dtype", "bf16", "--runner", "nothing is quantized on the way");
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
    r->backend->dispatcher_output_dtype = "bf16";
    mp_decide(r, "dispatcher_output_dtype", "bf16", "--platform", "deepep on npu gives bf16");
    mp_decide_number(r, "group_list_type", 1, "--platform", "counts, not sums");
    mp_decide(r, "group_list", from[r->flags->deepep_mode], "--deepep-mode",
              "where the counts of each expert come from");
    mp_decide(r, "weight_offsets", "squeezed", "--platform",
              "a trailing dimension of 1 is dropped");
    return 0;
}
