/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens of the numeric level, with the choices of both sides. A batch looks like this:
 *
 *             choices of the source      choices of slots
 *   token 0   expert of slot 0           slot 0              alone: weight 1, nothing else
 *   token 1   expert of slot 1           slot 1
 *   token n   k experts, shared ones     their slots         routed by the checkpoint's own router
 *
 * So every slot is met by itself, copies of one expert included, and the tail shows what only sums
 * show: weights, the router's factor, shared experts. A choice of an expert that is not sampled, or
 * of a slot on a rank that is not here, is -1 on both sides, so that both still compute the same
 * sum. A zero expert's choice is -1 too: it is in no slot, and what it adds is no kernel's.
 *
 * Routed tokens are spread evenly over the ranks, as in a run, since a rank prefers its own slots.
 * Everything follows from the seed. Nothing here runs in parallel but the router itself. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "place/slots.h"
#include "verify/numeric.h"

/* Tokens where the user does not say how many. Of 256 experts each is chosen twice then, with
 * 8 choices a token; reading the weights is most of the work, so fewer would save little. */
#define ROUTED_TOKENS 64

/* Choices of a token where there is no router, and config.json does not say. */
#define USUAL_CHOICES 8

/* Choices of the routed tokens before they are put together. */
typedef struct draft {
    uint64_t tokens;  /* that are routed */
    const float *x;   /* theirs */
    uint32_t k;       /* routed experts of a token */
    int32_t *ids;     /* [tokens, k] */
    float *weights;   /* [tokens, k] */
    int32_t *all_ids; /* [tokens, k + shared experts of the model] */
    float *all_weights;
    int32_t *slots; /* [tokens, k + fused ones] */
    float *slot_weights;
    uint64_t *loads; /* [ep] */
} draft;

static void draft_release(draft *d)
{
    free(d->ids);
    free(d->weights);
    free(d->all_ids);
    free(d->all_weights);
    free(d->slots);
    free(d->slot_weights);
    free(d->loads);
}

void mp_numeric_batch_release(mp_numeric_batch *batch)
{
    free(batch->x);
    free(batch->experts);
    free(batch->weights);
    free(batch->slots);
    free(batch->slot_weights);
    *batch = (mp_numeric_batch){0};
}

/* ------------------------------------------------------------------------
 * Slots
 */

/* Slots of all sets on all ranks, as the packed source counts them. */
static uint32_t all_slots(const mp_numeric_layer *layer)
{
    return layer->slots.source.count;
}

uint32_t mp_numeric_rank(const mp_numeric_layer *layer, uint32_t slot)
{
    uint32_t total = layer->pack->shape.slots.total;

    /* Slots apart exist only where `apart` is not 0. */
    return slot < total ? mp_slots_rank(&layer->pack->shape.slots, slot)
                        : (slot - total) / layer->slots.apart;
}

/* The checkpoint id that belongs into a slot. */
static uint32_t expert_of(const mp_numeric_layer *layer, uint32_t slot)
{
    uint32_t total = layer->pack->shape.slots.total;
    mp_slot described;

    if (slot >= total)
        return layer->pack->shape.slots.num_logical + (slot - total) % layer->slots.apart;
    mp_slots_describe(&layer->pack->shape.slots, layer->slots.row, slot, &described);
    return described.checkpoint_id;
}

/* Whether what goes to a slot is computed. */
static bool counts(const mp_numeric_layer *layer, uint32_t slot, uint32_t expert)
{
    return layer->pack->open[mp_numeric_rank(layer, slot)] &&
           mp_exact_looks_at(layer->exact, layer->check, layer->index, expert);
}

/* ------------------------------------------------------------------------
 * Room
 */

static uint32_t choices_of(const mp_numeric_layer *layer)
{
    uint64_t k = layer->check->manifest.num_experts;

    if (layer->routes)
        return layer->router.router.k;
    return k < USUAL_CHOICES ? (uint32_t)k : USUAL_CHOICES;
}

static uint64_t count_slots(const mp_numeric_layer *layer)
{
    uint64_t count = 0;

    for (uint32_t slot = 0; slot < all_slots(layer); slot++)
        count += counts(layer, slot, expert_of(layer, slot));
    return count;
}

