/* SPDX-License-Identifier: Apache-2.0 */
/* verify, numeric: faults that are planted into sound packs, with digests that fit them, are
 * found by exact and by numeric, and both name the slot. */
#include <math.h>

#include "verify_layouts.h"
#include "verify_pack.h"

#include "forward/reference.h"
#include "pack/pack.h"

#define EXPERTS 8
#define EP      2
#define ROUTED  6 /* routed slots of a rank: 8 experts and 4 copies */

static char source[512];
static mp_dims dims;
static const mp_target *target;
static char prefix[64];

/* A source with a factor of the router's weights, on two ranks. */
static void make_numeric_pack(const char *family, mp_scheme scheme, const char *name,
                              mp_shared_mode shared)
{
    const mp_synth_options synth = {
        .family = family,
        .scheme = scheme,
        .hidden_size = 256,
        .intermediate_size = 128,
        .num_experts = EXPERTS,
        .num_shared_experts = 1,
        .top_k = 3,
        .num_layers = 1,
        .vocab_size = 32,
        .routed_scaling_factor = 2.5,
        .seed = 5,
    };

    make_scratch();
    snprintf(source, sizeof source, "%s/source", scratch);
    succeed(mp_synth(&synth, source, NULL, &err));
    target = mp_target_find(name);
    dims = (mp_dims){synth.hidden_size, synth.intermediate_size};
    strcpy(prefix, strcmp(family, "deepseek_v4") == 0 ? "layers.0" : "model.layers.0");
    pack_source(source, (mp_repack_options){.target = target,
                                            .ep = EP,
                                            .redundant = EP * ROUTED - EXPERTS,
                                            .shared = shared});
}

static void verify_numeric(void)
{
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_NUMERIC,
                                            .source = source,
                                            .tokens = 16},
                        2));
}

static const mp_verify_numeric *figures(void)
{
    cr_assert_eq(report.num_numeric, 1);
    return &report.numeric[0];
}

/* The first fault at a level that is in this slot, or null. */
static const mp_fault *find_fault(mp_verify_level level, int64_t rank, int64_t slot)
{
    for (size_t i = 0; i < report.num_faults; i++) {
        const mp_fault *f = &report.faults[i];

        if (f->level == level && f->rank == rank && f->slot == slot)
            return f;
    }
    return NULL;
}

static uint64_t count_faults(mp_verify_level level)
{
    uint64_t count = 0;

    for (size_t i = 0; i < report.num_parts; i++)
        count += report.parts[i].level == level ? report.parts[i].faults : 0;
    return count;
}

static void describe_faults(void)
{
    for (size_t i = 0; i < report.num_faults && i < 8; i++)
        cr_log_error("%s, rank %lld, slot %lld: %s", mp_verify_level_name(report.faults[i].level),
                     (long long)report.faults[i].rank, (long long)report.faults[i].slot,
                     report.faults[i].detail);
}

/* Both levels find faults in these slots of a rank, and numeric in no other. */
static void expect_slots(uint32_t rank, const int64_t *slots, size_t count)
{
    seal();
    verify_numeric();
    for (size_t i = 0; i < count; i++) {
        const mp_fault *f = find_fault(MP_VERIFY_NUMERIC, rank, slots[i]);

        cr_expect_not_null(find_fault(MP_VERIFY_EXACT, rank, slots[i]), "exact, slot %lld",
                           (long long)slots[i]);
        cr_expect_not_null(f, "numeric, slot %lld", (long long)slots[i]);
        if (f) {
            cr_expect_str_eq(f->layer, prefix);
            cr_expect_null(f->tensor);
            cr_expect_not_null(strstr(f->detail, " of 256 columns differ"), "%s", f->detail);
        }
    }
    cr_expect_eq(count_faults(MP_VERIFY_NUMERIC), count);
    cr_expect_eq(count_faults(MP_VERIFY_STRUCTURE) + count_faults(MP_VERIFY_DIGEST), 0);
    cr_expect_not(figures()->bit_identical);
    if (count_faults(MP_VERIFY_NUMERIC) != count)
        describe_faults();
}

