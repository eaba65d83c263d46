/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/plan.h - what the parts of plan share: working it out, and printing it. */
#ifndef MOEPACK_CMD_PLAN_H
#define MOEPACK_CMD_PLAN_H

#include "options.h"

#include "engine/backend.h"

typedef enum plan_format { PLAN_TEXT, PLAN_ENV } plan_format;

typedef struct plan_options {
    common_options common;
    const char *model;
    const char *engine;
    const char *backend; /* null: not given, here and below */
    const char *runner;
    const char *deepep_mode;
    const char *deepep_dtype;
    const char *platform;
    const char *role;
    const char *overlap;
    uint64_t tp;
    uint64_t ep; /* 0: not given, here and below */
    uint64_t dp;
    uint64_t pp;
    uint64_t attn_cp;
    uint64_t draft_tokens;
    uint64_t fuseep_mode;
    uint64_t graph_bs;
    int chunked_prefill;
    int flashinfer_tokens;
    uint64_t tokens;
    cmd_list dp_tokens;
    const char *quantize;
    uint64_t redundant;
    int shared; /* -1: not given */
    const char *placement;
    const char *pack;
    const char *env_file;
    uint64_t gpu_memory; /* 0: not given */
    plan_format format;
    bool tokens_given;
    bool redundant_given;
    bool graph_bs_given;
    bool chunked_prefill_given;
    bool flashinfer_tokens_given;
    bool prefill_cp;
    bool dynamic_chunking;
    bool w4a4;
    bool waterfill;
    bool eplb;
    bool capture;
    bool env; /* of the process */
} plan_options;

/* What plan has found out. */
typedef struct plan_result {
    mp_backend_model model;
    mp_backend backend;
    mp_backend_memory memory;
    const char *pack; /* path of the packed directory; null: none is checked */
    mp_pack_checks checks;
    mp_problems mismatches;
} plan_result;

int plan_print_json(const plan_result *r, mp_error *err);
void plan_print_text(const plan_options *o, const plan_result *r);

/* "export NAME='VALUE'" for each variable that the engine's start needs: its own, and of a pack or
 * a placement where it lies. MP_ERR_IO. */
int plan_print_env(const plan_options *o, const plan_result *r, mp_error *err);

#endif
