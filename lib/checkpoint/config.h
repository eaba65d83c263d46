/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/config.h - looking things up in config.json. */
#ifndef MP_CHECKPOINT_CONFIG_H
#define MP_CHECKPOINT_CONFIG_H

#include <jansson.h>

#include <moepack/model.h>

#define MP_CONFIG_LIMIT (16u << 20)

/* Objects that may hold a fact, in the order in which they are asked. */
typedef struct mp_config_scope {
    const json_t *objects[6];
    size_t count;
} mp_config_scope;

/* The member of the first object that has it. One that is null is as absent. */
const json_t *mp_scope_find(const mp_config_scope *scope, const char *key);

/* MP_ERR_INPUT, naming the key, for what is no integer of 0 or more. */
int mp_config_number(const json_t *value, const char *key, uint64_t *number, mp_error *err);

/* Fills what mp_config_is_moe_layer goes by. num_hidden_layers is known, and corrected where a
 * list of layers knows better. */
int mp_config_read_layers(const mp_config_scope *scope, mp_config *config, mp_error *err);

/* Reads DIR/config.json. A missing file gives present = false and no error.
 * MP_ERR_INPUT if it is not JSON, or a number has another type or sign, MP_ERR_UNSUPPORTED for
 * lists by layer or by modality of what is one number here. */
int mp_config_load(mp_config *config, const char *dir, mp_error *err);
void mp_config_release(mp_config *config);

/* The same of one of the towers of a model: of the object "thinker_config" for "thinker". */
int mp_config_load_tower(mp_config *config, const char *dir, const char *tower, mp_error *err);

/* Whether config.json makes decoder layer `layer` an MoE layer. True also where
 * config.json does not say. */
bool mp_config_is_moe_layer(const mp_config *config, uint64_t layer);

/* Whether config.json says of a decoder layer that it has experts or has none: by a key, or since
 * no model of that model_type has dense layers. */
bool mp_config_says_layer(const mp_config *config, uint64_t layer);

#endif