/* ------------------------------------------------------------------------
 * Slots
 */

static const mp_slot_tensor *tensors_of(unsigned *count)
{
    static mp_slot_tensor tensors[MP_TARGET_TENSORS];

    *count = target->describe(&dims, tensors);
    return tensors;
}

static const char *name_of(const mp_slot_tensor *tensor)
{
    static char name[128];

    snprintf(name, sizeof name, "%s.experts.%s", prefix, tensor->name);
    return name;
}

/* Whether a pack has an optional tensor is not asked: none of these has any. */
static void move_slots(uint32_t rank, const unsigned *from, unsigned first, unsigned count)
{
    unsigned num_tensors;
    const mp_slot_tensor *tensors = tensors_of(&num_tensors);

    for (unsigned t = 0; t < num_tensors; t++) {
        uint64_t n = tensors[t].slot_bytes;
        uint8_t *bytes = malloc(count * n);

        if (tensors[t].optional) {
            free(bytes);
            continue;
        }
        for (unsigned i = 0; i < count; i++)
            peek(rank, name_of(&tensors[t]), from[i] * n, bytes + i * n, n);
        poke(rank, name_of(&tensors[t]), first * n, bytes, count * n);
        free(bytes);
    }
}

/* A tensor of a slot. */
typedef struct held_bytes {
    const mp_slot_tensor *tensor;
    uint32_t rank;
    unsigned slot;
    uint8_t *bytes;
} held_bytes;

static held_bytes hold(uint32_t rank, unsigned slot, mp_side side, mp_role role)
{
    unsigned count;
    const mp_slot_tensor *tensors = tensors_of(&count);
    held_bytes h = {.rank = rank, .slot = slot};

    for (unsigned t = 0; t < count; t++)
        if (tensors[t].side == side && tensors[t].role == role)
            h.tensor = &tensors[t];
    cr_assert_not_null(h.tensor);
    h.bytes = malloc(h.tensor->slot_bytes);
    peek(rank, name_of(h.tensor), slot * h.tensor->slot_bytes, h.bytes, h.tensor->slot_bytes);
    return h;
}

static void put(held_bytes *h)
{
    poke(h->rank, name_of(h->tensor), h->slot * h->tensor->slot_bytes, h->bytes,
         h->tensor->slot_bytes);
    free(h->bytes);
}

/* Exchanges runs of bytes. */
static void exchange(uint8_t *a, uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = a[i];

        a[i] = b[i];
        b[i] = byte;
    }
}

/* ------------------------------------------------------------------------
 * Planted faults
 */

static void make_w4a8(void)
{
    make_numeric_pack("deepseek_v4", MP_SCHEME_MXFP4, "megamoe-w4a8", MP_SHARED_SEPARATE);
}

Test(verify_numeric, finds_an_expert_in_a_wrong_slot, .fini = remove_pack)
{
    static const unsigned exchanged[] = {4, 3, 2};

    make_w4a8();
    move_slots(1, exchanged, 2, 3);
    expect_slots(1, (const int64_t[]){2, 4}, 2);
}

/* Runs of 8 rows: gate, up, gate, ... */
Test(verify_numeric, finds_gate_and_up_exchanged, .fini = remove_pack)
{
    make_w4a8();
    held_bytes weight = hold(0, 3, MP_L1, MP_ROLE_WEIGHT);
    held_bytes scale = hold(0, 3, MP_L1, MP_ROLE_SCALE);
    uint64_t rows = 2 * dims.intermediate_size, run = 8 * dims.hidden_size / 2;

    for (uint64_t r = 0; r < rows / 16; r++)
        exchange(weight.bytes + 2 * r * run, weight.bytes + (2 * r + 1) * run, run);
    for (uint64_t w = 0; w < dims.hidden_size / 128; w++)
        for (uint64_t p = 0; p < rows; p++)
            for (uint64_t q = 0; q < p; q++)
                if ((utccp(p) ^ 8) == utccp(q))
                    exchange(scale.bytes + (w * rows + p) * 4, scale.bytes + (w * rows + q) * 4, 4);
    put(&weight);
    put(&scale);
    expect_slots(0, (const int64_t[]){3}, 1);
    cr_expect_not_null(
        strstr(find_fault(MP_VERIFY_EXACT, 0, 3)->detail, "gate and up of expert 3 are exchanged"));
}

