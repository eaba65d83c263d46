/* SPDX-License-Identifier: Apache-2.0 */
/* experts/dumped.h - the experts of a snapshot (snapshot.h).
 *
 * An engine has w13 [E, 2I, H] and w2 [E, H, I] of a layer, for the slots of its rank and its part
 * of I; on Ascend they are turned over, [E, H, 2I] and [E, I, H]. Which experts and which part
 * these are is nowhere said, and follows from the sizes of the model, as engines count: parts of I
 * run fastest, then slots, physical expert by physical expert, and behind those of a rank one for
 * the shared expert where it is fused. Which expert a physical one is says a placement, and without
 * one it is its number modulo the number of experts. */
#ifndef MP_EXPERTS_DUMPED_H
#define MP_EXPERTS_DUMPED_H

#include <moepack/model.h>
#include <moepack/place.h>
#include <moepack/snapshot.h>

#include "layout/interleave.h"

/* ------------------------------------------------------------------------
 * Layers
 */

typedef struct mp_dumped_layer {
    char *head;   /* "model.layers.3.mlp.experts." */
    char *prefix; /* "model.layers.3"; the head without its dot where that is no layer's */
    bool known;   /* it is a layer's: */
    uint64_t number;
    bool mtp;
} mp_dumped_layer;

/* The layers that any rank has w13 or w2 of, in order of ranks and names. To be freed with
 * mp_dumped_layers_free, also on errors. */
int mp_dumped_layers(const mp_snapshot *s, mp_dumped_layer **layers, size_t *count, mp_error *err);
void mp_dumped_layers_free(mp_dumped_layer *layers, size_t count);

/* Whether a rank is of a stage of the pipeline that has none of a layer, which another has. */
bool mp_dumped_elsewhere(const mp_snapshot *s, const mp_dumped_layer *layer, size_t rank);

/* ------------------------------------------------------------------------
 * Sides
 */

/* What is known of the model that was dumped. */
typedef struct mp_dumped_model {
    const mp_config *config; /* of the quantization: blocks of scales */
    uint64_t hidden_size;
    uint64_t intermediate_size; /* of a routed expert, whole */
    uint32_t num_experts;       /* of the layer */
    bool has_shared;            /* a shared expert that is as wide as a routed one */
    const mp_storage *stored;   /* of codes whose scales are elsewhere; null: there are none such */
    const mp_placement *placement; /* null: trivial */
    uint32_t row;                  /* of it, for the layer */
} mp_dumped_model;

/* w13 or w2 of a layer on a rank. */
typedef struct mp_dumped_side {
    size_t rank, layer;
    mp_side side;
    mp_matrix matrix; /* of slot 0; gate, where it is w13 */
    mp_storage storage;
    bool raw;            /* its scales are not there */
    uint64_t rows, cols; /* of one matrix: gate, up or down */
    uint32_t slots;
    uint32_t routed;      /* slots: all but that of the shared expert */
    uint64_t part, parts; /* of I */
    uint64_t home, homes; /* which slots of the model these are; the same are on other ranks too */
    bool copied;          /* some experts are more than once in the snapshot */
    uint32_t num_experts;
    const int32_t *map; /* of physical experts; null: trivial */
} mp_dumped_side;

/* Finds the tensors of a side: rank, layer and side are set. matrix.weight null: there is none. */
int mp_dumped_find(const mp_snapshot *s, const mp_dumped_layer *layer, mp_dumped_side *d,
                   mp_error *err);

/* Fills storage and sizes. other: the weight of the other side, or null. False where they are in no
 * form that is known. */
bool mp_dumped_recognize(const mp_dumped_model *model, const mp_tensor *other, mp_dumped_side *d);

/* Fills what follows: which slots these are. False, with the reason, where that cannot be. */
#define MP_DUMPED_REASON 192
bool mp_dumped_place(const mp_snapshot *s, const mp_dumped_model *model, mp_dumped_side *d,
                     char reason[MP_DUMPED_REASON]);

/* The expert of a slot; num_experts: the shared one. */
uint32_t mp_dumped_id(const mp_dumped_side *d, uint32_t slot);

/* In which order a tensor has the rows of gate and of up. */
typedef enum mp_half_order {
    MP_ORDER_PLAIN,   /* gate, then up; or each is a tensor of its own */
    MP_ORDER_SWAPPED, /* up, then gate */
    MP_ORDER_8,       /* 8 rows of gate, 8 of up, in turn */
    MP_ORDER_16,      /* the same of groups of 16, whose even rows come before the odd ones */
    MP_ORDERS
} mp_half_order;

/* "gate rows, then up rows"; a static string. */
const char *mp_half_order_text(mp_half_order order);

/* How rows take turns; null: one half is behind the other. */
const mp_interleave *mp_half_order_turns(mp_half_order order);

/* Whether w13 can be in that order: rows do not take turns where a scale would cover rows of both,
 * nor columns where they are turned over. rows: of gate. */
bool mp_half_order_fits(mp_half_order order, const mp_storage *storage, uint64_t rows);

/* ------------------------------------------------------------------------
 * Placements, in dumped_placement.c
 */

/* Reads the placement of a snapshot's engine: of a file, or else what the snapshot says. experts:
 * of the model. placement: map is null where there is none, and it is the trivial one; to be
 * released. MP_ERR_INPUT for a file that is no placement of so many experts, or not the one that
 * the snapshot was dumped with; MP_ERR_USAGE where there was one and it is not named. */
int mp_dumped_placement(const mp_snapshot *s, const char *path, uint32_t experts,
                        mp_placement *placement, mp_error *err);

/* The row of a decoder layer, or UINT32_MAX: rows are one for each decoder layer, or for each layer
 * with experts, of which it is number `index` of `count`. */
uint32_t mp_dumped_placement_row(const mp_placement *placement, const mp_config *config,
                                 uint64_t layer, size_t index, size_t count);

#endif
