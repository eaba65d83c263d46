/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of a run: its terms, and what is finished.
 *
 *     journal 2 5d41402abc4b2a76b9719d911017c592   version, digest of the terms
 *     tool 1.4.0                                   the terms, one per line
 *     target megamoe-w4a8
 *     zstd none                                    not a term, but fixed for the run
 *     how {"directory": ..., "words": [...]}       of a part: its command, for `moepack finish`
 *     begin
 *     unit 17 0x1.8p-3 0x1.2p+9 4096 0 3 12        or just "unit 17" if nothing is lossy
 *     tensor 4 9e107d9d372bb6826bd81d3542a419d6
 *
 * It is text so that a user can read why a run cannot continue, and so that a torn write shows: a
 * line counts only if printing what it says gives the same line back. Reading stops at the first
 * line that does not, and the file is cut there, since everything after it was written later.
 *
 * The body only grows. A unit's line is written and synced after the unit's data (run.c). A
 * tensor's line waits for the next sync, which is safe: it stays true even if data is lost, because
 * units that are redone write the same bytes. Only the head is ever rewritten, and a head without
 * "begin" counts as no head at all.
 *
 * Only one process at a time has a journal open, by flock, which the kernel drops when the process
 * dies. Within a process the lock of the run guards every append. Numbers in lines are checked
 * against the work before they index anything. */
#include "run/journal.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "numeric/quantize.h"
#include "run/parts.h"
#include "run/sidecar.h"
#include "run/terms.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define JOURNAL_LIMIT (1u << 30)
#define BEGIN         "begin\n"
#define HOW           "how "
#define AT_ONCE       "at once"
#define STAGE         "stage "
#define PLAIN         "plain "
#define LINE_SIZE     192 /* of a unit or tensor: seven numbers, or a digest */

int mp_progress_init(mp_progress_state *state, const mp_work *work, mp_error *err)
{
    bool measured = !work->lossless;

    *state = (mp_progress_state){
        .unit_done = mp_alloc_zeroed(work->num_units, sizeof(bool)),
        .stats = measured ? mp_alloc_zeroed(work->num_units, sizeof(mp_quant_stats)) : NULL,
        .tensor_done = mp_alloc_zeroed(work->num_outputs, sizeof(bool)),
        .digest = mp_alloc_zeroed(work->num_outputs, sizeof(mp_hex_digest)),
        .stage_done = mp_alloc_zeroed(work->num_stages, sizeof(bool)),
        .plain = mp_alloc_zeroed(work->num_outputs, sizeof(bool)),
    };
    if (!state->unit_done || !state->tensor_done || !state->digest || (measured && !state->stats) ||
        !state->stage_done || !state->plain)
        return mp_fail_memory(err);
    return 0;
}

void mp_progress_release(mp_progress_state *state)
{
    free(state->unit_done);
    free(state->stats);
    free(state->tensor_done);
    free(state->digest);
    free(state->stage_done);
    free(state->plain);
    memset(state, 0, sizeof *state);
}

/* ------------------------------------------------------------------------
 * The head
 */

/* Up to "how" or "begin", malloc'ed; null without memory. The level of compression is no term, but
 * one run has one. */
static char *make_head(const mp_work *work, const char *terms)
{
    char level[16];
    mp_hex_digest hex;

    mp_hex_digest_of(terms, strlen(terms), hex);
    snprintf(level, sizeof level, "%d", work->zstd);
    return mp_format("journal 2 %s\n%szstd %s\n", hex, terms,
                     work->zstd > 0               ? level
                     : work->zstd == MP_ZSTD_AUTO ? "auto"
                                                  : "none");
}

/* Where what is done begins; null where the head is not whole. */
static char *find_body(char *text)
{
    char *begin = strstr(text, "\n" BEGIN);

    return begin ? begin + strlen("\n" BEGIN) : NULL;
}

/* Whether a journal's text begins with a head. */
static bool has_head(const char *text, const char *head)
{
    size_t n = strlen(head);

    return strncmp(text, head, n) == 0 && (strncmp(text + n, BEGIN, strlen(BEGIN)) == 0 ||
                                           strncmp(text + n, HOW, strlen(HOW)) == 0);
}

