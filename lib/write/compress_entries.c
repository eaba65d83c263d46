/* SPDX-License-Identifier: Apache-2.0 */
/* Which files a directory holds, what they are called once compressed, and a pack's manifest of
 * them.
 *
 *   model-00001-of-00002.safetensors      <->  model-00001-of-00002.safetensors.zst
 *   config.json and all else              ---  stays as it is
 *
 * A shard may be there plain or compressed, never both: sorted by what they will be called, two
 * such stand beside each other. Sums of files (SHA256SUMS) are of the old bytes and are left out.
 *
 * A manifest is parsed, changed and written again, which would lose what a later version has put
 * into it. So it is written unchanged first and compared: where that is not the same text, it is
 * refused. */
#include "write/compress.h"

#include <errno.h>
#include <moepack/artifact.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"
#include "base/tree.h"
#include "checkpoint/shard.h"
#include "pack/manifest.h"
#include "run/sidecar.h"

#define SHARD_SUFFIX ".safetensors"

/* As index.c takes what has no index: a hidden file is no shard. */
static bool is_shard(const char *path)
{
    const char *name = mp_path_base(path);
    size_t n = mp_shard_name_length(name), end = strlen(SHARD_SUFFIX);

    return name[0] != '.' && n > end && strncmp(name + n - end, SHARD_SUFFIX, end) == 0;
}

/* The name of a shard in a directory of plain or of compressed ones. Null without memory. */
static char *name_as(const char *path, bool decompress)
{
    return mp_format("%.*s%s", (int)mp_shard_name_length(path), path,
                     decompress ? "" : MP_ZSTD_SUFFIX);
}

/* path is taken over. */
static int add(mp_entries *entries, char *path, uint64_t bytes, bool decompress, mp_error *err)
{
    size_t n = entries->count;

    if ((n & (n - 1)) == 0) { /* full: there is room for a power of two */
        mp_entry *more = realloc(entries->list, (n > 0 ? 2 * n : 1) * sizeof *more);

        if (!more) {
            free(path);
            return mp_fail_memory(err);
        }
        entries->list = more;
    }
    mp_entry *entry = &entries->list[entries->count++];
    *entry = (mp_entry){.path = path, .bytes = bytes, .kind = MP_ENTRY_OTHER};
    if (is_shard(path))
        entry->kind = MP_ENTRY_SHARD;
    else if (strcmp(path, MP_MANIFEST_NAME) == 0)
        entry->kind = MP_ENTRY_MANIFEST;
    entry->out = entry->kind == MP_ENTRY_SHARD ? name_as(path, decompress) : mp_format("%s", path);
    return entry->out ? 0 : mp_fail_memory(err);
}

typedef struct listing {
    mp_entries *entries;
    bool decompress;
} listing;

/* The sums that are there are of files as they were. */
static int visit(void *user, const char *path, uint64_t bytes, mp_error *err)
{
    const listing *list = user;
    char *copy;

    if (strcmp(path, MP_SUMS_NAME) == 0)
        return 0;
    copy = strdup(path);
    return copy ? add(list->entries, copy, bytes, list->decompress, err) : mp_fail_memory(err);
}

/* By output, so that a shard that is there twice stands beside itself; the manifest last. */
static int entry_order(const void *a, const void *b)
{
    const mp_entry *x = a, *y = b;
    int last = (x->kind == MP_ENTRY_MANIFEST) - (y->kind == MP_ENTRY_MANIFEST);

    return last ? last : strcmp(x->out, y->out);
}

int mp_entries_all(mp_entries *entries, const char *dir, bool decompress, mp_error *err)
{
    *entries = (mp_entries){0};
    int rc = mp_tree_files(dir, visit, &(listing){entries, decompress}, err);
    if (rc != 0)
        return rc;
    if (entries->count > 1)
        qsort(entries->list, entries->count, sizeof *entries->list, entry_order);
    for (size_t i = 0; i < entries->count; i++) {
        const mp_entry *entry = &entries->list[i];

        if (i > 0 && strcmp(entry->out, entry[-1].out) == 0)
            return mp_fail(err, MP_ERR_INPUT, "%s: \"%s\" also exists: remove one of them",
                           entry->path, entry[-1].path);
    }
    return 0;
}

int mp_entries_list(mp_entries *entries, const char *dir, bool decompress, mp_error *err)
{
    int rc = mp_entries_all(entries, dir, decompress, err);

    for (size_t i = 0; rc == 0 && i < entries->count; i++)
        if (entries->list[i].kind == MP_ENTRY_SHARD)
            return 0;
    return rc ? rc : mp_fail(err, MP_ERR_INPUT, "\"%s\" holds no *.safetensors", dir);
}

void mp_entries_release(mp_entries *entries)
{
    for (size_t i = 0; i < entries->count; i++) {
        free(entries->list[i].path);
        free(entries->list[i].out);
    }
    free(entries->list);
    *entries = (mp_entries){0};
}

/* ------------------------------------------------------------------------
 * The manifest
 */

static int rename_file(mp_packed_file *file, uint32_t rank, const char *to, bool decompress,
                       mp_error *err)
{
    char rank_name[MP_RANK_NAME_MAX], *name = name_as(file->name, decompress), *path = NULL;
    struct stat st;
    int rc = 0;

    if (name)
        path = mp_format("%s/%s/%s", to, mp_rank_name(rank, rank_name), name);
    if (!path)
        rc = mp_fail_memory(err);
    else if (stat(path, &st) == 0)
        file->size = (uint64_t)st.st_size;
    else if (errno != ENOENT) /* a rank may be elsewhere; verify says what is missing */
        rc = mp_fail_errno(err, errno, "cannot access \"%s\"", path);
    free(path);
    if (rc != 0) {
        free(name);
        return rc;
    }
    free(file->name);
    file->name = name;
    return 0;
}

int mp_manifest_put_renamed(const char *text, uint64_t length, const char *to, bool decompress,
                            mp_error *err)
{
    mp_manifest m = {0};
    char *again = NULL;
    int rc = mp_manifest_parse(&m, text, length, err);

    if (rc == 0)
        rc = mp_manifest_text(&m, &again, err);
    /* Byte by byte: even another order of members would be lost. */
    if (rc == 0 && strcmp(text, again) != 0)
        rc = mp_fail(
            err, MP_ERR_UNSUPPORTED,
            "%s: has something that this version of moepack does not know, and cannot be changed",
            MP_MANIFEST_NAME);
    free(again);
    again = NULL;
    for (size_t r = 0; rc == 0 && r < m.num_ranks; r++)
        for (size_t f = 0; rc == 0 && f < m.ranks[r].num_files; f++)
            rc = rename_file(&m.ranks[r].files[f], m.ranks[r].rank, to, decompress, err);
    if (rc == 0)
        rc = mp_manifest_text(&m, &again, err);
    if (rc == 0)
        rc = mp_put_text(to, MP_MANIFEST_NAME, again, strlen(again), NULL, err);
    free(again);
    mp_manifest_release(&m);
    return rc;
}

int mp_manifest_rename_files(const char *from, const char *to, bool decompress, mp_error *err)
{
    char *text = NULL;
    uint64_t length;
    int rc = mp_manifest_read(from, &text, &length, err);

    if (rc == 0)
        rc = mp_manifest_put_renamed(text, length, to, decompress, err);
    free(text);
    return rc;
}
