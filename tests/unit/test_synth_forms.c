/* SPDX-License-Identifier: Apache-2.0 */
/* Synthetic checkpoints of every family in every format: the reader finds no fault with
 * them, and decodes all to the same weights, up to the format's precision. */
#include "synth_scratch.h"

#include <math.h>

#include "base/json.h"
#include "checkpoint/families.h"
#include "checkpoint/matrix.h"
#include "synth/synth_values.h"

TestSuite(synth_forms, .init = make_scratch, .fini = remove_scratch);

static float shapes[MP_SYNTH_SHAPES];

/* Bounds of the relative root mean square error of each scheme. Another row, scale, nibble
 * order, or half of a stack makes it 0.3 or more. */
static const struct {
    double low, high;
} errors[MP_SCHEME_COUNT] = {
    [MP_SCHEME_BF16] = {0.0005, 0.003},       [MP_SCHEME_MXFP4] = {0.04, 0.25},
    [MP_SCHEME_MXFP8] = {0.005, 0.04},        [MP_SCHEME_FP8_BLOCK] = {0.005, 0.04},
    [MP_SCHEME_FP8_CHANNEL] = {0.005, 0.04},  [MP_SCHEME_NVFP4] = {0.03, 0.15},
    [MP_SCHEME_INT8_CHANNEL] = {0.003, 0.05}, [MP_SCHEME_INT4_GROUP] = {0.02, 0.2},
};

/* Small, and no size a multiple of another. */
static mp_synth_options small(const char *family)
{
    const mp_family *model = mp_family_find(family);

    return (mp_synth_options){
        .family = family,
        .hidden_size = 160,
        .intermediate_size = 96,
        .num_experts = 3,
        .num_shared_experts = model->shared ? 2 : 0,
        .top_k = 2,
        .num_layers = 2,
        .vocab_size = 50,
        .routed_scaling_factor = 1,
        .seed = 5,
    };
}

/* All rows of a matrix, decoded. */
static float *decode(const mp_storage *storage, const mp_matrix *matrix, uint64_t rows,
                     uint64_t cols)
{
    void *weight = malloc(rows * mp_storage_row_bytes(storage, cols));
    void *scale = malloc(rows * mp_storage_scale_row_bytes(storage, cols) + 1);
    float *out = malloc(rows * cols * sizeof(float));
    mp_rows in = {
        .scheme = storage->scheme,
        .scale_dtype = storage->scale_dtype,
        .block_rows = storage->block_rows,
        .block_cols = storage->block_cols,
        .rows = rows,
        .cols = cols,
        .weight = weight,
        .scale = storage->has_scale ? scale : NULL,
        .global_divides = storage->global_divides,
    };

    cr_assert_eq(mp_matrix_global(&catalog, matrix, &in.global_scale, &err), 0, "%s", err.message);
    cr_assert_eq(mp_matrix_check_offset(&catalog, matrix, &err), 0, "%s", err.message);
    cr_assert_eq(mp_matrix_read_rows(&catalog, storage, matrix, cols, 0, rows, weight, scale, &err),
                 0, "%s", err.message);
    cr_assert_eq(mp_decode_rows(&in, out, &err), 0, "%s", err.message);
    free(weight);
    free(scale);
    return out;
}

/* Relative error of stored values against those that the matrix's name stands for. */
static double error_of(const float *stored, const char *name, uint64_t rows, uint64_t cols)
{
    uint64_t key = mp_synth_key(5, name);
    float *columns = malloc(2 * cols * sizeof(float)), *row = columns + cols;
    mp_synth_values values = {shapes, columns, key};
    double error = 0, signal = 0;

    mp_synth_columns(key, cols, columns);
    for (uint64_t r = 0; r < rows; r++) {
        mp_synth_row(&values, r, 0, cols, row);
        for (uint64_t k = 0; k < cols; k++) {
            double difference = (double)stored[r * cols + k] - (double)row[k];

            error += difference * difference;
            signal += (double)row[k] * row[k];
        }
    }
    free(columns);
    return sqrt(error / signal);
}

static void check_matrix(const mp_storage *storage, const mp_matrix *matrix, const char *name,
                         uint64_t rows, uint64_t cols)
{
    float *stored = decode(storage, matrix, rows, cols);
    double error = error_of(stored, name, rows, cols);

    cr_assert(error > errors[storage->scheme].low && error < errors[storage->scheme].high,
              "%s as %s: %g", name, mp_scheme_name(storage->scheme), error);
    free(stored);
}

