/* SPDX-License-Identifier: Apache-2.0 */
/* A safetensors file into frames and back.
 *
 * Content goes through in batches: pieces of it are compressed by all threads, then their places
 * in the file are known, and all threads write them. Pieces of a tensor's first 16 MiB are in one
 * batch, for together they say whether the tensor is worth it; where it is not, those that were
 * compressed in vain are stored instead. */
#include "checkpoint/compress.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/zstd_stream.h"
#include "checkpoint/shard.h"

#define LEVEL_OF_AUTO 1
#define TRIAL_BYTES   MP_FRAME_MAX /* of a tensor: these say whether it shrinks */
#define BATCH_PIECES  ((size_t)4096)
#define STREAM_BYTES  ((size_t)1 << 20)

/* A stretch of the file between whose ends frames are cut: the header, or a tensor. */
typedef struct stretch {
    uint64_t begin, end;
    bool settled, stored; /* it is known whether it is stored, and whether */
} stretch;

typedef struct piece {
    stretch *of;
    uint64_t begin; /* in the plain file */
    size_t bytes;
    unsigned char *content, *frame; /* in the batch's buffers */
    size_t frame_bytes;
    uint32_t checksum;
    uint64_t at; /* in the compressed file */
} piece;

typedef struct compression {
    const mp_checkpoint *ckpt; /* of one shard */
    mp_zstd_stream *stream;    /* that it is read from in order; null where it is read anywhere */
    const mp_context *context;
    int level;
    int fd;
    const char *path;

    stretch *stretches;
    size_t num_stretches;
    unsigned char *contents, *frames_buffer;
    uint64_t room; /* of contents */
    piece *pieces; /* [BATCH_PIECES] */
    size_t num_pieces;
    mp_frames frames;
} compression;

/* ------------------------------------------------------------------------
 * What there is to compress
 */

static int stretch_order(const void *a, const void *b)
{
    uint64_t x = ((const stretch *)a)->begin, y = ((const stretch *)b)->begin;

    return (x > y) - (x < y);
}

/* The header, never stored, and tensors that hold anything. */
static int list_stretches(compression *c, mp_error *err)
{
    const mp_checkpoint *ckpt = c->ckpt;

    c->stretches = mp_alloc(ckpt->num_tensors + 1, sizeof *c->stretches);
    if (!c->stretches)
        return mp_fail_memory(err);
    c->stretches[c->num_stretches++] = (stretch){0, ckpt->shards[0].header_bytes, .settled = true};
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];

        if (t->bytes > 0)
            c->stretches[c->num_stretches++] =
                (stretch){t->offset, t->offset + t->bytes, .settled = c->level != MP_ZSTD_AUTO};
    }
    qsort(c->stretches, c->num_stretches, sizeof *c->stretches, stretch_order);
    return 0;
}

static int init(compression *c, mp_error *err)
{
    const mp_shard *shard = &c->ckpt->shards[0];
    int rc = list_stretches(c, err);

    if (rc != 0)
        return rc;
    c->room = (uint64_t)mp_threads(c->context) * MP_FRAME_MAX;
    if (c->room > shard->size && shard->size > 0) /* a batch has room for a trial, or for all */
        c->room = shard->size;
    c->contents = mp_alloc(c->room, 1);
    c->frames_buffer = mp_alloc(mp_frame_room(c->room) + BATCH_PIECES * mp_frame_room(0), 1);
    c->pieces = mp_alloc(BATCH_PIECES, sizeof *c->pieces);
    if (!c->contents || !c->frames_buffer || !c->pieces)
        return mp_fail_memory(err);
    return shard->zstd && !shard->zstd->seekable ? mp_zstd_stream_open(&c->stream, shard->zstd, err)
                                                 : 0;
}

static void release(compression *c)
{
    mp_zstd_stream_close(c->stream);
    mp_frames_release(&c->frames);
    free(c->stretches);
    free(c->contents);
    free(c->frames_buffer);
    free(c->pieces);
}

/* ------------------------------------------------------------------------
 * A batch
 */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Fills a batch with pieces from byte *at of stretch *s on. */
