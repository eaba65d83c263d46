/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a run: created at full size, written in any order, digested on the way.
 *
 * A file gets its header and its final size before the first unit runs, and every tensor has its
 * extent from then on. Units can therefore write in any order, files full of holes take no space,
 * and a resumed run finds them as it left them. It also means that a file's size says nothing about
 * its contents. Only the journal does, and it is restarted if a file is missing (run.c).
 *
 * Digests. A tensor's digest needs its bytes in order, but units arrive in any order. So each
 * tensor keeps the offset of the byte its digest needs next, and a write that starts exactly there
 * also feeds the digest. Every byte is written once, so at most one thread can have the next one.
 * No lock is needed: acquire and release on `next` hand the stream from thread to thread. Other
 * writes skip the digest, and mp_outputs_digest later reads back what the stream missed, which is
 * usually little and still in memory.
 *
 * Threads. mp_outputs_write and mp_outputs_copy run on all threads, on extents that do not overlap.
 * mp_outputs_sync runs on one thread alongside them. Everything else runs before, between or after
 * the parallel loops. */
#include "run/output.h"

#include "base/error.h"
#include "base/file.h"
#include "run/at_once.h"
#include "run/compress.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ------------------------------------------------------------------------
 * Set up
 */

/* Sorts the outputs by stage, keeping their order within one. A counting sort, because a pack has
 * tens of thousands of outputs and every stage asks for its own. */
static void sort_stages(mp_outputs *outputs)
{
    const mp_work *work = outputs->work;
    uint32_t *first = outputs->first_of_stage;

    for (size_t o = 0; o < work->num_outputs; o++)
        first[work->outputs[o].stage + 1]++;
    for (uint32_t s = 0; s < work->num_stages; s++)
        first[s + 1] += first[s];
    /* Filling moves each stage's first to that of the next one, and back it goes. */
    for (size_t o = 0; o < work->num_outputs; o++)
        outputs->by_stage[first[work->outputs[o].stage]++] = (uint32_t)o;
    memmove(first + 1, first, work->num_stages * sizeof *first);
    first[0] = 0;
}

int mp_outputs_init(mp_outputs *outputs, const mp_work *work, mp_error *err)
{
    *outputs = (mp_outputs){
        .work = work,
        .fds = mp_alloc(work->num_files, sizeof *outputs->fds),
        .dirty = mp_alloc_zeroed(work->num_files, sizeof *outputs->dirty),
        .compressed = mp_alloc_zeroed(work->num_files, sizeof *outputs->compressed),
        .digests = mp_alloc_zeroed(work->num_outputs, sizeof *outputs->digests),
        .by_stage = mp_alloc(work->num_outputs, sizeof *outputs->by_stage),
        .first_of_stage =
            mp_alloc_zeroed((uint64_t)work->num_stages + 1, sizeof *outputs->first_of_stage),
    };
    for (size_t f = 0; outputs->fds && f < work->num_files; f++)
        outputs->fds[f] = -1;
    if (!outputs->fds || !outputs->dirty || !outputs->compressed || !outputs->digests ||
        !outputs->by_stage || !outputs->first_of_stage)
        return mp_fail_memory(err);
    sort_stages(outputs);
    return 0;
}

void mp_outputs_release(mp_outputs *outputs)
{
    if (!outputs->work)
        return;
    mp_outputs_close(outputs, NULL);
    mp_at_once_release(outputs);
    for (size_t o = 0; outputs->digests && o < outputs->work->num_outputs; o++)
        mp_digest_end(&outputs->digests[o].stream, NULL);
    free(outputs->fds);
    free(outputs->dirty);
    free(outputs->compressed);
    free(outputs->digests);
    free(outputs->by_stage);
    free(outputs->first_of_stage);
    memset(outputs, 0, sizeof *outputs);
}

/* ------------------------------------------------------------------------
 * Directories
 */

/* Bytes of a path up to its last slash; 0 without one. */
static size_t dir_length(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) : 0;
}

/* Does something with every directory that files lie in, once each: files of one stand
 * together. */
