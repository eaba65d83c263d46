/* SPDX-License-Identifier: Apache-2.0 */
/* Streams of deltas, decoded piece by piece and applied. A stream is zstd frames that hold one of:
 *
 *   xor        [bytes of the tensor]                      old ^ new
 *   overwrite  u32 count, count u32 positions, count u8   little-endian, positions ascending
 *
 * An overwriting stream has all positions before the first byte that goes there, so it is decoded
 * twice side by side: once for the positions, and once, from behind them, for the bytes.
 *
 * A patch is a row of steps, one for each delta that has the tensor. Every piece of the base goes
 * through all of them before the next one, so a chain costs one pass and no intermediate version.
 * Each step keeps the checksum of what has come out of it: the first that does not fit is to blame.
 * Nothing that a stream claims is believed: counts, positions and lengths are held against the
 * tensor as they come. A patch belongs to one thread; many may scan streams of one tensor, and only
 * ever set flags. */
#include "delta/patch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/zstd_stream.h"
#include "checkpoint/shard.h"
#include "delta/checksum.h"
#include "delta/xor.h"

#define COUNT_BYTES    4
#define POSITION_BYTES 4
#define BATCH          4096u /* positions that are decoded at once */

/* Positions of an overwriting stream, and the bytes that go there. */
typedef struct overwrite {
    mp_zstd_stream *bytes; /* behind the positions */
    uint64_t left;         /* that are not decoded yet */
    uint32_t next, count;  /* in this batch */
    uint64_t total;        /* of them */
    uint64_t least;        /* that the next position may be */
    uint8_t positions[BATCH * POSITION_BYTES];
    uint8_t values[BATCH];
} overwrite;

typedef struct mp_patch_step {
    mp_patch_link link;
    mp_zstd_stream *stream;
    overwrite *over; /* null for xor */
    mp_checksum sum;
} mp_patch_step;

int mp_link_blame(const mp_patch_link *link, mp_error *err)
{
    const mp_checkpoint *ckpt = &link->part->ckpt;
    char part[MP_PART_TEXT];

    return mp_error_prefix(err, "%s: %s%s: tensor \"%s\"", link->version->dir,
                           mp_part_text(link->part, part), ckpt->shards[link->stream->shard].file,
                           link->stream->name);
}

static int read_stored(const void *user, uint64_t at, size_t n, void *buffer, mp_error *err)
{
    const mp_patch_link *link = user;
    const mp_checkpoint *ckpt = &link->part->ckpt;

    return mp_shard_read(&ckpt->shards[link->stream->shard], ckpt->cache, link->stream->offset + at,
                         n, buffer, err);
}

static int open_stream(mp_zstd_stream **stream, const mp_patch_link *link, mp_error *err)
{
    return mp_zstd_stream_open_at(stream, read_stored, link, link->stream->bytes, "stream", err);
}

/* Reads exactly n bytes. */
static int read_whole(mp_zstd_stream *stream, void *buffer, size_t n, const char *what,
                      mp_error *err)
{
    size_t got;
    int rc = mp_zstd_stream_read(stream, buffer, n, &got, err);

    if (rc == 0 && got < n)
        rc = mp_fail(err, MP_ERR_INPUT, "the stream is too short: it ends inside %s", what);
    return rc;
}

static int check_ended(mp_zstd_stream *stream, uint64_t bytes, const char *of_what, mp_error *err)
{
    uint8_t more;
    size_t got;
    int rc = mp_zstd_stream_read(stream, &more, 1, &got, err);

    if (rc == 0 && got > 0)
        rc = mp_fail(err, MP_ERR_INPUT, "the stream is too long: it continues after %" PRIu64 " %s",
                     bytes, of_what);
    return rc;
}

/* ------------------------------------------------------------------------
 * Overwriting
 */

