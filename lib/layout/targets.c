/* SPDX-License-Identifier: Apache-2.0 */
/* The table of targets, and what all of them have in common. */
#include "layout/targets.h"

#include "base/error.h"
#include "layout/sides.h"
#include "numeric/forms.h"

#include <string.h>

static const mp_target *const targets[] = {
    &mp_target_megamoe_w4a8,  &mp_target_megamoe_w4a4, &mp_target_megamoe_w4a4_g8,
    &mp_target_megamoe_nvfp4, &mp_target_megamoe_bf16, &mp_target_megamoe_sm90_fp8,
    &mp_target_fuseep_1,      &mp_target_fuseep_2,     &mp_target_deepep_bf16,
};

#define COUNT (sizeof targets / sizeof targets[0])

const mp_target *const *mp_targets(size_t *count)
{
    *count = COUNT;
    return targets;
}

const mp_target *mp_target_find(const char *name)
{
    for (size_t i = 0; i < COUNT; i++)
        if (strcmp(targets[i]->name, name) == 0)
            return targets[i];
    return NULL;
}

uint64_t mp_side_rows(const mp_dims *dims, mp_side side)
{
    return side == MP_L1 ? dims->intermediate_size : dims->hidden_size;
}

uint64_t mp_side_cols(const mp_dims *dims, mp_side side)
{
    return side == MP_L1 ? dims->hidden_size : dims->intermediate_size;
}

uint64_t mp_target_scale_rows(const mp_target *target, const mp_dims *dims, mp_side side)
{
    const mp_scheme_form *form = mp_scheme_form_of(target->scheme);

    return form->has_scale ? mp_ceil_div(mp_side_rows(dims, side), form->block_rows) : 0;
}

uint64_t mp_target_scale_row_bytes(const mp_target *target, const mp_dims *dims, mp_side side)
{
    const mp_scheme_form *form = mp_scheme_form_of(target->scheme);
    uint64_t per_row = form->block_cols == UINT32_MAX
                           ? 1
                           : mp_ceil_div(mp_side_cols(dims, side), form->block_cols);

    return form->has_scale ? per_row * mp_dtype_bits(form->scale_dtype) / 8 : 0;
}

mp_slot_tensor mp_slot_tensor_of(const char *name, mp_side side, mp_role role, mp_dtype dtype,
                                 uint32_t rank, const uint64_t *shape)
{
    mp_slot_tensor tensor = {
        .name = name, .side = side, .role = role, .dtype = dtype, .rank = rank};

    tensor.slot_bytes = mp_dtype_bits(dtype) / 8;
    for (uint32_t i = 0; i < rank; i++) {
        tensor.shape[i] = shape[i];
        tensor.slot_bytes *= shape[i];
    }
    return tensor;
}

uint32_t mp_slots_shape(const mp_target *target, const mp_slot_tensor *tensor, uint64_t slots,
                        uint64_t shape[5])
{
    uint32_t skip = tensor->flat || target->single ? 0 : 1;

    shape[0] = slots;
    memcpy(shape + skip, tensor->shape, tensor->rank * sizeof shape[0]);
    if (tensor->flat)
        shape[0] *= slots;
    return tensor->rank + skip;
}

static int check_size(const mp_size_rule *rule, const char *what, uint64_t size, uint64_t of,
                      mp_problems *warnings, mp_error *err)
{
    if (size == 0 && of == 1)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: %s is 0, the kernel takes 1 or more",
                       rule->target, what);
    if (size == 0 || size % of != 0)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: %s is %llu, the kernel takes multiples of %llu", rule->target, what,
                       (unsigned long long)size, (unsigned long long)of);
    if (rule->sglang_of && size % rule->sglang_of != 0)
        mp_problem(warnings, "%s: %s is %llu, SGLang takes multiples of %llu only", rule->target,
                   what, (unsigned long long)size, (unsigned long long)rule->sglang_of);
    return 0;
}

int mp_size_rule_check(const mp_size_rule *rule, const mp_dims *dims, mp_problems *warnings,
                       mp_error *err)
{
    int rc = check_size(rule, "hidden size", dims->hidden_size, rule->hidden_of, warnings, err);

    return rc ? rc
              : check_size(rule, "expert intermediate size", dims->intermediate_size,
                           rule->intermediate_of, warnings, err);
}

void mp_weight_unchanged(const mp_dims *dims, mp_side side, const mp_tile *tile,
                         const uint8_t *const in[2], uint8_t *out)
{
    (void)dims;
    (void)side;
    memcpy(out, in[0], tile->bytes);
}

void mp_weight_restored(const mp_dims *dims, mp_side side, const mp_tile *tile, const uint8_t *in,
                        uint8_t *const out[2])
{
    (void)dims;
    (void)side;
    memcpy(out[0], in, tile->bytes);
}
