/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sglang-2026-09: whether MegaMoE's buffer holds the tokens of every pass. Rule R10 of
 * moepack-plan(1).
 *
 * Some models have no other path for their MoE layers; for them the engine compares, when it
 * starts, the tokens of a decode graph and of a chunk of prefill with the buffer. A half whose flag
 * is not given is not judged: the engine's default hangs on the GPU's memory.
 *
 * Source: arg_groups/mega_moe_hook.py, validate_mega_moe_token_budget_for_model,
 * mega_moe_decode_tokens_per_rank, validate_mega_moe_token_budget.
 */
#include "engine/rules.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

typedef enum verdict { FITS, REFUSED, NOT_JUDGED } verdict;

#define WHY_ROOM 160

static uint64_t times(uint64_t a, uint64_t b)
{
    uint64_t product;

    return mp_mul_u64(a, b, &product) ? product : UINT64_MAX;
}

static bool needs_budget(const mp_backend_model *model)
{
    static const char *const without_ordinary_path[] = {
        "DeepseekV4ForCausalLM",
        "InternS2PreviewForConditionalGeneration",
        "MellumForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        NULL,
    };

    return mp_text_among(model->architecture, without_ordinary_path) ||
           mp_text_is(model->quantization, "modelopt_fp4") || strstr(model->quant_algo, "FP4");
}

/* What does not fit is refused; `text` says it in numbers. */
static verdict compare(const mp_resolution *r, uint64_t tokens, const char *text,
                       char why[WHY_ROOM])
{
    uint64_t cap = r->backend->token_cap;

    snprintf(why, WHY_ROOM, "%s %s cap %" PRIu64, text, tokens > cap ? ">" : "<=", cap);
    return tokens > cap ? REFUSED : FITS;
}

static verdict judge_decode(const mp_resolution *r, char why[WHY_ROOM])
{
    const mp_backend_flags *flags = r->flags;
    uint64_t draft = flags->draft_tokens ? flags->draft_tokens : 1;
    uint64_t tokens = times(flags->graph_bs, draft);
    char text[96];

    if (flags->serving == MP_SERVING_PREFILL)
        return FITS;
    if (!flags->graph_bs_given)
        return NOT_JUDGED;
    if (draft > 1)
        snprintf(text, sizeof text, "decode %" PRIu64 " (%" PRIu64 " x %" PRIu64 ")", tokens,
                 flags->graph_bs, draft);
    else
        snprintf(text, sizeof text, "decode %" PRIu64, tokens);
    return compare(r, tokens, text, why);
}

/* Tokens of a rank of a chunk. Context parallelism divides it, else attention DP does; what is left
 * is padded for the ranks of attention's tensor parallelism. */
static uint64_t chunk_of_rank(const mp_resolution *r, uint64_t chunk)
{
    const mp_backend_flags *flags = r->flags;
    uint64_t cp = flags->attn_cp ? flags->attn_cp : 1, dp = flags->dp ? flags->dp : 1, ranks;

    if (flags->prefill_cp)
        return mp_ceil_div(chunk, mp_is_v4(r->model) ? flags->tp : cp);
    ranks = flags->tp / dp / cp;
    ranks = ranks ? ranks : 1;
    return times(mp_ceil_div(chunk / dp, ranks), ranks);
}

static verdict judge_prefill(const mp_resolution *r, char why[WHY_ROOM])
{
    const mp_backend_flags *flags = r->flags;
    int64_t chunk = flags->chunked_prefill;
    uint64_t tokens;
    char text[48];

    if (flags->serving == MP_SERVING_DECODE || (flags->pp > 1 && flags->dynamic_chunking))
        return FITS;
    if (!flags->chunked_prefill_given)
        return NOT_JUDGED;
    if (chunk <= 0) {
        snprintf(why, WHY_ROOM, "chunked prefill has to be on, it is %" PRId64, chunk);
        return REFUSED;
    }
    tokens = chunk_of_rank(r, (uint64_t)chunk);
    if (tokens == 0) {
        snprintf(why, WHY_ROOM, "prefill %" PRId64 " divided by %" PRIu64 " ranks is 0", chunk,
                 flags->dp);
        return REFUSED;
    }
    snprintf(text, sizeof text, "prefill %" PRIu64, tokens);
    return compare(r, tokens, text, why);
}

