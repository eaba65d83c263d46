/* SPDX-License-Identifier: Apache-2.0 */
/* JSON texts to jansson values and back, with errors that say where and what. */
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

bool mp_json_out_of_memory(const json_error_t *where)
{
    return where->text[0] == '\0' || json_error_code(where) == json_error_out_of_memory;
}

int mp_json_parse(const char *text, uint64_t length, const char *what, json_t **json, mp_error *err)
{
    json_error_t where;
    json_object_seed(0); /* before jansson meets a second thread; later calls do nothing */
    *json = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
    if (*json)
        return 0;
    if (mp_json_out_of_memory(&where))
        return mp_fail_memory(err);
    return mp_fail(err, MP_ERR_INPUT, "%s: line %d, column %d: %s", what, where.line, where.column,
                   where.text);
}

int mp_json_load(const char *path, uint64_t limit, json_t **json, mp_error *err)
{
    char *text;
    uint64_t length;
    *json = NULL;
    int rc = mp_read_text(path, limit, &text, &length, err);
    if (rc != 0)
        return rc;
    const char *what = strcmp(path, "-") == 0 ? "standard input" : path;
    rc = mp_json_parse(text, length, what, json, err);
    free(text);
    return rc;
}

char *mp_json_text(const json_t *json)
{
    const size_t flags = JSON_INDENT(2) | JSON_ENCODE_ANY;
    size_t n = json_dumpb(json, NULL, 0, flags);
    char *text = n > 0 ? mp_alloc((uint64_t)n + 2, 1) : NULL;
    if (!text)
        return NULL;
    if (json_dumpb(json, text, n, flags) != n) {
        free(text);
        return NULL;
    }
    text[n] = '\n';
    text[n + 1] = '\0';
    return text;
}

static const char *type_name(json_type type)
{
    switch (type) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "nothing";
}

static int get(const json_t *object, const char *key, const char *what, json_type type,
               json_t **value, mp_error *err)
{
    if (!json_is_object(object))
        return mp_fail(err, MP_ERR_INPUT, "%s: expected an object", what);
    *value = json_object_get(object, key);
    if (!*value)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is missing", what, key);
    if (json_typeof(*value) != type)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is %s, expected %s", what, key,
                       type_name(json_typeof(*value)), type_name(type));
    return 0;
}

int mp_json_get_u64(const json_t *object, const char *key, const char *what, uint64_t *value,
                    mp_error *err)
{
    json_t *member;
    int rc = get(object, key, what, JSON_INTEGER, &member, err);
    if (rc != 0)
        return rc;
    json_int_t number = json_integer_value(member);
    if (number < 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" is %lld, expected 0 or more", what, key,
                       (long long)number);
    *value = (uint64_t)number;
    return 0;
}

int mp_json_get_string(const json_t *object, const char *key, const char *what, const char **value,
                       mp_error *err)
{
    json_t *member;
    int rc = get(object, key, what, JSON_STRING, &member, err);
    if (rc == 0)
        *value = json_string_value(member);
    return rc;
}

int mp_json_get_array(const json_t *object, const char *key, const char *what, json_t **value,
                      mp_error *err)
{
    return get(object, key, what, JSON_ARRAY, value, err);
}

int mp_json_get_object(const json_t *object, const char *key, const char *what, json_t **value,
                       mp_error *err)
{
    return get(object, key, what, JSON_OBJECT, value, err);
}
