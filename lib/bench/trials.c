/* SPDX-License-Identifier: Apache-2.0 */
/* The trials of `moepack bench`: what each runs, on which data, and how long it takes.
 *
 * A trial is a row of a table, a function that runs it once, and the bytes that it reads and
 * writes. All work on one bench_data, of which each uses what fits the caches, filled alike in
 * every process, so that what is compared is instructions. One thread. */
#include "bench/trials.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/words.h"
#include "numeric/forms.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"

#define ELEMENTS 16384u /* that a kernel works on */
#define ROWS     32u    /* of the tile that a path works on */
#define COLS     4096u
#define TILE     ((size_t)ROWS * COLS)
#define ROUNDS   5

/* A tile in one scheme, with room for the largest. */
typedef struct tile {
    uint8_t weight[4 * TILE];
    uint8_t scale[TILE / 16 * 4];
    mp_rows rows;
} tile;

struct bench_data {
    float floats[TILE]; /* weights */
    float more_floats[ELEMENTS];
    float limits[ELEMENTS / 32];
    uint8_t bytes[2 * ELEMENTS]; /* harmless as BF16, F16 and codes of 8 and 4 bits */
    uint8_t scales[ELEMENTS];    /* as F8_E8M0 */
    tile tiles[MP_SCHEME_COUNT];
    tile out;
    float out_floats[TILE];
    uint8_t work[(3 * COLS) * sizeof(float)];
    uint8_t sink; /* where results go that are no arrays */
};

/* ------------------------------------------------------------------------
 * Kernels
 */

static const mp_quant_options defaults = {.global_scale = 0x1p-12f};

/* BF16 or F16. */
static const uint16_t *halves(const bench_data *d)
{
    return (const uint16_t *)(const void *)d->bytes;
}

static void bf16_decode(const mp_kernels *k, bench_data *d)
{
    k->bf16_decode(halves(d), d->out_floats, ELEMENTS);
}

static void bf16_encode(const mp_kernels *k, bench_data *d)
{
    k->bf16_encode(d->floats, (uint16_t *)(void *)d->out.weight, ELEMENTS);
}

static void f16_decode(const mp_kernels *k, bench_data *d)
{
    k->f16_decode(halves(d), d->out_floats, ELEMENTS);
}

static void e4m3_decode(const mp_kernels *k, bench_data *d)
{
    k->e4m3_decode(d->bytes, d->out_floats, ELEMENTS);
}

static void e4m3_encode(const mp_kernels *k, bench_data *d)
{
    k->e4m3_encode(d->floats, d->out.weight, ELEMENTS);
}

static void e4m3_encode_blocks(const mp_kernels *k, bench_data *d)
{
    k->e4m3_encode_blocks(d->floats, d->more_floats, 32, d->out.weight, ELEMENTS);
}

static void e2m1_decode(const mp_kernels *k, bench_data *d)
{
    k->e2m1_decode(d->bytes, d->out_floats, ELEMENTS);
}

static void e2m1_encode(const mp_kernels *k, bench_data *d)
{
    k->e2m1_encode(d->floats, d->out.weight, ELEMENTS, MP_ROUND_DEEPGEMM);
}

static void ue8m0_decode(const mp_kernels *k, bench_data *d)
{
    k->ue8m0_decode(d->scales, d->out_floats, ELEMENTS);
}

static void ue8m0_encode(const mp_kernels *k, bench_data *d)
{
    k->ue8m0_encode(d->floats, d->out.weight, ELEMENTS);
}

static void int8_decode(const mp_kernels *k, bench_data *d)
{
    k->int8_decode((const int8_t *)d->bytes, d->out_floats, ELEMENTS);
}

static void int8_encode(const mp_kernels *k, bench_data *d)
{
    k->int8_encode(d->floats, 0x1p-10f, (int8_t *)d->out.weight, ELEMENTS);
}

static void int4_decode(const mp_kernels *k, bench_data *d)
{
    k->int4_decode(d->bytes, d->out_floats, ELEMENTS);
}

static void scale(const mp_kernels *k, bench_data *d)
{
    k->scale(d->floats, 0.75f, d->out_floats, ELEMENTS);
}

static void scale_blocks(const mp_kernels *k, bench_data *d)
{
    k->scale_blocks(d->floats, d->more_floats, 32, d->out_floats, ELEMENTS);
}

static void divide(const mp_kernels *k, bench_data *d)
{
    k->divide(d->floats, 0.75f, d->out_floats, ELEMENTS);
}

static void amax_bits(const mp_kernels *k, bench_data *d)
{
    d->sink = (uint8_t)k->amax_bits(d->floats, ELEMENTS);
}

