/* SPDX-License-Identifier: Apache-2.0 */
/* Routing: top-k choices of logical experts become choices of slots, with the shared experts
 * appended.
 *
 *     ids [T, k] --dispatch--> physical [T, k] --place--> slot ids [T, k + S]
 *                                                         shared experts in the last S columns
 *
 * Engines do this in kernels, and the result has to match them exactly. Choice i of the batch,
 * counting all choices and not just those of its expert, goes to replica i mod replicas. A masked
 * choice (-1) stays -1 with weight 0. Shared experts weigh 1 / routed_scaling_factor, because the
 * engine then multiplies the whole sum by that factor.
 *
 * Ids come from a file and are checked as they are dispatched; the placement's row was checked
 * before (mp_placement_check). A call owns its tables and runs on one thread. */
#include <moepack/place.h>

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "place/replicas.h"
#include "place/slots.h"
#include "place/waterfill.h"

/* Where a physical expert is. */
typedef struct place {
    int32_t slot;
    uint32_t rank;
} place;

/* What the steps of one call share. */
typedef struct routing {
    const mp_route_options *options;
    uint64_t tokens;
    uint32_t k;
    mp_replicas replicas;
    int32_t *nearest;  /* [N]: lowest replica on the own rank, or -1; all -1 in round robin */
    place *places;     /* [P] */
    int32_t *physical; /* [tokens][k] */
    uint64_t *choices; /* [ep] */
    int32_t *slot_ids; /* [tokens][k + shared] */
    float *slot_weights;
} routing;

static int check_options(const mp_route_options *options, uint32_t k, mp_error *err)
{
    const mp_slots *slots = &options->slots;
    if (k == 0)
        return mp_fail(err, MP_ERR_INPUT, "no choices a token");
    if (options->rank >= slots->ep)
        return mp_fail(err, MP_ERR_USAGE, "rank %u of %u ranks", options->rank, slots->ep);
    if (!(options->routed_scaling_factor >= 0))
        return mp_fail(err, MP_ERR_USAGE, "routed scaling factor %g, expected 0 or more",
                       options->routed_scaling_factor);
    if (options->waterfill != MP_WATERFILL_OFF && (slots->shared != 1 || slots->shared_once))
        return mp_fail(err, MP_ERR_USAGE,
                       "waterfill needs exactly one shared expert on every rank");
    if (options->waterfill != MP_WATERFILL_DYNAMIC)
        return 0;
    if (!options->rank_load)
        return mp_fail(err, MP_ERR_USAGE, "dynamic waterfill needs the rank loads of all ranks");
    if (options->rank_load->ep != slots->ep)
        return mp_fail(err, MP_ERR_USAGE, "loads of %u rank%s for %u", options->rank_load->ep,
                       mp_plural(options->rank_load->ep), slots->ep);
    return 0;
}

/* Looks up once for each expert what the loops over choices need. Going backwards through the
 * physical experts leaves the lowest replica of this rank in `nearest`. */
static int prepare(routing *r, const int32_t *row, mp_error *err)
{
    const mp_slots *slots = &r->options->slots;
    uint32_t room = mp_slots_routed_per_rank(slots);
    uint64_t choices;
    int rc = mp_replicas_init(&r->replicas, row, slots->num_logical, slots->num_physical, err);
    if (rc != 0)
        return rc;
    if (!mp_mul_u64(r->tokens, r->k, &choices))
        return mp_fail_memory(err);
    r->nearest = mp_alloc(slots->num_logical, sizeof(*r->nearest));
    r->places = mp_alloc(slots->num_physical, sizeof(*r->places));
    r->physical = mp_alloc(choices, sizeof(*r->physical));
    if (!r->nearest || !r->places || !r->physical)
        return mp_fail_memory(err);
    for (uint32_t e = 0; e < slots->num_logical; e++)
        r->nearest[e] = -1;
    for (uint32_t p = slots->num_physical; p-- > 0;) {
        r->places[p] = (place){(int32_t)mp_slots_of_physical(slots, p), p / room};
        if (p / room == r->options->rank && r->options->dispatch == MP_DISPATCH_NEAREST)
            r->nearest[row[p]] = (int32_t)p;
    }
    return 0;
}

