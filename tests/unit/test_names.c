/* SPDX-License-Identifier: Apache-2.0 */
/* What a tensor's name says: routed, shared, other, or named like an expert's. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "checkpoint/names.h"

static mp_expert_name parts;

static void expect_kind(const char *name, mp_name_kind kind)
{
    mp_expert_name_parse(name, &parts);
    cr_assert_eq(parts.kind, kind, "%s: kind %d, expected %d", name, (int)parts.kind, (int)kind);
}

/* name: an expert's; prefix ...: what has to come out. */
static void expect_expert(const char *name, mp_name_kind kind, const char *prefix, uint64_t layer,
                          bool mtp, uint64_t expert, mp_projection projection, mp_role role)
{
    expect_kind(name, kind);
    cr_assert_eq(parts.prefix_length, strlen(prefix), "%s", name);
    cr_assert_eq(memcmp(name, prefix, parts.prefix_length), 0, "%s", name);
    cr_assert_eq(parts.layer, layer, "%s", name);
    cr_assert_eq(parts.mtp, mtp, "%s", name);
    cr_assert_eq(parts.expert, expert, "%s", name);
    cr_assert_eq(parts.projection, projection, "%s", name);
    cr_assert_eq(parts.role, role, "%s", name);
}

Test(names, routed_experts_of_v4)
{
    expect_expert("layers.3.ffn.experts.7.w1.weight", MP_NAME_ROUTED, "layers.3", 3, false, 7,
                  MP_GATE, MP_ROLE_WEIGHT);
    cr_assert_str_eq(parts.naming->block, "ffn");
    expect_expert("layers.42.ffn.experts.255.w3.scale", MP_NAME_ROUTED, "layers.42", 42, false, 255,
                  MP_UP, MP_ROLE_SCALE);
    expect_expert("layers.0.ffn.experts.0.w2.weight", MP_NAME_ROUTED, "layers.0", 0, false, 0,
                  MP_DOWN, MP_ROLE_WEIGHT);
}

Test(names, routed_experts_of_v3)
{
    expect_expert("model.layers.12.mlp.experts.31.gate_proj.weight", MP_NAME_ROUTED,
                  "model.layers.12", 12, false, 31, MP_GATE, MP_ROLE_WEIGHT);
    cr_assert_str_eq(parts.naming->block, "mlp");
    expect_expert("model.layers.12.mlp.experts.31.up_proj.weight_scale_inv", MP_NAME_ROUTED,
                  "model.layers.12", 12, false, 31, MP_UP, MP_ROLE_SCALE);
    expect_expert("model.language_model.layers.3.mlp.experts.9.down_proj.weight", MP_NAME_ROUTED,
                  "model.language_model.layers.3", 3, false, 9, MP_DOWN, MP_ROLE_WEIGHT);
}

Test(names, shared_experts)
{
    expect_expert("layers.3.ffn.shared_experts.w2.scale", MP_NAME_SHARED, "layers.3", 3, false, 0,
                  MP_DOWN, MP_ROLE_SCALE);
    expect_expert("model.layers.3.mlp.shared_experts.up_proj.weight", MP_NAME_SHARED,
                  "model.layers.3", 3, false, 0, MP_UP, MP_ROLE_WEIGHT);
}

