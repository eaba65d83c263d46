/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for aarch64, where NEON is always there. Ends of runs that do
 * not fill the vectors of one step go to the scalar kernels. */
#include "numeric/kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define PACKED (MP_MX_BLOCK / 2)

/* Loads and stores go through bytes: the pointers may be unaligned. */
static inline uint32x4_t load_bits(const float *in)
{
    return vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)in));
}

static inline float32x4_t load_f32(const float *in)
{
    return vreinterpretq_f32_u32(load_bits(in));
}

static inline uint16x8_t load_halves(const uint16_t *in)
{
    return vreinterpretq_u16_u8(vld1q_u8((const uint8_t *)in));
}

static inline void store_bits(float *out, uint32x4_t bits)
{
    vst1q_u8((uint8_t *)out, vreinterpretq_u8_u32(bits));
}

static inline void store_f32(float *out, float32x4_t values)
{
    store_bits(out, vreinterpretq_u32_f32(values));
}

static inline uint32x4_t magnitude_of(uint32x4_t bits)
{
    return vandq_u32(bits, vdupq_n_u32(MP_F32_ABS));
}

/* Lanes of values 0..255 as bytes, in order. */
static inline uint8x8_t pack_bytes(uint32x4_t low, uint32x4_t high)
{
    return vmovn_u16(vcombine_u16(vmovn_u32(low), vmovn_u32(high)));
}

static inline uint16x8_t load_bytes(const uint8_t *in)
{
    return vmovl_u8(vld1_u8(in));
}

static void bf16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        uint16x8_t codes = load_halves(in + i);

        store_bits(out + i, vshll_n_u16(vget_low_u16(codes), 16));
        store_bits(out + i + 4, vshll_n_u16(vget_high_u16(codes), 16));
    }
    mp_kernels_scalar.bf16_decode(in + i, out + i, n - i);
}

static inline uint16x4_t bf16_codes(uint32x4_t bits)
{
    uint32x4_t upper = vshrq_n_u32(bits, 16);
    uint32x4_t odd = vandq_u32(upper, vdupq_n_u32(1));
    uint32x4_t sum = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t nan = vcgtq_u32(magnitude_of(bits), vdupq_n_u32(MP_F32_INF));
    uint32x4_t quiet = vorrq_u32(upper, vdupq_n_u32(0x40));

    return vmovn_u32(vbslq_u32(nan, quiet, vshrq_n_u32(sum, 16)));
}

static void bf16_encode(const float *in, uint16_t *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        uint16x8_t codes =
            vcombine_u16(bf16_codes(load_bits(in + i)), bf16_codes(load_bits(in + i + 4)));

        vst1q_u8((uint8_t *)(out + i), vreinterpretq_u8_u16(codes));
    }
    mp_kernels_scalar.bf16_encode(in + i, out + i, n - i);
}

static void f16_decode(const uint16_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        float16x8_t codes = vreinterpretq_f16_u16(load_halves(in + i));

        store_f32(out + i, vcvt_f32_f16(vget_low_f16(codes)));
        store_f32(out + i + 4, vcvt_high_f32_f16(codes));
    }
    mp_kernels_scalar.f16_decode(in + i, out + i, n - i);
}

static inline uint32x4_t e4m3_values(uint16x4_t narrow)
{
    uint32x4_t codes = vmovl_u16(narrow);
    uint32x4_t sign = vshlq_n_u32(vandq_u32(codes, vdupq_n_u32(0x80)), 24);
    uint32x4_t magnitude = vandq_u32(codes, vdupq_n_u32(0x7f));
    uint32x4_t bits = vaddq_u32(vshlq_n_u32(magnitude, 20), vdupq_n_u32((127 - 7) << 23));
    float32x4_t steps = vmulq_n_f32(vcvtq_f32_u32(magnitude), 0x1p-9f);
    uint32x4_t subnormal = vcltq_u32(magnitude, vdupq_n_u32(8));
    uint32x4_t nan = vceqq_u32(magnitude, vdupq_n_u32(0x7f));

    bits = vbslq_u32(subnormal, vreinterpretq_u32_f32(steps), bits);
    bits = vbslq_u32(nan, vdupq_n_u32(MP_F32_NAN), bits);
    return vorrq_u32(bits, sign);
}

