/* SPDX-License-Identifier: Apache-2.0 */
/* Option tables: every type of value, what is refused and how it is said, and the
 * help text that comes from the table. */
#include <criterion/criterion.h>

#include "../../cmd/help.h"
#include "../../cmd/nearest.h"
#include "../../cmd/options.h"
#include "../../cmd/output.h"
#include "../../cmd/progress.h"
#include "../../cmd/values.h"

#include <stdlib.h>
#include <string.h>

typedef enum color { RED = 3, GREEN = 7 } color;

typedef struct sample_options {
    common_options common;
    bool flag;
    int offset;
    uint64_t ranks;
    uint64_t memory;
    double tolerance;
    const char *output;
    const char *metal;
    color color;
    cmd_list layers;
    char *drop;
    bool pack;
    int level;
    const char *first;
    cmd_strings rest;
} sample_options;

static const cmd_choice colors[] = {{"red", RED}, {"green", GREEN}, {NULL, 0}};

static const char *metal_name(size_t index)
{
    static const char *const names[] = {"iron", "zinc", NULL};

    return names[index];
}

static const cmd_option sample_table[] = {
    OPT_FLAG('f', "flag", sample_options, flag, "raise the flag"),
    OPT_INT(0, "offset", "N", sample_options, offset, -5, 5, "move by N"),
    OPT_U64(0, "ranks", "N", sample_options, ranks, 1, UINT64_MAX, "ranks to write",
            .flags = OPT_REQUIRED),
    OPT_SIZE(0, "memory", "SIZE", sample_options, memory, 1, UINT64_MAX, "memory of one rank"),
    OPT_DOUBLE(0, "tolerance", "X", sample_options, tolerance, 0, 1, "largest error"),
    OPT_STRING('o', "output", "FILE", sample_options, output, "write to FILE"),
    OPT_STRING(0, "metal", "METAL", sample_options, metal, "use METAL", .choice_name = metal_name),
    OPT_CHOICE(0, "hue", "HUE", sample_options, color, colors, "paint it"),
    OPT_LIST(0, "layers", "LIST", sample_options, layers, 0, 65535, "these layers only"),
    OPT_WORDS(0, "drop", "NAMES", sample_options, drop, "leave NAMES behind"),
    OPT_INT('p', "pack", "LEVEL", sample_options, level, 1, 9, "pack it",
            .flags = OPT_OPTIONAL_VALUE, .given = offsetof(sample_options, pack)),
    OPT_END,
};

static const cmd_argument sample_arguments[] = {ARG_ONE("FIRST", sample_options, first),
                                                ARG_MANY("REST", sample_options, rest), ARG_END};

static const sample_options sample_defaults = {
    .memory = UINT64_C(5000000000), .tolerance = 0.25, .color = GREEN, .level = 3};

static const command sample = {
    .name = "sample",
    .summary = "try every type",
    .options = sample_table,
    .arguments = sample_arguments,
    COMMAND_DEFAULTS(sample_defaults),
};

#define MAX_WORDS 32

/* Parses a line whose words have one blank between; *help is checked to be unset. */
static int parse(const char *line, sample_options *o, mp_error *err)
{
    static char text[512];
    static char *argv[MAX_WORDS + 1]; /* o->rest points into it */
    int argc = 0;
    bool help;

    snprintf(text, sizeof(text), "sample %s", line);
    for (char *word = strtok(text, " "); word && argc < MAX_WORDS; word = strtok(NULL, " "))
        argv[argc++] = word;
    argv[argc] = NULL;
    *err = (mp_error){0};
    int code = options_parse(&sample, argc, argv, o, &help, err);
    cr_assert_not(help);
    return code;
}

static void expect_refusal(const char *line, const char *message)
{
    sample_options o;
    mp_error err;

    cr_expect_eq(parse(line, &o, &err), MP_ERR_USAGE, "accepted: %s", line);
    cr_expect_str_eq(err.message, message);
    options_release(&sample, &o);
}

