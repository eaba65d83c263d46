/* SPDX-License-Identifier: Apache-2.0 */
/* moepack finish: puts the parts of a run together. The journals of the parts say which command
 * they were started with; finishing is that command once more, with --shard finish. */
#include "commands.h"
#include "output.h"

#include <jansson.h>
#include <moepack/work.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct finish_options {
    common_options common;
    const char *out;
} finish_options;

/* A command as it was given. */
typedef struct given {
    json_t *json;
    const char *directory;
    char **words; /* argv */
    int count;
    const command *command;
} given;

static int fail_unsaid(mp_error *err)
{
    return cmd_fail(err, MP_ERR_INPUT,
                    "the parts' journals do not say how they were started: repeat the command with "
                    "--shard finish");
}

static int read_given(const char *how, given *g, mp_error *err)
{
    const json_t *words;

    g->json = json_loads(how, 0, NULL);
    words = json_object_get(g->json, "words");
    g->directory = json_string_value(json_object_get(g->json, "directory"));
    g->words = calloc(json_array_size(words) + 1, sizeof *g->words);
    if (!g->words)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    for (size_t i = 0; i < json_array_size(words); i++) {
        const char *word = json_string_value(json_array_get(words, i));

        if (!word)
            return fail_unsaid(err);
        g->words[g->count++] = (char *)word; /* parsing moves words about, and changes none */
    }
    g->command = g->count > 0 ? command_find(g->words[0]) : NULL;
    return g->directory && g->command ? 0 : fail_unsaid(err);
}

/* Sets an option that takes text, whatever was given. */
static int set_option(const command *cmd, void *values, const char *name, const char *text,
                      mp_error *err)
{
    for (const cmd_option *o = cmd->options; o && o->type != TYPE_END; o++) {
        if (strcmp(o->name, name) == 0 && o->type == TYPE_STRING) {
            *(const char **)((char *)values + o->offset) = text;
            return 0;
        }
    }
    return fail_unsaid(err);
}

/* The command runs where it was given; out: as it is seen from there. */
static int run_given(const given *g, const common_options *common, const char *out, mp_error *err)
{
    void *values = malloc(g->command->size);
    bool help = false;
    int rc;

    if (!values)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    rc = options_parse(g->command, g->count, g->words, values, &help, err);
    if (rc == 0 && (help || chdir(g->directory) != 0))
        rc = cmd_fail(err, MP_ERR_IO,
                      "the parts were started in \"%s\", which does not exist here: repeat their "
                      "command with --shard finish",
                      g->directory);
    if (rc == 0)
        rc = set_option(g->command, values, "output", out, err);
    if (rc == 0)
        rc = set_option(g->command, values, "shard", "finish", err);
    if (rc == 0) {
        *(common_options *)values = *common;
        rc = g->command->run(values, err);
    }
    options_release(g->command, values);
    free(values);
    return rc;
}

/* A path as it is seen from another directory: malloc'ed; null without memory or a directory. */
static char *seen_from(const char *directory, const char *path)
{
    char *here = getcwd(NULL, 0), *whole = NULL;

    if (path[0] == '/' || (here && strcmp(here, directory) == 0))
        whole = strdup(path);
    else if (here && asprintf(&whole, "%s/%s", here, path) < 0)
        whole = NULL;
    free(here);
    return whole;
}

static int run_finish(const void *values, mp_error *err)
{
    const finish_options *o = values;
    given g = {0};
    char *how = NULL, *out = NULL;
    int rc = mp_run_finish(o->out, &how, err);

    if (rc != 0 || !how)
        return rc;
    rc = read_given(how, &g, err);
    if (rc == 0 && !(out = seen_from(g.directory, o->out)))
        rc = cmd_fail(err, MP_ERR_IO, "cannot tell where \"%s\" is", o->out);
    if (rc == 0)
        rc = run_given(&g, &o->common, out, err);
    json_decref(g.json);
    free(g.words);
    free(how);
    free(out);
    return rc;
}

static const cmd_option options[] = {OPT_JSON(finish_options), OPT_END};
static const cmd_argument arguments[] = {ARG_ONE("OUT", finish_options, out), ARG_END};
static const finish_options defaults = {0};

const command command_finish = {
    .name = "finish",
    .summary = "put together the parts of a run on several machines",
    .options = options,
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .computes = true,
    .run = run_finish,
};
