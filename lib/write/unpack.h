/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write/unpack.h - the parts of unpacking.
 *
 * A pack is opened: its ranks, where each expert lies in them, and their tensors. The plan
 * lists the tensors of the checkpoint that it becomes, as the forms of the manifest say.
 * A unit reads a side of an expert from its slot and writes it to where the form has it.
 */
#ifndef MP_WRITE_UNPACK_H
#define MP_WRITE_UNPACK_H

#include <moepack/pack.h>

#include "checkpoint/form.h"
#include "run/output.h"

/* Shared experts or one routed expert, as a pack has them and as they are to be stored. */
typedef struct mp_unpack_form {
    const mp_form *form;
    const mp_plan_part *part; /* tensors that hold it */
    uint32_t slots;           /* that one matrix is put together from: a shared expert's, or 1 */
    uint64_t first_output;    /* index into source->order of its first tensor */
} mp_unpack_form;

typedef struct mp_unpack_layer {
    const char *prefix;
    uint32_t number; /* in the manifest, and in its placement */
    mp_unpack_form routed;
    mp_unpack_form shared; /* form is null where none is packed */
    mp_place *where;       /* [num_experts] a copy of each; rank is an index into source->ranks */
    mp_place where_shared; /* of its first slot */
    uint64_t first_unit;   /* a unit is a side: expert, then side; the shared one last */
} mp_unpack_layer;

/* A rank's directory. */
typedef struct mp_unpack_rank {
    uint32_t number;
    mp_checkpoint tensors;
} mp_unpack_rank;

/* A pack that is open. */
struct mp_unpack_source {
    const mp_manifest *manifest;
    mp_hex_digest manifest_xxh3;
    char *dir;
    mp_plan_part parts[MP_PARTS]; /* MP_PART_SHARED is empty unless they are apart */
    unsigned num_tensors;         /* of all parts */
    mp_slots slots;
    mp_placement placement;
    mp_unpack_rank *ranks; /* those that are there */
    size_t num_ranks;
    const mp_tensor **packed; /* [layer][rank][tensor]; null: the layer does not have it */
    mp_unpack_layer *layers;  /* to be unpacked */
    size_t num_layers;
    uint32_t *order;       /* tensors in the order of layers, as indexes into work.outputs */
    uint64_t read_bytes;   /* of a thread's scratch: for bytes of a slot */
    uint64_t matrix_bytes; /* for a tile of a part, and for a side's scales */
    uint64_t tile_bytes;   /* as for mp_tile_at */
    char *config;          /* text of config.json; null: the pack has none */
    char *hf_quant_config; /* of hf_quant_config.json; null: none */
};

/* What a unit does. */
typedef struct mp_unpack_unit {
    const mp_unpack_layer *layer;
    const mp_unpack_form *form;
    uint32_t expert; /* 0 for the shared one */
    mp_side side;
    mp_place from; /* its first slot */
} mp_unpack_unit;

/* Fills plan->manifest and plan->source with the pack in a directory, all but its layers. */
int mp_unpack_open(mp_unpack_plan *plan, const char *dir, const mp_context *context, mp_error *err);
void mp_unpack_close(struct mp_unpack_source *source);

/* A tensor of a layer of the manifest on source->ranks[rank]; null where it has none. */
const mp_tensor *mp_unpack_packed(const struct mp_unpack_source *source, uint32_t layer,
                                  uint32_t rank, unsigned tensor);

/* The tensor of a part for a side and role, or null. */
const mp_slot_tensor *mp_part_tensor(const mp_plan_part *part, mp_side side, mp_role role);

/* The role in a target of a role in a form. */
mp_role mp_unpack_role(const mp_form *form, mp_role role);

/* What a form calls part `part` of a side. */
mp_projection mp_unpack_matrix(const mp_unpack_form *form, mp_side side, unsigned part);

/* Checks that a form is one that its part can be written in. */
int mp_unpack_check_form(const mp_unpack_form *form, const char *prefix, uint32_t experts,
                         mp_error *err);

/* config.json, and hf_quant_config.json where there is one, as they have to be. */
int mp_unpack_config(mp_unpack_plan *plan, mp_error *err);

mp_unpack_unit mp_unpack_unit_at(const mp_unpack_plan *plan, uint64_t index);

/* Bytes of scratch that a thread needs for any unit; also settles how it is used. */
uint64_t mp_unpack_scratch(struct mp_unpack_source *source);

uint64_t mp_unpack_unit_bytes(const void *plan, uint64_t index);
int mp_unpack_unit_run(const void *plan, uint64_t index, mp_outputs *outputs, void *scratch,
                       mp_quant_stats *stats, mp_error *err);

/* ------------------------------------------------------------------------
 * Where matrices lie in their tensors
 */

/* A side of an expert in stored tensors; of weights, or of scales as a matrix of their own. */
typedef struct mp_stored {
    const mp_out_tensor *out[2]; /* of each part; of the first only where gate and up are fused */
    mp_fusion fusion;
    unsigned parts;     /* gate and up, or down */
    uint64_t slice;     /* number of the expert in a fused tensor */
    uint64_t rows;      /* of a part */
    uint64_t row_bytes; /* of a row of a part; where transposed, of a column of the tensor */
    unsigned width;     /* bytes of an element */
} mp_stored;

/* Writes rows row0 .. row0+rows-1 of all parts, bytes at .. at+bytes-1 of each row. in[p]:
 * [rows, bytes] of part p. stage: room for as much as all in[] together. */
int mp_stored_write(const mp_stored *to, mp_outputs *outputs, uint64_t row0, uint64_t rows,
                    uint64_t at, uint64_t bytes, uint8_t *const in[2], uint8_t *stage,
                    mp_error *err);

#endif
