/* SPDX-License-Identifier: Apache-2.0 */
/* Families: every fixture's experts, read and decoded, are the values that were known
 * before they were stored. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <moepack/model.h>
#include <moepack/numeric.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"

#include "checkpoint/matrix.h"

typedef struct fixture {
    char name[32];
    char family[16];
    mp_scheme scheme;
    mp_fusion fusion;
    bool inexact; /* two scales may be multiplied in either order */
} fixture;

static const fixture fixtures[] = {
    {"ct-fp8-block", "qwen3_moe", MP_SCHEME_FP8_BLOCK, MP_FUSION_NONE, false},
    {"ct-fp8-tensor", "qwen3_moe", MP_SCHEME_FP8_TENSOR, MP_FUSION_NONE, false},
    {"ct-int8", "qwen3_moe", MP_SCHEME_INT8_CHANNEL, MP_FUSION_NONE, false},
    {"ct-mxfp4", "qwen3_moe", MP_SCHEME_MXFP4, MP_FUSION_NONE, false},
    {"ct-nvfp4", "qwen3_moe", MP_SCHEME_NVFP4, MP_FUSION_NONE, true},
    {"ct-int4-bytes", "qwen3_moe", MP_SCHEME_INT4_GROUP, MP_FUSION_NONE, false},
    {"ct-fused-nvfp4", "qwen3_moe", MP_SCHEME_NVFP4, MP_FUSION_ROWS, true},
    {"ct-fused-int4", "qwen3_moe", MP_SCHEME_INT4_GROUP, MP_FUSION_ROWS, false},
    {"ct-fused-int8", "qwen3_moe", MP_SCHEME_INT8_CHANNEL, MP_FUSION_ROWS, false},
    {"f4-mxfp4", "qwen3_moe", MP_SCHEME_MXFP4, MP_FUSION_NONE, false},
    {"glm-bf16", "glm_moe", MP_SCHEME_BF16, MP_FUSION_NONE, false},
    {"glm-fp8-channel", "glm_moe", MP_SCHEME_FP8_CHANNEL, MP_FUSION_NONE, false},
    {"gptoss-bf16-fused-c", "gpt_oss", MP_SCHEME_BF16, MP_FUSION_COLS_PAIRED, false},
    {"gptoss-mxfp4", "gpt_oss", MP_SCHEME_MXFP4, MP_FUSION_ROWS_PAIRED, false},
    {"kimi-k2-fp8", "kimi_k2", MP_SCHEME_FP8_BLOCK, MP_FUSION_NONE, false},
    {"kimi-k25-int4", "kimi_k2", MP_SCHEME_INT4_GROUP, MP_FUSION_NONE, false},
    {"kimi-k3-mxfp4", "kimi_k3", MP_SCHEME_MXFP4, MP_FUSION_NONE, false},
    {"llama4-bf16-fused-b", "llama4", MP_SCHEME_BF16, MP_FUSION_COLS, false},
    {"llama4-modelopt-nvfp4", "llama4", MP_SCHEME_NVFP4, MP_FUSION_COLS, false},
    {"minimax-m2-fp8", "minimax_m2", MP_SCHEME_FP8_BLOCK, MP_FUSION_NONE, false},
    {"minimax-m3-mxfp8", "minimax_m3", MP_SCHEME_MXFP8, MP_FUSION_NONE, false},
    {"mistral-small4-fp8", "qwen3_moe", MP_SCHEME_FP8_TENSOR, MP_FUSION_ROWS, false},
    {"mixtral-bf16", "mixtral", MP_SCHEME_BF16, MP_FUSION_NONE, false},
    {"mixtral-f16", "mixtral", MP_SCHEME_F16, MP_FUSION_NONE, false},
    {"mixtral-f32", "mixtral", MP_SCHEME_F32, MP_FUSION_NONE, false},
    {"modelopt-nvfp4", "qwen3_moe", MP_SCHEME_NVFP4, MP_FUSION_NONE, true},
    {"modelslim-w4a8-mxfp", "qwen3_moe", MP_SCHEME_MXFP4, MP_FUSION_NONE, false},
    {"modelslim-w4a8", "qwen3_moe", MP_SCHEME_INT4_GROUP, MP_FUSION_NONE, false},
    {"modelslim-w4a8-group", "qwen3_moe", MP_SCHEME_INT4_GROUP, MP_FUSION_NONE, false},
    {"modelslim-w4a8-bytes", "qwen3_moe", MP_SCHEME_INT4_GROUP, MP_FUSION_NONE, false},
    {"modelslim-w8a8", "qwen3_moe", MP_SCHEME_INT8_CHANNEL, MP_FUSION_NONE, false},
    {"quark-mxfp4", "qwen3_moe", MP_SCHEME_MXFP4, MP_FUSION_NONE, false},
    {"qwen3-fp8-bf16scale", "qwen3_moe", MP_SCHEME_FP8_BLOCK, MP_FUSION_NONE, false},
    {"qwen35-fused-a", "qwen3_5_moe", MP_SCHEME_BF16, MP_FUSION_ROWS, false},
    {"qwen3next-fp8", "qwen3_next", MP_SCHEME_FP8_BLOCK, MP_FUSION_NONE, false},
    {"qwen3vl-fused-b", "qwen3_vl_moe", MP_SCHEME_BF16, MP_FUSION_COLS, false},
    {"shared-joined", "glm_moe", MP_SCHEME_INT8_CHANNEL, MP_FUSION_NONE, false},
    {"step3p5-stacked", "qwen3_moe", MP_SCHEME_BF16, MP_FUSION_STACKED, false},
    {"v2-bf16", "deepseek_v2", MP_SCHEME_BF16, MP_FUSION_NONE, false},
    {"v4-base-fp8", "deepseek_v4", MP_SCHEME_FP8_BLOCK, MP_FUSION_NONE, false},
    {"v4-modelopt-nvfp4", "deepseek_v4", MP_SCHEME_NVFP4, MP_FUSION_NONE, false},
    {"v41-fp4", "deepseek_v4", MP_SCHEME_MXFP4, MP_FUSION_NONE, false},
};

