/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the central directory of a zip archive, including zip64 fields.
 *
 *     entry ... entry      local header, data, maybe a descriptor
 *     central directory    a record for each entry: names, sizes, offsets
 *     zip64 end, locator   if 16 or 32 bits are not enough
 *     end                  counts and place of the directory, and a comment
 *
 * It is read from the back: the end is found by its signature, the directory from there, and
 * entries from the directory. Local headers are only used to learn their own length. Every offset
 * and length is checked before it is followed, by subtracting from what is left and never by adding
 * to what is claimed. Entries are sorted by name, to find them by bisection and to notice
 * duplicates, which other readers would resolve differently. One thread; the bytes belong to the
 * caller. */
#include "place/zip.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    COMMENT_MAX = 65535
};

/* A little-endian number at an offset that the caller has checked. */
static uint64_t number(const unsigned char *at, unsigned bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0)
        value = value << 8 | at[bytes];
    return value;
}

/* Where the central directory is. */
typedef struct directory {
    uint64_t offset, bytes, entries;
} directory;

static const unsigned char *find_end(const unsigned char *data, uint64_t length)
{
    /* The comment may contain anything, even this signature. The last one in the file counts. */
    uint64_t back = END_BYTES;
    for (; back <= length && back <= END_BYTES + COMMENT_MAX; back++)
        if (memcmp(data + length - back, "PK\5\6", 4) == 0)
            return data + length - back;
    return NULL;
}

static int find_directory(const mp_zip *zip, directory *d, mp_error *err)
{
    const unsigned char *end = find_end(zip->data, zip->length);
    if (!end)
        return mp_fail(err, MP_ERR_INPUT,
                       "zip: there is no end of the central directory; the file was truncated");
    d->entries = number(end + 10, 2);
    d->bytes = number(end + 12, 4);
    d->offset = number(end + 16, 4);
    if (d->entries != UINT16_MAX && d->bytes != UINT32_MAX && d->offset != UINT32_MAX)
        return 0;
    uint64_t before = (uint64_t)(end - zip->data);
    const unsigned char *locator = end - LOCATOR_BYTES;
    if (before < LOCATOR_BYTES || memcmp(locator, "PK\6\7", 4) != 0)
        return 0; /* exactly these numbers, without zip64 */
    uint64_t at = number(locator + 8, 8);
    if (zip->length < END64_BYTES || at > zip->length - END64_BYTES ||
        memcmp(zip->data + at, "PK\6\6", 4) != 0)
        return mp_fail(err, MP_ERR_INPUT, "zip: there is no zip64 record at offset %llu",
                       (unsigned long long)at);
    d->entries = number(zip->data + at + 32, 8);
    d->bytes = number(zip->data + at + 40, 8);
    d->offset = number(zip->data + at + 48, 8);
    return 0;
}

/* Takes sizes and offset from the zip64 extra field, which has only those that are needed. */
static bool read_extra(const unsigned char *extra, uint64_t length, uint64_t *size, uint64_t *bytes,
                       uint64_t *offset)
{
    uint64_t *const wide[] = {size, bytes, offset};
    if (*size != UINT32_MAX && *bytes != UINT32_MAX && *offset != UINT32_MAX)
        return true;
    while (length >= 4) {
        uint64_t field = number(extra + 2, 2), used = 0;
        if (field > length - 4)
            return false;
        if (number(extra, 2) == 1) {
            for (unsigned i = 0; i < 3; i++) {
                if (*wide[i] != UINT32_MAX)
                    continue;
                /* Only fields that are all ones in the 32-bit record appear, in this order. */
                if (used + 8 > field)
                    return false;
                *wide[i] = number(extra + 4 + used, 8);
                used += 8;
            }
            return true;
        }
        extra += 4 + field;
        length -= 4 + field;
    }
    return false;
}

