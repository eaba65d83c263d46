/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/artifact.h - a packed directory: its manifest moepack.json as a value, its shape, and
 * the directory itself, open.
 *
 * The format is moepack-format(5). Whoever writes a pack fills an mp_manifest
 * and takes its text; whoever reads one opens the directory and gets the same
 * value back.
 */
#ifndef MOEPACK_ARTIFACT_H
#define MOEPACK_ARTIFACT_H

#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/place.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define MP_FORMAT_VERSION "1"

/* Names inside a packed directory. */
#define MP_MANIFEST_NAME  "moepack.json"
#define MP_PLACEMENT_NAME "placement.json"

typedef struct mp_packed_tensor {
    char *name; /* "layers.3.experts.l1_weight" */
    mp_hex_digest xxh3;
} mp_packed_tensor;

typedef struct mp_packed_file {
    char *name; /* inside the rank's directory */
    uint64_t size;
    mp_packed_tensor *tensors; /* in the order of the file */
    size_t num_tensors;
} mp_packed_file;

typedef struct mp_packed_rank {
    uint32_t rank;
    mp_hex_digest index_xxh3; /* of the rank's index file */
    mp_packed_file *files;
    size_t num_files;
} mp_packed_rank;

typedef struct mp_source_shard {
    char *name;
    uint64_t size;
    mp_hex_digest header_xxh3; /* of the 8-byte length and the JSON behind it */
} mp_source_shard;

/* Error of a requantized side of a layer. */
typedef struct mp_layer_error {
    char *layer;        /* prefix */
    const char *matrix; /* "w13" or "w2"; "shared w13" or "shared w2" */
    double relative_rms;
    double sqnr_db;
    uint64_t saturated, flushed, elements;
    uint64_t requantized_blocks; /* mp_quant_stats (numeric.h) */
} mp_layer_error;

typedef struct mp_manifest {
    char *tool_version;
    char *target; /* mp_target_find (layout.h) knows it, or this version does not */
    uint64_t target_version;
    bool nz; /* weights in FRACTAL_NZ form */
    mp_alphas alphas;
    /* quantization */
    mp_scheme source_scheme; /* MP_SCHEME_COUNT: not the same in all layers */
    mp_scheme target_scheme;
    bool lossless;        /* no weight of the routed experts changed */
    bool shared_lossless; /* the same of shared experts that are packed */
    /* These are set where anything does not pass through: mp_manifest_passes. */
    mp_scale_rule scale_rule;
    mp_rounding rounding;
    double amax_floor;
    /* model */
    char *model_type; /* null where config.json has none, and in manifests of 0.1 */
    char *family;     /* whose names the source has */
    uint64_t hidden_size;
    uint64_t moe_intermediate_size;
    uint64_t num_experts;
    uint64_t num_shared_experts;
    uint64_t model_layers; /* MoE layers of the source */
    /* placement */
    uint64_t ep_size;
    uint64_t num_physical;
    mp_shared_mode shared;
    mp_hex_digest placement_xxh3; /* of placement.json */
    mp_hex_digest config_xxh3;    /* of config.json; "" where the source has none */
    mp_source_shard *shards;
    size_t num_shards;
    char **layers; /* prefixes of the layers that are packed, in order */
    size_t num_layers;
    mp_form *forms; /* distinct ones */
    size_t num_forms;
    uint32_t *layer_form;  /* [num_layers] into forms: of the routed experts */
    uint32_t *shared_form; /* [num_layers] of the shared expert; null where none is packed */
    mp_packed_rank *ranks;
    size_t num_ranks;
    mp_layer_error *errors; /* where requantized */
    size_t num_errors;
    mp_role_set dropped; /* what of the experts was left behind */
    char *command;
} mp_manifest;

void mp_manifest_release(mp_manifest *manifest);

/* Reads DIR/moepack.json. MP_ERR_IO where there is no such directory, MP_ERR_INPUT where there is
 * no manifest in it. */
int mp_manifest_load(mp_manifest *manifest, const char *dir, mp_error *err);

/* True if the directory holds a moepack.json. */
bool mp_is_packed(const char *dir);

/* ------------------------------------------------------------------------
 * Shape: what every layer has on every rank
 */

/* Tensors of a layer that share their slots: those of the experts, with the shared ones that
 * are fused to them, or those of shared experts apart. */
