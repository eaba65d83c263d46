/* SPDX-License-Identifier: Apache-2.0 */
/* The search of a layer: assign groups of experts to nodes, then search each node by itself.
 *
 * Once groups are assigned, nodes are independent, so the only question between them is which
 * groups go where. The exact answer would take a search of two nodes for every swap of two groups.
 * Instead a node is judged by its need, which no arrangement gets below and good ones nearly reach:
 * the larger of its mean load and T*, the largest share after all slots are handed out. Every node
 * is then searched only down to the largest bound of any node: beating the worst node gains
 * nothing.
 *
 * Weights are float64 and added in the order of experts, so the result is the same everywhere.
 * Layers run on all threads; one layer, its arena and its row belong to one thread. */
#include <string.h>

#include "base/error.h"
#include "place/best.h"

/* F computed from the row alone, without the loads that searches maintain. */
double mp_layer_f(const mp_layer *layer, const int32_t *row, double *scratch)
{
    uint32_t n = layer->experts, room = layer->physical / layer->gpus;
    double *share = scratch, f = 0;
    for (uint32_t w = 0; w < layer->windows; w++) {
        double largest = 0;
        for (uint32_t e = 0; e < n; e++)
            share[e] = 0;
        for (uint32_t p = 0; p < layer->physical; p++)
            share[row[p]]++;
        for (uint32_t e = 0; e < n; e++)
            share[e] = layer->weight[(size_t)w * n + e] / share[e];
        for (uint32_t gpu = 0; gpu < layer->gpus; gpu++) {
            double load = 0;
            for (uint32_t i = 0; i < room; i++)
                load += share[row[gpu * room + i]];
            largest = load > largest ? load : largest;
        }
        f = layer->objective == MP_EPLB_WORST ? fmax(f, largest) : f + largest;
    }
    return f;
}

/* A layer and its groups as they are being dealt out. */
typedef struct deal {
    const mp_layer *layer;
    mp_node node; /* sizes of every node; weight: scratch */
    mp_best_work work;
    uint32_t *group_node; /* [groups] */
    double *summed;       /* [experts]: weights over all windows */
    double *group_weight; /* [groups] */
    double *weight;       /* [windows][experts of a node] */
    uint32_t *expert;     /* [experts of a node]: the layer's number of each */
    double *need;         /* [nodes] */
    double *sum;          /* [nodes] */
    uint32_t *held;       /* [nodes]: groups */
} deal;

static int init(deal *d, const mp_layer *layer, mp_arena *arena, mp_error *err)
{
    uint32_t n = layer->experts / layer->nodes;
    *d = (deal){.layer = layer};
    d->node = (mp_node){.experts = n,
                        .gpus = layer->gpus / layer->nodes,
                        .room = layer->physical / layer->gpus,
                        .windows = layer->windows,
                        .objective = layer->objective};
    int rc = mp_best_work_init(&d->work, &d->node, arena, err);
    if (rc == 0 &&
        (!(d->group_node = mp_arena_alloc(arena, layer->groups * sizeof(uint32_t))) ||
         !(d->summed = mp_arena_alloc(arena, layer->experts * sizeof(double))) ||
         !(d->group_weight = mp_arena_alloc(arena, layer->groups * sizeof(double))) ||
         !(d->weight = mp_arena_alloc(arena, (size_t)layer->windows * n * sizeof(double))) ||
         !(d->expert = mp_arena_alloc(arena, n * sizeof(uint32_t))) ||
         !(d->need = mp_arena_alloc(arena, layer->nodes * sizeof(double))) ||
         !(d->sum = mp_arena_alloc(arena, layer->nodes * sizeof(double))) ||
         !(d->held = mp_arena_alloc(arena, layer->nodes * sizeof(uint32_t)))))
        rc = mp_fail_memory(err);
    return rc;
}

/* Sets d->expert to the experts of a node, in order. */
static void gather(deal *d, uint32_t node)
{
    uint32_t size = d->layer->experts / d->layer->groups, n = 0;
    for (uint32_t e = 0; e < d->layer->experts; e++)
        if (d->group_node[e / size] == node)
            d->expert[n++] = e;
}

/* What a node needs at least: the larger of its mean GPU load and its T*. */
static double need_of(deal *d, uint32_t node)
{
    double sum = 0;
    gather(d, node);
    for (uint32_t i = 0; i < d->node.experts; i++) {
        d->weight[i] = d->summed[d->expert[i]];
        sum += d->weight[i];
    }
    double even = mp_hand_out(&d->node, d->weight, d->work.given);
    return d->node.room >= d->node.experts ? sum / d->node.gpus : fmax(sum / d->node.gpus, even);
}

/* Groups by weight to the node with the least that takes one more: a first guess, which swap_groups
 * improves. */
