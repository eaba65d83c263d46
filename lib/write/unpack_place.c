/* SPDX-License-Identifier: Apache-2.0 */
/* Where a matrix lies in the tensor that stores it: alone, or fused with others. */
#include "write/unpack.h"

#include <string.h>

/* Rows that are turned into columns together: a cache line of each column. */
#define ROWS_AT_ONCE 32

/* Writes `count` rows, of `bytes` bytes from `at` on, that stand behind each other in a tensor
 * of rows of row_bytes. */
static int write_rows(mp_outputs *outputs, const mp_out_tensor *out, uint64_t row, uint64_t count,
                      uint64_t row_bytes, uint64_t at, uint64_t bytes, const uint8_t *in,
                      mp_error *err)
{
    int rc = 0;

    if (bytes == row_bytes)
        return mp_outputs_write(outputs, out, row * row_bytes, in, count * bytes, err);
    for (uint64_t r = 0; r < count && rc == 0; r++)
        rc = mp_outputs_write(outputs, out, (row + r) * row_bytes + at, in + r * bytes, bytes, err);
    return rc;
}

/* Each part has tensors of its own: one for each expert, or one with a slice for each. */
static int write_alone(const mp_stored *to, mp_outputs *outputs, uint64_t row0, uint64_t rows,
                       uint64_t at, uint64_t bytes, uint8_t *const in[2], mp_error *err)
{
    int rc = 0;

    for (unsigned p = 0; p < to->parts && rc == 0; p++)
        rc = write_rows(outputs, to->out[p], to->slice * to->rows + row0, rows, to->row_bytes, at,
                        bytes, in[p], err);
    return rc;
}

/* Gate rows, then up rows. */
static int write_stacked(const mp_stored *to, mp_outputs *outputs, uint64_t row0, uint64_t rows,
                         uint64_t at, uint64_t bytes, uint8_t *const in[2], mp_error *err)
{
    int rc = 0;

    for (unsigned p = 0; p < to->parts && rc == 0; p++)
        rc = write_rows(outputs, to->out[0], (to->slice * to->parts + p) * to->rows + row0, rows,
                        to->row_bytes, at, bytes, in[p], err);
    return rc;
}

/* Gate and up rows in turn. */
static int write_paired(const mp_stored *to, mp_outputs *outputs, uint64_t row0, uint64_t rows,
                        uint64_t at, uint64_t bytes, uint8_t *const in[2], uint8_t *stage,
                        mp_error *err)
{
    for (uint64_t r = 0; r < rows; r++)
        for (unsigned p = 0; p < to->parts; p++)
            memcpy(stage + (r * to->parts + p) * bytes, in[p] + r * bytes, bytes);
    return write_rows(outputs, to->out[0], to->parts * (to->slice * to->rows + row0),
                      to->parts * rows, to->row_bytes, at, bytes, stage, err);
}

/* Where row r of part p goes in a line of a transposed tensor, the line being a column of
 * `rows` rows of each part. */
static uint64_t place_in_line(const mp_stored *to, unsigned p, uint64_t r, uint64_t rows)
{
    return to->fusion == MP_FUSION_COLS_PAIRED ? r * to->parts + p : p * rows + r;
}

/* Makes `count` rows of part p, from row `first` of `rows` on, pieces of lines. */
static void turn_rows(const mp_stored *to, unsigned p, uint64_t first, uint64_t count,
                      uint64_t rows, const uint8_t *in, uint64_t bytes, uint8_t *stage)
{
    unsigned w = to->width;
    uint64_t line = rows * to->parts * w;

    for (uint64_t k = 0; k < bytes / w; k++) {
        for (uint64_t r = first; r < first + count; r++) {
            uint8_t *place = stage + k * line + place_in_line(to, p, r, rows) * w;
            const uint8_t *from = in + r * bytes + k * w;

            if (w == 2)
                memcpy(place, from, 2); /* a move, not a call */
            else
                memcpy(place, from, w);
        }
    }
}

/* A line of the tensor is a column of the matrices: of gate, then up, or of both in turn. */
static int write_transposed(const mp_stored *to, mp_outputs *outputs, uint64_t row0, uint64_t rows,
                            uint64_t at, uint64_t bytes, uint8_t *const in[2], uint8_t *stage,
                            mp_error *err)
{
    unsigned w = to->width;
    uint64_t cols = bytes / w, line = rows * to->parts * w, whole = to->rows * to->parts * w;
    uint64_t first = to->slice * (to->row_bytes / w) + at / w; /* line of the tensor */
    bool joined = to->parts == 1 || to->fusion == MP_FUSION_COLS_PAIRED || line == whole;
    uint64_t pieces = joined ? 1 : to->parts, piece = line / pieces;

    for (unsigned p = 0; p < to->parts; p++)
        for (uint64_t r = 0; r < rows; r += ROWS_AT_ONCE)
            turn_rows(to, p, r, rows - r < ROWS_AT_ONCE ? rows - r : ROWS_AT_ONCE, rows, in[p],
                      bytes, stage);
    if (line == whole)
        return mp_outputs_write(outputs, to->out[0], first * whole, stage, cols * line, err);
    for (uint64_t k = 0; k < cols; k++) {
        for (uint64_t i = 0; i < pieces; i++) {
            uint64_t place = place_in_line(to, (unsigned)i, row0, to->rows) * w;

            if (mp_outputs_write(outputs, to->out[0], (first + k) * whole + place,
                                 stage + k * line + i * piece, piece, err) != 0)
                return err->code;
        }
    }
    return 0;
}

int mp_stored_write(const mp_stored *to, mp_outputs *outputs, uint64_t row0, uint64_t rows,
                    uint64_t at, uint64_t bytes, uint8_t *const in[2], uint8_t *stage,
                    mp_error *err)
{
    switch (to->fusion) {
    case MP_FUSION_NONE:
    case MP_FUSION_STACKED:
        return write_alone(to, outputs, row0, rows, at, bytes, in, err);
    case MP_FUSION_ROWS:
        return write_stacked(to, outputs, row0, rows, at, bytes, in, err);
    case MP_FUSION_ROWS_PAIRED:
        return write_paired(to, outputs, row0, rows, at, bytes, in, stage, err);
    case MP_FUSION_COLS:
    case MP_FUSION_COLS_PAIRED:
        break;
    }
    return write_transposed(to, outputs, row0, rows, at, bytes, in, stage, err);
}