/* Names what differs in the head of a journal, which is cut off behind it, and another head. */
static int report_difference(char *had, const char *want, const mp_part *part, const char *dir,
                             mp_error *err)
{
    char *end = strstr(had, "\n" HOW);
    mp_term a = {had, (int)strcspn(had, "\n")}, b = {want, (int)strcspn(want, "\n")};

    if (!end)
        end = strstr(had, "\n" BEGIN);
    end[1] = '\0';
    /* The first lines hold the digests, which differ whenever anything does and explain the least.
     * Show them only if the version differs. */
    if (strncmp(had, want, strlen("journal 2 ")) == 0)
        mp_terms_differ(had + a.length + 1, want + b.length + 1, &a, &b);
    if (part)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: part %" PRIu32 " of %" PRIu32 " is from a run on other terms: it has "
                       "\"%.*s\", this one has \"%.*s\"; remove it to start over",
                       dir, part->number, part->count, a.length, a.text, b.length, b.text);
    return mp_fail(err, MP_ERR_INPUT,
                   "cannot resume: the interrupted run had \"%.*s\", this one has \"%.*s\"; start "
                   "over with --force",
                   a.length, a.text, b.length, b.text);
}

/* ------------------------------------------------------------------------
 * Lines
 */

/* The line of a finished unit; stats null when everything is lossless. */
static void print_unit(char line[LINE_SIZE], uint64_t index, const mp_quant_stats *stats)
{
    int n = snprintf(line, LINE_SIZE, "unit %" PRIu64, index);

    if (stats)
        snprintf(line + n, LINE_SIZE - (size_t)n,
                 " %a %a %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64, stats->error_sq,
                 stats->signal_sq, stats->elements, stats->saturated, stats->flushed,
                 stats->requantized_blocks);
}

static void print_tensor(char line[LINE_SIZE], uint64_t index, const char *digest)
{
    snprintf(line, LINE_SIZE, "tensor %" PRIu64 " %s", index, digest);
}

/* A line counts only if it is exactly what we would print. That rules out signs, spaces, and
 * numbers that overflow or are cut short. Hex floats survive printing and reading exactly, so a
 * resumed run adds up the same errors as an undisturbed one. */
static bool read_unit(const char *line, const mp_work *work, mp_progress_state *state)
{
    mp_quant_stats stats = {0};
    char again[LINE_SIZE];
    uint64_t index;

    /* NOLINTNEXTLINE(cert-err34-c): what does not convert does not print the same */
    if (sscanf(line, "unit %" SCNu64 " %la %la %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64,
               &index, &stats.error_sq, &stats.signal_sq, &stats.elements, &stats.saturated,
               &stats.flushed, &stats.requantized_blocks) < 1)
        return false;
    print_unit(again, index, state->stats ? &stats : NULL);
    /* Statistics where there should be none, or none where there should be, fail the comparison
     * too. */
    if (index >= work->num_units || strcmp(again, line) != 0)
        return false;
    if (state->stats)
        state->stats[index] = stats;
    state->unit_done[index] = true;
    return true;
}

static bool read_tensor(const char *line, const mp_work *work, mp_progress_state *state)
{
    char hex[MP_DIGEST_TEXT], again[LINE_SIZE];
    mp_digest digest;
    uint64_t index;

    /* NOLINTNEXTLINE(cert-err34-c): the same */
    if (sscanf(line, "tensor %" SCNu64 " %32s", &index, hex) != 2)
        return false;
    print_tensor(again, index, hex);
    if (index >= work->num_outputs || !mp_digest_parse(hex, &digest) || strcmp(again, line) != 0)
        return false;
    strcpy(state->digest[index], hex);
    state->tensor_done[index] = true;
    return true;
}

