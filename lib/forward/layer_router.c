/* SPDX-License-Identifier: Apache-2.0 */
/* The router of a layer: its tensors by name, its rules by config.json and the family. Which
 * experts a token takes and what they weigh differs between models in small things that config.json
 * does not say: whether weights are renormalized, whether a bias is for the choice only, what a
 * group's score is. These rules stand in checkpoint/rules.c by model_type, each with its source;
 * here they meet the layer's tensors.
 *
 * A wrong rule gives plausible numbers, so nothing is guessed. A model_type that is not known
 * routes only where config.json itself says everything. And every tensor of the block that looks as
 * if it had to do with routing has to be one that a rule reads; others refuse:
 *
 *   a tensor that changes what the layer gives   the layer cannot be computed
 *   one that changes only the choice             choices have to be given (router->cannot)
 *
 * So a router that cannot choose opens all the same, with its gates of shared experts and biases.
 * All of it is read into memory, checked to be finite, by one thread; routing only reads it. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/select.h"
#include "checkpoint/router_names.h"
#include "checkpoint/rules.h"
#include "forward/layer_router.h"
#include "forward/reference.h"
#include "numeric/quantize.h"

/* ------------------------------------------------------------------------
 * Rules
 */

static bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

static int cannot_tell(const mp_config *config, mp_error *err)
{
    if (!config->model_type[0])
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json has no model_type: how it routes is not known; give topk_ids "
                       "and topk_weights with --input");
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "how model_type \"%s\" routes is not known; give topk_ids and topk_weights with "
                   "--input",
                   config->model_type);
}

/* Groups of experts, where config.json has more than the token may choose from. */
static int read_groups(mp_router *r, const mp_config *config, const mp_model_rule *rule,
                       mp_error *err)
{
    /* "gready" is how DeepSeek-V2's own code spells it. */
    bool v2 = rule && rule->groups == MP_GROUPS_OF_V2;
    bool best = is(config->topk_method, "group_limited_greedy");

    if (config->n_group == MP_CONFIG_ABSENT || config->topk_group == MP_CONFIG_ABSENT ||
        (rule && rule->groups == MP_GROUPS_NONE) || is(config->topk_method, "greedy") ||
        is(config->topk_method, "gready") || (v2 && !best && !is(config->topk_method, "noaux_tc")))
        return 0;
    if (config->n_group > r->num_experts || config->topk_group > config->n_group)
        return mp_fail(err, MP_ERR_INPUT, "config.json: %llu of %llu groups of %u experts",
                       (unsigned long long)config->topk_group, (unsigned long long)config->n_group,
                       r->num_experts);
    r->n_group = (uint32_t)config->n_group;
    r->topk_group = (uint32_t)config->topk_group;
    r->group_best = v2 && best ? 1 : 2;
    return 0;
}

static bool renormalizes(const mp_config *config, const mp_model_rule *rule, const mp_router *r)
{
    bool several = rule->groups == MP_GROUPS_OF_V2 || rule->shared_unlimited || rule->widths;

    /* A softmax over the chosen logits is one over all of them, divided by its sum. */
    if (rule->by_logits && r->scoring == MP_SCORE_SOFTMAX)
        return true;
    switch (rule->renormalize) {
    case MP_RENORM_ALWAYS:
        return true;
    case MP_RENORM_NEVER:
        return false;
    case MP_RENORM_SEVERAL:
        return r->k > 1;
    case MP_RENORM_TRUE:
    case MP_RENORM_FALSE:
        break;
    }
    if (several && r->k == 1)
        return false;
    return config->norm_topk_prob < 0 ? rule->renormalize == MP_RENORM_TRUE
                                      : config->norm_topk_prob > 0;
}

/* The rule of a layer: some bailing_moe are of the second version. */
static const mp_model_rule *rule_of(const mp_catalog *catalog, bool biased)
{
    const mp_config *config = &catalog->config;

    if (is(config->model_type, "bailing_moe") && (biased || is(config->scoring_func, "sigmoid")))
        return mp_model_rule_of("bailing_moe_v2");
    return mp_model_rule_of(config->model_type);
}

