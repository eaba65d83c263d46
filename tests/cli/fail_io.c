/* SPDX-License-Identifier: Apache-2.0 */
/* To be preloaded: makes system calls on files fail, fall short, or be the last thing that
 * a process does. Its environment says which calls, when and how:
 *
 *   FAIL_CALL   names of the calls that count: "pwrite", "pread,read"; all when not set.
 *               "open_direct", which is open with O_DIRECT, and "ahead", advice to read ahead,
 *               count only where they are named
 *   FAIL_PATH   only calls on paths that contain this text count
 *   FAIL_WITH   an errno (ENOSPC, EIO, ...), a signal (SIGKILL, SIGTERM, ...) that the process
 *               then sends itself, "short": the call moves half of the bytes asked for, or
 *               "slow": it takes a tenth of a second longer
 *   FAIL_AT     number of the first call to be affected, counted from 1, which it is when not set
 *   FAIL_TIMES  how many are affected from there on; all when not set
 *   FAIL_COUNT  file that the number of calls that count is written to at the end
 *
 * EINTR spares every second call of a thread, for else no call would ever get through. A
 * pwrite that SIGKILL meets is torn: half of it is written before. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is to happen to a call. */
typedef enum verdict { PASS, FAIL, SHORT, TORN } verdict;

static const struct {
    const char *name;
    int value;
} errnos[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EINTR", EINTR},
    {"EACCES", EACCES}, {"EDQUOT", EDQUOT}, {"EINVAL", EINVAL},
    {"EROFS", EROFS},   {"EBUSY", EBUSY},   {"EOPNOTSUPP", EOPNOTSUPP},
};
static const struct {
    const char *name;
    int value;
} signals[] = {
    {"SIGKILL", SIGKILL},
    {"SIGINT", SIGINT},
    {"SIGTERM", SIGTERM},
    {"SIGSTOP", SIGSTOP},
};

#define BLOCK    4096
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct {
    const char *call, *path;
    unsigned long at, times;
    int error, signal;
    bool is_short, is_slow;
} plan;

static atomic_ulong calls;

static unsigned long number(const char *name, unsigned long otherwise)
{
    const char *text = getenv(name);

    return text ? strtoul(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void read_environment(void)
{
    const char *with = getenv("FAIL_WITH");

    plan.call = getenv("FAIL_CALL");
    plan.path = getenv("FAIL_PATH");
    plan.at = number("FAIL_AT", 1);
    plan.times = number("FAIL_TIMES", -1UL);
    if (!with)
        return;
    plan.is_short = strcmp(with, "short") == 0;
    plan.is_slow = strcmp(with, "slow") == 0;
    for (size_t i = 0; i < COUNT(errnos); i++)
        if (strcmp(with, errnos[i].name) == 0)
            plan.error = errnos[i].value;
    for (size_t i = 0; i < COUNT(signals); i++)
        if (strcmp(with, signals[i].name) == 0)
            plan.signal = signals[i].value;
    if (!plan.is_short && !plan.is_slow && !plan.error && !plan.signal) {
        fprintf(stderr, "fail_io: FAIL_WITH=%s is not known\n", with);
        _exit(99);
    }
}

__attribute__((destructor)) static void write_count(void)
{
    const char *path = getenv("FAIL_COUNT");
    FILE *f = path ? fopen(path, "w") : NULL;

    if (f) {
        fprintf(f, "%lu\n", (unsigned long)calls);
        fclose(f);
    }
}

/* Whether the call's name is in the list. */
static bool is_listed(const char *call)
{
    size_t length = strlen(call);

    for (const char *p = plan.call; p; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, call, length) == 0 && (p[length] == ',' || p[length] == '\0'))
            return true;
    }
    return !plan.call;
}

