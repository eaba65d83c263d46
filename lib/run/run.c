/* SPDX-License-Identifier: Apache-2.0 */
/* Running a job: units in parallel, synced and journaled in batches, then digests.
 *
 * A run may be killed at any moment, and the machine may lose power. What then is there has to be
 * either gone on with or started anew, and never taken for complete. This holds by the order in
 * which things reach the disk:
 *
 *   1. All goes to OUT.partial, whose files are made at full size; the journal there begins with
 *      the terms of the run (terms.h), so that another run cannot go on with it.
 *   2. Threads take units in any order. A unit knows its extents before the run begins, so that
 *      what it writes does not depend on which others are done.
 *   3. After about SYNC_BYTES one thread syncs the files that were written to, while the others go
 *      on. Only then do the units that were finished before the sync enter the journal, which is
 *      synced in turn: a unit in the journal is on the disk, one that is not is done again. After
 *      a failed sync nothing enters it any more, for the system reports lost pages once only.
 *   4. With all units of a stage done, tensors that no unit could digest as it wrote them are read
 *      once more. Then compressing may follow: of the stage (at_once.h), or file by file.
 *   5. `finish` writes what is not tensors, the manifest or index last. Directories are synced, the
 *      journal is removed, and a rename makes OUT.partial OUT: the one step that anybody sees.
 *
 * A part of a run on many machines (parts.h) ends after step 3, with a journal of its own;
 * `moepack finish` joins the journals and does the rest. The lock guards the list of finished units
 * and the journal; files are written without it, since extents do not overlap. */
#include "run/work.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "numeric/quantize.h"
#include "run/at_once.h"
#include "run/journal.h"
#include "run/output.h"
#include "run/partial.h"
#include "run/parts.h"
#include "run/sums.h"
#include "run/terms.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SYNC_BYTES   (512u << 20) /* data that one batch of syncs makes durable */
#define DIGEST_BYTES (256u << 10) /* buffer that tensors are digested through */

/* What the steps of a run share. */
typedef struct run {
    const mp_job *job;
    const mp_work *work; /* of the job */
    const mp_context *context;
    mp_run_mode mode;
    char *out;     /* without slashes at the end */
    char *partial; /* OUT.partial */
    char *terms;
    uint64_t begin, end; /* units that this process may do */
    uint64_t bytes;      /* that they write */
    bool others_wrote;   /* to the files: they must not be made again */
    mp_outputs outputs;
    mp_sums sums;
    mp_journal journal;
    mp_progress_state state;
    uint64_t *units;    /* [work->stage_units] to do in the stage at hand */
    uint64_t num_units; /* of these */

    /* Finished units and compressed stages whose data is not known to be durable, numbered as for
     * mp_journal_done. */
    pthread_mutex_t lock; /* guards all below, and the journal */
    uint64_t *pending;    /* [work->num_units + work->num_stages] */
    size_t num_pending;
    uint64_t pending_bytes;
    bool syncing;
    bool sync_failed; /* a system reports lost pages once: nothing is durable for sure any more */
    uint64_t bytes_done; /* for progress */
} run;

/* Whether this process does a part only, whoever does the others. */
static bool is_part(const run *r)
{
    return r->work->part.count > 0 && r->mode != MP_RUN_FINISH;
}

/* ------------------------------------------------------------------------
 * Making units durable
 */

/* Takes what is pending out of the run. */
static size_t take_pending(run *r, uint64_t *done)
{
    size_t count;

    pthread_mutex_lock(&r->lock);
    count = r->num_pending;
    memcpy(done, r->pending, count * sizeof *done);
    r->num_pending = 0;
    r->pending_bytes = 0;
    pthread_mutex_unlock(&r->lock);
    return count;
}

/* Syncs what is pending and journals it. Other threads go on meanwhile. */
static int make_durable(run *r, mp_error *err)
{
    uint64_t *done = mp_alloc(r->work->num_units + r->work->num_stages, sizeof *done);
    size_t count = 0;
    int rc = done ? 0 : mp_fail_memory(err);

    if (rc == 0) {
        /* Take them first: everything they wrote is marked by then. A unit that finishes in between
         * is synced as well, but waits for the next batch. */
        count = take_pending(r, done);
        rc = mp_outputs_sync(&r->outputs, err);
    }
    pthread_mutex_lock(&r->lock);
    r->sync_failed |= rc != 0;
    if (!r->sync_failed)
        rc = mp_journal_done(&r->journal, r->work, &r->state, done, count, err);
    r->syncing = false;
    pthread_mutex_unlock(&r->lock);
    free(done);
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
    /* Only one thread syncs at a time. A second would sync the same files, no faster. */
    sync = r->pending_bytes >= SYNC_BYTES && !r->syncing;
    r->syncing |= sync;
    if (r->context && r->context->progress)
        r->context->progress(r->context->progress_user, r->bytes_done, r->bytes);
    pthread_mutex_unlock(&r->lock);
    return sync;
}

