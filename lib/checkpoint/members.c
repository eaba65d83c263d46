/* SPDX-License-Identifier: Apache-2.0 */
/* Where the members of a JSON object begin and end.
 *
 *     {"a.weight": {"dtype": ..., "shape": [...]}, "b.weight": ...}
 *      k           v                               k     key, value, and the next key
 *
 * A header can be 100 MB of JSON, which as a jansson tree would take gigabytes. So only one member
 * at a time becomes a tree. Here members are merely delimited: strings by their quotes, arrays and
 * objects by counting brackets, anything else by what may follow it. Invalid JSON can get through
 * this, and is refused when its span is parsed; the object around the members is checked here.
 * Nothing beyond `length` is read, so the text needs no NUL. One thread walks a text. */
#include "checkpoint/members.h"

#include "base/error.h"
#include "base/json.h"

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_space(mp_members *members)
{
    while (members->at < members->length && is_space(members->text[members->at]))
        members->at++;
}

/* The character at hand; NUL, which is no JSON outside strings, behind the end. */
static char peek(const mp_members *members)
{
    return members->at < members->length ? members->text[members->at] : '\0';
}

static int unexpected(const mp_members *members, const char *expected, mp_error *err)
{
    return mp_fail(err, MP_ERR_INPUT, "header byte %zu: expected %s", members->at, expected);
}

static int skip_string(mp_members *members, mp_error *err)
{
    size_t at = members->at + 1;
    while (at < members->length && members->text[at] != '"')
        /* This may step past the end by one, which the comparison after the loop allows for. */
        at += members->text[at] == '\\' ? 2 : 1;
    if (at >= members->length)
        return mp_fail(err, MP_ERR_INPUT, "header byte %zu: string without an end", members->at);
    members->at = at + 1;
    return 0;
}

/* An array or an object: to the bracket that closes the first one. */
static int skip_brackets(mp_members *members, mp_error *err)
{
    size_t begin = members->at;
    size_t depth = 0;
    do {
        char c = peek(members);
        if (c == '"') {
            int rc = skip_string(members, err);
            if (rc != 0)
                return rc;
            continue;
        }
        /* Whether brackets match is for jansson to check; only the end of the span matters here. */
        if (c == '{' || c == '[')
            depth++;
        else if (c == '}' || c == ']')
            depth--;
        members->at++;
    } while (depth > 0 && members->at < members->length);
    if (depth > 0)
        return mp_fail(err, MP_ERR_INPUT, "header byte %zu: bracket without an end", begin);
    return 0;
}

/* A number, true, false or null: to what can follow it. */
static void skip_word(mp_members *members)
{
    while (members->at < members->length) {
        char c = members->text[members->at];
        if (is_space(c) || c == ',' || c == '}')
            return;
        members->at++;
    }
}

static int take_value(mp_members *members, mp_span *value, mp_error *err)
{
    size_t begin = members->at;
    int rc = 0;
    char c = peek(members);
    if (c == '"')
        rc = skip_string(members, err);
    else if (c == '{' || c == '[')
        rc = skip_brackets(members, err);
    else
        skip_word(members);
    if (rc != 0)
        return rc;
    if (members->at == begin)
        return unexpected(members, "a value", err);
    *value = (mp_span){members->text + begin, members->at - begin};
    return 0;
}

static int take_key(mp_members *members, mp_span *key, mp_error *err)
{
    size_t begin = members->at;
    if (peek(members) != '"')
        return unexpected(members, "a name in quotes", err);
    int rc = skip_string(members, err);
    if (rc != 0)
        return rc;
    *key = (mp_span){members->text + begin, members->at - begin};
    skip_space(members);
    if (peek(members) != ':')
        return unexpected(members, "':'", err);
    members->at++;
    skip_space(members);
    return 0;
}

static int take_end(mp_members *members, mp_error *err)
{
    members->at++;
    skip_space(members);
    if (members->at < members->length)
        return unexpected(members, "nothing after the object", err);
    return 0;
}

int mp_members_next(mp_members *members, mp_span *key, mp_span *value, bool *found, mp_error *err)
{
    bool first = members->at == 0;
    if (first && peek(members) != '{')
        return unexpected(members, "'{'", err);
    if (first)
        members->at++;
    skip_space(members);
    *found = false;
    if (peek(members) == '}')
        return take_end(members, err);
    if (!first) {
        if (peek(members) != ',')
            return unexpected(members, "',' or '}'", err);
        members->at++;
        skip_space(members);
    }
    int rc = take_key(members, key, err);
    if (rc == 0)
        rc = take_value(members, value, err);
    *found = rc == 0;
    return rc;
}

int mp_members_parse(const mp_members *members, mp_span span, size_t flags, json_t **json,
                     mp_error *err)
{
    json_error_t where;
    *json = json_loadb(span.text, span.length, flags | JSON_DECODE_ANY, &where);
    if (*json)
        return 0;
    if (mp_json_out_of_memory(&where))
        return mp_fail_memory(err);
    size_t at = (size_t)(span.text - members->text) + (size_t)where.position;
    return mp_fail(err, MP_ERR_INPUT, "header byte %zu: %s", at, where.text);
}
