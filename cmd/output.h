/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/output.h - what all commands print with. */
#ifndef MOEPACK_CMD_OUTPUT_H
#define MOEPACK_CMD_OUTPUT_H

#include "options.h"

#include <jansson.h>
#include <stdio.h>

/* What ends a noun after a count: "s", or "" after 1. */
static inline const char *plural(uint64_t count)
{
    return count == 1 ? "" : "s";
}

/* Prints a name from a file, with '?' in place of each byte of a control character, also of those
 * of Latin-1 in UTF-8. */
void print_name(FILE *out, const char *name);

/* Fills err and returns code. Lowercase, one line, no full stop; printable. */
int cmd_fail(mp_error *err, mp_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* With -v: how the files of a checkpoint, a pack or a directory are read, and why. path: may be
 * null, for nothing. */
void print_io(const common_options *common, const char *path);

/* One line a problem, "PREFIX: text", and "PREFIX: ... and N more". */
void print_problems(FILE *out, const char *prefix, const mp_problems *problems);

/* Prints a value as indented JSON and a newline, and drops the reference.
 * json: may be null, which stands for no memory. MP_ERR_IO. */
int print_json(json_t *json, mp_error *err);

/* "1.31 TB", "640 MB", "12 bytes" into a buffer; returns it. Powers of 1000. */
#define SIZE_TEXT 32
char *size_text(uint64_t bytes, char text[SIZE_TEXT]);

/* Escape sequences for a stream, or empty strings where it is not to be colored. */
typedef struct output_ink {
    const char *bold;
    const char *good; /* green */
    const char *bad;  /* red */
    const char *plain;
} output_ink;

/* --color decides; in auto mode a terminal, and NO_COLOR unset or empty. */
output_ink ink_for(FILE *out, const common_options *common);

/* Flushes and closes standard output. MP_ERR_IO if anything that was written
 * did not arrive. */
int close_stdout(mp_error *err);

#endif
