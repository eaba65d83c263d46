/* SPDX-License-Identifier: Apache-2.0 */
/* Routing tokens with a layer's router: logits, choices, shared experts. Logits are a product as
 * any other, in float32 and in a fixed order (product.h), so that a token chooses the same experts
 * whichever tokens come with it.
 *
 * Tokens are done in strips of 16 on all threads. The gate is padded in memory with rows and
 * columns of zeros, as products take it; scratch of a thread is
 *
 *   x [16, stride] | logits [16, rows] | weights [16, k] | ids [16, k]
 *
 * The rest of the file, which weighs routed against shared experts, is plain loops of one
 * thread. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "forward/layer_router.h"

/* Tokens whose logits are computed at a time. */
#define TOKENS 16

typedef struct route_job {
    const mp_layer_router *r;
    const float *x;
    const int64_t *token_ids;
    uint64_t tokens;
    int32_t *ids;
    float *weights;
} route_job;

/* Of a strip of tokens: rows of x filled up, logits, choices and their weights. */
typedef struct strip {
    float *x, *logits, *weights;
    int32_t *ids;
} strip;

static uint64_t x_bytes(const mp_layer_router *r)
{
    return TOKENS * mp_gate_stride(r) * sizeof(float);
}

static uint64_t logits_bytes(const mp_layer_router *r)
{
    return mp_round_up(TOKENS * mp_gate_rows(r) * sizeof(float), 64);
}

static uint64_t choices_bytes(const mp_layer_router *r)
{
    return mp_round_up(TOKENS * r->router.k * sizeof(float), 64);
}

static strip split(const mp_layer_router *r, uint8_t *at)
{
    strip s = {.x = (float *)(void *)at};

    s.logits = (float *)(void *)(at + x_bytes(r));
    s.weights = (float *)(void *)(at + x_bytes(r) + logits_bytes(r));
    s.ids = (int32_t *)(void *)(at + x_bytes(r) + logits_bytes(r) + choices_bytes(r));
    return s;
}

/* The product pads experts; the router does not. Close the gaps in place: token t moves from t *
 * rows to t * n, never to a number that is yet to be read, as n <= rows. */
static void compute_logits(const mp_layer_router *r, const float *x, uint64_t count, strip *s)
{
    uint64_t n = r->router.num_experts, stride = mp_gate_stride(r);
    const float *rows[TOKENS];

    /* Fill behind the rows; scratch holds another strip's. */
    memset(s->x, 0, TOKENS * stride * sizeof *s->x);
    for (uint64_t t = 0; t < count; t++) {
        memcpy(s->x + t * stride, x + t * r->hidden_size, r->hidden_size * sizeof *x);
        rows[t] = s->x + t * stride;
    }
    mp_products_best()->f32(rows, count, r->gate, mp_gate_rows(r), stride, s->logits);
    for (uint64_t t = 0; t < count; t++)
        for (uint64_t e = 0; e < n; e++) {
            float l = s->logits[t * mp_gate_rows(r) + e] + (r->logit_bias ? r->logit_bias[e] : 0);

            s->logits[t * n + e] = r->logit_cap > 0 ? r->logit_cap * tanhf(l / r->logit_cap) : l;
        }
}

static int choose(const route_job *job, uint64_t first, uint64_t count, strip *s, mp_error *err)
{
    const mp_layer_router *r = job->r;

    /* Layers with a table weigh its choices by the same logits. */
    if (!r->by_token)
        return mp_router_choose(&r->router, s->logits, count, s->ids, s->weights, err);
    for (uint64_t t = 0; t < count; t++) {
        int64_t token = job->token_ids[first + t];

        if (token < 0 || token >= (int64_t)r->vocab)
            return mp_fail(err, MP_ERR_INPUT, "id %lld, the vocabulary has %llu", (long long)token,
                           (unsigned long long)r->vocab);
        memcpy(s->ids + t * r->router.k, r->by_token + (uint64_t)token * r->router.k,
               r->router.k * sizeof *s->ids);
    }
    return mp_router_weigh(&r->router, s->logits, count, s->ids, s->weights, err);
}

