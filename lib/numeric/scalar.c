/* SPDX-License-Identifier: Apache-2.0 */
/* The scalar kernels: the definition of every format, one element at a time.
 *
 * They are read before they are run: what a code means and how a value rounds stands here in
 * the plainest form, and every other kernel has to give the same bits. The wide kernels also
 * call them for the ends of rows. Pointers may be unaligned, hence the loads and stores through
 * memcpy. Nothing is kept between calls, so that any number of threads may run them. */
#include <math.h>

#include "numeric/kernels.h"

const uint32_t mp_e2m1_steps[2][MP_E2M1_STEPS] = {
    [MP_ROUND_DEEPGEMM] = {0x3e800000, 0x3f400000, 0x3fa00000, 0x3fe00000, 0x40200000, 0x40600000,
                           0x40a00000},
    [MP_ROUND_OCP] = {0x3e800000, 0x3f3fffff, 0x3fa00000, 0x3fdfffff, 0x40200000, 0x405fffff,
                      0x40a00000},
};

static uint16_t load_u16(const void *in, size_t i)
{
    const unsigned char *bytes = in;
    uint16_t value;

    memcpy(&value, bytes + i * sizeof(value), sizeof(value));
    return value;
}

static uint32_t load_bits(const void *in, size_t i)
{
    const unsigned char *bytes = in;
    uint32_t value;

    memcpy(&value, bytes + i * sizeof(value), sizeof(value));
    return value;
}

static float load_f32(const void *in, size_t i)
{
    return mp_f32_from_bits(load_bits(in, i));
}

static void store_u16(void *out, size_t i, uint16_t value)
{
    unsigned char *bytes = out;

    memcpy(bytes + i * sizeof(value), &value, sizeof(value));
}

static void store_f32(void *out, size_t i, float value)
{
    unsigned char *bytes = out;

    memcpy(bytes + i * sizeof(value), &value, sizeof(value));
}

static void bf16_decode(const uint16_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, mp_f32_from_bits((uint32_t)load_u16(in, i) << 16));
}

/* To nearest, ties to even; a NaN keeps its upper bits and becomes quiet. */
static uint16_t bf16_code(uint32_t bits)
{
    if ((bits & MP_F32_ABS) > MP_F32_INF)
        return (uint16_t)(bits >> 16 | 0x40);
    /* Add half a step less one, plus one if the result would be odd: ties go to even. A carry out
     * of the mantissa goes into the exponent, where it belongs, up to infinity. */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void bf16_encode(const float *in, uint16_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_u16(out, i, bf16_code(load_bits(in, i)));
}

/* IEEE binary16: s eeeee mmmmmmmmmm, bias 15. A normal number only moves its bits and swaps the
 * bias. */
static float f16_value(uint16_t code)
{
    uint32_t sign = (uint32_t)(code & 0x8000) << 16;
    uint32_t magnitude = code & 0x7fff;

    if (magnitude > 0x7c00)
        return mp_f32_from_bits(sign | MP_F32_NAN | (magnitude & 0x3ff) << 13);
    if (magnitude == 0x7c00)
        return mp_f32_from_bits(sign | MP_F32_INF);
    if (magnitude < 0x400) /* subnormal: steps of 2^-24 */
        return mp_f32_from_bits(sign | mp_f32_bits((float)magnitude * 0x1p-24f));
    return mp_f32_from_bits(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

static void f16_decode(const uint16_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, f16_value(load_u16(in, i)));
}

/* OFP8 E4M3: s eeee mmm, bias 7. It has no infinity, and only the code of all ones is NaN. */
static float e4m3_value(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24;
    uint32_t magnitude = code & 0x7f;

    if (magnitude == 0x7f)
        return mp_f32_from_bits(sign | MP_F32_NAN);
    if (magnitude < 8) /* subnormal: steps of 2^-9 */
        return mp_f32_from_bits(sign | mp_f32_bits((float)magnitude * 0x1p-9f));
    return mp_f32_from_bits(sign | ((magnitude << 20) + ((127u - 7u) << 23)));
}

static void e4m3_decode(const uint8_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, e4m3_value(in[i]));
}

/* To nearest, ties to even; beyond 448 is 448, a NaN is 0x7f. */
static uint8_t e4m3_code(uint32_t bits)
{
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    uint32_t magnitude = bits & MP_F32_ABS;
    uint32_t code;

    if (magnitude > MP_F32_INF)
        return sign | 0x7f;
    if (magnitude < mp_f32_bits(0x1p-6f)) {
        /* Adding 2^14 leaves steps of 2^-9 in the sum, so the addition rounds. */
        float sum = mp_f32_from_bits(magnitude) + 0x1p14f;

        code = mp_f32_bits(sum) - mp_f32_bits(0x1p14f);
    } else {
        /* As for BF16, but with three bits of mantissa. Then swap float32's bias for that of E4M3,
         * 7. */
        code = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
        code -= (127 - 7) << 3;
    }
    return sign | (uint8_t)(code > 0x7e ? 0x7e : code);
}

static void e4m3_encode(const float *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = e4m3_code(load_bits(in, i));
}

static void e4m3_encode_blocks(const float *in, const float *factors, size_t width, uint8_t *out,
                               size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x = load_f32(in, i) * load_f32(factors, i / width);

        out[i] = e4m3_code(mp_f32_bits(x));
    }
}

