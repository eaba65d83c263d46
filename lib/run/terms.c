/* SPDX-License-Identifier: Apache-2.0 */
/* The terms of a run: what all kinds of runs have in common, comparing terms, and storing them.
 *
 *     tool 1.4.0
 *     target megamoe-w4a8
 *     layers 0-3,7
 *     source model-00001-of-00002.safetensors 4999998464 5d41402abc4b2a76b9719d911017c592
 *     weights model-00001-of-00002.safetensors 7d793037a0760186574b0282f2f435e7
 *
 * Terms are compared as text, line by line, and never parsed: a new option is a new line, and an
 * old journal differs by not having it. They record what the options came to rather than what was
 * typed, so two ways of asking for the same thing are the same run. Names in them come from others.
 * One with a line feed could say that units are done, so names are escaped.
 *
 * A source is identified by the size, the header and the last 4 KiB of each shard, not by all of
 * its bytes: a run must not read a terabyte before it starts. Two finetunes of one model have the
 * same headers; to be confused they would also need the same ending in every shard.
 *
 * All of it runs on one thread, before or after the loops of a run. */
#include "run/terms.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/zstd_file.h"
#include "checkpoint/shard.h"
#include "run/compress.h"
#include "run/sidecar.h"

#define SAMPLE_BYTES 4096
#define SHOWN        200 /* of a line, in messages */

/* ------------------------------------------------------------------------
 * The text
 */

int mp_terms_text(const mp_job *job, char **text, mp_error *err)
{
    size_t length;
    FILE *f = open_memstream(text, &length);
    int rc;

    if (!f)
        return mp_fail_memory(err);
    fprintf(f, "tool %s\n", mp_version());
    rc = job->terms(job->plan, f, err);
    int finished = mp_text_finish(f, text, rc ? NULL : err);
    if (rc != 0) {
        free(*text);
        *text = NULL;
    }
    return rc ? rc : finished;
}

/* Escape backslashes too, so that no two names look the same. */
void mp_terms_name(const char *name, FILE *f)
{
    for (; *name; name++) {
        unsigned char c = (unsigned char)*name;

        if (c < 0x20 || c == 0x7f || c == '\\')
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
}

void mp_terms_selection(FILE *f, const char *key, const bool *flags, size_t count)
{
    const char *before = " ";
    bool all = true;

    for (size_t i = 0; flags && i < count; i++)
        all &= flags[i];
    fprintf(f, "%s%s", key, all ? " all" : "");
    for (size_t i = 0; !all && i < count; i++) {
        size_t last = i;

        if (!flags[i])
            continue;
        while (last + 1 < count && flags[last + 1])
            last++;
        fprintf(f, last > i ? "%s%zu-%zu" : "%s%zu", before, i, last);
        before = ",";
        i = last;
    }
    fputc('\n', f);
}

void mp_terms_source(const mp_checkpoint *ckpt, FILE *f)
{
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        const mp_shard *shard = &ckpt->shards[i];
        mp_hex_digest header;

        mp_shard_hex(shard, header);
        fputs("source ", f);
        mp_terms_name(shard->name, f);
        fprintf(f, " %" PRIu64 " %s\n", shard->size, header);
    }
}

/* The last bytes of a shard, which differ between weights of the same shapes. `source` covers the
 * header already. For a compressed file that can only be read from its beginning, use the last
 * stored bytes instead: decoding it all would take minutes, and checksums of zstd frames are among
 * them. */
static int digest_end(const mp_checkpoint *ckpt, const mp_shard *shard, mp_hex_digest hex,
                      mp_error *err)
{
    uint8_t bytes[SAMPLE_BYTES];
    bool whole = shard->zstd && !shard->zstd->seekable;
    uint64_t size = whole ? shard->stored : shard->size;
    uint64_t data = whole ? size : size - shard->header_bytes;
    uint64_t n = data < SAMPLE_BYTES ? data : SAMPLE_BYTES;
    int rc = whole ? mp_pread_all(shard->fd, bytes, n, size - n, shard->file, err)
                   : mp_shard_read(shard, ckpt->cache, size - n, n, bytes, err);

    if (rc != 0)
        return mp_error_prefix(err, "%s", shard->file);
    mp_hex_digest_of(bytes, n, hex);
    return 0;
}

