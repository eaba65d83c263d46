/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checkpoint/compress.h - safetensors files, compressed and back.
 *
 * The header makes frames of its own and so does each tensor, of MP_FRAME_BYTES of content and
 * less at its end, so that a tensor is read without its neighbours. The bytes depend on the
 * plain file, the level and the version of libzstd, never on threads.
 */
#ifndef MP_CHECKPOINT_COMPRESS_H
#define MP_CHECKPOINT_COMPRESS_H

#include <moepack/store.h>

#include "base/zstd_frames.h"

/* A compressed file that is being written. */
typedef struct mp_compressed {
    int fd;
    const char *path;
    mp_frames frames; /* so far */
} mp_compressed;

/* A stretch of a plain file between whose ends frames are cut: the header, or a tensor. */
typedef struct mp_stretch {
    mp_compressed *to;
    const void *from; /* of whoever reads it */
    uint64_t begin, end;
    bool stored;  /* as it is; set by mp_stretches_look */
    bool huffman; /* at MP_FRAME_HUFFMAN; set by mp_stretches_look */
} mp_stretch;

typedef struct mp_stretches {
    mp_stretch *list; /* those of one file in its order, and the header alone begins at 0 */
    size_t count;
    /* Reads bytes of the plain file of a stretch. */
    int (*read)(const mp_stretch *stretch, uint64_t begin, uint64_t n, void *buffer, mp_error *err);
    bool in_order; /* they can be read in no other */
    int level;     /* not MP_ZSTD_NONE */
} mp_stretches;

/* Finds out by samples which stretches of more than one frame are to be stored as they are, and
 * which are best without matches, where the level is MP_ZSTD_AUTO. */
int mp_stretches_look(const mp_stretches *stretches, const mp_context *context, mp_error *err);

/* Adds the frames of all stretches to their files. Takes about 35 MiB of memory a thread. */
int mp_stretches_compress(const mp_stretches *stretches, const mp_context *context, mp_error *err);

/* Ends the file with its seek table. */
int mp_compressed_end(mp_compressed *file, mp_error *err);

/* Compresses the file `from`, plain or compressed, into `to`, which is replaced; synced.
 * level: not MP_ZSTD_NONE.
 * What can only be read from its beginning is read so. */
int mp_file_compress(const char *from, const char *to, int level, const mp_context *context,
                     mp_error *err);

/* The reverse: the plain file. */
int mp_file_decompress(const char *from, const char *to, const mp_context *context, mp_error *err);

#endif
