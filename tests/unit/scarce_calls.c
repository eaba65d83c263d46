/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that read and compute: base, store, model, numeric, reference, snapshot. */
#include "scarce_calls.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/select.h"
#include "checkpoint/complete.h"
#include "checkpoint/config.h"
#include "checkpoint/matrix.h"
#include "checkpoint/tensor.h"
#include "forward/reference.h"
#include "numeric/quantize.h"

#define FIXTURE "testdata/fixtures/v4-fp4" /* two layers of 5 experts, H = 384, I = 256 */
#define HIDDEN  384
#define INTER   256

static mp_catalog *opened(void)
{
    static mp_catalog catalog;

    if (!catalog.layers)
        cr_assert_eq(mp_catalog_open(&catalog, FIXTURE, NULL, NULL), 0);
    return &catalog;
}

static const mp_matrix *gate(void)
{
    return &opened()->layers[0].experts[0].matrix[MP_GATE];
}

/* ------------------------------------------------------------------------
 * base, store
 */

SCARCE(mp_read_text)
{
    char *text = NULL;
    int rc = mp_read_text(FIXTURE "/config.json", 1 << 16, &text, NULL, err);
    free(text);
    return rc;
}

SCARCE(mp_select_layers)
{
    const char *prefixes[] = {"layers.0", "mtp.0"};
    bool selected[2];
    return mp_select_layers("0,mtp.0", prefixes, 2, selected, err);
}

SCARCE(mp_select_ranks)
{
    bool selected[5];
    return mp_select_ranks("0-1,4", 5, selected, err);
}

SCARCE(mp_kernels_check)
{
    return mp_kernels_check(err);
}

SCARCE(mp_checkpoint_open)
{
    mp_checkpoint ckpt;
    int rc = mp_checkpoint_open(&ckpt, FIXTURE, &one_thread, err);
    mp_checkpoint_release(&ckpt);
    return rc;
}

/* The first time it makes what is kept of a shard. */
SCARCE(mp_tensor_read)
{
    char bytes[8];
    return mp_tensor_read(&opened()->checkpoint, gate()->weight, 0, sizeof bytes, bytes, err);
}

static const mp_tensor_spec specs[] = {{"a", MP_F32, 2, (const uint64_t[]){3, 5}},
                                       {"b", MP_BF16, 1, (const uint64_t[]){7}}};

SCARCE(mp_safetensors_header)
{
    const char *const metadata[] = {"format", "pt"};
    char *header = NULL;
    uint64_t bytes, offsets[3];
    int rc = mp_safetensors_header(specs, 2, metadata, 1, 64, &header, &bytes, offsets, err);
    if (rc == 0)
        free(header);
    return rc;
}

SCARCE(mp_tensor_spec_bytes)
{
    uint64_t bytes;
    return mp_tensor_spec_bytes(specs, &bytes, err);
}

/* ------------------------------------------------------------------------
 * model, snapshot
 */

SCARCE(mp_config_load)
{
    mp_config config;
    int rc = mp_config_load(&config, FIXTURE, err);
    mp_config_release(&config);
    return rc;
}

/* One tower. */
SCARCE(mp_config_load_tower)
{
    mp_config config;
    char dir[256];
    snprintf(dir, sizeof dir, "%s", in_scratch(""));
    FILE *file = fopen(in_scratch("config.json"), "w");
    fputs("{\"model_type\": \"qwen3_omni_moe\", \"thinker_config\": {\"text_config\": "
          "{\"model_type\": \"x\", \"hidden_size\": 96}}}",
          file);
    fclose(file);
    int rc = mp_config_load_tower(&config, dir, "thinker", err);
    mp_config_release(&config);
    return rc;
}

SCARCE(mp_catalog_open)
{
    mp_catalog catalog;
    int rc = mp_catalog_open(&catalog, FIXTURE, &one_thread, err);
    mp_catalog_release(&catalog);
    return rc;
}

SCARCE(mp_catalog_choose)
{
    return mp_catalog_choose(opened(), NULL, err);
}

SCARCE(mp_catalog_check)
{
    return mp_catalog_check(opened(), err);
}

SCARCE(mp_catalog_check_sound)
{
    return mp_catalog_check_sound(opened(), err);
}

SCARCE(mp_layer_expert)
{
    mp_expert view;
    const mp_storage *storage;
    return mp_layer_expert(opened(), &opened()->layers[0], 4, &view, &storage, err);
}

