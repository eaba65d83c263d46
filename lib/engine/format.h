/* SPDX-License-Identifier: Apache-2.0 */
/* engine/format.h - how config.json says that experts are stored. */
#ifndef MP_ENGINE_FORMAT_H
#define MP_ENGINE_FORMAT_H

#include <jansson.h>

#include "engine/backend.h"

/* The files that tell. */
typedef struct mp_format_files {
    const json_t *config;   /* config.json */
    const json_t *hf_quant; /* hf_quant_config.json beside it; null: there is none */
    const mp_config *facts; /* of config.json: which layers have experts */
} mp_format_files;

/* A member of a config.json's root, else of the nested config of the language model; null where
 * it is absent or null. */
const json_t *mp_config_find(const json_t *root, const char *key);

/* A string member of an object, or "". */
const char *mp_config_text(const json_t *object, const char *key);

/* Fills the format of the routed experts (has_scheme, scheme, scheme_from, unrecognized), what the
 * engine calls the quantization, and how shared experts are stored. MP_ERR_IO without memory. */
int mp_format_of_config(const mp_format_files *files, mp_backend_model *model, mp_error *err);

#endif
