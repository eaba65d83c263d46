/* SPDX-License-Identifier: Apache-2.0 */
/* What the MX formats share beyond kernels: the scale rule MP_SCALE_MSE, which
 * encodes each block under two exponents and keeps the better, mxfp8, and the
 * frame of the kernels that measure the loss of mxfp4.
 *
 * Every function takes the table of kernels that it is to use, since a table's own encoders
 * call it, and keeps nothing between calls: any number of threads may run it. */
#include "numeric/kernels.h"

/* The elements of an MX format. */
struct element {
    float largest;
    size_t block_bytes;
    void (*encode)(const mp_kernels *kernels, const float *in, uint8_t *codes,
                   mp_rounding rounding);
    void (*decode)(const mp_kernels *kernels, const uint8_t *codes, float *out);
};

static void encode_e2m1(const mp_kernels *kernels, const float *in, uint8_t *codes,
                        mp_rounding rounding)
{
    kernels->e2m1_encode(in, codes, MP_MX_BLOCK, rounding);
}

static void decode_e2m1(const mp_kernels *kernels, const uint8_t *codes, float *out)
{
    kernels->e2m1_decode(codes, out, MP_MX_BLOCK);
}

static void encode_e4m3(const mp_kernels *kernels, const float *in, uint8_t *codes,
                        mp_rounding rounding)
{
    (void)rounding;
    kernels->e4m3_encode(in, codes, MP_MX_BLOCK);
}

static void decode_e4m3(const mp_kernels *kernels, const uint8_t *codes, float *out)
{
    kernels->e4m3_decode(codes, out, MP_MX_BLOCK);
}

static const struct element e2m1 = {MP_E2M1_MAX, MP_MX_BLOCK / 2, encode_e2m1, decode_e2m1};
static const struct element e4m3 = {MP_E4M3_MAX, MP_MX_BLOCK, encode_e4m3, decode_e4m3};

static void encode_under(const mp_kernels *kernels, const struct element *element, const float *in,
                         uint8_t *codes, uint8_t exponent, mp_rounding rounding)
{
    float values[MP_MX_BLOCK];

    kernels->scale(in, mp_mx_multiplier(exponent), values, MP_MX_BLOCK);
    element->encode(kernels, values, codes, rounding);
}

/* The squared error of a block of codes. */
static double error_under(const mp_kernels *kernels, const struct element *element, const float *in,
                          const uint8_t *codes, uint8_t exponent)
{
    float values[MP_MX_BLOCK];
    double sums[2] = {0};

    element->decode(kernels, codes, values);
    kernels->scale(values, mp_ue8m0_value(exponent), values, MP_MX_BLOCK);
    kernels->error_sums(values, in, MP_MX_BLOCK, sums);
    return sums[0];
}

/* Encodes under the exponent that saturates nothing and, if asked for, under the next finer one.
 * The first wins a tie. */
static void encode_block(const mp_kernels *kernels, const struct element *element, const float *in,
                         uint8_t *codes, uint8_t *scale, const mp_quant_options *options)
{
    uint32_t amax_bits = mp_amax_but_nan(kernels, in, MP_MX_BLOCK);
    uint8_t exponent = mp_mx_exponent(amax_bits, options->amax_floor, element->largest);
    uint8_t finer[MP_MX_BLOCK];

    *scale = exponent;
    encode_under(kernels, element, in, codes, exponent, options->rounding);
    if (options->scale_rule == MP_SCALE_CEIL || exponent == 1)
        return;
    /* Only the next lower exponent competes: it clips the largest elements but halves the steps of
     * all others. */
    encode_under(kernels, element, in, finer, exponent - 1, options->rounding);
    if (error_under(kernels, element, in, finer, exponent - 1) <
        error_under(kernels, element, in, codes, exponent)) {
        memcpy(codes, finer, element->block_bytes);
        *scale = exponent - 1;
    }
}

void mp_mxfp4_encode_mse(const mp_kernels *kernels, const float *in, uint8_t *codes,
                         uint8_t *scales, size_t n, const mp_quant_options *options)
{
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++)
        encode_block(kernels, &e2m1, in + block * MP_MX_BLOCK, codes + block * e2m1.block_bytes,
                     scales + block, options);
}

