/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/diff.h - what differs between two models, or two files of tensors.
 *
 * Either side is a checkpoint, a packed directory, a snapshot of an engine or a safetensors file.
 * What belongs together is found by meaning, not by name: gate, up and down of an expert, whatever
 * a family calls them, whether they are fused, quantized or packed for a kernel; other tensors by
 * their names.
 *
 *     mp_diff_options options = {.tolerance = -1};
 *     mp_diff_report report;
 *     mp_error err;
 *     if (mp_diff("Qwen3-30B-A3B", "Qwen3-30B-A3B-NVFP4", &options, NULL, &report, &err) != 0)
 *         ... they cannot be compared: err says why
 *     else if (!report.equal)
 *         ... report.pairs says how far apart what is
 *     mp_diff_report_release(&report);
 *
 * Memory is bounded by the threads times a few MiB, and by what is reported. Where a kernel
 * wants weights transposed, it is a whole matrix a thread.
 */
#ifndef MOEPACK_DIFF_H
#define MOEPACK_DIFF_H

#include <moepack/base.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct mp_diff_options {
    size_t size;        /* of this struct */
    const char *layers; /* as mp_select_layers reads it; null: all, and what is in no layer */
    double tolerance;   /* a pair whose rel_l2 is at most this is no difference; < 0: none is */
    /* Of a snapshot, the file of the placement that its engine had; null: what it says of it. */
    const char *placement;
} mp_diff_options;

/* A tensor, or a matrix of an expert, that both sides have. */
typedef struct mp_diff_pair {
    char *name;     /* "layers.3.7.gate", "layers.3.shared.up", or that of a tensor */
    bool equal;     /* same bits where both are stored alike, else the same values */
    bool differs;   /* not equal, and beyond the tolerance */
    double max_abs; /* largest |a - b|; these three are NaN where they are no numbers: */
    double rel_l2;  /* ||a - b|| / ||b||, infinite where only b is 0 */
    double sqnr_db; /* -20 log10 of it, infinite where it is 0 */
    char *note;     /* shapes that differ, or copies of an expert; null: nothing to say */
} mp_diff_pair;

typedef struct mp_diff_report {
    bool equal;          /* no pair differs, and nothing is on one side only */
    mp_diff_pair *pairs; /* experts in order of layers, then tensors in order of names */
    size_t num_pairs;
    size_t differing;  /* pairs that differ */
    size_t tolerated;  /* pairs that are not equal, within the tolerance */
    size_t worst;      /* the first pair of the largest rel_l2 among those not equal */
    char **only_in[2]; /* names of layers, experts and tensors that one side has alone */
    size_t num_only[2];
    /* Why a side that has experts is compared by the names of its tensors; or null. */
    char *by_name[2];
} mp_diff_report;

void mp_diff_report_release(mp_diff_report *report);

/* Compares two models.
 *
 * Experts are compared by meaning where both sides are checkpoints or packed directories,
 * with layers matched by their number. So is any other quantized weight that has its scale
 * beside it. Otherwise, as for the shards of a checkpoint, tensors of the same name are
 * compared, each as its type says. Input scales count where both sides have them.
 *
 * Of a packed directory, every expert is read from its first copy, and all other copies have
 * to hold the same. Against it, nothing but experts is compared, and shared experts only
 * where they are packed.
 *
 * Slots of a snapshot are put together from ranks that have parts of an expert, and experts found
 * by the sizes of the other side, or of two snapshots by their routers; rows of gate and up by what
 * is nearest to the other side. Copies count as those of a pack. Against it, nothing but experts is
 * compared; two snapshots of as many ranks also by the names of each rank's tensors.
 *
 * Values are compared in float64. A NaN is equal to a NaN in the same place.
 *
 * context: threads, cancel, and progress in pairs' bytes; may be null.
 * report: filled, the same for any number of threads; to be released.
 * Returns 0 when they could be compared: look at report->equal.
 * MP_ERR_INPUT for a side that is malformed, or has no experts to hold against a pack's;
 * MP_ERR_UNSUPPORTED for zero points other than 0, a target that this version does not know,
 * and shared experts packed as one in one pack and apart in the other; MP_ERR_USAGE for a
 * list of layers that selects nothing; MP_ERR_IO, MP_ERR_CANCELLED. */
int mp_diff(const char *a, const char *b, const mp_diff_options *options, const mp_context *context,
            mp_diff_report *report, mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