/* The value of one option behind what else is needed. */
static void expect_value_refused(const char *option, const char *message)
{
    char line[256];

    snprintf(line, sizeof(line), "a b --ranks 1 %s", option);
    expect_refusal(line, message);
}

Test(options, defaults_stay)
{
    sample_options o;
    mp_error err;

    cr_assert_eq(parse("--ranks 4 in out", &o, &err), 0, "%s", err.message);
    cr_expect_eq(o.ranks, 4);
    cr_expect_eq(o.memory, UINT64_C(5000000000));
    cr_expect_eq(o.tolerance, 0.25);
    cr_expect_eq(o.color, GREEN);
    cr_expect_eq(o.level, 3);
    cr_expect_not(o.pack);
    cr_expect_not(o.flag);
    cr_expect_null(o.output);
    cr_expect_eq(o.layers.count, 0);
    cr_expect_eq(o.common.threads, 0);
    cr_expect_str_eq(o.first, "in");
    cr_expect_eq(o.rest.count, 1);
    cr_expect_str_eq(o.rest.items[0], "out");
}

Test(options, every_type_is_stored)
{
    sample_options o;
    mp_error err;

    cr_assert_eq(parse("in -fo FILE --ranks=18446744073709551615 x --offset -5 --memory 3MiB "
                       "--tolerance 1e-3 --hue red --layers 0-3,7 y --pack=9 --metal zinc -- -z",
                       &o, &err),
                 0, "%s", err.message);
    cr_expect(o.flag);
    cr_expect_str_eq(o.output, "FILE");
    cr_expect_eq(o.ranks, UINT64_MAX);
    cr_expect_eq(o.offset, -5);
    cr_expect_eq(o.memory, 3 * 1048576);
    cr_expect_eq(o.tolerance, 1e-3);
    cr_expect_eq(o.color, RED);
    cr_expect_str_eq(o.metal, "zinc");
    cr_expect_eq(o.layers.count, 5);
    cr_expect_eq(o.layers.items[4], 7);
    cr_expect(o.pack);
    cr_expect_eq(o.level, 9);
    cr_expect_eq(o.rest.count, 3);
    cr_expect_str_eq(o.rest.items[2], "-z");
    options_release(&sample, &o);
    cr_expect_null(o.layers.items);
}

Test(options, an_optional_value_may_be_missing)
{
    sample_options o;
    mp_error err;

    cr_assert_eq(parse("--pack a b --ranks 1", &o, &err), 0, "%s", err.message);
    cr_expect(o.pack);
    cr_expect_eq(o.level, 3);
    cr_assert_eq(parse("-p a b --ranks 1", &o, &err), 0, "%s", err.message);
    cr_expect(o.pack);
    cr_expect_str_eq(o.first, "a");
}

Test(options, the_last_of_several_counts)
{
    sample_options o;
    mp_error err;

    cr_assert_eq(parse("a b --ranks 1 --ranks 2 -o here -o there", &o, &err), 0);
    cr_expect_eq(o.ranks, 2);
    cr_expect_str_eq(o.output, "there");
    options_release(&sample, &o);
}

Test(options, lists_add_up)
{
    static const uint64_t expected[] = {1, 2, 3, 4, 2, 9};
    sample_options o;
    mp_error err;

    cr_assert_eq(
        parse("a b --ranks 1 --layers 1-3 --layers 4,2 --drop x,y --layers=9 --drop z", &o, &err),
        0);
    cr_expect_eq(o.layers.count, 6);
    cr_expect_arr_eq(o.layers.items, expected, sizeof(expected));
    cr_expect_str_eq(o.drop, "x,y,z");
    options_release(&sample, &o);
    cr_expect_null(o.drop);

    cr_assert_eq(parse("a b --ranks 1", &o, &err), 0);
    cr_expect_null(o.drop);
    options_release(&sample, &o);

    cr_expect_eq(parse("a b --ranks 1 --layers 0-65535 --layers 7", &o, &err), MP_ERR_USAGE);
    cr_expect_str_eq(err.message, "option '--layers': '7' has too many numbers");
    cr_expect_eq(o.layers.count, CMD_LIST_MAX);
    options_release(&sample, &o);
}

