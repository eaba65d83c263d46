/* SPDX-License-Identifier: Apache-2.0 */
/* Requantizing rows: what a conversion asks of its input, and the order in which
 * rows are read, encoded and measured. */
#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "base/error.h"
#include "numeric/encode.h"
#include "numeric/job.h"
#include "numeric/kernels.h"
#include "numeric/rows.h"

/* The scales that each target is written with; cols is a multiple of cols_of. */
static const struct target {
    bool known;
    bool has_nan;
    mp_dtype scale_dtype;
    uint32_t block_rows;
    uint32_t block_cols;
    uint32_t cols_of;
} targets[MP_SCHEME_COUNT] = {
    [MP_SCHEME_BF16] = {true, true, MP_F32, 1, 1, 1},
    [MP_SCHEME_MXFP4] = {true, false, MP_F8_E8M0, 1, MP_MX_BLOCK, MP_MX_BLOCK},
    [MP_SCHEME_MXFP8] = {true, true, MP_F8_E8M0, 1, MP_MX_BLOCK, MP_MX_BLOCK},
    [MP_SCHEME_FP8_BLOCK] = {true, true, MP_F32, MP_FP8_BLOCK, MP_FP8_BLOCK, 1},
    [MP_SCHEME_FP8_GROUP] = {true, true, MP_F32, 1, MP_FP8_BLOCK, 1},
    [MP_SCHEME_FP8_CHANNEL] = {true, true, MP_F32, 1, 1, 1},
    [MP_SCHEME_NVFP4] = {true, false, MP_F8_E4M3, 1, MP_NVFP4_BLOCK, MP_NVFP4_BLOCK},
    [MP_SCHEME_INT8_CHANNEL] = {true, false, MP_F32, 1, 1, 1},
};

uint64_t mp_requantize_scratch(uint64_t cols)
{
    uint64_t values;
    uint64_t bytes;

    if (!mp_mul_u64(cols, 2, &values) ||
        !mp_add_u64(values, mp_ceil_div(cols, MP_FP8_BLOCK), &values) ||
        !mp_mul_u64(values, sizeof(float), &bytes))
        return UINT64_MAX;
    return bytes;
}

static int check_options(mp_scheme to, const mp_quant_options *options, mp_error *err)
{
    if ((unsigned)options->rounding > MP_ROUND_OCP)
        return mp_fail(err, MP_ERR_USAGE, "unknown rounding %d", (int)options->rounding);
    if ((unsigned)options->scale_rule > MP_SCALE_MSE)
        return mp_fail(err, MP_ERR_USAGE, "unknown scale rule %d", (int)options->scale_rule);
    if (!(options->amax_floor >= 0) || isinf(options->amax_floor))
        return mp_fail(err, MP_ERR_USAGE, "amax floor %g, expected a finite number from 0 up",
                       (double)options->amax_floor);
    if (to == MP_SCHEME_NVFP4 && (!(options->global_scale >= 0) || isinf(options->global_scale)))
        return mp_fail(err, MP_ERR_USAGE, "global scale %g, expected a finite number from 0 up",
                       (double)options->global_scale);
    return 0;
}

static int check_target(const mp_rows *in, mp_scheme to, mp_error *err)
{
    if ((unsigned)to >= MP_SCHEME_COUNT || !targets[to].known)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "cannot requantize %s to %s",
                       mp_scheme_name(in->scheme),
                       (unsigned)to < MP_SCHEME_COUNT ? mp_scheme_name(to) : "an unknown scheme");
    if (in->cols % targets[to].cols_of != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s needs columns in multiples of %" PRIu32 ", not %" PRIu64,
                       mp_scheme_name(to), targets[to].cols_of, in->cols);
    if (to == MP_SCHEME_FP8_BLOCK && in->row0 % MP_FP8_BLOCK != 0)
        return mp_fail(err, MP_ERR_USAGE, "fp8_block from row %" PRIu64 ", no multiple of %d",
                       in->row0, MP_FP8_BLOCK);
    return 0;
}

static mp_rows describe_output(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                               const void *codes, const void *scales)
{
    return (mp_rows){
        .scheme = to,
        .scale_dtype = targets[to].scale_dtype,
        .block_rows = targets[to].block_rows,
        .block_cols = targets[to].block_cols,
        .row0 = in->row0,
        .rows = in->rows,
        .cols = in->cols,
        .weight = codes,
        .scale = scales,
        .global_scale = options->global_scale,
    };
}

uint8_t *mp_job_codes(const mp_requantize_job *job, uint64_t row)
{
    return job->codes + row * mp_scheme_row_bytes(job->out.scheme, job->out.cols);
}

