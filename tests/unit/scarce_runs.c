/* SPDX-License-Identifier: Apache-2.0 */
/* Calls on whole directories: artifact, pack, compress, delta, diff, verify, work, synth. What was
 * written of a call that failed is taken away before the next. */
#include "scarce_calls.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "forward/reference.h"
#include "pack/manifest.h"
#include "synth/synth.h"

/* ------------------------------------------------------------------------
 * Files
 */

static char scratch[64];

const char *in_scratch(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % 4];

    if (!scratch[0]) {
        snprintf(scratch, sizeof scratch, "%s/moepack-scarce-XXXXXX", P_tmpdir);
        cr_assert_not_null(mkdtemp(scratch));
    }
    snprintf(path, sizeof paths[0], "%s/%s", scratch, name);
    return path;
}

void remove_scratch_of_calls(void)
{
    if (scratch[0])
        cr_assert_eq(mp_remove_tree(scratch, NULL), 0);
}

/* Where calls write, without what others have left there. */
static const char *fresh(const char *name)
{
    char partial[256];
    const char *out = in_scratch(name);

    snprintf(partial, sizeof partial, "%s.partial", out);
    if (mp_path_exists(out))
        cr_assert_eq(mp_remove_tree(out, NULL), 0);
    if (mp_path_exists(partial))
        cr_assert_eq(mp_remove_tree(partial, NULL), 0);
    return out;
}

static mp_synth_options synth_options(unsigned seed)
{
    return (mp_synth_options){.family = "qwen3_moe",
                              .scheme = MP_SCHEME_BF16,
                              .hidden_size = 32,
                              .intermediate_size = 16,
                              .num_experts = 2,
                              .top_k = 1,
                              .num_layers = 1,
                              .vocab_size = 4,
                              .seed = seed};
}

const char *step(unsigned seed)
{
    static char dirs[4][256];

    if (!dirs[seed][0]) {
        const mp_synth_options options = synth_options(seed);
        char name[16];
        snprintf(name, sizeof name, "step-%u", seed);
        snprintf(dirs[seed], sizeof dirs[0], "%s", in_scratch(name));
        cr_assert_eq(mp_synth(&options, dirs[seed], NULL, NULL), 0);
    }
    return dirs[seed];
}

static mp_catalog *opened(void)
{
    static mp_catalog catalog;

    if (!catalog.layers)
        cr_assert_eq(mp_catalog_open(&catalog, step(1), NULL, NULL), 0);
    return &catalog;
}

static const mp_repack_options *repack_options(void)
{
    static mp_repack_options options = {.size = sizeof options, .ep = 2};

    options.target = mp_target_find("deepep-bf16");
    return &options;
}

const char *packed_step(unsigned seed)
{
    static char dirs[4][256];

    if (!dirs[seed][0]) {
        char name[16];
        snprintf(name, sizeof name, "packed-%u", seed);
        snprintf(dirs[seed], sizeof dirs[0], "%s", in_scratch(name));
        cr_assert_eq(mp_repack(step(seed), dirs[seed], repack_options(), NULL, NULL), 0);
    }
    return dirs[seed];
}

static int write_delta(const char *out, uint64_t version, mp_error *err)
{
    const mp_delta_options options = {
        .size = sizeof options, .version = version, .encoding = MP_DELTA_XOR};
    mp_delta_report report = {0};
    int rc = mp_delta_write(step((unsigned)version), step((unsigned)version + 1), out, &options,
                            MP_RUN_FRESH, &one_thread, &report, err);
    mp_problems_release(&report.unlike);
    return rc;
}

/* From step 1, which says no number, so 0, to step 2. */
const char *changes(void)
{
    static char dir[256];

    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s", in_scratch("delta"));
        cr_assert_eq(write_delta(dir, 1, NULL), 0);
    }
    return dir;
}

/* ------------------------------------------------------------------------
 * artifact
 */

