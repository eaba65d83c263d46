/* SPDX-License-Identifier: Apache-2.0 */
/* A scratch directory of safetensors files, and a checkpoint that is opened from it; for
 * the tests of store. */
#ifndef MP_TEST_STORE_FILES_H
#define MP_TEST_STORE_FILES_H

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/store.h>

#include "base/file.h"

/* The JSON of one tensor. */
#define ENTRY(dtype, shape, offsets) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static char dir[256];
static mp_error err;
static mp_checkpoint ckpt;

/* In memory where there is such a file system: tests sync a lot. */
static inline void make_scratch(void)
{
    const char *root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : P_tmpdir;
    snprintf(dir, sizeof(dir), "%s/moepack-store-XXXXXX", root);
    cr_assert_not_null(mkdtemp(dir));
    err = (mp_error){0};
    ckpt = (mp_checkpoint){0};
}

static inline void remove_scratch(void)
{
    mp_checkpoint_release(&ckpt);
    cr_assert_eq(mp_remove_tree(dir, &err), 0, "%s", err.message);
}

static inline const char *in_dir(const char *name)
{
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static inline void put_file(const char *name, const void *data, size_t n)
{
    cr_assert_eq(mp_write_file(in_dir(name), data, n, &err), 0, "%s", err.message);
}

static inline void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

/* A safetensors file of a header of n bytes and data bytes 0, 1, 2 ... */
static inline void put_safetensors(const char *name, const char *header, size_t n,
                                   size_t data_bytes)
{
    unsigned char *file = malloc(8 + n + data_bytes);
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)((uint64_t)n >> (8 * i));
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++)
        file[8 + n + i] = (unsigned char)i;
    put_file(name, file, 8 + n + data_bytes);
    free(file);
}

static inline int open_dir(void)
{
    mp_checkpoint_release(&ckpt);
    err = (mp_error){0};
    return mp_checkpoint_open(&ckpt, dir, NULL, &err);
}

static inline void expect_refused(const char *message)
{
    cr_assert_eq(open_dir(), MP_ERR_INPUT, "%s", err.message);
    cr_assert_eq(err.code, MP_ERR_INPUT);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(ckpt.tensors);
}

static inline void expect_opens(void)
{
    cr_assert_eq(open_dir(), 0, "%s", err.message);
}

#endif
