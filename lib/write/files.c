/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a repack: the tensors of every rank, layer after layer. */
#include "write/plan.h"

#include "base/error.h"
#include "run/work.h"
#include "write/check.h"

#include <moepack/artifact.h>

#include <stdio.h>

#define NOT_WRITTEN UINT32_MAX

static uint64_t place_of(const mp_plan *plan, uint32_t layer, uint32_t rank, unsigned tensor)
{
    return ((uint64_t)layer * plan->options.ep + rank) * plan->num_tensors + tensor;
}

const mp_out_tensor *mp_plan_output(const mp_plan *plan, uint32_t layer, uint32_t rank,
                                    unsigned tensor)
{
    uint32_t output = plan->output_of[place_of(plan, layer, rank, tensor)];

    return output == NOT_WRITTEN ? NULL : &plan->work.outputs[output];
}

static int reserve(mp_plan *plan, mp_error *err)
{
    uint64_t all;

    if (!mp_mul_u64((uint64_t)plan->num_layers * plan->num_tensors, plan->options.ep, &all) ||
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
static int add_output(mp_plan *plan, mp_part_kind kind, uint32_t rank, uint32_t layer, unsigned t,
                      mp_error *err)
{
    const mp_plan_part *part = &plan->parts[kind];
    const mp_slot_tensor *tensor = &part->tensors[t];
    const char *prefix = plan->layers[layer].source->prefix;
    uint64_t shape[5], bytes;
    uint32_t dims = mp_slots_shape(part->target, tensor, part->slots, shape);

    if (!mp_mul_u64(tensor->slot_bytes, part->slots, &bytes) || bytes > INT64_MAX / 2)
        return mp_fail(err, MP_ERR_INPUT, "%s: slots of %llu bytes overflow a file", prefix,
                       (unsigned long long)tensor->slot_bytes);
    plan->output_of[place_of(plan, layer, rank, part->first + t)] =
        (uint32_t)plan->work.num_outputs;
    return mp_work_add(&plan->work,
                       mp_format("%s.%s.%s", prefix,
                                 kind == MP_PART_SHARED ? "shared_experts" : "experts",
                                 tensor->name),
                       tensor->dtype, shape, dims, layer, err);
}

static int add_layer(mp_plan *plan, uint32_t rank, uint32_t layer, mp_error *err)
{
    for (unsigned kind = 0; kind < MP_PARTS; kind++) {
        const mp_plan_part *part = &plan->parts[kind];

        for (unsigned t = 0; t < part->num_tensors; t++) {
            bool has;

            if (mp_check_optional(plan, &plan->layers[layer], (mp_part_kind)kind, &part->tensors[t],
                                  &has, err) != 0)
                return err->code;
            if (has && add_output(plan, (mp_part_kind)kind, rank, layer, t, err) != 0)
                return err->code;
        }
    }
    return 0;
}

static int make_files(mp_plan *plan, uint32_t rank, uint64_t first, mp_error *err)
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
    return mp_work_files(&plan->work, first, mp_rank_name(rank, dir), plan->options.max_shard_size,
                         metadata, sizeof metadata / sizeof metadata[0] / 2, err);
}

int mp_plan_files(mp_plan *plan, mp_error *err)
{
    if (reserve(plan, err) != 0)
        return err->code;
    for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
        uint64_t first = plan->work.num_outputs;

        if (plan->options.ranks && !plan->options.ranks[rank])
            continue;
        for (uint32_t layer = 0; layer < plan->num_layers; layer++)
            if (add_layer(plan, rank, layer, err) != 0)
                return err->code;
        if (make_files(plan, rank, first, err) != 0)
            return err->code;
    }
    return 0;
}
