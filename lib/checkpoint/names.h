/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/names.h - what the name of a tensor says about it. */
#ifndef MP_CHECKPOINT_NAMES_H
#define MP_CHECKPOINT_NAMES_H

#include <moepack/model.h>

/* What a tensor is to the catalog. */
typedef enum mp_name_kind {
    MP_NAME_ROUTED,  /* of a routed expert */
    MP_NAME_FUSED,   /* of all routed experts of a layer */
    MP_NAME_SHARED,  /* of the shared expert */
    MP_NAME_OTHER,   /* not of an expert */
    MP_NAME_FOREIGN, /* of an expert, in a form that is known and not supported */
    MP_NAME_UNKNOWN  /* named like an expert's, in no known form */
} mp_name_kind;

/* "model.layers.3.mlp.experts.7.gate_proj.weight" in its parts. */
typedef struct mp_expert_name {
    mp_name_kind kind;
    size_t prefix_length; /* of "model.layers.3" */
    uint64_t layer;       /* the 3 */
    bool mtp;
    const mp_naming *naming;
    const char *const *projections; /* their names, where they are not fused: "w1", "w3", "w2" */
    uint64_t expert;                /* the 7; 0 for a shared expert */
    mp_projection projection;       /* MP_GATE for gate_up */
    bool joined;                    /* gate and up in one tensor */
    bool unnamed; /* fused experts of a block: only where there are 3 dimensions */
    mp_role role;
    bool global_divides; /* of a global scale: it divides instead of multiplying */
    const char *foreign; /* which form that is; static */
    const char *shared;  /* "shared_experts", "shared_mlp"; static, of a shared expert */
} mp_expert_name;

/* Takes a tensor's name apart. Members but kind are set for experts only. */
void mp_expert_name_parse(const char *name, mp_expert_name *parts);

/* Index into mp_catalog.others of a tensor that is no expert's, and the kinds'
 * names in that order. */
unsigned mp_other_kind(const char *name);
extern const char *const mp_other_kind_names[MP_KINDS];

#endif
