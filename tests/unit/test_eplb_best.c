/* SPDX-License-Identifier: Apache-2.0 */
/* The search for placements: how near it comes to bounds and optima, what it keeps to, windows of
 * traffic, and moves from an old placement. */
#include <criterion/criterion.h>

#include <math.h>
#include <moepack/place.h>
#include <stdlib.h>
#include <string.h>

#include "failing_memory.h"
#include "random_counts.h"

static mp_error err;

TestSuite(best, .timeout = 240);

static mp_eplb balance(const mp_counts *counts, mp_eplb_options options)
{
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, counts, &options, NULL, &err), 0, "%s", err.message);
    return e;
}

/* ------------------------------------------------------------------------
 * What holds for every result
 */

/* Each copy has its GPU to itself, unless the placement is EPLB's or GPUs have slots for all. */
static void check_layer(const mp_eplb *e, uint32_t layer, uint32_t nodes)
{
    const mp_eplb_report *r = &e->report[layer];
    uint32_t room = e->placement.num_physical / e->ep;
    cr_assert_leq(r->max_load_refined, r->max_load * (1 + 1e-12));
    cr_assert_geq(r->max_load_refined,
                  r->lower_bound * (1 - 1e-9) * (r->colocated_replicas > 0 ? 0 : 1));
    if (r->source == MP_EPLB_FROM_SEARCH && room <= e->placement.num_logical / nodes)
        cr_assert_eq(r->colocated_replicas, 0);
}

/* Groups are whole in a node, and as many in each. */
static void check_groups(const mp_eplb *e, uint32_t nodes, uint32_t groups)
{
    uint32_t p = e->placement.num_physical, size = e->placement.num_logical / groups;
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        const int32_t *row = mp_placement_row(&e->placement, layer);
        uint32_t held[64] = {0}, node_of[64];
        memset(node_of, 0xff, sizeof(node_of));
        for (uint32_t i = 0; i < p; i++) {
            uint32_t group = (uint32_t)row[i] / size, node = i / (p / nodes);
            held[node] += node_of[group] == UINT32_MAX;
            cr_assert(node_of[group] == UINT32_MAX || node_of[group] == node);
            node_of[group] = node;
        }
        for (uint32_t node = 0; node < nodes; node++)
            cr_assert_eq(held[node], groups / nodes);
    }
}

Test(best, results_are_valid_and_never_worse)
{
    state = 3;
    for (int round = 0; round < 60; round++) {
        uint32_t nodes = 1 + (uint32_t)(3 * uniform()), groups = nodes * (1 + round % 3);
        uint32_t n = groups * (1 + (uint32_t)(7 * uniform()));
        uint32_t ep = nodes * (1 + (uint32_t)(5 * uniform()));
        uint32_t room = (n + ep - 1) / ep + (uint32_t)(3 * uniform());
        mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                                   .num_physical = ep * room,
                                   .ep = ep,
                                   .nodes = nodes,
                                   .groups = groups,
                                   .algorithm = MP_EPLB_BEST};
        mp_counts counts = make_counts(3, n, (spread)(round % SPREADS));
        for (uint32_t i = 0; round % 4 == 0 && i < n; i += 2)
            counts.count[i] = 0;
        for (uint32_t i = 0; round % 7 == 0 && i < n; i++)
            counts.count[n + i] = 0;
        mp_eplb best = balance(&counts, options);
        options.algorithm = MP_EPLB_AUTO;
        mp_eplb plain = balance(&counts, options);
        cr_assert_eq(mp_placement_check(&best.placement, ep, NULL, &err), 0, "%s", err.message);
        for (uint32_t layer = 0; layer < 3; layer++) {
            check_layer(&best, layer, nodes);
            cr_assert_eq(best.report[layer].max_load, plain.report[layer].max_load);
            cr_assert_eq(best.report[layer].chosen, !(round % 7 == 0 && layer == 1));
        }
        check_groups(&best, nodes, groups);
        mp_eplb_release(&best);
        mp_eplb_release(&plain);
        mp_counts_release(&counts);
    }
}

