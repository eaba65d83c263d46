/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a repack: units, copies, files and offsets, before a byte is written. */
#include <criterion/criterion.h>

#include <inttypes.h>

#include "model_files.h"
#include "write/plan.h"
#include "write/repack.h"

/* H = 384, I = 128: bytes of a slot in each of the target's four tensors. */
#define HIDDEN 384
#define INTER  128

static const uint64_t slot_bytes[] = {
    2 * INTER * HIDDEN / 2,
    2 * INTER *HIDDEN / 32,
    HIDDEN *INTER / 2,
    HIDDEN *INTER / 32,
};

static mp_repack_plan plan;
static mp_repack_options options;

static void init(void)
{
    make_model_scratch();
    options = (mp_repack_options){.target = mp_target_find("megamoe-w4a8"), .ep = 3};
}

static void finish(void)
{
    mp_repack_plan_release(&plan);
    remove_model_scratch();
}

TestSuite(plan, .init = init, .fini = finish);

static int make_plan(void)
{
    mp_repack_plan_release(&plan);
    err = (mp_error){0};
    return mp_repack_plan_init(&plan, &catalog, &options, &err);
}

static void expect_plan(void)
{
    cr_assert_eq(make_plan(), 0, "%s", err.message);
}

static void expect_no_plan(mp_code code, const char *message)
{
    cr_assert_eq(make_plan(), code, "%s", err.message);
    cr_assert_eq(err.code, code);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(plan.layers);
}

/* Two layers and an MTP block of five experts each. */
static void make_source(void)
{
    add_fp4_layer("layers.0", 5, HIDDEN, INTER);
    add_fp4_layer("layers.1", 5, HIDDEN, INTER);
    add_fp4_layer("mtp.0", 5, HIDDEN, INTER);
    expect_model();
}

/* ------------------------------------------------------------------------
 * Units and copies
 */

Test(plan, units_are_sides_of_experts)
{
    make_source();
    options.redundant = 1;
    expect_plan();
    cr_assert_eq(plan.work.num_units, 3 * 5 * 2);
    for (uint64_t u = 0; u < plan.work.num_units; u++) {
        mp_unit unit = mp_plan_unit(&plan, u);

        cr_assert_eq(unit.layer_index, u / 10);
        cr_assert_eq(unit.layer, &plan.layers[u / 10]);
        cr_assert_eq(unit.id, u % 10 / 2);
        cr_assert_eq(unit.side, u % 2);
    }
    cr_assert_str_eq(plan.layers[2].source->prefix, "mtp.0");
    cr_assert(plan.layers[2].lossless);
}

/* A unit's copies in order, as "rank.slot rank.slot". */
static void expect_copies(uint64_t index, const char *want)
{
    mp_unit unit = mp_plan_unit(&plan, index);
    uint32_t count;
    const mp_place *copies = mp_places_of(&unit.layer->places, unit.id, &count);
    char have[128] = "";
    int n = 0;

    for (uint32_t c = 0; c < count; c++)
        n += snprintf(have + n, sizeof have - (size_t)n, "%s%u.%u", c ? " " : "", copies[c].rank,
                      copies[c].slot);
    cr_assert_str_eq(have, want, "unit %" PRIu64 ": %s, expected %s", index, have, want);
}

/* Physical expert p is on rank p / 2, slot p % 2. */
/* Where codes go into compressed files at once, each side of a layer is a stage. */
Test(plan, stages_of_sides)
{
    uint64_t units[2 * 5];

    make_source();
    options.ep = 5;
    options.zstd = MP_ZSTD_AUTO;
    expect_plan();
    cr_assert_eq(plan.num_layers, 3);
    cr_assert_eq(plan.work.num_stages, 6);
    for (uint32_t stage = 0; stage < 6; stage++) {
        bool found[5] = {false};

        cr_assert_eq(mp_repack_job(&plan).units(&plan, stage, units), 5);
        for (size_t i = 0; i < 5; i++) {
            const mp_unit unit = mp_plan_unit(&plan, units[i]);

            cr_assert_eq(unit.layer_index, stage / 2);
            cr_assert_eq(unit.side, stage % 2 ? MP_L2 : MP_L1);
            cr_assert_not(found[unit.id]);
            found[unit.id] = true;
        }
    }
    for (size_t o = 0; o < plan.work.num_outputs; o++) {
        const mp_out_tensor *out = &plan.work.outputs[o];
        unsigned layer, side;

        cr_assert_eq(sscanf(strstr(out->name, "experts.l"), "experts.l%u", &side), 1);
        layer = (unsigned)(o / 4 % 3);
        cr_assert_eq(out->stage, 2 * layer + side - 1, "%s", out->name);
        cr_assert_eq(out->codes, !strstr(out->name, "_sf"), "%s", out->name);
    }
    options.zstd = 3;
    expect_plan();
    cr_assert_eq(plan.work.num_stages, 3);
}

