/* SPDX-License-Identifier: Apache-2.0 */
/* The catalog: what it finds in whole checkpoints, and what it says of broken ones. */
#include <criterion/criterion.h>

#include <inttypes.h>
#include <math.h>

#include <moepack/numeric.h>

#include "golden.h"
#include "model_files.h"

#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/families.h"
#include "checkpoint/matrix.h"

TestSuite(catalog, .init = make_model_scratch, .fini = remove_model_scratch);

static void open_fixture(const char *name)
{
    char path[256];

    snprintf(path, sizeof path, "testdata/fixtures/%s", name);
    cr_assert_eq(mp_catalog_open(&catalog, path, NULL, &err), 0, "%s", err.message);
    cr_assert_eq(mp_catalog_check(&catalog, &err), 0, "%s", err.message);
}

static void expect_sizes(uint64_t h, uint64_t i, uint32_t experts, uint32_t shared)
{
    uint64_t rows, cols;

    cr_assert_eq(catalog.hidden_size, h);
    cr_assert_eq(catalog.moe_intermediate_size, i);
    cr_assert_eq(catalog.num_experts, experts);
    cr_assert_eq(catalog.num_shared_experts, shared);
    mp_catalog_shape(&catalog, MP_UP, &rows, &cols);
    cr_assert(rows == i && cols == h);
    mp_catalog_shape(&catalog, MP_DOWN, &rows, &cols);
    cr_assert(rows == h && cols == i);
}

static void expect_layer(size_t index, const char *prefix, uint64_t number, bool mtp,
                         uint32_t experts, uint64_t bytes)
{
    const mp_moe_layer *layer = &catalog.layers[index];

    cr_assert_lt(index, catalog.num_layers);
    cr_assert_str_eq(layer->prefix, prefix);
    cr_assert_eq(layer->number, number);
    cr_assert_eq(layer->mtp, mtp);
    cr_assert_eq(layer->num_experts, experts);
    cr_assert_eq(layer->bytes, bytes, "%s: %" PRIu64 " bytes", prefix, layer->bytes);
}

static void expect_storage(const mp_storage *storage, mp_scheme scheme, mp_dtype weight,
                           mp_dtype scale, uint32_t block_rows, uint32_t block_cols)
{
    cr_assert_eq(storage->scheme, scheme);
    cr_assert_eq(storage->weight_dtype, weight);
    cr_assert_eq(storage->has_scale, scale != weight);
    cr_assert_eq(storage->scale_dtype, scale);
    cr_assert_eq(storage->block_rows, block_rows);
    cr_assert_eq(storage->block_cols, block_cols);
}

/* What the other tensors are: as many of each kind as the list says, in the order of the
 * catalog: norm, router, attention, embedding, dense, mtp, other. */
static void expect_others(const uint64_t counts[MP_KINDS])
{
    for (int i = 0; i < MP_KINDS; i++)
        cr_assert_eq(catalog.others[i].tensors, counts[i], "%s: %" PRIu64, catalog.others[i].kind,
                     catalog.others[i].tensors);
}

/* ------------------------------------------------------------------------
 * Whole checkpoints
 */

Test(catalog, finds_v4)
{
    open_fixture("v4-fp4");
    cr_assert_str_eq(catalog.family, "deepseek_v4");
    cr_assert_str_eq(catalog.reason, "layers.0.ffn.experts.N.w1: mxfp4 with F8_E8M0 scales");
    expect_sizes(384, 256, 5, 1);
    cr_assert_eq(catalog.num_layers, 2);
    /* An expert is 3 matrices of 256 x 384 half bytes and 1/32 scale bytes each. */
    expect_layer(0, "layers.0", 0, false, 5, 5 * 3 * (256 * 384 / 2 + 256 * 384 / 32));
    expect_layer(1, "mtp.0", 0, true, 5, 5 * 3 * (256 * 384 / 2 + 256 * 384 / 32));
    for (int l = 0; l < 2; l++) {
        expect_storage(&catalog.layers[l].storage, MP_SCHEME_MXFP4, MP_I8, MP_F8_E8M0, 1, 32);
        cr_assert(catalog.layers[l].has_shared);
        expect_storage(&catalog.layers[l].shared_storage, MP_SCHEME_FP8_BLOCK, MP_F8_E4M3,
                       MP_F8_E8M0, 128, 128);
    }
    cr_assert_eq(catalog.expert_tensors, 2 * (5 + 1) * 3 * 2);
    expect_others((uint64_t[]){2, 4, 0, 1, 0, 0, 0});
}