SCARCE(mp_layer_check_fusable)
{
    return mp_layer_check_fusable(opened(), &opened()->layers[0], err);
}

SCARCE(mp_matrix_read_rows)
{
    unsigned char weight[HIDDEN / 2], scale[HIDDEN / 32];
    return mp_matrix_read_rows(opened(), &opened()->layers[0].storage, gate(), HIDDEN, 3, 1, weight,
                               scale, err);
}

/* Of a checkpoint whose experts have second scales. */
static const mp_catalog *scaled(void)
{
    static mp_catalog catalog;

    if (!catalog.layers)
        cr_assert_eq(mp_catalog_open(&catalog, "testdata/fixtures/modelopt-nvfp4", NULL, NULL), 0);
    return &catalog;
}

SCARCE(mp_matrix_global)
{
    float global;
    return mp_matrix_global(scaled(), &scaled()->layers[0].experts[0].matrix[MP_GATE], &global,
                            err);
}

SCARCE(mp_matrix_scalar)
{
    const mp_matrix *matrix = &scaled()->layers[0].experts[0].matrix[MP_GATE];
    float number;
    return mp_matrix_scalar(scaled(), matrix, matrix->global, &number, err);
}

SCARCE(mp_matrix_check_shape)
{
    return mp_matrix_check_shape(opened(), gate(), INTER, HIDDEN, err);
}

SCARCE(mp_matrix_check_offset)
{
    return mp_matrix_check_offset(opened(), gate(), err);
}

/* A rank of an engine: a link to a shard, under the name that engines give it. */
static const char *dumped(void)
{
    static char dir[256];

    if (!dir[0]) {
        char *target = realpath("testdata/fixtures/qwen3-bf16/model.safetensors", NULL);
        mkdir(in_scratch("dumped"), 0777);
        cr_assert_eq(symlink(target, in_scratch("dumped/model-rank-0-part-0.safetensors")), 0);
        free(target);
        snprintf(dir, sizeof dir, "%s", in_scratch("dumped"));
    }
    return dir;
}

SCARCE(mp_snapshot_find)
{
    mp_snapshot_kind kind;
    return mp_snapshot_find(dumped(), &kind, err);
}

SCARCE(mp_snapshot_open)
{
    mp_snapshot snapshot;
    int rc =
        mp_snapshot_open(&snapshot, MP_SNAPSHOT_SHARDED_STATE, dumped(), NULL, &one_thread, err);
    mp_snapshot_release(&snapshot);
    return rc;
}

/* ------------------------------------------------------------------------
 * numeric
 */

static const uint16_t ones[32] = {0x3f80, 0x4000, 0xbf80}; /* 1, 2, -1, 0 ... */
static const mp_rows bf16 = {
    .scheme = MP_SCHEME_BF16, .rows = 1, .cols = 32, .weight = ones, .block_rows = 1};

SCARCE(mp_decode_rows)
{
    float out[32];
    return mp_decode_rows(&bf16, out, err);
}

SCARCE(mp_rows_check_finite)
{
    return mp_rows_check_finite(&bf16, err);
}

SCARCE(mp_requantize)
{
    _Alignas(64) unsigned char codes[32], work[4096];
    float scale;
    return mp_requantize(&bf16, MP_SCHEME_FP8_CHANNEL, &(mp_quant_options){0}, codes, &scale, work,
                         NULL, err);
}

SCARCE(mp_rows_channel_scales)
{
    _Alignas(64) unsigned char work[4096];
    float scale;
    return mp_rows_channel_scales(&bf16, MP_SCHEME_FP8_CHANNEL, &(mp_quant_options){0}, work,
                                  &scale, err);
}

SCARCE(mp_rows_amax)
{
    _Alignas(64) unsigned char work[4096];
    float amax;
    return mp_rows_amax(&bf16, false, work, &amax, err);
}

SCARCE(check)
{
    const mp_dims dims = {.hidden_size = 384, .intermediate_size = 256};
    mp_problems warnings = {0};
    int rc = mp_target_find("megamoe-w4a8")->check(&dims, &warnings, err);
    mp_problems_release(&warnings);
    return rc;
}

/* ------------------------------------------------------------------------
 * reference
 */

#define TOKENS 2
#define TOP_K  2

static const float logits[TOKENS][5] = {{1, 2, 4, 3, 0}, {3, 1, 0, 2, 5}};
static const mp_router router = {.num_experts = 5, .k = TOP_K};

