/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/layers.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/select.h"

int mp_catalog_select(const mp_catalog *catalog, const char *list, bool **selected, mp_error *err)
{
    size_t count = catalog->num_layers;
    const char **prefixes = mp_alloc(count, sizeof *prefixes);
    bool *flags = mp_alloc(count, sizeof *flags);
    int rc = prefixes && flags ? 0 : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && i < count; i++)
        prefixes[i] = catalog->layers[i].prefix;
    if (rc == 0)
        rc = mp_select_layers(list, prefixes, count, flags, err);
    free(prefixes);
    if (rc != 0) {
        free(flags);
        flags = NULL;
    }
    *selected = flags;
    return rc;
}
