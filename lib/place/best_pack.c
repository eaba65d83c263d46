/* SPDX-License-Identifier: Apache-2.0 */
/* Arrangements, and filling one from scratch: heavy copies first, onto the least loaded GPUs.
 *
 *     slot  [g][r]   experts of a GPU, `fill` of them, in the order they came
 *     on    [g]      the same as one bit per expert, to tell quickly whether a GPU holds it
 *     load  [w][g]   the sum of the shares in a GPU's slots
 *
 * The three always agree. Loads are not updated by adding and subtracting: after a swap both GPUs
 * are summed afresh, in slot order. So rounding errors do not pile up, and two ways to the same
 * arrangement give the same bits.
 *
 * Packing runs thousands of times per node. A heap finds the least loaded GPU, and since the order
 * of experts barely changes between runs, insertion sort keeps it. Swapping only considers the most
 * loaded GPU, because no other swap lowers the largest load. One thread, with its own arrangement
 * and scratch. */
#include <string.h>

#include "base/error.h"
#include "place/best.h"

int mp_best_work_init(mp_best_work *work, const mp_node *node, mp_arena *arena, mp_error *err)
{
    size_t n = node->experts;
    bool complete = (work->items = mp_arena_alloc(arena, n * sizeof(*work->items))) &&
                    (work->order = mp_arena_alloc(arena, n * sizeof(uint32_t))) &&
                    (work->heap = mp_arena_alloc(arena, node->gpus * sizeof(uint32_t))) &&
                    (work->given = mp_arena_alloc(arena, n * sizeof(uint32_t)));
    for (uint32_t i = 0; complete && i < n; i++)
        work->order[i] = i;
    return complete ? 0 : mp_fail_memory(err);
}

int mp_arrangement_init(mp_arrangement *a, const mp_node *node, mp_arena *arena, mp_error *err)
{
    size_t n = node->experts, g = node->gpus, windows = node->windows;
    bool complete = (a->copies = mp_arena_alloc(arena, n * sizeof(*a->copies))) &&
                    (a->slot = mp_arena_alloc(arena, g * node->room * sizeof(*a->slot))) &&
                    (a->fill = mp_arena_alloc(arena, g * sizeof(*a->fill))) &&
                    (a->on = mp_arena_alloc(arena, g * mp_on_words(node) * sizeof(*a->on))) &&
                    (a->share = mp_arena_alloc(arena, windows * n * sizeof(*a->share))) &&
                    (a->load = mp_arena_alloc(arena, windows * g * sizeof(*a->load)));
    return complete ? 0 : mp_fail_memory(err);
}

void mp_arrangement_copy(mp_arrangement *to, const mp_arrangement *from, const mp_node *node)
{
    size_t n = node->experts, g = node->gpus, windows = node->windows;
    memcpy(to->copies, from->copies, n * sizeof(*to->copies));
    memcpy(to->slot, from->slot, g * node->room * sizeof(*to->slot));
    memcpy(to->fill, from->fill, g * sizeof(*to->fill));
    memcpy(to->on, from->on, g * mp_on_words(node) * sizeof(*to->on));
    memcpy(to->share, from->share, windows * n * sizeof(*to->share));
    memcpy(to->load, from->load, windows * g * sizeof(*to->load));
}

void mp_clear(const mp_node *node, mp_arrangement *a)
{
    uint32_t n = node->experts, g = node->gpus;
    for (size_t i = 0; i < (size_t)node->windows * n; i++)
        a->share[i] = node->weight[i] / a->copies[i % n];
    memset(a->slot, 0xff, (size_t)g * node->room * sizeof(*a->slot));
    memset(a->fill, 0, g * sizeof(*a->fill));
    memset(a->on, 0, (size_t)g * mp_on_words(node) * sizeof(*a->on));
    for (size_t i = 0; i < (size_t)node->windows * g; i++)
        a->load[i] = 0;
}

void mp_seat(const mp_node *node, mp_arrangement *a, uint32_t gpu, uint32_t expert)
{
    a->slot[(size_t)gpu * node->room + a->fill[gpu]++] = (int32_t)expert;
    mp_set_holds(a, node, gpu, expert, true);
    for (size_t w = 0; w < node->windows; w++)
        a->load[w * node->gpus + gpu] += a->share[w * node->experts + expert];
}

static void sum_gpu(const mp_node *node, mp_arrangement *a, uint32_t gpu)
{
    const int32_t *slot = a->slot + (size_t)gpu * node->room;
    for (size_t w = 0; w < node->windows; w++) {
        double load = 0;
        for (uint32_t i = 0; i < a->fill[gpu]; i++)
            load += a->share[w * node->experts + (size_t)slot[i]];
        a->load[w * node->gpus + gpu] = load;
    }
}