Test(best, threads_do_not_matter)
{
    state = 5;
    mp_counts counts = make_counts(7, 61, LOG_NORMAL);
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 77, .ep = 11, .algorithm = MP_EPLB_BEST};
    mp_eplb one, many;
    cr_assert_eq(mp_eplb_balance(&one, &counts, &options, &(mp_context){.threads = 1}, &err), 0);
    cr_assert_eq(mp_eplb_balance(&many, &counts, &options, &(mp_context){.threads = 5}, &err), 0);
    cr_assert_arr_eq(one.placement.map, many.placement.map, 7 * 77 * sizeof(int32_t));
    mp_eplb_release(&one);
    mp_eplb_release(&many);
    mp_counts_release(&counts);
}

/* ------------------------------------------------------------------------
 * How good it is
 */

typedef struct problem {
    uint32_t experts, physical, gpus, nodes, groups, layers;
    double percent; /* that the mean gap to the bound may have */
} problem;

static double mean_gap(const problem *p, spread kind)
{
    mp_counts counts = make_counts(p->layers, p->experts, kind);
    mp_eplb e = balance(&counts, (mp_eplb_options){.size = sizeof(mp_eplb_options),
                                                   .num_physical = p->physical,
                                                   .ep = p->gpus,
                                                   .nodes = p->nodes,
                                                   .groups = p->groups,
                                                   .algorithm = MP_EPLB_BEST});
    double gap = 0;
    for (uint32_t layer = 0; layer < p->layers; layer++)
        gap += 100 * (e.report[layer].max_load_refined / e.report[layer].lower_bound - 1);
    mp_eplb_release(&e);
    mp_counts_release(&counts);
    return gap / p->layers;
}

Test(best, gaps_to_the_bound)
{
    static const problem problems[] = {
        {64, 80, 8, 1, 1, 12, 0.15},    {128, 144, 16, 1, 1, 12, 0.15},
        {256, 288, 32, 1, 1, 12, 0.15}, {256, 320, 64, 1, 1, 12, 0.15},
        {128, 192, 64, 1, 1, 4, 1.2},   {256, 512, 256, 1, 1, 1, 2.5},
        {256, 288, 32, 4, 8, 12, 2},
    };
    state = 1;
    for (size_t i = 0; i < sizeof(problems) / sizeof(problems[0]); i++) {
        double gap = 0;
        for (int kind = 0; kind < SPREADS; kind++)
            gap += mean_gap(&problems[i], (spread)kind) / SPREADS;
        cr_assert_leq(gap, problems[i].percent, "%u experts on %u GPUs: %.3f %%",
                      problems[i].experts, problems[i].gpus, gap);
    }
}

Test(best, few_hot_experts_that_need_fillers)
{
    float w[] = {600, 560, 120, 120, 20, 10, 10, 10};
    mp_counts counts = {.layers = 1, .num_logical = 8, .count = w};
    mp_eplb e = balance(&counts, (mp_eplb_options){.size = sizeof(mp_eplb_options),
                                                   .num_physical = 16,
                                                   .ep = 8,
                                                   .algorithm = MP_EPLB_BEST});
    cr_assert_eq(e.report->max_load, 232);
    cr_assert_float_eq(e.report->max_load_refined, 590.0 / 3, 1e-9);
    mp_eplb_release(&e);
}

/* The least largest load of all placements that have no two copies side by side: every choice of
 * experts for each GPU, GPUs in order. */
typedef struct exact {
    const float *w;
    uint32_t n, gpus, room;
    uint32_t set[8]; /* of experts, a bit each */
    double best;
} exact;

static void rate_exact(exact *x)
{
    uint32_t copies[8] = {0};
    double largest = 0;
    for (uint32_t g = 0; g < x->gpus; g++)
        for (uint32_t e = 0; e < x->n; e++)
            copies[e] += x->set[g] >> e & 1;
    for (uint32_t e = 0; e < x->n; e++)
        if (copies[e] == 0)
            return;
    for (uint32_t g = 0; g < x->gpus; g++) {
        double load = 0;
        for (uint32_t e = 0; e < x->n; e++)
            load += x->set[g] >> e & 1 ? (double)x->w[e] / copies[e] : 0;
        largest = fmax(largest, load);
    }
    x->best = fmin(x->best, largest);
}

