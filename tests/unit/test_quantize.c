/* SPDX-License-Identifier: Apache-2.0 */
/* Requantizing checkpoints: every family into every format, read back matrix by matrix; what
 * stays, stays byte for byte; interrupted runs end as others do. */
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#include "base/json.h"
#include "checkpoint/matrix.h"
#include "golden.h"
#include "numeric/quantize.h"
#include "quantize_run.h"
#include "write/quantize.h"
TestSuite(quantize, .init = make_quantize_scratch, .fini = remove_quantize_scratch);

/* ------------------------------------------------------------------------
 * Matrices, whole
 */

typedef struct whole {
    mp_rows rows;
    uint8_t *weight, *scale;
    uint64_t weight_bytes, scale_bytes;
} whole;

static whole read_whole(const mp_catalog *from, const mp_storage *s, const mp_expert *expert,
                        mp_projection p)
{
    const mp_matrix *matrix = &expert->matrix[p];
    uint64_t rows, cols;
    whole w = {0};

    mp_catalog_shape(from, p, &rows, &cols);
    w.weight_bytes = rows * mp_storage_row_bytes(s, cols);
    w.scale_bytes =
        (rows + s->block_rows - 1) / s->block_rows * mp_storage_scale_row_bytes(s, cols);
    w.weight = malloc(w.weight_bytes);
    w.scale = malloc(w.scale_bytes + 1);
    w.rows = (mp_rows){
        .scheme = s->scheme,
        .scale_dtype = s->scale_dtype,
        .block_rows = s->block_rows,
        .block_cols = s->block_cols,
        .rows = rows,
        .cols = cols,
        .weight = w.weight,
        .scale = s->has_scale ? w.scale : NULL,
        .global_divides = s->global_divides,
    };
    cr_assert_eq(mp_matrix_read_rows(from, s, matrix, cols, 0, rows, w.weight, w.scale, &err), 0,
                 "%s", err.message);
    cr_assert_eq(mp_matrix_global(from, matrix, &w.rows.global_scale, &err), 0);
    return w;
}

static float multiplier(const whole *w)
{
    return w->rows.global_divides ? 1 / w->rows.global_scale : w->rows.global_scale;
}

static void free_whole(whole *w)
{
    free(w->weight);
    free(w->scale);
}

static float largest_value(const whole *w)
{
    uint64_t count = w->rows.rows * w->rows.cols;
    float *values = malloc(count * sizeof *values), largest = 0;

    cr_assert_eq(mp_decode_rows(&w->rows, values, &err), 0, "%s", err.message);
    for (uint64_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(values[i]));
    free(values);
    return largest;
}

/* The second scale that an expert's matrix is to have in nvfp4. */
static float wanted_global(const mp_storage *s, const mp_expert *expert, mp_projection p)
{
    float amax = 0, global = 0;
    uint8_t exponent = 0;

    for (int q = p == MP_DOWN ? MP_DOWN : MP_GATE; q <= (p == MP_DOWN ? MP_DOWN : MP_UP); q++) {
        whole w = read_whole(&catalog, s, expert, (mp_projection)q);

        amax = fmaxf(amax, largest_value(&w));
        global = fmaxf(global, multiplier(&w));
        for (uint64_t i = 0; i < w.scale_bytes; i++)
            exponent = w.scale[i] > exponent ? w.scale[i] : exponent;
        free_whole(&w);
    }
    if (s->scheme == MP_SCHEME_NVFP4)
        return global;
    return s->scheme == MP_SCHEME_MXFP4 ? ldexpf(1, exponent - 127 - 8) : amax / (6 * 448);
}

