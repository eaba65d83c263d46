/* SPDX-License-Identifier: Apache-2.0 */
/* moepack eplb: an expert placement from load counts. Counts of all inputs become one recording
 * (eplb_counts.c), the library places, and the result goes to a file, a report (eplb_report.c),
 * bars or a drawing. Without --output the placement goes to standard output, unless something else
 * is printed there; copies of an expert on one GPU are legal, and warned of. */
#include "eplb.h"
#include "charts.h"
#include "commands.h"
#include "files.h"
#include "output.h"
#include "progress.h"

#include <stdlib.h>

#define BAR_COLUMNS 24

/* Everything that a run is made from. */
typedef struct eplb_job {
    const eplb_options *o;
    mp_recording recording;
    mp_counts counts;
    mp_placement from;
    eplb_layers layers;
    mp_eplb e;
} eplb_job;

static int check_usage(const eplb_options *o, mp_error *err)
{
    bool best = o->algorithm == MP_EPLB_BEST;

    if (o->physical && o->redundant)
        return cmd_fail(err, MP_ERR_USAGE, "--physical and --redundant cannot be used together");
    if (o->bars && o->common.json)
        return cmd_fail(err, MP_ERR_USAGE, "--bars and --json cannot be used together");
    if (best && o->refine)
        return cmd_fail(err, MP_ERR_USAGE, "--algorithm best and --refine cannot be used together");
    if (!best && (o->window_given || o->objective_given || o->max_moves_given))
        return cmd_fail(err, MP_ERR_USAGE, "--%s needs --algorithm best",
                        o->window_given      ? "window"
                        : o->objective_given ? "objective"
                                             : "max-moves");
    if (o->max_moves_given && !o->from)
        return cmd_fail(err, MP_ERR_USAGE, "--max-moves needs --from");
    return 0;
}

/* The placement in use. Where both name their layers, they have to name the same. */
static int read_from(eplb_job *job, mp_error *err)
{
    const eplb_options *o = job->o;
    const uint32_t *of_counts = job->layers.ids;

    if (!o->from)
        return 0;
    int rc = load_placement(o->from, job->counts.num_logical, 0, &job->from, err);
    const uint32_t *ids = job->from.layer_ids;
    if (rc == 0 && ids && of_counts && job->from.layers == job->counts.layers)
        for (uint32_t i = 0; rc == 0 && i < job->from.layers; i++)
            if (ids[i] != of_counts[i])
                rc = cmd_fail(err, MP_ERR_INPUT, "%s: row %u is for layer %u, the counts for %u",
                              o->from, i, ids[i], of_counts[i]);
    return rc;
}

static int balance(eplb_job *job, mp_error *err)
{
    const eplb_options *o = job->o;
    mp_context context;
    uint64_t physical = o->physical ? o->physical : job->counts.num_logical + o->redundant;
    const mp_eplb_options options = {
        .size = sizeof(mp_eplb_options),
        /* Too many stay too many, for the library to refuse by its own words. */
        .num_physical = physical > UINT32_MAX ? UINT32_MAX : (uint32_t)physical,
        .ep = (uint32_t)o->ep,
        .nodes = (uint32_t)o->nodes,
        .groups = (uint32_t)o->groups,
        .algorithm = o->algorithm,
        .refine = (uint32_t)o->refine,
        .objective = o->objective,
        .from = o->from ? &job->from : NULL,
        .limit_moves = o->max_moves_given,
        .max_moves = (uint32_t)o->max_moves,
    };

    cmd_context(&o->common, &context);
    int rc = mp_eplb_balance(&job->e, &job->counts, &options, &context, err);
    progress_clear();
    if (rc == 0) {
        job->e.placement.layer_ids = job->layers.ids;
        /* The placement owns them now. */
        job->layers.ids = NULL;
    }
    return rc;
}

static int prepare(eplb_job *job, mp_error *err)
{
    const eplb_options *o = job->o;
    int rc = check_usage(o, err);

    if (rc == 0)
        rc = eplb_read_counts(o, &job->recording, err);
    if (rc == 0)
        rc = mp_recording_sum(&job->recording, o->window, &job->counts, err);
    if (rc == 0)
        rc = eplb_name_layers(o, &job->recording, &job->layers, err);
    return rc == 0 ? read_from(job, err) : rc;
}

/* ------------------------------------------------------------------------
 * Output
 */

static int print_bars(const mp_eplb *e, mp_error *err)
{
    char *text;
    int rc = eplb_bars(e, BAR_COLUMNS, &text, err);

    if (rc == 0) {
        fputs(text, stdout);
        free(text);
    }
    return rc;
}

/* Copies of an expert that share a GPU are legal, and a waste of memory. */
static int warn_of_copies(const mp_eplb *e, mp_error *err)
{
    mp_problems warnings = {0};
    int rc = mp_placement_check(&e->placement, e->ep, &warnings, err);

    print_problems(stderr, "moepack: eplb: warning", &warnings);
    mp_problems_release(&warnings);
    return rc;
}

static int write_placement(const eplb_options *o, const mp_eplb *e, mp_error *err)
{
    char *text;
    const char *path = o->output ? o->output : "-";

    if (!o->output && (o->report || o->bars))
        return 0;
    int rc = mp_placement_write(&e->placement, o->format, e->ep, &text, err);
    if (rc == 0) {
        rc = write_text(path, text, err);
        free(text);
    }
    return rc;
}

