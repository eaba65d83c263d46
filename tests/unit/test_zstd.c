/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed files: what is written is read back anywhere, and nothing damaged gives wrong bytes.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include "base/file.h"
#include "base/zstd_raw.h"
#include "base/zstd_stream.h"

#define CONTENT 1997

/* A file of 5 frames of unequal sizes, the third of them stored, and its content. */
typedef struct sample {
    unsigned char content[CONTENT];
    unsigned char bytes[4 * CONTENT];
    size_t size;
    size_t table; /* where the seek table begins */
} sample;

static void fill(sample *s)
{
    uint32_t x = 12345;

    for (size_t i = 0; i < CONTENT; i++) {
        x = x * 1664525 + 1013904223;
        s->content[i] = i < 900 ? (unsigned char)(i / 7) : (unsigned char)(x >> 24);
    }
}

static void make(sample *s)
{
    static const size_t ends[] = {8, 601, 1100, 1101, CONTENT};
    mp_frames frames = {0};
    unsigned char *table;
    size_t begin = 0, bytes;

    memset(s, 0, sizeof *s);
    fill(s);
    for (size_t i = 0; i < 5; i++) {
        size_t n = ends[i] - begin, stored;
        uint32_t sum;

        if (i == 2)
            cr_assert_eq(
                mp_frame_store(s->content + begin, n, s->bytes + s->size, &stored, &sum, NULL), 0);
        else
            cr_assert_eq(mp_frame_compress(s->content + begin, n, 1, s->bytes + s->size, &stored,
                                           &sum, NULL),
                         0);
        cr_assert_leq(stored, mp_frame_room(n));
        cr_assert_eq(mp_frames_add(&frames, stored, n, sum, NULL), 0);
        s->size += stored;
        begin = ends[i];
    }
    s->table = s->size;
    cr_assert_eq(mp_frames_table(&frames, &table, &bytes, NULL), 0);
    memcpy(s->bytes + s->size, table, bytes);
    s->size += bytes;
    free(table);
    mp_frames_release(&frames);
}

static int file_of(const unsigned char *bytes, size_t n)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    cr_assert(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    return fd;
}

Test(zstd, any_bytes_are_read_alone)
{
    static sample s;
    static unsigned char got[CONTENT];
    mp_error err = {0};
    mp_zstd_file file;
    mp_frame_cache *cache = mp_frame_cache_new(1);

    make(&s);
    int fd = file_of(s.bytes, s.size);
    cr_assert_eq(mp_zstd_file_open(&file, fd, "f", &err), 0, "%s", err.message);
    cr_assert(file.seekable);
    cr_assert_eq(file.content, CONTENT);
    cr_assert_eq(mp_zstd_file_check(&file, &err), 0, "%s", err.message);
    for (size_t begin = 0; begin < CONTENT; begin += 13)
        for (size_t n = 1; begin + n <= CONTENT; n += 97) {
            memset(got, 0, sizeof got);
            cr_assert_eq(mp_zstd_file_read(&file, cache, begin, n, got, &err), 0, "%s",
                         err.message);
            cr_assert_eq(memcmp(got, s.content + begin, n), 0, "%zu from %zu", n, begin);
        }
    mp_zstd_file_forget(&file, cache, 0, CONTENT);
    mp_zstd_file_release(&file);
    mp_frame_cache_free(cache);
    close(fd);
}

Test(zstd, zstd_itself_gives_the_content)
{
    static sample s;
    static unsigned char got[CONTENT];

    make(&s);
    cr_assert_eq(ZSTD_decompress(got, sizeof got, s.bytes, s.size), CONTENT);
    cr_assert_eq(memcmp(got, s.content, CONTENT), 0);
}

/* Reads a file to its end both ways; -1 where either fails, else how much it is. What is read has
 * to be the beginning of the content. */
