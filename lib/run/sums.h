/* SPDX-License-Identifier: Apache-2.0 */
/* run/sums.h - SHA-256 of the files of a run, taken as they are written.
 *
 * A file is digested from its beginning as far as it is finished, stage by stage, while its pages
 * are in memory; what an earlier process had written is read again. */
#ifndef MP_RUN_SUMS_H
#define MP_RUN_SUMS_H

#include "base/sha.h"
#include "run/output.h"

/* What SHA256SUMS is until it is whole. */
#define MP_SUMS_NEW MP_SUMS_NAME ".new"

typedef struct mp_file_sum {
    mp_sha sha;
    uint64_t done;   /* bytes of the file that are in it */
    uint32_t tensor; /* of the file: the next */
    bool whole;
    char hex[MP_SHA_TEXT]; /* where it is whole */
} mp_file_sum;

typedef struct mp_sums {
    const mp_work *work;
    mp_file_sum *files; /* [work->num_files]; null where the work wants no sums */
} mp_sums;

int mp_sums_init(mp_sums *sums, const mp_work *work, mp_error *err);
void mp_sums_release(mp_sums *sums);

/* Goes on as far as stages up to `stage` have filled files; dir: where they lie. */
int mp_sums_advance(mp_sums *sums, const mp_outputs *outputs, uint32_t stage, const char *dir,
                    const mp_context *context, mp_error *err);

/* Writes SHA256SUMS of a directory, of whose files the sums that are whole are taken over, and
 * the others computed. sums: of a run whose journal is still there; null for a directory as it
 * is. */
int mp_sums_write(const mp_sums *sums, const char *dir, const mp_context *context, mp_error *err);

#endif
