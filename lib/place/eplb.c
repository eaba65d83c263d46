/* SPDX-License-Identifier: Apache-2.0 */
/* Load balancing of all layers: checks of the request, each layer by the algorithm asked for, and
 * the report of the result.
 *
 * A layer goes through up to four steps, each of which starts from what the previous one left in
 * its row of the result:
 *
 *     trivial       p mod N, for comparison
 *     EPLB          DeepSeek's algorithm in float32, ties as in the original (eplb_layer.c)
 *     search        best_*.c, taken if no worse than EPLB; or swaps by eplb_refine.c
 *     approach      towards an old placement, in few moves (best_moves.c, best_path.c)
 *
 * EPLB always runs: it is the fallback, and the baseline of the report. Layers are independent and
 * run on all threads. A task writes only its own rows of the result, and has an arena of its own
 * for one layer's search. The mean of the reports is taken in the order of layers. */
#include "place/eplb.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"
#include "base/parallel.h"
#include "place/best.h"
#include "place/rows.h"

/* a must be a multiple of b. */
static int divides(uint32_t a, const char *what_a, uint32_t b, const char *what_b, mp_error *err)
{
    if (a % b == 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%u %s do not divide evenly among %u %s", a, what_a, b,
                   what_b);
}

/* Sizes of the problem as the algorithm asked for sees them. Like DeepSeek's rebalance_experts, go
 * by nodes if groups divide among them, and otherwise treat all GPUs as one node. */
static int resolve_sizes(mp_eplb_work *work, uint32_t num_logical, const mp_eplb_options *options,
                         mp_error *err)
{
    uint32_t nodes = options->nodes ? options->nodes : 1;
    uint32_t groups = options->groups ? options->groups : 1;
    bool global = options->algorithm == MP_EPLB_GLOBAL ||
                  (options->algorithm != MP_EPLB_HIERARCHICAL && groups % nodes != 0);
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
    uint64_t windows = counts->window ? counts->windows : 1;
    const float *count = counts->window ? counts->window : counts->count;
    if (counts->layers == 0 || counts->num_logical == 0)
        return mp_fail(err, MP_ERR_INPUT, "no %s in the counts",
                       counts->layers == 0 ? "layers" : "experts");
    for (uint64_t row = 0; row < windows * counts->layers; row++)
        for (uint32_t e = 0; e < counts->num_logical; e++, count++)
            if (!isfinite(*count) || *count < 0)
                return mp_fail(err, MP_ERR_INPUT,
                               "layer %" PRIu64 ", expert %u: count %g, expected 0 or more",
                               row % counts->layers, e, *count);
    return 0;
}

static int check_options(const mp_counts *counts, const mp_eplb_options *o, mp_error *err)
{
    const mp_placement *from = o->from;
    if (o->algorithm == MP_EPLB_BEST && o->refine > 0)
        return mp_fail(err, MP_ERR_USAGE, "a search leaves nothing to refine");
    if (!from)
        return 0;
    if (from->num_logical != counts->num_logical || from->num_physical != o->num_physical)
        return mp_fail(err, MP_ERR_INPUT,
                       "the old placement has %u experts in %u slots, the new one %u in %u",
                       from->num_logical, from->num_physical, counts->num_logical, o->num_physical);
    if (from->layers != 1 && from->layers != counts->layers)
        return mp_fail(err, MP_ERR_INPUT, "the old placement has %u layer%s, the counts %u",
                       from->layers, mp_plural(from->layers), counts->layers);
    return mp_placement_check(from, o->ep, NULL, err);
}

/* ------------------------------------------------------------------------
 * A layer
 */

/* All layers, for the threads that take one each. */
typedef struct balancing {
    mp_eplb *e;
    const mp_counts *counts;
    const mp_eplb_options *options;
    const mp_context *context;
    mp_eplb_work sizes;
    uint32_t windows;
    mp_meter meter; /* layers */
} balancing;

/* One layer at work. */
typedef struct layer_job {
    const balancing *all;
    uint32_t number;
    mp_eplb_work work;
    mp_layer layer;
    double *weight, *search_weight; /* [windows][N]: counts, and as the objective scales them */
    double *scratch;                /* [N + ep] */
    int32_t *map, *rank, *count;    /* the layer's rows of the result */
    mp_eplb_report *report;
} layer_job;

