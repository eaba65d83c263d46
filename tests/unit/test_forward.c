/* SPDX-License-Identifier: Apache-2.0 */
/* The reference forward, against golden results and against itself cut otherwise. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"

#include "forward/reference.h"
#include "numeric/forms.h"
#include "numeric/quantize.h"

#define GOLDEN "testdata/golden/forward.safetensors"

static golden_file *golden;
static mp_error err;

/* Six experts in memory, in one scheme: what the golden results were made of. */
static struct {
    uint64_t h, i;
    uint32_t experts;
    mp_scheme scheme;
    const uint16_t *w13, *w2; /* BF16 [E, 2I, H], [E, H, I] */
    mp_quant_options quant;
} model;

static void open_golden(void)
{
    golden = golden_open(GOLDEN);
    model.h = golden_dim(golden, "x", 1);
    model.i = golden_dim(golden, "w2", 2);
    model.experts = (uint32_t)golden_dim(golden, "w2", 0);
    model.w13 = golden_tensor(golden, "w13", NULL);
    model.w2 = golden_tensor(golden, "w2", NULL);
    model.scheme = MP_SCHEME_BF16;
    model.quant = (mp_quant_options){0};
}

static void close_golden(void)
{
    golden_close(golden);
}

/* BF16 rows, or what they become in the model's scheme. */
static int read_part(const uint16_t *weight, uint64_t row0, uint64_t rows, uint64_t cols,
                     uint8_t *scratch, mp_rows *out, mp_error *e)
{
    mp_rows in = {.scheme = MP_SCHEME_BF16,
                  .block_rows = 1,
                  .block_cols = 1,
                  .row0 = row0,
                  .rows = rows,
                  .cols = cols,
                  .weight = weight + row0 * cols};
    const mp_scheme_form *form = mp_scheme_form_of(model.scheme);
    uint8_t *scale = scratch + rows * cols * 2, *work = scale + (rows + 1) * cols;

    *out = in;
    if (model.scheme == MP_SCHEME_BF16)
        return 0;
    out->scheme = model.scheme;
    out->scale_dtype = form->scale_dtype;
    out->block_rows = form->block_rows;
    out->block_cols = form->block_cols;
    out->weight = scratch;
    out->scale = scale;
    out->global_scale = model.quant.global_scale;
    return mp_requantize(&in, model.scheme, &model.quant, scratch, scale, work, NULL, e);
}

static uint64_t part_bytes(uint64_t rows, uint64_t cols)
{
    return (rows * cols * 2 + (rows + 1) * cols + mp_requantize_scratch(cols) + 63) / 64 * 64;
}

static int read_model(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                      void *scratch, mp_rows part[2], mp_error *e)
{
    uint64_t h = model.h, i = model.i;
    uint8_t *second = (uint8_t *)scratch + part_bytes(rows, h);

    (void)user;
    if (side == MP_L2)
        return read_part(model.w2 + id * h * i, row0, rows, i, scratch, &part[0], e);
    if (read_part(model.w13 + id * 2 * i * h, row0, rows, h, scratch, &part[0], e) != 0)
        return e->code;
    return read_part(model.w13 + (id * 2 * i + i) * h, row0, rows, h, second, &part[1], e);
}

/* The model's experts twice. */
static int read_copy(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                     void *scratch, mp_rows part[2], mp_error *e)
{
    return read_model(user, id % model.experts, side, row0, rows, scratch, part, e);
}

static mp_expert_source source(uint64_t tile_rows)
{
    return (mp_expert_source){
        .hidden_size = model.h,
        .intermediate_size = model.i,
        .count = model.experts,
        .tile_rows = tile_rows,
        .scratch_bytes = 2 * part_bytes(tile_rows, model.h),
        .read = read_model,
    };
}

static mp_batch golden_batch(void)
{
    return (mp_batch){
        .tokens = golden_dim(golden, "x", 0),
        .k = (uint32_t)golden_dim(golden, "ids", 1),
        .x = golden_tensor(golden, "x", NULL),
        .ids = golden_tensor(golden, "ids", NULL),
        .weights = golden_tensor(golden, "weights", NULL),
    };
}

static double *run(const mp_forward_options *options, const mp_batch *batch, uint64_t tile_rows,
                   int threads)
{
    const mp_expert_source experts = source(tile_rows);
    const mp_context context = {.threads = threads};
    double *y = malloc(batch->tokens * model.h * sizeof *y);

    cr_assert_eq(mp_forward(&experts, options, batch, &context, y, &err), 0, "%s", err.message);
    return y;
}

