/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of a run: its terms, and what is finished. */
#include "run/journal.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
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
#define LINE_SIZE     192 /* of a unit or tensor: seven numbers, or a digest */

int mp_progress_init(mp_progress_state *state, const mp_work *work, mp_error *err)
{
    bool measured = !work->lossless;

    *state = (mp_progress_state){
        .unit_done = mp_alloc_zeroed(work->num_units, sizeof(bool)),
        .stats = measured ? mp_alloc_zeroed(work->num_units, sizeof(mp_quant_stats)) : NULL,
        .tensor_done = mp_alloc_zeroed(work->num_outputs, sizeof(bool)),
        .digest = mp_alloc_zeroed(work->num_outputs, sizeof(mp_hex_digest)),
    };
    if (!state->unit_done || !state->tensor_done || !state->digest || (measured && !state->stats))
        return mp_fail_memory(err);
    return 0;
}

void mp_progress_release(mp_progress_state *state)
{
    free(state->unit_done);
    free(state->stats);
    free(state->tensor_done);
    free(state->digest);
    memset(state, 0, sizeof *state);
}

/* ------------------------------------------------------------------------
 * The head
 */

/* Malloc'ed; null without memory. The level of compression is no term, but one run has one. */
static char *make_head(const mp_work *work, const char *terms)
{
    char level[16];
    mp_hex_digest hex;

    mp_hex_digest_of(terms, strlen(terms), hex);
    snprintf(level, sizeof level, "%d", work->zstd);
    return mp_format("journal 2 %s\n%szstd %s\n" BEGIN, hex, terms,
                     work->zstd > 0               ? level
                     : work->zstd == MP_ZSTD_AUTO ? "auto"
                                                  : "none");
}

/* Names what differs in the heads of two journals, each up to "begin". */
static int report_difference(const char *had, const char *want, mp_error *err)
{
    const char *of_journal = strchr(had, '\n'), *of_run = strchr(want, '\n');
    mp_term a = {had, (int)strcspn(had, "\n")}, b = {want, (int)strcspn(want, "\n")};

    /* The first lines have the digests: they differ where anything does, and tell the least. */
    if (of_journal && strncmp(had, want, strlen("journal 2 ")) == 0)
        mp_terms_differ(of_journal + 1, of_run + 1, &a, &b);
    return mp_fail(err, MP_ERR_INPUT,
                   "cannot resume: the interrupted run had \"%.*s\", this one has \"%.*s\"; start "
                   "anew with --force",
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

/* A line counts if it is, to the letter, one that we would print. */
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

/* Reads lines up to the first that is torn or strange; returns the bytes that count. */
static uint64_t read_lines(char *text, const mp_work *work, mp_progress_state *state)
{
    char *line = text, *end;

    while ((end = strchr(line, '\n'))) {
        *end = '\0';
        if (!read_unit(line, work, state) && !read_tensor(line, work, state))
            break;
        line = end + 1;
    }
    return (uint64_t)(line - text);
}

/* ------------------------------------------------------------------------
 * The file
 */

static int begin(mp_journal *journal, mp_error *err)
{
    journal->size = strlen(journal->head);
    if (mp_file_resize(journal->fd, journal->path, 0, err) != 0 ||
        mp_pwrite_all(journal->fd, journal->head, journal->size, 0, journal->path, err) != 0)
        return err->code;
    return mp_file_sync(journal->fd, journal->path, err);
}

static int load(mp_journal *journal, const mp_work *work, mp_progress_state *state, mp_error *err)
{
    size_t length = strlen(journal->head);
    char *had = NULL, *body;
    int rc = mp_read_text(journal->path, JOURNAL_LIMIT, &had, NULL, err);

    if (rc != 0)
        return rc;
    body = strstr(had, "\n" BEGIN);
    if (!body) {
        journal->fresh = true;
        rc = begin(journal, err);
    } else {
        body += strlen("\n" BEGIN);
        if ((size_t)(body - had) != length || memcmp(had, journal->head, length) != 0) {
            *body = '\0';
            rc = report_difference(had, journal->head, err);
        } else {
            journal->size = length + read_lines(body, work, state);
            rc = mp_file_resize(journal->fd, journal->path, journal->size, err);
        }
    }
    free(had);
    return rc;
}

int mp_journal_restart(mp_journal *journal, const mp_work *work, mp_progress_state *state,
                       mp_error *err)
{
    memset(state->unit_done, 0, work->num_units * sizeof *state->unit_done);
    memset(state->tensor_done, 0, work->num_outputs * sizeof *state->tensor_done);
    return begin(journal, err);
}

/* Locks the open journal against other processes. */
static int lock(const mp_journal *journal, const char *dir, mp_error *err)
{
    /* Any other failure is that of a file system without locks. */
    if (flock(journal->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return mp_fail(err, MP_ERR_IO, "%s: another process is at work there", dir);
    return 0;
}

int mp_journal_open(mp_journal *journal, const char *dir, const mp_work *work, const char *terms,
                    mp_progress_state *state, mp_error *err)
{
    int rc = 0;

    *journal = (mp_journal){
        .fd = -1, .path = mp_path_join(dir, MP_JOURNAL_NAME), .head = make_head(work, terms)};
    if (!journal->path || !journal->head)
        rc = mp_fail_memory(err);
    if (rc == 0)
        rc = mp_open_write(journal->path, &journal->fd, err);
    if (rc == 0)
        rc = lock(journal, dir, err);
    if (rc == 0)
        rc = load(journal, work, state, err);
    if (rc != 0)
        mp_journal_close(journal);
    return rc;
}

int mp_journal_check_free(const char *dir, mp_error *err)
{
    mp_journal journal = {.fd = -1, .path = mp_path_join(dir, MP_JOURNAL_NAME)};
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
    *journal = (mp_journal){.fd = -1};
}

static int append(mp_journal *journal, const char *text, size_t length, mp_error *err)
{
    if (mp_pwrite_all(journal->fd, text, length, journal->size, journal->path, err) != 0)
        return err->code;
    journal->size += length;
    return 0;
}

int mp_journal_units(mp_journal *journal, const mp_progress_state *state, const uint64_t *units,
                     size_t count, mp_error *err)
{
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    int rc;

    if (!f)
        return mp_fail_memory(err);
    for (size_t i = 0; i < count; i++) {
        char line[LINE_SIZE];

        print_unit(line, units[i], state->stats ? &state->stats[units[i]] : NULL);
        fprintf(f, "%s\n", line);
    }
    rc = fclose(f) == 0 ? append(journal, text, length, err) : mp_fail_memory(err);
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
