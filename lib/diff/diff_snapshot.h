/* SPDX-License-Identifier: Apache-2.0 */
/* diff/diff_snapshot.h - a side that is what an engine has dumped. */
#ifndef MP_DIFF_DIFF_SNAPSHOT_H
#define MP_DIFF_DIFF_SNAPSHOT_H

#include <moepack/snapshot.h>

#include "diff/diff.h"

/* Opens the snapshot of a side, whose path is set; to be released, also on errors. MP_ERR_INPUT
 * where something about it does not hold. */
int mp_diff_snapshot_open(diff_side *side, mp_snapshot_kind kind, const mp_context *context,
                          mp_error *err);
void mp_diff_snapshot_release(diff_side *side);

/* Finds out which experts it has where. placement: a file, or null. MP_ERR_INPUT where that cannot
 * be, MP_ERR_UNSUPPORTED for forms that are not known. */
int mp_diff_snapshot_prepare(diff_side *side, const diff_side *other, const char *placement,
                             mp_error *err);

/* Finds out in which order rows of gate and up are, of sides that are snapshots. */
int mp_diff_snapshot_orders(const diff_list *list, mp_error *err);

size_t mp_diff_snapshot_num_layers(const diff_side *side);
diff_layer mp_diff_snapshot_layer(const diff_side *side, size_t index);

/* Whether the shared expert of a layer is in slots. */
bool mp_diff_snapshot_shared(const diff_side *side, size_t layer);

/* The tensors of a rank, or null; and whether one of them is compared with the experts. */
const mp_checkpoint *mp_diff_snapshot_rank(const diff_side *side, size_t rank);
bool mp_diff_snapshot_of_experts(const diff_side *side, const char *name);

/* Where the copies of an expert are, or for num_experts those of the shared one: the ranks of their
 * first parts. */
const mp_place *mp_diff_snapshot_copies(const diff_side *side, size_t layer, uint32_t id,
                                        uint32_t *count);

/* Makes a matrix of a copy. */
void mp_diff_snapshot_take(diff_matrix *m, const diff_ref *ref, mp_place place);

#endif
