/* SPDX-License-Identifier: Apache-2.0 */
/* What compressing has gained: bytes of tensors by type, plain and as they are stored. */
#include "write/compress.h"

#include <stdlib.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/zstd_file.h"

/* What the frames of a tensor take. Of a frame that holds others too, its share of the content. */
static uint64_t stored_bytes(const mp_shard *shard, const mp_tensor *tensor)
{
    uint64_t end = tensor->offset + tensor->bytes, sum = 0;

    if (!shard->zstd || tensor->bytes == 0)
        return tensor->bytes;
    const mp_frames *frames = &shard->zstd->frames;
    if (!shard->zstd->seekable)
        return (uint64_t)((double)tensor->bytes / (double)shard->size * (double)shard->stored);
    for (size_t i = mp_frames_find(frames, tensor->offset);
         i < frames->count && frames->list[i].content < end; i++) {
        const mp_frame *f = &frames->list[i];
        uint64_t from = f->content > tensor->offset ? f->content : tensor->offset;
        uint64_t to = f[1].content < end ? f[1].content : end, stored = f[1].at - f->at;

        /* at most 2^25 * 2^24 */
        sum += stored * (to - from) / (f[1].content - f->content);
    }
    return sum;
}

bool mp_compress_sums(const mp_checkpoint *ckpt, mp_compress_sum sums[MP_DTYPE_COUNT])
{
    bool compressed = false;

    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];
        mp_compress_sum *sum = &sums[t->dtype];

        sum->tensors++;
        sum->plain += t->bytes;
        sum->stored += stored_bytes(&ckpt->shards[t->shard], t);
    }
    for (size_t s = 0; s < ckpt->num_shards; s++)
        compressed |= ckpt->shards[s].zstd != NULL;
    return compressed;
}

int mp_compress_measure(const char *dir, const mp_context *context, mp_compress_report *report,
                        mp_error *err)
{
    const mp_context buffered = mp_buffered(context);
    mp_entries entries;

    err = MP_NEVER_NULL(err);
    *report = (mp_compress_report){0};
    int rc = mp_entries_list(&entries, dir, false, err);
    for (size_t i = 0; rc == 0 && i < entries.count; i++) {
        mp_checkpoint ckpt = {0};

        if (entries.list[i].kind != MP_ENTRY_SHARD)
            continue;
        char *path = mp_path_join(dir, entries.list[i].path);
        rc = path ? mp_checkpoint_open(&ckpt, path, &buffered, err) : mp_fail_memory(err);
        free(path);
        if (rc != 0)
            break;
        report->shards++;
        report->plain += ckpt.shards[0].size;
        report->stored += ckpt.shards[0].stored;
        mp_compress_sums(&ckpt, report->sums);
        mp_checkpoint_release(&ckpt);
    }
    mp_entries_release(&entries);
    return rc;
}
