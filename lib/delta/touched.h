/* SPDX-License-Identifier: Apache-2.0 */
/* delta/touched.h - which experts the deltas of a chain touch. */
#ifndef MP_DELTA_TOUCHED_H
#define MP_DELTA_TOUCHED_H

#include <moepack/pack.h>

#include "delta/chain.h"
#include "write/plan.h"

typedef struct mp_touched {
    bool *tensor;  /* [tensors of the catalog]: some delta has it */
    bool **slices; /* [tensors]: of fused ones, which experts' bytes change; null: all */
    bool *unit;    /* [plan->work.num_units]: is to be packed anew */
    bool *needed;  /* [tensors]: changes, and is read for such a unit */
    uint64_t units, touched_units; /* that write anything, and of them those that are touched */
} mp_touched;

/* chain: its base has the tensors of the plan's catalog. Where an expert is requantized, all of its
 * layer are touched with it: the manifest has the error of a layer, to which each adds.
 * Release touched in any case. */
int mp_touched_init(mp_touched *touched, const mp_repack_plan *plan, const mp_chain *chain,
                    const mp_context *context, mp_error *err);
void mp_touched_release(mp_touched *touched, const mp_repack_plan *plan);

#endif
