/* SPDX-License-Identifier: Apache-2.0 */
/* Compressing streams into a sparse file. Each stream has room for the worst case at a place that
 * is settled before any is made, so threads write without asking each other, and what is never
 * written takes no space:
 *
 *   |stream 0 ....unused....|stream 1 .unused.|stream 2 ...
 *
 * The file has no name from the beginning, so nothing is left of it whatever kills the process.
 *
 * Most tensors do not change at all, and most of those that do begin with long runs of zeros. So a
 * stream is nothing but a count of zeros until a first byte comes; only then does it get a
 * compressor and the zeros that it owes. A tensor of zeros never gets one.
 *
 * A stream belongs to one thread; the spool is only read while streams are made. */
#include "delta/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "base/error.h"
#include "base/file.h"
#include "run/partial.h"

#define STORED_BYTES ((size_t)128 << 10) /* buffer of compressed bytes */
#define ZERO_BYTES   ((size_t)64 << 10)
#define ALIGN        4096u

/* A file without a name, or where the file system has none, one that loses it at once. */
static int open_unnamed(const char *dir, int *fd, mp_error *err)
{
    char *path;

    *fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*fd >= 0)
        return 0;
    /* What file systems and kernels without O_TMPFILE say: EISDIR is of kernels that take it for
     * O_DIRECTORY, ENOENT and EINVAL of file systems in between. */
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL)
        return mp_fail_errno(err, errno, "cannot make a file in \"%s\"", dir);
    path = mp_format("%s/.moepack-XXXXXX", dir);
    if (!path)
        return mp_fail_memory(err);
    *fd = mkostemp(path, O_CLOEXEC);
    int rc = *fd >= 0 ? 0 : mp_fail_errno(err, errno, "cannot make a file in \"%s\"", dir);
    if (rc == 0)
        unlink(path);
    free(path);
    return rc;
}

int mp_spool_open(mp_spool *spool, const char *out, mp_error *err)
{
    char *plain = mp_without_slashes(out), *slash = plain ? strrchr(plain, '/') : NULL;

    *spool = (mp_spool){.fd = -1};
    if (slash)
        /* Of "/name" keep the slash. */
        slash[slash == plain] = '\0';
    if (plain)
        spool->path = mp_format("%s", slash ? plain : ".");
    free(plain);
    return spool->path ? open_unnamed(spool->path, &spool->fd, err) : mp_fail_memory(err);
}

void mp_spool_release(mp_spool *spool)
{
    if (spool->path)
        mp_file_close(spool->fd, spool->path, NULL);
    free(spool->path);
    *spool = (mp_spool){.fd = -1};
}

uint64_t mp_spool_room(uint64_t content)
{
    /* zstd stores a block that does not shrink as it is, with a head of 3 bytes, and has a block
     * for each 128 KiB; a frame's head has 18 bytes at most. A 1024th is 40 times as much.
     * compress() checks it all the same, so that no stream ever runs into its neighbour. */
    return mp_round_up(content + content / 1024 + ALIGN, ALIGN);
}

int mp_spool_place(mp_spool *spool, mp_delta_item *items, size_t count, mp_error *err)
{
    uint64_t at = 0;

    for (size_t i = 0; i < count; i++) {
        items[i].place = at;
        if (!mp_add_u64(at, items[i].room, &at) || at > INT64_MAX)
            return mp_fail(err, MP_ERR_INPUT, "tensor \"%s\": ends past the end of any file",
                           items[i].name);
    }
    return mp_file_resize(spool->fd, spool->path, 0, err);
}

/* ------------------------------------------------------------------------
 * One stream
 */

void mp_spool_begin(mp_spool_stream *stream, const mp_spool *spool, mp_delta_item *item,
                    uint64_t content, int level)
{
    item->stored = 0;
    *stream = (mp_spool_stream){.spool = spool, .item = item, .content = content, .level = level};
}

void mp_spool_stream_release(mp_spool_stream *stream)
{
    ZSTD_freeCCtx(stream->context);
    free(stream->stored);
    *stream = (mp_spool_stream){0};
}

/* One frame, with its content's size: readers that take a stream at once need it. */
static int start(mp_spool_stream *s, mp_error *err)
{
    s->context = ZSTD_createCCtx();
    s->stored = mp_alloc(STORED_BYTES, 1);
    if (!s->context || !s->stored)
        return mp_fail_memory(err);
    /* A level out of range is clamped, and it was checked before. */
    ZSTD_CCtx_setParameter(s->context, ZSTD_c_compressionLevel, s->level);
    /* Ending refuses any other size: so a version that changes while it is read twice does not go
     * unnoticed. */
    size_t rc = ZSTD_CCtx_setPledgedSrcSize(s->context, s->content);
    return ZSTD_isError(rc) ? mp_fail(err, MP_ERR_IO, "cannot compress: %s", ZSTD_getErrorName(rc))
                            : 0;
}

static int compress(mp_spool_stream *s, const void *data, size_t n, ZSTD_EndDirective directive,
                    mp_error *err)
{
    ZSTD_inBuffer in = {data, n, 0};
    bool done = false;

    while (!done) {
        ZSTD_outBuffer out = {s->stored, STORED_BYTES, 0};
        size_t left = ZSTD_compressStream2(s->context, &out, &in, directive);

        if (ZSTD_isError(left))
            return mp_fail(err, MP_ERR_IO, "cannot compress: %s", ZSTD_getErrorName(left));
        if (out.pos > s->item->room - s->item->stored)
            return mp_fail(err, MP_ERR_IO, "cannot compress: a stream of %llu bytes has grown",
                           (unsigned long long)s->content);
        if (mp_pwrite_all(s->spool->fd, s->stored, out.pos, s->item->place + s->item->stored,
                          s->spool->path, err) != 0)
            return err->code;
        s->item->stored += out.pos;
        /* Ending is done when nothing is left inside; otherwise when all input is taken, as what
         * stays inside comes out later. */
        done = directive == ZSTD_e_end ? left == 0 : in.pos == in.size;
    }
    return 0;
}

static int put_zeros(mp_spool_stream *s, uint64_t n, mp_error *err)
{
    static const uint8_t zeros[ZERO_BYTES];
    int rc = 0;

    while (rc == 0 && n > 0) {
        size_t part = n < sizeof zeros ? (size_t)n : sizeof zeros;

        rc = compress(s, zeros, part, ZSTD_e_continue, err);
        n -= part;
    }
    return rc;
}

int mp_spool_zeros(mp_spool_stream *s, uint64_t n, mp_error *err)
{
    if (s->context)
        return put_zeros(s, n, err);
    s->zeros += n;
    return 0;
}

int mp_spool_put(mp_spool_stream *s, const void *data, size_t n, mp_error *err)
{
    int rc = 0;

    if (!s->context) {
        rc = start(s, err);
        if (rc == 0)
            rc = put_zeros(s, s->zeros, err);
    }
    return rc ? rc : compress(s, data, n, ZSTD_e_continue, err);
}

int mp_spool_end(mp_spool_stream *s, mp_error *err)
{
    return s->context ? compress(s, NULL, 0, ZSTD_e_end, err) : 0;
}