static int begin_layer(layer_job *job, const balancing *all, uint32_t number, mp_error *err)
{
    const mp_counts *counts = all->counts;
    mp_eplb *e = all->e;
    size_t n = counts->num_logical, p = all->sizes.num_physical;
    const float *from = counts->window ? counts->window : counts->count;
    *job = (layer_job){.all = all, .number = number, .work = all->sizes};
    mp_arena *arena = &job->work.arena;
    int rc = mp_eplb_work_init(&job->work, err);
    if (rc != 0)
        return rc;
    if (!(job->weight = mp_arena_alloc(arena, all->windows * n * sizeof(double))) ||
        !(job->search_weight = mp_arena_alloc(arena, all->windows * n * sizeof(double))) ||
        !(job->scratch = mp_arena_alloc(arena, (n + all->sizes.ep) * sizeof(double))))
        return mp_fail_memory(err);
    bool worst = all->options->objective == MP_EPLB_WORST;
    for (size_t w = 0; w < all->windows; w++) {
        const float *count = from + (w * counts->layers + number) * n;
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            job->weight[w * n + i] = count[i];
            sum += count[i];
        }
        for (size_t i = 0; i < n; i++)
            job->search_weight[w * n + i] =
                /* As fractions of the mean GPU load, busy and quiet windows become comparable. */
                worst && sum > 0 ? count[i] / (sum / all->sizes.ep) : count[i];
    }
    job->layer = (mp_layer){.experts = all->sizes.num_logical,
                            .physical = all->sizes.num_physical,
                            .gpus = all->sizes.ep,
                            .nodes = all->sizes.nodes,
                            .groups = all->sizes.groups,
                            .windows = all->windows,
                            .objective = all->options->objective,
                            .weight = job->search_weight};
    job->map = e->placement.map + number * p;
    job->rank = e->replica_rank + number * p;
    job->count = e->replica_count + number * n;
    job->report = &e->report[number];
    return 0;
}

/* Loads of a row of the placement, summed over windows; work->count: scratch. */
typedef struct rating {
    double mean, largest; /* sums over windows */
    double worst;         /* largest over mean of any window */
} rating;

/* Counts copies in the row itself, which may come from EPLB, a search or an old file. */
static double mean_of(const double *values, uint32_t count)
{
    double sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += values[i];
    return sum / count;
}

static rating rate(layer_job *job, const int32_t *map, double *load)
{
    mp_eplb_work *work = &job->work;
    size_t n = work->num_logical;
    rating r = {.worst = 1};
    memset(work->count, 0, n * sizeof(*work->count));
    memset(load, 0, work->ep * sizeof(*load));
    for (uint32_t p = 0; p < work->num_physical; p++)
        work->count[map[p]]++;
    for (uint32_t w = 0; w < job->all->windows; w++) {
        for (size_t i = 0; i < n; i++)
            work->carried[i] = job->weight[w * n + i] / work->count[i];
        double largest = mp_eplb_loads(work, map, work->load), mean = mean_of(work->load, work->ep);
        for (uint32_t gpu = 0; gpu < work->ep; gpu++)
            load[gpu] += work->load[gpu];
        r.mean += mean;
        r.largest += largest;
        r.worst = fmax(r.worst, mean > 0 ? largest / mean : 1);
    }
    return r;
}

static double balancedness(rating r)
{
    return r.largest > 0 ? r.mean / r.largest : 1;
}

/* What numbers of copies come to when nothing is known of where they are. */
static double simple_bound(layer_job *job, rating r)
{
    double bound = r.mean;
    for (uint32_t e = 0; job->all->windows == 1 && e < job->work.num_logical; e++)
        bound = fmax(bound, job->weight[e] / job->count[e]);
    return bound;
}

/* Numbers copies in the order of the row. */
static void count_copies(layer_job *job)
{
    memset(job->count, 0, job->work.num_logical * sizeof(*job->count));
    for (uint32_t p = 0; p < job->work.num_physical; p++)
        job->rank[p] = job->count[job->map[p]]++;
}

/* Takes what a search found if it is no worse than job->map. A search can miss its bound and end up
 * worse. */
static void take_better(layer_job *job, const int32_t *found)
{
    const mp_layer *layer = &job->layer;
    if (mp_layer_f(layer, found, job->scratch) > mp_layer_f(layer, job->map, job->scratch))
        return;
    memcpy(job->map, found, job->work.num_physical * sizeof(*found));
    job->report->source = MP_EPLB_FROM_SEARCH;
}

