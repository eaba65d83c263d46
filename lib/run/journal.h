/* SPDX-License-Identifier: Apache-2.0 */
/* run/journal.h - what of an interrupted run is done.
 *
 * A text file in the partial directory. It begins with "journal 2" and the digest of the terms
 * of the run, then come the terms (run/terms.h), the level of compression, how a
 * part was started, and "begin". Behind
 * that, a line a finished unit ("unit 17", with its requantization error in hex floats where there
 * is any) or digested tensor ("tensor 4 <hex>"). A line counts when it is whole, so a torn end is
 * no harm.
 *
 * Where tensors are written into compressed files at once (run/at_once.h), the first line behind
 * "begin" is "at once". "stage 3" says that frames of all of a stage's tensors are in them, and
 * "plain 4" that a tensor has been put back into the plain file. */
#ifndef MP_RUN_JOURNAL_H
#define MP_RUN_JOURNAL_H

#include <moepack/store.h>

#include "numeric/quantize.h"
#include "run/work.h"

#define MP_JOURNAL_NAME "journal"
#define MP_JOURNAL_NEW  "journal.new" /* until it is whole */

/* What is done; arrays are owned. */
typedef struct mp_progress_state {
    bool *unit_done;       /* [work->num_units] */
    mp_quant_stats *stats; /* [work->num_units]; null when everything is lossless */
    bool *tensor_done;     /* [work->num_outputs] */
    mp_hex_digest *digest; /* [work->num_outputs] */
    bool at_once;          /* how files are compressed, if they are */
    bool *stage_done;      /* [work->num_stages]: it is, where at_once */
    bool *plain;           /* [work->num_outputs]: it is not, where at_once */
    const char *terms;     /* of the run, for reports; not owned */
} mp_progress_state;

int mp_progress_init(mp_progress_state *state, const mp_work *work, mp_error *err);
void mp_progress_release(mp_progress_state *state);

typedef struct mp_journal {
    int fd;
    char *path;
    uint64_t size;
    char *head; /* up to "how" or "begin" */
    char *how;  /* mp_part.how of who began it; null: none */
    bool fresh; /* nothing in it when it was opened */
    bool busy;  /* not opened: another process has it */
} mp_journal;

/* Opens the journal in a directory, locked against other processes, and fills state from
 * it. A new or torn-headed journal begins anew, with state->at_once as it is given. MP_ERR_INPUT
 * when its terms are not these, naming the first that differs; MP_ERR_IO when another process holds
 * it. part: whose it is; null or with a count of 0 for a run that is not in parts. */
int mp_journal_open(mp_journal *journal, const char *dir, const mp_work *work, const mp_part *part,
                    const char *terms, mp_progress_state *state, mp_error *err);
void mp_journal_close(mp_journal *journal);

/* MP_ERR_INPUT where the journal of another part, if it has begun, has other terms.
 * wrote: set to whether it has finished units. */
int mp_journal_compare(const mp_journal *own, const char *dir, const mp_part *other, bool *wrote,
                       mp_error *err);

/* Sets *how, malloc'ed, to the mp_part.how in a journal; to null where there is none. */
int mp_journal_how(const char *dir, const char *name, char **how, mp_error *err);

/* Writes the journal of a run that is not in parts: durable, and there as a whole or not. */
int mp_journal_write(const char *dir, const mp_work *work, const char *terms, const char *how,
                     const mp_progress_state *state, mp_error *err);

/* Forgets, durably, that anything is done. */
int mp_journal_restart(mp_journal *journal, const mp_work *work, mp_progress_state *state,
                       mp_error *err);

/* MP_ERR_IO when another process holds a journal in a directory. */
int mp_journal_check_free(const char *dir, const char *name, mp_error *err);

/* Appends and syncs lines for what is durable: units by their numbers, and stages that are
 * compressed, each as work->num_units and its number, behind its units. */
int mp_journal_done(mp_journal *journal, const mp_work *work, const mp_progress_state *state,
                    const uint64_t *done, size_t count, mp_error *err);

/* Appends (without sync) a line for a digested tensor. */
int mp_journal_tensor(mp_journal *journal, const mp_progress_state *state, size_t output,
                      mp_error *err);

/* Appends and syncs a line for a tensor that is in the plain file again, durably. */
int mp_journal_plain(mp_journal *journal, size_t output, mp_error *err);

#endif
