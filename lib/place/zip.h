/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place/zip.h - the entries of a zip archive in memory, by its central directory.
 *
 * torch.save writes local headers without sizes, and data descriptors behind the data, so only the
 * central directory can be believed. Entries are stored, never compressed.
 *
 * Format: APPNOTE.TXT of PKWARE, 4.3 and 4.5.
 */
#ifndef MP_PLACE_ZIP_H
#define MP_PLACE_ZIP_H

#include <moepack/base.h>

typedef struct mp_zip_entry {
    const char *name; /* not terminated */
    uint32_t name_length;
    uint16_t flags, method;
    uint64_t offset; /* of the local header */
    uint64_t bytes;  /* stored */
} mp_zip_entry;

typedef struct mp_zip {
    const unsigned char *data;
    uint64_t length;
    mp_zip_entry *entries; /* sorted by name; owned */
    uint64_t count;
} mp_zip;

/* Reads the central directory of an archive, which has to outlive the result. MP_ERR_INPUT. */
int mp_zip_open(mp_zip *zip, const void *data, uint64_t length, mp_error *err);
void mp_zip_release(mp_zip *zip);

/* The entry of that name, or null. */
const mp_zip_entry *mp_zip_find(const mp_zip *zip, const char *name, size_t name_length);

/* The bytes of an entry. MP_ERR_UNSUPPORTED where they are compressed or encrypted, MP_ERR_INPUT
 * where they are not inside the archive. */
int mp_zip_data(const mp_zip *zip, const mp_zip_entry *entry, const unsigned char **data,
                mp_error *err);

#endif
