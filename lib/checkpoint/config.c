/* SPDX-License-Identifier: Apache-2.0 */
/* config.json: where its facts stand, and by which names. */
#include <moepack/model.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_LIMIT (16u << 20)

/* A number of mp_config and the names that config.json files give it. */
typedef struct number_key {
    size_t field;
    const char *names[5];
} number_key;

static const number_key number_keys[] = {
    {offsetof(mp_config, hidden_size), {"hidden_size"}},
    {offsetof(mp_config, latent_size), {"routed_expert_hidden_size", "moe_latent_size"}},
    {offsetof(mp_config, moe_intermediate_size), {"moe_intermediate_size"}},
    {offsetof(mp_config, num_experts),
     {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"}},
    {offsetof(mp_config, num_shared_experts),
     {"n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"}},
    {offsetof(mp_config, experts_per_token),
     {"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k"}},
    {offsetof(mp_config, num_hidden_layers), {"num_hidden_layers"}},
    {offsetof(mp_config, first_k_dense_replace), {"first_k_dense_replace"}},
    {offsetof(mp_config, decoder_sparse_step),
     {"decoder_sparse_step", "interleave_moe_layer_step"}},
    {offsetof(mp_config, vocab_size), {"vocab_size"}},
    {offsetof(mp_config, n_group), {"n_group", "num_expert_group"}},
    {offsetof(mp_config, topk_group), {"topk_group"}},
};

/* A float of mp_config and its names. */
static const number_key float_keys[] = {
    {offsetof(mp_config, routed_scaling_factor),
     {"routed_scaling_factor", "moe_router_scaling_factor"}},
    {offsetof(mp_config, swiglu_limit), {"swiglu_limit"}},
    {offsetof(mp_config, swiglu_alpha), {"swiglu_alpha"}},
    {offsetof(mp_config, swiglu_beta), {"swiglu_beta"}},
    {offsetof(mp_config, situ_beta), {"activation_situ_beta"}},
    {offsetof(mp_config, situ_linear_beta), {"activation_situ_linear_beta"}},
};

/* A string of mp_config and its names. */
static const struct {
    size_t field, size;
    const char *names[5];
} string_keys[] = {
#define STRING(member) offsetof(mp_config, member), sizeof(((mp_config *)0)->member)
    {STRING(model_type), {"model_type"}},
    {STRING(scoring_func),
     {"scoring_func", "score_function", "moe_router_activation_func", "moe_gate_act"}},
    {STRING(topk_method), {"topk_method"}},
    {STRING(hidden_act), {"hidden_act"}},
#undef STRING
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Objects that may hold the language model's facts, outermost first. */
static const char *const nested_keys[] = {"text_config", "language_config", "llm_config"};

static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

/* A member of the root, else of a nested config. One that is null is as absent. */
static const json_t *find(const json_t *root, const char *key)
{
    const json_t *value = member(root, key);

    for (size_t i = 0; !value && i < sizeof nested_keys / sizeof nested_keys[0]; i++)
        value = member(json_object_get(root, nested_keys[i]), key);
    return value;
}

static int read_number(const json_t *value, const char *key, uint64_t *number, mp_error *err)
{
    char text[40] = "";

    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        size_t n = json_dumpb(value, text, sizeof text - 1, JSON_ENCODE_ANY);

        return mp_fail(err, MP_ERR_INPUT,
                       "config.json: \"%s\" is %s, expected an integer of 0 or more", key,
                       n < sizeof text ? text : "something long");
    }
    *number = (uint64_t)json_integer_value(value);
    return 0;
}

static int read_numbers(const json_t *root, mp_config *config, mp_error *err)
{
    for (size_t i = 0; i < COUNT(number_keys); i++) {
        uint64_t *number = (uint64_t *)(void *)((char *)config + number_keys[i].field);

        *number = MP_CONFIG_ABSENT;
        for (const char *const *name = number_keys[i].names; *name; name++) {
            const json_t *value = find(root, *name);

            if (!value)
                continue;
            if (read_number(value, *name, number, err) != 0)
                return err->code;
            break;
        }
    }
    return 0;
}

/* The first of the names that there is, or null; which one goes to *name. */
static const json_t *find_any(const json_t *root, const char *const *names, const char **name)
{
    const json_t *value = NULL;

    for (; *names && !value; names++) {
        value = find(root, *names);
        *name = *names;
    }
    return value;
}

static int read_floats(const json_t *root, mp_config *config, mp_error *err)
{
    for (size_t i = 0; i < COUNT(float_keys); i++) {
        double *number = (double *)(void *)((char *)config + float_keys[i].field);
        const char *name;
        const json_t *value = find_any(root, float_keys[i].names, &name);

        *number = value ? json_number_value(value) : (double)NAN;
        if (value && (!json_is_number(value) || *number < 0))
            return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is not a number of 0 or more",
                           name);
    }
    return 0;
}

static int read_flags(const json_t *root, mp_config *config, mp_error *err)
{
    static const char *const names[] = {"norm_topk_prob", "moe_renormalize", "norm_expert_weight",
                                        NULL};
    const char *name;
    const json_t *value = find_any(root, names, &name);

    config->norm_topk_prob = value ? json_is_true(value) : -1;
    if (value && !json_is_boolean(value))
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is neither true nor false", name);
    return 0;
}

/* Families whose models have no dense width call the experts' width intermediate_size. */
static int read_expert_width(const json_t *root, mp_config *config, mp_error *err)
{
    const json_t *width = find(root, "intermediate_size");

    if (config->moe_intermediate_size != MP_CONFIG_ABSENT || !width)
        return 0;
    return read_number(width, "intermediate_size", &config->moe_intermediate_size, err);
}

static int read_string(const json_t *value, const char *key, char *text, size_t size, mp_error *err)
{
    text[0] = '\0';
    if (!value || json_is_null(value))
        return 0;
    if (!json_is_string(value) || json_string_length(value) >= size)
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is not a string of up to %zu bytes",
                       key, size - 1);
    strcpy(text, json_string_value(value));
    return 0;
}

