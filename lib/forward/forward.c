/* SPDX-License-Identifier: Apache-2.0 */
/* The forward of a layer: choices are grouped by expert, an expert's weights pass by tile by tile,
 * and what the choices of a token gave is added up in their order.
 *
 *   input    a row a token, as the emulated kernel gets it                      [tokens, H]
 *   L1       inner = activation(gate, up), a row a choice, quantized again      [choices, I]
 *   L2       result, a row a choice                                             [choices, H]
 *   combine  y of a token = the sum of its choices, in the order of the batch   [tokens, H]
 *
 * Weights are read once for all tokens of a pass, which is most of the work; tokens that do not fit
 * into options->memory take another pass. No result depends on how tokens fall into passes or
 * groups: products add in a fixed order (product.h), and combining goes by the batch, not by
 * experts.
 *
 * Each step is a parallel loop over things that write only their own rows: rows of input, tiles of
 * experts, rows of inner, tokens. Between steps nothing runs. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "forward/pass.h"
#include "forward/reference.h"
#include "numeric/kernels.h"

#define DEFAULT_MEMORY (UINT64_C(512) << 20)

static int check_batch(const mp_expert_source *experts, const mp_batch *batch, mp_error *err)
{
    uint64_t n;

    /* order and place are 32 bits. */
    if (!mp_mul_u64(batch->tokens, batch->k, &n) || n > UINT32_MAX)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%llu token%s with %u choice%s each",
                       (unsigned long long)batch->tokens, mp_plural(batch->tokens), batch->k,
                       mp_plural(batch->k));
    for (uint64_t i = 0; i < n; i++)
        if (batch->ids[i] < -1 || batch->ids[i] >= (int64_t)experts->count)
            return mp_fail(err, MP_ERR_INPUT,
                           "token %llu, choice %llu: expert %d, expected -1 to %u",
                           (unsigned long long)(i / batch->k), (unsigned long long)(i % batch->k),
                           batch->ids[i], experts->count - 1);
    return 0;
}

/* ------------------------------------------------------------------------
 * Choices by expert
 */

/* Counting sort: order holds the choices of expert 0, then those of expert 1, ... */
static int group_choices(pass *p, mp_error *err)
{
    const int32_t *ids = p->batch->ids + p->first_token * p->batch->k;
    uint64_t n = p->tokens * p->batch->k, at = 0;
    uint64_t *next = mp_alloc_zeroed(p->experts->count, sizeof *next);

    p->order = mp_alloc(n, sizeof *p->order);
    p->groups = mp_alloc(n, sizeof *p->groups);
    if (!next || !p->order || !p->groups) {
        free(next);
        return mp_fail_memory(err);
    }
    for (uint64_t i = 0; i < n; i++)
        if (ids[i] >= 0)
            next[ids[i]]++;
    for (uint32_t e = 0; e < p->experts->count; e++) {
        uint64_t count = next[e];

        next[e] = at;
        if (count > 0)
            p->groups[p->num_groups++] = (group){e, at, count};
        at += count;
    }
    for (uint64_t i = 0; i < n; i++)
        if (ids[i] >= 0)
            /* Stable: choices of an expert stay in the order of the batch. */
            p->order[next[ids[i]]++] = (uint32_t)i;
    p->choices = at;
    free(next);
    return 0;
}

/* ------------------------------------------------------------------------
 * Memory
 */

static uint64_t result_bytes(const pass *p)
{
    return p->experts->hidden_size * (mp_is_exact(p) ? sizeof(double) : sizeof(uint16_t));
}

/* Bytes of intermediate results of a token. */
static uint64_t token_bytes(const pass *p)
{
    uint64_t choice = p->inner_cols * p->number + result_bytes(p) + sizeof(float) +
                      sizeof *p->order + sizeof *p->groups;
    uint64_t rows = p->options->weigh_input ? p->batch->k : 1;

    return rows * (p->input_cols * p->number + sizeof(float)) + p->batch->k * choice;
}

static int make_room(pass *p, mp_error *err)
{
    uint64_t rows = p->options->weigh_input ? p->choices : p->tokens;

    /* Zeros behind each row stay there: products run over the filled-up columns. */
    p->input = mp_alloc_zeroed(rows * p->input_cols, p->number);
    p->input_scale = mp_alloc(rows, sizeof *p->input_scale);
    p->inner = mp_alloc_zeroed(p->choices * p->inner_cols, p->number);
    p->inner_scale = mp_alloc(p->choices, sizeof *p->inner_scale);
    p->result = mp_alloc(p->choices, result_bytes(p));
    p->place = mp_alloc(p->tokens * p->batch->k, sizeof *p->place);
    if (!p->input || !p->input_scale || !p->inner || !p->inner_scale || !p->result || !p->place)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < p->choices; i++)
        p->place[p->order[i]] = (uint32_t)i;
    return 0;
}

static void release(pass *p)
{
    free(p->order);
    free(p->groups);
    free(p->place);
    free(p->input);
    free(p->input_scale);
    free(p->inner);
    free(p->inner_scale);
    free(p->result);
}

/* ------------------------------------------------------------------------
 * Adding up
 */

