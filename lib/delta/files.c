/* SPDX-License-Identifier: Apache-2.0 */
/* Files that go along with shards. */
#include "delta/files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"

#define INDEX_SUFFIX ".safetensors.index.json"
#define PIECE_BYTES  ((size_t)256 << 10)

static bool is_index(const char *path)
{
    size_t n = strlen(path), end = strlen(INDEX_SUFFIX);

    return n > end && strcmp(path + n - end, INDEX_SUFFIX) == 0;
}

int mp_carried_add(mp_carried *c, const mp_delta_version *version, bool indexes, mp_error *err)
{
    mp_entries entries = {0}, *more;
    struct stat st;

    if (stat(version->dir, &st) == 0 && !S_ISDIR(st.st_mode))
        return 0; /* a single shard */
    int rc = mp_entries_all(&entries, version->dir, false, err);
    mp_carried_file *list =
        realloc(c->list, (c->count + entries.count + 1) * sizeof *list); /* never of 0 bytes */
    if (list)
        c->list = list;
    more = realloc(c->entries, (c->num_entries + 1) * sizeof *more);
    if (more)
        c->entries = more;
    if (rc == 0 && (!list || !more))
        rc = mp_fail_memory(err);
    if (rc != 0) {
        mp_entries_release(&entries);
        return rc;
    }
    for (size_t i = 0; i < entries.count; i++) {
        const mp_entry *entry = &entries.list[i];

        if (entry->kind == MP_ENTRY_OTHER && strcmp(entry->path, MP_DELTA_PACK_NAME) != 0 &&
            (indexes || !is_index(entry->path)))
            c->list[c->count++] = (mp_carried_file){version->dir, entry->path};
    }
    c->entries[c->num_entries++] = entries;
    return 0;
}

void mp_carried_release(mp_carried *c)
{
    for (size_t i = 0; i < c->num_entries; i++)
        mp_entries_release(&c->entries[i]);
    free(c->entries);
    free(c->list);
    *c = (mp_carried){0};
}

/* ------------------------------------------------------------------------
 * Comparing and copying
 */

/* Whether both files are there and hold the same. */
static int same_file(const char *a, const char *b, bool *same, mp_error *err)
{
    uint64_t bytes[2] = {0, 0};
    int fd[2] = {-1, -1}, rc = 0;
    uint8_t *buffer = mp_alloc(2, PIECE_BYTES);

    *same = mp_path_exists(a) && mp_path_exists(b);
    if (!buffer)
        rc = mp_fail_memory(err);
    for (int i = 0; rc == 0 && *same && i < 2; i++) {
        rc = mp_open_read(i ? b : a, &fd[i], err);
        if (rc == 0)
            rc = mp_file_size(fd[i], i ? b : a, &bytes[i], err);
    }
    *same &= bytes[0] == bytes[1];
    for (uint64_t at = 0; rc == 0 && *same && at < bytes[0]; at += PIECE_BYTES) {
        size_t n = bytes[0] - at < PIECE_BYTES ? (size_t)(bytes[0] - at) : PIECE_BYTES;

        rc = mp_pread_all(fd[0], buffer, n, at, a, err);
        if (rc == 0)
            rc = mp_pread_all(fd[1], buffer + PIECE_BYTES, n, at, b, err);
        *same = rc == 0 && memcmp(buffer, buffer + PIECE_BYTES, n) == 0;
    }
    mp_file_close(fd[0], a, NULL);
    mp_file_close(fd[1], b, NULL);
    free(buffer);
    return rc;
}

int mp_carried_drop_same(mp_carried *c, const char *dir, mp_error *err)
{
    size_t kept = 0;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < c->count; i++) {
        char *a = mp_path_join(dir, c->list[i].path);
        char *b = mp_path_join(c->list[i].dir, c->list[i].path);
        bool same = false;

        rc = a && b ? same_file(a, b, &same, err) : mp_fail_memory(err);
        free(a);
        free(b);
        if (!same)
            c->list[kept++] = c->list[i];
    }
    c->count = kept;
    return rc;
}

int mp_carried_copy(const mp_carried *c, const char *to, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < c->count; i++) {
        char *from = mp_path_join(c->list[i].dir, c->list[i].path);
        char *copy = mp_path_join(to, c->list[i].path);

        rc = from && copy ? mp_make_dirs(copy, strlen(to) + 1, err) : mp_fail_memory(err);
        if (rc == 0)
            rc = mp_file_copy(from, copy, err);
        free(from);
        free(copy);
    }
    return rc;
}