uint8_t *mp_job_scales(const mp_requantize_job *job, uint64_t row)
{
    unsigned bytes = mp_dtype_bits(job->out.scale_dtype) / 8;

    return job->scales ? job->scales + mp_rows_first_scale(&job->out, row) * bytes : NULL;
}

static int fail_weight(const mp_rows *in, uint64_t row, uint64_t col, const char *why,
                       mp_error *err)
{
    return mp_fail(err, MP_ERR_INPUT, "weight [%" PRIu64 ", %" PRIu64 "] %s", in->row0 + row, col,
                   why);
}

/* Refuses NaN and Inf in job->row, or makes of them what the target can hold. */
static int settle_nonfinite(const mp_requantize_job *job, uint64_t row)
{
    for (uint64_t col = 0; col < job->in->cols; col++) {
        float *x = &job->row[col];

        if (isfinite(*x))
            continue;
        if (!job->options->allow_nonfinite)
            return fail_weight(job->in, row, col, isnan(*x) ? "is NaN" : "is infinite", job->err);
        if (isnan(*x) && !targets[job->out.scheme].has_nan)
            return fail_weight(job->in, row, col, "is NaN, which the target cannot hold", job->err);
        if (isinf(*x) && job->out.scheme != MP_SCHEME_BF16)
            *x = copysignf(FLT_MAX, *x);
    }
    return 0;
}

int mp_job_read_row(const mp_requantize_job *job, uint64_t row)
{
    bool allow = job->options->allow_nonfinite;
    int rc = mp_decode_row(job->in, row, job->row, allow, job->err);

    if (rc != 0 || job->kernels->amax_bits(job->row, job->in->cols) < MP_F32_INF)
        return rc;
    return allow && job->same_codes ? 0 : settle_nonfinite(job, row);
}

/* A global scale of 0 belongs to a matrix of zeros. */
static int check_global_scale(const mp_requantize_job *job, uint64_t row)
{
    if (job->out.scheme != MP_SCHEME_NVFP4 || job->options->global_scale != 0 ||
        job->kernels->amax_bits(job->row, job->in->cols) == 0)
        return 0;
    return mp_fail(job->err, MP_ERR_USAGE, "weights of row %" PRIu64 " under a global scale of 0",
                   job->in->row0 + row);
}

/* A row that needs no other row. */
static int convert_row(const mp_requantize_job *job, uint64_t row)
{
    int rc = mp_job_read_row(job, row);

    if (rc == 0)
        rc = check_global_scale(job, row);
    if (rc != 0)
        return rc;
    if (job->in->scheme == MP_SCHEME_MXFP4 && job->out.scheme == MP_SCHEME_NVFP4)
        mp_job_mxfp4_to_nvfp4(job, row);
    else
        mp_encode_row(job->out.scheme, job->options, job->row, job->in->cols,
                      mp_job_codes(job, row), mp_job_scales(job, row));
    return mp_job_measure(job, row);
}

/* The same, by the kernels that need no float32 in memory, if they can. */
static int convert_bf16_row_to_mxfp4(const mp_requantize_job *job, uint64_t row)
{
    uint64_t cols = job->in->cols;
    const uint16_t *in = (const uint16_t *)job->in->weight + row * cols;
    uint8_t *codes = mp_job_codes(job, row);
    uint8_t *scales = mp_job_scales(job, row);

    if (job->kernels->mxfp4_encode_bf16(in, codes, scales, cols, job->options) < cols)
        return convert_row(job, row);
    mp_job_measure_bf16_as_mxfp4(job, in, codes, scales);
    return 0;
}

static int convert_rows(const mp_requantize_job *job)
{
    bool bf16_to_mxfp4 = job->in->scheme == MP_SCHEME_BF16 && job->out.scheme == MP_SCHEME_MXFP4;
    int rc = 0;

    for (uint64_t row = 0; rc == 0 && row < job->in->rows; row++)
        rc = bf16_to_mxfp4 ? convert_bf16_row_to_mxfp4(job, row) : convert_row(job, row);
    return rc;
}

/* Up to 128 rows that share scales, read twice: for their amax, and to encode. */
static int convert_tiles(const mp_requantize_job *job, uint64_t first, uint64_t rows)
{
    uint64_t tiles = mp_ceil_div(job->in->cols, MP_FP8_BLOCK);
    uint8_t *scales = mp_job_scales(job, first);
    int rc = 0;

    memset(job->tile_amax, 0, tiles * sizeof(*job->tile_amax));
    for (uint64_t row = first; rc == 0 && row < first + rows; row++) {
        rc = mp_job_read_row(job, row);
        if (rc == 0)
            mp_fp8_block_amax(job->row, job->in->cols, job->tile_amax);
    }
    if (rc == 0)
        mp_fp8_scales(job->tile_amax, tiles, job->options, scales);
    for (uint64_t row = first; rc == 0 && row < first + rows; row++) {
        rc = mp_job_read_row(job, row);
        if (rc != 0)
            break;
        mp_fp8_encode(job->row, job->in->cols, MP_FP8_BLOCK, scales, mp_job_codes(job, row));
        rc = mp_job_measure(job, row);
    }
    return rc;
}

