/* SPDX-License-Identifier: Apache-2.0 */
/* A packed directory, open: what its manifest says has been checked against what is there.
 *
 * All readers of a pack go through this file, so that one broken pack gets one answer from every
 * command. Only verify walks through the files by itself: it has to report what is broken where
 * opening refuses.
 *
 *     moepack.json      sealed; gives the shape, and the digests of the rest
 *     placement.json    its digest is compared, then it is checked as a placement for the shape
 *     rank-NNN          headers of all shards; every tensor of the shape has its type and shape
 *
 * After opening, readers need no checks: tensors [layer][rank][tensor] is a table that is null if a
 * rank is not here or an optional tensor is missing, and places only name ranks that are open.
 * Tensor bytes are not digested here, which would take minutes; that is left to verify.
 *
 * Opening uses one thread. An open pack does not change any more, and reads carry offsets, so any
 * number of threads can read it. */
#include "pack/pack.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/options.h"
#include "base/select.h"
#include "checkpoint/tensor.h"
#include "pack/manifest.h"
#include "pack/shape.h"

#define TEXT_LIMIT (1u << 30)

/* ------------------------------------------------------------------------
 * Texts
 */

/* What is no regular file is not there, whatever it is. */
static int check_file(const char *path, const char *name, mp_error *err)
{
    struct stat status;

    if (stat(path, &status) != 0) {
        if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
            return mp_fail(err, MP_ERR_INPUT, "%s: missing", name);
        return mp_fail_errno(err, errno, "cannot access \"%s\"", path);
    }
    return S_ISREG(status.st_mode) ? 0 : mp_fail(err, MP_ERR_INPUT, "%s: not a regular file", name);
}

int mp_pack_text(const char *dir, const char *name, const char *xxh3, char **text, uint64_t *length,
                 mp_error *err)
{
    char *path = mp_path_join(dir, name), actual[MP_DIGEST_TEXT];
    mp_digest digest;
    int rc = path ? check_file(path, name, err) : mp_fail_memory(err);

    *text = NULL;
    if (rc == 0)
        rc = mp_read_file(path, TEXT_LIMIT, text, length, err);
    free(path);
    if (rc != 0)
        return rc;
    mp_digest_of(*text, *length, &digest);
    if (strcmp(mp_digest_text(&digest, actual), xxh3) == 0)
        return 0;
    free(*text);
    *text = NULL;
    return mp_fail(err, MP_ERR_INPUT, "%s: changed: its xxh3 is %s, the manifest says %s", name,
                   actual, xxh3);
}

static int check_placement(const mp_placement *p, const mp_manifest *m, mp_error *err)
{
    if (p->num_physical != m->num_physical)
        return mp_fail(err, MP_ERR_INPUT, "%u physical experts, the manifest says %" PRIu64,
                       p->num_physical, m->num_physical);
    if (p->layers != 1 && p->layers != m->num_layers)
        return mp_fail(err, MP_ERR_INPUT, "%u row%s for %zu layer%s", p->layers,
                       mp_plural(p->layers), m->num_layers, mp_plural(m->num_layers));
    return mp_placement_check(p, (uint32_t)m->ep_size, NULL, err);
}

int mp_pack_placement(const char *dir, const mp_manifest *m, mp_placement *placement, mp_error *err)
{
    uint64_t length;
    char *text;

    err = MP_NEVER_NULL(err);
    *placement = (mp_placement){0};
    if (mp_pack_text(dir, MP_PLACEMENT_NAME, m->placement_xxh3, &text, &length, err) != 0)
        return err->code;
    int rc = mp_placement_parse(placement, text, length, (uint32_t)m->num_experts, err);
    free(text);
    if (rc == 0)
        rc = check_placement(placement, m, err);
    if (rc == 0)
        return 0;
    mp_placement_release(placement);
    return mp_error_prefix(err, "%s", MP_PLACEMENT_NAME);
}

/* ------------------------------------------------------------------------
 * Ranks
 */

