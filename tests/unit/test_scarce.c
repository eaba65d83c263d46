/* SPDX-License-Identifier: Apache-2.0 */
/* Every public function that takes an mp_error, with memory that runs out at its first, second,
 * third ... allocation, until it suffices: it says so, loses nothing, and what it was given can be
 * released. The list of functions is that of the headers. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <string.h>

#include "failing_memory.h"
#include "public_functions.h"
#include "scarce_calls.h"

static const scarce_call *call_at(size_t i)
{
    if (i < num_scarce_calls)
        return &scarce_calls[i];
    i -= num_scarce_calls;
    return i < num_scarce_runs ? &scarce_runs[i] : &scarce_places[i - num_scarce_runs];
}

static size_t num_calls(void)
{
    return num_scarce_calls + num_scarce_runs + num_scarce_places;
}

/* Each in a process of its own, which has the tables at addresses of its own: numbers of rows. */
ParameterizedTestParameters(scarce, survives_any_failed_allocation)
{
    size_t *rows = cr_malloc(num_calls() * sizeof *rows);

    for (size_t i = 0; i < num_calls(); i++)
        rows[i] = i;
    return cr_make_param_array(size_t, rows, num_calls());
}

ParameterizedTest(const size_t *number, scarce, survives_any_failed_allocation)
{
    const scarce_call *c = call_at(*number);
    mp_error err = {0};

    cr_assert_eq(c->call(&err), 0, "%s: %s", c->function, err.message);
    memory_exhaust(c->call);
    cr_assert_eq(c->call(&err), 0, "%s: %s", c->function, err.message);
    remove_scratch_of_calls();
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
    cr_expect(is_called(function), "%s: %s has no call here", header, function);
}

Test(scarce, every_function_of_the_headers_is_called)
{
    cr_assert_gt(each_public_function(expect_called), 0);
}
