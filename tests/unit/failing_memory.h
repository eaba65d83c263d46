/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that runs out at the first, second, third ... allocation of a call.
 *
 * The unit tests are linked with -Wl,--wrap=F for each F of malloc, calloc, realloc,
 * aligned_alloc, strdup, strndup, free and open_memstream, so that allocations of the project's own
 * objects come here. Outside of memory_fail_at .. memory_stop nothing is changed. For one thread
 * only. */
#ifndef TESTS_UNIT_FAILING_MEMORY_H
#define TESTS_UNIT_FAILING_MEMORY_H

#include <moepack/base.h>

/* What a run of the call under test did with memory. */
typedef struct memory_account {
    long failures; /* allocations that were refused */
    long live;     /* blocks that are not freed yet */
    size_t bytes;  /* asked for, all in all */
} memory_account;

/* Makes jansson allocate here too; to be called before anything else uses it. Not for
 * parsing strings of more than 13 bytes: jansson 2.14, where it cannot make its buffer for
 * them larger, drops their end with the closing quote, and then writes out of bounds. */
void memory_include_jansson(void);

/* Refuses allocation number n (from 0) from now on: that one only, or it and all later
 * ones. */
void memory_fail_at(long n, bool from_then_on);

/* Ends that, and says what happened. */
memory_account memory_stop(void);

/* Repeats a call with a failure at allocation 0, 1, 2 ... until nothing fails, first with
 * one failure a run, then with all later allocations failing too. `run` makes the call,
 * releases all that it made, and returns its code; it must return 0 without failures.
 *
 * A failed allocation is reported as MP_ERR_IO "out of memory", or, where jansson takes what
 * it could not store for malformed, as MP_ERR_INPUT. It may also go unnoticed where `run`
 * finds the result whole. No block and no file may be lost.
 * Returns the number of allocations of the whole call. */
long memory_exhaust(int (*run)(mp_error *err));

#endif