/* ------------------------------------------------------------------------
 * A stage
 */

/* Before a thread begins a unit, the one that it will take next begins to be read, so that a disk
 * goes on while all threads work. Of the first units nobody could have known earlier. */
static void look_ahead(const run *r, uint64_t index)
{
    uint64_t next = index + (uint64_t)mp_threads(r->context);

    if (r->job->ahead && next < r->num_units)
        r->job->ahead(r->job->plan, r->units[next]);
}

/* Runs in parallel over the units of a stage. */
static int do_unit(void *user, uint64_t index, void *scratch, mp_error *err)
{
    run *r = user;
    uint64_t unit = r->units[index];
    mp_quant_stats stats = {0};

    look_ahead(r, index);
    if (r->job->run(r->job->plan, unit, &r->outputs, scratch, r->state.stats ? &stats : NULL,
                    err) != 0)
        return err->code;
    if (r->state.stats)
        r->state.stats[unit] = stats;
    /* These entries belong to this unit alone. The thread that journals them sees them through the
     * lock that note_unit takes. */
    r->state.unit_done[unit] = true;
    return note_unit(r, unit) ? make_durable(r, err) : 0;
}

typedef struct digest_job {
    run *run;
    const uint32_t *outputs; /* of the stage */
} digest_job;

/* Digests a tensor that all its units have filled. Runs in parallel over the tensors of a stage;
 * each has its own entries, and the lock guards the journal. */