static const mp_pack *opened_pack(void)
{
    static mp_pack *pack;

    if (!pack)
        cr_assert_eq(mp_pack_open(&pack, packed_step(1), NULL, NULL, NULL), 0);
    return pack;
}

SCARCE(mp_manifest_text)
{
    char *text = NULL;
    int rc = mp_manifest_text(mp_pack_get(opened_pack())->manifest, &text, err);
    if (rc == 0)
        free(text);
    return rc;
}

SCARCE(mp_manifest_parse)
{
    static char *text;
    mp_manifest manifest;
    if (!text)
        cr_assert_eq(mp_manifest_text(mp_pack_get(opened_pack())->manifest, &text, NULL), 0);
    int rc = mp_manifest_parse(&manifest, text, strlen(text), err);
    if (rc == 0)
        mp_manifest_release(&manifest);
    return rc;
}

SCARCE(mp_manifest_load)
{
    mp_manifest manifest;
    int rc = mp_manifest_load(&manifest, packed_step(1), err);
    if (rc == 0)
        mp_manifest_release(&manifest);
    return rc;
}

SCARCE(mp_manifest_shape)
{
    mp_shape shape;
    return mp_manifest_shape(mp_pack_get(opened_pack())->manifest, &shape, err);
}

SCARCE(mp_pack_open)
{
    mp_pack *pack;
    int rc = mp_pack_open(&pack, packed_step(1), NULL, &one_thread, err);
    mp_pack_release(pack);
    return rc;
}

SCARCE(mp_pack_layer)
{
    size_t layer;
    return mp_pack_layer(opened_pack(), "0", &layer, err);
}

SCARCE(mp_pack_read)
{
    const mp_slot_set *set = &opened_pack()->shape.sets[MP_SET_SLOTS];
    char bytes[8];
    return mp_pack_read(opened_pack(), 0, (mp_place){1, 0}, set, set->tensors, 4, sizeof bytes,
                        bytes, err);
}

SCARCE(mp_packed_experts_init)
{
    mp_packed_experts experts;
    return mp_packed_experts_init(&experts, opened_pack(), 0, err);
}

SCARCE(mp_packed_route)
{
    mp_packed_experts experts;
    const int32_t ids[] = {0, 1};
    const float weights[] = {1, 1};
    int32_t slot_ids[2];
    float slot_weights[2];
    cr_assert_eq(mp_packed_experts_init(&experts, opened_pack(), 0, NULL), 0);
    return mp_packed_route(&experts, &(mp_packed_dispatch){0}, ids, weights, 2, 1, 0, slot_ids,
                           slot_weights, err);
}

/* ------------------------------------------------------------------------
 * pack
 */

SCARCE(mp_repack)
{
    return mp_repack(step(1), fresh("out"), repack_options(), &one_thread, err);
}

SCARCE(mp_plan_repack)
{
    mp_plan *plan;
    int rc = mp_plan_repack(&plan, opened(), repack_options(), err);
    mp_plan_release(plan);
    return rc;
}

SCARCE(mp_plan_run)
{
    static mp_plan *plan;
    if (!plan)
        cr_assert_eq(mp_plan_repack(&plan, opened(), repack_options(), NULL), 0);
    return mp_plan_run(plan, fresh("out"), MP_RUN_FRESH, &one_thread, err);
}

SCARCE(mp_plan_unpack)
{
    mp_plan *plan;
    int rc = mp_plan_unpack(&plan, packed_step(1), NULL, &one_thread, err);
    mp_plan_release(plan);
    return rc;
}

SCARCE(run_of_unpacking)
{
    static mp_plan *plan;
    if (!plan)
        cr_assert_eq(mp_plan_unpack(&plan, packed_step(1), NULL, &one_thread, NULL), 0);
    return mp_plan_run(plan, fresh("out"), MP_RUN_FRESH, &one_thread, err);
}

static int plan_quantize(mp_plan **plan, mp_error *err)
{
    const mp_quantize_options options = {.size = sizeof options, .scheme = MP_SCHEME_INT8_CHANNEL};
    return mp_plan_quantize(plan, opened(), &options, err);
}

