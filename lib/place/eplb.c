/* SPDX-License-Identifier: Apache-2.0 */
/* Load balancing of all layers: checks of what is asked for, and the report of what came out. */
#include "place/eplb.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "place/rows.h"
#include "place/text.h"

/* a must be a multiple of b. */
static int divides(uint32_t a, const char *what_a, uint32_t b, const char *what_b, mp_error *err)
{
    if (a % b == 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%u %s do not divide among %u %s", a, what_a, b, what_b);
}

/* Sizes of the problem, as the algorithm that is asked for sees it. */
static int resolve_sizes(mp_eplb_work *work, uint32_t num_logical, const mp_eplb_options *options,
                         mp_error *err)
{
    uint32_t nodes = options->nodes ? options->nodes : 1;
    uint32_t groups = options->groups ? options->groups : 1;
    bool global = options->algorithm == MP_EPLB_GLOBAL ||
                  (options->algorithm == MP_EPLB_AUTO && groups % nodes != 0);
    *work = (mp_eplb_work){.num_logical = num_logical,
                           .num_physical = options->num_physical,
                           .ep = options->ep,
                           .nodes = global ? 1 : nodes,
                           .groups = global ? 1 : groups};
    if (options->num_physical < num_logical)
        return mp_fail(err, MP_ERR_INPUT, "%u physical experts for %u logical ones",
                       options->num_physical, num_logical);
    if (options->num_physical > INT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "%u physical experts do not fit 32-bit ids",
                       options->num_physical);
    if (options->ep == 0)
        return mp_fail(err, MP_ERR_INPUT, "no GPUs");
    int rc = divides(options->num_physical, "physical experts", options->ep, "GPUs", err);
    if (rc == 0)
        rc = divides(options->ep, "GPUs", nodes, "nodes", err);
    if (rc == 0)
        rc = divides(num_logical, "logical experts", work->groups, "groups", err);
    if (rc == 0)
        rc = divides(work->groups, "groups", work->nodes, "nodes", err);
    return rc;
}

static int check_counts(const mp_counts *counts, mp_error *err)
{
    if (counts->layers == 0 || counts->num_logical == 0)
        return mp_fail(err, MP_ERR_INPUT, "no %s in the counts",
                       counts->layers == 0 ? "layers" : "experts");
    for (uint32_t layer = 0; layer < counts->layers; layer++)
        for (uint32_t e = 0; e < counts->num_logical; e++) {
            float count = counts->count[(size_t)layer * counts->num_logical + e];
            if (!isfinite(count) || count < 0)
                return mp_fail(err, MP_ERR_INPUT,
                               "layer %u, expert %u: count %g, expected 0 or more", layer, e,
                               count);
        }
    return 0;
}

/* Loads of the trivial placement, which `map` is scratch for. Returns its balancedness. */
static double rate_trivial(mp_eplb_work *work, const float *weights, int32_t *map, int32_t *count,
                           double *load)
{
    memset(count, 0, work->num_logical * sizeof(*count));
    for (uint32_t p = 0; p < work->num_physical; p++) {
        map[p] = (int32_t)(p % work->num_logical);
        count[map[p]]++;
    }
    mp_eplb_carry(work, weights, count);
    mp_eplb_loads(work, map, load);
    return mp_balance(load, work->ep);
}

static double largest_carried(const mp_eplb_work *work)
{
    double largest = 0;
    for (uint32_t e = 0; e < work->num_logical; e++)
        if (work->carried[e] > largest)
            largest = work->carried[e];
    return largest;
}

/* Places one layer and fills its part of the result. */
static void balance_layer(mp_eplb *e, mp_eplb_work *work, const float *weights, uint32_t layer,
                          uint32_t refine)
{
    int32_t *map = e->placement.map + (size_t)layer * work->num_physical;
    int32_t *rank = e->replica_rank + (size_t)layer * work->num_physical;
    int32_t *count = e->replica_count + (size_t)layer * work->num_logical;
    double *load = e->load + (size_t)layer * work->ep;
    mp_eplb_report *report = &e->report[layer];

    report->balancedness_trivial =
        rate_trivial(work, weights, map, count, e->load_trivial + (size_t)layer * work->ep);
    mp_eplb_layer(work, weights, map, rank, count);
    mp_eplb_carry(work, weights, count);
    report->max_load = mp_eplb_loads(work, map, load);
    report->balancedness = mp_balance(load, work->ep);
    report->lower_bound = fmax(mp_mean(load, work->ep), largest_carried(work));
    mp_eplb_refine(work, map, rank, refine);
    report->max_load_refined = mp_eplb_loads(work, map, load);
    report->balancedness_refined = mp_balance(load, work->ep);
    report->colocated_replicas =
        mp_colocated(map, work->num_logical, work->num_physical, work->ep, work->seen, NULL);
}

static mp_eplb_report mean_report(const mp_eplb_report *report, uint32_t layers)
{
    mp_eplb_report mean = {0};
    for (uint32_t layer = 0; layer < layers; layer++) {
        mean.balancedness_trivial += report[layer].balancedness_trivial;
        mean.balancedness += report[layer].balancedness;
        mean.balancedness_refined += report[layer].balancedness_refined;
        mean.max_load += report[layer].max_load;
        mean.max_load_refined += report[layer].max_load_refined;
        mean.lower_bound += report[layer].lower_bound;
        mean.colocated_replicas += report[layer].colocated_replicas;
    }
    mean.balancedness_trivial /= layers;
    mean.balancedness /= layers;
    mean.balancedness_refined /= layers;
    mean.max_load /= layers;
    mean.max_load_refined /= layers;
    mean.lower_bound /= layers;
    mean.colocated_replicas /= layers;
    return mean;
}

static int alloc_result(mp_eplb *e, uint32_t layers, uint32_t n, uint32_t p, uint32_t ep,
                        mp_error *err)
{
    *e = (mp_eplb){.ep = ep};
    e->placement = (mp_placement){.layers = layers, .num_logical = n, .num_physical = p};
    e->placement.map = mp_alloc((uint64_t)layers * p, sizeof(int32_t));
    e->replica_rank = mp_alloc((uint64_t)layers * p, sizeof(int32_t));
    e->replica_count = mp_alloc((uint64_t)layers * n, sizeof(int32_t));
    e->load_trivial = mp_alloc((uint64_t)layers * ep, sizeof(double));
    e->load = mp_alloc((uint64_t)layers * ep, sizeof(double));
    e->report = mp_alloc_zeroed(layers, sizeof(mp_eplb_report));
    bool complete = e->placement.map && e->replica_rank && e->replica_count && e->load_trivial &&
                    e->load && e->report;
    return complete ? 0 : mp_fail_memory(err);
}

int mp_eplb_balance(mp_eplb *e, const mp_counts *counts, const mp_eplb_options *options,
                    mp_error *err)
{
    *e = (mp_eplb){0};
    mp_eplb_work work = {0};
    int rc = check_counts(counts, err);
    if (rc == 0)
        rc = resolve_sizes(&work, counts->num_logical, options, err);
    if (rc == 0)
        rc = alloc_result(e, counts->layers, work.num_logical, work.num_physical, work.ep, err);
    if (rc == 0)
        rc = mp_eplb_work_init(&work, err);
    for (uint32_t layer = 0; rc == 0 && layer < counts->layers; layer++)
        balance_layer(e, &work, counts->count + (size_t)layer * counts->num_logical, layer,
                      options->refine);
    mp_arena_release(&work.arena);
    if (rc == 0)
        e->mean = mean_report(e->report, counts->layers);
    else
        mp_eplb_release(e);
    return rc;
}

void mp_eplb_release(mp_eplb *e)
{
    mp_placement_release(&e->placement);
    free(e->replica_rank);
    free(e->replica_count);
    free(e->load_trivial);
    free(e->load);
    free(e->report);
    *e = (mp_eplb){0};
}
