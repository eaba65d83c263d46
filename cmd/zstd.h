/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/zstd.h - levels of compression as users type them, and what they gained. */
#ifndef MOEPACK_CMD_ZSTD_H
#define MOEPACK_CMD_ZSTD_H

#include <jansson.h>
#include <moepack/compress.h>
#include <stdio.h>

/* "auto", or 1 to 22. option: its long name, for MP_ERR_USAGE. */
int zstd_level(const char *option, const char *text, int *level, mp_error *err);

/* 100 stored / plain; 100 of nothing. */
double zstd_percent(uint64_t stored, uint64_t plain);

/* Tensors of each type that is there: "  BF16     12 tensors  1.2 MB  0.9 MB  78.1%". */
void zstd_print_sums(FILE *out, const mp_compress_sum sums[MP_DTYPE_COUNT]);

/* The same as an array of {dtype, tensors, plain_bytes, stored_bytes}; null without memory. */
json_t *zstd_sums_json(const mp_compress_sum sums[MP_DTYPE_COUNT]);

#endif