/* The ranks that are to be opened: those of the manifest, or those of a list. */
static int choose_ranks(const mp_pack *pack, const mp_pack_options *options, bool *wanted,
                        mp_error *err)
{
    const mp_manifest *m = &pack->manifest;
    bool *there = mp_alloc_zeroed(m->ep_size, sizeof *there);
    int rc = there ? 0 : mp_fail_memory(err);

    for (size_t r = 0; rc == 0 && r < m->num_ranks; r++)
        there[m->ranks[r].rank] = true;
    if (rc == 0 && options->ranks)
        rc = mp_select_ranks(options->ranks, (uint32_t)m->ep_size, wanted, err);
    for (uint32_t r = 0; rc == 0 && r < m->ep_size; r++) {
        if (!options->ranks)
            wanted[r] = there[r];
        else if (wanted[r] && !there[r])
            rc = mp_fail(err, MP_ERR_USAGE, "list \"%s\": rank %u is not in this pack",
                         options->ranks, r);
    }
    free(there);
    return rc;
}

static int check_tensor(const mp_slot_set *set, const mp_slot_tensor *wanted,
                        const mp_tensor *tensor, mp_error *err)
{
    uint64_t shape[5];
    uint32_t rank = mp_slots_shape(set->target, wanted, set->slots, shape);
    char actual[MP_SHAPE_TEXT], expected[MP_SHAPE_TEXT];

    if (tensor->dtype == wanted->dtype && tensor->rank == rank &&
        memcmp(tensor->shape, shape, rank * sizeof *shape) == 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: %s %s, expected %s %s", tensor->name,
                   mp_dtype_name(tensor->dtype), mp_shape_text(tensor->shape, tensor->rank, actual),
                   mp_dtype_name(wanted->dtype), mp_shape_text(shape, rank, expected));
}

static const mp_tensor **slot_of_tensor(const mp_pack *pack, size_t layer, uint32_t rank)
{
    return pack->tensors +
           ((uint64_t)layer * pack->shape.slots.ep + rank) * pack->shape.num_tensors;
}

/* Finds the tensors of a set in a layer of a rank. */
static int find_tensors(mp_pack *pack, size_t layer, uint32_t rank, const mp_slot_set *set,
                        mp_error *err)
{
    for (unsigned t = 0; t < set->num_tensors; t++) {
        const mp_slot_tensor *wanted = &set->tensors[t];
        char *name = mp_format("%s.%s.%s", pack->manifest.layers[layer], set->block, wanted->name);
        const mp_tensor *tensor = name ? mp_checkpoint_find(&pack->ranks[rank], name) : NULL;
        int rc = name ? 0 : mp_fail_memory(err);

        if (rc == 0 && !tensor && !wanted->optional)
            rc = mp_fail(err, MP_ERR_INPUT, "%s: missing", name);
        if (rc == 0 && tensor)
            rc = check_tensor(set, wanted, tensor, err);
        free(name);
        if (rc != 0)
            return rc;
        slot_of_tensor(pack, layer, rank)[set->first + t] = tensor;
    }
    return 0;
}

