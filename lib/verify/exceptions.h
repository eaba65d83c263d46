/* SPDX-License-Identifier: Apache-2.0 */
/* verify/exceptions.h - the modules that quantization left as they were, as a checkpoint says: the
 * lists ignore, modules_to_not_convert, ignored_layers and exclude_modules of config.json and
 * hf_quant_config.json, and FLOAT in quant_model_description.json. */
#ifndef MP_VERIFY_EXCEPTIONS_H
#define MP_VERIFY_EXCEPTIONS_H

#include <jansson.h>
#include <moepack/base.h>

#include "base/pattern.h"

typedef struct mp_exceptions {
    json_t *files[3]; /* what patterns point into */
    mp_pattern *patterns;
    size_t count;
} mp_exceptions;

/* Reads the lists of a checkpoint's directory; files that are not there have none. To be released,
 * also on errors. MP_ERR_INPUT for what is not JSON. */
int mp_exceptions_load(mp_exceptions *e, const char *dir, mp_error *err);
void mp_exceptions_release(mp_exceptions *e);

/* The entry that names the module of a weight, "model.layers.3.mlp.gate" of a tensor
 * "model.layers.3.mlp.gate.weight", or a module around it; entry: null where there is none. What is
 * not understood names none. */
int mp_exceptions_find(const mp_exceptions *e, const char *weight, const char **entry,
                       mp_error *err);

#endif
