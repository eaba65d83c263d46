/* SPDX-License-Identifier: Apache-2.0 */
/* verify against a source: whether it is the one, and sources that were requantized. */
#include "verify_pack.h"

#include "verify/faults.h"
#include "verify/where.h"

static char source[512];

/* A synthetic checkpoint of another family than the fixture. */
static const mp_synth_options qwen3 = {
    .family = "qwen3_moe",
    .scheme = MP_SCHEME_BF16,
    .hidden_size = 384,
    .intermediate_size = 128,
    .dense_intermediate_size = 256,
    .num_experts = 5,
    .top_k = 2,
    .num_layers = 2,
    .vocab_size = 48,
    .seed = 7,
};

static const mp_synth_options deepseek_v3 = {
    .family = "deepseek_v3",
    .scheme = MP_SCHEME_FP8_BLOCK,
    .hidden_size = 256,
    .intermediate_size = 384,
    .dense_intermediate_size = 512,
    .num_experts = 4,
    .num_shared_experts = 1,
    .top_k = 2,
    .num_layers = 2,
    .num_dense = 1,
    .num_mtp = 1,
    .vocab_size = 48,
    .routed_scaling_factor = 2.5,
    .seed = 11,
};

static void make_source(const mp_synth_options *options)
{
    snprintf(source, sizeof source, "%s/source-%d", scratch, (int)options->seed);
    succeed(mp_synth(options, source, NULL, &err));
}

static const mp_repack_options requantized = {
    .ep = 3, .redundant = 1, .quantize = true, .quantize_to = MP_SCHEME_MXFP4};

static void verify_against(const char *path)
{
    succeed(verify_with((mp_verify_options){.level = MP_VERIFY_EXACT, .source = path}, 2));
}

TestSuite(verify_source, .init = make_scratch, .fini = remove_pack);

/* ------------------------------------------------------------------------
 * Another source
 */

static void expect_other_source(const char *path, const char *why)
{
    mp_verify_options options = {.level = MP_VERIFY_EXACT, .source = path};
    char message[1200];

    cr_assert_eq(verify_with(options, 1), MP_ERR_INPUT, "%s", err.message);
    snprintf(message, sizeof message, "\"%s\" is not the checkpoint that was packed: %s", path,
             why);
    cr_expect_eq(strncmp(err.message, message, strlen(message)), 0, "%s", err.message);
}

Test(verify_source, refuses_another_checkpoint)
{
    mp_synth_options other = qwen3;

    make_source(&qwen3);
    pack_source(source, requantized);
    expect_other_source(SOURCE, "shard model-00001-of-00002.safetensors, the manifest names "
                                "model-00001-of-00001.safetensors");
    other.seed++;
    other.num_layers++;
    make_source(&other);
    expect_other_source(source, "model-00001-of-00001.safetensors: ");
    cr_expect_not_null(strstr(err.message, " bytes, the manifest says "), "%s", err.message);
}

Test(verify_source, refuses_another_header_of_the_same_size)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    char *last = &m.shards[0].header_xxh3[31];
    *last = *last == '0' ? '1' : '0';
    save_manifest(&m);
    expect_other_source(source, "model-00001-of-00001.safetensors: header xxh3 ");
}

Test(verify_source, refuses_other_shards)
{
    mp_synth_options other = qwen3;

    other.seed++;
    other.max_shard_size = 1000000;
    make_source(&other);
    pack_source(source, requantized);
    mp_manifest m;
    load_manifest(&m);
    cr_assert_gt(m.num_shards, 1);
    free(m.shards[--m.num_shards].name);
    size_t left = m.num_shards;
    save_manifest(&m);
    char why[64];
    snprintf(why, sizeof why, "%zu shards, the manifest names %zu", left + 1, left);
    expect_other_source(source, why);
}

Test(verify_source, fails_where_there_is_no_source)
{
    mp_verify_options options = {.level = MP_VERIFY_EXACT, .source = "no/such/checkpoint"};

    make_source(&qwen3);
    pack_source(source, requantized);
    cr_expect_eq(verify_with(options, 1), MP_ERR_IO, "%s", err.message);
}

/* The same headers, other weights: only comparing the bytes can tell. */
Test(verify_source, finds_other_weights_under_the_same_headers)
{
    mp_synth_options other = qwen3;

    make_source(&qwen3);
    pack_source(source, requantized);
    other.seed++;
    make_source(&other);
    verify_against(source);
    cr_expect_geq(report.total_faults, 2 * 6 * 2);
    for (size_t i = 0; i < report.num_faults; i++) {
        cr_expect_eq(report.faults[i].level, MP_VERIFY_EXACT);
        cr_expect_null(strstr(report.faults[i].detail, "holds expert"));
    }
}

