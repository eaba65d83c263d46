/* SPDX-License-Identifier: Apache-2.0 */
/* moepack route: top-k choices of experts into choices of slots, for the tokens of one rank, as an
 * engine's rank does it. Input and output are safetensors, so that a test of an engine can hold its
 * own tensors against them:
 *
 *   topk_ids, topk_weights [tokens, k]  ->  slot_ids, slot_weights [tokens, k + shared]
 *
 * What is printed are the loads of ranks, which a report of an engine can be compared with. */
#include "charts.h"
#include "choices.h"
#include "commands.h"
#include "files.h"
#include "output.h"
#include "progress.h"

#include <inttypes.h>
#include <moepack/store.h>
#include <stdlib.h>

#define BAR_COLUMNS 40

typedef struct route_options {
    common_options common;
    const char *input;
    const char *placement;
    uint64_t experts;
    uint64_t redundant;
    uint64_t layer;
    uint64_t ep;
    uint64_t rank;
    uint64_t shared;
    double routed_scaling;
    mp_dispatch dispatch;
    mp_waterfill_mode waterfill;
    const char *rank_load;
    const char *output;
    const char *svg;
} route_options;

/* The choices of a rank's tokens, before and after. */
typedef struct route_job {
    const route_options *o;
    mp_placement placement;
    const int32_t *row;
    mp_rank_load rank_load;
    mp_route_options how;
    uint64_t tokens;
    uint32_t k;
    int32_t *ids;        /* [tokens][k] */
    float *weights;      /* [tokens][k] */
    int32_t *slot_ids;   /* [tokens][k + shared] */
    float *slot_weights; /* [tokens][k + shared] */
    uint64_t *choices;   /* [ep] */
} route_job;

/* ------------------------------------------------------------------------
 * Input
 */

/* The tensor [tokens][k] of that name. */
static const mp_tensor *find_matrix(const mp_checkpoint *in, const char *name, mp_error *err)
{
    const mp_tensor *t = mp_checkpoint_find(in, name);
    char shape[MP_SHAPE_TEXT];

    if (!t)
        cmd_fail(err, MP_ERR_INPUT, "there is no tensor \"%s\"", name);
    else if (t->rank == 2 && t->shape[1] >= 1 && t->shape[1] <= INT32_MAX)
        return t;
    else
        cmd_fail(err, MP_ERR_INPUT, "%s: shape %s, expected [tokens, k]", name,
                 mp_shape_text(t->shape, t->rank, shape));
    return NULL;
}

/* Reads a tensor whole into memory of its own. */
static int read_tensor(const mp_checkpoint *in, const mp_tensor *t, void **data, mp_error *err)
{
    *data = malloc(t->bytes + 1);
    if (!*data)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    return mp_tensor_read(in, t, 0, t->bytes, *data, err);
}

/* 64-bit ids, which must fit 32 bits. */
static int read_wide_ids(route_job *job, const mp_checkpoint *in, const mp_tensor *t, mp_error *err)
{
    void *data;
    int rc = read_tensor(in, t, &data, err);
    uint64_t count = job->tokens * job->k;
    const int64_t *wide = data;

    job->ids = malloc(count * sizeof(*job->ids) + 1);
    if (rc == 0 && !job->ids)
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        job->ids[i] = (int32_t)wide[i];
        if (job->ids[i] != wide[i])
            rc = cmd_fail(err, MP_ERR_INPUT,
                          "topk_ids: token %" PRIu64 ", choice %" PRIu64 ": %" PRId64
                          " is not an expert",
                          i / job->k, i % job->k, wide[i]);
    }
    free(data);
    return rc;
}

static int read_choices(route_job *job, const mp_checkpoint *in, mp_error *err)
{
    const mp_tensor *ids = find_matrix(in, "topk_ids", err);
    const mp_tensor *weights = ids ? find_matrix(in, "topk_weights", err) : NULL;
    char first[MP_SHAPE_TEXT], second[MP_SHAPE_TEXT];

    if (!weights)
        return MP_ERR_INPUT;
    if (ids->dtype != MP_I32 && ids->dtype != MP_I64)
        return cmd_fail(err, MP_ERR_INPUT, "topk_ids: %s, expected I32 or I64",
                        mp_dtype_name(ids->dtype));
    if (weights->dtype != MP_F32)
        return cmd_fail(err, MP_ERR_INPUT, "topk_weights: %s, expected F32",
                        mp_dtype_name(weights->dtype));
    job->tokens = ids->shape[0];
    job->k = (uint32_t)ids->shape[1];
    if (weights->shape[0] != job->tokens || weights->shape[1] != job->k)
        return cmd_fail(err, MP_ERR_INPUT, "topk_weights: shape %s, that of topk_ids is %s",
                        mp_shape_text(weights->shape, 2, first),
                        mp_shape_text(ids->shape, 2, second));
    void *data = NULL;
    int rc =
        ids->dtype == MP_I64 ? read_wide_ids(job, in, ids, err) : read_tensor(in, ids, &data, err);
    if (ids->dtype == MP_I32)
        job->ids = data;
    if (rc == 0)
        rc = read_tensor(in, weights, &data, err);
    else
        data = NULL;
    /* After an error null, or what read_tensor has left, to be freed. */
    job->weights = data;
    return rc;
}

