/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a pack: its manifest, placement and ranks, and the tensors that layers have there. */
#include "write/unpack.h"

#include "base/error.h"
#include "base/file.h"
#include "pack/manifest.h"
#include "run/sidecar.h"

#include <stdlib.h>
#include <string.h>

/* More than any model has, and small enough that sizes of tensors fit 64 bits. */
#define SIZE_MOST  (1u << 20)
#define TEXT_LIMIT (1u << 30)

static int load_manifest(mp_unpack_plan *plan, mp_error *err)
{
    struct mp_unpack_source *source = plan->source;
    char *text;
    uint64_t length;

    int rc = mp_manifest_read(source->dir, &text, &length, err);
    if (rc != 0)
        return rc;
    mp_hex_digest_of(text, length, source->manifest_xxh3);
    rc = mp_manifest_parse(&plan->manifest, text, length, err);
    /* What does not fit its own digest is no input. */
    if (rc == MP_ERR_CHECK)
        rc =
            mp_fail(err, MP_ERR_INPUT, "%s: does not fit its digest: run verify", MP_MANIFEST_NAME);
    free(text);
    return rc;
}

static const mp_target *find_target(const mp_manifest *m, mp_error *err)
{
    const mp_target *target = mp_target_find(m->target);

    if (target && m->nz)
        target = target->nz;
    if (!target || m->target_version != target->version) {
        mp_fail(err, MP_ERR_UNSUPPORTED, "%s: this version does not know target %s/%llu%s",
                MP_MANIFEST_NAME, m->target, (unsigned long long)m->target_version,
                m->nz ? " in FRACTAL_NZ form" : "");
        return NULL;
    }
    return target;
}

/* ------------------------------------------------------------------------
 * Parts and slots
 */

static int settle_part(struct mp_unpack_source *source, mp_part_kind kind, const mp_target *target,
                       mp_dims dims, uint32_t slots, mp_error *err)
{
    mp_plan_part *part = &source->parts[kind];
    mp_problems warnings = {0};
    int rc = target->check(&dims, &warnings, err);

    mp_problems_release(&warnings);
    if (rc != 0)
        return mp_error_prefix(err, "%s", MP_MANIFEST_NAME);
    part->target = target;
    part->dims = dims;
    part->slots = slots;
    part->first = source->num_tensors;
    part->num_tensors = target->describe(&dims, part->tensors);
    source->num_tensors += part->num_tensors;
    return 0;
}

static int check_sizes(const mp_manifest *m, mp_error *err)
{
    if (m->hidden_size <= SIZE_MOST && m->moe_intermediate_size <= SIZE_MOST &&
        m->num_experts <= SIZE_MOST &&
        m->num_shared_experts <= SIZE_MOST / (m->moe_intermediate_size + 1))
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "%s: sizes %llu and %llu, %llu experts, %llu shared: more than %u",
                   MP_MANIFEST_NAME, (unsigned long long)m->hidden_size,
                   (unsigned long long)m->moe_intermediate_size, (unsigned long long)m->num_experts,
                   (unsigned long long)m->num_shared_experts, SIZE_MOST);
}

static int settle_parts(struct mp_unpack_source *source, const mp_target *target, mp_error *err)
{
    const mp_manifest *m = source->manifest;
    const mp_target *apart = target->separate;
    bool fused = m->shared == MP_SHARED_FUSED;
    bool separate = m->shared == MP_SHARED_SEPARATE;
    uint32_t shared = (uint32_t)m->num_shared_experts;
    mp_dims dims = {m->hidden_size, m->moe_intermediate_size};

    if (check_sizes(m, err) != 0)
        return err->code;
    if ((fused || separate) && (shared == 0 || !m->shared_form))
        return mp_fail(err, MP_ERR_INPUT, "%s: shared experts are %s, but it does not say %s",
                       MP_MANIFEST_NAME, mp_shared_mode_name(m->shared),
                       shared ? "their form" : "how many");
    if (mp_slots_init(&source->slots, (uint32_t)m->num_experts, (uint32_t)m->num_physical,
                      (uint32_t)m->ep_size, fused ? shared : 0, false, err) != 0 ||
        settle_part(source, MP_PART_SLOTS, target, dims, mp_slots_per_rank(&source->slots), err) !=
            0)
        return err->code;
    if (!separate)
        return 0;
    if (apart->single)
        dims.intermediate_size *= shared;
    return settle_part(source, MP_PART_SHARED, apart, dims, apart->single ? 1 : shared, err);
}

static int load_placement(struct mp_unpack_source *source, mp_error *err)
{
    const mp_manifest *m = source->manifest;
    char *path = mp_path_join(source->dir, MP_PLACEMENT_NAME), *text = NULL;
    mp_hex_digest hex;
    uint64_t length;
    int rc = path ? mp_read_text(path, TEXT_LIMIT, &text, &length, err) : mp_fail_memory(err);

    if (rc == 0) {
        mp_hex_digest_of(text, length, hex);
        if (strcmp(hex, m->placement_xxh3) != 0)
            rc = mp_fail(err, MP_ERR_INPUT, "%s: digest %s, %s says %s", MP_PLACEMENT_NAME, hex,
                         MP_MANIFEST_NAME, m->placement_xxh3);
        else
            rc =
                mp_placement_parse(&source->placement, text, length, (uint32_t)m->num_experts, err);
    }
    if (rc == 0 && (source->placement.num_physical != m->num_physical ||
                    source->placement.layers != m->num_layers))
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %u layers of %u physical experts, %s says %zu of %llu",
                     MP_PLACEMENT_NAME, source->placement.layers, source->placement.num_physical,
                     MP_MANIFEST_NAME, m->num_layers, (unsigned long long)m->num_physical);
    free(text);
    free(path);
    return rc;
}

