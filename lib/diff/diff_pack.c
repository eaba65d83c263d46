/* SPDX-License-Identifier: Apache-2.0 */
/* A packed directory as a side of a comparison: which ranks it has, and where copies are. */
#include "diff/diff.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"

#define RANKS_LIMIT 65536u

/* ------------------------------------------------------------------------
 * What the manifest says
 */

static int check_numbers(const mp_manifest *m, mp_error *err)
{
    if (m->shared != MP_SHARED_NONE && m->num_shared_experts == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: shared experts are %s, but the model has none",
                       MP_MANIFEST_NAME, mp_shared_mode_name(m->shared));
    if (m->ep_size > RANKS_LIMIT || m->num_ranks > m->ep_size)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: %zu ranks of %" PRIu64 ", expected that many or fewer, and at most %u",
                       MP_MANIFEST_NAME, m->num_ranks, m->ep_size, RANKS_LIMIT);
    return 0;
}

static int add_set(diff_pack *pack, const mp_target *target, const char *block, mp_dims dims,
                   uint32_t slots, mp_error *err)
{
    packed_set *set = &pack->sets[pack->num_sets];
    int rc = mp_packed_set_init(set, target, block, dims, slots, pack->num_tensors, err);

    if (rc != 0)
        return rc;
    pack->num_sets++;
    pack->num_tensors += set->num_tensors;
    return 0;
}

static int settle_sets(diff_pack *pack, mp_error *err)
{
    const mp_manifest *m = &pack->manifest;
    mp_dims dims = {m->hidden_size, m->moe_intermediate_size};
    uint32_t shared = (uint32_t)m->num_shared_experts;
    const mp_target *target;
    int rc = mp_packed_target(m, &target, err);

    if (rc == 0)
        rc = check_numbers(m, err);
    if (rc == 0)
        rc = mp_slots_init(&pack->slots, (uint32_t)m->num_experts, (uint32_t)m->num_physical,
                           (uint32_t)m->ep_size, (m->shared == MP_SHARED_FUSED) ? shared : 0, false,
                           err);
    if (rc == 0)
        rc = add_set(pack, target, "experts", dims, mp_slots_per_rank(&pack->slots), err);
    if (rc != 0 || m->shared != MP_SHARED_SEPARATE)
        return rc;
    if (target->separate->single) {
        dims.intermediate_size *= shared;
        shared = 1;
    }
    return add_set(pack, target->separate, "shared_experts", dims, shared, err);
}

/* A row for every layer, or one for all. */
static int check_rows(const diff_pack *pack, mp_error *err)
{
    const mp_placement *p = &pack->placement;

    if (p->layers <= 1 || p->layers >= pack->manifest.num_layers)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: %u rows, the manifest has %zu layers", MP_PLACEMENT_NAME,
                   p->layers, pack->manifest.num_layers);
}

/* ------------------------------------------------------------------------
 * Ranks
 */