/* Logical to physical. Masked choices stay -1. */
static int dispatch(routing *r, const int32_t *ids, mp_error *err)
{
    const mp_replicas *replicas = &r->replicas;
    for (uint64_t i = 0; i < r->tokens * r->k; i++) {
        int32_t id = ids[i];
        r->physical[i] = -1;
        if (id == -1)
            continue;
        if (id < 0 || (uint32_t)id >= replicas->num_logical)
            return mp_fail(err, MP_ERR_INPUT,
                           "token %llu, choice %llu: logical expert %d, expected -1 to %u",
                           (unsigned long long)(i / r->k), (unsigned long long)(i % r->k), id,
                           replicas->num_logical - 1);
        uint32_t start = replicas->start[id], count = replicas->start[id + 1] - start;
        if (count == 0)
            return mp_fail(err, MP_ERR_INPUT, "logical expert %d has no physical one", id);
        if (r->nearest[id] >= 0)
            r->physical[i] = r->nearest[id];
        else if (count == 1)
            r->physical[i] = (int32_t)replicas->physical[start];
        else
            r->physical[i] = (int32_t)replicas->physical[start + i % count];
        r->choices[r->places[r->physical[i]].rank]++;
    }
    return 0;
}

/* Physical to slot, into the first k columns. */
static void place_choices(routing *r, const float *weights)
{
    uint64_t columns = (uint64_t)r->k + r->options->slots.shared;
    for (uint64_t t = 0; t < r->tokens; t++) {
        const int32_t *physical = r->physical + t * r->k;
        for (uint32_t i = 0; i < r->k; i++) {
            bool masked = physical[i] < 0;
            r->slot_ids[t * columns + i] = masked ? -1 : r->places[physical[i]].slot;
            r->slot_weights[t * columns + i] = masked ? 0 : weights[t * r->k + i];
        }
    }
}

static bool has_choice(const int32_t *physical, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        if (physical[i] >= 0)
            return true;
    return false;
}

/* Shared columns that stay on the tokens' own rank; idle: also for tokens without a choice. */
static void share_at_home(routing *r, bool idle)
{
    const mp_slots *slots = &r->options->slots;
    uint64_t columns = (uint64_t)r->k + slots->shared;
    for (uint64_t t = 0; t < r->tokens; t++) {
        bool computed = idle || has_choice(r->physical + t * r->k, r->k);
        for (uint32_t s = 0; s < slots->shared; s++)
            r->slot_ids[t * columns + r->k + s] =
                computed ? (int32_t)mp_slots_of_shared(slots, r->options->rank, s) : -1;
    }
}

/* Waterfill by the choices of this rank's own tokens. */
static int fill_static(routing *r, mp_error *err)
{
    mp_waterfill w = {.load = r->choices, .allow_all = true, .rank = r->options->rank};
    uint64_t columns = (uint64_t)r->k + 1;
    return mp_waterfill_assign(&w, &r->options->slots, r->physical, r->tokens, r->k,
                               r->slot_ids + r->k, columns, err);
}

/* Waterfill by the summed routed choices and tokens of all ranks. */
static int fill_dynamic(routing *r, mp_error *err)
{
    const mp_rank_load *given = r->options->rank_load;
    uint64_t columns = (uint64_t)r->k + 1, counts = 0, total = 0, largest = 0;
    uint64_t *load = mp_alloc(given->ep, sizeof(*load));
    if (!load)
        return mp_fail_memory(err);
    for (uint32_t rank = 0; rank < given->ep; rank++) {
        /* As in the engine: a token's shared expert counts as load too, on its own rank unless
         * moved. */
        load[rank] = given->routed_counts[rank] + given->tokens[rank];
        counts += given->routed_counts[rank];
        total += load[rank];
        largest = load[rank] > largest ? load[rank] : largest;
    }
    mp_waterfill w = {.load = load, .rank = r->options->rank};
    w.target = mp_ceil_div(total + counts / r->k, given->ep);
    w.allow_all = largest <= w.target;
    int rc = mp_waterfill_assign(&w, &r->options->slots, r->physical, r->tokens, r->k,
                                 r->slot_ids + r->k, columns, err);
    free(load);
    return rc;
}

static int choose_shared(routing *r, mp_error *err)
{
    mp_waterfill_mode mode = r->options->waterfill;
    if (mode == MP_WATERFILL_STATIC)
        return fill_static(r, err);
    if (mode == MP_WATERFILL_DYNAMIC && r->tokens >= MP_WATERFILL_MIN_TOKENS)
        return fill_dynamic(r, err);
    /* A dynamic batch this small is not worth moving. Tokens without a choice get no shared expert
     * then. */
    share_at_home(r, mode == MP_WATERFILL_OFF);
    return 0;
}

