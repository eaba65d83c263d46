/* SPDX-License-Identifier: Apache-2.0 */
/* Compressing and decompressing directories as a job.
 *
 * A file is a unit and a stage of its own, so that files are worked on one after another, each by
 * all threads. Its data is durable before the unit is journaled; a unit that was interrupted begins
 * its file anew.
 *
 * Two things make a half-done directory safe. The manifest of a pack is the last unit, since it
 * gives files the names and sizes that they have only then. And what is there already is compared
 * by names and headers of shards before it is taken for the result, or replaced: a directory as any
 * other has no place for terms.
 *
 * Terms have a digest of each file's first and last 64 KiB, which tells another file of the same
 * name and size, and costs little for hundreds of large ones. */
#include "write/compress.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/options.h"
#include "base/parallel.h"
#include "checkpoint/compress.h"
#include "numeric/quantize.h"
#include "run/journal.h"
#include "run/partial.h"
#include "run/sidecar.h"
#include "run/terms.h"
#include "run/work.h"

#define SAMPLE_BYTES ((uint64_t)64 << 10)

typedef struct compress_plan {
    const char *from;
    char *partial;
    const mp_compress_options *options;
    const mp_context *context;
    mp_entries entries;
    mp_work work;
} compress_plan;

/* ------------------------------------------------------------------------
 * Terms
 */

