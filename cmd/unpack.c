/* SPDX-License-Identifier: Apache-2.0 */
/* moepack unpack: a packed directory back into a checkpoint. */
#include "choices.h"
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "work.h"

#include <moepack/pack.h>
#include <stdlib.h>

typedef struct unpack_options {
    common_options common;
    const char *pack;
    char *layers;
    uint64_t max_shard_size;
    work_options work;
} unpack_options;

/* Everything that a run is made from. */
typedef struct unpack_job {
    const unpack_options *o;
    work_terms terms;
    mp_plan *plan;
} unpack_job;

static int prepare(unpack_job *job, const mp_context *context, mp_error *err)
{
    const unpack_options *o = job->o;
    mp_unpack_options options = {
        .size = sizeof options,
        .layers = o->layers,
        .max_shard_size = o->max_shard_size,
        .sha256 = o->work.sha256,
    };

    if (work_settle(&o->work, &o->common, &job->terms, err) != 0)
        return err->code;
    options.zstd = job->terms.zstd;
    options.part = job->terms.shard.part;
    return mp_plan_unpack(&job->plan, o->pack, &options, context, err);
}

static int run_unpack(const void *values, mp_error *err)
{
    const unpack_options *o = values;
    unpack_job job = {.o = o};
    mp_context context;
    work_job work = {"unpack", &o->common, &o->work, &job.terms, &context, NULL};
    int rc;

    cmd_context(&o->common, &context);
    print_io(&o->common, o->pack);
    rc = prepare(&job, &context, err);
    work.plan = job.plan;
    if (rc == 0)
        rc = work_do(&work, err);
    if (rc == 0 && o->common.json && !o->work.dry_run)
        rc = print_json(work_json(mp_plan_get(job.plan)->work, o->work.out, &context), err);
    mp_plan_release(job.plan);
    work_release(&job.terms);
    return rc;
}

/* ------------------------------------------------------------------------
 * The command
 */

static const cmd_option options[] = {
    OPT_STRING('o', "output", "DIR", unpack_options, work.out,
               "directory to write; it must not exist"),
    OPT_WORDS(0, "layers", "LIST", unpack_options, layers, "only these layers, as in 0-3,7,mtp.0"),
    OPT_SIZE(0, "max-shard-size", "SIZE", unpack_options, max_shard_size, 1, INT64_MAX,
             "begin another file beyond SIZE (default 5GB)"),
    OPT_ZSTD(unpack_options),
    OPT_SHA256(unpack_options),
    OPT_SHARD(unpack_options),
    OPT_FLAG(0, "resume", unpack_options, work.resume, "continue an interrupted run"),
    OPT_FLAG(0, "force", unpack_options, work.force,
             "replace an unpacked checkpoint DIR, discard an interrupted run"),
    OPT_FLAG('n', "dry-run", unpack_options, work.dry_run, "print the plan and write nothing"),
    OPT_IO(unpack_options),
    OPT_JSON(unpack_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("OUT", unpack_options, pack), ARG_END};
static const unpack_options defaults = {0};

const command command_unpack = {
    .name = "unpack",
    .summary = "turn a pack back into a checkpoint",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_unpack,
};
