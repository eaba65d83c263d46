/* SPDX-License-Identifier: Apache-2.0 */
/* moepack plan: what the engine will do with a model's experts, and whether they fit. Here is what
 * is read before the engine's rules are asked (lib/engine), and the verdict:
 *
 *   flags -> environment -> model -> what a packed model says itself -> placement -> pack to check
 *         -> resolve -> estimate -> compare with the pack
 *
 * The order is one of trust: what the user gives stands over what a packed directory says of
 * itself, which stands over defaults. A flag that an engine does not have is refused, found by
 * comparing the options with their defaults byte by byte. The exit status is the answer: 1 where it
 * would not start, does not fit, or the pack is another. */
#include "plan.h"
#include "choices.h"
#include "commands.h"
#include "files.h"
#include "output.h"
#include "progress.h"

#include <moepack/artifact.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What is read before anything is resolved. */
typedef struct plan_job {
    const plan_options *o;
    mp_backend_flags flags;
    mp_env env;
    mp_pack *pack; /* to check; or null */
    mp_placement placement;
    plan_result result;
} plan_job;

/* ------------------------------------------------------------------------
 * Options
 */

static const char *scheme_name(size_t index)
{
    return index < MP_SCHEME_COUNT ? mp_scheme_name((mp_scheme)index) : NULL;
}

static const cmd_choice formats[] = {{"text", PLAN_TEXT}, {"env", PLAN_ENV}, {NULL, 0}};

static const cmd_option options[] = {
    OPT_STRING(0, "model", "PATH", plan_options, model, "checkpoint, pack or config.json",
               .flags = OPT_REQUIRED),
    OPT_STRING(0, "engine", "NAME", plan_options, engine, "engine and version whose rules apply",
               .choice_name = mp_engine_name),
    OPT_STRING(0, "backend", "NAME", plan_options, backend,
               "its --moe-a2a-backend, or what it calls its MoE backend",
               .choice_name = mp_a2a_name),
    OPT_STRING(0, "runner", "NAME", plan_options, runner, "its --moe-runner-backend",
               .choice_name = mp_runner_name),
    OPT_STRING(0, "deepep-mode", "MODE", plan_options, deepep_mode, "its --deepep-mode",
               .choice_name = mp_deepep_mode_name),
    OPT_STRING(0, "deepep-dtype", "TYPE", plan_options, deepep_dtype,
               "its --deepep-dispatcher-output-dtype", .choice_name = mp_dispatch_dtype_name),
    OPT_STRING(0, "platform", "NAME", plan_options, platform, "platform that it runs on",
               .choice_name = mp_platform_name),
    OPT_STRING(0, "role", "ROLE", plan_options, role, "its --disaggregation-mode",
               .choice_name = mp_serving_name),
    OPT_STRING(0, "overlap", "WHICH", plan_options, overlap,
               "its --enable-two-batch-overlap or --enable-single-batch-overlap",
               .choice_name = mp_overlap_name),
    OPT_U64(0, "tp", "N", plan_options, tp, 1, 65536, "its --tp-size"),
    OPT_U64(0, "ep", "N", plan_options, ep, 1, 65536, "its --ep-size"),
    OPT_U64(0, "dp", "N", plan_options, dp, 1, 65536, "ranks of attention data parallelism"),
    OPT_U64(0, "pp", "N", plan_options, pp, 1, 65536, "its --pp-size"),
    OPT_U64(0, "attn-cp", "N", plan_options, attn_cp, 1, 65536,
            "ranks of attention context parallelism"),
    OPT_FLAG(0, "prefill-cp", plan_options, prefill_cp, "its --enable-prefill-cp"),
    OPT_FLAG(0, "dynamic-chunking", plan_options, dynamic_chunking,
             "its --enable-dynamic-chunking"),
    OPT_INT(0, "chunked-prefill", "N", plan_options, chunked_prefill, -1, INT32_MAX,
            "its --chunked-prefill-size, -1 for none",
            .given = offsetof(plan_options, chunked_prefill_given)),
    OPT_U64(0, "graph-bs", "N", plan_options, graph_bs, 0, INT32_MAX,
            "its --cuda-graph-max-bs-decode, 0 for no graphs",
            .given = offsetof(plan_options, graph_bs_given)),
    OPT_U64(0, "draft-tokens", "N", plan_options, draft_tokens, 1, 65536,
            "its --speculative-num-draft-tokens"),
    OPT_FLAG(0, "w4a4", plan_options, w4a4, "its --enable-w4a4-mxfp4-megamoe"),
    OPT_FLAG(0, "waterfill", plan_options, waterfill, "its --enable-waterfill"),
    OPT_FLAG(0, "eplb", plan_options, eplb, "its --enable-eplb"),
    OPT_U64(0, "fuseep-mode", "N", plan_options, fuseep_mode, 1, 2, "its --fuseep-mode"),
    OPT_INT(0, "flashinfer-max-tokens", "N", plan_options, flashinfer_tokens, -1, INT32_MAX,
            "its --flashinfer-megamoe-max-num-tokens",
            .given = offsetof(plan_options, flashinfer_tokens_given)),
    OPT_U64(0, "tokens", "N", plan_options, tokens, 0, INT32_MAX,
            "tokens of this rank in a forward pass", .given = offsetof(plan_options, tokens_given)),
    OPT_LIST(0, "dp-tokens", "LIST", plan_options, dp_tokens, 0, INT32_MAX,
             "tokens of each data-parallel rank, as in 800,1200"),
    OPT_FLAG(0, "capture", plan_options, capture, "the forward pass is captured as a graph"),
    OPT_STRING(0, "quantize", "SCHEME", plan_options, quantize,
               "plan for experts requantized to SCHEME", .choice_name = scheme_name),
    OPT_U64(0, "redundant", "R", plan_options, redundant, 0, 65536, "redundant experts",
            .given = offsetof(plan_options, redundant_given)),
    OPT_CHOICE(0, "shared", "MODE", plan_options, shared, shared_choices,
               "how shared experts are packed"),
    OPT_STRING(0, "placement", "FILE", plan_options, placement,
               "placement that the engine is given, - for standard input"),
    OPT_STRING(0, "pack", "OUT", plan_options, pack,
               "check that the pack OUT is what the engine expects"),
    OPT_FLAG(0, "env", plan_options, env, "read variables from the environment"),
    OPT_STRING(0, "env-file", "FILE", plan_options, env_file,
               "read variables from NAME=VALUE lines, - for standard input"),
    OPT_SIZE(0, "gpu-memory", "SIZE", plan_options, gpu_memory, 1, INT64_MAX,
             "check that the experts and their buffers fit"),
    OPT_CHOICE(0, "format", "FORM", plan_options, format, formats, "what to print"),
    OPT_JSON(plan_options),
    OPT_END,
};
static const plan_options defaults = {
    .shared = -1,
    .engine = "sglang-2026-09",
    .runner = "auto",
    .deepep_mode = "auto",
    .platform = "cuda-sm100",
    .tp = 1,
    /* no numbers that could be given */
    .graph_bs = UINT64_MAX,
    .tokens = UINT64_MAX,
    .chunked_prefill = INT32_MIN,
    .flashinfer_tokens = INT32_MIN,
};

