/* SPDX-License-Identifier: Apache-2.0 */
/* What a rank of a packed directory holds of a layer, and where experts are placed. */
#include "forward/packed_set.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/file.h"

#define PLACEMENT_LIMIT (UINT64_C(1) << 30)

/* More than any model has, and small enough that sizes of tensors fit 64 bits. */
#define SIZE_LIMIT (1u << 20)

int mp_packed_target(const mp_manifest *m, const mp_target **target, mp_error *err)
{
    *target = mp_target_find(m->target);
    if (*target && m->nz)
        *target = (*target)->nz;
    if (!*target || (*target)->version != m->target_version)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "%s: this version does not know target %s/%" PRIu64,
                       MP_MANIFEST_NAME, m->target, m->target_version);
    if (m->hidden_size > SIZE_LIMIT || m->moe_intermediate_size > SIZE_LIMIT ||
        m->num_shared_experts > SIZE_LIMIT / (m->moe_intermediate_size + 1))
        return mp_fail(err, MP_ERR_INPUT,
                       "%s: sizes %" PRIu64 " and %" PRIu64 ", %" PRIu64 " shared experts: over %u",
                       MP_MANIFEST_NAME, m->hidden_size, m->moe_intermediate_size,
                       m->num_shared_experts, SIZE_LIMIT);
    return 0;
}

int mp_packed_set_init(packed_set *set, const mp_target *target, const char *block, mp_dims dims,
                       uint32_t slots, unsigned first, mp_error *err)
{
    mp_problems warnings = {0};
    int rc = target->check(&dims, &warnings, err);

    mp_problems_release(&warnings);
    if (rc != 0)
        return mp_error_prefix(err, "%s", MP_MANIFEST_NAME);
    *set = (packed_set){
        .target = target, .dims = dims, .block = block, .slots = slots, .first = first};
    set->num_tensors = target->describe(&set->dims, set->tensors);
    return 0;
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

int mp_packed_set_find(const packed_set *set, const char *layer, const mp_checkpoint *ckpt,
                       const mp_tensor **held, mp_error *err)
{
    for (unsigned t = 0; t < set->num_tensors; t++) {
        const mp_slot_tensor *wanted = &set->tensors[t];
        char *name = mp_format("%s.%s.%s", layer, set->block, wanted->name);
        const mp_tensor *tensor = name ? mp_checkpoint_find(ckpt, name) : NULL;
        int rc = name ? 0 : mp_fail_memory(err);

        if (rc == 0 && !tensor && !wanted->optional)
            rc = mp_fail(err, MP_ERR_INPUT, "there is no tensor \"%s\"", name);
        if (rc == 0 && tensor)
            rc = check_tensor(set, wanted, tensor, err);
        free(name);
        if (rc != 0)
            return rc;
        held[set->first + t] = tensor;
    }
    return 0;
}

int mp_packed_placement(const char *dir, const mp_slots *slots, mp_placement *placement,
                        mp_error *err)
{
    char *path = mp_path_join(dir, MP_PLACEMENT_NAME), *text = NULL;
    uint64_t length;
    int rc = path ? mp_read_text(path, PLACEMENT_LIMIT, &text, &length, err) : mp_fail_memory(err);

    free(path);
    if (rc != 0)
        return rc;
    rc = mp_placement_parse(placement, text, length, slots->num_logical, err);
    free(text);
    if (rc == 0 && placement->num_physical != slots->num_physical)
        rc = mp_fail(err, MP_ERR_INPUT, "%u physical experts, the manifest says %u",
                     placement->num_physical, slots->num_physical);
    return rc == 0 ? 0 : mp_error_prefix(err, "%s", MP_PLACEMENT_NAME);
}
