/* SPDX-License-Identifier: Apache-2.0 */
/* A failing call of every public function that takes an mp_error. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/moepack.h>

#include "failing_memory.h"
#include "null_error_calls.h"

#define FIXTURE "testdata/fixtures/v4-fp4"

/* ------------------------------------------------------------------------
 * What calls need
 */

/* Data beyond the end of every file. */
static const uint64_t beyond_shape[] = {2};
static const mp_tensor beyond = {.name = "beyond",
                                 .shape = beyond_shape,
                                 .rank = 1,
                                 .dtype = MP_I32,
                                 .offset = UINT64_C(1) << 40,
                                 .bytes = 8};

static mp_catalog *opened(void)
{
    static mp_catalog catalog;

    if (!catalog.layers)
        cr_assert_eq(mp_catalog_open(&catalog, FIXTURE, NULL, NULL), 0);
    return &catalog;
}

/* Layer 0 with its first expert, weights and scales, beyond the end of the file. */
static const mp_moe_layer *broken_layer(void)
{
    static mp_moe_layer layer;

    layer = opened()->layers[0];
    for (int p = 0; p < MP_PROJECTIONS; p++)
        layer.experts[0].matrix[p].weight = layer.experts[0].matrix[p].scale = &beyond;
    return &layer;
}

/* ------------------------------------------------------------------------
 * base, store
 */

CALL(mp_read_text)
{
    char *text;
    return mp_read_text(MISSING, 1, &text, NULL, err);
}

CALL(mp_select_layers)
{
    const char *prefix = "layers.0";
    bool selected[1];
    return mp_select_layers("7", &prefix, 1, selected, err);
}

CALL(mp_select_ranks)
{
    bool selected[2];
    return mp_select_ranks("7", 2, selected, err);
}

CALL(mp_kernels_check)
{
    setenv("MOEPACK_CPU", "sse9", 1);
    return mp_kernels_check(err);
}

CALL(mp_checkpoint_open)
{
    mp_checkpoint ckpt;
    return mp_checkpoint_open(&ckpt, MISSING, NULL, err);
}

CALL(mp_tensor_read)
{
    char data[8];
    return mp_tensor_read(&opened()->checkpoint, &beyond, 0, 8, data, err);
}

static const mp_tensor_spec too_large = {"a", MP_F32, 1, (const uint64_t[]){UINT64_MAX}};

CALL(mp_safetensors_header)
{
    char *header;
    uint64_t bytes, offset;
    return mp_safetensors_header(&too_large, 1, NULL, 0, 8, &header, &bytes, &offset, err);
}

CALL(mp_tensor_spec_bytes)
{
    uint64_t bytes;
    return mp_tensor_spec_bytes(&too_large, &bytes, err);
}

CALL(mp_manifest_text)
{
    const mp_manifest manifest = {.target = (char[]){"\xff"}};
    char *text;
    return mp_manifest_text(&manifest, &text, err);
}

CALL(mp_manifest_parse)
{
    mp_manifest manifest;
    return mp_manifest_parse(&manifest, "{\"format_version\": 1}", 21, err);
}

CALL(mp_manifest_load)
{
    mp_manifest manifest;
    return mp_manifest_load(&manifest, MISSING, err);
}

/* ------------------------------------------------------------------------
 * model
 */

CALL(mp_snapshot_find)
{
    mp_snapshot_kind kind;
    return mp_snapshot_find(MISSING, &kind, err);
}

CALL(mp_snapshot_open)
{
    mp_snapshot snapshot;
    return mp_snapshot_open(&snapshot, MP_SNAPSHOT_PRESHARDED, MISSING, NULL, NULL, err);
}

/* Of a config.json with a number that cannot be. */
static int load_broken(const char *tower, mp_error *err)
{
    mp_config config;
    char dir[] = P_tmpdir "/moepack-null-XXXXXX", path[sizeof dir + 16];

    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *file = fopen(path, "w");
    fputs("{\"hidden_size\": -1, \"thinker_config\": {\"text_config\": {\"hidden_size\": -1}}}",
          file);
    fclose(file);
    int rc =
        tower ? mp_config_load_tower(&config, dir, tower, err) : mp_config_load(&config, dir, err);
    unlink(path);
    rmdir(dir);
    return rc;
}

CALL(mp_config_load)
{
    return load_broken(NULL, err);
}

CALL(mp_config_load_tower)
{
    return load_broken("thinker", err);
}