size_t mp_mxfp4_encode_bf16_mse(const mp_kernels *kernels, const uint16_t *in, uint8_t *codes,
                                uint8_t *scales, size_t n, const mp_quant_options *options)
{
    for (size_t block = 0; block < n / MP_MX_BLOCK; block++) {
        float values[MP_MX_BLOCK];

        kernels->bf16_decode(in + block * MP_MX_BLOCK, values, MP_MX_BLOCK);
        if (kernels->amax_bits(values, MP_MX_BLOCK) >= MP_F32_INF)
            return block * MP_MX_BLOCK;
        encode_block(kernels, &e2m1, values, codes + block * e2m1.block_bytes, scales + block,
                     options);
    }
    return n;
}

/* Up to MP_MX_GROUP blocks under MP_SCALE_CEIL, pass by pass. */
static void mxfp8_encode_group(const mp_kernels *kernels, const float *in, uint8_t *codes,
                               uint8_t *scales, size_t blocks, const mp_quant_options *options)
{
    uint32_t amax[MP_MX_GROUP];
    float multipliers[MP_MX_GROUP];
    size_t n = blocks * MP_MX_BLOCK;

    mp_amax_blocks_but_nan(kernels, in, MP_MX_BLOCK, amax, n);
    mp_mx_exponents(amax, blocks, options->amax_floor, MP_E4M3_MAX, scales, multipliers);
    kernels->e4m3_encode_blocks(in, multipliers, MP_MX_BLOCK, codes, n);
}

void mp_mxfp8_encode(const mp_kernels *kernels, const float *in, uint8_t *codes, uint8_t *scales,
                     size_t n, const mp_quant_options *options)
{
    size_t blocks = n / MP_MX_BLOCK;

    if (options->scale_rule == MP_SCALE_MSE) {
        for (size_t i = 0; i < blocks; i++)
            encode_block(kernels, &e4m3, in + i * MP_MX_BLOCK, codes + i * e4m3.block_bytes,
                         scales + i, options);
        return;
    }
    for (size_t i = 0; i < blocks; i += MP_MX_GROUP)
        mxfp8_encode_group(kernels, in + i * MP_MX_BLOCK, codes + i * e4m3.block_bytes, scales + i,
                           blocks - i < MP_MX_GROUP ? blocks - i : MP_MX_GROUP, options);
}

uint32_t mp_amax_but_nan(const mp_kernels *kernels, const float *in, size_t n)
{
    uint32_t amax = kernels->amax_bits(in, n);

    if (amax <= MP_F32_INF)
        return amax;
    /* A NaN has the largest bits of all. Since NaNs are rare, only now look at single elements. */
    amax = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t one = kernels->amax_bits(in + i, 1);

        if (one <= MP_F32_INF && one > amax)
            amax = one;
    }
    return amax;
}

void mp_amax_blocks_but_nan(const mp_kernels *kernels, const float *in, size_t width,
                            uint32_t *amax, size_t n)
{
    kernels->amax_blocks(in, width, amax, n);
    for (size_t i = 0; i < n; i += width)
        if (amax[i / width] > MP_F32_INF)
            amax[i / width] = mp_amax_but_nan(kernels, in + i, n - i < width ? n - i : width);
}

void mp_loss_add_group(mp_loss *loss, const float error[MP_MX_BLOCK],
                       const float signal[MP_MX_BLOCK], uint8_t largest)
{
    /* float32 within a group, whose numbers are of similar size, and float64 between groups. */
    double weight = mp_loss_weight(largest);

    for (int i = 0; i < 8; i++) {
        const float *d = error + 2 * i;
        const float *x = signal + 2 * i;

        loss->error[i] += ((d[0] + d[1]) + (d[16] + d[17])) * weight;
        loss->signal[i] += ((x[0] + x[1]) + (x[16] + x[17])) * weight;
    }
}

/* What all kernels share: groups in order, lanes in float64, and one order of adding them up. */
void mp_mxfp4_loss(mp_loss_group *add_group, const uint16_t *in, const uint8_t *codes,
                   const uint8_t *scales, size_t n, double sums[2], uint64_t counts[2])
{
    size_t blocks = n / MP_MX_BLOCK;
    mp_loss loss = {0};

    for (size_t i = 0; i < blocks; i += MP_LOSS_GROUP)
        add_group(in + i * MP_MX_BLOCK, codes + i * (MP_MX_BLOCK / 2), scales + i,
                  blocks - i < MP_LOSS_GROUP ? blocks - i : MP_LOSS_GROUP, &loss);
    sums[0] += mp_sum_lanes(loss.error);
    sums[1] += mp_sum_lanes(loss.signal);
    counts[0] += loss.saturated;
    counts[1] += loss.flushed;
}
