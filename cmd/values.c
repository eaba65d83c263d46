/* SPDX-License-Identifier: Apache-2.0 */
/* How the value of an option is written: numbers, sizes, lists, choices. Parsing is strict, since a
 * value that is read otherwise than it was meant runs for hours: digits and nothing else, no
 * blanks, no hexadecimal, no number that does not fit; sizes are whole numbers, in powers of 1000
 * or 1024 as their unit says. What does not parse is told with the range or the nearest choice. */
#include "values.h"

#include "nearest.h"
#include "output.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *name;
    uint64_t bytes;
} units[] = {
    {"TiB", UINT64_C(1) << 40},   {"TB", UINT64_C(1000000000000)}, {"GiB", UINT64_C(1) << 30},
    {"GB", UINT64_C(1000000000)}, {"MiB", UINT64_C(1) << 20},      {"MB", UINT64_C(1000000)},
    {"KiB", UINT64_C(1) << 10},   {"kB", UINT64_C(1000)},          {"B", 1},
};

#define NUM_UNITS (sizeof(units) / sizeof(units[0]))

/* Reads digits up to the first other character, which *end is set to. */
static bool read_digits(const char *text, const char **end, uint64_t *value)
{
    char *stop;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    /* The first character is a digit: no blank, no sign. */
    unsigned long long n = strtoull(text, &stop, 10);
    /* It does not fit 64 bits. */
    if (errno != 0)
        return false;
    *value = n;
    *end = stop;
    return true;
}

bool value_u64(const char *text, uint64_t *value)
{
    const char *end;
    uint64_t n;

    if (!read_digits(text, &end, &n) || *end != '\0')
        return false;
    *value = n;
    return true;
}

bool value_int(const char *text, int64_t *value)
{
    bool minus = text[0] == '-';
    uint64_t n;

    if (!value_u64(text + minus, &n) || n > INT64_MAX)
        return false;
    *value = minus ? -(int64_t)n : (int64_t)n;
    return true;
}

bool value_double(const char *text, double *value)
{
    char *end;

    /* strtod also takes blanks, hexadecimal, "inf" and "nan". */
    if (text[0] == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0')
        return false;
    double x = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(x))
        return false;
    *value = x;
    return true;
}

bool value_size(const char *text, uint64_t *value)
{
    const char *unit;
    uint64_t n;

    if (!read_digits(text, &unit, &n))
        return false;
    if (*unit == '\0') {
        *value = n;
        return true;
    }
    for (size_t i = 0; i < NUM_UNITS; i++) {
        if (strcasecmp(unit, units[i].name) == 0)
            return !__builtin_mul_overflow(n, units[i].bytes, value);
    }
    return false;
}

/* One item of a list, "7" or "0-3"; *text is moved behind it. */
static bool read_range(const char **text, uint64_t *first, uint64_t *last)
{
    if (!read_digits(*text, text, first))
        return false;
    *last = *first;
    if (**text != '-')
        return true;
    return read_digits(*text + 1, text, last);
}

static const char *list_append(cmd_list *list, uint64_t first, uint64_t last)
{
    uint64_t more = last - first;

    /* count is never above CMD_LIST_MAX, and first to last is one more than `more`. */
    if (more >= CMD_LIST_MAX - list->count)
        return "has too many numbers";
    uint64_t *items = realloc(list->items, (list->count + more + 1) * sizeof(*items));
    if (!items)
        return "takes more memory than there is";
    list->items = items;
    for (uint64_t i = 0; i <= more; i++)
        items[list->count++] = first + i;
    return NULL;
}

bool value_list(const char *text, uint64_t min, uint64_t max, cmd_list *list, const char **why)
{
    cmd_list read = {NULL, 0};
    const char *problem = NULL;

    while (!problem) {
        uint64_t first, last;
        if (!read_range(&text, &first, &last) || (*text != ',' && *text != '\0'))
            problem = "is not a list such as 0-3,7";
        else if (first > last)
            problem = "has a range that runs backwards";
        else if (first < min || last > max)
            problem = "has a number out of range";
        else
            problem = list_append(&read, first, last);
        if (*text == '\0')
            break;
        text++;
    }
    if (problem) {
        free(read.items);
        *why = problem;
        return false;
    }
    *list = read;
    return true;
}