static void amax_blocks(const mp_kernels *k, bench_data *d)
{
    k->amax_blocks(d->floats, 32, (uint32_t *)(void *)d->out.weight, ELEMENTS);
}

static void amax_blocks_bf16(const mp_kernels *k, bench_data *d)
{
    k->amax_blocks_bf16(halves(d), 32, (uint32_t *)(void *)d->out.weight, ELEMENTS);
}

static void reaches(const mp_kernels *k, bench_data *d)
{
    d->sink = k->reaches(d->bytes, ELEMENTS, 16, true, 0x7f80);
}

static void mxfp4_decode(const mp_kernels *k, bench_data *d)
{
    k->mxfp4_decode(d->bytes, d->scales, d->out_floats, ELEMENTS);
}

static void mxfp4_encode(const mp_kernels *k, bench_data *d)
{
    k->mxfp4_encode(d->floats, d->out.weight, d->out.scale, ELEMENTS, &defaults);
}

static void mxfp4_encode_bf16(const mp_kernels *k, bench_data *d)
{
    d->sink =
        k->mxfp4_encode_bf16(halves(d), d->out.weight, d->out.scale, ELEMENTS, &defaults) != 0;
}

static void mxfp4_loss_bf16(const mp_kernels *k, bench_data *d)
{
    double sums[2] = {0};
    uint64_t counts[2] = {0};

    k->mxfp4_loss_bf16(halves(d), d->bytes, d->scales, ELEMENTS, sums, counts);
    d->sink = sums[0] > sums[1];
}

static void nvfp4_encode(const mp_kernels *k, bench_data *d)
{
    k->nvfp4_encode(d->floats, 0x1p-12f, d->out.weight, d->out.scale, ELEMENTS);
}

static void nvfp4_encode_bf16(const mp_kernels *k, bench_data *d)
{
    d->sink = k->nvfp4_encode_bf16(halves(d), 0x1p-12f, d->out.weight, d->out.scale, ELEMENTS) != 0;
}

static void error_sums(const mp_kernels *k, bench_data *d)
{
    double sums[2] = {0};

    k->error_sums(d->floats, d->more_floats, ELEMENTS, sums);
    d->sink = sums[0] > sums[1];
}

static void loss(const mp_kernels *k, bench_data *d)
{
    mp_loss loss = {0};

    k->loss(MP_F32, d->floats, MP_F32, d->more_floats, d->limits, 1.5f, d->limits, 32, ELEMENTS,
            &loss);
    d->sink = loss.saturated > loss.flushed;
}

/* Bytes of 32 elements. */
static const struct {
    const char *name;
    unsigned in, out;
    void (*run)(const mp_kernels *k, bench_data *d);
} kernels[] = {
    {"bf16_decode", 64, 128, bf16_decode},
    {"bf16_encode", 128, 64, bf16_encode},
    {"f16_decode", 64, 128, f16_decode},
    {"e4m3_decode", 32, 128, e4m3_decode},
    {"e4m3_encode", 128, 32, e4m3_encode},
    {"e4m3_encode_blocks", 132, 32, e4m3_encode_blocks},
    {"e2m1_decode", 16, 128, e2m1_decode},
    {"e2m1_encode", 128, 16, e2m1_encode},
    {"ue8m0_decode", 32, 128, ue8m0_decode},
    {"ue8m0_encode", 128, 32, ue8m0_encode},
    {"int8_decode", 32, 128, int8_decode},
    {"int8_encode", 128, 32, int8_encode},
    {"int4_decode", 16, 128, int4_decode},
    {"scale", 128, 128, scale},
    {"scale_blocks", 132, 128, scale_blocks},
    {"divide", 128, 128, divide},
    {"amax_bits", 128, 0, amax_bits},
    {"amax_blocks", 128, 4, amax_blocks},
    {"amax_blocks_bf16", 64, 4, amax_blocks_bf16},
    {"reaches", 64, 0, reaches},
    {"mxfp4_decode", 17, 128, mxfp4_decode},
    {"mxfp4_encode", 128, 17, mxfp4_encode},
    {"mxfp4_encode_bf16", 64, 17, mxfp4_encode_bf16},
    {"mxfp4_loss_bf16", 81, 0, mxfp4_loss_bf16},
    {"nvfp4_encode", 128, 18, nvfp4_encode},
    {"nvfp4_encode_bf16", 64, 18, nvfp4_encode_bf16},
    {"error_sums", 256, 0, error_sums},
    {"loss", 264, 0, loss},
};

static void run_kernel(const bench_trial *trial, bench_data *d)
{
    trial->kernel(mp_kernels_best(), d);
}

/* ------------------------------------------------------------------------
 * Paths
 */

static void run_decode(const bench_trial *trial, bench_data *d)
{
    d->sink = mp_decode_rows(&d->tiles[trial->from].rows, d->out_floats, NULL) != 0;
}

