/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/pack.h - repacking, unpacking and requantizing checkpoints.
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

#include <moepack/artifact.h>
#include <moepack/base.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/numeric.h>
#include <moepack/place.h>
#include <moepack/work.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* How the rows of a placement that does not say it are meant. */
typedef enum mp_row_order {
    MP_ROWS_AUTO,  /* the way that their number fits; MP_ERR_INPUT where both do and differ */
    MP_ROWS_LAYER, /* one for each decoder layer, MTP blocks last if they have rows */
    MP_ROWS_MOE    /* one for each MoE layer, of the model or of those that are packed */
} mp_row_order;

typedef struct mp_repack_options {
    const mp_target *target;
    uint32_t ep;                   /* ranks, >= 1 */
    const mp_placement *placement; /* null: trivial, with `redundant` copies */
    mp_row_order rows;             /* of the placement */
    uint32_t redundant;
    mp_shared_mode shared;
    bool nz;                /* weights in FRACTAL_NZ form */
    mp_alphas alphas;       /* of nvfp4 */
    bool requantize_shared; /* let shared experts lose precision */
    bool quantize;          /* requantize to quantize_to where the source differs */
    mp_scheme quantize_to;  /* has to be the target's scheme */
    mp_quant_options quant;
    const bool *layers;      /* [catalog.num_layers], null: all */
    const bool *ranks;       /* [ep], null: all */
    uint64_t max_shard_size; /* 0: 5 GB */
    int zstd;                /* how shards are compressed; 0: not at all */
    mp_part part;            /* of the run; zeroed: all of it */
    bool sha256;             /* write SHA256SUMS too */
    const char *drop;        /* "bias,input_scale": what of an expert to leave behind where the
                                target cannot carry it; null: nothing */
    const char *command;     /* for the manifest; paths already cut to their last part */
} mp_repack_options;

/* A layer to pack. Its ids are those of the shape: routed experts, then shared ones. */
typedef struct mp_plan_layer {
    const mp_moe_layer *source;
    bool lossless;        /* of the routed experts */
    bool shared_lossless; /* of the others */
    mp_expert *shared;    /* [shape.num_ids - source->num_experts], parts of source->shared */
    mp_places places;     /* on the ranks that are written */
    uint64_t first_unit;  /* index of this layer's first unit */
} mp_plan_layer;

typedef struct mp_plan {
    const mp_catalog *catalog;
    mp_repack_options options;
    mp_role_set drop; /* of options.drop */
    mp_shape shape;
    mp_placement placement; /* rows for the packed layers only, or one row */
    mp_plan_layer *layers;
    size_t num_layers;
    mp_work work;          /* a unit is an expert's side in a layer: layer, then id, then side */
    uint32_t layer_stages; /* of work: 1, or one a side */
    uint32_t *output_of;   /* [layer][rank][tensor] into work.outputs; UINT32_MAX: not written */
    mp_problems warnings;
} mp_plan;

/* Makes the plan. Keeps pointers to the catalog and to what options points to.
 * MP_ERR_INPUT for a checkpoint with problems or a placement that does not fit it,
 * MP_ERR_UNSUPPORTED for a target that cannot take the source as it is (the message
 * names the option that would do), MP_ERR_USAGE for contradictory options. */
int mp_plan_init(mp_plan *plan, const mp_catalog *catalog, const mp_repack_options *options,
                 mp_error *err);
void mp_plan_release(mp_plan *plan);

/* Runs the plan into OUT.partial and renames that to OUT when all is written,
 * synced and digested. After MP_ERR_IO or MP_ERR_CANCELLED OUT.partial stays, to be
 * resumed; after MP_ERR_INPUT (a NaN in the source, say) nothing is left. */
int mp_plan_run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
                mp_error *err);

/* ------------------------------------------------------------------------
 * Unpacking a packed directory
 *
 * The experts of a pack as a checkpoint again: named, typed and shaped as the manifest's
 * forms say, which is as the source had them where they were packed as they were, byte for
 * byte, and else in the usual style of the scheme they were brought to.
 */

typedef struct mp_unpack_options {
    const bool *layers;      /* [manifest.num_layers], null: all */
    uint64_t max_shard_size; /* 0: 5 GB */
    int zstd;                /* how shards are compressed; 0: not at all */
    mp_part part;            /* of the run; zeroed: all of it */
    bool sha256;             /* write SHA256SUMS too */
} mp_unpack_options;

typedef struct mp_unpack_plan {
    mp_pack pack;
    mp_unpack_options options;
    mp_work work; /* a unit is an expert's side in a layer */
    mp_problems warnings;
    struct mp_unpack_source *source; /* private */
} mp_unpack_plan;

/* Opens a pack and makes the plan. Of each expert one copy is read, on the first rank that is
 * here; ranks may be missing as long as every expert is on another.
 * Keeps the pointer that options has.
 * context: threads that read headers; may be null.
 * MP_ERR_INPUT for a directory that is no pack, does not hang together, or lacks an expert;
 * MP_ERR_UNSUPPORTED for a target or a form that this version does not know; MP_ERR_IO. */
