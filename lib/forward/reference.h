/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forward/reference.h - the parts of the reference forward of an MoE layer.
 *
 * A forward takes three things: tokens with their choices of experts, weights
 * (an expert source: a checkpoint, or the ranks of a packed directory), and an
 * emulation, which is the arithmetic:
 *
 *     mp_catalog_experts experts;
 *     mp_layer_router router;
 *     mp_forward_options how = {.emulation = MP_EMULATE_W4A8};
 *     if (mp_catalog_experts_open(&experts, &catalog, layer, &options, &context, &err) != 0 ||
 *         mp_layer_router_open(&router, &catalog, layer, &err) != 0 ||
 *         mp_layer_route(&router, x, NULL, tokens, &context, ids, weights, &err) != 0 ||
 *         mp_model_activation(&catalog.config, layer->number, &how.activation, NULL,
 *                             &how.weigh_input, &err) != 0)
 *         ...
 *     mp_batch batch = {tokens, router.router.k, x, ids, weights};
 *     mp_forward(&experts.source, &how, &batch, &context, y, &err);
 *
 * Every result depends on its token alone: not on the other tokens, the number of
 * threads, the processor, or on which rank or copy of an expert a choice goes to.
 * So a packed directory gives bit for bit what its source gives, where the weights
 * are the same.
 */
#ifndef MP_FORWARD_REFERENCE_H
#define MP_FORWARD_REFERENCE_H

#include <moepack/artifact.h>
#include <moepack/forward.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/place.h>

#include "pack/pack.h"

/* ------------------------------------------------------------------------
 * Emulations
 */

/* "exact", "w4a8", ...; a static string. */
const char *mp_emulation_name(mp_emulation emulation);

/* The scheme of the weights that the kernel takes; MP_SCHEME_COUNT for exact, which takes
 * any. */
mp_scheme mp_emulation_scheme(mp_emulation emulation);

/* ------------------------------------------------------------------------
 * Routers
 */

typedef enum mp_scoring {
    MP_SCORE_SOFTMAX,
    MP_SCORE_SIGMOID,
    MP_SCORE_SQRTSOFTPLUS, /* sqrt(log(1 + e^x)) */
    MP_SCORE_SPARSEMIXER,  /* two choices, each weighed among the logits that are near it */
    MP_SCORINGS
} mp_scoring;

/* The scoring of a name: "softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"; false if there is
 * none. */
bool mp_scoring_parse(const char *name, mp_scoring *scoring);

/* How experts are chosen from logits, and what the choices weigh. */
typedef struct mp_router {
    mp_scoring scoring;
    uint32_t num_experts; /* N */
    uint32_t k;           /* choices of a token, at most N; 2 for sparsemixer */
    uint32_t n_group;     /* 0 or 1: no groups; divides N */
    uint32_t topk_group;  /* that stay, where there are groups */
    uint32_t group_best; /* scores that are a group's, summed: 1 or 2; 0 is 2 with a bias, else 1 */
    bool by_logits;      /* the choice goes by logits, where scores may be equal and logits not */
    bool renormalize;    /* weights of a token are divided by their sum */
    float epsilon;       /* that is added to the sum */
    float least_sum;     /* that the sum counts as at least */
    float scale;         /* then multiplied by this: routed_scaling_factor */
    float near;          /* of sparsemixer: a logit l is near the largest m where
                            (m - l) / max(|l|, m) <= 2 near */
    const float *bias;   /* [N]: added to scores for the choice, not for the weights; or null */
} mp_router;

/* Chooses experts for tokens.
 * logits: [tokens, N]; ids, weights: [tokens, k], best choice first.
 * Of equal scores the lowest id wins. All in float32.
 * MP_ERR_USAGE for a router whose numbers do not go together, MP_ERR_INPUT for a logit
 * that is not finite, naming token and expert. */
int mp_router_choose(const mp_router *router, const float *logits, uint64_t tokens, int32_t *ids,
                     float *weights, mp_error *err);

/* The weights of choices that are made already, as of layers that route by token id; -1
 * weighs 0. Otherwise as above. */
int mp_router_weigh(const mp_router *router, const float *logits, uint64_t tokens,
                    const int32_t *ids, float *weights, mp_error *err);

/* ------------------------------------------------------------------------
 * Expert sources
 */

