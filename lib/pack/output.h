/* SPDX-License-Identifier: Apache-2.0 */
/* pack/output.h - the files of a run while they are written. */
#ifndef MP_PACK_OUTPUT_H
#define MP_PACK_OUTPUT_H

#include "base/digest.h"
#include "pack/plan.h"

/* The digest of a tensor as far as its bytes have come in order. A tensor's bytes are
 * written once each, so only one thread at a time can be the one with the next ones. */
typedef struct mp_tensor_digest {
    mp_digest_stream stream;
    uint64_t next; /* atomic: bytes digested; the byte that is wanted next */
} mp_tensor_digest;

typedef struct mp_outputs {
    const mp_plan *plan;
    int *fds;                  /* [plan->num_files] */
    mp_tensor_digest *digests; /* [plan->num_outputs] */
} mp_outputs;

int mp_outputs_init(mp_outputs *outputs, const mp_plan *plan, mp_error *err);
void mp_outputs_release(mp_outputs *outputs);

/* Whether every file is there, at its full size. */
int mp_outputs_check(const mp_outputs *outputs, const char *dir, bool *whole, mp_error *err);

/* Creates or opens every file below a directory, at its full size, header written. */
int mp_outputs_open(mp_outputs *outputs, const char *dir, mp_error *err);
int mp_outputs_close(mp_outputs *outputs, mp_error *err);

/* Starts the digests of a layer's tensors, before the first of them is written. */
int mp_outputs_begin_layer(mp_outputs *outputs, uint32_t layer, mp_error *err);

/* Writes bytes of a tensor of the plan, and digests them if they are the next ones. */
int mp_outputs_write(mp_outputs *outputs, const mp_out_tensor *out, uint64_t offset,
                     const void *data, uint64_t n, mp_error *err);

/* The digest of a tensor whose bytes are all written. Those that did not come in order are
 * read back through a buffer of `size` bytes. */
int mp_outputs_digest(mp_outputs *outputs, const mp_out_tensor *out, void *buffer, size_t size,
                      mp_digest *digest, mp_error *err);

/* Lets go of a layer's pages; those that are still dirty stay. */
void mp_outputs_forget_layer(const mp_outputs *outputs, uint32_t layer);

#endif
