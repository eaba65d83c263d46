/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of conventions.
 *
 * Types of scales are those that tools write. What is read is wider: any float for a float, and
 * F8_E8M0 for U8 and back (storage.c). Where several rows fit a matrix, the first is taken, so that
 * of E4M3 weights with exponents the MXFP8 ones come before the blocks, and of bytes the int4 ones
 * of two columns before int8.
 */
#include "checkpoint/conventions.h"

#include "base/error.h"
#include "base/words.h"
#include "numeric/kernels.h"

#include <stdio.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

const mp_suffix_row mp_suffixes[MP_SUFFIXES] = {
    [MP_SUFFIX_WEIGHT] = {".weight", MP_ROLE_WEIGHT, false},
    [MP_SUFFIX_WEIGHT_PACKED] = {".weight_packed", MP_ROLE_WEIGHT, false},
    [MP_SUFFIX_SCALE] = {".scale", MP_ROLE_SCALE, false},
    [MP_SUFFIX_WEIGHT_SCALE] = {".weight_scale", MP_ROLE_SCALE, false},
    [MP_SUFFIX_WEIGHT_SCALE_INV] = {".weight_scale_inv", MP_ROLE_SCALE, false},
    [MP_SUFFIX_WEIGHT_SCALE_2] = {".weight_scale_2", MP_ROLE_GLOBAL_SCALE, false},
    [MP_SUFFIX_WEIGHT_GLOBAL_SCALE] = {".weight_global_scale", MP_ROLE_GLOBAL_SCALE, true},
    [MP_SUFFIX_INPUT_SCALE] = {".input_scale", MP_ROLE_INPUT_SCALE, false},
    [MP_SUFFIX_INPUT_GLOBAL_SCALE] = {".input_global_scale", MP_ROLE_INPUT_SCALE, true},
    [MP_SUFFIX_QSCALE_WEIGHT] = {".qscale_weight", MP_ROLE_SCALE, false},
    [MP_SUFFIX_QSCALE_ACT] = {".qscale_act", MP_ROLE_INPUT_SCALE, false},
    [MP_SUFFIX_WEIGHT_OFFSET] = {".weight_offset", MP_ROLE_OFFSET, false},
    [MP_SUFFIX_WEIGHT_ZERO_POINT] = {".weight_zero_point", MP_ROLE_OFFSET, false},
    [MP_SUFFIX_BIAS] = {".bias", MP_ROLE_BIAS, false},
    [MP_SUFFIX_WEIGHT_SHAPE] = {".weight_shape", MP_ROLE_SHAPE, false},
    [MP_SUFFIX_WEIGHT_SCALE_SECOND] = {".weight_scale_second", MP_ROLE_GROUP_SCALE, false},
    [MP_SUFFIX_WEIGHT_OFFSET_SECOND] = {".weight_offset_second", MP_ROLE_GROUP_OFFSET, false},
    [MP_SUFFIX_SCALE_BIAS] = {".scale_bias", MP_ROLE_SCALE_BIAS, false},

    [MP_SUFFIX_ALL] = {"", MP_ROLE_WEIGHT, false},
    [MP_SUFFIX_ALL_BLOCKS] = {"_blocks", MP_ROLE_WEIGHT, false},
    [MP_SUFFIX_ALL_SCALES] = {"_scales", MP_ROLE_SCALE, false},
    [MP_SUFFIX_ALL_SCALE_INV] = {"_scale_inv", MP_ROLE_SCALE, false},
    [MP_SUFFIX_ALL_WEIGHT_SCALE] = {"_weight_scale", MP_ROLE_SCALE, false},
    [MP_SUFFIX_ALL_WEIGHT_SCALE_2] = {"_weight_scale_2", MP_ROLE_GLOBAL_SCALE, false},
    [MP_SUFFIX_ALL_INPUT_SCALE] = {"_input_scale", MP_ROLE_INPUT_SCALE, false},
    [MP_SUFFIX_ALL_ACTIVATION_SCALE] = {"_activation_scale", MP_ROLE_INPUT_SCALE, false},
    [MP_SUFFIX_ALL_BIAS] = {"_bias", MP_ROLE_BIAS, false},
};

bool mp_suffix_ends(const char *name, mp_suffix suffix)
{
    const char *text = mp_suffixes[suffix].text + 1;
    size_t length = strlen(name), n = strlen(text);

    return length > n && strcmp(name + length - n, text) == 0 &&
           (name[length - n - 1] == '.' || name[length - n - 1] == '_');
}

