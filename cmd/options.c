/* SPDX-License-Identifier: Apache-2.0 */
/* How a command line is read against an option table, with getopt_long, and the options common to
 * all commands. A table (options.h) says type, range and place of each value, so that parsing,
 * messages and --help agree.
 *
 * getopt_long knows long names, prefixes of them and the order of arguments; what it finds wrong is
 * told here in our own words, with the nearest name that there is. Values are copied over the
 * defaults, so a command sees either what was given or its own default. */
#include "options.h"

#include "nearest.h"
#include "output.h"
#include "values.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* getopt_long returns this plus the index for a long form, the letter for a
 * short one; letters stay below it. */
#define LONG_BASE 256

static const cmd_choice when_choices[] = {
    {"auto", WHEN_AUTO}, {"always", WHEN_ALWAYS}, {"never", WHEN_NEVER}, {NULL, 0}};

/* The common options are at the start of every command's struct. */
static const cmd_option common_table[] = {
    OPT_INT('j', "threads", "N", common_options, threads, 1, 4096,
            "threads to run; by default one per processor"),
    OPT_FLAG('q', "quiet", common_options, quiet, "print no notes and no progress"),
    OPT_FLAG('v', "verbose", common_options, verbose, "print more about what is being done"),
    OPT_CHOICE(0, "progress", "WHEN", common_options, progress, when_choices,
               "draw a progress bar on standard error"),
    OPT_CHOICE(0, "color", "WHEN", common_options, color, when_choices, "color the output"),
    {.letter = 'h', .name = "help", .type = TYPE_HELP, .help = "print this help"},
    OPT_END,
};

size_t options_all(const command *cmd, const cmd_option *all[CMD_OPTIONS_MAX], size_t *own)
{
    size_t n = 0;

    for (const cmd_option *o = cmd->options; o && o->type != TYPE_END; o++)
        all[n++] = o;
    *own = n;
    for (const cmd_option *o = common_table; o->type != TYPE_END; o++)
        all[n++] = o;
    return n;
}

/* An option table in getopt's two forms. */
typedef struct getopt_tables {
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t count;
    char letters[2 * CMD_OPTIONS_MAX + 2];
    struct option names[CMD_OPTIONS_MAX + 1];
} getopt_tables;

static void fill_tables(const command *cmd, getopt_tables *t)
{
    size_t own, n = 0;

    memset(t->letters, 0, sizeof(t->letters));
    memset(t->names, 0, sizeof(t->names));
    t->count = options_all(cmd, t->all, &own);
    t->letters[n++] = ':'; /* tells a missing value from an unknown option */
    for (size_t i = 0; i < t->count; i++) {
        const cmd_option *o = t->all[i];
        bool optional = (o->flags & OPT_OPTIONAL_VALUE) != 0;

        t->names[i].name = o->name;
        t->names[i].has_arg = !o->value  ? no_argument
                              : optional ? optional_argument
                                         : required_argument;
        t->names[i].val = LONG_BASE + (int)i;
        if (o->letter) {
            t->letters[n++] = o->letter;
            if (o->value && !optional)
                t->letters[n++] = ':';
        }
    }
}

/* Index of the option that getopt_long's result or optopt stands for, or -1. */
static int find_option(const getopt_tables *t, int value)
{
    if (value >= LONG_BASE)
        return value - LONG_BASE;
    for (size_t i = 0; i < t->count; i++) {
        if (t->all[i]->letter && t->all[i]->letter == value)
            return (int)i;
    }
    return -1;
}

/* True if the name, without "--" and up to any "=", begins several options. */
static bool is_ambiguous(const getopt_tables *t, const char *name, size_t length)
{
    size_t matches = 0;

    for (size_t i = 0; i < t->count; i++)
        matches += strncmp(t->all[i]->name, name, length) == 0;
    return matches > 1;
}

static int fail_unknown_name(const getopt_tables *t, const char *word, mp_error *err)
{
    const char *text = word + 2;
    char name[64];
    nearest n;

    snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, "="), text);
    if (is_ambiguous(t, name, strlen(name)))
        return cmd_fail(err, MP_ERR_USAGE, "option '--%s' is ambiguous", name);
    nearest_init(&n, name);
    for (size_t i = 0; i < t->count; i++)
        nearest_offer(&n, t->all[i]->name);
    if (n.best)
        return cmd_fail(err, MP_ERR_USAGE, "unknown option '--%s'; did you mean '--%s'?", name,
                        n.best);
    return cmd_fail(err, MP_ERR_USAGE, "unknown option '--%s'", name);
}

