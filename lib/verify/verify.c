/* SPDX-License-Identifier: Apache-2.0 */
/* The check of a packed directory from top to bottom, and the choice of what is checked at all: a
 * pack, a snapshot, or a checkpoint against the one that it was made from.
 *
 *   manifest -> selections -> source -> placement, config -> each rank -> what they compute
 *
 * Each step relies on the ones before it, so that what makes everything else meaningless comes
 * first: a manifest that contradicts itself ends the check with its faults, and a source that is
 * another checkpoint is an error before any rank is read, which may take hours. Ranks are checked
 * one after the other, so that only one's files are open and one's headers in memory.
 *
 * What does not hold is a fault, and the check goes on; an error is only what keeps it from being
 * made. Threads are inside the checks of a rank or a layer, never across them, so that
 * check->context can be replaced here while they rest. */
#include <moepack/verify.h>

#include "base/error.h"
#include "base/file.h"
#include "base/options.h"
#include "base/parallel.h"
#include "checkpoint/shard.h"
#include "verify/check.h"
#include "verify/converted.h"
#include "verify/exact.h"
#include "verify/numeric.h"
#include "verify/snapshot.h"

#include <stdlib.h>

const char *mp_verify_level_name(mp_verify_level level)
{
    static const char *const names[] = {
        [MP_VERIFY_STRUCTURE] = "structure",
        [MP_VERIFY_DIGEST] = "digest",
        [MP_VERIFY_EXACT] = "exact",
        [MP_VERIFY_NUMERIC] = "numeric",
    };

    return names[level];
}

/* Bytes of a rank's tensors in a layer that the digests and, where exact is not null, the
 * comparison of slots read. */
static int layer_bytes(const mp_check *check, const mp_exact *exact, const mp_packed_rank *packed,
                       size_t layer, uint64_t *bytes, mp_error *err)
{
    for (unsigned t = 0; t < check->shape.num_tensors; t++) {
        const mp_slot_set *set = mp_check_set(check, t);
        bool wants;

        if (mp_rank_wants(check, packed, layer, t, &wants, err) != 0)
            return err->code;
        if (!wants)
            continue;
        *bytes += mp_check_tensor_bytes(check, t);
        for (uint32_t slot = 0; exact && slot < set->slots; slot++)
            if (mp_exact_looks_at(exact, check, layer,
                                  mp_exact_id(check, set, layer, packed->rank, slot)))
                *bytes += mp_check_tensor(check, t)->slot_bytes;
    }
    return 0;
}

/* Bytes that reading what is selected takes. */
static int measure_progress(mp_check *check, const mp_exact *exact, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    int rc = 0;

    if (check->options->level == MP_VERIFY_STRUCTURE)
        return 0;
    for (size_t r = 0; r < m->num_ranks; r++)
        for (size_t layer = 0; layer < m->num_layers && rc == 0; layer++)
            if (check->ranks[m->ranks[r].rank] && check->layers[layer])
                rc = layer_bytes(check, exact, &m->ranks[r], layer, &check->meter.total, err);
    if (exact && check->options->level == MP_VERIFY_NUMERIC)
        check->meter.total += mp_numeric_progress(check, exact);
    return rc;
}

/* Counts the tensors of the rank that are there to be checked. */
static void count_tensors(const mp_check *check, const mp_rank *rank)
{
    bool whole = check->options->level == MP_VERIFY_STRUCTURE;

    for (size_t layer = 0; layer < check->manifest.num_layers; layer++) {
        for (unsigned t = 0; t < check->shape.num_tensors; t++) {
            const mp_held *held = &rank->held[layer * check->shape.num_tensors + t];

            if (!held->tensor || (!whole && !check->layers[layer]))
                continue;
            check->report->tensors++;
            check->report->bytes += held->tensor->bytes;
        }
    }
}

/* Whether one of the rank's files can only be read from its beginning. */
static bool reads_in_order(const mp_rank *rank)
{
    bool in_order = false;

    for (size_t f = 0; f < rank->packed->num_files; f++)
        in_order |= rank->open[f] && mp_checkpoint_read_in_order(&rank->files[f]);
    return in_order;
}

/* Tensors and slots are gone through as they lie in the files.
 * exact: null where slots cannot be held against a source. */
static int check_rank(mp_check *check, const mp_exact *exact, const mp_packed_rank *packed,
                      mp_error *err)
{
    const mp_context *context = check->context, alone = mp_alone(context);
    mp_rank rank;

    int rc = mp_rank_open(&rank, check, packed, err);
    if (rc == 0)
        count_tensors(check, &rank);
    /* A compressed file without a table of frames can only be read from its beginning: threads
     * would make each other decompress it again and again. */
    if (rc == 0 && reads_in_order(&rank))
        check->context = &alone;
    if (rc == 0 && check->options->level > MP_VERIFY_STRUCTURE) {
        rc = mp_check_digests(check, &rank, err);
        if (rc == 0 && exact)
            rc = mp_check_exact(exact, check, &rank, err);
    }
    check->context = context;
    mp_rank_release(&rank);
    return rc;
}

