/* SPDX-License-Identifier: Apache-2.0 */
/* config.json: where its facts are, and under which names.
 *
 * Each family has its own names for the same number, and keeps them at the root or in an object for
 * the language model. The tables below list the names and a scope lists the objects, in the order
 * in which they are tried; the first hit counts. A null member counts as absent. An absent number
 * is MP_CONFIG_ABSENT, which differs from 0: "no shared experts" is not "nothing said about them".
 *
 *     {"model_type": "kimi_k25",
 *      "text_config": {"model_type": "deepseek_v3", "n_routed_experts": 384, ...,
 *                      "quantization_config": {"quant_method": "compressed-tensors", ...}}}
 *
 * A fact of the wrong type is an error that names its key. Treating it as absent would mean
 * guessing. Nothing is required here; that is up to those who need a fact. A config is filled on
 * one thread. */
#include <moepack/model.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

#include "checkpoint/config.h"
#include "checkpoint/rules.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number of mp_config and the names that config.json files give it. */
typedef struct number_key {
    size_t field;
    const char *names[8];
} number_key;

static const number_key number_keys[] = {
    {offsetof(mp_config, hidden_size), {"hidden_size", "dim"}},
    {offsetof(mp_config, latent_size), {"routed_expert_hidden_size", "moe_latent_size"}},
    {offsetof(mp_config, moe_intermediate_size),
     {"moe_intermediate_size", "expert_hidden_dim", "expert_ffn_hidden_size",
      "expert_intermediate_size"}},
    {offsetof(mp_config, num_experts),
     {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"}},
    {offsetof(mp_config, zero_experts), {"zero_expert_num"}},
    {offsetof(mp_config, num_shared_experts),
     {"n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"}},
    {offsetof(mp_config, shared_width),
     {"shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
      "shared_intermediate_size", "share_expert_dim", "share_expert_dims"}},
    {offsetof(mp_config, experts_per_token),
     {"num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk",
      "moe_top_k", "top_k_experts"}},
    {offsetof(mp_config, num_hidden_layers), {"num_hidden_layers", "n_layers", "num_layers"}},
    {offsetof(mp_config, num_mtp_layers),
     {"num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", "n_mtp_layers"}},
    {offsetof(mp_config, first_k_dense_replace), {"first_k_dense_replace", "num_dense_layers"}},
    {offsetof(mp_config, decoder_sparse_step),
     {"decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_frequency"}},
    {offsetof(mp_config, moe_layer_interval), {"moe_layer_interval"}},
    {offsetof(mp_config, expert_layer_period), {"expert_layer_period"}},
    {offsetof(mp_config, expert_layer_offset), {"expert_layer_offset"}},
    {offsetof(mp_config, vocab_size), {"vocab_size"}},
    {offsetof(mp_config, n_group), {"n_group", "num_expert_group", "num_expert_groups"}},
    {offsetof(mp_config, topk_group), {"topk_group", "num_expert_groups_per_tok"}},
};

/* A float of mp_config and its names. */
static const number_key float_keys[] = {
    {offsetof(mp_config, routed_scaling_factor),
     {"routed_scaling_factor", "router_scaling_factor", "route_scale", "moe_routed_scaling_factor",
      "moe_router_scaling_factor", "routed_scale"}},
    {offsetof(mp_config, norm_min), {"moe_norm_min"}},
    {offsetof(mp_config, jitter), {"router_jitter_noise"}},
    {offsetof(mp_config, logit_cap), {"moe_router_logit_softcapping"}},
    {offsetof(mp_config, swiglu_limit), {"swiglu_limit"}},
    {offsetof(mp_config, swiglu_alpha), {"swiglu_alpha"}},
    {offsetof(mp_config, swiglu_beta), {"swiglu_beta"}},
    {offsetof(mp_config, situ_beta), {"activation_situ_beta"}},
    {offsetof(mp_config, situ_linear_beta), {"activation_situ_linear_beta"}},
};

/* A string of mp_config and its names. */
static const struct {
    size_t field, size;
    const char *names[8];
} string_keys[] = {
#define STRING(member) offsetof(mp_config, member), sizeof(((mp_config *)0)->member)
    {STRING(scoring_func),
     {"scoring_func", "score_function", "score_func", "moe_router_activation_func",
      "moe_router_activation", "moe_router_score_func", "expert_selection_fn"}},
    {STRING(topk_method), {"topk_method"}},
    {STRING(hidden_act),
     {"hidden_act", "hidden_activation", "mlp_hidden_act", "activation_function"}},
    {STRING(shared_combination), {"shared_expert_combination_strategy"}},
#undef STRING
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Behind the name of a tower, in that of its object. */
#define TOWER_SUFFIX "_config"

/* Objects that may hold the language model's facts, outermost first. */
static const char *const nested_keys[] = {"text_config", "language_config", "llm_config"};

static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

const json_t *mp_scope_find(const mp_config_scope *scope, const char *key)
{
    const json_t *value = NULL;

    for (size_t i = 0; !value && i < scope->count; i++)
        value = member(scope->objects[i], key);
    return value;
}

int mp_config_number(const json_t *value, const char *key, uint64_t *number, mp_error *err)
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

/* A number for each layer (Hunyuan), or two, for text and for images (ERNIE VL): only if all are
 * the same. */
static int read_list(const json_t *list, const char *key, uint64_t *number, mp_error *err)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        uint64_t before = *number;

        if (mp_config_number(json_array_get(list, i), key, number, err) != 0)
            return err->code;
        if (i == 0 || *number == before)
            continue;
        if (json_array_size(list) == 2 && strcmp(key, "moe_intermediate_size") == 0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "config.json: experts for text and for images, of width %" PRIu64
                           " and %" PRIu64 ": not supported",
                           before, *number);
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: \"%s\" differs by layer, %" PRIu64 " and %" PRIu64
                       ": not supported",
                       key, before, *number);
    }
    return 0;
}