const char *value_choice(const cmd_option *option, size_t index)
{
    if (option->choice_name)
        return option->choice_name(index);
    return option->choices ? option->choices[index].name : NULL;
}

void value_choices(const cmd_option *option, char *text, size_t size)
{
    size_t length = 0;
    const char *name;

    text[0] = '\0';
    for (size_t i = 0; (name = value_choice(option, i)) && length < size; i++) {
        const char *before = i == 0 ? "" : value_choice(option, i + 1) ? ", " : " or ";
        int n = snprintf(text + length, size - length, "%s%s", before, name);
        length += (size_t)n;
    }
}

static int fail_value(const cmd_option *option, const char *text, const char *why, mp_error *err)
{
    return cmd_fail(err, MP_ERR_USAGE, "option '--%s': '%s' %s", option->name, text, why);
}

/* "is not a number from 1 to 8": what is a noun with its article. */
static int fail_range(const cmd_option *option, const char *text, const char *what, mp_error *err)
{
    char why[128];

    if (option->max == UINT64_MAX && option->min == 0)
        snprintf(why, sizeof(why), "is not %s", what);
    else if (option->max == UINT64_MAX)
        snprintf(why, sizeof(why), "is not %s of at least %" PRIu64, what, option->min);
    else
        snprintf(why, sizeof(why), "is not %s from %" PRIu64 " to %" PRIu64, what, option->min,
                 option->max);
    return fail_value(option, text, why, err);
}

static int set_int(const cmd_option *option, const char *text, int *member, mp_error *err)
{
    int64_t n;
    char why[96];

    if (value_int(text, &n) && n >= option->int_min && n <= option->int_max) {
        *member = (int)n;
        return 0;
    }
    snprintf(why, sizeof(why), "is not a number from %" PRId64 " to %" PRId64, option->int_min,
             option->int_max);
    return fail_value(option, text, why, err);
}

static int set_u64(const cmd_option *option, const char *text, uint64_t *member, mp_error *err)
{
    bool is_size = option->type == TYPE_SIZE;
    uint64_t n;

    if ((is_size ? value_size(text, &n) : value_u64(text, &n)) && n >= option->min &&
        n <= option->max) {
        *member = n;
        return 0;
    }
    return fail_range(option, text, is_size ? "a size such as 512MB, 5GB or 1GiB" : "a number",
                      err);
}

static int set_double(const cmd_option *option, const char *text, double *member, mp_error *err)
{
    double x;
    char why[96];

    if (value_double(text, &x) && x >= option->low && x <= option->high) {
        *member = x;
        return 0;
    }
    snprintf(why, sizeof(why), "is not a number from %g to %g", option->low, option->high);
    return fail_value(option, text, why, err);
}

/* Behind what the option was given before. */
static int add_list(const cmd_option *option, const char *text, cmd_list *member, mp_error *err)
{
    cmd_list list;
    const char *why = NULL;

    if (!value_list(text, option->min, option->max, &list, &why))
        return fail_value(option, text, why, err);
    for (size_t i = 0; i < list.count && !why; i++)
        why = list_append(member, list.items[i], list.items[i]);
    free(list.items);
    return why ? fail_value(option, text, why, err) : 0;
}

/* Likewise. */
static int add_words(const char *text, char **member, mp_error *err)
{
    const char *before = *member ? *member : "", *comma = *member ? "," : "";
    size_t size = strlen(before) + strlen(comma) + strlen(text) + 1;
    char *words = malloc(size);

    if (!words)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    snprintf(words, size, "%s%s%s", before, comma, text);
    free(*member);
    *member = words;
    return 0;
}

