/* SPDX-License-Identifier: Apache-2.0 */
/* Streams of decoded content, and passes: streams that stop where their reader does.
 *
 * Some files are one huge frame, as `zstd model.safetensors` writes them, and reaching a byte means
 * decoding everything before it. A command that works through such a file in ascending order could
 * read it once. But it reads several things in parallel, weights and scales that lie apart, and
 * comes back to what it just read. So a few passes over a file run side by side. Each keeps the
 * last MiB it went through, and a read goes to the nearest pass before it. If every pass is already
 * beyond it, a new pass starts at the beginning of the file and decodes everything it skips. A
 * reader that keeps jumping back is refused after a few of these.
 *
 * A stream takes zstd's window, at most MP_FRAME_WINDOW_MAX, and one buffer. Passes are for one
 * thread; the cache that owns them holds its lock. */
#include "base/zstd_stream.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"

/* ------------------------------------------------------------------------
 * Streams
 */

struct mp_zstd_stream {
    mp_zstd_source *read;
    const void *user;
    uint64_t size;     /* of what is stored */
    const char *whole; /* what that is, for messages */
    ZSTD_DCtx *context;
    unsigned char *stored;
    ZSTD_inBuffer in;
    uint64_t at; /* behind `in` */
    size_t hint; /* 0: between frames */
};

static int read_file(const void *user, uint64_t at, size_t n, void *buffer, mp_error *err)
{
    const mp_zstd_file *file = user;

    return mp_read_bulk(file->fd, file->direct, buffer, n, at, file->name, err);
}

int mp_zstd_stream_open(mp_zstd_stream **stream, const mp_zstd_file *file, mp_error *err)
{
    return mp_zstd_stream_open_at(stream, read_file, file, file->stored, "file", err);
}

int mp_zstd_stream_open_at(mp_zstd_stream **stream, mp_zstd_source *read, const void *user,
                           uint64_t stored, const char *whole, mp_error *err)
{
    mp_zstd_stream *s = *stream = mp_alloc_zeroed(1, sizeof *s);

    if (!s)
        return mp_fail_memory(err);
    s->read = read;
    s->user = user;
    s->size = stored;
    s->whole = whole;
    s->context = ZSTD_createDCtx(); /* its limit of windows is MP_FRAME_WINDOW_MAX */
    s->stored = mp_alloc(ZSTD_DStreamInSize(), 1);
    s->in.src = s->stored;
    return s->context && s->stored ? 0 : mp_fail_memory(err);
}

void mp_zstd_stream_close(mp_zstd_stream *stream)
{
    if (!stream)
        return;
    ZSTD_freeDCtx(stream->context);
    free(stream->stored);
    free(stream);
}

static int fill(mp_zstd_stream *s, mp_error *err)
{
    uint64_t left = s->size - s->at;
    size_t n = left < ZSTD_DStreamInSize() ? (size_t)left : ZSTD_DStreamInSize();
    int rc = s->read(s->user, s->at, n, s->stored, err);

    s->at += n;
    s->in.size = n;
    s->in.pos = 0;
    return rc;
}

int mp_zstd_stream_read(mp_zstd_stream *s, void *buffer, size_t n, size_t *got, mp_error *err)
{
    ZSTD_outBuffer out = {buffer, n, 0};
    int rc = 0;

    while (rc == 0 && out.pos < n) {
        size_t before = out.pos;

        if (s->in.pos == s->in.size && s->at < s->size)
            rc = fill(s, err);
        /* zstd may still hold output after taking all its input. Ask again, and report a cut-off
         * file only when nothing more comes out. */
        bool ended = s->in.pos == s->in.size;
        if (ended && s->hint == 0)
            break;
        if (rc == 0)
            s->hint = ZSTD_decompressStream(s->context, &out, &s->in);
        if (rc == 0 && ZSTD_getErrorCode(s->hint) == ZSTD_error_memory_allocation)
            rc = mp_fail_memory(err);
        else if (rc == 0 && ZSTD_isError(s->hint))
            rc = mp_fail(err, MP_ERR_INPUT, "damaged before byte %llu of the %s",
                         (unsigned long long)s->at, s->whole);
        else if (rc == 0 && ended && out.pos == before && s->hint != 0)
            rc = mp_fail(err, MP_ERR_INPUT, "truncated: the %s ends inside a frame", s->whole);
    }
    *got = out.pos;
    return rc;
}

