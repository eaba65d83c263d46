/* SPDX-License-Identifier: Apache-2.0 */
/* Whether stored rows are finite, judged by the bits of codes and scales. Rows are decoded only if
 * these leave any doubt.
 *
 * Copying a matrix unchanged must not copy a NaN unnoticed, yet decoding everything would take
 * longer than copying. A value is not finite only if its code or scale is not, or if their product
 * overflows. So it is enough that no code has a special pattern, and that no scale is so large that
 * the largest code would overflow; one pass over the bits tells. If some are suspect, the slow way
 * finds the element, or finds that all is well. Pure, apart from a row of memory: any number of
 * threads. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/words.h"
#include "numeric/job.h"
#include "numeric/kernels.h"
#include "numeric/quantize.h"
#include "numeric/rows.h"

/* Which bit patterns of an element are suspect: those whose magnitude, without the sign
 * bit if there is one, reaches a limit. */
typedef struct suspects {
    unsigned bits; /* of an element: 8, 16 or 32 */
    bool is_signed;
    uint32_t limit; /* with the top bit set only if not signed */
} suspects;

static bool any_suspect(const void *in, uint64_t n, const suspects *what)
{
    return mp_kernels_best()->reaches(in, n, what->bits, what->is_signed, what->limit);
}

/* Largest magnitude of an unscaled code that is finite. */
static float largest_code(mp_scheme scheme)
{
    switch (scheme) {
    case MP_SCHEME_MXFP4:
        return MP_E2M1_MAX;
    case MP_SCHEME_NVFP4:
        return MP_E2M1_MAX * MP_E4M3_MAX; /* and of its block scale */
    case MP_SCHEME_INT8_CHANNEL:
        return 128;
    case MP_SCHEME_INT4_GROUP:
        return 8;
    default: /* the E4M3 schemes */
        return MP_E4M3_MAX;
    }
}

static suspects suspect_codes(mp_scheme scheme)
{
    switch (scheme) {
    case MP_SCHEME_BF16:
        return (suspects){16, true, MP_BF16_INF};
    case MP_SCHEME_F16:
        return (suspects){16, true, 0x7c00};
    case MP_SCHEME_F32:
        return (suspects){32, true, MP_F32_INF};
    default: /* the E4M3 schemes */
        return (suspects){8, true, 0x7f};
    }
}

/* Scales with which the largest code goes beyond float32, and NaN. */
static suspects suspect_scales(const mp_rows *in)
{
    uint32_t limit = mp_f32_bits(FLT_MAX / largest_code(in->scheme));

    switch (in->scale_dtype) {
    case MP_F32:
        return (suspects){32, true, limit};
    case MP_BF16:
        return (suspects){16, true, limit >> 16};
    case MP_F16: /* finite ones are never too large */
        return (suspects){16, true, 0x7c00};
    case MP_F8_E4M3:
        return (suspects){8, true, 0x7f};
    default: /* F8_E8M0, U8 */
        return (suspects){8, false, limit >> 23};
    }
}

static bool codes_can_be_nonfinite(mp_scheme scheme)
{
    return mp_scheme_bits(scheme) > 4 && scheme != MP_SCHEME_INT8_CHANNEL;
}

static bool is_suspect(const mp_rows *in)
{
    if (codes_can_be_nonfinite(in->scheme)) {
        suspects codes = suspect_codes(in->scheme);

        if (any_suspect(in->weight, in->rows * in->cols, &codes))
            return true;
    }
    if (!mp_scheme_has_scales(in->scheme))
        return false;
    suspects scales = suspect_scales(in);
    if (any_suspect(in->scale, mp_rows_scale_count(in), &scales))
        return true;
    if (in->scheme != MP_SCHEME_NVFP4)
        return false;
    float largest = largest_code(in->scheme);
    float product = in->global_divides ? largest / in->global_scale : largest * in->global_scale;
    return !isfinite(product);
}

/* As mp_requantize reads rows. */
static int check_rows(const mp_rows *in, float *work, mp_error *err)
{
    const mp_quant_options refuse = {0};
    const mp_requantize_job job = {
        .kernels = mp_kernels_best(),
        .in = in,
        .out = {.scheme = in->scheme},
        .options = &refuse,
        .row = work,
        .err = err,
    };
    int rc = 0;

    for (uint64_t row = 0; rc == 0 && row < in->rows; row++)
        rc = mp_job_read_row(&job, row, NULL);
    return rc;
}

int mp_rows_check_finite(const mp_rows *in, mp_error *err)
{
    int rc = mp_rows_check(in, err);

    if (rc != 0 || in->rows == 0 || in->cols == 0 || !is_suspect(in))
        return rc;
    float *work = mp_alloc(in->cols, sizeof(*work));
    if (!work)
        return mp_fail_memory(err);
    rc = check_rows(in, work, err);
    free(work);
    return rc;
}
