/* SPDX-License-Identifier: Apache-2.0 */
/* delta/checksum.h - checksums that deltas hold of whole tensors, as lowercase hex. */
#ifndef MP_DELTA_CHECKSUM_H
#define MP_DELTA_CHECKSUM_H

#include <moepack/delta.h>

#include "base/digest.h"

#define MP_CHECKSUM_TEXT MP_DIGEST_TEXT

typedef struct mp_checksum {
    mp_delta_checksum kind;
    mp_digest_stream xxh3;
    uint32_t a, b; /* of Adler-32 */
} mp_checksum;

int mp_checksum_begin(mp_checksum *sum, mp_delta_checksum kind, mp_error *err);
void mp_checksum_update(mp_checksum *sum, const void *data, size_t n);
/* Gives the text (may be null) and frees what begin took; a zeroed value is fine. */
void mp_checksum_end(mp_checksum *sum, char text[MP_CHECKSUM_TEXT]);

/* The checksum of that name. MP_ERR_UNSUPPORTED for blake3, MP_ERR_INPUT for what is unknown. */
int mp_checksum_parse(const char *name, mp_delta_checksum *kind, mp_error *err);

/* Whether a text can be one. Adler-32 may lack leading zeros: Python's hex() leaves them out. */
bool mp_checksum_valid(mp_delta_checksum kind, const char *text);
/* Whether two valid texts are the same number. */
bool mp_checksum_same(mp_delta_checksum kind, const char *a, const char *b);

/* "xxh3-128", "adler32"; a static string. */
const char *mp_delta_checksum_name(mp_delta_checksum checksum);

#endif