SCARCE(mp_plan_quantize)
{
    mp_plan *plan;
    int rc = plan_quantize(&plan, err);
    mp_plan_release(plan);
    return rc;
}

SCARCE(run_of_quantizing)
{
    static mp_plan *plan;
    if (!plan)
        cr_assert_eq(plan_quantize(&plan, NULL), 0);
    return mp_plan_run(plan, fresh("out"), MP_RUN_FRESH, &one_thread, err);
}

SCARCE(mp_quantize_errors)
{
    static bool written;
    mp_layer_error *errors = NULL;
    size_t count = 0;
    if (!written)
        written = scarce_run_of_quantizing(NULL) == 0;
    int rc = mp_quantize_errors(in_scratch("out"), &errors, &count, err);
    if (rc == 0)
        mp_quantize_errors_free(errors, count);
    return rc;
}

/* ------------------------------------------------------------------------
 * compress, delta, diff, verify
 */

static int compress(mp_error *err)
{
    mp_compress_report report;
    return mp_compress(step(1), fresh("out"),
                       &(mp_compress_options){.size = sizeof(mp_compress_options), .level = 1},
                       MP_RUN_FRESH, &one_thread, &report, err);
}

SCARCE(mp_compress)
{
    return compress(err);
}

SCARCE(mp_compress_measure)
{
    static bool written;
    mp_compress_report report;
    if (!written)
        written = compress(NULL) == 0;
    return mp_compress_measure(in_scratch("out"), &one_thread, &report, err);
}

SCARCE(mp_delta_write)
{
    step(1);
    step(2);
    return write_delta(fresh("out"), 1, err);
}

SCARCE(mp_delta_fold)
{
    static char second[256];
    const char *const deltas[] = {changes(), second};
    mp_delta_report report = {0};
    if (!second[0]) {
        snprintf(second, sizeof second, "%s", in_scratch("second"));
        cr_assert_eq(write_delta(second, 2, NULL), 0);
    }
    int rc = mp_delta_fold(deltas, 2, fresh("out"),
                           &(mp_delta_options){.size = sizeof(mp_delta_options)}, MP_RUN_FRESH,
                           &one_thread, &report, err);
    mp_problems_release(&report.unlike);
    return rc;
}

SCARCE(mp_delta_apply)
{
    const char *const deltas[] = {changes()};
    return mp_delta_apply(step(1), deltas, 1, fresh("out"), NULL, MP_RUN_FRESH, &one_thread, err);
}

SCARCE(mp_delta_verify)
{
    mp_verify_report report;
    int rc = mp_delta_verify(changes(), step(1), &one_thread, &report, err);
    if (rc == 0)
        cr_assert_eq(report.total_faults, 0);
    if (rc == 0)
        mp_verify_report_release(&report);
    return rc;
}

static int plan_update(mp_plan **plan, mp_error *err)
{
    const char *const deltas[] = {changes()};
    return mp_plan_update(plan, packed_step(1), deltas, 1, step(1), NULL, &one_thread, err);
}

SCARCE(mp_plan_update)
{
    mp_plan *plan;
    int rc = plan_update(&plan, err);
    mp_plan_release(plan);
    return rc;
}

SCARCE(run_of_an_update)
{
    static mp_plan *plan;
    if (!plan)
        cr_assert_eq(plan_update(&plan, NULL), 0);
    return mp_plan_run(plan, fresh("out"), MP_RUN_FRESH, &one_thread, err);
}

SCARCE(mp_diff)
{
    mp_diff_report report;
    int rc = mp_diff(step(1), packed_step(1), NULL, &one_thread, &report, err);
    if (rc == 0)
        mp_diff_report_release(&report);
    return rc;
}

