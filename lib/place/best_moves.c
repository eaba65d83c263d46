/* SPDX-License-Identifier: Apache-2.0 */
/* What differs between two placements, and how to number GPUs so that it is least.
 *
 * A search does not care which GPU gets which number, but every slot whose expert changes means
 * weights to move. So the GPUs of a result are numbered to keep as many copies as possible where
 * they were. That is an assignment problem, solved exactly by shortest augmenting paths (Kuhn's
 * Hungarian method) in O(n^3). With nodes it is solved twice, since the GPUs of a node stay
 * together: for every pair of an old and a new node by their GPUs, then for the nodes by those
 * results.
 *
 * Costs are counts of slots, at most P, so sums and potentials fit 32 bits. Ties go to the lower
 * column, so the numbers are the same on every run. Runs on the thread that owns the layer. */
#include <string.h>

#include "base/error.h"
#include "place/best.h"

/* Copies that a GPU of old and one of row have in common, with multiplicity.
 * count: [experts], all 0 before and after. */
static uint32_t common_copies(const int32_t *old, const int32_t *row, uint32_t room,
                              uint32_t *count)
{
    uint32_t common = 0;
    /* With multiplicity: if three copies meet two, two stay. */
    for (uint32_t i = 0; i < room; i++)
        count[old[i]]++;
    for (uint32_t i = 0; i < room; i++) {
        if (count[row[i]] > 0) {
            count[row[i]]--;
            common++;
        }
    }
    for (uint32_t i = 0; i < room; i++)
        count[old[i]] = 0;
    return common;
}

uint32_t mp_moves(const mp_layer *layer, const int32_t *old, const int32_t *row, uint32_t *scratch)
{
    uint32_t room = layer->physical / layer->gpus, moves = layer->physical;
    memset(scratch, 0, layer->experts * sizeof(*scratch));
    for (uint32_t gpu = 0; gpu < layer->gpus; gpu++)
        moves -= common_copies(old + (size_t)gpu * room, row + (size_t)gpu * room, room, scratch);
    return moves;
}

/* ------------------------------------------------------------------------
 * Assignment
 */

/* Of `n` rows and columns; index 0 of the arrays below stands for none. */
typedef struct assignment {
    int32_t *cost;        /* [n][n] */
    int32_t *u, *v;       /* [n + 1]: potentials of rows and columns */
    int32_t *least;       /* [n + 1]: least reduced cost from the tree to a column */
    uint32_t *row, *from; /* [n + 1]: row of a column; column that its path came from */
    bool *done;           /* [n + 1] */
} assignment;

static int assignment_init(assignment *a, size_t n, mp_arena *arena, mp_error *err)
{
    size_t bytes = (n + 1) * sizeof(int32_t);
    bool complete =
        (a->cost = mp_arena_alloc(arena, n * n * sizeof(int32_t))) &&
        (a->u = mp_arena_alloc(arena, bytes)) && (a->v = mp_arena_alloc(arena, bytes)) &&
        (a->least = mp_arena_alloc(arena, bytes)) && (a->row = mp_arena_alloc(arena, bytes)) &&
        (a->from = mp_arena_alloc(arena, bytes)) && (a->done = mp_arena_alloc(arena, n + 1));
    return complete ? 0 : mp_fail_memory(err);
}

/* Extends the assignment by one row along a shortest augmenting path. */
static void augment(assignment *a, uint32_t n, uint32_t row)
{
    uint32_t column = 0;
    a->row[0] = row;
    for (uint32_t j = 0; j <= n; j++) {
        a->least[j] = INT32_MAX;
        a->done[j] = false;
    }
    do {
        uint32_t i = a->row[column], next = 0;
        int32_t step = INT32_MAX;
        a->done[column] = true;
        for (uint32_t j = 1; j <= n; j++) {
            if (a->done[j])
                continue;
            int32_t reduced = a->cost[(size_t)(i - 1) * n + j - 1] - a->u[i] - a->v[j];
            if (reduced < a->least[j]) {
                a->least[j] = reduced;
                a->from[j] = column;
            }
            if (a->least[j] < step) {
                step = a->least[j];
                next = j;
            }
        }
        for (uint32_t j = 0; j <= n; j++) {
            if (a->done[j]) {
                /* Keeps reduced costs in the tree at 0 and brings one more column within reach. */
                a->u[a->row[j]] += step;
                a->v[j] -= step;
            } else {
                a->least[j] -= step;
            }
        }
        column = next;
    } while (a->row[column] != 0);
    /* Flip the path: every column on it takes the row of the one before. */
    while (column != 0) {
        a->row[column] = a->row[a->from[column]];
        column = a->from[column];
    }
}

