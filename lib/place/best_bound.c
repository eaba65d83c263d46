/* SPDX-License-Identifier: Apache-2.0 */
/* What no arrangement can go below: the bound that searches work towards.
 *
 * A GPU with a copy of a hot expert also holds r - 1 other experts, and these weigh something. So a
 * target is ruled out if, under it, experts need more copies than there are slots, once each copy
 * shares its GPU with the lightest company there can be. The company depends on how many slots are
 * left over, and the copies needed depend on the company: a few rounds of the one and the other
 * come close. The largest target that is ruled out is found by bisection.
 *
 * The bound tells a search when to stop, and the report how far from optimal a result can be at
 * most. It is computed in float64 in a fixed order. One thread, its own scratch. */
#include <stdlib.h> /* qsort */

#include "place/best.h"

/* Halvings of the interval that the bound lies in, and rounds of the test, each of which knows
 * better what else a GPU with a hot expert has to hold. */
#define HALVINGS 40
#define ROUNDS   4

static int light_first(const void *a, const void *b)
{
    const mp_ranked *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight < y->weight ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int heavy_first(const void *a, const void *b)
{
    const mp_ranked *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

void mp_best_sort(mp_best_work *work, const double *weight, uint32_t n, bool heavy)
{
    mp_ranked *items = work->items;
    for (uint32_t i = 0; i < n; i++)
        items[i] = (mp_ranked){weight[i], i};
    qsort(items, n, sizeof(*items), heavy ? heavy_first : light_first);
    for (uint32_t i = 0; i < n; i++)
        work->order[i] = items[i].index;
}

double mp_hand_out(const mp_node *node, const double *weight, uint32_t *copies)
{
    uint32_t extra = node->gpus * node->room - node->experts;
    for (uint32_t e = 0; e < node->experts; e++)
        copies[e] = 1;
    double most;
    for (;; extra--) {
        uint32_t best = UINT32_MAX;
        most = 0;
        for (uint32_t e = 0; e < node->experts; e++) {
            double share = weight[e] / copies[e];
            most = share > most ? share : most;
            if (copies[e] < node->gpus &&
                (best == UINT32_MAX || share > weight[best] / copies[best]))
                best = e;
        }
        if (extra == 0 || best == UINT32_MAX)
            return most;
        copies[best]++;
    }
}

/* The least that the lightest of the first `count` experts of work->order carry together, when
 * `extra` copies make them lighter still. */
static double least_company(const mp_node *node, const double *weight, mp_best_work *work,
                            uint32_t count, uint64_t extra)
{
    uint32_t *copies = work->given;
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        copies[i] = 1;
    for (; count > 0 && extra > 0; extra--) {
        uint32_t best = UINT32_MAX;
        double most = 0;
        for (uint32_t i = 0; i < count; i++) {
            double w = weight[work->order[i]], fall = w / copies[i] - w / (copies[i] + 1);
            if (copies[i] < node->gpus && fall > most) {
                best = i;
                most = fall;
            }
        }
        if (best == UINT32_MAX)
            break;
        copies[best]++;
    }
    for (uint32_t i = 0; i < count; i++)
        sum += weight[work->order[i]] / copies[i];
    return sum;
}

/* Whether it cannot be ruled out that no GPU carries more than `most`: there are enough slots for
 * copies that are that light, also when each shares its GPU with the lightest company. */
static bool may_reach(const mp_node *node, const double *weight, mp_best_work *work, double most)
{
    uint64_t slots = (uint64_t)node->gpus * node->room;
    double company = 0;
    for (unsigned round = 0; round < ROUNDS; round++) {
        double cap = most - company;
        uint64_t needed = 0;
        if (cap <= 0)
            return false;
        for (uint32_t e = 0; e < node->experts; e++) {
            uint32_t copies = mp_copies_under(weight[e], cap);
            if (copies > node->gpus)
                return false;
            needed += copies;
        }
        if (needed > slots)
            return false;
        uint32_t light = 0;
        while (light < node->room - 1 && light < node->experts &&
               weight[work->order[light]] <= cap / 2)
            light++;
        double least = least_company(node, weight, work, light, slots - needed);
        if (least <= company)
            break;
        company = least;
    }
    return true;
}

double mp_best_bound(const mp_node *node, const double *weight, mp_best_work *work)
{
    double sum = 0;
    for (uint32_t e = 0; e < node->experts; e++)
        sum += weight[e];
    if (node->room >= node->experts)
        return sum / node->gpus;
    double low = fmax(sum / node->gpus, mp_hand_out(node, weight, work->given)), high = 2 * sum;
    mp_best_sort(work, weight, node->experts, false);
    if (may_reach(node, weight, work, low))
        return low;
    for (unsigned i = 0; i < HALVINGS; i++) {
        double middle = low + (high - low) / 2;
        if (may_reach(node, weight, work, middle))
            high = middle;
        else
            low = middle;
    }
    return low;
}
