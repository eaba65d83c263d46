/* SPDX-License-Identifier: Apache-2.0 */
/* moepack checksums: SHA256SUMS of a directory, made or checked. */
#include "choices.h"
#include "commands.h"
#include "output.h"
#include "progress.h"

#include <jansson.h>
#include <moepack/store.h>
#include <moepack/work.h>

typedef struct checksums_options {
    common_options common;
    const char *dir;
    bool check;
} checksums_options;

static int check(const checksums_options *o, const mp_context *context, mp_error *err)
{
    mp_problems problems = {0};
    uint64_t files;
    int rc = mp_checksums_check(o->dir, context, &problems, &files, err);

    if (rc == 0 && o->common.json) {
        json_t *list = json_array();

        for (size_t i = 0; i < problems.count && i < MP_PROBLEMS_KEPT; i++)
            json_array_append_new(list, json_string(problems.text[i]));
        rc = print_json(json_pack("{s:b, s:I, s:I, s:o}", "ok", problems.count == 0, "files",
                                  (json_int_t)files, "count", (json_int_t)problems.count,
                                  "problems", list),
                        err);
    } else if (rc == 0) {
        print_problems(stdout, o->dir, &problems);
        if (problems.count == 0 && !o->common.quiet) {
            print_name(stdout, o->dir);
            printf(": all %llu files match %s\n", (unsigned long long)files, MP_SUMS_NAME);
        }
    }
    if (rc == 0 && problems.count > 0) {
        err->code = rc = MP_ERR_CHECK; /* standard output has said it all */
        err->message[0] = '\0';
    }
    mp_problems_release(&problems);
    return rc;
}

static int run_checksums(const void *values, mp_error *err)
{
    const checksums_options *o = values;
    mp_context context;

    cmd_context(&o->common, &context);
    print_io(&o->common, o->dir);
    if (o->common.json && !o->check)
        return cmd_fail(err, MP_ERR_USAGE, "--json needs --check");
    return o->check ? check(o, &context, err) : mp_checksums_write(o->dir, &context, err);
}

static const cmd_option options[] = {
    OPT_FLAG('c', "check", checksums_options, check, "check the directory against SHA256SUMS"),
    OPT_IO(checksums_options),
    OPT_JSON(checksums_options),
    OPT_END,
};
static const cmd_argument arguments[] = {ARG_ONE("DIR", checksums_options, dir), ARG_END};
static const checksums_options defaults = {0};

const command command_checksums = {
    .name = "checksums",
    .summary = "write or check the SHA-256 sums of a directory",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_checksums,
};
