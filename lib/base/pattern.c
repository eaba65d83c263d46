/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of modules: wildcards, and regular expressions as Python writes them.
 *
 * The expressions in these lists are simple. They are brought into the form of regcomp(3), as far
 * as both mean the same: what it would read otherwise (look-ahead, back references, a backslash
 * between brackets) or would need much memory for (counts in braces, deep groups, repetitions of
 * repetitions: regcomp writes x+ as xx*, which doubles what x is) is not understood, and said to be
 * so. Wildcards become such expressions too: a regex takes time that
 * grows with the name only, where fnmatch(3) tries every way to place the stars.
 */
#include "base/pattern.h"

#include <string.h>

#define EXPRESSION_MAX 512 /* bytes */
#define GROUPS_MAX     16
#define DOUBLED_MAX    4 /* groups with a plus */

/* Copies an escape; \d is the one that regcomp lacks. */
static bool copy_escape(const char **from, char **to)
{
    char c = *++*from;

    if (c == 'd') {
        *to = stpcpy(*to, "[0-9]");
    } else if (c && strchr(".wsWSb+*?()[]{}|^$/\\", c)) {
        *(*to)++ = '\\';
        *(*to)++ = c;
    } else if (c && strchr("-_:", c)) {
        *(*to)++ = c;
    } else {
        return false;
    }
    ++*from;
    return true;
}

static bool copy_brackets(const char **from, char **to)
{
    const char *end = strchr(*from + 1, ']');

    if (!end || memchr(*from, '\\', (size_t)(end - *from)) || end == *from + 1 ||
        memchr(*from + 1, '[', (size_t)(end - *from - 1)))
        return false;
    *to = mempcpy(*to, *from, (size_t)(end + 1 - *from));
    *from = end + 1;
    return true;
}

/* The expression between "^(" and ")"; false where it is not understood. `to` has room for five
 * bytes a byte. */
static bool translate_expression(const char *from, char *to)
{
    unsigned groups = 0, doubled = 0;

    to = stpcpy(to, "^(");
    while (*from) {
        if (*from == '\\') {
            if (!copy_escape(&from, &to))
                return false;
        } else if (*from == '[') {
            if (!copy_brackets(&from, &to))
                return false;
        } else if (strncmp(from, "(?:", 3) == 0) {
            *to++ = '(';
            from += 3;
            groups++;
        } else if (strchr("{}", *from) || strncmp(from, "(?", 2) == 0) {
            return false;
        } else {
            bool repeats = strchr("*+?", *from) != NULL;

            groups += *from == '(';
            doubled += strncmp(from, ")+", 2) == 0;
            *to++ = *from++;
            if (repeats && *from == '?') /* the shortest match matches what the longest does */
                from++;
            if (repeats && *from && strchr("*+?", *from)) /* an error to Python, or possessive */
                return false;
        }
        if (groups > GROUPS_MAX || doubled > DOUBLED_MAX)
            return false;
    }
    strcpy(to, ")");
    return true;
}

/* Stars and question marks; the whole name has to fit. */
static bool translate_wildcards(const char *from, char *to)
{
    to = stpcpy(to, "^(");
    for (; *from; from++) {
        if (strchr("[]\\", *from))
            return false;
        if (*from == '*')
            to = stpcpy(to, ".*");
        else if (*from == '?')
            *to++ = '.';
        else if (strchr(".+(){}|^$", *from))
            to = stpcpy(stpcpy(to, "\\"), (char[]){*from, '\0'});
        else
            *to++ = *from;
    }
    strcpy(to, ")$");
    return true;
}

void mp_pattern_init(mp_pattern *pattern, const char *text)
{
    bool expression = strncmp(text, "re:", 3) == 0;
    char regex[5 * EXPRESSION_MAX + 8];

    *pattern = (mp_pattern){.text = text};
    if (!expression && !strpbrk(text, "*?["))
        return;
    pattern->unknown =
        strlen(text) > EXPRESSION_MAX ||
        !(expression ? translate_expression(text + 3, regex) : translate_wildcards(text, regex)) ||
        regcomp(&pattern->regex, regex, REG_EXTENDED | REG_NOSUB) != 0;
    pattern->has_regex = !pattern->unknown;
}

mp_match mp_pattern_match(const mp_pattern *pattern, const char *name)
{
    size_t n = strlen(pattern->text);

    if (pattern->unknown)
        return MP_MATCH_UNKNOWN;
    if (pattern->has_regex)
        return regexec(&pattern->regex, name, 0, NULL, 0) == 0 ? MP_MATCH_YES : MP_MATCH_NO;
    return n > 0 && strncmp(pattern->text, name, n) == 0 && (name[n] == '\0' || name[n] == '.')
               ? MP_MATCH_YES
               : MP_MATCH_NO;
}

void mp_pattern_release(mp_pattern *pattern)
{
    if (pattern->has_regex)
        regfree(&pattern->regex);
    pattern->has_regex = false;
}
