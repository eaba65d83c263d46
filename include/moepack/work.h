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
} mp_work;

/* What to do about output that is there already. */
typedef enum mp_run_mode {
    MP_RUN_FRESH,  /* refuse OUT and OUT.partial */
    MP_RUN_RESUME, /* continue OUT.partial, if there is one and it is of the same plan;
                      nothing where OUT is complete and of the same plan */
    MP_RUN_FORCE   /* discard OUT.partial; replace OUT, if it is a packed directory */
} mp_run_mode;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
