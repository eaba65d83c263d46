/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3-128 of memory and of files, in its canonical (big-endian) form.
 *
 * The canonical form is what `xxh128sum` prints, so users can check digests without moepack. xxHash
 * may choose its code by the processor, but digests do not depend on it. A stream belongs to one
 * thread at a time; everything else is pure. */
#include "base/digest.h"

#include <string.h>

/* xxHash's own choice by processor where the library has one; the digests are the same. */
#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#endif
#endif
#include <xxhash.h>

#include "base/error.h"
#include "base/file.h"

_Static_assert(sizeof(mp_digest) == sizeof(XXH128_canonical_t), "a digest is the canonical form");

static void set_digest(mp_digest *digest, XXH128_hash_t hash)
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    memcpy(digest->bytes, canonical.digest, sizeof(digest->bytes));
}

void mp_digest_of(const void *data, size_t n, mp_digest *digest)
{
    set_digest(digest, XXH3_128bits(data, n));
}

bool mp_digest_equal(const mp_digest *a, const mp_digest *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

char *mp_digest_text(const mp_digest *digest, char text[MP_DIGEST_TEXT])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof(digest->bytes); i++) {
        text[2 * i] = digits[digest->bytes[i] >> 4];
        text[2 * i + 1] = digits[digest->bytes[i] & 15];
    }
    text[MP_DIGEST_TEXT - 1] = '\0';
    return text;
}

/* Value of a lowercase hex digit, or -1. */
static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool mp_digest_parse(const char *text, mp_digest *digest)
{
    if (strlen(text) != MP_DIGEST_TEXT - 1)
        return false;
    for (size_t i = 0; i < sizeof(digest->bytes); i++) {
        int high = hex_value(text[2 * i]);
        int low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        digest->bytes[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

int mp_digest_begin(mp_digest_stream *stream, mp_error *err)
{
    stream->state = XXH3_createState();
    if (!stream->state)
        return mp_fail_memory(err);
    XXH3_128bits_reset(stream->state);
    return 0;
}

void mp_digest_update(mp_digest_stream *stream, const void *data, size_t n)
{
    XXH3_128bits_update(stream->state, data, n);
}

int mp_digest_update_file(mp_digest_stream *stream, int fd, const char *path, uint64_t offset,
                          uint64_t n, void *buffer, size_t size, mp_error *err)
{
    while (n > 0) {
        size_t part = n < size ? (size_t)n : size;
        int rc = mp_pread_all(fd, buffer, part, offset, path, err);
        if (rc != 0)
            return rc;
        mp_digest_update(stream, buffer, part);
        offset += part;
        n -= part;
    }
    return 0;
}

void mp_digest_end(mp_digest_stream *stream, mp_digest *digest)
{
    if (stream->state && digest)
        set_digest(digest, XXH3_128bits_digest(stream->state));
    XXH3_freeState(stream->state);
    stream->state = NULL;
}

int mp_digest_file(int fd, const char *path, uint64_t offset, uint64_t n, void *buffer, size_t size,
                   mp_digest *digest, mp_error *err)
{
    mp_digest_stream stream;
    int rc = mp_digest_begin(&stream, err);
    if (rc == 0)
        rc = mp_digest_update_file(&stream, fd, path, offset, n, buffer, size, err);
    mp_digest_end(&stream, rc == 0 ? digest : NULL);
    return rc;
}
