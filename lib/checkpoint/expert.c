/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of matrices: columns of one, and the shared expert cut as wide as a routed one.
 *
 * A shared expert is often a whole number of times as wide as a routed one, since it stands for
 * several that every token goes to. Cut into parts, rows of gate and up and columns of down, each
 * of them is an expert like any other and can take a slot. Their outputs add up to that of the
 * whole, because only down mixes the width. That needs scales whose blocks end where parts do, and
 * a model that gives the shared expert the weight and the activation of a routed one.
 *
 * Parts are views: no tensor is copied or read here. Pure, any number of threads. */
#include <moepack/model.h>

#include <string.h>

#include "base/error.h"
#include "checkpoint/matrix.h"
#include "checkpoint/router_names.h"
#include "checkpoint/rules.h"

const mp_tensor **mp_matrix_place(mp_matrix *matrix, mp_role role)
{
    switch (role) {
    case MP_ROLE_WEIGHT:
        return &matrix->weight;
    case MP_ROLE_SCALE:
        return &matrix->scale;
    case MP_ROLE_GLOBAL_SCALE:
        return &matrix->global;
    case MP_ROLE_BIAS:
        return &matrix->bias;
    case MP_ROLE_INPUT_SCALE:
        return &matrix->input_scale;
    case MP_ROLE_OFFSET:
        return &matrix->offset;
    case MP_ROLE_SHAPE:
        return &matrix->shape;
    case MP_ROLE_GROUP_SCALE:
        return &matrix->group_scale;
    case MP_ROLE_GROUP_OFFSET:
        return &matrix->group_offset;
    case MP_ROLE_SCALE_BIAS:
        return &matrix->scale_bias;
    default:
        return NULL;
    }
}

const mp_tensor *mp_matrix_tensor(const mp_matrix *matrix, mp_role role)
{
    const mp_tensor **place = mp_matrix_place((mp_matrix *)matrix, role);

    return place ? *place : NULL;
}

mp_matrix mp_matrix_columns(const mp_matrix *matrix, uint64_t cols, uint64_t col0)
{
    mp_matrix part = *matrix;

    part.first_col += col0;
    if (part.stored_cols == 0)
        part.stored_cols = cols;
    return part;
}

/* Scales that would cover more than one part of `size` rows or columns. */
static bool spans(uint32_t block, uint64_t size)
{
    return block != UINT32_MAX && size % block != 0;
}

uint64_t mp_layer_expert_bytes(const mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_storage *s = &layer->storage;
    uint64_t bytes = 0;

    for (int p = layer->ungated ? MP_UP : MP_GATE; p < MP_PROJECTIONS; p++) {
        uint64_t rows, cols;

        mp_catalog_shape(catalog, (mp_projection)p, &rows, &cols);
        bytes += rows * mp_storage_row_bytes(s, cols);
        if (s->has_scale)
            bytes += mp_ceil_div(rows, s->block_rows) * mp_storage_scale_row_bytes(s, cols);
    }
    return bytes;
}

int mp_layer_expert(const mp_catalog *catalog, const mp_moe_layer *layer, uint32_t id,
                    mp_expert *view, const mp_storage **storage, mp_error *err)
{
    uint64_t width = catalog->moe_intermediate_size;
    uint32_t shared = id - layer->num_experts, parts = catalog->num_shared_experts;
    const mp_storage *s = &layer->shared_storage;

    if (id < layer->num_experts) {
        *view = layer->experts[id];
        *storage = &layer->storage;
        return 0;
    }
    if (!layer->has_shared || shared >= parts)
        return mp_fail(err, MP_ERR_INPUT, "%s: no shared expert %u among %u", layer->prefix, shared,
                       layer->has_shared ? parts : 0);
    if (parts > 1 && (spans(s->block_rows, width) || spans(s->block_cols, width)))
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: scales of %ux%u cannot be cut among shared experts of width %llu",
                       layer->prefix, s->block_rows, s->block_cols, (unsigned long long)width);
    *view = layer->shared;
    *storage = s;
    view->matrix[MP_GATE].first += shared * width;
    view->matrix[MP_UP].first += shared * width;
    if (parts > 1)
        view->matrix[MP_DOWN] =
            mp_matrix_columns(&layer->shared.matrix[MP_DOWN], parts * width, shared * width);
    return 0;
}

int mp_layer_check_fusable(const mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    const mp_config *config = &catalog->config;
    const mp_model_rule *rule = mp_model_rule_of(config->model_type);
    bool average = strcmp(config->model_type, "cohere2_moe") == 0 &&
                   strcmp(config->shared_combination, "sum") != 0;
    const mp_tensor *gate;
    int rc = mp_block_tensor(catalog, layer, "shared_expert_gate.weight", &gate, err);

    if (rc != 0)
        return rc;
    if (gate)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "%s: it weighs the shared expert, which cannot be a slot among routed ones",
                       gate->name);
    if (average || (rule && (rule->mixed || rule->shared_unlimited)))
        return mp_fail(
            err, MP_ERR_UNSUPPORTED,
            "model_type \"%s\": its shared expert does not count as a routed one does, and "
            "cannot be a slot among them",
            config->model_type);
    return 0;
}