static int write_svg(const char *path, const mp_eplb *e, mp_error *err)
{
    char *svg;
    int rc = path ? eplb_svg(e, &svg, err) : 0;

    if (path && rc == 0) {
        rc = write_text(path, svg, err);
        free(svg);
    }
    return rc;
}

static int run_eplb(const void *values, mp_error *err)
{
    const eplb_options *o = values;
    eplb_job job = {.o = o};
    const mp_eplb *e = &job.e;
    int rc = prepare(&job, err);

    if (rc == 0)
        rc = balance(&job, err);
    if (rc == 0 && !o->common.quiet)
        rc = warn_of_copies(e, err);
    if (rc == 0)
        rc = write_placement(o, e, err);
    if (rc == 0)
        rc = write_svg(o->svg, e, err);
    if (rc == 0 && o->report)
        rc = eplb_print_report(o, e, job.counts.windows, job.layers.bytes, err);
    if (rc == 0 && o->bars)
        rc = print_bars(e, err);
    mp_eplb_release(&job.e);
    eplb_layers_release(&job.layers);
    mp_placement_release(&job.from);
    mp_counts_release(&job.counts);
    mp_recording_release(&job.recording);
    return rc;
}

static const cmd_choice algorithms[] = {
    {"auto", MP_EPLB_AUTO},
    {"hierarchical", MP_EPLB_HIERARCHICAL},
    {"global", MP_EPLB_GLOBAL},
    {"best", MP_EPLB_BEST},
    {NULL, 0},
};
static const cmd_choice objectives[] = {
    {"mean", MP_EPLB_MEAN},
    {"worst", MP_EPLB_WORST},
    {NULL, 0},
};
static const cmd_choice formats[] = {
    {"sglang", MP_PLACEMENT_SGLANG},
    {"trtllm", MP_PLACEMENT_TRTLLM},
    {"vllm-ascend", MP_PLACEMENT_VLLM_ASCEND},
    {"vllm", MP_PLACEMENT_VLLM},
    {NULL, 0},
};

static const cmd_option options[] = {
    OPT_STRING('o', "output", "FILE", eplb_options, output,
               "file for the placement; by default standard output, unless a report goes there"),
    OPT_CHOICE(0, "placement-format", "FORMAT", eplb_options, format, formats,
               "engine that will read the placement"),
    OPT_U64(0, "first-layer", "L", eplb_options, first_layer, 0, INT32_MAX,
            "decoder layer of the first row, recorded in trtllm and vllm-ascend files",
            .given = offsetof(eplb_options, first_layer_given)),
    OPT_LIST(0, "layers", "LIST", eplb_options, layers, 0, INT32_MAX,
             "decoder layers of the rows, as in 1,3,5"),
    OPT_STRING(0, "model", "CKPT", eplb_options, model,
               "checkpoint that says which layers the rows are for, and how large an expert is"),
    OPT_SIZE(0, "expert-bytes", "SIZE", eplb_options, expert_bytes, 1, INT64_MAX,
             "size of an expert, to report the size of moves"),
    OPT_U64(0, "experts", "N", eplb_options, experts, 1, INT32_MAX,
            "experts of the model, for counts that cannot tell"),
    OPT_U64(0, "redundant", "R", eplb_options, redundant, 0, INT32_MAX, "redundant experts"),
    OPT_U64(0, "physical", "P", eplb_options, physical, 1, INT32_MAX,
            "physical experts, instead of --redundant"),
    OPT_U64(0, "ep", "N", eplb_options, ep, 1, INT32_MAX, "expert-parallel GPUs",
            .flags = OPT_REQUIRED),
    OPT_U64(0, "nodes", "N", eplb_options, nodes, 1, INT32_MAX, "nodes that the GPUs are in"),
    OPT_U64(0, "groups", "N", eplb_options, groups, 1, INT32_MAX, "expert groups of the router"),
    OPT_CHOICE(0, "algorithm", "NAME", eplb_options, algorithm, algorithms,
               "keep expert groups within nodes, or ignore them, or search for the best"),
    OPT_U64(0, "refine", "N", eplb_options, refine, 0, UINT32_MAX,
            "improve each layer by up to N swaps"),
    OPT_U64(0, "window", "K", eplb_options, window, 1, INT64_MAX,
            "balance every K steps, not only the sum of all",
            .given = offsetof(eplb_options, window_given)),
    OPT_CHOICE(0, "objective", "NAME", eplb_options, objective, objectives,
               "over several windows, minimize the mean of their largest loads, or the worst",
               .given = offsetof(eplb_options, objective_given)),
    OPT_STRING(0, "from", "OLD", eplb_options, from,
               "placement in use, from which few experts should move"),
    OPT_U64(0, "max-moves", "M", eplb_options, max_moves, 0, UINT32_MAX,
            "change the expert of at most M slots per layer",
            .given = offsetof(eplb_options, max_moves_given)),
    OPT_FLAG(0, "report", eplb_options, report, "print how well each layer is balanced"),
    OPT_FLAG(0, "bars", eplb_options, bars, "print the balancedness of each layer as bars"),
    OPT_STRING(0, "svg", "FILE", eplb_options, svg,
               "draw the GPU loads before and after into FILE"),
    OPT_JSON(eplb_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_MANY("COUNTS", eplb_options, counts), ARG_END};
static const eplb_options defaults = {.nodes = 1, .groups = 1, .max_moves = UINT64_MAX};

const command command_eplb = {
    .name = "eplb",
    .summary = "place experts on GPUs by how often they are chosen",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_eplb,
};
