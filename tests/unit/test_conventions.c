/* SPDX-License-Identifier: Apache-2.0 */
/* Every row of the table of conventions: a checkpoint of it is found by its names, is read as that
 * row, config.json of it is understood, and comes back from another row as it was. */
#include <fcntl.h>

#include <moepack/numeric.h>

#include "base/error.h"
#include "base/json.h"
#include "base/words.h"
#include "checkpoint/complete.h"
#include "checkpoint/config_rewrite.h"
#include "checkpoint/config_said.h"
#include "checkpoint/form.h"
#include "checkpoint/names.h"
#include "engine/backend.h"
#include "numeric/forms.h"

#include "model_files.h"

/* I and H: other multiples of every group of columns. */
#define WIDTH   1280
#define HIDDEN  768
#define EXPERTS 2

#define PREFIX "model.layers.0"

static const mp_convention *row;
static char label[96]; /* of the row, for messages */

static void begin_row(const mp_convention *convention)
{
    row = convention;
    snprintf(label, sizeof label, "%s %s", mp_style_name(row->style), mp_scheme_name(row->scheme));
}

/* Calls a function for each row. */
static void for_each(void (*check)(void))
{
    size_t count;
    const mp_convention *rows = mp_conventions(&count);

    for (size_t i = 0; i < count; i++) {
        begin_row(&rows[i]);
        check();
    }
}

TestSuite(conventions, .init = make_model_scratch, .fini = remove_model_scratch);

/* ------------------------------------------------------------------------
 * The table itself
 */

static bool has_tensors(void)
{
    return row->parts[0].covers != MP_EXTENT_NONE;
}

static void check_blocks(void)
{
    const mp_scheme_form *form = mp_scheme_form_of(row->scheme);

    if (form->canonical) {
        cr_assert_eq(row->block_rows, form->block_rows, "%s", label);
        cr_assert_eq(row->block_cols, form->block_cols, "%s", label);
    }
    cr_assert(!row->written || has_tensors(), "%s", label);
    if (!has_tensors())
        return;
    cr_assert_eq(mp_suffixes[row->parts[0].suffix].role, MP_ROLE_WEIGHT, "%s", label);
    if (form->canonical) {
        cr_assert_eq(mp_convention_part_of(row, MP_ROLE_SCALE) != NULL, form->has_scale, "%s",
                     label);
        cr_assert_eq(mp_convention_part_of(row, MP_ROLE_GLOBAL_SCALE) != NULL, form->has_global,
                     "%s", label);
    }
}

Test(conventions, blocks_are_those_of_the_scheme)
{
    for_each(check_blocks);
}

Test(conventions, every_scheme_has_one)
{
    size_t count;
    const mp_convention *rows = mp_conventions(&count);
    bool has[MP_SCHEME_COUNT] = {false};

    for (size_t i = 0; i < count; i++)
        has[rows[i].scheme] = true;
    for (int scheme = 0; scheme < MP_SCHEME_COUNT; scheme++)
        cr_assert(has[scheme], "%s", mp_scheme_name((mp_scheme)scheme));
}

Test(conventions, no_two_rows_are_written_alike)
{
    size_t count;
    const mp_convention *rows = mp_conventions(&count);

    for (size_t i = 0; i < count; i++)
        if (rows[i].written)
            cr_assert_eq(mp_convention_find(rows[i].style, rows[i].scheme), &rows[i]);
}

Test(conventions, suffixes_are_distinct)
{
    for (unsigned i = 0; i < MP_SUFFIXES; i++) {
        cr_assert_not_null(mp_suffixes[i].text, "%u", i);
        for (unsigned j = 0; j < i; j++)
            cr_assert_str_neq(mp_suffixes[i].text, mp_suffixes[j].text);
    }
    cr_assert(mp_suffix_ends("w1.weight_scale", MP_SUFFIX_WEIGHT_SCALE));
    cr_assert(mp_suffix_ends("w13_weight_scale", MP_SUFFIX_WEIGHT_SCALE));
    cr_assert_not(mp_suffix_ends("w1.weight_scale_inv", MP_SUFFIX_WEIGHT_SCALE));
    cr_assert_not(mp_suffix_ends("w1.qscale", MP_SUFFIX_SCALE));
    cr_assert_not(mp_suffix_ends("scale", MP_SUFFIX_SCALE));
    cr_assert_eq(mp_weight_module("a.b.weight_packed"), 3);
    cr_assert_eq(mp_weight_module("a.b.weight_scale"), 0);
}

/* ------------------------------------------------------------------------
 * Tensors
 */

