/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot from top to bottom: what opening it has found, digests, experts. */
#include "verify/snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/select.h"

typedef struct check {
    mp_snapshot s;
    const mp_verify_options *options;
    mp_faults faults;
    mp_dumped_layer *layers;
    size_t num_layers;
    char **prefixes;        /* [num_layers], borrowed */
    bool *selected;         /* [num_layers] */
    const char **looked_at; /* prefixes of the selected layers */
    size_t num_looked_at;
} check;

static void take_findings(check *c)
{
    const mp_snapshot *s = &c->s;
    uint64_t left = s->total_findings - s->num_findings;
    const mp_spot nowhere = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);

    for (size_t i = 0; i < s->num_findings; i++) {
        const mp_finding *f = &s->findings[i];
        mp_spot spot = mp_spot_of_rank(f->digest ? MP_VERIFY_DIGEST : MP_VERIFY_STRUCTURE, f->rank);

        spot.tensor = f->tensor;
        if (spot.level <= c->options->level)
            mp_fault_add(&c->faults, &spot, "%s", f->text ? f->text : "?");
    }
    for (; left > 0; left--)
        mp_fault_add(&c->faults, &nowhere, "a further finding");
}

static int select_layers(check *c, mp_error *err)
{
    if (mp_dumped_layers(&c->s, &c->layers, &c->num_layers, err) != 0)
        return err->code;
    c->prefixes = mp_alloc(c->num_layers, sizeof *c->prefixes);
    c->selected = mp_alloc_zeroed(c->num_layers, sizeof *c->selected);
    c->looked_at = mp_alloc(c->num_layers, sizeof *c->looked_at);
    if (!c->prefixes || !c->selected || !c->looked_at)
        return mp_fail_memory(err);
    for (size_t i = 0; i < c->num_layers; i++)
        c->prefixes[i] = c->layers[i].prefix;
    if (mp_select_layers(c->options->layers, (const char *const *)c->prefixes, c->num_layers,
                         c->selected, err) != 0)
        return err->code;
    for (size_t i = 0; i < c->num_layers; i++)
        if (c->selected[i])
            c->looked_at[c->num_looked_at++] = c->prefixes[i];
    return 0;
}

bool mp_snapshot_looks_at(const char *const *prefixes, size_t count, const char *name)
{
    for (size_t i = 0; prefixes && i < count; i++) {
        size_t n = strlen(prefixes[i]);

        if (strncmp(name, prefixes[i], n) == 0 && name[n] == '.')
            return true;
    }
    return !prefixes;
}

static void count(const check *c, const char *const *prefixes, mp_verify_report *report)
{
    const mp_snapshot *s = &c->s;

    for (size_t i = 0; i < s->num_files; i++)
        report->files += s->files[i].num_shards > 0;
    for (size_t r = 0; r < s->num_ranks; r++) {
        const mp_checkpoint *view = &s->ranks[r].tensors;

        for (size_t i = 0; i < view->num_tensors; i++)
            if (mp_snapshot_looks_at(prefixes, c->num_looked_at, view->tensors[i].name)) {
                report->tensors++;
                report->bytes += view->tensors[i].bytes;
            }
    }
}

static void add_parts(check *c)
{
    const mp_snapshot *s = &c->s;
    mp_verify_level level = c->options->level;

    mp_faults_add_part(&c->faults, -1, MP_VERIFY_STRUCTURE);
    if (level >= MP_VERIFY_DIGEST && s->kind == MP_SNAPSHOT_PRESHARDED)
        mp_faults_add_part(&c->faults, -1, MP_VERIFY_DIGEST);
    for (size_t r = 0; r < s->num_ranks; r++)
        for (int l = MP_VERIFY_STRUCTURE; s->ranks[r].selected && l <= (int)level; l++)
            if (l != MP_VERIFY_DIGEST || s->kind != MP_SNAPSHOT_SHARDED_STATE)
                mp_faults_add_part(&c->faults, (int64_t)r, (mp_verify_level)l);
}

static int check_all(check *c, const mp_context *context, mp_verify_report *report, mp_error *err)
{
    mp_verify_level level = c->options->level;
    int rc = select_layers(c, err);
    /* The structure is checked whole all the same. */
    const char *const *prefixes =
        c->options->layers && level > MP_VERIFY_STRUCTURE ? c->looked_at : NULL;

    add_parts(c);
    take_findings(c);
    if (rc == 0)
        count(c, prefixes, report);
    if (rc == 0 && level >= MP_VERIFY_DIGEST)
        rc = mp_snapshot_digests(&c->s, prefixes, c->num_looked_at, &c->faults, context, err);
    if (rc == 0 && level >= MP_VERIFY_EXACT)
        rc = mp_snapshot_experts(&c->s, c->options, &c->faults, c->layers, c->num_layers,
                                 c->selected, &report->slots, context, err);
    return rc == 0 ? mp_faults_take(&c->faults, c->prefixes, report, err) : rc;
}

int mp_verify_snapshot(const char *dir, mp_snapshot_kind kind, const mp_verify_options *options,
                       const mp_context *context, mp_verify_report *report, mp_error *err)
{
    check c = {.options = options};

    if (options->level > MP_VERIFY_EXACT)
        return mp_fail(err, MP_ERR_USAGE, "\"%s\" is a snapshot: level numeric is for packs", dir);
    report->subject = "snapshot";
    if (mp_snapshot_open(&c.s, kind, dir, options->ranks, context, err) != 0)
        return mp_error_prefix(err, "%s", dir);
    int rc = check_all(&c, context, report, err);
    mp_dumped_layers_free(c.layers, c.num_layers);
    free(c.prefixes);
    free(c.selected);
    free(c.looked_at);
    mp_faults_release(&c.faults);
    mp_snapshot_release(&c.s);
    return rc;
}
