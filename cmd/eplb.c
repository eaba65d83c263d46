/* SPDX-License-Identifier: Apache-2.0 */
/* moepack eplb: an expert placement from load counts. */
#include "commands.h"
#include "files.h"
#include "output.h"

#include <stdlib.h>

#define BAR_COLUMNS 24

typedef struct eplb_options {
    common_options common;
    const char *counts;
    uint64_t redundant;
    uint64_t physical; /* 0: not given */
    uint64_t ep;
    uint64_t nodes;
    uint64_t groups;
    mp_eplb_algorithm algorithm;
    uint64_t refine;
    bool report;
    bool bars;
    const char *svg;
    const char *output;
    const char *format;
    uint64_t first_layer;
} eplb_options;

/* ------------------------------------------------------------------------
 * The report
 */

static json_t *report_json(const mp_eplb_report *r)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "balancedness_trivial",
                     r->balancedness_trivial, "balancedness", r->balancedness,
                     "balancedness_refined", r->balancedness_refined, "max_load", r->max_load,
                     "max_load_refined", r->max_load_refined, "lower_bound", r->lower_bound);
}

/* The report of one layer, in which copies are whole. */
static json_t *layer_json(const mp_eplb_report *r, uint32_t layer)
{
    json_t *json = json_pack("{s:i}", "layer", (int)layer), *figures = report_json(r);

    if (json_object_update(json, figures) != 0 ||
        json_object_set_new(json, "colocated_replicas",
                            json_integer((json_int_t)r->colocated_replicas)) != 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(figures);
    return json;
}

static int print_report_json(const mp_eplb *e, mp_error *err)
{
    json_t *layers = json_array(), *mean = report_json(&e->mean), *json = NULL;
    bool complete = layers && json_object_set_new(mean, "colocated_replicas",
                                                  json_real(e->mean.colocated_replicas)) == 0;

    for (uint32_t layer = 0; complete && layer < e->placement.layers; layer++)
        complete = json_array_append_new(layers, layer_json(&e->report[layer], layer)) == 0;
    if (complete)
        json = json_pack("{s:O, s:O}", "layers", layers, "mean", mean);
    json_decref(layers);
    json_decref(mean);
    return print_json(json, err);
}

static void print_figures(const mp_eplb_report *r, int decimals)
{
    printf("  %7.4f  %7.4f  %7.4f  %12.6g  %12.6g  %12.6g  %9.*f\n", r->balancedness_trivial,
           r->balancedness, r->balancedness_refined, r->max_load, r->max_load_refined,
           r->lower_bound, decimals, r->colocated_replicas);
}

static void print_report(const mp_eplb *e, const common_options *common)
{
    output_ink ink = ink_for(stdout, common);

    printf("%s         balancedness                 largest GPU load\n"
           "layer  trivial     eplb  refined          eplb       refined   lower bound  "
           "colocated%s\n",
           ink.bold, ink.plain);
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        printf("%5u", layer);
        print_figures(&e->report[layer], 0);
    }
    printf(" mean");
    print_figures(&e->mean, 2);
}

