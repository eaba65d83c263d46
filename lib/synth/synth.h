/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth/synth.h - synthetic checkpoints, in the exact on-disk form of a family.
 */
#ifndef MP_SYNTH_SYNTH_H
#define MP_SYNTH_SYNTH_H

#include <moepack/base.h>

/* Whose convention names and types the tensors of a scheme. */
typedef enum mp_synth_style {
    MP_STYLE_USUAL,              /* the first that the family has for the scheme */
    MP_STYLE_VENDOR,             /* of the models as they are released */
    MP_STYLE_COMPRESSED_TENSORS, /* vLLM's llm-compressor */
    MP_STYLE_MODELOPT,           /* NVIDIA's Model Optimizer */
    MP_STYLE_MODELSLIM,          /* Ascend's msModelSlim */
    MP_STYLE_COUNT
} mp_synth_style;

/* "usual", "vendor", "compressed-tensors", "modelopt", "modelslim"; a static string. */
const char *mp_synth_style_name(mp_synth_style style);

typedef struct mp_synth_options {
    const char *family;               /* one of mp_synth_family_name() */
    mp_scheme scheme;                 /* of routed experts: one of mp_synth_scheme() */
    mp_synth_style style;             /* in which of its conventions */
    uint64_t hidden_size;             /* H of routed experts; kimi_k3's model is twice as wide */
    uint64_t intermediate_size;       /* I, of one expert */
    uint64_t dense_intermediate_size; /* of a dense layer's MLP; 0 without such layers */
    uint32_t num_experts;             /* routed, in every MoE layer */
    uint32_t num_shared_experts;      /* their tensors are num_shared_experts * I wide */
    uint32_t top_k;
    uint32_t num_layers;      /* decoder layers */
    uint32_t num_dense;       /* of them, dense ones at the start */
    uint32_t num_hash_layers; /* of them, those at the start that route by token id */
    uint32_t num_mtp;         /* MTP blocks, not counted in num_layers */
    uint64_t vocab_size;
    double routed_scaling_factor; /* not used where the family has none */
    uint64_t seed;
    uint64_t max_shard_size; /* of a shard's tensors, in bytes; 0: 5 GB */
    int zstd;                /* how shards are compressed ; MP_ZSTD_NONE: not at all */
} mp_synth_options;

/* A named set of options with a released model's shapes. */
typedef struct mp_preset {
    const char *name; /* "deepseek-v4-flash" */
    mp_synth_options options;
} mp_preset;

/* The preset of that name, or null. */
const mp_preset *mp_preset_find(const char *name);

/* All presets; *count of them. */
const mp_preset *mp_presets(size_t *count);

/* Names of the families (model.h) that mp_synth can make, and null behind the last. */
const char *mp_synth_family_name(size_t index);

/* Pair number `index` of scheme and style that routed experts of a family can have, the usual
 * one first; a scheme may occur with several styles. style: may be null. False behind the
 * last, and for a family that mp_synth cannot make. */
bool mp_synth_scheme(const char *family, size_t index, mp_scheme *scheme, mp_synth_style *style);

/* Writes a checkpoint: config.json, shards and their index, and what the style has beside
 * them. It holds the routed and shared experts, routers, dense MLPs and two norms a layer,
 * named, typed and shaped as the family's released models are; no attention, no embedding.
 *
 * Weights are heavy-tailed and have outlier channels; their standard deviation is
 * about 0.03. Each depends on the seed, the name of its matrix and its place in that
 * only, so that a format is another quantization of the same weights, whether experts are
 * stacked or not, and threads and shard size change no tensor.
 *
 * dir: a path that is free, or an empty directory. Everything is written to dir.partial,
 *   which is renamed when it is whole, and removed after a failure.
 * MP_ERR_USAGE for sizes that no checkpoint can have, MP_ERR_UNSUPPORTED for a family,
 * or a scheme, layer or expert that the family does not have, MP_ERR_IO (also if dir or
 * dir.partial is there already), MP_ERR_CANCELLED. */
int mp_synth(const mp_synth_options *options, const char *dir, const mp_context *context,
             mp_error *err);

#endif
