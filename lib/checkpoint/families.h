/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/families.h - look-ups in the table of families. */
#ifndef MP_CHECKPOINT_FAMILIES_H
#define MP_CHECKPOINT_FAMILIES_H

#include <moepack/model.h>

/* The naming whose block is called so ("ffn", "mlp"), or null. */
const mp_naming *mp_naming_of_block(const char *block, size_t length);

/* The family that config.json's model_type means, or null. */
const mp_family *mp_family_of_model_type(const char *model_type);

/* The likeliest family with that naming; never null for a naming of the table. */
const mp_family *mp_family_of_naming(const mp_naming *naming, bool has_shared);

#endif
