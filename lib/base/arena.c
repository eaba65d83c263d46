/* SPDX-License-Identifier: Apache-2.0 */
/* Small objects cut from growing blocks and freed all at once, and pieces of scratch memory.
 *
 *     blocks   newest -> ... -> oldest      only the newest has room left
 *
 * Names and shapes of a hundred thousand tensors live and die together, so single frees would only
 * cost time. Blocks double up to 1 MiB. An object never moves. Joining two arenas links their
 * blocks and touches no object. An arena belongs to one thread at a time.
 *
 * mp_scratch_take works with a null base too: the same code then measures the scratch that it would
 * lay out. */
#include "base/arena.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define BLOCK_MIN ((size_t)4096)
#define BLOCK_MAX ((size_t)1 << 20)

struct mp_arena_block {
    struct mp_arena_block *next;
    _Alignas(8) unsigned char data[];
};

/* Puts a block with room for n bytes in front. */
static int add_block(mp_arena *arena, size_t n)
{
    size_t size = arena->size < BLOCK_MIN / 2 ? BLOCK_MIN : arena->size * 2;
    if (size > BLOCK_MAX)
        size = BLOCK_MAX;
    if (size < n)
        size = n;
    struct mp_arena_block *block = mp_alloc(sizeof(*block) + (uint64_t)size, 1);
    if (!block)
        return -1;
    block->next = arena->blocks;
    arena->blocks = block;
    arena->size = size;
    arena->used = 0;
    return 0;
}

void *mp_arena_alloc(mp_arena *arena, size_t n)
{
    if (n > PTRDIFF_MAX / 2)
        return NULL;
    n = (size_t)mp_round_up(n, 8);
    if ((!arena->blocks || n > arena->size - arena->used) && add_block(arena, n) != 0)
        return NULL;
    void *object = arena->blocks->data + arena->used;
    arena->used += n;
    return object;
}

char *mp_arena_string(mp_arena *arena, const char *text, size_t n)
{
    if (n == SIZE_MAX)
        return NULL;
    char *copy = mp_arena_alloc(arena, n + 1);
    if (!copy)
        return NULL;
    if (n > 0)
        memcpy(copy, text, n);
    copy[n] = '\0';
    return copy;
}

void mp_arena_join(mp_arena *arena, mp_arena *more)
{
    if (!more->blocks)
        return;
    if (!arena->blocks) {
        *arena = *more;
    } else {
        struct mp_arena_block *last = more->blocks;
        while (last->next)
            last = last->next;
        /* Behind the newest block, which must stay in front, because its free space is known. */
        last->next = arena->blocks->next;
        arena->blocks->next = more->blocks;
    }
    *more = (mp_arena){0};
}

void mp_arena_release(mp_arena *arena)
{
    struct mp_arena_block *block = arena->blocks;
    while (block) {
        struct mp_arena_block *next = block->next;
        free(block);
        block = next;
    }
    *arena = (mp_arena){0};
}

void *mp_scratch_take(void *base, uint64_t *used, uint64_t n)
{
    void *piece = base ? (uint8_t *)base + *used : NULL;

    *used += mp_round_up(n, 64);
    return piece;
}
