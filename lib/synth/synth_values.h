/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth/synth_values.h - made-up weights that look like trained ones.
 *
 * A value depends on the seed, its tensor's name, its row and its column only. It is
 *
 *     shape[16 random bits] * column factor * row factor
 *
 * where shape is a heavy-tailed distribution, the row factor lies in [0.5, 2), and the
 * column factor is the same for all columns but for a few outliers, 8 to 30 times larger.
 * Every step is an IEEE operation or integer arithmetic, so that all machines agree.
 */
#ifndef MP_SYNTH_SYNTH_VALUES_H
#define MP_SYNTH_SYNTH_VALUES_H

#include <stdint.h>

/* Entries of the table of shapes: one for every 16-bit number. */
#define MP_SYNTH_SHAPES 65536

/* The random numbers of one tensor. */
typedef struct mp_synth_values {
    const float *shapes;  /* as mp_synth_shapes fills it */
    const float *columns; /* as mp_synth_columns fills it */
    uint64_t key;
} mp_synth_values;

/* Fills the table: symmetric, no zero, variance pi / 4, largest value 13.5. */
void mp_synth_shapes(float shapes[MP_SYNTH_SHAPES]);

/* The key of a tensor. */
uint64_t mp_synth_key(uint64_t seed, const char *name);

/* Fills the factors of a tensor's columns, cols >= 1. Their root mean square is such that values
 * have a standard deviation of 0.03. */
void mp_synth_columns(uint64_t key, uint64_t cols, float *columns);

/* Values of row `row`, columns col .. col+n-1; col is a multiple of 4. */
void mp_synth_row(const mp_synth_values *values, uint64_t row, uint64_t col, uint64_t n,
                  float *out);

/* 64 random bits of an element of a tensor. */
uint64_t mp_synth_bits(uint64_t key, uint64_t row, uint64_t col);

#endif
