/* SPDX-License-Identifier: Apache-2.0 */
/* What of a checkpoint a target takes, and that nothing is left behind silently.
 *
 * A slot has places for the tensors of its target and no others. Everything that an expert has is
 * held against these before a byte is written: what passes through, what has to be requantized and
 * may be, and what has no place and has to be dropped by name. A pack that lacks a bias computes
 * something else, so that is an error which names the option, never a warning.
 *
 * Experts of a layer are stored alike (the catalog sees to that), but optional tensors are looked
 * at expert by expert, since a layer of a pack has one for all of its slots or for none. One
 * thread, before the plan. */
#include "write/check.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "checkpoint/rules.h"
#include "experts/canonical.h"
#include "write/plan.h"

#include <string.h>

/* What of an expert may be left behind. */
#define DROPPABLE \
    (MP_ROLE_BIT(MP_ROLE_BIAS) | MP_ROLE_BIT(MP_ROLE_INPUT_SCALE) | MP_ROLE_BIT(MP_ROLE_OFFSET))

int mp_check_options(mp_repack_plan *plan, mp_error *err)
{
    const mp_repack_options *options = &plan->options;

    /* The plan has put the other form of the target in its place where there is one. */
    if (options->nz && mp_target_find(options->target->name) == options->target)
        return mp_fail(err, MP_ERR_USAGE, "%s has no FRACTAL_NZ form", options->target->name);
    if (options->alphas == MP_ALPHAS_FP4XFP4 &&
        mp_target_find(options->target->name) == options->target)
        return mp_fail(err, MP_ERR_USAGE, "%s has no alphas: --alphas is for megamoe-nvfp4",
                       options->target->name);
    if (options->quantize && options->quantize_to != options->target->scheme)
        return mp_fail(err, MP_ERR_USAGE, "%s takes %s, not %s", options->target->name,
                       mp_scheme_name(options->target->scheme),
                       mp_scheme_name(options->quantize_to));
    if (options->shared != MP_SHARED_NONE && plan->catalog->num_shared_experts == 0)
        return mp_fail(err, MP_ERR_USAGE, "the model has no shared experts: --shared none");
    if (options->shared == MP_SHARED_FUSED &&
        mp_layer_check_fusable(plan->catalog, &plan->catalog->layers[0], err) != 0)
        return err->code;
    if (mp_role_set_parse(options->drop, DROPPABLE, &plan->drop, err) != 0)
        return mp_error_prefix(err, "drop");
    if (options->alphas == MP_ALPHAS_FP4XFP4 && (plan->drop & MP_ROLE_BIT(MP_ROLE_INPUT_SCALE)))
        return mp_fail(err, MP_ERR_USAGE,
                       "--alphas fp4xfp4 folds input scales in: they cannot be dropped");
    return 0;
}

/* ------------------------------------------------------------------------
 * Experts
 */

static const char *reason(const mp_target *target)
{
    return target->scheme == MP_SCHEME_INT8_CHANNEL ? " (the kernel takes INT8 only)" : "";
}

/* A scale that would be cut where a target is made from columns. */
static int check_blocks(const mp_target *target, const mp_moe_layer *layer, mp_error *err)
{
    const mp_dims dims = {1, 1};
    uint32_t block = layer->storage.block_cols;

    for (unsigned side = 0; side < MP_SIDES; side++) {
        mp_tiling tiling = target->tiling(&dims, (mp_side)side);

        /* A tile of columns is requantized by itself, and needs its scales whole. */
        if (tiling.kind == MP_TILES_COLS && block != UINT32_MAX && tiling.group % block != 0)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: %s is made from columns in groups of %llu, and the scales of %s "
                           "span %u",
                           layer->prefix, target->name, (unsigned long long)tiling.group,
                           layer->prefix, block);
    }
    return 0;
}

static int check_scheme(const mp_repack_options *options, const mp_moe_layer *layer, mp_error *err)
{
    const mp_target *target = options->target;
    const char *scheme = mp_scheme_name(target->scheme);
    const mp_storage *storage = &layer->storage;

    if (mp_passes_through(storage, target))
        return 0;
    if (options->quantize)
        return check_blocks(target, layer, err);
    if (storage->scheme == target->scheme)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s takes %s in blocks of its own size, and the experts of %s are in blocks "
                       "of %ux%u: requantize them with --quantize %s",
                       target->name, scheme, layer->prefix, storage->block_rows,
                       storage->block_cols, scheme);
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s takes %s, and the experts of %s are %s%s: requantize them with "
                   "--quantize %s",
                   target->name, scheme, layer->prefix, mp_scheme_name(storage->scheme),
                   reason(target), scheme);
}

static int refuse_tensor(const mp_repack_plan *plan, const mp_target *target,
                         const mp_matrix *matrix, mp_role role, mp_error *err)
{
    const mp_tensor *tensor = mp_matrix_tensor(matrix, role);

    if (!tensor || (plan->drop & MP_ROLE_BIT(role)))
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s cannot hold it: drop it with --drop %s",
                   tensor->name, target->name, mp_role_name(role));
}

/* Whether the tensors of a target have a place for the expert's vectors of a role. */
static bool carries(const mp_target *target, const mp_dims *dims, const mp_storage *storage,
                    const mp_expert *expert, mp_role role, mp_side side)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    unsigned count = target->describe(dims, tensors);

    for (unsigned t = 0; t < count; t++)
        if (tensors[t].role == role && tensors[t].side == side &&
            mp_passes_through(storage, target) && mp_has_vector(storage, expert, &tensors[t]))
            return true;
    return false;
}