/* ------------------------------------------------------------------------
 * Ranks
 */

/* Ranks may be missing: on another machine, say. */
static int open_ranks(struct mp_unpack_source *source, const mp_context *context, mp_error *err)
{
    const mp_manifest *m = source->manifest;

    source->ranks = mp_alloc_zeroed(m->num_ranks, sizeof *source->ranks);
    if (!source->ranks)
        return mp_fail_memory(err);
    for (size_t r = 0; r < m->num_ranks; r++) {
        mp_unpack_rank *rank = &source->ranks[source->num_ranks];
        char name[MP_RANK_NAME_MAX];
        char *path = mp_path_join(source->dir, mp_rank_name(m->ranks[r].rank, name));
        int rc = 0;

        if (!path)
            return mp_fail_memory(err);
        if (mp_path_exists(path)) {
            rank->number = m->ranks[r].rank;
            source->num_ranks++;
            rc = mp_checkpoint_open(&rank->tensors, path, context, err);
        }
        free(path);
        if (rc != 0)
            return mp_error_prefix(err, "%s", name);
    }
    if (source->num_ranks == 0)
        return mp_fail(err, MP_ERR_INPUT, "\"%s\": none of the %zu ranks is here", source->dir,
                       m->num_ranks);
    return 0;
}

/* ------------------------------------------------------------------------
 * Tensors
 */

const mp_tensor *mp_unpack_packed(const struct mp_unpack_source *source, uint32_t layer,
                                  uint32_t rank, unsigned tensor)
{
    return source
        ->packed[((uint64_t)layer * source->num_ranks + rank) * source->num_tensors + tensor];
}

const mp_slot_tensor *mp_part_tensor(const mp_plan_part *part, mp_side side, mp_role role)
{
    for (unsigned t = 0; t < part->num_tensors; t++)
        if (part->tensors[t].side == side && part->tensors[t].role == role)
            return &part->tensors[t];
    return NULL;
}

static int find_tensor(const mp_unpack_rank *rank, const mp_plan_part *part,
                       const mp_slot_tensor *tensor, const char *prefix, const char *block,
                       const mp_tensor **found, mp_error *err)
{
    char *name = mp_format("%s.%s.%s", prefix, block, tensor->name), dir[MP_RANK_NAME_MAX];
    const mp_tensor *t = name ? mp_checkpoint_find(&rank->tensors, name) : NULL;
    uint64_t bytes = tensor->slot_bytes * part->slots;
    int rc = 0;

    mp_rank_name(rank->number, dir);
    if (!name)
        rc = mp_fail_memory(err);
    else if (!t && !tensor->optional)
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %s: missing", dir, name);
    else if (t && (t->dtype != tensor->dtype || t->bytes != bytes))
        rc = mp_fail(err, MP_ERR_INPUT, "%s: %s: %llu bytes of %s, expected %llu of %s", dir, name,
                     (unsigned long long)t->bytes, mp_dtype_name(t->dtype),
                     (unsigned long long)bytes, mp_dtype_name(tensor->dtype));
    *found = t;
    free(name);
    return rc;
}

static int find_tensors(struct mp_unpack_source *source, mp_error *err)
{
    static const char *const blocks[MP_PARTS] = {"experts", "shared_experts"};
    const mp_manifest *m = source->manifest;
    uint64_t all;
    const mp_tensor **next;

    if (!mp_mul_u64((uint64_t)m->num_layers * source->num_tensors, source->num_ranks, &all))
        return mp_fail_memory(err);
    source->packed = next = mp_alloc(all, sizeof *source->packed);
    if (!next)
        return mp_fail_memory(err);
    for (size_t l = 0; l < m->num_layers; l++)
        for (size_t r = 0; r < source->num_ranks; r++)
            for (unsigned kind = 0; kind < MP_PARTS; kind++)
                for (unsigned t = 0; t < source->parts[kind].num_tensors; t++)
                    if (find_tensor(&source->ranks[r], &source->parts[kind],
                                    &source->parts[kind].tensors[t], m->layers[l], blocks[kind],
                                    next++, err) != 0)
                        return err->code;
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

int mp_unpack_open(mp_unpack_plan *plan, const char *dir, const mp_context *context, mp_error *err)
{
    struct mp_unpack_source *source = mp_alloc_zeroed(1, sizeof *source);
    const mp_target *target;

    if (!source)
        return mp_fail_memory(err);
    plan->source = source;
    source->manifest = &plan->manifest;
    source->dir = strdup(dir);
    if (!source->dir)
        return mp_fail_memory(err);
    if (load_manifest(plan, err) != 0)
        return err->code;
    target = find_target(&plan->manifest, err);
    if (!target)
        return MP_ERR_UNSUPPORTED;
    if (settle_parts(source, target, err) != 0 || load_placement(source, err) != 0 ||
        open_ranks(source, context, err) != 0)
        return err->code;
    return find_tensors(source, err);
}

void mp_unpack_close(struct mp_unpack_source *source)
{
    if (!source)
        return;
    for (size_t r = 0; r < source->num_ranks; r++)
        mp_checkpoint_release(&source->ranks[r].tensors);
    for (size_t l = 0; l < source->num_layers; l++)
        free(source->layers[l].where);
    mp_placement_release(&source->placement);
    free(source->dir);
    free(source->ranks);
    free(source->packed);
    free(source->layers);
    free(source->order);
    free(source->config);
    free(source->hf_quant_config);
    free(source);
}