Test(plan, copies_of_the_trivial_placement)
{
    make_source();
    options.redundant = 1;
    expect_plan();
    for (uint64_t layer = 0; layer < 3; layer++) {
        for (uint64_t side = 0; side < 2; side++) {
            expect_copies(10 * layer + 0 + side, "0.0 2.1"); /* expert 0, and physical expert 5 */
            expect_copies(10 * layer + 2 + side, "0.1");
            expect_copies(10 * layer + 4 + side, "1.0");
            expect_copies(10 * layer + 6 + side, "1.1");
            expect_copies(10 * layer + 8 + side, "2.0");
        }
    }
}

Test(plan, copies_of_a_placement)
{
    int32_t map[3][9] = {
        {4, 0, 2, 1, 3, 2, 2, 0, 2},
        {0, 1, 1, 4, 3, 2, 0, 0, 0},
        {3, 3, 3, 3, 3, 0, 1, 2, 4},
    };
    mp_placement placement = {.layers = 3, .num_logical = 5, .num_physical = 9, .map = &map[0][0]};

    make_source();
    options.placement = &placement;
    expect_plan();
    expect_copies(0, "0.1 2.1");
    expect_copies(4, "0.2 1.2 2.0 2.2");
    expect_copies(5, "0.2 1.2 2.0 2.2");
    expect_copies(8, "0.0");
    expect_copies(10, "0.0 2.0 2.1 2.2");
    expect_copies(12, "0.1 0.2");
    expect_copies(26, "0.0 0.1 0.2 1.0 1.1");
    expect_copies(28, "2.2");
    /* Copies beside each other are legal, and worth a word. */
    cr_assert_eq(plan.warnings.count, 2 + 1, "two odd sizes, one for all layers");
}

/* A single row matches all layers. */
Test(plan, copies_of_a_placement_of_one_row)
{
    int32_t row[] = {4, 3, 2, 1, 0, 0};
    mp_placement placement = {.layers = 1, .num_logical = 5, .num_physical = 6, .map = row};

    make_source();
    options.placement = &placement;
    expect_plan();
    for (uint64_t layer = 0; layer < 3; layer++) {
        expect_copies(10 * layer, "2.0 2.1");
        expect_copies(10 * layer + 9, "0.0");
    }
}

Test(plan, bytes_of_units)
{
    uint64_t read = 0, written = 0;

    make_source();
    options.redundant = 1;
    expect_plan();
    for (uint64_t u = 0; u < plan.work.num_units; u++) {
        mp_unit unit = mp_plan_unit(&plan, u);
        uint64_t copies = unit.id == 0 ? 2 : 1, side = unit.side == MP_L1 ? 0 : 2;
        uint64_t slot = slot_bytes[side] + slot_bytes[side + 1];

        cr_assert_eq(mp_unit_bytes_written(&plan, &unit), copies * slot);
        read += slot;
        written += copies * slot;
    }
    cr_assert_eq(plan.work.bytes_read, read);
    for (size_t f = 0; f < plan.work.num_files; f++)
        written += plan.work.files[f].header_bytes;
    cr_assert_eq(plan.work.bytes_written, written);
}

/* ------------------------------------------------------------------------
 * Files
 */

