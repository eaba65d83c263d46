/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delta/spool.h - streams of a delta while their sizes are not known yet.
 *
 * How large a stream will be is seen when it is compressed, and only then can the header in front
 * of it be written. So streams first go to a file without a name beside OUT: each to a place of its
 * own with room for the worst case, which takes no space until it is written. Where a stream lies
 * there does not matter for what is made of it.
 */
#ifndef MP_DELTA_SPOOL_H
#define MP_DELTA_SPOOL_H

#include "delta/checksum.h"
#include "delta/version.h"

/* A tensor of the delta that is written. */
typedef struct mp_delta_item {
    const char *name;
    const mp_tensor *from, *to; /* of fold: null, and any of the streams */
    size_t part;
    uint64_t bytes;   /* of the tensor */
    uint64_t changed; /* bytes that differ; 0: the tensor is left out */
    uint64_t place;   /* of its stream in the spool */
    uint64_t room;    /* there */
    uint64_t stored;  /* bytes of the stream */
    char sum[MP_CHECKSUM_TEXT];
} mp_delta_item;

typedef struct mp_spool {
    int fd;
    char *path; /* of the directory that it is in, for messages */
} mp_spool;

/* Makes the file beside `out`. Release spool in any case. */
int mp_spool_open(mp_spool *spool, const char *out, mp_error *err);
void mp_spool_release(mp_spool *spool);

/* Gives every item with a room its place, and empties the file. */
int mp_spool_place(mp_spool *spool, mp_delta_item *items, size_t count, mp_error *err);

/* Room for the stream of `content` bytes. */
uint64_t mp_spool_room(uint64_t content);

/* A stream on its way to its place. */
typedef struct mp_spool_stream {
    const mp_spool *spool;
    mp_delta_item *item;
    uint64_t content; /* that it will hold */
    uint64_t zeros;   /* that came before anything else: nothing is done before it is needed */
    int level;
    struct ZSTD_CCtx_s *context; /* null before it is needed */
    uint8_t *stored;             /* buffer */
} mp_spool_stream;

/* Begins the stream of an item that will hold `content` bytes. */
void mp_spool_begin(mp_spool_stream *stream, const mp_spool *spool, mp_delta_item *item,
                    uint64_t content, int level);
/* Adds n zeros; n bytes. */
int mp_spool_zeros(mp_spool_stream *stream, uint64_t n, mp_error *err);
int mp_spool_put(mp_spool_stream *stream, const void *data, size_t n, mp_error *err);
/* Ends it, when all its content has come; of nothing but zeros there is no stream. */
int mp_spool_end(mp_spool_stream *stream, mp_error *err);
void mp_spool_stream_release(mp_spool_stream *stream);

#endif
