/* SPDX-License-Identifier: Apache-2.0 */
/* place/eplb.h - the steps of load balancing, one layer at a time. */
#ifndef MP_PLACE_EPLB_H
#define MP_PLACE_EPLB_H

#include <moepack/place.h>

#include "base/arena.h"

/* A thing with a weight, in a list to be sorted or in a heap. */
typedef struct mp_weighted {
    float weight;
    uint32_t index;
} mp_weighted;

/* Sizes of the problem and scratch memory for one layer. */
typedef struct mp_eplb_work {
    uint32_t num_logical, num_physical, ep, nodes, groups; /* global: 1 node, 1 group */
    mp_weighted *items;                                    /* [P] */
    mp_weighted *heap;                                     /* [max(N, ep)] */
    uint32_t *pack_fill;                                   /* [ep] */
    float *weight;                                         /* [P] */
    uint32_t *pack;                                        /* [P] */
    uint32_t *rank_in_pack;                                /* [P] */
    uint32_t *ordered;   /* [N]: logical experts, node after node */
    uint32_t *expert;    /* [P]: of a node's physical expert, its place in the node's order */
    uint32_t *replica;   /* [P] */
    uint32_t *count;     /* [N] */
    double *carried;     /* [N]: count / replicas */
    double *load;        /* [ep] */
    uint32_t *seen;      /* [N] */
    int32_t *saved_map;  /* [P] */
    int32_t *saved_rank; /* [P] */
    mp_arena arena;      /* of all the arrays */
} mp_eplb_work;

/* Allocates the arrays for the sizes that are set. MP_ERR_IO without memory; the caller releases
 * it in either case. */
int mp_eplb_work_init(mp_eplb_work *work, mp_error *err);

/* DeepSeek's algorithm for one layer.
 * weights: [N].
 * map, rank: [P], set to the logical expert and the replica number of each
 *   physical one; count: [N], set to how many replicas. */
void mp_eplb_layer(mp_eplb_work *work, const float *weights, int32_t *map, int32_t *rank,
                   int32_t *count);

/* Sets work->carried to what one replica of each expert carries. */
void mp_eplb_carry(mp_eplb_work *work, const float *weights, const int32_t *count);

/* Load of each GPU, from work->carried. load: [ep]. Returns the largest. */
double mp_eplb_loads(const mp_eplb_work *work, const int32_t *map, double *load);

/* Swaps physical experts between GPUs of a node, `swaps` times at most, in map and
 * in rank alike. work->carried must be set. */
void mp_eplb_refine(mp_eplb_work *work, int32_t *map, int32_t *rank, uint32_t swaps);

#endif