typedef struct mp_slot_set {
    const mp_target *target;
    mp_dims dims;
    const char *block; /* between the layer's prefix and a tensor's name: "experts"; static */
    uint32_t slots;    /* of a rank */
    unsigned first;    /* number of its first tensor among those of a layer */
    unsigned num_tensors;
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
} mp_slot_set;

typedef enum mp_set_kind { MP_SET_SLOTS, MP_SET_SHARED, MP_SETS } mp_set_kind;

/* Ids count routed experts, then shared ones that are packed: one for each shared expert, or a
 * single one where all of them are one tensor. */
typedef struct mp_shape {
    mp_shared_mode shared;
    mp_slots slots;
    mp_slot_set sets[MP_SETS];
    unsigned num_sets;    /* 2 where shared experts are apart */
    unsigned num_tensors; /* of a layer on a rank, optional ones counted */
    uint32_t num_ids;     /* routed experts and shared ones */
} mp_shape;

/* The shape of the pack that a manifest describes.
 * MP_ERR_INPUT for a manifest that contradicts itself, MP_ERR_UNSUPPORTED for a target that this
 * version does not know. */
int mp_manifest_shape(const mp_manifest *manifest, mp_shape *shape, mp_error *err);

/* The set that an id is in. */
const mp_slot_set *mp_shape_set(const mp_shape *shape, uint32_t id);

/* The tensor of a set for a side and role, or null. */
const mp_slot_tensor *mp_set_tensor(const mp_slot_set *set, mp_side side, mp_role role);

/* ------------------------------------------------------------------------
 * A packed directory, open
 *
 *     mp_pack *pack;
 *     if (mp_pack_open(&pack, "packed", NULL, &context, &err) == 0)
 *         ... mp_pack_get, mp_pack_tensor, mp_pack_read
 *     mp_pack_release(pack);
 */

/* An open pack. */
typedef struct mp_pack mp_pack;

/* What it is. */
typedef struct mp_pack_info {
    const char *dir;
    const mp_manifest *manifest;
    const char *xxh3; /* of moepack.json */
    const mp_shape *shape;
    const mp_placement *placement; /* as the manifest has it by its digest */
} mp_pack_info;

typedef struct mp_pack_options {
    size_t size;       /* of this struct */
    const char *ranks; /* that are opened, as mp_select_ranks reads it; null: all of the pack's */
    bool partial;      /* ranks that are missing are passed over, unless none is there */
} mp_pack_options;

/* Opens a packed directory and holds its parts against each other: the manifest's seal and
 * numbers, placement.json, and type and shape of every tensor of the ranks that are opened.
 * Bytes of tensors are not looked at: that is what mp_verify does.
 * options: may be null.
 * context: threads that read headers; may be null.
 * MP_ERR_INPUT for a directory that is no pack or does not hang together, MP_ERR_UNSUPPORTED
 * for what a later version wrote, MP_ERR_USAGE for ranks that the pack does not have,
 * MP_ERR_IO. */
int mp_pack_open(mp_pack **pack, const char *dir, const mp_pack_options *options,
                 const mp_context *context, mp_error *err);
void mp_pack_release(mp_pack *pack);

/* Good until the pack is released. */
const mp_pack_info *mp_pack_get(const mp_pack *pack);

/* The files of a rank; null where that is not open. */
const mp_checkpoint *mp_pack_rank(const mp_pack *pack, uint32_t rank);

/* Index of the layer that a prefix ("model.layers.3") or a number names. MP_ERR_USAGE where that
 * is none, or more than one. */
int mp_pack_layer(const mp_pack *pack, const char *name, size_t *layer, mp_error *err);

/* The places of an expert on open ranks: *count of them, in order of ranks and slots.
 * layer: index of manifest->layers; id: as mp_shape counts. */
const mp_place *mp_pack_copies(const mp_pack *pack, size_t layer, uint32_t id, uint32_t *count);

/* A tensor of a layer on a rank; null where the rank is not open or has none. */
const mp_tensor *mp_pack_tensor(const mp_pack *pack, size_t layer, uint32_t rank,
                                const mp_slot_set *set, const mp_slot_tensor *tensor);

/* Reads n bytes from offset of the place's part of a tensor.
 * MP_ERR_INPUT where there is no such tensor, MP_ERR_IO. */
int mp_pack_read(const mp_pack *pack, size_t layer, mp_place place, const mp_slot_set *set,
                 const mp_slot_tensor *tensor, uint64_t offset, uint64_t n, void *buffer,
                 mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
