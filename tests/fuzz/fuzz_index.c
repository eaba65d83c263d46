/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as the index of a checkpoint of two shards that hold "a" and "b": refused with
 * a message, or it names exactly these two. */
#include <moepack/store.h>

#include "fuzz.h"

/* A shard with one tensor of one byte. */
static void put_shard(const char *name, char tensor)
{
    char file[80] = {0};
    int n = snprintf(file + 8, sizeof(file) - 8,
                     "{\"%c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", tensor);
    file[0] = (char)n;
    put(name, file, 8 + (size_t)n + 1, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mp_error err = {0};
    mp_checkpoint ckpt;
    const mp_context context = {.threads = 1};
    if (dir[0] == '\0') {
        make_dir();
        put_shard("1", 'a');
        put_shard("2", 'b');
    }
    put("model.safetensors.index.json", data, size, 0);
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
