/* SPDX-License-Identifier: Apache-2.0 */
/* What a requantization lost: squared error, saturated and flushed elements. */
#include <math.h>

#include "base/error.h"
#include "numeric/job.h"
#include "numeric/rows.h"
#include "numeric/scales.h"

/* Largest code plus half the step below it, in units of the scale. For BF16 the
 * step is the one that would follow. */
static double code_limit(mp_scheme scheme)
{
    switch (scheme) {
    case MP_SCHEME_MXFP4:
    case MP_SCHEME_NVFP4:
        return 7;
    case MP_SCHEME_INT8_CHANNEL:
        return 127.5;
    case MP_SCHEME_BF16:
        return 0x1.ffp127;
    default: /* the E4M3 schemes */
        return 464;
    }
}

/* Takes elements that are not finite out of a comparison; returns how many. */
static uint64_t drop_nonfinite(float *original, float *decoded, uint64_t n)
{
    uint64_t dropped = 0;

    for (uint64_t i = 0; i < n; i++) {
        if (isfinite(original[i]))
            continue;
        original[i] = decoded[i] = 0;
        dropped++;
    }
    return dropped;
}

/* The largest float32 that is not above limit >= 0. */
static float round_down(double limit)
{
    float rounded = (float)limit;

    return rounded > limit ? nextafterf(rounded, 0) : rounded;
}

#define RUN 64 /* scales at a time */

/* What codes can say under scales number first .. first+n-1 of a row that was written. A
 * scale times the global scale of nvfp4 is exact in float64. */
static void code_limits(const mp_rows *out, uint64_t first, uint64_t n, float limits[RUN])
{
    double unit = code_limit(out->scheme);

    if (!mp_scheme_has_scales(out->scheme)) {
        limits[0] = round_down(unit);
        return;
    }
    mp_scale_values(out->scale_dtype, out->scale, first, n, limits);
    for (uint64_t i = 0; i < n; i++) {
        double scale = fabsf(limits[i]);

        if (out->scheme == MP_SCHEME_NVFP4)
            scale *= out->global_scale;
        limits[i] = round_down(unit * scale);
    }
}

/* Each block of a row against what the codes can say under its scale. */
static void count_lost(const mp_requantize_job *job, uint64_t row)
{
    const mp_rows *out = &job->out;
    mp_scale_block block = mp_rows_block(out);
    uint64_t width = block.cols < out->cols ? block.cols : out->cols;
    uint64_t first = mp_rows_first_scale(out, row);
    uint64_t counts[2] = {0};

    for (uint64_t col = 0; col < out->cols; col += RUN * width, first += RUN) {
        uint64_t left = out->cols - col;
        uint64_t n = left < RUN * width ? left : RUN * width;
        float limits[RUN];

        code_limits(out, first, mp_ceil_div(n, width), limits);
        job->kernels->count_lost(job->row + col, job->decoded + col, n, limits, width, counts);
    }
    job->stats->saturated += counts[0];
    job->stats->flushed += counts[1];
}

int mp_job_measure(const mp_requantize_job *job, uint64_t row)
{
    mp_quant_stats *stats = job->stats;
    uint64_t cols = job->out.cols;
    double sums[2] = {0};

    if (!stats)
        return 0;
    int rc = mp_decode_row(&job->out, row, job->decoded, true, job->err);
    if (rc != 0)
        return rc;
    stats->elements += cols;
    if (job->options->allow_nonfinite)
        stats->elements -= drop_nonfinite(job->row, job->decoded, cols);
    job->kernels->error_sums(job->decoded, job->row, cols, sums);
    stats->error_sq += sums[0];
    stats->signal_sq += sums[1];
    if (!job->same_codes)
        count_lost(job, row);
    return 0;
}

void mp_job_measure_bf16_as_mxfp4(const mp_requantize_job *job, const uint16_t *in,
                                  const uint8_t *codes, const uint8_t *scales)
{
    mp_quant_stats *stats = job->stats;
    double sums[2] = {0};
    uint64_t counts[2] = {0};

    if (!stats)
        return;
    job->kernels->mxfp4_loss_bf16(in, codes, scales, job->in->cols, sums, counts);
    stats->elements += job->in->cols;
    stats->error_sq += sums[0];
    stats->signal_sq += sums[1];
    stats->saturated += counts[0];
    stats->flushed += counts[1];
}

void mp_quant_stats_add(mp_quant_stats *into, const mp_quant_stats *more)
{
    into->error_sq += more->error_sq;
    into->signal_sq += more->signal_sq;
    into->elements += more->elements;
    into->saturated += more->saturated;
    into->flushed += more->flushed;
    into->requantized_blocks += more->requantized_blocks;
}