static int64_t read_all(const sample *s, const unsigned char *bytes, size_t n, int *rc)
{
    static unsigned char got[CONTENT + 1];
    mp_error err = {0};
    mp_zstd_file file;
    mp_frame_cache *cache = mp_frame_cache_new(1);
    mp_zstd_stream *stream = NULL;
    size_t streamed = 0;
    int fd = file_of(bytes, n);

    *rc = mp_zstd_file_open(&file, fd, "f", &err);
    if (*rc == 0 && file.content > CONTENT)
        *rc = mp_zstd_file_check(&file, &err);
    else if (*rc == 0) {
        *rc = mp_zstd_file_read(&file, cache, 0, file.content, got, &err);
        if (*rc == 0)
            cr_assert_eq(memcmp(got, s->content, file.content), 0);
        if (*rc == 0 && mp_zstd_stream_open(&stream, &file, &err) == 0) {
            *rc = mp_zstd_stream_read(stream, got, sizeof got, &streamed, &err);
            cr_assert(*rc != 0 || streamed == file.content);
            cr_assert_eq(memcmp(got, s->content, streamed < CONTENT ? streamed : CONTENT), 0);
        }
    }
    int64_t content = *rc == 0 ? (int64_t)file.content : -1;
    cr_assert(*rc == 0 || err.message[0] != '\0');
    mp_zstd_stream_close(stream);
    mp_zstd_file_release(&file);
    mp_frame_cache_free(cache);
    close(fd);
    return content;
}

Test(zstd, a_file_cut_anywhere_is_refused_or_shorter)
{
    static sample s;
    int rc, whole = 0;

    make(&s);
    for (size_t n = 0; n < s.size; n++) {
        int64_t content = read_all(&s, s.bytes, n, &rc);

        whole += content >= 0;
        cr_assert(content < CONTENT || n == s.table, "cut at %zu", n);
        cr_assert(rc == 0 || rc == MP_ERR_INPUT, "cut at %zu: %d", n, rc);
    }
    cr_assert_eq(whole, 5); /* behind each frame */
}

Test(zstd, a_flipped_bit_never_gives_other_bytes)
{
    static sample s, other;
    int rc, accepted = 0;

    make(&s);
    for (size_t i = 0; i < 8 * s.size; i++) {
        other = s;
        other.bytes[i / 8] ^= (unsigned char)(1 << i % 8);
        int64_t content = read_all(&s, other.bytes, s.size, &rc);
        cr_assert(content == -1 || content == CONTENT, "bit %zu: %lld bytes", i,
                  (long long)content);
        cr_assert(rc == 0 || rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED, "bit %zu: %d", i, rc);
        accepted += rc == 0;
    }
    /* Without its magic, 32 bits, a seek table is just a skippable frame; 2 bits of its descriptor
     * and one of each frame's have no meaning; and some of compressed blocks have none. */
    cr_assert_lt(accepted, 32 + 2 + 5 + 32, "%d", accepted);
}

static void refused(const unsigned char *bytes, size_t n, int code, const char *message)
{
    mp_error err = {0};
    mp_zstd_file file;
    mp_frame_cache *cache = mp_frame_cache_new(1);
    unsigned char *got = malloc(1 << 20);
    int fd = file_of(bytes, n);
    int rc = mp_zstd_file_open(&file, fd, "f", &err);

    if (rc == 0)
        rc = mp_zstd_file_read(&file, cache, 0, file.content, got, &err);
    cr_expect_eq(rc, code);
    cr_expect_str_eq(err.message, message);
    mp_zstd_file_release(&file);
    mp_frame_cache_free(cache);
    free(got);
    close(fd);
}

/* Puts a number into entry i of the seek table, and has that refused. */
static void refused_entry(size_t i, unsigned field, uint32_t value, const char *message)
{
    static sample s;

    make(&s);
    memcpy(s.bytes + s.table + 8 + 12 * i + 4 * (size_t)field, &value, 4);
    refused(s.bytes, s.size, MP_ERR_INPUT, message);
}

Test(zstd, lying_tables_are_refused)
{
    static sample s;
    char message[200];

    make(&s);
    snprintf(message, sizeof message, "seek table: its 5 frames take %zu bytes, %zu come before it",
             s.table + 79, s.table);
    refused_entry(0, 0, 100, message);
    refused_entry(1, 1, 594,
                  "frame 1 at byte 21: declares 593 bytes of content, the seek table 594");
    refused_entry(3, 1, 0, "seek table: frame 3 takes 14 bytes for 0");
    refused_entry(3, 0, 65539, "seek table: frame 3 takes 65539 bytes for 1 of content");
    refused_entry(0, 2, 0xdeadbeef,
                  "frame 0 at byte 0: checksum 3b8a47da"
                  ", the seek table says deadbeef");

    s.bytes[s.size - 9] = 200;
    s.bytes[s.size - 8] = 1;
    snprintf(message, sizeof message, "seek table: 456 frames take 5489 bytes, the file has %zu",
             s.size);
    refused(s.bytes, s.size, MP_ERR_INPUT, message);
    make(&s);
    s.bytes[s.size - 5] |= 4;
    refused(s.bytes, s.size, MP_ERR_INPUT, "seek table: reserved bits of its descriptor 0x84 set");
    make(&s);
    s.bytes[s.table] ^= 1;
    snprintf(message, sizeof message,
             "seek table: no skippable frame of 77 bytes begins at byte %zu", s.table);
    refused(s.bytes, s.size, MP_ERR_INPUT, message);
}

