/* SPDX-License-Identifier: Apache-2.0 */
/* Rows that are not decoded: the forms of schemes, scales in other types, and which rows
 * are finite, held against what mp_requantize says of them. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/numeric.h>

#include "failing_memory.h"
#include "requantize_call.h"

#include "numeric/forms.h"
#include "numeric/quantize.h"

static const mp_quant_options defaults = {.rounding = MP_ROUND_DEEPGEMM};

/* --- forms --- */

Test(rows, forms_are_what_is_written)
{
    static const uint8_t bytes[4096];
    const mp_quant_options options = {.global_scale = 1};
    unsigned canonical = 0;

    for (int s = 0; s < MP_SCHEME_COUNT; s++) {
        mp_scheme scheme = (mp_scheme)s;
        const mp_scheme_form *form = mp_scheme_form_of(scheme);
        mp_rows shape = {.rows = 3, .cols = 7 * 32};
        mp_rows rows = output_rows(scheme, &shape, &options);
        bool per_row = scheme == MP_SCHEME_FP8_CHANNEL || scheme == MP_SCHEME_INT8_CHANNEL;

        if (!form->canonical) {
            cr_assert_eq(memcmp(form, &(mp_scheme_form){0}, sizeof(*form)), 0);
            continue;
        }
        canonical++;
        cr_assert_eq(form->has_scale, scale_bytes(scheme, 3, 7 * 32) != 0);
        cr_assert_eq(form->has_global, scheme == MP_SCHEME_NVFP4);
        if (!form->has_scale)
            continue;
        size_t width = form->block_cols;
        size_t scales = (3 + form->block_rows - 1) / form->block_rows * ((224 + width - 1) / width);
        cr_assert_eq(form->scale_dtype, rows.scale_dtype);
        cr_assert_eq(form->block_cols == UINT32_MAX, per_row);
        cr_assert_eq(scales * mp_dtype_bits(form->scale_dtype) / 8, scale_bytes(scheme, 3, 224));
        /* What is written can be read. */
        rows.weight = rows.scale = bytes;
        rows.block_rows = form->block_rows;
        rows.block_cols = form->block_cols;
        float *out = decode(&rows);
        cr_assert_eq(out[0], 0);
        free(out);
    }
    cr_assert_eq(canonical, 8);
    cr_assert_null(mp_scheme_form_of(MP_SCHEME_COUNT));
}

/* A NaN goes into a scheme or is refused as its form says. */
Test(rows, forms_with_nan)
{
    static float w[128];
    const mp_quant_options allow = {.allow_nonfinite = true, .global_scale = 1};
    mp_rows in = float_rows(w, 1, 128);

    w[77] = NAN;
    for (int s = 0; s < MP_SCHEME_COUNT; s++) {
        const mp_scheme_form *form = mp_scheme_form_of((mp_scheme)s);
        struct result out;
        mp_error err;

        if (!form->canonical)
            continue;
        int rc = try_requantize(&in, (mp_scheme)s, &allow, &out, NULL, &err);
        cr_assert_eq(rc, form->has_nan ? 0 : MP_ERR_INPUT, "%s", mp_scheme_name((mp_scheme)s));
        result_free(&out);
    }
}

/* --- scales --- */

static const mp_dtype scale_types[] = {MP_F32, MP_BF16, MP_F16, MP_F8_E4M3, MP_F8_E8M0, MP_U8};

#define SCALE_TYPES (sizeof(scale_types) / sizeof(scale_types[0]))

/* Converts one value, unaligned, and back; false if either cannot be said. */
static bool converts(mp_dtype from, const void *value, mp_dtype to, void *out)
{
    uint8_t in[5];
    uint8_t result[6] = {[5] = 0xcc};
    unsigned bytes = mp_dtype_bits(to) / 8;

    memcpy(in + 1, value, mp_dtype_bits(from) / 8);
    if (!mp_scales_convert(from, in + 1, 1, to, result + 1))
        return false;
    memcpy(out, result + 1, bytes);
    cr_assert_eq(result[5], 0xcc);
    return true;
}

