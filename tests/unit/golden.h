/* SPDX-License-Identifier: Apache-2.0 */
/* Golden files: small safetensors files, read whole. Whatever is wrong with one
 * fails the test that asked for it. */
#ifndef TESTS_UNIT_GOLDEN_H
#define TESTS_UNIT_GOLDEN_H

#include <stddef.h>

typedef struct golden_file golden_file;

/* Path from the root of the repository, where tests run. */
golden_file *golden_open(const char *path);
void golden_close(golden_file *file);

/* The data of a tensor, aligned as malloc aligns, alive until golden_close.
 * bytes: set to its size, may be null. */
const void *golden_tensor(const golden_file *file, const char *name, size_t *bytes);

/* Size of one dimension of a tensor. */
size_t golden_dim(const golden_file *file, const char *name, size_t dimension);

#endif
