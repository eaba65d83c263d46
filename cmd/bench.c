/* SPDX-License-Identifier: Apache-2.0 */
/* moepack bench: how fast kernels and conversions are at every SIMD level, beside memcpy.
 *
 * The library chooses its kernels once in a process. So each level is measured by a child of its
 * own, which sets MOEPACK_CPU before the library looks, and sends the seconds of its trials through
 * a pipe; the parent prints them. A child that ends early leaves a short read, which is an error,
 * so a table is whole or not there. Children run one after the other: they would take each other's
 * caches. */
#include "commands.h"
#include "output.h"

#include "bench/trials.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEVELS 4
#define ANY    (-1)

typedef struct bench_options {
    common_options common;
    const char *kernel; /* a pattern, or null */
    int level;          /* or ANY */
    double seconds;
} bench_options;

static const cmd_choice level_names[] = {
    {"scalar", 0}, {"avx2", 1}, {"avx512", 2}, {"neon", 3}, {"all", ANY}, {NULL, 0},
};

/* What is measured, and how long that took. */
typedef struct bench_job {
    bench_trial trials[BENCH_TRIALS_MAX];
    size_t count;
    bool run[LEVELS]; /* levels that are measured */
    double seconds[LEVELS][BENCH_TRIALS_MAX];
    double memcpy_gb_s;
} bench_job;

/* ------------------------------------------------------------------------
 * Measuring
 */

/* Read and written. */
static double gb_s(uint64_t bytes_in, uint64_t bytes_out, double seconds)
{
    return (double)(bytes_in + bytes_out) * 1e-9 / seconds;
}