/* biased: there is the tensor of a bias of the choice. */
static int read_known(mp_layer_router *r, const mp_config *config, const mp_model_rule *rule,
                      bool biased, mp_error *err)
{
    bool plain = rule->score_by_bias && !biased;
    const char *score = rule->config_score && config->scoring_func[0] ? config->scoring_func
                        : plain                                       ? "softmax"
                                                                      : rule->score;

    if (config->refused[0])
        return mp_fail(err, MP_ERR_UNSUPPORTED, "config.json: \"%s\" is not supported",
                       config->refused);
    if (!mp_scoring_parse(score, &r->router.scoring))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: scoring_func \"%s\" is not softmax, sigmoid or sqrtsoftplus",
                       score);
    r->router.by_logits = rule->by_logits;
    r->router.renormalize =
        renormalizes(config, rule, &r->router) && !(plain && r->router.scoring == MP_SCORE_SOFTMAX);
    r->router.epsilon = (float)rule->epsilon;
    if (rule->norm_min)
        r->router.least_sum = isnan(config->norm_min) ? 1e-12f : (float)config->norm_min;
    if (rule->scale > 0)
        r->router.scale =
            (float)(isnan(config->routed_scaling_factor) ? rule->scale
                                                         : config->routed_scaling_factor);
    r->scale_taken = rule->scale_assumed && isnan(config->routed_scaling_factor);
    r->router.near = isnan(config->jitter) ? 0.01f : (float)config->jitter;
    r->logit_cap = isnan(config->logit_cap) ? 0 : (float)config->logit_cap;
    return 0;
}

/* A model_type that is not known: only what config.json itself says. */
static int read_unknown(mp_layer_router *r, const mp_config *config, mp_error *err)
{
    if (!mp_scoring_parse(config->scoring_func, &r->router.scoring) ||
        r->router.scoring == MP_SCORE_SPARSEMIXER || config->norm_topk_prob < 0 ||
        config->refused[0])
        return cannot_tell(config, err);
    r->router.renormalize = config->norm_topk_prob > 0;
    r->scale_taken = isnan(config->routed_scaling_factor);
    if (!r->scale_taken)
        r->router.scale = (float)config->routed_scaling_factor;
    return 0;
}

/* How the layer routes. The number of experts is settled whatever comes of it. */
static int read_rules(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                      const mp_model_rule *rule, bool biased, mp_error *err)
{
    const mp_config *config = &catalog->config;

    if (config->experts_per_token == MP_CONFIG_ABSENT)
        return mp_fail(err, MP_ERR_INPUT, "config.json: no num_experts_per_tok");
    if (config->experts_per_token == 0 || config->experts_per_token > layer->num_experts)
        return mp_fail(err, MP_ERR_INPUT, "config.json: %llu of %u experts a token",
                       (unsigned long long)config->experts_per_token, layer->num_experts);
    r->router.k = (uint32_t)config->experts_per_token;
    if (rule ? read_known(r, config, rule, biased, err) : read_unknown(r, config, err))
        return err->code;
    return read_groups(&r->router, config, rule, err);
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* A tensor of rows * cols numbers, with or without dimensions of 1 before these. */
static int check_shape(const mp_tensor *tensor, uint64_t rows, uint64_t cols, mp_error *err)
{
    uint64_t numbers = 1;
    char shape[MP_SHAPE_TEXT];

    for (uint32_t d = 0; d < tensor->rank; d++)
        numbers *= tensor->shape[d];
    if (tensor->rank > 0 && tensor->shape[tensor->rank - 1] == cols && numbers == rows * cols)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: shape %s, expected [%llu, %llu]", tensor->name,
                   mp_shape_text(tensor->shape, tensor->rank, shape), (unsigned long long)rows,
                   (unsigned long long)cols);
}

/* One row of them as float32; buffer: cols numbers of up to 8 bytes. */
static int read_row(const mp_catalog *catalog, const mp_tensor *tensor, uint64_t row, uint64_t cols,
                    void *buffer, float *out, mp_error *err)
{
    uint64_t bytes = cols * mp_dtype_bits(tensor->dtype) / 8;

    if (mp_tensor_read(&catalog->checkpoint, tensor, row * bytes, bytes, buffer, err) != 0)
        return err->code;
    if (!mp_scales_convert(tensor->dtype, buffer, cols, MP_F32, out))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s, expected F32, BF16 or F16", tensor->name,
                       mp_dtype_name(tensor->dtype));
    for (uint64_t i = 0; i < cols; i++)
        if (!isfinite(out[i]))
            return mp_fail(err, MP_ERR_INPUT, "%s: row %llu, column %llu: %g", tensor->name,
                           (unsigned long long)row, (unsigned long long)i, (double)out[i]);
    return 0;
}