/* model_types whose experts are fused in each way. */
static const char *model_type(void)
{
    switch (row->fusion) {
    case MP_FUSION_COLS:
        return "qwen3_vl_moe";
    case MP_FUSION_ROWS_PAIRED:
    case MP_FUSION_COLS_PAIRED:
        return "gpt_oss";
    case MP_FUSION_ROWS:
        return "qwen3_5_moe";
    default:
        return row->style == MP_AS_DEEPSEEK_V4 ? "deepseek_v4" : "qwen3_moe";
    }
}

/* quantization_config of the row, with what the tests say beside it. */
static json_t *said(void)
{
    const mp_said facts = {0};

    return mp_said_config(row, &facts, json_pack("[s]", "lm_head"));
}

static void put_config(void)
{
    json_t *config =
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:i}", "model_type", model_type(), "hidden_size",
                  HIDDEN, "moe_intermediate_size", WIDTH, "num_local_experts", EXPERTS,
                  "num_experts_per_tok", 1, "num_hidden_layers", 1);
    char *text;

    if (row->method != MP_METHOD_NONE)
        json_object_set_new(config, "quantization_config", said());
    if (row->style == MP_AS_DEEPSEEK_V4)
        json_object_set_new(config, "expert_dtype", json_string(mp_said_dtype(row->scheme)));
    text = mp_json_text(config);
    put_text("config.json", text);
    free(text);
    json_decref(config);
}

/* Adds a tensor, and checks what its name says. */
static void add_part(const mp_convention_part *part, uint32_t rank, const uint64_t *shape,
                     const char *matrix, mp_name_kind kind)
{
    mp_expert_name parts;
    mp_tensor_spec *spec;

    add_tensor(part->dtype, 1, 1, PREFIX ".mlp.experts.%s%s", matrix,
               mp_suffixes[part->suffix].text);
    spec = &model.specs[model.count - 1];
    free((uint64_t *)(uintptr_t)spec->shape);
    spec->shape = memcpy(malloc((rank + 1) * sizeof *shape), shape, rank * sizeof *shape);
    spec->rank = rank;
    mp_expert_name_parse(spec->name, &parts);
    cr_assert_eq(parts.kind, kind, "%s: %s", label, spec->name);
    cr_assert_eq(parts.role, mp_suffixes[part->suffix].role, "%s: %s", label, spec->name);
}

/* Adds the tensors of a matrix [rows, cols], or of those of all experts. */
static void add_row_matrix(const char *matrix, uint64_t rows, uint64_t cols)
{
    bool fused = row->fusion != MP_FUSION_NONE, turned = mp_fusion_is_transposed(row->fusion);

    for (size_t i = 0; i < MP_CONVENTION_PARTS && row->parts[i].covers; i++) {
        const mp_convention_part *part = &row->parts[i];
        const mp_element element = mp_convention_element(row, part);
        uint64_t n = mp_ceil_div(rows, element.rows), k = mp_ceil_div(cols, element.cols);
        const uint64_t shape[] = {EXPERTS, turned ? k : n, turned ? n : k};
        const uint64_t runs[] = {EXPERTS, n, k / 16, 16}, two[] = {2}, one[] = {1};
        mp_name_kind kind = fused ? MP_NAME_FUSED : MP_NAME_ROUTED;

        if (part->covers == MP_EXTENT_SHAPE)
            add_part(part, 1, two, matrix, kind);
        else if (part->covers == MP_EXTENT_SCALAR || part->covers == MP_EXTENT_SINGLE)
            add_part(part, part->covers == MP_EXTENT_SINGLE, one, matrix, kind);
        else if (part->covers == MP_EXTENT_CODES_16)
            add_part(part, 4, runs, matrix, kind);
        else
            add_part(part, fused ? 3 : 2, fused ? shape : shape + 1, matrix, kind);
    }
}

static void make_checkpoint(void)
{
    char matrix[32];

    if (row->fusion != MP_FUSION_NONE) {
        add_row_matrix("gate_up_proj", 2 * WIDTH, HIDDEN);
        add_row_matrix("down_proj", HIDDEN, WIDTH);
        return;
    }
    for (unsigned e = 0; e < EXPERTS; e++) {
        snprintf(matrix, sizeof matrix, "%u.gate_proj", e);
        add_row_matrix(matrix, WIDTH, HIDDEN);
        snprintf(matrix, sizeof matrix, "%u.up_proj", e);
        add_row_matrix(matrix, WIDTH, HIDDEN);
        snprintf(matrix, sizeof matrix, "%u.down_proj", e);
        add_row_matrix(matrix, HIDDEN, WIDTH);
    }
}

