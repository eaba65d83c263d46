/* SPDX-License-Identifier: Apache-2.0 */
/* engine/environment.h - the variables that decide, read as the engine reads them. */
#ifndef MP_ENGINE_ENVIRONMENT_H
#define MP_ENGINE_ENVIRONMENT_H

#include <moepack/backend.h>

/* A variable that is true or false. */
typedef struct mp_env_flag {
    const char *name;
    bool set;   /* explicitly, to whatever it be */
    bool value; /* the default where it is not set */
} mp_env_flag;

/* A variable that is a number. */
typedef struct mp_env_number {
    const char *name;
    bool set;
    uint64_t value;
} mp_env_number;

typedef struct mp_engine_env {
    mp_env_flag use_mega_moe; /* SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE */
    mp_env_flag fix_memory;   /* SGLANG_OPT_FIX_MEGA_MOE_MEMORY */
    mp_env_flag use_fp4_acts; /* SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS */
    mp_env_flag use_mxf4_kind;
    mp_env_flag dg_fp4_acts; /* DG_USE_FP4_ACTS: what DeepGEMM reads */
    mp_env_flag dg_mxf4_kind;
    mp_env_flag dg_fp8_combine;
    mp_env_flag jit_deepgemm;      /* SGLANG_ENABLE_JIT_DEEPGEMM */
    mp_env_number mega_tokens;     /* SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK */
    mp_env_number fuse_mode;       /* SGLANG_NPU_FUSED_MOE_MODE */
    mp_env_number dispatch_tokens; /* SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK */
} mp_engine_env;

/* Reads them all, also those that will not matter: a value that cannot be read is MP_ERR_INPUT
 * and named. */
int mp_engine_env_read(mp_engine_env *engine, const mp_env *env, mp_error *err);

#endif
