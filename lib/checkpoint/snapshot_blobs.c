/* SPDX-License-Identifier: Apache-2.0 */
/* The BigTensorLoader of vllm-ascend: one blob per rank, and a JSON file that says where in it each
 * tensor is. NZ tensors are in the blob as plain ones.
 *
 *     0.v2.json       {"schema_version": 2, "world_rank": 0, "world_size": 16, "sha256": ...,
 *                      "tensors": {"NAME": {"dtype": "torch.int8", "shape": [...], "offset": 0,
 *                                           "nbytes": 1024, "format": 29}, ...}}
 *     0.v2.snapshot   tensors at multiples of 16 bytes, zeros between them
 *
 * Only their numbers tie the two files together, so everything one says about the other is checked.
 * Tensors that lie inside the blob and have the size of their type and shape are added to the rank.
 * The others become findings and are not read. Between tensors there may only be padding: anything
 * else is data that no name leads to. The digest is left to verify, which reads the bytes. One
 * thread. */
#include "checkpoint/snapshot.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/tensor.h"

#define ALIGN 16

/* The description of a rank's blob. */
typedef struct blob {
    mp_snapshot *s;
    mp_snapshot_rank *rank;
    size_t number; /* of the file */
    char *text;    /* name of the description */
    json_t *json;
    size_t room;
} blob;

/* Name of a file of a rank: "0.v2.json" where that is there, else "0.json". */
static char *name_of(const mp_snapshot *s, uint32_t rank, const char *suffix)
{
    char *name = mp_format("%u.v2.%s", rank, suffix);
    char *path = name ? mp_path_join(s->dir, name) : NULL;
    bool there = path && mp_path_exists(path);

    free(path);
    if (there || !name)
        return name;
    free(name);
    return mp_format("%u.%s", rank, suffix);
}

static int read_shape(const blob *b, const char *name, json_t *entry, const char *key,
                      mp_tensor *tensor, mp_error *err)
{
    json_t *shape;

    if (mp_json_get_array(entry, key, name, &shape, err) != 0)
        return mp_error_prefix(err, "%s", b->text);
    uint64_t *to = mp_arena_alloc(b->s->arena, (json_array_size(shape) + 1) * sizeof *to);
    if (!to)
        return mp_fail_memory(err);
    tensor->rank = (uint32_t)json_array_size(shape);
    tensor->shape = to;
    for (uint32_t d = 0; d < tensor->rank; d++) {
        json_int_t size = json_integer_value(json_array_get(shape, d));

        if (size < 0 || !json_is_integer(json_array_get(shape, d)))
            return mp_fail(err, MP_ERR_INPUT, "%s: %s: a shape of other than sizes", b->text, name);
        to[d] = (uint64_t)size;
    }
    return 0;
}

/* What a tensor was saved as, where that is said, takes as many bytes. */
static int check_saved(const blob *b, const char *name, json_t *entry, uint64_t bytes,
                       mp_error *err)
{
    const char *dtype = json_string_value(json_object_get(entry, "save_dtype"));
    mp_tensor saved = {.name = name};
    uint64_t taken;
    mp_error why;

    if (!dtype || !json_object_get(entry, "save_shape"))
        return 0;
    if (read_shape(b, name, entry, "save_shape", &saved, err) != 0)
        return err->code;
    if (!mp_dtype_parse_torch(dtype, &saved.dtype))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s: unknown save_dtype \"%s\"", b->text, name,
                       dtype);
    const mp_tensor_spec spec = {name, saved.dtype, saved.rank, saved.shape};
    if (mp_tensor_spec_bytes(&spec, &taken, &why) != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s: %s", b->text, name, why.message);
    if (taken != bytes)
        mp_snapshot_found(b->s, false, b->rank->rank, name,
                          "nbytes is %" PRIu64 ", what it was saved as takes %" PRIu64, bytes,
                          taken);
    return 0;
}