Test(verify_numeric, finds_scales_shifted_by_a_row, .fini = remove_pack)
{
    make_w4a8();
    held_bytes h = hold(1, 0, MP_L2, MP_ROLE_SCALE);
    uint64_t rows = dims.hidden_size;
    uint8_t *shifted = malloc(h.tensor->slot_bytes);

    for (uint64_t w = 0; w < dims.intermediate_size / 128; w++)
        for (uint64_t p = 0; p < rows; p++)
            for (uint64_t q = 0; q < rows; q++)
                if (utccp(q) == (utccp(p) + 1) % rows)
                    memcpy(shifted + (w * rows + q) * 4, h.bytes + (w * rows + p) * 4, 4);
    memcpy(h.bytes, shifted, h.tensor->slot_bytes);
    free(shifted);
    put(&h);
    expect_slots(1, (const int64_t[]){0}, 1);
}

Test(verify_numeric, finds_the_utccp_order_left_out, .fini = remove_pack)
{
    make_w4a8();
    held_bytes h = hold(0, 5, MP_L1, MP_ROLE_SCALE);
    uint64_t rows = 2 * dims.intermediate_size;
    uint8_t *plain = malloc(h.tensor->slot_bytes);

    for (uint64_t w = 0; w < dims.hidden_size / 128; w++)
        for (uint64_t p = 0; p < rows; p++)
            memcpy(plain + (w * rows + utccp(p)) * 4, h.bytes + (w * rows + p) * 4, 4);
    memcpy(h.bytes, plain, h.tensor->slot_bytes);
    free(plain);
    put(&h);
    expect_slots(0, (const int64_t[]){5}, 1);
}

/* What one layout packs, in a pack that says it is the other. */
Test(verify_numeric, finds_rows_interleaved_in_eights_for_sixteens, .fini = remove_pack)
{
    make_numeric_pack("deepseek_v4", MP_SCHEME_MXFP4, "megamoe-w4a4", MP_SHARED_NONE);
    held_bytes h = hold(1, 1, MP_L1, MP_ROLE_WEIGHT);
    uint64_t rows = 2 * dims.intermediate_size, row_bytes = dims.hidden_size / 2;
    uint8_t *eights = malloc(rows * row_bytes);

    for (uint64_t r = 0; r < rows; r++) {
        place want = row_of_runs(8, r);

        for (uint64_t s = 0; s < rows; s++) {
            place have = row_even_odd(s);

            if (have.matrix == want.matrix && have.row == want.row)
                memcpy(eights + r * row_bytes, h.bytes + s * row_bytes, row_bytes);
        }
    }
    memcpy(h.bytes, eights, rows * row_bytes);
    free(eights);
    put(&h);
    expect_slots(1, (const int64_t[]){1}, 1);
}

static void make_fused(void)
{
    make_numeric_pack("deepseek_v3", MP_SCHEME_FP8_BLOCK, "megamoe-sm90-fp8", MP_SHARED_FUSED);
}

/* An engine that goes by this config.json neither divides the weight of the shared expert nor
 * multiplies the result. */
Test(verify_numeric, finds_a_shared_weight_that_is_not_divided, .fini = remove_pack)
{
    make_fused();
    json_t *config = json_load_file(at(MP_CONFIG_NAME), 0, NULL);
    cr_assert_eq(json_object_del(config, "routed_scaling_factor"), 0);
    cr_assert_eq(json_dump_file(config, at(MP_CONFIG_NAME), 0), 0);
    json_decref(config);
    seal();
    verify_numeric();
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, -1, NULL, -1, NULL, -1, "config.json: xxh3 ");
    expect(1, MP_VERIFY_NUMERIC, -1, prefix, -1, NULL, -1,
           "; 16 of 16 routed tokens differ without a slot that does; this one chose expert ");
    cr_expect_not_null(strstr(report.faults[1].detail, ", shared expert 0 on rank 0"));
}

