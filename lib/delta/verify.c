/* SPDX-License-Identifier: Apache-2.0 */
/* A delta held against the version that it changes, and nothing written. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "delta/chain.h"
#include "verify/faults.h"

typedef struct checking {
    const mp_chain *chain; /* null without a source */
    const mp_patch_link *links;
    mp_verify_level level;
    mp_faults *faults;
    const mp_context *context;
    mp_meter meter; /* bytes of streams */
} checking;

/* Parts are named as ranks are, or not at all. */
static int64_t rank_of(const mp_version_part *part)
{
    return part->name ? (int64_t)strtoul(strchr(part->name, '-') + 1, NULL, 10) : -1;
}

static int check_link(void *user, uint64_t index, void *scratch, mp_error *err)
{
    checking *c = user;
    const mp_patch_link *link = &c->links[index], *culprit = link;
    int rc;

    if (c->chain) {
        const mp_delta_version *base = mp_chain_base(c->chain);
        size_t part = mp_version_part_named(base, link->part->name);
        const mp_tensor *tensor = mp_checkpoint_find(&base->parts[part].ckpt, link->stream->name);

        rc = mp_chain_patch(c->chain, part, tensor, NULL, NULL, scratch, &culprit, err);
    } else {
        rc = mp_patch_check_stream(link, scratch, NULL, err);
    }
    mp_meter_add(&c->meter, c->context, link->stream->bytes);
    if (!culprit || (rc != MP_ERR_CHECK && rc != MP_ERR_INPUT && rc != MP_ERR_UNSUPPORTED))
        return rc;
    mp_spot spot = mp_spot_of_rank(c->level, rank_of(link->part));
    spot.tensor = link->stream->name;
    mp_fault_add(c->faults, &spot, "%s", err->message);
    return 0;
}

/* Every stream of a delta whose part the source has; files are counted on the way. */
static int list_links(const mp_delta_version *delta, const mp_chain *chain, mp_patch_link **links,
                      size_t *count, mp_verify_report *report, mp_error *err)
{
    size_t room = 0;

    *links = NULL;
    if (!delta->delta)
        return mp_fail(err, MP_ERR_INPUT, "%s: is a full version, not a delta", delta->dir);
    for (size_t p = 0; p < delta->num_parts; p++)
        room += delta->parts[p].ckpt.num_tensors;
    *links = mp_alloc(room, sizeof **links);
    *count = 0;
    if (!*links)
        return mp_fail_memory(err);
    for (size_t p = 0; p < delta->num_parts; p++) {
        const mp_version_part *part = &delta->parts[p];

        if (chain && mp_version_part_named(mp_chain_base(chain), part->name) == SIZE_MAX)
            continue;
        report->files += part->ckpt.num_shards;
        for (size_t t = 0; t < part->ckpt.num_tensors; t++) {
            (*links)[(*count)++] = (mp_patch_link){delta, part, &part->ckpt.tensors[t]};
            report->bytes += part->ckpt.tensors[t].bytes;
        }
    }
    report->tensors = *count;
    return 0;
}

static int check_links(const mp_delta_version *delta, const mp_chain *chain,
                       const mp_context *context, mp_verify_report *report, mp_error *err)
{
    mp_patch_link *links = NULL;
    size_t count;
    checking c = {
        .chain = chain,
        .level = chain ? MP_VERIFY_EXACT : MP_VERIFY_STRUCTURE,
        .faults = mp_alloc_zeroed(1, sizeof *c.faults),
        .context = context,
    };
    int rc = c.faults ? list_links(delta, chain, &links, &count, report, err) : mp_fail_memory(err);

    report->level = c.level;
    report->subject = "delta";
    c.links = links;
    for (size_t p = 0; rc == 0 && p < delta->num_parts; p++)
        mp_faults_add_part(c.faults, rank_of(&delta->parts[p]), c.level);
    c.meter.total = report->bytes;
    mp_begin_phase(context, "checking");
    if (rc == 0)
        rc = mp_parallel(context, count, 2 * MP_PATCH_BYTES, check_link, &c, err);
    if (rc == 0)
        rc = mp_faults_take(c.faults, NULL, report, err);
    if (c.faults)
        mp_faults_release(c.faults);
    free(c.faults);
    free(links);
    return rc;
}

int mp_delta_verify(const char *delta, const char *source, const mp_context *context,
                    mp_verify_report *report, mp_error *err)
{
    mp_chain chain = {0};
    mp_delta_version alone = {0};
    int rc;

    err = MP_NEVER_NULL(err);
    *report = (mp_verify_report){0};
    if (source) {
        rc = mp_chain_open(&chain, source, MP_BASE_ANY, &delta, 1, context, err);
        if (rc == 0)
            rc = check_links(&chain.versions[1], &chain, context, report, err);
    } else {
        rc = mp_version_open(&alone, delta, true, context, err);
        if (rc == 0)
            rc = check_links(&alone, NULL, context, report, err);
    }
    mp_chain_release(&chain);
    mp_version_release(&alone);
    if (rc != 0)
        mp_verify_report_release(report);
    return rc;
}
