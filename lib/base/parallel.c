/* SPDX-License-Identifier: Apache-2.0 */
/* The one parallel loop: threads take indices in ascending order until all are done, one fails or
 * the run is cancelled.
 *
 * Work must not depend on which thread does what, so a task gets an index and scratch memory, and
 * nothing else tells threads apart. Indices are handed out one at a time, since tasks differ in
 * length.
 *
 * The reported error is that of the lowest failing index, whatever the number of threads: an index
 * that was taken is always finished unless a lower one has failed, and higher ones are no longer
 * taken. All shared fields are atomic, and the error itself is written in a critical section.
 * OpenMP only provides the threads. */
#include "base/parallel.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"

/* More would only help to exhaust the system. */
#define THREADS_MAX 1024

#define SCRATCH_ALIGN 64

struct loop {
    const mp_context *context;
    uint64_t count;
    mp_task *work;
    void *user;
    unsigned char *scratch; /* one stride a thread */
    uint64_t stride;

    int next_thread;       /* atomic */
    uint64_t next;         /* atomic: the index to take */
    uint64_t lowest_error; /* atomic: the lowest index that failed, or count */
    bool cancelled;        /* atomic */
    mp_error *err;         /* of lowest_error */
    int rc;
};

/* Processors that this process may run on: masks of taskset and cgroups count. */
static int available_processors(void)
{
    cpu_set_t set;
    long n;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        n = CPU_COUNT(&set);
    else
        n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : (int)n;
}

int mp_threads(const mp_context *context)
{
    if (!context || context->threads <= 0)
        return available_processors();
    return context->threads < THREADS_MAX ? context->threads : THREADS_MAX;
}

mp_context mp_alone(const mp_context *context)
{
    mp_context alone = context ? *context : (mp_context){0};

    alone.threads = 1;
    return alone;
}

mp_context mp_quiet(const mp_context *context)
{
    mp_context quiet = context ? *context : (mp_context){0};

    quiet.progress = NULL;
    quiet.phase = NULL;
    return quiet;
}

mp_context mp_buffered(const mp_context *context)
{
    mp_context buffered = context ? *context : (mp_context){0};

    buffered.io = MP_IO_BUFFERED;
    return buffered;
}

void mp_begin_phase(const mp_context *context, const char *name)
{
    if (context && context->phase)
        context->phase(context->progress_user, name);
}

void mp_meter_add(mp_meter *meter, const mp_context *context, uint64_t done)
{
#pragma omp critical(mp_meter)
    {
        meter->done += done;
        if (context && context->progress)
            context->progress(context->progress_user, meter->done, meter->total);
    }
}

bool mp_cancelled(const mp_context *context)
{
    return context && context->cancel && __atomic_load_n(context->cancel, __ATOMIC_ACQUIRE) != 0;
}

static void record_error(struct loop *loop, uint64_t index, int rc, const mp_error *err)
{
#pragma omp critical(mp_parallel_error)
    {
        if (index < loop->lowest_error) {
            __atomic_store_n(&loop->lowest_error, index, __ATOMIC_RELEASE);
            loop->rc = rc;
            if (loop->err)
                *loop->err = *err;
        }
    }
}

/* An index that was taken is only dropped when a lower one has failed: so the
 * error that is reported does not depend on the number of threads. */
static void run_thread(struct loop *loop)
{
    int thread = __atomic_fetch_add(&loop->next_thread, 1, __ATOMIC_RELAXED);
    void *scratch = loop->scratch ? loop->scratch + (uint64_t)thread * loop->stride : NULL;
    for (;;) {
        uint64_t index = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED);
        if (index >= __atomic_load_n(&loop->lowest_error, __ATOMIC_ACQUIRE))
            return;
        if (mp_cancelled(loop->context)) {
            __atomic_store_n(&loop->cancelled, true, __ATOMIC_RELAXED);
            return;
        }
        mp_error err = {0};
        int rc = loop->work(loop->user, index, scratch, &err);
        if (rc != 0)
            record_error(loop, index, rc, &err);
    }
}

int mp_parallel(const mp_context *context, uint64_t count, uint64_t scratch_bytes, mp_task *work,
                void *user, mp_error *err)
{
    if (count == 0)
        return 0;
    int threads = mp_threads(context);
    if ((uint64_t)threads > count)
        threads = (int)count;

    struct loop loop = {.context = context,
                        .count = count,
                        .work = work,
                        .user = user,
                        .lowest_error = count,
                        .err = err};
    if (scratch_bytes > 0) {
        /* No product or rounding below can overflow then. */
        if (scratch_bytes > PTRDIFF_MAX / THREADS_MAX - SCRATCH_ALIGN)
            return mp_fail_memory(err);
        loop.stride = mp_round_up(scratch_bytes, SCRATCH_ALIGN);
        loop.scratch = aligned_alloc(SCRATCH_ALIGN, (size_t)threads * loop.stride);
        if (!loop.scratch)
            return mp_fail_memory(err);
    }

#pragma omp parallel num_threads(threads)
    run_thread(&loop);

    free(loop.scratch);
    if (loop.rc == 0 && loop.cancelled)
        return mp_fail(err, MP_ERR_CANCELLED, "cancelled");
    return loop.rc;
}