static void decide_cap(mp_resolution *r)
{
    const mp_env_number *cap =
        r->backend->platform == MP_PLATFORM_HIP ? &r->env.flydsl_tokens : &r->env.mega_tokens;
    int64_t tokens = cap->value;

    if (r->flashinfer_runner) {
        tokens = r->flags->flashinfer_tokens;
        r->backend->token_cap = tokens > 0 ? (uint64_t)tokens : 0;
        if (r->flags->flashinfer_tokens_given)
            mp_decide_number(r, "token_cap", r->backend->token_cap, "--flashinfer-max-tokens",
                             "the buffer's tokens a rank");
        else
            mp_decide(r, "token_cap", "not judged", "default",
                      "the buffer's tokens a rank, see --flashinfer-max-tokens");
        return;
    }
    r->backend->token_cap = tokens > 0 ? (uint64_t)tokens : 0;
    mp_decide_number(r, "token_cap", r->backend->token_cap, cap->set ? cap->name : "default",
                     "the buffer's tokens a rank%s%s", cap->set ? "" : ", ",
                     cap->set ? "" : cap->name);
}

/* The flag of the half that was judged, the first where both were. */
static const char *decided_by(const mp_backend_flags *flags)
{
    if (flags->serving != MP_SERVING_PREFILL)
        return "--graph-bs";
    return flags->chunked_prefill_given ? "--chunked-prefill" : "--dynamic-chunking";
}

static void decide_budget(mp_resolution *r)
{
    char decode[WHY_ROOM] = "no decode here", prefill[WHY_ROOM] = "no chunks to judge";
    verdict d = judge_decode(r, decode), p = judge_prefill(r, prefill);
    bool by_decode = d == REFUSED;

    if (d == REFUSED)
        mp_refuse(r, "%s", decode);
    if (p == REFUSED)
        mp_refuse(r, "%s", prefill);
    if (d == REFUSED || p == REFUSED)
        mp_decide(r, "token_budget", "refused", by_decode ? "--graph-bs" : "--chunked-prefill",
                  "%s", by_decode ? decode : prefill);
    else if (d == NOT_JUDGED || p == NOT_JUDGED)
        mp_decide(r, "token_budget", "not judged", "default",
                  "without %s%s%s; the default cap is below most sizes of chunks",
                  d == NOT_JUDGED ? "--graph-bs" : "", d == p ? " and " : "",
                  p == NOT_JUDGED ? "--chunked-prefill" : "");
    else
        mp_decide(r, "token_budget", "ok", decided_by(r->flags), "%s; %s", decode, prefill);
}

int mp_sglang_token_budget(mp_resolution *r, mp_error *err)
{
    const mp_backend_model *model = r->model;

    (void)err;
    if (!r->backend->megamoe)
        return 0;
    decide_cap(r);
    r->needs_budget = r->backend->platform != MP_PLATFORM_HIP && needs_budget(model);
    if (r->backend->platform == MP_PLATFORM_HIP)
        mp_decide(r, "token_budget", "not needed", "--platform", "ROCm has another path");
    else if (!r->needs_budget && !model->architecture[0])
        mp_decide(r, "token_budget", "not judged", "architectures",
                  "whether the model has an ordinary path is not known without its class");
    else if (!r->needs_budget)
        mp_decide(r, "token_budget", "not needed", "architectures",
                  "%s has an ordinary path for what the buffer does not hold", model->architecture);
    else if (r->flashinfer_runner && !r->flags->flashinfer_tokens_given)
        mp_decide(r, "token_budget", "not judged", "default",
                  "--flashinfer-max-tokens is not given");
    else
        decide_budget(r);
    return 0;
}