/* Null is as good as absent: MiMo writes it for numbers that it does not use. */
static int read_numbers(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    for (size_t i = 0; i < COUNT(number_keys); i++) {
        uint64_t *number = (uint64_t *)(void *)((char *)config + number_keys[i].field);

        *number = MP_CONFIG_ABSENT;
        /* The first name counts, of the first object that has it. */
        for (const char *const *name = number_keys[i].names; *name; name++) {
            const json_t *value = mp_scope_find(scope, *name);

            if (!value)
                continue;
            if (json_is_array(value) ? read_list(value, *name, number, err)
                                     : mp_config_number(value, *name, number, err))
                return err->code;
            break;
        }
    }
    return 0;
}

/* The first of the names that there is, or null; which one goes to *name. */
static const json_t *find_any(const mp_config_scope *scope, const char *const *names,
                              const char **name)
{
    const json_t *value = NULL;

    for (; *names && !value; names++) {
        value = mp_scope_find(scope, *names);
        *name = *names;
    }
    return value;
}

static int read_floats(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    for (size_t i = 0; i < COUNT(float_keys); i++) {
        double *number = (double *)(void *)((char *)config + float_keys[i].field);
        const char *name;
        const json_t *value = find_any(scope, float_keys[i].names, &name);

        *number = value ? json_number_value(value) : (double)NAN;
        if (value && (!json_is_number(value) || *number < 0))
            return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is not a number of 0 or more",
                           name);
    }
    return 0;
}

static int read_flags(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    static const char *const names[] = {"norm_topk_prob", "moe_renormalize", "norm_expert_weight",
                                        "route_norm", NULL};
    const char *name;
    const json_t *value = find_any(scope, names, &name);

    config->norm_topk_prob = value ? json_is_true(value) : -1;
    if (value && !json_is_boolean(value))
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is neither true nor false", name);
    return 0;
}

/* Families without a dense width call the experts' width intermediate_size: Mixtral, GPT-OSS,
 * MiniMax and others. */
