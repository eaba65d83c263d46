/* SPDX-License-Identifier: Apache-2.0 */
/* The values of synthetic checkpoints: how they are spread, and that what is stored is
 * what the formats make of them. */
#include "synth_scratch.h"

#include <math.h>

#include "numeric/kernels.h"
#include "synth/synth_values.h"

TestSuite(synth_values, .init = make_scratch, .fini = remove_scratch);

static float shapes[MP_SYNTH_SHAPES];

/* ------------------------------------------------------------------------
 * The generator
 */

Test(synth_values, shapes_are_symmetric_and_heavy_tailed)
{
    double square = 0;
    mp_synth_shapes(shapes);
    for (int i = 0; i < MP_SYNTH_SHAPES; i++) {
        cr_assert_eq(shapes[i], -shapes[MP_SYNTH_SHAPES - 1 - i]);
        cr_assert(isfinite(shapes[i]) && shapes[i] != 0);
        cr_assert(i == 0 || shapes[i] > shapes[i - 1]);
        square += (double)shapes[i] * shapes[i];
    }
    cr_assert_float_eq(square / MP_SYNTH_SHAPES, 0.7854, 0.003);
    cr_assert_float_eq(shapes[MP_SYNTH_SHAPES - 1], 13.4541f, 0.0001f);
    cr_assert_float_eq(shapes[MP_SYNTH_SHAPES / 2], 1.0f / 65536, 1e-9f);
}

/* Made by a Python program after the formulas in synth_values.h, with xxh128sum. */
Test(synth_values, are_those_of_the_formula)
{
    static const struct {
        unsigned col;
        uint32_t bits;
    } golden[] = {
        {0, 0x3c0a97ab},  {1, 0xba365dcf},  {2, 0xbbcdb4cd},  {3, 0xba3780c6},  {36, 0x3bdfe10c},
        {56, 0xbf576576}, {67, 0x3c0b162c}, {68, 0xbc1d097b}, {69, 0xbbf3de98},
    };
    uint64_t key = mp_synth_key(7, "layers.0.ffn.experts.1.w2.weight");
    float columns[70], row[70];
    cr_assert_eq(key, 0x32588d3037d18fb9);
    mp_synth_shapes(shapes);
    mp_synth_columns(key, 70, columns);
    mp_synth_values values = {shapes, columns, key};
    mp_synth_row(&values, 3, 0, 70, row);
    for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++)
        cr_assert_eq(memcmp(&row[golden[i].col], &golden[i].bits, 4), 0, "column %u is %a",
                     golden[i].col, (double)row[golden[i].col]);
}

Test(synth_values, any_part_of_a_row_is_the_same)
{
    float columns[151], whole[151], part[151];
    mp_synth_shapes(shapes);
    mp_synth_columns(99, 151, columns);
    mp_synth_values values = {shapes, columns, 99};
    mp_synth_row(&values, 1000000007, 0, 151, whole);
    for (uint64_t col = 0; col < 151; col += 4)
        for (uint64_t n = 0; n <= 151 - col; n++) {
            part[n < 151 ? n : 0] = -1;
            mp_synth_row(&values, 1000000007, col, n, part);
            cr_assert_eq(memcmp(part, whole + col, n * sizeof(float)), 0);
            cr_assert(n == 151 || part[n] == -1.0f);
        }
}

/* Root mean square of the first rows of a matrix. */
static double rms(uint64_t key, uint64_t cols, unsigned rows)
{
    float *columns = malloc(cols * sizeof(float)), *row = malloc(cols * sizeof(float));
    double square = 0;
    mp_synth_columns(key, cols, columns);
    mp_synth_values values = {shapes, columns, key};
    for (unsigned r = 0; r < rows; r++) {
        mp_synth_row(&values, r, 0, cols, row);
        for (uint64_t k = 0; k < cols; k++)
            square += (double)row[k] * row[k];
    }
    free(columns);
    free(row);
    return sqrt(square / ((double)rows * (double)cols));
}

Test(synth_values, deviate_alike_whatever_the_width)
{
    static const uint64_t widths[] = {32, 96, 2047, 7168};
    mp_synth_shapes(shapes);
    for (size_t i = 0; i < 4; i++) {
        double found = rms(mp_synth_key(i, "w"), widths[i], (unsigned)(2000000 / widths[i]));
        cr_assert(found > 0.026 && found < 0.034, "%g of width %u", found, (unsigned)widths[i]);
    }
}

