/* SPDX-License-Identifier: Apache-2.0 */
/* The rules by which the engine resolves, at their boundaries. */
#include "backend_case.h"

#include "base/words.h"

TestSuite(backend, .init = start_case, .fini = end_case);

/* What sglang-0.5.15 has comes first in the enums. */
#define OLD_A2A_COUNT      (MP_A2A_CUSTOMIZED + 1)
#define OLD_PLATFORM_COUNT (MP_PLATFORM_NPU + 1)

#define USE_MEGA  "SGLANG_OPT_USE_DEEPGEMM_MEGA_MOE"
#define FIX       "SGLANG_OPT_FIX_MEGA_MOE_MEMORY"
#define CAP       "SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK"
#define FP4_ACTS  "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_FP4_ACTS"
#define MXF4_KIND "SGLANG_OPT_DEEPGEMM_MEGA_MOE_USE_MXF4_KIND"
#define FUSE_MODE "SGLANG_NPU_FUSED_MOE_MODE"
#define DISPATCH  "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"

Test(backend, names_are_read_back)
{
    mp_a2a a2a;
    mp_runner runner;
    mp_deepep_mode mode;
    mp_platform platform;
    mp_shared_mode shared;

    for (size_t i = 0; i < MP_A2A_COUNT; i++)
        cr_assert(mp_a2a_parse(mp_a2a_name(i), &a2a) && a2a == i);
    for (size_t i = 0; i < MP_RUNNER_COUNT; i++)
        cr_assert(mp_runner_parse(mp_runner_name(i), &runner) && runner == i);
    for (size_t i = 0; i < MP_DEEPEP_COUNT; i++)
        cr_assert(mp_deepep_mode_parse(mp_deepep_mode_name(i), &mode) && mode == i);
    for (size_t i = 0; i < MP_PLATFORM_COUNT; i++)
        cr_assert(mp_platform_parse(mp_platform_name(i), &platform) && platform == i);
    for (size_t i = 0; i < MP_SHARED_MODES; i++)
        cr_assert(mp_shared_mode_parse(mp_shared_mode_name(i), &shared) && shared == i);
    cr_assert_null(mp_a2a_name(MP_A2A_COUNT));
    cr_assert_not(mp_a2a_parse("deep", &a2a));
    cr_assert_not(mp_platform_parse("", &platform));
}

/* ------------------------------------------------------------------------
 * 1. The variable that selects megamoe
 */

Test(backend, nothing_asked_for_is_none)
{
    resolve_well();
    cr_assert_eq(backend.backend, MP_A2A_NONE);
    expect_decision("backend", "none", "default");
    expect_warning(NULL);
}

