/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cmd/options.h - typed option tables.
 *
 * A command says in one table which options it takes, of which type and range,
 * and where in its own struct each value goes. Parsing, --help, the synopsis
 * and the shell completions all come from that table:
 *
 *     typedef struct map_options {
 *         common_options common; // always the first member
 *         const char *placement;
 *         uint64_t ep;
 *     } map_options;
 *
 *     static const cmd_option options[] = {
 *         OPT_STRING(0, "placement", "FILE", map_options, placement, "read the placement from
 * FILE"), OPT_U64(0, "ep", "N", map_options, ep, 1, 65536, "expert-parallel ranks", .flags =
 * OPT_REQUIRED), OPT_END,
 *     };
 *
 * A value that the user does not give keeps what the command's defaults say. Of an option given
 * twice the last value counts, but lists add up.
 * The help text of an option names neither its choices nor its default: both are
 * added from the table and the defaults.
 */
#ifndef MOEPACK_CMD_OPTIONS_H
#define MOEPACK_CMD_OPTIONS_H

#include <moepack/base.h>

/* When to do what only makes sense on a terminal. */
typedef enum cmd_when { WHEN_AUTO, WHEN_ALWAYS, WHEN_NEVER } cmd_when;

/* What an ARG_MANY argument collects; the strings are the program's own. */
typedef struct cmd_strings {
    char *const *items;
    size_t count;
} cmd_strings;

/* Values of the options that every command takes, and of --json and --io, which those
 * take that have OPT_JSON or OPT_IO in their table. Zeroed: the defaults. */
typedef struct common_options {
    int threads; /* 0: all processors */
    bool quiet;
    bool verbose;
    bool json;
    mp_io io;
    cmd_when progress;
    cmd_when color;
    cmd_strings words; /* of the command line, its name first */
} common_options;

/* Numbers in the order given, ranges written out: "0-2,7,7" is 0 1 2 7 7. */
typedef struct cmd_list {
    uint64_t *items;
    size_t count;
} cmd_list;

/* Most numbers that a list may hold. */
#define CMD_LIST_MAX 65536u

typedef struct cmd_choice {
    const char *name; /* null ends a table of choices */
    int value;
} cmd_choice;

typedef enum cmd_option_type {
    TYPE_END,
    TYPE_HELP,
    TYPE_FLAG,   /* bool */
    TYPE_INT,    /* int */
    TYPE_U64,    /* uint64_t */
    TYPE_SIZE,   /* uint64_t, bytes: 4096, 512MB, 5GB, 1GiB */
    TYPE_DOUBLE, /* double */
    TYPE_STRING, /* const char * */
    TYPE_CHOICE, /* int or an enum: the value of the choice named */
    TYPE_LIST,   /* cmd_list; freed after the command has run */
    TYPE_WORDS   /* char *: words with commas between; freed likewise */
} cmd_option_type;

#define OPT_REQUIRED       1u /* it is a usage error to leave it out */
#define OPT_OPTIONAL_VALUE 2u /* --name or --name=VALUE; .given tells that it was there */

typedef struct cmd_option {
    char letter;       /* short form, or 0 */
    const char *name;  /* long form, without the dashes */
    const char *value; /* what help calls the value; null for a flag */
    const char *help;  /* lowercase, no full stop */
    cmd_option_type type;
    unsigned flags;
    size_t offset;   /* of the value in the command's struct */
    size_t given;    /* of a bool that is set when the option is given; 0: none */
    int64_t int_min; /* range of TYPE_INT */
    int64_t int_max;
    uint64_t min; /* range of TYPE_U64, TYPE_SIZE and of the items of a list */
    uint64_t max;
    double low; /* range of TYPE_DOUBLE */
    double high;
    const cmd_choice *choices;
    /* Of a TYPE_STRING that is one of the library's names: name number index, then null. */
    const char *(*choice_name)(size_t index);
} cmd_option;

/* Offset of member f of S, which must have type T. */
#define OPT_AT(S, f, T) (offsetof(S, f) + 0 * sizeof(char[_Generic(((S *)0)->f, T : 1)]))

/* l: letter or 0; n: long name; v: name of the value; S, f: struct and member.
 * The last argument is the help text, after which more members may be set, as
 * in `"ranks", .flags = OPT_REQUIRED`. */
/* clang-format off */
#define OPT_FLAG(l, n, S, f, ...) \
    {.letter = l, .name = n, .type = TYPE_FLAG, .offset = OPT_AT(S, f, bool), .help = __VA_ARGS__}