Test(options, what_is_missing_is_named)
{
    expect_refusal("a b", "option '--ranks' is required");
    expect_refusal("--ranks 1", "argument FIRST is missing");
    expect_refusal("--ranks 1 a", "argument REST is missing");
    expect_refusal("a b --ranks", "option '--ranks' needs a value (N)");
    expect_refusal("a b --ranks 1 -o", "option '--output' needs a value (FILE)");
}

Test(options, unknown_ones_are_refused)
{
    expect_refusal("a b --rank-count 1", "unknown option '--rank-count'");
    expect_refusal("a b --layer=1 --rnaks 1", "unknown option '--rnaks'; did you mean '--ranks'?");
    expect_refusal("a b --p", "option '--p' is ambiguous");
    expect_refusal("a b -fx", "unknown option '-x'");
    expect_refusal("a b --flag=1", "option '--flag' takes no value");
}

Test(options, values_out_of_range_are_refused)
{
    expect_value_refused("--offset 6", "option '--offset': '6' is not a number from -5 to 5");
    expect_value_refused("--offset -6", "option '--offset': '-6' is not a number from -5 to 5");
    expect_value_refused("--ranks 0", "option '--ranks': '0' is not a number of at least 1");
    expect_value_refused("--ranks 18446744073709551616",
                         "option '--ranks': '18446744073709551616' is not a number of at least 1");
    expect_value_refused("--tolerance 1.5",
                         "option '--tolerance': '1.5' is not a number from 0 to 1");
    expect_value_refused("--tolerance nan",
                         "option '--tolerance': 'nan' is not a number from 0 to 1");
    expect_value_refused("--pack=10", "option '--pack': '10' is not a number from 1 to 9");
    expect_value_refused("--hue blue", "option '--hue': 'blue' is not red or green");
    expect_value_refused("--hue gren", "option '--hue': 'gren' is unknown; did you mean 'green'?");
    expect_value_refused("--metal gold", "option '--metal': 'gold' is not iron or zinc");
    expect_value_refused("--memory 0",
                         "option '--memory': '0' is not a size such as 512MB, 5GB or 1GiB of at "
                         "least 1");
    expect_value_refused("--layers 4-65536",
                         "option '--layers': '4-65536' has a number out of range");
}

Test(options, help_stops_reading)
{
    char name[] = "sample", help_word[] = "--help", wrong[] = "--nonsense";
    char *argv[] = {name, help_word, wrong, NULL};
    sample_options o;
    mp_error err;
    bool help;

    cr_expect_eq(options_parse(&sample, 3, argv, &o, &help, &err), 0);
    cr_expect(help);
}

Test(values, numbers_are_digits_only)
{
    static const char *const wrong[] = {"", " 1", "1 ", "+1", "0x1", "1e3", "-1", "1.0"};
    uint64_t n = 99;
    int64_t i;

    for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++)
        cr_expect_not(value_u64(wrong[k], &n), "%s", wrong[k]);
    cr_expect_eq(n, 99);
    cr_expect(value_u64("007", &n) && n == 7);
    cr_expect(value_int("-9223372036854775807", &i) && i == -INT64_MAX);
    cr_expect_not(value_int("9223372036854775808", &i));
    cr_expect_not(value_int("--1", &i));
}

Test(values, doubles_are_plain_and_finite)
{
    static const char *const wrong[] = {"", "inf", "nan", "0x1p3", " 1", "1e999", "1.2.3", "-"};
    double x;

    for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++)
        cr_expect_not(value_double(wrong[k], &x), "%s", wrong[k]);
    cr_expect(value_double("-2.5e-3", &x) && x == -2.5e-3);
}

