/* SPDX-License-Identifier: Apache-2.0 */
/* Products: every level gives the bits of the scalar one, whatever the rows beside. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "forward/product.h"

#define M 14
#define J 6 /* rows of w */

static const char *const levels[] = {"scalar", "avx2", "avx512", "neon"};
static const size_t columns[] = {16, 48, 112, 512, 528, 1024, 1040, 3184};

static double random_number(void)
{
    static uint32_t state = 77;

    state = state * 1664525 + 1013904223;
    return ldexp((double)(state >> 8) - 0x1p23, (int)(state & 31) - 40);
}

typedef struct operands {
    float *x32, *w32;
    double *x64, *w64;
    const float *rows32[M];
    const double *rows64[M];
} operands;

static operands make(size_t k)
{
    operands o = {malloc(M * k * sizeof(float)),
                  malloc(J * k * sizeof(float)),
                  malloc(M * k * sizeof(double)),
                  malloc(J * k * sizeof(double)),
                  {0},
                  {0}};

    for (size_t i = 0; i < M * k; i++)
        o.x32[i] = (float)(o.x64[i] = random_number());
    for (size_t i = 0; i < J * k; i++)
        o.w32[i] = (float)(o.w64[i] = random_number());
    for (size_t i = 0; i < M; i++) {
        o.rows32[i] = o.x32 + i * k;
        o.rows64[i] = o.x64 + i * k;
    }
    return o;
}

static void release(operands *o)
{
    free(o->x32);
    free(o->w32);
    free(o->x64);
    free(o->w64);
}

/* All sums at once, and those of the first m rows, have the bits of the scalar ones. */
static void check_level(const mp_products *products, const operands *o, size_t k,
                        const float *want32, const double *want64)
{
    float got32[M * J];
    double got64[M * J];

    for (size_t m = 1; m <= M; m++) {
        products->f32(o->rows32, m, o->w32, J, k, got32);
        products->f64(o->rows64, m, o->w64, J, k, got64);
        cr_assert_arr_eq(got32, want32, m * J * sizeof *got32, "%s f32, %zu rows, %zu columns",
                         products->level, m, k);
        cr_assert_arr_eq(got64, want64, m * J * sizeof *got64, "%s f64, %zu rows, %zu columns",
                         products->level, m, k);
    }
    for (size_t i = 0; i < M; i++) {
        products->f32(o->rows32 + i, 1, o->w32 + 2 * k, 2, k, got32);
        cr_assert_arr_eq(got32, want32 + i * J + 2, 2 * sizeof *got32, "%s, row %zu alone",
                         products->level, i);
    }
}

Test(product, has_the_same_bits_at_every_level_for_any_rows)
{
    for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
        operands o = make(columns[c]);
        float want32[M * J];
        double want64[M * J];

        mp_products_scalar.f32(o.rows32, M, o.w32, J, columns[c], want32);
        mp_products_scalar.f64(o.rows64, M, o.w64, J, columns[c], want64);
        for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++)
            if (mp_products_for(levels[l]))
                check_level(mp_products_for(levels[l]), &o, columns[c], want32, want64);
        release(&o);
    }
}

/* Sums of small integers are exact in any order. */
Test(product, adds_products)
{
    enum { K = 1040 };
    float x[K], w[2 * K], out[2];
    double y[K], v[2 * K], wide[2];
    const float *row = x;
    const double *wide_row = y;
    double want[2] = {0, 0};

    for (int k = 0; k < K; k++) {
        x[k] = (float)(y[k] = k % 7 - 3);
        for (int j = 0; j < 2; j++) {
            w[j * K + k] = (float)(v[j * K + k] = (k * (j + 3)) % 11 - 4);
            want[j] += y[k] * v[j * K + k];
        }
    }
    for (size_t l = 0; l < sizeof levels / sizeof levels[0]; l++) {
        const mp_products *products = mp_products_for(levels[l]);

        if (!products)
            continue;
        products->f32(&row, 1, w, 2, K, out);
        products->f64(&wide_row, 1, v, 2, K, wide);
        for (int j = 0; j < 2; j++) {
            cr_assert_eq((double)out[j], want[j]);
            cr_assert_eq(wide[j], want[j]);
        }
    }
}

/* The order that the header defines, with lanes written out. */
Test(product, adds_in_the_order_that_it_says)
{
    enum { K = 32 };
    float x[K], w[2 * K], out[2], lanes[16];
    const float *row = x;

    for (int k = 0; k < K; k++) {
        x[k] = (float)random_number();
        w[k] = w[K + k] = (float)random_number();
    }
    for (int i = 0; i < 16; i++)
        lanes[i] = fmaf(x[16 + i], w[16 + i], x[i] * w[i]);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    mp_products_best()->f32(&row, 1, w, 2, K, out);
    cr_assert_eq(out[0], lanes[0]);
    cr_assert_eq(out[1], lanes[0]);
}