static void check_expert(const mp_storage *storage, const mp_expert *expert, const char *prefix,
                         const char *const names[MP_PROJECTIONS], uint64_t hidden, uint64_t width)
{
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        char name[256];

        snprintf(name, sizeof name, "%s.%s.weight", prefix, names[p]);
        check_matrix(storage, &expert->matrix[p], name, p == MP_DOWN ? hidden : width,
                     p == MP_DOWN ? width : hidden);
    }
}

static void check_layer(const mp_moe_layer *layer, const mp_synth_options *o)
{
    char prefix[200];

    for (uint32_t e = 0; e < layer->num_experts; e++) {
        snprintf(prefix, sizeof prefix, "%s.%s.experts.%u", layer->prefix, layer->naming->block, e);
        check_expert(&layer->storage, &layer->experts[e], prefix, layer->naming->projection, 160,
                     96);
    }
    cr_assert_eq(layer->has_shared, o->num_shared_experts > 0);
    if (!layer->has_shared)
        return;
    snprintf(prefix, sizeof prefix, "%s.%s.%s", layer->prefix, layer->naming->block,
             layer->shared_name);
    check_expert(&layer->shared_storage, &layer->shared, prefix, layer->naming->shared_projection,
                 strcmp(o->family, "kimi_k3") == 0 ? 320 : 160, 96 * o->num_shared_experts);
}

Test(synth_forms, every_family_reads_back_in_every_format, .timeout = 60)
{
    unsigned checked = 0;

    mp_synth_shapes(shapes);
    for (size_t f = 0; mp_synth_family_name(f); f++) {
        mp_synth_options o = small(mp_synth_family_name(f));

        o.num_layers = 1;
        for (size_t i = 0; mp_synth_scheme(o.family, i, &o.scheme, &o.style); i++, checked++) {
            char name[64];

            snprintf(name, sizeof name, "%zu-%zu", f, i);
            make_and_open(&o, name);
            cr_assert_str_eq(catalog.family, o.family);
            cr_assert_eq(catalog.num_layers, 1);
            cr_assert_eq(catalog.num_experts, 3);
            cr_assert_eq(catalog.layers[0].storage.scheme, o.scheme);
            check_layer(&catalog.layers[0], &o);
        }
    }
    cr_assert_gt(checked, 150);
}

/* ------------------------------------------------------------------------
 * Particulars
 */

static void expect(const char *name, mp_dtype dtype, const char *shape)
{
    const mp_tensor *tensor = mp_checkpoint_find(&catalog.checkpoint, name);
    char text[MP_SHAPE_TEXT];

    cr_assert_not_null(tensor, "no tensor %s", name);
    cr_assert_eq(tensor->dtype, dtype, "%s is %s", name, mp_dtype_name(tensor->dtype));
    cr_assert_str_eq(mp_shape_text(tensor->shape, tensor->rank, text), shape, "%s", name);
}

static void open_as(const char *family, mp_scheme scheme, mp_synth_style style)
{
    mp_synth_options o = small(family);

    o.scheme = scheme;
    o.style = style;
    o.num_mtp = strcmp(family, "deepseek_v4") == 0 || strcmp(family, "qwen3_5_moe") == 0;
    if (mp_path_exists(in_dir("one")))
        cr_assert_eq(mp_remove_tree(in_dir("one"), &err), 0, "%s", err.message);
    make_and_open(&o, "one");
}