/* Writes what shapes of packed weights say, where the row has any, and opens it all again. */
static void put_shapes(void)
{
    int fd = open(in_dir("model.safetensors"), O_RDWR);

    cr_assert_geq(fd, 0);
    for (size_t i = 0; i < catalog.checkpoint.num_tensors; i++) {
        const mp_tensor *t = &catalog.checkpoint.tensors[i];
        bool down = strstr(t->name, "down_proj") != NULL;
        const int32_t shape[] = {down ? HIDDEN : WIDTH, down ? WIDTH : HIDDEN};

        if (mp_suffix_ends(t->name, MP_SUFFIX_WEIGHT_SHAPE))
            cr_assert_eq(pwrite(fd, shape, sizeof shape, (off_t)t->offset), sizeof shape);
    }
    close(fd);
    mp_catalog_release(&catalog);
    cr_assert_eq(mp_catalog_open(&catalog, dir, NULL, &err), 0, "%s: %s", label, err.message);
}

/* Experts that are written by the row have the form that is read back, but for scales of
 * activations. */
static void check_written_form(const mp_form *form)
{
    mp_form want;
    bool inputs = mp_convention_part_of(row, MP_ROLE_INPUT_SCALE) != NULL;

    cr_assert_eq(
        mp_form_of_convention(row, catalog.layers[0].naming, false, HIDDEN, WIDTH, &want, &err), 0,
        "%s: %s", label, err.message);
    cr_assert_eq(want.num_tensors, form->num_tensors - (inputs ? 3 : 0), "%s", label);
    cr_assert_eq(want.block_rows, form->block_rows, "%s", label);
    cr_assert_eq(want.block_cols, form->block_cols, "%s", label);
    cr_assert_eq(want.global_divides, form->global_divides, "%s", label);
    for (size_t i = 0; i < want.num_tensors; i++) {
        const mp_form_tensor *w = &want.tensors[i];
        const mp_form_tensor *t = mp_form_find(form, w->matrix, w->role);

        cr_assert_not_null(t, "%s: %s", label, w->name);
        cr_assert_str_eq(t->name, w->name, "%s", label);
        cr_assert(t->dtype == w->dtype && t->rank == w->rank, "%s: %s", label, w->name);
        cr_assert_eq(memcmp(t->shape, w->shape, w->rank * sizeof *w->shape), 0, "%s: %s", label,
                     w->name);
    }
    mp_form_release(&want);
}

/* Every tensor of the row stands in the form that is read back, with its role, type and name. */
static void check_form(void)
{
    mp_form form;
    size_t count = 0;

    cr_assert_eq(mp_form_of_layer(&catalog, catalog.layers, false, &form, &err), 0, "%s: %s", label,
                 err.message);
    while (count < MP_CONVENTION_PARTS && row->parts[count].covers)
        count++;
    cr_assert_eq(form.num_tensors, count * (row->fusion ? 2 : 3), "%s", label);
    for (size_t i = 0; i < count; i++) {
        const mp_convention_part *part = &row->parts[i];
        const mp_form_tensor *t = mp_form_find(&form, MP_DOWN, mp_suffixes[part->suffix].role);
        char name[64];

        snprintf(name, sizeof name, "mlp.experts.%sdown_proj%s", row->fusion ? "" : "{}.",
                 mp_suffixes[part->suffix].text);
        cr_assert_not_null(t, "%s: %s", label, name);
        cr_assert_str_eq(t->name, name, "%s", label);
        cr_assert_eq(t->dtype, part->dtype, "%s: %s", label, name);
    }
    if (row->fusion == MP_FUSION_NONE)
        check_written_form(&form);
    mp_form_release(&form);
}

