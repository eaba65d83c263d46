/* SPDX-License-Identifier: Apache-2.0 */
/* write/check.h - whether a target can take what a checkpoint has, and what is left behind. */
#ifndef MP_WRITE_CHECK_H
#define MP_WRITE_CHECK_H

#include <moepack/pack.h>

#include "write/plan.h"

/* Options that do not go together, or not with the model. */
int mp_check_options(mp_repack_plan *plan, mp_error *err);

/* The target takes the scheme of the layer's routed experts, as it is or requantized, and all
 * that belongs to them. MP_ERR_UNSUPPORTED naming the option that would do. */
int mp_check_layer(const mp_repack_plan *plan, const mp_moe_layer *layer, mp_error *err);

/* Warns of what the layers compute between their products and the target's kernel does not: the
 * bytes of a pack do not depend on it. */
void mp_check_activation(mp_repack_plan *plan);

/* The same for the layer's shared expert in a set. */
int mp_check_shared(const mp_repack_plan *plan, const mp_slot_set *set, const mp_moe_layer *layer,
                    mp_error *err);

/* Whether a layer has an optional tensor of a set. MP_ERR_UNSUPPORTED where some of its
 * experts have it and others do not. */
int mp_check_optional(const mp_repack_plan *plan, const mp_plan_layer *layer,
                      const mp_slot_set *set, const mp_slot_tensor *tensor, bool *has,
                      mp_error *err);

#endif
