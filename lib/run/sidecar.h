/* SPDX-License-Identifier: Apache-2.0 */
/* run/sidecar.h - the small files that lie beside the tensors. */
#ifndef MP_RUN_SIDECAR_H
#define MP_RUN_SIDECAR_H

#include <moepack/store.h>

#include "run/work.h"

void mp_hex_digest_of(const void *data, size_t n, mp_hex_digest hex);

/* Writes a file DIR/NAME, synced. hex: set to its digest; may be null. */
int mp_put_text(const char *dir, const char *name, const char *text, size_t length,
                mp_hex_digest hex, mp_error *err);

/* Copies the file NAME of one directory, at most 16 MiB of it, to another. */
int mp_put_copy(const char *from, const char *dir, const char *name, mp_hex_digest hex,
                mp_error *err);

/* Writes DIR/NAME as the index of files first .. first+count-1 of a work. */
int mp_put_index(const mp_work *work, size_t first, size_t count, const char *dir, const char *name,
                 mp_hex_digest hex, mp_error *err);

/* Digest of a shard's header, in hex. */
void mp_shard_hex(const mp_shard *shard, mp_hex_digest hex);

#endif
