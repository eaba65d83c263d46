/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of exceptions, from wherever quantizers write them. */
#include "verify/exceptions.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/conventions.h"

#define TEXT_MAX (UINT64_C(1) << 28)

static const char *const names[] = {"config.json", "hf_quant_config.json",
                                    "quant_model_description.json"};
#define DESCRIPTION 2 /* a type for each tensor */

static int load(const char *dir, const char *name, json_t **json, mp_error *err)
{
    char *path = mp_path_join(dir, name);
    int rc = path ? 0 : mp_fail_memory(err);

    if (rc == 0 && mp_path_exists(path))
        rc = mp_json_load_python(path, TEXT_MAX, json, err);
    free(path);
    return rc;
}

static int add_list(mp_exceptions *e, const json_t *list, mp_error *err)
{
    size_t n = json_array_size(list);

    if (n == 0)
        return 0;
    mp_pattern *moved = realloc(e->patterns, (e->count + n) * sizeof *moved);
    if (!moved)
        return mp_fail_memory(err);
    e->patterns = moved;
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(list, i));

        if (text)
            mp_pattern_init(&e->patterns[e->count++], text);
    }
    return 0;
}

/* The lists of an object; models of several parts have it deeper. */
static int add_lists(mp_exceptions *e, const json_t *json, mp_error *err)
{
    static const char *const keys[] = {"ignore", "modules_to_not_convert", "ignored_layers",
                                       "exclude_modules"};

    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++)
        if (add_list(e, json_object_get(json, keys[k]), err) != 0)
            return err->code;
    return 0;
}

int mp_exceptions_load(mp_exceptions *e, const char *dir, mp_error *err)
{
    static const char *const nested[] = {"text_config", "language_config", "llm_config"};

    *e = (mp_exceptions){0};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (load(dir, names[i], &e->files[i], err) != 0)
            return err->code;
    if (add_lists(e, json_object_get(e->files[0], "quantization_config"), err) != 0 ||
        add_lists(e, json_object_get(e->files[1], "quantization"), err) != 0)
        return err->code;
    for (size_t i = 0; i < sizeof nested / sizeof nested[0]; i++) {
        const json_t *part = json_object_get(e->files[0], nested[i]);

        if (add_lists(e, json_object_get(part, "quantization_config"), err) != 0)
            return err->code;
    }
    return 0;
}

void mp_exceptions_release(mp_exceptions *e)
{
    for (size_t i = 0; i < e->count; i++)
        mp_pattern_release(&e->patterns[i]);
    free(e->patterns);
    for (size_t i = 0; i < sizeof e->files / sizeof e->files[0]; i++)
        json_decref(e->files[i]);
    *e = (mp_exceptions){0};
}

int mp_exceptions_find(const mp_exceptions *e, const char *weight, const char **entry,
                       mp_error *err)
{
    size_t length = mp_weight_module(weight);
    char *module = mp_format("%.*s", (int)(length ? length : strlen(weight)), weight);
    char *tensor = module ? mp_format("%s%s", module, mp_suffixes[MP_SUFFIX_WEIGHT].text) : NULL;
    int rc = module && tensor ? 0 : mp_fail_memory(err);

    *entry = NULL;
    if (rc == 0) {
        const char *type = json_string_value(json_object_get(e->files[DESCRIPTION], tensor));

        if (type && strcmp(type, "FLOAT") == 0)
            *entry = type;
    }
    for (size_t i = 0; rc == 0 && !*entry && i < e->count; i++)
        if (mp_pattern_match(&e->patterns[i], module) == MP_MATCH_YES)
            *entry = e->patterns[i].text;
    free(module);
    free(tensor);
    return rc;
}
