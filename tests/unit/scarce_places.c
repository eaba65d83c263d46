/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that place experts, and those that know engines. */
#include "scarce_calls.h"

#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "place/replicas.h"
#include "place/waterfill.h"

static const int32_t row[] = {0, 1, 2, 3, 4, 2};

static const mp_placement placed = {
    .layers = 1, .num_logical = 5, .num_physical = 6, .map = (int32_t *)(uintptr_t)row};

static mp_slots of_slots(void)
{
    mp_slots slots;

    cr_assert_eq(mp_slots_init(&slots, 5, 6, 2, 0, false, NULL), 0);
    return slots;
}

/* ------------------------------------------------------------------------
 * place
 */

SCARCE(mp_placement_trivial)
{
    mp_placement placement;
    int rc = mp_placement_trivial(&placement, 3, 5, 1, err);
    if (rc == 0)
        mp_placement_release(&placement);
    return rc;
}

SCARCE(mp_placement_parse)
{
    static const char text[] =
        "num_slots: 6\ninitial_global_assignments:\n  3: [0, 1, 2, 3, 4, 2]\n";
    mp_placement placement;
    int rc = mp_placement_parse(&placement, text, sizeof text - 1, 5, err);
    if (rc == 0)
        mp_placement_release(&placement);
    return rc;
}

SCARCE(mp_placement_write)
{
    char *text = NULL;
    int rc = mp_placement_write(&placed, MP_PLACEMENT_VLLM_ASCEND, 2, &text, err);
    if (rc == 0)
        free(text);
    return rc;
}

SCARCE(mp_placement_check)
{
    mp_problems warnings = {0};
    int rc = mp_placement_check(&placed, 2, &warnings, err);
    mp_problems_release(&warnings);
    return rc;
}

SCARCE(mp_slots_init)
{
    mp_slots slots;
    return mp_slots_init(&slots, 5, 6, 2, 1, true, err);
}

SCARCE(mp_slots_table)
{
    const mp_slots slots = of_slots();
    mp_slot table[6];
    return mp_slots_table(&slots, row, table, err);
}

SCARCE(mp_replicas_init)
{
    mp_replicas replicas;
    int rc = mp_replicas_init(&replicas, row, 5, 6, err);
    if (rc == 0)
        mp_replicas_release(&replicas);
    return rc;
}

SCARCE(mp_recording_add)
{
    static const char text[] = "{\"logical_count\": [[1, 2, 3], [4, 5, 6]]}";
    mp_recording recording = {0};
    int rc = mp_recording_add(&recording, text, sizeof text - 1, 0, err);
    mp_recording_release(&recording);
    return rc;
}

static const double steps[] = {1, 2, 3, 4, 5, 6};

SCARCE(mp_recording_add_steps)
{
    const uint32_t layers[] = {3};
    mp_recording recording = {0};
    int rc = mp_recording_add_steps(&recording, steps, 2, 1, 3, layers, err);
    mp_recording_release(&recording);
    return rc;
}

SCARCE(mp_recording_sum)
{
    static mp_recording recording;
    mp_counts counts;
    if (recording.steps == 0)
        cr_assert_eq(mp_recording_add_steps(&recording, steps, 2, 1, 3, NULL, NULL), 0);
    int rc = mp_recording_sum(&recording, 1, &counts, err);
    if (rc == 0)
        mp_counts_release(&counts);
    return rc;
}

static int balance(mp_eplb *eplb, mp_error *err)
{
    static float numbers[] = {9, 2, 3, 4, 5, 1, 8, 2, 7, 3};
    const mp_counts counts = {.layers = 2, .num_logical = 5, .count = numbers};
    const mp_eplb_options options = {
        .size = sizeof options, .num_physical = 6, .ep = 2, .refine = 3};
    return mp_eplb_balance(eplb, &counts, &options, &one_thread, err);
}

SCARCE(mp_eplb_balance)
{
    mp_eplb eplb;
    int rc = balance(&eplb, err);
    mp_eplb_release(&eplb);
    return rc;
}

SCARCE(mp_rank_load_parse)
{
    static const char text[] = "{\"routed_counts\": [3, 4], \"tokens\": [2, 1]}";
    mp_rank_load load;
    int rc = mp_rank_load_parse(&load, text, sizeof text - 1, 2, err);
    mp_rank_load_release(&load);
    return rc;
}

static const int32_t ids[] = {0, 2, 4, 1};
static const float weights[] = {1, 2, 3, 4};

