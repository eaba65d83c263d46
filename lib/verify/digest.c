/* SPDX-License-Identifier: Apache-2.0 */
/* Every tensor's bytes against the digest that the manifest has of them. */
#include "verify/check.h"

#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/parallel.h"
#include "base/zstd_frames.h"
#include "checkpoint/shard.h"
#include "checkpoint/tensor.h"

/* Plain bytes are to be in the cache when they are digested; a whole frame of a compressed file is
 * decoded to where that is done. */
#define PLAIN_BYTES  (256u << 10)
#define BUFFER_BYTES MP_FRAME_BYTES

typedef struct digest_job {
    mp_check *check;
    const mp_rank *rank;
} digest_job;

/* The rank whose tensor of this name has that digest, or -1. */
static int64_t find_owner(const mp_manifest *m, const char *name, const char *xxh3)
{
    for (size_t r = 0; r < m->num_ranks; r++) {
        const mp_packed_rank *rank = &m->ranks[r];

        for (size_t f = 0; f < rank->num_files; f++)
            for (size_t t = 0; t < rank->files[f].num_tensors; t++)
                if (strcmp(rank->files[f].tensors[t].xxh3, xxh3) == 0 &&
                    strcmp(rank->files[f].tensors[t].name, name) == 0)
                    return rank->rank;
    }
    return -1;
}

static void report_change(const digest_job *job, const mp_spot *spot, const char *actual,
                          const char *expected)
{
    mp_faults *faults = &job->check->faults;
    int64_t owner = -1;

    if (!expected) {
        mp_fault_add(faults, spot, "the manifest has no xxh3 of it");
        return;
    }
    if (mp_faults_wants(faults, spot))
        owner = find_owner(&job->check->manifest, spot->tensor, actual);
    if (owner >= 0)
        mp_fault_add(faults, spot, "holds the bytes of rank %lld", (long long)owner);
    else
        mp_fault_add(faults, spot, "changed: its xxh3 is %s, the manifest says %s", actual,
                     expected);
}

static int check_digest(void *user, uint64_t index, void *buffer, mp_error *err)
{
    const digest_job *job = user;
    mp_check *check = job->check;
    const mp_held *held = &job->rank->held[index];
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_DIGEST, job->rank->packed->rank);
    char actual[MP_DIGEST_TEXT];
    mp_digest digest;

    spot.layer = (int64_t)(index / check->shape.num_tensors);
    if (!held->tensor || !check->layers[spot.layer])
        return 0;
    spot.tensor = held->tensor->name;
    size_t size = held->file->shards[held->tensor->shard].zstd ? BUFFER_BYTES : PLAIN_BYTES;
    int rc = mp_digest_tensor(held->file, held->tensor, buffer, size, &digest, err);
    if (rc == MP_ERR_INPUT) { /* a frame of a compressed file is damaged */
        mp_fault_add(&check->faults, &spot, "%s", err->message);
        return 0;
    }
    if (rc != 0)
        return mp_error_prefix(err, "rank %u", job->rank->packed->rank);
    mp_tensor_forget(held->file, held->tensor, 0, held->tensor->bytes);
    mp_digest_text(&digest, actual);
    if (!held->xxh3 || strcmp(actual, held->xxh3) != 0)
        report_change(job, &spot, actual, held->xxh3);
    mp_check_advance(check,
                     mp_check_tensor_bytes(check, (unsigned)(index % check->shape.num_tensors)));
    return 0;
}

int mp_check_digests(mp_check *check, const mp_rank *rank, mp_error *err)
{
    digest_job job = {check, rank};

    mp_faults_add_part(&check->faults, rank->packed->rank, MP_VERIFY_DIGEST);
    return mp_parallel(check->context, check->manifest.num_layers * check->shape.num_tensors,
                       BUFFER_BYTES, check_digest, &job, err);
}
