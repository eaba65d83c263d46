/* SPDX-License-Identifier: Apache-2.0 */
/* Items of comma-separated lists. */
#include "base/list.h"

#include <string.h>

bool mp_list_has(const char *list, const char *item)
{
    size_t length = strlen(item);

    for (const char *p = list; p && *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == length && memcmp(p, item, length) == 0)
            return true;
    return false;
}
