/* SPDX-License-Identifier: Apache-2.0 */
/* moepack plan: what the engine will do with a model's experts, and whether they fit. */
#include "plan.h"
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
    mp_manifest manifest; /* of the pack to check */
    bool has_manifest;
    mp_placement placement;
    plan_result result;
} plan_job;

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

static int load_manifest(plan_job *job, const char *dir, mp_error *err)
{
    int rc = mp_manifest_load(&job->manifest, dir, err);

    job->has_manifest = rc == 0;
    job->result.pack = dir;
    return rc;
}

/* A packed directory as the model: its own facts, and the others of its config.json. */
static int open_packed(plan_job *job, const char *dir, const mp_context *context, mp_error *err)
{
    mp_backend_model *model = &job->result.model;
    const mp_manifest *m = &job->manifest;
    size_t length = strlen(dir) + sizeof "/" MP_CONFIG_NAME;
    char *path;
    int rc = load_manifest(job, dir, err);

    if (rc != 0)
        return rc;
    path = malloc(length);
    if (!path)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    snprintf(path, length, "%s/" MP_CONFIG_NAME, dir);
    if (m->config_xxh3[0] != '\0')
        rc = mp_backend_model_open(model, path, context, err);
    free(path);
    if (rc != 0)
        return rc;
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

/* Names have been held against the library's when they were parsed. What is not given of a
 * packed directory's making is as it says itself, where it is the model. */
static void take_flags(plan_job *job)
{
    const plan_options *o = job->o;
    mp_backend_flags *flags = &job->flags;

    *flags = (mp_backend_flags){
        .backend_given = o->backend != NULL,
        .tp = o->tp,
        .ep = o->ep,
        .redundant = o->redundant,
        .capture = o->capture,
        .tokens_given = o->tokens_given,
        .tokens = o->tokens_given ? o->tokens : 0,
        .dp_tokens = o->dp_tokens.items,
        .num_dp_tokens = o->dp_tokens.count,
    };
    if (o->backend)
        mp_a2a_parse(o->backend, &flags->backend);
    mp_runner_parse(o->runner, &flags->runner);
    mp_deepep_mode_parse(o->deepep_mode, &flags->deepep_mode);
    mp_platform_parse(o->platform, &flags->platform);
    if (o->shared)
        mp_shared_mode_parse(o->shared, &flags->shared);
    if (job->has_manifest) {
        if (!o->shared)
            flags->shared = job->manifest.shared;
        if (!o->redundant_given && !o->placement)
            flags->redundant = job->manifest.num_physical - job->manifest.num_experts;
    }
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
    const mp_manifest *m = &job->manifest;
    const mp_backend_pack pack = {
        .target = m->target,
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

    if (!job->has_manifest)
        return 0;
    return mp_backend_check_pack(&r->backend, &r->model, &pack,
                                 job->o->placement ? &job->placement : NULL, &r->mismatches, err);
}

static int work_out(plan_job *job, const mp_context *context, mp_error *err)
{
    const plan_options *o = job->o;
    plan_result *r = &job->result;
    int rc = read_env(job, err);

    if (rc == 0)
        rc = open_model(job, context, err);
    if (rc != 0)
        return rc;
    take_flags(job);
    rc = read_placement(job, err);
    if (rc == 0 && o->pack) {
        mp_manifest_release(&job->manifest);
        rc = load_manifest(job, o->pack, err);
    }
    if (rc == 0)
        rc = mp_backend_resolve(&r->backend, &job->flags, &job->env, &r->model, err);
    if (rc == 0)
        rc = mp_backend_estimate(&r->memory, &r->backend, &r->model, o->gpu_memory, err);
    return rc ? rc : check_pack(job, err);
}

/* The exit status says whether it fits and the pack is right. */
static int judge(const plan_job *job, mp_error *err)
{
    const plan_result *r = &job->result;
    bool wrong = r->mismatches.count > 0, large = r->memory.has_verdict && !r->memory.fits;
    char needed[SIZE_TEXT], there[SIZE_TEXT];

    if (wrong) {
        print_problems(stderr, "moepack: plan", &r->mismatches);
        return cmd_fail(err, MP_ERR_CHECK, "%s: not what the engine wants%s", r->pack,
                        large ? ", and it does not fit" : "");
    }
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
    mp_manifest_release(&job->manifest);
    mp_env_release(&job->env);
}

static int run_plan(const void *values, mp_error *err)
{
    const plan_options *o = values;
    plan_job job = {.o = o};
    mp_context context;
    int rc;

    if (o->common.json && o->format == PLAN_ENV)
        return cmd_fail(err, MP_ERR_USAGE, "--json and --format env contradict each other");
    cmd_context(&o->common, &context);
    rc = work_out(&job, &context, err);
    if (rc == 0 && !o->common.quiet)
        print_problems(stderr, "moepack: plan: warning", &job.result.backend.warnings);
    if (rc == 0 && o->common.json)
        rc = plan_print_json(o, &job.result, err);
    else if (rc == 0 && o->format == PLAN_ENV)
        plan_print_env(&job.result);
    else if (rc == 0)
        plan_print_text(o, &job.result);
    if (rc == 0)
        rc = judge(&job, err);
    release(&job);
    return rc;
}

static const char *scheme_name(size_t index)
{
    return index < MP_SCHEME_COUNT ? mp_scheme_name((mp_scheme)index) : NULL;
}

static const cmd_choice formats[] = {{"text", PLAN_TEXT}, {"env", PLAN_ENV}, {NULL, 0}};

static const char *shared_mode_name(size_t index)
{
    return index < MP_SHARED_MODES ? mp_shared_mode_name((mp_shared_mode)index) : NULL;
}

static const cmd_option options[] = {
    OPT_STRING(0, "model", "PATH", plan_options, model,
               "checkpoint, packed directory or config.json", .flags = OPT_REQUIRED),
    OPT_STRING(0, "backend", "NAME", plan_options, backend, "the engine's --moe-a2a-backend",
               .choice_name = mp_a2a_name),
    OPT_STRING(0, "runner", "NAME", plan_options, runner, "its --moe-runner-backend",
               .choice_name = mp_runner_name),
    OPT_STRING(0, "deepep-mode", "MODE", plan_options, deepep_mode, "its --deepep-mode",
               .choice_name = mp_deepep_mode_name),
    OPT_STRING(0, "platform", "NAME", plan_options, platform, "what it runs on",
               .choice_name = mp_platform_name),
    OPT_U64(0, "tp", "N", plan_options, tp, 1, 65536, "its --tp-size"),
    OPT_U64(0, "ep", "N", plan_options, ep, 1, 65536, "its --ep-size"),
    OPT_U64(0, "tokens", "N", plan_options, tokens, 0, INT32_MAX,
            "tokens of this rank in a forward pass", .given = offsetof(plan_options, tokens_given)),
    OPT_LIST(0, "dp-tokens", "LIST", plan_options, dp_tokens, 0, INT32_MAX,
             "tokens of each data-parallel rank, as in 800,1200"),
    OPT_FLAG(0, "capture", plan_options, capture, "the forward pass is captured as a graph"),
    OPT_STRING(0, "quantize", "SCHEME", plan_options, quantize,
               "plan for experts that are requantized", .choice_name = scheme_name),
    OPT_U64(0, "redundant", "R", plan_options, redundant, 0, 65536, "redundant experts",
            .given = offsetof(plan_options, redundant_given)),
    OPT_STRING(0, "shared", "MODE", plan_options, shared, "how shared experts are packed",
               .choice_name = shared_mode_name),
    OPT_STRING(0, "placement", "FILE", plan_options, placement,
               "placement that the engine is given, - for standard input"),
    OPT_STRING(0, "pack", "OUT", plan_options, pack,
               "check that the packed directory OUT is what the engine wants"),
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
    .runner = "auto",
    .deepep_mode = "auto",
    .platform = "cuda-sm100",
    .tp = 1,
    .tokens = UINT64_MAX, /* no number that could be given */
};

const command command_plan = {
    .name = "plan",
    .summary = "say what the engine will do, and whether it fits",
    .options = options,
    COMMAND_DEFAULTS(defaults),
    .run = run_plan,
};