Test(synth_values, a_few_columns_stand_out)
{
    static const uint64_t widths[] = {32, 1000, 4096};
    static float columns[4096];
    for (size_t i = 0; i < 3; i++) {
        uint64_t outliers = 0;
        float usual = INFINITY;
        mp_synth_columns(5 + i, widths[i], columns);
        for (uint64_t k = 0; k < widths[i]; k++)
            usual = fminf(usual, columns[k]);
        for (uint64_t k = 0; k < widths[i]; k++) {
            float ratio = columns[k] / usual;
            cr_assert(ratio == 1.0f || (ratio > 7.999f && ratio < 30.001f), "%g", (double)ratio);
            outliers += ratio != 1.0f;
        }
        cr_assert(outliers >= 1 && outliers <= (widths[i] + 511) / 512);
    }
}

Test(synth_values, row_factors_cover_two_octaves)
{
    float column = 1, value, low = INFINITY, high = 0;
    static float ones[MP_SYNTH_SHAPES];
    for (int i = 0; i < MP_SYNTH_SHAPES; i++)
        ones[i] = 1;
    mp_synth_values values = {ones, &column, 42};
    for (unsigned r = 0; r < 10000; r++) {
        mp_synth_row(&values, r, 0, 1, &value);
        low = fminf(low, value);
        high = fmaxf(high, value);
    }
    cr_assert(low >= 0.5f && low < 0.501f, "%g", (double)low);
    cr_assert(high < 2.0f && high > 1.999f, "%g", (double)high);
}

/* ------------------------------------------------------------------------
 * What is stored
 */

/* A stored matrix [rows, cols] as float32, decoded by the formulas of its format. */
static float *decode(const mp_checkpoint *ckpt, const char *name, const char *scale_name)
{
    const mp_kernels *kernels = mp_kernels_for("scalar");
    const mp_tensor *tensor = mp_checkpoint_find(ckpt, name);
    const mp_tensor *scale_tensor = scale_name ? mp_checkpoint_find(ckpt, scale_name) : NULL;
    void *bytes = read_tensor(ckpt, name);
    void *scale_bytes = scale_name ? read_tensor(ckpt, scale_name) : NULL;
    uint64_t packing = tensor->dtype == MP_I8 ? 2 : 1;
    uint64_t rows = tensor->shape[0], cols = tensor->shape[1] * packing;
    float *out = malloc(rows * cols * sizeof(float));

    if (tensor->dtype == MP_BF16)
        kernels->bf16_decode(bytes, out, rows * cols);
    else if (tensor->dtype == MP_I8)
        kernels->e2m1_decode(bytes, out, rows * cols);
    else
        kernels->e4m3_decode(bytes, out, rows * cols);
    if (scale_tensor) {
        uint64_t n = scale_tensor->shape[0] * scale_tensor->shape[1];
        uint64_t block_rows = packing == 2 ? 1 : 128, block_cols = packing == 2 ? 32 : 128;
        float *scales = malloc(n * sizeof(float));
        if (scale_tensor->dtype == MP_F32)
            memcpy(scales, scale_bytes, n * sizeof(float));
        else if (scale_tensor->dtype == MP_BF16)
            kernels->bf16_decode(scale_bytes, scales, n);
        else
            kernels->ue8m0_decode(scale_bytes, scales, n);
        for (uint64_t i = 0; i < rows * cols; i++)
            out[i] *=
                scales[i / cols / block_rows * scale_tensor->shape[1] + i % cols / block_cols];
        free(scales);
    }
    free(bytes);
    free(scale_bytes);
    return out;
}

/* Relative root mean square error of a stored matrix against the generator's values. */
static double error_of(const mp_checkpoint *ckpt, uint64_t seed, const char *name,
                       const char *scale_name)
{
    const mp_tensor *tensor = mp_checkpoint_find(ckpt, name);
    cr_assert_not_null(tensor, "no tensor %s", name);
    uint64_t rows = tensor->shape[0], cols = tensor->shape[1] * (tensor->dtype == MP_I8 ? 2 : 1);
    float *stored = decode(ckpt, name, scale_name);
    float *columns = malloc(cols * sizeof(float)), *row = malloc(cols * sizeof(float));
    double error = 0, signal = 0;
    uint64_t key = mp_synth_key(seed, name);
    mp_synth_shapes(shapes);
    mp_synth_columns(key, cols, columns);
    mp_synth_values values = {shapes, columns, key};
    for (uint64_t r = 0; r < rows; r++) {
        mp_synth_row(&values, r, 0, cols, row);
        for (uint64_t k = 0; k < cols; k++) {
            double difference = (double)stored[r * cols + k] - (double)row[k];
            error += difference * difference;
            signal += (double)row[k] * row[k];
        }
    }
    free(stored);
    free(columns);
    free(row);
    return sqrt(error / signal);
}