/* Golden results as float64. */
static double *expected(const char *name)
{
    size_t bytes, n = golden_dim(golden, name, 0) * golden_dim(golden, name, 1);
    const void *data = golden_tensor(golden, name, &bytes);
    double *y = malloc(n * sizeof *y);

    for (size_t i = 0; i < n; i++)
        y[i] = bytes == 8 * n ? ((const double *)data)[i] : (double)((const float *)data)[i];
    return y;
}

static void check_golden(const char *name, mp_emulation emulation, mp_scheme scheme, float limit,
                         double bound)
{
    const mp_forward_options options = {.emulation = emulation, .activation.limit = limit};
    const mp_batch batch = golden_batch();
    double *want = expected(name), *got;

    model.scheme = scheme;
    got = run(&options, &batch, 128, 1);
    mp_deviation d = mp_compare(got, want, batch.tokens * model.h);
    if (getenv("FORWARD_SHOW"))
        printf("%s: rel_l2 %.3g cosine %.3g max %.3g identical %d\n", name, d.rel_l2, d.cosine_diff,
               d.max_abs, d.identical);
    cr_assert_leq(d.rel_l2, bound, "%s: relative L2 %g", name, d.rel_l2);
    free(got);
    free(want);
}

TestSuite(forward, .init = open_golden, .fini = close_golden);

Test(forward, exact)
{
    check_golden("y.exact", MP_EMULATE_EXACT, MP_SCHEME_BF16, 0, 1e-6);
    check_golden("y.exact.limit10", MP_EMULATE_EXACT, MP_SCHEME_BF16, 10, 1e-6);
    check_golden("y.exact.mxfp4.limit10", MP_EMULATE_EXACT, MP_SCHEME_MXFP4, 10, 1e-6);
}

Test(forward, w4a8)
{
    check_golden("y.w4a8.limit10", MP_EMULATE_W4A8, MP_SCHEME_MXFP4, 10, 2e-3);
}

Test(forward, w4a4)
{
    check_golden("y.w4a4.limit10", MP_EMULATE_W4A4, MP_SCHEME_MXFP4, 10, 2e-3);
}

Test(forward, bf16)
{
    check_golden("y.bf16.limit10", MP_EMULATE_BF16, MP_SCHEME_BF16, 10, 2e-3);
}

Test(forward, fuseep)
{
    check_golden("y.fuseep", MP_EMULATE_FUSEEP, MP_SCHEME_INT8_CHANNEL, 0, 2e-3);
}

/* ------------------------------------------------------------------------
 * Independence
 */

static void check_same(const double *a, const double *b, uint64_t n, const char *what)
{
    cr_assert(mp_compare(a, b, n).identical, "%s", what);
}

static const struct {
    mp_emulation emulation;
    mp_scheme scheme;
} kinds[] = {
    {MP_EMULATE_EXACT, MP_SCHEME_BF16},          {MP_EMULATE_W4A8, MP_SCHEME_MXFP4},
    {MP_EMULATE_W4A4, MP_SCHEME_MXFP4},          {MP_EMULATE_NVFP4, MP_SCHEME_NVFP4},
    {MP_EMULATE_BF16, MP_SCHEME_BF16},           {MP_EMULATE_SM90_FP8, MP_SCHEME_FP8_BLOCK},
    {MP_EMULATE_FUSEEP, MP_SCHEME_INT8_CHANNEL},
};

#define KINDS (sizeof kinds / sizeof kinds[0])

static mp_forward_options use_kind(size_t k)
{
    model.scheme = kinds[k].scheme;
    model.quant.global_scale = 0.01f;
    return (mp_forward_options){.emulation = kinds[k].emulation, .activation.limit = 3};
}

/* Some of the golden tokens; how many they are does not matter here. */
static mp_batch golden_few(void)
{
    mp_batch batch = golden_batch();

    batch.tokens = 3;
    return batch;
}

