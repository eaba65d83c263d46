/* SPDX-License-Identifier: Apache-2.0 */
/* The search of one node for one window: which numbers of copies pack best?
 *
 * DeepSeek's greedy algorithm keeps splitting the hottest expert until no slot is left. That makes
 * every copy small, and if few experts are hot it leaves GPUs that nothing can fill up. The search
 * first tries numbers of copies between two extremes: as even as possible, as the greedy does, and
 * as few as the bound allows, with the spare slots given to light experts, which fill gaps. Then it
 * moves single copies from expert to expert at random until the result is good enough.
 *
 * Only numbers of copies are searched. Where the copies go is left to packing and swapping, which
 * are fast and give the same result for the same numbers. There are three arrangements, which trade
 * places by pointer: the best, the current one that exchanges start from, and the trial. Each node
 * starts its random numbers from the same seed, and limits count steps rather than time, so the
 * result depends on the counts alone. One thread searches a node. */
#include <string.h>

#include "place/best.h"

enum {
    STEPS = 8,   /* between T* and the bound */
    FILLERS = 5, /* how light experts must be that get the spare slots; the last: any */
    VALUES = 1500,
    TRIES = 30000,
    PATIENCE = 100 /* values without a new best, after which the best is shaken */
};

/* An arrangement this much worse than the best is not worth swapping in. */
#define HOPELESS 1.02

typedef struct search {
    const mp_node *node;
    mp_best_work work;
    mp_arrangement best, current, trial;
    double best_load, current_load;
    uint64_t random;
    uint32_t values, tries, since_best;
} search;

static void exchange(mp_arrangement *x, mp_arrangement *y)
{
    mp_arrangement keep = *x;
    *x = *y;
    *y = keep;
}

/* Below k. The same numbers on every machine. */
static uint32_t next(search *s, uint32_t k)
{
    s->random = s->random * 6364136223846793005u + 1442695040888963407u;
    /* Use the upper bits: the lower ones of this kind of generator have short periods. */
    return (uint32_t)((s->random >> 33) % k);
}

/* Largest load that the numbers of copies in s->trial come to. */
static double value(search *s, double limit)
{
    double load = mp_pack(s->node, &s->trial, &s->work);
    s->values++;
    /* With two slots per GPU, swapping hardly improves on packing. */
    if (s->node->room >= 3 && load <= limit)
        load = mp_swap(s->node, &s->trial, MP_BEST_POLISHED * s->node->bound);
    return load;
}

static void keep_best(search *s, double load)
{
    if (!mp_lower(load, s->best_load))
        return;
    s->best_load = load;
    exchange(&s->best, &s->trial);
}

/* ------------------------------------------------------------------------
 * Few copies of hot experts, fillers of light ones
 */

/* Copies so that none carries more than t; what is left goes to the heaviest shares up to
 * `filler`, or to the lightest of all. False where t takes too many. */
static bool few_copies(const search *s, uint32_t *copies, double t, double filler)
{
    const mp_node *node = s->node;
    uint64_t sum = 0, slots = (uint64_t)node->gpus * node->room;
    for (uint32_t e = 0; e < node->experts; e++) {
        uint32_t needed = t > 0 ? mp_copies_under(node->weight[e], t) : 1;
        copies[e] = needed < node->gpus ? needed : node->gpus;
        sum += copies[e];
    }
    if (sum > slots)
        return false;
    for (; sum < slots; sum++) {
        uint32_t heavy = UINT32_MAX, light = UINT32_MAX;
        double heaviest = -1, lightest = INFINITY;
        for (uint32_t e = 0; e < node->experts; e++) {
            double share = node->weight[e] / copies[e];
            if (copies[e] == node->gpus)
                continue;
            if (share <= filler && share > heaviest) {
                heavy = e;
                heaviest = share;
            }
            if (share < lightest) {
                light = e;
                lightest = share;
            }
        }
        /* One exists: the sum is below g * r, and r < n because larger nodes were handled
         * before. */
        copies[heavy != UINT32_MAX ? heavy : light]++;
    }
    return true;
}

/* The order matters: the first numbers are DeepSeek's, which stand changed traffic best, and win
 * wherever they suffice. */
static void try_few_copies(search *s, double even)
{
    const mp_node *node = s->node;
    unsigned steps = node->room == 1 || !(even < node->bound) ? 0 : STEPS;
    for (unsigned i = 0; i <= steps; i++) {
        double t = even + (node->bound - even) * i / STEPS;
        for (unsigned j = 0; j <= FILLERS; j++) {
            double filler = j == FILLERS ? 0 : t / (1u << j);
            if (!few_copies(s, s->trial.copies, t, filler))
                continue;
            keep_best(s, value(s, HOPELESS * s->best_load));
            if (s->best_load <= MP_BEST_CONTENT * node->bound)
                return;
        }
    }
}

