/* SPDX-License-Identifier: Apache-2.0 */
/* moepack quantize: a checkpoint into one whose experts are in another format. Options become the
 * library's, a plan is made and run as all commands that write many files do it (work.c), and the
 * error is printed from the report in OUT, so that a resumed run tells the same as one in one
 * go. */
#include "choices.h"
#include "commands.h"
#include "errors.h"
#include "output.h"
#include "progress.h"
#include "work.h"

#include <moepack/pack.h>
#include <stdlib.h>
#include <string.h>

typedef struct quantize_options {
    common_options common;
    const char *source;
    int format; /* an mp_scheme; -1: not given */
    int style;  /* index into styles; -1: the usual one */
    mp_rounding rounding;
    mp_scale_rule scale_rule;
    double amax_floor;
    bool allow_nonfinite;
    bool requantize_shared;
    char *drop;
    char *layers;
    uint64_t max_shard_size;
    double fail_above; /* 0: no bound */
    work_options work;
} quantize_options;

/* Everything that a run is made from. */
typedef struct quantize_job {
    const quantize_options *o;
    mp_context context;
    mp_catalog catalog;
    char *command;
    work_terms terms;
    mp_plan *plan;
} quantize_job;

static const cmd_choice formats[] = {
    {"mxfp4", MP_SCHEME_MXFP4}, {"fp8_block", MP_SCHEME_FP8_BLOCK},
    {"nvfp4", MP_SCHEME_NVFP4}, {"int8_channel", MP_SCHEME_INT8_CHANNEL},
    {"bf16", MP_SCHEME_BF16},   {NULL, 0},
};
static const cmd_choice styles[] = {
    {"deepseek-v4", 0}, {"deepseek-v3", 1}, {"compressed-tensors", 2}, {"modelopt", 3}, {NULL, 0},
};

/* ------------------------------------------------------------------------
 * Making the plan
 */

static const char *style_name(const quantize_options *o)
{
    return o->style < 0 ? NULL : styles[o->style].name;
}

/* The command that made the checkpoint: what decides on its bytes, and nothing else. */
static char *command_text(const quantize_options *o)
{
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);

    if (!f)
        return NULL;
    print_last_part(f, "moepack quantize ", o->source);
    print_option(f, "format", mp_scheme_name((mp_scheme)o->format));
    print_option(f, "style", style_name(o));
    if (o->rounding != MP_ROUND_OCP)
        print_option(f, "rounding", "deepgemm");
    print_quant_options(f, o->scale_rule, o->amax_floor, o->allow_nonfinite);
    if (o->requantize_shared)
        fprintf(f, " --requantize-shared");
    print_option(f, "drop", o->drop);
    print_option(f, "layers", o->layers);
    if (o->max_shard_size)
        fprintf(f, " --max-shard-size %llu", (unsigned long long)o->max_shard_size);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static int make_plan(quantize_job *job, mp_error *err)
{
    const quantize_options *o = job->o;
    mp_quantize_options options = {
        .size = sizeof options,
        .scheme = (mp_scheme)o->format,
        .style = style_name(o),
        .quant = {.rounding = o->rounding,
                  .scale_rule = o->scale_rule,
                  .amax_floor = (float)o->amax_floor,
                  .allow_nonfinite = o->allow_nonfinite},
        .requantize_shared = o->requantize_shared,
        .layers = o->layers,
        .max_shard_size = o->max_shard_size,
        .drop = o->drop,
        .zstd = job->terms.zstd,
        .part = job->terms.shard.part,
        .sha256 = o->work.sha256,
        .command = job->command,
    };

    return mp_plan_quantize(&job->plan, &job->catalog, &options, err);
}

static int prepare(quantize_job *job, mp_error *err)
{
    const quantize_options *o = job->o;
    int rc;

    if (work_settle(&o->work, &o->common, &job->terms, err) != 0)
        return err->code;
    rc = mp_catalog_open(&job->catalog, o->source, &job->context, err);
    if (rc == 0 && job->catalog.problems.count > 0) {
        print_problems(stderr, "moepack: quantize", &job->catalog.problems);
        rc = cmd_fail(err, MP_ERR_INPUT, "%s: problems: %llu", o->source,
                      (unsigned long long)job->catalog.problems.count);
    }
    /* A checkpoint that promises layers that are not there would be written as if it were all: the
     * user has to say which. */
    if (rc == 0 && job->catalog.promises.count > 0 && !o->layers) {
        print_problems(stderr, "moepack: quantize", &job->catalog.promises);
        rc = cmd_fail(err, MP_ERR_INPUT, "%s: incomplete: name the layers to write with --layers",
                      o->source);
    }
    if (rc == 0)
        rc = mp_catalog_choose(&job->catalog, o->layers, err);
    if (rc == 0 && !(job->command = command_text(o)))
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    return rc ? rc : make_plan(job, err);
}

