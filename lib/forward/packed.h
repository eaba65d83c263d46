/* SPDX-License-Identifier: Apache-2.0 */
/* forward/packed.h - a layer of a packed directory, open. */
#ifndef MP_FORWARD_PACKED_H
#define MP_FORWARD_PACKED_H

#include <moepack/reference.h>

#include "forward/packed_set.h"

typedef struct packed_rank {
    mp_checkpoint checkpoint;
    const mp_tensor *held[2 * MP_TARGET_TENSORS]; /* null: optional, and not there */
} packed_rank;

typedef struct packed_ranks {
    packed_set sets[2];
    unsigned num_sets;
    packed_rank *ranks; /* [ep] */
    uint32_t open;      /* that are open */
} packed_ranks;

/* The source of an open layer, but for the two sizes below, which depend on each other. */
mp_expert_source mp_packed_source(const mp_packed_experts *e);
uint64_t mp_packed_tile_rows(const mp_packed_experts *e);
uint64_t mp_packed_scratch(const mp_packed_experts *e);

#endif
