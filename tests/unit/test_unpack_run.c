/* SPDX-License-Identifier: Apache-2.0 */
/* Unpacking a part of a pack, packs that are not whole, and runs that are interrupted. */
#include "unpack_files.h"

#include "pack/manifest.h"
#include "write/unpack.h"

TestSuite(unpack_run, .init = init, .fini = finish);

Test(unpack_run, layers_that_are_asked_for)
{
    make_small_pack(NOTHING_ELSE);
    unpack((mp_unpack_options){.layers = "1"});
    expect_source_but("layers.0.");
    cr_assert_str_eq(unpacking.warnings.text[0], "1 of the model's 2 MoE layers are unpacked");
}

Test(unpack_run, files_of_a_size)
{
    make_small_pack(NOTHING_ELSE);
    unpack((mp_unpack_options){.max_shard_size = 100000});
    cr_assert_gt(unpacking.work.num_files, 2);
    for (size_t f = 0; f < unpacking.work.num_files; f++)
        cr_assert_leq(unpacking.work.files[f].bytes, 100000 + unpacking.work.files[f].header_bytes);
    expect_source_but(NULL);
}

static void remove_rank(const char *name)
{
    cr_assert_eq(mp_remove_tree(in_dir(name), &err), 0);
}

/* Five experts and five more copies of them on two ranks: either has all. */
Test(unpack_run, one_rank_that_has_every_expert)
{
    make_small_pack((mp_repack_options){.ep = 2, .redundant = 5});
    remove_rank("packed/rank-000");
    unpack((mp_unpack_options){0});
    expect_source_but(NULL);
}

Test(unpack_run, ranks_that_lack_an_expert)
{
    make_small_pack((mp_repack_options){.ep = 5});
    remove_rank("packed/rank-003");
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), MP_ERR_INPUT);
    cr_assert_str_eq(
        err.message,
        "layers.0: expert 3 is on no rank that is present (4 of 5 are): add the others");
}

Test(unpack_run, no_rank_at_all)
{
    char message[1024];

    make_small_pack((mp_repack_options){.ep = 1});
    remove_rank("packed/rank-000");
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), MP_ERR_INPUT);
    snprintf(message, sizeof message, "\"%s\": none of its ranks (1) is present", in_dir("packed"));
    cr_assert_str_eq(err.message, message);
}

Test(unpack_run, what_is_no_pack)
{
    char message[1024];

    cr_assert_eq(plan_unpack((mp_unpack_options){0}), MP_ERR_IO);
    cr_assert_not_null(strstr(err.message, "No such file or directory"), "%s", err.message);
    cr_assert_eq(mp_make_dir(in_dir("packed"), &err), 0);
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), MP_ERR_INPUT);
    snprintf(message, sizeof message, "\"%s\" is not a pack: it has no moepack.json",
             in_dir("packed"));
    cr_assert_str_eq(err.message, message);
}

Test(unpack_run, another_placement)
{
    char *text;

    make_small_pack(NOTHING_ELSE);
    cr_assert_eq(mp_read_text(in_dir("packed/placement.json"), 1 << 20, &text, NULL, &err), 0);
    *strchr(text, '1') = '2';
    put_text("packed/placement.json", text);
    free(text);
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), MP_ERR_INPUT);
    cr_assert_eq(strncmp(err.message, "placement.json: changed: its xxh3 is ", 37), 0, "%s",
                 err.message);
}

/* ------------------------------------------------------------------------
 * Manifests that say what cannot be
 */

static void set_text(char **text, const char *to)
{
    free(*text);
    *text = strdup(to);
}

static void of_scheme(mp_manifest *m)
{
    m->forms[0].scheme = MP_SCHEME_NVFP4;
}

static void fused(mp_manifest *m)
{
    m->forms[0].fusion = MP_FUSION_ROWS;
}

static void of_matrix(mp_manifest *m)
{
    m->forms[0].tensors[0].matrix = MP_GATE_UP;
}

static void of_shape(mp_manifest *m)
{
    m->forms[0].tensors[0].shape[0]++;
}

static void of_role(mp_manifest *m)
{
    m->forms[0].tensors[1].role = MP_ROLE_BIAS;
}

static void of_offset(mp_manifest *m)
{
    m->forms[0].tensors[1].role = MP_ROLE_OFFSET;
}

static void of_shape_role(mp_manifest *m)
{
    m->forms[0].tensors[1].role = MP_ROLE_SHAPE;
}

