/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a work: which tensors each one holds, its header byte for byte, and their index.
 *
 * Plans add tensors in the order in which they will lie. Files are cut from that order once all
 * tensors are known, because a file's name says how many files there are. After that no byte's
 * place changes: headers are finished text, offsets are final, and units may run in any order.
 *
 *     outputs  [ t0 t1 t2 | t3 | t4 t5 ]       each file: a run of neighbours
 *     files    [ 0        | 1  | 2     ]
 *
 * A tensor is never split, so one above the limit gets a larger file of its own. The limit counts
 * tensors and not headers, as Hugging Face's does. Plans are made on one thread; runs only read
 * them. */
#include "run/work.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/tensor.h"

#include <moepack/store.h>

#include <stdlib.h>
#include <string.h>

#define DEFAULT_SHARD_SIZE 5000000000u

int mp_work_reserve(mp_work *work, uint64_t outputs, mp_error *err)
{
    if (outputs >= UINT32_MAX)
        return mp_fail(err, MP_ERR_USAGE, "%llu tensors are too many to write",
                       (unsigned long long)outputs);
    /* There are never more files than tensors. */
    work->outputs = mp_alloc_zeroed(outputs, sizeof *work->outputs);
    work->files = mp_alloc_zeroed(outputs, sizeof *work->files);
    work->room = outputs;
    return work->outputs && work->files ? 0 : mp_fail_memory(err);
}

int mp_work_add(mp_work *work, char *name, mp_dtype dtype, const uint64_t *shape, uint32_t dims,
                uint32_t stage, mp_error *err)
{
    /* The plan counted its tensors and reserved room for them first, so there is room. */
    mp_out_tensor *out = &work->outputs[work->num_outputs];
    mp_tensor_spec spec = {name, dtype, dims, shape};

    if (!name)
        return mp_fail_memory(err);
    if (mp_tensor_spec_bytes(&spec, &out->bytes, err) != 0) {
        free(name);
        return err->code;
    }
    out->name = name;
    out->dtype = dtype;
    out->dims = dims;
    out->stage = stage;
    memcpy(out->shape, shape, dims * sizeof *shape);
    work->num_outputs++;
    return 0;
}

uint64_t mp_work_shard_size(uint64_t given)
{
    return given ? given : DEFAULT_SHARD_SIZE;
}

/* Settles in which file every output from `first` on is. */
static void split(mp_work *work, uint64_t first, uint64_t limit)
{
    mp_out_file *file = NULL;
    uint64_t filled = 0;

    for (uint64_t i = first; i < work->num_outputs; i++) {
        mp_out_tensor *out = &work->outputs[i];

        /* Tested in this order the subtraction cannot wrap, nor can the sum below. */
        if (!file || out->bytes > limit || filled > limit - out->bytes) {
            file = &work->files[work->num_files++];
            *file = (mp_out_file){.first_tensor = (uint32_t)i};
            filled = 0;
        }
        out->file = (uint32_t)(work->num_files - 1);
        file->num_tensors++;
        filled += out->bytes;
    }
}

static int make_header(mp_work *work, mp_out_file *file, const char *const *metadata, size_t pairs,
                       mp_error *err)
{
    mp_tensor_spec *specs = mp_alloc(file->num_tensors, sizeof *specs);
    uint64_t *offsets = mp_alloc((uint64_t)file->num_tensors + 1, sizeof *offsets);
    mp_out_tensor *outputs = &work->outputs[file->first_tensor];
    int rc = specs && offsets ? 0 : mp_fail_memory(err);

    for (uint32_t i = 0; rc == 0 && i < file->num_tensors; i++)
        specs[i] =
            (mp_tensor_spec){outputs[i].name, outputs[i].dtype, outputs[i].dims, outputs[i].shape};
    if (rc == 0)
        rc = mp_safetensors_header(specs, file->num_tensors, metadata, pairs, MP_SAFETENSORS_ALIGN,
                                   &file->header, &file->header_bytes, offsets, err);
    for (uint32_t i = 0; rc == 0 && i < file->num_tensors; i++)
        outputs[i].offset = offsets[i];
    if (rc == 0)
        file->bytes = offsets[file->num_tensors];
    free(specs);
    free(offsets);
    return rc;
}

