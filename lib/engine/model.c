/* SPDX-License-Identifier: Apache-2.0 */
/* The model's sizes and format: from its tensors, or from config.json alone. A plan is made before
 * anything is downloaded, so config.json is enough, though it only says what tensors should be;
 * where they are there they decide, and config.json still says what they cannot: the class that the
 * engine runs, the activation, how many experts a token takes.
 *
 *   DIR with *.safetensors    catalog, then config.json beside it where there is one
 *   DIR, or a config.json     config.json and hf_quant_config.json
 *
 * Sizes are bounded once they are known (check_sizes), so that the rules and estimates that follow
 * multiply them freely. One thread. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/complete.h"
#include "checkpoint/config.h"
#include "checkpoint/rules.h"
#include "engine/format.h"
#include "numeric/kernels.h"

#define CONFIG_NAME  "config.json"
#define HF_NAME      "hf_quant_config.json"
#define CONFIG_LIMIT (16u << 20)

/* Beyond these no size is a model's, and products of them might not fit 64 bits. */
#define SIZE_MAX_SANE   (UINT64_C(1) << 24)
#define LAYERS_MAX_SANE (UINT64_C(1) << 16)

/* ------------------------------------------------------------------------
 * config.json
 */

static bool absent(uint64_t number)
{
    return number == MP_CONFIG_ABSENT;
}

/* MTP blocks, which config.json does not count among its layers. */
static uint64_t mtp_blocks(const json_t *root)
{
    static const char *const keys[] = {"num_nextn_predict_layers", "num_mtp_modules",
                                       "n_mtp_layers", "mtp_num_hidden_layers"};

    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_int_t blocks = json_integer_value(mp_config_find(root, keys[i]));

        if (blocks > 0)
            return (uint64_t)blocks;
    }
    return 0;
}

static uint64_t moe_layers(const mp_config *config)
{
    uint64_t layers = 0, all = config->num_hidden_layers;

    /* Bounded before it is counted to: a file's number is no reason to loop for long. */
    for (uint64_t i = 0; i < all && all <= LAYERS_MAX_SANE; i++)
        layers += mp_config_is_moe_layer(config, i);
    return absent(all) || all > LAYERS_MAX_SANE ? all : layers;
}

/* The class that the engine runs: the first of architectures; where there are none, that of the
 * model_type, as far as a rule goes by it. */
static void find_architecture(mp_backend_model *model, const json_t *root)
{
    static const char *const classes[][2] = {
        {"deepseek_v2", "DeepseekV2ForCausalLM"},
        {"deepseek_v3", "DeepseekV3ForCausalLM"},
        {"deepseek_v32", "DeepseekV32ForCausalLM"},
        {"deepseek_v4", "DeepseekV4ForCausalLM"},
        {"glm4_moe", "Glm4MoeForCausalLM"},
        {"nemotron_h", "NemotronHForCausalLM"},
        {"qwen2_moe", "Qwen2MoeForCausalLM"},
        {"qwen3_moe", "Qwen3MoeForCausalLM"},
        {"qwen3_next", "Qwen3NextForCausalLM"},
        {"qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"},
        {"qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"},
    };
    const char *name = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));

    for (size_t i = 0; !name && i < sizeof classes / sizeof classes[0]; i++)
        if (strcmp(model->model_type, classes[i][0]) == 0)
            name = classes[i][1];
    snprintf(model->architecture, sizeof model->architecture, "%s", name ? name : "");
}

/* What the experts compute between their matrices. Some families compute their own, whatever a
 * key says that others read. */
static void find_activation(mp_backend_model *model, const json_t *root)
{
    static const char *const keys[] = {"mlp_hidden_act", "hidden_activation", "hidden_act"};
    const mp_model_rule *rule = mp_model_rule_of(model->model_type);
    mp_act_rule act = rule ? rule->act : MP_ACT_SILU;
    const char *name = act == MP_ACT_OAI ? "swigluoai" : act == MP_ACT_SITU ? "situ" : NULL;

    model->activation_from = "model_type";
    for (size_t i = 0; !name && i < sizeof keys / sizeof keys[0]; i++) {
        name = json_string_value(mp_config_find(root, keys[i]));
        if (name)
            model->activation_from = keys[i];
    }
    if (!name && act == MP_ACT_RELU2)
        name = "relu2";
    if (!name && strncmp(model->model_type, "gemma4", 6) == 0)
        name = "gelu_pytorch_tanh";
    snprintf(model->activation, sizeof model->activation, "%s", name ? name : "silu");
}

