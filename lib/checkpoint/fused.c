/* SPDX-License-Identifier: Apache-2.0 */
/* Fused experts: one tensor for gate and up of all experts, one for down.
 *
 *     rows          gate_up [E, 2I, H], down [E, H, I]    gate is the first half: Qwen3.5, Gemma 4
 *     cols          gate_up [E, H, 2I], down [E, I, H]    the same, transposed: Qwen3-VL, Llama 4
 *     rows paired   gate 0, up 0, gate 1, up 1, ...       GPT-OSS in MXFP4
 *     cols paired   the same in columns                   GPT-OSS in BF16
 *     stacked       gate [E, I, H], up [E, I, H], down    Step-3.5
 *
 * Experts become slices: each matrix refers to the common tensor and says which slice and which
 * rows are its own, so no later code has to care. Shapes tell rows from columns, since gate_up is
 * twice as wide as down is long; it takes both, as gate_up alone may be square (Mistral-Small-4). A
 * packed type hides how many columns an element holds, so every possibility is tried, and at most
 * one fits. Shapes cannot tell halves from pairs. That has to be known from the model, and if
 * nothing says it, it is a problem: a wrong guess would mix up gate and up.
 *
 * Slices are only made of tensors that have bytes, and EXPERTS_MAX limits them. One thread. */
#include "checkpoint/fused.h"

#include "base/error.h"
#include "checkpoint/matrix.h"
#include "checkpoint/rules.h"

#include <string.h>

/* More than any model has; keeps a wild shape from making us allocate. */
#define EXPERTS_MAX 65536u

/* Columns that a stored element of a type can hold; no sizes fit with two of them. */
static const uint64_t *packings_of(mp_dtype dtype)
{
    static const uint64_t one[] = {1, 0}, bytes[] = {2, 1, 0}, words[] = {8, 0};

    if (dtype == MP_U8 || dtype == MP_I8)
        return bytes;
    return dtype == MP_I32 ? words : one;
}

/* Whether n rows are columns of packed elements. */
static bool is_multiple(uint64_t n, uint64_t packed, uint64_t packing)
{
    return n % packing == 0 && n / packing == packed;
}

/* Whether n rows are gate and up of a width of packed elements. */
static bool pairs(uint64_t n, uint64_t packed, uint64_t packing)
{
    return n % 2 == 0 && is_multiple(n / 2, packed, packing);
}

/* Dimensions 1 and 2 of both tensors tell whether they are transposed: gate_up has twice
 * the width of down, and what one has as rows the other has as columns. */
static bool orientation(const mp_tensor *gate_up, const mp_tensor *down, bool *transposed)
{
    const uint64_t *a = gate_up->shape, *b = down->shape;

    /* GPT-OSS stores mxfp4 as [E, rows, blocks, 16]. */
    if (gate_up->rank == 4 && down->rank == 4) {
        *transposed = false;
        return true;
    }
    if (gate_up->rank != 3 || down->rank != 3)
        return false;
    for (const uint64_t *n = packings_of(gate_up->dtype); *n; n++) {
        *transposed = pairs(a[2], b[1], *n) && is_multiple(b[2], a[1], *n);
        if (pairs(a[1], b[2], *n) && is_multiple(b[1], a[2], *n)) {
            *transposed = false;
            return true;
        }
        if (*transposed)
            return true;
    }
    return false;
}

/* Gate and up in turn cannot be told from shapes: it is how GPT-OSS stores them, which has
 * biases as nobody else. */
static bool is_paired(const mp_catalog *catalog, const mp_moe_layer *layer)
{
    return layer->fused[0].weight->rank == 4 || layer->fused[0].bias ||
           strcmp(catalog->config.model_type, "gpt_oss") == 0;
}

/* Whether anything says how gate and up lie in one tensor. */
static bool knows_halves(const mp_catalog *catalog, const mp_moe_layer *layer)
{
    const mp_matrix *gate_up = &layer->fused[0];

    return catalog->config.model_type[0] || gate_up->weight->rank == 4 || gate_up->bias ||
           strstr(gate_up->weight->name, ".input_linear.");
}

static mp_fusion fusion_of(bool transposed, bool paired)
{
    if (transposed)
        return paired ? MP_FUSION_COLS_PAIRED : MP_FUSION_COLS;
    return paired ? MP_FUSION_ROWS_PAIRED : MP_FUSION_ROWS;
}

/* Each expert is a slice of three tensors, or of two without a gate. */
static void fill_stacked(mp_moe_layer *layer)
{
    for (uint32_t e = 0; e < layer->num_experts; e++) {
        mp_matrix *matrix = layer->experts[e].matrix;

        matrix[MP_GATE] = layer->fused[0];
        matrix[MP_UP] = layer->fused[2];
        matrix[MP_DOWN] = layer->fused[1];
        for (int p = 0; p < MP_PROJECTIONS; p++)
            matrix[p].slice = e;
    }
}

