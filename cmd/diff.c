/* SPDX-License-Identifier: Apache-2.0 */
/* moepack diff: what differs between two checkpoints, packed directories, snapshots or files. The
 * library compares; here is how it is told. Standard output has the differences, so that status 1
 * needs no message of its own. Names come from files and go to a terminal: control characters are
 * replaced. */
#include "choices.h"
#include "commands.h"
#include "output.h"
#include "progress.h"

#include <math.h>
#include <moepack/diff.h>

/* Lines of pairs, and of names on one side only, that are printed without --all. */
#define LINES 20

typedef struct diff_options {
    common_options common;
    const char *a;
    const char *b;
    double tolerance;
    char *layers;
    const char *placement;
    bool all;
} diff_options;

/* ------------------------------------------------------------------------
 * Text
 */

static void print_pair(const mp_diff_pair *pair)
{
    print_name(stdout, pair->name);
    printf(": ");
    if (pair->note) {
        print_name(stdout, pair->note);
        if (!isnan(pair->rel_l2))
            printf("; ");
    }
    if (!isnan(pair->rel_l2)) {
        printf("max abs %.6g, rel. L2 %.3e", pair->max_abs, pair->rel_l2);
        if (isfinite(pair->sqnr_db))
            printf(", SQNR %.2f dB", pair->sqnr_db);
        if (pair->rel_l2 == 0)
            printf(", the bits differ");
    } else if (!pair->note) {
        printf("NaN or infinite on one side");
    }
    putchar('\n');
}

static void print_pairs(const mp_diff_report *report, size_t limit)
{
    size_t printed = 0;

    for (size_t i = 0; i < report->num_pairs; i++) {
        if (!report->pairs[i].differs)
            continue;
        if (printed++ == limit) {
            printf("... and %zu more\n", report->differing - limit);
            return;
        }
        print_pair(&report->pairs[i]);
    }
}

static void print_only(const mp_diff_report *report, unsigned which, const char *path, size_t limit)
{
    for (size_t i = 0; i < report->num_only[which]; i++) {
        if (i == limit) {
            printf("... and %zu more only in ", report->num_only[which] - limit);
            print_name(stdout, path);
            putchar('\n');
            return;
        }
        printf("only in ");
        print_name(stdout, path);
        printf(": ");
        print_name(stdout, report->only_in[which][i]);
        putchar('\n');
    }
}

static void print_worst(const mp_diff_report *report)
{
    const mp_diff_pair *worst = &report->pairs[report->worst];

    if (isnan(worst->rel_l2))
        printf(", worst ");
    else
        printf(", worst rel. L2 %.3e in ", worst->rel_l2);
    print_name(stdout, worst->name);
}

static void print_summary(const diff_options *o, const mp_diff_report *report)
{
    const output_ink ink = ink_for(stdout, &o->common);
    const char *paths[2] = {o->a, o->b};

    printf("%s%s%s: ", report->equal ? ink.good : ink.bad, report->equal ? "equal" : "different",
           ink.plain);
    printf("%zu of %zu pair%s differ%s", report->differing, report->num_pairs,
           plural(report->num_pairs), report->differing == 1 || report->num_pairs == 1 ? "s" : "");
    if (report->tolerated > 0)
        printf(", %zu within the tolerance", report->tolerated);
    if (report->differing + report->tolerated > 0)
        print_worst(report);
    for (unsigned s = 0; s < 2; s++)
        if (report->num_only[s] > 0) {
            printf("; %zu only in ", report->num_only[s]);
            print_name(stdout, paths[s]);
        }
    putchar('\n');
}

static void print_text(const diff_options *o, const mp_diff_report *report)
{
    size_t limit = o->all ? SIZE_MAX : LINES;

    print_pairs(report, limit);
    print_only(report, 0, o->a, limit);
    print_only(report, 1, o->b, limit);
    print_summary(o, report);
}

/* ------------------------------------------------------------------------
 * JSON
 */

/* The number, or null where it is none. */
static json_t *number_json(double number)
{
    return isfinite(number) ? json_real(number) : json_null();
}

static json_t *pair_json(const mp_diff_pair *pair)
{
    return json_pack("{s:s, s:b, s:b, s:o, s:o, s:o, s:s?}", "name", pair->name, "equal",
                     pair->equal, "differs", pair->differs, "max_abs", number_json(pair->max_abs),
                     "rel_l2", number_json(pair->rel_l2), "sqnr_db", number_json(pair->sqnr_db),
                     "note", pair->note);
}

static json_t *pairs_json(const mp_diff_report *report)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < report->num_pairs; i++) {
        if (json_array_append_new(list, pair_json(&report->pairs[i])) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

static json_t *only_json(const mp_diff_report *report, unsigned which)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < report->num_only[which]; i++) {
        if (json_array_append_new(list, json_string(report->only_in[which][i])) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

static int print_report_json(const mp_diff_report *report, mp_error *err)
{
    return print_json(json_pack("{s:b, s:I, s:I, s:o, s:o, s:o}", "equal", report->equal,
                                "differing", (json_int_t)report->differing, "tolerated",
                                (json_int_t)report->tolerated, "pairs", pairs_json(report),
                                "only_in_a", only_json(report, 0), "only_in_b",
                                only_json(report, 1)),
                      err);
}

/* ------------------------------------------------------------------------
 * The command
 */

static void print_warnings(const diff_options *o, const mp_diff_report *report)
{
    const char *paths[2] = {o->a, o->b};

    for (unsigned s = 0; s < 2; s++)
        if (report->by_name[s])
            fprintf(stderr, "moepack: diff: warning: %s: tensors are compared by name: %s\n",
                    paths[s], report->by_name[s]);
}

static int print_report(const diff_options *o, const mp_diff_report *report, mp_error *err)
{
    int rc = 0;

    if (!o->common.quiet && !report->equal)
        print_warnings(o, report);
    if (o->common.json)
        rc = print_report_json(report, err);
    else if (!o->common.quiet)
        print_text(o, report);
    /* The differences are on standard output; there is nothing to add. */
    return rc == 0 && !report->equal ? MP_ERR_CHECK : rc;
}

static int run_diff(const void *values, mp_error *err)
{
    const diff_options *o = values;
    const mp_diff_options options = {.size = sizeof(mp_diff_options),
                                     .layers = o->layers,
                                     .tolerance = o->tolerance,
                                     .placement = o->placement};
    mp_diff_report report;
    mp_context context;

    cmd_context(&o->common, &context);
    print_io(&o->common, o->a);
    print_io(&o->common, o->b);
    int rc = mp_diff(o->a, o->b, &options, &context, &report, err);
    progress_clear();
    if (rc != 0)
        return rc;
    rc = print_report(o, &report, err);
    mp_diff_report_release(&report);
    return rc;
}

static const cmd_option options[] = {
    OPT_DOUBLE(0, "tolerance", "X", diff_options, tolerance, 0, 1e30,
               "ignore a relative L2 error up to X; by default report every difference"),
    OPT_WORDS(0, "layers", "LIST", diff_options, layers,
              "compare only these layers, as in 0-3,7,mtp.0"),
    OPT_STRING(0, "placement", "FILE", diff_options, placement,
               "where the experts of a snapshot are"),
    OPT_FLAG(0, "all", diff_options, all, "list every difference, not just the first 20"),
    OPT_IO(diff_options),
    OPT_JSON(diff_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("A", diff_options, a),
                                         ARG_ONE("B", diff_options, b), ARG_END};
static const diff_options defaults = {.tolerance = -1};

const command command_diff = {
    .name = "diff",
    .summary = "compare two checkpoints, packs, snapshots or files",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_diff,
};
