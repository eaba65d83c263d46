/* SPDX-License-Identifier: Apache-2.0 */
/* Whether OUT is there already, complete, and what this very run would write. */
#include "pack/run.h"

#include "base/digest.h"
#include "base/error.h"

#include <stdlib.h>
#include <string.h>

static bool same_shards(const mp_manifest *m, const mp_checkpoint *ckpt)
{
    if (m->num_shards != ckpt->num_shards)
        return false;
    for (size_t i = 0; i < ckpt->num_shards; i++) {
        const mp_shard *shard = &ckpt->shards[i];
        mp_hex_digest hex;
        mp_digest digest;

        memcpy(digest.bytes, shard->header_xxh3, sizeof digest.bytes);
        mp_digest_text(&digest, hex);
        if (strcmp(m->shards[i].name, shard->name) != 0 || m->shards[i].size != shard->size ||
            strcmp(m->shards[i].header_xxh3, hex) != 0)
            return false;
    }
    return true;
}

static int same_placement(const mp_manifest *m, const mp_plan *plan, bool *same, mp_error *err)
{
    mp_hex_digest hex;
    char *text;
    int rc =
        mp_placement_write(&plan->placement, MP_PLACEMENT_SGLANG, plan->options.ep, &text, err);

    if (rc != 0)
        return rc;
    mp_hex_digest_of(text, strlen(text), hex);
    free(text);
    *same = strcmp(m->placement_xxh3, hex) == 0;
    return 0;
}

int mp_run_check_done(const mp_run *run, mp_error *err)
{
    const mp_plan *plan = run->plan;
    const char *command = plan->options.command ? plan->options.command : "";
    mp_manifest m;
    bool placed;
    int rc = mp_manifest_load(&m, run->out, err);

    if (rc != 0)
        return rc;
    rc = same_placement(&m, plan, &placed, err);
    if (rc == 0 && strcmp(m.command ? m.command : "", command) != 0)
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and was made otherwise: \"%s\"",
                     run->out, m.command ? m.command : "");
    else if (rc == 0 && !same_shards(&m, &plan->catalog->checkpoint))
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and was made from another source",
                     run->out);
    else if (rc == 0 && !placed)
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\" is complete and has another placement", run->out);
    mp_manifest_release(&m);
    return rc;
}