/* Every file: its header, then its tensors without holes. What is planned, read back. */
static void expect_sound_files(void)
{
    uint32_t next = 0;

    for (size_t f = 0; f < plan.work.num_files; f++) {
        const mp_out_file *file = &plan.work.files[f];
        uint64_t at = file->header_bytes;

        cr_assert_eq(file->header_bytes % MP_SAFETENSORS_ALIGN, 0);
        cr_assert_eq(file->first_tensor, next);
        cr_assert_gt(file->num_tensors, 0);
        put_file("planned.safetensors", file->header, file->header_bytes);
        cr_assert_eq(truncate(in_dir("planned.safetensors"), (off_t)file->bytes), 0);
        mp_checkpoint_release(&ckpt);
        cr_assert_eq(mp_checkpoint_open(&ckpt, in_dir("planned.safetensors"), NULL, &err), 0, "%s",
                     err.message);
        cr_assert_eq(ckpt.num_tensors, file->num_tensors);
        for (uint32_t t = 0; t < file->num_tensors; t++, next++) {
            const mp_out_tensor *out = &plan.work.outputs[next];
            const mp_tensor *have = mp_checkpoint_find(&ckpt, out->name);

            cr_assert_not_null(have, "%s", out->name);
            cr_assert_eq(out->file, f);
            cr_assert_eq(out->offset, at);
            cr_assert_eq(have->offset, at);
            cr_assert_eq(have->bytes, out->bytes);
            cr_assert_eq(have->dtype, out->dtype);
            cr_assert_eq(have->rank, out->dims);
            cr_assert_arr_eq(have->shape, out->shape, out->dims * sizeof out->shape[0]);
            at += out->bytes;
        }
        cr_assert_eq(file->bytes, at);
    }
    cr_assert_eq(next, plan.work.num_outputs);
    unlink(in_dir("planned.safetensors"));
}

/* output_of leads to the tensor of that layer, rank and kind, or to none. */
static void expect_sound_outputs(void)
{
    uint64_t slots = plan.shape.slots.num_physical / plan.shape.slots.ep;
    size_t found = 0;

    for (uint32_t l = 0; l < plan.num_layers; l++) {
        for (uint32_t r = 0; r < plan.options.ep; r++) {
            for (unsigned t = 0; t < plan.shape.num_tensors; t++) {
                const mp_slot_set *set = &plan.shape.sets[MP_SET_SLOTS];
                const mp_slot_tensor *tensor = &set->tensors[t];
                const mp_out_tensor *out = mp_plan_output(&plan, l, r, set, tensor);
                char name[128];

                if (!out)
                    continue;
                found++;
                snprintf(name, sizeof name, "%s.experts.%s", plan.layers[l].source->prefix,
                         tensor->name);
                cr_assert_str_eq(out->name, name);
                snprintf(name, sizeof name, "rank-%03u/", r);
                cr_assert_eq(strncmp(plan.work.files[out->file].path, name, strlen(name)), 0);
                cr_assert_eq(out->stage, l);
                cr_assert_eq(out->dtype, tensor->dtype);
                cr_assert_eq(out->dims, 3);
                cr_assert_eq(out->shape[0], slots);
                cr_assert_arr_eq(out->shape + 1, tensor->shape, 2 * sizeof out->shape[0]);
                cr_assert_eq(out->bytes, slot_bytes[t] * slots);
            }
        }
    }
    cr_assert_eq(found, plan.work.num_outputs);
}

Test(plan, one_file_a_rank)
{
    static const char *const names[] = {
        "layers.0.experts.l1_weight", "layers.0.experts.l1_weight_sf",
        "layers.0.experts.l2_weight", "layers.0.experts.l2_weight_sf",
        "layers.1.experts.l1_weight", "layers.1.experts.l1_weight_sf",
        "layers.1.experts.l2_weight", "layers.1.experts.l2_weight_sf",
        "mtp.0.experts.l1_weight",    "mtp.0.experts.l1_weight_sf",
        "mtp.0.experts.l2_weight",    "mtp.0.experts.l2_weight_sf",
    };

    make_source();
    options.redundant = 1;
    expect_plan();
    cr_assert_eq(plan.work.num_files, 3);
    cr_assert_str_eq(plan.work.files[0].path, "rank-000/model-00001-of-00001.safetensors");
    cr_assert_str_eq(plan.work.files[2].path, "rank-002/model-00001-of-00001.safetensors");
    cr_assert_eq(plan.work.num_outputs, 3 * 12);
    for (size_t o = 0; o < plan.work.num_outputs; o++)
        cr_assert_str_eq(plan.work.outputs[o].name, names[o % 12]);
    expect_sound_files();
    expect_sound_outputs();
}

