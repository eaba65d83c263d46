/* SPDX-License-Identifier: Apache-2.0 */
/* Which layers have experts: families say so by a list of layers, or by a number or two. A list of
 * all layers overrides numbers.
 *
 *     mlp_layer_types           ["dense", "sparse", ...]     an entry per layer
 *     is_moe_layer              [false, true, ...]
 *     layers_block_type         ["mamba", "moe", ...]
 *     moe_layer_freq            [0, 1, 1, ...]               or a number: every so many layers
 *     hybrid_override_pattern   "MEM*E-"                     a letter per layer
 *     moe_layers                [3, 4, 5]                    the layers with experts
 *     mlp_only_layers           [0, 1, 2]                    the layers without
 *     first_k_dense_replace, decoder_sparse_step, expert_layer_period and the like: numbers
 *
 * Lists become one array of flags, dense_layers. Numbers stay numbers and are consulted for each
 * layer, which has experts unless one of them says otherwise. Whether anything is said at all is
 * tracked separately, because a layer without experts is a problem only if some were promised.
 * Before memory is allocated, lengths are bounded by the file and numbers of layers by
 * MP_CONFIG_LIMIT. One thread. */
#include "checkpoint/config.h"

#include "base/error.h"
#include "checkpoint/rules.h"

#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static int begin_list(mp_config *config, uint64_t count, mp_error *err)
{
    config->dense_layers = mp_alloc_zeroed(count, 1);
    if (!config->dense_layers)
        return mp_fail_memory(err);
    config->num_dense_layers = count;
    return 0;
}

/* Lists whose entries are numbers of layers need to know how many there are. */
static int begin_numbers(mp_config *config, const char *key, mp_error *err)
{
    uint64_t layers = config->num_hidden_layers;

    if (layers == MP_CONFIG_ABSENT || layers > MP_CONFIG_LIMIT)
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" needs a sound \"num_hidden_layers\"",
                       key);
    return begin_list(config, layers, err);
}

/* ------------------------------------------------------------------------
 * One entry a layer
 */

/* How an entry says that its layer is dense. */
typedef enum entry { WORD_DENSE, WORD_MOE, FLAG_TRUE, FLAG_ONE } entry;

static int read_entry(const json_t *value, entry kind, const char *key, size_t i,
                      unsigned char *dense, mp_error *err)
{
    const char *word = json_string_value(value);

    switch (kind) {
    case WORD_DENSE:
    case WORD_MOE:
        if (!word)
            return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\": entry %zu is not a string", key,
                           i);
        *dense = kind == WORD_DENSE ? strcmp(word, "dense") == 0 : strcmp(word, "moe") != 0;
        return 0;
    case FLAG_TRUE:
        if (!json_is_boolean(value))
            return mp_fail(err, MP_ERR_INPUT,
                           "config.json: \"%s\": entry %zu is neither true nor false", key, i);
        *dense = !json_is_true(value);
        return 0;
    case FLAG_ONE:
        break;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > 1)
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\": entry %zu is neither 0 nor 1", key,
                       i);
    *dense = json_integer_value(value) == 0;
    return 0;
}

static int read_entries(const json_t *list, const char *key, entry kind, mp_config *config,
                        mp_error *err)
{
    int rc = begin_list(config, json_array_size(list), err);

    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++)
        rc = read_entry(json_array_get(list, i), kind, key, i, &config->dense_layers[i], err);
    config->lists_layers = true;
    return rc;
}

/* Whether a list of blocks is about experts at all, and not about attention only. */
static bool names_moe(const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *word = json_string_value(json_array_get(list, i));

        if (word && strcmp(word, "moe") == 0)
            return true;
    }
    return false;
}

/* "MEM*E-": one letter a layer, E has experts. The list's length is the number of layers. */
static int read_pattern(const char *pattern, mp_config *config, mp_error *err)
{
    if (begin_list(config, strlen(pattern), err) != 0)
        return err->code;
    for (size_t i = 0; pattern[i]; i++)
        config->dense_layers[i] = pattern[i] != 'E';
    config->num_hidden_layers = strlen(pattern);
    config->lists_layers = true;
    return 0;
}