Test(synth_forms, stacks_have_the_shapes_of_their_families)
{
#define AT "model.language_model.layers.1.mlp."
    open_as("qwen3_5_moe", MP_SCHEME_BF16, MP_STYLE_USUAL);
    expect(AT "experts.gate_up_proj", MP_BF16, "[3, 192, 160]");
    expect(AT "experts.down_proj", MP_BF16, "[3, 160, 96]");
    expect(AT "shared_expert_gate.weight", MP_BF16, "[1, 160]");
    expect("mtp.layers.0.mlp.experts.gate_up_proj", MP_BF16, "[3, 192, 160]");
    open_as("qwen3_vl_moe", MP_SCHEME_BF16, MP_STYLE_USUAL);
    expect(AT "experts.gate_up_proj", MP_BF16, "[3, 160, 192]");
    expect(AT "experts.down_proj", MP_BF16, "[3, 96, 160]");
#undef AT
#define AT "model.layers.0.mlp."
    open_as("gpt_oss", MP_SCHEME_MXFP4, MP_STYLE_USUAL);
    expect(AT "experts.gate_up_proj_blocks", MP_U8, "[3, 192, 5, 16]");
    expect(AT "experts.gate_up_proj_scales", MP_U8, "[3, 192, 5]");
    expect(AT "experts.gate_up_proj_bias", MP_BF16, "[3, 192]");
    expect(AT "experts.down_proj_blocks", MP_U8, "[3, 160, 3, 16]");
    expect(AT "experts.down_proj_scales", MP_U8, "[3, 160, 3]");
    expect(AT "experts.down_proj_bias", MP_BF16, "[3, 160]");
    expect(AT "router.weight", MP_BF16, "[3, 160]");
    expect(AT "router.bias", MP_BF16, "[3]");
    open_as("gpt_oss", MP_SCHEME_BF16, MP_STYLE_USUAL);
    expect(AT "experts.gate_up_proj", MP_BF16, "[3, 160, 192]");
    expect(AT "experts.gate_up_proj_bias", MP_BF16, "[3, 192]");
#undef AT
}

Test(synth_forms, matrices_have_the_tensors_of_their_formats)
{
#define AT "model.layers.1.mlp.experts.2.gate_proj."
    open_as("qwen3_moe", MP_SCHEME_NVFP4, MP_STYLE_MODELOPT);
    expect(AT "weight", MP_U8, "[96, 80]");
    expect(AT "weight_scale", MP_F8_E4M3, "[96, 10]");
    expect(AT "weight_scale_2", MP_F32, "[]");
    expect(AT "input_scale", MP_F32, "[]");
    open_as("qwen3_moe", MP_SCHEME_NVFP4, MP_STYLE_COMPRESSED_TENSORS);
    expect(AT "weight_packed", MP_U8, "[96, 80]");
    expect(AT "weight_scale", MP_F8_E4M3, "[96, 10]");
    expect(AT "weight_global_scale", MP_F32, "[1]");
    expect(AT "input_global_scale", MP_F32, "[1]");
    open_as("qwen3_moe", MP_SCHEME_MXFP4, MP_STYLE_COMPRESSED_TENSORS);
    expect(AT "weight_packed", MP_U8, "[96, 80]");
    expect(AT "weight_scale", MP_U8, "[96, 5]");
    open_as("qwen3_moe", MP_SCHEME_MXFP8, MP_STYLE_COMPRESSED_TENSORS);
    expect(AT "weight", MP_F8_E4M3, "[96, 160]");
    expect(AT "weight_scale", MP_U8, "[96, 5]");
    open_as("qwen3_moe", MP_SCHEME_FP8_CHANNEL, MP_STYLE_USUAL);
    expect(AT "weight", MP_F8_E4M3, "[96, 160]");
    expect(AT "weight_scale", MP_F32, "[96, 1]");
    open_as("qwen3_moe", MP_SCHEME_FP8_BLOCK, MP_STYLE_COMPRESSED_TENSORS);
    expect(AT "weight_scale", MP_F32, "[1, 2]");
    open_as("qwen3_moe", MP_SCHEME_INT8_CHANNEL, MP_STYLE_MODELSLIM);
    expect(AT "weight", MP_I8, "[96, 160]");
    expect(AT "weight_scale", MP_F32, "[96, 1]");
    expect(AT "weight_offset", MP_F32, "[96, 1]");
    open_as("qwen3_moe", MP_SCHEME_MXFP4, MP_STYLE_MODELSLIM);
    expect(AT "weight", MP_U8, "[96, 80]");
    expect(AT "weight_scale", MP_U8, "[96, 5]");
#undef AT
#define AT "language_model.model.layers.1."
    open_as("kimi_k2", MP_SCHEME_INT4_GROUP, MP_STYLE_USUAL);
    expect(AT "mlp.experts.0.down_proj.weight_packed", MP_I32, "[160, 12]");
    expect(AT "mlp.experts.0.down_proj.weight_scale", MP_BF16, "[160, 3]");
    expect(AT "mlp.experts.0.down_proj.weight_shape", MP_I32, "[2]");
    expect(AT "mlp.shared_experts.gate_proj.weight", MP_BF16, "[192, 160]");
    open_as("kimi_k3", MP_SCHEME_MXFP4, MP_STYLE_USUAL);
    expect(AT "block_sparse_moe.experts.0.w2.weight_packed", MP_U8, "[160, 48]");
    expect(AT "block_sparse_moe.experts.0.w2.weight_scale", MP_U8, "[160, 3]");
    expect(AT "block_sparse_moe.shared_experts.up_proj.weight", MP_BF16, "[192, 320]");
    expect(AT "block_sparse_moe.gate.weight", MP_BF16, "[3, 320]");
    expect(AT "block_sparse_moe.routed_expert_down_proj.weight", MP_BF16, "[160, 320]");
    expect(AT "block_sparse_moe.routed_expert_up_proj.weight", MP_BF16, "[320, 160]");
    open_as("minimax_m3", MP_SCHEME_MXFP8, MP_STYLE_USUAL);
    expect(AT "block_sparse_moe.experts.0.w2.weight_scale_inv", MP_U8, "[160, 3]");
    expect(AT "block_sparse_moe.gate.weight", MP_F32, "[3, 160]");
    expect(AT "block_sparse_moe.e_score_correction_bias", MP_F32, "[3]");
    open_as("llama4", MP_SCHEME_BF16, MP_STYLE_USUAL);
    expect(AT "feed_forward.experts.gate_up_proj", MP_BF16, "[3, 160, 192]");
    expect(AT "feed_forward.router.weight", MP_BF16, "[3, 160]");
    expect(AT "feed_forward.shared_expert.down_proj.weight", MP_BF16, "[160, 192]");
#undef AT
}

