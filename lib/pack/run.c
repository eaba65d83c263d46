/* SPDX-License-Identifier: Apache-2.0 */
/* Running a plan: units in parallel, synced and journaled in batches, then digests. */
#include "pack/run.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/parallel.h"
#include "pack/unit.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SYNC_BYTES   (512u << 20) /* data that one batch of syncs makes durable */
#define DIGEST_BYTES (256u << 10) /* buffer that tensors are digested through */

/* ------------------------------------------------------------------------
 * Making units durable
 */

/* Takes the pending units and dirty files out of the run; the lock is held. */
static size_t take_pending(mp_run *run, uint64_t *units, bool *files)
{
    size_t count = run->num_pending;

    memcpy(units, run->pending, count * sizeof *units);
    memcpy(files, run->dirty, run->plan->num_files * sizeof *files);
    memset(run->dirty, 0, run->plan->num_files * sizeof *run->dirty);
    run->num_pending = 0;
    run->pending_bytes = 0;
    return count;
}

static int sync_files(const mp_run *run, const bool *files, mp_error *err)
{
    for (size_t f = 0; f < run->plan->num_files; f++)
        if (files[f] && mp_file_sync(run->outputs.fds[f], run->plan->files[f].path, err) != 0)
            return err->code;
    return 0;
}

/* Syncs what is pending and journals it. Other threads go on meanwhile. */
static int make_durable(mp_run *run, mp_error *err)
{
    uint64_t *units = mp_alloc(run->plan->num_units, sizeof *units);
    bool *files = mp_alloc(run->plan->num_files, sizeof *files);
    size_t count = 0;
    int rc = units && files ? 0 : mp_fail_memory(err);

    if (rc == 0) {
        pthread_mutex_lock(&run->lock);
        count = take_pending(run, units, files);
        pthread_mutex_unlock(&run->lock);
        rc = sync_files(run, files, err);
    }
    pthread_mutex_lock(&run->lock);
    run->sync_failed |= rc != 0;
    if (!run->sync_failed)
        rc = mp_journal_units(&run->journal, &run->state, units, count, err);
    run->syncing = false;
    pthread_mutex_unlock(&run->lock);
    free(units);
    free(files);
    return rc;
}

/* Notes a finished unit; true if this thread is to make the batch durable. */
static bool note_unit(mp_run *run, uint64_t index, const mp_unit *unit)
{
    const mp_plan *plan = run->plan;
    uint64_t bytes = mp_unit_bytes_written(plan, unit);
    uint32_t count;
    const mp_copy *copies = mp_unit_copies(unit, &count);
    bool sync;

    pthread_mutex_lock(&run->lock);
    run->pending[run->num_pending++] = index;
    run->pending_bytes += bytes;
    run->bytes_done += bytes;
    for (uint32_t c = 0; c < count; c++)
        for (unsigned t = 0; t < plan->num_tensors; t++)
            run->dirty[mp_plan_output(plan, unit->layer_index, copies[c].rank, t)->file] = true;
    sync = run->pending_bytes >= SYNC_BYTES && !run->syncing;
    run->syncing |= sync;
    if (run->context && run->context->progress)
        run->context->progress(run->context->progress_user, run->bytes_done, plan->bytes_written);
    pthread_mutex_unlock(&run->lock);
    return sync;
}

/* ------------------------------------------------------------------------
 * A layer
 */

typedef struct layer_job {
    mp_run *run;
    uint64_t *units; /* to do */
    size_t *outputs; /* to digest */
} layer_job;

static int do_unit(void *user, uint64_t index, void *scratch, mp_error *err)
{
    layer_job *job = user;
    mp_run *run = job->run;
    uint64_t u = job->units[index];
    mp_unit unit = mp_plan_unit(run->plan, u);
    mp_quant_stats stats = {0};
    bool measure = run->state.stats && !unit.layer->lossless;

    if (mp_unit_run(run->plan, &unit, &run->outputs, scratch, measure ? &stats : NULL, err) != 0)
        return err->code;
    if (measure)
        run->state.stats[u] = stats;
    run->state.unit_done[u] = true;
    return note_unit(run, u, &unit) ? make_durable(run, err) : 0;
}

