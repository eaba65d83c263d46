/* SPDX-License-Identifier: Apache-2.0 */
/* moepack unpack: a packed directory back into a checkpoint. */
#include "commands.h"
#include "output.h"
#include "progress.h"

#include <moepack/pack.h>
#include <stdlib.h>
#include <time.h>

typedef struct unpack_options {
    common_options common;
    const char *pack;
    const char *out;
    const char *layers;
    uint64_t max_shard_size;
    bool resume;
    bool force;
    bool dry_run;
} unpack_options;

/* Everything that a run is made from. */
typedef struct unpack_job {
    const unpack_options *o;
    bool *layers;
    mp_unpack_plan plan;
} unpack_job;

static int select_layers(unpack_job *job, mp_error *err)
{
    mp_manifest manifest;
    int rc;

    if (!job->o->layers)
        return 0;
    if (!mp_is_packed(job->o->pack))
        return cmd_fail(err, MP_ERR_INPUT, "\"%s\" is not a packed directory: it has no %s",
                        job->o->pack, MP_MANIFEST_NAME);
    rc = mp_manifest_load(&manifest, job->o->pack, err);
    if (rc != 0)
        return rc;
    job->layers = calloc(manifest.num_layers + 1, sizeof *job->layers);
    rc = job->layers ? mp_select_layers(job->o->layers, (const char *const *)manifest.layers,
                                        manifest.num_layers, job->layers, err)
                     : cmd_fail(err, MP_ERR_IO, "out of memory");
    mp_manifest_release(&manifest);
    return rc;
}

static int prepare(unpack_job *job, const mp_context *context, mp_error *err)
{
    const unpack_options *o = job->o;
    mp_unpack_options options = {.max_shard_size = o->max_shard_size};
    int rc;

    if (o->resume && o->force)
        return cmd_fail(err, MP_ERR_USAGE, "--resume and --force contradict each other");
    if (!o->out && !o->dry_run)
        return cmd_fail(err, MP_ERR_USAGE, "option --output is required");
    rc = select_layers(job, err);
    if (rc != 0)
        return rc;
    options.layers = job->layers;
    return mp_unpack_plan_init(&job->plan, o->pack, &options, context, err);
}

/* ------------------------------------------------------------------------
 * Saying what is done
 */

static uint64_t peak_scratch(const mp_work *work, const mp_context *context)
{
    return work->scratch_bytes * (uint64_t)mp_threads(context);
}

static int print_plan_json(const mp_work *work, const mp_context *context, mp_error *err)
{
    json_t *files = json_array();

    for (size_t f = 0; f < work->num_files; f++)
        json_array_append_new(files, json_pack("{s:s, s:I, s:i}", "path", work->files[f].path,
                                               "bytes", (json_int_t)work->files[f].bytes, "tensors",
                                               (int)work->files[f].num_tensors));
    return print_json(json_pack("{s:o, s:I, s:I, s:I, s:I}", "files", files, "units",
                                (json_int_t)work->num_units, "bytes_read",
                                (json_int_t)work->bytes_read, "bytes_written",
                                (json_int_t)work->bytes_written, "peak_scratch",
                                (json_int_t)peak_scratch(work, context)),
                      err);
}

static void print_plan(FILE *out, const mp_work *work, const mp_context *context)
{
    char size[SIZE_TEXT], read[SIZE_TEXT], written[SIZE_TEXT];

    for (size_t f = 0; f < work->num_files; f++)
        fprintf(out, "%s  %u tensors  %s\n", work->files[f].path, work->files[f].num_tensors,
                size_text(work->files[f].bytes, size));
    fprintf(out, "%llu units, %s to read, %s to write, scratch memory %s\n",
            (unsigned long long)work->num_units, size_text(work->bytes_read, read),
            size_text(work->bytes_written, written), size_text(peak_scratch(work, context), size));
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void print_done(const unpack_job *job, double took)
{
    const mp_work *work = &job->plan.work;
    char size[SIZE_TEXT];

    fprintf(stderr, "moepack: unpack: %s: %zu files, %s in %.1f s", job->o->out, work->num_files,
            size_text(work->bytes_written, size), took);
    /* Of a resumed run, it is not known how much was left. */
    if (!job->o->resume)
        fprintf(stderr, " (%.2f GB/s)", (double)work->bytes_written / took / 1e9);
    fputc('\n', stderr);
}

static int run_plan(const unpack_job *job, const mp_context *context, mp_error *err)
{
    const unpack_options *o = job->o;
    mp_run_mode mode = o->resume ? MP_RUN_RESUME : o->force ? MP_RUN_FORCE : MP_RUN_FRESH;
    double begin = seconds_now();
    int rc = mp_unpack_plan_run(&job->plan, o->out, mode, context, err);

    if (rc == MP_ERR_CANCELLED)
        return cmd_fail(err, rc, "interrupted: --resume goes on with %s.partial", o->out);
    if (rc != 0)
        return rc;
    progress_clear();
    if (!o->common.quiet)
        print_done(job, seconds_now() - begin);
    return o->common.json ? print_plan_json(&job->plan.work, context, err) : 0;
}

static int run_unpack(const void *values, mp_error *err)
{
    const unpack_options *o = values;
    unpack_job job = {.o = o};
    mp_context context;
    int rc;

    cmd_context(&o->common, &context);
    rc = prepare(&job, &context, err);
    if (rc == 0 && !o->common.quiet)
        print_problems(stderr, "moepack: unpack: warning", &job.plan.warnings);
    if (rc == 0 && o->common.verbose && !o->dry_run)
        print_plan(stderr, &job.plan.work, &context);
    if (rc == 0 && !o->dry_run)
        rc = run_plan(&job, &context, err);
    else if (rc == 0 && o->common.json)
        rc = print_plan_json(&job.plan.work, &context, err);
    else if (rc == 0)
        print_plan(stdout, &job.plan.work, &context);
    mp_unpack_plan_release(&job.plan);
    free(job.layers);
    return rc;
}

/* ------------------------------------------------------------------------
 * The command
 */

static const cmd_option options[] = {
    OPT_STRING('o', "output", "DIR", unpack_options, out, "directory to write; it must not exist"),
    OPT_STRING(0, "layers", "LIST", unpack_options, layers, "only these layers, as in 0-3,7,mtp.0"),
    OPT_SIZE(0, "max-shard-size", "SIZE", unpack_options, max_shard_size, 1, INT64_MAX,
             "begin another file beyond SIZE; left out: 5GB"),
    OPT_FLAG(0, "resume", unpack_options, resume, "continue an interrupted run"),
    OPT_FLAG(0, "force", unpack_options, force,
             "replace an unpacked checkpoint DIR, discard an interrupted run"),
    OPT_FLAG('n', "dry-run", unpack_options, dry_run, "print the plan and write nothing"),
    OPT_JSON(unpack_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("OUT", unpack_options, pack), ARG_END};
static const unpack_options defaults = {0};

const command command_unpack = {
    .name = "unpack",
    .summary = "turn a packed directory back into a checkpoint",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_unpack,
};
