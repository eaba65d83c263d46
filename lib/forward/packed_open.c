/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a layer of a packed directory: manifest, placement, the ranks' files. */
#include <stdlib.h>

#include "base/error.h"
#include "base/file.h"
#include "forward/layer_router.h"
#include "forward/packed.h"

/* ------------------------------------------------------------------------
 * What a rank holds
 */

static int add_set(mp_packed_experts *e, const mp_target *target, const char *block, uint32_t slots,
                   mp_error *err)
{
    packed_ranks *ranks = e->ranks;
    mp_dims dims = {e->manifest.hidden_size, e->manifest.moe_intermediate_size};
    unsigned first = ranks->num_sets ? ranks->sets[0].num_tensors : 0;
    int rc =
        mp_packed_set_init(&ranks->sets[ranks->num_sets], target, block, dims, slots, first, err);

    ranks->num_sets += rc == 0;
    return rc;
}

static int settle_sets(mp_packed_experts *e, mp_error *err)
{
    const mp_manifest *m = &e->manifest;
    uint32_t shared = (uint32_t)m->num_shared_experts;
    const mp_target *target;
    int rc = mp_packed_target(m, &target, err);

    if (rc == 0)
        rc = mp_slots_init(&e->slots, (uint32_t)m->num_experts, (uint32_t)m->num_physical,
                           (uint32_t)m->ep_size, (m->shared == MP_SHARED_FUSED) ? shared : 0, false,
                           err);
    if (rc == 0)
        rc = add_set(e, target, "experts", mp_slots_per_rank(&e->slots), err);
    if (rc != 0 || m->shared != MP_SHARED_SEPARATE)
        return rc;
    if (target->separate->single && shared != 1)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: %u shared experts in one tensor are not computed", MP_MANIFEST_NAME,
                       shared);
    e->apart = shared;
    return add_set(e, target->separate, "shared_experts", shared, err);
}

/* ------------------------------------------------------------------------
 * Files
 */

static int open_rank(mp_packed_experts *e, const char *dir, const mp_context *context,
                     mp_error *err)
{
    packed_ranks *ranks = e->ranks;
    packed_rank *rank = &ranks->ranks[ranks->open];
    char name[MP_RANK_NAME_MAX];
    char *path = mp_path_join(dir, mp_rank_name(ranks->open, name));
    int rc = path ? mp_checkpoint_open(&rank->checkpoint, path, context, err) : mp_fail_memory(err);

    free(path);
    if (rc != 0)
        return mp_error_prefix(err, "%s", name);
    ranks->open++;
    for (unsigned s = 0; rc == 0 && s < ranks->num_sets; s++)
        rc = mp_packed_set_find(&ranks->sets[s], e->layer, &rank->checkpoint, rank->held, err);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", name);
}

/* Ranks that are not wanted stay empty. */
static int open_ranks(mp_packed_experts *e, const char *dir, const bool *ranks_wanted,
                      const mp_context *context, mp_error *err)
{
    packed_ranks *ranks = e->ranks;
    int rc = 0;

    ranks->ranks = mp_alloc_zeroed(e->slots.ep, sizeof *ranks->ranks);
    if (!ranks->ranks)
        return mp_fail_memory(err);
    for (uint32_t r = 0; rc == 0 && r < e->slots.ep; r++) {
        if (!ranks_wanted || ranks_wanted[r])
            rc = open_rank(e, dir, context, err);
        else
            ranks->open++;
    }
    return rc;
}

static int open_layer(mp_packed_experts *e, const char *dir, const char *layer, const bool *ranks,
                      const mp_context *context, mp_error *err)
{
    size_t index = 0;
    int rc = mp_manifest_load(&e->manifest, dir, err);

    if (rc == 0)
        rc = mp_select_layer(layer, (const char *const *)e->manifest.layers, e->manifest.num_layers,
                             &index, err);
    if (rc == 0)
        rc = settle_sets(e, err);
    if (rc == 0)
        rc = mp_packed_placement(dir, &e->slots, &e->placement, err);
    if (rc != 0)
        return rc;
    e->layer = e->manifest.layers[index];
    e->row = mp_placement_row(&e->placement, (uint32_t)index);
    if (!e->row)
        return mp_fail(err, MP_ERR_INPUT, "%s: %u rows, layer %s is number %zu", MP_PLACEMENT_NAME,
                       e->placement.layers, e->layer, index);
    return open_ranks(e, dir, ranks, context, err);
}

int mp_packed_experts_open_ranks(mp_packed_experts *experts, const char *dir, const char *layer,
                                 const bool *ranks, const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    *experts = (mp_packed_experts){.ranks = mp_alloc_zeroed(1, sizeof(packed_ranks))};
    int rc =
        experts->ranks ? open_layer(experts, dir, layer, ranks, context, err) : mp_fail_memory(err);
    if (rc != 0) {
        mp_packed_experts_release(experts);
        return rc;
    }
    experts->source = mp_packed_source(experts);
    experts->source.tile_rows = mp_packed_tile_rows(experts);
    experts->source.scratch_bytes = mp_packed_scratch(experts);
    return 0;
}

int mp_packed_experts_open(mp_packed_experts *experts, const char *dir, const char *layer,
                           const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    return mp_packed_experts_open_ranks(experts, dir, layer, NULL, context, err);
}

void mp_packed_experts_release(mp_packed_experts *experts)
{
    packed_ranks *ranks = experts->ranks;

    for (uint32_t r = 0; ranks && r < ranks->open; r++)
        mp_checkpoint_release(&ranks->ranks[r].checkpoint);
    if (ranks)
        free(ranks->ranks);
    free(ranks);
    mp_manifest_release(&experts->manifest);
    mp_placement_release(&experts->placement);
    *experts = (mp_packed_experts){0};
}
