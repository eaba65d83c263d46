/* SPDX-License-Identifier: Apache-2.0 */
/* The directory of a rank: its files, and the tensors that the target wants in them. This is the
 * structure of a pack as it lies on the disk, held against three things that say what it should be:
 * the manifest (files, sizes, the order of tensors), the headers' own metadata, and the shape, from
 * which names, types and shapes of all tensors follow without any list.
 *
 * A file that is truncated, missing or malformed is a fault and stays closed; the others are
 * checked all the same. What a closed file would have held is "lost" and not reported again: one
 * broken file gives one fault, not one for each tensor. Later levels read what `held` says is there
 * and fits.
 *
 * A shard may have been compressed after packing. It is found under its name with the suffix,
 * checked frame by frame, and its size is the manifest's once decompressed.
 *
 * One thread. Only one rank is open at a time. */
#include "verify/check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/zstd_file.h"
#include "checkpoint/shard.h"
#include "pack/manifest.h"

char *mp_packed_tensor_name(const mp_check *check, size_t layer, unsigned tensor)
{
    return mp_format("%s.%s.%s", check->manifest.layers[layer], mp_check_set(check, tensor)->block,
                     mp_check_tensor(check, tensor)->name);
}

/* ------------------------------------------------------------------------
 * Files
 */

/* What a file that the manifest names is called: where that is not there, it may have been
 * compressed since. Malloc'ed; null without memory. */
static char *stored_name(const mp_rank *rank, const char *name)
{
    char *compressed = mp_format("%s" MP_ZSTD_SUFFIX, name);
    char *plain_path = mp_path_join(rank->dir, name);
    char *path = compressed ? mp_path_join(rank->dir, compressed) : NULL;
    /* The plain file wins where both are there. */
    bool is_there = plain_path && path && !mp_path_exists(plain_path) && mp_path_exists(path);
    char *stored = plain_path && path ? mp_format("%s", is_there ? compressed : name) : NULL;

    free(compressed);
    free(plain_path);
    free(path);
    return stored;
}

static bool known_file(const void *user, const char *name)
{
    const mp_rank *rank = user;
    bool known = strcmp(name, MP_INDEX_NAME) == 0;

    for (size_t f = 0; !known && f < rank->packed->num_files; f++) {
        char *stored = stored_name(rank, rank->packed->files[f].name);

        /* Without memory nothing is called unknown; opening the file will say so. */
        known = !stored || strcmp(name, stored) == 0;
        free(stored);
    }
    return known;
}

static void report_size(mp_check *check, const mp_spot *spot, const mp_packed_file *file,
                        uint64_t size)
{
    mp_fault_add(&check->faults, spot, "%s: %s: %" PRIu64 " byte%s, the manifest says %" PRIu64,
                 file->name, size < file->size ? "truncated" : "too long", size, mp_plural(size),
                 file->size);
}

/* Opens one file where it has the right size and a well-formed header. name: what it is called. */
static int open_named(mp_rank *rank, mp_check *check, size_t f, const char *name, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    const mp_packed_file *file = &rank->packed->files[f];
    bool as_named = strcmp(name, file->name) == 0, there;
    mp_checkpoint *opened = &rank->files[f];
    const mp_context quiet = mp_quiet(check->context);
    uint64_t size;

    int rc = mp_check_file(check, &spot, rank->dir, name, &size, &there, err);
    if (rc != 0 || !there)
        return rc;
    /* A truncated file is not opened: its header may be whole and promise bytes that are gone. */
    if (as_named && size != file->size) {
        report_size(check, &spot, file, size);
        return 0;
    }
    char *path = mp_path_join(rank->dir, name);
    if (!path)
        return mp_fail_memory(err);
    rc = mp_checkpoint_open(opened, path, &quiet, err);
    free(path);
    if (rc == 0 && opened->shards[0].zstd) {
        rc = mp_zstd_file_check(opened->shards[0].zstd, err);
        if (rc == MP_ERR_INPUT)
            mp_error_prefix(err, "%s", name);
    }
    if (rc == MP_ERR_INPUT) {
        mp_fault_add(&check->faults, &spot, "%s", err->message);
        return 0;
    }
    rank->open[f] = rc == 0;
    check->report->files += rc == 0;
    if (rc == 0 && !as_named && opened->shards[0].size != file->size)
        report_size(check, &spot, file, opened->shards[0].size);
    return rc;
}

