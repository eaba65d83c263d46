/* SPDX-License-Identifier: Apache-2.0 */
/* Tiles of fp8_block that hold all values of an MX source as they are.
 *
 * E4M3 has a wider range than a block of 32 needs, so the powers of two that set the blocks of a
 * tile apart can go into its codes. With kmax the largest exponent byte of the tile's blocks, its
 * scale is 2^(kmax-133) for mxfp4, under which the largest element, 6, becomes 384, and
 * 2^(kmax-127) for mxfp8. A value under a smaller byte becomes a smaller code; the tile is exact
 * unless one falls between the subnormals, which are multiples of 2^-9.
 *
 * Exponents alone mostly decide for mxfp4, and then a code of E4M3 depends on nothing but the code
 * of E2M1 and on how far its block's exponent is below the tile's: two elements of a byte become
 * two by one look into a table, and rows need not be read twice. All other tiles are looked at
 * element by element. */
#include "base/error.h"
#include "numeric/encode.h"
#include "numeric/job.h"
#include "numeric/kernels.h"
#include "numeric/rows.h"

#include <float.h>
#include <math.h>

#define BLOCKS (MP_FP8_BLOCK / MP_MX_BLOCK) /* of a row of a tile */

/* So far below, the least element of mxfp4, 0.5, is 2^-9 under the tile's scale. */
#define MXFP4_REACH (MP_CODE_MAPS - 1)

/* Up to this exponent byte, its largest, 6, is finite in float32. */
#define MXFP4_FINITE 252

/* Further below, even 448 is less than 2^-9. */
#define MXFP8_REACH 17

/* The bits by which a tile's scale is below that of its largest block. */
static int headroom(mp_scheme from)
{
    return from == MP_SCHEME_MXFP4 ? 6 : 0;
}

static const uint8_t *exponents_of(const mp_requantize_job *job, uint64_t row)
{
    return (const uint8_t *)job->in->scale + row * mp_ceil_div(job->in->cols, MP_MX_BLOCK);
}

void mp_job_begin_exact(const mp_requantize_job *job, uint64_t first, uint64_t rows)
{
    uint64_t blocks = mp_ceil_div(job->in->cols, MP_MX_BLOCK);
    uint64_t tiles = mp_ceil_div(job->in->cols, MP_FP8_BLOCK);

    memset(job->tile_exponent, 0, tiles * sizeof *job->tile_exponent);
    for (uint64_t row = first; row < first + rows; row++) {
        const uint8_t *exponents = exponents_of(job, row);

        for (uint64_t i = 0; i < blocks; i++)
            if (exponents[i] > job->tile_exponent[i / BLOCKS])
                job->tile_exponent[i / BLOCKS] = exponents[i];
    }
    /* No NaN, and no scale below the normal numbers, whose reciprocals are too large. */
    for (uint64_t t = 0; t < tiles; t++)
        if (job->tile_exponent[t] <= (unsigned)headroom(job->in->scheme) ||
            job->tile_exponent[t] == UINT8_MAX)
            job->tile_exponent[t] = 0;
}

/* Whether all numbers, times `inverse`, are multiples of 2^-9, none of them above 448. Adding and
 * subtracting 1.5 * 2^23 rounds to whole numbers; a NaN is none. */
static bool are_multiples(const float *x, uint64_t n, float inverse)
{
    bool all = true;

    for (uint64_t i = 0; i < n; i++) {
        float units = x[i] * inverse * 512;

        all &= (units + 0x1.8p23f) - 0x1.8p23f == units;
    }
    return all;
}

/* Whether a block whose exponent byte is `below` that of its tile, `largest`, stays as it is. */
static bool keeps_block(const mp_requantize_job *job, const float *x, uint64_t n, unsigned below,
                        int largest)
{
    bool fp4 = job->in->scheme == MP_SCHEME_MXFP4;

    if (below == 0 || (fp4 && below <= MXFP4_REACH))
        return true;
    if (fp4 || below > MXFP8_REACH)
        return job->kernels->amax_bits(x, n) == 0;
    return are_multiples(x, n, ldexpf(1, 127 - largest));
}

void mp_job_check_exact(const mp_requantize_job *job, uint64_t row)
{
    const uint8_t *exponents = exponents_of(job, row);
    uint64_t cols = job->in->cols;

    for (uint64_t col = 0; col < cols; col += MP_MX_BLOCK) {
        uint8_t *largest = &job->tile_exponent[col / MP_FP8_BLOCK];
        uint64_t n = cols - col < MP_MX_BLOCK ? cols - col : MP_MX_BLOCK;
        const float *x = job->row + col;

        if (*largest == 0)
            continue;
        /* What was infinite, and is not refused, is another number by now. */
        if ((job->options->allow_nonfinite &&
             job->kernels->amax_bits(x, n) >= mp_f32_bits(FLT_MAX)) ||
            !keeps_block(job, x, n, *largest - exponents[col / MP_MX_BLOCK], *largest))
            *largest = 0;
    }
}

