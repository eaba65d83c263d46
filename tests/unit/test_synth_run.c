/* SPDX-License-Identifier: Apache-2.0 */
/* Making synthetic checkpoints: that nothing but the options decides on their bytes, where
 * they are written, and what is refused. */
#include "synth_scratch.h"

#include <unistd.h>

#include "base/digest.h"
#include "numeric/kernels.h"
#include "synth/synth_values.h"

TestSuite(synth_run, .init = make_scratch, .fini = remove_scratch);

/* ------------------------------------------------------------------------
 * What decides on the bytes
 */

/* A digest of all tensors, and of their files where `files` is set. */
static mp_digest digest_of(const char *name, bool files)
{
    mp_checkpoint ckpt = {0};
    mp_digest digest = {{0}};
    struct {
        mp_digest before, tensor;
        uint64_t offset, shard;
        char name[96];
    } link;
    cr_assert_eq(mp_checkpoint_open(&ckpt, in_dir(name), NULL, &err), 0, "%s", err.message);
    for (size_t i = 0; i < ckpt.num_tensors; i++) {
        const mp_tensor *t = &ckpt.tensors[i];
        void *bytes = read_tensor(&ckpt, t->name);
        memset(&link, 0, sizeof(link));
        link.before = digest;
        mp_digest_of(bytes, t->bytes, &link.tensor);
        if (files) {
            link.offset = t->offset;
            link.shard = t->shard;
        }
        snprintf(link.name, sizeof(link.name), "%s", t->name);
        mp_digest_of(&link, sizeof(link), &digest);
        free(bytes);
    }
    mp_checkpoint_release(&ckpt);
    return digest;
}

static void expect_same(const char *a, const char *b, bool files)
{
    mp_digest x = digest_of(a, files), y = digest_of(b, files);
    cr_assert(mp_digest_equal(&x, &y), "%s and %s differ", a, b);
}

Test(synth_run, threads_do_not_change_a_byte)
{
    mp_synth_options options[] = {small_v4(), small_v3(), small_qwen3()};
    for (size_t i = 0; i < 3; i++) {
        static const int threads[] = {1, 2, 5};
        static const char *const names[3][3] = {
            {"a1", "a2", "a5"}, {"b1", "b2", "b5"}, {"c1", "c2", "c5"}};
        for (size_t t = 0; t < 3; t++) {
            mp_context context = {.threads = threads[t]};
            cr_assert_eq(mp_synth(&options[i], in_dir(names[i][t]), &context, &err), 0);
        }
        expect_same(names[i][0], names[i][1], true);
        expect_same(names[i][0], names[i][2], true);
    }
}

Test(synth_run, shard_size_changes_no_tensor)
{
    mp_synth_options options = small_v4();
    make(&options, "one");
    options.max_shard_size = 1;
    make(&options, "many");
    expect_same("one", "many", false);
}

/* A matrix of several tiles, the last one short: 1 MiB holds 1149 rows of 1824 columns. */
Test(synth_run, tiles_do_not_show)
{
    mp_synth_options options = small_v4();
    options.hidden_size = 1824;
    options.intermediate_size = 1248;
    options.num_experts = 1;
    options.top_k = 1;
    options.num_layers = 1;
    options.num_hash_layers = 0;
    options.num_mtp = 0;
    const mp_checkpoint *ckpt = make_and_open(&options, "v4");
    static float shapes[MP_SYNTH_SHAPES];
    static float columns[1824], row[1824];
    const char *name = "layers.0.ffn.experts.0.w1.weight";
    uint8_t *codes = read_tensor(ckpt, name);
    uint64_t key = mp_synth_key(options.seed, name);
    const mp_quant_options quant = {.rounding = MP_ROUND_OCP};
    mp_synth_shapes(shapes);
    mp_synth_columns(key, 1824, columns);
    mp_synth_values values = {shapes, columns, key};
    for (uint64_t r = 0; r < 1248; r++) {
        uint8_t want[1824 / 2], scales[1824 / 32];
        mp_synth_row(&values, r, 0, 1824, row);
        mp_kernels_for("scalar")->mxfp4_encode(row, want, scales, 1824, &quant);
        cr_assert_eq(memcmp(want, codes + r * 912, 912), 0, "row %u", (unsigned)r);
    }
    free(codes);
}

