/* SPDX-License-Identifier: Apache-2.0 */
/* A safetensors file into frames and back.
 *
 *     plain        header | tensor 0              | tensor 1 ...
 *     frames       [    ] | [ 2 MiB ][ 2 MiB ][ ] | [  ] ...
 *
 * Samples decide beforehand which tensors are stored uncompressed. Then content goes through in
 * batches: all threads compress pieces of one batch while writing those of the previous one, whose
 * places in the file are known by then. Content to be stored is read directly into its frame.
 *
 * A piece's place depends on how small everything before it became, so it cannot be written right
 * away. Two batches take turns, and between them places are assigned in the order of the file. So
 * the bytes do not depend on threads, and memory is two batches however large the file. While
 * threads work, each piece belongs to one of them and everything else is only read. */
#include "checkpoint/compress.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/zstd_file.h"
#include "checkpoint/shard.h"

#define LEVEL_OF_AUTO 1
#define BATCH_BYTES   ((uint64_t)8 << 20) /* of a thread */
#define BATCH_PIECES  ((size_t)1024)
#define STREAM_BYTES  ((size_t)1 << 20)

/* Of a tensor's first 16 MiB, a few parts say whether it shrinks. */
#define TRIAL_BYTES  MP_FRAME_MAX
#define SAMPLE_PARTS 8
#define SAMPLE_PART  ((size_t)32 << 10)
#define SAMPLE_BYTES (SAMPLE_PARTS * SAMPLE_PART)

/* A stretch of the file between whose ends frames are cut: the header, or a tensor. */
typedef struct stretch {
    uint64_t begin, end;
    bool stored;
} stretch;

typedef struct piece {
    const stretch *of;
    uint64_t begin; /* in the plain file */
    size_t bytes;
    unsigned char *content, *frame; /* in the batch's buffers */
    size_t frame_bytes;
    uint32_t checksum;
    uint64_t at; /* in the compressed file */
} piece;

typedef struct batch {
    piece *pieces; /* [BATCH_PIECES] */
    size_t count;
    unsigned char *contents, *frames;
} batch;

typedef struct compression {
    const mp_checkpoint *ckpt; /* of one shard */
    bool in_order;             /* which can be read in no other */
    const mp_context *context;
    int level;
    int fd;
    const char *path;

    stretch *stretches;
    size_t num_stretches;
    batch batches[2];
    batch *now, *before; /* that is compressed, and that is written */
    uint64_t room;       /* of content in a batch */
    mp_frames frames;
} compression;

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int read_plain(const compression *c, uint64_t begin, uint64_t n, void *buffer, mp_error *err)
{
    return mp_shard_read(&c->ckpt->shards[0], c->ckpt->cache, begin, n, buffer, err);
}

/* ------------------------------------------------------------------------
 * What there is to compress
 */

static int stretch_order(const void *a, const void *b)
{
    uint64_t x = ((const stretch *)a)->begin, y = ((const stretch *)b)->begin;

    return (x > y) - (x < y);
}

/* The header, and tensors that hold anything. */
static int list_stretches(compression *c, mp_error *err)
{
    const mp_checkpoint *ckpt = c->ckpt;

    c->stretches = mp_alloc(ckpt->num_tensors + 1, sizeof *c->stretches);
    if (!c->stretches)
        return mp_fail_memory(err);
    c->stretches[c->num_stretches++] = (stretch){0, ckpt->shards[0].header_bytes, false};
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];

        if (t->bytes > 0)
            c->stretches[c->num_stretches++] = (stretch){t->offset, t->offset + t->bytes, false};
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
    c->in_order = mp_checkpoint_read_in_order(c->ckpt);
    c->room = least((uint64_t)mp_threads(c->context) * BATCH_BYTES, shard->size);
    for (int i = 0; i < 2; i++) {
        batch *b = &c->batches[i];

        b->contents = mp_alloc(c->room, 1);
        b->frames = mp_alloc(mp_frame_room(c->room) + BATCH_PIECES * mp_frame_room(0), 1);
        b->pieces = mp_alloc(BATCH_PIECES, sizeof *b->pieces);
        if (!b->contents || !b->frames || !b->pieces)
            return mp_fail_memory(err);
    }
    return 0;
}

