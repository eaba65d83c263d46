/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of activations before and between the two products. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "forward/pass.h"

/* Rows of one piece of work. */
#define ROWS 16

/* Stores a row of n numbers, which may be where it is to go. */
static void store_row(const pass *p, const float *row, uint64_t n, uint64_t cols, void *rows,
                      uint64_t index)
{
    uint8_t *to = (uint8_t *)rows + index * cols * p->number;

    if (p->recipe->wide)
        for (uint64_t i = 0; i < n; i++)
            ((double *)(void *)to)[i] = (double)row[i];
    else if ((const void *)to != (const void *)row)
        memcpy(to, row, n * sizeof *row);
}

/* Numbers of a stored row as float32, which they came from. */
static float *load_row(const pass *p, void *rows, uint64_t n, uint64_t cols, uint64_t index,
                       float *buffer)
{
    const double *wide = (const double *)rows + index * cols;

    if (!p->recipe->wide)
        return (float *)rows + index * cols;
    for (uint64_t i = 0; i < n; i++)
        buffer[i] = (float)wide[i];
    return buffer;
}

/* A row of x, weighed where it is to be; emulated kernels get BF16 both times. */
static void weigh_row(float *row, uint64_t n, float weight)
{
    for (uint64_t i = 0; i < n; i++)
        row[i] = mp_round_bf16(mp_round_bf16(row[i]) * weight);
}

static void exact_row(const pass *p, const float *x, uint64_t row)
{
    uint64_t n = p->experts->hidden_size;
    double *to = (double *)p->input + row * p->input_cols;
    double weight = p->options->weigh_input ? (double)mp_weight_of(p, row) : 1;

    for (uint64_t i = 0; i < n; i++)
        to[i] = (double)x[i] * weight;
}

static int input_row(const pass *p, uint64_t row, float *buffer, mp_error *err)
{
    uint64_t n = p->experts->hidden_size;
    uint64_t token = p->options->weigh_input ? p->order[row] / p->batch->k : row;
    const float *x = p->batch->x + (p->first_token + token) * n;

    if (mp_is_exact(p)) {
        exact_row(p, x, row);
        return 0;
    }
    memcpy(buffer, x, n * sizeof *x);
    if (p->options->weigh_input)
        weigh_row(buffer, n, mp_weight_of(p, row));
    if (mp_recipe_quantize(p->recipe, MP_STAGE_INPUT, buffer, n, &p->input_scale[row],
                           buffer + mp_round_up(n, 16), err) != 0)
        return mp_error_prefix(err, "token %" PRIu64, p->first_token + token);
    store_row(p, buffer, n, p->input_cols, p->input, row);
    return 0;
}

static int inner_row(const pass *p, uint64_t choice, float *buffer, mp_error *err)
{
    uint64_t n = p->experts->intermediate_size;
    float *row = load_row(p, p->inner, n, p->inner_cols, choice, buffer);

    if (mp_recipe_quantize(p->recipe, MP_STAGE_INNER, row, n, &p->inner_scale[choice],
                           buffer + mp_round_up(n, 16), err) != 0)
        return mp_error_prefix(err, "token %" PRIu64,
                               p->first_token + p->order[choice] / p->batch->k);
    store_row(p, row, n, p->inner_cols, p->inner, choice);
    return 0;
}

static uint64_t input_rows(const pass *p)
{
    return p->options->weigh_input ? p->choices : p->tokens;
}

static int input_work(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const pass *p = user;

    for (uint64_t row = index * ROWS; row < input_rows(p) && row < (index + 1) * ROWS; row++)
        if (input_row(p, row, scratch, err) != 0)
            return err->code;
    return 0;
}

static int inner_work(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const pass *p = user;

    for (uint64_t row = index * ROWS; row < p->choices && row < (index + 1) * ROWS; row++)
        if (inner_row(p, row, scratch, err) != 0)
            return err->code;
    return 0;
}

static int run_rows(pass *p, uint64_t rows, uint64_t n, mp_task *work, mp_error *err)
{
    uint64_t scratch = mp_round_up(n, 16) * sizeof(float) + mp_recipe_scratch(n);

    return mp_parallel(p->context, mp_ceil_div(rows, ROWS), scratch, work, p, err);
}

int mp_pass_input(pass *p, mp_error *err)
{
    return run_rows(p, input_rows(p), p->experts->hidden_size, input_work, err);
}

int mp_pass_inner(pass *p, mp_error *err)
{
    if (mp_is_exact(p))
        return 0;
    return run_rows(p, p->choices, p->experts->intermediate_size, inner_work, err);
}
