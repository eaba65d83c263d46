/* SPDX-License-Identifier: Apache-2.0 */
/* moepack verify --html: the report as one page, for people. It loads nothing, runs nothing, and is
 * XML too, so that programs can read it. Every text that a file gives goes through verify_put_xml;
 * the rest are constants. It is light or dark as the reader's system is, and wide tables scroll by
 * themselves. */
#include "output.h"
#include "verify.h"

#include <inttypes.h>

static const char *const style =
    "<style>\n"
    ":root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --line: #d4d4d4; "
    "--good: #2e7d32; --bad: #b3261e; }\n"
    "@media (prefers-color-scheme: dark) {\n"
    ":root { --ink: #e4e4e4; --paper: #161616; --line: #444444; --good: #81c784; "
    "--bad: #ff8a80; }\n"
    "}\n"
    "body { font: 15px/1.45 sans-serif; color: var(--ink); background: var(--paper); "
    "max-width: 72em; margin: 2em auto; padding: 0 1em; }\n"
    "h1 { font-size: 1.4em; overflow-wrap: anywhere; } h2 { font-size: 1.1em; margin-top: 2em; }\n"
    ".good { color: var(--good); } .bad { color: var(--bad); }\n"
    ".wide { overflow-x: auto; }\n"
    "table { border-collapse: collapse; }\n"
    "th, td { text-align: left; vertical-align: top; padding: .25em .75em; "
    "border-bottom: 1px solid var(--line); }\n"
    "td.number { text-align: right; font-variant-numeric: tabular-nums; }\n"
    "td.detail { overflow-wrap: anywhere; min-width: 20em; }\n"
    "</style>\n";

/* Opens a table; columns ends with NULL. */
static void begin_table(FILE *out, const char *heading, const char *const *columns)
{
    fprintf(out, "<h2>%s</h2>\n<div class=\"wide\"><table>\n<thead><tr>", heading);
    for (; *columns; columns++)
        fprintf(out, "<th>%s</th>", *columns);
    fputs("</tr></thead>\n<tbody>\n", out);
}

static void end_table(FILE *out)
{
    fputs("</tbody></table></div>\n", out);
}

static void put_cell(FILE *out, const char *class, const char *text)
{
    fprintf(out, "<td class=\"%s\">", class);
    verify_put_xml(out, text ? text : "");
    fputs("</td>", out);
}

/* A number, or nothing where it does not apply. */
static void put_number(FILE *out, int64_t number)
{
    if (number < 0)
        fputs("<td></td>", out);
    else
        fprintf(out, "<td class=\"number\">%" PRId64 "</td>", number);
}

static void put_summary(FILE *out, const mp_verify_report *report)
{
    char bytes[SIZE_TEXT];

    if (report->total_faults == 0)
        fputs("<p><strong class=\"good\">ok</strong>: ", out);
    else
        fprintf(out, "<p><strong class=\"bad\">FAILED</strong>: %" PRIu64 " fault%s; ",
                report->total_faults, plural(report->total_faults));
    fprintf(out,
            "level %s, %" PRIu64 " file%s, %" PRIu64 " tensor%s, %" PRIu64
            " slot%s, %s; moepack %s</p>\n",
            mp_verify_level_name(report->level), report->files, plural(report->files),
            report->tensors, plural(report->tensors), report->slots, plural(report->slots),
            size_text(report->bytes, bytes), mp_version());
}

static void put_faults(FILE *out, const mp_verify_report *report)
{
    static const char *const columns[] = {"level",  "rank",    "layer",  "slot",
                                          "tensor", "element", "detail", NULL};

    if (report->total_faults == 0)
        return;
    begin_table(out, "Faults", columns);
    for (size_t i = 0; i < report->num_faults; i++) {
        const mp_fault *fault = &report->faults[i];

        fprintf(out, "<tr><td>%s</td>", mp_verify_level_name(fault->level));
        put_number(out, fault->rank);
        put_cell(out, "name", fault->layer);
        put_number(out, fault->slot);
        put_cell(out, "name", fault->tensor ? verify_short_name(fault) : NULL);
        put_number(out, fault->element);
        put_cell(out, "detail", fault->detail);
        fputs("</tr>\n", out);
    }
    end_table(out);
    if (report->total_faults > report->num_faults)
        fprintf(out, "<p>... and %" PRIu64 " more</p>\n",
                report->total_faults - report->num_faults);
}

static void put_parts(FILE *out, const mp_verify_report *report)
{
    static const char *const columns[] = {"part", "level", "faults", NULL};

    begin_table(out, "Parts", columns);
    for (size_t i = 0; i < report->num_parts; i++) {
        const mp_verify_part *part = &report->parts[i];
        char name[32];

        fprintf(out, "<tr><td>%s</td><td>%s</td><td class=\"number %s\">%" PRIu64 "</td></tr>\n",
                verify_part_name(report, part, name), mp_verify_level_name(part->level),
                part->faults == 0 ? "good" : "bad", part->faults);
    }
    end_table(out);
}

static void put_figures(FILE *out, const mp_verify_report *report)
{
    static const char *const columns[] = {"layer",   "kernel",  "identical",
                                          "rel. L2", "within",  "cosine diff",
                                          "max abs", "weights", NULL};

    if (report->num_numeric == 0)
        return;
    begin_table(out, "What the kernel computes, beside the source", columns);
    for (size_t i = 0; i < report->num_numeric; i++) {
        const mp_verify_numeric *n = &report->numeric[i];
        const double figures[] = {n->rel_l2, n->tolerance, n->cosine_diff, n->max_abs,
                                  n->weights_rel_l2};
        char text[NUMBER_TEXT];

        fputs("<tr>", out);
        put_cell(out, "name", n->layer);
        put_cell(out, "name", n->emulation);
        put_cell(out, "name", n->bit_identical ? "yes" : "no");
        for (size_t f = 0; f < sizeof figures / sizeof figures[0]; f++)
            put_cell(out, "number", verify_number_text(figures[f], text));
        fputs("</tr>\n", out);
    }
    end_table(out);
}

void verify_write_html(FILE *out, const mp_verify_report *report, const char *name)
{
    fputs("<!DOCTYPE html>\n"
          "<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n"
          "<meta charset=\"utf-8\"/>\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
          "<title>moepack verify: ",
          out);
    verify_put_xml(out, name);
    fprintf(out, "</title>\n%s</head>\n<body>\n<h1>", style);
    verify_put_xml(out, name);
    fputs("</h1>\n", out);
    put_summary(out, report);
    put_faults(out, report);
    put_figures(out, report);
    put_parts(out, report);
    fputs("</body>\n</html>\n", out);
}
