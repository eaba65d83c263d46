/* SPDX-License-Identifier: Apache-2.0 */
/* Requantizing rows: what a conversion requires of its input, and the order in which rows are read,
 * encoded and measured.
 *
 * A conversion takes the first of these ways that fits:
 *
 *     codes pass        source and target have the same codes: copied, never decoded
 *     tiles by a map    mxfp4 to fp8_block, if exponents alone show that tiles stay exact
 *     tiles             fp8_block, whose scales depend on all 128 rows of a tile: read twice
 *     BF16 rows         to mxfp4 and nvfp4, by kernels that take BF16 directly
 *     rows              everything else, through float32
 *
 * What a target cannot represent is reported by its place in the matrix before anything is lost:
 * NaN and infinite weights are refused, or replaced by what the target can hold. The caller
 * provides work memory (mp_requantize_scratch): two rows, and a little for each tile of a row. The
 * rest lives in the job, on the stack. Threads can convert different rows of one matrix, as long as
 * rows that share scales stay together. */
#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "base/error.h"
#include "numeric/encode.h"
#include "numeric/forms.h"
#include "numeric/job.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"
#include "numeric/rows.h"
#include "numeric/scales.h"

/* UINT64_MAX on overflow, which no allocation can satisfy. */
uint64_t mp_requantize_scratch(uint64_t cols)
{
    uint64_t tiles = mp_ceil_div(cols, MP_FP8_BLOCK);
    uint64_t values;
    uint64_t bytes;

    /* Two rows, and an amax and an exponent for each tile: see start_job for the layout. */
    if (!mp_mul_u64(cols, 2, &values) || !mp_add_u64(values, tiles, &values) ||
        !mp_mul_u64(values, sizeof(float), &bytes) || !mp_add_u64(bytes, tiles, &bytes))
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
    const mp_scheme_form *form = mp_scheme_form_of(to);

    if (!form || !form->canonical)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "cannot requantize %s to %s",
                       mp_scheme_name(in->scheme), form ? mp_scheme_name(to) : "an unknown scheme");
    if (in->cols % form->cols_of != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s needs columns in multiples of %" PRIu32 ", not %" PRIu64,
                       mp_scheme_name(to), form->cols_of, in->cols);
    if (to == MP_SCHEME_FP8_BLOCK && in->row0 % MP_FP8_BLOCK != 0)
        return mp_fail(err, MP_ERR_USAGE, "fp8_block from row %" PRIu64 ", not a multiple of %d",
                       in->row0, MP_FP8_BLOCK);
    return 0;
}

bool mp_requantize_counts(mp_scheme from, mp_scheme to)
{
    return (from == MP_SCHEME_MXFP4 && (to == MP_SCHEME_NVFP4 || to == MP_SCHEME_FP8_BLOCK)) ||
           (from == MP_SCHEME_MXFP8 && to == MP_SCHEME_FP8_BLOCK);
}

/* One scale a row. */
static bool is_channel(mp_scheme scheme)
{
    return scheme == MP_SCHEME_FP8_CHANNEL || scheme == MP_SCHEME_INT8_CHANNEL;
}

/* But for where codes and scales are. */
static mp_rows describe_output(const mp_rows *in, mp_scheme to, const mp_quant_options *options)
{
    mp_rows out = mp_scheme_rows(to, in->row0, in->rows, in->cols);

    out.global_scale = options->global_scale;
    return out;
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
        if (isnan(*x) && !mp_scheme_form_of(job->out.scheme)->has_nan)
            return fail_weight(job->in, row, col, "is NaN, which the target cannot hold", job->err);
        /* BF16 has infinities; all other targets saturate. */
        if (isinf(*x) && job->out.scheme != MP_SCHEME_BF16)
            *x = copysignf(FLT_MAX, *x);
    }
    return 0;
}

static const uint16_t *bf16_row(const mp_requantize_job *job, uint64_t row)
{
    return (const uint16_t *)job->in->weight + row * job->in->cols;
}

/* amax_bits of job->row, which is row number `row`; BF16 is looked at in half the time. */
static uint32_t amax_of_row(const mp_requantize_job *job, uint64_t row)
{
    uint64_t cols = job->in->cols;
    uint32_t amax = 0;

    if (job->in->scheme != MP_SCHEME_BF16)
        return job->kernels->amax_bits(job->row, cols);
    job->kernels->amax_blocks_bf16(bf16_row(job, row), cols, &amax, cols);
    return amax;
}

