/* SPDX-License-Identifier: Apache-2.0 */
/* moepack.json: a value to text and back, and texts that are none. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moepack/artifact.h>

#include "base/digest.h"
#include "base/file.h"
#include "pack/manifest.h"

static mp_error err;
static mp_manifest manifest, again;
static char *text;

static void finish(void)
{
    mp_manifest_release(&manifest);
    mp_manifest_release(&again);
    free(text);
}

TestSuite(manifest, .fini = finish);

/* ------------------------------------------------------------------------
 * A value
 */

static void set_digest(mp_hex_digest hex, const char *of)
{
    mp_digest digest;

    mp_digest_of(of, strlen(of), &digest);
    mp_digest_text(&digest, hex);
}

static void fill_file(mp_packed_file *file, const char *name, uint64_t size, size_t tensors)
{
    *file = (mp_packed_file){
        .name = strdup(name),
        .size = size,
        .num_tensors = tensors,
        .tensors = calloc(tensors, sizeof *file->tensors),
    };
    for (size_t t = 0; t < tensors; t++) {
        char tensor[64];

        snprintf(tensor, sizeof tensor, "layers.%zu.experts.l1_weight", t);
        file->tensors[t].name = strdup(tensor);
        set_digest(file->tensors[t].xxh3, tensor);
    }
}

static void fill_ranks(mp_manifest *m)
{
    m->num_ranks = 2;
    m->ranks = calloc(2, sizeof *m->ranks);
    for (uint32_t r = 0; r < 2; r++) {
        mp_packed_rank *rank = &m->ranks[r];

        rank->rank = 1 + 2 * r; /* of ranks 0 .. 3, numbers 1 and 3 */
        set_digest(rank->index_xxh3, r ? "index 3" : "index 1");
        rank->num_files = 2 - r;
        rank->files = calloc(2 - r, sizeof *rank->files);
        fill_file(&rank->files[0], "model-00001-of-00002.safetensors", 4096 + r, 3);
        if (r == 0)
            fill_file(&rank->files[1], "model-00002-of-00002.safetensors", 5000000000, 1);
    }
}

static void fill_errors(mp_manifest *m)
{
    m->num_errors = 4;
    m->errors = calloc(4, sizeof *m->errors);
    m->errors[0] = (mp_layer_error){strdup("layers.3"), "w13", 0.0625, 18.25, 1, 2, 3, 4};
    m->errors[1] =
        (mp_layer_error){strdup("layers.3"), "w2", 0.1234567890123, INFINITY, 0, 0, 1ull << 40, 0};
    m->errors[2] = (mp_layer_error){strdup("mtp.0"), "shared w13", 0.5, 6.5, 0, 0, 7, 1ull << 33};
    m->errors[3] = (mp_layer_error){strdup("mtp.0"), "shared w2", 0.25, 12, 9, 8, 7, 6};
}

static void fill_form(mp_form *form, mp_scheme scheme, mp_fusion fusion, size_t tensors)
{
    *form = (mp_form){
        .scheme = scheme,
        .fusion = fusion,
        .block_rows = 1,
        .block_cols = 32,
        .num_tensors = tensors,
        .tensors = calloc(tensors, sizeof *form->tensors),
    };
}

