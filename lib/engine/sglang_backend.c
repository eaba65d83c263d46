/* SPDX-License-Identifier: Apache-2.0 */
/* sglang-2026-09: which backend there will be, and what each of them refuses. Rules R2, R3, R7, R17
 * and R18 of moepack-plan(1).
 *
 * Aliases come first, as a runner may stand for a backend, then what overrides a backend that was
 * asked for (waterfill), then what backends demand of other flags. Only after all of these is the
 * backend written down, with what decided on it. A flag that is not given is not judged: its
 * default hangs on things that plan does not know.
 *
 * Each function names the engine's own, so that it can be held against the next version. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "engine/rules.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------
 * Facts of the model
 */

bool mp_is_v4(const mp_backend_model *model)
{
    return mp_text_is(model->architecture, "DeepseekV4ForCausalLM");
}

bool mp_is_v4_nvfp4(const mp_backend_model *model)
{
    return mp_is_v4(model) && mp_text_is(model->quant_algo, "MIXED_PRECISION") &&
           mp_text_is(model->moe_quant_algo, "NVFP4");
}

bool mp_has_scheme(const mp_backend_model *model, mp_scheme scheme)
{
    return model->has_scheme && model->scheme == scheme;
}

const char *mp_quantization(const mp_backend_model *model)
{
    return model->quantization[0] ? model->quantization : "none";
}

/* ------------------------------------------------------------------------
 * R2, R18. Runners that are backends
 */

static void set_backend(mp_resolution *r, mp_a2a backend, const char *decided_by, const char *why)
{
    r->backend->backend = backend;
    r->backend_by = decided_by;
    r->backend_why = why;
}

/* R18. FlashInfer's own MegaMoE behind the backend of that name.
 * Source: arg_groups/mega_moe_hook.py, handle_flashinfer_megamoe. */
static void take_flashinfer_runner(mp_resolution *r)
{
    const mp_backend_flags *flags = r->flags;
    mp_a2a asked = r->backend->backend;

    r->flashinfer_runner = true;
    r->fusion_off_by = "--runner";
    if (flags->overlap == MP_OVERLAP_TWO_BATCH)
        mp_refuse(r, "--overlap two-batch: runner flashinfer_megamoe does not overlap two batches");
    if (flags->eplb || flags->redundant > 0)
        mp_refuse(r, "runner flashinfer_megamoe takes neither EPLB nor redundant experts (%s)",
                  flags->eplb ? "--eplb" : "--redundant");
    if (flags->flashinfer_tokens_given && flags->flashinfer_tokens <= 0)
        mp_refuse(r, "--flashinfer-max-tokens %" PRId64 ": it has to be positive",
                  flags->flashinfer_tokens);
    mp_warn(r, "runner flashinfer_megamoe needs #38321, which is not in a release of these rules");
    if (asked != MP_A2A_NONE && asked != MP_A2A_MEGAMOE)
        mp_refuse(r, "--backend %s: runner flashinfer_megamoe takes none or megamoe",
                  mp_a2a_name(asked));
    else
        set_backend(r, MP_A2A_MEGAMOE, "--runner", "runner flashinfer_megamoe computes behind it");
}

/* R2. Source: arg_groups/mega_moe_hook.py, handle_moe_runner_backend_alias. */
int mp_sglang_aliases(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    if (b->runner == MP_RUNNER_MEGAMOE) {
        if (r->flags->backend_given && b->backend != MP_A2A_MEGAMOE)
            mp_warn(r, "--backend %s is overridden: --runner megamoe is --backend megamoe",
                    mp_a2a_name(b->backend));
        set_backend(r, MP_A2A_MEGAMOE, "--runner", "--runner megamoe is --backend megamoe");
        b->runner = MP_RUNNER_AUTO;
        r->runner_why = "megamoe stands for the backend";
    } else if (b->runner == MP_RUNNER_FLASHINFER_MEGAMOE &&
               b->backend != MP_A2A_FLASHINFER_MEGAMOE) {
        take_flashinfer_runner(r);
    }
    /* What rules behind this one go by. */
    b->megamoe = b->backend == MP_A2A_MEGAMOE;
    return 0;
}

/* R2. Source: the same, check_mega_moe_compat. */
int mp_sglang_start_of_megamoe(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    /* The runner has refused it already. */
    bool said = r->flashinfer_runner && flags->overlap == MP_OVERLAP_TWO_BATCH;
    mp_platform p = flags->platform;

    (void)err;
    if (!r->backend->megamoe)
        return 0;
    if (flags->overlap != MP_OVERLAP_NONE && !said)
        mp_refuse(r, "--overlap %s: megamoe has no split into dispatch and combine to overlap",
                  mp_overlap_name(flags->overlap));
    if (!r->flashinfer_runner && p != MP_PLATFORM_CUDA_SM90 && p != MP_PLATFORM_CUDA_SM100 &&
        p != MP_PLATFORM_HIP)
        mp_refuse(r, "--platform %s: megamoe needs SM90 (block FP8), SM10x (FP4) or ROCm",
                  mp_platform_name(p));
    return 0;
}