static bool from_f32(float value, mp_dtype to, uint32_t expected)
{
    uint32_t out = 0;

    return converts(MP_F32, &value, to, &out) && out == expected;
}

Test(rows, scales_of_every_code)
{
    const struct {
        mp_dtype dtype;
        uint32_t codes;
    } types[] = {{MP_BF16, 65536}, {MP_F16, 65536}, {MP_F8_E4M3, 256}, {MP_F8_E8M0, 256}};

    for (size_t t = 0; t < 4; t++) {
        for (uint32_t code = 0; code < types[t].codes; code++) {
            uint32_t again = 0;
            float wide;

            cr_assert(converts(types[t].dtype, &code, MP_F32, &wide));
            cr_assert(converts(MP_F32, &wide, types[t].dtype, &again));
            if (!isnan(wide))
                cr_assert_eq(again, code, "%s", mp_dtype_name(types[t].dtype));
            /* The next float32 is no value of a narrower type. */
            if (isfinite(wide)) {
                float next = nextafterf(wide, INFINITY);

                cr_assert(!converts(MP_F32, &next, types[t].dtype, &again));
            }
        }
    }
}

Test(rows, scales_between_types)
{
    uint32_t out;

    cr_assert(from_f32(0x1.8p3f, MP_F16, 0x4a00) && from_f32(0x1.8p3f, MP_BF16, 0x4140));
    cr_assert(from_f32(0x1p-24f, MP_F16, 1) && from_f32(-0.0f, MP_F16, 0x8000));
    cr_assert(from_f32(65504, MP_F16, 0x7bff) && from_f32(INFINITY, MP_F16, 0x7c00));
    cr_assert(from_f32(0x1p-127f, MP_F8_E8M0, 0) && from_f32(0x1p127f, MP_U8, 254));
    cr_assert(from_f32(NAN, MP_F8_E8M0, 255) && from_f32(448, MP_F8_E4M3, 0x7e));
    const float beyond[] = {0x1.8p3f, 0, -1, INFINITY, 0x1p-128f};
    for (size_t i = 0; i < 5; i++)
        cr_assert(!converts(MP_F32, &beyond[i], MP_F8_E8M0, &out), "%g", (double)beyond[i]);
    const float too_fine[] = {65536, 65520, 0x1p-25f, 1.5f * 0x1p-24f};
    for (size_t i = 0; i < 4; i++)
        cr_assert(!converts(MP_F32, &too_fine[i], MP_F16, &out), "%g", (double)too_fine[i]);
    cr_assert(converts(MP_F8_E8M0, &(uint8_t){120}, MP_BF16, &out));
    cr_assert(converts(MP_U8, &(uint8_t){3}, MP_F8_E8M0, &out) && (out & 255) == 3);
    cr_assert(!converts(MP_BF16, &(uint16_t){0x3fc0}, MP_U8, &out)); /* 1.5 */
    for (int d = 0; d < MP_DTYPE_COUNT; d++) {
        bool known = false;

        for (size_t i = 0; i < SCALE_TYPES; i++)
            known = known || scale_types[i] == (mp_dtype)d;
        cr_assert_eq(mp_scales_convert((mp_dtype)d, &out, 0, MP_F32, &out), known);
        cr_assert_eq(mp_scales_convert(MP_F32, &out, 0, (mp_dtype)d, &out), known);
    }
}

/* Longer than what is converted at a time, with a value in every place that cannot be. */
Test(rows, scales_in_runs)
{
    enum { N = 611 };
    static float in[N];
    static uint16_t out[N];

    for (size_t i = 0; i < N; i++)
        in[i] = (float)(i % 201) * 0.25f - 17;
    cr_assert(mp_scales_convert(MP_F32, in, N, MP_BF16, out));
    for (size_t i = 0; i < N; i++) {
        uint32_t bits;

        memcpy(&bits, &in[i], sizeof(bits));
        cr_assert_eq((uint32_t)out[i] << 16, bits);
    }
    for (size_t i = 0; i < N; i += 13) {
        float kept = in[i];

        in[i] = 1.001f;
        cr_assert(!mp_scales_convert(MP_F32, in, N, MP_BF16, out));
        cr_assert(mp_scales_convert(MP_F32, in, i, MP_BF16, out));
        in[i] = kept;
    }
}

