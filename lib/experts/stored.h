/* SPDX-License-Identifier: Apache-2.0 */
/* experts/stored.h - what model.h says of stored matrices, in the terms of numeric.h. */
#ifndef MP_EXPERTS_STORED_H
#define MP_EXPERTS_STORED_H

#include <moepack/model.h>
#include <moepack/numeric.h>

/* Rows as mp_matrix_read_rows reads them, for numeric.h; scale is not used where there is
 * none. Of a second scale, the caller sets the value: mp_matrix_global. */
mp_rows mp_stored_rows(const mp_storage *storage, uint64_t row0, uint64_t rows, uint64_t cols,
                       const void *weight, const void *scale);

/* True where matrices are in a scheme, in blocks of the size that mp_requantize writes: their
 * codes are what it would give back. */
bool mp_stored_as(const mp_storage *storage, mp_scheme scheme);

#endif