/* ------------------------------------------------------------------------
 * R3. Waterfill
 */

/* Source: arg_groups/overrides.py, _a2a_backend_overrides. */
int mp_sglang_waterfill_backend(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    if (!r->flags->waterfill)
        return 0;
    if (!mp_text_is(r->model->architecture, "DeepseekV3ForCausalLM") || r->flags->tp < 2)
        mp_warn(r, "--waterfill is for DeepSeek V3 and R1 with 2 ranks or more");
    if (b->backend == MP_A2A_DEEPEP || b->megamoe)
        return 0;
    mp_warn(r, "--backend %s is overridden: waterfill needs deepep or megamoe",
            mp_a2a_name(b->backend));
    set_backend(r, MP_A2A_DEEPEP, "--waterfill", "waterfill needs deepep or megamoe");
    return 0;
}

/* ------------------------------------------------------------------------
 * R7. What backends refuse. Source: arg_groups/moe_hook.py, handle_a2a_moe and validate_*
 */

static bool is_known_chunk(const mp_backend_flags *flags)
{
    return flags->chunked_prefill_given && flags->chunked_prefill > 0;
}

static void set_mode(mp_resolution *r, mp_deepep_mode mode)
{
    r->backend->deepep_mode = mode;
    mp_decide(r, "deepep_mode", mp_deepep_mode_name(mode), "--backend", "%s has no other",
              mp_a2a_name(r->backend->backend));
}

/* Chunks that a dispatch buffer does not hold. */
static void check_chunk(mp_resolution *r, const char *what, int64_t tokens,
                        const mp_env_number *room)
{
    if (tokens > room->value)
        mp_refuse(r, "%s: %s %" PRId64 " is more than %s, %" PRId64,
                  mp_a2a_name(r->backend->backend), what, tokens, room->name, room->value);
}

static void check_mori(mp_resolution *r)
{
    const mp_backend_flags *flags = r->flags;

    if (is_known_chunk(flags) && flags->serving != MP_SERVING_DECODE)
        check_chunk(r, "--chunked-prefill", flags->chunked_prefill, &r->env.mori_tokens);
    if (flags->deepep_mode == MP_DEEPEP_AUTO)
        set_mode(r, MP_DEEPEP_NORMAL);
}

/* deepep_v2 and pplx have one runner. */
static void check_deep_gemm(mp_resolution *r)
{
    mp_backend *b = r->backend;

    if (b->runner == MP_RUNNER_AUTO) {
        b->runner = MP_RUNNER_DEEP_GEMM;
        r->runner_by = r->backend_by;
        r->runner_why = "the only runner of the backend";
    } else if (b->runner != MP_RUNNER_DEEP_GEMM) {
        mp_refuse(r, "--runner %s: backend %s runs on deep_gemm only", mp_runner_name(b->runner),
                  mp_a2a_name(b->backend));
    }
}

static void check_pplx(mp_resolution *r)
{
    const mp_backend_flags *flags = r->flags;
    int64_t tokens = flags->chunked_prefill;

    if (flags->deepep_mode == MP_DEEPEP_NORMAL)
        mp_refuse(r, "--deepep-mode normal: pplx has low_latency only");
    if (flags->dp < 2)
        mp_refuse(r, "pplx needs attention DP of 2 ranks or more, --dp is %" PRIu64,
                  flags->dp ? flags->dp : 1);
    check_deep_gemm(r);
    if (is_known_chunk(flags) && flags->serving != MP_SERVING_DECODE) {
        /* The larger of the two is what the buffer has to hold. */
        bool graphs = flags->graph_bs_given && flags->graph_bs > (uint64_t)tokens;

        check_chunk(r, graphs ? "--graph-bs" : "--chunked-prefill",
                    graphs ? (int64_t)flags->graph_bs : tokens, &r->env.pplx_tokens);
    }
    set_mode(r, MP_DEEPEP_LOW_LATENCY);
}

