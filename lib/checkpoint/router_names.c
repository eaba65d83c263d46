/* SPDX-License-Identifier: Apache-2.0 */
/* Names of routers' tensors: as many as there are exporters. */
#include "checkpoint/router_names.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

const char *const mp_router_weights[] = {"gate.weight",         "router.weight",
                                         "gate.wg.weight",      "router.gate.weight",
                                         "router.layer.weight", "router.classifier.weight",
                                         "router.proj.weight",  NULL};

const char *const mp_choice_biases[] = {"gate.e_score_correction_bias",
                                        "e_score_correction_bias",
                                        "gate.expert_bias",
                                        "expert_bias",
                                        "experts.e_score_correction_bias",
                                        "router.e_score_correction_bias",
                                        "router_bias",
                                        "moe_statics.e_score_correction_bias",
                                        NULL};

int mp_block_tensor(const mp_catalog *catalog, const mp_moe_layer *layer, const char *name,
                    const mp_tensor **tensor, mp_error *err)
{
    const char *block = layer->naming->block;
    char *whole = mp_format("%s.%s%s%s", layer->prefix, block, block[0] ? "." : "", name);

    if (!whole)
        return mp_fail_memory(err);
    *tensor = mp_checkpoint_find(&catalog->checkpoint, whole);
    free(whole);
    return 0;
}

int mp_block_tensor_of(const mp_catalog *catalog, const mp_moe_layer *layer,
                       const char *const *names, const mp_tensor **tensor, mp_error *err)
{
    int rc = 0;

    *tensor = NULL;
    for (; rc == 0 && *names && !*tensor; names++)
        rc = mp_block_tensor(catalog, layer, *names, tensor, err);
    return rc;
}

const char *mp_block_rest(const mp_moe_layer *layer, const char *name)
{
    size_t prefix = strlen(layer->prefix), block = strlen(layer->naming->block);
    const char *rest = name + prefix + 1;

    if (strncmp(name, layer->prefix, prefix) != 0 || name[prefix] != '.')
        return NULL;
    if (block == 0)
        return rest;
    return strncmp(rest, layer->naming->block, block) == 0 && rest[block] == '.' ? rest + block + 1
                                                                                 : NULL;
}

bool mp_is_router_weight(const char *name, uint64_t *layer)
{
    const char *number = strstr(name, "layers.");
    char *rest;

    if (!number || !isdigit((unsigned char)number[7]))
        return false;
    *layer = strtoull(number + 7, &rest, 10);
    for (const char *const *weight = mp_router_weights; *weight; weight++) {
        size_t n = strlen(*weight), length = strlen(rest);

        /* ".gate.weight", or a block before it */
        if (length > n && strcmp(rest + length - n, *weight) == 0 && rest[length - n - 1] == '.' &&
            !memchr(rest + 1, '.', length - n > 2 ? length - n - 2 : 0))
            return true;
    }
    return false;
}
