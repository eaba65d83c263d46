/* SPDX-License-Identifier: Apache-2.0 */
/* layout/nz.h - the FRACTAL_NZ form (format 29) of an int8 matrix [R, C].
 *
 * Panels of 32 columns one after the other; in a panel, the 32 bytes of row 0, of row 1,
 * and so on: [C/32, R/16, 16, 32]. Both sizes are rounded up, and what is not of the matrix
 * is zero.
 *
 * A weight [N, K] goes in turned over, so that its rows are the matrix's columns, or as it
 * is. Columns may come from several places: `first` is the column that the first of these
 * goes to, counted from the beginning of `packed`, which is a panel's.
 *
 * Source: the data formats of Ascend CANN; layout rules in moepack-layouts(7). */
#ifndef MP_LAYOUT_NZ_H
#define MP_LAYOUT_NZ_H

#include <stdint.h>

#define MP_NZ_COLS 32 /* of a panel */
#define MP_NZ_ROWS 16 /* a panel has a multiple of this many */

/* Bytes of one panel of a matrix with `rows` rows. */
uint64_t mp_nz_panel_bytes(uint64_t rows);

/* Columns first .. first+count-1 of a matrix with `rows` rows from lines[count][rows], a
 * line for each column; and back. */
void mp_nz_pack_lines(const uint8_t *lines, uint64_t count, uint64_t rows, uint64_t first,
                      uint8_t *packed);
void mp_nz_unpack_lines(const uint8_t *packed, uint64_t first, uint64_t count, uint64_t rows,
                        uint8_t *lines);

/* All of matrix[rows][cols], and back. */
void mp_nz_pack_matrix(const uint8_t *matrix, uint64_t rows, uint64_t cols, uint8_t *packed);
void mp_nz_unpack_matrix(const uint8_t *packed, uint64_t rows, uint64_t cols, uint8_t *matrix);

/* Zeros what of the panels of a matrix [rows, cols] is not of the matrix. */
void mp_nz_pad(uint64_t rows, uint64_t cols, uint8_t *packed);

#endif
