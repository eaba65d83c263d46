/* SPDX-License-Identifier: Apache-2.0 */
/* Holds every kernel table that this processor can run against the scalar one,
 * bit for bit: all lengths 0..130, up to 20 blocks of 32, and some lengths up to 1696 where
 * kernels take many blocks together, at all byte offsets 0..63.
 * Needs nothing but the C library, so that it also runs under an emulator. */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "numeric/kernels.h"

#define OFFSETS  64
#define BUFFER   8192
#define PATTERNS 4099 /* a prime, so that runs begin at ever different places */
#define CANARY   0xa5

/* One way to call one kernel. Inputs and outputs lie behind each other in one
 * buffer each; sizes are in bits an element. */
struct trial {
    const char *name;
    const uint8_t *patterns;
    size_t step; /* n is a multiple of it */
    size_t max_n;
    size_t in_bits;
    void (*run)(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n);
};

static uint32_t any_bits[PATTERNS];    /* all of float32 */
static uint32_t finite_bits[PATTERNS]; /* blocks of 32 with close exponents */
static uint16_t finite_bf16[PATTERNS]; /* the same as BF16 */
static uint16_t any_bf16[PATTERNS];
static uint16_t close_bf16[PATTERNS]; /* exponents as in weights */
static uint8_t any_bytes[PATTERNS];

static uint64_t random_state = 20261122;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static float from_bits(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof(x));
    return x;
}

static uint32_t to_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static void run_bf16_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->bf16_decode((const void *)in, (void *)out, n);
}

static void run_bf16_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->bf16_encode((const void *)in, (void *)out, n);
}

static void run_e4m3_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->e4m3_decode(in, (void *)out, n);
}

static void run_e4m3_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->e4m3_encode((const void *)in, out, n);
}

static void run_e2m1_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->e2m1_decode(in, (void *)out, n);
}

static void run_e2m1_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->e2m1_encode((const void *)in, out, n, MP_ROUND_DEEPGEMM);
    k->e2m1_encode((const void *)in, out + n / 2, n, MP_ROUND_OCP);
}

static void run_ue8m0_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->ue8m0_decode(in, (void *)out, n);
}

static void run_ue8m0_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->ue8m0_encode((const void *)in, out, n);
}

static void run_scale(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    static const float factors[] = {1.0f, 0x1p-127f, 0x1p126f, 0.1f, -3.3e-39f};

    for (size_t i = 0; i < sizeof(factors) / sizeof(factors[0]); i++)
        k->scale((const void *)in, factors[i], (void *)(out + 4 * n * i), n);
}

static const float divisors[] = {1.0f, 0x1p-149f, 0x1.8p127f, 0.1f, 3.3e-39f};

#define DIVISORS (sizeof(divisors) / sizeof(divisors[0]))

static void run_f16_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->f16_decode((const void *)in, (void *)out, n);
}

static void run_int8_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->int8_decode((const void *)in, (void *)out, n);
}

static void run_int8_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < DIVISORS; i++)
        k->int8_encode((const void *)in, divisors[i], (void *)(out + n * i), n);
}

static void run_int4_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->int4_decode(in, (void *)out, n);
}

static void run_divide(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < DIVISORS; i++)
        k->divide((const void *)in, divisors[i], (void *)(out + 4 * n * i), n);
}

static const size_t widths[] = {1, 7, 16, 24, 32, 128, SIZE_MAX};

#define WIDTHS (sizeof(widths) / sizeof(widths[0]))

static void run_scale_blocks(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    float factors[130];

    for (size_t i = 0; i < 130; i++)
        factors[i] = divisors[i % DIVISORS] * (1 + (float)i / 256);
    for (size_t i = 0; i < WIDTHS; i++)
        k->scale_blocks((const void *)in, factors, widths[i], (void *)(out + 4 * n * i), n);
}

static void run_amax_blocks(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < WIDTHS; i++)
        k->amax_blocks((const void *)in, widths[i], (void *)(out + 4 * n * i), n);
}

/* So many blocks that kernels take them together. */
static void run_amax_groups(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    static const size_t some[] = {16, 32, 48};

    for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++)
        k->amax_blocks((const void *)in, some[i], (void *)(out + n * i), n);
}