/* The other way of getting it wrong: the weights of the expert hold the factor. */
Test(verify_numeric, finds_a_shared_expert_that_is_multiplied, .fini = remove_pack)
{
    make_fused();
    held_bytes h = hold(1, ROUTED, MP_L2, MP_ROLE_SCALE);

    for (uint64_t i = 0; i < h.tensor->slot_bytes / sizeof(float); i++) {
        float scale;

        memcpy(&scale, h.bytes + i * sizeof scale, sizeof scale);
        scale *= 2.5f;
        memcpy(h.bytes + i * sizeof scale, &scale, sizeof scale);
    }
    put(&h);
    expect_slots(1, (const int64_t[]){ROUTED}, 1);
    cr_expect_not_null(strstr(find_fault(MP_VERIFY_NUMERIC, 1, ROUTED)->detail, "shared expert 0"));
}

/* Shared slots stand behind P / ep routed ones, not behind N / ep. */
Test(verify_numeric, finds_the_physical_count_taken_for_the_logical, .fini = remove_pack)
{
    static const unsigned taken[] = {ROUTED, 4, 5};

    make_fused();
    for (uint32_t rank = 0; rank < EP; rank++)
        move_slots(rank, taken, EXPERTS / EP, 3);
    seal();
    verify_numeric();
    for (int64_t rank = 0; rank < EP; rank++) {
        for (int64_t slot = 4; slot <= ROUTED; slot++) {
            cr_expect_not_null(find_fault(MP_VERIFY_EXACT, rank, slot));
            cr_expect_not_null(find_fault(MP_VERIFY_NUMERIC, rank, slot));
        }
    }
    cr_expect_eq(count_faults(MP_VERIFY_NUMERIC), EP * 3);
}

/* ------------------------------------------------------------------------
 * Single elements
 */

/* Every slot is met, also those that no routed token goes to, and shared experts apart. */
Test(verify_numeric, meets_every_slot, .fini = remove_pack)
{
    const uint8_t flipped = 0x40; /* a fourth code bit: another magnitude */

    make_w4a8();
    for (uint32_t rank = 0; rank < EP; rank++) {
        for (unsigned slot = 0; slot < ROUTED; slot++) {
            held_bytes h = hold(rank, slot, MP_L2, MP_ROLE_WEIGHT);

            for (uint64_t i = 0; i < dims.intermediate_size / 2; i++)
                h.bytes[7 * dims.intermediate_size / 2 + i] ^= flipped;
            put(&h);
        }
    }
    flip(1, "layers.0.shared_experts.shared_l2_weight", 3 * dims.intermediate_size + 5, 0x40);
    seal();
    verify_numeric();
    for (uint32_t rank = 0; rank < EP; rank++)
        for (unsigned slot = 0; slot < ROUTED; slot++)
            cr_expect_not_null(find_fault(MP_VERIFY_NUMERIC, rank, slot), "rank %u slot %u", rank,
                               slot);
    const mp_fault *apart = find_fault(MP_VERIFY_NUMERIC, 1, -1);
    cr_assert_not_null(apart);
    cr_expect_not_null(
        strstr(apart->detail, "in column 3, shared expert 0 (apart) of the source "));
    cr_expect_not_null(strstr(apart->detail, "; 1 of 256 columns differ"));
    cr_expect_eq(count_faults(MP_VERIFY_NUMERIC), EP * ROUTED + 1);
}

/* ------------------------------------------------------------------------
 * What is not finite
 */