static int read_input(route_job *job, mp_error *err)
{
    mp_checkpoint in;
    mp_context context;

    cmd_context(&job->o->common, &context);
    int rc = mp_checkpoint_open(&in, job->o->input, &context, err);
    if (rc == 0) {
        rc = read_choices(job, &in, err);
        if (rc != 0)
            blame_file(job->o->input, err);
    }
    mp_checkpoint_release(&in);
    return rc;
}

static int read_rank_load(route_job *job, mp_error *err)
{
    const char *path = job->o->rank_load;
    char *text;
    uint64_t length;

    if (!path)
        return 0;
    if (job->o->waterfill != MP_WATERFILL_DYNAMIC)
        return cmd_fail(err, MP_ERR_USAGE, "--rank-load is for --waterfill dynamic only");
    int rc = mp_read_text(path, TEXT_FILE_LIMIT, &text, &length, err);
    if (rc != 0)
        return rc;
    rc = mp_rank_load_parse(&job->rank_load, text, length, (uint32_t)job->o->ep, err);
    free(text);
    return rc == 0 ? 0 : blame_file(path, err);
}

/* ------------------------------------------------------------------------
 * Routing
 */

static int prepare(route_job *job, mp_error *err)
{
    const route_options *o = job->o;
    mp_placement *p = &job->placement;
    int rc = read_rank_load(job, err);

    if (rc == 0)
        rc = load_placement(o->placement, o->experts, o->redundant, p, err);
    if (rc != 0)
        return rc;
    uint32_t row = mp_placement_row_of(p, o->layer);
    if (row == UINT32_MAX)
        return cmd_fail(err, MP_ERR_INPUT, "layer %" PRIu64 ": %s %u rows", o->layer,
                        p->layer_ids ? "it is not one of the placement's" : "the placement has",
                        p->layers);
    job->row = mp_placement_row(p, row);
    job->how = (mp_route_options){
        .rank = (uint32_t)o->rank,
        .dispatch = o->dispatch,
        .routed_scaling_factor = o->routed_scaling,
        .waterfill = o->waterfill,
        .rank_load = o->rank_load ? &job->rank_load : NULL,
    };
    rc = mp_slots_init(&job->how.slots, p->num_logical, p->num_physical, (uint32_t)o->ep,
                       (uint32_t)o->shared, false, err);
    if (rc == 0)
        rc = mp_placement_check(p, (uint32_t)o->ep, NULL, err);
    return rc == 0 ? read_input(job, err) : rc;
}

static int route(route_job *job, mp_error *err)
{
    uint64_t columns = (uint64_t)job->k + job->how.slots.shared, count;

    /* k fits the file, but shared choices are added. */
    if (__builtin_mul_overflow(job->tokens, columns * sizeof(float), &count))
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    job->slot_ids = malloc(count + 1);
    job->slot_weights = malloc(count + 1);
    job->choices = calloc(job->how.slots.ep, sizeof(*job->choices));
    if (!job->slot_ids || !job->slot_weights || !job->choices)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    return mp_route(&job->how, job->row, job->ids, job->weights, job->tokens, job->k, job->slot_ids,
                    job->slot_weights, job->choices, err);
}

/* ------------------------------------------------------------------------
 * Output
 */

static int write_output(const route_job *job, mp_error *err)
{
    const uint64_t shape[] = {job->tokens, (uint64_t)job->k + job->how.slots.shared};
    const mp_tensor_spec specs[] = {{"slot_ids", MP_I32, 2, shape},
                                    {"slot_weights", MP_F32, 2, shape}};
    uint64_t header_bytes, offsets[3];
    char *header;

    if (!job->o->output)
        return 0;
    int rc = mp_safetensors_header(specs, 2, NULL, 0, 64, &header, &header_bytes, offsets, err);
    if (rc != 0)
        return rc;
    const file_piece pieces[] = {{header, header_bytes},
                                 {job->slot_ids, offsets[1] - offsets[0]},
                                 {job->slot_weights, offsets[2] - offsets[1]}};
    rc = write_pieces(job->o->output, pieces, 3, err);
    free(header);
    return rc;
}

