/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/lanes.h - the words in which wide.h is written: vectors of 32-bit lanes.
 *
 * avx2.c, avx512.c and neon.c include this header and wide.h once each. Before it they define
 *
 *      TARGET      the attribute that lets a function use the instruction set
 *      LANES       32-bit lanes in a vector
 *      NARROW      vectors whose lanes are narrowed in one step
 *
 * and after it what the C of vectors (+, &, >> and casts, which keep bits) has no word for:
 *
 *      mask        what a comparison gives
 *
 *      above(a, b), equal(a, b)        lanes compared, signed
 *      above_where(mask, a, b)         above, and the mask is set
 *      choose(mask, yes, no)           yes where the mask is set
 *      count(counts, mask)             counts + 1 where the mask is set
 *      smaller(a, b), larger(a, b)     lanes, signed
 *      smaller_f(a, b), larger_f(a, b) lanes of float32
 *      larger_halves(a, b)             lanes of 16 bits, unsigned
 *      to_floats(v), to_ints(v)        of signed lanes; to nearest, ties to even
 *      largest_lane(v)                 of lanes >= 0
 *      sum_of_lanes(v)
 *      largest_lanes(v)                lane i: the largest of v[i], which is >= 0
 *      fma_f(a, b, c), fma_d           a * b + c, rounded once, of float32 and float64
 *
 *      load_u8, load_i8, load_u16      LANES elements, one a lane
 *      load_f16                        as float32; a NaN becomes quiet
 *      load_doubles                    LANES/2 float32 as float64
 *      to_doubles(v, out)              a vector of float32 as two of float64
 *      store_u8, store_u16             the low parts of NARROW vectors; values fit
 *      unpack_nibbles                  16 bytes as 32 lanes, in order
 *
 *      is_zero(v)                      lanes of float32, of either sign
 *      e2m1_decode16(codes, out)                     8 bytes as 16 values, in vectors
 *      e2m1_encode32(v, codes, rounding)             32 elements
 *
 * Pointers may be unaligned. */
#ifndef MP_NUMERIC_LANES_H
#define MP_NUMERIC_LANES_H

#include "numeric/kernels.h"

#define INLINE TARGET static inline __attribute__((always_inline, unused))

/* Before a loop of a few rounds over an array of vectors, which then stay in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(4 * LANES)));
typedef uint64_t words __attribute__((vector_size(4 * LANES)));

INLINE bits load(const void *in)
{
    bits v;

    memcpy(&v, in, sizeof(v));
    return v;
}

INLINE floats load_floats(const float *in)
{
    return (floats)load(in);
}

INLINE void store(void *out, bits v)
{
    memcpy(out, &v, sizeof(v));
}

INLINE bits splat(uint32_t lane)
{
    return lane - (bits){0};
}

INLINE floats splat_f(float lane)
{
    return lane - (floats){0};
}

INLINE bits magnitude_of(bits v)
{
    return v & MP_F32_ABS;
}

#endif