Test(plan, headers_say_whose_they_are)
{
    static const char *const want[] = {
        "format",  "moepack", "format_version", "1", "target", "megamoe-w4a8",
        "ep_rank", "1",       "ep_size",        "3",
    };

    make_source();
    options.redundant = 1;
    expect_plan();
    put_file("planned.safetensors", plan.work.files[1].header, plan.work.files[1].header_bytes);
    cr_assert_eq(truncate(in_dir("planned.safetensors"), (off_t)plan.work.files[1].bytes), 0);
    cr_assert_eq(mp_checkpoint_open(&ckpt, in_dir("planned.safetensors"), NULL, &err), 0);
    cr_assert_eq(ckpt.num_metadata, 5);
    for (size_t i = 0; i < 10; i++)
        cr_assert_str_eq(ckpt.metadata[i], want[i]);
}

/* No tensor is in two files, none is too large but one that is alone. */
static void expect_split(uint64_t limit, size_t files_a_rank)
{
    char path[96];

    options.max_shard_size = limit;
    expect_plan();
    cr_assert_eq(plan.work.num_files, 3 * files_a_rank, "%zu files", plan.work.num_files);
    for (size_t f = 0; f < plan.work.num_files; f++) {
        const mp_out_file *file = &plan.work.files[f];
        uint64_t data = file->bytes - file->header_bytes;

        cr_assert(data <= limit || file->num_tensors == 1);
        if (f % files_a_rank > 0)
            cr_assert_gt(plan.work.files[f - 1].bytes - plan.work.files[f - 1].header_bytes +
                             plan.work.outputs[file->first_tensor].bytes,
                         limit, "file %zu could have been larger", f - 1);
        snprintf(path, sizeof path, "rank-%03zu/model-%05zu-of-%05zu.safetensors", f / files_a_rank,
                 f % files_a_rank + 1, files_a_rank);
        cr_assert_str_eq(file->path, path);
    }
    expect_sound_files();
    expect_sound_outputs();
}

Test(plan, splits_files)
{
    uint64_t layer = 2 * (slot_bytes[0] + slot_bytes[1] + slot_bytes[2] + slot_bytes[3]);

    make_source();
    options.redundant = 1;
    expect_split(3 * layer, 1);
    expect_split(3 * layer - 1, 2);
    expect_split(layer, 3);
    expect_split(layer - 1, 4);
    expect_split(2 * slot_bytes[0] - 1, 6);
    expect_split(1, 12);
}

/* ------------------------------------------------------------------------
 * Parts
 */

Test(plan, some_layers)
{
    int32_t map[3][6] = {{0, 1, 2, 3, 4, 0}, {4, 3, 2, 1, 0, 0}, {2, 2, 0, 1, 3, 4}};
    mp_placement placement = {.layers = 3, .num_logical = 5, .num_physical = 6, .map = &map[0][0]};

    make_source();
    options.layers = "1,mtp.0";
    options.placement = &placement;
    expect_plan();
    cr_assert_eq(plan.num_layers, 2);
    cr_assert_str_eq(plan.layers[0].source->prefix, "layers.1");
    cr_assert_str_eq(plan.layers[1].source->prefix, "mtp.0");
    cr_assert_eq(plan.work.num_units, 20);
    cr_assert_eq(plan.work.num_outputs, 3 * 2 * 4);
    expect_copies(0, "2.0 2.1");
    expect_copies(10 + 4, "0.0 0.1");
    /* The plan's placement has rows for the packed layers. */
    cr_assert_eq(plan.placement.layers, 2);
    cr_assert_eq(plan.placement.map[0], 4);
    cr_assert_eq(plan.placement.map[6], 2);
    expect_sound_files();
    expect_sound_outputs();
}

Test(plan, some_ranks)
{
    uint64_t whole;

    make_source();
    options.redundant = 1;
    expect_plan();
    whole = plan.work.bytes_read;
    options.ranks = "0,2";
    expect_plan();
    cr_assert_eq(plan.work.num_files, 2);
    cr_assert_str_eq(plan.work.files[0].path, "rank-000/model-00001-of-00001.safetensors");
    cr_assert_str_eq(plan.work.files[1].path, "rank-002/model-00001-of-00001.safetensors");
    expect_copies(0, "0.0 2.1");
    expect_copies(4, ""); /* experts 2 and 3 are on rank 1 only */
    expect_copies(6, "");
    cr_assert_eq(plan.work.bytes_read, whole / 5 * 3);
    cr_assert_null(mp_plan_output(&plan, 0, 1, plan.shape.sets, plan.shape.sets[0].tensors));
    expect_sound_files();
    expect_sound_outputs();
}

/* ------------------------------------------------------------------------
 * Memory
 */

#define MEBIBYTE (1u << 20)

