/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a repack: the tensors of every rank, layer after layer. */
#include "pack/shape.h"
#include "write/plan.h"

#include "base/error.h"
#include "numeric/forms.h"
#include "pack/manifest.h"
#include "run/work.h"
#include "write/check.h"

#include <moepack/artifact.h>

#include <stdio.h>

#define NOT_WRITTEN UINT32_MAX

/* Where the number of an output stands. */
static uint32_t *number_of(const mp_repack_plan *plan, uint32_t layer, uint32_t rank,
                           const mp_slot_set *set, const mp_slot_tensor *tensor)
{
    uint64_t row = (uint64_t)layer * plan->options.ep + rank;

    return &plan->output_of[row * plan->shape.num_tensors + mp_set_number(set, tensor)];
}

const mp_out_tensor *mp_plan_output(const mp_repack_plan *plan, uint32_t layer, uint32_t rank,
                                    const mp_slot_set *set, const mp_slot_tensor *tensor)
{
    uint32_t output = *number_of(plan, layer, rank, set, tensor);

    return output == NOT_WRITTEN ? NULL : &plan->work.outputs[output];
}

bool mp_holds_codes(const mp_target *target)
{
    return mp_scheme_row_bytes(target->scheme, 2) == 1;
}

static int reserve(mp_repack_plan *plan, mp_error *err)
{
    uint64_t all;

    if (!mp_mul_u64((uint64_t)plan->num_layers * plan->shape.num_tensors, plan->options.ep, &all) ||
        all >= NOT_WRITTEN)
        return mp_fail(err, MP_ERR_USAGE, "%u ranks of %zu layers are too many tensors",
                       plan->options.ep, plan->num_layers);
    plan->output_of = mp_alloc(all, sizeof *plan->output_of);
    if (!plan->output_of)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < all; i++)
        plan->output_of[i] = NOT_WRITTEN;
    return mp_work_reserve(&plan->work, all, err);
}

/* Adds one tensor of a layer on a rank: [slots, shape of a slot]. */
static int add_output(mp_repack_plan *plan, uint32_t rank, uint32_t layer, const mp_slot_set *set,
                      const mp_slot_tensor *tensor, mp_error *err)
{
    const char *prefix = plan->layers[layer].source->prefix;
    uint64_t shape[5], bytes;
    uint32_t dims = mp_slots_shape(set->target, tensor, set->slots, shape);

    if (!mp_mul_u64(tensor->slot_bytes, set->slots, &bytes) || bytes > INT64_MAX / 2)
        return mp_fail(err, MP_ERR_INPUT, "%s: slots of %llu bytes overflow a file", prefix,
                       (unsigned long long)tensor->slot_bytes);
    *number_of(plan, layer, rank, set, tensor) = (uint32_t)plan->work.num_outputs;
    plan->work.outputs[plan->work.num_outputs].codes =
        tensor->role == MP_ROLE_WEIGHT && mp_holds_codes(set->target);
    return mp_work_add(
        &plan->work, mp_format("%s.%s.%s", prefix, set->block, tensor->name), tensor->dtype, shape,
        dims, layer * plan->layer_stages + (plan->layer_stages > 1 ? tensor->side : 0), err);
}

static int add_layer(mp_repack_plan *plan, uint32_t rank, uint32_t layer, mp_error *err)
{
    for (unsigned s = 0; s < plan->shape.num_sets; s++) {
        const mp_slot_set *set = &plan->shape.sets[s];

        for (unsigned t = 0; t < set->num_tensors; t++) {
            bool has;

            if (mp_check_optional(plan, &plan->layers[layer], set, &set->tensors[t], &has, err) !=
                0)
                return err->code;
            if (has && add_output(plan, rank, layer, set, &set->tensors[t], err) != 0)
                return err->code;
        }
    }
    return 0;
}

static int make_files(mp_repack_plan *plan, uint32_t rank, uint64_t first, mp_error *err)
{
    char dir[MP_RANK_NAME_MAX], number[16], ep[16];
    const char *const metadata[] = {
        "format",         "moepack",
        "format_version", MP_FORMAT_VERSION,
        "target",         plan->options.target->name,
        "ep_rank",        number,
        "ep_size",        ep,
    };

    snprintf(number, sizeof number, "%u", rank);
    snprintf(ep, sizeof ep, "%u", plan->options.ep);
    plan->work.zstd = plan->options.zstd;
    plan->work.part = plan->options.part;
    plan->work.sha256 = plan->options.sha256;
    return mp_work_files(&plan->work, first, mp_rank_name(rank, dir), plan->options.max_shard_size,
                         metadata, sizeof metadata / sizeof metadata[0] / 2, err);
}

int mp_plan_files(mp_repack_plan *plan, mp_error *err)
{
    if (reserve(plan, err) != 0)
        return err->code;
    for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
        uint64_t first = plan->work.num_outputs;

        if (plan->ranks_chosen && !plan->ranks_chosen[rank])
            continue;
        for (uint32_t layer = 0; layer < plan->num_layers; layer++)
            if (add_layer(plan, rank, layer, err) != 0)
                return err->code;
        if (make_files(plan, rank, first, err) != 0)
            return err->code;
    }
    return 0;
}
