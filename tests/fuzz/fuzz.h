/* SPDX-License-Identifier: Apache-2.0 */
/* What fuzz targets share: conditions that must hold, and a scratch directory. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/base.h>

#include "base/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[256];

static inline void require(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

/* A refusal says why, in one line. */
static inline void require_message(const mp_error *err)
{
    require(err->code < 0, "error without a code");
    require(err->message[0] != '\0' && !strchr(err->message, '\n'), "error without a message");
}

static inline void remove_dir(void)
{
    mp_remove_tree(dir, NULL);
}

/* Makes the scratch directory on the first call; in memory, where that is possible. */
static inline void make_dir(void)
{
    const char *root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : P_tmpdir;

    if (dir[0] != '\0')
        return;
    snprintf(dir, sizeof dir, "%s/moepack-fuzz-XXXXXX", root);
    require(mkdtemp(dir) != NULL, "scratch directory");
    atexit(remove_dir);
}

static inline const char *in_dir(const char *name)
{
    static char path[512];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Writes a file in the scratch directory: data, then zeros up to `whole` bytes. */
static inline void put(const char *name, const void *data, size_t size, uint64_t whole)
{
    FILE *file = fopen(in_dir(name), "wb");

    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, "scratch file");
    require(whole <= size || truncate(in_dir(name), (off_t)whole) == 0, "size of a scratch file");
}

#endif