int mp_job_read_row(const mp_requantize_job *job, uint64_t row, uint32_t *amax)
{
    bool allow = job->options->allow_nonfinite;
    int rc = mp_decode_row(job->in, row, job->row, allow, job->err);

    if (rc != 0)
        return rc;
    uint32_t largest = amax_of_row(job, row);
    /* If codes are copied and everything is allowed, they stay as they are. */
    if (largest >= MP_F32_INF && !(allow && job->same_codes)) {
        rc = settle_nonfinite(job, row);
        largest = mp_amax_but_nan(job->kernels, job->row, job->in->cols);
    }
    if (amax)
        *amax = largest;
    return rc;
}

/* A global scale of 0 belongs to a matrix of zeros. Under it a live row would silently become 0. */
static int check_global_scale(const mp_requantize_job *job, uint64_t row, uint32_t amax)
{
    if (job->out.scheme != MP_SCHEME_NVFP4 || job->options->global_scale != 0 || amax == 0)
        return 0;
    return mp_fail(job->err, MP_ERR_USAGE, "weights of row %" PRIu64 " under a global scale of 0",
                   job->in->row0 + row);
}

static void encode_channel(const mp_requantize_job *job, uint64_t row, uint32_t amax)
{
    const float *given = job->options->row_scales;
    mp_scheme to = job->out.scheme;
    float scale = given ? given[row] : mp_channel_scale(to, amax, job->options);

    if (job->scales)
        memcpy(job->scales + row * sizeof(scale), &scale, sizeof(scale));
    mp_channel_encode(to, job->row, job->in->cols, scale, mp_job_codes(job, row));
}

static void encode_row(const mp_requantize_job *job, uint64_t row, uint32_t amax)
{
    mp_scheme from = job->in->scheme;
    mp_scheme to = job->out.scheme;

    if (is_channel(to))
        encode_channel(job, row, amax);
    else if (to == MP_SCHEME_NVFP4 && (from == MP_SCHEME_MXFP4 || from == MP_SCHEME_NVFP4))
        mp_job_fp4_to_nvfp4(job, row);
    else
        mp_encode_row(to, job->options, job->row, job->in->cols, mp_job_codes(job, row),
                      mp_job_scales(job, row));
}

/* A row that needs no other row. */
static int convert_row(const mp_requantize_job *job, uint64_t row)
{
    uint32_t amax;
    int rc = mp_job_read_row(job, row, &amax);

    if (rc == 0)
        rc = check_global_scale(job, row, amax);
    if (rc != 0)
        return rc;
    encode_row(job, row, amax);
    return mp_job_measure(job, row, NULL);
}

/* Targets with kernels that take BF16 and need no float32 in memory. */
static bool takes_bf16(const mp_requantize_job *job)
{
    return job->in->scheme == MP_SCHEME_BF16 &&
           (job->out.scheme == MP_SCHEME_MXFP4 ||
            (job->out.scheme == MP_SCHEME_NVFP4 && job->options->global_scale > 0));
}

/* By such a kernel, if the row is finite. */
static int convert_bf16_row(const mp_requantize_job *job, uint64_t row)
{
    const mp_kernels *kernels = job->kernels;
    bool to_mxfp4 = job->out.scheme == MP_SCHEME_MXFP4;
    uint64_t cols = job->in->cols;
    const uint16_t *in = bf16_row(job, row);
    uint8_t *codes = mp_job_codes(job, row);
    uint8_t *scales = mp_job_scales(job, row);
    uint64_t finite =
        to_mxfp4 ? kernels->mxfp4_encode_bf16(in, codes, scales, cols, job->options)
                 : kernels->nvfp4_encode_bf16(in, job->options->global_scale, codes, scales, cols);

    /* Take the long way, which names the element or replaces it. */
    if (finite < cols)
        return convert_row(job, row);
    if (!to_mxfp4)
        return mp_job_measure(job, row, in);
    mp_job_measure_bf16_as_mxfp4(job, in, codes, scales);
    return 0;
}

static int convert_rows(const mp_requantize_job *job)
{
    bool bf16 = takes_bf16(job);
    int rc = 0;

    for (uint64_t row = 0; rc == 0 && row < job->in->rows; row++)
        rc = bf16 ? convert_bf16_row(job, row) : convert_row(job, row);
    return rc;
}

/* The amax of BF16 without a detour by float32; false unless all is BF16 and finite. */
static bool bf16_amax_of_tiles(const mp_requantize_job *job, uint64_t first, uint64_t rows)
{
    bool finite = job->in->scheme == MP_SCHEME_BF16;

    for (uint64_t row = first; finite && row < first + rows; row++)
        finite = mp_fp8_block_amax_bf16(bf16_row(job, row), job->in->cols, job->tile_amax);
    return finite;
}

/* The amax of up to 128 rows that share scales, and, of an MX source, what the tile's exact scale
 * would be. finite: rows need not be looked at again. */