/* The search, in place of EPLB's placement in job->map. For the worst window, what serves the mean
 * may do as well. */
static int search(layer_job *job, mp_error *err)
{
    int32_t *found = job->work.saved_map;
    mp_arena *arena = &job->work.arena;
    double bound;
    int rc = mp_best_layer(&job->layer, found, &job->report->lower_bound, arena, err);
    if (rc == 0)
        take_better(job, found);
    if (rc == 0 && job->layer.windows > 1 && job->layer.objective == MP_EPLB_WORST) {
        mp_layer mean = job->layer;
        mean.objective = MP_EPLB_MEAN;
        mean.weight = job->weight;
        rc = mp_best_layer(&mean, found, &bound, arena, err);
        if (rc == 0)
            take_better(job, found);
    }
    return rc;
}

/* Moves the result close to the old placement. f_eplb: F of EPLB's placement. */
static int approach(layer_job *job, double f_eplb, mp_error *err)
{
    const mp_eplb_options *o = job->all->options;
    const mp_layer *layer = &job->layer;
    const int32_t *old = mp_placement_row(o->from, job->number);
    uint32_t *scratch = job->work.seen;
    int32_t *path = job->work.saved_map;
    uint32_t most = o->limit_moves ? o->max_moves : UINT32_MAX;
    bool reached;
    double f = mp_layer_f(layer, job->map, job->scratch), goal = MP_BEST_CONTENT * f;
    int rc = mp_renumber(layer, old, job->map, &job->work.arena, err);
    if (rc != 0)
        return rc;
    uint32_t moves = mp_moves(layer, old, job->map, scratch);
    if (o->algorithm == MP_EPLB_BEST) {
        /* Close to the best, but never worse than EPLB's own. */
        if (f_eplb > f)
            goal = fmin(goal, f_eplb);
        rc = mp_path(layer, old, goal, most, path, &reached, &job->work.arena, err);
        if (rc != 0)
            return rc;
        uint32_t path_moves = mp_moves(layer, old, path, scratch);
        /* If the renumbered result moves too much, the path is the answer too: it is never worse
         * than the old placement. */
        if (moves > most || (reached && path_moves <= moves)) {
            memcpy(job->map, path, job->work.num_physical * sizeof(*path));
            job->report->source = MP_EPLB_FROM_PATH;
            moves = path_moves;
        }
    }
    job->report->moves = moves;
    return 0;
}

static int balance_layer(layer_job *job, mp_error *err)
{
    const balancing *all = job->all;
    const mp_eplb_options *o = all->options;
    mp_eplb_work *work = &job->work;
    mp_eplb *e = all->e;
    size_t n = work->num_logical, ep = work->ep;
    const float *weights = all->counts->count + job->number * n;
    mp_eplb_report *report = job->report;
    int rc = 0;

    for (size_t i = 0; i < n; i++)
        report->chosen |= weights[i] > 0;
    for (uint32_t p = 0; p < work->num_physical; p++)
        job->map[p] = (int32_t)(p % n);
    report->balancedness_trivial =
        balancedness(rate(job, job->map, e->load_trivial + job->number * ep));

    mp_eplb_layer(work, weights, job->map, job->rank, job->count);
    rating plain = rate(job, job->map, e->load_eplb + job->number * ep);
    report->balancedness = balancedness(plain);
    report->max_load = plain.largest;
    report->lower_bound = simple_bound(job, plain);

    double f_eplb = mp_layer_f(&job->layer, job->map, job->scratch);
    /* For a layer that was never chosen any placement will do: leave it to EPLB. */
    if (o->algorithm == MP_EPLB_BEST && report->chosen)
        rc = search(job, err);
    else if (o->refine > 0) {
        mp_eplb_carry(work, weights, job->count);
        mp_eplb_refine(work, job->map, job->rank, o->refine);
    }
    if (rc == 0 && o->from)
        rc = approach(job, f_eplb, err);
    if (rc == 0 && (o->from || report->source != MP_EPLB_FROM_EPLB))
        count_copies(job);

    rating result = rate(job, job->map, e->load + job->number * ep);
    report->balancedness_refined = balancedness(result);
    report->max_load_refined = result.largest;
    report->worst_window = result.worst;
    report->colocated_replicas =
        mp_colocated(job->map, work->num_logical, work->num_physical, work->ep, work->seen, NULL);
    return rc;
}

