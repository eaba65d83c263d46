/* SPDX-License-Identifier: Apache-2.0 */
/* verify, digest and exact: every planted fault is found, in its place and by its name. */
#include "verify_pack.h"

#include "layout/tile.h"

TestSuite(verify, .init = make_pack, .fini = remove_pack);

/* Tensors of a slot, and what is known of them apart from the layout's code. */
static const struct kind {
    const char *name;
    uint64_t slot_bytes;
    unsigned element_bytes; /* 0: two elements a byte */
} kinds[] = {
    {"l1_weight", 2 * INTER *HIDDEN / 2, 0},
    {"l1_weight_sf", 2 * INTER *HIDDEN / 32, 4},
    {"l2_weight", HIDDEN *INTER / 2, 0},
    {"l2_weight_sf", HIDDEN *INTER / 32, 4},
};

#define KINDS (sizeof kinds / sizeof kinds[0])

static const char *const layers[] = {"layers.0", "mtp.0"};

/* Experts of the slots, by layer and rank. */
static const uint32_t experts[2][2][SLOTS] = {{{4, 0, 2}, {1, 3, 2}}, {{0, 1, 1}, {4, 3, 2}}};

static const char *tensor_name(unsigned layer, unsigned kind)
{
    static char names[4][128];
    static int next;
    char *name = names[next++ % 4];

    snprintf(name, sizeof names[0], "%s.experts.%s", layers[layer], kinds[kind].name);
    return name;
}

/* Where in the source a byte of an L1 weight slot comes from: eights of gate and up. */
static void describe_l1(unsigned layer, uint32_t expert, uint64_t offset, bool high, char *text)
{
    uint64_t r = offset / (HIDDEN / 2), column = offset % (HIDDEN / 2) * 2 + high;
    uint64_t row = r / 16 * 8 + r % 8;

    sprintf(text, "%s.ffn.experts.%u.%s.weight row %d column %d says", layers[layer], expert,
            r % 16 < 8 ? "w1" : "w3", (int)row, (int)column);
}

static void describe_l2(unsigned layer, uint32_t expert, uint64_t offset, bool high, char *text)
{
    sprintf(text, "%s.ffn.experts.%u.w2.weight row %d column %d says", layers[layer], expert,
            (int)(offset / (INTER / 2)), (int)(offset % (INTER / 2) * 2 + high));
}

/* Word w of row position p of a scale slot, [K/128, MN]: UTCCP order, and for L1 eights. */
static void describe_scale(unsigned layer, uint32_t expert, unsigned kind, uint64_t offset,
                           char *text)
{
    bool l1 = kind == 1;
    uint64_t mn = l1 ? 2 * INTER : HIDDEN, p = offset / 4 % mn, word = offset / 4 / mn;
    uint64_t r = p / 128 * 128 + p % 4 * 32 + p % 128 / 4;
    const char *matrix = !l1 ? "w2" : r % 16 < 8 ? "w1" : "w3";

    if (l1)
        r = r / 16 * 8 + r % 8;
    sprintf(text, "%s.ffn.experts.%u.%s.scale row %d column %d says", layers[layer], expert, matrix,
            (int)r, (int)(4 * word + offset % 4));
}

/* ------------------------------------------------------------------------
 * Whole packs
 */

Test(verify, finds_nothing_in_a_sound_pack)
{
    verify(MP_VERIFY_EXACT);
    expect_count(0);
    cr_expect_eq(report.level, MP_VERIFY_EXACT);
    cr_expect_eq(report.files, 2);
    cr_expect_eq(report.tensors, 2 * 2 * KINDS);
    cr_expect_eq(report.slots, 2 * 2 * SLOTS);
    cr_expect_eq(report.bytes, 2 * 2 * SLOTS * 3 * INTER * HIDDEN / 32 * 17);
    verify(MP_VERIFY_DIGEST);
    expect_count(0);
    cr_expect_eq(report.slots, 0);
}

