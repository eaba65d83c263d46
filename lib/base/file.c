/* SPDX-License-Identifier: Apache-2.0 */
/* System calls on files that see through interrupts and short counts, with errors that name the
 * file.
 *
 * Reads and writes carry their offset (pread, pwrite), so threads can share a descriptor without
 * sharing a position; nothing here has state. A function either moved every byte or failed, and
 * callers never see a short count. Offsets come from files and plans, so they are checked against
 * off_t first.
 *
 * Whatever has to survive a crash is synced by its writer, and an error from a sync is final. Linux
 * reports lost pages once and then marks them clean, so a second fsync would succeed and prove
 * nothing. A new file or a rename is durable only once its directory is synced too.
 *
 * Directories that we write to may contain what others put there. Files are opened for writing
 * without following a link, trees are removed without following links, and a link is never accepted
 * in place of a directory that we make. Pipes and devices are opened without waiting and refused;
 * only what the user names may be one. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

/* One call moves at most this much: Linux itself stops at 2 GiB less a page. */
#define CALL_MAX ((uint64_t)1 << 30)

/* Buffer that files are copied through. */
#define COPY_BYTES ((uint64_t)1 << 20)

/* Descriptors that walking a tree may hold at once; deeper trees still work. */
#define WALK_DESCRIPTORS 16

/* Nothing is at `offset`, where n bytes were to be read. */
static int fail_short(int fd, const char *path, uint64_t offset, uint64_t n, mp_error *err)
{
    struct stat st;
    uint64_t end = offset;

    if (fstat(fd, &st) == 0)
        end = mp_min_u64(offset, (uint64_t)st.st_size);
    return mp_fail(err, MP_ERR_IO, "\"%s\" ends at byte %" PRIu64 ", %" PRIu64 " bytes too early",
                   path, end, offset - end + n);
}

