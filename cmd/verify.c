/* SPDX-License-Identifier: Apache-2.0 */
/* moepack verify: checks a packed directory, a snapshot or a converted checkpoint and names what
 * does not hold. The library checks; here the report is written as text, JSON, TAP or JUnit, or as
 * a page (verify_html.c).
 *
 * Each format has its own escapes, given as a function to what all of them print: tensors and
 * layers are called as files call them. Formats that list tests have one for each rank at each
 * level, in the report's order, with its faults below. Faults that were counted and not kept are
 * counted here too. */
#include "verify.h"
#include "choices.h"
#include "commands.h"
#include "output.h"
#include "progress.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <moepack/artifact.h>
#include <moepack/delta.h>
#include <moepack/verify.h>
#include <string.h>

#define LEVEL_FROM_SOURCE (-1) /* exact with a source, digest without */

typedef struct verify_options {
    common_options common;
    const char *out;
    int level;
    const char *source;
    char *layers;
    char *ranks;
    const char *placement;
    uint64_t sample; /* 0: all */
    uint64_t seed;
    uint64_t tokens;  /* 0: as many as the library takes */
    double tolerance; /* 0: the target's own */
    bool tap;
    const char *junit;
    const char *html;
} verify_options;

/* ------------------------------------------------------------------------
 * Words
 */

/* Writes a text in the escapes of some format. */
typedef void put_text(FILE *out, const char *text);

void verify_put_xml(FILE *out, const char *text)
{
    static const char special[] = "&<>\"'";
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&apos;"};

    for (; *text; text++) {
        const char *found = strchr(special, *text);

        if (found)
            fputs(entities[found - special], out);
        else
            putc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
    }
}

const char *verify_short_name(const mp_fault *fault)
{
    static const char block[] = "experts.";
    size_t length = fault->layer ? strlen(fault->layer) : 0;
    const char *name = fault->tensor;

    if (length == 0 || strncmp(name, fault->layer, length) != 0 || name[length] != '.')
        return name;
    name += length + 1;
    return strncmp(name, block, sizeof block - 1) == 0 ? name + sizeof block - 1 : name;
}

/* "rank 1, layers.3, slot 7, l1_weight_sf, element 96: ...", without a newline. */
static void put_fault(FILE *out, const mp_fault *fault, put_text *put)
{
    const char *separator = "";

    if (fault->rank >= 0) {
        fprintf(out, "rank %" PRId64, fault->rank);
        separator = ", ";
    }
    if (fault->layer) {
        fputs(separator, out);
        put(out, fault->layer);
        separator = ", ";
    }
    if (fault->slot >= 0)
        fprintf(out, "%sslot %" PRId64, separator, fault->slot);
    if (fault->tensor) {
        fputs(separator, out);
        put(out, verify_short_name(fault));
        separator = ", ";
    }
    if (fault->element >= 0)
        fprintf(out, ", element %" PRId64, fault->element);
    fputs(separator[0] ? ": " : "", out);
    put(out, fault->detail);
}

const char *verify_part_name(const mp_verify_report *report, const mp_verify_part *part,
                             char text[32])
{
    if (part->rank < 0)
        return report->subject;
    snprintf(text, 32, "rank %" PRId64, part->rank);
    return text;
}

/* Prints the faults of one part, each on a line behind `before`, and how many more
 * there are. */
static void put_part(FILE *out, const mp_verify_report *report, const mp_verify_part *part,
                     const char *before, put_text *put)
{
    uint64_t left = part->faults;

    for (size_t i = 0; i < report->num_faults; i++) {
        const mp_fault *fault = &report->faults[i];

        if (fault->rank != part->rank || fault->level != part->level)
            continue;
        fputs(before, out);
        put_fault(out, fault, put);
        putc('\n', out);
        left--;
    }
    if (left > 0)
        fprintf(out, "%s... and %" PRIu64 " more\n", before, left);
}

/* ------------------------------------------------------------------------
 * Figures of level numeric
 */

const char *verify_number_text(double number, char text[NUMBER_TEXT])
{
    if (isnan(number))
        return "-";
    snprintf(text, NUMBER_TEXT, "%.3g", number);
    return text;
}