static int deal_groups(deal *d, mp_arena *arena, mp_error *err)
{
    const mp_layer *layer = d->layer;
    uint32_t size = layer->experts / layer->groups, room = layer->groups / layer->nodes;
    mp_best_work work;
    const mp_node groups = {.experts = layer->groups, .gpus = 1};
    int rc = mp_best_work_init(&work, &groups, arena, err);
    if (rc != 0)
        return rc;
    memset(d->summed, 0, layer->experts * sizeof(double));
    for (size_t i = 0; i < (size_t)layer->windows * layer->experts; i++)
        d->summed[i % layer->experts] += layer->weight[i];
    memset(d->group_weight, 0, layer->groups * sizeof(double));
    for (uint32_t e = 0; e < layer->experts; e++)
        d->group_weight[e / size] += d->summed[e];
    for (uint32_t node = 0; node < layer->nodes; node++) {
        d->sum[node] = 0;
        d->held[node] = 0;
    }
    mp_best_sort(&work, d->group_weight, layer->groups, true);
    for (uint32_t i = 0; i < layer->groups; i++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t node = 0; node < layer->nodes; node++)
            if (d->held[node] < room && (best == UINT32_MAX || d->sum[node] < d->sum[best]))
                best = node;
        d->group_node[work.order[i]] = best;
        d->sum[best] += d->group_weight[work.order[i]];
        d->held[best]++;
    }
    return 0;
}

/* The larger need of the two nodes when groups x and y have changed places. */
static double need_after(deal *d, uint32_t x, uint32_t y)
{
    uint32_t of_x = d->group_node[x], of_y = d->group_node[y];
    d->group_node[x] = of_y;
    d->group_node[y] = of_x;
    double need = fmax(need_of(d, of_x), need_of(d, of_y));
    d->group_node[x] = of_x;
    d->group_node[y] = of_y;
    return need;
}

/* Swaps groups of the neediest node as long as that lowers the larger need of the two. */
static void swap_groups(deal *d)
{
    const mp_layer *layer = d->layer;
    if (layer->nodes == 1)
        return;
    for (;;) {
        uint32_t best_x = UINT32_MAX, best_y = 0;
        for (uint32_t node = 0; node < layer->nodes; node++)
            d->need[node] = need_of(d, node);
        uint32_t h = mp_largest(d->need, layer->nodes);
        double best = d->need[h];
        for (uint32_t x = 0; x < layer->groups; x++)
            for (uint32_t y = 0; d->group_node[x] == h && y < layer->groups; y++) {
                double need = d->group_node[y] == h ? INFINITY : need_after(d, x, y);
                /* By more than rounding error, or two groups could swap back and forth forever. */
                if (mp_lower(need, best)) {
                    best = need;
                    best_x = x;
                    best_y = y;
                }
            }
        if (best_x == UINT32_MAX)
            return;
        uint32_t keep = d->group_node[best_x];
        d->group_node[best_x] = d->group_node[best_y];
        d->group_node[best_y] = keep;
    }
}

static void take_weights(deal *d, uint32_t node)
{
    uint32_t n = d->node.experts;
    gather(d, node);
    for (size_t i = 0; i < (size_t)d->node.windows * n; i++)
        d->weight[i] = d->layer->weight[i / n * d->layer->experts + d->expert[i % n]];
}

/* The layer's bound: of every window the largest of its nodes'. */
static double bound_of(deal *d)
{
    double bound = 0;
    for (uint32_t w = 0; w < d->layer->windows; w++) {
        double largest = 0;
        for (uint32_t node = 0; node < d->layer->nodes; node++) {
            take_weights(d, node);
            largest = fmax(largest, mp_best_bound(&d->node, d->weight + (size_t)w * d->node.experts,
                                                  &d->work));
        }
        bound = d->layer->objective == MP_EPLB_WORST ? fmax(bound, largest) : bound + largest;
    }
    return bound;
}

int mp_best_layer(const mp_layer *layer, int32_t *row, double *bound, mp_arena *arena,
                  mp_error *err)
{
    deal d;
    mp_arrangement a;
    int rc = init(&d, layer, arena, err);
    if (rc == 0)
        rc = deal_groups(&d, arena, err);
    if (rc == 0)
        rc = mp_arrangement_init(&a, &d.node, arena, err);
    if (rc != 0)
        return rc;
    swap_groups(&d);
    /* This overwrites d.weight; take_weights fills it again for each node. */
    d.node.bound = *bound = bound_of(&d);
    d.node.weight = d.weight;
    uint32_t slots = d.node.gpus * d.node.room;
    for (uint32_t node = 0; rc == 0 && node < layer->nodes; node++) {
        take_weights(&d, node);
        rc = layer->windows == 1 ? mp_best_node(&d.node, &a, arena, err)
                                 : mp_best_windows(&d.node, &a, arena, err);
        for (uint32_t i = 0; rc == 0 && i < slots; i++)
            row[node * slots + i] = (int32_t)d.expert[a.slot[i]];
    }
    return rc;
}