SCARCE(mp_route)
{
    const mp_route_options options = {.slots = of_slots()};
    int32_t slot_ids[4];
    float slot_weights[4];
    uint64_t of_ranks[2];
    return mp_route(&options, row, ids, weights, 2, 2, slot_ids, slot_weights, of_ranks, err);
}

SCARCE(mp_waterfill_assign)
{
    mp_slots slots;
    const uint64_t load[] = {3, 1};
    const mp_waterfill waterfill = {.load = load};
    int32_t shared[2];
    cr_assert_eq(mp_slots_init(&slots, 5, 6, 2, 1, false, NULL), 0);
    return mp_waterfill_assign(&waterfill, &slots, ids, 2, 2, shared, 1, err);
}

/* ------------------------------------------------------------------------
 * backend
 */

SCARCE(mp_env_set)
{
    mp_env env = {0};
    int rc = mp_env_set(&env, "A", "1", err);
    mp_env_release(&env);
    return rc;
}

SCARCE(mp_env_add)
{
    const char *list[] = {"A=1", "B=2", NULL};
    mp_env env = {0};
    int rc = mp_env_add(&env, list, err);
    mp_env_release(&env);
    return rc;
}

SCARCE(mp_env_parse)
{
    static const char text[] = "A='b'\nB=c\nA=d\n";
    mp_env env = {0};
    int rc = mp_env_parse(&env, text, sizeof text - 1, "a text", err);
    mp_env_release(&env);
    return rc;
}

static const mp_backend_flags flags = {.backend = MP_A2A_MEGAMOE, .backend_given = true, .tp = 1};

static const mp_backend_model *model(void)
{
    static mp_backend_model of_fixture;

    if (of_fixture.num_layers == 0)
        cr_assert_eq(mp_backend_model_open(&of_fixture, "testdata/fixtures/v4-fp4", NULL, NULL), 0);
    return &of_fixture;
}

SCARCE(mp_backend_model_open)
{
    mp_backend_model opened;
    return mp_backend_model_open(&opened, "testdata/fixtures/v4-fp4", &one_thread, err);
}

SCARCE(mp_backend_check_flags)
{
    return mp_backend_check_flags(&flags, err);
}

SCARCE(mp_backend_resolve)
{
    const mp_env env = {0};
    mp_backend backend;
    int rc = mp_backend_resolve(&backend, &flags, &env, model(), err);
    mp_backend_release(&backend);
    return rc;
}

static const mp_backend *resolved(void)
{
    static mp_backend backend;

    if (!backend.target)
        cr_assert_eq(mp_backend_resolve(&backend, &flags, &(mp_env){0}, model(), NULL), 0);
    return &backend;
}

SCARCE(mp_backend_estimate)
{
    mp_backend_memory memory;
    return mp_backend_estimate(&memory, resolved(), model(), UINT64_C(1) << 36, err);
}

/* A pack of another number of ranks and another target: mismatches are listed. */
SCARCE(mp_backend_check_pack)
{
    const mp_backend_pack pack = {
        .target = "megamoe-w4a4", .shared = MP_SHARED_NONE, .num_layers = 1, .placement_xxh3 = "0"};
    mp_problems mismatches = {0};
    mp_pack_checks checks;
    int rc = mp_backend_check_pack(resolved(), model(), &pack, &placed, &checks, &mismatches, err);
    mp_problems_release(&mismatches);
    return rc;
}

const scarce_call scarce_places[] = {
    SCARCE_ROW(mp_placement_trivial),
    SCARCE_ROW(mp_placement_parse),
    SCARCE_ROW(mp_placement_write),
    SCARCE_ROW(mp_placement_check),
    SCARCE_ROW(mp_slots_init),
    SCARCE_ROW(mp_slots_table),
    SCARCE_ROW(mp_replicas_init),
    SCARCE_ROW(mp_recording_add),
    SCARCE_ROW(mp_recording_add_steps),
    SCARCE_ROW(mp_recording_sum),
    SCARCE_ROW(mp_eplb_balance),
    SCARCE_ROW(mp_rank_load_parse),
    SCARCE_ROW(mp_route),
    SCARCE_ROW(mp_waterfill_assign),
    SCARCE_ROW(mp_env_set),
    SCARCE_ROW(mp_env_add),
    SCARCE_ROW(mp_env_parse),
    SCARCE_ROW(mp_backend_model_open),
    SCARCE_ROW(mp_backend_check_flags),
    SCARCE_ROW(mp_backend_resolve),
    SCARCE_ROW(mp_backend_estimate),
    SCARCE_ROW(mp_backend_check_pack),
};

const size_t num_scarce_places = SCARCE_COUNT(scarce_places);
