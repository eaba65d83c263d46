/* SPDX-License-Identifier: Apache-2.0 */
/* delta/update.h - the parts of bringing a pack up to date. */
#ifndef MP_DELTA_UPDATE_H
#define MP_DELTA_UPDATE_H

#include "base/words.h"
#include "delta/chain.h"
#include "delta/spool.h"
#include "delta/touched.h"

typedef struct mp_update_parts {
    mp_chain chain; /* its base is the source */
    mp_touched touched;
    const char **known; /* [plan.work.num_outputs]: digest of one with no touched expert, or null */
    /* Where the source is the old version: tensors that change and are read, as the new one has
     * them, in a file without a name. */
    mp_spool spool;
    bool *layers, *ranks; /* of the plan's options */
    char drop[MP_ROLE_SET_TEXT];
} mp_update_parts;

/* Options of repack that lead to a pack. */
int mp_update_options_of(mp_update *update, const mp_update_options *options,
                         mp_repack_options *repack, mp_error *err);

/* Settles which version the source is; of the old one, makes tensors that are read those of the
 * new one, in a file beside another. */
int mp_update_settle_source(mp_update *update, const char *beside, const mp_context *context,
                            mp_error *err);

#endif
