/* SPDX-License-Identifier: Apache-2.0 */
/* Load balancing, its refinement and its drawings. */
#include <criterion/criterion.h>

#include <jansson.h>
#include <math.h>
#include <moepack/place.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../cmd/charts.h"

static mp_error err;

TestSuite(eplb, .timeout = 120);

/* ------------------------------------------------------------------------
 * Golden data
 */

static uint32_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_integer(value), "%s", key);
    return (uint32_t)json_integer_value(value);
}

static mp_counts counts_of(const json_t *rows)
{
    mp_counts counts;
    mp_recording r = {0};
    json_t *object = json_pack("{s:O}", "logical_count", rows);
    char *text = json_dumps(object, 0);
    cr_assert_eq(mp_recording_add(&r, text, strlen(text), 0, &err), 0, "%s", err.message);
    cr_assert_eq(mp_recording_sum(&r, 0, &counts, &err), 0, "%s", err.message);
    mp_recording_release(&r);
    free(text);
    json_decref(object);
    return counts;
}

static void compare(const json_t *rows, const int32_t *found, uint32_t columns, const char *what)
{
    size_t layer, i;
    json_t *row, *value;
    json_array_foreach(rows, layer, row)
    {
        cr_assert_eq(json_array_size(row), columns);
        json_array_foreach(row, i, value)
        {
            cr_assert_eq(found[layer * columns + i], json_integer_value(value),
                         "%s of layer %zu, column %zu", what, layer, i);
        }
    }
}

Test(eplb, golden)
{
    json_error_t where;
    json_t *root = json_load_file("testdata/golden/placement.json", 0, &where), *one;
    cr_assert_not_null(root, "%s", where.text);
    const json_t *cases = json_object_get(root, "eplb");
    size_t c;
    cr_assert_gt(json_array_size(cases), 0);
    json_array_foreach(cases, c, one)
    {
        const char *algorithm = json_string_value(json_object_get(one, "algorithm"));
        mp_eplb_options options = {
            .size = sizeof(mp_eplb_options),
            .num_physical = number(one, "num_physical"),
            .ep = number(one, "ep"),
            .nodes = number(one, "nodes"),
            .groups = number(one, "groups"),
            .algorithm = strcmp(algorithm, "global") == 0 ? MP_EPLB_GLOBAL : MP_EPLB_HIERARCHICAL};
        mp_counts counts = counts_of(json_object_get(one, "logical_count"));
        mp_eplb e;
        cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0, "%s", err.message);
        compare(json_object_get(one, "physical_to_logical_map"), e.placement.map,
                options.num_physical, "map");
        compare(json_object_get(one, "replica_rank"), e.replica_rank, options.num_physical, "rank");
        compare(json_object_get(one, "count"), e.replica_count, counts.num_logical, "count");
        mp_eplb_release(&e);
        mp_counts_release(&counts);
    }
    json_decref(root);
}

/* ------------------------------------------------------------------------
 * An independent balancing: the specification word for word, slow, without sorting or heaps
 */

#define MOST 512

static void pack_slowly(const float *w, int n, int packs, int *pack, int *rank)
{
    float weight[MOST] = {0};
    int held[MOST] = {0};
    bool taken[MOST] = {false};
    for (int step = 0; step < n; step++) {
        int item = -1, to = -1;
        if (n == packs) {
            pack[step] = step;
            rank[step] = 0;
            continue;
        }
        for (int i = 0; i < n; i++)
            if (!taken[i] && (item < 0 || w[i] > w[item]))
                item = i;
        for (int k = 0; k < packs; k++)
            if (held[k] < n / packs && (to < 0 || weight[k] < weight[to]))
                to = k;
        taken[item] = true;
        pack[item] = to;
        rank[item] = held[to]++;
        weight[to] += w[item];
    }
}

