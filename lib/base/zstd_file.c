/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed files: finding their frames, and random access through a cache.
 *
 * Frames are found by the seek table or, in files from other tools, by walking from head to head:
 * every block states its length, so nothing has to be decoded. After that the list of frames is all
 * that reading needs, and it never changes.
 *
 * The cache holds decoded frames, at most MP_FRAME_MAX bytes per thread. Rows of a tensor are read
 * in tiles much smaller than a frame, weights and scales in turn; without a cache each tile would
 * decode its frame again. A read that covers a whole frame decodes straight into the caller's
 * buffer.
 *
 * Threads. The lock guards the slots and the clock; frames are decoded without it. The first thread
 * to miss a frame makes a slot and fills it, and others that want the frame wait for `changed`. A
 * thread holds at most one slot, and none while it waits, so somebody can always make progress. */
#include "base/zstd_file.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/zstd_stream.h"

#define BLOCK_HEAD     3
#define BLOCK_RLE      1
#define BLOCK_RESERVED 3
#define CHECKSUM_BYTES 4

/* MP_FRAME_MAX in words. */
#define OVER_MAX " over 16 MiB"
_Static_assert(MP_FRAME_MAX == 16 << 20, "OVER_MAX says another size");

/* Frames of tensors that are read side by side: weights and scales of three matrices. */
#define SLOTS_OF_THREAD 16

/* ------------------------------------------------------------------------
 * Finding frames
 */

/* Sets *end to where the frame ends that begins there, which its blocks say. */
static int walk_frame(const mp_zstd_file *file, const mp_frame_head *head, uint64_t at,
                      uint64_t *end, mp_error *err)
{
    unsigned char bytes[BLOCK_HEAD];
    bool last = false;

    *end = at + head->bytes;
    while (!last && !head->skippable) {
        if (*end > file->stored || file->stored - *end < BLOCK_HEAD)
            return mp_fail(err, MP_ERR_INPUT, "truncated: the file ends inside it");
        int rc = mp_pread_all(file->fd, bytes, BLOCK_HEAD, *end, file->name, err);
        if (rc != 0)
            return rc;
        uint32_t block = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16;
        unsigned type = block >> 1 & 3;
        if (type == BLOCK_RESERVED)
            return mp_fail(err, MP_ERR_INPUT, "a block of no known type at byte %llu",
                           (unsigned long long)*end);
        /* RFC 8878, 3.1.1.2: bit 0 marks the last block, bits 1-2 give the type, and the rest is
         * the size. For a run of one byte that is the size of its content. */
        *end += BLOCK_HEAD + (type == BLOCK_RLE ? 1 : block >> 3);
        last = block & 1;
    }
    *end += head->skippable ? head->content : head->checksum ? CHECKSUM_BYTES : 0;
    if (*end > file->stored)
        return mp_fail(err, MP_ERR_INPUT, "truncated: the file ends inside it");
    return 0;
}

/* Decodes all of a file to learn how much it is. */
static int count_content(mp_zstd_file *file, mp_error *err)
{
    const size_t room = ZSTD_DStreamOutSize();
    mp_zstd_stream *stream = NULL;
    void *buffer = mp_alloc(room, 1);
    size_t got = room;
    int rc = buffer ? mp_zstd_stream_open(&stream, file, err) : mp_fail_memory(err);

    for (file->content = 0; rc == 0 && got == room; file->content += rc == 0 ? got : 0)
        rc = mp_zstd_stream_read(stream, buffer, room, &got, err);
    mp_zstd_stream_close(stream);
    free(buffer);
    return rc;
}

/* What keeps a frame that takes `stored` bytes from being decoded by itself; null: nothing. */
static const char *kind_of(const mp_frame_head *head, uint64_t stored)
{
    if (head->skippable)
        return ", some of them skippable";
    if (!head->sized)
        return " that do not say what they hold";
    if (head->content > MP_FRAME_MAX)
        return OVER_MAX;
    if (head->content == 0)
        return ", some of them empty";
    /* Bounded too, since a frame is read whole to be decoded. */
    return stored > 2 * MP_FRAME_MAX ? " that take over 32 MiB" : NULL;
}