int mp_terms_weights(const mp_checkpoint *ckpt, FILE *f, mp_error *err)
{
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        mp_hex_digest end;

        if (digest_end(ckpt, &ckpt->shards[i], end, err) != 0)
            return err->code;
        fputs("weights ", f);
        mp_terms_name(ckpt->shards[i].name, f);
        fprintf(f, " %s\n", end);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Comparing
 */

static mp_term term_at(const char *line)
{
    size_t length = strcspn(line, "\n");

    return (mp_term){line, (int)(length < SHOWN ? length : SHOWN)};
}

/* Two lines may look the same in a message, where only their beginnings fit. What counts is that
 * they differ. */
bool mp_terms_differ(const char *had, const char *want, mp_term *a, mp_term *b)
{
    while (*had || *want) {
        size_t n = strcspn(had, "\n"), m = strcspn(want, "\n");

        /* The last comparison tells a text that ends here from one that continues. */
        if (n != m || memcmp(had, want, n) != 0 || had[n] != want[m]) {
            *a = term_at(had);
            *b = term_at(want);
            return true;
        }
        had += n + (had[n] != '\0');
        want += m + (want[m] != '\0');
    }
    return false;
}

int mp_terms_check_done(const char *out, const char *had, const char *want, mp_error *err)
{
    mp_term a, b;

    if (!mp_terms_differ(had, want, &a, &b))
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "\"%s\" is complete and was made on other terms: it has \"%.*s\", this run "
                   "\"%.*s\"; replace it with --force",
                   out, a.length, a.text, b.length, b.text);
}

/* Compression is not a term, since it can be added and undone later; but a run must not silently
 * leave what it was asked to compress. */
int mp_terms_check_compressed(const char *out, const mp_work *work, mp_error *err)
{
    const bool want = work->zstd != MP_ZSTD_NONE;
    char *plain, *zstd;
    int rc = 0;

    if (work->num_files == 0)
        return 0;
    plain = mp_path_join(out, work->files[0].path);
    zstd = mp_out_compressed_path(&work->files[0], out);
    if (!plain || !zstd)
        rc = mp_fail_memory(err);
    else if (mp_path_exists(want ? plain : zstd)) /* a file of another name is another term */
        rc = mp_terms_check_done(out, want ? "compressed 0" : "compressed 1",
                                 want ? "compressed 1" : "compressed 0", err);
    free(plain);
    free(zstd);
    return rc;
}

/* ------------------------------------------------------------------------
 * Reports
 */

json_t *mp_terms_report(json_t *json, const char *terms)
{
    json_t *lines = json_array();
    mp_hex_digest hex;
    bool whole = json && lines;

    mp_hex_digest_of(terms, strlen(terms), hex);
    for (const char *line = terms; whole && *line;) {
        size_t length = strcspn(line, "\n");

        whole = json_array_append_new(lines, json_stringn(line, length)) == 0;
        line += length + (line[length] != '\0');
    }
    /* Both take over what they are given, also where they fail. */
    whole = json_object_set_new(json, "terms", lines) == 0 && whole;
    whole = whole && json_object_set_new(json, "terms_xxh3", json_string(hex)) == 0;
    if (whole)
        return json;
    json_decref(json);
    return NULL;
}

int mp_terms_reported(const json_t *json, const char *what, char **terms, mp_error *err)
{
    size_t length;
    FILE *f = open_memstream(terms, &length);
    const json_t *lines = json_object_get(json, "terms");
    const char *digest = json_string_value(json_object_get(json, "terms_xxh3"));
    mp_hex_digest hex;
    int rc = 0;

    if (!f)
        return mp_fail_memory(err);
    for (size_t i = 0; i < json_array_size(lines); i++) {
        const char *line = json_string_value(json_array_get(lines, i));

        fprintf(f, "%s\n", line ? line : "");
    }
    rc = mp_text_finish(f, terms, err);
    if (rc == 0) {
        /* The list may have been edited by hand, and must not then pass for what was really
         * made. */
        mp_hex_digest_of(*terms, length, hex);
        if (!digest || strcmp(digest, hex) != 0)
            rc = mp_fail(
                err, MP_ERR_INPUT,
                "%s: \"terms_xxh3\" is not the digest of \"terms\": what was made is not known",
                what);
    }
    if (rc != 0) {
        free(*terms);
        *terms = NULL;
    }
    return rc;
}
