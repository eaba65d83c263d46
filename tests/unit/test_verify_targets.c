/* SPDX-License-Identifier: Apache-2.0 */
/* verify, exact, of every target: every planted fault is found and named in the words of the
 * source. Where a byte belongs is worked out apart from the layouts' code. */
#include "verify_layouts.h"
#include "verify_pack.h"

#include "layout/tile.h"
#include "numeric/forms.h"

/* A tensor of a slot. */
typedef struct tensor_case {
    const char *name;
    where *where;
    unsigned element_bytes; /* of the tensor; 0: two elements a byte */
    bool scale;
} tensor_case;

/* A layout of weights and scales, and a source that passes through. */
typedef struct layout_case {
    const char *target;
    bool nz;
    const char *family;
    mp_scheme scheme;
    mp_shared_mode shared;
    uint64_t hidden, inter;
    const char *block; /* of the tensors */
    tensor_case tensors[4];
} layout_case;

#define FP4_TENSORS(w13, sf)                                                   \
    {                                                                          \
        {"l1_weight", w13, 0, false}, {"l1_weight_sf", sf, 4, true},           \
            {"l2_weight", w2_fp4, 0, false}, {"l2_weight_sf", sf_w2, 4, true}, \
    }
#define FUSEEP_TENSORS(w13, sf13, w2, sf2, width)                               \
    {                                                                           \
        {"w13_weight", w13, 1, false}, {"w13_weight_scale", sf13, width, true}, \
            {"w2_weight", w2, 1, false}, {"w2_weight_scale", sf2, width, true}, \
    }

static const layout_case cases[] = {
    {"megamoe-w4a8", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_NONE, 384, 256, "experts",
     FP4_TENSORS(w13_fp4_8, sf_8)},
    {"megamoe-w4a4", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_NONE, 256, 384, "experts",
     FP4_TENSORS(w13_fp4_even_odd, sf_even_odd)},
    {"megamoe-w4a4-g8", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_NONE, 384, 128, "experts",
     FP4_TENSORS(w13_fp4_8, sf_8)},
    {"megamoe-nvfp4", false, "deepseek_v3", MP_SCHEME_NVFP4, MP_SHARED_FUSED, 384, 256, "experts",
     FP4_TENSORS(w13_fp4_8, sf_8)},
    {"megamoe-bf16",
     false,
     "deepseek_v3",
     MP_SCHEME_BF16,
     MP_SHARED_FUSED,
     120,
     88,
     "experts",
     {{"l1_weight", w13_bf16_8, 2, false}, {"l2_weight", w2_bf16, 2, false}}},
    {"megamoe-sm90-fp8",
     false,
     "deepseek_v3",
     MP_SCHEME_FP8_BLOCK,
     MP_SHARED_FUSED,
     384,
     256,
     "experts",
     {{"l1_weight", w13_bytes_8, 1, false},
      {"l1_weight_sf", blocks_w13, 4, true},
      {"l2_weight", w2_bytes, 1, false},
      {"l2_weight_sf", blocks_w2, 4, true}}},
    {"fuseep-1", false, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_FUSED, 104, 192, "experts",
     FUSEEP_TENSORS(w13_chunks, rows_chunks, w2_bytes, rows_w2, 4)},
    {"fuseep-2", false, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_FUSED, 104, 40, "experts",
     FUSEEP_TENSORS(w13_turned, wide_rows_w13, w2_turned, wide_rows_w2, 8)},
    {"fuseep-1", true, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_FUSED, 104, 192, "experts",
     FUSEEP_TENSORS(w13_chunks_nz, rows_chunks, w2_nz, rows_w2, 4)},
    {"fuseep-2", true, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_FUSED, 104, 40, "experts",
     FUSEEP_TENSORS(w13_turned_nz, wide_rows_w13, w2_turned_nz, wide_rows_w2, 8)},
    {"deepep-bf16",
     false,
     "deepseek_v3",
     MP_SCHEME_BF16,
     MP_SHARED_FUSED,
     120,
     88,
     "experts",
     {{"w13_weight", w13_bf16, 2, false}, {"w2_weight", w2_bf16, 2, false}}},
    /* Shared experts apart: in FP8, all in one; or as many slots as there are of them. */
    {"megamoe-w4a8",
     false,
     "deepseek_v4",
     MP_SCHEME_MXFP4,
     MP_SHARED_SEPARATE,
     384,
     256,
     "shared_experts",
     {{"shared_l1_weight", w13_bytes_8, 1, false},
      {"shared_l1_weight_sf", sf_shared_w13, 4, true},
      {"shared_l2_weight", w2_bytes, 1, false},
      {"shared_l2_weight_sf", sf_shared_w2, 4, true}}},
    {"fuseep-2", false, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_SEPARATE, 104, 40,
     "shared_experts", FUSEEP_TENSORS(w13_turned, wide_rows_w13, w2_turned, wide_rows_w2, 8)},
};