static void choose_sets(exact *x, uint32_t gpu)
{
    if (gpu == x->gpus) {
        rate_exact(x);
        return;
    }
    for (uint32_t set = gpu > 0 ? x->set[gpu - 1] : 1; set < 1u << x->n; set++) {
        x->set[gpu] = set;
        if ((uint32_t)__builtin_popcount(set) == x->room)
            choose_sets(x, gpu + 1);
    }
}

Test(best, small_instances_against_the_optimum)
{
    uint32_t optimal = 0, all = 0;
    double gap = 0;
    state = 9;
    while (all < 150) { /* up to 8 experts in up to 12 slots, that every GPU does not hold all */
        uint32_t n = 3 + (uint32_t)(6 * uniform()), gpus = 2 + (uint32_t)(5 * uniform());
        uint32_t room = 1 + (uint32_t)(5 * uniform());
        if (gpus * room < n || gpus * room > 12 || room >= n)
            continue;
        mp_counts counts = make_counts(1, n, (spread)(all % SPREADS));
        exact x = {counts.count, n, gpus, room, {0}, INFINITY};
        choose_sets(&x, 0);
        mp_eplb e = balance(&counts, (mp_eplb_options){.size = sizeof(mp_eplb_options),
                                                       .num_physical = gpus * room,
                                                       .ep = gpus,
                                                       .algorithm = MP_EPLB_BEST});
        cr_assert_leq(e.report->lower_bound, x.best * (1 + 1e-9), "a bound that is none");
        if (e.report->colocated_replicas == 0)
            cr_assert_geq(e.report->max_load_refined, x.best * (1 - 1e-9));
        optimal += e.report->max_load_refined <= x.best * (1 + 1e-9);
        gap += e.report->max_load_refined / x.best - 1;
        all++;
        mp_eplb_release(&e);
        mp_counts_release(&counts);
    }
    cr_assert_geq(optimal, 90 * all / 100, "%u of %u", optimal, all);
    cr_assert_leq(100 * gap / all, 0.3, "%.3f %%", 100 * gap / all);
}

/* ------------------------------------------------------------------------
 * Windows
 */

/* Traffic in which experts come up and go down: window w weighs layers' two patterns. */
static mp_counts drifting(uint32_t layers, uint32_t n, uint32_t windows, uint32_t first)
{
    mp_counts a = make_counts(layers, n, LOG_NORMAL), b = make_counts(layers, n, LOG_NORMAL);
    mp_counts c = {.layers = layers, .num_logical = n, .windows = windows};
    size_t size = (size_t)layers * n;
    c.count = calloc(size, sizeof(float));
    c.window = malloc(windows * size * sizeof(float));
    for (uint32_t w = 0; w < windows; w++)
        for (size_t i = 0; i < size; i++) {
            double part = 0.5 + 0.5 * sin(0.4 * (first + w) + (double)(i % 5));
            float *count = &c.window[w * size + i];
            *count = (float)floor(a.count[i] * part + b.count[i] * (1 - part));
            c.count[i] += *count;
        }
    mp_counts_release(&a);
    mp_counts_release(&b);
    return c;
}

/* Largest load over the mean of each window, added up, of the placement for other counts. */
static double excess(const mp_counts *c, const mp_placement *p, uint32_t ep)
{
    uint32_t n = c->num_logical, room = p->num_physical / ep;
    double sum = 0;
    for (uint32_t i = 0; i < c->windows * c->layers; i++) {
        const int32_t *row = mp_placement_row(p, i % c->layers);
        const float *w = c->window + (size_t)i * n;
        uint32_t copies[256] = {0};
        double total = 0, largest = 0;
        for (uint32_t s = 0; s < p->num_physical; s++)
            copies[row[s]]++;
        for (uint32_t g = 0; g < ep; g++) {
            double load = 0;
            for (uint32_t s = g * room; s < (g + 1) * room; s++)
                load += (double)w[row[s]] / copies[row[s]];
            total += load;
            largest = fmax(largest, load);
        }
        sum += largest - total / ep;
    }
    return sum;
}