static int do_digest(void *user, uint64_t index, void *scratch, mp_error *err)
{
    const digest_job *job = user;
    run *r = job->run;
    uint32_t o = job->outputs[index];
    mp_digest digest;
    int rc;

    if (r->state.tensor_done[o])
        return 0;
    if (is_part(r) && !mp_outputs_wrote(&r->outputs, &r->work->outputs[o]))
        return 0; /* others fill it too, or an earlier process has: who finishes reads it */
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

/* Units of a stage that are left for this process to do, in the job's order; returns how many. */
static uint64_t list_units(run *r, uint32_t stage)
{
    size_t all = r->job->units(r->job->plan, stage, r->units), left = 0;

    for (size_t i = 0; i < all; i++)
        if (r->units[i] >= r->begin && r->units[i] < r->end && !r->state.unit_done[r->units[i]])
            r->units[left++] = r->units[i];
    return left;
}

/* Tensors that shrink are put back into their plain files, to be compressed. Where none does, which
 * is usual, nothing is synced. */
static int put_shrinking_back(run *r, uint32_t stage, const mp_context *context, mp_error *err)
{
    mp_outputs *outputs = &r->outputs;
    bool durable = false;
    int rc = mp_at_once_look(outputs, stage, r->state.plain, context, err);

    for (size_t o = 0; rc == 0 && o < r->work->num_outputs; o++) {
        if (!r->state.plain[o] || !mp_at_once_has(outputs, &r->work->outputs[o]))
            continue;
        if (!durable)
            rc = make_durable(r, err);
        durable = true;
        if (rc == 0)
            rc = mp_journal_plain(&r->journal, o, err);
        mp_at_once_give_up(outputs, o);
    }
    return rc;
}

/* Makes the frames of a stage in files that are filled at once. They become durable with one of the
 * next batches: nothing that is done already is written over, so that until then the stage can be
 * ended once more. */
static int make_frames(run *r, uint32_t stage, const mp_context *context, mp_error *err)
{
    int rc = put_shrinking_back(r, stage, context, err);

    if (rc == 0)
        rc = mp_at_once_end_stage(&r->outputs, stage, context, err);
    if (rc == 0)
        r->pending[r->num_pending++] = r->work->num_units + stage;
    return rc;
}

/* What follows once the tensors of a stage are digested, if the files are this process's own. */
static int end_stage(run *r, uint32_t stage, mp_error *err)
{
    /* Of compressed bytes there is no progress: they have been counted. */
    const mp_context quiet = {.threads = mp_threads(r->context),
                              .cancel = r->context ? r->context->cancel : NULL};
    int rc = 0;

    if (!r->state.stage_done[stage] && mp_at_once_has_stage(&r->outputs, stage))
        rc = make_frames(r, stage, &quiet, err);
    /* A plain file is removed once it is compressed, and what it held has to be in the journal. */
    if (rc == 0 && mp_outputs_finishes(&r->outputs, stage)) {
        rc = make_durable(r, err);
        if (rc == 0)
            rc = mp_outputs_compress(&r->outputs, stage, r->partial, &quiet, err);
    }
    return rc ? rc : mp_sums_advance(&r->sums, &r->outputs, stage, r->partial, r->context, err);
}

/* A stage's digests are taken right behind its units, while its pages are in memory. */
static int run_stage(run *r, uint32_t stage, mp_error *err)
{
    size_t outputs;
    digest_job digests = {r, mp_outputs_of_stage(&r->outputs, stage, &outputs)};
    uint64_t units = r->num_units = list_units(r, stage);
    int rc = 0;

    /* A part leaves the digests of stages it had finished earlier to `finish`. */
    if (is_part(r) && units == 0)
        return 0;
    rc = mp_outputs_begin_stage(&r->outputs, stage, err);
    if (rc == 0 && mp_at_once_has_stage(&r->outputs, stage) && !r->state.stage_done[stage])
        rc = mp_at_once_begin_stage(&r->outputs, stage, err);
    if (rc == 0)
        rc = mp_parallel(r->context, units, r->work->scratch_bytes, do_unit, r, err);
    if (rc == 0)
        /* A digest may be journaled before the units it covers; journal.c explains why that is
         * safe. */
        rc = mp_parallel(r->context, outputs, DIGEST_BYTES, do_digest, &digests, err);
    if (rc == 0 && !is_part(r))
        rc = end_stage(r, stage, err);
    if (rc == 0)
        mp_outputs_forget_stage(&r->outputs, stage);
    return rc;
}

/* All stages. Whatever stops them, what was written is made durable and journaled. */
static int run_stages(run *r, mp_error *err)
{
    mp_error later;
    int rc = 0;

    mp_begin_phase(r->context, "writing");
    for (uint32_t stage = 0; rc == 0 && stage < r->work->num_stages; stage++)
        rc = run_stage(r, stage, err);
    /* Report the first error, but still save what can be saved. */
    if (make_durable(r, rc ? &later : err) != 0 && rc == 0)
        rc = err->code;
    return rc;
}

/* ------------------------------------------------------------------------
 * Beginning and end
 */

/* Digests that are known need not be taken. */
static void note_known_digests(run *r)
{
    for (size_t o = 0; r->job->known_digest && o < r->work->num_outputs; o++) {
        const char *known = r->job->known_digest(r->job->plan, o);

        if (!known)
            continue;
        snprintf(r->state.digest[o], sizeof r->state.digest[o], "%s", known);
        r->state.tensor_done[o] = true;
        mp_outputs_pass_digest(&r->outputs, o);
    }
}

/* Opens all files. The journal is only relied on when they are as it left them: it is
 * restarted before they get their size, for then it could not be told any more. Of a file that
 * others had written to nobody could tell. */
static int open_files(run *r, mp_error *err)
{
    const mp_out_file *missing;

    if (r->journal.fresh && !is_part(r) && mp_partial_clear(r->job, r->partial, err) != 0)
        return err->code;
    if (mp_at_once_init(&r->outputs, &r->state, err) != 0 ||
        mp_outputs_check(&r->outputs, r->partial, &missing, err) != 0)
        return err->code;
    if (missing && r->others_wrote)
        return mp_fail(
            err, MP_ERR_INPUT,
            "%s: \"%s\" is missing or truncated, and parts have written to it: remove the "
            "directory to start over",
            r->partial, missing->path);
    if (missing) {
        /* All units will be redone, so a file that was compressed is written again as a plain
         * one. */
        memset(r->outputs.compressed, 0, r->work->num_files * sizeof *r->outputs.compressed);
        if (mp_journal_restart(&r->journal, r->work, &r->state, err) != 0)
            return err->code;
    }
    if (mp_outputs_open(&r->outputs, r->partial, err) != 0)
        return err->code;
    note_known_digests(r);
    for (uint64_t u = r->begin; u < r->end; u++) {
        uint64_t bytes = r->job->unit_bytes(r->job->plan, u);

        r->bytes += bytes;
        r->bytes_done += r->state.unit_done[u] ? bytes : 0;
    }
    return 0;
}

/* Writes what is not tensors, removes the journal, and lets OUT be seen. */
static int finish(run *r, mp_error *err)
{
    char *journal = mp_path_join(r->partial, MP_JOURNAL_NAME);
    int rc = journal ? 0 : mp_fail_memory(err);

    mp_begin_phase(r->context, "finishing");
    if (rc == 0)
        rc = r->job->finish(r->job->plan, &r->state, r->partial, err);
    if (rc == 0)
        rc = mp_outputs_sync_dirs(&r->outputs, r->partial, err);
    /* The sums cover all other files except the journal, which is about to go. */
    if (rc == 0 && r->work->sha256)
        rc = mp_sums_write(&r->sums, r->partial, r->context, err);
    /* The journal goes just before the rename. If killed earlier, the run can be resumed and has no
     * units left; if killed in between, OUT.partial has no journal and is started over. */
    if (rc == 0 && unlink(journal) != 0)
        rc = mp_fail_errno(err, errno, "cannot remove \"%s\"", journal);
    if (rc == 0)
        rc = mp_dir_sync(r->partial, err);
    if (rc == 0)
        rc = mp_partial_publish(r->out, r->partial, r->mode, err);
    free(journal);
    return rc;
}

static int init_run(run *r, const char *out, mp_error *err)
{
    const mp_work *work = r->work;

    pthread_mutex_init(&r->lock, NULL);
    r->journal.fd = -1;
    r->end = work->num_units;
    r->out = mp_without_slashes(out);
    r->partial = r->out ? mp_format("%s.partial", r->out) : NULL;
    r->units = mp_alloc(work->stage_units, sizeof *r->units);
    r->pending = mp_alloc(work->num_units + work->num_stages, sizeof *r->pending);
    if (!r->partial || !r->units || !r->pending)
        return mp_fail_memory(err);
    if (mp_terms_text(r->job, &r->terms, err) != 0 ||
        mp_outputs_init(&r->outputs, work, err) != 0 || mp_sums_init(&r->sums, work, err) != 0 ||
        mp_progress_init(&r->state, work, err) != 0)
        return err->code;
    r->state.terms = r->terms;
    /* Parts do not know where frames of others begin. */
    r->state.at_once = work->zstd == MP_ZSTD_AUTO && work->part.count == 0;
    return 0;
}

static void release_run(run *r)
{
    mp_outputs_release(&r->outputs);
    mp_sums_release(&r->sums);
    mp_journal_close(&r->journal);
    mp_progress_release(&r->state);
    pthread_mutex_destroy(&r->lock);
    free(r->out);
    free(r->partial);
    free(r->terms);
    free(r->units);
    free(r->pending);
}

/* Everything between an open journal and closed files. */
static int write_files(run *r, mp_error *err)
{
    int rc = open_files(r, err);

    if (rc == 0 && is_part(r))
        mp_parts_mark(&r->outputs, &r->work->part);
    if (rc == 0)
        rc = run_stages(r, err);
    return rc ? rc : mp_outputs_close(&r->outputs, err);
}

/* A run, or what is left of one. */
static int run_whole(run *r, mp_error *err)
{
    int rc = mp_partial_prepare(r->job, r->out, r->partial, r->mode, err);

    if (rc == 0)
        rc = mp_journal_open(&r->journal, r->partial, r->work, NULL, r->terms, &r->state, err);
    if (rc != 0)
        return rc;
    rc = write_files(r, err);
    if (rc == 0)
        rc = finish(r, err);
    if (rc != 0 && rc != MP_ERR_IO && rc != MP_ERR_CANCELLED)
        mp_remove_tree(r->partial, NULL); /* it would fail again */
    return rc;
}

/* ------------------------------------------------------------------------
 * In parts
 */

/* The first unit and that behind the last of this part. */
static int find_units(run *r, mp_error *err)
{
    const mp_part *part = &r->work->part;
    uint64_t *bounds = mp_alloc((uint64_t)part->count + 1, sizeof *bounds);
    int rc = bounds ? mp_parts_bounds(r->job, part->count, bounds, err) : mp_fail_memory(err);

    if (rc == 0) {
        r->begin = bounds[part->number - 1];
        r->end = bounds[part->number];
    }
    free(bounds);
    return rc;
}

static int run_part(run *r, mp_error *err)
{
    const mp_part *part = &r->work->part;
    int rc = mp_partial_join(r->job, r->out, r->partial, err);

    if (rc == 0)
        rc = mp_journal_open(&r->journal, r->partial, r->work, part, r->terms, &r->state, err);
    if (rc != 0)
        return rc;
    /* Open our own journal first and look at the others second: of two parts that start at once, at
     * least one sees the other. */
    rc = mp_parts_check_others(r->partial, part, &r->journal, &r->others_wrote, err);
    if (rc != 0 && r->journal.fresh)
        unlink(r->journal.path); /* or it would be in the way of the others */
    if (rc == 0)
        rc = find_units(r, err);
    if (rc == 0)
        rc = write_files(r, err);
    if (rc == 0)
        rc = mp_outputs_sync_dirs(&r->outputs, r->partial, err);
    return rc ? rc : mp_dir_sync(r->partial, err);
}

static int check_all_done(run *r, mp_error *err)
{
    for (uint32_t stage = 0; stage < r->work->num_stages; stage++)
        if (list_units(r, stage) > 0)
            return mp_fail(err, MP_ERR_USAGE,
                           "\"%s\" exists from an interrupted run that is not split into parts: "
                           "--resume continues it",
                           r->partial);
    return 0;
}

/* What the parts have become is an interrupted run, of which all units are done. */
static int run_finish(run *r, mp_error *err)
{
    int rc = 0;

    if (mp_path_exists(r->out))
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" exists, and \"%s\" too: remove one of them",
                       r->out, r->partial);
    rc = mp_parts_join(r->partial, r->job, r->terms, err);
    if (rc == 0)
        rc = mp_journal_open(&r->journal, r->partial, r->work, NULL, r->terms, &r->state, err);
    if (rc == 0)
        rc = check_all_done(r, err);
    /* A file that is missing or short now means that finished units are lost, and no unit will be
     * redone. */
    r->others_wrote = true;
    if (rc == 0)
        rc = write_files(r, err);
    if (rc == 0)
        rc = finish(r, err);
    return rc ? rc : mp_parts_sweep(r->out, err);
}