/* Bytes of an option's value. */
static size_t value_size_of(const cmd_option *o)
{
    switch (o->type) {
    case TYPE_FLAG:
        return sizeof(bool);
    case TYPE_INT:
    case TYPE_CHOICE:
        return sizeof(int);
    case TYPE_STRING:
        return sizeof(const char *);
    case TYPE_LIST:
        return sizeof(cmd_list);
    default:
        return sizeof(uint64_t);
    }
}

/* A flag that is given has a value that is not the default, not even by its address. */
static int check_flags(const plan_job *job, mp_error *err)
{
    const char *values = (const char *)job->o, *unset = (const char *)&defaults;
    mp_engine engine = job->flags.engine;
    char flag[32];

    for (const cmd_option *o = options; o->type != TYPE_END; o++) {
        if (memcmp(values + o->offset, unset + o->offset, value_size_of(o)) == 0)
            continue;
        snprintf(flag, sizeof flag, "--%s", o->name);
        if (!mp_engine_takes(engine, flag))
            return cmd_fail(err, MP_ERR_USAGE, "there are no rules for %s of %s", flag,
                            mp_engine_name(engine));
    }
    return mp_backend_check_flags(&job->flags, err);
}

/* ------------------------------------------------------------------------
 * Input
 */

/* A file's variables stand over those of the process. */
static int read_env(plan_job *job, mp_error *err)
{
    const char *path = job->o->env_file;
    uint64_t length;
    char *text;
    int rc = 0;

    if (job->o->env)
        rc = mp_env_add(&job->env, (const char *const *)environ, err);
    if (rc != 0 || !path)
        return rc;
    rc = mp_read_text(path, TEXT_FILE_LIMIT, &text, &length, err);
    if (rc != 0)
        return rc;
    rc = mp_env_parse(&job->env, text, length, strcmp(path, "-") == 0 ? "standard input" : path,
                      err);
    free(text);
    return rc;
}

/* On a login node there may be no more than the ranks of one machine. */
static int open_pack(plan_job *job, const char *dir, const mp_context *context, mp_error *err)
{
    const mp_pack_options some = {.size = sizeof some, .partial = true};
    int rc = mp_pack_open(&job->pack, dir, &some, context, err);

    job->result.pack = dir;
    return rc;
}