/* Experts with a tensor a matrix, and stacked ones with a scale for all of them. */
static void fill_forms(mp_manifest *m)
{
    static const mp_role roles[] = {MP_ROLE_WEIGHT, MP_ROLE_SCALE, MP_ROLE_GLOBAL_SCALE};

    m->num_forms = 2;
    m->forms = calloc(2, sizeof *m->forms);
    fill_form(&m->forms[0], MP_SCHEME_NVFP4, MP_FUSION_NONE, 3);
    m->forms[0].global_divides = true;
    for (uint32_t t = 0; t < 3; t++) {
        mp_form_tensor *tensor = &m->forms[0].tensors[t];

        *tensor = (mp_form_tensor){
            .name = strdup("ffn.experts.{}.w1.weight"),
            .matrix = MP_GATE,
            .role = roles[t],
            .dtype = MP_U8,
            .rank = 2 - t, /* a global scale has no dimensions */
            .shape = {2048, 3584},
        };
        tensor->name[15 + t] = 'a';
    }
    fill_form(&m->forms[1], MP_SCHEME_FP8_TENSOR, MP_FUSION_ROWS_PAIRED, 1);
    m->forms[1].block_rows = m->forms[1].block_cols = UINT32_MAX;
    m->forms[1].tensors[0] = (mp_form_tensor){
        .name = strdup("mlp.experts.gate_up_proj"),
        .matrix = MP_GATE_UP,
        .role = MP_ROLE_WEIGHT,
        .dtype = MP_F8_E4M3,
        .rank = 4,
        .shape = {254, 4096, 1ull << 40, 16},
    };
    m->layer_form = calloc(2, sizeof *m->layer_form);
    m->shared_form = calloc(2, sizeof *m->shared_form);
    m->layer_form[1] = m->shared_form[0] = 1;
}

/* A manifest with every member. */
static void fill(mp_manifest *m)
{
    *m = (mp_manifest){
        .tool_version = strdup("0.1.0"),
        .target = strdup("megamoe-w4a8"),
        .target_version = 1,
        .nz = true,
        .source_scheme = MP_SCHEME_BF16,
        .target_scheme = MP_SCHEME_MXFP4,
        .scale_rule = MP_SCALE_MSE,
        .rounding = MP_ROUND_OCP,
        .amax_floor = 1e-4,
        .family = strdup("deepseek_v3"),
        .hidden_size = 7168,
        .moe_intermediate_size = 2048,
        .num_experts = 254,
        .num_shared_experts = 1,
        .model_layers = 58,
        .ep_size = 4,
        .num_physical = 256,
        .shared = MP_SHARED_SEPARATE,
        .num_shards = 2,
        .shards = calloc(2, sizeof *m->shards),
        .num_layers = 2,
        .layers = calloc(2, sizeof *m->layers),
        .dropped = MP_ROLE_BIT(MP_ROLE_BIAS) | MP_ROLE_BIT(MP_ROLE_OFFSET),
        .command = strdup("moepack repack DeepSeek-\"V3\" --ep 4"),
    };
    set_digest(m->placement_xxh3, "placement");
    set_digest(m->config_xxh3, "config");
    m->shards[0] = (mp_source_shard){.name = strdup("model-1.safetensors"), .size = 1234567890123};
    m->shards[1] = (mp_source_shard){.name = strdup("model-2.safetensors"), .size = 8};
    set_digest(m->shards[0].header_xxh3, "1");
    set_digest(m->shards[1].header_xxh3, "2");
    m->layers[0] = strdup("layers.3");
    m->layers[1] = strdup("mtp.0");
    fill_ranks(m);
    fill_errors(m);
    fill_forms(m);
}

static void expect_string(const char *a, const char *b)
{
    cr_assert_eq(!a, !b, "\"%s\" and \"%s\"", a ? a : "null", b ? b : "null");
    if (a)
        cr_assert_str_eq(a, b);
}

static void expect_same_rank(const mp_packed_rank *a, const mp_packed_rank *b)
{
    cr_assert_eq(a->rank, b->rank);
    cr_assert_str_eq(a->index_xxh3, b->index_xxh3);
    cr_assert_eq(a->num_files, b->num_files);
    for (size_t f = 0; f < a->num_files; f++) {
        const mp_packed_file *x = &a->files[f], *y = &b->files[f];

        cr_assert_str_eq(x->name, y->name);
        cr_assert_eq(x->size, y->size);
        cr_assert_eq(x->num_tensors, y->num_tensors);
        for (size_t t = 0; t < x->num_tensors; t++) {
            cr_assert_str_eq(x->tensors[t].name, y->tensors[t].name);
            cr_assert_str_eq(x->tensors[t].xxh3, y->tensors[t].xxh3);
        }
    }
}

