/* SPDX-License-Identifier: Apache-2.0 */
/* base/ordered.h - finding a record by where it begins. */
#ifndef MP_BASE_ORDERED_H
#define MP_BASE_ORDERED_H

#include <stddef.h>
#include <stdint.h>

/* Index of the last of `count` records that begins at `at` or before; 0 where none does. They are
 * in the order of their beginnings, the first of which is *begin, with `stride` bytes from one to
 * the next. */
static inline size_t mp_last_begun(const uint64_t *begin, size_t stride, size_t count, uint64_t at)
{
    size_t low = 0, high = count;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (*(const uint64_t *)((const char *)begin + middle * stride) <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

#endif