static int for_each_dir(const mp_work *work, const char *dir,
                        int (*act)(const char *path, mp_error *err), mp_error *err)
{
    const char *last = "";

    for (size_t f = 0; f < work->num_files; f++) {
        const char *path = work->files[f].path;
        size_t length = dir_length(path);
        char *below;
        int rc;

        /* Files of one directory are listed together, so comparing with the last one is enough. */
        if (length == dir_length(last) && memcmp(path, last, length) == 0)
            continue;
        last = path;
        below = mp_format("%s/%.*s", dir, (int)length, path);
        rc = below ? act(below, err) : mp_fail_memory(err);
        free(below);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int mp_outputs_sync_dirs(const mp_outputs *outputs, const char *dir, mp_error *err)
{
    return for_each_dir(outputs->work, dir, mp_dir_sync, err);
}

/* ------------------------------------------------------------------------
 * Files
 */

int mp_outputs_check(mp_outputs *outputs, const char *dir, const mp_out_file **missing,
                     mp_error *err)
{
    const mp_work *work = outputs->work;

    *missing = NULL;
    for (size_t f = 0; f < work->num_files; f++) {
        char *path = mp_path_join(dir, work->files[f].path);
        struct stat st;

        if (!path)
            return mp_fail_memory(err);
        bool there = stat(path, &st) == 0 && (uint64_t)st.st_size == work->files[f].bytes;
        free(path);
        if (there && mp_at_once_has_file(outputs, f))
            if (mp_at_once_check(outputs, f, dir, &there, err) != 0)
                return err->code;
        /* A plain file of the right size wins: a .zst next to it was never finished. */
        if (!there && mp_outputs_look_compressed(outputs, f, dir, err) != 0)
            return err->code;
        if (!there && !outputs->compressed[f] && !*missing)
            *missing = &work->files[f];
    }
    return 0;
}

/* Do not truncate: keep what the units of an interrupted run wrote. */
static int open_file(const mp_out_file *file, const char *dir, int *fd, mp_error *err)
{
    char *path = mp_path_join(dir, file->path);
    int rc = path ? mp_open_write(path, fd, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_file_resize(*fd, path, file->bytes, err);
    if (rc == 0)
        /* Other parts of the run may be doing this at the same moment: same size, same bytes, no
         * harm. */
        rc = mp_pwrite_all(*fd, file->header, file->header_bytes, 0, path, err);
    free(path);
    return rc;
}

int mp_outputs_open(mp_outputs *outputs, const char *dir, mp_error *err)
{
    const mp_work *work = outputs->work;

    if (for_each_dir(work, dir, mp_make_dir, err) != 0)
        return err->code;
    mp_at_once_give_up_all(outputs);
    for (size_t f = 0; f < work->num_files; f++) {
        if (outputs->compressed[f])
            continue;
        if (open_file(&work->files[f], dir, &outputs->fds[f], err) != 0)
            return err->code;
        if (mp_at_once_has_file(outputs, f) && mp_at_once_open(outputs, f, dir, err) != 0)
            return err->code;
        /* The header has to become durable even if no unit writes to this file. */
        outputs->dirty[f] = true;
    }
    return 0;
}

int mp_outputs_close(mp_outputs *outputs, mp_error *err)
{
    int rc = 0;

    for (size_t f = 0; outputs->fds && f < outputs->work->num_files; f++) {
        const char *path = outputs->work->files[f].path;

        if (mp_file_close(outputs->fds[f], path, rc ? NULL : err) != 0)
            rc = MP_ERR_IO;
        outputs->fds[f] = -1;
        if (mp_at_once_has_file(outputs, f) && mp_at_once_close(outputs, f, rc ? NULL : err) != 0)
            rc = MP_ERR_IO;
    }
    return rc;
}

/* Clear each mark before syncing its file. The other way round, a write that lands in between would
 * be lost: its mark would be cleared and its data never synced. */
int mp_outputs_sync(mp_outputs *outputs, mp_error *err)
{
    const mp_work *work = outputs->work;

    for (size_t f = 0; f < work->num_files; f++) {
        if (!__atomic_exchange_n(&outputs->dirty[f], false, __ATOMIC_ACQ_REL))
            continue;
        if (mp_file_sync(outputs->fds[f], work->files[f].path, err) != 0 ||
            (mp_at_once_has_file(outputs, f) && mp_at_once_sync(outputs, f, err) != 0))
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

static mp_tensor_digest *digest_of(const mp_outputs *outputs, const mp_out_tensor *out)
{
    return &outputs->digests[out - outputs->work->outputs];
}

const uint32_t *mp_outputs_of_stage(const mp_outputs *outputs, uint32_t stage, size_t *count)
{
    const uint32_t *first = &outputs->first_of_stage[stage];

    *count = first[1] - first[0];
    return outputs->by_stage + first[0];
}

/* No write starts at UINT64_MAX, so nothing feeds this digest. */
void mp_outputs_pass_digest(mp_outputs *outputs, size_t output)
{
    outputs->digests[output].next = UINT64_MAX;
}

/* Digests are set up one stage at a time: each takes memory, and a pack has thousands. */
int mp_outputs_begin_stage(mp_outputs *outputs, uint32_t stage, mp_error *err)
{
    size_t count;
    const uint32_t *list = mp_outputs_of_stage(outputs, stage, &count);

    for (size_t i = 0; i < count; i++)
        if (outputs->digests[list[i]].next != UINT64_MAX &&
            mp_digest_begin(&outputs->digests[list[i]].stream, err) != 0)
            return err->code;
    return 0;
}

int mp_outputs_write(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                     const void *data, uint64_t n, mp_error *err)
{
    mp_tensor_digest *digest = digest_of(outputs, out);
    int rc = mp_at_once_has(outputs, out)
                 ? mp_at_once_write(outputs, out, offset, data, n, err)
                 : mp_pwrite_all(outputs->fds[out->file], data, n, out->offset + offset,
                                 outputs->work->files[out->file].path, err);

    if (rc != 0)
        return rc;
    /* Only now: a sync that took the mark before the write would not have made it durable. */
    __atomic_store_n(&outputs->dirty[out->file], true, __ATOMIC_RELEASE);
    __atomic_fetch_add(&digest->written, n, __ATOMIC_RELAXED);
    /* Only one thread gets past this until it stores `next`: no other write starts at this byte. */
    if (__atomic_load_n(&digest->next, __ATOMIC_ACQUIRE) != offset)
        return 0;
    mp_digest_update(&digest->stream, data, n);
    __atomic_store_n(&digest->next, offset + n, __ATOMIC_RELEASE);
    return 0;
}

/* Only this process counts: what an earlier one wrote is on disk but not in the digest. */
bool mp_outputs_wrote(const mp_outputs *outputs, const mp_out_tensor *out)
{
    return __atomic_load_n(&digest_of(outputs, out)->written, __ATOMIC_RELAXED) == out->bytes;
}

int mp_outputs_copy(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset, int fd,
                    const char *path, uint64_t from, uint64_t n, mp_error *err)
{
    int rc = mp_at_once_has(outputs, out)
                 ? mp_at_once_copy(outputs, out, offset, fd, path, from, n, err)
                 : mp_file_copy_range(fd, from, outputs->fds[out->file], out->offset + offset, n,
                                      path, outputs->work->files[out->file].path, err);

    if (rc != 0)
        return rc;
    __atomic_store_n(&outputs->dirty[out->file], true, __ATOMIC_RELEASE);
    __atomic_fetch_add(&digest_of(outputs, out)->written, n, __ATOMIC_RELAXED);
    return 0;
}

int mp_outputs_digest(mp_outputs *outputs, const mp_out_tensor *out, void *buffer, size_t size,
                      mp_digest *digest, mp_error *err)
{
    mp_tensor_digest *so_far = digest_of(outputs, out);
    int rc = 0;

    if (!mp_at_once_has(outputs, out)) {
        rc = mp_digest_update_file(&so_far->stream, outputs->fds[out->file],
                                   outputs->work->files[out->file].path, out->offset + so_far->next,
                                   out->bytes - so_far->next, buffer, size, err);
    } else {
        for (uint64_t at = so_far->next, n = 0; rc == 0 && at < out->bytes; at += n) {
            n = out->bytes - at < size ? out->bytes - at : size;
            rc = mp_at_once_read(outputs, out, at, buffer, n, err);
            if (rc == 0)
                mp_digest_update(&so_far->stream, buffer, n);
        }
    }
    /* One thread per tensor, after all units of the stage, so plain reads of `next` will do. */
    mp_digest_end(&so_far->stream, rc == 0 ? digest : NULL);
    return rc;
}

void mp_outputs_forget_stage(const mp_outputs *outputs, uint32_t stage)
{
    size_t count;
    const uint32_t *list = mp_outputs_of_stage(outputs, stage, &count);

    for (size_t i = 0; i < count; i++) {
        const mp_out_tensor *out = &outputs->work->outputs[list[i]];

        /* Gigabytes of output that nobody will read again would push the source out of the page
         * cache. */
        if (mp_at_once_has(outputs, out))
            mp_at_once_forget(outputs, out);
        else
            mp_file_forget(outputs->fds[out->file], out->offset, out->bytes);
    }
}
