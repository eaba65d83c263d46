/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/wide_loss.h - the part of wide.h that measures what codes lost.
 *
 * Originals and codes are decoded in registers, next to each other, and go straight to the sums. A
 * sum has eight lanes in float64, and the order in which a lane grows is part of its bits: vectors
 * take elements in their order, whatever they are decoded from. */

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

        e2m1_scaled16(codes + i * PACKED, 1.0f, values);
        e2m1_scaled16(codes + i * PACKED + 8, 1.0f, values + 16);
        for (int at = 0; at < MP_MX_BLOCK; at += LANES) {
            bits original = load_u16(in + at) << 16;
            bits magnitude = magnitude_of(original);
            bits value = load(values + at);
            floats x = (floats)original * multiplier;
            mask no_code = equal(magnitude_of(value), zero);

            add_squared(error + at, (floats)value * ratio - x);
            add_squared(signal + at, x);
            saturated = count(saturated, above(magnitude, limit));
            flushed = count(flushed, above_where(no_code, magnitude, zero));
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

/* Vectors of the eight lanes of a sum, and elements that whole vectors take at a time. */
#define SUM_VECTORS (16 / LANES)
#define SPAN        16

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

/* LANES originals, BF16 or F32, as float64. */
INLINE void source_doubles(const void *in, size_t i, bool is_bf16, doubles out[2])
{
    if (is_bf16) {
        to_doubles(load_source(in, i, true), out);
        return;
    }
    UNROLL
    for (int j = 0; j < 2; j++)
        out[j] = load_doubles((const float *)in + i + j * (LANES / 2));
}

/* SPAN codes of F4, F8_E4M3, I8, BF16 or F32 as float32, not yet scaled. */
INLINE void load_codes(mp_dtype dtype, const void *codes, size_t i, floats out[SPAN / LANES])
{
    const uint8_t *bytes = (const uint8_t *)codes + i;

    if (dtype == MP_F4)
        e2m1_decode16((const uint8_t *)codes + i / 2, out);
    UNROLL
    for (int j = 0; j < SPAN / LANES && dtype != MP_F4; j++) {
        if (dtype == MP_F8_E4M3)
            out[j] = e4m3_finite(load_u8(bytes + j * LANES));
        else if (dtype == MP_I8)
            out[j] = to_floats(load_i8((const int8_t *)bytes + j * LANES));
        else
            out[j] = load_source(codes, i + j * LANES, dtype == MP_BF16);
    }
}

/* The square of a float32 is exact in float64, so that its sum is rounded once either way. */
INLINE void add_to_sums(doubles error[SUM_VECTORS], doubles signal[SUM_VECTORS],
                        const doubles decoded[2], const doubles original[2])
{
    UNROLL
    for (int j = 0; j < 2; j++) {
        doubles x = original[j];
        doubles difference = decoded[j] - x;

        error[j % SUM_VECTORS] += difference * difference;
        signal[j % SUM_VECTORS] = fma_d(x, x, signal[j % SUM_VECTORS]);
    }
}

/* As mp_kernels.loss, of constant types. Whole vectors lie in one block and begin at lane 0 of the
 * sums. */
INLINE void loss_of(mp_dtype from, const void *original, mp_dtype to, const void *codes,
                    const float *scales, float global, const float *limits, size_t width, size_t n,
                    mp_loss *sum)
{
    const bool is_bf16 = from == MP_BF16;
    const bits zero = splat(0);
    doubles error[SUM_VECTORS];
    doubles signal[SUM_VECTORS];
    bits saturated = zero;
    bits flushed = zero;
    size_t whole = width % SPAN == 0 || width >= n ? n - n % SPAN : 0;
    size_t i = 0;

    memcpy(error, sum->error, sizeof(error));
    memcpy(signal, sum->signal, sizeof(signal));
    for (size_t block = 0; i < whole; block++) {
        size_t end = whole - i < width ? whole : i + width;
        float scale_of_block;
        uint32_t limit;

        memcpy(&scale_of_block, scales + block, sizeof(scale_of_block));
        memcpy(&limit, limits + block, sizeof(limit));
        for (; i < end; i += SPAN) {
            floats values[SPAN / LANES];

            load_codes(to, codes, i, values);
            UNROLL
            for (int j = 0; j < SPAN / LANES; j++) {
                floats value = values[j] * scale_of_block;
                doubles decoded[2];
                doubles x[2];

                if (to == MP_F4 || to == MP_F32)
                    value *= global;
                to_doubles(value, decoded);
                source_doubles(original, i + j * LANES, is_bf16, x);
                add_to_sums(error + 2 * j % SUM_VECTORS, signal + 2 * j % SUM_VECTORS, decoded, x);

                /* Read last: from a whole vector, clang would put its halves together by lanes. */
                bits magnitude = magnitude_of((bits)load_source(original, i + j * LANES, is_bf16));
                saturated = count(saturated, above(magnitude, splat(limit)));
                flushed = count(flushed, above_where(is_zero(value), magnitude, zero));
            }
        }
    }
    memcpy(sum->error, error, sizeof(error));
    memcpy(sum->signal, signal, sizeof(signal));
    sum->saturated += sum_of_lanes(saturated);
    sum->flushed += sum_of_lanes(flushed);
    if (i < n)
        mp_kernels_scalar.loss(from, mp_loss_at(from, original, i), to, mp_loss_at(to, codes, i),
                               scales + i / width, global, limits + i / width, width, n - i, sum);
}

TARGET static void loss(mp_dtype from, const void *original, mp_dtype to, const void *codes,
                        const float *scales, float global, const float *limits, size_t width,
                        size_t n, mp_loss *sum)
{
#define TO(dtype)                                                                            \
    case dtype:                                                                              \
        if (from == MP_BF16)                                                                 \
            loss_of(MP_BF16, original, dtype, codes, scales, global, limits, width, n, sum); \
        else                                                                                 \
            loss_of(MP_F32, original, dtype, codes, scales, global, limits, width, n, sum);  \
        break
    switch (to) {
        TO(MP_F4);
        TO(MP_F8_E4M3);
        TO(MP_I8);
        TO(MP_BF16);
        TO(MP_F32);
    default:
        break;
    }
#undef TO
}
