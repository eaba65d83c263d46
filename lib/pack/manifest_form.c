/* SPDX-License-Identifier: Apache-2.0 */
/* Forms of experts in the manifest: JSON and back.
 *
 *     "forms": [{"scheme": "mxfp4", "fusion": "none", "global_divides": false,
 *                "block_rows": 1, "block_cols": 32,
 *                "tensors": [{"name": "ffn.experts.{}.w1.weight", "matrix": "gate",
 *                             "role": "weight", "dtype": "I8", "shape": [2048, 2048]}, ...]}],
 *     "layer_forms": [0, 0, 0, ...]
 *
 * A form is all that unpack needs to write experts the way the source had them: names, types and
 * shapes of one expert's tensors, with {} for its number. Most models have one or two forms, so
 * forms are listed once and layers refer to them by number, which is checked. An extent of null
 * means a block that covers everything on that side.
 *
 * Entries under "errors" tell whether experts passed through: everything requantized has one, even
 * if nothing was lost. One thread. */
#include "pack/manifest.h"

#include "base/error.h"
#include "base/json.h"
#include "base/words.h"
#include "checkpoint/form.h"
#include "checkpoint/shard.h"

#include <stdlib.h>
#include <string.h>

#define DIMS_MAX (sizeof(((mp_form_tensor *)0)->shape) / sizeof(uint64_t))

void mp_manifest_release_forms(mp_manifest *m)
{
    for (size_t i = 0; i < m->num_forms; i++)
        mp_form_release(&m->forms[i]);
    free(m->forms);
    free(m->layer_form);
    free(m->shared_form);
}

/* ------------------------------------------------------------------------
 * Errors
 */

static bool is_of(const mp_layer_error *e, bool shared)
{
    return (strncmp(e->matrix, "shared ", strlen("shared ")) == 0) == shared;
}

bool mp_manifest_passes(const mp_manifest *m, bool shared)
{
    bool passes = shared ? m->shared_lossless : m->lossless;

    for (size_t i = 0; i < m->num_errors; i++)
        passes &= !is_of(&m->errors[i], shared);
    return passes;
}

bool mp_manifest_compressed(const mp_manifest *m)
{
    return m->num_ranks > 0 && m->ranks[0].num_files > 0 &&
           mp_shard_name_compressed(m->ranks[0].files[0].name);
}

uint64_t mp_manifest_requantized_blocks(const mp_manifest *m, bool shared)
{
    uint64_t blocks = 0;

    for (size_t i = 0; i < m->num_errors; i++)
        if (is_of(&m->errors[i], shared))
            blocks += m->errors[i].requantized_blocks;
    return blocks;
}

/* ------------------------------------------------------------------------
 * Writing
 */

/* Rows or columns of a block; null where it covers all. */
static json_t *extent_json(uint32_t extent)
{
    return extent == UINT32_MAX ? json_null() : json_integer(extent);
}

static json_t *tensor_json(const mp_form_tensor *tensor)
{
    json_t *shape = json_array();

    for (uint32_t d = 0; d < tensor->rank; d++)
        shape = mp_json_append(shape, json_integer((json_int_t)tensor->shape[d]));
    return json_pack("{s:s, s:s, s:s, s:s, s:o}", "name", tensor->name, "matrix",
                     mp_projection_name(tensor->matrix), "role", mp_role_name(tensor->role),
                     "dtype", mp_dtype_name(tensor->dtype), "shape", shape);
}

static json_t *form_json(const mp_form *form)
{
    json_t *tensors = json_array();

    for (size_t i = 0; i < form->num_tensors; i++)
        tensors = mp_json_append(tensors, tensor_json(&form->tensors[i]));
    return json_pack("{s:s, s:s, s:b, s:o, s:o, s:o}", "scheme", mp_scheme_name(form->scheme),
                     "fusion", mp_fusion_name(form->fusion), "global_divides", form->global_divides,
                     "block_rows", extent_json(form->block_rows), "block_cols",
                     extent_json(form->block_cols), "tensors", tensors);
}

static json_t *numbers_json(const uint32_t *numbers, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        list = mp_json_append(list, json_integer(numbers[i]));
    return list;
}

json_t *mp_manifest_with_forms(json_t *json, const mp_manifest *m)
{
    json_t *forms = json_array();

    for (size_t i = 0; i < m->num_forms; i++)
        forms = mp_json_append(forms, form_json(&m->forms[i]));
    json = mp_json_with(json, "forms", forms);
    json = mp_json_with(json, "layer_forms", numbers_json(m->layer_form, m->num_layers));
    if (m->shared_form)
        json = mp_json_with(json, "shared_forms", numbers_json(m->shared_form, m->num_layers));
    return json;
}

/* ------------------------------------------------------------------------
 * Reading
 */