static int fail_choice(const cmd_option *option, const char *text, mp_error *err)
{
    nearest n;
    const char *name;
    char why[512];

    nearest_init(&n, text);
    for (size_t i = 0; (name = value_choice(option, i)); i++)
        nearest_offer(&n, name);
    if (n.best) {
        snprintf(why, sizeof(why), "is unknown; did you mean '%s'?", n.best);
    } else {
        memcpy(why, "is not ", sizeof("is not "));
        value_choices(option, why + strlen(why), sizeof(why) - strlen(why));
    }
    return fail_value(option, text, why, err);
}

static int set_choice(const cmd_option *option, const char *text, int *member, mp_error *err)
{
    for (const cmd_choice *c = option->choices; c->name; c++) {
        if (strcmp(c->name, text) == 0) {
            *member = c->value;
            return 0;
        }
    }
    return fail_choice(option, text, err);
}

static int set_string(const cmd_option *option, const char *text, const char **member,
                      mp_error *err)
{
    const char *name;

    if (option->choice_name) {
        size_t i = 0;
        while ((name = option->choice_name(i)) && strcmp(name, text) != 0)
            i++;
        if (!name)
            return fail_choice(option, text, err);
    }
    *member = text;
    return 0;
}

int value_set(const cmd_option *option, const char *text, void *values, mp_error *err)
{
    void *member = (char *)values + option->offset;

    if (option->given)
        *(bool *)((char *)values + option->given) = true;
    if (option->type == TYPE_FLAG)
        *(bool *)member = true;
    if (!text)
        return 0;

    switch (option->type) {
    case TYPE_INT:
        return set_int(option, text, member, err);
    case TYPE_U64:
    case TYPE_SIZE:
        return set_u64(option, text, member, err);
    case TYPE_DOUBLE:
        return set_double(option, text, member, err);
    case TYPE_STRING:
        return set_string(option, text, member, err);
    case TYPE_CHOICE:
        return set_choice(option, text, member, err);
    case TYPE_LIST:
        return add_list(option, text, member, err);
    case TYPE_WORDS:
        return add_words(text, member, err);
    case TYPE_END:
    case TYPE_HELP:
    case TYPE_FLAG:
        break;
    }
    return 0;
}

/* In the largest unit that divides it, decimal before binary. */
static void format_size(uint64_t bytes, char *text, size_t size)
{
    size_t i = 0;

    while (bytes < units[i].bytes || bytes % units[i].bytes != 0)
        i++;
    snprintf(text, size, "%" PRIu64 "%s", bytes / units[i].bytes, units[i].name);
}

static bool choice_default(const cmd_option *option, int value, char *text, size_t size)
{
    for (const cmd_choice *c = option->choices; c->name; c++) {
        if (c->value == value) {
            snprintf(text, size, "%s", c->name);
            return true;
        }
    }
    return false;
}

static bool in_range(const cmd_option *option, uint64_t n)
{
    return n >= option->min && n <= option->max;
}

bool value_default(const cmd_option *option, const void *defaults, char *text, size_t size)
{
    const void *member = (const char *)defaults + option->offset;

    if (option->flags & OPT_REQUIRED)
        return false;
    switch (option->type) {
    case TYPE_INT: {
        int n = *(const int *)member;
        snprintf(text, size, "%d", n);
        return n >= option->int_min && n <= option->int_max;
    }
    case TYPE_U64: {
        uint64_t n = *(const uint64_t *)member;
        snprintf(text, size, "%" PRIu64, n);
        return in_range(option, n);
    }
    case TYPE_SIZE: {
        uint64_t n = *(const uint64_t *)member;
        if (n == 0 || !in_range(option, n))
            return false;
        format_size(n, text, size);
        return true;
    }
    case TYPE_DOUBLE: {
        double x = *(const double *)member;
        snprintf(text, size, "%g", x);
        return x >= option->low && x <= option->high;
    }
    case TYPE_STRING: {
        const char *string = *(const char *const *)member;
        snprintf(text, size, "%s", string ? string : "");
        return string != NULL;
    }
    case TYPE_CHOICE:
        return choice_default(option, *(const int *)member, text, size);
    case TYPE_END:
    case TYPE_HELP:
    case TYPE_FLAG:
    case TYPE_LIST:
    case TYPE_WORDS:
        break;
    }
    return false;
}
