/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/artifact.h - a packed directory: its manifest moepack.json as a value.
 *
 * The format is moepack-format(5). Whoever writes a pack fills an mp_manifest
 * and takes its text; whoever reads one opens the directory and gets the same
 * value back.
 */
#ifndef MOEPACK_ARTIFACT_H
#define MOEPACK_ARTIFACT_H

#include <moepack/model.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MP_FORMAT_VERSION "1"

/* Names inside a packed directory. */
#define MP_MANIFEST_NAME  "moepack.json"
#define MP_PLACEMENT_NAME "placement.json"
/* "rank-007" */
#define MP_RANK_NAME_MAX 24
char *mp_rank_name(uint32_t rank, char name[MP_RANK_NAME_MAX]);

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
    uint64_t requantized_blocks; /* of nvfp4: mp_quant_stats (numeric.h) */
} mp_layer_error;

typedef struct mp_manifest {
    char *tool_version;
    char *target; /* mp_target_find (layout.h) knows it, or this version does not */
    uint64_t target_version;
    bool nz; /* weights in FRACTAL_NZ form */
    /* quantization */
    mp_scheme source_scheme; /* MP_SCHEME_COUNT: not the same in all layers */
    mp_scheme target_scheme;
    bool lossless;        /* of routed experts */
    bool shared_lossless; /* of shared experts that are packed */
    /* These are set where anything is not lossless: mp_manifest_requantized. */
    mp_scale_rule scale_rule;
    mp_rounding rounding;
    double amax_floor;
    /* model */
    char *family;
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

/* True where some experts were requantized, by the rules that the manifest names. */
bool mp_manifest_requantized(const mp_manifest *manifest);

/* Text of moepack.json, malloc'ed. Its last member is an XXH3-128 of the
 * text without it, so that a change anywhere in the file shows. */
int mp_manifest_text(const mp_manifest *manifest, char **text, mp_error *err);

/* The reverse. MP_ERR_CHECK when the digest does not fit the text, MP_ERR_INPUT when it is not
 * a manifest, MP_ERR_UNSUPPORTED for another format_version and for a word that this version
 * does not know. */
int mp_manifest_parse(mp_manifest *manifest, const char *text, uint64_t length, mp_error *err);

/* Reads DIR/moepack.json. MP_ERR_IO where there is no such directory, MP_ERR_INPUT where there is
 * no manifest in it. */
int mp_manifest_load(mp_manifest *manifest, const char *dir, mp_error *err);

/* True if the directory holds a moepack.json. */
bool mp_is_packed(const char *dir);

#ifdef __cplusplus
}
#endif

#endif
