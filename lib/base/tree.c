/* SPDX-License-Identifier: Apache-2.0 */
/* Walking a directory and those below it.
 *
 * Files come in the order of the system, and callers sort what they need sorted. Links are
 * followed, as packs may be put together from links; a limit on the depth keeps circles finite.
 * Anything that is neither a file nor a directory is an error, because opening a pipe would wait
 * for its writer. */
#include "base/tree.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"

#define DEPTH_MAX 8 /* of directories: links may lead in circles */

typedef struct tree {
    const char *dir;
    mp_tree_visit *visit;
    void *user;
} tree;

static int walk(const tree *t, const char *below, unsigned depth, mp_error *err);

/* path: below the directory. */
static int enter(const tree *t, const char *path, unsigned depth, mp_error *err)
{
    struct stat st;
    char *whole = mp_path_join(t->dir, path);
    int rc = 0;

    if (!whole)
        rc = mp_fail_memory(err);
    else if (stat(whole, &st) != 0)
        rc = mp_fail_errno(err, errno, "cannot access \"%s\"", whole);
    else if (S_ISDIR(st.st_mode) && depth == DEPTH_MAX)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: directories over %u deep", path, DEPTH_MAX);
    else if (S_ISDIR(st.st_mode))
        rc = walk(t, path, depth + 1, err);
    else if (!S_ISREG(st.st_mode))
        rc = mp_fail(err, MP_ERR_INPUT, "%s: not a regular file", path);
    else
        rc = t->visit(t->user, path, (uint64_t)st.st_size, err);
    free(whole);
    return rc;
}

/* below: a path inside the directory; "" for itself. */
static int walk(const tree *t, const char *below, unsigned depth, mp_error *err)
{
    char *path = mp_path_join(t->dir, below);
    DIR *stream = path ? opendir(path) : NULL;
    int rc = 0;

    if (!path)
        return mp_fail_memory(err);
    if (!stream)
        rc = mp_fail_errno(err, errno, "cannot open directory \"%s\"", path);
    free(path);
    while (rc == 0) {
        errno = 0;
        const struct dirent *entry = readdir(stream);

        if (!entry) {
            if (errno != 0)
                rc = mp_fail_errno(err, errno, "cannot list \"%s\"", t->dir);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        path = mp_path_join(below, entry->d_name);
        rc = path ? enter(t, path, depth, err) : mp_fail_memory(err);
        free(path);
    }
    if (stream)
        closedir(stream);
    return rc;
}

int mp_tree_files(const char *dir, mp_tree_visit *visit, void *user, mp_error *err)
{
    return walk(&(tree){dir, visit, user}, "", 0, err);
}