/* OCP MX 1.0 E2M1: s ee m, bias 1. With sixteen values, the table is the definition. */
static float e2m1_value(unsigned code)
{
    static const float values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

    return values[code];
}

static void e2m1_decode(const uint8_t *codes, float *out, size_t n)
{
    for (size_t i = 0; i < n / 2; i++) {
        store_f32(out, 2 * i, e2m1_value(codes[i] & 15));
        store_f32(out, 2 * i + 1, e2m1_value(codes[i] >> 4));
    }
}

/* Counts the midpoints below. That takes no division and no rounding mode, and a NaN is above
 * all. */
static unsigned e2m1_code(uint32_t bits, mp_rounding rounding)
{
    uint32_t magnitude = bits & MP_F32_ABS;
    unsigned sign = bits >> 28 & 8;
    unsigned code = 0;

    for (int i = 0; i < MP_E2M1_STEPS; i++)
        code += magnitude > mp_e2m1_steps[rounding][i];
    /* DeepGEMM's helper has no -0; the hardware conversion keeps it. */
    if (rounding == MP_ROUND_DEEPGEMM && code == 0)
        return 0;
    return sign | code;
}

static void e2m1_encode(const float *in, uint8_t *codes, size_t n, mp_rounding rounding)
{
    for (size_t i = 0; i < n / 2; i++) {
        unsigned low = e2m1_code(load_bits(in, 2 * i), rounding);
        unsigned high = e2m1_code(load_bits(in, 2 * i + 1), rounding);

        codes[i] = (uint8_t)(high << 4 | low);
    }
}

static void ue8m0_decode(const uint8_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, mp_ue8m0_value(in[i]));
}

static void ue8m0_encode(const float *in, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = mp_ue8m0_ceil(load_f32(in, i));
}

static void int8_decode(const int8_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, in[i]);
}

/* To nearest, ties to even, for |x| < 2^22. Between 2^23 and 2^24 float32 has steps of one, so the
 * sum has no room for a fraction. Compilers keep this, as -ffast-math is off. */
static float round_to_even(float x)
{
    const float large = 0x1.8p23f;

    return (x + large) - large;
}

/* Symmetric, without -128, so that negating a matrix only flips the signs of its codes. */
static int8_t int8_code(float x)
{
    if (x >= 127)
        return 127;
    return (int8_t)(x <= -127 ? -127 : round_to_even(x));
}

static void int8_encode(const float *in, float factor, int8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = int8_code(load_f32(in, i) / factor);
}

/* Stored plus 8, as compressed-tensors packs them. */
static void int4_decode(const uint8_t *codes, float *out, size_t n)
{
    for (size_t i = 0; i < n / 2; i++) {
        store_f32(out, 2 * i, (float)((codes[i] & 15) - 8));
        store_f32(out, 2 * i + 1, (float)((codes[i] >> 4) - 8));
    }
}

static void scale(const float *in, float factor, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, load_f32(in, i) * factor);
}

static void scale_blocks(const float *in, const float *factors, size_t width, float *out, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t block = n - i < width ? n - i : width;

        scale(in + i, load_f32(factors++, 0), out + i, block);
        i += block;
    }
}

static void divide(const float *in, float divisor, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        store_f32(out, i, load_f32(in, i) / divisor);
}

/* Compares as integers, since magnitudes of floats are in the order of their bits. A NaN comes out
 * on top instead of getting lost in a comparison. */
static uint32_t amax_bits(const float *in, size_t n)
{
    uint32_t amax = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = load_bits(in, i) & MP_F32_ABS;

        amax = magnitude > amax ? magnitude : amax;
    }
    return amax;
}

static void amax_blocks(const float *in, size_t width, uint32_t *amax, size_t n)
{
    for (size_t i = 0; i < n; amax++) {
        size_t block = n - i < width ? n - i : width;
        uint32_t largest = amax_bits(in + i, block);

        memcpy(amax, &largest, sizeof(largest));
        i += block;
    }
}