/* A rank directory is a checkpoint like any other, with an index of its own. */
static int open_rank(mp_pack *pack, uint32_t rank, bool partial, const mp_context *context,
                     mp_error *err)
{
    char name[MP_RANK_NAME_MAX];
    char *path = mp_path_join(pack->dir, mp_rank_name(rank, name));
    int rc = path ? 0 : mp_fail_memory(err);

    if (path && !mp_path_exists(path)) {
        free(path);
        return partial ? 0 : mp_fail(err, MP_ERR_INPUT, "%s: the directory is missing", name);
    }
    if (rc == 0)
        rc = mp_checkpoint_open(&pack->ranks[rank], path, context, err);
    free(path);
    pack->open[rank] = rc == 0;
    pack->num_open += rc == 0;
    for (size_t layer = 0; rc == 0 && layer < pack->manifest.num_layers; layer++)
        for (unsigned s = 0; rc == 0 && s < pack->shape.num_sets; s++)
            rc = find_tensors(pack, layer, rank, &pack->shape.sets[s], err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", name);
}

static int open_ranks(mp_pack *pack, const mp_pack_options *options, const mp_context *context,
                      mp_error *err)
{
    const mp_manifest *m = &pack->manifest;
    uint32_t ep = pack->shape.slots.ep;
    bool *wanted = mp_alloc_zeroed(ep, sizeof *wanted);
    uint64_t all;
    int rc = 0;

    pack->ranks = mp_alloc_zeroed(ep, sizeof *pack->ranks);
    pack->open = mp_alloc_zeroed(ep, sizeof *pack->open);
    /* The manifest lists each layer, and shape.c bounds the rest, so only the whole product can
     * overflow. */
    if (mp_mul_u64((uint64_t)m->num_layers * pack->shape.num_tensors, ep, &all))
        pack->tensors = mp_alloc_zeroed(all, sizeof *pack->tensors);
    if (!wanted || !pack->ranks || !pack->open || !pack->tensors)
        rc = mp_fail_memory(err);
    if (rc == 0)
        rc = choose_ranks(pack, options, wanted, err);
    for (uint32_t r = 0; rc == 0 && r < ep; r++)
        if (wanted[r])
            rc = open_rank(pack, r, options->partial, context, err);
    free(wanted);
    if (rc == 0 && pack->num_open == 0)
        rc = mp_fail(err, MP_ERR_INPUT, "\"%s\": none of its ranks (%zu) is present", pack->dir,
                     m->num_ranks);
    return rc;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static int load_manifest(mp_pack *pack, mp_error *err)
{
    uint64_t length;
    mp_digest digest;
    char *text;

    if (mp_manifest_read(pack->dir, &text, &length, err) != 0)
        return err->code;
    mp_digest_of(text, length, &digest);
    mp_digest_text(&digest, pack->xxh3);
    int rc = mp_manifest_parse(&pack->manifest, text, length, err);
    free(text);
    return rc;
}

static int place_experts(mp_pack *pack, mp_error *err)
{
    size_t layers = pack->manifest.num_layers;

    pack->places = mp_alloc_zeroed(layers, sizeof *pack->places);
    if (!pack->places)
        return mp_fail_memory(err);
    for (size_t layer = 0; layer < layers; layer++)
        if (mp_places_init(&pack->places[layer], &pack->shape,
                           mp_placement_row(&pack->placement, (uint32_t)layer), pack->open,
                           err) != 0)
            return err->code;
    return 0;
}

/* In this order: the manifest gives the shape, and the shape says what to expect of the rest. */
int mp_pack_load(mp_pack *pack, const char *dir, const mp_pack_options *options,
                 const mp_context *context, mp_error *err)
{
    static const mp_pack_options usual = {0};
    int rc;

    err = MP_NEVER_NULL(err);
    *pack = (mp_pack){.dir = strdup(dir)};
    rc = pack->dir ? load_manifest(pack, err) : mp_fail_memory(err);
    if (rc == 0)
        rc = mp_manifest_shape(&pack->manifest, &pack->shape, err);
    if (rc == 0)
        rc = mp_pack_placement(dir, &pack->manifest, &pack->placement, err);
    if (rc == 0)
        rc = open_ranks(pack, options ? options : &usual, context, err);
    if (rc == 0)
        rc = place_experts(pack, err);
    if (rc != 0) {
        mp_pack_unload(pack);
        return rc;
    }
    pack->info =
        (mp_pack_info){pack->dir, &pack->manifest, pack->xxh3, &pack->shape, &pack->placement};
    return 0;
}

int mp_pack_open(mp_pack **pack, const char *dir, const mp_pack_options *options,
                 const mp_context *context, mp_error *err)
{
    mp_pack *made = mp_alloc_zeroed(1, sizeof *made);
    mp_pack_options own;

    *pack = NULL;
    if (!made)
        return mp_fail_memory(err);
    int rc = mp_options_take("mp_pack_options", &own, sizeof own, options, err);
    if (rc == 0)
        rc = mp_pack_load(made, dir, &own, context, err);
    if (rc == 0)
        *pack = made;
    else
        free(made);
    return rc;
}

void mp_pack_release(mp_pack *pack)
{
    if (pack)
        mp_pack_unload(pack);
    free(pack);
}

const mp_pack_info *mp_pack_get(const mp_pack *pack)
{
    return &pack->info;
}

const mp_checkpoint *mp_pack_rank(const mp_pack *pack, uint32_t rank)
{
    return rank < pack->shape.slots.ep && pack->open[rank] ? &pack->ranks[rank] : NULL;
}

void mp_pack_unload(mp_pack *pack)
{
    for (uint32_t r = 0; pack->ranks && r < pack->shape.slots.ep; r++)
        mp_checkpoint_release(&pack->ranks[r]);
    for (size_t layer = 0; pack->places && layer < pack->manifest.num_layers; layer++)
        mp_places_release(&pack->places[layer]);
    free(pack->dir);
    free(pack->ranks);
    free(pack->open);
    free(pack->tensors);
    free(pack->places);
    mp_placement_release(&pack->placement);
    mp_manifest_release(&pack->manifest);
    *pack = (mp_pack){0};
}

/* ------------------------------------------------------------------------
 * Reading
 */

int mp_pack_layer(const mp_pack *pack, const char *name, size_t *layer, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    return mp_select_layer(name, (const char *const *)pack->manifest.layers,
                           pack->manifest.num_layers, layer, err);
}

const mp_place *mp_pack_copies(const mp_pack *pack, size_t layer, uint32_t id, uint32_t *count)
{
    return mp_places_of(&pack->places[layer], id, count);
}

const mp_tensor *mp_pack_tensor(const mp_pack *pack, size_t layer, uint32_t rank,
                                const mp_slot_set *set, const mp_slot_tensor *tensor)
{
    return tensor ? slot_of_tensor(pack, layer, rank)[mp_set_number(set, tensor)] : NULL;
}

/* Slots are consecutive, so a slot's bytes start at its number times the size of one. */
int mp_pack_read(const mp_pack *pack, size_t layer, mp_place place, const mp_slot_set *set,
                 const mp_slot_tensor *tensor, uint64_t offset, uint64_t n, void *buffer,
                 mp_error *err)
{
    const mp_tensor *from = mp_pack_tensor(pack, layer, place.rank, set, tensor);

    err = MP_NEVER_NULL(err);
    if (!from)
        return mp_fail(err, MP_ERR_INPUT, "rank %u: %s has no %s to read", place.rank,
                       pack->manifest.layers[layer], tensor->name);
    if (mp_tensor_read(&pack->ranks[place.rank], from, place.slot * tensor->slot_bytes + offset, n,
                       buffer, err) != 0)
        return mp_error_prefix(err, "rank %u", place.rank);
    return 0;
}

static void advise(const mp_pack *pack, size_t layer, mp_place place, uint32_t slots,
                   const mp_slot_set *set, mp_side side,
                   void (*act)(const mp_checkpoint *ckpt, const mp_tensor *tensor, uint64_t offset,
                               uint64_t n))
{
    for (unsigned t = 0; t < set->num_tensors; t++) {
        const mp_slot_tensor *tensor = &set->tensors[t];
        const mp_tensor *from = mp_pack_tensor(pack, layer, place.rank, set, tensor);

        if (from && tensor->side == side)
            act(&pack->ranks[place.rank], from, place.slot * tensor->slot_bytes,
                slots * tensor->slot_bytes);
    }
}

void mp_pack_ahead(const mp_pack *pack, size_t layer, mp_place place, uint32_t slots,
                   const mp_slot_set *set, mp_side side)
{
    advise(pack, layer, place, slots, set, side, mp_tensor_ahead);
}

void mp_pack_forget(const mp_pack *pack, size_t layer, mp_place place, uint32_t slots,
                    const mp_slot_set *set, mp_side side)
{
    advise(pack, layer, place, slots, set, side, mp_tensor_forget);
}
