/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run/terms.h - the identity of a run.
 *
 * The terms of a run are one text, a "key value" a line: the version, and all that decides on the
 * bytes that are written: target, options, source, placement. Two runs of the same terms write
 * the same bytes, but for compression, which is no term: it can be had and undone later. The
 * journal and the reports hold the text and its digest; a pack says it in its manifest. Whoever
 * goes on with what is there, or finds it done, compares the text, and names the first line that
 * differs.
 */
#ifndef MP_RUN_TERMS_H
#define MP_RUN_TERMS_H

#include <jansson.h>
#include <moepack/store.h>

#include "run/work.h"

/* The terms of a job, malloc'ed. */
int mp_terms_text(const mp_job *job, char **text, mp_error *err);

/* A line of terms, without its end. */
typedef struct mp_term {
    const char *text;
    int length; /* cut, so that two fit a message */
} mp_term;

/* The first line in which two texts differ, of each; false where there is none. */
bool mp_terms_differ(const char *had, const char *want, mp_term *a, mp_term *b);

/* MP_ERR_INPUT where a complete `out` was made on other terms than a run has. */
int mp_terms_check_done(const char *out, const char *had, const char *want, mp_error *err);

/* MP_ERR_INPUT where the files of a complete `out` are compressed and a run's are not, or the
 * other way round. */
int mp_terms_check_compressed(const char *out, const mp_work *work, mp_error *err);

/* Prints a name from a file or a directory so that it stays within its line: control characters and
 * backslashes as "\u000a", and all else as it is. */
void mp_terms_name(const char *name, FILE *f);

/* Prints "KEY all", or "KEY 0-3,7": the numbers of flags that are set. flags: null for all. */
void mp_terms_selection(FILE *f, const char *key, const bool *flags, size_t count);

/* Prints what tells a checkpoint from others of the same shapes: its last bytes, a line a
 * shard. */
int mp_terms_weights(const mp_checkpoint *ckpt, FILE *f, mp_error *err);

/* A line a shard of a checkpoint: name, size, and the digest of its header. */
void mp_terms_source(const mp_checkpoint *ckpt, FILE *f);

/* Adds the members "terms", a list of lines, and "terms_xxh3" to a report; takes json over and
 * returns it, or null without memory. */
json_t *mp_terms_report(json_t *json, const char *terms);

/* The reverse: the text, malloc'ed. what: the report, for messages. MP_ERR_INPUT where they are
 * not there or do not belong together. */
int mp_terms_reported(const json_t *json, const char *what, char **terms, mp_error *err);

#endif
