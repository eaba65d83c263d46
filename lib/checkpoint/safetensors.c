/* SPDX-License-Identifier: Apache-2.0 */
/* The safetensors header: what it may say about tensors, and that they tile the file's data.
 *
 * Later code reads tensors by offset and size without checking again, so everything that can be
 * wrong is refused here: unknown types, shapes whose product overflows or is not what the offsets
 * span, tensors that leave the file, overlap or have gaps between them, and duplicate names. Gaps
 * are refused because bytes that belong to no tensor could hide anything; other readers refuse them
 * too. A header is at most 100 MB and no longer than the file, which is checked before memory is
 * allocated.
 *
 * Members are parsed one at a time (members.h). Names and shapes go into an arena, so a hundred
 * thousand tensors need only a few blocks of memory. Each header is read by one thread into a value
 * of its own, and different shards by different threads. Format: huggingface/safetensors,
 * README.md; the limit is that of its reference code. */
#include "checkpoint/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/foreign.h"
#include "base/words.h"
#include "base/zstd_file.h"
#include "checkpoint/members.h"
#include "checkpoint/shard.h"
#include "checkpoint/tensor.h"

#define LENGTH_BYTES 8

#define METADATA "__metadata__"

int mp_tensor_order(const void *a, const void *b)
{
    return strcmp(((const mp_tensor *)a)->name, ((const mp_tensor *)b)->name);
}

void mp_header_release(mp_header *header)
{
    free(header->tensors);
    mp_arena_release(&header->arena);
    *header = (mp_header){0};
}

/* ------------------------------------------------------------------------
 * One tensor
 */

static int get_dtype(const json_t *entry, mp_tensor *tensor, mp_error *err)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    if (!name)
        return mp_fail(err, MP_ERR_INPUT, "\"dtype\" is not a string");
    if (!mp_dtype_parse(name, &tensor->dtype))
        return mp_fail(err, MP_ERR_INPUT, "dtype \"%s\" is unknown", name);
    return 0;
}

/* An integer of 0 or more; not 4.0, not "4". */
static bool get_count(const json_t *value, uint64_t *count)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *count = (uint64_t)json_integer_value(value);
    return true;
}

static int get_shape(const json_t *entry, mp_tensor *tensor, mp_arena *arena, mp_error *err)
{
    const json_t *array = json_object_get(entry, "shape");
    if (!json_is_array(array))
        return mp_fail(err, MP_ERR_INPUT, "\"shape\" is not an array");
    size_t rank = json_array_size(array); /* below the header's limit of 10^8 */
    uint64_t *shape = mp_arena_alloc(arena, rank * sizeof(*shape));
    if (!shape)
        return mp_fail_memory(err);
    for (size_t i = 0; i < rank; i++)
        if (!get_count(json_array_get(array, i), &shape[i]))
            return mp_fail(err, MP_ERR_INPUT, "shape[%zu] is not an integer of 0 or more", i);
    tensor->shape = shape;
    tensor->rank = (uint32_t)rank;
    return 0;
}

/* Sets offset within the data, not yet the file. */
static int get_extent(const json_t *entry, mp_tensor *tensor, uint64_t data_bytes, mp_error *err)
{
    const json_t *array = json_object_get(entry, "data_offsets");
    uint64_t begin, end, need;
    if (!json_is_array(array) || json_array_size(array) != 2 ||
        !get_count(json_array_get(array, 0), &begin) || !get_count(json_array_get(array, 1), &end))
        return mp_fail(err, MP_ERR_INPUT, "\"data_offsets\" is not two integers of 0 or more");
    if (begin > end)
        return mp_fail(err, MP_ERR_INPUT, "data_offsets [%llu, %llu] run backwards",
                       (unsigned long long)begin, (unsigned long long)end);

    const mp_tensor_spec spec = {tensor->name, tensor->dtype, tensor->rank, tensor->shape};
    int rc = mp_tensor_spec_bytes(&spec, &need, err);
    if (rc != 0)
        return rc;
    char shape[MP_SHAPE_TEXT];
    if (end - begin != need)
        return mp_fail(err, MP_ERR_INPUT, "%s %s takes %llu bytes, data_offsets span %llu",
                       mp_dtype_name(tensor->dtype),
                       mp_shape_text(tensor->shape, tensor->rank, shape), (unsigned long long)need,
                       (unsigned long long)(end - begin));
    if (end > data_bytes)
        return mp_fail(err, MP_ERR_INPUT, "ends at data byte %llu, the file holds %llu",
                       (unsigned long long)end, (unsigned long long)data_bytes);
    tensor->offset = begin;
    tensor->bytes = need;
    return 0;
}

static int get_tensor(const json_t *entry, mp_tensor *tensor, mp_arena *arena, uint64_t data_bytes,
                      mp_error *err)
{
    if (!json_is_object(entry))
        return mp_fail(err, MP_ERR_INPUT, "entry is not an object");
    int rc = get_dtype(entry, tensor, err);
    if (rc == 0)
        rc = get_shape(entry, tensor, arena, err);
    if (rc == 0)
        rc = get_extent(entry, tensor, data_bytes, err);
    return rc;
}