/* All rows, to rows of `stride` numbers. */
static int read_floats(const mp_catalog *catalog, const mp_tensor *tensor, uint64_t rows,
                       uint64_t cols, uint64_t stride, float *out, mp_error *err)
{
    void *buffer = mp_alloc(cols, sizeof(double));
    int rc = buffer ? 0 : mp_fail_memory(err);

    for (uint64_t r = 0; rc == 0 && r < rows; r++)
        rc = read_row(catalog, tensor, r, cols, buffer, out + r * stride, err);
    free(buffer);
    return rc;
}

/* A vector of n numbers where there is a tensor of one of these names; else null. */
static int read_vector(const mp_catalog *catalog, const mp_moe_layer *layer,
                       const char *const *names, uint64_t n, float **out, mp_error *err)
{
    const mp_tensor *tensor;
    int rc = mp_block_tensor_of(catalog, layer, names, &tensor, err);

    if (rc == 0 && tensor)
        rc = check_shape(tensor, 1, n, err);
    if (rc != 0 || !tensor)
        return rc;
    *out = mp_alloc(n, sizeof **out);
    if (!*out)
        return mp_fail_memory(err);
    return read_floats(catalog, tensor, 1, n, n, *out, err);
}

static int read_gate(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                     mp_error *err)
{
    const mp_tensor *tensor;
    int rc = mp_block_tensor_of(catalog, layer, mp_router_weights, &tensor, err);

    if (rc != 0)
        return rc;
    if (!tensor)
        return 0;
    /* Another width than the experts' means a projection before them, as of latent experts. */
    if (tensor->rank == 2 && tensor->shape[1] != r->hidden_size)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: takes %llu columns, the experts %llu: what is between them is not "
                       "computed",
                       tensor->name, (unsigned long long)tensor->shape[1],
                       (unsigned long long)r->hidden_size);
    if (check_shape(tensor, r->router.num_experts, r->hidden_size, err) != 0)
        return err->code;
    r->gate = mp_alloc_zeroed(mp_gate_rows(r) * mp_gate_stride(r), sizeof *r->gate);
    if (!r->gate)
        return mp_fail_memory(err);
    return read_floats(catalog, tensor, r->router.num_experts, r->hidden_size, mp_gate_stride(r),
                       r->gate, err);
}

/* Row by row of [vocab, k], I64 or I32. */
static int read_table_row(const mp_catalog *catalog, const mp_tensor *tensor, uint64_t row,
                          const mp_router *router, void *buffer, int32_t *out, mp_error *err)
{
    bool wide = tensor->dtype == MP_I64;
    uint64_t bytes = router->k * (wide ? sizeof(int64_t) : sizeof(int32_t));
    int rc = mp_tensor_read(&catalog->checkpoint, tensor, row * bytes, bytes, buffer, err);

    for (uint32_t j = 0; rc == 0 && j < router->k; j++) {
        int64_t id = wide ? ((const int64_t *)buffer)[j] : ((const int32_t *)buffer)[j];

        /* Checked once here, so that a token's row can be copied as it is. */
        if (id < 0 || id >= (int64_t)router->num_experts)
            return mp_fail(err, MP_ERR_INPUT, "%s: row %llu: expert %lld of %u", tensor->name,
                           (unsigned long long)row, (long long)id, router->num_experts);
        out[j] = (int32_t)id;
    }
    return rc;
}

static int read_table(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                      mp_error *err)
{
    static const char *const names[] = {"gate.tid2eid", NULL};
    const mp_tensor *tensor;
    char shape[MP_SHAPE_TEXT];
    int rc = mp_block_tensor_of(catalog, layer, names, &tensor, err);

    if (rc != 0 || !tensor)
        return rc;
    if ((tensor->dtype != MP_I64 && tensor->dtype != MP_I32) || tensor->rank != 2 ||
        tensor->shape[1] != r->router.k)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s %s, expected I64 [vocabulary, %u]", tensor->name,
                       mp_dtype_name(tensor->dtype),
                       mp_shape_text(tensor->shape, tensor->rank, shape), r->router.k);
    int64_t *buffer = mp_alloc(r->router.k, sizeof *buffer);
    r->vocab = tensor->shape[0];
    r->by_token = mp_alloc(r->vocab * r->router.k, sizeof *r->by_token);
    if (!buffer || !r->by_token)
        rc = mp_fail_memory(err);
    for (uint64_t row = 0; rc == 0 && row < r->vocab; row++)
        rc = read_table_row(catalog, tensor, row, &r->router, buffer,
                            r->by_token + row * r->router.k, err);
    free(buffer);
    return rc;
}

