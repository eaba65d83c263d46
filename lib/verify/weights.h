/* SPDX-License-Identifier: Apache-2.0 */
/* verify/weights.h - matrices of checkpoints and snapshots by what they decode to, and how alike
 * two of them are: what decides whether a matrix is the one that should be there. */
#ifndef MP_VERIFY_WEIGHTS_H
#define MP_VERIFY_WEIGHTS_H

#include <moepack/model.h>

#include "layout/interleave.h"

/* A matrix [rows, cols], or a part of one. */
typedef struct mp_weights {
    const mp_catalog *catalog; /* only its checkpoint is read */
    mp_storage storage;
    mp_matrix matrix;
    uint64_t rows, cols;
    /* Where rows of gate and of up take turns in one tensor, which begins at matrix.first: their
     * order, and which of the two this is. Null: rows follow one another. */
    const mp_interleave *order;
    unsigned part; /* 0: gate or down, 1: up; of two second scales, it is that one */
    bool raw;      /* bytes count as numbers: what there is without scales */
} mp_weights;

/* Matrix `projection` of an expert of a layer: a routed one, or for num_experts all shared ones as
 * one. Whole.  MP_ERR_UNSUPPORTED for zero points that are not zero. */
int mp_weights_of(const mp_catalog *catalog, const mp_moe_layer *layer, uint32_t id,
                  mp_projection projection, mp_weights *out, mp_error *err);

/* The rows and columns of a matrix that begin at row0 and col0. col0 is at the edge of a block of
 * scales; false where that is not so, or where it does not fit. */
bool mp_weights_cut(mp_weights *w, uint64_t row0, uint64_t rows, uint64_t col0, uint64_t cols);

/* How two matrices of the same size differ. */
typedef struct mp_likeness {
    bool same;         /* bit by bit, once decoded */
    uint64_t rows;     /* that are not the same */
    uint64_t row, col; /* of the first element that is not */
    bool zero;         /* the first one is all zero */
    bool finite;
    double relative; /* RMS of the difference over that of the second; NaN where not finite */
} mp_likeness;

/* Compares the first `rows` rows. have and want have the same rows and columns. */
int mp_weights_compare(const mp_weights *have, const mp_weights *want, uint64_t rows,
                       mp_likeness *out, mp_error *err);

/* What the scales of a matrix say without their weights. */
typedef enum mp_scales_look {
    MP_SCALES_VARY,
    MP_SCALES_ZERO,
    MP_SCALES_CONSTANT /* all of more than one */
} mp_scales_look;

int mp_weights_scales(const mp_weights *w, mp_scales_look *look, mp_error *err);

/* The relative RMS error that a scheme may have against the weights that it was made of. */
double mp_scheme_bound(mp_scheme scheme);

/* Whether both are stored in the same scheme and blocks: then a copy has the very bits. */
bool mp_weights_alike(const mp_weights *a, const mp_weights *b);

#endif
