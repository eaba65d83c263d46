/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/complete.h - is every expert there, and does config.json agree? */
#ifndef MP_CHECKPOINT_COMPLETE_H
#define MP_CHECKPOINT_COMPLETE_H

#include <moepack/model.h>

#include "checkpoint/storage.h"

/* Settles sizes and storage of a catalog whose layers are filled and sorted, and
 * lists everything that is missing, odd, or contradicts config.json.
 * MP_ERR_UNSUPPORTED when the experts are stored in no known form. */
int mp_catalog_complete(mp_catalog *catalog, mp_error *err);

/* As mp_catalog_check_sound, and MP_ERR_UNSUPPORTED for experts without a gate, which are no
 * SwiGLU. */
int mp_catalog_check(const mp_catalog *catalog, mp_error *err);

#endif
