/* SPDX-License-Identifier: Apache-2.0 */
/* The router of a layer: its tensors by name, its rules by config.json and the family. */
#include <moepack/reference.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/select.h"
#include "forward/layer_router.h"

/* ------------------------------------------------------------------------
 * Rules
 */

/* What a family does where config.json does not say. */
typedef struct family_rule {
    const char *family;
    mp_scoring scoring;
    bool renormalize;
    bool weigh_input;
    bool swiglu_oai; /* the gate of GPT-OSS */
} family_rule;

static const family_rule rules[] = {
    {"deepseek_v4", MP_SCORE_SQRTSOFTPLUS, true, false, false},
    {"deepseek_v3", MP_SCORE_SIGMOID, true, false, false},
    {"kimi_k2", MP_SCORE_SIGMOID, true, false, false},
    {"glm_moe", MP_SCORE_SIGMOID, true, false, false},
    {"minimax_m2", MP_SCORE_SIGMOID, true, false, false},
    {"minimax_m3", MP_SCORE_SIGMOID, true, false, true},
    {"deepseek_v2", MP_SCORE_SOFTMAX, false, false, false},
    {"qwen3_moe", MP_SCORE_SOFTMAX, false, false, false},
    {"gpt_oss", MP_SCORE_SOFTMAX, true, false, true},
    {"llama4", MP_SCORE_SIGMOID, false, true, false},
};

/* Of all others: Mixtral, and the Qwen after Qwen3. */
static const family_rule usual = {NULL, MP_SCORE_SOFTMAX, true, false, false};

static const family_rule *rule_of(const char *family)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        if (strcmp(rules[i].family, family) == 0)
            return &rules[i];
    return &usual;
}

/* Alpha and beta are in its code, not in its config.json. */
static const mp_activation swiglu_oai = {.limit = 7, .alpha = 1.702f, .beta = 1};

static void replace(float *number, double given)
{
    if (!isnan(given))
        *number = (float)given;
}

/* Kimi K3's: its numbers have no defaults but "none" for the second one. */
static int read_situ(const mp_config *config, mp_activation *activation, mp_error *err)
{
    replace(&activation->situ, config->situ_beta);
    replace(&activation->situ_linear, config->situ_linear_beta);
    if (!(activation->situ > 0) || !isfinite(activation->situ))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: hidden_act \"situ\" takes an activation_situ_beta above 0");
    if (!(activation->situ_linear >= 0) || !isfinite(activation->situ_linear))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "config.json: activation_situ_linear_beta is %g",
                       (double)activation->situ_linear);
    return 0;
}

int mp_model_activation(const mp_config *config, const char *family, mp_activation *activation,
                        bool *weigh_input, mp_error *err)
{
    static const char *const known[] = {"", "silu", "swish", "swigluoai", "situ"};
    const family_rule *rule = rule_of(family);
    size_t i = 0;

    while (i < sizeof known / sizeof known[0] && strcmp(known[i], config->hidden_act) != 0)
        i++;
    if (i == sizeof known / sizeof known[0])
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: hidden_act \"%s\"; there are silu, swigluoai and situ",
                       config->hidden_act);
    *activation = (mp_activation){0};
    if (rule->swiglu_oai || strcmp(config->hidden_act, "swigluoai") == 0)
        *activation = swiglu_oai;
    replace(&activation->limit, config->swiglu_limit);
    replace(&activation->alpha, config->swiglu_alpha);
    replace(&activation->beta, config->swiglu_beta);
    *weigh_input = rule->weigh_input;
    if (strcmp(config->hidden_act, "situ") == 0 || config->situ_beta > 0)
        return read_situ(config, activation, err);
    return 0;
}