Test(verify, lists_every_part_that_it_checked)
{
    static const struct {
        int64_t rank;
        mp_verify_level level;
    } parts[] = {{-1, MP_VERIFY_STRUCTURE},
                 {-1, MP_VERIFY_EXACT},
                 {1, MP_VERIFY_STRUCTURE},
                 {1, MP_VERIFY_DIGEST},
                 {1, MP_VERIFY_EXACT}};

    flip(1, tensor_name(0, 0), 0, 1);
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = SOURCE,
                                            .ranks = "1"},
                        1));
    cr_assert_eq(report.num_parts, sizeof parts / sizeof parts[0]);
    for (size_t i = 0; i < report.num_parts; i++) {
        cr_expect_eq(report.parts[i].rank, parts[i].rank, "part %zu", i);
        cr_expect_eq(report.parts[i].level, parts[i].level, "part %zu", i);
        cr_expect_eq(report.parts[i].faults, i >= 3, "part %zu", i);
    }
}

Test(verify, needs_a_source_for_exact)
{
    cr_assert_eq(
        verify_with(
            (mp_verify_options){.size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT}, 1),
        MP_ERR_USAGE);
    cr_assert_str_eq(err.message, "level exact needs the source checkpoint");
}

Test(verify, takes_a_null_for_an_error_that_nobody_wants)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT};

    cr_assert_eq(mp_verify(out, &options, NULL, &report, NULL), MP_ERR_USAGE);
    put_text(at("rank-000/" MP_INDEX_NAME), "[]");
    options.source = SOURCE;
    cr_assert_eq(mp_verify(out, &options, NULL, &report, NULL), 0);
    expect_structure(0, MP_INDEX_NAME);
}

/* ------------------------------------------------------------------------
 * Digest
 */

Test(verify, digest_names_the_tensor_of_a_flipped_bit)
{
    for (unsigned kind = 0; kind < KINDS; kind++) {
        flip(1, tensor_name(1, kind), kinds[kind].slot_bytes * 2 + 5, 4);
        verify(MP_VERIFY_DIGEST);
        expect_count(1);
        expect(0, MP_VERIFY_DIGEST, 1, "mtp.0", -1, tensor_name(1, kind), -1, "changed: its xxh3");
        flip(1, tensor_name(1, kind), kinds[kind].slot_bytes * 2 + 5, 4);
    }
}

Test(verify, digest_finds_bytes_of_another_rank)
{
    uint64_t bytes = kinds[1].slot_bytes * SLOTS;
    char *data = malloc(bytes);

    peek(0, tensor_name(1, 1), 0, data, bytes);
    poke(1, tensor_name(1, 1), 0, data, bytes);
    free(data);
    verify(MP_VERIFY_DIGEST);
    expect_count(1);
    expect(0, MP_VERIFY_DIGEST, 1, "mtp.0", -1, tensor_name(1, 1), -1, "holds the bytes of rank 0");
}

Test(verify, both_levels_report_a_flipped_bit)
{
    flip(0, tensor_name(0, 2), 7, 0x40);
    verify(MP_VERIFY_EXACT);
    expect_count(2);
    expect(0, MP_VERIFY_DIGEST, 0, "layers.0", -1, tensor_name(0, 2), -1, "changed");
    expect(1, MP_VERIFY_EXACT, 0, "layers.0", 0, tensor_name(0, 2), 15, "holds 0x");
}

/* ------------------------------------------------------------------------
 * Exact, on its own: the manifest's digests fit the damaged bytes
 */