#define OPT_INT(l, n, v, S, f, lo, hi, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_INT, .offset = OPT_AT(S, f, int), \
     .int_min = lo, .int_max = hi, .help = __VA_ARGS__}
#define OPT_U64(l, n, v, S, f, lo, hi, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_U64, .offset = OPT_AT(S, f, uint64_t), \
     .min = lo, .max = hi, .help = __VA_ARGS__}
#define OPT_SIZE(l, n, v, S, f, lo, hi, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_SIZE, .offset = OPT_AT(S, f, uint64_t), \
     .min = lo, .max = hi, .help = __VA_ARGS__}
#define OPT_DOUBLE(l, n, v, S, f, lo, hi, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_DOUBLE, .offset = OPT_AT(S, f, double), \
     .low = lo, .high = hi, .help = __VA_ARGS__}
#define OPT_STRING(l, n, v, S, f, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_STRING, \
     .offset = OPT_AT(S, f, const char *), .help = __VA_ARGS__}
/* An enum member is as good as an int: its size is checked, not its type. */
#define OPT_CHOICE(l, n, v, S, f, table, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_CHOICE, \
     .offset = offsetof(S, f) + 0 * sizeof(char[sizeof(((S *)0)->f) == sizeof(int) ? 1 : -1]), \
     .choices = table, .help = __VA_ARGS__}
#define OPT_LIST(l, n, v, S, f, lo, hi, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_LIST, .offset = OPT_AT(S, f, cmd_list), \
     .min = lo, .max = hi, .help = __VA_ARGS__}
#define OPT_WORDS(l, n, v, S, f, ...) \
    {.letter = l, .name = n, .value = v, .type = TYPE_WORDS, .offset = OPT_AT(S, f, char *), \
     .help = __VA_ARGS__}
#define OPT_JSON(S) OPT_FLAG(0, "json", S, common.json, "print JSON instead of text")
/* io_choices stand in choices.h. */
#define OPT_IO(S) \
    OPT_CHOICE(0, "io", "MODE", S, common.io, io_choices, "how files are read")
#define OPT_END     {.type = TYPE_END}
/* clang-format on */

typedef enum cmd_argument_count {
    COUNT_END,
    COUNT_ONE,
    COUNT_OPTIONAL,
    COUNT_MANY
} cmd_argument_count;

/* A positional argument. Those that may be missing come last, and after one that
 * takes many there is no other. */
typedef struct cmd_argument {
    const char *name;
    cmd_argument_count count;
    size_t offset;
} cmd_argument;

/* clang-format off */
#define ARG_ONE(n, S, f)      {n, COUNT_ONE, OPT_AT(S, f, const char *)}
#define ARG_OPTIONAL(n, S, f) {n, COUNT_OPTIONAL, OPT_AT(S, f, const char *)}
#define ARG_MANY(n, S, f)     {n, COUNT_MANY, OPT_AT(S, f, cmd_strings)}
#define ARG_END               {NULL, COUNT_END, 0}
/* clang-format on */

/* A command; see cmd/commands.h for how to add one. */
typedef struct command {
    const char *name;
    const char *summary;           /* what it does: lowercase, no full stop */
    const cmd_option *options;     /* its own; the common ones are added. Null: none */
    const cmd_argument *arguments; /* null: none */
    const void *defaults;          /* a value of its struct, common_options first */
    size_t size;                   /* of that struct */
    bool computes;                 /* with numbers of tensors: MOEPACK_CPU has to make sense */

    /* Runs with the parsed struct. Prints its result to stdout and returns 0, or a
     * negative mp_code with err filled, which the frame prints and turns into the
     * exit status. With MP_ERR_CHECK the message may be empty, when stdout has
     * said it all. */
    int (*run)(const void *options, mp_error *err);
} command;

/* The members .defaults and .size of a command. */
#define COMMAND_DEFAULTS(value) .defaults = &(value), .size = sizeof(value)

/* Most options of one command, the common ones included. */
#define CMD_OPTIONS_MAX 64u

/* All options of a command, its own first; *own is set to how many are. */
size_t options_all(const command *cmd, const cmd_option *all[CMD_OPTIONS_MAX], size_t *own);

/* Parses argv[1..]; argv[0] is the command's name, and argv may be reordered.
 * values: a buffer of cmd->size bytes, which gets the defaults and what was
 *   given; options_release frees what it owns, also after a failure.
 * help: set to whether --help was given, after which nothing else is checked.
 * MP_ERR_USAGE. */
int options_parse(const command *cmd, int argc, char **argv, void *values, bool *help,
                  mp_error *err);
void options_release(const command *cmd, void *values);

#endif
