/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/wide.h - the kernels, written once in vectors and compiled once for each instruction
 * set, by avx2.c, avx512.c and neon.c. What the words mean stands in lanes.h.
 *
 * A kernel takes whole vectors, or NARROW of them, as long as they last, and leaves the rest to
 * the scalar kernel, which defines the bits. Nothing is kept between calls and nothing is
 * written but the output, so that any number of threads may run them.
 *
 * Before this header come KERNELS, the name of the table, LEVEL, what it is called, and CODE_LOSS,
 * the name of a kernel outside it. Where OWN_E4M3_CODES, OWN_ENCODE_BF16 and OWN_GROUP_LOSS are
 * defined, so are e4m3_codes, mxfp4_encode_bf16 and add_group_loss: they gain too much from what
 * only one instruction set has. */
#include "numeric/kernels.h"
#include "numeric/lanes.h"

#define STEP   (NARROW * LANES)
#define PACKED (MP_MX_BLOCK / 2) /* bytes of a block of 4-bit codes */

TARGET static void bf16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, load_u16(in + i) << 16);
    mp_kernels_scalar.bf16_decode(in + i, out + i, n - i);
}

INLINE bits bf16_codes(bits in)
{
    bits upper = in >> 16;
    bits rounded = (in + ((upper & 1) + 0x7fff)) >> 16;

    return choose(above(magnitude_of(in), splat(MP_F32_INF)), upper | 0x40, rounded);
}

TARGET static void bf16_encode(const float *in, uint16_t *out, size_t n)
{
    size_t i = 0;

    for (; i + STEP <= n; i += STEP) {
        bits codes[NARROW];

        UNROLL
        for (int j = 0; j < NARROW; j++)
            codes[j] = bf16_codes(load(in + i + j * LANES));
        store_u16(out + i, codes);
    }
    mp_kernels_scalar.bf16_encode(in + i, out + i, n - i);
}

TARGET static void f16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, (bits)load_f16(in + i));
    mp_kernels_scalar.f16_decode(in + i, out + i, n - i);
}

/* Where a code is not NaN. Below 2^-6 steps no longer shrink: a number taken for normal would be
 * too large by as much as it lacks of 2^-6. */
INLINE floats e4m3_finite(bits codes)
{
    bits upper = codes << 24;
    floats normal = (floats)((upper >> 4 & 0x07f00000) + ((127u - 7u) << 23));
    floats value = smaller_f(normal, normal + (normal - 0x1p-6f));

    return (floats)((bits)value | (upper & 0x80000000));
}

INLINE bits e4m3_values(bits codes)
{
    mask nan = equal(codes & 0x7f, splat(0x7f));

    return choose(nan, MP_F32_NAN | (codes & 0x80) << 24, (bits)e4m3_finite(codes));
}

TARGET static void e4m3_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, e4m3_values(load_u8(in + i)));
    mp_kernels_scalar.e4m3_decode(in + i, out + i, n - i);
}

#if !defined(OWN_E4M3_CODES)

/* What is added to a magnitude is so much larger that the sum has room for the steps of E4M3
 * only, an eighth of the binade, and is rounded to them; below 2^-6 steps no longer shrink. */
INLINE bits e4m3_codes(bits in)
{
    bits magnitude = magnitude_of(in);
    bits finite = smaller(magnitude, splat(0x43e00000)); /* 448 */
    bits binade = larger(finite & MP_F32_INF, splat(121u << 23));
    bits large = binade + (20u << 23);
    bits steps = (bits)((floats)finite + (floats)large) - large;
    bits code = steps + ((binade >> 20) - (121u << 3));

    code = choose(above(magnitude, splat(MP_F32_INF)), splat(0x7f), code);
    return code | (in >> 24 & 0x80);
}

#endif

TARGET static void e4m3_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + STEP <= n; i += STEP) {
        bits codes[NARROW];

        UNROLL
        for (int j = 0; j < NARROW; j++)
            codes[j] = e4m3_codes(load(in + i + j * LANES));
        store_u8(out + i, codes);
    }
    mp_kernels_scalar.e4m3_encode(in + i, out + i, n - i);
}

