/* SPDX-License-Identifier: Apache-2.0 */
/* Running a job: units in parallel, synced and journaled in batches, then digests. */
#include "run/work.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "run/journal.h"
#include "run/output.h"
#include "run/partial.h"
#include "run/terms.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SYNC_BYTES   (512u << 20) /* data that one batch of syncs makes durable */
#define DIGEST_BYTES (256u << 10) /* buffer that tensors are digested through */

/* What the parts of a run share. */
typedef struct run {
    const mp_job *job;
    const mp_work *work; /* of the job */
    const mp_context *context;
    char *out;     /* without slashes at the end */
    char *partial; /* OUT.partial */
    char *terms;
    mp_outputs outputs;
    mp_journal journal;
    mp_progress_state state;
    uint64_t *units; /* [work->stage_units] to do in the stage at hand */

    /* Finished units whose data is not known to be durable. */
    pthread_mutex_t lock; /* guards all below, and the journal */
    uint64_t *pending;    /* [work->num_units] */
    size_t num_pending;
    uint64_t pending_bytes;
    bool syncing;
    bool sync_failed; /* a system reports lost pages once: nothing is durable for sure any more */
    uint64_t bytes_done; /* for progress */
} run;

/* ------------------------------------------------------------------------
 * Making units durable
 */

/* Takes the pending units out of the run. */
static size_t take_pending(run *r, uint64_t *units)
{
    size_t count;

    pthread_mutex_lock(&r->lock);
    count = r->num_pending;
    memcpy(units, r->pending, count * sizeof *units);
    r->num_pending = 0;
    r->pending_bytes = 0;
    pthread_mutex_unlock(&r->lock);
    return count;
}

/* Syncs what is pending and journals it. Other threads go on meanwhile. */
static int make_durable(run *r, mp_error *err)
{
    uint64_t *units = mp_alloc(r->work->num_units, sizeof *units);
    size_t count = 0;
    int rc = units ? 0 : mp_fail_memory(err);

    if (rc == 0) {
        /* Units first: what they wrote is marked by then. */
        count = take_pending(r, units);
        rc = mp_outputs_sync(&r->outputs, err);
    }
    pthread_mutex_lock(&r->lock);
    r->sync_failed |= rc != 0;
    if (!r->sync_failed)
        rc = mp_journal_units(&r->journal, &r->state, units, count, err);
    r->syncing = false;
    pthread_mutex_unlock(&r->lock);
    free(units);
    return rc;
}

/* Notes a finished unit; true if this thread is to make the batch durable. */
static bool note_unit(run *r, uint64_t unit)
{
    uint64_t bytes = r->job->unit_bytes(r->job->plan, unit);
    bool sync;

    pthread_mutex_lock(&r->lock);
    r->pending[r->num_pending++] = unit;
    r->pending_bytes += bytes;
    r->bytes_done += bytes;
    sync = r->pending_bytes >= SYNC_BYTES && !r->syncing;
    r->syncing |= sync;
    if (r->context && r->context->progress)
        r->context->progress(r->context->progress_user, r->bytes_done, r->work->bytes_written);
    pthread_mutex_unlock(&r->lock);
    return sync;
}

/* ------------------------------------------------------------------------
 * A stage
 */

static int do_unit(void *user, uint64_t index, void *scratch, mp_error *err)
{
    run *r = user;
    uint64_t unit = r->units[index];
    mp_quant_stats stats = {0};

    if (r->job->run(r->job->plan, unit, &r->outputs, scratch, r->state.stats ? &stats : NULL,
                    err) != 0)
        return err->code;
    if (r->state.stats)
        r->state.stats[unit] = stats;
    r->state.unit_done[unit] = true;
    return note_unit(r, unit) ? make_durable(r, err) : 0;
}

typedef struct digest_job {
    run *run;
    const uint32_t *outputs; /* of the stage */
} digest_job;

static int do_digest(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const digest_job *job = user;
    run *r = job->run;
    uint32_t o = job->outputs[index];
    mp_digest digest;
    int rc;

    if (r->state.tensor_done[o])
        return 0;
    if (mp_outputs_digest(&r->outputs, &r->work->outputs[o], scratch, DIGEST_BYTES, &digest, err) !=
        0)
        return err->code;
    mp_digest_text(&digest, r->state.digest[o]);
    r->state.tensor_done[o] = true;
    pthread_mutex_lock(&r->lock);
    rc = mp_journal_tensor(&r->journal, &r->state, o, err);
    pthread_mutex_unlock(&r->lock);
    return rc;
}

/* Units of a stage that are left to do, in the job's order; returns how many. */
static uint64_t list_units(run *r, uint32_t stage)
{
    size_t all = r->job->units(r->job->plan, stage, r->units), left = 0;

    for (size_t i = 0; i < all; i++)
        if (!r->state.unit_done[r->units[i]])
            r->units[left++] = r->units[i];
    return left;
}

