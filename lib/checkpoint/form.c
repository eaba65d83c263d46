/* SPDX-License-Identifier: Apache-2.0 */
/* Forms of experts: read off a checkpoint, or made by a row of the table of conventions.
 *
 * A name in a form is a template below the layer's prefix:
 *
 *     model.layers.3.ffn.experts.0.w1.weight    ->    ffn.experts.{}.w1.weight
 *
 * What expert 0 has stands for all: the catalog has no problems when a form is read off it, so all
 * experts of a layer are stored alike. "{}" occurs in no other way, since every word of a name
 * comes from the tables of names.c and families.c; a fused tensor has no "{}" and keeps its name
 * for any expert.
 *
 * The array is allocated once for each role of three matrices. Both ways of filling a form add at
 * most one tensor for each, so add_tensor() needs no bound. Errors are read from err->code here:
 * err is never null. A form that failed is released and zeroed. */
#include "checkpoint/form.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/matrix.h"
#include "numeric/forms.h"

#include <moepack/numeric.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------
 * Filling a form
 */

void mp_form_release(mp_form *form)
{
    for (size_t i = 0; i < form->num_tensors; i++)
        free(form->tensors[i].name);
    free(form->tensors);
    memset(form, 0, sizeof *form);
}

static int begin_form(mp_form *form, mp_scheme scheme, mp_fusion fusion, mp_error *err)
{
    *form = (mp_form){
        .scheme = scheme,
        .fusion = fusion,
        .tensors = mp_alloc_zeroed(MP_PROJECTIONS * MP_ROLES, sizeof *form->tensors),
    };
    return form->tensors ? 0 : mp_fail_memory(err);
}

/* Adds a tensor; name is taken over, also on failure. */
static int add_tensor(mp_form *form, char *name, mp_projection matrix, mp_role role, mp_dtype dtype,
                      const uint64_t *shape, uint32_t rank, mp_error *err)
{
    mp_form_tensor *t = &form->tensors[form->num_tensors++];

    *t = (mp_form_tensor){
        .name = name,
        .matrix = matrix,
        .role = role,
        .dtype = dtype,
        .rank = rank,
    };
    if (!t->name)
        return mp_fail_memory(err);
    for (uint32_t d = 0; d < rank; d++)
        t->shape[d] = shape[d];
    return 0;
}

/* ------------------------------------------------------------------------
 * Of a checkpoint
 */

/* A layer's tensor as a template: "layers.3.ffn.experts.0.w1.weight" as
 * "ffn.experts.{}.w1.weight". Null without memory. single: the tensor is of expert 0. */
static char *template_of(const mp_moe_layer *layer, const char *name, bool single)
{
    const char *rest = name + strlen(layer->prefix) + 1;
    const char *number = single ? strstr(rest, ".0.") : NULL;

    if (!number)
        return strdup(rest);
    return mp_format("%.*s.{}%s", (int)(number - rest), rest, number + 2);
}

static int add_stored(mp_form *form, const mp_moe_layer *layer, const mp_tensor *tensor,
                      bool single, mp_projection matrix, mp_role role, mp_error *err)
{
    size_t length = strlen(layer->prefix);

    if (strncmp(tensor->name, layer->prefix, length) != 0 || tensor->name[length] != '.')
        return mp_fail(err, MP_ERR_INPUT, "%s: not a tensor of layer %s", tensor->name,
                       layer->prefix);
    if (tensor->rank > COUNT(form->tensors->shape))
        return mp_fail(err, MP_ERR_INPUT, "%s: %u dimensions, expected %zu or less", tensor->name,
                       tensor->rank, COUNT(form->tensors->shape));
    return add_tensor(form, template_of(layer, tensor->name, single), matrix, role, tensor->dtype,
                      tensor->shape, tensor->rank, err);
}

static int add_matrix(mp_form *form, const mp_moe_layer *layer, const mp_matrix *m, bool single,
                      mp_projection matrix, mp_error *err)
{
    for (int role = 0; role < MP_ROLES; role++) {
        const mp_tensor *tensor = mp_matrix_tensor(m, (mp_role)role);

        if (tensor && role != MP_ROLE_BIAS &&
            add_stored(form, layer, tensor, single, matrix, (mp_role)role, err) != 0)
            return err->code;
    }
    return 0;
}

static int add_matrices(mp_form *form, const mp_moe_layer *layer, bool shared, mp_error *err)
{
    const mp_expert *expert = shared ? &layer->shared : layer->experts;
    bool fused = !shared && layer->storage.fusion != MP_FUSION_NONE;
    int rc = 0;

    if (shared && layer->shared_joined) {
        rc = add_matrix(form, layer, &expert->matrix[MP_GATE], false, MP_GATE_UP, err);
        return rc ? rc : add_matrix(form, layer, &expert->matrix[MP_DOWN], false, MP_DOWN, err);
    }
    if (fused && layer->storage.fusion != MP_FUSION_STACKED) {
        rc = add_matrix(form, layer, &layer->fused[0], false, MP_GATE_UP, err);
        return rc ? rc : add_matrix(form, layer, &layer->fused[1], false, MP_DOWN, err);
    }
    for (int p = 0; p < MP_PROJECTIONS && rc == 0; p++)
        rc = add_matrix(form, layer, &expert->matrix[p], !shared && !fused, (mp_projection)p, err);
    return rc;
}