/* ------------------------------------------------------------------------
 * Numbers of layers
 */

static int mark_layer(mp_config *config, const char *key, size_t i, const json_t *value,
                      unsigned char flag, mp_error *err)
{
    json_int_t layer = json_integer_value(value);

    if (!json_is_integer(value) || layer < 0 || (uint64_t)layer >= config->num_dense_layers)
        return mp_fail(err, MP_ERR_INPUT,
                       "config.json: \"%s\": entry %zu is not a layer below %llu", key, i,
                       (unsigned long long)config->num_dense_layers);
    config->dense_layers[layer] = flag;
    return 0;
}

/* mlp_only_layers: the numbers of the dense layers. */
static int read_dense_numbers(const json_t *list, const char *key, mp_config *config, mp_error *err)
{
    int rc = json_array_size(list) > 0 ? begin_numbers(config, key, err) : 0;

    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++)
        rc = mark_layer(config, key, i, json_array_get(list, i), 1, err);
    return rc;
}

/* moe_layers: the numbers of the others. */
static int read_moe_numbers(const json_t *list, const char *key, mp_config *config, mp_error *err)
{
    int rc = begin_numbers(config, key, err);

    if (rc == 0)
        memset(config->dense_layers, 1, config->num_dense_layers);
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++)
        rc = mark_layer(config, key, i, json_array_get(list, i), 0, err);
    config->lists_layers = true;
    return rc;
}

/* The same as text: "3,4,5". */
static int read_moe_text(const char *text, const char *key, mp_config *config, mp_error *err)
{
    json_t *list = json_array();
    int rc = list ? 0 : mp_fail_memory(err);

    for (const char *p = text; rc == 0 && *p; p += strspn(p, ", ")) {
        char *end;
        unsigned long long layer = strtoull(p, &end, 10);

        if (end == p || layer > MP_CONFIG_LIMIT)
            rc = mp_fail(err, MP_ERR_INPUT, "config.json: \"%s\" is not a list of layers", key);
        else if (json_array_append_new(list, json_integer((json_int_t)layer)) != 0)
            rc = mp_fail_memory(err);
        p = end;
    }
    if (rc == 0)
        rc = read_moe_numbers(list, key, config, err);
    json_decref(list);
    return rc;
}

/* ------------------------------------------------------------------------
 * All keys
 */

/* The first list of all layers that there is. */
static int read_lists(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    static const struct {
        const char *key;
        entry kind;
    } lists[] = {{"mlp_layer_types", WORD_DENSE},
                 {"is_moe_layer", FLAG_TRUE},
                 {"layers_block_type", WORD_MOE}};
    const char *pattern = json_string_value(mp_scope_find(scope, "hybrid_override_pattern"));
    const json_t *value;

    for (size_t i = 0; i < COUNT(lists); i++) {
        value = mp_scope_find(scope, lists[i].key);
        if (!json_is_array(value) || (lists[i].kind == WORD_MOE && !names_moe(value)))
            continue;
        if (lists[i].kind == WORD_MOE)
            config->num_hidden_layers = json_array_size(value);
        return read_entries(value, lists[i].key, lists[i].kind, config, err);
    }
    if (pattern)
        return read_pattern(pattern, config, err);
    value = mp_scope_find(scope, "moe_layer_freq");
    if (json_is_array(value))
        return read_entries(value, "moe_layer_freq", FLAG_ONE, config, err);
    value = mp_scope_find(scope, "moe_layers");
    if (json_is_array(value))
        return read_moe_numbers(value, "moe_layers", config, err);
    value = mp_scope_find(scope, "moe_layers_enum");
    if (json_is_string(value))
        return read_moe_text(json_string_value(value), "moe_layers_enum", config, err);
    if (json_is_array(value))
        return read_moe_numbers(value, "moe_layers_enum", config, err);
    return 0;
}

