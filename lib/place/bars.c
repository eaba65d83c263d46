/* SPDX-License-Identifier: Apache-2.0 */
/* Loads as bars of characters, and what all texts of loads are made with. */
#include "place/text.h"

#include <inttypes.h>
#include <moepack/place.h>
#include <stdlib.h>

#include "base/error.h"

char *mp_thousandths(double value, char text[MP_THOUSANDTHS])
{
    uint64_t thousandths = (uint64_t)(value * 1000 + 0.5);
    snprintf(text, MP_THOUSANDTHS, "%" PRIu64 ".%03" PRIu64, thousandths / 1000,
             thousandths % 1000);
    return text;
}

double mp_mean(const double *values, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += values[i];
    return sum / count;
}

double mp_balance(const double *load, uint32_t ep)
{
    double largest = 0;
    for (uint32_t gpu = 0; gpu < ep; gpu++)
        if (load[gpu] > largest)
            largest = load[gpu];
    return largest > 0 ? mp_mean(load, ep) / largest : 1;
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
    char number[MP_THOUSANDTHS];
    fprintf(out, "  %s ", mp_thousandths(report->balancedness_trivial, number));
    write_bar(out, report->balancedness_trivial, columns);
    fprintf(out, "  %s ", mp_thousandths(report->balancedness_refined, number));
    write_bar(out, report->balancedness_refined, columns);
    fputc('\n', out);
}

int mp_eplb_bars(const mp_eplb *e, uint32_t columns, char **text, mp_error *err)
{
    size_t length;
    FILE *out = open_memstream(text, &length);
    if (!out)
        return mp_fail_memory(err);
    fprintf(out, "layer  %-*s  balanced\n", (int)columns + 6, "trivial");
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        fprintf(out, "%5u", mp_placement_layer(&e->placement, layer));
        write_balancedness(out, &e->report[layer], columns);
    }
    fputs(" mean", out);
    write_balancedness(out, &e->mean, columns);
    return mp_text_finish(out, text, err);
}

int mp_rank_load_bars(const uint64_t *choices, uint32_t ep, uint32_t columns, char **text,
                      mp_error *err)
{
    size_t length;
    uint64_t largest = 1;
    FILE *out = open_memstream(text, &length);
    if (!out)
        return mp_fail_memory(err);
    for (uint32_t rank = 0; rank < ep; rank++)
        largest = choices[rank] > largest ? choices[rank] : largest;
    fputs(" rank     choices\n", out);
    for (uint32_t rank = 0; rank < ep; rank++) {
        fprintf(out, "%5u %11" PRIu64 " ", rank, choices[rank]);
        write_bar(out, (double)choices[rank] / (double)largest, columns);
        fputc('\n', out);
    }
    return mp_text_finish(out, text, err);
}