#define CASES (sizeof cases / sizeof cases[0])

enum { EXPERTS = 5, SHARED = 2, REDUNDANT = 1, EP = 2, ROUTED_SLOTS = (EXPERTS + REDUNDANT) / EP };

static const layout_case *now;
static mp_catalog catalog;
static char source[512];

static bool is_apart(void)
{
    return now->shared == MP_SHARED_SEPARATE;
}

static void make_case(size_t index)
{
    mp_synth_options options = {
        .hidden_size = cases[index].hidden,
        .intermediate_size = cases[index].inter,
        .num_experts = EXPERTS,
        .num_shared_experts = SHARED,
        .top_k = 2,
        .num_layers = 1,
        .vocab_size = 48,
        .routed_scaling_factor = 1,
        .seed = 40 + index,
        .family = cases[index].family,
        .scheme = cases[index].scheme,
    };

    now = &cases[index];
    make_scratch();
    snprintf(source, sizeof source, "%s/source", scratch);
    succeed(mp_synth(&options, source, NULL, &err));
    pack_source(source, (mp_repack_options){.target = mp_target_find(now->target),
                                            .ep = EP,
                                            .redundant = REDUNDANT,
                                            .shared = now->shared,
                                            .nz = now->nz});
    succeed(mp_catalog_open(&catalog, source, NULL, &err));
}

static void remove_case(void)
{
    mp_catalog_release(&catalog);
    remove_pack();
}

static void verify_case(void)
{
    succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                            .level = MP_VERIFY_EXACT,
                                            .source = source},
                        2));
}

static const char *prefix(void)
{
    return catalog.layers[0].prefix;
}

static const char *tensor_name(const tensor_case *t)
{
    static char names[4][128];
    static int next;
    char *name = names[next++ % 4];

    snprintf(name, sizeof names[0], "%s.%s.%s", prefix(), now->block, t->name);
    return name;
}

/* The target of the tensors, as the library has it: for sizes only. */
static const mp_target *tensor_target(mp_dims *dims)
{
    const mp_target *target = mp_target_find(now->target);

    *dims = (mp_dims){now->hidden, now->inter};
    if (now->nz)
        target = target->nz;
    if (is_apart())
        target = target->separate;
    if (target->single)
        dims->intermediate_size *= SHARED;
    return target;
}

static uint64_t slot_bytes(const tensor_case *t)
{
    mp_slot_tensor tensors[MP_TARGET_TENSORS];
    mp_dims dims;
    unsigned count = tensor_target(&dims)->describe(&dims, tensors);

    for (unsigned k = 0; k < count; k++)
        if (strcmp(tensors[k].name, t->name) == 0)
            return tensors[k].slot_bytes;
    cr_assert_fail("no tensor %s", t->name);
    return 0;
}

/* Slots of a rank: routed ones in turn, then shared ones; or shared ones only. */
static unsigned num_slots(void)
{
    mp_dims dims;

    if (is_apart())
        return tensor_target(&dims)->single ? 1 : SHARED;
    return ROUTED_SLOTS + (now->shared == MP_SHARED_FUSED ? SHARED : 0);
}

