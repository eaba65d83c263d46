/* SPDX-License-Identifier: Apache-2.0 */
/* Refining a layer's placement by swaps: less load on the most loaded GPU, and fewer copies of one
 * expert on the same GPU.
 *
 * Two copies on one GPU waste a slot, since they do not spread a hot expert's load. So copies are
 * parted first, as far as swaps allow, and then load is lowered. Parting may raise the load for a
 * moment; if swaps cannot make up for it, the attempt is undone, so the largest load never ends up
 * higher than it began. Each swap either lowers a load by more than rounding error or parts two
 * copies, and the number of swaps is limited, so this terminates.
 *
 * The numbers of copies stay as EPLB made them, and experts stay on their node. Loads are float64
 * and summed afresh in slot order. One thread, one layer. */
#include <math.h>
#include <string.h>

#include "place/eplb.h"

/* A swap must lower a load by more than rounding can pretend. */
#define NOTICEABLE 1e-9

/* Two physical experts that might change places. */
typedef struct swap {
    uint32_t a, b;
    double peak; /* larger load of their two GPUs afterwards */
    bool found;
} swap;

/* What a swap is for. Neither kind puts two copies of an expert on one GPU. */
typedef enum purpose { LOWER_LOAD, PART_COPIES } purpose;

void mp_eplb_carry(mp_eplb_work *work, const float *weights, const int32_t *count)
{
    for (uint32_t e = 0; e < work->num_logical; e++)
        work->carried[e] = (double)weights[e] / count[e];
}

static double gpu_load(const mp_eplb_work *work, const int32_t *map, uint32_t gpu)
{
    uint32_t room = work->num_physical / work->ep;
    double load = 0;
    for (uint32_t i = 0; i < room; i++)
        load += work->carried[map[gpu * room + i]];
    return load;
}

double mp_eplb_loads(const mp_eplb_work *work, const int32_t *map, double *load)
{
    double largest = 0;
    for (uint32_t gpu = 0; gpu < work->ep; gpu++) {
        load[gpu] = gpu_load(work, map, gpu);
        if (load[gpu] > largest)
            largest = load[gpu];
    }
    return largest;
}

static uint32_t most_loaded(const mp_eplb_work *work)
{
    uint32_t best = 0;
    for (uint32_t gpu = 1; gpu < work->ep; gpu++)
        if (work->load[gpu] > work->load[best])
            best = gpu;
    return best;
}

/* True when a GPU holds the expert in another place than `except`. */
static bool holds(const mp_eplb_work *work, const int32_t *map, uint32_t gpu, int32_t expert,
                  uint32_t except)
{
    uint32_t room = work->num_physical / work->ep;
    for (uint32_t p = gpu * room; p < (gpu + 1) * room; p++)
        if (map[p] == expert && p != except)
            return true;
    return false;
}

/* True when swapping a and b would leave either GPU with two copies of what it gets. */
static bool puts_together(const mp_eplb_work *work, const int32_t *map, uint32_t a, uint32_t b)
{
    uint32_t room = work->num_physical / work->ep;
    return holds(work, map, b / room, map[a], b) || holds(work, map, a / room, map[b], a);
}

/* Tries to swap physical expert a with every one of another GPU, for a lower peak than best->peak.
 * To part copies, a swap of equals is as good as can be, whatever its GPUs carry. */
static void try_gpu(const mp_eplb_work *work, const int32_t *map, uint32_t a, uint32_t gpu,
                    purpose why, swap *best)
{
    uint32_t room = work->num_physical / work->ep;
    double from = work->load[a / room], to = work->load[gpu];
    for (uint32_t b = gpu * room; b < (gpu + 1) * room; b++) {
        double moved = work->carried[map[a]] - work->carried[map[b]];
        double peak = from - moved > to + moved ? from - moved : to + moved;
        if (why == PART_COPIES && moved == 0)
            peak = 0;
        /* Ask the expensive question last. */
        if (peak < best->peak && !puts_together(work, map, a, b))
            *best = (swap){a, b, peak, true};
    }
}