Test(forward, does_not_depend_on_threads_tiles_or_memory)
{
    const mp_batch batch = golden_few();
    uint64_t n = batch.tokens * model.h;

    for (size_t k = 0; k < KINDS; k++) {
        mp_forward_options options = use_kind(k);
        double *first = run(&options, &batch, 128, 1);
        double *threads = run(&options, &batch, 128, 5);
        double *tiles = run(&options, &batch, 256, 2);

        options.memory = 1; /* a token at a time */
        double *alone = run(&options, &batch, 128, 2);
        check_same(threads, first, n, mp_emulation_name(kinds[k].emulation));
        check_same(tiles, first, n, mp_emulation_name(kinds[k].emulation));
        check_same(alone, first, n, mp_emulation_name(kinds[k].emulation));
        free(first);
        free(threads);
        free(tiles);
        free(alone);
    }
}

Test(forward, adds_up_choices_in_their_order_whichever_copy_is_asked)
{
    const mp_batch batch = golden_few();
    int32_t *slots = malloc(batch.tokens * batch.k * sizeof *slots);

    /* Ids N .. 2N-1 are the same experts again. */
    for (uint64_t i = 0; i < batch.tokens * batch.k; i++)
        slots[i] =
            batch.ids[i] < 0 || i % 3 == 0 ? batch.ids[i] : batch.ids[i] + (int32_t)model.experts;
    for (size_t k = 0; k < KINDS; k++) {
        const mp_forward_options options = use_kind(k);
        mp_expert_source doubled = source(128);
        double *first = run(&options, &batch, 128, 1);
        double *second = malloc(batch.tokens * model.h * sizeof *second);
        mp_batch copies = batch;

        copies.ids = slots;
        doubled.count *= 2;
        doubled.read = read_copy;
        cr_assert_eq(mp_forward(&doubled, &options, &copies, NULL, second, &err), 0, "%s",
                     err.message);
        check_same(second, first, batch.tokens * model.h, mp_emulation_name(kinds[k].emulation));
        free(first);
        free(second);
    }
    free(slots);
}

/* ------------------------------------------------------------------------
 * Against the definition
 */

/* A small model of float32 weights with biases, whose sizes no vector divides. */
#define SMALL_H 44u
#define SMALL_I 37u
#define SMALL_E 3u
#define SMALL_T 7u
#define SMALL_K 2u

static struct {
    float w[SMALL_E][3][SMALL_H * SMALL_I];
    float b[SMALL_E][3][SMALL_H];
    float x[SMALL_T * SMALL_H];
    int32_t ids[SMALL_T * SMALL_K];
    float weights[SMALL_T * SMALL_K];
} small;

static float small_number(void)
{
    static uint32_t state = 12345;

    state = state * 1664525 + 1013904223;
    return (float)(state >> 8) * 0x1p-23f - 1;
}

static void fill_small(void)
{
    for (unsigned e = 0; e < SMALL_E; e++)
        for (unsigned p = 0; p < 3; p++) {
            for (unsigned i = 0; i < SMALL_H * SMALL_I; i++)
                small.w[e][p][i] = small_number();
            for (unsigned i = 0; i < SMALL_H; i++)
                small.b[e][p][i] = small_number();
        }
    for (unsigned i = 0; i < SMALL_T * SMALL_H; i++)
        small.x[i] = small_number();
    for (unsigned i = 0; i < SMALL_T * SMALL_K; i++) {
        small.ids[i] = (int32_t)((i * 5 + i / 2) % (SMALL_E + 1)) - 1;
        small.weights[i] = small_number();
    }
}

static int read_small(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                      void *scratch, mp_rows part[2], mp_error *e)
{
    (void)user;
    (void)scratch;
    (void)e;
    for (unsigned p = 0; p < 2; p++) {
        uint64_t cols = side == MP_L1 ? SMALL_H : SMALL_I;

        part[p] = (mp_rows){.scheme = MP_SCHEME_F32,
                            .block_rows = 1,
                            .block_cols = 1,
                            .row0 = row0,
                            .rows = rows,
                            .cols = cols,
                            .weight = small.w[id][side == MP_L1 ? p : 2] + row0 * cols};
    }
    return 0;
}

static int bias_small(const void *user, uint32_t id, mp_projection projection, float *out,
                      mp_error *e)
{
    (void)user;
    (void)e;
    memcpy(out, small.b[id][projection], (projection == MP_DOWN ? SMALL_H : SMALL_I) * sizeof *out);
    return 0;
}

static double dot(const float *w, const double *x, unsigned n)
{
    double sum = 0;

    for (unsigned i = 0; i < n; i++)
        sum += (double)w[i] * x[i];
    return sum;
}

/* What one expert gives for x, with the gate of GPT-OSS or that of Kimi K3. */
static double situ, situ_linear;

