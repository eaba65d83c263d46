/* SPDX-License-Identifier: Apache-2.0 */
/* Routers, against golden choices and by hand. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "golden.h"

#include "forward/reference.h"

static mp_error err;

static void check_golden(const char *name, mp_router r, bool biased)
{
    golden_file *golden = golden_open("testdata/golden/forward.safetensors");
    uint64_t tokens = golden_dim(golden, "logits", 0);
    char tensor[64];
    int32_t ids[64];
    float weights[64];

    r.num_experts = (uint32_t)golden_dim(golden, "logits", 1);
    r.k = 3;
    r.renormalize = true;
    r.bias = biased ? golden_tensor(golden, "bias", NULL) : NULL;
    cr_assert_eq(
        mp_router_choose(&r, golden_tensor(golden, "logits", NULL), tokens, ids, weights, &err), 0,
        "%s", err.message);
    snprintf(tensor, sizeof tensor, "route.%s.ids", name);
    cr_assert_arr_eq(ids, golden_tensor(golden, tensor, NULL), tokens * r.k * sizeof *ids);
    snprintf(tensor, sizeof tensor, "route.%s.weights", name);
    const float *want = golden_tensor(golden, tensor, NULL);
    for (uint64_t i = 0; i < tokens * r.k; i++)
        cr_assert_float_eq(weights[i], want[i], 1e-6f * fabsf(want[i]), "%s %g %g", name,
                           (double)weights[i], (double)want[i]);
    golden_close(golden);
}

Test(router, chooses_the_golden_experts)
{
    check_golden("softmax", (mp_router){.scoring = MP_SCORE_SOFTMAX, .scale = 1}, false);
    check_golden(
        "sigmoid",
        (mp_router){.scoring = MP_SCORE_SIGMOID, .n_group = 3, .topk_group = 2, .scale = 2.5f},
        true);
    check_golden("sqrtsoftplus", (mp_router){.scoring = MP_SCORE_SQRTSOFTPLUS, .scale = 1.5f},
                 true);
}

#define N 6

static void choose(const mp_router *r, const float logits[N], int32_t *ids, float *weights)
{
    cr_assert_eq(mp_router_choose(r, logits, 1, ids, weights, &err), 0, "%s", err.message);
}

Test(router, takes_the_lowest_of_equal_experts)
{
    const mp_router r = {.num_experts = N, .k = 3, .scale = 1};
    const float logits[N] = {0, 2, 1, 2, 1, 2};
    int32_t ids[3];
    float weights[3];

    choose(&r, logits, ids, weights);
    cr_assert_eq(ids[0], 1);
    cr_assert_eq(ids[1], 3);
    cr_assert_eq(ids[2], 5);
    cr_assert_eq(weights[0], weights[2]);
}

Test(router, steers_by_a_bias_but_does_not_weigh_by_it)
{
    const float logits[N] = {0, 1, 2, 3, 4, 5}, bias[N] = {9, 0, 0, 0, 0, 0};
    const mp_router r = {
        .scoring = MP_SCORE_SIGMOID, .num_experts = N, .k = 2, .scale = 2, .bias = bias};
    int32_t ids[2];
    float weights[2];

    choose(&r, logits, ids, weights);
    cr_assert_eq(ids[0], 0);
    cr_assert_eq(ids[1], 5);
    cr_assert_float_eq(weights[0], 1, 1e-6);
    cr_assert_float_eq(weights[1], 2 / (1 + expf(-5)), 1e-6);
}

/* Two groups of three: {5, 0, 0} has the best expert, {4, 4, 0} the better two. */
Test(router, counts_two_of_a_group_with_a_bias_and_one_without)
{
    const float logits[N] = {5, 0, 0, 4, 4, 0}, none[N] = {0};
    mp_router r = {.scoring = MP_SCORE_SQRTSOFTPLUS,
                   .num_experts = N,
                   .k = 2,
                   .n_group = 2,
                   .topk_group = 1,
                   .scale = 1};
    int32_t ids[2];
    float weights[2];

    choose(&r, logits, ids, weights);
    cr_assert(ids[0] == 0 && ids[1] == 1);
    r.bias = none;
    choose(&r, logits, ids, weights);
    cr_assert(ids[0] == 3 && ids[1] == 4);
}

