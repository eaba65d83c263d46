/* SPDX-License-Identifier: Apache-2.0 */
/* Products in plain C, which define the bits, and the choice among all of them. */
#include "forward/product.h"

#include <moepack/numeric.h>

#include <math.h>
#include <string.h>

#include "numeric/kernels.h"

#define LANES_F32 16
#define LANES_F64 8

/* Adds the upper half of some lanes to the lower half until one is left. */
static float fold_f32(float lanes[LANES_F32])
{
    for (size_t half = LANES_F32 / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static double fold_f64(double lanes[LANES_F64])
{
    for (size_t half = LANES_F64 / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static float dot_f32(const float *x, const float *w, size_t cols)
{
    float lanes[LANES_F32] = {0};

    for (size_t k = 0; k < cols; k++)
        lanes[k % LANES_F32] = fmaf(x[k], w[k], lanes[k % LANES_F32]);
    return fold_f32(lanes);
}

static double dot_f64(const double *x, const double *w, size_t cols)
{
    double lanes[LANES_F64] = {0};

    for (size_t k = 0; k < cols; k++)
        lanes[k % LANES_F64] = fma(x[k], w[k], lanes[k % LANES_F64]);
    return fold_f64(lanes);
}

static void product_f32(const float *const *x, size_t m, const float *w, size_t n, size_t k,
                        float *out)
{
    size_t panel = MP_PANEL_BYTES / sizeof *w;

    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t k0 = 0; k0 < k; k0 += panel) {
                float sum = dot_f32(x[i] + k0, w + j * k + k0, k - k0 < panel ? k - k0 : panel);

                out[i * n + j] = k0 == 0 ? sum : out[i * n + j] + sum;
            }
}

static void product_f64(const double *const *x, size_t m, const double *w, size_t n, size_t k,
                        double *out)
{
    size_t panel = MP_PANEL_BYTES / sizeof *w;

    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t k0 = 0; k0 < k; k0 += panel) {
                double sum = dot_f64(x[i] + k0, w + j * k + k0, k - k0 < panel ? k - k0 : panel);

                out[i * n + j] = k0 == 0 ? sum : out[i * n + j] + sum;
            }
}

const mp_products mp_products_scalar = {"scalar", product_f32, product_f64};

static const mp_products *const all[] = {
    &mp_products_scalar,
#if defined(__x86_64__)
    &mp_products_avx2,
    &mp_products_avx512,
#elif defined(__aarch64__)
    &mp_products_neon,
#endif
};

const mp_products *mp_products_for(const char *level)
{
    for (size_t i = 0; mp_kernels_for(level) && i < sizeof all / sizeof all[0]; i++)
        if (strcmp(all[i]->level, level) == 0)
            return all[i];
    return NULL;
}

const mp_products *mp_products_best(void)
{
    const mp_products *best = mp_products_for(mp_kernels_best()->level);

    return best ? best : &mp_products_scalar;
}
