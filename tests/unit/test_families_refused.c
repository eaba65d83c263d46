/* SPDX-License-Identifier: Apache-2.0 */
/* Forms of experts that are known and not read: each is refused by its name, and so is what
 * small tensors beside the weights say that cannot be right. */
#include <criterion/criterion.h>

#include <fcntl.h>

#include "checkpoint/matrix.h"
#include "checkpoint/storage.h"
#include "model_files.h"

#define CONFIG_BITS(bits)                                                        \
    "{\"quantization_config\": {\"config_groups\": {\"group_0\": {\"weights\": " \
    "{\"num_bits\": " #bits ", \"group_size\": 32}}}}}"

TestSuite(families_refused, .init = make_model_scratch, .fini = remove_model_scratch);

#define EXPERT "model.layers.0.mlp.experts.0."

/* What is there cannot be opened, with that message. */
static void expect_unsupported(const char *message)
{
    cr_assert_eq(open_model(), MP_ERR_UNSUPPORTED, "%s", err.message);
    cr_assert_str_eq(err.message, message);
    clear_model();
}

/* The tensors of gate, up and down by suffixes, all of one small shape. */
static void add_each(const char *const suffixes[], mp_dtype dtype)
{
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};

    for (int p = 0; p < MP_PROJECTIONS; p++)
        for (size_t i = 0; suffixes[i]; i++)
            add_tensor(dtype, 64, 8, EXPERT "%s.%s", projections[p], suffixes[i]);
}

#define ADD_EACH(dtype, ...) add_each((const char *const[]){__VA_ARGS__, NULL}, dtype)

Test(families_refused, what_other_tools_write)
{
    ADD_EACH(MP_I32, "qweight", "qzeros", "scales"); /* AWQ */
    expect_unsupported(EXPERT "down_proj.qweight: weights of AWQ or GPTQ cannot be read");
    ADD_EACH(MP_I32, "qweight", "qzeros", "scales", "g_idx"); /* GPTQ */
    expect_unsupported(EXPERT "down_proj.g_idx: columns that GPTQ has reordered cannot be read");
    ADD_EACH(MP_U32, "weight", "scales", "biases"); /* MLX */
    expect_unsupported(EXPERT "down_proj.biases: zero points of MLX cannot be read");
    add_stack(MP_U32, 3, 64, 8, "model.layers.0.mlp.switch_mlp.gate_proj.weight");
    expect_unsupported(
        "model.layers.0.mlp.switch_mlp.gate_proj.weight: experts in the order of MLX "
        "cannot be read");
}

Test(families_refused, what_compressed_tensors_can_write)
{
    ADD_EACH(MP_I32, "weight_packed", "scale_packed", "meta");
    expect_unsupported(EXPERT
                       "down_proj.meta: weights in Marlin's 2:4 sparse order cannot be read");
    ADD_EACH(MP_I32, "weight_packed", "weight_scale", "weight_shape", "weight_g_idx");
    expect_unsupported(EXPERT "down_proj.weight_g_idx: columns that are reordered cannot be read");
    ADD_EACH(MP_U8, "compressed", "bitmask", "shape");
    expect_unsupported(EXPERT "down_proj.bitmask: sparse weights cannot be read");
}

Test(families_refused, what_modelslim_can_write)
{
    ADD_EACH(MP_I8, "weight", "deq_scale", "quant_bias", "input_scale", "input_offset");
    expect_unsupported(EXPERT
                       "down_proj.deq_scale: weights of ModelSlim's static W8A8 cannot be read");
    ADD_EACH(MP_U8, "weight", "weight_scale", "weight_dual_scale");
    expect_unsupported(EXPERT "down_proj.weight_dual_scale: weights of ModelSlim with two scales "
                              "cannot be read");
}

/* ------------------------------------------------------------------------
 * INT4 and INT8
 */