/* A packed directory as the model: its own facts, and the others of its config.json. */
static int open_packed(plan_job *job, const char *dir, const mp_context *context, mp_error *err)
{
    mp_backend_model *model = &job->result.model;
    size_t length = strlen(dir) + sizeof "/" MP_CONFIG_NAME;
    char *path;
    int rc = open_pack(job, dir, context, err);

    if (rc != 0)
        return rc;
    const mp_manifest *m = mp_pack_get(job->pack)->manifest;
    path = malloc(length);
    if (!path)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    snprintf(path, length, "%s/" MP_CONFIG_NAME, dir);
    if (m->config_xxh3[0] != '\0')
        rc = mp_backend_model_open(model, path, context, err);
    free(path);
    if (rc != 0)
        return rc;
    if (!model->has_scheme || model->scheme != m->target_scheme)
        mp_backend_model_quantize(model, m->target_scheme);
    model->source = MP_MANIFEST_NAME;
    model->scheme_from = MP_MANIFEST_NAME;
    model->hidden_size = m->hidden_size;
    model->moe_intermediate_size = m->moe_intermediate_size;
    model->num_experts = m->num_experts;
    model->num_shared_experts = m->num_shared_experts;
    model->num_layers = m->num_layers;
    return 0;
}

static int open_model(plan_job *job, const mp_context *context, mp_error *err)
{
    const plan_options *o = job->o;
    mp_scheme scheme;
    int rc;

    if (mp_is_packed(o->model))
        rc = open_packed(job, o->model, context, err);
    else
        rc = mp_backend_model_open(&job->result.model, o->model, context, err);
    if (rc == 0 && o->quantize && mp_scheme_parse(o->quantize, &scheme))
        mp_backend_model_quantize(&job->result.model, scheme);
    return rc;
}

/* Names have been held against the library's when they were parsed. */
static void take_flags(plan_job *job)
{
    const plan_options *o = job->o;
    mp_backend_flags *flags = &job->flags;

    *flags = (mp_backend_flags){
        .backend_given = o->backend != NULL,
        .tp = o->tp,
        .ep = o->ep,
        .dp = o->dp,
        .pp = o->pp,
        .attn_cp = o->attn_cp,
        .draft_tokens = o->draft_tokens,
        .prefill_cp = o->prefill_cp,
        .dynamic_chunking = o->dynamic_chunking,
        .w4a4 = o->w4a4,
        .waterfill = o->waterfill,
        .eplb = o->eplb,
        .fuseep_mode = (unsigned)o->fuseep_mode,
        .redundant = o->redundant,
        .graph_bs_given = o->graph_bs_given,
        .graph_bs = o->graph_bs_given ? o->graph_bs : 0,
        .chunked_prefill_given = o->chunked_prefill_given,
        .chunked_prefill = o->chunked_prefill,
        .flashinfer_tokens_given = o->flashinfer_tokens_given,
        .flashinfer_tokens = o->flashinfer_tokens,
        .capture = o->capture,
        .tokens_given = o->tokens_given,
        .tokens = o->tokens_given ? o->tokens : 0,
        .dp_tokens = o->dp_tokens.items,
        .num_dp_tokens = o->dp_tokens.count,
    };
    mp_engine_parse(o->engine, &flags->engine);
    if (o->backend)
        mp_a2a_parse(o->backend, &flags->backend);
    if (o->role)
        mp_serving_parse(o->role, &flags->serving);
    if (o->overlap)
        mp_overlap_parse(o->overlap, &flags->overlap);
    if (o->deepep_dtype)
        mp_dispatch_dtype_parse(o->deepep_dtype, &flags->deepep_dtype);
    mp_runner_parse(o->runner, &flags->runner);
    mp_deepep_mode_parse(o->deepep_mode, &flags->deepep_mode);
    mp_platform_parse(o->platform, &flags->platform);
    if (o->shared >= 0)
        flags->shared = (mp_shared_mode)o->shared;
}

/* What is not given of a packed directory's making is as it says itself, where it is the model. */
static void take_flags_of_pack(plan_job *job)
{
    const plan_options *o = job->o;

    if (!job->pack)
        return;
    if (o->shared < 0)
        job->flags.shared = mp_pack_get(job->pack)->manifest->shared;
    if (!o->redundant_given && !o->placement)
        job->flags.redundant = mp_pack_get(job->pack)->manifest->num_physical -
                               mp_pack_get(job->pack)->manifest->num_experts;
}

