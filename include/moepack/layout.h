/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/layout.h - target layouts: what a kernel wants, byte for byte.
 *
 * A target is identified by name and version, since shapes cannot tell two
 * layouts apart. It describes the tensors of one slot (one expert on a rank),
 * and packs and unpacks them. All functions are pure: buffers in, buffers out.
 *
 * Every tensor of a rank is its slots one after the other, so the bytes of slot
 * g of a tensor are [g * slot_bytes, (g + 1) * slot_bytes).
 *
 * Between source and target stands the canonical form: a side of an expert in
 * the target's scheme and the source's row order. L1 has two parts, gate and up,
 * of [I, H] each; L2 has one, [H, I]. With them go their scales, row-major,
 * one for each block of the scheme (moepack-format(5)).
 *
 * Weights go through in tiles: rectangles of the canonical form that become one
 * extent of the packed tensor. Scales, which are small, go through whole.
 *
 * pack and unpack are written apart, each as a gather, so that one checks the
 * other. Layout definitions: moepack-layouts(7).
 */
#ifndef MOEPACK_LAYOUT_H
#define MOEPACK_LAYOUT_H

#include <moepack/base.h>
#include <moepack/numeric.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Sizes of one expert, in logical elements. */
typedef struct mp_dims {
    uint64_t hidden_size;       /* H */
    uint64_t intermediate_size; /* I */
} mp_dims;

/* One tensor of a target. All but weight and scale is one float32 a part, gate first, or
 * (offset) one a row, or (input scale, act scale and folded alpha) one a side. */
typedef struct mp_slot_tensor {
    const char *name; /* "l1_weight", ...; a static string */
    mp_side side;
    mp_role role;
    mp_dtype dtype;
    bool optional; /* there where the source has such tensors */
    bool flat;     /* of rank 1, and the tensor of G slots too: [G * shape[0]] */
    uint32_t rank; /* of one slot: the tensor of G slots has shape [G, shape...] */
    uint64_t shape[4];
    uint64_t slot_bytes;
} mp_slot_tensor;

#define MP_TARGET_TENSORS 12

/* How the weights of a side are cut into tiles. */
typedef enum mp_tile_kind {
    MP_TILES_PAIRED, /* the same rows of gate and of up */
    MP_TILES_ROWS,   /* rows of one part */
    MP_TILES_COLS    /* columns, with all rows of all parts */
} mp_tile_kind;

/* The packed tensor of a slot is a sequence of lines of equal size: one for each row (of
 * both parts together), or each column where tiles are columns. */
typedef struct mp_tiling {
    mp_tile_kind kind;
    uint64_t group; /* tiles begin at a multiple of this many rows of a part, or columns */
    uint64_t pad;   /* the number of lines is rounded up to a multiple of this */
    bool unchanged; /* the packed bytes of a tile are those of its rectangle */
} mp_tiling;

/* Rows row0 .. row0+rows-1, columns col0 .. col0+cols-1 of parts part .. part+parts-1, and
 * where they go in the weight tensor of a slot. */
typedef struct mp_tile {
    unsigned part, parts;
    uint64_t row0, rows;
    uint64_t col0, cols;
    uint64_t offset, bytes;
} mp_tile;

/* A target layout. */
typedef struct mp_target {
    const char *name;     /* "megamoe-w4a8" */
    unsigned version;     /* of the layout; grows when the bytes change */
    const char *engine;   /* the kernel that reads it */
    mp_scheme scheme;     /* that weights have to be in */
    mp_rounding rounding; /* that quantizing for it uses unless told otherwise */

    const char *constraints;

    bool ue8m0;  /* block scales have to be powers of two */
    bool single; /* tensors are those of one slot, without the dimension G */
    /* The form of shared experts that stay apart; the target itself, or another record. */
    const struct mp_target *separate;
    /* The same target with weights in FRACTAL_NZ form; null: there is none. */
    const struct mp_target *nz;
    /* The same target with alphas by DeepGEMM's own convention; null: there is none. */
    const struct mp_target *fp4xfp4;

    /* Fills tensors[] with the weight tensors of L1 and L2 and what goes with them; returns
     * how many. dims have passed check. */
    unsigned (*describe)(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS]);

    /* MP_ERR_UNSUPPORTED when the sizes break a constraint of the kernel;
     * sizes that the kernel takes and an engine does not are warnings. */
    int (*check)(const mp_dims *dims, mp_problems *warnings, mp_error *err);

    mp_tiling (*tiling)(const mp_dims *dims, mp_side side);

    /* A tile of weights from its rectangle of the canonical form, and back. in[p], out[p]:
     * [rows, cols] of part tile->part + p, contiguous. Padding is written as zeros. */
    void (*pack_weight)(const mp_dims *dims, mp_side side, const mp_tile *tile,
                        const uint8_t *const in[2], uint8_t *out);
    void (*unpack_weight)(const mp_dims *dims, mp_side side, const mp_tile *tile, const uint8_t *in,
                          uint8_t *const out[2]);

    /* The whole scale tensor of a slot from canonical scales, part after part, and back;
     * null for a scheme without scales. */
    void (*pack_scale)(const mp_dims *dims, mp_side side, const uint8_t *canonical, uint8_t *out);
    void (*unpack_scale)(const mp_dims *dims, mp_side side, const uint8_t *in, uint8_t *canonical);
} mp_target;

/* Shape of the tensor of `slots` slots, [slots, shape of a slot] unless it is flat or there
 * is but one. Returns its rank. */
uint32_t mp_slots_shape(const mp_target *target, const mp_slot_tensor *tensor, uint64_t slots,
                        uint64_t shape[5]);

/* The target of that name, or null; all of them, *count. */
const mp_target *mp_target_find(const char *name);
const mp_target *const *mp_targets(size_t *count);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
