/* SPDX-License-Identifier: Apache-2.0 */
/* What kernels do to activations: quantization, rounding, the gate. One line of `recipes` is a
 * kernel; the code below is what the lines have in common, and emulates a number only as exactly as
 * bits depend on it. The formulas and their sources stand in moepack-forward(1).
 *
 * Two ways of quantizing appear. On the host, frameworks quantize the input by the library's own
 * schemes, as weights are. Inside of kernels GPUs multiply by a reciprocal where a quotient is
 * meant, and round scales to powers of two: quantize_blocks follows them operation by operation,
 * since one bit of a scale moves codes.
 *
 * A row is quantized by itself, in a thread's scratch, and nothing is shared: no result depends on
 * other rows. Kernels of the numeric layer are used for speed; they give the scalar bits. */
#include "forward/recipe.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"
#include "numeric/rows.h"

/* DeepGEMM's helpers quantize the input with this floor. */
#define FLOOR 1e-4f

/* clang-format off */
static const mp_recipe recipes[MP_EMULATIONS] = {
    [MP_EMULATE_EXACT] = {.name = "exact", .weights = MP_SCHEME_COUNT, .values = MP_SCHEME_COUNT, .wide = true},
    [MP_EMULATE_W4A8] = {.name = "w4a8", .weights = MP_SCHEME_MXFP4, .values = MP_SCHEME_MXFP8, .floor = FLOOR,
                         .inner_block = 32, .round_gate = true, .weigh_inside = true},
    [MP_EMULATE_W4A4] = {.name = "w4a4", .weights = MP_SCHEME_MXFP4, .values = MP_SCHEME_MXFP4, .floor = FLOOR,
                         .inner_block = 32, .round_gate = true, .weigh_inside = true},
    [MP_EMULATE_NVFP4] = {.name = "nvfp4", .weights = MP_SCHEME_NVFP4, .values = MP_SCHEME_NVFP4,
                          .round_gate = true, .weigh_inside = true},
    [MP_EMULATE_BF16] = {.name = "bf16", .weights = MP_SCHEME_BF16, .values = MP_SCHEME_BF16,
                         .round_gate = true, .weigh_inside = true},
    [MP_EMULATE_SM90_FP8] = {.name = "sm90-fp8", .weights = MP_SCHEME_FP8_BLOCK, .values = MP_SCHEME_FP8_GROUP, .floor = FLOOR,
                             .input_block = 128, .inner_block = 64, .weigh_inside = true},
    /* Sums of products of codes are integers below 2^31, which float64 adds exactly in any
     * order: the kernel's int32 holds the same. */
    [MP_EMULATE_FUSEEP] = {.name = "fuseep", .weights = MP_SCHEME_INT8_CHANNEL, .values = MP_SCHEME_INT8_CHANNEL,
                           .wide = true, .codes = true},
};
/* clang-format on */

const mp_recipe *mp_recipe_of(mp_emulation emulation)
{
    return &recipes[emulation];
}

const char *mp_emulation_name(mp_emulation emulation)
{
    return recipes[emulation].name;
}

mp_scheme mp_emulation_scheme(mp_emulation emulation)
{
    return recipes[emulation].weights;
}

/* ------------------------------------------------------------------------
 * Quantization
 */

float mp_round_bf16(float x)
{
    const mp_kernels *kernels = mp_kernels_best();
    uint16_t code;

    kernels->bf16_encode(&x, &code, 1);
    kernels->bf16_decode(&code, &x, 1);
    return x;
}

/* Pieces of the scratch of a row of n numbers. */
typedef struct buffers {
    uint8_t *codes;  /* of 2 bytes at most */
    uint8_t *scales; /* one float32 for 16 numbers at most, and at least one */
    void *work;
} buffers;

static uint64_t codes_bytes(uint64_t n)
{
    return mp_round_up(2 * n, 64);
}

static uint64_t scales_bytes(uint64_t n)
{
    return mp_round_up(n / 4 + sizeof(float), 64);
}

uint64_t mp_recipe_scratch(uint64_t n)
{
    return codes_bytes(n) + scales_bytes(n) + mp_round_up(mp_requantize_scratch(n), 64);
}

static buffers split(void *scratch, uint64_t n)
{
    uint8_t *codes = scratch;

    return (buffers){codes, codes + codes_bytes(n), codes + codes_bytes(n) + scales_bytes(n)};
}

static void round_row(float *row, uint64_t n, const buffers *b)
{
    const mp_kernels *kernels = mp_kernels_best();

    kernels->bf16_encode(row, (uint16_t *)(void *)b->codes, n);
    kernels->bf16_decode((const uint16_t *)(const void *)b->codes, row, n);
}

/* What GPUs do on their own: a scale is amax times the float32 reciprocal of the largest code,
 * which differs from the quotient in the last bit, and from it, in one step, all codes. Within
 * kernels (`power`) it is rounded up to a power of two; a block of zeros gets any. */
static void quantize_blocks(bool fp4, uint64_t width, float floor, bool power, float *row,
                            uint64_t n, const buffers *b)
{
    const mp_kernels *kernels = mp_kernels_best();

    for (uint64_t i = 0; i < n; i += width) {
        uint64_t count = n - i < width ? n - i : width;
        uint32_t amax_bits = kernels->amax_bits(row + i, count);
        float amax, scale, inverse;

        memcpy(&amax, &amax_bits, sizeof amax);
        /* 6 and 448 are the largest codes of E2M1 and E4M3. The division is the compiler's, in
         * float32. */
        scale = (amax > floor ? amax : floor) * (fp4 ? 1.0f / 6 : 1.0f / 448);
        if (power) {
            uint8_t exponent[2]; /* of the scale, and of its reciprocal */
            float both[2];

            kernels->ue8m0_encode(&scale, &exponent[0], 1);
            /* 2^(e - 127) times 2^(127 - e) is 1. Encoding gives at most 254 for a finite scale. */
            exponent[1] = (uint8_t)(254 - exponent[0]);
            kernels->ue8m0_decode(exponent, both, 2);
            scale = both[0];
            inverse = both[1];
        } else {
            inverse = 1 / scale;
        }
        kernels->scale(row + i, inverse, row + i, count);
        if (fp4) {
            kernels->e2m1_encode(row + i, b->codes, count, MP_ROUND_OCP);
            kernels->e2m1_decode(b->codes, row + i, count);
        } else {
            kernels->e4m3_encode(row + i, b->codes, count);
            kernels->e4m3_decode(b->codes, row + i, count);
        }
        kernels->scale(row + i, scale, row + i, count);
    }
}