static void expect_same_error(const mp_layer_error *a, const mp_layer_error *b)
{
    cr_assert_str_eq(a->layer, b->layer);
    cr_assert_str_eq(a->matrix, b->matrix);
    cr_assert(a->relative_rms == b->relative_rms ||
              (isnan(a->relative_rms) && isnan(b->relative_rms)));
    cr_assert_eq(a->sqnr_db, b->sqnr_db);
    cr_assert_eq(a->saturated, b->saturated);
    cr_assert_eq(a->flushed, b->flushed);
    cr_assert_eq(a->elements, b->elements);
    cr_assert_eq(a->requantized_blocks, b->requantized_blocks);
}

static void expect_same_form(const mp_form *a, const mp_form *b)
{
    cr_assert_eq(a->scheme, b->scheme);
    cr_assert_eq(a->fusion, b->fusion);
    cr_assert_eq(a->global_divides, b->global_divides);
    cr_assert_eq(a->block_rows, b->block_rows);
    cr_assert_eq(a->block_cols, b->block_cols);
    cr_assert_eq(a->num_tensors, b->num_tensors);
    for (size_t t = 0; t < a->num_tensors; t++) {
        const mp_form_tensor *x = &a->tensors[t], *y = &b->tensors[t];

        cr_assert_str_eq(x->name, y->name);
        cr_assert_eq(x->matrix, y->matrix);
        cr_assert_eq(x->role, y->role);
        cr_assert_eq(x->dtype, y->dtype);
        cr_assert_eq(x->rank, y->rank);
        for (uint32_t d = 0; d < x->rank; d++)
            cr_assert_eq(x->shape[d], y->shape[d]);
    }
}

static void expect_same_forms(const mp_manifest *a, const mp_manifest *b)
{
    cr_assert_eq(a->num_forms, b->num_forms);
    for (size_t i = 0; i < a->num_forms; i++)
        expect_same_form(&a->forms[i], &b->forms[i]);
    cr_assert_eq(!a->shared_form, !b->shared_form);
    for (size_t i = 0; i < a->num_layers; i++) {
        cr_assert_eq(a->layer_form[i], b->layer_form[i]);
        cr_assert(!a->shared_form || a->shared_form[i] == b->shared_form[i]);
    }
}

static void expect_same(const mp_manifest *a, const mp_manifest *b)
{
    expect_string(a->tool_version, b->tool_version);
    expect_string(a->target, b->target);
    cr_assert_eq(a->target_version, b->target_version);
    cr_assert_eq(a->nz, b->nz);
    cr_assert_eq(a->source_scheme, b->source_scheme);
    cr_assert_eq(a->target_scheme, b->target_scheme);
    cr_assert_eq(a->lossless, b->lossless);
    cr_assert_eq(a->shared_lossless, b->shared_lossless);
    cr_assert_eq(a->scale_rule, b->scale_rule);
    cr_assert_eq(a->rounding, b->rounding);
    cr_assert_eq(a->amax_floor, b->amax_floor);
    expect_string(a->family, b->family);
    cr_assert_eq(a->hidden_size, b->hidden_size);
    cr_assert_eq(a->moe_intermediate_size, b->moe_intermediate_size);
    cr_assert_eq(a->num_experts, b->num_experts);
    cr_assert_eq(a->num_shared_experts, b->num_shared_experts);
    cr_assert_eq(a->model_layers, b->model_layers);
    cr_assert_eq(a->ep_size, b->ep_size);
    cr_assert_eq(a->num_physical, b->num_physical);
    cr_assert_eq(a->shared, b->shared);
    cr_assert_str_eq(a->placement_xxh3, b->placement_xxh3);
    cr_assert_str_eq(a->config_xxh3, b->config_xxh3);
    cr_assert_eq(a->dropped, b->dropped);
    expect_string(a->command, b->command);
    cr_assert_eq(a->num_shards, b->num_shards);
    for (size_t i = 0; i < a->num_shards; i++) {
        cr_assert_str_eq(a->shards[i].name, b->shards[i].name);
        cr_assert_eq(a->shards[i].size, b->shards[i].size);
        cr_assert_str_eq(a->shards[i].header_xxh3, b->shards[i].header_xxh3);
    }
    cr_assert_eq(a->num_layers, b->num_layers);
    for (size_t i = 0; i < a->num_layers; i++)
        cr_assert_str_eq(a->layers[i], b->layers[i]);
    cr_assert_eq(a->num_ranks, b->num_ranks);
    for (size_t i = 0; i < a->num_ranks; i++)
        expect_same_rank(&a->ranks[i], &b->ranks[i]);
    cr_assert_eq(a->num_errors, b->num_errors);
    for (size_t i = 0; i < a->num_errors; i++)
        expect_same_error(&a->errors[i], &b->errors[i]);
    expect_same_forms(a, b);
}