/* Errors of uniform rounding at the formats' precisions; a wrong scale, block, nibble
 * order or name makes them 0.3 or more. */
#define EXPECT_ERROR(ckpt, options, name, scale, low, high)     \
    do {                                                        \
        double e = error_of(ckpt, (options).seed, name, scale); \
        cr_assert(e > (low) && e < (high), "%s: %g", name, e);  \
    } while (0)

Test(synth_values, are_stored_in_every_format)
{
    mp_synth_options o = small_v4();
    const mp_checkpoint *ckpt = make_and_open(&o, "v4");
    EXPECT_ERROR(ckpt, o, "layers.0.ffn.experts.6.w1.weight", "layers.0.ffn.experts.6.w1.scale",
                 0.04, 0.25);
    EXPECT_ERROR(ckpt, o, "mtp.0.ffn.experts.2.w2.weight", "mtp.0.ffn.experts.2.w2.scale", 0.04,
                 0.25);
    EXPECT_ERROR(ckpt, o, "layers.1.ffn.shared_experts.w3.weight",
                 "layers.1.ffn.shared_experts.w3.scale", 0.015, 0.04);
    EXPECT_ERROR(ckpt, o, "layers.1.ffn.gate.weight", NULL, 0.0005, 0.003);

    o.scheme = MP_SCHEME_FP8_BLOCK;
    ckpt = make_and_open(&o, "base");
    EXPECT_ERROR(ckpt, o, "layers.0.ffn.experts.6.w1.weight", "layers.0.ffn.experts.6.w1.scale",
                 0.015, 0.04);

    o = small_v3();
    ckpt = make_and_open(&o, "v3");
    EXPECT_ERROR(ckpt, o, "model.layers.0.mlp.down_proj.weight",
                 "model.layers.0.mlp.down_proj.weight_scale_inv", 0.015, 0.04);

    o = small_qwen3();
    ckpt = make_and_open(&o, "qwen3");
    EXPECT_ERROR(ckpt, o, "model.layers.1.mlp.experts.4.up_proj.weight", NULL, 0.0005, 0.003);
    o.scheme = MP_SCHEME_FP8_BLOCK;
    ckpt = make_and_open(&o, "fp8");
    EXPECT_ERROR(ckpt, o, "model.layers.1.mlp.experts.4.up_proj.weight",
                 "model.layers.1.mlp.experts.4.up_proj.weight_scale_inv", 0.015, 0.04);
}

/* Largest magnitude code in a block of 128x128, which begins at (row, col). */
static unsigned largest_code(const uint8_t *codes, uint64_t rows, uint64_t cols, uint64_t row,
                             uint64_t col)
{
    unsigned largest = 0;
    for (uint64_t r = row; r < rows && r < row + 128; r++)
        for (uint64_t c = col; c < cols && c < col + 128; c++)
            if ((codes[r * cols + c] & 0x7fu) > largest)
                largest = codes[r * cols + c] & 0x7f;
    return largest;
}

/* With an exact scale the largest value of a block is 448, code 0x7e; with one that is
 * rounded up to a power of two it is above 224, code 0x76. */
Test(synth_values, fill_the_range_of_every_fp8_block)
{
    mp_synth_options o = small_v3();
    const mp_checkpoint *ckpt = make_and_open(&o, "v3");
    uint8_t *codes = read_tensor(ckpt, "model.layers.0.mlp.up_proj.weight");
    for (uint64_t row = 0; row < 333; row += 128)
        for (uint64_t col = 0; col < 200; col += 128)
            cr_assert_eq(largest_code(codes, 333, 200, row, col), 0x7e);
    free(codes);

    o = small_v4();
    ckpt = make_and_open(&o, "v4");
    codes = read_tensor(ckpt, "layers.0.ffn.shared_experts.w1.weight");
    for (uint64_t row = 0; row < 320; row += 128)
        for (uint64_t col = 0; col < 288; col += 128) {
            unsigned code = largest_code(codes, 320, 288, row, col);
            cr_assert(code >= 0x76 && code <= 0x7e, "%x", code);
        }
    free(codes);
}

static int compare_rows(const void *a, const void *b)
{
    return memcmp(*(uint8_t *const *)a, *(uint8_t *const *)b, 80);
}

