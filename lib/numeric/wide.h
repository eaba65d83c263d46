/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/wide.h - the kernels, written once in vectors and compiled once for each instruction
 * set, by avx2.c, avx512.c and neon.c. What the words mean stands in lanes.h.
 *
 * A kernel takes whole vectors, or NARROW of them, as long as they last, and leaves the rest to
 * the scalar kernel, which defines the bits. Nothing is kept between calls and nothing is
 * written but the output, so that any number of threads may run them.
 *
 * Before this header come KERNELS, the name of the table, and LEVEL, what it is called. Where
 * OWN_ENCODE_BF16 and OWN_GROUP_LOSS are defined, so are mxfp4_encode_bf16 and add_group_loss:
 * they gain too much from what only one instruction set has. */
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

INLINE bits e4m3_values(bits codes)
{
    bits magnitude = codes & 0x7f;
    bits normal = (magnitude << 20) + ((127u - 7u) << 23);
    bits subnormal = (bits)(to_floats(magnitude) * 0x1p-9f);
    bits value = choose(above(magnitude, splat(7)), normal, subnormal);

    value = choose(equal(magnitude, splat(0x7f)), splat(MP_F32_NAN), value);
    return value | (codes & 0x80) << 24;
}

TARGET static void e4m3_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store(out + i, e4m3_values(load_u8(in + i)));
    mp_kernels_scalar.e4m3_decode(in + i, out + i, n - i);
}

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

TARGET static void e2m1_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + MP_MX_BLOCK <= n; i += MP_MX_BLOCK)
        e2m1_decode32(codes + i / 2, 1.0f, out + i);
    mp_kernels_scalar.e2m1_decode(codes + i / 2, out + i, n - i);
}

