/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/zstd_frames.h - the frames of a compressed file, and the table that finds them.
 *
 * A compressed shard is a row of zstd frames, each decoded without the others, and behind them
 * the seek table of zstd's seekable format: a skippable frame that lists what every frame takes
 * and gives. `zstd -dc` passes over the table and gives the plain file.
 *
 * Formats: RFC 8878; contrib/seekable_format/zstd_seekable_compression_format.md of zstd.
 */
#ifndef MP_BASE_ZSTD_FRAMES_H
#define MP_BASE_ZSTD_FRAMES_H

#include <moepack/base.h>

#include "base/direct.h"

#define MP_FRAME_MAGIC 0xFD2FB528u

/* Content of one frame that is decoded by itself, at most; and of those that are written, where
 * a reader wants a few rows and level 1 looks back half a MiB. */
#define MP_FRAME_MAX   ((uint64_t)16 << 20)
#define MP_FRAME_BYTES ((uint64_t)2 << 20)

/* Frames of a file: a list of them takes 24 bytes each, and is made before they are looked at. */
#define MP_FRAMES_MAX ((size_t)1 << 22)

/* How far a frame may look back. */
#define MP_FRAME_WINDOW_MAX ((uint64_t)128 << 20)

/* Where a frame begins. */
typedef struct mp_frame {
    uint64_t at;       /* in the stored file */
    uint64_t content;  /* in the plain one */
    uint32_t checksum; /* low half of XXH64 of its content, where the list has any */
} mp_frame;

/* Frames without gaps; behind the last stands one that begins where it ends. */
typedef struct mp_frames {
    mp_frame *list; /* count + 1 */
    size_t count;
    size_t room; /* private */
    bool checksums;
} mp_frames;

void mp_frames_release(mp_frames *frames);

/* Adds a frame behind the last. MP_ERR_UNSUPPORTED beyond MP_FRAMES_MAX. */
int mp_frames_add(mp_frames *frames, uint64_t stored, uint64_t content, uint32_t checksum,
                  mp_error *err);

/* Where a frame behind the last would begin. */
mp_frame mp_frames_end(const mp_frames *frames);

/* The frame that holds a byte of the content, which is below that of the whole. */
size_t mp_frames_find(const mp_frames *frames, uint64_t content);

/* Reads the seek table at the end of a file of `size` bytes. *found: false, and no error, where
 * there is none. MP_ERR_INPUT for one that does not cover the file or has a frame that takes
 * more than its content can; a frame over MP_FRAME_MAX is listed as any other. MP_ERR_UNSUPPORTED
 * for more than MP_FRAMES_MAX. Release frames in any case. */
int mp_frames_read_table(mp_frames *frames, int fd, const char *path, uint64_t size, bool *found,
                         mp_error *err);

/* The seek table of frames, malloc'ed. */
int mp_frames_table(const mp_frames *frames, unsigned char **table, size_t *bytes, mp_error *err);

/* What a frame's first bytes say. */
typedef struct mp_frame_head {
    unsigned bytes;   /* of the head */
    bool skippable;   /* no content; the frame takes `bytes` and then `content` more */
    bool sized;       /* content is known */
    bool checksum;    /* 4 bytes at its end */
    uint64_t content; /* bytes */
    uint64_t window;
    uint32_t dictionary; /* 0: none */
} mp_frame_head;

#define MP_FRAME_HEAD_MAX 18

/* Parses the head of a frame of which n bytes are there. MP_ERR_INPUT for what is none, is cut
 * off or has a window over the limit; MP_ERR_UNSUPPORTED for a dictionary. */
int mp_frame_head_parse(mp_frame_head *head, const unsigned char *bytes, uint64_t n, mp_error *err);

/* Reads the head of the frame at a place of a file of `size` bytes. */
int mp_frame_head_read(mp_frame_head *head, int fd, const char *path, uint64_t at, uint64_t size,
                       mp_error *err);

/* Decodes frame i into content, which has room for what the list says of it. MP_ERR_INPUT where
 * it holds anything else, or its checksum does not fit; MP_ERR_IO. direct: how the file is read
 * (direct.h), or null. */
int mp_frame_decode(const mp_frames *frames, size_t i, int fd, const mp_direct *direct,
                    const char *path, void *content, mp_error *err);

/* Room for a frame of n bytes of content, however it is written. */
size_t mp_frame_room(size_t n);

/* A level below 1: no matches are looked for, and bytes get Huffman codes. Numbers that follow no
 * order, as scales do, shrink more and faster so than at level 1, which finds many short matches in
 * them by chance. */
#define MP_FRAME_HUFFMAN 0

/* Compresses content into a frame of its own, with content size and checksum.
 * level: of zstd, or MP_FRAME_HUFFMAN. out: mp_frame_room(n) bytes. *checksum: for the list. */
int mp_frame_compress(const void *content, size_t n, int level, void *out, size_t *stored,
                      uint32_t *checksum, mp_error *err);

#endif