Test(values, sizes)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } right[] = {
        {"0", 0},
        {"4096", 4096},
        {"7B", 7},
        {"3kB", 3000},
        {"3KB", 3000},
        {"3KiB", 3072},
        {"512MB", 512000000},
        {"5MiB", 5242880},
        {"5GB", UINT64_C(5000000000)},
        {"1gib", UINT64_C(1073741824)},
        {"2TB", UINT64_C(2000000000000)},
        {"3TiB", UINT64_C(3298534883328)},
        {"16777215TiB", UINT64_C(18446742974197923840)},
    };
    static const char *const wrong[] = {"",     "GB",    "1.5GB", "1 GB",
                                        "-1GB", "1GBit", "1G",    "16777216TiB"};
    uint64_t bytes;

    for (size_t k = 0; k < sizeof(right) / sizeof(right[0]); k++) {
        cr_expect(value_size(right[k].text, &bytes), "%s", right[k].text);
        cr_expect_eq(bytes, right[k].bytes, "%s", right[k].text);
    }
    for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++)
        cr_expect_not(value_size(wrong[k], &bytes), "%s", wrong[k]);
}

Test(values, lists)
{
    static const uint64_t expected[] = {5, 0, 1, 2, 2, 9};
    cmd_list list = {NULL, 0};
    const char *why = "";

    cr_assert(value_list("5,0-2,2,9-9", 0, 9, &list, &why), "%s", why);
    cr_assert_eq(list.count, 6);
    cr_expect_arr_eq(list.items, expected, sizeof(expected));
    free(list.items);

    cr_expect(value_list("0-65535", 0, UINT64_MAX, &list, &why) && list.count == CMD_LIST_MAX);
    free(list.items);
}

Test(values, wrong_lists)
{
    static const struct {
        const char *text;
        const char *why;
    } wrong[] = {
        {"", "is not a list such as 0-3,7"},       {",", "is not a list such as 0-3,7"},
        {"1,", "is not a list such as 0-3,7"},     {"1,,2", "is not a list such as 0-3,7"},
        {"1-", "is not a list such as 0-3,7"},     {"-1", "is not a list such as 0-3,7"},
        {"1-2-3", "is not a list such as 0-3,7"},  {"a", "is not a list such as 0-3,7"},
        {"1 ,2", "is not a list such as 0-3,7"},   {"3-1", "has a range that runs backwards"},
        {"1,100000", "has a number out of range"}, {"0-65536", "has too many numbers"},
        {"1-65536,7", "has too many numbers"},
    };
    cmd_list list = {NULL, 77};

    for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++) {
        const char *why = "";
        cr_expect_not(value_list(wrong[k].text, 0, 99999, &list, &why), "%s", wrong[k].text);
        cr_expect_str_eq(why, wrong[k].why, "%s: %s", wrong[k].text, why);
    }
    cr_expect_eq(list.count, 77);
}

Test(values, a_full_range_does_not_overflow)
{
    cmd_list list;
    const char *why = "";

    cr_expect_not(value_list("0-18446744073709551615", 0, UINT64_MAX, &list, &why));
    cr_expect_str_eq(why, "has too many numbers");
}

Test(help, text_comes_from_the_table)
{
    static const char expected[] =
        "Usage: moepack sample [-f] [--offset N] --ranks N [--memory SIZE]\n"
        "                      [--tolerance X] [-o FILE] [--metal METAL] [--hue HUE]\n"
        "                      [--layers LIST] [--drop NAMES] [--pack[=LEVEL]] [-j N]\n"
        "                      [-q] [-v] [--progress WHEN] [--color WHEN] FIRST REST ...\n"
        "\n"
        "moepack sample: try every type\n"
        "\n"
        "Options:\n"
        "  -f, --flag                raise the flag\n"
        "      --offset N            move by N (default 0)\n"
        "      --ranks N             ranks to write\n"
        "      --memory SIZE         memory of one rank (default 5GB)\n"
        "      --tolerance X         largest error (default 0.25)\n"
        "  -o, --output FILE         write to FILE\n"
        "      --metal METAL         use METAL: iron or zinc\n"
        "      --hue HUE             paint it: red or green (default green)\n"
        "      --layers LIST         these layers only\n"
        "      --drop NAMES          leave NAMES behind\n"
        "  -p, --pack[=LEVEL]        pack it (default 3)\n"
        "\n"
        "Options of every command:\n";
    char *text;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    help_command(out, &sample);
    fclose(out);
    cr_assert_gt(size, strlen(expected));
    text[strlen(expected)] = '\0';
    cr_expect_str_eq(text, expected);
    free(text);
}

