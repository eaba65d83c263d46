/* SPDX-License-Identifier: Apache-2.0 */
/* From logits to choices: scores, groups, the best k, their weights. All in float32 and in the
 * order of experts, as engines' reference code does it; of equal scores the lowest id wins. What
 * differs between models is in mp_router, and where each rule comes from in checkpoint/rules.c.
 *
 * A choice is made by biased scores and weighed by unbiased ones. Taking the best is done k times
 * over by marking what was taken with -Inf: k is small, and a sort would have to be told about
 * ties. Experts of groups that were left out are marked the same way, so check_router makes sure
 * that enough are left: take_best always finds one that is not marked, since logits are finite.
 *
 * Tokens are independent. Scratch is a token's scores, allocated once a call; any number of threads
 * may call. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "forward/reference.h"

static const char *const scorings[MP_SCORINGS] = {"softmax", "sigmoid", "sqrtsoftplus",
                                                  "sparsemixer"};

bool mp_scoring_parse(const char *name, mp_scoring *scoring)
{
    for (int i = 0; i < MP_SCORINGS; i++) {
        if (strcmp(scorings[i], name) == 0) {
            *scoring = (mp_scoring)i;
            return true;
        }
    }
    return false;
}

/* ------------------------------------------------------------------------
 * Scores
 */

static void softmax(const float *logits, uint32_t n, float *scores)
{
    float largest = logits[0], sum = 0;

    for (uint32_t e = 1; e < n; e++)
        largest = fmaxf(largest, logits[e]);
    for (uint32_t e = 0; e < n; e++)
        /* At most 1 each: no overflow, and the sum is at least 1. */
        sum += scores[e] = expf(logits[e] - largest);
    for (uint32_t e = 0; e < n; e++)
        scores[e] /= sum;
}

static float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

/* log(1 + e^x) without overflow. */
static float softplus(float x)
{
    return fmaxf(x, 0) + log1pf(expf(-fabsf(x)));
}

static void score(const mp_router *r, const float *logits, float *scores)
{
    if (r->scoring == MP_SCORE_SOFTMAX) {
        softmax(logits, r->num_experts, scores);
        return;
    }
    if (r->scoring == MP_SCORE_SPARSEMIXER) {
        memcpy(scores, logits, r->num_experts * sizeof *scores);
        return;
    }
    for (uint32_t e = 0; e < r->num_experts; e++)
        scores[e] =
            r->scoring == MP_SCORE_SIGMOID ? sigmoid(logits[e]) : sqrtf(softplus(logits[e]));
}

/* Weights of a token's choices: unbiased scores. A sum of nothing divides nothing. */
static void weigh(const mp_router *r, const float *scores, const int32_t *ids, float *weights)
{
    float sum = 0;

    for (uint32_t j = 0; j < r->k; j++)
        sum += weights[j] = ids[j] < 0 ? 0 : scores[ids[j]];
    /* Without epsilon and a least sum, a sum of choices that all weigh 0 stays 0, and divides
     * nothing. */
    sum = fmaxf(sum + r->epsilon, r->least_sum);
    for (uint32_t j = 0; j < r->k; j++) {
        if (r->renormalize && sum > 0)
            weights[j] /= sum;
        weights[j] *= r->scale;
    }
}

/* Whether a logit is near the largest one, m, as PhiMoE has it: its divisor has m with its sign.
 * 0 / 0 counts as near. */
static bool is_near(const mp_router *r, float m, float logit)
{
    return !((m - logit) / fmaxf(fabsf(logit), m) > 2 * r->near);
}

/* What choice `id` weighs among logits that are near it, without the one of `without`. */
static float mixer_weight(const mp_router *r, const float *logits, int32_t id, int32_t without)
{
    float m = logits[id], sum = 0;

    for (int32_t e = 0; e < (int32_t)r->num_experts; e++)
        if (e != without && is_near(r, m, logits[e]))
            sum += expf(logits[e] - m);
    return 1 / sum;
}

/* Both choices weigh up to 1; nothing is divided by their sum. */
static void weigh_mixed(const mp_router *r, const float *logits, const int32_t *ids, float *weights)
{
    weights[0] = ids[0] < 0 ? 0 : mixer_weight(r, logits, ids[0], -1);
    weights[1] = ids[1] < 0 ? 0 : mixer_weight(r, logits, ids[1], ids[0]);
}

/* ------------------------------------------------------------------------
 * Choices
 */

/* The index of the largest of n numbers that are not taken, the lowest of equal ones; there
 * is one. Taking is to make it -Inf, which no score is. */
static uint32_t take_best(float *values, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        /* Strictly above: the lowest of equal ones stays. */
        if (values[i] > values[best])
            best = i;
    values[best] = -INFINITY;
    return best;
}

static bool has_groups(const mp_router *r)
{
    return r->n_group > 1 && r->topk_group < r->n_group;
}