/* A tensor of the description; it is added where it lies in the blob and has the right size. */
static int add_tensor(blob *b, const char *name, json_t *entry, mp_error *err)
{
    mp_tensor tensor = {.name = name, .shard = (uint32_t)b->number};
    const char *dtype;
    uint64_t bytes, format, end, size = b->s->shards[b->number].size;
    mp_error why;

    if (mp_json_get_string(entry, "dtype", name, &dtype, err) != 0 ||
        mp_json_get_u64(entry, "offset", name, &tensor.offset, err) != 0 ||
        mp_json_get_u64(entry, "nbytes", name, &tensor.bytes, err) != 0 ||
        mp_json_get_u64(entry, "format", name, &format, err) != 0)
        return mp_error_prefix(err, "%s", b->text);
    if (read_shape(b, name, entry, "shape", &tensor, err) != 0 ||
        check_saved(b, name, entry, tensor.bytes, err) != 0)
        return err->code;
    if (!mp_dtype_parse_torch(dtype, &tensor.dtype))
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s: unknown dtype \"%s\"", b->text, name,
                       dtype);
    const mp_tensor_spec spec = {name, tensor.dtype, tensor.rank, tensor.shape};
    if (mp_tensor_spec_bytes(&spec, &bytes, &why) != 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: %s: %s", b->text, name, why.message);
    if (bytes != tensor.bytes)
        mp_snapshot_found(b->s, false, b->rank->rank, name,
                          "%" PRIu64 " byte%s, its type and shape take %" PRIu64, tensor.bytes,
                          mp_plural(tensor.bytes), bytes);
    else if (!mp_add_u64(tensor.offset, tensor.bytes, &end) || end > size)
        mp_snapshot_found(b->s, false, b->rank->rank, name,
                          "%" PRIu64 " byte%s at %" PRIu64 ", the blob has %" PRIu64, tensor.bytes,
                          mp_plural(tensor.bytes), tensor.offset, size);
    else if (tensor.offset % ALIGN != 0)
        mp_snapshot_found(b->s, false, b->rank->rank, name,
                          "begins at byte %" PRIu64 ", not a multiple of %d", tensor.offset, ALIGN);
    else
        return mp_snapshot_add(b->s, b->rank, &b->room, name, &tensor, err);
    return 0;
}

static int compare_offsets(const void *a, const void *b)
{
    const mp_tensor *const *x = a, *const *y = b;

    return ((*x)->offset > (*y)->offset) - ((*x)->offset < (*y)->offset);
}

/* Between tensors there are zeros, fewer than an alignment. */
static int check_gap(const blob *b, uint64_t from, uint64_t to, const char *name, mp_error *err)
{
    const mp_shard *shard = &b->s->shards[b->number];
    uint8_t gap[ALIGN];

    if (to < from) {
        mp_snapshot_found(b->s, false, b->rank->rank, name, "overlaps the tensor before it");
        return 0;
    }
    if (to - from >= ALIGN) {
        mp_snapshot_found(b->s, false, b->rank->rank, name,
                          "%" PRIu64 " bytes before it belong to no tensor", to - from);
        return 0;
    }
    if (mp_pread_all(shard->fd, gap, to - from, from, shard->name, err) != 0)
        return err->code;
    for (uint64_t i = 0; i < to - from; i++)
        if (gap[i] != 0) {
            mp_snapshot_found(b->s, false, b->rank->rank, name, "padding before it is not zero");
            break;
        }
    return 0;
}

/* Tensors in the order of their offsets, with nothing but padding between and behind them. */
static int check_order(const blob *b, mp_error *err)
{
    const mp_checkpoint *view = &b->rank->tensors;
    const mp_tensor **sorted = mp_alloc(view->num_tensors, sizeof *sorted);
    uint64_t at = 0, size = b->s->shards[b->number].size;
    int rc = sorted ? 0 : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && i < view->num_tensors; i++)
        sorted[i] = &view->tensors[i];
    if (rc == 0 && view->num_tensors > 0)
        qsort(sorted, view->num_tensors, sizeof *sorted, compare_offsets);
    for (size_t i = 0; rc == 0 && i < view->num_tensors; i++) {
        rc = check_gap(b, at, sorted[i]->offset, sorted[i]->name, err);
        at = sorted[i]->offset + sorted[i]->bytes;
    }
    if (rc == 0 && size > at && size - at >= ALIGN)
        mp_snapshot_found(b->s, false, b->rank->rank, NULL,
                          "%" PRIu64 " bytes at the end of the blob belong to no tensor",
                          size - at);
    free(sorted);
    return rc;
}

/* A blob that is missing is a finding: its rank then has no tensors, and the others are looked
 * at. */
static int open_blob(blob *b, mp_error *err)
{
    mp_shard *shard = &b->s->shards[b->number];
    mp_checkpoint *file = &b->s->files[b->number];
    char *name = name_of(b->s, b->rank->rank, "snapshot");
    char *path = name ? mp_path_join(b->s->dir, name) : NULL;
    int rc = path ? 0 : mp_fail_memory(err);

    /* The shard belongs to a checkpoint of one file, as those of safetensors do. */
    if (rc == 0 && !mp_path_exists(path)) {
        mp_snapshot_found(b->s, false, b->rank->rank, NULL, "%s is missing", name);
    } else if (rc == 0) {
        file->shards = mp_alloc_zeroed(1, sizeof *file->shards);
        rc = file->shards ? mp_open_read(path, &file->shards->fd, err) : mp_fail_memory(err);
        if (file->shards) {
            file->num_shards = 1;
            file->shards->name = mp_format("%s", name);
        }
        if (rc == 0)
            rc = file->shards->name ? mp_file_size(file->shards->fd, path, &file->shards->size, err)
                                    : mp_fail_memory(err);
        if (rc == 0)
            *shard = *file->shards;
    }
    free(name);
    free(path);
    return rc;
}

