/* SPDX-License-Identifier: Apache-2.0 */
/* place/waterfill.h - where shared experts are computed. */
#ifndef MP_PLACE_WATERFILL_H
#define MP_PLACE_WATERFILL_H

#include <moepack/place.h>

/* Where waterfill may send the shared expert of one rank's tokens. */
typedef struct mp_waterfill {
    const uint64_t *load; /* [ep], each at most INT32_MAX */
    uint64_t target;      /* load to fill up to; 0: ceil((sum + sum / k) / ep) */
    bool allow_all;       /* all ranks, or the own one and those of the token's choices */
    uint32_t rank;        /* own */
} mp_waterfill;

/* Chooses a slot of the shared expert for each token (SGLang's waterfill: integers
 * throughout, a preference of 11 to 10 for the own rank).
 * slots: one shared expert on every rank.
 * physical: [tokens][k] physical experts, -1 for a masked choice.
 * shared_ids, stride: the slot of token t goes to shared_ids[t * stride]; -1 for a
 *   token without a valid choice.
 * MP_ERR_INPUT, MP_ERR_USAGE, MP_ERR_IO without memory. */
int mp_waterfill_assign(const mp_waterfill *w, const mp_slots *slots, const int32_t *physical,
                        uint64_t tokens, uint32_t k, int32_t *shared_ids, uint64_t stride,
                        mp_error *err);

#endif
