/* SPDX-License-Identifier: Apache-2.0 */
/* moepack apply: the version that a chain of deltas leads to. */
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "work.h"
#include "zstd.h"

#include <moepack/delta.h>

typedef struct apply_options {
    common_options common;
    const char *base;
    cmd_strings deltas;
    uint64_t base_version;
    work_options work;
} apply_options;

static int run_apply(const void *values, mp_error *err)
{
    const apply_options *o = values;
    mp_run_mode mode = o->work.resume ? MP_RUN_RESUME : o->work.force ? MP_RUN_FORCE : MP_RUN_FRESH;
    mp_delta_apply_options options = {.size = sizeof(mp_delta_apply_options),
                                      .base_version = o->base_version};
    mp_compress_report report;
    mp_context context;
    char size[SIZE_TEXT];
    int rc = work_check(&o->work, err);

    if (rc == 0)
        rc = zstd_option(o->work.zstd, o->work.zstd_given, &options.zstd, err);
    if (rc != 0)
        return rc;
    cmd_context(&o->common, &context);
    rc = mp_delta_apply(o->base, (const char *const *)o->deltas.items, o->deltas.count, o->work.out,
                        &options, mode, &context, err);
    progress_clear();
    if (rc == MP_ERR_CANCELLED)
        return cmd_fail(err, rc, "interrupted: --resume continues %s.partial", o->work.out);
    if (rc != 0 || (o->common.quiet && !o->common.json))
        return rc;
    rc = mp_compress_measure(o->work.out, &context, &report, err);
    if (rc != 0)
        return rc;
    if (!o->common.quiet)
        fprintf(stderr, "moepack: apply: %s: %llu file%s, %s\n", o->work.out,
                (unsigned long long)report.shards, plural(report.shards),
                size_text(report.plain, size));
    if (!o->common.quiet && options.zstd)
        zstd_print(stderr, &report);
    return o->common.json ? print_json(zstd_json(&report), err) : 0;
}

static const cmd_option options[] = {
    OPT_STRING('o', "output", "OUT", apply_options, work.out,
               "directory to write; it must not exist"),
    OPT_U64(0, "base-version", "N", apply_options, base_version, 0, 999999999,
            "version of a BASE that does not state it"),
    OPT_ZSTD(apply_options),
    OPT_FLAG(0, "resume", apply_options, work.resume, "continue an interrupted run"),
    OPT_FLAG(0, "force", apply_options, work.force,
             "replace OUT if it holds the same shards, discard an interrupted run"),
    OPT_JSON(apply_options),
    OPT_END,
};
static const cmd_argument arguments[] = {
    ARG_ONE("BASE", apply_options, base),
    ARG_MANY("DELTA", apply_options, deltas),
    ARG_END,
};
static const apply_options defaults = {0};

const command command_apply = {
    .name = "apply",
    .summary = "apply deltas to a version and write the result",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_apply,
};
