/* SPDX-License-Identifier: Apache-2.0 */
/* DeepSeek's load balancing of one layer: packing, replication, and both inside nodes.
 *
 * Engines run the original in PyTorch, and a plan made here has to match what they would do. So all
 * arithmetic is float32 and in the original's order. Where the original leaves ties to its sort,
 * they go to the lowest index. The original finds the lightest pack and the heaviest replica by
 * scanning; heaps ordered by (weight, index) find the same ones.
 *
 *     physical = node * (P / nodes) + gpu * (P / gpus) + rank in the GPU
 *
 * Sizes divide evenly, which eplb.c has checked. Each layer has its own work, so threads share
 * nothing. Source: deepseek-ai/EPLB, eplb.py. */
#include "place/eplb.h"

#include <stdlib.h> /* qsort */
#include <string.h>

#include "base/error.h"

int mp_eplb_work_init(mp_eplb_work *work, mp_error *err)
{
    mp_arena *arena = &work->arena;
    size_t n = work->num_logical, p = work->num_physical;
    size_t heap = n > work->ep ? n : work->ep;
    bool complete = (work->items = mp_arena_alloc(arena, p * sizeof(*work->items))) &&
                    (work->heap = mp_arena_alloc(arena, heap * sizeof(*work->heap))) &&
                    (work->pack_fill = mp_arena_alloc(arena, work->ep * sizeof(uint32_t))) &&
                    (work->weight = mp_arena_alloc(arena, p * sizeof(float))) &&
                    (work->pack = mp_arena_alloc(arena, p * sizeof(uint32_t))) &&
                    (work->rank_in_pack = mp_arena_alloc(arena, p * sizeof(uint32_t))) &&
                    (work->ordered = mp_arena_alloc(arena, n * sizeof(uint32_t))) &&
                    (work->expert = mp_arena_alloc(arena, p * sizeof(uint32_t))) &&
                    (work->replica = mp_arena_alloc(arena, p * sizeof(uint32_t))) &&
                    (work->count = mp_arena_alloc(arena, n * sizeof(uint32_t))) &&
                    (work->carried = mp_arena_alloc(arena, n * sizeof(double))) &&
                    (work->load = mp_arena_alloc(arena, work->ep * sizeof(double))) &&
                    (work->seen = mp_arena_alloc(arena, n * sizeof(uint32_t))) &&
                    (work->saved_map = mp_arena_alloc(arena, p * sizeof(int32_t))) &&
                    (work->saved_rank = mp_arena_alloc(arena, p * sizeof(int32_t)));
    return complete ? 0 : mp_fail_memory(err);
}

