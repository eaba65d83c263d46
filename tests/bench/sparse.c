/* SPDX-License-Identifier: Apache-2.0 */
/* sparse DIR: a checkpoint with the shapes and names of DeepSeek V4 Pro's experts, 61 layers
 * of 384, in 64 shards: 140,544 tensors. The data is holes, so it takes headers only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/store.h>

#define LAYERS     61u
#define EXPERTS    384u
#define TENSORS    6u /* of an expert */
#define SHARDS     64u
#define SHARD_MAX  (LAYERS * EXPERTS * TENSORS / SHARDS + TENSORS)
#define NAME_MAX_  64
#define HIDDEN     7168u
#define INTER      3072u
#define INDEX_NAME "model.safetensors.index.json"

static const uint64_t shapes[TENSORS][2] = {
    {INTER, HIDDEN / 2},  {INTER, HIDDEN / 32}, {HIDDEN, INTER / 2},
    {HIDDEN, INTER / 32}, {INTER, HIDDEN / 2},  {INTER, HIDDEN / 32},
};
static const char *const suffixes[TENSORS] = {
    "w1.weight", "w1.scale", "w2.weight", "w2.scale", "w3.weight", "w3.scale",
};

static void fail(const char *what)
{
    perror(what);
    exit(4);
}

static FILE *create(const char *dir, const char *name, char path[512])
{
    FILE *f;

    snprintf(path, 512, "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (!f)
        fail(path);
    return f;
}

/* A shard that is a header and a hole. */
static void put_shard(const char *dir, const char *name, const mp_tensor_spec *specs, size_t count)
{
    uint64_t bytes, offsets[SHARD_MAX + 1];
    char path[512], *header;
    mp_error err;
    FILE *f = create(dir, name, path);

    if (mp_safetensors_header(specs, count, NULL, 0, 8, &header, &bytes, offsets, &err) != 0) {
        fprintf(stderr, "%s: %s\n", name, err.message);
        exit(1);
    }
    if (fwrite(header, 1, bytes, f) != bytes || fclose(f) != 0 ||
        truncate(path, (off_t)offsets[count]) != 0)
        fail(path);
    free(header);
}

int main(int argc, char **argv)
{
    static char names[SHARD_MAX][NAME_MAX_];
    static mp_tensor_spec specs[SHARD_MAX];
    const size_t experts = LAYERS * EXPERTS;
    char path[512], shard[64];
    FILE *index;

    if (argc != 2) {
        fprintf(stderr, "usage: sparse DIR\n");
        return 2;
    }
    index = create(argv[1], INDEX_NAME, path);
    fprintf(index, "{\"metadata\": {}, \"weight_map\": {\n");
    for (size_t s = 0, e = 0; s < SHARDS; s++) {
        size_t count = 0;

        snprintf(shard, sizeof shard, "model-%05zu-of-%05u.safetensors", s + 1, SHARDS);
        for (; e < experts * (s + 1) / SHARDS; e++) {
            for (unsigned t = 0; t < TENSORS; t++, count++) {
                snprintf(names[count], NAME_MAX_, "layers.%zu.ffn.experts.%zu.%s", e / EXPERTS,
                         e % EXPERTS, suffixes[t]);
                specs[count] =
                    (mp_tensor_spec){names[count], t % 2 ? MP_F8_E8M0 : MP_I8, 2, shapes[t]};
                fprintf(index, "%s\"%s\": \"%s\"", e || t ? ",\n" : "", names[count], shard);
            }
        }
        put_shard(argv[1], shard, specs, count);
    }
    fprintf(index, "\n}}\n");
    if (fclose(index) != 0)
        fail(path);
    return 0;
}
