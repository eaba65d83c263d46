/* SPDX-License-Identifier: Apache-2.0 */
/* Names of what the engine's flags take. */
#include <moepack/backend.h>

#include <string.h>

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
};
static const char *const runner_names[MP_RUNNER_COUNT] = {
    [MP_RUNNER_AUTO] = "auto",           [MP_RUNNER_TRITON] = "triton",
    [MP_RUNNER_DEEP_GEMM] = "deep_gemm", [MP_RUNNER_FLASHINFER_TRTLLM] = "flashinfer_trtllm",
    [MP_RUNNER_CUTLASS] = "cutlass",
};
static const char *const deepep_mode_names[MP_DEEPEP_COUNT] = {
    [MP_DEEPEP_AUTO] = "auto",
    [MP_DEEPEP_NORMAL] = "normal",
    [MP_DEEPEP_LOW_LATENCY] = "low_latency",
};
static const char *const platform_names[MP_PLATFORM_COUNT] = {
    [MP_PLATFORM_CUDA_SM100] = "cuda-sm100",
    [MP_PLATFORM_CUDA_SM90] = "cuda-sm90",
    [MP_PLATFORM_HIP] = "hip",
    [MP_PLATFORM_NPU] = "npu",
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
DEFINE_NAMES(mp_platform, platform_names, MP_PLATFORM_COUNT)