/* --- finite rows --- */

/* A matrix [5, cols] at row 40 in any scheme, all of whose bytes are tame. */
struct source {
    mp_rows rows;
    uint8_t *weight;
    uint8_t *scale;
    size_t weight_bytes;
    size_t scale_bytes;
};

static struct source make_source(mp_scheme scheme, mp_dtype scale_dtype, size_t cols)
{
    const mp_scheme_form *form = mp_scheme_form_of(scheme);
    struct source s = {.weight_bytes = (size_t)(5 * mp_scheme_row_bytes(scheme, cols)),
                       .scale_bytes = 5 * cols * mp_dtype_bits(scale_dtype) / 8};
    uint32_t block = scheme == MP_SCHEME_INT4_GROUP ? 32 : form->canonical ? form->block_cols : 1;

    s.weight = malloc(s.weight_bytes);
    s.scale = malloc(s.scale_bytes);
    cr_assert(s.weight && s.scale);
    for (size_t i = 0; i < s.weight_bytes; i++)
        s.weight[i] = (uint8_t)(i * 37 % 0x39);
    for (size_t i = 0; i < s.scale_bytes; i++)
        s.scale[i] = (uint8_t)(0x31 + i * 5 % 9);
    s.rows = (mp_rows){.scheme = scheme,
                       .scale_dtype = scale_dtype,
                       .block_rows = scheme == MP_SCHEME_FP8_BLOCK ? 2 : 1,
                       .block_cols = scheme == MP_SCHEME_FP8_BLOCK ? 48 : block,
                       .row0 = 40,
                       .rows = 5,
                       .cols = cols,
                       .weight = s.weight,
                       .scale = s.scale,
                       .global_scale = 0.5f};
    return s;
}

static void source_release(struct source *s)
{
    free(s->weight);
    free(s->scale);
}

/* What reading the rows one by one says, as mp_requantize reads them. */
static int slow_check(const mp_rows *in, mp_error *err)
{
    void *work = malloc((size_t)mp_requantize_scratch(in->cols));
    float amax;
    int rc = mp_rows_amax(in, false, work, &amax, err);

    free(work);
    return rc;
}

static int assert_same_verdict(const mp_rows *in)
{
    mp_error fast = {0};
    mp_error slow = {0};
    int rc = mp_rows_check_finite(in, &fast);

    cr_assert_eq(rc, slow_check(in, &slow), "%s", mp_scheme_name(in->scheme));
    cr_assert_str_eq(fast.message, slow.message);
    return rc;
}

/* Puts one value in every place of a buffer in turn. Returns how often it was refused. */
static size_t sweep(const mp_rows *in, uint8_t *bytes, size_t count, size_t width, uint32_t value)
{
    size_t refused = 0;

    for (size_t i = 0; i + 1 <= count; i += 1 + i % 3) {
        uint32_t kept = 0;

        memcpy(&kept, bytes + i * width, width);
        memcpy(bytes + i * width, &value, width);
        refused += assert_same_verdict(in) == MP_ERR_INPUT;
        memcpy(bytes + i * width, &kept, width);
    }
    return refused;
}

/* Codes at the ends of what is finite. */
static void check_codes(mp_scheme scheme, size_t width, const uint32_t *values, size_t count,
                        size_t finite)
{
    struct source s = make_source(scheme, MP_F32, 101);

    cr_assert_eq(assert_same_verdict(&s.rows), 0, "%s", mp_scheme_name(scheme));
    for (size_t i = 0; i < count; i++) {
        size_t refused = sweep(&s.rows, s.weight, s.weight_bytes / width, width, values[i]);

        cr_assert_eq(refused > 0, i >= finite, "%s: %#x", mp_scheme_name(scheme), values[i]);
    }
    source_release(&s);
}

