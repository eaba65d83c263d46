/* SPDX-License-Identifier: Apache-2.0 */
#include "public_functions.h"

#include <criterion/criterion.h>

#include <ctype.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/base.h>

/* Cuts comments out of a text. */
static void cut_comments(char *text)
{
    for (char *begin, *end; (begin = strstr(text, "/*")) && (end = strstr(begin, "*/"));)
        memmove(begin, end + 2, strlen(end + 2) + 1);
}

/* The name of the function, or of the pointer to one, whose parameters hold `at`; into name. */
static void function_around(const char *text, const char *at, char name[64])
{
    while (*at != '(')
        at--;
    while (at > text && !isalnum((unsigned char)at[-1]))
        at--;
    const char *begin = at;
    while (begin > text && (isalnum((unsigned char)begin[-1]) || begin[-1] == '_'))
        begin--;
    snprintf(name, 64, "%.*s", (int)(at - begin), begin);
}

size_t each_public_function(void (*visit)(const char *header, const char *function))
{
    size_t found = 0;
    glob_t headers;

    cr_assert_eq(glob("include/moepack/*.h", 0, NULL, &headers), 0);
    for (size_t i = 0; i < headers.gl_pathc; i++) {
        char *text, name[64];
        cr_assert_eq(mp_read_text(headers.gl_pathv[i], 1 << 20, &text, NULL, NULL), 0);
        cut_comments(text);
        for (char *at = text; (at = strstr(at, "mp_error *")); at++, found++) {
            function_around(text, at, name);
            visit(headers.gl_pathv[i], name);
        }
        free(text);
    }
    globfree(&headers);
    return found;
}
