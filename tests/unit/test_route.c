/* SPDX-License-Identifier: Apache-2.0 */
/* Routing of top-k choices to slots, and waterfill. */
#include <criterion/criterion.h>

#include <jansson.h>
#include <math.h>
#include <moepack/place.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "place/slots.h"
#include "place/waterfill.h"

#include "../../cmd/charts.h"

static mp_error err;

TestSuite(route, .timeout = 120);

/* ------------------------------------------------------------------------
 * Golden data
 */

/* A batch of choices from the golden file, and what should come of it. */
typedef struct batch {
    uint64_t tokens;
    uint32_t k, columns;
    int32_t *ids, *slot_ids;
    float *weights, *slot_weights;
} batch;

static int32_t *integers(const json_t *rows, uint32_t columns)
{
    int32_t *out = malloc(json_array_size(rows) * columns * sizeof(*out));
    size_t t, i;
    json_t *row, *value;
    json_array_foreach(rows, t, row)
    {
        cr_assert_eq(json_array_size(row), columns);
        json_array_foreach(row, i, value)
        {
            out[t * columns + i] = (int32_t)json_integer_value(value);
        }
    }
    return out;
}

static float *floats(const json_t *rows, uint32_t columns)
{
    float *out = malloc(json_array_size(rows) * columns * sizeof(*out));
    size_t t, i;
    json_t *row, *value;
    json_array_foreach(rows, t, row)
    {
        cr_assert_eq(json_array_size(row), columns);
        json_array_foreach(row, i, value)
        {
            out[t * columns + i] = (float)json_number_value(value);
        }
    }
    return out;
}

static batch batch_of(const json_t *one)
{
    const json_t *ids = json_object_get(one, "ids"), *out = json_object_get(one, "slot_ids");
    batch b = {.tokens = json_array_size(ids),
               .k = (uint32_t)json_array_size(json_array_get(ids, 0)),
               .columns = (uint32_t)json_array_size(json_array_get(out, 0))};
    b.ids = integers(ids, b.k);
    b.weights = floats(json_object_get(one, "weights"), b.k);
    b.slot_ids = integers(out, b.columns);
    b.slot_weights = floats(json_object_get(one, "slot_weights"), b.columns);
    return b;
}

static void release_batch(batch *b)
{
    free(b->ids);
    free(b->weights);
    free(b->slot_ids);
    free(b->slot_weights);
}

static uint32_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_integer(value), "%s", key);
    return (uint32_t)json_integer_value(value);
}

static json_t *load_golden(void)
{
    json_error_t where;
    json_t *root = json_load_file("testdata/golden/placement.json", 0, &where);
    cr_assert_not_null(root, "%s", where.text);
    return root;
}

static void compare(const batch *b, const int32_t *slot_ids, const float *slot_weights, size_t c)
{
    size_t n = b->tokens * b->columns;
    for (size_t i = 0; i < n; i++) {
        cr_assert_eq(slot_ids[i], b->slot_ids[i], "case %zu, token %zu, column %zu", c,
                     i / b->columns, i % b->columns);
        cr_assert_eq(slot_weights[i], b->slot_weights[i], "case %zu, token %zu, column %zu", c,
                     i / b->columns, i % b->columns);
    }
}

/* The golden ids are physical: every physical expert is its own logical one here. */
Test(route, golden_remap)
{
    json_t *root = load_golden(), *one;
    const json_t *cases = json_object_get(root, "remap");
    size_t c;
    cr_assert_gt(json_array_size(cases), 0);
    json_array_foreach(cases, c, one)
    {
        uint32_t p = number(one, "num_physical"), ep = number(one, "ep");
        batch b = batch_of(one);
        mp_placement identity;
        mp_route_options o = {.rank = number(one, "rank"),
                              .routed_scaling_factor =
                                  json_number_value(json_object_get(one, "routed_scaling_factor"))};
        cr_assert_eq(mp_placement_trivial(&identity, 1, p, 0, &err), 0);
        cr_assert_eq(mp_slots_init(&o.slots, p, p, ep, number(one, "shared"), false, &err), 0);
        int32_t *slot_ids = malloc(b.tokens * b.columns * sizeof(*slot_ids));
        float *slot_weights = malloc(b.tokens * b.columns * sizeof(*slot_weights));
        uint64_t *choices = malloc(ep * sizeof(*choices));
        cr_assert_eq(mp_route(&o, identity.map, b.ids, b.weights, b.tokens, b.k, slot_ids,
                              slot_weights, choices, &err),
                     0, "%s", err.message);
        compare(&b, slot_ids, slot_weights, c);
        free(slot_ids);
        free(slot_weights);
        free(choices);
        release_batch(&b);
        mp_placement_release(&identity);
    }
    json_decref(root);
}