/* ------------------------------------------------------------------------
 * A manifest that contradicts its source
 */

static void expect_contradictions(uint64_t count, const char *const details[])
{
    verify_against(source);
    expect_count(count);
    for (uint64_t i = 0; i < count; i++)
        expect(i, MP_VERIFY_EXACT, -1, NULL, -1, NULL, -1, details[i]);
}

Test(verify_source, finds_a_model_that_the_source_is_not)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    m.model_layers = 3;
    m.num_shared_experts = 1;
    m.family[0] = 'Q';
    save_manifest(&m);
    expect_contradictions(
        3, (const char *const[]){
               "moepack.json: family \"Qwen3_moe\", of the source it is \"qwen3_moe\"",
               "moepack.json: layers 3, the source has 2",
               "moepack.json: num_shared_experts 1, the source has 0",
           });
}

Test(verify_source, finds_a_quantization_that_did_not_happen)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    m.lossless = true;
    m.source_scheme[0] = 'B';
    save_manifest(&m);
    expect_contradictions(
        2, (const char *const[]){
               "moepack.json: repack \"lossless\", of the source it is \"requantized\"",
               "moepack.json: source quantization \"Bf16\", of the source it is \"bf16\"",
           });

    load_manifest(&m);
    m.lossless = false;
    m.source_scheme[0] = 'b';
    free(m.rounding);
    m.rounding = strdup("up");
    save_manifest(&m);
    expect_contradictions(
        1, (const char *const[]){
               "moepack.json: rounding \"up\", scale_rule \"ceil\", amax_floor 0: no such rules",
           });
}

Test(verify_source, finds_a_layer_that_the_source_has_not)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    free(m.layers[1]);
    m.layers[1] = strdup("model.layers.9");
    save_manifest(&m);
    verify_against(source);
    /* Of three ranks each: four tensors missing, four not wanted. */
    expect_count(1 + 3 * 8);
    expect(0, MP_VERIFY_EXACT, -1, "model.layers.9", -1, NULL, -1, "the source has no such layer");
}

/* ------------------------------------------------------------------------
 * Requantized
 */

Test(verify_source, accepts_every_way_of_requantizing)
{
    mp_repack_options options = requantized;

    make_source(&qwen3);
    for (int i = 0; i < 4; i++) {
        options.quant.rounding = i & 1 ? MP_ROUND_OCP : MP_ROUND_DEEPGEMM;
        options.quant.scale_rule = i & 2 ? MP_SCALE_MSE : MP_SCALE_CEIL;
        options.quant.amax_floor = i == 3 ? 1e-4f : 0;
        pack_source(source, options);
        verify_against(source);
        expect_count(0);
        cr_expect_eq(report.slots, 2 * 6);
        succeed(mp_remove_tree(out, &err));
    }
}

Test(verify_source, accepts_blocks_of_scales_as_a_source)
{
    mp_repack_options options = requantized;

    options.ep = 5;
    make_source(&deepseek_v3);
    pack_source(source, options);
    verify_against(source);
    expect_count(0);
    cr_expect_eq(report.slots, 2 * 5);
}

/* Bytes that another rule would have made are faults. */
Test(verify_source, holds_the_pack_to_the_rules_of_its_manifest)
{
    mp_manifest m;

    make_source(&qwen3);
    pack_source(source, requantized);
    load_manifest(&m);
    cr_assert_str_eq(m.scale_rule, "ceil");
    strcpy(m.scale_rule, "mse");
    save_manifest(&m);
    verify_against(source);
    cr_expect_gt(report.total_faults, 0);

    load_manifest(&m);
    free(m.scale_rule);
    m.scale_rule = strdup("ceil");
    m.amax_floor = 1000;
    save_manifest(&m);
    verify_against(source);
    cr_expect_eq(report.total_faults, 2 * 6 * 4);
}

