/* SPDX-License-Identifier: Apache-2.0 */
/* The global scale of nvfp4, and which blocks of 4-bit codes another one leaves as they are.
 *
 * A block's value is code * block scale * global scale, and only the block scale can be chosen
 * anew. A block passes if some E4M3 number times the new global scale is exactly the old scale of
 * the block: then its codes are copied, and nothing is lost. From mxfp4 that works for all blocks
 * within a factor of 2^17 of the largest, if the global scale is a power of two that puts the
 * largest near E4M3's maximum (mp_nvfp4_global_exact). Other blocks are encoded from their values
 * and counted.
 *
 * Products of a float32 and an E4M3 scale are exact in float64, so comparing them decides exactly.
 * Blocks go through in runs that fit the stack, and rows are independent: any number of threads. */
#include <float.h>
#include <math.h>

#include "base/error.h"
#include "numeric/encode.h"
#include "numeric/forms.h"
#include "numeric/job.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"
#include "numeric/rows.h"
#include "numeric/scales.h"

float mp_nvfp4_global(float amax)
{
    float global = amax / (MP_E2M1_MAX * MP_E4M3_MAX);

    if (amax == 0)
        return 1;
    return global == 0 ? FLT_TRUE_MIN : global;
}

float mp_nvfp4_global_exact(uint8_t largest)
{
    return ldexpf(1, largest - 127 - 8);
}

#define RUN 64 /* blocks of the source at a time */

/* A run of blocks of one row, and what becomes of them. */
typedef struct run {
    uint64_t blocks;
    uint64_t width; /* elements of a block */
    uint64_t n;     /* elements; the last block may be shorter */
    const uint8_t *codes;
    const float *values;
    float source[RUN]; /* block scales of the source */
    uint8_t *out;
    uint8_t *scales;
} run;

/* Whether all codes of 8 or 16 bytes are 0 or -0: any scale is exact then. */
static bool is_zero_block(const uint8_t *codes, uint64_t bytes)
{
    uint64_t magnitudes = 0;

    for (uint64_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t word;

        memcpy(&word, codes + i, sizeof(word));
        magnitudes |= word & 0x7777777777777777u;
    }
    return magnitudes == 0;
}

static uint64_t block_width(const run *r, uint64_t block)
{
    uint64_t left = r->n - block * r->width;

    return left < r->width ? left : r->width;
}

/* The E4M3 codes that times the global scale are exactly the scales of the source times
 * its own: both products are exact in float64. Returns how many blocks have one; passes[]
 * says which. */
static uint64_t exact_scales(const run *r, double multiplier, float global_scale, uint8_t *scales,
                             bool passes[RUN])
{
    const mp_kernels *kernels = mp_kernels_best();
    float wanted[RUN];
    float got[RUN];
    uint64_t count = 0;

    for (uint64_t i = 0; i < r->blocks; i++)
        wanted[i] = (float)(r->source[i] * multiplier / global_scale);
    kernels->e4m3_encode(wanted, scales, r->blocks);
    kernels->e4m3_decode(scales, got, r->blocks);
    for (uint64_t i = 0; i < r->blocks; i++) {
        passes[i] = (double)got[i] * global_scale == r->source[i] * multiplier;
        if (!passes[i] && is_zero_block(r->codes + i * r->width / 2, block_width(r, i) / 2)) {
            passes[i] = true;
            scales[i] = 0;
        }
        count += passes[i];
    }
    return count;
}

/* Returns how many blocks could not pass. */
static uint64_t convert_run(const run *r, double multiplier, float global_scale)
{
    uint8_t scales[RUN];
    bool passes[RUN];
    uint64_t exact = exact_scales(r, multiplier, global_scale, scales, passes);

    /* Encode the whole run, as kernels do best, and then put back the blocks that pass. */
    if (exact < r->blocks)
        mp_kernels_best()->nvfp4_encode(r->values, global_scale, r->out, r->scales, r->n);
    for (uint64_t i = 0; i < r->blocks; i++) {
        uint64_t at = i * r->width;
        uint64_t width = block_width(r, i);

        if (!passes[i])
            continue;
        memcpy(r->out + at / 2, r->codes + at / 2, width / 2);
        /* A block of mxfp4 is two of nvfp4, with the same scale. */
        memset(r->scales + at / MP_NVFP4_BLOCK, scales[i], width / MP_NVFP4_BLOCK);
    }
    return r->blocks - exact;
}

/* What the block scales of the source are multiplied by. */
static double global_multiplier(const mp_rows *in)
{
    if (in->scheme != MP_SCHEME_NVFP4)
        return 1;
    return in->global_divides ? 1 / in->global_scale : in->global_scale;
}

void mp_job_fp4_to_nvfp4(const mp_requantize_job *job, uint64_t row)
{
    const mp_rows *in = job->in;
    const uint8_t *codes =
        (const uint8_t *)in->weight + row * mp_scheme_row_bytes(in->scheme, in->cols);
    uint64_t scale = mp_rows_first_scale(in, row);
    uint64_t requantized = 0;

    for (uint64_t col = 0; col < in->cols; col += RUN * in->block_cols, scale += RUN) {
        uint64_t left = in->cols - col;
        run r = {
            .width = in->block_cols,
            .n = left < RUN * in->block_cols ? left : RUN * in->block_cols,
            .codes = codes + col / 2,
            .values = job->row + col,
            .out = mp_job_codes(job, row) + col / 2,
            .scales = mp_job_scales(job, row) + col / MP_NVFP4_BLOCK,
        };

        r.blocks = mp_ceil_div(r.n, r.width);
        mp_scale_values(in->scale_dtype, in->scale, scale, r.blocks, r.source);
        requantized += convert_run(&r, global_multiplier(in), job->options->global_scale);
    }
    if (job->stats)
        job->stats->requantized_blocks += requantized;
}
