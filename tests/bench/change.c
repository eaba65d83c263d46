/* SPDX-License-Identifier: Apache-2.0 */
/* change EVERY [-n EXPERTS] FILE...: changes low bits of one BF16 word in EVERY, on average, of
 * safetensors files in place, as a training step does; with -n of experts 0 .. EXPERTS-1 only. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <moepack/store.h>

#include "base/file.h"

/* xorshift64 */
static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void change_words(uint8_t *bytes, uint64_t n, uint64_t every, uint64_t *state)
{
    for (uint64_t word = next(state) % (2 * every); word < n / 2;
         word += 1 + next(state) % (2 * every))
        bytes[2 * word] ^= (uint8_t)(1 + (next(state) >> 40) % 3);
}

/* Whether a tensor is of one of the first experts. */
static int is_of(const char *name, unsigned experts)
{
    const char *at = strstr(name, ".experts.");

    return at && strtoul(at + strlen(".experts."), NULL, 10) < experts;
}

static int change_file(const char *path, uint64_t every, unsigned experts)
{
    static uint64_t state = 88172645463325252u;
    mp_checkpoint ckpt;
    mp_error err;
    int fd = -1;

    if (mp_checkpoint_open(&ckpt, path, NULL, &err) != 0 || mp_open_write(path, &fd, &err) != 0) {
        fprintf(stderr, "change: %s\n", err.message);
        return 1;
    }
    uint8_t *bytes = mmap(NULL, ckpt.shards[0].size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (size_t t = 0; bytes != MAP_FAILED && t < ckpt.num_tensors; t++)
        if (experts == 0 || is_of(ckpt.tensors[t].name, experts))
            change_words(bytes + ckpt.tensors[t].offset, ckpt.tensors[t].bytes, every, &state);
    mp_file_close(fd, path, NULL);
    mp_checkpoint_release(&ckpt);
    return bytes == MAP_FAILED;
}

int main(int argc, char **argv)
{
    uint64_t every = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    int first = 2;
    unsigned experts = 0;

    if (argc > 4 && strcmp(argv[2], "-n") == 0) {
        experts = (unsigned)strtoul(argv[3], NULL, 10);
        first = 4;
    }
    if (every == 0 || first >= argc)
        return 2;
    for (int i = first; i < argc; i++)
        if (change_file(argv[i], every, experts) != 0)
            return 1;
    return 0;
}
