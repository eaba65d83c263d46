/* SPDX-License-Identifier: Apache-2.0 */
/* Waterfill: which rank computes the shared expert of each token, in the integer arithmetic of
 * SGLang's kernel, so that offline plans and the engine agree.
 *
 * Ranks are vessels filled by their routed choices. A token's shared expert goes where there is
 * room below the target level, with a probability proportional to the room. The draw depends only
 * on the token's number and its rank, so a plan can be repeated. Another rank has to be better by a
 * tenth, because the token has to travel there.
 *
 *     below    0    w0       w0+w1  ...  sum        u in [below[x], below[x+1]) goes to rank x
 *
 * Loads are checked to fit 31 bits and the target 32, so sums over ranks and products with 11 fit
 * 64. Runs on one thread. */
#include <moepack/place.h>

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "place/slots.h"
#include "place/waterfill.h"

/* Another rank must be better than the own one by more than NUM / DEN. */
#define PREFERENCE_NUM 11u
#define PREFERENCE_DEN 10u

/* The same for all tokens of a rank. */
typedef struct fill {
    const mp_waterfill *w;
    uint32_t ep, routed; /* ranks; routed experts of one */
    uint32_t seed;       /* own rank's part of it */
    uint64_t *weight;    /* [ep]: room that a rank has, as seen from the own one */
    uint64_t *below;     /* [ep + 1]: allow_all: sum of the weights of lower ranks */
    uint32_t fallback;   /* allow_all: rank to take when nobody has room */
} fill;

/* A rank takes over from the best so far when it is better by more than the preference. */
static bool takes_over(const fill *f, uint32_t rank, uint32_t best)
{
    return f->w->load[rank] * PREFERENCE_NUM < f->w->load[best] * PREFERENCE_DEN;
}

static void weigh_ranks(fill *f, uint64_t target)
{
    f->below[0] = 0;
    for (uint32_t rank = 0; rank < f->ep; rank++) {
        uint64_t load = f->w->load[rank];
        uint64_t room = target > load ? target - load : 0;
        f->weight[rank] = rank == f->w->rank ? room : room * PREFERENCE_DEN / PREFERENCE_NUM;
        f->below[rank + 1] = f->below[rank] + f->weight[rank];
    }
    f->fallback = f->w->rank;
    for (uint32_t rank = 0; rank < f->ep; rank++)
        if (takes_over(f, rank, f->fallback))
            f->fallback = rank;
}

/* A number below sum that depends on the token and the own rank only. */
static uint64_t draw(const fill *f, uint64_t token, uint64_t sum)
{
    uint32_t seed = ((uint32_t)token ^ f->seed) * 1664525u + 1013904223u;
    /* 32-bit arithmetic that wraps around, as in the kernel. */
    return seed % sum;
}