TARGET static void e4m3_encode_blocks(const float *in, const float *factors, size_t width,
                                      uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; factors++) {
        size_t end = n - i < width ? n : i + width;
        float factor;

        memcpy(&factor, factors, sizeof(factor));
        for (; i + STEP <= end; i += STEP) {
            bits codes[NARROW];

            UNROLL
            for (int j = 0; j < NARROW; j++)
                codes[j] = e4m3_codes((bits)(load_floats(in + i + j * LANES) * factor));
            store_u8(out + i, codes);
        }
        if (i < end)
            mp_kernels_scalar.e4m3_encode_blocks(in + i, factors, width, out + i, end - i);
        i = end;
    }
}

/* 16 values times a factor. */
INLINE void e2m1_scaled16(const uint8_t *codes, float factor, float *out)
{
    floats values[16 / LANES];

    e2m1_decode16(codes, values);
    UNROLL
    for (int j = 0; j < 16 / LANES; j++)
        store(out + j * LANES, (bits)(values[j] * factor));
}

TARGET static void e2m1_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        e2m1_scaled16(codes + i / 2, 1.0f, out + i);
    mp_kernels_scalar.e2m1_decode(codes + i / 2, out + i, n - i);
}

TARGET static void e2m1_encode(const float *in, uint8_t *codes, size_t n, mp_rounding rounding)
{
    size_t i = 0;

    for (; i + 32 <= n; i += 32) {
        floats v[32 / LANES];

        UNROLL
        for (int j = 0; j < 32 / LANES; j++)
            v[j] = load_floats(in + i + j * LANES);
        e2m1_encode32(v, codes + i / 2, rounding);
    }
    mp_kernels_scalar.e2m1_encode(in + i, codes + i / 2, n - i, rounding);
}

INLINE bits ue8m0_values(bits codes)
{
    bits value = choose(equal(codes, splat(0)), splat(0x00400000), codes << 23);

    return choose(equal(codes, splat(255)), splat(MP_F32_NAN), value);
}

TARGET static void ue8m0_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, ue8m0_values(load_u8(in + i)));
    mp_kernels_scalar.ue8m0_decode(in + i, out + i, n - i);
}

/* A mantissa that is not zero carries into the exponent. */
INLINE bits ue8m0_codes(bits in)
{
    bits e = (magnitude_of(in) + MP_F32_MANTISSA) >> 23;

    return smaller(larger(e, splat(1)), splat(254));
}

TARGET static void ue8m0_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + STEP <= n; i += STEP) {
        bits codes[NARROW];

        UNROLL
        for (int j = 0; j < NARROW; j++)
            codes[j] = ue8m0_codes(load(in + i + j * LANES));
        store_u8(out + i, codes);
    }
    mp_kernels_scalar.ue8m0_encode(in + i, out + i, n - i);
}

TARGET static void int8_decode(const int8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, (bits)to_floats(load_i8(in + i)));
    mp_kernels_scalar.int8_decode(in + i, out + i, n - i);
}

/* A division takes as long as the rest of the kernel. Where neither the reciprocal nor a
 * remainder leaves the normal numbers, x times the reciprocal is off by a few units in the
 * last place, and what remains of x, times the reciprocal, mends that: the integer next to it
 * is that of the quotient. It was held against the division for every mantissa of the factor
 * and every x within three units of where two integers are equally near. */
INLINE bits int8_codes(floats x, float factor, float inverse)
{
    floats q = x * inverse;

    q = fma_f(fma_f(-q, splat_f(factor), x), splat_f(inverse), q);
    return to_ints(q) & 0xff;
}

INLINE bits int8_codes_divided(floats x, float factor)
{
    floats q = x / factor;

    return to_ints(larger_f(smaller_f(q, splat_f(127)), splat_f(-127))) & 0xff;
}

