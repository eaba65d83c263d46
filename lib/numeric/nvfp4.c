/* SPDX-License-Identifier: Apache-2.0 */
/* The global scale of nvfp4, and mxfp4 blocks as nvfp4 blocks. */
#include <float.h>
#include <math.h>

#include "numeric/encode.h"
#include "numeric/job.h"
#include "numeric/kernels.h"

#define PACKED (MP_MX_BLOCK / 2)

float mp_nvfp4_global(float amax)
{
    float global = amax / (MP_E2M1_MAX * MP_E4M3_MAX);

    return global == 0 && amax > 0 ? FLT_TRUE_MIN : global;
}

float mp_nvfp4_global_exact(uint8_t largest)
{
    return ldexpf(1, largest - 127 - 8);
}

/* The E4M3 code that under this global scale is exactly 2^(exponent-127). */
static bool exact_scale(uint8_t exponent, float global_scale, uint8_t *code)
{
    float wanted = mp_ue8m0_value(exponent);
    float ratio = wanted / global_scale;
    float scale;

    mp_kernels_scalar.e4m3_encode(&ratio, code, 1);
    mp_kernels_scalar.e4m3_decode(code, &scale, 1);
    return (double)scale * global_scale == wanted;
}

/* Whether all codes are 0 or -0: any scale is exact then. */
static bool is_zero_block(const uint8_t *codes)
{
    uint8_t magnitudes = 0;

    for (int i = 0; i < PACKED; i++)
        magnitudes |= codes[i] & 0x77;
    return magnitudes == 0;
}

void mp_job_mxfp4_to_nvfp4(const mp_requantize_job *job, uint64_t row)
{
    float global_scale = job->options->global_scale;
    uint64_t blocks = job->in->cols / MP_MX_BLOCK;
    const uint8_t *codes = (const uint8_t *)job->in->weight + row * blocks * PACKED;
    const uint8_t *exponents = (const uint8_t *)job->in->scale + row * blocks;
    uint8_t *out = mp_job_codes(job, row);
    uint8_t *scales = mp_job_scales(job, row);

    for (uint64_t i = 0; i < blocks; i++, codes += PACKED, out += PACKED, scales += 2) {
        uint8_t scale = 0;

        if (is_zero_block(codes) || exact_scale(exponents[i], global_scale, &scale)) {
            memcpy(out, codes, PACKED);
            memset(scales, scale, 2);
            continue;
        }
        const float *values = job->row + i * MP_MX_BLOCK;
        mp_nvfp4_encode_block(values, global_scale, out, scales);
        mp_nvfp4_encode_block(values + MP_NVFP4_BLOCK, global_scale, out + PACKED / 2, scales + 1);
        if (job->stats)
            job->stats->requantized_blocks++;
    }
}