static int read_strings(const json_t *root, mp_config *config, mp_error *err)
{
    for (size_t i = 0; i < COUNT(string_keys); i++) {
        const char *name = string_keys[i].names[0];
        const json_t *value = find_any(root, string_keys[i].names, &name);

        if (read_string(value, name, (char *)config + string_keys[i].field, string_keys[i].size,
                        err) != 0)
            return err->code;
    }
    return 0;
}

/* quantization_config.weight_block_size: two positive integers. */
static int read_block_size(const json_t *quantization, mp_config *config, mp_error *err)
{
    const json_t *block = json_object_get(quantization, "weight_block_size");
    const json_t *rows, *cols;

    config->block_rows = config->block_cols = MP_CONFIG_ABSENT;
    if (!block || json_is_null(block))
        return 0;
    rows = json_array_get(block, 0);
    cols = json_array_get(block, 1);
    if (json_array_size(block) != 2 || json_integer_value(rows) <= 0 ||
        json_integer_value(cols) <= 0 || json_integer_value(rows) > UINT32_MAX ||
        json_integer_value(cols) > UINT32_MAX)
        return mp_fail(err, MP_ERR_INPUT,
                       "config.json: \"weight_block_size\" is not two positive integers");
    config->block_rows = (uint64_t)json_integer_value(rows);
    config->block_cols = (uint64_t)json_integer_value(cols);
    return 0;
}

/* moe_layer_freq as a list of 0 and 1, one a layer. */
static int read_layer_flags(const json_t *list, mp_config *config, mp_error *err)
{
    size_t count = json_array_size(list);

    config->dense_layers = mp_alloc_zeroed(count, 1);
    if (!config->dense_layers)
        return mp_fail_memory(err);
    config->num_dense_layers = count;
    for (size_t i = 0; i < count; i++) {
        const json_t *flag = json_array_get(list, i);

        if (!json_is_integer(flag) || json_integer_value(flag) < 0 || json_integer_value(flag) > 1)
            return mp_fail(err, MP_ERR_INPUT,
                           "config.json: \"moe_layer_freq\": entry %zu is neither 0 nor 1", i);
        config->dense_layers[i] = json_integer_value(flag) == 0;
    }
    return 0;
}

