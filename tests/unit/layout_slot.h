/* SPDX-License-Identifier: Apache-2.0 */
/* One expert, canonical and as a target packs it. Packing goes tile by tile through buffers
 * of exactly the size that the target may touch. */
#ifndef MP_TEST_LAYOUT_SLOT_H
#define MP_TEST_LAYOUT_SLOT_H

#include <moepack/layout.h>

/* All targets, their FRACTAL_NZ forms and the forms of shared experts: *count of them. */
const mp_target *const *layout_records(size_t *count);

/* What to call a record in a message: its name, with " nz" where it is the NZ form. */
const char *layout_label(const mp_target *target);

/* A side of an expert. Sizes in bytes; [part] of canonical weights. */
typedef struct layout_side {
    uint8_t *weight[2];
    size_t weight_bytes; /* of a part */
    uint8_t *scale;
    size_t scale_bytes;
    uint8_t *packed;
    size_t packed_bytes;
    uint8_t *packed_scale;
    size_t packed_scale_bytes;
} layout_side;

typedef struct layout_slot {
    const mp_target *target;
    mp_dims dims;
    layout_side sides[MP_SIDES];
} layout_slot;

/* Random weights, and scales that the target can say, no two rows alike. */
layout_slot layout_slot_make(const mp_target *target, mp_dims dims);
void layout_slot_free(layout_slot *slot);

/* Fills packed from weight, and packed_scale from scale; tiles of about so many bytes. Bytes
 * of packed that no tile writes are 0xa5. */
void layout_slot_pack(layout_slot *slot, mp_side side, uint64_t tile_bytes);

/* Fills weight and scale from packed and packed_scale. */
void layout_slot_unpack(layout_slot *slot, mp_side side, uint64_t tile_bytes);

/* The tensor of a side in a role; fails the test if there is none. */
mp_slot_tensor layout_tensor(const mp_target *target, mp_dims dims, mp_side side, mp_role role);

uint64_t layout_random(void);

void layout_expect_bytes(const char *what, const uint8_t *have, const uint8_t *want, size_t n);

#endif
