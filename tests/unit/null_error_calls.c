/* SPDX-License-Identifier: Apache-2.0 */
/* A failing call of every public function that takes an mp_error. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moepack/moepack.h>

#include "failing_memory.h"
#include "null_error_calls.h"

#include "base/select.h"
#include "checkpoint/config.h"
#include "checkpoint/matrix.h"
#include "checkpoint/tensor.h"
#include "forward/reference.h"
#include "numeric/quantize.h"
#include "pack/manifest.h"
#include "pack/pack.h"

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

/* ------------------------------------------------------------------------
 * base, store
 */

CALL(mp_read_text)
{
    char *text;
    return mp_read_text(MISSING, 1, &text, NULL, err);
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

CALL(mp_catalog_open)
{
    mp_catalog catalog;
    return mp_catalog_open(&catalog, MISSING, NULL, err);
}

CALL(mp_catalog_check_sound)
{
    char problem[] = "a problem";
    mp_catalog catalog = *opened();
    catalog.problems = (mp_problems){.count = 1, .text = {problem}};
    return mp_catalog_check_sound(&catalog, err);
}

/* ------------------------------------------------------------------------
 * numeric
 */

static const mp_rows unknown_scheme = {.scheme = MP_SCHEME_COUNT, .rows = 1, .cols = 1};

CALL(mp_catalog_choose)
{
    mp_catalog catalog = *opened();
    WITHOUT_MEMORY(mp_catalog_choose(&catalog, NULL, err));
}

CALL(mp_decode_rows)
{
    float out[1];
    return mp_decode_rows(&unknown_scheme, out, err);
}

CALL(check)
{
    const mp_dims odd = {.hidden_size = 7, .intermediate_size = 3};
    return mp_target_find("megamoe-w4a8")->check(&odd, NULL, err);
}

/* ------------------------------------------------------------------------
 * forward
 */

CALL(mp_layer_open)
{
    mp_layer *layer;
    return mp_layer_open(&layer, MISSING, "0", NULL, NULL, err);
}

static mp_layer *open_layer(void)
{
    mp_layer *layer;

    cr_assert_eq(mp_layer_open(&layer, FIXTURE, "0", NULL, NULL, NULL), 0);
    return layer;
}

CALL(mp_layer_choose)
{
    mp_layer *layer = open_layer();
    const float x[384] = {INFINITY};
    const int64_t token_id = UINT32_MAX;
    int32_t ids[8];
    float weights[8];
    int rc = mp_layer_choose(layer, x, &token_id, 1, NULL, ids, weights, err);

    mp_layer_release(layer);
    return rc;
}

CALL(mp_layer_forward)
{
    mp_layer *layer = open_layer();
    const int32_t id = 1000;
    const float weight = 1, x[384] = {0};
    double y[384];
    const mp_batch batch = {1, 1, x, &id, &weight};
    int rc = mp_layer_forward(layer, &batch, NULL, y, NULL, err);

    mp_layer_release(layer);
    return rc;
}

CALL(mp_pack_open)
{
    mp_pack *pack;
    return mp_pack_open(&pack, MISSING, NULL, NULL, err);
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
CALL(mp_diff)
{
    mp_diff_report report;
    return mp_diff(FIXTURE, MISSING, &(mp_diff_options){.size = sizeof(mp_diff_options)}, NULL,
                   &report, err);
}

/* ------------------------------------------------------------------------
 * pack, verify
 */

CALL(mp_plan_repack)
{
    const mp_repack_options options = {.size = sizeof options,
                                       .target = mp_target_find("megamoe-w4a8")};
    mp_plan *plan;
    return mp_plan_repack(&plan, opened(), &options, err);
}

CALL(mp_repack)
{
    const mp_repack_options options = {.size = sizeof options};
    return mp_repack(MISSING, MISSING "/out", &options, NULL, err);
}

CALL(mp_plan_run)
{
    mp_plan *plan;
    cr_assert_eq(mp_plan_quantize(&plan, opened(), NULL, NULL), 0);
    int rc = mp_plan_run(plan, MISSING "/out", MP_RUN_FRESH, NULL, err);
    mp_plan_release(plan);
    return rc;
}

CALL(mp_plan_unpack)
{
    mp_plan *plan;
    return mp_plan_unpack(&plan, MISSING, NULL, NULL, err);
}

CALL(mp_plan_quantize)
{
    const mp_quantize_options options = {
        .size = sizeof options, .scheme = MP_SCHEME_MXFP8, .style = "none"};
    mp_plan *plan;
    return mp_plan_quantize(&plan, opened(), &options, err);
}

CALL(mp_compress)
{
    const mp_compress_options options = {.size = sizeof(mp_compress_options)};
    return mp_compress(MISSING, MISSING "/out", &options, MP_RUN_FRESH, NULL, NULL, err);
}

CALL(mp_run_finish)
{
    char *how;
    return mp_run_finish(MISSING "/out", &how, err);
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
    const mp_delta_options options = {.size = sizeof(mp_delta_options), .version = 1};
    return mp_delta_write(MISSING, FIXTURE, MISSING "/out", &options, MP_RUN_FRESH, NULL, NULL,
                          err);
}

CALL(mp_delta_fold)
{
    const mp_delta_options options = {.size = sizeof(mp_delta_options)};
    const char *const deltas[] = {MISSING};
    return mp_delta_fold(deltas, 1, MISSING "/out", &options, MP_RUN_FRESH, NULL, NULL, err);
}

CALL(mp_delta_apply)
{
    const char *const deltas[] = {MISSING};
    return mp_delta_apply(FIXTURE, deltas, 1, MISSING "/out", NULL, MP_RUN_FRESH, NULL, err);
}

CALL(mp_plan_update)
{
    const char *const deltas[] = {MISSING};
    mp_plan *plan;
    return mp_plan_update(&plan, MISSING, deltas, 1, FIXTURE, NULL, NULL, err);
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
    return mp_verify(MISSING,
                     &(mp_verify_options){.size = sizeof(mp_verify_options), .layers = "0"}, NULL,
                     &report, err);
}

/* ------------------------------------------------------------------------ */

const failing_call failing_calls[] = {
    ROW(mp_read_text),
    ROW(mp_kernels_check),
    ROW(mp_checkpoint_open),
    ROW(mp_tensor_read),
    ROW(mp_safetensors_header),
    ROW(mp_manifest_load),
    ROW(mp_catalog_open),
    ROW(mp_catalog_check_sound),
    ROW(mp_catalog_choose),
    ROW(mp_decode_rows),
    ROW(check),
    ROW(mp_layer_open),
    ROW(mp_layer_choose),
    ROW(mp_layer_forward),
    ROW(mp_manifest_shape),
    ROW(mp_pack_layer),
    ROW(mp_pack_open),
    ROW(mp_pack_read),
    ROW(mp_diff),
    ROW(mp_plan_repack),
    ROW(mp_repack),
    ROW(mp_plan_run),
    ROW(mp_plan_unpack),
    ROW(mp_plan_quantize),
    ROW(mp_compress),
    ROW(mp_compress_measure),
    ROW(mp_run_finish),
    ROW(mp_checksums_write),
    ROW(mp_checksums_check),
    ROW(mp_delta_write),
    ROW(mp_delta_fold),
    ROW(mp_delta_apply),
    ROW(mp_delta_verify),
    ROW(mp_plan_update),
    ROW(mp_quantize_errors),
    ROW(mp_verify),
    ROW(mp_snapshot_find),
    ROW(mp_snapshot_open),
};

const size_t num_failing_calls = sizeof failing_calls / sizeof failing_calls[0];