CALL(mp_catalog_open)
{
    mp_catalog catalog;
    return mp_catalog_open(&catalog, MISSING, NULL, err);
}

CALL(mp_catalog_check)
{
    char problem[] = "a problem";
    mp_catalog catalog = *opened();
    catalog.problems = (mp_problems){.count = 1, .text = {problem}};
    return mp_catalog_check(&catalog, err);
}

CALL(mp_catalog_check_sound)
{
    char problem[] = "a problem";
    mp_catalog catalog = *opened();
    catalog.problems = (mp_problems){.count = 1, .text = {problem}};
    return mp_catalog_check_sound(&catalog, err);
}

CALL(mp_layer_expert)
{
    mp_expert view;
    const mp_storage *storage;
    return mp_layer_expert(opened(), &opened()->layers[0], 99, &view, &storage, err);
}

CALL(mp_matrix_read_rows)
{
    const mp_moe_layer *layer = broken_layer();
    unsigned char weight[384];
    return mp_matrix_read_rows(opened(), &layer->storage, &layer->experts[0].matrix[0], 384, 0, 1,
                               weight, NULL, err);
}

CALL(mp_matrix_global)
{
    float global;
    return mp_matrix_global(opened(), &(mp_matrix){.global = &beyond}, &global, err);
}

CALL(mp_matrix_check_shape)
{
    return mp_matrix_check_shape(opened(), &(mp_matrix){.weight = &beyond, .shape = &beyond}, 2, 2,
                                 err);
}

CALL(mp_matrix_check_offset)
{
    return mp_matrix_check_offset(opened(), &(mp_matrix){.weight = &beyond, .offset = &beyond},
                                  err);
}

/* ------------------------------------------------------------------------
 * numeric
 */

static const uint16_t infinite[] = {0x7f80};
static const mp_rows bf16 = {
    .scheme = MP_SCHEME_BF16, .rows = 1, .cols = 1, .weight = infinite, .block_rows = 1};
static const mp_rows unknown_scheme = {.scheme = MP_SCHEME_COUNT, .rows = 1, .cols = 1};

CALL(mp_catalog_choose)
{
    mp_catalog catalog = *opened();
    WITHOUT_MEMORY(mp_catalog_choose(&catalog, NULL, err));
}

CALL(mp_layer_check_fusable)
{
    mp_catalog averaging = *opened();
    memcpy(averaging.config.model_type, "cohere2_moe", sizeof "cohere2_moe");
    return mp_layer_check_fusable(&averaging, &averaging.layers[0], err);
}

CALL(mp_matrix_scalar)
{
    const mp_moe_layer *layer = &opened()->layers[0];
    float number;
    return mp_matrix_scalar(opened(), &layer->experts[0].matrix[0], &beyond, &number, err);
}

CALL(mp_decode_rows)
{
    float out[1];
    return mp_decode_rows(&unknown_scheme, out, err);
}

CALL(mp_rows_check_finite)
{
    return mp_rows_check_finite(&bf16, err);
}

CALL(mp_requantize)
{
    unsigned char code, work[4096];
    float scale;
    return mp_requantize(&bf16, MP_SCHEME_FP8_CHANNEL, &(mp_quant_options){0}, &code, &scale, work,
                         NULL, err);
}

CALL(mp_rows_channel_scales)
{
    unsigned char work[4096];
    float scale;
    return mp_rows_channel_scales(&bf16, MP_SCHEME_FP8_CHANNEL, &(mp_quant_options){0}, work,
                                  &scale, err);
}

CALL(mp_rows_amax)
{
    unsigned char work[4096];
    float amax;
    return mp_rows_amax(&bf16, false, work, &amax, err);
}

CALL(check)
{
    const mp_dims odd = {.hidden_size = 7, .intermediate_size = 3};
    return mp_target_find("megamoe-w4a8")->check(&odd, NULL, err);
}

/* ------------------------------------------------------------------------
 * reference
 */

static const float logits[] = {1, 2};
static const mp_router router = {.num_experts = 2, .k = 3}; /* more choices than experts */

CALL(mp_router_choose)
{
    int32_t ids[3];
    float weights[3];
    return mp_router_choose(&router, logits, 1, ids, weights, err);
}

CALL(mp_router_weigh)
{
    const int32_t ids[3] = {0, 1, 1};
    float weights[3];
    return mp_router_weigh(&router, logits, 1, ids, weights, err);
}

