/* SPDX-License-Identifier: Apache-2.0 */
/* Errors that nobody wants to read: every public function that takes an mp_error fails with null
 * for it as it does otherwise. The list of functions is that of the headers. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <string.h>

#include "null_error_calls.h"
#include "public_functions.h"

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

static bool is_called(const char *function)
{
    for (size_t i = 0; i < num_calls(); i++) {
        if (strcmp(call_at(i)->function, function) == 0)
            return true;
    }
    return false;
}

static void expect_called(const char *header, const char *function)
{
    cr_expect(is_called(function), "%s: no call of %s fails here", header, function);
}

Test(null_error, every_function_of_the_headers_is_called)
{
    cr_assert_eq(each_public_function(expect_called), num_calls());
}
