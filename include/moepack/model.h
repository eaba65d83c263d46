/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/model.h - what a checkpoint's config.json says, and the catalog of
 * its experts: (layer, expert, projection) -> stored weight and scale.
 */
#ifndef MOEPACK_MODEL_H
#define MOEPACK_MODEL_H

#include <moepack/base.h>
#include <moepack/store.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* ------------------------------------------------------------------------
 * config.json
 */

/* A number that config.json does not give, or gives as null. */
#define MP_CONFIG_ABSENT UINT64_MAX

/* Towers of a model at most. */
#define MP_CONFIG_TOWERS 4

/* Facts of config.json, from its root or the nested text_config. Synonyms are
 * resolved: num_experts also stands for n_routed_experts, and so on. Without a config.json those
 * of params.json, which Mistral's own files have. */
typedef struct mp_config {
    bool present; /* there was a config.json at all */
    /* "" where absent. Of those of nested objects the outermost one whose rules are known, else
     * that of the root. */
    char model_type[64];
    uint64_t hidden_size;
    uint64_t latent_size; /* H of routed experts, where that is not hidden_size */
    uint64_t moe_intermediate_size;
    uint64_t num_experts;
    uint64_t zero_experts; /* choices behind the experts that give back what goes in */
    uint64_t num_shared_experts;
    uint64_t shared_width; /* of the shared expert, where config.json has a key for it */
    uint64_t experts_per_token;
    uint64_t num_hidden_layers;
    uint64_t num_mtp_layers;
    uint64_t vocab_size;
    uint64_t block_rows; /* of a scale: weight_block_size, block_structure, group_size of FP8 */
    uint64_t block_cols;
    uint64_t group_size;   /* columns of a scale, of schemes that have a scale for each group */
    uint64_t weight_bits;  /* num_bits of weights */
    char quant_method[64]; /* "" where absent */
    /* Which layers have experts: a list, or else these. */
    uint64_t first_k_dense_replace;
    uint64_t moe_layer_freq; /* absent where it is a list */
    uint64_t decoder_sparse_step;
    uint64_t moe_layer_start, moe_layer_end, moe_layer_interval;
    uint64_t expert_layer_period, expert_layer_offset;
    unsigned char *dense_layers; /* num_dense_layers flags, 1: dense by a list; or null */
    uint64_t num_dense_layers;
    bool lists_layers; /* the list is of all layers, and decides alone */
    bool says_layers;  /* there is any such list or number */
    /* What the router and the experts compute; a float that is absent is a NaN. */
    char scoring_func[32]; /* "" where absent */
    char topk_method[32];
    char hidden_act[32];
    char shared_combination[32]; /* "average": of routed and shared experts */
    uint64_t n_group;
    uint64_t topk_group;
    int norm_topk_prob; /* 0, 1, or -1 where absent */
    double routed_scaling_factor;
    double norm_min;     /* least sum that weights are divided by */
    double jitter;       /* router_jitter_noise */
    double logit_cap;    /* l becomes cap * tanh(l / cap) */
    double swiglu_limit; /* 0 where it is null */
    double swiglu_alpha;
    double swiglu_beta;
    double situ_beta;
    double situ_linear_beta;
    double *swiglu_limits; /* [num_swiglu_limits], 0: none; by layer, or null */
    uint64_t num_swiglu_limits;
    /* Models of their own in one checkpoint: "thinker" where there is a thinker_config with a
     * text_config. */
    char towers[MP_CONFIG_TOWERS][32];
    unsigned num_towers;
    char refused[64]; /* a flag that is set and changes what the router does as nothing here */
} mp_config;

/* ------------------------------------------------------------------------
 * The catalog
 */

/* How the codes of int4 are stored, in -8..7 but for the first. They are read as those are:
 * eight a word, 8 more, the first in the lowest bits. */
typedef enum mp_int4_form {
    MP_INT4_WORDS,   /* eight columns an I32, 8 more */
    MP_INT4_COLUMNS, /* two columns an I8, the even one in the low nibble: SGLang's W4AFP8 */
    MP_INT4_ROWS,    /* two rows an I8, the even one in the low nibble: ModelSlim's W4A8 */
    MP_INT4_BYTES    /* an I8 a code */
} mp_int4_form;

