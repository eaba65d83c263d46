/* SPDX-License-Identifier: Apache-2.0 */
/* verify, numeric, of sound packs: bit-identity for every target, rank count, kind of shared
 * expert and kind of source, and errors within the target's bound. */
#include <math.h>

#include "verify_pack.h"

#include "verify/numeric.h"

#define EXPERTS 8

typedef struct pack_case {
    const char *target;
    bool nz;
    const char *family;
    mp_scheme scheme; /* of the source */
    mp_shared_mode shared;
    uint32_t num_shared;
    bool requantized; /* something has to be */
    const char *drop;
    uint64_t hidden, inter;
} pack_case;

#define ALIKE false
#define OTHER true

/* clang-format off */
static const pack_case cases[] = {
    {"megamoe-w4a8", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_NONE, 1, ALIKE, NULL, 128, 128},
    {"megamoe-w4a8", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_SEPARATE, 1, ALIKE, NULL, 128, 256},
    {"megamoe-w4a8", false, "deepseek_v3", MP_SCHEME_FP8_BLOCK, MP_SHARED_SEPARATE, 1, OTHER, NULL, 256, 128},
    {"megamoe-w4a8", false, "deepseek_v3", MP_SCHEME_FP8_BLOCK, MP_SHARED_FUSED, 2, OTHER, NULL, 128, 128},
    {"megamoe-w4a8", false, "gpt_oss", MP_SCHEME_MXFP4, MP_SHARED_NONE, 0, ALIKE, "bias", 128, 128},
    {"megamoe-w4a8", false, "kimi_k3", MP_SCHEME_MXFP4, MP_SHARED_NONE, 1, ALIKE, NULL, 128, 128},
    {"megamoe-w4a4", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_SEPARATE, 1, ALIKE, NULL, 128, 128},
    {"megamoe-w4a4", false, "minimax_m3", MP_SCHEME_MXFP8, MP_SHARED_FUSED, 1, OTHER, NULL, 128, 128},
    {"megamoe-w4a4-g8", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_NONE, 1, ALIKE, NULL, 256, 128},
    {"megamoe-nvfp4", false, "deepseek_v3", MP_SCHEME_NVFP4, MP_SHARED_FUSED, 1, ALIKE, "input_scale", 128, 128},
    {"megamoe-nvfp4", false, "deepseek_v4", MP_SCHEME_MXFP4, MP_SHARED_NONE, 1, OTHER, NULL, 128, 128},
    {"megamoe-nvfp4", false, "glm_moe", MP_SCHEME_BF16, MP_SHARED_FUSED, 1, OTHER, NULL, 128, 128},
    {"megamoe-bf16", false, "deepseek_v3", MP_SCHEME_BF16, MP_SHARED_FUSED, 2, ALIKE, NULL, 120, 88},
    {"megamoe-bf16", false, "deepseek_v2", MP_SCHEME_BF16, MP_SHARED_SEPARATE, 2, ALIKE, NULL, 120, 88},
    {"megamoe-bf16", false, "llama4", MP_SCHEME_BF16, MP_SHARED_NONE, 0, ALIKE, NULL, 120, 88},
    {"megamoe-sm90-fp8", false, "deepseek_v3", MP_SCHEME_FP8_BLOCK, MP_SHARED_FUSED, 1, ALIKE, NULL, 256, 128},
    {"megamoe-sm90-fp8", false, "qwen3_moe", MP_SCHEME_BF16, MP_SHARED_NONE, 0, OTHER, NULL, 128, 256},
    {"fuseep-1", false, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_FUSED, 1, ALIKE, NULL, 104, 192},
    {"fuseep-1", true, "deepseek_v3", MP_SCHEME_BF16, MP_SHARED_SEPARATE, 2, OTHER, NULL, 104, 128},
    {"fuseep-2", false, "deepseek_v3", MP_SCHEME_FP8_BLOCK, MP_SHARED_FUSED, 2, OTHER, NULL, 128, 128},
    {"fuseep-2", true, "deepseek_v3", MP_SCHEME_INT8_CHANNEL, MP_SHARED_SEPARATE, 1, ALIKE, NULL, 104, 40},
    {"deepep-bf16", false, "glm_moe", MP_SCHEME_BF16, MP_SHARED_FUSED, 1, ALIKE, NULL, 120, 88},
    {"deepep-bf16", false, "deepseek_v3", MP_SCHEME_FP8_BLOCK, MP_SHARED_NONE, 1, OTHER, NULL, 128, 128},
};
/* clang-format on */

