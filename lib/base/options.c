/* SPDX-License-Identifier: Apache-2.0 */
#include "base/options.h"

#include <string.h>

#include "base/error.h"

int mp_options_take(const char *type, void *own, size_t size, const void *given, mp_error *err)
{
    size_t theirs = size;

    if (given)
        memcpy(&theirs, given, sizeof theirs);
    if (theirs < sizeof theirs || theirs > size)
        return mp_fail(err, MP_ERR_USAGE,
                       "%s: size %zu, this version of the library knows up to %zu: set it to "
                       "sizeof(%s)",
                       type, theirs, size, type);
    memset(own, 0, size);
    if (given)
        memcpy(own, given, theirs);
    memcpy(own, &size, sizeof size);
    return 0;
}