TARGET static void int8_encode(const float *in, float factor, int8_t *out, size_t n)
{
    const bool normal = factor > 0x1p-100f && factor < 0x1p100f;
    const floats largest = splat_f(127 * factor);
    const float inverse = 1 / factor;
    size_t i = 0;

    for (; i + STEP <= n; i += STEP) {
        bits codes[NARROW];

        UNROLL
        for (int j = 0; j < NARROW; j++) {
            floats x = load_floats(in + i + j * LANES);

            codes[j] = normal
                           ? int8_codes(larger_f(smaller_f(x, largest), -largest), factor, inverse)
                           : int8_codes_divided(x, factor);
        }
        store_u8((uint8_t *)out + i, codes);
    }
    mp_kernels_scalar.int8_encode(in + i, factor, out + i, n - i);
}

TARGET static void int4_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 32 <= n; i += 32) {
        bits nibbles[32 / LANES];

        unpack_nibbles(codes + i / 2, nibbles);
        UNROLL
        for (int j = 0; j < 32 / LANES; j++)
            store(out + i + j * LANES, (bits)to_floats(nibbles[j] - 8));
    }
    mp_kernels_scalar.int4_decode(codes + i / 2, out + i, n - i);
}

TARGET static void scale(const float *in, float factor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, (bits)(load_floats(in + i) * factor));
    mp_kernels_scalar.scale(in + i, factor, out + i, n - i);
}

TARGET static void scale_blocks(const float *in, const float *factors, size_t width, float *out,
                                size_t n)
{
    for (size_t i = 0; i < n; factors++) {
        size_t end = n - i < width ? n : i + width;
        float factor;

        memcpy(&factor, factors, sizeof(factor));
        for (; i + LANES <= end; i += LANES)
            store(out + i, (bits)(load_floats(in + i) * factor));
        if (i < end)
            mp_kernels_scalar.scale(in + i, factor, out + i, end - i);
        i = end;
    }
}

TARGET static void divide(const float *in, float divisor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, (bits)(load_floats(in + i) / divisor));
    mp_kernels_scalar.divide(in + i, divisor, out + i, n - i);
}

/* The larger of v and the magnitudes of n elements, whole vectors, lane by lane. */
INLINE bits larger_magnitudes(bits v, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i += LANES)
        v = larger(v, magnitude_of(load(in + i)));
    return v;
}

TARGET static uint32_t amax_bits(const float *in, size_t n)
{
    size_t whole = n - n % LANES;
    uint32_t vectors = largest_lane(larger_magnitudes(splat(0), in, whole));
    uint32_t rest = mp_kernels_scalar.amax_bits(in + whole, n - whole);

    return vectors > rest ? vectors : rest;
}

/* The amax of LANES blocks of whole vectors: their lanes are compared all at once. */
INLINE bits amax_of_blocks(const float *in, size_t width)
{
    bits v[LANES];

    UNROLL
    for (int j = 0; j < LANES; j++)
        v[j] = larger_magnitudes(magnitude_of(load(in + j * width)), in + j * width + LANES,
                                 width - LANES);
    return largest_lanes(v);
}

TARGET static void amax_blocks(const float *in, size_t width, uint32_t *amax, size_t n)
{
    size_t i = 0;

    if (width == MP_MX_BLOCK) { /* a constant length is a third faster with AVX2 */
        for (; i + LANES * MP_MX_BLOCK <= n; i += LANES * MP_MX_BLOCK, amax += LANES)
            store(amax, amax_of_blocks(in + i, MP_MX_BLOCK));
    } else if (width % LANES == 0 && width <= n / LANES) {
        for (; n - i >= LANES * width; i += LANES * width, amax += LANES)
            store(amax, amax_of_blocks(in + i, width));
    }
    for (; i < n; amax++) {
        size_t block = n - i < width ? n - i : width;
        uint32_t largest = amax_bits(in + i, block);

        memcpy(amax, &largest, sizeof(largest));
        i += block;
    }
}