/* A line a layer, each behind `before`. */
static void put_numeric(FILE *out, const mp_verify_report *report, const char *before,
                        put_text *put)
{
    int width = (int)strlen("layer");

    for (size_t i = 0; i < report->num_numeric; i++) {
        int length = (int)strlen(report->numeric[i].layer);

        width = length > width ? length : width;
    }
    fprintf(out, "%s%-*s  kernel    identical  rel. L2   within  cosine diff  max abs   weights\n",
            before, width, "layer");
    for (size_t i = 0; i < report->num_numeric; i++) {
        const mp_verify_numeric *n = &report->numeric[i];
        char rel_l2[NUMBER_TEXT], cosine[NUMBER_TEXT], max_abs[NUMBER_TEXT], weights[NUMBER_TEXT];

        fputs(before, out);
        put(out, n->layer);
        fprintf(out, "%*s  %-8s  %-9s  %-8s  %-6g  %-11s  %-8s  %s\n",
                width - (int)strlen(n->layer), "", n->emulation, n->bit_identical ? "yes" : "no",
                verify_number_text(n->rel_l2, rel_l2), n->tolerance,
                verify_number_text(n->cosine_diff, cosine), verify_number_text(n->max_abs, max_abs),
                verify_number_text(n->weights_rel_l2, weights));
    }
}

/* The part that figures are printed with. */
static bool has_figures(const mp_verify_report *report, const mp_verify_part *part)
{
    return part->rank < 0 && part->level == MP_VERIFY_NUMERIC && report->num_numeric > 0;
}

/* null for a figure that there is none of. */
static json_t *figure_json(double number)
{
    return isfinite(number) ? json_real(number) : json_null();
}

static json_t *numeric_json(const mp_verify_numeric *n)
{
    return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o, s:f, s:o, s:b}", "layer", n->layer,
                     "emulation", n->emulation, "tokens", (json_int_t)n->tokens, "rel_l2",
                     figure_json(n->rel_l2), "cosine_diff", figure_json(n->cosine_diff), "max_abs",
                     figure_json(n->max_abs), "tolerance", n->tolerance, "weights_rel_l2",
                     figure_json(n->weights_rel_l2), "bit_identical", n->bit_identical);
}

/* ------------------------------------------------------------------------
 * Formats
 */

static void print_text(const mp_verify_report *report, const output_ink *ink)
{
    const char *level = mp_verify_level_name(report->level);
    char bytes[SIZE_TEXT];

    if (report->num_numeric > 0)
        put_numeric(stdout, report, "", print_name);
    for (size_t i = 0; i < report->num_faults; i++) {
        put_fault(stdout, &report->faults[i], print_name);
        putchar('\n');
    }
    if (report->total_faults > report->num_faults)
        printf("... and %" PRIu64 " more\n", report->total_faults - report->num_faults);
    if (report->total_faults > 0) {
        printf("%sFAILED%s: %" PRIu64 " fault%s\n", ink->bad, ink->plain, report->total_faults,
               plural(report->total_faults));
        return;
    }
    printf("%sok%s: %s: %" PRIu64 " file%s, %" PRIu64 " tensor%s, ", ink->good, ink->plain, level,
           report->files, plural(report->files), report->tensors, plural(report->tensors));
    if (report->slots > 0)
        printf("%" PRIu64 " %s%s, ", report->slots,
               strcmp(report->subject, "checkpoint") == 0 ? "expert" : "slot",
               plural(report->slots));
    printf("%s\n", size_text(report->bytes, bytes));
}

/* The number, or null where it does not apply. */
static json_t *number_json(int64_t number)
{
    return number < 0 ? json_null() : json_integer((json_int_t)number);
}

static json_t *fault_json(const mp_fault *fault)
{
    return json_pack("{s:s, s:o, s:s?, s:o, s:s?, s:o, s:s}", "level",
                     mp_verify_level_name(fault->level), "rank", number_json(fault->rank), "layer",
                     fault->layer, "slot", number_json(fault->slot), "tensor", fault->tensor,
                     "element", number_json(fault->element), "detail", fault->detail);
}

static int print_report_json(const mp_verify_report *report, mp_error *err)
{
    json_t *faults = json_array(), *numeric = json_array();
    bool stored = faults && numeric;

    for (size_t i = 0; stored && i < report->num_faults; i++)
        stored = json_array_append_new(faults, fault_json(&report->faults[i])) == 0;
    for (size_t i = 0; stored && i < report->num_numeric; i++)
        stored = json_array_append_new(numeric, numeric_json(&report->numeric[i])) == 0;
    if (!stored) {
        json_decref(faults);
        json_decref(numeric);
        return print_json(NULL, err);
    }
    json_t *json = json_pack(
        "{s:b, s:s, s:{s:I, s:I, s:I, s:I}, s:I, s:o, s:o}", "ok", report->total_faults == 0,
        "level", mp_verify_level_name(report->level), "checked", "files", (json_int_t)report->files,
        "tensors", (json_int_t)report->tensors, "slots", (json_int_t)report->slots, "bytes",
        (json_int_t)report->bytes, "total_faults", (json_int_t)report->total_faults, "faults",
        faults, "numeric", numeric);
    return print_json(json, err);
}

