/* SPDX-License-Identifier: Apache-2.0 */
/* place/replicas.h - from logical experts to their physical ones. */
#ifndef MP_PLACE_REPLICAS_H
#define MP_PLACE_REPLICAS_H

#include <moepack/place.h>

/* Physical experts of each logical one, in a layer. Replicas are numbered by
 * ascending physical expert. */
typedef struct mp_replicas {
    uint32_t num_logical;
    uint32_t *start; /* [N + 1]: those of logical e are physical[start[e]] .. physical[start[e + 1]
                        - 1] */
    uint32_t *physical; /* [P] */
} mp_replicas;

/* row: the layer's num_physical logical ids, all below num_logical. MP_ERR_INPUT for
 * one that is not, MP_ERR_IO without memory. */
int mp_replicas_init(mp_replicas *r, const int32_t *row, uint32_t num_logical,
                     uint32_t num_physical, mp_error *err);
void mp_replicas_release(mp_replicas *r);

#endif