static int do_digest(void *user, uint64_t index, void *scratch, mp_error *err)
{
    layer_job *job = user;
    mp_run *run = job->run;
    size_t o = job->outputs[index];
    mp_digest digest;
    int rc;

    if (mp_outputs_digest(&run->outputs, &run->plan->outputs[o], scratch, DIGEST_BYTES, &digest,
                          err) != 0)
        return err->code;
    mp_digest_text(&digest, run->state.digest[o]);
    run->state.tensor_done[o] = true;
    pthread_mutex_lock(&run->lock);
    rc = mp_journal_tensor(&run->journal, &run->state, o, err);
    pthread_mutex_unlock(&run->lock);
    return rc;
}

/* Units of a layer that are left to do, neighbours on different ranks as far as can be:
 * threads then write to different files, which do not wait for each other. */
static size_t list_units(const mp_run *run, uint32_t layer, uint64_t *units)
{
    const mp_plan *plan = run->plan;
    const mp_plan_layer *l = &plan->layers[layer];
    uint32_t per_rank = mp_slots_routed_per_rank(&plan->slots);
    size_t count = 0;

    for (int side = 0; side < MP_SIDES; side++) {
        for (uint32_t slot = 0; slot < per_rank; slot++) {
            for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
                uint32_t expert = (uint32_t)l->placement[rank * per_rank + slot];
                const mp_copy *first = &l->copies[l->first_copy[expert]];
                uint64_t u = l->first_unit + (uint64_t)expert * MP_SIDES + (uint64_t)side;

                /* An expert is done once, when its first copy comes up. */
                if (l->first_copy[expert + 1] > l->first_copy[expert] && first->rank == rank &&
                    first->slot == slot && !run->state.unit_done[u])
                    units[count++] = u;
            }
        }
    }
    return count;
}

static size_t list_outputs(const mp_run *run, uint32_t layer, size_t *outputs)
{
    size_t count = 0;

    for (uint32_t rank = 0; rank < run->plan->options.ep; rank++) {
        for (unsigned t = 0; t < run->plan->num_tensors; t++) {
            const mp_out_tensor *out = mp_plan_output(run->plan, layer, rank, t);
            size_t index = out ? (size_t)(out - run->plan->outputs) : 0;

            if (out && !run->state.tensor_done[index])
                outputs[count++] = index;
        }
    }
    return count;
}

/* A layer's digests are taken right behind its units, while its pages are in memory. */
static int run_layer(mp_run *run, uint32_t layer, mp_error *err)
{
    const mp_plan *plan = run->plan;
    uint64_t experts = plan->layers[layer].source->num_experts;
    uint64_t outputs = (uint64_t)plan->options.ep * plan->num_tensors;
    layer_job job = {
        .run = run,
        .units = mp_alloc(experts * MP_SIDES, sizeof *job.units),
        .outputs = mp_alloc(outputs, sizeof *job.outputs),
    };
    int rc = job.units && job.outputs ? 0 : mp_fail_memory(err);

    if (rc == 0)
        rc = mp_outputs_begin_layer(&run->outputs, layer, err);
    if (rc == 0)
        rc = mp_parallel(run->context, list_units(run, layer, job.units), plan->scratch_bytes,
                         do_unit, &job, err);
    if (rc == 0)
        rc = mp_parallel(run->context, list_outputs(run, layer, job.outputs), DIGEST_BYTES,
                         do_digest, &job, err);
    if (rc == 0)
        mp_outputs_forget_layer(&run->outputs, layer);
    free(job.units);
    free(job.outputs);
    return rc;
}

/* All layers. Whatever stops them, what was written is made durable and journaled. */
static int run_layers(mp_run *run, mp_error *err)
{
    mp_error later;
    int rc = 0;

    for (uint32_t layer = 0; rc == 0 && layer < run->plan->num_layers; layer++)
        rc = run_layer(run, layer, err);
    if (make_durable(run, rc ? &later : err) != 0 && rc == 0)
        rc = err->code;
    return rc;
}

/* ------------------------------------------------------------------------
 * The partial directory
 */

static int prepare_mode(const mp_run *run, mp_run_mode mode, mp_error *err)
{
    bool out = mp_path_exists(run->out), partial = mp_path_exists(run->partial);

    if (out && mode != MP_RUN_FORCE)
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" exists: choose another name, or --force to "
                       "replace it",
                       run->out);
    if (out && !mp_is_packed(run->out))
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" exists and is not a packed directory: not replaced", run->out);
    if (partial && mode == MP_RUN_FRESH)
        return mp_fail(err, MP_ERR_USAGE,
                       "\"%s\" is there from an interrupted run: --resume continues it, --force "
                       "starts anew",
                       run->partial);
    if (partial && mode == MP_RUN_FORCE &&
        (mp_journal_check_free(run->partial, err) != 0 || mp_remove_tree(run->partial, err) != 0))
        return err->code;
    return mp_make_dir(run->partial, err);
}