static int take_config(mp_backend_model *model, const mp_format_files *files, mp_error *err)
{
    const mp_config *config = files->facts;

    model->source = CONFIG_NAME;
    model->hidden_size = absent(config->latent_size) ? config->hidden_size : config->latent_size;
    model->moe_intermediate_size = config->moe_intermediate_size;
    model->num_experts = config->num_experts;
    model->num_shared_experts = absent(config->num_shared_experts) ? 0 : config->num_shared_experts;
    model->experts_per_token = absent(config->experts_per_token) ? 0 : config->experts_per_token;
    /* Absent or beyond all bounds stays so, for check_sizes to refuse. */
    model->num_layers = moe_layers(config);
    model->num_mtp_blocks = mtp_blocks(files->config);
    snprintf(model->model_type, sizeof model->model_type, "%s",
             mp_config_text(files->config, "model_type"));
    find_architecture(model, files->config);
    find_activation(model, files->config);
    return mp_format_of_config(files, model, err);
}

/* hf_quant_config.json, where there is one; engines read it where config.json is silent. */
static int load_beside(const char *dir, json_t **root, mp_error *err)
{
    char *path = mp_path_join(dir, HF_NAME);
    int rc = path ? 0 : mp_fail_memory(err);

    *root = NULL;
    if (rc == 0 && mp_path_exists(path))
        rc = mp_json_load_python(path, CONFIG_LIMIT, root, err);
    free(path);
    return rc;
}

static int load_config(mp_backend_model *model, const char *dir, mp_error *err)
{
    char *path = mp_path_join(dir, CONFIG_NAME);
    mp_config config = {0};
    json_t *root = NULL, *beside = NULL;
    int rc = path ? mp_config_load(&config, dir, err) : mp_fail_memory(err);

    if (rc == 0 && !config.present)
        rc = mp_fail(err, MP_ERR_IO, "cannot open \"%s\": %s", path, strerror(ENOENT));
    if (rc == 0)
        rc = mp_json_load_python(path, CONFIG_LIMIT, &root, err);
    if (rc == 0)
        rc = load_beside(dir, &beside, err);
    if (rc == 0)
        rc = take_config(model, &(mp_format_files){root, beside, &config}, err);
    json_decref(root);
    json_decref(beside);
    mp_config_release(&config);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

static bool is_quantized(mp_scheme scheme)
{
    return scheme != MP_SCHEME_BF16 && scheme != MP_SCHEME_F16 && scheme != MP_SCHEME_F32;
}

static int take_catalog(mp_backend_model *model, const mp_catalog *catalog, mp_error *err)
{
    int rc = mp_catalog_check(catalog, err);

    if (rc != 0)
        return rc;
    model->source = "checkpoint";
    model->hidden_size = catalog->hidden_size;
    model->moe_intermediate_size = catalog->moe_intermediate_size;
    model->num_experts = catalog->num_experts;
    model->num_shared_experts = catalog->num_shared_experts;
    model->num_layers = catalog->num_layers;
    model->has_scheme = true;
    model->scheme = catalog->layers[0].storage.scheme;
    model->scheme_from = "tensors";
    /* config.json may know of a quantization of other modules. */
    model->quant_config |= is_quantized(model->scheme);
    if (catalog->layers[0].has_shared) {
        const mp_storage *shared = &catalog->layers[0].shared_storage;

        model->shared_fp8_blocks = shared->scheme == MP_SCHEME_FP8_BLOCK &&
                                   shared->block_rows == MP_FP8_BLOCK &&
                                   shared->block_cols == MP_FP8_BLOCK;
    }
    return 0;
}

static int load_catalog(mp_backend_model *model, const char *dir, const mp_context *context,
                        mp_error *err)
{
    mp_catalog catalog = {0};
    int rc = mp_catalog_open(&catalog, dir, context, err);

    if (rc == 0 && catalog.config.present)
        /* Tensors come after it and overwrite what they know better. */
        rc = load_config(model, dir, err);
    if (rc == 0)
        rc = take_catalog(model, &catalog, err);
    mp_catalog_release(&catalog);
    return rc;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);

    return n >= m && strcmp(name + n - m, end) == 0;
}

static int has_tensors(const char *path, bool *has, mp_error *err)
{
    const struct dirent *entry;
    DIR *dir = opendir(path);

    *has = false;
    if (!dir)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
    while (!*has && (entry = readdir(dir)))
        *has = ends_with(entry->d_name, ".safetensors") ||
               ends_with(entry->d_name, ".safetensors.zst") ||
               ends_with(entry->d_name, ".safetensors.index.json");
    closedir(dir);
    return 0;
}

