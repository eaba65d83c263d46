/* SPDX-License-Identifier: Apache-2.0 */
/* The journal of a run: its terms, and what is finished. */
#include "pack/journal.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define JOURNAL_LIMIT (1u << 30)
#define BEGIN         "begin\n"

int mp_progress_init(mp_progress_state *state, const mp_plan *plan, mp_error *err)
{
    bool lossless = true;

    for (size_t i = 0; i < plan->num_layers; i++)
        lossless &= plan->layers[i].lossless;
    *state = (mp_progress_state){
        .unit_done = mp_alloc_zeroed(plan->num_units, sizeof(bool)),
        .stats = lossless ? NULL : mp_alloc_zeroed(plan->num_units, sizeof(mp_quant_stats)),
        .tensor_done = mp_alloc_zeroed(plan->num_outputs, sizeof(bool)),
        .digest = mp_alloc_zeroed(plan->num_outputs, sizeof(mp_hex_digest)),
    };
    if (!state->unit_done || !state->tensor_done || !state->digest || (!lossless && !state->stats))
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
 * Terms
 */

static const char *list_or_all(const bool *flags, size_t count, mp_digest *digest,
                               char text[MP_DIGEST_TEXT])
{
    if (!flags)
        return "all";
    mp_digest_of(flags, count * sizeof *flags, digest);
    return mp_digest_text(digest, text);
}

static void print_terms(FILE *f, const mp_plan *plan)
{
    const mp_repack_options *o = &plan->options;
    const mp_placement *placement = &plan->placement;
    const mp_checkpoint *ckpt = &plan->catalog->checkpoint;
    char text[MP_DIGEST_TEXT];
    mp_digest digest;

    fprintf(f, "journal 1\ntool %s\ntarget %s/%u\nep %u\nshared %s\n", mp_version(),
            o->target->name, o->target->version, o->ep, mp_shared_mode_name(o->shared));
    mp_digest_of(placement->map,
                 (size_t)placement->layers * placement->num_physical * sizeof *placement->map,
                 &digest);
    fprintf(f, "placement %u %s\n", placement->num_physical, mp_digest_text(&digest, text));
    fprintf(f, "layers %s\n", list_or_all(o->layers, plan->catalog->num_layers, &digest, text));
    fprintf(f, "ranks %s\n", list_or_all(o->ranks, o->ep, &digest, text));
    fprintf(f, "max-shard-size %" PRIu64 "\n", o->max_shard_size);
    fprintf(f, "quantize %s rounding %d scale-rule %d amax-floor %a allow-nonfinite %d\n",
            o->quantize ? mp_scheme_name(o->quantize_to) : "no", (int)o->quant.rounding,
            (int)o->quant.scale_rule, (double)o->quant.amax_floor, o->quant.allow_nonfinite);
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        memcpy(digest.bytes, ckpt->shards[i].header_xxh3, sizeof digest.bytes);
        fprintf(f, "source %s %" PRIu64 " %s\n", ckpt->shards[i].name, ckpt->shards[i].size,
                mp_digest_text(&digest, text));
    }
    fputs(BEGIN, f);
}

/* The head of the journal, malloc'ed. */
static char *terms_text(const mp_plan *plan, size_t *length)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, length);

    if (!f)
        return NULL;
    print_terms(f, plan);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* Names the first line in which two heads differ. */
static int report_difference(const char *had, const char *want, mp_error *err)
{
    for (;;) {
        size_t a = strcspn(had, "\n"), b = strcspn(want, "\n");

        if (a != b || memcmp(had, want, a) != 0)
            return mp_fail(err, MP_ERR_INPUT,
                           "cannot resume: the interrupted run had \"%.*s\", this one has "
                           "\"%.*s\"; start anew with --force",
                           (int)(a < 200 ? a : 200), had, (int)(b < 200 ? b : 200), want);
        if (had[a] == '\0')
            return 0;
        had += a + 1;
        want += b + 1;
    }
}

/* ------------------------------------------------------------------------
 * Lines
 */

static bool read_stats(const char *text, mp_quant_stats *stats)
{
    return sscanf(text, " %la %la %" SCNu64 " %" SCNu64 " %" SCNu64, &stats->error_sq,
                  &stats->signal_sq, &stats->elements, &stats->saturated, &stats->flushed) == 5;
}