Test(rows, finite_codes)
{
    const uint32_t bf16[] = {0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81};
    const uint32_t f16[] = {0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xffff};
    const uint32_t f32[] = {0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0xffffffff};
    const uint32_t e4m3[] = {0x7e, 0xfe, 0x80, 0x7f, 0xff};

    check_codes(MP_SCHEME_BF16, 2, bf16, 7, 2);
    check_codes(MP_SCHEME_F16, 2, f16, 6, 2);
    check_codes(MP_SCHEME_F32, 4, f32, 6, 2);
    check_codes(MP_SCHEME_FP8_BLOCK, 1, e4m3, 5, 3);
    check_codes(MP_SCHEME_FP8_GROUP, 1, e4m3, 5, 3);
    check_codes(MP_SCHEME_FP8_CHANNEL, 1, e4m3, 5, 3);
    check_codes(MP_SCHEME_FP8_TENSOR, 1, e4m3, 5, 3);
    for (uint32_t code = 0; code < 256; code++) {
        struct source s = make_source(MP_SCHEME_INT8_CHANNEL, MP_F32, 7);

        memset(s.weight, (int)code, s.weight_bytes);
        cr_assert_eq(assert_same_verdict(&s.rows), 0);
        source_release(&s);
    }
}

/* Every exponent under codes that are the largest, and under zeros. */
static void check_scales(mp_scheme scheme, mp_dtype dtype, uint8_t largest, size_t cols)
{
    struct source s = make_source(scheme, dtype, cols);
    size_t width = mp_dtype_bits(dtype) / 8;
    size_t refused = 0;
    size_t counted = 0;

    for (uint32_t top = 0; top < 256; top++) {
        for (int zeros = 0; zeros < 2; zeros++) {
            uint32_t value = width == 4   ? top << 24 | 0x00123456
                             : width == 2 ? top << 8 | 0x5a
                                          : top;

            memset(s.weight, zeros ? 0 : largest, s.weight_bytes);
            memcpy(s.scale, &value, width);
            refused += assert_same_verdict(&s.rows) == MP_ERR_INPUT;
            counted++;
        }
    }
    cr_assert(refused > 0 && refused < counted, "%s", mp_scheme_name(scheme));
    source_release(&s);
}

Test(rows, finite_scales)
{
    const mp_dtype floats[] = {MP_F32, MP_BF16, MP_F16};

    for (size_t i = 0; i < 3; i++) {
        check_scales(MP_SCHEME_FP8_BLOCK, floats[i], 0x7e, 101);
        check_scales(MP_SCHEME_FP8_GROUP, floats[i], 0x7e, 130);
        check_scales(MP_SCHEME_FP8_CHANNEL, floats[i], 0xfe, 33);
        check_scales(MP_SCHEME_FP8_TENSOR, floats[i], 0x7e, 33);
        check_scales(MP_SCHEME_INT8_CHANNEL, floats[i], 0x80, 33);
        check_scales(MP_SCHEME_INT4_GROUP, floats[i], 0x00, 74);
    }
    check_scales(MP_SCHEME_MXFP4, MP_F8_E8M0, 0x77, 96);
    check_scales(MP_SCHEME_MXFP4, MP_U8, 0x22, 70);
    check_scales(MP_SCHEME_MXFP8, MP_F8_E8M0, 0x7e, 96);
    check_scales(MP_SCHEME_FP8_BLOCK, MP_F8_E8M0, 0x7e, 101);
    check_scales(MP_SCHEME_NVFP4, MP_F8_E4M3, 0x77, 48);
}