size_t mp_weight_module(const char *name)
{
    static const mp_suffix weights[] = {MP_SUFFIX_WEIGHT, MP_SUFFIX_WEIGHT_PACKED};
    size_t length = strlen(name);

    for (size_t i = 0; i < COUNT(weights); i++) {
        size_t n = strlen(mp_suffixes[weights[i]].text);

        if (length > n && strcmp(name + length - n, mp_suffixes[weights[i]].text) == 0)
            return length - n;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Conventions
 */

/* clang-format off */
#define ALL         UINT32_MAX
#define BY(n)       .block_rows = 1, .block_cols = (n)
#define SQUARES     .block_rows = MP_FP8_BLOCK, .block_cols = MP_FP8_BLOCK
#define A_ROW       .block_rows = 1, .block_cols = ALL
#define A_MATRIX    .block_rows = ALL, .block_cols = ALL
#define UNSCALED    .block_rows = 1, .block_cols = 1

#define CODES(suffix, dtype)  {MP_SUFFIX_##suffix, dtype, MP_EXTENT_CODES}
#define SCALES(suffix, dtype) {MP_SUFFIX_##suffix, dtype, MP_EXTENT_BLOCKS}
#define A_ROW_OF(suffix)      {MP_SUFFIX_##suffix, MP_F32, MP_EXTENT_ROWS}
#define SCALAR(suffix)        {MP_SUFFIX_##suffix, MP_F32, MP_EXTENT_SCALAR}
#define SINGLE(suffix)        {MP_SUFFIX_##suffix, MP_F32, MP_EXTENT_SINGLE}

#define FP8      .method = MP_METHOD_FP8, .fmt = "e4m3"
#define CT(name) .method = MP_METHOD_COMPRESSED_TENSORS, .format = name
#define MO(...)  .method = MP_METHOD_MODELOPT, .algorithms = {__VA_ARGS__}

static const mp_convention conventions[] = {
    {MP_SCHEME_BF16, MP_AS_DEEPSEEK_V4, .written = true, .block = "ffn", UNSCALED,
     .parts = {CODES(WEIGHT, MP_BF16)}},
    {MP_SCHEME_BF16, MP_AS_DEEPSEEK_V3, .written = true, UNSCALED,
     .parts = {CODES(WEIGHT, MP_BF16)}},
    {MP_SCHEME_BF16, MP_AS_MODELOPT, .written = true, UNSCALED,
     .parts = {CODES(WEIGHT, MP_BF16)}},
    {MP_SCHEME_BF16, MP_AS_COMPRESSED_TENSORS, .written = true, UNSCALED,
     .parts = {CODES(WEIGHT, MP_BF16)}},
    {MP_SCHEME_BF16, MP_AS_TRANSFORMERS, .fusion = MP_FUSION_ROWS, UNSCALED,
     .parts = {CODES(ALL, MP_BF16)}},
    {MP_SCHEME_BF16, MP_AS_LLAMA4, .fusion = MP_FUSION_COLS, UNSCALED,
     .parts = {CODES(ALL, MP_BF16)}},
    {MP_SCHEME_BF16, MP_AS_GPT_OSS, .fusion = MP_FUSION_COLS_PAIRED, UNSCALED,
     .parts = {CODES(ALL, MP_BF16)}},
    {MP_SCHEME_F16, MP_AS_TORCH, UNSCALED, .parts = {CODES(WEIGHT, MP_F16)}},
    {MP_SCHEME_F32, MP_AS_TORCH, UNSCALED, .parts = {CODES(WEIGHT, MP_F32)}},

    {MP_SCHEME_MXFP4, MP_AS_DEEPSEEK_V4, .written = true, .block = "ffn", BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_I8), SCALES(SCALE, MP_F8_E8M0)},
     FP8, .said_block = MP_FP8_BLOCK},
    {MP_SCHEME_MXFP4, MP_AS_COMPRESSED_TENSORS, .written = true, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT_PACKED, MP_U8), SCALES(WEIGHT_SCALE, MP_U8)},
     CT("mxfp4-pack-quantized")},
    {MP_SCHEME_MXFP4, MP_AS_MODELOPT, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_U8), SCALES(WEIGHT_SCALE, MP_U8)}, MO("MXFP4")},
    {MP_SCHEME_MXFP4, MP_AS_MODELSLIM, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_U8), SCALES(WEIGHT_SCALE, MP_U8)}, .label = "W4A8_MXFP"},
    {MP_SCHEME_MXFP4, MP_AS_GPT_OSS, .fusion = MP_FUSION_ROWS_PAIRED, BY(MP_MX_BLOCK),
     .parts = {{MP_SUFFIX_ALL_BLOCKS, MP_U8, MP_EXTENT_CODES_16}, SCALES(ALL_SCALES, MP_U8)},
     .method = MP_METHOD_MXFP4},
    {MP_SCHEME_MXFP4, MP_AS_TORCH, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_F4), SCALES(WEIGHT_SCALE, MP_F8_E8M0)}},

    {MP_SCHEME_NVFP4, MP_AS_MODELOPT, .written = true, BY(MP_NVFP4_BLOCK),
     .parts = {CODES(WEIGHT, MP_U8), SCALES(WEIGHT_SCALE, MP_F8_E4M3), SCALAR(WEIGHT_SCALE_2),
               SCALAR(INPUT_SCALE)},
     MO("NVFP4", "W4A16_NVFP4")},
    {MP_SCHEME_NVFP4, MP_AS_COMPRESSED_TENSORS, .written = true, BY(MP_NVFP4_BLOCK),
     .parts = {CODES(WEIGHT_PACKED, MP_U8), SCALES(WEIGHT_SCALE, MP_F8_E4M3),
               SINGLE(WEIGHT_GLOBAL_SCALE), SINGLE(INPUT_GLOBAL_SCALE)},
     CT("nvfp4-pack-quantized"), .activations = MP_ACTIVATIONS_STATIC},

    {MP_SCHEME_MXFP8, MP_AS_COMPRESSED_TENSORS, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE, MP_U8)}, CT("mxfp8-quantized")},
    {MP_SCHEME_MXFP8, MP_AS_MODELOPT, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE, MP_U8)}, MO("MXFP8")},
    {MP_SCHEME_MXFP8, MP_AS_MODELSLIM, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE, MP_U8)}, .label = "W8A8_MXFP8"},
    {MP_SCHEME_MXFP8, MP_AS_MINIMAX, BY(MP_MX_BLOCK),
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE_INV, MP_U8)},
     .method = MP_METHOD_MXFP8},

    {MP_SCHEME_FP8_BLOCK, MP_AS_DEEPSEEK_V4, .written = true, .block = "ffn", SQUARES,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(SCALE, MP_F32)}, .power_dtype = MP_F8_E8M0, FP8},
    {MP_SCHEME_FP8_BLOCK, MP_AS_DEEPSEEK_V3, .written = true, SQUARES,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE_INV, MP_F32)}, FP8},
    {MP_SCHEME_FP8_BLOCK, MP_AS_COMPRESSED_TENSORS, .written = true, SQUARES,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE, MP_F32)},
     CT("float-quantized"), .activations = MP_ACTIVATIONS_GROUP},
    {MP_SCHEME_FP8_BLOCK, MP_AS_QWEN3, SQUARES,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE_INV, MP_BF16)}, FP8},
    {MP_SCHEME_FP8_BLOCK, MP_AS_MINIMAX, SQUARES,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE_INV, MP_F32)},
     .method = MP_METHOD_FP8, .fmt = "float8_e4m3fn"},
    {MP_SCHEME_FP8_BLOCK, MP_AS_TRANSFORMERS, .fusion = MP_FUSION_ROWS, SQUARES,
     .parts = {CODES(ALL, MP_F8_E4M3), SCALES(ALL_SCALE_INV, MP_F32)}, FP8},

    {MP_SCHEME_FP8_GROUP, MP_AS_COMPRESSED_TENSORS, BY(MP_FP8_BLOCK), CT("float-quantized")},

    {MP_SCHEME_FP8_CHANNEL, MP_AS_COMPRESSED_TENSORS, A_ROW,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALES(WEIGHT_SCALE, MP_F32)},
     CT("float-quantized"), .activations = MP_ACTIVATIONS_TOKEN},

    {MP_SCHEME_FP8_TENSOR, MP_AS_COMPRESSED_TENSORS, A_MATRIX,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SINGLE(WEIGHT_SCALE)}, CT("float-quantized")},
    {MP_SCHEME_FP8_TENSOR, MP_AS_MODELOPT, A_MATRIX,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALAR(WEIGHT_SCALE), SCALAR(INPUT_SCALE)}, MO("FP8")},
    {MP_SCHEME_FP8_TENSOR, MP_AS_MISTRAL, A_MATRIX,
     .parts = {CODES(WEIGHT, MP_F8_E4M3), SCALAR(QSCALE_WEIGHT), SCALAR(QSCALE_ACT)}},

    {MP_SCHEME_INT4_GROUP, MP_AS_SGLANG, .int4 = MP_INT4_COLUMNS, BY(128),
     .parts = {CODES(WEIGHT, MP_I8), SCALES(WEIGHT_SCALE_INV, MP_F32)}},

    {MP_SCHEME_INT8_CHANNEL, MP_AS_COMPRESSED_TENSORS, .written = true, A_ROW,
     .parts = {CODES(WEIGHT, MP_I8), SCALES(WEIGHT_SCALE, MP_F32)},
     CT("int-quantized"), .activations = MP_ACTIVATIONS_TOKEN},
    {MP_SCHEME_INT8_CHANNEL, MP_AS_MODELSLIM, A_ROW,
     .parts = {CODES(WEIGHT, MP_I8), SCALES(WEIGHT_SCALE, MP_F32), A_ROW_OF(WEIGHT_OFFSET)},
     .label = "W8A8_DYNAMIC"},

    {MP_SCHEME_INT4_GROUP, MP_AS_MODELSLIM, .int4 = MP_INT4_ROWS, A_ROW,
     .parts = {CODES(WEIGHT, MP_I8), SCALES(WEIGHT_SCALE, MP_F32), A_ROW_OF(WEIGHT_OFFSET)},
     .label = "W4A8_DYNAMIC"},
    {MP_SCHEME_INT4_GROUP, MP_AS_MODELSLIM, .int4 = MP_INT4_ROWS, BY(256),
     .parts = {CODES(WEIGHT, MP_I8), A_ROW_OF(WEIGHT_SCALE), A_ROW_OF(WEIGHT_OFFSET),
               SCALES(WEIGHT_SCALE_SECOND, MP_F32), SCALES(WEIGHT_OFFSET_SECOND, MP_F32)},
     .label = "W4A8_DYNAMIC"},
    {MP_SCHEME_INT4_GROUP, MP_AS_MODELSLIM, .int4 = MP_INT4_BYTES, BY(256),
     .parts = {CODES(WEIGHT, MP_I8), A_ROW_OF(WEIGHT_SCALE), A_ROW_OF(WEIGHT_OFFSET),
               SCALES(WEIGHT_SCALE_SECOND, MP_F32), SCALES(WEIGHT_OFFSET_SECOND, MP_F32)},
     .label = "W4A8_DYNAMIC"},
    {MP_SCHEME_INT4_GROUP, MP_AS_COMPRESSED_TENSORS, .int4 = MP_INT4_WORDS, BY(32),
     .parts = {CODES(WEIGHT_PACKED, MP_I32), SCALES(WEIGHT_SCALE, MP_BF16),
               {MP_SUFFIX_WEIGHT_SHAPE, MP_I32, MP_EXTENT_SHAPE}},
     CT("pack-quantized")},
    {MP_SCHEME_INT4_GROUP, MP_AS_COMPRESSED_TENSORS, .int4 = MP_INT4_BYTES, BY(32),
     .parts = {CODES(WEIGHT, MP_I8), SCALES(WEIGHT_SCALE, MP_BF16)}, CT("int-quantized")},
};
/* clang-format on */

