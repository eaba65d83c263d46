/* SPDX-License-Identifier: Apache-2.0 */
/* moepack plan: how what the engine will do is printed: text, JSON, lines for a shell. */
#include "output.h"
#include "plan.h"

#include <inttypes.h>
#include <string.h>

/* ------------------------------------------------------------------------
 * JSON
 */

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

static json_t *memory_json(const mp_backend_memory *m)
{
    bool buffer = m->has_symm_buffer;

    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:{s:o, s:o}, s:o, s:o}", "weights",
        number_or_null(m->known, m->weights), "scales", number_or_null(m->known, m->scales),
        "second_scales", number_or_null(m->has_second_scales, m->second_scales), "symm_buffer",
        number_or_null(buffer, m->symm_buffer), "total", number_or_null(m->known, m->total), "fits",
        m->has_verdict ? json_boolean(m->fits) : json_null(), "max_tokens",
        number_or_null(m->has_max_tokens, m->max_tokens), "layer", "weights",
        number_or_null(m->known, m->layer_weights), "scales",
        number_or_null(m->known, m->layer_scales), "symm_buffer_fp8_acts",
        number_or_null(buffer, m->symm_buffer_fp8), "symm_buffer_fp4_acts",
        number_or_null(buffer, m->symm_buffer_fp4));
}

static json_t *model_json(const mp_backend_model *m)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:o, s:I, s:o}", "source", m->source, "hidden_size",
                     (json_int_t)m->hidden_size, "moe_intermediate_size",
                     (json_int_t)m->moe_intermediate_size, "num_experts",
                     (json_int_t)m->num_experts, "num_shared_experts",
                     (json_int_t)m->num_shared_experts, "experts_per_token",
                     number_or_null(m->experts_per_token > 0, m->experts_per_token), "num_layers",
                     (json_int_t)m->num_layers, "scheme",
                     text_or_null(m->has_scheme ? mp_scheme_name(m->scheme) : NULL));
}

static json_t *pack_json(const plan_result *r)
{
    if (!r->pack)
        return json_null();
    return json_pack("{s:s, s:b, s:o}", "path", r->pack, "ok", r->mismatches.count == 0,
                     "mismatches", problems_json(&r->mismatches));
}

int plan_print_json(const plan_options *o, const plan_result *r, mp_error *err)
{
    const mp_backend *b = &r->backend;

    (void)o;
    return print_json(
        json_pack("{s:s, s:I, s:I, s:s, s:o, s:o, s:b, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
                  "s:o, s:o}",
                  "backend", mp_a2a_name(b->backend), "ep_size", (json_int_t)b->slots.ep,
                  "num_physical", (json_int_t)b->slots.num_physical, "dispatcher", b->dispatcher,
                  "target", text_or_null(b->target), "env", env_json(&b->forward),
                  "fix_mega_moe_memory", b->fix_mega_moe_memory, "use_mega_moe", b->use_mega_moe,
                  "acts", text_or_null(b->acts), "dispatcher_output_dtype",
                  text_or_null(b->dispatcher_output_dtype), "fuse_mode",
                  number_or_null(b->fuse_mode > 0, b->fuse_mode), "waterfill_routed_experts",
                  number_or_null(b->waterfill_routed_experts > 0, b->waterfill_routed_experts),
                  "decisions", decisions_json(b), "warnings", problems_json(&b->warnings), "memory",
                  memory_json(&r->memory), "model", model_json(&r->model), "pack", pack_json(r)),
        err);
}

/* ------------------------------------------------------------------------
 * Text
 */

static void print_model(const mp_backend_model *m)
{
    printf("%s: hidden size %" PRIu64 ", expert intermediate size %" PRIu64 ", %" PRIu64
           " experts, %" PRIu64 " shared",
           m->source, m->hidden_size, m->moe_intermediate_size, m->num_experts,
           m->num_shared_experts);
    if (m->experts_per_token > 0)
        printf(", %" PRIu64 " a token", m->experts_per_token);
    printf("\n%" PRIu64 " MoE layers, experts are %s (%s)\n\n", m->num_layers,
           m->has_scheme ? mp_scheme_name(m->scheme) : "of a format that is not recognized",
           m->scheme_from);
}