ParameterizedTestParameters(families, decoded)
{
    return cr_make_param_array(const fixture, (fixture *)fixtures,
                               sizeof fixtures / sizeof fixtures[0]);
}

/* Decodes rows row0 .. row0+rows-1 of a matrix to float32. */
static void decode(const mp_catalog *catalog, const mp_storage *storage, const mp_matrix *matrix,
                   uint64_t cols, uint64_t row0, uint64_t rows, float *out)
{
    uint8_t *weight = malloc(rows * mp_storage_row_bytes(storage, cols));
    uint8_t *scale = malloc((rows + 1) * mp_storage_scale_row_bytes(storage, cols) + 1);
    mp_rows in = {
        .scheme = storage->scheme,
        .scale_dtype = storage->scale_dtype,
        .block_rows = storage->block_rows,
        .block_cols = storage->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = cols,
        .global_divides = storage->global_divides,
        .weight = weight,
        .scale = storage->has_scale ? scale : NULL,
    };
    mp_error err;

    cr_assert_eq(mp_matrix_global(catalog, matrix, &in.global_scale, &err), 0, "%s", err.message);
    cr_assert_eq(
        mp_matrix_read_rows(catalog, storage, matrix, cols, row0, rows, weight, scale, &err), 0,
        "%s", err.message);
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0, "%s", err.message);
    free(weight);
    free(scale);
}

static bool equal(float have, float want, bool inexact)
{
    if (!inexact)
        return memcmp(&have, &want, sizeof have) == 0;
    return have == want || have == nextafterf(want, INFINITY) ||
           have == nextafterf(want, -INFINITY);
}

