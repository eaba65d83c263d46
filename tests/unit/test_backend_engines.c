/* SPDX-License-Identifier: Apache-2.0 */
/* Engines beside sglang-0.5.15: what each has, and rules at their boundaries that the golden cases
 * do not reach. */
#include "backend_case.h"

#include "failing_memory.h"

/* DeepSeek V4 Flash on eight GPUs with megamoe. */
static void start_new(void)
{
    start_case();
    flags.engine = MP_ENGINE_SGLANG_2026_09;
    model.num_layers = 43;
    model.shared_fp8_blocks = true;
    ask_for(MP_A2A_MEGAMOE);
}

TestSuite(backend_engines, .init = start_new, .fini = end_case);

static bool has_text(const mp_problems *problems, const char *text)
{
    for (uint64_t i = 0; i < problems->count && i < MP_PROBLEMS_KEPT; i++)
        if (strstr(problems->text[i], text))
            return true;
    return false;
}

static void expect_refusal(const char *text)
{
    resolve_well();
    cr_assert(has_text(&backend.refusals, text), "%s", text);
}

static void expect_no_refusal(void)
{
    resolve_well();
    cr_assert_eq(backend.refusals.count, 0, "%s", backend.refusals.text[0]);
}

/* ------------------------------------------------------------------------
 * What there is
 */

Test(backend_engines, have_names_and_short_ones)
{
    static const struct {
        const char *name;
        mp_engine engine;
    } names[] = {
        {"sglang-2026-09", MP_ENGINE_SGLANG_2026_09}, {"sglang-0.5.15", MP_ENGINE_SGLANG_0_5_15},
        {"vllm-2026-09", MP_ENGINE_VLLM_2026_09},     {"trtllm-2026-09", MP_ENGINE_TRTLLM_2026_09},
        {"sglang", MP_ENGINE_SGLANG_2026_09},         {"vllm", MP_ENGINE_VLLM_2026_09},
        {"trtllm", MP_ENGINE_TRTLLM_2026_09},
    };
    mp_engine engine;

    for (size_t i = 0; i < 7; i++) {
        cr_assert(mp_engine_parse(names[i].name, &engine));
        cr_assert_eq(engine, names[i].engine);
        cr_assert_str_eq(mp_engine_name(i), names[i].name);
    }
    cr_assert_null(mp_engine_name(7));
    cr_assert_not(mp_engine_parse("sglang-0.5.16", &engine));
    cr_assert_str_eq(mp_engine_name(MP_ENGINE_TRTLLM_2026_09), "trtllm-2026-09");
}

Test(backend_engines, take_flags_that_they_have_rules_for)
{
    static const struct {
        const char *flag;
        bool takes[MP_ENGINE_COUNT];
    } cases[] = {
        {"--tp", {true, true, true, true}},        {"--redundant", {true, true, true, true}},
        {"--runner", {true, true, false, false}},  {"--tokens", {true, true, false, false}},
        {"--w4a4", {true, false, false, false}},   {"--eplb", {true, false, true, true}},
        {"--dp", {true, false, false, true}},      {"--role", {true, false, false, false}},
        {"--capture", {true, true, false, false}}, {"--pack", {true, true, true, true}},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int e = 0; e < MP_ENGINE_COUNT; e++)
            cr_assert_eq(mp_engine_takes((mp_engine)e, cases[i].flag), cases[i].takes[e],
                         "%s of %s", cases[i].flag, mp_engine_name((size_t)e));
}

/* Every backend of every engine resolves, or is refused as unknown; none ends otherwise. */
Test(backend_engines, resolve_with_every_backend_and_runner)
{
    unsigned resolved = 0;

    for (int e = 0; e < MP_ENGINE_COUNT; e++) {
        for (int a = 0; a < MP_A2A_COUNT; a++) {
            for (int runner = 0; runner < MP_RUNNER_COUNT; runner++) {
                start_new();
                flags.engine = (mp_engine)e;
                ask_for((mp_a2a)a);
                flags.runner = (mp_runner)runner;
                flags.platform = a == MP_A2A_ASCEND_FUSEEP ? MP_PLATFORM_NPU : flags.platform;
                if (a == MP_A2A_ASCEND_FUSEEP)
                    set_scheme(MP_SCHEME_INT8_CHANNEL);
                int rc = resolve();
                cr_assert(rc == 0 || rc == MP_ERR_USAGE, "%s", err.message);
                cr_assert_eq(rc, mp_backend_check_flags(&flags, NULL));
                resolved += rc == 0;
            }
        }
    }
    cr_assert_eq(resolved, 9 * 5 + 12 * 19 + 5 + 3);
}