Test(best, windows_of_drifting_traffic)
{
    mp_eplb_options options = {.size = sizeof(mp_eplb_options), .num_physical = 72, .ep = 12};
    state = 21;
    mp_counts counts = drifting(6, 60, 8, 0);
    mp_eplb plain = balance(&counts, options);
    options.algorithm = MP_EPLB_BEST;
    mp_eplb mean = balance(&counts, options);
    options.objective = MP_EPLB_WORST;
    mp_eplb worst = balance(&counts, options);
    double of_plain = excess(&counts, &plain.placement, 12);
    double of_mean = excess(&counts, &mean.placement, 12);
    cr_assert_leq(of_mean, 0.3 * of_plain, "%f of EPLB's excess", of_mean / of_plain);
    state = 21; /* the same patterns, later */
    mp_counts later = drifting(6, 60, 3, 8);
    cr_assert_lt(excess(&later, &mean.placement, 12), excess(&later, &plain.placement, 12));
    for (uint32_t layer = 0; layer < 6; layer++) {
        const mp_eplb_report *m = &mean.report[layer], *w = &worst.report[layer];
        cr_assert_leq(m->max_load_refined, m->max_load * (1 + 1e-12));
        cr_assert_geq(m->max_load_refined, m->lower_bound * (1 - 1e-9));
        cr_assert_leq(w->worst_window, m->worst_window * (1 + 1e-9));
        cr_assert_leq(w->worst_window, plain.report[layer].worst_window * (1 + 1e-9));
        cr_assert_geq(w->worst_window, w->lower_bound * (1 - 1e-9));
    }
    mp_eplb_release(&plain);
    mp_eplb_release(&mean);
    mp_eplb_release(&worst);
    mp_counts_release(&counts);
    mp_counts_release(&later);
}

/* ------------------------------------------------------------------------
 * Moves
 */

static mp_counts drift(const mp_counts *c, double part)
{
    mp_counts d = {.layers = c->layers, .num_logical = c->num_logical};
    size_t size = (size_t)c->layers * c->num_logical;
    d.count = malloc(size * sizeof(float));
    for (size_t i = 0; i < size; i++)
        d.count[i] = (float)floor(c->count[i] * (1 + part * normal()) + 1);
    for (size_t i = 0; i < size; i++)
        d.count[i] = d.count[i] < 0 ? 0 : d.count[i];
    return d;
}

/* Slots with an expert that the GPU did not hold, counted another way than the library does. */
static uint32_t count_moves(const int32_t *old, const int32_t *row, uint32_t p, uint32_t ep)
{
    uint32_t moves = 0, room = p / ep;
    for (uint32_t g = 0; g < ep; g++) {
        bool used[64] = {false};
        for (uint32_t i = g * room; i < (g + 1) * room; i++) {
            uint32_t j = 0;
            while (j < room && (used[j] || old[g * room + j] != row[i]))
                j++;
            if (j < room)
                used[j] = true;
            else
                moves++;
        }
    }
    return moves;
}

static double total_moves(const mp_eplb *e, const mp_placement *old)
{
    uint32_t p = old->num_physical;
    double moves = 0;
    for (uint32_t layer = 0; layer < e->placement.layers; layer++) {
        const int32_t *row = mp_placement_row(&e->placement, layer);
        uint32_t counted = count_moves(mp_placement_row(old, layer), row, p, e->ep);
        cr_assert_eq(e->report[layer].moves, counted);
        moves += counted;
    }
    return moves;
}

static double largest_loads(const mp_eplb *e)
{
    double sum = 0;
    for (uint32_t layer = 0; layer < e->placement.layers; layer++)
        sum += e->report[layer].max_load_refined;
    return sum;
}