/* How the matrices of a layer's experts are stored; one for all of them. */
typedef struct mp_storage {
    mp_scheme scheme;
    mp_fusion fusion;
    mp_dtype weight_dtype;
    mp_dtype scale_dtype; /* where has_scale */
    bool has_scale;
    bool has_global;     /* a second scale for the whole matrix (nvfp4) */
    bool global_divides; /* the second scale divides instead of multiplying */
    mp_int4_form int4;   /* of int4 alone */
    bool two_scales;     /* of a row and of a group of it, which are read as their F32 product */
    uint32_t block_rows; /* of one scale; UINT32_MAX where it covers all rows */
    uint32_t block_cols; /* the same for columns */
} mp_storage;

/* One matrix of one expert, as stored. Tensors that it does not have are null. */
typedef struct mp_matrix {
    const mp_tensor *weight;
    const mp_tensor *scale;
    const mp_tensor *global;      /* second scale, one F32 */
    const mp_tensor *input_scale; /* of activations, one number */
    const mp_tensor *offset;      /* zero points, one a row */
    const mp_tensor *bias;        /* one a row */
    const mp_tensor *shape;       /* [N, K] of packed weights */
    const mp_tensor *group_scale; /* of int4, where scale is of a row */
    const mp_tensor *group_offset;
    const mp_tensor *scale_bias; /* read by nobody */
    /* Of fused tensors: row r of the matrix is row (transposed: column) first + r, or
     * first + 2r where paired, of slice `slice`. Zero otherwise. */
    uint64_t first;
    uint32_t slice;
    bool paired;
    bool global_divides; /* the second scale divides instead of multiplying */
    /* Of a part of a matrix: column k is stored column first_col + k of stored_cols; both zero
     * where the matrix has all columns. The part begins at the edge of a block of scales. */
    uint64_t first_col;
    uint64_t stored_cols;
} mp_matrix;

typedef struct mp_expert {
    mp_matrix matrix[MP_PROJECTIONS];
} mp_expert;

/* How a family names the tensors of an expert. */
typedef struct mp_naming {
    const char *block;                             /* "ffn", "mlp", ... */
    const char *experts;                           /* "experts" */
    const char *shared;                            /* "shared_experts" */
    const char *projection[MP_PROJECTIONS];        /* of routed experts */
    const char *shared_projection[MP_PROJECTIONS]; /* of the shared expert */
} mp_naming;

/* An MoE layer. */
typedef struct mp_moe_layer {
    char *prefix;         /* what comes before ".mlp", ".ffn" ...: "model.layers.3" */
    uint64_t number;      /* that ends the prefix */
    bool mtp;             /* a multi-token prediction block */
    uint32_t num_experts; /* routed */
    mp_expert *experts;   /* [num_experts] */
    mp_storage storage;   /* of the routed experts */
    bool has_shared;
    mp_expert shared; /* one matrix set of width num_shared_experts * I */
    mp_storage shared_storage;
    uint64_t bytes;          /* of all tensors of its routed experts */
    uint64_t expert_bytes;   /* of the weights and scales of one of them */
    mp_naming *naming;       /* as its tensors are named */
    const char *shared_name; /* "shared_experts", "shared_mlp" ..., where has_shared */
    uint64_t shared_width;   /* of the shared expert: 0 where there is none, or not understood */
    bool shared_joined;      /* its gate and up are in one tensor */
    bool ungated;            /* experts have no gate: they compute relu(up)^2 */
    /* Where fused: gate_up and down of all experts; where stacked, gate, down and up. */
    mp_matrix fused[3];
    size_t room; /* private: of experts */
} mp_moe_layer;

/* Tensors that are not experts, counted by what they are. */
typedef struct mp_kind_count {
    const char *kind; /* "router", "attention", "norm", ...; a static string */
    uint64_t tensors;
    uint64_t bytes;
} mp_kind_count;

#define MP_KINDS 7

/* One of several models in a checkpoint, whose layers are called after it:
 * "thinker.model.layers.0". It has sizes and a config.json of its own. */
