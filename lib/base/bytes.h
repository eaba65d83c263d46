/* SPDX-License-Identifier: Apache-2.0 */
/* base/bytes.h - little-endian numbers of n bytes, n <= 8. */
#ifndef MP_BASE_BYTES_H
#define MP_BASE_BYTES_H

#include <stdint.h>

static inline uint64_t mp_get_le(const unsigned char *bytes, unsigned n)
{
    uint64_t value = 0;

    while (n-- > 0)
        value = value << 8 | bytes[n];
    return value;
}

static inline void mp_put_le(unsigned char *bytes, uint64_t value, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        bytes[i] = (unsigned char)(value >> (8 * i));
}

#endif
