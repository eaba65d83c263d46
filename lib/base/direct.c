/* SPDX-License-Identifier: Apache-2.0 */
/* Direct reads: the device writes into our memory, and nothing stays behind in the system's.
 *
 * Offset, length and memory of each have to be aligned, which bytes of tensors hardly ever are. So
 * a read takes the aligned pieces that cover it, one after the other, into a buffer of its own and
 * copies the middle out: head and tail cost at most a block each. Buffers belong to a call, so that
 * memory is bounded by threads, not by files; malloc hands the same one out again.
 *
 * Short reads do not pay: scales, vectors and pieces of rows lie beside others that are wanted
 * next, which the system's cache then has. They go through the ordinary descriptor. */
#include "base/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"

/* Of what a read takes at once: long enough for disks, short enough for a hundred threads. */
#define PIECE_BYTES ((uint64_t)1 << 20)

/* Reads below this go through the system's cache. */
#define SHORT_BYTES ((uint64_t)64 << 10)

/* A multiple of the sectors of all usual disks, for systems that do not say what is needed. */
#define USUAL_ALIGN 4096

struct mp_direct {
    int fd;         /* with O_DIRECT */
    int ordinary;   /* borrowed */
    uint64_t align; /* of offsets, lengths and memory; a power of two */
};

static int refuse(mp_error *err)
{
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "its file system refuses direct reads (O_DIRECT): use --io buffered or auto");
}

/* 0: no direct reads. */
static uint64_t alignment(int fd)
{
#ifdef STATX_DIOALIGN
    struct statx st;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && (st.stx_mask & STATX_DIOALIGN)) {
        uint64_t offset = st.stx_dio_offset_align, memory = st.stx_dio_mem_align;
        uint64_t align = mp_max_u64(offset, memory);

        return offset == 0 || (align & (align - 1)) != 0 || align > PIECE_BYTES ? 0 : align;
    }
#endif
    (void)fd;
    return USUAL_ALIGN;
}

/* Some file systems let a file be opened and refuse to read it then. */
static int try_read(const mp_direct *direct, mp_error *err)
{
    void *buffer = aligned_alloc(direct->align, direct->align);
    ssize_t got;

    if (!buffer)
        return mp_fail_memory(err);
    do {
        got = pread(direct->fd, buffer, direct->align, 0);
    } while (got < 0 && errno == EINTR);
    free(buffer);
    /* Anything else that is wrong shows when bytes are wanted. */
    return got < 0 && (errno == EINVAL || errno == EOPNOTSUPP) ? refuse(err) : 0;
}

static int open_again(mp_direct *direct, const char *path, mp_error *err)
{
    struct stat a, b;

    do {
        direct->fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
    } while (direct->fd < 0 && errno == EINTR);
    if (direct->fd < 0 && (errno == EINVAL || errno == EOPNOTSUPP))
        return refuse(err);
    if (direct->fd < 0)
        return mp_fail_errno(err, errno, "cannot open \"%s\"%s", path,
                             errno == EMFILE || errno == ENFILE ? " (raise `ulimit -n`)" : "");
    if (fstat(direct->fd, &a) != 0 || fstat(direct->ordinary, &b) != 0)
        return mp_fail_errno(err, errno, "cannot stat \"%s\"", path);
    if (a.st_dev != b.st_dev || a.st_ino != b.st_ino)
        return mp_fail(err, MP_ERR_IO, "was replaced while it was opened");
    direct->align = alignment(direct->fd);
    return direct->align ? try_read(direct, err) : refuse(err);
}

int mp_direct_open(mp_direct **direct, int fd, const char *path, mp_error *err)
{
    mp_direct *d = *direct = mp_alloc_zeroed(1, sizeof *d);

    if (!d)
        return mp_fail_memory(err);
    *d = (mp_direct){.fd = -1, .ordinary = fd};
    int rc = open_again(d, path, err);
    if (rc != 0) {
        mp_direct_close(d);
        *direct = NULL;
    }
    return rc;
}

/* Direct reads take a little less of the processor. But a thread waits for its own, so the disk is
 * idle when all work: reading ahead through the system's cache was as fast or up to three times as
 * fast on one thread and on two (`make bench`, section storage). So only who asks gets them. */
int mp_direct_choose(mp_direct **direct, mp_io io, int fd, const char *path, mp_error *err)
{
    *direct = NULL;
    return io == MP_IO_DIRECT ? mp_direct_open(direct, fd, path, err) : 0;
}

void mp_direct_close(mp_direct *direct)
{
    if (direct)
        mp_file_close(direct->fd, "", NULL);
    free(direct);
}

/* Reads the aligned piece that begins at `begin` until it holds `wanted` bytes. *have: how many it
 * holds then; fewer only where the file ends. */
static int read_piece(const mp_direct *direct, unsigned char *piece, uint64_t length,
                      uint64_t wanted, uint64_t begin, uint64_t *have, const char *path,
                      mp_error *err)
{
    for (*have = 0; *have < wanted;) {
        /* After a short read go on at a multiple again, and read a few bytes twice. */
        uint64_t from = *have & ~(direct->align - 1);
        ssize_t got = pread(direct->fd, piece + from, length - from, (off_t)(begin + from));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return mp_fail_errno(err, errno, "cannot read \"%s\" at byte %llu", path,
                                 (unsigned long long)(begin + from));
        if (from + (uint64_t)got <= *have)
            return 0;
        *have = from + (uint64_t)got;
    }
    return 0;
}

int mp_direct_read(const mp_direct *direct, void *buffer, uint64_t n, uint64_t offset,
                   const char *path, mp_error *err)
{
    unsigned char *to = buffer, *piece;
    uint64_t align = direct->align, room, have;
    int rc = 0;

    if (n < SHORT_BYTES || offset > INT64_MAX - PIECE_BYTES || n > INT64_MAX - PIECE_BYTES - offset)
        return mp_pread_all(direct->ordinary, buffer, n, offset, path, err);
    room = mp_min_u64(mp_round_up(n, align) + align, PIECE_BYTES);
    piece = aligned_alloc(align, room);
    if (!piece)
        return mp_fail_memory(err);
    while (n > 0) {
        uint64_t begin = offset & ~(align - 1), skip = offset - begin;
        uint64_t part = mp_min_u64(n, room - skip);

        rc = read_piece(direct, piece, mp_round_up(skip + part, align), skip + part, begin, &have,
                        path, err);
        if (rc == 0 && have < skip + part) {
            /* The file ends early, which is told in one place. */
            rc = mp_pread_all(direct->ordinary, to, n, offset, path, err);
            break;
        }
        if (rc != 0)
            break;
        memcpy(to, piece + skip, part);
        to += part;
        offset += part;
        n -= part;
    }
    free(piece);
    return rc;
}

int mp_read_bulk(int fd, const mp_direct *direct, void *buffer, uint64_t n, uint64_t offset,
                 const char *path, mp_error *err)
{
    return direct ? mp_direct_read(direct, buffer, n, offset, path, err)
                  : mp_pread_all(fd, buffer, n, offset, path, err);
}