/* By doubling: Kimi K3 has half a million tensors. */
static int make_room(mp_header *header, mp_error *err)
{
    if (header->num_tensors < header->room)
        return 0;
    size_t room = header->room ? header->room * 2 : 64;
    mp_tensor *tensors = realloc(header->tensors, room * sizeof(*tensors));
    if (!tensors)
        return mp_fail_memory(err);
    header->tensors = tensors;
    header->room = room;
    return 0;
}

/* Copies what is kept into the arena; the tree of this one entry is dropped again. */
static int add_tensor(mp_header *header, const mp_members *members, const char *name, size_t length,
                      mp_span value, uint64_t data_bytes, mp_error *err)
{
    json_t *entry = NULL;
    mp_tensor tensor = {.name = mp_arena_string(&header->arena, name, length)};
    if (!tensor.name)
        return mp_fail_memory(err);
    int rc = make_room(header, err);
    if (rc != 0)
        return rc;
    /* Other readers may use the other value of a duplicate key. */
    rc = mp_members_parse(members, value, JSON_REJECT_DUPLICATES, &entry, err);
    if (rc == 0)
        rc = get_tensor(entry, &tensor, &header->arena, data_bytes, err);
    json_decref(entry);
    if (rc == 0)
        header->tensors[header->num_tensors++] = tensor;
    else
        mp_error_prefix(err, "tensor \"%s\"", tensor.name);
    return rc;
}

/* ------------------------------------------------------------------------
 * Metadata
 */

static int copy_metadata(mp_header *header, json_t *object, mp_error *err)
{
    const char *key;
    json_t *value;
    size_t pairs = json_object_size(object);
    char **metadata = mp_arena_alloc(&header->arena, pairs * 2 * sizeof(*metadata));
    if (!metadata)
        return mp_fail_memory(err);
    size_t n = 0;
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return mp_fail(err, MP_ERR_INPUT, METADATA " \"%s\" is not a string", key);
        metadata[n] = mp_arena_string(&header->arena, key, strlen(key));
        metadata[n + 1] =
            mp_arena_string(&header->arena, json_string_value(value), json_string_length(value));
        if (!metadata[n] || !metadata[n + 1])
            return mp_fail_memory(err);
        n += 2;
    }
    header->metadata = metadata;
    header->num_metadata = pairs;
    return 0;
}

/* Of a key that is there twice, the last value counts: files with such metadata exist. */
static int add_metadata(mp_header *header, const mp_members *members, mp_span value, mp_error *err)
{
    json_t *object;
    if (header->has_metadata)
        return mp_fail(err, MP_ERR_INPUT, METADATA " appears twice");
    header->has_metadata = true;
    int rc = mp_members_parse(members, value, 0, &object, err);
    if (rc != 0)
        return rc;
    if (json_is_object(object))
        rc = copy_metadata(header, object, err);
    else if (!json_is_null(object))
        rc = mp_fail(err, MP_ERR_INPUT, METADATA " is not an object");
    json_decref(object);
    return rc;
}

/* ------------------------------------------------------------------------
 * The header
 */

static int add_member(mp_header *header, const mp_members *members, mp_span key, mp_span value,
                      uint64_t data_bytes, mp_error *err)
{
    json_t *name;
    int rc = mp_members_parse(members, key, 0, &name, err);
    if (rc != 0)
        return rc;
    if (strcmp(json_string_value(name), METADATA) == 0)
        rc = add_metadata(header, members, value, err);
    else
        rc = add_tensor(header, members, json_string_value(name), json_string_length(name), value,
                        data_bytes, err);
    json_decref(name);
    return rc;
}

static int add_members(mp_header *header, mp_members members, uint64_t data_bytes, mp_error *err)
{
    for (;;) {
        mp_span key, value;
        bool found;
        int rc = mp_members_next(&members, &key, &value, &found, err);
        if (rc != 0 || !found)
            return rc;
        rc = add_member(header, &members, key, value, data_bytes, err);
        if (rc != 0)
            return rc;
    }
}

static int sort_by_name(mp_header *header, mp_error *err)
{
    if (header->num_tensors > 1)
        qsort(header->tensors, header->num_tensors, sizeof(mp_tensor), mp_tensor_order);
    for (size_t i = 1; i < header->num_tensors; i++)
        if (strcmp(header->tensors[i - 1].name, header->tensors[i].name) == 0)
            return mp_fail(err, MP_ERR_INPUT, "tensor \"%s\" appears twice",
                           header->tensors[i].name);
    return 0;
}

