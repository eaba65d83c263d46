/* SPDX-License-Identifier: Apache-2.0 */
/* config.json of synthetic checkpoints: what the families' own say about experts. Keys differ from
 * family to family for the same numbers, so a family is a row of keys (synth_families.c); a null
 * key is one that it does not have. Constants are written as the JSON that a real config.json has,
 * copied member by member. Multimodal families nest the language model's facts in text_config.
 *
 * jansson takes over values also where setting fails, so a null from any step ends in releasing the
 * whole and nothing else. */
#include "synth/parts.h"

#include "base/error.h"
#include "checkpoint/config_said.h"

/* Most groups that DeepSeek V3's router has, and how many of eight it keeps. */
#define V3_GROUPS 8

/* Sets a member; nothing for a null key. Takes over value; null stands for no memory. */
static bool set(json_t *object, const char *key, json_t *value)
{
    if (!key) {
        json_decref(value);
        return true;
    }
    return json_object_set_new(object, key, value) == 0;
}

/* Adds the members of a constant JSON object. */
static bool add_constants(json_t *object, const char *text)
{
    json_t *more = text ? json_loads(text, 0, NULL) : json_object();
    bool done = more && json_object_update(object, more) == 0;

    json_decref(more);
    return done;
}

/* The router keeps half of its groups, which have to be of one size, of two experts or
 * more, and to hold top_k experts. */
static uint32_t v3_groups(const mp_synth_options *o)
{
    uint32_t groups = V3_GROUPS;

    while (groups > 1 && (o->num_experts % groups != 0 || o->num_experts / groups < 2 ||
                          o->num_experts / 2 < o->top_k))
        groups /= 2;
    return groups;
}

static bool add_numbers(json_t *config, const mp_synth_plan *plan)
{
    const mp_synth_options *o = plan->options;
    const mp_synth_keys *keys = &plan->family->keys;
    uint32_t groups = v3_groups(o);
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"hidden_size", mp_synth_latents(plan->family) * o->hidden_size},
        {"num_hidden_layers", o->num_layers},
        {"vocab_size", o->vocab_size},
        {keys->latent, o->hidden_size},
        {keys->width, o->intermediate_size},
        {keys->experts, o->num_experts},
        {keys->top_k, o->top_k},
        {keys->shared, o->num_shared_experts},
        {keys->shared_width, (keys->shared ? 1 : o->num_shared_experts) * o->intermediate_size},
        {keys->dense, o->num_dense},
        {keys->dense_width, o->dense_intermediate_size},
        {keys->hash, o->num_hash_layers},
        {keys->mtp, o->num_mtp},
        {keys->groups ? "n_group" : NULL, groups},
        {keys->groups ? "topk_group" : NULL, groups > 1 ? groups / 2 : 1},
    };

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (!set(config, numbers[i].key, json_integer((json_int_t)numbers[i].value)))
            return false;
    return set(config, keys->scaling, json_real(o->routed_scaling_factor));
}