/* Among all ranks: the one whose interval of the summed weights holds the draw. */
static uint32_t choose_of_all(const fill *f, uint64_t token)
{
    uint64_t sum = f->below[f->ep];
    if (sum == 0)
        return f->fallback;
    uint64_t u = draw(f, token, sum);
    uint32_t low = 0, high = f->ep - 1;
    /* A rank without room has an empty interval, so it is never the first whose end is above u. */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (u < f->below[middle + 1])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Inserts a rank into an ascending list without repeats. Returns the new length. */
static uint32_t insert_rank(uint32_t *ranks, uint32_t n, uint32_t rank)
{
    uint32_t at = n;
    while (at > 0 && ranks[at - 1] > rank)
        at--;
    if (at > 0 && ranks[at - 1] == rank)
        return n;
    memmove(ranks + at + 1, ranks + at, (n - at) * sizeof(*ranks));
    ranks[at] = rank;
    return n + 1;
}

/* Among the own rank and those of the token's choices, which it is sent to anyway. Kept sorted,
 * since intervals are in the order of ranks. ranks: scratch of k + 1. */
static uint32_t choose_of_choices(const fill *f, uint64_t token, const int32_t *physical,
                                  uint32_t k, uint32_t *ranks)
{
    uint32_t fallback = f->w->rank, n = insert_rank(ranks, 0, f->w->rank);
    for (uint32_t i = 0; i < k; i++) {
        if (physical[i] < 0)
            continue;
        uint32_t rank = (uint32_t)physical[i] / f->routed;
        if (takes_over(f, rank, fallback))
            fallback = rank;
        n = insert_rank(ranks, n, rank);
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += f->weight[ranks[i]];
    if (sum == 0)
        return fallback;
    uint64_t u = draw(f, token, sum);
    uint32_t i = 0;
    for (; u >= f->weight[ranks[i]]; i++)
        u -= f->weight[ranks[i]];
    return ranks[i];
}

static bool has_choice(const int32_t *physical, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        if (physical[i] >= 0)
            return true;
    return false;
}

static int check_waterfill(const mp_waterfill *w, const mp_slots *slots, uint32_t k,
                           uint64_t *target, mp_error *err)
{
    uint64_t total = 0;
    if (slots->shared != 1 || slots->shared_once)
        return mp_fail(err, MP_ERR_USAGE,
                       "waterfill: needs exactly one shared expert on every rank");
    if (k == 0 || w->rank >= slots->ep)
        return mp_fail(err, MP_ERR_USAGE, "waterfill: rank %u of %u, %u choices a token", w->rank,
                       slots->ep, k);
    for (uint32_t rank = 0; rank < slots->ep; rank++) {
        if (w->load[rank] > INT32_MAX)
            return mp_fail(err, MP_ERR_INPUT,
                           "waterfill: load %llu of rank %u does not fit 31 bits",
                           (unsigned long long)w->load[rank], rank);
        total += w->load[rank];
    }
    if (w->target > UINT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "waterfill: target %llu does not fit 32 bits",
                       (unsigned long long)w->target);
    *target = w->target ? w->target : mp_ceil_div(total + total / k, slots->ep);
    return 0;
}

static int check_choices(const mp_slots *slots, const int32_t *physical, uint64_t tokens,
                         uint32_t k, mp_error *err)
{
    for (uint64_t i = 0; i < tokens * k; i++)
        if (physical[i] < -1 || physical[i] >= (int32_t)slots->num_physical)
            return mp_fail(err, MP_ERR_INPUT,
                           "waterfill: token %llu, choice %llu: physical expert %d, expected -1 "
                           "to %u",
                           (unsigned long long)(i / k), (unsigned long long)(i % k), physical[i],
                           slots->num_physical - 1);
    return 0;
}

/* The engine's 32-bit weights limit it to 31 candidates; here there is no such limit. */
int mp_waterfill_assign(const mp_waterfill *w, const mp_slots *slots, const int32_t *physical,
                        uint64_t tokens, uint32_t k, int32_t *shared_ids, uint64_t stride,
                        mp_error *err)
{
    uint64_t target = 0;
    int rc = check_waterfill(w, slots, k, &target, err);
    if (rc == 0)
        rc = check_choices(slots, physical, tokens, k, err);
    if (rc != 0)
        return rc;
    fill f = {.w = w, .ep = slots->ep, .routed = mp_slots_routed_per_rank(slots)};
    f.seed = w->rank * 0x9E3779B9u;
    f.weight = mp_alloc(f.ep, sizeof(*f.weight));
    f.below = mp_alloc((uint64_t)f.ep + 1, sizeof(*f.below));
    uint32_t *ranks = mp_alloc((uint64_t)k + 1, sizeof(*ranks));
    if (!f.weight || !f.below || !ranks) {
        rc = mp_fail_memory(err);
        goto out;
    }
    weigh_ranks(&f, target);
    for (uint64_t t = 0; t < tokens; t++) {
        const int32_t *choices = physical + t * k;
        int32_t id = -1;
        if (has_choice(choices, k)) {
            uint32_t rank =
                w->allow_all ? choose_of_all(&f, t) : choose_of_choices(&f, t, choices, k, ranks);
            id = (int32_t)mp_slots_of_shared(slots, rank, 0);
        }
        shared_ids[t * stride] = id;
    }
out:
    free(f.weight);
    free(f.below);
    free(ranks);
    return rc;
}