static int open_rank(diff_pack *pack, diff_rank *rank, const char *dir, const mp_context *context,
                     mp_error *err)
{
    const mp_manifest *m = &pack->manifest;
    char name[MP_RANK_NAME_MAX];
    char *path = mp_path_join(dir, mp_rank_name(rank->number, name));
    int rc = path ? mp_checkpoint_open(&rank->checkpoint, path, context, err) : mp_fail_memory(err);

    free(path);
    if (rc == 0) {
        rank->held = mp_alloc_zeroed(m->num_layers, pack->num_tensors * sizeof *rank->held);
        rc = rank->held ? 0 : mp_fail_memory(err);
    }
    for (size_t i = 0; rc == 0 && i < m->num_layers; i++)
        for (unsigned s = 0; rc == 0 && s < pack->num_sets; s++)
            rc = mp_packed_set_find(&pack->sets[s], m->layers[i], &rank->checkpoint,
                                    rank->held + i * pack->num_tensors, err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", name);
}

/* A seal that is broken is no difference. */
static int load_manifest(mp_manifest *manifest, const char *dir, mp_error *err)
{
    mp_error why = {0};
    int rc = mp_manifest_load(manifest, dir, &why);

    return rc == 0
               ? 0
               : mp_fail(err, rc == MP_ERR_CHECK ? MP_ERR_INPUT : (mp_code)rc, "%s", why.message);
}

int mp_diff_pack_open(diff_pack *pack, const char *dir, const mp_context *context, mp_error *err)
{
    int rc = load_manifest(&pack->manifest, dir, err);

    if (rc == 0)
        rc = settle_sets(pack, err);
    if (rc == 0)
        rc = mp_packed_placement(dir, &pack->slots, &pack->placement, err);
    if (rc == 0)
        rc = check_rows(pack, err);
    if (rc != 0)
        return rc;
    pack->ranks = mp_alloc_zeroed(pack->manifest.num_ranks, sizeof *pack->ranks);
    if (!pack->ranks)
        return mp_fail_memory(err);
    for (size_t r = 0; rc == 0 && r < pack->manifest.num_ranks; r++) {
        pack->ranks[r].number = pack->manifest.ranks[r].rank;
        rc = open_rank(pack, &pack->ranks[r], dir, context, err);
    }
    return rc;
}

void mp_diff_pack_release(diff_pack *pack)
{
    for (size_t r = 0; pack->ranks && r < pack->manifest.num_ranks; r++) {
        mp_checkpoint_release(&pack->ranks[r].checkpoint);
        free(pack->ranks[r].held);
    }
    free(pack->ranks);
    mp_placement_release(&pack->placement);
    mp_manifest_release(&pack->manifest);
    *pack = (diff_pack){0};
}

/* ------------------------------------------------------------------------
 * Copies
 */

uint32_t mp_diff_pack_shared(const diff_pack *pack)
{
    return pack->num_sets > 1 ? pack->sets[1].slots : pack->slots.shared;
}

static const diff_rank *find_rank(const diff_pack *pack, uint32_t number)
{
    for (size_t r = 0; r < pack->manifest.num_ranks; r++)
        if (pack->ranks[r].number == number)
            return &pack->ranks[r];
    return NULL;
}

/* Of the slots that the placement gives an expert, those on ranks that are here. */
static uint32_t placed_copies(const diff_pack *pack, size_t layer, uint32_t id, uint32_t *slots,
                              diff_copy *copies)
{
    const int32_t *row = mp_placement_row(&pack->placement, (uint32_t)layer);
    uint32_t total = mp_slots_of_checkpoint_id(&pack->slots, row, id, slots), count = 0;

    for (uint32_t i = 0; i < total; i++) {
        uint32_t number = mp_slots_rank(&pack->slots, slots[i]);
        const diff_rank *rank = find_rank(pack, number);

        if (rank)
            copies[count++] =
                (diff_copy){.set = &pack->sets[0],
                            .rank = rank,
                            .slot = slots[i] - number * mp_slots_per_rank(&pack->slots)};
    }
    return count;
}

int mp_diff_pack_copies(const diff_pack *pack, size_t layer, bool shared, uint32_t id,
                        diff_copy **copies, uint32_t *count, mp_error *err)
{
    uint32_t *slots = mp_alloc(pack->slots.num_physical, sizeof *slots);
    uint64_t room = pack->slots.num_physical;

    if (room < pack->manifest.num_ranks)
        room = pack->manifest.num_ranks;
    *count = 0;
    *copies = mp_alloc(room, sizeof **copies);
    if (!slots || !*copies) {
        free(slots);
        return mp_fail_memory(err);
    }
    if (!shared)
        *count = placed_copies(pack, layer, id, slots, *copies);
    else if (pack->num_sets == 1)
        *count = placed_copies(pack, layer, pack->slots.num_logical + id, slots, *copies);
    else
        for (; *count < pack->manifest.num_ranks; ++*count)
            (*copies)[*count] = (diff_copy){&pack->sets[1], &pack->ranks[*count], id};
    free(slots);
    return 0;
}
