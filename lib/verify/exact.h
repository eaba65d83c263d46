/* SPDX-License-Identifier: Apache-2.0 */
/* verify/exact.h - every slot against the source expert that belongs there. */
#ifndef MP_VERIFY_EXACT_H
#define MP_VERIFY_EXACT_H

#include "verify/check.h"
#include "verify/source.h"

/* What the check of a slot needs besides the rank's files. */
typedef struct mp_exact {
    mp_source source;
    bool *sample; /* [manifest.num_layers][manifest.num_experts]: routed experts that are looked
                     at; null: all */
    uint64_t scratch_bytes; /* of one thread */
} mp_exact;

/* Opens the source and prepares the comparison. *usable: false where faults say why not.
 * Errors as those of mp_source_open. */
int mp_exact_open(mp_exact *exact, mp_check *check, bool *usable, mp_error *err);
void mp_exact_release(mp_exact *exact);

/* The checkpoint id that belongs into a slot of a rank; num_experts and more: shared experts. */
uint32_t mp_exact_id(const mp_check *check, const mp_slot_set *set, size_t layer, uint32_t rank,
                     uint32_t slot);

/* Whether it is looked at: not all routed experts are when there is a sample. */
bool mp_exact_looks_at(const mp_exact *exact, const mp_check *check, size_t layer, uint32_t id);

/* Compares the slots of a rank's selected layers. */
int mp_check_exact(const mp_exact *exact, mp_check *check, const mp_rank *rank, mp_error *err);

/* ------------------------------------------------------------------------
 * A side of a slot
 */

/* A side of a slot in the scratch of one thread. Not to be moved once it is set up. */
typedef struct mp_slot_side {
    const mp_exact *exact;
    mp_check *check;
    const mp_rank *rank;
    const mp_slot_set *set;
    size_t layer;
    uint32_t slot; /* on the rank, among those of the set */
    uint32_t id;   /* that belongs there */
    mp_side side;
    const mp_slot_tensor *tensor[MP_ROLES]; /* null: the target has none */
    const mp_held *held[MP_ROLES];          /* null: not there, or of another shape */

    mp_expert view;
    mp_side_source from; /* of id */
    mp_canonical want;

    uint8_t *packed;         /* a tile of weights, as in the file */
    uint8_t *have;           /* the same unpacked: the rectangles of its parts */
    uint8_t *packed_scale;   /* the scale tensor */
    uint8_t *have_scale;     /* the same, unpacked */
    uint8_t *repacked_scale; /* the scale tensor as it should be */
    float *have_vector, *want_vector;
    bool *row_differs; /* of weights, the rows of all parts */
} mp_slot_side;

/* Sets up everything but the buffers: a side of what slot `slot` of a set has to hold. */
int mp_slot_side_init(mp_slot_side *s, const mp_exact *exact, mp_check *check,
                      const mp_slot_set *set, size_t layer, uint32_t id, mp_side side,
                      mp_error *err);

/* Lays the buffers out in the scratch; returns the bytes that they take. Null only counts. */
uint64_t mp_slot_side_lay_out(mp_slot_side *s, void *scratch);

/* Reads a tile of weights of the slot and unpacks it into have. */
int mp_slot_side_read(mp_slot_side *s, const mp_tile *tile, mp_error *err);

/* Where a fault in one of its tensors is, but for the element. */
mp_spot mp_slot_side_spot(const mp_slot_side *s, mp_role role);

/* Compares all tensors of the side that are there, and makes faults of what differs. */
int mp_slot_side_compare(mp_slot_side *s, mp_error *err);

/* ------------------------------------------------------------------------
 * Differences
 */

#define MP_NOWHERE UINT64_MAX

/* How a tensor of a slot differs from what it should be. */
typedef struct mp_difference {
    uint64_t bytes;   /* of canonical elements that differ; for padding, bytes that are not zero */
    uint64_t rows;    /* that they are in, */
    uint64_t of_rows; /* of these */
    /* The first one, in the order of the packed tensor. */
    bool found;
    bool padding;    /* it belongs to no element */
    uint64_t offset; /* in the packed tensor of the slot; or MP_NOWHERE */
    unsigned part;   /* of the matrices of the side */
    uint64_t row;    /* of that matrix, or of its scales */
    uint64_t byte;   /* of that row */
    uint64_t have;   /* the element that this byte is in; for padding, the byte */
    uint64_t want;
    unsigned bits; /* of either */
} mp_difference;

/* Makes a fault of a difference of the weight or scale. */
int mp_report_difference(mp_slot_side *s, mp_role role, const mp_difference *d, mp_error *err);

/* Makes a fault of have_vector, which differs from want_vector. */
void mp_report_vector(const mp_slot_side *s, mp_role role);

/* What a slot holds instead of its expert. */
typedef struct mp_identity {
    bool exchanged; /* its expert, but up where gate belongs */
    bool found;     /* another one: */
    uint32_t id;
} mp_identity;

/* Compares the first rows of the slot's weights, or have_scale, with those of all experts that
 * could be there. Overwrites packed and have. */
int mp_identify(mp_slot_side *s, mp_role role, mp_identity *who, mp_error *err);

/* "expert 7", "shared expert 0" or "the shared expert". */
#define MP_ID_TEXT 32
char *mp_id_text(const mp_slot_side *s, uint32_t id, char text[MP_ID_TEXT]);

#endif
