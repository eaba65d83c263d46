/* SPDX-License-Identifier: Apache-2.0 */
/* Gate and up rows in the orders that kernels want. */
#include "layout/interleave.h"

#include <string.h>

const mp_interleave mp_interleave_8 = {.run = 8, .step = 1};
const mp_interleave mp_interleave_even_odd = {.run = 8, .step = 2};
const mp_interleave mp_interleave_64 = {.run = 64, .step = 1};

mp_part_row mp_interleave_source(const mp_interleave *order, uint64_t r)
{
    uint64_t run = order->run, group = mp_interleave_group(order);
    uint64_t in_group = r % (2 * group), in_pair = in_group % (2 * run);
    uint64_t first = r / (2 * group) * group + in_group / (2 * run);

    return (mp_part_row){.part = in_pair >= run, .row = first + in_pair % run * order->step};
}

uint64_t mp_interleave_place(const mp_interleave *order, unsigned part, uint64_t row)
{
    uint64_t group = mp_interleave_group(order), in_group = row % group;
    uint64_t pair = in_group % order->step, in_run = in_group / order->step;

    return 2 * (row - in_group) + (2 * pair + part) * order->run + in_run;
}

/* One run of one part; its rows go next to each other. */
static void gather_run(const mp_interleave *order, const uint8_t *in, uint64_t row_bytes,
                       uint8_t *out)
{
    for (uint64_t i = 0; i < order->run; i++)
        memcpy(out + i * row_bytes, in + i * order->step * row_bytes, row_bytes);
}

void mp_interleave_rows(const mp_interleave *order, const uint8_t *const in[2], uint64_t rows,
                        uint64_t row_bytes, uint8_t *out)
{
    for (uint64_t row = 0; row < rows; row += mp_interleave_group(order)) {
        for (uint64_t first = row; first < row + order->step; first++) {
            for (unsigned part = 0; part < 2; part++) {
                gather_run(order, in[part] + first * row_bytes, row_bytes, out);
                out += order->run * row_bytes;
            }
        }
    }
}

void mp_separate_rows(const mp_interleave *order, const uint8_t *in, uint64_t rows,
                      uint64_t row_bytes, uint8_t *const out[2])
{
    for (unsigned part = 0; part < 2; part++)
        for (uint64_t row = 0; row < rows; row++)
            memcpy(out[part] + row * row_bytes,
                   in + mp_interleave_place(order, part, row) * row_bytes, row_bytes);
}
