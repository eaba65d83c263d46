/* SPDX-License-Identifier: Apache-2.0 */
/* verify/exact.h - every slot against the source expert that belongs there. */
#ifndef MP_VERIFY_EXACT_H
#define MP_VERIFY_EXACT_H

#include "verify/check.h"
#include "verify/source.h"
#include "verify/where.h"

/* What the check of a slot needs besides the rank's files. */
typedef struct mp_exact {
    mp_source source;
    mp_scale_map scale_maps[MP_SIDES];
    uint64_t tile_rows[MP_SIDES];  /* packed rows that are compared at a time */
    uint64_t probe_rows[MP_SIDES]; /* packed rows that tell which expert a slot holds */
} mp_exact;

/* Opens the source and prepares the comparison. *usable: false where faults say why not.
 * Errors as those of mp_source_open. */
int mp_exact_open(mp_exact *exact, mp_check *check, bool *usable, mp_error *err);
void mp_exact_release(mp_exact *exact);

/* Compares the slots of a rank's selected layers. */
int mp_check_exact(const mp_exact *exact, mp_check *check, const mp_rank *rank, mp_error *err);

/* ------------------------------------------------------------------------
 * A side of a slot
 */

/* A side of a slot in the scratch of one thread. A tile's rows, in canonical form, are
 * those of gate and then those of up, or those of down. */
typedef struct mp_slot_side {
    const mp_exact *exact;
    mp_check *check;
    const mp_rank *rank;
    size_t layer;
    uint32_t slot;   /* on the rank */
    uint32_t expert; /* that belongs there */
    mp_side side;
    const mp_side_form *form;
    const mp_slot_tensor *tensor[2]; /* by mp_role; null: the target has none */
    const mp_held *held[2];          /* by mp_role; null: not there, or of another shape */

    uint64_t row0, rows;   /* packed rows of the tile in the buffers */
    uint8_t *packed;       /* a tile of weights, as in the file */
    uint8_t *have;         /* the same, unpacked */
    uint8_t *want;         /* the same from the source */
    uint8_t *packed_scale; /* the scale tensor */
    uint8_t *have_scale;   /* the same, unpacked */
    uint8_t *want_scale;   /* the same from the source */
    void *work;            /* of mp_source_rows */
} mp_slot_side;

/* Where a fault in one of its tensors is, but for the element. */
mp_spot mp_slot_side_spot(const mp_slot_side *s, mp_role role);

/* Makes packed rows row0 .. row0+rows-1 the tile: reads its weights, where they are there,
 * and unpacks them into have. */
int mp_slot_side_read(mp_slot_side *s, uint64_t row0, uint64_t rows, mp_error *err);

/* Gets the tile's rows of an expert from the source, into want and want_scale. */
int mp_slot_side_want(mp_slot_side *s, uint32_t expert, mp_error *err);

/* How a tensor of a slot differs from what it should be. */
typedef struct mp_difference {
    uint64_t bytes;   /* that differ; 0: none, and the rest is not set */
    uint64_t rows;    /* that they are in, */
    uint64_t of_rows; /* of these */
    /* The first one, in the order of the packed tensor. */
    uint64_t offset; /* in the packed tensor of the slot */
    unsigned part;   /* of the matrices of the side */
    uint64_t row;    /* of that matrix, or of its scales */
    uint64_t byte;   /* of that row */
    uint64_t have;   /* the element that this byte is in */
    uint64_t want;
} mp_difference;

/* Makes a fault of the difference. Overwrites the scratch of s. */
int mp_report_difference(mp_slot_side *s, mp_role role, const mp_difference *d, mp_error *err);

#endif