TARGET static void e2m1_encode(const float *in, uint8_t *codes, size_t n, mp_rounding rounding)
{
    size_t i = 0;

    for (; i + MP_MX_BLOCK <= n; i += MP_MX_BLOCK)
        e2m1_encode32(in + i, 1.0f, codes + i / 2, rounding);
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

INLINE bits int8_codes(floats quotient)
{
    floats x = larger_f(smaller_f(quotient, splat_f(127)), splat_f(-127));

    return to_ints(x) & 0xff;
}

TARGET static void int8_encode(const float *in, float factor, int8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + STEP <= n; i += STEP) {
        bits codes[NARROW];

        UNROLL
        for (int j = 0; j < NARROW; j++)
            codes[j] = int8_codes(load_floats(in + i + j * LANES) / factor);
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

    if (width == MP_MX_BLOCK)
        for (; i + LANES * MP_MX_BLOCK <= n; i += LANES * MP_MX_BLOCK, amax += LANES)
            store(amax, amax_of_blocks(in + i, MP_MX_BLOCK));
    else if (width % LANES == 0)
        for (; n - i >= LANES * width; i += LANES * width, amax += LANES)
            store(amax, amax_of_blocks(in + i, width));
    for (; i < n; amax++) {
        size_t block = n - i < width ? n - i : width;
        uint32_t largest = amax_bits(in + i, block);

        memcpy(amax, &largest, sizeof(largest));
        i += block;
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
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        e2m1_decode32(codes + block * PACKED, mp_ue8m0_value(scales[block]),
                      out + block * MP_MX_BLOCK);
}

/* Up to MP_MX_GROUP blocks. */
INLINE void encode_group(const float *in, uint8_t *codes, uint8_t *scales, size_t blocks,
                         const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP];
    float multipliers[MP_MX_GROUP];

    amax_blocks(in, MP_MX_BLOCK, amax, blocks * MP_MX_BLOCK);
    mp_mx_exponents(amax, blocks, options->amax_floor, MP_E2M1_MAX, scales, multipliers);
    for (size_t i = 0; i < blocks; i++)
        e2m1_encode32(in + i * MP_MX_BLOCK, multipliers[i], codes + i * PACKED, options->rounding);
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

#if !defined(OWN_GROUP_LOSS)

/* sums += v^2, lane by lane */
INLINE void add_squared(float sums[LANES], floats v)
{
    store(sums, (bits)fma_f(v, v, load_floats(sums)));
}

TARGET static void add_group_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                  size_t blocks, mp_loss *loss)
{
    const bits zero = splat(0);
    uint8_t largest = mp_loss_exponent(scales, blocks);
    float multiplier = mp_mx_multiplier(largest);
    float error[MP_MX_BLOCK] = {0};
    float signal[MP_MX_BLOCK] = {0};
    bits saturated = zero;
    bits flushed = zero;

    for (size_t i = 0; i < blocks; i++, in += MP_MX_BLOCK) {
        float ratio = mp_loss_ratio(scales[i], largest);
        bits limit = splat(mp_loss_limit(scales[i]) << 16);
        float values[MP_MX_BLOCK];

        e2m1_decode32(codes + i * PACKED, 1.0f, values);
        for (int at = 0; at < MP_MX_BLOCK; at += LANES) {
            bits original = load_u16(in + at) << 16;
            bits magnitude = magnitude_of(original);
            bits value = load(values + at);
            floats x = (floats)original * multiplier;
            mask no_code = equal(magnitude_of(value), zero);

            add_squared(error + at, (floats)value * ratio - x);
            add_squared(signal + at, x);
            saturated = count(saturated, above(magnitude, limit));
            flushed = count(flushed, above(choose(no_code, magnitude, zero), zero));
        }
    }
    loss->saturated += sum_of_lanes(saturated);
    loss->flushed += sum_of_lanes(flushed);
    mp_loss_add_group(loss, error, signal, largest);
}

#endif

TARGET static void mxfp4_loss_bf16(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                                   size_t n, double sums[2], uint64_t counts[2])
{
    mp_mxfp4_loss(add_group_loss, in, codes, scales, n, sums, counts);
}

/* Vectors of the eight lanes of a sum. */
#define SUM_VECTORS (16 / LANES)

TARGET static void error_sums(const float *a, const float *b, size_t n, double sums[2])
{
    doubles error[SUM_VECTORS] = {{0}};
    doubles signal[SUM_VECTORS] = {{0}};
    double error_lanes[8];
    double signal_lanes[8];
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        UNROLL
        for (int j = 0; j < SUM_VECTORS; j++) {
            doubles original = load_doubles(b + i + j * (LANES / 2));
            doubles difference = load_doubles(a + i + j * (LANES / 2)) - original;

            error[j] += difference * difference;
            signal[j] += original * original;
        }
    }
    memcpy(error_lanes, error, sizeof(error));
    memcpy(signal_lanes, signal, sizeof(signal));
    mp_add_squares(a + i, b + i, n - i, error_lanes, signal_lanes);
    sums[0] += mp_sum_lanes(error_lanes);
    sums[1] += mp_sum_lanes(signal_lanes);
}

TARGET static void count_lost(const float *original, const float *decoded, size_t n,
                              const float *limits, size_t width, uint64_t counts[2])
{
    const bits zero = splat(0);
    bits saturated = zero;
    bits flushed = zero;

    for (size_t i = 0; i < n; limits++) {
        size_t end = n - i < width ? n : i + width;
        uint32_t limit;

        memcpy(&limit, limits, sizeof(limit));
        for (; i + LANES <= end; i += LANES) {
            bits before = magnitude_of(load(original + i));
            mask no_value = equal(magnitude_of(load(decoded + i)), zero);

            saturated = count(saturated, above(before, splat(limit)));
            flushed = count(flushed, above(choose(no_value, before, zero), zero));
        }
        if (i < end)
            mp_kernels_scalar.count_lost(original + i, decoded + i, end - i, limits, width, counts);
        i = end;
    }
    counts[0] += sum_of_lanes(saturated);
    counts[1] += sum_of_lanes(flushed);
}

const mp_kernels KERNELS = {
    .level = LEVEL,
    .bf16_decode = bf16_decode,
    .bf16_encode = bf16_encode,
    .f16_decode = f16_decode,
    .e4m3_decode = e4m3_decode,
    .e4m3_encode = e4m3_encode,
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
    .reaches = reaches,
    .mxfp4_decode = mxfp4_decode,
    .mxfp4_encode = mxfp4_encode,
    .mxfp4_encode_bf16 = mxfp4_encode_bf16,
    .mxfp4_loss_bf16 = mxfp4_loss_bf16,
    .error_sums = error_sums,
    .count_lost = count_lost,
};
