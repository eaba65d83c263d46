/* SPDX-License-Identifier: Apache-2.0 */
/* pack/manifest.h - how moepack.json is sealed, and what its readers and writers share.
 *
 * The text of the manifest ends in "\n}\n". The seal takes that off and puts a last
 * member in its place: the digest of the text as it was. */
#ifndef MP_PACK_MANIFEST_H
#define MP_PACK_MANIFEST_H

#include <jansson.h>
#include <moepack/artifact.h>

/* The source scheme of layers that have several. */
#define MP_MANIFEST_MIXED "mixed"

/* "rank-007": where a rank's files are. */
#define MP_RANK_NAME_MAX 24
char *mp_rank_name(uint32_t rank, char name[MP_RANK_NAME_MAX]);

#define MP_SEAL_CUT    "\n}\n"
#define MP_SEAL_BEFORE ",\n  \"xxh3\": \""
#define MP_SEAL_AFTER  "\"\n}\n"

/* The text of DIR/moepack.json, malloc'ed. MP_ERR_IO where there is no such directory, and
 * MP_ERR_INPUT where it is none of a pack: it has no moepack.json. */
int mp_manifest_read(const char *dir, char **text, uint64_t *length, mp_error *err);

/* Members of an object, named in messages. */
int mp_manifest_string(const json_t *object, const char *key, char **copy, mp_error *err);
/* Fails with MP_ERR_UNSUPPORTED for a word ("fusion" of "spiral") that is none that we know. */
int mp_manifest_unknown(const char *what, const char *word, mp_error *err);
int mp_manifest_flag(const json_t *object, const char *key, bool *value, mp_error *err);

/* A list of `count` zeroed things of a size, as long as the JSON array. */
int mp_manifest_list(const json_t *object, const char *key, size_t size, json_t **array,
                     void **things, size_t *count, mp_error *err);

/* An array and an object with one thing more; null if that, or either of them, is none:
 * a list without one of its items would pass for whole. */
json_t *mp_json_append(json_t *array, json_t *item);
json_t *mp_json_with(json_t *object, const char *key, json_t *value);

/* The members "forms", "layer_forms" and, where there are any, "shared_forms". */
json_t *mp_manifest_with_forms(json_t *json, const mp_manifest *m);
int mp_manifest_read_forms(const json_t *root, mp_manifest *m, mp_error *err);
void mp_manifest_release_forms(mp_manifest *m);

/* Whether the routed experts, or the shared ones, are in the pack as the checkpoint has them,
 * scheme and codes: lossless, and without a row of errors. */
bool mp_manifest_passes(const mp_manifest *manifest, bool shared);

/* Whether the shards of the pack are compressed: all are, or none. */
bool mp_manifest_compressed(const mp_manifest *manifest);

/* Sum over the rows of errors of routed or of shared experts. */
uint64_t mp_manifest_requantized_blocks(const mp_manifest *manifest, bool shared);

/* Text of moepack.json, malloc'ed. Its last member is an XXH3-128 of the
 * text without it, so that a change anywhere in the file shows. */
int mp_manifest_text(const mp_manifest *manifest, char **text, mp_error *err);

/* The reverse. MP_ERR_INPUT when the digest does not fit the text, or it is not a manifest,
 * MP_ERR_UNSUPPORTED for another format_version and for a word that this version
 * does not know. */
int mp_manifest_parse(mp_manifest *manifest, const char *text, uint64_t length, mp_error *err);

#endif
