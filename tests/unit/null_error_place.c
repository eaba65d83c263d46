/* SPDX-License-Identifier: Apache-2.0 */
/* Failing calls of the functions that place experts, and of those that know engines. */
#include <stdint.h>

#include "null_error_calls.h"

#include "place/replicas.h"
#include "place/waterfill.h"

/* ------------------------------------------------------------------------
 * place
 */

CALL(mp_placement_trivial)
{
    mp_placement placement;
    return mp_placement_trivial(&placement, 1, 0, 0, err);
}

CALL(mp_placement_parse)
{
    mp_placement placement;
    return mp_placement_parse(&placement, "[0, true]", 9, 2, err);
}

/* Expert 9 of 5. */
static const mp_placement wrong = {
    .layers = 1, .num_logical = 5, .num_physical = 6, .map = (int32_t *)(uintptr_t)row};

CALL(mp_placement_write)
{
    char *text;
    return mp_placement_write(&wrong, MP_PLACEMENT_VLLM_ASCEND, 5, &text, err);
}

CALL(mp_placement_check)
{
    return mp_placement_check(&wrong, 2, NULL, err);
}

CALL(mp_slots_init)
{
    mp_slots s;
    return mp_slots_init(&s, 5, 6, 4, 0, false, err);
}

CALL(mp_slots_table)
{
    mp_slot table[6];
    WITHOUT_MEMORY(mp_slots_table(&slots, row, table, err));
}

CALL(mp_recording_add)
{
    mp_recording recording = {0};
    return mp_recording_add(&recording, "{}", 2, 0, err);
}

CALL(mp_recording_add_steps)
{
    mp_recording recording = {0};
    const double negative[] = {1, 2, -3};
    return mp_recording_add_steps(&recording, negative, 1, 1, 3, NULL, err);
}

CALL(mp_recording_sum)
{
    double much[] = {1e38, 1e38, 1e38, 1e38};
    const mp_recording recording = {.layers = 1, .num_logical = 1, .steps = 4, .count = much};
    mp_counts counts;
    return mp_recording_sum(&recording, 0, &counts, err);
}

CALL(mp_eplb_balance)
{
    mp_eplb eplb;
    float numbers[] = {1, 2, 3, 4, 5};
    const mp_counts counts = {.layers = 1, .num_logical = 5, .count = numbers};
    return mp_eplb_balance(
        &eplb, &counts,
        &(mp_eplb_options){.size = sizeof(mp_eplb_options), .num_physical = 6, .ep = 4}, NULL, err);
}

CALL(mp_rank_load_parse)
{
    mp_rank_load load;
    return mp_rank_load_parse(&load, "{}", 2, 2, err);
}

CALL(mp_route)
{
    const mp_route_options options = {.slots = slots};
    const int32_t ids[] = {0};
    const float weights[] = {1};
    int32_t slot_ids[1];
    float slot_weights[1];
    uint64_t of_ranks[2];
    return mp_route(&options, row, ids, weights, 1, 1, slot_ids, slot_weights, of_ranks, err);
}

/* ------------------------------------------------------------------------ */

const failing_call failing_place_calls[] = {
    ROW(mp_placement_trivial), ROW(mp_placement_parse),     ROW(mp_placement_write),
    ROW(mp_placement_check),   ROW(mp_slots_init),          ROW(mp_slots_table),
    ROW(mp_recording_add),     ROW(mp_recording_add_steps), ROW(mp_recording_sum),
    ROW(mp_eplb_balance),      ROW(mp_rank_load_parse),     ROW(mp_route),
};

const size_t num_failing_place_calls = sizeof failing_place_calls / sizeof failing_place_calls[0];
