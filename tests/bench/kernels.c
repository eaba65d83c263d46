/* SPDX-License-Identifier: Apache-2.0 */
/* kernels: GB/s of input of every kernel at every level that this processor has, on one
 * thread and on data that stays in the cache, beside memcpy.
 * kernels --levels: the names of the levels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "clock.h"

#define ELEMENTS 16384u
#define TRIALS   5
#define SECONDS  0.02 /* of a trial, at least */

static const char *const levels[] = {"scalar", "avx2", "avx512", "neon"};

/* Room for any kernel's operands. */
static float *floats, *more_floats;
static uint8_t *bytes, *more_bytes;
static const mp_quant_options options;

static void bf16_decode(const mp_kernels *k)
{
    k->bf16_decode((const uint16_t *)(const void *)bytes, floats, ELEMENTS);
}

static void bf16_encode(const mp_kernels *k)
{
    k->bf16_encode(floats, (uint16_t *)(void *)bytes, ELEMENTS);
}

static void e4m3_decode(const mp_kernels *k)
{
    k->e4m3_decode(bytes, floats, ELEMENTS);
}

static void e4m3_encode(const mp_kernels *k)
{
    k->e4m3_encode(floats, bytes, ELEMENTS);
}

static void e2m1_decode(const mp_kernels *k)
{
    k->e2m1_decode(bytes, floats, ELEMENTS);
}

static void e2m1_encode(const mp_kernels *k)
{
    k->e2m1_encode(floats, bytes, ELEMENTS, MP_ROUND_DEEPGEMM);
}

static void ue8m0_decode(const mp_kernels *k)
{
    k->ue8m0_decode(bytes, floats, ELEMENTS);
}

static void ue8m0_encode(const mp_kernels *k)
{
    k->ue8m0_encode(floats, bytes, ELEMENTS);
}

static void scale(const mp_kernels *k)
{
    k->scale(floats, 0.75f, more_floats, ELEMENTS);
}

static void amax_bits(const mp_kernels *k)
{
    more_bytes[0] = (uint8_t)k->amax_bits(floats, ELEMENTS);
}

static void mxfp4_decode(const mp_kernels *k)
{
    k->mxfp4_decode(bytes, more_bytes, floats, ELEMENTS);
}

static void mxfp4_encode(const mp_kernels *k)
{
    k->mxfp4_encode(floats, bytes, more_bytes, ELEMENTS, &options);
}

static void mxfp4_encode_bf16(const mp_kernels *k)
{
    k->mxfp4_encode_bf16((const uint16_t *)(const void *)bytes, (uint8_t *)more_floats, more_bytes,
                         ELEMENTS, &options);
}

static void error_sums(const mp_kernels *k)
{
    double sums[2] = {0};

    k->error_sums(floats, more_floats, ELEMENTS, sums);
    more_bytes[0] = sums[0] > sums[1];
}

/* bytes_in, bytes_out: of one element. */
static const struct {
    const char *name;
    double bytes_in, bytes_out;
    void (*run)(const mp_kernels *k);
} kernels[] = {
    {"bf16_decode", 2, 4, bf16_decode},
    {"bf16_encode", 4, 2, bf16_encode},
    {"e4m3_decode", 1, 4, e4m3_decode},
    {"e4m3_encode", 4, 1, e4m3_encode},
    {"e2m1_decode", 0.5, 4, e2m1_decode},
    {"e2m1_encode", 4, 0.5, e2m1_encode},
    {"ue8m0_decode", 1, 4, ue8m0_decode},
    {"ue8m0_encode", 4, 1, ue8m0_encode},
    {"scale", 4, 4, scale},
    {"amax_bits", 4, 0, amax_bits},
    {"mxfp4_decode", 0.5 + 1 / 32.0, 4, mxfp4_decode},
    {"mxfp4_encode", 4, 0.5 + 1 / 32.0, mxfp4_encode},
    {"mxfp4_encode_bf16", 2, 0.5 + 1 / 32.0, mxfp4_encode_bf16},
    {"error_sums", 8, 0, error_sums},
};

static void fill(void)
{
    uint32_t state = 1;

    for (size_t i = 0; i < ELEMENTS; i++) {
        state = state * 1664525 + 1013904223;
        floats[i] = more_floats[i] = (float)(int32_t)state * 0x1p-34f;
        bytes[2 * i] = (uint8_t)(state >> 24);
        bytes[2 * i + 1] = 0x3c; /* as BF16: about 0.01 */
        more_bytes[i] = (uint8_t)(100 + (state >> 28));
    }
}

/* Seconds of one call: the best of some trials. k null: of memcpy. */
static double time_call(void (*run)(const mp_kernels *), const mp_kernels *k)
{
    double best = 1e9;

    for (int trial = 0; trial < TRIALS; trial++) {
        double begin = clock_now(), end;
        unsigned calls = 0;

        do {
            for (int i = 0; i < 16; i++, calls++)
                run(k);
            end = clock_now();
        } while (end - begin < SECONDS);
        if ((end - begin) / calls < best)
            best = (end - begin) / calls;
    }
    return best;
}

static void copy(const mp_kernels *k)
{
    (void)k;
    memcpy(more_floats, floats, ELEMENTS * sizeof *floats);
    __asm__ volatile("" ::: "memory");
}

static void print_levels(int width)
{
    for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++)
        if (mp_kernels_for(levels[l]))
            printf(" %*s", width, levels[l]);
    printf("\n");
}

/* One kernel at every level. */
static void print_kernel(size_t i)
{
    printf("%-18s %7.3g ->%-5.3g", kernels[i].name, kernels[i].bytes_in, kernels[i].bytes_out);
    for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++) {
        const mp_kernels *k = mp_kernels_for(levels[l]);

        fill();
        if (k)
            printf(" %9.2f", ELEMENTS * kernels[i].bytes_in * 1e-9 / time_call(kernels[i].run, k));
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--levels") == 0) {
        print_levels(0);
        return 0;
    }

    floats = malloc(ELEMENTS * sizeof *floats);
    more_floats = malloc(ELEMENTS * sizeof *more_floats);
    bytes = malloc(2 * ELEMENTS);
    more_bytes = malloc(2 * ELEMENTS);
    if (!floats || !more_floats || !bytes || !more_bytes)
        return 4;
    printf("%-18s %15s", "kernel", "bytes of each");
    print_levels(9);
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        print_kernel(i);
    printf("%-18s %7d ->%-5d %9.2f\n", "memcpy", 4, 4,
           ELEMENTS * sizeof(float) * 1e-9 / time_call(copy, NULL));
    return 0;
}