static void check_checkpoint(void)
{
    const mp_convention_part *scale = mp_convention_part_of(row, MP_ROLE_SCALE);
    const mp_convention_part *global = mp_convention_part_of(row, MP_ROLE_GLOBAL_SCALE);
    bool groups = mp_convention_part_of(row, MP_ROLE_GROUP_SCALE) != NULL;
    const mp_storage *s;

    if (!has_tensors())
        return;
    make_checkpoint();
    put_config();
    expect_model();
    if (mp_convention_part_of(row, MP_ROLE_SHAPE))
        put_shapes();
    cr_assert_eq(mp_catalog_check(&catalog, &err), 0, "%s: %s", label, err.message);
    s = &catalog.layers[0].storage;
    cr_assert_eq(s->scheme, row->scheme, "%s: %s", label, mp_scheme_name(s->scheme));
    cr_assert_eq(s->fusion, row->fusion, "%s", label);
    cr_assert_eq(s->int4, row->int4, "%s", label);
    cr_assert_eq(s->weight_dtype, row->parts[0].dtype, "%s", label);
    cr_assert_eq(s->two_scales, groups, "%s", label);
    cr_assert_eq(s->has_scale, scale != NULL, "%s", label);
    if (scale && !groups)
        cr_assert_eq(s->scale_dtype, scale->dtype, "%s", label);
    cr_assert_eq(s->has_global, global != NULL, "%s", label);
    cr_assert_eq(s->global_divides, global && mp_suffixes[global->suffix].divides, "%s", label);
    cr_assert_eq(s->block_rows, row->block_rows, "%s: %u", label, s->block_rows);
    cr_assert_eq(s->block_cols, row->block_cols, "%s: %u", label, s->block_cols);
    cr_assert_eq(catalog.hidden_size, HIDDEN, "%s", label);
    cr_assert_eq(catalog.moe_intermediate_size, WIDTH, "%s", label);
    check_form();
    clear_model();
}

Test(conventions, a_checkpoint_of_each_is_read_as_it)
{
    for_each(check_checkpoint);
}

/* ------------------------------------------------------------------------
 * config.json
 */

static void check_plan(void)
{
    mp_backend_model model_of;

    if (row->method == MP_METHOD_NONE)
        return;
    put_config();
    cr_assert_eq(mp_backend_model_open(&model_of, in_dir("config.json"), NULL, &err), 0, "%s: %s",
                 label, err.message);
    cr_assert(model_of.has_scheme, "%s: %s", label, model_of.unrecognized);
    cr_assert_eq(model_of.scheme, row->scheme, "%s: %s", label, mp_scheme_name(model_of.scheme));
}

Test(conventions, plan_reads_what_is_said_of_each)
{
    for_each(check_plan);
}

/* quantization_config of a text; null where it has none. The caller drops it. */
static json_t *config_in(const char *text)
{
    json_t *root = json_loads(text, 0, NULL);
    json_t *config = json_incref(json_object_get(root, "quantization_config"));

    json_decref(root);
    return config;
}

/* Brings a text to a row, and takes it over. */
static char *brought(char *text, const mp_convention *to)
{
    static const char *const plain[] = {"lm_head"};
    const mp_config_change change = {.to = to, .plain = plain, .num_plain = 1};
    char *after;

    cr_assert_eq(mp_config_requantized(text, &change, &after, NULL, &err), 0, "%s: %s", label,
                 err.message);
    free(text);
    return after;
}

static void check_rewriting(void)
{
    const mp_convention *plain = mp_convention_find(MP_AS_DEEPSEEK_V3, MP_SCHEME_BF16);
    const mp_convention *other =
        mp_convention_find(MP_AS_COMPRESSED_TENSORS, MP_SCHEME_INT8_CHANNEL);
    json_t *want, *have;
    char *text, *first;

    if (row->method == MP_METHOD_NONE)
        return;
    want = said();
    text = brought(strdup("{\n  \"a\": 1e-06\n}\n"), row);
    have = config_in(text);
    cr_assert(json_equal(have, want), "%s: %s", label, text);
    json_decref(have);

    first = strdup(text);
    text = brought(brought(text, other), row);
    cr_assert_str_eq(text, first, "%s", label);
    text = brought(text, plain);
    cr_assert_null(config_in(text), "%s: %s", label, text);
    text = brought(text, row);
    have = config_in(text);
    cr_assert(json_equal(have, want), "%s: %s", label, text);
    json_decref(have);
    json_decref(want);
    free(first);
    free(text);
}

Test(conventions, rewriting_config_gives_what_is_said)
{
    for_each(check_rewriting);
}

static void check_beside(void)
{
    const mp_config_change change = {.to = row};
    char *text;

    cr_assert_eq(mp_hf_quant_config(&change, &text, &err), 0, "%s: %s", label, err.message);
    cr_assert_eq(text != NULL, row->method == MP_METHOD_MODELOPT, "%s", label);
    if (text) {
        json_t *root = json_loads(text, 0, NULL), *q = json_object_get(root, "quantization");
        uint32_t group = mp_said_numbers(row).group_size;

        cr_assert_str_eq(json_string_value(json_object_get(q, "quant_algo")), row->algorithms[0]);
        cr_assert_eq(json_integer_value(json_object_get(q, "group_size")), group, "%s", label);
        json_decref(root);
    }
    free(text);
}