/* Runs in parallel over layers. */
static int balance_task(void *user, uint64_t index, void *scratch, mp_error *err)
{
    balancing *all = user;
    layer_job job;
    (void)scratch;
    int rc = begin_layer(&job, all, (uint32_t)index, err);
    if (rc == 0)
        rc = balance_layer(&job, err);
    if (rc == 0)
        mp_meter_add(&all->meter, all->context, 1);
    mp_arena_release(&job.work.arena);
    return rc;
}

/* ------------------------------------------------------------------------
 * All layers
 */

/* Layers that were never chosen say nothing of how good the others are. */
static mp_eplb_report mean_report(const mp_eplb_report *report, uint32_t layers)
{
    mp_eplb_report mean = {0};
    uint32_t chosen = 0;
    for (uint32_t layer = 0; layer < layers; layer++) {
        const mp_eplb_report *r = &report[layer];
        if (!r->chosen)
            continue;
        chosen++;
        mean.balancedness_trivial += r->balancedness_trivial;
        mean.balancedness += r->balancedness;
        mean.balancedness_refined += r->balancedness_refined;
        mean.max_load += r->max_load;
        mean.max_load_refined += r->max_load_refined;
        mean.lower_bound += r->lower_bound;
        mean.worst_window += r->worst_window;
        mean.moves += r->moves;
        mean.colocated_replicas += r->colocated_replicas;
    }
    if (chosen == 0)
        return (mp_eplb_report){.balancedness_trivial = 1,
                                .balancedness = 1,
                                .balancedness_refined = 1,
                                .worst_window = 1};
    mean.balancedness_trivial /= chosen;
    mean.balancedness /= chosen;
    mean.balancedness_refined /= chosen;
    mean.max_load /= chosen;
    mean.max_load_refined /= chosen;
    mean.lower_bound /= chosen;
    mean.worst_window /= chosen;
    mean.moves /= chosen;
    mean.colocated_replicas /= chosen;
    mean.chosen = true;
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
    e->load_eplb = mp_alloc((uint64_t)layers * ep, sizeof(double));
    e->load = mp_alloc((uint64_t)layers * ep, sizeof(double));
    e->report = mp_alloc_zeroed(layers, sizeof(mp_eplb_report));
    bool complete = e->placement.map && e->replica_rank && e->replica_count && e->load_trivial &&
                    e->load_eplb && e->load && e->report;
    return complete ? 0 : mp_fail_memory(err);
}

int mp_eplb_balance(mp_eplb *e, const mp_counts *counts, const mp_eplb_options *given,
                    const mp_context *context, mp_error *err)
{
    mp_eplb_options own;
    const mp_eplb_options *options = &own;

    *e = (mp_eplb){0};
    if (mp_options_take("mp_eplb_options", &own, sizeof own, given, err) != 0)
        return MP_ERR_USAGE;
    balancing all = {.e = e,
                     .counts = counts,
                     .options = options,
                     .context = context,
                     .meter.total = counts->layers};
    all.windows = counts->window ? counts->windows : 1;
    int rc = check_counts(counts, err);
    if (rc == 0)
        rc = resolve_sizes(&all.sizes, counts->num_logical, options, err);
    if (rc == 0)
        rc = check_options(counts, options, err);
    if (rc == 0)
        rc = alloc_result(e, counts->layers, all.sizes.num_logical, all.sizes.num_physical,
                          all.sizes.ep, err);
    if (rc == 0)
        mp_begin_phase(context, "balancing");
    if (rc == 0)
        rc = mp_parallel(context, counts->layers, 0, balance_task, &all, err);
    if (rc == 0) {
        e->mean = mean_report(e->report, counts->layers);
        e->result = options->algorithm == MP_EPLB_BEST ? "best"
                    : options->refine > 0              ? "refined"
                    : options->from                    ? "renumbered"
                                                       : NULL;
    } else {
        mp_eplb_release(e);
    }
    return rc;
}

void mp_eplb_release(mp_eplb *e)
{
    mp_placement_release(&e->placement);
    free(e->replica_rank);
    free(e->replica_count);
    free(e->load_trivial);
    free(e->load_eplb);
    free(e->load);
    free(e->report);
    *e = (mp_eplb){0};
}
