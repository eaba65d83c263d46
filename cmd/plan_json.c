/* SPDX-License-Identifier: Apache-2.0 */
/* moepack plan: what the engine will do, in JSON. */
#include "output.h"
#include "plan.h"

static json_t *number_or_null(bool there, uint64_t number)
{
    return there ? json_integer((json_int_t)number) : json_null();
}

static json_t *text_or_null(const char *text)
{
    return text ? json_string(text) : json_null();
}

static json_t *env_json(const mp_env *env)
{
    json_t *object = json_object();

    for (size_t i = 0; i < env->count; i++)
        json_object_set_new(object, env->names[i], json_string(env->values[i]));
    return object;
}

static json_t *decisions_json(const mp_backend *b)
{
    json_t *list = json_array();

    for (size_t i = 0; i < b->num_decisions; i++) {
        const mp_decision *d = &b->decisions[i];

        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:s, s:s}", "what", d->what, "value", d->value,
                                        "why", d->why, "decided_by", d->decided_by));
    }
    return list;
}

static json_t *problems_json(const mp_problems *problems)
{
    json_t *list = json_array();

    for (uint64_t i = 0; i < problems->count && i < MP_PROBLEMS_KEPT; i++)
        json_array_append_new(list, text_or_null(problems->text[i]));
    return list;
}

static json_t *flag_or_null(bool there, bool flag)
{
    return there ? json_boolean(flag) : json_null();
}

static json_t *memory_json(const mp_backend_memory *m)
{
    bool buffer = m->has_symm_buffer;

    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:{s:o, s:o}, s:o, s:o}", "weights",
                     number_or_null(m->known, m->weights), "scales",
                     number_or_null(m->known, m->scales), "second_scales",
                     number_or_null(m->has_second_scales, m->second_scales), "symm_buffer",
                     number_or_null(buffer, m->symm_buffer), "total",
                     number_or_null(m->known && m->has_total, m->total), "fits",
                     flag_or_null(m->has_verdict, m->fits), "max_tokens",
                     number_or_null(m->has_max_tokens, m->max_tokens), "layer", "weights",
                     number_or_null(m->known, m->layer_weights), "scales",
                     number_or_null(m->known, m->layer_scales), "symm_buffer_fp8_acts",
                     number_or_null(buffer, m->symm_buffer_fp8), "symm_buffer_fp4_acts",
                     number_or_null(buffer, m->symm_buffer_fp4));
}

static json_t *model_json(const mp_backend_model *m)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:o, s:I, s:I, s:o, s:s}", "source", m->source,
                     "hidden_size", (json_int_t)m->hidden_size, "moe_intermediate_size",
                     (json_int_t)m->moe_intermediate_size, "num_experts",
                     (json_int_t)m->num_experts, "num_shared_experts",
                     (json_int_t)m->num_shared_experts, "experts_per_token",
                     number_or_null(m->experts_per_token > 0, m->experts_per_token), "num_layers",
                     (json_int_t)m->num_layers, "num_mtp_blocks", (json_int_t)m->num_mtp_blocks,
                     "scheme", text_or_null(m->has_scheme ? mp_scheme_name(m->scheme) : NULL),
                     "scheme_from", m->scheme_from);
}

static json_t *checks_json(const mp_pack_checks *checks)
{
    json_t *list = json_array();

    for (size_t i = 0; i < checks->count; i++) {
        const mp_pack_check *c = &checks->items[i];

        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:b}", "what", c->what, "pack",
                                              c->pack, "engine", c->engine, "ok", c->ok));
    }
    return list;
}

static json_t *pack_json(const plan_result *r)
{
    if (!r->pack)
        return json_null();
    return json_pack("{s:s, s:b, s:o, s:o}", "path", r->pack, "ok", r->mismatches.count == 0,
                     "mismatches", problems_json(&r->mismatches), "checks",
                     checks_json(&r->checks));
}

int plan_print_json(const plan_result *r, mp_error *err)
{
    const mp_backend *b = &r->backend;
    bool runner = mp_engine_takes(b->engine, "--runner");

    return print_json(
        json_pack("{s:s, s:s, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
                  "s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
                  "engine", mp_engine_name(b->engine), "backend", mp_a2a_name(b->backend), "runner",
                  text_or_null(runner ? mp_runner_name(b->runner) : NULL), "ep_size",
                  (json_int_t)b->slots.ep, "num_physical", (json_int_t)b->slots.num_physical,
                  "dispatcher", text_or_null(b->dispatcher), "target", text_or_null(b->target),
                  "env", env_json(&b->forward), "fix_mega_moe_memory",
                  flag_or_null(b->has_fix_memory, b->fix_mega_moe_memory), "use_mega_moe",
                  flag_or_null(b->use_known, b->use_mega_moe), "acts", text_or_null(b->acts),
                  "dispatcher_output_dtype", text_or_null(b->dispatcher_output_dtype), "fuse_mode",
                  number_or_null(b->fuse_mode > 0, b->fuse_mode), "waterfill_routed_experts",
                  number_or_null(b->waterfill_routed_experts > 0, b->waterfill_routed_experts),
                  "placement", text_or_null(b->placement), "loader", text_or_null(b->loader),
                  "decisions", decisions_json(b), "refusals", problems_json(&b->refusals),
                  "warnings", problems_json(&b->warnings), "memory", memory_json(&r->memory),
                  "model", model_json(&r->model), "pack", pack_json(r)),
        err);
}