static int make_room(mp_numeric_batch *b, draft *d, const mp_numeric_layer *layer, mp_error *err)
{
    const mp_packed_experts *slots = &layer->slots;
    uint64_t model_columns = (uint64_t)d->k + layer->router.shared;
    uint64_t slot_columns = (uint64_t)d->k + slots->pack->shape.slots.shared;
    uint64_t all = b->tokens * b->columns;

    b->x = mp_alloc(b->tokens * slots->source.hidden_size, sizeof *b->x);
    b->experts = mp_alloc(all, sizeof *b->experts);
    b->weights = mp_alloc_zeroed(all, sizeof *b->weights);
    b->slots = mp_alloc(all, sizeof *b->slots);
    b->slot_weights = mp_alloc_zeroed(all, sizeof *b->slot_weights);
    d->ids = mp_alloc(d->tokens * d->k, sizeof *d->ids);
    d->weights = mp_alloc(d->tokens * d->k, sizeof *d->weights);
    d->all_ids = mp_alloc(d->tokens * model_columns, sizeof *d->all_ids);
    d->all_weights = mp_alloc(d->tokens * model_columns, sizeof *d->all_weights);
    d->slots = mp_alloc(d->tokens * slot_columns, sizeof *d->slots);
    d->slot_weights = mp_alloc(d->tokens * slot_columns, sizeof *d->slot_weights);
    d->loads = mp_alloc(slots->pack->shape.slots.ep, sizeof *d->loads);
    if (!b->x || !b->experts || !b->weights || !b->slots || !b->slot_weights || !d->ids ||
        !d->weights || !d->all_ids || !d->all_weights || !d->slots || !d->slot_weights || !d->loads)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < all; i++)
        /* Whatever is not filled in below stays no choice, with weight 0. */
        b->experts[i] = b->slots[i] = -1;
    return 0;
}

/* ------------------------------------------------------------------------
 * A token for every slot
 */

static void put_slots(mp_numeric_batch *b, const mp_numeric_layer *layer)
{
    uint64_t at = 0;

    for (uint32_t slot = 0; slot < all_slots(layer); slot++) {
        uint32_t expert = expert_of(layer, slot);

        if (!counts(layer, slot, expert))
            continue;
        b->slots[at] = (int32_t)slot;
        b->experts[at] = (int32_t)expert;
        b->weights[at] = b->slot_weights[at] = 1;
        at += b->columns;
    }
}

/* ------------------------------------------------------------------------
 * Routed tokens
 */

/* Experts in turn, alike in weight. */
static void choose_in_turn(draft *d, uint32_t experts)
{
    for (uint64_t i = 0; i < d->tokens * d->k; i++) {
        d->ids[i] = (int32_t)(i % experts);
        d->weights[i] = 1 / (float)d->k;
    }
}

static int choose(draft *d, const mp_numeric_layer *layer, mp_error *err)
{
    const mp_layer_router *router = &layer->router;
    const mp_check *check = layer->check;
    int64_t *token_ids = NULL;
    int rc = 0;

    if (!layer->routes) {
        choose_in_turn(d, layer->source->num_experts);
    } else {
        if (router->by_token) {
            token_ids = mp_alloc(d->tokens, sizeof *token_ids);
            if (!token_ids)
                return mp_fail_memory(err);
            mp_random_token_ids(check->options->seed, d->tokens, router->vocab, token_ids);
        }
        rc = mp_layer_route(router, d->x, token_ids, d->tokens, check->context, d->ids, d->weights,
                            err);
        free(token_ids);
    }
    /* Zero experts give back x and are computed outside of kernels. */
    for (uint64_t i = 0; rc == 0 && i < d->tokens * d->k; i++)
        if (d->ids[i] >= (int32_t)layer->source->num_experts)
            d->ids[i] = -1;
    if (rc == 0)
        mp_layer_add_shared(router, d->x, d->tokens, d->k, router->shared, d->ids, d->weights,
                            d->all_ids, d->all_weights);
    return rc;
}