Test(synth_run, another_seed_changes_every_tensor)
{
    mp_synth_options options = small_v4();
    mp_checkpoint other = {0};
    make(&options, "other");
    options.seed++;
    const mp_checkpoint *ckpt = make_and_open(&options, "this");
    cr_assert_eq(mp_checkpoint_open(&other, in_dir("other"), NULL, &err), 0);
    for (size_t i = 0; i < ckpt->num_tensors; i++) {
        const mp_tensor *t = &ckpt->tensors[i];
        void *a = read_tensor(ckpt, t->name), *b = read_tensor(&other, t->name);
        if (t->bytes > 32) /* a few scales of powers of two may well be equal */
            cr_assert_neq(memcmp(a, b, t->bytes), 0, "%s", t->name);
        free(a);
        free(b);
    }
    mp_checkpoint_release(&other);
}

/* ------------------------------------------------------------------------
 * The directory
 */

static void expect_refused(const mp_synth_options *options, const char *path, mp_code code,
                           const char *message)
{
    err = (mp_error){0};
    cr_assert_eq(mp_synth(options, path, NULL, &err), code, "%s", err.message);
    cr_assert_eq(err.code, code);
    cr_assert_str_eq(err.message, message);
}

Test(synth_run, takes_an_empty_directory_and_slashes_behind_its_name)
{
    mp_synth_options options = small_qwen3();
    cr_assert_eq(mp_make_dir(in_dir("empty"), &err), 0);
    make(&options, "empty//");
    make(&options, "new/");
    expect_same("empty", "new", true);
    cr_assert_not(mp_path_exists(in_dir("new.partial")));
}

Test(synth_run, refuses_what_is_there)
{
    mp_synth_options options = small_qwen3();
    char message[1024];
    cr_assert_eq(mp_make_dir(in_dir("full"), &err), 0);
    cr_assert_eq(mp_write_file(in_dir("full/file"), "x", 1, &err), 0);
    snprintf(message, sizeof(message), "\"%s\" already exists and is not empty", in_dir("full"));
    expect_refused(&options, in_dir("full"), MP_ERR_IO, message);
    snprintf(message, sizeof(message), "\"%s\" already exists and is not a directory",
             in_dir("full/file"));
    expect_refused(&options, in_dir("full/file"), MP_ERR_IO, message);
    cr_assert_eq(mp_make_dir(in_dir("new.partial"), &err), 0);
    snprintf(message, sizeof(message),
             "\"%s\" already exists: another run is writing it, or it can be removed",
             in_dir("new.partial"));
    expect_refused(&options, in_dir("new"), MP_ERR_IO, message);
    cr_assert(mp_path_exists(in_dir("new.partial")));
    cr_assert_not(mp_path_exists(in_dir("new")));
    snprintf(message, sizeof(message), "cannot create \"%s.partial\": No such file or directory",
             in_dir("no/where"));
    expect_refused(&options, in_dir("no/where"), MP_ERR_IO, message);
}

Test(synth_run, refuses_a_name_that_is_none)
{
    mp_synth_options options = small_qwen3();
    cr_assert_eq(mp_make_dir(in_dir("empty"), &err), 0);
    cr_assert_eq(chdir(in_dir("empty")), 0);
    expect_refused(&options, ".", MP_ERR_USAGE, "\".\" is not a name for a new directory");
    expect_refused(&options, "", MP_ERR_USAGE, "\"\" is not a name for a new directory");
    expect_refused(&options, "./", MP_ERR_USAGE, "\"./\" is not a name for a new directory");
}