/* By offset; an empty tensor before the one that begins where it lies. */
static int extent_order(const void *a, const void *b)
{
    const mp_tensor *x = *(const mp_tensor *const *)a;
    const mp_tensor *y = *(const mp_tensor *const *)b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* That the extents, in order, cover the data without hole and overlap. */
static int check_tiling(const mp_tensor *const *tensors, size_t num_tensors, uint64_t data_bytes,
                        mp_error *err)
{
    uint64_t end = 0;
    for (size_t i = 0; i < num_tensors; i++) {
        const mp_tensor *tensor = tensors[i];
        if (tensor->offset < end)
            return mp_fail(err, MP_ERR_INPUT,
                           "tensor \"%s\": begins at data byte %llu, inside tensor \"%s\" that "
                           "ends at %llu",
                           tensor->name, (unsigned long long)tensor->offset, tensors[i - 1]->name,
                           (unsigned long long)end);
        if (tensor->offset > end)
            return mp_fail(
                err, MP_ERR_INPUT,
                "tensor \"%s\": begins at data byte %llu, %llu bytes after the one before it",
                tensor->name, (unsigned long long)tensor->offset,
                (unsigned long long)(tensor->offset - end));
        /* No overflow: each tensor starts at `end` and ends inside the data. */
        end += tensor->bytes;
    }
    if (end != data_bytes)
        return mp_fail(err, MP_ERR_INPUT, "tensors end at data byte %llu, the file holds %llu",
                       (unsigned long long)end, (unsigned long long)data_bytes);
    return 0;
}

static int check_extents(const mp_header *header, uint64_t data_bytes, mp_error *err)
{
    size_t n = header->num_tensors;
    const mp_tensor **tensors = mp_alloc(n, sizeof(*tensors));
    if (!tensors)
        return mp_fail_memory(err);
    for (size_t i = 0; i < n; i++)
        tensors[i] = &header->tensors[i];
    if (n > 1)
        qsort(tensors, n, sizeof(*tensors), extent_order);
    int rc = check_tiling(tensors, n, data_bytes, err);
    free(tensors);
    return rc;
}

static int parse(mp_header *header, const char *text, size_t length, const mp_shard *shard,
                 mp_error *err)
{
    uint64_t data_bytes = shard->size - shard->header_bytes;
    int rc = add_members(header, (mp_members){.text = text, .length = length}, data_bytes, err);
    if (rc == 0)
        rc = sort_by_name(header, err);
    if (rc == 0)
        rc = check_extents(header, data_bytes, err);
    for (size_t i = 0; i < header->num_tensors; i++)
        header->tensors[i].offset += shard->header_bytes;
    return rc;
}

static uint64_t little_endian(const unsigned char bytes[LENGTH_BYTES])
{
    uint64_t value = 0;
    for (int i = LENGTH_BYTES; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

/* Sets the size of the file and of its header. */
static int measure(mp_shard *shard, struct mp_frame_cache *cache, mp_error *err)
{
    unsigned char bytes[MP_FOREIGN_BYTES];
    const char *foreign;
    int rc = mp_file_size(shard->fd, shard->file, &shard->stored, err);
    if (rc != 0)
        return rc;
    shard->size = shard->zstd ? shard->zstd->content : shard->stored;
    if (shard->size < LENGTH_BYTES)
        return mp_fail(err, MP_ERR_INPUT, "file of %llu bytes is too small for a header",
                       (unsigned long long)shard->size);
    /* Enough to recognize a pickle, a GGUF file or a web page before its first bytes are taken for
     * a length. */
    uint64_t begin = shard->size < sizeof bytes ? shard->size : sizeof bytes;
    rc = mp_shard_read(shard, cache, 0, begin, bytes, err);
    if (rc != 0)
        return rc;
    foreign = mp_foreign_content(bytes, begin);
    if (foreign)
        return mp_fail(err, bytes[0] == 'G' ? MP_ERR_UNSUPPORTED : MP_ERR_INPUT, "%s", foreign);
    uint64_t length = little_endian(bytes);
    if (length > MP_SAFETENSORS_HEADER_MAX)
        return mp_fail(err, MP_ERR_INPUT, "header of %llu bytes is over the limit of %u",
                       (unsigned long long)length, MP_SAFETENSORS_HEADER_MAX);
    if (length > shard->size - LENGTH_BYTES)
        return mp_fail(err, MP_ERR_INPUT, "header of %llu bytes does not fit a file of %llu",
                       (unsigned long long)length, (unsigned long long)shard->size);
    shard->header_bytes = LENGTH_BYTES + length;
    return 0;
}

int mp_header_read(mp_header *header, mp_shard *shard, struct mp_frame_cache *cache, mp_error *err)
{
    mp_digest digest;
    *header = (mp_header){0};
    int rc = measure(shard, cache, err);
    if (rc != 0)
        return rc;
    char *text = mp_alloc(shard->header_bytes, 1);
    if (!text)
        return mp_fail_memory(err);
    rc = mp_shard_read(shard, cache, 0, shard->header_bytes, text, err);
    if (rc == 0) {
        mp_digest_of(text, (size_t)shard->header_bytes, &digest);
        memcpy(shard->header_xxh3, digest.bytes, sizeof(shard->header_xxh3));
        rc = parse(header, text + LENGTH_BYTES, (size_t)shard->header_bytes - LENGTH_BYTES, shard,
                   err);
    }
    free(text);
    return rc;
}
