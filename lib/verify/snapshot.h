/* SPDX-License-Identifier: Apache-2.0 */
/* verify/snapshot.h - the check of what an engine has dumped. */
#ifndef MP_VERIFY_SNAPSHOT_H
#define MP_VERIFY_SNAPSHOT_H

#include <moepack/snapshot.h>
#include <moepack/verify.h>

#include "experts/dumped.h"
#include "verify/faults.h"

/* As mp_verify, of a snapshot. report: its level is set. */
int mp_verify_snapshot(const char *dir, mp_snapshot_kind kind, const mp_verify_options *options,
                       const mp_context *context, mp_verify_report *report, mp_error *err);

/* Whether a tensor is of one of the layers that are looked at, or prefixes is null. */
bool mp_snapshot_looks_at(const char *const *prefixes, size_t count, const char *name);

/* Makes faults of content that does not have its digest. prefixes: of the layers whose content is
 * looked at, `count` of them, where it can be told apart; null: all content is. */
int mp_snapshot_digests(const mp_snapshot *s, const char *const *prefixes, size_t count,
                        mp_faults *faults, const mp_context *context, mp_error *err);

/* Makes faults of experts that are not those of the source. layers: those of the snapshot, which
 * the faults' layers count; selected: [count]. slots: added to. */
int mp_snapshot_experts(const mp_snapshot *s, const mp_verify_options *options, mp_faults *faults,
                        const mp_dumped_layer *layers, size_t count, const bool *selected,
                        uint64_t *slots, const mp_context *context, mp_error *err);

#endif
