/* SPDX-License-Identifier: Apache-2.0 */
/* The source of an update: the new version, or the old one with deltas in front of it. Users have
 * one of the two at hand and need not say which: the last delta has checksums of the new version's
 * tensors, so the smallest tensor that is needed tells, and then all others have to agree.
 *
 * Of the old version, each tensor that changes and is read is taken through the deltas once, into a
 * file without a name, and the catalog is led there: a shard of its checkpoint behind all others,
 * which nobody counts, since the manifest lists those that there are.
 *
 *   shards[0 .. num_shards-1]    the source's own
 *   shards[num_shards]           the spool: needed tensors as the new version has them
 *
 * Repacking then reads a source that is new wherever it looks. Tensors that it does not read may
 * stay old. Checking and patching run on all threads, a tensor each; the catalog is changed after
 * that. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "delta/spool.h"
#include "delta/update.h"

typedef struct settling {
    mp_update *update;
    mp_spool *spool;
    uint64_t *place; /* [tensors] in the spool */
    size_t *list;    /* tensors that change and are read, [count] */
    size_t count;
} settling;

static const mp_patch_link *links_of(const mp_update *update, size_t tensor, size_t *count)
{
    const mp_chain *chain = &update->parts->chain;

    return mp_chain_links(chain, 0, &mp_chain_base(chain)->parts[0].ckpt.tensors[tensor], count);
}

static int list_needed(settling *s, mp_error *err)
{
    const mp_checkpoint *ckpt = &s->update->catalog.checkpoint;
    uint64_t at = 0;

    s->list = mp_alloc(ckpt->num_tensors, sizeof *s->list);
    s->place = mp_alloc_zeroed(ckpt->num_tensors, sizeof *s->place);
    if (!s->list || !s->place)
        return mp_fail_memory(err);
    for (size_t t = 0; t < ckpt->num_tensors; t++)
        if (s->update->parts->touched.needed[t]) {
            s->list[s->count++] = t;
            s->place[t] = at;
            /* Bytes of tensors that are on the disk: their sum does not overflow. */
            at += mp_round_up(ckpt->tensors[t].bytes, 4096);
        }
    return 0;
}

/* Whether a tensor of the source is as the last delta has it. */
static int is_new(const settling *s, size_t tensor, uint8_t *scratch, bool *fits, mp_error *err)
{
    const mp_checkpoint *ckpt = &s->update->catalog.checkpoint;
    size_t count;
    const mp_patch_link *links = links_of(s->update, tensor, &count);

    return mp_link_sum_fits(&links[count - 1], ckpt, &ckpt->tensors[tensor], scratch, fits, err);
}

static int check_new(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const settling *s = user;
    const mp_checkpoint *ckpt = &s->update->catalog.checkpoint;
    bool fits;
    int rc = is_new(s, s->list[index], scratch, &fits, err);

    if (rc == 0 && !fits)
        rc = mp_fail(err, MP_ERR_CHECK,
                     "\"%s\": tensor \"%s\" is not that of the last delta, though others are",
                     ckpt->dir, ckpt->tensors[s->list[index]].name);
    return rc;
}

/* Whether a tensor that is new is the old version's too: deltas lead from it back to itself. It
 * takes two of them, and one that overwrites would lead there from the new version as well. */
static bool was_put_back(const settling *s, size_t tensor, uint8_t *scratch)
{
    const mp_chain *chain = &s->update->parts->chain;
    const mp_tensor *of_base = &mp_chain_base(chain)->parts[0].ckpt.tensors[tensor];
    const mp_patch_link *culprit;
    size_t count;
    mp_error why;

    mp_chain_links(chain, 0, of_base, &count);
    return count > 1 && mp_chain_patch(chain, 0, of_base, NULL, NULL, scratch, &culprit, &why) == 0;
}

/* The smallest tensor says which version the source is; all others then have to agree. One that was
 * put back is the same in both: the source is the old version then if another tensor is not new. */
static int tell_version(settling *s, const mp_context *context, bool *new, mp_error *err)
{
    const mp_checkpoint *ckpt = &s->update->catalog.checkpoint;
    uint8_t *scratch = mp_alloc(2 * MP_PATCH_BYTES, 1);
    size_t least = 0;

    *new = true;
    /* Any one would tell; the smallest is read fastest. */
    for (size_t i = 1; i < s->count; i++)
        if (ckpt->tensors[s->list[i]].bytes < ckpt->tensors[s->list[least]].bytes)
            least = i;
    int rc = scratch ? 0 : mp_fail_memory(err);
    if (rc == 0 && s->count > 0)
        rc = is_new(s, s->list[least], scratch, new, err);
    if (rc == 0 && *new)
        rc = mp_parallel(context, s->count, MP_PATCH_BYTES, check_new, s, err);
    if (rc == MP_ERR_CHECK && was_put_back(s, s->list[least], scratch)) {
        *new = false;
        rc = 0;
    }
    free(scratch);
    return rc;
}

/* Where a tensor goes. */
typedef struct destination {
    const mp_spool *spool;
    uint64_t place;
} destination;

static int put(void *user, uint64_t at, const void *bytes, size_t n, mp_error *err)
{
    const destination *to = user;

    return mp_pwrite_all(to->spool->fd, bytes, n, to->place + at, to->spool->path, err);
}

static int patch_tensor(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const settling *s = user;
    const mp_chain *chain = &s->update->parts->chain;
    size_t tensor = s->list[index];
    destination to = {s->spool, s->place[tensor]};
    const mp_patch_link *culprit;
    int rc = mp_chain_patch(chain, 0, &mp_chain_base(chain)->parts[0].ckpt.tensors[tensor], put,
                            &to, scratch, &culprit, err);

    return rc && culprit ? mp_link_blame(culprit, err) : rc;
}

/* Leads the catalog to the patched tensors. */
static int redirect(settling *s, mp_error *err)
{
    mp_checkpoint *ckpt = &s->update->catalog.checkpoint;
    mp_shard *shards = realloc(ckpt->shards, (ckpt->num_shards + 1) * sizeof *shards);

    if (!shards)
        return mp_fail_memory(err);
    ckpt->shards = shards;
    shards[ckpt->num_shards] =
        /* Borrowed: num_shards does not count it, so releasing the checkpoint leaves it to the
         * spool. */
        (mp_shard){.name = s->spool->path, .file = s->spool->path, .fd = s->spool->fd};
    for (size_t i = 0; i < s->count; i++) {
        mp_tensor *tensor = &ckpt->tensors[s->list[i]];

        tensor->shard = (uint32_t)ckpt->num_shards;
        tensor->offset = s->place[s->list[i]];
    }
    return 0;
}

int mp_update_settle_source(mp_update *update, const char *beside, const mp_context *context,
                            mp_error *err)
{
    settling s = {.update = update, .spool = &update->parts->spool};
    bool new = true;
    int rc = list_needed(&s, err);

    if (rc == 0)
        rc = tell_version(&s, context, &new, err);
    update->from_base = !new;
    if (rc == 0 && !new) {
        rc = mp_chain_check_base(&update->parts->chain, err);
        if (rc == 0)
            rc = mp_spool_open(s.spool, beside, err);
        if (rc == 0)
            rc = mp_parallel(context, s.count, 2 * MP_PATCH_BYTES, patch_tensor, &s, err);
        if (rc == 0)
            rc = redirect(&s, err);
    }
    free(s.list);
    free(s.place);
    return rc;
}
