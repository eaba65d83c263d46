/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a run: which units each does, which others exist, and how they are joined.
 *
 * Parts never talk to each other. All a part knows comes from the plan, which every process
 * computes the same way, and from the names and contents of the journals in OUT.partial; parts.h
 * explains why that is enough. A journal's name includes the number of parts, so one look at the
 * directory reveals a run that was split differently.
 *
 * Units are split by bytes written rather than by count: gate and up weigh twice as much as down,
 * and an expert with copies is written once for each. Bounds must come out the same everywhere, so
 * they are integers computed from the plan. They ascend, since a bound moves by less than a
 * sixteenth of a part.
 *
 * Joining locks every journal before it believes any unit done, writes the one "journal" durably,
 * and only then removes the others. A kill in between leaves both, and the next `finish` sees that
 * the one journal exists. Everything here runs on one thread. */
#include "run/parts.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/file.h"
#include "base/ordered.h"

#define SNAP 16 /* a bound moves by less than this part of a part's bytes */

/* ------------------------------------------------------------------------
 * Which units
 */

/* Bytes that are written by units before each, and by all: sums[num_units + 1]. */
static void sum_units(const mp_job *job, uint64_t *sums)
{
    sums[0] = 0;
    for (uint64_t u = 0; u < job->work->num_units; u++)
        sums[u + 1] = sums[u] + job->unit_bytes(job->plan, u);
}

/* First unit of each stage: the lowest in its list, which is not always the first, behind all of
 * the stages before. A stage without units gets a bound that no part will snap to. */
static void find_stages(const mp_job *job, uint64_t *units, uint64_t *first)
{
    uint64_t behind = 0;

    for (uint32_t stage = 0; stage < job->work->num_stages; stage++) {
        size_t count = job->units(job->plan, stage, units);

        first[stage] = count ? units[0] : job->work->num_units;
        for (size_t i = 1; i < count; i++)
            first[stage] = units[i] < first[stage] ? units[i] : first[stage];
        first[stage] = mp_max_u64(first[stage], behind);
        for (size_t i = 0; i < count; i++)
            behind = mp_max_u64(behind, units[i] + 1);
    }
}