/* Digest of a file's first and last bytes. */
static int sample(const char *dir, const mp_entry *entry, mp_hex_digest hex, mp_error *err)
{
    char *path = mp_path_join(dir, entry->path), *bytes = mp_alloc(2 * SAMPLE_BYTES, 1);
    /* The two pieces of a short file overlap. */
    uint64_t n = entry->bytes < SAMPLE_BYTES ? entry->bytes : SAMPLE_BYTES;
    int fd = -1, rc = path && bytes ? mp_open_read(path, &fd, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_pread_all(fd, bytes, n, 0, path, err);
    if (rc == 0)
        rc = mp_pread_all(fd, bytes + n, n, entry->bytes - n, path, err);
    if (rc == 0)
        mp_hex_digest_of(bytes, 2 * n, hex);
    mp_file_close(fd, path, NULL);
    free(path);
    free(bytes);
    return rc;
}

static int print_terms(const void *user, FILE *f, mp_error *err)
{
    const compress_plan *plan = user;

    if (plan->options->decompress)
        fprintf(f, "decompress\n");
    else if (plan->options->level == MP_ZSTD_AUTO)
        fprintf(f, "compress auto\n");
    else
        fprintf(f, "compress %d\n", plan->options->level);
    for (size_t i = 0; i < plan->entries.count; i++) {
        const mp_entry *entry = &plan->entries.list[i];
        mp_hex_digest hex;
        int rc = sample(plan->from, entry, hex, err);

        if (rc != 0)
            return rc;
        fputs("file ", f);
        mp_terms_name(entry->path, f);
        fprintf(f, " %" PRIu64 " %s\n", entry->bytes, hex);
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Units
 */

static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    (void)user;
    units[0] = stage;
    return 1;
}

static uint64_t unit_bytes(const void *user, uint64_t unit)
{
    return ((const compress_plan *)user)->entries.list[unit].bytes;
}

static int sync_dir_of(char *path, mp_error *err)
{
    char *slash = strrchr(path, '/');

    *slash = '\0';
    int rc = mp_dir_sync(path, err);
    *slash = '/';
    return rc;
}

static int write_entry(const compress_plan *plan, const mp_entry *entry, const char *from,
                       const char *to, mp_error *err)
{
    if (entry->kind == MP_ENTRY_OTHER)
        return mp_file_copy(from, to, err);
    if (entry->kind == MP_ENTRY_MANIFEST)
        return mp_manifest_rename_files(plan->from, plan->partial, plan->options->decompress, err);
    if (plan->options->decompress)
        return mp_file_decompress(from, to, plan->context, err);
    return mp_file_compress(from, to, plan->options->level, plan->context, err);
}

static int run_unit(const void *user, uint64_t unit, struct mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    const compress_plan *plan = user;
    const mp_entry *entry = &plan->entries.list[unit];
    char *from = mp_path_join(plan->from, entry->path);
    char *to = mp_path_join(plan->partial, entry->out);
    int rc = from && to ? mp_make_dirs(to, strlen(plan->partial) + 1, err) : mp_fail_memory(err);

    (void)outputs;
    (void)scratch;
    (void)stats;
    if (rc == 0)
        rc = write_entry(plan, entry, from, to, err);
    if (rc == 0)
        /* The name of a file is data of its directory: sync it too before the unit is journaled. */
        rc = sync_dir_of(to, err);
    if (rc != 0 && entry->kind == MP_ENTRY_SHARD && strchr(entry->path, '/'))
        mp_error_prefix(err, "%.*s", (int)(strrchr(entry->path, '/') - entry->path), entry->path);
    free(from);
    free(to);
    return rc;
}

/* Every file was a unit. */
static int finish(const void *user, const mp_progress_state *state, const char *partial,
                  mp_error *err)
{
    (void)user;
    (void)state;
    (void)partial;
    (void)err;
    return 0;
}

/* ------------------------------------------------------------------------
 * What is there already
 */

/* That OUT holds the files, by name, that the plan writes, and no others. */
static int check_same_files(const compress_plan *plan, const char *out, mp_error *err)
{
    mp_entries there;
    int rc = mp_entries_list(&there, out, plan->options->decompress, err);
    bool same = rc == 0 && there.count == plan->entries.count;

    for (size_t i = 0; same && i < there.count; i++)
        same = strcmp(there.list[i].path, plan->entries.list[i].out) == 0;
    mp_entries_release(&there);
    if (rc == 0 && !same)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" exists and holds different files: not replaced",
                       out);
    return rc;
}

static int same_header(const compress_plan *plan, const char *out, const mp_entry *entry,
                       bool *same, mp_error *err)
{
    const mp_context buffered = mp_buffered(plan->context);
    mp_checkpoint a = {0}, b = {0};
    char *from = mp_path_join(plan->from, entry->path), *to = mp_path_join(out, entry->out);
    int rc = from && to ? mp_checkpoint_open(&a, from, plan->context, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_checkpoint_open(&b, to, &buffered, err);
    *same = rc == 0 && a.shards[0].size == b.shards[0].size &&
            memcmp(a.shards[0].header_xxh3, b.shards[0].header_xxh3,
                   sizeof a.shards[0].header_xxh3) == 0;
    mp_checkpoint_release(&a);
    mp_checkpoint_release(&b);
    free(from);
    free(to);
    return rc;
}

/* Files of the same names, and shards of the same tensors. */
static int check_done(const void *user, const char *out, const char *terms, mp_error *err)
{
    const compress_plan *plan = user;
    bool same = true;

    (void)terms; /* a directory as it was has no place for them */
    int rc = check_same_files(plan, out, err);

    for (size_t i = 0; rc == 0 && same && i < plan->entries.count; i++)
        if (plan->entries.list[i].kind == MP_ENTRY_SHARD)
            rc = same_header(plan, out, &plan->entries.list[i], &same, err);
    if (rc == MP_ERR_USAGE || (rc == 0 && !same))
        return mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and was made from another directory",
                       out);
    return rc;
}

/* mp_compress has looked at it. */
static bool is_whole(const char *out)
{
    return mp_path_exists(out);
}

static bool owns(const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strcmp(name, "journal") != 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

/* True if one lies inside the other, or they are the same. */
static bool lies_inside(const char *inner, const char *outer)
{
    char *a = realpath(inner, NULL), *b = realpath(outer, NULL);
    size_t n = b ? strlen(b) : 0;
    /* n is 1 for "/", inside of which everything lies. */
    bool inside = a && b && strncmp(a, b, n) == 0 && (a[n] == '\0' || a[n] == '/' || n == 1);

    free(a);
    free(b);
    return inside;
}

/* OUT may not exist yet: then where it will lie says where it is. */
static int check_apart(const char *from, const char *out, mp_error *err)
{
    char *parent = mp_without_slashes(out), *slash = parent ? strrchr(parent, '/') : NULL;
    bool inside = false;

    if (!parent)
        return mp_fail_memory(err);
    if (!mp_path_exists(out)) {
        if (slash)
            slash[slash == parent] = '\0';
        inside = lies_inside(slash ? parent : ".", from);
    } else {
        inside = lies_inside(out, from) || lies_inside(from, out);
    }
    free(parent);
    return inside ? mp_fail(err, MP_ERR_USAGE, "\"%s\" and \"%s\" lie in each other", from, out)
                  : 0;
}

static int init_plan(compress_plan *plan, const char *out, mp_run_mode mode, mp_error *err)
{
    char *plain = mp_without_slashes(out);
    int rc = mp_entries_list(&plan->entries, plan->from, plan->options->decompress, err);

    plan->partial = plain ? mp_format("%s.partial", plain) : NULL;
    free(plain);
    if (rc == 0 && !plan->partial)
        rc = mp_fail_memory(err);
    if (rc == 0 && plan->entries.count >= UINT32_MAX)
        rc = mp_fail(err, MP_ERR_USAGE, "%zu files are too many", plan->entries.count);
    if (rc == 0 && mode == MP_RUN_FORCE && mp_path_exists(out))
        rc = check_same_files(plan, out, err);
    plan->work = (mp_work){.num_units = plan->entries.count,
                           .num_stages = (uint32_t)plan->entries.count,
                           .stage_units = 1,
                           .lossless = true};
    for (size_t i = 0; i < plan->entries.count; i++)
        plan->work.bytes_written += plan->entries.list[i].bytes;
    plan->work.bytes_read = plan->work.bytes_written;
    return rc;
}

int mp_compress(const char *from, const char *out, const mp_compress_options *given,
                mp_run_mode mode, const mp_context *context, mp_compress_report *report,
                mp_error *err)
{
    mp_compress_options own;
    /* A unit has all threads to itself. */
    compress_plan plan = {.from = from, .options = &own, .context = context};
    const mp_job job = {
        .plan = &plan,
        .work = &plan.work,
        .terms = print_terms,
        .units = list_units,
        .unit_bytes = unit_bytes,
        .run = run_unit,
        .finish = finish,
        .check_done = check_done,
        .is_whole = is_whole,
        .kind = "a directory",
        .owns = owns,
    };

    err = MP_NEVER_NULL(err);
    if (mp_options_take("mp_compress_options", &own, sizeof own, given, err) != 0)
        return err->code;
    if (!own.decompress && own.level != MP_ZSTD_AUTO &&
        (own.level < 1 || own.level > MP_ZSTD_LEVEL_MAX))
        return mp_fail(err, MP_ERR_USAGE, "level %d is not between 1 and %d", own.level,
                       MP_ZSTD_LEVEL_MAX);
    int rc = check_apart(from, out, err);
    if (rc == 0)
        rc = init_plan(&plan, out, mode, err);
    if (rc == 0)
        rc = mp_job_run(&job, out, mode, context, err);
    if (rc == 0 && report)
        rc = mp_compress_measure(own.decompress ? from : out, context, report, err);
    mp_entries_release(&plan.entries);
    free(plan.partial);
    return rc;
}
