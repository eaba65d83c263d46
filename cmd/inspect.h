/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/inspect.h - what the parts of inspect share. */
#ifndef MOEPACK_CMD_INSPECT_H
#define MOEPACK_CMD_INSPECT_H

#include "options.h"

#include <jansson.h>
#include <moepack/artifact.h>
#include <moepack/model.h>
#include <moepack/snapshot.h>

typedef struct inspect_options {
    common_options common;
    const char *path;
    bool tensors;
    bool ranges;
    const char *svg;
} inspect_options;

/* Inspects a packed directory. */
int inspect_pack(const inspect_options *o, const mp_context *context, mp_error *err);

/* Inspects the dump of an engine. */
int inspect_snapshot(const inspect_options *o, mp_snapshot_kind kind, const mp_context *context,
                     mp_error *err);

json_t *problems_json(const mp_problems *problems);
json_t *tensors_json(const mp_checkpoint *ckpt);
void print_tensors(const mp_checkpoint *ckpt);

/* The bytes of every copy of every expert, in cmd/inspect_ranges.c. */
json_t *ranges_json(const mp_pack *pack);
void print_ranges(const mp_pack *pack);

#endif
