/* SPDX-License-Identifier: Apache-2.0 */
/*
 * experts/stored.h - a matrix of a checkpoint, read in rectangles: as it is stored, or converted.
 *
 * The one reader of stored rows. repack and verify convert the matrices of a side to what a target
 * takes (canonical.h), quantize to what a checkpoint is to hold, forward to what a kernel computes
 * with; diff and verify read them as they are.
 *
 *     mp_stored_matrix m = {catalog, storage, matrix, rows, cols, tile_rows, tile_cols};
 *     mp_stored_init(&m, scratch); // mp_stored_scratch(&m) bytes
 *     if (mp_stored_begin(&m, err) == 0)
 *         mp_stored_rows(&m, (mp_rectangle){row0, rows, 0, cols}, &out, err);
 */
#ifndef MP_EXPERTS_STORED_H
#define MP_EXPERTS_STORED_H

#include <moepack/model.h>
#include <moepack/numeric.h>

#include "numeric/quantize.h"

typedef struct mp_stored_matrix {
    /* Set by the caller. */
    const mp_catalog *catalog; /* only its checkpoint is read */
    const mp_storage *storage;
    const mp_matrix *matrix;
    uint64_t rows, cols;
    uint64_t tile_rows, tile_cols; /* of the largest rectangle that is read at once */

    float global;           /* after begin: the second scale, as it is stored; 1 without one */
    uint8_t *codes, *scale; /* private: of the last rectangle */
    void *work;
} mp_stored_matrix;

/* Rows and columns of a matrix. Columns begin and end where a block of scales does. */
typedef struct mp_rectangle {
    uint64_t row0, rows, col0, cols;
} mp_rectangle;

/* Bytes of scratch, and laying the matrix out in it. It is 64-byte aligned. */
uint64_t mp_stored_scratch(const mp_stored_matrix *m);
void mp_stored_init(mp_stored_matrix *m, void *scratch);

/* Reads the second scale. */
int mp_stored_begin(mp_stored_matrix *m, mp_error *err);

/* Whether the codes can be decoded: zero points are zero, and the shape that packed words say is
 * the matrix's. MP_ERR_UNSUPPORTED, MP_ERR_INPUT. */
int mp_stored_check(const mp_stored_matrix *m, mp_error *err);

/* Reads codes and the scales that cover them into the caller's memory; either may be null. */
int mp_stored_read(const mp_stored_matrix *m, mp_rectangle at, void *codes, void *scale,
                   mp_error *err);

/* Reads a rectangle as rows of its scheme. Good until the next read. */
int mp_stored_rows(const mp_stored_matrix *m, mp_rectangle at, mp_rows *out, mp_error *err);

/* Reads a rectangle and requantizes it, as mp_requantize does; its errors name the tensor. */
int mp_stored_convert(const mp_stored_matrix *m, mp_rectangle at, mp_scheme to,
                      const mp_quant_options *options, void *codes, void *scales,
                      mp_quant_stats *stats, mp_error *err);

/* Numbers row0 .. row0+rows-1 of the bias, which is there, as they are stored. */
int mp_stored_bias(const mp_stored_matrix *m, uint64_t row0, uint64_t rows, void *out,
                   mp_error *err);

/* Calls look() with whole rows of the matrix, from the first to the last. */
typedef int mp_stored_look(const mp_stored_matrix *m, const mp_rows *rows, void *user,
                           mp_error *err);
int mp_stored_each(const mp_stored_matrix *m, mp_stored_look *look, void *user, mp_error *err);

/* A second scale of nvfp4, and how it acts. */
typedef struct mp_second_scale {
    float value;
    bool divides;
} mp_second_scale;

float mp_second_scale_multiplier(mp_second_scale scale);

/* The second scale that matrices stored alike share as nvfp4: the largest where they are nvfp4
 * already, what leaves most blocks as they are where they are mxfp4 (mp_nvfp4_global_exact), else
 * that of their largest magnitude (mp_nvfp4_global). */
int mp_stored_second_scale(const mp_stored_matrix *m, unsigned count, bool allow_nonfinite,
                           mp_second_scale *out, mp_error *err);

/* True where matrices are in a scheme, in blocks of the size that mp_requantize writes: their
 * codes are what it would give back. */
bool mp_stored_as(const mp_storage *storage, mp_scheme scheme);

#endif
