/* SPDX-License-Identifier: Apache-2.0 */
/* moepack repack: a checkpoint into one directory a rank, laid out for a kernel. Options become the
 * library's, a plan is made and run (work.c), and the error is printed from the manifest in OUT.
 *
 * The command that stands in the manifest is written anew from the options, in a fixed order, with
 * the last parts of paths only: what decides on bytes, the same for the same pack on any machine.
 *
 * With --update the manifest of the pack says how to pack, so no other option may (update.c). */
#include "choices.h"
#include "commands.h"
#include "errors.h"
#include "output.h"
#include "progress.h"
#include "update.h"
#include "work.h"

#include <moepack/artifact.h>
#include <moepack/pack.h>
#include <stdlib.h>

#define PLACEMENT_LIMIT (1u << 30)

typedef struct repack_options {
    common_options common;
    const char *source;
    const char *update; /* the rest is of the pack then */
    char *deltas;
    const char *new_source;
    const char *target;
    uint64_t ep;
    const char *placement;
    mp_row_order rows;
    uint64_t redundant;
    mp_shared_mode shared;
    bool requantize_shared;
    bool nz;
    mp_alphas alphas;
    const char *quantize;
    char *drop;
    char *layers;
    char *ranks;
    int rounding; /* -1: the target's */
    mp_scale_rule scale_rule;
    double amax_floor;
    bool allow_nonfinite;
    double fail_above; /* 0: no bound */
    uint64_t max_shard_size;
    work_options work;
} repack_options;

/* Everything that a run is made from. */
typedef struct repack_job {
    const repack_options *o;
    mp_catalog catalog;
    mp_placement placement;
    char *command;
    work_terms terms;
    mp_plan *plan;
} repack_job;

static const cmd_choice alphas[] = {
    {"sgl", MP_ALPHAS_SGL},
    {"fp4xfp4", MP_ALPHAS_FP4XFP4},
    {NULL, 0},
};

static const cmd_choice row_orders[] = {
    {"auto", MP_ROWS_AUTO},
    {"layer", MP_ROWS_LAYER},
    {"moe", MP_ROWS_MOE},
    {NULL, 0},
};

/* ------------------------------------------------------------------------
 * Making the plan
 */

/* The command that made the pack: what decides on its bytes, and nothing else. */
static char *command_text(const repack_options *o)
{
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);

    if (!f)
        return NULL;
    print_last_part(f, "moepack repack ", o->source);
    fprintf(f, " --target %s --ep %llu", o->target, (unsigned long long)o->ep);
    print_last_part(f, " --placement ", o->placement);
    if (o->rows != MP_ROWS_AUTO)
        print_option(f, "rows", choice_name(row_orders, o->rows));
    if (o->redundant)
        fprintf(f, " --redundant %llu", (unsigned long long)o->redundant);
    if (o->shared != MP_SHARED_NONE)
        print_option(f, "shared", choice_name(shared_choices, o->shared));
    if (o->requantize_shared)
        fprintf(f, " --requantize-shared");
    if (o->nz)
        fprintf(f, " --nz");
    if (o->alphas != MP_ALPHAS_SGL)
        print_option(f, "alphas", choice_name(alphas, o->alphas));
    print_option(f, "quantize", o->quantize);
    if (o->rounding >= 0)
        print_option(f, "rounding", choice_name(rounding_choices, o->rounding));
    print_quant_options(f, o->scale_rule, o->amax_floor, o->allow_nonfinite);
    print_option(f, "drop", o->drop);
    print_option(f, "layers", o->layers);
    print_option(f, "ranks", o->ranks);
    if (o->max_shard_size)
        fprintf(f, " --max-shard-size %llu", (unsigned long long)o->max_shard_size);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static int read_placement(repack_job *job, mp_error *err)
{
    const char *path = job->o->placement;
    uint64_t length;
    char *text;
    int rc;

    if (!path)
        return 0;
    rc = mp_read_text(path, PLACEMENT_LIMIT, &text, &length, err);
    if (rc == 0) {
        rc = mp_placement_parse(&job->placement, text, length, job->catalog.num_experts, err);
        free(text);
        if (rc != 0) {
            /* cmd_fail writes into err, which is what it would read. */
            mp_error why = *err;

            rc = cmd_fail(err, rc, "%.200s: %.800s", path, why.message);
        }
    }
    return rc;
}

