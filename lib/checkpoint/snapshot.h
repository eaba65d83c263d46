/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/snapshot.h - what the readers of the kinds of snapshots share. */
#ifndef MP_CHECKPOINT_SNAPSHOT_H
#define MP_CHECKPOINT_SNAPSHOT_H

#include <jansson.h>
#include <moepack/snapshot.h>

#include "base/arena.h"
#include "base/digest.h"
#include "base/sha.h"

/* Most bytes of a description; the largest that engines write are tens of megabytes. */
#define MP_SNAPSHOT_TEXT_MAX (UINT64_C(1) << 30)
/* Most ranks of a snapshot: what a wild number may cost is bounded. */
#define MP_SNAPSHOT_RANKS_MAX 65536u

/* "checksum.json" and the like. */
#define MP_PRESHARDED_PLAN  "checksum.json"
#define MP_PRESHARDED_READY "READY"

/* ranks: a list of those that are looked at, or null. */
int mp_snapshot_open_presharded(mp_snapshot *s, const char *ranks, const mp_context *context,
                                mp_error *err);
int mp_snapshot_open_parts(mp_snapshot *s, const char *ranks, const mp_context *context,
                           mp_error *err);
int mp_snapshot_open_blobs(mp_snapshot *s, const char *ranks, mp_error *err);

/* Adds a finding, unless it is of a rank that is not looked at. rank -1 and tensor null: none. */
void mp_snapshot_found(mp_snapshot *s, bool digest, int64_t rank, const char *tensor,
                       const char *format, ...) __attribute__((format(printf, 5, 6)));

/* A name that cannot lead out of the directory. */
bool mp_snapshot_plain_name(const char *name);

/* Names of the directory's entries but . and .., sorted: names of `count` strings in one block,
 * which is to be freed. */
int mp_snapshot_entries(const char *dir, char ***names, size_t *count, mp_error *err);

/* Opens safetensors files `names` of the directory, but for those that are null; each that cannot
 * be opened is a finding. */
int mp_snapshot_open_files(mp_snapshot *s, const char *const *names, size_t count,
                           const mp_context *context, mp_error *err);

/* Makes room for the ranks, 0 .. count-1, and selects those of a list. */
int mp_snapshot_make_ranks(mp_snapshot *s, uint64_t count, const char *list, mp_error *err);

/* Adds a tensor to a rank; the name is copied. `room`: kept by the caller, 0 at first. */
int mp_snapshot_add(mp_snapshot *s, mp_snapshot_rank *rank, size_t *room, const char *name,
                    const mp_tensor *tensor, mp_error *err);

/* Sorts the tensors of a rank; one that is there twice is a finding, and kept once. */
void mp_snapshot_sort(mp_snapshot *s, mp_snapshot_rank *rank);

/* The hash of a content key, as its length says: 32 digits are XXH3-128, 40 SHA-1, which SGLang had
 * before. */
typedef struct mp_key_hash {
    bool sha1;
    mp_digest_stream xxh3;
    mp_sha sha;
} mp_key_hash;

int mp_key_hash_begin(mp_key_hash *hash, bool sha1, mp_error *err);
void mp_key_hash_update(mp_key_hash *hash, const void *data, size_t n);
/* 32 or 40 hex digits. Frees it; text may be null. */
void mp_key_hash_end(mp_key_hash *hash, char text[MP_SHA_TEXT]);

/* "torch.int8", as Python prints the type; null for one that torch does not have. */
const char *mp_dtype_torch(mp_dtype dtype);

/* The type that "torch.int8" or "int8" names. */
bool mp_dtype_parse_torch(const char *name, mp_dtype *dtype);

#endif
