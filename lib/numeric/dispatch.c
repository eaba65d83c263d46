/* SPDX-License-Identifier: Apache-2.0 */
/* Which kernel table this processor can run, and which one this process uses. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "numeric/kernels.h"

#if defined(__x86_64__)

/* The builtins count a feature only if the operating system saves its registers. */
static const mp_kernels *native_kernels(const char *level)
{
    __builtin_cpu_init();
    if (strcmp(level, "avx2") == 0 && __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("fma"))
        return &mp_kernels_avx2;
    if (strcmp(level, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return &mp_kernels_avx512;
    return NULL;
}

#elif defined(__aarch64__)

/* Every aarch64 processor has it. */
static const mp_kernels *native_kernels(const char *level)
{
    return strcmp(level, "neon") == 0 ? &mp_kernels_neon : NULL;
}

#else

static const mp_kernels *native_kernels(const char *level)
{
    (void)level;
    return NULL;
}

#endif

const mp_kernels *mp_kernels_for(const char *level)
{
    return strcmp(level, "scalar") == 0 ? &mp_kernels_scalar : native_kernels(level);
}

/* From fast to slow; the last one is everywhere. */
static const char *const levels[] = {"avx512", "avx2", "neon", "scalar"};

#define LEVELS (sizeof(levels) / sizeof(levels[0]))

static const mp_kernels *fastest(void)
{
    const mp_kernels *kernels = NULL;

    for (size_t i = 0; !kernels; i++)
        kernels = mp_kernels_for(levels[i]);
    return kernels;
}

static const mp_kernels *chosen;

/* What MOEPACK_CPU asks for; null: nothing. */
static const char *wanted(void)
{
    const char *level = getenv("MOEPACK_CPU");

    return level && *level ? level : NULL;
}

static void choose(void)
{
    const char *level = wanted();

    chosen = level ? mp_kernels_for(level) : fastest();
    if (!chosen)
        chosen = &mp_kernels_scalar;
}

int mp_kernels_check(mp_error *err)
{
    const char *level = wanted();

    for (size_t i = 0; i < LEVELS; i++) {
        if (!level || strcmp(level, levels[i]) == 0)
            return 0;
    }
    return mp_fail(err, MP_ERR_USAGE, "MOEPACK_CPU: '%s' is not scalar, avx2, avx512 or neon",
                   level);
}

const mp_kernels *mp_kernels_best(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, choose);
    return chosen;
}
