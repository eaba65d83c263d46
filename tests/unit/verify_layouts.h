/* SPDX-License-Identifier: Apache-2.0 */
/* Where the layouts put things, in the words of moepack-layouts(7) and apart from lib/layout:
 * which element of which matrix a byte of a slot's tensor is part of. */
#ifndef MP_TEST_VERIFY_LAYOUTS_H
#define MP_TEST_VERIFY_LAYOUTS_H

#include <stdbool.h>
#include <stdint.h>

/* A place in an expert. */
typedef struct place {
    unsigned matrix; /* 0 gate, 1 up, 2 down */
    uint64_t row;    /* of the matrix, or of its scales */
    uint64_t col;    /* element of the row; of 4-bit weights the first of two */
    bool padding;    /* nowhere */
} place;

/* H and I, and the byte. */
typedef place where(uint64_t h, uint64_t i, uint64_t byte);

/* ------------------------------------------------------------------------
 * Orders of L1's rows
 */

static inline place part_row(unsigned matrix, uint64_t row)
{
    return (place){.matrix = matrix, .row = row};
}

static inline place row_plain(uint64_t i, uint64_t r)
{
    return part_row(r < i ? 0 : 1, r % i);
}

static inline place row_of_runs(uint64_t run, uint64_t r)
{
    return part_row(r % (2 * run) < run ? 0 : 1, r / (2 * run) * run + r % run);
}

/* Of 16 gate and 16 up rows: even gate rows, even up rows, odd gate rows, odd up rows. */
static inline place row_even_odd(uint64_t r)
{
    return part_row(r / 8 % 2, r / 32 * 16 + r % 8 * 2 + r % 32 / 16);
}

/* The row whose scales are at position p: in runs of 128, position 4c + q is row 32q + c. */
static inline uint64_t utccp(uint64_t p)
{
    return p / 128 * 128 + p % 4 * 32 + p % 128 / 4;
}

/* ------------------------------------------------------------------------
 * Weights
 */

static inline place at_col(place row, uint64_t col)
{
    row.col = col;
    return row;
}

static inline place w13_fp4_8(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)i;
    return at_col(row_of_runs(8, byte / (h / 2)), byte % (h / 2) * 2);
}

static inline place w13_fp4_even_odd(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)i;
    return at_col(row_even_odd(byte / (h / 2)), byte % (h / 2) * 2);
}

static inline place w2_fp4(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    return at_col(part_row(2, byte / (i / 2)), byte % (i / 2) * 2);
}

static inline place w13_bytes_8(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)i;
    return at_col(row_of_runs(8, byte / h), byte % h);
}

static inline place w2_bytes(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    return at_col(part_row(2, byte / i), byte % i);
}

static inline place w13_bf16_8(uint64_t h, uint64_t i, uint64_t byte)
{
    return w13_bytes_8(h, i, byte / 2);
}

static inline place w13_bf16(uint64_t h, uint64_t i, uint64_t byte)
{
    return at_col(row_plain(i, byte / 2 / h), byte / 2 % h);
}

static inline place w2_bf16(uint64_t h, uint64_t i, uint64_t byte)
{
    return w2_bytes(h, i, byte / 2);
}

/* [H, 2I], columns in chunks of 64. */
static inline place w13_chunks(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    return at_col(row_of_runs(64, byte % (2 * i)), byte / (2 * i));
}

static inline place w13_turned(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    return at_col(row_plain(i, byte % (2 * i)), byte / (2 * i));
}

static inline place w2_turned(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)i;
    return at_col(part_row(2, byte % h), byte / h);
}

/* The byte of a plain [rows, cols] that byte of its form [cols/32, rows/16, 16, 32] is. */
static inline bool nz(uint64_t rows, uint64_t cols, uint64_t byte, uint64_t *plain)
{
    uint64_t panel = (rows + 15) / 16 * 16 * 32;
    uint64_t row = byte % panel / 32, col = byte / panel * 32 + byte % 32;

    *plain = row * cols + col;
    return row < rows && col < cols;
}

static inline place w13_chunks_nz(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t plain;

    return nz(h, 2 * i, byte, &plain) ? w13_chunks(h, i, plain) : (place){.padding = true};
}

static inline place w2_nz(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t plain;

    return nz(h, i, byte, &plain) ? w2_bytes(h, i, plain) : (place){.padding = true};
}

static inline place w13_turned_nz(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t plain;

    return nz(h, 2 * i, byte, &plain) ? w13_turned(h, i, plain) : (place){.padding = true};
}

static inline place w2_turned_nz(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t plain;

    return nz(i, h, byte, &plain) ? w2_turned(h, i, plain) : (place){.padding = true};
}

/* ------------------------------------------------------------------------
 * Scales
 */

/* [words, MN] of four bytes: byte of word w at position p is column 4w + byte of its row. */
static inline place sf_8(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t p = byte / 4 % (2 * i), w = byte / 4 / (2 * i);

    (void)h;
    return at_col(row_of_runs(8, utccp(p)), 4 * w + byte % 4);
}

static inline place sf_even_odd(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t p = byte / 4 % (2 * i), w = byte / 4 / (2 * i);

    (void)h;
    return at_col(row_even_odd(utccp(p)), 4 * w + byte % 4);
}

static inline place sf_w2(uint64_t h, uint64_t i, uint64_t byte)
{
    uint64_t p = byte / 4 % h, w = byte / 4 / h;

    (void)i;
    return at_col(part_row(2, utccp(p)), 4 * w + byte % 4);
}

/* One exponent for a block of 128x128, said for each row and each 32 columns. */
static inline place sf_shared_w13(uint64_t h, uint64_t i, uint64_t byte)
{
    place at = sf_8(h, i, byte);

    return (place){.matrix = at.matrix, .row = at.row / 128, .col = at.col / 4};
}

static inline place sf_shared_w2(uint64_t h, uint64_t i, uint64_t byte)
{
    place at = sf_w2(h, i, byte);

    return (place){.matrix = at.matrix, .row = at.row / 128, .col = at.col / 4};
}

static inline place blocks_w13(uint64_t h, uint64_t i, uint64_t byte)
{
    return at_col(row_plain(i / 128, byte / 4 / (h / 128)), byte / 4 % (h / 128));
}

static inline place blocks_w2(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    return at_col(part_row(2, byte / 4 / (i / 128)), byte / 4 % (i / 128));
}

static inline place rows_chunks(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    (void)i;
    return row_of_runs(64, byte / 4);
}

static inline place rows_w2(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    (void)i;
    return part_row(2, byte / 4);
}

/* Float32 bits in the lower half of int64. */
static inline place wide_rows_w13(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    return byte % 8 < 4 ? row_plain(i, byte / 8) : (place){.padding = true};
}

static inline place wide_rows_w2(uint64_t h, uint64_t i, uint64_t byte)
{
    (void)h;
    (void)i;
    return byte % 8 < 4 ? part_row(2, byte / 8) : (place){.padding = true};
}

#endif
