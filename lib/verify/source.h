/* SPDX-License-Identifier: Apache-2.0 */
/* verify/source.h - what slots have to hold, worked out from the source checkpoint.
 *
 * A slot's canonical form: the rows of gate and then up for L1, those of down for L2, in
 * the target's scheme. A layer that is stored in this scheme passes through; another one
 * is quantized afresh by the rules that the manifest names. */
#ifndef MP_VERIFY_SOURCE_H
#define MP_VERIFY_SOURCE_H

#include <moepack/model.h>

#include "verify/check.h"

/* How a side of a slot is made of matrices. */
typedef struct mp_side_form {
    mp_projection first; /* of `parts` projections, one after the other */
    unsigned parts;      /* 2 (gate, up) or 1 (down) */
    uint64_t rows, cols; /* of one matrix */
    uint64_t row_bytes;  /* of its weights */
    uint64_t scale_rows; /* of one matrix; a row of scales covers block_rows rows */
    uint64_t scale_row_bytes;
} mp_side_form;

typedef struct mp_source {
    mp_catalog catalog;
    const mp_moe_layer **layers; /* of the pack's layers, in their order */
    mp_storage canonical;        /* how the target's scheme is stored in canonical form */
    mp_side_form sides[MP_SIDES];
    mp_quant_options quant;       /* of layers that do not pass through */
    uint64_t raw_row_bytes;       /* most bytes of a row as stored, any matrix */
    uint64_t raw_scale_row_bytes; /* the same of its scales */
} mp_source;

/* Opens the source and holds it against the manifest. *usable: false when the manifest
 * contradicts the checkpoint that it names, which is a fault.
 * MP_ERR_INPUT when it is another checkpoint, naming the first difference. */
int mp_source_open(mp_source *source, mp_check *check, bool *usable, mp_error *err);
void mp_source_release(mp_source *source);

/* Scratch of a thread that reads at most `rows` rows at a time. */
uint64_t mp_source_work_bytes(const mp_source *source, uint64_t rows);

/* True if the layer is stored in the target's scheme. */
bool mp_source_passes_through(const mp_source *source, size_t layer);

/* Canonical rows row0 .. row0+rows-1 of one matrix of an expert.
 * weight: rows * row_bytes; scale: the scale rows that cover them.
 * work: of mp_source_work_bytes(source, rows), aligned to 64. */
int mp_source_rows(const mp_source *source, size_t layer, uint32_t expert, mp_projection projection,
                   uint64_t row0, uint64_t rows, void *work, uint8_t *weight, uint8_t *scale,
                   mp_error *err);

#endif
