/* SPDX-License-Identifier: Apache-2.0 */
/* base/zstd_stream.h - reading compressed files from beginning to end. */
#ifndef MP_BASE_ZSTD_STREAM_H
#define MP_BASE_ZSTD_STREAM_H

#include "base/zstd_file.h"

typedef struct mp_zstd_stream mp_zstd_stream;

/* Where stored bytes come from: reads n of them from `at` on. */
typedef int mp_zstd_source(const void *user, uint64_t at, size_t n, void *buffer, mp_error *err);

int mp_zstd_stream_open(mp_zstd_stream **stream, const mp_zstd_file *file, mp_error *err);
/* The same of `stored` bytes of any source. whole: what messages call it; static. Close stream in
 * any case. */
int mp_zstd_stream_open_at(mp_zstd_stream **stream, mp_zstd_source *read, const void *user,
                           uint64_t stored, const char *whole, mp_error *err);
void mp_zstd_stream_close(mp_zstd_stream *stream);

/* The next bytes of the content; *got is less than n at its end only. */
int mp_zstd_stream_read(mp_zstd_stream *stream, void *buffer, size_t n, size_t *got, mp_error *err);

/* ------------------------------------------------------------------------
 * Passes
 */

/* Streams that stand where they were last read from; all zero at first. For one thread. */
typedef struct mp_zstd_pass {
    const mp_zstd_file *file; /* null: free */
    mp_zstd_stream *stream;
    unsigned char *window; /* content from `begin` on, as far as it is decoded */
    uint64_t begin;
    size_t have;
    uint64_t used; /* when last, by the clock */
} mp_zstd_pass;

/* That are open at a time, and that one file is worth. */
#define MP_ZSTD_PASSES 8

typedef struct mp_zstd_passes {
    mp_zstd_pass list[MP_ZSTD_PASSES];
    uint64_t clock;
} mp_zstd_passes;

void mp_zstd_passes_release(mp_zstd_passes *passes);

/* Reads content, which lies inside the file. MP_ERR_UNSUPPORTED for what lies before all passes
 * when the file has had MP_ZSTD_PASSES of them; MP_ERR_INPUT, MP_ERR_IO. */
int mp_zstd_passes_read(mp_zstd_passes *passes, mp_zstd_file *file, uint64_t offset, uint64_t n,
                        void *buffer, mp_error *err);

/* Refuses to read a file that is not seekable in another order. */
int mp_zstd_refuse_jump(const mp_zstd_file *file, mp_error *err);

#endif
