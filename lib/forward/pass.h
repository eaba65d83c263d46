/* SPDX-License-Identifier: Apache-2.0 */
/* forward/pass.h - some tokens on their way through a layer.
 *
 * Rows of activations have float32 or float64 numbers, as products take them, and are filled
 * up with zeros. "Choice number i" is the i-th one in order, in which those of an expert
 * follow each other. */
#ifndef MP_FORWARD_PASS_H
#define MP_FORWARD_PASS_H

#include "forward/product.h"
#include "forward/recipe.h"
#include "forward/reference.h"

/* Choices of one expert. */
typedef struct group {
    uint32_t id;
    uint64_t first; /* of choices in order */
    uint64_t count;
} group;

typedef struct pass {
    const mp_expert_source *experts;
    const mp_forward_options *options;
    const mp_recipe *recipe;
    const mp_products *products;
    const mp_batch *batch;
    const mp_context *context;
    double *y; /* of the whole batch */

    uint64_t number;     /* bytes of one */
    uint64_t input_cols; /* numbers of a row, fill included */
    uint64_t inner_cols;

    uint64_t first_token, tokens;
    uint64_t choices; /* that are not masked */
    uint32_t *order;  /* [choices]: token * k + choice, the token counted in the pass */
    uint32_t *place;  /* [tokens * k]: the reverse */
    group *groups;
    size_t num_groups;

    void *input;        /* [tokens, input_cols], or a row for each choice if it is weighed */
    float *input_scale; /* of each row, where the recipe has codes */
    void *inner;        /* [choices, inner_cols] */
    float *inner_scale; /* [choices] */
    void *result;       /* [choices, H]: float64, or BF16 where emulated */
} pass;

static inline bool mp_is_exact(const pass *p)
{
    return p->recipe->values == MP_SCHEME_COUNT;
}

/* Weights of choices are in what goes into L2. */
static inline bool mp_weighs_inside(const pass *p)
{
    return p->recipe->weigh_inside && !p->options->weigh_input;
}

static inline float mp_weight_of(const pass *p, uint64_t choice)
{
    return p->batch->weights[p->first_token * p->batch->k + p->order[choice]];
}

/* Row of input that a choice reads. */
static inline uint64_t mp_input_row(const pass *p, uint64_t choice)
{
    return p->options->weigh_input ? choice : p->order[choice] / p->batch->k;
}

/* Fills input: x as the emulated kernel gets it. */
int mp_pass_input(pass *p, mp_error *err);

/* L1: input to inner, through the gate. L2: inner to result. */
int mp_pass_side(pass *p, mp_side side, mp_error *err);

/* Quantizes inner. */
int mp_pass_inner(pass *p, mp_error *err);

#endif
