/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as JSON: refused with a message, or its text is parsed to the same value. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

#include "fuzz.h"

static void check_text(const json_t *json)
{
    mp_error err;
    json_t *again;
    char *text = mp_json_text(json);
    require(text != NULL, "text");
    require(mp_json_parse(text, strlen(text), "again", &again, &err) == 0, "text is JSON");
    require(json_equal(json, again), "text is the value");
    json_decref(again);
    free(text);
}

static void check_members(const json_t *json)
{
    mp_error err;
    uint64_t number;
    const char *text;
    json_t *value;
    const json_t *member = json_object_get(json, "a");
    require((mp_json_get_u64(json, "a", "x", &number, &err) == 0) ==
                (json_is_integer(member) && json_integer_value(member) >= 0),
            "integer");
    require((mp_json_get_string(json, "a", "x", &text, &err) == 0) == json_is_string(member),
            "string");
    require((mp_json_get_array(json, "a", "x", &value, &err) == 0) == json_is_array(member),
            "array");
    require((mp_json_get_object(json, "a", "x", &value, &err) == 0) == json_is_object(member),
            "object");
}

/* What is JSON is the same as Python reads it; both refuse with a message. */
static void check_python(const char *text, size_t size, const json_t *json)
{
    mp_error err = {0};
    json_t *python;
    int rc = mp_json_parse_python(text, size, "fuzz", &python, &err);
    require(!json || (rc == 0 && json_equal(json, python)), "JSON");
    require(rc == 0 || (rc == MP_ERR_INPUT && !strchr(err.message, '\n')), "error of Python's");
    json_decref(python);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mp_error err = {0};
    json_t *json;
    int rc = mp_json_parse((const char *)data, size, "fuzz", &json, &err);
    char *text = strndup((const char *)data, size);
    require(text != NULL, "memory");
    check_python(text, strlen(text), strlen(text) == size ? json : NULL);
    free(text);
    if (rc == 0) {
        check_text(json);
        check_members(json);
    } else {
        require(rc == MP_ERR_INPUT && !strchr(err.message, '\n'), "error");
    }
    json_decref(json);
    return 0;
}
