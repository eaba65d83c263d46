/* SPDX-License-Identifier: Apache-2.0 */
/* moepack completion: scripts for bash, zsh and fish, written from the same tables as --help and
 * the parser. So a new option or command is completed without a line here, and choices are those
 * that the parser takes.
 *
 * Each shell has its own way to quote, and texts of options are quoted as it wants: a help text may
 * hold brackets, colons or a quote. */
#include "commands.h"
#include "help.h"
#include "output.h"
#include "values.h"

#include <string.h>

/* The text between single quotes of a shell; fish and POSIX shells both take '\''. */
static void print_quoted(const char *text)
{
    putchar('\'');
    for (; *text != '\0'; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*text);
    }
    putchar('\'');
}

/* The names that an option's value is chosen from, with a blank between. */
static void print_choices(const cmd_option *o)
{
    const char *name;

    for (size_t i = 0; (name = value_choice(o, i)); i++)
        printf("%s%s", i > 0 ? " " : "", name);
}

static bool takes_value(const cmd_option *o)
{
    return o->value && !(o->flags & OPT_OPTIONAL_VALUE);
}

/* ------------------------------------------------------------------------
 * bash
 */

static void bash_words(const command *cmd)
{
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t own, count = options_all(cmd, all, &own);

    printf("    %s) words='", cmd->name);
    for (size_t i = 0; i < count; i++)
        printf("%s--%s", i > 0 ? " " : "", all[i]->name);
    printf("' ;;\n");
}

/* "COMMAND,-o | COMMAND,--output) what to do ;;" */
static void bash_value(const command *cmd, const cmd_option *o)
{
    if (!takes_value(o))
        return;
    printf("    ");
    if (o->letter)
        printf("%s,-%c | ", cmd->name, o->letter);
    printf("%s,--%s) ", cmd->name, o->name);
    if (value_choice(o, 0)) {
        printf("words='");
        print_choices(o);
        printf("' ;;\n");
    } else {
        printf("files=yes ;;\n");
    }
}

static void print_bash(void)
{
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t own;

    printf("# bash completion for moepack, written by 'moepack completion bash'\n"
           "_moepack()\n"
           "{\n"
           "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
           "    local command=${COMP_WORDS[1]} words='' files='' commands='");
    for (size_t i = 0; commands[i]; i++)
        printf("%s%s", i > 0 ? " " : "", commands[i]->name);
    printf("'\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        COMPREPLY=($(compgen -W \"$commands --help --version\" -- \"$current\"))\n"
           "        return\n"
           "    fi\n"
           "    # readline splits --option=value into three words\n"
           "    if [ \"$current\" = = ]; then\n"
           "        current=''\n"
           "    elif [ \"$previous\" = = ]; then\n"
           "        previous=${COMP_WORDS[COMP_CWORD-2]}\n"
           "    fi\n"
           "    case $command,$previous in\n"
           "    help,help) words=$commands ;;\n"
           "    completion,completion) words='bash zsh fish' ;;\n");
    for (size_t i = 0; commands[i]; i++) {
        size_t count = options_all(commands[i], all, &own);
        for (size_t j = 0; j < count; j++)
            bash_value(commands[i], all[j]);
    }
    printf("    esac\n"
           "    if [ -z \"$words$files\" ] && [[ $current == -* ]]; then\n"
           "        case $command in\n");
    for (size_t i = 0; commands[i]; i++) {
        printf("    ");
        bash_words(commands[i]);
    }
    printf("        esac\n"
           "    fi\n"
           "    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
           "}\n"
           "complete -o bashdefault -o default -F _moepack moepack\n");
}

/* ------------------------------------------------------------------------
 * zsh
 */

