/* SPDX-License-Identifier: Apache-2.0 */
/* Block scales in UTCCP order: four to a word, words before rows, rows shuffled.
 *
 *     position 4c + q of a run of 128 rows holds row 32q + c
 *
 * That is the order in which SM100's UTCCP instruction copies them. Packing and unpacking are
 * written separately, one by mp_utccp_source and one by mp_utccp_place, so that each checks the
 * other. Pure functions, any number of threads. */
#include "layout/utccp.h"

#include <string.h>

#define RUN  128 /* rows that are shuffled among themselves */
#define WORD 4   /* bytes */

uint64_t mp_utccp_source(const mp_interleave *order, uint64_t rows, uint64_t position)
{
    uint64_t lane = position % RUN, row = position - lane + lane % 4 * 32 + lane / 4;

    if (!order)
        return row;

    mp_part_row source = mp_interleave_source(order, row);
    return source.part * (rows / 2) + source.row;
}

uint64_t mp_utccp_place(const mp_interleave *order, uint64_t rows, uint64_t row)
{
    if (order) {
        uint64_t half = rows / 2;

        row = row < half ? mp_interleave_place(order, 0, row)
                         : mp_interleave_place(order, 1, row - half);
    }

    uint64_t lane = row % RUN;
    return row - lane + lane % 32 * 4 + lane / 32;
}

void mp_utccp_pack(const mp_interleave *order, const uint8_t *canonical, uint64_t rows,
                   uint64_t row_bytes, uint8_t *out)
{
    for (uint64_t p = 0; p < rows; p += RUN) {
        const uint8_t *from[RUN];

        for (uint64_t i = 0; i < RUN; i++)
            from[i] = canonical + mp_utccp_source(order, rows, p + i) * row_bytes;
        for (uint64_t w = 0; w < row_bytes / WORD; w++)
            for (uint64_t i = 0; i < RUN; i++)
                memcpy(out + (w * rows + p + i) * WORD, from[i] + w * WORD, WORD);
    }
}

void mp_utccp_unpack(const mp_interleave *order, const uint8_t *in, uint64_t rows,
                     uint64_t row_bytes, uint8_t *canonical)
{
    for (uint64_t row = 0; row < rows; row++) {
        const uint8_t *from = in + mp_utccp_place(order, rows, row) * WORD;

        for (uint64_t w = 0; w < row_bytes / WORD; w++)
            memcpy(canonical + row * row_bytes + w * WORD, from + w * rows * WORD, WORD);
    }
}