static void e4m3_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        uint16x8_t codes = load_bytes(in + i);

        store_bits(out + i, e4m3_values(vget_low_u16(codes)));
        store_bits(out + i + 4, e4m3_values(vget_high_u16(codes)));
    }
    mp_kernels_scalar.e4m3_decode(in + i, out + i, n - i);
}

static inline uint32x4_t e4m3_codes(uint32x4_t bits)
{
    uint32x4_t sign = vandq_u32(vshrq_n_u32(bits, 24), vdupq_n_u32(0x80));
    uint32x4_t magnitude = magnitude_of(bits);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(magnitude, 20), vdupq_n_u32(1));
    uint32x4_t sum = vaddq_u32(magnitude, vaddq_u32(odd, vdupq_n_u32(0x7ffff)));
    uint32x4_t codes = vsubq_u32(vshrq_n_u32(sum, 20), vdupq_n_u32((127 - 7) << 3));
    float32x4_t steps = vaddq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(0x1p14f));
    uint32x4_t rounded = vsubq_u32(vreinterpretq_u32_f32(steps), vdupq_n_u32(0x46800000));
    uint32x4_t subnormal = vcltq_u32(magnitude, vdupq_n_u32(0x3c800000)); /* below 2^-6 */
    uint32x4_t nan = vcgtq_u32(magnitude, vdupq_n_u32(MP_F32_INF));

    codes = vminq_u32(vbslq_u32(subnormal, rounded, codes), vdupq_n_u32(0x7e));
    return vorrq_u32(vbslq_u32(nan, vdupq_n_u32(0x7f), codes), sign);
}

static void e4m3_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        vst1_u8(out + i,
                pack_bytes(e4m3_codes(load_bits(in + i)), e4m3_codes(load_bits(in + i + 4))));
    mp_kernels_scalar.e4m3_encode(in + i, out + i, n - i);
}

/* Values of 16 codes, one a byte, times a factor. Only the upper half of these
 * float32 is not zero, so that two byte tables look it up. */
static inline void e2m1_values(uint8x16_t codes, float32x4_t factor, float *out)
{
    static const uint8_t upper[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                      0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
    static const uint8_t lower[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0,
                                      0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
    uint8x16_t high = vqtbl1q_u8(vld1q_u8(upper), codes);
    uint8x16_t low = vqtbl1q_u8(vld1q_u8(lower), codes);
    uint16x8_t halves[2] = {vreinterpretq_u16_u8(vzip1q_u8(low, high)),
                            vreinterpretq_u16_u8(vzip2q_u8(low, high))};

    for (int i = 0; i < 2; i++) {
        uint32x4_t first = vshll_n_u16(vget_low_u16(halves[i]), 16);
        uint32x4_t second = vshll_n_u16(vget_high_u16(halves[i]), 16);

        store_f32(out + 8 * i, vmulq_f32(vreinterpretq_f32_u32(first), factor));
        store_f32(out + 8 * i + 4, vmulq_f32(vreinterpretq_f32_u32(second), factor));
    }
}

/* out[0..31] = value of code * factor */
static inline void e2m1_decode32(const uint8_t *codes, float factor, float *out)
{
    uint8x16_t bytes = vld1q_u8(codes);
    uint8x16_t low = vandq_u8(bytes, vdupq_n_u8(15));
    uint8x16_t high = vshrq_n_u8(bytes, 4);

    e2m1_values(vzip1q_u8(low, high), vdupq_n_f32(factor), out);
    e2m1_values(vzip2q_u8(low, high), vdupq_n_f32(factor), out + 16);
}

static void e2m1_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 32 <= n; i += 32)
        e2m1_decode32(codes + i / 2, 1.0f, out + i);
    mp_kernels_scalar.e2m1_decode(codes + i / 2, out + i, n - i);
}

