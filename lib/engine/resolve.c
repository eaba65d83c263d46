/* SPDX-License-Identifier: Apache-2.0 */
/* Resolving by an engine's rules, and the rules that several engines share: how many ranks, which
 * dispatcher, waterfill.
 *
 * A resolution is a state that rules work on in turn, as hooks of an engine do on its arguments.
 * Each rule writes what it concludes as a decision: what, its value, why, and what decided. There
 * are four ways for a rule to say that something is wrong:
 *
 *   mp_warn        the engine starts and does something else than was asked for
 *   mp_refuse      the engine would not start; other rules still run, so that all reasons are told
 *   MP_ERR_INPUT   the question itself makes no sense, and nothing that follows would
 *   MP_ERR_UNSUPPORTED   likewise, of what an engine or a kernel cannot do
 *
 * Decisions that could not be stored are noted and reported at the end: rules need not check each.
 * One thread. */
#include "engine/engines.h"

#include <inttypes.h>
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
    /* Counted though a text may be missing: releasing frees what there is. */
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

    snprintf(number, sizeof number, "%" PRIu64, value);
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
    /* Of several ranks the one with most: all go the same way in a pass. */
    *tokens = 0;
    *flag = "--dp-tokens";
    for (size_t i = 0; i < flags->num_dp_tokens; i++)
        if (flags->dp_tokens[i] > *tokens)
            *tokens = flags->dp_tokens[i];
    return true;
}

int mp_need_topk(const mp_backend_model *model, mp_error *err)
{
    if (model->experts_per_token > 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "config.json: no number of experts a token (num_experts_per_tok)");
}

bool mp_text_is(const char *text, const char *word)
{
    return strcmp(text, word) == 0;
}

bool mp_text_among(const char *text, const char *const *list)
{
    while (*list && strcmp(*list, text) != 0)
        list++;
    return *list != NULL;
}

bool mp_activation_fits(mp_resolution *r)
{
    static const char *const gated[] = {"", "silu", "swish", "swiglu", NULL};
    static const char *const with_parameters[] = {"swigluoai", "situ", NULL};
    const mp_backend_model *model = r->model;

    if (mp_text_among(model->activation, gated))
        return true;
    if (mp_text_among(model->activation, with_parameters)) {
        mp_warn(r, "activation %s: whether the engine hands its parameters on is not known",
                model->activation);
        return true;
    }
    mp_warn(r, "activation %s (%s): the kernel does not compute it", model->activation,
            model->activation_from);
    return false;
}

/* ------------------------------------------------------------------------
 * Rules that several engines share
 */

/* 1. A variable selects megamoe whatever was asked for. */
int mp_rule_a2a(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    const mp_env_flag *mega = &r->env.use_mega_moe;
    const char *why = flags->backend_given ? "asked for" : "nothing asks for another one";
    mp_backend *b = r->backend;

    (void)err;
    b->use_known = b->has_fix_memory = true;
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
                       "evenly among the %llu ranks of %s",
                       (unsigned long long)physical, (unsigned long long)model->num_experts,
                       (unsigned long long)r->flags->redundant, (unsigned long long)ep, decided_by);
    return mp_slots_init(&b->slots, (uint32_t)model->num_experts, (uint32_t)physical, (uint32_t)ep,
                         (uint32_t)fused, !is_deepep_class(b->backend) && !b->megamoe, err);
}

/* For engines whose experts are spread over all ranks unless they are told otherwise. */
int mp_rule_ep_of_ranks(mp_resolution *r, mp_error *err)
{
    const char *decided_by = r->flags->ep ? "--ep" : "--tp";
    uint64_t ep = r->flags->ep ? r->flags->ep : r->flags->tp;

    mp_decide_number(r, "ep_size", ep, decided_by, "ranks that share the experts");
    return divide_experts(r, ep, decided_by, err);
}

