/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/forward.h - the reference forward of an MoE layer: what a layer computes, exactly and as
 * kernels compute it.
 *
 * A layer is one of a checkpoint, or of a pack. Tokens go in with the experts that each of them
 * chooses; the layer's own router can make the choices:
 *
 *     mp_layer_options options = {.size = sizeof options, .emulation = MP_EMULATE_W4A8};
 *     mp_layer *layer;
 *     if (mp_layer_open(&layer, "DeepSeek-V4-Flash", "layers.3", &options, NULL, &err) != 0)
 *         ...
 *     const mp_layer_info *info = mp_layer_get(layer);
 *     ... x: [tokens, info->hidden_size], ids and weights: [tokens, info->k]
 *     if (mp_layer_choose(layer, x, NULL, tokens, NULL, ids, weights, &err) != 0)
 *         ...
 *     mp_batch batch = {tokens, info->k, x, ids, weights};
 *     if (mp_layer_forward(layer, &batch, NULL, y, NULL, &err) != 0)
 *         ...
 *     mp_layer_release(layer);
 *
 * Every result depends on its token alone: not on the other tokens, the number of threads, the
 * processor, or on which rank or copy of an expert a choice goes to. So a pack gives bit for bit
 * what its source gives, where the weights are the same.
 */
#ifndef MOEPACK_FORWARD_H
#define MOEPACK_FORWARD_H

#include <moepack/base.h>
#include <moepack/place.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ------------------------------------------------------------------------
 * Emulations
 *
 *            weights       activations                      engine
 *   exact    as stored     float64 throughout               none
 *   w4a8     mxfp4         E4M3, UE8M0 scale of 32          DeepGEMM MegaMoE
 *   w4a4     mxfp4         E2M1, UE8M0 scale of 32          the same
 *   nvfp4    nvfp4         E2M1, E4M3 scale of 16 and a     the same
 *                          float32 scale a token
 *   bf16     bf16          BF16                             the same
 *   sm90-fp8 fp8_block     E4M3, float32 scale of 128,      the same, SM90
 *                          then UE8M0 scale of 64
 *   fuseep   int8_channel  INT8, float32 scale a token      Ascend FuseEP
 *
 * Formulas: moepack-forward(1), "ARITHMETIC".
 */

typedef enum mp_emulation {
    MP_EMULATE_EXACT,
    MP_EMULATE_W4A8,
    MP_EMULATE_W4A4,
    MP_EMULATE_NVFP4,
    MP_EMULATE_BF16,
    MP_EMULATE_SM90_FP8,
    MP_EMULATE_FUSEEP,
    MP_EMULATIONS
} mp_emulation;

typedef struct mp_layer_options {
    size_t size; /* of this struct */
    mp_emulation emulation;
    bool no_shared; /* leave the shared experts out */
    /* Of a checkpoint: shared experts too become what the kernel takes. Routed ones always do. */
    bool requantize_shared;
    const char *source; /* of a pack: the checkpoint that it was made of, for its router; or null */
    mp_dispatch dispatch;        /* of a pack: the copy that a choice goes to */
    mp_waterfill_mode waterfill; /* of one fused shared expert in a pack; loads are the batch's */
} mp_layer_options;

/* An open layer. */
typedef struct mp_layer mp_layer;

/* What is known of it. */
typedef struct mp_layer_info {
    const char *name; /* its prefix: "model.layers.3" */
    bool packed;
    bool scale_taken; /* config.json has no routed_scaling_factor, though models differ: 1 */
    uint64_t hidden_size;
    uint64_t vocab;  /* the router goes by token ids below this; 0: it does not */
    uint32_t k;      /* choices of a token that the router makes; 0: there is none */
    uint32_t shared; /* shared experts that are added to them */
    uint32_t count;  /* of experts or, in a pack, slots that compute */
} mp_layer_info;

/* Opens a layer of a checkpoint or a pack.
 * name: its number or its prefix.
 * options: may be null.
 * context: threads that look for second scales; may be null.
 * MP_ERR_USAGE for a layer that is none, or for shared experts of a pack of which nothing says what
 * they weigh, or that are not packed; MP_ERR_UNSUPPORTED for experts that do something else than
 * is known, or that the emulated kernel does not do; MP_ERR_INPUT, MP_ERR_IO. */
int mp_layer_open(mp_layer **layer, const char *path, const char *name,
                  const mp_layer_options *options, const mp_context *context, mp_error *err);
void mp_layer_release(mp_layer *layer);

/* Good until the layer is released. */
const mp_layer_info *mp_layer_get(const mp_layer *layer);

/* Makes tokens up: x [tokens, hidden_size], of a normal distribution, rounded to BF16, and
 * token_ids [tokens] below vocab, which may be null. They follow from the seed, as
 * moepack-forward(1) says. */
void mp_layer_random(const mp_layer *layer, uint64_t seed, uint64_t tokens, float *x,
                     int64_t *token_ids);

/* Lets the router choose: ids and weights [tokens, k], best choice first.
 * x: [tokens, hidden_size]; token_ids: [tokens], may be null unless the router goes by them.
 * MP_ERR_USAGE for a pack without a source, MP_ERR_UNSUPPORTED where it is not known how,
 * MP_ERR_INPUT where the layer has no router, or a token id is out of range. */
int mp_layer_choose(const mp_layer *layer, const float *x, const int64_t *token_ids,
                    uint64_t tokens, const mp_context *context, int32_t *ids, float *weights,
                    mp_error *err);

/* Tokens and the routed experts that they choose; those that a router gave, or others. */
typedef struct mp_batch {
    uint64_t tokens;
    uint32_t k;
    const float *x;       /* [tokens, hidden_size] */
    const int32_t *ids;   /* [tokens, k]; -1: no choice */
    const float *weights; /* [tokens, k] */
} mp_batch;

/* Computes the layer, with its shared experts.
 * y: [tokens, hidden_size]; of emulations, BF16 values.
 * used: set to how many experts or slots took part; may be null.
 * Only experts that a token chooses are read. Memory is 512 MiB, and a few MiB a thread.
 * MP_ERR_INPUT for an id out of range, a rank that is not here and weights that cannot be read,
 * MP_ERR_UNSUPPORTED for sizes that the emulated kernel cannot cut into blocks and weights that it
 * does not take (fuseep: other than int8_channel), MP_ERR_CHECK for a result that is NaN or
 * infinite, naming token and column; MP_ERR_IO, MP_ERR_CANCELLED. */
int mp_layer_forward(const mp_layer *layer, const mp_batch *batch, const mp_context *context,
                     double *y, uint32_t *used, mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
