/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/forward_tokens.h - the tokens that a forward takes: read from a file, or made up. */
#ifndef MOEPACK_CMD_FORWARD_TOKENS_H
#define MOEPACK_CMD_FORWARD_TOKENS_H

#include <moepack/forward.h>

typedef struct forward_tokens {
    uint64_t tokens;
    uint32_t k;         /* choices of a token; 0 where there are none yet */
    float *x;           /* [tokens, H] */
    int64_t *token_ids; /* [tokens], or null */
    int32_t *ids;       /* [tokens, k], or null: logical experts */
    float *weights;     /* [tokens, k], or null */
} forward_tokens;

/* Reads x, and where they are there topk_ids with topk_weights, and token_ids, of a
 * safetensors file. MP_ERR_INPUT, naming the file and the tensor. */
int forward_tokens_read(forward_tokens *t, const char *path, uint64_t hidden_size, mp_error *err);

/* Makes up x, and token_ids where the layer's router goes by them. */
int forward_tokens_make(forward_tokens *t, uint64_t seed, uint64_t tokens, const mp_layer *layer,
                        mp_error *err);

void forward_tokens_release(forward_tokens *t);

#endif
