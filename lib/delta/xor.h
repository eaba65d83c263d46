/* SPDX-License-Identifier: Apache-2.0 */
/* delta/xor.h - bytes of two versions against each other. */
#ifndef MP_DELTA_XOR_H
#define MP_DELTA_XOR_H

#include <stddef.h>
#include <stdint.h>

/* a ^= b */
void mp_xor_bytes(uint8_t *a, const uint8_t *b, size_t n);

/* a ^= b; how many bytes of them differed. */
uint64_t mp_xor_count(uint8_t *a, const uint8_t *b, size_t n);

/* How many bytes are not zero. */
uint64_t mp_count_nonzero(const uint8_t *bytes, size_t n);

#endif