SCARCE(mp_router_choose)
{
    int32_t ids[TOKENS * TOP_K];
    float weights[TOKENS * TOP_K];
    return mp_router_choose(&router, logits[0], TOKENS, ids, weights, err);
}

SCARCE(mp_router_weigh)
{
    const int32_t ids[TOKENS * TOP_K] = {0, 1, 4, 2};
    float weights[TOKENS * TOP_K];
    return mp_router_weigh(&router, logits[0], TOKENS, ids, weights, err);
}

static const float *tokens(void)
{
    static float x[TOKENS * HIDDEN];

    if (x[0] == 0)
        mp_random_tokens(1, TOKENS, HIDDEN, x);
    return x;
}

static int open_experts(mp_catalog_experts *experts, mp_error *err)
{
    const mp_catalog_experts_options options = {.scheme = MP_SCHEME_COUNT,
                                                .shared_scheme = MP_SCHEME_COUNT};
    return mp_catalog_experts_open(experts, opened(), &opened()->layers[0], &options, &one_thread,
                                   err);
}

SCARCE(mp_catalog_experts_open)
{
    mp_catalog_experts experts;
    int rc = open_experts(&experts, err);
    mp_catalog_experts_release(&experts);
    return rc;
}

static const mp_expert_source *experts_source(void)
{
    static mp_catalog_experts experts;

    if (!experts.source.user)
        cr_assert_eq(open_experts(&experts, NULL), 0);
    return &experts.source;
}

SCARCE(read)
{
    const mp_expert_source *source = experts_source();
    static void *work;
    mp_rows part[2];
    if (!work)
        work = aligned_alloc(64, (source->scratch_bytes + 63) / 64 * 64);
    return source->read(source->user, 0, MP_L1, 0, source->tile_rows, work, part, err);
}

/* GPT-OSS has biases. */
SCARCE(bias)
{
    static mp_catalog catalog;
    static mp_catalog_experts experts;
    const mp_catalog_experts_options options = {.scheme = MP_SCHEME_COUNT,
                                                .shared_scheme = MP_SCHEME_COUNT};
    float out[4096];
    if (!catalog.layers) {
        cr_assert_eq(mp_catalog_open(&catalog, "testdata/fixtures/gptoss-mxfp4", NULL, NULL), 0);
        cr_assert_eq(mp_catalog_experts_open(&experts, &catalog, &catalog.layers[0], &options,
                                             &one_thread, NULL),
                     0);
        cr_assert_leq(catalog.moe_intermediate_size, 4096);
    }
    return experts.source.bias(experts.source.user, 0, MP_GATE, out, err);
}

static const int32_t chosen[] = {0, 3, 2, 4};
static const float weighed[] = {0.5f, 0.25f, 1, 2};

SCARCE(mp_forward)
{
    const mp_batch batch = {TOKENS, TOP_K, tokens(), chosen, weighed};
    double y[TOKENS * HIDDEN];
    return mp_forward(experts_source(), &(mp_forward_options){0}, &batch, &one_thread, y, err);
}

SCARCE(mp_find_layer)
{
    const mp_moe_layer *layer;
    return mp_find_layer(opened(), "mtp.0", &layer, err);
}

SCARCE(mp_model_activation)
{
    mp_activation activation, shared;
    bool weigh_input;
    return mp_model_activation(&opened()->config, 0, &activation, &shared, &weigh_input, err);
}

SCARCE(mp_model_check_block)
{
    return mp_model_check_block(&opened()->config, false, err);
}

SCARCE(mp_layer_router_open)
{
    mp_layer_router layer_router;
    int rc = mp_layer_router_open(&layer_router, opened(), &opened()->layers[0], err);
    mp_layer_router_release(&layer_router);
    return rc;
}

static const mp_layer_router *opened_router(void)
{
    static mp_layer_router layer_router;

    if (!layer_router.hidden_size)
        cr_assert_eq(mp_layer_router_open(&layer_router, opened(), &opened()->layers[0], NULL), 0);
    return &layer_router;
}

SCARCE(mp_layer_route)
{
    int32_t ids[TOKENS * 8];
    float weights[TOKENS * 8];
    return mp_layer_route(opened_router(), tokens(), NULL, TOKENS, &one_thread, ids, weights, err);
}

