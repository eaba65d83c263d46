/* SPDX-License-Identifier: Apache-2.0 */
/* JSON text to jansson values and back, with errors that say where and what.
 *
 * Duplicate keys are refused everywhere. Jansson keeps the last, other readers keep the first, and
 * a tensor must not mean one thing to us and another to an engine. Values are read through getters
 * that name the object and the key, so no caller meets a null or an unexpected type.
 *
 * Files written by Python may contain NaN and Infinity, which are not JSON. These words are put in
 * quotes before jansson sees the text. That takes no parser of our own, only knowing where strings
 * are, and it cannot turn invalid text into valid text.
 *
 * The seed of jansson's hash tables is the only thing that threads share, and it is set before the
 * first text is parsed. Values belong to one thread. */
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/foreign.h"

bool mp_json_out_of_memory(const json_error_t *where)
{
    return where->text[0] == '\0' || json_error_code(where) == json_error_out_of_memory;
}

static json_t *decode(const char *text, uint64_t length, json_error_t *where)
{
    json_object_seed(0); /* before jansson meets a second thread; later calls do nothing */
    return json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, where);
}

static int fail_where(const json_error_t *where, int column, const char *what, mp_error *err)
{
    if (mp_json_out_of_memory(where))
        return mp_fail_memory(err);
    return mp_fail(err, MP_ERR_INPUT, "%s: line %d, column %d: %s", what, where->line, column,
                   where->text);
}

int mp_json_parse(const char *text, uint64_t length, const char *what, json_t **json, mp_error *err)
{
    json_error_t where;

    *json = decode(text, length, &where);
    return *json ? 0 : fail_where(&where, where.column, what, err);
}

/* ------------------------------------------------------------------------
 * As Python reads and writes it
 */

/* Length of the word at p that Python's json takes for a number, or 0. */
static size_t number_word(const char *p, const char *end)
{
    static const char *const words[] = {"NaN", "Infinity", "-Infinity"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        size_t n = strlen(words[i]);

        if ((size_t)(end - p) >= n && memcmp(p, words[i], n) == 0)
            return n;
    }
    return 0;
}

/* Whether what follows makes a word at this place the name of a member, which it cannot be. */
static bool is_key(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n'))
        p++;
    return p < end && *p == ':';
}

/* Writes the text with its number words in quotes, and stops where `limit` bytes are reached.
 * Whatever else is wrong with the text stays wrong: quotes inside of what is no value do not make
 * it one. Returns the bytes written; *words: of the last line. out: may be null, to count. */
static size_t quote_words(const char *text, size_t length, size_t limit, char *out, size_t *words)
{
    const char *end = text + length;
    bool in_string = false;
    size_t n = 0;

    *words = 0;
    for (const char *p = text; p < end && n < limit;) {
        size_t word = in_string ? 0 : number_word(p, end);
        bool quoted = word > 0 && !is_key(p + word, end);
        /* A backslash takes the next byte along, so an escaped quote does not end the string. */
        size_t take = word > 0 ? word : in_string && *p == '\\' && p + 1 < end ? 2 : 1;

        if (out && quoted)
            out[n] = out[n + take + 1] = '"';
        if (out)
            memcpy(out + n + quoted, p, take);
        in_string ^= *p == '"';
        *words = *p == '\n' ? 0 : *words + quoted;
        n += take + 2 * (size_t)quoted;
        p += take;
    }
    return n;
}

const char *mp_json_skip_mark(const char *text)
{
    static const char mark[] = "\xEF\xBB\xBF";

    return strncmp(text, mark, sizeof mark - 1) == 0 ? text + sizeof mark - 1 : text;
}

int mp_json_parse_python(const char *text, uint64_t length, const char *what, json_t **json,
                         mp_error *err)
{
    const char *body = mp_json_skip_mark(text);
    size_t n = (size_t)length - (size_t)(body - text), words, quoted;
    json_error_t where;
    char *copy;
    int rc = 0;

    /* Count first, then write: a bound by length alone would be two thirds too large. */
    quoted = quote_words(body, n, SIZE_MAX, NULL, &words);
    copy = mp_alloc((uint64_t)quoted + 1, 1);
    *json = NULL;
    if (!copy)
        return mp_fail_memory(err);
    quote_words(body, n, SIZE_MAX, copy, &words);
    *json = decode(copy, quoted, &where);
    if (!*json) {
        /* The column is to be that of the file, which has no such quotes. */
        quote_words(body, n, where.position > 0 ? (size_t)where.position : 0, NULL, &words);
        rc = fail_where(&where, where.column - 2 * (int)words, what, err);
    }
    free(copy);
    return rc;
}

/* ------------------------------------------------------------------------
 * Files
 */

typedef int parse_function(const char *text, uint64_t length, const char *what, json_t **json,
                           mp_error *err);

static int load(const char *path, uint64_t limit, parse_function *parse, json_t **json,
                mp_error *err)
{
    char *text;
    uint64_t length;
    *json = NULL;
    bool is_stdin = strcmp(path, "-") == 0;
    int rc = (is_stdin ? mp_read_text : mp_read_file)(path, limit, &text, &length, err);
    if (rc != 0)
        return rc;
    const char *what = is_stdin ? "standard input" : path;
    const char *foreign = mp_foreign_content(text, length);
    if (foreign)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %s", what, foreign);
    else
        rc = parse(text, length, what, json, err);
    free(text);
    return rc;
}

int mp_json_load(const char *path, uint64_t limit, json_t **json, mp_error *err)
{
    return load(path, limit, mp_json_parse, json, err);
}

int mp_json_load_python(const char *path, uint64_t limit, json_t **json, mp_error *err)
{
    return load(path, limit, mp_json_parse_python, json, err);
}

/* Measure first, then dump into memory of exactly that size. */
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

/* Every member is looked up here, so that a missing or mistyped one is always named. */
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
