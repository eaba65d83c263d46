/* SPDX-License-Identifier: Apache-2.0 */
/* The shards of a checkpoint's directory: by its index, or else by what is there.
 *
 *     {"metadata": {"total_size": ...},
 *      "weight_map": {"layers.0.ffn.experts.0.w1.weight": "model-00001-of-00046.safetensors", ...}}
 *
 * If there is an index, its shards are the checkpoint and other files do not count: Mistral-Small-4
 * has the whole model a second time as consolidated-*. Without one, every *.safetensors counts.
 * File names are never interpreted, since they are numbered in all sorts of ways. Shards have their
 * plain name even if compressed, as an index names them; which file exists is found out on opening
 * (shard.c).
 *
 * Index and headers are compared both ways, since a tensor in only one of them means a broken
 * download. Shard names are plain file names and not paths, as an index may come from anyone. Lists
 * are sorted, so results do not depend on readdir. One thread. */
#include "checkpoint/index.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/foreign.h"
#include "base/json.h"
#include "checkpoint/shard.h"

#define INDEX_NAME   "model.safetensors.index.json"
#define INDEX_SUFFIX ".safetensors.index.json"
#define SHARD_SUFFIX ".safetensors"

/* An index of a million tensors takes about a fifth of this. */
#define INDEX_LIMIT ((uint64_t)1 << 30)

/* ------------------------------------------------------------------------
 * Names of files
 */

static void names_release(mp_names *names)
{
    free(names->names);
    mp_arena_release(&names->arena);
    *names = (mp_names){0};
}

/* Adds a name, without ".zst": a shard has the same one, compressed or not. */
static int names_add(mp_names *names, const char *name, mp_error *err)
{
    size_t n = names->count;
    if ((n & (n - 1)) == 0) { /* full: there is room for a power of two */
        char **more = realloc(names->names, (n > 0 ? 2 * n : 1) * sizeof(*more));
        if (!more)
            return mp_fail_memory(err);
        names->names = more;
    }
    names->names[n] = mp_arena_string(&names->arena, name, mp_shard_name_length(name));
    if (!names->names[n])
        return mp_fail_memory(err);
    names->count++;
    return 0;
}

static int name_order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorts the names and keeps each once. */
static void names_sort(mp_names *names)
{
    size_t kept = 0;
    if (names->count > 1)
        qsort(names->names, names->count, sizeof(*names->names), name_order);
    for (size_t i = 0; i < names->count; i++)
        if (kept == 0 || strcmp(names->names[i], names->names[kept - 1]) != 0)
            names->names[kept++] = names->names[i];
    names->count = kept;
}

/* Whether a file that is not hidden has that suffix. */
static bool has_suffix(const char *name, const char *suffix)
{
    size_t n = strlen(name);
    size_t m = strlen(suffix);
    return name[0] != '.' && n > m && strcmp(name + n - m, suffix) == 0;
}

static int names_list(mp_names *names, const char *dir, const char *suffix, mp_error *err)
{
    DIR *stream = opendir(dir);
    int rc = 0;
    if (!stream)
        return mp_fail_errno(err, errno, "cannot open directory \"%s\"", dir);
    while (rc == 0) {
        errno = 0;
        const struct dirent *entry = readdir(stream);
        if (!entry) {
            if (errno != 0)
                rc = mp_fail_errno(err, errno, "cannot read directory \"%s\"", dir);
            break;
        }
        if (has_suffix(entry->d_name, suffix))
            rc = names_add(names, entry->d_name, err);
    }
    closedir(stream);
    names_sort(names);
    return rc;
}

/* ------------------------------------------------------------------------
 * The index file
 */

/* Sets the name of the directory's index; null if there is none. */
static int find_index(const char *dir, char **name, mp_error *err)
{
    mp_names found = {0};
    int rc = names_list(&found, dir, INDEX_SUFFIX, err);
    if (rc != 0)
        goto out;
    /* The index of a variant, "model.fp8.safetensors.index.json", is used if it is the only one,
     * but not next to the usual one. */
    const char *choice = found.count > 0 ? found.names[0] : NULL;
    for (size_t i = 0; i < found.count; i++)
        if (strcmp(found.names[i], INDEX_NAME) == 0)
            choice = INDEX_NAME;
    if (found.count > 1 && strcmp(choice, INDEX_NAME) != 0) {
        rc =
            mp_fail(err, MP_ERR_INPUT,
                    "\"%s\" has %zu indexes, \"%s\", \"%s\"%s, and none is \"" INDEX_NAME "\"", dir,
                    found.count, found.names[0], found.names[1], found.count > 2 ? ", ..." : "");
        goto out;
    }
    if (choice && !(*name = mp_format("%s", choice)))
        rc = mp_fail_memory(err);
out:
    names_release(&found);
    return rc;
}

static int read_json(mp_index *index, const char *dir, mp_error *err)
{
    char *text;
    uint64_t length;
    char *path = mp_path_join(dir, index->name);
    if (!path)
        return mp_fail_memory(err);
    int rc = mp_read_file(path, INDEX_LIMIT, &text, &length, err);
    free(path);
    if (rc != 0)
        return rc;
    const char *foreign = mp_foreign_content(text, length);
    if (foreign)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %s", index->name, foreign);
    else
        rc = mp_json_parse(text, length, index->name, &index->json, err);
    free(text);
    return rc;
}

