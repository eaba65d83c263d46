/* SPDX-License-Identifier: Apache-2.0 */
/* The search of one node for several windows of traffic.
 *
 * Loads are vectors here, and the effect of a change on F has to be computed window by window. That
 * rules out a search over numbers of copies. Instead six guesses are packed and improved by swaps,
 * the best two of them at length.
 *
 * A swap changes the loads of two GPUs and of no others, in every window. So F after it depends on
 * the largest load among the rest, which is one of the three largest. These are found once per
 * step, and trying a swap takes a few operations per window. If F without the two GPUs is already
 * too high, the swap is not tried at all.
 *
 * With MP_EPLB_WORST weights are fractions of a window's mean and only the worst window matters, so
 * the GPUs of other windows are left alone. One thread searches a node. */
#include <string.h>

#include "base/error.h"
#include "place/best.h"

enum { GUESSES = 6, FIRST_SWAPS = 20 };

/* Least part of F that a swap must take off, first and in the end. */
#define FIRST_PART 1e-4
#define LAST_PART  1e-5

typedef struct search {
    const mp_node *node;
    mp_best_work work;
    double *summed;      /* [n]: shares, summed over windows */
    double *summed_load; /* [g] */
    double *rest;        /* [g]: F without two GPUs, one of them this */
    double *guess;       /* [n]: one weight an expert, for all windows */
    uint32_t *top;       /* [windows][3]: the most loaded GPUs */
    mp_arrangement trial;
} search;

static double with_window(const mp_node *node, double f, double largest)
{
    return node->objective == MP_EPLB_WORST ? fmax(f, largest) : f + largest;
}

static double f_of(const mp_node *node, const mp_arrangement *a)
{
    double f = 0;
    for (size_t w = 0; w < node->windows; w++) {
        const double *load = a->load + w * node->gpus;
        f = with_window(node, f, load[mp_largest(load, node->gpus)]);
    }
    return f;
}

/* ------------------------------------------------------------------------
 * Packing
 */

/* F when a GPU gets one more copy; peak: [windows], the largest loads so far. */
static double f_with_copy(const search *s, const double *peak, uint32_t gpu, uint32_t expert)
{
    const mp_node *node = s->node;
    double f = 0;
    for (size_t w = 0; w < node->windows; w++)
        f = with_window(node, f,
                        fmax(peak[w], s->trial.load[w * node->gpus + gpu] +
                                          s->trial.share[w * node->experts + expert]));
    return f;
}

static void sum_loads(search *s)
{
    const mp_node *node = s->node;
    for (uint32_t gpu = 0; gpu < node->gpus; gpu++) {
        s->summed_load[gpu] = 0;
        for (size_t w = 0; w < node->windows; w++)
            s->summed_load[gpu] += s->trial.load[w * node->gpus + gpu];
    }
}

/* Seats a copy where F rises least, of equals where the summed load is least. */
static void seat_copy(search *s, const double *peak, uint32_t expert)
{
    const mp_node *node = s->node;
    uint32_t best = UINT32_MAX, open = UINT32_MAX;
    double best_f = INFINITY;
    for (uint32_t gpu = 0; gpu < node->gpus; gpu++) {
        if (s->trial.fill[gpu] == node->room)
            continue;
        if (open == UINT32_MAX || s->summed_load[gpu] < s->summed_load[open])
            open = gpu;
        if (mp_holds(&s->trial, node, gpu, expert))
            continue;
        double f = f_with_copy(s, peak, gpu, expert);
        if (best == UINT32_MAX || mp_lower(f, best_f) ||
            (!mp_lower(best_f, f) && s->summed_load[gpu] < s->summed_load[best])) {
            best = gpu;
            best_f = f;
        }
    }
    if (best == UINT32_MAX)
        mp_make_room(node, &s->trial, open, expert, s->summed, s->summed_load);
    else
        mp_seat(node, &s->trial, best, expert);
    sum_loads(s);
}

/* Packs the copies in s->trial. peak: [windows] scratch. */
static void pack(search *s, double *peak)
{
    const mp_node *node = s->node;
    mp_clear(node, &s->trial);
    memset(s->summed, 0, node->experts * sizeof(*s->summed));
    for (size_t i = 0; i < (size_t)node->windows * node->experts; i++)
        s->summed[i % node->experts] += s->trial.share[i];
    mp_best_sort(&s->work, s->summed, node->experts, true);
    sum_loads(s);
    for (uint32_t i = 0; i < node->experts; i++) {
        uint32_t expert = s->work.order[i];
        for (uint32_t c = 0; c < s->trial.copies[expert]; c++) {
            for (size_t w = 0; w < node->windows; w++) {
                const double *load = s->trial.load + w * node->gpus;
                peak[w] = load[mp_largest(load, node->gpus)];
            }
            seat_copy(s, peak, expert);
        }
    }
}