/* Finds the frames where no table lists them. A file is seekable if every frame has content and
 * says how much. A skippable frame has none, and looking it up by content could not tell it from
 * its neighbour, so a file with one is read in order. */
static int walk_frames(mp_zstd_file *file, mp_error *err)
{
    mp_frames *frames = &file->frames;
    uint64_t at = 0, end;
    bool sized = true;
    mp_frame_head head;

    for (size_t i = 0; at < file->stored; i++, at = end) {
        int rc = mp_frame_head_read(&head, file->fd, file->name, at, file->stored, err);

        if (rc == 0)
            rc = walk_frame(file, &head, at, &end, err);
        if (rc != 0)
            return mp_error_prefix(err, "frame %zu at byte %llu", i, (unsigned long long)at);
        sized &= head.skippable || head.sized;
        if (!file->kind)
            file->kind = kind_of(&head, end - at);
        uint64_t content = head.skippable || !head.sized ? 0 : head.content;
        if (mp_frames_add(frames, end - at, content, 0, err) != 0)
            return err->code;
    }
    if (frames->count == 0)
        return mp_fail(err, MP_ERR_INPUT, "file of 0 bytes holds no zstd frame");
    file->seekable = !file->kind;
    file->content = frames->list[frames->count].content;
    /* Frames written by `zstd` to a pipe do not state their content size. */
    return sized ? 0 : count_content(file, err);
}

int mp_frames_find_first(mp_frames *frames, int fd, const char *name, uint64_t size,
                         uint64_t content, mp_error *err)
{
    const mp_zstd_file file = {.fd = fd, .name = name, .stored = size};
    unsigned char sum[CHECKSUM_BYTES];
    mp_frame_head head;
    uint64_t end = 0;

    *frames = (mp_frames){0};
    for (mp_frame last = {0}; last.content < content; last = mp_frames_end(frames)) {
        int rc = mp_frame_head_read(&head, fd, name, last.at, size, err);

        if (rc == 0)
            rc = walk_frame(&file, &head, last.at, &end, err);
        if (rc == 0 && (!head.sized || !head.checksum || head.content > content - last.content))
            rc = mp_fail(err, MP_ERR_INPUT, "not one of those that make %llu bytes",
                         (unsigned long long)content);
        if (rc == 0)
            rc = mp_pread_all(fd, sum, sizeof sum, end - sizeof sum, name, err);
        if (rc == 0)
            rc = mp_frames_add(frames, end - last.at, head.content,
                               (uint32_t)mp_get_le(sum, sizeof sum), err);
        if (rc != 0)
            return mp_error_prefix(err, "frame at byte %llu", (unsigned long long)last.at);
    }
    return 0;
}

int mp_zstd_file_open(mp_zstd_file *file, int fd, const char *name, mp_error *err)
{
    bool found;

    err = MP_NEVER_NULL(err);
    *file = (mp_zstd_file){.fd = fd, .name = name};
    int rc = mp_file_size(fd, name, &file->stored, err);
    if (rc == 0)
        rc = mp_frames_read_table(&file->frames, fd, name, file->stored, &found, err);
    if (rc != 0)
        return rc;
    if (!found)
        return walk_frames(file, err);
    const mp_frames *frames = &file->frames;
    for (size_t i = 0; i < frames->count; i++)
        if (frames->list[i + 1].content - frames->list[i].content > MP_FRAME_MAX)
            file->kind = OVER_MAX;
    file->seekable = !file->kind;
    file->content = mp_frames_end(frames).content;
    return 0;
}

void mp_zstd_file_release(mp_zstd_file *file)
{
    mp_frames_release(&file->frames);
}

/* The table could claim sizes that the frames do not have. Readers would notice only frame by
 * frame, too late for whoever trusted the total. */
