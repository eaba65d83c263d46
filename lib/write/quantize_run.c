/* SPDX-License-Identifier: Apache-2.0 */
/* Requantizing a checkpoint as a job: its terms, the order of its units, and when it is done. The
 * machinery is run/work.h's; here is what it has to ask.
 *
 * Terms are everything that decides on bytes: scheme and style, rules of rounding, selections, the
 * text of config.json that will be written, and of the source its headers and a sample of its
 * weights. Threads, parts and compression are not among them.
 *
 * A compressed source without a table of frames can only be read forwards. Then units of a layer
 * are done by one thread in the order of the bytes that they read, else in the order of their
 * numbers. */
#include "write/quantize.h"

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "checkpoint/shard.h"
#include "checkpoint/tensor.h"
#include "numeric/quantize.h"
#include "run/journal.h"
#include "run/sidecar.h"
#include "run/terms.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const mp_quantize_plan *plan = user;
    const mp_quantize_options *o = &plan->options;
    const mp_checkpoint *source = &plan->catalog->checkpoint;
    char dropped[MP_ROLE_SET_TEXT];
    mp_hex_digest text;

    fprintf(f, "quantize %s style %s\n", mp_scheme_name(o->scheme), o->style ? o->style : "usual");
    fprintf(f, "rounding %s scale-rule %s amax-floor %.9g ue8m0 %d allow-nonfinite %d\n",
            mp_rounding_name(o->quant.rounding), mp_scale_rule_name(o->quant.scale_rule),
            (double)o->quant.amax_floor, o->quant.ue8m0, o->quant.allow_nonfinite);
    fprintf(f, "requantize-shared %d\ndrop %s\n", o->requantize_shared,
            plan->drop ? mp_role_set_text(plan->drop, dropped) : "nothing");
    mp_terms_selection(f, "layers", plan->layers_chosen, plan->catalog->num_layers);
    fprintf(f, "max-shard-size %" PRIu64 "\n", mp_work_shard_size(o->max_shard_size));
    if (plan->config) {
        mp_hex_digest_of(plan->config, strlen(plan->config), text);
        fprintf(f, "config %s\n", text);
    }
    mp_terms_source(source, f);
    return mp_terms_weights(source, f, err);
}

/* ------------------------------------------------------------------------
 * Units
 */

/* The pieces of copy unit number `copy`: first[0] .. first[1]-1. */
static const size_t *pieces_of(const mp_quantize_plan *plan, const mp_quantize_layer *layer,
                               uint64_t index)
{
    return &plan->first_piece[layer->first_copy + index - layer->expert_units];
}

/* Where what a unit reads first lies in the source. */
typedef struct origin {
    uint64_t shard, offset, row;
} origin;

static origin origin_of(const mp_quantize_plan *plan, uint64_t number)
{
    const mp_quantize_layer *layer = mp_quantize_layer_of(plan, number);
    uint64_t index = number - layer->first_unit;

    if (index >= layer->expert_units) {
        const mp_quantize_piece *piece = &plan->pieces[*pieces_of(plan, layer, index)];

        return (origin){piece->from->shard, piece->from->offset + piece->offset, 0};
    }
    mp_quantize_unit unit = mp_quantize_unit_of(plan, layer, index);
    const mp_matrix *matrix = &unit.expert->matrix[unit.projection];
    const mp_tensor *weight = matrix->weight;

    if (!weight)
        return (origin){0}; /* no gate: reads nothing */
    uint64_t slices = weight->rank > 2 ? weight->shape[0] : 1;

    /* Of a fused tensor, where the expert's slice begins. */
    return (origin){weight->shard, weight->offset + weight->bytes / slices * matrix->slice,
                    matrix->first};
}

static int origin_order(const void *a, const void *b, void *plan)
{
    origin x = origin_of(plan, *(const uint64_t *)a), y = origin_of(plan, *(const uint64_t *)b);

    if (x.shard != y.shard)
        return x.shard < y.shard ? -1 : 1;
    if (x.offset != y.offset)
        return x.offset < y.offset ? -1 : 1;
    return (x.row > y.row) - (x.row < y.row);
}

/* A layer's units as they are numbered: the tensors of an expert lie close to each other. Where
 * the source can only be read in order, in that order. */
static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const mp_quantize_plan *plan = user;
    const mp_quantize_layer *layer = &plan->layers[stage];
    size_t count = layer->expert_units + layer->copy_units;

    for (size_t i = 0; i < count; i++)
        units[i] = layer->first_unit + i;
    if (mp_checkpoint_read_in_order(&plan->catalog->checkpoint))
        qsort_r(units, count, sizeof *units, origin_order, (void *)plan);
    return count;
}