/* Where a matrix's truth is: "LAYER.7.w1", "LAYER.shared.w2". */
static const float *find_truth(const golden_file *truth, const mp_moe_layer *layer,
                               const char *expert, mp_projection p, char name[128],
                               uint64_t elements)
{
    static const char *const names[] = {"w1", "w3", "w2"};
    const float *want;
    size_t bytes;

    snprintf(name, 128, "%s.%s.%s", layer->prefix, expert, names[p]);
    want = golden_tensor(truth, name, &bytes);
    cr_assert_eq(bytes, elements * sizeof *want, "%s", name);
    return want;
}

static void check_matrix(const fixture *f, const mp_catalog *catalog, const mp_moe_layer *layer,
                         const char *expert, const mp_storage *storage, const mp_matrix *matrix,
                         mp_projection p, uint64_t rows, uint64_t cols, const golden_file *truth)
{
    char name[128];
    const float *want = find_truth(truth, layer, expert, p, name, rows * cols);
    float *have = malloc(rows * cols * sizeof *have);

    /* 23 divides nothing, so tiles begin inside blocks. */
    for (uint64_t row = 0; row < rows; row += 23) {
        uint64_t n = rows - row < 23 ? rows - row : 23;

        decode(catalog, storage, matrix, cols, row, n, have + row * cols);
    }
    for (uint64_t i = 0; i < rows * cols; i++)
        cr_assert(equal(have[i], want[i], f->inexact), "%s: %s: element %llu: %a, expected %a",
                  f->name, name, (unsigned long long)i, (double)have[i], (double)want[i]);
    free(have);
}

static void check_routed(const fixture *f, const mp_catalog *catalog, const golden_file *truth)
{
    const mp_moe_layer *layer = &catalog->layers[0];

    for (uint32_t e = 0; e < catalog->num_experts; e++)
        for (int p = 0; p < MP_PROJECTIONS; p++) {
            uint64_t rows, cols;
            char expert[16];

            snprintf(expert, sizeof expert, "%u", e);
            mp_catalog_shape(catalog, (mp_projection)p, &rows, &cols);
            check_matrix(f, catalog, layer, expert, &layer->storage, &layer->experts[e].matrix[p],
                         (mp_projection)p, rows, cols, truth);
        }
}

/* The shared expert has its own width; that of Kimi K3, its own hidden size too. */
static void check_shared(const fixture *f, const mp_catalog *catalog, const golden_file *truth)
{
    const mp_moe_layer *layer = &catalog->layers[0];
    uint64_t h, i;

    if (!layer->has_shared)
        return;
    i = layer->shared_width;
    h = layer->shared.matrix[MP_DOWN].weight->shape[0];
    for (int p = 0; p < MP_PROJECTIONS; p++)
        check_matrix(f, catalog, layer, "shared", &layer->shared_storage, &layer->shared.matrix[p],
                     (mp_projection)p, p == MP_DOWN ? h : i, p == MP_DOWN ? i : h, truth);
}

ParameterizedTest(const fixture *f, families, decoded)
{
    mp_catalog catalog;
    mp_error err;
    golden_file *truth;
    char path[128];

    snprintf(path, sizeof path, "testdata/fixtures/%s", f->name);
    cr_assert_eq(mp_catalog_open(&catalog, path, NULL, &err), 0, "%s: %s", path, err.message);
    cr_expect_eq(catalog.problems.count, 0, "%s: %s", path, catalog.problems.text[0]);
    cr_expect_str_eq(catalog.family, f->family);
    cr_assert_eq(catalog.num_layers, 1);
    cr_assert_eq(catalog.num_experts, 3);
    cr_expect_eq(catalog.layers[0].storage.scheme, f->scheme);
    cr_expect_eq(catalog.layers[0].storage.fusion, f->fusion);
    strcat(path, "/truth.st");
    truth = golden_open(path);
    check_routed(f, &catalog, truth);
    check_shared(f, &catalog, truth);
    golden_close(truth);
    mp_catalog_release(&catalog);
}
