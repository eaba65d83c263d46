/* SPDX-License-Identifier: Apache-2.0 */
/* The random numbers behind synthetic weights: counters through a mixing function, and
 * what makes them heavy-tailed. */
#include "synth/synth_values.h"

#include <math.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"

/* Standard deviation of all values, over that of shape * row factor: the mean squares
 * are pi / 4 and (2^3 - 0.5^3) / (3 * 1.5). */
#define COLUMN_RMS (0.03 / 1.1727)

/* One column of so many stands out. */
#define OUTLIER_EVERY 512

/* Neighbouring counters are this far apart: 2^64 over the golden ratio, odd. */
#define STEP 0x9e3779b97f4a7c15u

/* The mixing function of SplitMix64 (Steele, Lea, Flood 2014; constants by Stafford). */
static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint64_t number(uint64_t key, uint64_t counter)
{
    return mix(key + (counter + 1) * STEP);
}

/* With u uniform in (-1, 1), u / (1 - u^2)^(1/4) has tails that fall with the fourth
 * power. u and u^2 are exact, so that a fused 1 - u*u gives the same. */
void mp_synth_shapes(float shapes[MP_SYNTH_SHAPES])
{
    for (int i = 0; i < MP_SYNTH_SHAPES; i++) {
        double u = (2 * i + 1 - MP_SYNTH_SHAPES) / (double)MP_SYNTH_SHAPES;

        shapes[i] = (float)(u / sqrt(sqrt(1 - u * u)));
    }
}

uint64_t mp_synth_key(uint64_t seed, const char *name)
{
    mp_digest digest;
    uint64_t key = 0;

    mp_digest_of(name, strlen(name), &digest);
    for (int i = 0; i < 8; i++)
        key = key << 8 | digest.bytes[i];
    return number(key, seed);
}

void mp_synth_columns(uint64_t key, uint64_t cols, float *columns)
{
    uint64_t outliers = mp_ceil_div(cols, OUTLIER_EVERY);
    uint64_t column_key = ~key;
    double sum = 0;

    for (uint64_t k = 0; k < cols; k++)
        columns[k] = 1;
    for (uint64_t i = 0; i < outliers; i++) {
        uint64_t bits = number(column_key, i);

        columns[(bits >> 16) % cols] = (float)(8 * 65536 + 22 * (bits & 0xffff)) * 0x1p-16f;
    }
    for (uint64_t k = 0; k < cols; k++)
        sum += (double)columns[k] * columns[k];
    float unit = (float)(COLUMN_RMS / sqrt(sum / (double)cols));
    for (uint64_t k = 0; k < cols; k++)
        columns[k] *= unit;
}

void mp_synth_row(const mp_synth_values *values, uint64_t row, uint64_t col, uint64_t n, float *out)
{
    const float *shapes = values->shapes;
    const float *columns = values->columns + col;
    uint64_t row_key = number(values->key, row);
    float row_factor = (float)(0x800000 + 3 * (row_key >> 41)) * 0x1p-24f;
    uint64_t counter = col / 4;
    uint64_t i = 0;

    for (; i + 4 <= n; i += 4, counter++) {
        uint64_t bits = number(row_key, counter);

        out[i] = shapes[bits & 0xffff] * columns[i] * row_factor;
        out[i + 1] = shapes[bits >> 16 & 0xffff] * columns[i + 1] * row_factor;
        out[i + 2] = shapes[bits >> 32 & 0xffff] * columns[i + 2] * row_factor;
        out[i + 3] = shapes[bits >> 48] * columns[i + 3] * row_factor;
    }
    for (uint64_t bits = number(row_key, counter); i < n; i++, bits >>= 16)
        out[i] = shapes[bits & 0xffff] * columns[i] * row_factor;
}

uint64_t mp_synth_bits(uint64_t key, uint64_t row, uint64_t col)
{
    return number(number(key, row), col);
}