/* Sum of the two best, or the best. */
static float group_score(const mp_router *r, const float *biased, uint32_t size)
{
    float first = -INFINITY, second = -INFINITY;

    for (uint32_t i = 0; i < size; i++) {
        if (biased[i] > first) {
            second = first;
            first = biased[i];
        } else if (biased[i] > second) {
            second = biased[i];
        }
    }
    /* DeepSeek-V3 sums the two best where it has a bias; V2, without one, takes the best. */
    bool two = r->group_best ? r->group_best == 2 : r->bias != NULL;

    return two && size > 1 ? first + second : first;
}

/* Takes the experts of all but the best groups out of the choice. */
static void limit_groups(const mp_router *r, float *biased, float *groups, bool *stays)
{
    uint32_t size = r->num_experts / r->n_group;

    for (uint32_t g = 0; g < r->n_group; g++) {
        groups[g] = group_score(r, biased + g * size, size);
        stays[g] = false;
    }
    for (uint32_t i = 0; i < r->topk_group; i++)
        stays[take_best(groups, r->n_group)] = true;
    for (uint32_t e = 0; e < r->num_experts; e++)
        if (!stays[e / size])
            biased[e] = -INFINITY;
}

static int check_router(const mp_router *r, mp_error *err)
{
    uint32_t size;

    if (r->num_experts == 0 || r->k == 0 || r->k > r->num_experts)
        return mp_fail(err, MP_ERR_USAGE, "router: %u choices of %u experts", r->k, r->num_experts);
    if (r->scoring == MP_SCORE_SPARSEMIXER && r->k != 2)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "router: %u choices by sparsemixer, which has 2",
                       r->k);
    if (!has_groups(r))
        return 0;
    size = r->num_experts / r->n_group;
    if (r->num_experts % r->n_group != 0 || r->topk_group == 0 || r->topk_group * size < r->k)
        return mp_fail(err, MP_ERR_USAGE, "router: %u choices from %u of %u groups of %u experts",
                       r->k, r->topk_group, r->n_group, r->num_experts);
    return 0;
}

static int check_logits(const mp_router *r, const float *logits, uint64_t tokens, mp_error *err)
{
    for (uint64_t i = 0; i < tokens * r->num_experts; i++)
        if (!isfinite(logits[i]))
            return mp_fail(err, MP_ERR_INPUT, "router: token %llu, expert %llu: logit %g",
                           (unsigned long long)(i / r->num_experts),
                           (unsigned long long)(i % r->num_experts), (double)logits[i]);
    return 0;
}

static void choose(const mp_router *r, const float *logits, const float *scores, float *biased,
                   float *groups, bool *stays, int32_t *ids)
{
    for (uint32_t e = 0; e < r->num_experts; e++)
        biased[e] = (r->by_logits ? logits : scores)[e] + (r->bias ? r->bias[e] : 0);
    if (has_groups(r))
        limit_groups(r, biased, groups, stays);
    for (uint32_t j = 0; j < r->k; j++)
        ids[j] = (int32_t)take_best(biased, r->num_experts);
}

/* Chooses where chosen is null, else takes these. */
static int route(const mp_router *r, const float *logits, uint64_t tokens, const int32_t *chosen,
                 int32_t *ids, float *weights, mp_error *err)
{
    uint64_t n = r->num_experts;
    int rc = check_router(r, err);
    if (rc == 0)
        rc = check_logits(r, logits, tokens, err);
    if (rc != 0)
        return rc;
    float *scores = mp_alloc(3 * n, sizeof *scores);
    bool *stays = mp_alloc(n, sizeof *stays);
    if (!scores || !stays) {
        rc = mp_fail_memory(err);
        goto out;
    }
    for (uint64_t t = 0; t < tokens; t++) {
        const int32_t *of = (chosen ? chosen : ids) + t * r->k;

        score(r, logits + t * n, scores);
        if (!chosen)
            choose(r, logits + t * n, scores, scores + n, scores + 2 * n, stays, ids + t * r->k);
        if (r->scoring == MP_SCORE_SPARSEMIXER)
            weigh_mixed(r, logits + t * n, of, weights + t * r->k);
        else
            weigh(r, scores, of, weights + t * r->k);
    }
out:
    free(scores);
    free(stays);
    return rc;
}

int mp_router_choose(const mp_router *router, const float *logits, uint64_t tokens, int32_t *ids,
                     float *weights, mp_error *err)
{
    return route(router, logits, tokens, NULL, ids, weights, err);
}

int mp_router_weigh(const mp_router *router, const float *logits, uint64_t tokens,
                    const int32_t *ids, float *weights, mp_error *err)
{
    for (uint64_t i = 0; i < tokens * router->k; i++)
        if (ids[i] < -1 || ids[i] >= (int64_t)router->num_experts)
            return mp_fail(err, MP_ERR_INPUT,
                           "token %llu, choice %llu: expert %d, expected -1 to %u",
                           (unsigned long long)(i / router->k), (unsigned long long)(i % router->k),
                           ids[i], router->num_experts - 1);
    return route(router, logits, tokens, ids, NULL, weights, err);
}
