/* SPDX-License-Identifier: Apache-2.0 */
/* Choices of experts into choices of slots, as the ranks that the tokens are on make them. Engines
 * route on the rank where a token is: which copy of an expert it takes may depend on that rank, and
 * where a shared expert goes on the loads of all ranks. So tokens are dealt out to ranks, in order
 * and as evenly as they go, each rank's are routed by mp_route as an engine would, and what comes
 * back is put at the tokens' places.
 *
 * Shared experts that have no slots (kept apart) are computed on the token's own rank: their ids
 * are behind all slots, rank after rank. Weights of shared choices stay what the router gave, since
 * mp_route would give those of a kernel, over the scaling factor.
 *
 * Dynamic waterfill needs the loads of routed choices before any shared one is placed, so
 * everything is routed twice then. One thread. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "forward/reference.h"
#include "pack/pack.h"

typedef struct route_job {
    const mp_packed_experts *e;
    const mp_packed_dispatch *how;
    const int32_t *ids; /* [tokens, k + shared], like all of these */
    const float *weights;
    int32_t *slot_ids;
    float *slot_weights;
    uint64_t tokens;
    uint32_t k, shared;
    mp_rank_load load; /* of dynamic waterfill */
    /* Of one rank's tokens: [n, k], and what mp_route makes of them. */
    int32_t *own_ids, *own_slots;
    float *own_weights, *own_slot_weights;
    uint64_t *choices; /* [ep] */
} route_job;

/* Tokens of a rank begin here; those of the one behind the last one, at the end. tokens * rank /
 * ep, without a product that overflows. */
static uint64_t first_token(const route_job *job, uint32_t rank)
{
    uint64_t ep = job->e->pack->shape.slots.ep;

    return job->tokens / ep * rank + job->tokens % ep * rank / ep;
}

static int check(const route_job *job, mp_error *err)
{
    const mp_pack *pack = job->e->pack;
    uint32_t packed = job->e->pack->shape.slots.shared + job->e->apart;

    for (uint32_t r = 0; r < pack->shape.slots.ep; r++)
        if (!pack->open[r])
            return mp_fail(err, MP_ERR_INPUT, "rank %u is missing: all %u are needed", r,
                           pack->shape.slots.ep);
    if (job->shared == 0 || job->shared == packed)
        return 0;
    return mp_fail(err, MP_ERR_USAGE, "%u shared experts a token, but %u are packed", job->shared,
                   packed);
}

static int make_room(route_job *job, mp_error *err)
{
    /* A rank has the quotient or one more. */
    uint64_t most = job->tokens / job->e->pack->shape.slots.ep + 1;
    uint32_t columns = job->k + job->e->pack->shape.slots.shared;

    job->own_ids = mp_alloc(most * job->k, sizeof *job->own_ids);
    job->own_weights = mp_alloc(most * job->k, sizeof *job->own_weights);
    job->own_slots = mp_alloc(most * columns, sizeof *job->own_slots);
    job->own_slot_weights = mp_alloc(most * columns, sizeof *job->own_slot_weights);
    job->choices = mp_alloc(job->e->pack->shape.slots.ep, sizeof *job->choices);
    job->load.ep = job->e->pack->shape.slots.ep;
    job->load.routed_counts = mp_alloc_zeroed(job->load.ep, sizeof *job->load.routed_counts);
    job->load.tokens = mp_alloc_zeroed(job->load.ep, sizeof *job->load.tokens);
    if (!job->own_ids || !job->own_weights || !job->own_slots || !job->own_slot_weights ||
        !job->choices || !job->load.routed_counts || !job->load.tokens)
        return mp_fail_memory(err);
    return 0;
}

static void release(route_job *job)
{
    free(job->own_ids);
    free(job->own_weights);
    free(job->own_slots);
    free(job->own_slot_weights);
    free(job->choices);
    mp_rank_load_release(&job->load);
}