static int read_expert_width(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    const json_t *width = mp_scope_find(scope, "intermediate_size");

    if (config->moe_intermediate_size != MP_CONFIG_ABSENT || !width)
        return 0;
    return json_is_array(width)
               ? read_list(width, "intermediate_size", &config->moe_intermediate_size, err)
               : mp_config_number(width, "intermediate_size", &config->moe_intermediate_size, err);
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

static int read_strings(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    for (size_t i = 0; i < COUNT(string_keys); i++) {
        const char *name = string_keys[i].names[0];
        const json_t *value = find_any(scope, string_keys[i].names, &name);

        if (read_string(value, name, (char *)config + string_keys[i].field, string_keys[i].size,
                        err) != 0)
            return err->code;
    }
    return 0;
}

/* Two positive integers: weight_block_size, or block_structure of compressed-tensors. */
static int read_block(const json_t *block, const char *key, mp_config *config, mp_error *err)
{
    const json_t *rows = json_array_get(block, 0), *cols = json_array_get(block, 1);

    if (json_array_size(block) != 2 || json_integer_value(rows) <= 0 ||
        json_integer_value(cols) <= 0 || json_integer_value(rows) > UINT32_MAX ||
        json_integer_value(cols) > UINT32_MAX)
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is not two positive integers", key);
    config->block_rows = (uint64_t)json_integer_value(rows);
    config->block_cols = (uint64_t)json_integer_value(cols);
    return 0;
}

/* What a group of config_groups says of weights. */
static int read_weights(const json_t *weights, const char *algorithm, mp_config *config,
                        mp_error *err)
{
    const json_t *block = member(weights, "block_structure");
    json_int_t group = json_integer_value(member(weights, "group_size"));
    json_int_t bits = json_integer_value(member(weights, "num_bits"));

    if (bits > 0 && config->weight_bits == MP_CONFIG_ABSENT)
        config->weight_bits = (uint64_t)bits;
    if (json_is_array(block) && config->block_rows == MP_CONFIG_ABSENT)
        return read_block(block, "block_structure", config, err);
    if (group <= 0 || group > UINT32_MAX)
        return 0;
    if (config->group_size == MP_CONFIG_ABSENT)
        config->group_size = (uint64_t)group;
    if (strncmp(algorithm, "FP8_PB", 6) == 0 && config->block_rows == MP_CONFIG_ABSENT)
        config->block_rows = config->block_cols = (uint64_t)group; /* ModelOpt's are square */
    return 0;
}

/* Blocks and groups, wherever a method says them. */
static int read_block_size(const json_t *quantization, mp_config *config, mp_error *err)
{
    const json_t *block = member(quantization, "weight_block_size"), *group;
    const char *algorithm = json_string_value(member(quantization, "quant_algo")), *key;

    config->block_rows = config->block_cols = MP_CONFIG_ABSENT;
    config->group_size = config->weight_bits = MP_CONFIG_ABSENT;
    if (block && read_block(block, "weight_block_size", config, err) != 0)
        return err->code;
    if (read_weights(quantization, algorithm ? algorithm : "", config, err) != 0)
        return err->code;
    json_object_foreach((json_t *)json_object_get(quantization, "config_groups"), key,
                        group) if (read_weights(member(group, "weights"),
                                                algorithm ? algorithm : "", config,
                                                err) != 0) return err->code;
    return 0;
}

/* Settings that change what a layer computes, used by no family that forward knows. */
static void find_refused(const mp_config_scope *scope, mp_config *config)
{
    static const char *const flags[] = {"multi_gate", "use_nGPT", "scale_router_input",
                                        "moe_apply_router_weight_on_input"};
    uint64_t every = json_integer_value(mp_scope_find(scope, "route_every_n")) < 0
                         ? 0
                         : (uint64_t)json_integer_value(mp_scope_find(scope, "route_every_n"));
    const char *zero = json_string_value(mp_scope_find(scope, "zero_expert_type"));

    for (size_t i = 0; i < COUNT(flags); i++)
        if (json_is_true(mp_scope_find(scope, flags[i])))
            snprintf(config->refused, sizeof config->refused, "%s", flags[i]);
    if (every > 1)
        snprintf(config->refused, sizeof config->refused, "route_every_n");
    if (zero && strcmp(zero, "identity") != 0)
        snprintf(config->refused, sizeof config->refused, "zero_expert_type");
}

/* swiglu_limit that is null is none; swiglu_limits has one for each layer. */
static int read_limits(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    const json_t *list = mp_scope_find(scope, "swiglu_limits");
    size_t count = json_array_size(list);

    for (size_t i = 0; i < scope->count; i++)
        if (isnan(config->swiglu_limit) &&
            json_is_null(json_object_get(scope->objects[i], "swiglu_limit")))
            config->swiglu_limit = 0;
    if (count == 0)
        return 0;
    config->swiglu_limits = mp_alloc_zeroed(count, sizeof *config->swiglu_limits);
    if (!config->swiglu_limits)
        return mp_fail_memory(err);
    config->num_swiglu_limits = count;
    for (size_t i = 0; i < count; i++) {
        const json_t *limit = json_array_get(list, i);

        if (!json_is_null(limit) && !json_is_number(limit))
            return mp_fail(err, MP_ERR_INPUT,
                           "config.json: \"swiglu_limits\": entry %zu is not a number", i);
        config->swiglu_limits[i] = json_number_value(limit);
    }
    return 0;
}

/* The objects that speak of the language model, or of one of its towers. */
static void scope_of(const json_t *root, const char *tower, mp_config_scope *scope)
{
    char key[sizeof((mp_config *)0)->towers[0] + sizeof TOWER_SUFFIX];
    const json_t *inner;

    snprintf(key, sizeof key, "%s" TOWER_SUFFIX, tower ? tower : "");
    inner = json_object_get(root, key);
    *scope = (mp_config_scope){0};
    if (tower) { /* what is said outside of it is of another one */
        scope->objects[scope->count++] = json_object_get(inner, "text_config");
        scope->objects[scope->count++] = inner;
        return;
    }
    scope->objects[scope->count++] = root;
    for (size_t i = 0; i < COUNT(nested_keys); i++)
        if (json_object_get(root, nested_keys[i]))
            scope->objects[scope->count++] = json_object_get(root, nested_keys[i]);
    if (json_object_get(root, "moe") && json_object_get(root, "dim")) /* params.json */
        scope->objects[scope->count++] = json_object_get(root, "moe");
}

/* The models that a checkpoint holds beside each other. */
static void find_towers(const json_t *root, mp_config *config)
{
    const char *key;
    const json_t *value;

    json_object_foreach((json_t *)root, key, value)
    {
        size_t n = strlen(key), suffix = strlen(TOWER_SUFFIX);

        if (n <= suffix || n - suffix >= sizeof config->towers[0] ||
            strcmp(key + n - suffix, TOWER_SUFFIX) != 0 ||
            !json_is_object(json_object_get(value, "text_config")) ||
            config->num_towers == MP_CONFIG_TOWERS)
            continue;
        memcpy(config->towers[config->num_towers++], key, n - suffix);
    }
}

/* Outer ones first: inner ones are borrowed, as Kimi K3's text_config says kimi_linear, while
 * roots like mistral3 are only a shell. */
static int read_model_type(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    char inner[sizeof config->model_type];

    for (size_t i = 0; i < scope->count; i++) {
        if (read_string(json_object_get(scope->objects[i], "model_type"), "model_type", inner,
                        sizeof inner, err) != 0)
            return err->code;
        if (mp_model_rule_of(inner) || !config->model_type[0])
            strcpy(config->model_type, inner);
        if (mp_model_rule_of(inner))
            break;
    }
    return 0;
}

/* A tower without a known model_type is called after its model and itself. */
static int name_tower(const json_t *root, const char *tower, mp_config *config, mp_error *err)
{
    char model[sizeof config->model_type], whole[sizeof model + sizeof config->towers[0] + 1];

    if (read_string(json_object_get(root, "model_type"), "model_type", model, sizeof model, err) !=
        0)
        return err->code;
    snprintf(whole, sizeof whole, "%s_%s", model, tower);
    if (!mp_model_rule_of(config->model_type) && mp_model_rule_of(whole))
        snprintf(config->model_type, sizeof config->model_type, "%.63s", whole);
    return 0;
}

static int read_config(const json_t *root, const json_t *beside, const char *tower,
                       mp_config *config, mp_error *err)
{
    mp_config_scope found;
    const mp_config_scope *scope = &found;
    const json_t *quantization;

    if (!json_is_object(root))
        return mp_fail(err, MP_ERR_INPUT, "config.json: not a JSON object");
    scope_of(root, tower, &found);
    quantization = mp_scope_find(scope, "quantization_config");
    /* Kimi K2.5 and K3 have it in text_config, most models at the root, and ModelOpt also writes a
     * hf_quant_config.json. */
    if (!quantization)
        quantization = json_object_get(root, "quantization_config");
    if (!quantization)
        quantization = json_object_get(beside, "quantization");
    if (read_numbers(scope, config, err) != 0 || read_floats(scope, config, err) != 0 ||
        read_flags(scope, config, err) != 0 || read_model_type(scope, config, err) != 0 ||
        read_strings(scope, config, err) != 0 || read_expert_width(scope, config, err) != 0 ||
        read_string(json_object_get(quantization, "quant_method"), "quant_method",
                    config->quant_method, sizeof config->quant_method, err) != 0 ||
        read_block_size(quantization, config, err) != 0 || read_limits(scope, config, err) != 0 ||
        mp_config_read_layers(scope, config, err) != 0)
        return err->code;
    if (json_is_false(mp_scope_find(scope, "use_mixed_mlp_moe"))) /* Hunyuan's number is for it */
        config->num_shared_experts = 0;
    find_refused(scope, config);
    if (tower)
        return name_tower(root, tower, config, err);
    find_towers(root, config);
    return 0;
}

/* The JSON of DIR/NAME; an empty object and false where there is no such file. */
static int load_json(const char *dir, const char *name, json_t **root, bool *present, mp_error *err)
{
    char *path = mp_path_join(dir, name);
    int rc = path ? 0 : mp_fail_memory(err);

    *present = path && mp_path_exists(path);
    if (*present)
        rc = mp_json_load_python(path, MP_CONFIG_LIMIT, root, err);
    else if (rc == 0 && !(*root = json_object()))
        rc = mp_fail_memory(err);
    free(path);
    return rc;
}

int mp_config_load_tower(mp_config *config, const char *dir, const char *tower, mp_error *err)
{
    json_t *root = NULL, *beside = NULL;
    bool there;

    err = MP_NEVER_NULL(err);
    memset(config, 0, sizeof *config);
    int rc = load_json(dir, "config.json", &root, &config->present, err);
    if (rc == 0 && !config->present) {
        json_decref(root);
        root = NULL;
        rc = load_json(dir, "params.json", &root, &there, err);
        /* Mistral's own format has no model_type. */
        if (rc == 0 && there && json_is_object(json_object_get(root, "moe")))
            json_object_set_new(root, "model_type", json_string("mistral_large_3"));
    }
    if (rc == 0)
        rc = load_json(dir, "hf_quant_config.json", &beside, &there, err);
    if (rc == 0)
        rc = read_config(root, beside, tower, config, err);
    json_decref(root);
    json_decref(beside);
    return rc;
}

int mp_config_load(mp_config *config, const char *dir, mp_error *err)
{
    return mp_config_load_tower(config, dir, NULL, err);
}

void mp_config_release(mp_config *config)
{
    free(config->dense_layers);
    free(config->swiglu_limits);
    memset(config, 0, sizeof *config);
}
