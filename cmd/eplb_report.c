/* SPDX-License-Identifier: Apache-2.0 */
/* The report of moepack eplb, as a table or in JSON. */
#include "eplb.h"
#include "output.h"

#include <inttypes.h>

static const char *const source_names[] = {
    [MP_EPLB_FROM_EPLB] = "eplb",
    [MP_EPLB_FROM_SEARCH] = "search",
    [MP_EPLB_FROM_PATH] = "path",
};

/* What moves of a layer weigh, or of all of them. */
static double moved_bytes(const mp_eplb *e, const double *bytes, uint32_t layer)
{
    return bytes ? e->report[layer].moves * bytes[layer] : 0;
}

/* A number that is whole but in a mean; null where there is none. */
static json_t *whole_json(double value, bool known, bool mean)
{
    if (!known)
        return json_null();
    return mean ? json_real(value) : json_integer((json_int_t)value);
}

/* bytes: of all moves, or below 0. */
static json_t *figures_json(const mp_eplb_report *r, bool moves, double bytes, bool mean)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:o, s:o}", "balancedness_trivial",
                     r->balancedness_trivial, "balancedness", r->balancedness,
                     "balancedness_refined", r->balancedness_refined, "max_load", r->max_load,
                     "max_load_refined", r->max_load_refined, "lower_bound", r->lower_bound,
                     "colocated_replicas", whole_json(r->colocated_replicas, true, mean),
                     "worst_window", r->worst_window, "moves", whole_json(r->moves, moves, mean),
                     "bytes_moved", whole_json(bytes, moves && bytes >= 0, mean));
}

static json_t *layer_json(const eplb_options *o, const mp_eplb *e, const double *bytes,
                          uint32_t layer)
{
    const mp_eplb_report *r = &e->report[layer];
    json_t *json = json_pack("{s:i}", "layer", (int)mp_placement_layer(&e->placement, layer));
    json_t *figures =
        figures_json(r, o->from != NULL, bytes ? moved_bytes(e, bytes, layer) : -1, false);

    if (json_object_update(json, figures) != 0 ||
        json_object_set_new(json, "source", json_string(source_names[r->source])) != 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(figures);
    return json;
}

static int print_json_report(const eplb_options *o, const mp_eplb *e, uint32_t windows,
                             const double *bytes, double moves, double moved, mp_error *err)
{
    uint32_t count = e->placement.layers, chosen = 0;
    double of_chosen = 0;
    json_t *layers = json_array(), *json = NULL;

    for (uint32_t layer = 0; layer < count; layer++) {
        chosen += e->report[layer].chosen;
        of_chosen += e->report[layer].chosen ? moved_bytes(e, bytes, layer) : 0;
    }
    json_t *mean = figures_json(&e->mean, o->from != NULL,
                                bytes ? of_chosen / (chosen ? chosen : 1) : -1, true);
    bool complete = layers && mean;

    for (uint32_t layer = 0; complete && layer < count; layer++)
        complete = json_array_append_new(layers, layer_json(o, e, bytes, layer)) == 0;
    if (complete)
        json = json_pack("{s:O, s:O, s:i, s:o, s:o}", "layers", layers, "mean", mean, "windows",
                         (int)windows, "moves", whole_json(moves, o->from != NULL, false),
                         "bytes_moved", whole_json(moved, o->from && bytes, false));
    json_decref(layers);
    json_decref(mean);
    return print_json(json, err);
}

static void print_figures(const eplb_options *o, const mp_eplb_report *r, uint32_t windows,
                          int decimals)
{
    printf("  %7.4f  %7.4f  %7.4f  %12.6g  %12.6g  %12.6g  %9.*f", r->balancedness_trivial,
           r->balancedness, r->balancedness_refined, r->max_load, r->max_load_refined,
           r->lower_bound, decimals, r->colocated_replicas);
    if (windows > 1)
        printf("  %12.4f", r->worst_window);
    if (o->from)
        printf("  %5.*f", decimals, r->moves);
    putchar('\n');
}

static void print_table(const eplb_options *o, const mp_eplb *e, uint32_t windows)
{
    output_ink ink = ink_for(stdout, &o->common);
    const char *result = o->algorithm == MP_EPLB_BEST ? "best" : "refined";

    printf("%s         balancedness                 largest GPU load\n"
           "layer  trivial     eplb  %7s          eplb  %12s   lower bound  colocated%s%s%s\n",
           ink.bold, result, result, windows > 1 ? "  worst window" : "", o->from ? "  moves" : "",
           ink.plain);
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        printf("%5u", mp_placement_layer(&e->placement, layer));
        print_figures(o, &e->report[layer], windows, 0);
    }
    printf(" mean");
    print_figures(o, &e->mean, windows, 2);
}

int eplb_print_report(const eplb_options *o, const mp_eplb *e, uint32_t windows,
                      const double *bytes, mp_error *err)
{
    double moves = 0, moved = 0;

    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        moves += e->report[layer].moves;
        moved += moved_bytes(e, bytes, layer);
    }
    if (o->common.json)
        return print_json_report(o, e, windows, bytes, moves, moved, err);
    print_table(o, e, windows);
    if (o->from)
        printf("%.0f moves", moves);
    if (o->from && bytes)
        printf(" of %.0f bytes", moved);
    if (o->from)
        putchar('\n');
    return 0;
}
