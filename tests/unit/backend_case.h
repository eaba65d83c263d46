/* SPDX-License-Identifier: Apache-2.0 */
/* A deployment to resolve: flags, variables and a model, each of which a test changes. */
#ifndef TESTS_UNIT_BACKEND_CASE_H
#define TESTS_UNIT_BACKEND_CASE_H

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "engine/backend.h"

static mp_backend_flags flags;
static mp_backend_model model;
static mp_env env;
static mp_backend backend;
static mp_error err;

/* DeepSeek V4 Flash on eight GPUs, nothing asked for, by the rules of sglang-0.5.15. */
static inline void start_case(void)
{
    mp_env_release(&env);
    mp_backend_release(&backend);
    err = (mp_error){0};
    flags = (mp_backend_flags){.engine = MP_ENGINE_SGLANG_0_5_15, .tp = 8};
    model = (mp_backend_model){
        .source = "config.json",
        .hidden_size = 4096,
        .moe_intermediate_size = 2048,
        .num_experts = 256,
        .num_shared_experts = 1,
        .experts_per_token = 6,
        .num_layers = 44,
        .has_scheme = true,
        .scheme = MP_SCHEME_MXFP4,
        .scheme_from = "expert_dtype",
        .quant_config = true,
        .quant_method = "fp8",
        .quantization = "fp8",
        .model_type = "deepseek_v4",
        .architecture = "DeepseekV4ForCausalLM",
        .activation = "silu",
        .activation_from = "hidden_act",
    };
}

static inline void end_case(void)
{
    mp_env_release(&env);
    mp_backend_release(&backend);
}

static inline void ask_for(mp_a2a a2a)
{
    flags.backend = a2a;
    flags.backend_given = true;
}

static inline void set_scheme(mp_scheme scheme)
{
    mp_backend_model_quantize(&model, scheme);
}

static inline void set_env(const char *name, const char *value)
{
    cr_assert_eq(mp_env_set(&env, name, value, &err), 0, "%s", err.message);
}

static inline int resolve(void)
{
    mp_backend_release(&backend);
    return mp_backend_resolve(&backend, &flags, &env, &model, &err);
}

static inline void resolve_well(void)
{
    cr_assert_eq(resolve(), 0, "%s", err.message);
}

static inline void expect_failure(int code, const char *message)
{
    cr_assert_eq(resolve(), code, "%s", message);
    cr_assert_str_eq(err.message, message);
    cr_assert_eq(err.code, code);
}

static inline const mp_decision *find_decision(const char *what)
{
    for (size_t i = 0; i < backend.num_decisions; i++)
        if (strcmp(backend.decisions[i].what, what) == 0)
            return &backend.decisions[i];
    return NULL;
}

static inline void expect_decision(const char *what, const char *value, const char *decided_by)
{
    const mp_decision *d = find_decision(what);

    cr_assert(d, "no decision %s", what);
    cr_assert_str_eq(d->value, value, "%s is %s, expected %s", what, d->value, value);
    cr_assert_str_eq(d->decided_by, decided_by, "%s: by %s, expected %s", what, d->decided_by,
                     decided_by);
    cr_assert_str_not_empty(d->why);
}

static inline void expect_why(const char *what, const char *why)
{
    const mp_decision *d = find_decision(what);

    cr_assert(d, "no decision %s", what);
    cr_assert_str_eq(d->why, why);
}

/* The only warning, or none where text is null. */
static inline void expect_warning(const char *text)
{
    cr_assert_eq(backend.warnings.count, text ? 1 : 0, "%llu warnings, the first: %s",
                 (unsigned long long)backend.warnings.count,
                 backend.warnings.count ? backend.warnings.text[0] : "");
    if (text)
        cr_assert_str_eq(backend.warnings.text[0], text);
}

static inline void expect_text(const char *found, const char *expected)
{
    cr_assert_str_eq(found ? found : "null", expected ? expected : "null");
}

/* What is handed to the kernels, "A=1 B=0". */
static inline void expect_forward(const char *expected)
{
    char text[512] = "";

    for (size_t i = 0; i < backend.forward.count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s=%s", i ? " " : "",
                 backend.forward.names[i], backend.forward.values[i]);
    cr_assert_str_eq(text, expected);
}

#endif