/* What was written is the source's matrix, requantized as one. */
static void check_matrix(const mp_quantize_options *o, const mp_storage *from,
                         const mp_expert *expert, const mp_storage *to, const mp_expert *written,
                         mp_projection p)
{
    whole source = read_whole(&catalog, from, expert, p), have = read_whole(&made, to, written, p);
    uint8_t *codes = malloc(have.weight_bytes), *scales = malloc(4 * have.scale_bytes + 1);
    void *work = malloc(mp_requantize_scratch(source.rows.cols));
    mp_quant_options quant = o->quant;

    quant.ue8m0 = plan.options.quant.ue8m0; /* as config.json of the source wants it */
    if (o->scheme == MP_SCHEME_NVFP4) {
        quant.global_scale = wanted_global(from, expert, p);
        cr_assert_float_eq(multiplier(&have), quant.global_scale, quant.global_scale * 2e-7f);
    }
    cr_assert_eq(to->scheme, o->scheme);
    cr_assert_eq(mp_requantize(&source.rows, o->scheme, &quant, codes, scales, work, NULL, &err), 0,
                 "%s", err.message);
    cr_assert_eq(memcmp(have.weight, codes, have.weight_bytes), 0, "%s",
                 written->matrix[p].weight->name);
    if (to->scheme == MP_SCHEME_FP8_BLOCK && to->scale_dtype == MP_F8_E8M0 &&
        mp_scales_convert(MP_F32, scales, have.scale_bytes, MP_F8_E8M0, codes))
        memcpy(scales, codes, have.scale_bytes);
    cr_assert_eq(memcmp(have.scale, scales, have.scale_bytes), 0, "%s",
                 written->matrix[p].weight->name);
    free(codes);
    free(scales);
    free(work);
    free_whole(&source);
    free_whole(&have);
}

static void check_experts(const mp_quantize_options *o)
{
    cr_assert_eq(made.num_layers, catalog.num_layers);
    for (size_t l = 0; l < catalog.num_layers; l++) {
        const mp_moe_layer *from = &catalog.layers[l], *to = &made.layers[l];

        cr_assert_eq(to->num_experts, from->num_experts);
        cr_assert_str_eq(to->prefix, from->prefix);
        for (uint32_t e = 0; e < from->num_experts; e++)
            for (int p = 0; p < MP_PROJECTIONS; p++)
                check_matrix(o, &from->storage, &from->experts[e], &to->storage, &to->experts[e],
                             (mp_projection)p);
    }
}

/* ------------------------------------------------------------------------
 * What stays
 */

static bool equal_tensors(const mp_tensor *a, const mp_tensor *b)
{
    uint8_t *x = malloc(a->bytes + 1), *y = malloc(a->bytes + 1);
    bool equal = a->dtype == b->dtype && a->rank == b->rank && a->bytes == b->bytes &&
                 memcmp(a->shape, b->shape, a->rank * sizeof *a->shape) == 0;

    if (equal) {
        cr_assert_eq(mp_tensor_read(&catalog.checkpoint, a, 0, a->bytes, x, &err), 0);
        cr_assert_eq(mp_tensor_read(&made.checkpoint, b, 0, b->bytes, y, &err), 0);
        equal = memcmp(x, y, a->bytes) == 0;
    }
    free(x);
    free(y);
    return equal;
}

/* Every tensor of the source whose name lacks `mark` is there unchanged; returns how many. */
static size_t count_unchanged(const char *mark)
{
    size_t count = 0;

    for (size_t i = 0; i < catalog.checkpoint.num_tensors; i++) {
        const mp_tensor *tensor = &catalog.checkpoint.tensors[i], *now;

        if (strstr(tensor->name, mark))
            continue;
        now = mp_checkpoint_find(&made.checkpoint, tensor->name);
        cr_assert_not_null(now, "%s is gone", tensor->name);
        cr_assert(equal_tensors(tensor, now), "%s", tensor->name);
        count++;
    }
    return count;
}

/* Tensors that were written whose names lack `mark`. */
static size_t count_without(const char *mark)
{
    size_t count = 0;

    for (size_t i = 0; i < made.checkpoint.num_tensors; i++)
        count += strstr(made.checkpoint.tensors[i].name, mark) == NULL;
    return count;
}

/* ------------------------------------------------------------------------
 * Families and formats
 */