/* result: '?' or ':', as getopt_long returned; word: what it looked at. */
static int fail_option(const getopt_tables *t, int result, const char *word, mp_error *err)
{
    int index = optopt ? find_option(t, optopt) : -1;

    if (index < 0 && optopt)
        return cmd_fail(err, MP_ERR_USAGE, "unknown option '-%c'", optopt);
    if (index < 0)
        return fail_unknown_name(t, word, err);
    if (result == ':')
        return cmd_fail(err, MP_ERR_USAGE, "option '--%s' needs a value (%s)", t->all[index]->name,
                        t->all[index]->value);
    return cmd_fail(err, MP_ERR_USAGE, "option '--%s' takes no value", t->all[index]->name);
}

/* Reads options up to the end of argv; optind is then the first argument. */
static int parse_options(const getopt_tables *t, int argc, char **argv, void *values,
                         bool given[CMD_OPTIONS_MAX], bool *help, mp_error *err)
{
    int result;

    /* getopt prints no messages of its own. */
    opterr = 0;
    optind = 0; /* glibc: begin anew, also after a scan that stopped midway */
    while ((result = getopt_long(argc, argv, t->letters, t->names, NULL)) != -1) {
        int index = find_option(t, result);
        if (index < 0) /* '?' or ':', which are no option's letter */
            return fail_option(t, result, argv[optind - 1], err);
        if (t->all[index]->type == TYPE_HELP) {
            *help = true;
            return 0;
        }
        int code = value_set(t->all[index], optarg, values, err);
        if (code != 0)
            return code;
        given[index] = true;
    }
    return 0;
}

static int check_required(const getopt_tables *t, const bool given[CMD_OPTIONS_MAX], mp_error *err)
{
    for (size_t i = 0; i < t->count; i++) {
        const cmd_option *o = t->all[i];
        if ((o->flags & OPT_REQUIRED) && !given[i])
            return cmd_fail(err, MP_ERR_USAGE, "option '--%s' is required", o->name);
    }
    return 0;
}

static int parse_arguments(const command *cmd, int argc, char **argv, void *values, mp_error *err)
{
    int i = 0;

    for (const cmd_argument *a = cmd->arguments; a && a->name; a++) {
        void *member = (char *)values + a->offset;
        if (i == argc && a->count != COUNT_OPTIONAL)
            return cmd_fail(err, MP_ERR_USAGE, "argument %s is missing", a->name);
        if (a->count == COUNT_MANY) {
            *(cmd_strings *)member = (cmd_strings){argv + i, (size_t)(argc - i)};
            i = argc;
        } else if (i < argc) {
            *(const char **)member = argv[i++];
        }
    }
    if (i < argc)
        return cmd_fail(err, MP_ERR_USAGE, "unexpected argument '%s'", argv[i]);
    return 0;
}

int options_parse(const command *cmd, int argc, char **argv, void *values, bool *help,
                  mp_error *err)
{
    getopt_tables t;
    bool given[CMD_OPTIONS_MAX] = {false};

    memcpy(values, cmd->defaults, cmd->size);
    ((common_options *)values)->words = (cmd_strings){argv, (size_t)argc};
    *help = false;
    fill_tables(cmd, &t);
    int code = parse_options(&t, argc, argv, values, given, help, err);
    if (code == 0 && !*help)
        code = check_required(&t, given, err);
    if (code == 0 && !*help)
        code = parse_arguments(cmd, argc - optind, argv + optind, values, err);
    return code;
}

void options_release(const command *cmd, void *values)
{
    for (const cmd_option *o = cmd->options; o && o->type != TYPE_END; o++) {
        void *member = (char *)values + o->offset;
        if (o->type == TYPE_LIST) {
            free(((cmd_list *)member)->items);
            *(cmd_list *)member = (cmd_list){NULL, 0};
        } else if (o->type == TYPE_WORDS) {
            free(*(char **)member);
            *(char **)member = NULL;
        }
    }
}
