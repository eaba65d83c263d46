/* SPDX-License-Identifier: Apache-2.0 */
/* Checksums, XOR and counting of deltas. */
#include <criterion/criterion.h>

#include <string.h>

#include <moepack/delta.h>

#include "delta/checksum.h"
#include "delta/xor.h"

/* Bytes that do not repeat soon. */
static void fill(uint8_t *bytes, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(seed >> 24);
    }
}

static void checksum_of(mp_delta_checksum kind, const void *data, size_t n, size_t step,
                        char text[MP_CHECKSUM_TEXT])
{
    mp_checksum sum;

    cr_assert_eq(mp_checksum_begin(&sum, kind, NULL), 0);
    for (size_t at = 0; at < n; at += step)
        mp_checksum_update(&sum, (const char *)data + at, n - at < step ? n - at : step);
    mp_checksum_end(&sum, text);
}

/* zlib.adler32 and xxh128sum of the same. */
Test(delta, takes_checksums_as_others_do)
{
    static const char text[] = "Wikipedia";
    static uint8_t high[100003];
    char sum[MP_CHECKSUM_TEXT];

    checksum_of(MP_DELTA_ADLER32, text, strlen(text), 4, sum);
    cr_assert_str_eq(sum, "11e60398");
    checksum_of(MP_DELTA_ADLER32, "", 0, 1, sum);
    cr_assert_str_eq(sum, "00000001");
    memset(high, 0xff, sizeof high);
    checksum_of(MP_DELTA_ADLER32, high, sizeof high, 70001, sum);
    cr_assert_str_eq(sum, "ab183329");
    checksum_of(MP_DELTA_XXH3_128, text, strlen(text), 4, sum);
    cr_assert_str_eq(sum, "33d468536730462c812e3ed6c425b7ea");
}

Test(delta, knows_what_can_be_a_checksum)
{
    cr_assert(mp_checksum_valid(MP_DELTA_ADLER32, "11e60398"));
    cr_assert(mp_checksum_valid(MP_DELTA_ADLER32, "1"));
    cr_assert(mp_checksum_same(MP_DELTA_ADLER32, "1", "00000001"));
    cr_assert_not(mp_checksum_same(MP_DELTA_ADLER32, "10", "00000001"));
    cr_assert_not(mp_checksum_valid(MP_DELTA_ADLER32, ""));
    cr_assert_not(mp_checksum_valid(MP_DELTA_ADLER32, "11E60398"));
    cr_assert_not(mp_checksum_valid(MP_DELTA_ADLER32, "011e60398"));
    cr_assert_not(mp_checksum_valid(MP_DELTA_XXH3_128, "11e60398"));
}

Test(delta, xors_and_counts_any_length_at_any_offset)
{
    enum { SIZE = 5000, OFFSETS = 19 };
    static uint8_t a[SIZE + OFFSETS], b[SIZE + OFFSETS], x[SIZE + OFFSETS];
    static const size_t lengths[] = {0, 1, 7, 15, 16, 17, 31, 33, 255 * 16, 255 * 16 + 5, SIZE};

    for (size_t offset = 0; offset < OFFSETS; offset++)
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
            size_t n = lengths[l];
            uint64_t count = 0;

            fill(a, sizeof a, (uint32_t)(offset * 31 + l));
            memcpy(b, a, sizeof b);
            for (size_t i = 0; i < n; i += 1 + i % 7)
                b[offset + i] ^= (uint8_t)(1 + i % 255);
            memcpy(x, a, sizeof x);
            mp_xor_bytes(x + offset, b + offset, n);
            for (size_t i = 0; i < sizeof x; i++) {
                bool inside = i >= offset && i < offset + n;

                cr_assert_eq(x[i], inside ? a[i] ^ b[i] : a[i], "byte %zu of %zu", i, n);
                count += inside && a[i] != b[i];
            }
            cr_assert_eq(mp_count_nonzero(x + offset, n), count);
            cr_assert_eq(mp_xor_count(a + offset, b + offset, n), count);
            cr_assert_eq(memcmp(a, x, sizeof a), 0);
        }
    memset(x, 0x80, SIZE);
    cr_assert_eq(mp_count_nonzero(x, SIZE), SIZE);
    memset(a, 0, SIZE);
    cr_assert_eq(mp_xor_count(a, x, SIZE), SIZE);
}
