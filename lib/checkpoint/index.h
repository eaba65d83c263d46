/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/index.h - which shards a checkpoint has, and which tensors they should hold. */
#ifndef MP_CHECKPOINT_INDEX_H
#define MP_CHECKPOINT_INDEX_H

#include <jansson.h>
#include <moepack/store.h>

#include "base/arena.h"

/* Names of files, sorted, each once. */
typedef struct mp_names {
    char **names;
    size_t count;
    mp_arena arena; /* the strings */
} mp_names;

/* The shards that a directory's index names or, without one, that lie in it. */
typedef struct mp_index {
    mp_names shards;
    char *name;         /* of the index file; null without one */
    json_t *json;       /* owns weight_map */
    json_t *weight_map; /* tensor name to shard name; null without an index */
} mp_index;

/* Finds the shards of a directory, or takes file, where it is not null, for the only one.
 * Release index in any case. */
int mp_index_open(mp_index *index, const char *dir, const char *file, mp_error *err);
void mp_index_release(mp_index *index);

/* Checks that the index and the shards of ckpt hold the same tensors; without an index
 * there is nothing that could differ. */
int mp_index_check(const mp_index *index, const mp_checkpoint *ckpt, mp_error *err);

#endif