/* "KIND NUMBER", the number below a limit. */
static bool read_number(const char *line, const char *kind, uint64_t limit, uint64_t *number)
{
    char again[LINE_SIZE];
    size_t n = strlen(kind);

    if (strncmp(line, kind, n) != 0)
        return false;
    *number = strtoull(line + n, NULL, 10);
    snprintf(again, sizeof again, "%s%" PRIu64, kind, *number);
    return *number < limit && strcmp(again, line) == 0;
}

/* What is there where tensors are written at once. */
static bool read_at_once(const char *line, const mp_work *work, mp_progress_state *state)
{
    uint64_t number;

    if (strcmp(line, AT_ONCE) == 0)
        state->at_once = true;
    else if (read_number(line, STAGE, work->num_stages, &number))
        state->stage_done[number] = true;
    else if (read_number(line, PLAIN, work->num_outputs, &number))
        state->plain[number] = true;
    else
        return false;
    return true;
}

/* Reads lines up to the first that is torn or strange; returns the bytes that count. */
static uint64_t read_lines(char *text, const mp_work *work, mp_progress_state *state)
{
    char *line = text, *end;

    while ((end = strchr(line, '\n'))) {
        *end = '\0';
        if (!read_unit(line, work, state) && !read_tensor(line, work, state) &&
            !read_at_once(line, work, state))
            break;
        line = end + 1;
    }
    return (uint64_t)(line - text);
}

/* ------------------------------------------------------------------------
 * The file
 */

/* The whole head, malloc'ed; null without memory. */
static char *whole_head(const char *head, const char *how, bool at_once)
{
    return mp_format("%s%s%s%s" BEGIN "%s", head, how ? HOW : "", how ? how : "", how ? "\n" : "",
                     at_once ? AT_ONCE "\n" : "");
}

/* Writes the head and nothing else. Durable on return, since later lines count only with it. */
static int begin(mp_journal *journal, bool at_once, mp_error *err)
{
    char *head = whole_head(journal->head, journal->how, at_once);
    /* Cut first, or the old body would show behind a shorter head. */
    int rc = head ? mp_file_resize(journal->fd, journal->path, 0, err) : mp_fail_memory(err);

    if (rc == 0) {
        journal->size = strlen(head);
        rc = mp_pwrite_all(journal->fd, head, journal->size, 0, journal->path, err);
    }
    free(head);
    return rc ? rc : mp_file_sync(journal->fd, journal->path, err);
}

/* Takes over how the run was begun, as the journal has it. */
static int take_how(mp_journal *journal, const char *had, mp_error *err)
{
    const char *line = had + strlen(journal->head);

    free(journal->how);
    journal->how = NULL;
    if (strncmp(line, HOW, strlen(HOW)) != 0)
        return 0;
    line += strlen(HOW);
    journal->how = strndup(line, strcspn(line, "\n"));
    return journal->how ? 0 : mp_fail_memory(err);
}

/* There are three cases: no complete head, another run's head, and our own. */
static int load(mp_journal *journal, const char *dir, const mp_work *work, const mp_part *part,
                mp_progress_state *state, mp_error *err)
{
    char *had = NULL, *body;
    int rc = mp_read_file(journal->path, JOURNAL_LIMIT, &had, NULL, err);

    if (rc != 0)
        return rc;
    body = find_body(had);
    if (!body) {
        journal->fresh = true;
        /* New, or killed while the head was written: no unit can have been noted yet. */
        rc = begin(journal, state->at_once, err);
    } else if (!has_head(had, journal->head)) {
        rc = report_difference(had, journal->head, part, dir, err);
    } else {
        rc = take_how(journal, had, err);
        state->at_once = false;
        /* Cut off the torn end, or the next line would be glued to it. */
        journal->size = (uint64_t)(body - had) + read_lines(body, work, state);
        if (rc == 0)
            rc = mp_file_resize(journal->fd, journal->path, journal->size, err);
    }
    free(had);
    return rc;
}

