/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels for aarch64, where NEON is always there: what wide.h needs, and no kernel of its own.
 *
 * Vectors are short here, four lanes, so NARROW is four as well: sixteen elements make one vector
 * of bytes. E2M1 codes are looked up in byte tables (tbl), 16 at a time. Threads: see wide.h. */
#include "numeric/kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define LANES   4
#define NARROW  4
#define KERNELS mp_kernels_neon
#define LEVEL   "neon"

#include "numeric/lanes.h"

/* ------------------------------------------------------------------------
 * Lanes
 */

typedef bits mask; /* all ones where set */

INLINE int32x4_t as_signed(bits v)
{
    return vreinterpretq_s32_u32((uint32x4_t)v);
}

INLINE mask above(bits a, bits b)
{
    return (mask)vcgtq_s32(as_signed(a), as_signed(b));
}

INLINE mask above_where(mask where, bits a, bits b)
{
    return where & above(a, b);
}

INLINE mask equal(bits a, bits b)
{
    return (mask)vceqq_u32((uint32x4_t)a, (uint32x4_t)b);
}

INLINE mask is_zero(floats v)
{
    return (mask)vceqzq_f32((float32x4_t)v);
}

INLINE bits choose(mask where, bits yes, bits no)
{
    return (bits)vbslq_u32((uint32x4_t)where, (uint32x4_t)yes, (uint32x4_t)no);
}

INLINE bits count(bits counts, mask where)
{
    return counts - where;
}

INLINE bits smaller(bits a, bits b)
{
    return (bits)vminq_s32(as_signed(a), as_signed(b));
}

INLINE bits larger(bits a, bits b)
{
    return (bits)vmaxq_s32(as_signed(a), as_signed(b));
}

INLINE floats smaller_f(floats a, floats b)
{
    return (floats)vminq_f32((float32x4_t)a, (float32x4_t)b);
}

INLINE floats larger_f(floats a, floats b)
{
    return (floats)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
}

INLINE bits larger_halves(bits a, bits b)
{
    return (bits)vmaxq_u16((uint16x8_t)a, (uint16x8_t)b);
}

INLINE floats to_floats(bits v)
{
    return (floats)vcvtq_f32_s32(as_signed(v));
}

INLINE bits to_ints(floats v)
{
    return (bits)vcvtnq_s32_f32((float32x4_t)v);
}

INLINE floats fma_f(floats a, floats b, floats c)
{
    return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

INLINE doubles fma_d(doubles a, doubles b, doubles c)
{
    return (doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}

INLINE uint32_t largest_lane(bits v)
{
    return vmaxvq_u32((uint32x4_t)v);
}

INLINE uint32_t sum_of_lanes(bits v)
{
    return vaddvq_u32((uint32x4_t)v);
}

INLINE bits largest_lanes(const bits v[LANES])
{
    uint32x4_t low = vpmaxq_u32((uint32x4_t)v[0], (uint32x4_t)v[1]);
    uint32x4_t high = vpmaxq_u32((uint32x4_t)v[2], (uint32x4_t)v[3]);

    return (bits)vpmaxq_u32(low, high);
}

/* ------------------------------------------------------------------------
 * Loads and stores: four bytes at a time would be too few for an instruction
 */

INLINE bits load_u8(const uint8_t *in)
{
    uint32_t four;

    memcpy(&four, in, sizeof(four));
    return (bits)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

INLINE bits load_i8(const int8_t *in)
{
    uint32_t four;

    memcpy(&four, in, sizeof(four));
    return (bits)vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}

INLINE bits load_u16(const uint16_t *in)
{
    return (bits)vmovl_u16(vreinterpret_u16_u8(vld1_u8((const uint8_t *)in)));
}

INLINE floats load_f16(const uint16_t *in)
{
    return (floats)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)in)));
}

INLINE doubles load_doubles(const float *in)
{
    return (doubles)vcvt_f64_f32(vreinterpret_f32_u8(vld1_u8((const uint8_t *)in)));
}

INLINE void to_doubles(floats v, doubles out[2])
{
    out[0] = (doubles)vcvt_f64_f32(vget_low_f32((float32x4_t)v));
    out[1] = (doubles)vcvt_high_f64_f32((float32x4_t)v);
}

INLINE uint16x8_t narrow(bits low, bits high)
{
    return vcombine_u16(vmovn_u32((uint32x4_t)low), vmovn_u32((uint32x4_t)high));
}

