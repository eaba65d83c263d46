/* SPDX-License-Identifier: Apache-2.0 */
/* Digests of snapshots: of every content by itself, or of a rank's blob, depending on what the
 * engine wrote. Pre-sharded snapshots are content-addressed: a tensor's name in a shared file is
 * the hash of
 *
 *   "(2, 3)torch.int8"  then its bytes
 *
 * that is, str(tuple(shape)) + str(dtype) as Python prints them, so the text is made to the letter:
 * "(4,)" has its comma, and a type that torch packs two to a byte counts bytes. A name of 40 digits
 * is a SHA-1, one of 32 an XXH3-128. Other snapshots have one SHA-256 for each rank's blob, or none
 * at all.
 *
 * One thread a file, and files on all threads: a file is read from its beginning to its end. Memory
 * is a piece of 1 MiB for each thread, and with a list of layers the sorted places of what they
 * read. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "checkpoint/snapshot.h"
#include "checkpoint/tensor.h"
#include "verify/snapshot.h"

#define PIECE_BYTES (UINT64_C(1) << 20)

/* Where content lies. */
typedef struct content {
    uint32_t file;
    uint64_t offset;
} content;

typedef struct digests {
    const mp_snapshot *s;
    mp_faults *faults;
    content *wanted; /* [num_wanted], sorted; null: all */
    size_t num_wanted;
} digests;