Test(verify_source, names_what_a_requantized_element_should_be)
{
    const char *weight = "model.layers.1.experts.l2_weight";
    const char *scale = "model.layers.1.experts.l2_weight_sf";
    const uint64_t row_bytes = 128 / 2;

    make_source(&qwen3);
    pack_source(source, requantized);
    /* Slot 1 of rank 2 is physical expert 5, the copy of expert 0. Row 37, column 23. */
    flip(2, weight, (384 + 37) * row_bytes + 11, 0x20);
    /* Row position 9 of the third run of 128: q = 1, c = 2, row 256 + 34; block 3. */
    flip(2, scale, 384 * 4 + (256 + 9) * 4 + 3, 0x03);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 2, "model.layers.1", 1, weight,
           (37 * (int64_t)row_bytes + 11) * 2 + 1,
           "where model.layers.1.mlp.experts.0.down_proj.weight row 37 column 23 quantizes to 0x");
    expect(1, MP_VERIFY_EXACT, 2, "model.layers.1", 1, scale, 256 + 9,
           "where model.layers.1.mlp.experts.0.down_proj.weight row 290 columns 96-127 get the "
           "scale 0x");
}

/* Slots of more than a tile: 272 and 240 rows of L1, and eight tiles of L2. */
Test(verify_source, counts_rows_across_tiles)
{
    mp_synth_options wide = qwen3;
    const char *l1 = "model.layers.0.experts.l1_weight";
    const char *l2 = "model.layers.0.experts.l2_weight";

    wide.hidden_size = 1920;
    wide.intermediate_size = 256;
    wide.num_experts = 2;
    wide.num_layers = 1;
    make_source(&wide);
    pack_source(source,
                (mp_repack_options){.ep = 1, .quantize = true, .quantize_to = MP_SCHEME_MXFP4});
    flip(0, l1, 512 * 960 + 300 * 960 + 5, 0x80);
    flip(0, l1, 512 * 960 + 511 * 960 + 959, 0x80);
    flip(0, l2, 1900 * 128 + 7, 0x08);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 0, "model.layers.0", 0, l2, (1900 * 128 + 7) * 2,
           "experts.0.down_proj.weight row 1900 column 14 quantizes to 0x");
    /* Row 300 is run 18, row 12 of it: up row 148. */
    expect(1, MP_VERIFY_EXACT, 0, "model.layers.0", 1, l1, (300 * 960 + 5) * 2 + 1,
           "experts.1.up_proj.weight row 148 column 11 quantizes to 0x");
    expect(1, MP_VERIFY_EXACT, 0, "model.layers.0", 1, l1, (300 * 960 + 5) * 2 + 1,
           "; 2 bytes in 2 rows differ");
}

Test(verify_source, names_the_expert_of_a_requantized_slot)
{
    const uint64_t bytes = 2 * 128 * 384 / 2;
    char *one = malloc(bytes), *other = malloc(bytes);
    const char *name = "model.layers.0.experts.l1_weight";

    make_source(&qwen3);
    pack_source(source, requantized);
    peek(1, name, 0, one, bytes);
    peek(1, name, bytes, other, bytes);
    poke(1, name, 0, other, bytes);
    poke(1, name, bytes, one, bytes);
    free(one);
    free(other);
    seal();
    verify_against(source);
    expect_count(2);
    expect(0, MP_VERIFY_EXACT, 1, "model.layers.0", 0, name, report.faults[0].element,
           "holds expert 3 where expert 2 belongs; holds 0x");
    expect(1, MP_VERIFY_EXACT, 1, "model.layers.0", 1, name, report.faults[1].element,
           "holds expert 2 where expert 3 belongs; holds 0x");
}

/* ------------------------------------------------------------------------
 * Where bytes go
 */

/* A layout to ask: rows backwards; a scale of 3 bytes a row, 4 with padding. */
static void unpack_backwards(const mp_dims *dims, mp_side side, uint64_t row0, uint64_t rows,
                             const uint8_t *in, uint8_t *gate, uint8_t *up)
{
    uint64_t bytes = dims->hidden_size / 2;

    (void)side;
    (void)row0;
    for (uint64_t r = 0; r < rows; r++)
        memcpy(r % 2 ? up + r / 2 * bytes : gate + r / 2 * bytes, in + (rows - 1 - r) * bytes,
               bytes);
}

static void unpack_padded(const mp_dims *dims, mp_side side, const uint8_t *in, uint8_t *canonical)
{
    (void)side;
    for (uint64_t r = 0; r < dims->hidden_size; r++)
        for (uint64_t b = 0; b < 3; b++)
            canonical[3 * r + b] = in[(b * dims->hidden_size + r) * 4 / 3];
}

static const mp_target backwards = {.unpack_weight = unpack_backwards,
                                    .unpack_scale = unpack_padded};

