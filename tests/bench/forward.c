/* SPDX-License-Identifier: Apache-2.0 */
/* forward THREADS: GFLOP/s of the w4a8 forward of a layer like DeepSeek V4 Flash's, 512 tokens
 * with 6 of 256 experts each, from mxfp4 weights in memory; of sgemm on the same sizes, with
 * weights that are decoded already; and of sgemm on 512 tokens at once. Prints
 * "FORWARD SGEMM LARGE". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "clock.h"

#include "forward/reference.h"

#define H       4096u
#define WIDTH   2048u
#define EXPERTS 256u
#define TOKENS  512u
#define K       6u
#define TRIALS  3

/* Experts share the weights of a few, which together do not fit a cache. */
#define KEPT       16u
#define PART_BYTES ((size_t)WIDTH * H / 2)
#define SCALES     ((size_t)WIDTH * H / 32)

static uint8_t *codes, *scales; /* [KEPT][3] of a part */

/* Floating point operations of a choice. */
#define WORK (2.0 * 3 * H * WIDTH)

static int read_rows(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                     void *scratch, mp_rows part[2], mp_error *err)
{
    uint64_t cols = side == MP_L1 ? H : WIDTH;

    (void)user;
    (void)scratch;
    (void)err;
    for (unsigned p = 0; p < 2; p++) {
        size_t of = (size_t)(id % KEPT) * 3 + (side == MP_L1 ? p : 2);

        part[p] = (mp_rows){
            .scheme = MP_SCHEME_MXFP4,
            .scale_dtype = MP_F8_E8M0,
            .block_rows = 1,
            .block_cols = 32,
            .row0 = row0,
            .rows = rows,
            .cols = cols,
            .weight = codes + of * PART_BYTES + row0 * cols / 2,
            .scale = scales + of * SCALES + row0 * cols / 32,
        };
    }
    return 0;
}

static uint32_t random_number(void)
{
    static uint32_t state = 1;

    state = state * 1664525 + 1013904223;
    return state >> 8;
}

static void *take(size_t count, size_t size)
{
    void *p = calloc(count, size);

    if (!p) {
        fprintf(stderr, "forward: out of memory\n");
        exit(1);
    }
    return p;
}

static double rate_forward(const mp_batch *batch, int threads)
{
    const mp_expert_source source = {
        .hidden_size = H,
        .intermediate_size = WIDTH,
        .count = EXPERTS,
        .tile_rows = 128,
        .read = read_rows,
    };
    const mp_forward_options options = {.emulation = MP_EMULATE_W4A8, .activation.limit = 10};
    const mp_context context = {.threads = threads};
    double *y = take((size_t)TOKENS * H, sizeof *y), best = 0;
    mp_error err;

    for (int trial = 0; trial < TRIALS; trial++) {
        double begin = clock_now();

        if (mp_forward(&source, &options, batch, &context, y, &err) != 0) {
            fprintf(stderr, "forward: %s\n", err.message);
            exit(1);
        }
        double rate = TOKENS * K * WORK * 1e-9 / (clock_now() - begin);
        best = rate > best ? rate : best;
    }
    free(y);
    return best;
}

/* The three products of `calls` experts with `rows` tokens each. */
static double rate_sgemm(unsigned calls, int rows, int threads)
{
    float *x = take((size_t)rows * H, sizeof *x), *out = take((size_t)rows * H, sizeof *out);
    float *w = take((size_t)KEPT * WIDTH * H, sizeof *w);
    double best = 0;

    openblas_set_num_threads(threads);
    for (size_t i = 0; i < (size_t)KEPT * WIDTH * H; i++)
        w[i] = (float)(random_number() & 7);
    for (int trial = 0; trial < TRIALS; trial++) {
        double begin = clock_now();

        for (unsigned c = 0; c < calls * 3; c++) {
            bool down = c % 3 == 2;
            int n = down ? H : WIDTH, k = down ? WIDTH : H;

            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, n, k, 1, x, k,
                        w + (size_t)(c % KEPT) * WIDTH * H, k, 0, out, n);
        }
        double rate = calls * rows * WORK * 1e-9 / (clock_now() - begin);
        best = rate > best ? rate : best;
    }
    free(x);
    free(out);
    free(w);
    return best;
}

int main(int argc, char **argv)
{
    int threads = argc == 2 ? (int)strtol(argv[1], NULL, 10) : 0;
    float *x = take((size_t)TOKENS * H, sizeof *x);
    int32_t *ids = take((size_t)TOKENS * K, sizeof *ids);
    float *weights = take((size_t)TOKENS * K, sizeof *weights);
    const mp_batch batch = {TOKENS, K, x, ids, weights};

    if (threads < 1) {
        fprintf(stderr, "usage: forward THREADS\n");
        return 2;
    }
    codes = take(KEPT * 3, PART_BYTES);
    scales = take(KEPT * 3, SCALES);
    for (size_t i = 0; i < KEPT * 3 * PART_BYTES; i++)
        codes[i] = (uint8_t)random_number();
    memset(scales, 120, KEPT * 3 * SCALES);
    mp_random_tokens(1, TOKENS, H, x);
    for (size_t i = 0; i < (size_t)TOKENS * K; i++) {
        ids[i] = (int32_t)(random_number() % EXPERTS);
        weights[i] = 1.0f / K;
    }
    double forward = rate_forward(&batch, threads);
    double sgemm = rate_sgemm(EXPERTS / 4, TOKENS * K / EXPERTS, threads);
    printf("%.1f %.1f %.1f\n", forward, sgemm, rate_sgemm(2, TOKENS, threads));
    free(x);
    free(ids);
    free(weights);
    free(codes);
    free(scales);
    return 0;
}
