/* SPDX-License-Identifier: Apache-2.0 */
/* How far apart two results are, and tokens to compare them on. */

#include <math.h>

#include <moepack/numeric.h>

#include "forward/reference.h"
#include "numeric/kernels.h"

mp_deviation mp_compare(const double *a, const double *b, uint64_t n)
{
    mp_deviation d = {.finite = true, .identical = true};
    double error = 0, aa = 0, bb = 0, ab = 0;

    for (uint64_t i = 0; i < n; i++) {
        double e = fabs(a[i] - b[i]);

        d.finite &= isfinite(a[i]) && isfinite(b[i]);
        d.identical &= a[i] == b[i];
        d.max_abs = fmax(d.max_abs, e);
        error += e * e;
        aa += a[i] * a[i];
        bb += b[i] * b[i];
        ab += a[i] * b[i];
    }
    d.rel_l2 = error == 0 ? 0 : sqrt(error / bb);
    d.cosine_diff = aa + bb == 0 ? 0 : 1 - 2 * ab / (aa + bb);
    if (!d.finite)
        d.rel_l2 = d.cosine_diff = d.max_abs = NAN;
    return d;
}

/* Number `index` of the stream of a seed: SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t random_bits(uint64_t seed, uint64_t index)
{
    uint64_t z = seed + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* In (0, 1): never 0, of which there is no logarithm. */
static double uniform(uint64_t bits)
{
    return ((double)(bits >> 11) + 0.5) * 0x1p-53;
}

/* Box and Muller's pairs, of which the first is taken. */
void mp_random_tokens(uint64_t seed, uint64_t tokens, uint64_t hidden_size, float *x)
{
    const mp_kernels *kernels = mp_kernels_best();
    const double turn = 6.283185307179586;

    for (uint64_t i = 0; i < tokens * hidden_size; i++) {
        double radius = sqrt(-2 * log(uniform(random_bits(seed, 2 * i))));
        float value = (float)(radius * cos(turn * uniform(random_bits(seed, 2 * i + 1))));
        uint16_t code;

        kernels->bf16_encode(&value, &code, 1);
        kernels->bf16_decode(&code, &x[i], 1);
    }
}

/* From the end of the stream, which no token reaches. */
void mp_random_token_ids(uint64_t seed, uint64_t tokens, uint64_t vocab, int64_t *ids)
{
    for (uint64_t t = 0; t < tokens; t++)
        ids[t] = (int64_t)(random_bits(seed, UINT64_MAX - t) % vocab);
}
