/* SPDX-License-Identifier: Apache-2.0 */
/* write/unit.h - doing one unit of work of a repack. */
#ifndef MP_WRITE_UNIT_H
#define MP_WRITE_UNIT_H

#include <moepack/pack.h>

#include "numeric/quantize.h"
#include "run/output.h"
#include "write/plan.h"

/* Bytes of scratch that a thread needs for any unit of the plan. */
uint64_t mp_plan_scratch(const mp_repack_plan *plan);

/* Reads the unit's matrices, brings them into the target's layout and writes every copy.
 * stats: error of requantization, added to; may be null.
 * MP_ERR_INPUT for a NaN in the source. */
int mp_unit_run(const mp_repack_plan *plan, const mp_unit *unit, mp_outputs *outputs, void *scratch,
                mp_quant_stats *stats, mp_error *err);

#endif
