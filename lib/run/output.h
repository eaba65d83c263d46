/* SPDX-License-Identifier: Apache-2.0 */
/* run/output.h - the files of a work while they are written. */
#ifndef MP_RUN_OUTPUT_H
#define MP_RUN_OUTPUT_H

#include <moepack/work.h>

#include "base/digest.h"

/* The digest of a tensor as far as its bytes have come in order. A tensor's bytes are
 * written once each, so only one thread at a time can be the one with the next ones. */
typedef struct mp_tensor_digest {
    mp_digest_stream stream;
    uint64_t next; /* atomic: bytes digested; the byte that is wanted next, UINT64_MAX for none */
    uint64_t written; /* atomic: bytes of it that this process has written */
} mp_tensor_digest;

typedef struct mp_outputs {
    const mp_work *work;
    int *fds;                  /* [work->num_files] */
    bool *dirty;               /* [work->num_files], atomic: written to since the last sync */
    bool *compressed;          /* [work->num_files]: finished, and only the .zst is there */
    mp_tensor_digest *digests; /* [work->num_outputs] */
    uint32_t *by_stage;        /* [work->num_outputs] outputs, those of a stage together */
    uint32_t *first_of_stage;  /* [work->num_stages + 1] into by_stage */

    /* Of at_once.h; null where no tensor is written so. */
    const struct mp_progress_state *state;
    struct mp_growing *growing; /* [work->num_files] */
    struct mp_at_once *at_once; /* [work->num_outputs] */
} mp_outputs;

int mp_outputs_init(mp_outputs *outputs, const mp_work *work, mp_error *err);
void mp_outputs_release(mp_outputs *outputs);

/* Whether every file is there, at its full size or, finished, compressed. missing: set to the
 * first that is not, or to null. */
int mp_outputs_check(mp_outputs *outputs, const char *dir, const mp_out_file **missing,
                     mp_error *err);

/* Creates or opens every file below a directory, at its full size, header written; with the
 * directories that their paths name. */
int mp_outputs_open(mp_outputs *outputs, const char *dir, mp_error *err);
int mp_outputs_close(mp_outputs *outputs, mp_error *err);

/* Outputs that are filled in a stage: count of them, as indexes into work->outputs. */
const uint32_t *mp_outputs_of_stage(const mp_outputs *outputs, uint32_t stage, size_t *count);

/* No digest is taken of this output. */
void mp_outputs_pass_digest(mp_outputs *outputs, size_t output);

/* Starts the digests of a stage's tensors, before the first of them is written. */
int mp_outputs_begin_stage(mp_outputs *outputs, uint32_t stage, mp_error *err);

/* Writes bytes of a tensor of the work, in its stage, and digests them if they are the next
 * ones. */
int mp_outputs_write(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                     const void *data, uint64_t n, mp_error *err);

/* Whether this process has written the whole of a tensor. */
bool mp_outputs_wrote(const mp_outputs *outputs, const mp_out_tensor *out);

/* The same as mp_outputs_write for bytes of an open file; they are not digested on the way. */
int mp_outputs_copy(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset, int fd,
                    const char *path, uint64_t from, uint64_t n, mp_error *err);

/* Makes everything durable whose write has returned before the call. */
int mp_outputs_sync(mp_outputs *outputs, mp_error *err);

/* The same for the entries of the directories that files lie in, below `dir`. */
int mp_outputs_sync_dirs(const mp_outputs *outputs, const char *dir, mp_error *err);

/* The digest of a tensor whose bytes are all written. Those that did not come in order are
 * read back through a buffer of `size` bytes. */
int mp_outputs_digest(mp_outputs *outputs, const mp_out_tensor *out, void *buffer, size_t size,
                      mp_digest *digest, mp_error *err);

/* Whether files are to be compressed and have their last tensors in this stage. */
bool mp_outputs_finishes(const mp_outputs *outputs, uint32_t stage);

/* Compresses these files and removes the plain ones, one after another. Their data and digests
 * are journaled by then: it is what a resumed run goes by. */
int mp_outputs_compress(mp_outputs *outputs, uint32_t stage, const char *dir,
                        const mp_context *context, mp_error *err);

/* Lets go of a stage's pages; those that are still dirty stay. */
void mp_outputs_forget_stage(const mp_outputs *outputs, uint32_t stage);

#endif