static void make_batch(compression *c, size_t *s, uint64_t *at)
{
    unsigned char *content = c->contents, *frame = c->frames_buffer;
    uint64_t left = c->room;

    c->num_pieces = 0;
    while (*s < c->num_stretches) {
        stretch *of = &c->stretches[*s];
        uint64_t whole = least(of->end - *at, of->settled ? MP_FRAME_BYTES : TRIAL_BYTES);

        if (*at == of->begin && c->num_pieces > 0 &&
            (left < whole || c->num_pieces + TRIAL_BYTES / MP_FRAME_BYTES > BATCH_PIECES))
            return;
        size_t n = (size_t)least(of->end - *at, MP_FRAME_BYTES);
        if (left < n || c->num_pieces == BATCH_PIECES)
            return;
        c->pieces[c->num_pieces++] = (piece){of, *at, n, .content = content, .frame = frame};
        content += n;
        frame += mp_frame_room(n);
        left -= n;
        *at += n;
        if (*at == of->end && ++*s < c->num_stretches)
            *at = c->stretches[*s].begin;
    }
}

static int read_in_order(compression *c, mp_error *err)
{
    for (size_t i = 0; i < c->num_pieces; i++) {
        size_t got;
        int rc =
            mp_zstd_stream_read(c->stream, c->pieces[i].content, c->pieces[i].bytes, &got, err);

        if (rc == 0 && got < c->pieces[i].bytes)
            rc = mp_fail(err, MP_ERR_INPUT, "ends early: its frames declare more than they hold");
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int compress_piece(void *user, uint64_t index, void *scratch, mp_error *err)
{
    compression *c = user;
    piece *p = &c->pieces[index];
    int rc = 0;

    (void)scratch;
    if (!c->stream)
        rc =
            mp_shard_read(&c->ckpt->shards[0], c->ckpt->cache, p->begin, p->bytes, p->content, err);
    if (rc != 0)
        return rc;
    if (p->of->settled && p->of->stored) {
        p->frame_bytes = mp_frame_store(p->content, p->bytes, p->frame, &p->checksum);
        return 0;
    }
    return mp_frame_compress(p->content, p->bytes,
                             c->level == MP_ZSTD_AUTO ? LEVEL_OF_AUTO : c->level, p->frame,
                             &p->frame_bytes, &p->checksum, err);
}

/* Says of stretches that begin in this batch whether they are stored. */
static void settle(compression *c)
{
    for (size_t i = 0; i < c->num_pieces;) {
        stretch *of = c->pieces[i].of;
        uint64_t plain = 0, frames = 0;
        size_t first = i;

        for (; i < c->num_pieces && c->pieces[i].of == of; i++) {
            if (c->pieces[i].begin - of->begin >= TRIAL_BYTES)
                continue;
            plain += c->pieces[i].bytes;
            frames += c->pieces[i].frame_bytes;
        }
        if (of->settled)
            continue;
        of->settled = true;
        of->stored = frames > plain - plain / 10;
        for (size_t k = first; of->stored && k < i; k++)
            c->pieces[k].frame_bytes = 0; /* once more */
    }
}

static int store_piece(void *user, uint64_t index, void *scratch, mp_error *err)
{
    compression *c = user;
    piece *p = &c->pieces[index];

    (void)scratch;
    (void)err;
    if (p->frame_bytes == 0)
        p->frame_bytes = mp_frame_store(p->content, p->bytes, p->frame, &p->checksum);
    return 0;
}

static int write_piece(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const compression *c = user;
    const piece *p = &c->pieces[index];

    (void)scratch;
    return mp_pwrite_all(c->fd, p->frame, p->frame_bytes, p->at, c->path, err);
}

static int run_batch(compression *c, mp_error *err)
{
    mp_frames *frames = &c->frames;
    int rc = c->stream ? read_in_order(c, err) : 0;

    if (rc == 0)
        rc = mp_parallel(c->context, c->num_pieces, 0, compress_piece, c, err);
    if (rc == 0) {
        settle(c);
        rc = mp_parallel(c->context, c->num_pieces, 0, store_piece, c, err);
    }
    for (size_t i = 0; rc == 0 && i < c->num_pieces; i++) {
        piece *p = &c->pieces[i];

        p->at = frames->count > 0 ? frames->list[frames->count].at : 0;
        rc = mp_frames_add(frames, p->frame_bytes, p->bytes, p->checksum, err);
    }
    return rc ? rc : mp_parallel(c->context, c->num_pieces, 0, write_piece, c, err);
}

/* ------------------------------------------------------------------------
 * Whole files
 */

static int write_frames(compression *c, mp_error *err)
{
    unsigned char *table = NULL;
    size_t s = 0, bytes;
    uint64_t at = 0;
    int rc = 0;

    while (rc == 0 && s < c->num_stretches) {
        make_batch(c, &s, &at);
        rc = run_batch(c, err);
    }
    if (rc == 0)
        rc = mp_frames_table(&c->frames, &table, &bytes, err);
    if (rc == 0)
        rc = mp_pwrite_all(c->fd, table, bytes, c->frames.list[c->frames.count].at, c->path, err);
    free(table);
    return rc;
}

/* Opens `to` empty, has it written, and makes it durable. */
static int write_file(const char *to, int (*act)(void *user, int fd, mp_error *err), void *user,
                      mp_error *err)
{
    int fd;
    int rc = mp_open_write(to, &fd, err);

    if (rc != 0)
        return rc;
    rc = mp_file_resize(fd, to, 0, err);
    if (rc == 0)
        rc = act(user, fd, err);
    if (rc == 0)
        rc = mp_file_sync(fd, to, err);
    if (mp_file_close(fd, to, rc ? NULL : err) != 0 && rc == 0)
        rc = MP_ERR_IO;
    return rc;
}

static int compress_into(void *user, int fd, mp_error *err)
{
    compression *c = user;
    int rc = init(c, err);

    c->fd = fd;
    return rc ? rc : write_frames(c, err);
}

int mp_file_compress(const char *from, const char *to, int level, const mp_context *context,
                     mp_error *err)
{
    mp_checkpoint ckpt;
    compression c = {.ckpt = &ckpt, .context = context, .level = level, .path = to};
    int rc = mp_checkpoint_open(&ckpt, from, context, err);

    if (rc != 0)
        return rc;
    rc = write_file(to, compress_into, &c, err);
    release(&c);
    mp_checkpoint_release(&ckpt);
    return rc;
}

typedef struct expansion {
    const mp_shard *shard;
    const mp_context *context;
    int fd;
    const char *path;
} expansion;

static int expand_frame(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const expansion *e = user;
    const mp_shard *shard = e->shard;
    const mp_frame *frame = &shard->zstd->frames.list[index];
    int rc = mp_frame_decode(&shard->zstd->frames, index, shard->fd, shard->file, scratch, err);

    if (rc != 0)
        return mp_error_prefix(err, "%s", shard->file);
    return mp_pwrite_all(e->fd, scratch, frame[1].content - frame->content, frame->content, e->path,
                         err);
}

static int expand_in_order(const expansion *e, mp_error *err)
{
    mp_zstd_stream *stream = NULL;
    void *buffer = mp_alloc(STREAM_BYTES, 1);
    uint64_t at = 0;
    size_t got = STREAM_BYTES;
    int rc = buffer ? mp_zstd_stream_open(&stream, e->shard->zstd, err) : mp_fail_memory(err);

    while (rc == 0 && got == STREAM_BYTES && !mp_cancelled(e->context)) {
        rc = mp_zstd_stream_read(stream, buffer, STREAM_BYTES, &got, err);
        if (rc != 0)
            rc = mp_error_prefix(err, "%s", e->shard->file);
        else
            rc = mp_pwrite_all(e->fd, buffer, got, at, e->path, err);
        at += got;
    }
    if (rc == 0 && mp_cancelled(e->context))
        rc = mp_fail(err, MP_ERR_CANCELLED, "cancelled");
    else if (rc == 0 && at != e->shard->size)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: holds %llu bytes, its frames declare %llu",
                     e->shard->file, (unsigned long long)at, (unsigned long long)e->shard->size);
    mp_zstd_stream_close(stream);
    free(buffer);
    return rc;
}

static int expand_into(void *user, int fd, mp_error *err)
{
    expansion *e = user;
    const mp_frames *frames = &e->shard->zstd->frames;
    uint64_t largest = 0;

    e->fd = fd;
    if (!e->shard->zstd->seekable)
        return expand_in_order(e, err);
    for (size_t i = 0; i < frames->count; i++)
        if (frames->list[i + 1].content - frames->list[i].content > largest)
            largest = frames->list[i + 1].content - frames->list[i].content;
    return mp_parallel(e->context, frames->count, largest, expand_frame, e, err);
}

int mp_file_decompress(const char *from, const char *to, const mp_context *context, mp_error *err)
{
    mp_checkpoint ckpt;
    int rc = mp_checkpoint_open(&ckpt, from, context, err);

    if (rc != 0)
        return rc;
    expansion e = {.shard = &ckpt.shards[0], .context = context, .path = to};
    rc = e.shard->zstd ? write_file(to, expand_into, &e, err) : mp_file_copy(from, to, err);
    mp_checkpoint_release(&ckpt);
    return rc;
}
