/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/eplb.h - what the parts of `moepack eplb` know of each other. */
#ifndef MOEPACK_CMD_EPLB_H
#define MOEPACK_CMD_EPLB_H

#include "options.h"

#include <moepack/place.h>

typedef struct eplb_options {
    common_options common;
    cmd_strings counts;
    uint64_t experts; /* 0: as the counts have it */
    uint64_t redundant;
    uint64_t physical; /* 0: not given */
    uint64_t ep;
    uint64_t nodes;
    uint64_t groups;
    mp_eplb_algorithm algorithm;
    uint64_t refine;
    uint64_t window;
    bool window_given;
    mp_eplb_objective objective;
    bool objective_given;
    const char *from;
    uint64_t max_moves;
    bool max_moves_given;
    bool report;
    bool bars;
    const char *svg;
    const char *output;
    mp_placement_format format;
    const char *model;
    uint64_t expert_bytes; /* 0: not given */
    cmd_list layers;
    uint64_t first_layer;
    bool first_layer_given;
} eplb_options;

/* Reads all inputs into one recording. Blames the one that is wrong. */
int eplb_read_counts(const eplb_options *o, mp_recording *r, mp_error *err);

/* Numbers of the decoder layers that rows are for, and bytes of an expert in each. */
typedef struct eplb_layers {
    uint32_t *ids; /* [rows], or null where nobody says */
    double *bytes; /* [rows], or null */
} eplb_layers;

/* From options, counts or the model. */
int eplb_name_layers(const eplb_options *o, const mp_recording *r, eplb_layers *layers,
                     mp_error *err);
void eplb_layers_release(eplb_layers *layers);

/* Prints the report. bytes: as above. */
int eplb_print_report(const eplb_options *o, const mp_eplb *e, uint32_t windows,
                      const double *bytes, mp_error *err);

#endif