static int compare_content(const void *a, const void *b)
{
    const content *x = a, *y = b;

    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Lists the content that a rank reads under a name of one of the layers. */
static int list_wanted(digests *d, const char *const *prefixes, size_t count, mp_error *err)
{
    uint64_t total = 0;

    for (size_t r = 0; r < d->s->num_ranks; r++)
        total += d->s->ranks[r].tensors.num_tensors;
    d->wanted = mp_alloc(total, sizeof *d->wanted);
    if (!d->wanted)
        return mp_fail_memory(err);
    for (size_t r = 0; r < d->s->num_ranks; r++) {
        const mp_checkpoint *view = &d->s->ranks[r].tensors;

        for (size_t i = 0; i < view->num_tensors; i++)
            if (mp_snapshot_looks_at(prefixes, count, view->tensors[i].name))
                d->wanted[d->num_wanted++] =
                    (content){view->tensors[i].shard, view->tensors[i].offset};
    }
    qsort(d->wanted, d->num_wanted, sizeof *d->wanted, compare_content);
    return 0;
}

static bool is_wanted(const digests *d, uint64_t file, const mp_tensor *tensor)
{
    /* Several names, of several ranks, lead to the same content: it is looked for by its place. */
    const content key = {(uint32_t)file, tensor->offset};

    return !d->wanted ||
           bsearch(&key, d->wanted, d->num_wanted, sizeof key, compare_content) != NULL;
}

/* "(2, 3)torch.int8", as str(tuple(shape)) + str(dtype) gives it; false where torch has no such
 * type or the text is beyond all bounds. */
static bool python_text(const mp_tensor *tensor, char *text, size_t size)
{
    const char *type = mp_dtype_torch(tensor->dtype);
    size_t at = 1;

    if (!type || tensor->rank > 16)
        return false;
    text[0] = '(';
    for (uint32_t d = 0; d < tensor->rank; d++) {
        bool packed = tensor->dtype == MP_F4 && d + 1 == tensor->rank; /* two in an element */

        at += (size_t)snprintf(text + at, size - at, "%s%" PRIu64, d ? ", " : "",
                               packed ? tensor->shape[d] / 2 : tensor->shape[d]);
    }
    snprintf(text + at, size - at, "%s)%s", tensor->rank == 1 ? "," : "", type);
    return true;
}

static int hash_tensor(const mp_checkpoint *file, const mp_tensor *tensor, const char *begin,
                       uint8_t *piece, char text[MP_SHA_TEXT], mp_error *err)
{
    mp_key_hash hash;
    int rc = mp_key_hash_begin(&hash, strlen(tensor->name) == 40, err);

    if (rc != 0)
        return rc;
    mp_key_hash_update(&hash, begin, strlen(begin));
    for (uint64_t at = 0; rc == 0 && at < tensor->bytes; at += PIECE_BYTES) {
        uint64_t left = tensor->bytes - at, n = left < PIECE_BYTES ? left : PIECE_BYTES;

        rc = mp_tensor_read(file, tensor, at, n, piece, err);
        if (rc == 0)
            mp_key_hash_update(&hash, piece, n);
    }
    mp_tensor_forget(file, tensor, 0, tensor->bytes);
    /* After an error too: it frees what beginning took. */
    mp_key_hash_end(&hash, text);
    return rc;
}

/* The first name under which a rank reads a content; null: nobody does. */
static const char *reader_of(const mp_snapshot *s, size_t file, const mp_tensor *tensor,
                             int64_t *rank)
{
    for (size_t r = 0; r < s->num_ranks; r++) {
        const mp_checkpoint *view = &s->ranks[r].tensors;

        for (size_t i = 0; i < view->num_tensors; i++)
            if (view->tensors[i].shard == file && view->tensors[i].offset == tensor->offset &&
                view->tensors[i].bytes == tensor->bytes) {
                *rank = (int64_t)r;
                return view->tensors[i].name;
            }
    }
    return NULL;
}

/* All content of a file, one after the other: that is how it lies on the disk. */
static int check_file(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const digests *d = user;
    const mp_checkpoint *file = &d->s->files[index];

    for (size_t i = 0; i < file->num_tensors; i++) {
        const mp_tensor *tensor = &file->tensors[i];
        char begin[512], text[MP_SHA_TEXT];
        mp_spot spot = mp_spot_of_rank(MP_VERIFY_DIGEST, -1);

        if (!is_wanted(d, index, tensor))
            continue;
        if (!python_text(tensor, begin, sizeof begin)) {
            mp_fault_add(d->faults, &spot, "%s: %s: no content that torch can have",
                         file->shards[0].name, tensor->name);
            continue;
        }
        if (hash_tensor(file, tensor, begin, scratch, text, err) != 0)
            return err->code;
        if (strcmp(text, tensor->name) == 0)
            continue;
        spot.tensor = reader_of(d->s, index, tensor, &spot.rank);
        mp_fault_add(d->faults, &spot, "%s: the content of %s has the hash %s",
                     file->shards[0].name, tensor->name, text);
    }
    return 0;
}

static int check_blob(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const digests *d = user;
    const mp_shard *shard = &d->s->shards[index];
    const char *want = d->s->ranks[index].digest;
    const mp_spot spot = mp_spot_of_rank(MP_VERIFY_DIGEST, (int64_t)index);
    char text[MP_SHA_TEXT];
    mp_sha sha;

    /* A rank that is not selected was not opened; a snapshot that has no digests claims nothing. */
    if (d->s->files[index].num_shards == 0 || !want)
        return 0;
    mp_sha256_begin(&sha);
    for (uint64_t at = 0; at < shard->size; at += PIECE_BYTES) {
        uint64_t left = shard->size - at, n = left < PIECE_BYTES ? left : PIECE_BYTES;

        if (mp_read_bulk(shard->fd, shard->direct, scratch, n, at, shard->name, err) != 0)
            return err->code;
        if (!shard->direct)
            mp_file_read_on(shard->fd, 0, at, n, shard->size);
        mp_sha_update(&sha, scratch, n);
    }
    mp_file_forget(shard->fd, 0, shard->size);
    if (strcmp(mp_sha_end(&sha, text), want) != 0)
        mp_fault_add(d->faults, &spot, "%s has the SHA-256 %s, its description says %s",
                     shard->name, text, want);
    return 0;
}

int mp_snapshot_digests(const mp_snapshot *s, const char *const *prefixes, size_t count,
                        mp_faults *faults, const mp_context *context, mp_error *err)
{
    digests d = {.s = s, .faults = faults};
    int rc = 0;

    if (s->kind == MP_SNAPSHOT_SHARDED_STATE)
        return 0;
    if (prefixes && s->kind == MP_SNAPSHOT_PRESHARDED)
        rc = list_wanted(&d, prefixes, count, err);
    if (rc == 0)
        rc = mp_parallel(context, s->num_files, PIECE_BYTES,
                         s->kind == MP_SNAPSHOT_PRESHARDED ? check_file : check_blob, &d, err);
    free(d.wanted);
    return rc;
}