/* A test for each rank at each level, and for what belongs to no rank. */
static void print_tap(const mp_verify_report *report)
{
    printf("1..%zu\n", report->num_parts);
    for (size_t i = 0; i < report->num_parts; i++) {
        const mp_verify_part *part = &report->parts[i];
        char name[32];

        printf("%sok %zu - %s: %s\n", part->faults ? "not " : "", i + 1,
               verify_part_name(report, part, name), mp_verify_level_name(part->level));
        put_part(stdout, report, part, "# ", print_name);
        if (has_figures(report, part))
            put_numeric(stdout, report, "# ", print_name);
    }
}

static void write_junit_case(FILE *out, const mp_verify_report *report, const mp_verify_part *part)
{
    bool figures = has_figures(report, part);
    char name[32];

    fprintf(out, "    <testcase classname=\"%s\" name=\"%s\"", verify_part_name(report, part, name),
            mp_verify_level_name(part->level));
    if (part->faults == 0 && !figures) {
        fputs("/>\n", out);
        return;
    }
    fputs(">\n", out);
    if (part->faults > 0) {
        fprintf(out, "      <failure message=\"%" PRIu64 " fault%s\">\n", part->faults,
                plural(part->faults));
        put_part(out, report, part, "", verify_put_xml);
        fputs("</failure>\n", out);
    }
    if (figures) {
        fputs("      <system-out>\n", out);
        put_numeric(out, report, "", verify_put_xml);
        fputs("</system-out>\n", out);
    }
    fputs("    </testcase>\n", out);
}

static void write_junit(FILE *out, const mp_verify_report *report, const char *name)
{
    size_t failures = 0;

    (void)name;
    for (size_t i = 0; i < report->num_parts; i++)
        failures += report->parts[i].faults > 0;
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<testsuites>\n"
            "  <testsuite name=\"moepack verify\" tests=\"%zu\" failures=\"%zu\" errors=\"0\" "
            "skipped=\"0\">\n",
            report->num_parts, failures);
    for (size_t i = 0; i < report->num_parts; i++)
        write_junit_case(out, report, &report->parts[i]);
    fputs("  </testsuite>\n</testsuites>\n", out);
}

/* Writes the report in a format of files. name: of what was checked. */
typedef void write_report(FILE *out, const mp_verify_report *report, const char *name);

static int write_file(const char *path, write_report *write, const verify_options *o,
                      const mp_verify_report *report, mp_error *err)
{
    FILE *out = path ? fopen(path, "w") : NULL;

    if (!path)
        return 0;
    if (!out)
        return cmd_fail(err, MP_ERR_IO, "cannot write \"%s\": %s", path, strerror(errno));
    write(out, report, o->out);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed)
        return cmd_fail(err, MP_ERR_IO, "cannot write \"%s\": %s", path,
                        errno ? strerror(errno) : "write error");
    return 0;
}

/* ------------------------------------------------------------------------
 * The command
 */

static int print_report(const verify_options *o, const mp_verify_report *report, mp_error *err)
{
    int rc = write_file(o->junit, write_junit, o, report, err);

    if (rc == 0)
        rc = write_file(o->html, verify_write_html, o, report, err);
    if (rc == 0 && o->common.json) {
        rc = print_report_json(report, err);
    } else if (rc == 0 && o->tap) {
        print_tap(report);
    } else if (rc == 0) {
        output_ink ink = ink_for(stdout, &o->common);

        print_text(report, &ink);
    }
    /* The faults are on standard output; there is nothing to add. */
    return rc == 0 && report->total_faults > 0 ? MP_ERR_CHECK : rc;
}

static int check_options(const verify_options *o, mp_verify_level level, mp_error *err)
{
    const char *name = mp_verify_level_name(level);

    if (level >= MP_VERIFY_EXACT && !o->source)
        return cmd_fail(err, MP_ERR_USAGE, "--level %s needs --source", name);
    if (o->sample && level < MP_VERIFY_EXACT)
        return cmd_fail(err, MP_ERR_USAGE, "--sample is for levels exact and numeric, not %s",
                        name);
    if (o->tokens && level < MP_VERIFY_NUMERIC)
        return cmd_fail(err, MP_ERR_USAGE, "--tokens is for level numeric, not %s", name);
    if (o->tolerance > 0 && level < MP_VERIFY_NUMERIC && mp_is_packed(o->out))
        return cmd_fail(err, MP_ERR_USAGE, "--tolerance is for level numeric, not %s", name);
    if (o->tap && o->common.json)
        return cmd_fail(err, MP_ERR_USAGE, "--tap and --json cannot be used together");
    return 0;
}

