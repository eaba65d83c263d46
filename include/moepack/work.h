/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/work.h - what a run writes, known before its first byte.
 *
 * Repacking, unpacking and requantizing each make a plan of their own; what they are going to
 * write is the same kind of value: files with their headers, tensors with their places, and a
 * number of units of work that fill them in any order.
 */
#ifndef MOEPACK_WORK_H
#define MOEPACK_WORK_H

#include <moepack/base.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* A tensor of the output. */
typedef struct mp_out_tensor {
    char *name;
    mp_dtype dtype;
    uint32_t dims;
    uint64_t shape[5];
    uint32_t stage;  /* of the work that fills it */
    uint32_t file;   /* index into work.files */
    uint64_t offset; /* in that file */
    uint64_t bytes;
    bool codes; /* of 4 bits, which rarely shrink */
} mp_out_tensor;

/* A file of the output. */
typedef struct mp_out_file {
    char *path; /* below the output directory: "rank-000/model-00001-of-00002.safetensors" */
    char *header;
    uint64_t header_bytes;
    uint64_t bytes;        /* of the whole file */
    uint32_t first_tensor; /* index into work.outputs */
    uint32_t num_tensors;
} mp_out_file;

/* One of the processes, on one machine or many, that share a run. Each does its part of the units,
 * which it finds from the plan alone; then one finishes the run (MP_RUN_FINISH). */
typedef struct mp_part {
    uint32_t number; /* 1 .. count */
    uint32_t count;  /* 0: the run is not in parts */
    const char *how; /* a line that is kept with the part, for who finishes; null: none */
} mp_part;

/* What is to be written: every file with its header, every tensor with its place, and how
 * many units of work fill them. */
typedef struct mp_work {
    mp_out_file *files; /* those of one directory together */
    size_t num_files;
    mp_out_tensor *outputs; /* in the order of files */
    size_t num_outputs;
    size_t room; /* private: of outputs and files */
    uint64_t num_units;
    uint32_t num_stages;  /* done one after the other, a layer each */
    uint64_t stage_units; /* at most, of one stage */
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t scratch_bytes; /* of one thread */
    bool lossless;          /* no unit requantizes */
    int zstd;               /* files become path.zst as they are finished */
    mp_part part;           /* of the units, that a run does */
    bool sha256;            /* SHA256SUMS is written too */
} mp_work;

/* What to do about output that is there already. */
typedef enum mp_run_mode {
    MP_RUN_FRESH,  /* refuse OUT and OUT.partial */
    MP_RUN_RESUME, /* continue OUT.partial, if there is one and it is of the same plan;
                      nothing where OUT is complete and of the same plan */
    MP_RUN_FORCE,  /* discard OUT.partial; replace OUT, if it is a packed directory */
    MP_RUN_FINISH  /* do no units: put the parts in OUT.partial together, digest what none of them
                      could, and make it OUT; nothing where OUT is complete and of the same plan.
                      MP_ERR_CHECK, naming it, for a part that is not done */
} mp_run_mode;

/* A run in parts goes on with what is there of its part, whatever the mode but MP_RUN_FORCE, which
 * is MP_ERR_USAGE: it would discard the other parts. Where parts are finished, and OUT is there,
 * nothing is left to do. */

/* Finishes a run in parts as far as that goes without its plan. Where nothing is left to do but to
 * rename OUT.partial to OUT, does that; where OUT is whole already, does nothing: *how is null.
 * Else sets *how, malloc'ed, to the mp_part.how of the first part that has one: MP_RUN_FINISH of a
 * plan that is made in this way does the rest.
 * MP_ERR_CHECK where no part has begun, MP_ERR_INPUT where no part says how; MP_ERR_IO. */
int mp_run_finish(const char *out, char **how, mp_error *err);

/* ------------------------------------------------------------------------
 * Digests for others
 *
 * SHA256SUMS in a directory is what `sha256sum -c` reads: a line for every file below it but
 * itself, sorted by name. Symbolic links are followed.
 */

/* Writes it. context: may be null. MP_ERR_INPUT for a name with a line feed; MP_ERR_IO. */
int mp_checksums_write(const char *dir, const mp_context *context, mp_error *err);

/* Holds a directory against it: files that differ, are missing, or are not in it, are problems.
 * files: set to how many it lists.
 * MP_ERR_INPUT for a line that is none of its; MP_ERR_IO. */
int mp_checksums_check(const char *dir, const mp_context *context, mp_problems *problems,
                       uint64_t *files, mp_error *err);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
