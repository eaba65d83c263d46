/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/compress.h - checkpoints and packs with compressed shards.
 *
 * A compressed shard, "X.safetensors.zst", is what `zstd -dc` turns into X.safetensors, cut into
 * frames so that any tensor is read alone (moepack-format(5)). Everything that reads checkpoints
 * and packs reads either.
 */
#ifndef MOEPACK_COMPRESS_H
#define MOEPACK_COMPRESS_H

#include <moepack/store.h>
#include <moepack/work.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct mp_compress_options {
    size_t size;     /* of this struct */
    bool decompress; /* else compress */
    int level;       /* of compress, not MP_ZSTD_NONE */
} mp_compress_options;

/* Bytes of tensors of one type. */
typedef struct mp_compress_sum {
    uint64_t tensors;
    uint64_t plain;
    uint64_t stored; /* of the frames that hold them */
} mp_compress_sum;

/* What was written. */
typedef struct mp_compress_report {
    uint64_t shards;
    uint64_t plain, stored; /* bytes of shards, of plain files and of compressed ones */
    mp_compress_sum sums[MP_DTYPE_COUNT];
} mp_compress_report;

/* Writes the directory `from` to `out`, with its shards compressed or plain and every other file
 * copied; in a pack's manifest the shards' names and sizes are changed. Shards that are stored as
 * wanted already are compressed anew, or copied.
 * Goes through OUT.partial with a journal, as mp_plan_run does. With MP_RUN_FORCE an `out` is
 * replaced only if it holds the same files, by name, that it is to hold.
 * report: may be null.
 * MP_ERR_INPUT for a shard that is malformed, MP_ERR_USAGE, MP_ERR_IO. */
int mp_compress(const char *from, const char *out, const mp_compress_options *options,
                mp_run_mode mode, const mp_context *context, mp_compress_report *report,
                mp_error *err);

/* Sums up the shards below a directory, plain ones with stored = plain. MP_ERR_INPUT, MP_ERR_IO. */
int mp_compress_measure(const char *dir, const mp_context *context, mp_compress_report *report,
                        mp_error *err);

/* Adds the tensors of a checkpoint to sums by type; returns whether any of its shards is
 * compressed. Of a shard that can only be read from its beginning, stored is estimated by the
 * shard's ratio. */
bool mp_compress_sums(const mp_checkpoint *ckpt, mp_compress_sum sums[MP_DTYPE_COUNT]);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
