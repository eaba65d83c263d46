/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delta/chain.h - a full version and the deltas that follow it, as one set of tensors.
 */
#ifndef MP_DELTA_CHAIN_H
#define MP_DELTA_CHAIN_H

#include "delta/patch.h"
#include "delta/version.h"

typedef struct mp_chain {
    mp_delta_version *versions; /* as they were given: base, then deltas */
    size_t count;
    size_t base; /* the last full version: what is before it does not matter */
    /* [part of the base][tensor of it] as one row: links of tensor t of part p are
     * links[first[row[p] + t]] up to first[row[p] + t + 1], in the order of the chain. */
    size_t *row;
    size_t *first;
    mp_patch_link *links;
} mp_chain;

/* What version a base is that does not say so: the first one of all, or whatever is asked for. */
#define MP_BASE_FIRST UINT64_C(0)
#define MP_BASE_ANY   UINT64_MAX
/* And where it does not matter what it says either. */
#define MP_BASE_UNCHECKED (UINT64_MAX - 1)

/* Opens versions and holds them against each other: numbers, parts, tensors. base: the full version
 * that the first delta changes; unnumbered: which one it is where it does not say so.
 * MP_ERR_CHECK for a version that does not follow the one before, MP_ERR_INPUT. Release chain in
 * any case. */
int mp_chain_open(mp_chain *chain, const char *base, uint64_t unnumbered, const char *const *deltas,
                  size_t count, const mp_context *context, mp_error *err);
void mp_chain_release(mp_chain *chain);

/* That the first delta changes the base, of a chain that was opened unchecked. */
int mp_chain_check_base(mp_chain *chain, mp_error *err);

static inline const mp_delta_version *mp_chain_base(const mp_chain *chain)
{
    return &chain->versions[chain->base];
}

/* What the chain does to a tensor of a part of the base; *count of links. */
const mp_patch_link *mp_chain_links(const mp_chain *chain, size_t part, const mp_tensor *tensor,
                                    size_t *count);

/* Takes the bytes of a tensor through the chain, piece by piece. put: takes a piece; null where
 * only checksums are wanted. scratch: 2 MP_PATCH_BYTES.
 * *culprit: the link that a failure is about, which the message does not name; null where it is
 * about something else. */
typedef int mp_chain_put(void *user, uint64_t at, const void *bytes, size_t n, mp_error *err);
int mp_chain_patch(const mp_chain *chain, size_t part, const mp_tensor *tensor, mp_chain_put *put,
                   void *user, uint8_t *scratch, const mp_patch_link **culprit, mp_error *err);

#endif