Test(catalog, finds_v3)
{
    open_fixture("v3-fp8");
    cr_assert_str_eq(catalog.family, "deepseek_v3");
    cr_assert_str_eq(catalog.reason,
                     "model.layers.1.mlp.experts.N.gate_proj: fp8_block with F32 scales");
    expect_sizes(192, 160, 4, 1);
    cr_assert_eq(catalog.num_layers, 1, "layer 0 is dense");
    expect_layer(0, "model.layers.1", 1, false, 4, 4 * 3 * (192 * 160 + 2 * 2 * 4));
    expect_storage(&catalog.layers[0].storage, MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, 128, 128);
    cr_assert(catalog.layers[0].has_shared);
    cr_assert_eq(catalog.expert_tensors, (4 + 1) * 3 * 2);
    expect_others((uint64_t[]){0, 2, 0, 0, 1, 0, 0});
}

Test(catalog, finds_qwen3)
{
    open_fixture("qwen3-bf16");
    cr_assert_str_eq(catalog.family, "qwen3_moe");
    cr_assert_str_eq(catalog.reason, "model.layers.0.mlp.experts.N.gate_proj: bf16");
    expect_sizes(96, 64, 4, 0);
    cr_assert_eq(catalog.num_layers, 1);
    expect_layer(0, "model.layers.0", 0, false, 4, 4 * 3 * 96 * 64 * 2);
    expect_storage(&catalog.layers[0].storage, MP_SCHEME_BF16, MP_BF16, MP_BF16, 1, 1);
    cr_assert_not(catalog.layers[0].has_shared);
    cr_assert_eq(catalog.expert_tensors, 4 * 3);
    expect_others((uint64_t[]){0, 1, 0, 0, 0, 0, 0});
}

Test(catalog, finds_the_base_model_of_v4)
{
    open_fixture("v4-base-fp8");
    cr_assert_str_eq(catalog.family, "deepseek_v4");
    expect_sizes(96, 64, 3, 0);
    expect_layer(0, "layers.0", 0, false, 3, 3 * 3 * (96 * 64 + 4));
    expect_storage(&catalog.layers[0].storage, MP_SCHEME_FP8_BLOCK, MP_F8_E4M3, MP_F32, 128, 128);
    cr_assert_eq(catalog.expert_tensors, 3 * 3 * 2);
    expect_others((uint64_t[]){0, 2, 0, 0, 0, 0, 0});
}

/* Layers come in the order of their numbers, not of their names, and MTP blocks last. */
Test(catalog, orders_layers)
{
    static const char *const want[] = {"layers.1", "layers.2", "layers.10", "mtp.0", "mtp.1"};

    for (int i = 4; i >= 0; i--)
        add_fp4_layer(want[i], 2, 64, 32);
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_eq(catalog.num_layers, 5);
    for (int i = 0; i < 5; i++)
        cr_assert_str_eq(catalog.layers[i].prefix, want[i]);
}

Test(catalog, decides_without_a_config)
{
    add_fp4_layer("layers.0", 2, 64, 32);
    expect_model();
    cr_assert_str_eq(catalog.family, "deepseek_v4");
    cr_assert_str_eq(catalog.reason, "layers.0.ffn.experts.N.w1: mxfp4 with F8_E8M0 scales; "
                                     "there is no config.json");

    clear_model();
    add_bf16_expert("model.layers.0", 0, 64, 48);
    expect_model();
    cr_assert_str_eq(catalog.family, "qwen3_moe");
    add_tensor(MP_BF16, 48, 64, "model.layers.0.mlp.shared_experts.gate_proj.weight");
    add_tensor(MP_BF16, 48, 64, "model.layers.0.mlp.shared_experts.up_proj.weight");
    add_tensor(MP_BF16, 64, 48, "model.layers.0.mlp.shared_experts.down_proj.weight");
    expect_model();
    cr_assert_str_eq(catalog.family, "deepseek_v3");
    cr_assert_eq(catalog.num_shared_experts, 1);
    cr_assert_eq(catalog.problems.count, 0);
}

/* Shared experts are one set of matrices, as wide as all of them. */
Test(catalog, counts_shared_experts_by_their_width)
{
    add_bf16_expert("model.layers.0", 0, 64, 48);
    add_tensor(MP_BF16, 144, 64, "model.layers.0.mlp.shared_experts.gate_proj.weight");
    add_tensor(MP_BF16, 144, 64, "model.layers.0.mlp.shared_experts.up_proj.weight");
    add_tensor(MP_BF16, 64, 144, "model.layers.0.mlp.shared_experts.down_proj.weight");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_eq(catalog.num_shared_experts, 3);
}

