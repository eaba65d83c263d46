/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write/quantize.h - the parts of requantizing a checkpoint.
 *
 * A unit of work is a matrix of an expert, or a run of bytes that stay as they are. Units of a
 * layer: its experts, three each, the shared one last; then its copies.
 */
#ifndef MP_WRITE_QUANTIZE_H
#define MP_WRITE_QUANTIZE_H

#include <moepack/pack.h>

#include "numeric/quantize.h"
#include "run/journal.h"
#include "run/output.h"
#include "run/work.h"

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
    bool *layers_chosen;       /* [catalog.num_layers] */
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

/* mp_plan_quantize, into a plan of the caller's, with options that are whole. */
int mp_quantize_plan_init(mp_quantize_plan *plan, const mp_catalog *catalog,
                          const mp_quantize_options *options, mp_error *err);
void mp_quantize_plan_release(mp_quantize_plan *plan);

/* mp_plan_run. */
int mp_quantize_plan_run(const mp_quantize_plan *plan, const char *out, mp_run_mode mode,
                         const mp_context *context, mp_error *err);

/* What a matrix of an expert is written as. */
typedef enum mp_written {
    MP_WRITTEN_WEIGHT,
    MP_WRITTEN_SCALE,
    MP_WRITTEN_GLOBAL,
    MP_WRITTEN_INPUT_SCALE,
    MP_WRITTEN_BIAS,
    MP_WRITTEN_COUNT
} mp_written;

/* A matrix of an expert, from where and to where. */
typedef struct mp_quantize_unit {
    const mp_storage *storage;
    const mp_expert *expert;
    mp_projection projection;
    bool shared;
    bool lossless;
    const mp_form *form;
    const uint32_t *outputs; /* [MP_WRITTEN_COUNT] into work.outputs; UINT32_MAX: none */
} mp_quantize_unit;

/* Expert unit number `index` of a layer, index < layer->expert_units. */
mp_quantize_unit mp_quantize_unit_of(const mp_quantize_plan *plan, const mp_quantize_layer *layer,
                                     uint64_t index);

/* The layer of a unit of the work. */
const mp_quantize_layer *mp_quantize_layer_of(const mp_quantize_plan *plan, uint64_t unit);

/* Settles the outputs, files, pieces and units of a plan whose layers have their forms. */
int mp_quantize_lay_out(mp_quantize_plan *plan, mp_error *err);

/* Bytes of scratch that any unit of the plan needs. */
uint64_t mp_quantize_scratch(const mp_quantize_plan *plan);

/* Does a matrix. stats: as for mp_job.run. */
int mp_quantize_matrix(const mp_quantize_plan *plan, const mp_quantize_unit *unit,
                       mp_outputs *outputs, void *scratch, mp_quant_stats *stats, mp_error *err);

/* Copies pieces number first .. last-1. */
int mp_quantize_copy(const mp_quantize_plan *plan, size_t first, size_t last, mp_outputs *outputs,
                     void *scratch, mp_error *err);

/* Fills plan->config, plan->hf_config and options.quant.ue8m0, with warnings. plan->pieces and
 * layers are settled. */
int mp_quantize_config(mp_quantize_plan *plan, mp_error *err);

/* Writes the texts of config, and copies the other files that engines need from the source. */
int mp_quantize_put_files(const mp_quantize_plan *plan, const char *dir, mp_error *err);

/* Whether a file of that name beside tensors is one of those. */
bool mp_quantize_is_side_file(const char *name);

/* Writes the report. */
int mp_quantize_put_report(const mp_quantize_plan *plan, const mp_progress_state *state,
                           const char *dir, mp_error *err);

/* 0 where the report in a directory is of a run on these terms; MP_ERR_INPUT naming what
 * differs. */
int mp_quantize_check_report(const char *dir, const char *terms, mp_error *err);

#endif