static int convert_blocks(const mp_requantize_job *job)
{
    uint64_t rows = job->in->rows;
    int rc = 0;

    for (uint64_t row = 0; rc == 0 && row < rows; row += MP_FP8_BLOCK)
        rc = convert_tiles(job, row, rows - row < MP_FP8_BLOCK ? rows - row : MP_FP8_BLOCK);
    return rc;
}

/* Whether the codes of the source are those of the target. */
static bool passes_through(const mp_requantize_job *job)
{
    const mp_rows *in = job->in;
    const mp_rows *out = &job->out;
    mp_scale_block from = mp_rows_block(in);
    mp_scale_block to = mp_rows_block(out);

    if (in->scheme != out->scheme || from.rows != to.rows || from.cols != to.cols)
        return false;
    if (in->scheme == MP_SCHEME_NVFP4)
        return in->global_scale == out->global_scale && !in->global_divides;
    if (!job->options->ue8m0 ||
        (in->scheme != MP_SCHEME_FP8_BLOCK && in->scheme != MP_SCHEME_FP8_GROUP))
        return true;
    for (uint64_t i = 0; i < mp_rows_scale_count(in); i++) {
        float scale = mp_rows_scale_at(in, i);

        if (scale != mp_ue8m0_value(mp_ue8m0_ceil(scale)))
            return false;
    }
    return true;
}

static void copy_scales(const mp_requantize_job *job)
{
    uint64_t count = mp_rows_scale_count(job->in);

    if (job->out.scale_dtype != MP_F32) { /* one byte a scale in all types of these schemes */
        memcpy(job->scales, job->in->scale, count);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        float scale = mp_rows_scale_at(job->in, i);

        memcpy(job->scales + i * sizeof(scale), &scale, sizeof(scale));
    }
}

static int pass_through(const mp_requantize_job *job)
{
    uint64_t row_bytes = mp_scheme_row_bytes(job->in->scheme, job->in->cols);
    int rc = 0;

    if (mp_scheme_has_scales(job->in->scheme))
        copy_scales(job);
    for (uint64_t row = 0; rc == 0 && row < job->in->rows; row++) {
        memcpy(mp_job_codes(job, row), (const uint8_t *)job->in->weight + row * row_bytes,
               row_bytes);
        rc = mp_job_read_row(job, row);
        if (rc == 0)
            rc = mp_job_measure(job, row);
    }
    return rc;
}

static int convert(const mp_requantize_job *job)
{
    if (job->same_codes)
        return pass_through(job);
    if (job->out.scheme == MP_SCHEME_FP8_BLOCK)
        return convert_blocks(job);
    return convert_rows(job);
}

int mp_requantize(const mp_rows *in, mp_scheme to, const mp_quant_options *options, void *codes,
                  void *scales, void *work, mp_quant_stats *stats, mp_error *err)
{
    int rc = mp_rows_check(in, err);

    if (rc == 0)
        rc = check_target(in, to, err);
    if (rc == 0)
        rc = check_options(to, options, err);
    if (rc != 0)
        return rc;
    mp_requantize_job job = {
        .kernels = mp_kernels_best(),
        .in = in,
        .out = describe_output(in, to, options, codes, scales),
        .options = options,
        .codes = codes,
        .scales = scales,
        .row = work,
        .decoded = (float *)work + in->cols,
        .tile_amax = (uint32_t *)work + 2 * in->cols,
        .stats = stats,
        .err = err,
    };
    job.same_codes = passes_through(&job);
    return convert(&job);
}

int mp_rows_amax(const mp_rows *in, bool allow_nonfinite, void *work, float *amax, mp_error *err)
{
    const mp_quant_options options = {.allow_nonfinite = allow_nonfinite};
    const mp_requantize_job job = {
        .kernels = mp_kernels_best(),
        .in = in,
        .out = {.scheme = MP_SCHEME_NVFP4},
        .options = &options,
        .row = work,
        .err = err,
    };
    uint32_t largest = 0;
    int rc = mp_rows_check(in, err);

    for (uint64_t row = 0; rc == 0 && row < in->rows; row++) {
        rc = mp_job_read_row(&job, row);
        if (rc == 0) {
            uint32_t one = job.kernels->amax_bits(job.row, in->cols);

            largest = one > largest ? one : largest;
        }
    }
    *amax = mp_f32_from_bits(largest);
    return rc;
}