static int route_strip(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const route_job *job = user;
    const mp_layer_router *r = job->r;
    uint64_t first = index * TOKENS, k = r->router.k;
    uint64_t count = job->tokens - first < TOKENS ? job->tokens - first : TOKENS;
    const float *x = job->x + first * r->hidden_size;
    strip s = split(r, scratch);

    compute_logits(r, x, count, &s);
    if (choose(job, first, count, &s, err) != 0)
        return mp_error_prefix(err, "tokens %llu to %llu", (unsigned long long)first,
                               (unsigned long long)(first + count - 1));
    memcpy(job->ids + first * k, s.ids, count * k * sizeof *s.ids);
    memcpy(job->weights + first * k, s.weights, count * k * sizeof *s.weights);
    return 0;
}

int mp_layer_route(const mp_layer_router *router, const float *x, const int64_t *token_ids,
                   uint64_t tokens, const mp_context *context, int32_t *ids, float *weights,
                   mp_error *err)
{
    route_job job = {router, x, token_ids, tokens, ids, weights};
    uint64_t scratch = x_bytes(router) + logits_bytes(router) + 2 * choices_bytes(router);

    if (router->cannot.code != 0)
        return mp_fail(err, router->cannot.code, "%s", router->cannot.message);
    if (!router->gate)
        return mp_fail(err, MP_ERR_INPUT,
                       "the layer has no router: neither gate.weight nor router.weight");
    if (router->by_token && !token_ids)
        return mp_fail(err, MP_ERR_USAGE, "this layer routes by token id, and there are none");
    return mp_parallel(context, mp_ceil_div(tokens, TOKENS), scratch, route_strip, &job, err);
}

/* One sum in order: a dot product of its own, since products take more rows. */
static float dot(const float *a, const float *b, uint64_t n)
{
    float sum = 0;

    for (uint64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* What routed and shared experts weigh in the sum of a token. */
static void parts_of(const mp_layer_router *r, const float *x, float *routed, float *shared)
{
    const uint64_t n = r->hidden_size;

    /* 1 each, or a half where the family averages routed and shared experts. */
    *routed = *shared = r->part;
    if (r->shared_gate)
        *shared = r->part / (1 + expf(-dot(x, r->shared_gate, n)));
    if (r->mix) { /* a softmax of two */
        float difference =
            dot(x, r->mix + n, n) + r->mix_bias[1] - dot(x, r->mix, n) - r->mix_bias[0];

        *routed = 1 / (1 + expf(difference));
        *shared = 1 / (1 + expf(-difference));
    }
}

bool mp_layer_take_zero(const mp_layer_router *router, uint64_t tokens, uint32_t k, int32_t *ids,
                        const float *weights, float *identity)
{
    bool any = false;

    for (uint64_t t = 0; t < tokens; t++) {
        identity[t] = 0;
        for (uint64_t i = t * k; i < (t + 1) * k; i++) {
            if (ids[i] < (int32_t)router->num_experts ||
                ids[i] >= (int32_t)router->router.num_experts)
                continue;
            identity[t] += weights[i];
            ids[i] = -1;
            any = true;
        }
    }
    return any;
}

void mp_layer_add_shared(const mp_layer_router *router, const float *x, uint64_t tokens, uint32_t k,
                         uint32_t shared, const int32_t *ids, const float *weights,
                         int32_t *all_ids, float *all_weights)
{
    uint64_t columns = (uint64_t)k + shared;

    for (uint64_t t = 0; t < tokens; t++) {
        float routed, weight;

        parts_of(router, x + t * router->hidden_size, &routed, &weight);
        for (uint32_t j = 0; j < k; j++) {
            all_ids[t * columns + j] = ids[t * k + j];
            /* A choice of -1 has a weight too, which nobody reads. */
            all_weights[t * columns + j] = weights[t * k + j] * routed;
        }
        for (uint32_t s = 0; s < shared; s++) {
            all_ids[t * columns + k + s] = (int32_t)(router->num_experts + s);
            all_weights[t * columns + k + s] = weight;
        }
    }
}

void mp_layer_weigh_shared(const mp_layer_router *router, const float *x, uint64_t tokens,
                           float *weights)
{
    for (uint64_t t = 0; t < tokens; t++) {
        float routed;

        parts_of(router, x + t * router->hidden_size, &routed, &weights[t]);
    }
}
