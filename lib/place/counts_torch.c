/* SPDX-License-Identifier: Apache-2.0 */
/* Counts in a .pt file: torch.save's zip archive with a pickle, data.pkl, of a dict. The numbers of
 * each tensor's storage are in an entry of their own, data/KEY.
 *
 *     archive/data.pkl      {"logical_count": tensor(storage "0", offset, sizes, strides), ...}
 *     archive/data/0        the numbers of storage "0"
 *     archive/byteorder     "little", or absent
 *
 * SGLang's recorder writes two kinds of dict: summed counts of logical experts (logical_count), or
 * a record of each forward pass with counts of physical experts, plus the placement that they were
 * counted under.
 *
 * Neither the pickle nor the archive is trusted. A tensor has to lie inside its storage and a
 * storage inside its entry, and sizes have to be plausible for counts before memory is allocated. A
 * tensor has no more elements than its storage, so a stride of 0 cannot turn a small file into a
 * large table. Keys that nobody asks for may hold anything. One thread. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "place/counts.h"
#include "place/pickle.h"
#include "place/zip.h"

typedef struct torch_file {
    mp_zip zip;
    mp_pickle pickle;
    const char *prefix; /* of all names: "archive" of "archive/data.pkl" */
    size_t prefix_length;
} torch_file;

/* A tensor of up to 3 dimensions, where its numbers are. */
typedef struct tensor {
    const unsigned char *data;
    mp_dtype dtype;
    uint32_t rank;
    uint64_t size[3], stride[3], offset;
    char shape[64];
} tensor;

/* ------------------------------------------------------------------------
 * The archive
 */

/* Finds the one PREFIX/data.pkl. torch.save derives the prefix from the file's name, so it can be
 * anything. */
static int find_pickle(torch_file *f, const mp_zip_entry **found, mp_error *err)
{
    static const char name[] = "/data.pkl";
    size_t length = strlen(name);
    *found = NULL;
    for (uint64_t i = 0; i < f->zip.count; i++) {
        const mp_zip_entry *e = &f->zip.entries[i];
        size_t prefix = e->name_length - length;
        if (e->name_length <= length || memcmp(e->name + prefix, name, length) != 0 ||
            memchr(e->name, '/', prefix))
            continue;
        if (*found)
            return mp_fail(err, MP_ERR_INPUT, "zip: two entries are data.pkl");
        *found = e;
        f->prefix = e->name;
        f->prefix_length = prefix;
    }
    return *found
               ? 0
               : mp_fail(err, MP_ERR_INPUT, "zip: no data.pkl, this is not a file of torch.save");
}

/* Finds the entry PREFIX/FOLDER and NAME, which is not terminated; null where there is none. */
static int find_entry(const torch_file *f, const char *folder, const void *name, size_t length,
                      const mp_zip_entry **entry, mp_error *err)
{
    size_t prefix = f->prefix_length, n = strlen(folder), all = prefix + 1 + n + length;
    char *path = mp_alloc(all, 1), *at = path;
    if (!path)
        return mp_fail_memory(err);
    at = mempcpy(at, f->prefix, prefix);
    *at++ = '/';
    at = mempcpy(at, folder, n);
    memcpy(at, name, length);
    *entry = mp_zip_find(&f->zip, path, all);
    free(path);
    return 0;
}

static int check_byte_order(const torch_file *f, mp_error *err)
{
    const mp_zip_entry *entry = NULL;
    const unsigned char *data;
    int rc = find_entry(f, "byteorder", "", 0, &entry, err);
    if (rc == 0 && entry)
        rc = mp_zip_data(&f->zip, entry, &data, err);
    if (rc == 0 && entry && (entry->bytes != 6 || memcmp(data, "little", 6) != 0))
        rc = mp_fail(err, MP_ERR_UNSUPPORTED,
                     "zip: byteorder is not \"little\": the file is from a big-endian machine");
    return rc;
}

