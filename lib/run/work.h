/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run/work.h - what a run does, whatever it writes.
 *
 * Repacking, unpacking and quantizing differ in the files that they write and in what a
 * unit does; running, journaling, digesting and publishing are the same for all. A job is
 * what they differ in.
 */
#ifndef MP_RUN_WORK_H
#define MP_RUN_WORK_H

#include <stdio.h>

#include <moepack/numeric.h>
#include <moepack/work.h>

#include "numeric/quantize.h"

struct mp_outputs;
struct mp_progress_state;

typedef struct mp_job {
    const void *plan;    /* given to every function below */
    const mp_work *work; /* of the plan */

    /* Writes the terms of the run (run/terms.h) that are of this kind. */
    int (*terms)(const void *plan, FILE *f, mp_error *err);

    /* Lists the units of a stage in the order in which they are best begun; returns how
     * many, at most work->stage_units. */
    size_t (*units)(const void *plan, uint32_t stage, uint64_t *units);
    uint64_t (*unit_bytes)(const void *plan, uint64_t unit); /* that it writes */

    /* Begins to read what a unit needs, ahead of it (mp_tensor_ahead); may be null. */
    void (*ahead)(const void *plan, uint64_t unit);

    /* Does a unit. stats: its error of requantization; null where nobody asks. */
    int (*run)(const void *plan, uint64_t unit, struct mp_outputs *outputs, void *scratch,
               mp_quant_stats *stats, mp_error *err);

    /* The digest of an output that is known before it is written: in hex, or "" where nobody asks
     * for one; null where it is to be taken. May be null itself: none is known. */
    const char *(*known_digest)(const void *plan, size_t output);

    /* Writes into the directory `partial` what is not a file of work: index, config, manifest
     * last. state: digests and statistics of everything that was done. */
    int (*finish)(const void *plan, const struct mp_progress_state *state, const char *partial,
                  mp_error *err);

    /* For an `out` that is there: 0 if it was made on the terms of the run, so that nothing is
     * left to resume; MP_ERR_INPUT naming what differs. */
    int (*check_done)(const void *plan, const char *out, const char *terms, mp_error *err);

    /* True if the directory `out` is a whole one of this kind, that --force may replace. */
    bool (*is_whole)(const char *out);
    const char *kind; /* "a packed directory", for messages */

    /* True for names inside `partial` that this kind of job writes, so that leftovers of a run
     * with other terms can be removed. */
    bool (*owns)(const char *name);
} mp_job;

/* Runs a job into OUT.partial and renames that to OUT; as mp_repack_plan_run (pack.h). */
int mp_job_run(const mp_job *job, const char *out, mp_run_mode mode, const mp_context *context,
               mp_error *err);

/* ------------------------------------------------------------------------
 * Making the files of a work
 */

/* Makes room for `outputs` tensors. MP_ERR_USAGE if that is more than can be numbered. */
int mp_work_reserve(mp_work *work, uint64_t outputs, mp_error *err);

/* Adds a tensor to the file that is settled later; name is taken over, also on failure. */
int mp_work_add(mp_work *work, char *name, mp_dtype dtype, const uint64_t *shape, uint32_t dims,
                uint32_t stage, mp_error *err);

/* The size that shards are limited to, where `given` is 0 for the usual one: 5 GB. */
uint64_t mp_work_shard_size(uint64_t given);

/* Puts the outputs from `first` on into files of at most `limit` bytes (0: the usual) of tensors,
 * a tensor never in two, "DIR/model-00001-of-00002.safetensors", and makes their headers.
 * dir: null for none. metadata: `pairs` keys and values. */
int mp_work_files(mp_work *work, uint64_t first, const char *dir, uint64_t limit,
                  const char *const *metadata, size_t pairs, mp_error *err);

/* The same where each file's metadata has, under the name of each of its tensors, a note.
 * notes: one for each output from `first` on. */
int mp_work_noted_files(mp_work *work, uint64_t first, const char *dir, uint64_t limit,
                        const char *const *notes, mp_error *err);

void mp_work_release(mp_work *work);

/* Text of an index of the files from first on, count of them, malloc'ed. */
int mp_work_index(const mp_work *work, size_t first, size_t count, char **text, mp_error *err);

#endif
