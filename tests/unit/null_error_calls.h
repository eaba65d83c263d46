/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of public functions that fail. */
#ifndef MP_NULL_ERROR_CALLS_H
#define MP_NULL_ERROR_CALLS_H

#include <moepack/base.h>

typedef struct failing_call {
    const char *function;
    int (*call)(mp_error *err);
} failing_call;

extern const failing_call failing_calls[];
extern const size_t num_failing_calls;

#endif
