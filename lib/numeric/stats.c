/* SPDX-License-Identifier: Apache-2.0 */
/* What a requantization lost: squared error, saturated and flushed elements.
 *
 * Each row is measured right after it is encoded, against the float32 row it came from, while that
 * is still in cache. Codes are decoded as any reader would decode them, so a bug in an encoder
 * shows up as an error instead of cancelling out. Sums go to eight float64 lanes in a fixed order
 * (mp_kernels.loss), the same on every processor. Units are added up in the order of their numbers,
 * so totals do not depend on threads either.
 *
 * An element is saturated if it lies beyond what the largest code can round to, and flushed if it
 * was not 0 but has become 0. Nothing is shared: one job, one thread. */
#include <math.h>

#include "base/error.h"
#include "numeric/job.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"
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

/* The largest float32 that is not above limit >= 0: comparing with it is the same as comparing with
 * the limit itself. */
static float round_down(double limit)
{
    float rounded = (float)limit;

    return rounded > limit ? mp_f32_from_bits(mp_f32_bits(rounded) - 1) : rounded;
}

#define RUN 64 /* scales at a time */

/* What codes can say under a scale. Times the global scale of nvfp4 it is exact in float64. */
static float limit_under(const mp_rows *out, float scale)
{
    double limit = code_limit(out->scheme) * fabsf(scale);

    return round_down(out->scheme == MP_SCHEME_NVFP4 ? limit * out->global_scale : limit);
}

/* There are few scales of nvfp4, and many blocks. */
void mp_job_begin_measuring(mp_requantize_job *job)
{
    if (!job->stats || job->out.scheme != MP_SCHEME_NVFP4)
        return;
    for (uint8_t code = 0; code < 128; code++)
        job->limits[code] = limit_under(&job->out, mp_scale_value(MP_F8_E4M3, &code, 0));
}

/* Scales number first .. first+n-1 of a row that was written, and their limits. */
static void scales_and_limits(const mp_requantize_job *job, uint64_t first, uint64_t n,
                              float scales[RUN], float limits[RUN])
{
    const mp_rows *out = &job->out;
    const uint8_t *codes = out->scale;

    if (!mp_scheme_has_scales(out->scheme)) {
        scales[0] = 1;
        limits[0] = limit_under(out, 1);
        return;
    }
    mp_scale_values(out->scale_dtype, out->scale, first, n, scales);
    for (uint64_t i = 0; i < n; i++)
        limits[i] = out->scheme == MP_SCHEME_NVFP4 ? job->limits[codes[first + i] & 0x7f]
                                                   : limit_under(out, scales[i]);
}

/* Elements as mp_kernels.loss reads them. */
typedef struct elements {
    mp_dtype dtype;
    const void *first;
} elements;

/* The codes of a row that was written. */
static elements codes_of(const mp_requantize_job *job, uint64_t row)
{
    elements codes = {MP_F8_E4M3, mp_job_codes(job, row)};

    switch (job->out.scheme) {
    case MP_SCHEME_BF16:
        codes.dtype = MP_BF16;
        break;
    case MP_SCHEME_MXFP4:
    case MP_SCHEME_NVFP4:
        codes.dtype = MP_F4;
        break;
    case MP_SCHEME_INT8_CHANNEL:
        codes.dtype = MP_I8;
        break;
    default: /* the E4M3 schemes */
        break;
    }
    return codes;
}

/* Adds up the loss of a row. Values in F32 are scaled already. */
static void add_loss(const mp_requantize_job *job, uint64_t row, elements original,
                     elements written, mp_loss *loss)
{
    const mp_rows *out = &job->out;
    mp_scale_block block = mp_rows_block(out);
    uint64_t width = block.cols < out->cols ? block.cols : out->cols;
    uint64_t first = mp_rows_first_scale(out, row);
    bool scaled = written.dtype == MP_F32;
    float global = out->scheme == MP_SCHEME_NVFP4 && !scaled ? out->global_scale : 1;

    for (uint64_t col = 0; col < out->cols; col += RUN * width, first += RUN) {
        uint64_t left = out->cols - col;
        uint64_t n = left < RUN * width ? left : RUN * width;
        float scales[RUN];
        float limits[RUN];

        scales_and_limits(job, first, mp_ceil_div(n, width), scales, limits);
        for (int i = 0; i < RUN && scaled; i++)
            scales[i] = 1;
        job->kernels->loss(original.dtype, mp_loss_at(original.dtype, original.first, col),
                           written.dtype, mp_loss_at(written.dtype, written.first, col), scales,
                           global, limits, width, n, loss);
    }
}

/* Finite rows are compared by one kernel, which decodes and applies the scales itself and rounds
 * after each product exactly as decoding does. Both ways give the same numbers. */
int mp_job_measure(const mp_requantize_job *job, uint64_t row, const uint16_t *bf16)
{
    mp_quant_stats *stats = job->stats;
    elements original = {MP_F32, job->row};
    elements written = codes_of(job, row);
    mp_loss loss = {0};

    if (!stats)
        return 0;
    stats->elements += job->out.cols;
    if (bf16)
        original = (elements){MP_BF16, bf16};
    /* Anything not finite is taken out, or the sums would be NaN. */
    if (job->options->allow_nonfinite && !bf16) {
        int rc = mp_decode_row(&job->out, row, job->decoded, true, job->err);

        if (rc != 0)
            return rc;
        stats->elements -= drop_nonfinite(job->row, job->decoded, job->out.cols);
        written = (elements){MP_F32, job->decoded};
    }
    add_loss(job, row, original, written, &loss);
    stats->error_sq += mp_sum_lanes(loss.error);
    stats->signal_sq += mp_sum_lanes(loss.signal);
    /* Codes that passed through are the source's own: nothing saturated on the way. */
    if (!job->same_codes) {
        stats->saturated += loss.saturated;
        stats->flushed += loss.flushed;
    }
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