/* What a block may hold beside its experts that changes what it gives. */
typedef enum concern { NOTHING, CHOICES, RESULT } concern;

/* What a tensor, named as it is behind its block, has to do with the result: nothing if it is
 * read or of no account. */
static concern concern_of(const char *name, const mp_model_rule *rule)
{
    static const char *const results[] = {"coefficient", "routed_expert_", "multi_gate"};
    static const char *const choices[] = {"router.", "gate.", "per_expert_scale"};
    const size_t n = strlen(name);
    bool choice_bias = false;

    for (const char *const *bias = mp_choice_biases; *bias; bias++)
        choice_bias |= is(*bias, name);
    for (const char *const *weight = mp_router_weights; *weight; weight++)
        if (is(*weight, name))
            return NOTHING;
    if (is(name, "gate.tid2eid") || (choice_bias && (!rule || rule->bias)) ||
        (is(name, "gate.bias") && rule && is(rule->score, "sqrtsoftplus")) ||
        (is(name, "router.bias") && rule && rule->logit_bias) ||
        (is(name, "bias") && rule && rule->block_bias))
        return NOTHING;
    if (strstr(name, "latent_proj") || (is(name, "bias")))
        return RESULT;
    for (size_t i = 0; i < sizeof results / sizeof results[0]; i++)
        if (strncmp(name, results[i], strlen(results[i])) == 0)
            return rule && rule->mixed && strncmp(name, "coefficient.", 12) == 0 ? NOTHING : RESULT;
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
        if (strncmp(name, choices[i], strlen(choices[i])) == 0)
            return CHOICES;
    return choice_bias || is(name, "gate_temp") ||
                   (n > 4 && is(name + n - 4, "bias") && !strchr(name, '.'))
               ? CHOICES
               : NOTHING;
}

/* Refuses tensors of the block that no rule reads: at once where they change what experts give,
 * else when the router has to choose. */
static int refuse_others(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                         const mp_model_rule *rule, mp_error *err)
{
    for (size_t i = 0; i < catalog->checkpoint.num_tensors; i++) {
        const char *name = catalog->checkpoint.tensors[i].name;
        const char *rest = mp_block_rest(layer, name);
        concern does = rest ? concern_of(rest, rule) : NOTHING;

        if (does == RESULT)
            return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: what it does is not computed", name);
        if (does == CHOICES && r->cannot.code == 0)
            mp_fail(&r->cannot, MP_ERR_UNSUPPORTED,
                    "%s: what it does is not computed; give topk_ids and topk_weights with --input",
                    name);
    }
    return 0;
}

/* What the block does with what its experts give. */
static int read_block(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                      const mp_model_rule *rule, mp_error *err)
{
    static const char *const shared_gates[] = {"shared_expert_gate.weight", NULL};
    static const char *const mix_biases[] = {"coefficient.bias", NULL};
    static const char *const block_biases[] = {"bias", NULL};
    const mp_tensor *mix = NULL;
    float *bias = NULL;
    int rc = 0;

    if (layer->has_shared)
        rc = read_vector(catalog, layer, shared_gates, r->hidden_size, &r->shared_gate, err);
    if (rc == 0 && rule && rule->block_bias)
        rc = read_vector(catalog, layer, block_biases, r->hidden_size, &r->block_bias, err);
    if (rc == 0 && rule && rule->mixed)
        rc = mp_block_tensor(catalog, layer, "coefficient.weight", &mix, err);
    if (rc != 0 || !mix)
        return rc;
    r->mix = mp_alloc(2 * r->hidden_size, sizeof *r->mix);
    rc = r->mix ? check_shape(mix, 2, r->hidden_size, err) : mp_fail_memory(err);
    if (rc == 0)
        rc = read_floats(catalog, mix, 2, r->hidden_size, r->hidden_size, r->mix, err);
    if (rc == 0)
        rc = read_vector(catalog, layer, mix_biases, 2, &bias, err);
    if (rc == 0 && bias)
        memcpy(r->mix_bias, bias, sizeof r->mix_bias);
    free(bias);
    return rc;
}

