/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of every type that safetensors has, as float64; all but the largest 64-bit integers
 * fit it. */
#include "diff/diff.h"

#include <math.h>
#include <string.h>

#include "numeric/kernels.h"

/* A float of at most 8 bits. */
typedef struct small_float {
    unsigned exponent_bits, mantissa_bits;
    int bias;
    enum { NO_NAN, NAN_ALL_ONES, NAN_AND_INF, NAN_MINUS_ZERO } special;
} small_float;

static double small_value(const small_float *f, unsigned code)
{
    unsigned mantissa = code & ((1u << f->mantissa_bits) - 1);
    unsigned exponent = code >> f->mantissa_bits & ((1u << f->exponent_bits) - 1);
    unsigned sign = code >> (f->mantissa_bits + f->exponent_bits) & 1;
    bool top = exponent == (1u << f->exponent_bits) - 1;
    bool ones = mantissa == (1u << f->mantissa_bits) - 1;
    int lowest = 1 - f->bias - (int)f->mantissa_bits; /* of the last bit of a subnormal */
    double value;

    if ((f->special == NAN_ALL_ONES && top && ones) ||
        (f->special == NAN_AND_INF && top && mantissa) ||
        (f->special == NAN_MINUS_ZERO && sign && !exponent && !mantissa))
        return NAN;
    if (f->special == NAN_AND_INF && top)
        value = INFINITY;
    else if (exponent == 0)
        value = ldexp(mantissa, lowest);
    else
        value = ldexp(mantissa + (1u << f->mantissa_bits), lowest + (int)exponent - 1);
    return sign ? -value : value;
}

static const small_float *small_float_of(mp_dtype dtype)
{
    static const small_float e2m1 = {2, 1, 1, NO_NAN}, e2m3 = {2, 3, 1, NO_NAN},
                             e3m2 = {3, 2, 3, NO_NAN}, e4m3 = {4, 3, 7, NAN_ALL_ONES},
                             e5m2 = {5, 2, 15, NAN_AND_INF}, e4m3fnuz = {4, 3, 8, NAN_MINUS_ZERO},
                             e5m2fnuz = {5, 2, 16, NAN_MINUS_ZERO};

    switch (dtype) {
    case MP_F4:
        return &e2m1;
    case MP_F6_E2M3:
        return &e2m3;
    case MP_F6_E3M2:
        return &e3m2;
    case MP_F8_E4M3:
        return &e4m3;
    case MP_F8_E5M2:
        return &e5m2;
    case MP_F8_E4M3FNUZ:
        return &e4m3fnuz;
    case MP_F8_E5M2FNUZ:
        return &e5m2fnuz;
    default:
        return NULL;
    }
}

/* Element i of `bits` bits, the first one in the lowest bits. */
static uint64_t bits_at(const uint8_t *bytes, uint64_t i, unsigned bits)
{
    uint64_t first = i * bits, value = 0;

    if (bits >= 8) {
        memcpy(&value, bytes + first / 8, bits / 8);
        return value;
    }
    value = bytes[first / 8];
    if (first % 8 + bits > 8)
        value |= (uint64_t)bytes[first / 8 + 1] << 8;
    return value >> first % 8 & ((1u << bits) - 1);
}

static double wide_float(mp_dtype dtype, uint64_t code)
{
    const mp_kernels *kernels = mp_kernels_best();
    uint16_t half = (uint16_t)code;
    uint32_t word = (uint32_t)code;
    double wide;
    float value;

    switch (dtype) {
    case MP_F16:
        kernels->f16_decode(&half, &value, 1);
        return (double)value;
    case MP_BF16:
        kernels->bf16_decode(&half, &value, 1);
        return (double)value;
    case MP_F64:
        memcpy(&wide, &code, sizeof wide);
        return wide;
    default: /* F32 */
        memcpy(&value, &word, sizeof value);
        return (double)value;
    }
}

static double value_of(mp_dtype dtype, uint64_t code)
{
    switch (dtype) {
    case MP_BOOL:
    case MP_U8:
    case MP_U16:
    case MP_U32:
    case MP_U64:
        return (double)code;
    case MP_I8:
        return (int8_t)code;
    case MP_I16:
        return (int16_t)code;
    case MP_I32:
        return (int32_t)code;
    case MP_I64:
        return (double)(int64_t)code;
    case MP_F8_E8M0:
        return code == UINT8_MAX ? NAN : ldexp(1, (int)code - 127);
    default:
        return wide_float(dtype, code);
    }
}

void mp_diff_plain_values(mp_dtype dtype, const uint8_t *bytes, uint64_t first, uint64_t n,
                          double *out)
{
    const small_float *small = small_float_of(dtype);
    unsigned bits = mp_dtype_bits(dtype);

    for (uint64_t i = 0; i < n; i++) {
        uint64_t code = bits_at(bytes, first + i, bits);

        out[i] = small ? small_value(small, (unsigned)code) : value_of(dtype, code);
    }
}
