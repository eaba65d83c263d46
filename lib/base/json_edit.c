/* SPDX-License-Identifier: Apache-2.0 */
/* Members of a JSON text: where they are, and editing one of them in place.
 *
 *     {"a": 1,  "text_config": {"b": [2, 3]}}
 *            b  k              v            e     before, key, value and end of "text_config"
 *
 * A config.json belongs to somebody: people diff it, and 1e-05 has to stay 1e-05. So the text is
 * edited in place instead of being parsed and dumped. The scanner below relies on two things that
 * its callers guarantee: the text is valid JSON, because jansson has read it, and every object on a
 * path exists. It checks nothing itself, and it terminates because quotes and brackets match.
 *
 * A key may be spelled with escapes, and is the same key then, as for a parser. One thread works on
 * a text. */
#include "base/json_edit.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* ------------------------------------------------------------------------
 * Where things stand in a valid text
 */

static const char *skip_space(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

/* Behind a string that begins at p. */
static const char *skip_string(const char *p)
{
    for (p++; *p != '"'; p++)
        if (*p == '\\')
            p++;
    return p + 1;
}

/* Behind a value that begins at p. */
static const char *skip_value(const char *p)
{
    size_t depth = 0;

    if (*p == '"')
        return skip_string(p);
    /* A number or a word contains no quotes or brackets, and ends at the next separator. */
    if (*p != '{' && *p != '[')
        return p + strcspn(p, ",]} \t\r\n");
    do {
        if (*p == '"') {
            p = skip_string(p);
            continue;
        }
        /* In a valid text it does not matter which bracket closes which. */
        depth += *p == '{' || *p == '[';
        depth -= *p == '}' || *p == ']';
        p++;
    } while (depth > 0);
    return p;
}

typedef struct member {
    const char *before; /* the comma or brace in front of it */
    const char *key;    /* its quote; null: there is no member */
    const char *value;
    const char *end; /* behind the value */
} member;

/* The first member of an object; after it, the next one. */
static member first_member(const char *object)
{
    member m = {.before = object, .key = skip_space(object + 1)};

    if (*m.key == '}')
        return (member){.before = object};
    m.value = skip_space(skip_space(skip_string(m.key)) + 1);
    m.end = skip_value(m.value);
    return m;
}

static member next_member(const member *m)
{
    const char *comma = skip_space(m->end);

    return *comma == ',' ? first_member(comma) : (member){.before = comma};
}

/* Whether a member's key reads as `key`, which is ASCII. Characters beyond that differ from all of
 * its own, in bytes or escaped. */
static bool has_key(const member *m, const char *key)
{
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const char *p = m->key + 1;

    for (; *key && *p != '"'; key++) {
        unsigned long c = (unsigned char)*p++;

        if (c == '\\' && *p == 'u') {
            const char digits[] = {p[1], p[2], p[3], p[4], '\0'};

            c = strtoul(digits, NULL, 16);
            p += 5;
        } else if (c == '\\') {
            c = (unsigned char)meant[strchr(letters, *p++) - letters];
        }
        if (c != (unsigned char)*key)
            return false;
    }
    return *key == '\0' && *p == '"';
}

/* The member of that key; without a key where there is none. last: set to the last member that
 * was looked at, without a key in an empty object. */
static member find_member(const char *object, const char *key, member *last)
{
    member m = first_member(object);

    for (*last = m; m.key && !has_key(&m, key); m = next_member(&m))
        *last = m;
    return m;
}

/* Every object on the path exists: see json_edit.h. */
static const char *find_object(const char *text, mp_json_path path)
{
    const char *object = skip_space(text);
    member last;

    for (; path && *path; path++)
        object = find_member(object, *path, &last).value;
    return object;
}

/* ------------------------------------------------------------------------
 * Changed texts
 */

/* Puts `middle` where [from, to) of the text is. */
static int splice(char **text, const char *from, const char *to, const char *middle, mp_error *err)
{
    char *changed = mp_format("%.*s%s%s", (int)(from - *text), *text, middle, to);

    if (!changed)
        return mp_fail_memory(err);
    free(*text);
    *text = changed;
    return 0;
}

/* White space in front of a member: what stands between the comma or brace and its key. A new
 * member behind it gets the same, and with it the file's indentation, whether spaces, a tab or
 * none. */
static char *space_before(const member *m)
{
    return m->key ? strndup(m->before + 1, (size_t)(m->key - m->before - 1)) : strdup("");
}

/* A value's text, every line but the first behind `space`; on one line where that has no line
 * break. Null without memory. */
static char *value_text(const json_t *value, const char *space)
{
    bool lines = strchr(space, '\n') != NULL;
    char *dump = json_dumps(value, JSON_ENCODE_ANY | (lines ? JSON_INDENT(2) : 0));
    const char *indent = lines ? strrchr(space, '\n') + 1 : "";
    size_t breaks = 0, n;
    char *text, *to;

    if (!dump)
        return NULL;
    for (const char *p = dump; *p; p++)
        breaks += *p == '\n';
    n = strlen(indent);
    text = to = mp_alloc(strlen(dump) + breaks * n + 1, 1);
    for (const char *p = dump; text && *p; p++) {
        *to++ = *p;
        if (*p == '\n')
            to = mempcpy(to, indent, n);
    }
    if (text)
        *to = '\0';
    free(dump);
    return text;
}

/* An existing member keeps its place. A new one goes last, after a comma if there are others. */
int mp_json_set(char **text, mp_json_path path, const char *key, const json_t *value, mp_error *err)
{
    member last, m = find_member(find_object(*text, path), key, &last);
    char *space = space_before(m.key ? &m : &last);
    char *dump = space ? value_text(value, space) : NULL;
    char *added = NULL;
    int rc;

    if (!dump) {
        rc = mp_fail_memory(err);
    } else if (m.key) {
        rc = splice(text, m.value, m.end, dump, err);
    } else {
        const char *at = last.key ? last.end : last.before + 1;

        added = mp_format("%s%s\"%s\": %s", last.key ? "," : "", space, key, dump);
        rc = added ? splice(text, at, at, added, err) : mp_fail_memory(err);
    }
    free(space);
    free(dump);
    free(added);
    return rc;
}

int mp_json_remove(char **text, mp_json_path path, const char *key, mp_error *err)
{
    member last, m = find_member(find_object(*text, path), key, &last), next;

    if (!m.key)
        return 0;
    next = next_member(&m);
    if (next.key)
        return splice(text, m.key, next.key, "", err);
    /* The last of several members takes the comma in front of it along; an only member has none. */
    return splice(text, *m.before == ',' ? m.before : m.key, m.end, "", err);
}