Test(verify_numeric, finds_a_nan_weight, .fini = remove_pack)
{
    const uint16_t nan = 0x7fc1;

    make_numeric_pack("deepseek_v3", MP_SCHEME_BF16, "deepep-bf16", MP_SHARED_NONE);
    poke(1, "model.layers.0.experts.w2_weight",
         2 * (5 * dims.hidden_size * dims.intermediate_size + 9 * dims.intermediate_size), &nan, 2);
    seal();
    verify_numeric();
    cr_expect_not_null(find_fault(MP_VERIFY_EXACT, 1, 5));
    const mp_fault *f = find_fault(MP_VERIFY_NUMERIC, 1, 5);
    cr_assert_not_null(f);
    cr_expect_not_null(strstr(f->detail, "bf16, expert 3: token 0, column 9: the result is "), "%s",
                       f->detail);
    cr_expect(isnan(figures()->rel_l2) && isnan(figures()->max_abs));
    cr_expect_not(figures()->bit_identical);
}

Test(verify_numeric, finds_a_nan_scale, .fini = remove_pack)
{
    make_w4a8();
    held_bytes h = hold(0, 2, MP_L1, MP_ROLE_SCALE);

    h.bytes[11] = 0xff;
    put(&h);
    seal();
    verify_numeric();
    cr_expect_not_null(find_fault(MP_VERIFY_EXACT, 0, 2));
    cr_expect_eq(count_faults(MP_VERIFY_NUMERIC), 1);
    const mp_fault *f = find_fault(MP_VERIFY_NUMERIC, 0, 2);
    cr_assert_not_null(f);
    cr_expect_not_null(strstr(f->detail, "w4a8, expert 2: "), "%s", f->detail);
    cr_expect_not_null(strstr(f->detail, "NaN"), "%s", f->detail);
}

/* ------------------------------------------------------------------------
 * Options
 */

Test(verify_numeric, takes_another_tolerance, .fini = remove_pack)
{
    make_w4a8();
    mp_verify_options options = {.size = sizeof(mp_verify_options),
                                 .level = MP_VERIFY_NUMERIC,
                                 .source = source,
                                 .tokens = 3,
                                 .tolerance = 1e-3};

    succeed(verify_with(options, 2));
    expect_count(1);
    expect(0, MP_VERIFY_NUMERIC, -1, prefix, -1, NULL, -1,
           " off the exact result (relative L2), more than 0.001");
    cr_expect(figures()->bit_identical);
    cr_expect_eq(figures()->tokens, EP * (ROUTED + 1) + 3);
    options.tolerance = 0.5;
    succeed(verify_with(options, 2));
    expect_count(0);
}

Test(verify_numeric, computes_ranks_whose_siblings_are_elsewhere, .fini = remove_pack)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_NUMERIC, .ranks = "1", .tokens = 5};

    make_w4a8();
    options.source = source;
    succeed(mp_remove_tree(at("rank-000"), &err));
    succeed(verify_with(options, 2));
    expect_count(0);
    cr_expect(figures()->bit_identical);
    cr_expect_eq(figures()->tokens, ROUTED + 1 + 5);
}

Test(verify_numeric, computes_a_sample, .fini = remove_pack)
{
    mp_verify_options options = {.size = sizeof(mp_verify_options),
                                 .level = MP_VERIFY_NUMERIC,
                                 .sample = 2,
                                 .tokens = 5,
                                 .seed = 9};
    uint64_t exact;

    make_w4a8();
    options.source = source;
    succeed(verify_with(options, 2));
    expect_count(0);
    exact = report.slots;
    cr_expect_lt(exact, EP * (ROUTED + 1));
    cr_expect_eq(figures()->tokens, exact + 5);
    cr_expect(figures()->rel_l2 > 0);
}

/* Figures depend on the seed and on nothing else. */
Test(verify_numeric, gives_the_same_figures_on_any_number_of_threads, .fini = remove_pack)
{
    mp_verify_options options = {
        .size = sizeof(mp_verify_options), .level = MP_VERIFY_NUMERIC, .tokens = 20};

    make_fused();
    options.source = source;
    succeed(verify_with(options, 1));
    const mp_verify_numeric one = *figures();
    succeed(verify_with(options, 3));
    cr_expect_eq(figures()->rel_l2, one.rel_l2);
    cr_expect_eq(figures()->cosine_diff, one.cosine_diff);
    cr_expect_eq(figures()->max_abs, one.max_abs);
    options.seed = 1;
    succeed(verify_with(options, 3));
    cr_expect_neq(figures()->rel_l2, one.rel_l2);
}