/* ------------------------------------------------------------------------
 * Values
 */

static float e4m3(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float value =
        exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);

    return code & 0x80 ? -value : value;
}

static float e2m1(uint8_t code)
{
    static const float values[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

    return code & 8 ? -values[code & 7] : values[code & 7];
}

static float bf16(const uint8_t *bytes)
{
    uint32_t bits = (uint32_t)bytes[0] << 16 | (uint32_t)bytes[1] << 24;
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Element (n, k) of a matrix out of its whole tensors, by the formula of its form. */
static float element(const mp_storage *storage, const uint8_t *weight, const uint8_t *scale,
                     uint64_t cols, uint64_t n, uint64_t k)
{
    uint64_t at = n * cols + k;
    uint64_t block =
        n / storage->block_rows * ((cols + storage->block_cols - 1) / storage->block_cols) +
        k / storage->block_cols;
    float factor;

    if (storage->scheme == MP_SCHEME_BF16)
        return bf16(weight + 2 * at);
    if (storage->scale_dtype == MP_F32)
        memcpy(&factor, scale + 4 * block, sizeof factor);
    else
        factor = ldexpf(1, scale[block] - 127);
    if (storage->scheme == MP_SCHEME_MXFP4)
        return e2m1((uint8_t)(weight[at / 2] >> (at % 2 * 4) & 15)) * factor;
    return e4m3(weight[at]) * factor;
}

static uint8_t *read_whole(const mp_tensor *tensor)
{
    uint8_t *bytes = malloc(tensor ? tensor->bytes : 1);

    if (tensor)
        cr_assert_eq(mp_tensor_read(&catalog.checkpoint, tensor, 0, tensor->bytes, bytes, &err), 0);
    return bytes;
}

/* Reads and decodes rows row0 .. row0+rows-1 as the catalog gives them. */
static void decode(const mp_storage *storage, const mp_matrix *matrix, uint64_t cols, uint64_t row0,
                   uint64_t rows, float *out)
{
    uint64_t last = (row0 + rows - 1) / storage->block_rows, first = row0 / storage->block_rows;
    uint64_t weight_bytes = rows * mp_storage_row_bytes(storage, cols);
    uint64_t scale_bytes = (last - first + 1) * mp_storage_scale_row_bytes(storage, cols);
    uint8_t *weight = malloc(weight_bytes + 1), *scale = malloc(scale_bytes + 1);
    mp_rows in = {
        .scheme = storage->scheme,
        .scale_dtype = storage->scale_dtype,
        .block_rows = storage->block_rows,
        .block_cols = storage->block_cols,
        .row0 = row0,
        .rows = rows,
        .cols = cols,
        .weight = weight,
        .scale = scale,
    };

    weight[weight_bytes] = scale[scale_bytes] = 0xa5;
    cr_assert_eq(
        mp_matrix_read_rows(&catalog, storage, matrix, cols, row0, rows, weight, scale, &err), 0,
        "%s", err.message);
    cr_assert(weight[weight_bytes] == 0xa5 && scale[scale_bytes] == 0xa5, "bytes behind the rows");
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0, "%s", err.message);
    free(weight);
    free(scale);
}

/* A matrix in pieces of 1, 2, 3 ... rows is what the formula makes of it, and the truth
 * where there is one. */
static void expect_values(const mp_storage *storage, const mp_matrix *matrix, uint64_t rows,
                          uint64_t cols, const float *truth)
{
    uint8_t *weight = read_whole(matrix->weight), *scale = read_whole(matrix->scale);
    float *have = malloc(rows * cols * sizeof *have);

    for (uint64_t row = 0, step = 1; row < rows; row += step++)
        decode(storage, matrix, cols, row, step < rows - row ? step : rows - row,
               have + row * cols);
    for (uint64_t i = 0; i < rows * cols; i++) {
        float want = element(storage, weight, scale, cols, i / cols, i % cols);

        cr_assert(memcmp(&have[i], &want, sizeof want) == 0,
                  "%s: row %" PRIu64 ", column %" PRIu64 ": %g, expected %g", matrix->weight->name,
                  i / cols, i % cols, (double)have[i], (double)want);
        if (truth)
            cr_assert(memcmp(&have[i], &truth[i], sizeof want) == 0,
                      "%s: element %" PRIu64 ": %g, truth %g", matrix->weight->name, i,
                      (double)have[i], (double)truth[i]);
    }
    free(weight);
    free(scale);
    free(have);
}

static void expect_expert_values(const mp_storage *storage, const mp_expert *expert,
                                 uint64_t intermediate, const float *truth[MP_PROJECTIONS])
{
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t h = catalog.hidden_size;

        expect_values(storage, &expert->matrix[p], p == MP_DOWN ? h : intermediate,
                      p == MP_DOWN ? intermediate : h, truth ? truth[p] : NULL);
    }
}

