/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/verify.h - checks of a packed directory, of what an engine has dumped, and of a
 * converted checkpoint.
 *
 * What checks packs shares the reading of a source, and its requantization, with
 * what writes them, and nothing else: files are read anew, slots are unpacked by
 * the layouts' own inverses, and what each slot has to hold is worked out from
 * placement.json.
 *
 *     mp_verify_options options = {.level = MP_VERIFY_EXACT, .source = "DeepSeek-V4-Flash"};
 *     mp_verify_report report;
 *     mp_error err;
 *     if (mp_verify("packed", &options, NULL, &report, &err) != 0)
 *         ... it could not be checked: err says why
 *     else if (report.total_faults > 0)
 *         ... report.faults says what is wrong
 *     mp_verify_report_release(&report);
 *
 * Memory is bounded by the threads times a few MiB, and the headers of one rank. Numeric
 * takes headers of all ranks, half a GiB at most, and 20 bytes a token and hidden column.
 */
#ifndef MOEPACK_VERIFY_H
#define MOEPACK_VERIFY_H

#include <moepack/base.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Each level includes the ones before. */
typedef enum mp_verify_level {
    MP_VERIFY_STRUCTURE, /* manifest, placement, headers, names, shapes, sizes, index */
    MP_VERIFY_DIGEST,    /* every tensor's bytes against the manifest */
    MP_VERIFY_EXACT,     /* every slot against the source expert that placement says */
    MP_VERIFY_NUMERIC    /* what slots compute against what the source's experts compute */
} mp_verify_level;

/* "structure", "digest", "exact" or "numeric"; a static string. */
const char *mp_verify_level_name(mp_verify_level level);

typedef struct mp_verify_options {
    size_t size; /* of this struct */
    mp_verify_level level;
    const char *source; /* checkpoint; needed for exact and numeric, not looked at otherwise */
    const char *layers; /* what digest, exact and numeric look at, as mp_select_layers reads it */
    const char *ranks;  /* that are looked at, as mp_select_ranks reads it; the directories of
                           others may be missing. Both null: all */
    /* Of a snapshot, the file of the placement that its engine had; null: what the snapshot says of
     * it, else physical expert p is expert p modulo their number. Not looked at otherwise. */
    const char *placement;
    uint32_t sample;  /* routed experts of each layer that exact and numeric look at, in every
                         slot that has one, and all shared ones; 0: all */
    uint64_t seed;    /* that draws them, for each layer anew, and makes the tokens of numeric */
    uint64_t tokens;  /* routed tokens of a layer in numeric; 0: 64 */
    double tolerance; /* relative L2 error of the emulated kernel that numeric lets pass; 0: the
                         target's own bound */
} mp_verify_options;

/* Something that does not hold. Members that do not apply are -1 or null. */
typedef struct mp_fault {
    mp_verify_level level;
    int64_t rank;
    char *layer;  /* prefix */
    int64_t slot; /* on that rank: mp_slot.local; or number of a shared expert that is apart */
    char *tensor; /* its name in the file */
    /* Index inside the slot, row-major, of the first element that differs. Elements are
     * those of the tensor's dtype, except that a byte of a 4-bit weight holds two. */
    int64_t element;
    char *detail; /* one printable line of UTF-8: what is there, and what should be */
} mp_fault;

/* How many faults keep their details; the rest are counted. */
#define MP_FAULTS_KEPT 100

/* One part of what was checked: a rank at a level. */
typedef struct mp_verify_part {
    int64_t rank; /* -1: what belongs to no rank */
    mp_verify_level level;
    uint64_t faults; /* all of them, kept or not */
} mp_verify_part;

/* What numeric found in a layer. The errors are those of all tokens together, NaN where they
 * were not computed: something was not finite, which is a fault. */
typedef struct mp_verify_numeric {
    char *layer;           /* prefix */
    const char *emulation; /* mp_emulation_name (reference.h) of the target's kernel */
    uint64_t tokens;       /* one for each slot, and routed ones */
    bool bit_identical;    /* the kernel gives the same for slots and for the source's experts,
                              requantized alike where they were */
    double rel_l2;         /* of the kernel against the exact result, both of slots */
    double cosine_diff;
    double max_abs;
    double tolerance;      /* what rel_l2 may be */
    bool requantized;      /* something was */
    double weights_rel_l2; /* of the exact result of slots against that of the source's own
                              weights; NaN unless requantized */
} mp_verify_numeric;

typedef struct mp_verify_report {
    mp_verify_level level;
    const char *subject; /* what was checked: "pack", "checkpoint" or "snapshot" */
    uint64_t files;      /* safetensors files that were there and well-formed */
    uint64_t tensors;    /* checked at the level */
    uint64_t slots;      /* held against the source: of a rank in a layer; 0 below exact */
    uint64_t bytes;      /* of those tensors */
    mp_fault *faults;    /* in order of rank, layer, slot, tensor, element */
    size_t num_faults;   /* kept: min(total_faults, MP_FAULTS_KEPT) */
    uint64_t total_faults;
    mp_verify_part *parts; /* in order of rank and level */
    size_t num_parts;
    mp_verify_numeric *numeric; /* of the selected layers; null below numeric */
    size_t num_numeric;
} mp_verify_report;

void mp_verify_report_release(mp_verify_report *report);

/* Checks a packed directory, a snapshot (snapshot.h) or, where there is a source, a checkpoint that
 * was made of it; what they are is found by their files. Of the last two, level numeric is
 * MP_ERR_USAGE, and so are a list of ranks of a checkpoint and a placement of anything but a
 * snapshot; digest checks what digests there are, slots of a checkpoint are its experts, and
 * options->tolerance is the relative RMS error that a matrix may have against the source's (0: that
 * of its scheme), except that a snapshot's has to be the same where both are stored alike. Goes on
 * after faults, so that all are found; only what makes the rest meaningless (a changed manifest)
 * ends the check. options: level, and what it needs. context: threads, cancel, and progress in
 * bytes of tensors; may be null. report: filled, the same for any number of threads; to be
 * released. Returns 0 when it could be checked, whatever was found: look at total_faults.
 * MP_ERR_INPUT when OUT is not a packed directory or the source is not the checkpoint
 * that the manifest names, MP_ERR_UNSUPPORTED for a target that this version does not
 * know, or whose kernel cannot be emulated for this model, MP_ERR_USAGE for exact and numeric
 * without a source and for lists that select nothing,
 * MP_ERR_IO when a file cannot be read (one that is missing or short is a fault, not
 * an error), MP_ERR_CANCELLED. */
int mp_verify(const char *out, const mp_verify_options *options, const mp_context *context,
              mp_verify_report *report, mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