static verdict judge(const char *call, const char *path)
{
    static _Thread_local bool interrupted;
    unsigned long n;

    if (!is_listed(call) || (plan.path && !strstr(path, plan.path)))
        return PASS;
    n = atomic_fetch_add(&calls, 1) + 1;
    if (n < plan.at || n - plan.at >= plan.times)
        return PASS;
    if (plan.signal == SIGKILL && strcmp(call, "pwrite") == 0)
        return TORN;
    if (plan.signal)
        raise(plan.signal);
    if (plan.is_slow)
        usleep(100000);
    if (plan.is_short)
        return SHORT;
    interrupted = !interrupted;
    if (!plan.error || (plan.error == EINTR && !interrupted))
        return PASS;
    errno = plan.error;
    return FAIL;
}

static verdict judge_fd(const char *call, int fd)
{
    char link[32], path[4096];
    ssize_t n;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    return judge(call, path);
}

/* Bytes that a call may move: whole blocks of whole blocks, as direct reads are cut short. */
static size_t left(verdict v, size_t n)
{
    size_t half = n % BLOCK == 0 && n > BLOCK ? n / 2 / BLOCK * BLOCK : (n + 1) / 2;

    return v == PASS ? n : half;
}

/* ------------------------------------------------------------------------
 * The calls
 */

#define NEXT(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    va_start(arguments, flags);
    mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (plan.call && (flags & O_DIRECT) && judge("open_direct", path) == FAIL)
        return -1;
    return NEXT(open)(path, flags, mode);
}

ssize_t pread(int fd, void *buffer, size_t n, off_t offset)
{
    verdict v = judge_fd("pread", fd);

    return v == FAIL ? -1 : NEXT(pread)(fd, buffer, left(v, n), offset);
}

ssize_t read(int fd, void *buffer, size_t n)
{
    verdict v = judge_fd("read", fd);

    return v == FAIL ? -1 : NEXT(read)(fd, buffer, left(v, n));
}

ssize_t pwrite(int fd, const void *buffer, size_t n, off_t offset)
{
    verdict v = judge_fd("pwrite", fd);
    ssize_t written = v == FAIL ? -1 : NEXT(pwrite)(fd, buffer, left(v, n), offset);

    if (v == TORN)
        raise(SIGKILL);
    return written;
}

int ftruncate(int fd, off_t length)
{
    return judge_fd("ftruncate", fd) == FAIL ? -1 : NEXT(ftruncate)(fd, length);
}

int fdatasync(int fd)
{
    return judge_fd("fdatasync", fd) == FAIL ? -1 : NEXT(fdatasync)(fd);
}

int fsync(int fd)
{
    return judge_fd("fsync", fd) == FAIL ? -1 : NEXT(fsync)(fd);
}

int mkdir(const char *path, mode_t mode)
{
    return judge("mkdir", path) == FAIL ? -1 : NEXT(mkdir)(path, mode);
}

int unlink(const char *path)
{
    return judge("unlink", path) == FAIL ? -1 : NEXT(unlink)(path);
}

int rename(const char *from, const char *to)
{
    return judge("rename", from) == FAIL ? -1 : NEXT(rename)(from, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    return judge("renameat2", from) == FAIL ? -1
                                            : NEXT(renameat2)(from_dir, from, to_dir, to, flags);
}

/* The same calls, where a build has 64-bit offsets under other names. */
/* No call on a file, and only counted where it is named. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    if (plan.call)
        judge("pthread_create", "");
    return NEXT(pthread_create)(thread, attributes, start, argument);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int posix_fadvise(int fd, off_t offset, off_t n, int advice)
{
    if (plan.call && advice == POSIX_FADV_WILLNEED)
        judge_fd("ahead", fd);
    return NEXT(posix_fadvise)(fd, offset, n, advice);
}

int posix_fadvise64(int fd, off64_t offset, off64_t n, int advice)
    __attribute__((alias("posix_fadvise")));
ssize_t pread64(int fd, void *buffer, size_t n, off64_t offset) __attribute__((alias("pread")));
ssize_t pwrite64(int fd, const void *buffer, size_t n, off64_t offset)
    __attribute__((alias("pwrite")));
int ftruncate64(int fd, off64_t length) __attribute__((alias("ftruncate")));
