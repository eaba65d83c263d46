/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot from top to bottom: what opening it has found, digests, experts. */
#include "verify/snapshot.h"

#include <stdlib.h>

#include "base/error.h"

static void take_findings(const mp_snapshot *s, mp_verify_level level, mp_faults *faults)
{
    uint64_t left = s->total_findings - s->num_findings;
    const mp_spot nowhere = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);

    for (size_t i = 0; i < s->num_findings; i++) {
        const mp_finding *f = &s->findings[i];
        mp_spot spot = mp_spot_of_rank(f->digest ? MP_VERIFY_DIGEST : MP_VERIFY_STRUCTURE, f->rank);

        spot.tensor = f->tensor;
        if (spot.level <= level)
            mp_fault_add(faults, &spot, "%s", f->text ? f->text : "?");
    }
    for (; left > 0; left--)
        mp_fault_add(faults, &nowhere, "a further finding");
}

static void count(const mp_snapshot *s, mp_verify_report *report)
{
    for (size_t i = 0; i < s->num_files; i++)
        report->files += s->files[i].num_shards > 0;
    for (size_t r = 0; r < s->num_ranks; r++) {
        const mp_checkpoint *view = &s->ranks[r].tensors;

        report->tensors += view->num_tensors;
        for (size_t i = 0; i < view->num_tensors; i++)
            report->bytes += view->tensors[i].bytes;
    }
}

static void add_parts(const mp_snapshot *s, mp_verify_level level, mp_faults *faults)
{
    mp_faults_add_part(faults, -1, MP_VERIFY_STRUCTURE);
    if (level >= MP_VERIFY_DIGEST && s->kind == MP_SNAPSHOT_PRESHARDED)
        mp_faults_add_part(faults, -1, MP_VERIFY_DIGEST);
    for (size_t r = 0; r < s->num_ranks; r++)
        for (int l = MP_VERIFY_STRUCTURE; l <= (int)level; l++)
            if (l != MP_VERIFY_DIGEST || s->kind != MP_SNAPSHOT_SHARDED_STATE)
                mp_faults_add_part(faults, (int64_t)r, (mp_verify_level)l);
}

int mp_verify_snapshot(const char *dir, mp_snapshot_kind kind, const mp_verify_options *options,
                       const mp_context *context, mp_verify_report *report, mp_error *err)
{
    mp_snapshot s;
    mp_faults faults = {0};
    char **layers = NULL;
    size_t num_layers = 0;

    if (options->level > MP_VERIFY_EXACT || options->ranks || options->sample)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" is a snapshot: %s is for packed directories", dir,
                       options->level > MP_VERIFY_EXACT ? "level numeric"
                       : options->ranks                 ? "a list of ranks"
                                                        : "a sample");
    report->subject = "snapshot";
    int rc = mp_snapshot_open(&s, kind, dir, context, err);
    if (rc != 0)
        return mp_error_prefix(err, "%s", dir);
    add_parts(&s, options->level, &faults);
    take_findings(&s, options->level, &faults);
    count(&s, report);
    if (options->level >= MP_VERIFY_DIGEST)
        rc = mp_snapshot_digests(&s, &faults, context, err);
    if (rc == 0 && options->level >= MP_VERIFY_EXACT)
        rc = mp_snapshot_experts(&s, options, &faults, &layers, &num_layers, &report->slots,
                                 context, err);
    if (rc == 0)
        rc = mp_faults_take(&faults, layers, report, err);
    for (size_t i = 0; i < num_layers; i++)
        free(layers[i]);
    free(layers);
    mp_faults_release(&faults);
    mp_snapshot_release(&s);
    return rc;
}