static void fill_experts(mp_moe_layer *layer, bool transposed, bool paired)
{
    uint64_t width = layer->fused[0].weight->shape[transposed ? 2 : 1];

    for (uint32_t e = 0; e < layer->num_experts; e++) {
        mp_matrix *matrix = layer->experts[e].matrix;

        matrix[MP_GATE] = matrix[MP_UP] = layer->fused[0];
        matrix[MP_DOWN] = layer->fused[1];
        for (int p = 0; p < MP_PROJECTIONS; p++)
            matrix[p].slice = e;
        matrix[MP_GATE].paired = matrix[MP_UP].paired = paired;
        matrix[MP_UP].first = paired ? 1 : width / 2;
    }
}

/* Whether any of the tensors that go with a weight is there. */
static bool is_any(const mp_matrix *m)
{
    for (int role = MP_ROLE_WEIGHT + 1; role < MP_ROLES; role++)
        if (mp_matrix_tensor(m, (mp_role)role))
            return true;
    return false;
}

/* Lists what is wrong with weights of all experts that do not go together. */
static void list_misfit(mp_catalog *catalog, const mp_tensor *one, const mp_tensor *other)
{
    char a[MP_SHAPE_TEXT], b[MP_SHAPE_TEXT];

    mp_problem(&catalog->problems, "%s: shape %s does not match %s of \"%s\"", one->name,
               mp_shape_text(one->shape, one->rank, a), mp_shape_text(other->shape, other->rank, b),
               other->name);
}

/* Gate, where there is one, and up are as wide as down is long. */
static bool is_stacked(const mp_moe_layer *layer, bool transposed)
{
    const mp_tensor *gate = layer->fused[0].weight, *down = layer->fused[1].weight;
    const mp_tensor *up = layer->fused[2].weight;
    const unsigned n = transposed ? 2 : 1, k = 3 - n;

    if (up->rank != 3 || down->rank != 3 || up->shape[0] != down->shape[0])
        return false;
    if (gate && (gate->rank != 3 || memcmp(gate->shape, up->shape, 3 * sizeof *up->shape) != 0))
        return false;
    for (const uint64_t *packing = packings_of(up->dtype); *packing; packing++)
        if (is_multiple(up->shape[n], down->shape[k], *packing) &&
            is_multiple(down->shape[n], up->shape[k], *packing))
            return true;
    return false;
}

/* Nobody transposes three tensors; of two without a gate, only the width that config.json says
 * tells which dimension it is. */
static bool is_turned(const mp_catalog *catalog, const mp_tensor *up)
{
    uint64_t width = catalog->config.moe_intermediate_size;

    return up->rank == 3 && up->shape[1] != width && up->shape[2] == width;
}

/* Without bytes, a shape could say any number of experts. */
static bool is_sane(const mp_tensor *gate, const mp_tensor *down)
{
    return gate->shape[0] == down->shape[0] && gate->bytes > 0 && down->bytes > 0 &&
           gate->shape[0] <= EXPERTS_MAX;
}

int mp_layer_unfuse(mp_catalog *catalog, mp_moe_layer *layer, mp_error *err)
{
    const mp_tensor *gate_up = layer->fused[0].weight, *down = layer->fused[1].weight;
    const mp_tensor *up = layer->fused[2].weight;
    bool transposed = false, paired;

    if (!gate_up && up && mp_is_ungated(&catalog->config)) {
        gate_up = up;
        transposed = is_turned(catalog, up);
    }
    if (!gate_up && !down) {
        if (is_any(&layer->fused[0]) || is_any(&layer->fused[1]) || up)
            mp_problem(&catalog->problems, "%s: fused experts without weights", layer->prefix);
        return 0;
    }
    if (!gate_up || !down) {
        mp_problem(&catalog->problems, "%s: fused experts without a %s", layer->prefix,
                   gate_up ? "down_proj"
                   : up    ? "gate_proj"
                           : "gate_up_proj");
        return 0;
    }
    if (layer->num_experts > 0) {
        mp_problem(&catalog->problems, "%s: fused, but the layer also has single experts",
                   gate_up->name);
        return 0;
    }
    if (!(up ? is_stacked(layer, transposed) : orientation(gate_up, down, &transposed)) ||
        !is_sane(gate_up, down)) {
        list_misfit(catalog, gate_up, down);
        return 0;
    }
    layer->experts = mp_alloc_zeroed(gate_up->shape[0], sizeof *layer->experts);
    if (!layer->experts)
        return mp_fail_memory(err);
    layer->num_experts = (uint32_t)gate_up->shape[0];
    if (up) {
        layer->storage.fusion = transposed ? MP_FUSION_COLS : MP_FUSION_STACKED;
        fill_stacked(layer);
        return 0;
    }
    if (!knows_halves(catalog, layer))
        mp_problem(&catalog->problems, "%s: gate and up may be halves or interleaved: %s to tell",
                   gate_up->name,
                   catalog->config.present ? "config.json has no model_type"
                                           : "there is no config.json");
    paired = is_paired(catalog, layer);
    layer->storage.fusion = fusion_of(transposed, paired);
    fill_experts(layer, transposed, paired);
    return 0;
}
