/* SPDX-License-Identifier: Apache-2.0 */
/* engine/format.h - how config.json says that experts are stored. */
#ifndef MP_ENGINE_FORMAT_H
#define MP_ENGINE_FORMAT_H

#include <jansson.h>

#include <moepack/backend.h>

/* A member of a config.json's root, else of the nested config of the language model; null where
 * it is absent or null. */
const json_t *mp_config_find(const json_t *root, const char *key);

/* Fills has_scheme, scheme and scheme_from from expert_dtype, quantization_config and torch_dtype,
 * and quant_config, quant_method and float16. */
void mp_format_of_config(const json_t *root, mp_backend_model *model);

#endif
