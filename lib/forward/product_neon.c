/* SPDX-License-Identifier: Apache-2.0 */
/* Products for aarch64: four registers hold the lanes. */
#include "forward/product.h"

#if defined(__aarch64__)

#include <arm_neon.h>

static inline float32x4x4_t zero_f32(void)
{
    float32x4_t zero = vdupq_n_f32(0);

    return (float32x4x4_t){{zero, zero, zero, zero}};
}

static inline float32x4x4_t load_f32(const float *p)
{
    return (float32x4x4_t){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}

static inline float32x4x4_t fma_f32(float32x4x4_t a, float32x4x4_t b, float32x4x4_t c)
{
    return (float32x4x4_t){
        {vfmaq_f32(c.val[0], a.val[0], b.val[0]), vfmaq_f32(c.val[1], a.val[1], b.val[1]),
         vfmaq_f32(c.val[2], a.val[2], b.val[2]), vfmaq_f32(c.val[3], a.val[3], b.val[3])}};
}

static inline float sum_f32(float32x4x4_t v)
{
    float32x4_t four = vaddq_f32(vaddq_f32(v.val[0], v.val[2]), vaddq_f32(v.val[1], v.val[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));

    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static inline float64x2x4_t zero_f64(void)
{
    float64x2_t zero = vdupq_n_f64(0);

    return (float64x2x4_t){{zero, zero, zero, zero}};
}

static inline float64x2x4_t load_f64(const double *p)
{
    return (float64x2x4_t){{vld1q_f64(p), vld1q_f64(p + 2), vld1q_f64(p + 4), vld1q_f64(p + 6)}};
}

static inline float64x2x4_t fma_f64(float64x2x4_t a, float64x2x4_t b, float64x2x4_t c)
{
    return (float64x2x4_t){
        {vfmaq_f64(c.val[0], a.val[0], b.val[0]), vfmaq_f64(c.val[1], a.val[1], b.val[1]),
         vfmaq_f64(c.val[2], a.val[2], b.val[2]), vfmaq_f64(c.val[3], a.val[3], b.val[3])}};
}

static inline double sum_f64(float64x2x4_t v)
{
    float64x2_t two = vaddq_f64(vaddq_f64(v.val[0], v.val[2]), vaddq_f64(v.val[1], v.val[3]));

    return vgetq_lane_f64(two, 0) + vgetq_lane_f64(two, 1);
}

#define TARGET

#define KERNEL neon_f32
#define NUMBER float
#define LANES  16
#define VECTOR float32x4x4_t
#define ZERO   zero_f32
#define LOAD   load_f32
#define FMA    fma_f32
#define SUM    sum_f32
#include "forward/product_kernel.h"

#define KERNEL neon_f64
#define NUMBER double
#define LANES  8
#define VECTOR float64x2x4_t
#define ZERO   zero_f64
#define LOAD   load_f64
#define FMA    fma_f64
#define SUM    sum_f64
#include "forward/product_kernel.h"

const mp_products mp_products_neon = {"neon", neon_f32, neon_f64};

#else

/* A file of C has to declare something. */
typedef int mp_products_neon_none;

#endif