Test(verify, exact_names_the_element_of_every_flipped_bit)
{
    for (unsigned kind = 0; kind < KINDS; kind++) {
        uint64_t last = kinds[kind].slot_bytes - 1;
        const uint64_t offsets[] = {0, 191, 192 * 8 + 17, 1023, last / 2 + 5, last};

        for (unsigned i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
            unsigned layer = i % 2, rank = i / 2 % 2, slot = i % SLOTS, bit = (3 * i + kind) % 8;
            uint32_t expert = experts[layer][rank][slot];
            uint64_t offset = offsets[i];
            bool high = bit >= 4;
            char detail[200];

            flip(rank, tensor_name(layer, kind), slot * kinds[kind].slot_bytes + offset,
                 (uint8_t)(1 << bit));
            seal();
            verify(MP_VERIFY_EXACT);
            expect_count(1);
            if (kind == 0)
                describe_l1(layer, expert, offset, high, detail);
            else if (kind == 2)
                describe_l2(layer, expert, offset, high, detail);
            else
                describe_scale(layer, expert, kind, offset, detail);
            expect(0, MP_VERIFY_EXACT, rank, layers[layer], slot, tensor_name(layer, kind),
                   (int64_t)(kinds[kind].element_bytes ? offset / kinds[kind].element_bytes
                                                       : 2 * offset + high),
                   detail);
            flip(rank, tensor_name(layer, kind), slot * kinds[kind].slot_bytes + offset,
                 (uint8_t)(1 << bit));
        }
    }
}

Test(verify, exact_names_both_values)
{
    uint8_t byte, wrong;
    char detail[64];

    peek(0, tensor_name(0, 0), 12345, &byte, 1);
    wrong = byte ^ 0x21;
    poke(0, tensor_name(0, 0), 12345, &wrong, 1);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    snprintf(detail, sizeof detail, "holds 0x%02x where layers.0.ffn.experts.4.", wrong);
    expect(0, MP_VERIFY_EXACT, 0, "layers.0", 0, tensor_name(0, 0), 2 * 12345, detail);
    snprintf(detail, sizeof detail, " says 0x%02x", byte);
    cr_expect(strlen(report.faults[0].detail) > strlen(detail) &&
                  strcmp(strstr(report.faults[0].detail, " says"), detail) == 0,
              "%s", report.faults[0].detail);
}

/* Of several differences in a slot, the first in the order of the packed tensor is named;
 * in the source's order another one would come first. */
Test(verify, exact_names_the_first_of_many_differences)
{
    /* Packed row 9 is an up row, packed row 16 a gate row. */
    flip(1, tensor_name(0, 0), 16 * HIDDEN / 2 + 3, 1);
    flip(1, tensor_name(0, 0), 9 * HIDDEN / 2 + 70, 1);
    flip(1, tensor_name(0, 0), 9 * HIDDEN / 2 + 90, 1);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 1, "layers.0", 0, tensor_name(0, 0), 2 * (9 * HIDDEN / 2 + 70),
           "w3.weight row 1 column 140 says");
    expect(0, MP_VERIFY_EXACT, 1, "layers.0", 0, tensor_name(0, 0), 2 * (9 * HIDDEN / 2 + 70),
           "; 3 bytes in 2 rows differ");
}

/* In the source's order, row 0 comes before row 32; packed, the second word of the first
 * row comes after the first words of all. */
Test(verify, exact_names_the_first_of_many_scales)
{
    flip(0, tensor_name(0, 3), HIDDEN * 4, 1);
    flip(0, tensor_name(0, 3), 6, 1);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, "layers.0", 0, tensor_name(0, 3), 1,
           "w2.scale row 32 column 2 says");
    expect(0, MP_VERIFY_EXACT, 0, "layers.0", 0, tensor_name(0, 3), 1,
           "; 2 bytes in 2 rows differ");
}

static void swap_slots(unsigned rank, unsigned layer, unsigned kind, unsigned a, unsigned b)
{
    uint64_t bytes = kinds[kind].slot_bytes;
    char *one = malloc(bytes), *other = malloc(bytes);

    peek(rank, tensor_name(layer, kind), a * bytes, one, bytes);
    peek(rank, tensor_name(layer, kind), b * bytes, other, bytes);
    poke(rank, tensor_name(layer, kind), a * bytes, other, bytes);
    poke(rank, tensor_name(layer, kind), b * bytes, one, bytes);
    free(one);
    free(other);
}

