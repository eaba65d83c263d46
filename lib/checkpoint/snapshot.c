/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of engines: which kind a directory is, and what the readers of all kinds share.
 *
 * Every file is opened by the reader of safetensors files, which makes all its checks. A rank is a
 * view over these files: its tensors refer to shards that the snapshot owns, under the engine's own
 * names.
 *
 * Snapshots are opened to find out what is wrong with them. So whatever does not hold becomes a
 * finding, with its rank and tensor, and reading continues. Only what leaves nothing to look at is
 * an error. Findings are kept up to a limit and counted beyond it; those of ranks that nobody asked
 * for are not made at all. One thread makes them, in the order of files and ranks. Threads only
 * open files, and each file has its own place for an error. */
#include "checkpoint/snapshot.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "base/select.h"
#include "checkpoint/safetensors.h"

/* Types as Python prints them. */
static const struct {
    mp_dtype dtype;
    const char *name;
} torch_types[] = {
    {MP_BOOL, "torch.bool"},
    {MP_F4, "torch.float4_e2m1fn_x2"},
    {MP_U8, "torch.uint8"},
    {MP_I8, "torch.int8"},
    {MP_F8_E4M3, "torch.float8_e4m3fn"},
    {MP_F8_E5M2, "torch.float8_e5m2"},
    {MP_F8_E8M0, "torch.float8_e8m0fnu"},
    {MP_F8_E4M3FNUZ, "torch.float8_e4m3fnuz"},
    {MP_F8_E5M2FNUZ, "torch.float8_e5m2fnuz"},
    {MP_I16, "torch.int16"},
    {MP_U16, "torch.uint16"},
    {MP_F16, "torch.float16"},
    {MP_BF16, "torch.bfloat16"},
    {MP_I32, "torch.int32"},
    {MP_U32, "torch.uint32"},
    {MP_F32, "torch.float32"},
    {MP_C64, "torch.complex64"},
    {MP_F64, "torch.float64"},
    {MP_I64, "torch.int64"},
    {MP_U64, "torch.uint64"},
};
#define TORCH_TYPES (sizeof torch_types / sizeof torch_types[0])

const char *mp_dtype_torch(mp_dtype dtype)
{
    for (size_t i = 0; i < TORCH_TYPES; i++)
        if (torch_types[i].dtype == dtype)
            return torch_types[i].name;
    return NULL;
}

bool mp_dtype_parse_torch(const char *name, mp_dtype *dtype)
{
    static const size_t module = sizeof "torch." - 1;

    for (size_t i = 0; i < TORCH_TYPES; i++)
        if (strcmp(name, torch_types[i].name) == 0 ||
            strcmp(name, torch_types[i].name + module) == 0) {
            *dtype = torch_types[i].dtype;
            return true;
        }
    return false;
}

/* ------------------------------------------------------------------------
 * Hashes of content
 */

int mp_key_hash_begin(mp_key_hash *hash, bool sha1, mp_error *err)
{
    *hash = (mp_key_hash){.sha1 = sha1};
    if (!sha1)
        return mp_digest_begin(&hash->xxh3, err);
    mp_sha1_begin(&hash->sha);
    return 0;
}

void mp_key_hash_update(mp_key_hash *hash, const void *data, size_t n)
{
    if (hash->sha1)
        mp_sha_update(&hash->sha, data, n);
    else
        mp_digest_update(&hash->xxh3, data, n);
}

void mp_key_hash_end(mp_key_hash *hash, char text[MP_SHA_TEXT])
{
    mp_digest digest;
    char unused[MP_SHA_TEXT];

    if (hash->sha1) {
        mp_sha_end(&hash->sha, text ? text : unused);
        return;
    }
    mp_digest_end(&hash->xxh3, &digest);
    if (text)
        mp_digest_text(&digest, text);
}

/* ------------------------------------------------------------------------
 * Findings
 */

void mp_snapshot_found(mp_snapshot *s, bool digest, int64_t rank, const char *tensor,
                       const char *format, ...)
{
    char text[MP_ERROR_MAX];
    va_list args;

    if (rank >= 0 && (uint64_t)rank < s->num_ranks && !s->ranks[rank].selected)
        return;
    s->total_findings++;
    if (s->num_findings == MP_FINDINGS_KEPT)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    s->findings[s->num_findings++] =
        (mp_finding){digest, rank, tensor ? mp_format("%s", tensor) : NULL, mp_format("%s", text)};
}

/* ------------------------------------------------------------------------
 * Directories
 */