/* A number, or the smallest or largest of a list of them. */
static int read_bound(const mp_config_scope *scope, const char *key, bool largest, uint64_t *bound,
                      mp_error *err)
{
    const json_t *value = mp_scope_find(scope, key);
    uint64_t number;

    *bound = MP_CONFIG_ABSENT;
    if (!value || (json_is_integer(value) && json_integer_value(value) == -1))
        return 0;
    if (!json_is_array(value))
        return mp_config_number(value, key, bound, err);
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (mp_config_number(json_array_get(value, i), key, &number, err) != 0)
            return err->code;
        if (i == 0 || (largest ? number > *bound : number < *bound))
            *bound = number;
    }
    return 0;
}

int mp_config_read_layers(const mp_config_scope *scope, mp_config *config, mp_error *err)
{
    const json_t *freq = mp_scope_find(scope, "moe_layer_freq");
    const json_t *dense = mp_scope_find(scope, "mlp_only_layers");
    const json_t *layers = mp_scope_find(scope, "num_layers");

    config->moe_layer_freq = MP_CONFIG_ABSENT;
    /* LongCat counts its layers twice, as each has two attentions. */
    if (config->zero_experts != MP_CONFIG_ABSENT && layers &&
        mp_config_number(layers, "num_layers", &config->num_hidden_layers, err) != 0)
        return err->code;
    if (freq && !json_is_array(freq) &&
        mp_config_number(freq, "moe_layer_freq", &config->moe_layer_freq, err) != 0)
        return err->code;
    if (dense && !json_is_array(dense))
        return mp_fail(err, MP_ERR_INPUT, "config.json: \"mlp_only_layers\" is not a list");
    if (read_bound(scope, "moe_layer_start_index", false, &config->moe_layer_start, err) != 0 ||
        read_bound(scope, "moe_layer_end_index", true, &config->moe_layer_end, err) != 0 ||
        read_lists(scope, config, err) != 0)
        return err->code;
    if (!config->lists_layers && dense &&
        read_dense_numbers(dense, "mlp_only_layers", config, err) != 0)
        return err->code;
    config->says_layers = config->lists_layers || dense ||
                          config->moe_layer_freq != MP_CONFIG_ABSENT ||
                          config->first_k_dense_replace != MP_CONFIG_ABSENT ||
                          config->decoder_sparse_step != MP_CONFIG_ABSENT ||
                          config->moe_layer_start != MP_CONFIG_ABSENT ||
                          config->moe_layer_interval != MP_CONFIG_ABSENT ||
                          config->expert_layer_period != MP_CONFIG_ABSENT;
    return 0;
}

/* Whether a number says anything, and it is one to divide by. */
static bool divides(uint64_t number)
{
    return number != MP_CONFIG_ABSENT && number > 0;
}

bool mp_config_is_moe_layer(const mp_config *config, uint64_t layer)
{
    uint64_t step = config->decoder_sparse_step, freq = config->moe_layer_freq;
    uint64_t period = config->expert_layer_period, offset = config->expert_layer_offset;

    if (layer < config->num_dense_layers && config->dense_layers[layer])
        return false;
    if (config->lists_layers)
        return true;
    if (config->first_k_dense_replace != MP_CONFIG_ABSENT && layer < config->first_k_dense_replace)
        return false;
    if (config->moe_layer_start != MP_CONFIG_ABSENT && layer < config->moe_layer_start)
        return false;
    if (config->moe_layer_end != MP_CONFIG_ABSENT && layer > config->moe_layer_end)
        return false;
    /* Counts from 1: an interval of 2 gives experts to layers 1, 3, 5. */
    if (divides(config->moe_layer_interval) && (layer + 1) % config->moe_layer_interval != 0)
        return false;
    /* Jamba's offset defaults to 1. */
    if (divides(period) && layer % period != (offset == MP_CONFIG_ABSENT ? 1 : offset) % period)
        return false;
    if (divides(step) && (layer + 1) % step != 0)
        return false;
    return !divides(freq) || layer % freq == 0;
}

bool mp_config_says_layer(const mp_config *config, uint64_t layer)
{
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);

    if (config->lists_layers)
        return layer < config->num_dense_layers;
    return config->says_layers || (rule && rule->all_layers);
}