Test(backend, a_variable_selects_megamoe)
{
    static const struct {
        const char *value; /* null: unset */
        bool given;
        mp_a2a asked, resolved;
        const char *decided_by, *warning;
    } cases[] = {
        {NULL, true, MP_A2A_DEEPEP, MP_A2A_DEEPEP, "--backend", NULL},
        {"0", true, MP_A2A_DEEPEP, MP_A2A_DEEPEP, "--backend", NULL},
        {"", true, MP_A2A_DEEPEP, MP_A2A_DEEPEP, "--backend", NULL},
        {"1", false, MP_A2A_NONE, MP_A2A_MEGAMOE, USE_MEGA, NULL},
        {"yes", true, MP_A2A_MEGAMOE, MP_A2A_MEGAMOE, "--backend", NULL},
        {"1", true, MP_A2A_DEEPEP, MP_A2A_MEGAMOE, USE_MEGA,
         "--backend deepep is overridden: " USE_MEGA " selects megamoe"},
        {"1", true, MP_A2A_NONE, MP_A2A_MEGAMOE, USE_MEGA,
         "--backend none is overridden: " USE_MEGA " selects megamoe"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        start_case();
        flags.backend = cases[i].asked;
        flags.backend_given = cases[i].given;
        if (cases[i].value)
            set_env(USE_MEGA, cases[i].value);
        resolve_well();
        cr_assert_eq(backend.backend, cases[i].resolved, "case %zu", i);
        expect_decision("backend", mp_a2a_name(cases[i].resolved), cases[i].decided_by);
        expect_warning(cases[i].warning);
    }
}

/* ------------------------------------------------------------------------
 * 2. Ranks
 */

Test(backend, ep_size_is_tp_size)
{
    for (size_t i = 0; i < OLD_A2A_COUNT; i++) {
        start_case();
        ask_for((mp_a2a)i);
        flags.tp = 16;
        flags.platform = i == MP_A2A_ASCEND_FUSEEP ? MP_PLATFORM_NPU : MP_PLATFORM_CUDA_SM100;
        if (i == MP_A2A_ASCEND_FUSEEP)
            set_scheme(MP_SCHEME_INT8_CHANNEL);
        bool own = i != MP_A2A_NONE && i != MP_A2A_CUSTOMIZED;
        resolve_well();
        cr_assert_eq(backend.slots.ep, own ? 16 : 1, "%s", mp_a2a_name(i));
        expect_decision("ep_size", own ? "16" : "1", own ? "--tp" : "default");
    }
}

Test(backend, another_ep_size_is_noted)
{
    ask_for(MP_A2A_MOONCAKE);
    flags.ep = 4;
    resolve_well();
    cr_assert_eq(backend.slots.ep, 8);
    expect_warning("--ep 4 is ignored: backend mooncake sets ep_size to tp_size, 8");
    flags.ep = 8;
    resolve_well();
    expect_warning(NULL);
    flags.ep = 4;
    ask_for(MP_A2A_CUSTOMIZED);
    resolve_well();
    cr_assert_eq(backend.slots.ep, 4);
    expect_decision("ep_size", "4", "--ep");
    expect_warning(NULL);
}

Test(backend, physical_experts_have_to_divide)
{
    ask_for(MP_A2A_DEEPEP);
    flags.tp = 7;
    expect_failure(MP_ERR_INPUT, "ep_size: 256 physical experts (256 and 0 redundant) do not "
                                 "divide evenly among the 7 ranks of --tp");
    flags.redundant = 3;
    resolve_well();
    cr_assert_eq(backend.slots.num_physical, 259);
    flags.redundant = 4;
    expect_failure(MP_ERR_INPUT, "ep_size: 260 physical experts (256 and 4 redundant) do not "
                                 "divide evenly among the 7 ranks of --tp");
    ask_for(MP_A2A_NONE);
    flags.ep = 3;
    expect_failure(MP_ERR_INPUT, "ep_size: 260 physical experts (256 and 4 redundant) do not "
                                 "divide evenly among the 3 ranks of --ep");
    flags.ep = 260;
    resolve_well();
    flags.ep = 520;
    cr_assert_eq(resolve(), MP_ERR_INPUT);
}

Test(backend, fused_shared_experts_have_slots)
{
    ask_for(MP_A2A_MEGAMOE);
    flags.shared = MP_SHARED_FUSED;
    flags.redundant = 32;
    resolve_well();
    cr_assert_eq(backend.slots.per_rank, 37);
    flags.shared = MP_SHARED_SEPARATE;
    resolve_well();
    cr_assert_eq(backend.slots.per_rank, 36);
}

/* ------------------------------------------------------------------------
 * 3. Memory shared by decode and prefill
 */

Test(backend, memory_is_shared_unless_set)
{
    static const struct {
        mp_a2a asked;
        const char *value;
        bool fixed;
        const char *decided_by, *forward;
    } cases[] = {
        {MP_A2A_MEGAMOE, NULL, true, "--backend", FIX "=1"},
        {MP_A2A_MEGAMOE, "on", true, FIX, FIX "=1"},
        {MP_A2A_MEGAMOE, "0", false, FIX, FIX "=0"},
        {MP_A2A_MEGAMOE, "", false, FIX, FIX "=0"},
        {MP_A2A_DEEPEP, NULL, false, NULL, ""},
        {MP_A2A_DEEPEP, "1", true, NULL, ""},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        start_case();
        ask_for(cases[i].asked);
        if (cases[i].value)
            set_env(FIX, cases[i].value);
        resolve_well();
        cr_assert_eq(backend.fix_mega_moe_memory, cases[i].fixed, "case %zu", i);
        expect_forward(cases[i].forward);
        if (cases[i].decided_by)
            expect_decision("fix_mega_moe_memory", cases[i].fixed ? "true" : "false",
                            cases[i].decided_by);
        else
            cr_assert_null(find_decision("fix_mega_moe_memory"));
        expect_warning(backend.megamoe && !cases[i].fixed ? FIX
                           " is false: the ordinary path keeps its own L1 weights and "
                           "scales, which are not in the estimate"
                                                          : NULL);
    }
}

/* ------------------------------------------------------------------------
 * 4. Dispatchers
 */

Test(backend, dispatchers)
{
    static const char *const dispatchers[OLD_A2A_COUNT] = {
        [MP_A2A_NONE] = "standard",
        [MP_A2A_DEEPEP] = "deepep",
        [MP_A2A_MOONCAKE] = "mooncake",
        [MP_A2A_NIXL] = "nixl",
        [MP_A2A_MORI] = "mori",
        [MP_A2A_ASCEND_FUSEEP] = "standard",
        [MP_A2A_FLASHINFER] = "flashinfer",
        [MP_A2A_MEGAMOE] = "standard",
        [MP_A2A_CUSTOMIZED] = "customized",
    };

    for (size_t i = 0; i < OLD_A2A_COUNT; i++) {
        start_case();
        ask_for((mp_a2a)i);
        if (i == MP_A2A_ASCEND_FUSEEP) {
            flags.platform = MP_PLATFORM_NPU;
            set_scheme(MP_SCHEME_INT8_CHANNEL);
        }
        resolve_well();
        cr_assert_str_eq(backend.dispatcher, dispatchers[i]);
        expect_decision("dispatcher", dispatchers[i], "--backend");
    }
}

/* ------------------------------------------------------------------------
 * 5. The forward pass
 */

Test(backend, megamoe_takes_tokens_up_to_the_cap)
{
    static const uint64_t below[] = {800, 1023}, at[] = {1024, 3}, above[] = {800, 1025, 7};
    static const struct {
        const char *cap; /* null: unset */
        bool tokens_given;
        uint64_t tokens;
        const uint64_t *dp;
        size_t num_dp;
        bool capture, used;
        const char *decided_by;
    } cases[] = {
        {NULL, false, 0, NULL, 0, false, true, "default"},
        {"7", false, 0, NULL, 0, false, true, CAP},
        {NULL, true, 0, NULL, 0, false, true, "--tokens"},
        {NULL, true, 1023, NULL, 0, false, true, "--tokens"},
        {NULL, true, 1024, NULL, 0, false, true, "--tokens"},
        {NULL, true, 1025, NULL, 0, false, false, "--tokens"},
        {"4096", true, 4096, NULL, 0, false, true, "--tokens"},
        {"4096", true, 4097, NULL, 0, false, false, "--tokens"},
        {"0", true, 0, NULL, 0, false, true, "--tokens"},
        {"0", true, 1, NULL, 0, false, false, "--tokens"},
        {NULL, true, 5000, below, 2, false, true, "--dp-tokens"},
        {NULL, false, 0, at, 2, false, true, "--dp-tokens"},
        {NULL, true, 1, above, 3, false, false, "--dp-tokens"},
        {NULL, true, 1024, NULL, 0, true, true, "--capture"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        start_case();
        ask_for(MP_A2A_MEGAMOE);
        flags.tokens_given = cases[i].tokens_given;
        flags.tokens = cases[i].tokens;
        flags.dp_tokens = cases[i].dp;
        flags.num_dp_tokens = cases[i].num_dp;
        flags.capture = cases[i].capture;
        if (cases[i].cap)
            set_env(CAP, cases[i].cap);
        resolve_well();
        cr_assert_eq(backend.use_mega_moe, cases[i].used, "case %zu", i);
        expect_decision("use_mega_moe", cases[i].used ? "true" : "false", cases[i].decided_by);
        expect_warning(NULL);
    }
}

Test(backend, capture_above_the_cap_is_warned_about)
{
    ask_for(MP_A2A_MEGAMOE);
    flags.capture = true;
    flags.tokens_given = true;
    flags.tokens = 1025;
    resolve_well();
    cr_assert(backend.use_mega_moe);
    expect_warning("capture with 1025 tokens a rank fails: the buffer holds 1024 (" CAP ")");
}

Test(backend, other_backends_do_not_use_megamoe)
{
    ask_for(MP_A2A_DEEPEP);
    flags.capture = true;
    resolve_well();
    cr_assert_not(backend.use_mega_moe);
    cr_assert_null(find_decision("use_mega_moe"));
    cr_assert_null(find_decision("token_cap"));
}

/* ------------------------------------------------------------------------
 * 6. Layout and activations
 */

Test(backend, layouts_by_platform_and_scheme)
{
    static const struct {
        mp_platform platform;
        mp_scheme scheme;
        const char *target, *acts;
    } built[] = {
        {MP_PLATFORM_CUDA_SM100, MP_SCHEME_MXFP4, "megamoe-w4a8", "fp8"},
        {MP_PLATFORM_CUDA_SM100, MP_SCHEME_NVFP4, "megamoe-nvfp4", "fp4"},
        {MP_PLATFORM_CUDA_SM100, MP_SCHEME_BF16, "megamoe-bf16", "bf16"},
        {MP_PLATFORM_CUDA_SM90, MP_SCHEME_FP8_BLOCK, "megamoe-sm90-fp8", "fp8"},
    };

    for (size_t platform = 0; platform < OLD_PLATFORM_COUNT; platform++) {
        for (size_t scheme = 0; scheme < MP_SCHEME_COUNT; scheme++) {
            const char *target = NULL, *acts = NULL;

            for (size_t i = 0; i < 4; i++) {
                if (built[i].platform == platform && built[i].scheme == scheme) {
                    target = built[i].target;
                    acts = built[i].acts;
                }
            }
            start_case();
            ask_for(MP_A2A_MEGAMOE);
            flags.platform = (mp_platform)platform;
            set_scheme((mp_scheme)scheme);
            resolve_well();
            expect_text(backend.target, target);
            expect_text(backend.acts, acts);
            cr_assert_eq(backend.use_mega_moe, target != NULL);
            cr_assert_eq(backend.warnings.count, target ? 0 : 1);
        }
    }
}

Test(backend, an_unknown_format_is_not_built)
{
    ask_for(MP_A2A_MEGAMOE);
    model.has_scheme = false;
    model.scheme_from = "quantization_config";
    resolve_well();
    cr_assert_null(backend.target);
    expect_decision("use_mega_moe", "false", "quantization_config");
    expect_warning("experts are of a format that is not recognized: MegaMoE takes mxfp4, nvfp4 "
                   "and bf16 on cuda-sm100, fp8_block on cuda-sm90; see --quantize");
}

Test(backend, fp4_activations)
{
    static const struct {
        const char *sglang_acts, *sglang_kind, *dg_acts, *dg_kind; /* null: unset */
        const char *acts, *acts_by, *mma, *mma_by, *forward, *warning;
    } cases[] = {
        {NULL, NULL, NULL, NULL, "fp8", "default", "mxf8f6f4", "default", "", NULL},
        {"0", NULL, NULL, NULL, "fp8", FP4_ACTS, "mxf8f6f4", "default", "", NULL},
        {"1", NULL, NULL, NULL, "fp4", FP4_ACTS, "mxf8f6f4", "default", " DG_USE_FP4_ACTS=1", NULL},
        {"1", "1", NULL, NULL, "fp4", FP4_ACTS, "mxf4", MXF4_KIND,
         " DG_USE_FP4_ACTS=1 DG_USE_MXF4_KIND=1", NULL},
        {"1", "1", NULL, "0", "fp4", FP4_ACTS, "mxf8f6f4", "DG_USE_MXF4_KIND",
         " DG_USE_FP4_ACTS=1 DG_USE_MXF4_KIND=0", NULL},
        {"1", "1", "1", "1", "fp4", "DG_USE_FP4_ACTS", "mxf4", "DG_USE_MXF4_KIND",
         " DG_USE_FP4_ACTS=1 DG_USE_MXF4_KIND=1", NULL},
        {"1", NULL, "0", NULL, "fp8", "DG_USE_FP4_ACTS", "mxf8f6f4", "default",
         " DG_USE_FP4_ACTS=0",
         "DG_USE_FP4_ACTS is false and wins, " FP4_ACTS
         " is not: tokens are sent as E2M1 and read as E4M3"},
        {NULL, NULL, "1", NULL, "fp4", "DG_USE_FP4_ACTS", "mxf8f6f4", "default",
         " DG_USE_FP4_ACTS=1",
         "DG_USE_FP4_ACTS is true and wins, " FP4_ACTS
         " is not: tokens are sent as E4M3 and read as E2M1"},
        {NULL, "1", NULL, NULL, "fp8", "default", "mxf8f6f4", MXF4_KIND, " DG_USE_MXF4_KIND=1",
         MXF4_KIND " has no effect without FP4 activations (" FP4_ACTS ")"},
        {NULL, NULL, NULL, "1", "fp8", "default", "mxf8f6f4", "DG_USE_MXF4_KIND",
         " DG_USE_MXF4_KIND=1",
         "DG_USE_MXF4_KIND has no effect without FP4 activations (" FP4_ACTS ")"},
    };
    char forward[160];

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const names[] = {FP4_ACTS, MXF4_KIND, "DG_USE_FP4_ACTS", "DG_USE_MXF4_KIND"};
        const char *const values[] = {cases[i].sglang_acts, cases[i].sglang_kind, cases[i].dg_acts,
                                      cases[i].dg_kind};

        start_case();
        ask_for(MP_A2A_MEGAMOE);
        for (size_t v = 0; v < 4; v++)
            if (values[v])
                set_env(names[v], values[v]);
        resolve_well();
        expect_text(backend.acts, cases[i].acts);
        expect_text(backend.target,
                    strcmp(cases[i].acts, "fp4") == 0 ? "megamoe-w4a4-g8" : "megamoe-w4a8");
        expect_decision("acts", cases[i].acts, cases[i].acts_by);
        expect_decision("mma", cases[i].mma, cases[i].mma_by);
        snprintf(forward, sizeof forward, FIX "=1%s", cases[i].forward);
        expect_forward(forward);
        expect_warning(cases[i].warning);
    }
}

Test(backend, fp4_activations_are_of_megamoe_with_mxfp4)
{
    set_env(FP4_ACTS, "1");
    ask_for(MP_A2A_DEEPEP);
    resolve_well();
    expect_forward("");
    cr_assert_null(backend.acts);
    ask_for(MP_A2A_MEGAMOE);
    set_scheme(MP_SCHEME_BF16);
    resolve_well();
    expect_forward(FIX "=1");
    expect_text(backend.acts, "bf16");
}

Test(backend, sizes_that_no_kernel_takes_are_refused)
{
    ask_for(MP_A2A_MEGAMOE);
    model.hidden_size = 4000;
    cr_assert_eq(resolve(), MP_ERR_UNSUPPORTED);
    model.hidden_size = 4224;
    resolve_well();
    cr_assert_eq(backend.warnings.count, 1, "128 divides it, 512 does not");
}

Test(backend, the_buffer_needs_top_k)
{
    ask_for(MP_A2A_MEGAMOE);
    model.experts_per_token = 0;
    expect_failure(MP_ERR_INPUT, "config.json: no number of experts a token (num_experts_per_tok)");
    ask_for(MP_A2A_DEEPEP);
    resolve_well();
}

/* ------------------------------------------------------------------------
 * 7. Unquantized DeepEP low latency
 */

static void start_bf16(void)
{
    start_case();
    ask_for(MP_A2A_DEEPEP);
    set_scheme(MP_SCHEME_BF16);
    model.scheme_from = "torch_dtype";
    flags.runner = MP_RUNNER_DEEP_GEMM;
}

Test(backend, bf16_low_latency)
{
    for (int mode = MP_DEEPEP_AUTO; mode < MP_DEEPEP_COUNT; mode++) {
        start_bf16();
        flags.deepep_mode = (mp_deepep_mode)mode;
        resolve_well();
        bool holds = mode != MP_DEEPEP_NORMAL;
        expect_text(backend.target, holds ? "deepep-bf16" : NULL);
        expect_text(backend.acts, holds ? "bf16" : NULL);
        expect_text(backend.dispatcher_output_dtype, holds ? "bf16" : NULL);
        expect_decision("bf16_low_latency", holds ? "true" : "false",
                        holds ? "--runner" : "--deepep-mode");
    }
}

#define FAILS_FIRST "the first condition that fails: "

Test(backend, bf16_low_latency_names_the_first_condition_that_fails)
{
    static const struct {
        const char *decided_by, *why;
    } first[] = {
        {"torch_dtype", FAILS_FIRST "no quantization config"},
        {"torch_dtype", FAILS_FIRST "BF16 weights"},
        {"--runner", FAILS_FIRST "runner deep_gemm"},
        {"--backend", FAILS_FIRST "backend deepep"},
        {"--deepep-mode", FAILS_FIRST "low latency enabled (auto or low_latency)"},
        {"--platform", FAILS_FIRST "a platform that is not npu"},
        {"--platform", FAILS_FIRST "a platform that is not hip"},
    };

    /* Condition i fails, and all behind it that can. */
    for (size_t i = 0; i < 7; i++) {
        start_bf16();
        model.quant_config = i == 0;
        model.scheme = i <= 1 ? MP_SCHEME_F16 : MP_SCHEME_BF16;
        flags.runner = i <= 2 ? MP_RUNNER_AUTO : MP_RUNNER_DEEP_GEMM;
        ask_for(i <= 3 ? MP_A2A_MOONCAKE : MP_A2A_DEEPEP);
        flags.deepep_mode = i <= 4 ? MP_DEEPEP_NORMAL : MP_DEEPEP_AUTO;
        flags.platform = i <= 5 ? MP_PLATFORM_NPU : MP_PLATFORM_HIP;
        resolve_well();
        cr_assert_null(backend.target);
        expect_decision("bf16_low_latency", "false", first[i].decided_by);
        expect_why("bf16_low_latency", first[i].why);
    }
}

Test(backend, bf16_low_latency_needs_the_jit)
{
    start_bf16();
    set_env("SGLANG_ENABLE_JIT_DEEPGEMM", "0");
    expect_failure(MP_ERR_UNSUPPORTED,
                   "SGLANG_ENABLE_JIT_DEEPGEMM: it is false, and unquantized DeepEP low latency "
                   "runs on DeepGEMM's JIT only");
    flags.deepep_mode = MP_DEEPEP_NORMAL;
    resolve_well();
}

/* ------------------------------------------------------------------------
 * 8. Ascend
 */

static void start_fuseep(void)
{
    start_case();
    ask_for(MP_A2A_ASCEND_FUSEEP);
    flags.platform = MP_PLATFORM_NPU;
    set_scheme(MP_SCHEME_INT8_CHANNEL);
}

Test(backend, fuseep_modes)
{
    static const struct {
        const char *value; /* null: unset */
        unsigned mode;
        const char *target, *decided_by;
    } cases[] = {
        {NULL, 1, "fuseep-1", "default"},
        {"1", 1, "fuseep-1", FUSE_MODE},
        {"2", 2, "fuseep-2", FUSE_MODE},
    };

    for (size_t i = 0; i < 3; i++) {
        start_fuseep();
        if (cases[i].value)
            set_env(FUSE_MODE, cases[i].value);
        resolve_well();
        cr_assert_eq(backend.fuse_mode, cases[i].mode);
        expect_text(backend.target, cases[i].target);
        expect_text(backend.acts, "int8");
        expect_decision("fuse_mode", cases[i].mode == 1 ? "1" : "2", cases[i].decided_by);
        expect_decision("buffer_mode", "low_latency", "--backend");
        expect_decision("params_bytes", "2", "--backend");
        expect_decision("max_dispatch_tokens", "128", "default");
    }
    set_env(FUSE_MODE, "0");
    expect_failure(MP_ERR_UNSUPPORTED, FUSE_MODE ": 0, there are modes 1 and 2");
    set_env(FUSE_MODE, "3");
    expect_failure(MP_ERR_UNSUPPORTED, FUSE_MODE ": 3, there are modes 1 and 2");
}

Test(backend, fuseep_is_of_npu_and_int8)
{
    start_fuseep();
    flags.platform = MP_PLATFORM_CUDA_SM90;
    expect_failure(MP_ERR_UNSUPPORTED, "ascend_fuseep: runs on npu only, --platform is cuda-sm90");
    start_fuseep();
    model.float16 = true;
    expect_failure(MP_ERR_UNSUPPORTED,
                   "ascend_fuseep: the model is float16, the kernel takes bfloat16 only");
    for (size_t scheme = 0; scheme < MP_SCHEME_COUNT; scheme++) {
        char message[160];

        start_fuseep();
        set_scheme((mp_scheme)scheme);
        snprintf(message, sizeof message,
                 "ascend_fuseep: experts are %s (--quantize), the kernel takes W8A8 INT8 only: "
                 "see --quantize int8_channel",
                 mp_scheme_name((mp_scheme)scheme));
        if (scheme == MP_SCHEME_INT8_CHANNEL)
            resolve_well();
        else
            expect_failure(MP_ERR_UNSUPPORTED, message);
    }
}

Test(backend, fuseep_limits)
{
    static const struct {
        const char *what;
        size_t field; /* of the model, or 0 */
        uint64_t value, multiple;
        bool taken;
    } cases[] = {
        {"hidden size", offsetof(mp_backend_model, hidden_size), 511, 1, false},
        {"hidden size", offsetof(mp_backend_model, hidden_size), 512, 1, true},
        {"hidden size", offsetof(mp_backend_model, hidden_size), 7168, 1, true},
        {"hidden size", offsetof(mp_backend_model, hidden_size), 7169, 1, false},
        {"twice the expert intermediate size", offsetof(mp_backend_model, moe_intermediate_size),
         511, 2, false},
        {"twice the expert intermediate size", offsetof(mp_backend_model, moe_intermediate_size),
         512, 2, true},
        {"twice the expert intermediate size", offsetof(mp_backend_model, moe_intermediate_size),
         3072, 2, true},
        {"twice the expert intermediate size", offsetof(mp_backend_model, moe_intermediate_size),
         3073, 2, false},
        {"experts a token", offsetof(mp_backend_model, experts_per_token), 1, 1, true},
        {"experts a token", offsetof(mp_backend_model, experts_per_token), 12, 1, true},
        {"experts a token", offsetof(mp_backend_model, experts_per_token), 13, 1, false},
        {"experts", offsetof(mp_backend_model, num_experts), 8, 1, true},
        {"experts", offsetof(mp_backend_model, num_experts), 512, 1, true},
        {"experts", offsetof(mp_backend_model, num_experts), 520, 1, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char message[160];

        start_fuseep();
        memcpy((char *)&model + cases[i].field, &cases[i].value, sizeof cases[i].value);
        snprintf(message, sizeof message, "ascend_fuseep: %s: %llu, the kernel takes",
                 cases[i].what, (unsigned long long)(cases[i].value * cases[i].multiple));
        int rc = resolve();
        cr_assert_eq(rc, cases[i].taken ? 0 : MP_ERR_UNSUPPORTED, "case %zu: %s", i, err.message);
        if (!cases[i].taken)
            cr_assert_eq(strncmp(err.message, message, strlen(message)), 0, "%s", err.message);
    }
}

Test(backend, fuseep_counts_redundant_experts)
{
    start_fuseep();
    model.num_experts = 504;
    flags.redundant = 8;
    resolve_well();
    flags.redundant = 16;
    expect_failure(MP_ERR_UNSUPPORTED, "ascend_fuseep: experts: 520, the kernel takes 1 to 512");
}

Test(backend, fuseep_tokens)
{
    static const struct {
        const char *room; /* null: unset */
        bool given;
        uint64_t tokens;
        const char *failure, *warning;
    } cases[] = {
        {NULL, false, 0, NULL, NULL},
        {"256", false, 0, NULL, NULL},
        {"257", false, 0, "ascend_fuseep: tokens a rank: 257, the kernel takes 1 to 256", NULL},
        {"0", false, 0, "ascend_fuseep: tokens a rank: 0, the kernel takes 1 to 256", NULL},
        {NULL, true, 0, "ascend_fuseep: tokens a rank: 0, the kernel takes 1 to 256", NULL},
        {NULL, true, 1, NULL, NULL},
        {NULL, true, 128, NULL, NULL},
        {NULL, true, 129, NULL, "--tokens: 129 tokens a rank, the buffer holds 128 (" DISPATCH ")"},
        {"256", true, 256, NULL, NULL},
        {"999", true, 257, "ascend_fuseep: tokens a rank: 257, the kernel takes 1 to 256", NULL},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        start_fuseep();
        flags.tokens_given = cases[i].given;
        flags.tokens = cases[i].tokens;
        if (cases[i].room)
            set_env(DISPATCH, cases[i].room);
        if (cases[i].failure) {
            expect_failure(MP_ERR_UNSUPPORTED, cases[i].failure);
            continue;
        }
        resolve_well();
        expect_warning(cases[i].warning);
    }
}

Test(backend, deepep_on_npu)
{
    static const char *const lists[MP_DEEPEP_COUNT] = {
        "receive counts in normal mode, the group list in low latency mode", "receive counts",
        "group list"};

    for (int mode = 0; mode < MP_DEEPEP_COUNT; mode++) {
        start_case();
        ask_for(MP_A2A_DEEPEP);
        flags.platform = MP_PLATFORM_NPU;
        flags.deepep_mode = (mp_deepep_mode)mode;
        set_scheme(MP_SCHEME_INT8_CHANNEL);
        resolve_well();
        expect_text(backend.dispatcher_output_dtype, "bf16");
        expect_decision("group_list_type", "1", "--platform");
        expect_decision("group_list", lists[mode], "--deepep-mode");
        expect_decision("weight_offsets", "squeezed", "--platform");
        cr_assert_null(backend.target);
    }
    ask_for(MP_A2A_MOONCAKE);
    resolve_well();
    cr_assert_null(find_decision("group_list"));
    cr_assert_null(backend.dispatcher_output_dtype);
}

/* ------------------------------------------------------------------------
 * 9. Waterfill
 */

Test(backend, waterfill)
{
    for (size_t i = 0; i < OLD_A2A_COUNT; i++) {
        bool class = i == MP_A2A_DEEPEP || i == MP_A2A_MOONCAKE || i == MP_A2A_MORI;

        for (uint64_t shared = 0; shared <= 2; shared++) {
            start_fuseep();
            ask_for((mp_a2a)i);
            flags.shared = MP_SHARED_FUSED;
            flags.redundant = 32;
            model.num_shared_experts = shared;
            resolve_well();
            cr_assert_eq(backend.waterfill_routed_experts, class && shared == 1 ? 288 : 0, "%s",
                         mp_a2a_name(i));
        }
    }
    ask_for(MP_A2A_DEEPEP);
    flags.shared = MP_SHARED_FUSED;
    model.num_shared_experts = 1;
    resolve_well();
    expect_decision("waterfill", "288", "--shared");
    expect_why("waterfill", "possible, with the physical routed count: 256 and 32 redundant");
    flags.shared = MP_SHARED_SEPARATE;
    resolve_well();
    cr_assert_eq(backend.waterfill_routed_experts, 0);
    expect_decision("waterfill", "off", "--shared");
    ask_for(MP_A2A_NIXL);
    resolve_well();
    expect_decision("waterfill", "off", "--backend");
}