Test(best, mild_drift_takes_few_moves)
{
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 144, .ep = 16, .algorithm = MP_EPLB_BEST};
    state = 31;
    mp_counts before = make_counts(6, 128, ZIPF_12), now = drift(&before, 0.1);
    mp_eplb old = balance(&before, options), free_best = balance(&now, options);
    options.from = &old.placement;
    mp_eplb few = balance(&now, options);
    cr_assert_eq(mp_placement_check(&few.placement, 16, NULL, &err), 0);
    cr_assert_leq(largest_loads(&few), 1.0031 * largest_loads(&free_best));
    double moves = total_moves(&few, &old.placement);

    /* The best placement itself, renumbered only: what any other algorithm does. */
    mp_eplb_options other = {.size = sizeof(mp_eplb_options),
                             .num_physical = 144,
                             .ep = 16,
                             .algorithm = MP_EPLB_GLOBAL,
                             .from = &old.placement};
    mp_eplb renumbered = balance(&now, other);
    double of_other = total_moves(&renumbered, &old.placement);
    cr_assert_leq(moves, of_other / 2, "%f moves, %f of the renumbered one", moves, of_other);

    for (uint32_t most = 0; most < 12; most += 3) {
        options.limit_moves = true;
        options.max_moves = most;
        mp_eplb limited = balance(&now, options);
        total_moves(&limited, &old.placement);
        for (uint32_t layer = 0; layer < 6; layer++) {
            const int32_t *row = mp_placement_row(&limited.placement, layer);
            cr_assert_leq(limited.report[layer].moves, most);
            if (most == 0)
                cr_assert_arr_eq(row, mp_placement_row(&old.placement, layer),
                                 144 * sizeof(int32_t));
        }
        mp_eplb_release(&limited);
    }
    mp_eplb_release(&old);
    mp_eplb_release(&free_best);
    mp_eplb_release(&few);
    mp_eplb_release(&renumbered);
    mp_counts_release(&before);
    mp_counts_release(&now);
}

/* From any placement, with any limit: never more moves, never more load than in the old one. */
Test(best, limits_hold_from_any_placement)
{
    state = 41;
    for (int round = 0; round < 24; round++) {
        uint32_t nodes = 1 + round % 2, ep = nodes * 3, n = nodes * 10;
        mp_counts counts = make_counts(2, n, (spread)(round % SPREADS));
        mp_placement old;
        cr_assert_eq(mp_placement_trivial(&old, round % 3 ? 2 : 1, n, ep * 5 - n, &err), 0);
        mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                                   .num_physical = ep * 5,
                                   .ep = ep,
                                   .nodes = nodes,
                                   .groups = nodes * 2,
                                   .algorithm = MP_EPLB_BEST,
                                   .from = &old,
                                   .limit_moves = true,
                                   .max_moves = (uint32_t)round / 2};
        mp_eplb e = balance(&counts, options);
        cr_assert_eq(mp_placement_check(&e.placement, ep, NULL, &err), 0);
        total_moves(&e, &old);
        for (uint32_t layer = 0; layer < 2; layer++) {
            double trivial = 0;
            for (uint32_t g = 0; g < ep; g++)
                trivial = fmax(trivial, e.load_trivial[layer * ep + g]);
            cr_assert_leq(e.report[layer].moves, options.max_moves);
            cr_assert_leq(e.report[layer].max_load_refined, trivial * (1 + 1e-9));
        }
        mp_eplb_release(&e);
        mp_placement_release(&old);
        mp_counts_release(&counts);
    }
}

/* A placement with its GPUs and nodes in another order is the same one: nothing moves. */
Test(best, numbers_of_gpus_and_nodes_do_not_matter)
{
    mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                               .num_physical = 48,
                               .ep = 8,
                               .nodes = 2,
                               .groups = 4,
                               .algorithm = MP_EPLB_HIERARCHICAL};
    static const uint32_t order[] = {6, 4, 7, 5, 2, 0, 1, 3};
    state = 51;
    mp_counts counts = make_counts(1, 40, ZIPF_08);
    mp_eplb e = balance(&counts, options);
    int32_t map[48];
    mp_placement old = {.layers = 1, .num_logical = 40, .num_physical = 48, .map = map};
    for (uint32_t i = 0; i < 48; i++) /* and the slots of each the other way round */
        map[i] = e.placement.map[order[i / 6] * 6 + 5 - i % 6];
    options.from = &old;
    mp_eplb again = balance(&counts, options);
    cr_assert_eq(again.report->moves, 0);
    cr_assert_arr_eq(again.placement.map, map, sizeof(map));
    mp_eplb_release(&e);
    mp_eplb_release(&again);
    mp_counts_release(&counts);
}