/* An INT4 expert, H = 96 and I = 64, whose shapes are zeros until they are poked. */
static void add_int4_expert(unsigned expert)
{
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? 96 : 64, cols = p == MP_DOWN ? 64 : 96;
        const char *at = "model.layers.0.mlp.experts.%u.%s.%s";

        add_tensor(MP_I32, rows, cols / 8, at, expert, projections[p], "weight_packed");
        add_tensor(MP_BF16, rows, cols / 32, at, expert, projections[p], "weight_scale");
        add_tensor(MP_I32, 2, 0, at, expert, projections[p], "weight_shape");
    }
}

/* Writes bytes over the beginning of a tensor of the opened model. */
static void poke(const char *name, const void *bytes, size_t count)
{
    const mp_tensor *tensor = mp_checkpoint_find(&catalog.checkpoint, name);
    int fd;

    cr_assert_not_null(tensor, "no tensor %s", name);
    fd = open(in_dir("model.safetensors"), O_WRONLY);
    cr_assert_geq(fd, 0);
    cr_assert_eq(pwrite(fd, bytes, count, (off_t)tensor->offset), (ssize_t)count);
    close(fd);
}

static void poke_shapes(unsigned expert)
{
    static const int32_t wide[2] = {64, 96}, tall[2] = {96, 64};
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};
    char name[128];

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        snprintf(name, sizeof name, "model.layers.0.mlp.experts.%u.%s.weight_shape", expert,
                 projections[p]);
        poke(name, p == MP_DOWN ? tall : wide, sizeof wide);
    }
}

static void reopen(void)
{
    mp_catalog_release(&catalog);
    cr_assert_eq(mp_catalog_open(&catalog, dir, NULL, &err), 0, "%s", err.message);
}

/* The first expert's shapes are read at once, the others' with their rows. */
Test(families_refused, shapes_that_the_weights_do_not_have)
{
    static const int32_t other[2] = {64, 95};
    const mp_matrix *matrix;

    add_int4_expert(0);
    add_int4_expert(1);
    expect_model();
    cr_assert_eq(catalog.problems.count, 3);
    cr_assert_str_eq(catalog.problems.text[0],
                     EXPERT "gate_proj.weight_shape: says [0, 0], but the weight is [64, 96]");
    cr_assert_str_eq(catalog.problems.text[2],
                     EXPERT "down_proj.weight_shape: says [0, 0], but the weight is [96, 64]");
    poke_shapes(0);
    poke_shapes(1);
    poke("model.layers.0.mlp.experts.1.up_proj.weight_shape", other, sizeof other);
    reopen();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    matrix = catalog.layers[0].experts[1].matrix;
    cr_assert_eq(mp_matrix_check_shape(&catalog, &matrix[MP_GATE], 64, 96, &err), 0);
    cr_assert_eq(mp_matrix_check_shape(&catalog, &matrix[MP_DOWN], 96, 64, &err), 0);
    cr_assert_eq(mp_matrix_check_shape(&catalog, &matrix[MP_UP], 64, 96, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message,
                     "model.layers.0.mlp.experts.1.up_proj.weight_shape: says [64, 95], but the "
                     "weight is [64, 96]");
}

Test(families_refused, shapes_may_have_64_bits)
{
    static const int64_t right[2] = {64, 96}, negative[2] = {-64, 96};

    add_int4_expert(0);
    change_tensor(EXPERT "gate_proj.weight_shape", MP_I64, 2, 0);
    expect_model();
    poke_shapes(0);
    poke(EXPERT "gate_proj.weight_shape", right, sizeof right);
    reopen();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    poke(EXPERT "gate_proj.weight_shape", negative, sizeof negative);
    reopen();
    cr_assert_eq(catalog.problems.count, 1);
    cr_assert_str_eq(catalog.problems.text[0],
                     EXPERT "gate_proj.weight_shape: says [-64, 96], but the weight is [64, 96]");
}

Test(families_refused, shapes_that_are_no_shapes)
{
    add_int4_expert(0);
    change_tensor(EXPERT "gate_proj.weight_shape", MP_F32, 2, 0);
    change_tensor(EXPERT "up_proj.weight_shape", MP_I32, 3, 0);
    expect_model();
    cr_assert_eq(catalog.problems.count, 4);
    cr_assert_str_eq(catalog.problems.text[0], EXPERT
                     "up_proj.weight_shape: shape [3], expected 2 numbers, rows and columns");
    cr_assert_str_eq(catalog.problems.text[1], EXPERT
                     "gate_proj.weight_shape: F32 of 8 bytes, expected two I32 or I64 numbers");
    cr_assert_str_eq(catalog.problems.text[2], EXPERT
                     "up_proj.weight_shape: I32 of 12 bytes, expected two I32 or I64 numbers");
}

Test(families_refused, zero_points_of_int4)
{
    add_int4_expert(0);
    add_tensor(MP_I32, 8, 3, EXPERT "up_proj.weight_zero_point");
    expect_unsupported(EXPERT
                       "up_proj.weight_zero_point: zero points of int4_group cannot be read");
}

/* Symmetric weights may have them as long as all are zero. */
Test(families_refused, zero_points_of_int8_that_are_not_zero)
{
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};
    static const int8_t one = 1;
    const mp_matrix *matrix;

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? 96 : 64, cols = p == MP_DOWN ? 64 : 96;

        add_tensor(MP_I8, rows, cols, EXPERT "%s.weight", projections[p]);
        add_tensor(MP_BF16, rows, 1, EXPERT "%s.weight_scale", projections[p]);
        add_tensor(MP_I8, rows, 1, EXPERT "%s.weight_zero_point", projections[p]);
    }
    expect_model();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    matrix = catalog.layers[0].experts[0].matrix;
    cr_assert_eq(mp_matrix_check_offset(&catalog, &matrix[MP_UP], &err), 0, "%s", err.message);
    poke(EXPERT "up_proj.weight_zero_point", &one, 1);
    cr_assert_eq(mp_matrix_check_offset(&catalog, &matrix[MP_UP], &err), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, EXPERT "up_proj.weight_zero_point: zero points that are not zero "
                                         "cannot be decoded");
}