/* Where the weights of experts come from. Ids are what the batch's choices name: experts
 * of a checkpoint, or slots of a packed directory. */
typedef struct mp_expert_source {
    uint64_t hidden_size;       /* H */
    uint64_t intermediate_size; /* I */
    uint32_t count;             /* ids are below this */
    uint64_t tile_rows;         /* most rows of a part that are read at once */
    uint64_t scratch_bytes;     /* that a read needs */
    const void *user;
    /* Rows row0 .. row0+rows-1 of gate and of up into part[0] and part[1], or of down into
     * part[0]; row0 is a multiple of tile_rows, rows is tile_rows or all that is left.
     * scratch: aligned to 64; what part[] points to lies in it. Called by many threads. */
    int (*read)(const void *user, uint32_t id, mp_side side, uint64_t row0, uint64_t rows,
                void *scratch, mp_rows part[2], mp_error *err);
    /* The whole bias of a projection, I or H numbers. Null where experts have none. */
    int (*bias)(const void *user, uint32_t id, mp_projection projection, float *out, mp_error *err);
} mp_expert_source;

/* ------------------------------------------------------------------------
 * The forward
 */

/* g' * sigmoid(alpha g') * (u' + beta), with g' = min(g, limit) and u' = u clamped to
 * +-limit. Zeroed: silu(g) * u.
 * SiTU, where situ is above 0: situ tanh(g / situ) sigmoid(g) u', with u' = c tanh(u / c) and c
 * situ_linear, or u' = u where that is 0. No kernel is known to compute it; an emulation does so
 * in float32 where its kernel has the gate. */
typedef struct mp_activation {
    float limit; /* 0: none */
    float alpha; /* 0: 1 */
    float beta;
    bool late; /* min(silu(g), limit) * u' instead */
    float situ;
    float situ_linear;
} mp_activation;

typedef struct mp_forward_options {
    mp_emulation emulation;
    mp_activation activation;
    mp_activation shared_activation; /* of ids from first_shared on, where that is not 0 */
    uint32_t first_shared;
    bool weigh_input; /* choices weigh what goes into an expert, not what comes out (Llama 4) */
    uint64_t memory;  /* bytes of intermediate results; more tokens than fit are done in turn,
                         each time reading the weights anew. 0: 512 MiB */
    /* What is added to the sum, before it is rounded: x times a weight, and a bias; or null. */
    const float *identity; /* [tokens] */
    const float *bias;     /* [H] */
} mp_forward_options;

/* Computes an MoE layer. A shared expert is a choice of the batch like any other.
 * y: [tokens, H]; of emulations, BF16 values.
 * Only experts that a token chooses are read. Memory is options->memory, and a few MiB a
 * thread.
 * MP_ERR_INPUT for an id out of range and what a source refuses, MP_ERR_UNSUPPORTED for
 * sizes that the emulated kernel cannot cut into blocks and weights that it does not take
 * (fuseep: other than int8_channel), MP_ERR_CHECK for a result that is NaN or infinite,
 * naming token and column; MP_ERR_IO, MP_ERR_CANCELLED. */
int mp_forward(const mp_expert_source *experts, const mp_forward_options *options,
               const mp_batch *batch, const mp_context *context, double *y, mp_error *err);

/* ------------------------------------------------------------------------
 * Measures
 */

/* How far a is from b. */
typedef struct mp_deviation {
    double rel_l2;      /* ||a - b|| / ||b||; 0 where both are 0 */
    double cosine_diff; /* 1 - 2 <a, b> / (<a, a> + <b, b>); 0 where both are 0 */
    double max_abs;
    bool finite;    /* no NaN or Inf in either; where false, the measures above are NaN */
    bool identical; /* all values are equal */
} mp_deviation;

/* a, b: n numbers each. */
mp_deviation mp_compare(const double *a, const double *b, uint64_t n);

/* ------------------------------------------------------------------------
 * Tokens
 */

/* Fills x [tokens, hidden_size] with numbers of a normal distribution, rounded to BF16, that
 * follow from the seed: moepack-forward(1) says how. */
void mp_random_tokens(uint64_t seed, uint64_t tokens, uint64_t hidden_size, float *x);

/* The same of ids below `vocab`, for layers that route by token id. */
void mp_random_token_ids(uint64_t seed, uint64_t tokens, uint64_t vocab, int64_t *ids);