static int check_deepep_v2(mp_resolution *r, mp_error *err)
{
    const mp_backend_flags *flags = r->flags;
    const mp_env_number *room = &r->env.deepep_v2_tokens;
    uint64_t draft = flags->draft_tokens ? flags->draft_tokens : 1, tokens;

    check_deep_gemm(r);
    if (flags->overlap != MP_OVERLAP_NONE)
        mp_refuse(r, "--overlap %s: deepep_v2 overlaps nothing", mp_overlap_name(flags->overlap));
    if (is_known_chunk(flags) && flags->serving != MP_SERVING_DECODE)
        check_chunk(r, "--chunked-prefill", flags->chunked_prefill, room);
    /* Too many for any buffer. */
    if (!mp_mul_u64(flags->graph_bs, draft, &tokens) || tokens > INT64_MAX)
        tokens = INT64_MAX;
    if (flags->graph_bs_given && flags->serving != MP_SERVING_PREFILL)
        check_chunk(r, "decode", (int64_t)tokens, room);
    if (flags->draft_tokens > 1)
        mp_warn(r, "deepep_v2 is not a backend for a draft model, except n-grams");
    mp_warn(r, "whether deepep_v2 knows architecture %s is not known",
            r->model->architecture[0] ? r->model->architecture : "of this model");
    r->fusion_off_by = "--backend";
    /* The engine sets it, unless it is set. */
    if (mp_env_get(r->variables, "NCCL_CUMEM_ENABLE"))
        return 0;
    return mp_env_set(&r->backend->forward, "NCCL_CUMEM_ENABLE", "1", err);
}

static void check_flashinfer(mp_resolution *r)
{
    const mp_backend_flags *flags = r->flags;
    const uint64_t runners[] = {MP_RUNNER_FLASHINFER_CUTLASS, MP_RUNNER_FLASHINFER_CUTEDSL,
                                MP_RUNNER_FLASHINFER_TRTLLM,  MP_RUNNER_FLASHINFER_TRTLLM_ROUTED,
                                MP_RUNNER_DEEP_GEMM,          MP_RUNNER_TRITON};
    mp_runner runner = r->backend->runner;
    bool found = false;

    r->fusion_off_by = "--backend";
    if (flags->dp != flags->tp && (flags->dp > 0 || flags->tp > 1))
        mp_refuse(r, "flashinfer: --dp is %" PRIu64 ", it has to be --tp, %" PRIu64,
                  flags->dp ? flags->dp : 1, flags->tp);
    for (size_t i = 0; i < COUNT(runners); i++)
        found |= runners[i] == runner;
    if (!found)
        mp_refuse(r,
                  "runner %s: backend flashinfer takes flashinfer_cutlass, flashinfer_cutedsl, "
                  "flashinfer_trtllm, flashinfer_trtllm_routed, deep_gemm and triton",
                  mp_runner_name(runner));
    if (runner != MP_RUNNER_TRITON)
        return;
    if (r->model->quantization[0])
        mp_refuse(r, "runner triton: with backend flashinfer it takes no quantization, not %s",
                  r->model->quantization);
    if (flags->eplb || flags->redundant > 0)
        mp_refuse(r, "runner triton: with backend flashinfer it takes neither EPLB nor redundant "
                     "experts");
}

/* Context parallel prefill of DeepSeek V4, which makes attn_cp the number of ranks.
 * Source: arg_groups/deepseek_v4_hook.py, validate_deepseek_v4_cp. */
static void check_v4_prefill_cp(mp_resolution *r)
{
    const mp_backend_flags *flags = r->flags;
    mp_a2a a2a = r->backend->backend;

    if (!mp_is_v4(r->model) || !flags->prefill_cp)
        return;
    if (a2a != MP_A2A_NONE && a2a != MP_A2A_DEEPEP && a2a != MP_A2A_MEGAMOE && a2a != MP_A2A_MORI)
        mp_refuse(r,
                  "--prefill-cp: DeepSeek V4 takes it with none, deepep, megamoe and mori, not %s",
                  mp_a2a_name(a2a));
    if (flags->tp > 8)
        mp_refuse(r, "--prefill-cp: DeepSeek V4 takes 8 ranks at most, --tp is %" PRIu64,
                  flags->tp);
    if (flags->dp > 1 && flags->platform != MP_PLATFORM_NPU)
        mp_refuse(r, "--prefill-cp: DeepSeek V4 takes no attention DP, --dp is %" PRIu64,
                  flags->dp);
}