void mp_swap_slots(const mp_node *node, mp_arrangement *a, uint32_t x, uint32_t y)
{
    uint32_t of_x = x / node->room, of_y = y / node->room;
    int32_t expert = a->slot[x];
    mp_set_holds(a, node, of_x, (uint32_t)expert, false);
    mp_set_holds(a, node, of_y, (uint32_t)a->slot[y], false);
    a->slot[x] = a->slot[y];
    a->slot[y] = expert;
    mp_set_holds(a, node, of_x, (uint32_t)a->slot[x], true);
    mp_set_holds(a, node, of_y, (uint32_t)expert, true);
    sum_gpu(node, a, of_x);
    sum_gpu(node, a, of_y);
}

void mp_make_room(const mp_node *node, mp_arrangement *a, uint32_t gpu, uint32_t expert,
                  const double *share, const double *load)
{
    size_t best_slot = 0;
    double best = INFINITY;
    for (uint32_t h = 0; h < node->gpus; h++) {
        if (mp_holds(a, node, h, expert))
            continue;
        for (size_t i = (size_t)h * node->room; i < (size_t)h * node->room + a->fill[h]; i++) {
            uint32_t y = (uint32_t)a->slot[i];
            double peak = fmax(load[gpu] + share[y], load[h] - share[y] + share[expert]);
            if (!mp_holds(a, node, gpu, y) && (best == INFINITY || mp_lower(peak, best))) {
                best = peak;
                best_slot = i;
            }
        }
    }
    /* One always exists. No expert has more than g copies, so some GPU h lacks this one, and it is
     * full, since all GPUs with room hold it. h has r different experts. `gpu` has fewer, and one
     * of those is not on h, so some expert of h is not on `gpu`. */
    uint32_t h = (uint32_t)(best_slot / node->room), y = (uint32_t)a->slot[best_slot];
    mp_seat(node, a, gpu, y);
    mp_set_holds(a, node, h, y, false);
    mp_set_holds(a, node, h, expert, true);
    a->slot[best_slot] = (int32_t)expert;
    sum_gpu(node, a, h);
}

/* ------------------------------------------------------------------------
 * Packing: a heap of the GPUs with room
 */

static bool lighter(const double *load, uint32_t x, uint32_t y)
{
    return load[x] != load[y] ? load[x] < load[y] : x < y;
}