bool mp_job_maps_codes(const mp_requantize_job *job, uint64_t first, uint64_t rows)
{
    uint64_t blocks = mp_ceil_div(job->in->cols, MP_MX_BLOCK);
    bool near = job->in->scheme == MP_SCHEME_MXFP4 && !job->options->allow_nonfinite;

    for (uint64_t t = 0; near && t < mp_ceil_div(job->in->cols, MP_FP8_BLOCK); t++)
        near = job->tile_exponent[t] > 0 && job->tile_exponent[t] <= MXFP4_FINITE;
    for (uint64_t row = first; near && row < first + rows; row++) {
        const uint8_t *exponents = exponents_of(job, row);

        for (uint64_t i = 0; i < blocks; i++)
            near &= job->tile_exponent[i / BLOCKS] - exponents[i] <= MXFP4_REACH;
    }
    return near;
}

void mp_job_code_map(const mp_requantize_job *job, mp_code_map *map)
{
    for (int below = 0; below <= MXFP4_REACH; below++) {
        uint8_t e2m1[8], e4m3[16];
        float values[16];

        for (int i = 0; i < 8; i++) /* both codes of a byte, 2i and 2i+1 */
            e2m1[i] = (uint8_t)(2 * i | (2 * i + 1) << 4);
        job->kernels->e2m1_decode(e2m1, values, 16);
        job->kernels->scale(values, ldexpf(1, headroom(MP_SCHEME_MXFP4) - below), values, 16);
        job->kernels->e4m3_encode(values, e4m3, 16);
        for (int byte = 0; byte < 256; byte++) {
            map->pairs[below][byte][0] = e4m3[byte & 15];
            map->pairs[below][byte][1] = e4m3[byte >> 4];
        }
    }
    for (int byte = 0; byte < 256; byte++) {
        static const uint16_t squares[8] = {0, 1, 4, 9, 16, 36, 64, 144};

        map->squares[byte] = (uint16_t)(squares[byte & 7] + squares[byte >> 4 & 7]);
    }
}

void mp_job_map_codes(const mp_requantize_job *job, const mp_code_map *map, uint64_t row)
{
    const uint8_t *exponents = exponents_of(job, row);
    uint64_t bytes = job->in->cols / 2;
    const uint8_t *in = (const uint8_t *)job->in->weight + row * bytes;
    uint8_t *out = mp_job_codes(job, row);

    for (uint64_t i = 0; i < bytes;) {
        uint64_t end = bytes - i < MP_MX_BLOCK / 2 ? bytes : i + MP_MX_BLOCK / 2;
        uint64_t block = i / (MP_MX_BLOCK / 2);
        const uint8_t(*pairs)[2] =
            map->pairs[job->tile_exponent[block / BLOCKS] - exponents[block]];

        for (; i < end; i++)
            memcpy(out + 2 * i, pairs[in[i]], 2);
    }
}

/* The sum of squares of a block, in quarters of the square of its scale: 32 * 4 * 6^2 at most. */
static uint32_t squares_of(const mp_code_map *map, const uint8_t *codes, uint64_t bytes)
{
    const uint16_t *squares = map->squares;
    uint32_t sum = 0;
    uint64_t i = 0;

    for (; i + 4 <= bytes; i += 4) /* four at a time is twice as fast */
        sum += (uint32_t)(squares[codes[i]] + squares[codes[i + 1]]) +
               (uint32_t)(squares[codes[i + 2]] + squares[codes[i + 3]]);
    for (; i < bytes; i++)
        sum += squares[codes[i]];
    return sum;
}

/* Squares are integers times a power of four. If no sum of them needs more than 53 bits, float64
 * has the same whatever is added first, and the row need not be decoded. */
int mp_job_measure_mapped(const mp_requantize_job *job, const mp_code_map *map, uint64_t row)
{
    const uint8_t *exponents = exponents_of(job, row);
    uint64_t bytes = job->in->cols / 2;
    const uint8_t *in = (const uint8_t *)job->in->weight + row * bytes;
    uint8_t smallest = UINT8_MAX, largest = 0;
    double sums[2] = {0};

    if (!job->stats)
        return 0;
    for (uint64_t i = 0; i < bytes; i += MP_MX_BLOCK / 2) {
        uint8_t e = *exponents++;
        uint64_t n = bytes - i < MP_MX_BLOCK / 2 ? bytes - i : MP_MX_BLOCK / 2;
        uint32_t squares = squares_of(map, in + i, n);

        sums[1] += squares * 0.25 * mp_loss_weight(e);
        smallest = squares > 0 && e < smallest ? e : smallest;
        largest = squares > 0 && e > largest ? e : largest;
    }
    if (largest > smallest && ldexp((double)bytes * 288, 2 * (largest - smallest)) > 0x1p53) {
        int rc = mp_decode_row(job->in, row, job->row, false, job->err);

        if (rc != 0)
            return rc;
        sums[1] = 0;
        job->kernels->error_sums(job->row, job->row, job->in->cols, sums);
    }
    job->stats->elements += job->in->cols;
    job->stats->signal_sq += sums[1];
    return 0;
}

void mp_job_exact_scales(const mp_requantize_job *job, uint8_t *scales)
{
    uint64_t tiles = mp_ceil_div(job->in->cols, MP_FP8_BLOCK), requantized = 0;

    for (uint64_t t = 0; t < tiles; t++) {
        float scale = ldexpf(1, job->tile_exponent[t] - 127 - headroom(job->in->scheme));

        if (job->tile_exponent[t] > 0)
            memcpy(scales + t * sizeof scale, &scale, sizeof scale);
        else
            requantized++;
    }
    if (job->stats)
        job->stats->requantized_blocks += requantized;
}
