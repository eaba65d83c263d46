/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint that is whole in itself may still lack what it is said to have: an MTP block, or a
 * shard that somebody's index forgot. Files that hold the model a second time are no shards. */
#include "checkpoint/promises.h"

#include "base/error.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Whether a tensor is of an MTP block: by a name, or by the number of its layer. */
static bool is_mtp(const mp_config *config, const char *name)
{
    const char *layers = strstr(name, "layers.");

    if (strncmp(name, "mtp", 3) == 0 || strstr(name, ".mtp"))
        return true;
    return layers && isdigit((unsigned char)layers[7]) &&
           config->num_hidden_layers != MP_CONFIG_ABSENT &&
           strtoull(layers + 7, NULL, 10) >= config->num_hidden_layers;
}

static void find_mtp(mp_catalog *catalog)
{
    const mp_config *config = &catalog->config;

    if (config->num_mtp_layers == MP_CONFIG_ABSENT || config->num_mtp_layers == 0)
        return;
    for (size_t i = 0; i < catalog->checkpoint.num_tensors; i++)
        if (is_mtp(config, catalog->checkpoint.tensors[i].name))
            return;
    mp_problem(
        &catalog->promises,
        "config.json says %llu MTP blocks (num_nextn_predict_layers or the like), there are none",
        (unsigned long long)config->num_mtp_layers);
}

/* Whether a file of the folder looks like one more shard. */
static bool is_stray(const mp_checkpoint *ckpt, const char *name)
{
    const char suffix[] = ".safetensors";
    size_t n = strlen(name);

    if (name[0] == '.' || n < sizeof suffix ||
        strcmp(name + n - (sizeof suffix - 1), suffix) != 0 ||
        strncmp(name, "consolidated", strlen("consolidated")) == 0)
        return false;
    for (size_t i = 0; i < ckpt->num_shards; i++)
        if (strcmp(ckpt->shards[i].name, name) == 0)
            return false;
    return true;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The stray files of a folder in order; *count of them. */
static int list_strays(const mp_checkpoint *ckpt, DIR *stream, char ***names, size_t *count,
                       mp_error *err)
{
    const struct dirent *entry;

    while ((entry = readdir(stream))) {
        char **grown;

        if (!is_stray(ckpt, entry->d_name))
            continue;
        grown = realloc(*names, (*count + 1) * sizeof *grown);
        if (!grown)
            return mp_fail_memory(err);
        *names = grown;
        grown[*count] = strdup(entry->d_name);
        if (!grown[*count])
            return mp_fail_memory(err);
        ++*count;
    }
    return 0;
}

static int find_strays(mp_catalog *catalog, mp_error *err)
{
    const char *dir = catalog->checkpoint.dir;
    DIR *stream = opendir(dir);
    char **names = NULL;
    size_t count = 0;

    if (!stream)
        return mp_fail_errno(err, errno, "cannot open directory \"%s\"", dir);
    int rc = list_strays(&catalog->checkpoint, stream, &names, &count, err);
    closedir(stream);
    if (count > 0)
        qsort(names, count, sizeof *names, compare_names);
    for (size_t i = 0; i < count; i++) {
        if (rc == 0)
            mp_problem(&catalog->promises, "%s: in the folder, but the index does not name it",
                       names[i]);
        free(names[i]);
    }
    free(names);
    return rc;
}

int mp_catalog_find_promises(mp_catalog *catalog, const char *path, mp_error *err)
{
    struct stat st;

    if (catalog->unpacked)
        return 0;
    find_mtp(catalog);
    /* Without an index every file is a shard; a file by itself asks for no other. */
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode) ? find_strays(catalog, err) : 0;
}
