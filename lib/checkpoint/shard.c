/* SPDX-License-Identifier: Apache-2.0 */
/* Files of a checkpoint, plain or compressed, so that nobody else has to know which.
 *
 * A shard has two names: that by which an index knows it, always plain, and that of the file that
 * is there. If both a plain and a compressed file exist it is not clear which is meant, and that is
 * an error. Anything but a regular file is refused before it is opened, because opening a pipe
 * would wait for its writer. mp_shard_read is the only place where bytes of shards are read. */
#include "checkpoint/shard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"
#include "base/zstd_file.h"

bool mp_shard_name_compressed(const char *file)
{
    return file[mp_shard_name_length(file)] != '\0';
}

size_t mp_shard_name_length(const char *file)
{
    size_t n = strlen(file), end = strlen(MP_ZSTD_SUFFIX);

    return n > end && strcmp(file + n - end, MP_ZSTD_SUFFIX) == 0 ? n - end : n;
}

bool mp_shard_same_name(const char *a, const char *b)
{
    size_t n = mp_shard_name_length(a);

    return n == mp_shard_name_length(b) && strncmp(a, b, n) == 0;
}

/* Which of DIR/file and DIR/file.zst is there. */
static int choose_file(mp_shard *shard, const char *dir, mp_error *err)
{
    struct stat st;
    char *file = mp_format("%s" MP_ZSTD_SUFFIX, shard->file);
    char *plain = mp_path_join(dir, shard->file),
         *compressed = file ? mp_path_join(dir, file) : NULL;
    int rc = plain && compressed ? 0 : mp_fail_memory(err);

    if (rc == 0 && stat(compressed, &st) == 0) {
        if (stat(plain, &st) == 0) {
            rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" also exists: remove one of them", file);
        } else {
            free(shard->file);
            shard->file = file;
            file = NULL;
        }
    }
    free(file);
    free(plain);
    free(compressed);
    return rc;
}

/* That a shard is missing, or is no file, is a fault of the checkpoint, not of the system. */
static int open_file(mp_shard *shard, const char *path, const char *index, mp_error *err)
{
    struct stat st;
    bool there = stat(path, &st) == 0;

    if (!there && errno == ENOENT && index)
        return mp_fail(err, MP_ERR_INPUT, "the file is missing, \"%s\" names it", index);
    if (there && !S_ISREG(st.st_mode))
        return mp_fail(err, MP_ERR_INPUT, "not a regular file");
    return mp_open_read(path, &shard->fd, err);
}

int mp_shard_open(mp_shard *shard, const char *dir, bool exact, const char *index, mp_io io,
                  mp_error *err)
{
    int rc = exact ? 0 : choose_file(shard, dir, err);
    if (rc != 0)
        return rc;
    char *path = mp_path_join(dir, shard->file);
    rc = path ? open_file(shard, path, index, err) : mp_fail_memory(err);
    if (rc == 0)
        rc = mp_direct_choose(&shard->direct, io, shard->fd, path, err);
    free(path);
    if (rc != 0 || !mp_shard_name_compressed(shard->file))
        return rc;
    shard->zstd = mp_alloc_zeroed(1, sizeof *shard->zstd);
    if (!shard->zstd)
        return mp_fail_memory(err);
    rc = mp_zstd_file_open(shard->zstd, shard->fd, shard->file, err);
    shard->zstd->direct = shard->direct;
    return rc;
}

void mp_shard_release(mp_shard *shard)
{
    if (shard->zstd)
        mp_zstd_file_release(shard->zstd);
    free(shard->zstd);
    mp_direct_close(shard->direct);
    mp_file_close(shard->fd, shard->file, NULL);
    free(shard->name);
    free(shard->file);
    *shard = (mp_shard){.fd = -1};
}

int mp_shard_read(const mp_shard *shard, struct mp_frame_cache *cache, uint64_t offset, uint64_t n,
                  void *buffer, mp_error *err)
{
    if (shard->zstd)
        return mp_zstd_file_read(shard->zstd, cache, offset, n, buffer, err);
    return mp_read_bulk(shard->fd, shard->direct, buffer, n, offset, shard->file, err);
}

bool mp_checkpoint_read_in_order(const mp_checkpoint *ckpt)
{
    for (size_t i = 0; i < ckpt->num_shards; i++)
        if (ckpt->shards[i].zstd && !ckpt->shards[i].zstd->seekable) {
            mp_frame_cache_read_in_order(ckpt->cache);
            return true;
        }
    return false;
}

int mp_digest_tensor(const mp_checkpoint *ckpt, const mp_tensor *tensor, void *buffer, size_t size,
                     mp_digest *digest, mp_error *err)
{
    mp_digest_stream stream;
    int rc = mp_digest_begin(&stream, err);

    for (uint64_t at = 0; rc == 0 && at < tensor->bytes; at += size) {
        size_t n = tensor->bytes - at < size ? (size_t)(tensor->bytes - at) : size;

        rc = mp_tensor_read(ckpt, tensor, at, n, buffer, err);
        if (rc == 0)
            mp_digest_update(&stream, buffer, n);
    }
    mp_digest_end(&stream, rc == 0 ? digest : NULL);
    return rc;
}