/* 2. Backends that exchange tokens do so among all ranks. */
int mp_rule_ep_size(mp_resolution *r, mp_error *err)
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
int mp_rule_dispatcher(mp_resolution *r, mp_error *err)
{
    mp_a2a backend = r->backend->backend;
    const char *name = mp_a2a_name(backend);

    (void)err;
    switch (backend) {
    case MP_A2A_NONE:
        r->backend->dispatcher = "standard";
        mp_decide(r, "dispatcher", "standard", r->backend_by, "none moves no tokens between ranks");
        break;
    case MP_A2A_FLASHINFER_MEGAMOE:
        mp_decide(r, "dispatcher", "not known", r->backend_by, "not known for this version");
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
int mp_rule_target(mp_resolution *r, mp_error *err)
{
    const mp_dims dims = {r->model->hidden_size, r->model->moe_intermediate_size};
    mp_backend *b = r->backend;
    const mp_target *target;

    if (!b->target) {
        if (!b->megamoe)
            mp_decide(r, "target", "none", r->backend_by,
                      "%s with experts that are %s takes none of the packed layouts",
                      mp_a2a_name(b->backend), mp_backend_model_scheme(r->model));
        return 0;
    }
    /* Later engines have rules of their own for the sizes of megamoe. */
    if (b->megamoe && b->engine != MP_ENGINE_SGLANG_0_5_15)
        return 0;
    target = mp_target_find(b->target);
    if (!target)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "there is no target %s", b->target);
    return target->check(&dims, &b->warnings, err);
}

/* Who reads packed directories, and which placement files. */
int mp_rule_loader(mp_resolution *r, mp_error *err)
{
    const mp_engine_table *engine = mp_engine_table_of(r->flags->engine);
    mp_backend *b = r->backend;

    (void)err;
    b->placement = engine->placement;
    b->loader = engine->loader;
    if (r->flags->engine == MP_ENGINE_SGLANG_2026_09)
        mp_decide(r, "placement", "sglang", "--engine",
                  "--init-expert-location reads .json as --placement-format sglang has it, or .pt");
    else if (r->flags->engine == MP_ENGINE_VLLM_2026_09)
        mp_decide(r, "placement", "none", "--engine",
                  "no file is read: slot i holds expert i mod %" PRIu64, r->model->num_experts);
    else
        mp_decide(r, "placement", "trtllm", "--engine",
                  "num_slots and initial_global_assignments {layer: [expert per slot]}");
    mp_decide(r, "loader", b->loader, "--engine", "what passes packed experts to the engine");
    return 0;
}

/* 9. Waterfill counts what it sends away by physical experts. */
int mp_rule_waterfill(mp_resolution *r, mp_error *err)
{
    bool old = r->flags->engine == MP_ENGINE_SGLANG_0_5_15;
    mp_backend *b = r->backend;
    bool can = old ? is_deepep_class(b->backend) : b->backend == MP_A2A_DEEPEP || b->megamoe;

    (void)err;
    if (can && b->slots.shared == 1) {
        b->waterfill_routed_experts = b->slots.num_physical;
        mp_decide_number(r, "waterfill", b->waterfill_routed_experts, "--shared",
                         "possible, with the physical routed count: %u and %u redundant",
                         b->slots.num_logical, b->slots.num_physical - b->slots.num_logical);
        return 0;
    }
    if (can)
        mp_decide(r, "waterfill", "off", "--shared", "needs one fused shared expert, there are %u",
                  b->slots.shared);
    else
        mp_decide(r, "waterfill", "off", r->backend_by, "needs %s, not %s",
                  old ? "a deepep-class backend (deepep, mooncake, mori)" : "deepep or megamoe",
                  mp_a2a_name(b->backend));
    if (r->flags->waterfill)
        mp_warn(r, "--waterfill has no effect: %s",
                can ? "it needs one fused shared expert, see --shared fused"
                    : "it needs deepep or megamoe");
    return 0;
}

/* What is so before any rule: what was asked for. */
static void start(mp_resolution *r)
{
    const mp_engine_table *engine = mp_engine_table_of(r->flags->engine);
    const mp_backend_flags *flags = r->flags;

    *r->backend = (mp_backend){
        .engine = flags->engine,
        .backend = flags->backend_given ? flags->backend : engine->backend,
        .runner = flags->runner,
        .deepep_mode = flags->deepep_mode,
        .platform = flags->platform,
        .shared = flags->shared,
    };
    /* Each engine calls it otherwise; users may say megamoe to all of them. */
    if (r->backend->backend == MP_A2A_MEGAMOE)
        r->backend->backend = engine->megamoe;
    r->backend_by = flags->backend_given ? "--backend" : "default";
    r->backend_why = flags->backend_given ? "asked for" : "nothing asks for another one";
    r->runner_by = flags->runner == MP_RUNNER_AUTO ? "default" : "--runner";
    r->runner_why =
        flags->runner == MP_RUNNER_AUTO ? "chosen when the model is loaded" : "asked for";
}

int mp_backend_resolve(mp_backend *backend, const mp_backend_flags *flags, const mp_env *env,
                       const mp_backend_model *model, mp_error *err)
{
    mp_resolution r = {.backend = backend, .flags = flags, .model = model, .variables = env};
    int rc;

    err = MP_NEVER_NULL(err);
    rc = mp_backend_check_flags(flags, err);
    if (rc != 0)
        return rc;
    start(&r);
    rc = mp_engine_env_read(&r.env, flags->engine, env, &backend->warnings, err);
    for (mp_rule *const *rule = mp_engine_table_of(flags->engine)->rules; rc == 0 && *rule; rule++)
        rc = (*rule)(&r, err);
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
    mp_problems_release(&backend->refusals);
    mp_problems_release(&backend->warnings);
    memset(backend, 0, sizeof *backend);
}
