/* SPDX-License-Identifier: Apache-2.0 */
/* Counts in JSON: {"logical_count": ...}, also as SGLang's recorder has it, or the list alone. */
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "place/counts.h"

/* "step 2, row 5" or "row 5"; returns its buffer. */
static const char *place_text(char text[64], bool has_steps, size_t step, size_t layer)
{
    if (has_steps)
        snprintf(text, 64, "step %zu, row %zu", step, layer);
    else
        snprintf(text, 64, "row %zu", layer);
    return text;
}

static int read_row(double *out, const json_t *row, bool has_steps, size_t step, size_t layer,
                    mp_error *err)
{
    size_t i;
    json_t *count;
    char where[64];
    json_array_foreach(row, i, count)
    {
        if (!json_is_number(count))
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s, column %zu: not a number",
                           place_text(where, has_steps, step, layer), i);
        out[i] = json_number_value(count);
        int rc = mp_check_count(out[i], has_steps, step, layer, i, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Lists of the same shape as the first step, all of them. Returns before any number is read. */
static int check_shape(const json_t *matrix, const json_t *first, bool has_steps, size_t step,
                       mp_error *err)
{
    size_t layer, layers = json_array_size(first), n = json_array_size(json_array_get(first, 0));
    json_t *row;
    char where[64];
    if (!json_is_array(matrix))
        return mp_fail(err, MP_ERR_INPUT, "logical_count: step %zu is not a list", step);
    if (layers == 0)
        return mp_fail(err, MP_ERR_INPUT, "logical_count: no layers");
    if (json_array_size(matrix) != layers)
        return mp_fail(err, MP_ERR_INPUT, "logical_count: step %zu has %zu rows, step 0 has %zu",
                       step, json_array_size(matrix), layers);
    json_array_foreach(matrix, layer, row)
    {
        place_text(where, has_steps, step, layer);
        if (!json_is_array(row))
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s is not a list", where);
        if (json_array_size(row) == 0)
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s is empty", where);
        if (json_array_size(row) != n)
            return mp_fail(err, MP_ERR_INPUT, "logical_count: %s has %zu expert%s, row 0 has %zu",
                           where, json_array_size(row), mp_plural(json_array_size(row)), n);
    }
    return 0;
}

static int read_counts(mp_steps *s, const json_t *counts, mp_error *err)
{
    bool has_steps = json_is_array(json_array_get(json_array_get(counts, 0), 0));
    const json_t *first = has_steps ? json_array_get(counts, 0) : counts;
    size_t steps = has_steps ? json_array_size(counts) : 1, layers = json_array_size(first);
    int rc = 0;
    for (size_t step = 0; rc == 0 && step < steps; step++)
        rc = check_shape(has_steps ? json_array_get(counts, step) : counts, first, has_steps, step,
                         err);
    if (rc == 0)
        rc = mp_steps_init(s, steps, layers, json_array_size(json_array_get(first, 0)), err);
    for (size_t i = 0; rc == 0 && i < steps * layers; i++) {
        const json_t *matrix = has_steps ? json_array_get(counts, i / layers) : counts;
        rc = read_row(s->count + i * s->num_logical, json_array_get(matrix, i % layers), has_steps,
                      i / layers, i % layers, err);
    }
    return rc;
}

int mp_counts_read_json(mp_steps *s, const char *text, uint64_t length, mp_error *err)
{
    static const char *const known[] = {"logical_count", "rank",
                                        "average_utilization_rate_over_window"};
    json_t *root, *counts, *value;
    const char *key;
    int rc = mp_json_parse(text, length, "counts", &root, err);
    if (rc != 0)
        return rc;
    counts = root;
    if (!json_is_array(root))
        rc = mp_json_get_array(root, "logical_count", "counts", &counts, err);
    json_object_foreach(root, key, value)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
            found |= strcmp(key, known[i]) == 0;
        if (rc == 0 && !found)
            rc = mp_fail(err, MP_ERR_INPUT, "counts: unknown key \"%.60s\"", key);
    }
    if (rc == 0)
        rc = read_counts(s, counts, err);
    json_decref(root);
    return rc;
}