static unsigned id_of(unsigned rank, unsigned slot)
{
    if (is_apart())
        return EXPERTS + slot;
    return slot < ROUTED_SLOTS ? (rank * ROUTED_SLOTS + slot) % EXPERTS
                               : EXPERTS + slot - ROUTED_SLOTS;
}

static const char *id_name(unsigned id)
{
    static char names[4][40];
    static int next;
    char *name = names[next++ % 4];
    mp_dims dims;

    if (is_apart() && tensor_target(&dims)->single)
        return "the shared expert";
    snprintf(name, sizeof names[0], id < EXPERTS ? "expert %u" : "shared expert %u",
             id < EXPERTS ? id : id - EXPERTS);
    return name;
}

/* What the fault has to say of the source: tensor, row and column. */
static void describe(unsigned id, const tensor_case *t, uint64_t byte, bool high, char *text)
{
    const mp_moe_layer *layer = &catalog.layers[0];
    const mp_expert *expert = id < EXPERTS ? &layer->experts[id] : &layer->shared;
    mp_dims dims;
    bool single = tensor_target(&dims)->single;
    place at = t->where(now->hidden, dims.intermediate_size, byte);
    const mp_matrix *matrix = &expert->matrix[at.matrix];
    unsigned shared = id < EXPERTS || single ? 0 : id - EXPERTS;
    uint64_t row0 = at.matrix < 2 ? shared * now->inter : 0;
    uint64_t col0 = at.matrix < 2 ? 0 : shared * now->inter;

    if (at.padding)
        sprintf(text, "byte %llu, which belongs to no element, holds 0x", (unsigned long long)byte);
    else if (!t->scale)
        sprintf(text, " where %s row %d column %d says 0x", matrix->weight->name,
                (int)(row0 + at.row), (int)(col0 + at.col + high));
    else if (now->scheme == MP_SCHEME_INT8_CHANNEL)
        sprintf(text, " where %s row %d says 0x", matrix->scale->name, (int)(row0 + at.row));
    else
        sprintf(text, " where %s row %d column %d says 0x", matrix->scale->name,
                (int)(row0 / (now->scheme == MP_SCHEME_FP8_BLOCK ? 128 : 1) + at.row),
                (int)(at.col + col0 / (now->scheme == MP_SCHEME_FP8_BLOCK ? 128
                                       : now->scheme == MP_SCHEME_NVFP4   ? 16
                                                                          : 32)));
}

/* The slot that a fault names: none where there is only one. */
static int64_t slot_of(unsigned slot)
{
    mp_dims dims;

    return tensor_target(&dims)->single ? -1 : (int64_t)slot;
}

static size_t num_tensors(void)
{
    size_t n = 0;

    while (n < 4 && now->tensors[n].name)
        n++;
    return n;
}

static void each_case(void (*check)(void))
{
    for (size_t i = 0; i < CASES; i++) {
        make_case(i);
        check();
        remove_case();
    }
}

/* ------------------------------------------------------------------------
 * Sound packs
 */

static void check_sound(void)
{
    unsigned sets_slots = ROUTED_SLOTS + (now->shared == MP_SHARED_FUSED ? SHARED : 0);

    verify_case();
    expect_count(0);
    cr_expect_eq(report.slots, EP * (sets_slots + (is_apart() ? num_slots() : 0)), "%s",
                 now->target);
    verify_with(
        (mp_verify_options){.size = sizeof(mp_verify_options), .level = MP_VERIFY_STRUCTURE}, 1);
    expect_count(0);
}

Test(verify_targets, finds_nothing_in_a_sound_pack)
{
    each_case(check_sound);
}

/* ------------------------------------------------------------------------
 * Single bits
 */

static void check_bit(const tensor_case *t, unsigned rank, unsigned slot, uint64_t byte,
                      unsigned bit)
{
    uint64_t at = slot * slot_bytes(t) + byte;
    bool high = t->element_bytes == 0 && bit >= 4;
    char detail[300];

    flip(rank, tensor_name(t), at, (uint8_t)(1 << bit));
    seal();
    verify_case();
    expect_count(1);
    describe(id_of(rank, slot), t, byte, high, detail);
    expect(0, MP_VERIFY_EXACT, rank, prefix(), slot_of(slot), tensor_name(t),
           (int64_t)(t->element_bytes ? byte / t->element_bytes : 2 * byte + high), detail);
    flip(rank, tensor_name(t), at, (uint8_t)(1 << bit));
}

