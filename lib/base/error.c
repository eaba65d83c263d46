/* SPDX-License-Identifier: Apache-2.0 */
/* Errors and lists of problems as one-line texts, and allocation that checks its size.
 *
 * Messages quote names from files that anyone may have written. So each message is cut to a fixed
 * size, between characters, and what is not printable is replaced: it stays one line and cannot
 * steer a terminal. Nothing here allocates for an error, so running out of memory can be reported
 * too.
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

/* Bytes of the UTF-8 character at text; 0 if it is none or not for printing. */
static size_t character_length(const unsigned char *text)
{
    unsigned char first = text[0];
    size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    uint32_t code = length == 1 ? first : first & (0x7fu >> length);
    /* The least code of each length: shorter ones would be overlong. 0x20 and 0xa0 leave out the
     * control characters of ASCII and of Latin-1. */
    static const uint32_t least[] = {0, 0x20, 0xa0, 0x800, 0x10000};

    if ((first >= 0x80 && first < 0xc0) || first >= 0xf8 || first == 0x7f)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (text[i] & 0x3f);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000;
    return code < least[length] || code > 0x10ffff || surrogate || code == 0xfffe || code == 0xffff
               ? 0
               : length;
}

void mp_make_printable(char *text)
{
    while (*text) {
        size_t length = character_length((unsigned char *)text);

        if (length == 0)
            *text = '?';
        text += length ? length : 1;
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
    mp_make_printable(text);
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
            mp_make_printable(text);
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
