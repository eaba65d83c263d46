/* SPDX-License-Identifier: Apache-2.0 */
/* base/transpose.h - turning matrices over. */
#ifndef MP_BASE_TRANSPOSE_H
#define MP_BASE_TRANSPOSE_H

#include <stdint.h>

/* out[c][r] = in[r][c] for rows x cols elements of `width` bytes, 1, 2, 4 or 8. A row of in
 * begins every in_stride bytes, one of out every out_stride bytes; what lies between them is not
 * touched, and nothing needs to be aligned. */
void mp_transpose(const void *in, uint64_t in_stride, uint64_t rows, uint64_t cols, unsigned width,
                  void *out, uint64_t out_stride);

#endif