static void of_two_weights(mp_manifest *m)
{
    mp_form_tensor *scale = &m->forms[0].tensors[1];

    scale->role = MP_ROLE_WEIGHT;
    scale->dtype = MP_I8;
    scale->shape[1] = 128;
}

static void of_scale_shape(mp_manifest *m)
{
    m->forms[0].tensors[1].shape[1] = 9;
}

static void of_blocks(mp_manifest *m)
{
    m->forms[0].block_cols = 16;
}

static void of_target(mp_manifest *m)
{
    set_text(&m->target, "megamoe");
}

static void of_target_version(mp_manifest *m)
{
    m->target_version = 7;
}

static void of_nz(mp_manifest *m)
{
    m->nz = true;
}

static void of_size(mp_manifest *m)
{
    m->hidden_size = 1 << 21;
}

static void of_physical(mp_manifest *m)
{
    m->num_physical = 9;
}

static void of_shared(mp_manifest *m)
{
    m->shared = MP_SHARED_FUSED;
    m->num_shared_experts = 2;
}

static void of_wide(mp_manifest *m)
{
    m->moe_intermediate_size = 256;
}

/* Changes the manifest and seals it again. */
static void change_manifest(void (*change)(mp_manifest *m))
{
    mp_manifest m;
    char *text;

    cr_assert_eq(mp_manifest_load(&m, in_dir("packed"), &err), 0, "%s", err.message);
    change(&m);
    cr_assert_eq(mp_manifest_text(&m, &text, &err), 0, "%s", err.message);
    put_text("packed/moepack.json", text);
    free(text);
    mp_manifest_release(&m);
}

#define TENSOR "moepack.json: layers.0.ffn.experts.{}.w1."

Test(unpack_run, manifests_that_are_wrong)
{
    static const struct {
        void (*change)(mp_manifest *m);
        mp_code code;
        const char *message;
    } cases[] = {
        {of_scheme, MP_ERR_INPUT, "moepack.json: layers.0: experts of mxfp4 in a form of nvfp4"},
        {fused, MP_ERR_INPUT, TENSOR "weight: matrix \"gate\" of experts that are fused"},
        {of_matrix, MP_ERR_INPUT,
         TENSOR "weight: matrix \"gate_up\" of experts that are not fused"},
        {of_shape, MP_ERR_INPUT, TENSOR "weight: I8 [129, 128] has 16512 bytes, expected 16384"},
        {of_role, MP_ERR_UNSUPPORTED, TENSOR "scale: megamoe-w4a8 holds no bias of such experts"},
        {of_offset, MP_ERR_UNSUPPORTED,
         TENSOR "scale: megamoe-w4a8 holds no offset of such experts"},
        {of_shape_role, MP_ERR_UNSUPPORTED, TENSOR "scale: a shape of F8_E8M0 cannot be written"},
        {of_two_weights, MP_ERR_INPUT,
         "moepack.json: layers.0: a form without a scale of \"gate\""},
        {of_scale_shape, MP_ERR_INPUT,
         TENSOR "scale: F8_E8M0 [128, 9] has 1152 bytes, expected 1024"},
        {of_blocks, MP_ERR_INPUT,
         "moepack.json: layers.0: a form in blocks of 1x16, mxfp4 has 1x32"},
        {of_target, MP_ERR_UNSUPPORTED,
         "moepack.json: this version does not know target megamoe/1"},
        {of_target_version, MP_ERR_UNSUPPORTED,
         "moepack.json: this version does not know target megamoe-w4a8/7"},
        {of_nz, MP_ERR_UNSUPPORTED,
         "moepack.json: this version does not know target megamoe-w4a8/1 in FRACTAL_NZ form"},
        {of_size, MP_ERR_INPUT, "moepack.json: sizes 2097152 and 128 are over 1048576"},
        {of_physical, MP_ERR_INPUT, "placement.json: 6 physical experts, the manifest says 9"},
        {of_shared, MP_ERR_INPUT,
         "moepack.json: shared experts are fused, but shared_forms is missing"},
        {of_wide, MP_ERR_INPUT,
         "rank-000: layers.0.experts.l1_weight: I8 [2, 256, 128], expected I8 [2, 512, 128]"},
    };

    make_small_pack(NOTHING_ELSE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t length;
        char *kept;

        cr_assert_eq(mp_read_text(in_dir("packed/moepack.json"), 1 << 20, &kept, &length, &err), 0);
        change_manifest(cases[i].change);
        cr_assert_eq(plan_unpack((mp_unpack_options){0}), cases[i].code, "case %zu: %s", i,
                     err.message);
        cr_assert_str_eq(err.message, cases[i].message);
        put_file("packed/moepack.json", kept, length);
        free(kept);
    }
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), 0, "%s", err.message);
}