/* Layer 0 as a source whose expert 0 cannot be read. */
static mp_catalog_experts *broken_source(void)
{
    static mp_catalog_experts experts;
    const mp_catalog_experts_options options = {.scheme = MP_SCHEME_COUNT,
                                                .shared_scheme = MP_SCHEME_COUNT};

    cr_assert_eq(mp_catalog_experts_open(&experts, opened(), broken_layer(), &options, NULL, NULL),
                 0);
    return &experts;
}

CALL(read)
{
    const mp_expert_source *source = &broken_source()->source;
    mp_rows part[2];
    void *work = aligned_alloc(64, (source->scratch_bytes + 63) / 64 * 64);
    int rc = source->read(source->user, 0, MP_L1, 0, source->tile_rows, work, part, err);
    free(work);
    return rc;
}

CALL(bias)
{
    const mp_expert_source *source;
    float out[384];

    opened()->layers[0].experts[0].matrix[MP_GATE].bias = &beyond;
    source = &broken_source()->source;
    return source->bias(source->user, 0, MP_GATE, out, err);
}

CALL(mp_forward)
{
    const mp_expert_source *source = &broken_source()->source;
    float x[384] = {1};
    double y[384];
    const int32_t ids[] = {0};
    const float weights[] = {1};
    const mp_batch batch = {.tokens = 1, .k = 1, .x = x, .ids = ids, .weights = weights};
    return mp_forward(source, &(mp_forward_options){0}, &batch, NULL, y, err);
}

CALL(mp_find_layer)
{
    const mp_moe_layer *layer;
    return mp_find_layer(opened(), "99", &layer, err);
}

CALL(mp_model_activation)
{
    mp_activation activation;
    bool weigh_input;
    mp_config config = opened()->config;
    memcpy(config.hidden_act, "tanh", 5);
    return mp_model_activation(&config, 0, &activation, NULL, &weigh_input, err);
}

CALL(mp_model_check_block)
{
    mp_config config = opened()->config;
    config.latent_size = 64;
    return mp_model_check_block(&config, false, err);
}

CALL(mp_shared_expert_open)
{
    mp_shared_expert shared;
    mp_moe_layer none = opened()->layers[0];
    none.shared_width = 0;
    return mp_shared_expert_open(&shared, opened(), &none, NULL, err);
}

CALL(mp_shared_expert_add)
{
    static const mp_shared_expert shared = {.experts.source.hidden_size = 3};
    const mp_layer_router nothing = {.hidden_size = 3};
    const mp_forward_options options = {.memory = 1};
    const float x[3] = {1, 2, 3};
    const mp_batch batch = {.tokens = 1, .k = 1, .x = x};
    double y[3] = {0};
    WITHOUT_MEMORY(mp_shared_expert_add(&shared, &nothing, &options, &batch, NULL, y, err));
}

CALL(mp_layer_router_open)
{
    mp_layer_router layer_router;
    mp_config *config = &opened()->config;
    config->experts_per_token = 99;
    return mp_layer_router_open(&layer_router, opened(), &opened()->layers[0], err);
}

CALL(mp_layer_route)
{
    const mp_layer_router none = {.router = {.num_experts = 2, .k = 1}};
    const float x[1] = {0};
    int32_t ids[1];
    float weights[1];
    return mp_layer_route(&none, x, NULL, 1, NULL, ids, weights, err);
}

CALL(mp_catalog_experts_open)
{
    mp_catalog_experts experts;
    const mp_catalog_experts_options options = {.scheme = MP_SCHEME_NVFP4,
                                                .shared_scheme = MP_SCHEME_NVFP4};
    return mp_catalog_experts_open(&experts, opened(), broken_layer(), &options, NULL, err);
}

CALL(mp_pack_open)
{
    mp_pack pack;
    return mp_pack_open(&pack, MISSING, NULL, NULL, err);
}

CALL(mp_pack_svg)
{
    const mp_pack pack = {.shape = {.slots = slots}};
    char *svg;
    WITHOUT_MEMORY(mp_pack_svg(&pack, &svg, err));
}

CALL(mp_pack_layer)
{
    static char name[] = "layers.0";
    char *layers[] = {name};
    const mp_pack pack = {.manifest = {.layers = layers, .num_layers = 1}};
    size_t layer;
    return mp_pack_layer(&pack, "7", &layer, err);
}

