/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/families.h - look-ups in the table of families. */
#ifndef MP_CHECKPOINT_FAMILIES_H
#define MP_CHECKPOINT_FAMILIES_H

#include <moepack/model.h>

/* A family that the catalog knows. */
typedef struct mp_family {
    const char *name;
    const char *model_types[8]; /* of config.json; null-terminated */
    const char *layer_prefix;   /* "layers." or "model.layers." */
    const char *mtp_prefix;     /* "mtp."; null where MTP blocks are further decoder layers */
    const mp_naming *naming;
    const char *router; /* of the router's weight, behind block: "gate.weight" */
    bool shared;        /* models of this family have shared experts */
    bool shared_gate;   /* that a gate of their own weighs; else they weigh 1 */
} mp_family;

/* Names of gate, up and down. */
extern const char *const mp_names_proj[MP_PROJECTIONS];   /* gate_proj, up_proj, down_proj */
extern const char *const mp_names_w123[MP_PROJECTIONS];   /* w1, w3, w2 */
extern const char *const mp_names_linear[MP_PROJECTIONS]; /* linear_gate, up_proj, down_proj */

/* The usual naming of a block that is called so ("ffn", "mlp", "" for none), or null. */
const mp_naming *mp_naming_of_block(const char *block, size_t length);

/* Whether blocks and routed projections are called alike. */
bool mp_naming_same(const mp_naming *a, const mp_naming *b);

/* The likeliest family with that naming, or with the same names of projections; never null. */
const mp_family *mp_family_of_naming(const mp_naming *naming, bool has_shared);

/* The family of that name, or null. */
const mp_family *mp_family_find(const char *name);

/* The family that a model_type of config.json is of, or null. */
const mp_family *mp_family_of_type(const char *model_type);

/* All families; *count of them. */
const mp_family *mp_families(size_t *count);

#endif