/* ModelSlim writes float32, and some tools -0.0, whose bytes are not all zero. */
Test(families_refused, zero_points_that_are_minus_zero)
{
    static const mp_dtype types[] = {MP_F32, MP_BF16, MP_F16};
    static const uint8_t numbers[][4] = {{0, 0, 0, 0x80}, {0, 0x80, 0, 0x80}, {0, 0x80, 0, 0}};
    static const uint8_t not_zero[4] = {0x80, 0, 0, 0}; /* the least of any of them */

    for (int t = 0; t < 3; t++) {
        cr_expect(mp_offsets_are_zero(types[t], numbers[t], 4));
        cr_expect(!mp_offsets_are_zero(types[t], not_zero, 4));
    }
    cr_expect(!mp_offsets_are_zero(MP_I8, numbers[0], 4), "-128");
}

/* An INT4 expert of ModelSlim, a byte a code, with a scale a row and one for each 32 columns. */
static void add_w4a8_expert(void)
{
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? 96 : 64, cols = p == MP_DOWN ? 64 : 96;

        add_tensor(MP_I8, rows, cols, EXPERT "%s.weight", projections[p]);
        add_tensor(MP_F32, rows, 1, EXPERT "%s.weight_scale", projections[p]);
        add_tensor(MP_F32, rows, 1, EXPERT "%s.weight_offset", projections[p]);
        add_tensor(MP_F32, rows, cols / 32, EXPERT "%s.weight_scale_second", projections[p]);
        add_tensor(MP_F32, rows, cols / 32, EXPERT "%s.weight_offset_second", projections[p]);
    }
}