static int print_bars(const mp_eplb *e, mp_error *err)
{
    char *text;
    int rc = mp_eplb_bars(e, BAR_COLUMNS, &text, err);

    if (rc == 0) {
        fputs(text, stdout);
        free(text);
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * The command
 */

static int read_counts(const char *path, mp_counts *counts, mp_error *err)
{
    char *text;
    uint64_t length;
    int rc = mp_read_text(path, TEXT_FILE_LIMIT, &text, &length, err);

    if (rc != 0)
        return rc;
    rc = mp_counts_parse(counts, text, length, err);
    free(text);
    return rc == 0 ? 0 : blame_file(path, err);
}

static int balance(const eplb_options *o, mp_eplb *e, mp_error *err)
{
    mp_counts counts;

    if (o->physical && o->redundant)
        return cmd_fail(err, MP_ERR_USAGE, "--physical and --redundant contradict each other");
    if (o->bars && o->common.json)
        return cmd_fail(err, MP_ERR_USAGE, "--bars and --json contradict each other");
    int rc = read_counts(o->counts, &counts, err);
    if (rc != 0)
        return rc;
    uint64_t physical = o->physical ? o->physical : counts.num_logical + o->redundant;
    const mp_eplb_options options = {
        .num_physical = physical > UINT32_MAX ? UINT32_MAX : (uint32_t)physical,
        .ep = (uint32_t)o->ep,
        .nodes = (uint32_t)o->nodes,
        .groups = (uint32_t)o->groups,
        .algorithm = o->algorithm,
        .refine = (uint32_t)o->refine,
    };
    rc = mp_eplb_balance(e, &counts, &options, err);
    e->placement.first_layer = (uint32_t)o->first_layer;
    mp_counts_release(&counts);
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
    mp_placement_format format;
    mp_placement_format_parse(o->format, &format);
    int rc = mp_placement_write(&e->placement, format, e->ep, &text, err);
    if (rc == 0) {
        rc = write_text(path, text, err);
        free(text);
    }
    return rc;
}

static int write_svg(const char *path, const mp_eplb *e, mp_error *err)
{
    char *svg;
    int rc = path ? mp_eplb_svg(e, &svg, err) : 0;

    if (path && rc == 0) {
        rc = write_text(path, svg, err);
        free(svg);
    }
    return rc;
}

static int run_eplb(const void *values, mp_error *err)
{
    const eplb_options *o = values;
    mp_eplb e = {0};
    int rc = balance(o, &e, err);

    if (rc == 0 && !o->common.quiet)
        rc = warn_of_copies(&e, err);
    if (rc == 0)
        rc = write_placement(o, &e, err);
    if (rc == 0)
        rc = write_svg(o->svg, &e, err);
    if (rc == 0 && o->report && o->common.json)
        rc = print_report_json(&e, err);
    else if (rc == 0 && o->report)
        print_report(&e, &o->common);
    if (rc == 0 && o->bars)
        rc = print_bars(&e, err);
    mp_eplb_release(&e);
    return rc;
}

static const cmd_choice algorithms[] = {
    {"auto", MP_EPLB_AUTO},
    {"hierarchical", MP_EPLB_HIERARCHICAL},
    {"global", MP_EPLB_GLOBAL},
    {NULL, 0},
};
static const char *format_name(size_t index)
{
    return index < MP_PLACEMENT_FORMAT_COUNT ? mp_placement_format_name((mp_placement_format)index)
                                             : NULL;
}

static const cmd_option options[] = {
    OPT_STRING('o', "output", "FILE", eplb_options, output,
               "write the placement to FILE; left out: to standard output, unless it has a report"),
    OPT_STRING(0, "placement-format", "FORMAT", eplb_options, format,
               "engine that is to read the placement", .choice_name = format_name),
    OPT_U64(0, "first-layer", "L", eplb_options, first_layer, 0, INT32_MAX,
            "model layer of the first row, which trtllm files name"),
    OPT_U64(0, "redundant", "R", eplb_options, redundant, 0, INT32_MAX, "redundant experts"),
    OPT_U64(0, "physical", "P", eplb_options, physical, 1, INT32_MAX,
            "physical experts, instead of --redundant"),
    OPT_U64(0, "ep", "N", eplb_options, ep, 1, INT32_MAX, "expert-parallel GPUs",
            .flags = OPT_REQUIRED),
    OPT_U64(0, "nodes", "N", eplb_options, nodes, 1, INT32_MAX, "nodes that the GPUs are in"),
    OPT_U64(0, "groups", "N", eplb_options, groups, 1, INT32_MAX, "expert groups of the router"),
    OPT_CHOICE(0, "algorithm", "NAME", eplb_options, algorithm, algorithms,
               "keep expert groups whole in nodes, or not"),
    OPT_U64(0, "refine", "N", eplb_options, refine, 0, UINT32_MAX,
            "improve each layer by up to N swaps"),
    OPT_FLAG(0, "report", eplb_options, report, "print how well each layer is balanced"),
    OPT_FLAG(0, "bars", eplb_options, bars, "print the balancedness of each layer as bars"),
    OPT_STRING(0, "svg", "FILE", eplb_options, svg,
               "draw the GPU loads before and after into FILE"),
    OPT_JSON(eplb_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("COUNTS", eplb_options, counts), ARG_END};
static const eplb_options defaults = {.nodes = 1, .groups = 1, .format = "sglang"};

const command command_eplb = {
    .name = "eplb",
    .summary = "place experts on GPUs by how often they are chosen",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_eplb,
};
