/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delta/version.h - a version, open: a full one or a delta, of a checkpoint or of a pack.
 *
 * A checkpoint has one part, the directory itself; a pack has one for each rank that is here, and
 * so has a delta of packs, whose pack.json is the manifest of the new pack and, written last,
 * publishes it.
 */
#ifndef MP_DELTA_VERSION_H
#define MP_DELTA_VERSION_H

#include <moepack/artifact.h>
#include <moepack/delta.h>
#include <moepack/store.h>

#define MP_DELTA_PACK_NAME "pack.json"

/* "auto", "xor", "overwrite"; a static string. */
const char *mp_delta_encoding_name(mp_delta_encoding encoding);

/* What the index of a delta says of it. */
typedef struct mp_delta_terms {
    uint64_t version, base;
    mp_delta_encoding encoding;
    mp_delta_checksum checksum;
} mp_delta_terms;

typedef struct mp_version_part {
    char *name;         /* "rank-003"; null: the directory itself */
    mp_checkpoint ckpt; /* without any tensor where nothing changed */
    const char **sums;  /* [ckpt.num_tensors], of a delta: as its shards have them */
} mp_version_part;

typedef struct mp_delta_version {
    const char *dir; /* as it was given */
    bool delta;
    bool numbered;        /* terms.version is known; of a full version it may not be */
    mp_delta_terms terms; /* but for the version, of a delta only */
    char *manifest;       /* of packs: text of moepack.json or pack.json; null else */
    uint64_t manifest_bytes;
    mp_manifest pack; /* the same, read */
    mp_version_part *parts;
    size_t num_parts;
} mp_delta_version;

/* Opens a version and checks all that a delta says about itself. published: it has to have an
 * index, as what a trainer publishes has.
 * MP_ERR_INPUT, MP_ERR_UNSUPPORTED for a checksum, compression or encoding; MP_ERR_IO. Messages
 * begin with the directory. */
int mp_version_open(mp_delta_version *version, const char *dir, bool published,
                    const mp_context *context, mp_error *err);
void mp_version_release(mp_delta_version *version);

/* Index of the part of that name, or SIZE_MAX. name: may be null. */
size_t mp_version_part_named(const mp_delta_version *version, const char *name);

/* MP_ERR_CHECK where one is of packs and the other is not, or of other ones. */
int mp_version_check_alike(const mp_delta_version *delta, const mp_delta_version *before,
                           mp_error *err);

/* The same, and where a delta does not follow a version. */
int mp_version_check_follows(const mp_delta_version *delta, const mp_delta_version *before,
                             mp_error *err);

/* "rank 3: " or "", the beginning of messages about a part. */
#define MP_PART_TEXT 32
const char *mp_part_text(const mp_version_part *part, char text[MP_PART_TEXT]);

#endif