static void balance_slowly(const float *w, int n, int p, int groups, int nodes, int gpus, int *map,
                           int *replica)
{
    float group_weight[MOST] = {0};
    int node_of[MOST], rank_of[MOST], order[MOST];
    int size = n / groups;
    for (int e = 0; e < n; e++)
        group_weight[e / size] += w[e];
    pack_slowly(group_weight, groups, nodes, node_of, rank_of);
    for (int e = 0; e < n; e++) {
        int g = e / size;
        order[(node_of[g] * (groups / nodes) + rank_of[g]) * size + e % size] = e;
    }
    int per_node = n / nodes, physical = p / nodes, per_gpu = p / gpus;
    for (int node = 0; node < nodes; node++) {
        float share[MOST];
        int expert[MOST], number_of[MOST], count[MOST] = {0}, gpu[MOST], place[MOST];
        for (int i = 0; i < physical; i++) {
            int best = i;
            if (i >= per_node) {
                best = 0;
                for (int e = 1; e < per_node; e++)
                    if (w[order[node * per_node + e]] / (float)count[e] >
                        w[order[node * per_node + best]] / (float)count[best])
                        best = e;
            }
            expert[i] = best;
            number_of[i] = count[best]++;
        }
        for (int i = 0; i < physical; i++)
            share[i] = w[order[node * per_node + expert[i]]] / (float)count[expert[i]];
        pack_slowly(share, physical, gpus / nodes, gpu, place);
        for (int i = 0; i < physical; i++) {
            int at = node * physical + gpu[i] * per_gpu + place[i];
            map[at] = order[node * per_node + expert[i]];
            replica[at] = number_of[i];
        }
    }
}

/* A weight with many ties, some zeros, and a heavy tail. */
static float random_weight(void)
{
    int kind = rand() % 4;
    if (kind == 0)
        return (float)(rand() % 4);
    if (kind == 1)
        return (float)(rand() % 1000);
    return floorf(100 / (0.001f + (float)rand() / (float)RAND_MAX));
}

static void check_against_slow(int nodes, int node_gpus, int node_groups, int size, int per_gpu,
                               mp_eplb_algorithm algorithm)
{
    int n = nodes * node_groups * size, gpus = nodes * node_gpus, p = gpus * per_gpu;
    bool global = algorithm == MP_EPLB_GLOBAL;
    int map[MOST], replica[MOST];
    mp_counts counts = {.layers = 3, .num_logical = (uint32_t)n};
    counts.count = malloc((size_t)(3 * n) * sizeof(float));
    for (int i = 0; i < 3 * n; i++)
        counts.count[i] = random_weight();
    mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                               .num_physical = (uint32_t)p,
                               .ep = (uint32_t)gpus,
                               .nodes = (uint32_t)nodes,
                               .groups = (uint32_t)(nodes * node_groups),
                               .algorithm = algorithm};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0, "%s", err.message);
    for (int layer = 0; layer < 3; layer++) {
        balance_slowly(counts.count + layer * n, n, p, global ? 1 : nodes * node_groups,
                       global ? 1 : nodes, gpus, map, replica);
        cr_assert_arr_eq(e.placement.map + layer * p, map, (size_t)p * sizeof(int));
        cr_assert_arr_eq(e.replica_rank + layer * p, replica, (size_t)p * sizeof(int));
    }
    cr_assert_eq(mp_placement_check(&e.placement, options.ep, NULL, &err), 0, "%s", err.message);
    mp_eplb_release(&e);
    mp_counts_release(&counts);
}

Test(eplb, random_cases_against_a_direct_transcription)
{
    srand(20261122);
    for (int round = 0; round < 400; round++) {
        int nodes = 1 + rand() % 4, node_gpus = 1 + rand() % 6, node_groups = 1 + rand() % 3;
        int size = 1 + rand() % 7, least = (node_groups * size + node_gpus - 1) / node_gpus;
        int per_gpu = least + rand() % 4;
        check_against_slow(nodes, node_gpus, node_groups, size, per_gpu, MP_EPLB_HIERARCHICAL);
        check_against_slow(nodes, node_gpus, node_groups, size, per_gpu, MP_EPLB_GLOBAL);
        check_against_slow(nodes, node_gpus, node_groups, size, per_gpu, MP_EPLB_AUTO);
    }
}

/* ------------------------------------------------------------------------
 * Reports and refinement
 */

static double zipf(uint32_t rank, double exponent)
{
    return floor(1e6 * pow(rank + 1, -exponent));
}

/* Zipf loads, differently shuffled in every layer, and each changed by up to half of `noise`. */
static mp_counts zipf_counts(uint32_t layers, uint32_t n, double exponent, double noise)
{
    mp_counts counts = {.layers = layers, .num_logical = n};
    counts.count = malloc((size_t)layers * n * sizeof(float));
    for (uint32_t layer = 0; layer < layers; layer++) {
        float *w = counts.count + (size_t)layer * n;
        for (uint32_t i = 0; i < n; i++)
            w[i] =
                (float)floor(zipf(i, exponent) * (1 + noise * ((double)rand() / RAND_MAX - 0.5)));
        for (uint32_t i = n - 1; i > 0; i--) {
            uint32_t j = (uint32_t)rand() % (i + 1);
            float t = w[i];
            w[i] = w[j];
            w[j] = t;
        }
    }
    return counts;
}