/* By the library's own schemes: a row is a matrix of one. */
static int requantize(const mp_recipe *r, mp_stage stage, float *row, uint64_t n, float *scale,
                      const buffers *b, mp_error *err)
{
    mp_quant_options options = {.amax_floor = stage == MP_STAGE_INPUT ? r->floor : 0};
    mp_rows in = {.scheme = MP_SCHEME_F32,
                  .rows = 1,
                  .cols = n,
                  .weight = row,
                  .block_rows = 1,
                  .block_cols = 1};
    mp_rows out = mp_scheme_rows(r->values, 0, 1, n);
    out.weight = b->codes;
    out.scale = b->scales;
    uint32_t bits = mp_kernels_best()->amax_bits(row, n);
    float amax;

    memcpy(&amax, &bits, sizeof amax);
    /* Only nvfp4 reads it: a second scale a token. */
    options.global_scale = out.global_scale = mp_nvfp4_global(amax);
    int rc = mp_requantize(&in, r->values, &options, b->codes, b->scales, b->work, NULL, err);
    if (rc == 0 && !r->codes)
        rc = mp_decode_rows(&out, row, err);
    if (rc != 0 || !r->codes)
        return rc;
    memcpy(scale, b->scales, sizeof *scale);
    for (uint64_t i = 0; i < n; i++)
        row[i] = (int8_t)b->codes[i];
    return 0;
}

int mp_recipe_quantize(const mp_recipe *recipe, mp_stage stage, float *row, uint64_t n,
                       float *scale, void *scratch, mp_error *err)
{
    const buffers b = split(scratch, n);
    bool input = stage == MP_STAGE_INPUT;
    unsigned width = input ? recipe->input_block : recipe->inner_block;

    if (input || recipe->values == MP_SCHEME_BF16)
        round_row(row, n, &b);
    if (recipe->values == MP_SCHEME_BF16)
        return 0;
    if (width == 0)
        return requantize(recipe, stage, row, n, scale, &b, err);
    /* requantize refuses what is not finite; quantize_blocks would not. Inner values may overflow
     * as they do on a GPU: the result is looked at in the end. */
    for (uint64_t i = 0; input && i < n; i++)
        if (!isfinite(row[i]))
            return mp_fail(err, MP_ERR_INPUT, "x[%" PRIu64 "] is %g", i, (double)row[i]);
    quantize_blocks(recipe->values == MP_SCHEME_MXFP4, width, input ? recipe->floor : 0, !input,
                    row, n, &b);
    return 0;
}

/* ------------------------------------------------------------------------
 * The gate
 */

static void round_run(float *run, unsigned n)
{
    const mp_kernels *kernels = mp_kernels_best();
    uint16_t codes[MP_ACTIVATE_MAX];

    kernels->bf16_encode(run, codes, n);
    kernels->bf16_decode(codes, run, n);
}

static float situ(const mp_activation *a, float g, float u)
{
    if (a->situ_linear > 0)
        u = a->situ_linear * tanhf(u / a->situ_linear);
    return a->situ * tanhf(g / a->situ) / (1 + expf(-g)) * u;
}

static double exact_situ(const mp_activation *a, double g, double u)
{
    double beta = (double)a->situ, linear = (double)a->situ_linear;

    if (linear > 0)
        u = linear * tanh(u / linear);
    return beta * tanh(g / beta) / (1 + exp(-g)) * u;
}

void mp_activate_f32(const mp_recipe *recipe, const mp_activation *a, float *gate, float *up,
                     unsigned n)
{
    float alpha = a->alpha == 0 ? 1 : a->alpha;
    float limit = a->limit > 0 ? a->limit : INFINITY;

    if (recipe->round_gate) {
        round_run(gate, n);
        round_run(up, n);
    }
    for (unsigned i = 0; i < n; i++) {
        /* A NaN stays one: every comparison with it is false. */
        float g = gate[i] > limit ? limit : gate[i];
        float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];

        if (a->situ > 0)
            gate[i] = situ(a, gate[i], up[i]);
        else if (a->late)
            gate[i] = fminf(gate[i] / (1 + expf(-gate[i])), limit) * u;
        else
            gate[i] = g / (1 + expf(-alpha * g)) * (u + a->beta);
    }
}

void mp_activate_f64(const mp_activation *a, double *gate, const double *up, unsigned n)
{
    double alpha = a->alpha == 0 ? 1 : (double)a->alpha;
    double limit = a->limit > 0 ? (double)a->limit : (double)INFINITY;

    for (unsigned i = 0; i < n; i++) {
        double g = gate[i] > limit ? limit : gate[i];
        double u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];

        if (a->situ > 0)
            gate[i] = exact_situ(a, gate[i], up[i]);
        else if (a->late)
            gate[i] = fmin(gate[i] / (1 + exp(-gate[i])), limit) * u;
        else
            gate[i] = g / (1 + exp(-alpha * g)) * (u + (double)a->beta);
    }
}
