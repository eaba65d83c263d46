/* SPDX-License-Identifier: Apache-2.0 */
/* moepack plan: how what the engine will do is printed, as text or as lines for a shell. Text has
 * the decisions in the order of the rules, each with what decided; sizes that are not known are
 * said to be so, never left at 0. Lines are for `eval`: every value stands in single quotes,
 * whatever it holds, and nothing is printed for a start that would fail. */
#include "output.h"
#include "plan.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <moepack/artifact.h>
#include <stdlib.h>
#include <string.h>

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
    printf("\n%" PRIu64 " MoE layer%s, experts are %s (%s)\n", m->num_layers, plural(m->num_layers),
           mp_backend_model_scheme(m), m->scheme_from);
    if (m->num_mtp_blocks > 0 && strcmp(m->source, "config.json") == 0)
        printf("%" PRIu64
               " MTP block%s not counted: whether %s tensors are there, config.json does "
               "not say\n",
               m->num_mtp_blocks, m->num_mtp_blocks == 1 ? " is" : "s are",
               m->num_mtp_blocks == 1 ? "its" : "their");
    putchar('\n');
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
    if (m->has_total) {
        print_bytes("total", m->total, "");
    } else {
        printf("%-22s not known for this version\n", "buffers");
        printf("%-22s not known for this version\n", "total");
    }
}

static void print_verdict(const plan_options *o, const plan_result *r, const output_ink *ink)
{
    const mp_backend_memory *m = &r->memory;
    char text[SIZE_TEXT];

    if (o->gpu_memory == 0)
        return;
    size_text(o->gpu_memory, text);
    if (!m->has_verdict)
        printf("%s: no verdict, %s\n", text,
               m->known && !m->has_total ? "the size of its buffers is not known for this version"
                                         : "this backend's memory is not known");
    else
        printf("%s: %s%s%s\n", text, m->fits ? ink->good : ink->bad,
               m->fits ? "fits" : "does not fit", ink->plain);
    if (m->has_max_tokens)
        printf("largest token cap that fits: %" PRIu64 "\n", m->max_tokens);
}

static void print_checks(const plan_result *r, const output_ink *ink)
{
    for (size_t i = 0; i < r->checks.count; i++) {
        const mp_pack_check *c = &r->checks.items[i];

        printf("%-22s %s%s%s%s%s\n", c->what, c->ok ? ink->good : ink->bad, c->pack,
               c->ok ? "" : ", the engine expects ", c->ok ? "" : c->engine, ink->plain);
    }
}

static void print_pack(const plan_result *r, const output_ink *ink)
{
    if (!r->pack)
        return;
    printf("\na loader checks\n");
    print_checks(r, ink);
    print_name(stdout, r->pack);
    if (r->mismatches.count == 0)
        printf(": %swhat the engine expects%s\n", ink->good, ink->plain);
    else
        printf(": %snot what the engine expects%s\n", ink->bad, ink->plain);
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
    print_problems(stdout, "refused", &r->backend.refusals);
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

static void print_export(const char *name, const char *value)
{
    printf("export %s=", name);
    print_quoted(value);
    putchar('\n');
}

/* A path that holds wherever the engine is started. */
static int print_path(const char *name, const char *dir, const char *file, mp_error *err)
{
    char path[PATH_MAX], *real;

    if (snprintf(path, sizeof path, "%s%s%s", dir, file ? "/" : "", file ? file : "") >=
        (int)sizeof path)
        return cmd_fail(err, MP_ERR_IO, "\"%s\": the path is too long", dir);
    real = realpath(path, NULL);
    if (!real)
        return cmd_fail(err, MP_ERR_IO, "cannot find \"%s\": %s", path, strerror(errno));
    print_export(name, real);
    free(real);
    return 0;
}

/* The placement that goes with a pack, where the engine reads such files; else the one given. */
static int print_placement(const plan_options *o, const plan_result *r, mp_error *err)
{
    const char *form = r->backend.placement;

    if (!form)
        return 0;
    if (r->pack && strcmp(form, "sglang") == 0)
        return print_path("MOEPACK_PLACEMENT", r->pack, MP_PLACEMENT_NAME, err);
    if (o->placement && strcmp(o->placement, "-") != 0)
        return print_path("MOEPACK_PLACEMENT", o->placement, NULL, err);
    return 0;
}

int plan_print_env(const plan_options *o, const plan_result *r, mp_error *err)
{
    const mp_env *env = &r->backend.forward;
    int rc = 0;

    for (size_t i = 0; i < env->count; i++)
        print_export(env->names[i], env->values[i]);
    if (r->pack && r->backend.loader)
        rc = print_path("MOEPACK_DIR", r->pack, NULL, err);
    return rc ? rc : print_placement(o, r, err);
}