bool mp_snapshot_plain_name(const char *name)
{
    return name[0] != '\0' && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

int mp_snapshot_entries(const char *dir, char ***names, size_t *count, mp_error *err)
{
    struct dirent **list;
    int n = scandir(dir, &list, NULL, NULL);
    size_t bytes = 0, used = 0;

    *names = NULL;
    *count = 0;
    if (n < 0)
        return mp_fail_errno(err, errno, "cannot open \"%s\"", dir);
    for (int i = 0; i < n; i++)
        bytes += strlen(list[i]->d_name) + 1;
    /* Pointers first, then the strings they point to: one block, one free. */
    *names = mp_alloc(1, (size_t)n * sizeof **names + bytes);
    for (int i = 0; i < n; i++) {
        if (*names && !dots(list[i]->d_name)) {
            char *to = (char *)(*names + n) + used;

            strcpy(to, list[i]->d_name);
            used += strlen(to) + 1;
            (*names)[(*count)++] = to;
        }
        free(list[i]);
    }
    free(list);
    if (!*names)
        return mp_fail_memory(err);
    qsort(*names, *count, sizeof **names, compare_names);
    return 0;
}

static bool ends_in(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);

    return n > m && strcmp(name + n - m, suffix) == 0;
}

/* "0.snapshot", "12.v2.snapshot" */
static bool is_blob(const char *name)
{
    size_t digits = strspn(name, "0123456789");

    return digits > 0 &&
           (strcmp(name + digits, ".snapshot") == 0 || strcmp(name + digits, ".v2.snapshot") == 0);
}

int mp_snapshot_find(const char *dir, mp_snapshot_kind *kind, mp_error *err)
{
    char **names;
    size_t count;
    bool plan = false, ready = false, stored = false, index = false, part = false, blob = false;
    struct stat st;

    err = MP_NEVER_NULL(err);
    *kind = MP_SNAPSHOT_NONE;
    if (stat(dir, &st) == 0 && !S_ISDIR(st.st_mode))
        return 0;
    if (mp_snapshot_entries(dir, &names, &count, err) != 0)
        return err->code;
    for (size_t i = 0; i < count; i++) {
        plan |= strcmp(names[i], MP_PRESHARDED_PLAN) == 0;
        ready |= strcmp(names[i], MP_PRESHARDED_READY) == 0;
        stored |= ends_in(names[i], ".safetensor");
        index |= ends_in(names[i], ".safetensors.index.json");
        part |= strncmp(names[i], "model-rank-", 11) == 0 && ends_in(names[i], ".safetensors");
        blob |= is_blob(names[i]);
    }
    if (stored || (plan && ready))
        *kind = MP_SNAPSHOT_PRESHARDED;
    else if (part && !index)
        *kind = MP_SNAPSHOT_SHARDED_STATE;
    else if (blob)
        *kind = MP_SNAPSHOT_BIG_TENSOR;
    free(names);
    return 0;
}

/* ------------------------------------------------------------------------
 * Files and ranks
 */

typedef struct opening {
    mp_snapshot *s;
    const char *const *names;
    mp_error *errors; /* of each file; code 0: it is open */
    mp_io io;
} opening;

static int open_file(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const opening *o = user;
    const mp_context one = {.threads = 1, .io = o->io};

    (void)scratch;
    if (!o->names[index])
        return 0;
    char *path = mp_path_join(o->s->dir, o->names[index]);
    mp_error *why = &o->errors[index];
    if (!path)
        return mp_fail_memory(err);
    if (!mp_path_exists(path))
        mp_fail(why, MP_ERR_INPUT, "%s is missing", o->names[index]);
    else
        mp_checkpoint_open(&o->s->files[index], path, &one, why);
    free(path);
    /* A malformed file is a finding, but a failing system ends the opening. */
    return why->code == MP_ERR_IO ? mp_fail(err, MP_ERR_IO, "%s", why->message) : 0;
}

int mp_snapshot_open_files(mp_snapshot *s, const char *const *names, size_t count,
                           const mp_context *context, mp_error *err)
{
    opening o = {s, names, mp_alloc_zeroed(count, sizeof *o.errors),
                 context ? context->io : MP_IO_AUTO};

    s->files = mp_alloc_zeroed(count, sizeof *s->files);
    s->shards = mp_alloc_zeroed(count, sizeof *s->shards);
    if (!s->files || !s->shards || !o.errors) {
        free(o.errors);
        return mp_fail_memory(err);
    }
    s->num_files = count;
    int rc = mp_parallel(context, count, 0, open_file, &o, err);
    for (size_t i = 0; i < count && rc == 0; i++) {
        const char *message = o.errors[i].message;

        if (o.errors[i].code != 0 && strstr(message, names[i]))
            mp_snapshot_found(s, false, -1, NULL, "%s", message);
        else if (o.errors[i].code != 0)
            mp_snapshot_found(s, false, -1, NULL, "%s: %s", names[i], message);
        else if (names[i])
            /* A copy: descriptor and names still belong to the file, and this is not released
             * separately. */
            s->shards[i] = s->files[i].shards[0];
    }
    free(o.errors);
    return rc;
}

