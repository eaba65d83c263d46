/* SPDX-License-Identifier: Apache-2.0 */
/* Placements, their file formats, slots and replicas. */
#include <criterion/criterion.h>

#include <jansson.h>
#include <moepack/place.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "place/replicas.h"
#include "place/slots.h"

static mp_error err;

TestSuite(place, .timeout = 60);

/* ------------------------------------------------------------------------
 * Slots
 */

static json_t *golden(const char *part)
{
    json_error_t where;
    json_t *root = json_load_file("testdata/golden/placement.json", 0, &where);
    cr_assert_not_null(root, "%s", where.text);
    json_t *list = json_incref(json_object_get(root, part));
    json_decref(root);
    cr_assert_gt(json_array_size(list), 0);
    return list;
}

static uint32_t number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_integer(value), "%s", key);
    return (uint32_t)json_integer_value(value);
}

Test(place, golden_slots_of_checkpoint_ids)
{
    json_t *cases = golden("slots");
    size_t c;
    json_t *one;
    json_array_foreach(cases, c, one)
    {
        uint32_t n = number(one, "num_logical"), redundant = number(one, "redundant");
        mp_placement p;
        mp_slots s;
        cr_assert_eq(mp_placement_trivial(&p, 1, n, redundant, &err), 0);
        cr_assert_eq(mp_slots_init(&s, n, p.num_physical, number(one, "ep"), number(one, "shared"),
                                   false, &err),
                     0);
        uint32_t *slots = malloc(p.num_physical * sizeof(*slots)), ids = 0;
        const char *key;
        json_t *expected;
        json_object_foreach(json_object_get(one, "checkpoint_id_to_slots"), key, expected)
        {
            uint32_t id = (uint32_t)atoi(key);
            uint32_t count = mp_slots_of_checkpoint_id(&s, p.map, id, slots);
            cr_assert_eq(count, json_array_size(expected), "case %zu, id %u", c, id);
            for (uint32_t i = 0; i < count; i++)
                cr_assert_eq(slots[i], json_integer_value(json_array_get(expected, i)));
            ids++;
        }
        cr_assert_eq(ids, n + s.shared);
        cr_assert_eq(mp_slots_of_checkpoint_id(&s, p.map, n + s.shared, slots), 0);
        free(slots);
        mp_placement_release(&p);
    }
    json_decref(cases);
}

/* Lays the ranks out one after another: what every slot holds, by the text of the specification. */
static uint32_t lay_out(const int32_t *row, uint32_t n, uint32_t p, uint32_t ep, uint32_t shared,
                        uint32_t *id)
{
    uint32_t slot = 0;
    for (uint32_t rank = 0; rank < ep; rank++) {
        for (uint32_t i = 0; i < p / ep; i++)
            id[slot++] = (uint32_t)row[rank * (p / ep) + i];
        for (uint32_t s = 0; s < shared; s++)
            id[slot++] = n + s;
    }
    return slot;
}

/* The bug to prevent: with redundant experts, the boundary of checkpoint ids is N and the
 * arithmetic of slots goes by P. */