Test(nearest, slips_are_forgiven_and_strangers_are_not)
{
    static const struct {
        const char *word;
        const char *best;
    } cases[] = {
        {"verifz", "verify"}, {"repak", "repack"}, {"unpack", "repack"}, {"inspekt", "inspect"},
        {"mpa", "map"},       {"xyz", NULL},       {"", NULL},           {"quantise", NULL},
    };
    static const char *const names[] = {"inspect", "map", "repack", "verify"};

    for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
        nearest n;
        nearest_init(&n, cases[k].word);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
            nearest_offer(&n, names[i]);
        if (cases[k].best) {
            cr_assert_not_null(n.best, "%s", cases[k].word);
            cr_expect_str_eq(n.best, cases[k].best, "%s: %s", cases[k].word, n.best);
        } else {
            cr_expect_null(n.best, "%s: %s", cases[k].word, n.best);
        }
    }
}

Test(output, sizes_for_people)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 bytes"},         {1, "1 byte"},           {999, "999 bytes"},
        {1000, "1.00 kB"},      {9994, "9.99 kB"},       {9995, "10.0 kB"},
        {99949, "99.9 kB"},     {99950, "100 kB"},       {999499, "999 kB"},
        {999500, "1.00 MB"},    {1310000000, "1.31 GB"}, {UINT64_C(999500000000), "1.00 TB"},
        {UINT64_MAX, "18.4 EB"}};
    char text[SIZE_TEXT];

    for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++)
        cr_expect_str_eq(size_text(cases[k].bytes, text), cases[k].text, "%s", text);
}

Test(output, long_lists_of_problems_are_cut)
{
    mp_problems problems = {.count = 23};
    char *text, *last;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    char word[MP_PROBLEMS_KEPT][16];

    for (int i = 0; i < MP_PROBLEMS_KEPT; i++) {
        snprintf(word[i], sizeof(word[i]), "p%d", i);
        problems.text[i] = word[i];
    }
    print_problems(out, "moepack: x", &problems);
    fclose(out);
    cr_expect_eq(strncmp(text, "moepack: x: p0\nmoepack: x: p1\n", 30), 0);
    last = strstr(text, "moepack: x: p19\n");
    cr_assert_not_null(last);
    cr_expect_str_eq(last, "moepack: x: p19\nmoepack: x: ... and 3 more\n");
    free(text);
}

Test(progress, says_part_speed_and_time_left)
{
    char text[PROGRESS_TEXT];

    progress_text(0, 1000, 0, 0, true, text);
    cr_expect_str_eq(text, "  0%");
    progress_text(UINT64_C(999999999999), UINT64_C(1000000000000), UINT64_C(3000000000), 2, true,
                  text);
    cr_expect_str_eq(text, " 99%  1.50 GB/s  0:00 left");
    progress_text(UINT64_C(1000000000), UINT64_C(4000000000), UINT64_C(500000000), 20.5, true,
                  text);
    cr_expect_str_eq(text, " 25%  0.02 GB/s  2:03 left");
    progress_text(1, UINT64_C(4000000000001), 1000000, 1, true, text);
    cr_expect_str_eq(text, "  0%  0.00 GB/s  100:00:00 left");
    progress_text(0, 0, 0, 1, true, text);
    cr_expect_str_eq(text, "100%");
    progress_text(6, 58, 5, 10, false, text);
    cr_expect_str_eq(text, " 10%  1:44 left");
}
