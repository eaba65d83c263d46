/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/store.h - safetensors files and sharded checkpoints.
 *
 * A checkpoint is a directory of safetensors shards, or one safetensors file; each of
 * them plain, or compressed as "X.safetensors.zst" and read as if it were the plain one.
 * Opening it reads and checks every header, no tensor data. Tensors are then
 * found by name and read through bounded views.
 *
 *     mp_checkpoint ckpt;
 *     mp_error err;
 *     if (mp_checkpoint_open(&ckpt, "DeepSeek-V4-Flash", &context, &err) != 0)
 *         ...
 *     const mp_tensor *t = mp_checkpoint_find(&ckpt, "embed.weight");
 *     if (t && mp_tensor_read(&ckpt, t, 0, 4096, buffer, &err) != 0)
 *         ...
 *     mp_checkpoint_release(&ckpt);
 *
 * Format: https://github.com/huggingface/safetensors#format
 */
#ifndef MOEPACK_STORE_H
#define MOEPACK_STORE_H

#include <moepack/base.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Largest header that the format allows, in bytes. */
#define MP_SAFETENSORS_HEADER_MAX 100000000u

/* Files beside the shards. */
#define MP_CONFIG_NAME "config.json"
#define MP_INDEX_NAME  "model.safetensors.index.json"
#define MP_SUMS_NAME   "SHA256SUMS" /* of all files below a directory; see work.h */

/* A tensor of a checkpoint. Strings and shapes are owned by the checkpoint. */
typedef struct mp_tensor {
    const char *name;
    const uint64_t *shape; /* rank numbers, outermost first */
    uint32_t rank;         /* 0 for a scalar */
    mp_dtype dtype;
    uint32_t shard;  /* index into mp_checkpoint.shards */
    uint64_t offset; /* of the first byte, in the shard file */
    uint64_t bytes;
} mp_tensor;

/* One safetensors file of a checkpoint. */
typedef struct mp_shard {
    char *name;      /* relative to the checkpoint's directory, no separators, without ".zst" */
    char *file;      /* what the file itself is called */
    int fd;          /* read-only, close-on-exec */
    uint64_t size;   /* of the plain file */
    uint64_t stored; /* of the file itself: less, where it is compressed */
    struct mp_zstd_file *zstd;     /* private; null for a plain file */
    struct mp_direct *direct;      /* private; null where it is read through the system's cache */
    uint64_t header_bytes;         /* 8 + length of the JSON: where data begins */
    unsigned char header_xxh3[16]; /* XXH3-128, big-endian, of these bytes */
    char **metadata;               /* key, value, key, value ...; owned by the checkpoint */
    size_t num_metadata;           /* pairs */
} mp_shard;

typedef struct mp_checkpoint {
    char *dir; /* the directory, or that of the single file */
    mp_shard *shards;
    size_t num_shards;
    mp_tensor *tensors; /* sorted by name, bytewise */
    size_t num_tensors;
    char **metadata;              /* of the first shard: key, value, key, value ... */
    size_t num_metadata;          /* pairs */
    void *arena;                  /* private */
    struct mp_frame_cache *cache; /* private: decoded frames of compressed shards */
} mp_checkpoint;

/* Opens a checkpoint.
 * path: a directory with model.safetensors.index.json (or exactly one other
 *   *.safetensors.index.json), or without an index with one or many *.safetensors;
 *   or one safetensors file. Of each file the plain one is taken, or the one with ".zst"
 *   behind its name; both are one too many.
 * context: threads that read headers; may be null.
 * The index, where there is one, is the only authority for file names; without one,
 * names that begin with a dot are passed over. Every shard stays open, so the limit
 * on open files has to allow for their number. Messages begin with the name of the
 * file, relative to the checkpoint.
 * MP_ERR_INPUT for any breach of the format (the rules are in
 * moepack-inspect(1)), a tensor that is in the index and not in its shard or the
 * other way round, in two shards, or a missing shard; MP_ERR_IO. */
int mp_checkpoint_open(mp_checkpoint *ckpt, const char *path, const mp_context *context,
                       mp_error *err);
void mp_checkpoint_release(mp_checkpoint *ckpt);

/* The tensor of that name, or null. */
const mp_tensor *mp_checkpoint_find(const mp_checkpoint *ckpt, const char *name);

/* Reads bytes [offset, offset + n) of a tensor.
 * Of a compressed shard only the frames that hold them are decoded.
 * MP_ERR_INPUT if that is not inside the tensor, or a frame is damaged; MP_ERR_IO;
 * MP_ERR_UNSUPPORTED for a compressed shard that can only be read from its beginning.
 * All name the tensor. */
int mp_tensor_read(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset, uint64_t n,
                   void *buffer, mp_error *err);

/* "[2048, 128]" into a buffer, always terminated; returns the buffer. What does
 * not fit is cut to "[2048, 128, ...]". */
#define MP_SHAPE_TEXT 128
char *mp_shape_text(const uint64_t *shape, uint32_t rank, char text[MP_SHAPE_TEXT]);

/* ------------------------------------------------------------------------
 * Writing
 */

/* What a header says of one tensor. */
typedef struct mp_tensor_spec {
    const char *name;
    mp_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
} mp_tensor_spec;

/* Data of written files begins at a multiple of this. */
#define MP_SAFETENSORS_ALIGN 4096u

/* The header of a safetensors file with these tensors, in this order, without
 * holes: an 8-byte length and JSON padded with spaces to a multiple of `align`
 * in all.
 * specs: the order must keep every tensor at a multiple of its element size, or
 *   MP_ERR_USAGE.
 * metadata: key, value, key, value ..., `pairs` of them, written as __metadata__.
 * header: set to a malloc'ed buffer of *header_bytes; the caller frees it.
 * offsets: num_specs + 1 numbers, set to the file offset of each tensor and of
 *   the end of the file.
 * MP_ERR_USAGE for names that are duplicate, reserved ("__metadata__") or not
 * UTF-8, or a header over the limit. */
int mp_safetensors_header(const mp_tensor_spec *specs, size_t num_specs,
                          const char *const *metadata, size_t pairs, uint64_t align, char **header,
                          uint64_t *header_bytes, uint64_t *offsets, mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
