/* SPDX-License-Identifier: Apache-2.0 */
/* run/partial.h - OUT.partial, where a job writes: before it and behind it. */
#ifndef MP_RUN_PARTIAL_H
#define MP_RUN_PARTIAL_H

#include "run/work.h"

/* "dir//" as "dir", so that ".partial" can stand behind it; malloc'ed, null without memory. */
char *mp_without_slashes(const char *path);

/* Makes the directory `partial`, or takes the one that is there, as the mode says.
 * MP_ERR_USAGE for an `out` or a `partial` that the mode does not allow. */
int mp_partial_prepare(const mp_job *job, const char *out, const char *partial, mp_run_mode mode,
                       mp_error *err);

/* Makes the directory `partial`, or takes the one that is there, for a part of a run.
 * MP_ERR_USAGE for an `out` that is there, and a `partial` that is of a run not in parts, or that
 * is being finished. */
int mp_partial_join(const mp_job *job, const char *out, const char *partial, mp_error *err);

/* Removes what a run with other terms left there: files that this one would not overwrite. */
int mp_partial_clear(const mp_job *job, const char *partial, mp_error *err);

/* Puts the directory in OUT's place. An old OUT changes places with it and is removed from
 * there, so that there is a complete OUT at every moment; where the file system cannot
 * exchange, it is removed before. */
int mp_partial_publish(const char *out, const char *partial, mp_run_mode mode, mp_error *err);

#endif
