/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as the index of a checkpoint of two shards that hold "a" and "b": refused with
 * a message, or it names exactly these two. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/store.h>

#include "base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[256];

static void require(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void put(const char *name, const void *data, size_t size)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, "scratch file");
}

/* A shard with one tensor of one byte. */
static void put_shard(const char *name, char tensor)
{
    char file[80] = {0};
    int n = snprintf(file + 8, sizeof(file) - 8,
                     "{\"%c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", tensor);
    file[0] = (char)n;
    put(name, file, 8 + (size_t)n + 1);
}

static void remove_dir(void)
{
    mp_remove_tree(dir, NULL);
}

static void make_dir(void)
{
    snprintf(dir, sizeof(dir), "%s/moepack-fuzz-XXXXXX", P_tmpdir);
    require(mkdtemp(dir) != NULL, "scratch directory");
    atexit(remove_dir);
    put_shard("1", 'a');
    put_shard("2", 'b');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mp_error err = {0};
    mp_checkpoint ckpt;
    const mp_context context = {.threads = 1};
    if (dir[0] == '\0')
        make_dir();
    put("model.safetensors.index.json", data, size);
    int rc = mp_checkpoint_open(&ckpt, dir, &context, &err);
    if (rc == 0) {
        /* One of the two alone is a checkpoint too. */
        for (size_t i = 0; i < ckpt.num_tensors; i++)
            require(strcmp(ckpt.shards[ckpt.tensors[i].shard].name,
                           ckpt.tensors[i].name[0] == 'a' ? "1" : "2") == 0,
                    "shard");
        require(ckpt.num_tensors == ckpt.num_shards, "one tensor a shard");
    } else {
        /* A name can be one that the system does not open: too long, or the directory's. */
        require((rc == MP_ERR_INPUT || rc == MP_ERR_IO) && err.message[0] != '\0', "error");
    }
    mp_checkpoint_release(&ckpt);
    return 0;
}