/* ------------------------------------------------------------------------
 * SGLang: the token budget
 */

Test(backend_engines, budget_does_not_wrap_around)
{
    flags.graph_bs_given = true;
    flags.graph_bs = UINT64_MAX / 2;
    flags.draft_tokens = 3;
    flags.chunked_prefill_given = true;
    flags.chunked_prefill = INT64_MAX;
    expect_refusal("decode 18446744073709551615 (9223372036854775807 x 3) > cap 1024");
    cr_assert(has_text(&backend.refusals, "prefill 9223372036854775808 > cap 1024"));
    expect_decision("token_budget", "refused", "--graph-bs");
}

Test(backend_engines, budget_is_not_judged_without_a_class)
{
    model.architecture[0] = '\0';
    resolve_well();
    expect_decision("token_budget", "not judged", "architectures");
    strcpy(model.quant_algo, "W4A16_NVFP4");
    resolve_well();
    expect_decision("token_budget", "not judged", "default");
    expect_why("token_budget", "without --graph-bs and --chunked-prefill; the default cap is below "
                               "most sizes of chunks");
    flags.serving = MP_SERVING_PREFILL;
    flags.chunked_prefill_given = true;
    flags.chunked_prefill = 1024;
    resolve_well();
    expect_decision("token_budget", "ok", "--chunked-prefill");
}

Test(backend_engines, a_negative_cap_holds_nothing)
{
    set_env("SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK", "-5");
    flags.tokens_given = true;
    flags.tokens = 1;
    resolve_well();
    cr_assert_eq(backend.token_cap, 0);
    cr_assert_not(backend.use_mega_moe);
    set_env("SGLANG_OPT_DEEPGEMM_MEGA_MOE_NUM_MAX_TOKENS_PER_RANK", "+1");
    resolve_well();
    cr_assert(backend.use_mega_moe);
}

/* ------------------------------------------------------------------------
 * SGLang: backends
 */

Test(backend_engines, deepep_v2_needs_a_variable_that_may_be_set)
{
    ask_for(MP_A2A_DEEPEP_V2);
    resolve_well();
    expect_forward("NCCL_CUMEM_ENABLE=1");
    set_env("NCCL_CUMEM_ENABLE", "0");
    resolve_well();
    expect_forward("");
    flags.graph_bs_given = true;
    flags.graph_bs = 64;
    flags.draft_tokens = 2;
    expect_no_refusal();
    cr_assert(has_text(&backend.warnings, "not a backend for a draft model"));
    flags.draft_tokens = 3;
    expect_refusal(
        "decode 192 is more than SGLANG_DEEPEP_V2_NUM_MAX_DISPATCH_TOKENS_PER_RANK, 128");
    flags.serving = MP_SERVING_PREFILL;
    expect_no_refusal();
}

Test(backend_engines, flashinfer_refuses_the_runner_that_is_chosen_later)
{
    ask_for(MP_A2A_FLASHINFER);
    set_scheme(MP_SCHEME_BF16);
    flags.dp = 8;
    expect_refusal("runner auto: backend flashinfer takes flashinfer_cutlass");
    flags.runner = MP_RUNNER_TRITON;
    expect_no_refusal();
    flags.shared = MP_SHARED_FUSED;
    resolve_well();
    cr_assert(has_text(&backend.warnings, "--shared fused: --backend turns the fusion"));
}

Test(backend_engines, cutedsl_with_deepep_has_low_latency)
{
    ask_for(MP_A2A_DEEPEP);
    set_scheme(MP_SCHEME_NVFP4);
    flags.runner = MP_RUNNER_FLASHINFER_CUTEDSL;
    expect_no_refusal();
    expect_decision("deepep_mode", "low_latency", "--runner");
    expect_decision("dispatcher_output_dtype", "not predicted", "--quantize");
    flags.deepep_mode = MP_DEEPEP_NORMAL;
    expect_refusal("--deepep-mode normal: runner flashinfer_cutedsl has low_latency only");
}

Test(backend_engines, prefill_cp_of_v4_is_of_few)
{
    flags.prefill_cp = true;
    expect_no_refusal();
    flags.dp = 2;
    expect_refusal("DeepSeek V4 takes no attention DP, --dp is 2");
    flags.dp = 0;
    flags.tp = 16;
    expect_refusal("DeepSeek V4 takes 8 ranks at most, --tp is 16");
    strcpy(model.architecture, "DeepseekV32ForCausalLM");
    expect_no_refusal();
}

/* ------------------------------------------------------------------------
 * SGLang: layouts, memory, what is without effect
 */