static uint64_t distance(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

/* First unit of part number `part`, from 0. */
static uint64_t bound_of(const mp_work *work, uint32_t part, uint32_t count, const uint64_t *sums,
                         const uint64_t *stages)
{
    uint64_t total = sums[work->num_units], share = total / count;
    /* total * part / count without overflow: the first product is at most total, the second is
     * below count squared, and count has 32 bits. */
    uint64_t wanted = share * part + total % count * part / count;
    uint64_t bound = 0, end = work->num_units, near = share / SNAP;

    while (bound < end) { /* the first before which as much is written */
        uint64_t middle = bound + (end - bound) / 2;

        if (sums[middle] < wanted)
            bound = middle + 1;
        else
            end = middle;
    }
    /* A part that starts with a stage fills its tensors alone, and can digest them as it writes. */
    for (uint32_t s = 0; s < work->num_stages; s++) {
        uint64_t away = distance(sums[stages[s]], wanted);

        if (away < near) {
            near = away;
            bound = stages[s];
        }
    }
    return bound;
}

int mp_parts_bounds(const mp_job *job, uint32_t count, uint64_t *bounds, mp_error *err)
{
    const mp_work *work = job->work;
    uint64_t *sums = mp_alloc(work->num_units + 1, sizeof *sums);
    uint64_t *stages = mp_alloc(work->num_stages, sizeof *stages);
    uint64_t *units = mp_alloc(work->stage_units, sizeof *units);
    int rc = sums && stages && units ? 0 : mp_fail_memory(err);

    if (rc == 0) {
        sum_units(job, sums);
        find_stages(job, units, stages);
        for (uint32_t part = 0; part < count; part++)
            bounds[part] = bound_of(work, part, count, sums, stages);
        bounds[count] = work->num_units;
    }
    free(sums);
    free(stages);
    free(units);
    return rc;
}

/* ------------------------------------------------------------------------
 * Who is there
 */

char *mp_part_journal(uint32_t number, uint32_t count, char name[MP_PART_NAME_MAX])
{
    snprintf(name, MP_PART_NAME_MAX, MP_JOURNAL_NAME "-%" PRIu32 "-of-%" PRIu32, number, count);
    return name;
}

/* Whether a name is exactly that of a part's journal: "journal-02-of-3" and a user's
 * "journal-1-of-2.bak" are not ours to remove. */
static bool read_name(const char *name, uint32_t *number, uint32_t *count)
{
    char again[MP_PART_NAME_MAX];

    /* NOLINTNEXTLINE(cert-err34-c): what does not convert does not print the same */
    return sscanf(name, MP_JOURNAL_NAME "-%" SCNu32 "-of-%" SCNu32, number, count) == 2 &&
           *number >= 1 && *number <= *count &&
           strcmp(mp_part_journal(*number, *count, again), name) == 0;
}

/* A directory has tens of them at most, so grow by one. */
static int add_part(mp_parts *parts, uint32_t number, uint32_t count, const char *dir,
                    mp_error *err)
{
    uint32_t *more;

    if (parts->count != 0 && parts->count != count)
        return mp_fail(err, MP_ERR_USAGE,
                       "%s: holds a run in %" PRIu32 " parts and one in %" PRIu32
                       ": remove it to start over",
                       dir, parts->count < count ? parts->count : count,
                       parts->count < count ? count : parts->count);
    more = realloc(parts->numbers, (parts->num + 1) * sizeof *more);
    if (!more)
        return mp_fail_memory(err);
    parts->numbers = more;
    parts->numbers[parts->num++] = number;
    parts->count = count;
    return 0;
}

static int ascending(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

int mp_parts_list(const char *dir, mp_parts *parts, mp_error *err)
{
    DIR *stream = opendir(dir);
    int rc = 0;

    *parts = (mp_parts){0};
    if (!stream)
        return mp_fail_errno(err, errno, "cannot list \"%s\"", dir);
    for (const struct dirent *entry; rc == 0 && (entry = readdir(stream));) {
        uint32_t number, count;

        if (read_name(entry->d_name, &number, &count))
            rc = add_part(parts, number, count, dir, err);
    }
    closedir(stream);
    if (rc != 0)
        mp_parts_release(parts);
    else if (parts->num > 1)
        qsort(parts->numbers, parts->num, sizeof *parts->numbers, ascending);
    return rc;
}

void mp_parts_release(mp_parts *parts)
{
    free(parts->numbers);
    *parts = (mp_parts){0};
}

int mp_parts_check_others(const char *dir, const mp_part *part, const mp_journal *own,
                          bool *others_wrote, mp_error *err)
{
    mp_parts parts;
    int rc = mp_parts_list(dir, &parts, err);

    *others_wrote = false;
    for (size_t i = 0; rc == 0 && i < parts.num; i++) {
        const mp_part other = {.number = parts.numbers[i], .count = parts.count};
        bool wrote;

        if (other.number == part->number)
            continue;
        rc = mp_journal_compare(own, dir, &other, &wrote, err);
        *others_wrote |= wrote;
    }
    mp_parts_release(&parts);
    return rc;
}

void mp_parts_mark(const mp_outputs *outputs, const mp_part *part)
{
    for (size_t f = 0; f < outputs->work->num_files; f++) {
        struct flock lock = {
            .l_type = F_WRLCK,
            .l_whence = SEEK_SET,
            /* Beyond the end, so that no lock covers data and the locks of parts never conflict. */
            .l_start = (off_t)(outputs->work->files[f].bytes + part->number),
            .l_len = 1,
        };

        /* A lock of the open file, not of the process: closing some other descriptor must not drop
         * it. */
        (void)fcntl(outputs->fds[f], F_OFD_SETLK, &lock);
    }
}

/* ------------------------------------------------------------------------
 * Together
 */

/* A part, as who finishes finds it. */
typedef struct found_part {
    mp_journal journal;
    bool begun;
    uint64_t units, done; /* of it: all, and those that are done */
} found_part;

/* Adds what the journals say to state. They stay locked. */
static int open_journals(const char *dir, const mp_job *job, const char *terms,
                         const mp_parts *parts, found_part *found, mp_progress_state *state,
                         mp_error *err)
{
    for (size_t i = 0; i < parts->num; i++) {
        const mp_part part = {.number = parts->numbers[i], .count = parts->count};
        found_part *f = &found[part.number - 1];
        int rc = mp_journal_open(&f->journal, dir, job->work, &part, terms, state, err);

        /* A part that is still running is reported along with the others that are not done. */
        if (rc != 0 && !f->journal.busy)
            return rc;
        f->begun = true;
    }
    return 0;
}

/* Counts the units of every part, and how many of them are done by anyone. */
static int count_units(const mp_job *job, const mp_progress_state *state, uint32_t count,
                       found_part *found, mp_error *err)
{
    uint64_t *units = mp_alloc(job->work->stage_units, sizeof *units);
    uint64_t *bounds = mp_alloc((uint64_t)count + 1, sizeof *bounds);
    int rc = units && bounds ? mp_parts_bounds(job, count, bounds, err) : mp_fail_memory(err);

    for (uint32_t stage = 0; rc == 0 && stage < job->work->num_stages; stage++) {
        size_t num = job->units(job->plan, stage, units);

        for (size_t i = 0; i < num; i++) {
            /* Go by the bounds, not by whose journal lists it: a unit that two parts have done is
             * done. */
            found_part *f = &found[mp_last_begun(bounds, sizeof *bounds, count, units[i])];

            f->units++;
            f->done += state->unit_done[units[i]];
        }
    }
    free(units);
    free(bounds);
    return rc;
}

/* MP_ERR_CHECK listing the parts that are not done. */
static int check_done(const char *dir, const found_part *found, uint32_t count, mp_error *err)
{
    char *text = NULL;
    size_t length, missing = 0;
    FILE *f = open_memstream(&text, &length);

    if (!f)
        return mp_fail_memory(err);
    for (uint32_t i = 0; i < count; i++) {
        const found_part *part = &found[i];

        if (part->begun && !part->journal.busy && part->done == part->units)
            continue;
        fprintf(f, "%s%" PRIu32, missing++ ? ", " : "", i + 1);
        if (!part->begun)
            fprintf(f, " has not begun");
        else if (part->journal.busy)
            fprintf(f, " is at work");
        else
            fprintf(f, " has done %" PRIu64 " of %" PRIu64 " units", part->done, part->units);
    }
    int rc = mp_text_finish(f, &text, err);
    if (rc == 0 && missing > 0)
        rc = mp_fail(err, MP_ERR_CHECK, "%s: %zu of %" PRIu32 " parts missing: %.800s", dir,
                     missing, count, text);
    free(text);
    return rc;
}

static int remove_parts(const char *dir, const mp_parts *parts, mp_error *err)
{
    for (size_t i = 0; i < parts->num; i++) {
        char name[MP_PART_NAME_MAX];
        char *path = mp_path_join(dir, mp_part_journal(parts->numbers[i], parts->count, name));
        int rc = path ? 0 : mp_fail_memory(err);

        if (rc == 0 && unlink(path) != 0)
            rc = mp_fail_errno(err, errno, "cannot remove \"%s\"", path);
        free(path);
        if (rc != 0)
            return rc;
    }
    return mp_dir_sync(dir, err);
}

static int join(const char *dir, const mp_job *job, const char *terms, const mp_parts *parts,
                mp_error *err)
{
    mp_progress_state state = {0};
    found_part *found = mp_alloc_zeroed(parts->count, sizeof *found);
    const char *how = NULL;
    int rc = found ? mp_progress_init(&state, job->work, err) : mp_fail_memory(err);

    for (uint32_t i = 0; found && i < parts->count; i++)
        /* 0 would be standard input, and closing must not close that. */
        found[i].journal.fd = -1;
    if (rc == 0)
        rc = open_journals(dir, job, terms, parts, found, &state, err);
    if (rc == 0)
        rc = count_units(job, &state, parts->count, found, err);
    if (rc == 0)
        rc = check_done(dir, found, parts->count, err);
    /* Parts may have been started from different directories; any one will do. */
    for (uint32_t i = 0; found && !how && i < parts->count; i++)
        how = found[i].journal.how;
    if (rc == 0)
        rc = mp_journal_write(dir, job->work, terms, how, &state, err);
    if (rc == 0)
        rc = remove_parts(dir, parts, err);
    for (uint32_t i = 0; found && i < parts->count; i++)
        mp_journal_close(&found[i].journal);
    free(found);
    mp_progress_release(&state);
    return rc;
}

int mp_parts_join(const char *dir, const mp_job *job, const char *terms, mp_error *err)
{
    mp_parts parts = {0};
    char *whole = mp_path_join(dir, MP_JOURNAL_NAME);
    int rc = whole ? mp_parts_list(dir, &parts, err) : mp_fail_memory(err);

    if (rc == 0 && mp_path_exists(whole)) /* who had put them together did not remove all */
        rc = remove_parts(dir, &parts, err);
    else if (rc == 0 && parts.num > 0)
        rc = join(dir, job, terms, &parts, err);
    else if (rc == 0)
        rc = mp_fail(err, MP_ERR_CHECK, "%s: no part has begun", dir);
    mp_parts_release(&parts);
    free(whole);
    return rc;
}

int mp_parts_sweep(const char *dir, mp_error *err)
{
    mp_parts parts;
    int rc = mp_parts_list(dir, &parts, err);

    if (rc == 0 && parts.num > 0)
        rc = remove_parts(dir, &parts, err);
    mp_parts_release(&parts);
    return rc;
}
