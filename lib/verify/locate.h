/* SPDX-License-Identifier: Apache-2.0 */
/* verify/locate.h - which element of the canonical form a byte of a packed tensor belongs to.
 *
 * Layouts say where they put an element by packing it, nothing else. So the element is
 * found by trying: of all elements that differ, half are packed as they are and half as
 * they should be, and the byte tells in which half it is. */
#ifndef MP_VERIFY_LOCATE_H
#define MP_VERIFY_LOCATE_H

#include <moepack/base.h>

/* Packs canonical bytes, all of a piece. */
typedef void mp_locate_pack(const void *user, const uint8_t *canonical, uint8_t *packed);

/* A piece of a packed tensor that is not as it should be. */
typedef struct mp_locate {
    mp_locate_pack *pack;
    const void *user;
    const uint8_t *packed; /* as it is, [packed_bytes] */
    uint64_t packed_bytes;
    const uint8_t *have; /* the same unpacked, [bytes] */
    const uint8_t *want; /* as that should be */
    uint64_t bytes;
    unsigned width; /* of a canonical element, in bytes */
} mp_locate;

#define MP_LOCATE_NONE UINT64_MAX

typedef struct mp_location {
    uint64_t offset;    /* of the first packed byte that is wrong; or NONE */
    uint8_t have, want; /* this byte */
    uint64_t at;        /* canonical byte where its element begins; NONE: it is padding */
} mp_location;

/* MP_ERR_IO without memory. */
int mp_locate_first(const mp_locate *l, mp_location *found, mp_error *err);

#endif