static int open_file(torch_file *f, const char *data, uint64_t length, mp_error *err)
{
    const mp_zip_entry *entry = NULL;
    const unsigned char *pickle = NULL;
    int rc = mp_zip_open(&f->zip, data, length, err);
    if (rc == 0)
        rc = find_pickle(f, &entry, err);
    if (rc == 0)
        rc = check_byte_order(f, err);
    if (rc == 0)
        rc = mp_zip_data(&f->zip, entry, &pickle, err);
    if (rc == 0)
        rc = mp_pickle_load(&f->pickle, pickle, entry->bytes, err);
    if (rc == 0 && f->pickle.root.kind != MP_PICKLE_DICT)
        rc = mp_fail(err, MP_ERR_INPUT, "pickle: it holds no dict");
    if (rc == 0 && f->pickle.objects[f->pickle.root.u.index].depth > MP_PICKLE_DEPTH)
        rc = mp_fail(err, MP_ERR_INPUT, "pickle: it nests more than %d deep", MP_PICKLE_DEPTH);
    return rc;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

static unsigned bytes_of(mp_dtype dtype)
{
    return mp_dtype_bits(dtype) / 8;
}

/* Finds the bytes of a storage, and that there are as many as it says. */
static int find_storage(const torch_file *f, const char *what, const mp_pickle_object *storage,
                        tensor *t, mp_error *err)
{
    const mp_zip_entry *entry = NULL;
    const char *key = (const char *)f->pickle.data + storage->key.u.text.at;
    uint32_t length = storage->key.u.text.length;
    int shown = length < 64 ? (int)length : 64;
    uint64_t expected;
    int rc = find_entry(f, "data/", key, length, &entry, err);
    if (rc == 0 && !entry)
        return mp_fail(err, MP_ERR_INPUT, "%s: there is no \"data/%.*s\" in the archive", what,
                       shown, key);
    if (rc == 0)
        rc = mp_zip_data(&f->zip, entry, &t->data, err);
    if (rc != 0)
        return rc;
    t->dtype = storage->dtype;
    if (!mp_mul_u64((uint64_t)storage->numel, bytes_of(t->dtype), &expected) ||
        entry->bytes < expected)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: \"data/%.*s\" holds %" PRIu64 " bytes, %" PRIu64
                       " expected for %" PRId64 " elements",
                       what, shown, key, entry->bytes, expected, storage->numel);
    return 0;
}

static void write_shape(tensor *t)
{
    size_t at = 0;
    for (uint32_t i = 0; i < t->rank; i++)
        at += (size_t)snprintf(t->shape + at, sizeof(t->shape) - at, "%s%" PRIu64, i ? ", " : "[",
                               t->size[i]);
    snprintf(t->shape + at, sizeof(t->shape) - at, "%s]", t->rank ? "" : "[");
}

/* All elements lie inside the storage and are not more than it has, so none is repeated. An
 * overflow counts as too large for any storage. */
static int check_extent(const char *what, const tensor *t, uint64_t numel, mp_error *err)
{
    uint64_t elements = 1, last = t->offset, step;
    for (uint32_t i = 0; i < t->rank; i++) {
        if (t->size[i] == 0)
            return mp_fail(err, MP_ERR_INPUT, "%s: shape %s has no elements", what, t->shape);
        if (!mp_mul_u64(elements, t->size[i], &elements))
            elements = UINT64_MAX;
        if (!mp_mul_u64(t->size[i] - 1, t->stride[i], &step) || !mp_add_u64(last, step, &last))
            last = UINT64_MAX;
    }
    if (elements > numel)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: shape %s has more elements than its storage, %" PRIu64, what, t->shape,
                       numel);
    if (last >= numel)
        return mp_fail(err, MP_ERR_INPUT, "%s: shape %s reaches element %" PRIu64 " of %" PRIu64,
                       what, t->shape, last, numel);
    return 0;
}

/* A tensor of least to most dimensions out of what the pickle says. */
static int find_tensor(const torch_file *f, const char *what, mp_pickle_value value, uint32_t least,
                       uint32_t most, tensor *t, mp_error *err)
{
    const mp_pickle *p = &f->pickle;
    *t = (tensor){0};
    if (value.kind != MP_PICKLE_TENSOR)
        return mp_fail(err, MP_ERR_INPUT, "%s: not a tensor", what);
    const mp_pickle_object *object = &p->objects[value.u.index];
    const mp_pickle_object *storage = &p->objects[object->args[0].u.index];
    uint32_t strides;
    if (object->args[1].kind != MP_PICKLE_INTEGER || object->args[1].u.integer < 0 ||
        !mp_pickle_integers(p, object->args[2], t->size, 3, &t->rank) ||
        !mp_pickle_integers(p, object->args[3], t->stride, 3, &strides) || strides != t->rank)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: offset, shape or strides are not integers of 0 or more, in up to 3 "
                       "dimensions",
                       what);
    t->offset = (uint64_t)object->args[1].u.integer;
    write_shape(t);
    if (t->rank < least || t->rank > most)
        return mp_fail(err, MP_ERR_INPUT, "%s: shape %s, expected %u%s dimensions", what, t->shape,
                       least, most > least ? " or 3" : "");
    int rc = check_extent(what, t, (uint64_t)storage->numel, err);
    return rc != 0 ? rc : find_storage(f, what, storage, t, err);
}

