/* SPDX-License-Identifier: Apache-2.0 */
/* verify/snapshot_placement.h - where a snapshot's engine had its experts. */
#ifndef MP_VERIFY_SNAPSHOT_PLACEMENT_H
#define MP_VERIFY_SNAPSHOT_PLACEMENT_H

#include <moepack/model.h>
#include <moepack/place.h>
#include <moepack/snapshot.h>
#include <moepack/verify.h>

/* Reads the placement that the options or the snapshot name. placement: map is null where neither
 * does, and it is the trivial one; to be released. MP_ERR_INPUT for a file that is no placement of
 * the source's experts, or not the one that the snapshot was dumped with; MP_ERR_USAGE where there
 * was one and it is not named. */
int mp_snapshot_placement(const mp_snapshot *s, const mp_verify_options *options,
                          const mp_catalog *source, mp_placement *placement, mp_error *err);

/* The row of a layer, or UINT32_MAX: rows are one for each decoder layer, or for each of the
 * source's layers that have experts. */
uint32_t mp_snapshot_placement_row(const mp_placement *placement, const mp_catalog *source,
                                   const mp_moe_layer *layer);

#endif
