/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint as one sorted list of tensors over open shards, and reading from them.
 *
 * Opening reads headers and nothing else: a terabyte of weights opens in seconds. Threads read one
 * shard's header each into a value of its own. Then one thread joins these, memory included, and
 * sorts the tensors by name, bytewise, so they can be found by bisection and everyone sees the same
 * order. From then on readers rely on this: names are unique, every tensor lies inside its shard,
 * and an index, if there is one, names exactly these tensors.
 *
 * A checkpoint does not change after that. Reads carry offsets, and the cache of compressed shards
 * has a lock, so any number of threads can read one checkpoint. */
#include <moepack/store.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/zstd_file.h"
#include "checkpoint/index.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard.h"
#include "checkpoint/tensor.h"

/* ------------------------------------------------------------------------
 * Shards
 */

/* What one thread needs to read any shard. */
struct reading {
    mp_checkpoint *ckpt;
    mp_header *headers; /* one a shard */
    const char *index;  /* name of the index; null without one */
    bool single;        /* a file was asked for, not a directory */
    mp_io io;
};

static int read_shard(void *user, uint64_t i, void *scratch, mp_error *err)
{
    (void)scratch;
    const struct reading *reading = user;
    mp_shard *shard = &reading->ckpt->shards[i];
    mp_header *header = &reading->headers[i];
    int rc =
        mp_shard_open(shard, reading->ckpt->dir, reading->single, reading->index, reading->io, err);
    if (rc == 0)
        rc = mp_header_read(header, shard, reading->ckpt->cache, err);
    for (size_t t = 0; t < header->num_tensors; t++)
        header->tensors[t].shard = (uint32_t)i;
    if (rc != 0)
        mp_error_prefix(err, "%s", shard->file);
    return rc;
}

/* file: the one that was asked for; null where the directory says what there is. */
static int name_shards(mp_checkpoint *ckpt, const mp_names *names, const char *file, mp_error *err)
{
    ckpt->shards = mp_alloc_zeroed(names->count, sizeof(*ckpt->shards));
    if (!ckpt->shards)
        return mp_fail_memory(err);
    for (size_t i = 0; i < names->count; i++) {
        mp_shard *shard = &ckpt->shards[ckpt->num_shards++];
        shard->fd = -1;
        shard->name = mp_format("%s", names->names[i]);
        shard->file = mp_format("%s", file ? file : names->names[i]);
        if (!shard->name || !shard->file)
            return mp_fail_memory(err);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* By name, equal names by shard: qsort is not stable, and the message should not depend on it. */
static int tensor_and_shard_order(const void *a, const void *b)
{
    const mp_tensor *x = a;
    const mp_tensor *y = b;
    int order = mp_tensor_order(x, y);
    return order != 0 ? order : (x->shard > y->shard) - (x->shard < y->shard);
}

static int check_unique(const mp_checkpoint *ckpt, mp_error *err)
{
    for (size_t i = 1; i < ckpt->num_tensors; i++) {
        const mp_tensor *a = &ckpt->tensors[i - 1];
        const mp_tensor *b = &ckpt->tensors[i];
        if (mp_tensor_order(a, b) == 0)
            return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\" is in \"%s\" too",
                           ckpt->shards[b->shard].name, b->name, ckpt->shards[a->shard].name);
    }
    return 0;
}

/* Moves what the headers hold into the checkpoint. */
static int gather(mp_checkpoint *ckpt, mp_header *headers, mp_error *err)
{
    size_t total = 0;
    for (size_t i = 0; i < ckpt->num_shards; i++)
        total += headers[i].num_tensors;
    ckpt->tensors = mp_alloc(total, sizeof(*ckpt->tensors));
    if (!ckpt->tensors)
        return mp_fail_memory(err);
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        mp_header *header = &headers[i];
        if (header->num_tensors > 0)
            memcpy(ckpt->tensors + ckpt->num_tensors, header->tensors,
                   header->num_tensors * sizeof(*header->tensors));
        ckpt->num_tensors += header->num_tensors;
        ckpt->shards[i].metadata = header->metadata;
        ckpt->shards[i].num_metadata = header->num_metadata;
        /* Names and shapes stay in place; the arena's blocks change owners. */
        mp_arena_join(ckpt->arena, &header->arena);
    }
    ckpt->metadata = headers[0].metadata;
    ckpt->num_metadata = headers[0].num_metadata;
    if (total > 1)
        qsort(ckpt->tensors, total, sizeof(*ckpt->tensors), tensor_and_shard_order);
    return check_unique(ckpt, err);
}