static int write_svg(const route_job *job, mp_error *err)
{
    char *svg;

    if (!job->o->svg)
        return 0;
    int rc = rank_load_svg(job->choices, job->how.slots.ep, &svg, err);
    if (rc == 0) {
        rc = write_text(job->o->svg, svg, err);
        free(svg);
    }
    return rc;
}

static int print_loads_json(const route_job *job, mp_error *err)
{
    json_t *loads = json_array();

    for (uint32_t rank = 0; rank < job->how.slots.ep; rank++) {
        if (json_array_append_new(loads, json_integer((json_int_t)job->choices[rank])) != 0) {
            json_decref(loads);
            return cmd_fail(err, MP_ERR_IO, "out of memory");
        }
    }
    return print_json(json_pack("{s:o, s:f}", "rank_load", loads, "balancedness",
                                mp_balancedness(job->choices, job->how.slots.ep)),
                      err);
}

static int print_loads(const route_job *job, mp_error *err)
{
    char *text;
    int rc = rank_load_bars(job->choices, job->how.slots.ep, BAR_COLUMNS, &text, err);

    if (rc != 0)
        return rc;
    fputs(text, stdout);
    printf("balancedness %.4f\n", mp_balancedness(job->choices, job->how.slots.ep));
    free(text);
    return 0;
}

static void warn_of_ranks(const route_job *job)
{
    if (job->how.waterfill != MP_WATERFILL_OFF && job->how.slots.ep > MP_WATERFILL_ENGINE_RANKS &&
        !job->o->common.quiet)
        fprintf(stderr,
                "moepack: route: warning: waterfill over %u ranks; the engine's 32-bit weights "
                "reach %u\n",
                job->how.slots.ep, MP_WATERFILL_ENGINE_RANKS);
}

static int run_route(const void *values, mp_error *err)
{
    const route_options *o = values;
    route_job job = {.o = o};
    int rc = prepare(&job, err);

    if (rc == 0)
        rc = route(&job, err);
    if (rc == 0) {
        warn_of_ranks(&job);
        rc = write_output(&job, err);
    }
    if (rc == 0)
        rc = write_svg(&job, err);
    if (rc == 0)
        rc = o->common.json ? print_loads_json(&job, err) : print_loads(&job, err);
    mp_placement_release(&job.placement);
    mp_rank_load_release(&job.rank_load);
    free(job.ids);
    free(job.weights);
    free(job.slot_ids);
    free(job.slot_weights);
    free(job.choices);
    return rc;
}

static const cmd_option options[] = {
    OPT_STRING('o', "output", "OUT", route_options, output,
               "write slot_ids and slot_weights to the safetensors file OUT"),
    OPT_STRING(0, "placement", "FILE", route_options, placement,
               "place experts according to FILE, - for standard input"),
    OPT_U64(0, "experts", "N", route_options, experts, 1, INT32_MAX,
            "experts of the model; required without a placement"),
    OPT_U64(0, "redundant", "R", route_options, redundant, 0, INT32_MAX,
            "without a placement: add R redundant experts in order"),
    OPT_U64(0, "layer", "L", route_options, layer, 0, INT32_MAX,
            "row of the placement, or decoder layer if the file states them"),
    OPT_U64(0, "ep", "N", route_options, ep, 1, INT32_MAX, "expert-parallel ranks",
            .flags = OPT_REQUIRED),
    OPT_U64(0, "rank", "K", route_options, rank, 0, INT32_MAX, "rank that holds the tokens"),
    OPT_U64(0, "shared", "S", route_options, shared, 0, 65536, "fused shared experts"),
    OPT_DOUBLE(0, "routed-scaling", "F", route_options, routed_scaling, 0, 1e30,
               "the model's routed_scaling_factor; 0 for none"),
    OPT_CHOICE(0, "dispatch", "RULE", route_options, dispatch, dispatch_choices,
               "which copy of an expert a choice goes to"),
    OPT_CHOICE(0, "waterfill", "MODE", route_options, waterfill, waterfill_choices,
               "how to find a less loaded rank for the shared expert"),
    OPT_STRING(0, "rank-load", "FILE", route_options, rank_load,
               "loads of all ranks, for --waterfill dynamic"),
    OPT_STRING(0, "svg", "FILE", route_options, svg, "draw the load of each rank into FILE"),
    OPT_JSON(route_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("IN", route_options, input), ARG_END};
static const route_options defaults = {0};

const command command_route = {
    .name = "route",
    .summary = "turn top-k choices of experts into choices of slots",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_route,
};
