/* SPDX-License-Identifier: Apache-2.0 */
/*
 * synth/parts.h - the parts of mp_synth.
 *
 * A family lists items: a matrix, a stack of the matrices of all experts, or another
 * tensor, with its form, which says in which tensors it is stored and how these are
 * filled. The plan puts items into shards; writing a shard lays out its tensors and fills
 * them tile by tile.
 */
#ifndef MP_SYNTH_PARTS_H
#define MP_SYNTH_PARTS_H

#include <jansson.h>

#include <moepack/model.h>

#include "base/arena.h"
#include "checkpoint/conventions.h"
#include "checkpoint/families.h"
#include "synth/synth.h"
#include "synth/synth_values.h"

/* ------------------------------------------------------------------------
 * Forms
 */

/* All rows or columns of a matrix. */
#define MP_SYNTH_WHOLE UINT32_MAX

/* Tensors of a form at most, and dimensions of a tensor. */
#define MP_SYNTH_PARTS 4
#define MP_SYNTH_RANK  4

/* One tensor of a form. An element stands for a block of a matrix: for a packed pair, for
 * what a scale covers, for a whole matrix. */
typedef struct mp_synth_part {
    const char *suffix; /* behind the item's name; null: no such part */
    mp_dtype dtype;
    uint32_t rank; /* 2; 1 or 0 leave out dimensions of 1; 3 splits the last by 16 */
    uint32_t block_rows;
    uint32_t block_cols;
    uint32_t numbers; /* not 0: a vector of so many numbers instead */
} mp_synth_part;

struct mp_synth_item;
struct mp_synth_form;

/* Rows of an item that are made at once; of a stack, of one matrix in it. */
typedef struct mp_synth_tile {
    const struct mp_synth_item *item;
    mp_synth_values values[2]; /* as the item's sources */
    uint64_t row0;             /* of the stored rows */
    uint64_t rows;
    uint32_t num_experts;      /* what a token table chooses from */
    float *work;               /* mp_synth_work(item) floats */
    void *out[MP_SYNTH_PARTS]; /* the rows of each part that cover them, zeroed */
} mp_synth_tile;

/* How an item is stored, and made: by a convention, or in one tensor of its own. */
typedef struct mp_synth_form {
    mp_style style; /* of the convention, with scheme */
    mp_scheme scheme;
    bool powers;    /* its scales are powers of two */
    bool shares;    /* gate and up have one global scale */
    mp_dtype dtype; /* of the one tensor, called as the item; MP_BOOL: by the convention */
    uint32_t rank;  /* of that */
    void (*fill)(const mp_synth_tile *tile);
} mp_synth_form;

/* Null of a tensor of its own. */
const mp_convention *mp_synth_convention(const mp_synth_form *form);

/* The part with the weights is first, that with their scales second. convention: of the form. */
mp_synth_part mp_synth_form_part(const mp_synth_form *form, const mp_convention *convention,
                                 unsigned part);

extern const mp_synth_form mp_synth_bf16;               /* .weight BF16 */
extern const mp_synth_form mp_synth_mxfp4;              /* .weight I8, .scale F8_E8M0 1x32 */
extern const mp_synth_form mp_synth_mxfp4_u8;           /* .weight U8, .weight_scale U8 */
extern const mp_synth_form mp_synth_mxfp4_packed;       /* .weight_packed, .weight_scale U8 */
extern const mp_synth_form mp_synth_mxfp8;              /* .weight F8_E4M3, .weight_scale U8 */
extern const mp_synth_form mp_synth_mxfp8_modelslim;    /* the same */
extern const mp_synth_form mp_synth_mxfp8_inv;          /* the same, .weight_scale_inv */
extern const mp_synth_form mp_synth_fp8_scale_e8m0;     /* .weight F8_E4M3, .scale 128x128 */
extern const mp_synth_form mp_synth_fp8_scale_f32;      /* the same, F32 */
extern const mp_synth_form mp_synth_fp8_scale_inv_f32;  /* .weight_scale_inv F32 */
extern const mp_synth_form mp_synth_fp8_scale_inv_bf16; /* .weight_scale_inv BF16 */
extern const mp_synth_form mp_synth_fp8_minimax;        /* .weight_scale_inv F32 */
extern const mp_synth_form mp_synth_fp8_weight_scale;   /* .weight_scale F32 128x128 */
extern const mp_synth_form mp_synth_fp8_channel;        /* .weight_scale F32 [N, 1] */
extern const mp_synth_form mp_synth_int8_channel;       /* .weight I8, the same scale */
extern const mp_synth_form mp_synth_int8_offset;        /* and .weight_offset F32 [N, 1] */
extern const mp_synth_form mp_synth_int4;               /* .weight_packed I32 and its shape */
extern const mp_synth_form mp_synth_nvfp4;              /* .weight U8, .weight_scale_2 */
extern const mp_synth_form mp_synth_nvfp4_packed;       /* .weight_packed, .weight_global_scale */
extern const mp_synth_form mp_synth_bf16_rows;          /* [E, 2I, H], [E, H, I] */
extern const mp_synth_form mp_synth_bf16_cols;          /* [E, H, 2I], [E, I, H] */
extern const mp_synth_form mp_synth_bf16_cols_paired;   /* the same, gate and up in turn */
extern const mp_synth_form mp_synth_mxfp4_rows_paired;  /* _blocks [E, 2I, H/32, 16], _scales */
extern const mp_synth_form mp_synth_table_bf16;         /* BF16, no suffix */
extern const mp_synth_form mp_synth_table_f32;          /* F32, no suffix */
extern const mp_synth_form mp_synth_bias_bf16;          /* BF16 vector */
extern const mp_synth_form mp_synth_bias_f32;           /* F32 vector */
extern const mp_synth_form mp_synth_norm;               /* BF16 vector around 1 */
extern const mp_synth_form mp_synth_token_table;        /* I64, distinct experts in a row */

