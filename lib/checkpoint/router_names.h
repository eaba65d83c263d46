/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/router_names.h - the tensors of a layer's router, by whatever name. */
#ifndef MP_CHECKPOINT_ROUTER_NAMES_H
#define MP_CHECKPOINT_ROUTER_NAMES_H

#include <moepack/model.h>

/* The weight [E, H], and the bias of the choice [E]; null-terminated, behind the block. */
extern const char *const mp_router_weights[];
extern const char *const mp_choice_biases[];

/* The tensor PREFIX.BLOCK.NAME, or null. MP_ERR_IO without memory. */
int mp_block_tensor(const mp_catalog *catalog, const mp_moe_layer *layer, const char *name,
                    const mp_tensor **tensor, mp_error *err);

/* The first there is of several names; null-terminated. */
int mp_block_tensor_of(const mp_catalog *catalog, const mp_moe_layer *layer,
                       const char *const *names, const mp_tensor **tensor, mp_error *err);

/* What stands behind PREFIX.BLOCK. in the name of a tensor; null for one of another block. */
const char *mp_block_rest(const mp_moe_layer *layer, const char *name);

/* The number of the layer whose router's weight a tensor is; false for other tensors. */
bool mp_is_router_weight(const char *name, uint64_t *layer);

#endif