/* V4-Pro: H = 7168, I = 3072. */
Test(plan, scratch_of_large_experts)
{
    add_fp4_expert("layers.0", 0, 7168, 3072);
    expect_model();
    options.ep = 1;
    expect_plan();
    cr_assert_lt(plan.work.scratch_bytes, 8 * MEBIBYTE);
    /* The scales of a side are held whole, canonical and packed. */
    cr_assert_gt(plan.work.scratch_bytes, 2 * 2 * 3072 * 7168 / 32);
}

Test(plan, scratch_of_large_experts_that_are_requantized)
{
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};

    options.ep = 1;
    options.quantize = true;
    options.quantize_to = MP_SCHEME_MXFP4;
    add_bf16_expert("model.layers.0", 0, 7168, 3072);
    expect_model();
    expect_plan();
    cr_assert_lt(plan.work.scratch_bytes, 8 * MEBIBYTE);

    clear_model();
    for (int p = 0; p < 3; p++) {
        uint64_t rows = p == MP_DOWN ? 7168 : 3072, cols = p == MP_DOWN ? 3072 : 7168;

        add_tensor(MP_F8_E4M3, rows, cols, "model.layers.0.mlp.experts.0.%s.weight", names[p]);
        add_tensor(MP_F32, rows / 128, cols / 128,
                   "model.layers.0.mlp.experts.0.%s.weight_scale_inv", names[p]);
    }
    expect_model();
    expect_plan();
    cr_assert_lt(plan.work.scratch_bytes, 8 * MEBIBYTE);
}

/* It does not grow with the number of layers and experts. */
Test(plan, scratch_of_many_experts)
{
    uint64_t bytes;

    add_fp4_expert("layers.0", 0, 512, 256);
    expect_model();
    options.ep = 1;
    expect_plan();
    bytes = plan.work.scratch_bytes;
    add_fp4_expert("layers.0", 1, 512, 256);
    add_fp4_layer("layers.1", 2, 512, 256);
    expect_model();
    expect_plan();
    cr_assert_eq(plan.work.scratch_bytes, bytes);
}

/* ------------------------------------------------------------------------
 * Refusals
 */

Test(plan, no_ranks)
{
    make_source();
    options.ep = 0;
    expect_no_plan(MP_ERR_USAGE, "at least one rank is needed");
}

Test(plan, ranks_that_do_not_divide)
{
    make_source();
    expect_no_plan(MP_ERR_INPUT,
                   "placement: 5 physical experts do not divide evenly among 3 ranks");
    options.redundant = 2;
    expect_no_plan(MP_ERR_INPUT,
                   "placement: 7 physical experts do not divide evenly among 3 ranks");
}

Test(plan, another_scheme)
{
    make_source();
    options.redundant = 1;
    options.quantize = true;
    options.quantize_to = MP_SCHEME_MXFP8;
    expect_no_plan(MP_ERR_USAGE, "megamoe-w4a8 takes mxfp4, not mxfp8");
    options.quantize_to = MP_SCHEME_MXFP4; /* which they are */
    expect_plan();
    cr_assert(plan.layers[0].lossless);
}

Test(plan, a_source_that_is_not_quantized)
{
    add_bf16_expert("model.layers.0", 0, HIDDEN, INTER);
    expect_model();
    options.ep = 1;
    expect_no_plan(MP_ERR_UNSUPPORTED,
                   "megamoe-w4a8 takes mxfp4, and the experts of model.layers.0 are bf16: "
                   "requantize them with --quantize mxfp4");
    options.quantize = true;
    options.quantize_to = MP_SCHEME_MXFP4;
    expect_plan();
    cr_assert_not(plan.layers[0].lossless);
}

Test(plan, sizes_that_the_target_does_not_take)
{
    add_fp4_expert("layers.0", 0, 192, 128);
    expect_model();
    options.ep = 1;
    expect_no_plan(MP_ERR_UNSUPPORTED,
                   "megamoe-w4a8: hidden size is 192, the kernel takes multiples of 128");
}

