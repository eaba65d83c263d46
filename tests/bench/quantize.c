/* SPDX-License-Identifier: Apache-2.0 */
/* quantize THREADS FROM TO: GB/s of rows in FROM (bf16 or mxfp4) that become TO (mxfp4, nvfp4,
 * fp8_block or int8_channel), on data in memory and with the kernels that MOEPACK_CPU names;
 * with and without measuring the error as repack does; and of memcpy on as many threads, of
 * as many bytes. Prints "PLAIN MEASURED MEMCPY". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "base/parallel.h"
#include "clock.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"

#define COLS      4096u
#define ROWS      16384u /* 128 MiB of BF16 */
#define TILE_ROWS 128u
#define TRIALS    5

/* What the threads share. */
typedef struct job {
    mp_rows in; /* all rows */
    mp_scheme to;
    uint8_t *codes, *scales, *copy;
    bool measured;
} job;

/* Bytes of rows of codes, and of scales, of which each 16 elements have one at the most. */
static uint64_t code_bytes(mp_scheme scheme, uint64_t rows)
{
    return rows * mp_scheme_row_bytes(scheme, COLS);
}

static uint64_t scale_bytes(mp_scheme scheme, uint64_t rows)
{
    switch (scheme) {
    case MP_SCHEME_MXFP4:
        return rows * COLS / 32;
    case MP_SCHEME_NVFP4:
        return rows * COLS / 16;
    case MP_SCHEME_FP8_BLOCK:
        return rows / 128 * (COLS / 128) * sizeof(float);
    case MP_SCHEME_INT8_CHANNEL:
        return rows * sizeof(float);
    default:
        return 0;
    }
}

static int quantize_tile(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const job *j = user;
    const mp_quant_options options = {.global_scale = 0x1p-12f};
    mp_quant_stats stats = {0};
    uint64_t row = index * TILE_ROWS;
    mp_rows in = j->in;

    in.row0 = row;
    in.rows = TILE_ROWS;
    in.weight = (const uint8_t *)j->in.weight + code_bytes(in.scheme, row);
    if (j->in.scale)
        in.scale = (const uint8_t *)j->in.scale + scale_bytes(in.scheme, row);
    return mp_requantize(&in, j->to, &options, j->codes + code_bytes(j->to, row),
                         j->scales + scale_bytes(j->to, row), scratch, j->measured ? &stats : NULL,
                         err);
}

static int copy_tile(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const job *j = user;
    uint64_t bytes = code_bytes(j->in.scheme, TILE_ROWS);

    (void)scratch;
    (void)err;
    memcpy(j->copy + index * bytes, (const uint8_t *)j->in.weight + index * bytes, bytes);
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
    return (double)code_bytes(j->in.scheme, ROWS) * 1e-9 / seconds[TRIALS / 2];
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

static void *need(size_t bytes)
{
    void *p = malloc(bytes);

    if (!p) {
        fprintf(stderr, "quantize: out of memory\n");
        exit(1);
    }
    return p;
}

static bool scheme_named(const char *name, mp_scheme *scheme)
{
    static const mp_scheme schemes[] = {MP_SCHEME_BF16, MP_SCHEME_MXFP4, MP_SCHEME_NVFP4,
                                        MP_SCHEME_FP8_BLOCK, MP_SCHEME_INT8_CHANNEL};

    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        *scheme = schemes[i];
        if (strcmp(name, mp_scheme_name(schemes[i])) == 0)
            return true;
    }
    return false;
}

int main(int argc, char **argv)
{
    int threads = argc == 4 ? (int)strtol(argv[1], NULL, 10) : 0;
    uint64_t scratch = mp_requantize_scratch(COLS);
    uint16_t *weights = need((size_t)ROWS * COLS * sizeof *weights);
    job j = {.in = {.scheme = MP_SCHEME_BF16, .rows = ROWS, .cols = COLS, .weight = weights}};
    mp_scheme from;
    double plain, measured;

    if (threads < 1 || !scheme_named(argv[2], &from) || !scheme_named(argv[3], &j.to) ||
        (from != MP_SCHEME_BF16 && from != MP_SCHEME_MXFP4)) {
        fprintf(stderr, "usage: quantize THREADS bf16|mxfp4 SCHEME\n");
        return 2;
    }
    fill(weights);
    if (from == MP_SCHEME_MXFP4) {
        const mp_quant_options options = {0};
        uint8_t *codes = need(code_bytes(from, ROWS));
        uint8_t *scales = need(scale_bytes(from, ROWS));
        void *work = need(scratch);

        if (mp_requantize(&j.in, from, &options, codes, scales, work, NULL, NULL) != 0)
            return 1;
        j.in = (mp_rows){.scheme = from,
                         .scale_dtype = MP_F8_E8M0,
                         .block_rows = 1,
                         .block_cols = 32,
                         .rows = ROWS,
                         .cols = COLS,
                         .weight = codes,
                         .scale = scales};
    }
    j.codes = need(code_bytes(j.to, ROWS));
    j.scales = need(scale_bytes(j.to, ROWS) + 1);
    j.copy = need(code_bytes(from, ROWS));
    plain = rate(&j, quantize_tile, scratch, threads);
    j.measured = true;
    measured = rate(&j, quantize_tile, scratch, threads);
    printf("%.2f %.2f %.2f\n", plain, measured, rate(&j, copy_tile, 0, threads));
    return 0;
}
