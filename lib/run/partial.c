/* SPDX-License-Identifier: Apache-2.0 */
/* The directory that a job writes to until it is whole, and its way to OUT. */
#include "run/partial.h"

#include "base/error.h"
#include "base/file.h"
#include "run/journal.h"

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

int mp_partial_prepare(const mp_job *job, const char *out, const char *partial, mp_run_mode mode,
                       mp_error *err)
{
    bool out_there = mp_path_exists(out), partial_there = mp_path_exists(partial);

    if (out_there && mode != MP_RUN_FORCE)
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" exists: choose another name, or --force to "
                       "replace it",
                       out);
    if (out_there && !job->is_whole(out))
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" exists and is not %s: not replaced", out,
                       job->kind);
    if (partial_there && mode == MP_RUN_FRESH)
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" is there from an interrupted run: --resume continues it, --force "
                       "starts anew",
                       partial);
    if (partial_there && mode == MP_RUN_FORCE &&
        (mp_journal_check_free(partial, err) != 0 || mp_remove_tree(partial, err) != 0))
        return err->code;
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

        if (!job->owns(entry->d_name))
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

    if (replace && renameat2(AT_FDCWD, partial, AT_FDCWD, out, RENAME_EXCHANGE) == 0) {
        rc = sync_parent(out, err);
        return rc ? rc : mp_remove_tree(partial, err);
    }
    if (replace)
        rc = mp_remove_tree(out, err);
    if (rc == 0 && rename(partial, out) != 0)
        rc = mp_fail_errno(err, errno, "cannot rename \"%s\" to \"%s\"", partial, out);
    return rc ? rc : sync_parent(out, err);
}
