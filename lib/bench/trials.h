/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench/trials.h - what `moepack bench` measures.
 *
 * Kernels run on data in the first caches; "decode:SCHEME", "encode:SCHEME" (from float32),
 * "check:SCHEME" (mp_rows_check_finite) and "requantize:SCHEME:SCHEME" (with statistics, as
 * repack does) on a tile of rows.
 */
#ifndef MP_BENCH_TRIALS_H
#define MP_BENCH_TRIALS_H

#include <moepack/numeric.h>

#include "numeric/kernels.h"

typedef struct bench_data bench_data;
typedef struct bench_trial bench_trial;

struct bench_trial {
    char name[64];
    uint64_t bytes_in; /* of one run */
    uint64_t bytes_out;
    void (*run)(const bench_trial *trial, bench_data *data);
    void (*kernel)(const mp_kernels *kernels, bench_data *data); /* null for a path */
    mp_scheme from;                                              /* of a path */
    mp_scheme to;
};

/* All trials there are. */
#define BENCH_TRIALS_MAX 128u
size_t bench_trials(bench_trial trials[BENCH_TRIALS_MAX]);

/* Whether this processor has the kernels of a level: "avx2". */
bool bench_has_level(const char *level);

/* Input and output of all of them, made by mp_kernels_best(), which also run. Null without
 * memory. */
bench_data *bench_data_new(void);
void bench_data_free(bench_data *data);

/* Seconds that a run takes at best, tried for so long. */
double bench_time(const bench_trial *trial, bench_data *data, double seconds);

/* The same of a memcpy of *bytes bytes, which is set. */
double bench_time_memcpy(bench_data *data, double seconds, uint64_t *bytes);

#endif
