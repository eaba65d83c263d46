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
 * the target's scheme and the source's row order. L1 is [2I, H], gate rows and
 * then up rows; L2 is [H, I]; with them their scales, row-major.
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

/* Sizes of one expert, in logical elements. */
typedef struct mp_dims {
    uint64_t hidden_size;       /* H */
    uint64_t intermediate_size; /* I */
} mp_dims;

/* Which matrix product of the expert. */
typedef enum mp_side { MP_L1, MP_L2, MP_SIDES } mp_side;

/* Rows of the canonical form of a side: 2I or H; and its columns: H or I. */
uint64_t mp_side_rows(const mp_dims *dims, mp_side side);
uint64_t mp_side_cols(const mp_dims *dims, mp_side side);

typedef enum mp_role { MP_ROLE_WEIGHT, MP_ROLE_SCALE } mp_role;

/* One tensor of a target. */
typedef struct mp_slot_tensor {
    const char *name; /* "l1_weight", ...; a static string */
    mp_side side;
    mp_role role;
    mp_dtype dtype;
    uint32_t rank; /* of one slot: the tensor of G slots has shape [G, shape...] */
    uint64_t shape[3];
    uint64_t slot_bytes;
} mp_slot_tensor;

#define MP_TARGET_TENSORS 4

/* A target layout. */
typedef struct mp_target {
    const char *name;     /* "megamoe-w4a8" */
    unsigned version;     /* of the layout; grows when the bytes change */
    const char *engine;   /* the kernel that reads it */
    mp_scheme scheme;     /* that weights have to be in */
    mp_rounding rounding; /* that quantizing for it uses unless told otherwise */

    const char *constraints;

    /* Fills tensors[], MP_ROLE_WEIGHT and MP_ROLE_SCALE of L1 and L2; returns how many.
     * dims have passed check. */
    unsigned (*describe)(const mp_dims *dims, mp_slot_tensor tensors[MP_TARGET_TENSORS]);

    /* MP_ERR_UNSUPPORTED when the sizes break a constraint of the kernel;
     * sizes that the kernel takes and an engine does not are warnings. */
    int (*check)(const mp_dims *dims, mp_problems *warnings, mp_error *err);

    /* Rows of an L1 weight tile have to begin and end at a multiple of this. */
    unsigned l1_row_group;
    /* True when the L2 weight bytes of a slot are those of the canonical form. */
    bool l2_weight_unchanged;

    /* Weight rows row0 .. row0+rows-1 of the target's tensor from the canonical form.
     * L1: rows is a multiple of l1_row_group; gate and up hold canonical rows row0/2 ..
     * (row0+rows)/2-1 of either. L2: gate holds rows row0 .., up is null. */
    void (*pack_weight)(const mp_dims *dims, mp_side side, uint64_t row0, uint64_t rows,
                        const uint8_t *gate, const uint8_t *up, uint8_t *out);
    void (*unpack_weight)(const mp_dims *dims, mp_side side, uint64_t row0, uint64_t rows,
                          const uint8_t *in, uint8_t *gate, uint8_t *up);

    /* The whole scale tensor of a slot from canonical scales, and back; null for a
     * scheme without scales. */
    void (*pack_scale)(const mp_dims *dims, mp_side side, const uint8_t *canonical, uint8_t *out);
    void (*unpack_scale)(const mp_dims *dims, mp_side side, const uint8_t *in, uint8_t *canonical);
} mp_target;

/* Bytes of canonical scales of one row with `cols` columns; 0 for a scheme without. */
uint64_t mp_target_scale_row_bytes(const mp_target *target, uint64_t cols);

/* The target of that name, or null; all of them, *count. */
const mp_target *mp_target_find(const char *name);
const mp_target *const *mp_targets(size_t *count);

#ifdef __cplusplus
}
#endif

#endif
