/* SPDX-License-Identifier: Apache-2.0 */
/* Safetensors files into frames and back.
 *
 *     plain        header | tensor 0              | tensor 1 ...
 *     frames       [    ] | [ 2 MiB ][ 2 MiB ][ ] | [  ] ...
 *
 * Samples decide beforehand which tensors are stored uncompressed. Then content goes through in
 * batches: all threads compress pieces of one batch while writing those of the previous one, whose
 * places in their files are known by then. Content to be stored is read directly into its frame.
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
#include "base/zstd_raw.h"
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

/* Matches are left out where that gains this part: a sample knows of near ones only. */
#define HUFFMAN_GAIN 32

typedef struct piece {
    const mp_stretch *of;
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
    const mp_stretches *stretches;
    const mp_context *context;
    batch batches[2];
    batch *now, *before; /* that is compressed, and that is written */
    uint64_t room;       /* of content in a batch */
} compression;

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
    const mp_stretches *all = user;
    mp_stretch *of = &all->list[index];
    unsigned char *sample = scratch;
    uint64_t span = mp_min_u64(of->end - of->begin, TRIAL_BYTES) - SAMPLE_PART;
    unsigned char *out = sample + SAMPLE_BYTES;
    uint32_t checksum;
    size_t usual, huffman;
    int rc = 0;

    if (of->begin == 0 || of->end - of->begin <= MP_FRAME_BYTES)
        return 0;
    for (unsigned i = 0; rc == 0 && i < SAMPLE_PARTS; i++)
        rc = all->read(of, of->begin + span / (SAMPLE_PARTS - 1) * i, SAMPLE_PART,
                       sample + i * SAMPLE_PART, err);
    if (rc == 0)
        rc = mp_frame_compress(sample, SAMPLE_BYTES, LEVEL_OF_AUTO, out, &usual, &checksum, err);
    if (rc == 0)
        rc = mp_frame_compress(sample, SAMPLE_BYTES, MP_FRAME_HUFFMAN, out, &huffman, &checksum,
                               err);
    if (rc != 0)
        return rc;
    of->huffman = huffman < usual - usual / HUFFMAN_GAIN;
    of->stored = !is_worth_it(SAMPLE_BYTES, mp_min_u64(usual, huffman));
    return 0;
}

int mp_stretches_look(const mp_stretches *stretches, const mp_context *context, mp_error *err)
{
    const mp_context alone = mp_alone(context);

    if (stretches->level != MP_ZSTD_AUTO)
        return 0;
    return mp_parallel(stretches->in_order ? &alone : context, stretches->count,
                       SAMPLE_BYTES + mp_frame_room(SAMPLE_BYTES), look_at, (void *)stretches, err);
}

/* ------------------------------------------------------------------------
 * A batch
 */

/* Fills a batch with pieces from byte *at of stretch *s on. A batch is limited both in bytes and in
 * pieces, since tensors of a few bytes are pieces too. */
static void make_batch(const compression *c, batch *b, size_t *s, uint64_t *at)
{
    const mp_stretches *all = c->stretches;
    unsigned char *content = b->contents, *frame = b->frames;
    uint64_t left = c->room;

    for (b->count = 0; *s < all->count && b->count < BATCH_PIECES; b->count++) {
        const mp_stretch *of = &all->list[*s];
        size_t n = (size_t)mp_min_u64(of->end - *at, MP_FRAME_BYTES);

        if (left < n)
            return;
        b->pieces[b->count] = (piece){of, *at, n, .content = content, .frame = frame};
        content += n;
        frame += mp_frame_room(n);
        left -= n;
        *at += n;
        if (*at == of->end && ++*s < all->count)
            *at = all->list[*s].begin;
    }
}

static int read_piece(const compression *c, const piece *p, mp_error *err)
{
    const mp_stretches *all = c->stretches;
    int rc = 0;

    if (!p->of->stored)
        return all->read(p->of, p->begin, p->bytes, p->content, err);
    for (size_t done = 0, i = 0; rc == 0 && done < p->bytes; done += MP_FRAME_BLOCK, i++)
        rc = all->read(p->of, p->begin + done, mp_min_u64(p->bytes - done, MP_FRAME_BLOCK),
                       mp_frame_block(p->frame, i), err);
    return rc;
}

static int compress_piece(const compression *c, piece *p, mp_error *err)
{
    /* A tensor that is a single piece, and not the header. */
    bool whole = p->begin == p->of->begin && p->begin + p->bytes == p->of->end && p->begin > 0;
    bool is_auto = c->stretches->level == MP_ZSTD_AUTO;
    int level = p->of->huffman ? MP_FRAME_HUFFMAN : is_auto ? LEVEL_OF_AUTO : c->stretches->level;
    int rc = c->stretches->in_order ? 0 : read_piece(c, p, err);

    if (rc != 0)
        return rc;
    if (p->of->stored)
        return mp_frame_seal(p->frame, p->bytes, &p->frame_bytes, &p->checksum, err);
    rc = mp_frame_compress(p->content, p->bytes, level, p->frame, &p->frame_bytes, &p->checksum,
                           err);
    if (rc == 0 && is_auto && whole && !is_worth_it(p->bytes, p->frame_bytes))
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
    return writes
               ? mp_pwrite_all(p->of->to->fd, p->frame, p->frame_bytes, p->at, p->of->to->path, err)
               : compress_piece(c, p, err);
}