/* Tries to swap physical expert a with every one on the other GPUs of its node. */
static void try_node(const mp_eplb_work *work, const int32_t *map, uint32_t a, purpose why,
                     swap *best)
{
    uint32_t gpu = a / (work->num_physical / work->ep);
    uint32_t node_gpus = work->ep / work->nodes;
    uint32_t first = gpu / node_gpus * node_gpus;
    for (uint32_t other = first; other < first + node_gpus; other++)
        if (other != gpu)
            try_gpu(work, map, a, other, why, best);
}

/* The swap that lowers the most loaded GPU furthest, without raising another above it. */
static swap lowering_swap(const mp_eplb_work *work, const int32_t *map)
{
    uint32_t room = work->num_physical / work->ep;
    uint32_t gpu = most_loaded(work);
    swap best = {.peak = work->load[gpu] * (1 - NOTICEABLE)};
    for (uint32_t a = gpu * room; a < (gpu + 1) * room; a++)
        try_node(work, map, a, LOWER_LOAD, &best);
    return best;
}

/* The swap that parts two copies on one GPU and loads its GPUs least. */
static swap parting_swap(const mp_eplb_work *work, const int32_t *map)
{
    uint32_t room = work->num_physical / work->ep;
    swap best = {.peak = INFINITY};
    for (uint32_t a = 0; a < work->num_physical; a++)
        if (holds(work, map, a / room, map[a], a))
            try_node(work, map, a, PART_COPIES, &best);
    return best;
}

static void do_swap(mp_eplb_work *work, int32_t *map, int32_t *rank, const swap *s)
{
    uint32_t room = work->num_physical / work->ep;
    int32_t expert = map[s->a], replica = rank[s->a];
    map[s->a] = map[s->b];
    rank[s->a] = rank[s->b];
    map[s->b] = expert;
    rank[s->b] = replica;
    work->load[s->a / room] = gpu_load(work, map, s->a / room);
    work->load[s->b / room] = gpu_load(work, map, s->b / room);
}

/* Swaps for less load until the largest is at most `limit` or no swap helps. Returns how many of
 * the swaps are left. */
static uint32_t lower_load(mp_eplb_work *work, int32_t *map, int32_t *rank, double limit,
                           uint32_t swaps)
{
    while (swaps > 0 && work->load[most_loaded(work)] > limit) {
        swap s = lowering_swap(work, map);
        if (!s.found)
            break;
        do_swap(work, map, rank, &s);
        swaps--;
    }
    return swaps;
}

/* Parts copies one by one. That may raise the largest load for a moment; a parting that swaps for
 * less load cannot make up for is taken back. Returns how many of the swaps are left. */
static uint32_t part_copies(mp_eplb_work *work, int32_t *map, int32_t *rank, uint32_t swaps)
{
    size_t bytes = work->num_physical * sizeof(*map);
    double limit = work->load[most_loaded(work)];
    while (swaps > 0) {
        swap s = parting_swap(work, map);
        if (!s.found)
            break;
        memcpy(work->saved_map, map, bytes);
        memcpy(work->saved_rank, rank, bytes);
        do_swap(work, map, rank, &s);
        swaps = lower_load(work, map, rank, limit, swaps - 1);
        if (work->load[most_loaded(work)] > limit) {
            memcpy(map, work->saved_map, bytes);
            memcpy(rank, work->saved_rank, bytes);
            mp_eplb_loads(work, map, work->load);
            break;
        }
    }
    return swaps;
}

void mp_eplb_refine(mp_eplb_work *work, int32_t *map, int32_t *rank, uint32_t swaps)
{
    mp_eplb_loads(work, map, work->load);
    swaps = part_copies(work, map, rank, swaps);
    lower_load(work, map, rank, 0, swaps);
}