Test(plan, a_placement_that_does_not_fit)
{
    int32_t map[2][6] = {{0, 1, 2, 3, 4, 0}, {0, 1, 2, 3, 4, 0}};
    mp_placement placement = {.layers = 2, .num_logical = 5, .num_physical = 6, .map = &map[0][0]};

    make_source();
    options.placement = &placement;
    expect_no_plan(MP_ERR_INPUT,
                   "placement: 2 rows, the model has 3 MoE layers (MTP blocks counted)");
    placement.layers = 1;
    placement.num_logical = 6;
    expect_no_plan(MP_ERR_INPUT, "placement: for 6 experts, the model has 5");
    placement.num_logical = 5;
    map[0][2] = 1;
    expect_no_plan(MP_ERR_INPUT, "placement: row 0: logical expert 2 is in none of the 6 columns");
    map[0][2] = 5;
    expect_no_plan(MP_ERR_INPUT, "placement: row 0, column 2: logical expert 5, expected 0 to 4");
    map[0][2] = -1;
    expect_no_plan(MP_ERR_INPUT, "placement: row 0, column 2: logical expert -1, expected 0 to 4");
    map[0][2] = 2;
    options.redundant = 1;
    expect_no_plan(MP_ERR_USAGE,
                   "a placement file says itself how many redundant experts there are");
    options.redundant = 0;
    expect_plan();
}

/* Two MoE layers of four, behind two dense ones. */
static void make_layers_2_and_3(void)
{
    add_fp4_layer("layers.2", 3, HIDDEN, INTER);
    add_fp4_layer("layers.3", 3, HIDDEN, INTER);
    add_fp4_layer("mtp.0", 3, HIDDEN, INTER);
    put_text("config.json", "{\"num_hidden_layers\": 4, \"first_k_dense_replace\": 2}");
    expect_model();
}

/* Engines index their placements by decoder layer, dense ones counted. */
Test(plan, a_placement_of_all_decoder_layers)
{
    int32_t map[4][3] = {{0, 1, 2}, {0, 1, 2}, {1, 2, 0}, {2, 0, 1}};
    mp_placement placement = {.layers = 4, .num_logical = 3, .num_physical = 3, .map = &map[0][0]};

    make_layers_2_and_3();
    options.placement = &placement;
    expect_no_plan(MP_ERR_INPUT, "placement: no row among 4 for mtp.0: add one, or leave the layer "
                                 "out with --layers");
    options.layers = "0-3";
    expect_plan();
    expect_copies(0, "2.0"); /* expert 0 of layer 2 */
    expect_copies(6, "1.0");

    uint32_t layer_ids[] = {2, 3}; /* or those alone that the file names */
    placement.layer_ids = layer_ids;
    placement.layers = 2;
    placement.map = &map[2][0];
    expect_plan();
    expect_copies(0, "2.0");
    expect_copies(6, "1.0");
}

/* As many rows as MoE layers: those, in order, unless the file names layers itself. */
Test(plan, a_placement_of_all_moe_layers)
{
    int32_t map[3][3] = {{1, 2, 0}, {2, 0, 1}, {0, 1, 2}};
    mp_placement placement = {.layers = 3, .num_logical = 3, .num_physical = 3, .map = &map[0][0]};

    make_layers_2_and_3();
    options.placement = &placement;
    expect_plan();
    expect_copies(0, "2.0");
    expect_copies(6, "1.0");
    expect_copies(12, "0.0");
    uint32_t layer_ids[] = {3, 4, 5};
    placement.layer_ids = layer_ids;
    expect_no_plan(MP_ERR_INPUT, "placement: no row among 3 for layers.2: add one, or leave the "
                                 "layer out with --layers");
}

/* As many rows as decoder layers and as MoE layers: SGLang's file of GLM-4.5-Air, whose MTP block
 * makes up for its dense layer. */
Test(plan, a_placement_that_can_be_read_in_two_ways)
{
    int32_t map[3][3] = {{1, 2, 0}, {2, 0, 1}, {0, 1, 2}};
    mp_placement placement = {.layers = 3, .num_logical = 3, .num_physical = 3, .map = &map[0][0]};

    add_fp4_layer("layers.1", 3, HIDDEN, INTER);
    add_fp4_layer("layers.2", 3, HIDDEN, INTER);
    add_fp4_layer("mtp.0", 3, HIDDEN, INTER);
    put_text("config.json", "{\"num_hidden_layers\": 3, \"first_k_dense_replace\": 1}");
    expect_model();
    options.placement = &placement;
    expect_no_plan(MP_ERR_INPUT,
                   "placement: 3 rows can be one for each decoder layer or one for each MoE layer, "
                   "and layers.1 has not the same in both; use --rows layer or --rows moe");
    options.rows = MP_ROWS_MOE;
    expect_plan();
    expect_copies(0, "2.0"); /* row 0 */
    expect_copies(6, "1.0");
    expect_copies(12, "0.0");
    options.rows = MP_ROWS_LAYER;
    expect_no_plan(MP_ERR_INPUT, "placement: no row among 3 for mtp.0: add one, or leave the layer "
                                 "out with --layers");
    options.layers = "0-3";
    expect_plan();
    expect_copies(0, "1.0"); /* row 1 */
    expect_copies(6, "0.0");

    options.rows = MP_ROWS_LAYER;
    placement.layers = 2;
    expect_no_plan(MP_ERR_INPUT, "placement: 2 rows, the model has 3 decoder layers");
    options.rows = MP_ROWS_AUTO; /* as many as are packed */
    expect_plan();
    expect_copies(0, "2.0");
    expect_copies(6, "1.0");
}

