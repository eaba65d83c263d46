/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/zstd_raw.h - frames that store their content as it is.
 *
 * RFC 8878: such a frame is a head of 9 bytes, raw blocks of MP_FRAME_BLOCK bytes, the last of
 * fewer, with 3 bytes before each, and 4 bytes of checksum. So it is known from the length alone
 * where each byte of the content stands, and content can be put there before the rest is known:
 * in memory, or in a file, where a tensor is a row of frames of MP_FRAME_BYTES, the last of fewer.
 */
#ifndef MP_BASE_ZSTD_RAW_H
#define MP_BASE_ZSTD_RAW_H

#include "base/zstd_frames.h"

#define MP_FRAME_BLOCK ((uint64_t)128 << 10)

/* Puts content into a frame. out, stored and checksum: as of mp_frame_compress. */
int mp_frame_store(const void *content, size_t n, void *out, size_t *stored, uint32_t *checksum,
                   mp_error *err);

/* The same of content that is there already, block i at mp_frame_block(frame, i). */
void *mp_frame_block(void *frame, size_t i);
int mp_frame_seal(void *frame, size_t n, size_t *stored, uint32_t *checksum, mp_error *err);

/* ------------------------------------------------------------------------
 * Rows of frames
 */

/* Bytes that a row of n bytes of content takes; n a multiple of MP_FRAME_BYTES gives where the
 * frame behind begins. */
uint64_t mp_raw_bytes(uint64_t n);

/* Where byte `offset` of the content stands in a row, and how many from it on stand together. */
uint64_t mp_raw_at(uint64_t offset);
uint64_t mp_raw_together(uint64_t offset);

/* Writes all of a frame of n bytes but its content, at a place of a file. */
int mp_raw_write_heads(int fd, const char *path, uint64_t at, uint64_t n, uint32_t checksum,
                       mp_error *err);

/* The checksum of a frame whose content comes in pieces, in order. */
typedef struct mp_raw_sum {
    void *state;   /* null: not begun, or ended */
    uint64_t next; /* bytes that are in it */
} mp_raw_sum;

int mp_raw_sum_begin(mp_raw_sum *sum, mp_error *err);
void mp_raw_sum_update(mp_raw_sum *sum, const void *data, size_t n); /* leaves `next` alone */
/* Frees its state; 0 of one that is not begun. */
uint32_t mp_raw_sum_end(mp_raw_sum *sum);

#endif
