/* SPDX-License-Identifier: Apache-2.0 */
/* verify/source.h - the source checkpoint, and what slots have to hold of it. */
#ifndef MP_VERIFY_SOURCE_H
#define MP_VERIFY_SOURCE_H

#include <moepack/model.h>

#include "experts/canonical.h"
#include "verify/check.h"

typedef struct mp_source {
    mp_catalog catalog;
    const mp_moe_layer **layers; /* of the pack's layers, in their order */
    mp_quant_options quant;      /* of what does not pass through */
} mp_source;

/* Opens the source and holds it against the manifest. *usable: false when the manifest
 * contradicts the checkpoint that it names, which is a fault.
 * MP_ERR_INPUT when it is another checkpoint, naming the first difference. */
int mp_source_open(mp_source *source, mp_check *check, bool *usable, mp_error *err);
void mp_source_release(mp_source *source);

/* A side of what a slot of a set holds.
 * id: a routed expert, or num_experts + s for shared expert s. The only slot of a set without
 *   the dimension of slots holds the whole shared expert, whatever the id.
 * view: its matrices; `from` points into it. */
int mp_source_side(const mp_source *source, const mp_slot_set *set, size_t layer, uint32_t id,
                   mp_side side, mp_expert *view, mp_side_source *from, mp_error *err);

/* Makes a fault of every layer whose experts are stored otherwise than the manifest's forms
 * say, and *match false. In forms.c. MP_ERR_IO without memory. */
int mp_forms_match(const mp_source *source, mp_check *check, bool *match, mp_error *err);

#endif