/* ------------------------------------------------------------------------
 * Layers of a checkpoint
 */

/* The layer that a prefix ("model.layers.3") or a number names. MP_ERR_USAGE where that is
 * none, or more than one. */
int mp_find_layer(const mp_catalog *catalog, const char *name, const mp_moe_layer **layer,
                  mp_error *err);

/* What the experts of a decoder layer compute, by config.json. layer: its number, or UINT64_MAX
 * for an MTP block.
 * shared: the same of shared experts; may be null.
 * weigh_input: as in mp_forward_options; may be null.
 * MP_ERR_UNSUPPORTED for experts that do something else than mp_activation says. */
int mp_model_activation(const mp_config *config, uint64_t layer, mp_activation *activation,
                        mp_activation *shared, bool *weigh_input, mp_error *err);

/* Whether y can be told from what the experts of a layer give. packed: nothing is at hand but
 * those, and no tensor of their block.
 * MP_ERR_UNSUPPORTED for experts on a latent, or on another input than the router's; MP_ERR_USAGE
 * where a pack has not all that is in y. */
int mp_model_check_block(const mp_config *config, bool packed, mp_error *err);

/* The router of a layer, with what config.json says of it. */
typedef struct mp_layer_router {
    mp_router router;
    uint64_t hidden_size;
    uint32_t num_experts; /* of these N: ids from here on are zero experts, which give back x */
    float logit_cap;      /* 0: none */
    float *gate;          /* [N, H] with zeros behind rows and below, private; or null */
    float *logit_bias;    /* [N], or null */
    float *bias;          /* [N], or null: router.bias */
    int32_t *by_token;    /* [vocab, k]: experts of each token id; or null */
    uint64_t vocab;       /* rows of by_token */
    float *shared_gate;   /* [H], or null: weighs the shared experts by a sigmoid */
    float *mix;           /* [2, H], or null: softmax weighs routed against shared experts */
    float mix_bias[2];
    float part;        /* what routed and shared experts weigh in the sum: 1, or 0.5 */
    float *block_bias; /* [H], or null: added to y */
    uint32_t shared;   /* shared experts: ids num_experts .. num_experts + shared - 1 */
    mp_error cannot;   /* why it cannot route, where it cannot: code is not 0 */
    bool scale_taken;  /* config.json has no routed_scaling_factor, though models differ: 1 */
} mp_layer_router;

/* Reads the router's tensors. A router whose rules are not known, or that has tensors that no
 * rule reads, opens all the same; its choices have to be given.
 * MP_ERR_INPUT where one has the wrong shape or numbers that are not finite,
 * MP_ERR_UNSUPPORTED for a layer whose experts are not fed with x itself, or that does more with
 * what they give. */
int mp_layer_router_open(mp_layer_router *router, const mp_catalog *catalog,
                         const mp_moe_layer *layer, mp_error *err);
void mp_layer_router_release(mp_layer_router *router);

/* Routes tokens: logits in float32, then mp_router_choose, or the layer's table.
 * x: [tokens, H]; token_ids: [tokens], may be null unless there is a table.
 * ids, weights: [tokens, k].
 * MP_ERR_UNSUPPORTED where it is not known how, MP_ERR_INPUT where the layer has no router, or a
 * token id is out of range. */
int mp_layer_route(const mp_layer_router *router, const float *x, const int64_t *token_ids,
                   uint64_t tokens, const mp_context *context, int32_t *ids, float *weights,
                   mp_error *err);

/* Takes choices of zero experts out: they become -1, and identity [tokens] the sum of their
 * weights. Returns whether there were any. */
bool mp_layer_take_zero(const mp_layer_router *router, uint64_t tokens, uint32_t k, int32_t *ids,
                        const float *weights, float *identity);

/* Appends the shared experts to choices, with weight 1 or what their gate gives, and weighs
 * routed ones against them where the family does. shared: router->shared, or 0 to leave them out.
 * ids, weights: [tokens, k]; all_ids, all_weights: [tokens, k + shared]. */
void mp_layer_add_shared(const mp_layer_router *router, const float *x, uint64_t tokens, uint32_t k,
                         uint32_t shared, const int32_t *ids, const float *weights,
                         int32_t *all_ids, float *all_weights);

/* What the shared expert weighs for each token: [tokens]. */
void mp_layer_weigh_shared(const mp_layer_router *router, const float *x, uint64_t tokens,
                           float *weights);