static void expect_all_values(void)
{
    for (size_t l = 0; l < catalog.num_layers; l++) {
        const mp_moe_layer *layer = &catalog.layers[l];
        uint64_t i = catalog.moe_intermediate_size;

        for (uint32_t e = 0; e < layer->num_experts; e++)
            expect_expert_values(&layer->storage, &layer->experts[e], i, NULL);
        if (layer->has_shared)
            expect_expert_values(&layer->shared_storage, &layer->shared,
                                 i * catalog.num_shared_experts, NULL);
    }
}

Test(catalog, values_of_v4)
{
    open_fixture("v4-fp4");
    expect_all_values();
}

/* 192 x 160 in blocks of 128 x 128: the blocks at the edges are smaller. */
Test(catalog, values_of_v3)
{
    open_fixture("v3-fp8");
    expect_all_values();
}

Test(catalog, values_of_qwen3)
{
    open_fixture("qwen3-bf16");
    expect_all_values();
}

Test(catalog, values_of_the_base_model_of_v4)
{
    static const char *const names[] = {"w1", "w3", "w2"};
    golden_file *file = golden_open("testdata/fixtures/v4-base-fp8/truth.st");

    open_fixture("v4-base-fp8");
    for (uint32_t e = 0; e < 3; e++) {
        const float *truth[MP_PROJECTIONS];
        char name[64];

        for (int p = 0; p < MP_PROJECTIONS; p++) {
            snprintf(name, sizeof name, "layers.0.%u.%s", e, names[p]);
            truth[p] = golden_tensor(file, name, NULL);
        }
        expect_expert_values(&catalog.layers[0].storage, &catalog.layers[0].experts[e], 64, truth);
    }
    golden_close(file);
}

Test(catalog, reads_only_rows_that_are_there)
{
    uint8_t weight[4 * 48], scale[4 * 3];
    const mp_moe_layer *layer;

    open_fixture("v4-fp4");
    layer = &catalog.layers[0];
    cr_assert_eq(mp_matrix_read_rows(&catalog, &layer->storage, &layer->experts[0].matrix[MP_GATE],
                                     384, 256, 1, weight, scale, &err),
                 MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "layers.0.ffn.experts.0.w1.weight"), "%s", err.message);
    memset(weight, 0x5a, sizeof weight);
    cr_assert_eq(mp_matrix_read_rows(&catalog, &layer->storage, &layer->experts[0].matrix[MP_GATE],
                                     384, 256, 0, weight, scale, &err),
                 0);
    cr_assert_eq(weight[0], 0x5a, "no rows, no bytes");
    scale[0] = 0x5a;
    cr_assert_eq(mp_matrix_read_rows(&catalog, &layer->storage, &layer->experts[0].matrix[MP_GATE],
                                     384, 255, 1, weight, NULL, &err),
                 0);
    cr_assert_eq(scale[0], 0x5a);
}

/* ------------------------------------------------------------------------
 * What is wrong
 */

/* Opens what was added; its problems are these. */
#define EXPECT_PROBLEMS(...) expect_problems((const char *const[]){__VA_ARGS__, NULL})

static void expect_problems(const char *const *want)
{
    size_t n = 0;

    expect_model();
    for (; want[n]; n++) {
        cr_assert_lt(n, catalog.problems.count, "no problem, expected: %s", want[n]);
        cr_assert_str_eq(catalog.problems.text[n], want[n]);
    }
    cr_assert_eq(catalog.problems.count, n, "more than that: %s", catalog.problems.text[n]);
}

/* A sound checkpoint: two layers of three experts, H = 64, I = 32. */
static void add_sound(void)
{
    add_fp4_layer("layers.0", 3, 64, 32);
    add_fp4_layer("layers.1", 3, 64, 32);
}

Test(catalog, sound)
{
    add_sound();
    put_text("config.json",
             "{\"model_type\": \"deepseek_v4\", \"hidden_size\": 64, \"n_routed_experts\": 3,"
             "\"moe_intermediate_size\": 32, \"num_hidden_layers\": 2, \"n_shared_experts\": 0}");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_eq(mp_catalog_check(&catalog, &err), 0);
}