Test(families_refused, zero_points_of_groups_that_are_not_zero)
{
    const float one = 1;
    const mp_matrix *matrix;

    add_w4a8_expert();
    expect_model();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    matrix = catalog.layers[0].experts[0].matrix;
    cr_assert_eq(mp_matrix_check_offset(&catalog, &matrix[MP_DOWN], &err), 0, "%s", err.message);
    poke(EXPERT "down_proj.weight_offset_second", &one, sizeof one);
    cr_assert_eq(mp_matrix_check_offset(&catalog, &matrix[MP_DOWN], &err), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, EXPERT "down_proj.weight_offset_second: zero points that are not "
                                         "zero cannot be decoded");
}

Test(families_refused, codes_that_are_no_int4)
{
    static const int8_t codes[] = {-8, 7, 8}, low = -9;
    uint8_t words[2 * 48];
    const mp_matrix *matrix;

    add_w4a8_expert();
    expect_model();
    matrix = catalog.layers[0].experts[0].matrix;
    poke(EXPERT "up_proj.weight", codes, 2);
    cr_assert_eq(mp_matrix_read_rows(&catalog, &catalog.layers[0].storage, &matrix[MP_UP], 96, 0, 2,
                                     words, NULL, &err),
                 0, "%s", err.message);
    cr_expect_eq(words[0], 0xf0);
    cr_expect_eq(words[1], 0x88);
    poke(EXPERT "up_proj.weight", codes, 3);
    cr_assert_eq(mp_matrix_read_rows(&catalog, &catalog.layers[0].storage, &matrix[MP_UP], 96, 0, 2,
                                     words, NULL, &err),
                 MP_ERR_INPUT);
    cr_assert_str_eq(err.message, EXPERT "up_proj.weight: 8 in row 0, column 2: int4 is -8 to 7");
    poke(EXPERT "up_proj.weight", &low, 1);
    cr_assert_eq(mp_matrix_read_rows(&catalog, &catalog.layers[0].storage, &matrix[MP_UP], 96, 0, 2,
                                     words, NULL, &err),
                 MP_ERR_INPUT);
    cr_assert_str_eq(err.message, EXPERT "up_proj.weight: -9 in row 0, column 0: int4 is -8 to 7");
}

Test(families_refused, one_of_two_scales)
{
    add_w4a8_expert();
    drop_tensor(EXPERT "down_proj.weight_scale_second");
    expect_unsupported(EXPERT "down_proj.weight: int8_channel, but \"" EXPERT
                              "gate_proj.weight\" is int4_group: several formats in one layer are "
                              "not supported");
}

Test(families_refused, groups_of_int8)
{
    put_file("config.json", CONFIG_BITS(8), sizeof CONFIG_BITS(8) - 1);
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};
        uint64_t rows = p == MP_DOWN ? 96 : 64, cols = p == MP_DOWN ? 64 : 96;

        add_tensor(MP_I8, rows, cols, EXPERT "%s.weight", projections[p]);
        add_tensor(MP_BF16, rows, cols / 32, EXPERT "%s.weight_scale", projections[p]);
    }
    expect_unsupported(EXPERT "gate_proj.weight_scale: a scale for each group of 8-bit weights is "
                              "not supported, only of 4-bit ones");
}

/* ------------------------------------------------------------------------
 * Second scales
 */

static void add_nvfp4_expert(const char *const seconds[MP_PROJECTIONS])
{
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};

    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? 96 : 64, cols = p == MP_DOWN ? 64 : 96;

        add_tensor(MP_U8, rows, cols / 2, EXPERT "%s.weight", projections[p]);
        add_tensor(MP_F8_E4M3, rows, cols / 16, EXPERT "%s.weight_scale", projections[p]);
        add_tensor(MP_F32, 1, 0, EXPERT "%s.%s", projections[p], seconds[p]);
    }
}