static const mp_scheme schemes[] = {MP_SCHEME_MXFP4, MP_SCHEME_FP8_BLOCK, MP_SCHEME_NVFP4,
                                    MP_SCHEME_INT8_CHANNEL, MP_SCHEME_BF16};

static void check_family(const char *name, const char *style)
{
    for (size_t s = 0; s < sizeof schemes / sizeof schemes[0]; s++) {
        mp_quantize_options o = {
            .scheme = schemes[s],
            .style = style,
            .quant = {.rounding = MP_ROUND_OCP},
        };

        open_source(fixture_path(name));
        if (try_plan(&o) == MP_ERR_UNSUPPORTED && strstr(err.message, "--drop input_scale"))
            o.drop = "input_scale";
        if (style && try_plan(&o) == MP_ERR_UNSUPPORTED)
            continue; /* the style lacks the scheme: test_form.c */
        quantize(&o, "out");
        check_experts(&o);
        cr_assert_eq(count_unchanged(".experts."), count_without(".experts."), "%s", name);
        mp_quantize_plan_release(&plan);
    }
}

#define FAMILY(test, name)        \
    Test(quantize, test)          \
    {                             \
        check_family(name, NULL); \
    }

FAMILY(of_v4, "v4-fp4")
FAMILY(of_v3, "v3-fp8")
FAMILY(of_qwen3, "qwen3-bf16")
FAMILY(of_qwen3_fp8, "qwen3-fp8-bf16scale")
FAMILY(of_int8, "ct-int8")
FAMILY(of_nvfp4_that_divides, "ct-nvfp4")
FAMILY(of_nvfp4, "modelopt-nvfp4")
FAMILY(of_paired_columns, "gptoss-bf16-fused-c")
FAMILY(of_paired_rows, "gptoss-mxfp4")
FAMILY(of_int4, "kimi-k25-int4")
FAMILY(of_mxfp8, "minimax-m3-mxfp8")
FAMILY(of_mixtral, "mixtral-bf16")
FAMILY(of_int8_with_offsets, "modelslim-w8a8")
FAMILY(of_fused_rows, "qwen35-fused-a")
FAMILY(of_fused_columns, "qwen3vl-fused-b")
FAMILY(of_v4_base, "v4-base-fp8")
FAMILY(of_fused_nvfp4, "llama4-modelopt-nvfp4")
FAMILY(of_fp8_by_tensor, "mistral-small4-fp8")
FAMILY(of_fp8_by_channel, "glm-fp8-channel")
FAMILY(of_v4_nvfp4, "v4-modelopt-nvfp4")
FAMILY(of_k3, "kimi-k3-mxfp4")
FAMILY(of_f16, "mixtral-f16")

Test(quantize, in_every_style)
{
    static const char *const styles[] = {"deepseek-v4", "deepseek-v3", "compressed-tensors",
                                         "modelopt"};

    for (size_t i = 0; i < sizeof styles / sizeof styles[0]; i++)
        check_family("mixtral-bf16", styles[i]);
}

/* V4's config.json says that scales of FP8 are powers of two, and stays. */
Test(quantize, rounds_scales_where_config_says_so)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_FP8_BLOCK, .drop = "input_scale"};

    open_source(fixture_path("v4-modelopt-nvfp4"));
    quantize(&o, "out");
    cr_assert(plan.options.quant.ue8m0);
    for (uint32_t e = 0; e < made.layers[0].num_experts; e++) {
        whole w = read_whole(&made, &made.layers[0].storage, &made.layers[0].experts[e], MP_UP);

        for (uint64_t i = 0; i < w.scale_bytes / sizeof(float); i++) {
            float scale;
            int exponent;

            memcpy(&scale, w.scale + i * sizeof scale, sizeof scale);
            cr_assert(scale == 0 || frexpf(scale, &exponent) == 0.5f, "%g", (double)scale);
        }
        free_whole(&w);
    }
    open_source(fixture_path("v3-fp8"));
    cr_assert_eq(try_plan(&o), 0);
    cr_assert_not(plan.options.quant.ue8m0);
}

/* ------------------------------------------------------------------------
 * Nothing lost
 */