static void check_slots(uint32_t n, uint32_t redundant, uint32_t ep, uint32_t shared)
{
    uint32_t expected[64], slots[64];
    mp_slot table[64];
    mp_placement p;
    mp_slots s;
    cr_assert_eq(mp_placement_trivial(&p, 1, n, redundant, &err), 0);
    for (uint32_t i = 0; i < p.num_physical; i++) /* not the identity, and still complete */
        p.map[i] = (int32_t)((i % n * 5 + 3) % n);
    cr_assert_eq(mp_placement_check(&p, ep, NULL, &err), 0, "%s", err.message);
    cr_assert_eq(mp_slots_init(&s, n, n + redundant, ep, shared, false, &err), 0);

    uint32_t total = lay_out(p.map, n, n + redundant, ep, shared, expected);
    cr_assert_eq(s.total, total);
    cr_assert_eq(s.per_rank * ep, total);
    cr_assert_eq(mp_slots_table(&s, p.map, table, &err), 0);
    for (uint32_t slot = 0; slot < total; slot++) {
        mp_slot one;
        mp_slots_describe(&s, p.map, slot, &one);
        cr_assert_eq(one.slot, slot);
        cr_assert_eq(one.checkpoint_id, expected[slot], "n %u r %u ep %u s %u slot %u", n,
                     redundant, ep, shared, slot);
        cr_assert_eq(one.rank, slot / (total / ep));
        cr_assert_eq(one.rank, mp_slots_rank(&s, slot));
        cr_assert_eq(one.local, slot % (total / ep));
        cr_assert_eq(one.kind == MP_SLOT_SHARED, expected[slot] >= n);
        cr_assert_eq(mp_slots_is_shared(&s, one.checkpoint_id), expected[slot] >= n);
        uint32_t before = 0;
        for (uint32_t other = 0; other < slot; other++)
            before += expected[other] == expected[slot];
        cr_assert_eq(one.replica, before);
        cr_assert_eq(table[slot].checkpoint_id, one.checkpoint_id);
        cr_assert_eq(table[slot].replica, before);
        cr_assert_eq(table[slot].kind, one.kind);
        uint32_t count = mp_slots_of_checkpoint_id(&s, p.map, one.checkpoint_id, slots);
        cr_assert_lt(before, count);
        cr_assert_eq(slots[before], slot);
    }
    for (uint32_t i = 0; i < n + redundant; i++)
        cr_assert_eq(table[mp_slots_of_physical(&s, i)].checkpoint_id, (uint32_t)p.map[i]);
    mp_placement_release(&p);
}

Test(place, every_slot_holds_its_expert)
{
    for (uint32_t shared = 0; shared <= 2; shared++) {
        check_slots(12, 0, 3, shared);
        check_slots(12, 6, 3, shared);
        check_slots(7, 2, 9, shared);
        check_slots(7, 7, 1, shared);
        check_slots(9, 6, 5, shared);
    }
}

Test(place, a_physical_index_is_no_checkpoint_id)
{
    /* Physical expert 8 of 8 + 4 is a replica of logical 0; checkpoint id 8 is the shared one. */
    mp_placement p;
    mp_slots s;
    uint32_t slots[12];
    mp_slot slot;
    cr_assert_eq(mp_placement_trivial(&p, 1, 8, 4, &err), 0);
    cr_assert_eq(mp_slots_init(&s, 8, 12, 4, 1, false, &err), 0);
    mp_slots_describe(&s, p.map, mp_slots_of_physical(&s, 8), &slot);
    cr_assert_eq(slot.kind, MP_SLOT_ROUTED);
    cr_assert_eq(slot.checkpoint_id, 0);
    cr_assert_eq(slot.replica, 1);
    cr_assert_eq(mp_slots_of_checkpoint_id(&s, p.map, 8, slots), 4);
    static const uint32_t shared_slots[] = {3, 7, 11, 15};
    cr_assert_arr_eq(slots, shared_slots, sizeof(shared_slots));
    mp_placement_release(&p);
}

Test(place, shared_once_lies_behind_all_routed_slots)
{
    mp_placement p;
    mp_slots s;
    uint32_t slots[9];
    mp_slot slot;
    cr_assert_eq(mp_placement_trivial(&p, 1, 7, 2, &err), 0);
    cr_assert_eq(mp_slots_init(&s, 7, 9, 3, 2, true, &err), 0);
    cr_assert_eq(s.total, 11);
    cr_assert_eq(s.per_rank, 3);
    cr_assert_eq(mp_slots_on_rank(&s, 1), 3);
    cr_assert_eq(mp_slots_on_rank(&s, 2), 5);
    for (uint32_t i = 0; i < 9; i++)
        cr_assert_eq(mp_slots_of_physical(&s, i), i);
    cr_assert_eq(mp_slots_of_checkpoint_id(&s, p.map, 8, slots), 1);
    cr_assert_eq(slots[0], 10);
    mp_slots_describe(&s, p.map, 10, &slot);
    cr_assert_eq(slot.kind, MP_SLOT_SHARED);
    cr_assert_eq(slot.checkpoint_id, 8);
    cr_assert_eq(slot.rank, 2);
    cr_assert_eq(slot.local, 4);
    cr_assert_eq(slot.replica, 0);
    mp_placement_release(&p);
}