/* Sign, `exponent` bits of exponent, and the rest. Computed, since counts are too few to need
 * tables. */
static double small_float(unsigned bits, unsigned exponent)
{
    unsigned mantissa = 15 - exponent, e = bits >> mantissa & ((1u << exponent) - 1);
    int bias = (1 << (exponent - 1)) - 1;
    double fraction = bits & ((1u << mantissa) - 1), one = 1u << mantissa;
    double value = e == (1u << exponent) - 1 ? (fraction > 0 ? NAN : INFINITY)
                   : e == 0                  ? ldexp(fraction / one, 1 - bias)
                                             : ldexp(1 + fraction / one, (int)e - bias);
    return bits >> 15 ? -value : value;
}

static double element(const tensor *t, uint64_t i, uint64_t j, uint64_t k)
{
    const uint64_t index[] = {i, j, k};
    uint64_t at = t->offset, bits = 0;
    for (uint32_t d = 0; d < t->rank; d++)
        /* check_extent computed the largest such index without overflow. */
        at += index[3 - t->rank + d] * t->stride[d];
    unsigned bytes = bytes_of(t->dtype);
    memcpy(&bits, t->data + at * bytes, bytes);
    float single;
    double wide;
    switch (t->dtype) {
    case MP_F64:
        memcpy(&wide, &bits, sizeof(wide));
        return wide;
    case MP_F32:
        memcpy(&single, &bits, sizeof(single));
        return (double)single;
    case MP_F16:
        return small_float((unsigned)bits, 5);
    case MP_BF16:
        return small_float((unsigned)bits, 8);
    case MP_I64:
        return (double)(int64_t)bits;
    case MP_I32:
        return (int32_t)bits;
    case MP_I16:
        return (int16_t)bits;
    case MP_I8:
        return (int8_t)bits;
    default:
        return (double)bits; /* U8 */
    }
}

/* ------------------------------------------------------------------------
 * Counts
 */

static int read_logical(const torch_file *f, mp_pickle_value value, mp_steps *s, mp_error *err)
{
    tensor t;
    int rc = find_tensor(f, "logical_count", value, 2, 3, &t, err);
    if (rc != 0)
        return rc;
    bool has_steps = t.rank == 3;
    const uint64_t *size = t.size + has_steps;
    rc = mp_steps_init(s, has_steps ? t.size[0] : 1, size[0], size[1], err);
    for (uint64_t i = 0; rc == 0 && i < s->steps * s->layers * s->num_logical; i++) {
        uint64_t row = i / s->num_logical, step = row / s->layers, layer = row % s->layers;
        s->count[i] = element(&t, step, layer, i % s->num_logical);
        rc = mp_check_count(s->count[i], has_steps, step, layer, i % s->num_logical, err);
    }
    return rc;
}

/* Logical experts of the physical ones; the largest of them tells how many there are. */
static int check_map(const tensor *map, uint64_t *num_logical, mp_error *err)
{
    *num_logical = 0;
    if (map->dtype == MP_F64 || map->dtype == MP_F32 || map->dtype == MP_F16 ||
        map->dtype == MP_BF16)
        return mp_fail(err, MP_ERR_INPUT, "last_physical_to_logical_map: %s, expected integers",
                       mp_dtype_name(map->dtype));
    for (uint64_t layer = 0; layer < map->size[0]; layer++) {
        for (uint64_t p = 0; p < map->size[1]; p++) {
            double id = element(map, 0, layer, p);
            /* There are no more logical experts than physical ones, and each of those is a column
             * here. */
            if (id < 0 || id >= (double)map->size[1])
                return mp_fail(err, MP_ERR_INPUT,
                               "last_physical_to_logical_map: row %" PRIu64 ", column %" PRIu64
                               ": %g, expected a logical expert, 0 to %" PRIu64,
                               layer, p, id, map->size[1] - 1);
            *num_logical = (uint64_t)id >= *num_logical ? (uint64_t)id + 1 : *num_logical;
        }
    }
    return 0;
}

