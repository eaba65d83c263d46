/* SPDX-License-Identifier: Apache-2.0 */
/* pack/pack.h - parts of opening a pack, for those who go through its files by themselves. */
#ifndef MP_PACK_PACK_H
#define MP_PACK_PACK_H

#include <moepack/artifact.h>

/* Drops a side of `slots` slots from a place on from the page cache. Never fails. */
void mp_pack_forget(const mp_pack *pack, size_t layer, mp_place place, uint32_t slots,
                    const mp_slot_set *set, mp_side side);

/* Reads a text of the pack that its manifest has the digest of: config.json, placement.json.
 * text: malloc'ed. MP_ERR_INPUT where it is missing or changed. */
int mp_pack_text(const char *dir, const char *name, const char *xxh3, char **text, uint64_t *length,
                 mp_error *err);

/* Reads placement.json. MP_ERR_INPUT where it is missing, changed, or not of such a pack. */
int mp_pack_placement(const char *dir, const mp_manifest *manifest, mp_placement *placement,
                      mp_error *err);

#endif