/* A stage's digests are taken right behind its units, while its pages are in memory. */
static int run_stage(run *r, uint32_t stage, mp_error *err)
{
    size_t outputs;
    digest_job digests = {r, mp_outputs_of_stage(&r->outputs, stage, &outputs)};
    int rc = mp_outputs_begin_stage(&r->outputs, stage, err);

    if (rc == 0)
        rc = mp_parallel(r->context, list_units(r, stage), r->work->scratch_bytes, do_unit, r, err);
    if (rc == 0)
        rc = mp_parallel(r->context, outputs, DIGEST_BYTES, do_digest, &digests, err);
    if (rc == 0 && mp_outputs_finishes(&r->outputs, stage)) {
        rc = make_durable(r, err);
        if (rc == 0)
            rc = mp_outputs_compress(&r->outputs, stage, r->partial, r->context, err);
    }
    if (rc == 0)
        mp_outputs_forget_stage(&r->outputs, stage);
    return rc;
}

/* All stages. Whatever stops them, what was written is made durable and journaled. */
static int run_stages(run *r, mp_error *err)
{
    mp_error later;
    int rc = 0;

    for (uint32_t stage = 0; rc == 0 && stage < r->work->num_stages; stage++)
        rc = run_stage(r, stage, err);
    if (make_durable(r, rc ? &later : err) != 0 && rc == 0)
        rc = err->code;
    return rc;
}

/* ------------------------------------------------------------------------
 * Beginning and end
 */

/* Opens all files. The journal is only relied on when they are as it left them: it is
 * restarted before they get their size, for then it could not be told any more. */
static int open_files(run *r, mp_error *err)
{
    bool whole;

    if (r->journal.fresh && mp_partial_clear(r->job, r->partial, err) != 0)
        return err->code;
    if (mp_outputs_check(&r->outputs, r->partial, &whole, err) != 0)
        return err->code;
    if (!whole) {
        memset(r->outputs.compressed, 0, r->work->num_files * sizeof *r->outputs.compressed);
        if (mp_journal_restart(&r->journal, r->work, &r->state, err) != 0)
            return err->code;
    }
    if (mp_outputs_open(&r->outputs, r->partial, err) != 0)
        return err->code;
    for (uint64_t u = 0; u < r->work->num_units; u++)
        if (r->state.unit_done[u])
            r->bytes_done += r->job->unit_bytes(r->job->plan, u);
    return 0;
}

/* Writes what is not tensors, removes the journal, and lets OUT be seen. */
static int finish(run *r, mp_run_mode mode, mp_error *err)
{
    char *journal = mp_path_join(r->partial, MP_JOURNAL_NAME);
    int rc = journal ? 0 : mp_fail_memory(err);

    if (rc == 0)
        rc = r->job->finish(r->job->plan, &r->state, r->partial, err);
    if (rc == 0)
        rc = mp_outputs_sync_dirs(&r->outputs, r->partial, err);
    if (rc == 0 && unlink(journal) != 0)
        rc = mp_fail_errno(err, errno, "cannot remove \"%s\"", journal);
    if (rc == 0)
        rc = mp_dir_sync(r->partial, err);
    if (rc == 0)
        rc = mp_partial_publish(r->out, r->partial, mode, err);
    free(journal);
    return rc;
}

static int init_run(run *r, const char *out, mp_error *err)
{
    const mp_work *work = r->work;

    pthread_mutex_init(&r->lock, NULL);
    r->journal.fd = -1;
    r->out = mp_without_slashes(out);
    r->partial = r->out ? mp_format("%s.partial", r->out) : NULL;
    r->units = mp_alloc(work->stage_units, sizeof *r->units);
    r->pending = mp_alloc(work->num_units, sizeof *r->pending);
    if (!r->partial || !r->units || !r->pending)
        return mp_fail_memory(err);
    if (mp_terms_text(r->job, &r->terms, err) != 0 ||
        mp_outputs_init(&r->outputs, work, err) != 0 || mp_progress_init(&r->state, work, err) != 0)
        return err->code;
    r->state.terms = r->terms;
    return 0;
}

static void release_run(run *r)
{
    mp_outputs_release(&r->outputs);
    mp_journal_close(&r->journal);
    mp_progress_release(&r->state);
    pthread_mutex_destroy(&r->lock);
    free(r->out);
    free(r->partial);
    free(r->terms);
    free(r->units);
    free(r->pending);
}

/* Everything between a prepared directory and the published one. */
static int run_all(run *r, mp_run_mode mode, mp_error *err)
{
    int rc = open_files(r, err);

    if (rc == 0)
        rc = run_stages(r, err);
    if (rc == 0)
        rc = mp_outputs_close(&r->outputs, err);
    if (rc == 0)
        rc = finish(r, mode, err);
    if (rc != 0 && rc != MP_ERR_IO && rc != MP_ERR_CANCELLED)
        mp_remove_tree(r->partial, NULL); /* it would fail again */
    return rc;
}

int mp_job_run(const mp_job *job, const char *out, mp_run_mode mode, const mp_context *context,
               mp_error *err)
{
    run r = {.job = job, .work = job->work, .context = context};
    int rc = init_run(&r, out, err);

    if (rc == 0 && mode == MP_RUN_RESUME && job->is_whole(r.out)) {
        rc = mp_terms_check_compressed(r.out, r.work, err);
        if (rc == 0)
            rc = job->check_done(job->plan, r.out, r.terms, err);
        release_run(&r);
        return rc;
    }
    if (rc == 0)
        rc = mp_partial_prepare(job, r.out, r.partial, mode, err);
    if (rc == 0)
        rc = mp_journal_open(&r.journal, r.partial, job->work, r.terms, &r.state, err);
    if (rc == 0)
        rc = run_all(&r, mode, err);
    release_run(&r);
    return rc;
}
