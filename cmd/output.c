/* SPDX-License-Identifier: Apache-2.0 */
/* Knows how results, problems and errors look, and that output can fail. */
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes of the control character at text, 0 if it is another: of ASCII, or of Latin-1 in UTF-8. */
static int control_bytes(const char *text)
{
    unsigned char c = (unsigned char)text[0], next = (unsigned char)text[1];

    if (c == 0xc2 && next >= 0x80 && next < 0xa0)
        return 2;
    return c < 0x20 || c == 0x7f;
}

void print_name(FILE *out, const char *name)
{
    while (*name) {
        int bytes = control_bytes(name);

        for (int i = 0; i < bytes; i++)
            putc('?', out);
        if (bytes == 0)
            putc(*name, out);
        name += bytes ? bytes : 1;
    }
}

int cmd_fail(mp_error *err, mp_code code, const char *format, ...)
{
    va_list args;

    err->code = code;
    va_start(args, format);
    vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    for (char *c = err->message; *c; c++)
        for (int bytes = control_bytes(c); bytes > 0; bytes--)
            c[bytes - 1] = '?';
    return code;
}

void print_io(const common_options *common, const char *path)
{
    static const char *const how[] = {
        [MP_IO_AUTO] = "buffered reads, as direct ones are no faster",
        [MP_IO_BUFFERED] = "buffered reads, as asked for",
        [MP_IO_DIRECT] = "direct reads, as asked for",
    };

    if (!common->verbose || !path)
        return;
    fprintf(stderr, "moepack: %s: ", common->words.items[0]);
    print_name(stderr, path);
    fprintf(stderr, ": %s\n", how[common->io]);
}

void print_problems(FILE *out, const char *prefix, const mp_problems *problems)
{
    uint64_t kept = problems->count < MP_PROBLEMS_KEPT ? problems->count : MP_PROBLEMS_KEPT;

    for (uint64_t i = 0; i < kept; i++) {
        print_name(out, prefix);
        fprintf(out, ": %s\n", problems->text[i]);
    }
    if (problems->count > kept) {
        print_name(out, prefix);
        fprintf(out, ": ... and %" PRIu64 " more\n", problems->count - kept);
    }
}

/* jansson escapes all control characters but DEL. */
static int put_json(const char *text, size_t n, void *out)
{
    for (size_t i = 0; i < n; i++)
        if (text[i] == 0x7f)
            fputs("\\u007f", out);
        else
            putc(text[i], out);
    return 0;
}

int print_json(json_t *json, mp_error *err)
{
    if (!json)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    /* What goes wrong in writing stays in stdout's error flag for close_stdout. */
    json_dump_callback(json, put_json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
    return 0;
}

char *size_text(uint64_t bytes, char text[SIZE_TEXT])
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes / 1000;
    size_t unit = 0;

    if (bytes < 1000) {
        snprintf(text, SIZE_TEXT, "%" PRIu64 " byte%s", bytes, plural(bytes));
        return text;
    }
    /* 999.5 and more would be printed as 1000. */
    while (value >= 999.5) {
        value /= 1000;
        unit++;
    }
    snprintf(text, SIZE_TEXT, "%.*f %s",
             value < 9.995   ? 2
             : value < 99.95 ? 1
                             : 0,
             value, units[unit]);
    return text;
}

output_ink ink_for(FILE *out, const common_options *common)
{
    const char *no_color = getenv("NO_COLOR");
    bool on = common->color == WHEN_ALWAYS;

    if (common->color == WHEN_AUTO)
        on = isatty(fileno(out)) && !(no_color && no_color[0] != '\0');
    if (!on)
        return (output_ink){"", "", "", ""};
    return (output_ink){"\033[1m", "\033[32m", "\033[31m", "\033[0m"};
}

int close_stdout(mp_error *err)
{
    bool failed = ferror(stdout) != 0;

    /* errno of an earlier failure is gone; that of the last flush is not. */
    errno = 0;
    if (fclose(stdout) != 0)
        failed = true;
    if (!failed)
        return 0;
    return cmd_fail(err, MP_ERR_IO, "standard output: %s", errno ? strerror(errno) : "write error");
}
