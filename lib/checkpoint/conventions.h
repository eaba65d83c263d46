/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint/conventions.h - how checkpoints store experts: the one table.
 *
 * A convention is how a style stores a scheme: what its tensors are called behind the name of a
 * matrix, their types and blocks, and what config.json says of it. All that reads or writes
 * checkpoints goes by the rows here: names.c takes names apart by the suffixes, storage.c
 * recognizes types and shapes, form.c lists tensors that are to be written, config_said.c words
 * config.json, lib/synth makes checkpoints and lib/engine reads config.json without them.
 */
#ifndef MP_CHECKPOINT_CONVENTIONS_H
#define MP_CHECKPOINT_CONVENTIONS_H

#include <moepack/model.h>

/* ------------------------------------------------------------------------
 * Suffixes
 */

/* What follows the name of a matrix in those of its tensors. */
typedef enum mp_suffix {
    MP_SUFFIX_WEIGHT,
    MP_SUFFIX_WEIGHT_PACKED,
    MP_SUFFIX_SCALE,
    MP_SUFFIX_WEIGHT_SCALE,
    MP_SUFFIX_WEIGHT_SCALE_INV,
    MP_SUFFIX_WEIGHT_SCALE_2,
    MP_SUFFIX_WEIGHT_GLOBAL_SCALE,
    MP_SUFFIX_INPUT_SCALE,
    MP_SUFFIX_INPUT_GLOBAL_SCALE,
    MP_SUFFIX_QSCALE_WEIGHT,
    MP_SUFFIX_QSCALE_ACT,
    MP_SUFFIX_WEIGHT_OFFSET,
    MP_SUFFIX_WEIGHT_ZERO_POINT,
    MP_SUFFIX_BIAS,
    MP_SUFFIX_WEIGHT_SHAPE,
    MP_SUFFIX_WEIGHT_SCALE_SECOND,
    MP_SUFFIX_WEIGHT_OFFSET_SECOND,
    MP_SUFFIX_SCALE_BIAS,
    MP_SUFFIXES_OF_ONE, /* those from here on are of tensors of all experts only */
    MP_SUFFIX_ALL = MP_SUFFIXES_OF_ONE,
    MP_SUFFIX_ALL_BLOCKS,
    MP_SUFFIX_ALL_SCALES,
    MP_SUFFIX_ALL_SCALE_INV,
    MP_SUFFIX_ALL_WEIGHT_SCALE,
    MP_SUFFIX_ALL_WEIGHT_SCALE_2,
    MP_SUFFIX_ALL_INPUT_SCALE,
    MP_SUFFIX_ALL_ACTIVATION_SCALE,
    MP_SUFFIX_ALL_BIAS,
    MP_SUFFIXES
} mp_suffix;

typedef struct mp_suffix_row {
    const char *text; /* ".weight"; "_blocks" */
    mp_role role;
    bool divides; /* a second scale, or one of activations: it divides instead of multiplying */
} mp_suffix_row;

extern const mp_suffix_row mp_suffixes[MP_SUFFIXES];

/* Whether a name ends in a suffix: also behind an underscore, as in "w13_weight_scale". */
bool mp_suffix_ends(const char *name, mp_suffix suffix);

/* Length of the module's name in that of a weight, which is what stands in front of ".weight" or
 * ".weight_packed"; 0 for other tensors. */
size_t mp_weight_module(const char *name);

/* ------------------------------------------------------------------------
 * Conventions
 */

/* Whose convention it is. */
typedef enum mp_style {
    MP_AS_DEEPSEEK_V4,
    MP_AS_DEEPSEEK_V3,
    MP_AS_COMPRESSED_TENSORS, /* vLLM's llm-compressor */
    MP_AS_MODELOPT,           /* NVIDIA's Model Optimizer */
    MP_AS_MODELSLIM,          /* Ascend's msModelSlim */
    MP_AS_TORCH,              /* types of torch as they are */
    MP_AS_TRANSFORMERS,       /* all experts in two tensors, as transformers 5 holds them */
    MP_AS_LLAMA4,             /* the same, transposed */
    MP_AS_GPT_OSS,
    MP_AS_QWEN3,
    MP_AS_MINIMAX,
    MP_AS_MISTRAL,
    MP_AS_SGLANG,
    MP_STYLES
} mp_style;

/* "deepseek-v4", "modelopt" ...; a static string. */
const char *mp_style_name(mp_style style);