static int read_headers(mp_checkpoint *ckpt, const mp_index *index, bool single,
                        const mp_context *context, mp_error *err)
{
    struct reading reading = {.ckpt = ckpt,
                              .index = index->name,
                              .single = single,
                              .io = context ? context->io : MP_IO_AUTO};
    reading.headers = mp_alloc_zeroed(ckpt->num_shards, sizeof(*reading.headers));
    if (!reading.headers)
        return mp_fail_memory(err);
    int rc = mp_parallel(context, ckpt->num_shards, 0, read_shard, &reading, err);
    if (rc == 0)
        rc = gather(ckpt, reading.headers, err);
    for (size_t i = 0; i < ckpt->num_shards; i++)
        mp_header_release(&reading.headers[i]);
    free(reading.headers);
    return rc;
}

/* ------------------------------------------------------------------------
 * The checkpoint
 */

/* Sets the directory; file: set to the one shard's name, null for a directory. */
static int find_dir(mp_checkpoint *ckpt, const char *path, const char **file, mp_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
    *file = NULL;
    if (S_ISDIR(st.st_mode)) {
        ckpt->dir = mp_format("%s", path);
    } else {
        *file = mp_path_base(path);
        int n = (int)(*file - path);
        ckpt->dir = n > 0 ? mp_format("%.*s", n, path) : mp_format(".");
    }
    return ckpt->dir ? 0 : mp_fail_memory(err);
}

int mp_checkpoint_open(mp_checkpoint *ckpt, const char *path, const mp_context *context,
                       mp_error *err)
{
    mp_index index = {0};
    const char *file = NULL;
    *ckpt = (mp_checkpoint){.arena = mp_alloc_zeroed(1, sizeof(mp_arena)),
                            .cache = mp_frame_cache_new(mp_threads(context))};
    int rc = ckpt->arena && ckpt->cache ? find_dir(ckpt, path, &file, err) : mp_fail_memory(err);
    if (rc == 0)
        rc = mp_index_open(&index, ckpt->dir, file, err);
    if (rc == 0)
        rc = name_shards(ckpt, &index.shards, file, err);
    if (rc == 0)
        rc = read_headers(ckpt, &index, file != NULL, context, err);
    if (rc == 0)
        rc = mp_index_check(&index, ckpt, err);
    mp_index_release(&index);
    if (rc != 0)
        mp_checkpoint_release(ckpt);
    return rc;
}

void mp_checkpoint_release(mp_checkpoint *ckpt)
{
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        mp_shard_release(&ckpt->shards[i]);
    }
    free(ckpt->shards);
    mp_frame_cache_free(ckpt->cache);
    free(ckpt->tensors);
    free(ckpt->dir);
    if (ckpt->arena)
        mp_arena_release(ckpt->arena);
    free(ckpt->arena);
    *ckpt = (mp_checkpoint){0};
}

const mp_tensor *mp_checkpoint_find(const mp_checkpoint *ckpt, const char *name)
{
    const mp_tensor key = {.name = name};
    if (ckpt->num_tensors == 0)
        return NULL;
    return bsearch(&key, ckpt->tensors, ckpt->num_tensors, sizeof(key), mp_tensor_order);
}

/* Frames of compressed shards see to it themselves (zstd_frames.c). */
static bool reads_ahead(const mp_shard *shard)
{
    return !shard->zstd && !shard->direct;
}

int mp_tensor_read(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset, uint64_t n,
                   void *buffer, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_shard *shard = &ckpt->shards[tensor->shard];
    int rc;
    /* The single check of extents: callers compute them from shapes that others wrote. */
    if (offset > tensor->bytes || n > tensor->bytes - offset)
        rc = mp_fail(err, MP_ERR_INPUT, "%llu bytes from %llu are not inside its %llu",
                     (unsigned long long)n, (unsigned long long)offset,
                     (unsigned long long)tensor->bytes);
    else
        rc = mp_shard_read(shard, ckpt->cache, tensor->offset + offset, n, buffer, err);
    if (rc == 0 && reads_ahead(shard))
        mp_file_read_on(shard->fd, tensor->offset, offset, n, tensor->bytes);
    if (rc != 0)
        mp_error_prefix(err, "%s: tensor \"%s\"", shard->file, tensor->name);
    return rc;
}

void mp_tensor_ahead(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset,
                     uint64_t n)
{
    const mp_shard *shard = &ckpt->shards[tensor->shard];

    if (reads_ahead(shard))
        mp_file_ahead(shard->fd, tensor->offset + offset, mp_min_u64(n, MP_AHEAD_BYTES));
}

void mp_tensor_forget(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset,
                      uint64_t n)
{
    const mp_shard *shard = &ckpt->shards[tensor->shard];
    if (shard->zstd)
        mp_zstd_file_forget(shard->zstd, ckpt->cache, tensor->offset + offset, n);
    else
        mp_file_forget(shard->fd, tensor->offset + offset, n);
}
