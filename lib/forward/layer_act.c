/* SPDX-License-Identifier: Apache-2.0 */
/* What the experts of a model compute between their products, and what their block does with it:
 * by model_type. */

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/rules.h"
#include "forward/reference.h"

/* Alpha, beta and the limit are in GPT-OSS's code, not in its config.json. */
static const mp_activation swiglu_oai = {.limit = 7, .alpha = 1.702f, .beta = 1};

static bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

static void replace(float *number, double given)
{
    if (!isnan(given))
        *number = (float)given;
}

/* hidden_act has to be what is known; "swigluoai" of what is not known says enough. */
static int check_hidden_act(const mp_config *config, mp_error *err)
{
    static const char *const known[] = {"", "silu", "swish", "swigluoai", "situ"};

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (is(known[i], config->hidden_act))
            return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "config.json: hidden_act \"%s\" is not silu, swigluoai or situ",
                   config->hidden_act);
}

/* Kimi K3's numbers; elsewhere config.json has to say the first. */
static int read_situ(const mp_config *config, bool k3, mp_activation *a, mp_error *err)
{
    a->situ = k3 ? 4 : 0;
    replace(&a->situ, config->situ_beta);
    replace(&a->situ_linear, config->situ_linear_beta);
    if (!(a->situ > 0) || !isfinite(a->situ))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: hidden_act \"situ\" needs an activation_situ_beta above 0");
    if (!(a->situ_linear >= 0) || !isfinite(a->situ_linear))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "config.json: activation_situ_linear_beta is %g",
                       (double)a->situ_linear);
    return 0;
}

static int activation_of(const mp_config *config, const mp_model_rule *rule, uint64_t layer,
                         mp_activation *a, mp_error *err)
{
    mp_act_rule act = rule ? rule->act : MP_ACT_SILU;

    *a = (mp_activation){0};
    if (act == MP_ACT_RELU2 || act == MP_ACT_GELU)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "activation %s of model_type \"%s\" is not computed",
                       act == MP_ACT_RELU2 ? "relu2" : "gelu", config->model_type);
    if (act == MP_ACT_SITU || is(config->hidden_act, "situ"))
        return read_situ(config, act == MP_ACT_SITU, a, err);
    if (act != MP_ACT_OAI && check_hidden_act(config, err) != 0)
        return err->code;
    if (!rule && config->swiglu_limit > 0 && !is(config->hidden_act, "swigluoai"))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "config.json: what swiglu_limit does in model_type \"%s\" is not known",
                       config->model_type);
    if (act == MP_ACT_LATE) {
        a->late = true;
        if (layer < config->num_swiglu_limits)
            a->limit = (float)config->swiglu_limits[layer];
        return 0;
    }
    if (act == MP_ACT_OAI || is(config->hidden_act, "swigluoai")) {
        *a = swiglu_oai;
        replace(&a->alpha, config->swiglu_alpha);
        replace(&a->beta, config->swiglu_beta);
    }
    if (act == MP_ACT_LIMITED)
        a->limit = (float)rule->limit;
    if (act == MP_ACT_LIMITED || a->alpha != 0)
        replace(&a->limit, config->swiglu_limit);
    return 0;
}

int mp_model_activation(const mp_config *config, uint64_t layer, mp_activation *activation,
                        mp_activation *shared, bool *weigh_input, mp_error *err)
{
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);
    int rc = activation_of(config, rule, layer, activation, MP_NEVER_NULL(err));

    if (shared)
        *shared = *activation;
    if (shared && rule && rule->shared_unlimited)
        shared->limit = 0;
    if (weigh_input)
        *weigh_input = rule && rule->weigh_input;
    return rc;
}

int mp_model_check_block(const mp_config *config, bool packed, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);

    if (rule && rule->refused)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s", rule->refused);
    if (config->latent_size != MP_CONFIG_ABSENT)
        return mp_fail(
            err, MP_ERR_UNSUPPORTED,
            "experts work on a latent of %llu: what leads to it and back is not computed",
            (unsigned long long)config->latent_size);
    if (packed && rule && (rule->block_bias || rule->mixed))
        return mp_fail(err, MP_ERR_USAGE,
                       "what model_type \"%s\" does with the sum of its experts is in the "
                       "checkpoint: give --source",
                       config->model_type);
    return 0;
}
