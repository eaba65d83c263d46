/* SPDX-License-Identifier: Apache-2.0 */
/* The rules in their order, and those that hold for every backend: which it is, how many
 * ranks, which dispatcher, waterfill. */
#include "engine/rules.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* ------------------------------------------------------------------------
 * Decisions
 */

/* Longest text of a reason. */
#define WHY_MAX 400

static mp_decision *next_decision(mp_backend *b)
{
    if (b->num_decisions == b->room) {
        size_t room = b->room ? 2 * b->room : 16;
        mp_decision *more = realloc(b->decisions, room * sizeof *more);

        if (!more)
            return NULL;
        b->decisions = more;
        b->room = room;
    }
    return &b->decisions[b->num_decisions];
}

static void add_decision(mp_resolution *r, const char *what, const char *value,
                         const char *decided_by, const char *why, va_list args)
{
    mp_decision *next = next_decision(r->backend);
    char text[WHY_MAX];

    vsnprintf(text, sizeof text, why, args);
    if (!next) {
        r->out_of_memory = true;
        return;
    }
    *next = (mp_decision){what, strdup(value), strdup(text), decided_by};
    r->backend->num_decisions++;
    r->out_of_memory |= !next->value || !next->why;
}

void mp_decide(mp_resolution *r, const char *what, const char *value, const char *decided_by,
               const char *why, ...)
{
    va_list args;

    va_start(args, why);
    add_decision(r, what, value, decided_by, why, args);
    va_end(args);
}

void mp_decide_number(mp_resolution *r, const char *what, uint64_t value, const char *decided_by,
                      const char *why, ...)
{
    char number[24];
    va_list args;

    snprintf(number, sizeof number, "%llu", (unsigned long long)value);
    va_start(args, why);
    add_decision(r, what, number, decided_by, why, args);
    va_end(args);
}

/* ------------------------------------------------------------------------
 * What several rules ask
 */

bool mp_max_tokens(const mp_backend_flags *flags, uint64_t *tokens, const char **flag)
{
    *tokens = flags->tokens;
    *flag = "--tokens";
    if (flags->num_dp_tokens == 0)
        return flags->tokens_given;
    *tokens = 0;
    *flag = "--dp-tokens";
    for (size_t i = 0; i < flags->num_dp_tokens; i++)
        if (flags->dp_tokens[i] > *tokens)
            *tokens = flags->dp_tokens[i];
    return true;
}

const char *mp_model_scheme_name(const mp_backend_model *model)
{
    return model->has_scheme ? mp_scheme_name(model->scheme) : "of a format that is not recognized";
}

int mp_need_topk(const mp_backend_model *model, mp_error *err)
{
    if (model->experts_per_token > 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "config.json: no number of experts a token (num_experts_per_tok)");
}

/* ------------------------------------------------------------------------
 * Rules for every backend
 */

/* 1. A variable selects megamoe whatever was asked for. */
static int rule_a2a(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    const mp_env_flag *mega = &r->env.use_mega_moe;
    const char *why = flags->backend_given ? "asked for" : "nothing asks for another one";
    mp_backend *b = r->backend;

    (void)err;
    b->backend = flags->backend;
    r->backend_by = flags->backend_given ? "--backend" : "default";
    if (mega->value && flags->backend != MP_A2A_MEGAMOE) {
        if (flags->backend_given)
            mp_problem(&b->warnings, "--backend %s is overridden: %s selects megamoe",
                       mp_a2a_name(flags->backend), mega->name);
        b->backend = MP_A2A_MEGAMOE;
        r->backend_by = mega->name;
        why = "it is true, which selects megamoe whatever was asked for";
    }
    b->megamoe = b->backend == MP_A2A_MEGAMOE;
    mp_decide(r, "backend", mp_a2a_name(b->backend), r->backend_by, "%s", why);
    return 0;
}

/* Fused shared experts have a slot on every rank with these, else a single one. */
static bool is_deepep_class(mp_a2a backend)
{
    return backend == MP_A2A_DEEPEP || backend == MP_A2A_MOONCAKE || backend == MP_A2A_MORI;
}

static int divide_experts(mp_resolution *r, uint64_t ep, const char *decided_by, mp_error *err)
{
    const mp_backend_model *model = r->model;
    mp_backend *b = r->backend;
    uint64_t physical = model->num_experts + r->flags->redundant;
    uint64_t fused = r->flags->shared == MP_SHARED_FUSED ? model->num_shared_experts : 0;

    if (physical > INT32_MAX || ep > INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "ep_size: %llu physical experts, %llu ranks: too many",
                       (unsigned long long)physical, (unsigned long long)ep);
    if (physical % ep != 0)
        return mp_fail(err, MP_ERR_INPUT,
                       "ep_size: %llu physical experts (%llu and %llu redundant) do not divide "
                       "among the %llu ranks of %s",
                       (unsigned long long)physical, (unsigned long long)model->num_experts,
                       (unsigned long long)r->flags->redundant, (unsigned long long)ep, decided_by);
    return mp_slots_init(&b->slots, (uint32_t)model->num_experts, (uint32_t)physical, (uint32_t)ep,
                         (uint32_t)fused, !is_deepep_class(b->backend) && !b->megamoe, err);
}