/* ------------------------------------------------------------------------
 * Passes
 */

#define WINDOW_BYTES ((size_t)2 << 20)

int mp_zstd_refuse_jump(const mp_zstd_file *file, mp_error *err)
{
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "compressed in frames%s, which can only be read from the beginning: moepack "
                   "decompress, or recompress it with moepack compress",
                   file->kind);
}

static void end_pass(mp_zstd_pass *pass)
{
    mp_zstd_stream_close(pass->stream);
    free(pass->window);
    *pass = (mp_zstd_pass){0};
}

void mp_zstd_passes_release(mp_zstd_passes *passes)
{
    for (size_t i = 0; i < MP_ZSTD_PASSES; i++)
        end_pass(&passes->list[i]);
}

/* The pass nearest before a byte; null if there is none. A pass beyond the byte is useless; one far
 * before it has to decode everything in between. */
static mp_zstd_pass *find_pass(mp_zstd_passes *passes, const mp_zstd_file *file, uint64_t offset)
{
    mp_zstd_pass *best = NULL;

    for (size_t i = 0; i < MP_ZSTD_PASSES; i++) {
        mp_zstd_pass *pass = &passes->list[i];

        if (pass->file == file && pass->begin <= offset && (!best || pass->begin > best->begin))
            best = pass;
    }
    return best;
}

/* Begins a pass, in place of the one that was used longest ago. */
static int begin_pass(mp_zstd_passes *passes, mp_zstd_file *file, mp_zstd_pass **begun,
                      mp_error *err)
{
    mp_zstd_pass *pass = &passes->list[0];

    if (file->passes == MP_ZSTD_PASSES)
        return mp_zstd_refuse_jump(file, err);
    file->passes++;
    for (size_t i = 1; i < MP_ZSTD_PASSES; i++)
        if (passes->list[i].used < pass->used)
            pass = &passes->list[i];
    end_pass(pass);
    *pass = (mp_zstd_pass){.file = file, .window = mp_alloc(WINDOW_BYTES, 1)};
    *begun = pass;
    return pass->window ? mp_zstd_stream_open(&pass->stream, file, err) : mp_fail_memory(err);
}

/* Decodes what comes next; half of the window stays. */
static int go_on(mp_zstd_pass *pass, mp_error *err)
{
    const size_t half = WINDOW_BYTES / 2;
    size_t got;

    /* Keep a MiB for the reader to come back to; the other half is for new content. */
    if (pass->have > half) {
        memmove(pass->window, pass->window + half, pass->have - half);
        pass->begin += half;
        pass->have -= half;
    }
    int rc = mp_zstd_stream_read(pass->stream, pass->window + pass->have, half, &got, err);
    pass->have += got;
    /* So far the declared size was trusted, and the wanted offset lies below it. */
    if (rc == 0 && got == 0)
        return mp_fail(err, MP_ERR_INPUT, "holds %llu bytes, its frames declare %llu",
                       (unsigned long long)(pass->begin + pass->have),
                       (unsigned long long)pass->file->content);
    return rc;
}

int mp_zstd_passes_read(mp_zstd_passes *passes, mp_zstd_file *file, uint64_t offset, uint64_t n,
                        void *buffer, mp_error *err)
{
    mp_zstd_pass *pass = find_pass(passes, file, offset);
    unsigned char *to = buffer;
    int rc = pass ? 0 : begin_pass(passes, file, &pass, err);

    if (!pass)
        return rc;
    pass->used = ++passes->clock;
    while (rc == 0 && n > 0) {
        uint64_t end = pass->begin + pass->have;

        if (offset >= end) {
            rc = go_on(pass, err);
            continue;
        }
        uint64_t part = n < end - offset ? n : end - offset;
        memcpy(to, pass->window + (offset - pass->begin), part);
        to += part;
        offset += part;
        n -= part;
    }
    if (rc != 0)
        end_pass(pass);
    return rc;
}