/* The same with a note for each tensor under its name. Other readers just see strings in
 * "__metadata__", which is all the format allows there. */
static int make_noted_header(mp_work *work, mp_out_file *file, const char *const *notes,
                             mp_error *err)
{
    const char **metadata = mp_alloc(file->num_tensors, 2 * sizeof *metadata);
    int rc = metadata ? 0 : mp_fail_memory(err);

    for (uint32_t i = 0; rc == 0 && i < file->num_tensors; i++) {
        metadata[2 * i] = work->outputs[file->first_tensor + i].name;
        metadata[2 * i + 1] = notes[i];
    }
    if (rc == 0)
        rc = make_header(work, file, metadata, file->num_tensors, err);
    free(metadata);
    return rc;
}

/* notes: null for the same metadata in every file. */
static int make_files(mp_work *work, uint64_t first, const char *dir, uint64_t limit,
                      const char *const *metadata, size_t pairs, const char *const *notes,
                      mp_error *err)
{
    size_t first_file = work->num_files, count;

    split(work, first, mp_work_shard_size(limit));
    count = work->num_files - first_file;
    for (size_t i = 0; i < count; i++) {
        mp_out_file *file = &work->files[first_file + i];

        file->path = mp_format("%s%smodel-%05zu-of-%05zu.safetensors", dir ? dir : "",
                               dir ? "/" : "", i + 1, count);
        if (!file->path)
            return mp_fail_memory(err);
        if ((notes ? make_noted_header(work, file, notes + (file->first_tensor - first), err)
                   : make_header(work, file, metadata, pairs, err)) != 0)
            return err->code;
        work->bytes_written += file->bytes;
    }
    return 0;
}

int mp_work_files(mp_work *work, uint64_t first, const char *dir, uint64_t limit,
                  const char *const *metadata, size_t pairs, mp_error *err)
{
    return make_files(work, first, dir, limit, metadata, pairs, NULL, err);
}

int mp_work_noted_files(mp_work *work, uint64_t first, const char *dir, uint64_t limit,
                        const char *const *notes, mp_error *err)
{
    return make_files(work, first, dir, limit, NULL, 0, notes, err);
}

void mp_work_release(mp_work *work)
{
    for (size_t i = 0; i < work->num_files; i++) {
        free(work->files[i].path);
        free(work->files[i].header);
    }
    for (size_t i = 0; i < work->num_outputs; i++)
        free(work->outputs[i].name);
    free(work->files);
    free(work->outputs);
    memset(work, 0, sizeof *work);
}

/* Null without memory. The index lies next to its files, so their names have no directory. */
static json_t *index_json(const mp_work *work, size_t first, size_t count)
{
    json_t *map = json_object();
    uint64_t total = 0;
    bool whole = true;

    for (size_t f = first; f < first + count; f++) {
        const mp_out_file *file = &work->files[f];

        for (uint32_t t = 0; t < file->num_tensors; t++) {
            const mp_out_tensor *out = &work->outputs[file->first_tensor + t];
            json_t *name = json_string(mp_path_base(file->path));

            whole &= json_object_set_new(map, out->name, name) == 0;
            total += out->bytes;
        }
    }
    if (!whole) {
        json_decref(map);
        return NULL;
    }
    return json_pack("{s:{s:o}, s:o}", "metadata", "total_size", json_integer((json_int_t)total),
                     "weight_map", map);
}

int mp_work_index(const mp_work *work, size_t first, size_t count, char **text, mp_error *err)
{
    json_t *json = index_json(work, first, count);

    *text = json ? mp_json_text(json) : NULL;
    json_decref(json);
    return *text ? 0 : mp_fail_memory(err);
}
