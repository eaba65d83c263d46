/* SPDX-License-Identifier: Apache-2.0 */
/* write/compress.h - the files of a directory that is compressed or decompressed. */
#ifndef MP_WRITE_COMPRESS_H
#define MP_WRITE_COMPRESS_H

#include <moepack/compress.h>

typedef enum mp_entry_kind {
    MP_ENTRY_SHARD,
    MP_ENTRY_MANIFEST, /* of the pack that the directory is */
    MP_ENTRY_OTHER
} mp_entry_kind;

/* A file below a directory. */
typedef struct mp_entry {
    char *path; /* "rank-000/model-00001-of-00002.safetensors" */
    char *out;  /* the same in the output: with ".zst" or without */
    uint64_t bytes;
    mp_entry_kind kind;
} mp_entry;

typedef struct mp_entries {
    mp_entry *list; /* by path; the manifest last */
    size_t count;
} mp_entries;

/* Lists what is below a directory; links are followed. MP_ERR_INPUT for what is neither file nor
 * directory, and a shard that is there twice, plain and compressed; MP_ERR_IO. Release entries in
 * any case. */
int mp_entries_all(mp_entries *entries, const char *dir, bool decompress, mp_error *err);
/* The same of a directory that has shards; MP_ERR_INPUT where there is none. */
int mp_entries_list(mp_entries *entries, const char *dir, bool decompress, mp_error *err);
void mp_entries_release(mp_entries *entries);

/* Writes the manifest of the pack `from` to the pack `to`, whose shards are there: their names,
 * and the sizes of the files. MP_ERR_UNSUPPORTED for a manifest that this version cannot write
 * again as it is. */
int mp_manifest_rename_files(const char *from, const char *to, bool decompress, mp_error *err);
/* The same of a manifest's text. */
int mp_manifest_put_renamed(const char *text, uint64_t length, const char *to, bool decompress,
                            mp_error *err);

#endif
