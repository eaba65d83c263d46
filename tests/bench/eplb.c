/* SPDX-License-Identifier: Apache-2.0 */
/* How near placements come to the bound, by DeepSeek's algorithm, with swaps and by search, and how
 * long each takes on one core. Counts are random and the same on every run. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <moepack/place.h>

#include "../unit/random_counts.h"

static const char *const spread_names[] = {"zipf 0.8", "zipf 1.2", "zipf 1.6", "log-normal",
                                           "few hot"};

typedef struct problem {
    uint32_t layers, experts, physical, gpus, nodes, groups;
} problem;

/* Mean of the largest load over the bound, less 1, in percent. */
static double gap(const mp_eplb *e, const double *bound)
{
    double sum = 0;
    for (uint32_t layer = 0; layer < e->placement.layers; layer++)
        sum += e->report[layer].max_load_refined / bound[layer] - 1;
    return 100 * sum / e->placement.layers;
}

static double run(mp_eplb *e, const mp_counts *c, mp_eplb_options options)
{
    const mp_context context = {.threads = 1};
    mp_error err;
    clock_t start = clock(); /* of the processor: others may be at work */
    if (mp_eplb_balance(e, c, &options, &context, &err) != 0) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

static void measure(const problem *p, spread kind)
{
    mp_counts c = make_counts(p->layers, p->experts, kind);
    mp_eplb_options options = {.size = sizeof(mp_eplb_options),
                               .num_physical = p->physical,
                               .ep = p->gpus,
                               .nodes = p->nodes,
                               .groups = p->groups};
    mp_eplb plain, swapped, best;
    double *bound = malloc(p->layers * sizeof(*bound));
    double plain_s = run(&plain, &c, options);
    options.refine = 1000;
    double swapped_s = run(&swapped, &c, options);
    options.refine = 0;
    options.algorithm = MP_EPLB_BEST;
    double best_s = run(&best, &c, options), worst = 0;
    for (uint32_t layer = 0; layer < p->layers; layer++) {
        bound[layer] = best.report[layer].lower_bound;
        worst = fmax(worst, best.report[layer].max_load_refined / bound[layer] - 1);
    }
    printf("%4u -> %4u on %4u in %u  %-10s  %7.3f %8.3f %7.3f %7.3f  %7.4f %8.3f %8.3f\n",
           p->experts, p->physical, p->gpus, p->nodes, spread_names[kind], gap(&plain, bound),
           gap(&swapped, bound), gap(&best, bound), 100 * worst, plain_s, swapped_s, best_s);
    mp_eplb_release(&plain);
    mp_eplb_release(&swapped);
    mp_eplb_release(&best);
    mp_counts_release(&c);
    free(bound);
}

int main(void)
{
    static const problem problems[] = {{58, 64, 80, 8, 1, 1},      {58, 128, 144, 16, 1, 1},
                                       {58, 256, 288, 32, 1, 1},   {58, 256, 320, 64, 1, 1},
                                       {58, 256, 288, 32, 4, 8},   {20, 256, 384, 128, 1, 1},
                                       {10, 512, 1024, 512, 1, 1}, {10, 512, 2048, 1024, 1, 1}};
    printf("                                        gap to the bound, %%              seconds\n"
           "                                          eplb    swaps    best  (worst)    eplb    "
           "swaps     best\n");
    for (size_t i = 0; i < sizeof(problems) / sizeof(problems[0]); i++)
        for (int kind = 0; kind < SPREADS; kind++)
            measure(&problems[i], (spread)kind);
    return 0;
}
