/* SPDX-License-Identifier: Apache-2.0 */
/* pack/run.h - the state that the parts of a run share. */
#ifndef MP_PACK_RUN_H
#define MP_PACK_RUN_H

#include <pthread.h>

#include "pack/journal.h"
#include "pack/output.h"

typedef struct mp_run {
    const mp_plan *plan;
    const mp_context *context;
    char *out;     /* without slashes at the end */
    char *partial; /* OUT.partial */
    mp_outputs outputs;
    mp_journal journal;
    mp_progress_state state;

    /* Finished units whose data is not known to be durable. */
    pthread_mutex_t lock; /* guards all below, and the journal */
    uint64_t *pending;    /* [plan->num_units] */
    size_t num_pending;
    uint64_t pending_bytes;
    bool *dirty; /* [plan->num_files] */
    bool syncing;
    bool sync_failed; /* a system reports lost pages once: nothing is durable for sure any more */
    uint64_t bytes_done; /* for progress */
} mp_run;

/* Writes everything but the tensors into the partial directory: placement, config,
 * indexes, and the manifest last; then renames it to OUT. */
int mp_run_finish(mp_run *run, mp_run_mode mode, mp_error *err);

/* For an OUT that is there: 0 if it is what the plan would write, so that nothing is left to
 * resume; MP_ERR_INPUT naming what differs. */
int mp_run_check_done(const mp_run *run, mp_error *err);

/* Hex digest of a text. */
void mp_hex_digest_of(const void *data, size_t n, mp_hex_digest hex);

#endif
