/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/scales.h - stored scale values as float32, which holds every scale type: F32,
 * BF16, F16, F8_E4M3, F8_E8M0 and U8. Nothing needs to be aligned. */
#ifndef MP_NUMERIC_SCALES_H
#define MP_NUMERIC_SCALES_H

#include <moepack/numeric.h>

/* Value number i. */
float mp_scale_value(mp_dtype dtype, const void *scales, uint64_t i);

/* Values number first .. first+n-1. */
void mp_scale_values(mp_dtype dtype, const void *scales, uint64_t first, uint64_t n, float *out);

#endif
