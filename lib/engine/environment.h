/* SPDX-License-Identifier: Apache-2.0 */
/* engine/environment.h - the variables that decide, read as the engine reads them. */
#ifndef MP_ENGINE_ENVIRONMENT_H
#define MP_ENGINE_ENVIRONMENT_H

#include "engine/backend.h"

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
    int64_t value;
} mp_env_number;

typedef struct mp_engine_env {
    mp_env_flag use_mega_moe; /* SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE */
    mp_env_flag fix_memory;   /* SGLANG_OPT_FIX_MEGA_MOE_MEMORY */
    mp_env_flag use_fp4_acts; /* SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS */
    mp_env_flag use_mxf4_kind;
    mp_env_flag dg_fp4_acts; /* DG_USE_FP4_ACTS: what DeepGEMM reads */
    mp_env_flag dg_mxf4_kind;
    mp_env_flag dg_fp8_combine;
    mp_env_flag jit_deepgemm;       /* SGLANG_ENABLE_JIT_DEEPGEMM */
    mp_env_flag fuse_shared;        /* SGLANG_OPT_DEEPGEMM_MEGA_MOE_FUSE_SHARED_EXPERTS */
    mp_env_flag fp4_dequant;        /* SGLANG_DSV4_FP4_DEQUANT */
    mp_env_flag bf16_dispatch;      /* SGLANG_DEEPEP_BF16_DISPATCH */
    mp_env_flag fc2_reduce;         /* SGLANG_FLASHINFER_MEGAMOE_IN_KERNEL_FC2_REDUCE */
    mp_env_flag flydsl;             /* SGLANG_AMD_USE_FLYDSL_MEGA_MOE */
    mp_env_number flydsl_tokens;    /* SGLANG_AMD_FLYDSL_MEGA_MOE_MTPR */
    mp_env_number mori_tokens;      /* SGLANG_MORI_NUM_MAX_DISPATCH_TOKENS_PER_RANK */
    mp_env_number pplx_tokens;      /* SGLANG_PPLX_..., likewise */
    mp_env_number deepep_v2_tokens; /* SGLANG_DEEPEP_V2_... */
    mp_env_number deepep_hccl;      /* DEEPEP_HCCL_BUFFSIZE, MiB */
    mp_env_number hccl;             /* HCCL_BUFFSIZE */
    mp_env_number mega_tokens;      /* SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK */
    mp_env_number fuse_mode;        /* SGLANG_NPU_FUSED_MOE_MODE */
    mp_env_number dispatch_tokens;  /* SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK */
} mp_engine_env;

/* Reads all that an engine has, also those that will not matter. A value that cannot be read is
 * named: sglang-0.5.15 ends with it, MP_ERR_INPUT; later ones warn and take the default. */
int mp_engine_env_read(mp_engine_env *values, mp_engine engine, const mp_env *env,
                       mp_problems *warnings, mp_error *err);

#endif
