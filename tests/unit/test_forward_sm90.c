/* SPDX-License-Identifier: Apache-2.0 */
/* The emulation of SM90's kernel against what the kernel itself gave. */

#include "golden.h"
#include "synth_scratch.h"

#include "forward/reference.h"
#include "numeric/kernels.h"

TestSuite(forward_sm90, .init = make_scratch, .fini = remove_scratch);

static void copy_config(const char *from, const char *to)
{
    char command[1024];

    snprintf(command, sizeof command, "cp %s/config.json %s/config.json", from, to);
    cr_assert_eq(system(command), 0);
}

/* BF16 into one kind of numbers or the other. */
static uint64_t widen(const golden_file *file, const char *name, float *narrow, double *wide)
{
    size_t bytes;
    const uint16_t *codes = golden_tensor(file, name, &bytes);

    for (size_t i = 0; i < bytes / 2; i++) {
        float x;

        mp_kernels_best()->bf16_decode(codes + i, &x, 1);
        if (narrow)
            narrow[i] = x;
        else
            wide[i] = (double)x;
    }
    return bytes / 2;
}

/* What the kernel's tensor cores add up in their own way is all that may differ. With gate and
 * up rounded to BF16, or scales of the second quantization that are no powers of two, the
 * distance is 2.7e-2 or more. */
static void expect_kernel(const char *name, const mp_synth_options *options)
{
    const mp_catalog_experts_options stored = {MP_SCHEME_COUNT, MP_SCHEME_COUNT, {0}};
    mp_forward_options how = {.emulation = MP_EMULATE_SM90_FP8};
    char folder[128], path[160];
    mp_catalog_experts experts;

    snprintf(folder, sizeof folder, "testdata/golden/sm90/%s", name);
    make(options, name);
    copy_config(folder, in_dir(name));
    cr_assert_eq(mp_catalog_open(&catalog, in_dir(name), NULL, &err), 0, "%s", err.message);
    snprintf(path, sizeof path, "%s/input.st", folder);
    golden_file *input = golden_open(path);
    snprintf(path, sizeof path, "%s/kernel-y.st", folder);
    golden_file *kernel = golden_open(path);
    uint64_t tokens = golden_dim(input, "x", 0), n = tokens * options->hidden_size;
    float *x = malloc(n * sizeof *x);
    double *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
    const mp_batch batch = {.tokens = tokens,
                            .k = options->top_k,
                            .x = x,
                            .ids = golden_tensor(input, "topk_ids", NULL),
                            .weights = golden_tensor(input, "topk_weights", NULL)};

    cr_assert_eq(widen(input, "x", x, NULL), n);
    cr_assert_eq(widen(kernel, "y", NULL, want), n);
    cr_assert_eq(
        mp_model_activation(&catalog.config, 0, &how.activation, NULL, &how.weigh_input, &err), 0,
        "%s", err.message);
    /* The kernel clamps whatever the model is; DeepSeek V3 itself does not. */
    if (catalog.config.swiglu_limit > 0)
        how.activation.limit = (float)catalog.config.swiglu_limit;
    cr_assert_eq(
        mp_catalog_experts_open(&experts, &catalog, &catalog.layers[0], &stored, NULL, &err), 0,
        "%s", err.message);
    cr_assert_eq(mp_forward(&experts.source, &how, &batch, NULL, got, &err), 0, "%s", err.message);
    mp_deviation d = mp_compare(got, want, n);
    cr_assert_leq(d.rel_l2, 3.5e-3, "%s: relative L2 %g", name, d.rel_l2);
    mp_catalog_experts_release(&experts);
    golden_close(input);
    golden_close(kernel);
    free(x);
    free(want);
    free(got);
}

/* The checkpoints that the kernel was given. */
static mp_synth_options checkpoint(uint64_t intermediate, uint32_t experts, uint32_t k,
                                   uint64_t seed)
{
    return (mp_synth_options){
        .family = "deepseek_v3",
        .scheme = MP_SCHEME_FP8_BLOCK,
        .hidden_size = 512,
        .intermediate_size = intermediate,
        .dense_intermediate_size = 128,
        .num_experts = experts,
        .num_shared_experts = 1,
        .top_k = k,
        .num_layers = 2,
        .num_dense = 1,
        .vocab_size = 64,
        .routed_scaling_factor = 1,
        .seed = seed,
    };
}

Test(forward_sm90, is_what_the_kernel_gives)
{
    mp_synth_options plain = checkpoint(256, 6, 2, 11);

    expect_kernel("plain", &plain);
}

Test(forward_sm90, clamps_in_float32)
{
    mp_synth_options clamped = checkpoint(256, 6, 3, 12);

    expect_kernel("clamp", &clamped);
}

Test(forward_sm90, clamps_much_of_a_wide_layer)
{
    mp_synth_options wide = checkpoint(512, 4, 2, 13);

    expect_kernel("wide", &wide);
}