const char *mp_style_name(mp_style style)
{
    static const char *const names[MP_STYLES] = {
        [MP_AS_DEEPSEEK_V4] = "deepseek-v4",
        [MP_AS_DEEPSEEK_V3] = "deepseek-v3",
        [MP_AS_COMPRESSED_TENSORS] = "compressed-tensors",
        [MP_AS_MODELOPT] = "modelopt",
        [MP_AS_MODELSLIM] = "modelslim",
        [MP_AS_TORCH] = "torch",
        [MP_AS_TRANSFORMERS] = "transformers",
        [MP_AS_LLAMA4] = "llama4",
        [MP_AS_GPT_OSS] = "gpt-oss",
        [MP_AS_QWEN3] = "qwen3",
        [MP_AS_MINIMAX] = "minimax",
        [MP_AS_MISTRAL] = "mistral",
        [MP_AS_SGLANG] = "sglang",
    };

    return names[style];
}

const char *mp_method_name(mp_method method)
{
    static const char *const names[MP_METHODS] = {
        [MP_METHOD_FP8] = "fp8",
        [MP_METHOD_MXFP4] = "mxfp4",
        [MP_METHOD_MXFP8] = "mxfp8",
        [MP_METHOD_MODELOPT] = "modelopt",
        [MP_METHOD_COMPRESSED_TENSORS] = "compressed-tensors",
    };

    return names[method];
}