/* n elements of 16 bits, as bytes and words too, under limits that some of them reach. */
static void run_reaches(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    static const uint32_t limits[] = {0x3b00, 0x3c00, 0x3c60, 0x3c78, 0x3c7e, 0x3c7f};

    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        *out++ = k->reaches(in, n, 16, true, limits[i]);
        *out++ = k->reaches(in, n, 16, false, 0x8000 | limits[i]);
        *out++ = k->reaches(in, n / 2, 32, true, limits[i] << 16 | 0x4001);
        *out++ = k->reaches(in, 2 * n, 8, true, limits[i] & 0x7f);
        *out++ = k->reaches(in, 2 * n, 8, false, (limits[i] >> 8) | 0x80);
    }
}

static void run_amax_bits(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    uint32_t amax = k->amax_bits((const void *)in, n);

    memcpy(out, &amax, sizeof(amax));
}

static void run_mxfp4_decode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    k->mxfp4_decode(in, in + n / 2, (void *)out, n);
}

static void run_error_sums(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    double sums[2] = {0.5, 0.25};

    k->error_sums((const void *)in, (const void *)(in + 4 * n), n, sums);
    memcpy(out, sums, sizeof(sums));
}

static void run_loss(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    mp_loss loss = {.error = {0.5, 0.25}, .saturated = 3, .flushed = 5};
    const float scales[9] = {1.25f, 1e-20f, 1e-10f, 0, 0.7f, 3, 1e-3f, 1e-38f, 7};
    const float limits[9] = {1.25f, 1e-20f, 1e20f, 0, FLT_MAX, 3, 1e-3f, 1e-38f, 7};

    for (size_t width = 16; width <= 130; width += 57)
        k->loss(MP_F32, in, MP_F32, in + 4 * n, scales, 0.3f, limits, width, n, &loss);
    memcpy(out, &loss, sizeof(loss));
}

/* Codes of all types that have nothing to do with the input, but are no NaN. */
static void run_loss_of_codes(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    static const mp_dtype types[] = {MP_F4, MP_F8_E4M3, MP_I8, MP_BF16, MP_F32};
    const float scales[9] = {1.25f, 1e-20f, 1e-10f, 0, 0.7f, 3, 1e-3f, 1e-38f, 7};
    const float limits[9] = {1.25f, 1e-20f, 1e20f, 0, FLT_MAX, 3, 1e-3f, 1e-38f, 7};
    uint8_t bytes[130];
    float originals[130];

    for (size_t i = 0; i < n; i++)
        bytes[i] = any_bytes[i + n] % 128 == 127 ? 126 : any_bytes[i + n];
    k->bf16_decode((const void *)in, originals, n);
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        const void *codes = types[t] == MP_BF16  ? (const void *)finite_bf16
                            : types[t] == MP_F32 ? (const void *)finite_bits
                                                 : (const void *)bytes;
        mp_loss loss = {.error = {0.5, 0.25}, .saturated = 3, .flushed = 5};

        for (size_t width = 16; width <= 130; width += 57) {
            k->loss(MP_BF16, in, types[t], codes, scales, 0.3f, limits, width, n, &loss);
            k->loss(MP_F32, originals, types[t], codes, scales, 0.3f, limits, width, n, &loss);
        }
        memcpy(out, &loss, sizeof(loss));
        out += sizeof(loss);
    }
}

static void run_e4m3_encode_blocks(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    float factors[130];

    for (size_t i = 0; i < 130; i++)
        factors[i] = divisors[i % DIVISORS] * (1 + (float)i / 256);
    for (size_t i = 0; i < WIDTHS; i++)
        k->e4m3_encode_blocks((const void *)in, factors, widths[i], out + n * i, n);
}

static void run_amax_blocks_bf16(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < WIDTHS; i++)
        k->amax_blocks_bf16((const void *)in, widths[i], (void *)(out + 4 * n * i), n);
}

static const float globals[] = {1, 0x1p-12f, 0x1.7p-60f, 0x1p-140f, FLT_MAX};

#define GLOBALS (sizeof(globals) / sizeof(globals[0]))

static void run_nvfp4_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < GLOBALS; i++) {
        k->nvfp4_encode((const void *)in, globals[i], out, out + n / 2, n);
        out += n / 2 + n / 16;
    }
}