/* What a run with other terms left: files that this one would not overwrite. */
static int remove_leftovers(const mp_run *run, mp_error *err)
{
    static const char *const names[] = {MP_MANIFEST_NAME, MP_PLACEMENT_NAME, MP_CONFIG_NAME};
    DIR *stream = opendir(run->partial);
    int rc = 0;

    if (!stream)
        return mp_fail_errno(err, errno, "cannot list \"%s\"", run->partial);
    for (const struct dirent *entry; rc == 0 && (entry = readdir(stream));) {
        bool ours = strncmp(entry->d_name, "rank-", 5) == 0;
        char *path;

        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
            ours |= strcmp(entry->d_name, names[i]) == 0;
        if (!ours)
            continue;
        path = mp_path_join(run->partial, entry->d_name);
        rc = path ? mp_remove_tree(path, err) : mp_fail_memory(err);
        free(path);
    }
    closedir(stream);
    return rc;
}

/* Opens all files. The journal is only relied on when they are as it left them: it is
 * restarted before they get their size, for then it could not be told any more. */
static int open_files(mp_run *run, mp_error *err)
{
    bool whole;

    if (run->journal.fresh && remove_leftovers(run, err) != 0)
        return err->code;
    if (mp_outputs_check(&run->outputs, run->partial, &whole, err) != 0)
        return err->code;
    if (!whole && mp_journal_restart(&run->journal, run->plan, &run->state, err) != 0)
        return err->code;
    if (mp_outputs_open(&run->outputs, run->partial, err) != 0)
        return err->code;
    memset(run->dirty, true, run->plan->num_files); /* their headers */
    for (uint64_t u = 0; u < run->plan->num_units; u++) {
        mp_unit unit = mp_plan_unit(run->plan, u);

        if (run->state.unit_done[u])
            run->bytes_done += mp_unit_bytes_written(run->plan, &unit);
    }
    return 0;
}

/* "dir//" as "dir", so that ".partial" can stand behind it. */
static char *without_slashes(const char *path)
{
    size_t length = strlen(path);

    while (length > 1 && path[length - 1] == '/')
        length--;
    return strndup(path, length);
}

static int init_run(mp_run *run, const char *out, mp_error *err)
{
    const mp_plan *plan = run->plan;

    pthread_mutex_init(&run->lock, NULL);
    run->journal.fd = -1;
    run->out = without_slashes(out);
    run->partial = run->out ? mp_format("%s.partial", run->out) : NULL;
    run->pending = mp_alloc(plan->num_units, sizeof *run->pending);
    run->dirty = mp_alloc_zeroed(plan->num_files, sizeof *run->dirty);
    if (!run->partial || !run->pending || !run->dirty)
        return mp_fail_memory(err);
    if (mp_outputs_init(&run->outputs, plan, err) != 0)
        return err->code;
    return mp_progress_init(&run->state, plan, err);
}

static void release_run(mp_run *run)
{
    mp_outputs_release(&run->outputs);
    mp_journal_close(&run->journal);
    mp_progress_release(&run->state);
    pthread_mutex_destroy(&run->lock);
    free(run->out);
    free(run->partial);
    free(run->pending);
    free(run->dirty);
}

int mp_plan_run(const mp_plan *plan, const char *out, mp_run_mode mode, const mp_context *context,
                mp_error *err)
{
    mp_run run = {.plan = plan, .context = context};
    bool prepared = false;
    int rc = init_run(&run, out, err);

    if (rc == 0 && mode == MP_RUN_RESUME && mp_is_packed(run.out)) {
        rc = mp_run_check_done(&run, err);
        release_run(&run);
        return rc;
    }
    if (rc == 0)
        rc = prepare_mode(&run, mode, err);
    if (rc == 0)
        rc = mp_journal_open(&run.journal, run.partial, plan, &run.state, err);
    prepared = rc == 0;
    if (rc == 0)
        rc = open_files(&run, err);
    if (rc == 0)
        rc = run_layers(&run, err);
    if (rc == 0)
        rc = mp_outputs_close(&run.outputs, err);
    if (rc == 0)
        rc = mp_run_finish(&run, mode, err);
    if (rc == MP_ERR_INPUT && prepared)
        mp_remove_tree(run.partial, NULL);
    release_run(&run);
    return rc;
}
