/* SPDX-License-Identifier: Apache-2.0 */
/* The upper folders when memory runs out: catalog, plan, manifest, a whole repack. And how
 * much of it wild numbers in a file can make us ask for. */
#include <criterion/criterion.h>

#include <limits.h>

#include <moepack/artifact.h>
#include <moepack/pack.h>

#include "failing_memory.h"
#include "model_files.h"

#include "checkpoint/complete.h"
#include "pack/manifest.h"
#include "pack/pack.h"
#include "write/plan.h"

#include "../../cmd/charts.h"

static const mp_context one_thread = {.threads = 1};
static mp_repack_plan plan;
static char *text;

static void finish(void)
{
    mp_repack_plan_release(&plan);
    free(text);
    remove_model_scratch();
}

TestSuite(memory_pack, .init = make_model_scratch, .fini = finish);

/* Two layers of three experts, of which the second is a block of its own. */
static void put_source(void)
{
    add_fp4_layer("layers.0", 3, 128, 128);
    add_fp4_layer("mtp.0", 3, 128, 128);
    put_model("model.safetensors");
    put_text("config.json", "{\"model_type\": \"deepseek_v4\", \"n_routed_experts\": 3,"
                            "\"num_hidden_layers\": 2, \"mlp_only_layers\": [1]}");
}

/* ------------------------------------------------------------------------
 * Catalog
 */

static int open_catalog(mp_error *e)
{
    int rc = mp_catalog_open(&catalog, dir, &one_thread, e);

    if (rc == 0) {
        cr_assert_eq(catalog.problems.count, 0);
        cr_assert_eq(catalog.num_layers, 2);
        cr_assert_eq(catalog.expert_tensors, 36);
        cr_assert_eq(catalog.layers[1].num_experts, 3);
        cr_assert_str_eq(catalog.layers[1].prefix, "mtp.0");
        cr_assert_eq(catalog.config.num_dense_layers, 2);
    }
    mp_catalog_release(&catalog);
    return rc;
}

Test(memory_pack, opening_a_catalog)
{
    put_source();
    cr_assert_gt(memory_exhaust(open_catalog), 20);
}

/* A problem whose text cannot be stored is still a problem. */
static int open_catalog_with_problems(mp_error *e)
{
    int rc = mp_catalog_open(&catalog, dir, &one_thread, e);

    if (rc == 0) {
        mp_error why;

        cr_assert_eq(catalog.problems.count, 2);
        cr_assert_eq(mp_catalog_check(&catalog, &why), MP_ERR_INPUT);
    }
    mp_catalog_release(&catalog);
    return rc;
}

Test(memory_pack, opening_a_catalog_with_problems)
{
    add_fp4_layer("layers.0", 3, 256, 128);
    drop_tensor("layers.0.ffn.experts.1.w1.weight");
    drop_tensor("layers.0.ffn.experts.2.w3.scale");
    put_model("model.safetensors");
    cr_assert_gt(memory_exhaust(open_catalog_with_problems), 15);
}

/* ------------------------------------------------------------------------
 * Plan
 */

static mp_repack_options options_for(uint32_t ep, uint32_t redundant)
{
    return (mp_repack_options){
        .target = mp_target_find("megamoe-w4a8"),
        .ep = ep,
        .redundant = redundant,
        .max_shard_size = 60000,
    };
}

static int make_plan(mp_error *e)
{
    mp_repack_options options = options_for(2, 1);
    int rc = mp_repack_plan_init(&plan, &catalog, &options, e);

    if (rc == 0) {
        cr_assert_eq(plan.work.num_units, 12);
        cr_assert_eq(plan.work.num_outputs, 16);
        cr_assert_eq(plan.work.num_files, 4);
        cr_assert_eq(plan.layers[1].places.first[3], 4);
        for (size_t f = 0; f < plan.work.num_files; f++)
            cr_assert(plan.work.files[f].path && plan.work.files[f].header);
    }
    mp_repack_plan_release(&plan);
    return rc;
}

Test(memory_pack, making_a_plan)
{
    put_source();
    expect_model();
    cr_assert_gt(memory_exhaust(make_plan), 40);
}

#define MANIFEST_SIZE 65536

/* Reads the manifest that a run leaves; it holds the digests of everything else. */
static void read_manifest(char manifest[MANIFEST_SIZE])
{
    FILE *f = fopen(in_dir("out/" MP_MANIFEST_NAME), "r");
    size_t n;

    cr_assert_not_null(f);
    n = fread(manifest, 1, MANIFEST_SIZE - 1, f);
    cr_assert_gt(n, 0);
    manifest[n] = '\0';
    fclose(f);
}

