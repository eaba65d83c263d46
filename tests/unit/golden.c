/* SPDX-License-Identifier: Apache-2.0 */
/* Reads golden files, apart from the library's own reader. */
#include "golden.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tensor {
    char *name;
    json_t *shape;
    void *data;
    size_t bytes;
};

struct golden_file {
    struct tensor *tensors;
    size_t count;
};

static uint8_t *read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    long size = -1;

    cr_assert(f, "cannot open %s", path);
    if (fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    cr_assert(size > 8, "%s has no header", path);
    rewind(f);
    uint8_t *data = malloc((size_t)size);
    cr_assert(data && fread(data, 1, (size_t)size, f) == (size_t)size, "cannot read %s", path);
    fclose(f);
    *bytes = (size_t)size;
    return data;
}

static struct tensor load_tensor(const char *name, const json_t *entry, const uint8_t *data,
                                 size_t data_bytes)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t end = (size_t)json_integer_value(json_array_get(offsets, 1));
    struct tensor tensor = {
        .name = strdup(name),
        .shape = json_incref(json_object_get(entry, "shape")),
        .data = malloc(end - begin + 1),
        .bytes = end - begin,
    };

    cr_assert(begin <= end && end <= data_bytes, "%s lies outside of its file", name);
    cr_assert(tensor.name && tensor.data);
    memcpy(tensor.data, data + begin, tensor.bytes);
    return tensor;
}

golden_file *golden_open(const char *path)
{
    golden_file *file = calloc(1, sizeof(*file));
    size_t bytes;
    uint8_t *all = read_file(path, &bytes);
    uint64_t header_bytes;
    const char *name;
    json_t *entry;

    memcpy(&header_bytes, all, sizeof(header_bytes));
    cr_assert(header_bytes <= bytes - 8, "%s ends within its header", path);
    json_t *header = json_loadb((const char *)all + 8, (size_t)header_bytes, 0, NULL);
    cr_assert(file && json_is_object(header), "%s has no JSON header", path);
    file->tensors = calloc(json_object_size(header), sizeof(*file->tensors));
    cr_assert(file->tensors);
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") != 0)
            file->tensors[file->count++] =
                load_tensor(name, entry, all + 8 + header_bytes, bytes - 8 - (size_t)header_bytes);
    }
    json_decref(header);
    free(all);
    return file;
}

void golden_close(golden_file *file)
{
    for (size_t i = 0; i < file->count; i++) {
        free(file->tensors[i].name);
        free(file->tensors[i].data);
        json_decref(file->tensors[i].shape);
    }
    free(file->tensors);
    free(file);
}

static const struct tensor *find(const golden_file *file, const char *name)
{
    for (size_t i = 0; i < file->count; i++) {
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    }
    cr_assert_fail("no golden tensor %s", name);
    return NULL;
}

const void *golden_tensor(const golden_file *file, const char *name, size_t *bytes)
{
    const struct tensor *tensor = find(file, name);

    if (bytes)
        *bytes = tensor->bytes;
    return tensor->data;
}

size_t golden_dim(const golden_file *file, const char *name, size_t dimension)
{
    const json_t *shape = find(file, name)->shape;

    cr_assert_lt(dimension, json_array_size(shape), "%s has no dimension %zu", name, dimension);
    return (size_t)json_integer_value(json_array_get(shape, dimension));
}
