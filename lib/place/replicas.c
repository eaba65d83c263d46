/* SPDX-License-Identifier: Apache-2.0 */
/* The physical experts of each logical one, by a counting sort. */
#include <moepack/place.h>

#include <stdlib.h>

#include "base/error.h"
#include "place/replicas.h"

int mp_replicas_init(mp_replicas *r, const int32_t *row, uint32_t num_logical,
                     uint32_t num_physical, mp_error *err)
{
    *r = (mp_replicas){.num_logical = num_logical};
    r->start = mp_alloc_zeroed((uint64_t)num_logical + 2, sizeof(*r->start));
    r->physical = mp_alloc(num_physical, sizeof(*r->physical));
    if (!r->start || !r->physical) {
        mp_replicas_release(r);
        return mp_fail_memory(err);
    }
    for (uint32_t p = 0; p < num_physical; p++) {
        if (row[p] < 0 || (uint32_t)row[p] >= num_logical) {
            mp_replicas_release(r);
            return mp_fail(err, MP_ERR_INPUT,
                           "placement: column %u: logical expert %d, expected 0 to %u", p, row[p],
                           num_logical - 1);
        }
        r->start[row[p] + 2]++;
    }
    /* start[e + 1] first is where the next replica of e goes, and in the end where e stops. */
    for (uint32_t e = 1; e < num_logical + 2; e++)
        r->start[e] += r->start[e - 1];
    for (uint32_t p = 0; p < num_physical; p++)
        r->physical[r->start[row[p] + 1]++] = p;
    return 0;
}

void mp_replicas_release(mp_replicas *r)
{
    free(r->start);
    free(r->physical);
    *r = (mp_replicas){0};
}