/* The assignment against all of them: five GPUs have 120. */
static uint32_t least_moves(const int32_t *old, const int32_t *row, uint32_t room, uint32_t gpus,
                            uint32_t done, bool *taken)
{
    uint32_t best = UINT32_MAX;
    if (done == gpus)
        return 0;
    for (uint32_t g = 0; g < gpus; g++) {
        if (taken[g])
            continue;
        taken[g] = true;
        uint32_t moves = count_moves(old + done * room, row + g * room, room, 1) +
                         least_moves(old, row, room, gpus, done + 1, taken);
        best = moves < best ? moves : best;
        taken[g] = false;
    }
    return best;
}

Test(best, renumbering_moves_least)
{
    mp_eplb_options options = {
        .size = sizeof(mp_eplb_options), .num_physical = 30, .ep = 5, .algorithm = MP_EPLB_GLOBAL};
    state = 61;
    for (int round = 0; round < 20; round++) {
        mp_counts counts = make_counts(1, 24, (spread)(round % SPREADS)), now = drift(&counts, 0.3);
        options.from = NULL;
        mp_eplb old = balance(&counts, options), plain = balance(&now, options);
        options.from = &old.placement;
        mp_eplb e = balance(&now, options);
        bool taken[5] = {false};
        cr_assert_eq(e.report->moves,
                     least_moves(old.placement.map, plain.placement.map, 6, 5, 0, taken));
        cr_assert_eq(e.report->max_load_refined, plain.report->max_load_refined);
        mp_eplb_release(&old);
        mp_eplb_release(&plain);
        mp_eplb_release(&e);
        mp_counts_release(&counts);
        mp_counts_release(&now);
    }
}

Test(best, contradictions)
{
    float w[] = {1, 2, 3};
    mp_counts counts = {.layers = 1, .num_logical = 3, .count = w};
    mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                               .num_physical = 4,
                               .ep = 2,
                               .algorithm = MP_EPLB_BEST,
                               .refine = 5};
    mp_eplb e;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), MP_ERR_USAGE);
    int32_t map[] = {0, 1, 2, 0, /**/ 0, 1, 2, 0};
    mp_placement old = {.layers = 2, .num_logical = 3, .num_physical = 4, .map = map};
    options.refine = 0;
    options.from = &old;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "the old placement has 2 layers, the counts 1");
    old.layers = 1;
    old.devices = 4;
    cr_assert_eq(mp_eplb_balance(&e, &counts, &options, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: device_count is 4, the number of ranks is 2");
}

static mp_counts scarce_counts;
static mp_placement scarce_old;

static int balance_scarcely(mp_error *e)
{
    const mp_context context = {.threads = 1};
    const mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                                     .num_physical = 24,
                                     .ep = 8,
                                     .nodes = 2,
                                     .groups = 4,
                                     .algorithm = MP_EPLB_BEST,
                                     .objective = MP_EPLB_WORST,
                                     .from = &scarce_old};
    mp_eplb result;
    int rc = mp_eplb_balance(&result, &scarce_counts, &options, &context, e);
    mp_eplb_release(&result);
    return rc;
}

Test(best, survives_any_failed_allocation)
{
    state = 71;
    scarce_counts = drifting(1, 20, 3, 0);
    cr_assert_eq(mp_placement_trivial(&scarce_old, 1, 20, 4, &err), 0);
    cr_assert_gt(memory_exhaust(balance_scarcely), 8);
    mp_counts_release(&scarce_counts);
    mp_placement_release(&scarce_old);
}
