/* SPDX-License-Identifier: Apache-2.0 */
/* base/direct.h - reading a file past the system's cache. */
#ifndef MP_BASE_DIRECT_H
#define MP_BASE_DIRECT_H

#include <moepack/base.h>

typedef struct mp_direct mp_direct;

/* Opens the file at `path` once more, which is the one that is open as fd.
 * MP_ERR_UNSUPPORTED if its file system refuses direct reads; MP_ERR_IO. Messages do not name the
 * file unless it cannot be opened. */
int mp_direct_open(mp_direct **direct, int fd, const char *path, mp_error *err);
void mp_direct_close(mp_direct *direct); /* null is fine */

/* The same where io is direct; else *direct is null. */
int mp_direct_choose(mp_direct **direct, mp_io io, int fd, const char *path, mp_error *err);

/* As mp_pread_all (file.h), of any bytes and into any memory. Safe to call from several threads;
 * each call takes up to 1 MiB of memory. Short reads come out of the system's cache, through the
 * descriptor that was given to mp_direct_open. */
int mp_direct_read(const mp_direct *direct, void *buffer, uint64_t n, uint64_t offset,
                   const char *path, mp_error *err);

/* One or the other: direct, or from fd where that is null. */
int mp_read_bulk(int fd, const mp_direct *direct, void *buffer, uint64_t n, uint64_t offset,
                 const char *path, mp_error *err);

#endif