static void check_bits(void)
{
    for (size_t k = 0; k < num_tensors(); k++) {
        const tensor_case *t = &now->tensors[k];
        uint64_t last = slot_bytes(t) - 1;
        const uint64_t bytes[] = {0, last / 3, last};

        for (unsigned i = 0; i < sizeof bytes / sizeof bytes[0]; i++)
            check_bit(t, i % EP, (unsigned)(i + k) % num_slots(), bytes[i],
                      (unsigned)(5 * i + 3 * k) % 8);
    }
}

Test(verify_targets, names_the_element_of_every_flipped_bit)
{
    each_case(check_bits);
}

/* Of a value of several bytes, all are shown. */
Test(verify_targets, shows_whole_values)
{
    uint16_t value, other;
    char detail[100];

    make_case(4);
    peek(0, tensor_name(&now->tensors[0]), 2 * 777, &value, sizeof value);
    other = value ^ 0x0340;
    poke(0, tensor_name(&now->tensors[0]), 2 * 777, &other, sizeof other);
    seal();
    verify_case();
    expect_count(1);
    snprintf(detail, sizeof detail, "holds 0x%04x where ", other);
    cr_expect_eq(strncmp(report.faults[0].detail, detail, strlen(detail)), 0, "%s",
                 report.faults[0].detail);
    snprintf(detail, sizeof detail, " says 0x%04x", value);
    cr_expect_not_null(strstr(report.faults[0].detail, detail), "%s", report.faults[0].detail);
    cr_expect_str_eq(strstr(report.faults[0].detail, " says"), detail);
    remove_case();
}

/* ------------------------------------------------------------------------
 * Other experts
 */

/* False where both hold the same: parts of a shared expert have the row scales of the whole. */
static bool swap_slots(const tensor_case *t, unsigned rank, unsigned a, unsigned b)
{
    uint64_t bytes = slot_bytes(t);
    char *one = malloc(bytes), *other = malloc(bytes);

    peek(rank, tensor_name(t), a * bytes, one, bytes);
    peek(rank, tensor_name(t), b * bytes, other, bytes);
    poke(rank, tensor_name(t), a * bytes, other, bytes);
    poke(rank, tensor_name(t), b * bytes, one, bytes);
    bool differ = memcmp(one, other, bytes) != 0;
    free(one);
    free(other);
    return differ;
}

/* A tensor alone, with the others in their place: a slot can hold another one's scale. */
static void check_swaps(void)
{
    unsigned a = 0, b = now->shared == MP_SHARED_FUSED ? ROUTED_SLOTS : num_slots() - 1;

    for (size_t k = 0; k < num_tensors() && a != b; k++) {
        const tensor_case *t = &now->tensors[k];
        char detail[100];

        bool differ = swap_slots(t, 1, a, b);
        seal();
        verify_case();
        expect_count(differ ? 2 : 0);
        cr_expect(differ || (t->scale && is_apart()));
        for (size_t i = 0; i < report.num_faults; i++) {
            snprintf(detail, sizeof detail, "holds %s where %s belongs; holds 0x",
                     id_name(id_of(1, i ? a : b)), id_name(id_of(1, i ? b : a)));
            expect(i, MP_VERIFY_EXACT, 1, prefix(), i ? b : a, tensor_name(t),
                   report.faults[i].element, detail);
            cr_expect_geq(report.faults[i].element, 0);
        }
        swap_slots(t, 1, a, b);
    }
}

Test(verify_targets, says_which_experts_swapped_slots_hold)
{
    each_case(check_swaps);
}

/* ------------------------------------------------------------------------
 * Layouts that are almost right
 */