const mp_convention *mp_conventions(size_t *count)
{
    *count = COUNT(conventions);
    return conventions;
}

const mp_convention *mp_convention_find(mp_style style, mp_scheme scheme)
{
    for (size_t i = 0; i < COUNT(conventions); i++)
        if (conventions[i].style == style && conventions[i].scheme == scheme)
            return &conventions[i];
    return NULL;
}

static bool is_written(const mp_convention *c, mp_scheme scheme)
{
    return c->written && c->scheme == scheme;
}

const mp_convention *mp_convention_usual(mp_scheme scheme, const mp_naming *naming)
{
    for (size_t i = 0; i < COUNT(conventions); i++) {
        const mp_convention *c = &conventions[i];

        if (is_written(c, scheme) && (!c->block || strcmp(c->block, naming->block) == 0))
            return c;
    }
    return NULL;
}

/* "deepseek-v3 and modelopt": the styles that have a scheme. */
static void list_styles(mp_scheme scheme, char *text, size_t size)
{
    size_t count = 0, listed = 0, n = 0;

    for (size_t i = 0; i < COUNT(conventions); i++)
        count += is_written(&conventions[i], scheme);
    text[0] = '\0';
    for (size_t i = 0; i < COUNT(conventions) && n < size; i++) {
        if (!is_written(&conventions[i], scheme))
            continue;
        n += (size_t)snprintf(text + n, size - n, "%s%s",
                              listed == 0          ? ""
                              : listed + 1 < count ? ", "
                                                   : " and ",
                              mp_style_name(conventions[i].style));
        listed++;
    }
}