/* ModelOpt leaves the MTP block as it was, and V4's dense weights in FP8. */
Test(synth_forms, modelopt_leaves_the_mtp_block_of_v4)
{
    open_as("deepseek_v4", MP_SCHEME_NVFP4, MP_STYLE_MODELOPT);
    expect("layers.1.ffn.experts.2.w2.weight_scale_2", MP_F32, "[]");
    expect("layers.1.ffn.shared_experts.w2.scale", MP_F8_E8M0, "[2, 2]");
    expect("mtp.0.ffn.experts.2.w2.scale", MP_F8_E8M0, "[160, 3]");
    cr_assert_eq(catalog.layers[2].storage.scheme, MP_SCHEME_MXFP4);
}

static float scalar(const char *name)
{
    float *value = read_tensor(&catalog.checkpoint, name), copy = *value;

    free(value);
    return copy;
}

/* The largest block scale of a matrix is what E4M3 has largest: 448, code 0x7e. */
static unsigned largest_scale(const char *name, unsigned count)
{
    uint8_t *scales = read_tensor(&catalog.checkpoint, name);
    unsigned largest = 0;

    for (unsigned i = 0; i < count; i++)
        largest = scales[i] > largest ? scales[i] : largest;
    free(scales);
    return largest;
}

Test(synth_forms, gate_and_up_share_the_global_scale_of_modelopt)
{
#define AT "model.layers.0.mlp.experts.1."
    open_as("qwen3_moe", MP_SCHEME_NVFP4, MP_STYLE_MODELOPT);
    cr_assert_eq(scalar(AT "gate_proj.weight_scale_2"), scalar(AT "up_proj.weight_scale_2"));
    cr_assert_neq(scalar(AT "gate_proj.weight_scale_2"), scalar(AT "down_proj.weight_scale_2"));
    unsigned gate = largest_scale(AT "gate_proj.weight_scale", 960);
    unsigned up = largest_scale(AT "up_proj.weight_scale", 960);
    cr_assert_eq(gate > up ? gate : up, 0x7e);
    cr_assert_eq(largest_scale(AT "down_proj.weight_scale", 960), 0x7e);

    open_as("qwen3_moe", MP_SCHEME_NVFP4, MP_STYLE_COMPRESSED_TENSORS);
    cr_assert_neq(scalar(AT "gate_proj.weight_global_scale"),
                  scalar(AT "up_proj.weight_global_scale"));
    cr_assert_eq(largest_scale(AT "gate_proj.weight_scale", 960), 0x7e);
    cr_assert_eq(largest_scale(AT "up_proj.weight_scale", 960), 0x7e);
#undef AT
}