static uint64_t bytes_of_matrix(const mp_quantize_plan *plan, const mp_quantize_unit *unit)
{
    uint64_t bytes = 0;

    for (int w = 0; w < MP_WRITTEN_COUNT; w++)
        if (unit->outputs[w] != UINT32_MAX)
            bytes += plan->work.outputs[unit->outputs[w]].bytes;
    return bytes;
}

static uint64_t unit_bytes(const void *user, uint64_t number)
{
    const mp_quantize_plan *plan = user;
    const mp_quantize_layer *layer = mp_quantize_layer_of(plan, number);
    uint64_t index = number - layer->first_unit, bytes = 0;
    const size_t *pieces;

    if (index < layer->expert_units) {
        mp_quantize_unit unit = mp_quantize_unit_of(plan, layer, index);

        return bytes_of_matrix(plan, &unit);
    }
    pieces = pieces_of(plan, layer, index);
    for (size_t i = pieces[0]; i < pieces[1]; i++)
        bytes += plan->pieces[i].bytes;
    return bytes;
}

static void read_ahead(const void *user, uint64_t number)
{
    const mp_quantize_plan *plan = user;
    const mp_quantize_layer *layer = mp_quantize_layer_of(plan, number);
    uint64_t index = number - layer->first_unit;

    if (index < layer->expert_units) {
        mp_quantize_unit unit = mp_quantize_unit_of(plan, layer, index);

        mp_matrix_ahead(plan->catalog, &unit.expert->matrix[unit.projection]);
    } else {
        const size_t *pieces = pieces_of(plan, layer, index);

        for (size_t i = pieces[0]; i < pieces[1]; i++)
            mp_tensor_ahead(&plan->catalog->checkpoint, plan->pieces[i].from,
                            plan->pieces[i].offset, plan->pieces[i].bytes);
    }
}

static int run_unit(const void *user, uint64_t number, mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    const mp_quantize_plan *plan = user;
    const mp_quantize_layer *layer = mp_quantize_layer_of(plan, number);
    uint64_t index = number - layer->first_unit;
    const size_t *pieces;
    mp_quantize_unit unit;

    if (index >= layer->expert_units) {
        pieces = pieces_of(plan, layer, index);
        return mp_quantize_copy(plan, pieces[0], pieces[1], outputs, scratch, err);
    }
    unit = mp_quantize_unit_of(plan, layer, index);
    return mp_quantize_matrix(plan, &unit, outputs, scratch, stats, err);
}

/* ------------------------------------------------------------------------
 * Beginning and end
 */

static int finish(const void *user, const mp_progress_state *state, const char *partial,
                  mp_error *err)
{
    const mp_quantize_plan *plan = user;
    int rc = mp_put_index(&plan->work, 0, plan->work.num_files, partial, MP_INDEX_NAME, NULL, err);

    if (rc == 0)
        rc = mp_quantize_put_files(plan, partial, err);
    return rc ? rc : mp_quantize_put_report(plan, state, partial, err);
}

static int check_done(const void *plan, const char *out, const char *terms, mp_error *err)
{
    (void)plan;
    return mp_quantize_check_report(out, terms, err);
}

static bool is_whole(const char *out)
{
    char *path = mp_path_join(out, MP_QUANTIZE_REPORT);
    bool there = path && mp_path_exists(path);

    free(path);
    return there;
}

static bool owns(const char *name)
{
    return fnmatch("model-*-of-*.safetensors", name, 0) == 0 ||
           fnmatch("model-*-of-*.safetensors.zst", name, 0) == 0 ||
           strcmp(name, MP_INDEX_NAME) == 0 || mp_quantize_is_side_file(name);
}

int mp_quantize_plan_run(const mp_quantize_plan *plan, const char *out, mp_run_mode mode,
                         const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    mp_job job = {
        .plan = plan,
        .work = &plan->work,
        .terms = print_terms,
        .units = list_units,
        .unit_bytes = unit_bytes,
        .ahead = read_ahead,
        .run = run_unit,
        .finish = finish,
        .check_done = check_done,
        .is_whole = is_whole,
        .kind = "a requantized checkpoint",
        .owns = owns,
    };
    const mp_context alone = mp_alone(context);
    bool in_order = mp_checkpoint_read_in_order(&plan->catalog->checkpoint);

    return mp_job_run(&job, out, mode, in_order ? &alone : context, err);
}