/* Recomputes everything that the report says from the maps alone. */
static void check_report(const mp_eplb *plain, const mp_eplb *e, const mp_counts *counts)
{
    uint32_t n = counts->num_logical, p = e->placement.num_physical, room = p / e->ep;
    double *load = malloc(e->ep * sizeof(*load)), mean_lower_bound = 0;
    for (uint32_t layer = 0; layer < counts->layers; layer++) {
        const int32_t *row = mp_placement_row(&e->placement, layer);
        const float *w = counts->count + (size_t)layer * n;
        const mp_eplb_report *r = &e->report[layer];
        uint32_t copies[MOST] = {0}, colocated = 0;
        double total = 0, largest_share = 0, largest = 0;
        memset(load, 0, e->ep * sizeof(*load));
        for (uint32_t i = 0; i < p; i++)
            copies[row[i]]++;
        for (uint32_t i = 0; i < p; i++) {
            load[i / room] += (double)w[row[i]] / copies[row[i]];
            for (uint32_t j = i / room * room; j < i; j++)
                if (row[j] == row[i]) {
                    colocated++;
                    break;
                }
        }
        for (uint32_t i = 0; i < n; i++) {
            cr_assert_eq((int32_t)copies[i], e->replica_count[layer * n + i]);
            total += w[i];
            largest_share = fmax(largest_share, (double)w[i] / copies[i]);
        }
        for (uint32_t gpu = 0; gpu < e->ep; gpu++) {
            largest = fmax(largest, load[gpu]);
            cr_assert_float_eq(load[gpu], e->load[layer * e->ep + gpu], 1e-9 * total);
        }
        double bound = fmax(total / e->ep, largest_share);
        cr_assert_float_eq(r->lower_bound, bound, 1e-12 * total);
        cr_assert_float_eq(r->max_load_refined, largest, 1e-12 * total);
        cr_assert_float_eq(r->balancedness_refined, total / e->ep / largest, 1e-12);
        cr_assert_eq(r->colocated_replicas, colocated);
        cr_assert_leq(r->max_load_refined, r->max_load);
        cr_assert_geq(r->max_load_refined, r->lower_bound * (1 - 1e-12));
        cr_assert_leq(colocated, plain->report[layer].colocated_replicas);
        cr_assert_eq(r->max_load, plain->report[layer].max_load_refined);
        cr_assert_eq(r->balancedness, plain->report[layer].balancedness_refined);
        mean_lower_bound += bound / counts->layers;
    }
    cr_assert_float_eq(e->mean.lower_bound, mean_lower_bound, 1e-9 * mean_lower_bound);
    free(load);
}

/* Replicas of an expert are numbered 0, 1, ... in some order. */
static void check_ranks(const mp_eplb *e)
{
    uint32_t p = e->placement.num_physical, n = e->placement.num_logical;
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        const int32_t *row = mp_placement_row(&e->placement, layer);
        uint64_t seen[MOST] = {0};
        for (uint32_t i = 0; i < p; i++)
            seen[row[i]] |= UINT64_C(1) << e->replica_rank[layer * p + i];
        for (uint32_t i = 0; i < n; i++)
            cr_assert_eq(seen[i], (UINT64_C(1) << e->replica_count[layer * n + i]) - 1);
    }
}

static void check_nodes(const mp_eplb *plain, const mp_eplb *e, uint32_t nodes)
{
    uint32_t p = e->placement.num_physical, part = p / nodes;
    for (uint32_t i = 0; i < e->placement.layers * nodes; i++) {
        int32_t balance[MOST] = {0};
        for (uint32_t j = i * part; j < (i + 1) * part; j++) {
            balance[e->placement.map[j]]++;
            balance[plain->placement.map[j]]--;
        }
        for (uint32_t expert = 0; expert < e->placement.num_logical; expert++)
            cr_assert_eq(balance[expert], 0, "experts stay in their node");
    }
}