Test(synth_forms, int4_says_its_shape)
{
    open_as("qwen3_moe", MP_SCHEME_INT4_GROUP, MP_STYLE_USUAL);
    int32_t *shape =
        read_tensor(&catalog.checkpoint, "model.layers.0.mlp.experts.1.down_proj.weight_shape");
    cr_assert(shape[0] == 160 && shape[1] == 96);
    free(shape);
}

static json_t *load(const char *name)
{
    json_t *json = NULL;

    cr_assert_eq(mp_json_load(in_dir(name), 1 << 20, &json, &err), 0, "%s", err.message);
    return json;
}

static const char *text_at(json_t *json, const char *outer, const char *inner)
{
    json_t *object = outer ? json_object_get(json, outer) : json;

    return json_string_value(json_object_get(object, inner));
}

Test(synth_forms, modelslim_describes_every_tensor)
{
    open_as("glm_moe", MP_SCHEME_INT8_CHANNEL, MP_STYLE_MODELSLIM);
    json_t *description = load("one/quant_model_description.json");
    json_t *config = load("one/config.json");
#define AT "model.layers.0.mlp."
    cr_assert_eq(json_object_size(description), catalog.checkpoint.num_tensors + 2);
    cr_assert_str_eq(text_at(description, NULL, AT "experts.0.up_proj.weight_offset"),
                     "W8A8_DYNAMIC");
    cr_assert_str_eq(text_at(description, NULL, AT "shared_experts.up_proj.weight"),
                     "W8A8_DYNAMIC");
    cr_assert_str_eq(text_at(description, NULL, AT "gate.weight"), "FLOAT");
    cr_assert_null(json_object_get(config, "quantization_config"));
#undef AT
    json_decref(description);
    json_decref(config);
}

Test(synth_forms, modelopt_has_a_config_of_its_own)
{
    open_as("qwen3_moe", MP_SCHEME_NVFP4, MP_STYLE_MODELOPT);
    json_t *config = load("one/hf_quant_config.json");
    cr_assert_str_eq(text_at(config, "quantization", "quant_algo"), "NVFP4");
    json_decref(config);
    open_as("qwen3_moe", MP_SCHEME_NVFP4, MP_STYLE_COMPRESSED_TENSORS);
    cr_assert_not(mp_path_exists(in_dir("one/hf_quant_config.json")));
}

/* Nested where the family's is; K2 in FP8 is as flat as DeepSeek V3. */
Test(synth_forms, config_is_where_the_family_has_it)
{
    open_as("kimi_k2", MP_SCHEME_INT4_GROUP, MP_STYLE_USUAL);
    json_t *config = load("one/config.json");
    json_t *text = json_object_get(config, "text_config");
    cr_assert_str_eq(text_at(config, NULL, "model_type"), "kimi_k25");
    cr_assert_str_eq(text_at(text, "quantization_config", "format"), "pack-quantized");
    cr_assert_eq(json_integer_value(json_object_get(text, "n_routed_experts")), 3);
    json_decref(config);

    open_as("kimi_k2", MP_SCHEME_FP8_BLOCK, MP_STYLE_USUAL);
    config = load("one/config.json");
    cr_assert_null(json_object_get(config, "text_config"));
    cr_assert_str_eq(text_at(config, NULL, "model_type"), "kimi_k2");
    cr_assert_str_eq(text_at(config, "quantization_config", "quant_method"), "fp8");
    cr_assert_eq(json_integer_value(json_object_get(config, "n_routed_experts")), 3);
    json_decref(config);
}

/* Tiles end inside stacked matrices: 513 rows of 4096 bytes take more than a tile. */
Test(synth_forms, tiles_fit_together)
{
    mp_synth_options o = small("qwen3_vl_moe");

    o.hidden_size = 513;
    o.intermediate_size = 1030;
    o.num_layers = 1;
    o.scheme = MP_SCHEME_BF16;
    make_and_open(&o, "wide");
    mp_synth_shapes(shapes);
    for (uint32_t e = 0; e < 3; e++) {
        char name[256];

        snprintf(name, sizeof name, "model.language_model.layers.0.mlp.experts.%u.up_proj.weight",
                 e);
        check_matrix(&catalog.layers[0].storage, &catalog.layers[0].experts[e].matrix[MP_UP], name,
                     1030, 513);
    }
}
