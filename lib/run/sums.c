/* SPDX-License-Identifier: Apache-2.0 */
/* SHA256SUMS: taken while files are written, or of files that are already there; and checking it.
 *
 *     9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  rank-000/model-...
 *
 * SHA-256 cannot be assembled from parts, so a file has to be hashed from its beginning. Shards
 * hold tensors in the order of layers, and stages are layers. So after each stage a file is
 * complete up to the first tensor of a later stage, and that much is hashed while its pages are
 * still in memory. Reading everything again at the end would double the reading of a run that is
 * bound by the disk.
 *
 * A resumed run hashes from the beginning, since the state of a hash is not kept. A file that is to
 * be compressed is hashed once, in its compressed form.
 *
 * Lists are sorted by path, bytewise, so that the file is the same everywhere and lookups can
 * bisect. Files are hashed in parallel, one thread per file, and a thread touches only the sum of
 * its own. */
#include "run/sums.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/direct.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/tree.h"
#include "checkpoint/shard.h"
#include "run/compress.h"
#include "run/journal.h"
#include "run/sidecar.h"

#define READ_BYTES ((uint64_t)256 << 10)
#define TEXT_LIMIT ((uint64_t)1 << 30)
#define HEX        (MP_SHA_TEXT - 1)

/* Where the hashing of a directory is told of. */
typedef struct hashing {
    const mp_context *context;
    mp_meter meter;
} hashing;

/* told: may be null. */
static int add_bytes(mp_sha *sha, int fd, const mp_direct *direct, const char *path, uint64_t begin,
                     uint64_t end, void *buffer, hashing *told, mp_error *err)
{
    for (uint64_t at = begin; at < end; at += READ_BYTES) {
        uint64_t n = end - at < READ_BYTES ? end - at : READ_BYTES;

        if (mp_read_bulk(fd, direct, buffer, n, at, path, err) != 0)
            return err->code;
        if (!direct)
            mp_file_read_on(fd, 0, at, n, end);
        mp_sha_update(sha, buffer, n);
        if (told)
            mp_meter_add(&told->meter, told->context, n);
    }
    return 0;
}

/* What a run has just written is read through the system's cache, where it still is. */
static int sum_file(const char *path, void *buffer, hashing *told, char hex[MP_SHA_TEXT],
                    mp_error *err)
{
    mp_io io = told && told->context ? told->context->io : MP_IO_BUFFERED;
    mp_direct *direct = NULL;
    uint64_t size = 0;
    mp_sha sha;
    int fd, rc = mp_open_read(path, &fd, err);

    if (rc != 0)
        return rc;
    mp_sha256_begin(&sha);
    rc = mp_file_size(fd, path, &size, err);
    if (rc == 0 && mp_direct_choose(&direct, io, fd, path, err) != 0)
        rc = mp_error_prefix(err, "%s", path);
    if (rc == 0)
        rc = add_bytes(&sha, fd, direct, path, 0, size, buffer, told, err);
    mp_sha_end(&sha, hex);
    mp_direct_close(direct);
    mp_file_close(fd, path, NULL);
    return rc;
}

/* ------------------------------------------------------------------------
 * While files are written
 */

int mp_sums_init(mp_sums *sums, const mp_work *work, mp_error *err)
{
    *sums = (mp_sums){.work = work};
    if (!work->sha256)
        return 0;
    sums->files = mp_alloc_zeroed(work->num_files, sizeof *sums->files);
    if (!sums->files)
        return mp_fail_memory(err);
    for (size_t f = 0; f < work->num_files; f++)
        mp_sha256_begin(&sums->files[f].sha);
    return 0;
}

void mp_sums_release(mp_sums *sums)
{
    free(sums->files);
    *sums = (mp_sums){0};
}

typedef struct advance_job {
    mp_sums *sums;
    const mp_outputs *outputs;
    uint32_t stage;
    const char *dir;
} advance_job;

/* A compressed file appears all at once, when its last stage ends (run/compress.c). */
static int sum_compressed(const advance_job *job, size_t f, void *buffer, mp_error *err)
{
    char *path = mp_out_compressed_path(&job->sums->work->files[f], job->dir);
    int rc =
        path ? sum_file(path, buffer, NULL, job->sums->files[f].hex, err) : mp_fail_memory(err);

    job->sums->files[f].whole = rc == 0;
    free(path);
    return rc;
}

/* Runs in parallel over files. An offset marks how far a file is hashed, so a stage that adds
 * nothing to a file costs nothing. */
