/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest's forms, by which unpack turns a pack back into a checkpoint, against the source. A
 * pack with every slot right and a form wrong is served well and comes back under false names, so
 * the form is a claim to check like any other.
 *
 * Two truths to hold it against. Experts that passed through come back as they were: each name,
 * type and shape in the form has to be that of every expert of the source, with "{}" in the place
 * of its number. Those that were requantized come back in the style that is usual for their new
 * scheme, which mp_style_form makes of sizes and names alone; then the two forms have to be equal.
 *
 * Only the first difference of a form is told: the others tend to follow from it. Of joined gate
 * and up only gate is asked, which has the tensors of both. Biases are not packed and in no form.
 * One thread; a layer's forms are a few tensors. */
#include "verify/source.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/form.h"
#include "checkpoint/matrix.h"
#include "pack/manifest.h"

/* Experts of a layer that a form describes: the routed ones, or the shared one. */
typedef struct group {
    mp_check *check;
    size_t layer;
    const mp_moe_layer *layer_of; /* the source's */
    const char *what;             /* "experts" */
    const mp_form *form;
    const mp_storage *storage;
    const mp_expert *experts;
    uint32_t num_experts;
    const mp_target *target;
} group;

static bool differ(const group *g, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Makes a fault; false, to be returned. */
static bool differ(const group *g, const char *format, ...)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_EXACT, -1);
    char text[MP_ERROR_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    spot.layer = (int64_t)g->layer;
    mp_fault_add(&g->check->faults, &spot, "%s: form of the %s: %s", MP_MANIFEST_NAME, g->what,
                 text);
    return false;
}

static bool same_storage(const group *g)
{
    const mp_form *form = g->form;
    const mp_storage *s = g->storage;
    /* The catalog opens joined shared experts as two matrices, but they go back as the one tensor
     * that they were. */
    bool joined = g->layer_of->shared_joined && g->experts == &g->layer_of->shared;
    mp_fusion fusion = joined ? MP_FUSION_ROWS : s->fusion;

    if (form->scheme != s->scheme)
        return differ(g, "scheme \"%s\", the source has \"%s\"", mp_scheme_name(form->scheme),
                      mp_scheme_name(s->scheme));
    if (form->fusion != fusion)
        return differ(g, "fusion \"%s\", the source has \"%s\"", mp_fusion_name(form->fusion),
                      mp_fusion_name(fusion));
    if (form->global_divides != s->global_divides)
        return differ(g, "the second scale %s, in the source it %s",
                      form->global_divides ? "divides" : "multiplies",
                      s->global_divides ? "divides" : "multiplies");
    if (form->block_rows != s->block_rows || form->block_cols != s->block_cols)
        return differ(g, "blocks of %ux%u, the source has %ux%u", form->block_rows,
                      form->block_cols, s->block_rows, s->block_cols);
    return true;
}

/* True if `name` is PREFIX.PATTERN with the expert's number in the place of "{}":
 *
 *   layers.3.ffn  experts.{}.w1.weight  7     ->  layers.3.ffn.experts.7.w1.weight */
static bool is_named(const char *name, const char *prefix, const char *pattern, uint32_t expert)
{
    const char *hole = strstr(pattern, "{}");
    size_t before = hole ? (size_t)(hole - pattern) : strlen(pattern), length = strlen(prefix);
    char number[16];

    if (strncmp(name, prefix, length) != 0 || name[length] != '.')
        return false;
    name += length + 1;
    if (strncmp(name, pattern, before) != 0)
        return false;
    if (!hole)
        return name[before] == '\0';
    length = (size_t)snprintf(number, sizeof number, "%u", expert);
    return strncmp(name + before, number, length) == 0 &&
           strcmp(name + before + length, hole + 2) == 0;
}

static bool same_tensor(const group *g, uint32_t expert, const mp_form_tensor *listed,
                        const mp_tensor *tensor)
{
    char a[MP_SHAPE_TEXT], b[MP_SHAPE_TEXT];

    if (!is_named(tensor->name, g->check->manifest.layers[g->layer], listed->name, expert))
        return differ(g, "%s of expert %u is called %s, in the source %s",
                      mp_role_name(listed->role), expert, listed->name, tensor->name);
    /* The ranks are the same by the time shapes are compared, so neither array is overrun. */
    if (listed->dtype != tensor->dtype || listed->rank != tensor->rank ||
        memcmp(listed->shape, tensor->shape, tensor->rank * sizeof *tensor->shape) != 0)
        return differ(g, "%s is %s %s, in the source %s %s", tensor->name,
                      mp_dtype_name(listed->dtype), mp_shape_text(listed->shape, listed->rank, a),
                      mp_dtype_name(tensor->dtype), mp_shape_text(tensor->shape, tensor->rank, b));
    return true;
}

/* The tensors of a matrix of one expert; *listed is added to. */
static bool same_matrix(const group *g, uint32_t expert, mp_projection name,
                        const mp_matrix *matrix, size_t *listed)
{
    for (int r = 0; r < MP_ROLES; r++) {
        mp_role role = (mp_role)r;
        const mp_tensor *tensor = role == MP_ROLE_BIAS ? NULL : mp_matrix_tensor(matrix, role);
        const mp_form_tensor *found = mp_form_find(g->form, name, role);

        *listed += found != NULL;
        if (found && !tensor)
            return differ(g, "%s, but expert %u of the source has no %s of %s", found->name, expert,
                          mp_role_name(role), mp_projection_name(name));
        if (!found && tensor && !(g->check->manifest.dropped & MP_ROLE_BIT(role)))
            return differ(g, "no %s of %s, the source has %s", mp_role_name(role),
                          mp_projection_name(name), tensor->name);
        if (found && !same_tensor(g, expert, found, tensor))
            return false;
    }
    return true;
}

