/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack/synth.h - the parts of mp_synth.
 *
 * A family lists items: a matrix, or another tensor, with its form, which says how it
 * is stored and filled. The plan puts items into shards; writing a shard lays out its
 * tensors and fills them tile by tile.
 */
#ifndef MP_PACK_SYNTH_H
#define MP_PACK_SYNTH_H

#include <jansson.h>

#include <moepack/pack.h>

#include "base/arena.h"
#include "pack/synth_values.h"

/* Rows of an item that are made at once. */
typedef struct mp_synth_tile {
    const struct mp_synth_form *form;
    mp_synth_values values;
    uint64_t row0; /* a multiple of the form's block_rows */
    uint64_t rows;
    uint64_t cols;
    uint32_t num_experts; /* what a token table chooses from */
    float *work;          /* mp_synth_work(form, cols) floats */
    void *out;            /* [rows, cols], in the form's dtype */
    void *scales;         /* the scale rows that cover them */
} mp_synth_tile;

/* How an item is stored. */
typedef struct mp_synth_form {
    const char *suffix; /* behind the item's name */
    mp_dtype dtype;
    uint32_t packing;         /* columns that one element of dtype holds */
    uint32_t rank;            /* 2, or 1 for a vector, which is a matrix of one row */
    const char *scale_suffix; /* null: no scale */
    mp_dtype scale_dtype;
    uint32_t block_rows; /* of one scale; 1 without scales */
    uint32_t block_cols;
    void (*fill)(const mp_synth_tile *tile);
} mp_synth_form;

extern const mp_synth_form mp_synth_bf16;               /* .weight BF16 */
extern const mp_synth_form mp_synth_mxfp4;              /* .weight I8, .scale F8_E8M0 1x32 */
extern const mp_synth_form mp_synth_fp8_scale_e8m0;     /* .weight F8_E4M3, .scale 128x128 */
extern const mp_synth_form mp_synth_fp8_scale_f32;      /* the same, F32 */
extern const mp_synth_form mp_synth_fp8_scale_inv_f32;  /* .weight_scale_inv F32 */
extern const mp_synth_form mp_synth_fp8_scale_inv_bf16; /* .weight_scale_inv BF16 */
extern const mp_synth_form mp_synth_router;             /* BF16, no suffix */
extern const mp_synth_form mp_synth_bias;               /* F32 vector */
extern const mp_synth_form mp_synth_norm;               /* BF16 vector around 1 */
extern const mp_synth_form mp_synth_token_table;        /* I64, distinct experts in a row */

/* Bytes of a row of the form's elements, and of a row of its scales. */
uint64_t mp_synth_row_bytes(const mp_synth_form *form, uint64_t cols);
uint64_t mp_synth_scale_row_bytes(const mp_synth_form *form, uint64_t cols);

/* Floats of scratch that filling a tile needs. */
uint64_t mp_synth_work(const mp_synth_form *form, uint64_t cols);

/* A tensor to be made, with its scale. */
typedef struct mp_synth_item {
    const mp_synth_form *form;
    const char *name;
    const char *scale_name; /* where the form has a scale */
    uint64_t rows;
    uint64_t cols;
    uint64_t shape[2];
    uint64_t scale_shape[2];
    uint64_t bytes; /* of both tensors */
    uint64_t tile_rows;
} mp_synth_item;

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

/* Adds an item [rows, cols] whose name is `name`, then the form's suffix. */
int mp_synth_plan_add(mp_synth_plan *plan, const mp_synth_form *form, const char *name,
                      uint64_t rows, uint64_t cols, mp_error *err);

/* What a header says of the item's tensor, and of its scale, if the form has one. */
void mp_synth_item_specs(const mp_synth_item *item, mp_tensor_spec *weight, mp_tensor_spec *scale);

/* Index of all shards, malloc'ed; null without memory. */
char *mp_synth_plan_index(const mp_synth_plan *plan);

/* A scheme that a family's routed experts can have. */
typedef struct mp_synth_format {
    mp_scheme scheme;
    const mp_synth_form *routed; /* null ends a list of formats */
    const mp_synth_form *shared; /* also of dense MLPs */
} mp_synth_format;

#define MP_SYNTH_FORMATS 4

/* What a family's checkpoints hold beside what mp_family says. */
typedef struct mp_synth_family {
    const char *name;                          /* of mp_families() */
    mp_synth_format formats[MP_SYNTH_FORMATS]; /* the usual one first */
    const char *norms[2];                      /* behind the layer's prefix */
    const char *router_bias;                   /* behind the block; null: none */
    const char *token_table;                   /* instead, in hash layers; null: no such layers */
    bool dense;                                /* may begin with dense layers */
    bool mtp;                                  /* may have MTP blocks */
    json_t *(*config)(const mp_synth_options *options);
} mp_synth_family;

/* The family of that name, or null. */
const mp_synth_family *mp_synth_family_find(const char *name);

/* Adds all items of a checkpoint. */
int mp_synth_family_items(mp_synth_plan *plan, mp_error *err);

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

/* The family's config.json; null without memory. */
json_t *mp_synth_config_v4(const mp_synth_options *options);
json_t *mp_synth_config_v3(const mp_synth_options *options);
json_t *mp_synth_config_qwen3(const mp_synth_options *options);

#endif
