/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a plan: which tensors each holds, and its header, byte for byte. */
#include "pack/plan.h"

#include "base/error.h"

#include <moepack/artifact.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SHARD_SIZE 5000000000u
#define NOT_WRITTEN        UINT32_MAX

const mp_out_tensor *mp_plan_output(const mp_plan *plan, uint32_t layer, uint32_t rank,
                                    unsigned tensor)
{
    uint64_t at = ((uint64_t)layer * plan->options.ep + rank) * plan->num_tensors + tensor;
    uint32_t output = plan->output_of[at];

    return output == NOT_WRITTEN ? NULL : &plan->outputs[output];
}

static bool writes_rank(const mp_plan *plan, uint32_t rank)
{
    return !plan->options.ranks || plan->options.ranks[rank];
}

/* Room for all outputs, and for a file each, which there never are more of. */
static int reserve(mp_plan *plan, mp_error *err)
{
    uint64_t per_rank = (uint64_t)plan->num_layers * plan->num_tensors;
    uint64_t all;

    if (!mp_mul_u64(per_rank, plan->options.ep, &all) || all >= NOT_WRITTEN)
        return mp_fail(err, MP_ERR_USAGE, "%u ranks of %zu layers are too many tensors",
                       plan->options.ep, plan->num_layers);
    plan->outputs = mp_alloc_zeroed(all, sizeof *plan->outputs);
    plan->files = mp_alloc_zeroed(all, sizeof *plan->files);
    plan->output_of = mp_alloc(all, sizeof *plan->output_of);
    if (!plan->outputs || !plan->files || !plan->output_of)
        return mp_fail_memory(err);
    for (uint64_t i = 0; i < all; i++)
        plan->output_of[i] = NOT_WRITTEN;
    return 0;
}

/* Adds a layer's tensor of a rank; its file is settled later. */
static int add_output(mp_plan *plan, uint32_t rank, uint32_t layer, unsigned tensor, mp_error *err)
{
    const mp_slot_tensor *slot = &plan->tensors[tensor];
    mp_out_tensor *out = &plan->outputs[plan->num_outputs];
    uint64_t at = ((uint64_t)layer * plan->options.ep + rank) * plan->num_tensors + tensor;

    *out = (mp_out_tensor){.slot = slot, .layer = layer, .rank = rank};
    if (!mp_mul_u64(slot->slot_bytes, mp_slots_per_rank(&plan->slots), &out->bytes) ||
        out->bytes > INT64_MAX / 2)
        return mp_fail(err, MP_ERR_INPUT, "%s: slots of %llu bytes overflow a file",
                       plan->layers[layer].source->prefix, (unsigned long long)slot->slot_bytes);
    out->name = mp_format("%s.experts.%s", plan->layers[layer].source->prefix, slot->name);
    if (!out->name)
        return mp_fail_memory(err);
    plan->output_of[at] = (uint32_t)plan->num_outputs++;
    return 0;
}

/* Splits a rank's outputs into files of at most the shard size, a tensor never in two. */
static void split(mp_plan *plan, uint32_t rank, uint32_t first)
{
    uint64_t limit =
        plan->options.max_shard_size ? plan->options.max_shard_size : DEFAULT_SHARD_SIZE;
    mp_out_file *file = NULL;
    uint64_t filled = 0;

    for (uint32_t i = first; i < plan->num_outputs; i++) {
        mp_out_tensor *out = &plan->outputs[i];

        if (!file || filled + out->bytes > limit) {
            file = &plan->files[plan->num_files++];
            *file = (mp_out_file){.rank = rank, .first_tensor = i};
            filled = 0;
        }
        out->file = (uint32_t)(plan->num_files - 1);
        file->num_tensors++;
        filled += out->bytes;
    }
}

/* Shapes that the header gives: [G, shape of a slot]. */
static void specify(const mp_plan *plan, const mp_out_tensor *out, uint64_t shape[4],
                    mp_tensor_spec *spec)
{
    shape[0] = mp_slots_per_rank(&plan->slots);
    memcpy(shape + 1, out->slot->shape, out->slot->rank * sizeof shape[0]);
    *spec = (mp_tensor_spec){out->name, out->slot->dtype, out->slot->rank + 1, shape};
}

static int make_header(mp_plan *plan, mp_out_file *file, mp_error *err)
{
    mp_tensor_spec *specs = mp_alloc(file->num_tensors, sizeof *specs);
    uint64_t(*shapes)[4] = mp_alloc(file->num_tensors, sizeof *shapes);
    uint64_t *offsets = mp_alloc((uint64_t)file->num_tensors + 1, sizeof *offsets);
    char rank[16], ep[16];
    const char *metadata[] = {
        "format",         "moepack",
        "format_version", MP_FORMAT_VERSION,
        "target",         plan->options.target->name,
        "ep_rank",        rank,
        "ep_size",        ep,
    };
    int rc;

    snprintf(rank, sizeof rank, "%u", file->rank);
    snprintf(ep, sizeof ep, "%u", plan->options.ep);
    if (!specs || !shapes || !offsets) {
        rc = mp_fail_memory(err);
        goto out;
    }
    for (uint32_t i = 0; i < file->num_tensors; i++)
        specify(plan, &plan->outputs[file->first_tensor + i], shapes[i], &specs[i]);
    rc = mp_safetensors_header(specs, file->num_tensors, metadata, 5, MP_SAFETENSORS_ALIGN,
                               &file->header, &file->header_bytes, offsets, err);
    if (rc != 0)
        goto out;
    for (uint32_t i = 0; i < file->num_tensors; i++)
        plan->outputs[file->first_tensor + i].offset = offsets[i];
    file->bytes = offsets[file->num_tensors];
out:
    free(specs);
    free(shapes);
    free(offsets);
    return rc;
}

/* Names and headers of a rank's files; how many there are is in every name. */
static int name_files(mp_plan *plan, size_t first, mp_error *err)
{
    size_t count = plan->num_files - first;
    char rank[MP_RANK_NAME_MAX];

    for (size_t i = 0; i < count; i++) {
        mp_out_file *file = &plan->files[first + i];

        file->path = mp_format("%s/model-%05zu-of-%05zu.safetensors",
                               mp_rank_name(file->rank, rank), i + 1, count);
        if (!file->path)
            return mp_fail_memory(err);
        if (make_header(plan, file, err) != 0)
            return err->code;
    }
    return 0;
}

int mp_plan_files(mp_plan *plan, mp_error *err)
{
    if (reserve(plan, err) != 0)
        return err->code;
    for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
        uint32_t first_output = (uint32_t)plan->num_outputs;
        size_t first_file = plan->num_files;

        if (!writes_rank(plan, rank))
            continue;
        for (uint32_t layer = 0; layer < plan->num_layers; layer++)
            for (unsigned tensor = 0; tensor < plan->num_tensors; tensor++)
                if (add_output(plan, rank, layer, tensor, err) != 0)
                    return err->code;
        split(plan, rank, first_output);
        if (name_files(plan, first_file, err) != 0)
            return err->code;
    }
    return 0;
}
