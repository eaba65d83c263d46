/* SPDX-License-Identifier: Apache-2.0 */
/* engine/rules.h - the rules by which the engine resolves, one function each, and how they
 * write down what they conclude. */
#ifndef MP_ENGINE_RULES_H
#define MP_ENGINE_RULES_H

#include <moepack/backend.h>

#include "engine/environment.h"

/* What the rules have in common. */
typedef struct mp_resolution {
    mp_backend *backend; /* that is being resolved */
    const mp_backend_flags *flags;
    const mp_backend_model *model;
    mp_engine_env env;
    const char *backend_by; /* what decided on the backend */
    bool out_of_memory;     /* a decision is lost */
} mp_resolution;

/* Writes down a decision; `why` is a format. */
void mp_decide(mp_resolution *r, const char *what, const char *value, const char *decided_by,
               const char *why, ...) __attribute__((format(printf, 5, 6)));
void mp_decide_number(mp_resolution *r, const char *what, uint64_t value, const char *decided_by,
                      const char *why, ...) __attribute__((format(printf, 5, 6)));

/* The most tokens that a rank has in the forward pass, and the flag that says so; false where
 * none does. */
bool mp_max_tokens(const mp_backend_flags *flags, uint64_t *tokens, const char **flag);

/* "mxfp4", or what to call a scheme that is not recognized. */
const char *mp_model_scheme_name(const mp_backend_model *model);

/* MP_ERR_INPUT where nothing gives the number of experts a token. */
int mp_need_topk(const mp_backend_model *model, mp_error *err);

/* megamoe.c */
int mp_rule_fix_memory(mp_resolution *r, mp_error *err);
int mp_rule_megamoe_layout(mp_resolution *r, mp_error *err);
int mp_rule_use_mega_moe(mp_resolution *r, mp_error *err);

/* deepep.c */
int mp_rule_deepep_bf16(mp_resolution *r, mp_error *err);
int mp_rule_deepep_npu(mp_resolution *r, mp_error *err);

/* fuseep.c */
int mp_rule_fuseep(mp_resolution *r, mp_error *err);

#endif
