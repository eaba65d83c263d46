/* SPDX-License-Identifier: Apache-2.0 */
/* How many bytes a tensor takes, and the header of a safetensors file that is to be written.
 *
 *     8 bytes   length of the JSON and spaces, little-endian
 *     JSON      {"__metadata__": {...}, "NAME": {"dtype": "I8", "shape": [2, 3],
 *                "data_offsets": [0, 6]}, ...}
 *     spaces    up to a multiple of `align`
 *     data      the tensors, in the order of the JSON, without gaps
 *
 * The JSON is compact and in the order of the tensors, so the same tensors give the same bytes. Its
 * offsets count from the beginning of the data, while those returned count from that of the file.
 * Whatever a reader would refuse is refused here first: duplicate names, names that are not UTF-8,
 * sizes that overflow, headers over the limit, misaligned tensors.
 *
 * Pure functions, any number of threads. Format: huggingface/safetensors, README.md. */
#include <moepack/store.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "checkpoint/tensor.h"

#define LENGTH_BYTES 8

#define METADATA "__metadata__"

char *mp_shape_text(const uint64_t *shape, uint32_t rank, char text[MP_SHAPE_TEXT])
{
    static const char cut[] = ", ...]";
    size_t used = 1;
    text[0] = '[';
    for (uint32_t i = 0; i < rank; i++) {
        char number[24];
        size_t n = (size_t)snprintf(number, sizeof(number), "%s%llu", i > 0 ? ", " : "",
                                    (unsigned long long)shape[i]);
        if (used + n + sizeof(cut) > MP_SHAPE_TEXT) {
            memcpy(text + used, cut, sizeof(cut));
            return text;
        }
        memcpy(text + used, number, n);
        used += n;
    }
    memcpy(text + used, "]", 2);
    return text;
}

int mp_tensor_spec_bytes(const mp_tensor_spec *spec, uint64_t *bytes, mp_error *err)
{
    char shape[MP_SHAPE_TEXT];
    uint64_t bits = 1;
    bool fits = true;
    for (uint32_t i = 0; i < spec->rank; i++)
        /* A size of 0 makes the product 0 whatever the others are. INT64_MAX keeps each printable
         * as JSON. */
        fits = fits && spec->shape[i] <= INT64_MAX && mp_mul_u64(bits, spec->shape[i], &bits);
    fits = fits && mp_mul_u64(bits, mp_dtype_bits(spec->dtype), &bits);
    if (!fits)
        return mp_fail(err, MP_ERR_INPUT, "%s %s is too large", mp_dtype_name(spec->dtype),
                       mp_shape_text(spec->shape, spec->rank, shape));
    if (bits % 8 != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s %s takes %llu bits, not whole bytes",
                       mp_dtype_name(spec->dtype), mp_shape_text(spec->shape, spec->rank, shape),
                       (unsigned long long)bits);
    *bytes = bits / 8;
    return 0;
}

/* ------------------------------------------------------------------------
 * Writing. The header is built as a jansson value, which keeps its order.
 */

/* Well-formed UTF-8: shortest forms, no surrogates, nothing over U+10FFFF. */
static bool is_utf8(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        unsigned char lead = *s++;
        int more = lead < 0x80 ? 0 : lead < 0xc2 ? -1 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        if (more < 0 || lead > 0xf4)
            return false;
        /* After these lead bytes the second byte has a narrower range, which excludes overlong
         * forms, surrogates and everything over U+10FFFF. */
        unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        for (; more > 0; more--, s++) {
            if (*s < low || *s > high)
                return false;
            low = 0x80;
            high = 0xbf;
        }
    }
    return true;
}

/* Adds value, which it takes over; null stands for no memory. */
static int add(json_t *object, const char *name, json_t *value, mp_error *err)
{
    if (!value || json_object_set_new_nocheck(object, name, value) != 0)
        return mp_fail_memory(err);
    return 0;
}