/* ------------------------------------------------------------------------
 * Swapping
 */

/* The three most loaded GPUs of every window: one of them is the largest of those that a swap of
 * two leaves alone. */
static void find_top(search *s, const mp_arrangement *a)
{
    const mp_node *node = s->node;
    for (size_t w = 0; w < node->windows; w++) {
        const double *load = a->load + w * node->gpus;
        uint32_t *top = s->top + 3 * w, count = node->gpus < 3 ? node->gpus : 3;
        for (uint32_t k = 0; k < 3; k++) {
            top[k] = UINT32_MAX;
            for (uint32_t gpu = 0; gpu < node->gpus && k < count; gpu++)
                if ((k == 0 || gpu != top[0]) && (k < 2 || gpu != top[1]) &&
                    (top[k] == UINT32_MAX || load[gpu] > load[top[k]]))
                    top[k] = gpu;
        }
    }
}

/* F after swapping expert x on GPU h with y on l; more than `enough` as soon as that is sure. */
static double f_after(const search *s, const mp_arrangement *a, uint32_t h, uint32_t x, uint32_t l,
                      uint32_t y, double enough)
{
    const mp_node *node = s->node;
    double f = 0;
    for (size_t w = 0; w < node->windows && f <= enough; w++) {
        const double *load = a->load + w * node->gpus, *share = a->share + w * node->experts;
        const uint32_t *top = s->top + 3 * w;
        double d = share[x] - share[y], peak = fmax(load[h] - d, load[l] + d);
        /* Stops at the third at the latest, since only two can be skipped. UINT32_MAX is no GPU. */
        while (*top == h || *top == l)
            top++;
        if (*top != UINT32_MAX)
            peak = fmax(peak, load[*top]);
        f = with_window(node, f, peak);
    }
    return f;
}

/* F of all GPUs but two: no swap of theirs gets below it. */
static double f_without(const search *s, const mp_arrangement *a, uint32_t h, uint32_t l)
{
    const mp_node *node = s->node;
    double f = 0;
    for (size_t w = 0; w < node->windows; w++) {
        const uint32_t *top = s->top + 3 * w;
        while (*top == h || *top == l)
            top++;
        f = with_window(node, f, *top != UINT32_MAX ? a->load[w * node->gpus + *top] : 0);
    }
    return f;
}

/* The swap of slots that is best so far. */
typedef struct swap {
    uint32_t x, y;
    double f;
    bool found;
} swap;

/* Tries all swaps of GPU h's copies with those of others. */
static void try_gpu(const search *s, const mp_arrangement *a, uint32_t h, swap *best)
{
    const mp_node *node = s->node;
    for (uint32_t l = 0; l < node->gpus; l++)
        s->rest[l] = f_without(s, a, h, l);
    for (uint32_t i = h * node->room; i < (h + 1) * node->room; i++) {
        uint32_t x = (uint32_t)a->slot[i];
        for (uint32_t l = 0; l < node->gpus; l++) {
            if (l == h || !mp_lower(s->rest[l], best->f) || mp_holds(a, node, l, x))
                continue;
            for (uint32_t j = l * node->room; j < (l + 1) * node->room; j++) {
                uint32_t y = (uint32_t)a->slot[j];
                double f = mp_holds(a, node, h, y) ? INFINITY : f_after(s, a, h, x, l, y, best->f);
                if (mp_lower(f, best->f))
                    *best = (swap){i, j, f, true};
            }
        }
    }
}

/* Whether a swap can help that loads GPU h less: with MP_EPLB_WORST only where the worst window
 * is worst. h: top[3 * w]. */
static bool matters(const search *s, const mp_arrangement *a, size_t w, double f)
{
    const mp_node *node = s->node;
    const double *load = a->load + w * node->gpus;
    if (node->objective == MP_EPLB_WORST && mp_lower(load[s->top[3 * w]], f))
        return false;
    for (size_t before = 0; before < w; before++)
        if (s->top[3 * before] == s->top[3 * w])
            return node->objective == MP_EPLB_WORST &&
                   mp_lower(a->load[before * node->gpus + s->top[3 * w]], f);
    return true;
}

/* Swaps as long as each takes a `part` off F, `most` times at most. Returns F. */
static double swap_down(search *s, mp_arrangement *a, double part, uint32_t most)
{
    const mp_node *node = s->node;
    double f = f_of(node, a);
    for (; most > 0; most--) {
        swap best = {.f = f * (1 - part)};
        find_top(s, a);
        for (size_t w = 0; w < node->windows; w++)
            if (matters(s, a, w, f))
                try_gpu(s, a, s->top[3 * w], &best);
        if (!best.found)
            break;
        mp_swap_slots(node, a, best.x, best.y);
        f = f_of(node, a);
    }
    return f;
}