/* Heavy first; equal weights in index order, as a stable sort leaves them. */
static int heavy_first(const void *a, const void *b)
{
    const mp_weighted *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

/* Order of the heaps: the lightest at the top, the lowest index of equals. */
static bool lighter(mp_weighted x, mp_weighted y)
{
    return x.weight < y.weight || (x.weight == y.weight && x.index < y.index);
}

/* Restores the order of a heap below entry i, which has become heavier. */
static void sink(mp_weighted *heap, uint32_t n, uint32_t i)
{
    mp_weighted entry = heap[i];
    for (uint32_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && lighter(heap[child + 1], heap[child]))
            child++;
        if (!lighter(heap[child], entry))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = entry;
}

/* Puts n items into packs of n / packs each, by work->weight. Sets work->pack and
 * work->rank_in_pack of every item. */
static void pack_items(mp_eplb_work *work, uint32_t n, uint32_t packs)
{
    uint32_t room = n / packs;
    /* As in the original, one item per pack is not sorted: item i stays in place i. */
    if (room == 1) {
        for (uint32_t i = 0; i < n; i++) {
            work->pack[i] = i;
            work->rank_in_pack[i] = 0;
        }
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        work->items[i] = (mp_weighted){work->weight[i], i};
    qsort(work->items, n, sizeof(*work->items), heavy_first);
    memset(work->pack_fill, 0, packs * sizeof(*work->pack_fill));
    mp_weighted *open = work->heap; /* packs with room, the lightest on top */
    for (uint32_t k = 0; k < packs; k++)
        open[k] = (mp_weighted){0, k};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t item = work->items[i].index, k = open[0].index;
        work->pack[item] = k;
        work->rank_in_pack[item] = work->pack_fill[k]++;
        open[0].weight += work->items[i].weight;
        if (work->pack_fill[k] == room)
            /* A full pack leaves the heap. The last entry takes the top and sinks to its place. */
            open[0] = open[--packs];
        sink(open, packs, 0);
    }
}

/* Packs expert groups to nodes and sets work->ordered: the experts of node 0, of node 1, ..., each
 * node's groups by their rank in it. */
static void order_experts(mp_eplb_work *work, const float *weights)
{
    uint32_t group_size = work->num_logical / work->groups;
    uint32_t node_groups = work->groups / work->nodes;
    for (uint32_t g = 0; g < work->groups; g++) {
        work->weight[g] = 0;
        for (uint32_t i = 0; i < group_size; i++)
            work->weight[g] += weights[g * group_size + i];
    }
    pack_items(work, work->groups, work->nodes);
    for (uint32_t g = 0; g < work->groups; g++) {
        uint32_t place = work->pack[g] * node_groups + work->rank_in_pack[g];
        for (uint32_t i = 0; i < group_size; i++)
            work->ordered[place * group_size + i] = g * group_size + i;
    }
}

/* Replicates a node's experts to `copies` physical ones: the expert whose replicas carry most gets
 * one more, until all are given out. Sets work->expert, replica, count, and the weight that each
 * physical expert carries. experts: the node's part of work->ordered. */
static void replicate(mp_eplb_work *work, const float *weights, const uint32_t *experts, uint32_t n,
                      uint32_t copies)
{
    mp_weighted *heap = work->heap; /* what a replica carries, negated: the heaviest on top */
    for (uint32_t e = 0; e < n; e++) {
        work->expert[e] = e;
        work->replica[e] = 0;
        work->count[e] = 1;
        heap[e] = (mp_weighted){-weights[experts[e]], e};
    }
    for (uint32_t i = n / 2; i-- > 0;)
        sink(heap, n, i);
    for (uint32_t p = n; p < copies; p++) {
        uint32_t e = heap[0].index;
        work->expert[p] = e;
        work->replica[p] = work->count[e]++;
        /* Divide the weight again rather than scale the last quotient, which would round
         * differently. */
        heap[0].weight = -weights[experts[e]] / (float)work->count[e];
        sink(heap, n, 0);
    }
    for (uint32_t p = 0; p < copies; p++) {
        uint32_t e = work->expert[p];
        work->weight[p] = weights[experts[e]] / (float)work->count[e];
    }
}

/* Global balancing is the same with one node and one group. */
void mp_eplb_layer(mp_eplb_work *work, const float *weights, int32_t *map, int32_t *rank,
                   int32_t *count)
{
    uint32_t node_experts = work->num_logical / work->nodes;
    uint32_t node_physical = work->num_physical / work->nodes;
    uint32_t node_gpus = work->ep / work->nodes;
    uint32_t gpu_physical = work->num_physical / work->ep;

    order_experts(work, weights);
    for (uint32_t node = 0; node < work->nodes; node++) {
        const uint32_t *experts = work->ordered + (size_t)node * node_experts;
        replicate(work, weights, experts, node_experts, node_physical);
        for (uint32_t e = 0; e < node_experts; e++)
            count[experts[e]] = (int32_t)work->count[e];
        pack_items(work, node_physical, node_gpus);
        for (uint32_t p = 0; p < node_physical; p++) {
            uint32_t at =
                node * node_physical + work->pack[p] * gpu_physical + work->rank_in_pack[p];
            map[at] = (int32_t)experts[work->expert[p]];
            rank[at] = (int32_t)work->replica[p];
        }
    }
}
