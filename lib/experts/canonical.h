/* SPDX-License-Identifier: Apache-2.0 */
/*
 * experts/canonical.h - a side of an expert out of a checkpoint, in canonical form.
 *
 * The canonical form (layout.h) is what a target packs: the target's scheme in the source's
 * row order. A source that has it already passes through byte for byte; anything else is
 * requantized. Whoever packs a side and whoever checks one gets it from here, tile by tile:
 *
 *     mp_canonical c;
 *     mp_canonical_init(&c, &side, scratch);
 *     if (mp_canonical_begin(&c, err) == 0)
 *         for each tile of mp_tile_at(...): mp_canonical_tile(&c, &tile, stats, err)
 *     // c.weight[] holds the last tile, c.scale all scales
 */
#ifndef MP_EXPERTS_CANONICAL_H
#define MP_EXPERTS_CANONICAL_H

#include <moepack/layout.h>
#include <moepack/model.h>

#include "experts/stored.h"
#include "numeric/quantize.h"

/* A side of an expert, where it comes from and what it is to become. */
typedef struct mp_side_source {
    const mp_catalog *catalog;
    const mp_storage *storage;
    const mp_matrix *matrix; /* gate and up, or down: mp_side_parts(side) of them */
    const mp_target *target;
    mp_dims dims;
    mp_side side;
    uint64_t tile_bytes; /* as for mp_tile_at */
    /* How to requantize; ue8m0 also says that a target that wants power-of-two scales may
     * requantize a source whose scales are others. global_scale and row_scales are not read. */
    const mp_quant_options *quant;
} mp_side_source;

/* True where a matrix stored like this is in the target's scheme and block size. */
bool mp_passes_through(const mp_storage *storage, const mp_target *target);

typedef struct mp_canonical {
    const mp_side_source *from;
    bool passes;        /* after begin: the source's own bytes */
    uint8_t *weight[2]; /* rectangle of part tile->part, and of the next one where it has two */
    uint8_t *scale;     /* canonical scales of the side, part after part; whole once all tiles
                           are done, where the source passes through after begin */
    float global[2];    /* nvfp4: second scale of each part, a multiplier */

    mp_stored_matrix stored[2]; /* private, as what follows */
    uint8_t *other_scale;       /* stored scales of a part, of another type than the target's */
    float *row_scales;
} mp_canonical;

/* Bytes of scratch for a side. */
uint64_t mp_canonical_scratch(const mp_side_source *side);

/* Lays c out in scratch, which is 64-byte aligned. Keeps the pointer to side. */
void mp_canonical_init(mp_canonical *c, const mp_side_source *side, void *scratch);

/* What has to be known of the whole side before its first tile: scales that pass through,
 * second scales, scales of rows that are cut into columns.
 * MP_ERR_INPUT for a NaN or Inf, MP_ERR_UNSUPPORTED for zero points that are not zero where
 * the side is requantized, and for scales that are no powers of two where the target wants
 * them and quant does not let it requantize. */
int mp_canonical_begin(mp_canonical *c, mp_error *err);

/* Makes a tile the one in c->weight, and fills in its scales.
 * stats: error of requantization, added to; may be null. */
int mp_canonical_tile(mp_canonical *c, const mp_tile *tile, mp_quant_stats *stats, mp_error *err);

/* The same in two steps: a tile that is larger than a cache is better looked at piece by piece,
 * where it is used next. The second is for rows first .. first + rows - 1 of the tile, and says
 * whether there is a NaN or Inf; what is requantized has none. */
int mp_canonical_read(mp_canonical *c, const mp_tile *tile, mp_quant_stats *stats, mp_error *err);
int mp_canonical_check(const mp_canonical *c, const mp_tile *tile, uint64_t first, uint64_t rows,
                       mp_error *err);

/* The floats of a target tensor of role ALPHA, FOLDED_ALPHA, GLOBAL_SCALE, INPUT_SCALE, ACT_SCALE
 * or OFFSET, in its order; after begin. out: tensor->slot_bytes bytes.
 * MP_ERR_UNSUPPORTED where gate and up have different input scales, or second ones to fold. */
int mp_canonical_vector(const mp_canonical *c, const mp_slot_tensor *tensor, float *out,
                        mp_error *err);

/* Whether an expert stored like this has what an optional tensor of a target holds. */
bool mp_has_vector(const mp_storage *storage, const mp_expert *expert,
                   const mp_slot_tensor *tensor);

#endif