static int run_batch(compression *c, mp_error *err)
{
    const batch *now = c->now;
    size_t pairs = now->count > c->before->count ? now->count : c->before->count;
    int rc = 0;

    for (size_t i = 0; c->stretches->in_order && rc == 0 && i < now->count; i++)
        rc = read_piece(c, &now->pieces[i], err);
    if (rc == 0)
        rc = mp_parallel(c->context, 2 * pairs, 0, work_on, c, err);
    for (size_t i = 0; rc == 0 && i < now->count; i++) {
        piece *p = &now->pieces[i];
        mp_frames *frames = &p->of->to->frames;

        p->at = mp_frames_end(frames).at;
        rc = mp_frames_add(frames, p->frame_bytes, p->bytes, p->checksum, err);
    }
    return rc;
}

static int make_batches(compression *c, mp_error *err)
{
    uint64_t all = 0;

    for (size_t i = 0; i < c->stretches->count; i++)
        all += c->stretches->list[i].end - c->stretches->list[i].begin;
    c->room = mp_min_u64((uint64_t)mp_threads(c->context) * BATCH_BYTES, all);
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

int mp_stretches_compress(const mp_stretches *stretches, const mp_context *context, mp_error *err)
{
    compression c = {.stretches = stretches, .context = context};
    size_t s = 0;
    uint64_t at = stretches->count > 0 ? stretches->list[0].begin : 0;
    int rc = make_batches(&c, err);

    c.now = &c.batches[0];
    c.before = &c.batches[1];
    /* Takes one more round than there are batches: the last only writes. */
    while (rc == 0 && (s < stretches->count || c.now->count > 0)) {
        batch *next = c.before;

        c.before = c.now;
        c.now = next;
        make_batch(&c, next, &s, &at);
        rc = run_batch(&c, err);
    }
    for (int i = 0; i < 2; i++) {
        free(c.batches[i].contents);
        free(c.batches[i].frames);
        free(c.batches[i].pieces);
    }
    return rc;
}

/* ------------------------------------------------------------------------
 * Whole files
 */

int mp_compressed_end(mp_compressed *file, mp_error *err)
{
    uint64_t end = mp_frames_end(&file->frames).at;
    unsigned char *table;
    size_t bytes;
    int rc = mp_frames_table(&file->frames, &table, &bytes, err);

    if (rc == 0)
        rc = mp_pwrite_all(file->fd, table, bytes, end, file->path, err);
    if (rc == 0)
        rc = mp_file_resize(file->fd, file->path, end + bytes, err);
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

/* A file that is compressed whole. */
typedef struct compression_of {
    const mp_checkpoint *ckpt; /* of one shard */
    int level;
    const char *path;
    const mp_context *context;
} compression_of;

static int stretch_order(const void *a, const void *b)
{
    uint64_t x = ((const mp_stretch *)a)->begin, y = ((const mp_stretch *)b)->begin;

    return (x > y) - (x < y);
}

/* The header, and tensors that hold anything. */
static int list_stretches(const mp_checkpoint *ckpt, mp_compressed *to, mp_stretches *stretches,
                          mp_error *err)
{
    mp_stretch *list = mp_alloc(ckpt->num_tensors + 1, sizeof *list);

    stretches->list = list;
    if (!list)
        return mp_fail_memory(err);
    list[stretches->count++] =
        (mp_stretch){.to = to, .from = ckpt, .end = ckpt->shards[0].header_bytes};
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];

        if (t->bytes > 0)
            list[stretches->count++] = (mp_stretch){
                .to = to, .from = ckpt, .begin = t->offset, .end = t->offset + t->bytes};
    }
    qsort(list, stretches->count, sizeof *list, stretch_order);
    return 0;
}

static int read_shard(const mp_stretch *stretch, uint64_t begin, uint64_t n, void *buffer,
                      mp_error *err)
{
    const mp_checkpoint *ckpt = stretch->from;
    const mp_shard *shard = &ckpt->shards[0];
    int rc = mp_shard_read(shard, ckpt->cache, begin, n, buffer, err);

    if (rc == 0 && !shard->zstd && !shard->direct)
        mp_file_read_on(shard->fd, 0, begin, n, shard->size);
    return rc;
}

static int compress_into(void *user, int fd, mp_error *err)
{
    const compression_of *c = user;
    mp_compressed to = {.fd = fd, .path = c->path};
    mp_stretches stretches = {.read = read_shard, .level = c->level};
    int rc = list_stretches(c->ckpt, &to, &stretches, err);

    stretches.in_order = mp_checkpoint_read_in_order(c->ckpt);
    if (rc == 0)
        rc = mp_stretches_look(&stretches, c->context, err);
    if (rc == 0)
        rc = mp_stretches_compress(&stretches, c->context, err);
    if (rc == 0)
        rc = mp_compressed_end(&to, err);
    mp_frames_release(&to.frames);
    free(stretches.list);
    return rc;
}

int mp_file_compress(const char *from, const char *to, int level, const mp_context *context,
                     mp_error *err)
{
    mp_checkpoint ckpt;
    compression_of c = {&ckpt, level, to, context};
    int rc = mp_checkpoint_open(&ckpt, from, context, err);

    if (rc != 0)
        return rc;
    rc = write_file(to, compress_into, &c, err);
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
    int rc = mp_frame_decode(&shard->zstd->frames, index, shard->fd, shard->direct, shard->file,
                             scratch, err);

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
    uint64_t at = index * STREAM_BYTES, n = mp_min_u64(shard->size - at, STREAM_BYTES);
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