static int read_rules(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                      mp_error *err)
{
    const mp_config *config = &catalog->config;
    const family_rule *rule = rule_of(catalog->family);
    bool groups = config->n_group != MP_CONFIG_ABSENT && config->topk_group != MP_CONFIG_ABSENT &&
                  strcmp(config->topk_method, "greedy") != 0;

    if (config->experts_per_token == MP_CONFIG_ABSENT)
        return mp_fail(err, MP_ERR_INPUT, "config.json: no num_experts_per_tok");
    if (config->experts_per_token == 0 || config->experts_per_token > layer->num_experts)
        return mp_fail(err, MP_ERR_INPUT, "config.json: %llu of %u experts a token",
                       (unsigned long long)config->experts_per_token, layer->num_experts);
    r->router = (mp_router){
        .scoring = rule->scoring,
        .num_experts = layer->num_experts,
        .k = (uint32_t)config->experts_per_token,
        .renormalize = config->norm_topk_prob < 0 ? rule->renormalize : config->norm_topk_prob > 0,
        .scale = isnan(config->routed_scaling_factor) ? 1 : (float)config->routed_scaling_factor,
    };
    if (groups && config->n_group <= layer->num_experts && config->topk_group <= config->n_group) {
        r->router.n_group = (uint32_t)config->n_group;
        r->router.topk_group = (uint32_t)config->topk_group;
    } else if (groups) {
        return mp_fail(err, MP_ERR_INPUT, "config.json: %llu of %llu groups of %u experts",
                       (unsigned long long)config->topk_group, (unsigned long long)config->n_group,
                       layer->num_experts);
    }
    if (config->scoring_func[0] && !mp_scoring_parse(config->scoring_func, &r->router.scoring))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: scoring_func \"%s\"; there are softmax, sigmoid and "
                       "sqrtsoftplus",
                       config->scoring_func);
    return 0;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* The first there is of the tensors PREFIX.BLOCK.NAME; null-terminated names. */
static int find_tensor(const mp_catalog *catalog, const mp_moe_layer *layer,
                       const char *const *names, const mp_tensor **tensor, mp_error *err)
{
    *tensor = NULL;
    for (; *names && !*tensor; names++) {
        char *name = mp_format("%s.%s.%s", layer->prefix, layer->naming->block, *names);

        if (!name)
            return mp_fail_memory(err);
        *tensor = mp_checkpoint_find(&catalog->checkpoint, name);
        free(name);
    }
    return 0;
}

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
    int rc = find_tensor(catalog, layer, names, &tensor, err);

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
    static const char *const names[] = {"gate.weight", "router.weight", NULL};
    const mp_tensor *tensor;
    int rc = find_tensor(catalog, layer, names, &tensor, err);

    if (rc != 0)
        return rc;
    if (!tensor)
        return 0;
    if (tensor->rank == 2 && tensor->shape[1] != r->hidden_size)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: takes %llu columns, the experts %llu: what stands between them is not "
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
    int rc = find_tensor(catalog, layer, names, &tensor, err);

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

/* What a router may have and this one does not compute. */
static int refuse_others(const mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err)
{
    static const char *const names[] = {"gate.gate_temp", "gate_temp",
                                        "routed_expert_down_proj.weight", NULL};
    const mp_tensor *tensor;
    int rc = find_tensor(catalog, layer, names, &tensor, err);

    if (rc != 0 || !tensor)
        return rc;
    return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: what it does is not computed", tensor->name);
}

static int read_tensors(mp_layer_router *r, const mp_catalog *catalog, const mp_moe_layer *layer,
                        mp_error *err)
{
    static const char *const biases[] = {"gate.e_score_correction_bias", "gate.bias",
                                         "e_score_correction_bias", "gate.expert_bias", NULL};
    static const char *const logit_biases[] = {"router.bias", NULL};
    static const char *const shared_gates[] = {"shared_expert_gate.weight", NULL};
    uint32_t n = r->router.num_experts;
    int rc = refuse_others(catalog, layer, err);

    if (rc == 0)
        rc = read_gate(r, catalog, layer, err);
    if (rc == 0)
        rc = read_vector(catalog, layer, biases, n, &r->bias, err);
    if (rc == 0)
        rc = read_vector(catalog, layer, logit_biases, n, &r->logit_bias, err);
    if (rc == 0 && layer->has_shared)
        rc = read_vector(catalog, layer, shared_gates, r->hidden_size, &r->shared_gate, err);
    if (rc == 0)
        rc = read_table(r, catalog, layer, err);
    r->router.bias = r->bias;
    return rc;
}

int mp_layer_router_open(mp_layer_router *router, const mp_catalog *catalog,
                         const mp_moe_layer *layer, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *router = (mp_layer_router){
        .hidden_size = catalog->hidden_size,
        .shared = layer->has_shared ? catalog->num_shared_experts : 0,
    };
    int rc = read_rules(router, catalog, layer, err);
    if (rc == 0)
        rc = read_tensors(router, catalog, layer, err);
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