static int advance(void *user, uint64_t f, void *buffer, mp_error *err)
{
    const advance_job *job = user;
    const mp_work *work = job->sums->work;
    const mp_out_file *file = &work->files[f];
    const mp_out_tensor *tensors = &work->outputs[file->first_tensor];
    mp_file_sum *sum = &job->sums->files[f];
    uint64_t end = sum->done;
    int rc;

    if (sum->whole)
        return 0;
    if (work->zstd != MP_ZSTD_NONE)
        return job->outputs->compressed[f] ? sum_compressed(job, f, buffer, err) : 0;
    /* Stop at the first tensor that a later stage fills, even if those behind it are done. The
     * header lies before the first tensor and is hashed along with it. */
    while (sum->tensor < file->num_tensors && tensors[sum->tensor].stage <= job->stage) {
        end = tensors[sum->tensor].offset + tensors[sum->tensor].bytes;
        sum->tensor++;
    }
    rc = add_bytes(&sum->sha, job->outputs->fds[f], NULL, file->path, sum->done, end, buffer, NULL,
                   err);
    sum->done = end;
    if (rc == 0 && sum->tensor == file->num_tensors) {
        mp_sha_end(&sum->sha, sum->hex);
        sum->whole = true;
    }
    return rc;
}

int mp_sums_advance(mp_sums *sums, const mp_outputs *outputs, uint32_t stage, const char *dir,
                    const mp_context *context, mp_error *err)
{
    advance_job job = {sums, outputs, stage, dir};

    if (!sums->files)
        return 0;
    return mp_parallel(context, sums->work->num_files, READ_BYTES, advance, &job, err);
}

/* ------------------------------------------------------------------------
 * Of a directory
 */

/* A file and its sum. */
typedef struct line {
    char *path;
    char hex[MP_SHA_TEXT]; /* "" before it is known */
} line;

typedef struct lines {
    const char *dir;
    const char *passed_over; /* a file that will not stay; or null */
    line *list;
    size_t count;
    uint64_t bytes; /* of the files that were found */
    hashing told;   /* no context: nobody is told */
} lines;

static void release_lines(lines *all)
{
    for (size_t i = 0; i < all->count; i++)
        free(all->list[i].path);
    free(all->list);
}

static int add_line(lines *all, const char *path, size_t length, mp_error *err)
{
    size_t n = all->count;

    if ((n & (n - 1)) == 0) { /* full: there is room for a power of two */
        line *more = realloc(all->list, (n > 0 ? 2 * n : 1) * sizeof *more);

        if (!more)
            return mp_fail_memory(err);
        all->list = more;
    }
    all->list[n] = (line){.path = strndup(path, length)};
    if (!all->list[n].path)
        return mp_fail_memory(err);
    all->count++;
    return 0;
}

/* sha256sum escapes such names and starts the line with a backslash. We never write such names, so
 * refuse them instead of supporting that form. */
static int visit(void *user, const char *path, uint64_t bytes, mp_error *err)
{
    lines *all = user;

    if (strcmp(path, MP_SUMS_NAME) == 0 || strcmp(path, MP_SUMS_NEW) == 0 ||
        (all->passed_over && strcmp(path, all->passed_over) == 0))
        return 0;
    if (strpbrk(path, "\n\\"))
        return mp_fail(err, MP_ERR_INPUT, "a file's name has a line feed or a backslash: \"%s\"",
                       path);
    all->bytes += bytes;
    return add_line(all, path, strlen(path), err);
}

static int by_path(const void *a, const void *b)
{
    const line *x = a, *y = b;

    return strcmp(x->path, y->path);
}

static int list_files(lines *all, mp_error *err)
{
    int rc = mp_tree_files(all->dir, visit, all, err);

    if (rc == 0 && all->count > 1)
        qsort(all->list, all->count, sizeof *all->list, by_path);
    return rc;
}

/* The lists are sorted by path. */
static line *find_line(const lines *all, const char *path)
{
    line key = {.path = (char *)path};

    return all->count ? bsearch(&key, all->list, all->count, sizeof key, by_path) : NULL;
}

static int sum_line(void *user, uint64_t i, void *buffer, mp_error *err)
{
    lines *all = user;
    char *path;
    int rc;

    if (all->list[i].hex[0] != '\0')
        return 0;
    path = mp_path_join(all->dir, all->list[i].path);
    rc = path ? sum_file(path, buffer, &all->told, all->list[i].hex, err) : mp_fail_memory(err);
    free(path);
    return rc;
}

static int sum_lines(lines *all, const mp_context *context, mp_error *err)
{
    return mp_parallel(context, all->count, READ_BYTES, sum_line, all, err);
}

/* The same, where it is all that is done: with a phase of its own. */
static int sum_shown(lines *all, const mp_context *context, mp_error *err)
{
    all->told = (hashing){.context = context, .meter.total = all->bytes};
    mp_begin_phase(context, "hashing");
    return sum_lines(all, context, err);
}

/* Takes over what was computed while the files were written. */
static int take_sums(const mp_sums *sums, lines *all, mp_error *err)
{
    const mp_work *work = sums->work;

    for (size_t f = 0; f < work->num_files; f++) {
        char *path = mp_format("%s%s", work->files[f].path,
                               work->zstd != MP_ZSTD_NONE ? MP_ZSTD_SUFFIX : "");
        line *found = path ? find_line(all, path) : NULL;

        /* Files of a resumed run, and files that were here before, may have none: they are hashed
         * next. */
        if (found && sums->files[f].whole)
            memcpy(found->hex, sums->files[f].hex, MP_SHA_TEXT);
        free(path);
        if (!path)
            return mp_fail_memory(err);
    }
    return 0;
}