/* Puts a GPU into its place below entry i, whose children are in order. */
static void sink(const double *load, uint32_t *heap, uint32_t count, uint32_t i, uint32_t gpu)
{
    for (uint32_t child = 2 * i + 1; child < count; child = 2 * i + 1) {
        if (child + 1 < count && lighter(load, heap[child + 1], heap[child]))
            child++;
        if (!lighter(load, heap[child], gpu))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = gpu;
}

static void push(const double *load, uint32_t *heap, uint32_t count, uint32_t gpu)
{
    uint32_t i = count;
    for (; i > 0 && lighter(load, gpu, heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = gpu;
}

/* Places the copies of an expert on the least loaded GPUs with room. Returns how many still have
 * room afterwards. */
static uint32_t pack_expert(const mp_node *node, mp_arrangement *a, uint32_t *heap, uint32_t count,
                            uint32_t expert)
{
    uint32_t left = a->copies[expert], out = count;
    /* A GPU that was served waits behind the heap's end: it is not to be served twice. */
    for (; left > 0 && out > 0; left--) {
        uint32_t gpu = heap[0];
        mp_seat(node, a, gpu, expert);
        out--;
        sink(a->load, heap, out, 0, heap[out]);
        heap[out] = gpu;
    }
    uint32_t served = count, open = out;
    for (uint32_t i = out; i < served; i++)
        if (a->fill[heap[i]] < node->room)
            push(a->load, heap, open++, heap[i]);
    /* No GPU without the expert has room left: exchange with a full one. */
    for (; left > 0; left--) {
        uint32_t gpu = heap[0];
        mp_make_room(node, a, gpu, expert, a->share, a->load);
        if (a->fill[gpu] == node->room)
            gpu = heap[--open];
        sink(a->load, heap, open, 0, gpu);
    }
    return open;
}

static bool behind(const double *share, uint32_t x, uint32_t y)
{
    return share[x] != share[y] ? share[x] < share[y] : x > y;
}

/* Sorts work->order by share, heavy first. One pack after the other has nearly the same order,
 * which insertion makes use of as long as it pays. */
static void sort_by_share(const mp_node *node, const double *share, mp_best_work *work)
{
    uint32_t *order = work->order;
    uint64_t patience = 8 * (uint64_t)node->experts;
    for (uint32_t i = 1; i < node->experts && patience > 0; i++) {
        uint32_t e = order[i], j = i;
        for (; j > 0 && behind(share, order[j - 1], e) && patience > 0; j--, patience--)
            order[j] = order[j - 1];
        order[j] = e;
    }
    /* The order changed too much: sort from scratch. */
    if (patience == 0)
        mp_best_sort(work, share, node->experts, true);
}

double mp_pack(const mp_node *node, mp_arrangement *a, mp_best_work *work)
{
    uint32_t g = node->gpus, i = 0, filled = 0;
    mp_clear(node, a);
    sort_by_share(node, a->share, work);
    /* As long as there are empty GPUs, they are the least loaded ones. */
    for (; i < node->experts; i++) {
        uint32_t expert = work->order[i];
        if (a->copies[expert] > g - filled || !(a->share[expert] > 0))
            break;
        for (uint32_t c = 0; c < a->copies[expert]; c++)
            mp_seat(node, a, filled++, expert);
    }
    uint32_t open = 0;
    for (uint32_t gpu = 0; gpu < g; gpu++)
        if (a->fill[gpu] < node->room)
            work->heap[open++] = gpu;
    for (uint32_t k = open / 2; k-- > 0;)
        sink(a->load, work->heap, open, k, work->heap[k]);
    for (; i < node->experts; i++)
        open = pack_expert(node, a, work->heap, open, work->order[i]);
    return a->load[mp_largest(a->load, g)];
}

/* ------------------------------------------------------------------------
 * Swapping
 */

/* Slots that might change places. */
typedef struct swap {
    size_t a[2], b[2];
    double peak; /* larger load of their two GPUs afterwards */
    bool found;
} swap;

/* Each swap lowers the load of the most loaded GPU by more than rounding error, so this
 * terminates. */
double mp_swap(const mp_node *node, mp_arrangement *a, double goal)
{
    size_t room = node->room;
    for (;;) {
        uint32_t h = mp_largest(a->load, node->gpus);
        swap best = {.peak = a->load[h]};
        for (size_t i = h * room; i < (h + 1) * room && a->load[h] > goal; i++) {
            double x = a->share[a->slot[i]];
            for (uint32_t l = 0; l < node->gpus; l++) {
                /* No swap gets below the mean of the two. */
                if (l == h || !mp_lower((a->load[h] + a->load[l]) / 2, best.peak) ||
                    mp_holds(a, node, l, (uint32_t)a->slot[i]))
                    continue;
                for (size_t j = l * room; j < (l + 1) * room; j++) {
                    double d = x - a->share[a->slot[j]];
                    double peak = fmax(a->load[h] - d, a->load[l] + d);
                    if (d > 0 && mp_lower(peak, best.peak) &&
                        !mp_holds(a, node, h, (uint32_t)a->slot[j]))
                        best = (swap){{i}, {j}, peak, true};
                }
            }
        }
        if (!best.found)
            return a->load[h];
        mp_swap_slots(node, a, (uint32_t)best.a[0], (uint32_t)best.b[0]);
    }
}

/* Tries two copies of the most loaded GPU h for all pairs of l. */
static void try_pairs(const mp_node *node, const mp_arrangement *a, uint32_t h, uint32_t l,
                      size_t i, size_t k, swap *best)
{
    size_t room = node->room;
    double x = a->share[a->slot[i]] + a->share[a->slot[k]];
    if (mp_holds(a, node, l, (uint32_t)a->slot[i]) || mp_holds(a, node, l, (uint32_t)a->slot[k]))
        return;
    for (size_t j = l * room; j < (l + 1) * room; j++) {
        if (mp_holds(a, node, h, (uint32_t)a->slot[j]))
            continue;
        for (size_t m = j + 1; m < (l + 1) * room; m++) {
            double d = x - a->share[a->slot[j]] - a->share[a->slot[m]];
            double peak = fmax(a->load[h] - d, a->load[l] + d);
            if (d > 0 && mp_lower(peak, best->peak) && !mp_holds(a, node, h, (uint32_t)a->slot[m]))
                *best = (swap){{i, k}, {j, m}, peak, true};
        }
    }
}

bool mp_swap_two(const mp_node *node, mp_arrangement *a)
{
    size_t room = node->room;
    uint32_t h = mp_largest(a->load, node->gpus);
    swap best = {.peak = a->load[h]};
    for (size_t i = h * room; i < (h + 1) * room; i++)
        for (size_t k = i + 1; k < (h + 1) * room; k++)
            for (uint32_t l = 0; l < node->gpus; l++)
                if (l != h && mp_lower((a->load[h] + a->load[l]) / 2, best.peak))
                    try_pairs(node, a, h, l, i, k, &best);
    for (unsigned pair = 0; pair < 2 && best.found; pair++)
        mp_swap_slots(node, a, (uint32_t)best.a[pair], (uint32_t)best.b[pair]);
    return best.found;
}