static void amax_blocks_bf16(const uint16_t *in, size_t width, uint32_t *amax, size_t n)
{
    for (size_t i = 0; i < n; amax++) {
        size_t end = n - i < width ? n : i + width;
        uint32_t largest = 0;

        for (; i < end; i++) {
            uint32_t magnitude = (uint32_t)(load_u16(in, i) & MP_BF16_ABS) << 16;

            largest = magnitude > largest ? magnitude : largest;
        }
        memcpy(amax, &largest, sizeof(largest));
    }
}

static bool reaches(const void *in, size_t n, unsigned bits, bool is_signed, uint32_t limit)
{
    const mp_lane_test test = mp_lane_test_of(bits, is_signed, limit);
    const unsigned char *bytes = in;
    /* Eight bytes at a time. The last word is padded with zeros, which reach no limit above 0. */
    size_t size = n * (bits / 8);
    uint64_t found = 0;

    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
        uint64_t word = 0;

        memcpy(&word, bytes + i, size - i < sizeof(word) ? size - i : sizeof(word));
        found |= mp_lanes_that_reach(word, &test);
    }
    return found != 0;
}

static void mxfp4_decode(const uint8_t *codes, const uint8_t *scales, float *out, size_t n)
{
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++) {
        float values[MP_MX_BLOCK];

        e2m1_decode(codes + block * (MP_MX_BLOCK / 2), values, MP_MX_BLOCK);
        scale(values, mp_ue8m0_value(scales[block]), out + block * MP_MX_BLOCK, MP_MX_BLOCK);
    }
}

/* Codes of in * 2^(127-e): the multiplier is a power of two, so that only the code rounds. */
static void mxfp4_encode_block(const float *in, uint8_t *codes, uint8_t *exponent,
                               const mp_quant_options *options)
{
    float values[MP_MX_BLOCK];

    *exponent = mp_mx_exponent(amax_bits(in, MP_MX_BLOCK), options->amax_floor, MP_E2M1_MAX);
    scale(in, mp_mx_multiplier(*exponent), values, MP_MX_BLOCK);
    e2m1_encode(values, codes, MP_MX_BLOCK, options->rounding);
}

static void mxfp4_encode(const float *in, uint8_t *codes, uint8_t *scales, size_t n,
                         const mp_quant_options *options)
{
    if (options->scale_rule == MP_SCALE_MSE) {
        mp_mxfp4_encode_mse(&mp_kernels_scalar, in, codes, scales, n, options);
        return;
    }
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        mxfp4_encode_block(in + block * MP_MX_BLOCK, codes + block * (MP_MX_BLOCK / 2),
                           scales + block, options);
}

/* Stops at a block that is not finite. The caller knows coordinates and can name the element. */
static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales, size_t n,
                                const mp_quant_options *options)
{
    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&mp_kernels_scalar, in, codes, scales, n, options);
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++) {
        float values[MP_MX_BLOCK];

        bf16_decode(in + block * MP_MX_BLOCK, values, MP_MX_BLOCK);
        if (amax_bits(values, MP_MX_BLOCK) >= MP_F32_INF)
            return block * MP_MX_BLOCK;
        mxfp4_encode_block(values, codes + block * (MP_MX_BLOCK / 2), scales + block, options);
    }
    return n;
}

/* A live block never gets the scale 0: code 1 is 2^-9. */
static uint8_t nvfp4_scale(uint32_t amax_bits, float global)
{
    /* Two divisions, each rounded: dividing by the product of 6 and global gives other codes. */
    uint8_t code = e4m3_code(mp_f32_bits(mp_f32_from_bits(amax_bits) / MP_E2M1_MAX / global));

    if (amax_bits == 0)
        return 0;
    return code == 0 ? 1 : code;
}

static void nvfp4_encode_block(const float *in, float global, uint8_t *codes, uint8_t *block_scale)
{
    float values[MP_NVFP4_BLOCK];

    *block_scale = nvfp4_scale(amax_bits(in, MP_NVFP4_BLOCK), global);
    float both = e4m3_value(*block_scale) * global;
    float inverse = 1 / both;

    if (both == 0)
        memset(values, 0, sizeof(values));
    else if (isfinite(inverse))
        scale(in, inverse, values, MP_NVFP4_BLOCK);
    else /* both is a small subnormal */
        divide(in, both, values, MP_NVFP4_BLOCK);
    e2m1_encode(values, codes, MP_NVFP4_BLOCK, MP_ROUND_OCP);
}

static void nvfp4_encode(const float *in, float global, uint8_t *codes, uint8_t *scales, size_t n)
{
    for (size_t i = 0; i < n; i += MP_NVFP4_BLOCK)
        nvfp4_encode_block(in + i, global, codes + i / 2, scales + i / MP_NVFP4_BLOCK);
}

