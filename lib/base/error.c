/* SPDX-License-Identifier: Apache-2.0 */
/* Errors and lists of problems as one-line texts, and allocation that checks its size.
 *
 * Messages quote names from files that anyone may have written. So each message is cut to a fixed
 * size, between characters, and control characters are replaced: it stays one line and cannot steer
 * a terminal. Nothing here allocates for an error, so running out of memory can be reported too.
 *
 * Sizes are 64-bit everywhere. The allocators are the place where a product is checked and compared
 * with what the machine can address. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *mp_version(void)
{
    return MP_VERSION;
}

/* Names come from untrusted files: a message stays one line and cannot steer a terminal. */
void mp_hide_control_characters(char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == 0x7f)
            *text = '?';
    }
}

/* Drops a UTF-8 sequence that the end of a full buffer cut in two. */
static void drop_cut_sequence(char *text, size_t length)
{
    size_t lead = length;
    while (lead > 0 && length - lead < 4 && ((unsigned char)text[lead - 1] & 0xc0) == 0x80)
        lead--;
    if (lead == 0 || (unsigned char)text[lead - 1] < 0xc0)
        return;
    unsigned char first = (unsigned char)text[lead - 1];
    size_t want = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (length - lead + 1 < want)
        text[lead - 1] = '\0';
}

static void tidy(char *text, int formatted)
{
    if (formatted < 0)
        text[0] = '\0';
    else if (formatted >= MP_ERROR_MAX)
        drop_cut_sequence(text, MP_ERROR_MAX - 1);
    mp_hide_control_characters(text);
}

int mp_fail(mp_error *err, mp_code code, const char *format, ...)
{
    if (!err)
        return code;
    char text[MP_ERROR_MAX]; /* the arguments may include err->message */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tidy(text, n);
    memcpy(err->message, text, sizeof(text));
    err->code = code;
    return code;
}

int mp_fail_errno(mp_error *err, int errno_value, const char *format, ...)
{
    char text[MP_ERROR_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tidy(text, n);
    return mp_fail(err, MP_ERR_IO, "%s: %s", text, strerror(errno_value));
}

int mp_fail_memory(mp_error *err)
{
    return mp_fail(err, MP_ERR_IO, "out of memory");
}

int mp_error_prefix(mp_error *err, const char *format, ...)
{
    char text[MP_ERROR_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tidy(text, n);
    return mp_fail(err, (mp_code)err->code, "%s: %s", text, err->message);
}

static char *format_args(const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    char *text = NULL;
    int n = vsnprintf(NULL, 0, format, args);
    if (n >= 0)
        text = mp_alloc((uint64_t)n + 1, 1);
    if (text)
        vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

char *mp_format(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = format_args(format, args);
    va_end(args);
    return text;
}

void mp_problem(mp_problems *problems, const char *format, ...)
{
    if (problems->count < MP_PROBLEMS_KEPT) {
        va_list args;
        va_start(args, format);
        char *text = format_args(format, args);
        va_end(args);
        if (text)
            mp_hide_control_characters(text);
        problems->text[problems->count] = text;
    }
    problems->count++;
}

void mp_problems_release(mp_problems *problems)
{
    for (size_t i = 0; i < MP_PROBLEMS_KEPT; i++)
        free(problems->text[i]);
    *problems = (mp_problems){0};
}

void *mp_alloc(uint64_t count, uint64_t size)
{
    uint64_t bytes;
    if (!mp_mul_u64(count, size, &bytes) || bytes > PTRDIFF_MAX)
        return NULL;
    return malloc(bytes ? (size_t)bytes : 1);
}

void *mp_alloc_zeroed(uint64_t count, uint64_t size)
{
    uint64_t bytes;
    if (!mp_mul_u64(count, size, &bytes) || bytes > PTRDIFF_MAX)
        return NULL;
    return calloc(bytes ? (size_t)bytes : 1, 1);
}

int mp_text_finish(FILE *stream, char **text, mp_error *err)
{
    bool failed = ferror(stream) != 0;

    if (fclose(stream) == 0 && !failed && *text)
        return 0;
    free(*text);
    *text = NULL;
    return mp_fail_memory(err);
}
