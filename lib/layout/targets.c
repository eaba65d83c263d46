/* SPDX-License-Identifier: Apache-2.0 */
/* The table of targets. */
#include "layout/targets.h"

#include <string.h>

static const mp_target *const targets[] = {
    &mp_target_megamoe_w4a8,
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
    return side == MP_L1 ? 2 * dims->intermediate_size : dims->hidden_size;
}

uint64_t mp_side_cols(const mp_dims *dims, mp_side side)
{
    return side == MP_L1 ? dims->hidden_size : dims->intermediate_size;
}

uint64_t mp_target_scale_row_bytes(const mp_target *target, uint64_t cols)
{
    return target->scheme == MP_SCHEME_MXFP4 ? cols / 32 : 0;
}