/* Nothing of an expert is left behind silently. Zero points of what is requantized take part
 * in its values. */
static int check_carried(const mp_repack_plan *plan, const mp_target *target,
                         const mp_storage *storage, const mp_expert *expert, mp_error *err)
{
    const mp_dims dims = {plan->catalog->hidden_size, plan->catalog->moe_intermediate_size};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        const mp_matrix *matrix = &expert->matrix[p];
        mp_side side = p == MP_DOWN ? MP_L2 : MP_L1;

        if (refuse_tensor(plan, target, matrix, MP_ROLE_BIAS, err) != 0)
            return err->code;
        if (!carries(target, &dims, storage, expert, MP_ROLE_INPUT_SCALE, side) &&
            refuse_tensor(plan, target, matrix, MP_ROLE_INPUT_SCALE, err) != 0)
            return err->code;
        if (mp_passes_through(storage, target) &&
            !carries(target, &dims, storage, expert, MP_ROLE_OFFSET, side) &&
            refuse_tensor(plan, target, matrix, MP_ROLE_OFFSET, err) != 0)
            return err->code;
    }
    return 0;
}

/* What is folded into an alpha has to be there. */
static int check_folded(const mp_target *target, const mp_storage *storage, const mp_expert *expert,
                        mp_error *err)
{
    const mp_matrix *matrix = expert->matrix;

    if (mp_target_find(target->name)->fp4xfp4 != target)
        return 0;
    /* Only alphas of L1 have something folded in. */
    for (int p = MP_GATE; p <= MP_UP; p++)
        if (!matrix[p].input_scale || !mp_passes_through(storage, target))
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s: no input scale that --alphas fp4xfp4 could fold in: leave it out",
                           matrix[p].weight->name);
    return 0;
}

void mp_check_activation(mp_repack_plan *plan)
{
    const mp_target *target = plan->options.target;

    for (size_t i = 0; i < plan->num_layers && strncmp(target->name, "deepep", 6) != 0; i++) {
        const mp_moe_layer *layer = plan->layers[i].source;
        const char *act = mp_config_foreign_act(&plan->catalog->config, layer->number);

        if (!act)
            continue;
        mp_problem(&plan->warnings, "%s: the kernel of %s does not compute activation %s",
                   layer->prefix, target->name, act);
        /* Said once: it is the same in every layer. */
        return;
    }
}

int mp_check_layer(const mp_repack_plan *plan, const mp_moe_layer *layer, mp_error *err)
{
    int rc = check_scheme(&plan->options, layer, err);

    for (uint32_t e = 0; e < layer->num_experts && rc == 0; e++) {
        rc = check_folded(plan->options.target, &layer->storage, &layer->experts[e], err);
        if (rc == 0)
            rc =
                check_carried(plan, plan->options.target, &layer->storage, &layer->experts[e], err);
    }
    return rc;
}

int mp_check_shared(const mp_repack_plan *plan, const mp_slot_set *set, const mp_moe_layer *layer,
                    mp_error *err)
{
    const mp_storage *storage = &layer->shared_storage;

    if (!layer->has_shared)
        return mp_fail(
            err, MP_ERR_UNSUPPORTED,
            "%s: no shared expert, other layers have one: leave it out with --layers, or "
            "--shared none",
            layer->prefix);
    if (!mp_passes_through(storage, set->target) && !plan->options.requantize_shared)
        return mp_fail(
            err, MP_ERR_UNSUPPORTED,
            "%s: the shared expert is %s, and %s takes %s%s, which loses precision: allow "
            "that with --requantize-shared, or leave it to the engine with --shared none",
            layer->prefix, mp_scheme_name(storage->scheme), set->target->name,
            mp_scheme_name(set->target->scheme), reason(set->target));
    if (set->target == plan->options.target &&
        check_folded(set->target, storage, &layer->shared, err) != 0)
        return err->code;
    return check_carried(plan, set->target, storage, &layer->shared, err);
}

/* ------------------------------------------------------------------------
 * Optional tensors
 */

int mp_check_optional(const mp_repack_plan *plan, const mp_plan_layer *layer,
                      const mp_slot_set *set, const mp_slot_tensor *tensor, bool *has,
                      mp_error *err)
{
    const mp_moe_layer *source = layer->source;
    uint32_t all = 0, count = 0;

    *has = !tensor->optional;
    if (!tensor->optional || (plan->drop & MP_ROLE_BIT(mp_role_source(tensor->role))))
        return 0;
    for (uint32_t id = 0; id < plan->shape.num_ids; id++) {
        bool routed = id < source->num_experts;
        const mp_storage *storage = routed ? &source->storage : &source->shared_storage;
        const mp_expert *expert =
            routed ? &source->experts[id] : &layer->shared[id - source->num_experts];

        if (mp_shape_set(&plan->shape, id) != set)
            continue;
        all++;
        count += mp_passes_through(storage, set->target) && mp_has_vector(storage, expert, tensor);
    }
    *has = count > 0;
    if (count == 0 || count == all)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: %u of %u experts have what %s holds: drop it, or "
                   "leave the layer out with --layers",
                   source->prefix, count, all, tensor->name);
}