int mp_unpack_plan_init(mp_unpack_plan *plan, const char *pack, const mp_unpack_options *options,
                        const mp_context *context, mp_error *err);
void mp_unpack_plan_release(mp_unpack_plan *plan);

/* As mp_plan_run. The bytes that are read are not digested: mp_verify does that. OUT counts as
 * whole where it holds the report.
 * MP_ERR_UNSUPPORTED where slots of a shared expert, or gate and up of one that are to be fused,
 * have become different in what a single tensor has to say of them. */
int mp_unpack_plan_run(const mp_unpack_plan *plan, const char *out, mp_run_mode mode,
                       const mp_context *context, mp_error *err);

/* ------------------------------------------------------------------------
 * Requantizing a checkpoint
 *
 * Another checkpoint of the same model: its experts in another scheme, a tensor a matrix, all
 * other tensors byte for byte, and the files beside them.
 */

typedef struct mp_quantize_options {
    mp_scheme scheme;        /* of the experts that are written */
    const char *style;       /* "deepseek-v4", "deepseek-v3", "compressed-tensors", "modelopt":
                                how their tensors are named and typed; null: as is usual */
    mp_quant_options quant;  /* rounding, scale_rule, amax_floor, allow_nonfinite */
    bool requantize_shared;  /* shared experts too; else they stay as they are */
    const bool *layers;      /* [catalog.num_layers], null: all; others stay as they are */
    uint64_t max_shard_size; /* 0: 5 GB */
    int zstd;                /* how shards are compressed; 0: not at all */
    mp_part part;            /* of the run; zeroed: all of it */
    bool sha256;             /* write SHA256SUMS too */
    const char *drop;        /* "bias,input_scale": of an expert, left behind; null: nothing */
    const char *command;     /* for the report; paths already cut to their last part */
} mp_quantize_options;

/* A layer, or all that is in none (source is null). */
typedef struct mp_quantize_layer {
    const mp_moe_layer *source;
    bool routed, shared;               /* which experts are requantized */
    bool lossless, shared_lossless;    /* though only in another style */
    mp_form form, shared_form;         /* how they are written */
    uint64_t first_unit, expert_units; /* a unit is a matrix of an expert, the shared one last */
    uint64_t first_copy, copy_units;   /* then come copies of tensors: indexes into first_piece */
} mp_quantize_layer;

/* Bytes of a tensor that stay as they are. */
typedef struct mp_quantize_piece {
    const mp_tensor *from;
    uint32_t output; /* index into work.outputs */
    uint64_t offset;
    uint64_t bytes;
} mp_quantize_piece;

typedef struct mp_quantize_plan {
    const mp_catalog *catalog;
    mp_quantize_options options;
    mp_role_set drop;          /* of options.drop */
    mp_quantize_layer *layers; /* a stage of the work each; those of the catalog, and the rest */
    size_t num_layers;
    mp_work work;
    uint32_t *output_of;       /* [expert unit][part] into work.outputs; UINT32_MAX: none */
    mp_quantize_piece *pieces; /* by stage, then in the order of outputs */
    size_t num_pieces;
    size_t *first_piece; /* [copy unit], and one more */
    char *config;        /* text of config.json; null where the source has none */
    char *hf_config;     /* text of hf_quant_config.json; null: none is written */
    bool quantized_rest; /* tensors that stay are quantized too */
    mp_problems warnings;
} mp_quantize_plan;

/* Makes the plan. Keeps pointers to the catalog and to what options point to.
 * MP_ERR_INPUT for a checkpoint with problems; MP_ERR_UNSUPPORTED for a style that does not have
 * the scheme, sizes that it cannot divide, biases and scales of activations that the form has no
 * place for (the message names the option that leaves them behind), or where config.json cannot
 * say how experts are stored; MP_ERR_USAGE. */
int mp_quantize_plan_init(mp_quantize_plan *plan, const mp_catalog *catalog,
                          const mp_quantize_options *options, mp_error *err);
void mp_quantize_plan_release(mp_quantize_plan *plan);

/* As mp_plan_run. OUT counts as whole where it holds the report, moepack-quantize.json. */
int mp_quantize_plan_run(const mp_quantize_plan *plan, const char *out, mp_run_mode mode,
                         const mp_context *context, mp_error *err);

#define MP_QUANTIZE_REPORT "moepack-quantize.json"

/* Errors of requantization, as the report in a directory has them: by layer, then projection
 * ("w1", "gate_proj", "shared w1"). errors: malloc'ed, with *count entries, to be freed by
 * mp_quantize_errors_free. MP_ERR_IO, MP_ERR_INPUT. */
int mp_quantize_errors(const char *dir, mp_layer_error **errors, size_t *count, mp_error *err);
void mp_quantize_errors_free(mp_layer_error *errors, size_t count);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
