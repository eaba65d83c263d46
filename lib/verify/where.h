/* SPDX-License-Identifier: Apache-2.0 */
/* verify/where.h - where a layout puts each byte.
 *
 * A layout's unpack moves bytes and changes none. So when the bytes that it is given are
 * numbered, its output says from where each byte came. Numbers of more than eight bits
 * take one unpacking for each eight. */
#ifndef MP_VERIFY_WHERE_H
#define MP_VERIFY_WHERE_H

#include <moepack/layout.h>

/* offsets[i]: the byte of the packed rows row0 .. row0+rows-1 that goes to canonical byte
 * i: those of gate and then those of up, or for L2 those of the rows.
 * bytes: of these rows, in either form. MP_ERR_IO without memory. */
int mp_where_weight(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t row0,
                    uint64_t rows, uint64_t bytes, uint32_t *offsets, mp_error *err);

/* The scale tensor of a slot. */
typedef struct mp_scale_map {
    uint32_t *offsets; /* [canonical_bytes]: byte of the tensor */
    uint64_t canonical_bytes;
    uint32_t *padding; /* bytes of the tensor that nothing goes to, ascending */
    uint64_t num_padding;
} mp_scale_map;

/* MP_ERR_IO without memory. */
int mp_where_scale(const mp_target *target, const mp_dims *dims, mp_side side,
                   uint64_t tensor_bytes, uint64_t canonical_bytes, mp_scale_map *map,
                   mp_error *err);

/* False if a byte of the padding is not zero; *offset is set to the first one. */
bool mp_scale_padding_is_zero(const mp_scale_map *map, const uint8_t *tensor, uint32_t *offset);

void mp_scale_map_release(mp_scale_map *map);

#endif
