/* SPDX-License-Identifier: Apache-2.0 */
/* Synthetic checkpoints: a directory that appears whole or not at all. Everything is written to
 * DIR.partial, shard by shard, synced and renamed; an existing DIR must be empty, since rename
 * replaces an empty directory and no other. What is there under the partial name is somebody's run
 * and is left alone.
 *
 * There is no resuming: a value follows from the seed, its tensor's name and its place, so writing
 * again is as good. Shards are written one after the other, tiles of a shard on all threads; the
 * table of shapes is shared and only read. */
#include "synth/parts.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/parallel.h"
#include "checkpoint/compress.h"
#include "checkpoint/shard.h"

/* Whether something other than "." and ".." is in an open directory. */
static bool has_entries(DIR *dir)
{
    const struct dirent *entry;

    while ((entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            return true;
    return false;
}

/* MP_ERR_IO unless nothing is at the path, or an empty directory. */
static int check_free(const char *path, mp_error *err)
{
    struct stat st;

    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : mp_fail_errno(err, errno, "cannot stat \"%s\"", path);
    if (!S_ISDIR(st.st_mode))
        return mp_fail(err, MP_ERR_IO, "\"%s\" already exists and is not a directory", path);

    DIR *dir = opendir(path);
    if (!dir)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
    bool taken = has_entries(dir);
    closedir(dir);
    if (taken)
        return mp_fail(err, MP_ERR_IO, "\"%s\" already exists and is not empty", path);
    return 0;
}

/* "dir.partial", malloc'ed, without slashes at dir's end. Null with err filled for a
 * path whose last part is no name that could be given to another directory. */
static char *partial_path(const char *dir, mp_error *err)
{
    size_t n = strlen(dir);

    while (n > 0 && dir[n - 1] == '/')
        n--;
    const char *base = dir + n;
    while (base > dir && base[-1] != '/')
        base--;
    /* The last part; none, "." and ".." cannot be given to a new directory. */
    size_t length = (size_t)(dir + n - base);
    if (length == 0 || strncmp(base, ".", length) == 0 || strncmp(base, "..", length) == 0) {
        mp_fail(err, MP_ERR_USAGE, "\"%s\" is not a name for a new directory", dir);
        return NULL;
    }
    char *path = mp_format("%.*s.partial", (int)n, dir);
    if (!path)
        mp_fail_memory(err);
    return path;
}

/* Writes a text, which is freed, to a file; null stands for no memory. */
static int write_text(const char *dir, const char *name, char *text, mp_error *err)
{
    char *path = mp_path_join(dir, name);
    int rc = text && path ? mp_write_file(path, text, strlen(text), err) : mp_fail_memory(err);

    free(path);
    free(text);
    return rc;
}

/* Writes JSON, which is released, to a file; null stands for no memory. */
static int write_json(const char *dir, const char *name, json_t *json, mp_error *err)
{
    char *text = json ? mp_json_text(json) : NULL;

    json_decref(json);
    return write_text(dir, name, text, err);
}

/* Leaves the compressed shard in the plain one's place. */
static int compress_shard(const char *dir, const char *name, int level, const mp_context *context,
                          mp_error *err)
{
    char *plain = mp_path_join(dir, name);
    char *path = plain ? mp_format("%s" MP_ZSTD_SUFFIX, plain) : NULL;
    int rc = path ? mp_file_compress(plain, path, level, context, err) : mp_fail_memory(err);

    /* Only now: at every moment one of the two is there whole. */
    if (rc == 0 && unlink(plain) != 0)
        rc = mp_fail_errno(err, errno, "cannot remove \"%s\"", plain);
    free(plain);
    free(path);
    return rc;
}

static int write_shards(const mp_synth_plan *plan, const char *dir, const mp_context *context,
                        mp_error *err)
{
    float *shapes = mp_alloc(MP_SYNTH_SHAPES, sizeof *shapes);
    mp_synth_run run = {.plan = plan, .dir = dir, .shapes = shapes, .context = context};
    int rc = 0;

    if (!shapes)
        return mp_fail_memory(err);
    mp_synth_shapes(shapes);
    for (size_t i = 0; i < plan->num_shards && rc == 0; i++) {
        rc = mp_synth_shard_write(&run, i, err);
        if (rc == 0 && plan->options->zstd != MP_ZSTD_NONE)
            rc = compress_shard(dir, plan->shards[i].name, plan->options->zstd, context, err);
    }
    free(shapes);
    return rc;
}

static int write_checkpoint(const mp_synth_plan *plan, const char *dir, const mp_context *context,
                            mp_error *err)
{
    mp_begin_phase(context, "writing");

    int rc = write_shards(plan, dir, context, err);

    if (rc == 0)
        rc = write_text(dir, "model.safetensors.index.json", mp_synth_plan_index(plan), err);
    if (rc == 0)
        rc = write_json(dir, "config.json", mp_synth_config(plan), err);
    if (rc == 0 && plan->format->style == MP_STYLE_MODELOPT)
        rc = write_json(dir, "hf_quant_config.json", mp_synth_modelopt_config(plan), err);
    if (rc == 0 && mp_synth_convention(plan->format->routed)->label)
        rc = write_json(dir, "quant_model_description.json", mp_synth_description(plan), err);
    if (rc == 0)
        rc = mp_dir_sync(dir, err);
    return rc;
}

/* Writes to partial and renames that. */
static int write_whole(const mp_synth_plan *plan, const char *partial, const char *dir,
                       const mp_context *context, mp_error *err)
{
    if (mkdir(partial, 0777) != 0) {
        if (errno == EEXIST)
            return mp_fail(err, MP_ERR_IO,
                           "\"%s\" already exists: another run is writing it, or it can be removed",
                           partial);
        return mp_fail_errno(err, errno, "cannot create \"%s\"", partial);
    }
    int rc = write_checkpoint(plan, partial, context, err);
    if (rc == 0 && rename(partial, dir) != 0)
        rc = mp_fail_errno(err, errno, "cannot rename \"%s\" to \"%s\"", partial, dir);
    if (rc != 0)
        mp_remove_tree(partial, NULL);
    return rc;
}

int mp_synth(const mp_synth_options *options, const char *dir, const mp_context *context,
             mp_error *err)
{
    err = MP_NEVER_NULL(err);
    mp_synth_plan plan;
    char *partial = NULL;
    int rc = mp_synth_plan_init(&plan, options, err);

    if (rc == 0)
        rc = check_free(dir, err);
    if (rc == 0) {
        partial = partial_path(dir, err);
        rc = partial ? write_whole(&plan, partial, dir, context, err) : err->code;
    }
    free(partial);
    mp_synth_plan_release(&plan);
    return rc;
}
