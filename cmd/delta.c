/* SPDX-License-Identifier: Apache-2.0 */
/* moepack delta and fold: what changed between two versions, and several deltas as one. Two
 * commands in one file, since they write the same kind of directory, take the same options but a
 * few, and report the same figures. Whatever is unlike between two versions is listed whole: a full
 * version is needed then, and the list says why. */
#include "choices.h"
#include "commands.h"
#include "output.h"
#include "progress.h"
#include "values.h"
#include "work.h"

#include <inttypes.h>
#include <moepack/delta.h>

typedef struct delta_options {
    common_options common;
    const char *from, *to; /* of delta */
    cmd_strings deltas;    /* of fold */
    uint64_t version;
    mp_delta_encoding encoding;
    mp_delta_checksum checksum;
    uint64_t level;
    uint64_t max_shard_size;
    work_options work;
} delta_options;

static const cmd_choice encodings[] = {
    {"auto", MP_DELTA_AUTO},
    {"xor", MP_DELTA_XOR},
    {"overwrite", MP_DELTA_OVERWRITE},
    {NULL, 0},
};

/* ------------------------------------------------------------------------
 * What was written
 */

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

static void print_report(const char *name, const delta_options *o, const mp_delta_report *r)
{
    char changed[SIZE_TEXT], bytes[SIZE_TEXT], stored[SIZE_TEXT];

    fprintf(stderr,
            "moepack: %s: %s: version %06" PRIu64 " from %06" PRIu64 ", %s: %" PRIu64 " of %" PRIu64
            " tensors and %s of %s changed (%.3g%%), %s stored: %.3g%%\n",
            name, o->work.out, r->version, r->base_version,
            choice_name(encodings, (int)r->encoding), r->changed_tensors, r->tensors,
            size_text(r->changed_bytes, changed), size_text(r->bytes, bytes),
            100 * share(r->changed_bytes, r->bytes), size_text(r->stored_bytes, stored),
            100 * share(r->stored_bytes, r->bytes));
}

static json_t *report_json(const mp_delta_report *r)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "encoding",
                     choice_name(encodings, (int)r->encoding), "version", (json_int_t)r->version,
                     "base_version", (json_int_t)r->base_version, "tensors", (json_int_t)r->tensors,
                     "changed_tensors", (json_int_t)r->changed_tensors, "bytes",
                     (json_int_t)r->bytes, "changed_bytes", (json_int_t)r->changed_bytes,
                     "stored_bytes", (json_int_t)r->stored_bytes, "ratio",
                     share(r->stored_bytes, r->bytes));
}

static int run(const delta_options *o, bool fold, mp_error *err)
{
    const char *name = fold ? "fold" : "delta";
    const mp_delta_options options = {
        .size = sizeof(mp_delta_options),
        .version = o->version,
        .encoding = o->encoding,
        .checksum = o->checksum,
        .level = (int)o->level,
        .max_shard_size = o->max_shard_size,
    };
    mp_run_mode mode = o->work.resume ? MP_RUN_RESUME : o->work.force ? MP_RUN_FORCE : MP_RUN_FRESH;
    mp_delta_report report;
    mp_context context;
    int rc = work_check(&o->work, err);

    if (rc != 0)
        return rc;
    cmd_context(&o->common, &context);
    if (fold)
        rc = mp_delta_fold((const char *const *)o->deltas.items, o->deltas.count, o->work.out,
                           &options, mode, &context, &report, err);
    else
        rc = mp_delta_write(o->from, o->to, o->work.out, &options, mode, &context, &report, err);
    progress_clear();
    if (rc == MP_ERR_CANCELLED)
        rc = cmd_fail(err, rc, "interrupted: %s was not written", o->work.out);
    /* What was kept of the list; the message names only the first. */
    print_problems(stderr, "moepack: delta", &report.unlike);
    mp_problems_release(&report.unlike);
    if (rc != 0)
        return rc;
    if (!o->common.quiet)
        print_report(name, o, &report);
    return o->common.json ? print_json(report_json(&report), err) : 0;
}

static int run_delta(const void *values, mp_error *err)
{
    return run(values, false, err);
}

static int run_fold(const void *values, mp_error *err)
{
    return run(values, true, err);
}

/* ------------------------------------------------------------------------
 * The commands
 */

static const cmd_choice checksums[] = {
    {"xxh3-128", MP_DELTA_XXH3_128},
    {"adler32", MP_DELTA_ADLER32},
    {NULL, 0},
};

#define OUTPUT                                                \
    OPT_STRING('o', "output", "OUT", delta_options, work.out, \
               "directory to write; it must not exist")
#define REST                                                                               \
    OPT_U64(0, "level", "L", delta_options, level, 1, 22, "level of zstd"),                \
        OPT_SIZE(0, "max-shard-size", "SIZE", delta_options, max_shard_size, 1, INT64_MAX, \
                 "begin another file beyond SIZE (default 5GB)"),                          \
        OPT_FLAG(0, "resume", delta_options, work.resume,                                  \
                 "take over what an interrupted run left"),                                \
        OPT_FLAG(0, "force", delta_options, work.force,                                    \
                 "replace OUT if it is a delta, discard an interrupted run"),              \
        OPT_JSON(delta_options), OPT_END

static const cmd_option delta_table[] = {
    OUTPUT,
    OPT_U64(0, "version", "N", delta_options, version, 1, 999999999, "number of the version NEW",
            .flags = OPT_REQUIRED),
    OPT_CHOICE(0, "encoding", "ENCODING", delta_options, encoding, encodings,
               "how changes are encoded"),
    OPT_CHOICE(0, "checksum", "CHECKSUM", delta_options, checksum, checksums,
               "checksum that is stored for each new tensor"),
    REST,
};
static const cmd_option fold_table[] = {OUTPUT, REST};
static const cmd_argument delta_arguments[] = {
    ARG_ONE("OLD", delta_options, from),
    ARG_ONE("NEW", delta_options, to),
    ARG_END,
};
static const cmd_argument fold_arguments[] = {ARG_MANY("DELTA", delta_options, deltas), ARG_END};
static const delta_options defaults = {.level = 1};

const command command_delta = {
    .name = "delta",
    .summary = "write the changes between two versions",
    .options = delta_table,
    .arguments = delta_arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_delta,
};

const command command_fold = {
    .name = "fold",
    .summary = "merge a chain of deltas into one",
    .options = fold_table,
    .arguments = fold_arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_fold,
};
