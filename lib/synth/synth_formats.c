/* SPDX-License-Identifier: Apache-2.0 */
/* In which schemes the experts of each family are released, and in which the tools store
 * those of any. */
#include "synth/synth_formats.h"

/* clang-format off */
#define FP8(more) "{\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", " \
                  "\"weight_block_size\": [128, 128], " more "}"
#define BF16(form) {.scheme = MP_SCHEME_BF16, .style = MP_STYLE_VENDOR, .routed = &form, \
    .shared = &mp_synth_bf16}
#define E4M3      "\"fmt\": \"e4m3\""
#define CT(format, weights) \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"" format "\", " \
    "\"quantization_status\": \"compressed\", \"ignore\": [\"lm_head\"], \"config_groups\": " \
    "{\"group_0\": {\"targets\": [\"Linear\"], \"weights\": {\"symmetric\": true, " weights "}}}}"
#define WEIGHTS(bits, type, strategy, more) \
    "\"num_bits\": " bits ", \"type\": \"" type "\", \"strategy\": \"" strategy "\"" more
#define GROUP(n) ", \"group_size\": " n
#define INT4  CT("pack-quantized", WEIGHTS("4", "int", "group", GROUP("32")))
#define MXFP4 CT("mxfp4-pack-quantized", WEIGHTS("4", "float", "group", GROUP("32")))

const mp_synth_format mp_synth_deepseek_v4_formats[] = {
    {MP_SCHEME_MXFP4, MP_STYLE_VENDOR, &mp_synth_mxfp4, &mp_synth_fp8_scale_e8m0,
     .quantization = FP8(E4M3 ", \"scale_fmt\": \"ue8m0\""), .more = "{\"expert_dtype\": \"fp4\"}"},
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_f32, &mp_synth_fp8_scale_f32,
     .quantization = FP8(E4M3), .more = "{\"expert_dtype\": \"fp8\"}"},
    {MP_SCHEME_NVFP4, MP_STYLE_MODELOPT, &mp_synth_nvfp4, &mp_synth_fp8_scale_e8m0,
     .mtp = &mp_synth_mxfp4,
     .quantization = FP8(E4M3 ", \"scale_fmt\": \"ue8m0\", \"moe_quant_algo\": \"NVFP4\"")},
    {0},
};

const mp_synth_format mp_synth_fp8_formats[] = {
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_inv_f32, &mp_synth_fp8_scale_inv_f32,
     .quantization = FP8(E4M3)},
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_bf16_formats[] = {
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_bf16_fp8_formats[] = {
    BF16(mp_synth_bf16),
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_inv_f32, &mp_synth_fp8_scale_inv_f32,
     .quantization = FP8(E4M3)},
    {0},
};

const mp_synth_format mp_synth_qwen3_formats[] = {
    BF16(mp_synth_bf16),
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_inv_bf16,
     &mp_synth_fp8_scale_inv_bf16,
     .quantization = FP8(E4M3)},
    {0},
};

const mp_synth_format mp_synth_kimi_k2_formats[] = {
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_inv_f32, &mp_synth_fp8_scale_inv_f32,
     .quantization = FP8(E4M3), .more = "{\"architectures\": [\"DeepseekV3ForCausalLM\"]}",
     .prefix = "model.layers."},
    {MP_SCHEME_INT4_GROUP, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_int4, &mp_synth_bf16,
     .quantization = INT4},
    {0},
};

const mp_synth_format mp_synth_qwen3_5_formats[] = {
    BF16(mp_synth_bf16_rows),
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_inv_f32, &mp_synth_fp8_scale_inv_f32,
     .quantization = FP8(E4M3)},
    {0},
};

const mp_synth_format mp_synth_transposed_formats[] = {
    BF16(mp_synth_bf16_cols),
    {0},
};