static void expert_by_definition(unsigned e, const double *x, double *y)
{
    double inner[SMALL_I];

    for (unsigned i = 0; i < SMALL_I; i++) {
        double g = dot(small.w[e][0] + i * SMALL_H, x, SMALL_H) + (double)small.b[e][0][i];
        double u = dot(small.w[e][1] + i * SMALL_H, x, SMALL_H) + (double)small.b[e][1][i];

        if (situ > 0) {
            u = situ_linear > 0 ? situ_linear * tanh(u / situ_linear) : u;
            inner[i] = situ * tanh(g / situ) * (1 / (1 + exp(-g))) * u;
            continue;
        }
        g = fmin(g, 2);
        u = fmin(fmax(u, -2), 2);
        inner[i] = g / (1 + exp(-(double)1.702f * g)) * (u + 1);
    }
    for (unsigned h = 0; h < SMALL_H; h++)
        y[h] = dot(small.w[e][2] + h * SMALL_I, inner, SMALL_I) + (double)small.b[e][2][h];
}

static void by_definition(bool weigh_input, double *y)
{
    memset(y, 0, SMALL_T * SMALL_H * sizeof *y);
    for (unsigned i = 0; i < SMALL_T * SMALL_K; i++) {
        unsigned t = i / SMALL_K;
        double w = (double)small.weights[i], x[SMALL_H], one[SMALL_H];

        if (small.ids[i] < 0)
            continue;
        for (unsigned h = 0; h < SMALL_H; h++)
            x[h] = (double)small.x[t * SMALL_H + h] * (weigh_input ? w : 1);
        expert_by_definition((unsigned)small.ids[i], x, one);
        for (unsigned h = 0; h < SMALL_H; h++)
            y[t * SMALL_H + h] += (weigh_input ? 1 : w) * one[h];
    }
}

static mp_expert_source small_source(void)
{
    return (mp_expert_source){.hidden_size = SMALL_H,
                              .intermediate_size = SMALL_I,
                              .count = SMALL_E,
                              .tile_rows = 8,
                              .read = read_small,
                              .bias = bias_small};
}

static const mp_batch small_batch = {SMALL_T, SMALL_K, small.x, small.ids, small.weights};

static mp_forward_options small_options(mp_emulation emulation, bool weigh_input)
{
    mp_forward_options options = {.emulation = emulation,
                                  .activation = {.limit = 2, .alpha = 1.702f, .beta = 1},
                                  .weigh_input = weigh_input};

    if (situ > 0)
        options.activation =
            (mp_activation){.situ = (float)situ, .situ_linear = (float)situ_linear};
    return options;
}

static void check_small(mp_emulation emulation, bool weigh_input, double bound)
{
    const mp_expert_source experts = small_source();
    const mp_forward_options options = small_options(emulation, weigh_input);
    double want[SMALL_T * SMALL_H], got[SMALL_T * SMALL_H];

    fill_small();
    by_definition(weigh_input, want);
    cr_assert_eq(mp_forward(&experts, &options, &small_batch, NULL, got, &err), 0, "%s",
                 err.message);
    mp_deviation d = mp_compare(got, want, SMALL_T * SMALL_H);
    cr_assert_leq(d.rel_l2, bound, "relative L2 %g", d.rel_l2);
    cr_assert(d.finite);
}

Test(forward, knows_situ)
{
    situ = 1.5;
    situ_linear = 2.25;
    check_small(MP_EMULATE_EXACT, false, 1e-14);
    check_small(MP_EMULATE_BF16, false, 0.01);
    situ_linear = 0;
    check_small(MP_EMULATE_EXACT, false, 1e-14);
}

Test(forward, gates_clamps_and_adds_biases_as_defined)
{
    check_small(MP_EMULATE_EXACT, false, 1e-14);
    check_small(MP_EMULATE_BF16, false, 1e-2);
}

Test(forward, weighs_the_input_of_experts)
{
    check_small(MP_EMULATE_EXACT, true, 1e-14);
    check_small(MP_EMULATE_BF16, true, 1e-2);
}

/* ------------------------------------------------------------------------
 * What is refused
 */

static void expect_error(const mp_forward_options *options, const mp_batch *batch, int code,
                         const char *text)
{
    const mp_expert_source experts = small_source();
    double y[SMALL_T * SMALL_H];

    err = (mp_error){0};
    cr_assert_eq(mp_forward(&experts, options, batch, NULL, y, &err), code);
    cr_assert_str_eq(err.message, text);
}

