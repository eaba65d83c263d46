/* SPDX-License-Identifier: Apache-2.0 */
/* Stored scale values: as float32, which holds all their types exactly, and from one type to
 * another.
 *
 * A conversion is only done if it loses nothing. It encodes the values in any way, decodes the
 * result and compares: so encoders may be sloppy about values that do not fit. U8 holds the bytes
 * of E8M0 under another name. Pure functions, any number of threads. */
#include <math.h>

#include "numeric/kernels.h"
#include "numeric/quantize.h"
#include "numeric/scales.h"

#define RUN 256 /* values at a time through the stack */

void mp_scale_values(mp_dtype dtype, const void *scales, uint64_t first, uint64_t n, float *out)
{
    const mp_kernels *kernels = mp_kernels_best();
    const uint8_t *in = (const uint8_t *)scales + first * (mp_dtype_bits(dtype) / 8);

    switch (dtype) {
    case MP_F32:
        memcpy(out, in, n * sizeof(*out));
        break;
    case MP_BF16:
        kernels->bf16_decode((const uint16_t *)(const void *)in, out, n);
        break;
    case MP_F16:
        kernels->f16_decode((const uint16_t *)(const void *)in, out, n);
        break;
    case MP_F8_E4M3:
        kernels->e4m3_decode(in, out, n);
        break;
    default: /* F8_E8M0, U8 */
        kernels->ue8m0_decode(in, out, n);
        break;
    }
}

float mp_scale_value(mp_dtype dtype, const void *scales, uint64_t i)
{
    float value;

    mp_scale_values(dtype, scales, i, 1, &value);
    return value;
}

/* The F16 of a value that F16 holds, or of another one. */
static uint16_t f16_code(float value)
{
    uint32_t bits = mp_f32_bits(value);
    uint32_t sign = bits >> 16 & 0x8000;
    float magnitude = fabsf(value);

    if (isnan(value))
        return (uint16_t)(sign | 0x7e00);
    if (magnitude > 65504)
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x1p-14f)
        return (uint16_t)(sign | (uint32_t)(magnitude * 0x1p24f));
    return (uint16_t)(sign | (((bits & MP_F32_ABS) >> 13) - ((127 - 15) << 10)));
}

/* The F8_E8M0 of a value that it holds, NaN and 2^-127 too, or of another one. */
static uint8_t e8m0_code(float value)
{
    return (uint8_t)(mp_f32_bits(value) >> 23);
}

/* Whatever comes closest or not so close: the caller compares. */
static void encode_values(mp_dtype dtype, const float *values, uint64_t n, uint8_t *out)
{
    const mp_kernels *kernels = mp_kernels_best();

    switch (dtype) {
    case MP_F32:
        memcpy(out, values, n * sizeof(*values));
        break;
    case MP_BF16:
        kernels->bf16_encode(values, (uint16_t *)(void *)out, n);
        break;
    case MP_F16:
        for (uint64_t i = 0; i < n; i++)
            memcpy(out + 2 * i, &(uint16_t){f16_code(values[i])}, 2);
        break;
    case MP_F8_E4M3:
        kernels->e4m3_encode(values, out, n);
        break;
    default: /* F8_E8M0, U8 */
        for (uint64_t i = 0; i < n; i++)
            out[i] = e8m0_code(values[i]);
        break;
    }
}

static bool same_values(const float *a, const float *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (mp_f32_bits(a[i]) != mp_f32_bits(b[i]) && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

static bool is_scale_type(mp_dtype dtype)
{
    return dtype == MP_F32 || dtype == MP_BF16 || dtype == MP_F16 || dtype == MP_F8_E4M3 ||
           dtype == MP_F8_E8M0 || dtype == MP_U8;
}

static mp_dtype byte_of_e8m0(mp_dtype dtype)
{
    return dtype == MP_U8 ? MP_F8_E8M0 : dtype;
}

bool mp_scales_convert(mp_dtype from, const void *in, uint64_t count, mp_dtype to, void *out)
{
    float values[RUN];
    float again[RUN];

    if (!is_scale_type(from) || !is_scale_type(to))
        return false;
    if (count == 0)
        return true;
    unsigned bytes = mp_dtype_bits(to) / 8;
    if (byte_of_e8m0(from) == byte_of_e8m0(to)) {
        memcpy(out, in, count * bytes);
        return true;
    }
    for (uint64_t i = 0; i < count; i += RUN) {
        uint64_t n = count - i < RUN ? count - i : RUN;

        mp_scale_values(from, in, i, n, values);
        encode_values(to, values, n, (uint8_t *)out + i * bytes);
        mp_scale_values(to, out, i, n, again);
        if (!same_values(values, again, n))
            return false;
    }
    return true;
}