/* Columns that are added up at a time. */
#define COLUMNS 256

/* Adds a choice's results for some columns to sums: exactly, or as the kernel does. */
static void add_choice(const pass *p, float weight, uint64_t at, uint64_t count, double *exact,
                       float *sums)
{
    const double *wide = (const double *)p->result + at;
    float values[COLUMNS];

    if (mp_is_exact(p)) {
        for (uint64_t i = 0; i < count; i++)
            exact[i] += (double)weight * wide[i];
        return;
    }
    mp_kernels_best()->bf16_decode((const uint16_t *)p->result + at, values, count);
    for (uint64_t i = 0; i < count; i++)
        sums[i] += weight * values[i];
}

/* Adds to columns of a token what comes of no expert. */
static void add_others(const pass *p, uint64_t token, uint64_t first, uint64_t count, double *exact,
                       float *sums)
{
    const mp_forward_options *o = p->options;
    const float *x = p->batch->x + token * p->experts->hidden_size + first;

    for (uint64_t i = 0; o->identity && i < count; i++) {
        exact[i] += (double)o->identity[token] * (double)x[i];
        sums[i] += o->identity[token] * x[i];
    }
    for (uint64_t i = 0; o->bias && i < count; i++) {
        exact[i] += (double)o->bias[first + i];
        sums[i] += o->bias[first + i];
    }
}

/* Columns first .. first+count-1 of a token: its choices' results in their order. */
static void combine_columns(const pass *p, uint64_t token, uint64_t first, uint64_t count)
{
    const mp_batch *b = p->batch;
    const uint64_t cols = p->experts->hidden_size;
    double *y = p->y + (p->first_token + token) * cols + first;
    /* Float32, one choice after the other, as kernels combine. */
    float sums[COLUMNS] = {0};
    double exact[COLUMNS] = {0};

    for (uint32_t j = 0; j < b->k; j++) {
        uint64_t i = (p->first_token + token) * b->k + j;
        bool weighed = mp_weighs_inside(p) || p->options->weigh_input;

        if (b->ids[i] >= 0)
            add_choice(p, weighed ? 1 : b->weights[i], p->place[token * b->k + j] * cols + first,
                       count, exact, sums);
    }
    add_others(p, p->first_token + token, first, count, exact, sums);
    for (uint64_t i = 0; i < count; i++)
        y[i] = mp_is_exact(p) ? exact[i] : (double)mp_round_bf16(sums[i]);
}

static int combine_token(void *user, uint64_t token, void *scratch, mp_error *err)
{
    const pass *p = user;
    const uint64_t cols = p->experts->hidden_size;
    const double *y = p->y + (p->first_token + token) * cols;

    (void)scratch;
    for (uint64_t h = 0; h < cols; h += COLUMNS)
        combine_columns(p, token, h, cols - h < COLUMNS ? cols - h : COLUMNS);
    /* Looked at only here: a NaN anywhere before comes out in some column. */
    for (uint64_t h = 0; h < cols; h++)
        if (!isfinite(y[h]))
            return mp_fail(err, MP_ERR_CHECK, "token %llu, column %llu: the result is %g",
                           (unsigned long long)(p->first_token + token), (unsigned long long)h,
                           y[h]);
    return 0;
}

/* ------------------------------------------------------------------------
 * Passes
 */

static int run_pass(pass *p, mp_error *err)
{
    int rc = group_choices(p, err);
    if (rc == 0)
        rc = make_room(p, err);
    if (rc == 0)
        rc = mp_pass_input(p, err);
    if (rc == 0)
        rc = mp_pass_side(p, MP_L1, err);
    if (rc == 0)
        rc = mp_pass_inner(p, err);
    if (rc == 0)
        rc = mp_pass_side(p, MP_L2, err);
    if (rc == 0)
        rc = mp_parallel(p->context, p->tokens, 0, combine_token, p, err);
    release(p);
    return rc;
}

int mp_forward(const mp_expert_source *experts, const mp_forward_options *options,
               const mp_batch *batch, const mp_context *context, double *y, mp_error *err)
{
    const mp_recipe *recipe = mp_recipe_of(options->emulation);
    const pass start = {
        .experts = experts,
        .options = options,
        .recipe = recipe,
        .products = mp_products_best(),
        .batch = batch,
        .context = context,
        .y = y,
        .number = recipe->wide ? sizeof(double) : sizeof(float),
        .input_cols = mp_round_up(experts->hidden_size, MP_PRODUCT_COLS),
        .inner_cols = mp_round_up(experts->intermediate_size, MP_PRODUCT_COLS),
    };
    uint64_t memory = options->memory ? options->memory : DEFAULT_MEMORY;
    /* At least one token a pass, whatever the memory. */
    uint64_t most = memory / token_bytes(&start);
    int rc = check_batch(experts, batch, err);

    if (rc == 0)
        mp_begin_phase(context, "multiplying");
    for (uint64_t t = 0, n; rc == 0 && t < batch->tokens; t += n) {
        pass p = start;

        n = batch->tokens - t < most ? batch->tokens - t : most ? most : 1;
        p.first_token = t;
        p.tokens = n;
        rc = run_pass(&p, err);
    }
    return rc;
}