/* Elements of a tensor of a matrix [N, K]. */
typedef enum mp_extent {
    MP_EXTENT_NONE,     /* no such tensor */
    MP_EXTENT_CODES,    /* the matrix itself, packed into elements of the type */
    MP_EXTENT_CODES_16, /* the same in runs of 16 bytes: [N, K / 32, 16] */
    MP_EXTENT_BLOCKS,   /* one a block: [ceil(N / block_rows), ceil(K / block_cols)] */
    MP_EXTENT_ROWS,     /* one a row: [N, 1] */
    MP_EXTENT_SCALAR,   /* one: [] */
    MP_EXTENT_SINGLE,   /* one: [1] */
    MP_EXTENT_SHAPE     /* N and K: [2] */
} mp_extent;

typedef struct mp_convention_part {
    mp_suffix suffix;
    mp_dtype dtype;
    mp_extent covers;
} mp_convention_part;

/* The weight first, then its scale, then what else there is. */
#define MP_CONVENTION_PARTS 5

/* Whose words a quantization_config is in: its quant_method. */
typedef enum mp_method {
    MP_METHOD_NONE, /* config.json has none, or none that is read */
    MP_METHOD_FP8,
    MP_METHOD_MXFP4,
    MP_METHOD_MXFP8,
    MP_METHOD_MODELOPT,
    MP_METHOD_COMPRESSED_TENSORS,
    MP_METHODS
} mp_method;

/* "fp8", "compressed-tensors" ...; null for MP_METHOD_NONE. */
const char *mp_method_name(mp_method method);

/* What compressed-tensors says of activations. */
typedef enum mp_activations {
    MP_ACTIVATIONS_PLAIN,  /* nothing: they are not quantized */
    MP_ACTIVATIONS_STATIC, /* in the blocks of the weights, where there are scales of them */
    MP_ACTIVATIONS_TOKEN,  /* a scale a token */
    MP_ACTIVATIONS_GROUP   /* a scale for each group of a token */
} mp_activations;

/* The first two members are the key of a row: of conventions that are written, of that one alone.
 */
typedef struct mp_convention {
    mp_scheme scheme;
    mp_style style;
    const char *block; /* usual for models whose MoE block is called so ("ffn"); null: for any */
    mp_fusion fusion;
    mp_int4_form int4;    /* of int4 alone */
    uint32_t block_rows;  /* of a scale; UINT32_MAX where it covers all */
    uint32_t block_cols;  /* the same; of int4 the usual ones, which shapes decide */
    mp_dtype power_dtype; /* of scales that are powers of two by origin; MP_BOOL: as others */
    mp_convention_part parts[MP_CONVENTION_PARTS]; /* none: only config.json is read */

    /* config.json, and what stands beside it */
    mp_method method;
    uint32_t said_block;       /* weight_block_size where it is of other tensors; 0: as it is */
    const char *fmt;           /* of fp8 */
    const char *algorithms[2]; /* quant_algo of ModelOpt: the first is written */
    const char *format;        /* of compressed-tensors */
    const char *label;         /* in ModelSlim's quant_model_description.json */
    mp_activations activations;

    bool written; /* experts can be brought to it; others are only read */
} mp_convention;

/* All rows; *count of them. Those of a scheme stand together, the usual ones first, and schemes
 * that types alone do not tell apart in the order in which shapes are tried. */
const mp_convention *mp_conventions(size_t *count);

/* The first of a style and scheme, or null. */
const mp_convention *mp_convention_find(mp_style style, mp_scheme scheme);

/* The one that experts of a scheme are usually written in under a naming; null where none is. */
const mp_convention *mp_convention_usual(mp_scheme scheme, const mp_naming *naming);

/* The one of a style that experts can be written in; null stands for the usual one. Null with
 * MP_ERR_UNSUPPORTED where there is none: the message names the styles that there are. */
const mp_convention *mp_convention_named(const char *style, mp_scheme scheme,
                                         const mp_naming *naming, mp_error *err);

/* Its tensor of a role, or null. */
const mp_convention_part *mp_convention_part_of(const mp_convention *convention, mp_role role);

/* The rows and columns of a matrix that an element of a tensor stands for; UINT32_MAX for all. Not
 * of MP_EXTENT_SHAPE. */
typedef struct mp_element {
    uint32_t rows, cols;
} mp_element;

mp_element mp_convention_element(const mp_convention *convention, const mp_convention_part *part);

/* Dimensions of a tensor of one matrix. */
uint32_t mp_extent_rank(mp_extent covers);

#endif