int mp_zstd_file_check(const mp_zstd_file *file, mp_error *err)
{
    const mp_frames *frames = &file->frames;
    mp_frame_head head;

    err = MP_NEVER_NULL(err);
    for (size_t i = 0; i < frames->count; i++) {
        const mp_frame *frame = &frames->list[i];
        uint64_t content = frame[1].content - frame->content;
        int rc = mp_frame_head_read(&head, file->fd, file->name, frame->at, frame[1].at, err);

        if (rc == 0 && content > 0 && (head.skippable || (head.sized && head.content != content)))
            rc = mp_fail(err, MP_ERR_INPUT, "declares %llu bytes of content, the seek table %llu",
                         (unsigned long long)(head.skippable ? 0 : head.content),
                         (unsigned long long)content);
        if (rc != 0)
            return mp_error_prefix(err, "frame %zu at byte %llu", i, (unsigned long long)frame->at);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The cache
 */

typedef struct slot {
    const mp_zstd_file *file; /* null: free */
    size_t frame;
    unsigned char *content;
    uint64_t bytes;
    unsigned users; /* threads that decode it or copy from it */
    bool ready;
    uint64_t used; /* when last, by the cache's clock */
} slot;

struct mp_frame_cache {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool in_order;         /* files that are not seekable are read too */
    mp_zstd_passes passes; /* of these */
    uint64_t bytes, limit; /* of content */
    uint64_t clock;
    size_t num_slots;
    slot slots[];
};

mp_frame_cache *mp_frame_cache_new(int threads)
{
    size_t slots = (size_t)threads * SLOTS_OF_THREAD;
    mp_frame_cache *cache = mp_alloc_zeroed(1, sizeof *cache + slots * sizeof(slot));

    if (!cache)
        return NULL;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->changed, NULL);
    cache->limit = (uint64_t)threads * MP_FRAME_MAX;
    cache->num_slots = slots;
    return cache;
}

static void drop(mp_frame_cache *cache, slot *s)
{
    cache->bytes -= s->bytes;
    free(s->content);
    *s = (slot){0};
}

void mp_frame_cache_free(mp_frame_cache *cache)
{
    if (!cache)
        return;
    for (size_t i = 0; i < cache->num_slots; i++)
        free(cache->slots[i].content);
    mp_zstd_passes_release(&cache->passes);
    pthread_mutex_destroy(&cache->lock);
    pthread_cond_destroy(&cache->changed);
    free(cache);
}

/* There are sixteen slots per thread: scanning them is nothing next to decoding a frame. */
static slot *find_slot(mp_frame_cache *cache, const mp_zstd_file *file, size_t frame)
{
    for (size_t i = 0; i < cache->num_slots; i++)
        if (cache->slots[i].file == file && cache->slots[i].frame == frame)
            return &cache->slots[i];
    return NULL;
}

/* A free slot with room for so many bytes; what was used longest ago goes first. Null where all
 * are in use. */
static slot *make_slot(mp_frame_cache *cache, uint64_t bytes)
{
    for (;;) {
        slot *unused = NULL, *oldest = NULL;

        for (size_t i = 0; i < cache->num_slots; i++) {
            slot *s = &cache->slots[i];

            if (!s->file)
                unused = s;
            else if (s->users == 0 && (!oldest || s->used < oldest->used))
                oldest = s;
        }
        /* Keep dropping until there is room. A frame is never larger than one thread's share. */
        if (unused && cache->bytes + bytes <= cache->limit)
            return unused;
        if (!oldest)
            return NULL;
        drop(cache, oldest);
    }
}

/* Takes a frame for use, by finding it, or by making a slot for it, which this thread has to fill
 * then: nobody else touches it before it is given. */
static slot *take(mp_frame_cache *cache, const mp_zstd_file *file, size_t frame, bool *fill)
{
    const mp_frame *at = &file->frames.list[frame];
    uint64_t bytes = at[1].content - at->content;
    slot *s;

    pthread_mutex_lock(&cache->lock);
    for (;;) {
        s = find_slot(cache, file, frame);
        if (s && s->ready)
            break;
        if (!s && (s = make_slot(cache, bytes)) != NULL) {
            *s = (slot){.file = file, .frame = frame, .bytes = bytes};
            cache->bytes += bytes;
            break;
        }
        /* Either somebody is filling this frame or all slots are in use. In both cases a running
         * thread will give a slot back. */
        pthread_cond_wait(&cache->changed, &cache->lock);
    }
    *fill = !s->ready;
    s->users++;
    s->used = ++cache->clock;
    pthread_mutex_unlock(&cache->lock);
    return s;
}

/* Ends the use of a slot; good: its content is whole. */
static void give(mp_frame_cache *cache, slot *s, bool good)
{
    pthread_mutex_lock(&cache->lock);
    s->users--;
    /* Drop a frame that failed, so that the next thread to want it fails with an error of its
     * own. */
    s->ready = good;
    if (!good)
        drop(cache, s);
    pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
}

static int decode(const mp_zstd_file *file, size_t frame, void *content, mp_error *err)
{
    return mp_frame_decode(&file->frames, frame, file->fd, file->direct, file->name, content, err);
}

/* Copy while holding the slot: nobody drops it until it is given back. */
static int read_part(const mp_zstd_file *file, mp_frame_cache *cache, size_t frame, uint64_t begin,
                     uint64_t n, void *buffer, mp_error *err)
{
    bool fill;
    slot *s = take(cache, file, frame, &fill);
    int rc = 0;

    if (fill) {
        s->content = mp_alloc(s->bytes, 1);
        rc = s->content ? decode(file, frame, s->content, err) : mp_fail_memory(err);
    }
    if (rc == 0)
        memcpy(buffer, s->content + begin, n);
    give(cache, s, rc == 0);
    return rc;
}

void mp_frame_cache_read_in_order(mp_frame_cache *cache)
{
    cache->in_order = true;
}

/* Of a file that is not seekable: its beginning, or anything where all is read in order. */
static int read_in_order(mp_zstd_file *file, mp_frame_cache *cache, uint64_t offset, uint64_t n,
                         void *buffer, mp_error *err)
{
    mp_zstd_passes first = {0};
    int rc;

    if (cache && cache->in_order) {
        pthread_mutex_lock(&cache->lock);
        /* The header promises a single reader, so the lock costs nothing here. */
        rc = mp_zstd_passes_read(&cache->passes, file, offset, n, buffer, err);
        pthread_mutex_unlock(&cache->lock);
        return rc;
    }
    if (offset != 0)
        return mp_zstd_refuse_jump(file, err);
    rc = mp_zstd_passes_read(&first, file, 0, n, buffer, err);
    mp_zstd_passes_release(&first);
    file->passes = 0; /* the header does not count */
    return rc;
}

int mp_zstd_file_read(mp_zstd_file *file, mp_frame_cache *cache, uint64_t offset, uint64_t n,
                      void *buffer, mp_error *err)
{
    const mp_frame *list = file->frames.list;
    unsigned char *to = buffer;
    int rc = 0;

    if (n == 0)
        return 0;
    if (!file->seekable)
        return read_in_order(file, cache, offset, n, buffer, err);
    for (size_t i = mp_frames_find(&file->frames, offset); n > 0 && rc == 0; i++) {
        uint64_t begin = offset - list[i].content, left = list[i + 1].content - offset;
        uint64_t part = n < left ? n : left;

        if (begin == 0 && part == left)
            rc = decode(file, i, to, err);
        else
            rc = read_part(file, cache, i, begin, part, to, err);
        to += part;
        offset += part;
        n -= part;
    }
    return rc;
}

void mp_zstd_file_forget(const mp_zstd_file *file, mp_frame_cache *cache, uint64_t offset,
                         uint64_t n)
{
    const mp_frame *list = file->frames.list;

    if (!file->seekable || n == 0)
        return;
    size_t first = mp_frames_find(&file->frames, offset);
    size_t end = mp_frames_find(&file->frames, offset + n - 1);
    /* Only whole frames: the rest of those at the edges belongs to others. */
    first += list[first].content < offset;
    end += list[end + 1].content == offset + n;
    if (first >= end)
        return;
    pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < cache->num_slots; i++) {
        slot *s = &cache->slots[i];

        if (s->file == file && s->frame >= first && s->frame < end && s->users == 0)
            drop(cache, s);
    }
    pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
    mp_file_forget(file->fd, list[first].at, list[end].at - list[first].at);
}
