/* SPDX-License-Identifier: Apache-2.0 */
/* The plan: which layers, where each expert goes, and the units of work. Everything that can be
 * wrong with options, model and placement together is found here, before anything is written. The
 * order of settling matters: layers give the number of experts, the placement that of slots, both
 * the shape, and the shape the files.
 *
 *   unit   a side of an expert of a layer, for all of its copies      first_unit + 2 * id + side
 *   stage  a layer; all have as many units, also of experts that no selected rank holds
 *   id     as the shape counts: routed experts, then shared ones
 *
 * A placement file is the most dangerous input here, since rows that are read wrongly give every
 * layer the experts of another and nothing notices. So a list of rows without layer numbers is only
 * read where one reading fits, or both give the same (choose_reading).
 *
 * Made by one thread, and not changed after. */
#include "write/plan.h"

#include "base/error.h"
#include "base/ordered.h"
#include "base/select.h"
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/layers.h"
#include "checkpoint/matrix.h"
#include "layout/sides.h"
#include "numeric/forms.h"
#include "run/work.h"
#include "write/check.h"
#include "write/unit.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------
 * Units
 */

mp_unit mp_plan_unit(const mp_repack_plan *plan, uint64_t index)
{
    size_t l =
        mp_last_begun(&plan->layers[0].first_unit, sizeof *plan->layers, plan->num_layers, index);
    mp_unit unit = {.layer = &plan->layers[l], .layer_index = (uint32_t)l};
    uint32_t routed;
    uint64_t within;

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

/* Wanted size of a tile. Where rows are read out of columns, those of the source count, and tiles
 * are of about one size: a narrow one would be read in as many pieces as a wide one. */
static uint64_t tile_bytes(const mp_storage *storage, const mp_slot_set *set, mp_side side)
{
    mp_tiling tiling = set->target->tiling(&set->dims, side);
    uint64_t rows = mp_side_rows(&set->dims, side), cols = mp_side_cols(&set->dims, side);
    uint64_t parts = tiling.kind == MP_TILES_PAIRED ? mp_side_parts(side) : 1;
    uint64_t stored = mp_storage_row_bytes(storage, cols);
    uint64_t written = mp_scheme_row_bytes(set->target->scheme, cols);
    uint64_t bytes = rows * parts * (stored > written ? stored : written);
    uint64_t tiles = mp_ceil_div(bytes, MP_UNIT_TRANSPOSED_BYTES);

    if (tiling.kind == MP_TILES_COLS)
        return MP_UNIT_COLS_BYTES;
    if (!mp_fusion_is_transposed(storage->fusion))
        return MP_UNIT_ROWS_BYTES;
    return mp_round_up(mp_ceil_div(rows, tiles ? tiles : 1), tiling.group) * parts * written;
}

mp_side_source mp_unit_source(const mp_repack_plan *plan, const mp_unit *unit)
{
    const mp_moe_layer *layer = unit->layer->source;
    const mp_storage *storage = unit->is_shared ? &layer->shared_storage : &layer->storage;
    const mp_slot_set *set = unit->set;

    return (mp_side_source){
        .catalog = plan->catalog,
        .storage = storage,
        .matrix = &unit->matrices->matrix[mp_side_first(unit->side)],
        .target = set->target,
        .dims = set->dims,
        .side = unit->side,
        .tile_bytes = tile_bytes(storage, set, unit->side),
        .quant = &plan->options.quant,
    };
}

bool mp_unit_is_lossless(const mp_repack_plan *plan, const mp_unit *unit)
{
    /* Scales that are no powers of two are seen only when they are read. */
    if (unit->is_shared)
        return unit->layer->shared_lossless &&
               !(unit->set->target->ue8m0 && plan->options.requantize_shared);
    return unit->layer->lossless;
}

static uint64_t unit_bytes_read(const mp_repack_plan *plan, const mp_unit *unit)
{
    const mp_side_source from = mp_unit_source(plan, unit);
    uint64_t rows = mp_side_rows(&from.dims, from.side), cols = mp_side_cols(&from.dims, from.side);

    return mp_side_parts(from.side) * (rows * mp_storage_row_bytes(from.storage, cols) +
                                       mp_ceil_div(rows, from.storage->block_rows) *
                                           mp_storage_scale_row_bytes(from.storage, cols));
}

uint64_t mp_unit_bytes_written(const mp_repack_plan *plan, const mp_unit *unit)
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

static int choose_layers(mp_repack_plan *plan, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    const mp_moe_layer *first = NULL;

    plan->layers = mp_alloc_zeroed(catalog->num_layers, sizeof *plan->layers);
    if (!plan->layers)
        return mp_fail_memory(err);
    for (size_t i = 0; i < catalog->num_layers; i++) {
        const mp_moe_layer *layer = &catalog->layers[i];

        if (plan->layers_chosen && !plan->layers_chosen[i])
            continue;
        if (!first)
            first = layer;
        if (layer->num_experts != first->num_experts)
            return mp_fail(err, MP_ERR_UNSUPPORTED,
                           "%s has %u experts and %s %u: pack them separately with --layers",
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

/* A layer's row of a given placement, read by the numbers of decoder layers, MTP blocks behind
 * them; or UINT32_MAX. */
static uint32_t row_by_number(const mp_catalog *catalog, const mp_placement *given,
                              const mp_moe_layer *layer)
{
    uint64_t decoder = catalog->config.num_hidden_layers;
    const mp_moe_layer *first = catalog->layers;

    if (!layer->mtp)
        return mp_placement_row_of(given, layer->number);
    /* One is: this layer. */
    while (!first->mtp)
        first++;
    return decoder == MP_CONFIG_ABSENT
               ? UINT32_MAX
               : mp_placement_row_of(given, decoder + (uint64_t)(layer - first));
}

/* The same, read as one for each MoE layer, of the model or of those that are packed. */
static uint32_t row_by_order(const mp_repack_plan *plan, const mp_placement *given, size_t packed)
{
    if (given->layers == 1)
        return 0;
    if (given->layers == plan->catalog->num_layers)
        return (uint32_t)(plan->layers[packed].source - plan->catalog->layers);
    return (uint32_t)packed;
}

/* How to read the rows of a placement. A file that states layers means decoder layers; a list
 * alone is read the way that its length fits, and refused where both ways do and differ: the one
 * would give a layer the experts of another. */
static int choose_reading(const mp_repack_plan *plan, const mp_placement *given,
                          mp_row_order *reading, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    uint64_t decoder = catalog->config.num_hidden_layers, rows = given->layers, mtp = 0;
    bool known = decoder != MP_CONFIG_ABSENT;

    if (given->layer_ids && *reading == MP_ROWS_MOE)
        return mp_fail(err, MP_ERR_USAGE,
                       "placement: the file itself says which layers its rows "
                       "are for");
    if (given->layer_ids || given->layers == 1) {
        *reading = given->layer_ids ? MP_ROWS_LAYER : MP_ROWS_MOE;
        return 0;
    }
    for (size_t i = 0; i < catalog->num_layers; i++)
        mtp += catalog->layers[i].mtp;
    /* Where config.json does not say how many layers there are, only the user can. */
    bool by_number = known ? rows == decoder || rows == decoder + mtp : *reading == MP_ROWS_LAYER;
    bool by_order = rows == catalog->num_layers || rows == plan->num_layers;
    if (*reading == MP_ROWS_LAYER && !by_number)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: %llu row%s, the model has %llu decoder layer%s",
                       (unsigned long long)rows, mp_plural(rows), (unsigned long long)decoder,
                       mp_plural(decoder));
    if (*reading != MP_ROWS_LAYER && !by_order && !(by_number && *reading == MP_ROWS_AUTO))
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: %llu row%s, the model has %zu MoE layer%s (MTP blocks counted)",
                       (unsigned long long)rows, mp_plural(rows), catalog->num_layers,
                       mp_plural(catalog->num_layers));
    if (*reading != MP_ROWS_AUTO)
        return 0;
    for (size_t i = 0; by_number && by_order && i < plan->num_layers; i++)
        if (row_by_number(catalog, given, plan->layers[i].source) != row_by_order(plan, given, i))
            return mp_fail(err, MP_ERR_INPUT,
                           "placement: %llu rows can be one for each decoder layer or one for each "
                           "MoE layer, and %s has not the same in both; use --rows layer or "
                           "--rows moe",
                           (unsigned long long)rows, plan->layers[i].source->prefix);
    *reading = by_number ? MP_ROWS_LAYER : MP_ROWS_MOE;
    return 0;
}

static int take_given_placement(mp_repack_plan *plan, const mp_placement *given, mp_error *err)
{
    const mp_catalog *catalog = plan->catalog;
    uint32_t experts = plan->layers[0].source->num_experts;
    uint32_t physical = given->num_physical;
    mp_row_order reading = plan->options.rows;
    int rc = choose_reading(plan, given, &reading, err);

    if (rc != 0)
        return rc;
    if (given->num_logical != experts)
        return mp_fail(err, MP_ERR_INPUT, "placement: for %u experts, the model has %u",
                       given->num_logical, experts);
    /* Copy the rows in the plan's order: from here on row i is for layer i of the pack. */
    plan->placement = (mp_placement){
        .layers = (uint32_t)plan->num_layers,
        .num_logical = experts,
        .num_physical = physical,
        .devices = given->devices,
        .map = mp_alloc(plan->num_layers, (uint64_t)physical * sizeof(int32_t)),
    };
    if (!plan->placement.map)
        return mp_fail_memory(err);
    for (size_t i = 0; i < plan->num_layers; i++) {
        uint32_t row = reading == MP_ROWS_LAYER
                           ? row_by_number(catalog, given, plan->layers[i].source)
                           : row_by_order(plan, given, i);

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

static int settle_placement(mp_repack_plan *plan, mp_error *err)
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

static int settle_shape(mp_repack_plan *plan, mp_error *err)
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
static int add_shared(const mp_repack_plan *plan, mp_plan_layer *layer, mp_error *err)
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

static int settle_layers(mp_repack_plan *plan, mp_error *err)
{
    mp_work *work = &plan->work;

    work->stage_units = (uint64_t)plan->shape.num_ids * MP_SIDES;
    /* Tensors of FP4 codes can be written into compressed files at once where the scales that stand
     * before them are known, which are those of the other side. */
    plan->layer_stages =
        plan->options.zstd == MP_ZSTD_AUTO && mp_holds_codes(plan->options.target) ? MP_SIDES : 1;
    work->num_stages = (uint32_t)plan->num_layers * plan->layer_stages;
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_plan_layer *layer = &plan->layers[i];

        if (plan->options.shared != MP_SHARED_NONE && add_shared(plan, layer, err) != 0)
            return err->code;
        if (mp_places_init(&layer->places, &plan->shape,
                           mp_placement_row(&plan->placement, (uint32_t)i), plan->ranks_chosen,
                           err) != 0)
            return err->code;
        /* Ascending, for mp_plan_unit to look up. */
        layer->first_unit = work->num_units;
        work->num_units += work->stage_units;
    }
    return 0;
}

/* ------------------------------------------------------------------------
 * The whole
 */

static void count_units(mp_repack_plan *plan)
{
    mp_work *work = &plan->work;

    work->lossless = true;
    for (uint64_t u = 0; u < work->num_units; u++) {
        mp_unit unit = mp_plan_unit(plan, u);

        /* An expert of no selected rank is not read either. */
        if (mp_unit_bytes_written(plan, &unit) > 0)
            work->bytes_read += unit_bytes_read(plan, &unit);
        work->lossless &= mp_unit_is_lossless(plan, &unit);
    }
    work->scratch_bytes = mp_plan_scratch(plan);
}

int mp_repack_plan_init(mp_repack_plan *plan, const mp_catalog *catalog,
                        const mp_repack_options *options, mp_error *err)
{
    bool *layers = NULL, *ranks = NULL;

    err = MP_NEVER_NULL(err);
    memset(plan, 0, sizeof *plan);
    if (options->layers && mp_catalog_select(catalog, options->layers, &layers, err) != 0)
        return err->code;
    if (options->ranks) {
        ranks = mp_alloc(options->ep, sizeof *ranks);
        if (!ranks)
            mp_fail_memory(err);
        if (!ranks || mp_select_ranks(options->ranks, options->ep, ranks, err) != 0) {
            free(layers);
            free(ranks);
            return err->code;
        }
    }
    return mp_repack_plan_of(plan, catalog, options, layers, ranks, err);
}

int mp_repack_plan_of(mp_repack_plan *plan, const mp_catalog *catalog,
                      const mp_repack_options *options, bool *layers, bool *ranks, mp_error *err)
{
    int rc;

    *plan = (mp_repack_plan){
        .catalog = catalog,
        .options = *options,
        .layers_chosen = layers,
        .ranks_chosen = ranks,
    };
    /* Scales of shared experts may have to become powers of two; only where loss is allowed. */
    plan->options.quant.ue8m0 = options->requantize_shared;
    /* Put the form of the target that is meant in its place, before anything asks the target. */
    if (options->nz && options->target->nz)
        plan->options.target = options->target->nz;
    if (options->alphas == MP_ALPHAS_FP4XFP4 && options->target->fp4xfp4)
        plan->options.target = options->target->fp4xfp4;
    rc = options->ep ? 0 : mp_fail(err, MP_ERR_USAGE, "at least one rank is needed");
    if (rc == 0)
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
    if (rc == 0) {
        mp_check_activation(plan);
        count_units(plan);
    } else {
        mp_repack_plan_release(plan);
    }
    return rc;
}

void mp_repack_plan_release(mp_repack_plan *plan)
{
    for (size_t i = 0; i < plan->num_layers; i++) {
        mp_places_release(&plan->layers[i].places);
        free(plan->layers[i].shared);
    }
    free(plan->layers);
    free(plan->layers_chosen);
    free(plan->ranks_chosen);
    free(plan->output_of);
    mp_work_release(&plan->work);
    mp_placement_release(&plan->placement);
    mp_problems_release(&plan->warnings);
    memset(plan, 0, sizeof *plan);
}