TARGET static void amax_blocks_bf16(const uint16_t *in, size_t width, uint32_t *amax, size_t n)
{
    for (size_t i = 0; i < n; amax++) {
        size_t end = n - i < width ? n : i + width;
        bits v = splat(0);
        uint32_t largest;

        for (; i + 2 * LANES <= end; i += 2 * LANES)
            v = larger_halves(v, load(in + i) & (MP_BF16_ABS << 16 | MP_BF16_ABS));
        largest = largest_lane(larger(v & 0xffff, v >> 16)) << 16;
        if (i < end) {
            uint32_t rest;

            mp_kernels_scalar.amax_blocks_bf16(in + i, end - i, &rest, end - i);
            largest = rest > largest ? rest : largest;
        }
        memcpy(amax, &largest, sizeof(largest));
        i = end;
    }
}

TARGET static bool reaches(const void *in, size_t n, unsigned width, bool is_signed, uint32_t limit)
{
    const mp_lane_test test = mp_lane_test_of(width, is_signed, limit);
    const uint8_t *bytes = in;
    size_t size = n * (width / 8);
    words found = {0};
    size_t i = 0;

    for (; i + sizeof(words) <= size; i += sizeof(words)) {
        words v = (words)load(bytes + i);

        found |= ((v & ~test.top) + test.lack) & (v | test.either);
    }
    uint64_t any = 0;
    for (int j = 0; j < LANES / 2; j++)
        any |= found[j] & test.top;
    return any != 0 ||
           mp_kernels_scalar.reaches(bytes + i, (size - i) / (width / 8), width, is_signed, limit);
}

TARGET static void mxfp4_decode(const uint8_t *codes, const uint8_t *scales, float *out, size_t n)
{
    for (size_t i = 0; i + MP_MX_BLOCK <= n; i += MP_MX_BLOCK) {
        float factor = mp_ue8m0_value(scales[i / MP_MX_BLOCK]);

        e2m1_scaled16(codes + i / 2, factor, out + i);
        e2m1_scaled16(codes + i / 2 + 8, factor, out + i + 16);
    }
}

/* Up to MP_MX_GROUP blocks. */
INLINE void encode_group(const float *in, uint8_t *codes, uint8_t *scales, size_t blocks,
                         const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP];
    float multipliers[MP_MX_GROUP];

    amax_blocks(in, MP_MX_BLOCK, amax, blocks * MP_MX_BLOCK);
    mp_mx_exponents(amax, blocks, options->amax_floor, MP_E2M1_MAX, scales, multipliers);
    for (size_t i = 0; i < blocks; i++) {
        floats v[MP_MX_BLOCK / LANES];

        UNROLL
        for (int j = 0; j < MP_MX_BLOCK / LANES; j++)
            v[j] = load_floats(in + i * MP_MX_BLOCK + j * LANES) * multipliers[i];
        e2m1_encode32(v, codes + i * PACKED, options->rounding);
    }
}

TARGET static void mxfp4_encode(const float *in, uint8_t *codes, uint8_t *scales, size_t n,
                                const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;

    if (options->scale_rule == MP_SCALE_MSE) {
        mp_mxfp4_encode_mse(&KERNELS, in, codes, scales, n, options);
        return;
    }
    for (size_t i = 0; i < blocks; i += MP_MX_GROUP)
        encode_group(in + i * MP_MX_BLOCK, codes + i * PACKED, scales + i,
                     blocks - i < MP_MX_GROUP ? blocks - i : MP_MX_GROUP, options);
}

/* Blocks of nvfp4 that are taken together. */
#define NVFP4_GROUP 32

/* LANES elements of float32, or of BF16. */
INLINE floats load_source(const void *in, size_t i, bool is_bf16)
{
    return is_bf16 ? (floats)(load_u16((const uint16_t *)in + i) << 16)
                   : load_floats((const float *)in + i);
}

/* The scales of a group from the amax of its blocks, and what elements are multiplied by: 0
 * where they all become 0. False if a block has to be divided instead. */