/* Reads one entry at *at, which moves on to the next. */
static int read_entry(const mp_zip *zip, uint64_t *at, uint64_t end, mp_zip_entry *entry,
                      mp_error *err)
{
    const unsigned char *header = zip->data + *at;
    if (end - *at < CENTRAL_BYTES || memcmp(header, "PK\1\2", 4) != 0)
        return mp_fail(err, MP_ERR_INPUT, "zip: no entry of the central directory at offset %llu",
                       (unsigned long long)*at);
    uint64_t name = number(header + 28, 2), extra = number(header + 30, 2);
    uint64_t rest = name + extra + number(header + 32, 2), size = number(header + 24, 4);
    *entry = (mp_zip_entry){.name = (const char *)header + CENTRAL_BYTES,
                            .name_length = (uint32_t)name,
                            .flags = (uint16_t)number(header + 8, 2),
                            .method = (uint16_t)number(header + 10, 2),
                            .offset = number(header + 42, 4),
                            .bytes = number(header + 20, 4)};
    if (rest > end - *at - CENTRAL_BYTES ||
        !read_extra(header + CENTRAL_BYTES + name, extra, &size, &entry->bytes, &entry->offset))
        return mp_fail(err, MP_ERR_INPUT, "zip: a broken entry at offset %llu",
                       (unsigned long long)*at);
    *at += CENTRAL_BYTES + rest;
    return 0;
}

static int compare_names(const char *a, size_t a_length, const char *b, size_t b_length)
{
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order != 0 ? order : a_length < b_length ? -1 : a_length > b_length;
}

static int compare_entries(const void *a, const void *b)
{
    const mp_zip_entry *x = a, *y = b;
    return compare_names(x->name, x->name_length, y->name, y->name_length);
}

int mp_zip_open(mp_zip *zip, const void *data, uint64_t length, mp_error *err)
{
    directory d = {0};
    *zip = (mp_zip){.data = data, .length = length};
    int rc = find_directory(zip, &d, err);
    if (rc != 0)
        return rc;
    /* An entry takes at least CENTRAL_BYTES, so the file bounds the memory for them. */
    if (d.offset > length || d.bytes > length - d.offset || d.entries > d.bytes / CENTRAL_BYTES)
        return mp_fail(err, MP_ERR_INPUT,
                       "zip: a central directory of %llu bytes at offset %llu in a file of %llu",
                       (unsigned long long)d.bytes, (unsigned long long)d.offset,
                       (unsigned long long)length);
    zip->entries = mp_alloc(d.entries, sizeof(*zip->entries));
    if (!zip->entries)
        return mp_fail_memory(err);
    uint64_t at = d.offset;
    for (; rc == 0 && zip->count < d.entries; zip->count++)
        rc = read_entry(zip, &at, d.offset + d.bytes, &zip->entries[zip->count], err);
    if (rc == 0)
        qsort(zip->entries, zip->count, sizeof(*zip->entries), compare_entries);
    for (uint64_t i = 1; rc == 0 && i < zip->count; i++)
        if (compare_entries(&zip->entries[i - 1], &zip->entries[i]) == 0)
            rc = mp_fail(err, MP_ERR_INPUT, "zip: two entries have the same name");
    if (rc != 0)
        mp_zip_release(zip);
    return rc;
}

void mp_zip_release(mp_zip *zip)
{
    free(zip->entries);
    *zip = (mp_zip){0};
}

const mp_zip_entry *mp_zip_find(const mp_zip *zip, const char *name, size_t name_length)
{
    uint64_t low = 0, high = zip->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const mp_zip_entry *entry = &zip->entries[middle];
        int order = compare_names(name, name_length, entry->name, entry->name_length);
        if (order == 0)
            return entry;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* The local header must be there. Its name and extra field can be longer than the directory's. */
int mp_zip_data(const mp_zip *zip, const mp_zip_entry *entry, const unsigned char **data,
                mp_error *err)
{
    int name = (int)(entry->name_length < 80 ? entry->name_length : 80);
    if (entry->method != 0 || entry->flags & 1)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "zip: \"%.*s\" is %s; torch.save stores uncompressed", name, entry->name,
                       entry->method != 0 ? "compressed" : "encrypted");
    if (zip->length < LOCAL_BYTES || entry->offset > zip->length - LOCAL_BYTES ||
        memcmp(zip->data + entry->offset, "PK\3\4", 4) != 0)
        return mp_fail(err, MP_ERR_INPUT, "zip: \"%.*s\" is not at offset %llu", name, entry->name,
                       (unsigned long long)entry->offset);
    const unsigned char *local = zip->data + entry->offset;
    uint64_t head = LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2);
    uint64_t room = zip->length - entry->offset;
    if (head > room || entry->bytes > room - head)
        return mp_fail(err, MP_ERR_INPUT, "zip: \"%.*s\" goes beyond the end of the file", name,
                       entry->name);
    *data = local + head;
    return 0;
}