static uint64_t *loads_of(const json_t *list)
{
    uint64_t *out = malloc(json_array_size(list) * sizeof(*out));
    size_t i;
    json_t *value;
    json_array_foreach(list, i, value)
    {
        out[i] = (uint64_t)json_integer_value(value);
    }
    return out;
}

Test(route, golden_waterfill)
{
    json_t *root = load_golden(), *one;
    const json_t *cases = json_object_get(root, "waterfill");
    size_t c;
    cr_assert_gt(json_array_size(cases), 0);
    json_array_foreach(cases, c, one)
    {
        uint32_t p = number(one, "num_physical"), ep = number(one, "ep");
        batch b = batch_of(one);
        uint64_t *load = loads_of(json_object_get(one, "rank_load"));
        mp_waterfill w = {.load = load,
                          .target = number(one, "target_total"),
                          .allow_all = json_is_true(json_object_get(one, "allow_all")),
                          .rank = number(one, "rank")};
        mp_slots slots;
        cr_assert_eq(b.columns, b.k + 1);
        cr_assert_eq(mp_slots_init(&slots, p, p, ep, 1, false, &err), 0);
        int32_t *shared = malloc(b.tokens * sizeof(*shared));
        cr_assert_eq(mp_waterfill_assign(&w, &slots, b.ids, b.tokens, b.k, shared, 1, &err), 0,
                     "%s", err.message);
        float weight = (float)json_number_value(json_object_get(one, "shared_weight"));
        for (uint64_t t = 0; t < b.tokens; t++) {
            const int32_t *expected = b.slot_ids + t * b.columns;
            cr_assert_eq(shared[t], expected[b.k], "case %zu, token %d", c, (int)t);
            cr_assert_eq(b.slot_weights[t * b.columns + b.k], shared[t] < 0 ? 0 : weight);
            for (uint32_t i = 0; i < b.k; i++)
                cr_assert_eq(b.ids[t * b.k + i] < 0 ? -1
                                                    : (int32_t)mp_slots_of_physical(
                                                          &slots, (uint32_t)b.ids[t * b.k + i]),
                             expected[i]);
        }
        free(shared);
        free(load);
        release_batch(&b);
    }
    json_decref(root);
}

/* ------------------------------------------------------------------------
 * An independent routing: the specification word for word
 */

enum { MOST_RANKS = 8, MOST_K = 9 };

