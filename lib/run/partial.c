/* SPDX-License-Identifier: Apache-2.0 */
/* The directory that a job writes to until it is complete, and its way to OUT.
 *
 *     OUT.partial   being written; has a journal from the first moment on
 *     OUT           complete: it appears by one rename, or by changing places with the old one
 *
 * So whoever sees OUT sees a whole one. A replaced OUT becomes OUT.partial while it is being
 * removed; there is no journal in it, so nobody resumes it. Only if the file system cannot exchange
 * two directories is the old one removed first. What an existing directory means depends on the
 * mode, and is decided here before anything is written. Another process at work is noticed by the
 * lock on its journal. One thread. */
#include "run/partial.h"

#include "base/error.h"
#include "base/file.h"
#include "run/journal.h"
#include "run/parts.h"
#include "run/sums.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *mp_without_slashes(const char *path)
{
    size_t length = strlen(path);

    while (length > 1 && path[length - 1] == '/')
        length--;
    return strndup(path, length);
}

/* That no process is at work in the directory. */
static int check_free(const char *partial, const mp_parts *parts, mp_error *err)
{
    char name[MP_PART_NAME_MAX];
    int rc = mp_journal_check_free(partial, MP_JOURNAL_NAME, err);

    for (size_t i = 0; rc == 0 && i < parts->num; i++)
        rc = mp_journal_check_free(partial, mp_part_journal(parts->numbers[i], parts->count, name),
                                   err);
    return rc;
}

/* Takes the partial directory that is there, or removes it, as the mode says. */
static int take_partial(const char *out, const char *partial, mp_run_mode mode, mp_error *err)
{
    mp_parts parts;
    int rc = mode == MP_RUN_FRESH ? 0 : mp_parts_list(partial, &parts, err);

    if (mode == MP_RUN_FRESH)
        return mp_fail(
            err, MP_ERR_USAGE,
            "\"%s\" exists from an interrupted run: --resume continues it, --force starts over",
            partial);
    if (rc != 0)
        return rc;
    if (mode == MP_RUN_RESUME && parts.num > 0)
        rc = mp_fail(err, MP_ERR_USAGE,
                     "\"%s\" exists from a run in %u parts: continue them with --shard, then run "
                     "'moepack finish %s'",
                     partial, parts.count, out);
    if (mode == MP_RUN_FORCE)
        rc = check_free(partial, &parts, err);
    if (rc == 0 && mode == MP_RUN_FORCE)
        rc = mp_remove_tree(partial, err);
    mp_parts_release(&parts);
    return rc;
}

int mp_partial_prepare(const mp_job *job, const char *out, const char *partial, mp_run_mode mode,
                       mp_error *err)
{
    bool out_there = mp_path_exists(out);

    if (out_there && mode != MP_RUN_FORCE)
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" exists: choose another name, or --force to "
                       "replace it",
                       out);
    if (out_there && !job->is_whole(out))
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" exists and is not %s: not replaced", out,
                       job->kind);
    if (mp_path_exists(partial) && take_partial(out, partial, mode, err) != 0)
        return err->code;
    return mp_make_dir(partial, err);
}

int mp_partial_join(const mp_job *job, const char *out, const char *partial, mp_error *err)
{
    char *whole = mp_path_join(partial, MP_JOURNAL_NAME);
    bool alone = whole && mp_path_exists(whole);

    free(whole);
    if (!whole)
        return mp_fail_memory(err);
    if (mp_path_exists(out))
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" exists and is not %s: choose another name", out,
                       job->kind);
    if (alone)
        return mp_fail(
            err, MP_ERR_USAGE,
            "\"%s\" exists from a run that is not split into parts, or is being finished", partial);
    return mp_make_dir(partial, err);
}

int mp_partial_clear(const mp_job *job, const char *partial, mp_error *err)
{
    DIR *stream = opendir(partial);
    int rc = 0;

    if (!stream)
        return mp_fail_errno(err, errno, "cannot list \"%s\"", partial);
    for (const struct dirent *entry; rc == 0 && (entry = readdir(stream));) {
        char *path;

        /* Only names that this kind of job writes: a user may keep notes in the directory. */
        if (!job->owns(entry->d_name) && strcmp(entry->d_name, MP_SUMS_NAME) != 0 &&
            strcmp(entry->d_name, MP_SUMS_NEW) != 0)
            continue;
        path = mp_path_join(partial, entry->d_name);
        rc = path ? mp_remove_tree(path, err) : mp_fail_memory(err);
        free(path);
    }
    closedir(stream);
    return rc;
}

static int sync_parent(const char *path, mp_error *err)
{
    char *parent = strdup(path), *slash;
    int rc;

    if (!parent)
        return mp_fail_memory(err);
    slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = '\0';
    rc = mp_dir_sync(slash ? parent : ".", err);
    free(parent);
    return rc;
}

int mp_partial_publish(const char *out, const char *partial, mp_run_mode mode, mp_error *err)
{
    bool replace = mode == MP_RUN_FORCE && mp_path_exists(out);
    int rc = 0;

    /* Both names exist at every moment: a crash leaves either the old or the new one as OUT. */
    if (replace && renameat2(AT_FDCWD, partial, AT_FDCWD, out, RENAME_EXCHANGE) == 0) {
        rc = sync_parent(out, err);
        return rc ? rc : mp_remove_tree(partial, err);
    }
    /* What cannot be moved, like a mount point, cannot be removed either, only emptied. */
    if (replace && errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
        return mp_fail_errno(err, errno,
                             "cannot replace \"%s\", which is as it was; rename \"%s\", which is "
                             "complete",
                             out, partial);
    if (replace)
        rc = mp_remove_tree(out, err);
    if (rc == 0 && rename(partial, out) != 0)
        rc = mp_fail_errno(err, errno, "cannot rename \"%s\" to \"%s\"", partial, out);
    return rc ? rc : sync_parent(out, err);
}