int mp_snapshot_make_ranks(mp_snapshot *s, uint64_t count, const char *list, mp_error *err)
{
    if (count == 0 || count > MP_SNAPSHOT_RANKS_MAX)
        return mp_fail(err, MP_ERR_INPUT, "%llu ranks, expected 1 to %u", (unsigned long long)count,
                       MP_SNAPSHOT_RANKS_MAX);
    bool *selected = mp_alloc(count, sizeof *selected);
    s->ranks = mp_alloc_zeroed(count, sizeof *s->ranks);
    int rc = selected && s->ranks ? mp_select_ranks(list, (uint32_t)count, selected, err)
                                  : mp_fail_memory(err);
    s->num_ranks = s->ranks ? count : 0;
    for (size_t r = 0; rc == 0 && r < count; r++)
        s->ranks[r] = (mp_snapshot_rank){
            .rank = (uint32_t)r, .selected = selected[r], .tensors = {.dir = s->dir}};
    free(selected);
    return rc;
}

int mp_snapshot_add(mp_snapshot *s, mp_snapshot_rank *rank, size_t *room, const char *name,
                    const mp_tensor *tensor, mp_error *err)
{
    mp_checkpoint *view = &rank->tensors;
    char *copy = mp_arena_string(s->arena, name, strlen(name));

    view->shards = s->shards;
    view->num_shards = s->num_files;
    if (view->num_tensors == *room) {
        size_t more = *room ? 2 * *room : 64;
        mp_tensor *moved = realloc(view->tensors, more * sizeof *moved);

        if (!moved)
            return mp_fail_memory(err);
        view->tensors = moved;
        *room = more;
    }
    if (!copy)
        return mp_fail_memory(err);
    view->tensors[view->num_tensors] = *tensor;
    view->tensors[view->num_tensors++].name = copy;
    return 0;
}

void mp_snapshot_sort(mp_snapshot *s, mp_snapshot_rank *rank)
{
    mp_checkpoint *view = &rank->tensors;

    if (view->num_tensors > 0)
        qsort(view->tensors, view->num_tensors, sizeof *view->tensors, mp_tensor_order);
    size_t kept = 0;

    for (size_t i = 0; i < view->num_tensors; i++)
        if (i > 0 && strcmp(view->tensors[kept - 1].name, view->tensors[i].name) == 0)
            mp_snapshot_found(s, false, rank->rank, view->tensors[i].name, "appears twice");
        else
            view->tensors[kept++] = view->tensors[i];
    view->num_tensors = kept;
}

int mp_snapshot_open(mp_snapshot *snapshot, mp_snapshot_kind kind, const char *dir,
                     const char *ranks, const mp_context *context, mp_error *err)
{
    int rc;

    err = MP_NEVER_NULL(err);
    *snapshot = (mp_snapshot){.kind = kind,
                              .dir = strdup(dir),
                              .stages = 1,
                              .redundant = UINT64_MAX,
                              .arena = mp_alloc_zeroed(1, sizeof(mp_arena))};
    if (!snapshot->dir || !snapshot->arena)
        rc = mp_fail_memory(err);
    else if (kind == MP_SNAPSHOT_PRESHARDED)
        rc = mp_snapshot_open_presharded(snapshot, ranks, context, err);
    else if (kind == MP_SNAPSHOT_SHARDED_STATE)
        rc = mp_snapshot_open_parts(snapshot, ranks, context, err);
    else
        rc = mp_snapshot_open_blobs(snapshot, ranks, err);
    if (rc != 0)
        mp_snapshot_release(snapshot);
    return rc;
}

void mp_snapshot_release(mp_snapshot *s)
{
    for (size_t r = 0; r < s->num_ranks; r++) {
        free(s->ranks[r].tensors.tensors);
        free(s->ranks[r].digest);
    }
    for (size_t i = 0; i < s->num_files; i++)
        mp_checkpoint_release(&s->files[i]);
    for (size_t i = 0; i < s->num_findings; i++) {
        free(s->findings[i].tensor);
        free(s->findings[i].text);
    }
    if (s->arena)
        mp_arena_release(s->arena);
    free(s->arena);
    free(s->files);
    free(s->shards);
    free(s->ranks);
    free(s->expert_location);
    free(s->dir);
    *s = (mp_snapshot){0};
}