INLINE bool nvfp4_scales(const bits amax[NVFP4_GROUP / LANES], float global, uint8_t *scales,
                         float multipliers[NVFP4_GROUP])
{
    const bits zero = splat(0);
    bits codes[NVFP4_GROUP / LANES];
    bits beyond = zero;

    UNROLL
    for (int j = 0; j < NVFP4_GROUP / LANES; j++) {
        bits code = e4m3_codes((bits)((floats)amax[j] / MP_E2M1_MAX / global));
        floats both;
        bits inverse;

        code = choose(equal(code, zero), splat(1), code);
        code = choose(equal(amax[j], zero), zero, code);
        codes[j] = code;
        both = (floats)e4m3_values(code) * global;
        inverse = (bits)(splat_f(1) / both);
        inverse = choose(equal((bits)both, zero), zero, inverse);
        beyond = count(beyond, above(inverse, splat(MP_F32_INF - 1)));
        store(multipliers + j * LANES, inverse);
    }
    UNROLL
    for (int j = 0; j < NVFP4_GROUP / LANES; j += NARROW)
        store_u8(scales + j * LANES, codes + j);
    return largest_lane(beyond) == 0;
}

/* A group; false, with nothing that counts written, where one block is not finite or has to be
 * divided. */
INLINE bool nvfp4_encode_group(const void *in, bool is_bf16, float global, uint8_t *codes,
                               uint8_t *scales)
{
    bits amax[NVFP4_GROUP / LANES];
    bits largest = splat(0);
    float multipliers[NVFP4_GROUP];

    for (int j = 0; j < NVFP4_GROUP / LANES; j++) {
        bits v[LANES];

        UNROLL
        for (int block = 0; block < LANES; block++) {
            size_t at = (size_t)(j * LANES + block) * MP_NVFP4_BLOCK;

            v[block] = magnitude_of((bits)load_source(in, at, is_bf16));
            UNROLL
            for (int i = LANES; i < MP_NVFP4_BLOCK; i += LANES)
                v[block] = larger(v[block], magnitude_of((bits)load_source(in, at + i, is_bf16)));
        }
        amax[j] = largest_lanes(v);
        largest = larger(largest, amax[j]);
    }
    if (largest_lane(largest) >= MP_F32_INF || !nvfp4_scales(amax, global, scales, multipliers))
        return false;
    for (size_t block = 0; block < NVFP4_GROUP; block += 2) {
        const float *factors = multipliers + block;
        floats v[32 / LANES];

        UNROLL
        for (int j = 0; j < 32 / LANES; j++)
            v[j] = load_source(in, block * MP_NVFP4_BLOCK + j * LANES, is_bf16) *
                   factors[j * LANES / MP_NVFP4_BLOCK];
        e2m1_encode32(v, codes + block * (MP_NVFP4_BLOCK / 2), MP_ROUND_OCP);
        for (int half = 0; half < 2; half++) /* no sign under a scale of 0 */
            if (factors[half] == 0)
                memset(codes + (block + half) * (MP_NVFP4_BLOCK / 2), 0, MP_NVFP4_BLOCK / 2);
    }
    return true;
}

TARGET static void nvfp4_encode(const float *in, float global, uint8_t *codes, uint8_t *scales,
                                size_t n)
{
    const size_t group = NVFP4_GROUP * MP_NVFP4_BLOCK;
    size_t i = 0;

    for (; i + group <= n; i += group)
        if (!nvfp4_encode_group(in + i, false, global, codes + i / 2, scales + i / MP_NVFP4_BLOCK))
            mp_kernels_scalar.nvfp4_encode(in + i, global, codes + i / 2,
                                           scales + i / MP_NVFP4_BLOCK, group);
    if (i < n) {
        float rest[NVFP4_GROUP * MP_NVFP4_BLOCK] = {0};
        uint8_t rest_codes[NVFP4_GROUP * MP_NVFP4_BLOCK / 2];
        uint8_t rest_scales[NVFP4_GROUP];

        memcpy(rest, in + i, (n - i) * sizeof(*in));
        if (!nvfp4_encode_group(rest, false, global, rest_codes, rest_scales))
            mp_kernels_scalar.nvfp4_encode(rest, global, rest_codes, rest_scales, n - i);
        memcpy(codes + i / 2, rest_codes, (n - i) / 2);
        memcpy(scales + i / MP_NVFP4_BLOCK, rest_scales, (n - i) / MP_NVFP4_BLOCK);
    }
}

