/* SPDX-License-Identifier: Apache-2.0 */
/* Block scales in UTCCP order: packed four a word, word-major, rows shuffled. */
#include "layout/megamoe_scale.h"

#include <string.h>

#define RUN 128 /* rows that are shuffled among themselves */

/* The canonical rows whose scales stand at positions p .. p+127. */
static void rows_of_run(const uint8_t *canonical, uint64_t p, uint64_t rows, uint64_t bytes_per_row,
                        mp_scale_row *interleave, const uint8_t *from[RUN])
{
    for (uint64_t i = 0; i < RUN; i++) {
        uint64_t weight_row = p + 32 * (i % 4) + i / 4;
        uint64_t source = interleave ? interleave(weight_row, rows) : weight_row;

        from[i] = canonical + source * bytes_per_row;
    }
}

void mp_utccp_pack(const uint8_t *canonical, uint64_t rows, uint64_t bytes_per_row,
                   mp_scale_row *interleave, uint8_t *out)
{
    uint64_t whole = bytes_per_row / 4, left = bytes_per_row % 4;

    for (uint64_t p = 0; p < rows; p += RUN) {
        const uint8_t *from[RUN];

        rows_of_run(canonical, p, rows, bytes_per_row, interleave, from);
        for (uint64_t w = 0; w < whole; w++)
            for (uint64_t i = 0; i < RUN; i++)
                memcpy(out + 4 * (w * rows + p + i), from[i] + 4 * w, 4);
        for (uint64_t i = 0; left > 0 && i < RUN; i++) {
            uint8_t *word = out + 4 * (whole * rows + p + i);

            memset(word, 0, 4);
            memcpy(word, from[i] + 4 * whole, left);
        }
    }
}

void mp_utccp_unpack(const uint8_t *in, uint64_t rows, uint64_t bytes_per_row,
                     mp_scale_row *position_of, uint8_t *canonical)
{
    for (uint64_t r = 0; r < rows; r++) {
        uint64_t weight_row = position_of ? position_of(r, rows) : r;
        uint64_t lane = weight_row % 128;
        uint64_t p = weight_row - lane + lane % 32 * 4 + lane / 32;
        uint8_t *row = canonical + r * bytes_per_row;

        for (uint64_t b = 0; b < bytes_per_row; b++)
            row[b] = in[4 * (b / 4 * rows + p) + b % 4];
    }
}