/* Adds what one forward pass counted. */
static int read_record(const torch_file *f, mp_pickle_value record, const tensor *map,
                       uint64_t step, mp_steps *s, mp_error *err)
{
    mp_pickle_value pass, counts;
    tensor t;
    if (!mp_pickle_get(&f->pickle, record, "forward_pass_id", &pass) ||
        pass.kind != MP_PICKLE_INTEGER || pass.u.integer < 0)
        return mp_fail(err, MP_ERR_INPUT, "forward_pass_id is not an integer of 0 or more");
    if (!mp_pickle_get(&f->pickle, record, "global_physical_count", &counts))
        return mp_fail(err, MP_ERR_INPUT, "global_physical_count is missing");
    int rc = find_tensor(f, "global_physical_count", counts, 2, 2, &t, err);
    if (rc == 0 && (t.size[0] != map->size[0] || t.size[1] != map->size[1]))
        rc = mp_fail(err, MP_ERR_INPUT,
                     "global_physical_count: shape %s, last_physical_to_logical_map has %s",
                     t.shape, map->shape);
    s->pass[step] = pass.u.integer;
    for (uint64_t i = 0; rc == 0 && i < t.size[0] * t.size[1]; i++) {
        uint64_t layer = i / t.size[1], p = i % t.size[1];
        double count = element(&t, 0, layer, p);
        if (!(count >= 0 && isfinite(count)))
            return mp_fail(err, MP_ERR_INPUT,
                           "global_physical_count: row %" PRIu64 ", column %" PRIu64
                           ": %g, expected a finite number of 0 or more",
                           layer, p, count);
        s->count[(step * s->layers + layer) * s->num_logical +
                 (uint64_t)element(map, 0, layer, p)] += count;
    }
    return rc;
}

/* The file has only one placement, the last: all records are read by it. */
static int read_records(const torch_file *f, mp_pickle_value records, mp_steps *s, mp_error *err)
{
    const mp_pickle *p = &f->pickle;
    mp_pickle_value value;
    tensor map;
    uint64_t num_logical;
    if (records.kind != MP_PICKLE_LIST || p->objects[records.u.index].count == 0)
        return mp_fail(err, MP_ERR_INPUT, "records: not a list of records");
    if (!mp_pickle_get(p, p->root, "last_physical_to_logical_map", &value))
        return mp_fail(err, MP_ERR_INPUT,
                       "last_physical_to_logical_map is missing, with \"records\"");
    int rc = find_tensor(f, "last_physical_to_logical_map", value, 2, 2, &map, err);
    if (rc == 0)
        rc = check_map(&map, &num_logical, err);
    if (rc == 0)
        rc = mp_steps_init(s, p->objects[records.u.index].count, map.size[0], num_logical, err);
    if (rc == 0 && !(s->pass = mp_alloc(s->steps, sizeof(*s->pass))))
        rc = mp_fail_memory(err);
    uint32_t item = p->objects[records.u.index].first;
    for (uint64_t step = 0; rc == 0 && step < s->steps; step++, item = p->items[item].next) {
        rc = read_record(f, p->items[item].value, &map, step, s, err);
        if (rc != 0)
            mp_error_prefix(err, "records: record %" PRIu64, step);
    }
    return rc;
}

int mp_counts_read_torch(mp_steps *s, const char *data, uint64_t length, mp_error *err)
{
    torch_file f = {0};
    mp_pickle_value value;
    int rc = open_file(&f, data, length, err);
    if (rc == 0 && mp_pickle_get(&f.pickle, f.pickle.root, "logical_count", &value))
        rc = read_logical(&f, value, s, err);
    else if (rc == 0 && mp_pickle_get(&f.pickle, f.pickle.root, "records", &value))
        rc = read_records(&f, value, s, err);
    else if (rc == 0)
        rc = mp_fail(err, MP_ERR_INPUT,
                     "pickle: neither \"logical_count\" nor \"records\" is in the dict");
    mp_pickle_release(&f.pickle);
    mp_zip_release(&f.zip);
    return rc;
}