Test(verify, exact_says_which_experts_swapped_slots_hold)
{
    for (unsigned kind = 0; kind < KINDS; kind++)
        swap_slots(1, 0, kind, 0, 2);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(2 * KINDS);
    for (unsigned i = 0; i < 2 * KINDS; i++) {
        const mp_fault *f = &report.faults[i];
        const char *detail = i < KINDS ? "holds expert 2 where expert 1 belongs"
                                       : "holds expert 1 where expert 2 belongs";

        expect(i, MP_VERIFY_EXACT, 1, "layers.0", i < KINDS ? 0 : 2, tensor_name(0, i % KINDS),
               f->element, detail);
        cr_expect_geq(f->element, 0);
    }
}

/* Slots 1 and 2 of rank 0 in the MTP block are copies of one expert. */
Test(verify, exact_takes_copies_of_an_expert_for_equal)
{
    for (unsigned kind = 0; kind < KINDS; kind++)
        swap_slots(0, 1, kind, 1, 2);
    verify(MP_VERIFY_EXACT);
    expect_count(0);
}

Test(verify, exact_checks_each_copy_on_its_own)
{
    flip(0, tensor_name(1, 0), 2 * kinds[0].slot_bytes + 4, 1);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, "mtp.0", 2, tensor_name(1, 0), 8,
           "mtp.0.ffn.experts.1.w1.weight");
}

/* Exchanges runs of 8 rows: gate and up of a whole slot, or only of its first run. */
static void exchange_gate_and_up(unsigned slot, unsigned runs)
{
    enum { RUN = 8 * HIDDEN / 2 };
    char one[RUN], other[RUN];

    for (unsigned run = 0; run < runs; run++) {
        uint64_t offset = slot * kinds[0].slot_bytes + run * 2 * RUN;

        peek(0, tensor_name(0, 0), offset, one, RUN);
        peek(0, tensor_name(0, 0), offset + RUN, other, RUN);
        poke(0, tensor_name(0, 0), offset, other, RUN);
        poke(0, tensor_name(0, 0), offset + RUN, one, RUN);
    }
}

Test(verify, exact_says_that_gate_and_up_are_exchanged)
{
    exchange_gate_and_up(1, INTER / 8);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, "layers.0", 1, tensor_name(0, 0), report.faults[0].element,
           "gate and up of expert 0 are exchanged; holds 0x");
}

/* Up twice is no exchange. The last byte makes more than half of the rows differ. */
Test(verify, exact_does_not_take_one_matrix_twice_for_an_exchange)
{
    enum { RUN = 8 * HIDDEN / 2 };
    char up[RUN];

    for (unsigned run = 0; run < INTER / 8; run++) {
        peek(0, tensor_name(0, 0), (2 * run + 1) * RUN, up, RUN);
        poke(0, tensor_name(0, 0), 2 * run * RUN, up, RUN);
    }
    flip(0, tensor_name(0, 0), kinds[0].slot_bytes - 1, 1);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    cr_expect_eq(strncmp(report.faults[0].detail, "holds 0x", 8), 0, "%s", report.faults[0].detail);
}

Test(verify, exact_says_that_scales_of_gate_and_up_are_exchanged)
{
    const mp_target *target = mp_target_find("megamoe-w4a8");
    const mp_dims dims = {HIDDEN, INTER};
    static uint8_t packed[2 * INTER * HIDDEN / 32], canonical[sizeof packed],
        exchanged[sizeof packed];

    peek(0, tensor_name(0, 1), sizeof packed, packed, sizeof packed);
    target->unpack_scale(&dims, MP_L1, packed, canonical);
    memcpy(exchanged, canonical + sizeof packed / 2, sizeof packed / 2);
    memcpy(exchanged + sizeof packed / 2, canonical, sizeof packed / 2);
    target->pack_scale(&dims, MP_L1, exchanged, packed);
    poke(0, tensor_name(0, 1), sizeof packed, packed, sizeof packed);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, "layers.0", 1, tensor_name(0, 1), report.faults[0].element,
           "gate and up of expert 0 are exchanged; holds 0x");
}

