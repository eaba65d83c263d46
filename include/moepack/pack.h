/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/pack.h - repacking a checkpoint, and making synthetic ones.
 *
 * Repacking goes in two steps. The plan fixes every output file (its header and
 * where each tensor lies) and the list of units of work, before a byte is
 * written. Running it executes the units in any order on any number of threads;
 * the bytes written do not depend on that.
 *
 *     mp_plan plan;
 *     if (mp_plan_init(&plan, &catalog, &options, &err) == 0)
 *         mp_plan_run(&plan, "out", MP_RUN_FRESH, &context, &err);
 *     mp_plan_release(&plan);
 */
#ifndef MOEPACK_PACK_H
#define MOEPACK_PACK_H

#include <moepack/base.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/numeric.h>
#include <moepack/place.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What to do with shared experts. */
typedef enum mp_shared_mode {
    MP_SHARED_NONE,    /* left out */
    MP_SHARED_FUSED,   /* further slots of every rank */
    MP_SHARED_SEPARATE /* tensors of their own */
} mp_shared_mode;

const char *mp_shared_mode_name(mp_shared_mode mode);

typedef struct mp_repack_options {
    const mp_target *target;
    uint32_t ep;                   /* ranks, >= 1 */
    const mp_placement *placement; /* null: trivial, with `redundant` copies */
    uint32_t redundant;
    mp_shared_mode shared;
    bool quantize;         /* requantize to quantize_to where the source differs */
    mp_scheme quantize_to; /* has to be the target's scheme */
    mp_quant_options quant;
    const bool *layers;      /* [catalog.num_layers], null: all */
    const bool *ranks;       /* [ep], null: all */
    uint64_t max_shard_size; /* 0: 5 GB */
    const char *drop;        /* "bias,input_scale": what of an expert to leave behind where the
                                target cannot carry it; null: nothing */
    const char *command;     /* for the manifest; paths already cut to their last part */
} mp_repack_options;

/* A tensor of the output. */
typedef struct mp_out_tensor {
    char *name;
    const mp_slot_tensor *slot; /* one of plan.tensors */
    uint32_t layer;             /* index into plan.layers */
    uint32_t rank;
    uint32_t file;   /* index into plan.files */
    uint64_t offset; /* in that file */
    uint64_t bytes;
} mp_out_tensor;

/* A file of the output. */
typedef struct mp_out_file {
    char *path; /* below the output directory: "rank-000/model-00001-of-00002.safetensors" */
    uint32_t rank;
    char *header;
    uint64_t header_bytes;
    uint64_t bytes;        /* of the whole file */
    uint32_t first_tensor; /* index into plan.outputs */
    uint32_t num_tensors;
} mp_out_file;

/* Where copies of an expert go: a slot of a rank. */
typedef struct mp_copy {
    uint32_t rank;
    uint32_t slot; /* on that rank */
} mp_copy;

/* A layer to pack. */
typedef struct mp_plan_layer {
    const mp_moe_layer *source;
    bool lossless;
    const int32_t *placement; /* its row: logical expert of each physical one */
    mp_copy *copies;          /* grouped by expert */
    uint32_t *first_copy;     /* [num_experts + 1] into copies */
    uint64_t first_unit;      /* index of this layer's first unit */
} mp_plan_layer;

typedef struct mp_plan {
    const mp_catalog *catalog;
    mp_repack_options options;
    mp_dims dims;
    mp_slots slots;
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned num_tensors;
    mp_placement placement; /* rows for the packed layers only, or one row */
    mp_plan_layer *layers;
    size_t num_layers;
    mp_out_file *files;
    size_t num_files;
    mp_out_tensor *outputs; /* by rank, then file order */
    size_t num_outputs;
    uint32_t *output_of; /* [layer][rank][tensor] into outputs; UINT32_MAX: not written */
    uint64_t num_units;  /* an expert's side in a layer: layer, then expert, then side */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t scratch_bytes; /* of one thread */
    mp_problems warnings;
} mp_plan;