/* ------------------------------------------------------------------------
 * Items
 */

/* Something to be stored: a matrix [rows, cols], or one of every expert. */
typedef struct mp_synth_item {
    const mp_synth_form *form;
    const mp_convention *convention; /* of the form; filled by mp_synth_plan_add */
    const char *name;
    /* Tensors that values are named after. One; two where gate and up are in one matrix, or
     * share a global scale (gate and up of a stack have none). Of a stack, they are
     * projections: the tensor is "stack.N.source.weight". */
    const char *sources[2];
    const char *stack; /* "....experts", or null */
    uint64_t slices;   /* matrices that the item holds: 1 without a stack */
    uint64_t rows;     /* N; gate and up in one count both */
    uint64_t cols;     /* K */
    /* Filled by mp_synth_plan_add and mp_synth_item_measure: */
    const char *names[MP_SYNTH_PARTS]; /* of tensors; null: no such part */
    uint64_t shapes[MP_SYNTH_PARTS][MP_SYNTH_RANK];
    uint32_t ranks[MP_SYNTH_PARTS];
    uint64_t bytes;     /* of all tensors */
    uint64_t tile_rows; /* stored rows of a tile, before the last of a matrix */
} mp_synth_item;

mp_synth_part mp_synth_item_part(const mp_synth_item *item, unsigned part);

/* MP_FUSION_NONE: an item is one matrix. */
mp_fusion mp_synth_item_fusion(const mp_synth_item *item);

/* Rows of a matrix as it is stored, which are K where it is transposed. */
uint64_t mp_synth_stored_rows(const mp_synth_item *item);

/* Rows of a part that cover the first `rows` stored rows of a matrix, and their bytes. */
uint64_t mp_synth_part_rows(const mp_synth_item *item, unsigned part, uint64_t rows);
uint64_t mp_synth_part_row_bytes(const mp_synth_item *item, unsigned part);

/* Floats of scratch that filling a tile needs. */
uint64_t mp_synth_work(const mp_synth_item *item);

/* Settles shapes, bytes and tile_rows of an item whose names are given. MP_ERR_USAGE for a
 * tensor that is too large. */
int mp_synth_item_measure(mp_synth_item *item, mp_error *err);

/* What a header says of a part. */
mp_tensor_spec mp_synth_part_spec(const mp_synth_item *item, unsigned part);

/* ------------------------------------------------------------------------
 * Plans
 */

/* A shard holds items first_item up to that of the next shard. */
typedef struct mp_synth_shard {
    size_t first_item;
    char name[64];
} mp_synth_shard;

typedef struct mp_synth_plan {
    const mp_synth_options *options;
    const mp_family *model;
    const struct mp_synth_family *family;
    const struct mp_synth_format *format;
    mp_arena names;
    mp_synth_item *items;
    size_t num_items;
    size_t room;            /* of items */
    mp_synth_shard *shards; /* num_shards, and one more whose first_item is num_items */
    size_t num_shards;
    uint64_t bytes; /* of all tensors */
} mp_synth_plan;

/* Checks everything that options say, and finds their family and format.
 * MP_ERR_UNSUPPORTED, MP_ERR_USAGE. */
int mp_synth_check(const mp_synth_options *options, const struct mp_synth_family **family,
                   const struct mp_synth_format **format, mp_error *err);

