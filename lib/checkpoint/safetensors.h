/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/safetensors.h - reading the header of one safetensors file. */
#ifndef MP_CHECKPOINT_SAFETENSORS_H
#define MP_CHECKPOINT_SAFETENSORS_H

#include <moepack/store.h>

#include "base/arena.h"

/* What the header of one file says. */
typedef struct mp_header {
    mp_tensor *tensors; /* sorted by name; offset counts from the begin of the file */
    size_t num_tensors;
    size_t room;     /* of tensors */
    char **metadata; /* key, value, key, value ... */
    size_t num_metadata;
    bool has_metadata;
    mp_arena arena; /* names, shapes and metadata */
} mp_header;

/* Reads and checks the header of an open file; sets stored, size, header_bytes and header_xxh3 of
 * shard. Messages do not name the file. Release header in any case. */
int mp_header_read(mp_header *header, mp_shard *shard, struct mp_frame_cache *cache, mp_error *err);
void mp_header_release(mp_header *header);

/* Order of tensors by name, bytewise; for qsort and bsearch. */
int mp_tensor_order(const void *a, const void *b);

#endif