static int open_file(mp_rank *rank, mp_check *check, size_t f, mp_error *err)
{
    char *name = stored_name(rank, rank->packed->files[f].name);
    int rc = name ? open_named(rank, check, f, name, err) : mp_fail_memory(err);

    free(name);
    return rc;
}

static const char *metadata_value(const mp_checkpoint *file, const char *key)
{
    for (size_t i = 0; i < file->num_metadata; i++)
        if (strcmp(file->metadata[2 * i], key) == 0)
            return file->metadata[2 * i + 1];
    return NULL;
}

/* What the header says of the file besides its tensors. */
static void check_metadata(const mp_rank *rank, mp_check *check, size_t f)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    const mp_checkpoint *file = &rank->files[f];
    const char *name = rank->packed->files[f].name;
    char number[24], ep_size[24];
    const char *const expected[][2] = {
        {"format", "moepack"},
        {"format_version", MP_FORMAT_VERSION},
        {"target", check->manifest.target},
        {"ep_rank", number},
        {"ep_size", ep_size},
    };

    snprintf(number, sizeof number, "%u", rank->packed->rank);
    snprintf(ep_size, sizeof ep_size, "%" PRIu64, check->manifest.ep_size);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        const char *value = metadata_value(file, expected[i][0]);

        if (!value)
            mp_fault_add(&check->faults, &spot, "%s: __metadata__ does not have \"%s\"", name,
                         expected[i][0]);
        else if (strcmp(value, expected[i][1]) != 0)
            mp_fault_add(&check->faults, &spot,
                         "%s: __metadata__ says %s \"%s\", the manifest says \"%s\"", name,
                         expected[i][0], value, expected[i][1]);
    }
    if (file->shards[0].header_bytes % MP_SAFETENSORS_ALIGN != 0)
        mp_fault_add(&check->faults, &spot,
                     "%s: data begins at byte %" PRIu64 ", not at a multiple of %u", name,
                     file->shards[0].header_bytes, MP_SAFETENSORS_ALIGN);
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = (*(const mp_tensor *const *)a)->offset, y = (*(const mp_tensor *const *)b)->offset;

    return (x > y) - (x < y);
}

/* The manifest lists a file's tensors in the order of their bytes. Only the first
 * difference is named: what follows it differs as well. */