/* Checks the options and lists what there is to write. Keeps the pointer to them. */
int mp_synth_plan_init(mp_synth_plan *plan, const mp_synth_options *options, mp_error *err);
void mp_synth_plan_release(mp_synth_plan *plan);

/* Adds an item, of which form, name, slices, rows, cols and, where it has any, stack and
 * sources are given. Texts are copied; without sources it is its own. */
int mp_synth_plan_add(mp_synth_plan *plan, const mp_synth_item *item, mp_error *err);

/* Index of all shards, malloc'ed; null without memory. */
char *mp_synth_plan_index(const mp_synth_plan *plan);

/* ------------------------------------------------------------------------
 * Families
 */

/* A scheme that a family's routed experts can have, by one convention. */
typedef struct mp_synth_format {
    mp_scheme scheme;
    mp_synth_style style;
    const mp_synth_form *routed; /* null ends a list of formats */
    const mp_synth_form *shared; /* also of dense MLPs */
    const mp_synth_form *mtp;    /* of routed experts in MTP blocks; null: as the others */
    const char *more;            /* further members of config.json as JSON, or null */
    const char *prefix;          /* of layers, where it is not the family's: config.json is flat */
    const char *exceptions[6];   /* that quantization_config lists; none: "lm_head" */
} mp_synth_format;

/* Format number `index` of a family: those that its own vendor uses come first, then those of
 * tools. Null behind the last. */
const mp_synth_format *mp_synth_family_format(const struct mp_synth_family *family, size_t index);

/* How config.json calls what it says of experts; null: it does not. */
typedef struct mp_synth_keys {
    const char *architecture;
    const char *model_type; /* null: the first of mp_family */
    const char *text;       /* model_type inside text_config; null: config.json is flat */
    const char *width;      /* of an expert */
    const char *experts;
    const char *top_k;
    const char *shared;
    const char *shared_width; /* of all shared experts together; of each, where `shared` counts */
    const char *dense;        /* how many first layers are dense */
    const char *dense_list;   /* which layers are dense */
    const char *moe_flags;    /* 1 for each layer that is not */
    const char *dense_width;
    const char *hash;
    const char *mtp;
    const char *scaling;
    const char *latent;     /* hidden size of routed experts, where the model has another */
    bool groups;            /* n_group and topk_group */
    bool text_quantization; /* quantization_config is in text_config too */
    const char *constants;  /* the rest, as JSON */
} mp_synth_keys;

/* What a family's checkpoints hold beside what mp_family says. */
typedef struct mp_synth_family {
    const char *name;               /* of mp_families() */
    const mp_synth_format *formats; /* of its vendor, the usual one first */
    const char *norms[2];           /* behind the layer's prefix */
    const mp_synth_form *router;
    const char *router_bias; /* behind the block; null: none */
    const mp_synth_form *bias;
    const char *token_table; /* instead, in hash layers; null: no such layers */
    const char *shared;      /* "shared_expert", where it is not the naming's */
    const char *shared_gate; /* behind the block; null: none */
    bool by_tools;           /* tools quantize it, with a tensor a matrix */
    bool biased;             /* experts have biases */
    bool dense;              /* may begin with dense layers */
    bool mtp;                /* may have MTP blocks */
    mp_synth_keys keys;
} mp_synth_family;

/* How many times as wide as its routed experts a model of the family is: 2 where they work on
 * a latent, as in Kimi K3, else 1. */
uint64_t mp_synth_latents(const mp_synth_family *family);

/* The family of that name, or null. */
const mp_synth_family *mp_synth_family_find(const char *name);

/* Adds all items of a checkpoint. */
int mp_synth_family_items(mp_synth_plan *plan, mp_error *err);

/* config.json; null without memory. */
json_t *mp_synth_config(const mp_synth_plan *plan);

/* quant_model_description.json of a plan whose routed experts have a label in it; null without
 * memory. */
json_t *mp_synth_description(const mp_synth_plan *plan);

/* hf_quant_config.json of ModelOpt; null without memory. */
json_t *mp_synth_modelopt_config(const mp_synth_plan *plan);

/* ------------------------------------------------------------------------
 * Writing
 */

/* A plan that is being written. */
typedef struct mp_synth_run {
    const mp_synth_plan *plan;
    const char *dir;
    const float *shapes; /* as mp_synth_shapes fills it */
    const mp_context *context;
    uint64_t done; /* bytes of tensors that are written */
} mp_synth_run;

/* Writes a shard and reports progress. */
int mp_synth_shard_write(mp_synth_run *run, size_t shard, mp_error *err);

#endif
