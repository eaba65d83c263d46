/* SPDX-License-Identifier: Apache-2.0 */
/* Direct reads: the same bytes as ordinary ones, whatever begins and ends where. A file system that
 * refuses them says so when the file is opened, and nothing else is left to test there. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"

/* Not a multiple of any block; longer than two pieces. */
#define BYTES ((2u << 20) + 77777)

static uint8_t content[BYTES];
static char path[] = "direct-XXXXXX", other[] = "direct-other-XXXXXX";
static int fd = -1;
static mp_direct *direct;

static void make(void)
{
    uint32_t state = 5;
    mp_error err;

    for (size_t i = 0; i < BYTES; i++) {
        state = state * 1664525 + 1013904223;
        content[i] = (uint8_t)(state >> 24);
    }
    fd = mkstemp(path);
    cr_assert(fd >= 0);
    cr_assert_eq(mp_pwrite_all(fd, content, BYTES, 0, path, &err), 0, "%s", err.message);
}

static void clear(void)
{
    mp_direct_close(direct);
    close(fd);
    unlink(path);
}

TestSuite(direct, .init = make, .fini = clear);

/* Whether the file system has direct reads. */
static bool opened(void)
{
    mp_error err = {0};
    int rc = mp_direct_open(&direct, fd, path, &err);

    if (rc == 0)
        return true;
    cr_assert_eq(rc, MP_ERR_UNSUPPORTED, "%s", err.message);
    cr_assert_str_eq(err.message,
                     "its file system refuses direct reads (O_DIRECT): use --io buffered or auto");
    cr_assert_null(direct);
    return false;
}

Test(direct, bytes_are_those_of_the_file)
{
    static const uint64_t offsets[] = {0, 1, 511, 512, 4095, 4096, 4097, 12345, 1 << 20, 1048577};
    static const uint64_t lengths[] = {0,     1,       65535,   65536,   65537,
                                       70001, 1 << 20, 1048577, 1052673, 1056768};
    uint8_t *got = malloc(BYTES + 1);
    mp_error err;

    if (!opened()) {
        free(got);
        return;
    }
    for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
        for (size_t l = 0; l <= sizeof lengths / sizeof *lengths; l++) {
            /* The last is all there is. */
            uint64_t left = BYTES - offsets[o],
                     n = l < sizeof lengths / sizeof *lengths ? lengths[l] : left;

            if (n > left)
                continue;
            memset(got, 0xa5, BYTES + 1);
            /* Into memory that is not aligned either. */
            cr_assert_eq(mp_direct_read(direct, got + 1, n, offsets[o], path, &err), 0, "%s",
                         err.message);
            cr_assert_arr_eq(got + 1, content + offsets[o], n);
            cr_assert_eq(got[0], 0xa5);
            if (n < BYTES)
                cr_assert_eq(got[n + 1], 0xa5);
        }
    }
    free(got);
}

/* Says of a file that has been cut what an ordinary read says. */
static void check_cut(uint64_t size, uint64_t n, uint64_t offset)
{
    uint8_t *got = malloc(n);
    mp_error direct_err, ordinary_err;

    cr_assert_eq(mp_file_resize(fd, path, size, NULL), 0);
    cr_assert_eq(mp_direct_read(direct, got, n, offset, path, &direct_err), MP_ERR_IO);
    cr_assert_eq(mp_pread_all(fd, got, n, offset, path, &ordinary_err), MP_ERR_IO);
    cr_assert_str_eq(direct_err.message, ordinary_err.message);
    free(got);
}

Test(direct, a_truncated_file_ends_early)
{
    if (!opened())
        return;
    check_cut(BYTES - 1, BYTES, 0);
    check_cut((1 << 20) + 333, BYTES - 99, 99);
    check_cut(1 << 20, BYTES, 0);
    check_cut(70000, 65536, 69999);
    check_cut(50000, 65536, 69999); /* before what is wanted, */
    check_cut(0, 65536, 0);         /* and from the beginning */
}

Test(direct, another_file_in_its_place_is_refused)
{
    int there = mkstemp(other);
    mp_error err;

    if (opened()) {
        mp_direct_close(direct);
        cr_assert_eq(write(there, content, 4096), 4096);
        cr_assert_eq(rename(other, path), 0);
        cr_assert_eq(mp_direct_open(&direct, fd, path, &err), MP_ERR_IO);
        cr_assert_str_eq(err.message, "was replaced while it was opened");
        cr_assert_null(direct);
    }
    close(there);
    unlink(other);
}

Test(direct, too_many_open_files_are_told)
{
    struct rlimit limit, none;
    char want[200];
    mp_error err;
    int rc;

    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = (rlim_t)fd + 1;
    for (int i = 0; i < fd; i++)
        if (fcntl(i, F_GETFD) == -1)
            dup2(fd, i);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    rc = mp_direct_open(&direct, fd, path, &err);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    cr_assert_eq(rc, MP_ERR_IO);
    snprintf(want, sizeof want, "cannot open \"%s\" (raise `ulimit -n`): Too many open files",
             path);
    cr_assert_str_eq(err.message, want);
}

Test(direct, only_who_asks_gets_them)
{
    mp_error err;

    cr_assert_eq(mp_direct_choose(&direct, MP_IO_AUTO, fd, path, &err), 0);
    cr_assert_null(direct);
    cr_assert_eq(mp_direct_choose(&direct, MP_IO_BUFFERED, fd, path, &err), 0);
    cr_assert_null(direct);
    if (mp_direct_choose(&direct, MP_IO_DIRECT, fd, path, &err) == 0)
        cr_assert_not_null(direct);
    else
        cr_assert_eq(err.code, MP_ERR_UNSUPPORTED, "%s", err.message);
}