/* Reads a slot's L1 weights as gate and up, and writes them as another layout has them. */
static void write_w13(const mp_target *as, unsigned slot, bool exchange)
{
    mp_dims dims;
    const mp_target *target = tensor_target(&dims);
    uint64_t bytes = slot_bytes(&now->tensors[0]);
    mp_tile tile = mp_tile_at(target, &dims, MP_L1, UINT32_MAX, 0);
    uint64_t part = tile.rows * mp_scheme_row_bytes(target->scheme, tile.cols);
    uint8_t *packed = malloc(bytes), *rows = malloc(2 * part);
    uint8_t *const parts[2] = {rows, rows + part};
    const uint8_t *const in[2] = {rows + (exchange ? part : 0), rows + (exchange ? 0 : part)};

    peek(0, tensor_name(&now->tensors[0]), slot * bytes, packed, bytes);
    if (tile.parts == 1) { /* rows of gate, then rows of up */
        memcpy(rows, packed, bytes);
        for (int p = 0; p < 2; p++)
            memcpy(packed + (size_t)p * part, in[p], part);
    } else {
        target->unpack_weight(&dims, MP_L1, &tile, packed, parts);
        as->pack_weight(&dims, MP_L1, &tile, in, packed);
    }
    poke(0, tensor_name(&now->tensors[0]), slot * bytes, packed, bytes);
    free(packed);
    free(rows);
}

static void check_exchange(void)
{
    mp_dims dims;
    const mp_target *target = tensor_target(&dims);
    unsigned slot = num_slots() - 1;
    char detail[100];

    if (mp_tile_at(target, &dims, MP_L1, UINT32_MAX, 0).parts == 1 &&
        target->tiling(&dims, MP_L1).pad > 1)
        return; /* parts padded together: not to be written by halves */
    write_w13(target, slot, true);
    seal();
    verify_case();
    expect_count(1);
    snprintf(detail, sizeof detail, "gate and up of %s are exchanged; holds 0x",
             id_name(id_of(0, slot)));
    expect(0, MP_VERIFY_EXACT, 0, prefix(), slot_of(slot), tensor_name(&now->tensors[0]),
           report.faults[0].element, detail);
}

Test(verify_targets, says_that_gate_and_up_are_exchanged)
{
    each_case(check_exchange);
}

static void expect_at(unsigned slot, const tensor_case *t, uint64_t byte)
{
    char detail[300];

    describe(id_of(0, slot), t, byte, report.faults[0].element % 2 == 1 && !t->element_bytes,
             detail);
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, prefix(), slot, tensor_name(t), report.faults[0].element, detail);
    cr_expect_null(strstr(report.faults[0].detail, "expert 1 "));
}

/* Eights where sixteens of even and odd rows belong, and the other way round: row 0 is in its
 * place, row 1 is another one. */
Test(verify_targets, finds_the_interleave_of_another_kernel)
{
    static const char *const other[] = {"megamoe-w4a4", "megamoe-w4a8"};

    for (size_t i = 0; i < 2; i++) {
        make_case(i);
        write_w13(mp_target_find(other[i]), 1, false);
        seal();
        verify_case();
        expect_at(1, &now->tensors[0],
                  now->hidden / 2 + (uint64_t)report.faults[0].element / 2 % (now->hidden / 2));
        cr_expect_lt(report.faults[0].element, 2 * (int64_t)now->hidden);
        cr_expect_geq(report.faults[0].element, (int64_t)now->hidden);
        remove_case();
    }
}

/* Scales one further on than they should be: those that differ first are named. */
static void check_shift(void)
{
    for (size_t k = 0; k < num_tensors(); k++) {
        const tensor_case *t = &now->tensors[k];
        uint64_t bytes = slot_bytes(t);
        uint8_t *before = malloc(bytes), *after = malloc(bytes);
        uint64_t first = 0;
        char detail[300];

        if (t->scale) {
            peek(0, tensor_name(t), 0, before, bytes);
            memcpy(after + t->element_bytes, before, bytes - t->element_bytes);
            memcpy(after, before + bytes - t->element_bytes, t->element_bytes);
            while (before[first] == after[first])
                first++;
            poke(0, tensor_name(t), 0, after, bytes);
            seal();
            verify_case();
            expect_count(1);
            describe(id_of(0, 0), t, first, false, detail);
            expect(0, MP_VERIFY_EXACT, 0, prefix(), slot_of(0), tensor_name(t),
                   (int64_t)(first / t->element_bytes), detail);
            poke(0, tensor_name(t), 0, before, bytes);
        }
        free(before);
        free(after);
    }
}