static void run_nvfp4_encode_bf16(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < GLOBALS; i++) {
        size_t finite = k->nvfp4_encode_bf16((const void *)in, globals[i], out, out + n / 2, n);

        memset(out + finite / 2, CANARY, (n - finite) / 2);
        memset(out + n / 2 + finite / 16, CANARY, (n - finite) / 16);
        out += n / 2 + n / 16;
        *out++ = (uint8_t)(finite / 16);
    }
}

static const mp_quant_options encodings[] = {
    {.rounding = MP_ROUND_DEEPGEMM},
    {.rounding = MP_ROUND_OCP, .amax_floor = 1e-4f},
    {.rounding = MP_ROUND_DEEPGEMM, .scale_rule = MP_SCALE_MSE},
    {.rounding = MP_ROUND_OCP, .scale_rule = MP_SCALE_MSE, .amax_floor = FLT_MAX},
};

#define ENCODINGS (sizeof(encodings) / sizeof(encodings[0]))

static void run_mxfp4_encode(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < ENCODINGS; i++) {
        k->mxfp4_encode((const void *)in, out, out + n / 2, n, &encodings[i]);
        out += n / 2 + n / 32;
    }
}

static void run_mxfp4_encode_bf16(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < ENCODINGS; i++) {
        size_t done = k->mxfp4_encode_bf16((const void *)in, out, out + n / 2, n, &encodings[i]);

        out += n / 2 + n / 32;
        memcpy(out, &done, sizeof(done));
        out += sizeof(done);
    }
}

/* Codes and scales, from 1 to 254, that have nothing to do with the input. */
static void run_mxfp4_loss(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    const uint8_t *codes = any_bytes + (uintptr_t)in % OFFSETS;
    uint8_t scales[640 / 32];
    double sums[2] = {0.5, 0.25};
    uint64_t counts[2] = {3, 5};

    for (size_t i = 0; i < n / 32; i++)
        scales[i] = (uint8_t)(1 + codes[i] % 254);
    k->mxfp4_loss_bf16((const void *)in, codes, scales, n, sums, counts);
    memcpy(out, sums, sizeof(sums));
    memcpy(out + sizeof(sums), counts, sizeof(counts));
}

/* The codes and scales that belong to the input. */
static void run_mxfp4_encode_loss(const mp_kernels *k, const uint8_t *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < ENCODINGS; i++) {
        uint8_t *scales = out + n / 2;
        double sums[2] = {0};
        uint64_t counts[2] = {0};

        k->mxfp4_encode_bf16((const void *)in, out, scales, n, &encodings[i]);
        k->mxfp4_loss_bf16((const void *)in, out, scales, n, sums, counts);
        out = scales + n / 32;
        memcpy(out, sums, sizeof(sums));
        memcpy(out + sizeof(sums), counts, sizeof(counts));
        out += sizeof(sums) + sizeof(counts);
    }
}

