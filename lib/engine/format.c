/* SPDX-License-Identifier: Apache-2.0 */
/* The scheme of routed experts, as config.json tells it without the tensors. */
#include "engine/format.h"

#include <stdio.h>
#include <string.h>

/* Objects that may hold the language model's facts, outermost first. */
static const char *const nested_keys[] = {"text_config", "language_config", "llm_config"};

static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

const json_t *mp_config_find(const json_t *root, const char *key)
{
    const json_t *value = member(root, key);

    for (size_t i = 0; !value && i < sizeof nested_keys / sizeof nested_keys[0]; i++)
        value = member(member(root, nested_keys[i]), key);
    return value;
}

/* A string member, or "". */
static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(member(object, key));

    return text ? text : "";
}

static bool is(const char *text, const char *word)
{
    return strcmp(text, word) == 0;
}

/* Scales a block of `rows` by `cols`, as "weight_block_size" has it. */
static bool block_is(const json_t *object, json_int_t rows, json_int_t cols)
{
    const json_t *block = member(object, "weight_block_size");

    return json_array_size(block) == 2 && json_integer_value(json_array_get(block, 0)) == rows &&
           json_integer_value(json_array_get(block, 1)) == cols;
}

/* quant_method "fp8": the block says which scales there are. */
static mp_scheme fp8_scheme(const json_t *quantization)
{
    if (!member(quantization, "weight_block_size"))
        return MP_SCHEME_FP8_TENSOR;
    if (block_is(quantization, 1, 32))
        return MP_SCHEME_MXFP8;
    return block_is(quantization, 1, 128) ? MP_SCHEME_FP8_GROUP : MP_SCHEME_FP8_BLOCK;
}

/* A rule for the weights of a compressed-tensors group: type, bits and strategy. */
static const struct {
    const char *type;
    json_int_t bits;
    const char *strategy;
    json_int_t group_size; /* 0: none */
    mp_scheme scheme;
} compressed[] = {
    {"float", 4, "tensor_group", 16, MP_SCHEME_NVFP4},
    {"float", 4, "group", 32, MP_SCHEME_MXFP4},
    {"float", 8, "group", 32, MP_SCHEME_MXFP8},
    {"float", 8, "group", 128, MP_SCHEME_FP8_GROUP},
    {"float", 8, "block", 0, MP_SCHEME_FP8_BLOCK},
    {"float", 8, "channel", 0, MP_SCHEME_FP8_CHANNEL},
    {"float", 8, "tensor", 0, MP_SCHEME_FP8_TENSOR},
    {"int", 8, "channel", 0, MP_SCHEME_INT8_CHANNEL},
    {"int", 4, "group", 32, MP_SCHEME_INT4_GROUP},
};

/* Weights of the first group; where there are several, tensors have to tell which is whose. */
static bool compressed_scheme(const json_t *quantization, mp_scheme *scheme)
{
    json_t *groups = json_object_get(quantization, "config_groups");
    const json_t *group = json_object_iter_value(json_object_iter(groups));
    const json_t *weights = member(group, "weights");

    for (size_t i = 0; i < sizeof compressed / sizeof compressed[0]; i++) {
        if (is(text_of(weights, "type"), compressed[i].type) &&
            json_integer_value(member(weights, "num_bits")) == compressed[i].bits &&
            is(text_of(weights, "strategy"), compressed[i].strategy) &&
            json_integer_value(member(weights, "group_size")) == compressed[i].group_size) {
            *scheme = compressed[i].scheme;
            return json_object_size(groups) == 1;
        }
    }
    return false;
}

static bool modelopt_scheme(const json_t *quantization, mp_scheme *scheme)
{
    static const struct {
        const char *algorithm;
        mp_scheme scheme;
    } algorithms[] = {
        {"NVFP4", MP_SCHEME_NVFP4},
        {"MXFP8", MP_SCHEME_MXFP8},
        {"FP8", MP_SCHEME_FP8_TENSOR},
    };

    for (size_t i = 0; i < sizeof algorithms / sizeof algorithms[0]; i++) {
        if (is(text_of(quantization, "quant_algo"), algorithms[i].algorithm)) {
            *scheme = algorithms[i].scheme;
            return true;
        }
    }
    return false;
}

static bool quantized_scheme(const json_t *quantization, mp_scheme *scheme)
{
    const char *method = text_of(quantization, "quant_method");

    if (is(method, "compressed-tensors"))
        return compressed_scheme(quantization, scheme);
    if (is(method, "modelopt") || is(method, "modelopt_fp4"))
        return modelopt_scheme(quantization, scheme);
    if (is(method, "mxfp4"))
        *scheme = MP_SCHEME_MXFP4;
    else if (is(method, "mxfp8"))
        *scheme = MP_SCHEME_MXFP8;
    else if (is(method, "fp8"))
        *scheme = fp8_scheme(quantization);
    else
        return false;
    return true;
}

/* DeepSeek V4 says apart from quantization_config what its experts are; where it is silent
 * they are FP4. */
static const char *expert_dtype(const json_t *root, const json_t *quantization)
{
    const json_t *value = mp_config_find(root, "expert_dtype");
    const char *type = text_of(root, "model_type");

    if (!value)
        value = member(quantization, "expert_dtype");
    if (json_is_string(value))
        return json_string_value(value);
    return is(type, "deepseek_v4") && is(text_of(quantization, "scale_fmt"), "ue8m0") ? "fp4" : "";
}

/* What expert_dtype says by itself: the scales of "fp8" stand in quantization_config. */
static bool expert_scheme(const char *dtype, mp_scheme *scheme)
{
    *scheme = is(dtype, "fp4") ? MP_SCHEME_MXFP4 : MP_SCHEME_BF16;
    return is(dtype, "fp4") || is(dtype, "bf16");
}

static mp_scheme plain_scheme(const char *dtype)
{
    if (is(dtype, "float16"))
        return MP_SCHEME_F16;
    return is(dtype, "float32") ? MP_SCHEME_F32 : MP_SCHEME_BF16;
}

void mp_format_of_config(const json_t *root, mp_backend_model *model)
{
    const json_t *quantization = mp_config_find(root, "quantization_config");
    const json_t *dtype = mp_config_find(root, "torch_dtype");

    if (!dtype)
        dtype = mp_config_find(root, "dtype");
    const char *plain = json_is_string(dtype) ? json_string_value(dtype) : "";

    model->quant_config = quantization != NULL;
    snprintf(model->quant_method, sizeof model->quant_method, "%s",
             text_of(quantization, "quant_method"));
    model->float16 = is(plain, "float16");
    model->has_scheme = true;
    if (expert_scheme(expert_dtype(root, quantization), &model->scheme)) {
        model->scheme_from = "expert_dtype";
    } else if (quantization) {
        model->scheme_from = "quantization_config";
        model->has_scheme = quantized_scheme(quantization, &model->scheme);
    } else {
        model->scheme_from = "torch_dtype";
        model->scheme = plain_scheme(plain);
    }
}
