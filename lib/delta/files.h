/* SPDX-License-Identifier: Apache-2.0 */
/* delta/files.h - files of versions that are no shards: config.json, tokenizers. A delta carries
 * those that are not as they were. */
#ifndef MP_DELTA_FILES_H
#define MP_DELTA_FILES_H

#include "delta/version.h"
#include "write/compress.h"

typedef struct mp_carried_file {
    const char *dir;  /* of the version */
    const char *path; /* below it */
} mp_carried_file;

/* A zeroed value is empty and ready. */
typedef struct mp_carried {
    mp_carried_file *list;
    size_t count;
    mp_entries *entries; /* private: own the paths */
    size_t num_entries;
} mp_carried;

/* Adds the files of a version, but for manifests. indexes: those of shards too. */
int mp_carried_add(mp_carried *carried, const mp_delta_version *version, bool indexes,
                   mp_error *err);

/* Takes out those that lie below another directory with the same bytes. */
int mp_carried_drop_same(mp_carried *carried, const char *dir, mp_error *err);

/* Copies them below a directory, in order: the last of the same path stays. */
int mp_carried_copy(const mp_carried *carried, const char *to, mp_error *err);

void mp_carried_release(mp_carried *carried);

#endif