Test(eplb, refinement_keeps_its_promises)
{
    srand(5);
    for (int round = 0; round < 60; round++) {
        uint32_t nodes = 1u << rand() % 3, groups = nodes * (1 + (uint32_t)rand() % 2);
        uint32_t n = groups * (1 + (uint32_t)rand() % 9), ep = nodes * (1 + (uint32_t)rand() % 5);
        uint32_t room = (n + ep - 1) / ep + (uint32_t)rand() % 3;
        mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                                   .num_physical = ep * room,
                                   .ep = ep,
                                   .nodes = nodes,
                                   .groups = groups};
        mp_counts counts = zipf_counts(4, n, 0.2 + (round % 7) * 0.25, 0.2);
        mp_eplb plain, refined;
        cr_assert_eq(mp_eplb_balance(&plain, &counts, &options, NULL, &err), 0, "%s", err.message);
        options.refine = 1 + (uint32_t)rand() % 60;
        cr_assert_eq(mp_eplb_balance(&refined, &counts, &options, NULL, &err), 0, "%s",
                     err.message);
        cr_assert_eq(mp_placement_check(&refined.placement, ep, NULL, &err), 0);
        check_report(&plain, &refined, &counts);
        check_report(&plain, &plain, &counts);
        check_ranks(&refined);
        check_nodes(&plain, &refined, nodes);
        mp_eplb_release(&plain);
        mp_eplb_release(&refined);
        mp_counts_release(&counts);
    }
}

Test(eplb, refined_zipf_is_within_one_percent)
{
    srand(11);
    mp_counts counts = zipf_counts(58, 256, 1.2, 0);
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 288, .ep = 32, .refine = 100};
    mp_eplb e;
    double greedy = 0, refined = 0;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0);
    for (uint32_t layer = 0; layer < 58; layer++) {
        greedy += e.report[layer].max_load / e.report[layer].lower_bound / 58;
        refined += e.report[layer].max_load_refined / e.report[layer].lower_bound / 58;
    }
    cr_assert_gt(greedy, 1.01, "greedy alone: %f", greedy);
    cr_assert_lt(refined, 1.01, "refined: %f", refined);
    cr_assert_eq(e.mean.colocated_replicas, 0, "%f", e.mean.colocated_replicas);
    cr_assert_lt(e.mean.balancedness_trivial, e.mean.balancedness);
    mp_eplb_release(&e);
    mp_counts_release(&counts);
}

Test(eplb, copies_that_cannot_be_parted_are_reported)
{
    /* 12 physical experts on 3 GPUs; expert 0 gets ten of them, so seven sit beside another. */
    float w[] = {1000, 1, 1};
    mp_counts counts = {.layers = 1, .num_logical = 3, .count = w};
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 12, .ep = 3, .refine = 50};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0);
    cr_assert_eq(e.replica_count[0], 10);
    cr_assert_eq(e.report[0].colocated_replicas, 7);
    mp_eplb_release(&e);
}

Test(eplb, layers_never_chosen_are_balanced)
{
    float w[] = {0, 0, 0, 0, 0};
    mp_counts counts = {.layers = 1, .num_logical = 5, .count = w};
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 6, .ep = 2, .refine = 9};
    mp_eplb e;
    char *svg;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0);
    cr_assert_eq(mp_placement_check(&e.placement, 2, NULL, &err), 0, "%s", err.message);
    cr_assert_eq(e.mean.balancedness_refined, 1);
    cr_assert_eq(e.mean.max_load, 0);
    cr_assert_eq(eplb_svg(&e, &svg, &err), 0);
    free(svg);
    mp_eplb_release(&e);
}

Test(eplb, loads_near_the_largest_float)
{
    float w[] = {3e38f, 3e38f, 3e38f, 3e38f, 1, 2};
    mp_counts counts = {.layers = 1, .num_logical = 6, .count = w};
    mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                               .num_physical = 8,
                               .ep = 2,
                               .nodes = 2,
                               .groups = 2,
                               .refine = 9};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0);
    cr_assert_eq(mp_placement_check(&e.placement, 2, NULL, &err), 0, "%s", err.message);
    mp_eplb_release(&e);
}

static void refuse(mp_eplb_options options, float bad, const char *message)
{
    float w[] = {4, 3, 2, 1, 5, bad};
    mp_counts counts = {.layers = 1, .num_logical = 6, .count = w};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(e.placement.map);
    mp_eplb_release(&e);
}