typedef struct watch {
    uint64_t calls, last, total;
    int cancel;
    uint64_t cancel_at;
} watch;

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    watch *w = user;
    cr_assert(done > w->last && done <= total);
    w->calls++;
    w->last = done;
    w->total = total;
    if (w->cancel_at && done >= w->cancel_at)
        __atomic_store_n(&w->cancel, 1, __ATOMIC_RELEASE);
}

Test(synth_run, reports_progress_up_to_the_last_byte)
{
    mp_synth_options options = small_v4();
    watch w = {0};
    mp_context context = {.threads = 2, .progress = on_progress, .progress_user = &w};
    options.max_shard_size = 100000;
    cr_assert_eq(mp_synth(&options, in_dir("v4"), &context, &err), 0, "%s", err.message);
    cr_assert_gt(w.calls, 50);
    cr_assert_eq(w.last, w.total);
    mp_checkpoint ckpt = {0};
    uint64_t bytes = 0;
    cr_assert_eq(mp_checkpoint_open(&ckpt, in_dir("v4"), NULL, &err), 0, "%s", err.message);
    for (size_t i = 0; i < ckpt.num_tensors; i++)
        bytes += ckpt.tensors[i].bytes;
    cr_assert_eq(w.total, bytes);
    mp_checkpoint_release(&ckpt);
}

Test(synth_run, leaves_nothing_when_it_is_cancelled)
{
    mp_synth_options options = small_v4();
    watch w = {.cancel_at = 300000};
    mp_context context = {
        .threads = 2, .cancel = &w.cancel, .progress = on_progress, .progress_user = &w};
    cr_assert_eq(mp_synth(&options, in_dir("v4"), &context, &err), MP_ERR_CANCELLED);
    cr_assert_geq(w.last, 300000);
    cr_assert_lt(w.last, w.total);
    cr_assert_not(mp_path_exists(in_dir("v4")));
    cr_assert_not(mp_path_exists(in_dir("v4.partial")));
}

/* ------------------------------------------------------------------------
 * Options
 */

static void expect_message(const mp_synth_options *options, mp_code code, const char *message)
{
    expect_refused(options, in_dir("never"), code, message);
    cr_assert_not(mp_path_exists(in_dir("never")));
    cr_assert_not(mp_path_exists(in_dir("never.partial")));
}

Test(synth_run, refuses_what_a_family_does_not_have)
{
    mp_synth_options o = small_qwen3();
    o.family = "llama";
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "no synthetic checkpoints of family \"llama\"; it has to be deepseek_v4, "
                   "deepseek_v3, deepseek_v2, kimi_k2, glm_moe, qwen3_moe, qwen3_vl_moe, "
                   "qwen3_next, qwen3_5_moe, mixtral, gpt_oss, minimax_m2, minimax_m3, kimi_k3 or "
                   "llama4");
    o = small_v4();
    o.scheme = MP_SCHEME_BF16;
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "experts of family \"deepseek_v4\" are mxfp4, fp8_block, nvfp4, fp8_channel, "
                   "int8_channel, mxfp8 or int4_group, not bf16");
    o = small_qwen3();
    o.family = "gpt_oss";
    o.scheme = MP_SCHEME_NVFP4;
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "experts of family \"gpt_oss\" are mxfp4 or bf16, not nvfp4");
    o = small_qwen3();
    o.scheme = MP_SCHEME_NVFP4;
    o.style = MP_STYLE_MODELSLIM;
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "experts of family \"qwen3_moe\" in nvfp4 are of style modelopt or "
                   "compressed-tensors, not modelslim");
    o = small_qwen3();
    o.num_shared_experts = 1;
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "family \"qwen3_moe\" has no shared experts; 1 asked for");
    o = small_qwen3();
    o.num_mtp = 2;
    expect_message(&o, MP_ERR_UNSUPPORTED, "family \"qwen3_moe\" has no MTP blocks; 2 asked for");
    o = small_v3();
    o.num_hash_layers = 1;
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "family \"deepseek_v3\" has no hash layers; 1 asked for");
    o = small_v4();
    o.num_dense = 1;
    o.dense_intermediate_size = 32;
    expect_message(&o, MP_ERR_UNSUPPORTED,
                   "family \"deepseek_v4\" has no dense layers; 1 asked for");
}

