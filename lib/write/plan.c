/* SPDX-License-Identifier: Apache-2.0 */
/* The plan: which layers, where each expert goes, and the units of work. */
#include "write/plan.h"

#include "base/error.h"
#include "run/work.h"
#include "write/check.h"
#include "write/unit.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------
 * Units
 */

mp_unit mp_plan_unit(const mp_plan *plan, uint64_t index)
{
    mp_unit unit = {.layer = plan->layers};
    uint32_t l = 0, routed;
    uint64_t within;

    while (l + 1 < plan->num_layers && plan->layers[l + 1].first_unit <= index)
        l++;
    unit.layer = &plan->layers[l];
    unit.layer_index = l;
    within = index - unit.layer->first_unit;
    unit.id = (uint32_t)(within / MP_SIDES);
    unit.side = (mp_side)(within % MP_SIDES);
    routed = unit.layer->source->num_experts;
    unit.is_shared = unit.id >= routed;
    unit.matrices = unit.is_shared ? &unit.layer->shared[unit.id - routed]
                                   : &unit.layer->source->experts[unit.id];
    unit.set = mp_shape_set(&plan->shape, unit.id);
    return unit;
}

mp_side_source mp_unit_source(const mp_plan *plan, const mp_unit *unit)
{
    const mp_moe_layer *layer = unit->layer->source;
    const mp_slot_set *set = unit->set;
    bool cols = set->target->tiling(&set->dims, unit->side).kind == MP_TILES_COLS;

    return (mp_side_source){
        .catalog = plan->catalog,
        .storage = unit->is_shared ? &layer->shared_storage : &layer->storage,
        .matrix = &unit->matrices->matrix[mp_side_first(unit->side)],
        .target = set->target,
        .dims = set->dims,
        .side = unit->side,
        .tile_bytes = cols ? MP_UNIT_COLS_BYTES : MP_UNIT_ROWS_BYTES,
        .quant = &plan->options.quant,
    };
}

bool mp_unit_is_lossless(const mp_plan *plan, const mp_unit *unit)
{
    /* Scales that are no powers of two are seen only when they are read. */
    if (unit->is_shared)
        return unit->layer->shared_lossless &&
               !(unit->set->target->ue8m0 && plan->options.requantize_shared);
    return unit->layer->lossless;
}

static uint64_t unit_bytes_read(const mp_plan *plan, const mp_unit *unit)
{
    const mp_side_source from = mp_unit_source(plan, unit);
    uint64_t rows = mp_side_rows(&from.dims, from.side), cols = mp_side_cols(&from.dims, from.side);

    return mp_side_parts(from.side) * (rows * mp_storage_row_bytes(from.storage, cols) +
                                       mp_ceil_div(rows, from.storage->block_rows) *
                                           mp_storage_scale_row_bytes(from.storage, cols));
}