Test(zstd, heads_are_refused)
{
    static const unsigned char dictionary[] = {0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 9, 0, 0, 'a'};
    static const unsigned char window[] = {0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 9, 0, 0, 'a'};
    static const unsigned char reserved[] = {0x28, 0xb5, 0x2f, 0xfd, 0x28, 1, 9, 0, 0, 'a'};
    static const unsigned char block[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 7, 0, 0, 'a'};
    static const unsigned char cut[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 8, 0, 0, 'a'};
    static const unsigned char lie[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 2, 9, 0, 0, 'a'};
    static const unsigned char text[] = "{\"a\": 1}";

    refused(dictionary, sizeof dictionary, MP_ERR_UNSUPPORTED,
            "frame 0 at byte 0: needs dictionary 7: compress without one");
    refused(window, sizeof window, MP_ERR_INPUT,
            "frame 0 at byte 0: a window of 268435456 bytes, over the limit of 134217728");
    refused(reserved, sizeof reserved, MP_ERR_INPUT,
            "frame 0 at byte 0: the reserved bit of its descriptor is set");
    refused(block, sizeof block, MP_ERR_INPUT,
            "frame 0 at byte 0: a block of no known type at byte 6");
    refused(cut, sizeof cut, MP_ERR_INPUT, "frame 0 at byte 0: truncated: the file ends inside it");
    refused(lie, sizeof lie, MP_ERR_INPUT, "frame 0 at byte 0: damaged");
    refused(text, sizeof text - 1, MP_ERR_INPUT,
            "frame 0 at byte 0: no zstd frame: it begins with 7b 22 61 22");
    refused(text, 0, MP_ERR_INPUT, "file of 0 bytes holds no zstd frame");
}

#define IN_FRAMES "compressed in frames"
#define IN_ORDER                                    \
    ", which can only be read from the beginning: " \
    "moepack decompress, or recompress it with moepack compress"

/* A frame that does not say what it holds is counted, and read in order only. */
Test(zstd, frames_of_unknown_size_are_read_in_order)
{
    static sample s;
    static unsigned char bytes[2 * CONTENT], got[CONTENT];
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_outBuffer out = {bytes, sizeof bytes, 0};
    mp_zstd_file file;
    mp_error err = {0};
    ZSTD_inBuffer in = {s.content, CONTENT, 0}, none = {NULL, 0, 0};

    fill(&s);
    cr_assert_eq(ZSTD_compressStream2(context, &out, &in, ZSTD_e_flush), 0);
    cr_assert_eq(ZSTD_compressStream2(context, &out, &none, ZSTD_e_end), 0);
    ZSTD_freeCCtx(context);
    int fd = file_of(bytes, out.pos);
    cr_assert_eq(mp_zstd_file_open(&file, fd, "f", &err), 0, "%s", err.message);
    cr_assert_eq(file.content, CONTENT);
    cr_assert(!file.seekable);
    cr_assert_eq(mp_zstd_file_read(&file, NULL, 0, 1000, got, &err), 0);
    cr_assert_eq(memcmp(got, s.content, 1000), 0);
    cr_assert_eq(mp_zstd_file_read(&file, NULL, 1, 1000, got, &err), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, IN_FRAMES " that do not say what they hold" IN_ORDER);
    mp_zstd_file_release(&file);
    close(fd);
}