/* Sets column[i] for every row i so that the costs are least in all, which is returned. */
static int32_t assign(assignment *a, uint32_t n, uint32_t *column)
{
    int32_t sum = 0;
    memset(a->u, 0, (n + 1) * sizeof(*a->u));
    memset(a->v, 0, (n + 1) * sizeof(*a->v));
    memset(a->row, 0, (n + 1) * sizeof(*a->row));
    for (uint32_t row = 1; row <= n; row++)
        augment(a, n, row);
    for (uint32_t j = 1; j <= n; j++) {
        column[a->row[j] - 1] = j - 1;
        sum += a->cost[(size_t)(a->row[j] - 1) * n + j - 1];
    }
    return sum;
}

/* ------------------------------------------------------------------------
 * Renumbering
 */

/* Writes the copies of a GPU into `out`, those that stay in their old slot. taken: [room]. */
static void keep_slots(const int32_t *old, const int32_t *row, uint32_t room, int32_t *out,
                       bool *taken)
{
    memset(taken, 0, room);
    for (uint32_t i = 0; i < room; i++) {
        out[i] = -1;
        for (uint32_t j = 0; j < room && out[i] < 0; j++) {
            if (!taken[j] && row[j] == old[i]) {
                taken[j] = true;
                out[i] = row[j];
            }
        }
    }
    /* The remaining experts go into the remaining slots, in order. */
    for (uint32_t i = 0, j = 0; i < room; i++) {
        if (out[i] >= 0)
            continue;
        while (taken[j])
            j++;
        out[i] = row[j++];
    }
}

/* GPUs of node b of row for those of node a of old; returns how many copies that moves. */
static int32_t assign_gpus(const mp_layer *layer, const int32_t *old, const int32_t *row,
                           assignment *a, uint32_t *count, uint32_t *gpu)
{
    uint32_t gpus = layer->gpus / layer->nodes, room = layer->physical / layer->gpus;
    for (size_t i = 0; i < gpus; i++)
        for (size_t j = 0; j < gpus; j++)
            a->cost[i * gpus + j] =
                (int32_t)(room - common_copies(old + i * room, row + j * room, room, count));
    return assign(a, gpus, gpu);
}

int mp_renumber(const mp_layer *layer, const int32_t *old, int32_t *row, mp_arena *arena,
                mp_error *err)
{
    size_t nodes = layer->nodes, gpus = layer->gpus / nodes, room = layer->physical / layer->gpus;
    assignment of_gpus, of_nodes;
    uint32_t *gpu = mp_arena_alloc(arena, nodes * nodes * gpus * sizeof(*gpu));
    uint32_t *node = mp_arena_alloc(arena, nodes * sizeof(*node));
    uint32_t *count = mp_arena_alloc(arena, layer->experts * sizeof(*count));
    int32_t *from = mp_arena_alloc(arena, layer->physical * sizeof(*from));
    bool *taken = mp_arena_alloc(arena, room);
    if (!gpu || !node || !count || !from || !taken)
        return mp_fail_memory(err);
    if (assignment_init(&of_gpus, gpus, arena, err) != 0 ||
        assignment_init(&of_nodes, nodes, arena, err) != 0)
        return mp_fail_memory(err);

    memset(count, 0, layer->experts * sizeof(*count));
    for (size_t a = 0; a < nodes; a++)
        for (size_t b = 0; b < nodes; b++)
            of_nodes.cost[a * nodes + b] =
                assign_gpus(layer, old + a * gpus * room, row + b * gpus * room, &of_gpus, count,
                            gpu + (a * nodes + b) * gpus);
    assign(&of_nodes, (uint32_t)nodes, node);

    memcpy(from, row, layer->physical * sizeof(*from));
    for (size_t a = 0; a < nodes; a++) {
        for (size_t i = 0; i < gpus; i++) {
            size_t to = a * gpus + i,
                   source = node[a] * gpus + gpu[(a * nodes + node[a]) * gpus + i];
            keep_slots(old + to * room, from + source * room, (uint32_t)room, row + to * room,
                       taken);
        }
    }
    return 0;
}
