/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of public functions that fail, and what they need. */
#ifndef MP_NULL_ERROR_CALLS_H
#define MP_NULL_ERROR_CALLS_H

#include <moepack/moepack.h>

#include "failing_memory.h"

#define MISSING "testdata/fixtures/v4-fp4/missing"

typedef struct failing_call {
    const char *function;
    int (*call)(mp_error *err);
} failing_call;

extern const failing_call failing_calls[];
extern const size_t num_failing_calls;

/* Those of placements and engines. */
extern const failing_call failing_place_calls[];
extern const size_t num_failing_place_calls;

static const mp_slots slots = {.num_logical = 5, .num_physical = 6, .ep = 2};
static const int32_t row[] = {0, 1, 2, 3, 4, 9}; /* there is no expert 9 */

/* The code of a call without any memory. */
#define WITHOUT_MEMORY(call)     \
    memory_fail_at(0, true);     \
    int without_memory = (call); \
    memory_stop();               \
    return without_memory

#define CALL(function) static int fail_##function(mp_error *err)

#define ROW(function)              \
    {                              \
#function, fail_##function \
    }

#endif