/* The block that a scale belongs to is found wherever the scale lies. */
Test(rows, finite_scales_in_all_places)
{
    const struct {
        mp_scheme scheme;
        mp_dtype dtype;
        size_t cols;
        size_t count;
        uint32_t nan;
    } cases[] = {
        {MP_SCHEME_MXFP4, MP_F8_E8M0, 70, 15, 255},
        {MP_SCHEME_MXFP8, MP_U8, 77, 15, 255},
        {MP_SCHEME_NVFP4, MP_F8_E4M3, 38, 15, 0xff},
        {MP_SCHEME_FP8_BLOCK, MP_F32, 101, 9, 0x7fc00000},
        {MP_SCHEME_FP8_GROUP, MP_BF16, 300, 15, 0xff81},
        {MP_SCHEME_INT4_GROUP, MP_F16, 74, 15, 0x7c01},
        {MP_SCHEME_INT8_CHANNEL, MP_F32, 9, 5, 0x7f800001},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct source s = make_source(cases[i].scheme, cases[i].dtype, cases[i].cols);
        size_t width = mp_dtype_bits(cases[i].dtype) / 8;

        cr_assert_gt(sweep(&s.rows, s.scale, cases[i].count, width, cases[i].nan), 3);
        /* What lies behind the scales of these rows does not count. */
        memcpy(s.scale + cases[i].count * width, &cases[i].nan, width);
        cr_assert_eq(assert_same_verdict(&s.rows), 0);
        source_release(&s);
    }
}

Test(rows, finite_global_scales)
{
    const float globals[] = {NAN,       INFINITY, -INFINITY, 0x1p127f, -0x1p117f, 0x1p116f,
                             0x1p-120f, 0,        -0.0f,     1,        0x1p-149f};
    struct source s = make_source(MP_SCHEME_NVFP4, MP_F8_E4M3, 48);
    size_t refused = 0;

    s.scale[7] = 0x7e;
    s.weight[60] = 0x77;
    for (size_t i = 0; i < sizeof(globals) / sizeof(globals[0]); i++) {
        for (int divides = 0; divides < 2; divides++) {
            s.rows.global_scale = globals[i];
            s.rows.global_divides = divides != 0;
            refused += assert_same_verdict(&s.rows) == MP_ERR_INPUT;
        }
    }
    cr_assert(refused > 5 && refused < 15, "%zu", refused);
    source_release(&s);
}

/* A scale that is too large for any code but zeros, so that rows are decoded. */
static int check_suspect_rows(mp_error *err)
{
    static const uint8_t codes[32];
    static const uint8_t scale = 254;
    const mp_rows in = {.scheme = MP_SCHEME_MXFP8,
                        .scale_dtype = MP_F8_E8M0,
                        .block_rows = 1,
                        .block_cols = 32,
                        .rows = 1,
                        .cols = 32,
                        .weight = codes,
                        .scale = &scale};

    return mp_rows_check_finite(&in, err);
}

Test(rows, finite_without_memory)
{
    cr_assert_eq(memory_exhaust(check_suspect_rows), 1);
}

Test(rows, finite_refuses_what_is_no_matrix)
{
    struct source s = make_source(MP_SCHEME_MXFP4, MP_F8_E8M0, 96);
    mp_error err;

    s.rows.scale_dtype = MP_F32;
    cr_assert_eq(mp_rows_check_finite(&s.rows, &err), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, "mxfp4 weights with scales of type F32");
    s.rows.scale_dtype = MP_F8_E8M0;
    memset(s.scale, 255, s.scale_bytes);
    s.rows.rows = 0;
    cr_assert_eq(mp_rows_check_finite(&s.rows, &err), 0);
    source_release(&s);
}

/* And so mp_requantize without statistics says what it says with them. */
Test(rows, pass_through_with_and_without_statistics)
{
    struct source s = make_source(MP_SCHEME_FP8_CHANNEL, MP_F32, 101);
    mp_quant_stats stats = {0};
    struct result out;
    mp_error plain = {0};
    mp_error measured = {0};

    s.weight[3 * 101 + 17] = 0xff;
    cr_assert_eq(try_requantize(&s.rows, MP_SCHEME_FP8_CHANNEL, &defaults, &out, NULL, &plain),
                 MP_ERR_INPUT);
    result_free(&out);
    cr_assert_eq(try_requantize(&s.rows, MP_SCHEME_FP8_CHANNEL, &defaults, &out, &stats, &measured),
                 MP_ERR_INPUT);
    result_free(&out);
    cr_assert_str_eq(plain.message, "weight [43, 17] is NaN");
    cr_assert_str_eq(measured.message, plain.message);
    source_release(&s);
}