int mp_pread_all(int fd, void *buffer, uint64_t n, uint64_t offset, const char *path, mp_error *err)
{
    char *to = buffer;
    if (offset > INT64_MAX || n > INT64_MAX - offset)
        return mp_fail_errno(err, EOVERFLOW, "cannot read \"%s\"", path);
    while (n > 0) {
        ssize_t got = pread(fd, to, n < CALL_MAX ? (size_t)n : CALL_MAX, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return mp_fail_errno(err, errno, "cannot read \"%s\" at byte %llu", path,
                                 (unsigned long long)offset);
        /* The file was truncated while being read, or its header promised more than it holds. */
        if (got == 0)
            return fail_short(fd, path, offset, n, err);
        to += got;
        offset += (uint64_t)got;
        n -= (uint64_t)got;
    }
    return 0;
}

int mp_pwrite_all(int fd, const void *buffer, uint64_t n, uint64_t offset, const char *path,
                  mp_error *err)
{
    const char *from = buffer;
    if (offset > INT64_MAX || n > INT64_MAX - offset)
        return mp_fail_errno(err, EOVERFLOW, "cannot write \"%s\"", path);
    while (n > 0) {
        ssize_t put = pwrite(fd, from, n < CALL_MAX ? (size_t)n : CALL_MAX, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return mp_fail_errno(err, errno, "cannot write \"%s\" at byte %llu", path,
                                 (unsigned long long)offset);
        from += put;
        offset += (uint64_t)put;
        n -= (uint64_t)put;
    }
    return 0;
}

static int open_with(const char *path, int flags, int *fd, mp_error *err)
{
    do {
        *fd = open(path, flags | O_CLOEXEC, 0666);
    } while (*fd < 0 && errno == EINTR);
    if (*fd >= 0)
        return 0;
    /* A pack with many ranks and shards keeps hundreds of files open. */
    if (errno == EMFILE || errno == ENFILE)
        return mp_fail_errno(err, errno, "cannot open \"%s\" (raise `ulimit -n`)", path);
    if (errno == ELOOP && (flags & O_NOFOLLOW))
        return mp_fail(err, MP_ERR_IO, "\"%s\" is a symbolic link, which is not followed", path);
    if (errno == ENXIO && (flags & O_NONBLOCK)) /* a pipe that nobody reads, or a socket */
        return mp_fail(err, MP_ERR_INPUT, "%s: not a regular file", path);
    return mp_fail_errno(err, errno, "cannot open \"%s\"", path);
}

int mp_open_stream(const char *path, int *fd, mp_error *err)
{
    return open_with(path, O_RDONLY, fd, err);
}

/* Opened first and looked at then, so that nothing can take its place in between; and without
 * waiting for the other end of a pipe. */
static int open_plain(const char *path, int flags, int *fd, mp_error *err)
{
    struct stat st;
    int rc = open_with(path, flags | O_NONBLOCK, fd, err);

    if (rc != 0)
        return rc;
    /* Reading a directory fails by itself. */
    if (fstat(*fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
        return 0;
    close(*fd);
    *fd = -1;
    return mp_fail(err, MP_ERR_INPUT, "%s: not a regular file", path);
}

int mp_open_read(const char *path, int *fd, mp_error *err)
{
    return open_plain(path, O_RDONLY, fd, err);
}

int mp_open_write(const char *path, int *fd, mp_error *err)
{
    return open_plain(path, O_RDWR | O_CREAT | O_NOFOLLOW, fd, err);
}

int mp_file_size(int fd, const char *path, uint64_t *size, mp_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return mp_fail_errno(err, errno, "cannot stat \"%s\"", path);
    if (!S_ISREG(st.st_mode))
        return mp_fail(err, MP_ERR_IO, "\"%s\" is not a regular file", path);
    *size = (uint64_t)st.st_size;
    return 0;
}

int mp_file_resize(int fd, const char *path, uint64_t size, mp_error *err)
{
    if (size > INT64_MAX)
        return mp_fail_errno(err, EFBIG, "cannot resize \"%s\"", path);
    int rc;
    do {
        rc = ftruncate(fd, (off_t)size);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0)
        return mp_fail_errno(err, errno, "cannot resize \"%s\" to %llu bytes", path,
                             (unsigned long long)size);
    return 0;
}

int mp_file_sync(int fd, const char *path, mp_error *err)
{
    int rc;
    do
        /* fdatasync is enough: it covers the size, and the times do not matter. */
        rc = fdatasync(fd);
    while (rc != 0 && errno == EINTR);
    return rc == 0 ? 0 : mp_fail_errno(err, errno, "cannot sync \"%s\"", path);
}

int mp_dir_sync(const char *path, mp_error *err)
{
    int fd;
    int rc = open_with(path, O_RDONLY | O_DIRECTORY, &fd, err);
    if (rc != 0)
        return rc;
    while ((rc = fsync(fd)) != 0 && errno == EINTR)
        ;
    if (rc != 0)
        rc = mp_fail_errno(err, errno, "cannot sync \"%s\"", path);
    close(fd);
    return rc;
}

int mp_file_close(int fd, const char *path, mp_error *err)
{
    /* After EINTR Linux has closed the descriptor; trying again could close another's. */
    if (fd >= 0 && close(fd) != 0 && errno != EINTR)
        return mp_fail_errno(err, errno, "cannot close \"%s\"", path);
    return 0;
}

/* Writes in place, so a crash may leave it empty or cut off. Where that matters, write to another
 * name and rename. */
int mp_write_file(const char *path, const void *data, uint64_t n, mp_error *err)
{
    int fd;
    int rc = open_plain(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, &fd, err);
    if (rc != 0)
        return rc;
    rc = mp_pwrite_all(fd, data, n, 0, path, err);
    if (rc == 0)
        rc = mp_file_sync(fd, path, err);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    return mp_file_close(fd, path, err);
}

int mp_file_copy(const char *from, const char *to, mp_error *err)
{
    char *buffer = mp_alloc(COPY_BYTES, 1);
    int in = -1, out = -1;
    uint64_t size = 0;
    int rc = buffer ? mp_open_read(from, &in, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_file_size(in, from, &size, err);
    if (rc == 0)
        rc = mp_open_write(to, &out, err);
    if (rc == 0)
        /* An old file was not truncated when opened: drop whatever it has beyond this size. */
        rc = mp_file_resize(out, to, size, err);
    for (uint64_t at = 0; rc == 0 && at < size; at += COPY_BYTES) {
        uint64_t n = size - at < COPY_BYTES ? size - at : COPY_BYTES;

        rc = mp_pread_all(in, buffer, n, at, from, err);
        if (rc == 0)
            rc = mp_pwrite_all(out, buffer, n, at, to, err);
    }
    if (rc == 0)
        rc = mp_file_sync(out, to, err);
    if (mp_file_close(out, to, rc ? NULL : err) != 0 && rc == 0)
        rc = err->code;
    mp_file_close(in, from, NULL);
    free(buffer);
    return rc;
}

/* By reading and writing, where the kernel cannot copy by itself. */
static int copy_through_memory(int in, uint64_t from, int out, uint64_t to, uint64_t n,
                               const char *in_path, const char *out_path, mp_error *err)
{
    uint64_t step = n < COPY_BYTES ? n : COPY_BYTES;
    char *buffer = mp_alloc(step, 1);
    int rc = buffer ? 0 : mp_fail_memory(err);

    for (uint64_t at = 0; rc == 0 && at < n; at += step) {
        uint64_t part = n - at < step ? n - at : step;

        rc = mp_pread_all(in, buffer, part, from + at, in_path, err);
        if (rc == 0)
            rc = mp_pwrite_all(out, buffer, part, to + at, out_path, err);
    }
    free(buffer);
    return rc;
}

/* Let the kernel copy, and share blocks where it can. Copy through memory what it refuses. */
int mp_file_copy_range(int in, uint64_t from, int out, uint64_t to, uint64_t n, const char *in_path,
                       const char *out_path, mp_error *err)
{
    while (n > 0) {
        loff_t in_at = (loff_t)from, out_at = (loff_t)to;
        ssize_t put = copy_file_range(in, &in_at, out, &out_at, n < CALL_MAX ? n : CALL_MAX, 0);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) /* what is really wrong shows in what can be told apart */
            return copy_through_memory(in, from, out, to, n, in_path, out_path, err);
        from += (uint64_t)put;
        to += (uint64_t)put;
        n -= (uint64_t)put;
    }
    return 0;
}

int mp_make_dir(const char *path, mp_error *err)
{
    struct stat st = {0};
    if (mkdir(path, 0777) == 0)
        return 0;
    int why = errno;
    /* lstat, so that a link to a directory is not accepted. */
    if (why == EEXIST && lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return 0;
    if (why == EEXIST && S_ISLNK(st.st_mode))
        return mp_fail(err, MP_ERR_IO, "\"%s\" is a symbolic link, which is not followed", path);
    return mp_fail_errno(err, why, "cannot make directory \"%s\"", path);
}

/* Cuts the path at each slash for a moment, then restores it. */
int mp_make_dirs(char *path, size_t from, mp_error *err)
{
    int rc = 0;

    for (char *slash = path + from; rc == 0 && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        rc = mp_make_dir(path, err);
        *slash = '/';
    }
    return rc;
}

bool mp_path_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

bool mp_exists_in(const char *dir, const char *name)
{
    struct stat st;
    int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool there = fd >= 0 && fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;

    if (fd >= 0)
        close(fd);
    return there;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    return remove(path);
}

int mp_remove_tree(const char *path, mp_error *err)
{
    /* Children come before their directory, and links are removed rather than followed. */
    if (nftw(path, remove_entry, WALK_DESCRIPTORS, FTW_DEPTH | FTW_PHYS) != 0)
        return mp_fail_errno(err, errno, "cannot remove \"%s\"", path);
    return 0;
}

void mp_file_ahead(int fd, uint64_t offset, uint64_t n)
{
    if (n > 0) /* a length of 0 would mean the rest of the file */
        (void)posix_fadvise(fd, (off_t)offset, (off_t)n, POSIX_FADV_WILLNEED);
}

/* A read that comes to another step asks for the one that is MP_AHEAD_BYTES farther, the first read
 * for all up to there. So nothing has to be remembered, however many threads read in as many
 * places. */
void mp_file_read_on(int fd, uint64_t begin, uint64_t at, uint64_t n, uint64_t size)
{
    uint64_t step = (uint64_t)1 << 20;
    uint64_t from = at == 0 ? n : at / step * step + MP_AHEAD_BYTES;
    uint64_t to = mp_min_u64((at + n) / step * step + MP_AHEAD_BYTES, size);

    if (from < to)
        mp_file_ahead(fd, begin + from, to - from);
}

/* Only advice: dirty pages stay, and a system that ignores it is slower, no more. */
void mp_file_forget(int fd, uint64_t offset, uint64_t n)
{
    if (n > 0) /* a length of 0 would mean the rest of the file */
        (void)posix_fadvise(fd, (off_t)offset, (off_t)n, POSIX_FADV_DONTNEED);
}

char *mp_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);
    return mp_format("%s%s%s", dir, n == 0 || dir[n - 1] == '/' ? "" : "/", name);
}

const char *mp_path_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}