/* The member weight_map or, where that is missing, an index that is a map all over. */
static int find_weight_map(mp_index *index, mp_error *err)
{
    if (!json_is_object(index->json))
        return mp_fail(err, MP_ERR_INPUT, "%s: expected an object", index->name);
    index->weight_map = json_object_get(index->json, "weight_map");
    bool bare = !index->weight_map;
    if (bare)
        index->weight_map = index->json;
    if (!json_is_object(index->weight_map))
        return mp_fail(err, MP_ERR_INPUT, "%s: \"weight_map\" is not an object", index->name);
    if (json_object_size(index->weight_map) == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: names no tensors", index->name);

    const char *tensor;
    const json_t *shard;
    json_object_foreach(index->weight_map, tensor, shard)
    {
        if (json_is_string(shard))
            continue;
        if (bare)
            return mp_fail(err, MP_ERR_INPUT, "%s: \"weight_map\" is missing", index->name);
        return mp_fail(err, MP_ERR_INPUT, "%s: file of tensor \"%s\" is not a string", index->name,
                       tensor);
    }
    return 0;
}

/* A name that cannot lead out of the directory. */
static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

/* Most tensors lie where the one before them does, so only changes are kept. */
static int collect_shards(mp_index *index, mp_error *err)
{
    const char *tensor, *last = "";
    const json_t *value;
    json_object_foreach(index->weight_map, tensor, value)
    {
        const char *shard = json_string_value(value);
        if (!is_plain_name(shard))
            return mp_fail(err, MP_ERR_INPUT,
                           "%s: tensor \"%s\": \"%s\" is not the name of a file in the directory",
                           index->name, tensor, shard);
        if (strcmp(shard, last) == 0)
            continue;
        int rc = names_add(&index->shards, shard, err);
        if (rc != 0)
            return rc;
        last = shard;
    }
    names_sort(&index->shards);
    return 0;
}

/* A download of the hub lies in a folder below, and a model may be there in another format. */
static int fail_without_shards(const char *dir, mp_error *err)
{
    char *snapshots = mp_path_join(dir, "snapshots");
    mp_names gguf = {0};

    if (!snapshots)
        return mp_fail_memory(err);
    bool cache = mp_path_exists(snapshots);
    free(snapshots);
    if (cache)
        return mp_fail(err, MP_ERR_INPUT,
                       "\"%s\" is a cache folder of the hub: give snapshots/REVISION inside it",
                       dir);
    int rc = names_list(&gguf, dir, ".gguf", err);
    if (rc == 0 && gguf.count > 0)
        rc = mp_fail(err, MP_ERR_UNSUPPORTED, "\"%s\" holds GGUF files: they are not supported",
                     dir);
    else if (rc == 0)
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" holds no *.safetensors", dir);
    names_release(&gguf);
    return rc;
}

int mp_index_open(mp_index *index, const char *dir, const char *file, mp_error *err)
{
    *index = (mp_index){0};
    if (file)
        return names_add(&index->shards, file, err);
    int rc = find_index(dir, &index->name, err);
    if (rc != 0)
        return rc;
    if (!index->name) {
        rc = names_list(&index->shards, dir, SHARD_SUFFIX, err);
        if (rc == 0)
            rc = names_list(&index->shards, dir, SHARD_SUFFIX MP_ZSTD_SUFFIX, err);
        if (rc == 0 && index->shards.count == 0)
            rc = fail_without_shards(dir, err);
        return rc;
    }
    rc = read_json(index, dir, err);
    if (rc == 0)
        rc = find_weight_map(index, err);
    if (rc == 0)
        rc = collect_shards(index, err);
    return rc;
}

void mp_index_release(mp_index *index)
{
    names_release(&index->shards);
    free(index->name);
    json_decref(index->json);
    *index = (mp_index){0};
}

/* ------------------------------------------------------------------------
 * Index against shards
 */

/* An indexed tensor lies in its shard. */
static int check_entry(const mp_index *index, const mp_checkpoint *ckpt, const char *name,
                       const char *shard, mp_error *err)
{
    const mp_tensor *tensor = mp_checkpoint_find(ckpt, name);
    if (!tensor)
        return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\" is missing, \"%s\" says it is here",
                       shard, name, index->name);
    const char *actual = ckpt->shards[tensor->shard].name;
    if (!mp_shard_same_name(actual, shard))
        return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\" is in \"%s\", \"%s\" says it is here",
                       shard, name, actual, index->name);
    return 0;
}

int mp_index_check(const mp_index *index, const mp_checkpoint *ckpt, mp_error *err)
{
    const char *name;
    json_t *shard;
    if (!index->weight_map)
        return 0;
    json_object_foreach(index->weight_map, name, shard)
    {
        int rc = check_entry(index, ckpt, name, json_string_value(shard), err);
        if (rc != 0)
            return rc;
    }
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *tensor = &ckpt->tensors[i];
        if (!json_object_get(index->weight_map, tensor->name))
            return mp_fail(err, MP_ERR_INPUT, "%s: tensor \"%s\" is not in \"%s\"",
                           ckpt->shards[tensor->shard].name, tensor->name, index->name);
    }
    return 0;
}
