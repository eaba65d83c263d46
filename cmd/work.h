/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/work.h - what commands that write many files say of it. */
#ifndef MOEPACK_CMD_WORK_H
#define MOEPACK_CMD_WORK_H

#include <jansson.h>
#include <moepack/pack.h>
#include <stdio.h>

/* Prints `before` and the last part of a path, so that a file names no directory of this
 * machine. Nothing where path is null. */
void print_last_part(FILE *f, const char *before, const char *path);

/* Prints " --NAME VALUE", unless value is null. */
void print_option(FILE *f, const char *name, const char *value);

/* The layers of a catalog that a list names: malloc'ed, [num_layers]; null, without an error,
 * where the list is null. */
int select_layers(const char *list, const mp_catalog *catalog, bool **selected, mp_error *err);

/* Every file, its tensors and its size; units, bytes, memory. */
void print_work(FILE *out, const mp_work *work, const mp_context *context);

/* The same as JSON; null without memory. */
json_t *work_json(const mp_work *work, const mp_context *context);

/* Seconds of a clock that never jumps. */
double seconds_now(void);

/* "moepack: NAME: OUT: 5 files, 31 GB in 12.4 s (2.5 GB/s)" to stderr; of a resumed run
 * nobody knows how much was left to do, and the speed is left out. */
void print_work_done(const char *name, const char *out, const mp_work *work, double seconds,
                     bool resumed);

#endif