Test(catalog, missing_tensors)
{
    add_sound();
    drop_tensor("layers.0.ffn.experts.1.w3.weight");
    drop_tensor("layers.1.ffn.experts.0.w1.scale");
    drop_tensor("layers.1.ffn.experts.2.w2.weight");
    drop_tensor("layers.1.ffn.experts.2.w2.scale");
    EXPECT_PROBLEMS("layers.0.ffn.experts.1.w3.weight: missing",
                    "layers.1.ffn.experts.0.w1: no scale for the weight",
                    "layers.1.ffn.experts.2.w2.weight: missing",
                    "layers.1.ffn.experts.2.w2: no scale for the weight");
    cr_assert_eq(mp_catalog_check(&catalog, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message,
                     "layers.0.ffn.experts.1.w3.weight: missing (and 3 more problems)");
}

Test(catalog, a_gap_in_the_numbers)
{
    add_fp4_expert("layers.0", 0, 64, 32);
    add_fp4_expert("layers.0", 2, 64, 32);
    EXPECT_PROBLEMS("layers.0.ffn.experts.1: missing, all of it");
    cr_assert_eq(catalog.num_experts, 3);
    cr_assert_eq(mp_catalog_check(&catalog, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "layers.0.ffn.experts.1: missing, all of it");
}

Test(catalog, odd_tensors)
{
    add_sound();
    change_tensor("layers.0.ffn.experts.1.w1.weight", MP_I8, 32, 31);
    change_tensor("layers.0.ffn.experts.2.w2.weight", MP_U8, 64, 16);
    change_tensor("layers.1.ffn.experts.1.w3.scale", MP_F8_E8M0, 32, 3);
    EXPECT_PROBLEMS("layers.0.ffn.experts.1.w1.weight: shape [32, 31], expected [32, 32] for 32 "
                    "rows and K = 64",
                    "layers.0.ffn.experts.2.w2.weight: U8, expected I8 as in the rest of the layer",
                    "layers.1.ffn.experts.1.w3.scale: shape [32, 3], expected [32, 2] for K = 64 "
                    "in blocks of 32");
}

Test(catalog, a_scale_under_two_names)
{
    add_sound();
    add_tensor(MP_F8_E8M0, 32, 2, "layers.0.ffn.experts.1.w1.weight_scale_inv");
    EXPECT_PROBLEMS("layers.0.ffn.experts.1.w1.weight_scale_inv: a second scale beside "
                    "\"layers.0.ffn.experts.1.w1.scale\"");
}

Test(catalog, names_in_no_known_form)
{
    add_sound();
    add_tensor(MP_F32, 32, 0, "layers.0.ffn.experts.1.w1.zeros");
    add_tensor(MP_BF16, 3, 64, "layers.1.ffn.shared_expert.0.w1.weight");
    EXPECT_PROBLEMS(
        "layers.0.ffn.experts.1.w1.zeros: named like an expert's tensor, in no known form",
        "layers.1.ffn.shared_expert.0.w1.weight: named like an expert's tensor, in no known form");
    cr_assert_eq(catalog.expert_tensors, 36, "they are none");
}

Test(catalog, another_naming)
{
    add_sound();
    add_bf16_expert("layers.1", 3, 64, 32);
    EXPECT_PROBLEMS(
        "layers.1.mlp.experts.3.down_proj.weight: named differently from the rest of layer "
        "layers.1",
        "layers.1.mlp.experts.3.gate_proj.weight: named differently from the rest of layer "
        "layers.1",
        "layers.1.mlp.experts.3.up_proj.weight: named differently from the rest of layer layers.1");
}

Test(catalog, one_layer_twice)
{
    add_sound();
    add_fp4_layer("model.layers.1", 3, 64, 32);
    EXPECT_PROBLEMS("model.layers.1: the same layer as layers.1");
}

Test(catalog, config_of_another_model)
{
    add_sound();
    put_text("config.json",
             "{\"model_type\": \"qwen3_moe\", \"hidden_size\": 96, \"num_experts\": 4,"
             "\"moe_intermediate_size\": 48, \"num_hidden_layers\": 4, \"n_shared_experts\": 2,"
             "\"first_k_dense_replace\": 1}");
    EXPECT_PROBLEMS(
        "config.json: hidden_size is 96, tensors say 64",
        "config.json: moe_intermediate_size is 48, tensors say 32",
        "layer 2: no experts, config.json says 4 layers",
        "layer 3: no experts, config.json says 4 layers", "layers.0: 3 experts, config.json says 4",
        "layers.0: no shared expert, config.json says 2", "layers.1: 3 experts, config.json says 4",
        "layers.1: no shared expert, config.json says 2");
    cr_assert_str_eq(catalog.family, "deepseek_v4", "names decide");
    cr_assert_eq(catalog.notes.count, 2, "and layer 0 is not dense");
    cr_assert_str_eq(catalog.notes.text[1], "model_type \"qwen3_moe\" usually has "
                                            "\"mlp.experts.N.gate_proj\", not "
                                            "\"ffn.experts.N.w1\"");
}

/* Its experts may be fewer, and config.json does not count the block. */
Test(catalog, an_mtp_block_of_its_own_kind)
{
    add_sound();
    add_fp4_layer("mtp.0", 2, 64, 32);
    put_text("config.json", "{\"n_routed_experts\": 3, \"num_hidden_layers\": 2}");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_eq(catalog.layers[2].num_experts, 2);
}

Test(catalog, shared_experts_of_another_width)
{
    add_bf16_expert("model.layers.0", 0, 64, 48);
    add_tensor(MP_BF16, 100, 64, "model.layers.0.mlp.shared_experts.gate_proj.weight");
    add_tensor(MP_BF16, 100, 64, "model.layers.0.mlp.shared_experts.up_proj.weight");
    add_tensor(MP_BF16, 64, 100, "model.layers.0.mlp.shared_experts.down_proj.weight");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_eq(catalog.layers[0].shared_width, 100);
    cr_assert_eq(catalog.num_shared_experts, 0, "no number of routed ones");
    put_text("config.json", "{\"shared_expert_intermediate_size\": 96}");
    EXPECT_PROBLEMS("model.layers.0.mlp.shared_experts: 100 wide, config.json says 96");
    change_tensor("model.layers.0.mlp.shared_experts.gate_proj.weight", MP_BF16, 96, 64);
    change_tensor("model.layers.0.mlp.shared_experts.up_proj.weight", MP_BF16, 96, 64);
    change_tensor("model.layers.0.mlp.shared_experts.down_proj.weight", MP_BF16, 64, 96);
    put_text("config.json", "{\"n_shared_experts\": 1}");
    EXPECT_PROBLEMS("model.layers.0.mlp.shared_experts: 96 wide, expected 1 expert of 48");
    drop_tensor("model.layers.0.mlp.shared_experts.up_proj.weight");
    put_text("config.json", "{\"n_shared_experts\": 2}");
    EXPECT_PROBLEMS("model.layers.0.mlp.shared_experts.up_proj.weight: missing");
}

/* ------------------------------------------------------------------------
 * What is promised
 */

Test(catalog, layers_that_nobody_promises)
{
    add_sound();
    put_text("config.json", "{\"model_type\": \"foo\", \"num_hidden_layers\": 3}");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_eq(catalog.notes.count, 1);
    cr_assert_str_eq(catalog.notes.text[0],
                     "layer 2: no experts; config.json does not say which layers have some");
    put_text("config.json", "{\"model_type\": \"deepseek_v4\", \"num_hidden_layers\": 3}");
    EXPECT_PROBLEMS("layer 2: no experts, config.json says 3 layers");
}

/* An export that lost a layer, and an index that agrees: nothing of it is there. */
Test(catalog, layers_that_are_lost)
{
    for (unsigned layer = 0; layer < 4; layer += layer + 1)
        add_bf16_expert(layer == 0   ? "model.layers.0"
                        : layer == 1 ? "model.layers.1"
                                     : "model.layers.3",
                        0, 64, 48);
    put_text("config.json", "{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 4}");
    EXPECT_PROBLEMS("layer 2: no tensors, config.json says 4 layers");
    add_tensor(MP_BF16, 48, 64, "model.layers.2.mlp.gate_proj.weight");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0);
    cr_assert_str_eq(catalog.notes.text[0],
                     "layer 2: no experts; config.json does not say which layers have some");
}

Test(catalog, promises)
{
    add_sound();
    put_text("config.json", "{\"num_nextn_predict_layers\": 1}");
    expect_model();
    cr_assert_eq(catalog.promises.count, 1);
    cr_assert_str_eq(
        catalog.promises.text[0],
        "config.json says 1 MTP blocks (num_nextn_predict_layers or the like), there are none");
    add_fp4_layer("mtp.0", 2, 64, 32);
    expect_model();
    cr_assert_eq(catalog.promises.count, 0);
}

/* ------------------------------------------------------------------------
 * Towers
 */

static void add_towers(void)
{
    add_bf16_expert("thinker.model.layers.0", 0, 64, 48);
    add_bf16_expert("thinker.model.layers.0", 1, 64, 48);
    for (unsigned e = 0; e < 3; e++)
        add_bf16_expert("talker.model.layers.0", e, 32, 24);
    add_tensor(MP_BF16, 3, 32, "talker.model.layers.0.mlp.gate.weight");
    put_text("config.json",
             "{\"model_type\": \"qwen3_omni_moe\", \"thinker_config\": {\"text_config\": "
             "{\"num_experts\": 2, \"num_experts_per_tok\": 1}}, \"talker_config\": "
             "{\"text_config\": {\"num_experts\": 3, \"num_experts_per_tok\": 2}}}");
    expect_model();
}

Test(catalog, two_models_in_one)
{
    add_towers();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    cr_assert_eq(catalog.num_towers, 2);
    cr_assert(catalog.towers[0].hidden_size == 32 && catalog.towers[0].num_experts == 3);
    cr_assert(catalog.towers[1].hidden_size == 64 && catalog.towers[1].num_experts == 2);
    cr_assert_eq(mp_catalog_check(&catalog, &err), MP_ERR_USAGE);
    cr_assert_eq(mp_catalog_choose(&catalog, "0", &err), MP_ERR_USAGE);
    cr_assert_str_eq(err.message, "talker and thinker are separate models: name layers of one, as "
                                  "--layers talker.model.layers.0");
    cr_assert_eq(mp_catalog_choose(&catalog, "thinker.model.layers.0", &err), 0);
    cr_assert_eq(mp_catalog_check(&catalog, &err), 0);
    cr_assert_eq(catalog.num_layers, 1);
    expect_sizes(64, 48, 2, 0);
    cr_assert_eq(catalog.config.experts_per_token, 1);
    cr_assert_str_eq(catalog.config.model_type, "qwen3_omni_moe_thinker");
}

Test(catalog, the_other_of_two_models)
{
    add_towers();
    cr_assert_eq(mp_catalog_choose(&catalog, "talker.model.layers.0", &err), 0);
    expect_sizes(32, 24, 3, 0);
    cr_assert_str_eq(catalog.config.model_type, "qwen3_omni_moe_talker");
}

/* ------------------------------------------------------------------------
 * Sizes are a vote
 */

/* One odd expert does not change the sizes that config.json and another expert have. */
Test(catalog, one_odd_expert_is_the_odd_one)
{
    add_fp4_expert("layers.0", 0, 96, 32);
    add_fp4_expert("layers.0", 1, 64, 32);
    put_text("config.json", "{\"hidden_size\": 64, \"moe_intermediate_size\": 32}");
    expect_model();
    expect_sizes(64, 32, 2, 0);
    cr_assert_eq(catalog.problems.count, 6);
    for (int i = 0; i < 6; i++)
        cr_assert_not_null(strstr(catalog.problems.text[i], "layers.0.ffn.experts.0."), "%s",
                           catalog.problems.text[i]);
    cr_assert_str_eq(catalog.problems.text[0], "layers.0.ffn.experts.0.w1.weight: shape [32, 48], "
                                               "expected [32, 32] for 32 rows and K = 64");
}

/* Two that agree with each other outvote config.json. */
Test(catalog, config_is_outvoted)
{
    add_fp4_layer("layers.0", 2, 96, 32);
    add_fp4_expert("layers.0", 2, 64, 32);
    put_text("config.json", "{\"hidden_size\": 64, \"moe_intermediate_size\": 32}");
    expect_model();
    expect_sizes(96, 32, 3, 0);
    cr_assert_str_eq(catalog.problems.text[0], "config.json: hidden_size is 64, tensors say 96");
    cr_assert_eq(catalog.problems.count, 1 + 6);
}

/* An expert whose matrices do not go together has no vote. */
Test(catalog, a_torn_expert_has_no_vote)
{
    add_fp4_layer("layers.0", 2, 64, 32);
    change_tensor("layers.0.ffn.experts.0.w2.weight", MP_I8, 96, 16);
    EXPECT_PROBLEMS("layers.0.ffn.experts.0.w2.weight: shape [96, 16], expected [64, 16] for 64 "
                    "rows and K = 32");
}

/* ------------------------------------------------------------------------
 * Nothing to work with
 */

static void expect_fails(mp_code code, const char *message)
{
    cr_assert_eq(open_model(), code, "%s", err.message);
    cr_assert_eq(err.code, code);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(catalog.layers);
}

Test(catalog, no_experts)
{
    add_tensor(MP_BF16, 100, 64, "model.embed_tokens.weight");
    add_tensor(MP_BF16, 64, 0, "model.norm.weight");
    expect_fails(MP_ERR_INPUT, "no expert weights among 2 tensors");
    add_tensor(MP_BF16, 2, 64, "model.layers.0.mlp.experts.up_gate_proj");
    expect_fails(MP_ERR_INPUT, "model.layers.0.mlp.experts.up_gate_proj: named like an expert's "
                               "tensor, in no known form");
}

Test(catalog, an_unknown_form)
{
    add_tensor(MP_I32, 32, 8, "layers.0.ffn.experts.0.w1.weight");
    add_tensor(MP_I32, 32, 8, "layers.0.ffn.experts.0.w3.weight");
    add_tensor(MP_I32, 64, 4, "layers.0.ffn.experts.0.w2.weight");
    expect_fails(MP_ERR_UNSUPPORTED,
                 "layers.0.ffn.experts.0: w1 is I32 [32, 8], w2 is I32 [64, 4]: "
                 "no known storage form");
}

Test(catalog, one_layer_of_an_unknown_form)
{
    add_fp4_layer("layers.0", 1, 64, 32);
    add_tensor(MP_I32, 32, 8, "layers.1.ffn.experts.0.w1.weight");
    add_tensor(MP_I32, 32, 8, "layers.1.ffn.experts.0.w3.weight");
    add_tensor(MP_I32, 64, 4, "layers.1.ffn.experts.0.w2.weight");
    EXPECT_PROBLEMS("layers.1.ffn.experts.0: w1 is I32 [32, 8], w2 is I32 [64, 4]: no known "
                    "storage form");
}

Test(catalog, gates_and_downs_that_disagree)
{
    add_fp4_layer("layers.0", 1, 64, 32);
    change_tensor("layers.0.ffn.experts.0.w2.weight", MP_I8, 96, 16);
    expect_fails(MP_ERR_INPUT,
                 "layers.0.ffn.experts.0: w1 is I8 [32, 32] with F8_E8M0 [32, 2] scales, w2 is I8 "
                 "[96, 16] with F8_E8M0 [64, 1] scales: these do not fit together");
}

Test(catalog, wild_numbers)
{
    add_sound();
    add_tensor(MP_I8, 32, 32, "layers.0.ffn.experts.39.w1.weight");
    add_tensor(MP_I8, 32, 32, "layers.1.ffn.experts.36.w1.weight");
    add_tensor(MP_I8, 32, 32, "layers.2.ffn.experts.18446744073709551615.w1.weight");
    EXPECT_PROBLEMS(
        "layers.0.ffn.experts.39.w1.weight: expert 39, but the checkpoint has 39 tensors",
        "layers.1.ffn.experts.36.w1.weight: expert 36, and 3 in other layers, but the checkpoint "
        "has 39 tensors",
        "layers.2.ffn.experts.18446744073709551615.w1.weight: expert 18446744073709551615, but the "
        "checkpoint has 39 tensors");
    cr_assert_eq(catalog.layers[0].num_experts, 3);
    cr_assert_eq(catalog.layers[1].num_experts, 3);
}

Test(catalog, a_shared_expert_alone)
{
    add_sound();
    add_tensor(MP_F8_E4M3, 32, 64, "layers.2.ffn.shared_experts.w1.weight");
    EXPECT_PROBLEMS("layers.2: a shared expert, but no routed one",
                    "layers.2.ffn.shared_experts.w3.weight: missing",
                    "layers.2.ffn.shared_experts.w2.weight: missing");
}

Test(catalog, keeps_the_first_problems_and_counts_all)
{
    add_fp4_expert("layers.0", 0, 64, 32);
    for (unsigned e = 1; e < 30; e++)
        add_tensor(MP_I8, 32, 32, "layers.0.ffn.experts.%u.w1.weight", e);
    expect_model();
    cr_assert_eq(catalog.problems.count, 29 * 5);
    cr_assert_not_null(catalog.problems.text[MP_PROBLEMS_KEPT - 1]);
    cr_assert_eq(mp_catalog_check(&catalog, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "layers.0.ffn.experts.1.w1: no scale for the weight (and 144 "
                                  "more problems)");
}

/* ------------------------------------------------------------------------
 * The table of families
 */

Test(catalog, families)
{
    size_t count;
    const mp_family *families = mp_families(&count);

    cr_assert_eq(count, 15);
    for (size_t i = 0; i < count; i++)
        cr_assert_eq(mp_family_find(families[i].name), &families[i]);
    cr_assert_null(mp_family_find("deepseek"));
    cr_assert_str_eq(mp_projection_name(MP_GATE), "gate");
    cr_assert_str_eq(mp_projection_name(MP_UP), "up");
    cr_assert_str_eq(mp_projection_name(MP_DOWN), "down");
}