TARGET static size_t nvfp4_encode_bf16(const uint16_t *in, float global, uint8_t *codes,
                                       uint8_t *scales, size_t n)
{
    const size_t group = NVFP4_GROUP * MP_NVFP4_BLOCK;
    float values[NVFP4_GROUP * MP_NVFP4_BLOCK];
    size_t i = 0;

    for (; i + group <= n; i += group) {
        if (!nvfp4_encode_group(in + i, true, global, codes + i / 2, scales + i / MP_NVFP4_BLOCK)) {
            size_t finite = mp_kernels_scalar.nvfp4_encode_bf16(in + i, global, codes + i / 2,
                                                                scales + i / MP_NVFP4_BLOCK, group);

            if (finite < group)
                return i + finite;
        }
    }
    size_t finite = 0;
    bf16_decode(in + i, values, n - i);
    while (finite < n - i && amax_bits(values + finite, MP_NVFP4_BLOCK) < MP_F32_INF)
        finite += MP_NVFP4_BLOCK;
    nvfp4_encode(values, global, codes + i / 2, scales + i / MP_NVFP4_BLOCK, finite);
    return i + finite;
}

#if !defined(OWN_ENCODE_BF16)

TARGET static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales,
                                       size_t n, const mp_quant_options *options)
{
    float values[MP_MX_GROUP * MP_MX_BLOCK];

    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&KERNELS, in, codes, scales, n, options);
    for (size_t i = 0; i < n; i += MP_MX_GROUP * MP_MX_BLOCK) {
        size_t group =
            n - i < sizeof(values) / sizeof(float) ? n - i : sizeof(values) / sizeof(float);
        size_t finite = 0;

        bf16_decode(in + i, values, group);
        while (finite < group && amax_bits(values + finite, MP_MX_BLOCK) < MP_F32_INF)
            finite += MP_MX_BLOCK;
        mxfp4_encode(values, codes + i / 2, scales + i / MP_MX_BLOCK, finite, options);
        if (finite < group)
            return i + finite;
    }
    return n;
}

#endif

#include "numeric/wide_loss.h"

const mp_kernels KERNELS = {
    .level = LEVEL,
    .bf16_decode = bf16_decode,
    .bf16_encode = bf16_encode,
    .f16_decode = f16_decode,
    .e4m3_decode = e4m3_decode,
    .e4m3_encode = e4m3_encode,
    .e4m3_encode_blocks = e4m3_encode_blocks,
    .e2m1_decode = e2m1_decode,
    .e2m1_encode = e2m1_encode,
    .ue8m0_decode = ue8m0_decode,
    .ue8m0_encode = ue8m0_encode,
    .int8_decode = int8_decode,
    .int8_encode = int8_encode,
    .int4_decode = int4_decode,
    .scale = scale,
    .scale_blocks = scale_blocks,
    .divide = divide,
    .amax_bits = amax_bits,
    .amax_blocks = amax_blocks,
    .amax_blocks_bf16 = amax_blocks_bf16,
    .reaches = reaches,
    .mxfp4_decode = mxfp4_decode,
    .mxfp4_encode = mxfp4_encode,
    .mxfp4_encode_bf16 = mxfp4_encode_bf16,
    .mxfp4_loss_bf16 = mxfp4_loss_bf16,
    .nvfp4_encode = nvfp4_encode,
    .nvfp4_encode_bf16 = nvfp4_encode_bf16,
    .error_sums = error_sums,
    .loss = loss,
};