Test(verify, exact_finds_a_single_exchanged_run)
{
    exchange_gate_and_up(2, 1);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    cr_expect_null(strstr(report.faults[0].detail, "exchanged"));
    expect(0, MP_VERIFY_EXACT, 0, "layers.0", 2, tensor_name(0, 0), report.faults[0].element,
           "rows differ");
    cr_expect_lt(report.faults[0].element, HIDDEN);
}

Test(verify, exact_finds_rows_that_are_not_interleaved)
{
    const mp_target *target = mp_target_find("megamoe-w4a8");
    const mp_dims dims = {HIDDEN, INTER};
    static uint8_t packed[INTER * HIDDEN], plain[sizeof packed];

    peek(1, tensor_name(1, 0), 0, packed, sizeof packed);
    const mp_tile whole = mp_tile_at(target, &dims, MP_L1, sizeof packed, 0);
    uint8_t *const parts[2] = {plain, plain + sizeof packed / 2};

    cr_assert_eq(whole.bytes, sizeof packed);
    target->unpack_weight(&dims, MP_L1, &whole, packed, parts);
    poke(1, tensor_name(1, 0), 0, plain, sizeof packed);
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(1);
    /* The first run of gate is in its place; row 8 of gate stands where up begins. */
    expect(0, MP_VERIFY_EXACT, 1, "mtp.0", 0, tensor_name(1, 0), report.faults[0].element,
           ".w3.weight row 0 ");
    cr_expect_geq(report.faults[0].element, 8 * HIDDEN);
    cr_expect_lt(report.faults[0].element, 9 * HIDDEN);
}

Test(verify, exact_finds_scales_that_are_shifted_by_a_row)
{
    for (unsigned kind = 1; kind < KINDS; kind += 2) {
        uint64_t bytes = kinds[kind].slot_bytes;
        uint8_t *before = malloc(bytes), *after = malloc(bytes);

        peek(0, tensor_name(0, kind), 0, before, bytes);
        memcpy(after + 4, before, bytes - 4);
        memcpy(after, before + bytes - 4, 4);
        poke(0, tensor_name(0, kind), 0, after, bytes);
        seal();
        verify(MP_VERIFY_EXACT);
        expect_count(1);
        expect(0, MP_VERIFY_EXACT, 0, "layers.0", 0, tensor_name(0, kind), report.faults[0].element,
               "rows differ");
        poke(0, tensor_name(0, kind), 0, before, bytes);
        free(before);
        free(after);
    }
}

/* The placement, not the writer, says what belongs where. */
Test(verify, exact_follows_the_placement)
{
    put_text(at(MP_PLACEMENT_NAME), "{\"physical_to_logical_map\": "
                                    "[[4, 0, 2, 1, 3, 2], [0, 1, 1, 3, 4, 2]]}");
    seal();
    verify(MP_VERIFY_EXACT);
    expect_count(2 * KINDS);
    for (unsigned i = 0; i < 2 * KINDS; i++)
        expect(i, MP_VERIFY_EXACT, 1, "mtp.0", i / KINDS, tensor_name(1, i % KINDS),
               report.faults[i].element,
               i < KINDS ? "holds expert 4 where expert 3 belongs"
                         : "holds expert 3 where expert 4 belongs");
}

/* ------------------------------------------------------------------------
 * Selections, many faults, running
 */

Test(verify, looks_at_selected_ranks_and_layers_only)
{
    flip(0, tensor_name(0, 0), 0, 1);
    flip(1, tensor_name(1, 0), 0, 1);
    put_text(at("rank-001/notes.txt"), "x");
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = SOURCE,
                                            .layers = "mtp.0",
                                            .ranks = "0"},
                        1));
    expect_count(0);
    cr_expect_eq(report.files, 1);
    cr_expect_eq(report.tensors, KINDS);
    cr_expect_eq(report.slots, SLOTS);
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = SOURCE,
                                            .layers = "0"},
                        1));
    expect_count(3);
    expect(0, MP_VERIFY_DIGEST, 0, "layers.0", -1, tensor_name(0, 0), -1, "changed");
    expect(1, MP_VERIFY_EXACT, 0, "layers.0", 0, tensor_name(0, 0), 0, "holds");
}