/* As the ranks send their tokens to slots, which are spread evenly over them. */
static int dispatch(draft *d, const mp_numeric_layer *layer, mp_error *err)
{
    const mp_packed_experts *slots = &layer->slots;
    uint64_t ep = slots->pack->shape.slots.ep,
             columns = (uint64_t)d->k + slots->pack->shape.slots.shared;
    mp_route_options how = {.slots = slots->pack->shape.slots,
                            .routed_scaling_factor = layer->packed_model.factor};

    for (uint32_t rank = 0; rank < ep; rank++) {
        uint64_t first = d->tokens * rank / ep, end = d->tokens * (rank + 1) / ep;

        how.rank = rank;
        if (mp_route(&how, slots->row, d->ids + first * d->k, d->weights + first * d->k,
                     end - first, d->k, d->slots + first * columns,
                     d->slot_weights + first * columns, d->loads, err) != 0)
            return mp_error_prefix(err, "rank %u", rank);
    }
    return 0;
}

/* Choice j of a token that is on a rank: an expert, and the slot that it goes to. In the
 * kernel, shared experts weigh 1 over the factor that everything is multiplied by behind it,
 * or what their gate gives times that. */
static void put_choice(mp_numeric_batch *b, const draft *d, const mp_numeric_layer *layer,
                       uint64_t token, uint32_t j, uint32_t rank)
{
    const mp_packed_experts *slots = &layer->slots;
    uint64_t at = (b->alone + token) * b->columns + j;
    uint64_t from = token * (d->k + layer->router.shared) + j;
    uint64_t slot_from = token * (d->k + slots->pack->shape.slots.shared) + j;
    bool shared = j >= d->k, apart = shared && slots->apart > 0;

    if (d->all_ids[from] < 0)
        return; /* a zero expert's */
    uint32_t slot = apart ? slots->pack->shape.slots.total + rank * slots->apart + j - d->k
                          : (uint32_t)d->slots[slot_from];
    float slot_weight =
        apart ? (float)(1 / layer->packed_model.factor) : d->slot_weights[slot_from];

    if (!counts(layer, slot, (uint32_t)d->all_ids[from]))
        return;
    b->experts[at] = d->all_ids[from];
    b->slots[at] = (int32_t)slot;
    b->weights[at] = d->all_weights[from];
    b->slot_weights[at] = slot_weight;
    if (shared) {
        b->weights[at] = (float)(1 / layer->source_model.factor) * d->all_weights[from];
        b->slot_weights[at] = slot_weight * d->all_weights[from];
    }
}

static void put_routed(mp_numeric_batch *b, const draft *d, const mp_numeric_layer *layer)
{
    uint32_t ep = layer->pack->shape.slots.ep;

    for (uint32_t rank = 0; rank < ep; rank++)
        for (uint64_t t = d->tokens * rank / ep; t < d->tokens * (rank + 1) / ep; t++)
            for (uint32_t j = 0; j < b->columns; j++)
                put_choice(b, d, layer, t, j, rank);
}

int mp_numeric_batch_make(mp_numeric_batch *batch, const mp_numeric_layer *layer, mp_error *err)
{
    const mp_verify_options *options = layer->check->options;
    uint64_t hidden_size = layer->slots.source.hidden_size;
    draft d = {.tokens = options->tokens ? options->tokens : ROUTED_TOKENS, .k = choices_of(layer)};

    *batch = (mp_numeric_batch){.alone = count_slots(layer), .columns = d.k + layer->shared};
    batch->tokens = batch->alone + d.tokens;
    int rc = make_room(batch, &d, layer, err);
    if (rc == 0) {
        d.x = batch->x + batch->alone * hidden_size;
        /* Another seed for tokens of slots: else token 0 of both kinds would be the same. */
        mp_random_tokens(~options->seed, batch->alone, hidden_size, batch->x);
        mp_random_tokens(options->seed, d.tokens, hidden_size,
                         batch->x + batch->alone * hidden_size);
        rc = choose(&d, layer, err);
    }
    if (rc == 0)
        rc = dispatch(&d, layer, err);
    if (rc == 0) {
        put_slots(batch, layer);
        put_routed(batch, &d, layer);
    }
    draft_release(&d);
    if (rc != 0)
        mp_numeric_batch_release(batch);
    return rc;
}