static inline uint32x4_t e2m1_codes(float32x4_t in, mp_rounding rounding)
{
    uint32x4_t bits = vreinterpretq_u32_f32(in);
    uint32x4_t magnitude = magnitude_of(bits);
    uint32x4_t sign = vandq_u32(vshrq_n_u32(bits, 28), vdupq_n_u32(8));
    uint32x4_t code = vdupq_n_u32(0);

    for (int i = 0; i < MP_E2M1_STEPS; i++) {
        /* all ones, which is -1, where above */
        uint32x4_t above = vcgtq_u32(magnitude, vdupq_n_u32(mp_e2m1_steps[rounding][i]));

        code = vsubq_u32(code, above);
    }
    if (rounding == MP_ROUND_DEEPGEMM)
        sign = vandq_u32(sign, vtstq_u32(code, code));
    return vorrq_u32(code, sign);
}

/* Encodes 16 elements times a factor into 8 bytes. */
static inline void e2m1_encode16(const float *in, float factor, uint8_t *codes,
                                 mp_rounding rounding)
{
    uint32x4_t v[4];

    for (int i = 0; i < 4; i++)
        v[i] = e2m1_codes(vmulq_n_f32(load_f32(in + 4 * i), factor), rounding);

    uint8x8_t first = pack_bytes(v[0], v[1]);
    uint8x8_t second = pack_bytes(v[2], v[3]);
    uint8x8_t even = vuzp1_u8(first, second);
    uint8x8_t odd = vuzp2_u8(first, second);
    vst1_u8(codes, vorr_u8(even, vshl_n_u8(odd, 4)));
}

static void e2m1_encode(const float *in, uint8_t *codes, size_t n, mp_rounding rounding)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        e2m1_encode16(in + i, 1.0f, codes + i / 2, rounding);
    mp_kernels_scalar.e2m1_encode(in + i, codes + i / 2, n - i, rounding);
}

static inline uint32x4_t ue8m0_values(uint16x4_t narrow)
{
    uint32x4_t codes = vmovl_u16(narrow);
    uint32x4_t smallest = vceqq_u32(codes, vdupq_n_u32(0));
    uint32x4_t nan = vceqq_u32(codes, vdupq_n_u32(255));
    uint32x4_t bits = vshlq_n_u32(codes, 23);

    bits = vbslq_u32(smallest, vdupq_n_u32(0x00400000), bits);
    return vbslq_u32(nan, vdupq_n_u32(MP_F32_NAN), bits);
}

static void ue8m0_decode(const uint8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        uint16x8_t codes = load_bytes(in + i);

        store_bits(out + i, ue8m0_values(vget_low_u16(codes)));
        store_bits(out + i + 4, ue8m0_values(vget_high_u16(codes)));
    }
    mp_kernels_scalar.ue8m0_decode(in + i, out + i, n - i);
}

static inline uint32x4_t ue8m0_codes(uint32x4_t bits)
{
    /* A mantissa that is not zero carries into the exponent. */
    uint32x4_t sum = vaddq_u32(magnitude_of(bits), vdupq_n_u32(MP_F32_MANTISSA));
    uint32x4_t e = vshrq_n_u32(sum, 23);

    return vminq_u32(vmaxq_u32(e, vdupq_n_u32(1)), vdupq_n_u32(254));
}

static void ue8m0_encode(const float *in, uint8_t *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        vst1_u8(out + i,
                pack_bytes(ue8m0_codes(load_bits(in + i)), ue8m0_codes(load_bits(in + i + 4))));
    mp_kernels_scalar.ue8m0_encode(in + i, out + i, n - i);
}

static void int8_decode(const int8_t *in, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        int16x8_t codes = vmovl_s8(vld1_s8(in + i));

        store_f32(out + i, vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))));
        store_f32(out + i + 4, vcvtq_f32_s32(vmovl_high_s16(codes)));
    }
    mp_kernels_scalar.int8_decode(in + i, out + i, n - i);
}

