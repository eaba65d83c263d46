/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of mp_requantize for tests: buffers of the right sizes, and what was
 * written described as a source again. */
#ifndef TESTS_UNIT_REQUANTIZE_CALL_H
#define TESTS_UNIT_REQUANTIZE_CALL_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "numeric/forms.h"
#include "numeric/quantize.h"

/* A float32 matrix as a source. */
static inline mp_rows float_rows(const float *w, size_t rows, size_t cols)
{
    return (mp_rows){.scheme = MP_SCHEME_F32, .rows = rows, .cols = cols, .weight = w};
}

/* What a requantization wrote, and the same as a source. */
struct result {
    uint8_t *codes;
    uint8_t *scales;
    mp_rows rows;
};

static inline size_t scale_bytes(mp_scheme to, size_t rows, size_t cols)
{
    switch (to) {
    case MP_SCHEME_BF16:
        return 0;
    case MP_SCHEME_MXFP4:
    case MP_SCHEME_MXFP8:
        return rows * (cols / 32);
    case MP_SCHEME_NVFP4:
        return rows * (cols / 16);
    case MP_SCHEME_FP8_BLOCK:
        return (rows + 127) / 128 * ((cols + 127) / 128) * 4;
    case MP_SCHEME_FP8_GROUP:
        return rows * ((cols + 127) / 128) * 4;
    default:
        return rows * 4;
    }
}

static inline mp_rows output_rows(mp_scheme to, const mp_rows *in, const mp_quant_options *options)
{
    bool fp8 = to == MP_SCHEME_FP8_BLOCK || to == MP_SCHEME_FP8_GROUP;
    bool mx = to == MP_SCHEME_MXFP4 || to == MP_SCHEME_MXFP8;

    return (mp_rows){
        .scheme = to,
        .scale_dtype = mx                      ? MP_F8_E8M0
                       : to == MP_SCHEME_NVFP4 ? MP_F8_E4M3
                                               : MP_F32,
        .block_rows = to == MP_SCHEME_FP8_BLOCK ? 128 : 1,
        .block_cols = fp8  ? 128
                      : mx ? 32
                           : 16,
        .row0 = in->row0,
        .rows = in->rows,
        .cols = in->cols,
        .global_scale = options->global_scale,
    };
}

static inline int try_requantize(const mp_rows *in, mp_scheme to, const mp_quant_options *options,
                                 struct result *out, mp_quant_stats *stats, mp_error *err)
{
    size_t bytes = (size_t)(in->rows * mp_scheme_row_bytes(to, in->cols));
    void *work = malloc((size_t)mp_requantize_scratch(in->cols));

    out->codes = malloc(bytes + 1);
    out->scales = malloc(scale_bytes(to, in->rows, in->cols) + 1);
    cr_assert(work && out->codes && out->scales);
    memset(out->codes, 0xcc, bytes + 1);
    out->rows = output_rows(to, in, options);
    out->rows.weight = out->codes;
    out->rows.scale = out->scales;
    int rc = mp_requantize(in, to, options, out->codes, out->scales, work, stats, err);
    cr_assert_eq(out->codes[bytes], 0xcc);
    free(work);
    return rc;
}

static inline struct result requantize(const mp_rows *in, mp_scheme to,
                                       const mp_quant_options *options, mp_quant_stats *stats)
{
    struct result out;
    mp_error err;

    cr_assert_eq(try_requantize(in, to, options, &out, stats, &err), 0, "%s", err.message);
    return out;
}

static inline void result_free(struct result *out)
{
    free(out->codes);
    free(out->scales);
}

static inline float *decode(const mp_rows *in)
{
    float *out = malloc((size_t)(in->rows * in->cols) * sizeof(*out) + 1);
    mp_error err;

    cr_assert_eq(mp_decode_rows(in, out, &err), 0, "%s", err.message);
    return out;
}

static inline float matrix_amax(const mp_rows *in)
{
    void *work = malloc((size_t)mp_requantize_scratch(in->cols));
    float amax = -1;
    mp_error err;

    cr_assert_eq(mp_rows_amax(in, false, work, &amax, &err), 0, "%s", err.message);
    free(work);
    return amax;
}

/* An mxfp4 matrix [rows, 32 * blocks] of all byte values, exponents given. */
static inline mp_rows mxfp4_rows(uint8_t *codes, const uint8_t *exponents, size_t rows,
                                 size_t blocks)
{
    for (size_t i = 0; i < rows * blocks * 16; i++)
        codes[i] = (uint8_t)(i * 77 + 7);
    return (mp_rows){.scheme = MP_SCHEME_MXFP4,
                     .scale_dtype = MP_F8_E8M0,
                     .block_rows = 1,
                     .block_cols = 32,
                     .rows = rows,
                     .cols = blocks * 32,
                     .weight = codes,
                     .scale = exponents};
}

#endif
