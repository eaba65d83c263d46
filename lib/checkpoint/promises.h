/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/promises.h - what config.json and the folder promise, and the checkpoint does not
 * hold. */
#ifndef MP_CHECKPOINT_PROMISES_H
#define MP_CHECKPOINT_PROMISES_H

#include <moepack/model.h>

/* Lists MTP blocks that are not there, and shards that the index does not name, in
 * catalog->promises. path: as the catalog was opened. */
int mp_catalog_find_promises(mp_catalog *catalog, const char *path, mp_error *err);

#endif
