/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place/best.h - the search behind `eplb --algorithm best`.
 *
 * A node is the problem: experts with weights, and GPUs with slots for their copies. An
 * arrangement is an answer, good or bad: how many copies each expert has and where they are.
 * A copy carries its expert's weight divided by its copies, its share. Searches arrange, never
 * with two copies of an expert on one GPU where there are more experts than slots on a GPU.
 *
 * With several windows of traffic, weights, shares and loads have a window for first index, and
 * what is to be small is F: the sum over windows of the largest GPU load, or the largest of them
 * where weights are fractions of the window's mean GPU load (MP_EPLB_WORST).
 */
#ifndef MP_PLACE_BEST_H
#define MP_PLACE_BEST_H

#include <math.h>
#include <moepack/place.h>

#include "base/arena.h"
#include "place/eplb.h"

/* A share of the best bound at which a search is content, and one at which it stops polishing. */
#define MP_BEST_CONTENT  1.003
#define MP_BEST_POLISHED 1.0001

typedef struct mp_node {
    uint32_t experts; /* n >= 1 */
    uint32_t gpus;    /* g >= 1 */
    uint32_t room;    /* r, slots of each GPU; g * r >= n */
    uint32_t windows;
    mp_eplb_objective objective; /* what F is */
    const double *weight;        /* [windows][n] */
    double bound;                /* B: searches do not try to get below it */
} mp_node;

typedef struct mp_arrangement {
    uint32_t *copies; /* [n] */
    int32_t *slot;    /* [g][r]: an expert, or -1 */
    uint32_t *fill;   /* [g]: slots in use, which come first */
    uint64_t *on;     /* [g][words]: a bit an expert that the GPU holds */
    double *share;    /* [windows][n] */
    double *load;     /* [windows][g] */
} mp_arrangement;

typedef struct mp_ranked {
    double weight;
    uint32_t index;
} mp_ranked;

/* What a search needs besides. */
typedef struct mp_best_work {
    mp_ranked *items; /* [n]: scratch of sorting */
    uint32_t *order;  /* [n]: experts sorted */
    uint32_t *heap;   /* [g]: GPUs with room, the least loaded on top */
    uint32_t *given;  /* [n]: copies that a bound gives out */
} mp_best_work;

/* Memory of the arena; MP_ERR_IO without. */
int mp_best_work_init(mp_best_work *work, const mp_node *node, mp_arena *arena, mp_error *err);
int mp_arrangement_init(mp_arrangement *a, const mp_node *node, mp_arena *arena, mp_error *err);
void mp_arrangement_copy(mp_arrangement *to, const mp_arrangement *from, const mp_node *node);

/* a is lower than b by more than rounding can pretend. */
static inline bool mp_lower(double a, double b)
{
    return a < b * (1 - 1e-9);
}

static inline uint32_t mp_on_words(const mp_node *node)
{
    return (node->experts + 63) / 64;
}

static inline bool mp_holds(const mp_arrangement *a, const mp_node *node, uint32_t gpu,
                            uint32_t expert)
{
    return a->on[(size_t)gpu * mp_on_words(node) + expert / 64] >> (expert % 64) & 1;
}

static inline void mp_set_holds(mp_arrangement *a, const mp_node *node, uint32_t gpu,
                                uint32_t expert, bool holds)
{
    uint64_t *word = &a->on[(size_t)gpu * mp_on_words(node) + expert / 64];
    uint64_t bit = (uint64_t)1 << (expert % 64);
    *word = holds ? *word | bit : *word & ~bit;
}

/* Fewest copies of a weight with which none carries more than `most`, at least 1. */
static inline uint32_t mp_copies_under(double weight, double most)
{
    double copies = ceil(weight / most - 1e-12);
    return copies >= UINT32_MAX ? UINT32_MAX : copies > 1 ? (uint32_t)copies : 1;
}

/* GPU of the largest of n loads, the lowest of equals. */
static inline uint32_t mp_largest(const double *load, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (load[i] > load[best])
            best = i;
    return best;
}