Test(synth_run, refuses_sizes_that_no_checkpoint_has)
{
    mp_synth_options o = small_v4();
    o.hidden_size = 0;
    expect_message(&o, MP_ERR_USAGE, "hidden size is 0; it has to be 1 to 16777216");
    o = small_v4();
    o.hidden_size = 1ull << 60;
    expect_message(&o, MP_ERR_USAGE,
                   "hidden size is 1152921504606846976; it has to be 1 to 16777216");
    o = small_v4();
    o.intermediate_size = 0;
    expect_message(&o, MP_ERR_USAGE, "intermediate size is 0; it has to be 1 to 16777216");
    o = small_v4();
    o.hidden_size = 100;
    expect_message(&o, MP_ERR_USAGE, "hidden size is 100; for mxfp4 it has to be a multiple of 32");
    o = small_v4();
    o.intermediate_size = 33;
    expect_message(&o, MP_ERR_USAGE,
                   "intermediate size is 33; for mxfp4 it has to be a multiple of 32");
    o = small_qwen3();
    o.scheme = MP_SCHEME_NVFP4;
    o.intermediate_size = 24;
    expect_message(&o, MP_ERR_USAGE, "hidden size is 200; for nvfp4 it has to be a multiple of 16");
    o = small_v4();
    o.num_experts = 0;
    expect_message(&o, MP_ERR_USAGE, "number of experts is 0; it has to be 1 to 65536");
    o = small_v4();
    o.top_k = 8;
    expect_message(&o, MP_ERR_USAGE, "top-k is 8; it has to be 1 to 7");
    o = small_v4();
    o.num_layers = 0;
    expect_message(&o, MP_ERR_USAGE, "number of layers is 0; it has to be 1 to 65536");
    o = small_v4();
    o.num_hash_layers = 3;
    expect_message(&o, MP_ERR_USAGE, "number of hash layers is 3; it has to be 0 to 2");
    o = small_v4();
    o.vocab_size = 0;
    expect_message(&o, MP_ERR_USAGE, "vocabulary size is 0; it has to be 1 to 16777216");
    o = small_v3();
    o.num_dense = 2;
    expect_message(&o, MP_ERR_USAGE, "number of dense layers is 2; it has to be 0 to 1");
    o = small_v3();
    o.dense_intermediate_size = 0;
    expect_message(&o, MP_ERR_USAGE, "dense intermediate size is 0; it has to be 1 to 16777216");
    o = small_v3();
    o.routed_scaling_factor = -1;
    expect_message(&o, MP_ERR_USAGE, "routed scaling factor is -1; it has to be 0 or more");
}

Test(synth_run, refuses_what_no_disk_holds)
{
    mp_synth_options o = small_v3();
    o.scheme = MP_SCHEME_BF16;
    o.hidden_size = 1 << 24;
    o.intermediate_size = 1 << 24;
    o.num_shared_experts = 1 << 14; /* 2^63 bytes */
    expect_message(&o, MP_ERR_USAGE,
                   "\"model.layers.1.mlp.shared_experts.gate_proj.weight\" would be too large, "
                   "with 274877906944 rows of 16777216");
    o.num_shared_experts = 1 << 10; /* 2^59 bytes, three times in each of six layers */
    o.num_layers = 7;
    expect_message(&o, MP_ERR_USAGE,
                   "\"model.layers.6.mlp.shared_experts.gate_proj.weight\" makes the checkpoint "
                   "larger than 2^63 bytes");
}