/* Each kind of frame that keeps a file from being read anywhere has its name. */
Test(zstd, files_that_are_read_in_order_say_why)
{
    static sample s;
    static unsigned char large[(16 << 20) + 1];
    const unsigned char skippable[] = {0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7};
    unsigned char *bytes = malloc(ZSTD_compressBound(sizeof large) + 64), got;
    mp_zstd_file file;
    mp_error err;

    fill(&s);
    for (int kind = 0; kind < 3; kind++) {
        static const char *const names[] = {", some of them skippable", ", some of them empty",
                                            " over 16 MiB"};
        size_t n = ZSTD_compress(bytes, ZSTD_compressBound(CONTENT), s.content, CONTENT, 1);

        if (kind == 0)
            memcpy(bytes + n, skippable, sizeof skippable);
        n += kind == 0   ? sizeof skippable
             : kind == 1 ? ZSTD_compress(bytes + n, 64, NULL, 0, 1)
                         : ZSTD_compress(bytes + n, ZSTD_compressBound(sizeof large), large,
                                         sizeof large, 1);
        int fd = file_of(bytes, n);
        cr_assert_eq(mp_zstd_file_open(&file, fd, "f", &err), 0, "%s", err.message);
        cr_assert_eq(mp_zstd_file_read(&file, NULL, 1, 1, &got, &err), MP_ERR_UNSUPPORTED);
        char message[512];
        snprintf(message, sizeof message, IN_FRAMES "%s" IN_ORDER, names[kind]);
        cr_assert_str_eq(err.message, message);
        mp_zstd_file_release(&file);
        close(fd);
    }
    free(bytes);
}

#define LONG_CONTENT ((size_t)24000011)

/* One frame of LONG_CONTENT bytes that does not say so. */
static int long_frame(unsigned char *content)
{
    size_t room = ZSTD_compressBound(LONG_CONTENT);
    unsigned char *bytes = malloc(room);
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_outBuffer out = {bytes, room, 0};
    ZSTD_inBuffer in = {content, LONG_CONTENT, 0};
    uint32_t x = 54321;

    for (size_t i = 0; i < LONG_CONTENT; i++) {
        x = x * 1664525 + 1013904223;
        content[i] = (unsigned char)(x >> 28 | i / 65536 << 4);
    }
    ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 0);
    cr_assert_eq(ZSTD_compressStream2(context, &out, &in, ZSTD_e_end), 0);
    ZSTD_freeCCtx(context);
    int fd = file_of(bytes, out.pos);
    free(bytes);
    return fd;
}

Test(zstd, one_frame_is_read_in_ascending_order)
{
    unsigned char *content = malloc(LONG_CONTENT), *got = malloc(LONG_CONTENT);
    const size_t most = 70001, low = 1000, high = 16000000;
    mp_error err = {0};
    mp_zstd_file file;
    mp_frame_cache *cache = mp_frame_cache_new(1);
    int fd = long_frame(content), refused = 0;

    cr_assert_eq(mp_zstd_file_open(&file, fd, "f", &err), 0, "%s", err.message);
    cr_assert_eq(file.content, LONG_CONTENT);
    cr_assert_eq(mp_zstd_file_read(&file, cache, low, 1, got, &err), MP_ERR_UNSUPPORTED);
    mp_frame_cache_read_in_order(cache);
    /* Two places side by side, each a little back and forth. */
    for (size_t at = 0, n; at + high < LONG_CONTENT; at += n) {
        n = LONG_CONTENT - high - at < most ? LONG_CONTENT - high - at : most;
        for (int place = 0; place < 2; place++) {
            size_t from = at + (place ? high : low), back = at < 500000 ? at : 500000;

            cr_assert_eq(mp_zstd_file_read(&file, cache, from, n, got, &err), 0, "%s", err.message);
            cr_assert_arr_eq(got, content + from, n);
            cr_assert_eq(mp_zstd_file_read(&file, cache, from - back, 9, got, &err), 0);
            cr_assert_arr_eq(got, content + from - back, 9);
        }
    }
    /* More than any window holds. */
    cr_assert_eq(mp_zstd_file_read(&file, cache, 0, LONG_CONTENT, got, &err), 0, "%s", err.message);
    cr_assert_arr_eq(got, content, LONG_CONTENT);
    for (size_t at = LONG_CONTENT - 1; refused == 0 && at > 1 << 20; at -= 1 << 20) {
        refused = mp_zstd_file_read(&file, cache, at, 1, got, &err);
        cr_assert(refused || got[0] == content[at]);
    }
    cr_assert_eq(refused, MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, IN_FRAMES " that do not say what they hold" IN_ORDER);
    mp_zstd_file_release(&file);
    mp_frame_cache_free(cache);
    free(content);
    free(got);
    close(fd);
}