INLINE uint8x16_t pack_bytes(const bits v[NARROW])
{
    return vcombine_u8(vmovn_u16(narrow(v[0], v[1])), vmovn_u16(narrow(v[2], v[3])));
}

INLINE void store_u8(uint8_t *out, const bits v[NARROW])
{
    vst1q_u8(out, pack_bytes(v));
}

INLINE void store_u16(uint16_t *out, const bits v[NARROW])
{
    vst1q_u8((uint8_t *)out, vreinterpretq_u8_u16(narrow(v[0], v[1])));
    vst1q_u8((uint8_t *)(out + 8), vreinterpretq_u8_u16(narrow(v[2], v[3])));
}

/* 16 bytes as 16 lanes. */
INLINE void widen(uint8x16_t bytes, bits out[4])
{
    uint16x8_t low = vmovl_u8(vget_low_u8(bytes));
    uint16x8_t high = vmovl_u8(vget_high_u8(bytes));

    out[0] = (bits)vmovl_u16(vget_low_u16(low));
    out[1] = (bits)vmovl_u16(vget_high_u16(low));
    out[2] = (bits)vmovl_u16(vget_low_u16(high));
    out[3] = (bits)vmovl_u16(vget_high_u16(high));
}

INLINE void unpack_nibbles(const uint8_t *codes, bits out[8])
{
    uint8x16_t bytes = vld1q_u8(codes);
    uint8x16_t low = vandq_u8(bytes, vdupq_n_u8(15));
    uint8x16_t high = vshrq_n_u8(bytes, 4);

    widen(vzip1q_u8(low, high), out);
    widen(vzip2q_u8(low, high), out + 4);
}

/* ------------------------------------------------------------------------
 * E2M1
 */

/* Only the upper half of these float32 is not zero, so that two byte tables look it up. */
INLINE void e2m1_decode16(const uint8_t *codes, floats out[4])
{
    static const uint8_t upper[16] = {0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                      0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
    static const uint8_t lower[16] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0,
                                      0x00, 0x00, 0x80, 0xc0, 0x00, 0x40, 0x80, 0xc0};
    uint8x8_t bytes = vld1_u8(codes);
    uint8x8x2_t nibbles = vzip_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
    uint8x16_t code = vcombine_u8(nibbles.val[0], nibbles.val[1]);
    uint8x16_t high = vqtbl1q_u8(vld1q_u8(upper), code);
    uint8x16_t low = vqtbl1q_u8(vld1q_u8(lower), code);
    uint16x8_t halves[2] = {vreinterpretq_u16_u8(vzip1q_u8(low, high)),
                            vreinterpretq_u16_u8(vzip2q_u8(low, high))};

    UNROLL
    for (int i = 0; i < 2; i++) {
        out[2 * i] = (floats)vshll_n_u16(vget_low_u16(halves[i]), 16);
        out[2 * i + 1] = (floats)vshll_n_u16(vget_high_u16(halves[i]), 16);
    }
}

INLINE bits e2m1_codes(bits in, mp_rounding rounding)
{
    uint32x4_t magnitude = (uint32x4_t)magnitude_of(in);
    bits sign = in >> 28 & 8;
    bits code = splat(0);

    UNROLL
    for (int i = 0; i < MP_E2M1_STEPS; i++)
        code = count(code, (mask)vcgtq_u32(magnitude, vdupq_n_u32(mp_e2m1_steps[rounding][i])));
    if (rounding == MP_ROUND_DEEPGEMM)
        sign = choose(equal(code, splat(0)), splat(0), sign);
    return code | sign;
}

INLINE void e2m1_encode32(const floats v[8], uint8_t *codes, mp_rounding rounding)
{
    uint8x16_t bytes[2];

    for (int half = 0; half < 2; half++) {
        bits lanes[4];

        UNROLL
        for (int i = 0; i < 4; i++)
            lanes[i] = e2m1_codes((bits)v[4 * half + i], rounding);
        bytes[half] = pack_bytes(lanes);
    }
    uint8x16_t even = vuzp1q_u8(bytes[0], bytes[1]);
    uint8x16_t odd = vuzp2q_u8(bytes[0], bytes[1]);
    vst1q_u8(codes, vorrq_u8(even, vshlq_n_u8(odd, 4)));
}

#include "numeric/wide.h"

#endif