int mp_journal_restart(mp_journal *journal, const mp_work *work, mp_progress_state *state,
                       mp_error *err)
{
    /* Statistics can stay: a unit that is redone overwrites its own. */
    memset(state->unit_done, 0, work->num_units * sizeof *state->unit_done);
    memset(state->tensor_done, 0, work->num_outputs * sizeof *state->tensor_done);
    memset(state->stage_done, 0, work->num_stages * sizeof *state->stage_done);
    memset(state->plain, 0, work->num_outputs * sizeof *state->plain);
    return begin(journal, state->at_once, err);
}

/* Locks the open journal against other processes. */
static int lock(mp_journal *journal, const char *dir, mp_error *err)
{
    /* Any other failure means a file system without locks. Then it is up to the user to run only
     * one process. */
    journal->busy = flock(journal->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (journal->busy)
        return mp_fail(err, MP_ERR_IO, "%s: another process is at work there", dir);
    return 0;
}

int mp_journal_open(mp_journal *journal, const char *dir, const mp_work *work, const mp_part *part,
                    const char *terms, mp_progress_state *state, mp_error *err)
{
    char name[MP_PART_NAME_MAX] = MP_JOURNAL_NAME;
    bool in_parts = part && part->count > 0;
    int rc = 0;

    if (in_parts)
        mp_part_journal(part->number, part->count, name);
    *journal =
        (mp_journal){.fd = -1, .path = mp_path_join(dir, name), .head = make_head(work, terms)};
    if (in_parts && part->how && !(journal->how = strdup(part->how)))
        rc = mp_fail_memory(err);
    if (rc == 0 && (!journal->path || !journal->head))
        rc = mp_fail_memory(err);
    if (rc == 0)
        rc = mp_open_write(journal->path, &journal->fd, err);
    if (rc == 0)
        rc = lock(journal, dir, err);
    if (rc == 0)
        rc = load(journal, dir, work, in_parts ? part : NULL, state, err);
    if (rc != 0) {
        /* Joining parts has to tell a part that is still running from a broken one. */
        bool busy = journal->busy;

        mp_journal_close(journal);
        journal->busy = busy;
    }
    return rc;
}

int mp_journal_compare(const mp_journal *own, const char *dir, const mp_part *other, bool *wrote,
                       mp_error *err)
{
    char name[MP_PART_NAME_MAX], *text = NULL, *body;
    char *path = mp_path_join(dir, mp_part_journal(other->number, other->count, name));
    int rc = 0;

    *wrote = false;
    if (!path)
        return mp_fail_memory(err);
    if (mp_path_exists(path)) /* or it has been taken back meanwhile */
        rc = mp_read_file(path, JOURNAL_LIMIT, &text, NULL, err);
    body = text ? find_body(text) : NULL;
    if (body) {
        /* Only units matter: a part without any has not relied on the files yet. Count torn lines
         * as units, to be safe. */
        *wrote = strncmp(body, "unit ", 5) == 0 || strstr(body, "\nunit ");
        if (!has_head(text, own->head))
            rc = report_difference(text, own->head, other, dir, err);
    }
    free(path);
    free(text);
    return rc;
}

int mp_journal_how(const char *dir, const char *name, char **how, mp_error *err)
{
    char *path = mp_path_join(dir, name), *text = NULL, *line;
    int rc = path ? mp_read_file(path, JOURNAL_LIMIT, &text, NULL, err) : mp_fail_memory(err);

    *how = NULL;
    /* Neither can be mistaken for a term, as names in the terms are escaped (mp_terms_name). */
    line = rc == 0 && find_body(text) ? strstr(text, "\n" HOW) : NULL;
    if (line && line < find_body(text)) {
        line += strlen("\n" HOW);
        *how = strndup(line, strcspn(line, "\n"));
        if (!*how)
            rc = mp_fail_memory(err);
    }
    free(path);
    free(text);
    return rc;
}

/* Opens read-only: the attempt to lock is enough, and closing releases it. */
int mp_journal_check_free(const char *dir, const char *name, mp_error *err)
{
    mp_journal journal = {.fd = -1, .path = mp_path_join(dir, name)};
    int rc = journal.path ? 0 : mp_fail_memory(err);

    if (rc == 0 && mp_path_exists(journal.path)) {
        rc = mp_open_read(journal.path, &journal.fd, err);
        if (rc == 0)
            rc = lock(&journal, dir, err);
    }
    mp_journal_close(&journal);
    return rc;
}

void mp_journal_close(mp_journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal->path);
    free(journal->head);
    free(journal->how);
    *journal = (mp_journal){.fd = -1};
}