/* mlp_only_layers: the numbers of the dense layers. */
static int read_dense_list(const json_t *list, mp_config *config, mp_error *err)
{
    uint64_t layers = config->num_hidden_layers;

    if (json_array_size(list) == 0)
        return 0;
    if (layers == MP_CONFIG_ABSENT || layers > CONFIG_LIMIT)
        return mp_fail(err, MP_ERR_INPUT,
                       "config.json: \"mlp_only_layers\" needs a sound \"num_hidden_layers\"");
    config->dense_layers = mp_alloc_zeroed(layers, 1);
    if (!config->dense_layers)
        return mp_fail_memory(err);
    config->num_dense_layers = layers;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *layer = json_array_get(list, i);

        if (!json_is_integer(layer) || json_integer_value(layer) < 0 ||
            (uint64_t)json_integer_value(layer) >= layers)
            return mp_fail(err, MP_ERR_INPUT,
                           "config.json: \"mlp_only_layers\": entry %zu is not a layer below %llu",
                           i, (unsigned long long)layers);
        config->dense_layers[json_integer_value(layer)] = 1;
    }
    return 0;
}

/* hybrid_override_pattern: a character a layer, E where it has experts. */
static int read_hybrid_pattern(const json_t *pattern, mp_config *config, mp_error *err)
{
    const char *text = json_string_value(pattern);

    if (!text)
        return mp_fail(err, MP_ERR_INPUT,
                       "config.json: \"hybrid_override_pattern\" is not a string");
    config->num_dense_layers = strlen(text);
    config->dense_layers = mp_alloc_zeroed(config->num_dense_layers, 1);
    if (!config->dense_layers)
        return mp_fail_memory(err);
    for (size_t i = 0; text[i]; i++)
        config->dense_layers[i] = text[i] != 'E';
    return 0;
}

/* Which layers are dense stands in a list, or follows from a step. */
static int read_dense_layers(const json_t *root, mp_config *config, mp_error *err)
{
    const json_t *pattern = find(root, "hybrid_override_pattern");
    const json_t *freq = find(root, "moe_layer_freq");
    const json_t *dense = find(root, "mlp_only_layers");

    config->moe_layer_freq = MP_CONFIG_ABSENT;
    if (pattern)
        return read_hybrid_pattern(pattern, config, err);
    if (json_is_array(freq))
        return read_layer_flags(freq, config, err);
    if (freq && read_number(freq, "moe_layer_freq", &config->moe_layer_freq, err) != 0)
        return err->code;
    if (!dense)
        return 0;
    if (!json_is_array(dense))
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"mlp_only_layers\" is not a list");
    return read_dense_list(dense, config, err);
}

static int read_config(const json_t *root, mp_config *config, mp_error *err)
{
    const json_t *quantization = find(root, "quantization_config");

    if (!json_is_object(root))
        return mp_fail(err, MP_ERR_INPUT, "config.json: not a JSON object");
    if (read_numbers(root, config, err) != 0 || read_floats(root, config, err) != 0 ||
        read_flags(root, config, err) != 0 || read_strings(root, config, err) != 0 ||
        read_expert_width(root, config, err) != 0 ||
        read_string(json_object_get(quantization, "quant_method"), "quant_method",
                    config->quant_method, sizeof config->quant_method, err) != 0 ||
        read_block_size(quantization, config, err) != 0 ||
        read_dense_layers(root, config, err) != 0)
        return err->code;
    return 0;
}

int mp_config_load(mp_config *config, const char *dir, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    char *path = mp_path_join(dir, "config.json");
    json_t *root = NULL;
    int rc;

    memset(config, 0, sizeof *config);
    if (!path)
        return mp_fail_memory(err);
    config->present = mp_path_exists(path);
    if (config->present) {
        rc = mp_json_load_python(path, CONFIG_LIMIT, &root, err);
    } else {
        root = json_object();
        rc = root ? 0 : mp_fail_memory(err);
    }
    if (rc == 0)
        rc = read_config(root, config, err);
    json_decref(root);
    free(path);
    return rc;
}

void mp_config_release(mp_config *config)
{
    free(config->dense_layers);
    memset(config, 0, sizeof *config);
}

bool mp_config_is_moe_layer(const mp_config *config, uint64_t layer)
{
    uint64_t step = config->decoder_sparse_step, freq = config->moe_layer_freq;

    if (layer < config->num_dense_layers && config->dense_layers[layer])
        return false;
    if (config->first_k_dense_replace != MP_CONFIG_ABSENT && layer < config->first_k_dense_replace)
        return false;
    if (step != MP_CONFIG_ABSENT && step > 0 && (layer + 1) % step != 0)
        return false;
    return freq == MP_CONFIG_ABSENT || freq == 0 || layer % freq == 0;
}
