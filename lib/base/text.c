/* SPDX-License-Identifier: Apache-2.0 */
/* Small files and standard input, read whole. */
#include <moepack/base.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"

#define FIRST_SIZE 65536

/* What has been read; one byte of it is kept free for the NUL. */
struct buffer {
    char *text;
    uint64_t used, size;
};

static int grow(struct buffer *buffer, mp_error *err)
{
    uint64_t size = buffer->size ? buffer->size * 2 : FIRST_SIZE;
    char *text = realloc(buffer->text, size);
    if (!text)
        return mp_fail_memory(err);
    buffer->text = text;
    buffer->size = size;
    return 0;
}

/* Reads to the end of a file that may be a pipe, so its size is not known before. */
static int read_to_end(int fd, const char *name, uint64_t limit, struct buffer *buffer,
                       mp_error *err)
{
    for (;;) {
        if (buffer->used + 1 >= buffer->size) {
            int rc = grow(buffer, err);
            if (rc != 0)
                return rc;
        }
        ssize_t n =
            read(fd, buffer->text + buffer->used, (size_t)(buffer->size - buffer->used - 1));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return mp_fail_errno(err, errno, "cannot read \"%s\"", name);
        if (n == 0)
            return 0;
        buffer->used += (uint64_t)n;
        if (buffer->used > limit)
            return mp_fail(err, MP_ERR_INPUT, "\"%s\" is larger than %llu bytes", name,
                           (unsigned long long)limit);
    }
}

static int read_all(int fd, const char *name, uint64_t limit, char **text, uint64_t *length,
                    mp_error *err)
{
    struct buffer buffer = {0};
    int rc = read_to_end(fd, name, limit, &buffer, err);
    if (rc != 0) {
        free(buffer.text);
        return rc;
    }
    buffer.text[buffer.used] = '\0';
    *text = buffer.text;
    if (length)
        *length = buffer.used;
    return 0;
}

/* Reads and closes. */
static int read_open(int fd, const char *path, uint64_t limit, char **text, uint64_t *length,
                     mp_error *err)
{
    int rc = read_all(fd, path, limit, text, length, err);

    close(fd);
    return rc;
}

int mp_read_text(const char *path, uint64_t limit, char **text, uint64_t *length, mp_error *err)
{
    int fd;
    if (strcmp(path, "-") == 0)
        return read_all(STDIN_FILENO, "standard input", limit, text, length, err);
    int rc = mp_open_stream(path, &fd, err);
    return rc ? rc : read_open(fd, path, limit, text, length, err);
}

int mp_read_file(const char *path, uint64_t limit, char **text, uint64_t *length, mp_error *err)
{
    int fd, rc = mp_open_read(path, &fd, err);

    return rc ? rc : read_open(fd, path, limit, text, length, err);
}
