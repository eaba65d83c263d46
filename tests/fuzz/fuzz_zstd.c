/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as one compressed file: refused with a message, or what is read anywhere is what
 * reading in order gives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/zstd_stream.h"

#define CONTENT_MAX ((uint64_t)1 << 20)

#include "fuzz.h"

/* All of the content, in order; false where it cannot be had. */
static bool stream(const mp_zstd_file *file, unsigned char *all)
{
    mp_error err = {0};
    mp_zstd_stream *s = NULL;
    size_t got = 0;
    bool good = mp_zstd_stream_open(&s, file, &err) == 0 &&
                mp_zstd_stream_read(s, all, file->content + 1, &got, &err) == 0;

    mp_zstd_stream_close(s);
    require(good || err.message[0] != '\0', "stream error");
    return good && got == file->content;
}

static void read_both_ways(mp_zstd_file *file)
{
    mp_error err = {0};
    mp_frame_cache *cache = mp_frame_cache_new(1);
    unsigned char *all = malloc(file->content + 1), *part = malloc(file->content + 1);
    bool whole = stream(file, all);

    mp_frame_cache_read_in_order(cache);
    for (uint64_t at = 0; at < file->content; at += 1 + file->content / 7) {
        uint64_t n = (file->content - at + 1) / 2;
        int rc = mp_zstd_file_read(file, cache, at, n, part, &err);

        require(rc == 0 || err.message[0] != '\0', "read error");
        if (rc == 0 && whole)
            require(memcmp(part, all + at, n) == 0, "same bytes");
        mp_zstd_file_forget(file, cache, at, n);
    }
    free(all);
    free(part);
    mp_frame_cache_free(cache);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mp_error err = {0};
    mp_zstd_file file;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    require(fd >= 0 && write(fd, data, size) == (ssize_t)size, "scratch file");
    int rc = mp_zstd_file_open(&file, fd, "fuzz", &err);
    if (rc == 0) {
        mp_zstd_file_check(&file, &err);
        if (file.content <= CONTENT_MAX)
            read_both_ways(&file);
    } else {
        require((rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED) && err.code == rc &&
                    err.message[0] != '\0',
                "error");
    }
    mp_zstd_file_release(&file);
    close(fd);
    return 0;
}