/* Weights of the shared columns, and their share of the ranks' choices. */
static void weigh_shared(routing *r)
{
    const mp_slots *slots = &r->options->slots;
    double factor = r->options->routed_scaling_factor;
    float weight = factor > 0 ? (float)(1 / factor) : 1;
    uint64_t columns = (uint64_t)r->k + slots->shared;
    for (uint64_t t = 0; t < r->tokens; t++) {
        for (uint64_t i = t * columns + r->k; i < (t + 1) * columns; i++) {
            bool computed = r->slot_ids[i] >= 0;
            r->slot_weights[i] = computed ? weight : 0;
            if (computed)
                r->choices[mp_slots_rank(slots, (uint32_t)r->slot_ids[i])]++;
        }
    }
}

int mp_route(const mp_route_options *options, const int32_t *row, const int32_t *ids,
             const float *weights, uint64_t tokens, uint32_t k, int32_t *slot_ids,
             float *slot_weights, uint64_t *choices, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    routing r = {.options = options,
                 .tokens = tokens,
                 .k = k,
                 .choices = choices,
                 .slot_ids = slot_ids,
                 .slot_weights = slot_weights};
    memset(choices, 0, options->slots.ep * sizeof(*choices));
    int rc = check_options(options, k, err);
    if (rc == 0)
        rc = prepare(&r, row, err);
    if (rc == 0)
        rc = dispatch(&r, ids, err);
    if (rc == 0) {
        place_choices(&r, weights);
        rc = choose_shared(&r, err);
    }
    if (rc == 0)
        weigh_shared(&r);
    mp_replicas_release(&r.replicas);
    free(r.nearest);
    free(r.places);
    free(r.physical);
    return rc;
}

double mp_balancedness(const uint64_t *choices, uint32_t ep)
{
    uint64_t largest = 0;
    double sum = 0;
    for (uint32_t rank = 0; rank < ep; rank++) {
        sum += (double)choices[rank];
        if (choices[rank] > largest)
            largest = choices[rank];
    }
    return largest > 0 ? sum / ep / (double)largest : 1;
}

/* ------------------------------------------------------------------------
 * Rank loads
 */

/* Allocates and reads the list of one number a rank. */
static int read_loads(const json_t *root, const char *key, uint32_t ep, uint64_t **values,
                      mp_error *err)
{
    json_t *list;
    int rc = mp_json_get_array(root, key, "rank load", &list, err);
    if (rc != 0)
        return rc;
    if (json_array_size(list) != ep)
        return mp_fail(err, MP_ERR_INPUT, "rank load: %s has %zu numbers, expected %u", key,
                       json_array_size(list), ep);
    *values = mp_alloc(ep, sizeof(**values));
    if (!*values)
        return mp_fail_memory(err);
    for (uint32_t rank = 0; rank < ep; rank++) {
        const json_t *value = json_array_get(list, rank);
        json_int_t number = json_integer_value(value);
        if (!json_is_integer(value) || number < 0 || number > INT32_MAX)
            return mp_fail(err, MP_ERR_INPUT,
                           "rank load: %s, rank %u: expected a whole number from 0 to %d", key,
                           rank, INT32_MAX);
        (*values)[rank] = (uint64_t)number;
    }
    return 0;
}

int mp_rank_load_parse(mp_rank_load *load, const char *text, uint64_t length, uint32_t ep,
                       mp_error *err)
{
    *load = (mp_rank_load){.ep = ep};
    json_t *root;
    int rc = mp_json_parse(text, length, "rank load", &root, err);
    if (rc != 0)
        return rc;
    rc = read_loads(root, "routed_counts", ep, &load->routed_counts, err);
    if (rc == 0)
        rc = read_loads(root, "tokens", ep, &load->tokens, err);
    if (rc == 0 && json_object_size(root) != 2)
        rc = mp_fail(err, MP_ERR_INPUT,
                     "rank load: %zu keys, expected routed_counts and tokens only",
                     json_object_size(root));
    if (rc != 0)
        mp_rank_load_release(load);
    json_decref(root);
    return rc;
}

void mp_rank_load_release(mp_rank_load *load)
{
    free(load->routed_counts);
    free(load->tokens);
    *load = (mp_rank_load){0};
}
