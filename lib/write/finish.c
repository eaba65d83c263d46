/* SPDX-License-Identifier: Apache-2.0 */
/* What can be told of a run by its directories alone, without its plan. */
#include <moepack/artifact.h>
#include <moepack/pack.h>

#include <stdlib.h>

#include "base/error.h"
#include "base/file.h"
#include "run/partial.h"
#include "run/parts.h"

/* Whether a directory is what a run leaves: it holds moepack.json, or the report of another
 * command. */
static bool is_whole(const char *dir)
{
    static const char *const names[] = {MP_MANIFEST_NAME, MP_QUANTIZE_REPORT, MP_UNPACK_NAME};
    bool whole = false;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        whole |= mp_exists_in(dir, names[i]);
    return whole;
}

/* Renames OUT.partial to OUT where all is there, and no journal. */
static int publish(const char *out, const char *partial, bool *done, mp_error *err)
{
    char *journal = mp_path_join(partial, MP_JOURNAL_NAME);
    mp_parts parts = {0};
    int rc = journal ? 0 : mp_fail_memory(err);
    bool may = journal && is_whole(partial) && !mp_path_exists(journal) && !mp_path_exists(out);

    if (rc == 0 && may)
        rc = mp_parts_list(partial, &parts, err);
    if (rc == 0 && may && parts.num == 0) {
        rc = mp_partial_publish(out, partial, MP_RUN_FINISH, err);
        *done = rc == 0;
    }
    mp_parts_release(&parts);
    free(journal);
    return rc;
}

/* What the first journal that says so says of how the run was started. */
static int find_how(const char *partial, char **how, mp_error *err)
{
    char name[MP_PART_NAME_MAX], *whole = mp_path_join(partial, MP_JOURNAL_NAME);
    mp_parts parts = {0};
    int rc = whole ? mp_parts_list(partial, &parts, err) : mp_fail_memory(err);

    for (size_t i = 0; rc == 0 && !*how && i < parts.num; i++)
        rc =
            mp_journal_how(partial, mp_part_journal(parts.numbers[i], parts.count, name), how, err);
    if (rc == 0 && !*how && mp_path_exists(whole))
        rc = mp_journal_how(partial, MP_JOURNAL_NAME, how, err);
    if (rc == 0 && !*how)
        rc =
            mp_fail(err, MP_ERR_INPUT,
                    "the parts' journals do not say how they were started: repeat the command with "
                    "--shard finish");
    mp_parts_release(&parts);
    free(whole);
    return rc;
}

int mp_run_finish(const char *out, char **how, mp_error *err)
{
    char *bare = mp_without_slashes(out), *partial = bare ? mp_format("%s.partial", bare) : NULL;
    bool done = false;

    err = MP_NEVER_NULL(err);
    *how = NULL;
    int rc = partial ? publish(bare, partial, &done, err) : mp_fail_memory(err);
    if (rc == 0 && !done && mp_path_exists(partial))
        rc = find_how(partial, how, err);
    else if (rc == 0 && !done && !is_whole(bare))
        rc = mp_fail(err, MP_ERR_CHECK, "no part has begun: there is no \"%s\"", partial);
    free(bare);
    free(partial);
    return rc;
}