static int read_shape(const json_t *json, mp_form_tensor *tensor, mp_error *err)
{
    json_t *shape;

    if (mp_json_get_array(json, "shape", MP_MANIFEST_NAME, &shape, err) != 0)
        return err->code;
    if (json_array_size(shape) > DIMS_MAX)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s: %zu dimensions, at most %zu", MP_MANIFEST_NAME,
                       tensor->name, json_array_size(shape), DIMS_MAX);
    tensor->rank = (uint32_t)json_array_size(shape);
    for (uint32_t d = 0; d < tensor->rank; d++) {
        const json_t *size = json_array_get(shape, d);

        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return mp_fail(err, MP_ERR_INPUT, "%s: %s: dimension %u is not a size",
                           MP_MANIFEST_NAME, tensor->name, d);
        tensor->shape[d] = (uint64_t)json_integer_value(size);
    }
    return 0;
}

static int read_tensor(const json_t *json, mp_form_tensor *tensor, mp_error *err)
{
    const char *dtype, *matrix, *role;

    if (mp_manifest_string(json, "name", &tensor->name, err) != 0 ||
        mp_json_get_string(json, "matrix", MP_MANIFEST_NAME, &matrix, err) != 0 ||
        mp_json_get_string(json, "role", MP_MANIFEST_NAME, &role, err) != 0 ||
        mp_json_get_string(json, "dtype", MP_MANIFEST_NAME, &dtype, err) != 0)
        return err->code;
    if (!mp_projection_parse(matrix, &tensor->matrix))
        return mp_manifest_unknown("matrix", matrix, err);
    if (!mp_role_parse(role, &tensor->role))
        return mp_manifest_unknown("role", role, err);
    if (!mp_dtype_parse(dtype, &tensor->dtype))
        return mp_manifest_unknown("dtype", dtype, err);
    return read_shape(json, tensor, err);
}

static int read_extent(const json_t *json, const char *key, uint32_t *extent, mp_error *err)
{
    const json_t *value = json_object_get(json, key);
    uint64_t number;

    *extent = UINT32_MAX;
    if (json_is_null(value))
        return 0;
    if (mp_json_get_u64(json, key, MP_MANIFEST_NAME, &number, err) != 0)
        return err->code;
    if (number == 0 || number >= UINT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" of %llu", MP_MANIFEST_NAME, key,
                       (unsigned long long)number);
    *extent = (uint32_t)number;
    return 0;
}

static int read_form(const json_t *json, mp_form *form, mp_error *err)
{
    const char *scheme, *fusion;
    void *list;
    json_t *array;

    if (mp_json_get_string(json, "scheme", MP_MANIFEST_NAME, &scheme, err) != 0 ||
        mp_json_get_string(json, "fusion", MP_MANIFEST_NAME, &fusion, err) != 0)
        return err->code;
    if (!mp_scheme_parse(scheme, &form->scheme))
        return mp_manifest_unknown("scheme", scheme, err);
    if (!mp_fusion_parse(fusion, &form->fusion))
        return mp_manifest_unknown("fusion", fusion, err);
    if (mp_manifest_flag(json, "global_divides", &form->global_divides, err) != 0 ||
        read_extent(json, "block_rows", &form->block_rows, err) != 0 ||
        read_extent(json, "block_cols", &form->block_cols, err) != 0 ||
        mp_manifest_list(json, "tensors", sizeof *form->tensors, &array, &list, &form->num_tensors,
                         err) != 0)
        return err->code;
    form->tensors = list;
    for (size_t i = 0; i < form->num_tensors; i++)
        if (read_tensor(json_array_get(array, i), &form->tensors[i], err) != 0)
            return err->code;
    return 0;
}

/* A number of a form for each layer. */
static int read_numbers(const json_t *root, const char *key, const mp_manifest *m,
                        uint32_t **numbers, mp_error *err)
{
    void *list;
    json_t *array;
    size_t count;

    if (mp_manifest_list(root, key, sizeof **numbers, &array, &list, &count, err) != 0)
        return err->code;
    *numbers = list;
    if (count != m->num_layers)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" of %zu layer%s, expected %zu",
                       MP_MANIFEST_NAME, key, count, mp_plural(count), m->num_layers);
    for (size_t i = 0; i < count; i++) {
        const json_t *number = json_array_get(array, i);

        if (!json_is_integer(number) || json_integer_value(number) < 0 ||
            (uint64_t)json_integer_value(number) >= m->num_forms)
            return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\": entry %zu is not one of %zu forms",
                           MP_MANIFEST_NAME, key, i, m->num_forms);
        (*numbers)[i] = (uint32_t)json_integer_value(number);
    }
    return 0;
}

int mp_manifest_read_forms(const json_t *root, mp_manifest *m, mp_error *err)
{
    void *list;
    json_t *array;

    if (mp_manifest_list(root, "forms", sizeof *m->forms, &array, &list, &m->num_forms, err) != 0)
        return err->code;
    m->forms = list;
    for (size_t i = 0; i < m->num_forms; i++)
        if (read_form(json_array_get(array, i), &m->forms[i], err) != 0)
            return err->code;
    if (read_numbers(root, "layer_forms", m, &m->layer_form, err) != 0)
        return err->code;
    if (json_object_get(root, "shared_forms"))
        return read_numbers(root, "shared_forms", m, &m->shared_form, err);
    return 0;
}
