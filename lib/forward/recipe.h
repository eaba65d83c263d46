/* SPDX-License-Identifier: Apache-2.0 */
/* forward/recipe.h - the arithmetic of an emulation, apart from its matrix products. */
#ifndef MP_FORWARD_RECIPE_H
#define MP_FORWARD_RECIPE_H

#include "forward/reference.h"

typedef struct mp_recipe {
    const char *name;
    mp_scheme weights; /* MP_SCHEME_COUNT: any */
    mp_scheme values;  /* what activations are quantized to; MP_SCHEME_COUNT: nothing */
    float floor;       /* that the amax of a block of the input counts as at least */
    /* Columns of a scale that the GPU itself chooses, of the input and of what goes into L2:
     * amax times the reciprocal of the largest code, the second time rounded up to a power of
     * two. 0: values are quantized as weights of their scheme are. */
    unsigned input_block;
    unsigned inner_block;
    bool wide;         /* products are in float64 */
    bool codes;        /* they are of codes, and scaled afterwards */
    bool round_gate;   /* gate and up are rounded to BF16 */
    bool weigh_inside; /* weights of choices apply before the second quantization */
} mp_recipe;

const mp_recipe *mp_recipe_of(mp_emulation emulation);

/* Before L1, or before L2. */
typedef enum mp_stage { MP_STAGE_INPUT, MP_STAGE_INNER } mp_stage;

/* Scratch for a row of n numbers. */
uint64_t mp_recipe_scratch(uint64_t n);

/* Replaces a row by what is left of it when it is quantized and decoded; or, with
 * recipe->codes, by its codes, and sets *scale.
 * MP_ERR_INPUT for a NaN or Inf, MP_ERR_UNSUPPORTED for n that blocks do not divide. */
int mp_recipe_quantize(const mp_recipe *recipe, mp_stage stage, float *row, uint64_t n,
                       float *scale, void *scratch, mp_error *err);

/* x rounded to BF16. */
float mp_round_bf16(float x);

/* Makes gates, with their ups, what goes into L2. The first works in float32, as kernels do;
 * n is at most MP_ACTIVATE_MAX. */
#define MP_ACTIVATE_MAX 16
void mp_activate_f32(const mp_recipe *recipe, const mp_activation *a, float *gate, float *up,
                     unsigned n);
void mp_activate_f64(const mp_activation *a, double *gate, const double *up, unsigned n);

#endif