static char want[MANIFEST_SIZE];

/* Runs the plan; where that succeeds, its output is the same every time. */
static int run_plan(mp_error *e)
{
    static char have[MANIFEST_SIZE];
    int rc = mp_repack_plan_run(&plan, in_dir("out"), MP_RUN_FORCE, &one_thread, e);

    if (rc == 0) {
        read_manifest(have);
        cr_assert_str_eq(have, want);
    }
    if (mp_path_exists(in_dir("out")))
        cr_assert_eq(mp_remove_tree(in_dir("out"), &err), 0);
    return rc;
}

Test(memory_pack, running_a_plan)
{
    mp_repack_options options = options_for(1, 0);

    memory_include_jansson();
    add_fp4_expert("layers.0", 0, 128, 128);
    expect_model();
    cr_assert_eq(mp_repack_plan_init(&plan, &catalog, &options, &err), 0);
    cr_assert_eq(mp_repack_plan_run(&plan, in_dir("out"), MP_RUN_FORCE, &one_thread, &err), 0);
    read_manifest(want);
    cr_assert_gt(memory_exhaust(run_plan), 150);
}

static char *drawing;

/* Opens what was written and draws it, the same every time. */
static int open_and_draw(mp_error *e)
{
    mp_pack pack;
    char *svg = NULL;
    int rc = mp_pack_load(&pack, in_dir("out"), NULL, &one_thread, e);

    if (rc == 0)
        rc = pack_svg(&pack, &svg, e);
    if (rc == 0)
        cr_assert_str_eq(svg, drawing);
    free(svg);
    mp_pack_unload(&pack);
    return rc;
}

Test(memory_pack, opening_and_drawing_a_pack)
{
    mp_repack_options options = options_for(2, 1);
    mp_pack pack;

    put_source();
    expect_model();
    cr_assert_eq(mp_repack_plan_init(&plan, &catalog, &options, &err), 0);
    cr_assert_eq(mp_repack_plan_run(&plan, in_dir("out"), MP_RUN_FORCE, &one_thread, &err), 0);
    cr_assert_eq(mp_pack_load(&pack, in_dir("out"), NULL, &one_thread, &err), 0);
    cr_assert_eq(pack_svg(&pack, &drawing, &err), 0);
    mp_pack_unload(&pack);
    cr_assert_gt(memory_exhaust(open_and_draw), 50);
    free(drawing);
}

/* ------------------------------------------------------------------------
 * Manifest
 */

static char a[] = "a", b[] = "b";

static mp_packed_tensor tensors[] = {{a, "00112233445566778899aabbccddeeff"},
                                     {b, "ffeeddccbbaa99887766554433221100"}};
static mp_packed_file files[] = {{a, 10, tensors, 2}, {b, 20, tensors, 1}};
static mp_packed_rank ranks[] = {{0, "00000000000000000000000000000000", files, 2},
                                 {1, "00000000000000000000000000000001", files, 1}};
static mp_source_shard shards[] = {{a, 7, "22222222222222222222222222222222"},
                                   {b, 8, "33333333333333333333333333333333"}};
static char *layers[] = {a, b};
static mp_layer_error errors[] = {{a, "w13", 0.5, 6, 1, 2, 3, 0}, {a, "w2", 0.25, 12, 4, 5, 6, 7}};

static mp_form_tensor form_tensors[] = {
    {a, MP_GATE, MP_ROLE_WEIGHT, MP_I8, 2, {4, 2}},
    {b, MP_DOWN, MP_ROLE_SCALE, MP_F8_E8M0, 2, {4, 1}},
};
static mp_form forms[] = {
    {MP_SCHEME_MXFP4, MP_FUSION_NONE, false, 1, 32, form_tensors, 2},
    {MP_SCHEME_NVFP4, MP_FUSION_ROWS, true, 1, 16, form_tensors, 1},
};
static uint32_t layer_form[] = {1, 0}, shared_form[] = {0, 0};

static const mp_manifest value = {
    .tool_version = a,
    .target = b,
    .source_scheme = MP_SCHEME_BF16,
    .target_scheme = MP_SCHEME_MXFP4,
    .family = a,
    .ep_size = 2,
    .num_physical = 4,
    .shared = MP_SHARED_FUSED,
    .placement_xxh3 = "44444444444444444444444444444444",
    .config_xxh3 = "55555555555555555555555555555555",
    .shards = shards,
    .num_shards = 2,
    .layers = layers,
    .num_layers = 2,
    .forms = forms,
    .num_forms = 2,
    .layer_form = layer_form,
    .shared_form = shared_form,
    .ranks = ranks,
    .num_ranks = 2,
    .errors = errors,
    .num_errors = 2,
};

