/* SPDX-License-Identifier: Apache-2.0 */
/* Small files beside the tensors: texts, copies, indexes. */
#include "run/sidecar.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"

#include <stdlib.h>
#include <string.h>

#define COPY_LIMIT (16u << 20)

void mp_hex_digest_of(const void *data, size_t n, mp_hex_digest hex)
{
    mp_digest digest;

    mp_digest_of(data, n, &digest);
    mp_digest_text(&digest, hex);
}

int mp_put_text(const char *dir, const char *name, const char *text, size_t length,
                mp_hex_digest hex, mp_error *err)
{
    char *path = mp_path_join(dir, name);
    int rc = path ? mp_write_file(path, text, length, err) : mp_fail_memory(err);

    if (rc == 0 && hex)
        mp_hex_digest_of(text, length, hex);
    free(path);
    return rc;
}

int mp_put_copy(const char *from, const char *dir, const char *name, mp_hex_digest hex,
                mp_error *err)
{
    char *path = mp_path_join(from, name), *text;
    uint64_t length;
    int rc = path ? mp_read_file(path, COPY_LIMIT, &text, &length, err) : mp_fail_memory(err);

    free(path);
    if (rc == 0) {
        rc = mp_put_text(dir, name, text, length, hex, err);
        free(text);
    }
    return rc;
}

int mp_put_index(const mp_work *work, size_t first, size_t count, const char *dir, const char *name,
                 mp_hex_digest hex, mp_error *err)
{
    char *text;
    int rc = mp_work_index(work, first, count, &text, err);

    if (rc == 0) {
        rc = mp_put_text(dir, name, text, strlen(text), hex, err);
        free(text);
    }
    return rc;
}

void mp_shard_hex(const mp_shard *shard, mp_hex_digest hex)
{
    mp_digest digest;

    memcpy(digest.bytes, shard->header_xxh3, sizeof digest.bytes);
    mp_digest_text(&digest, hex);
}