/* A delta: all of it, against the version that it changes. */
static int verify_delta(const verify_options *o, mp_error *err)
{
    mp_verify_report report;
    mp_context context;

    if (o->level != LEVEL_FROM_SOURCE || o->layers || o->ranks || o->sample || o->tokens ||
        o->tolerance > 0)
        return cmd_fail(err, MP_ERR_USAGE,
                        "\"%s\" is a delta: no other option selects what to check, only --source",
                        o->out);
    if (o->tap && o->common.json)
        return cmd_fail(err, MP_ERR_USAGE, "--tap and --json cannot be used together");
    cmd_context(&o->common, &context);
    print_io(&o->common, o->out);
    print_io(&o->common, o->source);
    int rc = mp_delta_verify(o->out, o->source, &context, &report, err);
    progress_clear();
    if (rc != 0)
        return rc;
    rc = print_report(o, &report, err);
    mp_verify_report_release(&report);
    return rc;
}

static int run_verify(const void *values, mp_error *err)
{
    const verify_options *o = values;
    int level = o->level;
    mp_verify_report report;
    mp_context context;

    if (mp_is_delta(o->out))
        return verify_delta(o, err);
    if (level == LEVEL_FROM_SOURCE)
        level = o->source ? MP_VERIFY_EXACT : MP_VERIFY_DIGEST;
    if (check_options(o, (mp_verify_level)level, err) != 0)
        return err->code;

    mp_verify_options options = {
        .size = sizeof(mp_verify_options),
        .level = (mp_verify_level)level,
        .source = o->source,
        .layers = o->layers,
        .ranks = o->ranks,
        .placement = o->placement,
        .sample = (uint32_t)o->sample,
        .seed = o->seed,
        .tokens = o->tokens,
        .tolerance = o->tolerance,
    };
    cmd_context(&o->common, &context);
    print_io(&o->common, o->out);
    print_io(&o->common, o->source);
    int rc = mp_verify(o->out, &options, &context, &report, err);
    progress_clear();
    if (rc != 0)
        return rc;
    rc = print_report(o, &report, err);
    mp_verify_report_release(&report);
    return rc;
}

static const cmd_choice levels[] = {
    {"structure", MP_VERIFY_STRUCTURE},
    {"digest", MP_VERIFY_DIGEST},
    {"exact", MP_VERIFY_EXACT},
    {"numeric", MP_VERIFY_NUMERIC},
    {NULL, 0},
};

static const cmd_option options[] = {
    OPT_CHOICE(0, "level", "LEVEL", verify_options, level, levels,
               "level of checking; by default exact with --source, otherwise digest"),
    OPT_STRING(0, "source", "CKPT", verify_options, source,
               "the checkpoint that was packed, loaded or converted"),
    OPT_WORDS(0, "layers", "LIST", verify_options, layers,
              "check the bytes of these layers only: numbers, ranges, prefixes"),
    OPT_WORDS(0, "ranks", "LIST", verify_options, ranks,
              "check the bytes of these ranks only: numbers, ranges"),
    OPT_STRING(0, "placement", "FILE", verify_options, placement,
               "where the experts of a snapshot are"),
    OPT_U64(0, "sample", "N", verify_options, sample, 1, UINT32_MAX,
            "check only N routed experts of each layer against the source"),
    OPT_U64(0, "tokens", "N", verify_options, tokens, 1, 65536,
            "at level numeric, route N tokens per layer (default 64)"),
    OPT_U64(0, "seed", "N", verify_options, seed, 0, UINT64_MAX,
            "seed of the sample and of the tokens"),
    OPT_DOUBLE(0, "tolerance", "X", verify_options, tolerance, 1e-9, 1e9,
               "relative error to accept; by default that of the target or scheme"),
    OPT_FLAG(0, "tap", verify_options, tap, "print TAP instead of text"),
    OPT_STRING(0, "junit", "FILE", verify_options, junit, "write a JUnit XML report to FILE"),
    OPT_STRING(0, "html", "FILE", verify_options, html, "write the report to FILE as a web page"),
    OPT_IO(verify_options),
    OPT_JSON(verify_options),
    OPT_END,
};

static const cmd_argument arguments[] = {ARG_ONE("OUT", verify_options, out), ARG_END};
static const verify_options defaults = {.level = LEVEL_FROM_SOURCE};

const command command_verify = {
    .name = "verify",
    .summary = "check a pack, a snapshot or a converted checkpoint",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_verify,
};