static int amax_of_tiles(const mp_requantize_job *job, uint64_t first, uint64_t rows, bool exact,
                         bool *finite)
{
    uint64_t bytes = mp_ceil_div(job->in->cols, MP_FP8_BLOCK) * sizeof(*job->tile_amax);
    int rc = 0;

    memset(job->tile_amax, 0, bytes);
    *finite = true;
    if (bf16_amax_of_tiles(job, first, rows))
        return 0;
    memset(job->tile_amax, 0, bytes);
    *finite = !job->options->allow_nonfinite;
    for (uint64_t row = first; row < first + rows; row++) {
        rc = mp_job_read_row(job, row, NULL);
        if (rc != 0)
            return rc;
        mp_fp8_block_amax(job->row, job->in->cols, job->tile_amax);
        if (exact)
            mp_job_check_exact(job, row);
    }
    return 0;
}

/* Up to 128 rows of mxfp4 whose tiles stay as they are. */
static int map_tiles(const mp_requantize_job *job, const mp_code_map *map, uint64_t first,
                     uint64_t rows)
{
    int rc = 0;

    mp_job_exact_scales(job, mp_job_scales(job, first));
    for (uint64_t row = first; rc == 0 && row < first + rows; row++) {
        mp_job_map_codes(job, map, row);
        rc = mp_job_measure_mapped(job, map, row);
    }
    return rc;
}

/* Up to 128 rows that share scales, read twice: to choose the scales, and to encode. Keeping 128
 * rows of float32 in memory would take megabytes per thread. */
static int convert_tiles(const mp_requantize_job *job, uint64_t first, uint64_t rows)
{
    uint64_t tiles = mp_ceil_div(job->in->cols, MP_FP8_BLOCK);
    uint8_t *scales = mp_job_scales(job, first);
    bool exact = mp_requantize_counts(job->in->scheme, MP_SCHEME_FP8_BLOCK), finite;
    mp_quant_options options = *job->options;
    int rc = amax_of_tiles(job, first, rows, exact, &finite);

    /* Most tiles of mxfp8 have a code or two that lose bits below the subnormals. Under a power of
     * two that is all they lose, and not 2 or 3 % as under another scale. */
    options.ue8m0 |= job->in->scheme == MP_SCHEME_MXFP8;
    if (rc == 0)
        mp_fp8_scales(job->tile_amax, tiles, &options, scales);
    if (rc == 0 && exact)
        mp_job_exact_scales(job, scales);
    for (uint64_t row = first; rc == 0 && row < first + rows; row++) {
        rc = finite ? mp_decode_row(job->in, row, job->row, false, job->err)
                    : mp_job_read_row(job, row, NULL);
        if (rc != 0)
            break;
        mp_fp8_encode(job->row, job->in->cols, scales, mp_job_codes(job, row));
        rc = mp_job_measure(job, row, NULL);
    }
    return rc;
}

static int convert_blocks(const mp_requantize_job *job)
{
    bool exact = mp_requantize_counts(job->in->scheme, MP_SCHEME_FP8_BLOCK);
    uint64_t rows = job->in->rows;
    mp_code_map map;
    int rc = 0;

    if (job->in->scheme == MP_SCHEME_MXFP4)
        mp_job_code_map(job, &map);
    for (uint64_t row = 0; rc == 0 && row < rows; row += MP_FP8_BLOCK) {
        uint64_t n = rows - row < MP_FP8_BLOCK ? rows - row : MP_FP8_BLOCK;

        if (exact)
            mp_job_begin_exact(job, row, n);
        rc = exact && mp_job_maps_codes(job, row, n) ? map_tiles(job, &map, row, n)
                                                     : convert_tiles(job, row, n);
    }
    return rc;
}

/* Whether every row's own scale is the one that the options give. */
static bool has_row_scales(const mp_rows *in, const float *wanted)
{
    for (uint64_t row = 0; row < in->rows; row++)
        if (mp_f32_bits(mp_rows_scale_at(in, row)) != mp_f32_bits(wanted[row]))
            return false;
    return true;
}

/* Whether the codes of the source are those of the target. The same scheme and blocks are enough,
 * unless another second scale, other row scales or powers of two are asked for. */
