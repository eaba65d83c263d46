/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/towers.h - catalogs of checkpoints with more than one model. */
#ifndef MP_CHECKPOINT_TOWERS_H
#define MP_CHECKPOINT_TOWERS_H

#include <moepack/model.h>

/* Whether config.json has towers, and all layers are of one of them. */
bool mp_catalog_has_towers(const mp_catalog *catalog);

/* What mp_layer_unfuse and mp_catalog_complete do, for each tower by its own part of config.json.
 * The catalog's layers are filled, and sorted tower by tower. */
int mp_catalog_complete_towers(mp_catalog *catalog, mp_error *err);

#endif