typedef struct mp_tower {
    const char *name;    /* owned by the catalog's config */
    size_t first, count; /* of the catalog's layers */
    mp_config config;
    uint64_t hidden_size;
    uint64_t moe_intermediate_size;
    uint32_t num_experts;
    uint32_t num_shared_experts;
} mp_tower;

typedef struct mp_catalog {
    mp_checkpoint checkpoint;
    mp_config config;
    const char *family;             /* whose names experts have: "deepseek_v4"; a static string */
    char reason[256];               /* why it is that family */
    uint64_t hidden_size;           /* H of the experts, from the tensors */
    uint64_t moe_intermediate_size; /* I */
    uint32_t num_experts;           /* of the first layer */
    uint32_t num_shared_experts;    /* 0 too where these have another H than the routed ones */
    /* Where there are two or more: the numbers above are of the first, until mp_catalog_choose()
     * has left one of them. */
    mp_tower towers[MP_CONFIG_TOWERS];
    unsigned num_towers;
    bool unpacked;        /* holds MP_UNPACK_NAME (artifact.h): config.json may promise more */
    mp_moe_layer *layers; /* decoder layers ascending, then MTP blocks */
    size_t num_layers;
    uint64_t expert_tensors;        /* understood as expert weights or scales */
    mp_kind_count others[MP_KINDS]; /* passed over, by kind */
    mp_problems problems;           /* everything that is wrong or contradictory */
    mp_problems notes;              /* what is odd and does no harm */
    mp_problems promises;           /* what config.json or the folder promises and is not there */
} mp_catalog;

/* Opens a checkpoint and finds its experts.
 * Succeeds with problems listed when the files are readable but the experts are
 * incomplete or contradict config.json; mp_catalog_check_sound turns that into an error.
 * MP_ERR_INPUT when the files are malformed or hold no experts at all,
 * MP_ERR_UNSUPPORTED when the experts are stored in a way that is recognized and
 * not supported, MP_ERR_IO. */
int mp_catalog_open(mp_catalog *catalog, const char *path, const mp_context *context,
                    mp_error *err);
void mp_catalog_release(mp_catalog *catalog);

/* "model_type X", or where X is not known "model_type X, named like Y"; without one "named like
 * Y". model_type may be null. Returns the buffer. */
#define MP_MODEL_TEXT 160
char *mp_model_text(const char *model_type, const char *family, char text[MP_MODEL_TEXT]);

/* Of a catalog with towers, keeps the one that the layers of a list, as of mp_select_layers, are
 * of. layers: null where none are named. Nothing where there are no towers.
 * MP_ERR_USAGE for layers of two towers, or none. */
int mp_catalog_choose(mp_catalog *catalog, const char *layers, mp_error *err);

/* MP_ERR_INPUT with the first problem and the count of the others, if any; MP_ERR_USAGE where
 * there are towers of which none is chosen. Experts without a gate pass: they can be read, and
 * written as they are. */
int mp_catalog_check_sound(const mp_catalog *catalog, mp_error *err);

/* ------------------------------------------------------------------------
 * Forms: how the experts of a layer are written
 */

/* A tensor of an expert in a checkpoint. */
typedef struct mp_form_tensor {
    char *name;           /* behind the layer's prefix, {} for the number of the expert:
                             "ffn.experts.{}.w1.weight" */
    mp_projection matrix; /* MP_GATE_UP and MP_DOWN where gate and up are fused */
    mp_role role;         /* neither a bias nor an alpha */
    mp_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
} mp_form_tensor;

/* How the experts of a layer are stored in a checkpoint: what unpacking gives back. */
typedef struct mp_form {
    mp_scheme scheme;
    mp_fusion fusion;
    bool global_divides;
    uint32_t block_rows; /* of a scale; UINT32_MAX where it covers all */
    uint32_t block_cols;
    mp_form_tensor *tensors;
    size_t num_tensors;
} mp_form;

/* ------------------------------------------------------------------------
 * Names, for writers of checkpoints
 */

/* The report of an unpacked directory (pack.h): a checkpoint of the experts that were packed
 * and nothing else. */
#define MP_UNPACK_NAME "moepack-unpack.json"

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