/* ------------------------------------------------------------------------
 * There and back
 */

static int parse(const char *t, size_t length)
{
    mp_manifest_release(&again);
    err = (mp_error){0};
    return mp_manifest_parse(&again, t, length, &err);
}

static void make_text(void)
{
    free(text);
    cr_assert_eq(mp_manifest_text(&manifest, &text, &err), 0, "%s", err.message);
}

static void expect_round_trip(void)
{
    char *second;

    make_text();
    cr_assert_eq(parse(text, strlen(text)), 0, "%s", err.message);
    expect_same(&manifest, &again);
    cr_assert_eq(mp_manifest_text(&again, &second, &err), 0);
    cr_assert_str_eq(second, text);
    free(second);
}

Test(manifest, a_full_value_comes_back)
{
    fill(&manifest);
    expect_round_trip();
}

Test(manifest, a_lossless_value_comes_back)
{
    fill(&manifest);
    manifest.lossless = manifest.shared_lossless = true;
    manifest.nz = false;
    free(manifest.shared_form);
    manifest.shared_form = NULL;
    free(manifest.command);
    manifest.command = NULL;
    /* Rules have no meaning where nothing was requantized. */
    manifest.scale_rule = MP_SCALE_CEIL;
    manifest.rounding = MP_ROUND_DEEPGEMM;
    manifest.amax_floor = 0;
    manifest.dropped = 0;
    for (size_t i = 0; i < manifest.num_errors; i++)
        free(manifest.errors[i].layer);
    manifest.num_errors = 0;
    manifest.config_xxh3[0] = '\0';
    expect_round_trip();
    cr_assert_null(strstr(text, "amax_floor"));
    cr_assert_null(strstr(text, "\"errors\""));
    cr_assert_null(strstr(text, "\"shared_forms\""));
    cr_assert_null(strstr(text, "\"dropped\""));
    cr_assert_null(strstr(text, "\"command\""));
    cr_assert_not_null(strstr(text, "\"config_xxh3\": null"));
}

/* Shared experts alone may have lost precision. */
Test(manifest, lossless_but_for_shared_experts)
{
    fill(&manifest);
    manifest.lossless = true;
    expect_round_trip();
    cr_assert_not_null(strstr(text, "\"lossless\": true"));
    cr_assert_not_null(strstr(text, "\"shared_lossless\": false"));
    cr_assert_not_null(strstr(text, "amax_floor"));
}

/* A layer of zeros has no relative error, one without error an infinite ratio. JSON has
 * neither; and the sign of a NaN is of no account. */
Test(manifest, errors_that_are_no_numbers)
{
    fill(&manifest);
    manifest.errors[0].relative_rms = -NAN;
    manifest.errors[0].sqnr_db = INFINITY;
    expect_round_trip();
    cr_assert(isnan(again.errors[0].relative_rms));
    cr_assert(isinf(again.errors[0].sqnr_db) && again.errors[0].sqnr_db > 0);
    cr_assert_null(strstr(text, "nan"));
    cr_assert_null(strstr(text, "inf"));
}

Test(manifest, a_command_that_is_not_utf8_is_left_out)
{
    fill(&manifest);
    strcpy(manifest.command, "moepack repack \xe9");
    make_text();
    cr_assert_eq(parse(text, strlen(text)), 0, "%s", err.message);
    cr_assert_null(again.command);
}

/* What JSON cannot hold is an error, never left out. */
Test(manifest, a_layer_that_is_not_utf8)
{
    char *none;

    fill(&manifest);
    strcpy(manifest.layers[1], "mtp.\xe9");
    cr_assert_eq(mp_manifest_text(&manifest, &none, &err), MP_ERR_IO);
    cr_assert_null(none);
}