/* By offset, not O_APPEND: after a failed write the file may be longer than the part that
 * counts. */
static int append(mp_journal *journal, const char *text, size_t length, mp_error *err)
{
    /* Advance the size only once everything is written, so that the next append overwrites what a
     * full disk cut short. */
    if (mp_pwrite_all(journal->fd, text, length, journal->size, journal->path, err) != 0)
        return err->code;
    journal->size += length;
    return 0;
}

int mp_journal_done(mp_journal *journal, const mp_work *work, const mp_progress_state *state,
                    const uint64_t *done, size_t count, mp_error *err)
{
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    int rc;

    if (!f)
        return mp_fail_memory(err);
    for (size_t i = 0; i < count; i++) {
        char line[LINE_SIZE];

        if (done[i] < work->num_units)
            print_unit(line, done[i], state->stats ? &state->stats[done[i]] : NULL);
        else
            snprintf(line, sizeof line, STAGE "%" PRIu64, done[i] - work->num_units);
        fprintf(f, "%s\n", line);
    }
    rc = mp_text_finish(f, &text, err);
    if (rc == 0)
        rc = append(journal, text, length, err);
    free(text);
    return rc ? rc : mp_file_sync(journal->fd, journal->path, err);
}

int mp_journal_tensor(mp_journal *journal, const mp_progress_state *state, size_t output,
                      mp_error *err)
{
    char line[LINE_SIZE];

    print_tensor(line, output, state->digest[output]);
    strcat(line, "\n");
    return append(journal, line, strlen(line), err);
}

int mp_journal_plain(mp_journal *journal, size_t output, mp_error *err)
{
    char line[LINE_SIZE];
    int n = snprintf(line, sizeof line, PLAIN "%zu\n", output);
    int rc = append(journal, line, (size_t)n, err);

    return rc ? rc : mp_file_sync(journal->fd, journal->path, err);
}

/* Prints all that is done. */
static void print_state(const mp_work *work, const mp_progress_state *state, FILE *f)
{
    char line[LINE_SIZE];

    for (uint64_t u = 0; u < work->num_units; u++) {
        if (!state->unit_done[u])
            continue;
        print_unit(line, u, state->stats ? &state->stats[u] : NULL);
        fprintf(f, "%s\n", line);
    }
    for (uint64_t t = 0; t < work->num_outputs; t++) {
        if (!state->tensor_done[t])
            continue;
        print_tensor(line, t, state->digest[t]);
        fprintf(f, "%s\n", line);
    }
}

int mp_journal_write(const char *dir, const mp_work *work, const char *terms, const char *how,
                     const mp_progress_state *state, mp_error *err)
{
    char *path = mp_path_join(dir, MP_JOURNAL_NAME), *new = mp_path_join(dir, MP_JOURNAL_NEW);
    char *begins = make_head(work, terms), *head = begins ? whole_head(begins, how, false) : NULL;
    char *text = NULL;
    size_t length;
    FILE *f = path && new &&head ? open_memstream(&text, &length) : NULL;
    int rc = f ? 0 : mp_fail_memory(err);

    if (f) {
        fputs(head, f);
        print_state(work, state, f);
        rc = mp_text_finish(f, &text, err);
    }
    if (rc == 0)
        rc = mp_write_file(new, text, length, err);
    /* Synced under another name and then renamed: the parts' journals are removed next, and they
     * are the only other record of what is done. */
    if (rc == 0 && rename(new, path) != 0)
        rc = mp_fail_errno(err, errno, "cannot rename \"%s\"", new);
    if (rc == 0)
        rc = mp_dir_sync(dir, err);
    free(path);
    free(new);
    free(begins);
    free(head);
    free(text);
    return rc;
}
