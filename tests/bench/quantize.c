/* SPDX-License-Identifier: Apache-2.0 */
/* quantize THREADS: GB/s of BF16 input that become mxfp4, on data in memory and with the
 * kernels that MOEPACK_CPU names; with and without measuring the error as repack does; and
 * of memcpy on as many threads. Prints "PLAIN MEASURED MEMCPY". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "base/parallel.h"
#include "clock.h"

#define COLS      4096u
#define ROWS      16384u /* 128 MiB */
#define TILE_ROWS 32u
#define TRIALS    5

/* What the threads share. */
typedef struct job {
    uint16_t *in;
    uint8_t *codes, *scales, *copy;
    bool measured;
} job;

static int quantize_tile(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const job *j = user;
    const mp_quant_options options = {0};
    mp_quant_stats stats = {0};
    uint64_t row = index * TILE_ROWS;
    mp_rows in = {
        .scheme = MP_SCHEME_BF16,
        .block_rows = 1,
        .block_cols = 1,
        .row0 = row,
        .rows = TILE_ROWS,
        .cols = COLS,
        .weight = j->in + row * COLS,
    };

    return mp_requantize(&in, MP_SCHEME_MXFP4, &options, j->codes + row * COLS / 2,
                         j->scales + row * COLS / 32, scratch, j->measured ? &stats : NULL, err);
}

static int copy_tile(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const job *j = user;
    uint64_t bytes = TILE_ROWS * COLS * sizeof *j->in;

    (void)scratch;
    (void)err;
    memcpy(j->copy + index * bytes, (const uint8_t *)j->in + index * bytes, bytes);
    return 0;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

/* GB/s: the median of some trials, after one that does not count. */
static double rate(job *j, mp_task *work, uint64_t scratch, int threads)
{
    const mp_context context = {.threads = threads};
    double seconds[TRIALS];
    mp_error err;

    for (int trial = -1; trial < TRIALS; trial++) {
        double begin = clock_now();

        if (mp_parallel(&context, ROWS / TILE_ROWS, scratch, work, j, &err) != 0) {
            fprintf(stderr, "quantize: %s\n", err.message);
            exit(1);
        }
        if (trial >= 0)
            seconds[trial] = clock_now() - begin;
    }
    qsort(seconds, TRIALS, sizeof *seconds, ascending);
    return (double)ROWS * COLS * sizeof *j->in * 1e-9 / seconds[TRIALS / 2];
}

static void fill(uint16_t *in)
{
    uint32_t state = 1;

    for (size_t i = 0; i < (size_t)ROWS * COLS; i++) {
        state = state * 1664525 + 1013904223;
        /* A sign, one of 16 exponents, a mantissa. */
        in[i] = (uint16_t)((state >> 16 & 0x8000) | (0x3400 + (state >> 17 & 0x7ff)));
    }
}

int main(int argc, char **argv)
{
    int threads = argc == 2 ? (int)strtol(argv[1], NULL, 10) : 0;
    uint64_t scratch = mp_requantize_scratch(COLS);
    size_t n = (size_t)ROWS * COLS;
    job j = {malloc(2 * n), malloc(n / 2), malloc(n / 32), malloc(2 * n), false};
    double plain, measured;

    if (threads < 1 || !j.in || !j.codes || !j.scales || !j.copy) {
        fprintf(stderr, threads < 1 ? "usage: quantize THREADS\n" : "quantize: out of memory\n");
        return 2;
    }
    fill(j.in);
    plain = rate(&j, quantize_tile, scratch, threads);
    j.measured = true;
    measured = rate(&j, quantize_tile, scratch, threads);
    printf("%.2f %.2f %.2f\n", plain, measured, rate(&j, copy_tile, 0, threads));
    return 0;
}