static uint32_t get_u32(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Reads the count, and moves the second stream behind the positions. */
static int begin_overwrite(mp_patch_step *step, mp_error *err)
{
    overwrite *over = step->over = mp_alloc_zeroed(1, sizeof *over);
    uint8_t count[COUNT_BYTES];
    int rc = over ? open_stream(&over->bytes, &step->link, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = read_whole(step->stream, count, sizeof count, "the count", err);
    if (rc != 0)
        return rc;
    /* A count of up to 2^32 - 1, of which nothing is allocated. */
    over->left = over->total = get_u32(count);
    rc = read_whole(over->bytes, count, sizeof count, "the count", err);
    for (uint64_t skip = over->left * POSITION_BYTES; rc == 0 && skip > 0;) {
        size_t n = skip < sizeof over->positions ? (size_t)skip : sizeof over->positions;

        rc = read_whole(over->bytes, over->positions, n, "its positions", err);
        skip -= n;
    }
    return rc;
}

/* Decodes the next positions and bytes, and checks that the positions ascend. */
static int fill_batch(mp_patch_step *step, mp_error *err)
{
    overwrite *over = step->over;
    uint32_t n = over->left < BATCH ? (uint32_t)over->left : BATCH;
    int rc =
        read_whole(step->stream, over->positions, n * (size_t)POSITION_BYTES, "its positions", err);

    if (rc == 0)
        rc = read_whole(over->bytes, over->values, n, "its bytes", err);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        uint64_t position = get_u32(over->positions + (size_t)i * POSITION_BYTES);

        /* Ascending, so that a pass through the tensor meets them in turn, and no byte is written
         * twice. */
        if (position < over->least)
            rc = mp_fail(err, MP_ERR_INPUT,
                         "position %" PRIu64 " is after position %" PRIu64 ": they do not ascend",
                         position, over->least - 1);
        over->least = position + 1;
    }
    over->left -= n;
    over->next = 0;
    over->count = n;
    return rc;
}

/* Overwrites what lies in the tensor's bytes [at, at + n). */
static int overwrite_bytes(mp_patch_step *step, uint8_t *bytes, uint64_t at, size_t n,
                           mp_error *err)
{
    overwrite *over = step->over;
    int rc = 0;

    while (rc == 0) {
        for (; over->next < over->count; over->next++) {
            uint64_t position = get_u32(over->positions + (size_t)over->next * POSITION_BYTES);

            /* Left for the next piece. All below `at` were taken in the pieces before, as positions
             * ascend: the difference below is never negative. */
            if (position >= at + n)
                return 0;
            bytes[position - at] = over->values[over->next];
        }
        if (over->left == 0)
            return 0;
        rc = fill_batch(step, err);
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * One delta
 */

static int begin_step(mp_patch_step *step, const mp_patch_link *link, mp_error *err)
{
    int rc;

    step->link = *link;
    rc = mp_checksum_begin(&step->sum, link->version->terms.checksum, err);
    if (rc == 0)
        rc = open_stream(&step->stream, &step->link, err);
    if (rc == 0 && link->version->terms.encoding == MP_DELTA_OVERWRITE)
        rc = begin_overwrite(step, err);
    return rc;
}

static void release_step(mp_patch_step *step)
{
    mp_checksum_end(&step->sum, NULL);
    mp_zstd_stream_close(step->stream);
    if (step->over)
        mp_zstd_stream_close(step->over->bytes);
    free(step->over);
}

static int take_step(mp_patch_step *step, const mp_patch *patch, uint8_t *bytes, size_t n,
                     uint8_t *scratch, mp_error *err)
{
    size_t got = n;
    int rc;

    if (step->over) {
        rc = overwrite_bytes(step, bytes, patch->at, n, err);
    } else {
        rc = mp_zstd_stream_read(step->stream, scratch, n, &got, err);
        if (rc == 0 && got < n)
            rc = mp_fail(err, MP_ERR_INPUT,
                         "the stream is too short: it holds %" PRIu64 " bytes, the tensor %" PRIu64,
                         patch->at + got, patch->bytes);
        /* Only what came: the rest of scratch is from before. */
        mp_xor_bytes(bytes, scratch, got);
    }
    if (patch->sums)
        mp_checksum_update(&step->sum, bytes, n);
    return rc;
}

/* That nothing is left of the stream when all bytes of the tensor have gone through. */
static int check_step_ended(mp_patch_step *step, uint64_t bytes, mp_error *err)
{
    overwrite *over = step->over;
    int rc;

    if (!over)
        return check_ended(step->stream, bytes, "bytes of the tensor", err);
    /* An empty piece at the end takes no position, but decodes the next one if there is any. */
    rc = overwrite_bytes(step, NULL, bytes, 0, err);
    if (rc == 0 && over->next < over->count)
        rc = mp_fail(err, MP_ERR_INPUT, "position %u is outside the tensor of %" PRIu64 " bytes",
                     get_u32(over->positions + (size_t)over->next * POSITION_BYTES), bytes);
    return rc ? rc : check_ended(over->bytes, over->total, "positions and their bytes", err);
}

static int end_step(mp_patch_step *step, const mp_patch *patch, mp_error *err)
{
    const mp_patch_link *link = &step->link;
    const char *want = link->part->sums[link->stream - link->part->ckpt.tensors];
    char sum[MP_CHECKSUM_TEXT];
    int rc = check_step_ended(step, patch->bytes, err);

    mp_checksum_end(&step->sum, sum);
    /* Ended here; releasing the step must not end it again. */
    step->sum = (mp_checksum){0};
    if (rc == 0 && patch->sums && !mp_checksum_same(link->version->terms.checksum, sum, want))
        rc = mp_fail(err, MP_ERR_CHECK,
                     "the %s is %s, expected %s: it was made from another base, or is damaged",
                     mp_delta_checksum_name(link->version->terms.checksum), sum, want);
    return rc;
}

/* ------------------------------------------------------------------------
 * The chain
 */

int mp_patch_init(mp_patch *patch, uint64_t bytes, const mp_patch_link *links, size_t num_links,
                  bool sums, mp_error *err)
{
    int rc = 0;

    *patch = (mp_patch){
        .bytes = bytes, .sums = sums, .steps = mp_alloc_zeroed(num_links, sizeof *patch->steps)};
    if (!patch->steps)
        return mp_fail_memory(err);
    /* Counted before it begins, so that a step that began half is released. */
    for (size_t i = 0; rc == 0 && i < num_links; i++) {
        patch->culprit = i;
        rc = begin_step(&patch->steps[patch->num_steps++], &links[i], err);
    }
    return rc;
}

void mp_patch_release(mp_patch *patch)
{
    for (size_t i = 0; i < patch->num_steps; i++)
        release_step(&patch->steps[i]);
    free(patch->steps);
    *patch = (mp_patch){0};
}

int mp_patch_next(mp_patch *patch, uint8_t *bytes, size_t n, uint8_t *scratch, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < patch->num_steps; i++) {
        patch->culprit = i;
        rc = take_step(&patch->steps[i], patch, bytes, n, scratch, err);
    }
    patch->at += n;
    return rc;
}

int mp_patch_end(mp_patch *patch, mp_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < patch->num_steps; i++) {
        patch->culprit = i;
        rc = end_step(&patch->steps[i], patch, err);
    }
    return rc;
}

static int drain(mp_patch_step *step, uint8_t *scratch, uint64_t *content, mp_error *err)
{
    overwrite *over = step->over;
    size_t got = MP_PATCH_BYTES;
    int rc = 0;

    /* A short read is the end of the stream. */
    while (!over && rc == 0 && got == MP_PATCH_BYTES) {
        rc = mp_zstd_stream_read(step->stream, scratch, MP_PATCH_BYTES, &got, err);
        *content += got;
    }
    while (over && rc == 0 && over->left > 0)
        rc = fill_batch(step, err);
    if (over && rc == 0)
        rc = check_ended(over->bytes, over->total, "positions and their bytes", err);
    return rc;
}

int mp_patch_check_stream(const mp_patch_link *link, uint8_t *scratch, uint64_t *content,
                          mp_error *err)
{
    mp_patch_step step = {0};
    uint64_t bytes = 0;
    int rc = begin_step(&step, link, err);

    if (rc == 0)
        rc = drain(&step, scratch, &bytes, err);
    if (content)
        *content = bytes;
    release_step(&step);
    return rc;
}

/* Marks slices of the bytes [at, at + n) of an XOR stream. */
static void mark_slices(const uint8_t *x, uint64_t at, size_t n, uint64_t bytes, uint32_t count,
                        bool *slices)
{
    for (size_t done = 0; done < n;) {
        /* Slices beyond the last are of a stream that is too long; applying it will say so. */
        uint64_t slice = (at + done) / bytes, end = (slice + 1) * bytes - at;
        size_t part = end < n ? (size_t)end - done : n - done;

        if (slice < count && mp_count_nonzero(x + done, part) > 0)
            __atomic_store_n(&slices[slice], true, __ATOMIC_RELAXED);
        done += part;
    }
}

int mp_patch_scan(const mp_patch_link *link, uint64_t bytes, uint32_t count, bool *slices,
                  uint8_t *scratch, mp_error *err)
{
    mp_patch_step step = {0};
    uint64_t at = 0;
    size_t got = MP_PATCH_BYTES;
    int rc = bytes > 0 ? begin_step(&step, link, err) : 0;

    while (rc == 0 && bytes > 0 && !step.over && got == MP_PATCH_BYTES) {
        rc = mp_zstd_stream_read(step.stream, scratch, MP_PATCH_BYTES, &got, err);
        if (rc == 0)
            mark_slices(scratch, at, got, bytes, count, slices);
        at += got;
    }
    while (rc == 0 && step.over && step.over->left > 0) {
        rc = fill_batch(&step, err);
        for (uint32_t i = 0; rc == 0 && i < step.over->count; i++) {
            uint64_t slice = get_u32(step.over->positions + (size_t)i * POSITION_BYTES) / bytes;

            if (slice < count)
                __atomic_store_n(&slices[slice], true, __ATOMIC_RELAXED);
        }
    }
    release_step(&step);
    return rc;
}

int mp_link_sum_fits(const mp_patch_link *link, const mp_checkpoint *ckpt, const mp_tensor *tensor,
                     uint8_t *scratch, bool *fits, mp_error *err)
{
    mp_delta_checksum kind = link->version->terms.checksum;
    const char *want = link->part->sums[link->stream - link->part->ckpt.tensors];
    char text[MP_CHECKSUM_TEXT];
    mp_checksum sum;
    int rc = mp_checksum_begin(&sum, kind, err);

    for (uint64_t at = 0; rc == 0 && at < tensor->bytes; at += MP_PATCH_BYTES) {
        uint64_t left = tensor->bytes - at, n = left < MP_PATCH_BYTES ? left : MP_PATCH_BYTES;

        rc = mp_tensor_read(ckpt, tensor, at, n, scratch, err);
        if (rc == 0)
            mp_checksum_update(&sum, scratch, n);
    }
    mp_checksum_end(&sum, text);
    *fits = rc == 0 && mp_checksum_same(kind, text, want);
    return rc;
}
