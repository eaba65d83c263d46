/* SPDX-License-Identifier: Apache-2.0 */
/* The plan: which layers, where each expert goes, and the units of work. */
#include "pack/plan.h"

#include "base/error.h"
#include "pack/unit.h"

#include <stdlib.h>
#include <string.h>

const char *mp_shared_mode_name(mp_shared_mode mode)
{
    static const char *const names[] = {"none", "fused", "separate"};

    return names[mode];
}

/* ------------------------------------------------------------------------
 * Units
 */

mp_unit mp_plan_unit(const mp_plan *plan, uint64_t index)
{
    uint32_t l = 0;
    uint64_t within;

    while (l + 1 < plan->num_layers && plan->layers[l + 1].first_unit <= index)
        l++;
    within = index - plan->layers[l].first_unit;
    return (mp_unit){
        .layer = &plan->layers[l],
        .layer_index = l,
        .expert = (uint32_t)(within / MP_SIDES),
        .side = (mp_side)(within % MP_SIDES),
    };
}

const mp_copy *mp_unit_copies(const mp_unit *unit, uint32_t *count)
{
    const uint32_t *first = &unit->layer->first_copy[unit->expert];

    *count = first[1] - first[0];
    return unit->layer->copies + first[0];
}

unsigned mp_plan_tensor(const mp_plan *plan, mp_side side, mp_role role)
{
    unsigned t = 0;

    while (t < plan->num_tensors &&
           (plan->tensors[t].side != side || plan->tensors[t].role != role))
        t++;
    return t;
}

uint64_t mp_unit_bytes_read(const mp_plan *plan, const mp_unit *unit)
{
    const mp_expert *expert = &unit->layer->source->experts[unit->expert];
    uint64_t bytes = 0;

    (void)plan;
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        const mp_matrix *matrix = &expert->matrix[p];

        if ((p == MP_DOWN) == (unit->side == MP_L2))
            bytes += matrix->weight->bytes + (matrix->scale ? matrix->scale->bytes : 0);
    }
    return bytes;
}

uint64_t mp_unit_bytes_written(const mp_plan *plan, const mp_unit *unit)
{
    uint64_t bytes = 0;
    uint32_t copies;

    mp_unit_copies(unit, &copies);
    for (unsigned t = 0; t < plan->num_tensors; t++)
        if (plan->tensors[t].side == unit->side)
            bytes += plan->tensors[t].slot_bytes;
    return bytes * copies;
}

/* ------------------------------------------------------------------------
 * Checks
 */

static int check_shared(const mp_plan *plan, mp_error *err)
{
    if (plan->options.shared == MP_SHARED_NONE)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: shared experts cannot be packed as \"%s\": leave them to the engine with "
                   "--shared none",
                   plan->options.target->name, mp_shared_mode_name(plan->options.shared));
}

/* The target takes the layer's scheme, as it is or requantized. */
static int check_scheme(const mp_repack_options *options, const mp_moe_layer *layer, mp_error *err)
{
    const mp_target *target = options->target;

    if (options->quantize && options->quantize_to != target->scheme)
        return mp_fail(err, MP_ERR_USAGE, "%s takes %s, not %s", target->name,
                       mp_scheme_name(target->scheme), mp_scheme_name(options->quantize_to));
    if (layer->storage.scheme == target->scheme || options->quantize)
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s takes %s, and the experts of %s are %s: requantize them with "
                   "--quantize %s",
                   target->name, mp_scheme_name(target->scheme), layer->prefix,
                   mp_scheme_name(layer->storage.scheme), mp_scheme_name(target->scheme));
}

/* True if a comma-separated list has that item. */
static bool lists(const char *list, const char *item)
{
    size_t length = strlen(item);

    for (const char *p = list; p && *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == length && memcmp(p, item, length) == 0)
            return true;
    return false;
}

static int check_drop_list(const char *drop, mp_error *err)
{
    for (const char *p = drop; p && *p; p += strcspn(p, ","), p += *p == ',') {
        int length = (int)strcspn(p, ",");

        if ((length != 4 || memcmp(p, "bias", 4) != 0) &&
            (length != 11 || memcmp(p, "input_scale", 11) != 0))
            return mp_fail(err, MP_ERR_USAGE,
                           "\"%.*s\" is nothing that can be dropped: bias, "
                           "input_scale",
                           length, p);
    }
    return 0;
}

static int refuse_tensor(const mp_repack_options *options, const mp_tensor *tensor,
                         const char *what, mp_error *err)
{
    if (!tensor || lists(options->drop, what))
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: %s cannot carry it: leave it behind with --drop %s", tensor->name,
                   options->target->name, what);
}

