/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/forms.h - what a scheme stores: codes, scales and their blocks. */
#ifndef MP_NUMERIC_FORMS_H
#define MP_NUMERIC_FORMS_H

#include <moepack/numeric.h>

/* Bytes of one row of weights of a scheme, cols columns; cols fills whole
 * bytes (a multiple of 2 for 4-bit schemes). int4_group has whole words of 4. */
uint64_t mp_scheme_row_bytes(mp_scheme scheme, uint64_t cols);

/* How the library writes a scheme. Where `canonical` is false it does not (f16, f32,
 * fp8_tensor, int4_group), and the other members are 0. Without scales block_* are 1. */
typedef struct mp_scheme_form {
    bool canonical;
    bool has_nan; /* codes can say NaN */
    bool has_scale;
    bool has_global; /* nvfp4: a float32 for the whole matrix besides */
    mp_dtype scale_dtype;
    uint32_t block_rows; /* of one scale; UINT32_MAX columns: one a row */
    uint32_t block_cols;
    uint32_t cols_of; /* the number of columns is a multiple of it */
} mp_scheme_form;

/* A static record; null if there is no such scheme. */
const mp_scheme_form *mp_scheme_form_of(mp_scheme scheme);

#endif
