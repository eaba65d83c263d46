/* SPDX-License-Identifier: Apache-2.0 */
/* In which schemes the experts of each family are released, and in which the tools store
 * those of any. What their conventions are, and what config.json says of them, stands in
 * checkpoint/conventions.c. */
#include "synth/synth_formats.h"

/* clang-format off */
#define FORMAT(to, whose, one, other, ...) \
    {.scheme = to, .style = whose, .routed = &one, .shared = &other, __VA_ARGS__}
#define VENDOR(to, form) FORMAT(to, MP_STYLE_VENDOR, form, form)
#define BF16(form)       FORMAT(MP_SCHEME_BF16, MP_STYLE_VENDOR, form, mp_synth_bf16)
#define CT(to, form)     FORMAT(to, MP_STYLE_COMPRESSED_TENSORS, form, form)
#define SLIM(to, form)   FORMAT(to, MP_STYLE_MODELSLIM, form, form)

const mp_synth_format mp_synth_deepseek_v4_formats[] = {
    FORMAT(MP_SCHEME_MXFP4, MP_STYLE_VENDOR, mp_synth_mxfp4, mp_synth_fp8_scale_e8m0),
    VENDOR(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_scale_f32),
    FORMAT(MP_SCHEME_NVFP4, MP_STYLE_MODELOPT, mp_synth_nvfp4, mp_synth_fp8_scale_e8m0,
           .mtp = &mp_synth_mxfp4),
    {0},
};

const mp_synth_format mp_synth_fp8_formats[] = {
    VENDOR(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_scale_inv_f32),
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_bf16_formats[] = {
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_bf16_fp8_formats[] = {
    BF16(mp_synth_bf16),
    VENDOR(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_scale_inv_f32),
    {0},
};

const mp_synth_format mp_synth_qwen3_formats[] = {
    BF16(mp_synth_bf16),
    VENDOR(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_scale_inv_bf16),
    {0},
};

const mp_synth_format mp_synth_kimi_k2_formats[] = {
    FORMAT(MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, mp_synth_fp8_scale_inv_f32,
           mp_synth_fp8_scale_inv_f32, .prefix = "model.layers.",
           .more = "{\"architectures\": [\"DeepseekV3ForCausalLM\"]}"),
    FORMAT(MP_SCHEME_INT4_GROUP, MP_STYLE_COMPRESSED_TENSORS, mp_synth_int4, mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_qwen3_5_formats[] = {
    BF16(mp_synth_bf16_rows),
    VENDOR(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_scale_inv_f32),
    {0},
};

const mp_synth_format mp_synth_transposed_formats[] = {
    BF16(mp_synth_bf16_cols),
    {0},
};

const mp_synth_format mp_synth_gpt_oss_formats[] = {
    FORMAT(MP_SCHEME_MXFP4, MP_STYLE_VENDOR, mp_synth_mxfp4_rows_paired, mp_synth_bf16,
           .exceptions = {"model.layers.*.self_attn", "model.layers.*.mlp.router",
                          "model.embed_tokens", "lm_head"}),
    BF16(mp_synth_bf16_cols_paired),
    {0},
};

const mp_synth_format mp_synth_minimax_m2_formats[] = {
    VENDOR(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_minimax),
    {0},
};

const mp_synth_format mp_synth_minimax_m3_formats[] = {
    VENDOR(MP_SCHEME_MXFP8, mp_synth_mxfp8_inv),
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_kimi_k3_formats[] = {
    FORMAT(MP_SCHEME_MXFP4, MP_STYLE_COMPRESSED_TENSORS, mp_synth_mxfp4_packed, mp_synth_bf16),
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_tool_formats[] = {
    CT(MP_SCHEME_FP8_CHANNEL, mp_synth_fp8_channel),
    CT(MP_SCHEME_INT8_CHANNEL, mp_synth_int8_channel),
    CT(MP_SCHEME_FP8_BLOCK, mp_synth_fp8_weight_scale),
    CT(MP_SCHEME_MXFP8, mp_synth_mxfp8),
    CT(MP_SCHEME_MXFP4, mp_synth_mxfp4_packed),
    CT(MP_SCHEME_INT4_GROUP, mp_synth_int4),
    FORMAT(MP_SCHEME_NVFP4, MP_STYLE_MODELOPT, mp_synth_nvfp4, mp_synth_nvfp4),
    CT(MP_SCHEME_NVFP4, mp_synth_nvfp4_packed),
    SLIM(MP_SCHEME_INT8_CHANNEL, mp_synth_int8_offset),
    SLIM(MP_SCHEME_MXFP8, mp_synth_mxfp8_modelslim),
    SLIM(MP_SCHEME_MXFP4, mp_synth_mxfp4_u8),
    {0},
};
/* clang-format on */
