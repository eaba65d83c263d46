/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/zstd.h - levels of compression as users type them, and what they gained. */
#ifndef MOEPACK_CMD_ZSTD_H
#define MOEPACK_CMD_ZSTD_H

#include <jansson.h>
#include <moepack/compress.h>
#include <stdio.h>

/* "auto", or 1 to 22. option: its long name, for MP_ERR_USAGE. */
int zstd_level(const char *option, const char *text, int *level, mp_error *err);

/* Level of --zstd[=TEXT]: MP_ZSTD_NONE where it was not given. */
int zstd_option(const char *text, bool given, int *level, mp_error *err);

/* Bytes of shards, plain and as they are stored, then a line for each type that is there:
 * "  BF16     12 tensors  1.2 MB  0.9 MB  78.1%". */
void zstd_print(FILE *out, const mp_compress_report *report);

/* The same as an object; null without memory. */
json_t *zstd_json(const mp_compress_report *report);

#endif
