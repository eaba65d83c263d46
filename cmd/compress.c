/* SPDX-License-Identifier: Apache-2.0 */
/* moepack compress and decompress: a directory with its shards compressed, and back. */
#include "choices.h"
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "work.h"
#include "zstd.h"

#include <moepack/compress.h>

typedef struct compress_options {
    common_options common;
    const char *from;
    const char *level;
    work_options work;
} compress_options;

static int run(const compress_options *o, bool decompress, mp_error *err)
{
    mp_compress_options options = {
        .size = sizeof(mp_compress_options), .decompress = decompress, .level = MP_ZSTD_AUTO};
    mp_compress_report report;
    mp_context context;
    mp_run_mode mode = o->work.resume ? MP_RUN_RESUME : o->work.force ? MP_RUN_FORCE : MP_RUN_FRESH;
    int rc = work_check(&o->work, err);

    if (rc == 0 && o->level)
        rc = zstd_level("level", o->level, &options.level, err);
    if (rc != 0)
        return rc;
    cmd_context(&o->common, &context);
    print_io(&o->common, o->from);
    rc = mp_compress(o->from, o->work.out, &options, mode, &context, &report, err);
    if (rc == MP_ERR_CANCELLED)
        return cmd_fail(err, rc, "interrupted: --resume continues %s.partial", o->work.out);
    if (rc != 0)
        return rc;
    progress_clear();
    if (!o->common.quiet) {
        fprintf(stderr, "moepack: %s: %s: ", decompress ? "decompress" : "compress", o->work.out);
        zstd_print(stderr, &report);
    }
    return o->common.json ? print_json(zstd_json(&report), err) : 0;
}

static int run_compress(const void *values, mp_error *err)
{
    return run(values, false, err);
}

static int run_decompress(const void *values, mp_error *err)
{
    return run(values, true, err);
}

/* ------------------------------------------------------------------------
 * The commands
 */

#define OUTPUT                                                   \
    OPT_STRING('o', "output", "OUT", compress_options, work.out, \
               "directory to write; it must not exist")
#define REST                                                                             \
    OPT_FLAG(0, "resume", compress_options, work.resume, "continue an interrupted run"), \
        OPT_FLAG(0, "force", compress_options, work.force,                               \
                 "replace OUT if it holds the same files, discard an interrupted run"),  \
        OPT_IO(compress_options), OPT_JSON(compress_options), OPT_END

static const cmd_option compress_table[] = {
    OUTPUT,
    OPT_STRING(0, "level", "LEVEL", compress_options, level,
               "1 to 22, or auto, the default: 1, but store what does not shrink"),
    REST,
};
static const cmd_option decompress_table[] = {OUTPUT, REST};
static const cmd_argument arguments[] = {ARG_ONE("DIR", compress_options, from), ARG_END};
static const compress_options defaults = {0};

const command command_compress = {
    .name = "compress",
    .summary = "compress the shards of a checkpoint or pack",
    .options = compress_table,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_compress,
};

const command command_decompress = {
    .name = "decompress",
    .summary = "turn compressed shards back into plain ones",
    .options = decompress_table,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_decompress,
};
