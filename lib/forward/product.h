/* SPDX-License-Identifier: Apache-2.0 */
/* forward/product.h - matrix products whose every element depends on its two rows only.
 *
 * A BLAS adds in an order that follows from the shapes it is called with, so that a token's
 * result would depend on which others its expert serves: the experts of a rank, or the copies
 * of one expert, would not add up to what a single rank computes. Here the order is fixed,
 * for any number of rows, any thread and any processor:
 *
 * Columns form panels of MP_PANEL_BYTES. In a panel, column k adds to lane k mod L, of 16
 * lanes in float32 and 8 in float64, with a fused multiply-add, from 0 on. The upper half of
 * the lanes is added to the lower half until one is left, and panels are added in order. */
#ifndef MP_FORWARD_PRODUCT_H
#define MP_FORWARD_PRODUCT_H

#include <stddef.h>

/* Columns come in multiples of this, filled up with zeros. */
#define MP_PRODUCT_COLS 16

/* Rows of weights come in multiples of this. */
#define MP_PRODUCT_ROWS 2

#define MP_PANEL_BYTES 4096

/* out[i][j] = sum over k of x[i][k] * w[j][k].
 * x: m pointers to rows of k columns; w: [n, k]; out: [m, n], m > 0. */
typedef void mp_product_f32(const float *const *x, size_t m, const float *w, size_t n, size_t k,
                            float *out);
typedef void mp_product_f64(const double *const *x, size_t m, const double *w, size_t n, size_t k,
                            double *out);

typedef struct mp_products {
    const char *level; /* as mp_kernels has it */
    mp_product_f32 *f32;
    mp_product_f64 *f64;
} mp_products;

extern const mp_products mp_products_scalar;
#if defined(__x86_64__)
extern const mp_products mp_products_avx2;
extern const mp_products mp_products_avx512;
#elif defined(__aarch64__)
extern const mp_products mp_products_neon;
#endif

/* The products of one level, or null if this processor or build lacks it. */
const mp_products *mp_products_for(const char *level);

/* Those of the level that mp_kernels_best() is of. */
const mp_products *mp_products_best(void);

#endif