/* Sorts work->order by weight, heavy or light first, equals by index. */
void mp_best_sort(mp_best_work *work, const double *weight, uint32_t n, bool heavy_first);

/* Gives out all slots from one copy each on: the next to the expert with the largest
 * weight / copies that has fewer than g. Returns T*, the largest of these in the end. */
double mp_hand_out(const mp_node *node, const double *weight, uint32_t *copies);

/* B of one window: no arrangement without copies side by side has a lower largest load. */
double mp_best_bound(const mp_node *node, const double *weight, mp_best_work *work);

/* Empties all slots and sets what a copy carries from the numbers of copies. */
void mp_clear(const mp_node *node, mp_arrangement *a);

/* Puts a copy into the next free slot of a GPU. */
void mp_seat(const mp_node *node, mp_arrangement *a, uint32_t gpu, uint32_t expert);

/* Makes room on another GPU for an expert that all GPUs with room hold: of all copies that can
 * move from one without it to `gpu`, which has room, that which leaves the two least loaded.
 * share, load: by which that is said, [n] and [g]. */
void mp_make_room(const mp_node *node, mp_arrangement *a, uint32_t gpu, uint32_t expert,
                  const double *share, const double *load);

/* Exchanges the experts of two slots; sums both loads anew, in the order of slots. */
void mp_swap_slots(const mp_node *node, mp_arrangement *a, uint32_t x, uint32_t y);

/* Empties all slots, then places the copies, heavy ones first, where the load is least. One
 * window. Returns the largest load. */
double mp_pack(const mp_node *node, mp_arrangement *a, mp_best_work *work);

/* Swaps copies off the most loaded GPU until its load is at most the goal or no swap helps. One
 * window. Returns the largest load. */
double mp_swap(const mp_node *node, mp_arrangement *a, double goal);

/* The same, once, with two copies for two. True when it helped. */
bool mp_swap_two(const mp_node *node, mp_arrangement *a);

/* Searches a node of one window. a: gets the best arrangement found. */
int mp_best_node(const mp_node *node, mp_arrangement *a, mp_arena *arena, mp_error *err);

/* The same for several windows: a gets the arrangement with the lowest F found. */
int mp_best_windows(const mp_node *node, mp_arrangement *a, mp_arena *arena, mp_error *err);

/* ------------------------------------------------------------------------
 * A layer: nodes, and the way from an old placement
 */

/* A layer as all searches see it. Rows of a placement are [P] logical experts. */
typedef struct mp_layer {
    uint32_t experts, physical, gpus, nodes, groups; /* global: 1 node, 1 group */
    uint32_t windows;
    mp_eplb_objective objective;
    const double *weight; /* [windows][experts]; MP_EPLB_WORST: over the window's mean load */
} mp_layer;

/* F of a row. scratch: of experts + gpus doubles. */
double mp_layer_f(const mp_layer *layer, const int32_t *row, double *scratch);

/* Searches the layer. row: set. bound: set to the lower bound of F. */
int mp_best_layer(const mp_layer *layer, int32_t *row, double *bound, mp_arena *arena,
                  mp_error *err);

/* Slots of row that hold an expert that their GPU does not hold in old, with multiplicity. */
uint32_t mp_moves(const mp_layer *layer, const int32_t *old, const int32_t *row, uint32_t *scratch);

/* Numbers the GPUs of row so that most copies are where old has them, nodes whole, and puts each
 * copy that stays into its old slot. */
int mp_renumber(const mp_layer *layer, const int32_t *old, int32_t *row, mp_arena *arena,
                mp_error *err);

/* Goes from old towards the goal F in steps of few moves, at most max_moves in all. row: set to
 * where that leads. reached: set to whether F is at most the goal. */
int mp_path(const mp_layer *layer, const int32_t *old, double goal, uint32_t max_moves,
            int32_t *row, bool *reached, mp_arena *arena, mp_error *err);

#endif