/* Whole or not at all: what was there stays until then. */
static int replace_sums(const char *dir, const char *text, size_t length, mp_error *err)
{
    char *path = mp_path_join(dir, MP_SUMS_NAME), *new = mp_path_join(dir, MP_SUMS_NEW);
    struct stat st;
    int rc = path && new ? 0 : mp_fail_memory(err);

    /* Renaming would take the place of a link; whoever made one is to know that it is not used. */
    if (rc == 0 && lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
        rc = mp_fail(err, MP_ERR_IO, "\"%s\" is a symbolic link, which is not followed", path);
    if (rc == 0)
        rc = mp_write_file(new, text, length, err);
    if (rc == 0 && rename(new, path) != 0)
        rc = mp_fail_errno(err, errno, "cannot rename \"%s\"", new);
    free(path);
    free(new);
    return rc;
}

static int put_lines(const lines *all, mp_error *err)
{
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    int rc;

    if (!f)
        return mp_fail_memory(err);
    for (size_t i = 0; i < all->count; i++)
        fprintf(f, "%s  %s\n", all->list[i].hex, all->list[i].path);
    rc = mp_text_finish(f, &text, err);
    if (rc == 0)
        rc = replace_sums(all->dir, text, length, err);
    free(text);
    return rc ? rc : mp_dir_sync(all->dir, err);
}

int mp_sums_write(const mp_sums *sums, const char *dir, const mp_context *context, mp_error *err)
{
    lines all = {.dir = dir, .passed_over = sums ? MP_JOURNAL_NAME : NULL};
    int rc = list_files(&all, err);

    if (rc == 0 && sums && sums->files)
        rc = take_sums(sums, &all, err);
    if (rc == 0)
        rc = sums ? sum_lines(&all, context, err) : sum_shown(&all, context, err);
    if (rc == 0)
        rc = put_lines(&all, err);
    release_lines(&all);
    return rc;
}

int mp_checksums_write(const char *dir, const mp_context *context, mp_error *err)
{
    return mp_sums_write(NULL, dir, context, MP_NEVER_NULL(err));
}

/* ------------------------------------------------------------------------
 * Checking
 */

/* Reads what the directory's SHA256SUMS says, sorted. Names are only looked up among the files that
 * the walk found and are never opened, so one with "../" in it is just missing. */
static int read_lines(lines *said, mp_error *err)
{
    char *path = mp_path_join(said->dir, MP_SUMS_NAME), *text = NULL;
    int rc = path ? mp_read_file(path, TEXT_LIMIT, &text, NULL, err) : mp_fail_memory(err);

    free(path);
    for (const char *at = text; rc == 0 && *at;) {
        size_t length = strcspn(at, "\n");
        /* An asterisk means binary mode, which makes no difference on Linux. */
        bool ours = length > HEX + 2 && strspn(at, "0123456789abcdef") == HEX && at[HEX] == ' ' &&
                    (at[HEX + 1] == ' ' || at[HEX + 1] == '*');

        if (!ours)
            rc = mp_fail(err, MP_ERR_INPUT, "%s: line %zu is not a sum and a name: \"%.*s\"",
                         MP_SUMS_NAME, said->count + 1, (int)(length < 100 ? length : 100), at);
        else
            rc = add_line(said, at + HEX + 2, length - HEX - 2, err);
        if (rc == 0)
            memcpy(said->list[said->count - 1].hex, at, HEX);
        at += length + (at[length] == '\n');
    }
    free(text);
    if (rc == 0 && said->count > 1)
        qsort(said->list, said->count, sizeof *said->list, by_path);
    return rc;
}

/* Both ways round: a file can be changed, missing, or present without a sum. */
static void compare(const lines *said, const lines *there, mp_problems *problems)
{
    for (size_t i = 0; i < said->count; i++) {
        const line *found = find_line(there, said->list[i].path);

        if (!found)
            mp_problem(problems, "%s: is not there", said->list[i].path);
        else if (strcmp(found->hex, said->list[i].hex) != 0)
            mp_problem(problems, "%s: SHA-256 %s, expected %s", found->path, found->hex,
                       said->list[i].hex);
    }
    for (size_t i = 0; i < there->count; i++)
        /* A file without a sum is a difference too: an engine might load it. */
        if (!find_line(said, there->list[i].path))
            mp_problem(problems, "%s: is not in " MP_SUMS_NAME, there->list[i].path);
}

int mp_checksums_check(const char *dir, const mp_context *context, mp_problems *problems,
                       uint64_t *files, mp_error *err)
{
    lines said = {.dir = dir}, there = {.dir = dir};
    int rc;

    err = MP_NEVER_NULL(err);
    *files = 0;
    rc = read_lines(&said, err);
    if (rc == 0)
        rc = list_files(&there, err);
    if (rc == 0)
        rc = sum_shown(&there, context, err);
    if (rc == 0) {
        compare(&said, &there, problems);
        *files = said.count;
    }
    release_lines(&said);
    release_lines(&there);
    return rc;
}