/* Nothing of an expert is left behind silently. */
static int check_carried(const mp_repack_options *options, const mp_moe_layer *layer, mp_error *err)
{
    for (uint32_t e = 0; e < layer->num_experts; e++) {
        for (int p = 0; p < MP_PROJECTIONS; p++) {
            const mp_matrix *matrix = &layer->experts[e].matrix[p];

            if (refuse_tensor(options, matrix->bias, "bias", err) != 0 ||
                refuse_tensor(options, matrix->input_scale, "input_scale", err) != 0)
                return err->code;
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * Layers and placement
 */

static int choose_layers(mp_plan *plan, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    const mp_moe_layer *first = NULL;

    plan->layers = mp_alloc_zeroed(catalog->num_layers, sizeof *plan->layers);
    if (!plan->layers)
        return mp_fail_memory(err);
    for (size_t i = 0; i < catalog->num_layers; i++) {
        const mp_moe_layer *layer = &catalog->layers[i];

        if (plan->options.layers && !plan->options.layers[i])
            continue;
        if (!first)
            first = layer;
        if (layer->num_experts != first->num_experts)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s has %u experts and %s %u: pack them apart with --layers",
                           layer->prefix, layer->num_experts, first->prefix, first->num_experts);
        if (check_scheme(&plan->options, layer, err) != 0 ||
            check_carried(&plan->options, layer, err) != 0)
            return err->code;
        plan->layers[plan->num_layers++] = (mp_plan_layer){
            .source = layer,
            .lossless = layer->storage.scheme == plan->options.target->scheme,
        };
    }
    return plan->num_layers ? 0 : mp_fail(err, MP_ERR_USAGE, "no layer selected");
}

/* The row of a given placement that is a layer's, or UINT32_MAX. Rows count MoE layers, MTP
 * blocks last; or, as engines index them, decoder layers by number, with or without dense
 * ones before the first row. */
static uint32_t row_of_layer(const mp_catalog *catalog, const mp_placement *given,
                             const mp_moe_layer *layer)
{
    uint64_t number = layer->number - given->first_layer;

    if (given->layers == 1)
        return 0;
    if (given->first_layer == 0 && given->layers == catalog->num_layers)
        return (uint32_t)(layer - catalog->layers);
    if (layer->mtp || layer->number < given->first_layer || number >= given->layers)
        return UINT32_MAX;
    return (uint32_t)number;
}

/* Row counts that a placement may have: one, all MoE layers, or all decoder layers from
 * the first that it names. */
static int check_rows(const mp_catalog *catalog, const mp_placement *given, mp_error *err)
{
    uint64_t decoder = catalog->config.num_hidden_layers;

    if (given->layers == 1 || given->layers == catalog->num_layers ||
        (decoder != MP_CONFIG_ABSENT && given->first_layer + (uint64_t)given->layers == decoder))
        return 0;
    return mp_fail(err, MP_ERR_INPUT,
                   "placement: %u rows, the model has %zu MoE layers (MTP blocks counted)",
                   given->layers, catalog->num_layers);
}

static int take_given_placement(mp_plan *plan, const mp_placement *given, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    uint32_t experts = plan->layers[0].source->num_experts;
    uint32_t physical = given->num_physical;

    if (check_rows(catalog, given, err) != 0)
        return err->code;
    if (given->num_logical != experts)
        return mp_fail(err, MP_ERR_INPUT, "placement: of %u experts, the model has %u",
                       given->num_logical, experts);
    plan->placement = (mp_placement){
        .layers = (uint32_t)plan->num_layers,
        .num_logical = experts,
        .num_physical = physical,
        .map = mp_alloc(plan->num_layers, (uint64_t)physical * sizeof(int32_t)),
    };
    if (!plan->placement.map)
        return mp_fail_memory(err);
    for (size_t i = 0; i < plan->num_layers; i++) {
        uint32_t row = row_of_layer(catalog, given, plan->layers[i].source);

        if (row == UINT32_MAX)
            return mp_fail(err, MP_ERR_INPUT,
                           "placement: no row among %u for %s: add one, or leave the layer out "
                           "with --layers",
                           given->layers, plan->layers[i].source->prefix);
        memcpy(plan->placement.map + i * physical, mp_placement_row(given, row),
               physical * sizeof(int32_t));
    }
    return 0;
}

static int settle_placement(mp_plan *plan, mp_error *err)
{
    const mp_repack_options *options = &plan->options;
    uint32_t experts = plan->layers[0].source->num_experts;
    int rc;

    if (options->placement && options->redundant)
        return mp_fail(err, MP_ERR_USAGE,
                       "a placement file says itself how many redundant "
                       "experts there are");
    if (options->placement)
        rc = take_given_placement(plan, options->placement, err);
    else
        rc = mp_placement_trivial(&plan->placement, (uint32_t)plan->num_layers, experts,
                                  options->redundant, err);
    if (rc == 0)
        rc = mp_placement_check(&plan->placement, options->ep, &plan->warnings, err);
    if (rc == 0)
        rc = mp_slots_init(&plan->slots, experts, plan->placement.num_physical, options->ep, 0,
                           false, err);
    return rc;
}

/* Groups the physical experts on written ranks by the logical one that they copy. */
static int group_copies(mp_plan *plan, mp_plan_layer *layer, const int32_t *row, mp_error *err)
{
    uint32_t experts = layer->source->num_experts, physical = plan->placement.num_physical;
    uint32_t per_rank = mp_slots_per_rank(&plan->slots);
    uint32_t *next = mp_alloc_zeroed((uint64_t)experts + 1, sizeof *next);

    layer->placement = row;
    layer->copies = mp_alloc(physical, sizeof *layer->copies);
    layer->first_copy = mp_alloc_zeroed((uint64_t)experts + 1, sizeof *layer->first_copy);
    if (!next || !layer->copies || !layer->first_copy) {
        free(next);
        return mp_fail_memory(err);
    }
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t p = 0; p < physical; p++) {
            uint32_t slot = mp_slots_of_physical(&plan->slots, p), rank = slot / per_rank;

            if (plan->options.ranks && !plan->options.ranks[rank])
                continue;
            if (pass == 0)
                layer->first_copy[row[p] + 1]++;
            else
                layer->copies[next[row[p]]++] = (mp_copy){rank, slot % per_rank};
        }
        for (uint32_t e = 0; pass == 0 && e < experts; e++)
            layer->first_copy[e + 1] += layer->first_copy[e];
        memcpy(next, layer->first_copy, (experts + 1) * sizeof *next);
    }
    free(next);
    return 0;
}