/* One whole line; false if it is not one of ours. */
static bool read_line(const char *line, const mp_plan *plan, mp_progress_state *state)
{
    mp_digest digest;
    uint64_t index;
    int behind = 0;

    if (sscanf(line, "unit %" SCNu64 "%n", &index, &behind) == 1) {
        if (index >= plan->num_units ||
            (state->stats && !read_stats(line + behind, &state->stats[index])))
            return false;
        state->unit_done[index] = true;
        return true;
    }
    if (sscanf(line, "tensor %" SCNu64 " %n", &index, &behind) == 1 && behind > 0) {
        if (index >= plan->num_outputs || !mp_digest_parse(line + behind, &digest))
            return false;
        strcpy(state->digest[index], line + behind);
        state->tensor_done[index] = true;
        return true;
    }
    return false;
}

/* Reads lines up to the first that is torn or strange; returns the bytes that count. */
static uint64_t read_lines(char *text, const mp_plan *plan, mp_progress_state *state)
{
    char *line = text, *end;

    while ((end = strchr(line, '\n'))) {
        *end = '\0';
        if (!read_line(line, plan, state))
            break;
        line = end + 1;
    }
    return (uint64_t)(line - text);
}

/* ------------------------------------------------------------------------
 * The file
 */

static int begin(mp_journal *journal, const char *head, size_t length, mp_error *err)
{
    journal->size = length;
    if (mp_file_resize(journal->fd, journal->path, 0, err) != 0 ||
        mp_pwrite_all(journal->fd, head, length, 0, journal->path, err) != 0)
        return err->code;
    return mp_file_sync(journal->fd, journal->path, err);
}

static int load(mp_journal *journal, const mp_plan *plan, mp_progress_state *state, mp_error *err)
{
    char *had = NULL, *head, *body;
    size_t length;
    int rc = mp_read_text(journal->path, JOURNAL_LIMIT, &had, NULL, err);

    if (rc != 0)
        return rc;
    head = terms_text(plan, &length);
    if (!head) {
        free(had);
        return mp_fail_memory(err);
    }
    body = strstr(had, "\n" BEGIN);
    if (!body) {
        rc = begin(journal, head, length, err);
    } else {
        body += strlen("\n" BEGIN);
        if ((size_t)(body - had) != length || memcmp(had, head, length) != 0) {
            *body = '\0';
            rc = report_difference(had, head, err);
        } else {
            journal->size = length + read_lines(body, plan, state);
            rc = mp_file_resize(journal->fd, journal->path, journal->size, err);
        }
    }
    free(head);
    free(had);
    return rc;
}

int mp_journal_open(mp_journal *journal, const char *dir, const mp_plan *plan,
                    mp_progress_state *state, mp_error *err)
{
    int rc;

    *journal = (mp_journal){.fd = -1, .path = mp_path_join(dir, MP_JOURNAL_NAME)};
    if (!journal->path)
        return mp_fail_memory(err);
    rc = mp_open_write(journal->path, &journal->fd, err);
    if (rc == 0 && flock(journal->fd, LOCK_EX | LOCK_NB) != 0)
        rc = errno == EWOULDBLOCK ? mp_fail(err, MP_ERR_IO, "%s: another process is at work there",
                                            dir)
                                  : 0; /* a file system without locks */
    if (rc == 0)
        rc = load(journal, plan, state, err);
    if (rc != 0)
        mp_journal_close(journal);
    return rc;
}

void mp_journal_close(mp_journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal->path);
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
        fprintf(f, "unit %" PRIu64, units[i]);
        if (state->stats) {
            const mp_quant_stats *s = &state->stats[units[i]];

            fprintf(f, " %a %a %" PRIu64 " %" PRIu64 " %" PRIu64, s->error_sq, s->signal_sq,
                    s->elements, s->saturated, s->flushed);
        }
        fputc('\n', f);
    }
    rc = fclose(f) == 0 ? append(journal, text, length, err) : mp_fail_memory(err);
    free(text);
    return rc ? rc : mp_file_sync(journal->fd, journal->path, err);
}

int mp_journal_tensor(mp_journal *journal, const mp_progress_state *state, size_t output,
                      mp_error *err)
{
    char line[80];
    int length = snprintf(line, sizeof line, "tensor %zu %s\n", output, state->digest[output]);

    return append(journal, line, (size_t)length, err);
}
