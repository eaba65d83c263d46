/* SPDX-License-Identifier: Apache-2.0 */
/* Repacking as a job: the order of its units. */
#include "write/repack.h"

#include "base/error.h"
#include "base/words.h"
#include "checkpoint/matrix.h"
#include "numeric/quantize.h"
#include "place/slots.h"
#include "write/plan.h"
#include "write/unit.h"

#include <string.h>

/* ------------------------------------------------------------------------
 * Units
 */

static uint64_t unit_of(const mp_plan_layer *layer, uint32_t expert, int side)
{
    return layer->first_unit + (uint64_t)expert * MP_SIDES + (uint64_t)side;
}

/* Neighbours are on different ranks as far as can be: threads then write to different files,
 * which do not wait for each other. An expert is done once, when its first copy comes up. */
static size_t list_units(const void *user, uint32_t stage, uint64_t *units)
{
    const mp_repack_plan *plan = user;
    uint32_t index = stage / plan->layer_stages;
    const mp_plan_layer *layer = &plan->layers[index];
    const int32_t *row = mp_placement_row(&plan->placement, index);
    uint32_t per_rank = mp_slots_routed_per_rank(&plan->shape.slots), copies;
    int first_side = plan->layer_stages > 1 ? (int)(stage % plan->layer_stages) : 0;
    int end_side = plan->layer_stages > 1 ? first_side + 1 : MP_SIDES;
    size_t count = 0;

    for (int side = first_side; side < end_side; side++) {
        for (uint32_t slot = 0; slot < per_rank; slot++) {
            for (uint32_t rank = 0; rank < plan->options.ep; rank++) {
                uint32_t id = (uint32_t)row[rank * per_rank + slot];
                const mp_place *first = mp_places_of(&layer->places, id, &copies);

                if (copies > 0 && first->rank == rank && first->slot == slot)
                    units[count++] = unit_of(layer, id, side);
            }
        }
    }
    for (uint32_t id = layer->source->num_experts; id < plan->shape.num_ids; id++)
        for (int side = first_side; side < end_side; side++)
            if (mp_places_of(&layer->places, id, &copies) && copies > 0)
                units[count++] = unit_of(layer, id, side);
    return count;
}

static uint64_t unit_bytes(const void *plan, uint64_t index)
{
    mp_unit unit = mp_plan_unit(plan, index);

    return mp_unit_bytes_written(plan, &unit);
}

static int run_unit(const void *plan, uint64_t index, mp_outputs *outputs, void *scratch,
                    mp_quant_stats *stats, mp_error *err)
{
    mp_unit unit = mp_plan_unit(plan, index);

    return mp_unit_run(plan, &unit, outputs, scratch, stats, err);
}

static void read_ahead(const void *user, uint64_t index)
{
    const mp_repack_plan *plan = user;
    mp_unit unit = mp_plan_unit(plan, index);
    mp_side_source from = mp_unit_source(plan, &unit);

    for (unsigned part = 0; part < mp_side_parts(unit.side); part++)
        mp_matrix_ahead(plan->catalog, &from.matrix[part]);
}

/* ------------------------------------------------------------------------
 * The job
 */

static bool owns(const char *name)
{
    static const char *const names[] = {MP_MANIFEST_NAME, MP_PLACEMENT_NAME, MP_CONFIG_NAME};
    bool ours = strncmp(name, "rank-", 5) == 0;

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        ours |= strcmp(name, names[i]) == 0;
    return ours;
}

mp_job mp_repack_job(const mp_repack_plan *plan)
{
    return (mp_job){
        .plan = plan,
        .work = &plan->work,
        .terms = mp_repack_terms,
        .units = list_units,
        .unit_bytes = unit_bytes,
        .ahead = read_ahead,
        .run = run_unit,
        .finish = mp_repack_finish,
        .check_done = mp_repack_check_done,
        .is_whole = mp_is_packed,
        .kind = "a pack",
        .owns = owns,
    };
}

int mp_repack_plan_run(const mp_repack_plan *plan, const char *out, mp_run_mode mode,
                       const mp_context *context, mp_error *err)
{
    err = MP_NEVER_NULL(err);
    mp_job job = mp_repack_job(plan);
    int rc = mp_repack_check_forms(plan, err);

    return rc ? rc : mp_job_run(&job, out, mode, context, err);
}
