/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delta/patch.h - a tensor on its way through a chain of deltas.
 *
 * Bytes of the base go in, piece by piece, and come out as the last delta has them. Every delta's
 * checksum of the tensor is taken on the way, so that the one that does not fit is named.
 */
#ifndef MP_DELTA_PATCH_H
#define MP_DELTA_PATCH_H

#include "delta/version.h"

/* What a delta does to one tensor. */
typedef struct mp_patch_link {
    const mp_delta_version *version;
    const mp_version_part *part;
    const mp_tensor *stream; /* of part->ckpt */
} mp_patch_link;

typedef struct mp_patch {
    uint64_t bytes; /* of the tensor */
    uint64_t at;    /* bytes that have come out */
    bool sums;
    struct mp_patch_step *steps;
    size_t num_steps;
    size_t culprit; /* index of the link that a call which failed was about */
} mp_patch;

/* Puts "weight_v000007: rank-003: model-00001-of-00001.safetensors: tensor "x"" before a message
 * about a stream; returns its code. */
int mp_link_blame(const mp_patch_link *link, mp_error *err);

/* Bytes that go through at once, at most; and scratch that this takes. */
#define MP_PATCH_BYTES ((size_t)256 << 10)

/* Messages of the functions below do not name what they are about: links[patch->culprit] is.
 * sums: else checksums are passed over. Release patch in any case. */
int mp_patch_init(mp_patch *patch, uint64_t bytes, const mp_patch_link *links, size_t num_links,
                  bool sums, mp_error *err);
void mp_patch_release(mp_patch *patch);

/* Turns the tensor's next n bytes into those of the last version.
 * scratch: MP_PATCH_BYTES. MP_ERR_INPUT for a stream that is malformed or too short. */
int mp_patch_next(mp_patch *patch, uint8_t *bytes, size_t n, uint8_t *scratch, mp_error *err);

/* When all bytes have gone through: MP_ERR_INPUT for a stream that is too long, MP_ERR_CHECK for a
 * checksum that does not fit. */
int mp_patch_end(mp_patch *patch, mp_error *err);

/* Reads a stream by itself to its end, of a tensor that nothing is known of. scratch: as above.
 * content: set to what it holds, of xor; may be null. */
int mp_patch_check_stream(const mp_patch_link *link, uint8_t *scratch, uint64_t *content,
                          mp_error *err);

/* Marks the slices, `count` of `bytes` each, that a stream changes a byte of; or sets bytes that
 * are the same, which nobody can tell. scratch: as above. */
int mp_patch_scan(const mp_patch_link *link, uint64_t bytes, uint32_t count, bool *slices,
                  uint8_t *scratch, mp_error *err);

/* Whether a tensor of a full version has the checksum that a delta has of it. scratch: as above. */
int mp_link_sum_fits(const mp_patch_link *link, const mp_checkpoint *ckpt, const mp_tensor *tensor,
                     uint8_t *scratch, bool *fits, mp_error *err);

#endif