static size_t nvfp4_encode_bf16(const uint16_t *in, float global, uint8_t *codes, uint8_t *scales,
                                size_t n)
{
    for (size_t i = 0; i < n; i += MP_NVFP4_BLOCK) {
        float values[MP_NVFP4_BLOCK];

        bf16_decode(in + i, values, MP_NVFP4_BLOCK);
        if (amax_bits(values, MP_NVFP4_BLOCK) >= MP_F32_INF)
            return i;
        nvfp4_encode_block(values, global, codes + i / 2, scales + i / MP_NVFP4_BLOCK);
    }
    return n;
}

/* One block of a group, under the multiplier of the group's largest exponent. */
static void add_block_loss(const uint16_t *in, const uint8_t *codes, uint8_t e, uint8_t largest,
                           float error[MP_MX_BLOCK], float signal[MP_MX_BLOCK], mp_loss *loss)
{
    float values[MP_MX_BLOCK];

    e2m1_decode(codes, values, MP_MX_BLOCK);
    for (size_t i = 0; i < MP_MX_BLOCK; i++) {
        uint16_t bits = load_u16(in, i);
        float x = mp_f32_from_bits((uint32_t)bits << 16) * mp_mx_multiplier(largest);
        float difference = values[i] * mp_loss_ratio(e, largest) - x;

        /* Fused by definition, as vector units do it: the bits of the sums have to agree. */
        error[i] = fmaf(difference, difference, error[i]);
        signal[i] = fmaf(x, x, signal[i]);
        loss->saturated += (bits & MP_BF16_ABS) > mp_loss_limit(e);
        loss->flushed += (bits & MP_BF16_ABS) != 0 && values[i] == 0;
    }
}

/* Scales the whole group by its largest exponent, so that squares neither overflow nor vanish in
 * float32 where it matters. */
static void add_group_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                           size_t blocks, mp_loss *loss)
{
    uint8_t largest = mp_loss_exponent(scales, blocks);
    float error[MP_MX_BLOCK] = {0};
    float signal[MP_MX_BLOCK] = {0};

    for (size_t i = 0; i < blocks; i++)
        add_block_loss(in + i * MP_MX_BLOCK, codes + i * (MP_MX_BLOCK / 2), scales[i], largest,
                       error, signal, loss);
    mp_loss_add_group(loss, error, signal, largest);
}

static void mxfp4_loss_bf16(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                            size_t n, double sums[2], uint64_t counts[2])
{
    mp_mxfp4_loss(add_group_loss, in, codes, scales, n, sums, counts);
}

void mp_add_squares(const float *a, const float *b, size_t n, double error[8], double signal[8])
{
    for (size_t i = 0; i < n; i++) {
        double original = load_f32(b, i);
        double difference = load_f32(a, i) - original;

        error[i % 8] += difference * difference;
        signal[i % 8] += original * original;
    }
}

static void error_sums(const float *a, const float *b, size_t n, double sums[2])
{
    double error[8] = {0};
    double signal[8] = {0};

    mp_add_squares(a, b, n, error, signal);
    sums[0] += mp_sum_lanes(error);
    sums[1] += mp_sum_lanes(signal);
}

/* An element of what loss reads. */
static float element(mp_dtype dtype, const void *in, size_t i)
{
    const uint8_t *bytes = in;

    switch (dtype) {
    case MP_F4:
        return e2m1_value(bytes[i / 2] >> i % 2 * 4 & 15);
    case MP_F8_E4M3:
        return e4m3_value(bytes[i]);
    case MP_I8:
        return (float)(int8_t)bytes[i];
    case MP_BF16:
        return mp_f32_from_bits((uint32_t)load_u16(in, i) << 16);
    default:
        return load_f32(in, i);
    }
}

/* Saturated means beyond the block's limit, and flushed means zero now but not before, in every
 * scheme. */
static void loss(mp_dtype from, const void *original, mp_dtype to, const void *codes,
                 const float *scales, float global, const float *limits, size_t width, size_t n,
                 mp_loss *sum)
{
    for (size_t i = 0; i < n; i++) {
        float x = element(from, original, i);
        float value = element(to, codes, i) * load_f32(scales, i / width);

        if (to == MP_F4 || to == MP_F32)
            value *= global;
        double difference = (double)value - x;

        sum->error[i % 8] += difference * difference;
        sum->signal[i % 8] += (double)x * x;
        sum->saturated += fabsf(x) > load_f32(limits, i / width);
        sum->flushed += x != 0 && value == 0;
    }
}

const mp_kernels mp_kernels_scalar = {
    .level = "scalar",
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
