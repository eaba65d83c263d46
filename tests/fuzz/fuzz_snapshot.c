/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as the description of a snapshot: the first says which kind, the others are
 * checksum.json or 0.json. It is refused with a message, or it opens, and what it holds lies in
 * its files. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <moepack/snapshot.h>

#include "base/file.h"

#include "fuzz.h"

static char dirs[2][256];

static void put_in(const char *where, const char *name, const void *data, size_t size)
{
    char path[512];

    snprintf(path, sizeof path, "%s/%s", where, name);
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, "scratch file");
}

static void remove_dirs(void)
{
    mp_remove_tree(dirs[0], NULL);
    mp_remove_tree(dirs[1], NULL);
}

/* Of presharded, one file with one content "00..00"; of a blob, 64 zeros. */
static void make_dirs(void)
{
    static const char header[] = "{\"00000000000000000000000000000000\":{\"dtype\":\"U8\","
                                 "\"shape\":[1],\"data_offsets\":[0,1]}}";
    char file[sizeof header + 8] = {0};
    static const char zeros[64];

    for (unsigned i = 0; i < 2; i++) {
        snprintf(dirs[i], sizeof dirs[i], "%s/moepack-fuzz-XXXXXX", P_tmpdir);
        require(mkdtemp(dirs[i]) != NULL, "scratch directory");
    }
    atexit(remove_dirs);
    file[0] = (char)(sizeof header - 1);
    snprintf(file + 8, sizeof file - 8, "%s", header);
    put_in(dirs[0], "a.safetensor", file, sizeof file);
    put_in(dirs[0], "READY", "{\"world_size\":1}", 16);
    put_in(dirs[1], "0.snapshot", zeros, sizeof zeros);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const mp_context context = {.threads = 1};
    mp_snapshot snapshot;
    mp_error err = {0};

    if (size == 0)
        return 0;
    if (dirs[0][0] == '\0')
        make_dirs();
    bool blob = data[0] == 'b';
    put_in(dirs[blob], blob ? "0.json" : "checksum.json", data + 1, size - 1);
    int rc = mp_snapshot_open(&snapshot, blob ? MP_SNAPSHOT_BIG_TENSOR : MP_SNAPSHOT_PRESHARDED,
                              dirs[blob], NULL, &context, &err);
    require(rc == 0 || err.message[0] != '\0', "an error without a message");
    for (size_t r = 0; rc == 0 && r < snapshot.num_ranks; r++) {
        const mp_checkpoint *view = &snapshot.ranks[r].tensors;

        for (size_t i = 0; i < view->num_tensors; i++) {
            const mp_tensor *tensor = &view->tensors[i];

            require(tensor->shard < view->num_shards, "shard");
            require(tensor->offset <= view->shards[tensor->shard].size &&
                        tensor->bytes <= view->shards[tensor->shard].size - tensor->offset,
                    "extent");
        }
    }
    mp_snapshot_release(&snapshot);
    return 0;
}
