/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of raw blocks, whole in memory or piece by piece in a file. */
#include "base/zstd_raw.h"

#include <string.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"

#define HEAD           9 /* magic, descriptor, content size in 4 bytes */
#define BLOCK_HEAD     3
#define CHECKSUM_BYTES 4

/* RFC 8878, 3.1.1: single segment, content size in 4 bytes, checksum. */
static void put_head(unsigned char *head, uint64_t n)
{
    mp_put_le(head, MP_FRAME_MAGIC, 4);
    head[4] = 2u << 6 | 1u << 5 | 1u << 2;
    mp_put_le(head + 5, n, 4);
}

/* Of a raw block: its type is 0. */
static void put_block_head(unsigned char *head, uint64_t n, bool last)
{
    mp_put_le(head, n << 3 | last, BLOCK_HEAD);
}

/* ------------------------------------------------------------------------
 * In memory
 */

void *mp_frame_block(void *frame, size_t i)
{
    return (unsigned char *)frame + HEAD + i * (BLOCK_HEAD + MP_FRAME_BLOCK) + BLOCK_HEAD;
}

int mp_frame_seal(void *frame, size_t n, size_t *stored, uint32_t *checksum, mp_error *err)
{
    unsigned char *end = (unsigned char *)frame + HEAD, *block;
    mp_raw_sum sum = {0};
    size_t left = n, part = 0;

    if (mp_raw_sum_begin(&sum, err) != 0)
        return MP_ERR_IO;
    put_head(frame, n);
    for (size_t i = 0; i == 0 || left > 0; i++, left -= part) {
        block = mp_frame_block(frame, i);
        part = left < MP_FRAME_BLOCK ? left : MP_FRAME_BLOCK;
        put_block_head(block - BLOCK_HEAD, part, left == part);
        mp_raw_sum_update(&sum, block, part);
        end = block + part;
    }
    *checksum = mp_raw_sum_end(&sum);
    mp_put_le(end, *checksum, CHECKSUM_BYTES);
    *stored = (size_t)(end + CHECKSUM_BYTES - (unsigned char *)frame);
    return 0;
}

int mp_frame_store(const void *content, size_t n, void *out, size_t *stored, uint32_t *checksum,
                   mp_error *err)
{
    const unsigned char *from = content;

    for (size_t at = 0, i = 0; at < n; at += MP_FRAME_BLOCK, i++)
        memcpy(mp_frame_block(out, i), from + at,
               n - at < MP_FRAME_BLOCK ? n - at : MP_FRAME_BLOCK);
    return mp_frame_seal(out, n, stored, checksum, err);
}

/* ------------------------------------------------------------------------
 * In files
 */

uint64_t mp_raw_bytes(uint64_t n)
{
    return n + mp_ceil_div(n, MP_FRAME_BYTES) * (HEAD + CHECKSUM_BYTES) +
           mp_ceil_div(n, MP_FRAME_BLOCK) * BLOCK_HEAD;
}

uint64_t mp_raw_at(uint64_t offset)
{
    uint64_t within = offset % MP_FRAME_BYTES;

    return mp_raw_bytes(offset - within) + HEAD + (within / MP_FRAME_BLOCK + 1) * BLOCK_HEAD +
           within;
}

uint64_t mp_raw_together(uint64_t offset)
{
    return MP_FRAME_BLOCK - offset % MP_FRAME_BLOCK;
}

int mp_raw_write_heads(int fd, const char *path, uint64_t at, uint64_t n, uint32_t checksum,
                       mp_error *err)
{
    unsigned char bytes[HEAD + BLOCK_HEAD];
    int rc = 0;

    put_head(bytes, n);
    for (uint64_t done = 0; rc == 0 && done < n; done += MP_FRAME_BLOCK) {
        uint64_t left = n - done, part = left < MP_FRAME_BLOCK ? left : MP_FRAME_BLOCK;
        unsigned char *head = bytes + (done == 0 ? 0 : HEAD);

        put_block_head(bytes + HEAD, part, left == part);
        rc = mp_pwrite_all(fd, head, (uint64_t)(bytes + sizeof bytes - head),
                           at + mp_raw_at(done) - (uint64_t)(bytes + sizeof bytes - head), path,
                           err);
    }
    mp_put_le(bytes, checksum, CHECKSUM_BYTES);
    if (rc == 0)
        rc = mp_pwrite_all(fd, bytes, CHECKSUM_BYTES, at + mp_raw_bytes(n) - CHECKSUM_BYTES, path,
                           err);
    return rc;
}

int mp_raw_sum_begin(mp_raw_sum *sum, mp_error *err)
{
    *sum = (mp_raw_sum){.state = XXH64_createState()};
    if (!sum->state)
        return mp_fail_memory(err);
    XXH64_reset(sum->state, 0);
    return 0;
}

void mp_raw_sum_update(mp_raw_sum *sum, const void *data, size_t n)
{
    XXH64_update(sum->state, data, n);
}

uint32_t mp_raw_sum_end(mp_raw_sum *sum)
{
    uint32_t low = sum->state ? (uint32_t)XXH64_digest(sum->state) : 0;

    XXH64_freeState(sum->state);
    sum->state = NULL;
    return low;
}
