/* SPDX-License-Identifier: Apache-2.0 */
/* What can be told of a run by its directories alone, without its plan. */
#include <moepack/artifact.h>
#include <moepack/pack.h>

#include <stdlib.h>

#include "base/error.h"
#include "base/file.h"
#include "run/partial.h"
#include "run/parts.h"

bool mp_run_is_whole(const char *dir)
{
    static const char *const names[] = {MP_MANIFEST_NAME, MP_QUANTIZE_REPORT, MP_UNPACK_NAME};
    bool whole = false;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        whole |= mp_exists_in(dir, names[i]);
    return whole;
}

/* OUT.partial, malloc'ed; null without memory. */
static char *partial_of(const char *out)
{
    char *bare = mp_without_slashes(out), *partial = bare ? mp_format("%s.partial", bare) : NULL;

    free(bare);
    return partial;
}

int mp_part_how(const char *out, char **how, mp_error *err)
{
    char name[MP_PART_NAME_MAX], *dir = partial_of(out);
    char *whole = dir ? mp_path_join(dir, MP_JOURNAL_NAME) : NULL;
    mp_parts parts = {0};
    int rc = 0;

    err = MP_NEVER_NULL(err);
    *how = NULL;
    if (!whole)
        rc = mp_fail_memory(err);
    else if (!mp_path_exists(dir))
        rc = mp_fail(err, MP_ERR_CHECK, "no part has begun: there is no \"%s\"", dir);
    if (rc == 0)
        rc = mp_parts_list(dir, &parts, err);
    for (size_t i = 0; rc == 0 && !*how && i < parts.num; i++)
        rc = mp_journal_how(dir, mp_part_journal(parts.numbers[i], parts.count, name), how, err);
    if (rc == 0 && !*how && mp_path_exists(whole))
        rc = mp_journal_how(dir, MP_JOURNAL_NAME, how, err);
    mp_parts_release(&parts);
    free(dir);
    free(whole);
    return rc;
}

int mp_run_publish(const char *out, mp_error *err)
{
    char *bare = mp_without_slashes(out), *dir = partial_of(out);
    char *journal = dir ? mp_path_join(dir, MP_JOURNAL_NAME) : NULL;
    mp_parts parts = {0};
    int rc = 0;

    err = MP_NEVER_NULL(err);
    if (!bare || !journal)
        rc = mp_fail_memory(err);
    else if (!mp_run_is_whole(dir) || mp_path_exists(journal) || mp_path_exists(bare))
        rc = mp_fail(err, MP_ERR_CHECK, "\"%s\" is not complete", dir);
    if (rc == 0)
        rc = mp_parts_list(dir, &parts, err);
    if (rc == 0 && parts.num > 0)
        rc = mp_fail(err, MP_ERR_CHECK, "\"%s\" is being written in %u parts", dir, parts.count);
    if (rc == 0)
        rc = mp_partial_publish(bare, dir, MP_RUN_FINISH, err);
    mp_parts_release(&parts);
    free(bare);
    free(dir);
    free(journal);
    return rc;
}
