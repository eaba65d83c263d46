/* SPDX-License-Identifier: Apache-2.0 */
/* A shared expert by itself: a checkpoint whose only routed expert is the shared one. */

#include <stdlib.h>

#include "base/error.h"
#include "base/parallel.h"
#include "forward/reference.h"

int mp_shared_expert_open(mp_shared_expert *shared, const mp_catalog *catalog,
                          const mp_moe_layer *layer, const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_catalog_experts_options as_stored = {MP_SCHEME_COUNT, MP_SCHEME_COUNT, {0}};

    *shared = (mp_shared_expert){.catalog = *catalog, .layer = *layer};
    if (layer->shared_width == 0)
        return mp_fail(err, MP_ERR_INPUT, "%s: no shared expert", layer->prefix);
    if (catalog->config.latent_size != MP_CONFIG_ABSENT)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: what is between the model and its experts is not computed",
                       layer->prefix);
    shared->catalog.moe_intermediate_size = layer->shared_width;
    shared->layer.experts = &shared->layer.shared;
    shared->layer.num_experts = 1;
    shared->layer.storage = layer->shared_storage;
    shared->layer.has_shared = false;
    return mp_catalog_experts_open(&shared->experts, &shared->catalog, &shared->layer, &as_stored,
                                   context, err);
}

void mp_shared_expert_release(mp_shared_expert *shared)
{
    if (shared->experts.catalog)
        mp_catalog_experts_release(&shared->experts);
    *shared = (mp_shared_expert){0};
}

int mp_shared_expert_add(const mp_shared_expert *shared, const mp_layer_router *router,
                         const mp_forward_options *options, const mp_batch *batch,
                         const mp_context *context, double *y, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_forward_options how = {.activation = options->shared_activation,
                                    .memory = options->memory};
    uint64_t tokens = batch->tokens, n = tokens * shared->experts.source.hidden_size;
    int32_t *ids = mp_alloc_zeroed(tokens + 1, sizeof *ids);
    float *weights = mp_alloc(tokens + 1, sizeof *weights);
    double *z = mp_alloc(n + 1, sizeof *z);
    const mp_batch one = {tokens, 1, batch->x, ids, weights};
    const mp_context quiet = mp_quiet(context);
    int rc = ids && weights && z ? 0 : mp_fail_memory(err);

    if (rc == 0) {
        mp_layer_weigh_shared(router, batch->x, tokens, weights);
        rc = mp_forward(&shared->experts.source, &how, &one, &quiet, z, err);
    }
    for (uint64_t i = 0; rc == 0 && i < n; i++)
        y[i] += z[i];
    free(ids);
    free(weights);
    free(z);
    return rc;
}