/* Numbers of layers that a file states, MTP blocks behind the decoder layers. */
Test(plan, a_placement_that_states_its_layers)
{
    int32_t map[3][3] = {{1, 2, 0}, {2, 0, 1}, {0, 1, 2}};
    uint32_t layer_ids[] = {2, 3, 4};
    mp_placement placement = {.layers = 3,
                              .num_logical = 3,
                              .num_physical = 3,
                              .map = &map[0][0],
                              .layer_ids = layer_ids};

    make_layers_2_and_3();
    options.placement = &placement;
    expect_plan();
    expect_copies(0, "2.0");
    expect_copies(6, "1.0");
    expect_copies(12, "0.0");
    options.rows = MP_ROWS_MOE;
    expect_no_plan(MP_ERR_USAGE, "placement: the file itself says which layers its rows are for");
    options.rows = MP_ROWS_AUTO;
    placement.layers = 1; /* one row alone is for its layer, not for all */
    expect_no_plan(MP_ERR_INPUT, "placement: no row among 1 for layers.3: add one, or leave the "
                                 "layer out with --layers");
    placement.layers = 3;
    placement.devices = options.ep + 1;
    char message[80];
    snprintf(message, sizeof message, "placement: device_count is %u, the number of ranks is %u",
             options.ep + 1, options.ep);
    expect_no_plan(MP_ERR_INPUT, message);
}

Test(plan, layers_of_different_kinds)
{
    add_fp4_layer("layers.0", 3, HIDDEN, INTER);
    add_fp4_layer("mtp.0", 6, HIDDEN, INTER);
    expect_model();
    expect_no_plan(MP_ERR_UNSUPPORTED,
                   "mtp.0 has 6 experts and layers.0 3: pack them separately with --layers");
    options.layers = "0";
    expect_plan();
    options.layers = "1";
    expect_no_plan(MP_ERR_USAGE, "list \"1\": \"1\" names no layer");
}

Test(plan, a_checkpoint_with_problems)
{
    add_fp4_layer("layers.0", 3, HIDDEN, INTER);
    drop_tensor("layers.0.ffn.experts.1.w3.scale");
    expect_model();
    expect_no_plan(MP_ERR_INPUT, "layers.0.ffn.experts.1.w3: no scale for the weight");
}

/* The target has no place for biases, and nothing is left behind without a word. */
Test(plan, what_the_target_cannot_carry)
{
    static const char refused[] = "layers.0.ffn.experts.2.w1.bias: megamoe-w4a8 cannot hold it: "
                                  "drop it with --drop bias";

    add_fp4_layer("layers.0", 3, HIDDEN, INTER);
    add_tensor(MP_BF16, INTER, 0, "layers.0.ffn.experts.2.w1.bias");
    expect_model();
    expect_no_plan(MP_ERR_UNSUPPORTED, refused);
    options.drop = "input_scale";
    expect_no_plan(MP_ERR_UNSUPPORTED, refused);
    options.drop = "bias";
    expect_plan();
    options.drop = "input_scale,bias";
    expect_plan();
    options.drop = "bias,scale";
    expect_no_plan(MP_ERR_USAGE, "drop: \"scale\" is not one of bias,input_scale,offset");
}

Test(plan, warns_of_what_the_engine_does_not_take)
{
    make_source();
    options.redundant = 1;
    expect_plan();
    cr_assert_eq(plan.warnings.count, 2);
    cr_assert_str_eq(plan.warnings.text[0],
                     "megamoe-w4a8: hidden size is 384, SGLang takes multiples of 512 only");
}
