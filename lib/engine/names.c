/* SPDX-License-Identifier: Apache-2.0 */
/* Names of what the engine's flags take. */
#include "engine/backend.h"

#include <string.h>

/* Short names stand for the newest of an engine. */
static const struct {
    const char *name;
    mp_engine engine;
} engine_names[] = {
    {"sglang-2026-09", MP_ENGINE_SGLANG_2026_09}, {"sglang-0.5.15", MP_ENGINE_SGLANG_0_5_15},
    {"vllm-2026-09", MP_ENGINE_VLLM_2026_09},     {"trtllm-2026-09", MP_ENGINE_TRTLLM_2026_09},
    {"sglang", MP_ENGINE_SGLANG_2026_09},         {"vllm", MP_ENGINE_VLLM_2026_09},
    {"trtllm", MP_ENGINE_TRTLLM_2026_09},
};
#define ENGINE_NAMES (sizeof engine_names / sizeof engine_names[0])

static const char *const a2a_names[MP_A2A_COUNT] = {
    [MP_A2A_NONE] = "none",
    [MP_A2A_DEEPEP] = "deepep",
    [MP_A2A_MOONCAKE] = "mooncake",
    [MP_A2A_NIXL] = "nixl",
    [MP_A2A_MORI] = "mori",
    [MP_A2A_ASCEND_FUSEEP] = "ascend_fuseep",
    [MP_A2A_FLASHINFER] = "flashinfer",
    [MP_A2A_MEGAMOE] = "megamoe",
    [MP_A2A_CUSTOMIZED] = "customized",
    [MP_A2A_DEEPEP_V2] = "deepep_v2",
    [MP_A2A_PPLX] = "pplx",
    [MP_A2A_ASCEND_TP] = "ascend_tp",
    [MP_A2A_FLASHINFER_MEGAMOE] = "flashinfer_megamoe",
    [MP_A2A_AUTO] = "auto",
    [MP_A2A_DEEP_GEMM_MEGA_MOE] = "deep_gemm_mega_moe",
    [MP_A2A_FLASHINFER_EP_DEEP_GEMM] = "flashinfer_moe_ep_mega_deep_gemm",
    [MP_A2A_FLASHINFER_EP_CUTEDSL] = "flashinfer_moe_ep_mega_cutedsl",
    [MP_A2A_MEGAMOE_DEEPGEMM] = "MEGAMOE_DEEPGEMM",
};
static const char *const runner_names[MP_RUNNER_COUNT] = {
    [MP_RUNNER_AUTO] = "auto",
    [MP_RUNNER_TRITON] = "triton",
    [MP_RUNNER_DEEP_GEMM] = "deep_gemm",
    [MP_RUNNER_FLASHINFER_TRTLLM] = "flashinfer_trtllm",
    [MP_RUNNER_CUTLASS] = "cutlass",
    [MP_RUNNER_TRITON_KERNEL] = "triton_kernel",
    [MP_RUNNER_EXPERIMENTAL_SGL_TRTLLM] = "experimental_sgl_trtllm",
    [MP_RUNNER_FLASHINFER_TRTLLM_ROUTED] = "flashinfer_trtllm_routed",
    [MP_RUNNER_FLASHINFER_CUTLASS] = "flashinfer_cutlass",
    [MP_RUNNER_FLASHINFER_MXFP4] = "flashinfer_mxfp4",
    [MP_RUNNER_FLASHINFER_CUTEDSL] = "flashinfer_cutedsl",
    [MP_RUNNER_FLASHINFER_MEGAMOE] = "flashinfer_megamoe",
    [MP_RUNNER_AITER] = "aiter",
    [MP_RUNNER_MARLIN] = "marlin",
    [MP_RUNNER_HUMMING] = "humming",
    [MP_RUNNER_EXPERIMENTAL_SGL_MARLIN] = "experimental_sgl_marlin",
    [MP_RUNNER_HPC_OPS] = "hpc_ops",
    [MP_RUNNER_MEGAMOE] = "megamoe",
    [MP_RUNNER_INTEL_XPU] = "intel_xpu",
};
static const char *const deepep_mode_names[MP_DEEPEP_COUNT] = {
    [MP_DEEPEP_AUTO] = "auto",
    [MP_DEEPEP_NORMAL] = "normal",
    [MP_DEEPEP_LOW_LATENCY] = "low_latency",
};
static const char *const dispatch_dtype_names[MP_DISPATCH_COUNT] = {
    [MP_DISPATCH_AUTO] = "auto", [MP_DISPATCH_BF16] = "bf16",   [MP_DISPATCH_FP8] = "fp8",
    [MP_DISPATCH_INT8] = "int8", [MP_DISPATCH_NVFP4] = "nvfp4",
};
static const char *const serving_names[MP_SERVING_COUNT] = {
    [MP_SERVING_BOTH] = "both",
    [MP_SERVING_PREFILL] = "prefill",
    [MP_SERVING_DECODE] = "decode",
};
static const char *const overlap_names[MP_OVERLAP_COUNT] = {
    [MP_OVERLAP_NONE] = "none",
    [MP_OVERLAP_TWO_BATCH] = "two-batch",
    [MP_OVERLAP_SINGLE_BATCH] = "single-batch",
};
static const char *const platform_names[MP_PLATFORM_COUNT] = {
    [MP_PLATFORM_CUDA_SM100] = "cuda-sm100",
    [MP_PLATFORM_CUDA_SM90] = "cuda-sm90",
    [MP_PLATFORM_HIP] = "hip",
    [MP_PLATFORM_NPU] = "npu",
    [MP_PLATFORM_CUDA_SM120] = "cuda-sm120",
};

/* The index of a name, or count. */
static size_t find(const char *const *names, size_t count, const char *name)
{
    size_t i = 0;

    while (i < count && strcmp(names[i], name) != 0)
        i++;
    return i;
}

#define DEFINE_NAMES(type, names, count)                \
    const char *type##_name(size_t index)               \
    {                                                   \
        return index < (count) ? (names)[index] : NULL; \
    }                                                   \
    bool type##_parse(const char *name, type *value)    \
    {                                                   \
        size_t index = find(names, count, name);        \
        if (index == (count))                           \
            return false;                               \
        *value = (type)index;                           \
        return true;                                    \
    }

DEFINE_NAMES(mp_a2a, a2a_names, MP_A2A_COUNT)
DEFINE_NAMES(mp_runner, runner_names, MP_RUNNER_COUNT)
DEFINE_NAMES(mp_deepep_mode, deepep_mode_names, MP_DEEPEP_COUNT)
DEFINE_NAMES(mp_dispatch_dtype, dispatch_dtype_names, MP_DISPATCH_COUNT)
DEFINE_NAMES(mp_serving, serving_names, MP_SERVING_COUNT)
DEFINE_NAMES(mp_overlap, overlap_names, MP_OVERLAP_COUNT)
DEFINE_NAMES(mp_platform, platform_names, MP_PLATFORM_COUNT)

const char *mp_engine_name(size_t index)
{
    return index < ENGINE_NAMES ? engine_names[index].name : NULL;
}

bool mp_engine_parse(const char *name, mp_engine *value)
{
    for (size_t i = 0; i < ENGINE_NAMES; i++) {
        if (strcmp(engine_names[i].name, name) == 0) {
            *value = engine_names[i].engine;
            return true;
        }
    }
    return false;
}
