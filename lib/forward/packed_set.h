/* SPDX-License-Identifier: Apache-2.0 */
/* forward/packed_set.h - the tensors that a layer of a packed directory has on a rank, as its
 * manifest says. */
#ifndef MP_FORWARD_PACKED_SET_H
#define MP_FORWARD_PACKED_SET_H

#include <moepack/artifact.h>
#include <moepack/layout.h>
#include <moepack/place.h>
#include <moepack/store.h>

/* Tensors of a layer that have the same slots: routed experts with fused shared ones, or
 * shared experts apart. */
typedef struct packed_set {
    const mp_target *target;
    mp_dims dims;
    const char *block; /* "experts", "shared_experts" */
    uint32_t slots;    /* of a rank */
    unsigned first;    /* number of its first tensor among all of a layer */
    unsigned num_tensors;
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
} packed_set;

/* The target of the manifest. MP_ERR_UNSUPPORTED for one that this version does not know, and
 * for shared experts in another mode; MP_ERR_INPUT for sizes of which no tensor could be. */
int mp_packed_target(const mp_manifest *m, const mp_target **target, mp_error *err);

/* Fills in a set whose tensors are numbered from `first` on. Errors as those of
 * target->check. */
int mp_packed_set_init(packed_set *set, const mp_target *target, const char *block, mp_dims dims,
                       uint32_t slots, unsigned first, mp_error *err);

/* Finds the tensors of a layer; held[set->first + t] is null where an optional one is not
 * there. MP_ERR_INPUT for one that is missing, or of another type or size. */
int mp_packed_set_find(const packed_set *set, const char *layer, const mp_checkpoint *ckpt,
                       const mp_tensor **held, mp_error *err);

/* Reads DIR/placement.json. MP_ERR_INPUT where it is not of as many experts as the slots. */
int mp_packed_placement(const char *dir, const mp_slots *slots, mp_placement *placement,
                        mp_error *err);

#endif