CALL(mp_pack_read)
{
    static char name[] = "layers.0";
    char *layers[] = {name};
    const mp_tensor *none[1] = {NULL};
    const mp_slot_set set = {.num_tensors = 1, .tensors = {{.name = "l1_weight"}}};
    const mp_pack pack = {.manifest = {.layers = layers, .num_layers = 1},
                          .shape = {.slots = slots, .num_tensors = 1},
                          .tensors = none};
    char byte;
    return mp_pack_read(&pack, 0, (mp_place){0, 0}, &set, set.tensors, 0, 1, &byte, err);
}

CALL(mp_manifest_shape)
{
    static char target[] = "megamoe";
    const mp_manifest manifest = {.target = target};
    mp_shape shape;
    return mp_manifest_shape(&manifest, &shape, err);
}

/* Shared experts of several widths in one tensor. */
CALL(mp_packed_experts_init)
{
    mp_pack pack = {.shape = {.num_sets = 2}};
    mp_packed_experts experts;
    pack.shape.sets[MP_SET_SHARED] = (mp_slot_set){.slots = 1, .dims = {1, 2}};
    return mp_packed_experts_init(&experts, &pack, 0, err);
}

CALL(mp_packed_route)
{
    bool open[] = {true, true};
    const mp_pack pack = {.shape = {.slots = slots}, .open = open};
    const mp_packed_experts experts = {.pack = &pack, .row = row};
    const int32_t ids[] = {0, 5};
    const float weights[] = {1, 1};
    int32_t slot_ids[2];
    float slot_weights[2];
    return mp_packed_route(&experts, &(mp_packed_dispatch){0}, ids, weights, 1, 1, 1, slot_ids,
                           slot_weights, err);
}

CALL(mp_diff)
{
    mp_diff_report report;
    return mp_diff(FIXTURE, MISSING, &(mp_diff_options){0}, NULL, &report, err);
}

/* ------------------------------------------------------------------------
 * pack, verify
 */

static mp_repack_options repack(void)
{
    return (mp_repack_options){.target = mp_target_find("megamoe-w4a8"), .ep = 1};
}

CALL(mp_plan_init)
{
    mp_plan plan;
    mp_repack_options options = repack();
    options.target = mp_target_find("megamoe-nvfp4");
    return mp_plan_init(&plan, opened(), &options, err);
}

CALL(mp_plan_run)
{
    mp_plan plan;
    mp_repack_options options = repack();
    cr_assert_eq(mp_plan_init(&plan, opened(), &options, NULL), 0);
    int rc = mp_plan_run(&plan, MISSING "/out", MP_RUN_FRESH, NULL, err);
    mp_plan_release(&plan);
    return rc;
}

CALL(mp_unpack_plan_init)
{
    mp_unpack_plan plan;
    return mp_unpack_plan_init(&plan, MISSING, &(mp_unpack_options){0}, NULL, err);
}

CALL(mp_unpack_plan_run)
{
    mp_unpack_plan plan = {0};
    return mp_unpack_plan_run(&plan, MISSING "/out", MP_RUN_FRESH, NULL, err);
}

CALL(mp_quantize_plan_init)
{
    mp_quantize_plan plan;
    const mp_quantize_options options = {.scheme = MP_SCHEME_MXFP8, .style = "none"};
    return mp_quantize_plan_init(&plan, opened(), &options, err);
}

CALL(mp_quantize_plan_run)
{
    mp_quantize_plan plan = {.catalog = opened()};
    return mp_quantize_plan_run(&plan, MISSING "/out", MP_RUN_FRESH, NULL, err);
}

CALL(mp_compress)
{
    const mp_compress_options options = {0};
    return mp_compress(MISSING, MISSING "/out", &options, MP_RUN_FRESH, NULL, NULL, err);
}

CALL(mp_part_how)
{
    char *how;

    return mp_part_how(MISSING "/out", &how, err);
}

CALL(mp_run_publish)
{
    return mp_run_publish(MISSING "/out", err);
}

CALL(mp_checksums_write)
{
    return mp_checksums_write(MISSING, NULL, err);
}

CALL(mp_checksums_check)
{
    mp_problems problems = {0};
    uint64_t files;

    return mp_checksums_check(MISSING, NULL, &problems, &files, err);
}

CALL(mp_delta_write)
{
    const mp_delta_options options = {.version = 1};
    return mp_delta_write(MISSING, FIXTURE, MISSING "/out", &options, MP_RUN_FRESH, NULL, NULL,
                          err);
}

