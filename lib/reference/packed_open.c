/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a layer of a packed directory: manifest, placement, the ranks' files. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"
#include "reference/layer_router.h"
#include "reference/packed.h"

#define PLACEMENT_LIMIT (UINT64_C(1) << 30)

/* More than any model has, and small enough that sizes of tensors fit 64 bits. */
#define SIZE_LIMIT (1u << 20)

static bool shared_is(const mp_packed_experts *e, const char *mode)
{
    return strcmp(e->manifest.shared, mode) == 0;
}

/* ------------------------------------------------------------------------
 * What a rank holds
 */

static int find_target(const mp_packed_experts *e, const mp_target **target, mp_error *err)
{
    const mp_manifest *m = &e->manifest;

    *target = mp_target_find(m->target);
    if (*target && m->nz)
        *target = (*target)->nz;
    if (!*target || (*target)->version != m->target_version)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: this version does not know target %s/%" PRIu64,
                       MP_MANIFEST_NAME, m->target, m->target_version);
    if (!shared_is(e, "none") && !shared_is(e, "fused") && !shared_is(e, "separate"))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: this version does not know shared experts in mode \"%s\"",
                       MP_MANIFEST_NAME, m->shared);
    if (m->hidden_size > SIZE_LIMIT || m->moe_intermediate_size > SIZE_LIMIT ||
        m->num_shared_experts > SIZE_LIMIT)
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: sizes %" PRIu64 " and %" PRIu64 ", %" PRIu64 " shared experts: over %u",
                       MP_MANIFEST_NAME, m->hidden_size, m->moe_intermediate_size,
                       m->num_shared_experts, SIZE_LIMIT);
    return 0;
}

static int add_set(mp_packed_experts *e, const mp_target *target, const char *block, uint32_t slots,
                   mp_error *err)
{
    packed_ranks *ranks = e->ranks;
    packed_set *set = &ranks->sets[ranks->num_sets];
    mp_dims dims = {e->manifest.hidden_size, e->manifest.moe_intermediate_size};
    mp_problems warnings = {0};
    int rc = target->check(&dims, &warnings, err);

    mp_problems_release(&warnings);
    if (rc != 0)
        return mp_error_prefix(err, "%s", MP_MANIFEST_NAME);
    *set = (packed_set){.target = target, .dims = dims, .block = block, .slots = slots};
    set->first = ranks->num_sets ? ranks->sets[0].num_tensors : 0;
    set->num_tensors = target->describe(&set->dims, set->tensors);
    ranks->num_sets++;
    return 0;
}

static int settle_sets(mp_packed_experts *e, mp_error *err)
{
    const mp_manifest *m = &e->manifest;
    uint32_t shared = (uint32_t)m->num_shared_experts;
    const mp_target *target;
    int rc = find_target(e, &target, err);

    if (rc == 0)
        rc = mp_slots_init(&e->slots, (uint32_t)m->num_experts, (uint32_t)m->num_physical,
                           (uint32_t)m->ep_size, shared_is(e, "fused") ? shared : 0, false, err);
    if (rc == 0)
        rc = add_set(e, target, "experts", mp_slots_per_rank(&e->slots), err);
    if (rc != 0 || !shared_is(e, "separate"))
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

static int read_placement(mp_packed_experts *e, const char *dir, mp_error *err)
{
    char *path = mp_path_join(dir, MP_PLACEMENT_NAME), *text = NULL;
    uint64_t length;
    int rc = path ? mp_read_text(path, PLACEMENT_LIMIT, &text, &length, err) : mp_fail_memory(err);

    free(path);
    if (rc != 0)
        return rc;
    rc = mp_placement_parse(&e->placement, text, length, e->slots.num_logical, err);
    free(text);
    if (rc == 0 && e->placement.num_physical != e->slots.num_physical)
        rc = mp_fail(err, MP_ERR_INPUT, "%u physical experts, the manifest says %u",
                     e->placement.num_physical, e->slots.num_physical);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", MP_PLACEMENT_NAME);
}

static int check_tensor(const packed_set *set, const mp_slot_tensor *wanted,
                        const mp_tensor *tensor, mp_error *err)
{
    char shape[MP_SHAPE_TEXT];
    uint64_t slots = set->target->single ? 1 : set->slots;

    if (tensor->dtype == wanted->dtype && tensor->bytes / slots == wanted->slot_bytes &&
        tensor->bytes % slots == 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "%s: %s %s, expected %s with %" PRIu64 " bytes for each of %" PRIu64 " slots",
                   tensor->name, mp_dtype_name(tensor->dtype),
                   mp_shape_text(tensor->shape, tensor->rank, shape), mp_dtype_name(wanted->dtype),
                   wanted->slot_bytes, slots);
}

static int find_tensors(const packed_set *set, const char *layer, packed_rank *rank, mp_error *err)
{
    for (unsigned t = 0; t < set->num_tensors; t++) {
        const mp_slot_tensor *wanted = &set->tensors[t];
        char *name = mp_format("%s.%s.%s", layer, set->block, wanted->name);
        const mp_tensor *tensor = name ? mp_checkpoint_find(&rank->checkpoint, name) : NULL;
        int rc = name ? 0 : mp_fail_memory(err);

        if (rc == 0 && !tensor && !wanted->optional)
            rc = mp_fail(err, MP_ERR_INPUT, "there is no tensor \"%s\"", name);
        if (rc == 0 && tensor)
            rc = check_tensor(set, wanted, tensor, err);
        free(name);
        if (rc != 0)
            return rc;
        rank->held[set->first + t] = tensor;
    }
    return 0;
}

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
        rc = find_tensors(&ranks->sets[s], e->layer, rank, err);
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
        rc = read_placement(e, dir, err);
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