/* ------------------------------------------------------------------------
 * Exchanges
 */

/* One copy of an expert becomes one of another, in s->trial. False where that cannot be. */
static bool give_copy(search *s, double limit)
{
    const mp_node *node = s->node;
    uint32_t n = node->experts, *copies = s->trial.copies, donor = next(s, n), receiver;
    uint32_t last = (donor + n - 1) % n;
    while (copies[donor] == 1 && donor != last)
        donor = (donor + 1) % n;
    if (next(s, 2) == 0) {
        size_t h = mp_largest(s->current.load, node->gpus);
        receiver = (uint32_t)s->current.slot[h * node->room + next(s, node->room)];
    } else {
        receiver = next(s, n);
    }
    if (copies[donor] == 1 || donor == receiver || copies[receiver] == node->gpus ||
        /* Giving up this copy would already make some GPU worse than it is now. */
        node->weight[donor] / (copies[donor] - 1) > limit)
        return false;
    copies[donor]--;
    copies[receiver]++;
    return true;
}

static bool give_copies(search *s, const mp_arrangement *from, uint32_t count, double limit)
{
    bool done = true;
    memcpy(s->trial.copies, from->copies, s->node->experts * sizeof(uint32_t));
    while (done && count-- > 0)
        done = give_copy(s, limit);
    return done;
}

static void try_exchanges(search *s)
{
    s->values = 0;
    while (s->best_load > MP_BEST_CONTENT * s->node->bound && s->values < VALUES &&
           s->tries++ < TRIES) {
        bool shake = s->since_best >= PATIENCE;
        uint32_t count = shake ? 2 + next(s, 4) : next(s, 3) == 0 ? 2 : 1;
        if (!give_copies(s, shake ? &s->best : &s->current, count, s->current_load))
            continue;
        double load = value(s, HOPELESS * (shake ? s->best_load : s->current_load));
        s->since_best = shake ? 0 : s->since_best + 1;
        if (!shake && load > s->current_load)
            continue;
        exchange(&s->current, &s->trial);
        s->current_load = load;
        if (mp_lower(load, s->best_load)) {
            s->best_load = load;
            s->since_best = 0;
            mp_arrangement_copy(&s->best, &s->current, s->node);
        }
    }
}

static int init(search *s, const mp_node *node, mp_arena *arena, mp_error *err)
{
    *s = (search){.node = node, .random = 1, .best_load = INFINITY};
    int rc = mp_best_work_init(&s->work, node, arena, err);
    if (rc == 0)
        rc = mp_arrangement_init(&s->best, node, arena, err);
    if (rc == 0)
        rc = mp_arrangement_init(&s->current, node, arena, err);
    return rc != 0 ? rc : mp_arrangement_init(&s->trial, node, arena, err);
}

/* As many slots a GPU as experts: every GPU holds all, and all GPUs the same. */
static void fill_up(const mp_node *node, mp_arrangement *a)
{
    for (uint32_t e = 0; e < node->experts; e++)
        a->copies[e] = node->gpus * (node->room / node->experts + (e < node->room % node->experts));
    mp_clear(node, a);
    for (uint32_t gpu = 0; gpu < node->gpus; gpu++)
        for (uint32_t i = 0; i < node->room; i++)
            mp_seat(node, a, gpu, i % node->experts);
}

int mp_best_node(const mp_node *node, mp_arrangement *a, mp_arena *arena, mp_error *err)
{
    search s;
    if (node->room >= node->experts) {
        fill_up(node, a);
        return 0;
    }
    int rc = init(&s, node, arena, err);
    if (rc != 0)
        return rc;
    try_few_copies(&s, mp_hand_out(node, node->weight, s.work.given));
    if (node->room > 1 && node->gpus * node->room > node->experts) {
        mp_arrangement_copy(&s.current, &s.best, node);
        s.current_load = s.best_load;
        try_exchanges(&s);
    }
    do
        s.best_load = mp_swap(node, &s.best, MP_BEST_POLISHED * node->bound);
    while (node->room >= 3 && s.best_load > MP_BEST_POLISHED * node->bound &&
           mp_swap_two(node, &s.best));
    mp_arrangement_copy(a, &s.best, node);
    return 0;
}