static void refuse_slots(uint32_t n, uint32_t p, uint32_t ep, uint32_t shared, const char *message)
{
    mp_slots s;
    cr_assert_eq(mp_slots_init(&s, n, p, ep, shared, false, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, message);
}

Test(place, slots_that_cannot_be)
{
    refuse_slots(0, 4, 2, 0, "slots: no logical experts");
    refuse_slots(8, 7, 1, 0, "slots: 7 physical experts for 8 logical ones");
    refuse_slots(8, 9, 0, 0, "slots: no ranks");
    refuse_slots(8, 9, 2, 0, "slots: 9 physical experts do not divide evenly among 2 ranks");
    refuse_slots(8, 9, 3, 1000000000, "slots: 3000000009 slots do not fit 32-bit ids");
}

/* ------------------------------------------------------------------------
 * Replicas
 */

Test(place, replicas_ascend)
{
    static const int32_t row[] = {2, 0, 2, 1, 0, 2, 3};
    static const uint32_t start[] = {0, 2, 3, 6, 7}, physical[] = {1, 4, 3, 0, 2, 5, 6};
    mp_replicas r;
    cr_assert_eq(mp_replicas_init(&r, row, 4, 7, &err), 0);
    cr_assert_arr_eq(r.start, start, sizeof(start));
    cr_assert_arr_eq(r.physical, physical, sizeof(physical));
    mp_replicas_release(&r);
    mp_replicas_release(&r);
}

Test(place, replicas_of_an_id_out_of_range)
{
    static const int32_t row[] = {2, 0, 4, 1};
    mp_replicas r;
    cr_assert_eq(mp_replicas_init(&r, row, 4, 4, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: column 2: logical expert 4, expected 0 to 3");
}

/* ------------------------------------------------------------------------
 * Placements
 */

Test(place, trivial)
{
    static const int32_t row[] = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1};
    mp_placement p;
    cr_assert_eq(mp_placement_trivial(&p, 3, 5, 7, &err), 0);
    cr_assert_eq(p.layers, 3);
    cr_assert_eq(p.num_logical, 5);
    cr_assert_eq(p.num_physical, 12);
    for (uint32_t layer = 0; layer < 3; layer++)
        cr_assert_arr_eq(mp_placement_row(&p, layer), row, sizeof(row));
    cr_assert_null(mp_placement_row(&p, 3));
    mp_placement_release(&p);
    cr_assert_null(p.map);
    mp_placement_release(&p);

    cr_assert_eq(mp_placement_trivial(&p, 1, 5, 0, &err), 0);
    cr_assert_eq(mp_placement_row(&p, 60), p.map, "one row serves all layers");
    mp_placement_release(&p);

    cr_assert_eq(mp_placement_trivial(&p, 0, 5, 0, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: no layers");
    cr_assert_eq(mp_placement_trivial(&p, 1, 0, 5, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: no logical experts");
    cr_assert_eq(mp_placement_trivial(&p, 1, 5, INT32_MAX, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message,
                     "placement: 5 logical and 2147483647 redundant experts do not fit 32-bit ids");
}

Test(place, copies_on_one_rank_are_warned_about)
{
    int32_t map[] = {0, 1, 2, 3, 0, 1, /**/ 0, 0, 1, 2, 2, 3, /**/ 3, 2, 1, 0, 1, 1};
    mp_placement p = {.layers = 3, .num_logical = 4, .num_physical = 6, .map = map};
    mp_problems warnings = {0};
    cr_assert_eq(mp_placement_check(&p, 2, &warnings, &err), 0, "%s", err.message);
    cr_assert_eq(warnings.count, 1);
    cr_assert_str_eq(
        warnings.text[0],
        "placement: 3 copies in 2 rows on ranks that have the expert already, first in "
        "row 1: expert 0 in column 1 on rank 0");
    mp_problems_release(&warnings);
    p.layers = 2;
    cr_assert_eq(mp_placement_check(&p, 2, &warnings, &err), 0, "%s", err.message);
    cr_assert_str_eq(warnings.text[0],
                     "placement: row 1: 2 copies on a rank that has the expert already, first "
                     "expert 0 in column 1 on rank 0");
    mp_problems_release(&warnings);
}

static void refuse_check(int32_t bad, uint32_t at, uint32_t ep, const char *message)
{
    int32_t map[] = {0, 1, 2, 3, 0, 1, /**/ 3, 2, 1, 0, 2, 3};
    mp_placement p = {.layers = 2, .num_logical = 4, .num_physical = 6, .map = map};
    map[at] = bad;
    cr_assert_eq(mp_placement_check(&p, ep, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, message);
}

Test(place, check_names_row_and_column)
{
    refuse_check(4, 7, 2, "placement: row 1, column 1: logical expert 4, expected 0 to 3");
    refuse_check(-1, 2, 2, "placement: row 0, column 2: logical expert -1, expected 0 to 3");
    refuse_check(0, 8, 2, "placement: row 1: logical expert 1 is in none of the 6 columns");
    refuse_check(0, 0, 4, "placement: 6 physical experts do not divide evenly among 4 ranks");
    int32_t six[] = {0, 1, 2, 3, 0, 1};
    mp_placement p = {.layers = 1, .num_logical = 4, .num_physical = 6, .map = six, .devices = 2};
    cr_assert_eq(mp_placement_check(&p, 2, NULL, &err), 0);
    cr_assert_eq(mp_placement_check(&p, 3, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: device_count is 2, the number of ranks is 3");
    p = (mp_placement){.layers = 1, .num_logical = 4, .num_physical = 3};
    cr_assert_eq(mp_placement_check(&p, 0, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: rows of 3 columns cannot hold 4 logical experts");
    p = (mp_placement){0};
    cr_assert_eq(mp_placement_check(&p, 0, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "placement: no layers");
}

/* ------------------------------------------------------------------------
 * Files
 */

static void read_back(const mp_placement *p, mp_placement_format format, uint32_t num_logical)
{
    char *text;
    mp_placement back;
    cr_assert_eq(mp_placement_write(p, format, 3, &text, &err), 0, "%s", err.message);
    cr_assert_eq(mp_placement_parse(&back, text, strlen(text), num_logical, &err), 0, "%s",
                 err.message);
    cr_assert_eq(back.layers, p->layers);
    cr_assert_eq(back.num_logical, p->num_logical);
    cr_assert_eq(back.num_physical, p->num_physical);
    if (format == MP_PLACEMENT_TRTLLM || format == MP_PLACEMENT_VLLM_ASCEND)
        cr_assert_arr_eq(back.layer_ids, p->layer_ids, p->layers * sizeof(*p->layer_ids));
    else
        cr_assert_null(back.layer_ids);
    cr_assert_eq(back.devices, format == MP_PLACEMENT_VLLM_ASCEND ? 3 : 0);
    cr_assert_arr_eq(back.map, p->map, (size_t)p->layers * p->num_physical * sizeof(*p->map));
    mp_placement_release(&back);
    free(text);
}

Test(place, round_trip_in_all_formats)
{
    srand(7);
    for (int round = 0; round < 40; round++) {
        mp_placement p;
        uint32_t n = 1 + (uint32_t)rand() % 40, layers = 1 + (uint32_t)rand() % 5;
        uint32_t redundant = (uint32_t)rand() % 5 * 3 + (3 - n % 3) % 3;
        cr_assert_eq(mp_placement_trivial(&p, layers, n, redundant, &err), 0);
        for (uint32_t i = 0; i < layers * p.num_physical; i++) { /* shuffle inside rows */
            uint32_t row = i / p.num_physical * p.num_physical;
            uint32_t j = row + (uint32_t)rand() % p.num_physical;
            int32_t id = p.map[i];
            p.map[i] = p.map[j];
            p.map[j] = id;
        }
        p.layer_ids = malloc(layers * sizeof(*p.layer_ids)); /* with gaps */
        for (uint32_t i = 0; i < layers; i++)
            p.layer_ids[i] = (i > 0 ? p.layer_ids[i - 1] + 1 : 0) + (uint32_t)rand() % 4;
        for (int f = 0; f < MP_PLACEMENT_FORMAT_COUNT; f++) {
            read_back(&p, (mp_placement_format)f, n);
            read_back(&p, (mp_placement_format)f, 0);
        }
        mp_placement_release(&p);
    }
}

Test(place, files_as_the_engines_have_them)
{
    int32_t map[] = {2, 0, 1, 2, /**/ 1, 0, 2, 0};
    mp_placement p = {.layers = 2, .num_logical = 3, .num_physical = 4, .map = map};
    static const char *const expected[] = {
        "{\n  \"physical_to_logical_map\": [\n    [2, 0, 1, 2],\n    [1, 0, 2, 0]\n  ]\n}\n",
        "num_slots: 4\ninitial_global_assignments:\n  3: [2, 0, 1, 2]\n  7: [1, 0, 2, 0]\n",
        "{\n  \"moe_layer_count\": 2,\n  \"layer_list\": [\n"
        "    {\"layer_id\": 3, \"device_count\": 2, \"device_list\": [\n"
        "      {\"device_id\": 0, \"device_expert\": [2, 0]},\n"
        "      {\"device_id\": 1, \"device_expert\": [1, 2]}\n    ]},\n"
        "    {\"layer_id\": 7, \"device_count\": 2, \"device_list\": [\n"
        "      {\"device_id\": 0, \"device_expert\": [1, 0]},\n"
        "      {\"device_id\": 1, \"device_expert\": [2, 0]}\n    ]}\n  ]\n}\n",
        "[\n    [2, 0, 1, 2],\n    [1, 0, 2, 0]\n  ]\n",
    };
    uint32_t layer_ids[] = {3, 7};
    p.layer_ids = layer_ids;
    for (int f = 0; f < MP_PLACEMENT_FORMAT_COUNT; f++) {
        char *text;
        cr_assert_eq(mp_placement_write(&p, (mp_placement_format)f, 2, &text, &err), 0);
        cr_assert_str_eq(text, expected[f]);
        free(text);
    }
}

/* Gaps are layers without experts. */
Test(place, rows_of_decoder_layers)
{
    static const char yaml[] = "num_slots: 2\ninitial_global_assignments:\n"
                               "  1: [0, 1]\n  3: [1, 0]\n  7: [0, 1]\n";
    mp_placement p;
    cr_assert_eq(mp_placement_parse(&p, yaml, strlen(yaml), 2, &err), 0, "%s", err.message);
    cr_assert_eq(p.layers, 3);
    cr_assert_eq(mp_placement_row_of(&p, 1), 0);
    cr_assert_eq(mp_placement_row_of(&p, 3), 1);
    cr_assert_eq(mp_placement_row_of(&p, 7), 2);
    cr_assert_eq(mp_placement_row_of(&p, 2), UINT32_MAX);
    cr_assert_eq(mp_placement_row_of(&p, 0), UINT32_MAX);
    cr_assert_eq(mp_placement_layer(&p, 2), 7);
    p.layers = 1; /* a stated layer is the only one that it is for */
    cr_assert_eq(mp_placement_row_of(&p, 1), 0);
    cr_assert_eq(mp_placement_row_of(&p, 3), UINT32_MAX);
    mp_placement_release(&p);
    int32_t map[] = {0, 1, /**/ 1, 0};
    p = (mp_placement){.layers = 2, .num_logical = 2, .num_physical = 2, .map = map};
    cr_assert_eq(mp_placement_row_of(&p, 1), 1);
    cr_assert_eq(mp_placement_row_of(&p, 2), UINT32_MAX);
    cr_assert_eq(mp_placement_layer(&p, 1), 1);
    p.layers = 1;
    cr_assert_eq(mp_placement_row_of(&p, 60), 0);
}

Test(place, writing_for_ranks_that_do_not_divide)
{
    int32_t map[] = {0, 1, 2, 0};
    mp_placement p = {.layers = 1, .num_logical = 3, .num_physical = 4, .map = map};
    char *text;
    cr_assert_eq(mp_placement_write(&p, MP_PLACEMENT_VLLM_ASCEND, 3, &text, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message,
                     "placement: 4 physical experts do not divide evenly among 3 ranks");
    cr_assert_null(text);
    cr_assert_eq(mp_placement_write(&p, MP_PLACEMENT_SGLANG, 3, &text, &err), 0);
    free(text);
}

static void accept(const char *text, uint32_t layers, uint32_t n, uint32_t physical)
{
    mp_placement p;
    cr_assert_eq(mp_placement_parse(&p, text, strlen(text), 0, &err), 0, "%s: %s", text,
                 err.message);
    cr_assert_eq(p.layers, layers);
    cr_assert_eq(p.num_logical, n);
    cr_assert_eq(p.num_physical, physical);
    mp_placement_release(&p);
}

Test(place, other_spellings)
{
    accept("[2, 0, 1, 2]", 1, 3, 4); /* vLLM: one row for all layers */
    accept(" \n{\"physical_to_logical_map\":[[0]]}", 1, 1, 1);
    accept("{\"physical_to_logical_map\": [1, 0]}", 1, 2, 2);
    accept("# comment\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n"
           "  3:\n  - 1\n  - 0\n  4:\n  - 0\n  - 1\nnum_slots: 2\n",
           2, 2, 2);
    accept("---\nnum_slots: 3\ninitial_global_assignments: {5: [0, 1, 1]}\n", 1, 2, 3);
}

static void refuse_file(const char *text, uint64_t length, uint32_t num_logical, int code,
                        const char *message)
{
    mp_placement p;
    err = (mp_error){0};
    cr_assert_eq(mp_placement_parse(&p, text, length, num_logical, &err), code, "%s", text);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(p.map);
    mp_placement_release(&p);
}

static void refuse(const char *text, const char *message)
{
    refuse_file(text, strlen(text), 0, MP_ERR_INPUT, message);
}

Test(place, bad_matrices)
{
    refuse("", "placement: the file is empty");
    refuse(" \n\t", "placement: the file is empty");
    refuse("[]", "placement: no layers");
    refuse("[[]]", "placement: row 0 is empty");
    refuse("[[0, 1], []]", "placement: row 1 is empty");
    refuse("[[0, 1], [0, 1, 1]]", "placement: row 1 has 3 columns, row 0 has 2");
    refuse("[[0, 1], 5]", "placement: row 1 is not a list");
    refuse("[0, [1]]", "placement: row 0, column 1: not an integer");
    refuse("[[0, 1], [1, 0.5]]", "placement: row 1, column 1: not an integer");
    refuse("[[0, 1], [true, 1]]", "placement: row 1, column 0: not an integer");
    refuse("[[0, 1], [-1, 1]]", "placement: row 1, column 0: -1 is not a logical expert");
    refuse("[[0, 1], [4294967296, 1]]",
           "placement: row 1, column 0: 4294967296 is not a logical expert");
    refuse("[[0, 1], [1, 9]]",
           "placement: row 1, column 1: logical expert 9, but rows of 2 columns cannot hold that "
           "many");
    refuse("[[0, 1, 2], [0, 1, 1]]",
           "placement: row 1: logical expert 2 is in none of the 3 columns");
    refuse_file("[[0, 1, 2], [2, 1, 0]]", 22, 2, MP_ERR_INPUT,
                "placement: row 0, column 2: logical expert 2, expected 0 to 1");
    refuse_file("[[0, 1, 2], [2, 1, 0]]", 22, 4, MP_ERR_INPUT,
                "placement: rows of 3 columns cannot hold 4 logical experts");
    refuse("[[0, 1]", "placement: line 1, column 7: ']' expected near end of file");
}

Test(place, bad_sglang_files)
{
    refuse("{}", "placement: neither physical_to_logical_map nor layer_list is there");
    refuse("{\"physical_to_logical_map\": [[0]], \"logical_count\": [[1]]}",
           "placement: unknown key \"logical_count\"");
    refuse("{\"physical_to_logical_map\": 3}",
           "placement: \"physical_to_logical_map\" is an integer, expected an array");
    refuse("{\"physical_to_logical_map\": [[0]], \"physical_to_logical_map\": [[0]]}",
           "placement: line 1, column 60: duplicate object key");
}

Test(place, bad_ascend_files)
{
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [], \"x\": 1}",
           "placement: unknown key \"x\"");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": []}",
           "placement: moe_layer_count is 1, expected 0");
    refuse("{\"layer_list\": []}", "placement: \"moe_layer_count\" is missing");
    refuse("{\"moe_layer_count\": 0, \"layer_list\": []}", "placement: no layers");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [7]}",
           "placement: layer_list[0]: not an object");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": -3, \"device_count\": 0, "
           "\"device_list\": []}]}",
           "placement: layer_list[0]: \"layer_id\" is -3, expected 0 or more");
    refuse("{\"moe_layer_count\": 2, \"layer_list\": ["
           "{\"layer_id\": 3, \"device_count\": 1, \"device_list\": "
           "[{\"device_id\": 0, \"device_expert\": [0, 1]}]}, "
           "{\"layer_id\": 3, \"device_count\": 1, \"device_list\": "
           "[{\"device_id\": 0, \"device_expert\": [0, 1]}]}]}",
           "placement: row 1: layer 3, expected one above 3: layers must be in order, each once");
    refuse("{\"moe_layer_count\": 2, \"layer_list\": ["
           "{\"layer_id\": 3, \"device_count\": 1, \"device_list\": "
           "[{\"device_id\": 0, \"device_expert\": [0, 1]}]}, "
           "{\"layer_id\": 5, \"device_count\": 2, \"device_list\": "
           "[{\"device_id\": 0, \"device_expert\": [0]}, "
           "{\"device_id\": 1, \"device_expert\": [1]}]}]}",
           "placement: layer_list[1]: device_count is 2, expected 1");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": 0, \"device_count\": 2, "
           "\"device_list\": [{\"device_id\": 0, \"device_expert\": [0]}]}]}",
           "placement: layer_list[0]: device_count is 2, expected 1");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": 0, \"device_count\": 0, "
           "\"device_list\": []}]}",
           "placement: row 0 is empty");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": 0, \"device_count\": 2, "
           "\"device_list\": [{\"device_id\": 0, \"device_expert\": [0]}, {\"device_id\": 5, "
           "\"device_expert\": [1]}]}]}",
           "placement: layer_list[0].device_list[1]: device_id is 5, expected 1");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": 0, \"device_count\": 2, "
           "\"device_list\": [{\"device_id\": 0, \"device_expert\": [0]}, {\"device_id\": 1, "
           "\"device_expert\": [1, 0]}]}]}",
           "placement: layer_list[0].device_list[1]: device_expert has 2 experts, that of device 0 "
           "1");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": 0, \"device_count\": 1, "
           "\"device_list\": [{\"device_id\": 0, \"device_expert\": [0], \"x\": 0}]}]}",
           "placement: layer_list[0].device_list[0]: unknown key \"x\"");
    refuse("{\"moe_layer_count\": 1, \"layer_list\": [{\"layer_id\": 0, \"device_count\": 1, "
           "\"device_list\": [8]}]}",
           "placement: layer_list[0].device_list[0]: not an object");
}

Test(place, bad_yaml_files)
{
    refuse("just words", "placement: line 1: expected keys and values");
    refuse("num_slots: 2\n", "placement: initial_global_assignments is missing");
    refuse("initial_global_assignments: {0: [0]}\n", "placement: num_slots is missing");
    refuse("num_slots: 2\ninitial_global_assignments: {}\n", "placement: no layers");
    refuse("num_slots: 3\ninitial_global_assignments: {0: [0, 1]}\n",
           "placement: num_slots is 3, row 0 has 2 columns");
    refuse("num_slots: 2\nnum_slots: 2\n", "placement: line 2: a second num_slots");
    refuse("num_slots: two\n", "placement: line 1: num_slots is not an integer");
    refuse("num_slots: -2\n", "placement: line 1: num_slots is negative");
    refuse("num_slots: \"2\"\n", "placement: line 1: num_slots is not an integer");
    refuse("num_slots: 2\nexperts: 1\n", "placement: line 2: unknown key \"experts\"");
    refuse("num_slots: 2\n[1]: 1\n", "placement: line 2: expected a key");
    refuse("num_slots: 2\ninitial_global_assignments:\n  0: [0, 1]\n  0: [0, 1]\n",
           "placement: row 1: layer 0, expected one above 0: layers must be in order, each once");
    refuse("num_slots: 2\ninitial_global_assignments:\n  5: [0, 1]\n  3: [0, 1]\n",
           "placement: row 1: layer 3, expected one above 5: layers must be in order, each once");
    refuse("num_slots: 2\ninitial_global_assignments:\n  -1: [0, 1]\n",
           "placement: row 0: -1 is not a layer");
    refuse("num_slots: 2\ninitial_global_assignments:\n  2147483647: [0, 1]\n",
           "placement: row 0: 2147483647 is not a layer");
    refuse("num_slots: 2\ninitial_global_assignments:\n  0: [0, 1]\n  1: [0]\n",
           "placement: row 1 has 1 columns, row 0 has 2");
    refuse("num_slots: 2\ninitial_global_assignments:\n  0: [0, x]\n",
           "placement: line 3: expert is not an integer");
    refuse("num_slots: 2\ninitial_global_assignments:\n  0: [0, [1]]\n",
           "placement: line 3: expert is not an integer");
    refuse("num_slots: 2\ninitial_global_assignments:\n  0: 7\n",
           "placement: line 3: expected a list of experts");
    refuse("num_slots: 2\ninitial_global_assignments:\n  0: &a [0, 1]\n  1: *a\n",
           "placement: line 4: aliases are not accepted");
    refuse("num_slots: 1\ninitial_global_assignments: {0: [0]}\n---\nnum_slots: 1\n",
           "placement: line 3: expected a single document");
    refuse("num_slots: [\n", "placement: line 1: num_slots is not an integer");
    refuse("num_slots: 2\n\tx: 1\n",
           "placement: line 2, column 1: found a tab character that violates indentation");
}

#define TORCH_HINT                                                                                \
    "placement: this is a PyTorch .pt file; turn it into JSON with: python -c \"import json, "    \
    "sys, "                                                                                       \
    "torch; print(json.dumps({k: v.tolist() for k, v in torch.load(sys.argv[1]).items() if k == " \
    "'physical_to_logical_map'}))\" FILE.pt"

Test(place, torch_files_are_refused_with_a_hint)
{
    refuse_file("PK\003\004\0\0\0\0", 8, 0, MP_ERR_UNSUPPORTED, TORCH_HINT);
    refuse_file("\200\002}q\001.", 6, 0, MP_ERR_UNSUPPORTED, TORCH_HINT);
}

Test(place, text_may_hold_zero_bytes)
{
    refuse_file("[[0]\0]", 6, 0, MP_ERR_INPUT,
                "placement: line 1, column 5: ']' expected near end of file");
}
