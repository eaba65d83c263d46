/* SPDX-License-Identifier: Apache-2.0 */
/* verify/snapshot.h - the check of what an engine has dumped. */
#ifndef MP_VERIFY_SNAPSHOT_H
#define MP_VERIFY_SNAPSHOT_H

#include <moepack/snapshot.h>
#include <moepack/verify.h>

#include "verify/faults.h"

/* As mp_verify, of a snapshot. report: its level is set. */
int mp_verify_snapshot(const char *dir, mp_snapshot_kind kind, const mp_verify_options *options,
                       const mp_context *context, mp_verify_report *report, mp_error *err);

/* Makes faults of content that does not have its digest. */
int mp_snapshot_digests(const mp_snapshot *s, mp_faults *faults, const mp_context *context,
                        mp_error *err);

/* Makes faults of experts that are not those of the source. layers: set to the prefixes that the
 * faults' layers count, `count` of them; both owned by the caller. slots: added to. */
int mp_snapshot_experts(const mp_snapshot *s, const mp_verify_options *options, mp_faults *faults,
                        char ***layers, size_t *count, uint64_t *slots, const mp_context *context,
                        mp_error *err);

#endif