static int make_plan(repack_job *job, mp_error *err)
{
    const repack_options *o = job->o;
    const mp_target *target = mp_target_find(o->target);
    mp_repack_options options = {
        .size = sizeof options,
        .target = target,
        .ep = (uint32_t)o->ep,
        .placement = o->placement ? &job->placement : NULL,
        .rows = o->rows,
        .redundant = (uint32_t)o->redundant,
        .shared = o->shared,
        .requantize_shared = o->requantize_shared,
        .nz = o->nz,
        .alphas = o->alphas,
        .quantize = o->quantize != NULL,
        .quant = {.rounding = o->rounding < 0 ? target->rounding : (mp_rounding)o->rounding,
                  .scale_rule = o->scale_rule,
                  .amax_floor = (float)o->amax_floor,
                  .allow_nonfinite = o->allow_nonfinite},
        .layers = o->layers,
        .ranks = o->ranks,
        .max_shard_size = o->max_shard_size,
        .drop = o->drop,
        .zstd = job->terms.zstd,
        .part = job->terms.shard.part,
        .sha256 = o->work.sha256,
        .command = job->command,
    };

    if (o->quantize)
        mp_scheme_parse(o->quantize, &options.quantize_to);
    return mp_plan_repack(&job->plan, &job->catalog, &options, err);
}

static int prepare(repack_job *job, const mp_context *context, mp_error *err)
{
    const repack_options *o = job->o;
    int rc;

    if (work_settle(&o->work, &o->common, &job->terms, err) != 0)
        return err->code;
    rc = mp_catalog_open(&job->catalog, o->source, context, err);
    if (rc == 0 && job->catalog.problems.count > 0) {
        print_problems(stderr, "moepack: repack", &job->catalog.problems);
        rc = cmd_fail(err, MP_ERR_INPUT, "%s: problems: %llu", o->source,
                      (unsigned long long)job->catalog.problems.count);
    }
    if (rc == 0)
        rc = mp_catalog_choose(&job->catalog, o->layers, err);
    if (rc == 0)
        rc = read_placement(job, err);
    if (rc == 0 && !(job->command = command_text(o)))
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    return rc ? rc : make_plan(job, err);
}

static void release(repack_job *job)
{
    mp_plan_release(job->plan);
    mp_placement_release(&job->placement);
    mp_catalog_release(&job->catalog);
    free(job->command);
    work_release(&job->terms);
}

/* ------------------------------------------------------------------------
 * Saying what is done
 */

/* The requantization error as the manifest has it, and whether it is within the bound. */
static int report_errors(const repack_options *o, mp_error *err)
{
    mp_manifest manifest;
    int rc = mp_manifest_load(&manifest, o->work.out, err);

    if (rc != 0)
        return rc;
    if (!o->common.quiet)
        print_error_table(manifest.errors, manifest.num_errors, stderr);
    if (o->fail_above > 0)
        rc = check_errors_above(manifest.errors, manifest.num_errors, o->fail_above, err);
    mp_manifest_release(&manifest);
    return rc;
}

/* With --update the manifest of the pack says how to pack. */
static int run_update(const repack_options *o, mp_error *err)
{
    const update_request request = {&o->common, &o->work,      o->update,
                                    o->deltas,  o->new_source, o->allow_nonfinite};

    if (o->source)
        return cmd_fail(err, MP_ERR_USAGE,
                        "with --update, the checkpoint is given with --source, not as '%s'",
                        o->source);
    if (!o->deltas || !o->new_source)
        return cmd_fail(err, MP_ERR_USAGE, "--update needs --delta and --source");
    if (o->target || o->ep || o->placement || o->rows != MP_ROWS_AUTO || o->redundant ||
        o->shared != MP_SHARED_NONE || o->requantize_shared || o->nz || o->quantize || o->drop ||
        o->layers || o->ranks || o->rounding >= 0 || o->scale_rule != MP_SCALE_CEIL ||
        o->amax_floor > 0 || o->max_shard_size || o->fail_above > 0 || o->alphas != MP_ALPHAS_SGL ||
        o->work.shard || o->work.sha256)
        return cmd_fail(err, MP_ERR_USAGE,
                        "--update packs as \"%s\" was packed: give no packing options", o->update);
    print_io(&o->common, o->update);
    print_io(&o->common, o->new_source);
    return update_pack(&request, err);
}

/* What cannot be left out, but with --update. */
static int check_given(const repack_options *o, mp_error *err)
{
    if (o->deltas || o->new_source)
        return cmd_fail(err, MP_ERR_USAGE, "--delta and --source are for --update");
    if (!o->target)
        return cmd_fail(err, MP_ERR_USAGE, "option --target is required");
    if (!o->ep)
        return cmd_fail(err, MP_ERR_USAGE, "option --ep is required");
    return o->source ? 0 : cmd_fail(err, MP_ERR_USAGE, "argument CKPT is missing");
}

static int run_repack(const void *values, mp_error *err)
{
    const repack_options *o = values;
    repack_job job = {.o = o};
    mp_context context;
    work_job work = {"repack", &o->common, &o->work, &job.terms, &context, NULL};
    int rc;

    if (o->update)
        return run_update(o, err);
    if (check_given(o, err) != 0)
        return err->code;
    cmd_context(&o->common, &context);
    print_io(&o->common, o->source);
    rc = prepare(&job, &context, err);
    work.plan = job.plan;
    if (rc == 0)
        rc = work_do(&work, err);
    if (rc == 0 && o->common.json && !o->work.dry_run)
        rc = print_json(work_json(mp_plan_get(job.plan)->work, o->work.out, &context), err);
    if (rc == 0 && work_writes_out(&o->work, &job.terms))
        rc = report_errors(o, err);
    release(&job);
    return rc;
}

