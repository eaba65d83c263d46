/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/rows.h - one row at a time out of an mp_rows. Row numbers count from
 * the first row of the mp_rows, except in messages. */
#ifndef MP_NUMERIC_ROWS_H
#define MP_NUMERIC_ROWS_H

#include <moepack/numeric.h>

/* Whether scheme, scale type and block sizes go together. */
int mp_rows_check(const mp_rows *in, mp_error *err);

/* Rows and columns that share a scale; UINT64_MAX where all of them do. */
typedef struct mp_scale_block {
    uint64_t rows;
    uint64_t cols;
} mp_scale_block;

mp_scale_block mp_rows_block(const mp_rows *in);

bool mp_scheme_has_scales(mp_scheme scheme);

/* Rows in the types and blocks that mp_requantize writes of a scheme; codes, scales and second
 * scale are left to the caller. */
mp_rows mp_scheme_rows(mp_scheme scheme, uint64_t row0, uint64_t rows, uint64_t cols);

/* Scale number i of those stored, as float32, which holds every scale type. */
float mp_rows_scale_at(const mp_rows *in, uint64_t i);

/* Number of the scale of the first column of a row; how many scales the rows have. */
uint64_t mp_rows_first_scale(const mp_rows *in, uint64_t row);
uint64_t mp_rows_scale_count(const mp_rows *in);

/* Codes of one row as float32, not yet scaled. */
void mp_decode_codes(const mp_rows *in, uint64_t row, float *out);

/* Decodes one row of rows that passed the check. MP_ERR_INPUT on a NaN scale
 * unless allow_nan. */
int mp_decode_row(const mp_rows *in, uint64_t row, float *out, bool allow_nan, mp_error *err);

#endif