Test(verify, refuses_selections_of_nothing)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options),
                                 .level = MP_VERIFY_DIGEST,
                                 .layers = "0-1,model.layers.0"};

    cr_expect_eq(verify_with(options, 1), MP_ERR_USAGE);
    cr_expect_not_null(strstr(err.message, "model.layers.0"), "%s", err.message);
    options = (mp_verify_options){
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_DIGEST, .ranks = "2"};
    cr_expect_eq(verify_with(options, 1), MP_ERR_USAGE);
    cr_expect_not_null(strstr(err.message, "\"2\""), "%s", err.message);
}

/* Damages a byte in every slot of every tensor, and one row in the weights. */
static void damage_everything(void)
{
    for (unsigned rank = 0; rank < 2; rank++)
        for (unsigned layer = 0; layer < 2; layer++)
            for (unsigned kind = 0; kind < KINDS; kind++)
                for (unsigned slot = 0; slot < SLOTS; slot++)
                    flip(rank, tensor_name(layer, kind),
                         slot * kinds[kind].slot_bytes + 31 * slot + kind, 0x11);
}

Test(verify, report_does_not_depend_on_threads)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT, .source = SOURCE};

    damage_everything();
    for (unsigned kind = 0; kind < KINDS; kind++)
        swap_slots(0, 0, kind, 0, 1);
    succeed(verify_with(options, 1));
    mp_verify_report first = report;
    report = (mp_verify_report){0};
    cr_assert_eq(first.total_faults, 2 * 2 * KINDS * (SLOTS + 1));
    for (int threads = 2; threads < 7; threads++) {
        succeed(verify_with(options, threads));
        cr_assert_eq(report.num_faults, first.num_faults);
        for (size_t i = 0; i < first.num_faults; i++)
            expect(i, first.faults[i].level, first.faults[i].rank, first.faults[i].layer,
                   first.faults[i].slot, first.faults[i].tensor, first.faults[i].element,
                   first.faults[i].detail);
    }
    mp_verify_report_release(&first);
}

static int cancel_flag;

static void cancel_after_some(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;

    cr_expect_gt(done, *last);
    cr_expect_leq(done, total);
    *last = done;
    if (done > total / 3)
        __atomic_store_n(&cancel_flag, 1, __ATOMIC_RELEASE);
}

Test(verify, stops_when_it_is_cancelled)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT, .source = SOURCE};
    uint64_t last = 0;
    mp_context context = {.threads = 2,
                          .cancel = &cancel_flag,
                          .progress = cancel_after_some,
                          .progress_user = &last};

    cr_assert_eq(mp_verify(out, &options, &context, &report, &err), MP_ERR_CANCELLED);
    cr_expect_gt(last, 0);
    cr_expect_eq(report.num_faults, 0);
}

Test(verify, stops_between_ranks_at_level_structure)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE};
    mp_context context = {.cancel = &cancel_flag};

    cancel_flag = 1;
    cr_assert_eq(mp_verify(out, &options, &context, &report, &err), MP_ERR_CANCELLED);
}

static void keep_progress(void *user, uint64_t done, uint64_t total)
{
    uint64_t *seen = user;

    seen[0] = done;
    seen[1] = total;
}

Test(verify, progress_ends_at_all_bytes_of_both_levels)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_EXACT, .source = SOURCE};
    uint64_t seen[2] = {0};
    mp_context context = {.threads = 2, .progress = keep_progress, .progress_user = seen};

    succeed(mp_verify(out, &options, &context, &report, &err));
    cr_expect_eq(seen[0], 2 * report.bytes);
    cr_expect_eq(seen[1], 2 * report.bytes);
}
