/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/pack.h - repacking, unpacking and requantizing checkpoints.
 *
 * One call packs:
 *
 *     mp_repack_options options = {
 *         .size = sizeof options,
 *         .target = mp_target_find("megamoe-w4a8"),
 *         .ep = 8,
 *     };
 *     if (mp_repack("DeepSeek-V4-Flash", "packed", &options, NULL, &err) != 0)
 *         ...
 *
 * It goes in two steps, which can be taken one by one. A plan fixes every output file (its header
 * and where each tensor lies) and the list of units of work, before a byte is written. Running it
 * executes the units in any order on any number of threads; the bytes written do not depend on
 * that. There is a plan for each kind of run:
 *
 *     mp_plan *plan;
 *     if (mp_plan_unpack(&plan, "packed", NULL, NULL, &err) != 0)
 *         ...
 *     printf("%zu files\n", mp_plan_get(plan)->work->num_files);
 *     if (mp_plan_run(plan, "unpacked", MP_RUN_FRESH, NULL, &err) != 0)
 *         ...
 *     mp_plan_release(plan);
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
    size_t size; /* of this struct */
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
    const char *layers;      /* that are packed, a list (base.h); null: all */
    const char *ranks;       /* that are written, a list; null: all */
    uint64_t max_shard_size; /* 0: 5 GB */
    int zstd;                /* how shards are compressed; 0: not at all */
    mp_part part;            /* of the run; zeroed: all of it */
    bool sha256;             /* write SHA256SUMS too */
    const char *drop;        /* "bias,input_scale": what of an expert to leave behind where the
                                target cannot carry it; null: nothing */
    const char *command;     /* for the manifest; paths already cut to their last part */
    mp_run_mode mode;        /* of mp_repack alone: a plan is told when it is run */
} mp_repack_options;

/* Packs a checkpoint into OUT: opens it, makes the plan and runs it.
 * context: may be null.
 * Fails as mp_catalog_open, mp_plan_repack and mp_plan_run do. */
int mp_repack(const char *source, const char *out, const mp_repack_options *options,
              const mp_context *context, mp_error *err);

/* ------------------------------------------------------------------------
 * Plans
 */

/* A plan of any kind. */
typedef struct mp_plan mp_plan;

/* What it is going to write. */
typedef struct mp_plan_info {
    const mp_work *work;
    const mp_problems *warnings;
    /* Of an update: sides of experts that are written, and those of them that are packed anew. */
    uint64_t sides, sides_anew;
} mp_plan_info;

/* Good until the plan is released. */
const mp_plan_info *mp_plan_get(const mp_plan *plan);

/* Runs a plan into OUT.partial and renames that to OUT when all is written, synced and digested.
 * OUT counts as whole where it holds the manifest, or the report, that the plan writes.
 * After MP_ERR_IO or MP_ERR_CANCELLED OUT.partial stays, to be resumed; after MP_ERR_INPUT (a NaN
 * in the source, say) nothing is left. Bytes of a pack that are read are not digested: mp_verify
 * does that.
 * MP_ERR_UNSUPPORTED from unpacking, where slots of a shared expert, or gate and up of one that
 * are to be fused, have become different in what a single tensor has to say of them. */
int mp_plan_run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
                mp_error *err);

void mp_plan_release(mp_plan *plan);

/* Plans to pack. Keeps pointers to the catalog and to what options point to.
 * MP_ERR_INPUT for a checkpoint with problems or a placement that does not fit it,
 * MP_ERR_UNSUPPORTED for a target that cannot take the source as it is (the message names the
 * option that would do), MP_ERR_USAGE for contradictory options. */
int mp_plan_repack(mp_plan **plan, const mp_catalog *catalog, const mp_repack_options *options,
                   mp_error *err);

/* ------------------------------------------------------------------------
 * Unpacking a packed directory
 *
 * The experts of a pack as a checkpoint again: named, typed and shaped as the manifest's
 * forms say, which is as the source had them where they were packed as they were, byte for
 * byte, and else in the usual style of the scheme they were brought to.
 */

typedef struct mp_unpack_options {
    size_t size;             /* of this struct */
    const char *layers;      /* that are written, a list (base.h); null: all */
    uint64_t max_shard_size; /* 0: 5 GB */
    int zstd;                /* how shards are compressed; 0: not at all */
    mp_part part;            /* of the run; zeroed: all of it */
    bool sha256;             /* write SHA256SUMS too */
} mp_unpack_options;

/* Opens a pack and plans to unpack it. Of each expert one copy is read, on the first rank that is
 * here; ranks may be missing as long as every expert is on another.
 * options: may be null. Keeps pointers to what they point to.
 * context: threads that read headers; may be null.
 * MP_ERR_INPUT for a directory that is no pack, does not hang together, or lacks an expert;
 * MP_ERR_UNSUPPORTED for a target or a form that this version does not know; MP_ERR_USAGE for a
 * list that selects nothing; MP_ERR_IO. */
int mp_plan_unpack(mp_plan **plan, const char *pack, const mp_unpack_options *options,
                   const mp_context *context, mp_error *err);

/* ------------------------------------------------------------------------
 * Requantizing a checkpoint
 *
 * Another checkpoint of the same model: its experts in another scheme, a tensor a matrix, all
 * other tensors byte for byte, and the files beside them.
 */

typedef struct mp_quantize_options {
    size_t size;             /* of this struct */
    mp_scheme scheme;        /* of the experts that are written */
    const char *style;       /* "deepseek-v4", "deepseek-v3", "compressed-tensors", "modelopt":
                                how their tensors are named and typed; null: as is usual */
    mp_quant_options quant;  /* rounding, scale_rule, amax_floor, allow_nonfinite */
    bool requantize_shared;  /* shared experts too; else they stay as they are */
    const char *layers;      /* a list (base.h), null: all; others stay as they are */
    uint64_t max_shard_size; /* 0: 5 GB */
    int zstd;                /* how shards are compressed; 0: not at all */
    mp_part part;            /* of the run; zeroed: all of it */
    bool sha256;             /* write SHA256SUMS too */
    const char *drop;        /* "bias,input_scale": of an expert, left behind; null: nothing */
    const char *command;     /* for the report; paths already cut to their last part */
} mp_quantize_options;

/* Plans to requantize. Keeps pointers to the catalog and to what options point to.
 * MP_ERR_INPUT for a checkpoint with problems; MP_ERR_UNSUPPORTED for a style that does not have
 * the scheme, sizes that it cannot divide, biases and scales of activations that the form has no
 * place for (the message names the option that leaves them behind), or where config.json cannot
 * say how experts are stored; MP_ERR_USAGE. */
int mp_plan_quantize(mp_plan **plan, const mp_catalog *catalog, const mp_quantize_options *options,
                     mp_error *err);

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
