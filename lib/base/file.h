/* SPDX-License-Identifier: Apache-2.0 */
/* base/file.h - whole reads and writes, and making them durable. */
#ifndef MP_BASE_FILE_H
#define MP_BASE_FILE_H

#include <moepack/base.h>

/* Reads or writes exactly n bytes at offset, through EINTR and short counts.
 * A file that ends early is MP_ERR_IO too. `path` is for the message only. */
int mp_pread_all(int fd, void *buffer, uint64_t n, uint64_t offset, const char *path,
                 mp_error *err);
int mp_pwrite_all(int fd, const void *buffer, uint64_t n, uint64_t offset, const char *path,
                  mp_error *err);

/* As mp_read_text, of a file that stands in a directory: MP_ERR_INPUT for a pipe or a device, which
 * others may have put there, and which would be waited for or never end. */
int mp_read_file(const char *path, uint64_t limit, char **text, uint64_t *length, mp_error *err);

/* Whether DIR/NAME is there. Takes no memory: there is no way to say that there was none. */
bool mp_exists_in(const char *dir, const char *name);

/* open(2) with O_CLOEXEC; the message says "cannot open". fd: set, or -1. A file that stands in a
 * directory: MP_ERR_INPUT for a pipe or a device. A stream that the user names: anything. */
int mp_open_read(const char *path, int *fd, mp_error *err);
int mp_open_stream(const char *path, int *fd, mp_error *err);

/* Opens for reading and writing, creates with mode 0666 less umask, does not truncate, follows no
 * link. */
int mp_open_write(const char *path, int *fd, mp_error *err);

int mp_file_size(int fd, const char *path, uint64_t *size, mp_error *err);
int mp_file_resize(int fd, const char *path, uint64_t size, mp_error *err);

/* fdatasync of a file; fsync of a directory by name. */
int mp_file_sync(int fd, const char *path, mp_error *err);
int mp_dir_sync(const char *path, mp_error *err);

/* Closes and reports what close says. fd = -1 is fine. */
int mp_file_close(int fd, const char *path, mp_error *err);

/* Writes a small file whole, synced; follows no link. */
int mp_write_file(const char *path, const void *data, uint64_t n, mp_error *err);

/* Copies a file of any size, synced. */
int mp_file_copy(const char *from, const char *to, mp_error *err);

/* Copies n bytes from one open file to another; blocks are shared where the file system can. */
int mp_file_copy_range(int in, uint64_t from, int out, uint64_t to, uint64_t n, const char *in_path,
                       const char *out_path, mp_error *err);

/* mkdir that accepts an existing directory, though no link to one. */
int mp_make_dir(const char *path, mp_error *err);

/* Makes the directories that lead to a file; what is before byte `from` of its path is there. */
int mp_make_dirs(char *path, size_t from, mp_error *err);

/* True if something is there, whatever it is; symbolic links are not followed. */
bool mp_path_exists(const char *path);

/* Removes a directory and what is in it; links are removed, not followed. */
int mp_remove_tree(const char *path, mp_error *err);

/* POSIX_FADV_WILLNEED: begins to read these bytes into the system's cache. Never fails. */
void mp_file_ahead(int fd, uint64_t offset, uint64_t n);

/* How much is read ahead of one reader: what a disk reads while a thread works on a tile, many
 * times over, and still little where memory is limited. */
#define MP_AHEAD_BYTES ((uint64_t)4 << 20)

/* For who has read n bytes at byte `at` of `size` bytes that begin at byte `begin` of the file, and
 * mostly reads on: begins to read what follows, up to MP_AHEAD_BYTES. Never fails. */
void mp_file_read_on(int fd, uint64_t begin, uint64_t at, uint64_t n, uint64_t size);

/* POSIX_FADV_DONTNEED. Never fails. */
void mp_file_forget(int fd, uint64_t offset, uint64_t n);

/* "dir/name", malloc'ed; null without memory. */
char *mp_path_join(const char *dir, const char *name);

/* The part after the last slash; "." and "/" stay. */
const char *mp_path_base(const char *path);

#endif