static bool same_expert(const group *g, uint32_t expert)
{
    const mp_matrix *matrix = g->experts[expert].matrix;
    bool fused = g->form->fusion != MP_FUSION_NONE && g->form->fusion != MP_FUSION_STACKED;
    size_t listed = 0;

    if (!same_matrix(g, expert, fused ? MP_GATE_UP : MP_GATE, &matrix[MP_GATE], &listed) ||
        (!fused && !same_matrix(g, expert, MP_UP, &matrix[MP_UP], &listed)) ||
        !same_matrix(g, expert, MP_DOWN, &matrix[MP_DOWN], &listed))
        return false;
    /* Tensors of the form that no role of any matrix asked for. */
    if (listed != g->form->num_tensors)
        return differ(g, "%zu tensor%s, the source has %zu", g->form->num_tensors,
                      mp_plural(g->form->num_tensors), listed);
    return true;
}

/* Experts that went through as they were. */
static bool same_source(const group *g)
{
    if (!same_storage(g))
        return false;
    for (uint32_t e = 0; e < g->num_experts; e++)
        if (!same_expert(g, e))
            return false;
    return true;
}

/* ------------------------------------------------------------------------
 * Experts that were requantized
 */

static bool same_listed(const group *g, const mp_form_tensor *want)
{
    const mp_form_tensor *have = mp_form_find(g->form, want->matrix, want->role);
    char a[MP_SHAPE_TEXT], b[MP_SHAPE_TEXT];

    if (!have)
        return differ(g, "no %s of %s", mp_role_name(want->role), mp_projection_name(want->matrix));
    if (strcmp(have->name, want->name) == 0 && have->dtype == want->dtype &&
        have->rank == want->rank &&
        memcmp(have->shape, want->shape, want->rank * sizeof *want->shape) == 0)
        return true;
    return differ(g, "%s %s %s, expected %s %s %s", have->name, mp_dtype_name(have->dtype),
                  mp_shape_text(have->shape, have->rank, a), want->name, mp_dtype_name(want->dtype),
                  mp_shape_text(want->shape, want->rank, b));
}

static bool same_form(const group *g, const mp_form *want)
{
    const mp_form *have = g->form;

    if (have->scheme != want->scheme || have->fusion != want->fusion)
        return differ(g, "scheme \"%s\", fusion \"%s\", expected \"%s\" and \"%s\"",
                      mp_scheme_name(have->scheme), mp_fusion_name(have->fusion),
                      mp_scheme_name(want->scheme), mp_fusion_name(want->fusion));
    if (have->global_divides != want->global_divides || have->block_rows != want->block_rows ||
        have->block_cols != want->block_cols || have->num_tensors != want->num_tensors)
        return differ(g, "%zu tensors in blocks of %ux%u, expected %zu and %ux%u",
                      have->num_tensors, have->block_rows, have->block_cols, want->num_tensors,
                      want->block_rows, want->block_cols);
    for (size_t i = 0; i < want->num_tensors; i++)
        if (!same_listed(g, &want->tensors[i]))
            return false;
    return true;
}

/* They come back in the usual style of the scheme that they are in now. */
static int same_style(const group *g, bool shared, bool *same, mp_error *err)
{
    const mp_manifest *m = &g->check->manifest;
    uint64_t width = m->moe_intermediate_size * (shared ? m->num_shared_experts : 1);
    mp_naming naming = *g->layer_of->naming;
    mp_form want;

    if (shared)
        naming.shared = g->layer_of->shared_name;
    int rc =
        mp_style_form(NULL, g->target->scheme, &naming, shared, m->hidden_size, width, &want, err);
    if (rc != 0)
        return rc;
    *same = same_form(g, &want);
    mp_form_release(&want);
    return 0;
}

/* ------------------------------------------------------------------------
 * All layers
 */

/* Whether experts went through as they were. Scales of a target that wants powers of two decide
 * that for shared experts by their values; the manifest says what they decided, and match_shared
 * (source.c) has read the scales to see that it may. */
static bool is_lossless(const group *g, bool shared)
{
    return mp_passes_through(g->storage, g->target) &&
           (!shared || !g->target->ue8m0 || mp_manifest_passes(&g->check->manifest, true));
}

static int match_group(const group *g, bool shared, bool *match, mp_error *err)
{
    bool same = true;
    int rc = 0;

    if (is_lossless(g, shared))
        same = same_source(g);
    else
        rc = same_style(g, shared, &same, err);
    *match &= same;
    return rc;
}

int mp_forms_match(const mp_source *source, mp_check *check, bool *match, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    int rc = 0;

    for (size_t i = 0; i < m->num_layers && rc == 0; i++) {
        const mp_moe_layer *layer = source->layers[i];
        group g = {
            .check = check,
            .layer = i,
            .layer_of = layer,
            .what = "experts",
            .form = &m->forms[m->layer_form[i]],
            .storage = &layer->storage,
            .experts = layer->experts,
            .num_experts = layer->num_experts,
            .target = check->shape.sets[MP_SET_SLOTS].target,
        };

        rc = match_group(&g, false, match, err);
        if (rc != 0 || m->shared == MP_SHARED_NONE)
            continue;
        g.what = "shared expert";
        g.form = &m->forms[m->shared_form[i]];
        g.storage = &layer->shared_storage;
        g.experts = &layer->shared;
        g.num_experts = 1;
        g.target = check->shape.sets[check->shape.num_sets - 1].target;
        rc = match_group(&g, true, match, err);
    }
    return rc;
}