/* Ranks that are not selected may be missing: they may be on other hosts. */
static int check_ranks(mp_check *check, const mp_exact *exact, mp_error *err)
{
    int rc = measure_progress(check, exact, err);

    mp_begin_phase(check->context, "checking");
    for (size_t i = 0; i < check->manifest.num_ranks && rc == 0; i++) {
        if (mp_cancelled(check->context))
            return mp_fail(err, MP_ERR_CANCELLED, "cancelled");
        if (check->ranks[check->manifest.ranks[i].rank])
            rc = check_rank(check, exact, &check->manifest.ranks[i], err);
    }
    return rc;
}

static int check_all(mp_check *check, mp_error *err)
{
    mp_exact exact = {0};
    bool usable, with_source = false;

    int rc = mp_check_open(check, &usable, err);
    if (rc != 0 || !usable)
        return rc;
    rc = mp_check_select(check, err);
    if (rc == 0 && check->options->level >= MP_VERIFY_EXACT)
        rc = mp_exact_open(&exact, check, &with_source, err);
    if (rc == 0)
        rc = mp_check_directory(check, err);
    /* Without a placement nobody knows whose slot is whose. */
    bool comparable = with_source && check->placement.map;
    if (rc == 0 && comparable && check->options->level == MP_VERIFY_NUMERIC)
        rc = mp_numeric_supports(check, &exact, err);
    if (rc == 0)
        rc = check_ranks(check, comparable ? &exact : NULL, err);
    if (rc == 0 && comparable && check->options->level == MP_VERIFY_NUMERIC)
        rc = mp_check_numeric(&exact, check, err);
    mp_exact_release(&exact);
    return rc;
}

static int verify_pack(const char *out, const mp_verify_options *options, const mp_context *context,
                       mp_verify_report *report, mp_error *err)
{
    mp_check check = {.dir = out, .options = options, .context = context, .report = report};
    int rc = check_all(&check, err);

    if (rc == 0)
        rc = mp_faults_take(&check.faults, check.manifest.layers, report, err);
    mp_check_release(&check);
    return rc;
}

/* What a directory is: a pack or a snapshot by its files, and where neither, a pack that is none,
 * unless there is a source to hold a checkpoint against. A snapshot is looked for only where there
 * is no manifest: a pack that is broken stays a pack. */
static int find_kind(const char *out, bool *packed, mp_snapshot_kind *kind, mp_error *err)
{
    char *path = mp_path_join(out, MP_MANIFEST_NAME);

    *packed = false;
    if (!path)
        return mp_fail_memory(err);
    *packed = mp_path_exists(path);
    free(path);
    return *packed ? 0 : mp_snapshot_find(out, kind, err);
}

int mp_verify(const char *out, const mp_verify_options *given, const mp_context *context,
              mp_verify_report *report, mp_error *err)
{
    /* err may be null, and the steps below read err->code. */
    mp_error why = {0}; /* what became a fault is no error */
    mp_snapshot_kind kind = MP_SNAPSHOT_NONE;
    mp_verify_options own;
    const mp_verify_options *options = &own;
    bool packed;
    int rc = mp_options_take("mp_verify_options", &own, sizeof own, given, err);

    *report = (mp_verify_report){.subject = "pack"};
    if (rc != 0)
        return rc;
    report->level = options->level;
    if (options->level >= MP_VERIFY_EXACT && !options->source)
        return mp_fail(err, MP_ERR_USAGE, "level %s needs the source checkpoint",
                       mp_verify_level_name(options->level));
    rc = find_kind(out, &packed, &kind, &why);
    if (rc == 0 && kind == MP_SNAPSHOT_NONE && options->placement)
        rc = mp_fail(&why, MP_ERR_USAGE, "\"%s\" is not a snapshot: a placement is for these", out);
    if (rc == 0 && kind != MP_SNAPSHOT_NONE)
        rc = mp_verify_snapshot(out, kind, options, context, report, &why);
    else if (rc == 0 && !packed && options->source)
        rc = mp_verify_converted(out, options, context, report, &why);
    else if (rc == 0)
        rc = verify_pack(out, options, context, report, &why);
    if (rc != 0)
        mp_verify_report_release(report);
    if (rc != 0 && err)
        *err = why;
    return rc;
}