Test(conventions, modelopt_says_it_beside)
{
    for_each(check_beside);
}

/* What the tools write, to the byte and in their order; "ignore" and the like apart. */
Test(conventions, words_of_what_is_written)
{
#define CT(format, weights, activations)                                                    \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"" format                         \
    "\",\"quantization_status\":\"compressed\",\"config_groups\":{\"group_0\":{\"format\":" \
    "\"" format "\",\"targets\":[\"Linear\"],\"weights\":{" weights                         \
    "},\"output_activations\":null,"                                                        \
    "\"input_activations\":" activations                                                    \
    "}},\"ignore\":[],\"kv_cache_scheme\":null,\"global_compression_ratio\":null}"
#define NVFP4(dynamic)                                                                   \
    "\"num_bits\":4,\"type\":\"float\",\"strategy\":\"tensor_group\",\"group_size\":16," \
    "\"symmetric\":true,\"dynamic\":" dynamic ",\"scale_dtype\":\"torch.float8_e4m3fn\""
#define FP8(scale_fmt)                                                                           \
    "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\"," scale_fmt "\"activation_scheme\":\"dynamic\"," \
    "\"weight_block_size\":[128,128],\"modules_to_not_convert\":[]}"
#define MO(activations)                                                                        \
    "{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\",\"config_groups\":{\"group_0\":{" \
    "\"input_activations\":" activations ",\"weights\":{\"dynamic\":false,\"num_bits\":4,"     \
    "\"type\":\"float\",\"group_size\":16},\"targets\":[\"Linear\"]}},\"ignore\":[]}"
    static const struct {
        mp_style style;
        mp_scheme scheme;
        mp_said said;
        const char *text;
    } cases[] = {
        {MP_AS_DEEPSEEK_V4, MP_SCHEME_MXFP4, {0}, FP8("\"scale_fmt\":\"ue8m0\",")},
        {MP_AS_DEEPSEEK_V4, MP_SCHEME_FP8_BLOCK, {0}, FP8("")},
        {MP_AS_DEEPSEEK_V3, MP_SCHEME_FP8_BLOCK, {.ue8m0 = true}, FP8("\"scale_fmt\":\"ue8m0\",")},
        {MP_AS_MODELOPT, MP_SCHEME_NVFP4, {0}, MO("null")},
        {MP_AS_MODELOPT,
         MP_SCHEME_NVFP4,
         {.input_scales = true},
         MO("{\"dynamic\":false,\"num_bits\":4,\"type\":\"float\",\"group_size\":16}")},
        {MP_AS_COMPRESSED_TENSORS,
         MP_SCHEME_MXFP4,
         {.input_scales = true},
         CT("mxfp4-pack-quantized",
            "\"num_bits\":4,\"type\":\"float\",\"strategy\":\"group\",\"group_size\":32,"
            "\"symmetric\":true,\"dynamic\":false,\"scale_dtype\":\"torch.uint8\"",
            "null")},
        {MP_AS_COMPRESSED_TENSORS,
         MP_SCHEME_NVFP4,
         {0},
         CT("nvfp4-pack-quantized", NVFP4("false"), "null")},
        {MP_AS_COMPRESSED_TENSORS,
         MP_SCHEME_NVFP4,
         {.input_scales = true},
         CT("nvfp4-pack-quantized", NVFP4("false"), "{" NVFP4("\"local\"") "}")},
        {MP_AS_COMPRESSED_TENSORS,
         MP_SCHEME_INT8_CHANNEL,
         {0},
         CT("int-quantized",
            "\"num_bits\":8,\"type\":\"int\",\"strategy\":\"channel\",\"symmetric\":true,"
            "\"dynamic\":false",
            "{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"token\",\"symmetric\":true,"
            "\"dynamic\":true}")},
        {MP_AS_COMPRESSED_TENSORS,
         MP_SCHEME_FP8_BLOCK,
         {0},
         CT("float-quantized",
            "\"num_bits\":8,\"type\":\"float\",\"strategy\":\"block\","
            "\"block_structure\":[128,128],\"symmetric\":true,\"dynamic\":false",
            "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"group\",\"group_size\":128,"
            "\"symmetric\":true,\"dynamic\":true}")},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *json;
        char *text;

        begin_row(mp_convention_find(cases[i].style, cases[i].scheme));
        json = mp_said_config(row, &cases[i].said, json_array());
        text = json_dumps(json, JSON_COMPACT);
        cr_assert_str_eq(text, cases[i].text, "%s", label);
        free(text);
        json_decref(json);
    }
}
