/* SPDX-License-Identifier: Apache-2.0 */
/* base/parallel.h - a loop over independent work on all threads. */
#ifndef MP_BASE_PARALLEL_H
#define MP_BASE_PARALLEL_H

#include <moepack/base.h>

/* True when the context's cancel flag is up; context may be null. */
bool mp_cancelled(const mp_context *context);

/* The same context with one thread, for work that has to go in order. */
mp_context mp_alone(const mp_context *context);

/* The same context, which is told nothing of: for work that is a step of other work. */
mp_context mp_quiet(const mp_context *context);

/* The same context for what the run itself has written: read through the system's cache, where it
 * still is, whatever file system OUT is on. */
mp_context mp_buffered(const mp_context *context);

/* Tells the context that a phase begins; context may be null. name: static. */
void mp_begin_phase(const mp_context *context, const char *name);

/* How far work of many threads is: bytes, or what else progress counts. */
typedef struct mp_meter {
    uint64_t done, total;
} mp_meter;

/* Adds what a thread has done, and tells the context, which may be null. */
void mp_meter_add(mp_meter *meter, const mp_context *context, uint64_t done);

/* One piece of work. scratch: this thread's, as the caller of mp_parallel gave
 * it. Returns 0 or fills err. */
typedef int mp_task(void *user, uint64_t index, void *scratch, mp_error *err);

/* Runs work for index 0 .. count-1, in order of index as threads come free.
 * scratch_bytes: every thread gets a 64-byte aligned buffer of this size,
 *   allocated once; 0 gives null.
 * After the first error no new work starts. The error of the lowest index that
 * failed is reported; MP_ERR_CANCELLED when the context's flag stopped it. */
int mp_parallel(const mp_context *context, uint64_t count, uint64_t scratch_bytes, mp_task *work,
                void *user, mp_error *err);

#endif