/* A placement says how many redundant experts there are. */
static int read_placement(plan_job *job, mp_error *err)
{
    const plan_options *o = job->o;
    uint64_t experts = job->result.model.num_experts;
    int rc;

    if (!o->placement)
        return 0;
    rc = load_placement(o->placement, experts, o->redundant, &job->placement, err);
    if (rc == 0)
        job->flags.redundant = job->placement.num_physical - experts;
    return rc;
}

/* ------------------------------------------------------------------------
 * The command
 */

static int check_pack(plan_job *job, mp_error *err)
{
    if (!job->pack)
        return 0;
    const mp_manifest *m = mp_pack_get(job->pack)->manifest;
    const mp_backend_pack pack = {
        .target = m->target,
        .alphas = m->alphas,
        .ep_size = m->ep_size,
        .num_physical = m->num_physical,
        .hidden_size = m->hidden_size,
        .moe_intermediate_size = m->moe_intermediate_size,
        .num_experts = m->num_experts,
        .num_layers = m->num_layers,
        .shared = m->shared,
        .placement_xxh3 = m->placement_xxh3,
    };
    plan_result *r = &job->result;

    return mp_backend_check_pack(&r->backend, &r->model, &pack,
                                 job->o->placement ? &job->placement : NULL, &r->checks,
                                 &r->mismatches, err);
}

static int work_out(plan_job *job, const mp_context *context, mp_error *err)
{
    const plan_options *o = job->o;
    plan_result *r = &job->result;
    int rc;

    take_flags(job);
    rc = check_flags(job, err);
    if (rc == 0)
        rc = read_env(job, err);
    if (rc == 0)
        rc = open_model(job, context, err);
    if (rc != 0)
        return rc;
    take_flags_of_pack(job);
    rc = read_placement(job, err);
    if (rc == 0 && o->pack) {
        /* The model may be a pack too; its facts were taken. */
        mp_pack_release(job->pack);
        rc = open_pack(job, o->pack, context, err);
    }
    if (rc == 0)
        rc = mp_backend_resolve(&r->backend, &job->flags, &job->env, &r->model, err);
    if (rc == 0)
        rc = mp_backend_estimate(&r->memory, &r->backend, &r->model, o->gpu_memory, err);
    return rc ? rc : check_pack(job, err);
}

/* The exit status says whether it starts, fits, and the pack is right. */
static int judge(const plan_job *job, mp_error *err)
{
    const plan_result *r = &job->result;
    const mp_problems *refusals = &r->backend.refusals;
    bool wrong = r->mismatches.count > 0, large = r->memory.has_verdict && !r->memory.fits;
    char needed[SIZE_TEXT], there[SIZE_TEXT];
    const char *and = large ? ", and it does not fit" : "";

    print_problems(stderr, "moepack: plan: refused", refusals);
    print_problems(stderr, "moepack: plan", &r->mismatches);
    if (refusals->count > 0)
        return cmd_fail(err, MP_ERR_CHECK, "%s would not start%s%s",
                        mp_engine_name(r->backend.engine),
                        wrong ? ", and the pack is not what it expects" : "", and);
    if (wrong)
        return cmd_fail(err, MP_ERR_CHECK, "%s: not what the engine expects%s", r->pack, and);
    if (large)
        return cmd_fail(err, MP_ERR_CHECK, "%s a rank do not fit %s",
                        size_text(r->memory.total, needed), size_text(job->o->gpu_memory, there));
    return 0;
}

static void release(plan_job *job)
{
    mp_problems_release(&job->result.mismatches);
    mp_backend_release(&job->result.backend);
    mp_placement_release(&job->placement);
    mp_pack_release(job->pack);
    mp_env_release(&job->env);
}

static int run_plan(const void *values, mp_error *err)
{
    const plan_options *o = values;
    plan_job job = {.o = o};
    mp_context context;
    int rc;

    if (o->common.json && o->format == PLAN_ENV)
        return cmd_fail(err, MP_ERR_USAGE, "--json and --format env cannot be used together");
    cmd_context(&o->common, &context);
    rc = work_out(&job, &context, err);
    if (rc == 0 && !o->common.quiet)
        print_problems(stderr, "moepack: plan: warning", &job.result.backend.warnings);
    if (rc == 0 && o->common.json)
        rc = plan_print_json(&job.result, err);
    else if (rc == 0 && o->format == PLAN_TEXT)
        plan_print_text(o, &job.result);
    if (rc == 0)
        rc = judge(&job, err);
    if (rc == 0 && o->format == PLAN_ENV) /* nothing for a start that would fail */
        rc = plan_print_env(o, &job.result, err);
    release(&job);
    return rc;
}

const command command_plan = {
    .name = "plan",
    .summary = "predict what the engine will do, and whether the experts fit",
    .options = options,
    COMMAND_DEFAULTS(defaults),
    .run = run_plan,
};