static const struct trial trials[] = {
    {"bf16_decode", (const uint8_t *)any_bf16, 1, 130, 16, run_bf16_decode},
    {"bf16_encode", (const uint8_t *)any_bits, 1, 130, 32, run_bf16_encode},
    {"e4m3_decode", any_bytes, 1, 130, 8, run_e4m3_decode},
    {"e4m3_encode", (const uint8_t *)any_bits, 1, 130, 32, run_e4m3_encode},
    {"e2m1_decode", any_bytes, 2, 130, 4, run_e2m1_decode},
    {"e2m1_encode", (const uint8_t *)any_bits, 2, 130, 32, run_e2m1_encode},
    {"ue8m0_decode", any_bytes, 1, 130, 8, run_ue8m0_decode},
    {"ue8m0_encode", (const uint8_t *)any_bits, 1, 130, 32, run_ue8m0_encode},
    {"scale", (const uint8_t *)any_bits, 1, 130, 32, run_scale},
    {"f16_decode", (const uint8_t *)any_bits, 1, 130, 16, run_f16_decode},
    {"int8_decode", any_bytes, 1, 130, 8, run_int8_decode},
    {"int8_encode", (const uint8_t *)finite_bits, 1, 130, 32, run_int8_encode},
    {"int4_decode", any_bytes, 2, 130, 4, run_int4_decode},
    {"divide", (const uint8_t *)finite_bits, 1, 130, 32, run_divide},
    {"scale_blocks", (const uint8_t *)finite_bits, 1, 130, 32, run_scale_blocks},
    {"amax_blocks", (const uint8_t *)any_bits, 1, 130, 32, run_amax_blocks},
    {"amax_blocks, groups", (const uint8_t *)any_bits, 53, 1696, 32, run_amax_groups},
    {"reaches", (const uint8_t *)close_bf16, 1, 130, 16, run_reaches},
    {"amax_bits", (const uint8_t *)any_bits, 1, 130, 32, run_amax_bits},
    {"amax_bits, finite", (const uint8_t *)finite_bits, 1, 130, 32, run_amax_bits},
    {"mxfp4_decode", any_bytes, 32, 640, 5, run_mxfp4_decode},
    {"mxfp4_encode", (const uint8_t *)finite_bits, 32, 640, 32, run_mxfp4_encode},
    {"mxfp4_encode_bf16", (const uint8_t *)finite_bf16, 32, 640, 16, run_mxfp4_encode_bf16},
    {"mxfp4_encode_bf16, any", (const uint8_t *)any_bf16, 32, 640, 16, run_mxfp4_encode_bf16},
    {"mxfp4_loss_bf16", (const uint8_t *)finite_bf16, 32, 640, 16, run_mxfp4_loss},
    {"mxfp4_loss_bf16, close", (const uint8_t *)close_bf16, 32, 640, 16, run_mxfp4_loss},
    {"mxfp4_loss_bf16, encoded", (const uint8_t *)close_bf16, 32, 640, 16, run_mxfp4_encode_loss},
    {"error_sums", (const uint8_t *)finite_bits, 1, 130, 64, run_error_sums},
    {"loss", (const uint8_t *)finite_bits, 1, 130, 64, run_loss},
    {"loss of codes", (const uint8_t *)finite_bf16, 2, 130, 16, run_loss_of_codes},
    {"loss of codes, close", (const uint8_t *)close_bf16, 2, 130, 16, run_loss_of_codes},
    {"e4m3_encode_blocks", (const uint8_t *)any_bits, 1, 130, 32, run_e4m3_encode_blocks},
    {"amax_blocks_bf16", (const uint8_t *)any_bf16, 1, 130, 16, run_amax_blocks_bf16},
    {"nvfp4_encode", (const uint8_t *)finite_bits, 16, 1104, 32, run_nvfp4_encode},
    {"nvfp4_encode_bf16", (const uint8_t *)finite_bf16, 16, 1104, 16, run_nvfp4_encode_bf16},
    {"nvfp4_encode_bf16, any", (const uint8_t *)any_bf16, 16, 1104, 16, run_nvfp4_encode_bf16},
};

/* Values at which some format rounds, saturates or changes its step. */
static uint32_t edge(uint32_t i)
{
    static const float values[] = {
        0.0f,    0x1p-149f, 0x1p-127f, FLT_MIN, 0x1p-10f, 0x1p-9f, 0x1.8p-9f, 0x1p-7f,  0x1.fp-7f,
        0x1p-6f, 0x1.1p-6f, 0.25f,     0.75f,   1.25f,    1.75f,   2.5f,      3.5f,     5.0f,
        6.0f,    17.0f,     18.0f,     448.0f,  464.0f,   480.0f,  0x1p126f,  0x1p127f, FLT_MAX,
    };
    static const uint32_t others[] = {0x7f800000, 0x7f800001, 0x7fc00000, 0x7fffffff, 0x3f808000,
                                      0x3f818000, 0x7f7f8000, 0x7f7f7fff, 0x00007fff, 0x00008000};
    uint32_t kinds = sizeof(values) / sizeof(values[0]);
    uint32_t sign = i & 1 ? 0x80000000 : 0;

    i /= 2;
    if (i < 3 * kinds) {
        uint32_t bits = to_bits(values[i / 3]);

        return sign ^ (bits + i % 3 - (bits ? 1 : 0)); /* just below, at, just above */
    }
    return sign | others[i % (sizeof(others) / sizeof(others[0]))];
}