uint64_t mp_unit_bytes_written(const mp_plan *plan, const mp_unit *unit)
{
    const mp_slot_set *set = unit->set;
    uint64_t bytes = 0;
    uint32_t count;
    const mp_place *copies = mp_places_of(&unit->layer->places, unit->id, &count);

    for (unsigned t = 0; count > 0 && t < set->num_tensors; t++)
        if (set->tensors[t].side == unit->side &&
            mp_plan_output(plan, unit->layer_index, copies->rank, set, &set->tensors[t]))
            bytes += set->tensors[t].slot_bytes;
    return bytes * count;
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
        if (mp_check_layer(plan, layer, err) != 0)
            return err->code;
        plan->layers[plan->num_layers++] = (mp_plan_layer){
            .source = layer,
            .lossless = mp_passes_through(&layer->storage, plan->options.target),
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
    return rc ? rc : mp_placement_check(&plan->placement, options->ep, &plan->warnings, err);
}

static int settle_shape(mp_plan *plan, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    const mp_shape_terms terms = {
        .target = plan->options.target,
        .dims = {catalog->hidden_size, catalog->moe_intermediate_size},
        .num_experts = plan->placement.num_logical,
        .num_physical = plan->placement.num_physical,
        .ep_size = plan->options.ep,
        .shared = plan->options.shared,
        .num_shared = catalog->num_shared_experts,
    };

    return mp_shape_init(&plan->shape, &terms, &plan->warnings, err);
}

/* ------------------------------------------------------------------------
 * Shared experts and copies
 */

/* The views of the shared expert that are packed: one a slot, or the whole of it. */
static int add_shared(const mp_plan *plan, mp_plan_layer *layer, mp_error *err)
{
    uint32_t routed = layer->source->num_experts, count = plan->shape.num_ids - routed;
    const mp_slot_set *set = mp_shape_set(&plan->shape, routed);
    const mp_storage *storage = &layer->source->shared_storage;

    if (mp_check_shared(plan, set, layer->source, err) != 0)
        return err->code;
    layer->shared = mp_alloc_zeroed(count, sizeof *layer->shared);
    if (!layer->shared)
        return mp_fail_memory(err);
    for (uint32_t s = 0; s < count; s++) {
        if (set->target->single)
            layer->shared[s] = layer->source->shared;
        else if (mp_layer_expert(plan->catalog, layer->source, routed + s, &layer->shared[s],
                                 &storage, err) != 0)
            return err->code;
    }
    layer->shared_lossless = mp_passes_through(storage, set->target);
    return 0;
}

static int settle_layers(mp_plan *plan, mp_error *err)
{
    mp_work *work = &plan->work;

    work->stage_units = (uint64_t)plan->shape.num_ids * MP_SIDES;
    work->num_stages = (uint32_t)plan->num_layers;
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_plan_layer *layer = &plan->layers[i];

        if (plan->options.shared != MP_SHARED_NONE && add_shared(plan, layer, err) != 0)
            return err->code;
        if (mp_places_init(&layer->places, &plan->shape,
                           mp_placement_row(&plan->placement, (uint32_t)i), plan->options.ranks,
                           err) != 0)
            return err->code;
        layer->first_unit = work->num_units;
        work->num_units += work->stage_units;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static void count_units(mp_plan *plan)
{
    mp_work *work = &plan->work;

    work->lossless = true;
    for (uint64_t u = 0; u < work->num_units; u++) {
        mp_unit unit = mp_plan_unit(plan, u);

        if (mp_unit_bytes_written(plan, &unit) > 0)
            work->bytes_read += unit_bytes_read(plan, &unit);
        work->lossless &= mp_unit_is_lossless(plan, &unit);
    }
    work->scratch_bytes = mp_plan_scratch(plan);
}

int mp_plan_init(mp_plan *plan, const mp_catalog *catalog, const mp_repack_options *options,
                 mp_error *err)
{
    err = MP_NEVER_NULL(err);
    int rc;

    memset(plan, 0, sizeof *plan);
    plan->catalog = catalog;
    plan->options = *options;
    plan->options.quant.ue8m0 = options->requantize_shared;
    if (options->nz && options->target->nz)
        plan->options.target = options->target->nz;
    if (options->ep == 0)
        return mp_fail(err, MP_ERR_USAGE, "at least one rank is needed");
    rc = mp_catalog_check(catalog, err);
    if (rc == 0)
        rc = mp_check_options(plan, err);
    if (rc == 0)
        rc = choose_layers(plan, err);
    if (rc == 0)
        rc = settle_placement(plan, err);
    if (rc == 0)
        rc = settle_shape(plan, err);
    if (rc == 0)
        rc = settle_layers(plan, err);
    if (rc == 0)
        rc = mp_plan_files(plan, err);
    if (rc == 0)
        count_units(plan);
    else
        mp_plan_release(plan);
    return rc;
}

void mp_plan_release(mp_plan *plan)
{
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_places_release(&plan->layers[i].places);
        free(plan->layers[i].shared);
    }
    free(plan->layers);
    free(plan->output_of);
    mp_work_release(&plan->work);
    mp_placement_release(&plan->placement);
    mp_problems_release(&plan->warnings);
    memset(plan, 0, sizeof *plan);
}
