/* SPDX-License-Identifier: Apache-2.0 */
/* experts/dumped_rows.h - a matrix of an expert of a snapshot, whole: rows as they are stored, put
 * together from the ranks that have a part of it, in the order of checkpoints. */
#ifndef MP_EXPERTS_DUMPED_ROWS_H
#define MP_EXPERTS_DUMPED_ROWS_H

#include <moepack/numeric.h>

#include "experts/dumped.h"

typedef struct mp_dumped_matrix {
    /* The side on the rank of the first part of I; of the others, MP_SIDES farther each. */
    const mp_dumped_side *parts;
    const mp_catalog *views; /* of the same ranks: of each only the checkpoint */
    uint32_t slot;           /* the same on all */
    mp_projection projection;
    mp_half_order order; /* of w13 */
} mp_dumped_matrix;

/* Rows and columns of all of it. */
uint64_t mp_dumped_rows(const mp_dumped_matrix *m);
uint64_t mp_dumped_cols(const mp_dumped_matrix *m);

typedef struct mp_dumped_reader {
    mp_dumped_matrix m;
    float global;   /* second scale; 1 without */
    uint8_t *codes; /* rows of weights, */
    uint8_t *scale; /* their scales, */
    uint8_t *piece; /* and what a part has of them */
} mp_dumped_reader;

/* Opens a matrix to read up to `most` rows at a time. The reader is to be closed, also on errors.
 * MP_ERR_INPUT where its parts are not stored alike, MP_ERR_UNSUPPORTED where they are not cut at
 * blocks of scales or have no scales. */
int mp_dumped_open(mp_dumped_reader *r, const mp_dumped_matrix *m, uint64_t most, mp_error *err);
void mp_dumped_close(mp_dumped_reader *r);

/* Reads rows row0 .. row0+rows-1. Good until the next read. */
int mp_dumped_read(mp_dumped_reader *r, uint64_t row0, uint64_t rows, mp_rows *out, mp_error *err);

/* Drops its pages from the page cache. Never fails. */
void mp_dumped_forget(const mp_dumped_matrix *m);

#endif
