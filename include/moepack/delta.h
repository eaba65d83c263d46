/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/delta.h - what changed between two versions of a checkpoint or of a pack.
 *
 * A version is a directory that looks like a checkpoint; or like a pack, with one such directory
 * for each rank. It is full, or a delta: where the metadata of its model.safetensors.index.json
 * has "delta_encoding", its tensors are zstd streams of what changed since another version. The
 * format is moepack-delta(1), and that of SGLang's /pull_weights (sglang pull request 30366,
 * miles pull request 1235).
 *
 *     const char *chain[] = {"weight_v000007", "weight_v000008"};
 *     if (mp_delta_apply("weight_v000006", chain, 2, "new", NULL, MP_RUN_FRESH, NULL, &err) != 0)
 *         ... err says why, and nothing is there under that name
 *
 * All calls stream: memory is bounded by the threads times a few MiB, and for each delta of a
 * chain one MiB more.
 */
#ifndef MOEPACK_DELTA_H
#define MOEPACK_DELTA_H

#include <moepack/pack.h>
#include <moepack/verify.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* What the stream of a tensor holds. */
typedef enum mp_delta_encoding {
    MP_DELTA_AUTO,     /* of options: whichever of the others is smaller */
    MP_DELTA_XOR,      /* old XOR new, as long as the tensor */
    MP_DELTA_OVERWRITE /* a u32 count, that many ascending u32 positions, that many bytes */
} mp_delta_encoding;

/* What of the new tensor's bytes a delta holds. */
typedef enum mp_delta_checksum {
    MP_DELTA_XXH3_128,
    MP_DELTA_ADLER32, /* of zlib (RFC 1950) */
    MP_DELTA_CHECKSUMS
} mp_delta_checksum;

typedef struct mp_delta_options {
    size_t size;      /* of this struct */
    uint64_t version; /* of NEW: 1 or more; what it changes is the version that OLD says it is,
                         else the one before */
    mp_delta_encoding encoding;
    mp_delta_checksum checksum;
    int level;               /* of zstd, 1 to MP_ZSTD_LEVEL_MAX; 0: 1 */
    uint64_t max_shard_size; /* 0: 5 GB */
} mp_delta_options;

typedef struct mp_delta_report {
    mp_delta_encoding encoding;
    uint64_t version, base_version;
    uint64_t tensors, bytes;                 /* of the new version; of fold: of what changed */
    uint64_t changed_tensors, changed_bytes; /* bytes that differ */
    uint64_t stored_bytes;                   /* of the streams */
    mp_problems unlike; /* what keeps two versions from having a delta; to be released */
} mp_delta_report;

/* Whether a directory is a delta, whole or not. */
bool mp_is_delta(const char *dir);

/* Writes what changed from one full version to another. Both are checkpoints, or packs of the same
 * target and placement, compressed or not. Files that are no shards are copied where they differ.
 * Goes through OUT.partial, as mp_plan_run (pack.h); the index is written last. With MP_RUN_FORCE
 * an `out` is replaced only if it is a delta. report: filled also where the call fails, for then it
 * says which tensors are unlike; may be null. MP_ERR_CHECK for tensors that have another type or
 * shape than before, are new or are gone, and for packs of another placement: a full version is
 * needed. MP_ERR_INPUT, MP_ERR_UNSUPPORTED for a tensor of 4 GiB that is to be overwritten,
 * MP_ERR_USAGE, MP_ERR_IO. */
int mp_delta_write(const char *from, const char *to, const char *out,
                   const mp_delta_options *options, mp_run_mode mode, const mp_context *context,
                   mp_delta_report *report, mp_error *err);

/* Folds the XOR deltas of a chain, in order, into one from before the first to behind the last.
 * Options: level and max_shard_size count.
 * MP_ERR_CHECK for deltas that do not follow each other, MP_ERR_UNSUPPORTED for other encodings,
 * full versions, and checksums of several kinds. */
int mp_delta_fold(const char *const *deltas, size_t count, const char *out,
                  const mp_delta_options *options, mp_run_mode mode, const mp_context *context,
                  mp_delta_report *report, mp_error *err);

typedef struct mp_delta_apply_options {
    size_t size;           /* of this struct */
    uint64_t base_version; /* of a base that does not say which one it is */
    int zstd;              /* how shards are compressed; 0: not at all */
} mp_delta_apply_options;

/* Writes the full version that a chain of deltas makes of `base`: shards as base has them, byte
 * for byte what the new version holds. A full version in the chain takes the place of base.
 * options: may be null.
 * Goes through OUT.partial with a journal, as mp_plan_run (pack.h) does. With MP_RUN_FORCE an `out`
 * is replaced only if it holds the shards that it is to hold.
 * MP_ERR_CHECK for a checksum, version or base that does not fit, naming the tensor; MP_ERR_INPUT
 * for what is malformed, MP_ERR_UNSUPPORTED, MP_ERR_USAGE, MP_ERR_IO. */
int mp_delta_apply(const char *base, const char *const *deltas, size_t count, const char *out,
                   const mp_delta_apply_options *options, mp_run_mode mode,
                   const mp_context *context, mp_error *err);

/* Checks a delta: with a source, the full version that it changes, every checksum; without, that
 * every stream is well-formed. Goes on after faults.
 * source: may be null.
 * report: of level exact, or structure; to be released (verify.h).
 * Returns 0 when it could be checked, whatever was found. MP_ERR_CHECK for a source of another
 * version, MP_ERR_INPUT, MP_ERR_UNSUPPORTED, MP_ERR_IO. */
int mp_delta_verify(const char *delta, const char *source, const mp_context *context,
                    mp_verify_report *report, mp_error *err);

/* ------------------------------------------------------------------------
 * Carrying deltas of a checkpoint into a pack of it
 *
 *     mp_plan *plan;
 *     if (mp_plan_update(&plan, "packed-6", deltas, 1, "step-7", NULL, NULL, &err) == 0)
 *         mp_plan_run(plan, "packed-7", MP_RUN_FRESH, NULL, &err);
 *     mp_plan_release(plan);
 */

typedef struct mp_update_options {
    size_t size;          /* of this struct */
    bool allow_nonfinite; /* as of mp_repack_options, which a manifest does not say */
    int zstd;             /* level for a pack whose shards are compressed; 0: MP_ZSTD_AUTO */
} mp_update_options;

/* Plans the pack that repacking the new version would write, with the options that the manifest of
 * `pack` says: of experts whose tensors a delta has, slots are packed anew, all others are copied
 * from `pack`. Where experts are requantized, those of a layer go together.
 * pack: of the version that the first delta changes, with all of its ranks here.
 * source: the version that the last delta leads to or, where its tensors are not those, the one
 *   that the first changes; then what is read of it goes through the deltas first.
 * options: may be null.
 * Keeps pointers to strings. Running it gives what a fresh run gives, byte for byte, and its
 * manifest says the command that `pack` was made by.
 * MP_ERR_CHECK for a source that is neither, MP_ERR_UNSUPPORTED for full versions among the deltas,
 * MP_ERR_INPUT for a pack that this version would write in another form, MP_ERR_USAGE, MP_ERR_IO.
 */
int mp_plan_update(mp_plan **plan, const char *pack, const char *const *deltas, size_t count,
                   const char *source, const mp_update_options *options, const mp_context *context,
                   mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