static int parse_manifest(mp_error *e)
{
    mp_manifest m = {0};
    int rc = mp_manifest_parse(&m, text, strlen(text), e);

    if (rc == 0) {
        cr_assert_eq(m.num_ranks, 2);
        cr_assert_eq(m.ranks[0].num_files, 2);
        cr_assert_eq(m.num_errors, 2);
        cr_assert_eq(m.num_shards, 2);
        cr_assert_eq(m.num_layers, 2);
        cr_assert_str_eq(m.ranks[0].files[1].tensors[0].name, a);
        cr_assert_str_eq(m.errors[1].layer, a);
        cr_assert_str_eq(m.shards[1].name, b);
        cr_assert_str_eq(m.layers[1], b);
    }
    mp_manifest_release(&m);
    return rc;
}

Test(memory_pack, parsing_a_manifest)
{
    cr_assert_eq(mp_manifest_text(&value, &text, &err), 0);
    cr_assert_gt(memory_exhaust(parse_manifest), 25);
}

/* A list that lost an item would be sealed like any other. */
static int print_manifest(mp_error *e)
{
    char *again;
    int rc = mp_manifest_text(&value, &again, e);

    cr_assert(rc == 0 || rc == MP_ERR_IO);
    if (rc == 0)
        cr_assert_str_eq(again, text);
    free(again);
    return rc;
}

Test(memory_pack, printing_a_manifest)
{
    memory_include_jansson();
    cr_assert_eq(mp_manifest_text(&value, &text, &err), 0);
    cr_assert_gt(memory_exhaust(print_manifest), 200);
}

/* ------------------------------------------------------------------------
 * No more than the file is worth
 */

/* Opens what was added, and returns the bytes that were asked for on the way. */
static size_t bytes_to_open(void)
{
    memory_account account;

    put_model("model.safetensors");
    memory_fail_at(LONG_MAX, false);
    cr_assert_eq(mp_catalog_open(&catalog, dir, &one_thread, &err), 0, "%s", err.message);
    account = memory_stop();
    cr_assert_eq(account.failures, 0);
    return account.bytes;
}

/* A thousand layers, each with the highest expert number that a single layer could have:
 * 50 MB of experts that nobody has, for a file of 100 kB. */
Test(memory_pack, wild_expert_numbers)
{
    size_t bytes;

    add_fp4_expert("layers.0", 0, 64, 32);
    for (unsigned l = 1; l < 1000; l++)
        add_tensor(MP_I8, 1, 1, "layers.%u.ffn.experts.1004.w1.weight", l);
    bytes = bytes_to_open();
    cr_assert_lt(bytes, 4 << 20, "%zu bytes", bytes);
    cr_assert_eq(catalog.num_layers, 1000);
}

/* Fused experts are as many as a shape says, which takes no data if another number is 0. */
Test(memory_pack, wild_fused_shapes)
{
    size_t bytes;

    add_bf16_expert("model.layers.0", 0, 64, 32);
    for (unsigned l = 1; l < 100; l++) {
        char name[64];

        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.gate_up_proj", l);
        add_stack(MP_BF16, 65536, 0, 64, name);
        snprintf(name, sizeof name, "model.layers.%u.mlp.experts.down_proj", l);
        add_stack(MP_BF16, 65536, 64, 0, name);
    }
    bytes = bytes_to_open();
    cr_assert_lt(bytes, 4 << 20, "%zu bytes", bytes);
    cr_assert_eq(catalog.problems.count, 99);
    cr_assert_str_eq(catalog.problems.text[0],
                     "model.layers.1.mlp.experts.gate_up_proj: shape [65536, 0, 64] does not match "
                     "[65536, 64, 0] of \"model.layers.1.mlp.experts.down_proj\"");
}

Test(memory_pack, wild_numbers_in_the_config)
{
    size_t bytes;

    add_fp4_expert("layers.0", 0, 64, 32);
    put_text("config.json",
             "{\"num_hidden_layers\": 9000000000000000000, \"n_routed_experts\": 9000000000000,"
             "\"n_shared_experts\": 9000000000000000000, \"vocab_size\": 9000000000000000000, "
             "\"model_type\": \"deepseek_v4\"}");
    bytes = bytes_to_open();
    cr_assert_lt(bytes, 1 << 20, "%zu bytes", bytes);
    cr_assert_eq(catalog.problems.count, 3);
}
