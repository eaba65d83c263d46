/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scheme of routed experts, as config.json tells it without the tensors.
 *
 * What says it, the first that holds: moe_quant_algo; quant_algo, in config.json or in
 * hf_quant_config.json; quantized_layers of MIXED_PRECISION; expert_dtype; the groups of
 * compressed-tensors; quant_method; dtype. Most of them list modules that are otherwise, so that a
 * form is found for each layer (layer_forms.c); layers that differ are not recognized, both named.
 */
#include "engine/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "base/error.h"
#include "checkpoint/config_said.h"
#include "engine/layer_forms.h"
#include "numeric/forms.h"

/* Objects that may hold the language model's facts, outermost first. */
static const char *const nested_keys[] = {"text_config", "language_config", "llm_config",
                                          "thinker_config"};

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

const char *mp_config_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(member(object, key));

    return text ? text : "";
}

static bool is(const char *text, const char *word)
{
    return strcmp(text, word) == 0;
}

/* ------------------------------------------------------------------------
 * Words and what they stand for
 */

/* Whether scales are of the blocks of a scheme, as "weight_block_size" has it. */
static bool has_blocks_of(const json_t *object, mp_scheme scheme)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);
    const json_t *block = member(object, "weight_block_size");

    return json_array_size(block) == 2 &&
           json_integer_value(json_array_get(block, 0)) == form->block_rows &&
           json_integer_value(json_array_get(block, 1)) == form->block_cols;
}

/* quant_method "fp8": the block says which scales there are. */
static mp_scheme fp8_scheme(const json_t *quantization)
{
    if (!member(quantization, "weight_block_size"))
        return MP_SCHEME_FP8_TENSOR;
    if (has_blocks_of(quantization, MP_SCHEME_MXFP8))
        return MP_SCHEME_MXFP8;
    return has_blocks_of(quantization, MP_SCHEME_FP8_GROUP) ? MP_SCHEME_FP8_GROUP
                                                            : MP_SCHEME_FP8_BLOCK;
}

/* Methods of one scheme say it by their name. */
static mp_form_word form_of_method(const json_t *quantization)
{
    const char *name = mp_config_text(quantization, "quant_method");
    mp_method method = mp_method_of(name);
    size_t count;
    const mp_convention *rows = mp_conventions(&count);

    if (method == MP_METHOD_FP8)
        return mp_form_known(fp8_scheme(quantization));
    for (size_t i = 0; i < count; i++)
        if (rows[i].method == method && (method == MP_METHOD_MXFP4 || method == MP_METHOD_MXFP8))
            return mp_form_known(rows[i].scheme);
    return name[0] ? mp_form_unknown("quant_method %s", name) : mp_form_unknown("no quant_method");
}

/* DeepSeek V4 says apart from quantization_config what its experts are; where it is silent
 * they are FP4. */
static const char *expert_dtype(const json_t *root, const json_t *quantization)
{
    const json_t *value = mp_config_find(root, "expert_dtype");
    const char *type = mp_config_text(root, "model_type");

    if (!value)
        value = member(quantization, "expert_dtype");
    if (json_is_string(value))
        return json_string_value(value);
    return is(type, "deepseek_v4") && is(mp_config_text(quantization, "scale_fmt"), "ue8m0")
               ? mp_said_dtype(MP_SCHEME_MXFP4)
               : "";
}

/* What expert_dtype says by itself: the scales of "fp8" stand in quantization_config. */
static bool expert_scheme(const char *dtype, mp_scheme *scheme)
{
    bool fp4 = is(dtype, mp_said_dtype(MP_SCHEME_MXFP4));

    *scheme = fp4 ? MP_SCHEME_MXFP4 : MP_SCHEME_BF16;
    return fp4 || is(dtype, mp_said_dtype(MP_SCHEME_BF16));
}

static mp_scheme plain_scheme(const char *dtype)
{
    if (is(dtype, "float16"))
        return MP_SCHEME_F16;
    return is(dtype, "float32") ? MP_SCHEME_F32 : MP_SCHEME_BF16;
}

/* ------------------------------------------------------------------------
 * The engine's name of the quantization
 */