static int check_listing(const mp_rank *rank, mp_check *check, size_t f, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    const mp_packed_file *listed = &rank->packed->files[f];
    const mp_checkpoint *file = &rank->files[f];
    const mp_tensor **order = mp_alloc(file->num_tensors, sizeof *order);

    if (!order)
        return mp_fail_memory(err);
    for (size_t i = 0; i < file->num_tensors; i++)
        order[i] = &file->tensors[i];
    qsort(order, file->num_tensors, sizeof *order, compare_offsets);
    /* The count by itself, since the loop below ends with the shorter list. */
    if (file->num_tensors != listed->num_tensors)
        mp_fault_add(&check->faults, &spot, "%s: %zu tensor%s, the manifest lists %zu",
                     listed->name, file->num_tensors, mp_plural(file->num_tensors),
                     listed->num_tensors);
    for (size_t i = 0; i < file->num_tensors && i < listed->num_tensors; i++) {
        if (strcmp(order[i]->name, listed->tensors[i].name) != 0) {
            mp_fault_add(&check->faults, &spot, "%s: tensor %zu is %s, the manifest lists %s",
                         listed->name, i, order[i]->name, listed->tensors[i].name);
            break;
        }
    }
    free(order);
    return 0;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* Where the manifest lists a tensor, or null. */
static const mp_packed_tensor *find_listed(const mp_packed_file *file, const char *name)
{
    for (size_t i = 0; i < file->num_tensors; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    return NULL;
}

int mp_rank_wants(const mp_check *check, const mp_packed_rank *packed, size_t layer,
                  unsigned tensor, bool *wants, mp_error *err)
{
    *wants = !mp_check_tensor(check, tensor)->optional;
    if (*wants)
        return 0;
    char *name = mp_packed_tensor_name(check, layer, tensor);
    if (!name)
        return mp_fail_memory(err);
    for (size_t f = 0; f < packed->num_files && !*wants; f++)
        *wants = find_listed(&packed->files[f], name) != NULL;
    free(name);
    return 0;
}

/* Type, shape and alignment; a tensor that the target could not take is a fault. */
static bool tensor_fits(mp_check *check, const mp_spot *spot, unsigned t, const mp_tensor *tensor)
{
    const mp_slot_tensor *slot = mp_check_tensor(check, t);
    uint64_t shape[5];
    const mp_slot_set *set = mp_check_set(check, t);
    uint32_t rank = mp_slots_shape(set->target, slot, set->slots, shape);
    char actual[MP_SHAPE_TEXT], expected[MP_SHAPE_TEXT];
    unsigned element = mp_dtype_bits(slot->dtype) / 8;

    if (tensor->dtype != slot->dtype || tensor->rank != rank ||
        memcmp(tensor->shape, shape, rank * sizeof *shape) != 0) {
        mp_fault_add(&check->faults, spot, "%s %s, expected %s %s", mp_dtype_name(tensor->dtype),
                     mp_shape_text(tensor->shape, tensor->rank, actual), mp_dtype_name(slot->dtype),
                     mp_shape_text(shape, rank, expected));
        return false;
    }
    /* A fault, but not one that keeps it from being read. */
    if (tensor->offset % element != 0)
        mp_fault_add(&check->faults, spot, "begins at byte %" PRIu64 ", not at a multiple of %u",
                     tensor->offset, element);
    return true;
}

/* Finds one tensor in the open files. *lost: it is in a file that could not be opened,
 * which is a fault already. */
static void find_tensor(const mp_rank *rank, const char *name, mp_held *held, bool *lost)
{
    const mp_packed_rank *packed = rank->packed;

    *lost = false;
    for (size_t f = 0; f < packed->num_files && !held->tensor; f++) {
        const mp_packed_tensor *listed = find_listed(&packed->files[f], name);
        const mp_tensor *tensor = rank->open[f] ? mp_checkpoint_find(&rank->files[f], name) : NULL;

        if (tensor)
            *held = (mp_held){
                .file = &rank->files[f],
                .tensor = tensor,
                .xxh3 = listed ? listed->xxh3 : NULL,
                .wanted = true,
            };
        else if (!rank->open[f] && listed)
            *lost = true;
    }
}

/* Finds a tensor that the target wants. */
static void look_for(mp_rank *rank, mp_check *check, size_t layer, unsigned t, const char *name)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    mp_held *held = &rank->held[layer * check->shape.num_tensors + t];
    bool lost;

    spot.layer = (int64_t)layer;
    spot.tensor = name;
    find_tensor(rank, name, held, &lost);
    if (held->tensor)
        held->fits = tensor_fits(check, &spot, t, held->tensor);
    else if (!lost)
        mp_fault_add(&check->faults, &spot, "missing");
}

static int check_tensor(mp_rank *rank, mp_check *check, size_t layer, unsigned t, mp_error *err)
{
    mp_held *held = &rank->held[layer * check->shape.num_tensors + t];

    int rc = mp_rank_wants(check, rank->packed, layer, t, &held->wanted, err);
    if (rc != 0 || !held->wanted)
        return rc;
    char *name = mp_packed_tensor_name(check, layer, t);
    if (!name)
        return mp_fail_memory(err);
    look_for(rank, check, layer, t, name);
    free(name);
    return 0;
}

static bool stands_before(const mp_held *a, const mp_held *b)
{
    /* Files are one array, in the manifest's order. */
    return a->file < b->file || (a->file == b->file && a->tensor->offset < b->tensor->offset);
}

/* Files, and the tensors in them, are in the order of layers. */
static void check_order(const mp_rank *rank, mp_check *check)
{
    const mp_held *last = NULL; /* of all earlier layers */

    /* Readers go through a rank once from the beginning, layer by layer; a tensor that stands
     * before one of an earlier layer would send them back. */
    for (size_t layer = 0; layer < check->manifest.num_layers; layer++) {
        const mp_held *highest = last;

        for (unsigned t = 0; t < check->shape.num_tensors; t++) {
            const mp_held *held = &rank->held[layer * check->shape.num_tensors + t];
            mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);

            if (!held->tensor)
                continue;
            spot.layer = (int64_t)layer;
            spot.tensor = held->tensor->name;
            if (last && stands_before(held, last))
                mp_fault_add(&check->faults, &spot, "is before %s of an earlier layer",
                             last->tensor->name);
            if (!highest || stands_before(highest, held))
                highest = held;
        }
        last = highest;
    }
}

