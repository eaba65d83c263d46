/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3-128 as xxh128sum prints it, and Adler-32 (RFC 1950, 9) as eight digits. */
#include "delta/checksum.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define ADLER_MODULUS 65521u
/* Most bytes whose sums stay below 2^32 when they are reduced before and behind them only. */
#define ADLER_BYTES 5552u

const char *mp_delta_checksum_name(mp_delta_checksum checksum)
{
    static const char *const names[] = {"xxh3-128", "adler32"};

    return names[checksum];
}

int mp_checksum_parse(const char *name, mp_delta_checksum *kind, mp_error *err)
{
    for (int k = 0; k < MP_DELTA_CHECKSUMS; k++) {
        *kind = (mp_delta_checksum)k;
        if (strcmp(name, mp_delta_checksum_name(*kind)) == 0)
            return 0;
    }
    if (strcmp(name, "blake3") == 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "checksum_format \"blake3\" is not supported: publish with xxh3-128");
    return mp_fail(err, MP_ERR_INPUT, "checksum_format \"%s\" is unknown", name);
}

int mp_checksum_begin(mp_checksum *sum, mp_delta_checksum kind, mp_error *err)
{
    *sum = (mp_checksum){.kind = kind, .a = 1};
    return kind == MP_DELTA_XXH3_128 ? mp_digest_begin(&sum->xxh3, err) : 0;
}

static void update_adler(mp_checksum *sum, const uint8_t *data, size_t n)
{
    while (n > 0) {
        size_t part = n < ADLER_BYTES ? n : ADLER_BYTES;

        for (size_t i = 0; i < part; i++) {
            sum->a += data[i];
            sum->b += sum->a;
        }
        sum->a %= ADLER_MODULUS;
        sum->b %= ADLER_MODULUS;
        data += part;
        n -= part;
    }
}

void mp_checksum_update(mp_checksum *sum, const void *data, size_t n)
{
    if (sum->kind == MP_DELTA_XXH3_128)
        mp_digest_update(&sum->xxh3, data, n);
    else
        update_adler(sum, data, n);
}

void mp_checksum_end(mp_checksum *sum, char text[MP_CHECKSUM_TEXT])
{
    mp_digest digest;

    if (sum->kind == MP_DELTA_XXH3_128) {
        mp_digest_end(&sum->xxh3, &digest);
        if (text)
            mp_digest_text(&digest, text);
    } else if (text) {
        snprintf(text, MP_CHECKSUM_TEXT, "%04x%04x", sum->b, sum->a);
    }
}

bool mp_checksum_valid(mp_delta_checksum kind, const char *text)
{
    mp_digest digest;
    size_t n = strlen(text);

    if (kind == MP_DELTA_XXH3_128)
        return mp_digest_parse(text, &digest);
    return n >= 1 && n <= 8 && strspn(text, "0123456789abcdef") == n;
}

bool mp_checksum_same(mp_delta_checksum kind, const char *a, const char *b)
{
    if (kind == MP_DELTA_XXH3_128)
        return strcmp(a, b) == 0;
    return strtoul(a, NULL, 16) == strtoul(b, NULL, 16);
}