static void run_check(const bench_trial *trial, bench_data *d)
{
    d->sink = mp_rows_check_finite(&d->tiles[trial->from].rows, NULL) != 0;
}

static void run_encode(const bench_trial *trial, bench_data *d)
{
    d->sink = mp_requantize(&d->tiles[MP_SCHEME_F32].rows, trial->to, &defaults, d->out.weight,
                            d->out.scale, d->work, NULL, NULL) != 0;
}

static void run_requantize(const bench_trial *trial, bench_data *d)
{
    mp_quant_stats stats = {0};

    d->sink = mp_requantize(&d->tiles[trial->from].rows, trial->to, &defaults, d->out.weight,
                            d->out.scale, d->work, &stats, NULL) != 0;
}

/* Scales of a tile in a scheme that mp_requantize does not write. */
static void describe_other(mp_scheme scheme, mp_rows *rows)
{
    rows->scale_dtype = MP_F32;
    rows->block_rows = 1;
    rows->block_cols = scheme == MP_SCHEME_INT4_GROUP ? 32 : 1;
}

/* Codes and scales are yet to come. */
static mp_rows describe_tile(mp_scheme scheme)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);
    mp_rows rows = {
        .scheme = scheme,
        .scale_dtype = form->scale_dtype,
        .block_rows = form->block_rows,
        .block_cols = form->block_cols,
        .rows = ROWS,
        .cols = COLS,
        .global_scale = defaults.global_scale,
    };

    if (!form->canonical)
        describe_other(scheme, &rows);
    if (scheme == MP_SCHEME_NVFP4) /* so that to nvfp4 is not all the same bytes */
        rows.global_scale *= 0.75f;
    return rows;
}

static uint64_t scale_bytes(mp_scheme scheme)
{
    mp_rows rows = describe_tile(scheme);
    uint64_t bytes = mp_dtype_bits(rows.scale_dtype) / 8;

    switch (scheme) {
    case MP_SCHEME_BF16:
    case MP_SCHEME_F16:
    case MP_SCHEME_F32:
        return 0;
    case MP_SCHEME_FP8_TENSOR:
        return bytes;
    default:
        return bytes * ((ROWS + rows.block_rows - 1) / rows.block_rows) *
               (rows.block_cols > COLS ? 1 : COLS / rows.block_cols);
    }
}

static uint64_t tile_bytes(mp_scheme scheme)
{
    return ROWS * mp_scheme_row_bytes(scheme, COLS) + scale_bytes(scheme);
}

/* The four that mp_requantize does not write, from any codes or the weights. */
static void fill_other(mp_scheme scheme, bench_data *d)
{
    tile *t = &d->tiles[scheme];

    for (size_t i = 0; i < sizeof(t->scale) / sizeof(float); i++)
        memcpy(t->scale + i * sizeof(float), &(float){0.01f}, sizeof(float));
    if (scheme == MP_SCHEME_F32) {
        memcpy(t->weight, d->floats, sizeof(d->floats));
        return;
    }
    for (size_t i = 0; i < sizeof(t->weight); i++)
        t->weight[i] = d->bytes[i % sizeof(d->bytes)];
}

static void fill_tile(mp_scheme scheme, bench_data *d)
{
    tile *t = &d->tiles[scheme];
    mp_quant_options options = defaults;

    t->rows = describe_tile(scheme);
    t->rows.weight = t->weight;
    t->rows.scale = t->scale;
    options.global_scale = t->rows.global_scale;
    if (mp_scheme_form_of(scheme)->canonical)
        d->sink = mp_requantize(&d->tiles[MP_SCHEME_F32].rows, scheme, &options, t->weight,
                                t->scale, d->work, NULL, NULL) != 0;
    else
        fill_other(scheme, d);
}

/* ------------------------------------------------------------------------
 * Data
 */

/* About normal, of the size that weights have. */
static float random_weight(uint32_t *state)
{
    float sum = 0;

    for (int i = 0; i < 4; i++) {
        *state = *state * 1664525 + 1013904223;
        sum += (float)(*state >> 8) * 0x1p-24f - 0.5f;
    }
    return sum * 0.03f;
}

bench_data *bench_data_new(void)
{
    bench_data *d = calloc(1, sizeof(*d));
    uint32_t state = 1;

    if (!d)
        return NULL;
    for (size_t i = 0; i < TILE; i++)
        d->floats[i] = random_weight(&state);
    for (size_t i = 0; i < ELEMENTS; i++) {
        d->more_floats[i] = random_weight(&state);
        d->bytes[2 * i] = (uint8_t)(state >> 26); /* never 0x7f, NaN as E4M3 */
        d->bytes[2 * i + 1] = 0x3c;               /* as BF16: about 0.01 */
        d->scales[i] = (uint8_t)(100 + (state >> 28));
    }
    for (size_t i = 0; i < ELEMENTS / 32; i++)
        d->limits[i] = 0.01f;
    fill_tile(MP_SCHEME_F32, d);
    for (int scheme = 0; scheme < MP_SCHEME_COUNT; scheme++)
        fill_tile((mp_scheme)scheme, d);
    return d;
}

