/* SPDX-License-Identifier: Apache-2.0 */
/* Turning matrices of bytes over, in blocks that stay in the cache. */
#include "layout/transpose.h"

#include <string.h>

#define TILE 16  /* rows and columns that registers hold */
#define COLS 64  /* columns of a block: a cache line is read as a whole */
#define ROWS 256 /* rows of a block */

/* Rows of the stage are this long so that they do not fall into the same few places of the
 * cache, as rows of the output do where their distance is a power of two. */
#define STAGE_STRIDE (ROWS + 64)

typedef uint8_t vector __attribute__((vector_size(TILE)));

/* a0 b0 a1 b1 ..., and from the middle on. */
static vector shuffle_low(vector a, vector b)
{
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

static vector shuffle_high(vector a, vector b)
{
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}

/* A perfect shuffle of 256 bytes: byte i of the first half to 2i, of the second to 2i + 1. That
 * turns the 8 bits of a byte's number left by one, so four of them swap row and column. */
static inline void shuffle(const vector in[TILE], vector out[TILE])
{
#pragma GCC unroll 8
    for (int i = 0; i < TILE / 2; i++) {
        out[2 * i] = shuffle_low(in[i], in[i + TILE / 2]);
        out[2 * i + 1] = shuffle_high(in[i], in[i + TILE / 2]);
    }
}

static void transpose_tile(const uint8_t *in, uint64_t in_stride, uint8_t *out, uint64_t out_stride)
{
    vector a[TILE], b[TILE];

#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++)
        memcpy(&a[i], in + (uint64_t)i * in_stride, TILE);
    shuffle(a, b);
    shuffle(b, a);
    shuffle(a, b);
    shuffle(b, a);
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++)
        memcpy(out + (uint64_t)i * out_stride, &a[i], TILE);
}

static void transpose_edge(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                           uint8_t *out, uint64_t out_stride)
{
    for (uint64_t c = 0; c < cols; c++)
        for (uint64_t r = 0; r < rows; r++)
            out[c * out_stride + r] = in[r * in_stride + c];
}

static void transpose_block(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                            uint8_t *out, uint64_t out_stride)
{
    for (uint64_t c = 0; c < cols; c += TILE) {
        for (uint64_t r = 0; r < rows; r += TILE) {
            const uint8_t *from = in + r * in_stride + c;
            uint8_t *to = out + c * out_stride + r;
            uint64_t height = rows - r, width = cols - c;

            if (height >= TILE && width >= TILE)
                transpose_tile(from, in_stride, to, out_stride);
            else
                transpose_edge(from, in_stride, height < TILE ? height : TILE,
                               width < TILE ? width : TILE, to, out_stride);
        }
    }
}

/* The same by way of memory that is near: where rows of the output are far apart, each is
 * better written in one long piece. */
static void transpose_staged(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols,
                             uint8_t *out, uint64_t out_stride)
{
    uint8_t stage[COLS * STAGE_STRIDE];

    transpose_block(in, in_stride, rows, cols, stage, STAGE_STRIDE);
    for (uint64_t c = 0; c < cols; c++)
        memcpy(out + c * out_stride, stage + c * STAGE_STRIDE, rows);
}

void mp_transpose(const uint8_t *in, uint64_t in_stride, uint64_t rows, uint64_t cols, uint8_t *out,
                  uint64_t out_stride)
{
    for (uint64_t c = 0; c < cols; c += COLS) {
        for (uint64_t r = 0; r < rows; r += ROWS) {
            uint64_t height = rows - r < ROWS ? rows - r : ROWS;
            uint64_t width = cols - c < COLS ? cols - c : COLS;
            const uint8_t *from = in + r * in_stride + c;
            uint8_t *to = out + c * out_stride + r;

            if (height > COLS)
                transpose_staged(from, in_stride, height, width, to, out_stride);
            else
                transpose_block(from, in_stride, height, width, to, out_stride);
        }
    }
}