SCARCE(mp_shared_expert_open)
{
    mp_shared_expert shared;
    int rc = mp_shared_expert_open(&shared, opened(), &opened()->layers[0], &one_thread, err);
    mp_shared_expert_release(&shared);
    return rc;
}

SCARCE(mp_shared_expert_add)
{
    static mp_shared_expert shared;
    const mp_batch batch = {TOKENS, TOP_K, tokens(), chosen, weighed};
    double y[TOKENS * HIDDEN] = {0};
    if (!shared.experts.source.user)
        cr_assert_eq(
            mp_shared_expert_open(&shared, opened(), &opened()->layers[0], &one_thread, NULL), 0);
    return mp_shared_expert_add(&shared, opened_router(), &(mp_forward_options){0}, &batch,
                                &one_thread, y, err);
}

static const mp_layer_options as_w4a8 = {
    .size = sizeof as_w4a8, .emulation = MP_EMULATE_W4A8, .requantize_shared = true};

SCARCE(mp_layer_open)
{
    mp_layer *layer;
    int rc = mp_layer_open(&layer, FIXTURE, "0", &as_w4a8, &one_thread, err);
    mp_layer_release(layer);
    return rc;
}

static const mp_layer *opened_layer(void)
{
    static mp_layer *layer;

    if (!layer)
        cr_assert_eq(mp_layer_open(&layer, FIXTURE, "0", &as_w4a8, &one_thread, NULL), 0);
    return layer;
}

SCARCE(mp_layer_choose)
{
    int32_t ids[TOKENS * 8];
    float weights[TOKENS * 8];
    return mp_layer_choose(opened_layer(), tokens(), NULL, TOKENS, &one_thread, ids, weights, err);
}

SCARCE(mp_layer_forward)
{
    const mp_batch batch = {TOKENS, TOP_K, tokens(), chosen, weighed};
    double y[TOKENS * HIDDEN];
    uint32_t used;
    return mp_layer_forward(opened_layer(), &batch, &one_thread, y, &used, err);
}

const scarce_call scarce_calls[] = {
    SCARCE_ROW(mp_read_text),
    SCARCE_ROW(mp_select_layers),
    SCARCE_ROW(mp_select_ranks),
    SCARCE_ROW(mp_kernels_check),
    SCARCE_ROW(mp_checkpoint_open),
    SCARCE_ROW(mp_tensor_read),
    SCARCE_ROW(mp_safetensors_header),
    SCARCE_ROW(mp_tensor_spec_bytes),
    SCARCE_ROW(mp_config_load),
    SCARCE_ROW(mp_config_load_tower),
    SCARCE_ROW(mp_catalog_open),
    SCARCE_ROW(mp_catalog_choose),
    SCARCE_ROW(mp_catalog_check),
    SCARCE_ROW(mp_catalog_check_sound),
    SCARCE_ROW(mp_layer_expert),
    SCARCE_ROW(mp_layer_check_fusable),
    SCARCE_ROW(mp_matrix_read_rows),
    SCARCE_ROW(mp_matrix_global),
    SCARCE_ROW(mp_matrix_scalar),
    SCARCE_ROW(mp_matrix_check_shape),
    SCARCE_ROW(mp_matrix_check_offset),
    SCARCE_ROW(mp_snapshot_find),
    SCARCE_ROW(mp_snapshot_open),
    SCARCE_ROW(mp_decode_rows),
    SCARCE_ROW(mp_rows_check_finite),
    SCARCE_ROW(mp_requantize),
    SCARCE_ROW(mp_rows_channel_scales),
    SCARCE_ROW(mp_rows_amax),
    SCARCE_ROW(check),
    SCARCE_ROW(mp_router_choose),
    SCARCE_ROW(mp_router_weigh),
    SCARCE_ROW(mp_catalog_experts_open),
    SCARCE_ROW(read),
    SCARCE_ROW(bias),
    SCARCE_ROW(mp_forward),
    SCARCE_ROW(mp_find_layer),
    SCARCE_ROW(mp_model_activation),
    SCARCE_ROW(mp_model_check_block),
    SCARCE_ROW(mp_layer_router_open),
    SCARCE_ROW(mp_layer_route),
    SCARCE_ROW(mp_shared_expert_open),
    SCARCE_ROW(mp_shared_expert_add),
    SCARCE_ROW(mp_layer_open),
    SCARCE_ROW(mp_layer_choose),
    SCARCE_ROW(mp_layer_forward),
};

const size_t num_scarce_calls = SCARCE_COUNT(scarce_calls);