/* Numbers of the dense layers, which stand at the start; or 0 for each of them, then 1. */
static json_t *layer_list(const mp_synth_options *o, bool flags)
{
    uint32_t count = flags ? o->num_layers : o->num_dense;
    json_t *list = json_array();

    for (uint32_t i = 0; list && i < count; i++)
        if (json_array_append_new(list, json_integer(flags ? i >= o->num_dense : i)) != 0) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

/* What stands in config.json, or in its text_config. */
static bool add_facts(json_t *config, const mp_synth_plan *plan)
{
    const mp_synth_options *o = plan->options;
    const mp_synth_keys *keys = &plan->family->keys;

    return set(config, "hidden_act", json_string("silu")) &&
           set(config, "torch_dtype", json_string("bfloat16")) && add_numbers(config, plan) &&
           set(config, keys->dense_list, layer_list(o, false)) &&
           set(config, keys->moe_flags, layer_list(o, true)) &&
           add_constants(config, keys->constants);
}

/* The members that a quantization_config has here, of those that its tools write, in their order;
 * of objects in it the last row. Packs copy config.json: neither changes. Null without memory. */
static json_t *some_members(const json_t *said, const char *const *keys)
{
    static const char *const inner[] = {
        "group_0", "targets",  "weights",    "symmetric",       "num_bits",
        "type",    "strategy", "group_size", "block_structure", NULL,
    };
    json_t *some = json_object();
    bool ok = some != NULL;

    for (; ok && *keys; keys++) {
        json_t *value = json_object_get(said, *keys);

        if (json_is_object(value))
            ok = json_object_set_new(some, *keys, some_members(value, inner)) == 0;
        else if (value)
            ok = json_object_set(some, *keys, value) == 0;
    }
    if (ok)
        return some;
    json_decref(some);
    return NULL;
}

static json_t *exceptions_of(const mp_synth_format *format)
{
    static const char *const head[] = {"lm_head", NULL};
    const char *const *names = format->exceptions[0] ? format->exceptions : head;
    json_t *list = json_array();

    for (; list && *names; names++)
        if (json_array_append_new(list, json_string(*names)) != 0) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

/* The form whose method the config is of: other tensors' where that is another than the experts',
 * of which it says no more than moe_quant_algo. */
static const mp_synth_form *main_form(const mp_synth_format *format)
{
    mp_method routed = mp_synth_convention(format->routed)->method;
    mp_method shared = mp_synth_convention(format->shared)->method;

    return shared == MP_METHOD_NONE || shared == routed ? format->routed : format->shared;
}

/* Null without memory. */
static json_t *quantization_of(const mp_synth_format *format)
{
    static const char *const keys[MP_METHODS][6] = {
        [MP_METHOD_FP8] = {"quant_method", "activation_scheme", "weight_block_size", "fmt",
                           "scale_fmt"},
        [MP_METHOD_MXFP4] = {"quant_method", "modules_to_not_convert"},
        [MP_METHOD_MXFP8] = {"quant_method", "weight_block_size"},
        [MP_METHOD_MODELOPT] = {"quant_method", "quant_algo", "ignore"},
        [MP_METHOD_COMPRESSED_TENSORS] = {"quant_method", "format", "quantization_status", "ignore",
                                          "config_groups"},
    };
    const mp_synth_form *form = main_form(format);
    const mp_convention *routed = mp_synth_convention(format->routed);
    const mp_convention *convention = mp_synth_convention(form);
    const mp_said facts = {.ue8m0 = form->powers};
    json_t *said = mp_said_config(convention, &facts, exceptions_of(format));
    json_t *config = said ? some_members(said, keys[convention->method]) : NULL;

    json_decref(said);
    if (config && form != format->routed &&
        !set(config, "moe_quant_algo", json_string(routed->algorithms[0]))) {
        json_decref(config);
        config = NULL;
    }
    return config;
}

/* Adds quantization_config, and in text the same where the family has it there too; and
 * expert_dtype of DeepSeek V4. */
static bool add_quantization(json_t *config, json_t *text, const mp_synth_plan *plan)
{
    const mp_convention *routed = mp_synth_convention(plan->format->routed);

    if (mp_synth_convention(main_form(plan->format))->method == MP_METHOD_NONE)
        return true;
    return set(config, "quantization_config", quantization_of(plan->format)) &&
           (text == config || !plan->family->keys.text_quantization ||
            set(text, "quantization_config", quantization_of(plan->format))) &&
           (routed->style != MP_AS_DEEPSEEK_V4 ||
            set(config, "expert_dtype", json_string(mp_said_dtype(routed->scheme))));
}

json_t *mp_synth_config(const mp_synth_plan *plan)
{
    const mp_synth_keys *keys = &plan->family->keys;
    /* A format with a prefix of its own has a flat config.json. */
    bool nested = keys->text && !plan->format->prefix;
    const char *type = nested && keys->model_type ? keys->model_type : plan->model->model_types[0];
    json_t *config =
        json_pack("{s:[s], s:s}", "architectures", keys->architecture, "model_type", type);
    json_t *text = nested ? json_pack("{s:s}", "model_type", keys->text) : config;

    if (!config || !text || !add_facts(text, plan) || !add_quantization(config, text, plan) ||
        !add_constants(config, plan->format->more) ||
        (nested && !set(config, "text_config", json_incref(text)))) {
        json_decref(config);
        config = NULL;
    }
    if (nested)
        json_decref(text);
    return config;
}

json_t *mp_synth_description(const mp_synth_plan *plan)
{
    const char *label = mp_synth_convention(plan->format->routed)->label;
    json_t *description = json_pack("{s:s, s:s}", "model_quant_type", label, "version", "1.0.0");

    for (size_t i = 0; description && i < plan->num_items; i++) {
        const mp_synth_item *item = &plan->items[i];
        const mp_synth_form *form = item->form;
        bool quantized = form == plan->format->routed || form == plan->format->shared;

        for (unsigned p = 0; p < MP_SYNTH_PARTS && item->names[p]; p++)
            if (!set(description, item->names[p], json_string(quantized ? label : "FLOAT"))) {
                json_decref(description);
                return NULL;
            }
    }
    return description;
}

json_t *mp_synth_modelopt_config(const mp_synth_plan *plan)
{
    return mp_said_beside(mp_synth_convention(plan->format->routed), "modelopt", "0.37.0",
                          exceptions_of(plan->format));
}