/* Nothing in it tells one machine or one hour from another. */
Test(manifest, text)
{
    static const char head[] = "{\n  \"format_version\": \"1\",\n  \"tool_version\": \"0.1.0\",\n"
                               "  \"target\": \"megamoe-w4a8\",\n  \"target_version\": 1,\n"
                               "  \"nz\": true,\n  \"quantization\": {\n"
                               "    \"source\": \"bf16\",\n";

    fill(&manifest);
    make_text();
    cr_assert_eq(strncmp(text, head, strlen(head)), 0, "%.300s", text);
    cr_assert_str_eq(text + strlen(text) - 4, "\"\n}\n");
}

/* ------------------------------------------------------------------------
 * The seal
 */

Test(manifest, every_changed_character_is_found)
{
    size_t length;

    fill(&manifest);
    make_text();
    length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        const char was = text[i], other = "0 a\"\n"[i % 5];

        if (was != other) {
            text[i] = other;
            cr_assert_eq(parse(text, length), MP_ERR_INPUT, "byte %zu as '%c': %s", i, other,
                         err.message);
            text[i] = was;
        }
        text[i] ^= 1;
        cr_assert_eq(parse(text, length), MP_ERR_INPUT, "bit 0 of byte %zu", i);
        text[i] ^= 1 ^ 0x80;
        cr_assert_eq(parse(text, length), MP_ERR_INPUT, "bit 7 of byte %zu", i);
        text[i] ^= 0x80;
    }
    cr_assert_eq(parse(text, length), 0);
}

Test(manifest, every_lost_character_is_found)
{
    size_t length;
    char *shorter;

    fill(&manifest);
    make_text();
    length = strlen(text);
    shorter = malloc(length);
    for (size_t i = 0; i < length; i++) {
        memcpy(shorter, text, i);
        memcpy(shorter + i, text + i + 1, length - i - 1);
        cr_assert_eq(parse(shorter, length - 1), MP_ERR_INPUT, "without byte %zu", i);
        cr_assert_eq(parse(text, i), MP_ERR_INPUT, "the first %zu bytes", i);
    }
    free(shorter);
}

Test(manifest, says_which_digest)
{
    char message[256];

    fill(&manifest);
    make_text();
    *strstr(text, "7168") = '8';
    cr_assert_eq(parse(text, strlen(text)), MP_ERR_INPUT);
    snprintf(message, sizeof message, ", it says %.32s", text + strlen(text) - 36);
    cr_assert_eq(strncmp(err.message, "moepack.json: changed: its digest is ", 37), 0, "%s",
                 err.message);
    cr_assert_str_eq(err.message + 37 + 32, message);
    cr_assert_eq(parse("{}\n", 3), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "moepack.json: does not end in its digest");
}

/* ------------------------------------------------------------------------
 * Sealed texts that are no manifest
 */

/* Puts a seal below a text, which ends in "\n}\n". */
static char *seal(const char *body)
{
    size_t length = strlen(body), cut = strlen(MP_SEAL_CUT);
    char hex[MP_DIGEST_TEXT], *sealed;
    mp_digest digest;

    cr_assert_str_eq(body + length - cut, MP_SEAL_CUT);
    mp_digest_of(body, length, &digest);
    cr_assert_geq(asprintf(&sealed, "%.*s" MP_SEAL_BEFORE "%s" MP_SEAL_AFTER, (int)(length - cut),
                           body, mp_digest_text(&digest, hex)),
                  0);
    return sealed;
}

/* The text with the first `old` replaced, sealed again. */
static void expect_refused(const char *old, const char *new, mp_code code, const char *message)
{
    char *at = strstr(text, old), *body, *sealed;
    size_t without_seal = strlen(text) - strlen(MP_SEAL_BEFORE MP_SEAL_AFTER) - 32;

    cr_assert_not_null(at, "no %s in the text", old);
    cr_assert_geq(asprintf(&body, "%.*s%s%.*s" MP_SEAL_CUT, (int)(at - text), text, new,
                           (int)(without_seal - (size_t)(at - text) - strlen(old)),
                           at + strlen(old)),
                  0);
    sealed = seal(body);
    cr_assert_eq(parse(sealed, strlen(sealed)), code, "%s: %s", new, err.message);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(again.ranks);
    free(body);
    free(sealed);
}

