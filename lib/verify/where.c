/* SPDX-License-Identifier: Apache-2.0 */
/* The way of bytes through a layout, found by unpacking their numbers. */
#include "verify/where.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* Eight bits of the number of each byte. */
static void write_numbers(uint8_t *bytes, uint64_t n, unsigned shift)
{
    for (uint64_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(i >> shift);
}

static void read_numbers(const uint8_t *bytes, uint64_t n, unsigned shift, uint32_t *numbers)
{
    for (uint64_t i = 0; i < n; i++)
        numbers[i] |= (uint32_t)bytes[i] << shift;
}

/* True while numbers below n have bits from shift on. */
static bool has_more(uint64_t n, unsigned shift)
{
    return shift < 32 && (n - 1) >> shift != 0;
}

int mp_where_weight(const mp_target *target, const mp_dims *dims, mp_side side, uint64_t row0,
                    uint64_t rows, uint64_t bytes, uint32_t *offsets, mp_error *err)
{
    uint8_t *packed = mp_alloc(bytes, 1), *canonical = mp_alloc_zeroed(bytes, 1);
    uint8_t *up = canonical && side == MP_L1 ? canonical + bytes / 2 : NULL;
    int rc = 0;

    if (!packed || !canonical) {
        rc = mp_fail_memory(err);
        goto out;
    }
    memset(offsets, 0, bytes * sizeof *offsets);
    for (unsigned shift = 0; has_more(bytes, shift); shift += 8) {
        write_numbers(packed, bytes, shift);
        target->unpack_weight(dims, side, row0, rows, packed, canonical, up);
        read_numbers(canonical, bytes, shift, offsets);
    }
out:
    free(packed);
    free(canonical);
    return rc;
}

/* Lists the bytes that no canonical one comes from. */
static int find_padding(mp_scale_map *map, uint64_t tensor_bytes, mp_error *err)
{
    bool *used = mp_alloc_zeroed(tensor_bytes, sizeof *used);
    uint64_t count = 0;

    if (!used)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < map->canonical_bytes; i++)
        used[map->offsets[i]] = true;
    for (uint64_t i = 0; i < tensor_bytes; i++)
        count += !used[i];
    map->padding = mp_alloc(count, sizeof *map->padding);
    for (uint64_t i = 0; i < tensor_bytes && map->padding; i++)
        if (!used[i])
            map->padding[map->num_padding++] = (uint32_t)i;
    free(used);
    return map->padding ? 0 : mp_fail_memory(err);
}

int mp_where_scale(const mp_target *target, const mp_dims *dims, mp_side side,
                   uint64_t tensor_bytes, uint64_t canonical_bytes, mp_scale_map *map,
                   mp_error *err)
{
    uint8_t *packed = mp_alloc(tensor_bytes, 1);
    uint8_t *canonical = mp_alloc_zeroed(canonical_bytes, 1);
    int rc;

    *map = (mp_scale_map){.canonical_bytes = canonical_bytes};
    map->offsets = mp_alloc_zeroed(canonical_bytes, sizeof *map->offsets);
    if (!packed || !canonical || !map->offsets) {
        rc = mp_fail_memory(err);
        goto out;
    }
    for (unsigned shift = 0; has_more(tensor_bytes, shift); shift += 8) {
        write_numbers(packed, tensor_bytes, shift);
        target->unpack_scale(dims, side, packed, canonical);
        read_numbers(canonical, canonical_bytes, shift, map->offsets);
    }
    rc = find_padding(map, tensor_bytes, err);
out:
    free(packed);
    free(canonical);
    return rc;
}

bool mp_scale_padding_is_zero(const mp_scale_map *map, const uint8_t *tensor, uint32_t *offset)
{
    for (uint64_t i = 0; i < map->num_padding; i++) {
        if (tensor[map->padding[i]] != 0) {
            *offset = map->padding[i];
            return false;
        }
    }
    return true;
}

void mp_scale_map_release(mp_scale_map *map)
{
    free(map->offsets);
    free(map->padding);
    *map = (mp_scale_map){0};
}
