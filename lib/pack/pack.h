/* SPDX-License-Identifier: Apache-2.0 */
/* pack/pack.h - an open pack, and parts of opening one for those who go through its files by
 * themselves. */
#ifndef MP_PACK_PACK_H
#define MP_PACK_PACK_H

#include <moepack/artifact.h>

#include "pack/shape.h"

struct mp_pack {
    mp_pack_info info;
    char *dir;
    mp_manifest manifest;
    mp_hex_digest xxh3; /* of moepack.json */
    mp_shape shape;
    mp_placement placement; /* as the manifest has it by its digest */
    mp_checkpoint *ranks;   /* [ep]: the files of each; those that are not open are empty */
    bool *open;             /* [ep] */
    uint32_t num_open;
    const mp_tensor **tensors; /* [layer][ep][tensor]; null: not open, or optional and not there */
    mp_places *places;         /* [manifest.num_layers], on open ranks */
};

/* mp_pack_open, into a pack of the caller's, which must not move; with options that are whole, or
 * null. */
int mp_pack_load(mp_pack *pack, const char *dir, const mp_pack_options *options,
                 const mp_context *context, mp_error *err);

/* Frees what the pack owns and leaves it empty. */
void mp_pack_unload(mp_pack *pack);

/* Begins to read a side of `slots` slots from a place on into the page cache. Never fails. */
void mp_pack_ahead(const mp_pack *pack, size_t layer, mp_place place, uint32_t slots,
                   const mp_slot_set *set, mp_side side);

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