static const mp_tensor *find_made(const char *name)
{
    const mp_tensor *tensor = mp_checkpoint_find(&made.checkpoint, name);

    cr_assert_not_null(tensor, "%s", name);
    return tensor;
}

static const mp_tensor *find_source(const char *name)
{
    const mp_tensor *tensor = mp_checkpoint_find(&catalog.checkpoint, name);

    cr_assert_not_null(tensor, "%s", name);
    return tensor;
}

/* Same bytes under another name. */
static void expect_same_bytes(const char *source, const char *written)
{
    const mp_tensor *a = find_source(source), *b = find_made(written);
    uint8_t *x = malloc(a->bytes), *y = malloc(a->bytes);

    cr_assert_eq(a->bytes, b->bytes, "%s", written);
    cr_assert_eq(mp_tensor_read(&catalog.checkpoint, a, 0, a->bytes, x, &err), 0);
    cr_assert_eq(mp_tensor_read(&made.checkpoint, b, 0, a->bytes, y, &err), 0);
    cr_assert_eq(memcmp(x, y, a->bytes), 0, "%s", written);
    free(x);
    free(y);
}

Test(quantize, another_style_moves_the_same_bytes)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_MXFP4, .style = "compressed-tensors"};

    open_source(fixture_path("v4-fp4"));
    quantize(&o, "out");
    cr_assert(plan.work.lossless);
    expect_same_bytes("layers.0.ffn.experts.3.w1.weight",
                      "layers.0.ffn.experts.3.w1.weight_packed");
    expect_same_bytes("layers.0.ffn.experts.3.w1.scale", "layers.0.ffn.experts.3.w1.weight_scale");
    expect_same_bytes("mtp.0.ffn.experts.4.w2.weight", "mtp.0.ffn.experts.4.w2.weight_packed");
    cr_assert_eq(find_made("mtp.0.ffn.experts.4.w2.weight_scale")->dtype, MP_U8);
}

/* Codes are the source's own wherever a scheme is left as it is. */
Test(quantize, the_same_scheme_keeps_its_codes)
{
    static const struct {
        const char *fixture;
        mp_scheme scheme;
        const char *style, *from, *to;
    } pairs[] = {
        {"ct-int8", MP_SCHEME_INT8_CHANNEL, NULL, "weight", "weight"},
        {"modelslim-w8a8", MP_SCHEME_INT8_CHANNEL, NULL, "weight", "weight"},
        {"modelslim-w8a8", MP_SCHEME_INT8_CHANNEL, NULL, "weight_scale", "weight_scale"},
        {"qwen3-fp8-bf16scale", MP_SCHEME_FP8_BLOCK, NULL, "weight", "weight"},
        {"modelopt-nvfp4", MP_SCHEME_NVFP4, "compressed-tensors", "weight", "weight_packed"},
        {"modelopt-nvfp4", MP_SCHEME_NVFP4, "compressed-tensors", "weight_scale", "weight_scale"},
        {"ct-nvfp4", MP_SCHEME_NVFP4, "modelopt", "weight_packed", "weight"},
        {"ct-nvfp4", MP_SCHEME_NVFP4, "modelopt", "weight_scale", "weight_scale"},
        {"ct-nvfp4", MP_SCHEME_NVFP4, "compressed-tensors", "weight_global_scale",
         "weight_global_scale"},
        {"ct-nvfp4", MP_SCHEME_NVFP4, "compressed-tensors", "input_global_scale",
         "input_global_scale"},
    };

    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        const mp_quantize_options o = {.scheme = pairs[i].scheme, .style = pairs[i].style};

        open_source(fixture_path(pairs[i].fixture));
        quantize(&o, "out");
        for (int e = 0; e < 3; e++) {
            char from[128], to[128];

            snprintf(from, sizeof from, "model.layers.0.mlp.experts.%d.up_proj.%s", e,
                     pairs[i].from);
            snprintf(to, sizeof to, "model.layers.0.mlp.experts.%d.up_proj.%s", e, pairs[i].to);
            expect_same_bytes(from, to);
        }
    }
}