static inline int16x4_t int8_codes(const float *in, float32x4_t factor)
{
    float32x4_t x = vdivq_f32(load_f32(in), factor);

    x = vmaxq_f32(vminq_f32(x, vdupq_n_f32(127)), vdupq_n_f32(-127));
    return vmovn_s32(vcvtnq_s32_f32(x));
}

static void int8_encode(const float *in, float factor, int8_t *out, size_t n)
{
    float32x4_t divisor = vdupq_n_f32(factor);
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        vst1_s8(out + i, vmovn_s16(vcombine_s16(int8_codes(in + i, divisor),
                                                int8_codes(in + i + 4, divisor))));
    mp_kernels_scalar.int8_encode(in + i, factor, out + i, n - i);
}

/* Values of eight codes, one a byte. */
static inline void int4_values(uint8x8_t codes, float *out)
{
    int16x8_t wide = vmovl_s8(vsub_s8(vreinterpret_s8_u8(codes), vdup_n_s8(8)));

    store_f32(out, vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))));
    store_f32(out + 4, vcvtq_f32_s32(vmovl_high_s16(wide)));
}

static void int4_decode(const uint8_t *codes, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        uint8x8_t bytes = vld1_u8(codes + i / 2);
        uint8x8_t low = vand_u8(bytes, vdup_n_u8(15));
        uint8x8_t high = vshr_n_u8(bytes, 4);

        int4_values(vzip1_u8(low, high), out + i);
        int4_values(vzip2_u8(low, high), out + i + 8);
    }
    mp_kernels_scalar.int4_decode(codes + i / 2, out + i, n - i);
}

static void scale(const float *in, float factor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        store_f32(out + i, vmulq_n_f32(load_f32(in + i), factor));
    mp_kernels_scalar.scale(in + i, factor, out + i, n - i);
}

static void scale_blocks(const float *in, const float *factors, size_t width, float *out, size_t n)
{
    for (size_t i = 0; i < n; factors++) {
        size_t end = n - i < width ? n : i + width;
        float factor;

        memcpy(&factor, factors, sizeof(factor));
        for (; i + 4 <= end; i += 4)
            store_f32(out + i, vmulq_n_f32(load_f32(in + i), factor));
        if (i < end)
            mp_kernels_scalar.scale(in + i, factor, out + i, end - i);
        i = end;
    }
}

static void divide(const float *in, float divisor, float *out, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        store_f32(out + i, vdivq_f32(load_f32(in + i), vdupq_n_f32(divisor)));
    mp_kernels_scalar.divide(in + i, divisor, out + i, n - i);
}

static uint32_t amax_bits(const float *in, size_t n)
{
    uint32x4_t amax = vdupq_n_u32(0);
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        amax = vmaxq_u32(amax, magnitude_of(load_bits(in + i)));

    uint32_t vectors = vmaxvq_u32(amax);
    uint32_t rest = mp_kernels_scalar.amax_bits(in + i, n - i);
    return vectors > rest ? vectors : rest;
}

static void amax_blocks(const float *in, size_t width, uint32_t *amax, size_t n)
{
    for (size_t i = 0; i < n; amax++) {
        size_t end = n - i < width ? n : i + width;
        uint32x4_t vectors = vdupq_n_u32(0);
        uint32_t rest = 0;

        for (; i + 4 <= end; i += 4)
            vectors = vmaxq_u32(vectors, magnitude_of(load_bits(in + i)));
        if (i < end)
            rest = mp_kernels_scalar.amax_bits(in + i, end - i);
        uint32_t largest = vmaxvq_u32(vectors);
        largest = largest > rest ? largest : rest;
        memcpy(amax, &largest, sizeof(largest));
        i = end;
    }
}