static void expect_input_error(const char *old, const char *new, const char *message)
{
    expect_refused(old, new, MP_ERR_INPUT, message);
}

Test(manifest, of_another_version)
{
    fill(&manifest);
    make_text();
    expect_refused("\"format_version\": \"1\"", "\"format_version\": \"2\"", MP_ERR_UNSUPPORTED,
                   "moepack.json: format version \"2\", this tool reads \"1\"");
    expect_input_error("\"format_version\": \"1\"", "\"format_version\": 1",
                       "moepack.json: \"format_version\" is an integer, expected a string");
}

Test(manifest, members_that_are_missing)
{
    static const char *const keys[] = {
        "tool_version",
        "target",
        "target_version",
        "quantization",
        "nz",
        "lossless",
        "shared_lossless",
        "model",
        "family",
        "moe_intermediate_size",
        "num_experts",
        "ep_size",
        "num_physical",
        "shared",
        "placement_xxh3",
        "source",
        "layers",
        "ranks",
        "index_xxh3",
        "files",
        "tensors",
        "hidden_size",
        "config_xxh3",
        "header_xxh3",
        "num_shared_experts",
        "requantized_blocks",
        "forms",
        "layer_forms",
        "scheme",
        "fusion",
        "block_rows",
        "block_cols",
        "role",
        "dtype",
        "shape",
    };

    fill(&manifest);
    make_text();
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char old[64], message[128];

        snprintf(old, sizeof old, "\"%s\":", keys[i]);
        if (strstr(keys[i], "lossless") || strcmp(keys[i], "nz") == 0)
            snprintf(message, sizeof message, "moepack.json: \"%s\" is not true or false", keys[i]);
        else
            snprintf(message, sizeof message, "moepack.json: \"%s\" is missing", keys[i]);
        expect_input_error(old, "\"else\":", message);
    }
}

Test(manifest, members_of_another_type)
{
    fill(&manifest);
    make_text();
    expect_input_error("\"hidden_size\": 7168", "\"hidden_size\": -1",
                       "moepack.json: \"hidden_size\" is -1, expected 0 or more");
    expect_input_error("\"hidden_size\": 7168", "\"hidden_size\": 7168.0",
                       "moepack.json: \"hidden_size\" is a fraction, expected an integer");
    expect_input_error("\"lossless\": false", "\"lossless\": 0",
                       "moepack.json: \"lossless\" is not true or false");
    expect_input_error("\"scale_rule\": \"mse\"", "\"scale_rule\": 3",
                       "moepack.json: \"scale_rule\" is an integer, expected a string");
    expect_input_error("\"amax_floor\": 0.0001", "\"amax_floor\": \"0\"",
                       "moepack.json: \"amax_floor\" is not a number");
    expect_input_error("\"relative_rms\": 0.0625", "\"relative_rms\": true",
                       "moepack.json: \"relative_rms\" is not a number");
    expect_input_error("\"sqnr_db\": 18.25", "\"sqnr_db\": []",
                       "moepack.json: \"sqnr_db\" is not a number");
    expect_input_error("\"matrix\": \"w13\"", "\"matrix\": \"w1\"",
                       "moepack.json: matrix \"w1\" is neither \"w13\" nor \"w2\"");
    expect_input_error("\"matrix\": \"shared w2\"", "\"matrix\": \"shared\"",
                       "moepack.json: matrix \"shared\" is neither \"w13\" nor \"w2\"");
    expect_input_error("\"mtp.0\"", "7", "moepack.json: \"layers\": entry 1 is not a string");
    expect_input_error("\"source\": [", "\"source\": [7,", "moepack.json: expected an object");
    expect_input_error("\"command\": \"moepack", "\"command\": 7, \"x\": \"moepack",
                       "moepack.json: \"command\" is an integer, expected a string");
    expect_input_error("\"target\": \"megamoe-w4a8\",", "\"target\": \"a\", \"target\": \"b\",",
                       "moepack.json: line 4, column 25: duplicate object key near '\"target\"'");
}