static void release(compression *c)
{
    mp_frames_release(&c->frames);
    free(c->stretches);
    for (int i = 0; i < 2; i++) {
        free(c->batches[i].contents);
        free(c->batches[i].frames);
        free(c->batches[i].pieces);
    }
}

/* ------------------------------------------------------------------------
 * What is stored as it is
 */

static bool is_worth_it(uint64_t plain, uint64_t compressed)
{
    return compressed <= plain - plain / 10;
}

/* Tensors of a single piece are judged when they are compressed. The samples of the others are
 * spread evenly over the first 16 MiB. Runs in parallel over tensors, each of which only sets its
 * own stretch. */
static int look_at(void *user, uint64_t index, void *scratch, mp_error *err)
{
    compression *c = user;
    stretch *of = &c->stretches[index];
    unsigned char *sample = scratch;
    uint64_t span = least(of->end - of->begin, TRIAL_BYTES) - SAMPLE_PART;
    uint32_t checksum;
    size_t stored;
    int rc = 0;

    if (index == 0 || of->end - of->begin <= MP_FRAME_BYTES)
        return 0;
    for (unsigned i = 0; rc == 0 && i < SAMPLE_PARTS; i++)
        rc = read_plain(c, of->begin + span / (SAMPLE_PARTS - 1) * i, SAMPLE_PART,
                        sample + i * SAMPLE_PART, err);
    if (rc == 0)
        rc = mp_frame_compress(sample, SAMPLE_BYTES, LEVEL_OF_AUTO, sample + SAMPLE_BYTES, &stored,
                               &checksum, err);
    if (rc == 0)
        of->stored = !is_worth_it(SAMPLE_BYTES, stored);
    return rc;
}

static int look_at_all(compression *c, mp_error *err)
{
    const mp_context alone = mp_alone(c->context);

    if (c->level != MP_ZSTD_AUTO)
        return 0;
    return mp_parallel(c->in_order ? &alone : c->context, c->num_stretches,
                       SAMPLE_BYTES + mp_frame_room(SAMPLE_BYTES), look_at, c, err);
}

/* ------------------------------------------------------------------------
 * A batch
 */

/* Fills a batch with pieces from byte *at of stretch *s on. A batch is limited both in bytes and in
 * pieces, since tensors of a few bytes are pieces too. */
static void make_batch(const compression *c, batch *b, size_t *s, uint64_t *at)
{
    unsigned char *content = b->contents, *frame = b->frames;
    uint64_t left = c->room;

    for (b->count = 0; *s < c->num_stretches && b->count < BATCH_PIECES; b->count++) {
        const stretch *of = &c->stretches[*s];
        size_t n = (size_t)least(of->end - *at, MP_FRAME_BYTES);

        if (left < n)
            return;
        b->pieces[b->count] = (piece){of, *at, n, .content = content, .frame = frame};
        content += n;
        frame += mp_frame_room(n);
        left -= n;
        *at += n;
        if (*at == of->end && ++*s < c->num_stretches)
            *at = c->stretches[*s].begin;
    }
}

static int read_piece(const compression *c, const piece *p, mp_error *err)
{
    int rc = 0;

    if (!p->of->stored)
        return read_plain(c, p->begin, p->bytes, p->content, err);
    for (size_t done = 0, i = 0; rc == 0 && done < p->bytes; done += MP_FRAME_BLOCK, i++)
        rc = read_plain(c, p->begin + done, least(p->bytes - done, MP_FRAME_BLOCK),
                        mp_frame_block(p->frame, i), err);
    return rc;
}

static int compress_piece(const compression *c, piece *p, mp_error *err)
{
    /* A tensor that is a single piece, and not the header. */
    bool whole = p->begin == p->of->begin && p->begin + p->bytes == p->of->end && p->begin > 0;
    int level = c->level == MP_ZSTD_AUTO ? LEVEL_OF_AUTO : c->level;
    int rc = c->in_order ? 0 : read_piece(c, p, err);

    if (rc != 0)
        return rc;
    if (p->of->stored)
        return mp_frame_seal(p->frame, p->bytes, &p->frame_bytes, &p->checksum, err);
    rc = mp_frame_compress(p->content, p->bytes, level, p->frame, &p->frame_bytes, &p->checksum,
                           err);
    if (rc == 0 && c->level == MP_ZSTD_AUTO && whole && !is_worth_it(p->bytes, p->frame_bytes))
        rc = mp_frame_store(p->content, p->bytes, p->frame, &p->frame_bytes, &p->checksum, err);
    return rc;
}

