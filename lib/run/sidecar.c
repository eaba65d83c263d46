/* SPDX-License-Identifier: Apache-2.0 */
/* Small files beside the tensors: texts, copies, indexes; and how a source is told from others. */
#include "run/sidecar.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define COPY_LIMIT   (16u << 20)
#define SAMPLE_BYTES 4096

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
    int rc = path ? mp_read_text(path, COPY_LIMIT, &text, &length, err) : mp_fail_memory(err);

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

/* ------------------------------------------------------------------------
 * Sources
 */

void mp_shard_hex(const mp_shard *shard, mp_hex_digest hex)
{
    mp_digest digest;

    memcpy(digest.bytes, shard->header_xxh3, sizeof digest.bytes);
    mp_digest_text(&digest, hex);
}

/* The last bytes of a shard: other weights of the same shapes have other ones. Of a compressed
 * file it is those of its seek table, with checksums of its last frames. */
static int digest_end(const mp_shard *shard, mp_hex_digest hex, mp_error *err)
{
    uint8_t bytes[SAMPLE_BYTES];
    uint64_t data = shard->zstd ? shard->stored : shard->size - shard->header_bytes;
    uint64_t n = data < SAMPLE_BYTES ? data : SAMPLE_BYTES;

    if (mp_pread_all(shard->fd, bytes, n, shard->stored - n, shard->file, err) != 0)
        return err->code;
    mp_hex_digest_of(bytes, n, hex);
    return 0;
}

int mp_source_terms(const mp_checkpoint *ckpt, FILE *f, mp_error *err)
{
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        const mp_shard *shard = &ckpt->shards[i];
        mp_hex_digest header, end;

        mp_shard_hex(shard, header);
        if (digest_end(shard, end, err) != 0)
            return err->code;
        fprintf(f, "source %s %" PRIu64 " %s %s\n", shard->name, shard->size, header, end);
    }
    return 0;
}

const char *mp_selection_term(const bool *flags, size_t count, mp_hex_digest text)
{
    if (!flags)
        return "all";
    mp_hex_digest_of(flags, count * sizeof *flags, text);
    return text;
}
