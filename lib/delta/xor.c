/* SPDX-License-Identifier: Apache-2.0 */
/* XOR and counting, 16 bytes at a time in whatever registers a processor has for them. */
#include "delta/xor.h"

#include <string.h>

typedef uint8_t lanes __attribute__((vector_size(16)));

#define WIDTH sizeof(lanes)
#define TURNS 255 /* that a lane of 8 bits can count */

static lanes load(const uint8_t *from)
{
    lanes v;

    memcpy(&v, from, sizeof v);
    return v;
}

void mp_xor_bytes(uint8_t *a, const uint8_t *b, size_t n)
{
    size_t i = 0;

    for (; i + WIDTH <= n; i += WIDTH) {
        lanes v = load(a + i) ^ load(b + i);

        memcpy(a + i, &v, sizeof v);
    }
    for (; i < n; i++)
        a[i] ^= b[i];
}

/* Sum of the lanes. */
static uint64_t sum_up(lanes sums)
{
    uint64_t sum = 0;

    for (size_t k = 0; k < WIDTH; k++)
        sum += sums[k];
    return sum;
}

uint64_t mp_xor_count(uint8_t *a, const uint8_t *b, size_t n)
{
    uint64_t count = 0;
    size_t i = 0;

    while (i + WIDTH <= n) {
        size_t turns = (n - i) / WIDTH < TURNS ? (n - i) / WIDTH : TURNS;
        lanes sums = {0};

        /* what compares as true has all bits set, which is -1 */
        for (; turns > 0; turns--, i += WIDTH) {
            lanes v = load(a + i) ^ load(b + i);

            memcpy(a + i, &v, sizeof v);
            sums -= (lanes)(v != (lanes){0});
        }
        count += sum_up(sums);
    }
    for (; i < n; i++)
        count += (a[i] ^= b[i]) != 0;
    return count;
}

uint64_t mp_count_nonzero(const uint8_t *bytes, size_t n)
{
    uint64_t count = 0;
    size_t i = 0;

    while (i + WIDTH <= n) {
        size_t turns = (n - i) / WIDTH < TURNS ? (n - i) / WIDTH : TURNS;
        lanes sums = {0};

        for (; turns > 0; turns--, i += WIDTH)
            sums -= (lanes)(load(bytes + i) != (lanes){0});
        count += sum_up(sums);
    }
    for (; i < n; i++)
        count += bytes[i] != 0;
    return count;
}
