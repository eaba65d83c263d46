/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the element behind a packed byte by bisection. */
#include "verify/locate.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* The packed byte at offset when the first `elements` elements are as they are, and the others
 * as they should be. */
static uint8_t try_mixed(const mp_locate *l, uint64_t elements, uint64_t offset, uint8_t *mixed,
                         uint8_t *repacked)
{
    uint64_t split = elements * l->width;

    memcpy(mixed, l->have, split);
    memcpy(mixed + split, l->want + split, l->bytes - split);
    l->pack(l->user, mixed, repacked);
    return repacked[offset];
}

/* The element whose change changes the byte. */
static uint64_t find_element(const mp_locate *l, const mp_location *found, uint8_t *mixed,
                             uint8_t *repacked)
{
    uint64_t low = 0, high = l->bytes / l->width;

    if (try_mixed(l, high, found->offset, mixed, repacked) == found->want)
        return MP_LOCATE_NONE;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;

        if (try_mixed(l, middle, found->offset, mixed, repacked) == found->want)
            low = middle;
        else
            high = middle;
    }
    return low * l->width;
}

int mp_locate_first(const mp_locate *l, mp_location *found, mp_error *err)
{
    uint8_t *mixed = mp_alloc(l->bytes, 1), *repacked = mp_alloc(l->packed_bytes, 1);
    uint64_t offset = 0;

    *found = (mp_location){.offset = MP_LOCATE_NONE, .at = MP_LOCATE_NONE};
    if (!mixed || !repacked) {
        free(mixed);
        free(repacked);
        return mp_fail_memory(err);
    }
    l->pack(l->user, l->want, repacked);
    while (offset < l->packed_bytes && l->packed[offset] == repacked[offset])
        offset++;
    if (offset < l->packed_bytes) {
        found->offset = offset;
        found->have = l->packed[offset];
        found->want = repacked[offset];
        found->at = find_element(l, found, mixed, repacked);
    }
    free(mixed);
    free(repacked);
    return 0;
}
