/* SPDX-License-Identifier: Apache-2.0 */
/* delta/update.h - the parts of bringing a pack up to date. */
#ifndef MP_DELTA_UPDATE_H
#define MP_DELTA_UPDATE_H

#include <moepack/delta.h>

#include "base/words.h"
#include "delta/chain.h"
#include "delta/spool.h"
#include "delta/touched.h"
#include "pack/pack.h"
#include "write/plan.h"

typedef struct mp_update_parts {
    mp_chain chain; /* its base is the source */
    mp_touched touched;
    const char **known; /* [plan.work.num_outputs]: digest of one with no touched expert, or null */
    /* Where the source is the old version: tensors that change and are read, as the new one has
     * them, in a file without a name. */
    mp_spool spool;
    char drop[MP_ROLE_SET_TEXT];
} mp_update_parts;

typedef struct mp_update {
    mp_repack_plan plan;           /* of the pack that is written */
    uint64_t units, touched_units; /* experts' sides that are written; that are packed anew */
    bool from_base;                /* the source is the version that the deltas change */
    mp_catalog catalog;            /* the source */
    mp_pack pack;                  /* that is brought up to date */
    mp_update_parts *parts;
} mp_update;

/* Makes the plan of repack that leads to such a pack. */
int mp_update_plan(mp_update *update, const mp_update_options *options, mp_error *err);

/* Settles which version the source is; of the old one, makes tensors that are read those of the
 * new one, in a file beside another. */
int mp_update_settle_source(mp_update *update, const char *beside, const mp_context *context,
                            mp_error *err);

#endif
