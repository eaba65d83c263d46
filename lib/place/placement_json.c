/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the JSON placement files of SGLang, vllm-ascend and vLLM, recognized by their keys.
 *
 *     SGLang        {"physical_to_logical_map": [[0, 1, ...], ...]}
 *     vLLM          [[0, 1, ...], ...]
 *     vllm-ascend   {"moe_layer_count": 58, "layer_list": [{"layer_id": 3, "device_count": 16,
 *                    "device_list": [{"device_id": 0, "device_expert": [0, 1, ...]}, ...]}, ...]}
 *
 * Unknown keys are refused, since they might change the meaning of the rest. Counts that a file
 * states next to its lists have to match them. Devices have to be in order and equally full,
 * because a row is their lists put end to end. Ids are checked by mp_rows_add. One thread. */
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "place/rows.h"

static int read_ids(mp_rows_read *rows, const json_t *list, mp_error *err)
{
    size_t i;
    json_t *id;
    json_array_foreach(list, i, id)
    {
        if (!json_is_integer(id))
            return mp_fail(err, MP_ERR_INPUT, "placement: row %llu, column %llu: not an integer",
                           (unsigned long long)rows->rows,
                           (unsigned long long)mp_rows_column(rows));
        int rc = mp_rows_add(rows, json_integer_value(id), err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* A list of rows, or one row for all layers. */
static int read_matrix(mp_rows_read *rows, const json_t *matrix, mp_error *err)
{
    int rc = 0;
    if (json_is_integer(json_array_get(matrix, 0))) {
        rc = read_ids(rows, matrix, err);
        return rc != 0 ? rc : mp_rows_end(rows, err);
    }
    size_t i;
    json_t *row;
    json_array_foreach(matrix, i, row)
    {
        if (!json_is_array(row))
            return mp_fail(err, MP_ERR_INPUT, "placement: row %llu is not a list",
                           (unsigned long long)rows->rows);
        rc = read_ids(rows, row, err);
        if (rc == 0)
            rc = mp_rows_end(rows, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Refuses keys that are not in the null-terminated list. */
static int only_keys(const json_t *object, const char *const *known, const char *what,
                     mp_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return mp_fail(err, MP_ERR_INPUT, "%s: unknown key \"%s\"", what, key);
    }
    return 0;
}

static int read_sglang(mp_rows_read *rows, const json_t *root, mp_error *err)
{
    static const char *const keys[] = {"physical_to_logical_map", NULL};
    json_t *matrix;
    int rc = only_keys(root, keys, "placement", err);
    if (rc == 0)
        rc = mp_json_get_array(root, keys[0], "placement", &matrix, err);
    return rc != 0 ? rc : read_matrix(rows, matrix, err);
}

/* Member `key` of an object must be this number. */
static int expect_number(const json_t *object, const char *key, uint64_t expected, const char *what,
                         mp_error *err)
{
    uint64_t value;
    int rc = mp_json_get_u64(object, key, what, &value, err);
    if (rc == 0 && value != expected)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %s is %llu, expected %llu", what, key,
                     (unsigned long long)value, (unsigned long long)expected);
    return rc;
}

static int read_ascend_device(mp_rows_read *rows, const json_t *device, size_t layer, size_t index,
                              size_t experts, mp_error *err)
{
    static const char *const keys[] = {"device_id", "device_expert", NULL};
    char what[96];
    snprintf(what, sizeof(what), "placement: layer_list[%zu].device_list[%zu]", layer, index);
    if (!json_is_object(device))
        return mp_fail(err, MP_ERR_INPUT, "%s: not an object", what);
    json_t *ids;
    int rc = only_keys(device, keys, what, err);
    if (rc == 0)
        rc = expect_number(device, "device_id", index, what, err);
    if (rc == 0)
        rc = mp_json_get_array(device, "device_expert", what, &ids, err);
    if (rc == 0 && json_array_size(ids) != experts)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: device_expert has %zu expert%s, that of device 0 %zu",
                     what, json_array_size(ids), mp_plural(json_array_size(ids)), experts);
    return rc != 0 ? rc : read_ids(rows, ids, err);
}

/* Experts of the first device of a layer, 0 if there is none. */
static size_t first_device_experts(const json_t *devices)
{
    return json_array_size(json_object_get(json_array_get(devices, 0), "device_expert"));
}

static int read_ascend_layer(mp_rows_read *rows, const json_t *layer, size_t index, mp_error *err)
{
    static const char *const keys[] = {"layer_id", "device_count", "device_list", NULL};
    char what[64];
    snprintf(what, sizeof(what), "placement: layer_list[%zu]", index);
    if (!json_is_object(layer))
        return mp_fail(err, MP_ERR_INPUT, "%s: not an object", what);
    json_t *devices;
    uint64_t id;
    int rc = only_keys(layer, keys, what, err);
    if (rc == 0)
        rc = mp_json_get_u64(layer, "layer_id", what, &id, err);
    if (rc == 0)
        /* mp_rows_layer refuses INT32_MAX; a larger number must not wrap to a small one. */
        rc = mp_rows_layer(rows, id > INT32_MAX ? INT32_MAX : (int64_t)id, err);
    if (rc == 0)
        rc = mp_json_get_array(layer, "device_list", what, &devices, err);
    if (rc == 0)
        rc = expect_number(layer, "device_count", json_array_size(devices), what, err);
    if (rc == 0 && index > 0)
        rc = expect_number(layer, "device_count", rows->devices, what, err);
    if (rc == 0)
        rows->devices = json_array_size(devices);
    for (size_t d = 0; rc == 0 && d < json_array_size(devices); d++)
        rc = read_ascend_device(rows, json_array_get(devices, d), index, d,
                                first_device_experts(devices), err);
    return rc != 0 ? rc : mp_rows_end(rows, err);
}

static int read_ascend(mp_rows_read *rows, const json_t *root, mp_error *err)
{
    static const char *const keys[] = {"moe_layer_count", "layer_list", NULL};
    json_t *layers;
    int rc = only_keys(root, keys, "placement", err);
    if (rc == 0)
        rc = mp_json_get_array(root, "layer_list", "placement", &layers, err);
    if (rc == 0)
        rc = expect_number(root, "moe_layer_count", json_array_size(layers), "placement", err);
    for (size_t i = 0; rc == 0 && i < json_array_size(layers); i++)
        rc = read_ascend_layer(rows, json_array_get(layers, i), i, err);
    return rc;
}

int mp_placement_read_json(mp_rows_read *rows, const char *text, uint64_t length, mp_error *err)
{
    json_t *root;
    int rc = mp_json_parse(text, length, "placement", &root, err);
    if (rc != 0)
        return rc;
    if (json_is_array(root))
        rc = read_matrix(rows, root, err);
    else if (json_object_get(root, "moe_layer_count") || json_object_get(root, "layer_list"))
        rc = read_ascend(rows, root, err);
    else if (json_object_get(root, "physical_to_logical_map"))
        rc = read_sglang(rows, root, err);
    else
        rc = mp_fail(err, MP_ERR_INPUT,
                     "placement: neither physical_to_logical_map nor layer_list is there");
    json_decref(root);
    return rc;
}
