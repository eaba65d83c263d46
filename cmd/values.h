/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/values.h - the text of one option's value, and back. */
#ifndef MOEPACK_CMD_VALUES_H
#define MOEPACK_CMD_VALUES_H

#include "options.h"

/* Decimal digits and nothing else; false if there is anything else, or too much. */
bool value_u64(const char *text, uint64_t *value);

/* The same with an optional minus sign. */
bool value_int(const char *text, int64_t *value);

/* A finite decimal number. */
bool value_double(const char *text, double *value);

/* Bytes: a whole number with nothing, B, kB, MB, GB, TB (powers of 1000) or KiB,
 * MiB, GiB, TiB (powers of 1024) behind it, in any case. */
bool value_size(const char *text, uint64_t *value);

/* "0-3,7" with items from min to max. list is overwritten only on success; the
 * caller frees list->items. On failure why is set to a static text. */
bool value_list(const char *text, uint64_t min, uint64_t max, cmd_list *list, const char **why);

/* Stores the text in the member of values that the option names.
 * text: may be null for an optional value.
 * MP_ERR_USAGE, naming the option and what it takes; MP_ERR_IO without memory. */
int value_set(const cmd_option *option, const char *text, void *values, mp_error *err);

/* "auto, always or never" into a buffer, cut to its size. */
void value_choices(const cmd_option *option, char *text, size_t size);

/* Name number index of what the option can choose from, or null. */
const char *value_choice(const cmd_option *option, size_t index);

/* Text of the option's value in `defaults`; false if it has none to speak of: a
 * flag, a null string, a number outside its range, a value that is no choice. */
bool value_default(const cmd_option *option, const void *defaults, char *text, size_t size);

#endif