static char source[512];

static void make_source(const pack_case *c)
{
    const mp_synth_options synth = {
        .family = c->family,
        .scheme = c->scheme,
        .hidden_size = c->hidden,
        .intermediate_size = c->inter,
        .num_experts = EXPERTS,
        .num_shared_experts = c->num_shared,
        .top_k = 3,
        .num_layers = 2,
        .num_hash_layers = strcmp(c->family, "deepseek_v4") == 0,
        .vocab_size = 48,
        .routed_scaling_factor = 2.5,
        .seed = 71,
    };

    make_scratch();
    snprintf(source, sizeof source, "%s/source", scratch);
    succeed(mp_synth(&synth, source, NULL, &err));
}

static void make_pack_on(const pack_case *c, uint32_t ep, uint32_t redundant)
{
    const mp_target *target = mp_target_find(c->target);

    snprintf(out, sizeof out, "%s/out-%u-%u", scratch, ep, redundant);
    pack_source(source, (mp_repack_options){.target = target,
                                            .ep = ep,
                                            .redundant = redundant,
                                            .shared = c->shared,
                                            .nz = c->nz,
                                            .requantize_shared = true,
                                            .quantize = true,
                                            .quantize_to = target->scheme,
                                            .quant.rounding = target->rounding,
                                            .drop = c->drop});
}

static void check_figures(const pack_case *c, uint32_t ep)
{
    const mp_numeric_kernel *kernel = mp_numeric_kernel_of(c->target);

    cr_assert_eq(report.num_numeric, 2);
    for (size_t i = 0; i < report.num_numeric; i++) {
        const mp_verify_numeric *n = &report.numeric[i];

        cr_expect(n->bit_identical, "%s of %s on %u", c->target, c->family, ep);
        cr_expect_str_eq(n->emulation, mp_emulation_name(kernel->emulation));
        cr_expect_eq(n->tolerance, kernel->bound);
        cr_expect(n->rel_l2 > 0 && n->rel_l2 <= kernel->bound, "%s of %s: %g", c->target, c->family,
                  n->rel_l2);
        cr_expect_gt(n->max_abs, 0);
        cr_expect_eq(n->requantized, c->requantized, "%s of %s", c->target, c->family);
        cr_expect_eq(!isnan(n->weights_rel_l2), c->requantized, "%s of %s: %g", c->target,
                     c->family, n->weights_rel_l2);
    }
}

static void check_case(const pack_case *c)
{
    static const struct {
        uint32_t ep, redundant;
    } ranks[] = {{1, 0}, {2, 4}, {4, 4}};

    make_source(c);
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        make_pack_on(c, ranks[i].ep, ranks[i].redundant);
        succeed(verify_with((mp_verify_options){.size = sizeof(mp_verify_options),
                                                .level = MP_VERIFY_NUMERIC,
                                                .source = source,
                                                .tokens = 5},
                            2));
        expect_count(0);
        check_figures(c, ranks[i].ep);
    }
    remove_pack();
}

#define CASES (sizeof cases / sizeof cases[0])

Test(verify_numeric_targets, slots_give_the_bits_of_the_source)
{
    for (size_t i = 0; i < CASES; i++)
        check_case(&cases[i]);
}

Test(verify_numeric_targets, every_target_has_a_kernel_for_its_scheme)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    cr_assert_gt(count, 0);
    for (size_t i = 0; i < count; i++) {
        const mp_numeric_kernel *kernel = mp_numeric_kernel_of(targets[i]->name);

        cr_assert_not_null(kernel, "%s", targets[i]->name);
        cr_expect_eq(mp_emulation_scheme(kernel->emulation), targets[i]->scheme, "%s",
                     targets[i]->name);
    }
    cr_expect_null(mp_numeric_kernel_of("megamoe"));
}