static void name_quantization(mp_backend_model *model, const json_t *quantization, bool modelopt)
{
    static const char *const algorithms[][2] = {
        {"NVFP4", "modelopt_fp4"},
        {"FP8", "modelopt_fp8"},
        {"MIXED_PRECISION", "modelopt_mixed"},
    };
    const char *name = mp_method_name(MP_METHOD_MODELOPT);
    const char *method = modelopt ? name : mp_config_text(quantization, "quant_method");

    snprintf(model->quant_method, sizeof model->quant_method, "%s", method);
    snprintf(model->quant_algo, sizeof model->quant_algo, "%s",
             mp_config_text(quantization, "quant_algo"));
    snprintf(model->moe_quant_algo, sizeof model->moe_quant_algo, "%s",
             mp_config_text(quantization, "moe_quant_algo"));
    for (size_t i = 0; is(method, name) && i < 3; i++)
        if (is(model->quant_algo, algorithms[i][0]))
            method = algorithms[i][1];
    snprintf(model->quantization, sizeof model->quantization, "%s", method);
}

/* ------------------------------------------------------------------------
 * What decides
 */

static void set(mp_backend_model *model, const mp_form_word *word, const char *from)
{
    model->weight_only = is(word->name, "W4A16_NVFP4");
    model->has_scheme = word->known;
    model->scheme = word->scheme;
    model->scheme_from = from;
    if (!word->known)
        snprintf(model->unrecognized, sizeof model->unrecognized,
                 "of a format that is not recognized: %s", word->name);
}

/* By lists of modules: a form for each layer, which has to be the same. */
static int set_by_layers(const mp_format_files *files, const json_t *quantization, const char *from,
                         const mp_form_word *plain, mp_backend_model *model, mp_error *err)
{
    mp_layer_forms forms;
    mp_form_word word;
    int rc = mp_layer_forms_init(&forms, files->facts, plain, err);

    if (rc != 0)
        return rc;
    mp_layer_forms_read(&forms, quantization);
    mp_layer_forms_same(&forms, &word);
    set(model, &word, word.plain && forms.plain_from ? forms.plain_from : from);
    mp_layer_forms_release(&forms);
    return 0;
}

static int find_format(const mp_format_files *files, const json_t *quantization, bool beside,
                       const mp_form_word *plain, const char *plain_from, mp_backend_model *model,
                       mp_error *err)
{
    const char *algorithm = mp_config_text(quantization, "quant_algo");
    bool mixed = is(algorithm, "MIXED_PRECISION");
    mp_form_word word;
    mp_scheme scheme;

    if (model->moe_quant_algo[0]) {
        word = mp_form_of_algorithm(model->moe_quant_algo);
        set(model, &word, "moe_quant_algo");
        return 0;
    }
    if (algorithm[0])
        return set_by_layers(files, quantization,
                             beside  ? "hf_quant_config.json"
                             : mixed ? "quantized_layers"
                                     : "quant_algo",
                             plain, model, err);
    if (expert_scheme(expert_dtype(files->config, quantization), &scheme)) {
        word = mp_form_known(scheme);
        set(model, &word, "expert_dtype");
        return 0;
    }
    if (mp_method_of(model->quant_method) == MP_METHOD_COMPRESSED_TENSORS)
        return set_by_layers(files, quantization, "config_groups", plain, model, err);
    word = quantization ? form_of_method(quantization) : *plain;
    set(model, &word, quantization ? "quantization_config" : plain_from);
    return 0;
}

int mp_format_of_config(const mp_format_files *files, mp_backend_model *model, mp_error *err)
{
    const json_t *quantization = mp_config_find(files->config, "quantization_config");
    const json_t *dtype = mp_config_find(files->config, "torch_dtype");
    const char *plain_from = "torch_dtype";
    mp_form_word plain;
    bool beside;

    if (!quantization)
        quantization = mp_config_find(files->config, "compression_config");
    beside = !quantization && files->hf_quant;
    if (beside)
        quantization = member(files->hf_quant, "quantization");
    if (!dtype && mp_config_find(files->config, "dtype")) {
        dtype = mp_config_find(files->config, "dtype");
        plain_from = "dtype";
    }
    plain = mp_form_known(plain_scheme(json_is_string(dtype) ? json_string_value(dtype) : ""));
    plain.plain = true;
    model->float16 = plain.scheme == MP_SCHEME_F16;
    model->quant_config = quantization != NULL;
    name_quantization(model, quantization, beside);
    model->shared_fp8_blocks = mp_method_of(model->quant_method) == MP_METHOD_FP8 &&
                               has_blocks_of(quantization, MP_SCHEME_FP8_BLOCK);
    return find_format(files, quantization, beside, &plain, plain_from, model, err);
}