Test(eplb, what_does_not_divide)
{
    const mp_eplb_options good = {
        .size = sizeof(mp_eplb_options), .num_physical = 12, .ep = 4, .nodes = 2, .groups = 2};
    mp_eplb_options o = good;
    o.num_physical = 5;
    refuse(o, 1, "5 physical experts for 6 logical ones");
    o.num_physical = 4000000000;
    refuse(o, 1, "4000000000 physical experts do not fit 32-bit ids");
    o = good;
    o.ep = 0;
    refuse(o, 1, "no GPUs");
    o.ep = 5;
    refuse(o, 1, "12 physical experts do not divide evenly among 5 GPUs");
    o = good;
    o.nodes = 3;
    o.groups = 6;
    refuse(o, 1, "4 GPUs do not divide evenly among 3 nodes");
    o = good;
    o.groups = 4;
    refuse(o, 1, "6 logical experts do not divide evenly among 4 groups");
    o.groups = 3;
    o.algorithm = MP_EPLB_HIERARCHICAL;
    refuse(o, 1, "3 groups do not divide evenly among 2 nodes");
    refuse(good, -1, "layer 0, expert 5: count -1, expected 0 or more");
    refuse(good, NAN, "layer 0, expert 5: count nan, expected 0 or more");
    refuse(good, INFINITY, "layer 0, expert 5: count inf, expected 0 or more");
}

Test(eplb, auto_falls_back_to_global)
{
    float w[] = {40, 3, 22, 1, 5, 9};
    mp_counts counts = {.layers = 1, .num_logical = 6, .count = w};
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 8, .ep = 4, .nodes = 2, .groups = 3};
    mp_eplb fallback, global;
    cr_assert_eq(mp_eplb_balance(&fallback, &counts, &options, NULL, &err), 0);
    options.algorithm = MP_EPLB_GLOBAL;
    cr_assert_eq(mp_eplb_balance(&global, &counts, &options, NULL, &err), 0);
    cr_assert_arr_eq(fallback.placement.map, global.placement.map, 8 * sizeof(int32_t));
    mp_eplb_release(&fallback);
    mp_eplb_release(&global);
}

Test(eplb, empty_counts)
{
    mp_counts counts = {0};
    mp_eplb_options options = {.size = sizeof(mp_eplb_options), .num_physical = 8, .ep = 4};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "no layers in the counts");
}

/* ------------------------------------------------------------------------
 * Drawings
 */

static mp_eplb small_eplb(void)
{
    static float w[] = {8, 1, 1, 2, /**/ 3, 3, 3, 3};
    mp_counts counts = {.layers = 2, .num_logical = 4, .count = w};
    mp_eplb_options options = {.size = sizeof(mp_eplb_options), .num_physical = 6, .ep = 2};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0);
    return e;
}

Test(eplb, bars)
{
    mp_eplb e = small_eplb();
    char *text;
    cr_assert_eq(eplb_bars(&e, 8, &text, &err), 0);
    cr_assert_str_eq(text, "layer  trivial         balanced\n"
                           "    0  0.923 #######.  0.947 ########\n"
                           "    1  1.000 ########  1.000 ########\n"
                           " mean  0.962 ########  0.974 ########\n");
    free(text);
    mp_eplb_release(&e);
}

static uint32_t occurrences(const char *text, const char *word)
{
    uint32_t n = 0;
    while ((text = strstr(text, word))) {
        n++;
        text += strlen(word);
    }
    return n;
}

Test(eplb, svg_is_plain_and_covers_every_cell)
{
    mp_eplb e = small_eplb();
    char *svg;
    cr_assert_eq(eplb_svg(&e, &svg, &err), 0);
    cr_assert_eq(strncmp(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\"", 39), 0);
    cr_assert_not_null(strstr(svg, "prefers-color-scheme: dark"));
    cr_assert_null(strstr(svg, "<script"));
    cr_assert_null(strstr(svg, "href"));
    cr_assert_not_null(strstr(svg, "mean balancedness 0.962</text>"));
    cr_assert_not_null(strstr(svg, "mean balancedness 0.974</text>"));
    cr_assert_eq(occurrences(svg, "<text"), occurrences(svg, "</text>"));
    /* Two layers of two maps, for nothing improves on EPLB: one bar each of balancedness; cells are
     * 24 pixels wide and 16 high.
     */
    cr_assert_eq(occurrences(svg, "v15h-"), 4);
    cr_assert_eq(occurrences(svg, "h24v16h-24z") + 2 * occurrences(svg, "h48v16h-48z"), 8);
    free(svg);
    mp_eplb_release(&e);
}

Test(eplb, svg_of_many_layers_and_gpus)
{
    srand(3);
    mp_counts counts = zipf_counts(300, 40, 1.0, 0.2);
    mp_eplb_options options = {.size = sizeof(mp_eplb_options), .num_physical = 500, .ep = 500};
    mp_eplb e;
    char *svg;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), 0);
    cr_assert_eq(eplb_svg(&e, &svg, &err), 0);
    cr_assert_not_null(strstr(svg, "</svg>"));
    free(svg);
    mp_eplb_release(&e);
    mp_counts_release(&counts);
}