static bool reaches(const void *in, size_t n, unsigned bits, bool is_signed, uint32_t limit)
{
    const mp_lane_test test = mp_lane_test_of(bits, is_signed, limit);
    const uint8_t *bytes = in;
    size_t size = n * (bits / 8);
    uint64x2_t top = vdupq_n_u64(test.top);
    uint64x2_t found = vdupq_n_u64(0);
    size_t i = 0;

    for (; i + 16 <= size; i += 16) {
        uint64x2_t words = vreinterpretq_u64_u8(vld1q_u8(bytes + i));
        uint64x2_t sums = vaddq_u64(vbicq_u64(words, top), vdupq_n_u64(test.lack));

        found = vorrq_u64(found, vandq_u64(sums, vorrq_u64(words, vdupq_n_u64(test.either))));
    }
    found = vandq_u64(found, top);
    return (vgetq_lane_u64(found, 0) | vgetq_lane_u64(found, 1)) != 0 ||
           mp_kernels_scalar.reaches(bytes + i, (size - i) / (bits / 8), bits, is_signed, limit);
}

static void mxfp4_decode(const uint8_t *codes, const uint8_t *scales, float *out, size_t n)
{
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        e2m1_decode32(codes + block * PACKED, mp_ue8m0_value(scales[block]),
                      out + block * MP_MX_BLOCK);
}

static void encode_block(const float *in, uint8_t *codes, uint8_t *exponent,
                         const mp_quant_options *options)
{
    uint8_t e = mp_mx_exponent(amax_bits(in, MP_MX_BLOCK), options->amax_floor, MP_E2M1_MAX);
    float multiplier = mp_mx_multiplier(e);

    *exponent = e;
    e2m1_encode16(in, multiplier, codes, options->rounding);
    e2m1_encode16(in + 16, multiplier, codes + 8, options->rounding);
}

static void mxfp4_encode(const float *in, uint8_t *codes, uint8_t *scales, size_t n,
                         const mp_quant_options *options)
{
    if (options->scale_rule == MP_SCALE_MSE) {
        mp_mxfp4_encode_mse(&mp_kernels_neon, in, codes, scales, n, options);
        return;
    }
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        encode_block(in + block * MP_MX_BLOCK, codes + block * PACKED, scales + block, options);
}

static size_t mxfp4_encode_bf16(const uint16_t *in, uint8_t *codes, uint8_t *scales, size_t n,
                                const mp_quant_options *options)
{
    if (options->scale_rule == MP_SCALE_MSE)
        return mp_mxfp4_encode_bf16_mse(&mp_kernels_neon, in, codes, scales, n, options);
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++) {
        float values[MP_MX_BLOCK];

        bf16_decode(in + block * MP_MX_BLOCK, values, MP_MX_BLOCK);
        if (amax_bits(values, MP_MX_BLOCK) >= MP_F32_INF)
            return block * MP_MX_BLOCK;
        encode_block(values, codes + block * PACKED, scales + block, options);
    }
    return n;
}

static inline void add_squared(float *sums, float32x4_t v)
{
    store_f32(sums, vfmaq_f32(load_f32(sums), v, v));
}

static void add_group_loss(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                           size_t blocks, mp_loss *loss)
{
    uint8_t largest = mp_loss_exponent(scales, blocks);
    float32x4_t multiplier = vdupq_n_f32(mp_mx_multiplier(largest));
    float error[MP_MX_BLOCK] = {0};
    float signal[MP_MX_BLOCK] = {0};
    uint32x4_t saturated = vdupq_n_u32(0);
    uint32x4_t flushed = vdupq_n_u32(0);

    for (size_t i = 0; i < blocks; i++) {
        float32x4_t ratio = vdupq_n_f32(mp_loss_ratio(scales[i], largest));
        uint32x4_t limit = vdupq_n_u32(mp_loss_limit(scales[i]) << 16);
        float originals[MP_MX_BLOCK];
        float values[MP_MX_BLOCK];

        bf16_decode(in + i * MP_MX_BLOCK, originals, MP_MX_BLOCK);
        e2m1_decode32(codes + i * PACKED, 1.0f, values);
        for (int at = 0; at < MP_MX_BLOCK; at += 4) {
            uint32x4_t magnitude = magnitude_of(load_bits(originals + at));
            float32x4_t x = vmulq_f32(load_f32(originals + at), multiplier);
            float32x4_t value = load_f32(values + at);
            uint32x4_t no_code = vceqzq_f32(value);

            add_squared(error + at, vsubq_f32(vmulq_f32(value, ratio), x));
            add_squared(signal + at, x);
            saturated = vsubq_u32(saturated, vcgtq_u32(magnitude, limit));
            flushed = vsubq_u32(flushed, vandq_u32(vtstq_u32(magnitude, magnitude), no_code));
        }
    }
    loss->saturated += vaddvq_u32(saturated);
    loss->flushed += vaddvq_u32(flushed);
    mp_loss_add_group(loss, error, signal, largest);
}