typedef struct mp_catalog_experts_options {
    /* What weights are requantized to where they are stored otherwise, as repacking for a
     * target does; MP_SCHEME_COUNT: taken as they are. Of routed and of shared experts. */
    mp_scheme scheme;
    mp_scheme shared_scheme;
    mp_quant_options quant; /* global_scale is not read */
} mp_catalog_experts_options;

/* Experts of a layer of a checkpoint as a source: ids 0 .. N-1 the routed ones, then the
 * shared ones, each as wide as a routed one. */
typedef struct mp_catalog_experts {
    mp_expert_source source; /* user is the struct itself: it must not move */
    const mp_catalog *catalog;
    const mp_moe_layer *layer;
    mp_catalog_experts_options options;
    float *global; /* [count][MP_PROJECTIONS]: second scales of what becomes nvfp4; or null */
} mp_catalog_experts;

/* context: threads that look for second scales, where there are such; may be null.
 * The catalog has to stay open. MP_ERR_INPUT, MP_ERR_UNSUPPORTED for zero points that are
 * not zero. */
int mp_catalog_experts_open(mp_catalog_experts *experts, const mp_catalog *catalog,
                            const mp_moe_layer *layer, const mp_catalog_experts_options *options,
                            const mp_context *context, mp_error *err);
void mp_catalog_experts_release(mp_catalog_experts *experts);

/* A shared expert by itself: one that is no whole number of routed ones wide, or takes another
 * input, and so cannot stand among them. */
typedef struct mp_shared_expert {
    mp_catalog catalog;         /* private: the checkpoint, as if it had no other expert */
    mp_moe_layer layer;         /* private */
    mp_catalog_experts experts; /* must not move */
} mp_shared_expert;

/* The catalog has to stay open. MP_ERR_INPUT for a layer without a shared expert. */
int mp_shared_expert_open(mp_shared_expert *shared, const mp_catalog *catalog,
                          const mp_moe_layer *layer, const mp_context *context, mp_error *err);
void mp_shared_expert_release(mp_shared_expert *shared);

/* Adds to y [tokens, H] what the shared expert gives for the tokens of a batch, computed
 * exactly. */
int mp_shared_expert_add(const mp_shared_expert *shared, const mp_layer_router *router,
                         const mp_forward_options *options, const mp_batch *batch,
                         const mp_context *context, double *y, mp_error *err);

/* ------------------------------------------------------------------------
 * Packed directories
 */

/* Experts of a layer of a packed directory as a source. Ids are slots, as mp_slots counts
 * them, and behind them, rank after rank, shared experts that are kept apart. A slot is read
 * from the files of its rank only. */
typedef struct mp_packed_experts {
    mp_expert_source source; /* user is the struct itself: it must not move */
    const mp_pack *pack;
    size_t layer;       /* of the manifest */
    const int32_t *row; /* of the placement */
    uint32_t apart;     /* shared experts of each rank that are kept apart */
} mp_packed_experts;

/* Keeps the pointer to the pack, which has to stay open; there is nothing to release.
 * MP_ERR_UNSUPPORTED for several shared experts in one tensor. Computing a slot of a rank that
 * is not open is MP_ERR_INPUT. */
int mp_packed_experts_init(mp_packed_experts *experts, const mp_pack *pack, size_t layer,
                           mp_error *err);

/* How tokens, evenly spread over the ranks in order, go to slots. */
typedef struct mp_packed_dispatch {
    mp_dispatch dispatch;
    mp_waterfill_mode waterfill; /* of one fused shared expert; loads are those of the batch */
} mp_packed_dispatch;

/* Choices of a checkpoint's experts into choices of slots.
 * ids, weights: [tokens, k + shared]: k logical experts, then `shared` ids of shared experts,
 *   as mp_layer_route gives them; shared may be 0.
 * slot_ids, slot_weights: of the same shape; other arrays than ids and weights.
 * MP_ERR_USAGE for shared choices where none, or another number, are packed, MP_ERR_INPUT where
 * a rank is not open. */
int mp_packed_route(const mp_packed_experts *experts, const mp_packed_dispatch *how,
                    const int32_t *ids, const float *weights, uint64_t tokens, uint32_t k,
                    uint32_t shared, int32_t *slot_ids, float *slot_weights, mp_error *err);

#endif