/* Rows in turn become matrices of their own, with their biases. */
Test(quantize, splits_pairs_and_their_biases)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_BF16};
    const mp_tensor *fused, *gate, *up;
    uint16_t both[3 * 128], part[64];

    open_source(fixture_path("gptoss-bf16-fused-c"));
    quantize(&o, "out");
    fused = find_source("model.layers.0.mlp.experts.gate_up_proj_bias");
    gate = find_made("model.layers.0.mlp.experts.2.gate_proj.bias");
    up = find_made("model.layers.0.mlp.experts.2.up_proj.bias");
    cr_assert_eq(mp_tensor_read(&catalog.checkpoint, fused, 0, sizeof both, both, &err), 0);
    cr_assert(gate->rank == 1 && gate->shape[0] == 64 && gate->dtype == MP_BF16);
    cr_assert_eq(mp_tensor_read(&made.checkpoint, gate, 0, sizeof part, part, &err), 0);
    for (int r = 0; r < 64; r++)
        cr_assert_eq(part[r], both[2 * 128 + 2 * r], "row %d", r);
    cr_assert_eq(mp_tensor_read(&made.checkpoint, up, 0, sizeof part, part, &err), 0);
    for (int r = 0; r < 64; r++)
        cr_assert_eq(part[r], both[2 * 128 + 2 * r + 1], "row %d", r);
    cr_assert_eq(find_made("model.layers.0.mlp.experts.0.down_proj.bias")->shape[0], 96);
    for (uint32_t e = 0; e < 3; e++)
        cr_assert_not_null(made.layers[0].experts[e].matrix[MP_DOWN].bias);
}

Test(quantize, drops_biases_when_told_to)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_BF16, .drop = "bias"};

    open_source(fixture_path("gptoss-bf16-fused-c"));
    quantize(&o, "out");
    cr_assert_eq(made.expert_tensors, 3 * 3);
}

static void change_float(const char *path, const char *name, float value)
{
    const mp_tensor *tensor;
    char file[512];
    int fd;

    open_source(path);
    tensor = find_source(name);
    snprintf(file, sizeof file, "%s/%s", path, catalog.checkpoint.shards[tensor->shard].name);
    fd = open(file, O_WRONLY);
    cr_assert_eq(pwrite(fd, &value, sizeof value, (off_t)tensor->offset), sizeof value);
    close(fd);
    open_source(path);
}

static float float_of(const mp_catalog *from, const char *name)
{
    const mp_tensor *tensor = mp_checkpoint_find(&from->checkpoint, name);
    float value;

    cr_assert_not_null(tensor, "%s", name);
    cr_assert_eq(mp_tensor_read(&from->checkpoint, tensor, 0, sizeof value, &value, &err), 0);
    return value;
}

/* Engines take gate and up for one matrix, so they get one second scale, the larger one. */
Test(quantize, reconciles_second_scales)
{
    static const char gate[] = "model.layers.0.mlp.experts.1.gate_proj.weight_scale_2";
    static const char up[] = "model.layers.0.mlp.experts.1.up_proj.weight_scale_2";
    const mp_quantize_options o = {.scheme = MP_SCHEME_NVFP4};
    const char *path = copy_fixture("modelopt-nvfp4");
    float old, blocks = 0;
    mp_layer_error *errors;
    size_t count;

    open_source(path);
    old = float_of(&catalog, gate);
    change_float(path, up, old * 1.25f);
    quantize(&o, "out");
    cr_assert_eq(float_of(&made, gate), old * 1.25f);
    cr_assert_eq(float_of(&made, up), old * 1.25f);
    check_experts(&o);
    cr_assert_eq(mp_quantize_errors(in_dir("out"), &errors, &count, &err), 0, "%s", err.message);
    cr_assert_eq(count, 3);
    cr_assert_str_eq(errors[0].matrix, "gate_proj");
    for (size_t i = 0; i < count; i++)
        blocks += (float)errors[i].requantized_blocks;
    cr_assert_gt(errors[0].requantized_blocks, 0, "of the gate, whose second scale changed");
    cr_assert_eq(errors[1].requantized_blocks, 0);
    cr_assert_eq(errors[2].requantized_blocks, 0);
    cr_assert_eq(errors[1].relative_rms, 0);
    cr_assert_leq(blocks, 64 * 96 / 16, "one expert of three has the change");
    mp_quantize_errors_free(errors, count);
    change_float(path, gate, old * 1.5f); /* now the gate has the larger one */
    quantize(&o, "again");
    cr_assert_eq(float_of(&made, up), old * 1.5f);
}

