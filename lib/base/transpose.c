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
#define LINE   64  /* bytes of a row of a block: a cache line is read as a whole */
#define ROWS   256 /* bytes of a column of a block */

/* Rows of the stage are this long so that they do not fall into the same few places of the
 * cache, as rows of the output do where their distance is a power of two. */
#define STAGE_STRIDE (ROWS + 64)

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

static void transpose_block(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                            unsigned width, uint8_t *out, uint64_t out_stride)
{
    uint64_t tile = VECTOR / width;

    for (uint64_t c = 0; c < cols; c += tile) {
        for (uint64_t r = 0; r < rows; r += tile) {
            const uint8_t *from = in + r * in_stride + c * width;
            uint8_t *to = out + c * out_stride + r * width;
            uint64_t height = rows - r < tile ? rows - r : tile;
            uint64_t across = cols - c < tile ? cols - c : tile;

            if (width > 2 || height < tile || across < tile)
                transpose_edge(from, in_stride, height, across, width, to, out_stride);
            else if (width == 1)
                transpose_tile_1(from, in_stride, to, out_stride);
            else
                transpose_tile_2(from, in_stride, to, out_stride);
        }
    }
}

/* The same by way of memory that is near: where rows of the output are far apart, each is
 * better written in one long piece. */
static void transpose_staged(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                             unsigned width, uint8_t *out, uint64_t out_stride)
{
    uint8_t stage[LINE * STAGE_STRIDE];

    transpose_block(in, in_stride, rows, cols, width, stage, STAGE_STRIDE);
    for (uint64_t c = 0; c < cols; c++)
        memcpy(out + c * out_stride, stage + c * STAGE_STRIDE, rows * width);
}

void mp_transpose(const void *in, uint64_t in_stride, uint64_t rows, uint64_t cols, unsigned width,
                  void *out, uint64_t out_stride)
{
    uint64_t block_rows = ROWS / width, block_cols = LINE / width;

    for (uint64_t c = 0; c < cols; c += block_cols) {
        for (uint64_t r = 0; r < rows; r += block_rows) {
            uint64_t height = rows - r < block_rows ? rows - r : block_rows;
            uint64_t across = cols - c < block_cols ? cols - c : block_cols;
            const uint8_t *from = (const uint8_t *)in + r * in_stride + c * width;
            uint8_t *to = (uint8_t *)out + c * out_stride + r * width;

            if (height * width > LINE)
                transpose_staged(from, in_stride, height, across, width, to, out_stride);
            else
                transpose_block(from, in_stride, height, across, width, to, out_stride);
        }
    }
}
