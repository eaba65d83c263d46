/* SPDX-License-Identifier: Apache-2.0 */
/* base/arena.h - memory that is freed all at once, and scratch that is laid out by hand. */
#ifndef MP_BASE_ARENA_H
#define MP_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

/* A chain of blocks. A zeroed arena is empty and ready. */
typedef struct mp_arena {
    struct mp_arena_block *blocks;
    size_t used, size; /* of the first block */
} mp_arena;

/* n bytes aligned to 8, or null without memory. */
void *mp_arena_alloc(mp_arena *arena, size_t n);

/* A copy of n bytes and a NUL. */
char *mp_arena_string(mp_arena *arena, const char *text, size_t n);

/* Hands all of more's memory to arena; more is empty afterwards. */
void mp_arena_join(mp_arena *arena, mp_arena *more);

void mp_arena_release(mp_arena *arena);

/* Takes n bytes, 64-byte aligned, from scratch of which *used are taken; with a null base it only
 * counts, so that one function both measures scratch and lays it out. */
void *mp_scratch_take(void *base, uint64_t *used, uint64_t n);

#endif
