/* SPDX-License-Identifier: Apache-2.0 */
/* Products for AVX2 with FMA, and for AVX-512: the words that product_kernel.h is written in, for
 * each of the two. The order of additions is product.h's, so all levels give the same bits: 16
 * lanes of float32, or 8 of float64, are two registers of AVX2 or one of AVX-512, and sums fold the
 * upper half onto the lower until one number is left. Folding starts at the same halves whatever
 * the register:
 *
 *   16 -> 8 -> 4 -> 2 -> 1      AVX-512 begins at 16, AVX2 at the sum of its two registers
 *
 * Functions carry their target as an attribute, so the file compiles without -mavx2 and is only
 * called where the processor has it (mp_products_for). No state, any thread. */
#include "forward/product.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2   __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512dq,avx2,fma")))

/* ------------------------------------------------------------------------
 * AVX2: two registers hold the lanes
 */

typedef struct pair_f32 {
    __m256 low, high;
} pair_f32;

typedef struct pair_f64 {
    __m256d low, high;
} pair_f64;

AVX2 static inline float fold_f32(__m256 v)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

AVX2 static inline double fold_f64(__m256d v)
{
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));

    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

AVX2 static inline pair_f32 pair_zero_f32(void)
{
    return (pair_f32){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

AVX2 static inline pair_f32 pair_load_f32(const float *p)
{
    return (pair_f32){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

AVX2 static inline pair_f32 pair_fma_f32(pair_f32 a, pair_f32 b, pair_f32 c)
{
    return (pair_f32){_mm256_fmadd_ps(a.low, b.low, c.low),
                      _mm256_fmadd_ps(a.high, b.high, c.high)};
}

AVX2 static inline float pair_sum_f32(pair_f32 v)
{
    return fold_f32(_mm256_add_ps(v.low, v.high));
}

AVX2 static inline pair_f64 pair_zero_f64(void)
{
    return (pair_f64){_mm256_setzero_pd(), _mm256_setzero_pd()};
}

AVX2 static inline pair_f64 pair_load_f64(const double *p)
{
    return (pair_f64){_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)};
}

AVX2 static inline pair_f64 pair_fma_f64(pair_f64 a, pair_f64 b, pair_f64 c)
{
    return (pair_f64){_mm256_fmadd_pd(a.low, b.low, c.low),
                      _mm256_fmadd_pd(a.high, b.high, c.high)};
}

AVX2 static inline double pair_sum_f64(pair_f64 v)
{
    return fold_f64(_mm256_add_pd(v.low, v.high));
}

#define TARGET AVX2

#define KERNEL avx2_f32
#define NUMBER float
#define LANES  16
#define VECTOR pair_f32
#define ZERO   pair_zero_f32
#define LOAD   pair_load_f32
#define FMA    pair_fma_f32
#define SUM    pair_sum_f32
#include "forward/product_kernel.h"

#define KERNEL avx2_f64
#define NUMBER double
#define LANES  8
#define VECTOR pair_f64
#define ZERO   pair_zero_f64
#define LOAD   pair_load_f64
#define FMA    pair_fma_f64
#define SUM    pair_sum_f64
#include "forward/product_kernel.h"

#undef TARGET

const mp_products mp_products_avx2 = {"avx2", avx2_f32, avx2_f64};

/* ------------------------------------------------------------------------
 * AVX-512: one register holds them
 */

AVX512 static inline float wide_sum_f32(__m512 v)
{
    return fold_f32(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

AVX512 static inline double wide_sum_f64(__m512d v)
{
    return fold_f64(_mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1)));
}

#define TARGET AVX512
#define WIDE

#define KERNEL avx512_f32
#define NUMBER float
#define LANES  16
#define VECTOR __m512
#define ZERO   _mm512_setzero_ps
#define LOAD   _mm512_loadu_ps
#define FMA    _mm512_fmadd_ps
#define SUM    wide_sum_f32
#include "forward/product_kernel.h"

#define KERNEL avx512_f64
#define NUMBER double
#define LANES  8
#define VECTOR __m512d
#define ZERO   _mm512_setzero_pd
#define LOAD   _mm512_loadu_pd
#define FMA    _mm512_fmadd_pd
#define SUM    wide_sum_f64
#include "forward/product_kernel.h"

const mp_products mp_products_avx512 = {"avx512", avx512_f32, avx512_f64};

#else

/* A file of C has to declare something. */
typedef int mp_products_x86_none;

#endif
