/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/zstd_file.h - a compressed file, read as if it were the plain one.
 *
 * Of a file whose frames are small enough any bytes are read by decoding the frames that hold
 * them, and no others; which is every file with a seek table that moepack has written, and any
 * other of which every frame says that it holds at most MP_FRAME_MAX. Others are read from
 * beginning to end (zstd_stream.h).
 */
#ifndef MP_BASE_ZSTD_FILE_H
#define MP_BASE_ZSTD_FILE_H

#include "base/zstd_frames.h"

typedef struct mp_zstd_file {
    int fd;                  /* borrowed */
    const mp_direct *direct; /* borrowed, or null; for what is decoded (direct.h) */
    const char *name;        /* borrowed; for messages */
    uint64_t stored;         /* bytes of the file */
    uint64_t content;        /* bytes of the plain one */
    bool seekable;           /* frames lists all there are */
    const char *kind;        /* of frames, where it is not: " over 16 MiB"; for messages */
    unsigned passes;         /* private: how often reading it has begun */
    mp_frames frames;
} mp_zstd_file;

/* Finds the frames of a file, by its seek table, else by walking through their heads and blocks;
 * nothing is decoded unless a frame does not say what it holds. MP_ERR_INPUT, MP_ERR_UNSUPPORTED
 * (a dictionary), MP_ERR_IO; messages do not name the file. Release file in any case. */
int mp_zstd_file_open(mp_zstd_file *file, int fd, const char *name, mp_error *err);
void mp_zstd_file_release(mp_zstd_file *file);

/* Finds the first frames of a file of `size` bytes, which together hold `content` bytes, with their
 * checksums; what stands behind them is not looked at. MP_ERR_INPUT where no frame ends there, or
 * one has no checksum. Release frames in any case. */
int mp_frames_find_first(mp_frames *frames, int fd, const char *name, uint64_t size,
                         uint64_t content, mp_error *err);

/* That the head of every frame says of its content what the seek table does. */
int mp_zstd_file_check(const mp_zstd_file *file, mp_error *err);

/* ------------------------------------------------------------------------
 * Reading anywhere
 */

/* Decoded frames of several files, for reads that take part of one; all functions are safe to
 * call from several threads. */
typedef struct mp_frame_cache mp_frame_cache;

/* threads: the cache holds a frame of MP_FRAME_MAX for each, or more of smaller ones. Null
 * without memory. */
mp_frame_cache *mp_frame_cache_new(int threads);
void mp_frame_cache_free(mp_frame_cache *cache);

/* Lets files that are not seekable be read too, by one thread from now on, and in ascending order
 * by and large: what lies together may be read back and forth, and what lies apart side by side. */
void mp_frame_cache_read_in_order(mp_frame_cache *cache);

/* Reads content [offset, offset + n), which lies inside the file. Of a file that is not seekable
 * only its beginning, unless it is read in order; else MP_ERR_UNSUPPORTED. */
int mp_zstd_file_read(mp_zstd_file *file, mp_frame_cache *cache, uint64_t offset, uint64_t n,
                      void *buffer, mp_error *err);

/* Drops frames that hold these bytes and no others, here and in the system's cache. */
void mp_zstd_file_forget(const mp_zstd_file *file, mp_frame_cache *cache, uint64_t offset,
                         uint64_t n);

#endif