Test(where, finds_the_packed_byte_of_each_weight)
{
    const mp_dims dims = {202, 6};
    const uint64_t rows = 12, bytes = 101 * rows; /* more than fit one byte's number */
    uint32_t offsets[101 * 12];

    succeed(mp_where_weight(&backwards, &dims, MP_L1, 0, rows, bytes, offsets, &err));
    for (uint64_t i = 0; i < bytes; i++) {
        uint64_t part = i / (bytes / 2), r = i % (bytes / 2) / 101;

        cr_assert_eq(offsets[i], (rows - 1 - (2 * r + part)) * 101 + i % 101, "byte %d", (int)i);
    }
}

Test(where, finds_the_padding_of_scales)
{
    const mp_dims dims = {90, 6};
    mp_scale_map map;

    succeed(mp_where_scale(&backwards, &dims, MP_L2, 4 * 90, 3 * 90, &map, &err));
    cr_assert_eq(map.canonical_bytes, 270);
    for (uint64_t i = 0; i < 270; i++)
        cr_assert_eq(map.offsets[i], (i % 3 * 90 + i / 3) * 4 / 3, "byte %d", (int)i);
    cr_assert_eq(map.num_padding, 90);
    for (uint64_t i = 0; i < 90; i++)
        cr_assert_eq(map.padding[i], 4 * i + 3);

    uint8_t tensor[4 * 90];
    uint32_t offset = 0;
    for (uint64_t i = 0; i < sizeof tensor; i++)
        tensor[i] = i % 4 == 3 ? 0 : 0xff;
    cr_expect(mp_scale_padding_is_zero(&map, tensor, &offset));
    tensor[4 * 77 + 3] = tensor[4 * 31 + 3] = 1;
    cr_expect_not(mp_scale_padding_is_zero(&map, tensor, &offset));
    cr_expect_eq(offset, 4 * 31 + 3);
    mp_scale_map_release(&map);
}

/* ------------------------------------------------------------------------
 * Faults
 */

Test(faults, details_are_one_printable_line)
{
    static const struct {
        const char *text, *printable;
    } cases[] = {
        {"plain", "plain"},
        {"a\nb\tc\x7f"
         "d\x1b[0m",
         "a?b?c?d?[0m"},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
        {"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\xff\xfe", "??"},
        {"\x80", "?"},
        {"\xc3", "?"}, /* cut short */
        {"\xe2\x82", "??"},
        {"\xc0\x80", "??"}, /* too long a form */
        {"\xe0\x80\x80", "???"},
        {"\xf0\x8f\xbf\xbf", "????"},
        {"\xed\xa0\x80", "???"},      /* a surrogate */
        {"\xf4\x90\x80\x80", "????"}, /* beyond Unicode */
        {"\xf8\x88\x80\x80\x80", "?????"},
        {"\xc2\x85", "??"},      /* a control character */
        {"\xef\xbf\xbf", "???"}, /* no character, and none for XML */
    };
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mp_faults faults = {0};

        mp_fault_add(&faults, &spot, "%s", cases[i].text);
        cr_assert_eq(faults.num_kept, 1);
        cr_expect_str_eq(faults.kept[0].detail, cases[i].printable, "case %zu", i);
        mp_faults_release(&faults);
    }
}

/* A fault that is not wanted would not have been kept; one that is kept was wanted. */
Test(faults, wants_exactly_what_it_keeps)
{
    mp_faults faults = {0};
    uint32_t state = 1;

    for (int i = 0; i < 2000; i++) {
        mp_spot spot =
            mp_spot_of_rank(MP_VERIFY_EXACT, (state = state * 1664525 + 1013904223) >> 30);

        spot.layer = (state = state * 1664525 + 1013904223) >> 29;
        spot.slot = (state = state * 1664525 + 1013904223) >> 28;
        spot.element = (state = state * 1664525 + 1013904223) >> 16;
        bool wanted = mp_faults_wants(&faults, &spot);
        bool kept = false;

        mp_fault_add(&faults, &spot, "%d", i);
        for (size_t k = 0; k < faults.num_kept; k++)
            kept |= atoi(faults.kept[k].detail) == i;
        cr_assert_eq(kept, wanted, "fault %d", i);
    }
    cr_expect_eq(faults.total, 2000);
    cr_expect_eq(faults.num_kept, MP_FAULTS_KEPT);
    mp_faults_release(&faults);
}