Test(verify_targets, finds_scales_that_are_shifted)
{
    each_case(check_shift);
}

/* Rows of the expert one further on: nothing is another expert's. */
static void check_shifted_rows(void)
{
    const tensor_case *t = &now->tensors[num_tensors() > 2 ? 2 : 1];
    uint64_t bytes = slot_bytes(t), row = 64, first = 0;
    uint8_t *before = malloc(bytes), *after = malloc(bytes);
    bool high;
    char detail[300];

    peek(0, tensor_name(t), 0, before, bytes);
    memcpy(after + row, before, bytes - row);
    memcpy(after, before + bytes - row, row);
    while (before[first] == after[first])
        first++;
    high = t->element_bytes == 0 && (before[first] & 15) == (after[first] & 15);
    poke(0, tensor_name(t), 0, after, bytes);
    seal();
    verify_case();
    expect_count(1);
    describe(id_of(0, 0), t, first, high, detail);
    expect(0, MP_VERIFY_EXACT, 0, prefix(), slot_of(0), tensor_name(t),
           (int64_t)(t->element_bytes ? first / t->element_bytes : 2 * first + high), detail);
    cr_expect_eq(strncmp(report.faults[0].detail, "holds 0x", 8), 0, "%s", report.faults[0].detail);
    free(before);
    free(after);
}

Test(verify_targets, finds_weights_that_are_shifted)
{
    each_case(check_shifted_rows);
}

/* ------------------------------------------------------------------------
 * Bytes that belong to no element
 */

/* Of 104 rows, a panel has room for 112; of 80 columns, for 96. */
Test(verify_targets, finds_padding_that_is_not_zero)
{
    make_case(9);
    cr_assert(now->nz);
    const tensor_case *t = &now->tensors[0];
    const uint64_t panel = 112 * 32;
    static const struct {
        uint64_t row, col;
    } places[] = {{104, 0}, {111, 31}, {0, 80}, {103, 95}};

    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint64_t row = places[i].row, col = places[i].col;
        uint64_t byte = col / 32 * panel + row * 32 + col % 32;

        cr_assert(t->where(104, 40, byte).padding);
        check_bit(t, 1, 3, byte, 5);
    }
    /* Two of them, and a weight behind the first. */
    flip(0, tensor_name(t), 104 * 32, 0xff);
    flip(0, tensor_name(t), 105 * 32, 1);
    flip(0, tensor_name(t), panel + 3, 1);
    seal();
    verify_case();
    expect_count(1);
    expect(0, MP_VERIFY_EXACT, 0, prefix(), 0, tensor_name(t), 104 * 32,
           "byte 3328, which belongs to no element, holds 0xff, not 0x00; 3 bytes in 1 row "
           "differ");
    remove_case();
}

/* The upper half of an int64 is nothing but the sign of the lower one. */
Test(verify_targets, finds_scales_that_are_not_extended_by_their_sign)
{
    make_case(7);
    const tensor_case *t = &now->tensors[1];

    cr_assert_eq(t->element_bytes, 8);
    check_bit(t, 0, 2, 8 * 17 + 4, 0);
    check_bit(t, 1, 0, 8 * 79 + 7, 7);
    remove_case();
}

/* Every copy of a scale counts, also where the first one is right. */
Test(verify_targets, finds_copies_of_a_scale_that_differ)
{
    make_case(11);
    cr_assert(is_apart());
    for (size_t k = 1; k < 4; k += 2) {
        const tensor_case *t = &now->tensors[k];
        uint64_t last = slot_bytes(t) - 1;

        check_bit(t, 0, 0, last, 0);
        check_bit(t, 1, 0, last - 4 * 31 - 2, 6);
    }
    remove_case();
}