/* Writing and compressing take turns: a file is written by one thread at a time. */
static int work_on(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const compression *c = user;
    bool writes = index % 2 == 0;
    const batch *b = writes ? c->before : c->now;
    piece *p = &b->pieces[index / 2];

    (void)scratch;
    /* One of the batches may have fewer pieces, or at the end none. */
    if (index / 2 >= b->count)
        return 0;
    return writes ? mp_pwrite_all(c->fd, p->frame, p->frame_bytes, p->at, c->path, err)
                  : compress_piece(c, p, err);
}

static int run_batch(compression *c, mp_error *err)
{
    const batch *now = c->now;
    mp_frames *frames = &c->frames;
    size_t pairs = now->count > c->before->count ? now->count : c->before->count;
    int rc = 0;

    for (size_t i = 0; c->in_order && rc == 0 && i < now->count; i++)
        rc = read_piece(c, &now->pieces[i], err);
    if (rc == 0)
        rc = mp_parallel(c->context, 2 * pairs, 0, work_on, c, err);
    for (size_t i = 0; rc == 0 && i < now->count; i++) {
        piece *p = &now->pieces[i];

        p->at = frames->count > 0 ? frames->list[frames->count].at : 0;
        rc = mp_frames_add(frames, p->frame_bytes, p->bytes, p->checksum, err);
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * Whole files
 */

static int write_frames(compression *c, mp_error *err)
{
    unsigned char *table = NULL;
    size_t s = 0, bytes;
    uint64_t at = 0;
    int rc = look_at_all(c, err);

    c->now = &c->batches[0];
    c->before = &c->batches[1];
    /* Takes one more round than there are batches: the last only writes. */
    while (rc == 0 && (s < c->num_stretches || c->now->count > 0)) {
        batch *next = c->before;

        c->before = c->now;
        c->now = next;
        make_batch(c, next, &s, &at);
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
    const mp_checkpoint *ckpt; /* of one shard */
    const mp_context *context;
    int fd;
    const char *path;
} expansion;

/* Runs in parallel over frames: the table says where the content of each belongs. */
static int expand_frame(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const expansion *e = user;
    const mp_shard *shard = &e->ckpt->shards[0];
    const mp_frame *frame = &shard->zstd->frames.list[index];
    int rc = mp_frame_decode(&shard->zstd->frames, index, shard->fd, shard->file, scratch, err);

    if (rc != 0)
        return mp_error_prefix(err, "%s", shard->file);
    return mp_pwrite_all(e->fd, scratch, frame[1].content - frame->content, frame->content, e->path,
                         err);
}

/* A piece of a file that can only be read from its beginning: by one thread, piece after piece. */
static int expand_piece(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const expansion *e = user;
    const mp_shard *shard = &e->ckpt->shards[0];
    uint64_t at = index * STREAM_BYTES, n = least(shard->size - at, STREAM_BYTES);
    int rc = mp_shard_read(shard, e->ckpt->cache, at, n, scratch, err);

    if (rc != 0)
        return mp_error_prefix(err, "%s", shard->file);
    return mp_pwrite_all(e->fd, scratch, n, at, e->path, err);
}

static int expand_into(void *user, int fd, mp_error *err)
{
    expansion *e = user;
    const mp_shard *shard = &e->ckpt->shards[0];
    const mp_frames *frames = &shard->zstd->frames;
    const mp_context alone = mp_alone(e->context);
    uint64_t largest = 0;

    e->fd = fd;
    if (mp_checkpoint_read_in_order(e->ckpt))
        return mp_parallel(&alone, mp_ceil_div(shard->size, STREAM_BYTES), STREAM_BYTES,
                           expand_piece, e, err);
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
    expansion e = {.ckpt = &ckpt, .context = context, .path = to};
    rc = ckpt.shards[0].zstd ? write_file(to, expand_into, &e, err) : mp_file_copy(from, to, err);
    mp_checkpoint_release(&ckpt);
    return rc;
}
