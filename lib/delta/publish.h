/* SPDX-License-Identifier: Apache-2.0 */
/* delta/publish.h - writing a delta whose streams are made. */
#ifndef MP_DELTA_PUBLISH_H
#define MP_DELTA_PUBLISH_H

#include <moepack/pack.h>

#include "delta/files.h"
#include "delta/spool.h"

/* A delta that is to be written. */
typedef struct mp_delta_output {
    mp_delta_terms terms;
    const mp_delta_version *like; /* it has these parts, and is of such a pack */
    const mp_delta_item *items;   /* what changed, by part */
    size_t num_items;
    const mp_spool *spool;
    uint64_t max_shard_size;
    const mp_carried *files;
} mp_delta_output;

/* Writes it to `out`; as mp_delta_write. */
int mp_delta_publish(const mp_delta_output *output, const char *out, mp_run_mode mode,
                     const mp_context *context, mp_error *err);

/* MP_ERR_USAGE for an `out` that the mode does not allow: known before the streams are made. */
int mp_delta_check_out(const char *out, mp_run_mode mode, mp_error *err);

/* Level, or the usual one for 0; MP_ERR_USAGE. */
int mp_delta_level(const mp_delta_options *options, int *level, mp_error *err);

/* Adds up what was made of items, those that did not change included. report: may be null. */
void mp_delta_sum_up(const mp_delta_terms *terms, const mp_delta_item *items, size_t count,
                     mp_delta_report *report);

/* Moves the items that changed to the front; returns how many. */
size_t mp_delta_keep_changed(mp_delta_item *items, size_t count);

/* Makes the streams of items, largest first, by all threads. make: scratch has 3 MP_PATCH_BYTES. */
typedef int mp_delta_make(const void *user, mp_delta_item *item, uint8_t *scratch, mp_error *err);
int mp_delta_make_all(mp_delta_make *make, const void *user, mp_delta_item *items, size_t count,
                      const mp_context *context, mp_error *err);

#endif