static bool passes_through(const mp_requantize_job *job)
{
    const mp_rows *in = job->in;
    const mp_rows *out = &job->out;
    mp_scale_block from = mp_rows_block(in);
    mp_scale_block to = mp_rows_block(out);

    if (in->scheme != out->scheme || from.rows != to.rows || from.cols != to.cols)
        return false;
    if (in->scheme == MP_SCHEME_NVFP4)
        /* Block scales are relative to the second scale: under another one they mean other
         * values. */
        return in->global_scale == out->global_scale && !in->global_divides;
    if (is_channel(in->scheme) && job->options->row_scales)
        return has_row_scales(in, job->options->row_scales);
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

/* Scales are written as F32, or in the one type that their scheme has. */
static void copy_scales(const mp_requantize_job *job)
{
    uint64_t count = mp_rows_scale_count(job->in);

    if (job->out.scale_dtype == MP_F32)
        mp_scale_values(job->in->scale_dtype, job->in->scale, 0, count,
                        (float *)(void *)job->scales);
    else
        memcpy(job->scales, job->in->scale, count);
}

static int pass_through(const mp_requantize_job *job)
{
    const mp_rows *in = job->in;
    int rc = 0;

    if (mp_scheme_has_scales(in->scheme) && job->scales)
        copy_scales(job);
    memcpy(job->codes, in->weight, in->rows * mp_scheme_row_bytes(in->scheme, in->cols));
    /* Copied codes lose nothing, but may contain a NaN that is not allowed. */
    if (!job->stats)
        return job->options->allow_nonfinite ? 0 : mp_rows_check_finite(in, job->err);
    for (uint64_t row = 0; rc == 0 && row < in->rows; row++) {
        rc = mp_job_read_row(job, row, NULL);
        if (rc == 0)
            rc = mp_job_measure(job, row, NULL);
    }
    return rc;
}

static int check_row_scales(const mp_requantize_job *job)
{
    const float *scales = job->options->row_scales;

    if (!is_channel(job->out.scheme) || !scales)
        return 0;
    for (uint64_t row = 0; row < job->in->rows; row++)
        if (!(scales[row] >= 0) || isinf(scales[row]))
            return mp_fail(job->err, MP_ERR_USAGE,
                           "scale %g of row %" PRIu64 ", expected a finite number from 0 up",
                           (double)scales[row], job->in->row0 + row);
    return 0;
}

static int convert(const mp_requantize_job *job)
{
    if (job->same_codes)
        return pass_through(job);
    if (job->out.scheme == MP_SCHEME_FP8_BLOCK)
        return convert_blocks(job);
    int rc = check_row_scales(job);
    return rc == 0 ? convert_rows(job) : rc;
}

/* Checks what is asked for and makes a job of it; results go nowhere yet. */
static int start_job(mp_requantize_job *job, const mp_rows *in, mp_scheme to,
                     const mp_quant_options *options, void *work, mp_error *err)
{
    int rc = mp_rows_check(in, err);

    if (rc == 0)
        rc = check_target(in, to, err);
    if (rc == 0)
        rc = check_options(to, options, err);
    if (rc != 0)
        return rc;
    *job = (mp_requantize_job){
        .kernels = mp_kernels_best(),
        .in = in,
        .out = describe_output(in, to, options),
        .options = options,
        .row = work,
        .decoded = (float *)work + in->cols,
        .tile_amax = (uint32_t *)work + 2 * in->cols,
        .tile_exponent =
            (uint8_t *)((uint32_t *)work + 2 * in->cols + mp_ceil_div(in->cols, MP_FP8_BLOCK)),
        .err = err,
    };
    job->same_codes = passes_through(job);
    return 0;
}

/* The output is described as rows too, so that it can be decoded again for the statistics. */
int mp_requantize(const mp_rows *in, mp_scheme to, const mp_quant_options *options, void *codes,
                  void *scales, void *work, mp_quant_stats *stats, mp_error *err)
{
    mp_requantize_job job;
    int rc = start_job(&job, in, to, options, work, err);

    if (rc != 0)
        return rc;
    job.codes = codes;
    job.scales = scales;
    job.stats = stats;
    job.out.weight = codes;
    job.out.scale = is_channel(to) && options->row_scales ? options->row_scales : scales;
    mp_job_begin_measuring(&job);
    return convert(&job);
}

/* Lets a matrix be encoded in panels of columns later: the scale of a row depends on all of it. */
int mp_rows_channel_scales(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                           void *work, float *scales, mp_error *err)
{
    mp_quant_options own = *options;
    mp_requantize_job job;

    /* These scales are what is being computed. */
    own.row_scales = NULL;
    int rc = start_job(&job, in, to, &own, work, err);
    if (rc == 0 && !is_channel(to))
        rc = mp_fail(err, MP_ERR_USAGE, "%s has no scale for each row", mp_scheme_name(to));
    for (uint64_t row = 0; rc == 0 && row < in->rows; row++) {
        uint32_t amax;

        rc = mp_job_read_row(&job, row, &amax);
        if (rc == 0)
            scales[row] =
                job.same_codes ? mp_rows_scale_at(in, row) : mp_channel_scale(to, amax, &own);
    }
    return rc;
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
        uint32_t one;

        rc = mp_job_read_row(&job, row, &one);
        if (rc == 0 && one > largest)
            largest = one;
    }
    /* The bits of non-negative floats are in the order of their values. */
    *amax = mp_f32_from_bits(largest);
    return rc;
}
