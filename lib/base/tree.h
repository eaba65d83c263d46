/* SPDX-License-Identifier: Apache-2.0 */
/* base/tree.h - the files below a directory. */
#ifndef MP_BASE_TREE_H
#define MP_BASE_TREE_H

#include <moepack/base.h>

/* A file of `bytes` bytes. path: below the directory, "rank-000/model.safetensors". */
typedef int mp_tree_visit(void *user, const char *path, uint64_t bytes, mp_error *err);

/* Visits every file, in the order of the system; links are followed. MP_ERR_INPUT for what is
 * neither file nor directory, and for directories that are too deep; MP_ERR_IO; or as visit
 * says. */
int mp_tree_files(const char *dir, mp_tree_visit *visit, void *user, mp_error *err);

#endif