Test(backend_engines, rocm_has_its_own)
{
    flags.platform = MP_PLATFORM_HIP;
    expect_no_refusal();
    expect_decision("target", "none", "--platform");
    expect_decision("token_cap", "8192", "default");
    cr_assert(has_text(&backend.warnings, "SGLANG_AMD_USE_FLYDSL_MEGA_MOE is not true"));
    set_env("SGLANG_AMD_USE_FLYDSL_MEGA_MOE", "y");
    set_env("SGLANG_AMD_FLYDSL_MEGA_MOE_MTPR", "777");
    resolve_well();
    cr_assert_eq(backend.warnings.count, 0);
    expect_decision("token_cap", "777", "SGLANG_AMD_FLYDSL_MEGA_MOE_MTPR");
}

Test(backend_engines, formats_of_doubtful_use_are_warned_about)
{
    set_scheme(MP_SCHEME_NVFP4);
    expect_no_refusal();
    cr_assert_eq(backend.warnings.count, 0);
    model.weight_only = true;
    resolve_well();
    cr_assert(has_text(&backend.warnings, "W4A16_NVFP4 was made for 16-bit activations"));
    model.weight_only = false;
    strcpy(model.quant_method, "compressed-tensors");
    resolve_well();
    cr_assert(has_text(&backend.warnings, "nvfp4 of compressed-tensors"));
    strcpy(model.activation, "situ");
    resolve_well();
    cr_assert(has_text(&backend.warnings, "activation situ: whether"));
    expect_text(backend.target, "megamoe-nvfp4");
}

Test(backend_engines, flags_without_effect_are_named)
{
    ask_for(MP_A2A_NONE);
    flags.w4a4 = true;
    flags.fuseep_mode = 1;
    flags.deepep_dtype = MP_DISPATCH_BF16;
    flags.flashinfer_tokens_given = true;
    resolve_well();
    cr_assert(has_text(&backend.warnings, "--w4a4 has no effect: it is for megamoe with mxfp4"));
    cr_assert(has_text(&backend.warnings, "--fuseep-mode has no effect: it is for ascend_fuseep"));
    cr_assert(has_text(&backend.warnings, "--deepep-dtype has no effect: it is for deepep"));
    cr_assert(has_text(&backend.warnings, "--flashinfer-max-tokens has no effect"));
}

Test(backend_engines, shared_experts_name_the_first_condition_that_fails)
{
    resolve_well();
    expect_decision("shared_experts", "in_kernel", "default");
    flags.shared = MP_SHARED_FUSED;
    resolve_well();
    expect_decision("shared_experts", "ordinary", "--shared");
    flags.shared = MP_SHARED_SEPARATE;
    model.shared_fp8_blocks = false;
    resolve_well();
    expect_decision("shared_experts", "ordinary", "quantization_config");
    model.num_shared_experts = 0;
    resolve_well();
    cr_assert_null(find_decision("shared_experts"));
}

Test(backend_engines, sizes_that_are_refused_are_not_estimated)
{
    mp_backend_memory memory;

    model.moe_intermediate_size = 2240;
    expect_refusal("2240 is not a multiple of 512 (fp8xfp4)");
    cr_assert_eq(mp_backend_estimate(&memory, &backend, &model, 1, &err), 0);
    cr_assert_not(memory.known);
    model.moe_intermediate_size = 2048;
    expect_no_refusal();
    cr_assert_eq(mp_backend_estimate(&memory, &backend, &model, UINT64_C(1) << 40, &err), 0);
    cr_assert(memory.known && memory.has_second_scales && !memory.has_total && !memory.has_verdict);
    cr_assert_eq(mp_backend_estimate(&memory, &backend, &model, UINT64_C(1) << 30, &err), 0);
    cr_assert(memory.has_verdict && !memory.fits, "18 GB do not fit 1 GiB, whatever the buffer is");
}

/* ------------------------------------------------------------------------
 * FuseEP
 */

Test(backend_engines, fuseep_computes_silu)
{
    ask_for(MP_A2A_ASCEND_FUSEEP);
    flags.platform = MP_PLATFORM_NPU;
    set_scheme(MP_SCHEME_INT8_CHANNEL);
    resolve_well();
    cr_assert_eq(backend.fuse_mode, 2);
    set_env("SGLANG_NPU_FUSED_MOE_MODE", "1");
    resolve_well();
    cr_assert_eq(backend.fuse_mode, 2);
    expect_warning("SGLANG_NPU_FUSED_MOE_MODE is no longer read: see --fuseep-mode");
    strcpy(model.activation, "gelu");
    expect_failure(MP_ERR_UNSUPPORTED,
                   "ascend_fuseep: activation gelu (hidden_act): the kernel does not compute it");
}

