/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/layers.h - layers of a catalog by their names. */
#ifndef MP_CHECKPOINT_LAYERS_H
#define MP_CHECKPOINT_LAYERS_H

#include <moepack/model.h>

/* The layers that a list selects; null: all. selected: malloc'ed, [num_layers]; null where the
 * call fails. */
int mp_catalog_select(const mp_catalog *catalog, const char *list, bool **selected, mp_error *err);

#endif
