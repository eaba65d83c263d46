/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-1 and SHA-256, block by block: FIPS 180-4, sections 5 and 6. They share padding and the big
 * end first; only a block's rounds differ. */
#include "base/sha.h"

#include <stdio.h>
#include <string.h>

static uint32_t rotate(uint32_t x, unsigned left)
{
    return x << left | x >> (32 - left);
}

static uint32_t load(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void sha1_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];

    for (unsigned t = 0; t < 80; t++)
        w[t] =
            t < 16 ? load(block + 4 * t) : rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    for (unsigned t = 0; t < 80; t++) {
        static const uint32_t k[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
        uint32_t f = t < 20   ? (b & c) | (~b & d)
                     : t < 40 ? b ^ c ^ d
                     : t < 60 ? (b & c) | (b & d) | (c & d)
                              : b ^ c ^ d;
        uint32_t next = rotate(a, 5) + f + e + k[t / 20] + w[t];

        e = d;
        d = c;
        c = rotate(b, 30);
        b = a;
        a = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
}

static const uint32_t k256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64], s[8];

    memcpy(s, state, sizeof s);
    for (unsigned t = 0; t < 64; t++) {
        uint32_t x = t < 16 ? 0 : w[t - 15], y = t < 16 ? 0 : w[t - 2];

        w[t] = t < 16 ? load(block + 4 * t)
                      : w[t - 16] + (rotate(x, 25) ^ rotate(x, 14) ^ x >> 3) + w[t - 7] +
                            (rotate(y, 15) ^ rotate(y, 13) ^ y >> 10);
    }
    for (unsigned t = 0; t < 64; t++) {
        uint32_t a = s[0], e = s[4];
        uint32_t one = s[7] + (rotate(e, 26) ^ rotate(e, 21) ^ rotate(e, 7)) +
                       ((e & s[5]) ^ (~e & s[6])) + k256[t] + w[t];
        uint32_t two = (rotate(a, 30) ^ rotate(a, 19) ^ rotate(a, 10)) +
                       ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (unsigned i = 0; i < 8; i++)
        state[i] += s[i];
}

void mp_sha1_begin(mp_sha *sha)
{
    *sha = (mp_sha){.state = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}};
}

void mp_sha256_begin(mp_sha *sha)
{
    *sha = (mp_sha){.wide = true,
                    .state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
                              0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

void mp_sha_update(mp_sha *sha, const void *data, uint64_t n)
{
    const uint8_t *from = data;

    while (n > 0) {
        uint64_t at = sha->length % 64, left = 64 - at, take = n < left ? n : left;

        memcpy(sha->block + at, from, take);
        sha->length += take;
        from += take;
        n -= take;
        if (at + take == 64)
            (sha->wide ? sha256_block : sha1_block)(sha->state, sha->block);
    }
}

char *mp_sha_end(mp_sha *sha, char text[MP_SHA_TEXT])
{
    static const uint8_t padding[64] = {0x80};
    uint64_t bits = sha->length * 8, at = sha->length % 64;
    uint8_t length[8];

    for (unsigned i = 0; i < 8; i++)
        length[i] = (uint8_t)(bits >> (56 - 8 * i));
    mp_sha_update(sha, padding, at < 56 ? 56 - at : 120 - at);
    mp_sha_update(sha, length, sizeof length);
    for (unsigned i = 0; i < (sha->wide ? 8 : 5); i++)
        snprintf(text + 8 * i, 9, "%08x", sha->state[i]);
    return text;
}
