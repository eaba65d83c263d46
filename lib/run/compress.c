/* SPDX-License-Identifier: Apache-2.0 */
/* Files of a run are compressed as they are finished.
 *
 * Files are made at full size but take no space before they are written, so that a run needs the
 * space of the compressed files and of those that are being written, and one more. The order is:
 * the plain file durable and its tensors journaled, the compressed file durable, its directory
 * synced, the plain one removed. While the plain one is there the other means nothing; once only
 * the other is there, it is whole. */
#include "run/compress.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/compress.h"
#include "checkpoint/shard.h"
#include "run/at_once.h"

char *mp_out_compressed_path(const mp_out_file *file, const char *dir)
{
    return mp_format("%s/%s" MP_ZSTD_SUFFIX, dir, file->path);
}

int mp_outputs_look_compressed(mp_outputs *outputs, size_t file, const char *dir, mp_error *err)
{
    char *plain, *path;

    if (outputs->work->zstd == MP_ZSTD_NONE)
        return 0;
    plain = mp_path_join(dir, outputs->work->files[file].path);
    path = mp_out_compressed_path(&outputs->work->files[file], dir);
    bool memory = plain && path;
    outputs->compressed[file] = memory && !mp_path_exists(plain) && mp_path_exists(path);
    free(plain);
    free(path);
    return memory ? 0 : mp_fail_memory(err);
}

/* Whether the last of a file's tensors is filled in this stage. */
static bool ends_in(const mp_work *work, size_t file, uint32_t stage)
{
    const mp_out_file *f = &work->files[file];
    uint32_t last = 0;

    for (uint32_t t = 0; t < f->num_tensors; t++)
        if (work->outputs[f->first_tensor + t].stage > last)
            last = work->outputs[f->first_tensor + t].stage;
    return last == stage;
}

bool mp_outputs_finishes(const mp_outputs *outputs, uint32_t stage)
{
    const mp_work *work = outputs->work;

    for (size_t f = 0; work->zstd != MP_ZSTD_NONE && f < work->num_files; f++)
        if (!outputs->compressed[f] && ends_in(work, f, stage))
            return true;
    return false;
}

static int compress_file(mp_outputs *outputs, size_t file, const char *plain, const char *path,
                         const mp_context *context, mp_error *err)
{
    char *dir = mp_format("%.*s", (int)(mp_path_base(path) - path), path);
    int rc = dir ? 0 : mp_fail_memory(err);

    if (rc == 0 && mp_at_once_has_file(outputs, file))
        rc = mp_at_once_end_file(outputs, file, err);
    else if (rc == 0)
        rc = mp_file_compress(plain, path, outputs->work->zstd, context, err);
    if (rc == 0)
        rc = mp_dir_sync(dir, err);
    if (rc == 0)
        rc = mp_file_close(outputs->fds[file], plain, err);
    if (rc == 0) {
        outputs->fds[file] = -1;
        outputs->dirty[file] = false;
        outputs->compressed[file] = true;
        if (unlink(plain) != 0)
            rc = mp_fail_errno(err, errno, "cannot remove \"%s\"", plain);
    }
    free(dir);
    return rc;
}

int mp_outputs_compress(mp_outputs *outputs, uint32_t stage, const char *dir,
                        const mp_context *context, mp_error *err)
{
    const mp_work *work = outputs->work;
    int rc = 0;

    for (size_t f = 0; rc == 0 && f < work->num_files; f++) {
        if (outputs->compressed[f] || !ends_in(work, f, stage))
            continue;
        char *plain = mp_path_join(dir, work->files[f].path);
        char *path = mp_out_compressed_path(&work->files[f], dir);
        rc = plain && path ? compress_file(outputs, f, plain, path, context, err)
                           : mp_fail_memory(err);
        free(plain);
        free(path);
    }
    return rc;
}
