/* SPDX-License-Identifier: Apache-2.0 */
/* Turning matrices over, in blocks that stay in the cache. Elements of 1 and 2 bytes, which are
 * those of large matrices, go through registers: a tile is as many rows of 16 bytes as there are
 * elements in one.
 *
 * A perfect shuffle of a tile takes element i of the first half to 2i, and of the second half to
 * 2i + 1. That turns the bits of an element's number, row and column, left by one; as many
 * shuffles as a column has bits swap the two. */
#include "base/transpose.h"

#include <string.h>

#define VECTOR 16  /* bytes of a row of a tile */
#define BLOCK  512 /* bytes of a row of a block, and of a column */
#define LINE   64  /* bytes that are fetched at once */

/* Rows of the output are far apart: lines of the tiles that are this many further on are fetched
 * meanwhile. */
#define AHEAD 2

typedef uint8_t bytes __attribute__((vector_size(VECTOR)));
typedef uint16_t pairs __attribute__((vector_size(VECTOR)));

static inline void shuffle_1(const bytes in[16], bytes out[16])
{
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        out[2 * i] = __builtin_shufflevector(in[i], in[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5,
                                             21, 6, 22, 7, 23);
        out[2 * i + 1] = __builtin_shufflevector(in[i], in[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12,
                                                 28, 13, 29, 14, 30, 15, 31);
    }
}

static inline void shuffle_2(const pairs in[8], pairs out[8])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __builtin_shufflevector(in[i], in[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        out[2 * i + 1] = __builtin_shufflevector(in[i], in[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
}

static void transpose_tile_1(const uint8_t *in, uint64_t in_stride, uint8_t *out,
                             uint64_t out_stride)
{
    bytes a[16], b[16];

#pragma GCC unroll 16
    for (unsigned i = 0; i < 16; i++)
        memcpy(&a[i], in + i * in_stride, VECTOR);
    shuffle_1(a, b);
    shuffle_1(b, a);
    shuffle_1(a, b);
    shuffle_1(b, a);
#pragma GCC unroll 16
    for (unsigned i = 0; i < 16; i++)
        memcpy(out + i * out_stride, &a[i], VECTOR);
}

static void transpose_tile_2(const uint8_t *in, uint64_t in_stride, uint8_t *out,
                             uint64_t out_stride)
{
    pairs a[8], b[8];

#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        memcpy(&a[i], in + i * in_stride, VECTOR);
    shuffle_2(a, b);
    shuffle_2(b, a);
    shuffle_2(a, b);
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        memcpy(out + i * out_stride, &b[i], VECTOR);
}

static void transpose_edge(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                           unsigned width, uint8_t *out, uint64_t out_stride)
{
    for (uint64_t c = 0; c < cols; c++)
        for (uint64_t r = 0; r < rows; r++)
            memcpy(out + c * out_stride + r * width, in + r * in_stride + c * width, width);
}

/* Fetches the lines of the output that the rows of a block go to, for `count` columns. */
static void fetch(uint8_t *out, uint64_t out_stride, uint64_t count, uint64_t n)
{
    for (uint64_t c = 0; c < count; c++)
        for (uint64_t at = 0; at < n; at += LINE)
            __builtin_prefetch(out + c * out_stride + at, 1);
}

static void transpose_block(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                            unsigned width, uint8_t *out, uint64_t out_stride)
{
    uint64_t tile = VECTOR / width;

    for (uint64_t c = 0; c < cols; c += tile) {
        uint64_t next = c + AHEAD * tile, across = cols - c < tile ? cols - c : tile;

        if (next < cols)
            fetch(out + next * out_stride, out_stride, cols - next < tile ? cols - next : tile,
                  rows * width);
        for (uint64_t r = 0; r < rows; r += tile) {
            const uint8_t *from = in + r * in_stride + c * width;
            uint8_t *to = out + c * out_stride + r * width;
            uint64_t height = rows - r < tile ? rows - r : tile;

            if (width > 2 || height < tile || across < tile)
                transpose_edge(from, in_stride, height, across, width, to, out_stride);
            else if (width == 1)
                transpose_tile_1(from, in_stride, to, out_stride);
            else
                transpose_tile_2(from, in_stride, to, out_stride);
        }
    }
}

void mp_transpose(const void *in, uint64_t in_stride, uint64_t rows, uint64_t cols, unsigned width,
                  void *out, uint64_t out_stride)
{
    uint64_t block = BLOCK / width;

    for (uint64_t c = 0; c < cols; c += block)
        for (uint64_t r = 0; r < rows; r += block)
            transpose_block((const uint8_t *)in + r * in_stride + c * width, in_stride,
                            rows - r < block ? rows - r : block,
                            cols - c < block ? cols - c : block, width,
                            (uint8_t *)out + c * out_stride + r * width, out_stride);
}