Test(backend_engines, fuseep_does_not_wrap_around)
{
    ask_for(MP_A2A_ASCEND_FUSEEP);
    flags.platform = MP_PLATFORM_NPU;
    set_scheme(MP_SCHEME_INT8_CHANNEL);
    flags.tokens_given = true;
    flags.tokens = UINT64_MAX;
    cr_assert_eq(resolve(), MP_ERR_UNSUPPORTED);
    cr_assert_not_null(strstr(err.message, "HCCL"));
}

/* ------------------------------------------------------------------------
 * vLLM and TensorRT-LLM
 */

Test(backend_engines, what_the_engine_chooses_itself_is_not_predicted)
{
    for (int e = MP_ENGINE_VLLM_2026_09; e < MP_ENGINE_COUNT; e++) {
        start_new();
        flags.engine = (mp_engine)e;
        flags.backend_given = false;
        expect_no_refusal();
        expect_decision("backend", "auto", "default");
        cr_assert_not(backend.use_known || backend.has_fix_memory);
        cr_assert_null(backend.target);
    }
}

Test(backend_engines, vllm_takes_mxfp4_with_silu)
{
    flags.engine = MP_ENGINE_VLLM_2026_09;
    flags.ep = 4;
    expect_no_refusal();
    expect_decision("ep_size", "4", "--ep");
    set_scheme(MP_SCHEME_NVFP4);
    expect_refusal("experts are nvfp4: deep_gemm_mega_moe takes mxfp4, nvfp4 goes through");
    cr_assert(backend.use_known && !backend.use_mega_moe);
    ask_for(MP_A2A_FLASHINFER_EP_DEEP_GEMM);
    expect_refusal("they go through flashinfer_moe_ep_mega_cutedsl only");
    ask_for(MP_A2A_FLASHINFER_EP_CUTEDSL);
    expect_no_refusal();
    flags.platform = MP_PLATFORM_CUDA_SM120;
    expect_no_refusal();
    flags.redundant = 8;
    expect_refusal("--redundant: flashinfer_moe_ep_mega_cutedsl takes neither EPLB");
}

Test(backend_engines, kimi_k3_has_no_other_backend_in_trtllm)
{
    flags.engine = MP_ENGINE_TRTLLM_2026_09;
    flags.dp = 8;
    strcpy(model.model_type, "kimi_k3");
    strcpy(model.activation, "situ");
    expect_no_refusal();
    cr_assert(backend.use_mega_moe);
    flags.dp = 4;
    expect_refusal("attention DP has to be of 8 ranks, --dp is 4");
    strcpy(model.model_type, "deepseek_v4");
    flags.dp = 8;
    expect_no_refusal();
    cr_assert_not(backend.use_mega_moe, "situ is Kimi K3's only");
    cr_assert(has_text(&backend.warnings, "declines: activation situ"));
}

Test(backend_engines, trtllm_declines_by_ranks_and_type)
{
    flags.engine = MP_ENGINE_TRTLLM_2026_09;
    flags.ep = 4;
    flags.dp = 4;
    resolve_well();
    cr_assert(has_text(&backend.warnings, "moe_tp has to be 1: --ep is 4, --tp 8"));
    flags.tp = 4;
    model.float16 = true;
    resolve_well();
    expect_warning("MEGAMOE_DEEPGEMM declines: the model is float16, it takes bfloat16");
}

/* ------------------------------------------------------------------------
 * Memory that runs out
 */

static int resolve_and_check(mp_error *e)
{
    const mp_backend_pack pack = {
        .target = "megamoe-w4a8", .shared = MP_SHARED_NONE, .placement_xxh3 = ""};
    mp_problems mismatches = {0};
    mp_pack_checks checks;
    int rc = mp_backend_resolve(&backend, &flags, &env, &model, e);

    if (rc == 0)
        rc = mp_backend_check_pack(&backend, &model, &pack, NULL, &checks, &mismatches, e);
    mp_problems_release(&mismatches);
    mp_backend_release(&backend);
    return rc;
}

Test(backend_engines, resolving_survives_any_failed_allocation)
{
    for (int e = 0; e < MP_ENGINE_COUNT; e++) {
        start_new();
        flags.engine = (mp_engine)e;
        cr_assert_gt(memory_exhaust(resolve_and_check), 10);
    }
    start_new();
    ask_for(MP_A2A_DEEPEP_V2);
    flags.runner = MP_RUNNER_TRITON;
    cr_assert_gt(memory_exhaust(resolve_and_check), 20);
}
