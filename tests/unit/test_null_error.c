/* SPDX-License-Identifier: Apache-2.0 */
/* Errors that nobody wants to read: every public function that takes an mp_error fails with null
 * for it as it does otherwise. The list of functions is that of the headers. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <ctype.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "null_error_calls.h"

static size_t num_calls(void)
{
    return num_failing_calls + num_failing_place_calls;
}

static const failing_call *call_at(size_t i)
{
    return i < num_failing_calls ? &failing_calls[i] : &failing_place_calls[i - num_failing_calls];
}

/* Each in a process of its own, which has the table at an address of its own: numbers of rows. */
ParameterizedTestParameters(null_error, fails_as_with_one)
{
    size_t *rows = cr_malloc(num_calls() * sizeof *rows);

    for (size_t i = 0; i < num_calls(); i++)
        rows[i] = i;
    return cr_make_param_array(size_t, rows, num_calls());
}

ParameterizedTest(const size_t *number, null_error, fails_as_with_one)
{
    const failing_call *c = call_at(*number);
    mp_error err = {0};
    int rc = c->call(&err);

    cr_assert_lt(rc, 0, "%s did not fail", c->function);
    cr_assert_eq(err.code, rc, "%s: code %d, returned %d", c->function, err.code, rc);
    cr_assert_str_neq(err.message, "", "%s", c->function);
    cr_assert_eq(c->call(NULL), rc, "%s", c->function);
}

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

static bool is_called(const char *function)
{
    for (size_t i = 0; i < num_calls(); i++) {
        if (strcmp(call_at(i)->function, function) == 0)
            return true;
    }
    return false;
}

Test(null_error, every_function_of_the_headers_is_called)
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
            cr_expect(is_called(name), "%s: no call of %s fails here", headers.gl_pathv[i], name);
        }
        free(text);
    }
    cr_assert_eq(found, num_calls());
    globfree(&headers);
}