/* ------------------------------------------------------------------------
 * Both
 */

static int check_size(const mp_backend_model *model, const char *what, uint64_t size, uint64_t max,
                      mp_error *err)
{
    if (absent(size))
        return mp_fail(err, MP_ERR_INPUT, "%s: no %s", model->source, what);
    if (size == 0 || size > max)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s is %llu, expected 1 to %llu", model->source, what,
                       (unsigned long long)size, (unsigned long long)max);
    return 0;
}

static int check_sizes(const mp_backend_model *m, mp_error *err)
{
    if (check_size(m, "hidden size", m->hidden_size, SIZE_MAX_SANE, err) != 0 ||
        check_size(m, "expert intermediate size", m->moe_intermediate_size, SIZE_MAX_SANE, err) !=
            0 ||
        check_size(m, "number of experts", m->num_experts, SIZE_MAX_SANE, err) != 0 ||
        check_size(m, "number of MoE layers", m->num_layers, LAYERS_MAX_SANE, err) != 0)
        return MP_ERR_INPUT;
    /* Some targets take shared experts as one that is as wide as all of them. */
    if (m->num_shared_experts > SIZE_MAX_SANE / m->moe_intermediate_size)
        return mp_fail(
            err, MP_ERR_INPUT, "%s: %llu shared experts of size %llu are wider than %llu",
            m->source, (unsigned long long)m->num_shared_experts,
            (unsigned long long)m->moe_intermediate_size, (unsigned long long)SIZE_MAX_SANE);
    if (m->experts_per_token > m->num_experts)
        return mp_fail(err, MP_ERR_INPUT, "%s: %llu experts, %llu of them a token, %llu shared",
                       m->source, (unsigned long long)m->num_experts,
                       (unsigned long long)m->experts_per_token,
                       (unsigned long long)m->num_shared_experts);
    return 0;
}

/* The directory of a config.json. */
static int open_file(mp_backend_model *model, const char *path, mp_error *err)
{
    const char *base = mp_path_base(path);
    char *dir;
    int rc;

    if (strcmp(base, CONFIG_NAME) != 0)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" is neither a directory nor a config.json", path);
    dir = base == path ? strdup(".") : strndup(path, (size_t)(base - path));
    rc = dir ? load_config(model, dir, err) : mp_fail_memory(err);
    free(dir);
    return rc;
}

int mp_backend_model_open(mp_backend_model *model, const char *path, const mp_context *context,
                          mp_error *err)
{
    err = MP_NEVER_NULL(err);
    struct stat st;
    bool tensors;
    int rc;

    memset(model, 0, sizeof *model);
    if (stat(path, &st) != 0)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
    if (!S_ISDIR(st.st_mode)) {
        rc = open_file(model, path, err);
    } else {
        rc = has_tensors(path, &tensors, err);
        if (rc == 0)
            rc = tensors ? load_catalog(model, path, context, err) : load_config(model, path, err);
    }
    return rc ? rc : check_sizes(model, err);
}

/* What the engine calls a quantization that moepack quantize has written. */
static const char *quantization_of(mp_scheme scheme)
{
    switch (scheme) {
    case MP_SCHEME_NVFP4:
        return "modelopt_fp4";
    case MP_SCHEME_MXFP4:
        return "mxfp4";
    case MP_SCHEME_MXFP8:
        return "mxfp8";
    case MP_SCHEME_FP8_BLOCK:
    case MP_SCHEME_FP8_TENSOR:
        return "fp8";
    default:
        return is_quantized(scheme) ? "compressed-tensors" : "";
    }
}

void mp_backend_model_quantize(mp_backend_model *model, mp_scheme scheme)
{
    model->has_scheme = true;
    model->scheme = scheme;
    model->scheme_from = "--quantize";
    model->weight_only = false;
    model->quant_config = is_quantized(scheme);
    model->quant_method[0] = model->quant_algo[0] = model->moe_quant_algo[0] = '\0';
    snprintf(model->quantization, sizeof model->quantization, "%s", quantization_of(scheme));
}

const char *mp_backend_model_scheme(const mp_backend_model *model)
{
    if (model->has_scheme)
        return mp_scheme_name(model->scheme);
    return model->unrecognized[0] ? model->unrecognized : "of a format that is not recognized";
}