/* ------------------------------------------------------------------------
 * The call
 */

/* OUT is there, and was made on the terms of the run: at most sums are missing. */
static int check_done(const run *r, mp_error *err)
{
    const mp_context buffered = mp_buffered(r->context);
    char *sums = mp_path_join(r->out, MP_SUMS_NAME);
    int rc = sums ? mp_terms_check_compressed(r->out, r->work, err) : mp_fail_memory(err);

    if (rc == 0)
        rc = r->job->check_done(r->job->plan, r->out, r->terms, err);
    if (rc == 0 && r->work->sha256 && !mp_path_exists(sums))
        rc = mp_sums_write(NULL, r->out, &buffered, err);
    free(sums);
    return rc;
}

static int check_part(const run *r, mp_error *err)
{
    const mp_part *part = &r->work->part;

    if (part->count > 0 && (part->number < 1 || part->number > part->count))
        return mp_fail(err, MP_ERR_USAGE, "there is no part %u of %u", part->number, part->count);
    if (part->count > 0 && r->mode == MP_RUN_FORCE)
        return mp_fail(err, MP_ERR_USAGE,
                       "a part cannot start over what others may be working on: remove \"%s\"",
                       r->partial);
    if (r->mode == MP_RUN_FINISH && !mp_path_exists(r->out) && !mp_path_exists(r->partial))
        return mp_fail(err, MP_ERR_CHECK, "no part has begun: there is no \"%s\"", r->partial);
    return 0;
}

int mp_job_run(const mp_job *job, const char *out, mp_run_mode mode, const mp_context *context,
               mp_error *err)
{
    run r = {.job = job, .work = job->work, .context = context, .mode = mode};
    int rc = init_run(&r, out, err);

    if (rc == 0)
        rc = check_part(&r, err);
    if (rc == 0) {
        /* A scheduler may start a part again after the run is finished: then nothing is left to
         * do. */
        bool go_on = mode == MP_RUN_RESUME || is_part(&r) ||
                     (mode == MP_RUN_FINISH && !mp_path_exists(r.partial));

        if (go_on && job->is_whole(r.out))
            rc = check_done(&r, err);
        else if (is_part(&r))
            rc = run_part(&r, err);
        else if (mode == MP_RUN_FINISH)
            rc = run_finish(&r, err);
        else
            rc = run_whole(&r, err);
    }
    release_run(&r);
    return rc;
}
