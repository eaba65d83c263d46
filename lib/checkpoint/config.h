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

#endif
