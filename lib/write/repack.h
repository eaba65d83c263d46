/* SPDX-License-Identifier: Apache-2.0 */
/* write/repack.h - repacking as a job. */
#ifndef MP_WRITE_REPACK_H
#define MP_WRITE_REPACK_H

#include <moepack/pack.h>

#include "run/journal.h"
#include "write/plan.h"

/* The job of a plan, which it keeps a pointer to. */
mp_job mp_repack_job(const mp_repack_plan *plan);

/* Writes what is not tensors into the partial directory: placement, config, the index of
 * each rank, and the manifest last. */
int mp_repack_finish(const void *plan, const mp_progress_state *state, const char *partial,
                     mp_error *err);

/* The same of a plan of which some units were taken from a pack that was there before.
 * before: its manifest; anew: [plan->work.num_units], the units that were run. Errors of routed or
 * shared experts of a layer of which none was run are those of the manifest: all were run, or
 * none. */
int mp_repack_finish_update(const mp_repack_plan *plan, const mp_progress_state *state,
                            const mp_manifest *before, const bool *anew, const char *partial,
                            mp_error *err);

/* Whether the manifest will be able to say how the experts come out when they are unpacked:
 * better known before the run than behind it. */
int mp_repack_check_forms(const mp_repack_plan *plan, mp_error *err);

/* Fills what of a manifest the plan decides: all but what is known of the model, the forms, and
 * what comes out of the run. Sizes of files are those of plain ones. */
int mp_repack_describe(const mp_repack_plan *plan, mp_manifest *m, mp_error *err);

/* As mp_job has them (run/work.h). */
int mp_repack_terms(const void *plan, FILE *f, mp_error *err);
int mp_repack_check_done(const void *plan, const char *out, const char *terms, mp_error *err);

/* MP_ERR_INPUT where the pack `dir` of that manifest was made on other terms than the plan has,
 * but for their sources. */
int mp_repack_check_same_form(const mp_repack_plan *plan, const mp_manifest *manifest,
                              const char *dir, mp_error *err);

/* Text of placement.json of a plan, malloc'ed. */
int mp_repack_placement(const mp_repack_plan *plan, char **text, mp_error *err);

#endif