/* Sends the tokens of a rank to slots; own_slots has k + slots->shared columns then. */
static int route_rank(route_job *job, uint32_t rank, const mp_slots *slots,
                      mp_waterfill_mode waterfill, mp_error *err)
{
    uint64_t first = first_token(job, rank), n = first_token(job, rank + 1) - first;
    const mp_route_options options = {
        .slots = *slots,
        .rank = rank,
        .dispatch = job->how->dispatch,
        .waterfill = waterfill,
        .rank_load = &job->load,
    };

    for (uint64_t t = 0; t < n; t++) {
        uint64_t from = (first + t) * (job->k + job->shared);

        memcpy(job->own_ids + t * job->k, job->ids + from, job->k * sizeof *job->ids);
        memcpy(job->own_weights + t * job->k, job->weights + from, job->k * sizeof *job->weights);
    }
    if (mp_route(&options, job->e->row, job->own_ids, job->own_weights, n, job->k, job->own_slots,
                 job->own_slot_weights, job->choices, err) != 0)
        return mp_error_prefix(err, "rank %u", rank);
    return 0;
}

/* Loads of all ranks before any shared expert. */
static int count_loads(route_job *job, mp_error *err)
{
    mp_slots routed;
    int rc = mp_slots_init(&routed, job->e->pack->shape.slots.num_logical,
                           job->e->pack->shape.slots.num_physical, job->e->pack->shape.slots.ep, 0,
                           false, err);

    for (uint32_t rank = 0; rc == 0 && rank < job->load.ep; rank++) {
        rc = route_rank(job, rank, &routed, MP_WATERFILL_OFF, err);
        /* choices are of one rank's tokens, by the rank that they go to. */
        for (uint32_t r = 0; rc == 0 && r < job->load.ep; r++)
            job->load.routed_counts[r] += job->choices[r];
        job->load.tokens[rank] = first_token(job, rank + 1) - first_token(job, rank);
    }
    return rc;
}

/* The shared experts of a token keep their weights, wherever they are computed. */
static void take_token(const route_job *job, uint32_t rank, uint64_t token, uint64_t own)
{
    uint32_t fused = job->e->pack->shape.slots.shared, columns = job->k + job->shared;
    const int32_t *slots = job->own_slots + own * (job->k + fused);
    int32_t *to = job->slot_ids + token * columns;

    memcpy(job->slot_weights + token * columns, job->weights + token * columns,
           columns * sizeof *job->weights);
    memcpy(to, slots, job->k * sizeof *to);
    for (uint32_t s = 0; s < job->shared; s++) {
        uint32_t apart = job->e->pack->shape.slots.total + rank * job->e->apart + s;

        to[job->k + s] = fused ? slots[job->k + s] : (int32_t)apart;
    }
}

static int route_all(route_job *job, mp_error *err)
{
    int rc = check(job, err);

    if (rc == 0)
        rc = make_room(job, err);
    if (rc == 0 && job->how->waterfill == MP_WATERFILL_DYNAMIC)
        rc = count_loads(job, err);
    for (uint32_t rank = 0; rc == 0 && rank < job->e->pack->shape.slots.ep; rank++) {
        uint64_t first = first_token(job, rank), end = first_token(job, rank + 1);

        rc = route_rank(job, rank, &job->e->pack->shape.slots, job->how->waterfill, err);
        for (uint64_t t = first; rc == 0 && t < end; t++)
            take_token(job, rank, t, t - first);
    }
    release(job);
    return rc;
}

int mp_packed_route(const mp_packed_experts *experts, const mp_packed_dispatch *how,
                    const int32_t *ids, const float *weights, uint64_t tokens, uint32_t k,
                    uint32_t shared, int32_t *slot_ids, float *slot_weights, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    route_job job = {
        .e = experts,
        .how = how,
        .ids = ids,
        .weights = weights,
        .slot_ids = slot_ids,
        .slot_weights = slot_weights,
        .tokens = tokens,
        .k = k,
        .shared = shared,
    };

    return route_all(&job, err);
}
