/* SPDX-License-Identifier: Apache-2.0 */
/* Errors of requantization: a table, JSON, and a bound on them. */
#include "errors.h"

#include "output.h"

#include <math.h>
#include <string.h>

typedef unsigned long long count_t;

/* Width of a column of names: that of its longest one, and of its heading. */
static int width_of(const mp_layer_error *errors, size_t count, bool layers, const char *heading)
{
    size_t width = strlen(heading);

    for (size_t i = 0; i < count; i++) {
        size_t n = strlen(layers ? errors[i].layer : errors[i].matrix);

        if (n > width)
            width = n;
    }
    return (int)width;
}

static const mp_layer_error *largest_error(const mp_layer_error *errors, size_t count)
{
    const mp_layer_error *largest = errors;

    for (size_t i = 1; i < count; i++)
        if (errors[i].relative_rms > largest->relative_rms)
            largest = &errors[i];
    return largest;
}

static void print_row(const mp_layer_error *e, int layer_width, int matrix_width, FILE *out)
{
    print_name(out, e->layer);
    fprintf(out, "%*s  %-*s  %9.3e  ", layer_width - (int)strlen(e->layer), "", matrix_width,
            e->matrix, e->relative_rms);
    if (isfinite(e->sqnr_db))
        fprintf(out, "%7.2f", e->sqnr_db);
    else
        fprintf(out, "%7s", "exact");
    fprintf(out, "  %9llu  %9llu  %18llu\n", (count_t)e->saturated, (count_t)e->flushed,
            (count_t)e->requantized_blocks);
}

void print_error_table(const mp_layer_error *errors, size_t count, FILE *out)
{
    int layers = width_of(errors, count, true, "layer");
    int matrices = width_of(errors, count, false, "projection");
    count_t saturated = 0, flushed = 0, blocks = 0, elements = 0;
    const mp_layer_error *largest;

    if (count == 0)
        return;
    fprintf(out, "%-*s  %-*s  %9s  %7s  %9s  %9s  %18s\n", layers, "layer", matrices, "projection",
            "rel. RMS", "SQNR dB", "saturated", "flushed", "requantized blocks");
    for (size_t i = 0; i < count; i++) {
        print_row(&errors[i], layers, matrices, out);
        saturated += errors[i].saturated;
        flushed += errors[i].flushed;
        blocks += errors[i].requantized_blocks;
        elements += errors[i].elements;
    }
    largest = largest_error(errors, count);
    fprintf(out, "largest relative RMS error %.3e, of ", largest->relative_rms);
    print_name(out, largest->layer);
    fprintf(out, " %s; %llu saturated, %llu flushed of %llu weights, %llu requantized blocks\n",
            largest->matrix, saturated, flushed, elements, blocks);
}

json_t *error_table_json(const mp_layer_error *errors, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < count; i++) {
        const mp_layer_error *e = &errors[i];
        json_t *row = json_pack("{s:s, s:s, s:f, s:o, s:I, s:I, s:I, s:I}", "layer", e->layer,
                                "projection", e->matrix, "relative_rms", e->relative_rms, "sqnr_db",
                                isfinite(e->sqnr_db) ? json_real(e->sqnr_db) : json_null(),
                                "saturated", (json_int_t)e->saturated, "flushed",
                                (json_int_t)e->flushed, "elements", (json_int_t)e->elements,
                                "requantized_blocks", (json_int_t)e->requantized_blocks);

        if (json_array_append_new(list, row) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

int check_errors_above(const mp_layer_error *errors, size_t count, double limit, mp_error *err)
{
    const mp_layer_error *largest;
    size_t above = 0;

    for (size_t i = 0; i < count; i++)
        above += errors[i].relative_rms > limit;
    if (above == 0)
        return 0;
    largest = largest_error(errors, count);
    return cmd_fail(err, MP_ERR_CHECK,
                    "%s %s: relative RMS error %.4g is above %.4g (%zu of %zu projections)",
                    largest->layer, largest->matrix, largest->relative_rms, limit, above, count);
}