static int write_all(int to, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(to, (const char *)data + done, bytes - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

static int read_all(int from, void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = read(from, (char *)data + done, bytes - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

/* Runs in a process of its own. Speeds go through the pipe: of memcpy, then seconds. */
static int measure_level(bench_job *job, int level, double seconds, int to)
{
    double times[BENCH_TRIALS_MAX];
    uint64_t bytes;

    if (setenv("MOEPACK_CPU", level_names[level].name, 1) != 0)
        return -1;
    bench_data *data = bench_data_new();
    if (!data)
        return -1;
    /* Measured in each child, and the best one counts: levels are compared with the same memcpy. */
    double copy = bench_time_memcpy(data, seconds, &bytes);
    double rate = gb_s(bytes, bytes, copy);

    for (size_t i = 0; i < job->count; i++)
        times[i] = bench_time(&job->trials[i], data, seconds);
    bench_data_free(data);
    return write_all(to, &rate, sizeof(rate)) || write_all(to, times, job->count * sizeof(*times));
}

static int collect_level(bench_job *job, int level, int from)
{
    double rate;

    if (read_all(from, &rate, sizeof(rate)) != 0 ||
        read_all(from, job->seconds[level], job->count * sizeof(double)) != 0)
        return -1;
    if (rate > job->memcpy_gb_s)
        job->memcpy_gb_s = rate;
    return 0;
}

/* A process chooses its kernels once, so that each level has one. */
static int run_level(bench_job *job, int level, double seconds, mp_error *err)
{
    int ends[2];
    int status;

    if (pipe(ends) != 0)
        return cmd_fail(err, MP_ERR_IO, "pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        _exit(measure_level(job, level, seconds, ends[1]) == 0 ? 0 : 1);
    }
    /* Else the pipe would never end where the child does. */
    close(ends[1]);
    int rc = child < 0 ? -1 : collect_level(job, level, ends[0]);
    close(ends[0]);
    if (child < 0)
        return cmd_fail(err, MP_ERR_IO, "fork: %s", strerror(errno));
    /* Its status says nothing that the pipe has not said. */
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (rc != 0)
        return cmd_fail(err, MP_ERR_IO, "%s: the measuring process ended early",
                        level_names[level].name);
    return 0;
}

static int choose_levels(bench_job *job, int wanted, mp_error *err)
{
    for (int level = 0; level < LEVELS; level++)
        job->run[level] =
            (wanted == ANY || wanted == level) && bench_has_level(level_names[level].name);
    if (wanted != ANY && !job->run[wanted])
        return cmd_fail(err, MP_ERR_UNSUPPORTED, "this processor has no %s",
                        level_names[wanted].name);
    return 0;
}

static int choose_trials(bench_job *job, const char *pattern, mp_error *err)
{
    size_t all = bench_trials(job->trials);

    for (size_t i = 0; i < all; i++)
        if (!pattern || fnmatch(pattern, job->trials[i].name, 0) == 0)
            job->trials[job->count++] = job->trials[i];
    if (job->count == 0)
        return cmd_fail(err, MP_ERR_USAGE,
                        "--kernel '%s' matches no kernel; without it all are "
                        "listed",
                        pattern);
    return 0;
}

/* ------------------------------------------------------------------------
 * Printing
 */

static double trial_gb_s(const bench_job *job, int level, size_t i)
{
    return gb_s(job->trials[i].bytes_in, job->trials[i].bytes_out, job->seconds[level][i]);
}

static json_t *trial_json(const bench_job *job, int level, size_t i)
{
    const bench_trial *trial = &job->trials[i];
    double rate = trial_gb_s(job, level, i);

    return json_pack("{s:s, s:s, s:I, s:I, s:f, s:f, s:f}", "kernel", trial->name, "level",
                     level_names[level].name, "bytes_in", (json_int_t)trial->bytes_in, "bytes_out",
                     (json_int_t)trial->bytes_out, "gb_s", rate, "of_memcpy",
                     rate / job->memcpy_gb_s, "memcpy_gb_s", job->memcpy_gb_s);
}

static int print_json_table(const bench_job *job, mp_error *err)
{
    json_t *list = json_array();

    for (size_t i = 0; i < job->count; i++) {
        for (int level = 0; level < LEVELS; level++) {
            if (!job->run[level])
                continue;
            /* Null goes in nowhere: without memory the list would be short. */
            if (json_array_append_new(list, trial_json(job, level, i)) != 0) {
                json_decref(list);
                return print_json(NULL, err);
            }
        }
    }
    return print_json(list, err);
}

static void print_table(const bench_job *job)
{
    printf("GB/s read and written on one thread, and as a fraction of memcpy's %.1f GB/s\n\n",
           job->memcpy_gb_s);
    printf("%-36s", "kernel");
    for (int level = 0; level < LEVELS; level++)
        if (job->run[level])
            printf(" %15s", level_names[level].name);
    printf("\n");
    for (size_t i = 0; i < job->count; i++) {
        printf("%-36s", job->trials[i].name);
        for (int level = 0; level < LEVELS; level++) {
            double rate = job->run[level] ? trial_gb_s(job, level, i) : 0;

            if (job->run[level])
                printf(" %9.2f %5.2f", rate, rate / job->memcpy_gb_s);
        }
        printf("\n");
    }
}

static int measure_all(bench_job *job, const bench_options *o, mp_error *err)
{
    int rc = choose_levels(job, o->level, err);

    if (rc == 0)
        rc = choose_trials(job, o->kernel, err);
    for (int level = 0; rc == 0 && level < LEVELS; level++)
        if (job->run[level])
            rc = run_level(job, level, o->seconds, err);
    return rc;
}

static int run_bench(const void *values, mp_error *err)
{
    const bench_options *o = values;
    bench_job *job = calloc(1, sizeof(*job));

    if (!job)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    int rc = measure_all(job, o, err);
    if (rc == 0 && o->common.json)
        rc = print_json_table(job, err);
    else if (rc == 0)
        print_table(job);
    free(job);
    return rc;
}

static const cmd_option options[] = {
    OPT_STRING(0, "kernel", "NAME", bench_options, kernel,
               "measure only this kernel, or those that match, as in 'decode:*'"),
    OPT_CHOICE(0, "level", "LEVEL", bench_options, level, level_names,
               "measure the kernels of this SIMD level"),
    OPT_DOUBLE(0, "seconds", "X", bench_options, seconds, 0.0001, 60,
               "time spent on each kernel at each level"),
    OPT_JSON(bench_options),
    OPT_END,
};

static const bench_options defaults = {.level = ANY, .seconds = 0.015};

const command command_bench = {
    .name = "bench",
    .summary = "measure kernels and conversions against memcpy",
    .options = options,
    COMMAND_DEFAULTS(defaults),
    .run = run_bench,
};
