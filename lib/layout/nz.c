/* SPDX-License-Identifier: Apache-2.0 */
/* FRACTAL_NZ: panels of 32 columns. */
#include "layout/nz.h"
#include "base/transpose.h"

#include "base/error.h"

#include <string.h>

uint64_t mp_nz_panel_bytes(uint64_t rows)
{
    return mp_round_up(rows, MP_NZ_ROWS) * MP_NZ_COLS;
}

/* How many of `left` columns from `column` on are in the same panel. */
static uint64_t columns_in_panel(uint64_t column, uint64_t left)
{
    uint64_t room = MP_NZ_COLS - column % MP_NZ_COLS;

    return left < room ? left : room;
}

void mp_nz_pack_lines(const uint8_t *lines, uint64_t count, uint64_t rows, uint64_t first,
                      uint8_t *packed)
{
    uint64_t n;

    for (uint64_t i = 0; i < count; i += n) {
        uint64_t column = first + i;
        uint8_t *panel = packed + column / MP_NZ_COLS * mp_nz_panel_bytes(rows);

        n = columns_in_panel(column, count - i);
        mp_transpose(lines + i * rows, rows, n, rows, 1, panel + column % MP_NZ_COLS, MP_NZ_COLS);
    }
}

void mp_nz_unpack_lines(const uint8_t *packed, uint64_t first, uint64_t count, uint64_t rows,
                        uint8_t *lines)
{
    uint64_t n;

    for (uint64_t i = 0; i < count; i += n) {
        uint64_t column = first + i;
        const uint8_t *panel = packed + column / MP_NZ_COLS * mp_nz_panel_bytes(rows);

        n = columns_in_panel(column, count - i);
        mp_transpose(panel + column % MP_NZ_COLS, MP_NZ_COLS, rows, n, 1, lines + i * rows, rows);
    }
}

void mp_nz_pack_matrix(const uint8_t *matrix, uint64_t rows, uint64_t cols, uint8_t *packed)
{
    for (uint64_t c = 0; c < cols; c += MP_NZ_COLS) {
        uint64_t n = columns_in_panel(c, cols - c);

        for (uint64_t r = 0; r < rows; r++)
            memcpy(packed + r * MP_NZ_COLS, matrix + r * cols + c, n);
        packed += mp_nz_panel_bytes(rows);
    }
}

void mp_nz_unpack_matrix(const uint8_t *packed, uint64_t rows, uint64_t cols, uint8_t *matrix)
{
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c += MP_NZ_COLS) {
            const uint8_t *panel = packed + c / MP_NZ_COLS * mp_nz_panel_bytes(rows);

            memcpy(matrix + r * cols + c, panel + r * MP_NZ_COLS, columns_in_panel(c, cols - c));
        }
    }
}

void mp_nz_pad(uint64_t rows, uint64_t cols, uint8_t *packed)
{
    uint64_t panel = mp_nz_panel_bytes(rows), filled = rows * MP_NZ_COLS;
    uint64_t whole = cols / MP_NZ_COLS, used = cols % MP_NZ_COLS;

    for (uint64_t p = 0; p < mp_ceil_div(cols, MP_NZ_COLS); p++)
        memset(packed + p * panel + filled, 0, panel - filled);
    for (uint64_t r = 0; used > 0 && r < rows; r++)
        memset(packed + whole * panel + r * MP_NZ_COLS + used, 0, MP_NZ_COLS - used);
}