/* A word of a later version, or of nobody: refused by name wherever a manifest is read. */
Test(manifest, words_that_are_unknown)
{
    static const struct {
        const char *key, *word;
    } words[] = {
        {"shared", "separate"},     {"rounding", "ocp"}, {"scale_rule", "mse"},
        {"dropped", "bias,offset"}, {"role", "weight"},  {"dtype", "U8"},
        {"fusion", "none"},         {"matrix", "gate"},  {"scheme", "nvfp4"},
    };

    fill(&manifest);
    make_text();
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        char old[64], new[64], message[128];

        snprintf(old, sizeof old, "\"%s\": \"%s\"", words[i].key, words[i].word);
        snprintf(new, sizeof new, "\"%s\": \"None\"", words[i].key);
        snprintf(message, sizeof message, "moepack.json: this version does not know %s \"None\"",
                 strcmp(words[i].key, "shared") == 0 ? "shared mode" : words[i].key);
        expect_refused(old, new, MP_ERR_UNSUPPORTED, message);
    }
    expect_refused("\"source\": \"bf16\"", "\"source\": \"Bf16\"", MP_ERR_UNSUPPORTED,
                   "moepack.json: this version does not know scheme \"Bf16\"");
    expect_refused("\"target\": \"mxfp4\"", "\"target\": \"mixed\"", MP_ERR_UNSUPPORTED,
                   "moepack.json: this version does not know scheme \"mixed\"");
    expect_input_error("\"amax_floor\": 0.0001", "\"amax_floor\": -1",
                       "moepack.json: amax_floor -1 is negative");
}

/* Layers of several schemes have no source scheme. */
Test(manifest, of_mixed_layers)
{
    fill(&manifest);
    manifest.source_scheme = MP_SCHEME_COUNT;
    expect_round_trip();
    cr_assert_not_null(strstr(text, "\"source\": \"mixed\""));
}

Test(manifest, forms_that_are_none)
{
    fill(&manifest);
    make_text();
    expect_input_error("        2048,", "        -1,",
                       "moepack.json: ffn.experts.{}.a1.weight: dimension 0 is not a size");
    expect_input_error("        2048,", "        1, 2, 3, 4,",
                       "moepack.json: ffn.experts.{}.a1.weight: 5 dimensions, at most 4");
    expect_input_error("\"block_rows\": 1", "\"block_rows\": 0",
                       "moepack.json: \"block_rows\" of 0");
    expect_input_error("\"block_rows\": 1", "\"block_rows\": 4294967295",
                       "moepack.json: \"block_rows\" of 4294967295");
    expect_input_error("\"global_divides\": true", "\"global_divides\": 1",
                       "moepack.json: \"global_divides\" is not true or false");
    expect_input_error("\"layer_forms\": [", "\"layer_forms\": [0, ",
                       "moepack.json: \"layer_forms\" of 3 layers, expected 2");
    expect_input_error("\"shared_forms\": [", "\"shared_forms\": [0, ",
                       "moepack.json: \"shared_forms\" of 3 layers, expected 2");
    expect_input_error("\"layer_forms\": [\n    0,", "\"layer_forms\": [\n    2,",
                       "moepack.json: \"layer_forms\": entry 0 is not one of 2 forms");
}

Test(manifest, digests_that_are_none)
{
    char old[64], new[64];

    fill(&manifest);
    make_text();
    snprintf(old, sizeof old, "\"%s\"", manifest.placement_xxh3);
    expect_input_error(old, "\"\"", "moepack.json: \"placement_xxh3\" is not an XXH3-128 in hex");
    snprintf(new, sizeof new, "\"%.31s\"", manifest.placement_xxh3);
    expect_input_error(old, new, "moepack.json: \"placement_xxh3\" is not an XXH3-128 in hex");
    snprintf(new, sizeof new, "\"%.31sG\"", manifest.placement_xxh3);
    expect_input_error(old, new, "moepack.json: \"placement_xxh3\" is not an XXH3-128 in hex");
    snprintf(old, sizeof old, "\"%s\"", manifest.ranks[0].files[0].tensors[2].xxh3);
    expect_input_error(old, "\"no\"", "moepack.json: \"xxh3\" is not an XXH3-128 in hex");
}

