/* SPDX-License-Identifier: Apache-2.0 */
/* config.json of synthetic checkpoints: what the families' own say about experts. */
#include "pack/synth.h"

/* Most groups that DeepSeek V3's router has, and how many of eight it keeps. */
#define V3_GROUPS 8

/* Numbers that every family calls the same. */
static json_t *common_config(const mp_synth_options *o, const char *architecture)
{
    return json_pack("{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "architectures",
                     architecture, "model_type", mp_family_find(o->family)->model_types[0],
                     "hidden_size", (json_int_t)o->hidden_size, "moe_intermediate_size",
                     (json_int_t)o->intermediate_size, "num_experts_per_tok", (json_int_t)o->top_k,
                     "num_hidden_layers", (json_int_t)o->num_layers, "vocab_size",
                     (json_int_t)o->vocab_size, "hidden_act", "silu", "torch_dtype", "bfloat16");
}

/* Adds more's members to config; takes over both, and gives null if either is null. */
static json_t *merge(json_t *config, json_t *more)
{
    if (!config || !more || json_object_update(config, more) != 0) {
        json_decref(config);
        config = NULL;
    }
    json_decref(more);
    return config;
}

/* scale_fmt: null where the family's config.json has none. */
static json_t *fp8_config(const char *scale_fmt)
{
    return json_pack("{s:{s:s, s:s, s:s*, s:s, s:[i,i]}}", "quantization_config", "quant_method",
                     "fp8", "fmt", "e4m3", "scale_fmt", scale_fmt, "activation_scheme", "dynamic",
                     "weight_block_size", 128, 128);
}

json_t *mp_synth_config_v4(const mp_synth_options *o)
{
    bool fp4 = o->scheme == MP_SCHEME_MXFP4;
    json_t *config = common_config(o, "DeepseekV4ForCausalLM");
    json_t *moe =
        json_pack("{s:I, s:I, s:I, s:I, s:s, s:s, s:b, s:f, s:f, s:s}", "n_routed_experts",
                  (json_int_t)o->num_experts, "n_shared_experts", (json_int_t)o->num_shared_experts,
                  "num_hash_layers", (json_int_t)o->num_hash_layers, "num_nextn_predict_layers",
                  (json_int_t)o->num_mtp, "scoring_func", "sqrtsoftplus", "topk_method", "noaux_tc",
                  "norm_topk_prob", 1, "routed_scaling_factor", o->routed_scaling_factor,
                  "swiglu_limit", 10.0, "expert_dtype", fp4 ? "fp4" : "fp8");

    return merge(merge(config, moe), fp8_config(fp4 ? "ue8m0" : NULL));
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

json_t *mp_synth_config_v3(const mp_synth_options *o)
{
    uint32_t groups = v3_groups(o);
    json_t *config = common_config(o, "DeepseekV3ForCausalLM");
    json_t *moe = json_pack(
        "{s:I, s:I, s:I, s:i, s:I, s:I, s:I, s:s, s:s, s:b, s:f, s:I}", "n_routed_experts",
        (json_int_t)o->num_experts, "n_shared_experts", (json_int_t)o->num_shared_experts,
        "first_k_dense_replace", (json_int_t)o->num_dense, "moe_layer_freq", 1, "intermediate_size",
        (json_int_t)o->dense_intermediate_size, "n_group", (json_int_t)groups, "topk_group",
        (json_int_t)(groups > 1 ? groups / 2 : 1), "scoring_func", "sigmoid", "topk_method",
        "noaux_tc", "norm_topk_prob", 1, "routed_scaling_factor", o->routed_scaling_factor,
        "num_nextn_predict_layers", (json_int_t)o->num_mtp);

    config = merge(config, moe);
    return o->scheme == MP_SCHEME_BF16 ? config : merge(config, fp8_config(NULL));
}

/* Numbers of the dense layers, which stand at the start. */
static json_t *dense_list(const mp_synth_options *o)
{
    json_t *list = json_array();

    for (uint32_t i = 0; list && i < o->num_dense; i++)
        if (json_array_append_new(list, json_integer(i)) != 0) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

json_t *mp_synth_config_qwen3(const mp_synth_options *o)
{
    json_t *config = common_config(o, "Qwen3MoeForCausalLM");
    json_t *moe =
        json_pack("{s:I, s:I, s:b, s:i, s:o, s:f, s:b}", "num_experts", (json_int_t)o->num_experts,
                  "intermediate_size", (json_int_t)o->dense_intermediate_size, "norm_topk_prob", 1,
                  "decoder_sparse_step", 1, "mlp_only_layers", dense_list(o),
                  "router_aux_loss_coef", 0.001, "output_router_logits", 0);

    config = merge(config, moe);
    return o->scheme == MP_SCHEME_BF16 ? config : merge(config, fp8_config(NULL));
}
