/* SPDX-License-Identifier: Apache-2.0 */
/* synth/synth_formats.h - lists of formats; one whose `routed` is null ends each. */
#ifndef MP_SYNTH_SYNTH_FORMATS_H
#define MP_SYNTH_SYNTH_FORMATS_H

#include "synth/parts.h"

extern const mp_synth_format mp_synth_deepseek_v4_formats[];
extern const mp_synth_format mp_synth_fp8_formats[];      /* blocks of 128x128, or BF16 */
extern const mp_synth_format mp_synth_bf16_formats[];     /* BF16 only */
extern const mp_synth_format mp_synth_bf16_fp8_formats[]; /* BF16 first */
extern const mp_synth_format mp_synth_qwen3_formats[];    /* the same, with BF16 scales */
extern const mp_synth_format mp_synth_kimi_k2_formats[];
extern const mp_synth_format mp_synth_qwen3_5_formats[];
extern const mp_synth_format mp_synth_transposed_formats[]; /* stacks [E, K, N] */
extern const mp_synth_format mp_synth_gpt_oss_formats[];
extern const mp_synth_format mp_synth_minimax_m2_formats[];
extern const mp_synth_format mp_synth_minimax_m3_formats[];
extern const mp_synth_format mp_synth_kimi_k3_formats[];

/* Those of compressed-tensors, ModelOpt and ModelSlim. */
extern const mp_synth_format mp_synth_tool_formats[];

#endif