/* Readers open files by these names. */
Test(manifest, files_outside_of_their_directory)
{
    fill(&manifest);
    make_text();
    expect_input_error("\"model-00001-of-00002.safetensors\"", "\"../a\"",
                       "moepack.json: \"../a\" is not a file name");
    expect_input_error("\"model-00001-of-00002.safetensors\"", "\"/a\"",
                       "moepack.json: \"/a\" is not a file name");
    expect_input_error("\"model-00001-of-00002.safetensors\"", "\".\"",
                       "moepack.json: \".\" is not a file name");
    expect_input_error("\"model-00001-of-00002.safetensors\"", "\"\"",
                       "moepack.json: \"\" is not a file name");
}

Test(manifest, numbers_that_do_not_go_together)
{
    fill(&manifest);
    make_text();
    expect_input_error("\"num_physical\": 256", "\"num_physical\": 255",
                       "moepack.json: 255 physical experts on 4 ranks");
    expect_input_error("\"num_physical\": 256", "\"num_physical\": 4294967296",
                       "moepack.json: 4294967296 physical experts on 4 ranks");
    expect_input_error("\"ep_size\": 4", "\"ep_size\": 3",
                       "moepack.json: rank 3, but ep_size is 3");
    expect_input_error("\"rank\": 1", "\"rank\": 3", "moepack.json: rank 3 after rank 3");
    expect_input_error("\"ep_size\": 4", "\"ep_size\": 4294967296",
                       "moepack.json: 256 physical experts on 4294967296 ranks");
}

Test(manifest, no_ranks_of_none)
{
    fill(&manifest);
    for (size_t r = 0; r < 2; r++) {
        for (size_t f = 0; f < manifest.ranks[r].num_files; f++) {
            for (size_t t = 0; t < manifest.ranks[r].files[f].num_tensors; t++)
                free(manifest.ranks[r].files[f].tensors[t].name);
            free(manifest.ranks[r].files[f].tensors);
            free(manifest.ranks[r].files[f].name);
        }
        free(manifest.ranks[r].files);
    }
    manifest.num_ranks = 0;
    make_text();
    expect_input_error("\"ep_size\": 4", "\"ep_size\": 0",
                       "moepack.json: 256 physical experts on 0 ranks");
}

Test(manifest, texts_that_are_no_object)
{
    char *sealed = seal("[\n}\n");

    cr_assert_eq(parse(sealed, strlen(sealed)), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "moepack.json: line 1, column 2: unexpected token near ','");
    free(sealed);
}

/* ------------------------------------------------------------------------
 * Directories
 */

Test(manifest, in_a_directory)
{
    char dir[128], path[192];

    snprintf(dir, sizeof dir, "%s/moepack-manifest-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_not(mp_is_packed(dir));
    cr_assert_eq(mp_manifest_load(&again, dir, &err), MP_ERR_INPUT);
    cr_assert_not_null(strstr(err.message, "it has no moepack.json"), "%s", err.message);
    cr_assert_null(again.target);

    fill(&manifest);
    make_text();
    snprintf(path, sizeof path, "%s/moepack.json", dir);
    cr_assert_eq(mp_write_file(path, text, strlen(text), &err), 0);
    cr_assert(mp_is_packed(dir));
    cr_assert_eq(mp_manifest_load(&again, dir, &err), 0, "%s", err.message);
    expect_same(&manifest, &again);
    cr_assert_eq(mp_remove_tree(dir, &err), 0);
}

Test(manifest, names_of_ranks)
{
    char name[MP_RANK_NAME_MAX];

    cr_assert_str_eq(mp_rank_name(7, name), "rank-007");
    cr_assert_str_eq(mp_rank_name(1234, name), "rank-1234");
    cr_assert_str_eq(mp_rank_name(UINT32_MAX, name), "rank-4294967295");
}
