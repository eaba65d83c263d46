/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a run: created at full size, written anywhere, digested on the way. */
#include "pack/output.h"

#include "base/error.h"
#include "base/file.h"

#include <moepack/artifact.h>

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int mp_outputs_init(mp_outputs *outputs, const mp_plan *plan, mp_error *err)
{
    *outputs = (mp_outputs){
        .plan = plan,
        .fds = mp_alloc(plan->num_files, sizeof *outputs->fds),
        .digests = mp_alloc_zeroed(plan->num_outputs, sizeof *outputs->digests),
    };
    for (size_t f = 0; outputs->fds && f < plan->num_files; f++)
        outputs->fds[f] = -1;
    return outputs->fds && outputs->digests ? 0 : mp_fail_memory(err);
}

void mp_outputs_release(mp_outputs *outputs)
{
    if (!outputs->plan)
        return;
    mp_outputs_close(outputs, NULL);
    for (size_t o = 0; outputs->digests && o < outputs->plan->num_outputs; o++)
        mp_digest_end(&outputs->digests[o].stream, NULL);
    free(outputs->fds);
    free(outputs->digests);
    memset(outputs, 0, sizeof *outputs);
}

static int make_rank_dirs(const mp_plan *plan, const char *dir, mp_error *err)
{
    for (size_t f = 0; f < plan->num_files; f++) {
        char name[MP_RANK_NAME_MAX], *path;
        int rc;

        if (f > 0 && plan->files[f].rank == plan->files[f - 1].rank)
            continue;
        path = mp_path_join(dir, mp_rank_name(plan->files[f].rank, name));
        rc = path ? mp_make_dir(path, err) : mp_fail_memory(err);
        free(path);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int mp_outputs_check(const mp_outputs *outputs, const char *dir, bool *whole, mp_error *err)
{
    const mp_plan *plan = outputs->plan;

    *whole = true;
    for (size_t f = 0; f < plan->num_files; f++) {
        char *path = mp_path_join(dir, plan->files[f].path);
        struct stat st;

        if (!path)
            return mp_fail_memory(err);
        *whole &= stat(path, &st) == 0 && (uint64_t)st.st_size == plan->files[f].bytes;
        free(path);
    }
    return 0;
}

static int open_file(const mp_out_file *file, const char *dir, int *fd, mp_error *err)
{
    char *path = mp_path_join(dir, file->path);
    int rc = path ? mp_open_write(path, fd, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_file_resize(*fd, path, file->bytes, err);
    if (rc == 0)
        rc = mp_pwrite_all(*fd, file->header, file->header_bytes, 0, path, err);
    free(path);
    return rc;
}

int mp_outputs_open(mp_outputs *outputs, const char *dir, mp_error *err)
{
    const mp_plan *plan = outputs->plan;

    if (make_rank_dirs(plan, dir, err) != 0)
        return err->code;
    for (size_t f = 0; f < plan->num_files; f++)
        if (open_file(&plan->files[f], dir, &outputs->fds[f], err) != 0)
            return err->code;
    return 0;
}

int mp_outputs_close(mp_outputs *outputs, mp_error *err)
{
    int rc = 0;

    for (size_t f = 0; outputs->fds && f < outputs->plan->num_files; f++) {
        const char *path = outputs->plan->files[f].path;

        if (mp_file_close(outputs->fds[f], path, rc ? NULL : err) != 0)
            rc = MP_ERR_IO;
        outputs->fds[f] = -1;
    }
    return rc;
}

static mp_tensor_digest *digest_of(const mp_outputs *outputs, const mp_out_tensor *out)
{
    return &outputs->digests[out - outputs->plan->outputs];
}

int mp_outputs_begin_layer(mp_outputs *outputs, uint32_t layer, mp_error *err)
{
    const mp_plan *plan = outputs->plan;

    for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
        for (unsigned t = 0; t < plan->num_tensors; t++) {
            const mp_out_tensor *out = mp_plan_output(plan, layer, rank, t);

            if (out && mp_digest_begin(&digest_of(outputs, out)->stream, err) != 0)
                return err->code;
        }
    }
    return 0;
}

int mp_outputs_write(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                     const void *data, uint64_t n, mp_error *err)
{
    mp_tensor_digest *digest = digest_of(outputs, out);
    int rc = mp_pwrite_all(outputs->fds[out->file], data, n, out->offset + offset,
                           outputs->plan->files[out->file].path, err);

    if (rc != 0 || __atomic_load_n(&digest->next, __ATOMIC_ACQUIRE) != offset)
        return rc;
    mp_digest_update(&digest->stream, data, n);
    __atomic_store_n(&digest->next, offset + n, __ATOMIC_RELEASE);
    return 0;
}

int mp_outputs_digest(mp_outputs *outputs, const mp_out_tensor *out, void *buffer, size_t size,
                      mp_digest *digest, mp_error *err)
{
    mp_tensor_digest *so_far = digest_of(outputs, out);
    int rc = mp_digest_update_file(&so_far->stream, outputs->fds[out->file],
                                   outputs->plan->files[out->file].path, out->offset + so_far->next,
                                   out->bytes - so_far->next, buffer, size, err);

    mp_digest_end(&so_far->stream, rc == 0 ? digest : NULL);
    return rc;
}

void mp_outputs_forget_layer(const mp_outputs *outputs, uint32_t layer)
{
    const mp_plan *plan = outputs->plan;

    for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
        for (unsigned t = 0; t < plan->num_tensors; t++) {
            const mp_out_tensor *out = mp_plan_output(plan, layer, rank, t);

            if (out)
                mp_file_forget(outputs->fds[out->file], out->offset, out->bytes);
        }
    }
}
