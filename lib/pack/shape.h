/* SPDX-License-Identifier: Apache-2.0 */
/* pack/shape.h - making the shape of a pack, and the places of its experts. */
#ifndef MP_PACK_SHAPE_H
#define MP_PACK_SHAPE_H

#include <moepack/artifact.h>

/* What a shape follows from. */
typedef struct mp_shape_terms {
    const mp_target *target; /* the record of its FRACTAL_NZ form where that is wanted */
    mp_dims dims;            /* of a routed expert */
    uint64_t num_experts;
    uint64_t num_physical;
    uint64_t ep_size;
    mp_shared_mode shared;
    uint64_t num_shared; /* shared experts of the model */
} mp_shape_terms;

/* Makes the shape.
 * warnings: sizes that the kernel takes and engines do not; may be null.
 * MP_ERR_INPUT for numbers that no pack can have (each is bounded, so that no size overflows),
 * MP_ERR_UNSUPPORTED for sizes that the target cannot take. */
int mp_shape_init(mp_shape *shape, const mp_shape_terms *terms, mp_problems *warnings,
                  mp_error *err);

/* The target that a manifest names. MP_ERR_UNSUPPORTED where this version does not know it. */
int mp_manifest_target(const mp_manifest *manifest, const mp_target **target, mp_error *err);

/* The number of a tensor of a set among those of a layer. */
unsigned mp_set_number(const mp_slot_set *set, const mp_slot_tensor *tensor);

/* Where the copies of each id of a layer are. */
typedef struct mp_places {
    uint32_t num_ids;
    uint32_t *first;  /* [num_ids + 1] */
    mp_place *places; /* those of id e are places[first[e]] .. places[first[e + 1] - 1], in order
                         of ranks and slots */
} mp_places;

/* row: of the placement, whose ids are below the shape's.
 * ranks: [ep] that count; null: all. MP_ERR_IO without memory. */
int mp_places_init(mp_places *places, const mp_shape *shape, const int32_t *row, const bool *ranks,
                   mp_error *err);
void mp_places_release(mp_places *places);

/* The copies of an id, *count of them. */
const mp_place *mp_places_of(const mp_places *places, uint32_t id, uint32_t *count);

#endif
