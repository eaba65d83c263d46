/* SPDX-License-Identifier: Apache-2.0 */
/* verify/locate.h with layouts made for asking: backwards, padded, repeated, lossy. */
#include <criterion/criterion.h>

#include <string.h>

#include "verify/locate.h"

enum { COUNT = 37 };

/* Elements of `width` bytes backwards, each with a zero byte behind it. */
static void pack_backwards(const void *user, const uint8_t *canonical, uint8_t *packed)
{
    unsigned width = *(const unsigned *)user;

    for (unsigned e = 0; e < COUNT; e++) {
        memcpy(packed + e * (width + 1), canonical + (COUNT - 1 - e) * width, width);
        packed[e * (width + 1) + width] = 0;
    }
}

/* The upper half of every byte, three times, in turns. */
static void pack_repeated(const void *user, const uint8_t *canonical, uint8_t *packed)
{
    (void)user;
    for (unsigned i = 0; i < 3 * COUNT; i++)
        packed[i] = canonical[i % COUNT] & 0xf0;
}

static uint8_t have[4 * COUNT], want[4 * COUNT], packed[5 * COUNT];
static unsigned width;
static mp_locate piece;

static void begin(mp_locate_pack *pack, unsigned element, uint64_t packed_bytes)
{
    width = element;
    for (unsigned i = 0; i < COUNT * width; i++)
        have[i] = want[i] = (uint8_t)(17 * i + 3);
    piece = (mp_locate){.pack = pack,
                        .user = &width,
                        .packed = packed,
                        .packed_bytes = packed_bytes,
                        .have = have,
                        .want = want,
                        .bytes = COUNT * width,
                        .width = width};
}

static mp_location locate(void)
{
    mp_location found;
    mp_error err;

    cr_assert_eq(mp_locate_first(&piece, &found, &err), 0);
    return found;
}

Test(locate, finds_every_element)
{
    for (unsigned w = 1; w <= 4; w++) {
        for (unsigned i = 0; i < COUNT * w; i++) {
            begin(pack_backwards, w, COUNT * (w + 1));
            have[i] ^= 0x41;
            pack_backwards(&width, have, packed);
            mp_location found = locate();

            cr_assert_eq(found.offset, (COUNT - 1 - i / w) * (w + 1) + i % w, "byte %u", i);
            cr_assert_eq(found.at, i / w * w, "byte %u", i);
            cr_assert_eq(found.have, have[i]);
            cr_assert_eq(found.want, want[i]);
        }
    }
}

/* The first in the packed order is the last in the other one. */
Test(locate, finds_the_first_of_many)
{
    begin(pack_backwards, 2, COUNT * 3);
    for (unsigned i = 0; i < 2 * 30; i += 3)
        have[i] = (uint8_t)~have[i];
    pack_backwards(&width, have, packed);
    mp_location found = locate();

    cr_expect_eq(found.at, 56);
    cr_expect_eq(found.offset, (COUNT - 1 - 28) * 3 + 1);
}

Test(locate, tells_padding)
{
    begin(pack_backwards, 3, COUNT * 4);
    pack_backwards(&width, have, packed);
    packed[4 * 11 + 3] = 9;
    mp_location found = locate();

    cr_expect_eq(found.offset, 4 * 11 + 3);
    cr_expect_eq(found.at, MP_LOCATE_NONE);
    cr_expect_eq(found.have, 9);
    cr_expect_eq(found.want, 0);

    have[3 * (COUNT - 1 - 20)] ^= 1; /* behind it */
    pack_backwards(&width, have, packed);
    packed[4 * 11 + 3] = 9;
    found = locate();
    cr_expect_eq(found.offset, 4 * 11 + 3);
    cr_expect_eq(found.at, MP_LOCATE_NONE);
}

/* One of three copies: unpacking says that they differ by a value that is none of them. */
Test(locate, finds_the_copy_that_differs)
{
    begin(pack_repeated, 1, 3 * COUNT);
    pack_repeated(NULL, want, packed);
    packed[COUNT + 7] ^= 0x10;
    have[7] = (uint8_t)~want[7];
    mp_location found = locate();

    cr_expect_eq(found.offset, COUNT + 7);
    cr_expect_eq(found.at, 7);
    cr_expect_eq(found.have, packed[COUNT + 7]);
    cr_expect_eq(found.want, packed[7]);
}

Test(locate, says_when_nothing_packed_differs)
{
    begin(pack_repeated, 1, 3 * COUNT);
    have[5] ^= 0x01; /* packing drops it */
    pack_repeated(NULL, want, packed);
    mp_location found = locate();

    cr_expect_eq(found.offset, MP_LOCATE_NONE);
    cr_expect_eq(found.at, MP_LOCATE_NONE);
}