/* ------------------------------------------------------------------------
 * The command
 */

static const char *target_name(size_t index)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    return index < count ? targets[index]->name : NULL;
}

/* Schemes that a target takes, each once. */
static const char *scheme_name(size_t index)
{
    size_t count;
    const mp_target *const *targets = mp_targets(&count);

    for (int scheme = 0; scheme < MP_SCHEME_COUNT; scheme++) {
        bool taken = false;

        for (size_t t = 0; t < count; t++)
            taken |= targets[t]->scheme == (mp_scheme)scheme;
        if (taken && index-- == 0)
            return mp_scheme_name((mp_scheme)scheme);
    }
    return NULL;
}

static const cmd_option options[] = {
    OPT_STRING('o', "output", "OUT", repack_options, work.out,
               "directory to write; it must not exist"),
    OPT_STRING('t', "target", "TARGET", repack_options, target, "layout to write",
               .choice_name = target_name),
    OPT_U64(0, "ep", "N", repack_options, ep, 1, 65536, "expert-parallel ranks"),
    OPT_STRING(0, "placement", "FILE", repack_options, placement,
               "place experts according to FILE, - for standard input"),
    OPT_CHOICE(0, "rows", "ORDER", repack_options, rows, row_orders,
               "whether a placement's rows are for decoder layers or for MoE layers"),
    OPT_U64(0, "redundant", "R", repack_options, redundant, 0, 65536,
            "without a placement: add R redundant experts in order"),
    OPT_CHOICE(0, "shared", "MODE", repack_options, shared, shared_choices,
               "what to do with shared experts"),
    OPT_FLAG(0, "requantize-shared", repack_options, requantize_shared,
             "let shared experts lose precision if the target needs another format"),
    OPT_FLAG(0, "nz", repack_options, nz, "Ascend: store weights in FRACTAL_NZ form"),
    OPT_CHOICE(0, "alphas", "CONVENTION", repack_options, alphas, alphas,
               "nvfp4: who folds the input scale of L1 into its alpha, the kernel or repack"),
    OPT_STRING(0, "quantize", "SCHEME", repack_options, quantize,
               "requantize experts stored in another scheme", .choice_name = scheme_name),
    OPT_CHOICE(0, "rounding", "RULE", repack_options, rounding, rounding_choices,
               "how requantizing rounds E2M1; by default as the target's kernel does"),
    OPT_CHOICE(0, "scale-rule", "RULE", repack_options, scale_rule, scale_rule_choices,
               "how requantizing chooses power-of-two scales"),
    OPT_DOUBLE(0, "amax-floor", "X", repack_options, amax_floor, 0, 1e30,
               "in requantizing, treat the largest magnitude of a block as at least X"),
    OPT_FLAG(0, "allow-nonfinite", repack_options, allow_nonfinite,
             "accept NaN and infinite weights"),
    OPT_DOUBLE(0, "fail-above", "X", repack_options, fail_above, 0, 1e30,
               "end with status 1 if requantizing has a relative RMS error above X; 0: no limit"),
    OPT_WORDS(0, "drop", "NAMES", repack_options, drop,
              "drop what the target cannot hold: bias, input_scale, offset"),
    OPT_WORDS(0, "layers", "LIST", repack_options, layers, "only these layers, as in 0-3,7,mtp.0"),
    OPT_WORDS(0, "ranks", "LIST", repack_options, ranks, "only these ranks, as in 0-3,7"),
    OPT_SIZE(0, "max-shard-size", "SIZE", repack_options, max_shard_size, 1, INT64_MAX,
             "begin another file of a rank beyond SIZE (default 5GB)"),
    OPT_STRING(0, "update", "PACK", repack_options, update,
               "update PACK: copy experts that no delta touches"),
    OPT_WORDS(0, "delta", "DELTA", repack_options, deltas,
              "with --update: a delta; repeat in version order"),
    OPT_STRING(0, "source", "CKPT", repack_options, new_source,
               "with --update: the version after the deltas, or the one before them"),
    OPT_ZSTD(repack_options),
    OPT_SHA256(repack_options),
    OPT_SHARD(repack_options),
    OPT_FLAG(0, "resume", repack_options, work.resume, "continue an interrupted run"),
    OPT_FLAG(0, "force", repack_options, work.force,
             "replace a pack OUT, discard an interrupted run"),
    OPT_FLAG('n', "dry-run", repack_options, work.dry_run, "print the plan and write nothing"),
    OPT_IO(repack_options),
    OPT_JSON(repack_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_OPTIONAL("CKPT", repack_options, source), ARG_END};
static const repack_options defaults = {.rounding = -1};

const command command_repack = {
    .name = "repack",
    .summary = "lay out the experts of a checkpoint for a kernel",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_repack,
};