int mp_sglang_backend_limits(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;
    int rc = 0;

    check_v4_prefill_cp(r);
    switch (b->backend) {
    case MP_A2A_MORI:
        check_mori(r);
        break;
    case MP_A2A_PPLX:
        check_pplx(r);
        break;
    case MP_A2A_DEEPEP_V2:
        rc = check_deepep_v2(r, err);
        break;
    case MP_A2A_FLASHINFER:
        check_flashinfer(r);
        break;
    case MP_A2A_ASCEND_TP:
        set_backend(r, MP_A2A_NONE, "--backend", "ascend_tp is turned into none");
        break;
    case MP_A2A_FLASHINFER_MEGAMOE:
        if (b->runner == MP_RUNNER_AUTO) {
            b->runner = MP_RUNNER_FLASHINFER_MEGAMOE;
            r->runner_by = r->backend_by;
            r->runner_why = "the only runner of the backend";
        }
        break;
    default:
        break;
    }
    return rc;
}

/* The backend and the runner, after all that has a say in them. */
int mp_sglang_name_backend(mp_resolution *r, mp_error *err)
{
    mp_backend *b = r->backend;

    (void)err;
    mp_decide(r, "backend", mp_a2a_name(b->backend), r->backend_by, "%s", r->backend_why);
    mp_decide(r, "runner", mp_runner_name(b->runner), r->runner_by, "%s", r->runner_why);
    if (r->fusion_off_by && r->flags->shared == MP_SHARED_FUSED)
        mp_warn(r, "--shared fused: %s turns the fusion of shared experts off", r->fusion_off_by);
    return 0;
}

/* ------------------------------------------------------------------------
 * R17. Backend flashinfer_megamoe
 */

/* Source: moe_hook.py, validate_flashinfer_megamoe_envs. */
static void check_combine(mp_resolution *r)
{
    static const char name[] = "SGLANG_FLASHINFER_MEGAMOE_COMBINE_DTYPE";
    static const char *const known[] = {"bf16", "mxfp8", "nvfp4", NULL};
    const char *text = mp_env_get(r->variables, name);
    char dtype[16] = "bf16";
    size_t n;

    if (text) {
        text += strspn(text, " \t");
        for (n = strlen(text); n > 0 && isblank((unsigned char)text[n - 1]);)
            n--;
        snprintf(dtype, sizeof dtype, "%.*s", (int)(n < sizeof dtype ? n : sizeof dtype), text);
        for (n = 0; dtype[n]; n++)
            dtype[n] = (char)tolower((unsigned char)dtype[n]);
    }
    if (!mp_text_among(dtype, known))
        mp_refuse(r, "%s: \"%s\" is not bf16, mxfp8 or nvfp4", name, text);
    else if (r->env.fc2_reduce.value && !mp_text_is(dtype, "bf16"))
        mp_refuse(r, "%s: %s does not work with %s, which takes bf16", name, dtype,
                  r->env.fc2_reduce.name);
}

/* Source: moe_hook.py, handle_a2a_moe and validate_flashinfer_megamoe_model. */
int mp_sglang_flashinfer_megamoe(mp_resolution *r, mp_error *err)
{
    static const char *const architectures[] = {
        "DeepseekV2ForCausalLM",      "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",     "DeepseekV4ForCausalLM",
        "Glm4MoeForCausalLM",         "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM", "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",        NULL};
    static const char *const quantizations[] = {"mxfp8", "modelopt_fp4", NULL};
    const mp_backend_flags *flags = r->flags;
    const mp_backend_model *model = r->model;
    const mp_backend *b = r->backend;

    (void)err;
    if (b->backend != MP_A2A_FLASHINFER_MEGAMOE)
        return 0;
    if (flags->dp != flags->tp && (flags->dp > 0 || flags->tp > 1))
        mp_refuse(r, "flashinfer_megamoe: --dp is %" PRIu64 ", it has to be --tp, %" PRIu64,
                  flags->dp ? flags->dp : 1, flags->tp);
    if (b->runner != MP_RUNNER_FLASHINFER_MEGAMOE)
        mp_refuse(r, "flashinfer_megamoe: runner is %s (%s), it has to be flashinfer_megamoe",
                  mp_runner_name(b->runner), r->runner_by);
    if (flags->platform != MP_PLATFORM_CUDA_SM100)
        mp_refuse(r, "--platform %s: flashinfer_megamoe runs on cuda-sm100",
                  mp_platform_name(flags->platform));
    if (!mp_text_among(model->architecture, architectures))
        mp_refuse(r, "flashinfer_megamoe does not take architecture %s",
                  model->architecture[0] ? model->architecture : "of no name");
    if (!mp_text_among(model->quantization, quantizations) && !mp_is_v4_nvfp4(model) &&
        !(mp_is_v4(model) && mp_has_scheme(model, MP_SCHEME_MXFP4)))
        mp_refuse(r,
                  "flashinfer_megamoe: quantization is %s, it takes mxfp8, modelopt_fp4 and the "
                  "FP4 of DeepSeek V4",
                  mp_quantization(model));
    check_combine(r);
    return 0;
}