Test(quantize, turns_scales_of_activations_around)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_NVFP4, .style = "modelopt"};

    open_source(fixture_path("ct-nvfp4"));
    quantize(&o, "out");
    cr_assert_eq(float_of(&made, "model.layers.0.mlp.experts.2.down_proj.input_scale"), 1 / 7.f);
    cr_assert_eq(find_made("model.layers.0.mlp.experts.2.down_proj.input_scale")->rank, 0);
    cr_assert_eq(float_of(&made, "model.layers.0.mlp.experts.0.down_proj.weight_scale_2"),
                 1 / 702.17138671875f);
}

Test(quantize, only_some_layers)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_BF16, .layers = "mtp.0"};

    open_source(fixture_path("v4-fp4"));
    quantize(&o, "out");
    cr_assert_eq(made.layers[0].storage.scheme, MP_SCHEME_MXFP4);
    cr_assert_eq(made.layers[1].storage.scheme, MP_SCHEME_BF16);
    cr_assert_gt(count_unchanged("mtp.0.ffn.experts."), 30);
}

Test(quantize, shared_experts_too)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_INT8_CHANNEL, .requantize_shared = true};

    open_source(fixture_path("v3-fp8"));
    quantize(&o, "out");
    check_experts(&o);
    cr_assert_eq(made.layers[0].shared_storage.scheme, MP_SCHEME_INT8_CHANNEL);
    for (int p = 0; p < MP_PROJECTIONS; p++)
        check_matrix(&o, &catalog.layers[0].shared_storage, &catalog.layers[0].shared,
                     &made.layers[0].shared_storage, &made.layers[0].shared, (mp_projection)p);
    cr_assert_eq(count_unchanged("experts."), 3);
}

Test(quantize, shards_of_a_size)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_FP8_BLOCK, .max_shard_size = 300000};

    open_source(fixture_path("v3-fp8"));
    quantize(&o, "out");
    cr_assert_gt(made.checkpoint.num_shards, 2);
    check_experts(&o);
    count_unchanged(".mlp.experts.");
}

/* ------------------------------------------------------------------------
 * What is refused
 */

Test(quantize, refuses_what_the_form_has_no_place_for)
{
    mp_quantize_options o = {.scheme = MP_SCHEME_MXFP4};

    open_source(fixture_path("modelopt-nvfp4"));
    expect_refused_plan(&o, MP_ERR_UNSUPPORTED,
                        "model.layers.0.mlp.experts.0.gate_proj.input_scale: experts in mxfp4 "
                        "cannot hold it: drop it with --drop input_scale");
    o.drop = "offset";
    expect_refused_plan(&o, MP_ERR_USAGE, "drop: \"offset\" is not one of bias,input_scale");
    o = (mp_quantize_options){.scheme = MP_SCHEME_MXFP4, .style = "modelopt"};
    open_source(fixture_path("qwen3-bf16"));
    expect_refused_plan(&o, MP_ERR_UNSUPPORTED,
                        "style \"modelopt\" has no mxfp4; deepseek-v4 and compressed-tensors have "
                        "it");
    o.scheme = MP_SCHEME_INT4_GROUP;
    expect_refused_plan(&o, MP_ERR_UNSUPPORTED, "experts cannot be written in int4_group");
}

