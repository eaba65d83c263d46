/* SPDX-License-Identifier: Apache-2.0 */
/* Random load counts, the same on every run, for the tests of placements and for their benchmark.
 */
#ifndef MP_TEST_RANDOM_COUNTS_H
#define MP_TEST_RANDOM_COUNTS_H

#include <math.h>
#include <stdlib.h>

#include <moepack/place.h>

/* How the counts of a layer are spread. */
typedef enum spread { ZIPF_08, ZIPF_12, ZIPF_16, LOG_NORMAL, FEW_HOT, SPREADS } spread;

static uint64_t state = 1;

/* In (0, 1), the same on every machine. */
static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(state >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(void)
{
    double u = uniform(), v = uniform();
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static double draw(spread kind, uint32_t rank)
{
    static const double exponents[] = {0.8, 1.2, 1.6};
    switch (kind) {
    case LOG_NORMAL:
        return 1000 * exp(1.2 * normal());
    case FEW_HOT:
        return rank < 4 ? 6000 + 12000 * uniform() : 100 + 400 * uniform();
    default:
        return 1e6 * pow(rank + 1, -exponents[kind]) * (0.8 + 0.4 * uniform());
    }
}

static void shuffle(float *w, uint32_t n)
{
    for (uint32_t e = n - 1; e > 0; e--) {
        uint32_t other = (uint32_t)(uniform() * (e + 1));
        float keep = w[e];
        w[e] = w[other];
        w[other] = keep;
    }
}

static mp_counts make_counts(uint32_t layers, uint32_t n, spread kind)
{
    mp_counts c = {.layers = layers, .num_logical = n};
    c.count = malloc((size_t)layers * n * sizeof(float));
    for (uint32_t layer = 0; layer < layers; layer++) {
        float *w = c.count + (size_t)layer * n;
        for (uint32_t e = 0; e < n; e++)
            w[e] = (float)floor(draw(kind, e));
        shuffle(w, n);
    }
    return c;
}

#endif
