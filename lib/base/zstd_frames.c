/* SPDX-License-Identifier: Apache-2.0 */
/* Heads of frames, the seek table, and encoding and decoding single frames.
 *
 *     frame ... frame                          each can be decoded without the others
 *     5e 2a 4d 18   size                       the table is a skippable frame
 *     stored, content, checksum                4 bytes each; a table may lack checksums
 *     frames   flags (1 byte)   b1 ea 92 8f    its foot, by which it is found from the end
 *
 * The checksum in a zstd frame and the one in the table are the same number: the low half of XXH64
 * of the content. So the last 4 bytes of a frame are compared with the table, and content is hashed
 * only once.
 *
 * A table is not to be trusted. It has to cover the file exactly, no frame may take much more than
 * its content, and decoding has to give exactly the declared size. The list made from it takes at
 * most three times the memory of the table, which is part of the file. There is no state: any
 * number of threads can decode frames of one list. */
#include "base/zstd_frames.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#define ZSTD_STATIC_LINKING_ONLY /* for ZSTD_c_literalCompressionMode */
#include <zstd.h>
#include <zstd_errors.h>

#include "base/bytes.h"
#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"
#include "base/ordered.h"

#define MAGIC_SKIPPABLE 0x184D2A50u /* and the 15 behind it */
#define MAGIC_TABLE     0x184D2A5Eu
#define MAGIC_SEEKABLE  0x8F92EAB1u

#define SKIPPABLE_HEAD 8
#define TABLE_FOOT     9
#define FLAG_CHECKSUMS 0x80u
#define FLAGS_RESERVED 0x7Cu

#define CHECKSUM_BYTES 4

/* What a frame may take beyond twice its content: heads of many small blocks. */
#define STORED_SLACK ((uint64_t)64 << 10)

/* ------------------------------------------------------------------------
 * Lists of frames
 */

void mp_frames_release(mp_frames *frames)
{
    free(frames->list);
    *frames = (mp_frames){0};
}

/* Room for `count` frames and for the end behind the last. */
static int make_room(mp_frames *frames, size_t count, mp_error *err)
{
    if (count < frames->room)
        return 0;
    size_t room = frames->room * 2 > count ? frames->room * 2 : count + 1;
    mp_frame *list =
        room <= SIZE_MAX / sizeof *list ? realloc(frames->list, room * sizeof *list) : NULL;
    if (!list)
        return mp_fail_memory(err);
    if (!frames->list)
        list[0] = (mp_frame){0};
    frames->list = list;
    frames->room = room;
    return 0;
}

int mp_frames_add(mp_frames *frames, uint64_t stored, uint64_t content, uint32_t checksum,
                  mp_error *err)
{
    if (frames->count == MP_FRAMES_MAX)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "more than %zu frames", MP_FRAMES_MAX);
    if (make_room(frames, frames->count + 1, err) != 0)
        return MP_ERR_IO;
    mp_frame *frame = &frames->list[frames->count++];

    frame->checksum = checksum;
    /* Stored bytes are part of a file and cannot overflow. Content is only a claim; half of
     * INT64_MAX leaves room to add an offset. */
    frame[1] = (mp_frame){.at = frame->at + stored};
    if (!mp_add_u64(frame->content, content, &frame[1].content) || frame[1].content > INT64_MAX / 2)
        return mp_fail(err, MP_ERR_INPUT, "frame %zu: content ends past the end of any file",
                       frames->count - 1);
    return 0;
}

mp_frame mp_frames_end(const mp_frames *frames)
{
    return frames->count > 0 ? frames->list[frames->count] : (mp_frame){0};
}

size_t mp_frames_find(const mp_frames *frames, uint64_t content)
{
    return mp_last_begun(&frames->list[0].content, sizeof *frames->list, frames->count, content);
}

/* ------------------------------------------------------------------------
 * The seek table
 */