static int settle_layers(mp_plan *plan, mp_error *err)
{
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_plan_layer *layer = &plan->layers[i];
        const int32_t *row = mp_placement_row(&plan->placement, (uint32_t)i);

        layer->first_unit = plan->num_units;
        plan->num_units += (uint64_t)layer->source->num_experts * MP_SIDES;
        if (group_copies(plan, layer, row, err) != 0)
            return err->code;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static void count_bytes(mp_plan *plan)
{
    for (uint64_t u = 0; u < plan->num_units; u++) {
        mp_unit unit = mp_plan_unit(plan, u);
        uint64_t written = mp_unit_bytes_written(plan, &unit);

        if (written > 0)
            plan->bytes_read += mp_unit_bytes_read(plan, &unit);
    }
    for (size_t f = 0; f < plan->num_files; f++)
        plan->bytes_written += plan->files[f].bytes;
}

int mp_plan_init(mp_plan *plan, const mp_catalog *catalog, const mp_repack_options *options,
                 mp_error *err)
{
    const mp_target *target = options->target;
    int rc;

    memset(plan, 0, sizeof *plan);
    plan->catalog = catalog;
    plan->options = *options;
    plan->dims = (mp_dims){catalog->hidden_size, catalog->moe_intermediate_size};
    if (options->ep == 0)
        return mp_fail(err, MP_ERR_USAGE, "at least one rank is needed");
    rc = mp_catalog_check(catalog, err);
    if (rc == 0)
        rc = check_drop_list(options->drop, err);
    if (rc == 0)
        rc = check_shared(plan, err);
    if (rc == 0)
        rc = choose_layers(plan, err);
    if (rc == 0)
        rc = target->check(&plan->dims, &plan->warnings, err);
    if (rc == 0)
        rc = settle_placement(plan, err);
    if (rc == 0) {
        plan->num_tensors = target->describe(&plan->dims, plan->tensors);
        rc = settle_layers(plan, err);
    }
    if (rc == 0)
        rc = mp_plan_files(plan, err);
    if (rc == 0) {
        plan->scratch_bytes = mp_unit_scratch(plan);
        count_bytes(plan);
    } else {
        mp_plan_release(plan);
    }
    return rc;
}

void mp_plan_release(mp_plan *plan)
{
    for (size_t i = 0; i < plan->num_layers; i++) {
        free(plan->layers[i].copies);
        free(plan->layers[i].first_copy);
    }
    for (size_t i = 0; i < plan->num_files; i++) {
        free(plan->files[i].path);
        free(plan->files[i].header);
    }
    for (size_t i = 0; i < plan->num_outputs; i++)
        free(plan->outputs[i].name);
    free(plan->layers);
    free(plan->files);
    free(plan->outputs);
    free(plan->output_of);
    mp_placement_release(&plan->placement);
    mp_problems_release(&plan->warnings);
    memset(plan, 0, sizeof *plan);
}
