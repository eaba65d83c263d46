/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write/unpack.h - the parts of unpacking.
 *
 * The plan opens the pack and lists the tensors of the checkpoint that it becomes, as the forms
 * of the manifest say.
 * A unit reads a side of an expert from its slot and writes it to where the form has it.
 */
#ifndef MP_WRITE_UNPACK_H
#define MP_WRITE_UNPACK_H

#include <moepack/pack.h>

#include "checkpoint/form.h"
#include "numeric/quantize.h"
#include "pack/pack.h"
#include "run/output.h"

/* Shared experts or one routed expert, as a pack has them and as they are to be stored. */
typedef struct mp_unpack_form {
    const mp_form *form;
    const mp_slot_set *set; /* whose tensors hold it */
    uint32_t slots;         /* that one matrix is put together from: a shared expert's, or 1 */
    uint64_t first_output;  /* index into source->order of its first tensor */
} mp_unpack_form;

typedef struct mp_unpack_layer {
    const char *prefix;
    uint32_t number; /* in the manifest */
    mp_unpack_form routed;
    mp_unpack_form shared; /* form is null where none is packed */
    uint64_t first_unit;   /* a unit is a side: expert, then side; the shared one last */
} mp_unpack_layer;

/* What becomes of a pack. */
struct mp_unpack_source {
    mp_unpack_layer *layers; /* to be unpacked */
    size_t num_layers;
    uint32_t *order;       /* tensors in the order of layers, as indexes into work.outputs */
    uint64_t slot_bytes;   /* of a thread's scratch: for reading a side of a slot */
    uint64_t vector_bytes; /* for a tensor of a slot that is neither weight nor scale */
    uint64_t matrix_bytes; /* for a tile of a part, and for a part's scales in any type */
    char *config;          /* text of config.json; null: the pack has none */
    char *hf_quant_config; /* of hf_quant_config.json; null: none */
};

typedef struct mp_unpack_plan {
    mp_pack pack;
    mp_unpack_options options;
    bool *layers_chosen; /* [manifest.num_layers] */
    mp_work work;        /* a unit is an expert's side in a layer */
    mp_problems warnings;
    struct mp_unpack_source *source;
} mp_unpack_plan;

/* mp_plan_unpack, into a plan of the caller's, with options that are whole. */
int mp_unpack_plan_init(mp_unpack_plan *plan, const char *pack, const mp_unpack_options *options,
                        const mp_context *context, mp_error *err);
void mp_unpack_plan_release(mp_unpack_plan *plan);

/* mp_plan_run. */
int mp_unpack_plan_run(const mp_unpack_plan *plan, const char *out, mp_run_mode mode,
                       const mp_context *context, mp_error *err);

/* What a unit does. */
typedef struct mp_unpack_unit {
    const mp_unpack_layer *layer;
    const mp_unpack_form *form;
    uint32_t expert; /* 0 for the shared one */
    mp_side side;
    mp_place from; /* its first slot */
} mp_unpack_unit;

/* A copy of an id of a layer: the first on a rank that is here. */
const mp_place *mp_unpack_place(const mp_unpack_plan *plan, const mp_unpack_layer *layer,
                                uint32_t id);

/* The role in a target of a role in a form. */
mp_role mp_unpack_role(const mp_form *form, mp_role role);

/* Whether gate and up are in one tensor. */
bool mp_unpack_is_joined(const mp_form *form);

/* Numbers of a tensor that has one for each expert, or, as compressed-tensors does, one for gate
 * and one for up of each. */
uint64_t mp_unpack_numbers(const mp_unpack_form *f, const mp_form_tensor *tensor, uint32_t experts);

/* What a form calls part `part` of a side. */
mp_projection mp_unpack_matrix(const mp_unpack_form *form, mp_side side, unsigned part);

/* Checks that a form is one that its set can be written in. */
int mp_unpack_check_form(const mp_unpack_form *form, const char *prefix, uint32_t experts,
                         mp_error *err);

/* config.json, and hf_quant_config.json where there is one, as they have to be. */
int mp_unpack_config(mp_unpack_plan *plan, mp_error *err);

mp_unpack_unit mp_unpack_unit_at(const mp_unpack_plan *plan, uint64_t index);

/* Bytes of scratch that a thread needs for any unit; also settles how it is used. */
uint64_t mp_unpack_scratch(mp_unpack_plan *plan);

uint64_t mp_unpack_unit_bytes(const void *plan, uint64_t index);
void mp_unpack_unit_ahead(const void *plan, uint64_t index);
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
