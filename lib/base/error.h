/* SPDX-License-Identifier: Apache-2.0 */
/* base/error.h - filling an mp_error, and checked arithmetic. */
#ifndef MP_BASE_ERROR_H
#define MP_BASE_ERROR_H

#include <moepack/base.h>

#include <stdio.h>

/* Fills err (may be null) and returns code, so that a function can end with
 * `return mp_fail(err, MP_ERR_INPUT, "...", ...)`. */
int mp_fail(mp_error *err, mp_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* MP_ERR_IO with ": " and strerror(errno_value) behind the text. */
int mp_fail_errno(mp_error *err, int errno_value, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* MP_ERR_IO "out of memory". */
int mp_fail_memory(mp_error *err);

/* In public calls err may be null. Where what it says is read below them they begin with
 * `err = MP_NEVER_NULL(err);`: one of the call's own then. */
#define MP_NEVER_NULL(err) ((err) ? (err) : &(mp_error){0})

/* Puts "text: " before the message that err, not null, holds; returns err's code. */
int mp_error_prefix(mp_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts a question mark in place of every byte that is not of printable UTF-8, control characters of
 * Latin-1 included. Done with every message; for other texts that are printed. */
void mp_make_printable(char *text);

/* Adds a problem to the list. A text that cannot be stored is still counted. */
void mp_problem(mp_problems *problems, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What ends a noun after a count: "s", or "" after 1. */
static inline const char *mp_plural(uint64_t count)
{
    return count == 1 ? "" : "s";
}

/* *out = a * b, a + b; false on overflow. */
static inline bool mp_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool mp_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline uint64_t mp_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t mp_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* a / b rounded up, b > 0. */
static inline uint64_t mp_ceil_div(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* a rounded up to a multiple of b, b > 0; the caller knows that it fits. */
static inline uint64_t mp_round_up(uint64_t a, uint64_t b)
{
    return mp_ceil_div(a, b) * b;
}

/* malloc for count objects of size bytes; null on overflow or no memory. A
 * count of 0 gives a pointer that can be freed. */
void *mp_alloc(uint64_t count, uint64_t size);

/* The same, zeroed. */
void *mp_alloc_zeroed(uint64_t count, uint64_t size);

/* malloc'ed printf; null without memory. */
char *mp_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Closes a stream of open_memstream and leaves its text; MP_ERR_IO, and no text, where anything
 * written to it was lost. fclose alone does not say that the text itself could not be kept. */
int mp_text_finish(FILE *stream, char **text, mp_error *err);

#endif
