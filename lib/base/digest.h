/* SPDX-License-Identifier: Apache-2.0 */
/* base/digest.h - XXH3-128, as 16 big-endian bytes and as 32 hex digits, the
 * form that `xxh128sum` prints. */
#ifndef MP_BASE_DIGEST_H
#define MP_BASE_DIGEST_H

#include <moepack/base.h>

typedef struct mp_digest {
    unsigned char bytes[16];
} mp_digest;

#define MP_DIGEST_TEXT 33

void mp_digest_of(const void *data, size_t n, mp_digest *digest);
bool mp_digest_equal(const mp_digest *a, const mp_digest *b);
/* 32 lowercase hex digits and a NUL. Returns text. */
char *mp_digest_text(const mp_digest *digest, char text[MP_DIGEST_TEXT]);
/* The reverse; false unless it is exactly 32 lowercase hex digits. */
bool mp_digest_parse(const char *text, mp_digest *digest);

/* A digest of data that comes in pieces. */
typedef struct mp_digest_stream {
    void *state;
} mp_digest_stream;

int mp_digest_begin(mp_digest_stream *stream, mp_error *err);
void mp_digest_update(mp_digest_stream *stream, const void *data, size_t n);
/* n bytes of a file from offset, through a buffer of `size` bytes. */
int mp_digest_update_file(mp_digest_stream *stream, int fd, const char *path, uint64_t offset,
                          uint64_t n, void *buffer, size_t size, mp_error *err);
/* Gives the digest (may be null) and frees the stream; a zeroed stream is fine. */
void mp_digest_end(mp_digest_stream *stream, mp_digest *digest);

/* Digest of n bytes of a file from offset, through a buffer of `size` bytes. */
int mp_digest_file(int fd, const char *path, uint64_t offset, uint64_t n, void *buffer, size_t size,
                   mp_digest *digest, mp_error *err);

#endif