static void mxfp4_loss_bf16(const uint16_t *in, const uint8_t *codes, const uint8_t *scales,
                            size_t n, double sums[2], uint64_t counts[2])
{
    mp_mxfp4_loss(add_group_loss, in, codes, scales, n, sums, counts);
}

static void error_sums(const float *a, const float *b, size_t n, double sums[2])
{
    float64x2_t error[4];
    float64x2_t signal[4];
    double error_lanes[8];
    double signal_lanes[8];
    size_t i = 0;

    for (int pair = 0; pair < 4; pair++)
        error[pair] = signal[pair] = vdupq_n_f64(0);
    for (; i + 8 <= n; i += 8) {
        for (int pair = 0; pair < 4; pair++) {
            size_t at = i + 2 * (size_t)pair;
            float32x2_t decoded = vreinterpret_f32_u8(vld1_u8((const uint8_t *)(a + at)));
            float64x2_t original =
                vcvt_f64_f32(vreinterpret_f32_u8(vld1_u8((const uint8_t *)(b + at))));
            float64x2_t difference = vsubq_f64(vcvt_f64_f32(decoded), original);

            error[pair] = vaddq_f64(error[pair], vmulq_f64(difference, difference));
            signal[pair] = vaddq_f64(signal[pair], vmulq_f64(original, original));
        }
    }
    for (int pair = 0; pair < 4; pair++) {
        vst1q_f64(error_lanes + 2 * pair, error[pair]);
        vst1q_f64(signal_lanes + 2 * pair, signal[pair]);
    }
    mp_add_squares(a + i, b + i, n - i, error_lanes, signal_lanes);
    sums[0] += mp_sum_lanes(error_lanes);
    sums[1] += mp_sum_lanes(signal_lanes);
}

static void count_lost(const float *original, const float *decoded, size_t n, const float *limits,
                       size_t width, uint64_t counts[2])
{
    uint32x4_t saturated = vdupq_n_u32(0);
    uint32x4_t flushed = vdupq_n_u32(0);

    for (size_t i = 0; i < n; limits++) {
        size_t end = n - i < width ? n : i + width;
        uint32_t limit;

        memcpy(&limit, limits, sizeof(limit));
        for (; i + 4 <= end; i += 4) {
            uint32x4_t before = magnitude_of(load_bits(original + i));
            uint32x4_t after = magnitude_of(load_bits(decoded + i));
            uint32x4_t above = vcgtq_u32(before, vdupq_n_u32(limit));
            uint32x4_t lost = vbicq_u32(vtstq_u32(before, before), vtstq_u32(after, after));

            saturated = vsubq_u32(saturated, above);
            flushed = vsubq_u32(flushed, lost);
        }
        if (i < end)
            mp_kernels_scalar.count_lost(original + i, decoded + i, end - i, limits, width, counts);
        i = end;
    }
    counts[0] += vaddvq_u32(saturated);
    counts[1] += vaddvq_u32(flushed);
}

const mp_kernels mp_kernels_neon = {
    .level = "neon",
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

#endif