Test(unpack_run, a_manifest_that_was_edited)
{
    uint64_t length;
    char *text;

    make_small_pack(NOTHING_ELSE);
    cr_assert_eq(mp_read_text(in_dir("packed/moepack.json"), 1 << 20, &text, &length, &err), 0);
    *strstr(text, "256") = '3';
    put_file("packed/moepack.json", text, length);
    free(text);
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), MP_ERR_INPUT);
    cr_assert_eq(strncmp(err.message, "moepack.json: changed: its digest is ", 37), 0, "%s",
                 err.message);
}

/* ------------------------------------------------------------------------
 * Running
 */

/* A file of the result as text; null if there is none. */
static char *text_of(const char *out, const char *name, uint64_t *length)
{
    char path[256], *text;

    snprintf(path, sizeof path, "%s/%s", out, name);
    return mp_read_text(in_dir(path), 1 << 28, &text, length, &err) == 0 ? text : NULL;
}

static void expect_same_file(const char *name)
{
    uint64_t a, b;
    char *x = text_of("unpacked", name, &a), *y = text_of("other", name, &b);

    cr_assert(x && y && a == b && memcmp(x, y, a) == 0, "%s", name);
    free(x);
    free(y);
}

static void stop_after(void *user, uint64_t done, uint64_t total)
{
    int *cancel = user;

    if (done > total / 3)
        __atomic_store_n(cancel, 1, __ATOMIC_RELEASE);
}

/* Interrupted and resumed, it is the same to the byte. */
Test(unpack_run, resumes)
{
    int cancel = 0;
    mp_context context = {
        .threads = 2, .cancel = &cancel, .progress = stop_after, .progress_user = &cancel};
    mp_unpack_options options = {.max_shard_size = 200000};

    make_small_pack(NOTHING_ELSE);
    unpack(options);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("other"), MP_RUN_FRESH, &context, &err),
                 MP_ERR_CANCELLED);
    cr_assert(mp_path_exists(in_dir("other.partial/journal")));
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("other"), MP_RUN_RESUME, NULL, &err), 0,
                 "%s", err.message);
    for (size_t f = 0; f < unpacking.work.num_files; f++)
        expect_same_file(unpacking.work.files[f].path);
    expect_same_file("model.safetensors.index.json");
    expect_same_file("moepack-unpack.json");
    cr_assert_not(mp_path_exists(in_dir("other/journal")));
}

Test(unpack_run, takes_no_other_pack_for_its_own)
{
    int cancel = 1;
    mp_context context = {.threads = 1, .cancel = &cancel};

    make_small_pack(NOTHING_ELSE);
    unpack((mp_unpack_options){0});
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("other"), MP_RUN_FRESH, &context, &err),
                 MP_ERR_CANCELLED);
    remove_rank("packed");
    pack("megamoe-w4a4", NOTHING_ELSE);
    cr_assert_eq(plan_unpack((mp_unpack_options){0}), 0);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("other"), MP_RUN_RESUME, NULL, &err),
                 MP_ERR_INPUT);
    cr_assert_eq(strncmp(err.message, "cannot resume: the interrupted run had \"unpack ", 47), 0,
                 "%s", err.message);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_RESUME, NULL, &err),
                 MP_ERR_INPUT);
    cr_assert_not_null(
        strstr(err.message, "is complete and was made on other terms: it has \"unpack "), "%s",
        err.message);
}

Test(unpack_run, leaves_other_directories_alone)
{
    make_small_pack(NOTHING_ELSE);
    unpack((mp_unpack_options){0});
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("packed"), MP_RUN_FORCE, NULL, &err),
                 MP_ERR_USAGE);
    cr_assert_not_null(strstr(err.message, "is not an unpacked checkpoint: not replaced"), "%s",
                       err.message);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_FRESH, NULL, &err),
                 MP_ERR_USAGE);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_RESUME, NULL, &err), 0,
                 "nothing is left to do: %s", err.message);
    cr_assert_eq(mp_unpack_plan_run(&unpacking, in_dir("unpacked"), MP_RUN_FORCE, NULL, &err), 0,
                 "%s", err.message);
    expect_source_but(NULL);
}
