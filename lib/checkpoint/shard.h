/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/shard.h - one file of a checkpoint, plain or compressed: opening it, and the one
 * place where its bytes are read. */
#ifndef MP_CHECKPOINT_SHARD_H
#define MP_CHECKPOINT_SHARD_H

#include <moepack/store.h>

#include "base/digest.h"

#define MP_ZSTD_SUFFIX ".zst"

struct mp_frame_cache;

/* Length of a shard's name without the ".zst" that it may end with. */
size_t mp_shard_name_length(const char *file);
bool mp_shard_name_compressed(const char *file);

/* Whether two names are of the same shard: compressed or not, an index names it plain. */
bool mp_shard_same_name(const char *a, const char *b);

/* Opens the shard's file. exact: that one; else the same with ".zst" behind its name will do, and
 * becomes its `file`. index: name of the index that names it; null without one. io: how its bytes
 * are read from then on.
 * MP_ERR_INPUT where it is missing, no file, malformed, or both are there; MP_ERR_UNSUPPORTED where
 * it cannot be read as io says; MP_ERR_IO. Messages do not name the shard. */
int mp_shard_open(mp_shard *shard, const char *dir, bool exact, const char *index, mp_io io,
                  mp_error *err);
void mp_shard_release(mp_shard *shard);

/* Reads bytes of the plain file. */
int mp_shard_read(const mp_shard *shard, struct mp_frame_cache *cache, uint64_t offset, uint64_t n,
                  void *buffer, mp_error *err);

/* Whether a shard can only be read from its beginning. If so, all are from now on to be read by
 * one thread, and that in ascending order: others have to be refused (zstd_file.h). */
bool mp_checkpoint_read_in_order(const mp_checkpoint *ckpt);

/* Digest of a whole tensor, through a buffer of `size` bytes. */
int mp_digest_tensor(const mp_checkpoint *ckpt, const mp_tensor *tensor, void *buffer, size_t size,
                     mp_digest *digest, mp_error *err);

#endif