/* Text inside the brackets of an _arguments specification, itself in single quotes. */
static void zsh_text(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void zsh_value(const cmd_option *o)
{
    if (!takes_value(o))
        return;
    printf(":%s:", o->value);
    if (value_choice(o, 0)) {
        putchar('(');
        print_choices(o);
        putchar(')');
    } else {
        printf("_files");
    }
}

static void zsh_option(const command *cmd, const cmd_option *o)
{
    char text[OPTION_TEXT];
    const char *equals = takes_value(o) ? "=" : "";

    help_option_text(o, cmd->defaults, text);
    printf("            ");
    if (o->letter)
        printf("'(-%c --%s)'{-%c,--%s%s}'", o->letter, o->name, o->letter, o->name, equals);
    else
        printf("'--%s%s", o->name, equals);
    putchar('[');
    zsh_text(text);
    putchar(']');
    zsh_value(o);
    printf("' \\\n");
}

static void zsh_command(const command *cmd)
{
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t own, count = options_all(cmd, all, &own);

    printf("    %s)\n        _arguments \\\n", cmd->name);
    for (size_t i = 0; i < count; i++)
        zsh_option(cmd, all[i]);
    if (cmd == &command_help)
        printf("            '1:command:($names)' ;;\n");
    else if (cmd == &command_completion)
        printf("            '1:shell:(bash zsh fish)' ;;\n");
    else
        printf("            '*:file:_files' ;;\n");
}

static void print_zsh(void)
{
    printf("#compdef moepack\n"
           "# zsh completion for moepack, written by 'moepack completion zsh'\n"
           "_moepack()\n"
           "{\n"
           "    local -a commands names\n"
           "    commands=(\n");
    for (size_t i = 0; commands[i]; i++) {
        printf("        '%s:", commands[i]->name);
        zsh_text(commands[i]->summary);
        printf("'\n");
    }
    printf("    )\n"
           "    names=(${commands%%%%:*})\n"
           "    if (( CURRENT == 2 )); then\n"
           "        _describe command commands\n"
           "        return\n"
           "    fi\n"
           "    shift words\n"
           "    (( CURRENT-- ))\n"
           "    case $words[1] in\n");
    for (size_t i = 0; commands[i]; i++)
        zsh_command(commands[i]);
    printf("    esac\n"
           "}\n"
           "_moepack \"$@\"\n");
}

/* ------------------------------------------------------------------------
 * fish
 */

static void fish_option(const command *cmd, const cmd_option *o)
{
    char text[OPTION_TEXT];

    printf("complete -c moepack -n '__fish_seen_subcommand_from %s' -l %s", cmd->name, o->name);
    if (o->letter)
        printf(" -s %c", o->letter);
    if (takes_value(o))
        printf(" -r");
    if (value_choice(o, 0)) {
        printf(" -f -a '");
        print_choices(o);
        putchar('\'');
    }
    help_option_text(o, cmd->defaults, text);
    printf(" -d ");
    print_quoted(text);
    putchar('\n');
}

static void print_fish(void)
{
    const cmd_option *all[CMD_OPTIONS_MAX];
    size_t own;

    printf("# fish completion for moepack, written by 'moepack completion fish'\n");
    for (size_t i = 0; commands[i]; i++) {
        printf("complete -c moepack -n __fish_use_subcommand -f -a %s -d ", commands[i]->name);
        print_quoted(commands[i]->summary);
        putchar('\n');
        size_t count = options_all(commands[i], all, &own);
        for (size_t j = 0; j < count; j++)
            fish_option(commands[i], all[j]);
    }
    printf("complete -c moepack -n '__fish_seen_subcommand_from help' -f -a '");
    for (size_t i = 0; commands[i]; i++)
        printf("%s%s", i > 0 ? " " : "", commands[i]->name);
    printf("'\n"
           "complete -c moepack -n '__fish_seen_subcommand_from completion' -f "
           "-a 'bash zsh fish'\n");
}

/* ------------------------------------------------------------------------
 * moepack completion
 */

static const struct {
    const char *name;
    void (*print)(void);
} shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};

typedef struct completion_options {
    common_options common;
    const char *shell;
} completion_options;

static int run_completion(const void *values, mp_error *err)
{
    const completion_options *o = values;

    for (size_t i = 0; i < sizeof(shells) / sizeof(shells[0]); i++) {
        if (strcmp(o->shell, shells[i].name) == 0) {
            shells[i].print();
            return 0;
        }
    }
    return cmd_fail(err, MP_ERR_USAGE, "'%s' is not bash, zsh or fish", o->shell);
}

static const cmd_argument arguments[] = {ARG_ONE("SHELL", completion_options, shell), ARG_END};
static const completion_options defaults = {0};

const command command_completion = {
    .name = "completion",
    .summary = "write the completion script of bash, zsh or fish",
    .arguments = arguments,
    COMMAND_DEFAULTS(defaults),
    .run = run_completion,
};
