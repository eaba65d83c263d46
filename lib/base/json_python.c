/* SPDX-License-Identifier: Apache-2.0 */
/* JSON exactly as Python's json.dumps(value, sort_keys=True) writes it, because others digest that
 * text.
 *
 *     {"a": [1, 2.5, 1e-05], "b": "\u00e9\ud83d\ude00"}
 *
 * A blank follows each colon and comma. Everything beyond ASCII is escaped, in surrogate pairs from
 * U+10000 on. A float is printed with the fewest digits that read back as the same value, which is
 * what repr() does. Nesting is limited by jansson, so recursion is too. */
#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static void put_string(FILE *out, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    putc('"', out);
    while (*p) {
        /* jansson has seen to it that this is UTF-8. */
        unsigned length = *p < 0x80 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
        uint32_t code = length == 1 ? *p : *p & (0x7fu >> length);
        static const char escaped[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
        const char *found = length == 1 ? strchr(escaped, *p) : NULL;

        for (unsigned i = 1; i < length; i++)
            code = code << 6 | (p[i] & 0x3f);
        p += length;
        if (found)
            fprintf(out, "\\%c", letters[found - escaped]);
        else if (code >= 0x10000)
            fprintf(out, "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10),
                    0xdc00 + ((code - 0x10000) & 0x3ff));
        else if (code < 0x20 || code > 0x7e)
            fprintf(out, "\\u%04x", code);
        else
            putc((int)code, out);
    }
    putc('"', out);
}

/* repr() of a float: the fewest digits that read back as it, with an exponent below 1e-4 and from
 * 1e16 on. */
static void put_real(FILE *out, double value)
{
    char digits[40];
    int precision = 0;

    do
        snprintf(digits, sizeof digits, "%.*e", precision, value);
    while (strtod(digits, NULL) != value && ++precision < 17);
    int exponent = (int)strtol(strchr(digits, 'e') + 1, NULL, 10);

    if (value != 0 && (exponent < -4 || exponent >= 16))
        fprintf(out, "%s", digits);
    else
        fprintf(out, "%.*f", precision > exponent ? precision - exponent : 1, value);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool put_value(FILE *out, const json_t *json);

/* Code points and bytes of UTF-8 have the same order. */
static bool put_object(FILE *out, json_t *json)
{
    size_t count = json_object_size(json), n = 0;
    const char **keys = malloc((count + 1) * sizeof *keys), *key;
    bool put = keys != NULL;
    json_t *value;

    if (!keys)
        return false;
    json_object_foreach(json, key, value) keys[n++] = key;
    qsort(keys, n, sizeof *keys, compare_keys);
    putc('{', out);
    for (size_t i = 0; i < n && put; i++) {
        fputs(i ? ", " : "", out);
        put_string(out, keys[i]);
        fputs(": ", out);
        put = put_value(out, json_object_get(json, keys[i]));
    }
    putc('}', out);
    free(keys);
    return put;
}

static bool put_value(FILE *out, const json_t *json)
{
    bool put = true;

    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return put_object(out, (json_t *)json);
    case JSON_ARRAY:
        putc('[', out);
        for (size_t i = 0; i < json_array_size(json) && put; i++) {
            fputs(i ? ", " : "", out);
            put = put_value(out, json_array_get(json, i));
        }
        putc(']', out);
        return put;
    case JSON_STRING:
        put_string(out, json_string_value(json));
        return true;
    case JSON_INTEGER:
        fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(json));
        return true;
    case JSON_REAL:
        put_real(out, json_real_value(json));
        return true;
    case JSON_TRUE:
        fputs("true", out);
        return true;
    case JSON_FALSE:
        fputs("false", out);
        return true;
    default:
        fputs("null", out);
        return true;
    }
}

char *mp_json_text_python(const json_t *json)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);

    if (!out)
        return NULL;
    bool put = put_value(out, json);
    if (mp_text_finish(out, &text, NULL) == 0 && put)
        return text;
    free(text);
    return NULL;
}