static int parse_entries(mp_frames *frames, const unsigned char *entries, size_t count,
                         mp_error *err)
{
    unsigned width = frames->checksums ? 12 : 8;

    if (make_room(frames, count, err) != 0)
        return MP_ERR_IO;
    for (size_t i = 0; i < count; i++) {
        const unsigned char *entry = entries + i * width;
        uint64_t stored = mp_get_le(entry, 4), content = mp_get_le(entry + 4, 4);

        if (stored == 0 || content == 0)
            return mp_fail(err, MP_ERR_INPUT, "seek table: frame %zu takes %llu bytes for %llu", i,
                           (unsigned long long)stored, (unsigned long long)content);
        /* zstd stores what does not shrink, so an honest frame hardly grows. This bounds the buffer
         * that a frame is read into by its content. */
        if (stored > 2 * content + STORED_SLACK)
            return mp_fail(err, MP_ERR_INPUT,
                           "seek table: frame %zu takes %llu bytes for %llu of content", i,
                           (unsigned long long)stored, (unsigned long long)content);
        int rc = mp_frames_add(frames, stored, content,
                               frames->checksums ? (uint32_t)mp_get_le(entry + 8, 4) : 0, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* That the skippable frame which ends with the file is the whole table, and that the frames it
 * lists are all that stands before it. */
static int check_table(const mp_frames *frames, const unsigned char *head, uint64_t table,
                       uint64_t size, mp_error *err)
{
    uint64_t end = mp_frames_end(frames).at;

    if (mp_get_le(head, 4) != MAGIC_TABLE || mp_get_le(head + 4, 4) != table - SKIPPABLE_HEAD)
        return mp_fail(err, MP_ERR_INPUT,
                       "seek table: no skippable frame of %llu bytes begins at byte %llu",
                       (unsigned long long)table, (unsigned long long)(size - table));
    if (end != size - table)
        return mp_fail(err, MP_ERR_INPUT,
                       "seek table: its %zu frames take %llu bytes, %llu come before it",
                       frames->count, (unsigned long long)end, (unsigned long long)(size - table));
    return 0;
}

int mp_frames_read_table(mp_frames *frames, int fd, const char *path, uint64_t size, bool *found,
                         mp_error *err)
{
    unsigned char foot[TABLE_FOOT];
    int rc = 0;

    *frames = (mp_frames){0};
    *found = false;
    if (size >= SKIPPABLE_HEAD + TABLE_FOOT)
        rc = mp_pread_all(fd, foot, sizeof foot, size - sizeof foot, path, err);
    if (rc != 0 || size < SKIPPABLE_HEAD + TABLE_FOOT || mp_get_le(foot + 5, 4) != MAGIC_SEEKABLE)
        return rc;
    *found = true;

    if (foot[4] & FLAGS_RESERVED)
        return mp_fail(err, MP_ERR_INPUT, "seek table: reserved bits of its descriptor 0x%02x set",
                       foot[4]);
    frames->checksums = (foot[4] & FLAG_CHECKSUMS) != 0;
    size_t count = (size_t)mp_get_le(foot, 4);
    uint64_t table = SKIPPABLE_HEAD + (uint64_t)count * (frames->checksums ? 12 : 8) + TABLE_FOOT;
    if (count > MP_FRAMES_MAX)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "seek table: %zu frames, more than %zu", count,
                       MP_FRAMES_MAX);
    if (table > size)
        return mp_fail(err, MP_ERR_INPUT,
                       "seek table: %zu frames take %llu bytes, the file has %llu", count,
                       (unsigned long long)table, (unsigned long long)size);
    unsigned char *bytes = mp_alloc(table, 1); /* no more than the file itself */
    if (!bytes)
        return mp_fail_memory(err);
    rc = mp_pread_all(fd, bytes, table, size - table, path, err);
    if (rc == 0)
        rc = parse_entries(frames, bytes + SKIPPABLE_HEAD, count, err);
    if (rc == 0)
        rc = check_table(frames, bytes, table, size, err);
    free(bytes);
    return rc;
}

int mp_frames_table(const mp_frames *frames, unsigned char **table, size_t *bytes, mp_error *err)
{
    *bytes = SKIPPABLE_HEAD + frames->count * 12 + TABLE_FOOT;
    *table = mp_alloc(*bytes, 1);
    if (!*table)
        return mp_fail_memory(err);

    unsigned char *to = *table;
    mp_put_le(to, MAGIC_TABLE, 4);
    mp_put_le(to + 4, *bytes - SKIPPABLE_HEAD, 4);
    to += SKIPPABLE_HEAD;
    for (size_t i = 0; i < frames->count; i++, to += 12) {
        const mp_frame *frame = &frames->list[i];

        mp_put_le(to, frame[1].at - frame->at, 4);
        mp_put_le(to + 4, frame[1].content - frame->content, 4);
        mp_put_le(to + 8, frame->checksum, 4);
    }
    mp_put_le(to, frames->count, 4);
    to[4] = FLAG_CHECKSUMS;
    mp_put_le(to + 5, MAGIC_SEEKABLE, 4);
    return 0;
}

/* ------------------------------------------------------------------------
 * Heads
 */

/* Window descriptor: an exponent above 10, and eighths of the power. */
static uint64_t window_of(unsigned char descriptor)
{
    uint64_t power = (uint64_t)1 << (10 + (descriptor >> 3));

    return power + power / 8 * (descriptor & 7);
}

int mp_frame_head_parse(mp_frame_head *head, const unsigned char *bytes, uint64_t n, mp_error *err)
{
    static const unsigned char size_widths[] = {0, 2, 4, 8}, id_widths[] = {0, 1, 2, 4};

    *head = (mp_frame_head){0};
    if (n < SKIPPABLE_HEAD)
        return mp_fail(err, MP_ERR_INPUT, "truncated after %llu bytes", (unsigned long long)n);
    if ((mp_get_le(bytes, 4) & ~UINT64_C(15)) == MAGIC_SKIPPABLE) {
        *head =
            (mp_frame_head){SKIPPABLE_HEAD, .skippable = true, .content = mp_get_le(bytes + 4, 4)};
        return 0;
    }
    if (mp_get_le(bytes, 4) != MP_FRAME_MAGIC)
        return mp_fail(err, MP_ERR_INPUT, "no zstd frame: it begins with %02x %02x %02x %02x",
                       bytes[0], bytes[1], bytes[2], bytes[3]);

    unsigned descriptor = bytes[4];
    bool whole = (descriptor & 0x20) != 0; /* the window is the content */
    unsigned id = id_widths[descriptor & 3], width = size_widths[descriptor >> 6];
    /* RFC 8878, 3.1.1.1.1.1: a single segment always states its size; code 0 then means one
     * byte. */
    if (whole && width == 0)
        width = 1;
    if (descriptor & 0x08)
        return mp_fail(err, MP_ERR_INPUT, "the reserved bit of its descriptor is set");
    *head = (mp_frame_head){
        .bytes = 5 + !whole + id + width, .sized = width > 0, .checksum = (descriptor & 4) != 0};
    if (n < head->bytes)
        return mp_fail(err, MP_ERR_INPUT, "truncated after %llu bytes", (unsigned long long)n);
    head->dictionary = (uint32_t)mp_get_le(bytes + 5 + !whole, id);
    /* The two-byte form starts at 256, since smaller sizes fit one byte. */
    head->content = mp_get_le(bytes + 5 + !whole + id, width) + (width == 2 ? 256 : 0);
    head->window = whole ? head->content : window_of(bytes[5]);
    if (head->dictionary != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "needs dictionary %u: compress without one",
                       head->dictionary);
    if (head->window > MP_FRAME_WINDOW_MAX)
        return mp_fail(err, MP_ERR_INPUT, "a window of %llu bytes, over the limit of %llu",
                       (unsigned long long)head->window, (unsigned long long)MP_FRAME_WINDOW_MAX);
    return 0;
}

int mp_frame_head_read(mp_frame_head *head, int fd, const char *path, uint64_t at, uint64_t size,
                       mp_error *err)
{
    unsigned char bytes[MP_FRAME_HEAD_MAX];
    uint64_t n = size - at < sizeof bytes ? size - at : sizeof bytes;
    int rc = mp_pread_all(fd, bytes, n, at, path, err);

    return rc ? rc : mp_frame_head_parse(head, bytes, n, err);
}

/* ------------------------------------------------------------------------
 * One frame
 */

/* The frame, the table and the decoder each say how much content there is: all three have to
 * agree. */
static int decode(const mp_frame *frame, bool checksums, const unsigned char *stored, void *content,
                  mp_error *err)
{
    size_t n = (size_t)(frame[1].content - frame->content);
    size_t bytes = (size_t)(frame[1].at - frame->at);
    mp_frame_head head;
    int rc = mp_frame_head_parse(&head, stored, bytes, err);

    if (rc != 0)
        return rc;
    if (head.skippable || (head.sized && head.content != n))
        return mp_fail(err, MP_ERR_INPUT, "declares %llu bytes of content, the seek table %zu",
                       (unsigned long long)(head.skippable ? 0 : head.content), n);
    size_t got = ZSTD_decompress(content, n, stored, bytes);
    if (ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation)
        return mp_fail_memory(err);
    if (ZSTD_isError(got))
        return mp_fail(
            err, MP_ERR_INPUT, "%s",
            ZSTD_getErrorCode(got) == ZSTD_error_checksum_wrong     ? "does not match its checksum"
            : ZSTD_getErrorCode(got) == ZSTD_error_dstSize_tooSmall ? "holds more than is declared"
                                                                    : "damaged");
    if (got != n)
        return mp_fail(err, MP_ERR_INPUT, "holds %zu bytes of content, the seek table says %zu",
                       got, n);
    /* ZSTD_decompress has already checked the frame's own checksum against the content. */
    uint32_t sum = !checksums      ? 0
                   : head.checksum ? (uint32_t)mp_get_le(stored + bytes - CHECKSUM_BYTES, 4)
                                   : (uint32_t)XXH64(content, n, 0);
    if (checksums && sum != frame->checksum)
        return mp_fail(err, MP_ERR_INPUT, "checksum %08x, the seek table says %08x", sum,
                       frame->checksum);
    return 0;
}

int mp_frame_decode(const mp_frames *frames, size_t i, int fd, const mp_direct *direct,
                    const char *path, void *content, mp_error *err)
{
    const mp_frame *frame = &frames->list[i];
    uint64_t bytes = frame[1].at - frame->at;
    unsigned char *stored = mp_alloc(bytes, 1);

    err = MP_NEVER_NULL(err);
    if (!stored)
        return mp_fail_memory(err);
    int rc = mp_read_bulk(fd, direct, stored, bytes, frame->at, path, err);
    /* While this one is decoded the next one is on its way. */
    if (rc == 0 && !direct && i + 1 < frames->count)
        mp_file_ahead(fd, frame[1].at, frame[2].at - frame[1].at);
    if (rc == 0 && decode(frame, frames->checksums, stored, content, err) != 0)
        rc = mp_error_prefix(err, "frame %zu at byte %llu", i, (unsigned long long)frame->at);
    free(stored);
    return rc;
}

/* zstd's bound covers content that it stores raw. Add a head and a checksum for mp_frame_store. */
size_t mp_frame_room(size_t n)
{
    return ZSTD_compressBound(n) + MP_FRAME_HEAD_MAX + CHECKSUM_BYTES;
}

/* The fast strategy goes on by as much as its target length where nothing matches. A library that
 * does not know the last parameter, which may go, leaves bytes as they are then: no content is
 * the better for it, and who tries will see that. */
static void set_huffman(ZSTD_CCtx *context)
{
    ZSTD_CCtx_setParameter(context, ZSTD_c_strategy, ZSTD_fast);
    ZSTD_CCtx_setParameter(context, ZSTD_c_hashLog, ZSTD_HASHLOG_MIN);
    ZSTD_CCtx_setParameter(context, ZSTD_c_minMatch, 7);
    ZSTD_CCtx_setParameter(context, ZSTD_c_targetLength, ZSTD_TARGETLENGTH_MAX);
    ZSTD_CCtx_setParameter(context, ZSTD_c_literalCompressionMode, 1);
}

/* A context per frame costs little next to 2 MiB of content, and keeps frames independent of
 * threads. */
int mp_frame_compress(const void *content, size_t n, int level, void *out, size_t *stored,
                      uint32_t *checksum, mp_error *err)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();

    if (!context)
        return mp_fail_memory(err);
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
    if (level == MP_FRAME_HUFFMAN)
        set_huffman(context);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    *stored = ZSTD_compress2(context, out, mp_frame_room(n), content, n);
    ZSTD_freeCCtx(context);
    if (ZSTD_isError(*stored))
        return mp_fail(err, MP_ERR_IO, "cannot compress: %s", ZSTD_getErrorName(*stored));
    *checksum = (uint32_t)mp_get_le((unsigned char *)out + *stored - CHECKSUM_BYTES, 4);
    return 0;
}