/* ------------------------------------------------------------------------
 * Guesses
 */

/* One weight an expert: 0, the largest share of a window's mean that it has; 1, the root of the
 * sum of their squares; 2, its sum. */
static void guess_weights(search *s, unsigned kind)
{
    const mp_node *node = s->node;
    memset(s->guess, 0, node->experts * sizeof(*s->guess));
    for (size_t w = 0; w < node->windows; w++) {
        const double *weight = node->weight + w * node->experts;
        double mean = 0;
        for (uint32_t e = 0; e < node->experts; e++)
            mean += weight[e] / node->gpus;
        for (uint32_t e = 0; e < node->experts; e++) {
            double part = mean > 0 ? weight[e] / mean : 0;
            if (kind == 0)
                s->guess[e] = fmax(s->guess[e], part);
            else
                s->guess[e] += kind == 1 ? part * part : weight[e];
        }
    }
    for (uint32_t e = 0; kind == 1 && e < node->experts; e++)
        s->guess[e] = sqrt(s->guess[e]);
}

/* Numbers of copies by a search with the guess for weight. */
static int search_copies(search *s, mp_arena *arena, mp_error *err)
{
    mp_node one = *s->node;
    mp_arrangement found;
    one.windows = 1;
    one.weight = s->guess;
    one.bound = mp_best_bound(&one, s->guess, &s->work);
    int rc = mp_arrangement_init(&found, &one, arena, err);
    if (rc == 0)
        rc = mp_best_node(&one, &found, arena, err);
    if (rc == 0)
        memcpy(s->trial.copies, found.copies, one.experts * sizeof(*found.copies));
    return rc;
}

static int init(search *s, const mp_node *node, mp_arena *arena, mp_error *err)
{
    *s = (search){.node = node};
    int rc = mp_best_work_init(&s->work, node, arena, err);
    if (rc == 0)
        rc = mp_arrangement_init(&s->trial, node, arena, err);
    if (rc == 0 &&
        (!(s->summed = mp_arena_alloc(arena, node->experts * sizeof(double))) ||
         !(s->summed_load = mp_arena_alloc(arena, node->gpus * sizeof(double))) ||
         !(s->rest = mp_arena_alloc(arena, node->gpus * sizeof(double))) ||
         !(s->guess = mp_arena_alloc(arena, node->experts * sizeof(double))) ||
         !(s->top = mp_arena_alloc(arena, (size_t)node->windows * 3 * sizeof(uint32_t)))))
        rc = mp_fail_memory(err);
    return rc;
}

/* The best two guesses, in order. */
typedef struct best_two {
    mp_arrangement a[2];
    double f[2];
} best_two;

static int try_guess(search *s, unsigned guess, double *peak, best_two *two, mp_arena *arena,
                     mp_error *err)
{
    int rc = 0;
    guess_weights(s, guess / 2);
    if (guess % 2 == 0)
        mp_hand_out(s->node, s->guess, s->trial.copies);
    else
        rc = search_copies(s, arena, err);
    if (rc != 0)
        return rc;
    pack(s, peak);
    double f = swap_down(s, &s->trial, FIRST_PART, FIRST_SWAPS);
    for (unsigned rank = 0; rank < 2; rank++) {
        if (mp_lower(f, two->f[rank])) {
            mp_arrangement out = two->a[1];
            /* The worst of the three becomes the next trial: arrangements trade memory, nothing is
             * copied. */
            two->a[1] = rank == 0 ? two->a[0] : two->a[1];
            two->f[1] = rank == 0 ? two->f[0] : two->f[1];
            two->a[rank] = s->trial;
            two->f[rank] = f;
            s->trial = out;
            break;
        }
    }
    return 0;
}

int mp_best_windows(const mp_node *node, mp_arrangement *a, mp_arena *arena, mp_error *err)
{
    search s;
    best_two two = {.f = {INFINITY, INFINITY}};
    double *peak = mp_arena_alloc(arena, node->windows * sizeof(*peak));
    if (node->room >= node->experts) /* even whatever the weights */
        return mp_best_node(node, a, arena, err);
    int rc = peak ? init(&s, node, arena, err) : mp_fail_memory(err);
    for (unsigned rank = 0; rc == 0 && rank < 2; rank++)
        rc = mp_arrangement_init(&two.a[rank], node, arena, err);
    for (unsigned guess = 0; rc == 0 && guess < GUESSES; guess++)
        rc = try_guess(&s, guess, peak, &two, arena, err);
    if (rc != 0)
        return rc;
    for (unsigned rank = 0; rank < 2 && two.f[rank] < INFINITY; rank++)
        two.f[rank] = swap_down(&s, &two.a[rank], LAST_PART, 4 * node->gpus * node->room);
    mp_arrangement_copy(a, &two.a[mp_lower(two.f[1], two.f[0])], node);
    return 0;
}