Test(forward, refuses_choices_out_of_range)
{
    const mp_forward_options options = small_options(MP_EMULATE_EXACT, false);

    fill_small();
    small.ids[5] = 3;
    expect_error(&options, &small_batch, MP_ERR_INPUT,
                 "token 2, choice 1: expert 3, expected -1 to 2");
    small.ids[5] = -2;
    expect_error(&options, &small_batch, MP_ERR_INPUT,
                 "token 2, choice 1: expert -2, expected -1 to 2");
}

Test(forward, refuses_weights_that_the_kernel_does_not_take)
{
    const mp_forward_options options = small_options(MP_EMULATE_FUSEEP, false);

    fill_small();
    expect_error(&options, &small_batch, MP_ERR_UNSUPPORTED,
                 "expert 0: weights are f32, fuseep takes int8_channel");
}

Test(forward, refuses_sizes_that_blocks_do_not_divide)
{
    const mp_forward_options options = small_options(MP_EMULATE_W4A8, false);
    const mp_expert_source experts = small_source();
    double y[SMALL_T * SMALL_H];

    fill_small();
    cr_assert_eq(mp_forward(&experts, &options, &small_batch, NULL, y, &err), MP_ERR_UNSUPPORTED);
    cr_assert(strncmp(err.message, "token 0: ", 9) == 0, "%s", err.message);
}

Test(forward, fails_on_a_result_that_is_not_finite)
{
    const mp_forward_options options = small_options(MP_EMULATE_EXACT, false);
    unsigned choice = 0;

    fill_small();
    while (small.ids[choice] != 1)
        choice++;
    small.w[1][2][5 * SMALL_I] = NAN;
    char text[80];
    snprintf(text, sizeof text, "token %u, column 5: the result is nan", choice / SMALL_K);
    expect_error(&options, &small_batch, MP_ERR_CHECK, text);
}

Test(forward, computes_no_tokens)
{
    const mp_forward_options options = small_options(MP_EMULATE_EXACT, false);
    const mp_expert_source experts = small_source();
    const mp_batch none = {.k = SMALL_K};
    double y = 7;

    cr_assert_eq(mp_forward(&experts, &options, &none, NULL, &y, &err), 0);
    cr_assert_eq(y, 7);
}

/* ------------------------------------------------------------------------
 * Measures and tokens
 */

Test(forward, measures_differences)
{
    const double a[] = {3, 4}, b[] = {3, 0}, zero[] = {0, 0}, bad[] = {1, NAN};
    mp_deviation d = mp_compare(a, b, 2);

    cr_assert_float_eq(d.rel_l2, 4.0 / 3, 1e-15);
    cr_assert_float_eq(d.cosine_diff, 1 - 18.0 / 34, 1e-15);
    cr_assert_eq(d.max_abs, 4);
    cr_assert(d.finite && !d.identical);
    d = mp_compare(zero, zero, 2);
    cr_assert(d.identical && d.rel_l2 == 0 && d.cosine_diff == 0);
    d = mp_compare(bad, bad, 2);
    cr_assert(!d.finite && !d.identical && isnan(d.rel_l2) && isnan(d.cosine_diff));
}

Test(forward, makes_up_normal_tokens)
{
    enum { N = 40000 };
    float *x = malloc(N * sizeof *x), *again = malloc(N * sizeof *again);
    double sum = 0, squares = 0, tail = 0;

    mp_random_tokens(9, N / 100, 100, x);
    mp_random_tokens(9, N / 200, 200, again);
    cr_assert_arr_eq(x, again, N * sizeof *x);
    for (int i = 0; i < N; i++) {
        uint32_t bits;

        memcpy(&bits, &x[i], sizeof bits);
        cr_assert_eq(bits & 0xffff, 0);
        sum += (double)x[i];
        squares += (double)(x[i] * x[i]);
        tail += fabsf(x[i]) > 2;
    }
    cr_assert_lt(fabs(sum / N), 0.02);
    cr_assert_lt(fabs(squares / N - 1), 0.03);
    cr_assert_lt(fabs(tail / N - 0.0455), 0.005);
    mp_random_tokens(10, N / 100, 100, again);
    cr_assert_arr_neq(x, again, N * sizeof *x);
    free(x);
    free(again);
}
