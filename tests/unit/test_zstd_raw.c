/* SPDX-License-Identifier: Apache-2.0 */
/* Stored frames in a file, filled in any order, against those that are made whole; and finding the
 * frames of a file that is not finished. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/zstd_file.h"
#include "base/zstd_raw.h"

#define CONTENT (2 * MP_FRAME_BYTES + 300007)

static unsigned char *content, *whole;
static mp_error err;

static void make_content(void)
{
    uint32_t x = 777;

    content = malloc(CONTENT);
    whole = malloc(2 * CONTENT);
    for (size_t i = 0; i < CONTENT; i++) {
        x = x * 1664525 + 1013904223;
        content[i] = (unsigned char)(x >> 24);
    }
}

static void free_content(void)
{
    free(content);
    free(whole);
}

TestSuite(zstd_raw, .init = make_content, .fini = free_content);

/* The frames of n bytes of content one after the other; returns what they take. */
static size_t make_whole(size_t n, mp_frames *frames)
{
    size_t size = 0;

    for (size_t at = 0, part; at < n; at += part) {
        size_t stored;
        uint32_t sum;

        part = n - at < MP_FRAME_BYTES ? n - at : MP_FRAME_BYTES;
        cr_assert_eq(mp_frame_store(content + at, part, whole + size, &stored, &sum, &err), 0);
        cr_assert_eq(mp_frames_add(frames, stored, part, sum, &err), 0);
        size += stored;
    }
    return size;
}

/* Puts content there from its end on, in pieces of an odd size. */
static void put_backwards(int fd, size_t n)
{
    for (size_t end = n, part; end > 0; end -= part) {
        uint64_t at = end > 70001 ? end - 70001 : 0;

        part = mp_raw_together(at) < end - at ? mp_raw_together(at) : end - at;
        if (at + part < end) {
            at += part;
            part = end - at;
        }
        cr_assert_leq(part, mp_raw_together(at));
        cr_assert_eq(mp_pwrite_all(fd, content + at, part, mp_raw_at(at), "f", &err), 0);
    }
}

static void expect_row(size_t n)
{
    mp_frames frames = {0};
    size_t size = make_whole(n, &frames);
    unsigned char *got = malloc(size + 1);
    int fd = memfd_create("test", MFD_CLOEXEC);

    cr_assert_eq(mp_raw_bytes(n), size, "%zu bytes", n);
    put_backwards(fd, n);
    for (size_t i = 0; i < frames.count; i++) {
        const mp_frame *frame = &frames.list[i];

        cr_assert_eq(mp_raw_bytes(frame->content), frame->at);
        cr_assert_eq(mp_raw_write_heads(fd, "f", frame->at, frame[1].content - frame->content,
                                        frame->checksum, &err),
                     0);
    }
    cr_assert_eq(pread(fd, got, size + 1, 0), (ssize_t)size);
    cr_assert_arr_eq(got, whole, size, "%zu bytes", n);
    mp_frames_release(&frames);
    free(got);
    close(fd);
}

Test(zstd_raw, frames_are_filled_in_any_order)
{
    static const size_t sizes[] = {
        1, 131071, 131072, 131073, MP_FRAME_BYTES - 1, MP_FRAME_BYTES, MP_FRAME_BYTES + 1, CONTENT};

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        expect_row(sizes[i]);
}

Test(zstd_raw, checksums_come_in_pieces)
{
    mp_frames frames = {0};
    mp_raw_sum sum;

    make_whole(CONTENT, &frames);
    for (size_t i = 0; i < frames.count; i++) {
        const mp_frame *frame = &frames.list[i];

        cr_assert_eq(mp_raw_sum_begin(&sum, &err), 0);
        for (size_t at = frame->content, n; at < frame[1].content; at += n) {
            n = frame[1].content - at < 33333 ? frame[1].content - at : 33333;
            mp_raw_sum_update(&sum, content + at, n);
        }
        cr_assert_eq(mp_raw_sum_end(&sum), frame->checksum);
        cr_assert_null(sum.state);
    }
    mp_frames_release(&frames);
}

/* Behind them may stand anything. */
Test(zstd_raw, the_first_frames_are_found)
{
    mp_frames frames = {0}, found;
    size_t size = make_whole(CONTENT, &frames);
    int fd = memfd_create("test", MFD_CLOEXEC);

    memset(whole + size, 0xa5, 1000);
    cr_assert_eq(write(fd, whole, size + 1000), (ssize_t)size + 1000);
    for (size_t i = 0; i <= frames.count; i++) {
        cr_assert_eq(
            mp_frames_find_first(&found, fd, "f", size + 1000, frames.list[i].content, &err), 0,
            "%s", err.message);
        cr_assert_eq(found.count, i);
        for (size_t k = 0; k < i; k++) {
            cr_assert_eq(found.list[k].checksum, frames.list[k].checksum);
            cr_assert_eq(found.list[k + 1].at, frames.list[k + 1].at);
        }
        mp_frames_release(&found);
    }
    cr_assert_eq(
        mp_frames_find_first(&found, fd, "f", size + 1000, frames.list[1].content + 1, &err),
        MP_ERR_INPUT);
    cr_assert_str_eq(err.message,
                     "frame at byte 2097213: not one of those that make 2097153 bytes");
    mp_frames_release(&found);
    cr_assert_eq(mp_frames_find_first(&found, fd, "f", size - 1, CONTENT, &err), MP_ERR_INPUT);
    mp_frames_release(&found);
    cr_assert_eq(mp_frames_find_first(&found, fd, "f", size + 1000, CONTENT + 1, &err),
                 MP_ERR_INPUT);
    mp_frames_release(&found);
    mp_frames_release(&frames);
    close(fd);
}

/* Few values in no order. */
Test(zstd_raw, numbers_in_no_order_shrink_more_without_matches)
{
    const size_t n = 1 << 20;
    unsigned char *frame = malloc(mp_frame_room(n)), *got = malloc(n);
    size_t usual, huffman;
    uint32_t sum, again;
    mp_frames frames = {.checksums = true};
    int fd = memfd_create("test", MFD_CLOEXEC);

    for (size_t i = 0; i < n; i++)
        content[i] = (unsigned char)(110 + __builtin_ctz(content[i] | 64));
    cr_assert_eq(mp_frame_compress(content, n, 1, frame, &usual, &sum, &err), 0);
    cr_assert_eq(mp_frame_compress(content, n, MP_FRAME_HUFFMAN, frame, &huffman, &again, &err), 0);
    cr_assert_eq(sum, again);
    cr_assert_lt(huffman * 20, usual * 19, "%zu and %zu bytes", huffman, usual);
    cr_assert_eq(write(fd, frame, huffman), (ssize_t)huffman);
    cr_assert_eq(mp_frames_add(&frames, huffman, n, sum, &err), 0);
    cr_assert_eq(mp_frame_decode(&frames, 0, fd, NULL, "f", got, &err), 0, "%s", err.message);
    cr_assert_arr_eq(got, content, n);
    mp_frames_release(&frames);
    free(frame);
    free(got);
    close(fd);
}