/* 2. Backends that exchange tokens do so among all ranks. */
static int rule_ep_size(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    mp_a2a backend = r->backend->backend;
    const char *name = mp_a2a_name(backend), *decided_by = "--tp";
    uint64_t ep = flags->tp;

    if (backend == MP_A2A_NONE || backend == MP_A2A_CUSTOMIZED) {
        ep = flags->ep ? flags->ep : 1;
        decided_by = flags->ep ? "--ep" : "default";
        mp_decide_number(r, "ep_size", ep, decided_by, "backend %s leaves it as it is", name);
    } else {
        mp_decide_number(r, "ep_size", ep, decided_by, "backend %s sets it to tp_size", name);
        if (flags->ep && flags->ep != ep)
            mp_problem(&r->backend->warnings,
                       "--ep %llu is ignored: backend %s sets ep_size to tp_size, %llu",
                       (unsigned long long)flags->ep, name, (unsigned long long)ep);
    }
    return divide_experts(r, ep, decided_by, err);
}

/* 4. megamoe and ascend_fuseep move tokens inside their kernels. */
static int rule_dispatcher(mp_resolution *r, mp_error *err)
{
    mp_a2a backend = r->backend->backend;
    const char *name = mp_a2a_name(backend);

    (void)err;
    switch (backend) {
    case MP_A2A_NONE:
        r->backend->dispatcher = "standard";
        mp_decide(r, "dispatcher", "standard", r->backend_by, "none moves no tokens between ranks");
        break;
    case MP_A2A_MEGAMOE:
    case MP_A2A_ASCEND_FUSEEP:
        r->backend->dispatcher = "standard";
        mp_decide(r, "dispatcher", "standard", r->backend_by,
                  "a placeholder: %s moves tokens inside its kernel", name);
        break;
    default:
        r->backend->dispatcher = name;
        mp_decide(r, "dispatcher", name, r->backend_by, "%s has its own", name);
    }
    return 0;
}

/* Where no rule has found a layout, the loader takes the checkpoint as it is. */
static int rule_target(mp_resolution *r, mp_error *err)
{
    const mp_dims dims = {r->model->hidden_size, r->model->moe_intermediate_size};
    mp_backend *b = r->backend;
    const mp_target *target;

    if (!b->target) {
        if (!b->megamoe)
            mp_decide(r, "target", "none", r->backend_by,
                      "%s with experts that are %s takes none of the packed layouts",
                      mp_a2a_name(b->backend), mp_model_scheme_name(r->model));
        return 0;
    }
    target = mp_target_find(b->target);
    if (!target)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "there is no target %s", b->target);
    return target->check(&dims, &b->warnings, err);
}

/* 9. Waterfill counts what it sends away by physical experts. */
static int rule_waterfill(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    if (!is_deepep_class(b->backend)) {
        mp_decide(r, "waterfill", "off", r->backend_by,
                  "needs a deepep-class backend (deepep, mooncake, mori), not %s",
                  mp_a2a_name(b->backend));
    } else if (b->slots.shared != 1) {
        mp_decide(r, "waterfill", "off", "--shared", "needs one fused shared expert, there are %u",
                  b->slots.shared);
    } else {
        b->waterfill_routed_experts = b->slots.num_physical;
        mp_decide_number(r, "waterfill", b->waterfill_routed_experts, "--shared",
                         "possible, with the physical routed count: %u and %u redundant",
                         b->slots.num_logical, b->slots.num_physical - b->slots.num_logical);
    }
    return 0;
}

/* The layout (6) comes before the forward pass (5), which asks whether weights are built. */
static int (*const rules[])(mp_resolution *r, mp_error *err) = {
    rule_a2a,               /* 1 */
    rule_ep_size,           /* 2 */
    rule_dispatcher,        /* 4 */
    mp_rule_fix_memory,     /* 3 */
    mp_rule_megamoe_layout, /* 6 */
    mp_rule_use_mega_moe,   /* 5 */
    mp_rule_deepep_bf16,    /* 7 */
    mp_rule_fuseep,         /* 8 */
    mp_rule_deepep_npu,     /* 8 */
    rule_target,
    rule_waterfill, /* 9 */
};

int mp_backend_resolve(mp_backend *backend, const mp_backend_flags *flags, const mp_env *env,
                       const mp_backend_model *model, mp_error *err)
{
    mp_resolution r = {.backend = backend, .flags = flags, .model = model};
    int rc = mp_engine_env_read(&r.env, env, err);

    memset(backend, 0, sizeof *backend);
    backend->platform = flags->platform;
    backend->shared = flags->shared;
    for (size_t i = 0; rc == 0 && i < sizeof rules / sizeof rules[0]; i++)
        rc = rules[i](&r, err);
    if (rc == 0 && r.out_of_memory)
        rc = mp_fail_memory(err);
    return rc;
}

void mp_backend_release(mp_backend *backend)
{
    for (size_t i = 0; i < backend->num_decisions; i++) {
        free(backend->decisions[i].value);
        free(backend->decisions[i].why);
    }
    free(backend->decisions);
    mp_env_release(&backend->forward);
    mp_problems_release(&backend->warnings);
    memset(backend, 0, sizeof *backend);
}