/* One that divides where others multiply would be off by its square. */
Test(families_refused, second_scales_of_two_kinds)
{
    add_nvfp4_expert(
        (const char *const[]){"weight_scale_2", "weight_global_scale", "weight_scale_2"});
    expect_model();
    cr_assert_not(catalog.layers[0].storage.global_divides);
    cr_assert_eq(catalog.problems.count, 1);
    cr_assert_str_eq(catalog.problems.text[0],
                     EXPERT "up_proj.weight_global_scale: a second scale that divides, but the "
                            "layer's others multiply");
}

/* Those of the shared expert need not be those of the routed ones. */
Test(families_refused, second_scales_of_the_shared_expert_are_its_own)
{
    static const char *const projections[] = {"gate_proj", "up_proj", "down_proj"};

    add_nvfp4_expert((const char *const[]){"weight_scale_2", "weight_scale_2", "weight_scale_2"});
    for (int p = 0; p < MP_PROJECTIONS; p++) {
        uint64_t rows = p == MP_DOWN ? 96 : 64, cols = p == MP_DOWN ? 64 : 96;
        const char *at = "model.layers.0.mlp.shared_experts.%s.%s";

        add_tensor(MP_U8, rows, cols / 2, at, projections[p], "weight_packed");
        add_tensor(MP_F8_E4M3, rows, cols / 16, at, projections[p], "weight_scale");
        add_tensor(MP_F32, 1, 0, at, projections[p], "weight_global_scale");
    }
    expect_model();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    cr_assert_not(catalog.layers[0].storage.global_divides);
    cr_assert(catalog.layers[0].shared_storage.global_divides);
}

/* Stacked experts have one each, or one for all of them. */
Test(families_refused, second_scales_of_stacks)
{
    static const float values[3] = {0.5f, 0.25f, 0.125f};
    float global;

#define AT "model.layers.0.mlp.experts."
    add_stack(MP_U8, 3, 48, 128, AT "gate_up_proj");
    add_stack(MP_F8_E4M3, 3, 6, 128, AT "gate_up_proj_weight_scale");
    add_tensor(MP_F32, 3, 0, AT "gate_up_proj_weight_scale_2");
    add_stack(MP_U8, 3, 32, 96, AT "down_proj");
    add_stack(MP_F8_E4M3, 3, 4, 96, AT "down_proj_weight_scale");
    add_tensor(MP_F32, 1, 0, AT "down_proj_weight_scale_2");
    put_text("config.json", "{\"model_type\": \"qwen3_5_moe\"}");
    expect_model();
    cr_assert_eq(catalog.problems.count, 0, "%s", catalog.problems.text[0]);
    cr_assert_eq(catalog.hidden_size, 96);
    cr_assert_eq(catalog.moe_intermediate_size, 64);
    poke(AT "gate_up_proj_weight_scale_2", values, sizeof values);
    poke(AT "down_proj_weight_scale_2", values, sizeof values[0]);
    for (uint32_t e = 0; e < 3; e++) {
        const mp_matrix *matrix = catalog.layers[0].experts[e].matrix;

        cr_assert_eq(mp_matrix_global(&catalog, &matrix[MP_UP], &global, &err), 0);
        cr_assert_eq(global, values[e]);
        cr_assert_eq(mp_matrix_global(&catalog, &matrix[MP_DOWN], &global, &err), 0);
        cr_assert_eq(global, 0.5f);
    }
    change_tensor(AT "down_proj_weight_scale_2", MP_F32, 2, 0);
    expect_model();
    cr_assert_eq(catalog.problems.count, 1);
    cr_assert_str_eq(catalog.problems.text[0],
                     AT "down_proj_weight_scale_2: shape [2], expected 3 numbers, one per matrix");
#undef AT
}

Test(families_refused, scales_of_stacks_without_weights)
{
    add_stack(MP_F8_E4M3, 3, 6, 128, "model.layers.0.mlp.experts.gate_up_proj_weight_scale");
    cr_assert_eq(open_model(), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "model.layers.0: fused experts without weights");
}