Test(router, weighs_choices_that_are_made)
{
    const mp_router r = {.num_experts = N, .k = 3, .renormalize = true, .scale = 2};
    const float logits[N] = {0, logf(2), logf(3), 0, 0, 0};
    const int32_t ids[3] = {2, -1, 1};
    const int32_t wrong[3] = {2, 6, 1};
    float weights[3];

    cr_assert_eq(mp_router_weigh(&r, logits, 1, ids, weights, &err), 0, "%s", err.message);
    cr_assert_float_eq(weights[0], 1.2f, 1e-6);
    cr_assert_eq(weights[1], 0);
    cr_assert_float_eq(weights[2], 0.8f, 1e-6);
    cr_assert_eq(mp_router_weigh(&r, logits, 1, wrong, weights, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "token 0, choice 1: expert 6, expected -1 to 5");
}

Test(router, survives_logits_far_out)
{
    const float logits[N] = {-1000, 1000, 0, 90, -90, -1000};
    float weights[6];
    int32_t ids[6];

    for (int s = 0; s < MP_SCORINGS; s++) {
        const uint32_t k = s == MP_SCORE_SPARSEMIXER ? 2 : 6;
        const mp_router r = {.scoring = (mp_scoring)s, .num_experts = N, .k = k, .scale = 1};

        choose(&r, logits, ids, weights);
        cr_assert_eq(ids[0], 1);
        for (uint32_t i = 0; i < k; i++)
            cr_assert(isfinite(weights[i]) && weights[i] >= 0);
    }
}

/* Worked out by hand from PhiMoE's code: within 2 * 0.01 of the largest, relative to the larger of
 * |l| and it, logits share the weight. */
Test(router, mixes_sparsely)
{
    const mp_router r = {
        .scoring = MP_SCORE_SPARSEMIXER, .num_experts = N, .k = 2, .scale = 1, .near = 0.01f};
    float weights[2];
    int32_t ids[2];

    choose(&r, (const float[N]){1, 5, -3, 2, 0, 1.5f}, ids, weights);
    cr_assert(ids[0] == 1 && ids[1] == 3 && weights[0] == 1 && weights[1] == 1, "far apart");
    choose(&r, (const float[N]){1, 0.995f, -2, -3, -4, -5}, ids, weights);
    cr_assert(ids[0] == 0 && ids[1] == 1);
    cr_assert_float_eq(weights[0], 1 / (1 + exp(-0.005)), 1e-6);
    cr_assert_eq(weights[1], 1, "the first one is out");
    choose(&r, (const float[N]){-3, -1.01f, -1, -1.015f, -4, -5}, ids, weights);
    cr_assert(ids[0] == 2 && ids[1] == 1);
    cr_assert_float_eq(weights[0], 1 / (1 + exp(-0.01) + exp(-0.015)), 1e-6, "a negative largest");
    cr_assert_float_eq(weights[1], 1 / (1 + exp(-0.005)), 1e-6);
    choose(&r, (const float[N]){-1, 0, -2, 0, 0, -3}, ids, weights);
    cr_assert(ids[0] == 1 && ids[1] == 3, "0 / 0 is near");
    cr_assert_float_eq(weights[0], 1. / 3, 1e-6);
    cr_assert_float_eq(weights[1], 1. / 2, 1e-6);
}

/* Scores of logits far below the largest are all 0; the logits are not. */
Test(router, chooses_by_logits)
{
    const float logits[N] = {-300, -200, 0, -250, -400, -500};
    mp_router r = {.num_experts = N, .k = 3, .scale = 1};
    float weights[3];
    int32_t ids[3];

    choose(&r, logits, ids, weights);
    cr_assert_eq(ids[1], 0);
    r.by_logits = true;
    choose(&r, logits, ids, weights);
    cr_assert(ids[0] == 2 && ids[1] == 1 && ids[2] == 3);
}

Test(router, divides_by_a_sum_that_is_not_too_small)
{
    const float logits[N] = {0, 0, -60, -60, -60, -60};
    mp_router r = {.scoring = MP_SCORE_SIGMOID,
                   .num_experts = N,
                   .k = 2,
                   .scale = 1,
                   .renormalize = true,
                   .epsilon = 1};
    float weights[2];
    int32_t ids[2];

    choose(&r, logits, ids, weights);
    cr_assert_float_eq(weights[0], 0.25f, 1e-7);
    r.epsilon = 0;
    r.least_sum = 4;
    choose(&r, logits, ids, weights);
    cr_assert_float_eq(weights[0], 0.125f, 1e-7);
}

/* DeepSeek V2 counts a group as its best expert, all others as their two best. */
Test(router, counts_groups_in_two_ways)
{
    const float logits[N] = {3, -9, 2, 2, -9, -9};
    mp_router r = {.scoring = MP_SCORE_SIGMOID,
                   .num_experts = N,
                   .k = 1,
                   .scale = 1,
                   .n_group = 3,
                   .topk_group = 1,
                   .group_best = 1};
    float weights[1];
    int32_t ids[1];

    choose(&r, logits, ids, weights);
    cr_assert_eq(ids[0], 0);
    r.group_best = 2;
    choose(&r, logits, ids, weights);
    cr_assert_eq(ids[0], 2);
}

static void expect_error(const mp_router *r, const float logits[N], int code, const char *text)
{
    int32_t ids[N];
    float weights[N];

    cr_assert_eq(mp_router_choose(r, logits, 1, ids, weights, &err), code);
    cr_assert_str_eq(err.message, text);
}

Test(router, refuses_what_does_not_go_together)
{
    const float logits[N] = {0}, bad[N] = {0, 0, NAN};

    expect_error(&(mp_router){.num_experts = N, .k = 7}, logits, MP_ERR_USAGE,
                 "router: 7 choices of 6 experts");
    expect_error(&(mp_router){.num_experts = N, .k = 3, .n_group = 3, .topk_group = 1}, logits,
                 MP_ERR_USAGE, "router: 3 choices from 1 of 3 groups of 6 experts");
    expect_error(&(mp_router){.num_experts = N, .k = 1, .n_group = 4, .topk_group = 2}, logits,
                 MP_ERR_USAGE, "router: 1 choices from 2 of 4 groups of 6 experts");
    expect_error(&(mp_router){.num_experts = N, .k = 1}, bad, MP_ERR_INPUT,
                 "router: token 0, expert 2: logit nan");
}