static void print_decisions(const mp_backend *b, const output_ink *ink)
{
    for (size_t i = 0; i < b->num_decisions; i++) {
        const mp_decision *d = &b->decisions[i];

        printf("%-22s %s%s%s: %s (%s)\n", d->what, ink->bold, d->value, ink->plain, d->why,
               d->decided_by);
    }
}

static void print_bytes(const char *what, uint64_t bytes, const char *more)
{
    char text[SIZE_TEXT];

    printf("%-22s %16" PRIu64 "  %8s%s\n", what, bytes, size_text(bytes, text), more);
}

static void print_memory(const mp_backend_memory *m)
{
    char layer[2 * SIZE_TEXT], text[SIZE_TEXT];

    if (!m->known)
        return;
    printf("\nbytes a rank\n");
    snprintf(layer, sizeof layer, "  %s a layer", size_text(m->layer_weights, text));
    print_bytes("weights", m->weights, layer);
    snprintf(layer, sizeof layer, "  %s a layer", size_text(m->layer_scales, text));
    print_bytes("scales", m->scales, layer);
    if (m->has_second_scales)
        print_bytes("second scales", m->second_scales, "  for the ordinary path");
    if (m->has_symm_buffer) {
        print_bytes("symmetric buffer", m->symm_buffer, "");
        print_bytes("  with FP8 activations", m->symm_buffer_fp8, "");
        print_bytes("  with FP4 activations", m->symm_buffer_fp4, "");
    }
    print_bytes("total", m->total, "");
}

static void print_verdict(const plan_options *o, const plan_result *r, const output_ink *ink)
{
    const mp_backend_memory *m = &r->memory;
    char text[SIZE_TEXT];

    if (o->gpu_memory == 0)
        return;
    size_text(o->gpu_memory, text);
    if (!m->has_verdict)
        printf("%s: no verdict, this backend's memory is not known\n", text);
    else
        printf("%s: %s%s%s\n", text, m->fits ? ink->good : ink->bad,
               m->fits ? "fits" : "does not fit", ink->plain);
    if (m->has_max_tokens)
        printf("largest token cap that fits: %" PRIu64 "\n", m->max_tokens);
}

static void print_pack(const plan_result *r, const output_ink *ink)
{
    if (!r->pack)
        return;
    if (r->mismatches.count == 0)
        printf("\n%s: %swhat the engine wants%s\n", r->pack, ink->good, ink->plain);
    else
        printf("\n%s: %snot what the engine wants%s\n", r->pack, ink->bad, ink->plain);
    print_problems(stdout, "mismatch", &r->mismatches);
}

void plan_print_text(const plan_options *o, const plan_result *r)
{
    output_ink ink = ink_for(stdout, &o->common);

    print_model(&r->model);
    print_decisions(&r->backend, &ink);
    for (size_t i = 0; i < r->backend.forward.count; i++)
        printf("%-22s %s=%s\n", "environment", r->backend.forward.names[i],
               r->backend.forward.values[i]);
    print_memory(&r->memory);
    print_verdict(o, r, &ink);
    print_pack(r, &ink);
}

/* ------------------------------------------------------------------------
 * Lines for a shell
 */

/* Between single quotes nothing is special but a single quote. */
static void print_quoted(const char *text)
{
    putchar('\'');
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*text);
    }
    putchar('\'');
}

void plan_print_env(const plan_result *r)
{
    const mp_env *env = &r->backend.forward;

    for (size_t i = 0; i < env->count; i++) {
        printf("export %s=", env->names[i]);
        print_quoted(env->values[i]);
        putchar('\n');
    }
}