/* 80 bytes are the shorter rows, those of w2; w1 and w3 have 144. */
Test(synth_values, no_two_rows_of_experts_are_equal)
{
    mp_synth_options o = small_v4();
    const mp_checkpoint *ckpt = make_and_open(&o, "v4");
    uint8_t **rows = malloc(3 * 7 * 608 * sizeof(*rows));
    void *tensors[3 * 7 * 3];
    size_t num_rows = 0, num_tensors = 0;
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];
        if (t->dtype != MP_I8)
            continue;
        uint8_t *bytes = tensors[num_tensors++] = read_tensor(ckpt, t->name);
        for (uint64_t r = 0; r < t->shape[0]; r++)
            rows[num_rows++] = bytes + r * t->shape[1];
    }
    cr_assert_eq(num_rows, 3 * 7 * 608);
    qsort(rows, num_rows, sizeof(*rows), compare_rows);
    for (size_t i = 1; i < num_rows; i++)
        cr_assert_neq(memcmp(rows[i - 1], rows[i], 80), 0);
    for (size_t i = 0; i < num_tensors; i++)
        free(tensors[i]);
    free(rows);
}

Test(synth_values, block_exponents_vary)
{
    mp_synth_options o = small_v4();
    const mp_checkpoint *ckpt = make_and_open(&o, "v4");
    uint8_t *scales = read_tensor(ckpt, "layers.1.ffn.experts.3.w1.scale");
    unsigned counts[256] = {0}, different = 0, most = 0;
    for (unsigned i = 0; i < 160 * 9; i++)
        counts[scales[i]]++;
    for (unsigned e = 0; e < 256; e++) {
        different += counts[e] > 0;
        most = counts[e] > most ? counts[e] : most;
    }
    cr_assert_geq(different, 6);
    cr_assert_lt(most, 160 * 9 * 3 / 4);
    cr_assert_eq(counts[0] + counts[255], 0);
    free(scales);
}

Test(synth_values, a_token_table_chooses_distinct_experts)
{
    mp_synth_options o = small_v4();
    const mp_checkpoint *ckpt = make_and_open(&o, "v4");
    int64_t *table = read_tensor(ckpt, "layers.0.ffn.gate.tid2eid");
    unsigned chosen[7] = {0};
    for (unsigned token = 0; token < 101; token++) {
        unsigned seen = 0;
        for (unsigned k = 0; k < 3; k++) {
            int64_t expert = table[token * 3 + k];
            cr_assert(expert >= 0 && expert < 7);
            cr_assert_eq(seen >> expert & 1, 0);
            seen |= 1u << expert;
            chosen[expert]++;
        }
    }
    for (unsigned e = 0; e < 7; e++)
        cr_assert(chosen[e] > 20 && chosen[e] < 70, "%u: %u", e, chosen[e]);
    free(table);
}

/* All of them, in every row, when top-k is the number of experts. */
Test(synth_values, a_token_table_can_choose_all_experts)
{
    mp_synth_options o = small_v4();
    o.top_k = 7;
    const mp_checkpoint *ckpt = make_and_open(&o, "v4");
    int64_t *table = read_tensor(ckpt, "layers.0.ffn.gate.tid2eid");
    for (unsigned token = 0; token < 101; token++) {
        unsigned seen = 0;
        for (unsigned k = 0; k < 7; k++)
            seen |= 1u << table[token * 7 + k];
        cr_assert_eq(seen, 0x7f);
    }
    free(table);
}

Test(synth_values, norms_are_around_one_and_biases_around_zero)
{
    mp_synth_options o = small_v3();
    const mp_checkpoint *ckpt = make_and_open(&o, "v3");
    uint16_t *norm = read_tensor(ckpt, "model.layers.1.post_attention_layernorm.weight");
    float *bias = read_tensor(ckpt, "model.layers.1.mlp.gate.e_score_correction_bias");
    float values[200], low = INFINITY, high = 0;
    mp_kernels_for("scalar")->bf16_decode(norm, values, 200);
    for (unsigned k = 0; k < 200; k++) {
        low = fminf(low, values[k]);
        high = fmaxf(high, values[k]);
    }
    cr_assert(low >= 0.75f && low < 0.80f && high <= 1.25f && high > 1.20f);
    for (unsigned e = 0; e < 6; e++)
        cr_assert(bias[e] != 0 && fabsf(bias[e]) < 1 && (e == 0 || bias[e] != bias[e - 1]));
    free(norm);
    free(bias);
}