CALL(mp_delta_fold)
{
    const mp_delta_options options = {0};
    const char *const deltas[] = {MISSING};
    return mp_delta_fold(deltas, 1, MISSING "/out", &options, MP_RUN_FRESH, NULL, NULL, err);
}

CALL(mp_delta_apply)
{
    const char *const deltas[] = {MISSING};
    return mp_delta_apply(FIXTURE, deltas, 1, MISSING "/out", NULL, MP_RUN_FRESH, NULL, err);
}

CALL(mp_update_init)
{
    const char *const deltas[] = {MISSING};
    mp_update update;
    return mp_update_init(&update, MISSING, deltas, 1, FIXTURE, NULL, NULL, err);
}

CALL(mp_update_run)
{
    const mp_update update = {0};
    return mp_update_run(&update, MISSING "/out", MP_RUN_FRESH, NULL, err);
}

CALL(mp_delta_verify)
{
    mp_verify_report report;
    return mp_delta_verify(MISSING, NULL, NULL, &report, err);
}

CALL(mp_compress_measure)
{
    mp_compress_report report;
    return mp_compress_measure(MISSING, NULL, &report, err);
}

CALL(mp_quantize_errors)
{
    mp_layer_error *errors;
    size_t count;
    return mp_quantize_errors(MISSING, &errors, &count, err);
}

CALL(mp_verify)
{
    mp_verify_report report;
    return mp_verify(MISSING, &(mp_verify_options){.layers = "0"}, NULL, &report, err);
}

/* ------------------------------------------------------------------------ */

const failing_call failing_calls[] = {
    ROW(mp_read_text),
    ROW(mp_select_layers),
    ROW(mp_select_ranks),
    ROW(mp_kernels_check),
    ROW(mp_checkpoint_open),
    ROW(mp_tensor_read),
    ROW(mp_safetensors_header),
    ROW(mp_tensor_spec_bytes),
    ROW(mp_manifest_text),
    ROW(mp_manifest_parse),
    ROW(mp_manifest_load),
    ROW(mp_config_load),
    ROW(mp_catalog_open),
    ROW(mp_catalog_check),
    ROW(mp_catalog_check_sound),
    ROW(mp_layer_expert),
    ROW(mp_matrix_read_rows),
    ROW(mp_matrix_global),
    ROW(mp_matrix_check_shape),
    ROW(mp_config_load_tower),
    ROW(mp_catalog_choose),
    ROW(mp_layer_check_fusable),
    ROW(mp_matrix_scalar),
    ROW(mp_matrix_check_offset),
    ROW(mp_decode_rows),
    ROW(mp_rows_check_finite),
    ROW(mp_requantize),
    ROW(mp_rows_channel_scales),
    ROW(mp_rows_amax),
    ROW(check),
    ROW(mp_router_choose),
    ROW(mp_router_weigh),
    ROW(read),
    ROW(bias),
    ROW(mp_forward),
    ROW(mp_find_layer),
    ROW(mp_model_activation),
    ROW(mp_model_check_block),
    ROW(mp_shared_expert_open),
    ROW(mp_shared_expert_add),
    ROW(mp_layer_router_open),
    ROW(mp_layer_route),
    ROW(mp_catalog_experts_open),
    ROW(mp_manifest_shape),
    ROW(mp_pack_layer),
    ROW(mp_pack_open),
    ROW(mp_pack_svg),
    ROW(mp_pack_read),
    ROW(mp_packed_experts_init),
    ROW(mp_packed_route),
    ROW(mp_diff),
    ROW(mp_plan_init),
    ROW(mp_plan_run),
    ROW(mp_unpack_plan_init),
    ROW(mp_unpack_plan_run),
    ROW(mp_quantize_plan_init),
    ROW(mp_quantize_plan_run),
    ROW(mp_compress),
    ROW(mp_compress_measure),
    ROW(mp_part_how),
    ROW(mp_run_publish),
    ROW(mp_checksums_write),
    ROW(mp_checksums_check),
    ROW(mp_delta_write),
    ROW(mp_delta_fold),
    ROW(mp_delta_apply),
    ROW(mp_delta_verify),
    ROW(mp_update_init),
    ROW(mp_update_run),
    ROW(mp_quantize_errors),
    ROW(mp_verify),
    ROW(mp_snapshot_find),
    ROW(mp_snapshot_open),
};

const size_t num_failing_calls = sizeof failing_calls / sizeof failing_calls[0];