static json_t *numbers(const uint64_t *values, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < count; i++) {
        if (json_array_append_new(array, json_integer((json_int_t)values[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static int add_metadata(json_t *root, const char *const *metadata, size_t pairs, mp_error *err)
{
    if (pairs == 0)
        return 0;
    json_t *object = json_object();
    int rc = add(root, METADATA, object, err);
    for (size_t i = 0; i < pairs && rc == 0; i++) {
        const char *key = metadata[2 * i];
        const char *value = metadata[2 * i + 1];
        if (!is_utf8(key) || !is_utf8(value))
            rc = mp_fail(err, MP_ERR_USAGE, "metadata \"%s\" is not UTF-8", key);
        else if (json_object_get(object, key))
            rc = mp_fail(err, MP_ERR_USAGE, "metadata \"%s\" appears twice", key);
        else
            rc = add(object, key, json_string_nocheck(value), err);
    }
    return rc;
}

static int add_tensor(json_t *root, const mp_tensor_spec *spec, uint64_t begin, uint64_t end,
                      mp_error *err)
{
    const uint64_t extent[2] = {begin, end};
    if (strcmp(spec->name, METADATA) == 0)
        return mp_fail(err, MP_ERR_USAGE, "the name is reserved");
    if (!is_utf8(spec->name))
        return mp_fail(err, MP_ERR_USAGE, "the name is not UTF-8");
    if (json_object_get(root, spec->name))
        return mp_fail(err, MP_ERR_USAGE, "the name appears twice");
    json_t *entry = json_object();
    int rc = add(root, spec->name, entry, err);
    if (rc == 0)
        rc = add(entry, "dtype", json_string_nocheck(mp_dtype_name(spec->dtype)), err);
    if (rc == 0)
        rc = add(entry, "shape", numbers(spec->shape, spec->rank), err);
    if (rc == 0)
        rc = add(entry, "data_offsets", numbers(extent, 2), err);
    return rc;
}

/* Sets offsets within the data, and fills root. */
static int describe(json_t *root, const mp_tensor_spec *specs, size_t num_specs, uint64_t *offsets,
                    mp_error *err)
{
    uint64_t end = 0;
    for (size_t i = 0; i < num_specs; i++) {
        uint64_t bytes;
        int rc = mp_tensor_spec_bytes(&specs[i], &bytes, err);
        if (rc == 0 && (!mp_add_u64(end, bytes, &end) || end > INT64_MAX / 2))
            rc = mp_fail(err, MP_ERR_USAGE, "the file is too large");
        if (rc == 0)
            rc = add_tensor(root, &specs[i], end - bytes, end, err);
        if (rc != 0) {
            mp_error_prefix(err, "tensor \"%s\"", specs[i].name);
            return rc;
        }
        offsets[i] = end - bytes;
    }
    offsets[num_specs] = end;
    return 0;
}

/* Makes offsets those within the file; every tensor has to keep its natural alignment. */
static int place(const mp_tensor_spec *specs, size_t num_specs, uint64_t header_bytes,
                 uint64_t *offsets, mp_error *err)
{
    for (size_t i = 0; i <= num_specs; i++)
        offsets[i] += header_bytes;
    for (size_t i = 0; i < num_specs; i++) {
        uint64_t size = mp_ceil_div(mp_dtype_bits(specs[i].dtype), 8);
        if (offsets[i] % size != 0)
            return mp_fail(err, MP_ERR_USAGE,
                           "tensor \"%s\": offset %llu is not a multiple of its element's %llu "
                           "bytes",
                           specs[i].name, (unsigned long long)offsets[i], (unsigned long long)size);
    }
    return 0;
}

/* The length, the JSON, and spaces up to a multiple of align. */
static int print(const json_t *root, uint64_t align, char **header, uint64_t *header_bytes,
                 mp_error *err)
{
    const size_t flags = JSON_COMPACT;
    size_t n = json_dumpb(root, NULL, 0, flags);
    if (n == 0)
        return mp_fail_memory(err);
    uint64_t total = mp_round_up(n + LENGTH_BYTES, align);
    /* Not out of reach: all of Kimi K3 in one file would need about 77 MB. */
    if (total > MP_SAFETENSORS_HEADER_MAX + LENGTH_BYTES)
        return mp_fail(err, MP_ERR_USAGE, "header of %llu bytes is over the limit of %u",
                       (unsigned long long)(total - LENGTH_BYTES), MP_SAFETENSORS_HEADER_MAX);
    char *text = mp_alloc(total, 1);
    if (!text)
        return mp_fail_memory(err);
    if (json_dumpb(root, text + LENGTH_BYTES, n, flags) != n) {
        free(text);
        return mp_fail_memory(err);
    }
    for (int i = 0; i < LENGTH_BYTES; i++)
        text[i] = (char)((total - LENGTH_BYTES) >> (8 * i) & 0xff);
    memset(text + LENGTH_BYTES + n, ' ', (size_t)(total - LENGTH_BYTES - n));
    *header = text;
    *header_bytes = total;
    return 0;
}

int mp_safetensors_header(const mp_tensor_spec *specs, size_t num_specs,
                          const char *const *metadata, size_t pairs, uint64_t align, char **header,
                          uint64_t *header_bytes, uint64_t *offsets, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *header = NULL;
    *header_bytes = 0;
    if (align == 0 || align > MP_SAFETENSORS_HEADER_MAX)
        return mp_fail(err, MP_ERR_USAGE, "alignment %llu is not between 1 and %u",
                       (unsigned long long)align, MP_SAFETENSORS_HEADER_MAX);
    json_t *root = json_object();
    if (!root)
        return mp_fail_memory(err);
    int rc = add_metadata(root, metadata, pairs, err);
    if (rc == 0)
        rc = describe(root, specs, num_specs, offsets, err);
    if (rc == 0)
        rc = print(root, align, header, header_bytes, err);
    json_decref(root);
    if (rc == 0)
        rc = place(specs, num_specs, *header_bytes, offsets, err);
    if (rc != 0) {
        free(*header);
        *header = NULL;
    }
    return rc;
}