Test(quantize, refuses_zero_points)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_BF16};
    const char *path = copy_fixture("modelslim-w8a8");

    change_float(path, "model.layers.0.mlp.experts.1.up_proj.weight_offset", 3);
    cr_assert_eq(try_plan(&o), 0, "%s", err.message);
    cr_assert_eq(mp_quantize_plan_run(&plan, in_dir("out"), MP_RUN_FRESH, NULL, &err),
                 MP_ERR_UNSUPPORTED);
    cr_assert(strstr(err.message, "model.layers.0.mlp.experts.1.up_proj.weight_offset"), "%s",
              err.message);
    cr_assert_not(mp_path_exists(in_dir("out")));
}

Test(quantize, refuses_nan_and_leaves_nothing)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_MXFP4};
    const char *path = copy_fixture("qwen3-bf16");

    /* Two elements of BF16, at columns 0 and 1 of row 0. */
    change_float(path, "model.layers.0.mlp.experts.2.down_proj.weight", NAN);
    cr_assert_eq(try_plan(&o), 0, "%s", err.message);
    cr_assert_eq(mp_quantize_plan_run(&plan, in_dir("out"), MP_RUN_FRESH, NULL, &err),
                 MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "model.layers.0.mlp.experts.2.down_proj.weight: weight [0, 1] is "
                                  "NaN");
    cr_assert_not(mp_path_exists(in_dir("out")));
    cr_assert_not(mp_path_exists(in_dir("out.partial")));
}

/* ------------------------------------------------------------------------
 * Interrupted, in parallel, again
 */

typedef struct stop {
    int flag;
    uint64_t at;
} stop;

static void stop_at(void *user, uint64_t done, uint64_t total)
{
    stop *s = user;

    (void)total;
    if (done >= s->at)
        __atomic_store_n(&s->flag, 1, __ATOMIC_RELEASE);
}

static bool same_files(const char *a, const char *b)
{
    char command[700];

    snprintf(command, sizeof command, "diff -r %s/%s %s/%s >&2", dir, a, dir, b);
    return system(command) == 0;
}

Test(quantize, a_resumed_run_ends_as_others_do)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_FP8_BLOCK, .max_shard_size = 1000000};
    char out[300];

    open_source(fixture_path("v4-fp4"));
    quantize(&o, "whole");
    snprintf(out, sizeof out, "%s/out", dir);
    for (uint64_t third = 0; third < 3; third++) {
        stop s = {.at = third * plan.work.bytes_written / 3};
        mp_context context = {
            .threads = 2, .cancel = &s.flag, .progress = stop_at, .progress_user = &s};

        cr_assert_eq(mp_quantize_plan_run(&plan, out, MP_RUN_RESUME, &context, &err),
                     MP_ERR_CANCELLED);
        cr_assert_not(mp_path_exists(out));
    }
    cr_assert_eq(mp_quantize_plan_run(&plan, out, MP_RUN_RESUME, NULL, &err), 0, "%s", err.message);
    cr_assert(same_files("whole", "out"));
    cr_assert_eq(mp_quantize_plan_run(&plan, out, MP_RUN_RESUME, NULL, &err), 0, "nothing to do");
    cr_assert_eq(mp_quantize_plan_run(&plan, out, MP_RUN_FRESH, NULL, &err), MP_ERR_USAGE);
}

Test(quantize, threads_change_nothing)
{
    const mp_quantize_options o = {.scheme = MP_SCHEME_NVFP4, .requantize_shared = true};
    const mp_context one = {.threads = 1}, five = {.threads = 5};
    char a[300], b[300];

    open_source(fixture_path("v3-fp8"));
    cr_assert_eq(try_plan(&o), 0, "%s", err.message);
    snprintf(a, sizeof a, "%s/one", dir);
    snprintf(b, sizeof b, "%s/five", dir);
    cr_assert_eq(mp_quantize_plan_run(&plan, a, MP_RUN_FRESH, &one, &err), 0, "%s", err.message);
    cr_assert_eq(mp_quantize_plan_run(&plan, b, MP_RUN_FRESH, &five, &err), 0, "%s", err.message);
    cr_assert(same_files("one", "five"));
}