static int64_t ceil_of(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* The rank of the shared expert of one token; -1 without a valid choice. */
static int fill_slowly(const int64_t *load, int ep, int own, int64_t target, bool all,
                       const int *choice_rank, int choices, uint32_t token)
{
    bool candidate[MOST_RANKS] = {false};
    int order[MOST_RANKS + MOST_K], n = 0;
    if (choices == 0)
        return -1;
    for (int i = 0; i < (all ? ep : choices); i++)
        order[n++] = all ? i : choice_rank[i];
    candidate[own] = true;
    int best = own;
    for (int i = 0; i < n; i++) {
        candidate[order[i]] = true;
        if (load[order[i]] * 11 < load[best] * 10)
            best = order[i];
    }
    int64_t weight[MOST_RANKS] = {0}, sum = 0;
    for (int rank = 0; rank < ep; rank++) {
        if (!candidate[rank])
            continue;
        weight[rank] = target > load[rank] ? target - load[rank] : 0;
        if (rank != own)
            weight[rank] = weight[rank] * 10 / 11;
        sum += weight[rank];
    }
    if (sum == 0)
        return best;
    uint32_t seed = token ^ (uint32_t)(((uint64_t)own * 0x9E3779B9u) & 0xFFFFFFFFu);
    seed = (uint32_t)(((uint64_t)seed * 1664525u + 1013904223u) & 0xFFFFFFFFu);
    int64_t u = seed % sum;
    for (int rank = 0;; rank++) {
        if (u < weight[rank])
            return rank;
        u -= weight[rank];
    }
}

typedef struct slow_case {
    const mp_route_options *o;
    const int32_t *row;
    const int32_t *ids;
    const float *weights;
    int64_t tokens;
    int k;
} slow_case;

/* Physical expert of a choice. */
static int dispatch_slowly(const slow_case *c, int64_t token, int i)
{
    const mp_slots *s = &c->o->slots;
    int candidates[256], n = 0, per_rank = (int)(s->num_physical / s->ep);
    for (int p = 0; p < (int)s->num_physical; p++)
        if (c->row[p] == c->ids[token * c->k + i])
            candidates[n++] = p;
    if (c->o->dispatch == MP_DISPATCH_NEAREST)
        for (int j = 0; j < n; j++)
            if (candidates[j] / per_rank == (int)c->o->rank)
                return candidates[j];
    return candidates[(token * c->k + i) % n];
}

static void route_slowly(const slow_case *c, int32_t *slot_ids, float *slot_weights,
                         uint64_t *choices)
{
    const mp_slots *s = &c->o->slots;
    int ep = (int)s->ep, r = (int)(s->num_physical / s->ep), shared = (int)s->shared, k = c->k;
    int64_t load[MOST_RANKS] = {0}, total = 0, counts = 0, largest = 0, target;
    int columns = k + shared;
    memset(choices, 0, s->ep * sizeof(*choices));
    for (int64_t t = 0; t < c->tokens; t++)
        for (int i = 0; i < k; i++) {
            int64_t at = t * columns + i;
            slot_ids[at] = -1;
            slot_weights[at] = 0;
            if (c->ids[t * k + i] == -1)
                continue;
            int p = dispatch_slowly(c, t, i);
            slot_ids[at] = p + p / r * (s->shared_once ? 0 : shared);
            slot_weights[at] = c->weights[t * k + i];
            choices[p / r]++;
        }
    bool dynamic = c->o->waterfill == MP_WATERFILL_DYNAMIC;
    for (int rank = 0; rank < ep; rank++) {
        load[rank] = (int64_t)choices[rank];
        if (dynamic) {
            load[rank] =
                (int64_t)(c->o->rank_load->routed_counts[rank] + c->o->rank_load->tokens[rank]);
            counts += (int64_t)c->o->rank_load->routed_counts[rank];
        }
        total += load[rank];
        largest = load[rank] > largest ? load[rank] : largest;
    }
    target = dynamic ? ceil_of(total + counts / k, ep) : ceil_of(total + total / k, ep);
    for (int64_t t = 0; t < c->tokens; t++)
        for (int j = 0; j < shared; j++) {
            int64_t at = t * columns + k + j;
            int rank_of[MOST_K], n = 0, rank = (int)c->o->rank;
            for (int i = 0; i < k; i++)
                if (slot_ids[t * columns + i] >= 0)
                    rank_of[n++] = slot_ids[t * columns + i] / (r + shared);
            if (c->o->waterfill != MP_WATERFILL_OFF) {
                bool all = !dynamic || largest <= target;
                if (dynamic && c->tokens < 64)
                    rank = n > 0 ? rank : -1;
                else
                    rank = fill_slowly(load, ep, rank, target, all, rank_of, n, (uint32_t)t);
            }
            if (s->shared_once) {
                slot_ids[at] = (int32_t)s->num_physical + j;
                rank = ep - 1;
            } else {
                slot_ids[at] = rank < 0 ? -1 : rank * (r + shared) + r + j;
            }
            double factor = c->o->routed_scaling_factor;
            slot_weights[at] = rank < 0 ? 0 : (float)(factor > 0 ? 1 / factor : 1);
            if (rank >= 0)
                choices[rank]++;
        }
}

/* A placement with every expert at least once, in any order. */
static void random_row(int32_t *row, uint32_t n, uint32_t p)
{
    for (uint32_t i = 0; i < p; i++)
        row[i] = (int32_t)(i < n ? i : (uint32_t)rand() % n);
    for (uint32_t i = p - 1; i > 0; i--) {
        uint32_t j = (uint32_t)rand() % (i + 1);
        int32_t id = row[i];
        row[i] = row[j];
        row[j] = id;
    }
}

static void compare_with_slow(const slow_case *c)
{
    uint32_t columns = (uint32_t)c->k + c->o->slots.shared, ep = c->o->slots.ep;
    size_t n = (size_t)c->tokens * columns;
    int32_t *ids = malloc(2 * n * sizeof(*ids) + 1);
    float *weights = malloc(2 * n * sizeof(*weights) + 1);
    uint64_t choices[2 * MOST_RANKS];
    cr_assert_eq(mp_route(c->o, c->row, c->ids, c->weights, (uint64_t)c->tokens, (uint32_t)c->k,
                          ids, weights, choices, &err),
                 0, "%s", err.message);
    route_slowly(c, ids + n, weights + n, choices + MOST_RANKS);
    cr_assert_arr_eq(ids, ids + n, n * sizeof(*ids));
    cr_assert_arr_eq(weights, weights + n, n * sizeof(*weights));
    cr_assert_arr_eq(choices, choices + MOST_RANKS, ep * sizeof(*choices));
    free(ids);
    free(weights);
}

static void random_case(mp_waterfill_mode waterfill, mp_dispatch dispatch)
{
    uint64_t counts[MOST_RANKS], tokens_of[MOST_RANKS];
    uint32_t ep = 1 + (uint32_t)rand() % MOST_RANKS, room = 1 + (uint32_t)rand() % 12;
    uint32_t p = ep * room, n = 1 + (uint32_t)rand() % p;
    mp_rank_load load = {.ep = ep, .routed_counts = counts, .tokens = tokens_of};
    mp_route_options o = {.rank = (uint32_t)rand() % ep,
                          .dispatch = dispatch,
                          .routed_scaling_factor = rand() % 3 * 1.4135,
                          .waterfill = waterfill,
                          .rank_load = waterfill == MP_WATERFILL_DYNAMIC ? &load : NULL};
    bool off = waterfill == MP_WATERFILL_OFF;
    uint32_t shared = off ? (uint32_t)rand() % 3 : 1;
    cr_assert_eq(mp_slots_init(&o.slots, n, p, ep, shared, off && rand() % 4 == 0, &err), 0);
    for (uint32_t rank = 0; rank < ep; rank++) {
        counts[rank] = (uint64_t)(rand() % 3 ? 500 + rand() % 40 : rand() % 900);
        tokens_of[rank] = (uint64_t)(rand() % 100);
    }
    int32_t row[MOST_RANKS * 12], ids[200 * MOST_K];
    float weights[200 * MOST_K];
    slow_case c = {&o, row, ids, weights, rand() % 200, 1 + rand() % MOST_K};
    random_row(row, n, p);
    for (int i = 0; i < 200 * MOST_K; i++) {
        ids[i] = rand() % 5 ? rand() % (int)n : -1;
        weights[i] = (float)rand() / (float)RAND_MAX;
    }
    for (int i = 0; i < c.k && c.tokens > 3; i++)
        ids[3 * c.k + i] = -1; /* a token that chose nothing */
    compare_with_slow(&c);
}

Test(route, random_cases_against_a_direct_transcription)
{
    srand(20261122);
    for (int round = 0; round < 300; round++)
        for (int waterfill = MP_WATERFILL_OFF; waterfill <= MP_WATERFILL_DYNAMIC; waterfill++) {
            random_case((mp_waterfill_mode)waterfill, MP_DISPATCH_NEAREST);
            random_case((mp_waterfill_mode)waterfill, MP_DISPATCH_ROUND_ROBIN);
        }
}

/* ------------------------------------------------------------------------
 * Cases worth seeing
 */

Test(route, nearest_stays_on_the_own_rank)
{
    /* Two ranks of three; expert 1 is on both, expert 0 twice on rank 1. */
    static const int32_t row[] = {1, 2, 3, 0, 1, 0};
    static const int32_t ids[] = {1, 0, 0, -1, 3, 1};
    static const float weights[] = {.5f, .25f, .75f, .125f, 1, 2};
    mp_route_options o = {.rank = 1};
    int32_t slot_ids[9];
    float slot_weights[9];
    uint64_t choices[2];
    cr_assert_eq(mp_slots_init(&o.slots, 4, 6, 2, 1, false, &err), 0);
    cr_assert_eq(mp_route(&o, row, ids, weights, 3, 2, slot_ids, slot_weights, choices, &err), 0);
    static const int32_t on_rank_1[] = {5, 4, 7, 4, -1, 7, 2, 5, 7};
    static const float with_weights[] = {.5f, .25f, 1, .75f, 0, 1, 1, 2, 1};
    cr_assert_arr_eq(slot_ids, on_rank_1, sizeof(on_rank_1));
    cr_assert_arr_eq(slot_weights, with_weights, sizeof(with_weights));
    cr_assert_eq(choices[0], 1);
    cr_assert_eq(choices[1], 7);
    cr_assert_float_eq(mp_balancedness(choices, 2), 4.0 / 7, 1e-12);

    o.rank = 0;
    o.routed_scaling_factor = 4;
    cr_assert_eq(mp_route(&o, row, ids, weights, 3, 2, slot_ids, slot_weights, choices, &err), 0);
    static const int32_t on_rank_0[] = {0, 6, 3, 4, -1, 3, 2, 0, 3};
    cr_assert_arr_eq(slot_ids, on_rank_0, sizeof(on_rank_0));
    cr_assert_eq(slot_weights[2], 0.25f);

    o.dispatch = MP_DISPATCH_ROUND_ROBIN;
    cr_assert_eq(mp_route(&o, row, ids, weights, 3, 2, slot_ids, slot_weights, choices, &err), 0);
    static const int32_t round_robin[] = {0, 6, 3, 4, -1, 3, 2, 5, 3};
    cr_assert_arr_eq(slot_ids, round_robin, sizeof(round_robin));
}

Test(route, balance_of_nothing_is_perfect)
{
    static const uint64_t none[3] = {0, 0, 0}, some[3] = {2, 0, 4};
    cr_assert_eq(mp_balancedness(none, 3), 1);
    cr_assert_eq(mp_balancedness(some, 3), 0.5);
}

/* ------------------------------------------------------------------------
 * Refusals
 */

static void refuse(mp_route_options o, int32_t bad, uint32_t k, int code, const char *message)
{
    static const int32_t row[] = {0, 1, 2, 0};
    int32_t ids[] = {0, 1, 2, bad};
    float weights[] = {1, 1, 1, 1};
    int32_t slot_ids[8];
    float slot_weights[8];
    uint64_t choices[4];
    cr_assert_eq(mp_route(&o, row, ids, weights, 2, k, slot_ids, slot_weights, choices, &err),
                 code);
    cr_assert_str_eq(err.message, message);
}

Test(route, bad_options_and_ids)
{
    uint64_t numbers[] = {1, 2};
    mp_rank_load one_rank = {.ep = 1, .routed_counts = numbers, .tokens = numbers};
    mp_route_options good = {0};
    cr_assert_eq(mp_slots_init(&good.slots, 3, 4, 2, 1, false, &err), 0);
    mp_route_options o = good;
    refuse(o, 3, 2, MP_ERR_INPUT, "token 1, choice 1: logical expert 3, expected -1 to 2");
    refuse(o, -2, 2, MP_ERR_INPUT, "token 1, choice 1: logical expert -2, expected -1 to 2");
    refuse(o, 0, 0, MP_ERR_INPUT, "no choices a token");
    o.rank = 2;
    refuse(o, 0, 2, MP_ERR_USAGE, "rank 2 of 2 ranks");
    o = good;
    o.routed_scaling_factor = -1;
    refuse(o, 0, 2, MP_ERR_USAGE, "routed scaling factor -1, expected 0 or more");
    o.routed_scaling_factor = NAN;
    refuse(o, 0, 2, MP_ERR_USAGE, "routed scaling factor nan, expected 0 or more");
    o = good;
    o.waterfill = MP_WATERFILL_DYNAMIC;
    refuse(o, 0, 2, MP_ERR_USAGE, "dynamic waterfill needs the rank loads of all ranks");
    o.rank_load = &one_rank;
    refuse(o, 0, 2, MP_ERR_USAGE, "loads of 1 rank for 2");
    o = good;
    o.waterfill = MP_WATERFILL_STATIC;
    o.slots.shared = 2;
    refuse(o, 0, 2, MP_ERR_USAGE, "waterfill needs exactly one shared expert on every rank");
    o.slots.shared = 1;
    o.slots.shared_once = true;
    refuse(o, 0, 2, MP_ERR_USAGE, "waterfill needs exactly one shared expert on every rank");
    o = good;
    o.slots.num_logical = 2;
    refuse(o, 0, 2, MP_ERR_INPUT, "placement: column 2: logical expert 2, expected 0 to 1");
    o.slots.num_logical = 4;
    refuse(o, 3, 2, MP_ERR_INPUT, "logical expert 3 has no physical one");
}

static void refuse_fill(mp_waterfill w, uint32_t shared, uint32_t k, int32_t bad, int code,
                        const char *message)
{
    int32_t physical[] = {0, 1, 2, bad}, out[4];
    mp_slots slots;
    cr_assert_eq(mp_slots_init(&slots, 4, 4, 2, shared, false, NULL), 0);
    cr_assert_eq(mp_waterfill_assign(&w, &slots, physical, 2, k, out, 1, &err), code);
    cr_assert_str_eq(err.message, message);
}

Test(route, bad_waterfill)
{
    uint64_t load[] = {5, 7}, heavy[] = {5, UINT64_C(1) << 31};
    mp_waterfill w = {.load = load};
    refuse_fill(w, 1, 2, 4, MP_ERR_INPUT,
                "waterfill: token 1, choice 1: physical expert 4, expected -1 to 3");
    refuse_fill(w, 1, 2, -2, MP_ERR_INPUT,
                "waterfill: token 1, choice 1: physical expert -2, expected -1 to 3");
    refuse_fill(w, 2, 2, 0, MP_ERR_USAGE,
                "waterfill: needs exactly one shared expert on every rank");
    refuse_fill(w, 1, 0, 0, MP_ERR_USAGE, "waterfill: rank 0 of 2, 0 choices a token");
    w.rank = 2;
    refuse_fill(w, 1, 2, 0, MP_ERR_USAGE, "waterfill: rank 2 of 2, 2 choices a token");
    w = (mp_waterfill){.load = heavy};
    refuse_fill(w, 1, 2, 0, MP_ERR_INPUT,
                "waterfill: load 2147483648 of rank 1 does not fit 31 bits");
    w = (mp_waterfill){.load = load, .target = UINT64_C(1) << 32};
    refuse_fill(w, 1, 2, 0, MP_ERR_INPUT, "waterfill: target 4294967296 does not fit 32 bits");
}

static void refuse_load(const char *text, const char *message)
{
    mp_rank_load load;
    cr_assert_eq(mp_rank_load_parse(&load, text, strlen(text), 2, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(load.tokens);
}

Test(route, rank_loads)
{
    static const char text[] = "{\"tokens\": [3, 4], \"routed_counts\": [10, 0]}";
    mp_rank_load load;
    cr_assert_eq(mp_rank_load_parse(&load, text, strlen(text), 2, &err), 0, "%s", err.message);
    cr_assert_eq(load.ep, 2);
    cr_assert_eq(load.routed_counts[0], 10);
    cr_assert_eq(load.tokens[1], 4);
    mp_rank_load_release(&load);
    refuse_load("[]", "rank load: expected an object");
    refuse_load("{\"tokens\": [3, 4]}", "rank load: \"routed_counts\" is missing");
    refuse_load("{\"tokens\": [3, 4], \"routed_counts\": [1]}",
                "rank load: routed_counts has 1 numbers, expected 2");
    refuse_load("{\"tokens\": [3, -4], \"routed_counts\": [1, 2]}",
                "rank load: tokens, rank 1: expected a whole number from 0 to 2147483647");
    refuse_load("{\"tokens\": [3, 4], \"routed_counts\": [1, 2.5]}",
                "rank load: routed_counts, rank 1: expected a whole number from 0 to 2147483647");
    refuse_load("{\"tokens\": [3, 4], \"routed_counts\": [1, 2], \"x\": 0}",
                "rank load: 3 keys, expected routed_counts and tokens only");
}

/* ------------------------------------------------------------------------
 * Drawings
 */

Test(route, drawings_of_rank_loads)
{
    static const uint64_t choices[3] = {10, 0, 5};
    char *text;
    cr_assert_eq(rank_load_bars(choices, 3, 6, &text, &err), 0);
    cr_assert_str_eq(text, " rank     choices\n"
                           "    0          10 ######\n"
                           "    1           0 ......\n"
                           "    2           5 ###...\n");
    free(text);
    cr_assert_eq(rank_load_svg(choices, 3, &text, &err), 0);
    cr_assert_not_null(strstr(text, "largest 10, balancedness 0.500"));
    /* Bars of 200, 0 and 100 pixels. */
    cr_assert_not_null(strstr(text, "v-200h31v200z"));
    cr_assert_not_null(strstr(text, "v-0h31v0z"));
    cr_assert_not_null(strstr(text, "v-100h31v100z"));
    free(text);
}