static void make_patterns(void)
{
    for (uint32_t i = 0; i < PATTERNS; i++) {
        /* Exponents from 0 to 254 in turn, and within a block up to 15 below. */
        uint32_t top = i / 32 * 37 % 255;
        uint32_t below = next_random() % 16;
        uint32_t exponent = top > below ? top - below : 0;

        any_bits[i] = i % 4 ? next_random() : edge(i / 4);
        finite_bits[i] = (next_random() & 0x807fffff) | exponent << 23;
        if (next_random() % 4 == 0)
            finite_bits[i] &= 0xffc00000; /* ties and exact values */
        finite_bf16[i] = (uint16_t)(finite_bits[i] >> 16);
        close_bf16[i] = (uint16_t)(finite_bf16[i] & 0x807f) | (uint16_t)((120 - below / 2) << 7);
        any_bf16[i] = (uint16_t)(next_random() % 512 ? next_random() & 0xbfff : 0x7f80 + i % 3);
        any_bytes[i] = (uint8_t)(i < 256 ? i : next_random());
    }
}

static size_t bytes_of(size_t bits)
{
    return (bits + 7) / 8;
}

/* Runs one table; the whole of `out` is compared, so a store beyond the end shows. */
static void run_at(const struct trial *t, const mp_kernels *k, const uint8_t *in, size_t offset,
                   uint8_t out[BUFFER], size_t n)
{
    memset(out, CANARY, BUFFER);
    t->run(k, in, out + (offset * 7 + 3) % OFFSETS, n);
}

static int compare_at(const struct trial *t, const mp_kernels *k, size_t offset, size_t n)
{
    static uint8_t in[BUFFER];
    static uint8_t expected[BUFFER];
    static uint8_t got[BUFFER];
    size_t element = bytes_of(t->in_bits);
    size_t size = bytes_of(t->in_bits * n);
    size_t first = (offset * 131 + n * 17) % (PATTERNS - 2 * t->max_n);

    memcpy(in + offset, t->patterns + first * (element > 4 ? 4 : element), size);
    run_at(t, mp_kernels_for("scalar"), in + offset, offset, expected, n);
    run_at(t, k, in + offset, offset, got, n);
    if (memcmp(expected, got, BUFFER) == 0)
        return 0;
    size_t at = 0;
    while (expected[at] == got[at])
        at++;
    printf("%s %s: n = %zu, offset %zu, output byte %zu: %#x, expected %#x\n", k->level, t->name, n,
           offset, at, got[at], expected[at]);
    return 1;
}

static int compare_all_places(const mp_kernels *k)
{
    for (size_t i = 0; i < sizeof(trials) / sizeof(trials[0]); i++) {
        for (size_t offset = 0; offset < OFFSETS; offset++) {
            for (size_t n = 0; n <= trials[i].max_n; n += trials[i].step) {
                if (compare_at(&trials[i], k, offset, n) != 0)
                    return 1;
            }
        }
    }
    return 0;
}

/* The encoders over float32 bit patterns that are evenly spread. */
static int compare_sweep(const mp_kernels *k)
{
    enum { N = 256, STRIDE = 5003 };
    const mp_kernels *scalar = mp_kernels_for("scalar");
    uint8_t expected[N * 4];
    uint8_t got[N * 4];
    float in[N];

    for (uint64_t first = 0; first + N * STRIDE <= UINT32_MAX; first += N * STRIDE) {
        for (size_t i = 0; i < N; i++)
            in[i] = from_bits((uint32_t)(first + i * STRIDE));
        for (size_t i = 0; i < sizeof(trials) / sizeof(trials[0]); i++) {
            if (trials[i].patterns != (const uint8_t *)any_bits || trials[i].in_bits != 32 ||
                trials[i].run == run_e4m3_encode_blocks || trials[i].run == run_scale ||
                trials[i].run == run_amax_blocks || trials[i].run == run_amax_groups)
                continue;
            memset(expected, CANARY, sizeof(expected));
            memset(got, CANARY, sizeof(got));
            trials[i].run(scalar, (const uint8_t *)in, expected, N);
            trials[i].run(k, (const uint8_t *)in, got, N);
            if (memcmp(expected, got, sizeof(got)) != 0) {
                printf("%s %s: differs within %d patterns from %#llx\n", k->level, trials[i].name,
                       N, (unsigned long long)first);
                return 1;
            }
        }
    }
    return 0;
}

int main(void)
{
    static const char *const levels[] = {"avx2", "avx512", "neon"};
    int failed = 0;

    make_patterns();
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        const mp_kernels *k = mp_kernels_for(levels[i]);

        if (!k)
            continue;
        if (compare_all_places(k) != 0 || compare_sweep(k) != 0)
            failed = 1;
        else
            printf("%s: same bits as scalar\n", levels[i]);
    }
    return failed || fflush(stdout) != 0;
}