int mp_form_of_layer(const mp_catalog *catalog, const mp_moe_layer *layer, bool shared,
                     mp_form *form, mp_error *err)
{
    const mp_storage *storage = shared ? &layer->shared_storage : &layer->storage;
    int rc;

    memset(form, 0, sizeof *form);
    if (mp_catalog_check(catalog, err) != 0)
        return err->code;
    if (shared ? !layer->has_shared : layer->num_experts == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: no %s expert", layer->prefix,
                       shared ? "shared" : "routed");
    rc = begin_form(form, storage->scheme,
                    shared && layer->shared_joined ? MP_FUSION_ROWS : storage->fusion, err);
    if (rc == 0)
        rc = add_matrices(form, layer, shared, err);
    form->global_divides = storage->global_divides;
    form->block_rows = storage->block_rows;
    form->block_cols = storage->block_cols;
    if (rc != 0)
        mp_form_release(form);
    return rc;
}

/* ------------------------------------------------------------------------
 * Of a convention
 */

static int add_part(mp_form *form, const mp_convention *c, const mp_convention_part *part,
                    const mp_naming *naming, bool shared, mp_projection projection, uint64_t rows,
                    uint64_t cols, mp_error *err)
{
    const mp_suffix_row *suffix = &mp_suffixes[part->suffix];
    const char *const *names = shared ? naming->shared_projection : naming->projection;
    const mp_element element = mp_convention_element(c, part);
    bool is_shape = part->covers == MP_EXTENT_SHAPE;
    const uint64_t shape[] = {is_shape ? 2 : mp_ceil_div(rows, element.rows),
                              mp_ceil_div(cols, element.cols)};
    char *name = mp_format("%s%s%s%s.%s%s", naming->block, naming->block[0] ? "." : "",
                           shared ? naming->shared : naming->experts, shared ? "" : ".{}",
                           names[projection], suffix->text);

    form->global_divides |= suffix->role == MP_ROLE_GLOBAL_SCALE && suffix->divides;
    return add_tensor(form, name, projection, suffix->role, part->dtype, shape,
                      mp_extent_rank(part->covers), err);
}

/* Scales of activations are left out: they are there only where a source had them. */
static int add_parts(mp_form *form, const mp_convention *c, const mp_naming *naming, bool shared,
                     uint64_t hidden, uint64_t intermediate, mp_error *err)
{
    const mp_scheme_form *canonical = mp_scheme_form_of(c->scheme);
    uint32_t cols_of = canonical->canonical ? canonical->cols_of : 1;

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? hidden : intermediate;
        uint64_t cols = p == MP_DOWN ? intermediate : hidden;

        if (cols % cols_of != 0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s of %llu columns cannot be %s: its blocks are %u wide",
                           mp_projection_name((mp_projection)p), (unsigned long long)cols,
                           mp_scheme_name(c->scheme), cols_of);
        for (size_t i = 0; i < MP_CONVENTION_PARTS && c->parts[i].covers != MP_EXTENT_NONE; i++)
            if (mp_suffixes[c->parts[i].suffix].role != MP_ROLE_INPUT_SCALE &&
                add_part(form, c, &c->parts[i], naming, shared, (mp_projection)p, rows, cols,
                         err) != 0)
                return err->code;
    }
    return 0;
}

int mp_form_of_convention(const mp_convention *convention, const mp_naming *naming, bool shared,
                          uint64_t hidden, uint64_t intermediate, mp_form *form, mp_error *err)
{
    int rc = begin_form(form, convention->scheme, convention->fusion, err);

    if (rc == 0)
        rc = add_parts(form, convention, naming, shared, hidden, intermediate, err);
    form->block_rows = convention->block_rows;
    form->block_cols = convention->block_cols;
    if (rc != 0)
        mp_form_release(form);
    return rc;
}

int mp_style_form(const char *style, mp_scheme scheme, const mp_naming *naming, bool shared,
                  uint64_t hidden, uint64_t intermediate, mp_form *form, mp_error *err)
{
    const mp_convention *convention = mp_convention_named(style, scheme, naming, err);

    memset(form, 0, sizeof *form);
    if (!convention)
        return MP_ERR_UNSUPPORTED;
    return mp_form_of_convention(convention, naming, shared, hidden, intermediate, form, err);
}

/* ------------------------------------------------------------------------
 * Reading a form
 */

const mp_form_tensor *mp_form_find(const mp_form *form, mp_projection matrix, mp_role role)
{
    for (size_t i = 0; i < form->num_tensors; i++)
        if (form->tensors[i].matrix == matrix && form->tensors[i].role == role)
            return &form->tensors[i];
    return NULL;
}

char *mp_form_tensor_name(const mp_form_tensor *tensor, const char *prefix, uint32_t expert)
{
    const char *number = strstr(tensor->name, "{}");

    if (!number)
        return mp_format("%s.%s", prefix, tensor->name);
    return mp_format("%s.%.*s%u%s", prefix, (int)(number - tensor->name), tensor->name, expert,
                     number + 2);
}