void bench_data_free(bench_data *data)
{
    free(data);
}

/* ------------------------------------------------------------------------
 * Trials
 */

static bench_trial path_trial(const char *kind, mp_scheme from, mp_scheme to)
{
    bench_trial trial = {.from = from, .to = to, .bytes_in = tile_bytes(from)};

    snprintf(trial.name, sizeof(trial.name), "%s:%s", kind, mp_scheme_name(from));
    return trial;
}

/* Of and to every scheme there is. */
static size_t scheme_trials(bench_trial *trials)
{
    size_t count = 0;

    for (int s = 0; s < MP_SCHEME_COUNT; s++) {
        mp_scheme scheme = (mp_scheme)s;
        bench_trial *t = &trials[count++];

        *t = path_trial("decode", scheme, scheme);
        t->bytes_out = TILE * sizeof(float);
        t->run = run_decode;
        t = &trials[count++];
        *t = path_trial("check", scheme, scheme);
        t->run = run_check;
        if (mp_scheme_bits(scheme) == 4 || scheme == MP_SCHEME_INT8_CHANNEL)
            t->bytes_in = scale_bytes(scheme); /* any code is finite */
        if (!mp_scheme_form_of(scheme)->canonical)
            continue;
        t = &trials[count++];
        *t = path_trial("encode", scheme, scheme);
        t->bytes_in = TILE * sizeof(float);
        t->bytes_out = tile_bytes(scheme);
        t->run = run_encode;
    }
    return count;
}

/* From the schemes that checkpoints mostly have. */
static size_t requantize_trials(bench_trial *trials)
{
    static const mp_scheme sources[] = {MP_SCHEME_BF16, MP_SCHEME_MXFP4, MP_SCHEME_FP8_BLOCK,
                                        MP_SCHEME_NVFP4, MP_SCHEME_INT4_GROUP};
    size_t count = 0;

    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++) {
        for (int s = 0; s < MP_SCHEME_COUNT; s++) {
            mp_scheme to = (mp_scheme)s;
            bench_trial *t = &trials[count];

            if (!mp_scheme_form_of(to)->canonical)
                continue;
            *t = path_trial("requantize", sources[i], to);
            snprintf(t->name, sizeof(t->name), "requantize:%s:%s", mp_scheme_name(sources[i]),
                     mp_scheme_name(to));
            t->bytes_out = tile_bytes(to);
            t->run = run_requantize;
            count++;
        }
    }
    return count;
}

bool bench_has_level(const char *level)
{
    return mp_kernels_for(level) != NULL;
}

size_t bench_trials(bench_trial trials[BENCH_TRIALS_MAX])
{
    size_t count = sizeof(kernels) / sizeof(kernels[0]);

    for (size_t i = 0; i < count; i++) {
        trials[i] = (bench_trial){
            .bytes_in = ELEMENTS / 32 * kernels[i].in,
            .bytes_out = ELEMENTS / 32 * kernels[i].out,
            .run = run_kernel,
            .kernel = kernels[i].run,
        };
        snprintf(trials[i].name, sizeof(trials[i].name), "%s", kernels[i].name);
    }
    count += scheme_trials(trials + count);
    return count + requantize_trials(trials + count);
}

/* ------------------------------------------------------------------------
 * Time
 */

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The best of some rounds, as other programs only make it slower. The first run warms up. */
double bench_time(const bench_trial *trial, bench_data *data, double seconds)
{
    double best = INFINITY;

    trial->run(trial, data);
    for (int round = 0; round < ROUNDS; round++) {
        double begin = now();
        double end;
        unsigned runs = 0;

        do {
            trial->run(trial, data);
            runs++;
            end = now();
        } while (end - begin < seconds / ROUNDS);
        best = fmin(best, (end - begin) / runs);
    }
    return best;
}

static void run_copy(const bench_trial *trial, bench_data *d)
{
    memcpy(d->out_floats, d->floats, trial->bytes_in);
    __asm__ volatile("" ::: "memory"); /* or copies that nobody reads are left out */
}

double bench_time_memcpy(bench_data *data, double seconds, uint64_t *bytes)
{
    const bench_trial copy = {.bytes_in = ELEMENTS * sizeof(float), .run = run_copy};

    *bytes = copy.bytes_in;
    return bench_time(&copy, data, seconds);
}