/* Tensors of a file that no layer wants. */
static int check_surplus(const mp_rank *rank, mp_check *check, size_t f, mp_error *err)
{
    size_t num_held = check->manifest.num_layers * check->shape.num_tensors;
    const mp_checkpoint *file = &rank->files[f];
    bool *wanted = mp_alloc_zeroed(file->num_tensors, sizeof *wanted);

    if (!wanted)
        return mp_fail_memory(err);
    for (size_t i = 0; i < num_held; i++)
        if (rank->held[i].file == file)
            /* held points into this file's own tensors, so the difference is an index. */
            wanted[rank->held[i].tensor - file->tensors] = true;
    for (size_t i = 0; i < file->num_tensors; i++) {
        mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);

        spot.tensor = file->tensors[i].name;
        if (!wanted[i])
            mp_fault_add(&check->faults, &spot, "in %s, but not wanted there",
                         rank->packed->files[f].name);
    }
    free(wanted);
    return 0;
}

static int check_tensors(mp_rank *rank, mp_check *check, mp_error *err)
{
    int rc = 0;

    for (size_t layer = 0; layer < check->manifest.num_layers; layer++)
        for (unsigned t = 0; t < check->shape.num_tensors && rc == 0; t++)
            rc = check_tensor(rank, check, layer, t, err);
    if (rc == 0)
        check_order(rank, check);
    for (size_t f = 0; f < rank->packed->num_files && rc == 0; f++)
        if (rank->open[f])
            rc = check_surplus(rank, check, f, err);
    return rc;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static int check_files(mp_rank *rank, mp_check *check, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, rank->packed->rank);
    bool there;

    int rc = mp_check_entries(check, &spot, rank->dir, known_file, rank, &there, err);
    if (rc != 0)
        return rc;
    if (!there) {
        mp_fault_add(&check->faults, &spot, "the directory is missing");
        return 0;
    }
    rc = mp_check_index(check, rank, err);
    for (size_t f = 0; f < rank->packed->num_files && rc == 0; f++) {
        rc = open_file(rank, check, f, err);
        if (rc == 0 && rank->open[f]) {
            check_metadata(rank, check, f);
            rc = check_listing(rank, check, f, err);
        }
    }
    return rc ? rc : check_tensors(rank, check, err);
}

int mp_rank_open(mp_rank *rank, mp_check *check, const mp_packed_rank *packed, mp_error *err)
{
    char name[MP_RANK_NAME_MAX];

    *rank = (mp_rank){.packed = packed};
    mp_faults_add_part(&check->faults, packed->rank, MP_VERIFY_STRUCTURE);
    rank->dir = mp_path_join(check->dir, mp_rank_name(packed->rank, name));
    rank->files = mp_alloc_zeroed(packed->num_files, sizeof *rank->files);
    rank->open = mp_alloc_zeroed(packed->num_files, sizeof *rank->open);
    rank->held =
        mp_alloc_zeroed(check->manifest.num_layers * check->shape.num_tensors, sizeof *rank->held);
    if (!rank->dir || !rank->files || !rank->open || !rank->held)
        return mp_fail_memory(err);
    return check_files(rank, check, err);
}

void mp_rank_release(mp_rank *rank)
{
    if (rank->files)
        for (size_t f = 0; f < rank->packed->num_files; f++)
            mp_checkpoint_release(&rank->files[f]);
    free(rank->files);
    free(rank->open);
    free(rank->held);
    free(rank->dir);
    *rank = (mp_rank){0};
}
