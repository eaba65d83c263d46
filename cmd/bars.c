/* SPDX-License-Identifier: Apache-2.0 */
/* Loads as bars of characters, and what all charts are made with. */
#include "charts.h"
#include "output.h"

#include <inttypes.h>
#include <stdlib.h>

char *thousandths(double value, char text[THOUSANDTHS])
{
    uint64_t number = (uint64_t)(value * 1000 + 0.5);
    snprintf(text, THOUSANDTHS, "%" PRIu64 ".%03" PRIu64, number / 1000, number % 1000);
    return text;
}

int text_finish(FILE *out, char **text, mp_error *err)
{
    bool failed = ferror(out) != 0;
    if (fclose(out) == 0 && !failed && *text)
        return 0;
    free(*text);
    *text = NULL;
    return cmd_fail(err, MP_ERR_IO, "out of memory");
}

/* A bar for a fraction of 1, padded to `columns`. */
static void write_bar(FILE *out, double fraction, uint32_t columns)
{
    uint32_t filled = (uint32_t)(fraction * columns + 0.5);
    for (uint32_t i = 0; i < columns; i++)
        fputc(i < filled ? '#' : '.', out);
}

static void write_balancedness(FILE *out, const mp_eplb_report *report, uint32_t columns)
{
    char number[THOUSANDTHS];
    fprintf(out, "  %s ", thousandths(report->balancedness_trivial, number));
    write_bar(out, report->balancedness_trivial, columns);
    fprintf(out, "  %s ", thousandths(report->balancedness_refined, number));
    write_bar(out, report->balancedness_refined, columns);
    fputc('\n', out);
}

int eplb_bars(const mp_eplb *e, uint32_t columns, char **text, mp_error *err)
{
    size_t length;
    FILE *out = open_memstream(text, &length);
    if (!out)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    fprintf(out, "layer  %-*s  balanced\n", (int)columns + 6, "trivial");
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        fprintf(out, "%5u", mp_placement_layer(&e->placement, layer));
        write_balancedness(out, &e->report[layer], columns);
    }
    fputs(" mean", out);
    write_balancedness(out, &e->mean, columns);
    return text_finish(out, text, err);
}

int rank_load_bars(const uint64_t *choices, uint32_t ep, uint32_t columns, char **text,
                   mp_error *err)
{
    size_t length;
    uint64_t largest = 1;
    FILE *out = open_memstream(text, &length);
    if (!out)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    for (uint32_t rank = 0; rank < ep; rank++)
        largest = choices[rank] > largest ? choices[rank] : largest;
    fputs(" rank     choices\n", out);
    for (uint32_t rank = 0; rank < ep; rank++) {
        fprintf(out, "%5u %11" PRIu64 " ", rank, choices[rank]);
        write_bar(out, (double)choices[rank] / (double)largest, columns);
        fputc('\n', out);
    }
    return text_finish(out, text, err);
}
