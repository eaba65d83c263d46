/* SPDX-License-Identifier: Apache-2.0 */
/* base/sha.h - SHA-1 and SHA-256 (FIPS 180-4) as files of others use them. Neither is for anything
 * of ours: digests are XXH3 (digest.h). */
#ifndef MP_BASE_SHA_H
#define MP_BASE_SHA_H

#include <moepack/base.h>

typedef struct mp_sha {
    bool wide; /* SHA-256 */
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
} mp_sha;

void mp_sha1_begin(mp_sha *sha);
void mp_sha256_begin(mp_sha *sha);
void mp_sha_update(mp_sha *sha, const void *data, uint64_t n);

/* Lowercase hex digits and a NUL: 40 of SHA-1, 64 of SHA-256. Returns text. */
#define MP_SHA_TEXT 65
char *mp_sha_end(mp_sha *sha, char text[MP_SHA_TEXT]);

#endif
