/* SPDX-License-Identifier: Apache-2.0 */
/* layout/transpose.h - turning matrices of bytes over. */
#ifndef MP_LAYOUT_TRANSPOSE_H
#define MP_LAYOUT_TRANSPOSE_H

#include <stdint.h>

/* out[c][r] = in[r][c] for rows x cols bytes. A row of in begins every in_stride bytes, one
 * of out every out_stride bytes; what lies between them is not touched. */
void mp_transpose(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols, uint8_t *out,
                  uint64_t out_stride);

#endif