/* Makes the plan. Keeps pointers to the catalog and to what options points to.
 * MP_ERR_INPUT for a checkpoint with problems or a placement that does not fit it,
 * MP_ERR_UNSUPPORTED for a target that cannot take the source as it is (the message
 * names the option that would do), MP_ERR_USAGE for contradictory options. */
int mp_plan_init(mp_plan *plan, const mp_catalog *catalog, const mp_repack_options *options,
                 mp_error *err);
void mp_plan_release(mp_plan *plan);

/* What to do about output that is there already. */
typedef enum mp_run_mode {
    MP_RUN_FRESH,  /* refuse OUT and OUT.partial */
    MP_RUN_RESUME, /* continue OUT.partial, if there is one and it is of the same plan;
                      nothing where OUT is complete and of the same plan */
    MP_RUN_FORCE   /* discard OUT.partial; replace OUT, if it is a packed directory */
} mp_run_mode;

/* Runs the plan into OUT.partial and renames that to OUT when all is written,
 * synced and digested. After MP_ERR_IO or MP_ERR_CANCELLED OUT.partial stays, to be
 * resumed; after MP_ERR_INPUT (a NaN in the source, say) nothing is left. */
int mp_plan_run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
                mp_error *err);

/* ------------------------------------------------------------------------
 * Synthetic checkpoints
 */

typedef struct mp_synth_options {
    const char *family;               /* one of mp_synth_family_name() */
    mp_scheme scheme;                 /* of routed experts: one of mp_synth_scheme() */
    uint64_t hidden_size;             /* H */
    uint64_t intermediate_size;       /* I, of one expert */
    uint64_t dense_intermediate_size; /* of a dense layer's MLP; 0 without such layers */
    uint32_t num_experts;             /* routed, in every MoE layer */
    uint32_t num_shared_experts;      /* their tensors are num_shared_experts * I wide */
    uint32_t top_k;
    uint32_t num_layers;      /* decoder layers */
    uint32_t num_dense;       /* of them, dense ones at the start */
    uint32_t num_hash_layers; /* of them, those at the start that route by token id */
    uint32_t num_mtp;         /* MTP blocks, not counted in num_layers */
    uint64_t vocab_size;
    double routed_scaling_factor; /* not used where the family has none */
    uint64_t seed;
    uint64_t max_shard_size; /* of a shard's tensors, in bytes; 0: 5 GB */
} mp_synth_options;

/* A named set of options with a released model's shapes. */
typedef struct mp_preset {
    const char *name; /* "deepseek-v4-flash" */
    mp_synth_options options;
} mp_preset;

/* The preset of that name, or null. */
const mp_preset *mp_preset_find(const char *name);

/* All presets; *count of them. */
const mp_preset *mp_presets(size_t *count);

/* Names of the families (model.h) that mp_synth can make, and null behind the last. */
const char *mp_synth_family_name(size_t index);

/* Scheme number `index` of those that routed experts of a family can have, the usual one
 * first. False behind the last, and for a family that mp_synth cannot make. */
bool mp_synth_scheme(const char *family, size_t index, mp_scheme *scheme);

/* Writes a checkpoint: config.json, shards and their index. It holds the routed and
 * shared experts, routers, dense MLPs and two norms a layer, named, typed and shaped
 * as the family's released models are; no attention, no embedding.
 *
 * Weights are heavy-tailed and have outlier channels; their standard deviation is
 * about 0.03. Each depends on the seed, its tensor's name and its place in the tensor
 * only, so that a format is another quantization of the same weights, and threads and
 * shard size change no tensor.
 *
 * dir: a path that is free, or an empty directory. Everything is written to dir.partial,
 *   which is renamed when it is whole, and removed after a failure.
 * MP_ERR_USAGE for sizes that no checkpoint can have, MP_ERR_UNSUPPORTED for a family,
 * or a scheme, layer or expert that the family does not have, MP_ERR_IO (also if dir or
 * dir.partial is there already), MP_ERR_CANCELLED. */
int mp_synth(const mp_synth_options *options, const char *dir, const mp_context *context,
             mp_error *err);

#ifdef __cplusplus
}
#endif

#endif