SCARCE(mp_verify)
{
    const mp_verify_options options = {
        .size = sizeof options, .level = MP_VERIFY_NUMERIC, .source = step(1), .tokens = 1};
    mp_verify_report report;
    int rc = mp_verify(packed_step(1), &options, &one_thread, &report, err);
    if (rc == 0)
        cr_assert_eq(report.total_faults, 0);
    if (rc == 0)
        mp_verify_report_release(&report);
    return rc;
}

/* ------------------------------------------------------------------------
 * work, synth
 */

/* A run of one part, which is done and not finished. */
static void do_a_part(const char *out)
{
    mp_repack_options options = *repack_options();

    options.part = (mp_part){1, 1, "repack of step 1"};
    cr_assert_eq(mp_repack(step(1), out, &options, &one_thread, NULL), 0);
}

SCARCE(mp_run_finish)
{
    static char out[256];
    char *how = NULL;
    if (!out[0]) {
        snprintf(out, sizeof out, "%s", in_scratch("parts"));
        do_a_part(out);
    }
    int rc = mp_run_finish(out, &how, err);
    if (rc == 0)
        free(how);
    return rc;
}

/* What was finished but for the name. */
SCARCE(finish_of_a_name)
{
    char partial[256];
    const char *out = in_scratch("published");

    snprintf(partial, sizeof partial, "%s.partial", packed_step(2));
    if (mp_path_exists(out))
        cr_assert_eq(rename(out, partial), 0);
    else if (!mp_path_exists(partial))
        cr_assert_eq(rename(packed_step(2), partial), 0);
    char *how;
    int rc = mp_run_finish(packed_step(2), &how, err);
    if (rc == 0)
        cr_assert_eq(rename(packed_step(2), out), 0);
    return rc;
}

SCARCE(mp_checksums_write)
{
    return mp_checksums_write(step(1), &one_thread, err);
}

SCARCE(mp_checksums_check)
{
    static bool written;
    mp_problems problems = {0};
    uint64_t files;
    if (!written)
        written = mp_checksums_write(step(1), NULL, NULL) == 0;
    int rc = mp_checksums_check(step(1), &one_thread, &problems, &files, err);
    cr_assert_eq(problems.count, 0);
    mp_problems_release(&problems);
    return rc;
}

SCARCE(mp_synth)
{
    const mp_synth_options options = synth_options(3);
    return mp_synth(&options, fresh("out"), &one_thread, err);
}

const scarce_call scarce_runs[] = {
    SCARCE_ROW(mp_manifest_text),    SCARCE_ROW(mp_manifest_parse),
    SCARCE_ROW(mp_manifest_load),    SCARCE_ROW(mp_manifest_shape),
    SCARCE_ROW(mp_pack_open),        SCARCE_ROW(mp_pack_layer),
    SCARCE_ROW(mp_pack_read),        SCARCE_ROW(mp_packed_experts_init),
    SCARCE_ROW(mp_packed_route),     SCARCE_ROW(mp_repack),
    SCARCE_ROW(mp_plan_repack),      SCARCE_ROW(mp_plan_run),
    SCARCE_ROW(mp_plan_unpack),      SCARCE_ROW(run_of_unpacking),
    SCARCE_ROW(mp_plan_quantize),    SCARCE_ROW(run_of_quantizing),
    SCARCE_ROW(mp_quantize_errors),  SCARCE_ROW(mp_compress),
    SCARCE_ROW(mp_compress_measure), SCARCE_ROW(mp_delta_write),
    SCARCE_ROW(mp_delta_fold),       SCARCE_ROW(mp_delta_apply),
    SCARCE_ROW(mp_delta_verify),     SCARCE_ROW(mp_plan_update),
    SCARCE_ROW(run_of_an_update),    SCARCE_ROW(mp_diff),
    SCARCE_ROW(mp_verify),           SCARCE_ROW(mp_run_finish),
    SCARCE_ROW(finish_of_a_name),    SCARCE_ROW(mp_checksums_write),
    SCARCE_ROW(mp_checksums_check),  SCARCE_ROW(mp_synth),
};

const size_t num_scarce_runs = SCARCE_COUNT(scarce_runs);