const mp_synth_format mp_synth_gpt_oss_formats[] = {
    {MP_SCHEME_MXFP4, MP_STYLE_VENDOR, &mp_synth_mxfp4_rows_paired, &mp_synth_bf16,
     .quantization = "{\"quant_method\": \"mxfp4\", "
                     "\"modules_to_not_convert\": [\"model.layers.*.self_attn\", "
                     "\"model.layers.*.mlp.router\", \"model.embed_tokens\", \"lm_head\"]}"},
    BF16(mp_synth_bf16_cols_paired),
    {0},
};

const mp_synth_format mp_synth_minimax_m2_formats[] = {
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_VENDOR, &mp_synth_fp8_scale_inv_f32, &mp_synth_fp8_scale_inv_f32,
     .quantization = FP8("\"fmt\": \"float8_e4m3fn\"")},
    {0},
};

const mp_synth_format mp_synth_minimax_m3_formats[] = {
    {MP_SCHEME_MXFP8, MP_STYLE_VENDOR, &mp_synth_mxfp8_inv, &mp_synth_mxfp8_inv,
     .quantization = "{\"quant_method\": \"mxfp8\", \"weight_block_size\": [1, 32]}"},
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_kimi_k3_formats[] = {
    {MP_SCHEME_MXFP4, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_mxfp4_packed, &mp_synth_bf16,
     .quantization = MXFP4},
    BF16(mp_synth_bf16),
    {0},
};

const mp_synth_format mp_synth_tool_formats[] = {
    {MP_SCHEME_FP8_CHANNEL, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_fp8_channel,
     &mp_synth_fp8_channel,
     .quantization = CT("float-quantized", WEIGHTS("8", "float", "channel", ""))},
    {MP_SCHEME_INT8_CHANNEL, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_int8_channel,
     &mp_synth_int8_channel,
     .quantization = CT("int-quantized", WEIGHTS("8", "int", "channel", ""))},
    {MP_SCHEME_FP8_BLOCK, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_fp8_weight_scale,
     &mp_synth_fp8_weight_scale,
     .quantization = CT("float-quantized", WEIGHTS("8", "float", "block",
                                                  ", \"block_structure\": [128, 128]"))},
    {MP_SCHEME_MXFP8, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_mxfp8, &mp_synth_mxfp8,
     .quantization = CT("mxfp8-quantized", WEIGHTS("8", "float", "group", GROUP("32")))},
    {MP_SCHEME_MXFP4, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_mxfp4_packed, &mp_synth_mxfp4_packed,
     .quantization = MXFP4},
    {MP_SCHEME_INT4_GROUP, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_int4, &mp_synth_int4,
     .quantization = INT4},
    {MP_SCHEME_NVFP4, MP_STYLE_MODELOPT, &mp_synth_nvfp4, &mp_synth_nvfp4,
     .quantization = "{\"quant_method\": \"modelopt\", \"quant_algo\": \"NVFP4\", "
                     "\"ignore\": [\"lm_head\"]}"},
    {MP_SCHEME_NVFP4, MP_STYLE_COMPRESSED_TENSORS, &mp_synth_nvfp4_packed, &mp_synth_nvfp4_packed,
     .quantization = CT("nvfp4-pack-quantized", WEIGHTS("4", "float", "tensor_group",
                                                       GROUP("16")))},
    {MP_SCHEME_INT8_CHANNEL, MP_STYLE_MODELSLIM, &mp_synth_int8_offset, &mp_synth_int8_offset,
     .label = "W8A8_DYNAMIC"},
    {MP_SCHEME_MXFP8, MP_STYLE_MODELSLIM, &mp_synth_mxfp8, &mp_synth_mxfp8, .label = "W8A8_MXFP8"},
    {MP_SCHEME_MXFP4, MP_STYLE_MODELSLIM, &mp_synth_mxfp4_u8, &mp_synth_mxfp4_u8,
     .label = "W4A8_MXFP"},
    {0},
};
/* clang-format on */