static int read_description(blob *b, uint64_t world_size, mp_error *err)
{
    uint64_t version, rank, world;
    const char *digest, *name;
    json_t *tensors, *entry;

    if (mp_json_get_u64(b->json, "schema_version", b->text, &version, err) != 0)
        return err->code;
    if (version != 2)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: schema_version %" PRIu64 ", expected 2",
                       b->text, version);
    if (mp_json_get_u64(b->json, "world_rank", b->text, &rank, err) != 0 ||
        mp_json_get_u64(b->json, "world_size", b->text, &world, err) != 0 ||
        mp_json_get_string(b->json, "sha256", b->text, &digest, err) != 0 ||
        mp_json_get_object(b->json, "tensors", b->text, &tensors, err) != 0)
        return err->code;
    if (rank != b->rank->rank)
        mp_snapshot_found(b->s, false, b->rank->rank, NULL, "%s says world_rank %" PRIu64, b->text,
                          rank);
    if (world != world_size)
        mp_snapshot_found(b->s, false, b->rank->rank, NULL,
                          "%s says world_size %" PRIu64 ", the number of ranks is %" PRIu64,
                          b->text, world, world_size);
    b->rank->digest = mp_format("%s", digest);
    if (!b->rank->digest)
        return mp_fail_memory(err);
    if (open_blob(b, err) != 0)
        return err->code;
    if (b->s->files[b->number].num_shards == 0)
        return 0;
    json_object_foreach(tensors, name, entry)
    {
        if (add_tensor(b, name, entry, err) != 0)
            return err->code;
    }
    mp_snapshot_sort(b->s, b->rank);
    return check_order(b, err);
}

static int read_rank(mp_snapshot *s, size_t number, mp_error *err)
{
    blob b = {.s = s, .rank = &s->ranks[number], .number = number};
    char *path;
    int rc;

    b.text = name_of(s, (uint32_t)number, "json");
    path = b.text ? mp_path_join(s->dir, b.text) : NULL;
    rc = path ? 0 : mp_fail_memory(err);
    if (rc == 0 && !mp_path_exists(path)) {
        mp_snapshot_found(s, false, (int64_t)number, NULL, "%s is missing", b.text);
    } else if (rc == 0) {
        rc = mp_json_load_python(path, MP_SNAPSHOT_TEXT_MAX, &b.json, err);
        if (rc == 0)
            rc = read_description(&b, s->num_ranks, err);
    }
    json_decref(b.json);
    free(path);
    free(b.text);
    return rc;
}

/* The number of ranks: that of the files, or more, as the first description says; the others may
 * be elsewhere. */
static int count_ranks(mp_snapshot *s, uint64_t *ranks, mp_error *err)
{
    char **names, *first = NULL;
    size_t count;
    uint64_t world = 0;
    json_t *json = NULL;
    int rc = mp_snapshot_entries(s->dir, &names, &count, err);

    *ranks = 0;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        size_t digits = strspn(names[i], "0123456789");
        const char *suffix = names[i] + digits;
        bool ours = strcmp(suffix, ".snapshot") == 0 || strcmp(suffix, ".v2.snapshot") == 0 ||
                    strcmp(suffix, ".json") == 0 || strcmp(suffix, ".v2.json") == 0;

        /* Five digits cannot overflow, and MP_SNAPSHOT_RANKS_MAX needs no more. */
        ours = ours && digits > 0 && digits <= 5;
        if (ours && strtoul(names[i], NULL, 10) >= *ranks)
            *ranks = strtoul(names[i], NULL, 10) + 1;
        if (ours && !first && strstr(suffix, ".json") && !(first = mp_path_join(s->dir, names[i])))
            rc = mp_fail_memory(err);
        if (!ours && strstr(names[i], ".tmp"))
            mp_snapshot_found(s, false, -1, NULL, "%s: left by an unfinished dump", names[i]);
    }
    free(names);
    if (rc == 0 && first)
        rc = mp_json_load_python(first, MP_SNAPSHOT_TEXT_MAX, &json, err);
    if (rc == 0 && first)
        rc = mp_json_get_u64(json, "world_size", mp_path_base(first), &world, err);
    *ranks = world > *ranks ? world : *ranks;
    json_decref(json);
    free(first);
    return rc;
}

int mp_snapshot_open_blobs(mp_snapshot *s, const char *list, mp_error *err)
{
    uint64_t ranks;

    if (count_ranks(s, &ranks, err) != 0 || mp_snapshot_make_ranks(s, ranks, list, err) != 0)
        return err->code;
    s->files = mp_alloc_zeroed(ranks, sizeof *s->files);
    s->shards = mp_alloc_zeroed(ranks, sizeof *s->shards);
    if (!s->files || !s->shards)
        return mp_fail_memory(err);
    s->num_files = ranks;
    for (size_t r = 0; r < ranks; r++) {
        if (s->ranks[r].selected && read_rank(s, r, err) != 0)
            return err->code;
    }
    return 0;
}