static void release(quantize_job *job)
{
    mp_plan_release(job->plan);
    mp_catalog_release(&job->catalog);
    free(job->command);
    work_release(&job->terms);
}

/* ------------------------------------------------------------------------
 * Running it, and saying what it cost
 */

static int print_errors_json(const quantize_job *job, const mp_layer_error *errors, size_t count,
                             mp_error *err)
{
    json_t *json = work_json(mp_plan_get(job->plan)->work, job->o->work.out, &job->context);
    json_t *rows = error_table_json(errors, count);

    if (!json || json_object_set_new(json, "errors", rows) != 0) {
        json_decref(json);
        json = NULL;
    }
    return print_json(json, err);
}

/* As the report in OUT has them, so that it does not matter whether this run made it whole. */
static int report_errors(const quantize_job *job, mp_error *err)
{
    const quantize_options *o = job->o;
    mp_layer_error *errors;
    size_t count;
    int rc = mp_quantize_errors(o->work.out, &errors, &count, err);

    if (rc != 0)
        return rc;
    if (o->common.json)
        rc = print_errors_json(job, errors, count, err);
    else
        print_error_table(errors, count, stdout);
    if (rc == 0 && o->fail_above > 0)
        rc = check_errors_above(errors, count, o->fail_above, err);
    mp_quantize_errors_free(errors, count);
    return rc;
}

static int run_quantize(const void *values, mp_error *err)
{
    const quantize_options *o = values;
    quantize_job job = {.o = o};
    work_job work = {"quantize", &o->common, &o->work, &job.terms, &job.context, NULL};
    int rc;

    cmd_context(&o->common, &job.context);
    print_io(&o->common, o->source);
    rc = prepare(&job, err);
    work.plan = job.plan;
    if (rc == 0)
        rc = work_do(&work, err);
    if (rc == 0 && work_writes_out(&o->work, &job.terms))
        rc = report_errors(&job, err);
    else if (rc == 0 && o->common.json && !o->work.dry_run)
        rc = print_json(work_json(mp_plan_get(job.plan)->work, o->work.out, &job.context), err);
    release(&job);
    return rc;
}

/* ------------------------------------------------------------------------
 * The command
 */

static const cmd_option options[] = {
    OPT_STRING('o', "output", "OUT", quantize_options, work.out,
               "directory to write; it must not exist"),
    OPT_CHOICE('f', "format", "SCHEME", quantize_options, format, formats,
               "format of the experts in the result", .flags = OPT_REQUIRED),
    OPT_CHOICE(0, "style", "STYLE", quantize_options, style, styles,
               "their names and types; by default those usual for SCHEME"),
    OPT_CHOICE(0, "rounding", "RULE", quantize_options, rounding, rounding_choices,
               "how mxfp4 rounds"),
    OPT_CHOICE(0, "scale-rule", "RULE", quantize_options, scale_rule, scale_rule_choices,
               "how mxfp4 chooses its scales"),
    OPT_DOUBLE(0, "amax-floor", "X", quantize_options, amax_floor, 0, 1e30,
               "treat the largest magnitude of a block as at least X"),
    OPT_FLAG(0, "allow-nonfinite", quantize_options, allow_nonfinite,
             "accept NaN and infinite weights"),
    OPT_FLAG(0, "requantize-shared", quantize_options, requantize_shared,
             "requantize shared experts too"),
    OPT_WORDS(0, "drop", "NAMES", quantize_options, drop,
              "drop what the format cannot hold: bias, input_scale"),
    OPT_WORDS(0, "layers", "LIST", quantize_options, layers,
              "requantize only these layers, as in 0-3,7,mtp.0"),
    OPT_SIZE(0, "max-shard-size", "SIZE", quantize_options, max_shard_size, 1, INT64_MAX,
             "begin another file beyond SIZE (default 5GB)"),
    OPT_DOUBLE(0, "fail-above", "X", quantize_options, fail_above, 0, 1e30,
               "end with status 1 if a relative RMS error is above X; 0: no limit"),
    OPT_ZSTD(quantize_options),
    OPT_SHA256(quantize_options),
    OPT_SHARD(quantize_options),
    OPT_FLAG(0, "resume", quantize_options, work.resume, "continue an interrupted run"),
    OPT_FLAG(0, "force", quantize_options, work.force,
             "replace a requantized checkpoint OUT, discard an interrupted run"),
    OPT_FLAG('n', "dry-run", quantize_options, work.dry_run, "print the plan and write nothing"),
    OPT_IO(quantize_options),
    OPT_JSON(quantize_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("CKPT", quantize_options, source), ARG_END};
static const quantize_options defaults = {.format = -1, .style = -1, .rounding = MP_ROUND_OCP};

const command command_quantize = {
    .name = "quantize",
    .summary = "write a checkpoint with its experts in another format",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_quantize,
};