static int read_tensors(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                        const mp_model_rule *rule, mp_error *err)
{
    static const char *const gate_bias[] = {"gate.bias", NULL};
    static const char *const logit_biases[] = {"router.bias", NULL};
    uint32_t n = r->router.num_experts;
    int rc = read_gate(r, catalog, layer, err);

    if (rc == 0 && (!rule || rule->bias))
        rc = read_vector(catalog, layer, mp_choice_biases, n, &r->bias, err);
    if (rc == 0 && !r->bias && rule && is(rule->score, "sqrtsoftplus"))
        rc = read_vector(catalog, layer, gate_bias, n, &r->bias, err);
    if (rc == 0 && rule && rule->logit_bias)
        rc = read_vector(catalog, layer, logit_biases, n, &r->logit_bias, err);
    if (rc == 0)
        rc = read_table(r, catalog, layer, err);
    r->router.bias = r->bias;
    return rc;
}

int mp_layer_router_open(mp_layer_router *router, const mp_catalog *catalog,
                         const mp_moe_layer *layer, mp_error *err)
{
    const mp_tensor *bias;

    err = MP_NEVER_NULL(err);
    *router = (mp_layer_router){0};
    if (mp_block_tensor_of(catalog, layer, mp_choice_biases, &bias, err) != 0)
        return err->code;
    const mp_model_rule *rule = rule_of(catalog, bias != NULL);
    uint64_t zero = catalog->config.zero_experts;
    /* cohere2_moe averages unless its config.json says otherwise. */
    bool average =
        is(catalog->config.shared_combination, "average") ||
        (is(catalog->config.model_type, "cohere2_moe") && !catalog->config.shared_combination[0]);

    *router = (mp_layer_router){
        .hidden_size = catalog->hidden_size,
        .num_experts = layer->num_experts,
        .router = {.num_experts = layer->num_experts, .scale = 1},
        .shared = layer->has_shared ? catalog->num_shared_experts : 0,
        .part = average && layer->has_shared ? 0.5f : 1,
    };
    /* Choices are int32. */
    if (zero != MP_CONFIG_ABSENT && zero <= INT32_MAX - (uint64_t)layer->num_experts)
        router->router.num_experts += (uint32_t)zero;
    /* Before anything is read: a layer that cannot be computed says so at once. */
    int rc = mp_model_check_block(&catalog->config, false, err);
    if (rc == 0)
        rc = refuse_others(router, catalog, layer, rule, err);
    if (rc == 0)
        rc = read_block(router, catalog, layer, rule, err);
    /* What is not supported stays in `cannot`; what is malformed is an error of the layer. */
    if (rc == 0 && router->cannot.code == 0 &&
        read_rules(router, catalog, layer, rule, bias != NULL, &router->cannot) !=
            MP_ERR_UNSUPPORTED &&
        router->cannot.code != 0)
        rc = mp_fail(err, router->cannot.code, "%s", router->cannot.message);
    if (rc == 0 && router->cannot.code == 0)
        rc = read_tensors(router, catalog, layer, rule, err);
    if (rc != 0)
        mp_layer_router_release(router);
    return rc;
}

void mp_layer_router_release(mp_layer_router *router)
{
    free(router->gate);
    free(router->logit_bias);
    free(router->bias);
    free(router->by_token);
    free(router->shared_gate);
    free(router->mix);
    free(router->block_bias);
    *router = (mp_layer_router){0};
}

int mp_find_layer(const mp_catalog *catalog, const char *name, const mp_moe_layer **layer,
                  mp_error *err)
{
    const char **prefixes = mp_alloc(catalog->num_layers, sizeof *prefixes);
    size_t index;

    if (!prefixes)
        return mp_fail_memory(err);
    for (size_t i = 0; i < catalog->num_layers; i++)
        prefixes[i] = catalog->layers[i].prefix;
    int rc = mp_select_layer(name, prefixes, catalog->num_layers, &index, err);
    *layer = &catalog->layers[index];
    free(prefixes);
    return rc;
}