Test(verify_numeric, says_where_a_layer_cannot_be_opened, .fini = remove_pack)
{
    make_w4a8();
    succeed(mp_remove_tree(at("rank-001"), &err));
    verify_numeric();
    const mp_fault *f = find_fault(MP_VERIFY_NUMERIC, -1, -1);
    cr_assert_not_null(f);
    cr_expect_not_null(strstr(f->detail, "not computed: rank-001"), "%s", f->detail);
    cr_expect(isnan(figures()->rel_l2));
    cr_expect_gt(count_faults(MP_VERIFY_STRUCTURE), 0);
}

Test(verify_numeric, needs_the_source, .fini = remove_pack)
{
    make_w4a8();
    cr_assert_eq(
        verify_with(
            (mp_verify_options){.size = sizeof(mp_verify_options), .level = MP_VERIFY_NUMERIC}, 1),
        MP_ERR_USAGE);
    cr_expect_str_eq(err.message, "level numeric needs the source checkpoint");
}

/* Said before anything is read that takes long. */
Test(verify_numeric, refuses_two_shared_experts_in_one_tensor, .fini = remove_pack)
{
    const mp_synth_options synth = {
        .family = "deepseek_v2",
        .scheme = MP_SCHEME_BF16,
        .hidden_size = 128,
        .intermediate_size = 128,
        .num_experts = 2,
        .num_shared_experts = 2,
        .top_k = 1,
        .num_layers = 1,
        .vocab_size = 16,
        .routed_scaling_factor = 1,
    };

    make_scratch();
    snprintf(source, sizeof source, "%s/source", scratch);
    succeed(mp_synth(&synth, source, NULL, &err));
    pack_source(source, (mp_repack_options){.target = mp_target_find("megamoe-w4a8"),
                                            .ep = 1,
                                            .shared = MP_SHARED_SEPARATE,
                                            .requantize_shared = true,
                                            .quantize = true,
                                            .quantize_to = MP_SCHEME_MXFP4});
    cr_assert_eq(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                                 .level = MP_VERIFY_NUMERIC,
                                                 .source = source},
                             1),
                 MP_ERR_UNSUPPORTED);
    cr_expect_str_eq(err.message, "level numeric: 2 shared experts in one tensor are not computed; "
                                  "check at level exact");
}

Test(verify_numeric, slots_of_ranks_that_are_not_open_cannot_be_computed, .fini = remove_pack)
{
    const mp_pack_options only = {.ranks = "1"};
    const mp_forward_options how = {.emulation = MP_EMULATE_W4A8};
    const int32_t ids[] = {ROUTED, ROUTED - 1};
    const float weights[] = {1, 1};
    static float x[256] = {1};
    static double y[256];
    mp_packed_experts experts;
    mp_pack pack;
    int32_t slot_ids[2];
    float slot_weights[2];

    make_w4a8();
    succeed(mp_pack_load(&pack, out, &only, NULL, &err));
    succeed(mp_packed_experts_init(&experts, &pack, 0, &err));
    succeed(mp_forward(&experts.source, &how, &(mp_batch){1, 1, x, ids, weights}, NULL, y, &err));
    cr_assert_eq(
        mp_forward(&experts.source, &how, &(mp_batch){1, 2, x, ids, weights}, NULL, y, &err),
        MP_ERR_INPUT);
    cr_expect_str_eq(err.message, "expert 5: rank 0: layers.0 has no l1_weight_sf to read");
    cr_assert_eq(mp_packed_route(&experts, &(mp_packed_dispatch){0}, ids, weights, 1, 2, 0,
                                 slot_ids, slot_weights, &err),
                 MP_ERR_INPUT);
    cr_expect_str_eq(err.message, "rank 0 is missing: all 2 are needed");
    mp_pack_unload(&pack);
}