const mp_convention *mp_convention_named(const char *style, mp_scheme scheme,
                                         const mp_naming *naming, mp_error *err)
{
    const mp_convention *usual = mp_convention_usual(scheme, naming);
    char have[128];

    if (!style && usual)
        return usual;
    for (size_t i = 0; style && i < COUNT(conventions); i++)
        if (is_written(&conventions[i], scheme) &&
            strcmp(mp_style_name(conventions[i].style), style) == 0)
            return &conventions[i];
    list_styles(scheme, have, sizeof have);
    if (!have[0])
        mp_fail(err, MP_ERR_UNSUPPORTED, "experts cannot be written in %s", mp_scheme_name(scheme));
    else
        mp_fail(err, MP_ERR_UNSUPPORTED, "style \"%s\" has no %s; %s have it", style,
                mp_scheme_name(scheme), have);
    return NULL;
}

const mp_convention_part *mp_convention_part_of(const mp_convention *convention, mp_role role)
{
    for (size_t i = 0; i < MP_CONVENTION_PARTS; i++) {
        const mp_convention_part *part = &convention->parts[i];

        if (part->covers != MP_EXTENT_NONE && mp_suffixes[part->suffix].role == role)
            return part;
    }
    return NULL;
}

/* Rows and columns that are packed into an element of the weight. */
static mp_element packed(const mp_convention *c, mp_dtype dtype)
{
    switch (c->scheme == MP_SCHEME_INT4_GROUP ? c->int4 : MP_INT4_WORDS) {
    case MP_INT4_ROWS:
        return (mp_element){2, 1};
    case MP_INT4_BYTES:
        return (mp_element){1, 1};
    default:
        return (mp_element){1, mp_dtype_bits(dtype) / mp_scheme_bits(c->scheme)};
    }
}

uint32_t mp_extent_rank(mp_extent covers)
{
    switch (covers) {
    case MP_EXTENT_CODES_16:
        return 3;
    case MP_EXTENT_SINGLE:
    case MP_EXTENT_SHAPE:
        return 1;
    case MP_EXTENT_SCALAR:
        return 0;
    default:
        return 2;
    }
}

mp_element mp_convention_element(const mp_convention *convention, const mp_convention_part *part)
{
    switch (part->covers) {
    case MP_EXTENT_CODES:
    case MP_EXTENT_CODES_16:
        return packed(convention, part->dtype);
    case MP_EXTENT_BLOCKS:
        return (mp_element){convention->block_rows, convention->block_cols};
    case MP_EXTENT_ROWS:
        return (mp_element){1, ALL};
    default:
        return (mp_element){ALL, ALL};
    }
}