/* V4 has blocks of their own; V3's is the layer behind the last. */
Test(names, multi_token_prediction)
{
    expect_expert("mtp.0.ffn.experts.5.w1.weight", MP_NAME_ROUTED, "mtp.0", 0, true, 5, MP_GATE,
                  MP_ROLE_WEIGHT);
    expect_expert("mtp.2.ffn.shared_experts.w1.weight", MP_NAME_SHARED, "mtp.2", 2, true, 0,
                  MP_GATE, MP_ROLE_WEIGHT);
    expect_expert("model.layers.61.mlp.experts.5.gate_proj.weight", MP_NAME_ROUTED,
                  "model.layers.61", 61, false, 5, MP_GATE, MP_ROLE_WEIGHT);
    expect_expert("mtp.layers.1.mlp.experts.5.gate_proj.weight", MP_NAME_ROUTED, "mtp.layers.1", 1,
                  true, 5, MP_GATE, MP_ROLE_WEIGHT);
    /* "mtp" is a word, not the end of one. */
    expect_kind("smtp.0.ffn.experts.5.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("sublayers.0.ffn.experts.5.w1.weight", MP_NAME_UNKNOWN);
}

Test(names, numbers_have_one_spelling)
{
    expect_kind("layers.03.ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.00.ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.07.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.00.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.+7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.-7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts. 7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.0x7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts..w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers..ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
}

Test(names, huge_numbers)
{
    expect_expert("layers.18446744073709551615.ffn.experts.18446744073709551615.w1.weight",
                  MP_NAME_ROUTED, "layers.18446744073709551615", UINT64_MAX, false, UINT64_MAX,
                  MP_GATE, MP_ROLE_WEIGHT);
    expect_kind("layers.3.ffn.experts.18446744073709551616.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.18446744073709551616.ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.99999999999999999999999999.w1.weight", MP_NAME_UNKNOWN);
}

/* Guessing at these would lose experts. */
Test(names, named_like_an_expert)
{
    expect_kind("layers.3.ffn.experts.7.w4.weight", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.7.w1.weight.0", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.7.w1.", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.7.w1", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.7", MP_NAME_UNKNOWN);
    expect_kind("layers.3.ffn.experts.", MP_NAME_UNKNOWN);
    expect_kind("model.layers.3.block.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("experts.7.w1.weight.experts.7", MP_NAME_UNKNOWN);
    expect_kind(".experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind(".ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("3.ffn.experts.7.w1.weight", MP_NAME_UNKNOWN);
    expect_kind("model.layers.3.mlp.shared_experts.0.up_proj.weight", MP_NAME_UNKNOWN);
    expect_kind("model.layers.3.mlp.shared_experts.up_proj", MP_NAME_UNKNOWN);
}

Test(names, what_a_tensor_holds)
{
    static const struct {
        const char *suffix;
        mp_role role;
    } suffixes[] = {
        {"weight_packed", MP_ROLE_WEIGHT},
        {"weight_scale", MP_ROLE_SCALE},
        {"weight_scale_2", MP_ROLE_GLOBAL_SCALE},
        {"weight_global_scale", MP_ROLE_GLOBAL_SCALE},
        {"input_scale", MP_ROLE_INPUT_SCALE},
        {"input_global_scale", MP_ROLE_INPUT_SCALE},
        {"weight_offset", MP_ROLE_OFFSET},
        {"bias", MP_ROLE_BIAS},
        {"weight_shape", MP_ROLE_SHAPE},
        {"weight_zero_point", MP_ROLE_OFFSET},
        {"scale_bias", MP_ROLE_SCALE_BIAS},
        {"weight_scale_second", MP_ROLE_GROUP_SCALE},
        {"weight_offset_second", MP_ROLE_GROUP_OFFSET},
    };
    char name[128];

    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        snprintf(name, sizeof name, "model.layers.3.mlp.experts.7.up_proj.%s", suffixes[i].suffix);
        expect_expert(name, MP_NAME_ROUTED, "model.layers.3", 3, false, 7, MP_UP, suffixes[i].role);
    }
    expect_kind("model.layers.3.mlp.experts.7.up_proj.weight_scale_3", MP_NAME_UNKNOWN);
    expect_kind("model.layers.3.mlp.experts.7.up_proj.weight2", MP_NAME_UNKNOWN);
}

Test(names, what_only_unsupported_forms_have)
{
    expect_kind("model.layers.3.mlp.experts.7.up_proj.qweight", MP_NAME_FOREIGN);
    cr_assert_str_eq(parts.foreign, "weights of AWQ or GPTQ");
    expect_kind("model.layers.3.mlp.switch_mlp.up_proj.weight", MP_NAME_FOREIGN);
    cr_assert_str_eq(parts.foreign, "experts in the order of MLX");
    expect_kind("model.layers.3.mlp.up_proj.qweight", MP_NAME_OTHER);
}

Test(names, fused_experts)
{
    expect_expert("model.layers.3.mlp.experts.gate_up_proj", MP_NAME_FUSED, "model.layers.3", 3,
                  false, 0, MP_GATE, MP_ROLE_WEIGHT);
    expect_expert("model.layers.3.mlp.experts.down_proj_blocks", MP_NAME_FUSED, "model.layers.3", 3,
                  false, 0, MP_DOWN, MP_ROLE_WEIGHT);
    expect_expert("model.layers.3.mlp.experts.gate_up_proj_scales", MP_NAME_FUSED, "model.layers.3",
                  3, false, 0, MP_GATE, MP_ROLE_SCALE);
    expect_expert("model.layers.3.mlp.experts.down_proj_bias", MP_NAME_FUSED, "model.layers.3", 3,
                  false, 0, MP_DOWN, MP_ROLE_BIAS);
    expect_expert("model.layers.3.mlp.experts.gate_up_proj_weight_scale", MP_NAME_FUSED,
                  "model.layers.3", 3, false, 0, MP_GATE, MP_ROLE_SCALE);
    expect_expert("model.layers.3.mlp.experts.down_proj_weight_scale_2", MP_NAME_FUSED,
                  "model.layers.3", 3, false, 0, MP_DOWN, MP_ROLE_GLOBAL_SCALE);
    expect_expert("model.layers.3.mlp.experts.down_proj_activation_scale", MP_NAME_FUSED,
                  "model.layers.3", 3, false, 0, MP_DOWN, MP_ROLE_INPUT_SCALE);
    expect_kind("model.layers.3.mlp.experts.gate_up_proj_weight", MP_NAME_UNKNOWN);
    expect_expert("model.layers.3.mlp.experts.gate_up_proj.weight_packed", MP_NAME_FUSED,
                  "model.layers.3", 3, false, 0, MP_GATE, MP_ROLE_WEIGHT);
    cr_assert(parts.joined);
    expect_expert("model.layers.3.mlp.experts.up_proj", MP_NAME_FUSED, "model.layers.3", 3, false,
                  0, MP_UP, MP_ROLE_WEIGHT);
    cr_assert(!parts.joined && !parts.unnamed);
    expect_expert("model.layers.3.moe.up_proj.weight", MP_NAME_FUSED, "model.layers.3", 3, false, 0,
                  MP_UP, MP_ROLE_WEIGHT);
    cr_assert(parts.unnamed);
    expect_expert("model.layers.3.block_sparse_moe.input_linear.weight", MP_NAME_FUSED,
                  "model.layers.3", 3, false, 0, MP_GATE, MP_ROLE_WEIGHT);
    cr_assert(parts.joined && parts.unnamed);
}

/* What families and exporters call the same, in any block or in none. */
Test(names, of_other_exporters)
{
    expect_expert("layers.3.ffn.experts.7.gate_proj.weight", MP_NAME_ROUTED, "layers.3", 3, false,
                  7, MP_GATE, MP_ROLE_WEIGHT);
    cr_assert_str_eq(parts.projections[MP_UP], "up_proj");
    expect_expert("model.layers.3.mlp.experts.7.w3.weight", MP_NAME_ROUTED, "model.layers.3", 3,
                  false, 7, MP_UP, MP_ROLE_WEIGHT);
    expect_expert("layers.3.experts.7.w2.qscale_weight", MP_NAME_ROUTED, "layers.3", 3, false, 7,
                  MP_DOWN, MP_ROLE_SCALE);
    cr_assert_str_empty(parts.naming->block);
    expect_expert("model.mtp_layers.1.mlp.experts.7.up_proj.weight", MP_NAME_ROUTED,
                  "model.mtp_layers.1", 1, true, 7, MP_UP, MP_ROLE_WEIGHT);
    expect_expert("transformer.blocks.3.ffn.experts.7.w1.weight", MP_NAME_ROUTED,
                  "transformer.blocks.3", 3, false, 7, MP_GATE, MP_ROLE_WEIGHT);
    expect_expert("model.layers.3.mlp.shared_mlp.up_proj.weight", MP_NAME_SHARED, "model.layers.3",
                  3, false, 0, MP_UP, MP_ROLE_WEIGHT);
    expect_expert("model.layers.3.mlp.shared_experts.linear_gate.weight", MP_NAME_SHARED,
                  "model.layers.3", 3, false, 0, MP_GATE, MP_ROLE_WEIGHT);
    expect_expert("model.layers.3.mlp.shared_experts.gate_up_proj.weight", MP_NAME_SHARED,
                  "model.layers.3", 3, false, 0, MP_GATE, MP_ROLE_WEIGHT);
    cr_assert(parts.joined);
}

/* Tensors that speak of experts and are of none. */
Test(names, not_of_experts)
{
    expect_kind("model.layers.3.mlp.experts.e_score_correction_bias", MP_NAME_OTHER);
    expect_kind("model.layers.3.self_attention.experts.input_linear.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.shared_mlp.input_linear.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.share_expert.gate_proj.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.mlp.shared_expert_gate.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.mlps.0.gate_proj.weight", MP_NAME_OTHER);
}

/* Blocks have their own names for projections, and some another for the shared expert. */
Test(names, other_blocks)
{
    expect_expert("model.layers.3.block_sparse_moe.experts.7.w2.weight", MP_NAME_ROUTED,
                  "model.layers.3", 3, false, 7, MP_DOWN, MP_ROLE_WEIGHT);
    expect_expert("language_model.model.layers.3.block_sparse_moe.shared_experts.up_proj.weight",
                  MP_NAME_SHARED, "language_model.model.layers.3", 3, false, 0, MP_UP,
                  MP_ROLE_WEIGHT);
    expect_expert("model.layers.3.mlp.shared_expert.up_proj.weight", MP_NAME_SHARED,
                  "model.layers.3", 3, false, 0, MP_UP, MP_ROLE_WEIGHT);
    cr_assert_str_eq(parts.shared, "shared_expert");
    expect_expert("language_model.model.layers.3.feed_forward.experts.down_proj", MP_NAME_FUSED,
                  "language_model.model.layers.3", 3, false, 0, MP_DOWN, MP_ROLE_WEIGHT);
}

Test(names, other_tensors)
{
    expect_kind("", MP_NAME_OTHER);
    expect_kind(".", MP_NAME_OTHER);
    expect_kind("embed.weight", MP_NAME_OTHER);
    expect_kind("layers.3.ffn.gate.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.mlp.gate_proj.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.mlp.shared_expert_gate.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.mlp.experts_norm.weight", MP_NAME_OTHER);
    expect_kind("model.layers.3.mlp.n_experts", MP_NAME_OTHER);
    expect_kind("experts.7.w1.weight", MP_NAME_OTHER);
}

static void expect_other(const char *name, const char *kind)
{
    cr_assert_str_eq(mp_other_kind_names[mp_other_kind(name)], kind, "%s", name);
}

Test(names, kinds_of_other_tensors)
{
    expect_other("layers.3.attn_norm.weight", "norm");
    expect_other("model.layers.3.self_attn.q_a_layernorm.weight", "norm");
    expect_other("layers.3.ffn.gate.weight", "router");
    expect_other("layers.3.ffn.gate.tid2eid", "router");
    expect_other("model.layers.3.mlp.gate.e_score_correction_bias", "router");
    expect_other("model.layers.3.self_attn.q_proj.weight", "attention");
    expect_other("layers.3.attn.wq_a.scale", "attention");
    expect_other("model.embed_tokens.weight", "embedding");
    expect_other("lm_head.weight", "embedding");
    expect_other("model.layers.0.mlp.gate_proj.weight", "dense");
    expect_other("mtp.0.main_proj.weight", "mtp");
    expect_other("model.layers.61.eh_proj.weight", "mtp");
    expect_other("hc_fn", "other");
    expect_other("", "other");
}
