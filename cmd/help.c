/* SPDX-License-Identifier: Apache-2.0 */
/* How help is laid out on the screen: synopsis and lists of options, from the same table that
 * parses them, so that neither can say what the other does not do; tests/cli/man.sh holds manual
 * pages against it. Words flow into lines of 80 columns, for terminals and for logs alike. And
 * moepack help, which opens the page of a command where there is one, and prints the list where
 * there is none. */
#include "help.h"

#include "commands.h"
#include "output.h"
#include "values.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINE_WIDTH    80
#define OPTION_COLUMN 28 /* where the text of an option begins */

/* Words flowing into lines of LINE_WIDTH, all but the first indented. */
typedef struct flow {
    FILE *out;
    int column;
    int indent;
} flow;

static void flow_word(flow *f, const char *word, size_t length)
{
    int width = (int)length;

    if (f->column > f->indent) {
        if (f->column + 1 + width > LINE_WIDTH) {
            fprintf(f->out, "\n%*s", f->indent, "");
            f->column = f->indent;
        } else {
            putc(' ', f->out);
            f->column++;
        }
    }
    fwrite(word, 1, length, f->out);
    f->column += width;
}

static void flow_text(flow *f, const char *text)
{
    while (*text != '\0') {
        size_t length = strcspn(text, " ");
        flow_word(f, text, length);
        text += length + strspn(text + length, " ");
    }
    putc('\n', f->out);
}

/* The option as the synopsis has it: "[-j N]", "[--zstd[=LEVEL]]", "--ep N". */
static void synopsis_option(flow *f, const cmd_option *o)
{
    bool required = (o->flags & OPT_REQUIRED) != 0;
    const char *between = o->flags & OPT_OPTIONAL_VALUE ? "[=" : " ";
    const char *after = o->flags & OPT_OPTIONAL_VALUE ? "]" : "";
    char name[64];
    char text[160];

    if (o->letter && !(o->flags & OPT_OPTIONAL_VALUE))
        snprintf(name, sizeof(name), "-%c", o->letter);
    else
        snprintf(name, sizeof(name), "--%s", o->name);
    int n = snprintf(text, sizeof(text), "%s%s%s%s%s%s", required ? "" : "[", name,
                     o->value ? between : "", o->value ? o->value : "", o->value ? after : "",
                     required ? "" : "]");
    flow_word(f, text, (size_t)n);
}

static void synopsis_argument(flow *f, const cmd_argument *a)
{
    char text[64];
    const char *format = a->count == COUNT_OPTIONAL ? "[%s]" : "%s";

    int n = snprintf(text, sizeof(text), format, a->name);
    flow_word(f, text, (size_t)n);
    if (a->count == COUNT_MANY)
        flow_word(f, "...", 3);
}

static void help_synopsis(FILE *out, const command *cmd)
{
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t own, count = options_all(cmd, all, &own);
    int indent = fprintf(out, "Usage: moepack %s ", cmd->name);
    flow f = {out, indent, indent};

    for (size_t i = 0; i < count; i++) {
        if (all[i]->type != TYPE_HELP)
            synopsis_option(&f, all[i]);
    }
    for (const cmd_argument *a = cmd->arguments; a && a->name; a++)
        synopsis_argument(&f, a);
    putc('\n', out);
}

void help_option_text(const cmd_option *option, const void *defaults, char text[OPTION_TEXT])
{
    char choices[512], value[128];
    int n = snprintf(text, OPTION_TEXT, "%s", option->help);

    value_choices(option, choices, sizeof(choices));
    if (choices[0] != '\0')
        n += snprintf(text + n, (size_t)(OPTION_TEXT - n), ": %s", choices);
    if (value_default(option, defaults, value, sizeof(value)))
        snprintf(text + n, (size_t)(OPTION_TEXT - n), " (default %s)", value);
}

static void help_option(FILE *out, const command *cmd, const cmd_option *o)
{
    const char *before = !o->value ? "" : o->flags & OPT_OPTIONAL_VALUE ? "[=" : " ";
    const char *after = o->flags & OPT_OPTIONAL_VALUE ? "]" : "";
    char text[OPTION_TEXT];
    int column;

    if (o->letter)
        column = fprintf(out, "  -%c, --%s%s%s%s", o->letter, o->name, before,
                         o->value ? o->value : "", after);
    else
        column = fprintf(out, "      --%s%s%s%s", o->name, before, o->value ? o->value : "", after);
    if (column + 2 > OPTION_COLUMN) {
        putc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", OPTION_COLUMN - column, "");

    flow f = {out, OPTION_COLUMN, OPTION_COLUMN};
    help_option_text(o, cmd->defaults, text);
    flow_text(&f, text);
}

void help_command(FILE *out, const command *cmd)
{
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t own, count = options_all(cmd, all, &own);

    help_synopsis(out, cmd);
    putc('\n', out);
    flow summary = {out, fprintf(out, "moepack %s:", cmd->name), 0};
    flow_text(&summary, cmd->summary);
    if (own > 0)
        fprintf(out, "\nOptions:\n");
    for (size_t i = 0; i < own; i++)
        help_option(out, cmd, all[i]);
    fprintf(out, "\nOptions of every command:\n");
    for (size_t i = own; i < count; i++)
        help_option(out, cmd, all[i]);
}

void help_commands(FILE *out)
{
    fprintf(out, "Usage: moepack COMMAND [OPTIONS] [ARGUMENTS]\n"
                 "       moepack --help | --version\n"
                 "\n"
                 "Commands:\n");
    for (size_t i = 0; commands[i]; i++)
        fprintf(out, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\n'moepack COMMAND --help' lists a command's options, 'moepack help COMMAND' "
                 "opens\nits manual page.\n");
}

/* ------------------------------------------------------------------------
 * moepack help
 */

typedef struct help_options {
    common_options common;
    const char *topic;
} help_options;

/* True if `man -w PAGE` finds the page. */
static bool have_page(char *page)
{
    char man[] = "man", where[] = "-w";
    char *const argv[] = {man, where, page, NULL};
    posix_spawn_file_actions_t quiet;
    pid_t pid;
    int status;

    if (posix_spawn_file_actions_init(&quiet) != 0)
        return false;
    posix_spawn_file_actions_addopen(&quiet, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&quiet, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    /* Ask before running man: its own message about a missing page would come first. */
    int failed = posix_spawnp(&pid, "man", &quiet, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&quiet);
    if (failed || waitpid(pid, &status, 0) < 0)
        return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int run_help(const void *values, mp_error *err)
{
    const help_options *o = values;
    char page[64];

    if (!o->topic) {
        help_commands(stdout);
        return 0;
    }
    const command *cmd = command_find(o->topic);
    if (!cmd)
        return command_unknown(o->topic, err);
    snprintf(page, sizeof(page), "moepack-%s", cmd->name);
    if (have_page(page))
        execlp("man", "man", page, (char *)NULL);
    /* There is no man, or it does not know the page. */
    help_command(stdout, cmd);
    return 0;
}

static const cmd_argument arguments[] = {ARG_OPTIONAL("COMMAND", help_options, topic), ARG_END};
static const help_options defaults = {0};

const command command_help = {
    .name = "help",
    .summary = "open the manual page of a command, or list the commands",
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_help,
};
