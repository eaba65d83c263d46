/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint/config_rewrite.h - config.json of a checkpoint whose experts are in another scheme.
 *
 * What engines read: quantization_config, at the root and inside text_config where the source
 * has it there; expert_dtype of DeepSeek V4; hf_quant_config.json of Model Optimizer. All else
 * stays byte for byte, but for a byte order mark, which Python's json does not take and is dropped.
 */
#ifndef MP_CHECKPOINT_CONFIG_REWRITE_H
#define MP_CHECKPOINT_CONFIG_REWRITE_H

#include "checkpoint/conventions.h"

/* What became of a checkpoint. Lists are of names that modules have in it: what stands before
 * ".weight" in its tensors, or "model.layers.3.mlp.experts" for all routed experts of a layer. */
typedef struct mp_config_change {
    const mp_convention *to;    /* of the experts that were requantized */
    bool keeps;                 /* other tensors are still quantized as quantization_config says */
    bool input_scales;          /* the experts have scales of activations */
    bool ue8m0;                 /* scales of fp8_block are powers of two */
    const char *const *experts; /* requantized ones */
    size_t num_experts;
    const char *const *plain; /* modules that are in floating point */
    size_t num_plain;
} mp_config_change;

/* The text of config.json after the change, malloc'ed.
 * warnings: added to where quantization_config cannot say all that there is; may be null.
 * MP_ERR_INPUT where the text is no JSON object, MP_ERR_UNSUPPORTED where what it says of the
 * tensors that stay would make the experts be read wrong. */
int mp_config_requantized(const char *config_text, const mp_config_change *change, char **text,
                          mp_problems *warnings, mp_error *err);

/* Whether config.json says that FP8 scales are powers of two (scale_fmt "ue8m0"). */
bool mp_config_says_ue8m0(const char *config_text);

/* hf_quant_config.json beside it, malloc'ed; null text where the style has none. */
int mp_hf_quant_config(const mp_config_change *change, char **text, mp_error *err);

#endif
